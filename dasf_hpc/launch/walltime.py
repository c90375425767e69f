"""Launch: ends a node's workers before the batch scheduler does, so that reports get written."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from dasf_hpc.launch.deadline import DEADLINE_VARIABLE, DEFAULT_MARGIN_S, MARGIN_VARIABLE

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger(__name__)

#: Topic of the event by which a worker tells the scheduler that it ends for the walltime.
TOPIC = "dasf-hpc-walltime"


class EndBeforeWalltime(WorkerPlugin):
    """Ends its worker at the node's deadline, moving results to workers that stay, if any do.

    Unlike ``--lifetime`` the deadline is the node job's, also for a worker that a nanny restarted.
    """

    name = "dasf-hpc-walltime"
    idempotent = True

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def setup(self, worker: Worker) -> None:
        """Set the timer; nothing happens where there is no deadline."""
        deadline = os.environ.get(DEADLINE_VARIABLE)
        if deadline:
            left = max(0.0, float(deadline) - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left, self._start_ending, worker)

    def teardown(self, worker: Worker) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_ending(self, worker: Worker) -> None:
        self._ending = asyncio.ensure_future(self._end(worker))

    async def _end(self, worker: Worker) -> None:
        margin = float(os.environ.get(MARGIN_VARIABLE) or DEFAULT_MARGIN_S)
        logger.warning("the node job's walltime is near: this worker ends")
        worker.log_event(TOPIC, {"worker": worker.address, "name": str(worker.name)})
        try:
            # Without another worker, or while a long task runs, this would last too long.
            await asyncio.wait_for(
                worker.scheduler.retire_workers(
                    workers=[worker.address],
                    close_workers=False,
                    remove=True,
                    stimulus_id=f"dasf-hpc-walltime-{time.time()}",
                ),
                margin / 4,
            )
        except Exception:
            logger.warning("results of this worker could not be moved", exc_info=True)
        await worker.close(timeout=margin / 4, reason="dasf-hpc-walltime")
