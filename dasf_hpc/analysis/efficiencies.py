"""Analysis: how efficiently were workers and GPUs used, by the factors of the POP methodology?

The factors of hosts are those of the POP Centre of Excellence ("POP Standard Metrics for
Performance Analysis of Hybrid Parallel Applications", and "List of Metrics" of its co-design site),
with task threads of Dask's workers (module ``task_threads``) for processes, and executing tasks for
useful computation. With u the time that a task thread executed tasks, n the number of task threads,
w a worker, and T from the first task's start to the last one's end:

- parallel efficiency = sum(u) / (n T) = load balance x communication efficiency
- load balance = mean(u) / max(u), the product of
    - that between workers = mean(u) / max over w(mean over w's threads(u))
    - that within workers = max over w(mean over w's threads(u)) / max(u)
- communication efficiency = max(u) / T = serialisation x transfer
- serialisation = max(u) / T0, where T0 is T on an ideal network
- transfer = T0 / T, the product of
    - data = T1 / T, where T1 is T without delays by data
    - scheduling = T2 / T1, where T2 is T without delays by Dask, too
    - submission = T0 / T2, where T0 is T without those by the script, too

In Dask what stands between two tasks of a thread is not a call of MPI, but what Dask and the script
do: module ``ideal`` plays the recorded schedule without it. POP's serialisation is there what tasks
waited for each other, as for the last one of a barrier; its transfer what they waited for data, for
Dask, or for the script. Work that was executed in vain is useful here: analysis ``failures`` tells
of it. Waiting within a task is useful, too, but for a task that seceded.

Where GPUs' activity and CUDA's calls were recorded, the metrics of TALP (module ``devices``) come
beside: host parallel efficiency = parallel efficiency x device offload efficiency, and device
parallel efficiency. With a reference, global efficiency = host parallel efficiency x computation
scalability.

The time that a factor loses is counted in thread time: of a thread that waits, and of one that has
less to do than the busiest. Those of all factors that have no parts add to what was not useful.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity, costliest_first
from dasf_hpc.analysis.cause import Cause
from dasf_hpc.analysis.causes import Causes, causes
from dasf_hpc.analysis.devices import Devices, devices, in_calls
from dasf_hpc.analysis.efficiency_tree import (
    FACTORS,
    Factor,
    busiest_worker,
    lost_by_devices,
    lost_by_hosts,
    tree,
    worst,
)
from dasf_hpc.analysis.executions import group_sums, work_span
from dasf_hpc.analysis.ideal import Lengths, ideal_lengths
from dasf_hpc.analysis.savings import PLAYED, savings
from dasf_hpc.analysis.task_threads import TaskThreads, task_threads
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.holdings import gpu_activity, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.units import count_text, duration_text, share_text

#: From here on POP calls an efficiency acceptable, %; below the second it is very low here.
ACCEPTABLE, VERY_LOW = 80.0, 60.0

TREE: Columns = {
    "factor": ("", "the factor"),
    "level": ("", "how deep it stands in the tree; 0: it is no part of another"),
    "parent": ("", "the factor that it is a part of; empty: none"),
    "value": ("%", "the factor; one that has parts is their product"),
    "reference": ("%", "the same of the reference run"),
    "lost": (
        "ns",
        "time of threads, or of GPUs, that it loses: what they wait, and what they have less to do "
        "than the busiest; those of factors without parts add up to all that was not useful",
    ),
    "run": ("ns", "the same over the number of threads, or of GPUs: as time of the run"),
    "worst": ("", "whether it is the smallest factor without parts, of hosts or of GPUs"),
    "formula": ("", "how it is made"),
    "meaning": ("", "what it is in Dask"),
}
WORKERS: Columns = {
    "worker": ("", "the worker; one that was restarted goes on as the first of its name"),
    "node": ("", "the host"),
    "threads": ("", "task threads: its own, or as many as it ran tasks at once if that is more"),
    "useful": ("ns", "time in which they executed tasks, in sum"),
    "useful_share": ("%", "of its threads' time from first to last task"),
    "busiest": ("ns", "most useful time of one of its threads"),
    "least": ("ns", "least useful time of one of its threads"),
    "there": ("%", "share of the time from first to last task that it was there"),
}
FUNCTIONS: Columns = {
    "function": ("", "name of the function"),
    "tasks": ("", "its executions"),
    "useful": ("ns", "time of them in task threads, in sum"),
    "balance": (
        "%",
        "its load balance between workers: mean time of it for a thread over that for a thread of "
        "the worker that executed most of it",
    ),
    "worker": ("", "the worker whose threads executed most of it"),
    "node": ("", "that worker's host"),
    "lost": ("ns", "thread time that its own load balance would lose were it alone in the run"),
}
GPUS: Columns = {
    "gpu": ("", "the GPU"),
    "kernels": ("ns", "time in which a kernel ran: K"),
    "memory": ("ns", "time in which a copy or a fill ran, and no kernel: M"),
    "idle": ("ns", "time in which nothing ran, from first to last task"),
    "kernel_share": ("%", "time in kernels, of that from first to last task"),
}
_TABLES = {"tree": TREE, "workers": WORKERS, "functions": FUNCTIONS, "gpus": GPUS}


@dataclass(frozen=True)
class Factors:
    """A run's efficiencies, as the module defines them; each from 0 to 1, NaN: not known.

    Attributes
    ----------
    duration
        T, ns.
    threads
        Task threads: n.
    useful
        Time in which they executed tasks, in sum, ns.
    parallel_efficiency, load_balance, communication_efficiency, serialisation, transfer
        Of the first two lines of the tree.
    between_workers, within_workers
        What `load_balance` is the product of.
    data, scheduling, submission
        What `transfer` is the product of.
    exact
        Whether the run was played again. Of more executions than
        `dasf_hpc.analysis.savings.PLAYED` it was not: `transfer` is no less than what is told,
        `serialisation` no more; all others are exact but for `transfer`'s parts.
    """

    duration: int
    threads: int
    useful: int
    parallel_efficiency: float
    load_balance: float
    communication_efficiency: float
    serialisation: float
    transfer: float
    between_workers: float = nan
    within_workers: float = nan
    data: float = nan
    scheduling: float = nan
    submission: float = nan
    exact: bool = True


@dataclass(frozen=True)
class Hosts:
    """Factors of a run, and what they were made of.

    Attributes
    ----------
    factors
        The factors.
    threads
        The task threads.
    lengths
        The run's lengths without delays.
    """

    factors: Factors
    threads: TaskThreads
    lengths: Lengths


_MADE: WeakKeyDictionary[Trace, Hosts] = WeakKeyDictionary()


def factors(trace: Trace) -> Factors:
    """Give a run's efficiencies.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    return hosts(trace).factors


def hosts(trace: Trace) -> Hosts:
    """Give a run's efficiencies and what they were made of, once for all that ask."""
    if trace not in _MADE:
        run = savings(trace)
        threads = task_threads(trace, run.runs, run.graph, run.found, run.left)
        lengths = ideal_lengths(trace, threads)
        _MADE[trace] = Hosts(host_factors(threads, lengths), threads, lengths)
    return _MADE[trace]


def host_factors(threads: TaskThreads, lengths: Lengths) -> Factors:
    """Make the factors of task threads and of lengths of a run."""
    count, useful = len(threads), int(threads.useful.sum())
    duration = lengths.recorded
    if not useful:
        efficiency = 0.0 if duration and count else nan
        return Factors(duration, count, 0, efficiency, nan, nan, nan, nan)
    most = int(threads.useful.max())
    mean = busiest_worker(threads)[1]
    return Factors(
        duration=duration,
        threads=count,
        useful=useful,
        parallel_efficiency=useful / (count * duration),
        load_balance=useful / (count * most),
        communication_efficiency=most / duration,
        serialisation=most / lengths.ideal,
        transfer=lengths.ideal / duration,
        between_workers=min(1.0, useful / (count * mean)),
        within_workers=min(1.0, mean / most),
        data=lengths.without_data / duration,
        scheduling=lengths.without_scheduling / lengths.without_data,
        submission=lengths.ideal / lengths.without_scheduling,
        exact=lengths.exact,
    )


def computation_scalability(reference: Factors, other: Factors) -> float:
    """Give the computation scalability of a run: the useful time of a reference over its own.

    That is of the same work (strong scaling). Where the work grows with the threads (weak scaling),
    multiply by the work of the other run over that of the reference. Above 1 where the other run
    needed less time to compute the same; NaN where either has no useful time.
    """
    known = reference.useful and other.useful
    return reference.useful / other.useful if known else nan


def efficiencies(trace: Trace, reference: Trace | None = None) -> Answer:
    """Say how efficiently workers and GPUs were used, by POP's factors.

    Parameters
    ----------
    trace
        The trace.
    reference
        Of a run of the same work, to which the computation is compared.

    Returns
    -------
    Answer
        Tables ``tree``, each factor before its parts; ``workers``; ``functions``; ``gpus``.

    Raises
    ------
    TraceError
        If a trace is damaged.
    """
    found = _looked(trace)
    own, unanswered = found.hosts.factors, _unanswered(trace, found)
    values, lost = dict(found.values), dict(found.lost)
    before: dict[str, float] = {}
    if reference is not None:
        other = _looked(reference)
        before = dict(other.values)
        scalability = computation_scalability(other.hosts.factors, own)
        if isnan(scalability):
            unanswered.append("How the computation scales: no task of one of the runs took time.")
        else:
            lost["computation_scalability"] = own.useful - other.hosts.factors.useful
            for of, by in ((values, scalability), (before, 1.0)):
                whole = of.get("host_parallel_efficiency", of["parallel_efficiency"])
                of |= {"global_efficiency": whole * by, "computation_scalability": by}
    gpus = 0 if found.devices is None else len(found.devices.gpus)
    in_tree = tree(values, lost, own.threads, gpus)
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    if in_tree:
        tables["tree"] = _tree(in_tree, before)
    if len(savings(trace).graph):
        tables["workers"] = _workers(trace, found.hosts)
        tables["functions"] = _functions(trace, found.hosts)
    if found.devices is not None:
        tables["gpus"] = _gpus(trace, found.devices)
    findings = _findings(trace, found, in_tree, tables)
    return Answer("efficiencies", tables, _TABLES, costliest_first(findings), unanswered)


@dataclass(frozen=True)
class _Looked:
    """What was found of one run.

    Attributes
    ----------
    hosts, devices
        Of threads and, where their activity was recorded, of GPUs.
    calls
        Thread time of tasks in calls of CUDA, ns; -1: not known.
    values, lost
        Factors, and what those without parts lose, by name.
    """

    hosts: Hosts
    devices: Devices | None
    calls: int
    values: dict[str, float]
    lost: dict[str, int]


def _looked(trace: Trace) -> _Looked:
    found = hosts(trace)
    factor = found.factors
    values: dict[str, float] = {}
    lost: dict[str, int] = {}
    calls = -1
    if factor.useful:
        parts = [
            *("parallel_efficiency", "load_balance", "between_workers", "within_workers"),
            *("communication_efficiency", "serialisation"),
            *("transfer", "data", "scheduling", "submission"),
        ]
        if len(np.unique(found.threads.process)) == len(found.threads):  # one thread each
            parts = [name for name in parts if FACTORS[name][0] != "load_balance"]
        values = {name: float(getattr(factor, name)) for name in parts}
        lost = lost_by_hosts(found.threads, found.lengths)
    elif not isnan(factor.parallel_efficiency):
        values = {"parallel_efficiency": factor.parallel_efficiency}
        lost = {"parallel_efficiency": factor.threads * factor.duration}
    on_gpus = None
    if gpu_activity(trace):
        runs = savings(trace).runs
        on_gpus = devices(trace, runs, work_span(trace, runs))
        calls = _in_calls(trace, found)
        if calls >= 0:
            offload = (factor.useful - calls) / factor.useful
            values["device_offload_efficiency"] = offload
            values["host_parallel_efficiency"] = factor.parallel_efficiency * offload
            lost["device_offload_efficiency"] = calls
        if on_gpus.gpus and not isnan(on_gpus.load_balance):
            values["device_parallel_efficiency"] = on_gpus.parallel_efficiency
            values["device_load_balance"] = on_gpus.load_balance
            values["device_communication"] = on_gpus.communication_efficiency
            values["orchestration"] = on_gpus.orchestration_efficiency
            lost |= lost_by_devices(on_gpus)
    return _Looked(found, on_gpus, calls, values, lost)


def _in_calls(trace: Trace, found: Hosts) -> int:
    """Give the time that tasks were in calls of CUDA while in their task threads; -1: not known."""
    if not found.factors.useful or not trace.rows("cuda_api"):
        return -1
    run = savings(trace)
    inside = in_calls(trace, run.runs)[run.graph.rows]
    if not inside.any():  # no call is known to be of a task
        return -1
    return int(np.minimum(inside, found.threads.left - run.graph.start).sum())


def _unanswered(trace: Trace, found: _Looked) -> list[str]:
    run, factor = savings(trace), found.hosts.factors
    reasons = []
    if not len(run.graph):
        reasons.append("How efficiently workers were used: no task was executed in this run.")
    elif not factor.useful:
        reasons.append("What workers' efficiency consists of: no task took any time.")
    else:
        if not trace.rows("dependencies"):
            reasons.append("What tasks waited for each other: no dependency was recorded.")
        if not factor.exact:
            reasons.append(
                "How communication efficiency splits exactly: of more than "
                f"{count_text(PLAYED)} executions what is left of the critical path is told, so "
                "that transfer is no less, and serialisation no more."
            )
        away = run.graph.stop - found.hosts.threads.left
        if away.any():
            count = int(np.count_nonzero(away))
            who = (
                "1 task did after it" if count == 1 else f"{count_text(count)} tasks did after they"
            )
            reasons.append(
                f"What {who} seceded: "
                f"{duration_text(int(away.sum()))} in no task thread, which are not useful time."
            )
    if found.devices is None:
        reasons.append(f"How efficiently GPUs were used: {no_gpu_activity(trace)}.")
        return reasons
    for gpu, file in gpus_apart(trace).items():
        name = gpu_names(trace)[gpu]
        reasons.append(f"How efficiently {name} was used: nothing ties the clock of {file}.")
    if found.calls < 0 and factor.useful:
        reasons.append(
            "What tasks spent in calls of CUDA: "
            + ("none is known to be of a task." if trace.rows("cuda_api") else "not recorded.")
        )
    return reasons


def _tree(found: list[Factor], before: dict[str, float]) -> pd.DataFrame:
    pointed = [worst(found, device) for device in (False, True)]
    return pd.DataFrame(
        [
            {
                "factor": one.name,
                "level": one.level,
                "parent": one.parent,
                "value": 100.0 * one.value,
                "reference": 100.0 * before.get(one.name, nan),
                "lost": one.lost,
                "run": one.run,
                "worst": one in pointed,
                "formula": FACTORS[one.name][1],
                "meaning": FACTORS[one.name][2],
            }
            for one in found
        ],
        columns=list(TREE),
    )


def _workers(trace: Trace, found: Hosts) -> pd.DataFrame:
    known, threads = savings(trace).found, found.threads
    span = work_span(trace, savings(trace).runs)
    begin, end = known["start"].clip(lower=span.start), known["stop"].clip(upper=span.stop)
    first = known.index.map(threads.worker)
    there = (end - begin).clip(lower=0).groupby(first).sum()
    of = pd.Series(threads.useful).groupby(threads.process)
    table = pd.DataFrame(
        {"threads": of.size(), "useful": of.sum(), "busiest": of.max(), "least": of.min()}
    ).loc[list(dict.fromkeys(threads.process.tolist()))]
    whole = max(1, span.duration)
    table["useful_share"] = 100.0 * table["useful"] / (table["threads"] * whole)
    table["there"] = 100.0 * there / whole
    table[["worker", "node"]] = known.loc[table.index, ["worker", "node"]]
    return table[list(WORKERS)].reset_index(drop=True)


def _functions(trace: Trace, found: Hosts) -> pd.DataFrame:
    run, threads = savings(trace), found.threads
    rows, of = np.unique(threads.process, return_inverse=True)
    own = np.bincount(of)
    width = len(run.runs.functions)
    group = run.graph.function.astype(np.int64) * len(rows) + of[threads.of]
    times = group_sums(group, threads.left - run.graph.start, width * len(rows))
    table = times.reshape(width, len(rows))
    mean, total = (table / own).max(axis=1), table.sum(axis=1)
    most = rows[(table / own).argmax(axis=1)]
    count = np.bincount(run.graph.function, minlength=width)
    whole = len(threads) * mean
    with np.errstate(invalid="ignore"):
        balance = np.where(whole > 0, 100.0 * total / whole, nan)
    made = pd.DataFrame(
        {
            "function": pd.Series(run.runs.functions, dtype=str),
            "tasks": count,
            "useful": total,
            "balance": balance,
            "worker": run.found.loc[most, "worker"].to_numpy(),
            "node": run.found.loc[most, "node"].to_numpy(),
            "lost": np.round(whole).astype(np.int64) - total,
        }
    )
    made = made[made["tasks"] > 0].sort_values("useful", ascending=False, kind="stable")
    return made[list(FUNCTIONS)].reset_index(drop=True)


def _gpus(trace: Trace, found: Devices) -> pd.DataFrame:
    names = gpu_names(trace)
    return pd.DataFrame(
        {
            "gpu": [names[g] if 0 <= g < len(names) else "GPU ?" for g in found.gpus],
            "kernels": found.kernels,
            "memory": found.memory,
            "idle": found.duration - found.kernels - found.memory,
            "kernel_share": 100.0 * found.kernels / max(1, found.duration),
        },
        columns=list(GPUS),
    )


#: Kinds of causes (`dasf_hpc.analysis.cause.WORDS`) that a factor is low by.
_KINDS = {
    "load_balance": ("slow", "uneven", "stragglers", "no_parallelism"),
    "between_workers": ("slow", "uneven", "stragglers", "no_parallelism"),
    "within_workers": ("no_parallelism", "uneven", "stragglers"),
    "serialisation": ("no_parallelism", "stragglers", "uneven", "slow"),
    "data": ("transferring", "disk", "deserialising", "paused"),
    "scheduling": ("small", "scheduling"),
    "submission": ("nothing_submitted",),
}
#: What to do about a factor.
_NEXT = {
    "load_balance": "Make more and smaller tasks than there are threads, so that Dask can share "
    "them anew, and see in `dasf-hpc analyze balance` whether a worker is slow.",
    "within_workers": "Workers had fewer tasks at a time than threads: make more tasks that can "
    "run at once, or give workers fewer threads.",
    "serialisation": "Split the tasks that others wait for, or have less wait for all: "
    "`dasf-hpc analyze critical_path` names them.",
    "data": "Keep what belongs together on one worker, return less, or give workers more memory: "
    "`dasf-hpc analyze where` tells which of these it is.",
    "scheduling": "Give tasks more to do: larger chunks, or several steps in one task.",
    "submission": "Submit all that is known to be done before results are gathered, and do the "
    "script's own work meanwhile: `dasf-hpc analyze where` tells when nothing was submitted.",
    "device_load_balance": "Give each GPU as much to do: more and smaller tasks than workers.",
    "device_communication": "Copy beside kernels, from pinned memory and in another stream, or "
    "leave the data on the GPU: `dasf-hpc analyze cuda` names the copies.",
    "orchestration": "Have hosts give GPUs more to do at a time: larger chunks, more workers for "
    "each GPU, and no work on the CPU in between: `dasf-hpc analyze gpu` tells when they waited.",
}
_NEXT["between_workers"] = _NEXT["load_balance"]
#: What to do where the cause is known to be of this kind.
_NEXT_OF = {
    "slow": "See what is different on that worker, or its node: `dasf-hpc analyze balance`.",
    "scheduling": "Tasks are long enough: see what keeps the scheduler or the workers' event loops "
    "busy.",
    "disk": "Give workers more memory, or make chunks smaller.",
    "paused": "Give workers more memory, or make chunks smaller.",
    "stragglers": "Split the tasks that take far longer than their function's others: "
    "`dasf-hpc analyze balance` names them.",
}


def _findings(
    trace: Trace, found: _Looked, in_tree: list[Factor], tables: dict[str, pd.DataFrame]
) -> list[Finding]:
    """Point at the smallest factor of workers, and of GPUs, where that is not acceptable.

    Where the time is one of the run's causes it is told as that, and counts once.
    """
    made = []
    for device in (False, True):
        one = worst(in_tree, device)
        if one is None or 100.0 * one.value >= ACCEPTABLE:
            continue
        whole = next(f for f in in_tree if f.device == device and f.level == 0)
        row = tables["tree"].index[tables["tree"]["factor"] == one.name]
        cause = None if device else _cause(causes(trace), one.name)
        told: dict[str, Any] = {} if cause is None else cause.told
        made.append(
            Finding(
                Severity.NOTICE if cause is None else Severity.WARNING,
                "efficiencies",
                "tree",
                tuple(int(place) for place in row),
                _sentence(found, one, whole, tables),
                _NEXT[one.name] if cause is None else _NEXT_OF.get(cause.kind, _NEXT[one.name]),
                **told,
            )
        )
    return made


def _cause(known: Causes, name: str) -> Cause | None:
    """Give the costliest of the run's causes that a factor is low by."""
    kinds = _KINDS.get(name, ())
    return next((cause for cause in known.found if cause.kind in kinds), None)


def _sentence(found: _Looked, one: Factor, whole: Factor, tables: dict[str, pd.DataFrame]) -> str:
    factor, lengths = found.hosts.factors, found.hosts.lengths
    most = int(found.hosts.threads.useful.max(initial=0))
    share = share_text(100.0 * one.value)
    if one.device:
        begin = f"GPUs ran kernels for {share_text(100.0 * whole.value)} of the run"
    else:
        value = share_text(100.0 * factor.parallel_efficiency)
        begin = f"Threads executed tasks for {value} of the run (POP's parallel efficiency)"
    lost = duration_text(one.run)
    if one.name in ("between_workers", "load_balance", "within_workers"):
        row = tables["workers"].sort_values("useful_share", ascending=False).iloc[0]
        place = f"{row['worker']} on {row['node']}"
        mean = duration_text(row["useful"] / row["threads"])
        if one.name == "within_workers":
            why = (
                f"within workers threads had unequal work ({share}): those of {place} executed "
                f"tasks for {mean} in the mean, one for {duration_text(most)}"
            )
        else:
            of_all = duration_text(factor.useful / factor.threads)
            why = (
                f"workers had unequal work (load balance {share}): a thread of {place} executed "
                f"tasks for {mean}, one of all in the mean for {of_all}"
            )
    elif one.name == "serialisation":
        why = (
            f"tasks waited for each other ({one.name} {share}): without any delay the tasks would "
            f"take {duration_text(lengths.ideal)}, the busiest thread executes for "
            f"{duration_text(most)} of it"
        )
    else:
        words = {
            "data": f"threads waited for data ({share})",
            "scheduling": f"tasks that could run waited for Dask (scheduling {share})",
            "submission": f"tasks had not been submitted yet (submission {share})",
            "device_load_balance": f"they had unequal work (load balance {share})",
            "device_communication": f"copies and fills ran alone ({share})",
            "orchestration": f"even the busiest waited for its host (orchestration {share})",
        }
        why = f"{words[one.name]}, which loses {lost} of the run"
    return f"{begin}; what lowers that most: {why}."
