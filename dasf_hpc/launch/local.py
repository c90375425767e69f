"""Launch: node jobs on this machine, through dask-jobqueue's own local job class."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
from dask_jobqueue.core import Job
from dask_jobqueue.local import LocalJob

from dasf_hpc.errors import SettingsError
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.node_job import NodeJob
from dasf_hpc.launch.quoting import shell_word
from dasf_hpc.systems.states import JobState, JobStatus

#: A cancelled job gets this long between SIGTERM and SIGKILL.
KILL_WAIT_S = 10.0


class LocalNodeJob(NodeJob, LocalJob):
    """A node job that is a process of this machine; its job id is the pid."""

    process: subprocess.Popen[bytes]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._descendants: set[psutil.Process] = set()

    def job_script(self) -> str:
        """Give the script, which bash runs as a batch scheduler would."""
        script: str = super().job_script()
        return "#!/usr/bin/env bash\n" + script.lstrip("\n")

    def command(self, script: str, log: Path) -> list[str]:
        """Give the words that run the script, and write to the log if their output is not all."""
        return ["bash", script]

    async def _submit_job(self, script_filename: str) -> str:
        log = self.launcher.place.directory / "logs" / f"{Path(script_filename).stem}.log"
        with log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal is for the run, which ends the job.
            self.process = subprocess.Popen(
                self.command(script_filename, log),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return str(self.process.pid)

    def running(self) -> bool:
        """Say whether the script runs; what it left behind is ended, as a batch scheduler does."""
        if self.process.poll() is None:
            # nsys puts the workers into sessions of their own: they are known by their parents.
            with contextlib.suppress(psutil.Error):
                self._descendants |= set(psutil.Process(self.process.pid).children(recursive=True))
            return True
        self._end(self._descendants)
        return False

    def cancel(self) -> None:
        """End the job's processes, at first politely."""
        if self.running():
            with contextlib.suppress(psutil.Error):
                self._end({*self._descendants, psutil.Process(self.process.pid)})
            self.process.wait()

    @staticmethod
    def _end(processes: set[psutil.Process]) -> None:
        alive = [p for p in processes if p.is_running()]
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(alive, timeout=KILL_WAIT_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


class LocalLauncher(Launcher):
    """Node jobs on this machine, on loopback; see `Launcher` for the contract."""

    name: ClassVar[str] = "local"
    job_class: ClassVar[type[Job]] = LocalNodeJob
    local: ClassVar[bool] = True

    def job_options(self) -> dict[str, Any]:
        """Keep the workers on loopback."""
        return {}

    def common_options(self) -> dict[str, Any]:
        """Add the loopback address to the workers' command."""
        options = super().common_options()
        if not self.settings.interface:
            options["worker_extra_args"] = [*options["worker_extra_args"], "--host", "127.0.0.1"]
        return options

    def visible_gpus(self) -> str:
        """Name the first of the GPUs that this process may use."""
        devices = ",".join(self._devices(self.shape.gpus_per_node))
        return f"export CUDA_VISIBLE_DEVICES={shell_word(devices)}"

    @staticmethod
    def _devices(wanted: int) -> list[str]:
        """Name the GPUs of a run: the first of those that CUDA_VISIBLE_DEVICES leaves us.

        Raises
        ------
        SettingsError
            If it leaves fewer.
        """
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        if given is None:
            return [str(number) for number in range(wanted)]
        entries = [entry.strip() for entry in given.split(",") if entry.strip()]
        if len(entries) < wanted:
            raise SettingsError(
                f"Option --gpus-per-node is {wanted}, and CUDA_VISIBLE_DEVICES names "
                f"{len(entries)}: lower the option, or unset the variable."
            )
        return entries[:wanted]

    def scheduler_options(self) -> dict[str, Any]:
        """Keep the scheduler on loopback."""
        options = super().scheduler_options()
        if not self.settings.interface:
            options["host"] = "127.0.0.1"
        return options

    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Look at the processes."""
        alive = {job.job_id: job.running() for job in self.jobs() if job.job_id}
        return {i: JobStatus(JobState.RUNNING if alive.get(i) else JobState.GONE) for i in job_ids}

    async def cancel(self, job: Any) -> str:
        """End the job's processes."""
        await asyncio.to_thread(job.cancel)
        return ""
