"""Analysis: what did the GPUs do, and why did they wait?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import (
    Answer,
    Columns,
    Finding,
    Severity,
    costliest_first,
    told_as_one,
)
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, group_sums, read_executions, run_span, workers
from dasf_hpc.trace.gpus import gpu_names, known_gpus
from dasf_hpc.trace.holdings import Kind, State, gpu_activity, held, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.units import bytes_text, duration_text, share_text

#: Idle gaps that are listed, ns, and how many at most.
GAP = 1_000_000
GAPS = 1000
#: Kernels listed of each function.
TOP = 10
#: Intervals of the table of memory, for each GPU at most.
INTERVALS = 500
#: A GPU's memory is named as full from this share.
FULL = 95.0
#: Kernels below which a function is not called launch-bound.
ENOUGH_KERNELS = 100
#: A function with this share of the tasks' time on GPUs or less uses them little.
LITTLE = 20.0
NO_TASK = "(no task)"

GPUS: Columns = {
    "gpu": ("", "the GPU"),
    "busy": ("ns", "time in which a kernel, a copy or a fill ran"),
    "busy_share": (
        "%",
        "of the run; of a GPU on an axis of its own: from its first to its last activity",
    ),
    "kernels": ("", "kernels"),
    "kernel_time": ("ns", "times of all kernels added up"),
    "copies": ("", "copies"),
    "copy_time": ("ns", "times of all copies added up"),
    "copied": ("bytes", "size of all copies"),
    "fills": ("", "fills of memory"),
    "fill_time": ("ns", "times of all fills added up"),
    "overlap": ("ns", "time in which both a kernel and a copy ran"),
    "overlap_share": ("%", "of the time in which a copy ran"),
    "utilization": ("%", "mean of the samples"),
    "peak_memory": ("bytes", "largest sample of the memory in use"),
    "peak_memory_share": ("%", "of the GPU's memory"),
}
KERNELS: Columns = {
    "function": ("", f"the function whose tasks launched it; {NO_TASK}: none that is known"),
    "kernel": ("", "name of the kernel without its arguments"),
    "count": ("", "how often it ran"),
    "total": ("ns", "time in sum"),
    "mean": ("ns", "mean time"),
    "max": ("ns", "longest"),
    "share": ("%", "of the time of all kernels"),
}
FUNCTIONS: Columns = {
    "function": ("", "name of the function"),
    "tasks": ("", "its executions that used a GPU"),
    "executing": ("ns", "their time in sum"),
    "busy": ("ns", "time in which something of a task ran on its GPU, in sum over tasks"),
    "busy_share": ("%", "of their time"),
    "kernels": ("", "kernels they launched"),
    "kernel_time": ("ns", "times of these added up"),
    "kernel_mean": ("ns", "mean time of a kernel"),
    "copy_time": ("ns", "times of their copies added up"),
    "idle": ("ns", "time in which nothing at all ran on the GPU while they ran"),
    "launch_time": ("ns", "time in CUDA calls that launch kernels, in sum"),
    "latency_max": ("ns", "longest time from such a call to the kernel"),
    "launch_bound": ("", "whether launching took longer than the kernels themselves"),
}
GAP_COLUMNS: Columns = {
    "gpu": ("", "the GPU"),
    "start": ("ns", "nothing runs on it from here ..."),
    "stop": ("ns", "... to here"),
    "duration": ("ns", "length of the gap"),
    "task": ("", "row of table tasks: a task that ran on its workers longest then; -1: none"),
    "function": ("", f"the task's function; {NO_TASK}: none ran"),
    "worker": ("", "the task's worker"),
}
MEMORY: Columns = {
    "time": ("ns", "the interval begins"),
    "gpu": ("", "the GPU"),
    "used": ("bytes", "largest sample of the memory in use in it"),
    "utilization": ("%", "mean of its samples"),
}
RECORDED: Columns = {
    "what": ("", "what Nsight reports may hold"),
    "state": (
        "",
        "recorded, partly lost, recorded, none (it was traced and nothing came), lost (something "
        "must have been there) or not recorded",
    ),
    "count": ("", "how many there are"),
    "reason": ("", "how that is known"),
}
_TABLES = {
    "gpus": GPUS,
    "functions": FUNCTIONS,
    "kernels": KERNELS,
    "gaps": GAP_COLUMNS,
    "memory": MEMORY,
    "recorded": RECORDED,
}
#: What launches kernels, of the runtime and of the driver.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")


def gpu(trace: Trace) -> Answer:
    """Say what the GPUs did: kernels of each function, overlap with copies, gaps, memory.

    Returns
    -------
    Answer
        Tables ``gpus``, ``functions``, ``kernels``, ``gaps`` (of over 1 ms, the longest first),
        ``memory`` and ``recorded``.
    """
    unanswered: list[str] = []
    runs = read_executions(trace, ("thread", "prefix"))
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    samples = trace.table("gpu_samples") if trace.rows("gpu_samples") else None
    cuda = gpu_activity(trace)
    if not cuda:
        unanswered.append(f"Kernels, copies and gaps: {no_gpu_activity(trace)}.")
    tables["recorded"] = _recorded(trace)
    if samples is None:
        unanswered.append(
            "Memory and utilisation over time: ResourceMonitor sampled no GPU in this run."
        )
    if not cuda and samples is None:
        return Answer("gpu", tables, _TABLES, _losses(tables["recorded"]), unanswered)
    names = gpu_names(trace)
    if cuda:
        kernels = trace.table("kernels", ["gpu", "start", "stop", "task", "short_name"])
        copies = trace.table("memcpys", ["gpu", "start", "stop", "bytes"])
        fills = trace.table("memsets", ["gpu", "start", "stop"])
        kernels, copies, fills = (t[t["stop"] != -1] for t in (kernels, copies, fills))
        tables["gpus"], work = _gpus(trace, kernels, copies, fills, names, runs)
        tables["kernels"] = _kernels(kernels, runs)
        tables["functions"] = _functions(trace, runs, unanswered)
        tables["gaps"] = _gaps(trace, work, names, runs)
    else:
        tables["gpus"] = pd.DataFrame(
            {"gpu": pd.Series([names[row] for row in known_gpus(trace)], dtype=str)}
        )
    if samples is not None:
        _put_samples(trace, tables["gpus"], samples, names)
        tables["memory"] = _memory(samples, names, run_span(trace, runs).duration)
    found = _findings(trace, tables)
    found += _losses(tables["recorded"])
    return Answer("gpu", tables, _TABLES, costliest_first(found), unanswered)


def _recorded(trace: Trace) -> pd.DataFrame:
    """Say what the trace's reports hold; nothing where it has none."""
    rows = held(trace).values() if len(trace.reports) else ()
    return pd.DataFrame(
        [(str(h.kind), str(h.state), h.count, h.reason or None) for h in rows],
        columns=list(RECORDED),
    )


def _losses(recorded: pd.DataFrame) -> list[Finding]:
    """Find what Nsight lost, by reason: figures that rest on it are too small."""
    lost = recorded[recorded["state"].isin([State.PARTLY, State.LOST])]
    found = []
    for reason, rows in lost.groupby("reason", sort=False):
        what = ", ".join(f"{one['what']} {one['state']}" for one in rows.to_dict("records"))
        sampled = set(rows["what"]) <= {str(Kind.METRICS), str(Kind.SAMPLES)}
        effect = "Means cover less time" if sampled else "Figures that rest on them are too small"
        found.append(
            Finding(
                Severity.WARNING,
                "gpu",
                "recorded",
                tuple(int(row) for row in rows.index),
                f"Nsight's recording is not whole: {what} ({reason}).",
                f"{effect}. See with `dasf-hpc doctor` whether the node permits tracing, let "
                "workers end by themselves, or trace fewer kinds of events.",
            )
        )
    return found


def _name(gpu: int, names: list[str]) -> str:
    return names[gpu] if 0 <= gpu < len(names) else "GPU ?"


def _gpus(
    trace: Trace,
    kernels: pd.DataFrame,
    copies: pd.DataFrame,
    fills: pd.DataFrame,
    names: list[str],
    runs: Executions,
) -> tuple[pd.DataFrame, dict[int, Covered]]:
    run_duration = run_span(trace, runs).duration
    apart = gpus_apart(trace)
    rows, work = [], {}
    used = {g for table in (kernels, copies, fills) for g in table["gpu"].unique().tolist()}
    for gpu in sorted({*known_gpus(trace), *used}):
        run, moved, filled = (table[table["gpu"] == gpu] for table in (kernels, copies, fills))
        spans = [
            (t["start"].to_numpy(np.int64), t["stop"].to_numpy(np.int64))
            for t in (run, moved, filled)
        ]
        one, other = (Covered(*span) for span in spans[:2])
        both, every = (
            Covered(*(np.concatenate(ends) for ends in zip(*some, strict=True)))
            for some in (spans[:2], spans)
        )
        work[gpu] = every
        overlap = one.total + other.total - both.total
        duration = _extent(every) if gpu in apart else run_duration
        rows.append(
            {
                "gpu": _name(gpu, names),
                "busy": every.total,
                "busy_share": 100.0 * every.total / duration if duration else 0.0,
                "kernels": len(run),
                "kernel_time": int((run["stop"] - run["start"]).sum()),
                "copies": len(moved),
                "copy_time": int((moved["stop"] - moved["start"]).sum()),
                "copied": int(moved["bytes"].clip(lower=0).sum()),
                "fills": len(filled),
                "fill_time": int((filled["stop"] - filled["start"]).sum()),
                "overlap": overlap,
                "overlap_share": 100.0 * overlap / other.total if other.total else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=[c for c in GPUS if c in (rows[0] if rows else GPUS)]), work


def _extent(covered: Covered) -> int:
    """Give the time from the first moment that is covered to the last, ns."""
    return int(covered.stop[-1] - covered.start[0]) if len(covered.start) else 0


def _kernels(kernels: pd.DataFrame, runs: Executions) -> pd.DataFrame:
    task = kernels["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < len(runs))
    width = len(runs.functions)
    function = (
        np.where(known, runs.function[np.where(known, task, 0)], width) if width else task * 0
    )
    names = pd.Index([*runs.functions, NO_TASK])
    took = (kernels["stop"] - kernels["start"]).to_numpy(np.int64)
    table = (
        pd.DataFrame(
            {
                "function": function,
                "kernel": kernels["short_name"].astype(str).to_numpy(),
                "took": took,
            }
        )
        .groupby(["function", "kernel"])["took"]
        .agg(count="size", total="sum", max="max")
        .reset_index()
        .sort_values("total", ascending=False, kind="stable")
    )
    table = table[table.groupby("function").cumcount() < TOP].reset_index(drop=True)
    table["function"] = names[table["function"].to_numpy(np.int64)].astype(str)
    table["mean"] = table["total"] // table["count"].clip(lower=1)
    whole = int(took.sum())
    table["share"] = 100.0 * table["total"] / whole if whole else 0.0
    return table[list(KERNELS)]


def _functions(trace: Trace, runs: Executions, unanswered: list[str]) -> pd.DataFrame:
    if "task_gpu" not in trace.tables:
        unanswered.append("What each function did on GPUs: the trace does not sum it up by task.")
        return pd.DataFrame(columns=list(FUNCTIONS))
    used = trace.table("task_gpu")
    used = used[(used["task"] >= 0) & (used["task"] < len(runs))]
    task = used["task"].to_numpy(np.int64)
    function = runs.function[task]
    width = len(runs.functions)
    tasks = np.unique(task)  # a task of several GPUs has several rows
    copies = ["to_device_time", "to_host_time", "on_device_time", "other_copies_time"]

    def of(values: pd.Series) -> np.ndarray:
        return group_sums(function, values.clip(lower=0).to_numpy(np.int64), width)

    longest = np.zeros(width, np.int64)
    np.maximum.at(longest, function, used["latency_max"].to_numpy(np.int64))
    table = pd.DataFrame(
        {
            "function": pd.Series(runs.functions, dtype=str),
            "tasks": np.bincount(runs.function[tasks], minlength=width),
            "executing": group_sums(runs.function[tasks], runs.duration[tasks], width),
            "busy": of(used["busy"]),
            "kernels": of(used["kernels"]),
            "kernel_time": of(used["kernel_time"]),
            "copy_time": of(used[copies].clip(lower=0).sum(axis=1)),
            "idle": of(used["idle"]),
            "latency_max": longest,
        }
    )
    table["kernel_mean"] = table["kernel_time"] // table["kernels"].clip(lower=1)
    table["busy_share"] = (100.0 * table["busy"] / table["executing"]).where(table["executing"] > 0)
    table["launch_time"] = _launch_times(trace, runs, unanswered)
    table["launch_bound"] = (table["kernels"] >= ENOUGH_KERNELS) & (
        table["launch_time"] > table["kernel_time"]
    )
    table = table[table["tasks"] > 0].sort_values("busy", ascending=False, kind="stable")
    return table[list(FUNCTIONS)].reset_index(drop=True)


def _launch_times(trace: Trace, runs: Executions, unanswered: list[str]) -> np.ndarray:
    """Give the time that the tasks of each function spent in launching kernels, ns."""
    times = np.zeros(len(runs.functions), np.int64)
    if "cuda_api" not in trace.tables:
        unanswered.append("Which functions are launch-bound: CUDA calls were not recorded.")
        return times
    for piece in trace.pieces("cuda_api", ["start", "stop", "name", "task"]):
        names = piece["name"].cat.categories
        launches = np.array([*(str(n).startswith(_LAUNCHES) for n in names), False])
        task = piece["task"].to_numpy(np.int64)
        chosen = launches[piece["name"].cat.codes.to_numpy()] & (task >= 0) & (task < len(runs))
        took = (piece["stop"] - piece["start"]).clip(lower=0).to_numpy(np.int64)
        np.add.at(times, runs.function[task[chosen]], took[chosen])
    return times


def _gaps(
    trace: Trace, work: dict[int, Covered], names: list[str], runs: Executions
) -> pd.DataFrame:
    found = workers(trace, runs)
    parts = []
    for gpu, covered in work.items():
        start, stop = covered.gaps()
        long = np.flatnonzero(stop - start >= GAP)
        long = long[np.argsort(start[long] - stop[long], kind="stable")][:GAPS]
        users = [int(str(row)) for row, own in found["gpus"].items() if gpu in own]
        mine = np.flatnonzero(np.isin(runs.process, users))
        parts.append(
            pd.DataFrame(
                {
                    "gpu": _name(gpu, names),
                    "start": start[long],
                    "stop": stop[long],
                    "duration": stop[long] - start[long],
                    "task": [
                        _around(runs, mine, *gap)
                        for gap in zip(start[long], stop[long], strict=True)
                    ],
                }
            )
        )
    table = pd.concat(parts) if parts else pd.DataFrame(columns=list(GAP_COLUMNS))
    table = table.sort_values("duration", ascending=False, kind="stable").head(GAPS)
    table = table.reset_index(drop=True)
    labels = found["worker"].to_dict()
    task = table["task"].astype("int64").tolist()
    table["function"] = [runs.functions[runs.function[t]] if t >= 0 else NO_TASK for t in task]
    table["worker"] = [labels[int(runs.process[t])] if t >= 0 else None for t in task]
    return table[list(GAP_COLUMNS)]


def _around(runs: Executions, mine: np.ndarray, start: int, stop: int) -> int:
    """Give the execution that ran longest in a gap; -1: none."""
    if not len(mine):
        return -1
    inside = np.minimum(runs.stop[mine], stop) - np.maximum(runs.start[mine], start)
    best = int(np.argmax(inside))
    return int(mine[best]) if inside[best] > 0 else -1


def _put_samples(
    trace: Trace, table: pd.DataFrame, samples: pd.DataFrame, names: list[str]
) -> None:
    """Add what was sampled to the table of GPUs."""
    sizes = dict(zip(names, trace.gpus["memory"].tolist(), strict=True))
    of = samples["gpu"].map(lambda gpu: _name(int(gpu), names))
    utilization = samples["utilization"].where(samples["utilization"] >= 0).groupby(of).mean()
    memory = samples["memory_used"].where(samples["memory_used"] >= 0).groupby(of).max()
    table["utilization"] = table["gpu"].map(utilization)
    table["peak_memory"] = table["gpu"].map(memory)
    whole = table["gpu"].map(sizes)
    table["peak_memory_share"] = (100.0 * table["peak_memory"] / whole).where(whole > 0)


def _memory(samples: pd.DataFrame, names: list[str], duration: int) -> pd.DataFrame:
    length = max(1, -(-duration // INTERVALS))
    table = pd.DataFrame(
        {
            "time": samples["time"] // length * length,
            "gpu": samples["gpu"].map(lambda gpu: _name(int(gpu), names)),
            "used": samples["memory_used"].where(samples["memory_used"] >= 0),
            "utilization": samples["utilization"].where(samples["utilization"] >= 0),
        }
    )
    grouped = table.groupby(["gpu", "time"]).agg(
        used=("used", "max"), utilization=("utilization", "mean")
    )
    return grouped.reset_index()[list(MEMORY)]


def _findings(trace: Trace, tables: dict[str, pd.DataFrame]) -> list[Finding]:
    found: list[Finding] = []

    def find(severity: Severity, table: str, rows: list[int], sentence: str, step: str) -> None:
        found.append(Finding(severity, "gpu", table, tuple(rows), sentence, step))

    gpus, functions, gaps = tables["gpus"], tables["functions"], tables["gaps"]

    def find_all(
        severity: Severity,
        table: str,
        rows: pd.DataFrame,
        heading: str,
        clause: Callable[[dict[str, Any]], str],
        step: str,
    ) -> None:
        found.extend(told_as_one(severity, "gpu", table, rows, heading, clause, step))

    bound = functions[functions["launch_bound"].eq(True)]
    find_all(
        Severity.WARNING,
        "functions",
        bound.sort_values("launch_time", ascending=False, kind="stable"),
        "functions are launch-bound",
        lambda function: (
            f"{function['function']} is launch-bound: its tasks spend "
            f"{duration_text(function['launch_time'])} launching {function['kernels']} kernels that"
            f" run for {duration_text(function['kernel_time'])}"
        ),
        "Launch fewer and larger kernels: fuse them, use CUDA graphs, or larger chunks.",
    )
    if found:  # at most as if the kernels alone took time
        over = (bound["launch_time"] - bound["kernel_time"]).clip(lower=0)
        times = dict(zip(bound["function"], over.astype(int), strict=True))
        found[0] = replace(found[0], **causes(trace).less("launching kernels", times))
    if len(functions):
        little = functions[
            (functions["busy_share"] <= LITTLE)
            & (functions["executing"] >= 0.1 * functions["executing"].sum())
        ]
        find_all(
            Severity.WARNING,
            "functions",
            little.sort_values("executing", ascending=False, kind="stable"),
            "functions use the GPU little",
            lambda function: (
                f"{function['function']} uses the GPU for {share_text(function['busy_share'])} of "
                "its tasks' time"
            ),
            "See what it does on the CPU; its copies and waits stand beside it.",
        )
    if len(gaps):
        total = int(gaps["duration"].sum())
        by = gaps.groupby("function")["duration"].sum().sort_values(ascending=False)
        worst = str(by.index[0])
        find(
            Severity.NOTICE,
            "gaps",
            gaps.index[gaps["function"] == worst].tolist()[:100],
            f"GPUs did nothing in {len(gaps)} gap(s) of over {duration_text(GAP)}, "
            f"{duration_text(total)} in sum, of which {duration_text(by.iloc[0])} in {worst}.",
            "Where a task was running it kept the GPU waiting; where none was, see "
            "`dasf-hpc analyze where`.",
        )
    if "overlap_share" in gpus:
        copying = gpus[
            (gpus["copy_time"] >= 0.1 * gpus["busy"].clip(lower=1)) & (gpus["copies"] > 0)
        ]
        find_all(
            Severity.NOTICE,
            "gpus",
            copying[copying["overlap_share"] < 10].sort_values("copy_time", ascending=False),
            "GPUs copy without running kernels beside it",
            lambda one: (
                f"{one['gpu']} copies {bytes_text(one['copied'])} for "
                f"{duration_text(one['copy_time'])} and runs kernels beside it for "
                f"{share_text(one['overlap_share'])} of that"
            ),
            "Copy in another stream from pinned memory, or keep the data on the GPU.",
        )
    if "peak_memory_share" in gpus:
        full = gpus[gpus["peak_memory_share"] >= FULL]
        find_all(
            Severity.WARNING,
            "gpus",
            full.sort_values("peak_memory_share", ascending=False, kind="stable"),
            "GPUs had full memory",
            lambda one: (
                f"The memory of {one['gpu']} was {share_text(one['peak_memory_share'])} full "
                f"({bytes_text(one['peak_memory'])})"
            ),
            "Make chunks smaller, or let it spill to main memory (dask-cuda's device limits).",
        )
    return found
