"""Show, as Chrome's trace events: JSON that chrome://tracing, Perfetto and Speedscope open.

Format: "Trace Event Format", Google; times in it are microseconds.
"""

from __future__ import annotations

import json
from typing import IO, Any

from dasf_hpc.show.timeline import Mark, Slice


class ChromeDrawing:
    """Draws into a JSON file, an event a line."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._place: dict[int, tuple[int, str]] = {}
        self._facts: dict[str, str] = {}
        self._first = True
        file.write(b'{"traceEvents":[\n')

    def about(self, facts: dict[str, str]) -> None:
        """Keep it for the end of the file, where the format has its metadata."""
        self._facts = facts

    def group(self, group: int, name: str, label: str) -> None:
        """Declare a process."""
        self._event(ph="M", name="process_name", pid=group, args={"name": name})
        if label:
            self._event(ph="M", name="process_labels", pid=group, args={"labels": label})

    def track(self, track: int, group: int, name: str) -> None:
        """Declare a thread."""
        self._place[track] = group, name
        self._event(ph="M", name="thread_name", pid=group, tid=track, args={"name": name})

    def counter(self, track: int, group: int, name: str, unit: str) -> None:
        """Declare a counter, which in this format is a name."""
        self._place[track] = group, f"{name} [{unit}]"

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices, and arrows from a slice's end to another one's start."""
        for one in slices:
            place: dict[str, Any] = {"pid": self._place[one.track][0], "tid": one.track}
            self._event(
                ph="X",
                name=one.name,
                cat="task",
                ts=one.start / 1000,
                dur=(one.stop - one.start) / 1000,
                args=one.details,
                **place,
            )
            arrow = {"name": "dependency", "cat": "dependency", **place}
            for number in one.arrows_out:
                # within the slice, for the end of it belongs to what follows
                self._event(ph="s", id=number, ts=max(one.start, one.stop - 1) / 1000, **arrow)
            for number in one.arrows_in:
                self._event(ph="f", bp="e", id=number, ts=one.start / 1000, **arrow)

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
                pid=self._place[one.track][0],
                tid=one.track,
            )

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values."""
        group, name = self._place[track]
        for time, value in zip(times, values, strict=True):
            self._event(ph="C", name=name, pid=group, ts=time / 1000, args={"value": value})

    def close(self) -> None:
        """Write what ends the file."""
        rest = json.dumps({"displayTimeUnit": "ms", "otherData": self._facts})
        self._file.write(b"\n]," + rest[1:].encode())

    def _event(self, **event: Any) -> None:
        self._file.write(b"" if self._first else b",\n")
        self._first = False
        self._file.write(json.dumps(event, separators=(",", ":")).encode())
