"""Analysis: what a run would have taken with some of its time left out.

The recorded schedule is played again (`dasf_hpc.analysis.graph.Schedule`) with some executions
shorter and some delays before them smaller. Tasks stay on their workers and keep their order, so
that what comes out is what leaving that time out does, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from dasf_hpc.analysis.executions import Executions, Ints, read_executions, workers
from dasf_hpc.analysis.graph import Graph, Schedule, chain, executed_graph
from dasf_hpc.analysis.task_threads import left_threads
from dasf_hpc.trace.open import Trace

#: Of more executions than this the run is not played again: what is left out of its critical path
#: is the bound (measured: 0.16 s of CPU time for each million executions and change).
PLAYED = 3_000_000


@dataclass(frozen=True)
class Change:
    """Time to be left out, ns, by execution in the order of the graph; None: nothing.

    Attributes
    ----------
    duration
        By how much executions get shorter.
    delay
        By how much the delays before them get smaller.
    """

    duration: Ints | None = None
    delay: Ints | None = None

    @property
    def total(self) -> int:
        """All that is left out, ns."""
        return sum(int(part.sum()) for part in (self.duration, self.delay) if part is not None)

    def of(self, count: int) -> Ints:
        """Give what is left out before the end of each of so many executions."""
        parts = [part for part in (self.duration, self.delay) if part is not None]
        result: Ints = sum(parts, np.zeros(count, np.int64))
        return result


class Savings:
    """A run's schedule, and what would be saved of it.

    Attributes
    ----------
    graph
        The executed graph; changes are in its order.
    found
        The workers, as `dasf_hpc.analysis.executions.workers` gives them.
    known
        Rows of ``processes``.
    left
        When each execution left its thread, ns, in the order of the graph: when it ended, or
        seceded.
    recorded
        From the start of the first task to the end of the last one, ns.
    """

    def __init__(self, trace: Trace) -> None:
        self.runs: Executions = read_executions(trace)
        self.found: pd.DataFrame = workers(trace, self.runs)
        self.known = range(len(trace.processes))
        self.graph: Graph = executed_graph(trace, self.runs)
        threads = {int(str(row)): int(count) for row, count in self.found["threads"].items()}
        self.left: Ints = left_threads(trace, self.runs, self.graph)
        self.schedule = Schedule(self.graph, threads, self.left)
        self.duration: Ints = self.graph.stop - self.graph.start
        self.recorded = (
            int(self.graph.stop.max() - self.graph.start.min()) if len(self.graph) else 0
        )
        self._path: Ints | None = None

    @property
    def alone(self) -> bool:
        """Whether each worker runs one task at a time, so that `bound` is never too small."""
        return self.schedule.threads == 1 and not self.schedule.seceded

    @property
    def played(self) -> bool:
        """Whether there are few enough executions for the run to be played again."""
        return len(self.graph) <= PLAYED

    @property
    def path(self) -> Ints:
        """Executions on the critical path, in no order of note."""
        if self._path is None:
            self._path = np.array([one for one, _ in chain(self.graph)], np.int64)
        return self._path

    def limited(self, change: Change) -> Change:
        """Cut a change to what there is: nothing gets shorter than 0, nor longer."""
        duration, delay = change.duration, change.delay
        if duration is not None:
            duration = np.clip(duration, 0, self.duration)
        if delay is not None:
            delay = np.clip(delay, 0, np.maximum(self.schedule.delays, 0))
        return replace(change, duration=duration, delay=delay)

    def together(self, changes: list[Change]) -> Change:
        """Make one change of several: of a duration the largest of them, of a delay the sum."""
        durations = [c.duration for c in changes if c.duration is not None]
        delays = [c.delay for c in changes if c.delay is not None]
        return self.limited(
            Change(
                np.maximum.reduce(durations) if durations else None,
                np.add.reduce(delays) if delays else None,
            )
        )

    def bound(self, change: Change) -> int:
        """Give what is left out on the critical path, ns.

        What is left of the path is still to be done one after the other, so that no more can be
        saved: where workers have one thread that is exact. With several a task may begin on another
        thread than the recorded one, and somewhat more can be saved.
        """
        whole = change.of(len(self.graph))
        return int(whole[self.path].sum()) if len(whole) else 0

    def length(self, change: Change) -> int:
        """Give the time from first to last task with a change, ns.

        Of more than `PLAYED` executions it is the recorded time without `bound`.
        """
        change = self.limited(change)
        if not self.played:
            return self.recorded - min(self.recorded, self.bound(change))
        if not change.total:
            return self.recorded
        work = self.duration + self.schedule.delays - change.of(len(self.graph))
        return min(self.recorded, self.schedule.length(work))

    def saved(self, change: Change, beside: Change | None = None) -> int:
        """Say what a change saves of the time from first to last task, ns, at most.

        Parameters
        ----------
        change
            The time to leave out.
        beside
            What is left out already: what the change saves in addition.
        """
        if beside is None:
            return self.recorded - self.length(change)
        return max(0, self.length(beside) - self.length(self.together([beside, change])))


_MADE: WeakKeyDictionary[Trace, Savings] = WeakKeyDictionary()


def savings(trace: Trace) -> Savings:
    """Give the schedule of a trace, made once for all that ask.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    if trace not in _MADE:
        _MADE[trace] = Savings(trace)
    return _MADE[trace]
