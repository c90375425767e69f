"""The OpenPBS testbed behaves as OpenPBS does, told by its commands alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testbed.openpbs import OpenPbsTestbed, OpenPbsTestbedError

WAIT_S = 30.0
"""A job starts within 0.2 s; the rest is for a machine busy with other things."""


@pytest.fixture
def server(openpbs: OpenPbsTestbed) -> Iterator[OpenPbsTestbed]:
    """Give the server with its defaults; nothing may be left in its queue."""
    kept = dict(openpbs.settings)
    yield openpbs
    openpbs.configure(**kept)
    for job in openpbs.queue():
        openpbs.run("qdel", "-W", "force", job)
    openpbs.wait_until_empty()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {WAIT_S:g} s"
        time.sleep(0.05)


def qsub(server: OpenPbsTestbed, folder: Path, script: str, *words: str) -> str:
    """Submit a script from a folder; give the job's id."""
    done = server.run("qsub", *words, cwd=folder, stdin=f"#!/bin/bash\n{script}\n")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def attribute(server: OpenPbsTestbed, job: str, name: str) -> str:
    """Give an attribute of a job, also of one that is over."""
    done = server.run("qstat", "-xfw", job)
    found = re.search(rf"^    {re.escape(name)} = (.*)$", done.stdout, re.MULTILINE)
    return found[1] if found else ""


def test_what_a_job_says_appears_when_it_has_ended(server: OpenPbsTestbed, tmp_path: Path) -> None:
    job = qsub(
        server, tmp_path, f"echo early; echo here >{tmp_path}/own; touch {tmp_path}/said; "
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done",
        "-o", "out", "-e", "err",
    )  # fmt: skip
    wait_until((tmp_path / "said").exists, "words of the job")
    assert (tmp_path / "own").read_text() == "here\n"
    assert not (tmp_path / "out").exists()
    (tmp_path / "go").touch()
    server.wait_until_empty()
    assert (tmp_path / "out").read_text() == "early\n"
    assert (tmp_path / "err").read_text() == ""
    assert attribute(server, job, "Exit_status") == "0"


@pytest.mark.parametrize("target", ["out", "/dev/null"])
def test_a_copy_of_output_that_fails_keeps_the_job_exiting(
    server: OpenPbsTestbed, tmp_path: Path, target: str
) -> None:
    server.configure(stage_out_fails=True, stage_out_stall_s=2.0)
    job = qsub(server, tmp_path, "echo lost", "-j", "oe", "-o", target)
    if target == "/dev/null":
        server.wait_until_empty(1.5)  # below the stall
        assert Path(target).is_char_device()
        return
    wait_until(lambda: server.queue().get(job) == "E", "job that exits")
    with pytest.raises(OpenPbsTestbedError, match="are left"):
        server.wait_until_empty(1.0)
    server.wait_until_empty()
    assert not (tmp_path / target).exists()
    assert (server.directory / "undelivered" / f"{job}.OU").read_text() == "lost\n"


def test_the_profile_has_the_last_word_about_path(
    server: OpenPbsTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "kept")
    qsub(server, tmp_path, 'echo "$PATH|$PBS_O_PATH|$MINE"', "-V", "-o", "out", "-e", "err")
    server.wait_until_empty()
    path, submitters, mine = (tmp_path / "out").read_text().strip().split("|")
    assert submitters == server.environment["PATH"]
    assert path != submitters
    assert path.split(":", 1)[1].startswith("/usr/local/")
    assert mine == "kept"


def test_another_profile_can_be_given(tmp_path: Path) -> None:
    with OpenPbsTestbed(profile="export PATH=/usr/bin:/bin SITE=ours\n") as other:
        qsub(other, tmp_path, 'echo "$SITE"; command -v qstat', "-o", "out", "-e", "err")
        other.wait_until_empty()
        site, found = (tmp_path / "out").read_text().split()
        assert site == "ours"
        assert found == f"{other.directory}/bin/qstat"


@pytest.mark.parametrize(
    ("words", "lines", "cpus"),
    [
        ([], ["-l select=1:ncpus=2", "-l select=1:ncpus=3"], "1:ncpus=2"),
        (["-l", "select=1:ncpus=4"], ["-l select=1:ncpus=2"], "1:ncpus=4"),
        (["-l", "select=1:ncpus=4", "-l", "select=1:ncpus=1"], [], "1:ncpus=4"),
    ],
)
def test_the_first_select_and_place_win_in_silence(
    server: OpenPbsTestbed, tmp_path: Path, words: list[str], lines: list[str], cpus: str
) -> None:
    lines = [*lines, "-l place=scatter", "-l place=excl"]
    script = "\n".join(f"#PBS {line}" for line in lines)
    done = server.run("qsub", "-h", *words, cwd=tmp_path, stdin=f"#!/bin/sh\n{script}\ntrue\n")
    assert (done.returncode, done.stderr) == (0, "")
    job = done.stdout.strip()
    assert attribute(server, job, "Resource_List.select") == cpus
    assert attribute(server, job, "Resource_List.place") == "scatter"


def test_the_job_of_a_host_that_died_is_shown_as_running_and_cannot_be_deleted(
    server: OpenPbsTestbed, tmp_path: Path
) -> None:
    job = qsub(server, tmp_path, f"echo $$ >{tmp_path}/pid; sleep 1000")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "process")
    host = attribute(server, job, "exec_host").split("/")[0]
    server.kill_host(host)
    try:
        pid = (tmp_path / "pid").read_text().strip()
        wait_until(lambda: not Path("/proc", pid).exists(), "end of the process")
        time.sleep(0.5)
        assert server.queue() == {job: "R"}
        refused = server.run("qdel", job)
        assert refused.returncode == 15070 & 0xFF
        assert refused.stderr == f"qdel: Server could not connect to MOM {job}\n"
        assert server.queue() == {job: "R"}
        elsewhere = qsub(server, tmp_path, "true")
        wait_until(lambda: attribute(server, elsewhere, "job_state") == "F", "job elsewhere")
        assert host not in attribute(server, elsewhere, "exec_host")
        assert server.run("qdel", "-W", "force", job).returncode == 0
        assert server.queue() == {}
    finally:
        server.start_host(host)


@pytest.mark.parametrize("rerun", ["", "y", "n"])
def test_when_its_host_is_declared_down_a_job_runs_again_unless_it_must_not(
    server: OpenPbsTestbed, tmp_path: Path, rerun: str
) -> None:
    server.configure(node_fail_requeue_s=1.0)
    words = ["-r", rerun] if rerun else []
    job = qsub(server, tmp_path, f"echo begin >>{tmp_path}/runs; sleep 1000", *words)
    runs = tmp_path / "runs"
    wait_until(lambda: runs.exists() and runs.read_text(), "first run")
    host = attribute(server, job, "exec_host").split("/")[0]
    server.kill_host(host)
    try:
        if rerun == "n":
            server.wait_until_empty()
            assert attribute(server, job, "Rerunable") == "False"
            assert runs.read_text() == "begin\n"
            return
        wait_until(lambda: runs.read_text() == "begin\nbegin\n", "second run")
        assert server.queue() == {job: "R"}
        assert attribute(server, job, "run_count") == "2"
        assert attribute(server, job, "exec_host").split("/")[0] != host
        assert server.run("qdel", job).returncode == 0
        server.wait_until_empty()
    finally:
        server.start_host(host)


@pytest.mark.parametrize(("words", "code"), [([], "271"), (["-W", "force"], "265")])
def test_a_deleted_job_has_the_signal_as_its_exit_status(
    server: OpenPbsTestbed, tmp_path: Path, words: list[str], code: str
) -> None:
    script = f"trap 'exit 3' TERM; touch {tmp_path}/there; while :; do sleep 0.05; done"
    job = qsub(server, tmp_path, script)
    wait_until((tmp_path / "there").exists, "running job")
    assert server.run("qdel", *words, job).returncode == 0
    server.wait_until_empty()
    assert attribute(server, job, "Exit_status") == code


def test_a_job_at_its_walltime_has_the_documented_exit_status(
    server: OpenPbsTestbed, tmp_path: Path
) -> None:
    job = qsub(server, tmp_path, "sleep 1000", "-l", "walltime=1", "-e", "err", "-o", "out")
    server.wait_until_empty()
    assert attribute(server, job, "Exit_status") == "-29"
    assert "job killed: walltime" in (tmp_path / "err").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["-l", "select=1:ncpus=30"],
            "Can Never Run: Insufficient amount of resource: ncpus (R: 30 A: 4 T: 4)",
        ),
        (
            ["-l", "select=4:ncpus=4"],
            "Can Never Run: Not enough total nodes available",
        ),
        (
            ["-l", "select=4:ncpus=1", "-l", "place=scatter"],
            "Can Never Run: Not enough total nodes available",
        ),
    ],
)
def test_what_no_hosts_have_is_said_to_never_run(
    server: OpenPbsTestbed, tmp_path: Path, words: list[str], says: str
) -> None:
    job = qsub(server, tmp_path, "true", *words)
    wait_until(lambda: attribute(server, job, "comment"), "comment")
    assert attribute(server, job, "comment") == says
    assert server.queue() == {job: "Q"}
