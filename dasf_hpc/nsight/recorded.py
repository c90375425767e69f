"""Nsight, what a report says of itself: diagnostics, losses and what it holds, for a trace."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dasf_hpc.nsight.messages import TRACED_BY
from dasf_hpc.nsight.reader import Diagnostic, Report
from dasf_hpc.nsight.sqlite import NONE, Names
from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.holdings import (
    CALLS_FOR,
    LOST_BY_NSYS,
    TABLE_OF,
    Evidence,
    Holding,
    Kind,
    judge,
    unexplained,
)
from dasf_hpc.trace.summary import NOT_AVAILABLE

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Additions

#: Column ``lost`` of what tells of no loss.
NO_LOSS = -2

#: Tables that an export has only where something was traced, whether or not with rows.
_TRACES = {
    "cuda": (
        "CUPTI_ACTIVITY_KIND_RUNTIME",
        "CUPTI_ACTIVITY_KIND_KERNEL",
        "CUPTI_ACTIVITY_KIND_MEMCPY",
        "CUPTI_ACTIVITY_KIND_MEMSET",
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
        "TARGET_INFO_CUDA_CONTEXT_INFO",
        "TARGET_INFO_CUDA_STREAM",
    ),
    "nvtx": ("NVTX_EVENTS",),
    "metrics": ("GPU_METRICS", "TARGET_INFO_GPU_METRICS"),
    "messages": TRACED_BY,
    "samples": ("COMPOSITE_EVENTS",),
    "switches": ("SCHED_EVENTS",),
    "nic": ("NET_NIC_METRIC",),
    "osrt": ("OSRT_API",),
    "allocations": ("CUDA_GPU_MEMORY_USAGE_EVENTS",),
    "faults": ("CUDA_UM_CPU_PAGE_FAULT_EVENTS", "CUDA_UM_GPU_PAGE_FAULT_EVENTS"),
}


@dataclass(frozen=True)
class Known:
    """What a trace knows of a report's processes.

    Attributes
    ----------
    rows
        Row in ``processes`` by pid.
    journals
        Pids of those that kept a journal.
    corrections
        By pid, of the processes that the report tells of.
    best
        The best of these corrections.
    """

    rows: Mapping[int, int]
    journals: Collection[int]
    corrections: Mapping[int, Correction | None]
    best: Correction | None


def calls_for(names: Names) -> dict[Kind, int]:
    """Count the calls that have something run on a GPU, by what."""
    counts = np.bincount(names.codes[names.codes >= 0], minlength=len(names.categories))
    found = {}
    for kind, begins in CALLS_FOR.items():
        chosen = [str(name).startswith(begins) for name in names.categories]
        found[kind] = int(counts[np.array(chosen, bool)].sum())
    return found


def add_recorded(
    report: Report,
    number: int,
    additions: Additions,
    known: Known,
    rows: Mapping[str, int],
    asked: Mapping[Kind, int],
    summed: Mapping[Kind, int],
) -> tuple[list[Holding], list[dict[str, Any]]]:
    """Put what a report says of itself into a trace, and say what it holds.

    Parameters
    ----------
    report, number
        The report, and its row in ``reports``.
    additions
        The trace.
    known
        What it knows of the report's processes.
    rows
        How many rows of each of its tables came from this report.
    asked
        Its calls that had something run on a GPU.
    summed
        How many it holds of what the trace has sums of alone.

    Returns
    -------
    holdings : list of Holding
        What it holds, of each kind.
    gaps : list of dict
        What is missing from the trace by it, rows of table ``gaps``.
    """
    told = report.diagnostics
    if told is not None:
        additions.add_all("diagnostics", [_row(one, number, known) for one in told])
    holdings = judge(
        Evidence(
            {kind: rows.get(table, 0) for kind, table in TABLE_OF.items()}
            | {Kind.OS_CALLS: report.count("OSRT_API") or 0}
            | dict(summed),
            asked,
            _traced(report, told or ()),
            _losses(told or (), known),
            _refused(told or ()),
        )
    )
    additions.add_all(
        "recorded",
        [
            {
                "report": number,
                "what": str(holding.kind),
                "state": str(holding.state),
                "count": holding.count,
                "reason": holding.reason or None,
            }
            for holding in holdings
        ],
    )
    gaps = [_gap(one, known) for one in told or () if one.lost is not None]
    told_of_cuda = any("cuda" in one.concerns for one in told or () if _counts(one, known))
    gaps += [
        {"kind": LOST_BY_NSYS, "count": asked.get(holding.kind, NONE), "reason": holding.reason}
        for holding in unexplained(holdings, told_of_cuda)
    ]
    return holdings, gaps


def _row(one: Diagnostic, number: int, known: Known) -> dict[str, Any]:
    correction = known.corrections.get(one.pid) or known.best
    placed = one.time != NONE and correction is not None
    return {
        "report": number,
        "process": known.rows.get(one.pid, NONE),
        "pid": one.pid,
        "time": int(correction.apply(one.time)) if placed and correction is not None else NONE,
        "severity": one.severity,
        "source": one.source,
        "text": one.text or None,
        "lost": NO_LOSS if one.lost is None else one.lost,
    }


def _counts(one: Diagnostic, known: Known) -> bool:
    """Say whether a text tells of a loss to the trace.

    A process that no journal of the run knows and that the report holds nothing of is a helper, as
    a shell is: nsys says of each that not all of its events might have been collected.
    """
    helper = known.journals and one.pid != NONE and one.pid not in known.journals
    return one.lost is not None and not (helper and one.pid not in known.corrections)


def _gap(one: Diagnostic, known: Known) -> dict[str, Any]:
    reason = one.text.rstrip(".")
    if not _counts(one, known):
        return {"kind": NOT_AVAILABLE, "reason": f"nsys of a process of no worker: {reason}"}
    process = known.rows.get(one.pid, NONE)
    return {"kind": LOST_BY_NSYS, "process": process, "count": one.lost, "reason": reason}


def _losses(told: Sequence[Diagnostic], known: Known) -> dict[str, str]:
    """Give the first text that tells of a loss, by what it concerns."""
    found: dict[str, str] = {}
    for one in told:
        if _counts(one, known):
            for about in one.concerns:
                found.setdefault(about, one.text.rstrip("."))
    return found


def _refused(told: Sequence[Diagnostic]) -> str:
    """Give the first text that warns of GPU metrics and tells of no loss; empty without any."""
    about = (one for one in told if "metrics" in one.concerns and one.lost is None)
    return next((one.text.rstrip(".") for one in about if one.severity != "info"), "")


def _traced(report: Report, told: Sequence[Diagnostic]) -> frozenset[str]:
    tables = report.tables
    proven = {what for what, names in _TRACES.items() if tables & set(names)}
    return frozenset(proven.union(*(one.traced for one in told)))
