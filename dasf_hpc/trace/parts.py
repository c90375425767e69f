"""Trace, first step of a merge: a journal becomes a part, its records as columns sorted by time.

A part is made from its journal alone, wherever that lies: its times are raw, its keys and strings
are numbered within it. All that a merge has to do after that is to move rows, not to search them:
keys are numbered by their first execution, and what another journal may know of a key is found by
the key's digest. The columns lie one after the other in a file; what is small is in `Part`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import key_split
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from dasf_hpc.profile.journal import (
    DIRECTIONS,
    STATES,
    STATUSES,
    JournalContents,
    Stream,
    read_journal,
)
from dasf_hpc.trace import call_stacks
from dasf_hpc.trace.store import Strings, storable

Array = NDArray[Any]

#: Codes of `task_states`: how an execution ended, and of those that never did.
TASK_STATES = (*STATUSES, "lost", "abandoned")

_MEMORY = STATES.index("memory")
_NONE = 0xFFFFFFFF

#: Keys whose digests are made at once: what that needs stays in a core's cache.
_DIGESTS_AT_ONCE = 1 << 13


#: By name of a column: its offset in a file, its type and the number of its values.
Index = dict[str, tuple[int, str, int]]

#: What is known of a key in a part, besides its first digest: read together, as one piece.
KNOWN_KEY = np.dtype(
    [
        ("digest2", "<u8"),
        ("start", "<i8"),
        ("key", "<i4"),
        ("execution", "<i4"),
        ("wanted", "<i8"),
    ]
)


@dataclass(slots=True)
class Part:
    """A journal's columns, and what of it is small.

    Attributes
    ----------
    file
        The file with the columns, by name (``table.column``).
    name
        The journal's file name.
    writer
        The journal's random id: two journals with an equal one are copies.
    size
        Records and texts in it.
    events
        Records in it.
    damaged
        Blocks of it that were given up.
    meta
        Its META documents.
    span
        First and last raw time in it, None where nothing carries one.
    probes, anchors
        Its round trips to the scheduler and readings of UTC, a row each.
    texts
        By dictionary, the strings to which the codes in columns point.
    numbers
        By what they are, numbers to which codes in columns point: ``gpus``, ``pids``.
    keys, executed
        Number of distinct keys, and of those that were executed, which come first.
    longest_key
        Bytes of the longest key.
    lone_stops
        Stops without a start.
    unknown_keys
        Executions of which the key is not known.
    repeats
        Executions that are not the first one of a known key.
    stacks
        Calls within calls, see `dasf_hpc.trace.call_stacks`.
    unknown_stacks
        Samples of calls of which the calls are not known, or not all.
    known_keys
        Where in the file the digests of the keys lie, and with each a `KNOWN_KEY`.
    """

    file: Path
    name: str
    writer: int = 0
    size: int = 0
    events: int = 0
    damaged: int = 0
    meta: list[dict[str, Any]] = field(default_factory=list)
    span: tuple[int, int] | None = None
    probes: Array = field(default_factory=lambda: np.empty((0, 4), np.int64))
    anchors: Array = field(default_factory=lambda: np.empty((0, 3), np.int64))
    texts: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    keys: int = 0
    executed: int = 0
    longest_key: int = 0
    lone_stops: int = 0
    unknown_keys: int = 0
    repeats: int = 0
    stacks: int = 0
    unknown_stacks: int = 0
    known_keys: Index = field(default_factory=dict)

    def documents(self, kind: str) -> list[dict[str, Any]]:
        """Give the META documents of one kind."""
        return [m for m in self.meta if m.get("kind") == kind]

    def forget(self) -> None:
        """Let go of what the steps do not need that move rows."""
        self.meta, self.texts = [], {}
        self.probes = np.empty((0, 4), np.int64)

    @contextlib.contextmanager
    def opened(self) -> Iterator[ColumnFile]:
        """Give the columns to read."""
        with ColumnFile(self.file) as columns:
            yield columns


#: By table, the column that tells the number of its rows in a part, and orders them.
ROW_COUNTS = {
    "tasks": "start",
    "transitions": "time",
    "memory": "transition",
    "activities": "start",
    "transfers": "start",
    "reschedules": "time",
    "node_samples": "time",
    "gpu_samples": "time",
    "process_samples": "time",
    "call_samples": "start",
}


_INDEX = struct.Struct("<QQ")

#: Rows of a column that are put in order at once.
_ROWS_AT_ONCE = 1 << 20


class ColumnFile:
    """Columns that lie one after the other in a file, and after them their index.

    Parameters
    ----------
    path
        The file.
    columns
        Its index, by default read from it.
    """

    def __init__(self, path: Path, columns: Index | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._map: mmap.mmap | None = None
        if columns is None:
            end = os.fstat(self._descriptor).st_size - _INDEX.size
            offset, length = _INDEX.unpack(os.pread(self._descriptor, _INDEX.size, end))
            columns = json.loads(os.pread(self._descriptor, length, offset))
        self._columns: Index = columns

    def __enter__(self) -> ColumnFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read some rows of a column."""
        offset, dtype, count = self._columns[name]
        size = np.dtype(dtype).itemsize
        stop = count if stop is None else stop
        length = max(0, stop - start) * size
        data = os.pread(self._descriptor, length, offset + start * size) if length else b""
        while len(data) < length:  # a read may give less than asked for, above all at 2 GiB
            more = os.pread(self._descriptor, length - len(data), offset + start * size + len(data))
            if not more:
                raise OSError(f"a file of the merge is cut short at column {name}")
            data += more
        return np.frombuffer(data, dtype)

    def mapped(self, name: str) -> Array:
        """Give a column to look at in few places, also after this was closed."""
        offset, dtype, count = self._columns[name]
        if not count:
            return np.empty(0, dtype)
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        return np.frombuffer(self._map, dtype, count, offset)


class ColumnFileWriter:
    """Writes columns one after the other into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: Index = {}
        # beside, then renamed: a task that Dask runs twice must not tear what another reads
        self._beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
        self._file = self._beside.open("wb")
        self._offset = 0

    def put(self, name: str, values: Array, order: Array | None = None) -> None:
        """Append a column.

        Parameters
        ----------
        name
            Its name.
        values
            Its rows.
        order
            Which row comes when; without it they stay as they are. Of a long column only a part
            is put in order at once.
        """
        self._file.write(bytes(-self._offset % 8))
        self._offset += -self._offset % 8
        self.columns[name] = (self._offset, values.dtype.str, len(values))
        for first in range(0, len(values), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            chosen = values[part] if order is None else values[order[part]]
            self._file.write(np.ascontiguousarray(chosen).data)
        self._offset += values.nbytes

    def close(self) -> None:
        """Write the index and give the file its name."""
        index = json.dumps(self.columns).encode()
        self._file.write(index + _INDEX.pack(self._offset, len(index)))
        self._file.close()
        self._beside.replace(self.path)


def make_part(journal: Path, folder: Path, number: int) -> Part:
    """Turn a journal into a part.

    Parameters
    ----------
    journal
        The journal.
    folder, number
        Where the part's file goes, and its number there.

    Raises
    ------
    JournalError
        If the journal cannot be read.
    """
    return _Maker(read_journal(journal), folder / f"{number}.part").make()


class _Maker:
    def __init__(self, contents: JournalContents, path: Path) -> None:
        self.contents = contents
        self.part = Part(path, contents.path.name)
        self.out = ColumnFileWriter(path)
        self.texts: dict[str, Strings] = {}
        #: Number of a key in the part by its id in the journal; -1: its text is lost.
        self.key: Array = np.empty(0, np.int32)
        self.starts, self.stops, self.at, self.part.lone_stops = executions(contents)

    def make(self) -> Part:
        contents, part = self.contents, self.part
        records = contents.records
        part.writer, part.damaged, part.meta = contents.writer, contents.damaged, contents.meta
        part.events = sum(len(r) for r in records.values())
        texts = len(contents.meta) + len(contents.strings) + len(contents.keys)
        part.size = texts + part.events
        part.span = first_and_last(contents)
        part.probes = structured_to_unstructured(records[Stream.PROBES], np.int64)
        part.anchors = structured_to_unstructured(records[Stream.ANCHORS], np.int64)
        self._keys_and_tasks()
        self._dependencies()
        self._transitions_and_memory()
        self._spans()
        self._samples()
        self._calls()
        part.texts = {name: strings.list() for name, strings in self.texts.items()}
        part.known_keys = {n: self.out.columns[n] for n in ("digests.digest", "digests.rest")}
        self.out.close()
        return part

    # ------------------------------------------------------------------------------

    def _put(self, table: str, columns: dict[str, Array]) -> None:
        for name, values in columns.items():
            self.out.put(f"{table}.{name}", values)

    def _text(self, dictionary: str, ids: Array) -> Array:
        """Turn ids of the journal's strings into codes."""
        strings = self.texts.setdefault(dictionary, Strings())
        known = self.contents.strings
        return translated(ids, lambda i: strings.code(known.get(i)))

    def _known(self, ids: Array) -> Array:
        """Turn ids of keys into their numbers in the part, -1 for what is lost."""
        result = np.full(len(ids), -1, np.int32)
        inside = ids < len(self.key)
        result[inside] = self.key[ids[inside]]
        return result

    def _keys_and_tasks(self) -> None:
        order = np.argsort(self.starts["time"], kind="stable")
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        starts = self.starts = self.starts[order]
        self.at = position[self.at]

        # A key that was forgotten and came again has two ids; NUL cannot be stored.
        ids = np.fromiter(self.contents.keys, np.int64, len(self.contents.keys))
        texts = list(self.contents.keys.values())
        self.contents.keys.clear()
        if not _plain(texts):
            texts = [storable(text) for text in texts]
        if len(set(texts)) == len(texts):
            codes = np.arange(len(texts), dtype=np.int32)
        else:
            numbered = Strings()
            codes = numbered.codes(texts)
            texts = numbered.list()
        self.key = np.full(int(ids.max(initial=-1)) + 1, -1, np.int32)
        self.key[ids] = codes
        used = self._known(starts["key"])
        known = np.flatnonzero(used >= 0)
        place = np.full(len(texts), len(used), np.int64)
        place[used[known[::-1]]] = known[::-1]  # of several the first one stays
        executed = np.flatnonzero(place < len(used))
        executed = executed[np.argsort(place[executed], kind="stable")]
        first = place[executed]
        other = np.ones(len(texts), bool)
        other[executed] = False
        new = np.concatenate([executed, np.flatnonzero(other)])
        number = np.empty(len(texts) + 1, np.int32)
        number[new] = np.arange(len(texts))
        number[-1] = -1
        self.key = number[self.key]
        texts = [texts[i] for i in new.tolist()]
        self.part.keys, self.part.executed = len(texts), len(executed)
        self._write_keys(texts, first)
        self._write_tasks(texts[: len(executed)], number[used])

    def _write_keys(self, texts: list[str], first: Array) -> None:
        whole = "".join(texts)
        sized: Iterable[str | bytes] = texts
        if not whole.isascii():
            sized = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, sized), np.int64, len(texts))
        self.part.longest_key = int(lengths.max(initial=0))
        data, offsets = whole.encode(), np.concatenate([[0], np.cumsum(lengths)])
        self.out.put("keys.text", np.frombuffer(data, np.uint8))
        self.out.put("keys.offset", offsets)
        self.out.put("keys.first", first.astype(np.int32))
        digests = digests_of(data, offsets)
        order = np.argsort(digests[0], kind="stable")
        execution = np.full(len(texts), -1, np.int32)
        execution[: len(first)] = first
        start = np.zeros(len(texts), np.int64)
        start[: len(first)] = self.starts["time"][first]
        self.digest_order = order
        self.out.put("digests.digest", digests[0][order])
        self.known_keys = known = np.zeros(len(texts), KNOWN_KEY)
        known["digest2"], known["key"] = digests[1], np.arange(len(texts))
        known["execution"], known["start"] = execution, start

    def _write_tasks(self, executed: list[str], key: Array) -> None:
        starts, stops, at = self.starts, self.stops, self.at
        count = len(starts)
        first = (self.contents.documents("journal") or [{}])[0]
        base = whole_number(first.get("task_id_base"), 0)
        self.part.unknown_keys = int(np.count_nonzero(key < 0))
        prefixes = _prefixes(executed, self.texts.setdefault("prefixes", Strings()))
        prefix = np.full(count, -1, np.int32)
        prefix[key >= 0] = prefixes[key[key >= 0]]
        attempt = numbered_within(key)
        self.part.repeats = int(np.count_nonzero(attempt != 1))
        stop, ended = np.zeros(count, np.int64), np.zeros(count, np.int8)
        stop[at], ended[at] = stops["time"], 1
        status = stops["status"]
        state = np.full(count, TASK_STATES.index("lost"), np.int8)
        state[at] = np.where(status < len(STATUSES), status.astype(np.int64), -1)
        for document in self.contents.documents("abandoned"):
            when = whole_number(document.get("time"))
            # a coroutine fails with its worker's end
            running = (ended == 0) | ((stop > when) & (state == STATUSES.index("error")))
            state[running & (starts["time"] <= when)] = TASK_STATES.index("abandoned")
        nbytes = np.full(count, -1, np.int64)
        in_memory = status == STATUSES.index("memory")
        nbytes[at[in_memory]] = signed(stops["nbytes"][in_memory])
        columns = {
            "id": base + starts["sequence"].astype(np.int64),
            "key": key,
            "prefix": prefix,
            "thread": starts["thread"].astype(np.int64),
            "attempt": attempt,
            "start": starts["time"],
            "ended": ended,
            "stop": stop,
            "state": state,
            "nbytes": nbytes,
        }
        for name, codes in self._results(stops["result"], status).items():
            columns[name] = np.full(count, -1, np.int32)
            columns[name][at] = codes
        self._put("tasks", columns)

    def _results(self, ids: Array, status: Array) -> dict[str, Array]:
        """Split the text that STOPS carries: ``type|dtype|shape``, or an exception's.

        That is ``type|message``, of one without message and in earlier journals its type only.
        """
        columns = ("type", "dtype", "shape", "exception", "message")
        names = {name: f"{name}s" for name in columns}
        coded = {name: np.full(len(ids), -1, np.int32) for name in names}
        strings = {n: self.texts.setdefault(d, Strings()) for n, d in names.items()}
        # both in one number: the text of an error is read another way
        both = ids.astype(np.int64) << 2 | np.minimum(status, 3)
        distinct, inverse = np.unique(both, return_inverse=True)
        found = np.full((len(distinct), len(names)), -1, np.int32)
        for i, value in enumerate(distinct.tolist()):
            text = self.contents.strings.get(value >> 2)
            if text is None:
                continue
            parts: dict[str, str]
            if value & 3 == STATUSES.index("memory"):
                kind, _, rest = text.partition("|")
                dtype, _, shape = rest.rpartition("|")
                parts = {"type": kind, "dtype": dtype, "shape": shape}
            elif value & 3 == STATUSES.index("error"):
                kind, _, message = text.partition("|")
                parts = {"exception": kind, "message": message}
            else:
                continue
            for j, name in enumerate(names):
                found[i, j] = strings[name].code(parts.get(name) or None)
        for j, name in enumerate(names):
            coded[name] = found[inverse, j]
        return coded

    def _dependencies(self) -> None:
        edges = self.contents.records[Stream.EDGES]
        key = self._known(edges["key"]).astype(np.int64)
        dependency = self._known(edges["dependency"])
        known = (key >= 0) & (dependency >= 0)
        pairs = np.sort((key << 32 | dependency)[known])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        self._put(
            "dependencies",
            {
                "key": (pairs >> 32).astype(np.int32),
                "dependency": (pairs & 0xFFFFFFFF).astype(np.int32),
            },
        )

    def _transitions_and_memory(self) -> None:
        records = self.contents.records[Stream.TRANSITIONS]
        if len(records) and (records["time"][1:] < records["time"][:-1]).any():
            records = records[np.argsort(records["time"], kind="stable")]
        key = self._known(records["key"])
        self._put(
            "transitions",
            {
                "time": records["time"],
                "key": key,
                "change": (records["start"].astype(np.int16) << 4) | records["finish"],
            },
        )
        # What comes into and leaves memory is added up as Dask's WorkerState.nbytes does it.
        entry = (records["finish"] == _MEMORY) & (records["start"] != _MEMORY)
        leave = (records["start"] == _MEMORY) & (records["finish"] != _MEMORY)
        rows = np.flatnonzero(entry | leave)
        key, entry, time = key[rows], entry[rows], records["time"][rows]
        size = np.zeros(len(rows), np.int64)
        size[entry] = self._sizes_at_entry(key[entry], time[entry])
        wanted = size < 0
        size[wanted] = 0

        # What a key held before an event is what its last event left there.
        order = np.argsort(key, kind="stable")
        held = np.where(entry, size, 0)[order]
        inside = entry[order].astype(np.int32)
        same = np.zeros(len(order), bool)
        same[1:] = key[order][1:] == key[order][:-1]
        bytes_step, key_step = held.copy(), inside.copy()
        bytes_step[1:] -= np.where(same[1:], held[:-1], 0)
        key_step[1:] -= np.where(same[1:], inside[:-1], 0)
        following = np.full(len(order), -1, np.int64)
        following[:-1][same[1:]] = order[1:][same[1:]]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        bytes_step, key_step, following = bytes_step[back], key_step[back], following[back]

        ends = following[wanted]
        kept = (bytes_step != 0) | (key_step != 0) | wanted
        kept[ends[ends >= 0]] = True
        place = np.cumsum(kept) - 1
        self._put(
            "memory",
            {
                "transition": rows[kept].astype(np.int64),
                "step": bytes_step[kept],
                "tasks": np.cumsum(key_step)[kept].astype(np.int32),
            },
        )
        self._put(
            "wanted",
            {
                "key": key[wanted],
                "entry": place[wanted],
                "end": np.where(ends >= 0, place[ends], -1),
            },
        )
        self.known_keys["wanted"][key[wanted]] = 1
        self.out.put("digests.rest", self.known_keys[self.digest_order].view(np.uint8))

    def _sizes_at_entry(self, key: Array, time: Array) -> Array:
        """Give the size with which each key came into memory, -1 where it is not known here.

        It is the latest that was recorded up to then, by executing or storing; else the next one.
        """
        stored = self.contents.records[Stream.STORED]
        in_memory = self.stops["status"] == STATUSES.index("memory")
        stops, at = self.stops[in_memory], self.at[in_memory]
        produced = self._known(self.starts["key"][at])
        value_key = np.concatenate([produced, self._known(stored["key"])])
        value_time = np.concatenate([stops["time"], stored["time"]])
        value = np.concatenate([signed(stops["nbytes"]), signed(stored["nbytes"])])
        keys = np.concatenate([value_key, key])
        is_value = np.arange(len(keys)) < len(value_key)
        order = np.lexsort((~is_value, np.concatenate([value_time, time]), keys))
        ordered, marked = keys[order], is_value[order]
        values = np.concatenate([value, np.zeros(len(key), np.int64)])[order]
        before = _last_before(ordered, marked)
        after = _last_before(ordered[::-1], marked[::-1])[::-1]
        after = np.where(after >= 0, len(order) - 1 - after, -1)
        chosen = np.where(before >= 0, before, after)
        sizes = np.where(chosen >= 0, np.maximum(values[chosen], 0), -1)
        sizes[ordered < 0] = np.maximum(sizes[ordered < 0], 0)
        result = np.empty(len(order), np.int64)
        result[order] = sizes
        return result[len(value_key) :]

    def _spans(self) -> None:
        records = _sorted(self.contents.records[Stream.ACTIVITIES], "start")
        self._put(
            "activities",
            {
                "start": records["start"],
                "stop": records["stop"],
                "key": self._known(records["key"]),
                "action": self._text("actions", records["action"]),
                "peer": self._text("addresses", records["peer"]),
            },
        )
        records = _sorted(self.contents.records[Stream.TRANSFERS], "start")
        direction = records["direction"].astype(np.int32)
        peer = self._text("addresses", records["peer"])
        self._put(
            "transfers",
            {
                "start": records["start"],
                "stop": records["stop"],
                "direction": np.where(direction < len(DIRECTIONS), direction, -1),
                "peer": peer,
                "peer_process": peer,
                "nbytes": signed(records["nbytes"]),
                "keys": records["keys"].astype(np.int32),
            },
        )
        records = _sorted(self.contents.records[Stream.RESCHEDULES], "time")
        self._put(
            "reschedules",
            {
                "time": records["time"],
                "key": self._known(records["key"]),
                "reason": self._text("reasons", records["reason"]),
            },
        )

    def _samples(self) -> None:
        for table, stream, coded, numbers in (
            ("node_samples", Stream.NODE_SAMPLES, "", ""),
            ("gpu_samples", Stream.GPU_SAMPLES, "gpu", "gpus"),
            ("process_samples", Stream.PROCESS_SAMPLES, "pid", "pids"),
        ):
            records = _sorted(self.contents.records[stream], "time")
            columns = {"time": records["time"]}
            for name in records.dtype.names or ():
                if name != "time":
                    values = records[name]
                    # integers become signed, so that "not available" is -1
                    columns[name] = values if values.dtype.kind == "f" else signed(values)
            if coded:
                distinct, inverse = np.unique(columns[coded], return_inverse=True)
                self.part.numbers[numbers] = distinct.tolist()
                columns["gpu" if coded == "gpu" else "process"] = inverse.astype(np.int32)
            self._put(table, columns)

    def _calls(self) -> None:
        """Put the samples of calls, each with its task, and the calls within calls beside them."""
        stops = np.full(len(self.starts), -1, np.int64)
        stops[self.at] = self.stops["time"]
        found = call_stacks.calls_of(self.contents, self.starts, stops)
        self._put("call_samples", found.samples)
        self.part.stacks, self.part.unknown_stacks = len(found.stacks["parent"]), found.unknown
        self._put("stacks", found.stacks)


# ------------------------------------------------------------------------------ records


def executions(contents: JournalContents) -> tuple[Array, Array, Array, int]:
    """Give a journal's starts, the stops that match one, their positions in it, and the others.

    Where a sequence number stands twice, the last start and every stop of it count.
    """
    starts = contents.records[Stream.STARTS]
    stops = contents.records[Stream.STOPS]
    starts = starts[np.argsort(starts["sequence"], kind="stable")]
    at = np.searchsorted(starts["sequence"], stops["sequence"])
    matched = at < len(starts)
    matched[matched] = starts["sequence"][at[matched]] == stops["sequence"][matched]
    return starts, stops[matched], at[matched], int(np.count_nonzero(~matched))


_TIME_FIELDS = ("time", "start", "stop")


def first_and_last(contents: JournalContents) -> tuple[int, int] | None:
    """Give the first and last raw time in a journal, None where nothing in it carries one."""
    times = [
        whole_number(document.get(name))
        for document in contents.meta
        for name in _TIME_FIELDS
        if whole_number(document.get(name)) >= 0
    ]
    for stream, records in contents.records.items():
        if stream in (Stream.ACTIVITIES, Stream.TRANSFERS) or not len(records):
            continue  # Dask's own times: they may precede the journal
        for name in {"time", "before", "after", "t1", "t4"} & set(records.dtype.names or ()):
            times += [int(records[name].min()), int(records[name].max())]
    return (min(times), max(times)) if times else None


def whole_number(value: Any, default: int = -1) -> int:
    """Give an integer of a META document; what is none there gives the default."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    if value != value or abs(value) >= 1 << 63:
        return default
    return int(value)


def signed(values: Array) -> Array:
    """Give unsigned values as int64, the largest unsigned number ("not available") as -1."""
    if values.dtype == np.uint32:
        return np.where(values == _NONE, -1, values.astype(np.int64))
    return values.astype(np.int64)


def _plain(texts: Sequence[str]) -> bool:
    """Say whether texts can be stored as they are, asked of all at once."""
    whole = "".join(texts)
    return whole.isascii() and "\0" not in whole


def translated(ids: Array, translate: Any) -> Array:
    """Give what each distinct id is translated to."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    codes = np.array([translate(i) for i in distinct.tolist()], np.int32)
    result: Array = codes[inverse] if len(distinct) else np.empty(0, np.int32)
    return result


def numbered_within(keys: Array) -> Array:
    """Number the rows of each key, in their order, from 1; -1 where the key is not known."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    position = np.arange(len(keys))
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(new, position, 0))
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = position - first + 1
    numbers[keys < 0] = -1
    return numbers


def _sorted(records: Array, name: str) -> Array:
    return records[np.argsort(records[name], kind="stable")]


def _last_before(group: Array, marked: Array) -> Array:
    """Give, for each position, the last marked one up to it in its group; -1: none.

    Positions of a group are neighbours.
    """
    position = np.arange(len(group))
    last = np.maximum.accumulate(np.where(marked, position, -1)) if len(group) else position
    good = last >= 0
    good[good] = group[last[good]] == group[good]
    return np.where(good, last, -1)


# ------------------------------------------------------------------------------ keys


def digests_of(data: bytes, offsets: Array) -> tuple[Array, Array]:
    """Give two digests of 64 bits of each text.

    Among 10**9 texts the chance that both of any two are equal is 10**-21, as far as the words of
    a text, each with its position stirred in as splitmix64 does it (Steele, Lea and Flood, 2014),
    are as good as random numbers; a digest is their sum.

    Parameters
    ----------
    data
        The texts, one after the other.
    offsets
        Where each begins, and the length of all.
    """
    count = len(offsets) - 1
    one, other = np.empty(count, np.uint64), np.empty(count, np.uint64)
    # the 8 bytes that begin at each byte
    buffer = data + bytes(8)
    words = np.ndarray((len(data) + 1,), "<u8", buffer, strides=(1,))
    for first in range(0, count, _DIGESTS_AT_ONCE):
        begins = offsets[first : first + _DIGESTS_AT_ONCE + 1]
        begins, lengths = begins[:-1], np.diff(begins)
        # the last word has from 0 to 7 bytes of the text
        counts = lengths // 8 + 1
        ends = np.cumsum(counts)
        starts = ends - counts
        position = np.arange(ends[-1]) - np.repeat(starts, counts)
        word = words[np.repeat(begins, counts) + 8 * position]
        word[ends - 1] &= (np.uint64(1) << (lengths % 8 * 8).astype(np.uint64)) - np.uint64(1)
        # of texts that end with zeros the number of words may be equal
        word[ends - 1] += lengths.astype(np.uint64) << np.uint64(56)
        word = _stirred(word + position.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        chunk = slice(first, first + len(begins))
        one[chunk] = np.add.reduceat(word, starts)
        other[chunk] = np.add.reduceat(_stirred(~word), starts)
    return one, other


def _stirred(word: Array) -> Array:
    """Give 64 bits each of which depends on all of a word's, and of no other word's."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    result: Array = word ^ (word >> np.uint64(31))
    return result


def _prefixes(texts: Sequence[str], strings: Strings) -> Array:
    """Give the code of each key's prefix; key_split runs once for each head."""
    heads: dict[str, int] = {}
    codes = []
    for text in texts:
        # of a tuple's text what is before its second element is enough, of others what `_head` says
        if text[:2] == "('":
            short = text[: text.find("',", 2)]
        elif text[:1] in "(b":
            short = _head(text)
        else:
            short = _without_token(text)
        code = heads.get(short)
        if code is None:
            code = heads[short] = strings.code(str(key_split(_head(text))))
        codes.append(code)
    return np.array(codes, np.int32)


def _head(text: str) -> str:
    """Give the part of a key's text on which its prefix depends, which many keys share."""
    quote = text[1:2]
    if text[:1] == "(" and quote and quote in "'\"":  # a tuple; its first element is the name
        name, end, _ = text[2:].partition(quote + ",")
        if end:
            return _literal(quote + name + quote)
    elif text[:2] in ("b'", 'b"') and text[-1:] == text[1]:
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(text).decode()
    return _without_token(text)


def _without_token(text: str) -> str:
    rest, dash, word = text.rpartition("-")
    # key_split stops at the first word that is not a plain one, which tokens never are
    return rest if dash and not word.isalpha() else text


def _literal(quoted: str) -> str:
    if "\\" in quoted:
        with contextlib.suppress(ValueError, SyntaxError):
            return str(ast.literal_eval(quoted))
    return quoted[1:-1]
