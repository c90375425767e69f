"""Analysis: what did the run's length depend on?

From the task that ended last, backwards: what a task had to wait for is whatever ended last of the
tasks whose results it needs, the task before it in its thread and, where nothing at all was being
executed, the last one before that. The path covers the time from the first task to the last without
a hole; making anything shorter that is not on it does not make the run shorter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import WORST, Answer, Columns, Finding, Severity
from dasf_hpc.analysis.cause import LEAST
from dasf_hpc.analysis.causes import DELAYS, causes
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, bounds, read_executions, workers
from dasf_hpc.analysis.graph import Graph, chain, could_run, first_known
from dasf_hpc.analysis.savings import savings
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: A function on the path is named from this share.
NAMED_SHARE = 25.0

#: What tasks on the path wait for, by part of their delay.
_WAITED_FOR = {
    "nothing_submitted": "the script",
    "deserialising": "deserialising",
    "disk": "results on disk",
    "paused": "memory",
    "transferring": "data of other workers",
    "scheduling": "the scheduler",
}

KINDS: dict[str, str] = {
    "task": "a task runs",
    "transfer": "the next task's worker fetches data",
    "scheduling": "nothing on the path runs: the scheduler or a worker hands over",
    "handover": "two hosts hand over in less time than their clocks agree to",
    "script": "no task runs anywhere: the script does something else",
}

_FUNCTIONS: Columns = {
    "function": ("", "name of the function; of other segments their kind, in brackets"),
    "kind": ("", "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())),
    "time": ("ns", "on the path"),
    "share": ("%", "of the path: of the time from the first task to the last"),
    "segments": ("", "segments of the path"),
}
_PATH: Columns = {
    "kind": _FUNCTIONS["kind"],
    "task": ("", "row of table tasks; of other segments that of the task that is waiting"),
    "key": ("", "code of the task's key: a row of dictionary keys; -1: not known"),
    "function": _FUNCTIONS["function"],
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "start": ("ns", "the segment begins"),
    "stop": ("ns", "it ends, and the next one begins"),
    "duration": ("ns", "its length"),
    "bound": ("ns", "how far the length may be wrong: 0 on one clock; -1: not known"),
}


def critical_path(trace: Trace) -> Answer:
    """Give the chain of tasks and hand-overs that the run's length depended on.

    Returns
    -------
    Answer
        Tables ``functions`` (share of each) and ``path`` (its segments in the order of time, which
        tile it exactly).

    Notes
    -----
    Found by replaying the run backwards, as D. Böhme et al., "Scalable critical-path based
    performance analysis", IPDPS 2012, do for message passing.
    """
    runs = read_executions(trace)
    found = workers(trace, runs)
    columns = {"functions": _FUNCTIONS, "path": _PATH}
    if not len(runs):
        empty = {name: pd.DataFrame(columns=list(c)) for name, c in columns.items()}
        reason = "No task was executed in this run."
        return Answer("critical_path", empty, columns, [], [reason])
    graph = savings(trace).graph
    path = _table(_walk(graph, _Gaps(trace, graph, runs)), graph, runs, found)
    functions = (
        path.groupby(["function", "kind"], sort=False)
        .agg(time=("duration", "sum"), segments=("duration", "size"))
        .reset_index()
        .sort_values("time", ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    whole = int(path["duration"].sum())
    functions["share"] = 100.0 * functions["time"] / whole if whole else 0.0
    functions = functions[list(_FUNCTIONS)]
    unanswered = []
    if not trace.rows("dependencies"):
        unanswered.append(
            "What tasks needed of each other: no dependency was recorded; the path follows threads."
        )
    return Answer(
        "critical_path",
        {"functions": functions, "path": path},
        columns,
        _findings(trace, runs, functions, path, whole),
        unanswered,
    )


class _Gaps:
    """Tells what happened between the end of one task and the beginning of the next."""

    def __init__(self, trace: Trace, graph: Graph, runs: Executions) -> None:
        self._graph = graph
        self._keys = runs.key
        self._able = could_run(trace, runs, first_known(trace, runs))
        self._bounds = bounds(trace)
        self._clocks = trace.processes["clock"].to_numpy(np.int64)
        transfers = trace.table("transfers", ["start", "stop", "process", "direction"])
        transfers = transfers[transfers["direction"] == "incoming"]
        self._fetched = {
            int(str(process)): Covered(part["start"].to_numpy(), part["stop"].to_numpy())
            for process, part in transfers.groupby("process")
        }

    def bound(self, one: int, other: int) -> int:
        """Say how far the time between events of two processes may be wrong; -1: not known."""
        known = range(len(self._clocks))
        if one == other:
            return 0
        if one not in known or other not in known:
            return -1
        if self._clocks[one] == self._clocks[other] >= 0:
            return 0
        pair = self._bounds[[one, other]]
        return -1 if (pair < 0).any() else int(pair.sum())

    def could_run(self, task: int, time: int) -> bool:
        """Say whether a task that no worker knew of could run already: the scheduler had it.

        It could when all it needs was there; one that needs nothing, when a worker had another
        task of its array or collection.
        """
        graph = self._graph
        if graph.first_dependency[task + 1] > graph.first_dependency[task]:
            return True
        key = int(self._keys[graph.rows[task]])
        return key >= 0 and bool(self._able[key] < time)

    def fetched(self, process: int, start: int, stop: int) -> int:
        """Say for how long in a stretch of time a worker fetched data, ns."""
        covered = self._fetched.get(process)
        return int(covered.between(start, stop)) if covered else 0


#: A segment: kind, position of the task, start, stop, bound.
_Segment = tuple[str, int, int, int, int]


def _walk(graph: Graph, gaps: _Gaps) -> list[_Segment]:
    segments: list[_Segment] = []
    time = int(graph.stop.max())
    for current, previous in chain(graph):
        start = min(time, int(graph.start[current]))
        segments.append(("task", current, start, time, 0))
        if previous < 0:
            first = int(graph.start[0])
            if first < start:
                segments.append(("script", current, first, start, 0))
            break
        needs = graph.dependencies[
            graph.first_dependency[current] : graph.first_dependency[current + 1]
        ]
        end = min(start, int(graph.stop[previous]))
        if end < start:
            needed = bool((needs == previous).any())
            segments += _between(graph, gaps, previous, current, end, start, needed)
        time = end
    return segments[::-1]


def _between(
    graph: Graph, gaps: _Gaps, previous: int, current: int, end: int, start: int, needed: bool
) -> list[_Segment]:
    """Say what happened between two tasks of the path, the latest first."""
    one, other = int(graph.process[previous]), int(graph.process[current])
    bound = gaps.bound(one, other)
    if bound > 0 and start - end <= bound:
        return [("handover", current, end, start, bound)]
    on_thread = int(graph.same_thread[current]) == previous
    if not needed and not on_thread and not gaps.could_run(current, end):
        return [("script", current, end, start, bound)]
    fetched = gaps.fetched(other, end, start) if needed else 0
    middle = start - fetched
    kinds = [
        ("transfer", current, middle, start, bound),
        ("scheduling", current, end, middle, bound),
    ]
    return [segment for segment in kinds if segment[3] > segment[2]]


def _table(
    segments: list[_Segment], graph: Graph, runs: Executions, found: pd.DataFrame
) -> pd.DataFrame:
    place = np.array([s[1] for s in segments])
    rows = graph.rows[place]
    names, nodes = found["worker"].to_dict(), found["node"].to_dict()
    process = graph.process[place].tolist()
    kinds = [s[0] for s in segments]
    functions = [
        runs.functions[f] if kind == "task" else f"({kind})"
        for kind, f in zip(kinds, graph.function[place].tolist(), strict=True)
    ]
    data: dict[str, Any] = {
        "kind": pd.Series(kinds, dtype=str),
        "task": rows,
        "key": runs.key[rows],
        "function": pd.Series(functions, dtype=str),
        "worker": pd.Series([names[p] for p in process], dtype=str),
        "node": pd.Series([nodes[p] for p in process], dtype=str),
        "start": np.array([s[2] for s in segments], np.int64),
        "stop": np.array([s[3] for s in segments], np.int64),
    }
    data["duration"] = data["stop"] - data["start"]
    data["bound"] = np.array([s[4] for s in segments], np.int64)
    return pd.DataFrame(data)


def _handing_over(trace: Trace, path: pd.DataFrame) -> str:
    """Say what the tasks on the path waited for while nothing on it ran."""
    known = causes(trace)
    graph = known.savings.graph
    place = np.empty(len(graph), np.int64)
    place[graph.rows] = np.arange(len(graph))
    waiting = path[path["kind"] == "scheduling"].groupby("task")["duration"].sum()
    at, limit = place[waiting.index.to_numpy()], waiting.to_numpy()
    times: dict[str, int] = {}
    for part in DELAYS:
        time = np.minimum(known.delays[part][at], limit)
        limit = limit - time
        times[_WAITED_FOR[part]] = int(time.sum())
    times["a thread that was busy"] = int(limit.sum())
    largest = sorted(times, key=lambda words: -times[words])[:WORST]
    return ", ".join(
        f"{duration_text(times[words])} for {words}"
        for words in largest
        if times[words] >= LEAST * known.savings.recorded
    )


def _findings(
    trace: Trace, runs: Executions, functions: pd.DataFrame, path: pd.DataFrame, whole: int
) -> list[Finding]:
    steps = {
        "task": "Make it faster, or split its tasks so that they run side by side; "
        "`dasf-hpc analyze what_if` says what that would bring.",
        "transfer": "Move less between workers: see `dasf-hpc analyze communication`.",
        "scheduling": "Make fewer and larger tasks.",
        "handover": "The clocks do not agree well enough to say more.",
        "script": "See what the script does between its computations.",
    }
    kinds = {
        "transfer": "transferring",
        "scheduling": "small" if causes(trace).of("small") else "scheduling",
        "script": "nothing_submitted",
    }
    found = []
    for row, part in functions[functions["share"] >= NAMED_SHARE].iterrows():
        kind = str(part["kind"])
        told: dict[str, Any] = {}
        said = part["function"] if kind == "task" else KINDS[kind]
        if kind == "scheduling" and (waits := _handing_over(trace, path)):
            said = f"nothing on it runs; its tasks wait {waits}"
        if kind == "task":
            told = causes(trace).faster(runs.functions.index(part["function"])).told
        elif kind in kinds:
            told = causes(trace).told(kinds[kind])
        found.append(
            Finding(
                Severity.SERIOUS if part["share"] >= 50 else Severity.WARNING,
                "critical_path",
                "functions",
                (int(str(row)),),
                f"{share_text(part['share'])} of the critical path ({duration_text(part['time'])} "
                f"of {duration_text(whole)}): {said}.",
                steps[kind],
                **told,
            )
        )
    return found
