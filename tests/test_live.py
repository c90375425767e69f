"""While a script runs submit tells how it is, and what the script writes comes out as without that.

A terminal is emulated by as much of one as is used: whatever stands on it in the end is what the
script wrote, with our own lines above and below.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dasf_hpc.launch.look import keep_now, look, read_now
from dasf_hpc.launch.output import QUIET_S, Beneath, begin_line, copy
from dasf_hpc.show.progress import DRAW_S, Rate, live_lines, progress
from dasf_hpc.steps import FunctionNow, Now, Step


class Screen:
    """A terminal of some columns: what stands on it after bytes were written to it."""

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0
        self.saved = (0, 0)

    def write(self, data: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78D]|.|\n|\r", data):
            self._take(part)

    def _take(self, part: str) -> None:
        if part in ("\n", "\x1bD"):
            self.row += 1
            while len(self.lines) <= self.row:
                self.lines.append("")
        elif part == "\r":
            self.column = 0
        elif part == "\x1b7":
            self.saved = self.row, self.column
        elif part == "\x1b8":
            self.row, self.column = self.saved
        elif part.endswith("J") and part.startswith("\x1b"):
            self.lines[self.row] = self.lines[self.row][: self.column]
            self.lines[self.row + 1 :] = [""] * len(self.lines[self.row + 1 :])
        elif part.endswith("K") and part.startswith("\x1b"):
            self.lines[self.row] = ""
        elif part.endswith("A") and part.startswith("\x1b"):
            self.row -= int(part[2:-1] or 1)
        elif not part.startswith("\x1b"):
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
            self.column += 1
            assert self.column < self.columns, "a line of ours is as wide as the terminal"


def opened(columns: int = 80, rows: int = 24) -> tuple[int, int]:
    """Open a terminal; give its other end and itself."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, theirs


def read_all(ours: int) -> bytes:
    """Read what was written to a terminal until its last writer is gone."""
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            return shown
        if not data:
            return shown
        shown += data


def reader(ours: int) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read_all(ours)), daemon=True)
    thread.start()
    return thread, found


def test_a_scripts_bytes_are_whole_whatever_stands_beneath_them(tmp_path: Path) -> None:
    ours, theirs = opened()
    thread, found = reader(ours)
    beneath = Beneath(theirs)
    source, target = os.pipe()
    with os.fdopen(source, "rb") as pipe:
        copying = threading.Thread(target=copy, args=(pipe, theirs, tmp_path / "kept"))
        copying.start()
        stop = threading.Event()

        def draw() -> None:
            while not stop.is_set():
                beneath.draw(["ours: one", "ours: two"])
                time.sleep(0.01)

        drawing = threading.Thread(target=draw)
        drawing.start()
        written = b""
        for part in (
            b"a line\n",
            b"an open ",
            b"line\n",
            b"\x1b[31mred\n",
            b"red\x1b[0m\n",
            b"last",
        ):
            os.write(target, part)
            written += part
            time.sleep(QUIET_S + 0.1)
        os.close(target)
        copying.join()
        stop.set()
        drawing.join()
    beneath.end()
    begin_line(theirs)
    os.write(theirs, b"after\n")
    os.close(theirs)
    thread.join(10)
    shown = found[0].decode()
    assert (tmp_path / "kept").read_bytes() == written
    assert shown.count("ours: two") > 2  # it was drawn beneath, again and again,
    assert "\x1b7\x1b[0m" in shown  # and colours of the script's are kept by the terminal
    screen = Screen()
    screen.write(shown)
    stands = [line for line in screen.lines if line]
    assert stands == ["a line", "an open line", "red", "red", "last", "after"]


def test_nothing_is_drawn_into_a_line_that_a_script_has_left_open(tmp_path: Path) -> None:
    ours, theirs = opened()
    thread, found = reader(ours)
    beneath = Beneath(theirs)
    source, target = os.pipe()
    os.write(target, b"Password: ")
    os.close(target)
    with os.fdopen(source, "rb") as pipe:
        copy(pipe, theirs, tmp_path / "kept")
    time.sleep(QUIET_S + 0.1)
    beneath.draw(["ours"])
    beneath.end()
    os.close(theirs)
    thread.join(10)
    assert found[0] == b"Password: "


def read_until(ours: int, wanted: bytes) -> bytes:
    """Read from a terminal until something stands there, for a minute at most."""
    shown, end = b"", time.monotonic() + 60
    while wanted not in shown and time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
    return shown


def test_what_is_typed_for_a_script_to_read_stays_and_so_does_the_cursor() -> None:
    ours, theirs = opened()
    beneath = Beneath(theirs)
    screen = Screen()
    os.write(theirs, b"Which one?\n")
    beneath.draw(["ours: one", "ours: two"])
    screen.write(read_until(ours, b"\x1b8").decode())
    screen.write("abc")  # as the terminal's driver echoes it
    beneath.draw(["ours: one"])
    screen.write(read_until(ours, b"\x1b8").decode())
    assert [line for line in screen.lines if line] == ["Which one?", "abc", "ours: one"]
    screen.write("d\r\n")
    beneath.end()
    screen.write(read_until(ours, b"\x1b[J").decode())
    screen.write("its answer")
    assert [line for line in screen.lines if line] == ["Which one?", "abcd", "its answer"]
    os.close(theirs)
    os.close(ours)


IN_BACKGROUND = """
import fcntl, os, signal, sys, termios
from dasf_hpc.launch.output import Beneath

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
beneath = Beneath(1)
beneath.draw(["in front"])
child = os.fork()
if not child:
    os.setpgid(0, 0)
    beneath.draw(["behind"])
    os._exit(0)
os.waitpid(child, 0)
beneath.draw(["in front again"])
"""


def test_nothing_is_drawn_on_a_terminal_that_another_program_uses() -> None:
    ours, theirs = opened()
    thread, found = reader(ours)
    subprocess.run(
        [sys.executable, "-c", IN_BACKGROUND],
        stdin=theirs, stdout=theirs, start_new_session=True, check=True,
    )  # fmt: skip
    os.close(theirs)
    thread.join(10)
    assert b"in front\x1b8" in found[0]
    assert b"in front again" in found[0]
    assert b"behind" not in found[0]


def test_what_a_terminal_cannot_write_is_a_question_mark() -> None:
    ours, theirs = opened()
    Beneath(theirs, "iso-8859-1").draw(["a · b …"])
    assert b"a \xb7 b ?\x1b8" in read_until(ours, b"\x1b8")
    os.close(theirs)
    os.close(ours)


NOW = Now(
    elapsed=65.0,
    done=1234,
    known=5195,
    executing=24,
    erred=2,
    functions=(FunctionNow("big_block", 12, 40), FunctionNow("n" * 5000, 1, 2)),
    workers=3,
    expected=4,
    paused=1,
    memory=1_200_000_000,
    memory_limit=8_000_000_000,
    fullest="w0-1",
    fullest_share=61.0,
    waits_for="the job waits for others of higher priority\nand more",
)


def test_the_live_lines_tell_tasks_workers_memory_failures_and_what_is_waited_for() -> None:
    lines = live_lines(NOW, 12.34, 120)
    assert lines[0].startswith("0:01:05 · 1,234 of 5,195 tasks · 2 FAILED · 24 executing · 12.3/s")
    assert lines[1].startswith("3 of 4 workers · 1 paused: memory full · 1.2 GB of 8 GB")
    assert lines[1].endswith("fullest w0-1 at 61 %")
    assert lines[2].startswith("big_block 12/40")
    assert lines[3].startswith("waits for: the job waits")
    assert len(live_lines(Now(0.0), 0.0, 80)) == 2


@given(st.integers(10, 200), st.text(max_size=200), st.integers(0, 10**9))
def test_no_live_line_is_as_wide_as_the_terminal(width: int, text: str, number: int) -> None:
    functions = (FunctionNow(text, number, number), *NOW.functions)
    now = replace(NOW, functions=functions, waits_for=text, done=number, memory=number)
    lines = live_lines(now, number / 7, width)
    assert all(cell_len(line) < width for line in lines)
    assert all(line.isprintable() for line in lines)


def test_the_rate_is_of_the_last_seconds() -> None:
    rate = Rate()
    done = [min(2 * i, 100) for i in range(100)]
    found = [rate.add(replace(NOW, elapsed=float(i), done=done[i])) for i in range(100)]
    assert found[0] == 0
    assert found[40] == 2
    assert found[99] == 0


def test_a_scheduler_is_looked_at_by_what_it_counts_itself() -> None:
    def inc(x: int) -> int:
        return x + 1

    def bad() -> None:
        raise ValueError

    two: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**two, dashboard_address=None) as c, Client(c) as client:
        done = client.map(inc, range(10))
        client.gather(done)
        failed = client.submit(bad)
        failed.exception()
        waiting = client.submit(inc, 5, key="held", workers=["tcp://10.0.0.1:1"])

        async def now() -> Now:
            return look(c.scheduler, 3.0, 4)

        def once(there: Callable[[Now], bool]) -> Now:
            deadline = time.monotonic() + 30
            seen: Now = c.sync(now)
            while not there(seen) and time.monotonic() < deadline:
                time.sleep(0.02)
                seen = c.sync(now)
            return seen

        seen = once(lambda seen: seen.known == 12 and seen.memory > 0)
        assert (seen.done, seen.erred, seen.known) == (10, 1, 12)
        assert seen.functions == (FunctionNow("held", 0, 1),)
        assert (seen.workers, seen.expected, seen.elapsed) == (2, 4, 3.0)
        assert seen.memory > 0
        assert 0 < seen.fullest_share < 100
        # what was computed and is not needed any more has been done all the same
        del done, waiting
        assert once(lambda seen: seen.known < 12 and not seen.functions).done == 10


def test_what_a_run_tells_is_read_by_who_watches_it(tmp_path: Path) -> None:
    assert read_now(tmp_path) is None
    keep_now(tmp_path, NOW)
    assert read_now(tmp_path) == NOW
    assert [path.name for path in tmp_path.iterdir()] == ["now.json"]
    assert (tmp_path / "now.json").stat().st_mode & 0o077 == 0
    old = time.time() - 60
    os.utime(tmp_path / "now.json", (old, old))
    assert read_now(tmp_path) is None
    for torn in ("", "[]", '{"functions": 3}', '{"functions": [], "other": 1}'):
        (tmp_path / "now.json").write_text(torn)
        assert read_now(tmp_path) is None
    keep_now(tmp_path / "gone", NOW)  # the run goes on


def test_a_pipe_gets_a_line_at_each_change_of_phase(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        Step("Starting", said="Run: here"),
        Step("Submitting node jobs"),
        Step("Waiting for workers: others go first", 0, 2),
        Step("Waiting for workers: others go first", 1, 2),
        Step("Waiting for workers", 1, 2),
        *[Step("Running the job", now=replace(NOW, done=i)) for i in range(5)],
        Step("Running the job", said="3 tasks wait", now=NOW),
        Step("Ending the workers and writing their reports", 0, 2),
        Step("Merging: journals", 1, 2),
        Step("Joining Nsight reports: a", 1, 2),
        Step("Writing the trace: tasks", 1, 2),
        Step("Writing the report: where", 1, 9),
        Step("Writing the report: gpu", 2, 9),
    ]
    with progress(Console(stderr=True), phases=True) as told:
        for step in steps:
            told(step)
    assert capsys.readouterr().err.splitlines() == [
        f"dasf-hpc: {line}"
        for line in (
            "Run: here",
            "Submitting node jobs",
            "Waiting for workers: others go first",
            "Waiting for workers",
            "Running the job",
            "3 tasks wait",
            "Ending the workers and writing their reports",
            "Merging",
            "Writing the report",
        )
    ]


def test_a_file_that_is_to_be_coloured_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "kept").open("w") as file:
        console = Console(file=file)
        assert console.is_terminal
        with progress(console, phases=True) as told:
            told(Step("Running the job", now=NOW))
            time.sleep(2 * DRAW_S)
    text = (tmp_path / "kept").read_text()
    assert text == "dasf-hpc: Running the job\n"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    ours, theirs = opened()
    thread, found = reader(ours)
    with os.fdopen(theirs, "w") as file, progress(Console(file=file), phases=True) as told:
        told(Step("Submitting node jobs"))
        told(Step("Running the job", now=NOW))
        time.sleep(2 * DRAW_S)
    thread.join(10)
    assert found == [b"dasf-hpc: Submitting node jobs\r\ndasf-hpc: Running the job\r\n"]


def test_the_rate_is_of_the_script_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = opened()
    with os.fdopen(theirs, "w") as file:
        with progress(Console(file=file)) as told:
            told(Step("Running the job", now=replace(NOW, elapsed=100.0, done=1000)))
            told(Step("Merging"))
            told(Step("Running the job", now=replace(NOW, elapsed=200.0, done=0)))
            told(Step("Merging"))
            told(Step("Running the job", now=replace(NOW, elapsed=0.0, done=0)))
            told(Step("Running the job", now=replace(NOW, elapsed=1.0, done=10)))
            shown = read_until(ours, b"executing \xc2\xb7 10/s")
        assert b"executing \xc2\xb7 10/s" in shown
    os.close(ours)


SCRIPT = """
import sys, time
from distributed import Client

def inc(x):
    time.sleep(0.2)
    return x + 1

def bad():
    raise ValueError("planted")

with Client() as client:
    print("begun")
    futures = client.map(inc, range(24))
    client.submit(bad).exception()
    for i in range(3):
        print("to standard error", i, file=sys.stderr)
        time.sleep(0.7)
    sys.stdout.write("open ")
    sys.stdout.flush()
    time.sleep(1.2)
    print("and closed")
    client.gather(futures)
for i in range(300):
    print("many", i)
"""


def _submit(*words: str) -> list[str]:
    return [sys.executable, "-m", "dasf_hpc.cli", "submit", "--on", "local", "--no-nsys", *words]


@pytest.fixture
def run_on_terminal(tmp_path: Path) -> Any:
    def run(*words: str, columns: int = 80, **more: str) -> tuple[int, str]:
        (tmp_path / "job.py").write_text(SCRIPT)
        ours, theirs = opened(columns)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            _submit(*words, "job.py"), cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment | {"TERM": "xterm", **more}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        shown = read_all(ours).decode()
        os.close(ours)
        return process.wait(60), shown

    return run


def test_on_a_terminal_a_run_is_told_live_and_ends_with_findings(
    run_on_terminal: Any, tmp_path: Path
) -> None:
    code, shown = run_on_terminal("--workers-per-node", "2", "--dashboard")
    assert code == 0, shown
    [directory] = (tmp_path / "runs").iterdir()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78D]", "", shown)
    begin = plain.index("begun")
    assert f"Run: {directory}" in plain[:begin]
    assert f"dasf-hpc watch {directory}" in plain[:begin]
    assert re.search(r"Dashboard: http://127\.0\.0\.1:\d+/status on ", plain[:begin])
    during = plain[begin : plain.index("many 0")]
    assert re.search(r"\d+ of 25 tasks · 1 FAILED · [12] executing", during)
    assert re.search(r"2 workers · [\d.]+ MB of ", during)
    assert re.search(r"inc \d+/24", during)
    after = plain[plain.index("many 299") :]
    assert "Waiting for workers" not in after
    found = re.search(r"\n(serious|warning|notice)(, could save up to [^\n]*)?\r+\n  \S", after)
    assert found, after
    assert found.start() < after.rindex("from first to last task") < after.index("Trace: ")
    screen = Screen()
    with pytest.raises(AssertionError):  # the emulation is of our own lines: paths are longer
        screen.write(shown)
    screen = Screen(10_000)
    screen.write(shown)
    its = screen.lines[screen.lines.index("begun") : screen.lines.index("many 299") + 1]
    assert its == [
        "begun", *[f"to standard error {i}" for i in range(3)], "open and closed",
        *[f"many {i}" for i in range(300)],
    ]  # fmt: skip
    assert not (directory / "now.json").exists()


def test_in_a_pipe_standard_output_is_the_scripts_alone(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SCRIPT)
    done = subprocess.run(
        _submit("--no-report", "--runs-dir", "my runs", "job.py"),
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begun\nopen and closed\n" + "".join(f"many {i}\n" for i in range(300))
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    ours = [line.removeprefix("dasf-hpc: ") for line in lines if line.startswith("dasf-hpc: ")]
    assert [line.split(":")[0] for line in ours] == [
        "Run", "From another terminal", "Submitting node jobs", "Waiting for workers",
        "Running the job", "Ending the workers and writing their reports", "Merging",
    ]  # fmt: skip
    # no report, so nothing was looked at; what is told to be run can be pasted
    [directory] = (tmp_path / "my runs").iterdir()
    assert f"dasf-hpc analyze where '{directory}' (" in done.stderr
    assert f"dasf-hpc watch '{directory}'\n" in done.stderr


def test_a_watch_shows_the_tasks_that_the_run_tells_of(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SCRIPT)
    with subprocess.Popen(
        _submit("--no-report", "job.py"), cwd=tmp_path,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while not list(tmp_path.glob("runs/*/run.json")):
            assert process.poll() is None
            time.sleep(0.1)
        seen = subprocess.run(
            [sys.executable, "-m", "dasf_hpc.cli", "watch", "--json", "--interval", "0.3",
             str(next((tmp_path / "runs").iterdir()))],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
    told = [snapshot["now"] for snapshot in map(json.loads, seen) if snapshot["now"]]
    assert {now["known"] for now in told} >= {25}
    assert any(f["name"] == "inc" and 0 < f["done"] < 24 for now in told for f in now["functions"])
    assert json.loads(seen[-1])["now"] is None
    [worker] = json.loads(seen[-1])["workers"]
    assert worker["short"].startswith("w0")
    assert worker["name"].endswith("-0")
