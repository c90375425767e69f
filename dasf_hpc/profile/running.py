"""Recording: a worker says what it runs when the script has ended, and notes what is abandoned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dasf_hpc.profile.actors import calls_of
from dasf_hpc.profile.journal import Journal

if TYPE_CHECKING:
    from distributed import Worker

#: Operations of a worker: how many executions it runs; and the same, noting them as abandoned.
RUNNING = "dasf_hpc_running"
ABANDON = "dasf_hpc_abandon"


def executions_of(worker: Worker) -> int:
    """Count what a worker runs: tasks, also those that nobody wants now, and calls of actors."""
    return len(worker.active_keys) + calls_of(worker)


def answer_running(worker: Worker, journal: Journal) -> None:
    """Have a worker answer how many executions it runs, and note those that are abandoned."""

    async def running(comm: Any = None) -> int:
        return executions_of(worker)

    async def abandon(comm: Any = None) -> int:
        count = executions_of(worker)
        if count:
            journal.meta({"kind": "abandoned", "time": time.monotonic_ns(), "count": count})
        return count

    handlers: dict[str, Callable[..., Any]] = {RUNNING: running, ABANDON: abandon}
    worker.handlers.update(handlers)
