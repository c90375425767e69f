"""A script's output is shown byte for byte, and our own words begin on a line of their own."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from system.conftest import NO_REPORT, STEPS, command

#: Its last bytes are no whole character either.
BYTES = b"first\r\n\x1b[31mred\x1b[0m \xff\x00 no newline \xe2\x82"
JOB = f"""
    import sys
    from distributed import Client
    Client().submit(int).result()
    sys.stdout.buffer.write({BYTES!r})
    sys.stdout.flush()
"""


def run(job: str, folder: Path, out: int, err: int, *words: str) -> None:
    done = subprocess.run(
        command("submit", "--on", "local", "--no-nsys", *words, job), cwd=folder,
        env={**os.environ, **NO_REPORT, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=out,
        stderr=err, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0


def test_two_files(tmp_path: Path, script: Callable[[str], str]) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        run(script(JOB), tmp_path, out.fileno(), err.fileno())
    assert (tmp_path / "out").read_bytes() == BYTES
    assert STEPS.sub("", (tmp_path / "err").read_text()).startswith("Nodes  ")
    [kept] = tmp_path.glob("runs/*/logs/job.out")
    assert kept.read_bytes() == BYTES


def test_one_file(tmp_path: Path, script: Callable[[str], str]) -> None:
    with (tmp_path / "both").open("ab") as both:
        run(script(JOB), tmp_path, both.fileno(), both.fileno())
    shown = (tmp_path / "both").read_bytes()
    told, its, after = shown.partition(BYTES)
    assert its
    assert told.endswith(b"dasf-hpc: Running the job\n")
    assert after.startswith(b"\ndasf-hpc: Ending the workers")


def test_a_script_that_ends_its_line_gets_no_empty_one(
    tmp_path: Path, script: Callable[[str], str]
) -> None:
    job = script(JOB.replace("sys.stdout.flush()", "sys.stdout.buffer.write(b'whole\\n')"))
    with (tmp_path / "both").open("ab") as both:
        run(job, tmp_path, both.fileno(), both.fileno())
    _, its, after = (tmp_path / "both").read_bytes().partition(BYTES + b"whole\n")
    assert its
    assert after.startswith(b"dasf-hpc: Ending the workers")


def test_json_is_a_line_of_its_own(tmp_path: Path, script: Callable[[str], str]) -> None:
    with (tmp_path / "out").open("ab") as out:
        run(script(JOB), tmp_path, out.fileno(), subprocess.DEVNULL, "--json")
    assert (tmp_path / "out").read_bytes().startswith(BYTES + b"\n{")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal(stream: str, tmp_path: Path, script: Callable[[str], str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(
            "submit", "--on", "local", "--no-nsys",
            script(JOB.replace("sys.stdout", f"sys.{stream}")),
        ),
        cwd=tmp_path, env={**os.environ, **NO_REPORT, "TERM": "xterm"},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        shown += data
    os.close(ours)
    assert process.wait(120) == 0
    # The terminal's driver turns a newline into CR and newline.
    _, its, after = shown.partition(BYTES.replace(b"\n", b"\r\n"))
    assert its, shown
    assert after.startswith(b"\r\n"), after[:60]
    assert b"Nodes  " in after
