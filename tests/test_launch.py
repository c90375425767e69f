"""Launch: what is submitted, what a node runs, and what the batch schedulers' words are made into.

Scripts go through the real bash, node steps through the real nsys, questions and refusals through
the real commands of the schedulers or of the testbed that behaves like them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler
from distributed.comm import CommClosedError
from distributed.security import Security
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testbed.openpbs import OpenPbsTestbed
from testbed.slurm import SlurmTestbed

from dasf_hpc.errors import BatchError, JobFileError, LateNodeJob, WorkersError
from dasf_hpc.launch import node
from dasf_hpc.launch.batch import batch_launcher
from dasf_hpc.launch.connection import ask, connect
from dasf_hpc.launch.credentials import (
    client_environment,
    delete_credentials,
    make_credentials,
)
from dasf_hpc.launch.job import find_job
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.local import LocalLauncher
from dasf_hpc.launch.quoting import shell_path
from dasf_hpc.launch.shape import RunPlace
from dasf_hpc.launch.worker_command import choose_nsys, file_stem
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.settings import load_settings
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.lsf import LSF
from dasf_hpc.systems.pbs import PBS
from dasf_hpc.systems.slurm import REASONS, SLURM
from dasf_hpc.systems.states import JobState, JobStatus

SlurmLauncher, PbsLauncher, LsfLauncher = map(batch_launcher, (SLURM, PBS, LSF))
LAUNCHERS: list[type[Launcher]] = [SlurmLauncher, PbsLauncher, LsfLauncher, LocalLauncher]
PREFIXES: dict[type[Launcher], str] = {
    SlurmLauncher: "#SBATCH",
    PbsLauncher: "#PBS",
    LsfLauncher: "#BSUB",
}

STAND_IN = """\
#!{python} -SE
import json, os, sys
print(json.dumps({{"words": sys.argv, "folder": os.getcwd(), "umask": os.umask(0)}}))
"""
"""A program that says how it was called; it takes the place of the nodes' Python."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out."""
    for name in list(os.environ):
        if name.startswith("DASF_HPC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=LAUNCHERS, ids=lambda launcher: str(launcher.name))
def launcher_class(request: pytest.FixtureRequest) -> type[Launcher]:
    """Give each kind of launcher in turn."""
    kind: type[Launcher] = request.param
    return kind


@pytest.fixture
def pbs(openpbs: OpenPbsTestbed, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPbsTestbed]:
    """Give the PBS server, and have this process use it; nothing is left in its queue."""
    for name, value in openpbs.environment.items():
        monkeypatch.setenv(name, value)
    kept = dict(openpbs.settings)
    yield openpbs
    openpbs.configure(**kept)
    for job in openpbs.queue():
        openpbs.run("qdel", "-W", "force", job)
    openpbs.wait_until_empty()


def make(kind: type[Launcher], place: RunPlace | None = None, **chosen: Any) -> Launcher:
    """Make a launcher that is not started."""
    here = place or RunPlace(Path("/shared/runs/RUN"), "RUN", Path("/shared"))
    return kind(load_settings({"memory": "4GB", **chosen}), here, None)


def directives(launcher: Launcher) -> list[str]:
    """List the directives of a launcher's script, without their prefix, in their order."""
    prefix = PREFIXES[type(launcher)]
    lines = launcher.job_script().splitlines()
    # What stands below the first command is no directive to either scheduler.
    commands = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith(prefix) for line in lines[commands:])
    found = [line for line in lines[:commands] if line.startswith(prefix)]
    return [line.removeprefix(prefix).strip() for line in found]


# ------------------------------------------------------------------------------------ the script


def test_a_slurm_script_asks_for_what_was_set() -> None:
    launcher = make(
        SlurmLauncher, workers_per_node=2, threads_per_worker=3, partition="gpu", account="abc",
        walltime="1-12:00:00", exclusive=True, gpus_per_node=2, directive=["--qos=debug", "-x n7"],
    )  # fmt: skip
    assert directives(launcher) == [
        "-J dasf-RUN-0",
        "-p gpu",
        "-A abc",
        "-n 1",
        "--cpus-per-task=6",
        "--mem=4G",
        "-t 1-12:00:00",
        "--exclusive",
        "--gres=gpu:2",
        "--no-requeue",
        "--qos=debug",
        "-x n7",
    ]


def test_a_pbs_script_asks_for_what_was_set() -> None:
    launcher = make(
        PbsLauncher, workers_per_node=2, threads_per_worker=3, partition="gpu", account="abc",
        walltime="1-12:00:01", exclusive=True, gpus_per_node=2, directive=["-W umask=077"],
    )  # fmt: skip
    assert directives(launcher) == [
        "-N dasf-RUN-0",
        "-q gpu",
        "-A abc",
        "-l select=1:ncpus=6:mem=3815MB:ngpus=2",
        "-l walltime=36:00:01",
        "-j oe",
        "-o /dev/null",
        "-l place=excl",
        "-r n",
        "-W umask=077",
    ]


@pytest.mark.parametrize("kind", [SlurmLauncher, PbsLauncher])
def test_what_was_not_set_is_left_to_the_site(kind: type[Launcher]) -> None:
    words = " ".join(directives(make(kind)))
    for unwanted in ("-p ", "-q ", "-A ", "exclusive", "excl", "gres", "ngpus"):
        assert unwanted not in words
    assert "00:30:00" in words


def test_an_ordinary_script_has_no_directive_on_this_machine() -> None:
    script = make(LocalLauncher, partition="gpu", directive=["--qos=debug"]).job_script()
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "qos" not in script
    assert "--host 127.0.0.1" in script


@pytest.mark.parametrize(
    ("walltime", "hours"),
    [("30:00", "00:30:00"), ("90:00", "01:30:00"), ("100:00:00", "100:00:00"),
     ("7-00:00:00", "168:00:00")],
)  # fmt: skip
def test_pbs_gets_days_and_minutes_as_hours(walltime: str, hours: str) -> None:
    assert f"-l walltime={hours}" in directives(make(PbsLauncher, walltime=walltime))


def test_each_line_of_the_prologue_runs_before_the_workers_in_its_order(
    launcher_class: type[Launcher],
) -> None:
    lines = make(launcher_class, prologue=["module load a", "export B=1"]).job_script().split("\n")
    first = lines.index("module load a")
    assert lines[first + 1] == "export B=1"
    assert "dasf_hpc.launch.node" in lines[first + 2]
    assert lines.index("umask 077") < first


def test_gpus_are_given_to_workers_of_dask_cuda(launcher_class: type[Launcher]) -> None:
    script = make(launcher_class, gpus_per_node=2).job_script()
    assert " -m dask_cuda.cli " in script
    assert "distributed.cli.dask_worker" not in script
    assert "--nworkers" not in script
    script = make(launcher_class, workers_per_node=2).job_script()
    assert " -m distributed.cli.dask_worker " in script
    assert "--nworkers 2" in script


def test_credentials_are_named_by_path_in_the_script_and_not_contained(
    launcher_class: type[Launcher], tmp_path: Path
) -> None:
    security = make_credentials(tmp_path / "t l s")
    place = RunPlace(tmp_path, "RUN", tmp_path)
    script = launcher_class(load_settings({}), place, security).job_script()
    for option in ("--tls-ca-file", "--tls-cert", "--tls-key"):
        assert script.count(option + " ") == 1
    assert "tls://" in script
    assert "BEGIN" not in script
    words = run_in_bash(script, tmp_path)["words"]
    for option, name in (("--tls-ca-file", "certificate.pem"), ("--tls-key", "key.pem")):
        assert words[words.index(option) + 1] == str(tmp_path / "t l s" / name)


# ---------------------------------------------------------------------------- words through bash


def run_in_bash(script: str, folder: Path) -> dict[str, Any]:
    """Run a job script with the real bash; its Python only says how it was called."""
    stand_in = folder / "stand-in"
    if not stand_in.exists():
        stand_in.write_text(STAND_IN.format(python=sys.executable))
        stand_in.chmod(0o755)
    path = folder / "script.sh"
    path.write_bytes(script.replace(sys.executable + " ", f"{stand_in} ").encode())
    done = subprocess.run(
        ["bash", str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
HOSTILE = st.sampled_from(
    ["", " ", "a b", "'", '"', "\\", "$(touch gone)", "`touch gone`", "${HOME}", "$0", "*", "~",
     "; touch gone #", "a\nb", "\n#PBS -q other", "%s%%", "!!", "--", "-x", "é ü 日本", "\t", "&&"]
)  # fmt: skip
NAMES = (WORDS | HOSTILE).filter(
    lambda name: "/" not in name and name not in ("", ".", "..") and len(name.encode()) < 100
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    run=NAMES,
    folder=NAMES,
    nsys_path=NAMES,
    nsys=st.sampled_from([None, True, False]),
    # A lone "--" is no argument of nsys, and argparse drops it wherever it stands.
    nsys_arg=st.lists((WORDS | HOSTILE).filter(lambda word: word != "--"), max_size=3),
    kind=st.sampled_from(LAUNCHERS),
)
def test_every_word_of_the_node_step_survives_the_shell(
    tmp_path_factory: pytest.TempPathFactory, run: str, folder: str, nsys_path: str,
    nsys: bool | None, nsys_arg: list[str], kind: type[Launcher],
) -> None:  # fmt: skip
    base = tmp_path_factory.mktemp("words")
    working = base / folder
    working.mkdir()
    directory = base / "runs" / run
    name = f"2026-11-23T15-04-05-{file_stem(run)}-3f2a"
    place = RunPlace(directory, name, working)
    chosen = load_settings(
        {
            "memory": "4GB",
            "nsys": nsys,
            "nsys_path": f"/opt/{nsys_path}",
            "nsys_arg": nsys_arg,
            "local_directory": f"/scratch/{folder.replace('$', '')}",
        }
    )
    script = kind(chosen, place, None).job_script()
    said = run_in_bash(script, base)
    words = said["words"]
    assert said["folder"] == str(working)
    assert said["umask"] == 0o077
    assert words[1:3] == ["-m", "dasf_hpc.launch.node"]
    understood = node.parser().parse_args(words[3:])
    assert understood.run == directory
    assert understood.name == f"{name}-0"
    assert understood.nsys is nsys
    assert understood.nsys_path == f"/opt/{nsys_path}"
    assert understood.nsys_arg == nsys_arg
    worker = understood.command
    assert worker[worker.index("--name") + 1] == f"{name}-0"
    assert worker[worker.index("--local-directory") + 1] == f"/scratch/{folder.replace('$', '')}"
    assert "tcp://SCHEDULER:PORT" in worker
    assert sorted(p.name for p in base.iterdir()) == sorted({folder, "script.sh", "stand-in"})


@given(
    before=(WORDS | HOSTILE).filter(lambda text: "$" not in text),
    after=(WORDS | HOSTILE).filter(lambda text: "$" not in text),
)
def test_of_a_path_for_the_shell_variables_alone_are_filled_in(before: str, after: str) -> None:
    script = f"printf %s {shell_path(f'{before}${{PLACE}}/{after}')}"
    environment = {"PLACE": "a b'\"$HOME"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env=environment)
    assert done.stdout.decode() == f"{before}a b'\"$HOME/{after}"


def test_a_variable_that_a_node_lacks_is_told_and_not_left_out() -> None:
    script = f"echo {shell_path('$NO_SUCH_PLACE/dask')}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "NO_SUCH_PLACE: is not set on this node" in done.stderr


@given(WORDS | HOSTILE)
def test_a_file_name_is_one_word_and_never_a_path(name: str) -> None:
    stem = file_stem(name)
    assert len(stem) == len(name)
    assert not set(stem) & set(" \t\n/\\'\"$`;&|<>*?()#!")


def test_a_job_name_is_what_qsub_takes_for_one() -> None:
    # qsub(1B): an alphanumeric character, then printable characters without white space.
    stem = file_stem("análise-日本")
    assert stem.isascii()
    assert stem.isprintable()


# ------------------------------------------------------------------------------ nsys's arguments


def test_by_default_cuda_nvtx_and_the_operating_system_are_traced_and_no_cpu() -> None:
    choice = choose_nsys([], has_gpu=True)
    assert choice.arguments == (
        "--trace=cuda,nvtx,osrt", "--sample=none", "--cpuctxsw=none", "--wait=primary",
    )  # fmt: skip
    assert choice.reductions == ()


def test_without_a_driver_cuda_is_left_out_and_said_so() -> None:
    choice = choose_nsys([], has_gpu=False)
    assert "--trace=nvtx,osrt" in choice.arguments
    assert len(choice.reductions) == 1
    assert "NVIDIA driver" in choice.reductions[0]


@pytest.mark.parametrize(
    ("extra", "ours"),
    [
        (["--trace=nvtx"], "--trace"),
        (["--trace", "nvtx"], "--trace"),
        (["-t", "nvtx"], "--trace"),
        (["-tnvtx"], "--trace"),
        (["--sample=process-tree"], "--sample"),
        (["-s", "cpu"], "--sample"),
        (["--cpuctxsw=process-tree"], "--cpuctxsw"),
        (["--wait=all"], "--wait"),
        (["-w", "all"], "--wait"),
    ],
)
@pytest.mark.parametrize("has_gpu", [True, False])
def test_what_the_user_sets_is_not_set_by_us(extra: list[str], ours: str, has_gpu: bool) -> None:
    arguments = choose_nsys(extra, has_gpu).arguments
    before = arguments[: -len(extra)]
    assert arguments[-len(extra) :] == tuple(extra)
    assert not any(argument.startswith(ours) for argument in before)
    assert len(before) == 3


def test_an_option_that_only_begins_alike_is_another_one() -> None:
    arguments = choose_nsys(["--stats=true", "--trace-fork-before-exec=true"], True)
    assert "--sample=none" in arguments.arguments
    assert any(argument.startswith("--trace=") for argument in arguments.arguments)


def test_a_user_who_sets_the_trace_is_not_told_about_cuda() -> None:
    assert choose_nsys(["-t", "cuda"], has_gpu=False).reductions == ()


# ------------------------------------------------------------------------------- the node step


def test_a_report_name_is_never_given_twice(tmp_path: Path) -> None:
    directory = tmp_path / "nsight"
    claims = (
        "import sys; from pathlib import Path; from dasf_hpc.launch.node import claim_report\n"
        "for _ in range(50): print(claim_report(Path(sys.argv[1]), 'node 1', '12.srv'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", claims, str(directory)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    names = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert len(names) == 4 * 50
    assert len(set(names)) == len(names)
    assert str(directory / "node_1-12.srv") in names
    assert all(Path(name).parent == directory for name in names)
    assert directory.stat().st_mode & 0o777 == 0o700


def node_step(
    *words: str, folder: Path, environment: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any] | None]:
    """Run the node step as a job does; return how it ended and what it left word of."""
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.launch.node", "--run", str(folder), "--name", "R-0",
         *words],
        env=os.environ | {"PBS_JOBID": "12.srv"} | (environment or {}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    records = node.read_node_records(folder)
    assert len(records) <= 1
    return done, records[0] if records else None


SAY = ("--", sys.executable, "-c", "import sys; print('ran', sys.argv[1:])", "a b")


def test_without_nsys_the_worker_runs_all_the_same_and_the_reason_is_left(tmp_path: Path) -> None:
    done, record = node_step(*SAY, folder=tmp_path, environment={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran ['a b']\n"
    assert record is not None
    assert record["report"] is None
    assert record["batch_job"] == "12.srv"
    assert record["command"] == list(SAY[1:])
    assert len(record["notes"]) == 1
    assert "nsys was not found" in record["notes"][0]
    assert record["notes"][0] in done.stderr


def test_without_nsys_a_run_that_insists_on_it_ends_with_the_reason(tmp_path: Path) -> None:
    done, record = node_step("--nsys", *SAY, folder=tmp_path, environment={"PATH": ""})
    assert done.returncode == node.NSYS_UNUSABLE
    assert done.stdout == ""
    assert record is None
    assert done.stderr.startswith("dasf-hpc: nsys was not found")
    assert done.stderr.count("\n") == 1


def test_a_node_job_that_begins_when_its_run_is_over_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"state": "complete"}')
    done, record = node_step("--no-nsys", *SAY, folder=tmp_path)
    assert done.returncode == LateNodeJob.exit_code
    assert record is None
    assert done.stdout == ""
    assert "is over (complete): this node job came too late" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_nsys_that_is_not_wanted_is_not_looked_for(tmp_path: Path) -> None:
    done, record = node_step("--no-nsys", *SAY, folder=tmp_path)
    assert done.stdout == "ran ['a b']\n"
    assert record is not None
    assert record["report"] is None
    assert record["nsys_version"] is None


@pytest.mark.needs("nsys")
def test_with_nsys_the_worker_runs_under_it_and_the_report_has_the_claimed_name(
    tmp_path: Path,
) -> None:
    done, record = node_step(*SAY, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ran ['a b']" in done.stdout
    assert record is not None
    assert record["report"] == f"nsight/{file_stem(record['hostname'])}-12.srv.nsys-rep"
    report = tmp_path / record["report"]
    assert report.exists() or report.with_suffix(".qdstrm").exists()
    assert record["nsys_version"] == find_nsys().version_text
    assert record["command"][1] == "profile"
    assert record["command"][-len(SAY) + 1 :] == list(SAY[1:])


@pytest.mark.needs("nsys")
def test_the_workers_exit_code_passes_through_nsys(tmp_path: Path) -> None:
    done, _ = node_step("--", sys.executable, "-c", "raise SystemExit(7)", folder=tmp_path)
    assert done.returncode == 7


def test_what_the_nodes_left_is_read_without_the_torn_ones(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "b.json").write_text('{"hostname": "n2", "report": "x", "notes": []}')
    (tmp_path / "nodes" / "a.json").write_text('{"hostname": "n1"}')
    (tmp_path / "nodes" / "c.json").write_text('{"hostname": "n3"')
    (tmp_path / "nodes" / "d.json").write_text("[]")
    (tmp_path / "nodes" / ".e.json").write_text("partial")
    records = node.read_node_records(tmp_path)
    assert [(r["hostname"], r["report"], r["notes"]) for r in records] == [
        ("n1", None, []), ("n2", "x", []),
    ]  # fmt: skip


# ---------------------------------------------------------------------------- the queue's answers

TORQUE = """\
Job Id: 4242.torque.site.example
    Job_Name = dasf-RUN
    Job_Owner = user@login.site.example
    resources_used.cput = 00:00:01
    job_state = C
    queue = batch
    server = torque.site.example
    Variable_List = PBS_O_QUEUE=batch,PBS_O_HOME=/home/user,
\tPBS_O_LANG=C.UTF-8,PBS_O_PATH=/usr/bin:/bin
    comment = Job started on Mon Nov 23 at 05:43
    exit_status = 0

Job Id: 4243.torque.site.example
    Job_Name = dasf-RUN
    job_state = Q
    queue = batch
    comment = job job_state = R is not what this is

Job Id: 4244[].torque.site.example
    job_state = B

Job Id: 4245.torque.site.example
    job_state = H

"""


def test_torques_answer_is_understood() -> None:
    assert {number: status.state for number, status in PBS.read(TORQUE).items()} == {
        "4242": JobState.GONE,
        "4243": JobState.PENDING,
        "4244": JobState.RUNNING,
        "4245": JobState.PENDING,
    }


@pytest.mark.parametrize("answer", ["", "\n", "qstat: nothing\n", "Job Id: \n    job_state = R\n"])
def test_an_answer_without_jobs_holds_none(answer: str) -> None:
    assert PBS.read(answer) == {}


@given(WORDS | HOSTILE)
def test_reading_an_answer_never_fails(text: str) -> None:
    PBS.read(text)
    PBS.read(f"Job Id: 7.server\n    job_state = {text}\n    comment = {text}\n")


def sleeper(tmp_path: Path, *directives: str, seconds: int = 30) -> Path:
    """Write a batch script that sleeps."""
    path = tmp_path / "sleep.sh"
    lines = ["#!/bin/sh", *(f"#PBS {directive}" for directive in directives)]
    path.write_text("\n".join([*lines, f"exec sleep {seconds}", ""]))
    return path


def test_openpbs_states_are_seen_from_the_queue_to_the_end(
    pbs: OpenPbsTestbed, tmp_path: Path
) -> None:
    pbs.configure(max_running=1, queued_s=0.0, exiting_s=0.5)
    launcher = make(PbsLauncher)
    script = sleeper(tmp_path, seconds=1)
    ids = [
        pbs.run("qsub", str(script), cwd=tmp_path).stdout.split(".")[0],
        pbs.run("qsub", "-l", "select=1:ncpus=99", str(script), cwd=tmp_path).stdout.split(".")[0],
    ]
    seen: list[JobState] = []
    second = JobStatus(JobState.GONE)
    while not seen or seen[-1] is not JobState.GONE:
        answer = asyncio.run(launcher.ask(ids))
        state = answer.get(ids[0], JobStatus(JobState.GONE)).state
        if not seen or state is not seen[-1]:
            seen.append(state)
        second = answer[ids[1]]
    assert seen[-3:] == [JobState.RUNNING, JobState.ENDING, JobState.GONE]
    assert second.state is JobState.PENDING
    assert "Insufficient amount of resource: ncpus" in second.reason


@pytest.mark.parametrize("history", [True, False], ids=["history", "forgetting"])
def test_a_job_that_pbs_does_not_hold_any_more_is_left_out_not_an_error(
    pbs: OpenPbsTestbed, tmp_path: Path, history: bool
) -> None:
    pbs.configure(history=history, exiting_s=0.0)
    launcher = make(PbsLauncher)
    ended = pbs.run("qsub", str(sleeper(tmp_path, seconds=0)), cwd=tmp_path).stdout.split(".")[0]
    pbs.wait_until_empty()
    there = pbs.run("qsub", str(sleeper(tmp_path)), cwd=tmp_path).stdout.split(".")[0]
    assert asyncio.run(launcher.ask([ended])) == {}
    assert list(asyncio.run(launcher.ask([ended, there]))) == [there]


def test_a_comment_that_qstat_wraps_is_read_to_its_end(pbs: OpenPbsTestbed, tmp_path: Path) -> None:
    pbs.configure(queued_s=0.0)
    script = sleeper(tmp_path, "-l select=1:ncpus=99")
    job = pbs.run("qsub", str(script), cwd=tmp_path).stdout.split(".")[0]
    while not (reason := asyncio.run(make(PbsLauncher).ask([job]))[job].reason):
        pass
    assert reason == ("Can Never Run: Insufficient amount of resource: ncpus (R: 99 A: 4 T: 4)")


def test_a_server_that_does_not_answer_is_an_error_that_says_so(
    pbs: OpenPbsTestbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENPBS_TESTBED", str(tmp_path / "gone"))
    with pytest.raises(BatchError, match="qstat does not answer: cannot connect to server"):
        asyncio.run(make(PbsLauncher).ask(["1", "2"]))


@pytest.mark.parametrize("kind", [SlurmLauncher, PbsLauncher])
def test_a_queue_program_that_is_missing_is_an_answer_that_does_not_come(
    kind: type[Launcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BatchError):
        asyncio.run(make(kind).ask(["1"]))


@pytest.mark.needs("slurm")
def test_slurms_states_and_its_silence_about_an_unknown_job_are_understood(
    slurm: SlurmTestbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    launcher = make(SlurmLauncher)
    script = sleeper(tmp_path)
    submitted = [
        subprocess.run(
            ["sbatch", "--parsable", *words, str(script)],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for words in (["--hold"], ["-o", "out"])
    ]  # fmt: skip
    try:
        while True:
            answer = asyncio.run(launcher.ask([*submitted, "999999"]))
            if answer[submitted[1]].state is JobState.RUNNING:
                break
        held = JobStatus(JobState.PENDING, "JobHeldUser", script.name)
        assert answer[submitted[0]] == held
        assert "999999" not in answer
        assert asyncio.run(launcher.ask(["999999"])) == {}
    finally:
        subprocess.run(["scancel", *submitted], check=True)
        slurm.wait_until_idle()


# --------------------------------------------------------------------------------- why it waits


def test_every_known_reason_is_a_sentence_about_the_request_or_the_queue() -> None:
    for word, reason in REASONS.items():
        assert SLURM.why_pending(word) == reason
        assert SLURM.why_pending(f"({word})") == reason
        assert reason.sentence[0].islower() or reason.sentence.startswith("--")
        assert not reason.sentence.endswith(".")


def test_a_reason_with_details_is_known_by_its_first_word() -> None:
    reason = SLURM.why_pending("ReqNodeNotAvail, UnavailableNodes:node3")
    assert reason == REASONS["ReqNodeNotAvail"]


@pytest.mark.parametrize(
    ("comment", "hopeless", "says"),
    [
        ("Not Running: Not enough total nodes available", True, "can never run it"),
        ("Not Running: Insufficient amount of resource: ncpus (R: 8 A: 2 T: 16)", False,
         "the scheduler says"),
        ("Not Running: Insufficient amount of resource: mem (R: 64gb A: 8gb T: 33554432kb)", False,
         "33554432kb is all there is of mem, and 64gb is asked for"),
        ("Not Running: Insufficient amount of queue resource: ngpus (R: 9 A: 0 T: 8)", False,
         "it may wait for ever"),
        ("Not Running: Not enough free nodes available", False, "the scheduler says"),
    ],
)  # fmt: skip
def test_what_pbs_says_of_a_job_that_waits(comment: str, hopeless: bool, says: str) -> None:
    reason = PBS.why_pending(comment)
    assert reason.hopeless is hopeless
    assert says in reason.sentence


@pytest.mark.parametrize("reason", ["QOSGrpCpuLimit", "Not Running: Queue not started.", ""])
def test_an_unknown_reason_is_told_in_the_schedulers_words_and_is_never_hopeless(
    reason: str,
) -> None:
    answer = SLURM.why_pending(reason)
    assert (reason or "nothing") in answer.sentence
    assert not answer.hopeless


def test_only_what_waiting_cannot_help_is_hopeless() -> None:
    assert SLURM.why_pending("PartitionTimeLimit").hopeless
    assert not SLURM.why_pending("Resources").hopeless
    assert not SLURM.why_pending("Priority").hopeless


def test_what_pbs_can_never_run_is_hopeless() -> None:
    comment = "Can Never Run: Insufficient amount of resource: ncpus (R: 99 A: 4 T: 4)"
    reason = PBS.why_pending(comment)
    assert reason.hopeless
    assert "Can Never Run" not in reason.sentence  # which the message that it is part of says


# -------------------------------------------------------------------------------------- refusals


def refused(system: BatchSystem, tmp_path: Path, *words: str) -> str:
    """Give what is left of a submission that is refused, as a user gets to see it."""
    script = sleeper(tmp_path)
    lines = script.read_text().splitlines()
    script.write_text("\n".join([lines[0], f"{system.mark} {shlex.join(words)}", *lines[1:]]))
    with pytest.raises(BatchError) as caught:
        system.submit_script(script, tmp_path, "dasf-RUN-0", load_settings({}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-q", "nosuch"], "Unknown queue"),
        (["-q", "closed"], "Queue is not enabled"),
        (["-q", "debug", "-l", "walltime=1:00:00"],
         "Job violates queue and/or server resource limits"),
        (["-l", "walltime=1-00:00:00"],
         "Illegal attribute or resource value Resource_List.walltime"),
        (["-l", "select=1:nosuch=2"], "Unknown resource: nosuch"),
        (["-N", "two words"], "illegal -N value"),
    ],
)  # fmt: skip
def test_qsubs_refusal_is_told_in_its_own_words(
    pbs: OpenPbsTestbed, tmp_path: Path, words: list[str], says: str
) -> None:
    script = tmp_path / "sleep.sh"
    sentence = refused(PBS, tmp_path, *words)
    assert sentence == f"PBS refused a node job: {says} (the script is {script})."


def test_a_pbs_server_that_is_down_is_told_in_qsubs_words(
    pbs: OpenPbsTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENPBS_TESTBED", str(tmp_path / "gone"))
    assert "cannot connect to server" in refused(PBS, tmp_path, "-q", "workq")


@pytest.mark.needs("slurm")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "nosuch"], "nosuch"),
        (["--mem=4000G"], "Memory specification can not be satisfied"),
        (["-t", "soon"], "Invalid --time specification"),
        (["--gres=nosuch:1"], "generic resource"),
        (["--nosuch"], "unrecognized option"),
    ],
)
def test_sbatchs_refusal_is_told_in_its_own_words(
    slurm: SlurmTestbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: list[str], says: str,
) -> None:  # fmt: skip
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    sentence = refused(SLURM, tmp_path, *words)
    assert sentence.startswith("SLURM refused a node job: ")
    assert says in sentence
    assert "\n" not in sentence
    assert "Exit code" not in sentence


@pytest.mark.parametrize("system", [SLURM, PBS, LSF], ids=lambda system: str(system.name))
def test_a_refusal_without_words_is_still_a_sentence(system: BatchSystem) -> None:
    sentence = str(system.refusal("", "a node job", Path("RUN/scripts/x.sh")))
    assert sentence.endswith(".")
    assert "\n" not in sentence


# ----------------------------------------------------------------------------------- credentials


def test_credentials_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_credentials(tmp_path / "tls")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    files = sorted((tmp_path / "tls").iterdir())
    assert [path.name for path in files] == ["certificate.pem", "key.pem"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]


def test_credentials_are_made_anew_for_every_run_and_can_be_deleted_twice(tmp_path: Path) -> None:
    make_credentials(tmp_path / "a")
    make_credentials(tmp_path / "b")
    assert (tmp_path / "a" / "key.pem").read_bytes() != (tmp_path / "b" / "key.pem").read_bytes()
    with pytest.raises(FileExistsError):
        make_credentials(tmp_path / "a")
    delete_credentials(tmp_path / "a")
    delete_credentials(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_who_has_the_credentials_gets_in_and_nobody_else(tmp_path: Path) -> None:
    ours, others = make_credentials(tmp_path / "ours"), make_credentials(tmp_path / "others")
    # A foreign key with our certificate as authority: they know whom to trust, not how to prove it.
    stolen = Security(
        tls_ca_file=ours.tls_ca_file, tls_client_cert=others.tls_client_cert,
        tls_client_key=others.tls_client_key, require_encryption=True,
    )  # fmt: skip

    async def gets_in(address: str, security: Security | None) -> bool:
        try:
            async with Client(address, security=security, asynchronous=True, timeout=1.5) as client:
                return bool(await client.run_on_scheduler(lambda: True))
        except (OSError, ValueError, TypeError, RuntimeError):
            return False

    async def all_of_them() -> list[bool]:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False, security=ours) as scheduler:
            address = scheduler.address
            assert address.startswith("tls://")
            plain = address.replace("tls://", "tcp://")
            return [
                await gets_in(address, ours),
                await gets_in(address, others),
                await gets_in(address, stolen),
                await gets_in(plain, None),
            ]

    assert asyncio.run(all_of_them()) == [True, False, False, False]


def test_a_clients_variables_name_files_and_hold_no_key(tmp_path: Path) -> None:
    security = make_credentials(tmp_path / "tls")
    variables = client_environment(security)
    assert all(name.startswith("DASK_DISTRIBUTED__COMM__") for name in variables)
    files = [value for value in variables.values() if value != "True"]
    assert len(files) == 3
    assert all(Path(value).is_file() for value in files)


# ---------------------------------------------------------------------------------- the job file


def test_a_job_file_is_found_and_given_as_an_absolute_path(tmp_path: Path) -> None:
    for name in ("job.py", "no suffix", "análise.py", "-x.py"):
        Path(name).write_text("print('é')")
        assert find_job(name).path == tmp_path / name
    Path("latin.py").write_bytes("# -*- coding: latin-1 -*-\nprint('é')".encode("latin-1"))
    assert find_job("latin.py").path == tmp_path / "latin.py"
    Path("empty.py").touch()
    assert find_job("empty.py").path == tmp_path / "empty.py"


def test_the_examples_of_the_package_are_found_by_name() -> None:
    path = find_job("example:seismic").path
    assert path.is_file()
    assert "dasf_hpc" in str(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"this is ( not python", "line 1"),
        (b"x = 1\n  y = 2\n", "line 2"),
        (b"\x7fELF\x02\x01\x00\x00", "not Python"),
        (b"print('\xe9')", "not Python"),
        (b"await x", "line 1"),
    ],
)
def test_what_is_not_python_is_refused_with_its_line(content: bytes, says: str) -> None:
    Path("job.py").write_bytes(content)
    with pytest.raises(JobFileError, match=r"job\.py") as caught:
        find_job("job.py")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("nosuch.py", "does not exist"),
        ("", "give the path"),
        (".", "is a folder"),
        ("example:nosuch", "example:seismic"),
        ("example:../run", "example:seismic"),
        ("example:__init__", "example:seismic"),
    ],
)
def test_a_job_that_is_not_there_is_named(job: str, says: str) -> None:
    with pytest.raises(JobFileError) as caught:
        find_job(job)
    assert says in str(caught.value)


def test_looking_at_a_job_file_does_not_run_it(tmp_path: Path) -> None:
    Path("job.py").write_text("open('ran', 'w')")
    find_job("job.py")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("always", [False, True])
def test_a_connection_that_breaks_in_the_handshake_is_made_again(always: bool) -> None:
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as cluster,
        socket.create_server(("127.0.0.1", 0)) as door,
    ):
        host, port = cluster.scheduler_address.removeprefix("tcp://").split(":")

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def keep_the_door() -> None:
            with contextlib.suppress(OSError):
                door.accept()[0].close()
                while always:
                    door.accept()[0].close()
                while True:
                    caller, _ = door.accept()
                    inside = socket.create_connection((host, int(port)))
                    for pair in ((caller, inside), (inside, caller)):
                        threading.Thread(target=pass_on, args=pair, daemon=True).start()

        threading.Thread(target=keep_the_door, daemon=True).start()
        address = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        if always:
            with pytest.raises(WorkersError, match=f"scheduler at {address} broke 3 times"):
                connect(address)
            with pytest.raises(WorkersError, match="broke 3 times"):
                ask(address, lambda client: client.scheduler_info())
        else:
            with connect(address) as client:
                assert client.scheduler_info()["workers"] == {}
            asked = []

            def fails_once(client: Client) -> str:
                asked.append(client)
                if len(asked) == 1:
                    raise CommClosedError("as Dask says it")
                return str(client.scheduler_info()["type"])

            assert ask(address, fails_once) == "Scheduler"
            assert len(asked) == 2
