"""A run is merged on node jobs: the same trace as here, nothing left in the queue, no surprise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import write_run
from synthetic_large import synthesise
from system.conftest import command
from testbed.slurm import SlurmTestbed


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give a cluster of three hosts; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    assert slurm.queue() == []


def merge(*words: str, cluster: SlurmTestbed | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``dasf-hpc merge``."""
    environment = {**os.environ, **(cluster.environment if cluster else {})}
    return subprocess.run(
        command("merge", *words),
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=200,
        check=False,
    )


def merged_on(run: Path) -> list[str]:
    """Give the hosts that made a run's trace."""
    on: list[str] = json.loads((run / "run.json").read_text())["merged"]["on"]
    return on


def left_behind(run: Path) -> list[str]:
    """Give what lies in a run's directory besides what belongs there."""
    names = {path.name for path in run.iterdir()}
    return sorted(names - {"journals", "trace.h5", "run.json"})


@pytest.mark.needs("slurm")
def test_three_hosts_make_the_same_trace_as_this_one(cluster: SlurmTestbed, tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=3, workers=2, tasks=200, killed=1, failing=0.1)
    here = merge(str(tmp_path))
    assert here.returncode == 0, here.stderr
    first = (tmp_path / "trace.h5").read_bytes()
    (tmp_path / "trace.h5").unlink()
    # more than half of a host's memory: no two node jobs fit on one
    words = ("--on", "slurm", "--nodes", "3", "--memory", "8GB", "--interface", "lo", "--json")
    there = merge(str(tmp_path), *words, cluster=cluster)
    assert there.returncode == 0, there.stderr
    assert there.stderr == ""
    assert json.loads(there.stdout)["run"]["merged"]["on"] == sorted(cluster.nodes)
    assert (tmp_path / "trace.h5").read_bytes() == first
    assert left_behind(tmp_path) == []


@pytest.mark.needs("slurm")
def test_a_merge_whose_nodes_do_not_come_is_done_here_and_says_why(
    cluster: SlurmTestbed, tmp_path: Path
) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=1, tasks=20)
    words = ("--on", "slurm", "--interface", "lo", "--partition", "nowhere")
    done = merge(str(tmp_path), *words, cluster=cluster)
    assert done.returncode == 0, done.stderr
    assert "nowhere" in done.stderr
    assert "on this machine" in done.stderr
    assert merged_on(tmp_path) == [os.uname().nodename]
    assert (tmp_path / "trace.h5").exists()


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("end", ["interrupted", "jobs cancelled"])
def test_a_merge_on_nodes_that_is_broken_off_leaves_nothing_in_the_queue(
    end: str, cluster: SlurmTestbed, tmp_path: Path
) -> None:
    synthesise(tmp_path, 2, 4, 10_000)
    process = subprocess.Popen(
        command(
            *("merge", str(tmp_path), "--on", "slurm", "--nodes", "2", "--memory", "8GB"),
            *("--interface", "lo"),
        ),
        env={**os.environ, **cluster.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("journals/.merge-*/*.part")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    if end == "interrupted":
        process.send_signal(signal.SIGINT)
    else:
        subprocess.run(["scancel", "--me"], env={**os.environ, **cluster.environment}, check=True)
    _, err = process.communicate(timeout=120)
    if end == "interrupted":
        assert process.returncode == 130, err
        assert "dasf-hpc merge" in err
        assert not (tmp_path / "trace.h5").exists()
    else:
        assert process.returncode == 0, err
        assert "on this machine" in err
        assert (tmp_path / "trace.h5").exists()
    assert not list(tmp_path.glob("journals/.merge-*"))


def test_a_merge_by_local_workers_is_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=1, tasks=50)
    assert merge(str(tmp_path)).returncode == 0
    first = (tmp_path / "trace.h5").read_bytes()
    done = merge(str(tmp_path), "--on", "local", "--nodes", "2", "--memory", "1GB")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trace.h5").read_bytes() == first
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--nodes", "0"), 64, "--nodes"),
        (("--on", "moon"), 64, "--on"),
        (("--on", "local", "--walltime", "soon"), 64, "--walltime"),
        (("--nvtx-message", "key"), 2, "--nvtx-message"),
    ],
)
def test_a_bad_option_is_answered_before_anything_starts(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=1, tasks=2)
    done = merge(str(tmp_path), *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "trace.h5").exists()
    assert left_behind(tmp_path) == []


def test_nothing_is_started_for_a_run_without_journals(tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir()
    done = merge(str(tmp_path), "--on", "local")
    assert done.returncode == 76
    assert "no journal" in done.stderr
    assert left_behind(tmp_path) == []
