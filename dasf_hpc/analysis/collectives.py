"""Analysis: who waited for whom between ranks?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.executions import UNKNOWN, read_executions, run_span
from dasf_hpc.trace.causality import COLLECTIVE
from dasf_hpc.trace.holdings import Kind, held
from dasf_hpc.trace.names import node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.ties import EVERYONE_WAITS
from dasf_hpc.units import duration_text, share_text

#: Waiting is worth a warning from this part of the ranks' time on.
MUCH = 0.05

COLLECTIVES: Columns = {
    "library": ("", "MPI, UCX or NCCL"),
    "operation": ("", "the function"),
    "communicator": ("", "its number or one of its handles; -1: not told"),
    "ranks": ("", "ranks that took part, the most of one collective"),
    "count": ("", "collectives whose calls were matched between ranks"),
    "calls": ("", "calls of all ranks"),
    "sent": ("bytes", "size of what was sent, where it is told"),
    "time": ("ns", "time in the calls, of all ranks"),
    "wait": (
        "ns",
        "of that, time until the last rank had entered, in matched collectives in which all wait "
        "for all; between hosts as right as their clocks' bounds",
    ),
}
WAITING: Columns = {
    "worker": ("", "the worker, or the process where it is none"),
    "node": ("", "its host"),
    "rank": ("", "its rank; -1: not told"),
    "function": ("", f"what its thread ran then; {UNKNOWN}: no task"),
    "calls": ("", "its calls of matched collectives"),
    "time": ("ns", "time in them"),
    "wait": ("ns", "of that, time until the last rank had entered"),
    "last": ("", "how often it was the last one"),
    "caused": ("ns", "how long the others waited then, in sum"),
}
OPERATIONS: Columns = {
    "library": ("", "MPI, UCX or NCCL"),
    "operation": ("", "the function"),
    "calls": ("", "calls"),
    "sent": ("bytes", "size of what was sent, where it is told"),
    "received": ("bytes", "size of what was received, where it is told"),
    "time": ("ns", "time in the calls; NCCL's only queue what they do"),
}
CLOCKS: Columns = {
    "report": ("", "the report"),
    "source": ("", "where its clock correction comes from"),
    "bound": ("ns", "how far its times may be off; -1: unknown"),
    "points": ("", "collectives or marks that the correction rests on"),
}

_WHO = ["process", "rank", "function"]
_READ = [
    "process", "start", "stop", "library", "operation", "sent", "received", "communicator",
    "rank", "collective", "task",
]  # fmt: skip


def collectives(trace: Trace) -> Answer:
    """Say how long ranks waited for each other in collectives, and which came last.

    Parameters
    ----------
    trace
        The trace.

    Returns
    -------
    Answer
        Tables ``collectives``, ``waiting`` (the ranks for which others waited longest first),
        ``operations`` (all calls, messages between two ranks too) and ``clocks`` (what ties the
        reports' times).
    """
    last = _Last.read(trace)
    sums = _Sums(trace, last)
    for piece in trace.pieces("messages", _READ):
        sums.add(piece)
    tables = {
        "collectives": sums.collectives(),
        "waiting": sums.waiting(),
        "operations": sums.operations(),
        "clocks": _clocks(trace),
    }
    unanswered = []
    if not trace.rows("messages"):
        unanswered.append(f"Messages between ranks: {held(trace)[Kind.MESSAGES].sentence}.")
    elif (
        not (last.calls > 1).any() and tables["operations"]["operation"].isin(EVERYONE_WAITS).any()
    ):
        unanswered.append(
            "Who waited for whom: no call of a collective could be matched with another rank's; "
            "join or import all reports of a job in one command."
        )
    columns = {
        "collectives": COLLECTIVES,
        "waiting": WAITING,
        "operations": OPERATIONS,
        "clocks": CLOCKS,
    }
    duration = max(run_span(trace).duration, sums.span)
    findings = _findings(trace, tables, duration) + _contradictions(trace, tables["clocks"])
    return Answer("collectives", tables, columns, findings, unanswered)


def _waited(operations: pd.DataFrame) -> bool:
    """Say whether there are calls in which ranks wait for each other."""
    return bool(operations["operation"].isin(EVERYONE_WAITS).any())


class _Last:
    """Which call of each collective began last.

    Attributes
    ----------
    start
        By number of the collective, when it did, ns.
    row
        Its row in ``messages``; -1: there is none.
    communicator
        The least of its calls' communicators, which stands for all of them.
    calls
        How many of its calls the trace holds: of one alone (the other's report was known already,
        say) nothing can be told.
    """

    def __init__(self, count: int) -> None:
        self.start = np.full(count, -1, np.int64)
        self.row = np.full(count, -1, np.int64)
        self.communicator = np.full(count, np.iinfo(np.int64).max)
        self.calls = np.zeros(count, np.int64)

    @classmethod
    def read(cls, trace: Trace) -> _Last:
        """Look at all calls; rows are in order of start, so the last of each stays."""
        count = 0
        for piece in trace.pieces("messages", ["collective"]):
            count = max(count, int(piece["collective"].max()) + 1 if len(piece) else 0)
        found = cls(count)
        for piece in trace.pieces("messages", ["start", "collective", "communicator"]):
            own = piece[piece["collective"] >= 0]
            number = own["collective"].to_numpy()
            found.start[number] = own["start"].to_numpy()
            found.row[number] = own.index.to_numpy()
            found.calls += np.bincount(number, minlength=count)
            np.minimum.at(found.communicator, number, own["communicator"].to_numpy(np.int64))
        return found


class _Sums:
    """What is added up over the calls, a piece of the table at a time."""

    def __init__(self, trace: Trace, last: _Last) -> None:
        self._trace, self._last = trace, last
        self._runs = read_executions(trace, ("prefix",))
        # by key: ranks or calls, bytes and times
        self._collectives: dict[Any, Any] = defaultdict(lambda: np.zeros(4, np.int64))
        self._ranks: dict[Any, int] = defaultdict(int)
        self._numbers: dict[Any, int] = defaultdict(int)
        self._waiting: dict[Any, Any] = defaultdict(lambda: np.zeros(5, np.int64))
        self._operations: dict[Any, Any] = defaultdict(lambda: np.zeros(4, np.int64))
        # how long the last one of each collective was waited for, and who it was
        count = len(last.start)
        self._caused = np.zeros(count, np.int64)
        self._owner = {name: np.full(count, -1, np.int64) for name in _WHO}
        self._begin, self._end = np.iinfo(np.int64).max, 0

    @property
    def span(self) -> int:
        """From the first call to the end of the last one, ns."""
        return max(0, self._end - self._begin)

    def add(self, piece: pd.DataFrame) -> None:
        """Add calls."""
        if not len(piece):
            return
        start, stop = piece["start"].to_numpy(np.int64), piece["stop"].to_numpy(np.int64)
        took = np.where(stop < 0, 0, np.maximum(stop - start, 0))
        self._begin = min(self._begin, int(start.min()))
        self._end = max(self._end, int((start + took).max()))
        number = piece["collective"].to_numpy(np.int64)
        matched = number >= 0
        matched[matched] = self._last.calls[number[matched]] > 1
        together = np.isin(piece["operation"].astype(object).to_numpy(), list(EVERYONE_WAITS))
        waits = np.zeros(len(piece), np.int64)
        chosen = matched & together
        since = self._last.start[number[chosen]] - start[chosen]
        waits[chosen] = np.clip(since, 0, took[chosen])
        np.add.at(self._caused, number[chosen], waits[chosen])
        communicator = piece["communicator"].to_numpy(np.int64).copy()
        communicator[matched] = self._last.communicator[number[matched]]
        task = piece["task"].to_numpy(np.int64)
        known = (task >= 0) & (task < len(self._runs))
        function = (
            np.where(known, self._runs.function[np.where(known, task, 0)], -1)
            if (len(self._runs))
            else np.full(len(piece), -1)
        )
        frame = pd.DataFrame(
            {
                "library": piece["library"].astype(object),
                "operation": piece["operation"].astype(object),
                "communicator": communicator,
                "process": piece["process"],
                "rank": piece["rank"],
                "function": function,
                "number": number,
                "sent": piece["sent"].clip(lower=0),
                "received": piece["received"].clip(lower=0),
                "time": took,
                "wait": waits,
                "last": matched & (self._last.row[number] == piece.index.to_numpy())
                if len(self._last.row)
                else matched,
                "matched": matched,
            }
        )
        frame["calls"] = 1
        by = ["library", "operation"]
        for key, row in _sums(frame, by, ["calls", "sent", "received", "time"]):
            self._operations[key] += row
        own = frame[frame["matched"]]
        by = ["library", "operation", "communicator"]
        for key, row in _sums(own, by, ["calls", "sent", "time", "wait"]):
            self._collectives[key] += row
        for key, row in _sums(own[own["last"]], by, ["calls"]):
            self._numbers[key] += int(row[0])
        own = own.assign(ranks=self._last.calls[own["number"].to_numpy()])
        # handles of communicators come again in another job: those of one collective count
        for key, ranks in own.groupby(by, sort=False)["ranks"].max().items():
            self._ranks[key] = max(self._ranks[key], int(ranks))
        for key, row in _sums(own, _WHO, ["calls", "time", "wait", "last"]):
            self._waiting[key][:4] += row
        ends = own[own["last"]]
        for name, values in self._owner.items():
            values[ends["number"].to_numpy()] = ends[name].to_numpy()

    def collectives(self) -> pd.DataFrame:
        """Give a row for each operation and communicator, the one with most waiting first."""
        rows = [
            (*key, self._ranks[key], self._numbers[key], *values.tolist())
            for key, values in self._collectives.items()
        ]
        return _table(rows, COLLECTIVES, ["wait", "time"])

    def waiting(self) -> pd.DataFrame:
        """Give a row for each process, rank and function."""
        caused = pd.DataFrame(self._owner | {"caused": self._caused})
        for key, row in _sums(caused[caused["caused"] > 0], _WHO, ["caused"]):
            self._waiting[key][4] += row[0]
        processes = self._trace.processes
        nodes, names = node_names(self._trace), process_names(self._trace)
        rows = []
        for (process, rank, function), values in self._waiting.items():
            worker, node = UNKNOWN, UNKNOWN
            if 0 <= process < len(processes):
                of = processes["node"].iloc[int(process)]
                node = nodes[of] if 0 <= of < len(nodes) else UNKNOWN
                worker = names[int(process)]
            name = self._runs.functions[int(function)] if function >= 0 else UNKNOWN
            rows.append((worker, node, int(rank), name, *values.tolist()))
        return _table(rows, WAITING, ["caused", "wait"])

    def operations(self) -> pd.DataFrame:
        """Give a row for each function, the one with most time first."""
        rows = [(*key, *values.tolist()) for key, values in self._operations.items()]
        return _table(rows, OPERATIONS, ["time", "calls"])


def _sums(frame: pd.DataFrame, by: list[str], columns: list[str]) -> Any:
    found = frame.groupby(by, sort=False)[columns].sum()
    return zip(found.index.tolist(), found.to_numpy(np.int64), strict=True)


def _table(rows: list[tuple[Any, ...]], columns: Columns, by: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    table = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    text = [
        name for name in ("library", "operation", "worker", "node", "function") if name in table
    ]
    numbers = [name for name in columns if name not in text]
    return table.astype(dict.fromkeys(numbers, np.int64) | dict.fromkeys(text, object))


def _clocks(trace: Trace) -> pd.DataFrame:
    files = trace.reports["file"].astype(object).tolist()
    clocks = trace.report_clocks
    clocks = clocks[clocks["source"].astype(object).astype(str).str.contains("collectives")]
    clocks = clocks.drop_duplicates("report")
    return pd.DataFrame(
        {
            "report": pd.Series([str(files[row]) for row in clocks["report"]], dtype=object),
            "source": clocks["source"].astype(object).reset_index(drop=True),
            "bound": clocks["bound"].to_numpy(np.int64),
            "points": clocks["points"].to_numpy(np.int64),
        }
    )


def _findings(trace: Trace, tables: dict[str, pd.DataFrame], duration: int) -> list[Finding]:
    waiting, kinds = tables["waiting"], tables["collectives"]
    wait = int(waiting["wait"].sum())
    if not wait:
        return []
    ranks = len(waiting[["worker", "node", "rank"]].drop_duplicates())
    share = wait / (duration * ranks) if duration else 0.0
    times = waiting.groupby("function")["wait"].sum().astype(int).to_dict()
    worst = waiting.iloc[0]
    who = f"{worst['worker']} on {worst['node']} (rank {worst['rank']})"
    doing = "" if worst["function"] == UNKNOWN else f" in {worst['function']}"
    return [
        Finding(
            Severity.WARNING if share >= MUCH else Severity.NOTICE,
            "collectives",
            "waiting",
            tuple(range(min(10, len(waiting)))),
            f"Ranks waited {duration_text(wait)} for each other in {int(kinds['count'].sum()):,} "
            f"collectives, {share_text(100 * share)} of their time; {who} came last{doing} "
            f"{int(worst['last']):,} times, and {duration_text(int(worst['caused']))} of it was "
            "waiting for it.",
            "Give the rank that comes last less work, or see why its node is slower (balance).",
            **causes(trace).less("ranks that wait for others in collectives", times),
        )
    ]


def _contradictions(trace: Trace, clocks: pd.DataFrame) -> list[Finding]:
    """Tell of collectives that the corrected clocks contradict."""
    order = trace.causality
    order = order[(order["order"] == COLLECTIVE) & (order["violations"] > 0)]
    if not len(order) or not len(clocks):
        return []
    violations, worst = int(order["violations"].sum()), int(order["worst"].max())
    return [
        Finding(
            Severity.WARNING,
            "collectives",
            "clocks",
            tuple(clocks.index.tolist()),
            f"In {violations:,} comparisons a rank left a collective before another entered, by "
            f"up to {duration_text(worst)} more than the clocks' bounds allow.",
            "Compare times of different hosts no finer than that; see `report_clocks`.",
        )
    ]
