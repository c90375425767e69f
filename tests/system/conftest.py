"""What the system tests share: a way to run the command as a user does, and read the run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from system.ledger import ledger

#: What every run tells a pipe as it goes on; `tests/test_live.py` looks at that.
STEPS = re.compile(
    r"^dasf-hpc: (Run: |From another terminal: |Submitting node jobs|Waiting for workers|"
    r"Running the job|Ending the workers|Merging|Writing the report).*\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Submitted:
    """A finished ``dasf-hpc submit``; `err` is without the steps that it told of."""

    code: int
    out: str
    err: str
    runs: Path

    @property
    def directory(self) -> Path:
        """The run's directory; there must be just one."""
        (directory,) = self.runs.iterdir()
        return directory

    @property
    def manifest(self) -> dict[str, Any]:
        """The contents of run.json."""
        content: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        return content


@dataclass
class Running:
    """A ``dasf-hpc submit`` that runs in the background."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def directory(self) -> Path:
        """The run's directory."""
        (directory,) = (self.folder / "runs").iterdir()
        return directory

    def manifest(self) -> dict[str, Any]:
        """Read run.json as it is now."""
        content: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        return content

    def wait_for_tasks(self, count: int, seconds: float = 90) -> None:
        """Wait until so many tasks did their work."""
        self.wait_until(lambda: len(ledger(self.folder)) >= count, seconds, f"{count} tasks")

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition while the run goes on."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, f"no {what} in {seconds} s"
            time.sleep(0.1)

    def end(self, seconds: float = 120) -> Submitted:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=seconds)
        err = STEPS.sub("", err)
        return Submitted(self.process.returncode, out, err, self.folder / "runs")


Submit = Callable[..., Submitted]


def command(*words: str) -> list[str]:
    """Give the words that run the installed dasf-hpc, of the Python that runs the tests."""
    return [str(Path(sys.executable).with_name("dasf-hpc")), *words]


#: These tests are about runs, and a report takes a second or two of each: `tests/test_watch.py`
#: looks at one.
NO_REPORT = {"DASF_HPC_REPORT": "false"}


def last_words(runs: Path) -> str:
    """Give the manifests and the ends of the logs of all runs, to tell why one hangs."""
    texts = []
    for path in (*runs.glob("*/run.json"), *runs.glob("*/logs/*")):
        texts.append(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}")
    return "\n".join(texts)


def wait_until_over(directory: Path, seconds: float = 120) -> None:
    """Wait for the end of a run whose head is a batch job."""
    deadline = time.monotonic() + seconds
    while json.loads((directory / "run.json").read_text())["state"] not in ("complete", "partial"):
        assert time.monotonic() < deadline, last_words(directory.parent)
        time.sleep(0.2)


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Give a function that runs ``dasf-hpc submit`` in a folder of its own."""

    def run(
        *words: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 240,
        runs: Path | None = None,
    ) -> Submitted:
        runs = runs or tmp_path / "runs"
        process = subprocess.Popen(
            command("submit", "--runs-dir", str(runs), *words),
            cwd=tmp_path,
            env={**os.environ, **NO_REPORT, "PYTHONFAULTHANDLER": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # where it hangs goes to its standard error
            out, err = process.communicate()
            pytest.fail(f"submit did not end in {timeout} s\n{err}\n{last_words(runs)}")
        return Submitted(process.returncode, out, STEPS.sub("", err), runs)

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Give a function that writes a user's script and gives its path."""

    def write(source: str) -> str:
        path = tmp_path / "job.py"
        path.write_text(textwrap.dedent(source))
        return str(path)

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Give a function that starts ``dasf-hpc submit`` in the background."""
    started: list[Running] = []

    def run(*words: str, environment: dict[str, str] | None = None) -> Running:
        process = subprocess.Popen(
            command("submit", "--runs-dir", str(tmp_path / "runs"), *words),
            cwd=tmp_path,
            env={**os.environ, **NO_REPORT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(Running(process, tmp_path))
        return started[-1]

    yield run
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
