"""Show, as Chrome's trace events: JSON that chrome://tracing, Perfetto and Speedscope open.

Format: "Trace Event Format", Google; times in it are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

from dasf_hpc.show.timeline import FIRST_GPU, Group, Mark, Row, Slice

#: Ids that are not the operating system's begin here: Linux has none above 2^22.
_FIRST_MADE = 1 << 22

#: Processes of a node, and rows of a GPU, for which there are numbers to sort them by.
_PROCESSES, _ROWS = 1_000_000, 1_000_000


class ChromeDrawing:
    """Draws into a JSON file, an event a line.

    The format has processes and threads only. Nodes and workers are processes; a GPU's streams are
    threads of the process that uses it. Ids are the operating system's where they are unique.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._groups: dict[int, Group] = {}
        self._pids: dict[int, int] = {}
        self._places: dict[int, dict[str, int]] = {}
        self._counters: dict[int, tuple[int, str]] = {}
        self._taken: set[tuple[int, ...]] = set()
        self._facts: dict[str, str] = {}
        self._first = True
        file.write(b'{"traceEvents":[\n')

    def about(self, facts: dict[str, str], roots: Sequence[str]) -> None:
        """Keep it for the end of the file, where the format has its metadata."""
        self._facts = facts

    def group(self, group: Group) -> None:
        """Declare a process."""
        self._groups[group.number] = group
        if group.inner and group.parent is not None:
            self._pids[group.number] = self._pids[group.parent]
            return
        pid = self._pids[group.number] = self._id(group.pid, group.number)
        self._about(pid, "process_name", name=group.path)
        rank = (group.rank + 1) * _PROCESSES
        if group.parent is not None:
            rank = (self._groups[group.parent].rank + 1) * _PROCESSES + group.rank + 1
        self._about(pid, "process_sort_index", sort_index=rank)
        if group.about:
            self._about(pid, "process_labels", labels=group.about)

    def track(self, row: Row) -> None:
        """Declare a thread."""
        pid, name, group = *self._named(row), self._groups[row.group]
        tid = self._id(row.thread, row.number, pid)
        self._places[row.number] = {"pid": pid, "tid": tid}
        self._about(pid, "thread_name", tid, name=name)
        rank = row.rank
        if group.inner:
            rank = group.rank + (group.rank - FIRST_GPU) * _ROWS + min(row.rank, _ROWS - 1)
        self._about(pid, "thread_sort_index", tid, sort_index=rank)

    def counter(self, row: Row, unit: str) -> None:
        """Declare a counter, which in this format is a name."""
        pid, name = self._named(row)
        self._counters[row.number] = pid, f"{name} [{unit}]"

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices, and arrows from a task to those that need it and to its kernels."""
        for one in slices:
            place = self._places[one.track]
            self._event(
                ph="X",
                name=one.name,
                cat="task",
                ts=one.start / 1000,
                dur=(one.stop - one.start) / 1000,
                args=one.details,
                **place,
            )
            # within the slice, for the end of it belongs to what follows
            for number in one.arrows_out:
                self._arrow("dependency", "s", number, max(one.start, one.stop - 1), place)
            for number in one.launches:
                self._arrow("launch", "s", number, one.start, place)
            for number in one.arrows_in:
                name = "launch" if one.launched else "dependency"
                self._arrow(name, "f", number, one.start, place, bp="e")

    def marks(self, marks: list[Mark]) -> None:
        """Draw moments of a thread."""
        for one in marks:
            self._event(
                ph="i",
                s="t",
                name=one.name,
                cat="mark",
                ts=one.time / 1000,
                args=one.details,
                **self._places[one.track],
            )

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values."""
        pid, name = self._counters[track]
        for time, value in zip(times, values, strict=True):
            self._event(ph="C", name=name, pid=pid, ts=time / 1000, args={"value": value})

    def close(self) -> None:
        """Write what ends the file."""
        rest = json.dumps({"displayTimeUnit": "ms", "otherData": self._facts})
        self._file.write(b"\n]," + rest[1:].encode())

    def _id(self, real: int, number: int, *within: int) -> int:
        """Give the operating system's id where there is one and nothing else has it."""
        found = real if real > 0 and (*within, real) not in self._taken else _FIRST_MADE + number
        self._taken.add((*within, found))
        return found

    def _named(self, row: Row) -> tuple[int, str]:
        """Give the process of a row, and its name there."""
        group = self._groups[row.group]
        return self._pids[row.group], f"{group.name} {row.name}" if group.inner else row.name

    def _about(self, pid: int, what: str, tid: int | None = None, **told: Any) -> None:
        place = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
        self._event(ph="M", name=what, **place, args=told)

    def _arrow(
        self, name: str, phase: str, number: int, time: int, place: dict[str, int], **more: str
    ) -> None:
        self._event(ph=phase, id=number, ts=time / 1000, name=name, cat=name, **place, **more)

    def _event(self, **event: Any) -> None:
        self._file.write(b"" if self._first else b",\n")
        self._first = False
        self._file.write(json.dumps(event, separators=(",", ":")).encode())
