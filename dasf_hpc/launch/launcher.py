"""Launch: the contract of a launcher, and all of it that does not depend on the batch scheduler."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import dask
from dask_jobqueue.core import Job
from distributed.core import Status
from distributed.security import Security

from dasf_hpc.errors import BatchError, PortError, RunDirectoryError, WorkersError
from dasf_hpc.launch.dask_settings import SCHEDULER
from dasf_hpc.launch.ending import Ending, StopReport
from dasf_hpc.launch.last_words import batch_logs, last_words
from dasf_hpc.launch.node_job import NodeJobs, is_worker_of, node_log
from dasf_hpc.launch.node_script import NodeScripts
from dasf_hpc.launch.queue import LostJob, Queue
from dasf_hpc.launch.shape import RunPlace, run_shape
from dasf_hpc.launch.tls import tidy_connections
from dasf_hpc.launch.worker_environment import delete_environment, write_environment
from dasf_hpc.launch.worker_options import check_together
from dasf_hpc.settings import Settings, with_jobqueue_yaml
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.states import JobState, JobStatus, PendingReason

#: A reason for which waiting cannot help must last this long: batch systems correct themselves a
#: few seconds after a submission (measured: PartitionConfig became PartitionTimeLimit).
HOPELESS_AFTER_S = 8.0

#: Dask's word of where the scheduler is, in the run's directory while the run lasts.
SCHEDULER_FILE = "scheduler.json"


class Launcher(NodeScripts):
    """Gives a started Dask cluster whose workers are wrapped, and ends it without losing a report.

    The contract of a launcher, whatever the batch scheduler:

    - `start` starts the Dask scheduler in this process and submits one batch job a node; each runs
      `dasf_hpc.launch.node`, which starts the workers under nsys. It returns when all jobs are
      submitted, and raises `BatchError` with the batch scheduler's own words where one is refused.
    - `wait_for_workers` returns when enough workers are there. It raises where that cannot happen
      any more: a job that is refused while it waits, all jobs gone from the queue, time out.
    - `losses` names node jobs that left the queue before `stop`, `expiring` those that soon will;
      `add_job` submits another one.
    - `stop` asks every worker to exit and waits, bounded, until the jobs have left the queue by
      themselves; nothing that is left afterwards stays in the queue. It may be called at any time
      after `start` was, also when `start` raised, and more than once.

    A concrete launcher names its dask-jobqueue job class (with `NodeJob` mixed in), says what of
    the settings goes into it, and asks for the states of its jobs. What the scripts say is in
    `NodeScripts`, what the queue says in `Queue`, and the jobs' end in `Ending`.
    """

    #: Name in settings and manifest.
    name: ClassVar[str]
    #: The program that submits; its absence means that this launcher cannot be used here.
    submit_program: ClassVar[str | None] = None
    #: The batch system that holds the jobs, None where they are processes of this machine.
    system: ClassVar[BatchSystem | None] = None
    job_class: ClassVar[type[Job]]
    local: ClassVar[bool] = False

    def __init__(self, settings: Settings, place: RunPlace, security: Security | None) -> None:
        self.settings = settings = with_jobqueue_yaml(settings, self.name)
        check_together(settings)
        self.place = place
        self.security = security
        if security is not None:
            tidy_connections()
        self.shape = run_shape(settings, self.local)
        self.refusals: list[BatchError] = []
        self.cluster: Any = None
        self.queue = Queue(self)
        self.ending = Ending(self)
        #: Node jobs that were lost, by their ids.
        self.lost: dict[str, Any] = {}
        self._stopping = False

    # -- what a concrete launcher gives

    @abstractmethod
    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask the batch scheduler for these jobs; a job it does not hold any more may be left out.

        Raises
        ------
        BatchError
            If it does not answer.
        """

    def why_pending(self, reason: str) -> PendingReason:
        """Give the sentence for a job's reason to wait."""
        return self.system.why_pending(reason) if self.system else PendingReason(reason)

    # -- start

    def start(self) -> None:
        """Start the scheduler and submit the node jobs.

        Raises
        ------
        PortError
            If the scheduler's port or interface cannot be used.
        BatchError
            If a job is refused.
        """
        self._check_port()
        write_environment(self.place.directory, self.settings.env)
        try:
            with dask.config.set(SCHEDULER):
                self.cluster = NodeJobs(
                    job_cls=self.job_class,
                    name=self.place.name,
                    security=self.security,
                    silence_logs=False,
                    protocol=self._protocol(),
                    scheduler_options=self.scheduler_options(),
                    interface=self.settings.interface,
                    launcher=self,
                    **self.common_options(),
                    **self.job_options(),
                )
        except (RuntimeError, ValueError, OSError) as error:
            text = str(error)
            if "interface" in text:
                raise PortError(
                    f"The interface {self.settings.interface!r} cannot be used on this host: "
                    f"{text.splitlines()[0]}"
                ) from None
            raise
        self._write_scheduler_file()
        self.cluster.scale(jobs=self.shape.nodes)
        while len(self.jobs()) < self.shape.nodes and not self.refusals:
            time.sleep(0.02)
        self.check_refused()

    def _write_scheduler_file(self) -> None:
        """Write what ``dask scheduler --scheduler-file`` does."""
        # Dask's own way ends in a traceback where the folder cannot be written at the end.
        path = self.place.directory / SCHEDULER_FILE
        try:
            path.touch(mode=0o600)
            path.write_text(json.dumps(self.cluster.scheduler.identity(), indent=2))
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be written: {error.strerror}.") from None

    def _check_port(self) -> None:
        """Try the scheduler's port: Dask's own complaint about a taken one names another cause."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1" if self.local else "", self.settings.scheduler_port))
            except OSError as error:
                raise PortError(
                    f"Port {self.settings.scheduler_port} of this host cannot be used "
                    f"({(error.strerror or str(error)).lower()}): choose another with "
                    "--scheduler-port, or 0 for any free one."
                ) from None

    def check_refused(self) -> None:
        """Raise the first refusal of the batch scheduler, if there is one."""
        if self.refusals:
            raise self.refusals[0]

    def jobs(self) -> list[Any]:
        """Give the node jobs that were submitted."""
        return [] if self.cluster is None else list(self.cluster.workers.values())

    def job_ids(self) -> list[str]:
        """Give the ids of all batch jobs that were submitted, also of those that are gone."""
        ids = [job.job_id for job in self.jobs() if job.job_id is not None]
        return list(dict.fromkeys([*self.lost, *ids, *self.ending.report.job_ids]))

    def workers(self) -> int:
        """Give the number of workers that are connected."""
        return len(self.cluster.scheduler.workers)

    def dashboard(self) -> str:
        """Say where the Dask dashboard is; empty where there is none. It names no credential."""
        server = self.cluster.scheduler.services.get("dashboard")
        if server is None or not self.settings.dashboard:  # a server of its health is there always
            return ""
        encrypted = dask.config.get("distributed.scheduler.dashboard.tls.cert", None)
        host, port = socket.gethostname(), server.port
        return (
            f"http{'s' if encrypted else ''}://127.0.0.1:{port}/status on {host} "
            f"(from elsewhere first: ssh -L {port}:127.0.0.1:{port} {host})"
        )

    def why_workers_wait(self, there: int) -> str:
        """Say what the workers that are not there wait for; empty where none is missing."""
        if there >= self.shape.workers:
            return ""
        statuses = self.cluster.sync(self.queue.statuses)
        reasons = self._pending_reasons(statuses.values())
        return "; ".join(reasons)

    def _pending_reasons(self, statuses: Iterable[JobStatus]) -> list[str]:
        """Give the reasons for which jobs wait in the queue, each once."""
        pending = [status for status in statuses if status.state is JobState.PENDING]
        return sorted({self.why_pending(status.reason).sentence for status in pending})

    def wait_for_workers(self, wanted: int, told: Callable[[int, str], None]) -> None:
        """Wait until enough workers are connected.

        Parameters
        ----------
        wanted
            How many.
        told
            Called with the number of workers and a word on what the rest waits for.

        Raises
        ------
        BatchError
            If a job is refused, or waits for what it can never get.
        WorkersError
            If all jobs ended without enough workers, or the time is over.
        """
        begun = time.monotonic()
        hopeless_since: float | None = None
        while self.workers() < wanted:
            self.check_refused()
            statuses = self.cluster.sync(self.queue.statuses)
            pending = [s for s in statuses.values() if s.state is JobState.PENDING]
            reasons = self._pending_reasons(pending)
            told(self.workers(), "; ".join(reasons))
            hopeless = [s for s in pending if self.why_pending(s.reason).hopeless]
            now = time.monotonic()
            if not hopeless:
                hopeless_since = None
            elif hopeless_since is None:
                hopeless_since = now
            elif now - hopeless_since > HOPELESS_AFTER_S:
                self.cancel_on_stop()
                sentence = self.why_pending(said := hopeless[0].reason).sentence
                said = "" if said in sentence else f" ({said})"
                raise BatchError(f"A node job can never start{said}: {sentence}.")
            waited_for = sum(s.state.in_queue for s in statuses.values())
            possible = waited_for * self.shape.workers_per_node
            possible += sum(
                len(self.workers_of(job))
                for job in self.jobs()
                if job.job_id in statuses and not statuses[job.job_id].state.in_queue
            )
            if statuses and possible < wanted:
                raise WorkersError(
                    f"{len(statuses) - waited_for} of {len(statuses)} node jobs ended before their "
                    f"workers were there; the last words of one: {self.last_words()} (more in "
                    f"{self.place.directory / 'logs'}); --min-workers starts with fewer."
                )
            timeout = self.settings.start_timeout
            if timeout is not None and now - begun > timeout:
                self.cancel_on_stop()
                waits = f": {'; '.join(reasons)}" if reasons else ""
                raise WorkersError(
                    f"After {timeout:g} s {self.workers()} of {wanted} workers are there{waits}; "
                    "wait longer with --start-timeout, or start with fewer (--min-workers)."
                )
            time.sleep(0.1)

    def logs_of(self, job: Any) -> list[Path]:
        """Give what a node job wrote, and after it what the batch system says of it."""
        logs = self.place.directory / "logs"
        own = node_log(logs, str(job.name))
        return [own, *batch_logs(logs, job.job_id)]

    def last_words(self) -> str:
        """Give what the last of the node jobs that ended said of it, and how it ended."""
        statuses = self.cluster.sync(self.queue.statuses)
        ended = [*self.lost.values()]
        ended += [
            job for job in self.jobs()
            if job.job_id in statuses and not statuses[job.job_id].state.in_queue
        ]  # fmt: skip
        if not ended:
            return "none"
        job = ended[-1]
        how = self.cluster.sync(self.how_it_ended, job.job_id)
        words = last_words(self.logs_of(job)) or "none"
        return f"{words} (job {job.job_id}{f', which {how}' if how else ''})"

    # -- the queue

    def losses(self) -> list[LostJob]:
        """Look for node jobs that are lost since the last call, and let them go."""
        found: list[LostJob] = self.cluster.sync(self.queue.losses)
        return found

    async def how_it_ended(self, job_id: str) -> str:
        """Say how a job that left the queue ended, as the end of "it …"; empty where not known."""
        if self.system is None:
            return ""
        return await asyncio.to_thread(self.system.how_it_ended, job_id)

    def expiring(self) -> list[Any]:
        """Give the node jobs whose workers will end for the walltime soon."""
        return self.queue.expiring()

    def add_job(self) -> None:
        """Submit one more node job.

        Raises
        ------
        BatchError
            If it is refused; the others are as they were.
        """
        self.queue.add_job()

    # -- the end

    def workers_of(self, job: Any) -> list[str]:
        """Give the addresses of a job's workers."""
        return [
            address
            for address, state in self.cluster.scheduler.workers.items()
            if is_worker_of(str(job.name), str(state.name))
        ]

    async def cancel(self, job: Any) -> str:
        """Cancel a job at once, if the queue shows it as ours; give what went wrong, if it did.

        Raises
        ------
        BatchError
            If the batch scheduler does not answer.
        """
        system = self.system
        assert system is not None
        cancelled = await asyncio.to_thread(system.cancel_own, [job.job_id], self.place.name)
        return cancelled.failed.get(job.job_id, "")

    def abandon_tasks(self) -> None:
        """Have `stop` not wait for what the workers still execute."""
        self.ending.tasks_abandoned = True

    def cancel_on_stop(self) -> None:
        """Have `stop` cancel the jobs rather than wait for them, also while it is waiting."""
        self.ending.at_once = True

    def stop(self, told: Callable[[int, int], None] = lambda ended, jobs: None) -> StopReport:
        """End the run's jobs, then the scheduler.

        Parameters
        ----------
        told
            Called with the number of jobs that have ended, and that of all.
        """
        if self.cluster is None:
            delete_environment(self.place.directory)
        if self.cluster is None or self._stopping:
            return self.ending.report
        self._stopping = True
        self.cluster.sync(self.ending.end_all, told)
        self.cluster.worker_spec.clear()
        self.cluster.workers.clear()
        if self.cluster.scheduler.status in (Status.closing, Status.closed):
            # The script shut it down: Dask would try for 30 s to reach it.
            self.cluster.shutdown_scheduler = False
        self.cluster.close()
        delete_environment(self.place.directory)
        return self.ending.report
