"""Batch templates on PBS as OpenPBS documents it: the head, one allocation for all, a sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from readme import readme_command
from system.conftest import NO_REPORT, command
from testbed.openpbs import OpenPbsTestbed

from dasf_hpc import open_trace
from dasf_hpc.launch.allocation import BY_ITSELF_S

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("dasf-hpc")

JOB = """
    import os, sys, time
    from distributed import Client

    def where(number, seconds):
        time.sleep(seconds)
        open(f"done-{number}", "w").close()
        return os.environ.get("PBS_NODENUM")

    seconds = float(sys.argv[1]) if sys.argv[1:] else 0.02
    with Client() as client:
        print("ran on", *sorted(set(client.gather(client.map(where, range(40), seconds=seconds)))))
"""


@pytest.fixture
def server(openpbs: OpenPbsTestbed) -> Iterator[OpenPbsTestbed]:
    """Give the PBS server with its defaults; nothing may be left in its queue."""
    kept = dict(openpbs.settings)
    assert openpbs.queue() == {}
    yield openpbs
    openpbs.configure(**kept)
    openpbs.wait_until_empty()


def submit(server: OpenPbsTestbed, folder: Path, words: str, more: Mapping[str, str]) -> str:
    """Run a line that submits, as a user does: dasf-hpc on PATH, the templates at hand."""
    if not (folder / "pbs").exists():
        (folder / "pbs").symlink_to(ROOT / "pbs")
    path = f"{PROGRAM.parent}{os.pathsep}{server.environment['PATH']}"
    settings = {**NO_REPORT, "DASF_HPC_INTERFACE": "lo", "DASF_HPC_MEMORY": "1GB", **more}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", words],
        cwd=folder, env={**os.environ, **server.environment, "PATH": path, **settings},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def manifest(directory: Path) -> dict[str, Any]:
    """Read run.json."""
    content: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return content


def said(folder: Path) -> str:
    """Give what batch jobs submitted from here said."""
    return "\n".join(p.read_text(errors="replace") for p in folder.glob("dasf-*.[oe]*"))


def test_the_head_and_a_sweep_as_batch_jobs(
    server: OpenPbsTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    (tmp_path / "sweep.txt").write_text("0.001\n'0.002'\n")
    more = {"DASF_HPC_NSYS": "false"}
    submit(server, tmp_path, readme_command("batch", "pbs/dasf-hpc.pbs"), more)
    array = submit(server, tmp_path, readme_command("batch", "pbs/array.pbs"), more)
    assert array.endswith("[].pbsserver")
    server.wait_until_empty(120)
    runs = [manifest(path) for path in (tmp_path / "runs").iterdir()]
    assert [run["state"] for run in runs] == ["complete"] * 3, said(tmp_path)
    assert sorted(run["arguments"] for run in runs) == [[], ["0.001"], ["0.002"]]
    (head,) = (run for run in runs if not run["arguments"])
    assert len(head["stop"]["by_themselves"]) == 2
    shown = server.run("qstat", "-x", "-t", array).stdout
    assert [line.split()[0] for line in shown.splitlines()[2:]] == [
        array, *(array.replace("[]", f"[{index}]") for index in (1, 2))
    ]  # fmt: skip


@pytest.mark.needs("nsys")
def test_one_allocation_has_workers_on_every_node(
    server: OpenPbsTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    words = readme_command("batch", "pbs/allocation.pbs")
    submit(server, tmp_path, words, {"DASF_HPC_NSYS": "true"})
    server.wait_until_empty(120)
    (directory,) = (tmp_path / "runs").iterdir()
    content = manifest(directory)
    assert content["state"] == "complete", said(tmp_path)
    assert content["settings"]["walltime"] == "01:00:00"
    assert len(content["stop"]["by_themselves"]) == 2
    assert "ran on 0 1" in (directory / "logs" / "job.out").read_text()
    # What the nodes say is in the run's logs, though PBS sends it to the job's output.
    assert all(path.stat().st_size for path in (directory / "logs").glob("*-?.log"))
    with open_trace(directory) as trace:
        assert len(trace.tasks) == 40
        assert list(trace.reports["status"]) == ["joined"] * 2
        assert trace.reports["linked"].sum() == 40


@pytest.mark.needs("nsys")
@pytest.mark.parametrize(
    "ending", ["walltime", "qdel", "qdel that descendants hear", "qdel that the head alone hears"]
)
def test_an_allocation_that_ends_early_keeps_what_was_recorded(
    server: OpenPbsTestbed, script: Callable[[str], str], tmp_path: Path, ending: str
) -> None:
    script(JOB)
    server.configure(
        tasks_hear_qdel=not ending.endswith("alone hears"),
        descendants_hear_qdel=ending.endswith("descendants hear"),
    )
    job = submit(
        server, tmp_path, "qsub -V -l walltime=00:00:40 pbs/allocation.pbs",
        {"DASF_HPC_NSYS": "true", "DASF_HPC_WALLTIME_MARGIN": "15", "RUN": "job.py 2"},
    )  # fmt: skip
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("done-*"))) < 4:
        assert time.monotonic() < deadline, said(tmp_path)
        time.sleep(0.1)
    (directory,) = runs.iterdir()
    if ending != "walltime":
        assert server.run("qdel", job).returncode == 0
    asked = time.monotonic()
    server.wait_until_empty()
    took = time.monotonic() - asked
    if ending == "walltime":
        assert manifest(directory)["exit_code"] == 72, said(tmp_path)
        assert "job killed: walltime" not in said(tmp_path)
    else:
        merged = subprocess.run(command("merge", str(directory)), capture_output=True, text=True)
        assert merged.returncode == 0, merged.stderr
    with open_trace(directory) as trace:
        assert (trace.tasks["state"] == "memory").sum() > 0
        found = set(trace.reports["status"])
        if ending.startswith("qdel") and found != {"joined"}:
            # Told by the server and by pbsdsh, nsys gives its report up. Else workers and nsys have
            # 7 s to end by themselves, which a busy machine exceeds; only then is one missing.
            assert ending.endswith("descendants hear") or took > BY_ITSELF_S, said(tmp_path)
            assert found <= {"joined", "missing"}
            assert all(trace.reports["sentence"][trace.reports["status"] == "missing"])
        else:
            assert found == {"joined"}, trace.reports.to_string()
        assert len(trace.reports) == 2


@pytest.mark.parametrize("kind", ["head", "array", "--detach"])
def test_a_head_ends_its_run_before_its_own_time_limit(
    server: OpenPbsTestbed, script: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    script(JOB)
    (tmp_path / "sweep.txt").write_text("2\n3\n")
    submit(
        server, tmp_path,
        {
            "head": "qsub -V -l walltime=00:00:40 pbs/dasf-hpc.pbs",
            "array": "qsub -V -l walltime=00:00:40 -J 1-2 pbs/array.pbs",
            "--detach": "dasf-hpc submit --detach --on pbs --head-walltime 00:00:40 job.py 2",
        }[kind],
        {
            "DASF_HPC_NSYS": "false", "PARAMETERS": "sweep.txt",
            "RUN": "job.py" if kind == "array" else "job.py 2",
        },
    )  # fmt: skip
    server.wait_until_empty(90)
    directories = list((tmp_path / "runs").iterdir())
    assert len(directories) == (2 if kind == "array" else 1)
    for directory in directories:
        content = manifest(directory)
        assert content["exit_code"] == 72, said(tmp_path)
        assert content["error"].startswith("The head's time limit was near")
        assert content["state"] == "partial"  # the script was cut off, and that is all
        assert content["merged"]["workers_found"] == 1
        assert content["stop"]["cancelled"] == []
        words = said(directory / "logs") if kind == "--detach" else said(tmp_path)
        log = (directory / "logs" / "head.log").read_text() if kind == "--detach" else words
        assert "The head's time limit was near" in log
        assert "job killed: walltime" not in words
        with open_trace(directory) as trace:
            assert (trace.tasks["state"] == "memory").sum() > 0


def test_what_a_head_says_is_seen_while_it_runs(
    server: OpenPbsTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(
        """
        import os, shutil, time
        from distributed import Client

        print("found", shutil.which("dasf-hpc"))
        with Client() as client:
            print("half way with", client.submit(sum, [1, 2]).result(), flush=True)
        while not os.path.exists("go"):
            time.sleep(0.05)
        """
    )
    server.configure(stage_out_fails=True, stage_out_stall_s=5.0, queued_s=2.0)
    more = {"DASF_HPC_NSYS": "false", "RUN": "job.py"}
    directory = submit(server, tmp_path, "dasf-hpc submit --detach --on pbs job.py", more)
    follower = subprocess.Popen(
        command("logs", directory, "head", "--follow"), stdout=subprocess.PIPE, text=True,
        env={**os.environ, **server.environment},
    )  # fmt: skip
    template = submit(server, tmp_path, "qsub -V pbs/dasf-hpc.pbs", more)
    beside = tmp_path / f"dasf-head.o{template.partition('.')[0]}"
    deadline = time.monotonic() + 60
    log = Path(directory) / "logs" / "head.log"
    while not all(p.exists() and "half way with 3" in p.read_text() for p in (log, beside)):
        assert time.monotonic() < deadline, said(tmp_path)
        time.sleep(0.1)
    (tmp_path / "go").touch()
    heard, _ = follower.communicate(timeout=60)
    assert "half way with 3" in heard
    # The submitter's PATH is the script's, whatever the login profile made of it.
    assert f"found {PROGRAM}" in heard
    assert "Tasks" in heard
    server.wait_until_empty()
    # Nothing was left that the batch system would have copied, and failed at.
    lost = {path.name.split(".")[0] for path in (server.directory / "undelivered").glob("*")}
    assert lost.isdisjoint({template.split(".")[0], manifest(Path(directory))["head_job"]})


def test_an_array_needs_more_than_one_index(server: OpenPbsTestbed, tmp_path: Path) -> None:
    (tmp_path / "pbs").symlink_to(ROOT / "pbs")
    refused = server.run("qsub", "-J", "1-1", "pbs/array.pbs", cwd=tmp_path)
    assert refused.returncode == 2
    assert "illegal -J value" in refused.stderr


def test_a_sweep_is_deleted_as_one(server: OpenPbsTestbed, tmp_path: Path) -> None:
    (tmp_path / "pbs").symlink_to(ROOT / "pbs")
    array = server.run("qsub", "-h", "-J", "1-3", "pbs/array.pbs", cwd=tmp_path).stdout.strip()
    assert server.queue() == {array: "H"}
    assert server.run("qdel", array).returncode == 0
    server.wait_until_empty()
