"""Launch: the user's script, run as a process of its own, its output shown and kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from dasf_hpc.errors import JobFileError, ProgramMissingError
from dasf_hpc.launch.output import begin_line, copy

#: Prefix of the example jobs shipped in the package.
EXAMPLE = "example:"

#: Prefix of what ``python -m`` runs.
MODULE = "module:"

#: How long a script may take to end after each signal.
TERMINATE_WAIT_S = 5.0
#: One that hears what this process hears has ended, or begun to, within this.
HEARD_WAIT_S = 1.0


class Job(NamedTuple):
    """A user's program.

    Attributes
    ----------
    path
        Its file.
    folder
        What Python puts first where it looks for modules.
    words
        What Python is told to run, without the program's arguments.
    executed
        Name of the file that a notebook leaves, None for a script.
    """

    path: Path
    folder: Path
    words: tuple[str, ...]
    executed: str | None = None


def find_job(job: str) -> Job:
    """Find a program and look whether it can be Python.

    Parameters
    ----------
    job
        A script, a notebook (``.ipynb``), ``example:NAME``, or ``module:NAME`` for what
        ``python -m NAME`` runs.

    Raises
    ------
    JobFileError
        If there is no such file, example or module, or it is not Python.
    """
    if job.startswith(EXAMPLE):
        return _script(_example(job))
    if job.startswith(MODULE):
        return _module(job.removeprefix(MODULE))
    path = Path(job)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise JobFileError(f"The job file {job} {what}; give the path of a Python script.")
    path = path.absolute()
    if path.suffix == ".ipynb":
        return _notebook(path, job)
    _check_python(path, job)
    return _script(path)


def _script(path: Path) -> Job:
    return Job(path, path.parent, (str(path),))


def _example(job: str) -> Path:
    folder = Path(str(resources.files("dasf_hpc"))) / "examples"
    names = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    path = folder / f"{job.removeprefix(EXAMPLE)}.py"
    if path.stem not in names:
        known = ", ".join(EXAMPLE + name for name in names)
        raise JobFileError(f"There is no example {job!r}; there are: {known}.")
    return path


def _module(name: str) -> Job:
    """Find a module as ``python -m`` does, without running any of it."""
    here = Path.cwd()
    folders: list[str] | None = [str(here), *sys.path]
    spec = None
    parts = name.split(".")
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), folders)
        folders = list(spec.submodule_search_locations or []) if spec is not None else None
        if spec is None or (not folders and number + 1 < len(parts)):
            raise JobFileError(
                f"There is no module {name!r} in {here} or among what is installed; give what "
                "comes after 'python -m'."
            )
    if folders:
        spec = PathFinder.find_spec(f"{name}.__main__", folders)
        if spec is None:
            raise JobFileError(f"The package {name} cannot be run: it has no __main__.py.")
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise JobFileError(f"The module {name!r} is no file of Python.")
    path = Path(spec.origin)
    if path.suffix == ".py":
        _check_python(path, str(path))
    return Job(path, here, ("-m", name))


def _notebook(path: Path, job: str) -> Job:
    """Look whether a notebook is one, of Python, and can be run here."""
    lacking = [name for name in ("nbclient", "ipykernel") if find_spec(name) is None]
    if lacking:
        raise ProgramMissingError(
            f"To run a notebook {' and '.join(lacking)} must be installed: "
            "pip install 'dasf-hpc[notebook]'."
        )
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise JobFileError(f"The job file {job} cannot be read: {error.strerror}.") from None
    except Exception as error:  # nbformat has many, and none of its own above them
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise JobFileError(f"The job file {job} is no notebook: {why[0].rstrip('.')}.") from None
    metadata = notebook["metadata"]
    language = metadata.get("kernelspec", {}).get("language") or metadata.get(
        "language_info", {}
    ).get("name", "python")
    if language.lower() not in ("python", "python3", "ipython"):
        raise JobFileError(f"The notebook {job} is written in {language}, not in Python.")
    return Job(path, path.parent, ("-m", "dasf_hpc.launch.notebook", str(path)), path.name)


def _check_python(path: Path, job: str) -> None:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise JobFileError(f"The job file {job} cannot be read: {error.strerror}.") from None
    try:
        compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise JobFileError(
            f"The job file {job} is not Python {sys.version_info[0]}.{sys.version_info[1]}: "
            f"line {error.lineno or '?'}: {error.msg}."
        ) from None
    except ValueError as error:  # NUL bytes
        raise JobFileError(f"The job file {job} is not Python: {error}.") from None


class JobProcess:
    """The user's script while it runs.

    Parameters
    ----------
    words
        The words that Python is given.
    python
        The words that run a script: a Python, perhaps inside an image.
    environment
        Variables added to ours.
    logs
        Folder for ``job.out`` and ``job.err``.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dasf_hpc.launch.leash", str(os.getpid())),
                *(*python, *words),
            ],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._copies = [
            threading.Thread(target=copy, args=(source, shown, logs / name), daemon=True)
            for source, shown, name in (
                (self.process.stdout, sys.stdout.fileno(), "job.out"),
                (self.process.stderr, sys.stderr.fileno(), "job.err"),
            )
        ]
        for thread in self._copies:
            thread.start()

    def poll(self) -> int | None:
        """Give the exit code as a shell would (128 + signal), None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def wait_output(self, timeout: float = 5.0) -> None:
        """Wait until all output is copied; bounded, for a child of it may hold the pipe open."""
        for thread in self._copies:
            thread.join(timeout)

    def end_line(self) -> None:
        """Begin a line for words of ours: they go to standard error."""
        begin_line(sys.stderr.fileno())

    def terminate(self, heard: bool = False) -> None:
        """End the script, at first politely.

        Parameters
        ----------
        heard
            Whether this process had a SIGINT. A terminal sends it to the script, too, which is not
            to be interrupted a second time while it clears up; another sender may not have.
        """
        if heard:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERMINATE_WAIT_S if _in_foreground() else HEARD_WAIT_S)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERMINATE_WAIT_S)


def _in_foreground() -> bool:
    """Say if a terminal sends its Ctrl-C to this process's group."""
    try:
        with open("/dev/tty", "rb") as terminal:  # noqa: PTH123 - it is no file
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
