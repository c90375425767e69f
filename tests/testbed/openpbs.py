"""OpenPBS's commands without OpenPBS, for tests where no PBS can be installed.

``qsub``, ``qstat``, ``qdel`` and ``pbsdsh`` in the folder beside this module are programs, not
mocks: options, output, messages and exit codes are those that OpenPBS documents, and jobs are
processes of this machine with the environment, the working directory and the end that PBS gives
them. What they are not: several hosts. Every job runs here, whatever host it was promised; a host
that dies (`OpenPbsTestbed.kill_host`) takes the processes that it was promised to along.

As a program it starts a server and keeps it until Ctrl-C or SIGTERM::

    python tests/testbed/openpbs.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

COMMANDS = Path(__file__).with_name("openpbs")
"""The folder of ``qsub``, ``qstat``, ``qdel`` and ``pbsdsh``."""

DIRECTORY_VARIABLE = "OPENPBS_TESTBED"

QUEUES: Mapping[str, Mapping[str, Any]] = {
    "workq": {"walltime": 48 * 3600},
    "gpu": {"walltime": 24 * 3600, "ngpus": 8},
    "debug": {"walltime": 1800, "ncpus": 4},
    "closed": {"enabled": False},
}
"""The queues and what a job in them may ask for at most, in seconds and numbers."""

HOSTS: Sequence[Mapping[str, Any]] = tuple(
    {"name": f"pbsnode{number}", "ncpus": 4, "mem": 12 * 1024**3, "ngpus": 2}
    for number in (1, 2, 3)
)
"""The hosts that are promised to jobs; memory in bytes."""

KILL_DELAY_S = 10.0
"""Between SIGTERM and SIGKILL for a deleted job: ``kill_delay`` of OpenPBS's queues."""

NODE_FAIL_REQUEUE_S = 310.0
"""From a host's death until the server queues its jobs again: OpenPBS's ``node_fail_requeue``."""

PROFILE = """\
if [ "$(id -u)" -eq 0 ]; then
  PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
else
  PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
fi
export PATH
"""
"""What the login shells of the hosts read first: Debian's does the same. PBS adds its commands."""

STOP_TIMEOUT_S = 10.0


class OpenPbsTestbedError(RuntimeError):
    """The server, or one of its commands, did not do what was asked of it."""


class OpenPbsTestbed:
    """A PBS server that lives as long as this object is started.

    Parameters
    ----------
    max_running
        How many jobs run at once, whatever the hosts could hold; ``None`` for no limit.
    kill_delay_s
        How long a deleted job may take after SIGTERM before it gets SIGKILL.
    exiting_s
        How long a job whose shell has ended is shown in state ``E``.
    queued_s
        How long a job is queued at least.
    tasks_hear_qdel
        Whether ``qdel`` and the walltime signal what ``pbsdsh`` started at once, too, or only the
        job's shell; its manual page says "the job's running processes", and not those of which
        host.
    descendants_hear_qdel
        Whether they signal descendants of those in sessions of their own, too.
    node_fail_requeue_s
        How long after a host's death the server queues its jobs again.
    stage_out_fails
        Whether what jobs said cannot be copied to where it was to go, unless that is ``/dev/null``.
    stage_out_stall_s
        How long such a job is shown in state ``E``, while the copy is tried.
    profile
        What the login shell in front of every job's script reads, after the variables of
        ``qsub -V`` were set.
    history
        Whether finished jobs stay known to ``qstat -x``; without it they are unknown at once.

    Attributes
    ----------
    environment
        What to put into ``os.environ`` (or hand to a subprocess) to use this server.
    """

    def __init__(
        self,
        *,
        max_running: int | None = None,
        kill_delay_s: float = KILL_DELAY_S,
        exiting_s: float = 0.2,
        queued_s: float = 0.1,
        tasks_hear_qdel: bool = True,
        descendants_hear_qdel: bool = False,
        node_fail_requeue_s: float = NODE_FAIL_REQUEUE_S,
        stage_out_fails: bool = False,
        stage_out_stall_s: float = 5.0,
        profile: str = PROFILE,
        history: bool = True,
    ) -> None:
        self.profile = profile
        self.settings: dict[str, Any] = {
            "max_running": max_running,
            "kill_delay_s": kill_delay_s,
            "exiting_s": exiting_s,
            "queued_s": queued_s,
            "tasks_hear_qdel": tasks_hear_qdel,
            "descendants_hear_qdel": descendants_hear_qdel,
            "node_fail_requeue_s": node_fail_requeue_s,
            "stage_out_fails": stage_out_fails,
            "stage_out_stall_s": stage_out_stall_s,
            "history": history,
        }
        self.environment: dict[str, str] = {}
        self._directory: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """Socket and spool of the server; only there while it is started."""
        if self._directory is None:
            raise OpenPbsTestbedError("the OpenPBS testbed is not started")
        return self._directory

    def __enter__(self) -> OpenPbsTestbed:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server; it answers when this returns.

        Raises
        ------
        OpenPbsTestbedError
            If it does not come up.
        """
        if self._directory is not None:
            raise OpenPbsTestbedError("the OpenPBS testbed is started already")
        self._directory = Path(tempfile.mkdtemp(prefix="openpbs-testbed-"))
        profile = self._directory / "profile"
        bin_folder = self._directory / "bin"
        profile.write_text(f'{self.profile}PATH="{bin_folder}:$PATH"\n', encoding="utf-8")
        configuration = {
            "default_queue": "workq",
            "profile": str(profile),
            "queues": QUEUES,
            "hosts": HOSTS,
            **self.settings,
        }
        (self._directory / "configuration.json").write_text(
            json.dumps(configuration), encoding="utf-8"
        )
        with (self._directory / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-S", str(COMMANDS / "pbs_server.py"), str(self._directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            said = (self._directory / "server.log").read_text(encoding="utf-8", errors="replace")
            self.stop()
            raise OpenPbsTestbedError(f"the server does not come up: {said.strip()}")
        programs = self._install(bin_folder)
        self.environment = {
            DIRECTORY_VARIABLE: str(self._directory),
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    def _install(self, folder: Path) -> Path:
        """Copy the commands, to be run by this Python: others take long to start (pyenv: 0.2 s)."""
        folder.mkdir()
        shutil.copy(COMMANDS / "pbs_commands.py", folder)
        for name in ("qsub", "qstat", "qdel", "qselect", "pbsdsh"):
            body = (COMMANDS / name).read_text(encoding="utf-8").split("\n", 1)[1]
            program = folder / name
            program.write_text(f"#!{sys.executable} -S\n{body}", encoding="utf-8")
            program.chmod(0o755)
        return folder

    def stop(self) -> None:
        """Kill all jobs, end the server and remove its directory; may be called twice."""
        server, directory = self._server, self._directory
        self._server = self._directory = None
        self.environment = {}
        if server is not None:
            assert server.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                server.stdin.close()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            if server.stdout is not None:
                server.stdout.close()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def configure(self, **settings: Any) -> None:
        """Change parameters of the constructor while the server runs."""
        unknown = settings.keys() - self.settings.keys()
        if unknown:
            raise OpenPbsTestbedError(f"no such setting: {', '.join(sorted(unknown))}")
        self.settings |= settings
        self._ask(do="configure", settings=settings)

    def kill_host(self, name: str) -> None:
        """Have a host die, with all processes there: the server shows its jobs as running still."""
        self._ask(do="kill_host", host=name)

    def start_host(self, name: str) -> None:
        """Have a host that died come back, empty."""
        self._ask(do="start_host", host=name)

    def _ask(self, **request: Any) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.directory / "socket"))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answers.readline()

    def run(
        self, *words: str, cwd: Path | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of this server does, and return how it ended."""
        return subprocess.run(
            words,
            env=os.environ | self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=60.0,
            check=False,
        )

    def queue(self) -> dict[str, str]:
        """Give the state letter of every job that is not finished, by its identifier."""
        done = self.run("qstat")
        if done.returncode != 0:
            raise OpenPbsTestbedError(f"qstat ended with {done.returncode}: {done.stderr}")
        rows = [line.split() for line in done.stdout.splitlines()[2:]]
        return {row[0]: row[-2] for row in rows}

    def wait_until_empty(self, timeout_s: float = 60.0) -> None:
        """Wait until no job is left.

        Raises
        ------
        OpenPbsTestbedError
            If some are left after that time.
        """
        deadline = time.monotonic() + timeout_s
        while left := self.queue():
            if time.monotonic() > deadline:
                raise OpenPbsTestbedError(f"jobs are left after {timeout_s:g} s: {left}")
            time.sleep(0.05)


def main() -> int:
    """Start a server for trying things by hand, and keep it until a signal comes."""

    def on_signal(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    try:
        with OpenPbsTestbed() as testbed:
            for name, value in testbed.environment.items():
                print(f"export {name}={value}")
            print("# Ctrl-C ends the server", flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except OpenPbsTestbedError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
