"""Analysis: what a run's time from first to last task went to that it need not have, and how much.

Each cause is time that could be left out of the recorded schedule; what that saves is found by
playing the schedule without it (`dasf_hpc.analysis.savings`). Analyses tell of a cause in their own
findings, with these figures.

The delay before an execution, from when all that it follows had ended to its start, is split, each
part before those that come after it in `DELAYS`:

- ``nothing_submitted``: no task was known or could run anywhere.
- ``deserialising``, ``disk``: the worker did that, as Dask reports. What Dask's memory monitor
  writes it reports not: on a worker that reads results back, delays while its process uses as much
  memory as makes Dask spill are put down to ``disk``, too.
- ``paused``: the worker used as much memory as makes Dask pause it.
- ``transferring``: the worker fetched data, before a task that needs some.
- ``scheduling``: the rest from when the task could run.

While executions run and threads have no task, what runs could be spread over more threads: over
those that are free while tasks queue elsewhere (``uneven``), or over all (``no_parallelism``), in
the time in which none queues. Both are at most: as if tasks could be split and moved at no cost.
Of more executions than are played again they are not told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Executions, Floats, Ints, group_quantiles, group_sums
from dasf_hpc.analysis.graph import Graph, could_run, first_known
from dasf_hpc.analysis.savings import PLAYED, Change, Savings, savings
from dasf_hpc.trace.open import Trace

#: Shares of a worker's memory limit at which Dask spills, and pauses it:
#: ``distributed.worker.memory.spill`` and ``.pause``.
SPILL, PAUSE = 0.7, 0.8
#: A worker whose tasks take this many times the other workers' is slow, ...
SLOW = 1.25
#: ... at a function of which it executed so many tasks.
ENOUGH = 5
#: ... or so many standard deviations more of all its tasks than half are longer than usual.
CHANCE = 3.0
#: So many slow workers are causes of their own; of more so many are named, the worst.
MOST_SLOW, NAMED_SLOW = 8, 3
#: A worker that is slow at functions of this share of its time is slow as a whole.
MOSTLY = 0.8
#: A task that takes this many times the median of its function is a straggler, ...
STRAGGLER = 3.0
#: ... where it takes so much longer than the median, as a share of the time from first to last task
STRAGGLER_SHARE = 0.01
#: ... and where no larger share of the function's tasks is so long.
RARE = 0.1
#: What handing a task over takes at the least, ns: Dask's documentation says 200 us to 1 ms.
HANDOVER = 200_000
#: Tasks of a shorter mean are small, ns: Dask's best practices for arrays ask for 100 ms or so.
SMALL = 100_000_000
#: Larger blocks are to bring what is lost for each task to this share of the executing time, ...
LOST_SHARE = 0.1
#: ... but to leave so many tasks a thread of the function that takes most time.
TASKS_A_THREAD = 3
#: Of a function of so many tasks that wait longer than they run, larger blocks leave fewer waits.
MANY = 100
#: What saves a smaller share of the time from first to last task is no cause to tell of.
LEAST = 0.005
#: Stretches of time that are nearer than this share of the run are one.
NEAR = 0.01

#: Parts of delays that something can be done about, in the order of precedence.
DELAYS = ("nothing_submitted", "deserialising", "disk", "paused", "transferring", "scheduling")

#: Causes, in a few words; those of workers have their own.
WORDS = {
    "nothing_submitted": "the script submitted nothing",
    "deserialising": "deserialising tasks",
    "disk": "spilling to disk",
    "paused": "workers paused with full memory",
    "transferring": "waiting for data",
    "scheduling": "waiting for the scheduler",
    "small": "tasks too small",
    "uneven": "uneven work",
    "no_parallelism": "no parallelism",
    "stragglers": "single tasks that take long",
}

#: Executions that failed or were lost, those that were retried with success, and those lost with
#: their workers: as a cause in a few words.
FAILED, RETRIED, LOST_WORK = "failed executions", "retries", "work lost with workers"

#: How many times faster a function is thought to be that no cause but its length is known of.
FASTER = 2.0


@dataclass(frozen=True)
class Cause:
    """One thing that time goes to.

    Attributes
    ----------
    kind
        One of `WORDS`, or ``slow``, ``faster``, ``shorter``.
    words
        What it is, in a few words: ``w0-0 on node2 is slow at filter_trace``.
    change
        The time that could be left out.
    saves
        What that saves of the time from first to last task, ns, at most.
    start, stop, process, task
        Where in the run most of it is, as of a `Finding`.
    figures
        What is to be told of it, by name.
    """

    kind: str
    words: str
    change: Change
    saves: int
    start: int = -1
    stop: int = -1
    process: int = -1
    task: int = -1
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """What a `Finding` of the cause takes from it."""
        return {
            "saves": self.saves,
            "start": self.start,
            "stop": self.stop,
            "process": self.process,
            "task": self.task,
            "cause": self.words,
        }


@dataclass(frozen=True)
class Causes:
    """All causes of a run.

    Attributes
    ----------
    savings
        The schedule.
    found
        The causes, the costliest first.
    delays
        By part of `DELAYS`: what of the delay before each execution is put down to it, ns, in the
        order of the graph.
    gaps
        Stretches of time in which no task was known or could run, from first to last task.
    """

    savings: Savings
    found: list[Cause]
    delays: dict[str, Ints]
    gaps: Covered
    _faster: dict[int, Cause] = field(default_factory=dict)
    _shorter: dict[str, Cause] = field(default_factory=dict)

    def faster(self, function: int) -> Cause:
        """Say what a function costs by how long its tasks take: what twice as fast ones save.

        It saves that in addition where all other causes are mended, or alone, whichever is less.

        Parameters
        ----------
        function
            Position of the function in `Executions.functions`.
        """
        if function not in self._faster:
            run = self.savings
            mine = run.graph.function == function
            removed = run.duration - np.round(run.duration / FASTER).astype(np.int64)
            change = Change(duration=np.where(mine, removed, 0))
            alone = run.saved(change)
            others = run.together([cause.change for cause in self.found])
            beside = Change(np.where(mine, run.duration // 2, 0))
            if others.duration is not None:
                left = run.duration - others.duration
                beside = Change(np.where(mine, others.duration + left // 2, 0))
            saves = min(alone, run.saved(beside, others)) if alone and others.total else alone
            words = f"{run.runs.functions[function]} takes long"
            cause = _placed(run, Cause("faster", words, change, saves))
            self._faster[function] = cause
        return self._faster[function]

    def shorter(self, words: str, removed: Ints) -> Cause:
        """Say what it saves if executions were shorter, each by so much, ns, by row of tasks.

        It is one more cause from then on, of that name.
        """
        run = self.savings
        if words not in self._shorter:
            change = run.limited(Change(duration=removed[run.graph.rows]))
            saves = run.saved(change) if change.total else 0
            self._shorter[words] = _placed(run, Cause("shorter", words, change, saves))
        return self._shorter[words]

    def less(self, words: str, times: Mapping[Any, int]) -> dict[str, Any]:
        """Say what it saves if functions took less time, each so much in sum over its tasks, ns.

        Each task gets shorter in proportion to how long it takes.

        Returns
        -------
        dict
            What a `Finding` takes from the cause.
        """
        run = self.savings
        width = len(run.runs.functions)
        if not width or not len(run.graph):
            return {"cause": words}
        total = np.maximum(1, group_sums(run.runs.function, run.runs.duration, width))
        own = np.array([times.get(name, 0) for name in run.runs.functions], np.float64)
        share = np.clip(own / total, 0.0, 1.0)
        removed = (run.runs.duration * share[run.runs.function]).astype(np.int64)
        return self.shorter(words, removed).told

    def mendable(self, words: Collection[str]) -> list[Cause]:
        """Give the causes of some names, the costliest first; a function that takes long is none.

        Those are left out that save next to nothing.
        """
        run = self.savings
        known = [
            cause
            for cause in [*self.found, *self._shorter.values()]
            if cause.words in words and cause.saves >= max(1, LEAST * run.recorded)
        ]
        return sorted(known, key=lambda cause: -cause.saves)

    def avoidable(self, words: Collection[str]) -> int:
        """Give what is saved, ns, at most, where all causes of some names are mended at once.

        Never less than what the costliest saves. It is not their sum: the schedule is played
        without all of it.
        """
        mended = self.mendable(words)
        if not mended:
            return 0
        together = self.savings.together([cause.change for cause in mended])
        return max(self.savings.saved(together), mended[0].saves)

    def of(self, kind: str) -> list[Cause]:
        """Give the causes of a kind."""
        return [cause for cause in self.found if cause.kind == kind]

    def told(self, kind: str) -> dict[str, Any]:
        """What a `Finding` of the first cause of a kind takes from it; saves nothing without."""
        for cause in self.of(kind):
            return cause.told
        if kind == "scheduling" and self.of("small"):
            return self.told("small")
        unknown = kind in ("uneven", "no_parallelism") and len(self.savings.graph) > PLAYED
        return {"saves": -1 if unknown else 0, "cause": WORDS[kind]}


_MADE: WeakKeyDictionary[Trace, Causes] = WeakKeyDictionary()


def causes(trace: Trace) -> Causes:
    """Find what a run's time went to, once for all that ask.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    if trace not in _MADE:
        _MADE[trace] = _causes(trace)
    return _MADE[trace]


def _causes(trace: Trace) -> Causes:
    run = savings(trace)
    if not len(run.graph):
        none = np.empty(0, np.int64)
        return Causes(run, [], {}, Covered(none, none))
    able, known, new = _moments(trace, run)
    gaps = _gaps(np.minimum(able, known), run.graph.stop)
    delays = _delays(trace, run, able, gaps)
    threads = _threads(run, able, known, new) if len(run.graph) <= PLAYED else None
    del able, known, new
    slow = _slow(run)
    alone = [_best(run, threads, cause) for cause in slow]
    alone += [replace(cause, saves=_saved(run, cause.change)) for cause in _stragglers(run, slow)]
    mended = run.together([cause.change for cause in alone])
    found = list(alone)
    for kind in DELAYS[:-1]:
        found += _delay(run, kind, Change(delay=delays[kind]))
    spilled = _spilled(trace, run)
    found += _scheduling(run, delays["scheduling"], str(spilled.get("function", "")))
    for kind, duration in _spread(run, threads).items() if threads else ():
        change = run.limited(Change(duration=duration))
        saves = run.saved(change, mended) if mended.total else _saved(run, change)
        if saves:
            found.append(_placed(run, Cause(kind, WORDS[kind], change, saves)))
    if len(gaps.start):
        longest = int(np.argmax(gaps.stop - gaps.start))
        begin, end = int(gaps.start[longest]), int(gaps.stop[longest])
        found = [
            replace(c, start=begin, stop=end, process=-1, task=-1)
            if c.kind == "nothing_submitted"
            else c
            for c in found
        ]
    found = [cause for cause in found if cause.saves >= max(1, LEAST * run.recorded)]
    for i, cause in enumerate(found):
        if cause.kind == "disk":
            found[i] = replace(cause, figures=cause.figures | spilled)
        elif cause.kind == "no_parallelism":
            found[i] = _at_chain(run, cause)
    found.sort(key=lambda cause: -cause.saves)
    return Causes(run, found, delays, gaps)


def _best(run: Savings, threads: _Threads | None, cause: Cause) -> Cause:
    """Say what a cause saves, whether tasks stay on their workers or are shared anew."""
    changes = [cause.change]
    if threads:
        changes.append(_shared(run, threads, cause.change))
    saves = [run.saved(change) for change in changes]
    best = int(np.argmax(saves))
    return replace(cause, saves=saves[best], change=changes[best])


def _moments(trace: Trace, run: Savings) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Give when the task of each execution could run, when a worker knew it, and if it is new.

    A task that is executed once more is known from its start on.
    """
    runs, graph = run.runs, run.graph
    key, start = runs.key[graph.rows].astype(np.int64), graph.start
    first = first_known(trace, runs)
    able = could_run(trace, runs, first)
    top = max(1, len(first))
    before = np.full(top, -1, np.int64)
    places = np.arange(len(key))
    keyed = key >= 0
    before[key[keyed][::-1]] = places[keyed][::-1]
    new = keyed & (before[np.maximum(key, 0)] == places)
    known = np.where(new, np.minimum(first[np.maximum(key, 0)], start), start)
    could = np.where(new, np.minimum(able[np.maximum(key, 0)], start), start)
    return could, known, new


def _gaps(since: Ints, until: Ints) -> Covered:
    """Give the stretches of time in which no task was known or could run."""
    return Covered(*Covered(since, until).gaps())


def _delays(trace: Trace, run: Savings, able: Ints, gaps: Covered) -> dict[str, Ints]:
    """Split the delay before each execution."""
    graph = run.graph
    ready, start = np.minimum(run.schedule.ready, graph.start), graph.start
    count = len(graph)
    parts = {name: np.zeros(count, np.int64) for name in DELAYS}
    needs = np.diff(graph.first_dependency) > 0
    spans = _spans(trace, run)
    order = np.argsort(graph.process, kind="stable")
    processes, firsts = np.unique(graph.process[order], return_index=True)
    late = np.clip(able, ready, start)
    for process, mine in zip(processes.tolist(), np.split(order, firsts[1:]), strict=True):
        begin, end = ready[mine], start[mine]
        so_far = gaps
        told = parts["nothing_submitted"][mine] = so_far.between(begin, end)
        for name in DELAYS[1:-1]:
            for own in spans[name].get(process, ()):
                so_far = Covered(
                    np.concatenate([so_far.start, own.start]),
                    np.concatenate([so_far.stop, own.stop]),
                )
            now = so_far.between(begin, end)
            parts[name][mine] = now - told
            told = now
        rest = (end - late[mine]) - so_far.between(late[mine], end)
        parts["scheduling"][mine] = rest
    # who needs nothing does not wait for data that comes
    parts["scheduling"] += np.where(needs, 0, parts["transferring"])
    parts["transferring"] *= needs
    return parts


def _spans(trace: Trace, run: Savings) -> dict[str, dict[int, list[Covered]]]:
    """Give when workers did what delays tasks, by part and process."""
    spans: dict[str, dict[int, list[Covered]]] = {name: {} for name in DELAYS}
    activities = trace.table("activities", ["start", "stop", "process", "action"])
    for name, actions in (
        ("deserialising", ["deserialize"]),
        ("disk", ["disk-read", "disk-write"]),
    ):
        chosen = activities[activities["action"].isin(actions)]
        for process, part in chosen.groupby("process"):
            covered = Covered(part["start"].to_numpy(), part["stop"].to_numpy())
            spans[name][int(str(process))] = [covered]
    transfers = trace.table("transfers", ["start", "stop", "process", "direction"])
    for process, part in transfers[transfers["direction"] == "incoming"].groupby("process"):
        covered = Covered(part["start"].to_numpy(), part["stop"].to_numpy())
        spans["transferring"][int(str(process))] = [covered]
    samples = trace.table("process_samples", ["time", "process", "memory"])
    limits = run.found["memory_limit"].to_dict()
    for process, part in samples.groupby("process"):
        limit = int(limits.get(process, -1))
        if limit <= 0:
            continue
        row = int(str(process))
        times, memory = part["time"].to_numpy(), part["memory"].to_numpy()
        if row in spans["disk"]:
            spans["disk"][row].append(_while(times, memory >= SPILL * limit))
        spans["paused"][row] = [_while(times, memory >= PAUSE * limit)]
    return spans


def _spilled(trace: Trace, run: Savings) -> dict[str, Any]:
    """Say which results were read back from disk, for what, and the memory limit, bytes.

    What Dask says it read is what the task needs that it was about to begin.
    """
    limits = run.found["memory_limit"]
    figures: dict[str, Any] = {"limit": int(limits.max()), "one_limit": limits.nunique() == 1}
    reads = [
        piece["key"].to_numpy()[(piece["action"] == "disk-read").to_numpy()]
        for piece in trace.pieces("activities", ["key", "action"])
        if len(piece)
    ]
    key = np.unique(np.concatenate([np.empty(0, np.int64), *reads]))
    graph, runs = run.graph, run.runs
    place = np.flatnonzero(np.isin(runs.key[graph.rows], key[key >= 0]))
    if not len(place):
        return figures
    count = np.bincount(graph.function[place])
    most = int(np.argmax(count))
    figures |= {"readers": runs.functions[most], "reads": int(count[most])}
    place = place[graph.function[place] == most]
    first = graph.first_dependency
    needs = np.concatenate([graph.dependencies[first[i] : first[i + 1]] for i in place.tolist()])
    if len(needs):
        size = np.maximum(0, runs.nbytes[graph.rows[needs]])
        largest = int(np.argmax(np.bincount(graph.function[needs], weights=size)))
        figures["function"] = runs.functions[largest]
        figures["nbytes"] = int(np.median(size[graph.function[needs] == largest]))
    return figures


def chains(graph: Graph) -> tuple[Ints, Ints]:
    """Find chains of tasks that ran alone, each needing the result of the one before.

    Returns
    -------
    first, last
        Positions of their first and last executions, of two at least, the longest chain first.
    """
    none = np.empty(0, np.int64)
    if not len(graph):
        return none, none
    latest = np.maximum.accumulate(graph.stop)
    apart = graph.start[1:] >= latest[:-1]  # it begins when all before it have ended
    alone = np.append(True, apart) & np.append(apart, True)
    task = np.repeat(np.arange(len(graph)), np.diff(graph.first_dependency))
    linked = np.zeros(len(graph), np.bool_)  # it needs the one that began before it
    linked[task[graph.dependencies == task - 1]] = True
    linked[1:] &= alone[1:] & alone[:-1]
    first = np.flatnonzero(alone & ~linked)
    last = np.flatnonzero(alone & ~np.append(linked[1:], False))
    several = last > first
    first, last = first[several].astype(np.int64), last[several].astype(np.int64)
    order = np.argsort(graph.start[first] - graph.stop[last], kind="stable")
    return first[order], last[order]


def chained(run: Savings, begin: int, end: int) -> tuple[dict[str, int], int]:
    """Count a chain's tasks by function, and give its worker; -1: several, or not known."""
    mine = slice(begin, end + 1)
    names: dict[str, int] = {}
    for function in run.graph.function[mine].tolist():
        name = run.runs.functions[function]
        names[name] = names.get(name, 0) + 1
    process = np.unique(run.graph.process[mine])
    one = len(process) == 1 and int(process[0]) in run.known
    return names, int(process[0]) if one else -1


def _at_chain(run: Savings, cause: Cause) -> Cause:
    """Place what lacks parallelism at the longest chain of tasks that ran alone."""
    graph = run.graph
    first, last = chains(graph)
    if not len(first):
        return cause
    begin, end = int(first[0]), int(last[0])
    names, process = chained(run, begin, end)
    return replace(
        cause,
        start=int(graph.start[begin]),
        stop=int(graph.stop[end]),
        process=process,
        task=int(graph.rows[begin]),
        figures={
            **cause.figures,
            "functions": names,
            "origin": int(graph.start[0]),
            "place": "{node} {worker}".format(**run.found.loc[process]) if process >= 0 else "",
        },
    )


def _while(times: Ints, holds: NDArray[np.bool_]) -> Covered:
    """Give the time from each sample of which something holds to the next one."""
    order = np.argsort(times, kind="stable")
    times, holds = times[order], holds[order]
    return Covered(times[:-1][holds[:-1]], times[1:][holds[:-1]])


def _placed(run: Savings, cause: Cause) -> Cause:
    """Say where most of a cause is: the stretch of time, the worker, the task."""
    graph, change = run.graph, cause.change
    weight = change.of(len(graph))
    some = np.flatnonzero(weight > 0)
    if not len(some):
        return cause
    begin = graph.start[some] - (0 if change.delay is None else change.delay[some])
    end = graph.stop[some] if change.duration is not None else graph.start[some]
    begin = np.minimum(begin, end)
    order = np.argsort(begin, kind="stable")
    some, begin, end, weight = some[order], begin[order], end[order], weight[some[order]]
    latest = np.maximum.accumulate(end)
    near = int(NEAR * run.recorded)
    firsts = np.flatnonzero(np.append(True, begin[1:] > latest[:-1] + near))
    sums = np.add.reduceat(weight, firsts)
    worst = int(np.argmax(sums))
    first = int(firsts[worst])
    last = int(firsts[worst + 1]) if worst + 1 < len(firsts) else len(some)
    inside = slice(first, last)
    of = np.bincount(graph.process[some], weights=weight)
    most = int(np.argmax(of))
    one = of[most] >= 0.5 * of.sum() and most in run.known
    return replace(
        cause,
        start=int(begin[first]),
        stop=int(latest[last - 1]),
        process=most if one else -1,
        task=int(graph.rows[some[inside][int(np.argmax(weight[inside]))]]),
    )


def _saved(run: Savings, change: Change) -> int:
    """Say what a change saves; of what is known to be too little to tell of, 0."""
    if not change.total or (run.alone and run.bound(change) < LEAST * run.recorded):
        return 0
    return run.saved(change)


def _delay(run: Savings, kind: str, change: Change) -> list[Cause]:
    change = run.limited(change)
    saves = _saved(run, change)
    cause = Cause(kind, WORDS[kind], change, saves, figures={"waited": change.total})
    return [_placed(run, cause)] if saves else []


def _scheduling(run: Savings, delay: Ints, spilled: str) -> list[Cause]:
    """Find what waits for the scheduler cost: where tasks are small, and of the other functions.

    Larger chunks are not asked of the function whose results are spilled.
    """
    graph = run.graph
    width = max(1, len(run.runs.functions))
    count = np.bincount(graph.function, minlength=width)
    waited = np.bincount(graph.function, weights=delay, minlength=width)
    executing = np.bincount(graph.function, weights=run.duration, minlength=width)
    threads = int(run.found["threads"].sum())
    wanted = np.ceil(waited / np.maximum(1, LOST_SHARE * executing))
    factor = np.minimum(wanted, count // (TASKS_A_THREAD * max(1, threads)))
    small = (count > 0) & (executing < SMALL * count)
    if count[small].sum() <= threads or waited[small].sum() < LOST_SHARE * executing[small].sum():
        small[:] = False
    tiny = small & (count >= MANY) & (waited >= executing) & (factor >= 2)
    kept = np.where(tiny, 1 / np.maximum(1, factor), 0.0)[graph.function]
    fewer = np.where(tiny[graph.function], delay * (1 - kept), delay - HANDOVER).astype(np.int64)
    found = []
    for kind, of in (("small", small), ("scheduling", ~small)):
        chosen = of[graph.function]
        change = run.limited(Change(delay=np.where(chosen, fewer, 0)))
        saves = _saved(run, change)
        if not saves:
            continue
        names = [f for f in np.argsort(-waited, kind="stable").tolist() if of[f] and waited[f]]
        figures: dict[str, Any] = {
            "waited": int(delay[chosen].sum()),
            "count": int(chosen.sum()),
            "executing": int(run.duration[chosen].sum()),
            "functions": [run.runs.functions[f] for f in names],
            "shares": [float(waited[f]) / float(waited[of].sum()) for f in names],
            "tiny": [run.runs.functions[f] for f in names if tiny[f]],
        }
        larger = [f for f in names if factor[f] >= 2 and run.runs.functions[f] != spilled]
        if kind == "small" and larger:
            figures |= {
                "larger": run.runs.functions[larger[0]],
                "factor": int(factor[larger[0]]),
                "left": int(count[larger[0]] // factor[larger[0]]),
            }
        found.append(_placed(run, Cause(kind, WORDS[kind], change, saves, figures=figures)))
    return found


@dataclass(frozen=True)
class _SlowWorker:
    """A worker that is slow, and how much shorter each of some of its executions should be, ns."""

    words: str
    figures: dict[str, Any]
    tasks: NDArray[np.intp]
    removed: Ints


def _slow(run: Savings) -> list[Cause]:
    """Find workers that are slow at a function, or as a whole.

    More than `MOST_SLOW` are one cause.
    """
    found = _slow_at_functions(run)
    found += _slow_as_a_whole(run, {slow.figures["worker"] for slow in found})
    found.sort(key=lambda slow: -int(slow.removed.sum()))
    if len(found) > MOST_SLOW:
        figures = {
            "workers": [slow.figures["worker"] for slow in found],
            "worst": [_place(run, slow.figures["worker"]) for slow in found[:NAMED_SLOW]],
        }
        tasks = np.concatenate([slow.tasks for slow in found])
        removed = np.concatenate([slow.removed for slow in found])
        found = [_SlowWorker(f"{len(found):,} workers are slow", figures, tasks, removed)]
    causes = []
    for slow in found:
        duration = np.zeros(len(run.graph), np.int64)
        duration[slow.tasks] = slow.removed
        change = run.limited(Change(duration=duration))
        causes.append(_placed(run, Cause("slow", slow.words, change, 0, figures=slow.figures)))
    return causes


def _slow_at_functions(run: Savings) -> list[_SlowWorker]:
    """Find workers that take longer for a function's tasks than the others do."""
    graph, duration = run.graph, run.duration
    functions = run.runs.functions
    slots = int(graph.process.max()) + 1
    group = graph.function.astype(np.int64) * slots + graph.process
    order = np.lexsort((duration, group))
    in_order = duration[order]
    groups, first, count = np.unique(group[order], return_index=True, return_counts=True)
    quarter, median, upper = (
        in_order[first + ((count - 1) * at).astype(np.int64)] for at in (0.25, 0.5, 0.75)
    )
    of, process = groups // slots, groups % slots
    usual: dict[int, tuple[int, int]] = {}
    enough = np.flatnonzero(count >= ENOUGH)
    cuts = np.flatnonzero(np.diff(of[enough])) + 1
    for mine in np.split(enough, cuts):
        if len(mine) < 2:
            continue
        other = _median_of_others(median[mine])
        slow = (median[mine] > np.median(median[mine])) & (median[mine] >= SLOW * other)
        slow &= (quarter[mine] >= _median_of_others(upper[mine])) & (median[mine] > 0)
        for at in np.flatnonzero(slow).tolist():
            usual[int(mine[at])] = int(other[at]), int(median[mine[at]])
    by_worker: dict[int, list[int]] = {}
    for place in usual:
        by_worker.setdefault(int(process[place]), []).append(place)
    busy = np.bincount(graph.process, weights=duration, minlength=slots)
    sums = np.add.reduceat(in_order, first)
    found = []
    for worker, places in by_worker.items():
        places = sorted(places, key=lambda p: -int(sums[p] * (1 - usual[p][0] / usual[p][1])))
        tasks = [order[first[p] : first[p] + count[p]] for p in places]
        removed = [
            (duration[own] * (1 - usual[p][0] / usual[p][1])).astype(np.int64)
            for p, own in zip(places, tasks, strict=True)
        ]
        worst = places[0]
        whole = len(places) > 1 and sums[places].sum() >= MOSTLY * busy[worker]
        name = functions[int(of[worst])]
        figures = {
            "worker": worker,
            "function": None if whole else name,
            "functions": [functions[int(of[p])] for p in places],
            "same_node": _not_slow(run, worker, {int(process[p]) for p in usual}),
            "count": int(count[places].sum()),
            "median": usual[worst][1],
            "others": usual[worst][0],
            "example": name,
        }
        words = f"{_place(run, worker)} is slow" + ("" if whole else f" at {name}")
        found.append(_SlowWorker(words, figures, np.concatenate(tasks), np.concatenate(removed)))
    return found


def _median_of_others(values: Ints) -> Floats:
    """Give, for each of two values or more, the median of all others."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    ordered, left = values[order], len(values) - 1
    low, high = (left - 1) // 2, left // 2
    # those from its own place on are one place further
    result: Floats = (ordered[low + (low >= rank)] + ordered[high + (high >= rank)]) / 2
    return result


def _slow_as_a_whole(run: Savings, told: set[int]) -> list[_SlowWorker]:
    """Find workers that are slow in sum over functions, of each of which they executed few.

    Far more of a slow worker's tasks than half take longer than the median of their function: by
    `CHANCE` standard deviations, were it by chance.
    """
    graph, duration = run.graph, run.duration
    slots = int(graph.process.max()) + 1
    slowdown = slowdowns(run.runs, slots)
    known = slowdown[np.isfinite(slowdown)]
    if not len(known):
        return []
    middle = float(np.median(known))
    median = _medians(run.runs)[graph.function]
    count = np.bincount(graph.process, minlength=slots)
    longer = np.bincount(graph.process[duration > median], minlength=slots)
    surely = longer >= count / 2 + CHANCE * np.sqrt(count) / 2
    order = np.argsort(graph.process, kind="stable")
    firsts = np.searchsorted(graph.process[order], np.arange(slots + 1))
    found = []
    slow = np.flatnonzero(surely & (np.nan_to_num(slowdown) >= SLOW * middle))
    for worker in slow.tolist():
        if worker in told:
            continue
        mine = order[firsts[worker] : firsts[worker + 1]]
        removed = (duration[mine] * (1 - middle / slowdown[worker])).astype(np.int64)
        figures = {
            "worker": worker,
            "slowdown": float(slowdown[worker]),
            "same_node": _not_slow(run, worker, {*told, *slow.tolist()}),
        }
        found.append(_SlowWorker(f"{_place(run, worker)} is slow", figures, mine, removed))
    return found


def _medians(runs: Executions) -> Floats:
    """Give how long a task of each function takes, in the median, ns; NaN: there is none."""
    width = max(1, len(runs.functions))
    return group_quantiles(runs.function, runs.duration, width, (0.5,))[:, 0]


def slowdowns(runs: Executions, slots: int) -> Floats:
    """Give each process's executing time over what its tasks take in the median of all."""
    median = _medians(runs)
    usual = np.bincount(runs.process, weights=median[runs.function], minlength=slots)
    busy = np.bincount(runs.process, weights=runs.duration, minlength=slots)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.where(usual > 0, busy / usual, np.nan)
    return result


def _not_slow(run: Savings, worker: int, slow: set[int]) -> str:
    """Name a worker of the same node that executed tasks and is not slow; empty: there is none."""
    found = run.found
    if worker not in found.index:
        return ""
    used = set(np.unique(run.graph.process).tolist())
    for row in found.index[found["node_row"] == found.loc[worker, "node_row"]].tolist():
        if row not in slow and row in used:
            return str(found.loc[row, "worker"])
    return ""


def _place(run: Savings, worker: int) -> str:
    row = run.found.loc[worker]
    return f"{row['worker']} on {row['node']}"


def stragglers(runs: Executions, whole: int) -> tuple[Ints, Ints]:
    """Give rows of tasks that take far longer than their function's others, and its median, ns.

    Parameters
    ----------
    whole
        From first to last task, ns.
    """
    width = max(1, len(runs.functions))
    median = _medians(runs)
    usual = np.nan_to_num(median).round().astype(np.int64)[runs.function]
    duration = runs.duration
    long = np.flatnonzero(
        (duration >= STRAGGLER * usual) & (duration - usual >= STRAGGLER_SHARE * whole)
    )
    long = long[duration[long] > 0]
    # where many tasks of a function are long it has two kinds of tasks, not stragglers
    many = np.bincount(runs.function[long], minlength=width)
    of = np.bincount(runs.function, minlength=width)
    long = long[many[runs.function[long]] <= np.maximum(1, RARE * of[runs.function[long]])]
    rows = long[np.argsort(usual[long] - duration[long], kind="stable")]
    return rows.astype(np.int64), usual[rows]


def _stragglers(run: Savings, slow: list[Cause]) -> list[Cause]:
    rows, usual = stragglers(run.runs, run.recorded)
    if not len(rows):
        return []
    place = np.empty(len(run.graph), np.int64)
    place[run.graph.rows] = np.arange(len(run.graph))
    removed = np.zeros(len(run.graph), np.int64)
    removed[place[rows]] = run.duration[place[rows]] - usual
    for cause in slow:  # the worker is slow at it, not the task
        removed[cause.change.of(len(removed)) > 0] = 0
    words = WORDS["stragglers"]
    return [_placed(run, Cause("stragglers", words, run.limited(Change(duration=removed)), 0))]


Counts = NDArray[np.int32]

#: When something changes, by how much threads without a task do, tasks that queue at a worker, and
#: tasks that no worker knows yet.
_Changes = tuple[Ints, NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]


@dataclass(frozen=True)
class _Threads:
    """Threads over time: what they have to do from each moment on.

    Attributes
    ----------
    time
        When something changes, ns.
    working
        Threads that have a task, at least 1.
    idle
        Threads that have none, without those that the scheduler has tasks for.
    queue
        Tasks that a worker knows and has no thread for.
    """

    time: Ints
    working: Counts
    idle: Counts
    queue: Counts

    def spent(self, graph: Graph, share: Floats) -> Ints:
        """Give a share of the time that executions take, which changes over time, ns."""
        return _integral(self.time, share, graph.start, graph.stop)


def _integral(time: Ints, values: Floats, start: Ints, stop: Ints) -> Ints:
    """Integrate values, each from its time to the next one, from each start to each stop."""
    until = np.append(0.0, np.cumsum(values * np.diff(time, append=time[-1:])))

    def before(moment: Ints) -> Floats:
        at = np.maximum(np.searchsorted(time, moment, "right") - 1, 0)
        result: Floats = until[at] + values[at] * np.maximum(0, moment - time[at])
        return result

    result: Ints = (before(stop) - before(start)).astype(np.int64)
    return result


def _threads(run: Savings, able: Ints, known: Ints, new: NDArray[np.bool_]) -> _Threads:
    changes = list(_of_workers(run, known))
    came = new & (able < known)
    for times, step in ((able[came], 1), (known[came], -1)):
        zero = np.zeros(len(times), np.int8)
        changes.append((times, zero, zero, np.full(len(times), step, np.int8)))
    time, free, queued, coming = (np.concatenate(column) for column in zip(*changes, strict=True))
    del changes
    order = np.argsort(time, kind="stable")
    threads = int(run.found["threads"].sum())
    idle = threads + np.cumsum(free[order], dtype=np.int32)
    return _Threads(
        time[order],
        np.maximum(1, threads - idle),
        np.maximum(0, idle - np.cumsum(coming[order], dtype=np.int32)),
        np.cumsum(queued[order], dtype=np.int32),
    )


def _spread(run: Savings, threads: _Threads) -> dict[str, Ints]:
    """Say by how much executions were shorter if threads without a task took part of them, ns."""
    moved = np.minimum(threads.idle, threads.queue)
    return {
        kind: threads.spent(run.graph, more / (threads.working + more))
        for kind, more in (("uneven", moved), ("no_parallelism", threads.idle - moved))
    }


def _shared(run: Savings, threads: _Threads, change: Change) -> Change:
    """Share what some workers' executions get shorter by among all that have tasks meanwhile.

    Dask moves tasks to workers that become free: what one worker gains all gain.
    """
    graph = run.graph
    assert change.duration is not None
    rows = np.flatnonzero(change.duration > 0)
    gain = change.duration[rows] / np.maximum(1, run.duration[rows])
    time = np.concatenate([graph.start[rows], graph.stop[rows], threads.time])
    step = np.concatenate([gain, -gain, np.zeros(len(threads.time))])
    order = np.argsort(time, kind="stable")
    time = time[order]
    at = np.maximum(np.searchsorted(threads.time, time, "right") - 1, 0)
    share = np.maximum(0.0, np.cumsum(step[order])) / threads.working[at]
    return run.limited(Change(duration=_integral(time, share, graph.start, graph.stop)))


def _of_workers(run: Savings, known: Ints) -> Iterator[_Changes]:
    """Give when threads without a task, and tasks that queue at a worker, become more or fewer."""
    graph = run.graph
    order = np.argsort(graph.process, kind="stable")
    processes, firsts = np.unique(graph.process[order], return_index=True)
    threads = run.found["threads"].to_dict()
    for process, mine in zip(processes.tolist(), np.split(order, firsts[1:]), strict=True):
        time = np.concatenate([known[mine], graph.stop[mine]])
        step = np.repeat(np.array([1, -1], np.int32), len(mine))
        sort = np.lexsort((step, time))  # at one time what ends ends first
        time, has = time[sort], np.cumsum(step[sort], dtype=np.int32)
        own = np.int32(threads.get(process, 1))
        free, queue = np.maximum(0, own - has), np.maximum(0, has - own)
        more_free, more_queue = np.diff(free, prepend=own), np.diff(queue, prepend=np.int32(0))
        some = np.flatnonzero((more_free != 0) | (more_queue != 0))
        yield (
            time[some],
            more_free[some].astype(np.int8),
            more_queue[some].astype(np.int8),
            np.zeros(len(some), np.int8),
        )
