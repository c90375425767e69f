"""However a run ends early, its user is told where what was recorded is, and what it lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system.conftest import Running, command
from system.ledger import check_nothing_lost, ledger, ledger_job, process_of_run
from testbed.slurm import SlurmTestbed

LOCAL = ("--on", "local", "--no-nsys")

#: Does nothing but wait, so that its end is the run's.
LONG = ledger_job("client.gather(futures)", 5000)


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give the testbed with all hosts idle; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    deadline = time.monotonic() + 60
    while slurm.queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert slurm.queue() == []


def wait_for_state(running: Running, state: str, seconds: float = 60) -> None:
    """Wait until run.json shows a state; looked at often, for some are short."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if running.manifest()["state"] == state:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.005)
    raise AssertionError(f"no state {state} in {seconds} s: {running.manifest()['state']}")


def said(err: str) -> str:
    """Give the one sentence that a command ended with."""
    (sentence,) = [line for line in err.splitlines() if line.startswith("dasf-hpc:")]
    assert err.splitlines()[-1] == sentence
    return sentence


def hint(directory: Path) -> str:
    return f"what was recorded is in {directory}, to merge it: dasf-hpc merge {directory}"


@pytest.mark.parametrize(
    ("state", "signals"),
    [
        ("running", [signal.SIGINT, signal.SIGINT]),
        ("running", [signal.SIGTERM]),
        ("stopping", [signal.SIGINT]),
        ("merging", [signal.SIGINT]),
        ("merging", [signal.SIGTERM]),
    ],
    ids=lambda given: given if isinstance(given, str) else "+".join(s.name for s in given),
)
def test_whoever_ends_early_is_told_how_to_merge(
    state: str, signals: list[signal.Signals], start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    running = start(*LOCAL, script(LONG))
    running.wait_for_tasks(20)
    if state != "running":
        running.process.send_signal(signal.SIGINT)
        wait_for_state(running, state)
    for number in signals:
        running.process.send_signal(number)
        time.sleep(0.2)
    done = running.end(60)
    assert done.code == 130, done.err
    assert hint(done.directory) in said(done.err), done.err
    assert not (done.directory / "trace.h5").exists()
    listed = subprocess.run(
        command("cancel", str(done.directory)), capture_output=True, text=True, check=True
    )
    assert f"dasf-hpc merge {done.directory}" in listed.stdout
    merged = subprocess.run(
        command("merge", "--strict", str(done.directory)), capture_output=True, text=True
    )
    assert merged.returncode == 80, merged.stderr  # the script was cut off
    check_nothing_lost(done.directory, ledger(tmp_path))


def test_one_ctrl_c_is_told_where_the_trace_is(
    start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(*LOCAL, script(LONG))
    running.wait_for_tasks(20)
    running.process.send_signal(signal.SIGINT)
    done = running.end(60)
    assert f"what was recorded is merged in {done.directory}" in said(done.err)
    assert "dasf-hpc merge" not in said(done.err)
    assert (done.directory / "trace.h5").exists()


def test_who_ends_before_anything_is_recorded_is_told_that(
    start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(*LOCAL, "--prologue", "sleep 300", script("pass"))
    running.wait_until(lambda: bool(list(tmp_runs(running))), 60, "run's directory")
    wait_for_state(running, "waiting")
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)
    done = running.end(60)
    assert done.code == 130, done.err
    assert "no worker had recorded anything" in said(done.err)
    assert "dasf-hpc merge" not in said(done.err)


def tmp_runs(running: Running) -> list[Path]:
    return list((running.folder / "runs").glob("*/run.json"))


PENDING = """
    import gc, time
    from distributed import Client

    async def mine():
        raise ValueError("of my own")

    client = Client()
    loop = client.loop.asyncio_loop
    loop.call_soon_threadsafe(lambda: loop.create_task(mine()))
    futures = client.map(lambda i: time.sleep(0.5), range(2000), pure=False)
    print("waiting", flush=True)
    try:
        client.gather(futures)
    except KeyboardInterrupt:
        client.cancel(futures)
        time.sleep(1)
        gc.collect()
        raise
"""


def test_many_pending_futures_do_not_fill_the_terminal(
    start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(*LOCAL, script(PENDING))
    running.wait_until(lambda: "waiting" in job_out(running), 60, "script that waits")
    time.sleep(2)
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
    done = running.end(60)
    assert done.code == 130
    assert len(done.err.splitlines()) < 80, done.err[:5000]
    assert "KeyboardInterrupt" in done.err
    assert "ValueError: of my own" in done.err
    log = (done.directory / "logs" / "script-dask.log").read_text()
    assert "never retrieved" in log
    assert len(log.splitlines()) < 200


def job_out(running: Running) -> str:
    """Give what the script has printed."""
    return "".join(path.read_text() for path in running.folder.glob("runs/*/logs/job.out"))


def test_a_run_whose_submit_was_killed_before_its_script_ended_is_partial(
    start: Callable[..., Running], script: Callable[[str], str], tmp_path: Path
) -> None:
    running = start(*LOCAL, script(LONG))
    running.wait_for_tasks(20)
    directory = running.directory
    early = subprocess.run(command("merge", str(directory)), capture_output=True, text=True)
    assert early.returncode == 0, early.stderr
    assert running.manifest()["state"] == "running"  # it goes on
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 75  # the workers' death timeout is 60 s
    while process_of_run(directory, []):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for _ in range(2):
        merged = subprocess.run(
            command("merge", "--strict", str(directory)), capture_output=True, text=True
        )
        assert merged.returncode == 80, merged.stderr
        assert "submit was killed before the job's script had ended" in merged.stderr
        assert running.manifest()["state"] == "partial"
    strict = subprocess.run(
        command("show", "--strict", str(directory)), capture_output=True, text=True
    )
    assert strict.returncode == 80, strict.stderr
    check_nothing_lost(directory, ledger(tmp_path))


def test_a_run_whose_submit_was_killed_after_its_script_ended_is_whole(
    start: Callable[..., Running], script: Callable[[str], str], tmp_path: Path
) -> None:
    running = start(*LOCAL, script(ledger_job("client.gather(futures)", 3000).replace("0.05", "0")))
    wait_for_state(running, "merging")
    running.process.kill()
    running.process.wait()
    merged = subprocess.run(
        command("merge", "--strict", str(running.directory)), capture_output=True, text=True
    )
    assert merged.returncode == 0, merged.stderr
    assert running.manifest()["state"] == "complete"
    check_nothing_lost(running.directory, ledger(tmp_path))


# ------------------------------------------------------------------------------ lost node jobs

#: Two tasks, and then nothing until no worker is left.
UNTIL_ALL_ARE_LOST = """
    import time
    from distributed import Client

    client = Client()
    client.gather(client.map(lambda i: time.sleep(0.2), range(4), pure=False))
    print("waiting", flush=True)
    while client.scheduler_info()["workers"]:
        time.sleep(0.2)
    time.sleep(2.5)
"""


@pytest.mark.needs("slurm")
def test_node_jobs_lost_at_once_are_all_told(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    # On two nodes something is left to do: their jobs leave the queue later than the other.
    lasting = "[ $(hostname) = node1 ] || { trap '' TERM; trap 'sleep 8' EXIT; }"
    running = start(
        "--on", "slurm", "--nodes", "3", "--workers-per-node", "1", "--memory", "8GB",
        "--interface", "lo", "--no-nsys", "--prologue", lasting, script(UNTIL_ALL_ARE_LOST),
        environment={**cluster.environment, "DASF_HPC_REPORT": "true"},
    )  # fmt: skip
    running.wait_until(lambda: "waiting" in job_out(running), 90, "script that waits")
    jobs = running.manifest()["batch_jobs"]
    cluster.command("scancel", *jobs)
    done = running.end(120)
    lost = done.manifest["lost"]
    assert sorted(job["job_id"] for job in lost) == sorted(jobs), done.manifest
    assert sorted(job["hostname"] for job in lost) == ["node1", "node2", "node3"]
    assert {job["why"] for job in lost} == {"cancelled"}
    told = " ".join(done.err.split())
    assert "3 of 3 node jobs" in told
    assert "on node2 at" in told
    for words in (("show",), ("analyze", "where")):
        shown = subprocess.run(
            command(*words, str(done.directory)),
            capture_output=True, text=True, env={**os.environ, "COLUMNS": "1000"},
        )  # fmt: skip
        assert "3 of 3 node jobs" in shown.stdout, shown.stdout
        assert "(cancelled), not replaced" in shown.stdout
    assert "3 of 3 node jobs" in (done.directory / "report.html").read_text()


@pytest.mark.needs("slurm")
def test_a_lost_node_job_is_told_with_what_came_in_its_place(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(
        "--on", "slurm", "--nodes", "2", "--workers-per-node", "1", "--memory", "8GB",
        "--interface", "lo", "--no-nsys", "--on-lost", "replace",
        script(ledger_job("client.gather(futures)", 300)), environment=cluster.environment,
    )  # fmt: skip
    running.wait_for_tasks(20)
    first = running.manifest()["batch_jobs"][0]
    cluster.command("scancel", first)
    done = running.end(120)
    (job,) = done.manifest["lost"]
    assert job["job_id"] == first
    assert job["replaced_by"] == max(done.manifest["batch_jobs"], key=int)
    assert f"replaced by {job['replaced_by']}" in " ".join(done.err.split())


@pytest.mark.needs("slurm")
def test_node_jobs_lost_before_their_workers_came_are_told(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str]
) -> None:
    running = start(
        "--on", "slurm", "--nodes", "2", "--workers-per-node", "1", "--memory", "8GB",
        "--interface", "lo", "--no-nsys", "--prologue", "sleep 100", script("pass"),
        environment=cluster.environment,
    )  # fmt: skip
    running.wait_until(lambda: bool(tmp_runs(running)), 60, "run's directory")
    wait_for_state(running, "waiting")
    running.wait_until(
        lambda: len(list(running.directory.glob("logs/slurm-*"))) == 2, 60, "node jobs that run"
    )
    time.sleep(5)  # that the batch scheduler does not know them yet is no loss
    cluster.command("scancel", *running.manifest()["batch_jobs"])
    done = running.end(120)
    assert done.code == 71, done.err
    assert len(done.manifest["lost"]) == 2, done.manifest
