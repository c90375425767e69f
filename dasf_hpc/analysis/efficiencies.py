"""Analysis: how efficiently were workers and GPUs used, by the factors of the POP methodology?

The factors of hosts are those of the POP Centre of Excellence ("POP Standard Metrics for
Performance Analysis of Hybrid Parallel Applications", and "List of Metrics" of its co-design site),
with task threads of Dask's workers (module ``task_threads``) for processes, and executing tasks for
useful computation. With u the time that a task thread executed tasks, n the number of task threads,
w a worker, and T from the first task's start to the last one's end:

- parallel efficiency = sum(u) / (n T) = load balance x communication efficiency
- load balance = mean(u) / max(u), the product of
    - that between workers = mean(u) / max over w(mean over w's threads(u))
    - that within workers = max over w(mean over w's threads(u)) / max(u)
- communication efficiency = max(u) / T = serialisation x transfer
- serialisation = max(u) / T0, where T0 is T on an ideal network
- transfer = T0 / T, the product of
    - data = T1 / T, where T1 is T without delays by data
    - scheduling = T2 / T1, where T2 is T without delays by Dask, too
    - submission = T0 / T2, where T0 is T without those by the script, too

In Dask what stands between two tasks of a thread is not a call of MPI, but what Dask and the script
do: module ``ideal`` plays the recorded schedule without it. POP's serialisation is there what tasks
waited for each other, as for the last one of a barrier; its transfer what they waited for data, for
Dask, or for the script. Work that was executed in vain is useful here: analysis ``failures`` tells
of it. Waiting within a task is useful, too, but for a task that seceded.

Where GPUs' activity and CUDA's calls were recorded, the metrics of TALP (module ``devices``) come
beside: host parallel efficiency = parallel efficiency x device offload efficiency, and device
parallel efficiency. With a reference, global efficiency = host parallel efficiency x computation
scalability.

The time that a factor loses is counted in thread time: of a thread that waits, and of one that has
less to do than the busiest. Those of all factors that have no parts add to what was not useful.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from weakref import WeakKeyDictionary

import numpy as np

from dasf_hpc.analysis.executions import Floats
from dasf_hpc.analysis.ideal import Lengths, ideal_lengths
from dasf_hpc.analysis.savings import savings
from dasf_hpc.analysis.task_threads import TaskThreads, task_threads
from dasf_hpc.trace.open import Trace


@dataclass(frozen=True)
class Factors:
    """A run's efficiencies, as the module defines them; each from 0 to 1, NaN: not known.

    Attributes
    ----------
    duration
        T, ns.
    threads
        Task threads: n.
    useful
        Time in which they executed tasks, in sum, ns.
    parallel_efficiency, load_balance, communication_efficiency, serialisation, transfer
        Of the first two lines of the tree.
    between_workers, within_workers
        What `load_balance` is the product of.
    data, scheduling, submission
        What `transfer` is the product of.
    exact
        Whether the run was played again. Of more executions than
        `dasf_hpc.analysis.savings.PLAYED` it was not: `transfer` is no less than what is told,
        `serialisation` no more; all others are exact but for `transfer`'s parts.
    """

    duration: int
    threads: int
    useful: int
    parallel_efficiency: float
    load_balance: float
    communication_efficiency: float
    serialisation: float
    transfer: float
    between_workers: float = nan
    within_workers: float = nan
    data: float = nan
    scheduling: float = nan
    submission: float = nan
    exact: bool = True


@dataclass(frozen=True)
class Hosts:
    """Factors of a run, and what they were made of.

    Attributes
    ----------
    factors
        The factors.
    threads
        The task threads.
    lengths
        The run's lengths without delays.
    """

    factors: Factors
    threads: TaskThreads
    lengths: Lengths

    @property
    def means(self) -> Floats:
        """Of each task thread: the mean of u over its worker's threads, ns."""
        _, of = np.unique(self.threads.process, return_inverse=True)
        return (np.bincount(of, weights=self.threads.useful) / np.bincount(of))[of]


_MADE: WeakKeyDictionary[Trace, Hosts] = WeakKeyDictionary()


def factors(trace: Trace) -> Factors:
    """Give a run's efficiencies.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    return hosts(trace).factors


def hosts(trace: Trace) -> Hosts:
    """Give a run's efficiencies and what they were made of, once for all that ask."""
    if trace not in _MADE:
        run = savings(trace)
        threads = task_threads(trace, run.runs, run.graph, run.found)
        lengths = ideal_lengths(trace, threads)
        _MADE[trace] = Hosts(host_factors(threads, lengths), threads, lengths)
    return _MADE[trace]


def host_factors(threads: TaskThreads, lengths: Lengths) -> Factors:
    """Make the factors of task threads and of lengths of a run."""
    count, useful = len(threads), int(threads.useful.sum())
    duration = lengths.recorded
    if not useful:
        efficiency = 0.0 if duration and count else nan
        return Factors(duration, count, 0, efficiency, nan, nan, nan, nan)
    most = int(threads.useful.max())
    _, of = np.unique(threads.process, return_inverse=True)
    mean = float((np.bincount(of, weights=threads.useful) / np.bincount(of)).max())
    return Factors(
        duration=duration,
        threads=count,
        useful=useful,
        parallel_efficiency=useful / (count * duration),
        load_balance=useful / (count * most),
        communication_efficiency=most / duration,
        serialisation=most / lengths.ideal,
        transfer=lengths.ideal / duration,
        between_workers=min(1.0, useful / (count * mean)),
        within_workers=min(1.0, mean / most),
        data=lengths.without_data / duration,
        scheduling=lengths.without_scheduling / lengths.without_data,
        submission=lengths.ideal / lengths.without_scheduling,
        exact=lengths.exact,
    )


def computation_scalability(reference: Factors, other: Factors) -> float:
    """Give the computation scalability of a run: the useful time of a reference over its own.

    That is of the same work (strong scaling). Where the work grows with the threads (weak scaling),
    multiply by the work of the other run over that of the reference. Above 1 where the other run
    needed less time to compute the same; NaN where either has no useful time.
    """
    known = reference.useful and other.useful
    return reference.useful / other.useful if known else nan
