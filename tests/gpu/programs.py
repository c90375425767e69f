"""Programs of a check: bounded in time, and nothing of what they started is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: PR_SET_CHILD_SUBREAPER of prctl(2): orphans of what we started become our children.
SUBREAPER = 36
#: An interrupted `submit` ends its run within this, or it is ended.
INTERRUPT_WAIT_S = 15.0
TERMINATE_WAIT_S = 5.0


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes
    ----------
    code
        Its exit code, below 0 for a signal; None where its time was over.
    output
        What it said, standard output and error.
    """

    code: int | None
    output: str

    @property
    def last(self) -> str:
        """The last line that it said."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"

    @property
    def document(self) -> Any:
        """The last line that it said, which is JSON."""
        return json.loads(self.output.strip().splitlines()[-1])


def adopt_orphans() -> None:
    """Become the parent of what children leave behind: nsys starts sessions of its own."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """List the processes that this one started, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        more = children.get(queue.pop(), [])
        found += more
        queue += more
    return found


def end_descendants() -> None:
    """End what is left of what this process started."""
    for number, wait in ((signal.SIGTERM, TERMINATE_WAIT_S), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + wait
        for pid in descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not descendants():
                return
            time.sleep(0.05)


def run(
    words: Sequence[str],
    log: Path,
    limit_s: float,
    environment: Mapping[str, str],
    cwd: Path,
) -> Ran:
    """Run a program with its output in a file; at its time limit it is interrupted, then ended."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        code: int | None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(INTERRUPT_WAIT_S)
        finally:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end_descendants()
    with log.open("rb") as written:
        written.seek(begin)
        return Ran(code, written.read().decode("utf-8", "replace"))
