"""Nsight, calls of the operating system's libraries: summed by task, and stored where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import Reason, grouped
from dasf_hpc.nsight.spool import ROWS_AT_ONCE
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.sums import Sums

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

Array = npt.NDArray[Any]

#: Table of the sums.
SUMS = "os_runtime_sums"


def place(placing: Placing, store: bool) -> None:
    """Sum a report's calls by task and function, and put the calls themselves into a file.

    Parameters
    ----------
    placing
        The report.
    store
        Whether to store each call, of which a report may hold more than of all else. Without it,
        calls of processes of which the trace knows nothing else are summed without a process: a
        shell that nsys traced is none of the run's.
    """
    call = placing.report.os_runtime
    count = len(call)
    if not count:
        return
    name = placing.additions.names("os_calls", call.name)
    process, task = np.full(count, NONE, np.int32), np.full(count, NONE, np.int32)
    reason = np.full(count, Reason.NO_PROCESS, np.int8)
    sums = Sums(("process", "task", "reason", "name"), ("time",), largest="time")
    for first in range(0, count, ROWS_AT_ONCE):
        part = slice(first, min(count, first + ROWS_AT_ONCE))
        pid = call.pid[part]
        if store:
            process[part] = placing.process(pid)
        placing.times(pid, call.start[part], call.stop[part])
        for number, rows in grouped(pid):
            if number == NONE:
                continue
            rows += first
            process[rows] = placing.row_of_pid.get(number, NONE)
            task[rows], reason[rows] = placing.tasks_of_threads(
                number, call.tid[rows], call.start[rows]
            )
        took = np.where(call.stop[part] == NONE, 0, call.stop[part] - call.start[part])
        sums.add(process[part], task[part], reason[part], name[part], took)
    columns = sums.columns()
    columns["longest"] = columns.pop("largest")
    columns["reason"] = placing.reason_codes[columns["reason"]]
    columns["report"] = np.full(len(columns["task"]), placing.number)
    placing.additions.made(SUMS)
    stored = placing.run.tables[SUMS]
    for column in TABLES[SUMS].columns:
        added = columns[column.name].astype(column.dtype)
        stored[column.name] = np.concatenate([stored[column.name], added])
    if store:
        placing.spool(
            "os_runtime",
            {
                "process": process,
                "thread": call.tid,
                "start": call.start,
                "stop": call.stop,
                "name": name,
                "task": task,
                "reason": placing.reason_codes[reason],
            },
        )
