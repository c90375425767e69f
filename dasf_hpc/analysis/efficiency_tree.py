"""Analysis: the tree of a run's efficiencies, factor by factor: its formula, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

import numpy as np

from dasf_hpc.analysis.devices import Devices
from dasf_hpc.analysis.ideal import Lengths
from dasf_hpc.analysis.task_threads import TaskThreads

#: Of each factor: its parent, its formula, and what it is in Dask. In the order of the tree.
FACTORS: dict[str, tuple[str, str, str]] = {
    "global_efficiency": (
        "",
        "parallel efficiency of hosts × computation scalability",
        "what the run's threads did for the same work, against the reference",
    ),
    "computation_scalability": (
        "global_efficiency",
        "useful time of the reference ÷ useful time",
        "whether tasks of the same work took longer in sum than in the reference",
    ),
    "host_parallel_efficiency": (
        "global_efficiency",
        "parallel efficiency × device offload efficiency",
        "share of the threads' time in tasks and in no call of CUDA",
    ),
    "device_offload_efficiency": (
        "host_parallel_efficiency",
        "(useful time − time of it in calls of CUDA) ÷ useful time",
        "what tasks do not spend in launching kernels, copying and waiting for GPUs; a host that "
        "waits for a GPU that is busy is no loss: see the device's factors",
    ),
    "parallel_efficiency": (
        "host_parallel_efficiency",
        "useful time in sum ÷ (task threads × time from first to last task)",
        "share of the threads' time in which they executed tasks",
    ),
    "load_balance": (
        "parallel_efficiency",
        "mean useful time of a thread ÷ most useful time of a thread",
        "whether all threads had as much to do as the busiest",
    ),
    "between_workers": (
        "load_balance",
        "mean useful time of a thread ÷ that of the busiest worker's threads",
        "whether each worker had as much to do for each of its threads as the busiest",
    ),
    "within_workers": (
        "load_balance",
        "mean useful time of the busiest worker's threads ÷ most useful time of a thread",
        "whether a worker's threads had as much to do as the busiest: Dask gives a task to any "
        "that is free, so that this is low where a worker had fewer tasks at a time than threads",
    ),
    "communication_efficiency": (
        "parallel_efficiency",
        "most useful time of a thread ÷ time from first to last task",
        "how much of the run the busiest thread executed tasks",
    ),
    "serialisation": (
        "communication_efficiency",
        "most useful time of a thread ÷ length of the run without any delay",
        "what tasks waited for others to end, as before a barrier or in a chain of tasks",
    ),
    "transfer": (
        "communication_efficiency",
        "length of the run without any delay ÷ time from first to last task",
        "what tasks waited for data, for Dask, and for the script",
    ),
    "data": (
        "transfer",
        "length of the run without delays by data ÷ time from first to last task",
        "transfers between workers, deserialising, spilling to disk, and workers paused with full "
        "memory, while a thread had nothing else to do",
    ),
    "scheduling": (
        "transfer",
        "length without delays by data and by Dask ÷ that without delays by data",
        "from when a task could run to its start: the scheduler, its messages, the worker's event "
        "loop",
    ),
    "submission": (
        "transfer",
        "length of the run without any delay ÷ that without delays by data and by Dask",
        "until the script had submitted a task, though nothing that it follows was left to do",
    ),
    "device_parallel_efficiency": (
        "",
        "time in kernels in sum ÷ (GPUs × time from first to last task)",
        "share of the GPUs' time in which they ran kernels",
    ),
    "device_load_balance": (
        "device_parallel_efficiency",
        "mean time of a GPU in kernels ÷ most time of a GPU in kernels",
        "whether all GPUs had as much to do as the busiest",
    ),
    "device_communication": (
        "device_parallel_efficiency",
        "most time of a GPU in kernels ÷ most time of a GPU in kernels, copies and fills",
        "copies and fills of memory that no kernel runs beside",
    ),
    "orchestration": (
        "device_parallel_efficiency",
        "most time of a GPU in kernels, copies and fills ÷ time from first to last task",
        "what GPUs waited for hosts to give them something to do",
    ),
}

#: The root of the tree of devices.
DEVICE = "device_parallel_efficiency"
#: Factors that are not pointed at: one tells of two runs, the other of waits that may be right.
APART = ("computation_scalability", "device_offload_efficiency")


@dataclass(frozen=True)
class Factor:
    """A factor of the tree.

    Attributes
    ----------
    name
        One of `FACTORS`.
    level
        How deep it stands: 0: it is no part of another.
    parent
        The factor that it is a part of; empty: none.
    value
        The factor; NaN: not known.
    lost
        Time that it loses, ns of thread time, or of GPU time.
    run
        The same as time of the run: over the number of threads, or of GPUs.
    leaf
        Whether it has no parts.
    """

    name: str
    level: int
    parent: str
    value: float
    lost: int
    run: int
    leaf: bool

    @property
    def device(self) -> bool:
        """Whether it is of GPUs."""
        return DEVICE in (self.name, self.parent)


def tree(
    values: Mapping[str, float], lost: Mapping[str, int], units: int, gpus: int
) -> list[Factor]:
    """Put factors together to a tree, each before its parts.

    Parameters
    ----------
    values
        Factors by name; what is left out is not in the tree, and its parts are its parent's.
    lost
        By name of those without parts: what they lose, ns.
    units, gpus
        Number of task threads, and of GPUs.
    """
    parents = {name: _parent(name, values) for name in values}
    made: list[Factor] = []

    def add(name: str, level: int) -> int:
        place = len(made)
        made.append(Factor(name, level, parents[name], values[name], 0, 0, False))
        parts = [one for one in FACTORS if parents.get(one) == name]
        own = sum(add(one, level + 1) for one in parts) if parts else lost.get(name, 0)
        of = gpus if DEVICE in (name, parents[name]) else units
        made[place] = Factor(
            name, level, parents[name], values[name], own, round(own / max(1, of)), not parts
        )
        return own

    for name in FACTORS:
        if parents.get(name) == "":
            add(name, 0)
    return made


def _parent(name: str, values: Mapping[str, float]) -> str:
    """Give the nearest factor above one that is in the tree."""
    parent = FACTORS[name][0]
    while parent and parent not in values:
        parent = FACTORS[parent][0]
    return parent


def lost_by_hosts(threads: TaskThreads, lengths: Lengths) -> dict[str, int]:
    """Give the thread time that each factor of hosts without parts loses, ns.

    They add to the threads' time without their useful time. Where each worker has one thread, the
    load balance has no parts.
    """
    count, most = len(threads), int(threads.useful.max(initial=0))
    busiest = busiest_worker(threads)
    mean = round(count * busiest[1])
    return {
        "load_balance": count * most - int(threads.useful.sum()),
        "between_workers": mean - int(threads.useful.sum()),
        "within_workers": count * most - mean,
        "serialisation": count * (lengths.ideal - most),
        "data": count * (lengths.recorded - lengths.without_data),
        "scheduling": count * (lengths.without_data - lengths.without_scheduling),
        "submission": count * (lengths.without_scheduling - lengths.ideal),
    }


def lost_by_devices(found: Devices) -> dict[str, int]:
    """Give the GPU time that each factor of devices loses, ns.

    They add to the GPUs' time without that in kernels.
    """
    count, most = len(found.gpus), int(found.kernels.max(initial=0))
    active = int((found.kernels + found.memory).max(initial=0))
    return {
        "device_load_balance": count * most - int(found.kernels.sum()),
        "device_communication": count * (active - most),
        "orchestration": count * (found.duration - active),
    }


def busiest_worker(threads: TaskThreads) -> tuple[int, float]:
    """Give the worker whose threads executed most in the mean, and that mean, ns."""
    if not len(threads):
        return -1, 0.0
    rows, of = np.unique(threads.process, return_inverse=True)
    means = np.bincount(of, weights=threads.useful) / np.bincount(of)
    most = int(np.argmax(means))
    return int(rows[most]), float(means[most])


def worst(factors: list[Factor], device: bool) -> Factor | None:
    """Give the smallest factor without parts, of hosts or of devices; None: nothing is lost.

    Of equal ones it is the first. Those of `APART` are none.
    """
    leaves = [
        one
        for one in factors
        if one.leaf
        and one.parent
        and one.device == device
        and one.name not in APART
        and not isnan(one.value)
    ]
    least = min(leaves, key=lambda one: one.value, default=None)
    return least if least is not None and least.value < 1 else None
