"""What long work tells of itself, step by step: for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Something to show: what is being done, how far it is, and of how much."""

    label: str
    done: int | None = None
    total: int | None = None
    #: A sentence that is to stay on the screen.
    said: str = ""


#: Told of every step; see `dasf_hpc.show.terminal` for the one that draws.
Told = Callable[[Step], None]
