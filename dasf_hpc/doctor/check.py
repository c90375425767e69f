"""Doctor: what a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LOGIN = "login node"
COMPUTE = "compute node"
IMAGE = "image"


class Status(StrEnum):
    """What a check found; COULD_NOT_LOOK is an answer of its own, not a failure."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    COULD_NOT_LOOK = "could not look"


@dataclass(frozen=True)
class Check:
    """One check's result.

    Attributes
    ----------
    name
        What was looked at.
    where
        login node, compute node or image.
    status
        One of `Status`.
    detail
        What was found, on which host.
    remedy
        What to do; empty where nothing is to be done.
    """

    name: str
    where: str
    status: Status
    detail: str
    remedy: str = ""


def ok(name: str, where: str, detail: str) -> Check:
    """Give the result of a check that found nothing wrong."""
    return Check(name, where, Status.OK, detail)


def warn(name: str, where: str, detail: str, remedy: str) -> Check:
    """Give the result of a check that found what costs data or comfort, but no run."""
    return Check(name, where, Status.WARN, detail, remedy)


def fail(name: str, where: str, detail: str, remedy: str) -> Check:
    """Give the result of a check that found what breaks a run."""
    return Check(name, where, Status.FAIL, detail, remedy)


def could_not_look(name: str, where: str, detail: str, remedy: str = "") -> Check:
    """Give the result of a check that found out nothing."""
    return Check(name, where, Status.COULD_NOT_LOOK, detail, remedy)
