"""Analysis: which functions took the time, and which tasks?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import WORST, Answer, Columns, Finding, Severity
from dasf_hpc.analysis.cause import LEAST
from dasf_hpc.analysis.causes import FAILED, causes
from dasf_hpc.analysis.executions import (
    Executions,
    group_quantiles,
    group_sums,
    in_lanes,
    input_bytes,
    key_texts,
    read_executions,
    workers,
)
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.holdings import gpu_activity, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import count_text, duration_text, share_text

#: Share of the executing time above which a function is named as the one to look at.
LARGE_SHARE = 0.5
#: A function whose longest task takes this many times its median, ...
LONG_TAIL = 5.0
#: ... and whose tasks above the median cost this share of all executing time, has a long tail.
TAIL_SHARE = 0.1
#: Executions that task_bottleneck lists.
LONGEST = 1000

FUNCTIONS: Columns = {
    "node": ("", "the host (with by=node)"),
    "worker": ("", "the worker (with by=worker)"),
    "gpu": ("", "the worker's GPUs (with by=gpu)"),
    "function": ("", "name of the function: prefix of its tasks' keys"),
    "count": ("", "executions"),
    "failed": ("", "executions that ended in an error, or never"),
    "total": ("ns", "time in executions, in sum"),
    "mean": ("ns", "mean time of an execution"),
    "p50": ("ns", "median"),
    "p95": ("ns", "95th percentile"),
    "max": ("ns", "longest"),
    "share": ("%", "of the executing time of the run, node, worker or GPU"),
    "bytes_in": ("bytes", "size of the results its tasks needed, in sum"),
    "bytes_out": ("bytes", "size of its results, in sum"),
    "throughput": ("bytes/s", "bytes in per executing time"),
    "gpu_utilization": ("%", "mean of the samples taken of the worker's GPUs while it executed"),
    "gpu_memory": ("bytes", "mean GPU memory in use in those samples"),
    "kernel_time": ("ns", "time of the CUDA kernels its tasks launched, in sum"),
    "copy_time": ("ns", "time of the copies to, from and on GPUs its tasks began, in sum"),
}

TASKS: Columns = {
    "task": ("", "row of table tasks"),
    "key": ("", "the task's key"),
    "function": ("", "name of the function"),
    "node": ("", "the host"),
    "worker": ("", "the worker"),
    "duration": ("ns", "time of the execution"),
    "share": ("%", "of its worker's executing time"),
    "nbytes": ("bytes", "size of its result; -1: none"),
}


def functions(trace: Trace, by: str = "function") -> Answer:
    """Say which functions took the time.

    Parameters
    ----------
    trace
        The trace.
    by
        ``function``: over the whole run; ``node``, ``worker``, ``gpu``: for each of them apart.
        With ``worker`` it is the table that dasf-core calls function_bottleneck.

    Returns
    -------
    Answer
        Table ``functions``, the longest in total first.

    Raises
    ------
    ValueError
        If there is no such `by`.
    """
    if by not in ("function", "node", "worker", "gpu"):
        raise ValueError(f"functions cannot be told apart by {by}")
    columns = ["prefix", "key", "state", "nbytes"]
    if trace.rows("gpu_samples"):
        columns.append("thread")
    runs = read_executions(trace, columns)
    found = workers(trace, runs)
    unanswered: list[str] = []
    entities, names = _entities(trace, found, by)
    if not len(runs):
        unanswered.append("No task was executed in this run.")
    place = np.zeros(int(found.index.max()) + 1 if len(found) else 1, np.int64)
    place[found.index.to_numpy()] = entities
    entity = place[runs.process] if len(runs) else np.empty(0, np.int64)
    width = max(1, len(runs.functions))
    group = entity * width + runs.function
    groups = max(1, len(names)) * width
    table = _figures(trace, runs, group, groups)
    table.insert(
        0,
        "function",
        pd.Series([runs.functions[g % width] for g in table.index], dtype=str, index=table.index),
    )
    whole = np.bincount(entity, weights=runs.duration, minlength=max(1, len(names)))
    of = whole[table.index.to_numpy() // width]
    share = np.divide(100.0 * table["total"], of, out=np.zeros(len(table)), where=of > 0)
    table.insert(list(table).index("bytes_in"), "share", share)
    if by != "function":
        table.insert(
            0, by, pd.Series([names[g // width] for g in table.index], dtype=str, index=table.index)
        )
    _gpu_samples(trace, runs, found, group, groups, table, unanswered)
    _gpu_times(trace, group, groups, table, unanswered)
    table = table.sort_values("total", ascending=False, kind="stable").reset_index(drop=True)
    findings = _findings(trace, runs, table) if by == "function" and len(runs) else []
    return Answer("functions", {"functions": table}, {"functions": FUNCTIONS}, findings, unanswered)


def _entities(trace: Trace, found: pd.DataFrame, by: str) -> tuple[NDArray[np.int64], list[str]]:
    """Give, for each worker, the position of what it counts to, and the names of those."""
    if by == "function":
        return np.zeros(len(found), np.int64), [""]
    if by == "gpu":
        gpus = gpu_names(trace)
        labels = [", ".join(gpus[g] for g in rows) or "no GPU" for rows in found["gpus"]]
    else:
        labels = found[by].tolist()
    codes, names = pd.factorize(pd.Series(labels, dtype=object))
    return codes.astype(np.int64), [str(name) for name in names]


def _figures(trace: Trace, runs: Executions, group: NDArray[np.int64], groups: int) -> pd.DataFrame:
    duration = runs.duration
    count = np.bincount(group, minlength=groups)
    used = np.flatnonzero(count)
    bad = runs.in_state("error", "lost")
    total = group_sums(group, duration, groups)
    quantiles = group_quantiles(group, duration, groups, (0.5, 0.95, 1.0))
    bytes_in = group_sums(group, input_bytes(trace, runs), groups)
    table = pd.DataFrame(
        {
            "count": count,
            "failed": np.bincount(group[bad], minlength=groups),
            "total": total,
            "mean": total / np.maximum(count, 1),
            "p50": quantiles[:, 0],
            "p95": quantiles[:, 1],
            "max": quantiles[:, 2],
            "bytes_in": bytes_in,
            "bytes_out": group_sums(group, np.maximum(runs.nbytes, 0), groups),
        }
    ).loc[used]
    for column in ("mean", "p50", "p95", "max"):
        table[column] = table[column].round().astype(np.int64)
    seconds = table["total"] / 1e9
    table["throughput"] = (table["bytes_in"] / seconds).where(seconds > 0)
    return table


def _gpu_samples(
    trace: Trace,
    runs: Executions,
    found: pd.DataFrame,
    group: NDArray[np.int64],
    groups: int,
    table: pd.DataFrame,
    unanswered: list[str],
) -> None:
    """Average what was sampled of a worker's GPUs while it executed tasks of each group."""
    table["gpu_utilization"] = np.nan
    table["gpu_memory"] = np.nan
    if not trace.rows("gpu_samples"):
        unanswered.append("GPU utilisation and memory: no GPU was sampled in this run.")
        return
    if not len(runs) or not found["gpus"].map(len).any():
        unanswered.append("GPU utilisation and memory: no worker says which GPUs are its own.")
        return
    samples = trace.table("gpu_samples", ["time", "gpu", "utilization", "memory_used"])
    samples = samples.sort_values("time", kind="stable")
    sums = {name: np.zeros(groups) for name in ("utilization", "memory_used")}
    counts = {name: np.zeros(groups) for name in sums}
    order, firsts = in_lanes(runs)
    own = dict(zip(found.index.tolist(), found["gpus"], strict=True))
    of_gpu = dict(iter(samples.groupby("gpu")))
    for first, last in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        lane = order[first:last]
        start, stop = runs.start[lane], runs.stop[lane]
        for gpu in own.get(int(runs.process[lane[0]]), ()):
            part = of_gpu.get(gpu)
            if part is None:
                continue
            times = part["time"].to_numpy()
            at = np.searchsorted(start, times, "right") - 1
            inside = (at >= 0) & (times < stop[np.maximum(at, 0)])
            hit = group[lane[at[inside]]]
            for name in sums:
                values = part[name].to_numpy(np.float64)[inside]
                known = values >= 0  # -1 and NaN: not available
                sums[name] += np.bincount(hit[known], weights=values[known], minlength=groups)
                counts[name] += np.bincount(hit[known], minlength=groups)
    for column, name in (("gpu_utilization", "utilization"), ("gpu_memory", "memory_used")):
        with np.errstate(invalid="ignore", divide="ignore"):
            table[column] = (sums[name] / counts[name])[table.index.to_numpy()]


def _gpu_times(
    trace: Trace,
    group: NDArray[np.int64],
    groups: int,
    table: pd.DataFrame,
    unanswered: list[str],
) -> None:
    """Sum what the tasks of each group did on GPUs."""
    if not trace.rows("task_gpu"):
        told = gpu_activity(trace)
        why = "the trace does not sum them up by task" if told else no_gpu_activity(trace)
        unanswered.append(f"Kernels and copies: {why}.")
        table["kernel_time"] = pd.array([pd.NA] * len(table), dtype="Int64")
        table["copy_time"] = table["kernel_time"]
        return
    gpu = trace.table("task_gpu")
    task = gpu["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < len(group))
    copies = [
        c for c in gpu.columns if c.endswith("_time") and c not in ("kernel_time", "fills_time")
    ]
    for column, of in (("kernel_time", ["kernel_time"]), ("copy_time", copies)):
        time = gpu[of].clip(lower=0).sum(axis=1).to_numpy(np.int64)
        total = group_sums(group[task[known]], time[known], groups)
        table[column] = pd.array(total[table.index.to_numpy()], dtype="Int64")


def _findings(trace: Trace, runs: Executions, table: pd.DataFrame) -> list[Finding]:
    found = []
    for row, function in table[table["share"] >= 100 * LARGE_SHARE].iterrows():
        found.append(
            Finding(
                Severity.SERIOUS,
                "functions",
                "functions",
                (int(str(row)),),
                f"{function['function']} takes {share_text(function['share'])} of the executing "
                f"time ({duration_text(function['total'])} in {count_text(function['count'])} "
                f"task{'s' * (function['count'] != 1)}).",
                "Speed it up first; `dasf-hpc analyze what_if` says what that would bring.",
                **causes(trace).faster(runs.functions.index(function["function"])).told,
            )
        )
    whole = table["total"].sum()
    tail = table["total"] - table["count"] * table["p50"]
    long = (table["max"] >= LONG_TAIL * table["p50"]) & (tail >= TAIL_SHARE * whole)
    long &= table["count"] > 10
    for row in tail[long].sort_values(ascending=False, kind="stable").index[:WORST].tolist():
        function = table.loc[row]
        known = causes(trace)
        slow = {name for c in known.of("slow") for name in c.figures.get("functions", ())}
        name, median = str(function["function"]), int(function["p50"])
        if name in slow:  # that is why they differ, and balance tells of it
            continue
        code = runs.functions.index(name)
        usual = int(function["p95"])
        over = np.where(runs.function == code, np.maximum(0, runs.duration - usual), 0)
        told = known.shorter(f"tasks of {name} differ", over).told
        found.append(
            Finding(
                Severity.WARNING
                if told["saves"] >= LEAST * known.savings.recorded
                else Severity.NOTICE,
                "functions",
                "functions",
                (int(row),),
                f"Tasks of {name} differ: the median takes {duration_text(median)}, 5 % take "
                f"{duration_text(function['p95'])} and more, the longest "
                f"{duration_text(function['max'])}.",
                "See whether the long ones have larger inputs (`dasf-hpc analyze task_bottleneck`) "
                "and divide the data evenly.",
                **told,
            )
        )
    bad = table[table["failed"] > 0]
    if len(bad):
        failures = int(bad["failed"].sum())
        found.append(
            Finding(
                Severity.WARNING,
                "functions",
                "functions",
                tuple(int(row) for row in bad.index),
                f"{count_text(failures)} execution{'s' * (failures != 1)} failed or "
                f"{'was' if failures == 1 else 'were'} lost "
                f"(most in {bad.sort_values('failed')['function'].iloc[-1]}).",
                "`dasf-hpc analyze failures` tells what of, and which were retried with success.",
                cause=FAILED,
            )
        )
    return found


def task_bottleneck(trace: Trace, longest: int | None = LONGEST) -> Answer:
    """List executions, the longest first: dasf-core's task_bottleneck.

    Parameters
    ----------
    trace
        The trace.
    longest
        So many executions; None: all, which for each million takes a second more to read keys.

    Returns
    -------
    Answer
        Table ``tasks``.
    """
    runs = read_executions(trace, ("prefix", "key", "nbytes"))
    found = workers(trace, runs)
    duration = runs.duration
    slots = int(found.index.max()) + 1 if len(found) else 1
    total = np.bincount(runs.process, weights=duration, minlength=slots)
    order = _longest(duration, len(runs) if longest is None else longest)
    names = {c: np.full(slots, -1, np.int32) for c in ("node", "worker")}
    categories = {}
    for column, codes in names.items():
        code, labels = pd.factorize(found[column])
        codes[found.index.to_numpy()] = code
        categories[column] = pd.Index(labels, dtype="str")
    process = runs.process[order]
    of = total[process]
    table = pd.DataFrame(
        {
            "task": order,
            "key": pd.Series(key_texts(trace, runs.key[order]), dtype="str"),
            "function": pd.Categorical.from_codes(
                runs.function[order], categories=pd.Index(runs.functions, dtype="str")
            ),
            "node": pd.Categorical.from_codes(names["node"][process], categories["node"]),
            "worker": pd.Categorical.from_codes(names["worker"][process], categories["worker"]),
            "duration": duration[order],
            "share": np.divide(100.0 * duration[order], of, out=np.zeros(len(of)), where=of > 0),
            "nbytes": runs.nbytes[order],
        }
    )
    unanswered = [] if len(runs) else ["No task was executed in this run."]
    return Answer("task_bottleneck", {"tasks": table}, {"tasks": TASKS}, [], unanswered)


def _longest(duration: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Give the rows of the longest, those first; of equal ones the first row."""
    rows = np.arange(len(duration))
    if most < len(duration):
        least = np.partition(duration, -most)[-most] if most else duration.max() + 1
        rows = np.flatnonzero(duration >= least)
    result: NDArray[np.intp] = rows[np.argsort(-duration[rows], kind="stable")][:most]
    return result
