"""Analysis: answers about a run, one question a file.

Each is a function ``NAME(trace, ...) -> Answer`` in the module of its name; `analyse` finds it by
name. An `Answer` (module ``answer``) holds tables (DataFrames), the unit and meaning of each of
their columns (``answer.columns[table][column]``), findings, and what could not be looked at and
why. Times and durations are int64 ns, times on the trace's clock.

``functions(trace, by="function")``
    Table ``functions``: [node | worker | gpu], function, count, failed, total, mean, p50, p95, max,
    share, bytes_in, bytes_out, throughput, gpu_utilization, gpu_memory, kernel_time, copy_time.
    With by="worker" it is dasf-core's function_bottleneck.
``functions.task_bottleneck(trace, longest=1000)``
    Table ``tasks``: task, key (its text), function, node, worker, duration, share, nbytes; the
    longest first (longest=None: all). dasf-core's task_bottleneck.
``failures(trace)``
    Tables ``failures``: function, exception, message, tasks, final, recovered, executions, lost,
    time, workers, worker, first_start, task, example; ``tasks``, those without a result: task, key,
    function, worker, node, start, exception, message.
``balance(trace, interval=None)``
    Tables ``workers``: worker, node, threads, count, failed, busy, busy_share, first_start,
    last_stop, bytes_out, slowdown; ``over_time``: time, worker, started, finished, busy, held
    (dasf-core's task_balance); ``stragglers``: task, key, function, worker, node, start, duration,
    median, ratio, excess; ``summary``: factor, lost, and what they rest on.
``where(trace)``
    Tables ``summary``: part, time, share, meaning; ``workers``: worker, node, threads, wall and a
    column for each part, which sum to wall exactly; ``gpus``: the same for each GPU.
``critical_path(trace)``
    Tables ``functions``: function, kind, time, share, segments; ``path``: kind, task, key,
    function, worker, node, start, stop, duration, bound.
``what_if(trace, faster=None)``
    Table ``changes``: function, factor, total, recorded, time, saved, saved_share.
``gpu(trace)``
    Tables ``gpus``: gpu, busy, busy_share, kernels, kernel_time, copies, copy_time, copied, fills,
    fill_time, overlap, overlap_share, utilization, peak_memory, peak_memory_share; ``functions``:
    function, tasks, executing, busy, busy_share, kernels, kernel_time, kernel_mean, copy_time,
    idle, launch_time, latency_max, launch_bound; ``kernels``: function, kernel, count, total,
    mean, max, share; ``gaps``: gpu, start, stop, duration, task, function, worker; ``memory``:
    time, gpu, used, utilization; ``recorded``: what, state, count, reason.
``gpu_metrics(trace, tasks=1000)``
    Tables ``functions``: function, held, copying, coverage and a column for each measure that was
    sampled (sm_active, tensor_active, dram_read …), means over its kernels' time; ``tasks``: task,
    function, worker, held, coverage and the same; ``metrics``: gpu, metric, unit, mean, busy, idle,
    measure, samples, covered, busy_covered; ``function_metrics``: function, metric, unit, covered,
    mean, of metrics that are no measure.
``ranges(trace)``
    Tables ``ranges``: function, domain, range, category, count, total, mean, max, self, share,
    kernels, kernel_time, open; ``marks``: function, domain, mark, category, count.
``cpu(trace)``
    Tables ``functions``: function, tasks, executing, known, on_cpu, off_cpu, off_share, blocked,
    preempted, times_off, longest_off, samples, others; ``frames``: function, frame, module,
    self, self_share, total, total_share.
``stacks(trace, function=None, worker=None, between=None)``
    Tables ``hot``: function, share, half_width, frame, called_from, time, samples, origin;
    ``frames``: function, frame, self, self_share, total, total_share, origin, module, file;
    ``event_loops``: role, what, time, share, span_share, frame, samples; ``blocked``: role, worker,
    node, start, duration, frame, called_from, what, samples; ``threads``: worker, node, role,
    threads, samples, time.
``cuda(trace)``
    Tables ``calls``, ``os_calls``: function, call, count, total, mean, max, share, reason;
    ``rules``: rule, function, count, time, share, bytes; ``copies``: function, kind, source,
    target, count, bytes, total, throughput; ``fills``: function, memory, count, ...;
    ``migrations``: function, kind, cause, count, ...; ``page_faults``: function, where, access,
    count, faults, total; ``memory``: gpu, peak, peak_time, sampled_peak, allocations, allocated,
    unreleased, unreleased_bytes, unknown_releases; ``memory_holders``: gpu, function, at_peak,
    share, allocations, allocated, unreleased_bytes; ``memory_over_time``: time, gpu, allocated,
    sampled; ``about``: rule, time, documentation, next_step.
``communication(trace, by="node")``
    Table ``links``: source, target, messages, keys, bytes, time, throughput, slowest, within;
    ``communication.matrix`` makes a matrix of it. Table ``types``: type, messages, keys, bytes,
    time, throughput, median.
``memory(trace, worker=None)``
    Tables ``prefixes``: function, results, peak, peak_time, byte_seconds, mean, longest, copies,
    copied, unsized; ``workers``: worker, node, limit, peak, peak_time, function, function_bytes,
    process_peak, process_peak_time, share, unmanaged, on_disk; ``peak``: worker, node, function,
    bytes, keys, share; ``over_time``: time, function, bytes; ``spills``: worker, node, function,
    writes, write_time, reads, read_time, read_bytes, again, longest; ``duplicates``: function,
    keys, most, extra, start, byte_seconds, largest, example; ``kept``: function, holder, results,
    bytes, start, byte_seconds, share, mean, longest.
``layers(trace, by="function")``
    Tables ``layers``: function, [layer], tasks, executing, bytes, needed, moved; ``edges``: source,
    target, dependencies, results, bytes, moved, moves.
``collectives(trace)``
    Tables ``collectives``: library, operation, communicator, ranks, count, calls, sent, time, wait;
    ``waiting``: worker, node, rank, function, calls, time, wait, last, caused; ``operations``:
    library, operation, calls, sent, received, time; ``clocks``: report, source, bound, points.
``efficiencies(trace, reference=None)``
    Tables ``tree``: factor, level, parent, value, reference, lost, run, worst, formula, meaning;
    ``workers``: worker, node, threads, useful, useful_share, busiest, least, there; ``functions``:
    function, tasks, useful, balance, worker, node, lost; ``gpus``: gpu, kernels, memory, idle,
    kernel_share. `efficiencies.factors` gives the same as numbers.
``energy(trace)``
    Tables ``gpus``: gpu, node, energy, covered, mean_power, max_power, idle_energy; ``nodes``:
    node, gpus, energy; ``functions``: function, energy, share, count, each.
``overhead(trace)``
    Table ``costs``: what, count, each_low, each_high, time_low, time_high, share_low, share_high,
    how.

The gate is module ``compare``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dasf_hpc.analysis.answer import Answer, Finding, Severity
    from dasf_hpc.trace.open import Trace

__all__ = ["ANALYSES", "Answer", "Finding", "Question", "Severity", "analyse"]


@dataclass(frozen=True)
class Question:
    """An analysis by its question, and where its function is."""

    text: str
    module: str


#: Every analysis in the order in which a report asks them.
ANALYSES: dict[str, Question] = {
    "where": Question("Where did the workers' time go?", "where"),
    "functions": Question("Which functions took the time?", "functions"),
    "task_bottleneck": Question("Which tasks took the time?", "functions"),
    "failures": Question("What failed, and what of it in the end?", "failures"),
    "balance": Question("Did the workers share the work evenly?", "balance"),
    "critical_path": Question("What did the run's length depend on?", "critical_path"),
    "what_if": Question("What would a faster function bring?", "what_if"),
    "gpu": Question("What did the GPUs do, and why did they wait?", "gpu"),
    "gpu_metrics": Question("Which functions use the GPU that they hold?", "gpu_metrics"),
    "ranges": Question("What did the ranges of the code take, within which functions?", "ranges"),
    "cpu": Question("On and off the CPU: what did tasks' threads do?", "cpu"),
    "stacks": Question("In which lines was the time spent, by function?", "stacks"),
    "cuda": Question("What do CUDA's calls, copies and waits cost, by function?", "cuda"),
    "communication": Question("What went between the nodes, and how fast?", "communication"),
    "memory": Question("What held the workers' memory, and what of it was in the way?", "memory"),
    "layers": Question(
        "How do the functions depend on each other, and what goes between them?", "layers"
    ),
    "collectives": Question("Who waited for whom between ranks?", "collectives"),
    "efficiencies": Question(
        "How efficiently were workers and GPUs used, by POP's factors?", "efficiencies"
    ),
    "energy": Question("What did the GPUs' work cost in energy?", "energy"),
    "overhead": Question("What did the recording itself cost?", "overhead"),
}


def __getattr__(name: str) -> Any:
    # Late: who asks for the names of the analyses, to complete a word, does not wait for pandas.
    if name in ("Answer", "Finding", "Severity"):
        return getattr(importlib.import_module("dasf_hpc.analysis.answer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def analyse(name: str, trace: Trace, **options: Any) -> Answer:
    """Ask one question of a trace; of a run that its script did not use there are no findings.

    Parameters
    ----------
    name
        One of `ANALYSES`.
    trace
        The trace.
    options
        As the analysis takes them.

    Raises
    ------
    KeyError
        If there is no such analysis.
    TraceError
        If the trace is damaged.
    """
    module = importlib.import_module(f"dasf_hpc.analysis.{ANALYSES[name].module}")
    answer: Answer = getattr(module, name)(trace, **options)
    if answer.findings:
        from dasf_hpc.trace.summary import unused

        if unused(trace):
            return replace(answer, findings=[])
    return answer
