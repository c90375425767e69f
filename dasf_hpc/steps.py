"""What long work tells of itself, step by step: for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class FunctionNow:
    """A function's tasks: those that ended well, and all that the scheduler was told of."""

    name: str
    done: int
    known: int


@dataclass(frozen=True)
class Now:
    """A run at one moment, as its scheduler knows it.

    Attributes
    ----------
    elapsed
        Seconds since the script was started.
    done, known, executing, erred
        Tasks: that ended well, that the scheduler was told of, that run on a worker, and that
        failed or depend on one that did. One that is run again counts again.
    functions
        Those with tasks that are still to do, the most of them first.
    workers, expected
        Workers that are there, and that were asked for.
    paused
        Workers that take no task, for their memory is nearly full.
    memory, memory_limit
        Of all workers, bytes; a limit of 0: none.
    fullest
        The worker that is nearest to its limit, by name; empty where none has one.
    fullest_share
        What of its limit that worker uses, %.
    waits_for
        What tasks, or workers that are not there, wait for; empty: for nothing.
    at_least
        Whether there are more functions than were looked at, and so more tasks.
    """

    elapsed: float
    done: int = 0
    known: int = 0
    executing: int = 0
    erred: int = 0
    functions: tuple[FunctionNow, ...] = ()
    workers: int = 0
    expected: int = 0
    paused: int = 0
    memory: int = 0
    memory_limit: int = 0
    fullest: str = ""
    fullest_share: float = 0.0
    waits_for: str = ""
    at_least: bool = False


@dataclass(frozen=True)
class Step:
    """Something to show: what is being done, how far it is, and of how much."""

    label: str
    done: int | None = None
    total: int | None = None
    #: A sentence that is to stay on the screen.
    said: str = ""
    #: How the run is, while its script runs.
    now: Now | None = None

    @property
    def phase(self) -> str:
        """What is being done, without its details."""
        return self.label.split(":")[0]


#: Told of every step; see `dasf_hpc.show.progress` for the one that draws.
Told = Callable[[Step], None]
