"""Launch: what the batch scheduler says of a run's node jobs, and which of them are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.deadline import margin_seconds
from dasf_hpc.launch.node_job import is_worker_of
from dasf_hpc.launch.walltime import TOPIC
from dasf_hpc.settings import walltime_seconds
from dasf_hpc.systems.states import JobState, JobStatus

if TYPE_CHECKING:
    from dasf_hpc.launch.launcher import Launcher

logger = logging.getLogger(__name__)

#: Between two questions to the batch scheduler: site operators ask for no more than this.
POLL_S = 1.0
#: How long the batch scheduler may not know a job yet that it has just accepted.
UNKNOWN_GRACE_S = 5.0
#: What is said of a lost job whose node is silent.
SILENT = "its node does not answer any more"


@dataclass(frozen=True)
class LostJob:
    """A node job that left the queue before the run was over, or whose node is silent.

    Attributes
    ----------
    job_id, name
        The batch job, and its name in the run.
    walltime
        Whether its workers ended because its walltime was near.
    replaced
        Whether another one was submitted in its place before it went.
    time
        When it was noticed, seconds of the epoch.
    how
        How it ended, as the end of "it …"; empty where that is not known.
    """

    job_id: str
    name: str
    walltime: bool
    replaced: bool
    time: float
    how: str = ""


class Queue:
    """The queue as far as a launcher's jobs are concerned.

    Parameters
    ----------
    launcher
        Whose jobs.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._statuses: dict[str, JobStatus] = {}
        self._asked_at = 0.0
        self._asking: asyncio.Lock | None = None

    async def statuses(self) -> dict[str, JobStatus]:
        """Give the state of every submitted job, asked for at most once a second."""
        if self._asking is None:
            self._asking = asyncio.Lock()
        async with self._asking:
            jobs = [job for job in self._launcher.jobs() if job.job_id is not None]
            ids = [job.job_id for job in jobs]
            if ids and time.monotonic() - self._asked_at >= POLL_S:
                try:
                    answer = await self._launcher.ask(ids)
                except BatchError as error:
                    # A busy controller answers again; what it said last still holds meanwhile.
                    logger.warning("%s", error)
                else:
                    for job in jobs:
                        await self._take(job, answer)
                self._asked_at = time.monotonic()
            return {i: self._statuses.get(i, JobStatus(JobState.PENDING, "None")) for i in ids}

    async def _take(self, job: Any, answer: dict[str, JobStatus]) -> None:
        """Take in what was said of one job."""
        now = time.monotonic()
        status = answer.get(job.job_id)
        if status is not None and status.name not in ("", job.batch_name):
            await self._find_own(job)
            return
        if status is None:
            status = JobStatus(JobState.GONE)
            if now - job.submitted_at < UNKNOWN_GRACE_S:
                status = JobStatus(JobState.PENDING, "None")
        self._statuses[job.job_id] = status
        if status.state is JobState.RUNNING:
            job.started_at = job.started_at or now
            quiet = job.sign.look(now)
            job.silent = quiet > self._launcher.settings.node_timeout and not self._heard_of(job)
        elif status.state is not JobState.ENDING:
            job.silent = False
            job.sign.changed_at = None  # a suspended one leaves no signs, nor one that waits again

    def _heard_of(self, job: Any) -> bool:
        """Say if a worker of a job has spoken to the scheduler lately."""
        workers = self._launcher.cluster.scheduler.workers
        lately = self._launcher.settings.node_timeout
        return any(
            time.time() - workers[address].last_seen < lately
            for address in self._launcher.workers_of(job)
        )

    async def _find_own(self, job: Any) -> None:
        """Look for a job whose id turned out to be that of another one."""
        system = self._launcher.system
        assert system is not None
        try:
            job.job_id = await asyncio.to_thread(system.own_id, job.job_id, job.batch_name)
        except BatchError as error:
            job.job_id = None
            self._launcher.refusals.append(error)

    async def losses(self) -> list[LostJob]:
        """Look for node jobs that are lost since the last call, and let them go.

        One whose node is silent is cancelled, which may do nothing.
        """
        launcher = self._launcher
        statuses = await self.statuses()
        ended = [
            str(event.get("name")) for _, event in launcher.cluster.scheduler.get_events(TOPIC)
        ]
        fresh = []
        for job in launcher.jobs():
            status = statuses.get(job.job_id)
            if status is None or (status.state.in_queue and not job.silent):
                continue
            name = str(job.name)
            walltime = not job.silent and any(is_worker_of(name, worker) for worker in ended)
            if job.silent:
                how = SILENT
                launcher.ending.cancel_lost(job)
            else:
                how = await launcher.how_it_ended(job.job_id)
            fresh.append(LostJob(job.job_id, name, walltime, job.replaced, time.time(), how))
            launcher.lost[job.job_id] = job
            self.let_go(job)
        return fresh

    def let_go(self, job: Any) -> None:
        """Have the cluster know a job no more."""
        cluster = self._launcher.cluster
        job.status = Status.closed  # SpecCluster looks at what it made when it closes
        cluster.worker_spec.pop(job.name, None)
        del cluster.workers[job.name]

    def expiring(self) -> list[Any]:
        """Give the node jobs whose workers will end for the walltime soon.

        Soon is early enough for another job to start and take over what the workers hold, if the
        queue is short: three margins, at most half of the time there is.
        """
        launcher = self._launcher
        if launcher.local:
            return []
        walltime = walltime_seconds(launcher.settings.walltime)
        margin = margin_seconds(walltime, launcher.settings.walltime_margin)
        usable = walltime - margin
        lead = min(3 * margin, usable / 2)
        now = time.monotonic()
        return [
            job
            for job in launcher.jobs()
            if job.started_at is not None and now - job.started_at > usable - lead
        ]

    def add_job(self) -> None:
        """Submit one more node job.

        Raises
        ------
        BatchError
            If it is refused; the others are as they were.
        """
        launcher, cluster = self._launcher, self._launcher.cluster
        wanted = len(cluster.worker_spec) + 1
        cluster.scale(jobs=wanted)
        while len(launcher.jobs()) < wanted and not launcher.refusals:
            time.sleep(0.02)
        if not launcher.refusals:
            return

        async def forget() -> None:
            for job in launcher.jobs():
                if job.job_id is None:
                    self.let_go(job)

        while len(launcher.jobs()) < wanted:  # the cluster has it a moment after it was refused
            time.sleep(0.02)
        cluster.sync(forget)
        refusal = launcher.refusals[0]
        launcher.refusals.clear()
        raise refusal
