"""What the system tests share: a way to run the command as a user does, and read the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Submitted:
    """A finished ``dasf-hpc submit``."""

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


Submit = Callable[..., Submitted]


def command(*words: str) -> list[str]:
    """Give the words that run dasf-hpc with the Python that runs the tests."""
    return [sys.executable, "-m", "dasf_hpc.cli", *words]


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
        done = subprocess.run(
            command("submit", "--runs-dir", str(runs), *words),
            cwd=tmp_path,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Submitted(done.returncode, done.stdout, done.stderr, runs)

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Give a function that writes a user's script and gives its path."""

    def write(source: str) -> str:
        path = tmp_path / "job.py"
        path.write_text(textwrap.dedent(source))
        return str(path)

    return write
