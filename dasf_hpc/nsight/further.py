"""Nsight, what a report may hold beyond ranges and CUDA: each sort in a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dasf_hpc.nsight import gpu_memory, messages, metrics, nvtx_marks, samples, scheduling

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing


@dataclass(frozen=True)
class Further:
    """A sort of things that a report may hold, and how they come into a trace.

    Attributes
    ----------
    tables
        The trace's tables of it whose rows are in order of ``start``; others are put into the
        trace's small tables at once.
    place
        Puts what a report holds of it into files; called when processes, GPUs and CUDA's calls of
        the report are known.
    """

    tables: tuple[str, ...]
    place: Callable[[Placing], None]


FURTHER: tuple[Further, ...] = (
    Further(("gpu_metrics", "nic_metrics"), metrics.place),
    Further(("messages",), messages.place),
    Further(("nvtx_marks",), nvtx_marks.place),
    Further(("off_cpu",), scheduling.place),
    Further(("cpu_samples",), samples.place),
    Further(("gpu_allocations", "page_faults"), gpu_memory.place),
)
