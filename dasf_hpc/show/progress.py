"""Show, while it lasts: the steps of a run as a line on the terminal.

Stands alone so that what shows results, and loads pandas for it, is not loaded before a run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from dasf_hpc.launch.output import WRITE_WAIT_S, Beneath
from dasf_hpc.steps import Now, Step, Told
from dasf_hpc.units import bytes_text, clock_text, count_text, share_text, three_digits

#: Seconds between two drawings of what stands beneath a script's output.
DRAW_S = 0.25

#: Over how many seconds the rate of tasks is taken.
RATE_S = 10.0

#: On a terminal of fewer rows than this one line is enough.
LOW = 12


@contextmanager
def progress(console: Console, phases: bool = False) -> Iterator[Told]:
    """Draw the steps of a run on a terminal; a pipe or a file gets only what a step says for good.

    So does a terminal on which nothing can be drawn over.

    Parameters
    ----------
    console
        The terminal or pipe.
    phases
        Whether a pipe gets a line at each change of what is being done, too.

    Yields
    ------
    Told
        To be called with each step.
    """
    if can_draw(console):
        with _Drawing(console) as drawing:
            yield drawing.told
        return
    shown = "Starting"

    def told(step: Step) -> None:
        nonlocal shown
        # of waiting the reason counts, of all else what is being done
        line = step.label if step.phase == "Waiting for workers" else _phase(step)
        if phases and line != shown:
            shown = line
            _say(console, line)
        if step.said:
            _say(console, step.said)

    yield told


def can_draw(console: Console) -> bool:
    """Say if what was drawn can be drawn over.

    Not on a dumb terminal, nor in a file, also where FORCE_COLOR wants colours in it.
    """
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _phase(step: Step) -> str:
    """Name what is being done in a pipe's line; joining and writing are parts of merging."""
    parts = ("Joining Nsight reports", "Writing the trace", "Summing up")
    return "Merging" if step.phase in parts else step.phase


def _say(console: Console, sentence: str) -> None:
    console.print(f"dasf-hpc: {sentence}", soft_wrap=True, highlight=False, markup=False)


class _Drawing:
    """A bar for each step; while a script runs and writes itself, lines beneath its output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            # what is said gives way, and no line is ever more than one
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("Starting", total=None)
        self._shown = ""
        self._beneath: Beneath | None = None
        self._rate = Rate()
        self._now: tuple[Now, float, float] | None = None
        self._end = threading.Event()
        self._drawing: threading.Thread | None = None

    def __enter__(self) -> _Drawing:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_beneath()
        self._bar.stop()

    def told(self, step: Step) -> None:
        """Show a step."""
        if step.now is not None:
            if self._beneath is None:
                self._rate = Rate()  # of this script: there may have been others
            self._now = step.now, time.monotonic(), self._rate.add(step.now)
            if self._beneath is None:
                self._bar.stop()
                self._begin_beneath()
            if step.said:
                self._say_above(step.said)
            return
        self._end_beneath()
        if step.said:
            _say(self._console, step.said)
        if step.phase != self._shown:
            self._shown = step.phase
            self._bar.reset(self._task, description=step.label, total=step.total)
        self._bar.update(
            self._task, description=step.label, total=step.total, completed=step.done or 0
        )
        if not self._bar.live.is_started:
            self._bar.start()

    def _say_above(self, sentence: str) -> None:
        assert self._beneath is not None
        free = self._beneath.lock.acquire(timeout=WRITE_WAIT_S)
        try:
            self._beneath.erase()
            _say(self._console, sentence)
        finally:
            if free:
                self._beneath.lock.release()

    def _begin_beneath(self) -> None:
        file = self._console.file
        self._beneath, self._end = Beneath(file.fileno(), self._console.encoding), threading.Event()
        # a thread of its own: a terminal that takes nothing, as with Ctrl-S, holds up no run
        self._drawing = threading.Thread(
            target=self._draw, args=(self._beneath, self._end), name="dasf-hpc-show", daemon=True
        )
        self._drawing.start()

    def _end_beneath(self) -> None:
        self._end.set()
        if self._drawing is not None:
            self._drawing.join(WRITE_WAIT_S)
        if self._beneath is not None:
            self._beneath.end()
        self._beneath = self._drawing = None

    def _draw(self, beneath: Beneath, end: threading.Event) -> None:
        while not end.is_set():
            if self._now is not None:
                now, at, rate = self._now
                now = replace(now, elapsed=now.elapsed + time.monotonic() - at)
                width, height = self._console.size
                beneath.draw(live_lines(now, rate, width)[: 1 if height < LOW else None])
            end.wait(DRAW_S)


class Rate:
    """How many tasks end a second, over the last `RATE_S` seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, now: Now) -> float:
        """Take in how a run is, and give the rate."""
        self._seen.append((now.elapsed, now.done))
        while len(self._seen) > 2 and self._seen[1][0] <= now.elapsed - RATE_S:
            self._seen.pop(0)
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else 0.0


def live_lines(now: Now, rate: float, width: int) -> list[str]:
    """Say how a run is in up to four lines, none wider than a terminal.

    Parameters
    ----------
    now
        How it is.
    rate
        Tasks that end a second.
    width
        Columns of the terminal.
    """
    tasks = f"{count_text(now.done)} of {count_text(now.known)} tasks"
    if now.at_least:
        tasks += " and more"
    if not now.known:
        tasks = "no task yet"
    parts = [clock_text(now.elapsed), tasks, f"{count_text(now.executing)} executing"]
    if now.erred:
        parts.insert(2, f"{count_text(now.erred)} FAILED")
    if now.done:
        parts.append(f"{three_digits(rate)}/s")
    lines = [_joined(parts, width)]
    lost = "" if now.workers >= now.expected else f" of {now.expected}"
    parts = [f"{now.workers}{lost} worker{'' if now.workers == 1 and not lost else 's'}"]
    if now.paused:
        parts.append(f"{now.paused} paused: memory full")
    memory = bytes_text(now.memory)
    if now.memory_limit:
        memory += f" of {bytes_text(now.memory_limit)}"
    parts.append(memory)
    if now.fullest and now.workers > 1:
        parts.append(f"fullest {now.fullest} at {share_text(now.fullest_share)}")
    elif now.fullest:
        parts[-1] += f" ({share_text(now.fullest_share)})"
    lines.append(_joined(parts, width))
    if now.functions:
        counts = [f" {count_text(f.done)}/{count_text(f.known)}" for f in now.functions]
        names = [cut(f.name, 24) for f in now.functions]
        lines.append(_joined([n + c for n, c in zip(names, counts, strict=True)], width))
    if now.waits_for:
        lines.append(_joined([f"waits for: {one_line(now.waits_for)}"], width))
    return lines


def _joined(parts: list[str], width: int) -> str:
    """Put parts into a line, those from the end left out that have no room there."""
    line = parts[0]
    for part in parts[1:]:
        if cell_len(line) + 3 + cell_len(part) > width - 1:
            break
        line += f" · {part}"
    return line if cell_len(line) < width else set_cell_size(line, max(1, width - 2)) + "…"


def one_line(text: str) -> str:
    """Give a text on one line; what cannot be printed as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def cut(text: str, width: int) -> str:
    """Give a text on one line of so many cells at most, cut in its middle; its ends are kept.

    Parameters
    ----------
    text
        Any text.
    width
        Cells of a terminal, of which some characters take two and some none.
    """
    # a character has at most two cells and is written as ten: the rest would be cut in any case
    if len(text) > 40 * width + 100:
        text = text[: 20 * width] + "…" + text[len(text) - 20 * width :]
    text = one_line(text)
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    right = (width - 1) // 2
    start, end = "", ""
    for character in text:
        if cell_len(start + character) > width - 1 - right:
            break
        start += character
    for character in reversed(text):
        if cell_len(character + end) > right:
            break
        end = character + end
    return f"{start}…{end}"
