"""Launch: what still runs when the script has ended is given some time, and then let go."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from dasf_hpc.profile.running import ABANDON, RUNNING
from dasf_hpc.steps import Step, Told

if TYPE_CHECKING:
    from dasf_hpc.launch.launcher import Launcher

#: How long executions may go on after the script.
PATIENCE_S = 10.0
#: How long the scheduler may take to see that the script's clients are gone.
GONE_S = 1.0
#: A worker that does not answer within this runs something that holds its GIL.
ANSWER_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


def let_end(launcher: Launcher, told: Told) -> str | None:
    """Wait, up to 10 s, for executions that the script left running; then have them noted.

    The workers are then to be ended without waiting for them, as they are where a signal ends this.

    Returns
    -------
    str or None
        What was abandoned, a sentence; None where nothing was.
    """
    cluster, scheduler = launcher.cluster, launcher.cluster.scheduler
    deadline = time.monotonic() + PATIENCE_S
    try:
        busy = cluster.sync(_running, scheduler)
        if not busy:
            return None
        told(Step("Waiting for tasks that the script left running"))
        cluster.sync(_wait, scheduler, busy, deadline)
        count = cluster.sync(_abandon, scheduler)
    except KeyboardInterrupt:
        launcher.abandon_tasks()
        raise
    if not count:
        return None
    launcher.abandon_tasks()
    what = "1 task was" if count == 1 else f"{count} tasks were"
    still = "it still ran" if count == 1 else "they still ran"
    return f"{what} abandoned by the script: {still} {PATIENCE_S:g} s after it had ended"


async def _running(scheduler: Any) -> list[str]:
    """Give the workers that run anything once the script's clients are gone."""
    gone = time.monotonic() + GONE_S
    while any(name != "fire-and-forget" for name in scheduler.clients) and time.monotonic() < gone:
        await asyncio.sleep(0.01)
    return await _busy(scheduler, list(scheduler.workers))


async def _wait(scheduler: Any, busy: list[str], deadline: float) -> None:
    pause = _FIRST_PAUSE_S
    while busy and time.monotonic() < deadline:
        await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
        busy = await _busy(scheduler, [address for address in busy if address in scheduler.workers])


async def _busy(scheduler: Any, workers: list[str]) -> list[str]:
    """Give those of some workers that run anything, or do not answer."""
    counts = await asyncio.gather(*(_ask(scheduler, address, RUNNING) for address in workers))
    return [address for address, count in zip(workers, counts, strict=True) if count != 0]


async def _abandon(scheduler: Any) -> int:
    workers = list(scheduler.workers)
    counts = await asyncio.gather(*(_ask(scheduler, address, ABANDON) for address in workers))
    return sum(count for count in counts if count > 0)


async def _ask(scheduler: Any, address: str, operation: str) -> int:
    """Ask a worker; -1 where it does not answer in time, 0 where it is gone or does not know."""
    try:
        answer = await asyncio.wait_for(getattr(scheduler.rpc(address), operation)(), ANSWER_S)
    except TimeoutError:
        return -1
    except Exception:
        return 0
    return answer if isinstance(answer, int) else 0
