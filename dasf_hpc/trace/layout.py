"""Trace, second step of a merge: where every row of every part goes, and which keys are the same.

The rows of a merged trace lie in blocks of time, and in a block process after process. A row's
number then follows from how many rows each process has in each block, so that nothing is sorted
again: `Layout` holds those numbers. Keys are numbered by the row of their first execution; only a
key that is in several parts, or was never executed, has to be looked for (`join_keys`), which
goes by stretches of digests, so that no more than one stretch is ever in memory.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.parts import ROW_COUNTS, ColumnFile, ColumnFileWriter, Part

Array = NDArray[Any]

#: Rows of all tables that a block has on average. A block is what is in memory at once, and what
#: is read at least of a table; more rows do not compress better (measured).
BLOCK_ROWS = 1 << 19

#: Keys, of all parts, that are looked for at once.
JOIN_KEYS = 1 << 18

#: Times that are looked at in each table of each part to tell where blocks begin.
_SAMPLES = 512

#: How far a correction's inverse is off at most, ns: both round.
_INVERSE_OFF = 8


@dataclass
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
    cuts
        By table, for each source the first of its rows in each block, and their number.
    offsets
        By table, for each source and block, the row of the trace where those rows go.
    repeats
        Rows of ``tasks`` whose key stands, or is not known, in an earlier one; sorted.
    unexecuted
        Number of keys that were never executed, by stretch of digests.
    finals
        The columns that `finish_source` made, by source.
    foreign
        Pairs of ``dependencies`` that a process recorded whose key another one executed first.
    longest_key
        Bytes of the longest key.
    """

    sources: list[Source]
    folder: Path
    starts: Array
    cuts: dict[str, Array] = field(default_factory=dict)
    offsets: dict[str, Array] = field(default_factory=dict)
    repeats: Array = field(default_factory=lambda: np.empty(0, np.int64))
    unexecuted: list[int] = field(default_factory=list)
    finals: list[dict[str, tuple[int, str, int]]] = field(default_factory=list)
    foreign: Array = field(default_factory=lambda: np.empty((0, 2), np.int64))
    longest_key: int = 0

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.starts)

    def count(self, table: str) -> int:
        """Give the number of rows of a table."""
        return int((self.cuts[table][:, -1]).sum())

    def block_offset(self, table: str, block: int) -> int:
        """Give the first row of a block in a table."""
        if not len(self.sources):
            return 0
        return int(self.offsets[table][0, block]) if block < self.blocks else self.count(table)

    def rows(self, table: str, source: int, own: Array) -> Array:
        """Give the trace's rows of a source's rows."""
        cuts = self.cuts[table][source]
        block = np.searchsorted(cuts, own, side="right") - 1
        result: Array = self.offsets[table][source, block] + own - cuts[block]
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

    def final_file(self, source: int) -> Path:
        """Give the file of the columns that `finish_source` made."""
        return self.folder / f"{source}.final"

    def join_file(self, stretch: int) -> Path:
        """Give the file of the columns that `join_keys` made."""
        return self.folder / f"{stretch}.join"

    def save(self, name: str) -> Path:
        """Put this where the steps that follow find it."""
        path = self.folder / f"{name}.layout"
        path.write_bytes(pickle.dumps(self, pickle.HIGHEST_PROTOCOL))
        return path


@functools.lru_cache(maxsize=1)
def load(path: Path) -> Layout:
    """Give a layout that was saved."""
    layout = pickle.loads(path.read_bytes())
    assert isinstance(layout, Layout)
    return layout


# ------------------------------------------------------------------------------ blocks


def mapped(part: Part, name: str) -> Array:
    """Give a column of a part to look at in few places."""
    offset, dtype, count = part.columns[name]
    if not count:
        return np.empty(0, dtype)
    return np.memmap(part.file, dtype, "r", offset, (count,))


def lay_out(sources: Sequence[Source], folder: Path) -> Layout:
    """Divide a run into blocks and say where each source's rows go."""
    layout = Layout(list(sources), folder, _block_starts(sources))
    layout.longest_key = max((source.part.longest_key for source in sources), default=0)
    for table, column in ROW_COUNTS.items():
        if table == "memory":
            continue
        layout.cuts[table] = _cuts(layout, f"{table}.{column}")
    layout.cuts["memory"] = _memory_cuts(layout)
    for table, cuts in layout.cuts.items():
        counts = np.diff(cuts, axis=1)
        before = np.cumsum(counts.T.ravel()) - counts.T.ravel()
        layout.offsets[table] = before.reshape(counts.T.shape).T
    return layout


def _block_starts(sources: Sequence[Source]) -> Array:
    """Choose where blocks begin, so that each has about as many rows."""
    times, weights = [], []
    total = 0
    for source in sources:
        for table, column in ROW_COUNTS.items():
            if table == "memory":
                continue
            values = mapped(source.part, f"{table}.{column}")
            total += len(values)
            if len(values):
                step = max(1, len(values) // _SAMPLES)
                taken = np.array(values[::step])
                times.append(source.time(taken))
                weights.append(np.full(len(taken), len(values) / len(taken)))
    blocks = max(1, round(total / BLOCK_ROWS))
    if not times:
        return np.zeros(1, np.int64)
    time, weight = np.concatenate(times), np.concatenate(weights)
    order = np.argsort(time, kind="stable")
    before = np.cumsum(weight[order]) - weight[order]
    places = np.searchsorted(before, np.arange(1, blocks) * (total / blocks))
    inner = time[order][np.minimum(places, len(order) - 1)]
    first = int(time[order[0]])
    return np.unique(np.concatenate([[first], inner[inner > first]])).astype(np.int64)


def _cuts(layout: Layout, name: str) -> Array:
    cuts = np.zeros((len(layout.sources), layout.blocks + 1), np.int64)
    for row, source in enumerate(layout.sources):
        values = mapped(source.part, name)
        cuts[row, -1] = len(values)
        if len(values) and layout.blocks > 1:
            cuts[row, 1:-1] = np.searchsorted(values, source.raw_times(layout.starts[1:]))
    return cuts


def _memory_cuts(layout: Layout) -> Array:
    cuts = np.zeros((len(layout.sources), layout.blocks + 1), np.int64)
    for row, source in enumerate(layout.sources):
        cuts[row] = np.searchsorted(
            mapped(source.part, "memory.transition"), layout.cuts["transitions"][row]
        )
    return cuts


# ------------------------------------------------------------------------------ keys


@dataclass
class JoinedKeys:
    """What was found of the keys in one stretch of digests; the rest lies in a file.

    Attributes
    ----------
    columns
        Of the file: ``key`` and ``value`` of keys whose code is not the row of their own
        execution, source after source; ``source`` and ``text`` of each that was never executed.
    firsts
        For each source, the first of its rows among them, and their number.
    unexecuted
        Number of keys in the stretch that were never executed.
    contested
        Keys that several sources executed: key, source, key in the source.
    wanted
        Keys of which a source could not tell the size: source, key in it, and source and key in it
        where it was executed.
    """

    columns: dict[str, tuple[int, str, int]]
    firsts: Array
    unexecuted: int
    contested: Array
    wanted: Array


def stretches(layout: Layout) -> int:
    """Give the number of stretches into which digests are divided, a power of two."""
    keys = sum(source.part.keys for source in layout.sources)
    return 1 << max(0, (keys // JOIN_KEYS).bit_length())


def join_keys(layout_file: Path, stretch: int, count: int) -> JoinedKeys:
    """Find which keys of the sources are the same, in one of `count` stretches of digests."""
    layout = load(layout_file)
    found: list[list[Array]] = []
    width = (1 << 64) // count
    for number, source in enumerate(layout.sources):
        digests = mapped(source.part, "digests.digest")
        begin = int(np.searchsorted(digests, np.uint64(stretch * width))) if stretch else 0
        end = len(digests)
        if stretch + 1 < count:
            end = int(np.searchsorted(digests, np.uint64((stretch + 1) * width)))
        if begin == end:
            continue
        with source.part.opened() as columns:
            own = [
                columns.read(f"digests.{name}", begin, end)
                for name in ("digest", "digest2", "key", "execution", "start", "wanted")
            ]
        own[4] = np.where(own[3] >= 0, source.time(own[4]), np.iinfo(np.int64).max)
        found.append([*own, np.full(end - begin, number, np.int32)])
    if not found:
        found = [[np.empty(0, t) for t in ("u8", "u8", "i4", "i4", "i8", "i1", "i4")]]
    digest, digest2, key, execution, start, wanted, number_of = (
        np.concatenate(parts) for parts in zip(*found, strict=True)
    )
    del found
    # Of equal keys the one that was executed first comes first, else that of the first process.
    order = _order(digest, digest2, start, number_of)
    key, execution, number_of = key[order], execution[order], number_of[order]
    new = np.ones(len(order), bool)
    new[1:] = (digest[order][1:] != digest[order][:-1]) | (
        digest2[order][1:] != digest2[order][:-1]
    )
    group = np.cumsum(new) - 1
    home = np.flatnonzero(new)
    home_executed = execution[home] >= 0

    value = np.empty(len(home), np.int64)
    never = np.flatnonzero(~home_executed)
    value[never] = -1 - np.arange(len(never))
    for number in np.unique(number_of[home[home_executed]]).tolist():
        theirs = np.flatnonzero(home_executed & (number_of[home] == number))
        value[theirs] = layout.rows("tasks", number, execution[home[theirs]].astype(np.int64))

    told = np.flatnonzero(~new | ~home_executed[group])
    told = told[np.argsort(number_of[told], kind="stable")]
    executors = np.bincount(group[execution >= 0], minlength=len(home))
    contested = np.flatnonzero((executors[group] > 1) & (execution >= 0))
    out = ColumnFileWriter(layout.join_file(stretch))
    out.put("key", key[told])
    out.put("value", value[group[told]])
    out.put("source", number_of[home[never]])
    out.put("text", key[home[never]])
    out.close()
    return JoinedKeys(
        columns=out.columns,
        firsts=np.searchsorted(number_of[told], np.arange(len(layout.sources) + 1)),
        unexecuted=len(never),
        contested=np.stack([group[contested], number_of[contested], key[contested]], axis=1).astype(
            np.int64
        ),
        wanted=_wanted(group, wanted[order] > 0, execution >= 0, number_of, key),
    )


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


# ------------------------------------------------------------------------------ sources


@dataclass
class Findings:
    """What the other sources have to do with one: see `JoinedKeys` and `Contested`."""

    joined: list[tuple[dict[str, tuple[int, str, int]], int, int]]
    executions: Array
    attempts: Array
    sized: Array
    sizes: Array


def finish_source(
    layout_file: Path, number: int, findings: Findings
) -> tuple[dict[str, tuple[int, str, int]], Array]:
    """Give a source's keys their codes, in every column that holds any.

    Returns
    -------
    columns
        Of the file that was written.
    foreign
        Pairs (key, dependency) that do not go to the blocks of this source.
    """
    layout = load(layout_file)
    part = layout.sources[number].part
    out = ColumnFileWriter(layout.final_file(number))
    with part.opened() as columns:
        first = columns.read("keys.first").astype(np.int64)
        codes = np.full(part.keys + 1, -1, np.int64)
        codes[: part.executed] = layout.key_codes(layout.rows("tasks", number, first))
        own = np.zeros(part.keys, bool)
        own[: part.executed] = True
        base = layout.executed
        for stretch, (described, begin, end) in enumerate(findings.joined):
            if begin < end:
                with ColumnFile(layout.join_file(stretch), described) as joined:
                    key = joined.read("key", begin, end)
                    value = joined.read("value", begin, end)
                codes[key] = np.where(value >= 0, layout.key_codes(value), base - 1 - value)
                own[key] = False
            base += layout.unexecuted[stretch]
        codes = codes.astype(np.int32)
        for table in ("tasks", "transitions", "activities", "reschedules"):
            out.put(f"{table}.key", codes[columns.read(f"{table}.key")])
        attempt = columns.read("tasks.attempt").copy()
        attempt[findings.executions] = findings.attempts
        out.put("tasks.attempt", attempt)
        out.put("keys.own", own.astype(np.int8))
        out.put("memory.managed", _managed(columns, part, findings))

        key, dependency = (columns.read(f"dependencies.{n}") for n in ("key", "dependency"))
        here = own[key]
        pairs = np.stack([codes[key], codes[dependency]], axis=1).astype(np.int64)
        foreign, pairs = pairs[~here], pairs[here]
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        starts = [layout.first_code(block) for block in range(layout.blocks + 1)]
        out.put("dependencies.cuts", np.searchsorted(pairs[:, 0], starts))
        out.put("dependencies.key", pairs[:, 0].astype(np.int32))
        out.put("dependencies.dependency", pairs[:, 1].astype(np.int32))
    out.close()
    return out.columns, foreign


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
