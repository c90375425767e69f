"""Nsight, what GPU memory was asked for and given back, and pages that were not where used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import Reason
from dasf_hpc.nsight.memory import MEMORY_KINDS, TasksOnGpus
from dasf_hpc.nsight.sqlite import NONE, Export

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

Array = npt.NDArray[Any]

ACCESS_TYPES: Mapping[int, str] = {0: "unknown", 1: "read", 2: "write", 3: "atomic", 4: "prefetch"}
"""CUPTI's ``CUpti_ActivityUnifiedMemoryAccessType``."""

#: ``CUDA_GPU_MEMORY_USAGE_EVENTS.memoryOperationType``.
_ALLOCATION, _RELEASE = 0, 1

#: Kinds of memory that is the host's: what nsys says of a device beside it means nothing.
_ON_HOST = [number for number, name in MEMORY_KINDS.items() if name in ("pageable", "pinned")]


def place(placing: Placing) -> None:
    """Put a report's allocations and page faults into files."""
    _allocations(placing)
    _faults(placing)


def _allocations(placing: Placing) -> None:
    columns = {
        "pid": ("globalPid", NONE),
        "device": ("deviceId", NONE),
        "start": ("start", NONE),
        "address": ("address", NONE),
        "bytes": ("bytes", 0),
        "kind": ("memKind", NONE),
        "operation": ("memoryOperationType", NONE),
        "correlation": ("correlationId", NONE),
    }
    with Export.opened(placing.report.sqlite) as export:
        events = export.numbers("CUDA_GPU_MEMORY_USAGE_EVENTS", columns)
    known = np.isin(events["operation"], (_ALLOCATION, _RELEASE))
    if not known.any():
        return
    order = np.flatnonzero(known)
    order = order[np.argsort(events["start"][order], kind="stable")]
    events = {name: values[order] for name, values in events.items()}
    pid, given = events["pid"], events["operation"] == _ALLOCATION
    process = placing.process(pid)
    start = events["start"].astype(np.int64)
    placing.times(pid, start)
    other = other_ends(pid, events["address"], given)
    size = np.maximum(events["bytes"].astype(np.int64), 0)
    # what is given back is what was asked for, whatever is said of its size then
    freed = ~given & (other != NONE)
    size[freed] = size[other[freed]]
    device = np.where(np.isin(events["kind"], _ON_HOST), NONE, events["device"])
    launches = placing.calls.launching(pid, events["correlation"])
    placing.spool(
        "gpu_allocations",
        {
            "process": process,
            "thread": launches.thread,
            "gpu": placing.gpus(pid, device),
            "start": start,
            "other": np.where(other == NONE, NONE, start[other]),
            "bytes": np.where(given, size, -size),
            "kind": placing.kinds("memory_kinds", MEMORY_KINDS, events["kind"]),
            "task": launches.task,
            "reason": placing.reason_codes[launches.reason],
        },
    )


def other_ends(pid: Array, address: Array, given: Array) -> Array:
    """Find for each allocation its release, and the other way round.

    Parameters
    ----------
    pid, address
        Whose memory it is, and where, -1: not told; in the order of time.
    given
        Whether it was allocated; else it was released.

    Returns
    -------
    int64
        Position of the other one, -1: there is none. Where an address is given twice without a
        release between, that was not recorded: the second allocation ends the first.
    """
    found = np.full(len(pid), NONE, np.int64)
    order = np.lexsort((address, pid))
    pid, address, given = pid[order], address[order], given[order]
    same = (pid[1:] == pid[:-1]) & (address[1:] == address[:-1])
    same &= given[:-1] & (address[1:] != NONE)
    firsts = np.flatnonzero(same)
    found[order[firsts]] = order[firsts + 1]
    released = firsts[~given[firsts + 1]]
    found[order[released + 1]] = order[released]
    return found


def _faults(placing: Placing) -> None:
    of_gpus = {
        "pid": ("globalPid", NONE),
        "device": ("deviceId", NONE),
        "start": ("start", NONE),
        "stop": ("end", NONE),
        "count": ("numberOfPageFaults", 1),
        "access": ("faultAccessType", NONE),
    }
    of_hosts = {name: of_gpus[name] for name in ("pid", "start")}
    with Export.opened(placing.report.sqlite) as export:
        gpu = export.numbers("CUDA_UM_GPU_PAGE_FAULT_EVENTS", of_gpus)
        host = export.numbers("CUDA_UM_CPU_PAGE_FAULT_EVENTS", of_hosts)
    on_gpu, on_host = len(gpu["start"]), len(host["start"])
    if not on_gpu + on_host:
        return
    for name, values in (("device", NONE), ("stop", NONE), ("count", 1), ("access", NONE)):
        host[name] = np.full(on_host, values)
    both = {name: np.concatenate([gpu[name], host[name]]) for name in of_gpus}
    pid, start, stop = both["pid"], both["start"].astype(np.int64), both["stop"].astype(np.int64)
    process = placing.process(pid)
    placing.times(pid, start, stop)
    gpus = placing.gpus(pid, both["device"])
    task = np.full(on_gpu + on_host, NONE, np.int32)
    reason = np.full(on_gpu + on_host, Reason.NO_THREAD, np.int8)
    if on_gpu:
        task[:on_gpu], reason[:on_gpu] = TasksOnGpus(placing).at(gpus[:on_gpu], start[:on_gpu])
    placing.spool(
        "page_faults",
        {
            "process": process,
            "on_gpu": (np.arange(on_gpu + on_host) < on_gpu).astype(np.int8),
            "gpu": gpus,
            "start": start,
            "stop": stop,
            "count": np.clip(both["count"], 0, np.iinfo(np.int32).max).astype(np.int32),
            "access": placing.kinds("access_types", ACCESS_TYPES, both["access"]),
            "task": task,
            "reason": placing.reason_codes[reason],
        },
    )
