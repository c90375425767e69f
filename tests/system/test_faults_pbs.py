"""The faults whose outcome depends on the batch scheduler, on PBS: who gets which signal, and when.

The others are in `test_faults`, on SLURM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system.conftest import Running, Submit, command
from system.ledger import check_nothing_lost, check_reports, ledger, ledger_job, process_of_run
from testbed.openpbs import OpenPbsTestbed

from dasf_hpc.manifest import DEAD_AFTER_S, HEARTBEAT, STOP_REQUEST

PBS = (
    "--on", "pbs", "--nodes", "2", "--workers-per-node", "1", "--threads-per-worker", "1",
    "--memory", "4GB", "--interface", "lo",
)  # fmt: skip


@pytest.fixture
def server(openpbs: OpenPbsTestbed) -> Iterator[OpenPbsTestbed]:
    """Give the PBS server; nothing may be left in its queue."""
    assert openpbs.queue() == {}
    yield openpbs
    openpbs.wait_until_empty()


@pytest.mark.needs("nsys")
def test_ctrl_c_ends_gracefully(
    server: OpenPbsTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *PBS, "--nsys", script(ledger_job("client.gather(futures)", 5000)),
        environment=server.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130, done.err
    assert done.manifest["stop"]["cancelled"] == []
    check_nothing_lost(done.directory, ledger(tmp_path))
    check_reports(done.directory, 2)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]], ids=["ctrl-c twice", "SIGTERM"]
)
def test_an_end_at_once_deletes_the_jobs_and_can_be_merged(
    signals: list[signal.Signals], server: OpenPbsTestbed, start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *PBS, "--no-nsys", script(ledger_job("client.gather(futures)", 5000)),
        environment=server.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    for number in signals:
        running.process.send_signal(number)
        time.sleep(0.5)
    done = running.end(60)
    assert done.code == 130, done.err
    server.wait_until_empty()
    merged = subprocess.run(command("merge", str(done.directory)), capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    check_nothing_lost(done.directory, ledger(tmp_path))


@pytest.mark.parametrize("cancel", [False, True], ids=["left alone", "cancelled"])
def test_a_killed_submit_leaves_nothing_running_and_can_be_merged(
    cancel: bool, server: OpenPbsTestbed, start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *PBS, "--no-nsys", script(ledger_job("client.gather(futures)", 5000)),
        environment=server.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    directory = running.directory
    running.process.kill()
    running.process.wait()
    # As if it had been dead for long: a host that only sees the directory believes it then.
    long_ago = time.time() - 2 * DEAD_AFTER_S
    os.utime(directory / HEARTBEAT, (long_ago, long_ago))
    if cancel:
        said = subprocess.run(
            command("cancel", str(directory)), capture_output=True, text=True,
            env={**os.environ, **server.environment},
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert "2 batch job(s) were cancelled" in said.stdout
        assert not (directory / STOP_REQUEST).exists()
        server.wait_until_empty(20)  # far below the death timeout
    else:
        server.wait_until_empty(90)  # the workers' death timeout is 60 s
    deadline = time.monotonic() + 15  # the recorder ends after those whose records it files
    while left := process_of_run(directory, []):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.2)
    assert (directory / "tls" / "key.pem").exists()
    merged = subprocess.run(command("merge", str(directory)), capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    check_nothing_lost(directory, ledger(tmp_path))
    assert not (directory / "tls").exists()


@pytest.mark.needs("nsys")
@pytest.mark.parametrize("replace", [False, True], ids=["continue", "replace"])
def test_a_node_job_deleted_from_outside(
    replace: bool, server: OpenPbsTestbed, start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    wish = ["--on-lost", "replace"] if replace else []
    running = start(
        *PBS, "--nsys", *wish, script(ledger_job("client.gather(futures)", 400)),
        environment=server.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    deleted = running.manifest()["batch_jobs"][0]
    server.run("qdel", deleted)
    done = running.end(200)
    assert done.code in (0, 80), done.err
    assert len({key for key, _ in ledger(tmp_path)}) == 400
    check_nothing_lost(done.directory, ledger(tmp_path))
    assert len(done.manifest["lost"]) == 1
    jobs = 3 if replace else 2
    assert len(done.manifest["batch_jobs"]) == jobs
    # A deleted job has kill_delay, 10 s, for its report: on a busy machine that may be too short,
    # and then just this one is missing, and the run is not whole.
    check_reports(done.directory, jobs if done.code == 0 else jobs - 1)
    if done.code == 80:
        (missing,) = [r for r in done.manifest["merged"]["reports"] if r["status"] != "joined"]
        assert deleted.split(".")[0] in missing["file"]


@pytest.mark.needs("nsys")
def test_walltime_ends_workers_before_the_batch_scheduler_does(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    done = submit(
        *PBS, "--nsys", "--walltime", "00:40", "--walltime-margin", "20",
        script(ledger_job("client.gather(futures)", 4800)), environment=server.environment,
    )  # fmt: skip
    assert done.code == 72, done.err
    assert "00:40" in done.err
    check_nothing_lost(done.directory, ledger(tmp_path))
    check_reports(done.directory, 2)
    outputs = [path.read_text() for path in (done.directory / "logs").glob("*.[oe]*")]
    assert not any("job killed: walltime" in text for text in outputs)


def test_a_refused_replacement_ends_no_run_whose_other_node_works(
    server: OpenPbsTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    site, refuses = tmp_path / "site", tmp_path / "refuses"
    site.mkdir()
    real = Path(server.environment["PATH"].split(os.pathsep)[0]) / "qsub"
    (site / "qsub").write_text(
        f'#!/bin/sh\n[ -e {refuses} ] || exec {real} "$@"\n'
        "echo 'qsub: would exceed queue generic per-user limit' >&2; exit 188\n"
    )
    (site / "qsub").chmod(0o755)
    path = f"{site}{os.pathsep}{server.environment['PATH']}"
    running = start(
        *PBS, "--no-nsys", "--on-lost", "replace",
        script(ledger_job("client.gather(futures)", 400)),
        environment={**server.environment, "PATH": path},
    )  # fmt: skip
    running.wait_for_tasks(50)
    refuses.touch()
    assert server.run("qdel", "-W", "force", running.manifest()["batch_jobs"][0]).returncode == 0
    done = running.end()
    assert done.code in (0, 80), done.err
    assert len({key for key, _ in ledger(tmp_path)}) == 400
    assert len(done.manifest["lost"]) == 1
    assert any("asked for again later: PBS refused" in note for note in done.manifest["notes"])
    assert server.queue() == {}


def test_a_job_lost_after_one_at_its_walltime_is_lost(
    server: OpenPbsTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    # The first job to start takes its walltime for nearly over.
    first = (
        f"if mkdir {tmp_path}/first 2>/dev/null; then "
        "export DASF_HPC_STARTED=$(($(date +%s) - 1770)); fi"
    )
    running = start(
        *PBS, "--no-nsys", "--on-lost", "replace", "--walltime-margin", "20", "--prologue", first,
        script(ledger_job("client.gather(futures)", 900)), environment=server.environment,
    )  # fmt: skip
    running.wait_for_tasks(1)
    running.wait_until(lambda: len(running.manifest().get("lost", [])) == 1, 60, "end of a job")
    (left,) = server.queue()
    assert server.run("qdel", "-W", "force", left).returncode == 0
    done = running.end()
    assert done.code in (0, 80), done.err
    assert [lost["walltime"] for lost in done.manifest["lost"]] == [True, False]
    assert len(done.manifest["batch_jobs"]) == 3
    assert len({key for key, _ in ledger(tmp_path)}) == 900
