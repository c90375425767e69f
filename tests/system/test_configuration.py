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
