"""Launch: tasks for which there is no worker, as they ask for resources or places that none has.

Dask lets them wait for ever without a word.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import Any

#: Tasks that a worker is only just missing, as one starts or restarts, are not worth a word.
TOLD_AFTER_S = 10.0
#: Looked at in the scheduler's own thread, every second: some tell as much as a million.
LOOKED_AT = 1000
#: Workers named.
NAMED = 8


class Unrunnable:
    """Follows what tasks of a scheduler wait for."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: frozenset[str] = frozenset()

    def look(self, scheduler: Any) -> str | None:
        """Say what tasks have been waiting for, in the scheduler's thread.

        Returns
        -------
        str or None
            A sentence without its full stop, empty where none waits any more; None where that is as
            it was.
        """
        waiting: dict[str, list[Any]] = {}
        if scheduler.workers:
            for task in islice(scheduler.unrunnable, LOOKED_AT):
                if not task.loose_restrictions and (need := needed(task)):
                    waiting.setdefault(need, []).append(task)
        now = time.monotonic()
        self._since = {need: self._since.get(need, now) for need in waiting}
        long = frozenset(n for n, since in self._since.items() if now - since >= TOLD_AFTER_S)
        if long == self._told:
            return None
        self._told = long
        if not long:
            return ""
        told, resources, places = [], False, False
        for need in sorted(long):
            tasks = waiting[need]
            count = f"{len(tasks)} or more" if len(tasks) == LOOKED_AT else f"{len(tasks)}"
            prefixes = ", ".join(sorted({str(task.prefix.name) for task in tasks})[:3])
            waits = "task waits" if len(tasks) == 1 else "tasks wait"
            told.append(f"{count} {waits} ({prefixes}) for {need}")
            resources |= bool(tasks[0].resource_restrictions)
            places |= bool(tasks[0].worker_restrictions or tasks[0].host_restrictions)
        there = [resources_there(scheduler)] if resources else []
        there += [places_there(scheduler)] if places else []
        return f"{'; '.join(told)}; there is none: {'; '.join(there)}"


def needed(task: Any) -> str:
    """Name the worker that a task asks for; empty where any will do."""
    resources = ", ".join(
        f"{name}={amount:g}" for name, amount in sorted((task.resource_restrictions or {}).items())
    )
    places = sorted({*(task.worker_restrictions or ()), *(task.host_restrictions or ())})
    if not resources and not places:
        return ""
    one = " or ".join(places[:NAMED]) + (" or another" if len(places) > NAMED else "")
    return "a worker" + (f" with {resources}" if resources else "") + (f" at {one}" if one else "")


def resources_there(scheduler: Any) -> str:
    """Say which resources workers have."""
    has = Counter(
        ", ".join(f"{name}={amount:g}" for name, amount in sorted(worker.resources.items()))
        for worker in scheduler.workers.values()
    )
    kinds = [
        f"{count} {'worker has' if count == 1 else 'workers have'} {resources or 'no resources'}"
        for resources, count in sorted(has.items())
    ]
    return f"{', '.join(kinds)} (--resources gives them some)"


def places_there(scheduler: Any) -> str:
    """Say where workers are."""
    workers = list(scheduler.workers.values())
    named = sorted(f"{worker.name} ({worker.address})" for worker in workers)[:NAMED]
    more = f" and {len(workers) - NAMED} more" if len(workers) > NAMED else ""
    return f"the workers are {', '.join(named)}{more}"
