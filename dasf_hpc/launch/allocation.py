"""Launch: node jobs that are steps of the batch job that we run in, one on every node of it."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from distributed.security import Security

from dasf_hpc.errors import SettingsError
from dasf_hpc.launch.deadline import STARTED_VARIABLE
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.local import LocalLauncher, LocalNodeJob
from dasf_hpc.launch.node import writes_report
from dasf_hpc.launch.shape import RunPlace
from dasf_hpc.settings import Settings
from dasf_hpc.systems import SYSTEMS
from dasf_hpc.systems.base import BatchSystem

#: How long a task of PBS may take to end by itself where we were asked to end at once, and how long
#: after a signal: together the 10 s that PBS leaves a deleted job by default (kill_delay). The
#: worker, its nanny and nsys's report took 5.5 s (measured on two busy cores).
BY_ITSELF_S = 7.0
AFTER_SIGNAL_S = 3.0


class StepNodeJob(LocalNodeJob):
    """A node job that is a step; its job id is the pid of the program that started it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: When the program was first seen to have ended, in seconds of the monotonic clock.
        self._left_at: float | None = None

    def command(self, script: str, log: Path) -> list[str]:
        """Give the words that run the script on the next node."""
        assert isinstance(self.launcher, AllocationLauncher)
        return self.launcher.step(script, log)

    def running(self) -> bool:
        """Say whether the step runs: its program may have been signalled and have left it."""
        assert isinstance(self.launcher, AllocationLauncher)
        if super().running():
            return True
        if not self.launcher.batch.steps_end_late:
            return False
        if self._left_at is None:
            self._left_at = time.monotonic()
        waited = time.monotonic() - self._left_at
        return waited < BY_ITSELF_S and writes_report(self.launcher.place.directory, str(self.name))

    def cancel(self) -> None:
        """Let a step end by itself for a moment where it lives on, and signal it then.

        Its worker was asked to exit. Where the whole job is being deleted, the batch system may
        have signalled the step, too, and nsys gives its report up at a second SIGTERM; it kills
        what is left when we end.
        """
        assert isinstance(self.launcher, AllocationLauncher)
        if not self.launcher.batch.steps_end_late:
            super().cancel()
            return
        deadline = time.monotonic() + BY_ITSELF_S
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.running():
            super().cancel()
            time.sleep(AFTER_SIGNAL_S)


class AllocationLauncher(LocalLauncher):
    """Node jobs as steps of this batch job; see `Launcher` for the contract."""

    name: ClassVar[str] = "allocation"
    job_class: ClassVar[type[Job]] = StepNodeJob
    local: ClassVar[bool] = False
    #: The batch system whose job this is.
    batch: ClassVar[BatchSystem]

    def __init__(self, settings: Settings, place: RunPlace, security: Security | None) -> None:
        batch = self.batch
        self.hosts = itertools.cycle(batch.list_hosts(os.environ[batch.nodes_variable]))
        super().__init__(settings, place, security)

    def step(self, script: str, log: Path) -> list[str]:
        """Give the words that run a script on the next node, its output in the log."""
        cores = self.shape.workers_per_node * self.shape.threads_per_worker
        return self.batch.step_words(next(self.hosts), script, log, cores)

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


def allocation_launcher() -> type[AllocationLauncher]:
    """Choose by the job that this is.

    Raises
    ------
    SettingsError
        If it is none.
    """
    for batch in SYSTEMS.values():
        if batch.nodes_variable in os.environ:
            facts = {"batch": batch, "submit_program": batch.step_program}
            return type(f"{batch.title}AllocationLauncher", (AllocationLauncher,), facts)
    raise SettingsError(
        "Option --on is 'allocation', and this is no batch job: sbatch slurm/allocation.sbatch or "
        "qsub pbs/allocation.pbs starts one."
    )
