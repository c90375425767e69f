"""Launch: our batch jobs, and the cluster that they make up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dask
from dask_jobqueue.core import JobQueueCluster
from distributed.core import Status

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.dask_settings import jobqueue_settings
from dasf_hpc.launch.quoting import shell_word
from dasf_hpc.launch.signs import SIGNS, Sign, sign_line
from dasf_hpc.launch.worker_command import file_stem
from dasf_hpc.systems.base import BatchSystem, batch_name

if TYPE_CHECKING:
    from dasf_hpc.launch.launcher import Launcher

#: Stands for the node job's name in the command until dask-jobqueue has given it one.
NAME_PLACE = "__DASF_HPC_NAME__"


class NodeJob:
    """What our batch jobs do otherwise than dask-jobqueue's; mixed into its job classes.

    The script is kept in the run's directory, a refused submission is remembered rather than
    raised into Dask's event loop, and `close` lets the job end by itself: it asks the job's workers
    to exit, waits until nsys has written its report and the job has left the queue, and cancels
    only what is left after the time given.
    """

    job_id: str | None
    name: str
    _command_template: str

    #: Of jobs that a batch system holds.
    system: ClassVar[BatchSystem | None] = None

    def __init__(
        self,
        scheduler: Any = None,
        name: Any = None,
        *,
        launcher: Launcher,
        security: Any = None,
        **kwargs: Any,
    ) -> None:
        self.launcher = launcher
        self.batch_name = kwargs["job_name"] = batch_name(str(name))
        if self.system is not None:
            kwargs["job_script_prologue"] = [
                *self._first_lines(str(name)),
                *kwargs["job_script_prologue"],
            ]
        # dask-jobqueue pastes paths unquoted into the script; ours may hold blanks.
        tls = security.get_tls_config_for_role("worker") if security is not None else {}
        arguments = [
            word
            for key, value in tls.items()
            if key != "ciphers" and value
            for word in (f"--tls-{key.replace('_', '-')}", shell_word(str(value)))
        ]
        extra = [*kwargs.pop("worker_extra_args", []), *arguments]
        with dask.config.set(jobqueue_settings(launcher.name)):
            super().__init__(  # type: ignore[call-arg]
                scheduler, name, worker_extra_args=extra, **kwargs
            )
        # The placeholder of the node step's name, filled in where the name is known. The node step
        # takes the shell's place: a batch system that ends a job signals the shell, too, which
        # would end at once, and with the shell's end what still writes its report is killed.
        step = self._command_template.replace(NAME_PLACE, shell_word(str(name)))
        self._command_template = f"exec {step}"
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.replaced = False
        self.sign = Sign(self._sign_path(str(name)))
        #: Whether neither the job's script nor a worker of it was heard of for long.
        self.silent = False

    def _sign_path(self, name: str) -> Path:
        return self.launcher.place.directory / SIGNS / f"{file_stem(name)}.sign"

    def _first_lines(self, name: str) -> list[str]:
        """Give the shell lines that have the job's output go to its log, and leave signs of life.

        What a batch system does with a job's output it may do at the job's end only.
        """
        log = node_log(self.launcher.place.directory / "logs", name)
        return [f"exec >> {shell_word(str(log))} 2>&1", sign_line(self._sign_path(name))]

    async def _submit_job(self, script_filename: str) -> str:
        """Submit the script, and give the id of its job."""
        system = self.system
        assert system is not None
        # From the folder of logs, where the batch system then puts what it says of the job itself.
        return await asyncio.to_thread(
            system.submit_script,
            Path(script_filename),
            self.launcher.place.directory / "logs",
            self.batch_name,
            self.launcher.settings,
        )

    def _job_id_from_submit_output(self, out: str) -> str:
        """Take what `_submit_job` gives, for dask-jobqueue."""
        return out

    @contextlib.contextmanager
    def job_file(self) -> Iterator[str]:
        """Write the script into the run's directory, where it stays."""
        directory = self.launcher.place.directory / "scripts"
        path = directory / f"{file_stem(str(self.name))}.sh"
        path.write_text(self.job_script(), encoding="utf-8")  # type: ignore[attr-defined]
        if self.system is not None:
            node_log(self.launcher.place.directory / "logs", str(self.name)).touch(mode=0o600)
        yield str(path)

    async def start(self) -> None:
        """Submit the job."""
        try:
            await super().start()  # type: ignore[misc]
        except (BatchError, OSError) as error:
            refusal = BatchError(f"A node job could not be started: {error}.")
            self.launcher.refusals.append(error if isinstance(error, BatchError) else refusal)
            self.status = Status.failed
            self.status = Status.running  # SpecCluster asserts it; the launcher ends the run
        self.submitted_at = time.monotonic()

    async def close(self) -> None:
        """Let the job end by itself, and cancel it where it does not."""
        if self.job_id is not None:
            await self.launcher.ending.end_job(self)
        self.status = Status.closed
        self._event_finished.set()  # type: ignore[attr-defined]


def node_log(logs: Path, name: str) -> Path:
    """Give the file of what a node job says."""
    return logs / f"{file_stem(name)}.log"


def is_worker_of(job: str, worker: str) -> bool:
    """Say by their names if a worker is a node job's: named as the job, or NAME-0, NAME-1 …"""
    return re.fullmatch(re.escape(job) + r"(-\d+)?", worker) is not None


class NodeJobs(JobQueueCluster):
    """A cluster in which a node job that takes the place of another gets a name of its own.

    Dask would give it the name of one that is gone, whose workers and files were others.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._numbers = itertools.count()
        super().__init__(**kwargs)

    def new_worker_spec(self) -> dict[str, Any]:
        """Give name and description of the next node job."""
        (description,) = super().new_worker_spec().values()
        return {f"{self.name}-{next(self._numbers)}": description}

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster ends the job of a worker it has not seen for 15 s; a nanny may take longer to
        # restart one, and whether a node job is lost is for the batch scheduler to say. It looks
        # this up here, and only here: the caller's configuration stays as it is.
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"}):
            super()._update_worker_status(op, msg)
