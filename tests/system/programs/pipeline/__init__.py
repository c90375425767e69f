"""A package of a user's own."""

from pipeline.gather import Gather as Gather
