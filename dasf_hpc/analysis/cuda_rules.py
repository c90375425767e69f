"""Analysis: what holds threads up in CUDA's calls, and what leaves GPUs without work, in seconds.

The rules are those of Nsight Systems' expert systems view (the section of that name in its user
guide), which list single events of a report. Here each is asked per Dask function, and what it
costs is time of threads, of which every moment counts for one rule at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, Ints, group_sums
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart

#: A GPU without work for so long is a gap, ns, as of the gaps of analysis ``gpu``.
GAP = 1_000_000
#: Parts of a GPU's time whose use is looked at, and the share below which it is low, %: those of
#: nsys's rule gpu-low-util.
PARTS = 30
LOW = 50.0
#: Copies from the host up to this size return before they are done, bytes: CUDA C++ Programming
#: Guide, "Concurrent Execution between Host and Device".
SMALL = 64 << 10

#: Copies that hold no thread up.
_ON_DEVICE = ("device to device", "array to array", "array to device", "device to array")
_FROM_HOST = ("host to device", "host to array")
_COPIES = ("cudaMemcpy", "cuMemcpy")
_FILLS = ("cudaMemset", "cuMemset")
_SYNCHRONIZATIONS = (
    "cudaDeviceSynchronize",
    "cudaThreadSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
)
#: Kinds of memory of whose fills a thread waits for the end.
_SLOW_TO_FILL = ("pinned", "managed", "managed static")


class Rule(StrEnum):
    """What may cost time."""

    PAGEABLE = "asynchronous copy of pageable memory"
    COPY = "synchronous copy"
    FILL = "synchronous fill"
    WAIT = "synchronization in a task"
    GAP = "GPU without work"
    LOW = "GPU little used"


_BEHAVIOUR = "https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html"
_EXPERT = "https://docs.nvidia.com/nsight-systems/UserGuide/index.html"

#: What the time of a rule is, where it is documented, and what to do about it.
ABOUT: dict[Rule, tuple[str, str, str]] = {
    Rule.PAGEABLE: (
        "time that the calling thread spends in cudaMemcpy...Async calls whose copy is from or to "
        "pageable memory: these return only when the data is staged, or, to the host, copied",
        _BEHAVIOUR,
        "Keep what is copied in pinned memory: CuPy's or RMM's pinned memory pools, "
        "cupyx.empty_pinned.",
    ),
    Rule.COPY: (
        "time that the calling thread spends in cudaMemcpy calls without Async, with what ran in "
        "the stream before and had to end first; not of copies on a device, nor of those of "
        f"{SMALL >> 10} KiB or less from the host",
        _BEHAVIOUR,
        "Copy asynchronously in a stream from pinned memory, copy once for several blocks, or "
        "leave the data on the GPU between tasks.",
    ),
    Rule.FILL: (
        "time that the calling thread spends in cudaMemset calls without Async of pinned or "
        "managed memory, the only ones that wait for the GPU",
        _BEHAVIOUR,
        "Fill with cudaMemsetAsync or a kernel, or fill memory of the host on the host.",
    ),
    Rule.WAIT: (
        "time that the calling thread spends in calls that wait for a device, a stream or an "
        "event, made for a task",
        _EXPERT,
        "Wait once at the end of a task instead of after each step; every .get(), print or `if` "
        "on a value of the GPU waits, too.",
    ),
    Rule.GAP: (
        "time of tasks in which none of their worker's GPUs ran anything for at least "
        f"{GAP // 1_000_000} ms, without what counts for the rules above",
        _EXPERT,
        "See what the function does on the CPU meanwhile; run tasks of the CPU elsewhere, or more "
        "threads on the GPU's worker.",
    ),
    Rule.LOW: (
        "time of tasks in shorter gaps of their worker's GPUs, where these were in use for less "
        f"than {LOW:.0f} % (of {PARTS} equal parts of the time from their first to their last "
        "activity), without what counts for the rules above",
        _EXPERT,
        "Launch larger kernels or CUDA graphs, make chunks larger, or run more threads on the "
        "GPU's worker.",
    ),
}
_RULES = list(Rule)


@dataclass(frozen=True)
class Costs:
    """What rules cost, a row each: arrays of equal length.

    Attributes
    ----------
    rule
        Position in `Rule`.
    function
        Position in the functions of the executions, their number: of no task.
    process, thread
        Who was held up.
    time
        How long, ns.
    bytes
        What was copied or filled.
    """

    rule: NDArray[np.int8]
    function: Ints
    process: Ints
    thread: Ints
    time: Ints
    bytes: Ints

    def table(self, functions: list[str], executing: Ints) -> pd.DataFrame:
        """Sum them by rule and function, the costliest first.

        Parameters
        ----------
        functions
            Names of the functions, then what stands for none.
        executing
            Time of all tasks of each function, ns.
        """
        width = len(functions)
        group = self.rule.astype(np.int64) * width + self.function
        size = width * len(_RULES)
        count = np.bincount(group, minlength=size)
        rows = np.flatnonzero(count)
        time = group_sums(group, self.time, size)[rows]
        whole = np.append(executing, 0)[rows % width]
        table = pd.DataFrame(
            {
                "rule": pd.Series([str(_RULES[row // width]) for row in rows], dtype=str),
                "function": pd.Series([functions[row % width] for row in rows], dtype=str),
                "count": count[rows],
                "time": time,
                "share": np.where(whole > 0, 100.0 * time / np.maximum(whole, 1), np.nan),
                "bytes": group_sums(group, self.bytes, size)[rows],
            }
        )
        return table.sort_values("time", ascending=False, kind="stable").reset_index(drop=True)


def costs(trace: Trace, runs: Executions) -> Costs:
    """Say what the rules cost: every moment of a thread counts for one rule at most.

    Parameters
    ----------
    trace, runs
        The trace, and its executions with threads and functions.
    """
    calls = _calls(trace)
    width = len(runs.functions)
    parts: list[tuple[Any, ...]] = []
    held: dict[tuple[int, int], tuple[Ints, Ints]] = {}
    for (process, thread), rows in _threads(calls["process"], calls["thread"]):
        start, stop = own_time(calls["start"][rows], calls["stop"][rows])
        some = stop > start
        rows, start, stop = rows[some], start[some], stop[some]
        held[process, thread] = start, stop
        function = _functions(calls["task"][rows], runs)
        taken = stop - start, calls["bytes"][rows]
        parts.append((calls["rule"][rows], function, process, thread, *taken))
    for process, covered in _gpus_of(trace).items():
        own = np.flatnonzero(runs.process == process)
        gap, low = _unused(covered)
        for (_, thread), places in _threads(runs.process[own], runs.thread[own]):
            rows = own[places]
            rows = rows[np.argsort(runs.start[rows], kind="stable")]
            start, stop = own_time(runs.start[rows], runs.stop[rows])
            for rule, unused in ((Rule.GAP, gap), (Rule.LOW, low)):
                time = unused.between(start, stop)
                if (process, thread) in held:
                    time = time - _within(unused, *held[process, thread], start, stop)
                some = time > 0
                none = np.zeros(int(some.sum()), np.int64)
                code = np.full(len(none), _RULES.index(rule), np.int8)
                function = runs.function[rows[some]].astype(np.int64)
                parts.append((code, function, process, thread, time[some], none))
    columns = []
    for place in range(6):
        values = [np.empty(0, np.int64)]
        for part in parts:
            one = part[place]
            values.append(np.full(len(part[0]), one, np.int64) if np.isscalar(one) else one)
        columns.append(np.concatenate(values))
    assert not len(columns[1]) or columns[1].max() <= width
    return Costs(columns[0].astype(np.int8), *columns[1:])


def own_time(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Shorten spans so that no two hold the same moment, which stays the first one's.

    Parameters
    ----------
    start, stop
        In order of start; of equal ones the longest first.
    """
    before = np.maximum.accumulate(stop)
    start = np.maximum(start, np.append(start[:1], before[:-1]))
    return start, np.maximum(start, stop)


def _threads(process: Any, thread: Any) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Give each thread and its rows, in their order."""
    if not len(process):
        return
    order = np.lexsort((np.arange(len(process)), thread, process))
    p, t = process[order], thread[order]
    firsts = np.flatnonzero(np.append(True, (p[1:] != p[:-1]) | (t[1:] != t[:-1])))
    for first, rows in zip(firsts, np.split(order, firsts[1:]), strict=True):
        yield (int(p[first]), int(t[first])), rows


def _within(unused: Covered, start: Ints, stop: Ints, begin: Ints, end: Ints) -> Ints:
    """Give what some spans, of which no two overlap, hold of covered time, from begin to end."""
    sums = np.concatenate([[0], np.cumsum(unused.between(start, stop))])

    def until(time: Ints) -> Any:
        place = np.searchsorted(start, time, "right")
        last = np.append(stop, 0)[place - 1]
        past = np.where(
            (place > 0) & (last > time), unused.between(time, np.maximum(time, last)), 0
        )
        return sums[place] - past

    result: Ints = until(end) - until(begin)
    return result


def _functions(task: Ints, runs: Executions) -> Ints:
    """Give the function of each task, their number where there is none."""
    width = len(runs.functions)
    known = (task >= 0) & (task < len(runs))
    if not width:
        return np.zeros(len(task), np.int64)
    return np.where(known, runs.function[np.where(known, task, 0)], width).astype(np.int64)


# ------------------------------------------------------------------------------------ calls


def _calls(trace: Trace) -> dict[str, Any]:
    """Read the calls that one of the first rules is about, in order of start."""
    copies, fills = _launched_copies(trace), _launched_fills(trace)
    columns = ["report", "process", "thread", "start", "stop", "correlation", "name", "task"]
    parts = []
    for piece in trace.pieces("cuda_api", columns):
        names = [str(name) for name in piece["name"].cat.categories]
        code = piece["name"].cat.codes.to_numpy()
        key = _keys(piece)
        task = piece["task"].to_numpy(np.int64)
        copied, filled = copies.find(key), fills.find(key)
        named = {
            what: np.array([*(_is(name, what) for name in names), False])[code]
            for what in ("copy", "copy async", "fill", "wait")
        }
        rule = np.full(len(piece), -1, np.int8)
        for chosen, what in (
            (named["copy async"] & copies.flag("pageable", copied), Rule.PAGEABLE),
            (named["copy"] & copies.flag("blocking", copied), Rule.COPY),
            (named["fill"] & fills.flag("blocking", filled), Rule.FILL),
            (named["wait"] & (task >= 0), Rule.WAIT),
        ):
            rule[chosen] = _RULES.index(what)
        rows = np.flatnonzero((rule >= 0) & (piece["stop"].to_numpy() != -1))
        size = np.where(
            rule == _RULES.index(Rule.FILL), fills.bytes_of(filled), copies.bytes_of(copied)
        )
        size[rule == _RULES.index(Rule.WAIT)] = 0
        parts.append(
            {
                name: piece[name].to_numpy(np.int64)[rows]
                for name in ("process", "thread", "start", "stop", "task")
            }
            | {"rule": rule[rows], "bytes": size[rows]}
        )
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole["stop"] = np.maximum(whole["start"], whole["stop"])
    # the outer one of two calls comes first
    order = np.lexsort((-whole["stop"], whole["start"]))
    return {name: values[order] for name, values in whole.items()}


def _is(name: str, what: str) -> bool:
    asynchronous = "Async" in name
    if what == "wait":
        return name.startswith(_SYNCHRONIZATIONS)
    begins = _FILLS if what == "fill" else _COPIES
    return name.startswith(begins) and asynchronous == what.endswith("async")


def _keys(piece: pd.DataFrame) -> Ints:
    """Make one number of report, process and correlation, -1 where there is no correlation."""
    report, process, number = (
        piece[name].to_numpy(np.int64) for name in ("report", "process", "correlation")
    )
    key = ((report + 1) << 52) | ((process + 1) << 32) | (number & 0xFFFFFFFF)
    return np.where(number < 0, -1, key)


class _Launched:
    """Copies or fills by the call that launched them, which may be several."""

    def __init__(self, key: Ints, size: Ints, **flags: NDArray[np.bool_]) -> None:
        order = np.argsort(key, kind="stable")
        key = key[order]
        firsts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
        self._key = key[firsts]
        if len(firsts):
            self._bytes = np.add.reduceat(size[order], firsts)
            self._flags = {n: np.logical_or.reduceat(f[order], firsts) for n, f in flags.items()}
        else:
            self._bytes = np.empty(0, np.int64)
            self._flags = {name: np.empty(0, bool) for name in flags}

    def find(self, key: Ints) -> Ints:
        """Give the place of each call, -1: it launched none."""
        if not len(self._key):
            return np.full(len(key), -1, np.int64)
        place = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        return np.where((self._key[place] == key) & (key >= 0), place, -1)

    def flag(self, name: str, place: Ints) -> NDArray[np.bool_]:
        """Say whether something of a call is so."""
        found: NDArray[np.bool_] = np.append(self._flags[name], False)[place]
        return found

    def bytes_of(self, place: Ints) -> Ints:
        """Give the bytes of each call."""
        found: Ints = np.append(self._bytes, 0)[place]
        return found


def _launched_copies(trace: Trace) -> _Launched:
    columns = ["report", "process", "correlation", "bytes", "kind", "source", "target"]
    keys, sizes, pageable, blocking = [], [], [], []
    for piece in trace.pieces("memcpys", columns):
        size = piece["bytes"].to_numpy(np.int64).clip(min=0)
        keys.append(_keys(piece))
        sizes.append(size)
        pageable.append(_one_of(piece["source"], "pageable") | _one_of(piece["target"], "pageable"))
        small = _one_of(piece["kind"], *_FROM_HOST) & (size <= SMALL)
        blocking.append(~small & ~_one_of(piece["kind"], *_ON_DEVICE))
    return _Launched(
        np.concatenate(keys),
        np.concatenate(sizes),
        pageable=np.concatenate(pageable),
        blocking=np.concatenate(blocking),
    )


def _launched_fills(trace: Trace) -> _Launched:
    keys, sizes, blocking = [], [], []
    for piece in trace.pieces("memsets", ["report", "process", "correlation", "bytes", "memory"]):
        keys.append(_keys(piece))
        sizes.append(piece["bytes"].to_numpy(np.int64).clip(min=0))
        blocking.append(_one_of(piece["memory"], *_SLOW_TO_FILL))
    whole = np.concatenate(blocking)
    return _Launched(np.concatenate(keys), np.concatenate(sizes), blocking=whole)


def _one_of(values: pd.Series, *names: str) -> NDArray[np.bool_]:
    """Say of each row of a column of strings whether it holds one of some."""
    chosen = np.array([*(str(name) in names for name in values.cat.categories), False])
    found: NDArray[np.bool_] = chosen[values.cat.codes.to_numpy()]
    return found


# ------------------------------------------------------------------------------------- GPUs


def _gpus_of(trace: Trace) -> dict[int, Covered]:
    """Give, for each process that ran something on GPUs, when any of these was in use."""
    apart = gpus_apart(trace)
    spans: dict[int, list[tuple[Ints, Ints]]] = {}
    pairs: set[tuple[int, int]] = set()
    for table in ("kernels", "memcpys", "memsets"):
        for piece in trace.pieces(table, ["process", "gpu", "start", "stop"]):
            process, gpu, start, stop = (
                piece[name].to_numpy(np.int64) for name in ("process", "gpu", "start", "stop")
            )
            on = (gpu >= 0) & (stop != -1)
            both = np.unique(process[on] << 32 | gpu[on])
            pairs |= {(key >> 32, key & 0xFFFFFFFF) for key in both.tolist()}
            for number in np.unique(gpu[on]).tolist():
                rows = on & (gpu == number)
                one = Covered(start[rows], stop[rows])
                spans.setdefault(number, []).append((one.start, one.stop))
    used = {process: frozenset(g for p, g in pairs if p == process) for process, _ in pairs}
    made: dict[frozenset[int], Covered] = {}
    for gpus in set(used.values()):
        own = [span for gpu in gpus for span in spans[gpu]]
        made[gpus] = Covered(*(np.concatenate(ends) for ends in zip(*own, strict=True)))
    return {p: made[gpus] for p, gpus in used.items() if p >= 0 and not gpus & set(apart)}


def _unused(covered: Covered) -> tuple[Covered, Covered]:
    """Give the long gaps of a GPU, and the short ones where it was little used."""
    start, stop = covered.gaps()
    long = stop - start >= GAP
    gap = Covered(start[long], stop[long])
    start, stop = start[~long], stop[~long]
    edges = np.linspace(covered.start[0], covered.stop[-1], PARTS + 1).astype(np.int64)
    parts = []
    for first, last in itertools.pairwise(edges):
        if last > first and 100.0 * covered.between(first, last) / (last - first) < LOW:
            one = slice(np.searchsorted(stop, first, "right"), np.searchsorted(start, last))
            parts.append((np.maximum(start[one], first), np.minimum(stop[one], last)))
    none = (np.empty(0, np.int64),) * 2
    return gap, Covered(*(np.concatenate(ends) for ends in zip(none, *parts, strict=True)))
