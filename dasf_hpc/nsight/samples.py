"""Nsight, samples of the CPU with the stacks of calls: which function ran how often.

Stacks are kept as a tree (table ``stacks``): a call stands once below the call that made it,
however many samples saw it. Frames of Python, which newer nsys add to the others, are calls as any.

Nothing that tells folders is kept: a module is the name of its file alone, whether of the system or
of a user. An address that nsys could not name is none: it differs from run to run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.scheduling import THREAD_STATES
from dasf_hpc.nsight.sqlite import NONE, Export, distinct_values

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Additions, Placing

Array = npt.NDArray[Any]

SAMPLES, CHAINS = "COMPOSITE_EVENTS", "SAMPLING_CALLCHAINS"

#: Rows of call chains that are read at once, about.
CALLS_AT_ONCE = 1 << 20
#: What tells the calls of a report apart.
_CALL = ("parent", "function", "module")

#: A name without one: what nsys writes where it found no symbol.
_ADDRESS = re.compile(r"^(?:0x)?[0-9a-f]{6,}$", re.IGNORECASE)
#: Folders within a name, as of a script or of a lambda's place.
_FOLDERS = re.compile(r"(?:(?<![\w.>)\]])|(?<=\b[A-Za-z]:))[/\\](?:[^/\\\s:()<>,'\"]+[/\\])+")
#: Frames that nsys makes itself, as ``[Broken backtraces]``.
_MADE = re.compile(r"^\[.*\]$")


def place(placing: Placing) -> None:
    """Put a report's samples into a file, and their stacks into table ``stacks``."""
    with Export.opened(placing.report.sqlite) as export:
        columns = export.columns.get(SAMPLES, {})
        if not {"id", "start", "globalTid"} <= columns.keys():
            return
        # where a thread was switched nsys may note its calls, too: that is no sample
        where = "coalesce(cpuCycles, 1) != 0" if "cpuCycles" in columns else "1"
        sample = export.numbers(
            SAMPLES,
            {
                "id": ("id", NONE),
                "pid": ("globalTid", NONE),
                "tid": ("globalTid", NONE),
                "start": ("start", NONE),
                "cpu": ("cpu", NONE),
                "state": ("threadState", NONE),
            },
            where=where,
        )
        own = placing.own_pids()
        if not len(own) and not placing.known:
            own = distinct_values(sample["pid"])[0]  # nothing but samples says what was profiled
        mine = np.isin(sample["pid"], own) & (sample["start"] != NONE)
        sample = {name: values[mine] for name, values in sample.items()}
        if not len(sample["id"]):
            return
        stack = stacks_of(export, sample.pop("id"), placing.additions)
        states = {**THREAD_STATES, **export.enum("ENUM_SAMPLING_THREAD_STATE")}
    pid, start = sample["pid"], sample["start"]
    process = placing.process(pid)
    placing.times(pid, start)
    task, reason = placing.task_at(pid, sample["tid"], start)
    cpu = sample["cpu"]
    placing.spool(
        "cpu_samples",
        {
            "process": process,
            "thread": sample["tid"],
            "start": start,
            "stack": stack,
            "cpu": np.where((cpu >= 0) & (cpu < 1 << 15), cpu, NONE).astype(np.int16),
            "state": placing.kinds("thread_states", states, sample["state"]),
            "task": task,
            "reason": placing.reason_codes[reason],
        },
    )


def stacks_of(export: Export, wanted: Array, additions: Additions) -> Array:
    """Put the stacks of samples into table ``stacks``.

    Parameters
    ----------
    export
        The export.
    wanted
        Ids of the samples.
    additions
        The trace.

    Returns
    -------
    int32
        Row of each sample's innermost call, -1 for none.
    """
    tree = _Tree()
    found = np.full(len(wanted), NONE, np.int32)
    order = np.argsort(wanted, kind="stable")
    ids = wanted[order]
    for sample, frame in _chains(export, ids):
        place = np.searchsorted(ids, sample)
        place = np.minimum(place, len(ids) - 1)
        own = ids[place] == sample
        place, frame = place[own], frame[own]
        first = np.flatnonzero(np.append(True, place[1:] != place[:-1])[: len(place)])
        length = np.diff(np.append(first, len(place)))
        found[order[place[first]]] = tree.add(frame, first, length)
    rows = _store(tree, export, additions)
    return np.append(rows, NONE).astype(np.int32)[found]


class _Tree:
    """Stacks of frames: a node for each different one.

    Attributes
    ----------
    parent, frame
        Of each node; a parent comes before what it called, and a frame is a position in `frames`.
    frames
        The different frames.
    """

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.frame: list[int] = []
        self.frames: list[int] = []
        self._node: dict[int, int] = {}
        self._code: dict[int, int] = {}

    def _node_of(self, key: int) -> int:
        """Give the node of a frame below another one, both in one number."""
        found = self._node.setdefault(key, len(self.parent))
        if found == len(self.parent):
            self.parent.append((key >> 32) - 1)
            self.frame.append(key & 0xFFFFFFFF)
        return found

    def _code_of(self, frame: int) -> int:
        found = self._code.setdefault(frame, len(self.frames))
        if found == len(self.frames):
            self.frames.append(frame)
        return found

    def add(self, frame: Array, first: Array, length: Array) -> Array:
        """Add chains, and give the node of the innermost frame of each.

        Parameters
        ----------
        frame
            Frames of all chains, each from the outermost on.
        first, length
            Where each begins, and how many frames it has, one at least.
        """
        distinct, index = np.unique(frame, return_inverse=True)
        code = np.array([self._code_of(own) for own in distinct.tolist()], np.int64)[index]
        node = np.full(len(first), NONE, np.int64)
        longest = int(length.max()) if len(length) else 0
        # a level of all chains at once; only different frames below different ones count
        going = np.arange(len(first))
        for level in range(longest):
            going = going[length[going] > level]
            keys = ((node[going] + 1) << 32) | code[first[going] + level]
            distinct, index = np.unique(keys, return_inverse=True)
            node[going] = np.array([self._node_of(key) for key in distinct.tolist()])[index]
        return node


def _chains(export: Export, ids: Array) -> Iterator[tuple[Array, Array]]:
    """Read chains a stretch of ids at a time: of each call its sample and frame, outermost first.

    A frame is one number: symbol and module, 32 bits each; one without a name has no symbol.
    """
    columns = export.columns.get(CHAINS, {})
    if not {"id", "symbol", "module", "stackDepth"} <= columns.keys() or not len(ids):
        return
    ((count, first, last),) = export.query(f"SELECT count(*), min(id), max(id) FROM {CHAINS}")
    if not count:
        return
    first, last = max(first, int(ids[0])), min(last, int(ids[-1]))
    step = max(1, int(len(ids) * CALLS_AT_ONCE / count))
    symbol = "coalesce(symbol, -1)"
    if "unresolved" in columns:
        symbol = f"CASE WHEN coalesce(unresolved, 0) THEN -1 ELSE {symbol} END"
    sql = (
        f"SELECT id, {symbol}, coalesce(module, -1) FROM {CHAINS} "
        "WHERE id BETWEEN {} AND {} ORDER BY id, stackDepth DESC"
    )
    bounds = [*ids[::step].tolist(), last + 1]
    for low, high in itertools.pairwise(bounds):
        if low > last or high <= first:
            continue
        found = export.page(sql.format(low, high - 1), CHAINS)
        if found:
            sample, own, module = found
            yield sample, (own << 32) | (module & 0xFFFFFFFF)


def _store(tree: _Tree, export: Export, additions: Additions) -> Array:
    """Put a tree into table ``stacks``, whose rows other reports may have made; gives its rows."""
    additions.made("stacks")
    if not tree.parent:
        return np.empty(0, np.int64)
    table = additions.run.tables["stacks"]
    distinct, index = np.array(tree.frames, np.int64), np.array(tree.frame)
    module = distinct & 0xFFFFFFFF
    module[module == 0xFFFFFFFF] = NONE
    functions, modules = (_values(export, ids) for ids in (distinct >> 32, module))
    made = [_MADE.match(name) is not None for name in functions]
    function_code = additions.strings("frame_functions").codes(
        None if not name or _ADDRESS.match(name) else _FOLDERS.sub("", name) for name in functions
    )
    module_code = additions.strings("frame_modules").codes(
        None if is_made or not name else file_name(name)
        for name, is_made in zip(modules, made, strict=True)
    )
    count = old = len(table["parent"])
    # those at a line were sampled by Python, and stand for other calls
    known = {
        (parent, function, file): row
        for row, (line, parent, function, file) in enumerate(
            zip(*(table[n].tolist() for n in ("line", *_CALL)), strict=True)
        )
        if line == NONE
    }
    own = zip(function_code[index].tolist(), module_code[index].tolist(), strict=True)
    rows: list[int] = []
    added: list[tuple[int, int, int]] = []
    # names of different symbols may be the same, so nodes may fall together
    for parent, (function, file) in zip(tree.parent, own, strict=True):
        key = (rows[parent] if parent != NONE else NONE, function, file)
        row = known.get(key)
        if row is None:
            row = known[key] = count
            count += 1
            added.append(key)
        rows.append(row)
    new = np.array(added, np.int64).reshape(-1, len(_CALL))
    for name, values in table.items():
        more = new[:, _CALL.index(name)] if name in _CALL else np.full(count - old, NONE)
        table[name] = np.concatenate([values, more.astype(values.dtype)])
    return np.array(rows, np.int64)


def _values(export: Export, ids: Array) -> list[str]:
    """Give the string of each id, "" for none."""
    unique, index = distinct_values(ids)
    texts = export.strings(unique).values().tolist()
    return [texts[place] for place in index.tolist()]


def file_name(path: str) -> str | None:
    """Give the last part of a path, of this system or of Windows."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or None
