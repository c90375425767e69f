"""Show, what a page's timeline draws: rows of workers and GPUs, and what ran on them.

A run of up to a million executions is in the page whole. Of a longer one the longest of them are,
and for each worker the share of its threads that was busy, by function, in thousands of bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from zlib import compress

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.disk import without_false_reads
from dasf_hpc.analysis.executions import Executions, Ints, run_span, work_span, workers
from dasf_hpc.nsight.join import COMPUTE_DOMAIN
from dasf_hpc.show.areas import areas
from dasf_hpc.show.coverage import (
    COLOURED,
    binned,
    by_time_spent,
    digits,
    in_order,
    lanes,
    roots,
)
from dasf_hpc.show.curves import POINTS, curves, sampled_means
from dasf_hpc.show.page_data import Columns, signed, three_digits
from dasf_hpc.trace.gpus import gpu_labels, known_gpus
from dasf_hpc.trace.names import natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart

#: Executions of a run that is in the page whole, and of a longer one how many of the longest and of
#: the failed ones are drawn singly.
EXACT, LONGEST = 1_100_000, 20_000

#: Executions of a run whose times are in the page to a nanosecond; of a longer one to 100 ns.
FINE = 200_000

#: Bins of all workers together, and of one; a bin takes a byte for each colour.
CELLS, MOST_BINS = 1 << 20, 1 << 14

#: Bins of a GPU's row that has more kernels and copies than are drawn singly, and how many are.
GPU_BINS, ON_GPUS = 1 << 14, 300_000

#: Transfers, spills and deserialisations, and ranges of the code: the longest of more are drawn.
MARKS, RANGES = 200_000, 100_000

#: Dependencies in the page: of more those of the longest tasks are.
EDGES = 400_000

#: Bytes of all keys as text, and compressed, as a sample of them tells; no key is in a page that
#: has more. Characters of a key: a longer one is cut.
KEY_TEXT, KEY_ROOM, KEY_LENGTH = 24_000_000, 4_000_000, 300

#: Segments of the critical path that are drawn, the longest ones.
SEGMENTS = 2000

#: What is drawn under a worker's tasks, as `dasf_hpc.trace.schema` names the activities.
ACTIVITIES = {"disk-read": "disk", "disk-write": "disk", "deserialize": "deserialising"}

#: Tables of what runs on a GPU, and more columns that are read of each.
ON_GPU = {"kernels": ["short_name"], "memcpys": ["kind", "bytes"], "memsets": ["bytes"]}


@dataclass(frozen=True)
class Picture:
    """What the script of a page draws.

    Attributes
    ----------
    packed
        All of it, as `dasf_hpc.show.page_data` packs it.
    executions
        How many executions the run has.
    exact
        How many of them are in the page.
    anything
        Whether there is anything to draw in a timeline.
    charts
        How many charts of curves there are.
    memory
        Whether what workers held is drawn.
    """

    packed: str
    executions: int
    exact: int
    anything: bool
    charts: int
    memory: bool = False

    @property
    def whole(self) -> bool:
        """Whether all executions are in the page."""
        return self.exact == self.executions


def picture(trace: Trace, executions: Executions, path: Answer | None = None) -> Picture:
    """Give the timeline and the curves of a page.

    Times in it count from the start of the first task.

    Parameters
    ----------
    trace
        The trace.
    executions
        Its executions, with all their columns.
    path
        What the analysis of the critical path gave, to be drawn as a row of its own.
    """
    columns = Columns()
    line = timeline(trace, executions, columns, path)
    charts = curves(trace, executions)
    memory = areas(trace, executions, columns)
    return Picture(
        packed=columns.packed({"timeline": line, "curves": charts, "memory": memory}),
        executions=len(executions),
        exact=line["tasks"]["count"],
        anything=bool(line["tasks"]["count"] or any(r["kind"] != "worker" for r in line["rows"])),
        charts=len(charts),
        memory=bool(memory),
    )


def timeline(
    trace: Trace, executions: Executions, columns: Columns, path: Answer | None = None
) -> dict[str, Any]:
    """Describe the timeline, and add what it draws to the columns.

    Parameters
    ----------
    trace
        The trace.
    executions
        Its executions, with all their columns.
    columns
        Where numbers are put; the description names them by their numbers.
    path
        What the analysis of the critical path gave.

    Returns
    -------
    dict
        For JSON. ``begin``, ``end`` and ``work``: when the recording began and ended and how long
        the work took, ns from the first task's start; ``resolution``: ns of a step of the times in
        columns, which count from ``begin``; ``functions``: names, the first `COLOURED` of which
        have a colour; ``rows``, in the order in which they are drawn, with ``lanes``: how many
        executions are in each; ``tasks``: columns of executions, in the order of rows, lanes and
        start; ``bins``; ``tracks``: what else is drawn in rows; ``path``: segments, us.
    """
    span, work = run_span(trace, executions), work_span(trace, executions)
    axis = _Axis(
        begin=min(span.start, work.start),
        zero=work.start,
        resolution=1 if len(executions) <= FINE else 100,
    )
    order = by_time_spent(executions)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    on_gpu = _work_on_gpus(trace)
    rows = _rows(trace, executions, on_gpu)
    row_of = {row["process"]: n for n, row in enumerate(rows) if row["kind"] == "worker"}
    top = max(*row_of, int(executions.process.max(initial=-1)), -1, -1)
    place = np.full(top + 1, -1, np.int64)
    place[list(row_of)] = list(row_of.values())
    lane = lanes(executions)
    tasks, shown = _tasks(trace, executions, columns, axis, rows, place, rank, lane)
    bins = 0
    if len(shown) < len(executions):
        bins = min(MOST_BINS, CELLS // max(1, len(row_of)))
        _worker_bins(executions, columns, rows, place, rank, span.start, span.stop, bins)
    tracks = _Tracks(columns, axis)
    page_row = np.full(len(executions) + 1, -1, np.int64)
    page_row[shown] = np.arange(len(shown))
    _marks(trace, tracks, row_of)
    _on_gpus(trace, on_gpu, tracks, rows, columns, span.start, span.stop, page_row)
    _user_ranges(trace, tracks, rows, row_of, page_row)
    return {
        "begin": axis.begin - work.start,
        "end": max(span.stop, work.stop) - work.start,
        "work": work.duration,
        "resolution": axis.resolution,
        "functions": [executions.functions[code] for code in order],
        "rows": rows,
        "tasks": tasks,
        "bins": bins,
        "tracks": tracks.described(),
        "path": _path(path, work.start),
    }


@dataclass(frozen=True)
class _Axis:
    """How times stand in columns: steps of `resolution` ns from `begin`."""

    begin: int
    zero: int
    resolution: int

    def steps(self, times: Ints) -> Ints:
        result: Ints = np.maximum(times - self.begin, 0) // self.resolution
        return result


def _rows(trace: Trace, executions: Executions, on_gpu: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows: by node, its workers, each with its GPUs after the last one that has them.

    A GPU of which nothing is known has none.
    """
    working, span = set(on_gpu["gpu"].unique().tolist()), run_span(trace, executions)
    samples = trace.gpu_samples
    table = in_order(workers(trace, executions))
    labels = gpu_labels(trace)
    apart = gpus_apart(trace)  # these have no place on the run's time
    gpus_left = [number for number in known_gpus(trace) if number not in apart]
    gpus_left.sort(key=lambda number: [natural(part) for part in labels[number]])
    last = {gpu: row for row, gpus in table["gpus"].items() for gpu in gpus}
    hosts = sorted({*table["node"], *(labels[gpu][0] for gpu in gpus_left)}, key=natural)
    rows: list[dict[str, Any]] = []

    def add(gpu: int) -> None:
        row = {"name": " ".join(labels[gpu]), "kind": "gpu", "gpu": gpu, "lanes": []}
        if gpu not in working:
            sampled = samples[samples["gpu"] == gpu]
            count = int(np.clip(len(sampled), 1, 4 * POINTS))
            times, values = (sampled[c].to_numpy() for c in ("time", "utilization"))
            means = sampled_means(times, values, span, count)
            if not np.isfinite(means).any():
                return
            row["sampled"] = digits(means / 100)
        rows.append(row)

    for host in hosts:
        for process, worker in table[table["node"] == host].iterrows():
            rows.append(
                {
                    "name": f"{worker['node']} {worker['worker']}",
                    "kind": "worker",
                    "process": int(str(process)),
                    "lanes": [0] * int(worker["threads"]),
                }
            )
            for gpu in gpus_left:
                if last.get(gpu) == process:
                    add(gpu)
        for gpu in gpus_left:
            if labels[gpu][0] == host and gpu not in last:
                add(gpu)
    return rows


def _tasks(
    trace: Trace,
    executions: Executions,
    columns: Columns,
    axis: _Axis,
    rows: list[dict[str, Any]],
    place: Ints,
    rank: Ints,
    lane: Ints,
) -> tuple[dict[str, Any], Ints]:
    """Add executions to the columns, all or the longest and those that failed; give which."""
    row = place[executions.process] if len(executions) else np.empty(0, np.int64)
    chosen = np.flatnonzero(row >= 0)
    if len(chosen) > EXACT:
        keep = min(LONGEST, EXACT)
        longest = chosen[np.argpartition(-executions.duration[chosen], keep)[:keep]]
        failed = chosen[~executions.in_state("memory", "rescheduled")[chosen]][:keep]
        chosen = np.union1d(longest, failed)
    begun = executions.start[chosen]
    if (begun[1:] < begun[:-1]).any():
        chosen = chosen[np.argsort(begun, kind="stable")]
    used = int(lane.max()) + 1 if len(lane) else 1
    slot = row[chosen] * used + lane[chosen]
    small = slot.astype(np.uint16) if len(rows) * used < 1 << 16 else slot
    chosen = chosen[np.argsort(small, kind="stable")]
    slots = row[chosen] * used + lane[chosen]
    counts = np.bincount(slots, minlength=len(rows) * used).reshape(-1, used)
    most = np.zeros(len(rows), np.int64)
    np.maximum.at(most, row[row >= 0], lane[row >= 0] + 1)
    for number, one in enumerate(rows):
        if one["kind"] == "worker":
            count = max(len(one["lanes"]), int(most[number]))
            own = counts[number].tolist() if len(counts) else []
            one["lanes"] = (own + [0] * count)[:count]
    first = np.diff(slots, prepend=-1) != 0
    start, stop = axis.steps(executions.start[chosen]), axis.steps(executions.stop[chosen])
    step = np.where(first, start, np.diff(start, prepend=0))
    row_step = np.where(first, chosen, np.diff(chosen, prepend=0))
    described: dict[str, Any] = {
        "count": len(chosen),
        "whole": len(chosen) == len(executions),
        "start": columns.add(step),
        "took": columns.add(stop - start),
        "function": columns.add(rank[executions.function[chosen]]),
        "task": columns.add(signed(row_step)),
        "nbytes": columns.add(three_digits(executions.nbytes[chosen])),
        "states": executions.states,
    }
    described |= _failed(trace, executions, columns, chosen)
    described |= _keys(trace, executions, columns, chosen)
    described |= _edges(trace, executions, columns, chosen)
    return described, chosen


def _failed(trace: Trace, executions: Executions, columns: Columns, chosen: Ints) -> dict[str, Any]:
    """Add the executions that did not end with a result: which, their states and exceptions."""
    good = [code for code, name in enumerate(executions.states) if name == "memory"]
    bad = np.flatnonzero(~np.isin(executions.state[chosen], good))
    codes, names = np.zeros(len(bad), np.int64), [""]
    if len(bad):
        exception = trace.table("tasks", ["exception"])["exception"].reindex(chosen[bad])
        names = ["", *sorted({str(e) for e in exception if isinstance(e, str)})]
        code_of = {name: code for code, name in enumerate(names)}
        codes = np.array([code_of.get(str(e), 0) for e in exception], np.int64)
    return {
        "failed": columns.add_steps(bad),
        "state": columns.add(executions.state[chosen[bad]] + 1),
        "exception": columns.add(codes),
        "exceptions": names,
    }


def _keys(trace: Trace, executions: Executions, columns: Columns, chosen: Ints) -> dict[str, Any]:
    """Add the keys, where there is room for them."""
    if not len(chosen):
        return {}
    step = max(1, len(chosen) // 10_000)
    sample = _key_texts(trace, executions.key[chosen[::step][:10_000]])
    text = "\0".join(sample).encode()
    if len(text) * step > KEY_TEXT or len(compress(text, 1)) * step > KEY_ROOM:
        return {}
    keys = sample if step == 1 else _key_texts(trace, executions.key[chosen])
    return {"keys": columns.add_text("\0".join(keys))}


def _key_texts(trace: Trace, codes: NDArray[np.int32]) -> list[str]:
    known = trace.texts("keys", np.maximum(codes, 0)) if (codes >= 0).any() else [""] * len(codes)
    return [
        _cut(str(key).replace("\0", "?")) if code >= 0 and isinstance(key, str) else ""
        for key, code in zip(known, codes.tolist(), strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= KEY_LENGTH else f"{text[: KEY_LENGTH - 1]}…"


def _edges(trace: Trace, executions: Executions, columns: Columns, chosen: Ints) -> dict[str, Any]:
    """Add which executions needed the results of which: of each key the last execution."""
    key = executions.key[chosen]
    top = int(key.max(initial=-1)) + 1
    last = np.full(top + 1, -1, np.int64)
    order = np.argsort(executions.start[chosen], kind="stable")
    last[key[order]] = order  # of several the one that stands last counts
    last[-1] = -1
    tasks: list[Ints] = []
    inputs: list[Ints] = []
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        if not len(piece):
            continue
        one, other = (piece[name].to_numpy().astype(np.int64) for name in ("key", "dependency"))
        known = (one >= 0) & (one < top) & (other >= 0) & (other < top)
        one, other = last[one[known]], last[other[known]]
        both = (one >= 0) & (other >= 0)
        tasks.append(one[both])
        inputs.append(other[both])
    task = np.concatenate([np.empty(0, np.int64), *tasks])
    needed = np.concatenate([np.empty(0, np.int64), *inputs])
    whole = len(task) <= EDGES
    if not whole:
        longest = np.argpartition(-executions.duration[chosen[task]], EDGES)[:EDGES]
        task, needed = task[longest], needed[longest]
    order = np.argsort(task, kind="stable")
    task, needed = task[order], needed[order]
    return {
        "edges": [columns.add_steps(task), columns.add(signed(needed - task))],
        "all_edges": whole,
    }


def _worker_bins(
    executions: Executions,
    columns: Columns,
    rows: list[dict[str, Any]],
    place: Ints,
    rank: Ints,
    begin: int,
    end: int,
    bins: int,
) -> None:
    """Add how busy each worker was in each bin, by colour."""
    drawn = [number for number, row in enumerate(rows) if row["kind"] == "worker"]
    narrow = np.full(len(rows) + 1, -1, np.int64)
    narrow[drawn] = np.arange(len(drawn))
    row = narrow[place[executions.process]]
    known = row >= 0
    width = max(1.0, (end - begin) / bins)
    first, last = (
        np.clip((times[known] - begin) / width, 0, bins)
        for times in (executions.start, executions.stop)
    )
    colour = np.minimum(rank, COLOURED)[executions.function[known]]
    threads = np.array([max(1, len(rows[number]["lanes"])) for number in drawn])
    for number, share in zip(
        drawn, binned(first, last, row[known], colour, threads, bins), strict=True
    ):
        rows[number]["bins"] = columns.add(roots(share).reshape(-1))


# ------------------------------------------------------------------------------------ tracks


@dataclass
class _Tracks:
    """What else is drawn in rows: spans of one kind in one row, in order of start."""

    columns: Columns
    axis: _Axis
    names: dict[str, int] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)

    def codes(self, names: pd.Series[Any]) -> Ints:
        """Give the numbers of names; of what is no text that of none."""
        codes, distinct = pd.factorize(names)
        of = [
            self.names.setdefault(_cut(name) if isinstance(name, str) else "", len(self.names))
            for name in distinct.tolist()
        ]
        none = self.names.setdefault("", len(self.names))
        return np.array([*of, none], np.int64)[codes]

    def add(self, row: int, kind: str, table: pd.DataFrame, label: str = "") -> None:
        """Add spans: columns ``start``, ``stop``, ``code``, and ``nbytes``, ``page``, ``sort``."""
        table = table.sort_values("start", kind="stable")
        start, stop = (self.axis.steps(table[c].to_numpy(np.int64)) for c in ("start", "stop"))
        one: dict[str, Any] = {
            "row": row,
            "kind": kind,
            "label": label,
            "start": self.columns.add_steps(start),
            "took": self.columns.add(np.maximum(stop - start, 0)),
            "name": self.columns.add(table["code"].to_numpy()),
        }
        if "nbytes" in table:
            one["nbytes"] = self.columns.add(three_digits(table["nbytes"].to_numpy()))
        if "page" in table and (table["page"] >= 0).any():
            one["page"] = self.columns.add(signed(np.diff(table["page"], prepend=0)))
        if "sort" in table:
            one["sort"] = self.columns.add(table["sort"].to_numpy())
        self.found.append(one)

    def described(self) -> dict[str, Any]:
        return {"names": list(self.names), "tracks": self.found}


def _marks(trace: Trace, tracks: _Tracks, row_of: dict[int, int]) -> None:
    """Add what workers received, what they spilled and read back, and what they deserialised."""
    names = process_names(trace)
    received = trace.table(
        "transfers", ["start", "stop", "process", "direction", "peer_process", "nbytes"]
    )
    received = received[received["direction"] == "incoming"]
    peer = received["peer_process"].to_numpy(np.int64)
    from_ = pd.Series(
        [names[p] if 0 <= p < len(names) else "" for p in peer.tolist()],
        received.index,
        dtype=object,
    )
    tables = [received.assign(kind="transfer", code=tracks.codes(from_))]
    done = trace.table("activities", ["start", "stop", "process", "action"])
    done = without_false_reads(trace, done)
    action = done["action"].astype(object)
    done = done.assign(kind=action.map(ACTIVITIES), code=tracks.codes(action), nbytes=-1)
    tables.append(done[done["kind"].notna()])
    wanted = ["start", "stop", "process", "kind", "code", "nbytes"]
    both = pd.concat([table[wanted] for table in tables], ignore_index=True)
    both = both[(both["stop"] >= both["start"]) & (both["start"] != -1)]
    if len(both) > MARKS:
        both = both.loc[(both["stop"] - both["start"]).nlargest(MARKS).index]
    for (name, kind), rows in both.groupby(["process", "kind"], sort=True):
        process = int(str(name))
        if process in row_of:
            tracks.add(row_of[process], str(kind), rows)


def _on_gpus(
    trace: Trace,
    on_gpu: pd.DataFrame,
    tracks: _Tracks,
    rows: list[dict[str, Any]],
    columns: Columns,
    begin: int,
    end: int,
    page_row: Ints,
) -> None:
    """Add each GPU's streams, and of one that did too much its bins."""
    whole = len(on_gpu) <= ON_GPUS
    for number, row in enumerate(rows):
        if row["kind"] != "gpu" or "sampled" in row:
            continue
        own = on_gpu[on_gpu["gpu"] == row["gpu"]]
        if not whole:
            row["bins"] = columns.add(_gpu_bins(own, begin, end).reshape(-1))
            row["gpu_bins"] = GPU_BINS
            own = own.nlargest(min(len(own), ON_GPUS * len(own) // len(on_gpu)), "took")
        names = _names_on_gpu(trace, own)
        task = own["task"].to_numpy(np.int64)
        known = (task >= 0) & (task < len(page_row) - 1)
        own = own.assign(
            code=tracks.codes(names), page=np.where(known, page_row[np.where(known, task, -1)], -1)
        )
        streams = own.groupby(["process", "context", "stream"], sort=True)
        several = len({key[:2] for key, _ in streams}) > 1
        for (process, context, stream), of_stream in streams:
            label = f"stream {stream}"
            if several:
                label += f" of context {context}" if process < 0 else f" of process {process}"
            tracks.add(number, "stream", of_stream, label)


def _work_on_gpus(trace: Trace) -> pd.DataFrame:
    """Give the kernels, copies and fills: ``sort`` says which of the three each is."""
    wanted = ["gpu", "process", "context", "stream", "start", "stop", "task"]
    parts = []
    for sort, (name, more) in enumerate(ON_GPU.items()):
        if not trace.rows(name):
            continue
        for piece in trace.pieces(name, [*wanted, *more]):
            table = piece[wanted].assign(sort=sort, nbytes=piece.get("bytes", -1))
            text = piece.get("short_name", piece.get("kind"))
            table["text"] = -1 if text is None else text.cat.codes.to_numpy(np.int64)
            parts.append(table)
    if not parts:
        return pd.DataFrame(columns=[*wanted, "sort", "nbytes", "text", "took"], dtype=np.int64)
    whole = pd.concat(parts, ignore_index=True)
    known = (whole["gpu"] >= 0) & (whole["stop"] >= whole["start"]) & (whole["start"] != -1)
    return whole[known].assign(took=whole["stop"] - whole["start"])


def _names_on_gpu(trace: Trace, own: pd.DataFrame) -> pd.Series[Any]:
    """Name kernels, copies and fills."""
    names = pd.Series("", own.index, dtype=object)
    for sort, dictionary, before in ((0, "kernel_names", ""), (1, "copy_kinds", "copy ")):
        mine = own["sort"] == sort
        if mine.any():
            codes, distinct = pd.factorize(own.loc[mine, "text"])
            texts = trace.texts(dictionary, np.maximum(distinct.to_numpy(np.int64), 0))
            known = [
                f"{before}{text}" if code >= 0 else before or "kernel"
                for text, code in zip(texts, distinct, strict=True)
            ]
            names[mine] = np.array(known, object)[codes]
    names[own["sort"] == 2] = "fill"
    return names


def _gpu_bins(own: pd.DataFrame, begin: int, end: int) -> NDArray[np.uint8]:
    """Give what share of each bin kernels fill, and what share copies and fills alone do."""
    edges = begin + np.arange(GPU_BINS + 1) * max(1, end - begin) / GPU_BINS
    start, stop = own["start"].to_numpy(np.int64), own["stop"].to_numpy(np.int64)
    kernel = (own["sort"] == 0).to_numpy()
    some = np.diff(Covered(start, stop).until(edges))
    kernels = np.diff(Covered(start[kernel], stop[kernel]).until(edges)) if kernel.any() else 0
    width = max(1.0, (end - begin) / GPU_BINS)
    return roots(np.stack([kernels * np.ones(GPU_BINS), some - kernels]) / width)


def _user_ranges(
    trace: Trace,
    tracks: _Tracks,
    rows: list[dict[str, Any]],
    row_of: dict[int, int],
    page_row: Ints,
) -> None:
    """Add the ranges that the code itself made, by thread; a process without a row gets one."""
    if not trace.rows("nvtx_ranges"):
        return
    wanted = ["process", "thread", "start", "stop", "domain", "message", "task"]
    table = trace.table("nvtx_ranges", wanted)
    mine = (table["domain"] != COMPUTE_DOMAIN) & (table["stop"] >= table["start"])
    table = table[mine & (table["start"] != -1)]
    if len(table) > RANGES:
        table = table.loc[(table["stop"] - table["start"]).nlargest(RANGES).index]
    task = table["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < len(page_row) - 1)
    table = table.assign(
        code=tracks.codes(table["message"].astype(object)),
        page=np.where(known, page_row[np.where(known, task, -1)], -1),
    )
    names, nodes = process_names(trace), node_names(trace)
    of_node = trace.processes["node"].tolist()
    for (number, thread), own in table.groupby(["process", "thread"], sort=True):
        process = int(str(number))
        if process not in row_of:
            name = names[process] if 0 <= process < len(names) else "process ?"
            node = of_node[process] if 0 <= process < len(of_node) else -1
            name = f"{nodes[node]} {name}" if 0 <= node < len(nodes) else name
            row_of[process] = len(rows)
            rows.append({"name": name, "kind": "ranges", "process": process, "lanes": []})
        tracks.add(row_of[process], "range", own, f"thread {thread}")


def _path(answer: Answer | None, zero: int) -> dict[str, Any]:
    """Give the critical path's longest segments in order of time."""
    if answer is None or not len(answer.tables.get("path", ())):
        return {}
    path = answer.tables["path"].nlargest(SEGMENTS, "duration").sort_values("start")
    return {
        "start": ((path["start"] - zero) / 1000).tolist(),
        "took": (path["duration"] / 1000).tolist(),
        "kind": [str(kind) for kind in path["kind"]],
        "function": [str(f) if isinstance(f, str) else "" for f in path["function"]],
        "worker": [str(w) if isinstance(w, str) else "" for w in path["worker"]],
    }
