"""Runs whose nsys records a part of them: they go on, and what was recorded is joined."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from system.conftest import Submit
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace
from dasf_hpc.launch.node import read_node_records
from dasf_hpc.manifest import Manifest
from dasf_hpc.outcome import merge_run

pytestmark = pytest.mark.needs("nsys")

JOB = """
    import time
    from distributed import Client

    def inc(x):
        time.sleep(0.4)
        return x

    def rest(x):
        time.sleep(0.3)
        return x

    with Client() as client:
        for number in range(COUNT):
            client.submit(inc, number).result()
            client.submit(rest, number).result()
"""

CAPTURE = ("--nsys-arg=--capture-range=nvtx", "--nsys-arg=--nvtx-capture=inc@compute")


def test_a_run_outlives_the_time_that_nsys_records(
    submit: Submit, script: Callable[[str], str]
) -> None:
    job = script(JOB.replace("COUNT", "20"))
    done = submit("--on", "local", "--nodes", "1", "--nsys", "--nsys-arg=--duration=6", job)
    assert done.code == 0, done.err
    content = done.manifest
    assert content["state"] == "complete"
    assert content["merged"]["reports_expected"] == content["merged"]["reports_found"] == 1
    assert sum("what ran later is in no report" in note for note in content["notes"]) == 1
    with open_trace(done.directory / "trace.h5") as trace:
        assert len(trace.tasks) == 40
        ranges = trace.nvtx_ranges
        ranges = ranges[ranges["domain"] == "compute"]
        assert len(ranges) < 40
        assert (ranges["task"] >= 0).all()
        assert list(trace.processes.loc[trace.processes["role"] == "worker", "ended"]) == ["closed"]


def test_each_report_of_a_node_job_is_joined(submit: Submit, script: Callable[[str], str]) -> None:
    words = (*CAPTURE, "--nsys-arg=--capture-range-end=repeat:2")
    done = submit("--on", "local", "--nodes", "1", "--nsys", *words,
                  script(JOB.replace("COUNT", "8")))  # fmt: skip
    assert done.code == 0, done.err
    merged = done.manifest["merged"]
    assert merged["reports_expected"] == merged["reports_found"] == 2
    for report in merged["reports"]:
        assert report["compute_ranges"] == report["linked"] == 1
    (record,) = read_node_records(done.directory)
    assert [report["file"] for report in merged["reports"]] == record["reports"]
    with open_trace(done.directory / "trace.h5") as trace:
        rows = trace.nvtx_ranges
        rows = rows[rows["domain"] == "compute"]
        assert sorted(rows["report"]) == [0, 1]
        assert rows["task"].nunique() == 2
        tasks = trace.tasks.loc[rows["task"]]
        bounds = trace.reports["correction_bound"].loc[rows["report"]].to_numpy()
        assert (rows["start"].to_numpy() >= tasks["start"].to_numpy() - bounds).all()
        assert (rows["stop"].to_numpy() <= tasks["stop"].to_numpy() + bounds).all()
    # Where the node could not say how many there are, they count as what they are.
    for path in (done.directory / "nodes").glob("*.json"):
        path.write_text(path.read_text().replace('"reports"', '"other"'))
    merge_run(done.directory)
    merged = Manifest(done.directory).content["merged"]
    assert merged["reports_expected"] == merged["reports_found"] == 2
    # One of several that is lost is missed.
    for path in (done.directory / "nodes").glob("*.json"):
        path.write_text(path.read_text().replace('"other"', '"reports"'))
    (done.directory / record["reports"][0]).unlink()
    merge_run(done.directory)
    merged = Manifest(done.directory).content["merged"]
    assert (merged["reports_expected"], merged["reports_found"]) == (2, 1)


@pytest.mark.needs("slurm")
def test_nodes_without_the_captured_range_owe_no_report(
    submit: Submit, script: Callable[[str], str], slurm: SlurmTestbed
) -> None:
    job = script(JOB.replace("COUNT", "3").replace("inc, number", "inc, number, workers=first")
                 .replace("for number", "first = sorted(client.scheduler_info()['workers'])[:1]\n"
                          "        for number", 1))  # fmt: skip
    done = submit("--on", "slurm", "--nodes", "2", "--memory", "1GB", "--walltime", "00:05:00",
                  "--interface", "lo", "--nsys", *CAPTURE, job,
                  environment=slurm.environment)  # fmt: skip
    assert done.code == 0, done.err
    content = done.manifest
    assert content["merged"]["reports_expected"] == content["merged"]["reports_found"] == 1
    assert content["merged"]["workers_found"] == 2
    assert sum("nsys recorded nothing" in note for note in content["notes"]) == 1
    assert sum("what ran later is in no report" in note for note in content["notes"]) == 1


def test_a_range_that_no_node_captured_leaves_the_recording_partial(
    submit: Submit, script: Callable[[str], str]
) -> None:
    words = ("--nsys-arg=--capture-range=nvtx", "--nsys-arg=--nvtx-capture=nothing@compute")
    done = submit("--on", "local", "--nodes", "1", "--nsys", *words,
                  script(JOB.replace("COUNT", "1")))  # fmt: skip
    assert done.code == 80, done.err
    assert "nsys recorded nothing" in " ".join(done.manifest["notes"])


def test_an_nsys_that_is_to_end_the_workers_is_refused(
    submit: Submit, script: Callable[[str], str]
) -> None:
    words = ("--nsys-arg=--duration=3", "--nsys-arg=--kill=sigterm")
    done = submit("--on", "local", *words, script(JOB))
    assert done.code == 64
    assert done.err.count("\n") == 1
    assert "leave --kill out" in done.err
    assert not done.runs.exists()
