"""Trace, third step of a merge: a block of time, of every group, becomes columns of the trace."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.chunks import Piece, encode, piece
from dasf_hpc.trace.layout import Layout, load
from dasf_hpc.trace.parts import ROW_COUNTS, ColumnFile
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import LONGEST_FIXED

Array = NDArray[Any]


def build_block(layout_file: Path, block: int) -> dict[str, dict[str, Piece]]:
    """Give a block's rows of every table, and the strings of its keys, ready to be written."""
    layout = load(layout_file)
    found: dict[tuple[str, str], list[Array]] = {
        (table, column.name): [] for table in ROW_COUNTS for column in TABLES[table].columns
    }
    pairs: list[Array] = []
    texts: list[Array] = []
    lengths: list[Array] = []
    for group in range(len(layout.groups)):
        with ColumnFile(layout.group_file(group)) as columns:
            for table in ROW_COUNTS:
                begin, end = layout.group_cuts(table, group)[block : block + 2].tolist()
                if begin < end:
                    for column in TABLES[table].columns:
                        read = columns.read(f"{table}.{column.name}", begin, end)
                        found[table, column.name].append(read)
            begin, end = columns.read("dependencies.cuts", block, block + 2).tolist()
            names = ("key", "dependency")
            pairs.append(
                np.stack([columns.read(f"dependencies.{n}", begin, end) for n in names], axis=1)
            )
            begin, end = columns.read("text.cuts", block, block + 2).tolist()
            texts.append(columns.read("text", begin, end))
            begin, end = columns.read("keys.cuts", block, block + 2).tolist()
            lengths.append(columns.read("length", begin, end))
    pieces: dict[str, dict[str, Piece]] = {}
    for table in ROW_COUNTS:
        first = layout.block_offset(table, block)
        pieces[table] = {}
        for column in TABLES[table].columns:
            arrays = found.pop((table, column.name))
            values = np.concatenate(arrays) if arrays else np.empty(0, column.dtype)
            pieces[table][column.name] = piece(values, first, column)
    pieces["dependencies"] = _dependencies(layout, block, pairs)
    text = np.concatenate([np.empty(0, np.uint8), *texts])
    length = np.concatenate([np.empty(0, np.int32), *lengths])
    pieces["keys"] = {"": strings_piece(layout, text, length, layout.first_code(block))}
    return pieces


def _dependencies(layout: Layout, block: int, found: list[Array]) -> dict[str, Piece]:
    """Give the pairs of the block's keys, each once whoever recorded it."""
    pairs = np.concatenate([np.empty((0, 2), np.int32), *found])
    first, last = np.searchsorted(
        layout.foreign[:, 0], [layout.first_code(block), layout.first_code(block + 1)]
    )
    foreign = layout.foreign[first:last]
    if len(foreign):
        pairs = np.unique(np.concatenate([pairs, foreign]), axis=0)
    return dependency_pieces(*pairs.T)


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


def strings_piece(layout: Layout, text: Array, lengths: Array, first: int) -> Any:
    """Give strings of the dictionary of keys, of which `first` is the first one's code.

    Parameters
    ----------
    text
        Their bytes, one string after the other.
    lengths
        Bytes of each.
    """
    width = max(1, layout.longest_key)
    if width > LONGEST_FIXED:
        data = text.tobytes()
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).tolist()
        return [data[a:b] for a, b in itertools.pairwise(ends)]
    padded = np.zeros((len(lengths), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = text
    return piece(padded.view(f"S{width}").ravel(), first, None)


def unexecuted_keys(layout_file: Path, stretch: int, first: int) -> Any:
    """Give the strings of the keys that were never executed, of one stretch of digests."""
    layout = load(layout_file)
    with ColumnFile(layout.join_file(stretch)) as joined:
        return strings_piece(layout, joined.read("text"), joined.read("length"), first)


def task_places(layout: Layout) -> dict[str, Array]:
    """Give the ids and processes of all tasks, in the order of their rows."""
    places = {"id": np.empty(layout.count("tasks"), np.int64)}
    places["process"] = np.empty(len(places["id"]), np.int32)
    for group in range(len(layout.groups)):
        cuts = layout.group_cuts("tasks", group)
        shift = np.repeat(layout.group_rows("tasks", group) - cuts[:-1], np.diff(cuts))
        with ColumnFile(layout.group_file(group)) as columns:
            for name, values in places.items():
                values[shift + np.arange(len(shift))] = columns.read(f"tasks.{name}")
    return places


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
