"""The journal gives back what was written, whatever became of the file or of its writer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasf_hpc.profile import drain as drain_module
from dasf_hpc.profile import journal as journal_module
from dasf_hpc.profile.drain import END_OFFSET, FREE, HEADER, RETRY_S, STATE_OFFSET, Drain
from dasf_hpc.profile.journal import (
    BLOCK,
    CLOSE_WAIT_S,
    MAX_KEY,
    MEMORY,
    RECORD_SIZES,
    RECORDS,
    Journal,
    JournalContents,
    JournalError,
    Stream,
    read_journal,
)
from dasf_hpc.profile.link import RecorderLink, drain

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
    return journal.recorder(stream)


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
        record = journal.recorder(Stream.STARTS)
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
    record = journal.recorder(Stream.STORED)
    for i in range(1000):
        record(10**15 + i, i, i)
        if i % 100 == 99:
            journal.flush()
            assert len(read_journal(journal.path).records[Stream.STORED]) == i + 1
    journal.close()


def test_a_journals_file_holds_its_blocks_and_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META)
    assert journal.path.stat().st_size == BLOCK
    record = journal.recorder(Stream.EDGES)
    for i in range(10_000):
        record(i, i)
    journal.close()
    assert journal.path.stat().st_size == read_journal(journal.path).blocks * BLOCK
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_places_in_memory_are_used_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META, alone=False, limit=16 * BLOCK)
    record = journal.recorder(Stream.EDGES)
    for i in range(100_000):
        record(i, i)
        if i % 1000 == 0:
            assert journal.flush()
    journal.close()
    contents = read_journal(journal.path)
    assert journal.dropped == contents.damaged == 0
    assert contents.records[Stream.EDGES]["key"].tolist() == list(range(100_000))


def test_a_thread_that_ended_holds_no_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", META, alone=False, limit=16 * BLOCK)

    def work(number: int) -> None:
        journal.recorder(Stream.STARTS)(10**15, number, number, number)

    for number in range(100):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        thread.join()
        assert journal.flush()
    journal.close()
    assert journal.dropped == 0
    starts = read_journal(journal.path).records[Stream.STARTS]
    assert sorted(starts["sequence"].tolist()) == list(range(100))


def test_the_compiled_part_has_the_layout_that_is_told_here() -> None:
    source = Path(journal_module.__file__).with_name("_recorder.c")
    if not source.exists():  # an installed package has the product alone
        source = Path(__file__).parents[1] / "dasf_hpc" / "profile" / "_recorder.c"
    defined = dict(re.findall(r"^#define (\w+) (\w+)$", source.read_text(), re.MULTILINE))
    assert int(defined["BLOCK"]) == BLOCK
    assert int(defined["HEADER"]) == HEADER
    assert int(defined["END_OFFSET"]) == END_OFFSET
    assert int(defined["MOST_KEY"]) == journal_module.MAX_KEY


# ------------------------------------------------------------------------------ publishing


def _unpublish(journal: Journal, stream: Stream, before: bytes) -> None:
    """Bring memory to where the newest record is stored and not published yet.

    A transition publishes itself, by its one store.
    """
    memory = journal._map
    for block in range(BLOCK, journal._used * BLOCK, BLOCK):
        if memory[block + 6] == stream and not journal._words[block + STATE_OFFSET >> 3]:
            if stream is Stream.TRANSITIONS:
                memory[block + HEADER + 8 : block + BLOCK] = bytes(BLOCK - HEADER - 8)
            else:
                end = block + END_OFFSET
                assert memory[end : end + 8] != before[end : end + 8]
                memory[end : end + 8] = before[end : end + 8]


@pytest.mark.parametrize("stream", list(Stream))
def test_a_record_that_was_stored_and_not_published_is_not_there(
    tmp_path: Path, stream: Stream
) -> None:
    journal = Journal(tmp_path / "a.journal", META, alone=False, limit=32 * BLOCK)
    record: Callable[[int], Any]
    if stream is Stream.META:
        record = lambda value: journal.meta({"kind": "test", "value": value})  # noqa: E731
    elif stream is Stream.KEYS:
        record = lambda value: journal.key(f"key {value}")  # noqa: E731
    elif stream is Stream.STRINGS:
        record = lambda value: journal.string(f"string {value}")  # noqa: E731
    else:
        store = _record(journal, stream)
        fields = 3 if stream is Stream.TRANSITIONS else len(RECORDS[stream])
        record = lambda value: store(*[value] * fields)  # noqa: E731

    def read() -> list[Any]:
        assert journal.flush()
        contents = read_journal(journal.path)
        assert contents.damaged == 0
        return [
            *contents.documents("test"),
            *contents.keys.values(),
            *contents.strings.values(),
            *(row for rows in contents.records.values() for row in rows.tolist()),
        ]

    record(5)
    before, memory = read(), bytes(journal._map)
    assert len(before) == 1
    record(6)
    published = bytes(journal._map)
    _unpublish(journal, stream, memory)
    assert read() == before
    journal._map[:] = published
    assert len(read()) == 2
    journal.close()


@pytest.mark.parametrize("late", ["header", "header and data"])
@pytest.mark.parametrize("stream", [Stream.EDGES, Stream.TRANSITIONS, Stream.KEYS])
def test_stores_that_another_processor_sees_late_harm_no_block_on_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Stream, late: str
) -> None:
    """A weakly ordered processor shows a block's new state before its header, or its data."""
    monkeypatch.setattr(drain_module, "SETTLE_S", 0.5)
    journal = Journal(tmp_path / "a.journal", META, alone=False)
    record: Any = journal.key if stream is Stream.KEYS else _record(journal, stream)
    memory, made = journal._map, 0

    def one_more() -> None:
        nonlocal made
        made += 1
        if stream is Stream.KEYS:
            record(f"key-{made}")
        elif stream is Stream.TRANSITIONS:
            record(10**15 + made, made, 0x49)
        else:
            record(made, made)

    def place() -> int:
        """Give the place of the stream's current block: the last one that took a record."""
        blocks = range(BLOCK, journal._used * BLOCK, BLOCK)
        (found,) = (
            b for b in blocks if memory[b + 6] == stream and not journal._words[b + 56 >> 3]
        )
        return found

    one_more()
    first = place()
    while place() == first:
        one_more()
    second = place()
    assert journal.flush()  # the first is on file and its place is free
    stale = memory[first : first + BLOCK]
    while place() == second:
        one_more()
    assert place() == first, "the place of the first block is used again"
    fresh = memory[first : first + BLOCK]

    # What the other processor sees: state and end are new, the rest is as it was.
    if late == "header and data":
        memory[first + HEADER : first + BLOCK] = (
            bytes(BLOCK - HEADER) if stream is Stream.TRANSITIONS else stale[HEADER:]
        )
    memory[first : first + 40] = stale[:40]
    turn = threading.Thread(target=journal.flush)
    turn.start()
    time.sleep(0.2)
    memory[first + HEADER : first + BLOCK] = fresh[HEADER:]
    memory[first : first + 40] = fresh[:40]
    turn.join()
    contents = read_journal(journal.path)
    assert contents.damaged == 0
    assert _numbers(contents, stream) == list(range(1, made + 1))
    journal.close()
    assert _numbers(read_journal(journal.path), stream) == list(range(1, made + 1))


def _numbers(contents: JournalContents, stream: Stream) -> list[int]:
    if stream is Stream.KEYS:
        return [int(key.removeprefix("key-")) for key in contents.keys.values()]
    numbers: list[int] = contents.records[stream]["key"].tolist()
    return numbers


def test_a_place_used_again_while_it_is_freed_is_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "a.journal", META, alone=False)
    record = journal.recorder(Stream.EDGES)
    room = (BLOCK - HEADER) // RECORD_SIZES[Stream.EDGES]
    for i in range(2 * room):
        record(i, i)
    words = journal._drain._words
    freed: list[int] = []

    class Recycles(np.ndarray[Any, Any]):
        """The drain's view of the memory; the writer goes on as soon as a place is free."""

        def __setitem__(self, where: Any, value: Any) -> None:
            super().__setitem__(where, value)
            if not freed and isinstance(value, np.uint64) and value == FREE:
                freed.append(where[0])
                record(2 * room, 2 * room)  # the second is full: this takes the place

    monkeypatch.setattr(journal._drain, "_words", words.view(Recycles))
    assert journal.flush()
    assert freed
    monkeypatch.undo()
    assert journal.flush()
    edges = read_journal(journal.path).records[Stream.EDGES]["key"].tolist()
    assert edges == list(range(2 * room + 1))
    journal.close()


#: Records as fast as it can; every field says which record it belongs to.
_RACER = """
import sys
from pathlib import Path
from dasf_hpc.profile.journal import Journal, Stream

journal = Journal(Path(sys.argv[1]), {}, alone=False)
print(journal.memory, flush=True)
record = journal.recorder(Stream.TRANSFERS)
edge = journal.recorder(Stream.EDGES)
move = journal.transition_recorder()
sys.stdin.readline()
i = 0
while True:
    i += 1
    record(i, i * 3, i * 5, i, i & 0xFFFF, i & 0xFFFF)
    edge(i, i)
    move(i * 7, i, 0x49)
    journal.key(f"key-{i}")
"""


def test_whoever_files_while_records_are_made_sees_whole_ones_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with subprocess.Popen(
        [sys.executable, "-c", _RACER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as racer:
        try:
            assert racer.stdin is not None
            assert racer.stdout is not None
            memory = int(racer.stdout.readline())
            filing = Drain(
                os.open(f"/proc/{racer.pid}/fd/{memory}", os.O_RDWR),
                os.open(path, os.O_WRONLY),
                RECORD_SIZES,
            )
            racer.stdin.write("go\n")
            racer.stdin.flush()
            turns = 0
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                assert filing.turn()
                turns += 1
        finally:
            racer.kill()
    assert filing.turn()
    contents = read_journal(path)
    assert contents.damaged == 0
    transfers, edges = contents.records[Stream.TRANSFERS], contents.records[Stream.EDGES]
    expected = np.arange(1, len(transfers) + 1)
    assert turns > 10
    assert len(transfers) > 1000
    assert (transfers["start"] == expected).all()
    assert (transfers["stop"] == 3 * expected).all()
    assert (transfers["nbytes"] == 5 * expected).all()
    assert (transfers["peer"] == expected).all()
    assert (transfers["keys"] == expected & 0xFFFF).all()
    assert len(transfers) - 1 <= len(edges) <= len(transfers)
    assert (edges["key"] == edges["dependency"]).all()
    assert (edges["key"] == np.arange(1, len(edges) + 1)).all()
    assert list(contents.keys.values()) == [f"key-{i + 1}" for i in range(len(contents.keys))]
    moves = contents.records[Stream.TRANSITIONS]
    assert len(edges) - 1 <= len(moves) <= len(edges)
    assert (moves["key"] == np.arange(1, len(moves) + 1)).all()
    assert (moves["time"] == 7 * moves["key"].astype(int)).all()
    assert len(moves) - 1 <= len(contents.keys) <= len(moves)


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


#: The same in every process, of which some run a test each.
NOISE = random.Random(0).randbytes(3 * BLOCK)


@pytest.mark.parametrize("content", [b"", b"no journal", bytes(BLOCK), NOISE])
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


# ------------------------------------------------------------------------------ kills

#: Records until it is told to end, and says so after every record.
_WRITER = """
import os, sys, threading, time
from pathlib import Path
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.link import RecorderLink, drain

path = Path(sys.argv[1])
journal = Journal(path, {"role": "worker"}, alone=False, limit=int(sys.argv[2]))
link = RecorderLink(path.parent, journal)
link.start()
ended = threading.Event()

def work(thread):
    started = journal.recorder(Stream.STARTS)
    transition = journal.transition_recorder()
    i = 0
    while not ended.is_set():
        number = journal.key(("key-%d" % thread, i))
        started(time.monotonic_ns(), i, number, thread)
        transition(time.monotonic_ns(), number, 0x34)
        os.write(1, b"%d %d\\n" % (thread, i))
        i += 1

threads = [threading.Thread(target=work, args=(thread,)) for thread in (1, 2)]
for thread in threads:
    thread.start()
sys.stdin.readline()
ended.set()
for thread in threads:
    thread.join()
begin = time.monotonic()
journal.close({}, link.file)
os.write(1, b"end %d %d\\n" % (journal.dropped, 1000 * (time.monotonic() - begin)))
"""


class _Writer:
    """A process that records, with a recorder process that files what it records."""

    def __init__(self, folder: Path, limit: int = MEMORY) -> None:
        self.path = folder / "journals" / "a.journal"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(self.path), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.told: list[bytes] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line)

    def wait_for(self, lines: int) -> None:
        until(lambda: len(self.told) >= lines, f"{lines} records")

    def recorder(self) -> psutil.Process:
        """Give the recorder process once it has the journal."""

        def find() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    # Before it becomes the recorder, a child has the files of its parent.
                    held = [file.path for file in child.open_files()]
                    if "dasf_hpc.profile.sampler" in child.cmdline() and str(self.path) in held:
                        return child
            return None

        found: psutil.Process = until(find, "a recorder that files")
        return found

    def kill(self) -> None:
        self.process.kill()
        self._listener.join()
        self.process.wait()

    def end(self) -> tuple[int, float]:
        """Have it close its journal; gives the dropped records and the seconds it took."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"end\n")
        self.process.stdin.close()
        self._listener.join()
        assert self.process.wait() == 0
        _, dropped, milliseconds = self.told.pop().split()
        return int(dropped), int(milliseconds) / 1000

    def missing(self) -> int:
        """Give the number of records that were told and that the journal does not have."""
        whole = [line for line in self.told if line.endswith(b"\n")]
        stored = {tuple(map(int, line.split())) for line in whole}
        contents = read_journal(self.path)
        assert contents.damaged == 0
        starts = contents.records[Stream.STARTS]
        known = {
            (thread, sequence)
            for thread, sequence, key in starts[["thread", "sequence", "key"]].tolist()
            if contents.keys.get(key) == f"('key-{thread}', {sequence})"
        }
        moved = {contents.keys.get(k) for k in contents.records[Stream.TRANSITIONS]["key"].tolist()}
        return len(
            {(t, i) for t, i in stored - known}
            | {(t, i) for t, i in stored if f"('key-{t}', {i})" not in moved}
        )


def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Wait until a condition gives something true and give that."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return value


@pytest.mark.parametrize("lines", [1, 57, 5000, 20_000, 40_000])
def test_a_killed_writer_loses_nothing(tmp_path: Path, lines: int) -> None:
    writer = _Writer(tmp_path)
    writer.wait_for(lines)
    writer.kill()
    assert len(writer.told) >= lines
    until(lambda: writer.missing() == 0, "all records on file")
    assert read_journal(writer.path).documents("end") == []


@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_recorder_loses_nothing(tmp_path: Path, kills: int) -> None:
    writer = _Writer(tmp_path)
    for _ in range(kills):
        recorder = writer.recorder()
        writer.wait_for(len(writer.told) + 5000)
        recorder.kill()
        writer.wait_for(len(writer.told) + 5000)
    writer.recorder()
    dropped, _ = writer.end()
    assert (dropped, writer.missing()) == (0, 0)
    assert read_journal(writer.path).documents("end")


def test_recorder_and_writer_killed_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    writer = _Writer(tmp_path)
    first = writer.recorder()
    first.kill()
    # the one that is being killed can be seen for a moment
    until(lambda: writer.recorder().pid != first.pid, "another recorder")
    writer.wait_for(len(writer.told) + 5000)
    writer.kill()
    until(lambda: writer.missing() == 0, "all records on file")


def test_a_recorder_killed_at_the_end_loses_nothing(tmp_path: Path) -> None:
    writer = _Writer(tmp_path)
    recorder = writer.recorder()
    writer.wait_for(5000)
    recorder.send_signal(signal.SIGSTOP)
    writer.wait_for(len(writer.told) + 5000)
    assert writer.process.stdin is not None
    threading.Timer(0.5, recorder.kill).start()
    dropped, seconds = writer.end()
    assert seconds < CLOSE_WAIT_S
    assert (dropped, writer.missing()) == (0, 0)


def test_a_recorder_asked_to_end_serves_until_its_writer_ends(tmp_path: Path) -> None:
    writer = _Writer(tmp_path)
    recorder = writer.recorder()
    recorder.terminate()
    writer.wait_for(len(writer.told) + 5000)
    assert writer.recorder() == recorder
    dropped, _ = writer.end()
    assert (dropped, writer.missing()) == (0, 0)
    until(lambda: not recorder.is_running(), "its end")


# ------------------------------------------------------------------------------ stalls


def test_while_the_recorder_stands_still_the_writer_goes_on_in_bounded_memory(
    tmp_path: Path,
) -> None:
    limit = 64 * BLOCK
    writer = _Writer(tmp_path, limit)
    recorder = writer.recorder()
    recorder.send_signal(signal.SIGSTOP)
    writer.wait_for(20_000)  # about 1 MB
    recorder.send_signal(signal.SIGCONT)
    writer.wait_for(len(writer.told) + 20_000)
    time.sleep(RETRY_S)
    writer.wait_for(len(writer.told) + 1000)
    dropped, _ = writer.end()
    assert dropped > 0
    contents = read_journal(writer.path)
    gaps = contents.documents("gap")
    assert sum(gap["count"] for gap in gaps) == dropped
    assert "stalled" in gaps[0]["reason"]
    (end,) = contents.documents("end")
    assert end["dropped"] == dropped
    # A start, a transition and a key are three records.
    assert 0 < writer.missing() <= dropped
    assert contents.path.stat().st_size > limit


def test_a_stalled_file_holds_up_the_end_for_a_bounded_time(tmp_path: Path) -> None:
    writer = _Writer(tmp_path)
    recorder = writer.recorder()
    writer.wait_for(1000)
    recorder.send_signal(signal.SIGSTOP)
    writer.wait_for(len(writer.told) + 1000)
    dropped, seconds = writer.end()
    assert seconds < CLOSE_WAIT_S + 3
    assert dropped == 0
    recorder.send_signal(signal.SIGCONT)
    until(lambda: writer.missing() == 0, "what was left is on file")
    until(lambda: not recorder.is_running(), "the recorder's end")


# ------------------------------------------------------------------------------ no room, no file


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


def _until_dropped(journal: Journal, total: int = 0) -> int:
    """Record until records are dropped, and a thousand more; gives how many in all."""
    record = journal.recorder(Stream.STORED)
    while not journal.dropped:
        record(time.monotonic_ns(), total, total)
        total += 1
        assert total < 10**6
    for _ in range(1000):
        record(time.monotonic_ns(), total, total)
        total += 1
    return total


def test_on_a_full_disk_recording_goes_on_and_the_gap_is_named(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    journal = Journal(small_disk / "a.journal", META, limit=64 * BLOCK)
    ballast.write_bytes(bytes(350 * 1024))
    begin = time.monotonic_ns()
    total = 0
    record = journal.recorder(Stream.STORED)
    while not journal.dropped:
        record(time.monotonic_ns(), total, total)
        total += 1
        if total % 1000 == 0:
            journal.flush()
        assert total < 10**6
    full = read_journal(journal.path)
    assert full.damaged == 0
    assert 0 < len(full.records[Stream.STORED]) < total

    ballast.unlink()
    assert journal.flush()
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


def test_on_a_disk_that_stays_full_the_gap_is_named(small_disk: Path) -> None:
    journal = Journal(small_disk / "a.journal", META)
    (small_disk / "ballast").write_bytes(bytes(400 * 1024))
    record = journal.recorder(Stream.STORED)
    total = 20_000
    for i in range(total):
        record(time.monotonic_ns(), i, i)
    journal.close()
    assert journal.dropped == 0
    contents = read_journal(journal.path)
    assert contents.damaged == 0
    assert contents.documents("end")
    (gap,) = contents.documents("gap")
    assert gap["reason"] == "ENOSPC"
    assert len(contents.records[Stream.STORED]) == total - gap["count"] > 0


def test_strings_keep_their_ids_over_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    journal = Journal(small_disk / "a.journal", META, limit=64 * BLOCK)
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
    ballast = os.open(small_disk / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(ballast, bytes(BLOCK))
    os.close(ballast)
    with pytest.raises(OSError, match="No space left"):
        Journal(small_disk / "a.journal", META)
    assert not (small_disk / "a.journal").exists()


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """Give a function that makes a folder immutable even for root, and undoes it."""
    folder = tmp_path / "journals"
    folder.mkdir()

    def change(sign: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chattr", "-R", f"{sign}i", str(folder)], capture_output=True, text=True
        )

    if shutil.which("chattr") is None:
        pytest.skip("chattr is not installed (apt-get install e2fsprogs)")
    tried = change("+")
    change("-")
    if tried.returncode:
        pytest.skip(f"no file can be made immutable: {tried.stderr.strip()}; be root, on ext4")
    yield lambda on: change("+" if on else "-").check_returncode()
    change("-")


def test_a_folder_that_turns_read_only_costs_what_memory_does_not_hold(
    tmp_path: Path, immutable: Callable[[bool], None]
) -> None:
    journal = Journal(tmp_path / "journals" / "a.journal", META, limit=64 * BLOCK)
    immutable(True)
    total = _until_dropped(journal)
    immutable(False)
    assert journal.flush()
    time.sleep(RETRY_S)
    record = journal.recorder(Stream.STORED)
    record(time.monotonic_ns(), total, total)
    journal.close()
    contents = read_journal(journal.path)
    keys = contents.records[Stream.STORED]["key"]
    assert keys[-1] == total
    assert len(keys) == total + 1 - journal.dropped
    (gap,) = contents.documents("gap")
    assert gap["count"] == journal.dropped
    assert gap["reason"] in ("EPERM", "writing to the file stalled")


def test_a_folder_that_stays_read_only_holds_up_nobody(
    tmp_path: Path, immutable: Callable[[bool], None]
) -> None:
    writer = _Writer(tmp_path, 64 * BLOCK)
    writer.recorder()
    writer.wait_for(1000)
    assert drain(writer.path.parent)
    immutable(True)
    writer.wait_for(len(writer.told) + 20_000)
    dropped, seconds = writer.end()
    assert dropped > 1000
    assert seconds < CLOSE_WAIT_S
    immutable(False)
    contents = read_journal(writer.path)
    assert contents.damaged == 0
    assert len(contents.records[Stream.STARTS]) > 0


def test_a_folder_that_disappears_holds_up_nobody(tmp_path: Path) -> None:
    writer = _Writer(tmp_path, 64 * BLOCK)
    recorder = writer.recorder()
    writer.wait_for(1000)
    shutil.rmtree(writer.path.parent)
    writer.wait_for(len(writer.told) + 20_000)
    dropped, seconds = writer.end()
    assert dropped > 1000
    assert seconds < CLOSE_WAIT_S
    assert not writer.path.exists()
    until(lambda: not recorder.is_running(), "the recorder's end")


def test_where_no_recorder_can_be_started_the_process_files_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "a.journal", META, alone=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    link = RecorderLink(tmp_path, journal)
    link.start()
    record = journal.recorder(Stream.STORED)
    record(time.monotonic_ns(), 1, 1)
    until(lambda: len(read_journal(journal.path).records[Stream.STORED]), "it is on file")
    journal.close({}, link.file)
    (document,) = read_journal(journal.path).documents("unavailable")
    assert document["what"] == "recorder"


def test_a_forked_child_that_ends_leaves_the_journal_to_its_parent(tmp_path: Path) -> None:
    source = f"""
import os, sys
from pathlib import Path
from dasf_hpc.profile.journal import Journal, Stream
journal = Journal(Path({str(tmp_path / "x.journal")!r}), {{"kind": "process"}})
record = journal.recorder(Stream.ANCHORS)
record(0, 0, 0)
if os.fork() == 0:
    sys.exit(0)
os.wait()
journal._drain.turn()
for n in range(1, 10):
    record(n, n, n)
journal.close()
"""
    subprocess.run([sys.executable, "-c", source], check=True)
    found = read_journal(tmp_path / "x.journal")
    assert found.records[Stream.ANCHORS]["utc"].tolist() == list(range(10))
