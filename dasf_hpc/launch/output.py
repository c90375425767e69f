"""Launch: a script's output on the way to the terminal, and words of ours between and beneath it.

Its bytes are passed on as they are. Ours begin on a line of their own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

#: A script that writes is not interrupted: what is beneath comes back after so many seconds.
QUIET_S = 0.3
#: How long words of ours wait for a script's that the terminal does not take, as with Ctrl-S.
WRITE_WAIT_S = 1.0

#: Save and restore the cursor with its colours; erase from it to the screen's end.
_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[J"
#: A row down in the same column; on the last one all rows go up.
_DOWN = "\x1bD"

#: By device and number of a file to which scripts' output was shown, the last byte of it. A
#: terminal, or what both streams are redirected to, is one file.
_last_shown: dict[tuple[int, int, int], bytes] = {}

#: What is shown beneath the output on each of them.
_beneath: dict[tuple[int, int, int], Beneath] = {}


def _identity(shown: int) -> tuple[int, int, int]:
    status = os.fstat(shown)
    return status.st_dev, status.st_ino, status.st_rdev


def _in_background(shown: int) -> bool:
    """Say if a terminal is in use by another program, as a shell that goes on beside this one."""
    try:
        return os.tcgetpgrp(shown) != os.getpgrp()
    except OSError:  # it is not the terminal that sends this program its Ctrl-C
        return False


class Beneath:
    """A few lines on a terminal beneath what a script writes to it.

    They are there only while the script's own line is ended, and the cursor stays where the
    script left it, with the colours that it chose: what it writes, and what is typed for it to
    read, comes out as without them. The cursor's own row is left free for that.

    Parameters
    ----------
    shown
        Descriptor of the terminal.
    encoding
        Of the terminal.
    """

    def __init__(self, shown: int, encoding: str = "utf-8") -> None:
        self._shown = shown
        self._encoding = encoding
        self._there = False
        self._written = 0.0
        self.lock = threading.Lock()
        _beneath[_identity(shown)] = self

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines, each shorter than the terminal is wide, in the place of those before.

        Nothing is done where the script's line is not at its end, or it is just writing, or the
        terminal is another program's, as after Ctrl-Z.
        """
        if not self.lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            open_line = _last_shown.get(_identity(self._shown), b"\n") != b"\n"
            if not lines or open_line or now - self._written < QUIET_S:
                return
            if _in_background(self._shown):
                return
            room = f"{_DOWN * len(lines)}\x1b[{len(lines)}A"
            text = "".join(f"\r\n{line}" for line in lines)
            drawn = f"{room}{_SAVE}\x1b[0m{_ERASE}{text}{_RESTORE}"
            os.write(self._shown, drawn.encode(self._encoding, errors="replace"))
            self._there = True
        except OSError:
            pass
        finally:
            self.lock.release()

    def erase(self) -> None:
        """Take the lines away; the lock is held."""
        if self._there:
            self._there = False
            with contextlib.suppress(OSError):
                os.write(self._shown, _ERASE.encode())

    def written(self) -> None:
        """Note that the script wrote; the lock is held."""
        self._written = time.monotonic()

    def end(self) -> None:
        """Take the lines away for good."""
        if self.lock.acquire(timeout=WRITE_WAIT_S):
            try:
                self.erase()
            finally:
                self.lock.release()
        _beneath.pop(_identity(self._shown), None)


def begin_line(shown: int) -> None:
    """Begin a line for words of ours where a script left one open; its own bytes stay as they are.

    Parameters
    ----------
    shown
        Descriptor of the stream to which the words go.
    """
    with contextlib.suppress(OSError):
        identity = _identity(shown)
        beneath = _beneath.get(identity)
        if beneath is not None and beneath.lock.acquire(timeout=WRITE_WAIT_S):
            beneath.erase()
            beneath.lock.release()
        if _last_shown.pop(identity, b"\n") != b"\n":
            os.write(shown, b"\n")


def copy(source: BinaryIO, shown: int, log: Path) -> None:
    """Copy a stream to the terminal and a file, byte for byte, until its end."""
    showing = True
    identity = _identity(shown)
    try:
        kept: BinaryIO | None = log.open("wb", buffering=0)
    except OSError:
        kept = None
    while data := os.read(source.fileno(), 65536):
        if showing:
            try:
                _show(data, shown, identity)
            except OSError:  # a closed pipe must not stop the job
                showing = False
        if kept is not None:
            try:
                kept.write(data)
            except OSError:  # nor a full disk
                kept = None


def _show(data: bytes, shown: int, identity: tuple[int, int, int]) -> None:
    beneath = _beneath.get(identity)
    with beneath.lock if beneath is not None else contextlib.nullcontext():
        if beneath is not None:
            beneath.erase()
            beneath.written()
        view = memoryview(data)
        while view:
            view = view[os.write(shown, view) :]
        _last_shown[identity] = data[-1:]
