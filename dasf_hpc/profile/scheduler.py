"""Recording: the scheduler's side, the reference clock and which workers came and went."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.comm import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin

from dasf_hpc.profile.call_stacks import start_sampling
from dasf_hpc.profile.clock import PROBE_HANDLER, read_anchor
from dasf_hpc.profile.identity import journal_path, process_document
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.probe_responder import ResponderProcess

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

ANCHOR_INTERVAL_S = 5.0


async def answer_probe(comm: Any = None) -> tuple[int, int]:
    """Answer a worker's clock probe with this process's CLOCK_MONOTONIC, at receipt and at reply.

    Both are one reading: between them there is only the building of a tuple.
    """
    now = time.monotonic_ns()
    return now, now


#: How many recorders have a scheduler answer probes.
_answering: weakref.WeakKeyDictionary[Scheduler, int] = weakref.WeakKeyDictionary()


class SchedulerRecorder(SchedulerPlugin):
    """Answers clock probes and records the workers of a scheduler in this process.

    Parameters
    ----------
    directory
        Folder of the run's journals.
    clock_port
        Where the clock responder listens; 0 for any free port.
    stacks
        Whether to sample what the scheduler's event loop calls, see `WorkerTaskPlugin`.
    """

    def __init__(self, directory: Path, clock_port: int = 0, stacks: str = "dask") -> None:
        self._stacks = stacks
        self.name = "dasf-hpc-scheduler"
        self._clock_port = clock_port
        self._directory = directory
        self._responder: ResponderProcess | None = None
        self._journal = Journal(journal_path(directory, "scheduler"), process_document("scheduler"))
        self._anchor = self._journal.recorder(Stream.ANCHORS)
        self._task: asyncio.Task[None] | None = None
        self._scheduler: Scheduler | None = None
        self._end_sampling: Callable[[], None] | None = None
        #: Address of every worker that ever joined, with its name.
        self.joined: dict[str, str] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Start to answer probes and record anchors."""
        self._scheduler = scheduler
        _answering[scheduler] = _answering.get(scheduler, 0) + 1
        scheduler.handlers[PROBE_HANDLER] = answer_probe
        try:
            host = get_address_host(scheduler.address)
            self._responder = ResponderProcess(self._directory, host, self._clock_port)
        except (OSError, ValueError) as error:  # workers' probes over Dask's connections must do
            where = f" at port {self._clock_port}" if self._clock_port else ""
            logger.warning("dasf-hpc: no clock responder%s: %s", where, error)
        self._task = asyncio.ensure_future(self._keep_anchors())
        self._end_sampling = start_sampling(self._journal, self._stacks)

    async def _keep_anchors(self) -> None:
        while True:
            self._anchor(*read_anchor())
            await asyncio.sleep(ANCHOR_INTERVAL_S)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Record a worker that joined."""
        state = scheduler.workers[worker]
        self.joined[worker] = str(state.name)
        self._journal.meta(
            {
                "kind": "worker-added",
                "time": time.monotonic_ns(),
                "address": worker,
                "name": str(state.name),
                "hostname": state.host,
                "pid": state.pid,
            }
        )

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Record a worker that left."""
        self._journal.meta(
            {
                "kind": "worker-removed",
                "time": time.monotonic_ns(),
                "address": worker,
                "name": self.joined.get(worker),
            }
        )

    def end(self) -> None:
        """End the clock responder and close the journal."""
        if self._task is not None:
            self._task.cancel()
        if self._end_sampling is not None:
            self._end_sampling()
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            _answering[scheduler] -= 1
            if not _answering[scheduler]:
                scheduler.handlers.pop(PROBE_HANDLER, None)
        if self._responder is not None:
            self._responder.end()
        if not self._journal.closed:
            self._anchor(*read_anchor())
            self._journal.close()
