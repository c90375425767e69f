"""Analysis: in which lines was the time spent, by function?"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import (
    Answer,
    Columns,
    Finding,
    Severity,
    most_severe_first,
    told_as_one,
)
from dasf_hpc.analysis.event_loops import IDLE, KEPT, advice, blocked, read_calls
from dasf_hpc.analysis.executions import (
    Ints,
    Span,
    group_sums,
    read_executions,
    work_span,
)
from dasf_hpc.trace.holdings import Kind, held
from dasf_hpc.trace.names import UNKNOWN, natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import (
    EVERYTHING,
    OWN,
    ROLES,
    Chosen,
    Role,
    Source,
    Stacks,
    frame_name,
    functions_of,
    read_samples,
    read_stacks,
    source_of,
    sums,
)
from dasf_hpc.units import duration_text, share_text

#: Of a normal distribution 95 % lie so many standard deviations around the mean.
Z = 1.96

#: A line with this share of its function's time is named, in %, ...
HOT = 30.0
#: ... where the function has this share of all sampled time of tasks, in %, ...
MATTERS = 5.0
#: ... and so many samples.
ENOUGH = 50

#: Samples that stand for less of the time in which a function's tasks ran, in %, do not tell it.
SEEN = 70.0

#: Lines, and frames, that are listed of each function.
TOP = 10

#: Shares of the time from first task to last in which the scheduler's event loop is busy, in %,
#: from which that is told: who asks at random moments then waits as long as an answer takes, and
#: from the second share on four times as long (share / (1 - share), as of an M/M/1 queue).
BUSY, OVERLOADED = 50.0, 80.0

#: Blocked this long, ns, an event loop keeps others waiting noticeably; or so much in all, in %.
LONG_BLOCK, MUCH_BLOCKED = 1_000_000_000, 1.0

#: Where a call that never waits seems to block one, ns: so near are looks at tasks that held it up.
NEAR = 1_000_000_000

#: Stretches that are listed, and findings of event loops that are told.
STRETCHES, TOLD = 200, 4

#: What is no task's.
LOOPS, SCHEDULER, OTHERS = "(event loops of workers)", "(event loop of the scheduler)", "(no task)"

_HALF = (
    "half of the interval in which the share lies with 95 % confidence, by Wilson's score "
    "interval: z / (1 + z^2/n) * sqrt(p (1 - p) / n + z^2 / (4 n^2)), z = 1.96, with n as many "
    "samples of equal weight as say the same (Kish: the weights' sum squared over the sum of their "
    "squares)"
)
_TIME = "that samples stand for; none: they are of CPUs, which only count"
HOT_LINES: Columns = {
    "function": ("", "the function whose tasks ran"),
    "share": ("%", "of the function's sampled time"),
    "half_width": ("%", _HALF),
    "frame": (
        "",
        "what was called from the innermost line of own code; where that line itself ran, the own "
        "function it is in. Without own code: the first function of a package that was called, "
        "else the innermost call",
    ),
    "called_from": ("", "the innermost line of own code; none: there was no own code"),
    "time": ("ns", _TIME),
    "samples": ("", "samples in it and in what it calls"),
    "origin": ("", "whose code the frame is"),
}
FRAMES: Columns = {
    "function": ("", f"the function whose tasks ran; {LOOPS}, {SCHEDULER}, {OTHERS}: none did"),
    "frame": ("", "what is called"),
    "self": ("ns", f"time in itself {_TIME}"),
    "self_share": ("%", "of the function's sampled time: in itself"),
    "total": ("ns", f"time in it and in what it calls {_TIME}"),
    "total_share": ("%", "of the function's sampled time: in it and in what it calls"),
    "origin": ("", "whose code it is"),
    "module": ("", "module of a Python function, or the file of a program or library"),
    "file": ("", "file of its source"),
}
EVENT_LOOPS: Columns = {
    "role": ("", "whose event loops: workers or the scheduler"),
    "what": ("", "what they did"),
    "time": ("ns", "that samples stand for"),
    "share": ("%", "of the time in which they were busy"),
    "span_share": ("%", "of their whole time from first task to last"),
    "frame": (
        "",
        f"the innermost call in which most of it was spent; of {KEPT}: what tasks of the process "
        "ran most meanwhile",
    ),
    "samples": ("", "samples"),
}
BLOCKED: Columns = {
    "role": ("", "worker or scheduler"),
    "worker": ("", "whose event loop"),
    "node": ("", "its node"),
    "start": ("ns", "when it began"),
    "duration": ("ns", "how long it was seen in this call and no other"),
    "frame": (
        "",
        "the call; what is called again at once from the same line looks as one. Where the loop "
        "could go on but looks came late and tasks ran in its process: what those ran most, which "
        "most likely held the interpreter or the CPUs",
    ),
    "called_from": ("", "the innermost line of own code around it"),
    "what": ("", f"what that is for; {KEPT}: the call is a task's"),
    "samples": ("", "samples in a row"),
}
THREADS: Columns = {
    "worker": ("", "the process"),
    "node": ("", "its node"),
    "role": ("", "what the threads are for"),
    "threads": ("", "how many were seen"),
    "samples": ("", "samples of them"),
    "time": ("ns", _TIME),
}
_TABLES = {
    "hot": HOT_LINES,
    "frames": FRAMES,
    "event_loops": EVENT_LOOPS,
    "blocked": BLOCKED,
    "threads": THREADS,
}


@dataclass(frozen=True)
class Groups:
    """What samples are told apart by: functions of tasks, then what is no task's.

    Attributes
    ----------
    names
        Of functions, then `LOOPS`, `SCHEDULER` and `OTHERS`.
    scheduler
        Whether each row of ``processes`` is the scheduler.
    """

    names: list[str]
    scheduler: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def functions(self) -> int:
        """How many of them are functions."""
        return len(self.names) - 3

    def of(self, samples: pd.DataFrame) -> Ints:
        """Give the group of each row with ``process``, ``function`` and ``role``."""
        process, function = samples["process"].to_numpy(), samples["function"].to_numpy()
        known = (process >= 0) & (process < len(self.scheduler))
        scheduler = known & np.append(self.scheduler, False)[np.where(known, process, -1)]
        loop = samples["role"].to_numpy() == ROLES.index(Role.LOOP)
        found: Ints = np.where(function >= 0, function, self.functions + 2)
        return np.where(loop, np.where(scheduler, self.functions + 1, self.functions), found)


def read_groups(trace: Trace) -> Groups:
    """Read what samples are told apart by."""
    names, _ = functions_of(trace)
    scheduler = (trace.processes["role"] == "scheduler").to_numpy()
    return Groups([*names, LOOPS, SCHEDULER, OTHERS], scheduler)


def stacks(
    trace: Trace,
    function: str | None = None,
    worker: str | None = None,
    between: tuple[float, float] | None = None,
) -> Answer:
    """Say in which lines the time of each function was spent, and what event loops did.

    Parameters
    ----------
    trace
        The trace.
    function
        Only tasks of this function.
    worker
        Only this worker, by the name that is shown, or ``scheduler``.
    between
        Only what was sampled between two moments, s from the first task's start.

    Returns
    -------
    Answer
        Tables ``hot``: of each function the lines and calls that took most; ``frames``: calls by
        their own and their whole time; ``event_loops`` and ``blocked``; ``threads``.

    Raises
    ------
    ValueError
        If there is no such function or worker, or the moments are none.
    """
    chosen = chosen_of(trace, function, worker, between)
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    source = source_of(trace)
    if source is None:
        return Answer("stacks", tables, _TABLES, [], [f"Call stacks: {why_none(trace)}."])
    groups, tree = read_groups(trace), read_stacks(trace)
    by = ["process", "thread", "function", "role", "stack"]
    found = sums(trace, by, source, chosen)
    if not len(found):
        why = (
            "no sample was taken of what was asked for"
            if chosen != EVERYTHING
            else ("the samples that were recorded have no calls")
        )
        return Answer("stacks", tables, _TABLES, [], [f"Call stacks: {why}."])
    found["group"] = groups.of(found)
    tables["hot"] = _hot(tree, groups, found, source)
    tables["frames"] = _frames(tree, groups, found, source)
    tables["threads"] = _threads(trace, found, source)
    unanswered, findings = [], _hot_findings(tables["hot"], groups, found)
    if function is None and source.timed:
        span = work_span(trace, read_executions(trace, ()))
        span = Span(
            span.start if chosen.start is None else max(span.start, chosen.start),
            span.stop if chosen.stop is None else min(span.stop, chosen.stop),
        )
        loops = _Loops(trace, tree, groups, chosen, span, _loop_threads(found))
        tables["event_loops"], tables["blocked"] = loops.did(), loops.blocked()
        findings += loops.findings(tables["event_loops"], tables["blocked"])
        if worker is None and not loops.of_scheduler:
            unanswered.append(
                "The scheduler's event loop: no sample was taken of it: it was not sampled, or "
                "always waited."
            )
    elif function is None:
        unanswered.append(
            "Event loops: nsys samples threads only while they are on a CPU, and does not tell "
            "which are event loops."
        )
    if source.timed and worker is None and between is None:
        unanswered += _sampled_too_little(trace, groups, found)
    return Answer("stacks", tables, _TABLES, most_severe_first(findings), unanswered)


def _sampled_too_little(trace: Trace, groups: Groups, found: pd.DataFrame) -> list[str]:
    """Tell of functions that ran for much longer than their samples stand for."""
    runs = read_executions(trace, ("prefix",))
    sums = group_sums(runs.function, runs.duration, len(runs.functions)).tolist()
    ran = dict(zip(map(str, runs.functions), sums, strict=True))
    whole = max(1, sum(sums))
    of_tasks = found[found["group"] < groups.functions]
    # asynchronous tasks are sampled while they run, not while they wait
    on_loops = set(of_tasks["group"][np.isin(_lanes(of_tasks), _loop_threads(found))])
    told = []
    for group, one in of_tasks.groupby("group")[["weight", "samples"]].sum().iterrows():
        name = groups.names[int(str(group))]
        time = ran.get(name, 0)
        much = 100.0 * time >= MATTERS * whole and one["samples"] >= ENOUGH
        if much and group not in on_loops and 100.0 * one["weight"] < SEEN * time:
            seen = share_text(100.0 * one["weight"] / time)
            told.append(
                f"Lines of {name}: its samples stand for {seen} of its time. Tasks of some ms that "
                "hold the interpreter (GIL) are mostly looked at after they ended: shares of their "
                "first steps are too low."
            )
    return told


def why_none(trace: Trace) -> str:
    """Say why a trace has no samples, within a sentence."""
    holding = held(trace)[Kind.SAMPLES]
    python = (
        "the run recorded no samples of Python calls, as with `--stacks off` or an earlier dasf-hpc"
    )
    if not len(trace.reports):
        return python
    return f"{python}, and of nsys: {holding.reason or holding.state}"


def chosen_of(
    trace: Trace,
    function: str | None = None,
    worker: str | None = None,
    between: Sequence[float] | None = None,
) -> Chosen:
    """Give which samples are meant by names and moments as they are shown.

    Parameters
    ----------
    trace, function, worker, between
        As for `stacks`.

    Raises
    ------
    ValueError
        If there is no such function or worker, or the moments are none.
    """
    if function is not None:
        names, _ = functions_of(trace)
        if function not in names:
            raise ValueError(_no_such("function", function, names, "no task was recorded"))
    start = stop = None
    if between is not None:
        first, last = between
        if not (math.isfinite(first) and math.isfinite(last) and first < last):
            raise ValueError(
                f"between {first:g} and {last:g} is no time: give two moments, the earlier one "
                "first, in seconds from the first task's start"
            )
        origin = work_span(trace, read_executions(trace, ())).start
        start, stop = (origin + round(moment * 1e9) for moment in (first, last))
    process = None if worker is None else _process(trace, worker)
    return Chosen(function, process, start, stop)


def _process(trace: Trace, worker: str) -> int:
    """Give the row of a process by its name: as it is shown, alone or with its node, or Dask's."""
    short, nodes = process_names(trace), node_names(trace)
    rows = trace.processes.to_dict("records")
    of: dict[str, int] = {}
    for row, process in reversed(list(enumerate(rows))):
        node = int(process["node"])
        whole = f"{nodes[node]} {short[row]}" if 0 <= node < len(nodes) else short[row]
        names = [process["name"], process["address"], whole, short[row]]
        of |= {name: row for name in names if isinstance(name, str) and name}
    if worker not in of:
        raise ValueError(_no_such("worker", worker, short, "no process was recorded"))
    return of[worker]


def _no_such(kind: str, name: str, names: Sequence[str], none: str) -> str:
    nearest = difflib.get_close_matches(name, names, 1, 0.0)
    return f"there is no {kind} {name}: " + (f"the nearest is {nearest[0]}" if nearest else none)


def half_width(share: float, weight: float, squares: float) -> float:
    """Give half of the interval in which a share lies with 95 % confidence.

    Wilson's score interval (Wilson, 1927), with the number of equal samples that say as much as
    the weighted ones (Kish, 1965). Samples are taken as drawn by chance; those of one thread follow
    each other at even distances, which where anything makes shares more exact than that.

    Parameters
    ----------
    share
        Of the weight, from 0 to 1.
    weight, squares
        The sum of all weights, and of their squares.
    """
    if squares <= 0:
        return 1.0
    n = weight * weight / squares
    spread = math.sqrt(max(0.0, share * (1 - share)) / n + Z * Z / (4 * n * n))
    return Z / (1 + Z * Z / n) * spread


def hot_rows(tree: Stacks) -> tuple[Ints, Ints]:
    """Give of each row of ``stacks`` the innermost row of own code, and what that called.

    Returns
    -------
    own
        Row of the innermost own call that it is or lies within; -1: none.
    called
        The call that this one made and the row lies within; the own row where it is that itself.
        Without own code: the outermost call of a package, else the row itself.
    """
    own, called = np.full((2, len(tree)), -1, np.int64)
    mine, package = tree.of_origin(OWN), tree.of_origin("package")
    for level, rows in enumerate(tree.levels()):
        parent = tree.parent[rows]
        above = own[parent] if level else np.full(len(rows), -1)
        before = called[parent] if level else np.full(len(rows), -1)
        own[rows] = np.where(mine[rows], rows, above)
        # a call below own code is that which the own line made
        made = (above >= 0) & (before == above)
        first = np.where((before >= 0) & ~made, before, np.where(made | package[rows], rows, -1))
        called[rows] = np.where(mine[rows], rows, first)
    return own, np.where(called < 0, np.arange(len(tree)), called)


def _hot(tree: Stacks, groups: Groups, found: pd.DataFrame, source: Source) -> pd.DataFrame:
    own, called = hot_rows(tree)
    of_tasks = found[found["group"] < groups.functions]
    stack = of_tasks["stack"].to_numpy()
    line = own[stack]
    table = pd.DataFrame(
        {
            "group": of_tasks["group"].to_numpy(),
            "frame": tree.frame[called[stack]],
            # the same line may be in several rows: it is told by its frame and number
            "own": np.where(line >= 0, tree.frame[line], -1),
            "line": np.where(line >= 0, tree.line[line], -1),
            "samples": of_tasks["samples"].to_numpy(),
            "weight": of_tasks["weight"].to_numpy(),
            "row": line,
        }
    )
    keys = ["group", "frame", "own", "line"]
    table = table.groupby(keys, as_index=False).agg(
        {"samples": "sum", "weight": "sum", "row": "first"}
    )
    whole = of_tasks.groupby("group")[["weight", "squares"]].sum()
    table["all"] = whole["weight"].loc[table["group"]].to_numpy()
    table["squares"] = whole["squares"].loc[table["group"]].to_numpy()
    table = table.sort_values(["all", "group", "weight"], ascending=False, kind="stable")
    table = table.groupby("group", sort=False).head(TOP)
    names = tree.names()
    share = table["weight"].to_numpy(float) / np.maximum(table["all"].to_numpy(float), 1)
    half = [
        100.0 * half_width(float(part), float(whole), float(squares))
        for part, whole, squares in zip(share, table["all"], table["squares"], strict=True)
    ]
    result = {
        "function": [groups.names[group] for group in table["group"]],
        "share": 100.0 * share,
        "half_width": half,
        "frame": [names[frame] for frame in table["frame"]],
        "called_from": [tree.place(row) if row >= 0 else None for row in table["row"]],
        "origin": tree.frames["origin"].replace("", None).to_numpy()[table["frame"]],
        "samples": table["samples"].to_numpy(),
        "time": table["weight"].to_numpy() if source.timed else -1,
    }
    return pd.DataFrame(result, columns=list(HOT_LINES))


def _frames(tree: Stacks, groups: Groups, found: pd.DataFrame, source: Source) -> pd.DataFrame:
    parts = []
    totals = found.groupby("group")["weight"].sum().sort_values(ascending=False, kind="stable")
    for group, whole in totals.items():
        some = found[found["group"] == group]
        weights = group_sums(some["stack"].to_numpy(), some["weight"].to_numpy(), len(tree))
        table = tree.of_frames(weights)
        by_total = table.sort_values("total", ascending=False, kind="stable").head(TOP)
        table = table.loc[table.index.isin({*table.head(TOP).index, *by_total.index})]
        named = zip(table["function"], table["module"], table["origin"], strict=True)
        shares = {
            f"{what}_share": 100.0 * table[what].to_numpy() / max(1, int(whole))
            for what in ("self", "total")
        }
        parts.append(
            pd.DataFrame(
                {
                    "function": groups.names[int(str(group))],
                    "frame": [frame_name(*one) for one in named],
                    "module": table["module"].replace("", None).to_numpy(),
                    "file": table["file"].replace("", None).to_numpy(),
                    "origin": table["origin"].replace("", None).to_numpy(),
                    "self": table["self"].to_numpy() if source.timed else -1,
                    "self_share": shares["self_share"],
                    "total": table["total"].to_numpy() if source.timed else -1,
                    "total_share": shares["total_share"],
                },
                columns=list(FRAMES),
            )
        )
    return pd.concat(parts, ignore_index=True)


def _threads(trace: Trace, found: pd.DataFrame, source: Source) -> pd.DataFrame:
    names, nodes = _named(trace)
    table = found.groupby(["process", "role"], as_index=False).agg(
        {"thread": "nunique", "samples": "sum", "weight": "sum"}
    )
    result = pd.DataFrame(
        {
            "worker": [names[row] for row in table["process"]],
            "node": [nodes[row] for row in table["process"]],
            "role": [str(ROLES[role]) for role in table["role"]],
            "threads": table["thread"],
            "samples": table["samples"],
            "time": table["weight"] if source.timed else -1,
        },
        columns=list(THREADS),
    )
    order = sorted(
        result.index,
        key=lambda i: (natural(result["node"][i]), natural(result["worker"][i]), i),
    )
    return result.loc[order].reset_index(drop=True)


def _named(trace: Trace) -> tuple[list[str], list[str]]:
    """Name each row of ``processes`` and its node; the last names are of one that is not known."""
    nodes = [*node_names(trace), UNKNOWN]
    node = trace.processes["node"].to_numpy()
    known = (node >= 0) & (node < len(nodes) - 1)
    return [*process_names(trace), UNKNOWN], [
        *(nodes[n] for n in np.where(known, node, -1)),
        UNKNOWN,
    ]


def _hot_findings(hot: pd.DataFrame, groups: Groups, found: pd.DataFrame) -> list[Finding]:
    """Tell the hottest own line of each function that matters."""
    of_tasks = found[found["group"] < groups.functions]
    whole = max(1, int(of_tasks["weight"].sum()))
    weight = of_tasks.groupby("group")[["weight", "samples"]].sum()
    large = {
        groups.names[int(str(group))]
        for group, row in weight.iterrows()
        if 100.0 * row["weight"] >= MATTERS * whole and row["samples"] >= ENOUGH
    }
    named = hot[
        hot["function"].isin(large) & hot["called_from"].notna() & (hot["share"] >= HOT)
    ].drop_duplicates("function")
    return told_as_one(
        Severity.NOTICE,
        "stacks",
        "hot",
        named,
        "functions spend most of their time in one line",
        told,
        "Make that line faster first: nothing else in the function counts as much.",
    )


def told(row: dict[str, Any]) -> str:
    """Tell a row of table ``hot``: ``68 % of filter_trace is scipy.signal.hilbert, …``."""
    share = (
        f"{share_text(row['share'])} of {row['function']} (± {row['half_width']:.1f} points) is "
    )
    time = f" ({duration_text(row['time'])})" if row["time"] >= 0 else ""
    if row["origin"] == OWN:
        return f"{share}{row['called_from']} itself, in {row['frame']}{time}"
    return f"{share}{row['frame']}, called from {row['called_from']}{time}"


def _loop_threads(found: pd.DataFrame) -> Ints:
    """Give the threads of event loops, as `_lanes` numbers them."""
    return np.unique(_lanes(found[found["role"] == ROLES.index(Role.LOOP)]))


def _lanes(samples: pd.DataFrame) -> Ints:
    """Number the thread of each row with ``process`` and ``thread``."""
    process, thread = samples["process"].to_numpy(), samples["thread"].to_numpy()
    lanes: Ints = process << 40 | (thread & ((1 << 40) - 1))
    return lanes


def _machines(trace: Trace) -> Ints:
    """Number the process of each row of ``processes``; workers of a script's own may share one."""
    pids, nodes = (trace.processes[name].to_numpy(np.int64) for name in ("pid", "node"))
    numbers = np.arange(len(pids))
    _, first, which = np.unique([nodes, pids], axis=1, return_index=True, return_inverse=True)
    return np.append(np.where(pids >= 0, first[which.reshape(-1)], numbers), -1)


class _Loops:
    """Event loops of workers and the scheduler, in a stretch of time."""

    def __init__(
        self,
        trace: Trace,
        tree: Stacks,
        groups: Groups,
        chosen: Chosen,
        span: Span,
        threads: Ints,
    ) -> None:
        self._trace, self._tree, self._groups, self._span = trace, tree, groups, span
        self._calls = read_calls(tree)
        within = Chosen(None, chosen.process, span.start, span.stop + 1)
        self._own, self._called = hot_rows(tree)
        self._machine = _machines(trace)
        parts, held = [], []
        idle: dict[int, list[int]] = {}
        loops: set[tuple[int, int]] = set()
        for part in read_samples(trace, Source.CALLS, within):
            # none stands for more than what is looked at
            most = np.maximum(0, part["start"] - span.start)
            part = part.assign(weight=np.minimum(part["weight"], most))
            part["machine"] = self._machine[part["process"].to_numpy()]
            of_loops = np.isin(_lanes(part), threads)
            of_tasks = part["role"] == ROLES.index(Role.TASK)
            held.append(part[~of_loops & (part["late"] > 0) & of_tasks])
            # also what asynchronous tasks did, which run in an event loop's thread
            part = part[of_loops]
            part = part.assign(group=groups.of(part.assign(role=ROLES.index(Role.LOOP))))
            waits = self._calls.idle[part["stack"].to_numpy()]
            for group, some in part[waits].groupby("group"):
                one = idle.setdefault(int(str(group)), [0, 0])
                one[0] += int(some["weight"].sum())
                one[1] += len(some)
            pairs = part[["process", "group"]].drop_duplicates()
            loops |= set(zip(pairs["process"].tolist(), pairs["group"].tolist(), strict=True))
            parts.append(part[~waits])
        self._busy, self._idle, self._loops = pd.concat(parts), idle, loops
        self._held = pd.concat(held)
        looks = ["machine", "start"]
        stack = self._busy["stack"].to_numpy()
        late = (self._busy["late"] > 1) | ((self._busy["late"] > 0) & self._calls.quick[stack])
        late = late.to_numpy() & ~self._calls.holds[stack]
        kept = late.copy()
        kept[late] = pd.MultiIndex.from_frame(self._busy.loc[late, looks]).isin(
            pd.MultiIndex.from_frame(self._held[looks].drop_duplicates())
        )
        self._busy["kept"] = kept
        # those that always waited may be in no sample
        workers = (trace.processes["role"] == "worker").to_numpy()
        # workers of one process share its loop
        alone = len(np.unique(self._machine[:-1][workers]))
        self._workers = alone if chosen.process is None else 1

    @property
    def of_scheduler(self) -> bool:
        """Whether the scheduler's was sampled."""
        return any(group == self._groups.functions + 1 for _, group in self._loops)

    def did(self) -> pd.DataFrame:
        """Give table ``event_loops``."""
        rows = []
        names = self._tree.names()
        for group, role in ((1, "scheduler"), (0, "worker")):
            number = self._groups.functions + group
            some = self._busy[self._busy["group"] == number]
            loops = sum(of == number for _, of in self._loops)
            if not loops:
                continue
            loops = max(loops, self._workers) if role == "worker" else loops
            busy, whole = int(some["weight"].sum()), max(1, loops * self._span.duration)
            stack = some["stack"].to_numpy()
            parts = pd.DataFrame(
                {
                    "activity": np.where(
                        some["kept"], self._calls.words.index(KEPT), self._calls.activity[stack]
                    ),
                    "frame": self._tree.frame[stack],
                    "weight": some["weight"].to_numpy(),
                    "samples": 1,
                }
            )
            by_frame = parts.groupby(["activity", "frame"], as_index=False).sum()
            by_frame = by_frame.sort_values("weight", ascending=False, kind="stable")
            for activity, one in sorted(
                by_frame.groupby("activity"), key=lambda pair: -int(pair[1]["weight"].sum())
            ):
                time = int(one["weight"].sum())
                what, frame = self._calls.words[int(str(activity))], int(one["frame"].iloc[0])
                if what == KEPT:
                    looks = pd.MultiIndex.from_frame(some.loc[some["kept"], ["machine", "start"]])
                    meanwhile = pd.MultiIndex.from_frame(self._held[["machine", "start"]])
                    frame = int(self._tree.frame[self._most(meanwhile.isin(looks))])
                rows.append(
                    {
                        "role": role,
                        "what": what,
                        "time": time,
                        "share": 100.0 * time / max(1, busy),
                        "span_share": 100.0 * time / whole,
                        "frame": names[frame],
                        "samples": int(one["samples"].sum()),
                    }
                )
            time, count = self._idle.get(number, (0, 0))
            idle = {"role": role, "what": IDLE, "time": time, "share": float("nan")}
            if count:
                share = 100.0 * time / whole
                rows.append(idle | {"span_share": share, "frame": None, "samples": count})
        return pd.DataFrame(rows, columns=list(EVENT_LOOPS))

    def blocked(self) -> pd.DataFrame:
        """Give table ``blocked``, the longest first."""
        found = blocked(self._tree, self._calls, self._busy)
        found["duration"] = found["stop"] - found["start"]
        found = found.sort_values("duration", ascending=False, kind="stable").head(STRETCHES)
        names, nodes = _named(self._trace)
        own, frames = self._own, self._tree.names()
        scheduler = np.append(self._groups.scheduler, False)
        rows = found["stack"].to_numpy().copy()
        what = self._calls.activity[rows]
        of_process = {
            process: some.sort_values("start")
            for process, some in self._busy[
                self._busy["process"].isin(found["process"].unique())
            ].groupby("process")
        }
        for place, (process, start, stop) in enumerate(
            zip(found["process"], found["start"], found["stop"], strict=True)
        ):
            busy = of_process[process]
            busy = busy.iloc[slice(*np.searchsorted(busy["start"], (start, stop), "right"))]
            mostly = 2 * busy.loc[busy["kept"], "weight"].sum() > busy["weight"].sum()
            # a short task may end just before each look that it had made wait: then those around
            # tell what tasks do
            near = 0 if mostly else NEAR
            at = self._held["start"]
            meanwhile = (self._held["machine"] == self._machine[process]) & (at > start - near)
            meanwhile &= at <= stop + near
            if mostly or (self._calls.quick[rows[place]] and meanwhile.sum() >= len(busy)):
                what[place] = self._calls.words.index(KEPT)
                rows[place] = self._most(meanwhile)
        result = pd.DataFrame(
            {
                "role": ["scheduler" if scheduler[p] else "worker" for p in found["process"]],
                "worker": [names[p] for p in found["process"]],
                "node": [nodes[p] for p in found["process"]],
                "start": found["start"].to_numpy(),
                "duration": found["duration"].to_numpy(),
                "frame": [frames[self._tree.frame[row]] for row in rows],
                "called_from": [
                    self._tree.place(int(own[row])) if own[row] >= 0 else None for row in rows
                ],
                "what": [self._calls.words[one] for one in what],
                "samples": found["samples"].to_numpy(),
            },
            columns=list(BLOCKED),
        )
        self._process_of = found["process"].to_numpy()
        return result

    def _most(self, which: Any) -> int:
        """Give the row of ``stacks`` of what tasks ran most in some of the late looks."""
        held = self._held[which]
        of_frame = held.groupby(self._tree.frame[self._called[held["stack"].to_numpy()]])
        heaviest = of_frame.get_group(of_frame["weight"].sum().idxmax())
        return int(self._called[heaviest["stack"].iloc[0]])

    def findings(self, did: pd.DataFrame, blocks: pd.DataFrame) -> list[Finding]:
        """Tell of a busy scheduler, and of event loops that were blocked."""
        found = []
        busy = did[(did["role"] == "scheduler") & ~did["what"].isin([IDLE, KEPT])]
        share = float(busy["span_share"].sum())
        if share >= BUSY:
            named = [
                f"{share_text(row['share'])} of that {row['what']}"
                for row in busy.head(3).to_dict("records")
            ]
            found.append(
                Finding(
                    Severity.SERIOUS if share >= OVERLOADED else Severity.WARNING,
                    "stacks",
                    "event_loops",
                    tuple(int(row) for row in busy.index),
                    f"The scheduler's event loop was busy {share_text(share)} of the time from "
                    f"first task to last: {', '.join(named)}.",
                    advice(str(busy["what"].iloc[0])),
                    cause="the scheduler is busy",
                )
            )
        # what holds up most, first
        kinds = [some for _, some in blocks.groupby(["role", "frame", "what"], sort=False)]
        for some in sorted(kinds, key=lambda some: -int(some["duration"].sum())):
            role, frame = some["role"].iloc[0], some["frame"].iloc[0]
            whole = int(some["duration"].sum())
            longest = some.iloc[0]
            workers = some["worker"].nunique()
            bad = longest[
                "duration"
            ] >= LONG_BLOCK or 100.0 * whole >= MUCH_BLOCKED * workers * max(1, self._span.duration)
            whose = (
                "The scheduler's event loop"
                if role == "scheduler"
                else (
                    f"The event loop of {longest['node']} {longest['worker']}"
                    + (f" and of {workers - 1} more" if workers > 1 else "")
                )
            )
            place = longest["called_from"]
            times = f"{len(some)} times, " if len(some) > 1 else ""
            kept = longest["what"] == KEPT
            by = f"kept {KEPT}, most likely by {frame}"
            sentence = (
                f"{whose} was {by if kept else f'blocked by {frame}'}"
                + (f" ({'' if kept else 'called from '}{place})" if isinstance(place, str) else "")
                + f": {times}{duration_text(whole)} in all, the longest "
                f"{duration_text(longest['duration'])} from "
                f"{(longest['start'] - self._origin) / 1e9:,.3f} s."
            )
            found.append(
                Finding(
                    Severity.WARNING if bad else Severity.NOTICE,
                    "stacks",
                    "blocked",
                    tuple(int(row) for row in some.index[:100]),
                    sentence,
                    "Nothing else is answered meanwhile: heartbeats, data for others, new tasks. "
                    + advice(str(longest["what"])),
                    start=int(longest["start"]),
                    stop=int(longest["start"] + longest["duration"]),
                    process=int(self._process_of[some.index[0]]),
                    cause=f"{frame} {'holds up' if kept else 'blocks'} an event loop",
                )
            )
        return found[:TOLD]

    @property
    def _origin(self) -> int:
        return work_span(self._trace, read_executions(self._trace, ())).start
