"""A node job that begins when its run is over says so, and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasf_hpc import manifest
from dasf_hpc.errors import LateNodeJob
from dasf_hpc.launch import late
from dasf_hpc.launch.late import run_is_over
from dasf_hpc.manifest import Heartbeat, Manifest, run_state


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("state", ["starting", "waiting", "running"])
def test_a_run_that_waits_for_its_nodes_is_not_over(state: str, run: Path) -> None:
    Manifest(run).update(state=state)
    with Heartbeat(run):
        deadline = time.monotonic() + 10
        while run_state(run) != "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run_is_over(run) is None


@pytest.mark.parametrize("state", ["complete", "partial", "failed", "stopping", "merging"])
def test_a_run_that_is_over_or_ending_is_told(state: str, run: Path) -> None:
    Manifest(run).update(state=state)
    (run / manifest.HEARTBEAT).touch()
    before = sorted(run.iterdir())
    said = run_is_over(run)
    assert said is not None
    assert run.name in said
    assert state in said
    assert sorted(run.iterdir()) == before


def test_a_submit_without_a_sign_of_life_is_told(run: Path) -> None:
    Manifest(run).update(state="running")
    assert "has ended" in str(run_is_over(run))
    heartbeat = run / manifest.HEARTBEAT
    heartbeat.touch()
    beat = heartbeat.stat().st_mtime
    # Somewhat old it may be: clocks differ, and NFS clients keep what they know for a minute.
    assert run_is_over(run, beat + manifest.DEAD_AFTER_S) is None
    assert run_is_over(run, beat - 3600) is None
    assert "no sign of life for 600 s" in str(run_is_over(run, beat + 600))


def test_a_run_that_cannot_be_read_is_not_over(run: Path) -> None:
    assert run_is_over(run) is None
    for text in ("", "{", "[]", "{}", '{"state": 3}'):
        (run / "run.json").write_text(text)
        assert run_is_over(run) is None, text
    (run / "run.json").write_text(json.dumps({"state": "queued"}))
    assert run_is_over(run) is None
    assert "is gone" in str(run_is_over(run / "gone"))


def test_it_says_the_same_as_the_manifest() -> None:
    assert late.MANIFEST == manifest.MANIFEST
    assert late.HEARTBEAT == manifest.HEARTBEAT
    assert late.DEAD_AFTER_S == manifest.DEAD_AFTER_S
    assert late.FINAL == manifest.FINAL
    assert LateNodeJob.exit_code == late.RUN_OVER


def test_it_loads_nothing_that_takes_time() -> None:
    text = (
        "import sys, dasf_hpc.launch.late; "
        "print([m for m in ('dask', 'pandas', 'pydantic', 'numpy', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]", done.stderr
