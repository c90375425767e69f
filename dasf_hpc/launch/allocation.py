"""Launch: node jobs that are steps of the SLURM job that we run in, one on every node of it."""

from __future__ import annotations

import itertools
import os
import subprocess
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from distributed.security import Security

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.launch.deadline import STARTED_VARIABLE
from dasf_hpc.launch.launcher import Launcher, RunPlace
from dasf_hpc.launch.local import LocalLauncher, LocalNodeJob
from dasf_hpc.settings import Settings


class StepNodeJob(LocalNodeJob):
    """A node job that is a step, started by srun; its job id is srun's pid."""

    def command(self, script: str) -> list[str]:
        """Give the words that run the script on the next node."""
        shape = self.launcher.shape
        cores = shape.workers_per_node * shape.threads_per_worker
        assert isinstance(self.launcher, AllocationLauncher)
        return [
            *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={self.launcher.next_host()}"),
            # All memory and GPUs of the job's share of the node, also while another step ends.
            *("--overlap", "--mem=0", f"--cpus-per-task={cores}", "--cpu-bind=none"),
            *("bash", script),
        ]


class AllocationLauncher(LocalLauncher):
    """Node jobs as steps of this SLURM job; see `Launcher` for the contract."""

    name: ClassVar[str] = "allocation"
    submit_program: ClassVar[str | None] = "srun"
    job_class: ClassVar[type[Job]] = StepNodeJob
    local: ClassVar[bool] = False

    def __init__(self, settings: Settings, place: RunPlace, security: Security | None) -> None:
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        if nodes is None:
            raise SettingsError(
                "Option --on is 'allocation': this is no SLURM job; sbatch slurm/allocation.sbatch "
                "starts one."
            )
        try:
            answer = subprocess.run(
                ["scontrol", "show", "hostnames", nodes],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise BatchError(f"scontrol does not name the nodes of this job: {error}.") from None
        self._hosts = itertools.cycle(answer.split())
        super().__init__(settings, place, security)

    def next_host(self) -> str:
        """Give the nodes of the job in turn."""
        return next(self._hosts)

    def common_options(self) -> dict[str, Any]:
        """Count the walltime from the job's start, where its script says when that was."""
        options = Launcher.common_options(self)
        started = os.environ.get(STARTED_VARIABLE)
        if started:
            options["job_script_prologue"][0] = f"export {STARTED_VARIABLE}={int(started)}"
        return options

    def scheduler_options(self) -> dict[str, Any]:
        """Have the scheduler listen for the other nodes."""
        return Launcher.scheduler_options(self)

    def refusal(self, message: str) -> BatchError:
        """Make one sentence of why srun could not be started."""
        return BatchError(f"A step could not be started with srun: {message}.")
