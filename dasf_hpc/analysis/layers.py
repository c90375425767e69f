"""Analysis: how do the functions depend on each other, and what goes between them?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.executions import (
    UNKNOWN,
    Executions,
    Ints,
    group_sums,
    layer_of,
    read_executions,
)
from dasf_hpc.analysis.held import RECEIVED, held
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import bytes_text, share_text

#: Keys whose texts are read at once.
_AT_ONCE = 1 << 17
#: What moved between workers for one edge is told of from this size on, bytes, and this share of
#: what its tasks need, %.
MOVED, MOVED_SHARE = 10_000_000, 50.0

LAYERS: Columns = {
    "function": ("", "the function"),
    "layer": ("", "what the keys of its tasks have in common: one call of map, one array"),
    "tasks": ("", "its tasks"),
    "executing": ("ns", "their executing time, in sum"),
    "bytes": ("bytes", "size of their results"),
    "needed": ("bytes", "size of what they need, in sum over tasks"),
    "moved": ("bytes", "of that: what workers received from others for them"),
}
EDGES: Columns = {
    "source": ("", "whose results are needed"),
    "target": ("", "whose tasks need them"),
    "dependencies": ("", "pairs of a task and a result that it needs"),
    "results": ("", "different results among these"),
    "bytes": ("bytes", "size of the results, in sum over the pairs"),
    "moved": ("bytes", "size of those that a worker received from another one for such a task"),
    "moves": ("", "how many these were"),
}


def layers(trace: Trace, by: str = "function") -> Answer:
    """Say how functions depend on each other, and what goes between them.

    Parameters
    ----------
    trace
        The trace.
    by
        ``function``, or ``layer``: tasks of one array, collection or call of map.

    Returns
    -------
    Answer
        Tables ``layers``, those of most executing time first, and ``edges``, those of most bytes
        first.

    Raises
    ------
    ValueError
        If there is no such `by`.

    Notes
    -----
    Of a task that was executed several times the last execution that gave a result counts. A result
    that a worker received counts for the task there that needs it and began first.
    """
    if by not in ("function", "layer"):
        raise ValueError(f"layers cannot be told apart by {by}")
    runs = read_executions(trace)
    groups = _groups(trace, runs, by)
    pairs = _pairs(trace, runs, groups)
    table = _layers(runs, groups, pairs)
    if by == "function":
        table = table.drop(columns="layer")
    edges = _edges(groups, pairs)
    unanswered = []
    if not len(runs):
        unanswered.append("No task was executed in this run.")
    elif not trace.rows("dependencies"):
        unanswered.append("What tasks needed of each other: no dependency was recorded.")
    elif not trace.rows("transitions"):
        unanswered.append(
            "What went between workers for a function: what workers did with their tasks was not "
            "recorded in this run."
        )
    return Answer(
        "layers",
        {"layers": table, "edges": edges},
        {"layers": LAYERS, "edges": EDGES},
        _findings(edges),
        unanswered,
    )


@dataclass(frozen=True)
class _Groups:
    """Groups of tasks: of each execution, of each key, and what they are called.

    Attributes
    ----------
    of_task
        By row of ``tasks``.
    of_key
        By code of the key; -1: none was executed.
    last
        By code of the key the row of its last execution that gave a result; -1: none did.
    names
        What they are called.
    functions
        Of each the name of its function.
    """

    of_task: Ints
    of_key: Ints
    last: Ints
    names: list[str]
    functions: list[str]


def _groups(trace: Trace, runs: Executions, by: str) -> _Groups:
    top = int(runs.key.max(initial=-1)) + 1
    last = np.full(top + 1, -1, np.int64)
    gave = np.flatnonzero(runs.in_state("memory") & (runs.key >= 0))
    gave = gave[np.argsort(runs.start[gave], kind="stable")]
    last[runs.key[gave]] = gave
    last[-1] = -1
    of_task = runs.function.astype(np.int64)
    names = functions = list(runs.functions)
    if by == "layer":
        of_task, names, functions = _by_layer(trace, runs)
    of_key = np.full(top + 1, -1, np.int64)
    keyed = runs.key >= 0
    of_key[runs.key[keyed]] = of_task[keyed]
    of_key[-1] = -1
    return _Groups(of_task, of_key, last, names, functions)


def _by_layer(trace: Trace, runs: Executions) -> tuple[Ints, list[str], list[str]]:
    """Group tasks by what their keys have in common."""
    keys = np.unique(runs.key[runs.key >= 0])
    codes: dict[str, int] = {}
    of_key = np.zeros(int(keys.max(initial=0)) + 1, np.int64)
    for first in range(0, len(keys), _AT_ONCE):
        some = keys[first : first + _AT_ONCE]
        names = [layer_of(text or UNKNOWN).removeprefix("('") for text in trace.texts("keys", some)]
        of_key[some] = [codes.setdefault(name, len(codes)) for name in names]
    unknown = codes.setdefault(UNKNOWN, len(codes)) if (runs.key < 0).any() else -1
    of_task = np.where(runs.key >= 0, of_key[np.maximum(runs.key, 0)], unknown)
    function = np.zeros(len(codes), np.int64)
    function[of_task] = runs.function
    return of_task, list(codes), [runs.functions[f] for f in function.tolist()]


@dataclass(frozen=True)
class _Pairs:
    """What is added up over dependencies, by edge (source times the number of groups plus target).

    Attributes
    ----------
    edge
        The edges that there are.
    count, results, nbytes
        Pairs of each, different results among them, and their sizes in sum.
    moves, moved
        Results that workers received for it, and their sizes in sum.
    """

    edge: Ints
    count: Ints
    results: Ints
    nbytes: Ints
    moves: Ints
    moved: Ints


def _pairs(trace: Trace, runs: Executions, groups: _Groups) -> _Pairs:
    top, width = len(groups.of_key) - 1, max(1, len(groups.names))
    whole = held(trace)
    came = np.flatnonzero(whole.how == RECEIVED)
    place = whole.key[came].astype(np.int64) << 32 | whole.process[came]
    order = np.argsort(place, kind="stable")
    came, place = came[order], place[order]
    # of each received result: when the first task began that needs it there, and its edge
    first_start = np.full(len(came), np.iinfo(np.int64).max)
    first_edge = np.full(len(came), -1, np.int64)
    sums: dict[int, list[int]] = {}
    numbers: dict[int, int] = {}
    seen: list[Ints] = []
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        key, need = piece["key"].to_numpy(np.int64), piece["dependency"].to_numpy(np.int64)
        known = (key >= 0) & (key < top) & (need >= 0) & (need < top)
        key, need = key[known], need[known]
        source, target = groups.of_key[need], groups.of_key[key]
        both = (source >= 0) & (target >= 0)
        key, need, edge = key[both], need[both], (source * width + target)[both]
        made = groups.last[need]
        size = np.where(made >= 0, np.maximum(0, runs.nbytes[made]), 0)
        edges, code = np.unique(edge, return_inverse=True)
        count = np.bincount(code, minlength=len(edges))
        total = group_sums(code, size, len(edges))
        for one, pairs, nbytes in zip(edges.tolist(), count.tolist(), total.tolist(), strict=True):
            so_far = sums.setdefault(one, [0, 0])
            so_far[0] += pairs
            so_far[1] += nbytes
        number = np.array([numbers.setdefault(one, len(numbers)) for one in edges.tolist()])
        seen.append(np.unique(number[code] << 32 | need if len(edges) else edge))
        _take_moves(runs, groups, (key, need, edge), place, first_start, first_edge)
    edge = np.array(sorted(sums), np.int64)
    distinct = np.zeros(len(edge), np.int64)
    if seen and len(edge):
        of = np.bincount(np.unique(np.concatenate(seen)) >> 32, minlength=len(numbers))
        distinct = of[[numbers[one] for one in edge.tolist()]]
    moves, moved = np.zeros(len(edge), np.int64), np.zeros(len(edge), np.int64)
    told = first_edge >= 0
    at = np.searchsorted(edge, first_edge[told])
    np.add.at(moves, at, 1)
    np.add.at(moved, at, whole.nbytes[came[told]])
    return _Pairs(
        edge,
        np.array([sums[one][0] for one in edge.tolist()], np.int64),
        distinct,
        np.array([sums[one][1] for one in edge.tolist()], np.int64),
        moves,
        moved,
    )


def _take_moves(
    runs: Executions,
    groups: _Groups,
    pairs: tuple[Ints, Ints, Ints],
    place: Ints,
    first_start: Ints,
    first_edge: Ints,
) -> None:
    """Find, for received results, the first task that needs them there."""
    key, need, edge = pairs
    ran = groups.last[key]
    executed = ran >= 0
    need, edge, ran = need[executed], edge[executed], ran[executed]
    wanted = need << 32 | runs.process[ran]
    at = np.searchsorted(place, wanted)
    inside = at < len(place)
    inside[inside] = place[at[inside]] == wanted[inside]
    at, edge, start = at[inside], edge[inside], runs.start[ran[inside]]
    order = np.lexsort((start, at))
    at, edge, start = at[order], edge[order], start[order]
    one = np.append(True, at[1:] != at[:-1])[: len(at)]
    at, edge, start = at[one], edge[one], start[one]
    earlier = start < first_start[at]
    first_start[at[earlier]] = start[earlier]
    first_edge[at[earlier]] = edge[earlier]


def _layers(runs: Executions, groups: _Groups, pairs: _Pairs) -> pd.DataFrame:
    width = len(groups.names)
    count = np.bincount(groups.of_task, minlength=width)
    keys = np.bincount(groups.of_key[groups.of_key >= 0], minlength=width)
    keys = np.where(keys > 0, keys, count)  # keys that are not known are as many as executions
    executing = group_sums(groups.of_task, runs.duration, width)
    last = groups.last[groups.last >= 0]
    made = group_sums(groups.of_task[last], np.maximum(0, runs.nbytes[last]), width)
    target = pairs.edge % max(1, width)
    needed, moved = group_sums(target, pairs.nbytes, width), group_sums(target, pairs.moved, width)
    rows = [
        {
            "function": groups.functions[g],
            "layer": groups.names[g],
            "tasks": int(keys[g]),
            "executing": int(executing[g]),
            "bytes": int(made[g]),
            "needed": int(needed[g]),
            "moved": int(moved[g]),
        }
        for g in np.flatnonzero(count).tolist()
    ]
    table = pd.DataFrame(rows, columns=list(LAYERS))
    return table.sort_values("executing", ascending=False, kind="stable").reset_index(drop=True)


def _edges(groups: _Groups, pairs: _Pairs) -> pd.DataFrame:
    width = max(1, len(groups.names))
    names: NDArray[Any] = np.array([*groups.names, ""], object)
    table = pd.DataFrame(
        {
            "source": names[pairs.edge // width],
            "target": names[pairs.edge % width],
            "dependencies": pairs.count,
            "results": pairs.results,
            "bytes": pairs.nbytes,
            "moved": pairs.moved,
            "moves": pairs.moves,
        }
    )
    order = table.sort_values(["bytes", "dependencies"], ascending=False, kind="stable")
    return order.reset_index(drop=True)


def _findings(edges: pd.DataFrame) -> list[Finding]:
    """Tell of the edge for which most went between workers, where that is most of its bytes."""
    if not len(edges):
        return []
    row = int(np.argmax(edges["moved"].to_numpy()))
    edge = edges.to_dict("records")[row]
    moved = int(edge["moved"])
    share = 100.0 * moved / max(1, int(edge["bytes"]))
    if moved < MOVED or share < MOVED_SHARE:
        return []
    return [
        Finding(
            Severity.NOTICE,
            "layers",
            "edges",
            (row,),
            f"{bytes_text(edge['moved'])} of {edge['source']}'s results went to other workers for "
            f"{edge['target']}, {share_text(share)} of what its tasks need of them.",
            f"Where {edge['target']} can work on one of {edge['source']}'s results at a time, give "
            "both the same chunks: Dask then runs it where the result is.",
            saves=0,
        )
    ]
