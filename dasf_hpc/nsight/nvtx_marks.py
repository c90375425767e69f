"""Nsight, NVTX marks of the profiled code, into a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing


def place(placing: Placing) -> None:
    """Put a report's marks into a file."""
    marks, additions = placing.report.marks, placing.additions
    process, start = placing.process(marks.pid), marks.start.copy()
    placing.times(marks.pid, start)
    task, reason = placing.task_at(marks.pid, marks.tid, start)
    placing.spool(
        "nvtx_marks",
        {
            "process": process,
            "thread": marks.tid,
            "start": start,
            "domain": additions.names("nvtx_domains", marks.domain),
            "message": additions.names("nvtx_messages", marks.message),
            "payload": marks.payload,
            "value": marks.value,
            "data": additions.names("nvtx_data", marks.data),
            "category": additions.names("nvtx_categories", marks.category),
            "task": task,
            "reason": placing.reason_codes[reason],
        },
    )
