"""Analysis: where did the workers' time go? Every nanosecond of every thread, counted once.

A worker with n threads has n slots; the wall time of the run times n is split into `PARTS`. At each
moment an executing task, or call of an actor, fills a slot, up to n. Of the slots that are left
each is put down to the first part, in the order of `PARTS`, that still has a cause at that moment:
two keys being read from disk are a cause for two slots, a third idle slot is put down to what comes
next. What happens on the worker itself comes before what happens elsewhere.

- ``deserialising``, ``disk``: Dask reports such a span for one of the worker's tasks.
- ``paused``: a task is ready, but the worker's process uses as much memory as makes Dask pause it.
- ``dispatching``: a task is ready, or Dask has just begun to execute it, but no thread runs it yet.
- ``transferring``: a task waits, and data is on its way to the worker.
- ``waiting``: a task waits for data, and none is on its way.
- ``scheduler``: the worker has no task; one that could run has not reached any worker.
- ``elsewhere``: the worker has no task; one stands in the queue of a worker without a free thread.
- ``no_parallelism``: no task could run: all that are to come need one that is being executed.
- ``nothing_submitted``: no worker knows of any task: the script does something else.

Tasks in the scheduler's hands and in other workers' queues are causes for as many slots as they
are, shared by the slots idle at that moment in proportion.

A task could run when the last result it needs is there. When one that needs none was submitted the
trace does not know: tasks of one array or collection (one name in their keys) could run when the
first of them arrived at a worker, any other when it arrived itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import WORST, Answer, Columns, Finding, Severity, costliest_first
from dasf_hpc.analysis.cause import LEAST, Cause
from dasf_hpc.analysis.causes import PAUSE, Causes, causes, chained, chains
from dasf_hpc.analysis.disk import without_false_reads
from dasf_hpc.analysis.executions import (
    Executions,
    Ints,
    Span,
    keep_arrivals,
    read_executions,
    run_span,
    workers,
)
from dasf_hpc.analysis.graph import could_run
from dasf_hpc.analysis.idle import Tasks, idle_parts
from dasf_hpc.analysis.savings import Change
from dasf_hpc.analysis.slots import (
    BEGINS,
    LATEST,
    NOTHING,
    Slots,
    Split,
    events,
    span_events,
    split,
    transition_code,
)
from dasf_hpc.lost import lost_sentence, read_run
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.holdings import ON_GPU, TABLE_OF, gpu_activity, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.trace.summary import unused
from dasf_hpc.units import bytes_text, count_text, duration_text, moment_text, share_text

#: The parts in the order of precedence, and what each means.
PARTS: dict[str, str] = {
    "executing": "a task's function runs",
    "deserialising": "a task is being deserialised",
    "disk": "results are read from or written to disk",
    "paused": "a task is ready, but the worker is paused: its memory is full",
    "dispatching": "a task is ready, but no thread runs it yet",
    "transferring": "a task waits for data that is on its way",
    "waiting": "a task waits for data that is not on its way yet",
    "scheduler": "no task: one that could run has not reached a worker (scheduler latency)",
    "elsewhere": "no task: others queue at other workers (uneven work)",
    "no_parallelism": "no task: none could run (no parallelism)",
    "nothing_submitted": "no task: the script submitted none",
    "starting": "before the worker was up, or the run's first task known",
    "stopping": "after the run's last task, or after the worker ended",
}

#: What each part is called wherever it is shown.
PART_WORDS: dict[str, str] = {
    "executing": "executing",
    "deserialising": "deserialising tasks",
    "disk": "spilling to disk",
    "paused": "paused with full memory",
    "dispatching": "ready but not begun",
    "transferring": "waiting for data",
    "waiting": "waiting for data not sent",
    "scheduler": "waiting for the scheduler",
    "elsewhere": "others queue elsewhere",
    "no_parallelism": "no parallelism",
    "nothing_submitted": "script submitted nothing",
    "starting": "starting",
    "stopping": "stopping",
    "busy": "busy",
    "in_task": "in a task, nothing on the GPU",
}

#: Parts outside of the time from the run's first task to its last.
_OUTSIDE = ("starting", "stopping")

#: The same for a GPU: kernels and copies first.
GPU_PARTS: dict[str, str] = {
    "busy": "a kernel or a copy runs",
    "in_task": "a task runs on a worker of the GPU, but nothing on the GPU",
    **{name: meaning for name, meaning in PARTS.items() if name != "executing"},
}

_SUMMARY: Columns = {
    "part": ("", "what the time was spent on"),
    "time": ("ns", "in sum over all threads of all workers"),
    "share": ("%", "of the wall time of all threads"),
    "meaning": ("", "what the part means"),
    "work_share": ("%", "of that without starting and stopping: from first task to last"),
}
_WORKERS: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "threads": ("", "threads that run tasks"),
    "wall": ("ns", "length of the run times threads; the parts sum to it exactly"),
    **{name: ("ns", meaning) for name, meaning in PARTS.items()},
}
_GPUS: Columns = {
    "gpu": ("", "the GPU"),
    "wall": ("ns", "length of the run; the parts sum to it exactly"),
    **{name: ("ns", meaning) for name, meaning in GPU_PARTS.items()},
}

_WAITS: Columns = {
    "cause": ("", "what its tasks waited for before they began"),
    "function": ("", "name of the function"),
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "count": ("", "tasks that waited for it"),
    "time": ("ns", "for which they waited, in sum"),
    "mean": ("ns", "for which each of them did"),
    "first_start": ("ns", "the first one began to wait"),
    "last_stop": ("ns", "the last one began to run"),
}
_GAPS: Columns = {
    "start": ("ns", "the last task that was known ended"),
    "stop": ("ns", "the next one was known to a worker, or could run"),
    "duration": ("ns", "for so long no thread had work"),
    "before": ("", "function of the task that ended last"),
    "after": ("", "function of the one that began next"),
}
_CHAINS: Columns = {
    "task": ("", "row of table tasks: its first one"),
    "start": ("ns", "the first one began"),
    "stop": ("ns", "the last one ended"),
    "duration": ("ns", "for so long only one task ran at a time"),
    "count": ("", "tasks, each needing the one before"),
    "functions": ("", "names of their functions, and how many of each"),
    "worker": ("", "the worker; empty: several"),
    "node": ("", "the host; empty: several workers"),
}
#: Rows of the table of waits for each cause, and of those of gaps and chains.
MOST_ROWS = 100
#: What tasks wait for, by part of `dasf_hpc.analysis.causes.DELAYS`.
_WAITED_FOR = {
    "deserialising": "deserialising",
    "disk": "disk",
    "paused": "full memory",
    "transferring": "data of other workers",
    "scheduling": "scheduler",
}

#: What to do about a part that is large.
_NEXT: dict[str, str] = {
    "deserialising": "Send less with each task: put large objects into the graph once (scatter).",
    "disk": "Give the workers more memory, or make chunks smaller, so that they need not spill.",
    "paused": "Give the workers more memory, fewer threads, or make chunks smaller.",
    "dispatching": "Make tasks larger, or give a worker fewer threads: its event loop is late.",
    "transferring": "Move less: larger chunks along the axis that is exchanged.",
    "waiting": "Move less, or fewer results at once: workers cannot fetch as fast as they need.",
    "scheduler": "Make fewer and larger tasks: the scheduler does not keep up.",
    "elsewhere": "Make more and more even tasks: see `dasf-hpc analyze balance`.",
    "no_parallelism": "Make more chunks, or shorten the chain: see "
    "`dasf-hpc analyze critical_path`.",
    "nothing_submitted": "Submit the next computation before the last one is read, or both at once "
    "(dask.compute(a, b)).",
    "starting": "Use the nodes longer once they are there, or fewer of them.",
    "stopping": "Nothing in the graph: reports are written and node jobs end.",
}
#: A part of the workers' time is named from this share, %, ...
NAMED_SHARE = 10.0
#: ... and is serious from this one.
SERIOUS_SHARE = 30.0
#: ... and is serious where mending it saves this share of the time from first to last task.
SERIOUS_SAVES = 0.2
#: Stretches of time that are told of, at most.
STRETCHES = 3
#: Functions that are named of those whose tasks are too small, at most, and the share of their
#: waits that is enough.
NAMED_SMALL, ENOUGH_SMALL = 5, 0.9


def where(trace: Trace) -> Answer:
    """Split the time of each worker, and of each GPU, into what it was spent on.

    Returns
    -------
    Answer
        Tables ``summary``, ``workers`` and ``gpus``: the parts of a row sum to its wall exactly.
        Table ``waits``: what tasks waited for, by function and worker, those of a cause together,
        the longest first. Tables ``gaps`` (when nothing was submitted) and ``chains`` (of tasks
        that ran alone one after another), the longest first.

    Notes
    -----
    Each thread's time is that of the whole run, so that workers which came late, or went early,
    compare. States come from transitions, which are exact to 1.024 us; what two hosts did at once
    is known as far as their clocks agree.
    """
    runs = read_executions(trace, ("key", "thread", "prefix", "state"))
    found = workers(trace, runs)
    span = run_span(trace, runs)
    unanswered = _unanswered(trace, runs)
    recorded = _Recorded(trace, runs, found, span)
    slots: list[Slots] = []
    splits: list[Split] = []
    for row in found.index.tolist():  # one at a time: a worker's counts may be a gigabyte
        one = recorded.slots(row, found)
        splits.append(split(one))
        slots.append(Slots(one.threads, one.start, one.stop))
    gpus = _gpus(trace, recorded, found, unanswered)
    idle = idle_parts(recorded.tasks, splits, [part for _, _, part in gpus])
    table = _table(
        [
            {
                "worker": worker["worker"],
                "node": worker["node"],
                "threads": own.threads,
                **_row(own, part, parts, span, PARTS),
            }
            for worker, own, part, parts in zip(
                found.to_dict("records"), slots, splits, idle[: len(found)], strict=True
            )
        ],
        _WORKERS,
    )
    of_gpus = _table(
        [
            {"gpu": name, **_row(own, part, parts, span, GPU_PARTS)}
            for (name, own, part), parts in zip(gpus, idle[len(found) :], strict=True)
        ],
        _GPUS,
    )
    wall = int(table["wall"].sum())
    times = [int(table[part].sum()) for part in PARTS]
    work = wall - sum(time for part, time in zip(PARTS, times, strict=True) if part in _OUTSIDE)
    summary = pd.DataFrame(
        {
            "part": list(PARTS),
            "time": times,
            "share": [100.0 * time / wall if wall else 0.0 for time in times],
            "meaning": list(PARTS.values()),
            "work_share": [
                100.0 * time / work if work and part not in _OUTSIDE else float("nan")
                for part, time in zip(PARTS, times, strict=True)
            ],
        }
    )
    if not len(found):
        summary = summary.head(0)
    tables = {"summary": summary, "workers": table, "gpus": of_gpus}
    described = {"summary": _SUMMARY, "workers": _WORKERS, "gpus": _GPUS}
    described |= {"waits": _WAITS, "gaps": _GAPS, "chains": _CHAINS}
    findings: list[Finding] = []
    if unused(trace) or not len(runs) or not len(found):
        tables |= {name: _table([], described[name]) for name in ("waits", "gaps", "chains")}
    else:
        known = causes(trace)
        tables |= {"waits": _waits(known), "gaps": _gaps(known), "chains": _chains(known)}
        findings = _findings(known, tables, int(found["threads"].sum()))
    if not unused(trace):
        findings = costliest_first([*_lost_jobs(trace, table), *findings])
    return Answer("where", tables, described, findings, unanswered)


def _waits(known: Causes) -> pd.DataFrame:
    """Give what tasks waited for before they began, by cause, function and worker."""
    graph, runs, found = known.savings.graph, known.savings.runs, known.savings.found
    names, nodes = found["worker"].to_dict(), found["node"].to_dict()
    rows: list[dict[str, object]] = []
    width = len(runs.functions)
    for part, cause in _WAITED_FOR.items():
        delay = known.delays[part]
        some = np.flatnonzero(delay > 0)
        group = graph.process[some].astype(np.int64) * width + graph.function[some]
        groups, code, count = np.unique(group, return_inverse=True, return_counts=True)
        time = np.zeros(len(groups), np.int64)
        np.add.at(time, code, delay[some])
        first = np.full(len(groups), LATEST)
        np.minimum.at(first, code, graph.start[some] - delay[some])
        last = np.full(len(groups), -LATEST)
        np.maximum.at(last, code, graph.start[some])
        for at in np.argsort(-time, kind="stable")[:MOST_ROWS].tolist():
            process, function = divmod(int(groups[at]), width)
            rows.append(
                {
                    "cause": cause,
                    "function": runs.functions[function],
                    "worker": names[process],
                    "node": nodes[process],
                    "count": int(count[at]),
                    "time": int(time[at]),
                    "mean": int(time[at]) // int(count[at]),
                    "first_start": int(first[at]),
                    "last_stop": int(last[at]),
                }
            )
    return _table(rows, _WAITS)


def _gaps(known: Causes) -> pd.DataFrame:
    """Give the stretches of time in which the script had submitted nothing, the longest first."""
    graph, functions = known.savings.graph, known.savings.runs.functions
    start, stop = known.gaps.start, known.gaps.stop
    order = np.argsort(start - stop, kind="stable")[:MOST_ROWS]
    start, stop = start[order], stop[order]
    by_stop = np.argsort(graph.stop, kind="stable")
    before = np.searchsorted(graph.stop[by_stop], start, "right") - 1
    after = np.minimum(np.searchsorted(graph.start, stop), len(graph) - 1)
    return pd.DataFrame(
        {
            "start": start,
            "stop": stop,
            "duration": stop - start,
            "before": pd.Series(
                [functions[f] for f in graph.function[by_stop[np.maximum(before, 0)]]], dtype=str
            ),
            "after": pd.Series([functions[f] for f in graph.function[after]], dtype=str),
        },
        columns=list(_GAPS),
    )


def _chains(known: Causes) -> pd.DataFrame:
    """Give chains of tasks that ran alone, the longest first."""
    run = known.savings
    graph, first, last = run.graph, *chains(run.graph)
    rows: list[dict[str, object]] = []
    for begin, end in zip(first[:MOST_ROWS].tolist(), last[:MOST_ROWS].tolist(), strict=True):
        names, process = chained(run, begin, end)
        start, stop = int(graph.start[begin]), int(graph.stop[end])
        rows.append(
            {
                "task": int(graph.rows[begin]),
                "start": start,
                "stop": stop,
                "duration": stop - start,
                "count": end - begin + 1,
                "functions": _counts(names),
                "worker": run.found.loc[process, "worker"] if process >= 0 else "",
                "node": run.found.loc[process, "node"] if process >= 0 else "",
            }
        )
    return _table(rows, _CHAINS)


def _counts(names: dict[str, int]) -> str:
    """Name functions, and how many tasks of each."""
    told = [name if count == 1 else f"{name} x{count}" for name, count in names.items()]
    if len(told) > WORST:
        told = [*told[:WORST], f"{len(told) - WORST} more"]
    return ", ".join(told)


def _lost_jobs(trace: Trace, table: pd.DataFrame) -> list[Finding]:
    """Tell of node jobs that the run lost, where ``run.json`` lies beside the trace."""
    run = read_run(trace.path.parent)
    sentence = lost_sentence(run)
    if not sentence:
        return []
    names = [str(job.get("name")) for job in run["lost"] if isinstance(job, dict)]
    own = [
        any(worker == name or worker.startswith(f"{name}-") for name in names)
        for worker in table["worker"].astype(str)
    ]
    return [
        Finding(
            Severity.WARNING,
            "where",
            "workers",
            tuple(int(row) for row in table.index[own]),
            f"The run lost {sentence}.",
            "What was only there was computed again, by fewer workers: see `dasf-hpc logs RUN "
            "NODE`, and `--on-lost replace` or `--on-walltime replace` for others in their place.",
        )
    ]


def _table(rows: list[dict[str, object]], columns: Columns) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _unanswered(trace: Trace, runs: Executions) -> list[str]:
    sentences = []
    if said := unused(trace):
        sentences.append(f"{said[:1].upper()}{said[1:]}.")
    elif not len(runs):
        sentences.append("No task was executed in this run.")
    elif not trace.rows("transitions"):
        sentences.append(
            "Why threads had no task: no transition of a task was recorded in this run."
        )
    if len(trace.clocks) > 1 and (trace.clocks["bound"] < 0).any():
        sentences.append(
            "What hosts did at one time, exactly: how far a clock of the run may be wrong is not "
            "known, so that scheduler, elsewhere and no_parallelism are guesses."
        )
    if not trace.rows("process_samples"):
        sentences.append("Whether workers were paused: their memory was not sampled.")
    return sentences


class _Recorded:
    """What the trace says of each worker's states and of the tasks that no worker has."""

    def __init__(self, trace: Trace, runs: Executions, found: pd.DataFrame, span: Span) -> None:
        self.span = span
        self._runs = runs
        top = int(runs.key.max()) + 1 if len(runs) else 0
        self._never = np.iinfo(np.int64).max
        #: When each key was first known to a worker.
        self._arrival = np.full(max(top, 1), self._never)
        self._events: dict[int, list[Ints]] = {}
        self._read_transitions(trace)
        keep_arrivals(trace, self._arrival.copy())
        keyed = runs.key >= 0
        #: Executions that are no task of the worker's states: calls of actors.
        self._apart = keyed & (self._arrival[np.maximum(runs.key, 0)] == self._never)
        np.minimum.at(self._arrival, runs.key[keyed], runs.start[keyed])
        since = self._known_since()
        first = int(since.min()) if len(runs) else span.stop
        #: When the run's first task was known to a worker, and when its last one ended.
        self.first = max(span.start, min(first, span.stop))
        self.last = int(runs.stop.max()) if len(runs) else span.stop
        process = runs.process
        if len(runs) and process.max() < 1 << 16:  # numpy sorts these in a tenth of the time
            process = process.astype(np.uint16)
        self._order = np.argsort(process, kind="stable")
        self._firsts = np.searchsorted(
            process[self._order], np.arange(int(found.index.max()) + 2 if len(found) else 1)
        )
        activities = trace.table("activities", ["start", "stop", "process", "action"])
        activities = without_false_reads(trace, activities)
        self._activities = {
            name: _by_process(activities[activities["action"].isin(actions)])
            for name, actions in (
                ("deserialising", ("deserialize",)),
                ("disk", ("disk-read", "disk-write")),
            )
        }
        transfers = trace.table("transfers", ["start", "stop", "process", "direction"])
        self._transfers = _by_process(transfers[transfers["direction"] == "incoming"])
        samples = trace.table("process_samples", ["time", "process", "memory"])
        self._samples = _by_process(samples.sort_values("time", kind="stable"))
        self.tasks = Tasks(*self._released(trace), *_empty(since, runs.stop))

    def _known_since(self) -> Ints:
        runs = self._runs
        arrival = self._arrival[np.maximum(runs.key, 0)]
        result: Ints = np.where(runs.key >= 0, arrival, runs.start)
        return result

    def _read_transitions(self, trace: Trace) -> None:
        columns = ["time", "process", "key", "start_state", "finish_state"]
        for piece in trace.pieces("transitions", columns):
            if not len(piece):
                continue
            states = [str(s) for s in piece["start_state"].cat.categories]
            start = piece["start_state"].cat.codes.to_numpy()
            finish = piece["finish_state"].cat.codes.to_numpy()
            time, key = piece["time"].to_numpy(), piece["key"].to_numpy()
            if "waiting" in states:
                came = finish == states.index("waiting")
                key, when = key[came], time[came]
                known = (key >= 0) & (key < len(self._arrival))
                np.minimum.at(self._arrival, key[known], when[known])
            codes = _codes_of(states)[start, finish]
            chosen = np.flatnonzero(codes != NOTHING)
            happened = events(time[chosen], codes[chosen])
            process = piece["process"].to_numpy()[chosen]
            cuts = np.flatnonzero(process[1:] != process[:-1]) + 1
            if len(cuts) > len(process) // 8:  # not process after process, as in blocks
                order = np.argsort(process, kind="stable")
                process, happened = process[order], happened[order]
                cuts = np.flatnonzero(process[1:] != process[:-1]) + 1
            of = process[np.append(0, cuts)].tolist() if len(process) else []
            for row, part in zip(of, np.split(happened, cuts), strict=False):
                self._events.setdefault(row, []).append(part)

    def slots(self, row: int, found: pd.DataFrame) -> Slots:
        """Describe a worker."""
        worker = found.loc[row].to_dict()
        mine = self._order[self._firsts[row] : self._firsts[row + 1]]
        start, stop = self._runs.start[mine], self._runs.stop[mine]
        up, down = int(worker["start"]), int(worker["stop"])
        if len(mine):
            up, down = min(up, int(start.min())), max(down, int(stop.max()))
        begin = min(max(up, self.first), self.span.stop)
        end = max(begin, min(down, self.last, self.span.stop))
        slots = Slots(int(worker["threads"]), begin, end)
        if row in self._events:
            apart = self._apart[mine]
            slots.events += [
                *self._events[row],
                *span_events("executing", start[~apart], stop[~apart]),
                *span_events("executing alone", start[apart], stop[apart]),
            ]
        else:
            slots.events += span_events("executing alone", start, stop)
            if row in self._transfers:
                part = self._transfers[row]
                for column, change in (("start", 1), ("stop", -1)):
                    times = np.maximum(part["start"], part[column])
                    slots.events.append(events(times, transition_code(0, 0, change)))
        for name, spans in self._activities.items():
            if row in spans:
                slots.events += span_events(name, spans[row]["start"], spans[row]["stop"])
        slots.events += self._full(row, int(worker["memory_limit"]))
        return slots

    def _full(self, row: int, limit: int) -> list[Ints]:
        if limit <= 0 or row not in self._samples:
            return []
        samples = self._samples[row]
        full = (samples["memory"] >= PAUSE * limit).astype(np.int8)
        change, times = np.diff(full, prepend=0), samples["time"]
        code = BEGINS["full"]
        return [events(times[change > 0], code), events(times[change < 0], code + 1)]

    def _released(self, trace: Trace) -> tuple[Ints, Ints]:
        """Give when tasks could run that had not reached a worker, and when those did; sorted."""
        runs = self._runs
        arrival = self._arrival
        able = could_run(trace, runs, arrival)
        executed = np.zeros(len(arrival), bool)
        executed[runs.key[runs.key >= 0]] = True
        late = executed & (arrival < self._never) & (able < arrival)
        return np.sort(able[late]), np.sort(arrival[late])


def _by_process(table: pd.DataFrame) -> dict[int, dict[str, NDArray[Any]]]:
    """Give the columns of numbers of each process's rows, in the same order."""
    order = np.argsort(table["process"].to_numpy(), kind="stable")
    rows, firsts = np.unique(table["process"].to_numpy()[order], return_index=True)
    columns = {
        str(name): np.split(column.to_numpy()[order], firsts[1:])
        for name, column in table.items()
        if pd.api.types.is_integer_dtype(column)
    }
    return {
        row: {name: parts[place] for name, parts in columns.items()}
        for place, row in enumerate(rows.tolist())
    }


def _codes_of(states: list[str]) -> NDArray[np.uint8]:
    """Give what a transition from one state to another changes; -1 is a state not known."""
    held = (
        ("waiting",),
        ("ready", "constrained", "executing", "long-running"),
        ("flight",),
    )
    member = np.array([[*(s in names for s in states), False] for names in held], np.int8)
    waits, assigned, flights = member[:, None, :] - member[:, :, None]
    result: NDArray[np.uint8] = transition_code(waits, assigned, flights).astype(np.uint8)
    return result


def _empty(since: Ints, until: Ints) -> tuple[Ints, Ints]:
    """Give the stretches of time in which no task was known, from `since` to `until` each."""
    if not len(since):
        return since, until
    since, until = np.sort(since), np.sort(np.maximum(since, until))
    # as many have ended as ever began, and the next one begins later
    hole = since[1:] > until[:-1]
    edges = np.array([-LATEST]), np.array([LATEST - 1])
    return (
        np.concatenate([edges[0], until[:-1][hole], until[-1:]]),
        np.concatenate([since[:1], since[1:][hole], edges[1]]),
    )


def _row(
    slots: Slots, own: Split, idle: dict[str, int], span: Span, parts: dict[str, str]
) -> dict[str, int]:
    """Give a row's wall and its parts, which sum to it."""
    figures = {
        "wall": slots.threads * span.duration,
        **own.parts,
        **idle,
        "starting": slots.threads * (slots.start - span.start),
        "stopping": slots.threads * (span.stop - slots.stop),
    }
    assert sum(figures[part] for part in parts) == figures["wall"], figures
    return figures


def _gpus(
    trace: Trace, recorded: _Recorded, found: pd.DataFrame, unanswered: list[str]
) -> list[tuple[str, Slots, Split]]:
    """Split each GPU's time by what its workers did."""
    if not gpu_activity(trace):
        unanswered.append(f"Why GPUs were idle: {no_gpu_activity(trace)}.")
        return []
    names = gpu_names(trace)
    busy = gpu_work(trace)
    span = recorded.span
    rows: list[tuple[str, Slots, Split]] = []
    apart = gpus_apart(trace)
    for gpu, name in enumerate(names):
        if gpu not in busy:
            continue
        if gpu in apart:
            unanswered.append(
                f"Why {name} was idle: nothing ties that report's clock to the run's time."
            )
            continue
        rows_of = [int(str(row)) for row, own in found["gpus"].items() if gpu in own]
        users = [recorded.slots(row, found) for row in rows_of]
        start, stop = busy[gpu]
        begin = min([int(start.min()), *(u.start for u in users)])
        end = max([int(stop.max()), *(u.stop for u in users)])
        begin = min(max(begin, span.start), span.stop)
        end = max(begin, min(end, span.stop))
        changes = [change for user in users for change in user.events]
        whole = Slots(1, begin, end, [*changes, *span_events("busy", start, stop)])
        rows.append((name, Slots(1, begin, end), split(whole, ("busy", "in_task"))))
    return rows


def gpu_work(trace: Trace) -> dict[int, tuple[Ints, Ints]]:
    """Give, by row of ``gpus``, start and stop of kernels, copies and fills, in no order.

    Those of a GPU that the trace does not know are under -1.
    """
    parts: dict[int, list[pd.DataFrame]] = {}
    for name in (TABLE_OF[kind] for kind in ON_GPU):
        if name in trace.tables:
            table = trace.table(name, ["gpu", "start", "stop"])
            for gpu, part in table.groupby("gpu"):
                parts.setdefault(int(str(gpu)), []).append(part)
    return {
        gpu: (
            np.concatenate([p["start"].to_numpy() for p in tables]),
            np.concatenate([p["stop"].to_numpy() for p in tables]),
        )
        for gpu, tables in parts.items()
    }


#: Parts that are one cause each, and the cause's kind in `dasf_hpc.analysis.causes`.
_CAUSES: dict[tuple[str, ...], str] = {
    ("deserialising",): "deserialising",
    ("disk",): "disk",
    ("paused",): "paused",
    ("dispatching", "scheduler"): "scheduling",
    ("transferring", "waiting"): "transferring",
    ("elsewhere",): "uneven",
    ("no_parallelism",): "no_parallelism",
    ("nothing_submitted",): "nothing_submitted",
}


def _findings(known: Causes, tables: dict[str, pd.DataFrame], threads: int) -> list[Finding]:
    summary, waits, gaps = tables["summary"], tables["waits"], tables["gaps"]
    names = summary["part"].tolist()
    rows = {name: row for row, name in enumerate(names)}
    times, shares, work_shares = (
        dict(zip(names, summary[column].tolist(), strict=True))
        for column in ("time", "share", "work_share")
    )
    found = []
    for parts, kind in _CAUSES.items():
        share = float(sum(work_shares[part] for part in parts))
        large = max(parts, key=lambda part: int(times[part]))
        told = [*known.of("small"), *known.of(kind)] if kind == "scheduling" else known.of(kind)
        if not told and share >= NAMED_SHARE:  # much of the time, but the run is as long without
            told = [Cause(kind, known.told(kind)["cause"], Change(), known.told(kind)["saves"])]
        for cause in told:
            table, evidence = "summary", tuple(rows[part] for part in parts)
            if kind in _WAITED_FOR and len(waits):
                of = waits["cause"] == _WAITED_FOR[kind]
                if "functions" in cause.figures:
                    of &= waits["function"].isin(cause.figures["functions"])
                if of.any():
                    table, evidence = "waits", tuple(waits.index[of].tolist())
            elif kind == "nothing_submitted" and len(gaps):
                table, evidence = "gaps", tuple(gaps.index.tolist())
            elif kind == "no_parallelism" and "functions" in cause.figures:
                table, evidence = "chains", tuple(tables["chains"].index.tolist())
            elif kind == "uneven":
                by = tables["workers"]["elsewhere"].sort_values(ascending=False, kind="stable")
                table, evidence = "workers", tuple(by.index[by > 0].tolist()[:MOST_ROWS])
            sentence, step = _said(known, cause, tables, share, threads)
            found.append(
                Finding(
                    _severity(share, cause.saves, known.savings.recorded),
                    "where",
                    table,
                    evidence,
                    sentence,
                    step or _NEXT[large],
                    **cause.told,
                )
            )
    for name in _OUTSIDE:
        share = float(shares[name])
        if share >= NAMED_SHARE:
            found.append(
                Finding(
                    Severity.NOTICE,
                    "where",
                    "summary",
                    (rows[name],),
                    f"{share_text(share)} of the workers' time in the whole run "
                    f"({duration_text(times[name])} of thread time): "
                    f"{PARTS[name]}.",
                    _NEXT[name],
                    saves=0,
                )
            )
    return found


def _said(
    known: Causes, cause: Cause, tables: dict[str, pd.DataFrame], share: float, threads: int
) -> tuple[str, str]:
    """Give a cause's sentence, and what to do where that depends on its figures."""
    of_time = f"{share_text(share)} of the workers' time from first task to last"
    if cause.kind == "small":
        return _too_small(cause, threads)
    if cause.kind == "scheduling":
        figures = cause.figures
        if not figures:
            return f"Waiting for the scheduler, or for a thread to begin: {of_time}.", ""
        mean = duration_text(figures["waited"] / figures["count"])
        return (
            f"Waiting for the scheduler: {_tasks(figures)} could run, and waited {mean} each in "
            "the mean.",
            "They are long enough: see what keeps the scheduler or the workers' event loops busy.",
        )
    if cause.kind == "nothing_submitted":
        return _nothing_submitted(known, tables["gaps"]), ""
    if cause.kind == "disk":
        return _spilling(cause, of_time)
    if cause.kind == "no_parallelism" and "functions" in cause.figures:
        return _chained(cause), ""
    said = {
        "deserialising": "Deserialising tasks",
        "paused": "Workers were paused with full memory while tasks were ready",
        "transferring": "Waiting for data of other workers",
        "uneven": "Uneven work: threads had no task while others queued at other workers",
        "no_parallelism": "No parallelism: threads had no task, and none could run",
    }[cause.kind]
    most = ""
    if cause.kind in known.delays:
        delay, graph = known.delays[cause.kind], known.savings.graph
        waited = np.bincount(graph.function, weights=delay)
        if waited.max() > 0:
            most = f", mostly before {known.savings.runs.functions[int(np.argmax(waited))]}"
    return f"{said}{most}: {of_time}.", ""


def _nothing_submitted(known: Causes, gaps: pd.DataFrame) -> str:
    origin = int(known.savings.graph.start[0])
    longest = gaps[gaps["duration"] >= LEAST * known.savings.recorded].head(STRETCHES)
    stretches = [
        f"{duration_text(duration)} from {moment_text(start, origin)}"
        for start, duration in zip(longest["start"], longest["duration"], strict=True)
    ]
    told = f" ({', '.join(stretches)})" if stretches else ""
    return (
        f"For {duration_text(known.gaps.total)} no thread had work: the script had submitted "
        f"nothing{told}."
    )


def _spilling(cause: Cause, of_time: str) -> tuple[str, str]:
    figures = cause.figures
    limit = ""
    if figures.get("limit", -1) > 0:
        each = " each" if figures["one_limit"] else " at most"
        limit = f" (limit {bytes_text(figures['limit'])}{each})"
    sentence = f"Spilling to disk: workers keep more than fits{limit}"
    if "reads" not in figures:
        return f"{sentence}: {of_time}.", ""
    function, reads = figures.get("function", ""), figures["reads"]
    results = "results"
    if function:
        results += f" of {function} ({bytes_text(figures['nbytes'])} each)"
    return (
        f"{sentence}; {results} were read back before {count_text(reads)} "
        f"task{'s' * (reads != 1)} of {figures['readers']} could run.",
        f"Give workers more memory, or make chunks{f' of {function}' * bool(function)} smaller. "
        "Writes by Dask's memory manager are not recorded.",
    )


def _chained(cause: Cause) -> str:
    names = cause.figures["functions"]
    place = f" on {cause.figures['place']}" if cause.figures["place"] else ""
    return (
        f"No parallelism: for {duration_text(cause.stop - cause.start)} only one task ran at a "
        f"time: a chain of {count_text(sum(names.values()))} ({_counts(names)}){place} from "
        f"{moment_text(cause.start, cause.figures['origin'])}."
    )


def _severity(share: float, saves: int = 0, whole: int = 1) -> Severity:
    serious = share >= SERIOUS_SHARE or saves >= SERIOUS_SAVES * whole
    return Severity.SERIOUS if serious else Severity.WARNING


def _tasks(figures: dict[str, Any]) -> str:
    """Count tasks, and name the functions that waited most."""
    names, count = figures["functions"], figures["count"]
    counted = f"{count_text(count)} task{'s' * (count != 1)}"
    if len(names) < 2:
        return f"{counted} of {names[0]}" if names else counted
    enough = int(np.searchsorted(np.cumsum(figures["shares"]), ENOUGH_SMALL)) + 1
    return f"{counted} (mostly {', '.join(names[: min(NAMED_SMALL, enough)])})"


def _too_small(cause: Cause, threads: int) -> tuple[str, str]:
    """Say that handing tasks over costs much, and how much larger ones may be."""
    figures = cause.figures
    count = figures["count"]
    sentence = (
        f"Tasks are too small: {_tasks(figures)} take "
        f"{duration_text(figures['executing'] / count)} in the mean and leave a thread idle "
        f"{duration_text(figures['waited'] / count)} before each."
    )
    if "larger" not in figures:
        return sentence, "Give each more data: larger chunks, or several steps in one task."
    return sentence, (
        f"Give each more data: chunks about {count_text(figures['factor'])} times as large leave "
        f"{count_text(figures['left'])} tasks of {figures['larger']} for {threads} "
        f"thread{'s' * (threads != 1)}."
    )
