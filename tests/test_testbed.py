"""The testbed is what it says: three hosts with names, clocks, GPUs and queues of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from testbed.slurm import NODE_GPUS, SlurmTestbed, SlurmTestbedError, why_not_here

JOB_TIMEOUT_S = 60.0
"""A batch job starts within about 2 s; the rest is for a machine busy with other things."""

PBS_SCRIPT = """\
#!/usr/bin/env bash

#PBS -N dask-worker
#PBS -q main
#PBS -A project
#PBS -l select=1:ncpus=1:mem=4GB
#PBS -l walltime=00:30:00
#PBS -e ./
#PBS -o ./

hostname > {answer}
"""


def run(testbed: SlurmTestbed, *words: str, cwd: Path | None = None) -> str:
    """Run a program as a user of the cluster does, and return what it prints."""
    done = subprocess.run(
        words,
        env=os.environ | testbed.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def wait_until_ended(testbed: SlurmTestbed, job: int) -> None:
    """Wait until a job has left the queue."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while any(other.id == job for other in testbed.queue()):
        assert time.monotonic() < deadline, testbed.queue()
        time.sleep(0.1)


def test_all_hosts_are_idle_and_nothing_is_queued(slurm: SlurmTestbed) -> None:
    slurm.wait_until_idle()
    assert slurm.node_states() == {"node1": "idle", "node2": "idle", "node3": "idle"}
    assert slurm.queue() == []


def test_a_job_sees_the_name_of_its_host_and_no_other(slurm: SlurmTestbed) -> None:
    for node in slurm.nodes:
        assert run(slurm, "srun", f"--nodelist={node}", "hostname").split() == [node]


def test_the_name_of_every_host_resolves_on_every_host(slurm: SlurmTestbed) -> None:
    addresses = run(slurm, "srun", "--nodes=3", "getent", "ahostsv4", *slurm.nodes)
    assert {line.split()[0] for line in addresses.splitlines()} == {
        "127.0.0.11",
        "127.0.0.12",
        "127.0.0.13",
    }


def test_the_clock_of_each_host_is_ahead_by_what_is_said(slurm: SlurmTestbed) -> None:
    code = "import time; print(time.monotonic_ns())"
    for node in slurm.nodes:
        before = time.monotonic()
        there = int(run(slurm, "srun", f"--nodelist={node}", sys.executable, "-c", code)) / 1e9
        after = time.monotonic()
        offset = slurm.monotonic_offset_s[node]
        assert before <= there - offset <= after
        assert after - before < offset / 2, "too slow to tell one offset from another"


def test_a_job_gets_the_gpus_it_asks_for(slurm: SlurmTestbed) -> None:
    everything = f"--gres=gpu:{NODE_GPUS}"
    shown = run(slurm, "srun", "-p", "gpu", everything, "printenv", "CUDA_VISIBLE_DEVICES")
    assert shown.strip() == "0,1"


def test_three_hosts_take_the_memory_of_a_large_job(slurm: SlurmTestbed) -> None:
    names = run(slurm, "srun", "--nodes=3", "--mem=4G", "--cpus-per-task=4", "hostname")
    assert sorted(names.split()) == slurm.nodes


def test_a_pbs_script_runs_and_ends(slurm: SlurmTestbed, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    script = tmp_path / "job.sh"
    script.write_text(PBS_SCRIPT.format(answer=answer), encoding="utf-8")
    job = int(run(slurm, "qsub", str(script), cwd=tmp_path).split(".")[0])
    wait_until_ended(slurm, job)
    assert answer.read_text(encoding="utf-8").strip() in slurm.nodes
    assert run(slurm, "qstat", str(job)).splitlines()[-1].split()[4:] == ["C", "main"]


def test_a_queued_pbs_job_can_be_deleted(slurm: SlurmTestbed, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(PBS_SCRIPT.format(answer=tmp_path / "answer"), encoding="utf-8")
    job = int(run(slurm, "qsub", "-h", str(script), cwd=tmp_path))
    assert [(one.id, one.state, one.name) for one in slurm.queue()] == [
        (job, "PENDING", "dask-worker")
    ]
    run(slurm, "qdel", str(job))
    wait_until_ended(slurm, job)
    assert not (tmp_path / "answer").exists()


def test_a_host_whose_daemon_was_killed_comes_back(slurm: SlurmTestbed) -> None:
    slurm.wait_until_idle()
    killed = slurm.slurmd_pid("node2")
    slurm.kill_slurmd("node2")
    with pytest.raises(SlurmTestbedError, match="slurmd of node2 does not run"):
        slurm.slurmd_pid("node2")
    slurm.start_slurmd("node2")
    assert slurm.slurmd_pid("node2") != killed
    slurm.wait_until_idle()
    assert run(slurm, "srun", "--nodelist=node2", "hostname").split() == ["node2"]


def test_a_second_cluster_with_a_host_that_fails(slurm: SlurmTestbed, tmp_path: Path) -> None:
    with SlurmTestbed() as other:
        assert other.environment != slurm.environment
        job = ("--nodelist=node3", "--no-requeue", "--wrap=sleep 1000")
        run(other, "sbatch", *job, cwd=tmp_path)
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while other.node_states()["node3"] != "mixed":
            assert time.monotonic() < deadline, other.queue()
            time.sleep(0.1)
        other.kill_node("node3")
        run(other, "scontrol", "update", "nodename=node3", "state=down", "reason=test")
        while other.queue():
            assert time.monotonic() < deadline, other.queue()
            time.sleep(0.1)
        other.start_node("node3")
        other.wait_until_idle()
        assert run(other, "srun", "--nodelist=node3", "hostname").split() == ["node3"]
        directory = other.directory
    assert not directory.exists()
    assert slurm.queue() == []


@pytest.mark.needs("slurm")
def test_by_hand_it_runs_until_it_is_told_to_end() -> None:
    program = Path(__file__).parent / "testbed/slurm.py"
    started = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    name, configuration = started.stdout.readline().removeprefix("export ").strip().split("=")
    assert name == "SLURM_CONF"
    assert Path(configuration).exists()
    started.send_signal(signal.SIGTERM)
    assert started.wait(JOB_TIMEOUT_S) == 0
    assert not Path(configuration).parent.exists()


@pytest.mark.needs("slurm")
def test_where_nothing_is_in_the_way_no_reason_is_given() -> None:
    assert why_not_here() is None


@pytest.mark.parametrize(
    ("required", "ending", "code"),
    [("", "1 skipped", 0), ("slurm", "1 skipped", 0), ("slurm, nsys", "1 error", 1)],
)
def test_what_is_missing_skips_unless_it_is_required(
    required: str, ending: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "test_needy.py").write_text(
        "import pytest\n\n@pytest.mark.needs('nsys')\ndef test_needy():\n    pass\n",
        encoding="utf-8",
    )
    done = pytest_without_programs(tmp_path, required)
    assert ending in done.stdout
    assert "nsys: nsys is not installed; to get it: bash tests/testbed/install.sh nsys" in (
        done.stdout
    )
    assert done.returncode == code


def test_a_program_nobody_knows_is_refused(tmp_path: Path) -> None:
    done = pytest_without_programs(tmp_path, "nsight")
    assert "DASF_HPC_REQUIRE names nsight; known programs are slurm, nsys" in done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def pytest_without_programs(folder: Path, required: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in a folder as on a machine where no program is installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "conftest", "--rootdir", str(folder), "."],
        env=os.environ
        | {
            "PATH": str(folder),
            "PYTHONPATH": str(Path(__file__).parent),
            "DASF_HPC_REQUIRE": required,
            "COLUMNS": "200",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        cwd=folder,
        check=False,
    )
