"""What is said of a run whose head waits in the queue, where the batch scheduler may not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from handmade import Made, Task, make_trace

from dasf_hpc import runs
from dasf_hpc.errors import BatchError
from dasf_hpc.launch.head_end import HEAD_ENDED, HEAD_VARIABLE
from dasf_hpc.manifest import HEARTBEAT, run_state

SAID = {
    "slurm": ("squeue", "scancel", "slurm_load_jobs error: Invalid job id specified"),
    "pbs": ("qstat", "qdel", "qstat: Unknown Job Id 42.server"),
}


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words], capture_output=True, text=True
    )


def test_a_list_in_a_pipe_has_whole_words(queued: Path) -> None:
    _write(queued, on="slurm", job="a-script-of-a-very-long-name-indeed-it-is.py", state="failed")
    said = cli("runs", str(queued.parent))
    assert said.returncode == 0, said.stderr
    head, row = said.stdout.splitlines()
    assert head.split() == ["Run", "State", "On", "Job", "Took", "Exit"]
    assert row.split()[:4] == [
        "run", "failed", "slurm", "a-script-of-a-very-long-name-indeed-it-is.py"
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("analyze", "where"), ("compare",), ("show",), ("report",)])
def test_a_trace_that_is_not_there_is_a_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    missing = str(tmp_path / "nope")
    said = cli(*words, missing, *(["--head", missing] if words == ("compare",) else []))
    assert said.returncode in (73, 76), said.stderr
    assert said.stderr.startswith("dasf-hpc: ")
    assert "nope" in said.stderr


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def queued(tmp_path: Path) -> Path:
    """Give the directory of a run whose head was submitted."""
    run = tmp_path / "run"
    run.mkdir()
    _write(run, state="queued", head_job="42", started=time.time())
    return run


def _write(run: Path, **content: object) -> None:
    known = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    (run / "run.json").write_text(json.dumps({**known, **content}))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder whose programs are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.mark.parametrize("system", SAID)
def test_a_head_that_nobody_knows_is_gone_and_silence_is_no_answer(
    system: str, queued: Path, programs: Path
) -> None:
    asks, _, unknown = SAID[system]
    _write(queued, on=system)
    program(programs, asks, "echo 'Unable to contact the controller' >&2; exit 1")
    assert runs.state_now(queued) == "queued"
    program(programs, asks, f"echo '{unknown}' >&2; exit 1")
    assert runs.state_now(queued) == "abandoned"


def test_a_head_that_is_being_submitted_is_not_asked_for(queued: Path, programs: Path) -> None:
    _write(queued, on="slurm", head_job=None)
    program(programs, "squeue", "exit 0")
    assert runs.state_now(queued) == "queued"
    _write(queued, started=time.time() - 2 * runs.SUBMITTING_S)
    assert runs.state_now(queued) == "abandoned"


@pytest.mark.parametrize("system", SAID)
def test_a_head_that_stays_in_the_queue_was_not_cancelled(
    system: str, queued: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, cancels, unknown = SAID[system]
    _write(queued, on=system)
    monkeypatch.setattr(runs, "GONE_S", 0.5)
    program(programs, cancels, "echo 'Unable to contact the controller' >&2; exit 1")
    program(programs, asks, "echo 'Unable to contact the controller' >&2; exit 1")
    with pytest.raises(BatchError, match="42"):
        runs.cancel_run(queued, 1)
    assert run_state(queued) == "queued"
    program(programs, asks, f"echo '{unknown}' >&2; exit 1")
    assert "out of the queue" in runs.cancel_run(queued, 1)
    assert run_state(queued) == "failed"


def test_following_a_log_cuts_no_character(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "journals").mkdir()
    _write(run, state="running")
    (run / HEARTBEAT).touch()
    log, text = run / "logs" / "job.out", "naïve ☃\n"
    parts = [text.encode()[:3], text.encode()[3:8], text.encode()[8:]]
    log.write_bytes(parts[0])
    reading = subprocess.Popen(
        [sys.executable, "-m", "dasf_hpc.cli", "logs", "--follow", str(run)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert reading.stdout is not None
    assert reading.stdout.read(2) == b"na"
    for part in parts[1:]:
        with log.open("ab") as file:
            file.write(part)
        time.sleep(0.7)
    _write(run, state="complete")
    assert (b"na" + reading.communicate(timeout=30)[0]).decode() == text


def test_following_a_head_goes_on_until_it_has_said_what_the_run_holds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "journals").mkdir()
    _write(run, state="running", head_job="42")
    (run / HEARTBEAT).touch()
    log = run / "logs" / "head.log"
    log.write_text("begins\n")
    reading = subprocess.Popen(
        [sys.executable, "-m", "dasf_hpc.cli", "logs", "--follow", str(run), "head"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reading.stdout is not None
    assert reading.stdout.readline() == "begins\n"
    _write(run, state="complete", head_job="42")
    time.sleep(1.0)
    assert reading.poll() is None
    # As the head's script does, with its own number.
    says = f"exec >>{log}; export {HEAD_VARIABLE}=$$:{run}/logs/{HEAD_ENDED}"
    words = f"{sys.executable} -m dasf_hpc.cli runs --runs-dir {tmp_path}"
    subprocess.run(f"{says}; exec {words}", shell=True, check=True)
    told, _ = reading.communicate(timeout=30)
    assert "complete" in told


def test_a_terminal_that_knows_ascii_alone_gets_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    make_trace(path, Made([Task("größe", 0, 0, 10)])).close()
    for words in (("show",), ("analyze", "functions")):
        said = subprocess.run(
            [sys.executable, "-m", "dasf_hpc.cli", *words, str(path)],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert "gr\\xf6\\xdfe" in said.stdout
