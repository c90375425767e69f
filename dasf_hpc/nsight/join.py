"""Nsight, third step: link a report's ranges to the tasks that made them, and tie its clock."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.reader import Ranges, Report
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.trace.align import Correction, fit_marks, fit_utc

COMPUTE_DOMAIN = "compute"
"""NVTX domain of the ranges around tasks; a range's payload is its task's id."""

START_UNCERTAINTY_NS = 1_000_000
"""How far the session start that a report states is off, ns.

Measured with nsys 2022.4 and 2023.4: the stated UTC was 4 to 34 us from what marks told. The rest
is margin for versions that were not measured.
"""

Integers = npt.NDArray[np.int64]


class Link(enum.IntEnum):
    """Whether a range was linked to a task, or why not."""

    LINKED = 0
    """Its payload is the id of a task that ran in its process."""

    NO_TASK_ID = 1
    """It carries no payload: not one of ours, or nsys recorded none."""

    UNKNOWN_TASK = 2
    """No journal has a task of this id: its journal is missing or torn."""

    OTHER_HOST = 3
    """The task of this id ran on another host than the report is of."""

    OTHER_PROCESS = 4
    """The task of this id ran in another process of this host."""


@dataclass(frozen=True)
class JoinedReport:
    """The `compute` ranges of a report and the task of each.

    Attributes
    ----------
    ranges
        Those of domain `COMPUTE_DOMAIN`, in order of start, times still the session's.
    task
        Id of each range's task, -1 where it was not linked.
    link
        Why, a `Link` for each range.
    counts
        How many ranges of each `Link`; they add up to the number of ranges.
    tasks_linked
        How many different tasks the linked ranges are of.
    """

    ranges: Ranges
    task: Integers
    link: npt.NDArray[np.int8]
    counts: dict[Link, int]
    tasks_linked: int


def join_report(
    report: Report,
    processes: Mapping[str, npt.NDArray[np.generic]],
    tasks: Mapping[str, npt.NDArray[np.generic]],
) -> JoinedReport:
    """Link each range of `COMPUTE_DOMAIN` to the task whose id it carries.

    Parameters
    ----------
    report
        One node's.
    processes
        ``id``, ``hostname`` and ``pid`` of every worker process of the run.
    tasks
        ``id``, unique in the run, and ``process``, the id of the process it ran in.
    """
    ranges = _of_compute(report.ranges)
    process_row, known_process = find_rows(processes["id"], tasks["process"])
    task_row, known_task = find_rows(tasks["id"], ranges.payload)
    # the task's process of each range: row in `processes`, where both are known
    row = np.zeros(len(ranges), np.intp)
    row[known_task] = process_row[task_row[known_task]]
    known = known_task.copy()
    known[known_task] = known_process[task_row[known_task]]
    here = np.ones(len(processes["id"]), bool)
    if report.hostname is not None:
        here = np.array([same_host(str(h), report.hostname) for h in processes["hostname"]], bool)
    link = np.full(len(ranges), Link.UNKNOWN_TASK, np.int8)
    link[ranges.payload == NONE] = Link.NO_TASK_ID
    ours, rows = np.flatnonzero(known), row[known]
    same_pid = np.asarray(processes["pid"], np.int64)[rows] == ranges.pid[ours]
    link[ours] = np.where(
        here[rows], np.where(same_pid, Link.LINKED, Link.OTHER_PROCESS), Link.OTHER_HOST
    )
    task = np.where(link == Link.LINKED, ranges.payload, NONE)
    return JoinedReport(
        ranges=ranges,
        task=task,
        link=link,
        counts={reason: int((link == reason).sum()) for reason in Link},
        tasks_linked=len(np.unique(task[link == Link.LINKED])),
    )


def report_corrections(
    report: Report,
    anchors: Mapping[int, Integers] | None = None,
    pids: Iterable[int] = (),
) -> dict[int, Correction]:
    """Tie a report's session time to the CLOCK_MONOTONIC of each of its processes.

    By the process's own clock marks; without, by those of the process of this report whose marks
    tell best, since all of one report read one clock ("same-host"); without any, by the system
    clock at session start, which newer nsys state ("system-clock"); at last by UTC ("utc").

    Parameters
    ----------
    report
        One node's.
    anchors
        By pid: monotonic before, UTC, monotonic after, (n, 3), ns, as the process recorded; without
        them UTC tells nothing.
    pids
        Processes, beside those that `Report.processes` lists.

    Returns
    -------
    dict
        By pid. A process that nothing ties is not in it.
    """
    marks, ranges = report.clock_marks, report.ranges

    def fit(pid: int, used: npt.NDArray[np.bool_] | slice) -> Correction:
        own = marks.pid == pid
        return fit_marks(
            marks.session_ns[own], marks.clock_ns[own], marks.tid[own], _span(ranges, used)
        )

    corrections = {pid: fit(pid, ranges.pid == pid) for pid in np.unique(marks.pid).tolist()}
    shared: Correction | None = None
    if corrections:
        best = min(corrections, key=lambda pid: corrections[pid].bound_ns)
        shared = replace(fit(best, slice(None)), source="same-host")
    elif report.system_clock_ns is not None:
        shared = Correction(
            source="system-clock",
            origin_ns=0,
            offset_ns=report.system_clock_ns,
            drift=0.0,
            bound_ns=START_UNCERTAINTY_NS,
            residual_ns=0,
            points=1,
        )
    # a process that has anchors may have left nothing in the report that names it
    for pid in sorted({*report.processes.pid.tolist(), *(anchors or {}), *pids}):
        if pid in corrections:
            continue
        if shared is not None:
            corrections[pid] = shared
        elif report.session_start_utc_ns is not None and anchors and len(anchors.get(pid, ())):
            start = np.array([[0, report.session_start_utc_ns, 0]], np.int64)
            fitted = fit_utc(start, anchors[pid], same_clock=True)
            corrections[pid] = replace(fitted, bound_ns=fitted.bound_ns + START_UNCERTAINTY_NS)
    return corrections


def same_host(one: str, other: str) -> bool:
    """Say whether two names are one host's; one may lack the domain."""
    one, other = one.lower().rstrip("."), other.lower().rstrip(".")
    if "." in one and "." in other:
        return one == other
    return one.partition(".")[0] == other.partition(".")[0]


def _of_compute(ranges: Ranges) -> Ranges:
    return ranges[ranges.domain.equal(COMPUTE_DOMAIN)]


def find_rows(
    ids: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Find the row of each wanted id and say whether there is one; the row is 0 where not."""
    ids, wanted = np.asarray(ids, np.int64), np.asarray(wanted, np.int64)
    if len(ids) == 0:
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    order = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    row = order[place]
    found = ids[row] == wanted
    return np.where(found, row, 0), found


def _span(ranges: Ranges, used: npt.NDArray[np.bool_] | slice) -> tuple[int, int] | None:
    """Give from when to when these ranges go, session time in ns."""
    start, stop = ranges.start[used], ranges.stop[used]
    if len(start) == 0:
        return None
    return int(start.min()), max(int(stop.max()), int(start.max()))
