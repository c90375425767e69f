"""Trace, third step of a merge: a block of time, of every source, becomes columns of the trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.chunks import Piece, encode, piece
from dasf_hpc.trace.layout import Layout, load
from dasf_hpc.trace.parts import ROW_COUNTS, ColumnFile, key_texts
from dasf_hpc.trace.schema import TABLES, Column
from dasf_hpc.trace.store import LONGEST_FIXED

Array = NDArray[Any]

#: Dictionaries whose codes are the same in every part.
FIXED = frozenset({"keys", "states", "task_states", "directions"})

#: Columns of rows of another table that a part cannot know: the name under which `Source.codes`
#: has them.
REFERENCES = {
    ("transfers", "peer_process"): "peers",
    ("gpu_samples", "gpu"): "gpus",
    ("process_samples", "process"): "pids",
}

#: Columns that `finish_source` made.
_FINAL = {
    *((table, "key") for table in ("tasks", "transitions", "activities", "reschedules")),
    ("tasks", "attempt"),
    ("memory", "managed"),
}


def build_block(layout_file: Path, block: int) -> dict[str, dict[str, Piece]]:
    """Give a block's rows of every table, and the strings of its keys, ready to be written."""
    layout = load(layout_file)
    columns: dict[str, dict[str, list[Array]]] = {
        table: {column.name: [] for column in TABLES[table].columns}
        for table in (*ROW_COUNTS, "dependencies")
    }
    texts: list[bytes] = []
    for number, source in enumerate(layout.sources):
        if not any(_span(layout, table, number, block)[2] for table in ROW_COUNTS):
            continue
        with (
            source.part.opened() as own,
            ColumnFile(layout.final_file(number), layout.finals[number]) as final,
        ):
            for table in ROW_COUNTS:
                begin, end, count = _span(layout, table, number, block)
                if count:
                    for column in TABLES[table].columns:
                        values = _column(layout, number, table, column, own, final, begin, end)
                        columns[table][column.name].append(values)
            begin, end = final.read("dependencies.cuts", block, block + 2).tolist()
            for name in ("key", "dependency"):
                columns["dependencies"][name].append(final.read(f"dependencies.{name}", begin, end))
            texts += _own_keys(layout, number, block, own, final)
    pieces: dict[str, dict[str, Piece]] = {}
    for table in ROW_COUNTS:
        whole = _together(table, columns.pop(table))
        first = layout.block_offset(table, block)
        pieces[table] = {
            name: piece(values, first, TABLES[table].column(name)) for name, values in whole.items()
        }
    pieces["dependencies"] = _dependencies(layout, block, columns["dependencies"])
    pieces["keys"] = {"": strings_piece(layout, texts, layout.first_code(block))}
    return pieces


def _span(layout: Layout, table: str, number: int, block: int) -> tuple[int, int, int]:
    begin, end = layout.cuts[table][number, block : block + 2].tolist()
    return begin, end, end - begin


def _column(
    layout: Layout,
    number: int,
    table: str,
    column: Column,
    own: ColumnFile,
    final: ColumnFile,
    begin: int,
    end: int,
) -> Array:
    """Give a source's rows of a column in the trace's numbers."""
    source, name = layout.sources[number], column.name
    codes = REFERENCES.get((table, name), column.dictionary)
    if (table, name) in _FINAL:
        return final.read(f"{table}.{name}", begin, end)
    if (table, name) == ("memory", "transition"):
        return layout.rows("transitions", number, own.read("memory.transition", begin, end))
    if name == "process" and table != "process_samples":
        return np.full(end - begin, source.row, np.int32)
    if name == "node":
        return np.full(end - begin, source.node, np.int32)
    values = own.read(f"{table}.{name}", begin, end)
    if column.unit == "ns":
        times = source.time(values)
        if (table, name) == ("tasks", "stop"):
            times[own.read("tasks.ended", begin, end) == 0] = -1
        return times
    if codes is not None and codes not in FIXED:
        # the last one stands for -1
        return source.codes[codes][values]
    return values


def _together(table: str, parts: dict[str, list[Array]]) -> dict[str, Array]:
    """Put the sources' rows one after the other, as they are stored."""
    plain: dict[str, Array] = {}
    for column in TABLES[table].columns:
        arrays = parts.pop(column.name)
        values = np.concatenate(arrays) if arrays else np.empty(0, column.dtype)
        plain[column.name] = values
    return {
        column.name: encode(
            plain[column.name], column, None if column.after is None else plain[column.after]
        )
        for column in TABLES[table].columns
    }


def _own_keys(
    layout: Layout, number: int, block: int, own: ColumnFile, final: ColumnFile
) -> list[bytes]:
    """Give the texts of the keys that were executed first by this source in this block."""
    begin, end, _ = _span(layout, "tasks", number, block)
    first, last = np.searchsorted(own.read("keys.first"), [begin, end]).tolist()
    mine = final.read("keys.own", first, last)
    texts = key_texts(own, first, last)
    return [text for text, is_mine in zip(texts, mine.tolist(), strict=True) if is_mine]


def _dependencies(layout: Layout, block: int, parts: dict[str, list[Array]]) -> dict[str, Piece]:
    """Give the pairs of the block's keys, each once whoever recorded it."""
    key, dependency = (
        np.concatenate(parts[n]) if parts[n] else np.empty(0, np.int32)
        for n in ("key", "dependency")
    )
    first, last = np.searchsorted(
        layout.foreign[:, 0], [layout.first_code(block), layout.first_code(block + 1)]
    )
    foreign = layout.foreign[first:last]
    if len(foreign):
        pairs = np.concatenate([np.stack([key, dependency], axis=1), foreign])
        key, dependency = np.unique(pairs, axis=0).T
    return dependency_pieces(key, dependency)


def dependency_pieces(key: Array, dependency: Array) -> dict[str, Piece]:
    """Give pairs as they are stored; nobody knows yet where in the table they go."""
    columns = TABLES["dependencies"].columns
    values = {"key": key, "dependency": dependency}
    return {
        column.name: Piece(
            encode(values[column.name], column, values[column.after] if column.after else None)
        )
        for column in columns
    }


def strings_piece(layout: Layout, texts: list[bytes], first: int) -> Any:
    """Give strings of the dictionary of keys, of which `first` is the first one's code."""
    if layout.longest_key > LONGEST_FIXED:
        return texts
    return piece(np.array(texts, f"S{max(1, layout.longest_key)}"), first, None)


def unexecuted_keys(
    layout_file: Path, stretch: int, columns: dict[str, tuple[int, str, int]], first: int
) -> Any:
    """Give the strings of the keys that were never executed, of one stretch of digests."""
    layout = load(layout_file)
    with ColumnFile(layout.join_file(stretch), columns) as joined:
        number_of, keys = joined.read("source"), joined.read("text")
    texts = [b""] * len(keys)
    for number in np.unique(number_of).tolist():
        with layout.sources[number].part.opened() as own:
            places = np.flatnonzero(number_of == number)
            offsets = own.read("keys.offset")
            for place in places.tolist():
                begin, end = offsets[keys[place] : keys[place] + 2].tolist()
                texts[place] = own.read("keys.text", begin, end).tobytes()
    return strings_piece(layout, texts, first)


def task_places(layout: Layout) -> dict[str, Array]:
    """Give the ids and processes of all tasks, in the order of their rows."""
    ids = np.empty(layout.count("tasks"), np.int64)
    process = np.empty(len(ids), np.int32)
    for number, source in enumerate(layout.sources):
        with source.part.opened() as own:
            read = own.read("tasks.id")
        rows = layout.rows("tasks", number, np.arange(len(read)))
        ids[rows], process[rows] = read, source.row
    return {"id": ids, "process": process}


def no_tasks() -> dict[str, Array]:
    """Give the columns of `tasks_of` without a row."""
    return {name: np.empty(0, np.int64) for name in ("id", "row", "thread", "start", "stop")}


def tasks_of(layout: Layout, process: int) -> dict[str, Array]:
    """Give what is known of when the tasks of one process ran, in trace time (stop -1: never)."""
    number = next((n for n, source in enumerate(layout.sources) if source.row == process), None)
    if number is None:
        return no_tasks()
    source = layout.sources[number]
    with source.part.opened() as own:
        found = {n: own.read(f"tasks.{n}") for n in ("id", "thread")}
        found |= {n: source.time(own.read(f"tasks.{n}")) for n in ("start", "stop")}
        found["stop"][own.read("tasks.ended") == 0] = -1
    found["row"] = layout.rows("tasks", number, np.arange(len(found["id"])))
    return found
