"""Node jobs that are lost: how that is noticed, what is said of it, and how the run ends then."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from system.conftest import Running, Submit, command
from system.ledger import check_nothing_lost, ledger, ledger_job
from testbed.lsf import LsfTestbed
from testbed.openpbs import OpenPbsTestbed
from testbed.slurm import SlurmTestbed

NODES = ("--nodes", "2", "--workers-per-node", "1", "--interface", "lo", "--no-nsys")


def many(count: int) -> str:
    """Give a job of so many tasks."""
    return ledger_job("client.gather(futures)", count)


@pytest.fixture(scope="module")
def patient() -> Iterator[SlurmTestbed]:
    """Give a cluster whose controller does not notice for an hour that a host is dead."""
    with SlurmTestbed(node_down_after_s=3600) as testbed:
        yield testbed


@pytest.mark.needs("slurm")
def test_a_node_that_dies_without_the_queue_knowing_is_a_loss_and_no_wait(
    patient: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    words = ("--on", "slurm", "--memory", "8GB", *NODES, "--node-timeout", "15")
    running = start(*words, script(many(600)), environment=patient.environment)
    running.wait_for_tasks(40)
    (first, second) = (job for job in patient.queue() if job.state == "RUNNING")
    patient.kill_node(second.nodes)
    running.wait_until(lambda: bool(running.manifest().get("lost")), 120, "loss")
    (lost,) = running.manifest()["lost"]
    assert lost["job_id"] == str(second.id)
    assert lost["how"] == "its node does not answer any more"
    done = running.end()
    assert done.code == 0, done.err
    ended = done.manifest
    assert ended["ended"] - ended["job_ended"] < 60
    assert str(first.id) in ended["stop"]["by_themselves"]
    check_nothing_lost(done.directory, ledger(running.folder), at_most=2)  # its last 0.1 s
    patient.command("scontrol", "update", f"nodename={second.nodes}", "state=down", "reason=test")
    patient.start_node(second.nodes)
    patient.command("scontrol", "update", f"nodename={second.nodes}", "state=resume")
    patient.wait_until_idle()


@pytest.mark.needs("slurm")
def test_of_jobs_that_end_before_their_workers_are_there_the_cause_is_told(
    slurm: SlurmTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    slurm.wait_until_idle()
    done = submit(
        "--on", "slurm", "--memory", "8GB", *NODES,
        "--prologue", "echo \"ModuleNotFoundError: No module named 'dask_cuda'\" >&2; "
        "echo /runs/RUN/nsight/node.nsys-rep; exit 3",
        script("pass"), environment=slurm.environment,
    )  # fmt: skip
    assert done.code == 71
    assert "No module named 'dask_cuda' (job " in done.err
    assert ", which ended with exit code 3)" in done.err


@pytest.mark.needs("slurm")
def test_a_job_that_someone_cancels_is_said_to_be_cancelled(
    slurm: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    slurm.wait_until_idle()
    words = ("--on", "slurm", "--memory", "8GB", *NODES)
    running = start(*words, script(many(300)), environment=slurm.environment)
    running.wait_for_tasks(20)
    job = next(job for job in slurm.queue() if job.state == "RUNNING")
    slurm.command("scancel", str(job.id))
    running.wait_until(lambda: bool(running.manifest().get("lost")), 60, "loss")
    assert running.manifest()["lost"][0]["how"] == "was cancelled"
    done = running.end()
    assert done.code == 0, done.err
    check_nothing_lost(done.directory, ledger(running.folder))


@pytest.mark.needs("slurm")
def test_what_a_node_job_says_is_seen_while_it_runs_and_is_its_owners_alone(
    slurm: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    slurm.wait_until_idle()
    words = ("--on", "slurm", "--memory", "8GB", *NODES, "--prologue", "echo HELLO from the node")
    running = start(*words, script(many(200)), environment=slurm.environment)
    running.wait_for_tasks(5)
    logs = sorted((running.directory / "logs").glob("*-[01].log"))
    assert len(logs) == 2
    assert {log.stat().st_mode & 0o777 for log in logs} == {0o600}
    (record, *_) = (json.loads(path.read_text()) for path in
                    sorted((running.directory / "nodes").glob("*.json")))  # fmt: skip
    for who in (record["hostname"], record["name"], record["batch_job"]):
        said = subprocess.check_output(command("logs", str(running.directory), who), text=True)
        assert "HELLO from the node" in said
        assert "Registered to" in said
    running.end()


# ------------------------------------------------------------------------------------------- PBS


def test_a_node_of_pbs_that_dies_is_lost_and_its_job_that_qdel_cannot_end_is_named(
    openpbs: OpenPbsTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    words = ("--on", "pbs", "--memory", "8GB", *NODES, "--node-timeout", "15")
    running = start(*words, script(many(600)), environment=openpbs.environment)
    running.wait_for_tasks(40)
    hosts = {}
    for job in running.manifest()["batch_jobs"]:
        told = openpbs.run("qstat", "-f", job).stdout
        found = re.search(r"exec_host = (\w+)/", told)
        assert found is not None, told
        hosts[job] = found[1]
    first, second = hosts
    openpbs.kill_host(hosts[second])
    try:
        running.wait_until(lambda: bool(running.manifest().get("lost")), 120, "loss")
        (lost,) = running.manifest()["lost"]
        assert lost["job_id"] == second
        assert lost["how"] == "its node does not answer any more"
        done = running.end()
        assert done.code == 0, done.err
        ended = done.manifest
        assert ended["ended"] - ended["job_ended"] < 60
        assert ended["stop"]["by_themselves"] == [first]
        assert "qdel" in ended["stop"]["left"][second]
        check_nothing_lost(done.directory, ledger(running.folder), at_most=2)  # its last 0.1 s
    finally:
        openpbs.run("qdel", "-W", "force", second)
        openpbs.start_host(hosts[second])
        openpbs.wait_until_empty()


# ------------------------------------------------------------------------------------------- LSF


@pytest.fixture
def lsf() -> Iterator[LsfTestbed]:
    """Give LSF's commands; nothing may be left in the queue."""
    with LsfTestbed() as testbed:
        yield testbed
        deadline = time.monotonic() + 30
        while testbed.queue() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert testbed.queue() == []


LSF = ("--on", "lsf", "--memory", "1GB", "--nodes", "2", "--interface", "lo", "--no-nsys")


def test_a_run_on_lsf(lsf: LsfTestbed, submit: Submit, script: Callable[[str], str]) -> None:
    foreign = lsf.run("bsub", standard_input=["#BSUB -J dasf-other-0", "sleep 60"])
    assert "is submitted" in foreign.stdout
    done = submit(*LSF, script(many(100)), environment=lsf.environment)
    assert done.code == 0, done.err
    assert len(done.manifest["batch_jobs"]) == 2
    assert sorted(done.manifest["stop"]["by_themselves"]) == sorted(done.manifest["batch_jobs"])
    check_nothing_lost(done.directory, ledger(done.runs.parent))
    (left,) = lsf.queue()
    assert left not in done.manifest["batch_jobs"]
    lsf.run("bkill", left)


def test_a_queue_that_lsf_does_not_have_is_told_in_its_words(
    lsf: LsfTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*LSF, "--partition", "nosuch", script("pass"), environment=lsf.environment)
    assert done.code == 70
    assert "LSF refused a node job: nosuch: No such queue (the script is" in done.err


def test_jobs_that_wait_on_lsf_are_cancelled(
    lsf: LsfTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(*LSF, script(many(5000)), environment=lsf.environment)
    running.wait_for_tasks(5)
    subprocess.run(command("cancel", str(running.directory)), check=True, timeout=90)
    done = running.end()
    assert done.code == 130, done.err
    check_nothing_lost(done.directory, ledger(running.folder))
