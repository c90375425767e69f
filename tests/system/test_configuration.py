"""Dask's configuration of who calls `submit` stays as it is, and a run does not depend on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask
import pytest
from system.conftest import command

from dasf_hpc.launch.connection import connect
from dasf_hpc.launch.local import LocalLauncher
from dasf_hpc.launch.shape import RunPlace
from dasf_hpc.manifest import FOLDERS
from dasf_hpc.settings import load_settings

SUBMIT_HERE = """
    import copy, json, sys
    import dask
    from dasf_hpc import submit
    from dasf_hpc.errors import DasfHpcError
    from dasf_hpc.settings import load_settings

    if __name__ == "__main__":
        settings = {"on": "local", "nsys": False, "report": False, "runs_dir": "runs"}
        before = copy.deepcopy(dask.config.config)
        result = submit(load_settings(settings), "job.py")
        assert dask.config.config == before, "after a run"
        print(repr(result))
        print(len(result._repr_html_()))
        try:
            submit(load_settings(settings | {"memory": "1MB", "start_timeout": 5}), "job.py")
        except DasfHpcError as error:
            print("failed:", error)
        assert dask.config.config == before, "after a run that failed"
"""


def test_submit_leaves_no_dask_configuration_behind(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "from distributed import Client\n"
        "if __name__ == '__main__':\n    Client().submit(sum, [1, 2]).result()\n"
    )
    (tmp_path / "here.py").write_text(textwrap.dedent(SUBMIT_HERE))
    done = subprocess.run(
        [sys.executable, "here.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    result = next(line for line in lines if line.startswith("<RunResult"))
    assert re.search(r"1 task on 1 worker of 1 node, .* exit code 0>", result)
    assert any(line.startswith("failed:") for line in lines), done.stdout


def test_a_node_job_whose_worker_is_restarted_stays_whatever_dask_is_set_to(
    tmp_path: Path,
) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    settings = load_settings({"on": "local", "nsys": False, "tls": False})
    launcher = LocalLauncher(settings, RunPlace(tmp_path, "a-run", tmp_path), None)
    # So long after it saw a worker last, SpecCluster ends its job.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.3s"}):
        try:
            launcher.start()
            launcher.wait_for_workers(1, lambda there, why: None)
            with connect(launcher.cluster) as client:
                ((address, pid),) = client.run(os.getpid).items()
                # A nanny does not restart a worker that it has not seen start.
                started = {address: "running"}
                while (
                    client.run(lambda dask_worker: dask_worker.status.name, nanny=True) != started
                ):
                    time.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + 60
                while address in (there := launcher.cluster.scheduler.workers) or not there:
                    assert time.monotonic() < deadline, "no other worker"
                    time.sleep(0.05)
            time.sleep(0.5)
            assert len(launcher.jobs()) == 1
        finally:
            launcher.stop()
        assert dask.config.get("distributed.deploy.lost-worker-timeout") == "0.3s"


def configured(tmp_path: Path, content: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Give what a run with dask-jobqueue's configuration would submit."""
    folder = tmp_path / "dask"
    folder.mkdir(exist_ok=True)
    text = textwrap.indent(textwrap.dedent(content), "    ")
    (folder / "jobqueue.yaml").write_text(f"jobqueue:\n  slurm:\n{text}")
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "job.py").write_text("pass\n")
    return subprocess.run(
        command("submit", "--on", "slurm", "--dry-run", *words, "job.py"),
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "DASK_CONFIG": str(folder), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip


def test_dask_jobqueues_configuration_is_taken_and_never_beats_an_option(tmp_path: Path) -> None:
    content = """
        log-directory: /nonexistent/logs
        job-cpu: 3
        job-mem: 3000MB
        local-directory: $TMPDIR/dask
        env-extra: ["module load old-name"]
        shebang: "#!/bin/bash -l"
        job-directives-skip: ["--cpus-per-task"]
    """
    plain = configured(tmp_path, content)
    assert plain.returncode == 0, plain.stderr
    lines = plain.stdout.splitlines()
    assert lines[0] == "#!/bin/bash -l"
    assert "#SBATCH --mem=3G" in lines
    assert not any("--cpus-per-task" in line or "/nonexistent" in line for line in lines)
    assert "module load old-name" in lines
    assert '--local-directory "${TMPDIR:?is not set on this node}/dask"' in plain.stdout
    asked = configured(
        tmp_path, content, "--memory", "8GB", "--local-directory", "/scratch", "--prologue", "true"
    )
    assert "#SBATCH --mem=8G" in asked.stdout
    assert "--local-directory /scratch" in asked.stdout
    assert "module load old-name" not in asked.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('shebang: "#!/bin/csh"', "runs no shell of sh's kind"),
        ('job-directives-skip: ["-J"]', "leaves out the name of a node job"),
        ("job-mem: much", "job-mem in jobqueue.yaml"),
    ],
)
def test_what_would_break_a_run_there_is_refused(tmp_path: Path, content: str, says: str) -> None:
    done = configured(tmp_path, content)
    assert done.returncode == 64
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_not_heeded_there_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "x.yaml").write_text(
        "jobqueue:\n  local:\n    log-directory: /nonexistent/logs\n    cores: 36\n"
        "    death-timeout: 600\n"
    )
    (tmp_path / "job.py").write_text("pass\n")
    done = subprocess.run(
        command("submit", "--on", "local", "--no-nsys", "--no-report", "job.py"),
        cwd=tmp_path, capture_output=True, text=True,
        env={
            **os.environ, "DASK_CONFIG": str(folder),
            "DASK_DISTRIBUTED__WORKER__RESOURCES__GPU": "1",
            "DASK_DISTRIBUTED__WORKER__RESOURCES__small": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "log-directory in dask-jobqueue's configuration is not heeded" in said
    assert "cores in dask-jobqueue's configuration is not heeded: --threads-per-worker" in said
    assert "death-timeout in dask-jobqueue's configuration is not heeded: workers wait 60" in said
    assert "RESOURCES__GPU gives workers the resource 'gpu'" in said
    assert "--resources 'GPU=1' gives them 'GPU'" in said
    assert "RESOURCES__small" not in said
