"""Batch templates: the head as a batch job, one allocation for all, a sweep, on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from readme import readme_command
from system.conftest import NO_REPORT, Submit, command
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace
from dasf_hpc.errors import ProgramMissingError, SettingsError
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.head import filled_template
from dasf_hpc.settings import load_settings
from dasf_hpc.systems import SYSTEMS

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("dasf-hpc")

JOB = """
    import socket, sys, time
    from distributed import Client

    def where(number, seconds):
        time.sleep(seconds)
        open(f"done-{number}", "w").close()
        return socket.gethostname()

    seconds = float(sys.argv[1]) if sys.argv[1:] else 0.02
    with Client() as client:
        print("ran on", *sorted(set(client.gather(client.map(where, range(40), seconds=seconds)))))
"""


@pytest.fixture
def cluster(slurm: SlurmTestbed) -> Iterator[SlurmTestbed]:
    """Give the testbed with all hosts idle; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield slurm
    wait_until(lambda: slurm.queue() == [], 60, "an empty queue")


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds:g} s"
        time.sleep(0.2)


def run(
    cluster: SlurmTestbed,
    folder: Path,
    *words: str,
    code: int = 0,
    more: Mapping[str, str] | None = None,
) -> str:
    """Run a program as a user of the cluster does, and give what it prints."""
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **cluster.environment, **(more or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{words}: {done.stderr}\n{done.stdout}"
    return done.stdout


def run_readme(
    cluster: SlurmTestbed, folder: Path, part: str, more: Mapping[str, str] | None = None
) -> str:
    """Run a command of the README as a user does: dasf-hpc on PATH, the templates at hand."""
    for name in ("slurm", "pbs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"DASF_HPC_INTERFACE": "lo", "DASF_HPC_MEMORY": "8GB", **NO_REPORT, **(more or {})}
    words = ("bash", "-euo", "pipefail", "-c", readme_command("batch", part))
    return run(cluster, folder, *words, more={"PATH": path, **settings})


def manifest(directory: Path) -> dict[str, Any]:
    """Read run.json."""
    content: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return content


def said(folder: Path) -> str:
    """Give what batch jobs submitted from here said."""
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("slurm-*.out"))


@pytest.mark.parametrize(
    ("system", "kind"), [(system, kind) for system in SYSTEMS for kind in SYSTEMS[system].templates]
)
def test_templates_are_clean_as_they_are_and_filled_in(
    system: str, kind: str, tmp_path: Path
) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    filled = subprocess.run(
        command(
            "template", system, kind, "--partition", "gpu", "--account", "abc", "--walltime",
            "1-02:00:00", "--prologue", "module load cuda", "--directive=--qos=debug",
        ),
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    mark = SYSTEMS[system].mark
    assert f"{mark} --qos=debug\n" in filled
    assert "\nmodule load cuda\n" in filled
    assert "26:00:00" in filled
    assert f"{PROGRAM}" in filled
    for text in (filled, (ROOT / system / SYSTEMS[system].templates[kind]).read_text()):
        done = subprocess.run([checker, "-"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_an_unknown_template_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        command("template", "pbs", "sweep"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 64
    assert "there are: head, allocation, array" in done.stderr


def test_the_readmes_template_is_printed(tmp_path: Path) -> None:
    words = readme_command("batch", "dasf-hpc template")
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True
    )
    (written,) = tmp_path.iterdir()
    assert "\n#SBATCH --account=abc123\n" in written.read_text()
    assert "\nmodule load cuda\n" in written.read_text()


def test_a_head_may_live_longer_than_its_nodes(
    tmp_path: Path, script: Callable[[str], str]
) -> None:
    given = {"walltime": "01:00:00", "head_walltime": "1-00:00:00"}
    for system, kind, limit in (
        ("slurm", "head", "#SBATCH --time=24:00:00\n"),
        ("slurm", "allocation", "#SBATCH --time=01:00:00\n"),
        ("pbs", "array", "#PBS -l walltime=24:00:00\n"),
    ):
        assert limit in filled_template(system, kind, load_settings(given))
    words = ("--walltime", "01:00:00", "--head-walltime", "1-00:00:00")
    (tmp_path / "sbatch").symlink_to("/bin/true")
    printed = subprocess.run(
        command("submit", "--dry-run", "--detach", "--on", "slurm", *words, script("pass"), "word"),
        cwd=tmp_path, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "#SBATCH --time=24:00:00\n" in printed
    assert "job.py word\n" in printed
    assert re.search(r"#SBATCH -t 01:00:00", printed)


@pytest.mark.parametrize(
    ("template", "given", "says"),
    [
        ("slurm/array.sbatch", {}, "give the file of parameters"),
        ("slurm/array.sbatch", {"line": "'never closed"}, "unmatched"),
        ("slurm/dasf-hpc.sbatch", {}, "dasf-hpc: not found"),
        ("slurm/allocation.sbatch", {}, "dasf-hpc: not found"),
        ("pbs/dasf-hpc.pbs", {}, "give the words of dasf-hpc submit"),
        ("pbs/dasf-hpc.pbs", {"RUN": "'never closed"}, "unmatched"),
        ("pbs/dasf-hpc.pbs", {"RUN": "job.py", "PBS_O_WORKDIR": "/nonexistent"}, "/nonexistent"),
        ("pbs/allocation.pbs", {}, "give the words of dasf-hpc submit"),
        ("pbs/allocation.pbs", {"RUN": "'never closed"}, "unmatched"),
        ("pbs/allocation.pbs", {"RUN": "job.py"}, "dasf-hpc: not found"),
        ("pbs/array.pbs", {}, "give the file of parameters"),
        ("pbs/array.pbs", {"line": "1"}, "give the words of dasf-hpc submit"),
        ("pbs/array.pbs", {"line": "'never closed", "RUN": "job.py"}, "unmatched"),
    ],
)
def test_a_template_that_lacks_something_says_what_and_runs_nothing(
    template: str, given: dict[str, str], says: str, tmp_path: Path
) -> None:
    given = {**given, "SLURM_ARRAY_TASK_ID": "1", "PBS_ARRAY_INDEX": "1"}
    words = []
    if "line" in given:
        (tmp_path / "sweep.txt").write_text(given.pop("line") + "\n")
        given["PARAMETERS"] = "sweep.txt"
        words = ["sweep.txt", "job.py"]
    done = subprocess.run(
        ["bash", str(ROOT / template), *words],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PBS_NODEFILE": "/dev/null", **given},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert says in done.stderr, done.stderr


@pytest.mark.needs("slurm", "nsys")
def test_a_detached_run_is_listed_logged_and_complete(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    begun = time.monotonic()
    directory = Path(run_readme(cluster, tmp_path, "--detach", {"DASF_HPC_NSYS": "true"}).strip())
    assert time.monotonic() - begun < 20
    # The head has a time limit of its own.
    limit = ("squeue", "--noheader", "--jobs", manifest(directory)["head_job"], "--format=%l")
    assert run(cluster, tmp_path, *limit).strip() == "4:00:00"

    def state() -> str:
        (listed,) = json.loads(run(cluster, tmp_path, *command("runs", "--json")))
        assert listed["name"] == directory.name
        return str(listed["state"])

    assert state() in ("queued", "running")
    wait_until(lambda: state() not in ("queued", "running"), 120, "end of the run")
    assert state() == "complete", run(cluster, tmp_path, *command("logs", str(directory), "head"))
    assert "ran on node" in run(cluster, tmp_path, *command("logs", str(directory)))
    assert "Tasks" in run(cluster, tmp_path, *command("logs", str(directory), "head"))
    with open_trace(directory) as trace:
        assert len(trace.tasks) == 40
        assert list(trace.reports["status"]) == ["joined"] * 2


@pytest.mark.needs("slurm")
def test_a_detached_run_is_cancelled_while_it_waits_and_while_it_runs(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    words = ["--on", "slurm", "--interface", "lo", "--no-nsys"]
    out = run(
        cluster,
        tmp_path,
        *command("submit", "--detach", *words, "--directive=--hold"),
        "job.py",
        "0",
    )
    waiting = Path(out.strip())
    assert "out of the queue" in run(cluster, tmp_path, *command("cancel", str(waiting)))
    assert manifest(waiting)["state"] == "failed"
    out = run(cluster, tmp_path, *command("submit", "--detach", *words), "job.py", "5")
    running = Path(out.strip())
    wait_until(lambda: manifest(running)["state"] == "running", 60, "running job")
    assert "has ended" in run(cluster, tmp_path, *command("cancel", str(running)))
    assert manifest(running)["exit_code"] == 130


@pytest.mark.needs("slurm")
def test_a_head_that_cannot_begin_is_told(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    words = command("submit", "--detach", "--on", "slurm", "--partition", "nosuch", "job.py", "0")
    run(cluster, tmp_path, *words, code=70)
    (refused,) = (tmp_path / "runs").iterdir()
    assert manifest(refused)["state"] == "failed"
    words = command("submit", "--detach", "--on", "slurm", "--prologue", "exit 3", "job.py", "0")
    dead = Path(run(cluster, tmp_path, *words).strip())
    wait_until(lambda: cluster.queue() == [], 60, "end of the head")

    def states() -> dict[str, str]:
        listed = json.loads(run(cluster, tmp_path, *command("runs", "--json")))
        return {entry["name"]: entry["state"] for entry in listed}

    wait_until(lambda: states()[dead.name] == "abandoned", 30, "word that the head is gone")


def test_detach_needs_a_batch_scheduler(submit: Submit, script: Callable[[str], str]) -> None:
    done = submit("--detach", "--on", "local", script("pass"))
    assert done.code == 64
    assert not done.runs.exists()


@pytest.mark.needs("slurm", "nsys")
def test_the_head_and_a_sweep_as_batch_jobs(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    run_readme(cluster, tmp_path, "slurm/dasf-hpc.sbatch", {"DASF_HPC_NSYS": "true"})
    wait_until(lambda: cluster.queue() == [], 120, "end of the run")
    (first,) = (tmp_path / "runs").iterdir()
    assert manifest(first)["state"] == "complete", said(tmp_path)
    (tmp_path / "sweep.txt").write_text("0.001\n'0.002'\n")
    run_readme(cluster, tmp_path, "slurm/array.sbatch", {"DASF_HPC_NSYS": "false"})
    wait_until(lambda: cluster.queue() == [], 120, "end of the sweep")
    sweep = [manifest(path) for path in (tmp_path / "runs").iterdir() if path != first]
    assert sorted(content["arguments"] for content in sweep) == [["0.001"], ["0.002"]]
    assert {content["state"] for content in sweep} == {"complete"}, said(tmp_path)


@pytest.mark.needs("slurm", "nsys")
def test_one_allocation_has_workers_on_every_node(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    more = {"DASF_HPC_NSYS": "true", "SBATCH_MEM_PER_NODE": "9G"}
    run_readme(cluster, tmp_path, "slurm/allocation.sbatch", more)
    wait_until(lambda: cluster.queue() == [], 120, "end of the allocation")
    (directory,) = (tmp_path / "runs").iterdir()
    content = manifest(directory)
    assert content["state"] == "complete", said(tmp_path)
    assert len(content["stop"]["by_themselves"]) == 3
    assert "ran on node1 node2 node3" in (directory / "logs" / "job.out").read_text()
    with open_trace(directory) as trace:
        assert len(trace.tasks) == 40
        assert list(trace.reports["status"]) == ["joined"] * 3
        assert trace.reports["linked"].sum() == 40


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize("ending", ["walltime", "scancel"])
def test_an_allocation_that_ends_early_keeps_what_was_recorded(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path, ending: str
) -> None:
    script(JOB)
    out = run(
        cluster, tmp_path, "sbatch", "--parsable", "--nodes=2", "--mem=9G", "--time=1",
        str(ROOT / "slurm" / "allocation.sbatch"), "--interface", "lo", "--nsys",
        "--walltime-margin", "30", "job.py", "0.5" if ending == "scancel" else "4",
        more={"DASF_HPC": str(PROGRAM)},
    )  # fmt: skip
    runs = tmp_path / "runs"
    wait_until(lambda: bool(list(runs.glob("*/logs/job.out"))), 60, "running job")
    (directory,) = runs.iterdir()
    if ending == "scancel":
        wait_until(lambda: len(list(tmp_path.glob("done-*"))) >= 4, 60, "tasks that are done")
        run(cluster, tmp_path, "scancel", out.strip())
    wait_until(lambda: cluster.queue() == [], 120, "end of the allocation")
    if ending == "scancel":
        run(cluster, tmp_path, *command("merge", str(directory)))
    else:
        assert manifest(directory)["exit_code"] == 72, said(tmp_path)
    with open_trace(directory) as trace:
        assert (trace.tasks["state"] == "memory").sum() > 0
        assert list(trace.reports["status"]) == ["joined"] * 2, trace.reports.to_string()


@pytest.mark.needs("slurm")
def test_a_head_ends_its_run_before_its_own_time_limit(
    cluster: SlurmTestbed, script: Callable[[str], str], tmp_path: Path
) -> None:
    script(JOB)
    (tmp_path / "sweep.txt").write_text("3\n4\n")
    options = ("--interface", "lo", "--no-nsys", "--memory", "2GB")
    more = {"DASF_HPC": str(PROGRAM), **NO_REPORT}
    batch = ("sbatch", "--mem=500M", "--time=1")
    templates = ROOT / "slurm"
    for words in (
        (*batch, str(templates / "dasf-hpc.sbatch"), *options, "job.py", "5"),
        (*batch, "--array=1-2", str(templates / "array.sbatch"), "sweep.txt", *options, "job.py"),
        command(
            "submit", "--detach", "--on", "slurm", "--head-walltime", "00:01:00", *options,
            "job.py", "6",
        ),
    ):  # fmt: skip
        run(cluster, tmp_path, *words, more=more)
    wait_until(lambda: cluster.queue() == [], 180, "end of the heads")
    directories = sorted((tmp_path / "runs").iterdir())
    assert sorted(manifest(path)["arguments"][0] for path in directories) == ["3", "4", "5", "6"]
    for directory in directories:
        content = manifest(directory)
        assert content["exit_code"] == 72, said(tmp_path)
        assert content["error"].startswith("The head's time limit was near")
        assert content["stop"]["cancelled"] == []
        with open_trace(directory) as trace:
            assert (trace.tasks["state"] == "memory").sum() > 0
    assert "DUE TO TIME LIMIT" not in said(tmp_path)


def test_an_allocation_needs_a_job_and_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"on": "allocation"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SettingsError, match="this is no batch job"):
        choose_launcher(settings)
    for variable, program in (("PBS_NODEFILE", "pbsdsh"), ("SLURM_JOB_NODELIST", "srun")):
        monkeypatch.setenv(variable, "node1")
        with pytest.raises(ProgramMissingError, match=f"needs {program}, which is not on PATH"):
            choose_launcher(settings)
