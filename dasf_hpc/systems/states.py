"""Batch systems: what a batch job is doing, in one vocabulary for all batch schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobState(Enum):
    """State of a node's batch job, as far as a launcher needs it.

    Attributes
    ----------
    in_queue
        Whether the batch scheduler still holds the job: it waits, runs or is being ended.
    """

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDING = "ending"
    GONE = "gone"

    @property
    def in_queue(self) -> bool:
        """Whether the job is still with the batch scheduler."""
        return self is not JobState.GONE


@dataclass(frozen=True)
class JobStatus:
    """State of a batch job and what its scheduler says about it.

    Attributes
    ----------
    state
        The state.
    reason
        The scheduler's own word for why the job waits; empty where it gives none.
    name
        The job's name in the queue; empty where that is not said.
    """

    state: JobState
    reason: str = ""
    name: str = ""


@dataclass(frozen=True)
class PendingReason:
    """Why a job waits, as a sentence a person can act on.

    Attributes
    ----------
    sentence
        What keeps the job.
    hopeless
        Whether waiting cannot help: the request itself must change.
    """

    sentence: str
    hopeless: bool = False
