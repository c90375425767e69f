"""Trend, the history: a line of JSON a run, added by `ci`, so that traces can be deleted.

A line is added by one write to a file that is open to append, which POSIX does not interleave with
another's on a local file system; nothing is locked and no line is ever written again. Each line
begins a new one first, so that a line that was cut, as by a full disk, costs itself alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dasf_hpc.errors import BaselineError
from dasf_hpc.trend.point import FunctionFigures, RunPoint, point_of

#: Name of the history beside a baseline.
HISTORY = "history.jsonl"
#: Bytes of a line at most: functions with the shortest time are left out beyond that.
LINE = 8192
#: Characters of what else stands in a line.
_TEXT = 400
_FORMAT = "dasf-hpc history 1"


def line_of(point: RunPoint) -> bytes:
    """Write a run as a line of at most `LINE` bytes, with the ends of this line and the last."""
    kept = sorted(point.functions.items(), key=lambda one: -one[1].total)
    shown = replace(
        point,
        **{
            name: getattr(point, name)[:_TEXT]
            for name in ("name", "script", "hardware", "software", "revision", "batch")
        },
        partial=[reason[:_TEXT] for reason in point.partial[:3]],
    )
    while True:
        functions: dict[str, FunctionFigures] = dict(kept)
        document = {"format": _FORMAT, **replace(shown, functions=functions).document()}
        line = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        data = b"\n" + line.encode("utf-8", "replace") + b"\n"
        if len(data) <= LINE or not kept:
            return data
        kept = kept[: len(kept) * LINE // len(data)]


def add_to_history(path: Path, points: Sequence[RunPoint]) -> None:
    """Add runs to a history, which is made where there is none.

    Raises
    ------
    BaselineError
        If it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            for point in points:
                line = line_of(point)
                if _ends_with_a_line(descriptor):
                    line = line.removeprefix(b"\n")
                if os.write(descriptor, line) != len(line):
                    raise OSError(None, "no room")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BaselineError(f"The history {path} cannot be written: {error.strerror}.") from None


def _ends_with_a_line(descriptor: int) -> bool:
    """Tell whether a file is empty or its last line has its end: no writer of it died."""
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) in (b"\n", b"")


def read_history(path: Path) -> tuple[list[RunPoint], list[str]]:
    """Read a history.

    Returns
    -------
    points, skipped
        Its runs in their order; and which lines are none, and why.

    Raises
    ------
    BaselineError
        If it cannot be read, or no line of it is a run.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BaselineError(f"The history {path} cannot be read: {error.strerror}.") from None
    points, skipped = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line.decode())
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise ValueError("it is of another format")
            points.append(point_of(document))
        except (ValueError, RecursionError) as error:
            what = "it is not JSON" if isinstance(error, json.JSONDecodeError) else error
            skipped.append(f"Line {number} of {path.name} was left out: {what}.")
    if skipped and not points:
        raise BaselineError(f"{path} is no history of dasf-hpc: {skipped[0]}")
    return points, skipped
