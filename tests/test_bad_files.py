"""Files that are cut short, flipped, emptied or something else: never a traceback, a hang, a lie.

Seeded, so that a failure comes again; `MUTATIONS` says how many inputs of each kind are read.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_run

from dasf_hpc import open_trace
from dasf_hpc.errors import DasfHpcError
from dasf_hpc.launch.node import read_node_records, write_record
from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.reader import read_report
from dasf_hpc.outcome import merge_run, show_run
from dasf_hpc.profile.journal import JournalError, Stream, read_journal
from dasf_hpc.trace.store import TraceError
from dasf_hpc.trace.summary import summarise

MUTATIONS = {"journal": 5000, "sqlite": 4000, "trace": 1500, "run": 60, "json": 500}

Mutate = Callable[[random.Random, bytes], bytes]


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Cut off the end."""
    return data[: rng.randrange(len(data))]


def zeroed(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a stretch with zeros, as a file system does that lost a page."""
    at, length = rng.randrange(len(data)), rng.choice([64, 512, 4096])
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def scribbled(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a stretch with anything."""
    at, length = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:at] + rng.randbytes(len(data[at : at + length])) + data[at + length :]


def shuffled(rng: random.Random, data: bytes) -> bytes:
    """Put a page of the file somewhere else in it."""
    pages = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    pages[rng.randrange(len(pages))] = pages[rng.randrange(len(pages))]
    return b"".join(pages)


WAYS: tuple[Mutate, ...] = (flipped, cut, zeroed, scribbled, shuffled)


def mutations(kind: str, data: bytes) -> Iterator[bytes]:
    """Give the mutated inputs of a kind, always the same ones."""
    rng = random.Random(f"bad {kind}")
    for _ in range(MUTATIONS[kind]):
        yield rng.choice(WAYS)(rng, data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run's directory with journals and a trace."""
    folder = tmp_path_factory.mktemp("bad") / "run"
    write_run(folder / "journals", seed=5, nodes=2, workers=1, tasks=60)
    merge_run(folder)
    return folder


def test_journals(run: Path, tmp_path: Path) -> None:
    whole = next((run / "journals").glob("worker*"), None) or next((run / "journals").iterdir())
    data = whole.read_bytes()
    written = read_journal(whole)
    rows = {
        stream: set(map(bytes, np.atleast_1d(records).view(f"V{records.dtype.itemsize}")))
        for stream, records in written.records.items()
        if len(records)
    }
    path = tmp_path / "bad.journal"
    unreadable = 0
    for mutated in mutations("journal", data):
        path.write_bytes(mutated)
        try:
            found = read_journal(path)
        except JournalError as error:
            assert str(error)  # noqa: PT017
            unreadable += 1
            continue
        for stream, records in found.records.items():
            if len(records):
                got = set(map(bytes, records.view(f"V{records.dtype.itemsize}")))
                assert got <= rows.get(Stream(stream), set())
        assert set(found.keys.items()) <= set(written.keys.items())
        assert set(found.strings.items()) <= set(written.strings.items())
    assert unreadable < MUTATIONS["journal"] / 2


def test_exports_of_reports(tmp_path: Path) -> None:
    whole = tmp_path / "whole.sqlite"
    with sqlite3.connect(whole) as database:
        database.executescript("""
            CREATE TABLE StringIds (id INTEGER NOT NULL, value TEXT NOT NULL);
            CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER,
                rangeId INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER,
                textId INTEGER, domainId INTEGER, uint64Value INTEGER, int64Value INTEGER);
            CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT);
            CREATE TABLE TARGET_INFO_SYSTEM_ENV (name TEXT NOT NULL, value TEXT NOT NULL);
            INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (1700000000000000000, 'now');
            INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES ('Hostname', 'node1');
        """)
        database.executemany(
            "INSERT INTO NVTX_EVENTS VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            [
                (i, i + 5, 59, None, f"task-{i}", 7 << 24 | 9, None, None, 1, None, i)
                for i in range(300)
            ],
        )
    path = tmp_path / "bad.sqlite"
    for mutated in mutations("sqlite", whole.read_bytes()):
        path.write_bytes(mutated)
        try:
            report = read_report(path)
        except NsightError as error:
            assert str(error)  # noqa: PT017
            continue
        assert len(report.ranges.start) == len(report.ranges.payload)


def test_traces(run: Path, tmp_path: Path) -> None:
    data = (run / "trace.h5").read_bytes()
    path = tmp_path / "bad.h5"
    refused = 0
    for mutated in mutations("trace", data):
        path.write_bytes(mutated)
        try:
            with open_trace(path) as trace:
                summarise(trace)
                for name in trace.tables:
                    trace.table(name)
        except TraceError as error:
            assert str(error)  # noqa: PT017
            refused += 1
    # What is not refused was changed where nothing is stored.
    assert refused > MUTATIONS["trace"] / 2


def test_runs_with_a_bad_journal(run: Path, tmp_path: Path) -> None:
    journals = sorted((run / "journals").iterdir())
    rng = random.Random("bad run")
    for number in range(MUTATIONS["run"]):
        folder = tmp_path / "run"
        shutil.copytree(run, folder)
        victim = folder / "journals" / rng.choice(journals).name
        victim.write_bytes(rng.choice(WAYS)(rng, victim.read_bytes()))
        if number % 3 == 0:
            shutil.copy(victim, victim.with_name(f"copy-{number}.journal"))
        try:
            merge_run(folder)
            show_run(folder)
        except DasfHpcError as error:
            assert str(error)  # noqa: PT017
        shutil.rmtree(folder)


def test_what_nodes_and_runs_say_of_themselves(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "nodes").mkdir(exist_ok=True)
    record = json.dumps(
        {"name": "a-0", "hostname": "node1", "report": "nsight/x.nsys-rep", "notes": ["no"]}
    ).encode()
    for mutated in mutations("json", record):
        (folder / "nodes" / "a.json").write_bytes(mutated)
        for found in read_node_records(folder):
            assert isinstance(found["notes"], list)
            assert found["report"] is None or isinstance(found["report"], str)
    for content in (b"", b"[]", b"\xff", b'{"shape": 3}', b'{"merged": []}', b'{"notes": 1}'):
        (folder / "run.json").write_bytes(content)
        show_run(folder)
        merge_run(folder)


def test_no_path_in_a_run_leads_out_of_it(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run"
    shutil.copytree(run, folder)
    aims = ["../../up.nsys-rep", "nsight/../../up.nsys-rep", str(tmp_path / "abs.nsys-rep")]
    for number, aim in enumerate(aims):
        record = {"name": aim, "hostname": "../node", "batch_job": "../" * number, "report": aim}
        path = write_record(folder, {**record, "notes": [aim]})
        path.with_suffix(".begun").touch()
    for name in ("up", "abs"):  # what would be exported, if it were found
        (tmp_path / f"{name}.nsys-rep").write_bytes(b"no report")
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    summary = merge_run(folder)
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before
    assert {report.status for report in summary.reports} == {"missing"}
    with open_trace(folder) as trace:
        files = trace.reports["file"].astype(str)
        assert set(files) == {"nsight/up.nsys-rep", "nsight/abs.nsys-rep"}
