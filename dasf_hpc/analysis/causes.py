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

Threads without a task are in module ``spare_threads``, slow workers and long tasks in
``slow_workers``. Of more executions than are played again, uneven work and a want of parallelism
are not told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.cause import LEAST, WORDS, Cause, placed, saved
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.disk import without_false_reads
from dasf_hpc.analysis.executions import Ints, group_sums
from dasf_hpc.analysis.graph import Graph, could_run, first_known
from dasf_hpc.analysis.savings import PLAYED, Change, Savings, savings
from dasf_hpc.analysis.slow_workers import slow_workers, straggling_tasks
from dasf_hpc.analysis.spare_threads import Threads, shared, spread, threads_over_time
from dasf_hpc.trace.open import Trace

#: Shares of a worker's memory limit at which Dask spills, and pauses it:
#: ``distributed.worker.memory.spill`` and ``.pause``.
SPILL, PAUSE = 0.7, 0.8
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

#: Parts of delays that something can be done about, in the order of precedence.
DELAYS = ("nothing_submitted", "deserialising", "disk", "paused", "transferring", "scheduling")

#: Executions that failed or were lost, those that were retried with success, and those lost with
#: their workers: as a cause in a few words.
FAILED, RETRIED, LOST_WORK = "failed executions", "retries", "work lost with workers"

#: How many times faster a function is thought to be that no cause but its length is known of.
FASTER = 2.0


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
            cause = placed(run, Cause("faster", words, change, saves))
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
            self._shorter[words] = placed(run, Cause("shorter", words, change, saves))
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
    delays = _delays(trace, run, run.schedule.ready, able, gaps)
    threads = threads_over_time(run, able, known, new) if len(run.graph) <= PLAYED else None
    del able, known, new
    slow = slow_workers(run)
    alone = [_best(run, threads, cause) for cause in slow]
    alone += [
        replace(cause, saves=saved(run, cause.change)) for cause in straggling_tasks(run, slow)
    ]
    mended = run.together([cause.change for cause in alone])
    found = list(alone)
    for kind in DELAYS[:-1]:
        found += _delay(run, kind, Change(delay=delays[kind]))
    spilled = _spilled(trace, run)
    found += _scheduling(run, delays["scheduling"], str(spilled.get("function", "")))
    for kind, duration in spread(run, threads).items() if threads else ():
        change = run.limited(Change(duration=duration))
        saves = run.saved(change, mended) if mended.total else saved(run, change)
        if saves:
            found.append(placed(run, Cause(kind, WORDS[kind], change, saves)))
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


def _best(run: Savings, threads: Threads | None, cause: Cause) -> Cause:
    """Say what a cause saves, whether tasks stay on their workers or are shared anew."""
    changes = [cause.change]
    if threads:
        changes.append(shared(run, threads, cause.change))
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


def split_delays(trace: Trace, run: Savings, ready: Ints) -> dict[str, Ints]:
    """Split the time before each execution from when it could have begun.

    Parameters
    ----------
    ready
        When all had ended that each execution follows, ns, in the order of the graph.

    Returns
    -------
    dict
        By part of `DELAYS`, ns; what is left is time in which the task was not submitted yet.
    """
    able, known, _ = _moments(trace, run)
    return _delays(trace, run, ready, able, _gaps(np.minimum(able, known), run.graph.stop))


def _delays(trace: Trace, run: Savings, ready: Ints, able: Ints, gaps: Covered) -> dict[str, Ints]:
    """Split the delay before each execution."""
    graph = run.graph
    ready, start = np.minimum(ready, graph.start), graph.start
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
    activities = without_false_reads(trace, activities)
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
        read["key"].to_numpy()[(read["action"] == "disk-read").to_numpy()]
        for piece in trace.pieces("activities", ["process", "key", "action"])
        if len(read := without_false_reads(trace, piece))
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


def _delay(run: Savings, kind: str, change: Change) -> list[Cause]:
    change = run.limited(change)
    saves = saved(run, change)
    cause = Cause(kind, WORDS[kind], change, saves, figures={"waited": change.total})
    return [placed(run, cause)] if saves else []


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
        saves = saved(run, change)
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
        found.append(placed(run, Cause(kind, WORDS[kind], change, saves, figures=figures)))
    return found
