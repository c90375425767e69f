"""Launch: what happens to a run when its node jobs are lost, expire, or are refused.

Every rule stands here, and nothing else: no clock, no process, no Dask. `decide` is told what was
seen, and says what to do; who does it says with `refused` and `submitted` how that went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

#: So many node jobs in a row that end before a worker of theirs was there are replaced no more.
REPLACED_IN_VAIN = 3
#: A replacement that was refused is asked for again after this, and then after twice as long …
PAUSE_S = 30.0
#: … up to this: a limit of the site's may be one on what is in the queue just now.
PAUSE_MOST_S = 600.0


@dataclass(frozen=True)
class Loss:
    """A node job that left the queue before the run was over.

    Attributes
    ----------
    name
        Its name.
    walltime
        Whether its workers ended because its walltime was near.
    replaced
        Whether another one was submitted in its place before.
    came
        Whether a worker of it had been there.
    """

    name: str
    walltime: bool
    replaced: bool
    came: bool


@dataclass(frozen=True)
class Wishes:
    """What the user wants to be replaced: lost jobs, and jobs at their walltime."""

    lost: bool
    walltime: bool


@dataclass(frozen=True)
class Memory:
    """What is remembered from one look to the next.

    Attributes
    ----------
    in_vain
        Node jobs in a row that ended before a worker of theirs was there.
    owed
        Replacements that are still to be submitted.
    try_at
        When to ask for them, in seconds of the clock that `decide` is told.
    pause
        How long to wait after the next refusal, seconds.
    """

    in_vain: int = 0
    owed: int = 0
    try_at: float = 0.0
    pause: float = PAUSE_S


class End(Enum):
    """Why a run cannot go on."""

    WALLTIME = "walltime"
    LOST = "lost"


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes
    ----------
    memory
        For the next look.
    submit
        So many node jobs, one after the other, until one is refused.
    expiring
        Names of those jobs at their walltime whose replacements are among them or owed.
    gave_up
        Whether jobs are lost in vain and this is the first one not to be replaced.
    end
        Why the run is over where no node job is left, nor comes; None where that is no matter.
    """

    memory: Memory
    submit: int = 0
    expiring: tuple[str, ...] = ()
    gave_up: bool = False
    end: End | None = None


def decide(
    losses: Sequence[Loss],
    expiring: Sequence[str],
    wishes: Wishes,
    memory: Memory,
    now: float,
) -> Decision:
    """Say what to do about what was seen.

    Parameters
    ----------
    losses
        Node jobs lost since the last look, in their order.
    expiring
        Names of jobs that soon reach their walltime and were not replaced.
    wishes
        What the user wants.
    memory
        What the last decision left.
    now
        The time, in seconds of any clock that only goes forward.
    """
    in_vain, owed = memory.in_vain, memory.owed
    replaced: tuple[str, ...] = ()
    if wishes.walltime and in_vain < REPLACED_IN_VAIN:
        replaced = tuple(expiring)
        owed += len(replaced)
    gave_up, end = False, None
    for loss in losses:
        in_vain = 0 if loss.came else in_vain + 1
        end = End.WALLTIME if loss.walltime else End.LOST
        if not (wishes.walltime if loss.walltime else wishes.lost):
            continue
        if in_vain >= REPLACED_IN_VAIN:
            gave_up = gave_up or in_vain == REPLACED_IN_VAIN
            owed = 0
        elif not loss.replaced:
            owed += 1
    memory = replace(memory, in_vain=in_vain, owed=owed)
    submit = owed if now >= memory.try_at else 0
    return Decision(memory, submit, replaced, gave_up, end)


def submitted(memory: Memory) -> Memory:
    """Remember that a replacement was accepted."""
    return replace(memory, owed=memory.owed - 1, pause=PAUSE_S)


def refused(memory: Memory, now: float) -> Memory:
    """Remember that one was refused: those that are owed are asked for again later."""
    return replace(memory, try_at=now + memory.pause, pause=min(2 * memory.pause, PAUSE_MOST_S))
