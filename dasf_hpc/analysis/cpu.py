"""Analysis: on and off the CPU, what did tasks' threads do?"""

from __future__ import annotations

import itertools

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
from dasf_hpc.analysis.executions import Executions, Ints, group_sums, read_executions
from dasf_hpc.trace.holdings import Kind, held
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import Stacks, read_stacks, samples_once
from dasf_hpc.units import duration_text, share_text

#: Off the CPU for this share of its time a function is named, in %.
OFF = 30.0
#: Of how much of a function's time it is known is told where that is less than this share.
MOSTLY = 0.9
#: A frame with this share of a function's samples is named, in %.
HOT = 30.0
#: Samples below which a function's frames are not named.
ENOUGH = 50
#: A function of less than this share of the executing time is not named, in %.
SMALL = 2.0
#: Frames listed of each function.
TOP = 10
NO_TASK = "(no task)"
NO_NAME = "(no name)"

FUNCTIONS: Columns = {
    "function": ("", f"name of the function; {NO_TASK}: samples of threads that ran none"),
    "tasks": ("", "its executions"),
    "executing": ("ns", "their time in sum"),
    "known": ("ns", "of that time: reports tell when the thread was on a CPU"),
    "on_cpu": ("ns", "of the time that is known: the task's thread was on a CPU"),
    "off_cpu": ("ns", "of the time that is known: it was off the CPU"),
    "off_share": ("%", "of the time that is known: off the CPU"),
    "blocked": ("ns", "of the time off the CPU: the thread waited for something"),
    "preempted": ("ns", "of the time off the CPU: others got the CPU; reports since 2023 tell"),
    "times_off": ("", "how often threads were off the CPU"),
    "longest_off": ("ns", "the longest time off the CPU"),
    "samples": ("", "samples of the CPU within its tasks"),
    "others": (
        "",
        "of these: of threads that run no tasks, such as of a library; taken while a task of it "
        "was the only one that its process ran",
    ),
}
FRAMES: Columns = {
    "function": ("", f"the function whose tasks ran; {NO_TASK}: none"),
    "frame": ("", f"what is called, as the program or library names it; {NO_NAME}: it does not"),
    "module": ("", "file of the program or library; none: it is not known"),
    "self": ("", "samples in it"),
    "self_share": ("%", "of the function's samples"),
    "total": ("", "samples in it and in what it calls"),
    "total_share": ("%", "of the function's samples"),
}
_TABLES = {"functions": FUNCTIONS, "frames": FRAMES}


def cpu(trace: Trace) -> Answer:
    """Say how long tasks' threads were off the CPU, and in which calls they were on it.

    Returns
    -------
    Answer
        Tables ``functions``, those with the most executing time first, and ``frames``: of each
        function the calls with the most samples.
    """
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    holds = held(trace)
    unanswered = []
    switched, sampled = trace.rows("task_cpu") > 0, trace.rows("cpu_samples") > 0
    for there, kind, what in (
        (switched, Kind.SWITCHES, "Time off the CPU"),
        (sampled, Kind.SAMPLES, "Calls on the CPU"),
    ):
        if not there:
            why = holds[kind].reason or str(holds[kind].state)
            if holds[kind].there:
                why = "what was recorded is of no task's thread"
            unanswered.append(f"{what}: {why}.")
    if switched or sampled:
        runs = read_executions(trace, ("thread", "prefix"))
        samples, others, counts = _samples(trace, runs)
        tables["functions"] = _functions(trace, runs, samples, others, switched)
        if counts:
            tables["frames"] = _frames(read_stacks(trace), runs, samples, counts)
    found = _findings(tables["functions"], tables["frames"])
    return Answer("cpu", tables, _TABLES, found, unanswered)


def _samples(trace: Trace, runs: Executions) -> tuple[Ints, Ints, dict[int, tuple[Ints, Ints]]]:
    """Count samples by function; the last one is no task.

    Returns
    -------
    samples
        Of each function.
    others
        Of these, those of threads that run no tasks.
    counts
        Of those with calls, by function: rows of ``stacks`` and how many are there.
    """
    width, stacks = len(runs.functions), max(1, trace.rows("stacks"))
    samples, others = np.zeros((2, width + 1), np.int64)
    keys: list[Ints] = []
    counts: list[Ints] = []
    if not trace.rows("cpu_samples"):
        return samples, others, {}
    for part in samples_once(trace, ["task", "stack", "reason"]):
        task = part["task"].to_numpy(np.int64)
        stack = part["stack"].to_numpy(np.int64)
        known = (task >= 0) & (task < len(runs))
        function = np.full(len(task), width, np.int64)
        function[known] = runs.function[task[known]]
        samples += np.bincount(function, minlength=width + 1)
        helping = known & part["reason"].notna().to_numpy()
        others += np.bincount(function[helping], minlength=width + 1)
        with_calls = (stack >= 0) & (stack < stacks)
        distinct, count = np.unique(
            function[with_calls] * stacks + stack[with_calls], return_counts=True
        )
        keys.append(distinct)
        counts.append(count)
    every, index = np.unique(np.concatenate(keys), return_inverse=True)
    sums = group_sums(index, np.concatenate(counts), len(every))
    cuts = np.searchsorted(every, np.arange(width + 2) * stacks)
    return (
        samples,
        others,
        {
            number: (every[a:b] - number * stacks, sums[a:b])
            for number, (a, b) in enumerate(itertools.pairwise(cuts.tolist()))
            if b > a
        },
    )


def _functions(
    trace: Trace, runs: Executions, samples: Ints, others: Ints, switched: bool
) -> pd.DataFrame:
    width = len(runs.functions)
    result = pd.DataFrame({"function": [*runs.functions, NO_TASK]})
    result["tasks"] = np.append(np.bincount(runs.function, minlength=width), 0)
    result["executing"] = np.append(group_sums(runs.function, runs.duration, width), 0)
    if switched:
        names = ["task", "known", "off", "blocked", "preempted", "count", "longest"]
        table = trace.table("task_cpu", names)
        table = table[(table["task"] >= 0) & (table["task"] < len(runs))]
        # several nsys of a host may have traced one thread
        table = table.sort_values("known", kind="stable").drop_duplicates("task", keep="last")
        of = runs.function[table["task"].to_numpy()]
        sums = {
            name: np.append(group_sums(of, table[name].to_numpy(np.int64), width), 0)
            for name in names[1:-1]
        }
        longest = np.zeros(width + 1, np.int64)
        np.maximum.at(longest, of, table["longest"].to_numpy(np.int64))
        result["known"] = sums["known"]
        result["on_cpu"] = sums["known"] - sums["off"]
        result["off_cpu"] = sums["off"]
        share = 100.0 * sums["off"] / np.maximum(sums["known"], 1)
        result["off_share"] = np.where(sums["known"] > 0, share, np.nan)
        result["blocked"], result["preempted"] = sums["blocked"], sums["preempted"]
        result["times_off"], result["longest_off"] = sums["count"], longest
    result["samples"], result["others"] = samples, others
    known = result["known"] > 0 if switched else np.zeros(width + 1, bool)
    result = result[known | (result["samples"] > 0)]
    result = result.sort_values(["executing", "samples"], ascending=False, kind="stable")
    return result.reset_index(drop=True)


def _frames(
    stacks: Stacks, runs: Executions, samples: Ints, counts: dict[int, tuple[Ints, Ints]]
) -> pd.DataFrame:
    functions = [*runs.functions, NO_TASK]
    parts = []
    for number in sorted(counts, key=lambda number: -int(samples[number])):
        rows, count = counts[number]
        weights = np.zeros(len(stacks), np.int64)
        weights[rows] = count
        table = stacks.of_frames(weights)
        # the heaviest of both sorts: what runs, and what calls it
        by_total = table.sort_values("total", ascending=False, kind="stable").head(TOP)
        table = table.loc[table.index.isin({*table.head(TOP).index, *by_total.index})]
        parts.append(
            pd.DataFrame(
                {
                    "function": functions[number],
                    "frame": table["function"].replace("", NO_NAME).to_numpy(),
                    "module": table["module"].replace("", None).to_numpy(),
                    "self": table["self"].to_numpy(),
                    "self_share": 100.0 * table["self"].to_numpy() / samples[number],
                    "total": table["total"].to_numpy(),
                    "total_share": 100.0 * table["total"].to_numpy() / samples[number],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _findings(functions: pd.DataFrame, frames: pd.DataFrame) -> list[Finding]:
    found: list[Finding] = []
    everything = functions["executing"].sum()
    large = functions[functions["executing"] * 100.0 >= SMALL * max(1, everything)]
    if "off_share" in functions:
        off = large[large["off_share"] >= OFF]
        found += told_as_one(
            Severity.WARNING,
            "cpu",
            "functions",
            off.sort_values("off_cpu", ascending=False, kind="stable"),
            "functions are off the CPU",
            lambda row: (
                f"{share_text(row['off_share'])} of the time of {row['function']} its thread is "
                f"off the CPU ({duration_text(row['off_cpu'])}{_of_known(row)}): {_why(row)}"
            ),
            "A thread that waits needs no core: let it wait for less, or let a worker have more "
            "threads than cores; one whose core others get needs fewer threads beside it.",
        )
    if len(frames):
        # what other threads did, an event loop say, is not what the function is made of
        own = functions["samples"] - functions["others"]
        enough = functions[
            (own >= ENOUGH) & (own >= functions["others"]) & (functions["tasks"] > 0)
        ]
        hot = frames[
            (frames["self_share"] >= HOT) & frames["function"].isin(enough["function"].tolist())
        ]
        found += told_as_one(
            Severity.NOTICE,
            "cpu",
            "frames",
            hot.sort_values("self", ascending=False, kind="stable"),
            "calls have most of a function's samples",
            lambda row: (
                f"{share_text(row['self_share'])} of the samples of {row['function']} are in "
                f"{row['frame']}" + (f" of {row['module']}" if row["module"] else "")
            ),
            "Look there first when you make the function faster.",
        )
    return most_severe_first(found)


def _of_known(row: dict[str, float]) -> str:
    """Say of how much of a function's time it is known, where that is not all of it."""
    if row["known"] >= MOSTLY * row["executing"]:
        return ""
    return f" of the {duration_text(row['known'])} of which it is known"


def _why(row: dict[str, float]) -> str:
    """Say what a thread did off the CPU, as far as it is told."""
    if row["blocked"] + row["preempted"] < row["off_cpu"] / 2:
        return "it waits, or others get its CPU"
    if row["blocked"] >= row["preempted"]:
        return "it waits"
    return "others get its CPU"
