"""Analysis, one cause of lost time: what it is called, what it saves, where it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dasf_hpc.analysis.savings import Change, Savings

#: What saves a smaller share of the time from first to last task is no cause to tell of.
LEAST = 0.005
#: Stretches of time that are nearer than this share of the run are one.
NEAR = 0.01

#: Causes, in a few words; those of workers have their own.
WORDS = {
    "nothing_submitted": "the script submitted nothing",
    "deserialising": "deserialising tasks",
    "disk": "spilling to disk",
    "paused": "workers paused with full memory",
    "transferring": "waiting for data",
    "scheduling": "waiting for the scheduler",
    "small": "tasks too small",
    "uneven": "uneven work",
    "no_parallelism": "no parallelism",
    "stragglers": "single tasks that take long",
}


@dataclass(frozen=True)
class Cause:
    """One thing that time goes to.

    Attributes
    ----------
    kind
        One of `WORDS`, or ``slow``, ``faster``, ``shorter``.
    words
        What it is, in a few words: ``w0-0 on node2 is slow at filter_trace``.
    change
        The time that could be left out.
    saves
        What that saves of the time from first to last task, ns, at most.
    start, stop, process, task
        Where in the run most of it is, as of a `Finding`.
    figures
        What is to be told of it, by name.
    """

    kind: str
    words: str
    change: Change
    saves: int
    start: int = -1
    stop: int = -1
    process: int = -1
    task: int = -1
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """What a `Finding` of the cause takes from it."""
        return {
            "saves": self.saves,
            "start": self.start,
            "stop": self.stop,
            "process": self.process,
            "task": self.task,
            "cause": self.words,
        }


def placed(run: Savings, cause: Cause) -> Cause:
    """Say where most of a cause is: the stretch of time, the worker, the task."""
    graph, change = run.graph, cause.change
    weight = change.of(len(graph))
    some = np.flatnonzero(weight > 0)
    if not len(some):
        return cause
    begin = graph.start[some] - (0 if change.delay is None else change.delay[some])
    end = graph.stop[some] if change.duration is not None else graph.start[some]
    begin = np.minimum(begin, end)
    order = np.argsort(begin, kind="stable")
    some, begin, end, weight = some[order], begin[order], end[order], weight[some[order]]
    latest = np.maximum.accumulate(end)
    near = int(NEAR * run.recorded)
    firsts = np.flatnonzero(np.append(True, begin[1:] > latest[:-1] + near))
    sums = np.add.reduceat(weight, firsts)
    worst = int(np.argmax(sums))
    first = int(firsts[worst])
    last = int(firsts[worst + 1]) if worst + 1 < len(firsts) else len(some)
    inside = slice(first, last)
    of = np.bincount(graph.process[some], weights=weight)
    most = int(np.argmax(of))
    one = of[most] >= 0.5 * of.sum() and most in run.known
    return replace(
        cause,
        start=int(begin[first]),
        stop=int(latest[last - 1]),
        process=most if one else -1,
        task=int(graph.rows[some[inside][int(np.argmax(weight[inside]))]]),
    )


def saved(run: Savings, change: Change) -> int:
    """Say what a change saves; of what is known to be too little to tell of, 0."""
    if not change.total or (run.alone and run.bound(change) < LEAST * run.recorded):
        return 0
    return run.saved(change)
