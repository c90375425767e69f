"""Analysis: how efficiently GPUs were used: time in kernels, in copies and fills, and CUDA calls.

The definitions are those of "Hardware-Agnostic and Insightful Efficiency Metrics for Accelerated
Systems: Definition and Implementation within TALP" (Rahimi, Lopez, Clascà, Vinyals Ylla Català,
Labarta and Garcia-Gasulla, arXiv 2603.26576, 2026). With K the time in which a GPU ran a kernel, on
whatever stream, M that in which it copied or filled memory and ran none, G the number of GPUs, and
T from the first task's start to the last one's end:

- device parallel efficiency = sum(K) / (G T) = load balance x communication x orchestration
- device load balance = mean(K) / max(K)
- device communication efficiency = max(K) / max(K + M)
- orchestration efficiency = max(K + M) / T
- device offload efficiency = (U - W) / U, where U is the time in which task threads executed tasks,
  and W that of it in which they were in calls of CUDA: launching, copying, waiting
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, Ints, Span, workers
from dasf_hpc.nsight.busy import UnionTime
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart

#: What keeps a GPU busy.
BUSY = ("kernels", "memcpys", "memsets")


@dataclass(frozen=True)
class Devices:
    """Efficiencies of a run's GPUs; each from 0 to 1, NaN where it is not known.

    Attributes
    ----------
    duration
        T, ns.
    gpus
        Rows of ``gpus``: those that workers had, and those that anything ran on. -1: one that the
        trace does not know.
    kernels
        Of each: K, ns.
    memory
        Of each: M, ns.
    parallel_efficiency, load_balance, communication_efficiency, orchestration_efficiency
        As the module says; the first is the product of the others.
    """

    duration: int
    gpus: list[int]
    kernels: Ints
    memory: Ints
    parallel_efficiency: float
    load_balance: float
    communication_efficiency: float
    orchestration_efficiency: float


def devices(trace: Trace, runs: Executions, span: Span) -> Devices:
    """Give the efficiencies of a run's GPUs within a span of time.

    GPUs whose times are not on the trace's axis are left out.
    """
    apart = gpus_apart(trace)
    had = {gpu for own in workers(trace, runs)["gpus"] for gpu in own}
    ran, active = _covered(trace, ("kernels",), span), _covered(trace, BUSY, span)
    gpus = sorted((had | active.keys()) - apart.keys())
    kernels = np.array([ran.get(gpu, 0) for gpu in gpus], np.int64)
    every = np.array([active.get(gpu, 0) for gpu in gpus], np.int64)
    return _factors(span.duration, gpus, kernels, every - kernels)


def _covered(trace: Trace, tables: Sequence[str], span: Span) -> dict[int, int]:
    """Give for how long anything of some tables ran on each GPU within a span, ns."""
    parts: dict[int, list[tuple[Ints, Ints]]] = {}
    for name in tables:
        for piece in trace.pieces(name, ["gpu", "start", "stop"]) if trace.rows(name) else ():
            start = piece["start"].to_numpy(np.int64).clip(span.start, span.stop)
            stop = piece["stop"].to_numpy(np.int64).clip(span.start, span.stop)
            of = piece["gpu"].to_numpy(np.int64)
            for gpu in np.unique(of[stop > start]).tolist():
                mine = (of == gpu) & (stop > start)
                one = Covered(start[mine], stop[mine])
                parts.setdefault(gpu, []).append((one.start, one.stop))
    return {
        gpu: Covered(*(np.concatenate(ends) for ends in zip(*own, strict=True))).total
        for gpu, own in parts.items()
    }


def in_calls(trace: Trace, runs: Executions) -> Ints:
    """Give for how long each execution was in calls of CUDA, ns, by row of ``tasks``.

    Calls within calls count once. None is in them for longer than it took, whatever clocks say.
    """
    inside = np.zeros(len(runs), np.int64)
    covered = UnionTime()
    for piece in trace.pieces("cuda_api", ["start", "stop", "task"]):
        task = piece["task"].to_numpy(np.int64)
        known = np.flatnonzero((task >= 0) & (task < len(runs)))
        task = task[known]
        start = piece["start"].to_numpy(np.int64)[known]
        stop = np.maximum(piece["stop"].to_numpy(np.int64)[known], start)
        order = np.argsort(start, kind="stable")
        added = covered.add(task[order], start[order], stop[order])
        np.add.at(inside, task[order], added)
    return np.minimum(inside, runs.duration)


def _factors(duration: int, gpus: list[int], kernels: Ints, memory: Ints) -> Devices:
    total, most = int(kernels.sum()), int(kernels.max(initial=0))
    active = int((kernels + memory).max(initial=0))
    whole = len(gpus) * duration
    return Devices(
        duration,
        gpus,
        kernels,
        memory,
        parallel_efficiency=total / whole if whole else nan,
        load_balance=total / (len(gpus) * most) if most else nan,
        communication_efficiency=most / active if active else nan,
        orchestration_efficiency=active / duration if duration else nan,
    )
