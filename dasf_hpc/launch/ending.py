"""Launch: how a run's node jobs are ended without losing a report, and nothing stays queued."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.queue import SILENT
from dasf_hpc.systems.states import JobState, JobStatus

if TYPE_CHECKING:
    from dasf_hpc.launch.launcher import Launcher

logger = logging.getLogger(__name__)

#: Killing what was told to end takes a batch system so long at most, by default: SLURM's KillWait
#: is 30 s (slurm.conf(5)), PBS's kill_delay 10 s; what was cancelled is gone by then.
CANCEL_WAIT_S = 45.0
#: The same where the user or the system wants us to end at once, or a node does not answer.
HURRY_WAIT_S = 3.0


@dataclass
class StopReport:
    """How the node jobs ended.

    Attributes
    ----------
    by_themselves, cancelled
        Batch job ids.
    left
        Ids of jobs that are still in the queue, and why.
    seconds
        How long it took.
    """

    by_themselves: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def job_ids(self) -> list[str]:
        """All of them."""
        return [*self.by_themselves, *self.cancelled, *self.left]


class Ending:
    """The end of a launcher's jobs.

    Parameters
    ----------
    launcher
        Whose jobs.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.report = StopReport()
        self.at_once = False
        self.tasks_abandoned = False
        self._cancelling: set[asyncio.Task[None]] = set()

    async def end_all(self, told: Callable[[int, int], None]) -> None:
        """End all jobs, and tell how many of how many have ended whenever one has."""
        begun = time.monotonic()
        jobs = self._launcher.jobs()
        told(0, len(jobs))
        for number, ending in enumerate(asyncio.as_completed([self._close(j) for j in jobs]), 1):
            await ending
            told(number, len(jobs))
        if self._cancelling:
            await asyncio.wait(self._cancelling, timeout=HURRY_WAIT_S)
        self.report.seconds = time.monotonic() - begun

    async def _close(self, job: Any) -> None:
        """End one job; whatever goes wrong on the way, cancel it."""
        try:
            await job.close()
        except Exception:
            logger.exception("the node job %s could not be ended gracefully", job.job_id)
            if job.job_id is not None:
                await self._cancel(job, HURRY_WAIT_S)

    async def end_job(self, job: Any) -> None:
        """Let one job end by itself, bounded by ``stop_timeout``; cancel what is left."""
        launcher = self._launcher
        scheduler = launcher.cluster.scheduler
        deadline = time.monotonic() + launcher.settings.stop_timeout
        asked: set[str] = set()
        while True:
            for address in set(launcher.workers_of(job)) - asked:
                asked.add(address)
                if self.tasks_abandoned:  # or the worker would wait 30 s for them
                    close = {"op": "close", "reason": "tasks abandoned", "executor_wait": False}
                    scheduler.worker_send(address, close)
                else:
                    scheduler.close_worker(address)
            status = await self._status(job)
            if not status.state.in_queue:
                self.report.by_themselves.append(job.job_id)
                return
            unstarted = status.state is JobState.PENDING and not asked
            if unstarted or self.at_once or job.silent or time.monotonic() > deadline:
                hurry = self.at_once or job.silent
                await self._cancel(job, HURRY_WAIT_S if hurry else CANCEL_WAIT_S)
                return
            await asyncio.sleep(0.1)

    async def _status(self, job: Any) -> JobStatus:
        statuses = await self._launcher.queue.statuses()
        return statuses.get(job.job_id, JobStatus(JobState.GONE))

    async def _cancel(self, job: Any, wait_s: float) -> None:
        """Cancel a job, and give it the time to be killed, which is when its report is written."""
        said = await self.cancel_job(job)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if not (await self._status(job)).state.in_queue:
                self.report.cancelled.append(job.job_id)
                return
            await asyncio.sleep(0.2)
        if said or job.silent:
            why = "; ".join(part for part in (SILENT if job.silent else "", said) if part)
            self.report.left[job.job_id] = why
        else:  # it was told to end, and the batch system takes its time
            self.report.cancelled.append(job.job_id)

    def cancel_lost(self, job: Any) -> None:
        """Have a job cancelled that is lost and queued still, which may take long or do nothing."""

        async def cancel() -> None:
            if said := await self.cancel_job(job):
                self.report.left[job.job_id] = f"{SILENT}; {said}"

        task = asyncio.create_task(cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def cancel_job(self, job: Any) -> str:
        """Cancel a job at once, if the queue shows it as ours; give what went wrong, if it did."""
        launcher = self._launcher
        try:
            return await launcher.cancel(job)
        except BatchError as error:
            logger.warning("%s", error)
            return str(error)
