"""Trace, second step of a merge: where every row of every part goes, and which keys are the same.

The rows of a merged trace lie in blocks of time, and in a block process after process. A row's
number then follows from how many rows each process has in each block, so that nothing is sorted
again: `Layout` holds those numbers. Keys are numbered by the row of their first execution; only a
key that is in several parts, or was never executed, has to be looked for (`join_keys`), which
goes by stretches of digests, so that no more than one stretch is ever in memory.

With that, groups of parts are put into the order of the blocks (`finish_group`), a column at a
time. A block then reads one piece of each group, not of each of what may be thousands of parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.chunks import encode
from dasf_hpc.trace.parts import (
    KNOWN_KEY,
    ROW_COUNTS,
    ColumnFile,
    ColumnFileWriter,
    Part,
)
from dasf_hpc.trace.schema import TABLES, Column

Array = NDArray[Any]

#: Rows of all tables that a block has on average. A block is what is in memory at once, and what
#: is read at least of a table; more rows do not compress better (measured).
BLOCK_ROWS = 1 << 19

#: Keys, of all parts, that are looked for at once: so many, or more where there are many parts,
#: each of which is looked into for every stretch (80 us, measured).
JOIN_KEYS, JOIN_KEYS_A_PART = 1 << 18, 64

#: Rows of all tables that a group of parts has at most, unless one part alone has more.
GROUP_ROWS = 1 << 21

#: Parts that a group has at most: their files are open at once.
GROUP_PARTS = 256

#: Groups that there are at least, where there are as many parts, to keep several cores busy.
_GROUPS = 16

#: Times that are looked at in all parts to tell where blocks begin, and the most and least of them
#: in one table of one part.
_SAMPLES, _MOST_SAMPLES, _LEAST_SAMPLES = 1 << 18, 512, 8

#: Its multiples, modulo 1, fill the interval evenly however many there are.
_GOLDEN = 0.6180339887498949

#: Dictionaries whose codes are the same in every part.
FIXED = frozenset({"keys", "states", "task_states", "directions", "thread_roles"})

#: Columns of rows of another table that a part cannot know: the name under which `Source.codes`
#: has them.
REFERENCES = {
    ("transfers", "peer_process"): "peers",
    ("gpu_samples", "gpu"): "gpus",
    ("process_samples", "process"): "pids",
    ("call_samples", "stack"): "stacks",
}

#: How far a correction's inverse is off at most, ns: both round.
_INVERSE_OFF = 8


@dataclass(slots=True)
class Source:
    """A part and its place in the run.

    Attributes
    ----------
    part
        The part.
    row, node
        Row of its process and of its node.
    correction
        From its clock to the reference's, None where it has no place at all.
    origin
        The reference clock at time 0.
    codes
        By dictionary, or what else the codes of columns stand for: the trace's code of each.
    """

    part: Part
    row: int
    node: int
    correction: Correction | None
    origin: int
    codes: dict[str, Array] = field(default_factory=dict)

    def slim(self) -> Source:
        """Give it without codes, and without what was recorded of UTC."""
        part = dataclasses.replace(self.part, anchors=self.part.anchors[:0])
        return dataclasses.replace(self, part=part, codes={})

    def time(self, raw: Array) -> Array:
        """Give trace times of raw readings of its clock."""
        return corrected(self.correction, self.origin, raw)

    def raw_times(self, times: Array) -> Array:
        """Give, for trace times, the first raw reading that is not before each."""
        local = times + self.origin
        if self.correction is not None and self.correction.source != "reference":
            local = self.correction.inverse().apply(local)
        around = local[:, None] + np.arange(-_INVERSE_OFF, _INVERSE_OFF + 1)
        late = self.time(around) >= times[:, None]
        found: Array = around[np.arange(len(local)), np.argmax(late, axis=1)]
        return found


def corrected(correction: Correction | None, origin: int, raw: Array) -> Array:
    """Give trace times of raw readings of a clock."""
    times = np.asarray(raw, np.int64)
    if correction is not None and correction.source != "reference":
        times = correction.apply(times)
    result: Array = times - np.int64(origin)
    return result


@dataclass
class Layout:
    """Where the rows go.

    Attributes
    ----------
    sources
        In the order of their rows in ``processes``.
    folder
        Where the merge's files lie.
    starts
        Trace time at which each block begins.
    groups
        The first source of each group, and after its last one.
    counts
        By table, the rows of each group in each block.
    firsts
        By table, the first row of each block, and the number of rows.
    repeats
        Rows of ``tasks`` whose key stands, or is not known, in an earlier one; sorted.
    unexecuted
        Number of keys that were never executed, by stretch of digests.
    foreign
        Pairs of ``dependencies`` that a process recorded whose key another one executed first.
    longest_key
        Bytes of the longest key.
    """

    sources: list[Source]
    folder: Path
    starts: Array
    groups: list[tuple[int, int]] = field(default_factory=list)
    counts: dict[str, Array] = field(default_factory=dict)
    firsts: dict[str, Array] = field(default_factory=dict)
    repeats: Array = field(default_factory=lambda: np.empty(0, np.int64))
    unexecuted: list[int] = field(default_factory=list)
    foreign: Array = field(default_factory=lambda: np.empty((0, 2), np.int64))
    longest_key: int = 0
    _maps: dict[str, Array] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.starts)

    def count(self, table: str) -> int:
        """Give the number of rows of a table."""
        return int(self.firsts[table][-1])

    def block_offset(self, table: str, block: int) -> int:
        """Give the first row of a block in a table."""
        return int(self.firsts[table][block])

    def group_rows(self, table: str, group: int) -> Array:
        """Give the row of a table where a group's rows begin in each block."""
        rows: Array = self.firsts[table][:-1] + self.counts[table][:group].sum(axis=0)
        return rows

    def group_cuts(self, table: str, group: int) -> Array:
        """Give the first of a group's own rows in each block, and their number."""
        return np.concatenate([[0], np.cumsum(self.counts[table][group])])

    def cuts(self, table: str) -> Array:
        """Give, for each source, the first of its rows in each block, and their number."""
        return self._mapped(f"{table}.cuts", np.int32, self.blocks + 1)

    def shifts(self, table: str) -> Array:
        """Give, for each source and block, what has to be added to its rows for the trace's."""
        return self._mapped(f"{table}.shifts", np.int64, self.blocks)

    def _mapped(self, name: str, dtype: Any, width: int) -> Array:
        found = self._maps.get(name)
        if found is None:
            shape = len(self.sources), width
            found = np.memmap(self.folder / name, dtype, "r", shape=shape) if shape[0] else None
            found = np.empty(shape, dtype) if found is None else found
            self._maps[name] = found
        return found

    def rows(self, table: str, source: int, own: Array) -> Array:
        """Give the trace's rows, of ``tasks`` or ``transitions``, of a source's rows."""
        block = np.searchsorted(self.cuts(table)[source][1:-1], own, side="right")
        result: Array = self.shifts(table)[source][block] + own
        return result

    def key_codes(self, rows: Array) -> Array:
        """Give the codes of keys by the rows of ``tasks`` where they were first executed."""
        codes: Array = rows - np.searchsorted(self.repeats, rows)
        return codes

    def first_code(self, block: int) -> int:
        """Give the first code of the keys that were first executed in a block or later."""
        row = self.block_offset("tasks", block)
        return row - int(np.searchsorted(self.repeats, row))

    @property
    def executed(self) -> int:
        """Number of keys that were executed."""
        return self.count("tasks") - len(self.repeats)

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.executed + sum(self.unexecuted)

    def group_file(self, group: int) -> Path:
        """Give the file of the columns that `finish_group` made."""
        return self.folder / f"{group}.group"

    def join_file(self, stretch: int) -> Path:
        """Give the file of the columns that `join_keys` made."""
        return self.folder / f"{stretch}.join"

    def save(self, name: str) -> Path:
        """Put this where the steps that follow find it."""
        path = self.folder / f"{name}.layout"
        slim = dataclasses.replace(self, sources=[s.slim() for s in self.sources], _maps={})
        path.write_bytes(pickle.dumps(slim, pickle.HIGHEST_PROTOCOL))
        return path


_loaded: dict[Path, Layout] = {}
_loading = threading.Lock()


def load(path: Path) -> Layout:
    """Give a layout that was saved; the last one is kept, for the next call."""
    with _loading:
        layout = _loaded.get(path)
        if layout is None:
            # before the next is read: with thousands of sources each takes tens of MB
            _loaded.clear()
            with path.open("rb") as file:
                layout = pickle.load(file)
            assert isinstance(layout, Layout)
            _loaded[path] = layout
    return layout


# ------------------------------------------------------------------------------ blocks


#: Tables whose rows others name.
_NAMED = ("tasks", "transitions")


def lay_out(sources: Sequence[Source], folder: Path) -> Layout:
    """Divide a run into blocks and say where each source's rows go."""
    starts, total = _block_starts(sources)
    layout = Layout(list(sources), folder, starts)
    layout.longest_key = max((source.part.longest_key for source in sources), default=0)
    limit = min(GROUP_ROWS, total // _GROUPS)
    counts: dict[str, list[Array]] = {table: [] for table in ROW_COUNTS}
    held = 0
    with contextlib.ExitStack() as stack:
        files = {
            table: stack.enter_context((folder / f"{table}.cuts").open("wb"))
            for table in ROW_COUNTS
        }
        for number, source in enumerate(sources):
            cuts = _cuts(source, starts)
            rows = sum(int(cut[-1]) for cut in cuts.values())
            members = number - layout.groups[-1][0] if layout.groups else GROUP_PARTS
            if held + rows > limit or members == GROUP_PARTS:
                layout.groups.append((number, number))
                held = 0
            held += rows
            layout.groups[-1] = layout.groups[-1][0], number + 1
            for table, cut in cuts.items():
                files[table].write(cut.tobytes())
                if layout.groups[-1][0] == number:
                    counts[table].append(np.zeros(len(starts), np.int64))
                counts[table][-1] += np.diff(cut)
    for table, found in counts.items():
        layout.counts[table] = np.array(found, np.int64).reshape(-1, len(starts))
        rows_of_blocks = layout.counts[table].sum(axis=0)
        layout.firsts[table] = np.concatenate([[0], np.cumsum(rows_of_blocks)])
    for table in _NAMED:
        with (folder / f"{table}.shifts").open("wb") as file:
            row = layout.firsts[table][:-1].copy()
            for cut in layout.cuts(table):
                file.write((row - cut[:-1]).tobytes())
                row += np.diff(cut)
    return layout


def _block_starts(sources: Sequence[Source]) -> tuple[Array, int]:
    """Choose where blocks begin, so that each has about as many rows; give their number, too."""
    times, weights = [], []
    total = 0
    most = _SAMPLES // max(1, len(sources) * len(ROW_COUNTS))
    most = min(_MOST_SAMPLES, max(_LEAST_SAMPLES, most))
    for number, source in enumerate(sources):
        # workers begin together: each is looked at in other places
        shift = number * _GOLDEN % 1
        with source.part.opened() as columns:
            for table, column in ROW_COUNTS.items():
                if table == "memory":
                    continue
                values = columns.mapped(f"{table}.{column}")
                total += len(values)
                if len(values):
                    step = max(1, len(values) // most)
                    taken = np.array(values[int(shift * step) :: step])
                    times.append(source.time(taken))
                    weights.append(np.full(len(taken), len(values) / len(taken)))
    blocks = max(1, round(total / BLOCK_ROWS))
    if not times:
        return np.zeros(1, np.int64), 0
    time, weight = np.concatenate(times), np.concatenate(weights)
    order = np.argsort(time, kind="stable")
    before = np.cumsum(weight[order]) - weight[order]
    places = np.searchsorted(before, np.arange(1, blocks) * (total / blocks))
    inner = time[order][np.minimum(places, len(order) - 1)]
    first = int(time[order[0]])
    starts = np.unique(np.concatenate([[first], inner[inner > first]])).astype(np.int64)
    return starts, total


def _cuts(source: Source, starts: Array) -> dict[str, Array]:
    """Give, for each table, the first of a source's rows in each block, and their number."""
    raw = source.raw_times(starts[1:]) if len(starts) > 1 else starts[1:]
    cuts: dict[str, Array] = {}
    with source.part.opened() as columns:
        for table, column in ROW_COUNTS.items():
            values = columns.mapped(f"{table}.{column}")
            if table == "memory":
                cuts[table] = np.searchsorted(values, cuts["transitions"]).astype(np.int32)
                continue
            cut = np.zeros(len(starts) + 1, np.int32)
            cut[1:-1] = np.searchsorted(values, raw)
            cut[-1] = len(values)
            cuts[table] = cut
    return cuts


# ------------------------------------------------------------------------------ keys


@dataclass
class JoinedKeys:
    """What was found of the keys in one stretch of digests; the rest lies in a file.

    The file's columns: ``key`` and ``value`` of keys whose code is not the row of their own
    execution, source after source, and ``firsts``: the first of each source, and their number;
    ``text`` and ``length`` of each key that was never executed.

    Attributes
    ----------
    unexecuted
        Number of keys in the stretch that were never executed.
    contested
        Keys that several sources executed: key, source, key in the source.
    wanted
        Keys of which a source could not tell the size: source, key in it, and source and key in it
        where it was executed.
    """

    unexecuted: int
    contested: Array
    wanted: Array


def stretches(layout: Layout) -> int:
    """Give the number of stretches into which digests are divided, a power of two."""
    keys = sum(source.part.keys for source in layout.sources)
    at_once = max(JOIN_KEYS, JOIN_KEYS_A_PART * len(layout.sources))
    return 1 << max(0, (keys // at_once).bit_length())


def join_keys(layout_file: Path, stretch: int, count: int) -> JoinedKeys:
    """Find which keys of the sources are the same, in one of `count` stretches of digests."""
    layout = load(layout_file)
    found: list[list[Array]] = []
    width = (1 << 64) // count
    for number, source in enumerate(layout.sources):
        with ColumnFile(source.part.file, source.part.known_keys) as columns:
            digests = columns.mapped("digests.digest")
            begin = int(np.searchsorted(digests, np.uint64(stretch * width))) if stretch else 0
            end = len(digests)
            if stretch + 1 < count:
                end = int(np.searchsorted(digests, np.uint64((stretch + 1) * width)))
            if begin == end:
                continue
            digest = columns.read("digests.digest", begin, end)
            size = KNOWN_KEY.itemsize
            known = columns.read("digests.rest", begin * size, end * size).view(KNOWN_KEY)
        executed = known["execution"] >= 0
        row = layout.rows("tasks", number, np.maximum(known["execution"], 0).astype(np.int64))
        found.append(
            [
                digest,
                known["digest2"],
                np.where(executed, source.time(known["start"]), np.iinfo(np.int64).max),
                np.where(executed, row, -1),
                known["key"],
                known["wanted"],
                np.full(end - begin, number, np.int32),
            ]
        )
    if not found:
        found = [[np.empty(0, t) for t in ("u8", "u8", "i8", "i8", "i4", "i8", "i4")]]
    digest, digest2, start, row, key, wanted, number_of = (
        np.concatenate(parts) for parts in zip(*found, strict=True)
    )
    del found
    # Of equal keys the one that was executed first comes first, else that of the first process.
    order = _order(digest, digest2, start, number_of)
    key, row, number_of = key[order], row[order], number_of[order]
    new = np.ones(len(order), bool)
    new[1:] = (digest[order][1:] != digest[order][:-1]) | (
        digest2[order][1:] != digest2[order][:-1]
    )
    group = np.cumsum(new) - 1
    home = np.flatnonzero(new)
    value = row[home].copy()
    never = np.flatnonzero(value < 0)
    value[never] = -1 - np.arange(len(never))

    told = np.flatnonzero(~new | (value[group] < 0))
    told = told[np.argsort(number_of[told], kind="stable")]
    executors = np.bincount(group[row >= 0], minlength=len(home))
    contested = np.flatnonzero((executors[group] > 1) & (row >= 0))
    out = ColumnFileWriter(layout.join_file(stretch))
    out.put("key", key[told])
    out.put("value", value[group[told]])
    out.put("firsts", np.searchsorted(number_of[told], np.arange(len(layout.sources) + 1)))
    texts = _texts(layout, number_of[home[never]], key[home[never]])
    out.put("text", np.frombuffer(b"".join(texts), np.uint8))
    out.put("length", np.fromiter(map(len, texts), np.int32, len(texts)))
    out.close()
    return JoinedKeys(
        unexecuted=len(never),
        contested=np.stack([group[contested], number_of[contested], key[contested]], axis=1).astype(
            np.int64
        ),
        wanted=_wanted(group, wanted[order] > 0, row >= 0, number_of, key),
    )


def _texts(layout: Layout, number_of: Array, keys: Array) -> list[bytes]:
    """Give the texts of single keys, each of a source."""
    texts = [b""] * len(keys)
    for number in np.unique(number_of).tolist():
        with layout.sources[number].part.opened() as own:
            offsets, text = own.mapped("keys.offset"), own.mapped("keys.text")
            for place in np.flatnonzero(number_of == number).tolist():
                key = int(keys[place])
                begin, end = offsets[key : key + 2].tolist()
                texts[place] = text[begin:end].tobytes()
    return texts


def _order(digest: Array, *others: Array) -> Array:
    """Sort by digest; the others, the first one first, order the few whose digest is the same."""
    order = np.argsort(digest)
    same = np.flatnonzero(digest[order][1:] == digest[order][:-1])
    places = np.union1d(same, same + 1)
    tied = order[places]
    order[places] = tied[np.lexsort([values[tied] for values in (*others[::-1], digest)])]
    return order


def _wanted(group: Array, wanted: Array, executed: Array, number_of: Array, key: Array) -> Array:
    """Pair each wanted key with every source that executed it, the first one first."""
    rows = []
    for position in np.flatnonzero(wanted).tolist():
        first, last = np.searchsorted(group, [group[position], group[position] + 1])
        for other in range(int(first), int(last)):
            if executed[other]:
                rows.append((number_of[position], key[position], number_of[other], key[other]))
    return np.array(rows, np.int64).reshape(-1, 4)


@dataclass
class Contested:
    """Attempts at keys that several sources executed.

    Attributes
    ----------
    executions, attempts
        By source: positions of the executions, and the attempt that each is.
    """

    executions: dict[int, Array] = field(default_factory=dict)
    attempts: dict[int, Array] = field(default_factory=dict)


def count_attempts(layout: Layout, joined: Sequence[JoinedKeys]) -> Contested:
    """Number the executions of keys that several sources executed, and note all repeats."""
    rows: list[Array] = []
    contested = [
        np.column_stack([np.full(len(j.contested), number), j.contested])
        for number, j in enumerate(joined)
    ]
    every = np.concatenate(contested) if contested else np.empty((0, 4), np.int64)
    group = (every[:, 0] << 32) | every[:, 1]
    found: list[Array] = []
    for number, source in enumerate(layout.sources):
        own = every[:, 2] == number
        if not source.part.repeats and not own.any():
            continue
        with source.part.opened() as columns:
            repeats = np.flatnonzero(columns.read("tasks.attempt") != 1)
            rows.append(layout.rows("tasks", number, repeats))
            if not own.any():
                continue
            keys = columns.read("tasks.key")
            group_of = np.full(source.part.keys + 1, -1, np.int64)
            group_of[every[own, 3]] = group[own]
            executions = np.flatnonzero(group_of[keys] >= 0)
            start = source.time(columns.read("tasks.start")[executions])
        found.append(
            np.stack(
                [group_of[keys[executions]], start, np.full(len(start), number), executions], axis=1
            )
        )
    result = Contested()
    if found:
        table = np.concatenate(found)
        table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))]
        position = np.arange(len(table))
        new = np.ones(len(table), bool)
        new[1:] = table[1:, 0] != table[:-1, 0]
        attempt = position - np.maximum.accumulate(np.where(new, position, 0)) + 1
        for number in np.unique(table[:, 2]).tolist():
            own = table[:, 2] == number
            result.executions[number] = table[own, 3]
            result.attempts[number] = attempt[own]
            rows.append(layout.rows("tasks", number, table[own & (attempt > 1), 3]))
    layout.repeats = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    layout.unexecuted = [j.unexecuted for j in joined]
    return result


def sizes_of_wanted(layout: Layout, joined: Sequence[JoinedKeys]) -> dict[int, tuple[Array, Array]]:
    """Look up sizes of keys, by source, that it did not know: what another one produced."""
    every = np.concatenate([j.wanted for j in joined]) if joined else np.empty((0, 4), np.int64)
    size = np.full(len(every), -1, np.int64)
    when = np.full(len(every), -1, np.int64)
    for number in np.unique(every[:, 2]).tolist():
        source, own = layout.sources[number], np.flatnonzero(every[:, 2] == number)
        with source.part.opened() as columns:
            keys, nbytes = columns.read("tasks.key"), columns.read("tasks.nbytes")
            start = source.time(columns.read("tasks.start"))
        last = np.full(source.part.keys + 1, -1, np.int64)
        made = np.flatnonzero((nbytes >= 0) & (keys >= 0))
        last[keys[made]] = made  # of several the last one stays
        at = last[every[own, 3]]
        size[own] = np.where(at >= 0, nbytes[at], -1)
        when[own] = np.where(at >= 0, start[at], np.iinfo(np.int64).min)
    result = {}
    for number in np.unique(every[:, 0]).tolist():
        own = np.flatnonzero((every[:, 0] == number) & (size >= 0))
        own = own[np.argsort(when[own], kind="stable")]
        sizes = np.zeros(layout.sources[number].part.keys, np.int64)
        sizes[every[own, 1]] = size[own]
        keys = np.flatnonzero(sizes)
        result[number] = (keys, sizes[keys])
    return result


# ------------------------------------------------------------------------------ groups


@dataclass
class Findings:
    """What the other sources have to do with one: see `Contested` and `sizes_of_wanted`."""

    executions: Array
    attempts: Array
    sized: Array
    sizes: Array


@dataclass
class _Member:
    """A source of a group: the code of each of its keys (the last one is what -1 points at), and
    whether it is the one that executed the key first."""

    number: int
    source: Source
    findings: Findings
    keys: Array
    own: Array


def finish_group(
    layout_file: Path,
    group: int,
    codes: Sequence[dict[str, Array]],
    findings: Sequence[Findings],
) -> Array:
    """Put the rows of a group of sources into the order of the blocks, in the trace's numbers.

    Parameters
    ----------
    layout_file, group
        The layout and the group's number.
    codes, findings
        Of each of its sources.

    Returns
    -------
    foreign
        Pairs (key, dependency) that do not go to the blocks of this group.
    """
    layout = load(layout_file)
    first, last = layout.groups[group]
    members = []
    for number in range(first, last):
        source = dataclasses.replace(layout.sources[number], codes=codes[number - first])
        members.append(_member(layout, number, source, findings[number - first]))
    _put_told_codes(layout, members)
    out = ColumnFileWriter(layout.group_file(group))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(member.source.part.opened()) for member in members]
        for table in ROW_COUNTS:
            order = _block_order(layout.cuts(table)[first:last])
            plain: dict[str, Array] = {}
            # what others are relative to comes first
            for column in sorted(TABLES[table].columns, key=lambda c: c.after is not None):
                values = np.concatenate(
                    [
                        _column(layout, member, table, column, columns)
                        for member, columns in zip(members, opened, strict=True)
                    ]
                )
                if order is not None:
                    values = values[order]
                if any(other.after == column.name for other in TABLES[table].columns):
                    plain[column.name] = values
                reference = None if column.after is None else plain[column.after]
                out.put(f"{table}.{column.name}", encode(values, column, reference))
        _put_own_texts(layout, members, opened, out)
        foreign = _put_dependencies(layout, members, opened, out)
    out.close()
    return foreign


def _member(layout: Layout, number: int, source: Source, findings: Findings) -> _Member:
    part = source.part
    with part.opened() as columns:
        first = columns.read("keys.first").astype(np.int64)
    keys = np.full(part.keys + 1, -1, np.int64)
    keys[: part.executed] = layout.key_codes(layout.rows("tasks", number, first))
    own = np.zeros(part.keys, bool)
    own[: part.executed] = True
    return _Member(number, source, findings, keys, own)


def _put_told_codes(layout: Layout, members: Sequence[_Member]) -> None:
    """Set the codes of keys that another source executed first, or none."""
    base = layout.executed
    for stretch, unexecuted in enumerate(layout.unexecuted):
        with ColumnFile(layout.join_file(stretch)) as joined:
            firsts = joined.read("firsts", members[0].number, members[-1].number + 2).tolist()
            keys = joined.read("key", firsts[0], firsts[-1])
            values = joined.read("value", firsts[0], firsts[-1])
        codes = np.where(values >= 0, layout.key_codes(values), base - 1 - values)
        for member, begin, end in zip(members, firsts[:-1], firsts[1:], strict=True):
            told = slice(begin - firsts[0], end - firsts[0])
            member.keys[keys[told]] = codes[told]
            member.own[keys[told]] = False
        base += unexecuted
    for member in members:
        member.keys = member.keys.astype(np.int32)


def _block_order(cuts: Array) -> Array | None:
    """Give the rows of sources, one after the other, in the order of blocks; None: they are so."""
    if min(cuts.shape[0], cuts.shape[1] - 1) < 2:
        return None
    cuts = cuts.astype(np.int64)
    begins = cuts[:, :-1] + (np.cumsum(cuts[:, -1]) - cuts[:, -1])[:, None]
    counts, begins = np.diff(cuts).T.ravel(), begins.T.ravel()
    before = np.cumsum(counts) - counts
    order: Array = np.repeat(begins - before, counts) + np.arange(int(counts.sum()))
    return order


def _column(
    layout: Layout, member: _Member, table: str, column: Column, columns: ColumnFile
) -> Array:
    """Give a source's column in the trace's numbers."""
    source, name = member.source, column.name
    if name == "key":
        return member.keys[columns.read(f"{table}.key")]
    if (table, name) == ("tasks", "attempt"):
        attempt = columns.read("tasks.attempt").copy()
        attempt[member.findings.executions] = member.findings.attempts
        return attempt
    if (table, name) == ("memory", "managed"):
        return _managed(columns, source.part, member.findings)
    if (table, name) == ("memory", "transition"):
        return layout.rows("transitions", member.number, columns.read("memory.transition"))
    rows = int(layout.cuts(table)[member.number, -1])
    if name == "process" and table != "process_samples":
        return np.full(rows, source.row, np.int32)
    if name == "node":
        return np.full(rows, source.node, np.int32)
    values = columns.read(f"{table}.{name}")
    if (table, name) == ("call_samples", "task"):
        known = values >= 0
        tasks = np.full(len(values), -1, np.int32)
        tasks[known] = layout.rows("tasks", member.number, values[known])
        return tasks
    if column.unit == "ns" and name != "span":
        times = source.time(values)
        if (table, name) == ("tasks", "stop"):
            times[columns.read("tasks.ended") == 0] = -1
        return times
    codes = REFERENCES.get((table, name), column.dictionary)
    if codes is not None and codes not in FIXED:
        # the last one stands for -1
        return source.codes[codes][values]
    return values


def _managed(columns: ColumnFile, part: Part, findings: Findings) -> Array:
    """Add up a worker's memory; what came in with an unknown size has one by now."""
    step = columns.read("memory.step").copy()
    if len(findings.sized):
        sizes = np.zeros(part.keys + 1, np.int64)
        sizes[findings.sized] = findings.sizes
        key, entry, end = (columns.read(f"wanted.{n}") for n in ("key", "entry", "end"))
        np.add.at(step, entry, sizes[key])
        np.subtract.at(step, end[end >= 0], sizes[key][end >= 0])
    return np.cumsum(step)


def _put_own_texts(
    layout: Layout, members: Sequence[_Member], opened: Sequence[ColumnFile], out: ColumnFileWriter
) -> None:
    """Write the texts of the keys that these sources executed first, block after block."""
    texts, lengths, keys_before, bytes_before = [], [], [], []
    for member, columns in zip(members, opened, strict=True):
        executed = member.source.part.executed
        own = member.own[:executed]
        offsets = columns.read("keys.offset", 0, executed + 1)
        text, length = columns.read("keys.text", 0, int(offsets[-1])), np.diff(offsets)
        if not own.all():
            text, length = text[np.repeat(own, length)], length[own]
        # the keys' first executions are in order
        blocks = np.searchsorted(columns.read("keys.first"), layout.cuts("tasks")[member.number])
        keys_before.append(np.concatenate([[0], np.cumsum(own)])[blocks])
        bytes_before.append(np.concatenate([[0], np.cumsum(length)])[keys_before[-1]])
        texts.append(text.tobytes())
        lengths.append(length.astype(np.int32))
    cuts, ends = np.array(keys_before), np.array(bytes_before)
    order = _block_order(cuts)
    together = np.concatenate(lengths)
    out.put("length", together if order is None else together[order])
    ordered = [
        text[begin:end]
        for begins, block_ends in zip(ends.T[:-1].tolist(), ends.T[1:].tolist(), strict=True)
        for text, begin, end in zip(texts, begins, block_ends, strict=True)
    ]
    out.put("text", np.frombuffer(b"".join(ordered), np.uint8))
    out.put("keys.cuts", cuts.sum(axis=0))
    out.put("text.cuts", ends.sum(axis=0))


def _put_dependencies(
    layout: Layout, members: Sequence[_Member], opened: Sequence[ColumnFile], out: ColumnFileWriter
) -> Array:
    """Write the pairs whose key these sources executed first, and give the others."""
    here, foreign = [], []
    for member, columns in zip(members, opened, strict=True):
        key, dependency = (columns.read(f"dependencies.{n}") for n in ("key", "dependency"))
        pairs = np.stack([member.keys[key], member.keys[dependency]], axis=1).astype(np.int64)
        own = member.own[key]
        here.append(pairs[own, 0] << 32 | pairs[own, 1])
        foreign.append(pairs[~own])
    # codes rise with blocks, and in a block with sources
    ordered = np.sort(np.concatenate(here))
    starts = np.array([layout.first_code(block) for block in range(layout.blocks + 1)], np.int64)
    out.put("dependencies.cuts", np.searchsorted(ordered, starts << 32))
    out.put("dependencies.key", (ordered >> 32).astype(np.int32))
    out.put("dependencies.dependency", (ordered & 0xFFFFFFFF).astype(np.int32))
    return np.concatenate(foreign)
