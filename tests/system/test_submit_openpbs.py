"""The main job on PBS as OpenPBS documents it: jobs that start at home, with little environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from system.conftest import Submit
from testbed.openpbs import OpenPbsTestbed

PBS = ("--on", "pbs", "--interface", "lo", "--threads-per-worker", "1")

SQUARES = """
    import os, sys, time
    from distributed import Client

    def square(number):
        time.sleep(0.01)
        return number * number

    with Client() as client:
        workers = client.scheduler_info()["workers"].values()
        print(len(workers), "workers", len({worker["name"] for worker in workers}), "names")
        print(sum(client.gather(client.map(square, range(100)))))
    sys.exit(5)
"""


@pytest.fixture
def server(openpbs: OpenPbsTestbed) -> Iterator[OpenPbsTestbed]:
    """Give the PBS server with its defaults; nothing may be left in its queue afterwards."""
    kept = dict(openpbs.settings)
    assert openpbs.queue() == {}
    yield openpbs
    openpbs.configure(**kept)
    left = openpbs.queue()
    for job in left:
        openpbs.run("qdel", "-W", "force", job)
    openpbs.wait_until_empty()
    assert left == {}


@pytest.mark.needs("nsys")
def test_two_nodes_run_the_script_and_leave_two_reports(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(
        *PBS, "--nodes", "2", "--workers-per-node", "1", "--nsys",
        script(SQUARES), environment=server.environment,
    )  # fmt: skip
    assert done.code == 5, done.err
    assert "2 workers 2 names" in done.out
    assert "328350" in done.out
    assert server.queue() == {}

    stop = done.manifest["stop"]
    assert stop["cancelled"] == []
    assert sorted(stop["by_themselves"]) == sorted(done.manifest["batch_jobs"])
    assert len(stop["by_themselves"]) == 2

    reports = sorted((done.directory / "nsight").glob("*.nsys-rep"))
    assert len(reports) == 2
    for job in stop["by_themselves"]:
        assert any(f"-{job}.pbsserver" in report.name for report in reports)
    # What the jobs wrote is in the run's logs, which PBS need not bring there when they have ended.
    logs = sorted((done.directory / "logs").glob("*-[01].log"))
    assert [("Registered to" in log.read_text()) for log in logs] == [True, True]
    assert list((done.directory / "logs").glob("*.o[0-9]*")) == []
    assert done.manifest["merged"]["reports_found"] == 2
    assert done.manifest["merged"]["workers_found"] == 2


def test_a_job_that_waits_behind_another_is_told_with_its_reason_and_cancelled(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    server.configure(max_running=1)
    done = submit(
        *PBS, "--nodes", "2", "--no-nsys", "--start-timeout", "9",
        script(SQUARES), environment=server.environment,
    )  # fmt: skip
    assert done.code == 71, done.err
    assert "1 of 2 workers" in done.err
    assert "Server job limit has been reached" in done.err


def test_a_run_may_begin_with_fewer_workers_than_asked_for(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    # Without a history qstat does not know a job any more as soon as it has ended.
    server.configure(max_running=1, history=False)
    done = submit(
        *PBS, "--nodes", "2", "--min-workers", "1", "--no-nsys",
        script(SQUARES), environment=server.environment,
    )  # fmt: skip
    assert done.code == 5, done.err
    assert "1 workers" in done.out
    assert len(done.manifest["stop"]["by_themselves"]) == 1
    assert len(done.manifest["stop"]["cancelled"]) == 1


def test_workers_that_can_not_come_any_more_are_not_waited_for(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(
        *PBS, "--nodes", "2", "--no-nsys", "--start-timeout", "12",
        "--prologue", "mkdir only-one-job-may-go-on || exit 7",
        script(SQUARES), environment=server.environment,
    )  # fmt: skip
    assert done.code == 71, done.err
    assert "After 12 s" not in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--partition", "nosuch"], "Unknown queue"),
        (["--partition", "closed"], "Queue is not enabled"),
        (["--walltime", "3-00:00:00"], "Job violates queue and/or server resource limits"),
        (["--directive=-l nosuch=1"], "Unknown resource: nosuch"),
    ],
)
def test_what_qsub_refuses_is_told_in_its_own_words(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str],
    words: list[str], says: str,
) -> None:  # fmt: skip
    done = submit(*PBS, *words, script("pass"), environment=server.environment)
    assert done.code == 70, done.err
    assert says in done.err
    assert done.err.count("\n") == 1


def test_what_pbs_says_of_a_job_that_can_never_run_is_told_once(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(
        "--on", "pbs", "--interface", "lo", "--threads-per-worker", "99", script("pass"),
        environment=server.environment,
    )  # fmt: skip
    assert done.code == 70, done.err
    assert done.err.count("Can Never Run") == 1, done.err
    assert "--threads-per-worker" in done.err


def test_output_that_pbs_cannot_bring_back_holds_nothing_up(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    server.configure(stage_out_fails=True, stage_out_stall_s=60.0)
    done = submit(
        *PBS, "--nodes", "2", "--no-nsys", script(SQUARES), environment=server.environment
    )
    assert done.code == 5, done.err
    assert done.manifest["stop"]["cancelled"] == []
    assert done.manifest["stop"]["seconds"] < 30


def test_what_a_node_is_to_have_besides_goes_into_its_chunk(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    words = (*PBS, "--nodes", "1", "--no-nsys", "--chunk", "mpiprocs=2", "--dry-run")
    done = submit(*words, script(SQUARES), environment=server.environment)
    assert re.search(r"^#PBS -l select=1:ncpus=1:mem=\d+MB:mpiprocs=2$", done.out, re.MULTILINE)
    assert "#PBS -r n\n" in done.out
    refused = submit(
        *PBS, "--no-nsys", "--directive=-l select=4", script(SQUARES),
        environment=server.environment,
    )  # fmt: skip
    assert refused.code == 64
    assert "PBS takes the first select alone" in refused.err
    assert server.queue() == {}
