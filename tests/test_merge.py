"""A merge finds in journals what truly happened, and names what it could not find."""

from __future__ import annotations

import gc
import shutil
import string
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dask.utils import key_split
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import BEGIN, BEGIN_UTC, SyntheticRun, write_run
from synthetic_large import Shape, key_of, write_large_run

from dasf_hpc.errors import TraceFileError
from dasf_hpc.profile.journal import BLOCK, STATES, STATUSES, Journal, Stream, read_journal
from dasf_hpc.profile.plugins import WorkerTaskPlugin
from dasf_hpc.trace import layout
from dasf_hpc.trace.merge import MergedTables, merge_journals
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.schema import NUL, TABLES, TRANSITION_RESOLUTION
from dasf_hpc.trace.summary import summarise


def _opened(folder: Path, merged: MergedTables | None = None) -> Trace:
    merged = merged or merge_journals(folder / "journals")
    merged.write(folder / "trace.h5")
    return open_trace(folder)


@pytest.fixture(scope="module")
def merged_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticRun, Trace]:
    """A run of 3 nodes with failures, reschedules and two killed workers."""
    folder = tmp_path_factory.mktemp("run")
    run = write_run(
        folder / "journals",
        seed=3,
        nodes=3,
        workers=2,
        tasks=150,
        gpus=2,
        killed=2,
        failing=0.05,
        rescheduled=0.03,
    )
    return run, _opened(folder)


def _bounds(trace: Trace, processes: pd.Series[int]) -> np.ndarray[Any, Any]:
    """Give the bound of the clock of each process row."""
    clock = trace.processes["clock"].to_numpy()[processes.to_numpy()]
    bounds: np.ndarray[Any, Any] = trace.clocks["bound"].to_numpy()[clock]
    return bounds


# ------------------------------------------------------------------------------ known answers


def test_every_execution_is_there_once_as_it_was(merged_run: tuple[SyntheticRun, Trace]) -> None:
    run, trace = merged_run
    tasks = trace.tasks
    assert tasks["id"].is_unique
    found = tasks.set_index("id")
    assert set(found.index) == {execution.id for execution in run.executions}
    address = trace.processes["address"].to_numpy()
    for execution in run.executions:
        row = found.loc[execution.id]
        assert row["key"] == execution.key.replace("\0", NUL)
        assert row["state"] == execution.state
        assert row["nbytes"] == execution.nbytes
        assert address[row["process"]] == execution.worker
        assert (row["stop"] == -1) == (execution.stop == -1)


def test_a_run_that_was_made_by_columns_is_found_as_it_was(tmp_path: Path) -> None:
    shape = Shape(nodes=2, workers=3, tasks=1100, seed=4)
    workers = write_large_run(tmp_path / "journals", shape)
    with _opened(tmp_path) as trace:
        assert len(trace.gaps) == 0
        origin = trace.attributes["origin_monotonic_ns"]
        tasks, memory = trace.tasks, trace.memory
        bound = int(trace.clocks["bound"].max())
        assert 0 < bound < 3_000_000  # it is a short run, of few bursts of probes
        assert len(trace.transitions) == sum(worker.transitions for worker in workers)
        assert len(tasks) == sum(len(worker.ids) for worker in workers)
        row = trace.processes.set_index("name").index
        edges = set()
        for worker in workers:
            process = row.get_loc(f"worker-{worker.number}")
            mine = tasks[tasks["process"] == process].sort_values("id")
            assert mine["id"].tolist() == worker.ids.tolist()
            assert mine["key"].tolist() == [
                key_of(shape, worker.number, task) for task in worker.tasks.tolist()
            ]
            assert mine["state"].tolist() == [STATUSES[code] for code in worker.status]
            assert mine["nbytes"].tolist() == worker.sizes.tolist()
            assert (np.abs(mine["start"] + origin - worker.starts) <= bound + 1).all()
            assert (np.abs(mine["stop"] + origin - worker.stops) <= bound + 1).all()
            held = memory[memory["process"] == process]
            assert held["managed"].tolist() == worker.managed.tolist()
            assert held["tasks"].tolist() == worker.held.tolist()
            edges |= {
                (key_of(shape, worker.number, task), key_of(shape, owner, needed))
                for task, owner, needed in worker.edges.tolist()
            }
        found = trace.dependencies
        assert set(zip(found["key"], found["dependency"], strict=True)) == edges
        assert len(found) == len(edges)


def test_times_are_right_within_the_bound_their_clock_carries(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    tasks = trace.tasks.set_index("id")
    tasks = tasks.loc[[execution.id for execution in run.executions]]
    origin = trace.attributes["origin_monotonic_ns"]
    bounds = _bounds(trace, tasks["process"])
    starts = np.array([execution.start for execution in run.executions])
    stops = np.array([execution.stop for execution in run.executions])
    assert (np.abs(tasks["start"] + origin - starts) <= bounds + 1).all()
    ended = stops >= 0
    assert (np.abs(tasks["stop"] + origin - stops)[ended] <= bounds[ended] + 1).all()
    assert set(trace.clocks["source"]) == {"reference", "probes"}
    # A bound must say something: the synthetic round trips take some 200 us, and in so short a run
    # two bursts of them, 4 s apart, do not tell a jump from a drift of up to 500 ppm.
    assert trace.clocks["bound"].max() < 3_000_000
    assert (trace.causality["violations"] == 0).all()
    assert trace.causality["checked"].iloc[:2].sum() > 0.9 * len(trace.dependencies)
    # durations are kept
    length = (stops - starts)[ended]
    assert (np.abs((tasks["stop"] - tasks["start"])[ended] - length) <= 1 + 1e-4 * length).all()


def test_rows_are_sorted_by_time(merged_run: tuple[SyntheticRun, Trace]) -> None:
    _, trace = merged_run
    for name, column in (("tasks", "start"), ("transitions", "time"), ("memory", "time")):
        assert trace.table(name)[column].is_monotonic_increasing, name
    assert trace.processes["start"].min() == 0


def test_attempts_count_a_keys_executions_over_the_whole_run(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    truth = defaultdict(list)
    for execution in sorted(run.executions, key=lambda e: e.start):
        truth[execution.key].append(execution.id)
    expected = {i: n + 1 for ids in truth.values() for n, i in enumerate(ids)}
    assert dict(zip(trace.tasks["id"], trace.tasks["attempt"], strict=True)) == expected
    assert max(expected.values()) > 1


def test_a_killed_workers_last_task_is_lost_and_its_repetition_is_not(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    processes = trace.processes
    killed = processes.loc[processes["ended"] == "killed", "address"]
    assert sorted(killed) == sorted(run.killed)
    others = processes.loc[processes["ended"] != "killed"]
    assert set(others["ended"]) == {"closed"}
    lost = trace.tasks[trace.tasks["state"] == "lost"]
    assert len(lost) == 2
    for key in lost["key"]:
        states = trace.tasks.loc[trace.tasks["key"] == key, "state"].tolist()
        assert states[-2:] == ["lost", "memory"]


def test_dependencies_are_the_edges_and_dependents_their_inverse(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    edges = {(a.replace("\0", NUL), b.replace("\0", NUL)) for a, b in run.edges}
    pairs = trace.dependencies
    assert set(zip(pairs["dependency"], pairs["key"], strict=True)) == edges
    assert len(pairs) == len(edges)
    inverse = trace.dependents()
    assert set(zip(inverse["key"], inverse["dependent"], strict=True)) == edges


def test_managed_memory_follows_what_came_and_went(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    origin = trace.attributes["origin_monotonic_ns"]
    for address, changes in run.memory.items():
        row = int(trace.processes.index[trace.processes["address"] == address][0])
        memory = trace.memory[trace.memory["process"] == row]
        assert memory["managed"].tolist() == [change[1] for change in changes]
        assert memory["tasks"].tolist() == [change[2] for change in changes]
        off = np.abs(memory["time"] + origin - [change[0] for change in changes])
        assert (off <= _bounds(trace, memory["process"]) + TRANSITION_RESOLUTION).all()


def test_results_and_exceptions_are_described(merged_run: tuple[SyntheticRun, Trace]) -> None:
    run, trace = merged_run
    tasks = trace.tasks.set_index("id")
    for execution in run.executions:
        row = tasks.loc[execution.id]
        if execution.state == "error":
            assert row["exception"] == "builtins.ValueError"
        else:
            assert pd.isna(row["exception"])
        described = [row[name] for name in ("type", "dtype", "shape")]
        text = "|".join("" if pd.isna(part) else part for part in described)
        assert text == (execution.result or "||")
    assert {"|S1", "float64"} <= set(trace.tasks["dtype"].dropna())


def test_every_transition_and_sample_is_there(merged_run: tuple[SyntheticRun, Trace]) -> None:
    run, trace = merged_run
    transitions = trace.transitions
    assert len(transitions) == run.transitions
    done = (transitions["start_state"] == "executing") & (transitions["finish_state"] == "memory")
    assert int(done.sum()) == sum(execution.state == "memory" for execution in run.executions)
    assert set(trace.node_samples["node"]) == set(trace.gpus["node"])
    assert set(trace.gpu_samples["gpu"]) == set(trace.gpus.index)
    assert trace.gpu_samples["pcie_sent"].isna().all()
    assert (trace.gpu_samples["nvlink_sent"] == -1).all()
    assert (trace.process_samples["fds"] == -1).all()
    workers = trace.processes.index[trace.processes["role"] == "worker"]
    assert set(trace.process_samples["process"]) == set(workers)
    assert set(trace.reschedules["reason"]) == {"reschedule"}


def test_transfers_name_both_ends(merged_run: tuple[SyntheticRun, Trace]) -> None:
    _, trace = merged_run
    transfers = trace.transfers
    assert len(transfers)
    address = trace.processes["address"]
    assert address[transfers["peer_process"]].tolist() == transfers["peer"].tolist()
    assert set(transfers["direction"]) == {"incoming"}
    activities = trace.activities
    assert activities.loc[activities["action"] == "disk-write", "peer"].isna().all()
    assert activities.loc[activities["action"] == "transfer", "peer"].notna().all()


def test_processes_and_gpus_are_described(merged_run: tuple[SyntheticRun, Trace]) -> None:
    run, trace = merged_run
    workers = trace.processes[trace.processes["role"] == "worker"]
    assert dict(zip(workers["name"], workers["address"], strict=True)) == run.workers
    assert workers["gpus"].str.startswith("GPU-node").all()
    assert (workers["memory_limit"] == 4 << 30).all()
    hostnames = trace.nodes["hostname"].tolist()
    assert sorted(hostnames) == ["head", "node1", "node2", "node3"]
    assert trace.gpus.groupby("node").size().tolist() == [2, 2, 2]
    assert trace.gpus["uuid"].is_unique
    assert (trace.gpus["memory"] == 80 << 30).all()
    assert trace.nodes.set_index("hostname").loc["node2", "cpus"] == 16


def test_the_reference_is_the_schedulers_clock_and_wall_time_its_hosts(
    merged_run: tuple[SyntheticRun, Trace],
) -> None:
    run, trace = merged_run
    attributes = trace.attributes
    assert attributes["reference_host"] == "head"
    assert attributes["reference_clock"] == run.clocks["head"].identity
    into = attributes["origin_monotonic_ns"] - BEGIN
    assert abs(into) < 1_000_000
    assert abs(attributes["origin_utc_ns"] - (BEGIN_UTC + into)) < 1_000


def test_nothing_is_missing_from_a_whole_run(merged_run: tuple[SyntheticRun, Trace]) -> None:
    _, trace = merged_run
    assert len(trace.gaps) == 0


# ------------------------------------------------------------------------------ other clocks


def _start_errors(run: SyntheticRun, trace: Trace) -> dict[str, np.ndarray[Any, Any]]:
    """Give by clock identity how far starts are off, with the reference's clock as the truth."""
    reference = next(
        clock
        for clock in run.clocks.values()
        if clock.identity == trace.attributes["reference_clock"]
    )
    truth = {e.id: reference.local(e.start) for e in run.executions}
    tasks = trace.tasks
    starts = tasks["start"].to_numpy() + trace.attributes["origin_monotonic_ns"]
    off = starts - np.array([truth[i] for i in tasks["id"].tolist()])
    clock = trace.processes["clock"].to_numpy()[tasks["process"]]
    identity = trace.clocks["clock"].to_numpy()[clock]
    return {name: off[identity == name] for name in set(identity)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kinds", "source"),
    [
        ({"probes": False}, "utc"),
        ({"scheduler": False}, "probes+probes"),
        ({"scheduler": False, "probes": False}, "utc"),
    ],
)
def test_a_clocks_error_is_within_its_bound(
    tmp_path: Path, seed: int, kinds: dict[str, Any], source: str
) -> None:
    run = write_run(tmp_path / "journals", seed=seed, nodes=3, workers=1, tasks=40, **kinds)
    trace = _opened(tmp_path)
    assert set(trace.clocks["source"]) == {"reference", source}
    bounds = dict(zip(trace.clocks["clock"], trace.clocks["bound"].tolist(), strict=True))
    for identity, off in _start_errors(run, trace).items():
        assert np.abs(off).max() <= bounds[identity] + 1
    assert len(trace.gaps) == 0


def test_without_any_tie_a_clock_is_put_at_the_begin_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=1, tasks=10, probes=False, anchors=False)
    trace = _opened(tmp_path)
    assert sorted(trace.clocks["source"]) == ["none", "none", "reference"]
    assert (trace.clocks["bound"][trace.clocks["source"] == "none"] == -1).all()
    assert trace.attributes["origin_utc_ns"] == -1
    assert trace.gaps["kind"].tolist() == ["clock not aligned"] * 2
    assert summarise(trace).bound == -1
    assert trace.tasks["start"].between(0, 10**10).all()


def test_a_reference_without_utc_takes_wall_time_from_another_clock(tmp_path: Path) -> None:
    write_run(tmp_path / "with" / "journals", nodes=1, workers=1, tasks=10)
    write_run(tmp_path / "without" / "journals", nodes=1, workers=1, tasks=10, anchors=False)
    mixed = tmp_path / "with" / "journals" / "scheduler-head-100.journal"
    mixed.unlink()
    shutil.copy(tmp_path / "without" / "journals" / mixed.name, mixed)
    trace = _opened(tmp_path / "with")
    into = trace.attributes["origin_monotonic_ns"] - BEGIN
    # the node's wall clock is up to 5 ms off
    assert abs(trace.attributes["origin_utc_ns"] - BEGIN_UTC - into) < 6_000_000


# ------------------------------------------------------------------------------ what is missing


def test_bad_journals_are_skipped_and_named(tmp_path: Path) -> None:
    journals = tmp_path / "journals"
    run = write_run(journals, nodes=1, workers=2, tasks=20)
    (journals / "empty.journal").touch()
    (journals / "garbage.journal").write_bytes(b"no journal at all" * 1000)
    (journals / "folder.journal").mkdir()
    shutil.copy(journals / "worker-node1-1000.journal", journals / "a-copy.journal")
    whole = (journals / "worker-node1-1001.journal").read_bytes()
    (journals / "a-part.journal").write_bytes(whole[: len(whole) // 2])
    merged = merge_journals(journals)
    skipped = dict(merged.skipped)
    assert sorted(skipped) == sorted(
        [
            "a-part.journal",
            "empty.journal",
            "folder.journal",
            "garbage.journal",
            "worker-node1-1000.journal",
        ]
    )
    assert skipped["worker-node1-1000.journal"] == "it is a copy of a-copy.journal"
    assert skipped["a-part.journal"] == "it is a copy of worker-node1-1001.journal"
    trace = _opened(tmp_path, merged)
    assert len(trace.tasks) == len(run.executions)
    assert trace.tasks["id"].is_unique
    assert trace.gaps["kind"].value_counts().to_dict() == {
        "journal unreadable": 3,
        "journal duplicated": 2,
    }
    assert set(trace.gaps["journal"]) == set(skipped)


def test_a_worker_that_left_no_journal_is_named(tmp_path: Path) -> None:
    journals = tmp_path / "journals"
    write_run(journals, nodes=1, workers=2, tasks=5)
    (journals / "worker-node1-1001.journal").unlink()
    trace = _opened(tmp_path)
    (gap,) = trace.gaps.to_dict("records")
    assert gap["kind"] == "worker without journal"
    assert "tcp://10.0.0.2:40001 on host node1" in gap["reason"]
    assert gap["start"] >= 0


def test_a_merge_of_nothing_is_an_empty_trace(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        merged = merge_journals(folder)
        assert (merged.journals, merged.events, merged.skipped) == (0, 0, [])
    merged.write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        assert len(trace.tasks) == 0
        assert asdict(summarise(trace))["tasks"] == {}


def test_what_a_journal_says_it_dropped_becomes_gaps(tmp_path: Path) -> None:
    start = 10**15
    journal = Journal(tmp_path / "journals" / "a.journal", _worker(start))
    journal.meta(
        {"kind": "gap", "start": start + 5, "stop": start + 9, "count": 7, "reason": "ENOSPC"}
    )
    journal.meta({"kind": "gap", "start": None, "stop": start + 9, "count": 1, "reason": None})
    journal.meta({"kind": "unavailable", "what": "nvtx", "why": "not installed"})
    journal.close({"time": start + 100, "dropped": 10, "failures": 3})
    trace = _opened(tmp_path)
    gaps = trace.gaps
    assert gaps["kind"].tolist() == ["records dropped"] * 4 + ["not available"]
    assert gaps["count"].tolist() == [7, 1, 2, 3, -1]
    assert gaps["start"].tolist() == [5, -1, -1, -1, -1]
    assert gaps["stop"].tolist() == [9, 9, -1, -1, -1]
    assert gaps["reason"].tolist()[-1] == "nvtx: not installed"
    assert trace.processes["dropped"].tolist() == [10]
    counts = {gap.kind: gap.count for gap in summarise(trace).gaps}
    assert counts == {"records dropped": 13, "not available": 0}


def _worker(start: int, **more: Any) -> dict[str, Any]:
    return {
        "role": "worker",
        "hostname": "node1",
        "pid": 1,
        "clock": "node1/boot/time",
        "task_id_base": 1 << 24,
        "start": start,
        **more,
    }


def _write_tasks(journal: Journal, start: int, keys: list[Any]) -> None:
    started = journal.recorder(Stream.STARTS)
    stopped = journal.recorder(Stream.STOPS)
    result = journal.string("int||")
    for i, key in enumerate(keys):
        started(start + 10 * i, i + 1, journal.key(key), 7)
        stopped(start + 10 * i + 5, i + 1, result, 0, 28)


def test_what_ran_when_its_worker_was_told_is_abandoned_and_the_rest_is_lost(
    tmp_path: Path,
) -> None:
    start = 10**15
    journal = Journal(tmp_path / "journals" / "a.journal", _worker(start))
    started = journal.recorder(Stream.STARTS)
    stopped = journal.recorder(Stream.STOPS)
    text = journal.string("asyncio.exceptions.CancelledError")
    # its stop, as an error or not, or none
    stops = {"early": (50, 1), "ended": (150, 0), "failed": (150, 1), "ran on": None, "late": None}
    for i, (key, stop) in enumerate(stops.items()):
        started(start + (110 if key == "late" else 10 + i), i + 1, journal.key(key), 7)
        if stop is not None:
            stopped(start + stop[0], i + 1, text, stop[1], 28)
    journal.meta({"kind": "abandoned", "time": start + 100, "count": 3})
    journal.close()
    tasks = _opened(tmp_path).tasks.set_index("key")
    assert tasks["state"].to_dict() == {
        "early": "error",
        "ended": "memory",
        "failed": "abandoned",
        "ran on": "abandoned",
        "late": "lost",
    }
    assert (tasks["stop"] >= 0).tolist() == [True, True, True, False, False]


def test_a_run_whose_scheduler_and_metadata_are_lost_still_merges(tmp_path: Path) -> None:
    start = 10**15
    journal = Journal(tmp_path / "journals" / "a.journal", _worker(start))
    _write_tasks(journal, start, ["x-1", "x-2"])
    journal.close({"time": start + 1000})
    data = bytearray(journal.path.read_bytes())
    data[:4] = b"gone"  # the first block holds the first document, and here the last one
    journal.path.write_bytes(data)
    trace = _opened(tmp_path)
    assert trace.tasks["key"].tolist() == ["x-1", "x-2"]
    assert trace.tasks["id"].tolist() == [1, 2]  # the base is lost with the document
    (process,) = trace.processes.to_dict("records")
    assert pd.isna(process["role"])
    assert process["node"] == -1
    assert process["damaged"] == 1
    assert trace.gaps["kind"].tolist() == ["blocks damaged"]


def test_a_stop_whose_start_is_lost_is_counted(tmp_path: Path) -> None:
    start = 10**15
    journal = Journal(tmp_path / "journals" / "a.journal", _worker(start))
    _write_tasks(journal, start, ["x-1", "x-2"])
    stopped = journal.recorder(Stream.STOPS)
    stopped(start + 500, 99, journal.string("int||"), 0, 28)
    journal.close({"time": start + 1000})
    trace = _opened(tmp_path)
    assert len(trace.tasks) == 2
    assert trace.gaps[["kind", "count"]].to_dict("records") == [
        {"kind": "stops without start", "count": 1}
    ]


_SMALL: dict[str, tuple[SyntheticRun, list[tuple[str, bytes]]]] = {}


def _small_run(tmp_path: Path) -> tuple[SyntheticRun, list[tuple[str, bytes]]]:
    if "run" not in _SMALL:
        run = write_run(tmp_path / "whole", nodes=2, workers=1, tasks=30, killed=1, failing=0.1)
        files = [(path.name, path.read_bytes()) for path in sorted((tmp_path / "whole").iterdir())]
        _SMALL["run"] = run, files
    return _SMALL["run"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_merge_of_damaged_journals_fails_never_and_makes_nothing_up(
    tmp_path: Path, data: st.DataObject
) -> None:
    run, files = _small_run(tmp_path)
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "journals").mkdir(parents=True)
    for name, content in files:
        what = data.draw(st.sampled_from(["whole", "cut", "overwritten", "block lost", "missing"]))
        position = data.draw(st.integers(0, len(content)))
        damaged = bytearray(content)
        if what == "cut":
            del damaged[position:]
        elif what == "block lost":
            position = position // BLOCK * BLOCK
            damaged[position : position + BLOCK] = bytes(BLOCK)
        elif what == "overwritten":
            noise = data.draw(st.binary(min_size=1, max_size=5000))
            damaged[position : position + len(noise)] = noise
        if what != "missing":
            (folder / "journals" / name).write_bytes(damaged)
    with _opened(folder) as trace:
        truth = {(e.id & 0xFFFFFF, e.key.replace("\0", NUL), e.nbytes) for e in run.executions}
        for row in trace.tasks.to_dict("records"):
            if pd.isna(row["key"]) or row["state"] == "lost":
                continue
            assert (row["id"] & 0xFFFFFF, row["key"], row["nbytes"]) in truth
        edges = {(a.replace("\0", NUL), b.replace("\0", NUL)) for a, b in run.edges}
        pairs = trace.dependencies
        assert set(zip(pairs["dependency"], pairs["key"], strict=True)) <= edges
        assert (trace.memory["tasks"] >= 0).all()
        summarise(trace)


# ------------------------------------------------------------------------------ keys and prefixes


def test_keys_of_every_kind_are_one_text_over_all_processes(tmp_path: Path) -> None:
    keys: list[Any] = [
        ("add-1f", 0, 1),
        ("add-1f", 0, 2),
        "inc-5c",
        b"bytes-\x00\xff-1",
        "zero\0in-1",
        "zero at the end\0",
        "line\nfeed-1",
        "snow \N{SNOWMAN}-1",
        ("nested", ("tuple", 1), 2),
        ("it's", 1),
        "",
        "x" * 600,
    ]
    start = 10**15
    for pid in (1, 2):
        path = tmp_path / "journals" / f"{pid}.journal"
        journal = Journal(path, _worker(start, pid=pid, task_id_base=pid << 24))
        _write_tasks(journal, start + 5 * pid, keys if pid == 1 else keys[::-1])
        journal.close({"time": start + 1000})
    with _opened(tmp_path) as trace:
        tasks = trace.tasks
        assert len(tasks) == 2 * len(keys)
        texts = {str(key).replace("\0", NUL) for key in keys}
        assert set(tasks["key"]) == texts
        assert sorted(tasks["attempt"]) == [1] * len(keys) + [2] * len(keys)
        prefixes = dict(zip(tasks["key"], tasks["prefix"], strict=True))
        for key in keys:
            if isinstance(key, bytes):  # not UTF-8: key_split itself fails on it
                continue
            assert prefixes[str(key).replace("\0", NUL)] == key_split(key).replace("\0", NUL)


_NAME = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=30)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keys=st.lists(
        st.one_of(
            _NAME,
            _NAME.map(str.encode),
            st.tuples(_NAME, st.integers()),
            st.tuples(_NAME, st.integers(), _NAME),
            st.tuples(_NAME, st.uuids().map(str)),
            st.tuples(st.sampled_from(["read csv", "it's", 'a"b', "tab\t"]), st.integers(0, 3)),
            st.uuids().map(lambda u: f"inc-{u.hex}"),
        ),
        max_size=12,
        unique_by=str,
    )
)
def test_the_prefix_is_what_dask_says(tmp_path: Path, keys: list[Any]) -> None:
    shutil.rmtree(tmp_path / "journals", ignore_errors=True)
    journal = Journal(tmp_path / "journals" / "a.journal", _worker(10**15))
    _write_tasks(journal, 10**15, keys)
    journal.close()
    with _opened(tmp_path) as trace:
        assert trace.tasks["prefix"].tolist() == [key_split(key) for key in keys]


# ------------------------------------------------------------------------------ managed memory

_CODES = {state: code for code, state in enumerate(STATES)}


def _move(record: Callable[[int, int, int], None], now: int, key: int, path: str) -> None:
    start, finish = path.split(">")
    record(now, key, _CODES[start] << 4 | _CODES[finish])


def test_the_size_of_a_key_is_what_its_own_process_recorded_else_the_producers(
    tmp_path: Path,
) -> None:
    start = 10**15
    first = Journal(tmp_path / "journals" / "1.journal", _worker(start))
    _write_tasks(first, start, ["made-1", "made-2"])
    first.close({"time": start + 1000})
    second = Journal(
        tmp_path / "journals" / "2.journal", _worker(start + 1, pid=2, task_id_base=2 << 24)
    )
    record = second.transition_recorder()
    stored = second.recorder(Stream.STORED)
    made, fetched, unknown = (second.key(k) for k in ("made-1", "made-2", "unknown-1"))
    early = second.key("there-before")
    now = start + 100
    stored(now, made, 1000)
    _move(record, now, made, "flight>memory")
    _move(record, now + 1, fetched, "flight>memory")  # its size was not recorded here
    _move(record, now + 2, unknown, "flight>memory")  # nor anywhere
    _move(record, now + 3, early, "memory>released")  # in memory before recording began
    _move(record, now + 4, made, "memory>released")
    stored(now + 5, made, 500)
    _move(record, now + 5, made, "fetch>memory")  # again, with another size
    _move(record, now + 6, made, "memory>error")
    _move(record, now + 7, fetched, "memory>released")
    second.close({"time": start + 1000})
    with _opened(tmp_path) as trace:
        memory = trace.memory
        assert memory[["managed", "tasks"]].to_numpy().tolist() == [
            [1000, 1],
            [1028, 2],
            [1028, 3],
            [28, 2],
            [528, 3],
            [28, 2],
            [0, 1],
        ]
        changes = [now + i - start for i in (0, 1, 2, 4, 5, 6, 7)]
        assert memory["time"].tolist() == [t - t % TRANSITION_RESOLUTION for t in changes]


def test_managed_memory_is_what_a_real_worker_says(tmp_path: Path) -> None:
    journals = tmp_path / "journals"
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            protocol="tcp",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(WorkerTaskPlugin(directory=journals))
        (scattered,) = client.scatter([b"x" * 1000])
        made = client.map(lambda i: b"y" * i, range(50), pure=False)
        pairs = client.map(lambda a, b, c: len(a) + len(b), made[:-1], made[1:], c=scattered)
        total = client.submit(sum, pairs)
        assert total.result() == sum(i + i + 1 for i in range(49))
        del pairs
        deadline = time.monotonic() + 10
        while True:  # what was deleted is released a moment later
            with _opened(tmp_path) as trace:
                found = _last_managed(trace)
            held = {
                worker.address: (worker.state.nbytes, len(worker.state.data))
                for worker in cluster.workers.values()
            }
            if found == held or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert found == held
        # a busy machine may give most tasks to one worker
        assert all(nbytes > 0 for nbytes, _ in held.values())
        assert sum(count for _, count in held.values()) > 50


def _last_managed(trace: Trace) -> dict[str, tuple[int, int]]:
    address = trace.processes["address"]
    last = trace.memory.groupby("process").last()
    return {
        address[row["process"]]: (row["managed"], row["tasks"])
        for row in last.reset_index().to_dict("records")
    }


# ------------------------------------------------------------------------------ a large run


def _reference(trace: Trace, journals: Path) -> dict[str, set[tuple[Any, ...]]]:
    """Say what a trace must hold, from the journals, record by record and all in memory.

    Of the trace only the clocks' corrections are believed.
    """
    contents = [read_journal(path) for path in sorted(journals.glob("*.journal"))]
    clocks = trace.clocks.set_index("clock")
    rows = {name: row for row, name in trace.processes["journal"].items()}
    found: dict[str, set[tuple[Any, ...]]] = {
        name: set() for name in ("tasks", "transitions", "dependencies", "activities")
    }
    for journal in contents:
        first = journal.documents("journal")[0]
        clock = clocks.loc[first["clock"]]
        process = rows[journal.path.name]
        keys = {number: text.replace("\0", NUL) for number, text in journal.keys.items()}
        strings = journal.strings

        def at(raw: int, clock: Any = clock) -> int:
            local = int(raw) + int(clock["offset"])
            drift = round(float(clock["drift"]) * (int(raw) - int(clock["origin"])))
            return int(local + drift) - int(trace.attributes["origin_monotonic_ns"])

        stops = {int(r["sequence"]): r for r in journal.records[Stream.STOPS]}
        for record in journal.records[Stream.STARTS]:
            stop = stops.get(int(record["sequence"]))
            found["tasks"].add(
                (
                    first["task_id_base"] + int(record["sequence"]),
                    keys[int(record["key"])],
                    process,
                    at(record["time"]),
                    -1 if stop is None else at(stop["time"]),
                    "lost" if stop is None else STATUSES[int(stop["status"])],
                    int(stop["nbytes"]) if stop is not None and stop["status"] == 0 else -1,
                )
            )
        for record in journal.records[Stream.TRANSITIONS]:
            time_ns = at(record["time"])
            found["transitions"].add(
                (
                    time_ns - time_ns % TRANSITION_RESOLUTION,
                    process,
                    keys[int(record["key"])],
                    STATES[record["start"]],
                    STATES[record["finish"]],
                )
            )
        for record in journal.records[Stream.EDGES]:
            found["dependencies"].add((keys[int(record["key"])], keys[int(record["dependency"])]))
        for record in journal.records[Stream.ACTIVITIES]:
            found["activities"].add(
                (
                    at(record["start"]),
                    at(record["stop"]),
                    process,
                    keys[int(record["key"])],
                    strings[int(record["action"])],
                    strings.get(int(record["peer"])),
                )
            )
    return found


def _rows(table: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    plain = table[columns].astype(object)
    return list(plain.where(plain.notna(), None).itertuples(index=False, name=None))


_COLUMNS = {
    "tasks": ["id", "key", "process", "start", "stop", "state", "nbytes"],
    "transitions": ["time", "process", "key", "start_state", "finish_state"],
    "dependencies": ["key", "dependency"],
    "activities": ["start", "stop", "process", "key", "action", "peer"],
}


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 80)),
    killed=st.integers(0, 2),
    block_rows=st.sampled_from([1, 50, 700, 1 << 20]),
    join_keys=st.sampled_from([1, 40, 1 << 18]),
    group_parts=st.sampled_from([1, 2, 256]),
)
def test_a_run_merged_in_many_pieces_is_what_its_journals_hold(
    tmp_path: Path,
    seed: int,
    shape: tuple[int, int, int],
    killed: int,
    block_rows: int,
    join_keys: int,
    group_parts: int,
) -> None:
    nodes, workers, tasks = shape
    shutil.rmtree(tmp_path / "journals", ignore_errors=True)
    run = write_run(
        tmp_path / "journals",
        seed=seed,
        nodes=nodes,
        workers=workers,
        tasks=tasks,
        killed=min(killed, nodes * workers - 1),
        failing=0.1,
        rescheduled=0.05,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_ROWS", block_rows)
        patch.setattr(layout, "JOIN_KEYS", join_keys)
        patch.setattr(layout, "JOIN_KEYS_A_PART", 1)
        patch.setattr(layout, "GROUP_PARTS", group_parts)
        patch.setattr(layout, "_GROUPS", 1 if group_parts > 2 else 16)
        trace = _opened(tmp_path)
    with trace:
        for name, expected in _reference(trace, tmp_path / "journals").items():
            rows = _rows(trace.table(name), _COLUMNS[name])
            assert set(rows) == expected
            assert len(rows) == (run.transitions if name == "transitions" else len(expected))
        for name in (table for table in trace.tables if TABLES[table].order):
            order = TABLES[name].order or ""
            whole = trace.table(name)
            assert whole[order].is_monotonic_increasing
            assert sorted(whole.index) == list(range(len(whole)))
        truth = defaultdict(list)
        for key, attempt in _rows(trace.tasks, ["key", "attempt"]):
            truth[key].append(attempt)
        assert all(attempts == [*range(1, len(attempts) + 1)] for attempts in truth.values())
        for address, changes in run.memory.items():
            row = int(trace.processes.index[trace.processes["address"] == address][0])
            memory = trace.memory[trace.memory["process"] == row]
            assert memory["managed"].tolist() == [change[1] for change in changes]
        middle = int(trace.tasks["start"].median())
        window = trace.table("tasks", start=middle, stop=middle + 50_000_000)
        inside = trace.tasks["start"].between(middle, middle + 50_000_000, inclusive="left")
        assert window["key"].tolist() == trace.tasks.loc[inside, "key"].tolist()
        assert window.index.tolist() == trace.tasks.index[inside].tolist()
        assert len(trace.blocks) > 3 or block_rows > 50 or len(trace.tasks) < 30


def test_a_dask_cluster_merges_to_the_same_file(tmp_path: Path) -> None:
    journals = tmp_path / "journals"
    write_run(journals, nodes=2, workers=2, tasks=60, killed=1, failing=0.1)
    (journals / "bad.journal").write_bytes(b"no journal" * 1000)
    merge_journals(journals).write(tmp_path / "here.h5")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        merged = merge_journals(journals, client=client)
        assert [name for name, _ in merged.skipped] == ["bad.journal"]
        merged.write(tmp_path / "there.h5")
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()


def test_the_places_of_tasks_are_known_before_the_trace_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=2, tasks=40, failing=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_ROWS", 300)
        merged = merge_journals(tmp_path / "journals")
    places = merged.task_places()
    with _opened(tmp_path, merged) as trace:
        tasks = trace.tasks.sort_index()
        assert len(trace.blocks) > 3
    np.testing.assert_array_equal(places["id"], tasks["id"])
    np.testing.assert_array_equal(places["process"], tasks["process"])


def test_the_files_of_a_merge_go_with_its_result(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=1, tasks=3)
    before = sorted(tmp_path.rglob("*"))
    merged = merge_journals(tmp_path / "journals")
    assert sorted(tmp_path.rglob("*")) != before
    del merged
    gc.collect()
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------ the rest


def test_progress_goes_from_none_to_all(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=1, tasks=3)
    told: list[tuple[int, int, str]] = []
    merge_journals(
        tmp_path / "journals", lambda done, total, label: told.append((done, total, label))
    )
    done = [step[0] for step in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == told[-1][1]
    assert len({step[1] for step in told}) == 1
    assert told[0][2] == "reading sampler-node1-900.journal" or "reading" in told[0][2]


def test_merging_twice_gives_the_same_file(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=2, tasks=30, killed=1)
    for name in ("one.h5", "two.h5"):
        merge_journals(tmp_path / "journals").write(tmp_path / name)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_the_codes_of_states_are_the_journals(merged_run: tuple[SyntheticRun, Trace]) -> None:
    _, trace = merged_run
    assert list(trace.transitions["start_state"].cat.categories) == list(STATES)
    assert list(trace.tasks["state"].cat.categories) == [*STATUSES, "lost", "abandoned"]


def test_a_merge_that_finds_no_room_says_so_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=1, tasks=500)
    source = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
import sys
from dasf_hpc.cli import main
sys.argv = ["dasf-hpc", "merge", {str(tmp_path)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == TraceFileError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert "dasf-hpc merge" in done.stderr
