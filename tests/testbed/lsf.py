"""LSF's commands without LSF, for tests: nobody can install LSF from a package.

``bsub``, ``bjobs``, ``bkill`` and ``blaunch`` in the folder beside this module are programs, not
mocks: options, output, messages and exit codes are those that IBM documents, and jobs are processes
of this machine. What they are not: LSF, which decides on its own what it does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

COMMANDS = Path(__file__).with_name("lsf")
"""The folder of the commands."""

STOP_TIMEOUT_S = 10.0


class LsfTestbed:
    """LSF's commands with a folder of jobs, which are ended at the end.

    Attributes
    ----------
    environment
        What to put into ``os.environ`` (or hand to a subprocess) to use them.
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._directory: Path | None = None

    def __enter__(self) -> LsfTestbed:
        self._directory = Path(tempfile.mkdtemp(prefix="lsf-testbed-"))
        (self._directory / "jobs").mkdir()
        self.environment = {
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "LSF_TESTBED": str(self._directory),
            # dask-jobqueue reads the unit of memory out of LSF's own configuration.
            "LSF_ENVDIR": str(self._directory),
        }
        (self._directory / "lsf.conf").write_text("LSF_UNIT_FOR_LIMITS=MB\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._directory is not None
        if left := self.queue():
            self.run("bkill", *left)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self._directory, ignore_errors=True)

    def run(
        self, *words: str, cwd: Path | None = None, standard_input: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the commands."""
        return subprocess.run(
            words,
            env={**os.environ, **self.environment},
            cwd=cwd,
            input="\n".join([*standard_input, ""]),
            capture_output=True,
            text=True,
            check=False,
        )

    def queue(self) -> list[str]:
        """Give the ids of the jobs that have not ended."""
        return self.run("bjobs", "-noheader", "-o", "jobid").stdout.split()
