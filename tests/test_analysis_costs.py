"""What a run's time went to, what mending each cause saves, and which is the costliest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Made, Task, Worker, columns, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from test_analysis_path import _GRAPH, _scheduled

from dasf_hpc.analysis import ANALYSES, analyse
from dasf_hpc.analysis.answer import Finding, Severity, costliest_first, one_a_cause
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.graph import Schedule
from dasf_hpc.analysis.headline import Headline, headline
from dasf_hpc.analysis.savings import Change, Savings
from dasf_hpc.trace.open import Trace

MS = 10**6
S = 10**9
CALL = "0760ca7d-1794-402f-9269-cc1f92233b6"


@dataclass
class Planted:
    """A run of four workers on two nodes, phase after phase, each with one problem."""

    now: int = 0
    tasks: list[Task] = field(default_factory=list)
    transitions: list[tuple[int, int, str, str, str]] = field(default_factory=list)
    disk: list[dict[str, Any]] = field(default_factory=list)

    def add(self, task: Task, known: int) -> None:
        self.tasks.append(task)
        for time, before, after in (
            (known, "released", "waiting"),
            (known, "waiting", "ready"),
            (task.start, "ready", "executing"),
            (task.stop, "executing", "memory"),
        ):
            self.transitions.append((task.worker, time, task.key, before, after))

    def phase(
        self, number: int, name: str, count: int, took: dict[int, int], before: int = 0
    ) -> Iterator[tuple[int, int, int]]:
        """Give each worker tasks, one after the other; give worker and start and stop of waits."""
        known, ends = self.now + 1, []
        for worker in range(4):
            time = known
            for i in range(count):
                yield worker, time, time + before
                time += before
                key = f"{name}-{CALL}{number}-{worker * count + i}"
                self.add(Task(key, worker, time, time + took[worker]), known)
                time += took[worker]
            ends.append(time)
        self.now = max(ends)

    def made(self) -> Made:
        workers = [Worker(node=n, memory_limit=1000 * MS) for n in (0, 0, 1, 1)]
        samples = {
            "time": [0, S],
            "node": [0, 0],
            "process": [0, 1],
            "memory": [600 * MS, 690 * MS],
        }
        more = {"activities": columns(self.disk), "process_samples": samples}
        return Made(self.tasks, workers, self.transitions, more=more)


def _planted() -> tuple[Planted, dict[str, float]]:
    """Plant problems, and say what mending each would save, s: they are one after the other."""
    run, saves = Planted(), {}
    # worker-2 takes 500 ms for what takes the others 100
    list(run.phase(1, "filter", 20, {0: 100 * MS, 1: 101 * MS, 2: 500 * MS, 3: 99 * MS}))
    saves["worker-2 on node2 is slow at filter"] = 20 * 0.4
    run.now += 6 * S
    saves["the script submitted nothing"] = 6.0
    # ten tasks on each worker that wait 200 ms until results are read from disk
    for worker, start, stop in run.phase(
        2, "block", 10, dict.fromkeys(range(4), 100 * MS), 200 * MS
    ):
        key = f"block-{CALL}2-{worker * 10}"
        run.disk.append(
            {"start": start, "stop": stop, "process": worker, "key": key, "action": "disk-read"}
        )
    saves["spilling to disk"] = 10 * 0.2
    # each needs the one before: on four threads a quarter of the time, were it not so
    needs: list[str] = []
    for i in range(10):
        key, start = f"chain-{i}", run.now + (not i)
        run.add(Task(key, i % 4, start, start + 300 * MS, needs=needs), start)
        needs, run.now = [key], start + 300 * MS
    saves["no parallelism"] = 10 * 0.3 * 3 / 4
    # 100 us of work and 2 ms of waits each: 100 times larger ones leave three tasks a thread
    list(run.phase(3, "tiny", 300, dict.fromkeys(range(4), MS // 10), 2 * MS))
    saves["tasks too small"] = 300 * 0.002 * 99 / 100
    # 200 ms of work and 100 ms of waits, of which 200 us are what handing over takes
    list(run.phase(4, "late", 5, dict.fromkeys(range(4), 200 * MS), 100 * MS))
    saves["waiting for the scheduler"] = 5 * (0.1 - 0.0002)
    return run, saves


def _headline(trace: Trace) -> Headline:
    return headline(trace, {name: analyse(name, trace) for name in ANALYSES})


def test_planted_problems_are_found_with_what_they_cost_the_costliest_first(
    tmp_path: Path,
) -> None:
    run, saves = _planted()
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        told = _headline(trace)
        where = analyse("where", trace)
        tasks = trace.table("tasks", ["prefix"])["prefix"].tolist()
    found = {finding.cause: finding for finding in told.findings if finding.cause in saves}
    assert list(found) == sorted(saves, key=lambda cause: -saves[cause])
    for cause, seconds in saves.items():
        assert found[cause].saves / S == pytest.approx(seconds, rel=0.03), cause
    # nothing else comes first, nothing is told twice
    assert [f.cause for f in told.findings][:4] == list(found)[:4]
    causes_told = [f.cause for f in told.findings if f.cause]
    assert len(causes_told) == len(set(causes_told))
    # what each lets begin only after the one before: all at once save the sum
    assert told.avoidable / S == pytest.approx(sum(saves.values()), rel=0.03)
    assert told.duration == max(task.stop for task in run.tasks) - 1
    assert told.sentence == (
        f"{told.duration / S:.1f} s from first to last task; up to {told.avoidable / S:.1f} s of "
        "it avoidable: worker-2 on node2 is slow at filter (8 s), the script submitted nothing "
        f"(6 s), no parallelism (2.25 s), spilling to disk (2 s) and 2 more."
    )
    # and where to look
    slow = found["worker-2 on node2 is slow at filter"]
    assert (slow.process, tasks[slow.task]) == (2, "filter")
    assert (slow.start, slow.stop) == (1, 10 * S + 1)
    assert slow.sentence == (
        "worker-2 on node2 is slow at filter: tasks take 500 ms there, 100 ms elsewhere (medians, "
        "5.00 times)."
    )
    assert slow.next_step.startswith("worker-3 on the same node is not: look at what runs beside")
    gap = found["the script submitted nothing"]
    assert (gap.start, gap.stop) == (10 * S + 1, 16 * S + 2)
    assert (gap.process, gap.task) == (-1, -1)  # nothing ran in it
    assert gap.sentence == (
        "For 6 s no thread had work: the script had submitted nothing (6 s from 10.000 s)."
    )
    gaps = where.tables[gap.table].loc[list(gap.rows)]
    assert (gaps["start"].iloc[0], gaps["stop"].iloc[0]) == (gap.start, gap.stop)
    assert gaps.iloc[0][["before", "after"]].tolist() == ["filter", "block"]
    disk = found["spilling to disk"]
    assert tasks[disk.task] == "block"
    assert disk.sentence == (
        "Spilling to disk: workers keep more than fits (limit 1 GB each); results were read back "
        "before 4 tasks of block could run."
    )
    waits = where.tables[disk.table].loc[list(disk.rows)]
    assert set(waits["cause"]) == {"disk"}
    assert set(waits["function"]) == {"block"}
    assert waits["time"].sum() == 8 * S
    assert waits["count"].tolist() == [10] * 4
    assert 16 * S < disk.start < disk.stop < 19.1 * S
    chain = found["no parallelism"]
    assert tasks[chain.task] == "chain"
    assert 19 * S < chain.start < chain.stop < 22.1 * S
    assert chain.stop - chain.start == 3 * S
    assert "for 3 s only one task ran at a time: a chain of 10 (chain x10) from" in chain.sentence
    row = where.tables[chain.table].to_dict("records")[chain.rows[0]]
    assert (row["task"], row["start"], row["stop"]) == (chain.task, chain.start, chain.stop)
    assert (row["count"], row["functions"], row["worker"]) == (10, "chain x10", "")
    assert (
        "chunks about 100 times as large leave 12 tasks of tiny"
        in found["tasks too small"].next_step
    )
    assert "Waiting for the scheduler: " in found["waiting for the scheduler"].sentence


def test_a_function_that_takes_most_time_is_not_first_where_its_speed_saves_little(
    tmp_path: Path,
) -> None:
    # three workers compute while the fourth, whose long task all wait for, runs on
    tasks = [Task(f"wide-{w}-{i}", w, i * S, (i + 1) * S) for w in range(3) for i in range(8)]
    tasks.append(Task("long-1", 3, 0, 10 * S))
    tasks.append(Task("end-1", 0, 14 * S, 15 * S, needs=["long-1", "wide-0-7"]))
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker() for _ in range(4)])) as trace:
        told = _headline(trace)
    (wide,) = [f for f in told.findings if f.cause == "wide takes long"]
    assert "wide takes 69 % of the executing time" in wide.sentence
    assert wide.saves == 0
    assert told.findings[0].saves > 0
    assert told.findings.index(wide) > 0


def test_a_worker_slow_at_one_function_only_is_found(tmp_path: Path) -> None:
    # over all its tasks worker-1 is 4 % slower
    tasks = []
    for worker in range(4):
        time = 0
        for i in range(60):
            took = 1000 * MS
            tasks.append(Task(f"big-{worker}-{i}", worker, time, time + took))
            small = (100 if worker == 1 else 60) * MS + i % 3
            time += took + small
            tasks.append(Task(f"small-{worker}-{i}", worker, time - small, time))
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker() for _ in range(4)])) as trace:
        (slow,) = [f for f in analyse("balance", trace).findings if "slow" in f.sentence]
    assert slow.cause == "worker-1 on node1 is slow at small"
    assert slow.saves / S == pytest.approx(60 * 0.04, rel=0.01)
    assert slow.process == 1


def test_workers_whose_tasks_merely_differ_are_not_slow(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    tasks = []
    for worker in range(8):
        time = 0
        for i in range(40):
            took = int(draw.exponential(100 * MS))
            tasks.append(Task(f"f-{worker}-{i}", worker, time, time + took))
            time += took
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker() for _ in range(8)])) as trace:
        assert causes(trace).of("slow") == []


@settings(max_examples=40, deadline=None)
@given(_GRAPH, st.sampled_from([1, 2]), st.randoms(use_true_random=False))
def test_what_is_left_out_saves_no_more_than_it_is(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, int, list[int], str]],
    threads: int,
    draw: Any,
) -> None:
    if threads == 1:
        rows = [(worker, 0, *rest) for worker, _, *rest in rows]  # type: ignore[misc]
    tasks = _scheduled(rows)
    workers = [Worker(threads=threads)] * 3
    path = tmp_path_factory.mktemp("costs") / "trace.h5"
    with make_trace(path, Made(tasks, workers)) as trace:
        run = Savings(trace)
        assert run.saved(Change()) == 0
        start, stop = run.schedule.played(run.duration)
        assert np.array_equal(start, run.graph.start)
        assert np.array_equal(stop, run.graph.stop)
        count = len(run.graph)
        removed = [np.array([draw.randint(0, 40) for _ in range(count)]) for _ in range(2)]
        one, other = Change(duration=removed[0]), Change(delay=removed[1])
        both = run.together([one, other])
        for change in (one, other, both):
            real = run.limited(change)
            saved = run.saved(change)
            assert 0 <= saved <= min(real.total, run.recorded)
            if threads == 1:
                assert saved <= run.bound(real)
        assert run.saved(both) >= max(run.saved(one), run.saved(other))
        assert run.saved(one, other) <= run.limited(one).total
        known = causes(trace)
        delays = np.sum(list(known.delays.values()), axis=0)
        assert (delays >= 0).all()
        assert (delays <= np.maximum(0, run.schedule.delays)).all()
        for cause in known.found:
            assert 0 < cause.saves <= run.recorded
            assert run.graph.start.min() <= cause.start <= cause.stop <= run.graph.stop.max()
        words = [cause.words for cause in known.found]
        assert max([c.saves for c in known.found], default=0) <= known.avoidable(words)
        assert known.avoidable(words) <= run.recorded


def test_of_very_many_executions_the_critical_path_is_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saves = _planted()
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        monkeypatch.setattr("dasf_hpc.analysis.savings.PLAYED", 100)
        monkeypatch.setattr("dasf_hpc.analysis.causes.PLAYED", 100)
        monkeypatch.setattr(Schedule, "length", None)  # it is not played
        told = _headline(trace)
    found = {finding.cause: finding.saves / S for finding in told.findings}
    assert found.pop("no parallelism", -1) < 0  # not told
    del saves["no parallelism"]
    for cause, seconds in saves.items():
        assert found[cause] >= 0.97 * seconds
    assert told.avoidable <= told.duration


def test_findings_are_one_list() -> None:
    def finding(saves: int, severity: Severity, cause: str = "") -> Finding:
        return Finding(severity, "where", "summary", (0,), "…", "…", saves, cause=cause)

    notice = finding(0, Severity.NOTICE)
    unknown = finding(-1, Severity.SERIOUS, "b")
    small, large = finding(5, Severity.WARNING, "a"), finding(9, Severity.NOTICE, "c")
    again = finding(7, Severity.SERIOUS, "a")
    assert costliest_first([notice, unknown, small, large]) == [large, small, unknown, notice]
    assert one_a_cause([small, notice, again, notice]) == [small, notice, notice]


def test_the_new_fields_are_in_documents(tmp_path: Path) -> None:
    run, _ = _planted()
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        document = analyse("where", trace).document()
    first = document["findings"][0]
    assert first["cause"] == "the script submitted nothing"
    assert first["saves"] == pytest.approx(6 * S, abs=10)
    assert first["start"] == 10 * S + 1


def test_where_speaks_of_the_time_from_first_task_to_last(tmp_path: Path) -> None:
    run, _ = _planted()
    made = run.made()
    made.span = (0, 3 * run.now)  # as long again as it took reports to be written
    made.workers = [Worker(node=w.node, stop=3 * run.now) for w in made.workers]
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = analyse("where", trace)
    shares = answer.table.set_index("part")["work_share"]
    script = next(f for f in answer.findings if f.cause == "the script submitted nothing")
    assert script.sentence.startswith("For 6 s no thread had work")
    assert shares.sum() == pytest.approx(100)
    (stopping,) = [f for f in answer.findings if "after the run's last task" in f.sentence]
    assert (stopping.severity, stopping.saves) == (Severity.NOTICE, 0)
    assert "67 % of the workers' time in the whole run" in stopping.sentence
    assert answer.findings[-1] == stopping


def test_less_time_in_a_function_saves_what_of_it_the_run_waited_for(tmp_path: Path) -> None:
    tasks = [Task("f-0", 0, 0, 6 * S), Task("f-1", 1, 0, 4 * S)]
    tasks.append(Task("g-0", 1, 6 * S, 8 * S, needs=["f-0", "f-1"]))
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(), Worker()])) as trace:
        known = causes(trace)
        # of ten seconds of f five are waits: three of them in the task that g waited for
        told = known.less("waiting in calls", {"f": 5 * S, "not there": S})
        assert (told["saves"], told["cause"]) == (3 * S, "waiting in calls")
        assert (told["process"], told["task"]) == (0, 0)
        assert known.avoidable({"waiting in calls"}) == 3 * S


def test_of_reports_alone_the_sentence_is_about_gpus(tmp_path: Path) -> None:
    gpus = {"node": [0, 0], "index": [0, 1], "uuid": ["GPU-0", "GPU-1"], "memory": [1000, 1000]}
    kernels = [
        {"start": start, "stop": stop, "gpu": gpu, "name": "k", "task": -1, "process": 0}
        for start, stop, gpu in [(S, 5 * S, 0), (4 * S, 6 * S, 0), (2 * S, 3 * S, 1)]
    ]
    for busy in ({}, {"busy": [5 * S, S]}):
        made = Made(
            [], [Worker(stop=10 * S)], more={"gpus": {**gpus, **busy}, "kernels": columns(kernels)}
        )
        with make_trace(tmp_path / f"{len(busy)}.h5", made) as trace:
            told = headline(trace, {})
        assert told.sentence == "10 s recorded on 2 GPUs; node1 GPU 1 was idle 90 % of it."
        assert (told.start, told.duration, told.avoidable) == (0, 10 * S, -1)
    with make_trace(tmp_path / "none.h5", Made([], [Worker(stop=S)])) as trace:
        assert headline(trace, {}).sentence == "1 s recorded."


def test_a_change_that_was_asked_about_is_told_of(tmp_path: Path) -> None:
    run, _ = _planted()
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        (told,) = analyse("what_if", trace, faster={"filter": 5}).findings
        # of itself it is told of the worker that is slow at it
        assert not any("filter" in f.sentence for f in analyse("what_if", trace).findings)
    assert told.saves == 8 * S
    assert "If filter were 5x faster" in told.sentence


def test_failures_are_told_once_by_the_analysis_that_is_about_them(tmp_path: Path) -> None:
    tasks = [
        Task("f-0", 0, 0, 2 * S, state="error"),
        Task("f-0", 0, 2 * S, 5 * S),
        Task("g-0", 0, 5 * S, 6 * S, state="error"),
        Task("h-0", 0, 6 * S, 9 * S),
    ]
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker()])) as trace:
        functions, failures = (analyse(name, trace) for name in ("functions", "failures"))
        alone = headline(trace, {"functions": functions})
        both = headline(trace, {"functions": functions, "failures": failures})
    (failed,) = [f for f in alone.findings if f.cause == "failed executions"]
    assert (failed.sentence, failed.saves) == (
        "2 executions failed or were lost (most in g).",
        -1,
    )
    missing, retried = [f for f in both.findings if "fail" in f.sentence]
    # what is missing comes before all that is slow, and costs nothing
    assert both.findings[0] is missing
    assert (missing.incomplete, missing.saves, missing.cause) == (True, -1, "")
    assert (retried.incomplete, retried.saves, retried.cause) == (False, 2 * S, "retries")
    assert both.avoidable == 2 * S
    assert both.sentence == (
        "9 s from first to last task; up to 2 s of it avoidable: retries (2 s)."
    )


def test_a_finding_of_failures_spans_all_of_them(tmp_path: Path) -> None:
    tasks = [Task(f"f-{i}", 0, 10 * i * MS, (10 * i + 5) * MS, state="error") for i in range(5)]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        (finding,) = analyse("failures", trace).findings
    assert (finding.start, finding.stop) == (0, 45 * MS)
    assert (finding.process, finding.task) == (0, 0)


def _rounds(took: list[list[int]], threads: int = 1) -> Made:
    """Let each worker execute tasks of some lengths, one after the other."""
    tasks = []
    for worker, lengths in enumerate(took):
        time = 0
        for i, length in enumerate(lengths):
            tasks.append(Task(f"f-{worker}-{i}", worker, time, time + length))
            time += length
    return Made(tasks, [Worker(threads=threads) for _ in took])


def test_many_slow_workers_are_one_cause_and_the_worst_are_named(tmp_path: Path) -> None:
    slow = [200 * MS + worker * MS for worker in range(9)]
    made = _rounds([[length] * 6 for length in [*slow, *[100 * MS] * 12]])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        (cause,) = causes(trace).of("slow")
        (finding,) = [f for f in analyse("balance", trace).findings if "slow" in f.sentence]
    assert cause.words == "9 workers are slow"
    assert finding.sentence == (
        "9 workers are slow, most of all worker-8 on node1, worker-7 on node1 and worker-6 on "
        "node1."
    )
    assert sorted(finding.rows) == list(range(9))
    assert 0 < cause.saves <= 6 * 108 * MS


def test_a_worker_with_one_long_task_is_not_slow_but_its_task_is_told(tmp_path: Path) -> None:
    made = _rounds([[400 * MS, 100 * MS], *[[100 * MS] * 2] * 3])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert [cause.kind for cause in causes(trace).found if cause.task == 0][:1] == [
            "stragglers"
        ]
        assert causes(trace).of("slow") == []


def test_a_straggler_of_another_function_on_a_slow_worker_is_told(tmp_path: Path) -> None:
    tasks = []
    for worker in range(4):
        time = 0
        for i in range(20):
            took = (300 if worker == 1 else 100) * MS
            tasks.append(Task(f"f-{worker}-{i}", worker, time, time + took))
            time += took
        for i in range(20):
            took = (4000 if (worker, i) == (1, 7) else 10) * MS
            tasks.append(Task(f"g-{worker}-{i}", worker, time, time + took))
            time += took
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker() for _ in range(4)])) as trace:
        known = causes(trace)
        (slow,) = known.of("slow")
        (straggler,) = known.of("stragglers")
    assert slow.words == "worker-1 on node1 is slow at f"
    assert straggler.process == 1
    assert straggler.saves == 3990 * MS


def test_a_process_that_the_trace_does_not_know_is_no_place(tmp_path: Path) -> None:
    made = _rounds([[100 * MS] * 6, [100 * MS] * 6])
    made.tasks = [*made.tasks, *(Task(f"f-9-{i}", -1, i * S, (i + 1) * S) for i in range(6))]
    with make_trace(tmp_path / "trace.h5", made) as trace:
        known = len(trace.processes)
        (slow,) = causes(trace).of("slow")
        assert slow.saves > 0
        for name in ANALYSES:
            assert all(f.process < known for f in analyse(name, trace).findings), name


def test_a_failure_is_placed_where_it_was(tmp_path: Path) -> None:
    # of other failures most is long before
    tasks = [
        Task("f-0", 0, 0, 10 * MS, state="error"),
        Task("f-0", 0, 20 * MS, 30 * MS),
        Task("g-0", 0, 50 * MS, 51 * MS, state="error"),
        Task("h-0", 0, 60 * MS, 90 * MS),
    ]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        told = _headline(trace)
    failed = [f for f in told.findings if f.analysis == "failures"]
    assert [(f.start, f.stop) for f in failed] == [(50 * MS, 51 * MS), (0, 10 * MS)]


def test_one_task_is_neither_too_small_nor_plural(tmp_path: Path) -> None:
    one = Task("f-0", 0, 10 * MS, 11 * MS, state="error")
    with make_trace(tmp_path / "trace.h5", Made([one], span=(0, S))) as trace:
        sentences = [f.sentence for name in ANALYSES for f in analyse(name, trace).findings]
    assert "f takes 100 % of the executing time (1 ms in 1 task)." in sentences
    assert "1 execution failed or was lost (most in f)." in sentences
    assert "1 task of f failed for good: its exception was not recorded." in sentences
    assert not [s for s in sentences if "1 tasks" in s or "small" in s]


def test_larger_tasks_are_asked_of_the_function_that_waits(tmp_path: Path) -> None:
    # most of the time goes to one whose tasks are long and do not wait
    run = Planted()
    list(run.phase(1, "short", 50, dict.fromkeys(range(4), 10 * MS), 5 * MS))
    list(run.phase(2, "long", 3, dict.fromkeys(range(4), 300 * MS)))
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        (small,) = [f for f in analyse("where", trace).findings if "too small" in f.sentence]
    assert small.next_step == (
        "Give each more data: chunks about 5 times as large leave 40 tasks of short for 4 threads."
    )


def test_all_small_tasks_are_one_finding_whatever_their_functions(tmp_path: Path) -> None:
    run = Planted()
    list(run.phase(1, "short", 50, dict.fromkeys(range(4), 10 * MS), 5 * MS))
    list(run.phase(2, "tiny", 100, dict.fromkeys(range(4), MS // 10), 2 * MS))
    list(run.phase(3, "long", 5, dict.fromkeys(range(4), 300 * MS), 200 * MS))
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        answer = analyse("where", trace)
    (small,) = [f for f in answer.findings if "too small" in f.sentence]
    # 200 tasks of 10 ms and 5 ms of waits (of the first four: none), 400 of 100 us and 2 ms;
    # those that are long are not among them
    assert small.sentence == (
        "Tasks are too small: 600 tasks (mostly short, tiny) take 3.4 ms in the mean and leave a "
        "thread idle 2.97 ms before each."
    )
    assert set(answer.tables["waits"].loc[list(small.rows), "function"]) == {"short", "tiny"}
    (waits,) = [f for f in answer.findings if f.sentence.startswith("Waiting for the scheduler")]
    assert "20 tasks of long could run, and waited 200 ms each" in waits.sentence
    for finding in (small, waits):
        assert "thread time" not in finding.sentence


def test_the_function_whose_results_are_spilled_is_not_to_have_larger_chunks(
    tmp_path: Path,
) -> None:
    run = Planted()
    blocks = list(run.phase(1, "block", 50, dict.fromkeys(range(4), 10 * MS), 50 * MS))
    for i, (worker, _, _) in enumerate(blocks[::5]):
        start = run.now + (100 + 200 * i) * MS
        key = f"use-{i}"
        run.add(Task(key, worker, start, start + MS, needs=[f"block-{CALL}1-{5 * i}"]), start)
        run.disk.append(
            {
                "start": start - 90 * MS,
                "stop": start,
                "process": worker,
                "key": key,
                "action": "disk-read",
            }
        )
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        found = {f.cause: f for f in analyse("where", trace).findings}
    assert "tasks of block for" not in found["tasks too small"].next_step
    disk = found["spilling to disk"]
    assert "results of block (" in disk.sentence
    assert "read back before 40 tasks of use could run" in disk.sentence
    assert "make chunks of block smaller" in disk.next_step


def test_the_critical_path_says_what_its_tasks_wait_for(tmp_path: Path) -> None:
    run = Planted()
    list(run.phase(1, "late", 20, dict.fromkeys(range(4), 200 * MS), 150 * MS))
    with make_trace(tmp_path / "trace.h5", run.made()) as trace:
        found = analyse("critical_path", trace).findings
    (waits,) = [f for f in found if f.cause == "waiting for the scheduler"]
    # of the first task none is known
    assert "nothing on it runs; its tasks wait 2.85 s for the scheduler." in waits.sentence
    assert waits.saves / S == pytest.approx(19 * 0.15, rel=0.01)


def test_a_function_that_one_worker_is_slow_at_is_not_told_to_have_uneven_inputs(
    tmp_path: Path,
) -> None:
    tasks = []
    for worker in range(30):
        time = 0
        for function, took in (("f", 1000), ("g", 10), ("h", 10)):
            for i in range(6):
                stop = time + (10 * took if worker == 3 and function != "h" else took) * MS
                tasks.append(Task(f"{function}-{worker}-{i}", worker, time, stop))
                time = stop
    workers = [Worker(node=int(worker != 3)) for worker in range(30)]
    with make_trace(tmp_path / "trace.h5", Made(tasks, workers)) as trace:
        functions = analyse("functions", trace)
        (slow,) = [f for f in analyse("balance", trace).findings if "slow" in f.sentence]
    assert not [f for f in functions.findings if "differ" in f.sentence]
    assert slow.sentence == (
        "worker-3 on node1 is slow: tasks of f take 10 s there, 1 s elsewhere (medians, 10.00 "
        "times); likewise g."
    )
    # it is the only one of its node
    assert slow.next_step == "Look at the node's CPU, memory and GPU clocks, or exclude it."


def test_what_happens_over_time_begins_with_the_first_task(tmp_path: Path) -> None:
    made = Made([Task("f-0", 0, 4 * S, 5 * S)], [Worker(stop=10 * S)], span=(0, 10 * S))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        table = analyse("balance", trace).tables["over_time"]
    assert table["time"].min() == 4 * S
    assert table["busy"].sum() == S
