"""Launch: node jobs that are steps of the batch job that we run in, one on every node of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from distributed.security import Security

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.launch.deadline import STARTED_VARIABLE
from dasf_hpc.launch.launcher import Launcher, RunPlace
from dasf_hpc.launch.local import LocalLauncher, LocalNodeJob
from dasf_hpc.settings import Settings

#: How long a task of PBS may take to end by itself where we were asked to end at once, and how long
#: after a signal: together the 10 s that PBS leaves a deleted job by default (kill_delay). The
#: worker, its nanny and nsys's report took 5.5 s (measured on two busy cores).
BY_ITSELF_S = 7.0
AFTER_SIGNAL_S = 3.0


class StepNodeJob(LocalNodeJob):
    """A node job that is a step; its job id is the pid of the program that started it."""

    def command(self, script: str, log: Path) -> list[str]:
        """Give the words that run the script on the next node."""
        assert isinstance(self.launcher, AllocationLauncher)
        return self.launcher.step(script, log)


class AllocationLauncher(LocalLauncher):
    """Node jobs as steps of this batch job; see `Launcher` for the contract.

    A concrete one says which variable tells a job of its nodes, lists them, and gives the words
    that run a script on the next of them.
    """

    name: ClassVar[str] = "allocation"
    job_class: ClassVar[type[Job]] = StepNodeJob
    local: ClassVar[bool] = False
    #: The variable that a job with nodes has.
    nodes_variable: ClassVar[str]

    def __init__(self, settings: Settings, place: RunPlace, security: Security | None) -> None:
        self.hosts = itertools.cycle(self.list_hosts(os.environ[self.nodes_variable]))
        super().__init__(settings, place, security)

    @abstractmethod
    def list_hosts(self, nodes: str) -> list[str]:
        """Name this job's nodes, each once, as `step` takes them.

        Raises
        ------
        BatchError
            If the batch scheduler does not name them.
        """

    @abstractmethod
    def step(self, script: str, log: Path) -> list[str]:
        """Give the words that run a script on the next node, its output in the log."""

    def common_options(self) -> dict[str, Any]:
        """Count the walltime from the job's start, where its script says when that was."""
        options = Launcher.common_options(self)
        started = os.environ.get(STARTED_VARIABLE)
        if started:
            options["job_script_prologue"][0] = f"export {STARTED_VARIABLE}={int(started)}"
        return options

    def visible_gpus(self) -> str:
        """Leave it to the node, which may be another than the head's."""
        return Launcher.visible_gpus(self)

    def scheduler_options(self) -> dict[str, Any]:
        """Have the scheduler listen for the other nodes."""
        return Launcher.scheduler_options(self)

    def refusal(self, message: str) -> BatchError:
        """Make one sentence of why the step could not be started."""
        return BatchError(f"A step could not be started with {self.submit_program}: {message}.")


class SlurmAllocationLauncher(AllocationLauncher):
    """Steps of a SLURM job, started by srun."""

    submit_program: ClassVar[str | None] = "srun"
    nodes_variable: ClassVar[str] = "SLURM_JOB_NODELIST"

    def list_hosts(self, nodes: str) -> list[str]:
        """Have scontrol write the compressed list out."""
        try:
            return subprocess.run(
                ["scontrol", "show", "hostnames", nodes],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout.split()
        except (OSError, subprocess.SubprocessError) as error:
            raise BatchError(f"scontrol does not name the nodes of this job: {error}.") from None

    def step(self, script: str, log: Path) -> list[str]:
        """Start it with srun, whose output is the step's."""
        cores = self.shape.workers_per_node * self.shape.threads_per_worker
        return [
            *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={next(self.hosts)}"),
            # All memory and GPUs of the job's share of the node, also while another step ends.
            *("--overlap", "--mem=0", f"--cpus-per-task={cores}", "--cpu-bind=none"),
            *("bash", script),
        ]


class PbsNodeTask(StepNodeJob):
    """A task of a PBS job on one of its nodes; its job id is the pid of pbsdsh."""

    def cancel(self) -> None:
        """Let the task end by itself for a moment, and signal it then.

        Its worker was asked to exit. Where the whole job is being deleted, PBS may have signalled
        the task, too, and nsys gives its report up at a second SIGTERM. pbsdsh passes a signal on
        and ends without waiting for the task, and PBS kills what is left when we end.
        """
        deadline = time.monotonic() + BY_ITSELF_S
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.running():
            super().cancel()
            time.sleep(AFTER_SIGNAL_S)


class PbsAllocationLauncher(AllocationLauncher):
    """Tasks of a PBS job, started by pbsdsh."""

    submit_program: ClassVar[str | None] = "pbsdsh"
    job_class: ClassVar[type[Job]] = PbsNodeTask
    nodes_variable: ClassVar[str] = "PBS_NODEFILE"

    def list_hosts(self, nodes: str) -> list[str]:
        """Give the first line of each host in the file of nodes, by number: pbsdsh counts lines."""
        try:
            lines = Path(nodes).read_text().split()
        except OSError as error:
            raise BatchError(f"{nodes} does not name the nodes of this job: {error}.") from None
        return [str(lines.index(host)) for host in dict.fromkeys(lines)]

    def step(self, script: str, log: Path) -> list[str]:
        """Start it with pbsdsh, which sends a task's output to the job's and not to us.

        A task has the environment that the job began with, perhaps without a PATH.
        """
        logged = 'exec /bin/bash "$0" >> "$1" 2>&1'
        words = ["/bin/bash", "-c", logged, script, str(log)]
        return ["pbsdsh", "-n", next(self.hosts), "--", *words]


def allocation_launcher() -> type[AllocationLauncher]:
    """Choose by the job that this is.

    Raises
    ------
    SettingsError
        If it is none.
    """
    for launcher in (SlurmAllocationLauncher, PbsAllocationLauncher):
        if launcher.nodes_variable in os.environ:
            return launcher
    raise SettingsError(
        "Option --on is 'allocation', and this is no batch job: sbatch slurm/allocation.sbatch or "
        "qsub pbs/allocation.pbs starts one."
    )
