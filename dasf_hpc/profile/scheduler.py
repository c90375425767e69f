"""Recording: the scheduler's side, the reference clock and which workers came and went."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from dasf_hpc.profile.clock import PROBE_HANDLER, read_anchor
from dasf_hpc.profile.identity import journal_path, process_document
from dasf_hpc.profile.journal import Journal, Stream

if TYPE_CHECKING:
    from distributed import Scheduler

ANCHOR_INTERVAL_S = 5.0


async def answer_probe(comm: Any = None) -> tuple[int, int]:
    """Answer a worker's clock probe with this process's CLOCK_MONOTONIC, at receipt and at reply.

    Both are one reading: between them there is only the building of a tuple.
    """
    now = time.monotonic_ns()
    return now, now


class SchedulerRecorder(SchedulerPlugin):
    """Answers clock probes and records the workers of a scheduler in this process.

    Parameters
    ----------
    directory
        Folder of the run's journals.
    """

    def __init__(self, directory: Path) -> None:
        self.name = "dasf-hpc-scheduler"
        self._journal = Journal(journal_path(directory, "scheduler"), process_document("scheduler"))
        self._anchor = self._journal.recorder(Stream.ANCHORS)
        self._task: asyncio.Task[None] | None = None
        #: Address of every worker that ever joined, with its name.
        self.joined: dict[str, str] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Start to answer probes and record anchors."""
        scheduler.handlers[PROBE_HANDLER] = answer_probe
        self._task = asyncio.ensure_future(self._keep_anchors())

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
        """Close the journal."""
        if self._task is not None:
            self._task.cancel()
        if not self._journal.closed:
            self._anchor(*read_anchor())
            self._journal.close()
