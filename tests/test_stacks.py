"""Samples of calls are counted by weight, told by own line, and written for other programs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import (
    HILBERT,
    LOOP,
    MS,
    POOL,
    SORT,
    STEP,
    STEP_OF_LOOP,
    STREAM,
    TRANSITIONS,
    UPDATE_GRAPH,
    WAITING,
    Call,
    Sample,
    dask,
    library,
    make_large,
    make_sampled,
    make_small,
    own,
    package,
    small_run,
)
from scipy.stats import binomtest
from synthetic import write_run
from typer.testing import CliRunner

from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.answer import Severity
from dasf_hpc.analysis.event_loops import IDLE, KEPT
from dasf_hpc.analysis.stacks import LOOPS, SCHEDULER, chosen_of, half_width, hot_rows
from dasf_hpc.cli import app
from dasf_hpc.errors import TraceFileError
from dasf_hpc.show.export import export
from dasf_hpc.show.flame import CALLS, flame, merged
from dasf_hpc.show.formats import OF_STACKS, Format
from dasf_hpc.show.page_data import unpacked, unsigned
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import Source, frame_name, read_stacks, source_of, sums, weights
from dasf_hpc.trace.store import replace_tables


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_small(folder / "trace.h5").close()
    return folder


@pytest.fixture
def trace(small: Path) -> Iterator[Trace]:
    with Trace(small / "trace.h5") as opened:
        yield opened


def chain(rows: list[Any], row: int) -> list[Call]:
    """Give the calls of a row of ``stacks``, the outermost first, by a plain walk."""
    found: list[Call] = []
    while row >= 0:
        parent, *call = rows[row]
        found.append(tuple(call))
        row = parent
    return found[::-1]


def text(value: Any) -> str:
    """Give a cell of text; none is empty."""
    return value if isinstance(value, str) else ""


def every(trace: Trace) -> list[tuple[dict[str, Any], list[Call], str | None]]:
    """Give each sample, its calls, and the function of its task."""
    prefixes = trace.tasks["prefix"].tolist()
    names = ["parent", "function", "module", "file", "line", "origin"]
    columns = [trace.stacks[name].tolist() for name in names]
    table = [[one if one == one else "" for one in row] for row in zip(*columns, strict=True)]
    chains = {row: chain(table, row) for row in set(trace.call_samples["stack"])}
    return [
        (
            {str(name): value for name, value in one.items()},
            chains[one["stack"]],
            prefixes[one["task"]] if one["task"] >= 0 else None,
        )
        for one in trace.call_samples.to_dict("records")
    ]


def split(calls: list[Call]) -> tuple[Call, Call | None]:
    """Give what of a stack is told: what was called, and the own call that did; in plain words."""
    mine = [place for place, call in enumerate(calls) if call[4] == "own"]
    if mine:
        last = mine[-1]
        return calls[min(last + 1, len(calls) - 1)], calls[last]
    packages = [call for call in calls if call[4] == "package"]
    return (packages or calls[-1:])[0], None


# ------------------------------------------------------------------------------ lines


def test_a_function_is_told_by_its_own_lines(trace: Trace) -> None:
    answer = analyse("stacks", trace)
    told = [finding.sentence for finding in answer.findings]
    assert any(
        "68 % of filter_trace (± 9.0 points) is scipy.signal.hilbert, called from job.py:41 "
        "(680 ms)"
        in sentence
        and "100 % of load (± 0.9 points) is job.py:12 itself, in load (2 s)" in sentence
        for sentence in told
    )
    hot = answer.tables["hot"]
    rows = hot[hot["function"] == "filter_trace"]
    assert rows["frame"].tolist() == ["scipy.signal.hilbert", "filter_trace", "numpy.sort"]
    assert rows["called_from"].tolist() == ["job.py:41", "job.py:44", "job.py:43"]
    assert rows["samples"].tolist() == [68, 20, 12]
    assert rows["time"].tolist() == [680 * MS, 200 * MS, 120 * MS]
    assert all(finding.saves == -1 for finding in answer.findings)


def test_times_of_calls_are_there_on_a_narrow_terminal(small: Path) -> None:
    shown = CliRunner().invoke(app, ["analyze", "stacks", str(small)], env={"COLUMNS": "80"}).output
    calls = shown.partition("Calls, by their own")[2].partition("event loops did")[0]
    left_out = calls.partition("columns:")[2]
    assert "680 ms" in calls
    assert "In itself" not in left_out
    assert "Module" in left_out
    lines = shown.partition("Lines that took")[2].partition("Calls, by their own")[0]
    assert "680 ms" in lines


def test_what_takes_long_leads_to_its_lines(trace: Trace) -> None:
    steps = [finding.next_step for finding in analyse("what_if", trace).findings]
    assert steps
    assert all("`dasf-hpc analyze stacks` says in which lines" in step for step in steps)


FRAMES = st.sampled_from(
    [own("f", 1), own("f", 2), own("g", 3, "more.py"), HILBERT, SORT, POOL[0], POOL[1],
     package("hilbert", "scipy.signal._signaltools", 9), ("work", "fast.so", "", -1, "")]
)  # fmt: skip
DRAWN = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 3), st.integers(1, 30 * MS),
        st.lists(FRAMES, min_size=1, max_size=6),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=40)
@given(drawn=DRAWN)
def test_every_sum_is_that_of_the_samples_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int, list[Call]]]
) -> None:
    tasks = [Task(f"{name}-1", n % 2, n, 10**9) for n, name in enumerate("abc")]
    samples = [
        Sample(process, 100 + n, calls, span, task=f"{'abc'[task]}-1" if task < 3 else "")
        for n, (process, task, span, calls) in enumerate(drawn)
    ]
    path = tmp_path_factory.mktemp("drawn") / "trace.h5"
    with make_sampled(path, samples, tasks) as trace:
        hot: Counter[tuple[str, str, str]] = Counter()
        own_time: Counter[tuple[str, str, str]] = Counter()
        total: Counter[tuple[str, str, str]] = Counter()
        whole: Counter[str] = Counter()
        squares: defaultdict[str, float] = defaultdict(float)
        for one, calls, function in every(trace):
            called, line = split(calls)
            group = function or "(no task)"
            whole[group] += one["span"]
            squares[group] += float(one["span"]) ** 2
            if function:
                place = f"{line[2]}:{line[3]}" if line else ""
                hot[function, frame_name(called[0], called[1], called[4]), place] += one["span"]
            names = [(frame_name(c[0], c[1], c[4]), c[1]) for c in calls]
            own_time[group, *names[-1]] += one["span"]
            for name in set(names):
                total[group, *name] += one["span"]
        answer = analyse("stacks", trace)
        table = answer.tables["hot"]
        found = {
            (row["function"], row["frame"], text(row["called_from"])): row["time"]
            for row in table.to_dict("records")
        }
        assert found == dict(hot)
        for row in table.to_dict("records"):
            part = row["time"] / whole[row["function"]]
            assert row["share"] == pytest.approx(100 * part)
            exact = half_width(part, whole[row["function"]], squares[row["function"]])
            assert row["half_width"] == pytest.approx(100 * exact)
        frames = answer.tables["frames"].to_dict("records")
        assert {(r["function"], r["frame"], r["module"]): r["total"] for r in frames} == dict(total)
        selves = {(r["function"], r["frame"], r["module"]): r["self"] for r in frames}
        assert {key: time for key, time in selves.items() if time} == dict(own_time)


def test_the_interval_is_wilsons_where_samples_weigh_the_same() -> None:
    for count, of in ((0, 10), (3, 10), (68, 100), (999, 1000)):
        exact = binomtest(count, of).proportion_ci(0.95, "wilson")
        assert half_width(count / of, 7.0 * of, 49.0 * of) == pytest.approx(
            (exact.high - exact.low) / 2, rel=1e-3
        )
    # of samples of which one outweighs all others, one says anything
    assert half_width(0.5, 1000.0, 999.0**2 + 1) > 0.35


def test_planted_shares_lie_within_the_interval_as_often_as_it_says() -> None:
    chance, planted = np.random.default_rng(3), (0.6, 0.3, 0.1)
    within = 0
    for _ in range(1000):
        for share, count in zip(planted, chance.multinomial(400, planted), strict=True):
            n = 400.0
            # the interval lies around a mean that is a little nearer to one half than the share
            middle = (count / n + 1.96**2 / (2 * n)) / (1 + 1.96**2 / n)
            within += abs(middle - share) <= half_width(count / n, n, n)
    assert 0.935 <= within / 3000 <= 0.965


@pytest.mark.parametrize(
    ("function", "module", "origin", "name"),
    [
        ("hilbert", "scipy.signal._signaltools", "package", "scipy.signal.hilbert"),
        ("sort", "numpy._core.fromnumeric", "package", "numpy.sort"),
        ("f", "_private.module", "package", "_private.module.f"),
        ("Scheduler.transitions", "distributed.scheduler", "dask",
         "distributed.scheduler.Scheduler.transitions"),
        ("main.<locals>.f", "__main__", "own", "main.<locals>.f"),
        ("cblas_dgemm", "libopenblas.so", "", "cblas_dgemm"),
        ("", "libopenblas.so", "", "(no name) in libopenblas.so"),
        ("", "", "", "(no name)"),
    ],
)  # fmt: skip
def test_a_function_is_called_as_it_is_imported(
    function: str, module: str, origin: str, name: str
) -> None:
    assert frame_name(function, module, origin) == name


def test_samples_weigh_what_they_stand_for(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 100 * MS)]
    samples = [Sample(0, 10 * MS + n, [own("f", 1)], 10 * MS, task="f-1") for n in range(8)]
    samples.append(Sample(0, 100 * MS, [own("f", 2)], 720 * MS, task="f-1"))
    with make_sampled(tmp_path / "trace.h5", samples, tasks) as trace:
        hot = analyse("stacks", trace).tables["hot"]
        assert hot["called_from"].tolist() == ["job.py:2", "job.py:1"]
        assert hot["share"].tolist() == [90.0, 10.0]
        assert hot["samples"].tolist() == [1, 8]
        assert hot["half_width"].min() > 25  # one sample is nearly all that is known


def test_it_is_told_where_samples_are_too_few(tmp_path: Path) -> None:
    tasks = [Task(f"{name}-1", 0, 0, 2000 * MS, thread=n) for n, name in enumerate("abc")]
    samples = []
    for n in range(1, 201):
        samples.append(Sample(0, n * STEP, [own("a", 1)], task="a-1", thread=0))
        if n % 2:
            samples.append(Sample(0, n * STEP, [own("b", 2)], task="b-1", thread=1))
            # an asynchronous task, in the thread of the event loop
            samples.append(Sample(0, n * STEP, [own("c", 3)], task="c-1", thread=9))
        samples.append(Sample(0, n * STEP, WAITING, thread=9, role="event loop"))
    with make_sampled(tmp_path / "trace.h5", samples, tasks) as trace:
        told = [one for one in analyse("stacks", trace).unanswered if one.startswith("Lines of")]
        assert len(told) == 1
        assert told[0].startswith("Lines of b: its samples stand for 50 % of its time.")
        within = analyse("stacks", trace, between=(0.5, 1.0)).unanswered
        assert not any(one.startswith("Lines of") for one in within)


# ------------------------------------------------------------------------------ event loops


def test_event_loops_are_told_by_what_they_did(trace: Trace) -> None:
    answer = analyse("stacks", trace)
    did = answer.tables["event_loops"].set_index(["role", "what"])["time"].to_dict()
    assert did == {
        ("scheduler", "taking in graphs"): 400 * MS,
        ("scheduler", "states of tasks"): 200 * MS,
        ("scheduler", IDLE): 1400 * MS,
        ("worker", "own code"): 300 * MS,
        ("worker", IDLE): 3700 * MS,
    }
    shares = answer.tables["event_loops"].set_index(["role", "what"])["span_share"]
    assert shares["scheduler", "taking in graphs"] == 20.0
    assert shares["worker", "own code"] == 7.5  # of two loops
    blocked = answer.tables["blocked"].to_dict("records")
    assert [
        (b["worker"], b["start"], b["duration"], b["frame"], b["samples"]) for b in blocked
    ] == [
        ("scheduler", 0, 400 * MS, "distributed.scheduler.Scheduler.update_graph", 40),
        ("worker-0", 500 * MS, 300 * MS, "plug.report", 30),
    ]
    assert blocked[1]["called_from"] == "plug.py:70"
    (finding,) = [f for f in answer.findings if "plug.report" in f.sentence]
    assert finding.severity == Severity.WARNING
    assert (finding.start, finding.stop, finding.process) == (500 * MS, 800 * MS, 0)
    assert finding.sentence == (
        "The event loop of node1 worker-0 was blocked by plug.report (called from plug.py:70): "
        "300 ms in all, the longest 300 ms from 0.500 s."
    )


def loop_of(path: Path, stacks: list[list[Call]], spans: list[int] | None = None) -> Any:
    """Analyse a run in which the scheduler's event loop was in these stacks, 10 ms each."""
    tasks = [Task("f-1", 0, 0, len(stacks) * STEP)]
    samples = [Sample(0, STEP, [*POOL, own("f", 1)], task="f-1")]
    for n, calls in enumerate(stacks):
        span = spans[n] if spans else STEP
        samples.append(Sample(1, (n + 1) * STEP, calls, span, thread=5, role="event loop"))
    with make_sampled(path / "trace.h5", samples, tasks, workers=1) as trace:
        return analyse("stacks", trace)


def test_a_loop_is_blocked_by_one_call_and_not_by_many(tmp_path: Path) -> None:
    deep = [*UPDATE_GRAPH, dask("order", "dask.order")]

    def blocked(*stacks: list[Call]) -> list[tuple[str, int]]:
        table = loop_of(tmp_path, list(stacks)).tables["blocked"]
        return [(row["frame"], row["duration"]) for row in table.to_dict("records")]

    assert blocked(*[deep] * 11) == [("dask.order.order", 110 * MS)]
    assert blocked(*[deep] * 10) == []  # 100 ms are not longer than that
    assert blocked(*[deep] * 6, WAITING, *[deep] * 6) == []
    assert blocked(*[deep] * 6, TRANSITIONS, *[deep] * 6) == []
    # two handlers that follow each other are two calls
    assert blocked(*[deep] * 8, *[TRANSITIONS] * 8) == []
    assert blocked(*[deep] * 12, *[TRANSITIONS] * 12) == [
        ("dask.order.order", 120 * MS),
        ("distributed.scheduler.Scheduler._transitions", 120 * MS),
    ]
    # many calls that the loop itself makes of one function are no single one
    steps = [[*STREAM[:-1], dask("handle", "distributed.core", line)] for line in range(20)]
    assert blocked(*steps) == []
    # but one that makes others
    others = [[*UPDATE_GRAPH, dask(f"f{n}", "dask.core", n + 1)] for n in range(20)]
    assert blocked(*others) == [("distributed.scheduler.Scheduler.update_graph", 200 * MS)]


def test_one_sample_that_came_late_blocks_nothing(tmp_path: Path) -> None:
    stacks = [WAITING] * 60 + [TRANSITIONS] + [WAITING] * 3
    assert not len(
        loop_of(tmp_path, stacks, [STEP] * 60 + [500 * MS] + [STEP] * 3).tables["blocked"]
    )


@pytest.mark.parametrize("late", [2, 1, 0])
def test_a_loop_that_a_task_keeps_from_the_interpreter_is_not_blocked_by_what_it_was_in(
    tmp_path: Path, late: int
) -> None:
    task = Task("parse-1", 0, 0, 2000 * MS)
    held = [*POOL, own("parse", 33), library("loads", "json")]
    samples = []
    for n in range(10):
        end = (n + 1) * 200 * MS
        busy = [*STREAM, library("read", "io", 4)]
        samples.append(Sample(0, end, held, 200 * MS, task="parse-1", late=late))
        samples.append(Sample(0, end, busy, 200 * MS, thread=2, role="event loop", late=late))
        # late too, but no task of its process runs: it holds the interpreter itself
        samples.append(Sample(1, end, busy, 200 * MS, thread=4, role="event loop", late=late))
        samples.append(Sample(2, end, busy, 200 * MS, thread=5, role="event loop", late=late))
    with make_sampled(tmp_path / "trace.h5", samples, [task]) as trace:
        answer = analyse("stacks", trace)
    blocked = answer.tables["blocked"].set_index("worker")
    (kept,) = [place for place in blocked.index if "0" in place]
    told = [one.sentence for one in answer.findings if "event loop" in one.sentence]
    of_read = [text for text in told if "was blocked by io.read: " in text]
    if late == 2:
        assert blocked["what"][kept] == KEPT
        assert (blocked["frame"][kept], blocked["called_from"][kept]) == ("json.loads", "job.py:33")
        assert (blocked.drop(kept)["frame"] == "io.read").all()
        sentence = f"was kept {KEPT}, most likely by json.loads (job.py:33): 2 s"
        assert sum(sentence in text for text in told) == 1
        assert len(of_read) == 2
        did = answer.tables["event_loops"].set_index(["role", "what"])
        assert did["time"]["worker", KEPT] == 2000 * MS
        assert did["frame"]["worker", KEPT] == "json.loads"
    else:
        assert (blocked["frame"] == "io.read").all()
        assert not any("GIL" in text for text in told)


def test_a_call_that_never_waits_is_a_wait_for_the_interpreter(tmp_path: Path) -> None:
    task = Task("f-1", 0, 0, 2000 * MS)
    send = package("IOStream.write_to_fd", "tornado.iostream")
    shares = {}
    for late, name in ((1, "late"), (0, "in time")):
        samples = []
        for n in range(1, 101):
            samples.append(Sample(0, n * STEP, [*POOL, own("f", 3)], task="f-1", late=late))
            calls = [*STREAM, send if n <= 50 else library("read", "io")]
            samples.append(Sample(0, n * STEP, calls, thread=2, role="event loop", late=late))
        with make_sampled(tmp_path / "trace.h5", samples, [task]) as trace:
            answer = analyse("stacks", trace)
        did = answer.tables["event_loops"].set_index("what")["time"].to_dict()
        shares[name] = did.get(KEPT, 0)
        told = [one.sentence for one in answer.findings]
        assert any("write_to_fd" in text for text in told) == (not late)
        assert any("blocked by io.read" in text for text in told)
        (tmp_path / "trace.h5").unlink()
    assert shares == {"late": 500 * MS, "in time": 0}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (own("hook", 70, "plug.py", "plug"), "plug.hook"),
        (dask("loads", "distributed.protocol.pickle"), "distributed.protocol.pickle.loads"),
    ],
)
def test_a_loop_that_may_hold_the_interpreter_itself_is_blocked_by_that(
    tmp_path: Path, call: Call, name: str
) -> None:
    task = Task("f-1", 0, 0, 2000 * MS)
    samples = []
    for n in range(1, 11):
        samples.append(Sample(0, n * 200 * MS, [*POOL, own("f", 3)], task="f-1", late=2))
        calls = [*STREAM, call]
        samples.append(
            Sample(0, n * 200 * MS, calls, 200 * MS, thread=2, role="event loop", late=2)
        )
    with make_sampled(tmp_path / "trace.h5", samples, [task]) as trace:
        answer = analyse("stacks", trace)
    (row,) = answer.tables["blocked"].to_dict("records")
    assert (row["frame"], row["duration"]) == (name, 2000 * MS)
    assert KEPT not in set(answer.tables["event_loops"]["what"])


@pytest.mark.parametrize("late", [1, 0])
def test_short_tasks_hold_up_a_loop_though_each_look_is_between_two(
    tmp_path: Path, late: int
) -> None:
    task = Task("f-1", 0, 0, 2000 * MS)
    send = [*STREAM, package("IOStream.write_to_fd", "tornado.iostream")]
    samples = [
        Sample(0, n * STEP, send, thread=2, role="event loop")
        if 50 < n <= 70
        else Sample(0, n * STEP, [*POOL, own("f", 3)], task="f-1", late=late)
        for n in range(1, 201)
    ]
    with make_sampled(tmp_path / "trace.h5", samples, [task]) as trace:
        answer = analyse("stacks", trace)
    (row,) = answer.tables["blocked"].to_dict("records")
    assert row["duration"] == 20 * STEP
    assert (row["what"] == KEPT) == bool(late)
    assert row["frame"] == ("f" if late else "tornado.iostream.IOStream.write_to_fd")


def test_workers_of_one_process_share_a_loop_and_the_interpreter(tmp_path: Path) -> None:
    task = Task("parse-1", 1, 0, 2000 * MS)
    held = [*POOL, own("parse", 33)]
    busy = [*STREAM, library("read", "io", 4)]
    samples = []
    for n in range(10):
        end = (n + 1) * 200 * MS
        samples.append(Sample(1, end, held, 200 * MS, task="parse-1", late=2))
        samples.append(Sample(0, end, busy, 200 * MS, thread=2, role="event loop", late=2))
    make_sampled(tmp_path / "trace.h5", samples, [task]).close()
    shares = []
    for pid in (None, 7):
        if pid is not None:
            with h5py.File(tmp_path / "trace.h5", "r+") as file:
                file["processes"]["pid"][:] = pid
                file["processes"]["node"][:] = 0
        with Trace(tmp_path / "trace.h5") as trace:
            answer = analyse("stacks", trace)
        (did,) = answer.tables["event_loops"].to_dict("records")
        shares.append((did["what"] == KEPT, did["span_share"]))
        assert ("most likely by parse" in answer.findings[0].sentence) == (pid is not None)
    assert shares == [(False, 50.0), (True, 100.0)]


def test_no_share_of_a_short_while_is_above_all_of_it(tmp_path: Path) -> None:
    task = Task("f-1", 0, 0, 2000 * MS)
    calls = [*STREAM, library("read", "io", 4)]
    samples = [
        Sample(0, n * 200 * MS, calls, 200 * MS, thread=2, role="event loop") for n in range(1, 11)
    ]
    with make_sampled(tmp_path / "trace.h5", samples, [task]) as trace:
        did = analyse("stacks", trace, between=(0.95, 1.01)).tables["event_loops"]
    assert did["time"].tolist() == [50 * MS]
    assert did["span_share"].max() <= 100


@pytest.mark.parametrize(
    ("busy", "severity"), [(49, None), (50, Severity.WARNING), (80, Severity.SERIOUS)]
)
def test_a_busy_scheduler_is_told_with_what_it_does(
    busy: int, severity: Severity | None, tmp_path: Path
) -> None:
    stacks = [UPDATE_GRAPH if n % 3 else TRANSITIONS for n in range(busy)]
    stacks = stacks[: busy // 2] + [WAITING] * (100 - busy) + stacks[busy // 2 :]
    found = [f for f in loop_of(tmp_path, stacks).findings if f.cause == "the scheduler is busy"]
    assert [f.severity for f in found] == ([severity] if severity else [])
    for finding in found:
        assert f"was busy {busy} % of the time from first task to last: 6" in finding.sentence
        assert "taking in graphs" in finding.sentence
        assert "fewer and larger tasks" in finding.next_step
        assert finding.saves == -1


def test_an_asynchronous_task_blocks_the_loop_it_runs_in(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 1000 * MS, thread=7)]
    samples = [Sample(0, (n + 1) * STEP, [own("f", 5)], thread=7, task="f-1") for n in range(40)]
    samples += [
        Sample(0, (n + 60) * STEP, TRANSITIONS, thread=7, role="event loop") for n in (0, 5)
    ]
    with make_sampled(tmp_path / "trace.h5", samples, tasks, workers=2) as trace:
        answer = analyse("stacks", trace)
        (row,) = answer.tables["blocked"].to_dict("records")
        assert (row["start"], row["duration"], row["called_from"]) == (0, 400 * MS, "job.py:5")
        shares = answer.tables["event_loops"].set_index("what")["span_share"]
        assert shares["own code"] == 20.0  # of two loops, one of which always waited
        assert answer.tables["hot"]["function"].tolist() == ["f"]


def test_what_lies_around_a_call_does_not_say_what_it_is_for(tmp_path: Path) -> None:
    def ours(function: str, module: str) -> Call:
        return function, f"dasf_hpc.{module}", f"dasf_hpc/{module}.py", 3, "dasf-hpc"

    write = [*STEP_OF_LOOP, dask("TCP.write", "distributed.comm.tcp")]
    send = library("SSLSocket.send", "ssl")
    around = [*STEP_OF_LOOP, ours("Recorder.transition", "profile.scheduler")]
    answer = loop_of(
        tmp_path,
        [[*write, ours("send", "launch.tls"), send]] * 5
        + [[*around, library("write", "io")]] * 3
        + [[*around, dask("Scheduler._transitions", "distributed.scheduler")]] * 2,
    )
    did = answer.tables["event_loops"].set_index("what")["samples"].to_dict()
    assert did == {"messages": 5, "the recording": 3, "states of tasks": 2}


def test_an_event_loop_of_another_make_is_idle_too(tmp_path: Path) -> None:
    uvloop = [library("Runner.run", "asyncio.runners")]
    did = loop_of(tmp_path, [uvloop] * 5 + [[*LOOP]] * 5).tables["event_loops"]
    assert did.set_index("what")["samples"].to_dict() == {IDLE: 5, "other": 5}


# ------------------------------------------------------------------------------ asked for a part


def test_what_is_chosen_is_counted_and_nothing_else(trace: Trace) -> None:
    def time(**chosen: Any) -> dict[str, int]:
        table = analyse("stacks", trace, **chosen).tables["frames"]
        of: Counter[str] = Counter()
        for row in table.to_dict("records"):
            of[row["function"]] += row["self"]
        return dict(of)

    assert time(function="load") == {"load": 2000 * MS}
    assert time(worker="worker-1") == {"load": 1000 * MS, LOOPS: 2000 * MS}
    assert time(worker="node2 worker-1", function="load") == {"load": 1000 * MS}
    assert time(worker="scheduler") == {SCHEDULER: 2000 * MS}
    # a sample is of the moment at which it was taken: 0.5 s in, 1 s not
    assert time(function="filter_trace", between=(0.5, 1.0)) == {"filter_trace": 500 * MS}
    assert time(function="load", between=(-5.0, 0.011), worker="worker-1") == {"load": 10 * MS}
    with pytest.raises(ValueError, match="there is no function filter: the nearest is filter_tr"):
        chosen_of(trace, function="filter")
    with pytest.raises(ValueError, match="there is no worker worker-9: the nearest is worker-"):
        chosen_of(trace, worker="worker-9")
    for between in ((2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="give two moments"):
            chosen_of(trace, between=between)
    loops = analyse("stacks", trace, between=(0.0, 0.5)).tables["event_loops"]
    shares = loops.set_index(["role", "what"])["span_share"]
    assert shares["scheduler", "taking in graphs"] == pytest.approx(80.0, abs=2.1)


def test_the_command_takes_the_same_words(small: Path) -> None:
    words = ["analyze", "stacks", str(small)]
    some = ["--function", "load", "--worker", "worker-1", "--between", "0", "0.5"]
    shown = CliRunner().invoke(app, [*words, *some, "--json"])
    document = json.loads(shown.stdout)
    assert [row["samples"] for row in document["tables"]["hot"]["rows"]] == [49]
    lines = csv.reader(io.StringIO(CliRunner().invoke(app, [*words, "--csv"]).stdout))
    head, *rows = lines
    assert head[:4] == ["function", "share [%]", "half_width [%]", "frame"]
    assert len(rows) == 4
    for wrong, said in (
        (["--function", "lod"], "there is no function lod: the nearest is load"),
        (["--worker", "x"], "there is no worker x"),
        (["--between", "2", "1"], "between 2 and 1 is no time"),
    ):
        done = CliRunner().invoke(app, [*words, *wrong])
        assert done.exit_code == 2
        assert said in " ".join(done.output.replace("│", " ").split())
    done = CliRunner().invoke(app, ["analyze", "where", str(small), "--worker", "worker-1"])
    assert done.exit_code == 2
    assert "where takes no --worker" in done.output
    none = CliRunner().invoke(app, [*words, "--between", "100", "200"])
    assert none.exit_code == 0
    assert "no sample was taken of what was asked for" in none.output


# ------------------------------------------------------------------------------ other traces


def test_where_nothing_was_recorded_that_is_said(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, MS)])) as trace:
        answer = analyse("stacks", trace)
        assert not answer.looked
        assert "no samples of Python calls" in answer.unanswered[0]
        assert flame(trace).packed == ""
    for to in OF_STACKS:
        with pytest.raises(TraceFileError, match="holds no call stacks: the run recorded no"):
            export(tmp_path, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.h5"]


def test_an_earlier_trace_has_no_lines_and_is_read(tmp_path: Path) -> None:
    more: dict[str, dict[str, Any]] = {
        "stacks": {"parent": [-1, 0], "function": ["main", "work"], "module": ["python", "a.so"]},
        "cpu_samples": {
            "process": [0] * 60, "thread": [1] * 60, "start": list(range(60)),
            "stack": [1] * 60, "task": [0] * 50 + [-1] * 10,
        },
    }  # fmt: skip
    make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, MS)], [Worker()], more=more)).close()
    with h5py.File(tmp_path / "trace.h5", "r+") as file:
        for name in ("file", "line", "origin"):
            del file["stacks"][name]
        names = file["stacks"].attrs["columns"].decode().split(",")
        kept = ",".join(name for name in names if name not in ("file", "line", "origin"))
        file["stacks"].attrs["columns"] = np.bytes_(kept)
    with Trace(tmp_path / "trace.h5") as trace:
        assert source_of(trace) is Source.CPU
        answer = analyse("stacks", trace)
        hot = answer.tables["hot"].to_dict("records")
        assert [(row["frame"], row["samples"], row["time"]) for row in hot] == [("work", 50, -1)]
        assert weights(trace).tolist() == [0, 60]
        assert "nsys samples threads only while they are on a CPU" in answer.unanswered[0]
        assert not answer.findings
        assert flame(trace).samples == 60
    profile = json.loads(export(tmp_path, Format.SPEEDSCOPE).read_text())
    assert {one["name"]: one["weights"] for one in profile["profiles"]} == {
        "f": [50],
        "no task": [10],
    }
    assert {one["unit"] for one in profile["profiles"]} == {"none"}


def test_tasks_are_counted_by_row_however_the_table_lies(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=2, tasks=300)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    with Trace(tmp_path / "trace.h5") as merged_trace:
        tasks = merged_trace.table("tasks")
        # a merged trace lies in blocks, in which rows are not in the order of time
        assert tasks.index.tolist() != sorted(tasks.index)
        rows = [(int(row), str(tasks["prefix"][row])) for row in tasks.index]
        process, start = tasks["process"], tasks["start"]
    lines = {prefix: number for number, prefix in enumerate(sorted({p for _, p in rows}), 1)}
    replace_tables(
        tmp_path / "trace.h5",
        {
            "stacks": {
                "parent": [-1] * len(lines), "function": list(lines), "module": ["m"] * len(lines),
                "file": ["job.py"] * len(lines), "line": list(lines.values()),
                "origin": ["own"] * len(lines),
            },
            "call_samples": {
                "process": [int(process[row]) for row, _ in rows], "thread": [1] * len(rows),
                "start": [int(start[row]) for row, _ in rows], "span": [STEP] * len(rows),
                "stack": [lines[prefix] - 1 for _, prefix in rows], "role": ["task"] * len(rows),
                "task": [row for row, _ in rows],
            },
        },
    )  # fmt: skip
    with Trace(tmp_path / "trace.h5") as trace:
        hot = analyse("stacks", trace).tables["hot"]
        assert hot["called_from"].tolist() == [f"job.py:{lines[name]}" for name in hot["function"]]
        assert hot["share"].tolist() == [100.0] * len(lines)
        counts = Counter(prefix for _, prefix in rows)
        assert dict(zip(hot["function"], hot["samples"], strict=True)) == counts


def test_both_sources_are_read_alike(tmp_path: Path) -> None:
    samples, tasks = small_run()
    with make_sampled(tmp_path / "trace.h5", samples, tasks) as trace:
        assert source_of(trace) is Source.CALLS
        assert len(sums(trace, ["stack"], Source.CPU)) == 0
        every_one = sums(trace, ["stack", "function"])
        assert every_one["samples"].sum() == len(samples)
        assert every_one["weight"].sum() == sum(one.span for one in samples)
        halves = sums(trace, ["bin"], bins=(0, 2000 * MS, 4))
        # those at the very end are of the last bin
        quarters = Counter(min(3, one.start * 4 // (2000 * MS)) for one in samples)
        assert dict(zip(halves["bin"], halves["samples"], strict=True)) == quarters


# ------------------------------------------------------------------------------ files of others


def test_collapsed_stacks_sum_up_to_the_samples(small: Path, trace: Trace) -> None:
    expected: Counter[str] = Counter()
    names = {0: "node1 worker-0", 1: "node2 worker-1", 2: "node1 scheduler"}
    roles = {"task": "task thread", "event loop": "event loop"}
    for one, calls, function in every(trace):
        words = [names[one["process"]], roles[one["role"]], *([function] if function else [])]
        for called, module, file, line, origin in calls:
            name = frame_name(called, module, origin)
            words.append(f"{name} ({file}:{line})" if origin == "own" else name)
        expected[";".join(words)] += one["span"]
    path = export(small, Format.COLLAPSED, small / "made.folded.txt")
    lines = [line.rpartition(" ") for line in path.read_text().splitlines()]
    assert {stack: int(count) for stack, _, count in lines} == dict(expected)
    assert len(lines) == len(expected)


@given(name=st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()))
@settings(max_examples=15)
def test_no_name_breaks_a_line_of_collapsed_stacks(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("named")
    odd = [own(f"{name};\n{name} 7", 3), package(name, "m")]
    samples = [Sample(0, STEP, odd, task="f-1")]
    make_sampled(folder / "trace.h5", samples, [Task("f-1", 0, 0, MS)]).close()
    text = export(folder, Format.COLLAPSED).read_text()
    assert text.count("\n") == 1
    stack, _, count = text.rstrip("\n").rpartition(" ")
    assert count == str(STEP)
    assert len(stack.split(";")) == 5


def speedscope_sums(content: dict[str, Any]) -> dict[str, Counter[tuple[str, ...]]]:
    frames = content["shared"]["frames"]
    found = {}
    for profile in content["profiles"]:
        one: Counter[tuple[str, ...]] = Counter()
        for stack, weight in zip(profile["samples"], profile["weights"], strict=True):
            one[tuple(f"{frames[n]['name']}:{frames[n].get('line', '')}" for n in stack)] += weight
        assert profile["endValue"] == sum(profile["weights"])
        found[profile["name"]] = one
    return found


def test_speedscopes_file_has_a_profile_for_each_function(small: Path, trace: Trace) -> None:
    content = json.loads(export(small, Format.SPEEDSCOPE).read_text())
    expected: defaultdict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for one, calls, function in every(trace):
        stack = tuple(
            f"{frame_name(c[0], c[1], c[4])}:{c[3] if c[4] == 'own' else ''}" for c in calls
        )
        loop = "event loop of the scheduler" if one["process"] == 2 else "event loops of workers"
        expected[function or loop][stack] += one["span"]
        if function:
            expected["all functions"][f"{function}:", *stack] += one["span"]
    assert speedscope_sums(content) == dict(expected)
    assert content["profiles"][0]["name"] == "all functions"
    some = export(small, Format.SPEEDSCOPE, small / "some", function="load", between=(0.0, 1.001))
    (profile,) = json.loads(some.read_text())["profiles"]
    assert profile["endValue"] == 1000 * MS


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read a message of protobuf without a description of it: numbers and values of its fields."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2
            size = varint()
            yield key >> 3, data[place : place + size]
            place += size


def packed(data: int | bytes) -> list[int]:
    """Read a packed list of whole numbers: fields of a message that has no keys."""
    assert isinstance(data, bytes)
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    return found


def of(data: int | bytes) -> defaultdict[int, list[Any]]:
    assert isinstance(data, bytes)
    found = defaultdict(list)
    for number, value in fields(data):
        found[number].append(value)
    return found


def test_pprofs_profile_read_without_its_description(small: Path, trace: Trace) -> None:
    raw = export(small, Format.PPROF).read_bytes()
    profile = of(gzip.decompress(raw))
    texts = [text.decode() for text in profile[6]]
    assert texts[0] == ""
    types = [tuple(texts[of(one)[n][0]] for n in (1, 2)) for one in profile[1]]
    assert types == [("samples", "count"), ("time", "nanoseconds")]
    functions = {of(one)[1][0]: of(one) for one in profile[5]}
    locations = {}
    for one in map(of, profile[4]):
        line = of(one[4][0])
        function = functions[line[1][0]]
        place = f"{texts[function[4][0]]}:{line[2][0]}"
        locations[one[1][0]] = (texts[function[2][0]], place)
    found: Counter[tuple[Any, ...]] = Counter()
    counts = 0
    for one in map(of, profile[2]):
        labels = {texts[label[1][0]]: label for label in map(of, one[3])}
        named = {key: texts[label[2][0]] for key, label in labels.items() if label[2]}
        samples, time = packed(one[2][0])
        counts += samples
        stack = tuple(locations[number] for number in packed(one[1][0])[::-1])
        key = named.get("prefix"), named["worker"], named["node"], labels["thread_id"][3][0]
        found[*key, stack] += time
    expected: Counter[tuple[Any, ...]] = Counter()
    names = {0: ("worker-0", "node1"), 1: ("worker-1", "node2"), 2: ("scheduler", "node1")}
    for sample, calls, prefix in every(trace):
        stack = tuple((frame_name(c[0], c[1], c[4]), f"{c[2]}:{c[3]}") for c in calls)
        expected[prefix, *names[sample["process"]], sample["thread"], stack] += sample["span"]
    assert found == expected
    assert counts == len(trace.call_samples)
    assert of(profile[11][0])[1] == [texts.index("time")]
    assert profile[12] == [STEP]


def test_other_formats_take_no_choice(small: Path) -> None:
    words = ["export", str(small), "--function", "load", "--to"]
    done = CliRunner().invoke(app, [*words, "chrome"])
    assert done.exit_code == 2
    assert "takes no --function" in done.output
    target = small / "chosen.folded.txt"
    done = CliRunner().invoke(app, [*words, "collapsed", "-o", str(target), "--json"])
    assert json.loads(done.stdout) == {"written": str(target)}
    assert {line.split(";")[2] for line in target.read_text().splitlines()} == {"load"}
    done = CliRunner().invoke(app, ["export", str(small), "--to", "pprof", "--worker", "nobody"])
    assert done.exit_code == 2
    assert "there is no worker nobody" in done.output


@pytest.mark.needs("speedscope", "browser")
@pytest.mark.parametrize("to", OF_STACKS)
def test_speedscopes_own_application_opens_it(small: Path, to: Format, browser: Any) -> None:
    from speedscope_page import opened, package

    folder = package()
    path = export(small, to)
    if to is Format.SPEEDSCOPE:
        jsonschema = pytest.importorskip("jsonschema")
        schema = json.loads((folder / "dist/release/file-format-schema.json").read_text())
        jsonschema.validate(json.loads(path.read_text()), schema)
    with opened(browser, path) as text:
        assert path.name in text
        browser.execute_script(
            "const all = [...document.querySelectorAll('div')];"
            "all.find(one => one.textContent === '🥪Sandwich').click()"
        )
        rows = browser.execute_async_script(
            """
            const done = arguments[0];
            setTimeout(() => done([...document.querySelectorAll('tr')].map(r => r.innerText)), 500);
            """
        )
    (hilbert,) = [row for row in rows if "scipy.signal.hilbert" in row]
    # of all samples, or, in a profile of functions alone, of theirs
    share = 680 / (3000 if to is Format.SPEEDSCOPE else 9000)
    assert "680.00ms" in hilbert or "680,000,000" in hilbert
    assert re.search(rf"\({100 * share:.1f}%|\({100 * share:.0f}%", hilbert)


# ------------------------------------------------------------------------------ the page's data


def test_lines_of_own_code_stay_apart_in_the_tree(trace: Trace) -> None:
    stacks = read_stacks(trace)
    tree = merged(stacks, weights(trace))
    own_rows = [row for row in range(len(stacks)) if stacks.of_origin("own")[row]]
    assert len({int(tree.node[row]) for row in own_rows}) == len(own_rows)
    frames = stacks.frames["function"]
    orders = [row for row in range(len(stacks)) if frames[stacks.frame[row]] == "order"]
    assert len(orders) == 40  # one for each of its lines
    assert len({int(tree.node[row]) for row in orders}) == 1
    assert bool(tree.several[tree.node[orders[0]]])


def sums_of(packed_text: str) -> tuple[dict[str, Any], list[Counter[tuple[int, ...]]]]:
    """Unpack a page's sums: by group, worker, call and bin, of each table."""
    told, columns = unpacked(packed_text)
    told = told["stacks"]
    found = []
    for table in told["tables"]:
        one: Counter[tuple[int, ...]] = Counter()
        group, process, cells, step, weight = (
            columns[table[name]].astype(np.int64)
            for name in ("group", "process", "cells", "bin", "weight")
        )
        node = np.cumsum(unsigned(columns[table["node"]]))
        place = 0
        for pair in range(len(cells)):
            at = 0
            for _ in range(cells[pair]):
                at += int(step[place])
                key = int(group[pair]), int(process[pair]) - 1, int(node[pair]), at
                one[key] += int(weight[place]) * int(told["unit"] * 1000)
                place += 1
        found.append(one)
    return told, found


def test_the_pages_sums_are_those_of_the_samples(trace: Trace) -> None:
    told, (table,) = sums_of(flame(trace).packed)
    names = [name for name, _ in told["groups"]]
    by_group: Counter[str] = Counter()
    for (group, *_), weight in table.items():
        by_group[names[group]] += weight
    assert by_group == {
        "load": 2000 * MS, "filter_trace": 1000 * MS, LOOPS: 4000 * MS, SCHEDULER: 2000 * MS,
    }  # fmt: skip
    bins, expected = Counter[int](), Counter[int]()
    for (_, process, _, place), weight in table.items():
        if process == 1:
            bins[place * 4 // told["bins"]] += weight
    for one in small_run()[0]:
        if one.process == 1:
            expected[min(3, one.start * 4 // (2000 * MS))] += one.span
    assert bins == expected
    assert told["workers"] == [["node1 scheduler", 2], ["node1 worker-0", 0], ["node2 worker-1", 1]]


def test_a_million_samples_take_less_than_a_megabyte_of_a_page(tmp_path: Path) -> None:
    with make_large(tmp_path / "trace.h5") as trace:
        made = flame(trace)
        assert (made.samples, made.stacks, made.folded) == (1_000_000, 1000, 0.0)
        assert not made.whole
        assert len(made.packed) < 1_000_000
        _, tables = sums_of(made.packed)
        whole = int(trace.call_samples["span"].sum())
        for table in tables:
            assert sum(table.values()) == pytest.approx(whole, rel=1e-7)
        # a function's time on a worker, by plain pandas
        frame = trace.call_samples
        prefix = trace.tasks["prefix"].astype(object)
        functions = frame["task"].map(prefix)
        expected = frame[(frame["process"] == 3) & (functions == "step_4")]["span"].sum()
        names = trace.tasks["prefix"].cat.categories.tolist()
        found = sum(
            weight for (group, process, *_), weight in tables[1].items()
            if process == 3 and names[group] == "step_4"
        )  # fmt: skip
        assert found == pytest.approx(expected, rel=1e-4)


def test_calls_that_are_too_many_are_counted_to_what_called_them(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 100 * MS)]
    many = CALLS + 500
    samples = [
        Sample(0, n + 1, [own("f", 1), package(f"g{n}", "m")], MS if n < 100 else 1, task="f-1")
        for n in range(many)
    ]
    with make_sampled(tmp_path / "trace.h5", samples, tasks) as trace:
        made = flame(trace)
        told, tables = sums_of(made.packed)
        assert 0 < made.folded < 0.01
        own_time: Counter[int] = Counter()
        for (_, _, node, _), weight in tables[0].items():
            own_time[node] += weight
        assert len(told["frames"]) == CALLS
        assert sum(own_time.values()) == pytest.approx(100 * MS, rel=1e-3)


def test_own_code_within_packages_is_still_the_innermost(tmp_path: Path) -> None:
    calls = [own("f", 1), package("apply", "m"), own("g", 2), package("h", "m"), library("i", "j")]
    samples = [Sample(0, STEP, calls, task="f-1")]
    with make_sampled(tmp_path / "trace.h5", samples, [Task("f-1", 0, 0, STEP)]) as trace:
        own_row, called = hot_rows(read_stacks(trace))
        assert own_row.tolist() == [0, 0, 2, 2, 2]
        assert called.tolist() == [0, 1, 2, 3, 3]
