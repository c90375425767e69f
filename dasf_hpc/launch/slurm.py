"""Launch: node jobs on SLURM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from dask_jobqueue.slurm import SLURMJob

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.batch_system import BatchSystem
from dasf_hpc.launch.launcher import Launcher, NodeJob
from dasf_hpc.launch.states import JobState, JobStatus
from dasf_hpc.settings import Settings

#: squeue(1), "JOB STATE CODES"; whatever is not here and still listed is being ended.
_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.ENDING,
    "COMPLETING": JobState.ENDING,
}


class Slurm(BatchSystem):
    """SLURM, from 20.02 on."""

    name: ClassVar[str] = "slurm"
    submit: ClassVar[str] = "sbatch"
    templates: ClassVar[Mapping[str, str]] = {
        "head": "dasf-hpc.sbatch",
        "allocation": "allocation.sbatch",
        "array": "array.sbatch",
    }
    mark: ClassVar[str] = "#SBATCH"
    queue_directive: ClassVar[str] = "--partition={}"
    account_directive: ClassVar[str] = "--account={}"
    walltime_directive: ClassVar[str] = "--time={}"
    name_directive: ClassVar[str] = "--job-name={}"
    #: The sections "INPUT ENVIRONMENT VARIABLES" of sbatch(1), squeue(1) and scancel(1). What
    #: concerns the cluster as such, SLURM_CONF and SLURM_CLUSTERS, is left: all obey it alike.
    hijacking: ClassVar[tuple[str, ...]] = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SLURM_EXPORT_ENV")
    #: A site's or user's defaults for what a run need not say, and the options that say it.
    _defaults: ClassVar[dict[str, tuple[str, ...]]] = {
        "SBATCH_ACCOUNT": ("--account", "-A"),
        "SBATCH_CLUSTERS": ("--clusters", "-M"),
        "SBATCH_CONSTRAINT": ("--constraint", "-C"),
        "SBATCH_PARTITION": ("--partition", "-p"),
        "SBATCH_QOS": ("--qos", "-q"),
        "SBATCH_RESERVATION": ("--reservation",),
    }

    def submit_variables(self, settings: Settings | None) -> set[str]:
        """Give defaults for what this run does not say: sbatch prefers them to a script."""
        said = list(settings.directive) if settings else []
        if settings is not None and settings.account:
            said.append("--account")
        if settings is not None and settings.partition:
            said.append("--partition")
        return {
            name
            for name, options in self._defaults.items()
            if not any(
                line == option or line.startswith((f"{option}=", f"{option} "))
                or (len(option) == 2 and line.startswith(option))
                for line in said
                for option in options
            )
        }  # fmt: skip

    def read_ids(self, answer: str) -> list[str]:
        """Read sbatch(1)'s own line, or that of its option ``--parsable``."""
        found = re.findall(
            r"^(?:Submitted batch job (\d+)(?: on cluster \S+)?|(\d+)(?:;\S+)?)\s*$",
            answer,
            re.MULTILINE,
        )
        said = [line for line, _ in found if line] or [number for _, number in found]
        return list(dict.fromkeys(said))

    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Ask squeue; a name comes last, for it may hold anything."""
        return ["squeue", "-h", "-o", "%i|%T|%r|%j", "-j", ",".join(ids)]

    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read squeue's lines."""
        found = {}
        for line in answer.splitlines():
            parts = line.strip().split("|", 3)
            if len(parts) == 4:
                job_id, state, reason, name = parts
                found[job_id] = JobStatus(_STATES.get(state, JobState.ENDING), reason, name)
        return found

    def find_words(self, name: str) -> list[str]:
        """Ask squeue for the user's jobs of a name."""
        return ["squeue", "-h", "--me", "-o", "%i", "-n", name]

    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Have scancel look at the name, too."""
        return ["scancel", f"--name={name}", job_id]

    def is_not_held(self, code: int, said: str) -> bool:
        """Know what squeue says of a job that is over and forgotten."""
        return "Invalid job id" in said


SLURM = Slurm()


class SlurmNodeJob(NodeJob, SLURMJob):
    """A node job submitted with sbatch."""

    system: ClassVar[BatchSystem | None] = SLURM


class SlurmLauncher(Launcher):
    """Node jobs on SLURM; see `Launcher` for the contract."""

    name: ClassVar[str] = "slurm"
    system: ClassVar[BatchSystem | None] = SLURM
    submit_program: ClassVar[str | None] = SLURM.submit
    job_class: ClassVar[type[Job]] = SlurmNodeJob

    def job_options(self) -> dict[str, Any]:
        """Give partition, account, walltime, GPUs and the user's directives."""
        directives = list(self.settings.directive)
        if self.shape.gpus_per_node:
            directives.insert(0, f"--gres=gpu:{self.shape.gpus_per_node}")
        if self.settings.exclusive:
            directives.insert(0, "--exclusive")
        return {
            "queue": self.settings.partition,
            "account": self.settings.account,
            "walltime": self.settings.walltime,
            "job_extra_directives": directives,
        }

    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask squeue for all jobs at once."""
        try:
            answer = await SlurmNodeJob._call(SLURM.ask_words(job_ids), env=SLURM.environment())
        except (RuntimeError, OSError, TimeoutError) as error:
            if SLURM.is_not_held(1, str(error)):
                return {}
            raise BatchError(f"squeue does not answer: {_last_line(str(error))}") from None
        return SLURM.read(answer)

    def refusal(self, message: str) -> BatchError:
        """Make one sentence of sbatch's words."""
        said = re.findall(r"(?:sbatch|slurm_\w+)?: ?error: (.+)", message)
        said = said or re.findall(r"^sbatch: (.+)", message, re.MULTILINE)
        said = [re.sub(r"^Batch job submission failed: ", "", line).strip() for line in said]
        unique = list(dict.fromkeys(said)) or [_last_line(message)]
        return BatchError(
            f"SLURM refused a node job: {'; '.join(unique)[:400]} (the script is in "
            f"{self.place.directory / 'scripts'})."
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
