"""Launch: node jobs on SLURM."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from dask_jobqueue.slurm import SLURMJob

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.launcher import Launcher, NodeJob
from dasf_hpc.launch.states import JobState, JobStatus

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


class SlurmNodeJob(NodeJob, SLURMJob):
    """A node job submitted with sbatch."""

    async def _submit_job(self, script_filename: str) -> str:
        # Submitted from the folder of logs, where SLURM then puts slurm-ID.out, whatever the path.
        directory = self.launcher.place.directory / "logs"
        answer: str = await self._call(["sbatch", script_filename], cwd=directory)
        return answer


class SlurmLauncher(Launcher):
    """Node jobs on SLURM; see `Launcher` for the contract."""

    name: ClassVar[str] = "slurm"
    submit_program: ClassVar[str | None] = "sbatch"
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
        command = ["squeue", "-h", "-o", "%i|%T|%r", "-j", ",".join(job_ids)]
        try:
            answer = await SlurmNodeJob._call(command)
        except (RuntimeError, OSError, TimeoutError) as error:
            if "Invalid job id" in str(error):
                return {}
            raise BatchError(f"squeue does not answer: {_last_line(str(error))}") from None
        found = {}
        for line in answer.splitlines():
            job_id, state, reason = [*line.strip().split("|", 2), "", ""][:3]
            found[job_id] = JobStatus(_STATES.get(state, JobState.ENDING), reason)
        return found

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
