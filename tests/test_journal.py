"""The journal gives back what was written, whatever became of the file or of its writer."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasf_hpc.profile import journal as journal_module
from dasf_hpc.profile.journal import (
    BLOCK,
    FIRST_SEGMENT,
    HEADER,
    MAX_KEY,
    RECORDS,
    RETRY_S,
    Journal,
    JournalContents,
    JournalError,
    Stream,
    read_journal,
)

TIMED = {s for s, fields in RECORDS.items() if fields[0][0] == "dt"}
META = {"role": "worker", "hostname": "node1", "pid": 1}

Rows = dict[Stream, list[tuple[Any, ...]]]

_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "I": st.integers(0, 2**32 - 1),
    "H": st.integers(0, 2**16 - 1),
    "Q": st.integers(0, 2**64 - 1),
    "q": st.integers(-(2**63), 2**63 - 1),
    "f": st.floats(width=32),
}
# Near each other as real times are, and far apart, forwards and backwards.
_TIMES = st.one_of(st.integers(10**15, 10**15 + 10**7), st.integers(0, 2**63 - 1))


def _rows_of(stream: Stream) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    if stream is Stream.TRANSITIONS:
        row = st.tuples(_TIMES, st.integers(0, 2**32 - 1), st.integers(0, 255))
    else:
        fields = RECORDS[stream]
        codes = [code for _, code in fields]
        if stream in TIMED:
            row = st.tuples(_TIMES, *(_FIELDS[code] for code in codes[1:]))
        else:
            row = st.tuples(*(_FIELDS[code] for code in codes))
    return st.lists(row, max_size=12)


_ALL_ROWS = st.fixed_dictionaries({stream: _rows_of(stream) for stream in RECORDS})

_ATOMS = st.one_of(st.text(max_size=40), st.integers(), st.binary(max_size=40), st.none())
_KEYS = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60),
    st.recursive(_ATOMS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6),
    st.tuples(st.text(max_size=40), st.integers(), st.integers()),
)


def _record(journal: Journal, stream: Stream) -> Any:
    if stream is Stream.TRANSITIONS:
        return journal.transition_recorder()
    return journal.timed_recorder(stream) if stream in TIMED else journal.recorder(stream)


def _write(journal: Journal, rows: Rows) -> None:
    for stream, records in rows.items():
        record = _record(journal, stream)
        for row in records:
            record(*row)


def _read_rows(contents: JournalContents, stream: Stream) -> list[tuple[Any, ...]]:
    records = contents.records[stream]
    if stream is Stream.TRANSITIONS:
        return [(t, k, s << 4 | f) for t, k, s, f in records.tolist()]
    names = ["time" if name == "dt" else name for name, _ in RECORDS[stream]]
    return [tuple(row[name].item() for name in names) for row in records]


def _comparable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(np.float32(v).tobytes() if isinstance(v, float) else v for v in row)


def _new_path(folder: Path) -> Path:
    # not `random`: hypothesis seeds it anew for every example
    return folder / f"{secrets.token_hex(8)}.journal"


# ------------------------------------------------------------------------------ round trips


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=_ALL_ROWS)
def test_every_record_of_every_stream_comes_back_in_order(tmp_path: Path, rows: Rows) -> None:
    journal = Journal(_new_path(tmp_path), META)
    _write(journal, rows)
    journal.close()
    contents = read_journal(journal.path)
    assert contents.damaged == 0
    assert journal.dropped == 0
    for stream, written in rows.items():
        read = _read_rows(contents, stream)
        assert [_comparable(r) for r in read] == [_comparable(r) for r in written], stream


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys=st.lists(_KEYS, max_size=10), strings=st.lists(st.text(max_size=60), max_size=10))
def test_keys_and_strings_come_back_as_text(
    tmp_path: Path, keys: list[Any], strings: list[str]
) -> None:
    journal = Journal(_new_path(tmp_path), META)
    numbers = [journal.key(key) for key in keys]
    ids = [journal.string(string) for string in strings]
    journal.close()
    contents = read_journal(journal.path)
    assert [contents.keys[n] for n in numbers] == [str(key) for key in keys]
    assert [contents.strings[i] for i in ids] == strings


@pytest.mark.parametrize(
    "key",
    [
        "\x01",
        "\x011f\x02tail",
        "\x01no number",
        "with\0zero",
        "line\nfeed",
        "('looks', like, a tuple)",
        ("it's", 1),
        ("a', 'b", 2),
        ("one",),
        (("nested", 1), 2),
        b"bytes\x00\xff",
        "snow \N{SNOWMAN} \N{OLD ITALIC LETTER A}",
        "",
    ],
)
def test_an_odd_key_comes_back_as_its_text(tmp_path: Path, key: Any) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    journal.string("something")
    number = journal.key(key)
    journal.close()
    assert read_journal(journal.path).keys == {number: str(key)}


def test_a_lone_surrogate_in_a_key_keeps_the_journal_readable(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    numbers = [journal.key(key) for key in ("before", "\udc80odd", "after")]
    journal.close()
    keys = read_journal(journal.path).keys
    assert keys[numbers[0]] == "before"
    assert keys[numbers[2]] == "after"
    assert keys[numbers[1]].endswith("odd")


def test_long_keys_are_cut_and_stay_different(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    numbers = [journal.key(key) for key in ("x" * 10_000, "x" * 10_001, "short", "y" * MAX_KEY)]
    journal.close()
    keys = read_journal(journal.path).keys
    one, other = keys[numbers[0]], keys[numbers[1]]
    assert one.startswith("x" * 200)
    assert other.startswith("x" * 200)
    assert one != other
    assert keys[numbers[2]] == "short"
    assert keys[numbers[3]] == "y" * MAX_KEY


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents=st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=10).filter(lambda name: name != "kind"),
            st.one_of(st.text(max_size=50), st.integers(), st.booleans(), st.none()),
            max_size=6,
        ),
        max_size=8,
    )
)
def test_documents_come_back_in_order(tmp_path: Path, documents: list[dict[str, Any]]) -> None:
    journal = Journal(_new_path(tmp_path), META)
    for document in documents:
        journal.meta({"kind": "test", **document})
    journal.close()
    read = read_journal(journal.path).documents("test")
    assert read == [{"kind": "test", **document} for document in documents]


def test_a_document_too_long_for_a_block_says_what_it_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    journal.meta({"kind": "worker", "name": "w", "long": "x" * 5000})
    journal.close()
    (document,) = read_journal(journal.path).documents("worker")
    assert document == {"kind": "worker", "name": "w", "left_out": ["long"]}


def test_records_of_many_threads_are_all_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    count = 2000

    def work(thread: int) -> None:
        record = journal.timed_recorder(Stream.STARTS)
        for i in range(count):
            record(10**15 + i, thread * count + i, journal.key(f"k{thread}-{i}"), thread)
            journal.string(f"shared {i % 50}")

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    contents = read_journal(journal.path)
    starts = contents.records[Stream.STARTS]
    assert sorted(starts["sequence"].tolist()) == list(range(4 * count))
    for sequence, key in zip(starts["sequence"].tolist(), starts["key"].tolist(), strict=True):
        assert contents.keys[key] == f"k{sequence // count}-{sequence % count}"
    assert sorted(contents.strings.values()) == sorted(f"shared {i}" for i in range(50))


def test_a_journal_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    record = journal.timed_recorder(Stream.STORED)
    for i in range(1000):
        record(10**15 + i, i, i)
        if i % 100 == 99:
            assert len(read_journal(journal.path).records[Stream.STORED]) == i + 1
    journal.close()


def test_a_closed_journal_gives_back_the_space_it_reserved(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    assert journal.path.stat().st_size == FIRST_SEGMENT
    journal.close()
    assert journal.path.stat().st_size == BLOCK
    assert journal.path.stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------------------ damage


class _Written:
    """A small closed journal with a few records in every stream."""

    def __init__(self, folder: Path) -> None:
        journal = Journal(folder / "small.journal", META)
        chance = random.Random(1)
        time_ns = 10**15
        for stream, fields in RECORDS.items():
            record = _record(journal, stream)
            for i in range(3):
                if stream is Stream.TRANSITIONS:
                    record(time_ns + i, 5 + i, 0x49)
                    continue
                codes = [code for _, code in fields]
                row: list[Any] = [chance.randrange(60_000) for _ in codes]
                row = [float(v) if c == "f" else v for v, c in zip(row, codes, strict=True)]
                if stream in TIMED:
                    row[0] = time_ns + i
                record(*row)
        for key in ("text-1", ("name-abc", 0, 1), ("name-abc", 0, 2), ("other-abc", 0, 1), b"b"):
            journal.key(key)
        for text in ("numpy.ndarray|float64|(3,)", "steal"):
            journal.string(text)
        journal.meta({"kind": "worker", "name": "w"})
        journal.close()
        self.path = journal.path
        self.data = journal.path.read_bytes()
        self.contents = read_journal(journal.path)
        self.rows = {s: set(map(_comparable, _read_rows(self.contents, s))) for s in RECORDS}
        self.documents = [json.dumps(m, sort_keys=True) for m in self.contents.meta]
        self.used = [
            offset
            for block in range(0, len(self.data), BLOCK)
            for offset in range(block, block + self._end(block) + 8)
        ]

    def _end(self, block: int) -> int:
        return max(int.from_bytes(self.data[block + o : block + o + 4], "little") for o in (40, 48))

    def check(self, damaged: bytes) -> JournalContents | None:
        """Read a damaged copy: no exception but JournalError, no row that was not written."""
        copy = self.path.with_name("damaged.journal")
        copy.write_bytes(damaged)
        try:
            read = read_journal(copy)
        except JournalError:
            return None
        for stream in RECORDS:
            made_up = set(map(_comparable, _read_rows(read, stream))) - self.rows[stream]
            assert not made_up, stream
        assert read.strings.items() <= self.contents.strings.items()
        assert read.keys.items() <= self.contents.keys.items()
        for document in read.meta:
            assert json.dumps(document, sort_keys=True) in self.documents
        return read


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> _Written:
    return _Written(tmp_path_factory.mktemp("small"))


def test_cut_off_anywhere_it_gives_what_is_whole(written: _Written) -> None:
    blocks = 0
    for length in range(0, len(written.data), 7):
        read = written.check(written.data[:length])
        blocks = read.blocks if read else 0
        # a block is whole as soon as its records are, whatever follows them
        assert blocks >= length // BLOCK
    used = sorted(written.used)
    for length in used:
        written.check(written.data[:length])


def test_any_flipped_bit_that_is_used_costs_rows_but_makes_none_up(written: _Written) -> None:
    # every bit of the headers and records, on a sample of them all
    chance = random.Random(2)
    bits = [offset * 8 + bit for offset in written.used for bit in range(8)]
    sample = bits if os.environ.get("DASF_HPC_SLOW") else chance.sample(bits, 4000)
    for position in sample:
        damaged = bytearray(written.data)
        damaged[position // 8] ^= 1 << position % 8
        read = written.check(bytes(damaged))
        assert read is not None, "one bit must not cost the whole journal"


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_of_any_kind_is_no_exception(written: _Written, data: st.DataObject) -> None:
    damaged = bytearray(written.data)
    size = len(damaged)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, size - 1))
        change = data.draw(st.binary(min_size=1, max_size=64))
        what = data.draw(st.sampled_from(["overwrite", "zero", "repeat a block"]))
        if what == "overwrite":
            damaged[start : start + len(change)] = change
        elif what == "zero":
            damaged[start : start + 512] = bytes(len(damaged[start : start + 512]))
        else:
            block = start // BLOCK * BLOCK
            damaged += damaged[block : block + BLOCK]
    written.check(bytes(damaged))


def test_a_damaged_block_is_counted(written: _Written) -> None:
    damaged = bytearray(written.data)
    damaged[BLOCK + HEADER] ^= 1
    damaged[BLOCK + 40 : BLOCK + 56] = bytes(range(16))
    read = written.check(bytes(damaged))
    assert read is not None
    assert read.damaged == 1
    assert read.blocks == written.contents.blocks - 1


@pytest.mark.parametrize("content", [b"", b"no journal", bytes(BLOCK), os.urandom(3 * BLOCK)])
def test_a_file_that_is_no_journal_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="is not a journal") as raised:
        read_journal(path)
    assert "\n" not in str(raised.value)


def test_a_missing_journal_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        read_journal(tmp_path / "none.journal")
    with pytest.raises(JournalError, match="cannot be read"):
        read_journal(tmp_path)


def test_a_journal_of_another_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "VERSION", 9)
    journal = Journal(tmp_path / "a.journal", META)
    journal.close()
    monkeypatch.undo()
    with pytest.raises(JournalError, match="format version 9"):
        read_journal(journal.path)


# ------------------------------------------------------------------------------ killed writers

_KILLED_WRITER = """
import os, sys, threading, time
from pathlib import Path
from dasf_hpc.profile.journal import Journal, Stream

journal = Journal(Path(sys.argv[1]), {"role": "worker"})

def work(thread):
    started = journal.timed_recorder(Stream.STARTS)
    transition = journal.transition_recorder()
    for i in range(10**9):
        number = journal.key(("key-%d" % thread, i))
        started(time.monotonic_ns(), i, number, thread)
        transition(time.monotonic_ns(), number, 0x34)
        os.write(1, b"%d %d\\n" % (thread, i))

for thread in (1, 2):
    threading.Thread(target=work, args=(thread,)).start()
"""


@pytest.mark.parametrize("lines", [1, 57, 400, 5000])
def test_a_killed_writer_loses_nothing(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "a.journal"
    child = subprocess.Popen(
        [sys.executable, "-c", _KILLED_WRITER, str(path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    stored = {tuple(map(int, line.split())) for line in told if line.endswith(b"\n")}
    assert len(stored) >= lines

    contents = read_journal(path)
    starts = contents.records[Stream.STARTS]
    assert stored <= set(zip(starts["thread"].tolist(), starts["sequence"].tolist(), strict=True))
    for row in starts:
        if (row["thread"], row["sequence"]) in stored:
            assert contents.keys[row["key"]] == f"('key-{row['thread']}', {row['sequence']})"
    moved = set(contents.records[Stream.TRANSITIONS]["key"].tolist())
    known = {contents.keys[key] for key in moved}
    assert {f"('key-{thread}', {i})" for thread, i in stored} <= known
    assert contents.documents("end") == []


# ------------------------------------------------------------------------------ full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted (run as root): {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_recording_goes_on_and_the_gap_is_named(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    journal = Journal(small_disk / "a.journal", META)
    ballast.write_bytes(bytes(350 * 1024))
    record = journal.timed_recorder(Stream.STORED)
    begin = time.monotonic_ns()
    total = 0
    while not journal.dropped:
        record(time.monotonic_ns(), total, total)
        total += 1
        assert total < 10**6
    for _ in range(1000):
        record(time.monotonic_ns(), total, total)
        total += 1
    full = read_journal(journal.path)
    assert len(full.records[Stream.STORED]) == total - journal.dropped
    assert journal.dropped >= 1000

    ballast.unlink()
    time.sleep(RETRY_S + 0.1)
    for _ in range(1000):
        record(time.monotonic_ns(), total, total)
        total += 1
    dropped = journal.dropped
    journal.close()
    contents = read_journal(journal.path)
    assert contents.damaged == 0
    keys = contents.records[Stream.STORED]["key"]
    assert len(keys) == total - dropped
    assert keys[-1000:].tolist() == list(range(total - 1000, total))
    (gap,) = contents.documents("gap")
    assert gap["count"] == dropped
    assert gap["reason"] == "ENOSPC"
    assert begin <= gap["start"] < gap["stop"] <= time.monotonic_ns()
    (end,) = contents.documents("end")
    assert end["dropped"] == dropped


def test_strings_keep_their_ids_over_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    journal = Journal(small_disk / "a.journal", META)
    ballast.write_bytes(bytes(400 * 1024))
    written: dict[int, str] = {}
    while not journal.dropped:
        text = f"key {len(written)} " + "x" * 200
        written[journal.key(text)] = text
    for i in range(10):
        written[journal.key(f"lost {i}")] = f"lost {i}"
    ballast.unlink()
    time.sleep(RETRY_S + 0.1)
    for i in range(10):
        written[journal.key(f"later {i}")] = f"later {i}"
    journal.close()
    keys = read_journal(journal.path).keys
    assert keys.items() <= written.items()
    assert {f"later {i}" for i in range(10)} <= set(keys.values())
    assert len(written) - len(keys) == journal.dropped


def test_a_disk_that_is_full_from_the_start_is_an_error(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(500 * 1024))
    with pytest.raises(OSError, match="No space left"):
        Journal(small_disk / "a.journal", META)
    assert not (small_disk / "a.journal").exists()
