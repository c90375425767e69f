"""Analysis: how efficiently were workers and GPUs used, by the factors of the POP methodology?

The factors are those of the POP Centre of Excellence ("POP Standard Metrics for Performance
Analysis of Hybrid Parallel Applications"), with the task threads of Dask's workers for MPI's
processes and executing tasks for useful computation. With u the time that a task thread executed
tasks, n their number, and T from the first task's start to the last one's end:

- parallel efficiency = sum(u) / (n T) = load balance x communication efficiency
- load balance = mean(u) / max(u)
- communication efficiency = max(u) / T = serialisation x transfer
- serialisation = max(u) / T0, where T0 is what T would be on an ideal network
- transfer = T0 / T

T0 is found by playing the recorded schedule again (`dasf_hpc.analysis.graph.Schedule`) without any
delay between what a task follows and its start: every task stays in its task thread and in its
order, and follows the tasks whose results it needs, and the barriers of the script.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan
from weakref import WeakKeyDictionary

import numpy as np

from dasf_hpc.analysis.causes import split_delays
from dasf_hpc.analysis.executions import Ints
from dasf_hpc.analysis.graph import Schedule, chain
from dasf_hpc.analysis.savings import PLAYED, savings
from dasf_hpc.analysis.task_threads import TaskThreads, task_threads
from dasf_hpc.trace.open import Trace

#: Parts of delays (`dasf_hpc.analysis.causes.DELAYS`) that data is the reason for.
DATA = ("transferring", "deserialising", "disk", "paused")


@dataclass(frozen=True)
class Factors:
    """A run's efficiencies; each from 0 to 1, NaN where it is not known.

    Attributes
    ----------
    duration
        T, from the first task's start to the last one's end, ns.
    threads
        Task threads (module ``task_threads``).
    useful
        Time in which task threads executed tasks, in sum, ns.
    parallel_efficiency, load_balance, communication_efficiency, serialisation, transfer
        As the module says.
    data, scheduling, submission
        What `transfer` is the product of: T1 / T, T2 / T1, T0 / T2, where T1 is the run played
        without delays by data (transfers, deserialising, spilling, paused workers), T2 without
        those by Dask, too, from when a task could run to its start, and T0 without those in which
        the script had not submitted it, too.
    exact
        Whether the run was played again. Of more executions than `PLAYED`, `transfer` and its
        factors rest on the critical path: `transfer` is no less than what is told,
        `serialisation` no more.
    """

    duration: int
    threads: int
    useful: int
    parallel_efficiency: float
    load_balance: float
    communication_efficiency: float
    serialisation: float
    transfer: float
    data: float = nan
    scheduling: float = nan
    submission: float = nan
    exact: bool = True


@dataclass(frozen=True)
class _Hosts:
    """Factors of a run, and the task threads that they are of."""

    factors: Factors
    threads: TaskThreads


_MADE: WeakKeyDictionary[Trace, _Hosts] = WeakKeyDictionary()


def factors(trace: Trace) -> Factors:
    """Give a run's efficiencies.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    return _hosts(trace).factors


def _hosts(trace: Trace) -> _Hosts:
    if trace not in _MADE:
        _MADE[trace] = _look(trace)
    return _MADE[trace]


def _look(trace: Trace) -> _Hosts:
    run = savings(trace)
    graph = run.graph
    threads = task_threads(trace, graph, run.runs.thread[graph.rows], run.found)
    count, useful = len(threads), int(threads.useful.sum())
    duration = run.recorded
    if not useful or not count:
        efficiency = 0.0 if duration and count else nan
        return _Hosts(Factors(duration, count, 0, efficiency, nan, nan, nan, nan), threads)
    most = int(threads.useful.max())
    lengths = _lengths(trace, threads)
    # clocks that disagree may make a played run shorter than what one thread has to do
    lengths = [max(length, most) for length in lengths]
    without_data, without_dask, ideal = lengths
    found = Factors(
        duration=duration,
        threads=count,
        useful=useful,
        parallel_efficiency=useful / (count * duration),
        load_balance=useful / (count * most),
        communication_efficiency=most / duration,
        serialisation=most / ideal,
        transfer=ideal / duration,
        data=without_data / duration,
        scheduling=without_dask / without_data,
        submission=ideal / without_dask,
        exact=len(graph) <= PLAYED,
    )
    return _Hosts(found, threads)


def _lengths(trace: Trace, threads: TaskThreads) -> list[int]:
    """Give T1, T2 and T0: the run's length without more and more of the delays, ns."""
    run = savings(trace)
    graph = replace(run.graph, process=threads.of, same_thread=_same_thread(threads))
    schedule = Schedule(graph, {})
    delays = np.maximum(schedule.delays, 0)
    parts = split_delays(trace, run, schedule.ready)
    data = np.minimum(delays, sum((parts[name] for name in DATA), np.zeros(len(graph), np.int64)))
    dask = np.minimum(delays - data, parts["scheduling"])
    played = len(graph) <= PLAYED
    path = None if played else np.array([one for one, _ in chain(graph)], np.int64)
    lengths = []
    length = run.recorded
    for removed in (data, data + dask, delays):
        if path is None:
            work = graph.stop - graph.start + schedule.delays - removed
            now = schedule.length(work)
        else:
            now = run.recorded - int(removed[path].sum())
        length = min(length, now)
        lengths.append(length)
    return lengths


def _same_thread(threads: TaskThreads) -> Ints:
    """Give, for each execution, the one before in its task thread; -1: none."""
    order = np.argsort(threads.of, kind="stable")
    same = threads.of[order][1:] == threads.of[order][:-1]
    before = np.full(len(order), -1, np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def computation_scalability(reference: Factors, other: Factors) -> float:
    """Give the computation scalability of a run: the useful time of a reference over its own.

    That is of the same work (strong scaling). Where the work grows with the threads (weak scaling),
    multiply by the work of the other run over that of the reference. Above 1 where the other run
    needed less time to compute the same. NaN where there is no useful time.
    """
    return reference.useful / other.useful if other.useful else nan
