"""Analysis: which functions use the GPU that they hold?"""

from __future__ import annotations

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
from dasf_hpc.analysis.executions import Executions, Floats, Ints, read_executions, workers
from dasf_hpc.analysis.gpu import NO_TASK
from dasf_hpc.analysis.sampled import Means, Sampled, sampled_by_owner
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.holdings import Kind, gpu_activity, held, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: Tasks that are listed, those that had GPUs longest.
TASKS = 1000
#: A function is told of whose kernels had this share of the time that all kernels had GPUs.
MUCH = 0.1
#: Of a function that is told of, samples cover this share of its kernels' time: means of less may
#: be of what is not typical.
ENOUGH = 0.5
#: Below this the coverage is told, %.
WHOLE = 90.0
#: Below this SMs are called little used, %: at half, as the user guide says, half of the SMs have
#: work, or all have it half of the time, and a second kernel of the kind would find room.
LITTLE = 50.0
#: Tensor cores are called unused below this, %: a mean of 1 is rounding and a few stray kernels.
UNUSED = 1.0
#: DRAM is called the likely limit from this, %: Nsight Compute's rules call a unit well used from
#: 60 % of its peak on.
BUSY_DRAM = 60.0

#: Measures in the order in which they are shown: unit and meaning.
MEASURES: Columns = {
    "sm_active": ("%", "SMs that had at least one warp"),
    "sm_issue": ("%", "cycles in which the SMs' schedulers issued an instruction"),
    "tensor_active": ("%", "cycles in which tensor cores were active"),
    "compute_warps": ("%", "compute warps on the SMs, of the most there can be"),
    "unused_warps": ("%", "free places for warps on SMs that had one, of the most there can be"),
    "gpu_active": ("%", "the GPU was active"),
    "gr_active": ("%", "the graphics and compute engine was active"),
    "dram_read": ("%", "the GPU's memory was read, of its peak"),
    "dram_write": ("%", "the GPU's memory was written, of its peak"),
    "nvlink_rx": ("%", "received by NVLink, of its peak, protocol included where it is sampled"),
    "nvlink_tx": ("%", "sent by NVLink, of its peak, protocol included where it is sampled"),
    "pcie_rx": ("%", "received by PCIe, of its peak"),
    "pcie_tx": ("%", "sent by PCIe, of its peak"),
    "gpc_clock": ("Hz", "clock of the SMs"),
    "sys_clock": ("Hz", "clock of the GPU's front end and copy engines"),
}
_WHILE = ", mean while its kernels had the GPU"
FUNCTIONS: Columns = {
    "function": ("", f"name of the function; {NO_TASK}: what no known task launched"),
    "held": ("ns", "time that its kernels had GPUs: its part of their busy time"),
    "copying": ("ns", "time that its copies and fills had GPUs"),
    "coverage": ("%", "of `held` of which there are samples"),
    **{name: (unit, meaning + _WHILE) for name, (unit, meaning) in MEASURES.items()},
}
TASK_COLUMNS: Columns = {
    "task": ("", "row of table tasks"),
    "function": ("", "name of the function"),
    "worker": ("", "the worker that ran it"),
    **{name: FUNCTIONS[name] for name in ("held", "coverage", *MEASURES)},
}
METRICS: Columns = {
    "gpu": ("", "the GPU"),
    "metric": ("", "nsys's name of the metric"),
    "unit": ("", "unit of its values"),
    "mean": ("", "mean over the time that its samples stand for, in the metric's unit"),
    "busy": ("", "mean while a kernel, copy or fill ran"),
    "idle": ("", "mean while none ran"),
    "measure": ("", "the measure that it is, or is a part of; empty for others"),
    "samples": ("", "number of samples, of all reports"),
    "covered": ("ns", "time that the samples stand for, once"),
    "busy_covered": ("ns", "of that time, the GPU was busy"),
}
OTHERS: Columns = {
    "function": FUNCTIONS["function"],
    "metric": ("", "nsys's name of a metric that is no measure"),
    "unit": ("", "unit of its values"),
    "covered": ("ns", "time that the function's kernels had GPUs of which there are samples"),
    "mean": ("", "mean while its kernels had the GPU, in the metric's unit"),
}
_TABLES = {
    "functions": FUNCTIONS,
    "tasks": TASK_COLUMNS,
    "metrics": METRICS,
    "function_metrics": OTHERS,
}


def gpu_metrics(trace: Trace, tasks: int = TASKS) -> Answer:
    """Say how much of a GPU the kernels of each function and task used while they had it.

    Parameters
    ----------
    trace
        The trace.
    tasks
        So many tasks are listed, those whose kernels, copies and fills had GPUs longest.

    Returns
    -------
    Answer
        Tables ``functions``, ``tasks``, ``metrics`` (by GPU) and ``function_metrics`` (metrics that
        are none of the measures).
    """
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    if not trace.rows("gpu_metrics"):
        holding = held(trace)[Kind.METRICS]
        why = f" ({holding.reason})" if holding.reason else ""
        return Answer("gpu_metrics", tables, _TABLES, [], [f"GPU metrics: {holding.state}{why}."])
    unanswered: list[str] = []
    runs = read_executions(trace, ("thread", "prefix"))
    listed = _listed(trace, len(runs), tasks)
    found = sampled_by_owner(trace, runs.function.astype(np.int32), len(runs.functions), listed)
    metrics = trace.table("metrics")
    tables["metrics"] = _metrics(trace, found, metrics)
    if gpu_activity(trace):
        tables["functions"] = _functions(found, runs, metrics)
        tables["tasks"] = _tasks(trace, found, runs, metrics, listed)
        tables["function_metrics"] = _others(found, runs, metrics)
        unanswered += _uncovered(tables["functions"])
    else:
        unanswered.append(f"Which functions had the GPUs: {no_gpu_activity(trace)}.")
    return Answer(
        "gpu_metrics",
        tables,
        _TABLES,
        most_severe_first(_findings(tables["functions"])),
        unanswered,
    )


def _listed(trace: Trace, runs: int, tasks: int) -> list[int]:
    """Give the tasks that had GPUs longest."""
    if not trace.rows("task_gpu"):
        return []
    used = trace.table("task_gpu", ["task", "share"])
    used = used[(used["task"] >= 0) & (used["task"] < runs)]
    by_task = used.groupby("task")["share"].sum().sort_values(ascending=False, kind="stable")
    return [int(str(task)) for task in by_task.head(tasks).index]


def _put_measures(table: pd.DataFrame, means: Means, metrics: pd.DataFrame) -> None:
    """Add a column for each measure: its metrics are parts, which add up."""
    mean = means.mean()
    for measure in MEASURES:
        rows = np.flatnonzero((metrics["measure"] == measure).to_numpy())
        if len(rows):
            parts = mean[rows]
            known = ~np.isnan(parts).all(axis=0)
            table[measure] = np.where(known, np.nansum(parts, axis=0), np.nan)


def _coverage(covered: Ints, held_for: Ints) -> Floats:
    """Give the share of a time of which there are samples of at least one metric, %."""
    most = covered.max(axis=0, initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = np.where(held_for > 0, 100.0 * most / held_for, np.nan)
    return result


def _functions(found: Sampled, runs: Executions, metrics: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "function": pd.Series([*runs.functions, NO_TASK], dtype=str),
            "held": found.kernel_share,
            "copying": found.other_share,
            "coverage": _coverage(found.kernels.covered, found.kernel_share),
        }
    )
    _put_measures(table, found.kernels, metrics)
    table = table[(table["held"] > 0) | (table["copying"] > 0)]
    return table.sort_values("held", ascending=False, kind="stable").reset_index(drop=True)


def _tasks(
    trace: Trace, found: Sampled, runs: Executions, metrics: pd.DataFrame, listed: list[int]
) -> pd.DataFrame:
    names = workers(trace, runs)["worker"].to_dict()
    table = pd.DataFrame(
        {
            "task": np.array(listed, np.int64),
            "function": pd.Series([runs.functions[runs.function[t]] for t in listed], dtype=str),
            "worker": [names.get(int(runs.process[t])) for t in listed],
            "held": found.task_share,
            "coverage": _coverage(found.tasks.covered, found.task_share),
        }
    )
    _put_measures(table, found.tasks, metrics)
    return table


def _metrics(trace: Trace, found: Sampled, metrics: pd.DataFrame) -> pd.DataFrame:
    names = gpu_names(trace)
    metric, gpu = np.nonzero(found.samples)
    order = np.lexsort((metric, gpu))
    metric, gpu = metric[order], gpu[order]
    idle = Means(
        found.whole.covered - found.busy.covered, found.whole.integral - found.busy.integral
    )
    told = metrics.iloc[metric].reset_index(drop=True)
    return pd.DataFrame(
        {
            "gpu": pd.Series([names[row] for row in gpu.tolist()], dtype=str),
            "metric": told["name"].astype(object),
            "unit": told["unit"].astype(object),
            "mean": found.whole.mean()[metric, gpu],
            "busy": found.busy.mean()[metric, gpu],
            "idle": idle.mean()[metric, gpu],
            "measure": told["measure"].astype(object),
            "samples": found.samples[metric, gpu],
            "covered": found.whole.covered[metric, gpu],
            "busy_covered": found.busy.covered[metric, gpu],
        }
    )


def _others(found: Sampled, runs: Executions, metrics: pd.DataFrame) -> pd.DataFrame:
    names = np.array([*runs.functions, NO_TASK], object)
    other = np.flatnonzero(~metrics["measure"].isin(list(MEASURES)).to_numpy())
    row, function = np.nonzero(found.kernels.covered[other])
    order = np.lexsort((row, -found.kernel_share[function]))
    metric, function = other[row[order]], function[order]
    told = metrics.iloc[metric].reset_index(drop=True)
    return pd.DataFrame(
        {
            "function": pd.Series(names[function], dtype=str),
            "metric": told["name"].astype(object),
            "unit": told["unit"].astype(object),
            "covered": found.kernels.covered[metric, function],
            "mean": found.kernels.mean()[metric, function],
        }
    )


def _uncovered(functions: pd.DataFrame) -> list[str]:
    """Say of which of the kernels' time there are no samples."""
    held_for = int(functions["held"].sum())
    covered = float((functions["held"] * functions["coverage"].fillna(0) / 100).sum())
    if not held_for or covered >= ENOUGH * held_for:
        return []
    return [
        f"What kernels did in {duration_text(held_for - covered)} of the "
        f"{duration_text(held_for)} that they had GPUs: there are no samples of it (GPUs that were "
        "not sampled, instances of a divided GPU, or samples that nsys lost)."
    ]


def _sampled(coverage: float) -> str:
    """Say of how much of a function's time there are samples, where that is not about all."""
    return "" if coverage >= WHOLE else f" in the {share_text(coverage)} of it that were sampled"


def _findings(functions: pd.DataFrame) -> list[Finding]:
    """Find functions that hold GPUs and use little of them."""
    if not len(functions):
        return []
    told = functions[
        (functions["held"] >= MUCH * functions["held"].sum())
        & (functions["held"] > 0)
        & (functions["coverage"] >= 100 * ENOUGH)
        & (functions["function"] != NO_TASK)
    ]
    none = pd.Series(np.nan, index=told.index)
    sm, tensor = told.get("sm_active", none), told.get("tensor_active", none)
    dram = told.get("dram_read", none) + told.get("dram_write", none)
    told = told.assign(
        dram=dram, idle=told["held"] * (1 - sm / 100), without=told["held"].where(tensor < UNUSED)
    )
    found: list[Finding] = []

    def find(
        severity: Severity, rows: pd.DataFrame, heading: str, clause: Any, step: str, by: str
    ) -> None:
        rows = rows.sort_values(by, ascending=False, kind="stable")
        found.extend(told_as_one(severity, "gpu_metrics", "functions", rows, heading, clause, step))

    find(
        Severity.WARNING,
        told[sm < LITTLE],
        "functions hold GPUs and use few of their SMs",
        lambda one: (
            f"kernels of {one['function']} have GPUs for {duration_text(one['held'])} with "
            f"{share_text(one['sm_active'])} of the SMs active{_sampled(one['coverage'])}: SMs "
            f"without work amount to {duration_text(one['idle'])} of whole GPUs"
        ),
        "Give them more at once: larger chunks, more tasks a GPU (threads, streams or MPS), or "
        "kernels of more blocks.",
        "idle",
    )
    find(
        Severity.NOTICE,
        told[dram >= BUSY_DRAM],
        "functions seem to be limited by the GPU's memory",
        lambda one: (
            f"kernels of {one['function']} have GPUs for {duration_text(one['held'])} and keep "
            f"their memory at {share_text(one['dram'])} of its peak{_sampled(one['coverage'])}, "
            "which seems to be what limits them"
        ),
        "Move less: fuse operations, use a smaller data type, or keep what is needed again in "
        "caches.",
        "held",
    )
    find(
        Severity.NOTICE,
        told[(tensor < UNUSED) & (sm >= LITTLE) & ~(dram >= BUSY_DRAM)],
        "functions use no tensor cores",
        lambda one: (
            f"kernels of {one['function']} have GPUs for {duration_text(one['held'])}, keep "
            f"{share_text(one['sm_active'])} of the SMs active and use no tensor cores "
            f"({one['tensor_active']:.1f} %{_sampled(one['coverage'])})"
        ),
        "If it multiplies matrices or convolves, a data type that tensor cores take (TF32, FP16, "
        "BF16) may be quicker; whether it does is not seen here.",
        "held",
    )
    return found
