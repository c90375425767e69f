"""What sites and users put around the batch system does not reach a run, nor a run other jobs."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from system.conftest import Submit, command, wait_until_over
from testbed.openpbs import OpenPbsTestbed
from testbed.slurm import SlurmTestbed

SUM = """
    from distributed import Client
    with Client() as client:
        print("RESULT", sum(client.gather(client.map(abs, range(-20, 0)))))
"""
RESULT = "RESULT 210"

NODE = ("--interface", "lo", "--no-nsys", "--memory", "1GB", "--walltime", "00:05:00")
SLURM = ("--on", "slurm", *NODE)
PBS = ("--on", "pbs", *NODE)
#: A node job that never starts.
LATER = ("--directive=--begin=now+1hour", "--start-timeout", "4")


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give the SLURM testbed; nothing of a test may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    left = [job for job in slurm.queue() if job.state != "COMPLETING"]
    for job in left:
        slurm.command("scancel", str(job.id))
    slurm.wait_until_idle()
    assert left == []


@pytest.fixture
def other(cluster: SlurmTestbed) -> Iterator[str]:
    """Give the id of a job of the user's that is no run's, and which must be there at the end."""
    words = ("sbatch", "--parsable", "--mem=100M", "--output=/dev/null", "--wrap", "sleep 300")
    job = cluster.command(*words).strip()
    yield job
    assert job in [str(queued.id) for queued in cluster.queue()]
    cluster.command("scancel", job)


def wrapped(folder: Path, environment: Mapping[str, str], **programs: str) -> dict[str, str]:
    """Give an environment in which scripts stand in front of programs; REAL is the program."""
    folder.mkdir()
    for name, text in programs.items():
        search = environment.get("PATH", os.environ["PATH"])
        real = subprocess.check_output(
            ["sh", "-c", f"command -v {name}"], env={**os.environ, "PATH": search}, text=True
        ).strip()
        path = folder / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(text).replace("REAL", real))
        path.chmod(0o755)
    search = environment.get("PATH", os.environ["PATH"])
    return {**environment, "PATH": f"{folder}{os.pathsep}{search}"}


WRAPPERS = {
    "a date before": 'echo "Sun Nov 29 03:08:22 2026 [INFO4] credential renewed"; REAL "$@"',
    "a number before": 'echo "35 core hours are left in your account"; REAL "$@"',
    "numbers after": 'REAL "$@" || exit; echo "see ticket 4711"; echo 12',
    "the number alone": 'id=$(REAL --parsable "$@") || exit; echo "48 hours of 100 left"; echo $id',
    "a number as a line of its own": 'echo 17; REAL "$@" | grep -o "[0-9]*$"',
    "no number at all": 'REAL "$@" >/dev/null; echo "Job accepted."',
}


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_sites_own_words_around_an_id_are_no_id(
    kind: str, cluster: SlurmTestbed, other: str, submit: Submit, script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    environment = wrapped(tmp_path / "site", cluster.environment, sbatch=WRAPPERS[kind])
    done = submit(*SLURM, script(SUM), environment=environment)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    (job,) = done.manifest["batch_jobs"]
    assert job != other
    assert done.manifest["stop"]["by_themselves"] == [job]


@pytest.mark.needs("slurm")
@pytest.mark.parametrize(
    "wrapper",
    ['echo "{other} core hours are left"; REAL "$@"', 'REAL "$@" >/dev/null; echo {other}'],
    ids=["in a sentence", "in place of the id"],
)
def test_a_job_that_is_not_the_runs_is_never_cancelled(
    wrapper: str, cluster: SlurmTestbed, other: str, submit: Submit,
    script: Callable[[str], str], tmp_path: Path,
) -> None:  # fmt: skip
    environment = wrapped(
        tmp_path / "site", cluster.environment, sbatch=wrapper.format(other=other)
    )
    done = submit(*SLURM, *LATER, script(SUM), environment=environment)
    assert done.code == 71, done.err
    # The run's own is gone, and `other` sees to the rest.
    assert [str(job.id) for job in cluster.queue()] == [other]


@pytest.mark.needs("slurm")
def test_a_detached_head_is_known_by_its_name(
    cluster: SlurmTestbed, other: str, script: Callable[[str], str], tmp_path: Path
) -> None:
    text = 'echo "Sun Nov 29 2026"; REAL "$@" >/dev/null; echo ' + other
    environment = {**os.environ, **wrapped(tmp_path / "site", cluster.environment, sbatch=text)}
    words = (*SLURM, "--no-report", "--detach", "--directive=--begin=now+1hour", script(SUM))
    done = subprocess.run(
        command("submit", *words),
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cancelled = subprocess.run(
        command("cancel", done.stdout.strip()),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert cancelled.returncode == 0, cancelled.stderr
    assert "out of the queue" in cancelled.stdout
    assert [str(job.id) for job in cluster.queue()] == [other]


@pytest.mark.needs("slurm")
@pytest.mark.parametrize(
    "variables",
    [
        {"SQUEUE_STATES": "PENDING", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%u"},
        {"SQUEUE_PARTITION": "none", "SQUEUE_QOS": "none", "SQUEUE_NAMES": "none"},
        {"SQUEUE_STATES": "all", "SQUEUE_SORT": "u"},
        {"SBATCH_WAIT": "1", "SBATCH_JOB_NAME": "mine", "SBATCH_TIMELIMIT": "1",
         "SBATCH_ARRAY_INX": "1-3", "SBATCH_EXPORT": "NONE", "SBATCH_MEM_PER_NODE": "1M"},
    ],
    ids=["states", "partition", "all states", "sbatch"],
)  # fmt: skip
def test_what_a_user_has_set_for_slurms_commands_is_not_for_ours(
    variables: dict[str, str], cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    environment = {**cluster.environment, **variables}
    done = submit(*SLURM, script(SUM), environment=environment, timeout=60)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert len(done.manifest["stop"]["by_themselves"]) == 1


@pytest.mark.needs("slurm")
def test_what_a_user_has_set_for_scancel_leaves_nothing_in_the_queue(
    cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    hijacking = {"SCANCEL_STATE": "RUNNING", "SCANCEL_PARTITION": "gpu", "SCANCEL_NAME": "other"}
    environment = {**cluster.environment, **hijacking}
    done = submit(*SLURM, *LATER, script(SUM), environment=environment)
    assert done.code == 71, done.err
    assert cluster.queue() == []


@pytest.mark.needs("slurm")
def test_an_allocation_knows_its_walltime_whatever_squeue_filters(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    script(SUM)
    environment = {
        **os.environ, **cluster.environment, "SQUEUE_STATES": "PENDING",
        "DASF_HPC": command()[0], "DASF_HPC_NSYS": "false", "DASF_HPC_REPORT": "false",
        "DASF_HPC_INTERFACE": "lo",
    }  # fmt: skip
    subprocess.run(
        ["sbatch", "--wait", "--nodes=1", "--time=00:05:00", root / "slurm" / "allocation.sbatch",
         "job.py"],
        cwd=tmp_path, env=environment, check=False, capture_output=True, timeout=120,
    )  # fmt: skip
    said = "\n".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
    assert RESULT in said


@pytest.fixture
def server(openpbs: OpenPbsTestbed) -> Iterator[OpenPbsTestbed]:
    """Give the PBS server; nothing of a test may be left in its queue."""
    assert openpbs.queue() == {}
    yield openpbs
    left = openpbs.queue()
    for job in left:
        openpbs.run("qdel", "-W", "force", job)
    openpbs.wait_until_empty()
    assert left == {}


@pytest.mark.parametrize(
    "wrapper",
    [
        'echo "35 hours are left"; REAL "$@"; echo 17',
        'REAL "$@" >/dev/null; echo {other}; echo "Job accepted."',
        'REAL "$@" >/dev/null; echo "Job accepted."',
    ],
    ids=["around", "another's", "none"],
)
def test_so_it_is_on_pbs(
    wrapper: str, server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "other.sh").write_text("sleep 300\n")
    words = ("qsub", "-l", "select=1:ncpus=1:mem=100MB", "other.sh")
    other = server.run(*words, cwd=tmp_path)
    job = other.stdout.strip()
    environment = wrapped(
        tmp_path / "site", server.environment, qsub=wrapper.format(other=job)
    ) | {"PBS_DPREFIX": "#MINE"}  # fmt: skip
    done = submit(*PBS, script(SUM), environment=environment)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert list(server.queue()) == [job]
    assert server.run("qdel", job).returncode == 0
    server.wait_until_empty()


@pytest.mark.needs("slurm")
def test_a_run_may_queue_for_longer_than_a_users_idle_timeout(
    cluster: SlurmTestbed, submit: Submit, script: Callable[[str], str]
) -> None:
    environment = {**cluster.environment, "DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT": "3s"}
    words = (*SLURM, "--directive=--begin=now+15")
    done = submit(*words, script(SUM), environment=environment, timeout=120)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT


def test_a_users_lifetime_of_workers_is_not_for_a_runs(
    submit: Submit, script: Callable[[str], str]
) -> None:
    source = """
        import time
        from distributed import Client
        with Client() as client:
            client.gather(client.map(lambda n: time.sleep(0.5), range(12)))
            print("RESULT 210")
    """
    lifetime = {
        "DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION": "2s",
        "DASK_DISTRIBUTED__WORKER__LIFETIME__RESTART": "True",
    }
    words = ("--on", "local", "--no-nsys", "--threads-per-worker", "1")
    done = submit(*words, script(source), environment=lifetime)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert done.manifest["merged"]["workers_found"] == 1


WRITES = """
    import os
    from distributed import Client

    def write(number):
        os.makedirs(f"out/{number}")
        open(f"out/{number}/part", "w").close()

    with Client() as client:
        client.gather(client.map(write, ["a", "b"]))
    open("out/script", "w").close()
"""


def writes_as_asked(folder: Path, done: Path, umask: int) -> None:
    """Check the modes of what script and tasks wrote, and that what is ours is closed."""
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    assert {p.stat().st_mode & 0o777 for p in folder.glob("[ab]")} == {0o777 & ~umask}
    ours = [path for path in (done, *done.rglob("*")) if path.stat().st_mode & 0o077]
    assert ours == []


@pytest.mark.parametrize("umask", [0o022, 0o002])
@pytest.mark.needs("nsys")
def test_what_tasks_write_has_the_users_umask(
    umask: int, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        for number, nsys in enumerate(("--nsys", "--no-nsys")):
            done = submit("--on", "local", nsys, script(WRITES), runs=tmp_path / f"runs{number}")
            assert done.code == 0, done.err
            writes_as_asked(tmp_path / "out", done.directory, umask)
            subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
    finally:
        os.umask(before)


@pytest.mark.needs("slurm")
def test_so_it_has_of_a_detached_run(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        done = subprocess.run(
            command("submit", *SLURM, "--no-report", "--detach", script(WRITES)),
            cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    wait_until_over(directory)
    cluster.wait_until_idle()
    writes_as_asked(tmp_path / "out", directory, 0o027)


def test_so_it_has_on_pbs_whose_jobs_have_077(
    server: OpenPbsTestbed, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        done = submit(*PBS, script(WRITES), environment=server.environment)
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    writes_as_asked(tmp_path / "out", done.directory, 0o022)


@pytest.mark.needs("nsys")
@pytest.mark.parametrize("name", ["we%pird", "a%h%n", "50%%", "%q{HOME}"])
def test_a_runs_path_is_taken_as_it_stands(
    name: str, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    runs = tmp_path / name / "runs"
    done = submit("--on", "local", "--nsys", script(SUM), runs=runs)
    assert done.code == 0, done.err
    (report,) = (done.directory / "nsight").glob("*.nsys-rep")
    assert report.stat().st_mode & 0o077 == 0
    assert done.manifest["merged"]["reports_found"] == 1


def in_small_rooms(words: list[str], mounts: str) -> list[str]:
    """Have a command see file systems of its own."""
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *words]


@pytest.mark.needs("nsys")
@pytest.mark.parametrize(
    ("mounts", "tmpdir", "said"),
    [
        ("true", "/nowhere", "TMPDIR, /nowhere, cannot be used (no such file or directory)"),
        ("mount -t tmpfs -o size=4m tmpfs {t}", "{t}", "TMPDIR, {t}, has 4 MiB left, and nsys"),
        ("mount -t tmpfs -o ro tmpfs {t}", "{t}", "TMPDIR, {t}, cannot be used (read-only"),
        ("mount -t tmpfs -o size=1m tmpfs /dev/shm", "/tmp", "/dev/shm has 1 MiB left"),
    ],
    ids=["missing", "small", "read-only", "shared memory"],
)
def test_a_node_without_room_for_nsys_runs_without_and_says_why(
    mounts: str, tmpdir: str, said: str, script: Callable[[str], str], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts, tmpdir, said = (text.format(t=small) for text in (mounts, tmpdir, said))
    if subprocess.run(in_small_rooms(["true"], mounts), capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here: run the test as root")
    words = ["--on", "local", "--no-report", "--prologue", f"export TMPDIR={tmpdir}"]
    job = [*words, "--runs-dir", str(tmp_path / "runs"), script(SUM)]
    for nsys, code in (([], 0), (["--nsys"], 71)):
        done = subprocess.run(
            in_small_rooms(command("submit", *nsys, *job), mounts),
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if not nsys:
            assert done.stdout.splitlines()[0] == RESULT
            (directory,) = (tmp_path / "runs").iterdir()
            notes = "\n".join(json.loads((directory / "run.json").read_text())["notes"])
            assert f"nsys cannot work here: {said}" in notes
        else:
            assert f"nsys cannot work here: {said}" in done.stderr
