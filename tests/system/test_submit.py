"""The main job, end to end: a script goes to a cluster and comes back as one trace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system.conftest import Submit, command
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

TASKS = 2000

STORM = f"""
    import sys, time
    from distributed import Client

    def work(number):
        time.sleep(0.002)
        return number

    with Client() as client:
        futures = client.map(work, range({TASKS}), pure=False)
        assert client.gather(futures) == list(range({TASKS}))
        print("\\n".join(future.key for future in futures))
"""


@pytest.fixture
def batch(
    request: pytest.FixtureRequest, slurm: SlurmTestbed
) -> Iterator[tuple[str, SlurmTestbed]]:
    """Give a batch scheduler by name; nothing may be left in its queue."""
    slurm.wait_until_idle()
    yield request.param, slurm
    assert slurm.queue() == []


def three_nodes(on: str) -> list[str]:
    """Give the options of a run on the testbed's three hosts, a whole one each."""
    return [
        "--on", on, "--nodes", "3", "--workers-per-node", "2", "--threads-per-worker", "1",
        # More than half of a host's memory: no two node jobs fit on one.
        "--memory", "8GB", "--interface", "lo", "--nsys",
    ]  # fmt: skip


@pytest.mark.needs("slurm", "nsys")
@pytest.mark.parametrize("batch", ["slurm", "pbs"], indirect=True)
def test_three_hosts_give_every_task_once_and_every_report_joined(
    batch: tuple[str, SlurmTestbed], submit: Submit, script: Callable[[str], str]
) -> None:
    on, cluster = batch
    done = submit(*three_nodes(on), script(STORM), environment=cluster.environment)
    assert done.code == 0, done.err
    keys = done.out.split()
    assert len(keys) == TASKS

    with open_trace(done.directory) as trace:
        tasks = trace.tasks
        mine = tasks[tasks["prefix"] == "work"]
        assert sorted(mine["key"]) == sorted(keys)
        assert (tasks["state"] == "memory").all()
        assert (tasks["stop"] > tasks["start"]).all()

        workers = trace.processes[trace.processes["role"] == "worker"]
        assert len(workers) == 6
        hosts = trace.nodes["hostname"].iloc[workers["node"]]
        assert sorted(hosts) == sorted([*cluster.nodes] * 2)
        samplers = trace.processes[trace.processes["role"] == "sampler"]
        assert sorted(trace.nodes["hostname"].iloc[samplers["node"]]) == sorted(cluster.nodes)

        reports = trace.reports
        assert list(reports["status"]) == ["joined"] * 3
        assert reports["linked"].sum() >= 0.999 * reports["compute_ranges"].sum()
        assert reports["compute_ranges"].sum() == len(tasks)
        ranges = trace.nvtx_ranges
        compute = ranges[(ranges["domain"] == "compute") & (ranges["task"] >= 0)]
        assert sorted(compute["task"]) == list(range(len(tasks)))
        row = tasks.loc[compute["task"].to_numpy()]
        assert (compute["thread"].to_numpy() == row["thread"].to_numpy()).all()

        # The hosts' clocks are days apart: only corrected times can lie within the run.
        assert trace.clocks["bound"].between(0, 50_000_000).all()
        assert tasks["start"].min() >= 0
        assert tasks["stop"].max() < 300e9
        late = (compute["start"].to_numpy() - row["start"].to_numpy()).astype("int64")
        assert abs(late).max() < 60_000_000

    assert done.manifest["state"] == "complete"
    assert len(done.manifest["stop"]["by_themselves"]) == 3
    assert done.manifest["stop"]["cancelled"] == []
    assert not (done.directory / "tls").exists()


@pytest.mark.needs("nsys")
def test_the_example_runs_on_this_machine_and_is_merged(submit: Submit) -> None:
    done = submit("--on", "local", "--workers-per-node", "2", "example:seismic")
    assert done.code == 0, done.err
    assert "mean envelope" in done.out
    assert "mean envelope" in (done.directory / "logs" / "job.out").read_text()
    with open_trace(done.directory) as trace:
        assert list(trace.reports["status"]) == ["joined"]
        assert (trace.reports["linked"] == trace.reports["compute_ranges"]).all()
        assert {"analytic", "envelope", "normal"} <= set(trace.tasks["prefix"])
        assert len(trace.node_samples) > 5
        assert set(trace.process_samples["process"]) >= {
            row for row, role in enumerate(trace.processes["role"]) if role == "worker"
        }
        dependents = trace.dependents()
        assert len(dependents) > 0


def test_merge_and_show_repeat_what_submit_showed(submit: Submit, tmp_path: Path) -> None:
    done = submit(
        "--on", "local", "--no-nsys", "--json", "example:seismic", "--shape", "64", "64", "64"
    )
    assert done.code == 0, done.err
    shown = json.loads(done.out[done.out.index("{") :])
    assert shown["summary"]["tasks"]["memory"] > 10
    trace = done.directory / "trace.h5"
    first = trace.read_bytes()
    trace.unlink()
    for words in (["merge", str(done.directory), "--json"], ["show", str(trace), "--json"]):
        again = subprocess.run(command(*words), capture_output=True, text=True, check=True)
        assert json.loads(again.stdout)["summary"] == shown["summary"]
    assert len(trace.read_bytes()) == len(first)
    assert done.directory.stat().st_mode & 0o777 == 0o700


def test_the_scripts_exit_code_and_arguments_pass_through(
    submit: Submit, script: Callable[[str], str]
) -> None:
    job = script("""
        import sys
        from distributed import Client
        with Client() as client:
            print(client.submit(str.upper, sys.argv[1]).result(), sys.argv[2:])
        sys.exit(3)
    """)
    done = submit("--on", "local", "--no-nsys", job, "a b", "--nodes", "7")
    assert done.code == 3
    assert "A B ['--nodes', '7']" in done.out
    assert done.manifest["exit_code"] == 3
    with open_trace(done.directory) as trace:
        assert list(trace.tasks["state"]) == ["memory"]


def test_workers_that_come_back_are_recorded_too(
    submit: Submit, script: Callable[[str], str]
) -> None:
    job = script("""
        import os, signal, time
        from distributed import Client, get_worker

        def killed_once(path):
            try:
                open(path, "x").close()
            except FileExistsError:
                return os.getpid()
            os.kill(os.getpid(), signal.SIGKILL)

        with Client() as client:
            print(client.submit(killed_once, os.path.abspath("once"), key="victim").result())
    """)
    done = submit("--on", "local", "--no-nsys", job)
    assert done.code == 0, done.err
    with open_trace(done.directory) as trace:
        victim = trace.tasks[trace.tasks["key"] == "victim"]
        assert list(victim["state"]) == ["lost", "memory"]
        assert list(victim["attempt"]) == [1, 2]
        workers = trace.processes[trace.processes["role"] == "worker"]
        assert list(workers["ended"]) == ["killed", "closed"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nosuch.py"], 66, "nosuch.py does not exist"),
        (["notpython.py"], 66, "line 1"),
        (["example:nosuch"], 66, "example:seismic"),
        (["--walltime", "soon", "job.py"], 64, "00:30:00"),
        (["--memory", "lots", "job.py"], 64, "4GB"),
        (["--on", "local", "--nsys-path", "/nonexistent/nsys", "--nsys", "job.py"], 69, "nsys"),
        (["--on", "local", "--runs-dir", "/proc/nowhere", "job.py"], 73, "--runs-dir"),
        (["--on", "local", "--interface", "nosuch0", "job.py"], 75, "nosuch0"),
        (["--on", "local", "--gpus-per-node", "2", "--workers-per-node", "3", "job.py"], 64, "GPU"),
    ],
)
def test_bad_input_is_one_sentence_and_a_documented_code(
    words: list[str], code: int, says: str, submit: Submit, script: Callable[[str], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    script("print('never run')")
    (tmp_path / "notpython.py").write_text("this is ( not python")
    done = submit(*words)
    assert done.code == code, done.err
    assert done.err.startswith("dasf-hpc: ")
    assert done.err.count("\n") == 1
    assert says in done.err
    assert "never run" not in done.out


def test_a_missing_sbatch_is_named(submit: Submit, script: Callable[[str], str]) -> None:
    done = submit("--on", "slurm", script("pass"), environment={"PATH": "/nonexistent"})
    assert done.code == 69
    assert "sbatch" in done.err


def test_a_taken_port_is_named(submit: Submit, script: Callable[[str], str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = submit("--on", "local", "--scheduler-port", port, script("pass"))
    assert done.code == 75
    assert port in done.err


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("batch", ["slurm", "pbs"], indirect=True)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--partition", "nosuch"], "partition"),
        (["--memory", "4000GB"], "Memory specification"),
    ],
)
def test_what_the_batch_scheduler_refuses_is_told_in_its_own_words(
    batch: tuple[str, SlurmTestbed], words: list[str], says: str, submit: Submit,
    script: Callable[[str], str],
) -> None:  # fmt: skip
    on, cluster = batch
    done = submit(
        "--on", on, "--interface", "lo", *words, script("pass"), environment=cluster.environment
    )
    assert done.code == 70, done.err
    assert says in done.err
    assert done.err.count("\n") == 1


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("batch", ["slurm"], indirect=True)
def test_a_job_that_can_never_start_is_taken_back(
    batch: tuple[str, SlurmTestbed], submit: Submit, script: Callable[[str], str]
) -> None:
    on, cluster = batch
    done = submit(
        "--on", on, "--interface", "lo", "--threads-per-worker", "99", script("pass"),
        environment=cluster.environment,
    )  # fmt: skip
    assert done.code == 70, done.err
    assert "never start" in done.err


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("batch", ["slurm"], indirect=True)
def test_other_versions_on_the_workers_are_named(
    batch: tuple[str, SlurmTestbed], submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    on, cluster = batch
    # The workers' environment differs: its dask says that it is another version.
    site = tmp_path / "other"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '2020.1.0' if name == 'dask' else real(name)\n"
    )
    done = submit(
        "--on", on, "--interface", "lo", "--no-nsys",
        "--prologue", f"export PYTHONPATH={site}", script("pass"),
        environment=cluster.environment,
    )  # fmt: skip
    assert done.code == 74, done.err
    assert "2020.1.0" in done.err


def test_a_dry_run_prints_the_script_and_starts_nothing(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    done = submit("--dry-run", "--on", "local", "--nodes", "3", script("pass"))
    assert done.code == 0
    assert "dasf_hpc.launch.node" in done.out
    assert "distributed.cli.dask_worker tls://SCHEDULER:PORT" in done.out
    assert "--tls-key" in done.out
    assert "nsys profile --trace=cuda,nvtx,osrt" in done.out
    checked = subprocess.run(["bash", "-n"], input=done.out, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert not (tmp_path / "runs").exists()


def test_no_value_of_the_environment_is_written_anywhere(submit: Submit) -> None:
    secret = "planted-7f3c9a1e"
    done = submit(
        "--on", "local", "example:seismic", "--shape", "64", "64", "64",
        environment={"SITE_TOKEN": secret},
    )  # fmt: skip
    assert done.code == 0, done.err
    holding = [
        path
        for path in done.directory.rglob("*")
        # Nsight's own report holds the environment of what it profiled; we never copy it.
        if path.is_file() and path.parent.name != "nsight" and secret.encode() in path.read_bytes()
    ]
    assert holding == []
    assert not (done.directory / "tls").exists()
