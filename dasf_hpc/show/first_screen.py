"""Show, what the page says before all else: the work in a sentence, its parts, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, Ints, Span
from dasf_hpc.analysis.where import PART_WORDS, PARTS
from dasf_hpc.show.moments import around_work
from dasf_hpc.show.page_tables import cut
from dasf_hpc.show.places import Places, place_of_row
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.names import UNKNOWN, natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import SENTENCE, gpus_apart
from dasf_hpc.trace.summary import NOT_AVAILABLE, Summary
from dasf_hpc.units import bytes_text, duration_text, share_text

#: Parts of a worker's time that lie outside of the work: they are told in a line of their own.
OUTSIDE = ("starting", "stopping")

#: Parts of a GPU's time, and what each means.
GPU_PARTS = {
    "kernels": "a kernel runs",
    "copies": "a copy or a fill runs, and no kernel",
    "idle": "nothing runs on the GPU",
}

#: GPUs with a bar of their own: the first ones by name.
GPUS = 8

#: Of a task's time, a clock's error is told from this share on: it moves what is drawn.
CLOCK_SHARE = 0.1

#: Parts of less than this share, %, are not named beside the bar.
LEAST_SHARE = 0.5

#: States of executions that failed.
FAILED = ("error", "lost")


@dataclass(frozen=True)
class Part:
    """A part of a bar: its name, share in %, time and meaning."""

    part: str
    share: float
    time: str
    meaning: str

    @property
    def name(self) -> str:
        """The part's name in words."""
        return PART_WORDS.get(self.part, self.part.replace("_", " "))

    @property
    def text(self) -> str:
        """The share in words."""
        return share_text(self.share)

    @property
    def named(self) -> bool:
        """Whether it is large enough to be named beside the bar."""
        return self.share >= LEAST_SHARE


@dataclass(frozen=True)
class Bar:
    """A stacked bar: whose time it is, and its parts."""

    name: str
    parts: list[Part]
    href: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure: its name, value, what it rests on, where it can be seen, whether it is bad."""

    name: str
    value: str
    note: str
    href: str = ""
    bad: bool = False


def counted(count: int, what: str) -> str:
    """Write how many there are of something: ``1 task``, ``1,200 tasks``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ------------------------------------------------------------------------------------ bars


def work_bar(where: Answer | None) -> list[Bar]:
    """Give the bar of all workers' time from first task to last."""
    if where is None or not len(where.tables.get("summary", ())):
        return []
    times = where.tables["summary"].set_index("part")["time"]
    parts = {part: int(times.get(part, 0)) for part in PARTS if part not in OUTSIDE}
    return _bar("all workers", parts, PARTS)


def worker_bars(where: Answer | None, most: int, known: Places) -> tuple[list[Bar], int]:
    """Give each worker's bar, those that executed least first where there are many.

    Returns
    -------
    bars
        Those of `most` workers.
    left_out
        How many workers there are beside them.
    """
    if where is None or not len(where.tables.get("workers", ())):
        return [], 0
    table = where.tables["workers"]
    shown = table.sort_values("executing").head(most) if len(table) > most else table
    inside = [part for part in PARTS if part in table and part not in OUTSIDE]
    bars = work_bar(where)
    for row in shown.to_dict("records"):
        parts = {part: int(row[part]) for part in inside}
        place = place_of_row({"worker": row["worker"]}, known)
        bars += _bar(f"{row['node']} {row['worker']}", parts, PARTS, place)
    return bars, len(table) - len(shown)


def gpu_bars(trace: Trace, span: Span) -> list[Bar]:
    """Give the bar of each GPU's time, by name."""
    work = {table: _spans(trace, table) for table in ("kernels", "memcpys", "memsets")}
    apart = gpus_apart(trace)
    bars = []
    for gpu, name in enumerate(gpu_names(trace)):
        spans = {t: (s[g == gpu], e[g == gpu]) for t, (g, s, e) in work.items()}
        if gpu in apart or not any(len(start) for start, _ in spans.values()):
            continue
        kernels = Covered(*spans["kernels"]).total
        every = Covered(*(np.concatenate(ends) for ends in zip(*spans.values(), strict=True))).total
        parts = {
            "kernels": kernels,
            "copies": every - kernels,
            "idle": max(0, span.duration - every),
        }
        bars += _bar(name, parts, GPU_PARTS)
    return sorted(bars, key=lambda bar: natural(bar.name))


def gpu_sentence(bars: list[Bar], span: Span, gpus: int) -> str:
    """Tell in a sentence how busy GPUs were, where there are no tasks to tell of."""
    took = duration_text(span.duration)
    if not bars:
        what = f" of {counted(gpus, 'GPU')}" if gpus else ""
        return f"{took} recorded{what}; nothing ran on a GPU in it."
    busy = [100 - next((p.share for p in bar.parts if p.part == "idle"), 0.0) for bar in bars]
    if len(bars) == 1:
        return f"{bars[0].name} was busy for {share_text(busy[0])} of {took}."
    least, most = int(np.argmin(busy)), int(np.argmax(busy))
    mean = (
        f"{len(bars)} GPUs were busy for {share_text(float(np.mean(busy)))} of {took} in the mean"
    )
    if busy[most] - busy[least] < 1:
        return f"{mean}."
    return (
        f"{mean}: {bars[least].name} for {share_text(busy[least])}, {bars[most].name} for "
        f"{share_text(busy[most])}."
    )


def _bar(
    name: str, parts: dict[str, int], meanings: Mapping[str, str], href: str = ""
) -> list[Bar]:
    """Give a bar of parts; none where there is no time."""
    whole = sum(parts.values())
    if not whole:
        return []
    made = [
        Part(part, 100.0 * time / whole, duration_text(time), meanings[part])
        for part, time in parts.items()
        if time > 0
    ]
    return [Bar(name, made, href)]


def _spans(trace: Trace, table: str) -> tuple[Ints, Ints, Ints]:
    """Give GPU, start and stop of what ran on GPUs, of one table."""
    none = np.empty(0, np.int64)
    if not trace.rows(table):
        return none, none, none
    pieces = list(trace.pieces(table, ["gpu", "start", "stop"]))
    gpu, start, stop = (
        np.concatenate([piece[column].to_numpy() for piece in pieces]).astype(np.int64)
        for column in ("gpu", "start", "stop")
    )
    ended = (stop >= start) & (start != -1)
    return gpu[ended], start[ended], stop[ended]


# ----------------------------------------------------------------------------------- moments


def moments(manifest: Mapping[str, Any], summary: Summary) -> list[str]:
    """Tell what time the bar is, and when the run began, and all of it ended."""
    if summary.work < 0:
        return []
    return ["Time 0: first task", *around_work(manifest, summary)]


# ------------------------------------------------------------------------------------- tiles


def tiles(
    trace: Trace, summary: Summary, known: Places, answers: Mapping[str, Answer], lost: str
) -> list[Tile]:
    """Give the figures beside the findings; clocks and completeness only where they are bad."""
    made = [
        _kernel(answers.get("gpu")) if not len(known.executions) else None,
        _memory(trace, known),
        _gpu_memory(answers.get("gpu")),
        _failures(known.executions, answers.get("failures")),
        _clocks(trace, summary, known.executions),
        _completeness(summary, lost),
    ]
    return [tile for tile in made if tile is not None]


def _memory(trace: Trace, known: Places) -> Tile | None:
    """Give the largest sample of a worker's memory, against its limit where there is one."""
    peak: dict[int, tuple[int, int]] = {}  # of each process: memory and time
    for piece in trace.pieces("process_samples", ["time", "process", "memory"]):
        if not len(piece):
            continue
        highest = piece.loc[piece.groupby("process")["memory"].idxmax()]
        for time, process, memory in zip(
            highest["time"].tolist(),
            highest["process"].tolist(),
            highest["memory"].tolist(),
            strict=True,
        ):
            if process >= 0 and memory > peak.get(process, (0, 0))[0]:
                peak[process] = memory, time
    processes = trace.processes
    roles, limits = processes["role"].tolist(), processes["memory_limit"].tolist()
    of = [row for row in peak if row < len(roles) and roles[row] == "worker"]
    if not of:
        return None
    limited = [row for row in of if limits[row] > 0]
    worst = max(limited or of, key=lambda row: peak[row][0] / max(1, limits[row] if limited else 1))
    memory, time = peak[worst]
    node = processes["node"].tolist()[worst]
    nodes = node_names(trace)
    named = f"{nodes[node] if 0 <= node < len(nodes) else UNKNOWN} {process_names(trace)[worst]}"
    around = known.span.duration // 40  # what led to it is to be seen, too
    place = {"start": time - around, "stop": time + around, "worker": process_names(trace)[worst]}
    href = place_of_row(place, known)
    if not limited:
        return Tile("Peak memory", bytes_text(memory), f"of {named}; it has no limit", href)
    share = 100 * memory / limits[worst]
    value = f"{bytes_text(memory)} of {bytes_text(limits[worst])}"
    return Tile(
        "Peak memory", value, f"{share_text(share)} of the limit of {named}", href, share > 80
    )


def _kernel(gpu: Answer | None) -> Tile | None:
    """Give the kernel that took most of the time."""
    if gpu is None or not len(gpu.tables.get("kernels", ())):
        return None
    sums = gpu.tables["kernels"].groupby("kernel")[["total", "share"]].sum()
    longest = sums.sort_values("total", ascending=False).reset_index().to_dict("records")[0]
    name = str(longest["kernel"])
    note = f"{duration_text(longest['total'])}, {share_text(longest['share'])} of kernels' time"
    return Tile("Longest kernel", cut(name), note, "#gpus")


def _gpu_memory(gpu: Answer | None) -> Tile | None:
    if gpu is None or "peak_memory" not in gpu.tables.get("gpus", ()):
        return None
    table = gpu.tables["gpus"]
    table = table[table["peak_memory"] > 0]
    if not len(table):
        return None
    known = bool(table["peak_memory_share"].notna().any())
    by = "peak_memory_share" if known else "peak_memory"
    worst = table.sort_values(by, ascending=False).to_dict("records")[0]
    share = float(worst["peak_memory_share"])
    of = f"{share_text(share)} of {worst['gpu']}" if known else f"of {worst['gpu']}"
    return Tile("Peak GPU memory", bytes_text(worst["peak_memory"]), of, "", share > 95)


def _failures(executions: Executions, answer: Answer | None) -> Tile | None:
    """Count executions that failed, and what became of their tasks."""
    if not len(executions):
        return None
    failed = executions.in_state(*FAILED)
    count = int(failed.sum())
    if not count:
        return Tile("Failures", "none", f"of {counted(len(executions), 'execution')}")
    retried, final = _outcomes(executions, failed)
    if answer is not None and "final" in answer.table:
        final = int(answer.table["final"].sum())
    note = f"{counted(count, 'execution')} failed"
    if final and retried:
        note = f"{counted(retried, 'other')} retried with success"
    value = f"{counted(final, 'task')}{_whose(answer)} without a result"
    if not final:
        value = f"{counted(retried, 'task')}{_whose(answer)} retried with success"
    href = "#about-failures" if answer is not None and len(answer.table) else ""
    return Tile("Failures", value, note, href, final > 0)


def _whose(answer: Answer | None) -> str:
    """Name the functions whose tasks have no result, or all that failed, and the exception."""
    if answer is None or not len(answer.table):
        return ""
    table = answer.table[answer.table["final"] > 0] if "final" in answer.table else answer.table
    table = table if len(table) else answer.table
    names = list(dict.fromkeys(table["function"].astype(str)))
    kinds = list(dict.fromkeys(table["exception"].astype(str)))
    kind = f" ({kinds[0]})" if len(kinds) == 1 and kinds[0] != UNKNOWN else ""
    others = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
    return f" of {names[0]}{others}{kind}"


def _outcomes(executions: Executions, failed: NDArray[np.bool_]) -> tuple[int, int]:
    """Count tasks that failed: those that then gave a result, and those that never did."""
    keys = np.unique(executions.key[failed & (executions.key >= 0)])
    done = executions.in_state("memory")
    good = np.isin(keys, executions.key[done])
    unknown = int((failed & (executions.key < 0)).sum())
    return int(good.sum()), int((~good).sum()) + unknown


def _clocks(trace: Trace, summary: Summary, executions: Executions) -> Tile | None:
    """Give how far clocks may disagree, where that is much for the tasks that are shown."""
    bound = summary.bound
    if bound is None or len(trace.clocks) < 2:
        return None
    if bound < 0:
        return Tile("Clocks", "not aligned", str(summary.bound_source or ""), "#run", True)
    usual = float(np.median(executions.duration)) if len(executions) else float("inf")
    if bound <= CLOCK_SHARE * usual:
        return None
    note = f"a task takes {duration_text(usual)} in the median"
    return Tile("Clocks agree within", duration_text(bound), note, "#run", True)


def _completeness(summary: Summary, lost: str) -> Tile | None:
    """Say that the recording has gaps, where it has."""
    losses = [gap for gap in summary.gaps if gap.kind != NOT_AVAILABLE]
    if summary.own_axis:
        named = ", ".join(summary.own_axis[:3])
        count = len(summary.own_axis)
        return Tile(
            "Not placed",
            f"{count} report{'s' * (count != 1)}",
            f"{named}: {SENTENCE}",
            "#run",
            True,
        )
    if lost:
        return Tile("Recording", "partial", lost, "#run", True)
    if losses:
        kinds = ", ".join(gap.kind for gap in losses[:3])
        return Tile("Recording", "partial", kinds, "#run", True)
    return None
