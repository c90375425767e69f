"""A run's directory and its manifest, ``run.json``: what was asked, expected, found and why not."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.launch.worker_command import file_stem
from dasf_hpc.profile.identity import installed_version
from dasf_hpc.settings import Settings

MANIFEST = "run.json"
#: Touched while a run's `submit` lives, whatever host it is on.
HEARTBEAT = ".alive"
HEARTBEAT_S = 5.0
#: A run whose heartbeat is older than this is not running any more: NFS clients cache a file's
#: attributes for up to a minute (nfs(5), acregmax).
DEAD_AFTER_S = 75.0
#: Made by ``dasf-hpc cancel``.
STOP_REQUEST = ".stop"
TRACE = "trace.h5"
FOLDERS = ("scripts", "logs", "journals", "nsight", "nodes")

#: Packages whose versions decide whether head and workers understand each other.
PACKAGES = ("dasf-hpc", "dask", "distributed", "dask-jobqueue", "dask-cuda", "nvtx", "numpy")


def make_run_directory(settings: Settings, job: str) -> Path:
    """Make the directory of a new run, ``TIME-JOB-RANDOM``, mode 0700 whatever the umask.

    Raises
    ------
    RunDirectoryError
        If it cannot be made or written.
    """
    advice = "give another with --runs-dir, on a file system that the nodes share"
    return make_directory(settings.runs_dir, Path(job.split(":")[-1]).stem, advice)


def make_directory(parent: Path, name: str, advice: str) -> Path:
    """Make the directory of a new run below another one, as `make_run_directory` does.

    Parameters
    ----------
    parent
        The folder of all runs.
    name
        The middle of the directory's name.
    advice
        What to do where it cannot be made, for the error's sentence.

    Raises
    ------
    RunDirectoryError
        If it cannot be made or written.
    """
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    stem = file_stem(name)[:40] or "job"
    parent = parent.absolute()
    directory = parent / f"{stamp}-{stem}-{secrets.token_hex(2)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        for folder in FOLDERS:
            (directory / folder).mkdir(mode=0o700)
        probe = directory / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"The runs directory {parent} cannot be used: {error.strerror}; {advice}."
        ) from None
    return directory


def worker_recorded(directory: Path) -> bool:
    """Say if any worker of a run left a journal."""
    return any((directory / "journals").glob("worker-*"))


def close_to_others(directory: Path) -> None:
    """Take every file of a run away from group and others: nsys gives its own permissions."""
    for folder, _, names in os.walk(directory):
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            with contextlib.suppress(OSError):
                mode = path.lstat().st_mode
                if mode & 0o077 and not path.is_symlink():
                    path.chmod(mode & 0o7700)


def find_run(path: Path) -> Path:
    """Give the run's directory for what a user named: the directory, or a file in it.

    Raises
    ------
    RunDirectoryError
        If there is none.
    """
    directory = path.parent if path.is_file() else path
    if not directory.is_dir():
        raise RunDirectoryError(f"There is no run at {path}; give a run's directory.")
    if not (directory / MANIFEST).is_file() and not (directory / "journals").is_dir():
        raise RunDirectoryError(
            f"{directory} is not a run's directory: it holds neither {MANIFEST} nor journals."
        )
    return directory


def git_revision(directory: Path) -> str | None:
    """Give the commit that a folder's checkout stands at, with ``+`` if files differ from it."""
    try:
        answers = [
            subprocess.run(
                ["git", *words],
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
                stdin=subprocess.DEVNULL,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0] + ("+" if answers[1] else "")


class Heartbeat:
    """Touches a file of the run for as long as the run is being made."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / HEARTBEAT
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="dasf-hpc-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._path.touch(mode=0o600)
            if self._stop.wait(HEARTBEAT_S):
                return


#: Entries that are read again, and of what kind they must be: a file may be damaged.
_KINDS: dict[str, type] = {"shape": dict, "merged": dict, "notes": list, "lost": list}


class Manifest:
    """The contents of ``run.json``; every change is on file at once, whole.

    Parameters
    ----------
    directory
        The run's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.content: dict[str, Any] = {}
        path = directory / MANIFEST
        if path.is_file():
            try:
                content = json.loads(path.read_text())
            except (OSError, ValueError):
                content = {"notes": [f"{MANIFEST} could not be read and was made anew"]}
            self.content = content if isinstance(content, dict) else {}
            for name, kind in _KINDS.items():
                if not isinstance(self.content.get(name, kind()), kind):
                    del self.content[name]

    def update(self, **entries: Any) -> None:
        """Set entries and write the file beside, then rename: a reader sees it whole.

        A run whose directory can no longer be written goes on: the entries are kept in memory.
        """
        self.content.update(entries)
        partial = self.directory / f".{MANIFEST}.{os.getpid()}"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self.content, file, indent=1, default=str)
            partial.replace(self.directory / MANIFEST)
        except OSError:
            self.content.setdefault("notes", []).append(f"{MANIFEST} could not be written")

    def note(self, sentence: str) -> None:
        """Add a sentence to the notes, once."""
        notes = list(self.content.get("notes", []))
        if sentence not in notes:
            self.update(notes=[*notes, sentence])


def versions() -> dict[str, str | None]:
    """Give the installed versions of what matters to a run."""
    return {name: installed_version(name) for name in PACKAGES}


#: States of a run that is over.
FINAL = ("complete", "partial", "failed")
#: States before a run is merged for the first time, in their order.
RECORDING = ("starting", "waiting", "running", "stopping")


def run_state(directory: Path) -> str:
    """Give the state of a run: queued, running, complete, partial, failed, or abandoned.

    A run is queued while its head waits to start as a batch job.

    A run is abandoned when its `submit` died without a word; ``dasf-hpc merge`` completes it.
    """
    state = str(Manifest(directory).content.get("state", "abandoned"))
    if state in FINAL or state == "queued":
        return state
    try:
        age = time.time() - (directory / HEARTBEAT).stat().st_mtime
    except OSError:
        return "abandoned"
    return "running" if age < DEAD_AFTER_S else "abandoned"
