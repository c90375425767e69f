"""Launch: node jobs that are going when a run ends, before anything asked them to."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from dasf_hpc.launch.node_job import is_worker_of
from dasf_hpc.launch.queue import POLL_S, LostJob
from dasf_hpc.launch.walltime import TOPIC
from dasf_hpc.systems.states import JobState, JobStatus

if TYPE_CHECKING:
    from dasf_hpc.launch.launcher import Launcher

logger = logging.getLogger(__name__)


def going(launcher: Launcher) -> list[LostJob]:
    """Give the node jobs that are lost and that the run has not noticed yet.

    Some left the queue in its last second. Others have not left it: a job of PBS stays there while
    its output is brought to the head, which may take minutes, and two that are lost at once are
    seldom gone at once.
    """
    cluster = launcher.cluster
    if cluster is None or cluster.scheduler.status in (Status.closing, Status.closed):
        return []  # workers that the script's own shutdown ends are not lost
    try:
        lost: list[LostJob] = cluster.sync(_going, launcher)
    except Exception:  # the jobs must be ended whatever it is
        logger.exception("it is not known which node jobs were lost last")
        return []
    return lost


async def _going(launcher: Launcher) -> list[LostJob]:
    statuses = await launcher.queue.statuses()
    begun = [j for j in launcher.jobs() if _state(statuses, j) is not JobState.PENDING]
    if any(not launcher.workers_of(job) for job in begun):
        await asyncio.sleep(POLL_S)  # what the batch scheduler said last may be older than that
    lost = await launcher.queue.losses()
    statuses = await launcher.queue.statuses()
    ended = [str(event.get("name")) for _, event in launcher.cluster.scheduler.get_events(TOPIC)]
    for job in launcher.jobs():
        if _state(statuses, job) is JobState.ENDING:
            lost.append(_lost(job, ended))
    return lost


def _state(statuses: dict[str, JobStatus], job: Any) -> JobState:
    """Give a job's state; one that was never submitted waits."""
    status = statuses.get(job.job_id)
    return status.state if status is not None else JobState.PENDING


def _lost(job: Any, ended: list[str]) -> LostJob:
    name = str(job.name)
    walltime = any(is_worker_of(name, worker) for worker in ended)
    return LostJob(job.job_id, name, walltime, job.replaced, time.time())
