"""Samples of the CPU with their stacks, and the time that tasks' threads were off it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exports import Export
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_workers
from test_join import HELPER, OTHER, POOL_1, POOL_2, STRANGER, WORKER, at
from test_user_ranges import write_run

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.nsight.attribute import RunningTasks
from dasf_hpc.nsight.diagnostics import concerns
from dasf_hpc.nsight.rows import Additions
from dasf_hpc.nsight.samples import file_name, stacks_of
from dasf_hpc.nsight.scheduling import THREAD_STATES, Switches, off_of_tasks
from dasf_hpc.nsight.sqlite import Export as opened
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.extend import ExtendedTrace
from dasf_hpc.trace.holdings import Evidence, Kind, State, held, judge
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import Stacks, read_stacks, weights

MS = 1_000_000
LIBC, MINE = "/usr/lib/libc.so.6", "/home/ann/My Project/fast.so"
MAIN = ("main", "/home/ann/bin/python3.11")
WORK, READ, DEEP = ("work", MINE), ("__read", LIBC), ("work", "C:\\Users\\ann\\fast.so")


def chain_of(trace: Trace, row: int) -> list[tuple[str, str]]:
    """Give the calls of a row of ``stacks``, the outermost first."""
    calls: list[tuple[str, str]] = []
    columns = [
        trace.stacks[name].astype(object).fillna("").tolist() for name in ("function", "module")
    ]
    while row >= 0:
        calls.append((columns[0][row], columns[1][row]))
        row = int(trace.stacks["parent"][row])
    return calls[::-1]


def write_samples(run: Path) -> None:
    with write_run(run, "2025.1") as export:
        pid, thread = WORKER.pid, POOL_1
        export.sample(pid, thread, at(12), [MAIN, WORK, READ])
        export.sample(pid, thread, at(13), [MAIN, WORK, READ])
        export.sample(pid, thread, at(14), [MAIN, WORK])
        # by another name, the same file
        export.sample(pid, thread, at(15), [MAIN, DEEP])
        # the switch of a thread is no sample
        export.sample(pid, thread, at(16), [MAIN, READ], cycles=0)
        export.sample(pid, thread, at(17))
        for address in ("0x7f1d3b0cfb78", "0x7f1d3b0cfb79"):
            export.sample(
                pid,
                POOL_2,
                at(25),
                [("[Broken backtraces]",) * 2, (address, MINE)],
                unresolved=[address],
            )
        # while the second task was the only one
        export.sample(pid, HELPER, at(28))
        export.sample(pid, HELPER, at(35), [MAIN, ("/home/ann/job.py:lambda", "/home/ann/job.py")])
        export.sample(STRANGER, STRANGER, at(12), [("secret", "/home/bob/x")])
    merge_run(run, str(run / "no nsys"))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    write_samples(run)
    return run


def test_samples_have_their_stacks_and_tasks(sampled: Path) -> None:
    main, work = ("main", "python3.11"), ("work", "fast.so")
    with open_trace(sampled) as trace:
        samples = trace.cpu_samples
        chains = [chain_of(trace, row) for row in samples["stack"].tolist()]
        assert chains == [
            [main, work, ("__read", "libc.so.6")],
            [main, work, ("__read", "libc.so.6")],
            [main, work],
            [main, work],
            [],
            # addresses differ from run to run: they are no names
            [("[Broken backtraces]", ""), ("", "fast.so")],
            [("[Broken backtraces]", ""), ("", "fast.so")],
            [],
            [main, ("job.py:lambda", "job.py")],
        ]
        assert len(trace.stacks) == 6
        assert (trace.stacks["parent"] < trace.stacks.index).all()
        threads = trace.tasks["thread"]
        of = [threads[task] if task >= 0 else -1 for task in samples["task"].tolist()]
        assert of == [POOL_1] * 5 + [POOL_2] * 3 + [-1]
        assert set(samples["cpu"]) == {3}
        assert set(samples["state"]) == {"running"}


def test_no_folder_is_in_the_trace(sampled: Path) -> None:
    content = (sampled / "trace.h5").read_bytes()
    for word in (b"ann", b"My Project", b"Users", b"bob", b"secret", b"/usr/lib"):
        assert word not in content


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (LIBC, "libc.so.6"),
        ("C:\\a\\b.dll", "b.dll"),
        ("[vdso]", "[vdso]"),
        ("/a/", "a"),
        ("/", None),
    ],
)
def test_a_module_is_the_name_of_its_file(path: str, name: str | None) -> None:
    assert file_name(path) == name


def test_weights_are_by_function_worker_and_time(sampled: Path) -> None:
    with open_trace(sampled) as trace:
        stacks = read_stacks(trace)
        every = weights(trace)
        assert every.sum() == 7  # two have no calls
        (function,) = set(trace.tasks["prefix"])
        origin = int(trace.tasks["start"].min()) - 10 * MS
        assert weights(trace, function=function).sum() == 6
        assert weights(trace, function="another").sum() == 0
        assert weights(trace, start=origin + 13 * MS, stop=origin + 15 * MS).sum() == 2
        row = int(trace.processes.index[trace.processes["pid"] == OTHER.pid][0])
        assert weights(trace, process=row).sum() == 0
        first = int(trace.cpu_samples["task"][0])
        assert weights(trace, tasks=np.array([first])).sum() == 4
        frames = stacks.of_frames(every).set_index("function").to_dict("index")
        compiled = {"file": "", "origin": ""}
        assert frames["work"] == {"module": "fast.so", "self": 2, "total": 4} | compiled
        assert frames["main"] == {"module": "python3.11", "self": 0, "total": 5} | compiled
        roots = stacks.below(every)[stacks.parent == -1]
        assert roots.sum() == every.sum()
        assert "(no name) in fast.so" in stacks.names()


FRAMES = st.sampled_from([(name, f"/lib/{file}") for name in "abc" for file in ("x.so", "y.so")])
CHAINS = st.lists(st.lists(FRAMES, max_size=6), min_size=1, max_size=12)


@given(chains=CHAINS, again=CHAINS, at_once=st.integers(1, 30))
def test_every_chain_comes_back_and_every_sample_counts_once(
    tmp_path_factory: pytest.TempPathFactory,
    chains: list[list[tuple[str, str]]],
    again: list[list[tuple[str, str]]],
    at_once: int,
) -> None:
    folder = tmp_path_factory.mktemp("chains")
    additions = Additions(ExtendedTrace(None, folder))
    expected, found = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dasf_hpc.nsight.samples.CALLS_AT_ONCE", at_once)
        # two reports, whose strings have other numbers
        for number, some in enumerate((chains, again)):
            path = folder / f"{number}.sqlite"
            with Export(path, "2025.1") as export:
                for calls in some:
                    export.sample(1, 1, 0, calls)
            with opened.opened(path) as report:
                ids = np.arange(len(some), 0, -1)
                found += stacks_of(report, ids, additions)[::-1].tolist()
            expected += [[(f, m.removeprefix("/lib/")) for f, m in calls] for calls in some]
    table = additions.run.tables["stacks"]
    names = [additions.strings(name).list() for name in ("frame_functions", "frame_modules")]
    frames = sorted({*zip(table["function"].tolist(), table["module"].tolist(), strict=True)})
    stacks = Stacks(
        table["parent"].astype(np.int64),
        np.array(
            [frames.index((f, m)) for f, m in zip(table["function"], table["module"], strict=True)],
            np.int64,
        ),
        pd.DataFrame(
            [(names[0][f], names[1][m]) for f, m in frames], columns=["function", "module"]
        ),
        np.full(len(table["parent"]), -1),
    )
    pairs = list(stacks.frames.itertuples(index=False, name=None))

    def chain(row: int) -> list[tuple[str, str]]:
        calls = []
        while row >= 0:
            calls.append(pairs[stacks.frame[row]])
            row = int(stacks.parent[row])
        return calls[::-1]

    assert [chain(row) for row in found] == expected
    prefixes = {tuple(calls[:n]) for calls in expected for n in range(1, len(calls) + 1)}
    assert len(stacks) == len(prefixes)
    counts = np.bincount([row for row in found if row >= 0], minlength=len(stacks))
    own: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for calls in filter(None, expected):
        own[calls[-1]] += 1
        total.update(set(calls))
    sums = stacks.of_frames(counts)
    keys = list(zip(sums["function"], sums["module"], strict=True))
    assert dict(zip(keys, sums["self"], strict=True)) == {n: own[n] for n in total}
    assert dict(zip(keys, sums["total"], strict=True)) == dict(total)
    assert stacks.below(counts)[stacks.parent == -1].sum() == counts.sum() == own.total()


# ------------------------------------------------------------------------------ off the CPU


def write_switches(run: Path, version: str) -> None:
    with write_run(run, version) as export:
        pid = WORKER.pid
        # the first task, from 10 to 20: off for 2 ms that begin before it, for 3 and for half a ms
        for time, on, state in (
            (2, True, None), (9, False, 2), (12, True, None), (13, False, 1), (16, True, None),
            (17, False, 3), (17.5, True, None),
            # the third, from 40 to 50: it leaves the CPU and never comes back
            (45, False, 2),
        ):  # fmt: skip
            export.switch(pid, POOL_1, at(time), on, state)
        # the second, from 15 to 30: its first event says that it was on a CPU before
        export.switch(pid, POOL_2, at(20), on=False, state=0)
        export.switch(pid, POOL_2, at(22), on=True)
        export.switch(STRANGER, STRANGER, at(60), on=False)
    merge_run(run, str(run / "no nsys"))


@pytest.mark.parametrize("version", ["2022.4", "2025.1"])
def test_the_time_off_the_cpu_within_tasks(tmp_path: Path, version: str) -> None:
    run = tmp_path / "run"
    write_switches(run, version)
    told = version == "2025.1"
    with open_trace(run) as trace:
        table = trace.task_cpu
        starts = trace.tasks["start"][table["task"]].to_numpy()
        table = table.iloc[np.argsort(starts)]
        # a task's time is that of its range, here 1 us shorter at both ends
        rows = (table[["known", "off", "blocked", "preempted", "longest"]] / MS).round(2)
        assert rows.values.tolist() == [
            [10, 5.5, 2.5 * told, 3 * told, 3],
            [15, 2, 0, 0, 2],
            [10, 5, 5 * told, 0, 5],
        ]
        assert table["count"].tolist() == [3, 1, 1]
        long = trace.off_cpu
        origin = int(trace.tasks["start"].min()) - 10 * MS
        assert ((long[["start", "stop"]] - origin) / MS).round(2).values.tolist() == [
            [10, 12], [13, 16], [20, 22], [45, 50],
        ]  # fmt: skip
        states = ["interruptible", "running", "unknown", "interruptible"]
        assert long["state"].astype(object).fillna("").tolist() == (states if told else [""] * 4)
        assert STRANGER not in trace.processes["pid"].tolist()
        answer = analyse("cpu", trace)
        (row,) = answer.table.to_dict("records")
        assert row["known"] == 35 * MS - 6000
        assert row["on_cpu"] + row["off_cpu"] == row["known"]
        assert row["off_cpu"] == table["off"].sum()
        assert (row["tasks"], row["times_off"]) == (4, 5)
        assert row["longest_off"] == table["longest"].max()
        (finding,) = answer.findings
        assert "36 % of the time" in finding.sentence
        assert finding.sentence.endswith("it waits." if told else "others get its CPU.")
        assert any("Calls on the CPU: CPUs were not sampled" in why for why in answer.unanswered)
        json.dumps(answer.document(), allow_nan=False)


TIMES = st.integers(0, 40)
EVENTS = st.lists(st.tuples(TIMES, st.booleans(), st.integers(-1, 3)), min_size=1, max_size=10)
TASKS = st.lists(st.tuples(TIMES, st.integers(0, 15)), min_size=1, max_size=6)


@given(events=EVENTS, spans=TASKS, first=TIMES, length=TIMES)
def test_each_instant_off_the_cpu_is_of_one_task(
    events: list[tuple[int, bool, int]], spans: list[tuple[int, int]], first: int, length: int
) -> None:
    start = np.array([s for s, _ in spans], np.int64)
    stop = start + np.array([size for _, size in spans], np.int64)
    tasks = RunningTasks(np.arange(len(spans)), np.full(len(spans), 7), start, stop)
    time, on, state = (np.array(column) for column in zip(*events, strict=True))
    switches = Switches.of(time.astype(np.int64), on.astype(bool), state)
    window = (first, first + length)
    found, _ = off_of_tasks(tasks, 7, switches, window, THREAD_STATES)
    # the sort is stable, as that of the events
    events = sorted(events, key=lambda event: event[0])
    known: Counter[tuple[int, int]] = Counter()
    away: Counter[tuple[int, int]] = Counter()
    reason: Counter[str] = Counter()
    for now in range(*window):
        holding = [n for n in range(len(spans)) if start[n] <= now < stop[n]]
        if not holding:
            continue
        task = max(
            holding,
            key=lambda n: (max(int(start[n]), first), -min(int(stop[n]), window[1]), n),
        )
        # of tasks that are the same nobody can tell which
        same = (max(start[task], first), min(stop[task], window[1]))
        before = [event for event in events if event[0] <= now]
        after = [event for event in events if event[0] > now]
        was = before[-1][1] if before else not after[0][1]
        if before and after and after[0][1] == was:
            continue  # one event is lost: nobody knows
        known[same] += 1
        if not was:
            away[same] += 1
            reason[THREAD_STATES.get(before[-1][2], "") if before else ""] += 1
    sums: dict[str, Counter[tuple[int, int]]] = {
        name: Counter() for name in ("known", "off", "blocked", "preempted")
    }
    for place, task in enumerate(found["task"].tolist()):
        same = (max(start[task], first), min(stop[task], window[1]))
        for name, counter in sums.items():
            counter[same] += int(found[name][place])
    assert sums["known"] == known
    assert +sums["off"] == away
    assert sums["preempted"].total() == reason["running"]
    assert sums["blocked"].total() == reason["interruptible"] + reason["uninterruptible"]
    assert (found["longest"] <= found["off"]).all()
    assert ((found["count"] > 0) == (found["off"] > 0)).all()


# ----------------------------------------------------------------------------- what is held


def test_what_was_not_recorded_differs_from_what_came_to_nothing(tmp_path: Path) -> None:
    for name, fill in (("off", lambda export: None), ("none", Export.samples_nothing)):
        run = tmp_path / name
        with write_run(run, "2025.1") as export:
            fill(export)
        merge_run(run, str(run / "no nsys"))
        with open_trace(run) as trace:
            found = held(trace)
            state = State.MISSING if name == "off" else State.NONE
            assert found[Kind.SAMPLES].state is found[Kind.SWITCHES].state is state
            assert ("--sample=process-tree" in found[Kind.SAMPLES].reason) == (name == "off")
            assert found[Kind.MARKS].state is State.NONE
            assert analyse("cpu", trace).unanswered


def test_samples_that_nsys_lost_are_told() -> None:
    assert concerns("Sampling events were lost in the interval 12 - 44 (32) ns.") == {"samples"}
    assert concerns("Some GPU metrics samples were lost.") == {"metrics"}
    assert concerns("Context switch events were lost.") == {"switches"}
    found = {h.kind: h for h in judge(Evidence({Kind.SAMPLES: 5}, losses={"samples": "12 lost"}))}
    assert found[Kind.SAMPLES].state is State.PARTLY
    assert found[Kind.SWITCHES].state is State.MISSING
    found = {h.kind: h for h in judge(Evidence({Kind.RANGES: 5}, losses={"nvtx": "some"}))}
    assert found[Kind.RANGES].state is State.PARTLY
    assert found[Kind.MARKS].state is State.NONE


def test_what_the_calls_of_tasks_were(sampled: Path) -> None:
    with open_trace(sampled) as trace:
        answer = analyse("cpu", trace)
        (function,) = set(trace.tasks["prefix"])
    assert answer.table["samples"].tolist() == [8, 1]
    assert answer.table["others"].tolist() == [1, 0]
    frames = answer.tables["frames"]
    own = frames[frames["function"] == function].set_index("frame")
    assert own.loc["work", ["self", "total"]].tolist() == [2, 4]
    assert own.loc["__read", "self_share"] == pytest.approx(200 / 8)
    assert own.loc["main", ["self", "total"]].tolist() == [0, 4]
    assert any("Time off the CPU" in why for why in answer.unanswered)


def test_odd_content_is_no_traceback(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_workers(run / "journals", [WORKER])
    (run / "nsight").mkdir()
    (run / "nsight" / "node7.nsys-rep").write_bytes(b"exported beside it")
    with Export(run / "nsight" / "node7.sqlite", "2025.1") as export:
        export.begun(utc=10**18)
        export.user_range(WORKER.pid, POOL_1, at(1), at(2), "x")
        export.sample(WORKER.pid, POOL_1, at(12), [MAIN])
        for columns in ("id", "id, start, globalTid", "id, start, globalTid, cpu, cpuCycles"):
            export.database.execute("DROP TABLE COMPOSITE_EVENTS")
            export.database.execute(f"CREATE TABLE COMPOSITE_EVENTS ({columns})")
        export.database.execute(
            "INSERT INTO COMPOSITE_EVENTS VALUES (1, ?, ?, 70000, NULL)",
            (at(12), 2**48 | WORKER.pid << 24 | POOL_1),
        )
        export.database.execute("CREATE TABLE SCHED_EVENTS (start)")
        export.database.execute("INSERT INTO SCHED_EVENTS VALUES (NULL)")
    merge_run(run, str(run / "no nsys"))
    with open_trace(run) as trace:
        assert trace.reports["status"].tolist() == ["joined"]
        assert trace.cpu_samples["cpu"].tolist() == [-1]
        assert chain_of(trace, int(trace.cpu_samples["stack"][0])) == [("main", "python3.11")]
