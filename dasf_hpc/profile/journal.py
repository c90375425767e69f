"""Recording: the journal, one append-only file per process that survives whatever kills its writer.

A journal is a sequence of 4096-byte blocks. Every block belongs to one *stream* (transitions,
starts, stops, ...) and holds fixed-size records of that stream, or NUL-separated text. The writer
stores records into blocks in memory that it shares with whoever copies them to the file (see
`dasf_hpc.profile.drain`): no system call and no release of the GIL on the recording path, and no
fault or stall of the file system reaches it. A record that was stored is on file within 0.1 s
whatever becomes of the writer; while the file takes nothing, blocks are kept, up to a limit, and
then records are dropped, counted and named.

In memory a record is stored first and then published, by one store of eight bytes that says where
the data of its block ends: whoever copies the block sees the whole record or none of it. A record
costs the writer these two stores and nothing else, a transition, of eight bytes, only one: it
publishes itself. Checksums are the copier's work.

On file a block's header has two slots for (end of data, CRC-32 of the data), the newest first, and
the one before it. A reader takes the slot with the larger end whose checksum is right: a write
that was torn, by a node that died, falls back to the one before it. A block whose header or data
fail their checks is skipped and counted; the next one begins at the next multiple of 4096.

Block header (64 bytes, little endian)::

    0   4s   magic  b"DHJ1"
    4   u16  format version
    6   u8   stream
    7   u8   0
    8   u64  writer: random id of the journal
    16  u32  block number, counted by the writer
    20  u32  index of the block's first record in its stream (text streams: the first string's id)
    24  i64  base time, ns of the writer's CLOCK_MONOTONIC
    32  u32  base key
    36  u32  CRC-32 of bytes 0 to 35
    40  u32  slot A: end of data in the block; 44 u32 slot A: CRC-32 of bytes 64 to end
    48  u32  slot B: end;                      52 u32 slot B: CRC-32
    56  8x   0

Times in records are unsigned 32-bit ns since the block's base time; a writer starts a new block
when 4.29 s have passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile._recorder import Recorder, Texts, Transitions
from dasf_hpc.profile.drain import BLOCK as BLOCK
from dasf_hpc.profile.drain import CRC as _CRC
from dasf_hpc.profile.drain import (
    END_OFFSET,
    FREE,
    HEADER,
    RETRY_S,
    STATE_OFFSET,
    WORDS,
    Drain,
    anonymous_memory,
    describe,
    published,
)
from dasf_hpc.profile.drain import SLOT as _SLOT
from dasf_hpc.profile.drain import SLOT_OFFSETS as _SLOT_OFFSETS

MAGIC = b"DHJ1"
VERSION = 1

#: Memory for what is not on file yet, in bytes; used as it fills. One MiB holds about 7000 tasks.
MEMORY = 64 << 20
#: Blocks that only documents may use: what was dropped must not be dropped, too.
_KEPT_FOR_META = 4

#: How long, in seconds, a journal that is closed waits for its file.
CLOSE_WAIT_S = 5.0

_HEAD = struct.Struct("<4sHBBQIIqI")
_STREAM_OFFSET = 6

#: Text longer than this, in bytes, is cut: a record must fit a block.
MAX_TEXT = BLOCK - HEADER - 1
#: Keys longer than this, in characters, are cut to a quarter and given a digest.
MAX_KEY = 900


class Stream(IntEnum):
    """What a block holds. The numbers are part of the format.

    One that is new needs no new version of it: a reader that does not know it counts its blocks as
    damaged and reads all the others.
    """

    META = 0
    STRINGS = 1
    KEYS = 2
    TRANSITIONS = 3
    STARTS = 4
    STOPS = 5
    STORED = 6
    EDGES = 7
    ACTIVITIES = 8
    TRANSFERS = 9
    RESCHEDULES = 10
    ANCHORS = 11
    PROBES = 12
    NODE_SAMPLES = 13
    GPU_SAMPLES = 14
    PROCESS_SAMPLES = 15
    STACKS = 16
    CALL_SAMPLES = 17


TEXT_STREAMS = frozenset({Stream.META, Stream.STRINGS, Stream.KEYS})

#: Fields of each record stream, in order: name and struct code. ``dt`` is the time since the
#: block's base time, which the reader turns into ``time``; ``what`` of TRANSITIONS holds the key,
#: relative to the block's base key, and the pair of states (``key << 8 | start << 4 | finish``);
#: that of CALL_SAMPLES the time for which it stands, in steps of 4 µs, how late it came, and its
#: role (``steps << 4 | late << 2 | role``).
RECORDS: dict[Stream, tuple[tuple[str, str], ...]] = {
    Stream.TRANSITIONS: (("dt", "I"), ("what", "I")),
    Stream.STARTS: (("dt", "I"), ("sequence", "I"), ("key", "I"), ("thread", "I")),
    Stream.STOPS: (
        ("dt", "I"),
        ("sequence", "I"),
        ("result", "I"),
        ("status", "I"),
        ("nbytes", "Q"),
    ),
    Stream.STORED: (("dt", "I"), ("key", "I"), ("nbytes", "Q")),
    Stream.EDGES: (("key", "I"), ("dependency", "I")),
    Stream.ACTIVITIES: (
        ("start", "q"),
        ("stop", "q"),
        ("key", "I"),
        ("action", "I"),
        ("peer", "I"),
    ),
    Stream.TRANSFERS: (
        ("start", "q"),
        ("stop", "q"),
        ("nbytes", "Q"),
        ("peer", "I"),
        ("keys", "H"),
        ("direction", "H"),
    ),
    Stream.RESCHEDULES: (("dt", "I"), ("key", "I"), ("reason", "I")),
    Stream.ANCHORS: (("before", "q"), ("utc", "q"), ("after", "q")),
    Stream.PROBES: (("t1", "q"), ("t2", "q"), ("t3", "q"), ("t4", "q")),
    Stream.NODE_SAMPLES: (
        ("dt", "I"),
        ("cpu", "f"),
        ("memory_used", "Q"),
        ("memory_available", "Q"),
        ("swap_used", "Q"),
        ("network_received", "Q"),
        ("network_sent", "Q"),
        ("disk_read", "Q"),
        ("disk_written", "Q"),
    ),
    Stream.GPU_SAMPLES: (
        ("dt", "I"),
        ("gpu", "I"),
        ("utilization", "f"),
        ("memory_utilization", "f"),
        ("memory_used", "q"),
        ("power", "f"),
        ("temperature", "f"),
        ("sm_clock", "f"),
        ("memory_clock", "f"),
        ("pcie_sent", "f"),
        ("pcie_received", "f"),
        ("nvlink_sent", "q"),
        ("nvlink_received", "q"),
    ),
    Stream.PROCESS_SAMPLES: (
        ("dt", "I"),
        ("pid", "I"),
        ("cpu", "f"),
        ("fds", "I"),
        ("threads", "I"),
        ("memory", "Q"),
    ),
    Stream.STACKS: (("stack", "I"), ("parent", "I"), ("frame", "I"), ("line", "I")),
    Stream.CALL_SAMPLES: (("dt", "I"), ("stack", "I"), ("thread", "I"), ("what", "I")),
}

_STRUCTS = {s: struct.Struct("<" + "".join(c for _, c in f)) for s, f in RECORDS.items()}
#: Bytes of a record by number of its stream.
RECORD_SIZES = {int(s): packed.size for s, packed in _STRUCTS.items()}
_NUMPY = {"I": "<u4", "H": "<u2", "Q": "<u8", "q": "<i8", "f": "<f4"}
DTYPES = {s: np.dtype([(n, _NUMPY[c]) for n, c in f]) for s, f in RECORDS.items()}

#: Task states of a Dask worker's state machine; the position is the code in TRANSITIONS. Code 0 is
#: for a state that a newer distributed invented.
STATES = (
    "unknown",
    "cancelled",
    "constrained",
    "error",
    "executing",
    "fetch",
    "flight",
    "forgotten",
    "long-running",
    "memory",
    "missing",
    "ready",
    "released",
    "rescheduled",
    "resumed",
    "waiting",
)

#: How an execution ended; the position is STOPS' ``status``.
STATUSES = ("memory", "error", "rescheduled")

#: Codes of TRANSFERS' ``direction``.
DIRECTIONS = ("incoming", "outgoing")


class JournalError(Exception):
    """A file that is not a journal this version can read; the message is one sentence."""


# ------------------------------------------------------------------------------------- writing


class Journal:
    """The writer of one journal file.

    Parameters
    ----------
    path
        The file to make; it must not exist. Its folder is made (mode 0700) when missing.
    meta
        What is known of the process at the start; the journal's first META document.
    alone
        Whether a thread of this process brings records to the file. If not, somebody else does,
        given `memory` and `file`, or `drain_here` is called.
    limit
        Bytes of memory for records that are not on file.

    Attributes
    ----------
    memory, file
        Descriptors of the shared memory and of the file, open until `close`.
    keys
        Where keys are stored; `key` gives the id of any.

    Raises
    ------
    OSError
        If the file or its first block cannot be made. Later failures never raise: records are
        counted in `dropped` and named in a META document when writing works again.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], alone: bool = True, limit: int = MEMORY
    ) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self.writer = secrets.randbits(63)
        self.dropped = 0
        self._dropped_since: int | None = None
        self._dropped_why = ""
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self._used = 1
        self.pid = os.getpid()
        self._limit = limit // BLOCK
        self._finished: deque[int] = deque()
        self._closed = False
        self._numbers = itertools.count()
        self._strings: dict[str, int] = {}
        self._definitions = threading.RLock()
        self._reported = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file = os.open(path, flags, 0o600)
        self.memory = -1
        try:
            self.memory = anonymous_memory(limit)
            self._map = mmap.mmap(self.memory, limit)
            self._words = memoryview(self._map).cast("Q")
            self._append_meta = self._texts(Stream.META).append
            self._append_string = self._texts(Stream.STRINGS).append
            self.keys = self._texts(Stream.KEYS)
            self._drain = Drain(os.dup(self.memory), os.dup(self.file), RECORD_SIZES)
            self.meta({"kind": "journal", "version": VERSION, **meta})
            if not self._drain.turn():
                raise OSError(self._drain.failure, os.strerror(self._drain.failure))
        except OSError:
            for descriptor in (self.memory, self.file):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if alone:
            self.drain_here()

    # -- blocks

    def _take(self, stream: Stream) -> int:
        """Give a place in memory that is free, 0 where there is none; the lock is held."""
        finished = self._finished
        if finished and self._words[finished[0] + STATE_OFFSET >> 3] == FREE:
            return finished.popleft()
        if self._used >= self._limit - (0 if stream is Stream.META else _KEPT_FOR_META):
            return 0
        start = self._used * BLOCK
        self._used += 1
        return start

    def block(self, stream: Stream, first: int, base: int, base_key: int) -> int:
        """Give the place in memory of a new block, its header written; 0 where there is no space.

        Parameters
        ----------
        stream, first, base, base_key
            Header fields, see the module's text.
        """
        with self._lock:
            if self._closed:
                return 0
            wait = self._retry_at and stream is not Stream.META
            if wait and time.monotonic() < self._retry_at:
                return 0
            start = self._take(stream)
            if not start:
                self._retry_at = time.monotonic() + RETRY_S
                self._dropped_why = describe(self._drain.failure)
                return 0
            self._retry_at = 0.0
            head = _HEAD.pack(
                MAGIC,
                VERSION,
                stream,
                0,
                self.writer,
                next(self._numbers),
                first & 0xFFFFFFFF,
                base,
                base_key,
            )
            # A free place has no end, and until its state says that it is used it is not read.
            if stream in WORDS:
                self._map[start + HEADER : start + BLOCK] = bytes(BLOCK - HEADER)
            self._map[start : start + END_OFFSET] = head + _CRC.pack(zlib.crc32(head))
            self._words[start + STATE_OFFSET >> 3] = 0
        if self._dropped_since is not None and stream is not Stream.META:
            self._name_gap()
        return start

    def finish(self, start: int) -> int:
        """Take back a block into which nothing more will be stored; gives the end of its data."""
        if self._map[start + _STREAM_OFFSET] in WORDS:
            size = WORDS[self._map[start + _STREAM_OFFSET]]
            data = np.frombuffer(self._map[start + HEADER : start + BLOCK], "<u8")
            end = HEADER + published(data, size)
        else:
            end = max(self._words[start + END_OFFSET >> 3] - start, HEADER)
        self._words[start + STATE_OFFSET >> 3] = end
        self._finished.append(start)
        return end

    # -- the file

    def flush(self) -> bool:
        """Write what was recorded so far to the file; False where that failed."""
        return self._drain.turn()

    def drain_here(self) -> None:
        """Have a thread of this process bring records to the file from now on."""
        self._drain.start()

    def drop(self) -> None:
        """Count a record that could not be stored."""
        self.dropped += 1
        if self._dropped_since is None:
            self._dropped_since = time.monotonic_ns()

    def _name_gap(self) -> None:
        since, self._dropped_since = self._dropped_since, None
        self.meta(
            {
                "kind": "gap",
                "start": since,
                "stop": time.monotonic_ns(),
                "count": self.dropped - self._reported,
                "reason": self._dropped_why or "a record could not be made",
            }
        )
        self._reported = self.dropped

    # -- streams

    def records(self, stream: Stream) -> Recorder:
        """Give what stores the records of a stream in one thread, of which `recorder` is a part."""
        codes = "".join(code for _, code in RECORDS[stream])
        timed = RECORDS[stream][0][0] == "dt"
        return Recorder(self._map, codes, timed, _Block(self, stream).renew)

    def recorder(self, stream: Stream) -> Callable[..., None]:
        """Give a function that stores one record of a stream.

        The function takes the record's fields in their order, in the place of ``dt`` the time, ns
        of CLOCK_MONOTONIC. It belongs to one thread: each thread asks for its own. A field that is
        no number of its range is refused (TypeError, OverflowError), and nothing is stored.
        """
        return self.records(stream).record

    def transitions(self) -> Transitions:
        """Give what stores transitions in one thread, of which `transition_recorder` is a part."""
        return Transitions(self._map, _Block(self, Stream.TRANSITIONS).renew)

    def transition_recorder(self) -> Callable[[int, int, int], None]:
        """Give the function ``record(time_ns, key, states)``; states are ``start << 4 | finish``.

        It belongs to one thread.
        """
        return self.transitions().record

    def _texts(self, stream: Stream) -> Texts:
        """Give what appends to a text stream, from any thread."""
        return Texts(self._map, _Block(self, stream).renew)

    def string(self, text: str) -> int:
        """Give the id of a string, storing it the first time."""
        number = self._strings.get(text)
        if number is None:
            with self._definitions:
                number = self._strings.get(text)
                if number is None:
                    number = self._strings[text] = self._append_string(text)
        return number

    def key(self, key: Any) -> int:
        """Store a task's key and give its id. The caller remembers the id for as long as it needs.

        The head of a tuple's text (``('name-token``), which many keys share, is stored once.
        """
        if type(key) is str and len(key) <= MAX_KEY and key[:1] != "\x01":
            return self.keys.append(key)
        text = str(key)
        if type(key) is tuple and "', " in text:
            head, _, tail = text.partition("', ")
            text = f"\x01{self.string(head):x}\x02{tail}"
        elif text[:1] == "\x01":
            text = f"\x01\x02{text}"
        if len(text) > MAX_KEY:
            # Cut, but still another text than that of another key with the same beginning.
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            text = f"{text[: MAX_KEY // 4]}…{digest}"
        return self.keys.append(text)

    def meta(self, document: Mapping[str, Any]) -> None:
        """Store a META document (JSON); one too long is stored without its longest values."""
        document = dict(document)
        text = json.dumps(document, default=str)
        while len(text.encode()) > MAX_TEXT:
            candidates = [k for k in document if k not in ("kind", "left_out")]
            if not candidates:
                return
            longest = max(candidates, key=lambda k: len(str(document[k])))
            document.pop(longest)
            document["left_out"] = [*document.get("left_out", []), longest[:40]][:20]
            text = json.dumps(document, default=str)
        self._append_meta(text)

    def close(
        self,
        meta: Mapping[str, Any] | None = None,
        elsewhere: Callable[[], bool] | None = None,
    ) -> None:
        """Name what was dropped, store a last META document and wait, bounded, for the file.

        Parameters
        ----------
        meta
            More for the last document.
        elsewhere
            Has somebody else write the rest to the file; where it gives False it is done here.
        """
        if self._closed:
            return
        if self.dropped > self._reported:
            self._name_gap()
        self.meta(
            {"kind": "end", "time": time.monotonic_ns(), "dropped": self.dropped, **(meta or {})}
        )
        with self._lock:
            self._closed = True
        if elsewhere is None or not elsewhere():
            self._drain.start()
            self._drain.finish(RETRY_S)
            self._drain.join(CLOSE_WAIT_S)
        self._finished.clear()
        # The memory stays: another thread may still hold a block of it.
        os.close(self.memory)
        os.close(self.file)

    @property
    def closed(self) -> bool:
        """Whether `close` was called: no new block is given out after it."""
        return self._closed


class _Block:
    """The current block of one stream in one thread."""

    __slots__ = ("count", "journal", "start", "stream")

    def __init__(self, journal: Journal, stream: Stream) -> None:
        self.journal = journal
        self.stream = stream
        self.start = 0
        self.count = 0

    def renew(self, base: int, base_key: int, first: int) -> int:
        """Go on in a new block; 0, with the record counted as dropped, where there is none.

        Parameters
        ----------
        base, base_key
            Header fields, see the module's text.
        first
            Index of the block's first record; -1 counts the records.
        """
        self.__del__()
        self.start = self.journal.block(
            self.stream, self.count if first < 0 else first, base, base_key
        )
        if not self.start:
            self.journal.drop()
        return self.start

    def __del__(self) -> None:
        # Also when the thread ends to which the block belonged; but not when a forked child does,
        # which shares the memory: the block is still its parent's.
        if self.start and self.journal.pid == os.getpid():
            size = RECORD_SIZES.get(self.stream, 1)
            self.count += (self.journal.finish(self.start) - HEADER) // size
            self.start = 0


# ------------------------------------------------------------------------------------- reading


@dataclass
class JournalContents:
    """What a reader found in one journal file.

    Attributes
    ----------
    path
        The file.
    writer
        Random id of the journal; two files with the same id are copies of one.
    records
        For each record stream, a structured array; ``dt`` is replaced by ``time`` (int64, ns of
        the writer's CLOCK_MONOTONIC), TRANSITIONS' word by ``key``, ``start`` and ``finish``.
    strings, keys
        Text by id; an id that was lost is missing.
    meta
        META documents in the order they were written.
    blocks, damaged
        Number of whole blocks read and of blocks given up.
    """

    path: Path
    writer: int = 0
    records: dict[Stream, NDArray[np.void]] = field(default_factory=dict)
    strings: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    meta: list[dict[str, Any]] = field(default_factory=list)
    blocks: int = 0
    damaged: int = 0

    def documents(self, kind: str) -> list[dict[str, Any]]:
        """Give the META documents of one kind."""
        return [m for m in self.meta if m.get("kind") == kind]


@dataclass(frozen=True)
class _ReadBlock:
    stream: Stream
    writer: int
    number: int
    first: int
    base: int
    base_key: int
    data: bytes


def _committed(block: memoryview) -> tuple[bytes | None, bool]:
    """Give the data of a block as of its last whole commit, and whether a later one is damaged.

    The data is None where no slot checks out, and empty where the writer stopped between the
    header and the first commit.
    """
    slots = sorted((_SLOT.unpack_from(block, o) for o in _SLOT_OFFSETS), reverse=True)
    for position, (end, crc) in enumerate(slots):
        if HEADER < end <= len(block):
            data = bytes(block[HEADER:end])
            if zlib.crc32(data) == crc:
                return data, position > 0
        elif end == 0 and crc == 0:
            return (b"", False) if position == 0 else (None, True)
    return None, True


def _read_blocks(data: memoryview, contents: JournalContents) -> Iterator[_ReadBlock]:
    versions = set()
    for offset in range(0, len(data), BLOCK):
        block = data[offset : offset + BLOCK]
        if len(block) < HEADER or bytes(block[:4]) != MAGIC:
            # Reserved and never used reads as zeros; anything else is damage.
            if block.tobytes().strip(b"\0"):
                contents.damaged += 1
            continue
        _, version, stream, _, writer, number, first, base, base_key = _HEAD.unpack_from(block)
        if zlib.crc32(block[:36]) != _CRC.unpack_from(block, 36)[0]:
            contents.damaged += 1
            continue
        if version != VERSION:
            versions.add(version)
            contents.damaged += 1
            continue
        payload, torn = _committed(block)
        contents.damaged += torn
        if payload is None:
            continue
        if stream not in Stream._value2member_map_:
            contents.damaged += 1
            continue
        contents.blocks += 1
        yield _ReadBlock(Stream(stream), writer, number, first, base, base_key, payload)
    if versions and not contents.blocks:
        found = ", ".join(map(str, sorted(versions)))
        raise JournalError(
            f"{contents.path} is a journal of format version {found}; this dasf-hpc reads version "
            f"{VERSION}: merge it with the dasf-hpc that recorded it."
        )


def _decode_text(raw: bytes) -> str:
    return raw.replace(b"\xc0\x80", b"\0").decode("utf-8", "replace")


def _split_text(data: bytes) -> list[str]:
    """Give the strings of a block."""
    if b"\xc0\x80" in data:
        return [_decode_text(raw) for raw in data.split(b"\0")[:-1]]
    return data.decode("utf-8", "replace").split("\0")[:-1]


def _complete_keys(contents: JournalContents) -> None:
    """Put the heads, which are stored once, before the keys of tuples."""
    keys, strings = contents.keys, contents.strings
    heads: dict[str, str | None] = {"": ""}
    lost = []
    for number, text in keys.items():
        if text[:1] != "\x01":
            continue
        code, _, tail = text[1:].partition("\x02")
        if code not in heads:
            head = strings.get(int(code, 16))
            heads[code] = None if head is None else f"{head}', "
        head = heads[code]
        if head is None:  # without its head it could be taken for another key
            lost.append(number)
        else:
            keys[number] = head + tail
    for number in lost:
        del keys[number]


def _decode_records(stream: Stream, blocks: list[_ReadBlock]) -> NDArray[np.void]:
    dtype = DTYPES[stream]
    lengths = [len(b.data) // dtype.itemsize for b in blocks]
    raw = np.frombuffer(
        b"".join(b.data[: n * dtype.itemsize] for b, n in zip(blocks, lengths, strict=True)), dtype
    )
    if "dt" not in (dtype.names or ()):
        return raw
    base = np.repeat(np.array([b.base for b in blocks], np.int64), lengths)
    times = base + raw["dt"].astype(np.int64)
    if stream is Stream.TRANSITIONS:
        base_key = np.repeat(np.array([b.base_key for b in blocks], np.uint32), lengths)
        out = np.empty(
            len(raw), [("time", "<i8"), ("key", "<u4"), ("start", "u1"), ("finish", "u1")]
        )
        out["key"] = base_key + (raw["what"] >> 8)
        out["start"] = raw["what"] >> 4 & 15
        out["finish"] = raw["what"] & 15
    else:
        names = [n for n in dtype.names or () if n != "dt"]
        out = np.empty(len(raw), [("time", "<i8"), *((n, dtype[n]) for n in names)])
        for name in names:
            out[name] = raw[name]
    out["time"] = times
    return out


def read_journal(path: Path) -> JournalContents:
    """Read a journal up to its last whole commit, skipping and counting what is damaged.

    Parameters
    ----------
    path
        A journal, whole or not, of a writer that ended, was killed or is still writing.

    Returns
    -------
    JournalContents

    Raises
    ------
    JournalError
        If the file cannot be opened, holds no block at all, or is of another format version.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from None
    contents = JournalContents(path)
    streams: dict[Stream, list[_ReadBlock]] = {s: [] for s in Stream}
    seen: set[int] = set()
    for block in _read_blocks(data, contents):
        if not contents.writer:
            contents.writer = block.writer
        if block.writer != contents.writer or block.number in seen:
            contents.blocks -= 1
            contents.damaged += 1
            continue
        seen.add(block.number)
        streams[block.stream].append(block)
    if not contents.blocks:
        raise JournalError(f"{path} is not a journal, or nothing in it is whole.")

    for stream in (Stream.STRINGS, Stream.KEYS):
        target = contents.strings if stream is Stream.STRINGS else contents.keys
        for block in streams[stream]:
            target.update(enumerate(_split_text(block.data), block.first))
    _complete_keys(contents)
    for block in sorted(streams[Stream.META], key=lambda b: b.first):
        for raw in block.data.split(b"\0")[:-1]:
            with contextlib.suppress(ValueError):
                document = json.loads(_decode_text(raw))
                if isinstance(document, dict):
                    contents.meta.append(document)
    for stream in RECORDS:
        contents.records[stream] = _decode_records(stream, streams[stream])
    return contents
