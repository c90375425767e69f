"""Whatever happens to a run, what was recorded can be read and what is missing is named.

Every job here keeps a ledger; see `system.ledger`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from system.conftest import Running, Submit, command
from system.ledger import (
    check_nothing_lost,
    check_reports,
    ledger,
    ledger_job,
    process_of_run,
)
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace
from dasf_hpc.launch.policy import REPLACED_IN_VAIN


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give the testbed with all hosts idle; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    deadline = time.monotonic() + 60
    while slurm.queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert slurm.queue() == []


NODES = (
    "--on", "slurm", "--nodes", "2", "--workers-per-node", "1", "--memory", "8GB",
    "--interface", "lo", "--nsys",
)  # fmt: skip


# ------------------------------------------------------------------------- how a script may end


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("client.gather(futures)", 0),
        ("client.gather(futures); raise ValueError('no more')", 1),
        ("client.gather(futures); client.shutdown()", 0),
        ("client.gather(futures); client.close(); sys.exit(3)", 3),
        ("client.gather(futures); client.restart(); "
         "client.submit(work, 99, key='work-99').result()",
         0),
        ("client.gather(futures); os._exit(7)", 7),
        ("client.gather(futures); os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
    ids=["end", "raise", "shutdown", "exit", "restart", "_exit", "sigkill"],
)  # fmt: skip
def test_however_the_script_ends_everything_is_there(
    ending: str, code: int, cluster: SlurmTestbed, submit: Submit,
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    done = submit(*NODES, script(ledger_job(ending)), environment=cluster.environment)
    assert done.code == code, done.err
    assert len(ledger(tmp_path)) >= 60
    check_nothing_lost(done.directory, ledger(tmp_path))
    check_reports(done.directory, 2)
    assert done.manifest["state"] == "complete"
    assert done.manifest["stop"]["cancelled"] == []
    strict = subprocess.run(command("show", "--strict", str(done.directory)), capture_output=True)
    assert strict.returncode == 0, strict.stderr


# ------------------------------------------------------------------------------------- signals


@pytest.mark.needs("slurm", "nsys")
def test_ctrl_c_ends_gracefully(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES, script(ledger_job("client.gather(futures)", 5000)), environment=cluster.environment
    )
    running.wait_for_tasks(50)
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130, done.err
    check_nothing_lost(done.directory, ledger(tmp_path))
    check_reports(done.directory, 2)
    assert "Traceback" not in done.err.split("dasf-hpc:")[-1]


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP]],
    ids=["ctrl-c twice", "SIGTERM", "SIGHUP"],
)
def test_an_end_at_once_cancels_the_jobs_and_can_be_merged(
    signals: list[signal.Signals], cluster: SlurmTestbed, start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES, script(ledger_job("client.gather(futures)", 5000)), environment=cluster.environment
    )
    running.wait_for_tasks(50)
    for number in signals:
        running.process.send_signal(number)
        time.sleep(0.5)
    done = running.end(60)
    assert done.code == 130, done.err
    assert done.manifest["state"] in ("failed", "partial", "complete")
    deadline = time.monotonic() + 60
    while cluster.queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    merged = subprocess.run(command("merge", str(done.directory)), capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    check_nothing_lost(done.directory, ledger(tmp_path))


@pytest.mark.needs("slurm", "nsys")
def test_a_killed_submit_leaves_nothing_running_and_can_be_merged(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    job = script(ledger_job("client.gather(futures)", 5000))
    running = start(*NODES, job, environment=cluster.environment)
    running.wait_for_tasks(50)
    directory = running.directory
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 75  # the workers' death timeout is 60 s
    while cluster.queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert cluster.queue() == []
    while left := process_of_run(directory, []):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.2)
    assert [p for p in psutil.process_iter(["cmdline"]) if job in (p.info["cmdline"] or [])] == []
    merged = subprocess.run(command("merge", str(directory)), capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    check_nothing_lost(directory, ledger(tmp_path))
    check_reports(directory, 2)


@pytest.mark.needs("slurm")
def test_cancel_from_elsewhere_ends_a_run_gracefully(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES[:-1], "--no-nsys", script(ledger_job("client.gather(futures)", 5000)),
        environment=cluster.environment,
    )  # fmt: skip
    running.wait_for_tasks(20)
    listed = subprocess.run(
        command("runs", str(tmp_path / "runs"), "--json"), capture_output=True, check=True
    )
    assert [run["state"] for run in json.loads(listed.stdout)] == ["running"]
    said = subprocess.run(
        command("cancel", str(running.directory)), capture_output=True, text=True, check=True
    )
    assert "has ended" in said.stdout
    done = running.end()
    assert done.code == 130
    check_nothing_lost(done.directory, ledger(tmp_path))
    logs = subprocess.run(
        command("logs", str(done.directory), "node1"), capture_output=True, text=True
    )
    assert "Registered to" in logs.stdout, logs.stderr


# --------------------------------------------------------------------------- what gets killed


@pytest.mark.needs("slurm", "nsys")
def test_a_killed_worker_loses_no_event_and_its_task_is_tried_again(
    cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    ending = """
def victim():
    if not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
client.gather(futures)
print(client.submit(victim, key="victim").result())
"""
    done = submit(*NODES, script(ledger_job(ending)), environment=cluster.environment)
    assert done.code in (0, 80), done.err
    check_nothing_lost(done.directory, ledger(tmp_path))
    with open_trace(done.directory) as trace:
        victim = trace.tasks[trace.tasks["key"] == "victim"]
        assert list(victim["state"]) == ["lost", "memory"]
        assert list(victim["attempt"]) == [1, 2]
        assert victim["process"].nunique() == 2
        workers = trace.processes[trace.processes["role"] == "worker"]
        assert sorted(workers["ended"]) == ["closed", "closed", "killed"]


def test_a_worker_killed_for_its_memory_loses_no_event(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    ending = """
def hog():
    kept = []
    while True:
        kept.append(os.urandom(1 << 20) * 20)
        time.sleep(0.02)
client.gather(futures)
print(type(client.submit(hog, key="hog").exception()).__name__)
client.gather([client.submit(work, i, key=f"work-{i}") for i in range(1000, 1030)])
"""
    done = submit(
        "--on", "local", "--no-nsys", "--memory", "500MB", script(ledger_job(ending)),
        environment={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
    )  # fmt: skip
    assert done.code in (0, 80), done.err
    assert "KilledWorker" in done.out
    assert len({key for key, _ in ledger(tmp_path)}) == 90  # results that died were made again
    check_nothing_lost(done.directory, ledger(tmp_path))
    with open_trace(done.directory) as trace:
        hogs = trace.tasks[trace.tasks["key"] == "hog"]
        assert list(hogs["state"]) == ["lost", "lost"]
        assert list(hogs["attempt"]) == [1, 2]
        assert hogs["process"].nunique() == 2
        workers = trace.processes[trace.processes["role"] == "worker"]
        assert sorted(workers["ended"]) == ["closed", "killed", "killed"]


@pytest.mark.needs("slurm", "nsys")
def test_a_killed_nsys_costs_its_own_report_only(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES, script(ledger_job("client.gather(futures)", 400)), environment=cluster.environment
    )
    running.wait_for_tasks(50)
    (claim,) = (running.directory / "nsight").glob("node1*.claim")
    (profile,) = [
        p
        for p in process_of_run(running.directory, ["profile", str(claim.with_suffix(""))])
        if p.name() == "nsys"
    ]
    # nsys is two processes: the one that was called, and its agent, which records.
    agents = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(word.endswith(f"-{profile.pid}") for word in p.info["cmdline"] or [])
        and "--start-agent" in p.info["cmdline"]
    ]
    assert agents
    for process in (profile, *agents):
        with contextlib.suppress(psutil.NoSuchProcess):  # one takes the other with it
            process.kill()
    done = running.end(200)
    assert done.code == 80, done.err
    assert done.manifest["state"] == "partial"
    assert len({key for key, _ in ledger(tmp_path)}) == 400
    check_nothing_lost(done.directory, ledger(tmp_path))
    check_reports(done.directory, 1)
    merged = done.manifest["merged"]
    assert (merged["reports_expected"], merged["reports_found"]) == (2, 1)
    (missing,) = [r for r in merged["reports"] if r["status"] != "joined"]
    assert "node1" in missing["file"]
    assert missing["sentence"]


@pytest.mark.needs("slurm")
def test_a_killed_sampler_is_replaced(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES[:-1], "--no-nsys", script(ledger_job("client.gather(futures)", 200)),
        environment=cluster.environment,
    )  # fmt: skip
    running.wait_for_tasks(20)
    samplers = process_of_run(running.directory, ["dasf_hpc.profile.sampler"])
    assert len(samplers) == 2
    samplers[0].kill()
    done = running.end()
    assert done.code in (0, 80), done.err
    with open_trace(done.directory) as trace:
        rows = trace.processes[trace.processes["role"] == "sampler"]
        assert len(rows) == 3
        assert sorted(rows["ended"].astype(str).value_counts().to_dict().values()) == [1, 2]


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize("replace", [False, True], ids=["continue", "replace"])
def test_a_node_job_cancelled_from_outside(
    replace: bool, cluster: SlurmTestbed, start: Callable[..., Running],
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    wish = ["--on-lost", "replace"] if replace else []
    running = start(
        *NODES, *wish, script(ledger_job("client.gather(futures)", 500)),
        environment=cluster.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    cluster.command("scancel", running.manifest()["batch_jobs"][0])
    done = running.end(200)
    assert done.code in (0, 80), done.err
    assert len({key for key, _ in ledger(tmp_path)}) == 500
    check_nothing_lost(done.directory, ledger(tmp_path))
    assert len(done.manifest["lost"]) == 1
    assert len(done.manifest["batch_jobs"]) == (3 if replace else 2)
    check_reports(done.directory, 3 if replace else 2)


@pytest.mark.needs("slurm")
def test_a_node_job_is_not_replaced_for_ever(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    broken = tmp_path / "broken"
    prologue = f"if [ -e {broken} ]; then echo this node is broken; exit 1; fi"
    running = start(
        *NODES[:-1], "--no-nsys", "--on-lost", "replace", "--prologue", prologue,
        script(ledger_job("client.gather(futures)", 500)), environment=cluster.environment,
    )  # fmt: skip
    running.wait_for_tasks(50)
    broken.touch()
    jobs = running.manifest()["batch_jobs"]
    # the last one: Dask would give those that replace it its name, under which a worker was there
    (last,) = [job for job in jobs if "-1.sh" in cluster.command("scontrol", "show", "job", job)]
    cluster.command("scancel", last)
    done = running.end(200)
    assert done.code in (0, 80), done.err
    assert len({key for key, _ in ledger(tmp_path)}) == 500
    names = [job["name"].rpartition("-")[2] for job in done.manifest["lost"]]
    assert names == ["1", *map(str, range(2, 2 + REPLACED_IN_VAIN))]
    replacements = len(done.manifest["batch_jobs"]) - 2
    assert replacements == REPLACED_IN_VAIN
    assert any("this node is broken" in note for note in done.manifest["notes"])


@pytest.mark.needs("slurm", "nsys")
def test_a_node_that_goes_down(
    cluster: SlurmTestbed, start: Callable[..., Running], script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    running = start(
        *NODES, script(ledger_job("client.gather(futures)", 300)), environment=cluster.environment
    )
    try:
        running.wait_for_tasks(50)
        cluster.kill_node("node1")
        done = running.end(300)
    finally:
        cluster.start_node("node1")
    assert done.code == 80, done.err
    assert len({key for key, _ in ledger(tmp_path)}) == 300
    # Worker and recorder died in one moment: tasks of 0.05 s, and a turn of the recorder late.
    check_nothing_lost(done.directory, ledger(tmp_path), at_most=6)
    check_reports(done.directory, 1)
    assert done.manifest["state"] == "partial"


# ------------------------------------------------------------------------------------ walltime


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize("wish", ["stop", "replace"])
def test_walltime_ends_workers_before_the_batch_scheduler_does(
    wish: str, cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    # 45 s of walltime, 20 of them margin; the jobs would take two minutes and 50 s on two workers.
    count = 4800 if wish == "stop" else 2000
    # Half a host's memory: a replacement has room beside what it replaces.
    done = submit(
        *NODES, "--memory", "4GB", "--walltime", "00:45", "--walltime-margin", "20",
        "--on-walltime", wish,
        script(ledger_job("client.gather(futures)", count)), environment=cluster.environment,
    )  # fmt: skip
    check_nothing_lost(done.directory, ledger(tmp_path))
    assert all(lost["walltime"] for lost in done.manifest["lost"])
    if wish == "stop":
        assert done.code == 72, done.err
        assert "00:45" in done.err
        check_reports(done.directory, 2)
    else:
        assert done.code in (0, 80), done.err
        assert len({key for key, _ in ledger(tmp_path)}) == count
        assert len(done.manifest["batch_jobs"]) >= 4
        # A replacement that was still waiting when the job ended has no report to give.
        assert done.manifest["merged"]["reports_expected"] >= 4
        check_reports(done.directory, done.manifest["merged"]["reports_expected"])


# ------------------------------------------------------------------------- the runs directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root to be mounted: run the tests as root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_neither_the_job_nor_a_record(
    small_disk: Path, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    ending = f"""
client.gather(futures[:30])
filler = open({str(small_disk / "filler")!r}, "wb", buffering=0)
try:
    while True:
        filler.write(bytes(65536))
except OSError:
    pass
def quick(i):
    return i
assert sum(client.gather(client.map(quick, range(8000), pure=False))) == sum(range(8000))
client.gather(futures)
filler.close()
os.unlink(filler.name)
time.sleep(2)
client.gather([client.submit(work, i, key=f"work-{{i}}") for i in range(1000, 1030)])
"""
    done = submit(
        "--on", "local", "--no-nsys", script(ledger_job(ending)), runs=small_disk / "runs"
    )
    # What the disk did not take was kept in memory until there was room.
    assert done.code == 0, done.err
    with open_trace(done.directory) as trace:
        assert trace.gaps["count"].sum() == 0, trace.gaps.to_string()
        recorded = trace.tasks["key"].astype(str)
    assert {f"work-{i}" for i in [*range(30), *range(1000, 1030)]} <= set(recorded)
    assert recorded.str.startswith("quick-").sum() == 8000
    assert done.manifest["state"] == "complete"


def why_nothing_can_be_made_immutable(folder: Path) -> str | None:
    """Say why a folder cannot be made read-only even for root, None if it can."""
    probe = folder / "probe"
    probe.mkdir()
    try:
        done = subprocess.run(["chattr", "+i", str(probe)], capture_output=True, text=True)
    except OSError as error:
        return f"chattr does not run ({error}): apt-get install e2fsprogs"
    subprocess.run(["chattr", "-i", str(probe)], capture_output=True)
    return done.stderr.strip() or None if done.returncode else None


@pytest.mark.parametrize("fault", ["read-only", "gone"])
def test_a_runs_directory_that_fails_does_not_stop_the_job(
    fault: str, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    why = why_nothing_can_be_made_immutable(tmp_path) if fault == "read-only" else None
    if why:
        pytest.skip(f"no folder can be made read-only here: {why}; run as root on ext4")
    runs = tmp_path / "runs"
    harm = {
        "read-only": f"subprocess.run(['chattr', '-R', '+i', {str(runs)!r}], check=True)",
        "gone": f"shutil.rmtree({str(runs)!r})",
    }[fault]
    ending = f"""
import shutil, subprocess
client.gather(futures)
time.sleep(1)
{harm}
assert sum(client.gather(client.map(abs, range(8000), pure=False))) == sum(range(8000))
print("the job went on")
"""
    try:
        done = submit("--on", "local", "--no-nsys", script(ledger_job(ending)), runs=runs)
    finally:
        subprocess.run(["chattr", "-R", "-i", str(runs)], capture_output=True)
    assert "the job went on" in done.out
    assert "Traceback" not in done.err
    assert done.err.startswith("dasf-hpc: ")
    assert done.code != 0
    assert len(ledger(tmp_path)) == 60
    if fault == "read-only":
        merged = subprocess.run(
            command("merge", "--json", str(done.directory)), capture_output=True, text=True
        )
        assert merged.returncode == 0, merged.stderr
        check_nothing_lost(done.directory, ledger(tmp_path))
        # Nobody could write how much is missing; that a journal has no end tells that it may be.
        with open_trace(done.directory) as trace:
            assert "journal without an end" in set(trace.gaps["kind"]), trace.gaps.to_string()


# -------------------------------------------------------------------------------- never starts


@pytest.mark.needs("slurm")
def test_a_job_that_waits_for_ever_is_given_up_with_the_reason(
    cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    cluster.command("scontrol", "update", "nodename=node[1-3]", "state=drain", "reason=test")
    try:
        done = submit(
            *NODES, "--start-timeout", "12", script("pass"), environment=cluster.environment
        )
    finally:
        cluster.command("scontrol", "update", "nodename=node[1-3]", "state=resume")
    assert done.code == 71, done.err
    assert "--start-timeout" in done.err
    assert "drained" in done.err or "node" in done.err
    assert done.err.count("\n") == 1
