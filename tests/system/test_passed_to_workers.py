"""What users pass to their workers, on real runs: it gets there, and no value stays or shows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from system.conftest import NO_REPORT, Running, command
from testbed.slurm import SlurmTestbed

PROGRAM = str(Path(sys.executable).with_name("dasf-hpc"))

# Neither stands anywhere in this process, which nsys sees, too, but in its memory.
TYPED, EXPORTED = (os.urandom(12).hex() for _ in range(2))

JOB = """
    import hashlib, os, pathlib, sys, time
    from distributed import Client, get_worker

    def digests():
        return [hashlib.sha256(os.environ[n].encode()).hexdigest() for n in ("TYPED", "EXPORTED")]

    def look():
        worker = get_worker()
        return digests(), worker.preloaded, dict(worker.state.total_resources)

    with Client() as client:
        print(digests(), "PYTHONPATH" in os.environ, sys.argv[1:])
        print(*client.submit(look, resources={"GPU": 1}).result(), sep="; ")
        client.restart()
        print(*client.submit(look, resources={"GPU": 1}, pure=False).result(), sep="; ")
        pathlib.Path("seen").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
"""

PRELOAD = """
import os

def dask_setup(worker):
    worker.preloaded = bool(os.environ["TYPED"])  # it is set before what is preloaded
"""


def digest(value: str) -> str:
    """Give what a script may print of a value."""
    return hashlib.sha256(value.encode()).hexdigest()


def holding(*values: str, folder: Path) -> list[str]:
    """List the files that hold one of these values."""
    parts = [value.encode() for value in values]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(part in path.read_bytes() for part in parts)
    ]


def processes_with(*values: str) -> list[str]:
    """List the processes that were started with one of these values, as word or variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (path / name).read_bytes()
            except OSError:
                continue
            if any(value.encode() in text for value in values):
                found.append(f"{path.name} {name}: {(path / 'comm').read_text().strip()}")
    return found


def path_with_witness(folder: Path) -> str:
    """Give a PATH on which uname, which Dask has Python start, keeps what it was started with."""
    uname = shutil.which("uname")
    witness = folder / "bin" / "uname"
    witness.parent.mkdir()
    witness.write_text(f'#!/bin/sh\nenv >> "{folder}/uname.env"\nexec {uname} "$@"\n')
    witness.chmod(0o755)
    return f"{witness.parent}:{os.environ['PATH']}"


def expected(script_words: list[str]) -> list[str]:
    """Give the lines that the job prints."""
    both = [digest(TYPED), digest(EXPORTED)]
    seen = f"{both}; True; {{'GPU': 1.0}}"
    return [f"{both} False {script_words}", seen, seen]


@pytest.mark.parametrize("nsys", [pytest.param(True, marks=pytest.mark.needs("nsys")), False])
def test_variables_reach_workers_and_script_and_are_neither_kept_nor_shown(
    nsys: bool, script: Callable[[str], str], tmp_path: Path
) -> None:
    job = script(JOB)
    (tmp_path / "mine.py").write_text(PRELOAD)
    path = path_with_witness(tmp_path)
    with subprocess.Popen(
        [
            *(PROGRAM, "submit", "--on", "local", "--nsys" if nsys else "--no-nsys"),
            *("--resources", "GPU=1", "--preload", "mine.py", "--env", f"TYPED={TYPED}"),
            *("--env", "EXPORTED", job, "--env", "TYPED=its own"),
        ],
        cwd=tmp_path, env={**os.environ, **NO_REPORT, "EXPORTED": EXPORTED, "PATH": path},
        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        running = Running(process, tmp_path)
        running.wait_until((tmp_path / "seen").exists, 120, "look of the job")
        started_with = processes_with(TYPED, EXPORTED)
        kept = holding(TYPED, EXPORTED, folder=tmp_path)
        (tmp_path / "go").touch()
        done = running.end()
    assert started_with == []
    assert (tmp_path / "uname.env").exists()
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == expected(["--env", "TYPED=its own"])
    assert kept == [str(done.directory / "environment" / "values.json")]  # while it ran
    assert holding(TYPED, EXPORTED, folder=tmp_path) == []
    assert not (done.directory / "environment").exists()
    assert done.manifest["settings"]["env"] == ["TYPED", "EXPORTED"]
    assert list(done.directory.glob("nsight/*.nsys-rep")) if nsys else True


@pytest.mark.needs("slurm")
def test_a_detached_run_gets_its_variables_and_no_script_has_them(
    slurm: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    slurm.wait_until_idle()
    job = script(JOB)
    (tmp_path / "mine.py").write_text(PRELOAD)
    (tmp_path / "go").touch()
    words = [
        *(PROGRAM, "submit", "--detach", "--on", "slurm", "--interface", "lo", "--memory", "2GB"),
        *("--resources", "GPU=1", "--preload", "mine.py", "--env", f"TYPED={TYPED}"),
        *("--env", "EXPORTED", job),
    ]
    environment = {**os.environ, **NO_REPORT, **slurm.environment}
    done = subprocess.run(
        words, cwd=tmp_path, env={**environment, "EXPORTED": EXPORTED}, text=True, check=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    directory = Path(done.stdout.strip())
    lines = subprocess.run(
        [PROGRAM, "logs", "-f", str(directory)], cwd=tmp_path, env=environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=180,
    ).stdout.splitlines()  # fmt: skip
    assert lines[:3] == expected([])
    assert holding(TYPED, EXPORTED, folder=tmp_path) == []
    assert "--resources=GPU=1" in (directory / "scripts" / "head.sh").read_text()
    assert json.loads((directory / "run.json").read_text())["exit_code"] == 0


WAITING = """
    from distributed import Client

    def train(number):
        return number

    def load():
        return 0

    with Client() as client:
        futures = client.map(train, range(3), resources={"GPU": 1})
        print(client.gather([*futures, client.submit(load, workers=["node77"])]))
"""


@pytest.mark.parametrize("ending", ["interrupt", "cancel"])
def test_what_tasks_wait_for_that_no_worker_has_is_said_after_ten_seconds(
    ending: str, start: Callable[..., Running], script: Callable[[str], str], tmp_path: Path
) -> None:
    running = start("--on", "local", "--no-nsys", "--resources", "MEM=2", script(WAITING))

    def content() -> dict[str, Any]:
        try:
            return running.manifest()
        except (OSError, ValueError):
            return {}

    running.wait_until(lambda: content().get("state") == "running", 60, "job")
    assert not content()["waiting_for"]
    running.wait_until(lambda: bool(content().get("waiting_for")), 60, "word")
    told = content()["waiting_for"]
    assert "1 task waits (load) for a worker at node77" in told
    assert "3 tasks wait (train) for a worker with GPU=1" in told
    assert "1 worker has MEM=2" in told
    snapshot = subprocess.Popen(
        command("watch", "--json", "--interval", "0.2", str(running.directory)),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert snapshot.stdout is not None
    assert json.loads(snapshot.stdout.readline())["waiting_for"] == told
    if ending == "interrupt":
        running.process.send_signal(signal.SIGINT)
    else:
        subprocess.run(command("cancel", str(running.directory)), check=True, timeout=120)
    done = running.end()
    snapshot.communicate(timeout=60)
    assert done.code == 130
    assert done.err.count(f"dasf-hpc: {told}\n") == 1
    assert not done.manifest["waiting_for"]
    assert told in done.manifest["notes"]
