"""Launch: what a batch job is doing, in one vocabulary for all batch schedulers."""

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


#: SLURM's reasons (squeue(1), "JOB REASON CODES"), as far as there is something to say about them.
SLURM_REASONS = {
    "Priority": PendingReason("jobs with a higher priority are waiting in the same partition"),
    "Resources": PendingReason("no node is free that has what is asked for"),
    "None": PendingReason("the scheduler has not looked at it yet"),
    "BeginTime": PendingReason("it is not to begin yet"),
    "Dependency": PendingReason("it waits for another job"),
    "JobHeldUser": PendingReason("it is held; release it with scontrol release"),
    "JobHeldAdmin": PendingReason("an administrator holds it"),
    "Reservation": PendingReason("its reservation has not begun"),
    "ReqNodeNotAvail": PendingReason("a node it needs is down, drained or reserved"),
    "Licenses": PendingReason("it waits for a licence"),
    "PartitionDown": PendingReason("the partition is down", True),
    "PartitionInactive": PendingReason("the partition is inactive", True),
    "PartitionConfig": PendingReason(
        "no node of the partition can ever give what is asked for: lower the cores "
        "(--workers-per-node, --threads-per-worker), --memory or --gpus-per-node",
        True,
    ),
    "PartitionNodeLimit": PendingReason(
        "the partition cannot give what is asked for: lower --workers-per-node, "
        "--threads-per-worker or --memory",
        True,
    ),
    "PartitionTimeLimit": PendingReason("--walltime is longer than the partition allows", True),
    "BadConstraints": PendingReason("no node meets its constraints", True),
    "InvalidAccount": PendingReason("the account is not valid: see --account", True),
    "InvalidQOS": PendingReason("the quality of service is not valid: see --directive", True),
    "AssocGrpGRES": PendingReason("the account's share of GPUs is in use"),
    "AssocMaxWallDurationPerJobLimit": PendingReason(
        "--walltime is longer than the account may use", True
    ),
    "QOSMaxWallDurationPerJobLimit": PendingReason(
        "--walltime is longer than the quality of service allows", True
    ),
    "QOSMaxJobsPerUserLimit": PendingReason("you run as many jobs as you may at once"),
    "QOSMaxCpuPerUserLimit": PendingReason("you use as many cores as you may at once"),
    "QOSMaxGRESPerUser": PendingReason("you use as many GPUs as you may at once"),
}


def pending_reason(reason: str) -> PendingReason:
    """Give the sentence for a scheduler's reason, its own words where there is none."""
    if reason.startswith("Can Never Run"):  # OpenPBS's comment on a request beyond every node
        return PendingReason(
            f"{reason}: lower the cores (--workers-per-node, --threads-per-worker), --memory or "
            "--gpus-per-node",
            True,
        )
    word = reason.strip("()").split(",")[0].split(" ")[0]
    known = SLURM_REASONS.get(word)
    if known is not None:
        return known
    return PendingReason(f"the scheduler says: {reason.strip('()') or 'nothing'}")
