"""A scaling study on a real SLURM: what was planted as serial is what the study finds to be."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system.conftest import NO_REPORT, command
from testbed.slurm import SlurmTestbed

#: Seconds of one task of the job: all of them together at one node, and what no node shortens.
PARALLEL_TASKS, PARALLEL_S, SERIAL_S = 24, 0.25, 1.5
#: The serial fraction of the time at one node.
SERIAL = SERIAL_S / (PARALLEL_TASKS * PARALLEL_S + SERIAL_S)

#: Sleeps, which two cores can do for any number of nodes. Every run is slower or faster than it
#: should be by a factor of its own, as runs are: so large that what Dask adds is small beside it.
JOB = f"""
    import sys, time
    from distributed import Client

    FACTORS = [1.02, 0.97, 1.03, 0.99, 1.04, 0.98]

    def part(number, seconds):
        time.sleep(seconds)
        return number

    def collect(numbers, seconds):
        time.sleep(seconds)
        return sum(numbers)

    with open("ledger", "a+") as ledger:
        ledger.write(" ".join(sys.argv[1:]) + "\\n")
        ledger.seek(0)
        factor = FACTORS[(len(ledger.readlines()) - 1) % len(FACTORS)]
    with Client() as client:
        parts = client.map(part, range({PARALLEL_TASKS}), seconds={PARALLEL_S} * factor, pure=False)
        print(client.submit(collect, parts, {SERIAL_S} * factor).result())
"""

#: A whole host each: no two node jobs fit on one.
NODES = [
    "--workers-per-node", "1", "--threads-per-worker", "1", "--memory", "8GB",
    "--interface", "lo", "--no-nsys",
]  # fmt: skip


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give the cluster; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    assert slurm.queue() == []


def scale(
    folder: Path, cluster: SlurmTestbed, words: list[str], before: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``dasf-hpc scale`` as a user does."""
    (folder / "job.py").write_text(textwrap.dedent(JOB))
    return subprocess.run(
        [*(before or []), *command("scale", *words)],
        cwd=folder, env={**os.environ, **NO_REPORT, **cluster.environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Read what it printed after what the job's runs did."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.needs("slurm")
def test_the_planted_serial_fraction_is_within_the_interval_that_is_told(
    cluster: SlurmTestbed, tmp_path: Path
) -> None:
    words = ["--on", "slurm", "--nodes", "1,2,3", "--repeats", "2", *NODES, "--json"]
    found = document(scale(tmp_path, cluster, [*words, "job.py", "{nodes}", "{threads}"]))
    asked = (tmp_path / "ledger").read_text().splitlines()
    assert asked == ["1 1", "2 2", "3 3"] * 2  # all scales once, then again
    rows = found["tables"]["scales"]["rows"]
    assert [(row["scale"], row["runs"]) for row in rows] == [(1, 2), (2, 2), (3, 2)]
    # what tasks take in sum does not depend on the nodes: the factors of the runs are all there is
    assert all(row["computation_scalability"] == pytest.approx(1, abs=0.06) for row in rows)
    law = next(one for one in found["fits"] if one["law"] == "amdahl")
    serial = law["parameters"]["serial"]
    assert law["chosen"]
    assert serial["low"] <= SERIAL <= serial["high"], serial
    # which is told with some certainty, however busy the machine is
    assert serial["high"] - serial["low"] < 0.4
    study = json.loads((Path(found["study"]) / "study.json").read_text())
    assert study["state"] == "complete"
    for run in study["runs"]:
        content = json.loads((Path(found["study"]) / run["directory"] / "run.json").read_text())
        assert content["shape"]["nodes"] == len(content["batch_jobs"]) == run["scale"]


@pytest.mark.needs("slurm")
def test_a_study_runs_within_one_allocation(cluster: SlurmTestbed, tmp_path: Path) -> None:
    words = ["--on", "allocation", "--nodes", "1,2", "--repeats", "1", *NODES, "job.py"]
    allocation = ["salloc", "--nodes=2", "--mem=9G", "--time=00:05:00"]
    done = scale(tmp_path, cluster, [*words[:2], "--nodes", "1,2,3", *words[4:]], allocation)
    assert done.returncode == 64, done.stderr
    assert "this batch job has 2 node(s)" in done.stderr
    done = scale(tmp_path, cluster, words, allocation)
    assert done.returncode == 0, done.stderr
    assert "Strong scaling over 1, 2 nodes, 2 runs" in done.stdout
    assert (tmp_path / "ledger").read_text() == "\n\n"
