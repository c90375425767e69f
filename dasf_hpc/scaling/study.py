"""Scaling, the study's file: ``study.json`` says what was asked for and how far it is.

Every change is on file at once, whole, so that a study goes on from it whatever ended it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from dasf_hpc.errors import RunDirectoryError, SettingsError
from dasf_hpc.launch.job import find_job
from dasf_hpc.launch.worker_command import file_stem
from dasf_hpc.manifest import DEAD_AFTER_S, HEARTBEAT, Manifest
from dasf_hpc.scaling.plan import Plan, Turn
from dasf_hpc.settings import Settings, load_settings

STUDY = "study.json"
_FORMAT = "dasf-hpc study"
_VERSION = 1

#: States of a run that is not made again.
KEPT = ("done", "partial")
#: Settings that say nothing of what is measured.
_BESIDE = {"runs_dir", "report", "env", "profile"}


class Study:
    """A study: its directory, which holds its runs, and the contents of its file.

    Attributes
    ----------
    directory
        The directory.
    content
        ``asked`` (the plan, the settings, the names of variables, the script's digest), ``state``
        (``running``, ``interrupted``, ``failed`` or ``complete``), ``runs`` (of each: ``scale``,
        ``repeat``, ``state``, ``directory`` (its name in the study's), ``exit_code``, ``error``),
        ``given_up`` (names of directories of runs that were made again).
    """

    def __init__(self, directory: Path, content: dict[str, Any]) -> None:
        self.directory = directory
        self.content = content

    @property
    def plan(self) -> Plan:
        """What it is to run."""
        asked = dict(self.content["asked"]["plan"])
        return Plan(
            **{**asked, "arguments": tuple(asked["arguments"]), "scales": tuple(asked["scales"])}
        )

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Its runs, in their order."""
        found: list[dict[str, Any]] = self.content["runs"]
        return found

    @property
    def left(self) -> list[int]:
        """Which of its runs are still to be made: positions in `runs`."""
        return [i for i, run in enumerate(self.runs) if run["state"] not in KEPT]

    def settings(self, env: list[str]) -> Settings:
        """Give the settings that it was begun with.

        Parameters
        ----------
        env
            Variables, whose values are not kept.

        Raises
        ------
        SettingsError
            If variables are missing, or a setting cannot be used any more.
        """
        asked = self.content["asked"]
        lacking = [n for n in asked["env"] if n not in {p.partition("=")[0] for p in env}]
        if lacking:
            raise SettingsError(
                "Values of variables are not kept: give again "
                + " ".join(f"--env {name}=VALUE" for name in lacking)
                + "."
            )
        given = dict(asked["settings"])
        if env:
            given["env"] = env
        return load_settings({**given, "runs_dir": self.directory.parent})

    def update(self, **entries: Any) -> None:
        """Set entries and write the file beside, then rename: a reader sees it whole.

        Raises
        ------
        RunDirectoryError
            If it cannot be written: what is not on file would be run again.
        """
        self.content.update(entries)
        partial = self.directory / f".{STUDY}.{os.getpid()}"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self.content, file, indent=1, default=str)
            partial.replace(self.directory / STUDY)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.directory / STUDY} cannot be written: {error.strerror}."
            ) from None

    def update_run(self, number: int, **entries: Any) -> None:
        """Set entries of one of the runs."""
        self.runs[number].update(entries)
        self.update()

    def begin(self) -> None:
        """Take the study for this process.

        Raises
        ------
        SettingsError
            If another process is at it.
        """
        if self.at_work():
            raise SettingsError(
                f"Another dasf-hpc scale is at work on {self.directory} (process "
                f"{self.content.get('pid')} on {self.content.get('host')})."
            )
        for number, run in enumerate(self.runs):
            if run["state"] not in KEPT:
                self._clear(number)
        self.update(state="running", host=socket.gethostname(), pid=os.getpid(), ended=None)

    def at_work(self) -> bool:
        """Say if a process is at work on it, on whatever host."""
        if self.content.get("state") != "running" or self.content.get("pid") == os.getpid():
            return False
        try:
            age = time.time() - (self.directory / HEARTBEAT).stat().st_mtime
        except OSError:
            return False
        if age > DEAD_AFTER_S:
            return False
        pid = self.content.get("pid")
        if self.content.get("host") == socket.gethostname() and isinstance(pid, int):
            return psutil.pid_exists(pid)
        return True

    def _clear(self, number: int) -> None:
        """Have a half-made run made again; one that was over when its study was killed is kept."""
        run = self.runs[number]
        name = run.get("directory")
        if run["state"] == "running" and name:
            content = Manifest(self.directory / name).content
            if content.get("state") in ("complete", "partial") and content.get("exit_code") == 0:
                state = "done" if content["state"] == "complete" else "partial"
                run.update(state=state, exit_code=0)
                return
        if name:
            self.content["given_up"].append(name)
        self.runs[number] = {
            "scale": run["scale"],
            "repeat": run["repeat"],
            "state": "planned",
            "directory": None,
        }

    @contextlib.contextmanager
    def where_it_began(self) -> Iterator[None]:
        """Be where the study was begun: there its script's relative paths hold.

        Raises
        ------
        RunDirectoryError
            If that folder cannot be entered.
        """
        before, folder = Path.cwd(), self.content["asked"]["working_directory"]
        try:
            os.chdir(folder)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.directory.name} was begun in {folder}, which cannot be entered: "
                f"{error.strerror}."
            ) from None
        try:
            yield
        finally:
            os.chdir(before)

    def check_job(self) -> None:
        """Look whether the script is still the one that the study was begun with.

        Raises
        ------
        SettingsError
            If it has changed: its runs would be of two programs.
        JobFileError
            If it is not there any more.
        """
        if script_digest(self.plan.job) != self.content["asked"]["script"]:
            raise SettingsError(
                f"{self.plan.job} has changed since {self.directory.name} was begun, whose other "
                "runs are of what it was: begin a new study (the same command with --new)."
            )


def script_digest(job: str) -> str:
    """Give the SHA-256 of a script's file.

    Raises
    ------
    JobFileError
        If there is none.
    """
    path = find_job(job).path
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def _asked(plan: Plan, settings: Settings) -> dict[str, Any]:
    """Say what was asked for, as JSON has it; of two equal ones the second goes on."""
    names = settings.model_fields_set - _BESIDE
    asked = {
        "plan": asdict(plan),
        "settings": settings.model_dump(mode="json", include=set(names)),
        "env": sorted(pair.partition("=")[0] for pair in settings.env),
        "script": script_digest(plan.job),
        "working_directory": str(Path.cwd()),
    }
    same: dict[str, Any] = json.loads(json.dumps(asked, default=str))
    return same


def new_study(plan: Plan, settings: Settings) -> Study:
    """Make a study and its directory.

    Raises
    ------
    RunDirectoryError
        If it cannot be made.
    """
    directory = _make_directory(settings.runs_dir.absolute(), plan.job)
    runs = [_planned(turn) for turn in plan.turns()]
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": directory.name,
        "state": "planned",
        "asked": _asked(plan, settings),
        "started": time.time(),
        "ended": None,
        "runs": runs,
        "given_up": [],
    }
    study = Study(directory, content)
    study.update()
    return study


def _make_directory(parent: Path, job: str) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    stem = file_stem(Path(job.split(":")[-1]).stem)[:40] or "job"
    directory = parent / f"{stamp}-study-{stem}-{secrets.token_hex(2)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise RunDirectoryError(
            f"The runs directory {parent} cannot be used: {error.strerror}; give another with "
            "--runs-dir, on a file system that the nodes share."
        ) from None
    return directory


def _planned(turn: Turn) -> dict[str, Any]:
    return {"scale": turn.scale, "repeat": turn.repeat, "state": "planned", "directory": None}


def open_study(path: Path) -> Study:
    """Read a study.

    Parameters
    ----------
    path
        Its directory, or its file.

    Raises
    ------
    RunDirectoryError
        If there is none, or it cannot be read.
    """
    file = path if path.name == STUDY else path / STUDY
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["version"] > _VERSION:
            raise ValueError(f"its format is {content['format']} {content['version']}")
        study = Study(file.parent.absolute(), content)
        plan, turns = study.plan, study.plan.turns()
        if len(study.runs) != len(turns) or not plan.scales:
            raise ValueError("its runs are not those of its plan")
        for run, turn in zip(study.runs, turns, strict=True):
            if (run["scale"], run["repeat"]) != (turn.scale, turn.repeat):
                raise ValueError("its runs are not those of its plan")
            name = run["directory"]
            if not isinstance(run["state"], str) or (name is not None and Path(name).name != name):
                raise ValueError(f"a run of it is {run}")
        asked = content["asked"]
        for value, kind in (
            (content["given_up"], list), (asked["settings"], dict), (asked["env"], list),
            (asked["working_directory"], str),
        ):  # fmt: skip
            if not isinstance(value, kind):
                raise ValueError(f"{value!r} is no {kind.__name__}")
        return study
    except OSError as error:
        raise RunDirectoryError(
            f"There is no study at {path} ({error.strerror}); give the directory that dasf-hpc "
            "scale named."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{file} is no study of dasf-hpc ({type(error).__name__}: {error})."
        ) from None


def find_unfinished(plan: Plan, settings: Settings) -> Study | None:
    """Give the study that the same command began and that is not complete, the latest one."""
    asked = _asked(plan, settings)
    found: list[Study] = []
    for file in sorted(settings.runs_dir.absolute().glob(f"*/{STUDY}")):
        with contextlib.suppress(RunDirectoryError):
            study = open_study(file)
            if study.left and study.content["asked"] == asked:
                found.append(study)
    return max(found, key=lambda study: float(study.content.get("started") or 0), default=None)


def is_study(path: Path) -> bool:
    """Say if a path is that of a study."""
    return path.name == STUDY or (path / STUDY).is_file()
