"""Launch: a look at how a run is, from what its scheduler counts itself.

Done once a second in the scheduler's own thread, so never task by task: Dask counts them by
function as they change.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from distributed.core import Status

from dasf_hpc.steps import FunctionNow, Now
from dasf_hpc.trace.names import short_workers

#: Functions looked at: a script that gives each task a name of its own has as many as tasks.
LOOKED_AT = 10_000

#: Functions told of.
TOLD = 12

#: States of a task that is still to do.
_TO_DO = ("waiting", "queued", "no-worker", "processing")


def look(scheduler: Any, elapsed: float, expected: int) -> Now:
    """Look at a scheduler, in its thread.

    Parameters
    ----------
    scheduler
        The scheduler.
    elapsed
        Seconds since the script was started.
    expected
        Workers that were asked for.
    """
    done = to_do = erred = 0
    functions = []
    for prefix in islice(scheduler.task_prefixes.values(), LOOKED_AT):
        ended, failed = prefix.state_counts["memory"], prefix.state_counts["erred"]
        left = sum(prefix.states[state] for state in _TO_DO)
        done, to_do, erred = done + ended, to_do + left, erred + failed
        if left:
            functions.append((left, FunctionNow(str(prefix.name), ended, ended + failed + left)))
    functions.sort(key=lambda one: -one[0])
    workers = list(scheduler.workers.values())
    used = [int(worker.metrics.get("memory") or 0) for worker in workers]
    limits = [int(worker.memory_limit or 0) for worker in workers]
    shares = [u / limit if limit else 0.0 for u, limit in zip(used, limits, strict=True)]
    worst = max(range(len(workers)), key=shares.__getitem__, default=-1)
    fullest = ""
    if worst >= 0 and shares[worst]:
        fullest = short_workers([worker.name for worker in workers])[worst]
    return Now(
        elapsed=elapsed,
        done=done,
        known=done + erred + to_do,
        executing=sum(len(worker.executing) for worker in workers),
        erred=erred,
        functions=tuple(function for _, function in functions[:TOLD]),
        workers=len(workers),
        expected=expected,
        paused=sum(worker.status is Status.paused for worker in workers),
        memory=sum(used),
        memory_limit=sum(limits) if all(limits) else 0,
        fullest=fullest,
        fullest_share=100 * shares[worst] if fullest else 0.0,
    )
