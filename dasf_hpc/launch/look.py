"""Launch: a look at how a run is, from what its scheduler counts itself.

Done once a second in the scheduler's own thread, so never task by task: Dask counts them by
function as they change.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from distributed.core import Status

from dasf_hpc.steps import FunctionNow, Now
from dasf_hpc.trace.names import short_workers

#: File of a run in which it tells how it is while its script runs, for who watches it.
NOW = "now.json"
#: What is older tells of another time: a head writes it every second or so.
OLD_S = 10.0

#: Functions looked at: a script that gives each task a name of its own has as many as tasks.
#: 2,000 take the scheduler's thread about 8 ms (measured).
LOOKED_AT = 2000

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
        at_least=len(scheduler.task_prefixes) > LOOKED_AT,
    )


def keep_now(directory: Path, now: Now) -> None:
    """Tell in a run's directory how it is; a run goes on where that cannot be written."""
    partial = directory / f".{NOW}.{os.getpid()}"
    with contextlib.suppress(OSError):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(now), file)
        partial.replace(directory / NOW)


def drop_now(directory: Path) -> None:
    """Take away what was told by `keep_now`."""
    with contextlib.suppress(OSError):
        (directory / NOW).unlink()


def read_now(directory: Path) -> Now | None:
    """Read how a run is; None where it does not tell, or has not for some time."""
    path = directory / NOW
    try:
        if abs(time.time() - path.stat().st_mtime) > OLD_S:
            return None
        content = json.loads(path.read_text())
        functions = tuple(FunctionNow(**function) for function in content.pop("functions"))
        return Now(functions=functions, **content)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ):  # torn, or of another version
        return None
