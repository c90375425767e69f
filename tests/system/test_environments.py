"""The installed command with the lowest versions it allows, and with the Dask of dask-cuda."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dasf_hpc import open_trace

ROOT = Path(__file__).parents[2]

#: Every end that an execution has, each under a key of another kind, and each in a ledger.
STORM = """
    import os, signal, time
    from distributed import Client, Reschedule, wait

    LEDGER = os.path.abspath("ledger")

    def end(key, state):
        with open(LEDGER, "a") as ledger:
            ledger.write(f"{key}|{os.getpid()}|{state}\\n")

    def first_time(key):
        try:
            os.close(os.open(f"{LEDGER}-{key[0]}-{key[1]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def work(key, *needed):
        end(key, "memory")
        return key

    def fail(key):
        end(key, "error")
        raise ValueError(key)

    def flaky(key):
        if first_time(key):
            fail(key)
        return work(key)

    def again(key):
        if first_time(key):
            end(key, "rescheduled")
            raise Reschedule
        return work(key)

    def die(key):
        if first_time(key):
            end(key, "lost")
            os.kill(os.getpid(), signal.SIGKILL)
        return work(key)

    with Client() as client:
        keys = [("work-0a1b2c3d", i, 0) for i in range(500)]
        some = client.map(work, keys, key=keys)
        keys = [f"more-{i}" for i in range(100)]
        more = [client.submit(work, k, *some[i : i + 3], key=k) for i, k in enumerate(keys)]
        ends = {"fail": fail, "flaky": flaky, "again": again}
        others = [
            client.submit(f, (name, i), key=(name, i), retries=int(name == "flaky"), pure=False)
            for name, f in ends.items()
            for i in range(10)
        ]
        wait([*some, *more, *others], timeout=60)
        assert [f.status for f in others[:10]] == ["error"] * 10
        assert [f.status for f in others[10:]] == ["finished"] * 20
        # the last one, for what its worker held is computed again
        assert client.submit(die, ("die", 99), key=("die", 99)).result(60) == ("die", 99)
        wait([*some, *more, *others], timeout=60)
"""


@pytest.fixture(scope="module", params=["oldest", "dask-cuda"])
def environment(request: pytest.FixtureRequest, python_of: Callable[[str], Path]) -> Path:
    """Give the Python of an environment."""
    return python_of(request.param)


@pytest.mark.needs("environments", "nsys")
def test_every_execution_of_a_storm_is_in_the_trace(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "storm.py").write_text(textwrap.dedent(STORM))
    done = subprocess.run(
        [
            environment.with_name("dasf-hpc"), "submit", "--on", "local", "--nsys",
            "--workers-per-node", "2", "--threads-per-worker", "2", "storm.py",
        ],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    ledger = Counter(
        tuple(line.split("|")) for line in (tmp_path / "ledger").read_text().splitlines()
    )
    with open_trace(run) as trace:
        tasks = trace.tasks
        pids = trace.processes["pid"].to_numpy()[tasks["process"]]
        recorded = Counter(
            zip(tasks["key"].astype(str), map(str, pids), tasks["state"].astype(str), strict=True)
        )
        ranges = trace.reports["compute_ranges"].sum()
        linked = trace.reports["linked"].sum()
    assert recorded == ledger
    assert {state for _, _, state in ledger} == {"memory", "error", "rescheduled", "lost"}
    # All but what a killed worker, whose report its nsys cannot write, ran.
    assert ranges == linked > 0
    assert json.loads((run / "run.json").read_text())["exit_code"] == 0
    assert (run / "report.html").stat().st_size > 100_000


@pytest.mark.needs("environments", "nsys")
def test_plugins_record_all_that_they_record_here(environment: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_plugins.py"]
    done = subprocess.run(
        [environment, "-P", *words], cwd=ROOT, env=os.environ | {"PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


#: The last distributed that runs tasks through another function than the one that is wrapped.
UNKNOWN = "2024.10.0"

PLAIN = """
    import sys
    from distributed import Client, LocalCluster
    from dasf_hpc import WorkerTaskPlugin

    def work(number):
        return number

    if __name__ == "__main__":
        with Client(LocalCluster(n_workers=2, dashboard_address=":0")) as client:
            client.register_plugin(WorkerTaskPlugin(directory="journals"))
            client.gather(client.map(work, range(20)))
"""


@pytest.mark.needs("environments")
def test_a_dask_whose_executions_cannot_be_seen_is_told_in_the_trace(tmp_path: Path) -> None:
    packages = [f"{name}=={UNKNOWN}" for name in ("dask", "distributed")]
    words = ["install", "-q", "--no-deps", "-t", str(tmp_path / "site"), *packages]
    subprocess.run([sys.executable, "-m", "pip", *words], stdin=subprocess.DEVNULL, check=True)
    (tmp_path / "plain.py").write_text(textwrap.dedent(PLAIN))
    path = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
    subprocess.run(
        [sys.executable, "plain.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL, timeout=120, check=True,
    )  # fmt: skip
    merge = [str(Path(sys.executable).with_name("dasf-hpc")), "merge", "--strict", "."]
    done = subprocess.run(merge, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 80
    assert f"distributed {UNKNOWN} runs tasks in a way that is not known" in done.stderr
    with open_trace(tmp_path) as trace:
        assert (trace.tasks["prefix"] == "work").sum() == 20
        assert (trace.tasks["thread"] == 0).all()
        gaps = dict(zip(trace.gaps["kind"], trace.gaps["reason"], strict=True))
        assert set(gaps) == {"executions from transitions", "not available"}
        assert "calls actors in a way not known here" in gaps["not available"]
