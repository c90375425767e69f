"""A run can be watched by its files alone, while it runs, and what is seen is what is there."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from synthetic import write_run

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.manifest import HEARTBEAT, Manifest
from dasf_hpc.profile.journal import STATUSES, Journal, Stream, read_journal
from dasf_hpc.profile.tail import JournalTail
from dasf_hpc.show.watch import Watch, drawn, headline, snapshot_document
from dasf_hpc.trace.open import open_trace

WANTED = (Stream.META, Stream.STARTS, Stream.STOPS, Stream.NODE_SAMPLES)


def _journal(path: Path, **meta: Any) -> Journal:
    header = {"role": "worker", "hostname": "node1", "pid": 7, "clock": "c", **meta}
    return Journal(path, header)


def test_a_growing_journal_is_read_once_and_wholly(tmp_path: Path) -> None:
    random_numbers = random.Random(5)
    journal = _journal(tmp_path / "a.journal")
    starts, stops = (journal.recorder(s) for s in (Stream.STARTS, Stream.STOPS))
    other = journal.recorder(Stream.EDGES)
    tail = JournalTail(journal.path, WANTED)
    seen: dict[Stream, list[Any]] = {}
    documents = []

    def look() -> None:
        records, told = tail.read()
        documents.extend(told)
        for stream, rows in records.items():
            seen.setdefault(stream, []).append(rows)

    def record(numbers: range, count: int) -> None:
        """A thread's part; each thread fills blocks of its own."""
        for sequence in numbers:
            starts(time.monotonic_ns(), sequence, 0, 1)
            stops(time.monotonic_ns(), sequence, 0, 0, 8)
            other(1, 2)
            if sequence % count == 0:
                journal.meta({"kind": "note", "number": sequence})
                time.sleep(0.01)

    parts = [range(1, 2001), range(2001, 2301), range(2301, 2331)]
    counts = (100, 7, 1)
    threads = [
        threading.Thread(target=record, args=part) for part in zip(parts, counts, strict=True)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        look()
        time.sleep(random_numbers.choice((0, 0.05)))
    sequence = 2330
    journal.close()
    for _ in range(3):
        look()
    whole = read_journal(journal.path)
    assert set(seen) == {Stream.STARTS, Stream.STOPS}
    for stream, parts in seen.items():
        rows = np.concatenate(parts)
        assert np.sort(rows["sequence"]).tolist() == list(range(1, sequence + 1))
        order = np.argsort(whole.records[stream]["sequence"])
        assert rows[np.argsort(rows["sequence"])].tolist() == whole.records[stream][order].tolist()
    assert documents == whole.meta


def test_a_look_at_what_did_not_change_reads_a_few_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, nodes=1, workers=1, tasks=20_000, answers=False)
    path = next(tmp_path.glob("worker-*"))
    assert path.stat().st_size > 2_000_000
    tail = JournalTail(path, WANTED)
    tail.read()
    read: list[int] = []
    real = os.pread

    def counting(file: int, size: int, offset: int) -> bytes:
        read.append(size)
        return real(file, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert tail.read() == ({}, [])
    assert sum(read) <= 8 * 4096


def test_a_torn_or_foreign_block_costs_no_more_than_itself(tmp_path: Path) -> None:
    journal = _journal(tmp_path / "a.journal")
    starts = journal.recorder(Stream.STARTS)
    for sequence in range(2000):
        starts(time.monotonic_ns(), sequence, 0, 1)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[3 * 4096 + 500] ^= 255
    data += b"garbage" * 1000
    journal.path.write_bytes(data)
    records, _ = JournalTail(journal.path, WANTED).read()
    assert 1500 < len(records[Stream.STARTS]) < 2000


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "journals", nodes=2, workers=2, tasks=100, gpus=1, failing=0.1)
    Manifest(tmp_path).update(
        name="a-run",
        state="running",
        started=time.time(),
        batch_jobs=["1", "2"],
        shape={"nodes": 2, "workers_per_node": 2},
    )
    (tmp_path / HEARTBEAT).touch()
    return tmp_path


def test_a_look_counts_what_the_journals_hold(run_folder: Path) -> None:
    seen = Watch(run_folder).look()
    contents = [read_journal(path) for path in (run_folder / "journals").glob("worker-*")]
    stops = np.concatenate([one.records[Stream.STOPS]["status"] for one in contents])
    assert seen.state == "running"
    assert seen.done == len(stops)
    assert seen.failed == int((stops == STATUSES.index("error")).sum()) > 0
    assert seen.executing == 0
    assert [node.hostname for node in seen.nodes] == ["node1", "node2"]
    assert all((node.cpu, node.memory_used) == (50.0, 8 << 30) for node in seen.nodes)
    assert all(node.gpus[0].power == 300.0 for node in seen.nodes)
    assert len(seen.workers) == seen.workers_expected == 4
    assert all(worker.memory == 1 << 30 and worker.ended for worker in seen.workers)
    assert json.loads(json.dumps(seen.batch_jobs)) == ["1", "2"]


def test_why_a_run_waits_is_said(run_folder: Path) -> None:
    Manifest(run_folder).update(state="waiting", waiting_for="Priority: others go first")
    assert "waiting: Priority: others go first" in headline(Watch(run_folder).look())


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        Watch(tmp_path / "none")


JOB = """
import time
from distributed import Client

with Client() as client:
    futures = [client.submit(time.sleep, 0.05 + i / 10_000, pure=False) for i in range(60)]
    client.gather(futures)
"""


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dasf_hpc.cli", *words]


def test_a_real_run_is_watched_to_its_end_and_has_its_report(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with subprocess.Popen(
        _command("submit", "--on", "local", "--no-nsys", "job.py"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as submit:
        deadline = time.monotonic() + 60
        while not (found := list(tmp_path.glob("runs/*/run.json"))):
            assert submit.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run = found[0].parent
        lines = subprocess.run(
            _command("watch", "--json", "--interval", "0.2", str(run)),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.splitlines()
        submit.wait(60)
    snapshots = [json.loads(line) for line in lines]
    assert snapshots[0]["state"] == "running"
    assert snapshots[-1]["state"] == "complete"
    counts = [snapshot["done"] for snapshot in snapshots]
    assert counts == sorted(counts)
    assert any(0 < count < 60 for count in counts)  # seen while it ran
    with open_trace(run) as trace:
        assert counts[-1] == len(trace.tasks) == 60
    assert any(snapshot["executing"] for snapshot in snapshots)
    assert any(snapshot["rate"] > 0 for snapshot in snapshots)
    assert any(worker["memory"] for worker in snapshots[-1]["workers"])
    assert "<!doctype html>" in (run / "report.html").read_text()
    assert not [note for note in Manifest(run).content.get("notes", []) if "report" in note]


def test_on_a_terminal_it_draws(run_folder: Path) -> None:
    Manifest(run_folder).update(state="complete", ended=time.time())
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        _command("watch", str(run_folder)),
        stdout=follower,
        stdin=follower,
        close_fds=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 65536):
            text += part
    except OSError:
        pass  # the terminal is gone when the program is
    os.close(leader)
    assert done.wait(60) == 0
    assert b"node2" in text
    assert b"300 W" in text
    assert b"Workers" in text


def test_nodes_and_workers_stand_in_the_order_of_their_numbers_by_short_names(
    tmp_path: Path,
) -> None:
    run = "2026-11-29T17-14-21-big-ab12"
    folder = tmp_path / "journals"
    folder.mkdir()
    for node in (10, 2, 1):
        for worker in (10, 9):
            _journal(
                folder / f"{node}-{worker}.journal",
                name=f"{run}-{node}-{worker}",
                hostname=f"node{node}.site.example",
            ).close()
    Manifest(tmp_path).update(name=run, state="running", started=time.time())
    (tmp_path / HEARTBEAT).touch()
    seen = Watch(tmp_path).look()
    assert [(worker.node, worker.short) for worker in seen.workers] == [
        (f"node{node}", f"w{node}-{worker}") for node in (1, 2, 10) for worker in (9, 10)
    ]
    document = snapshot_document(seen)["workers"][0]
    assert (document["name"], document["short"]) == (f"{run}-1-9", "w1-9")
    assert document["hostname"] == "node1.site.example"
    for width in (60, 80, 200):
        text = io.StringIO()
        Console(file=text, width=width).print(drawn(seen, width))
        assert all(len(line.rstrip()) <= width for line in text.getvalue().splitlines())
        assert "w10-9" in text.getvalue()
