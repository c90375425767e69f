"""``with dasf_hpc.record(client)``: a block on a cluster that is there is a run of its own.

What a trace must hold is counted by a plugin of the test's own on the scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import pytest
from distributed import Client, LocalCluster, performance_report, wait
from distributed.diagnostics.plugin import SchedulerPlugin
from ports import free_ports
from system.conftest import Submit, command
from testbed.slurm import SlurmTestbed

import dasf_hpc
from dasf_hpc import RecordWarning, record
from dasf_hpc.block import RecordedRun
from dasf_hpc.errors import RunDirectoryError, SettingsError, TraceFileError
from dasf_hpc.profile.attach import AWAY_S

QUIET = {"dashboard_address": ":0", "memory_limit": 0, "threads_per_worker": 2}


def counter(name: str = "counter") -> SchedulerPlugin:
    """Make a plugin that counts executions by key; sent as it stands, to a scheduler anywhere."""

    class Counter(SchedulerPlugin):  # type: ignore[misc]
        def __init__(self) -> None:
            self.name = name
            self.counts: dict[str, int] = {}

        def transition(self, key: Any, start: str, finish: str, *args: Any, **more: Any) -> None:
            if start == "processing" and finish in ("memory", "erred"):
                self.counts[str(key)] = self.counts.get(str(key), 0) + 1

    return Counter()


@contextlib.contextmanager
def counting(client: Client, name: str = "counter") -> Iterator[dict[str, int]]:
    """Count every execution of a block, by key."""
    counts: dict[str, int] = {}
    client.register_plugin(counter(name))
    yield counts
    counts |= client.run_on_scheduler(
        lambda dask_scheduler: dict(dask_scheduler.plugins[name].counts)
    )
    client.unregister_scheduler_plugin(name)


def recorded(run: RecordedRun) -> dict[str, int]:
    """Give the executions of a trace, by key."""
    counts = run.trace.tasks["key"].astype(str).value_counts()
    return {str(key): int(count) for key, count in counts.items() if count}


def ended(run: RecordedRun) -> list[str]:
    """Give how each worker's journal ended."""
    processes = run.trace.processes
    return list(processes["ended"][processes["role"] == "worker"].astype(str))


def left_behind(client: Client) -> list[str]:
    """Give the names of what a block left on the cluster."""
    names = client.run_on_scheduler(
        lambda dask_scheduler: [*dask_scheduler.plugins, *dask_scheduler.worker_plugins]
    )
    for there in client.run(lambda dask_worker: list(dask_worker.plugins)).values():
        names += there
    return [name for name in names if "dasf" in name]


def napping() -> Callable[..., int]:
    """Make the task; sent as it stands, to workers that cannot import this module."""

    def nap(number: int, seconds: float = 0.005) -> int:
        import time

        time.sleep(seconds)
        return number + 1

    return nap


nap = napping()


@pytest.fixture
def no_warning() -> Iterator[None]:
    """Have a warning of a block fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordWarning)
        yield


@pytest.fixture(params=[True, False], ids=["processes", "threads"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Give the client of a cluster as a notebook has it, of two workers."""
    folder = str(tmp_path / "scratch")
    with (
        LocalCluster(n_workers=2, processes=request.param, local_directory=folder, **QUIET) as own,
        Client(own) as client,
    ):
        yield client


# ------------------------------------------------------------------------- a notebook's cluster


@pytest.mark.usefixtures("no_warning")
def test_every_task_of_the_block_and_no_other_is_in_its_trace(
    client: Client, tmp_path: Path
) -> None:
    client.gather(client.map(nap, range(20), key=[f"before-{i}" for i in range(20)]))
    with record(client, tmp_path) as run, counting(client) as counts:
        assert "recording" in repr(run)
        client.gather(client.map(nap, range(100), pure=False))
        assert float(da.ones((40, 40), chunks=10).sum().compute()) == 1600
    client.gather(client.map(nap, range(20), key=[f"after-{i}" for i in range(20)]))

    assert len(counts) > 110
    assert recorded(run) == counts
    assert ended(run) == ["closed", "closed"]
    assert run.problems == []
    assert run.summary is not None
    assert sum(run.summary.tasks.values()) == sum(counts.values())
    assert run.report == run.directory / "report.html"
    assert left_behind(client) == []


@pytest.mark.usefixtures("no_warning")
def test_what_went_between_workers_before_the_block_is_not_of_it(
    client: Client, tmp_path: Path
) -> None:
    def transfer(name: str) -> None:
        one, two = sorted(client.scheduler_info()["workers"])
        data = client.submit(bytes, 100_000, key=f"{name}-data", workers=[one])
        wait(client.submit(len, data, key=f"{name}-len", workers=[two]))

    transfer("before")
    with record(client, tmp_path, report=False) as run:
        transfer("within")
    transfers = run.trace.transfers
    assert sorted(transfers["direction"].astype(str)) == ["incoming", "outgoing"]
    assert (run.trace.activities["action"] == "transfer").sum() == 1


@pytest.mark.usefixtures("no_warning")
def test_a_block_is_a_run_like_any_other(client: Client, tmp_path: Path) -> None:
    with record(client, tmp_path, name="my block") as run:
        client.gather(client.map(nap, range(10)))
    path = run.directory
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700
    environment = os.environ | {"COLUMNS": "200"}
    for words in (
        ("show", "--strict", str(path)),
        ("runs", str(tmp_path)),
        ("analyze", "where", str(path)),
        ("report", str(path)),
        ("merge", str(path)),
    ):
        done = subprocess.run(command(*words), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        if words[0] == "runs":
            assert re.search(rf"{path.name}\s+complete\s+record", done.stdout), done.stdout
    assert sorted(p.suffix for p in (path / "journals").iterdir()) == [".journal"] * 4


@pytest.mark.usefixtures("no_warning")
def test_two_blocks_one_after_the_other_and_one_inside_the_other(
    client: Client, tmp_path: Path
) -> None:
    def work(name: str) -> set[str]:
        keys = [f"{name}-{i}" for i in range(12)]
        client.gather(client.map(nap, range(12), key=keys))
        return set(keys)

    with record(client, tmp_path, report=False) as first:
        one = work("one")
    with record(client, tmp_path, report=False) as second:
        two = work("two")
        with record(client, tmp_path, report=False) as inner:
            three = work("three")
        four = work("four")
    assert recorded(first) == dict.fromkeys(one, 1)
    assert recorded(second) == dict.fromkeys(two | three | four, 1)
    assert recorded(inner) == dict.fromkeys(three, 1)
    assert len({first.directory, second.directory, inner.directory}) == 3
    assert left_behind(client) == []


@pytest.mark.usefixtures("no_warning")
def test_blocks_that_overlap_each_end_for_themselves(client: Client, tmp_path: Path) -> None:
    one, two = (record(client, tmp_path, report=False) for _ in range(2))
    one.__enter__()
    client.submit(nap, 1, key="a").result()
    two.__enter__()
    client.submit(nap, 2, key="b").result()
    one.__exit__(None, None, None)
    client.submit(nap, 3, key="c").result()
    two.__exit__(None, None, None)
    assert recorded(one) == {"a": 1, "b": 1}
    assert recorded(two) == {"b": 1, "c": 1}


@pytest.mark.usefixtures("no_warning")
def test_it_works_beside_a_performance_report(client: Client, tmp_path: Path) -> None:
    page = tmp_path / "dask.html"
    with performance_report(str(page)), record(client, tmp_path / "runs") as run:
        client.gather(client.map(nap, range(10)))
    with record(client, tmp_path / "runs") as other, performance_report(str(page)):
        client.gather(client.map(nap, range(10, 20)))
    assert page.stat().st_size > 1000
    assert len(run.trace.tasks) == len(other.trace.tasks) == 10


def test_an_exception_of_the_block_passes_after_what_was_recorded_is_merged(
    client: Client, tmp_path: Path
) -> None:
    for kind in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(kind), record(client, tmp_path, report=False) as run:  # noqa: PT012
            client.gather(client.map(nap, range(10), pure=False))
            raise kind
        assert len(run.trace.tasks) == 10
        assert ended(run) == ["closed", "closed"]
        text = (run.directory / "run.json").read_text()
        assert f"The block ended with {kind.__name__}" in text
        assert '"state": "complete"' in text
    assert left_behind(client) == []


def test_tasks_that_still_run_at_the_end_are_told_of(client: Client, tmp_path: Path) -> None:
    with (  # noqa: PT031
        pytest.warns(RecordWarning, match="1 task.* still running"),
        record(client, tmp_path, report=False) as run,
    ):
        future = client.submit(nap, 1, seconds=2.0, key="long")
        time.sleep(0.5)
    assert run.trace.tasks["state"].tolist() == ["lost"]
    assert future.result() == 2


@pytest.mark.usefixtures("no_warning")
def test_a_worker_that_joins_late_is_recorded(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, local_directory=str(tmp_path / "s"), **QUIET) as cluster,
        Client(cluster) as client,
        record(client, tmp_path, report=False) as run,
        counting(client) as counts,
    ):
        client.gather(client.map(nap, range(10), pure=False))
        cluster.scale(2)
        client.wait_for_workers(2)
        late = [a for a, name in client.run(lambda dask_worker: dask_worker.name).items() if name]
        client.gather(client.map(nap, range(30), pure=False, workers=late))
    assert recorded(run) == counts
    assert len(ended(run)) == 2
    tasks = run.trace.tasks
    assert sorted(tasks["process"].value_counts()) == [10, 30]


def test_a_worker_that_is_killed_leaves_what_it_did(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, local_directory=str(tmp_path / "s"), **QUIET) as cluster,
        Client(cluster) as client,
        record(client, tmp_path, report=False) as run,
    ):
        client.gather(client.map(nap, range(40), pure=False))
        time.sleep(0.3)  # what was recorded is on file 0.1 s later
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        time.sleep(0.5)
    assert len(run.trace.tasks) == 40
    assert "killed" in ended(run)


def test_a_cluster_that_dies_in_the_block_leaves_what_is_on_disk(tmp_path: Path) -> None:
    cluster = LocalCluster(n_workers=1, local_directory=str(tmp_path / "s"), **QUIET)
    client = Client(cluster)
    with (  # noqa: PT031
        pytest.warns(RecordWarning, match=r"cluster was left|does not answer"),
        record(client, tmp_path, report=False) as run,
    ):
        client.gather(client.map(nap, range(10)))
        client.close()
        cluster.close()
    assert len(run.trace.tasks) == 10
    assert '"state": "partial"' in (run.directory / "run.json").read_text()


def test_a_run_directory_that_is_deleted_in_the_block_costs_the_recording_alone(
    client: Client, tmp_path: Path
) -> None:
    with (  # noqa: PT031
        pytest.warns(RecordWarning, match="There is no run at"),
        record(client, tmp_path, report=False) as run,
    ):
        total = sum(client.gather(client.map(nap, range(10), pure=False)))
        deadline = time.monotonic() + 20  # what is just starting would make it again
        while len(list((run.directory / "journals").glob("*.journal"))) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shutil.rmtree(run.directory)
    assert total == 55
    assert run.summary is None
    with pytest.raises(TraceFileError):
        run.trace  # noqa: B018
    assert "There is no run at" in repr(run)
    assert "no trace" in run._repr_html_()
    assert left_behind(client) == []


def test_a_warning_that_is_an_error_leaves_nothing_attached(
    by_hand: ByHand, tmp_path: Path
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(MISSING)
    by_hand.worker("bad", path=str(tmp_path / "path"))
    with by_hand.client(1) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RecordWarning)
            with pytest.raises(RecordWarning), record(client, tmp_path):
                pass
        assert left_behind(client) == []


def test_what_it_is_used_for_wrongly_is_a_sentence(client: Client, tmp_path: Path) -> None:
    run = record(client, tmp_path)
    with pytest.raises(SettingsError, match="has not begun"):
        run.directory  # noqa: B018
    with run:
        with pytest.raises(TraceFileError, match="before its block has ended"):
            run.trace  # noqa: B018
        with pytest.raises(SettingsError, match="recorded already"):
            run.__enter__()

    async def wrong() -> None:
        async with record(client, tmp_path):
            pass

    with pytest.raises(SettingsError, match="not asynchronous"):
        asyncio.run(wrong())
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunDirectoryError, match=r"give another to record\(client, DIRECTORY\)"),
        record(client, tmp_path / "file"),
    ):
        pass


def test_without_a_client_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no Dask client"):
        record(None, tmp_path)


def test_an_asynchronous_client_is_recorded_with_async_with(tmp_path: Path) -> None:
    async def program() -> tuple[RecordedRun, dict[str, int]]:
        async with (
            LocalCluster(
                n_workers=2, asynchronous=True, local_directory=str(tmp_path / "s"), **QUIET
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            with pytest.raises(SettingsError, match="async with"), record(client, tmp_path):
                pass
            await client.register_plugin(counter())
            async with record(client, tmp_path) as run:
                await client.gather(client.map(nap, range(50), pure=False))
            counts = await client.run_on_scheduler(
                lambda dask_scheduler: dict(dask_scheduler.plugins["counter"].counts)
            )
            return run, counts

    run, counts = asyncio.run(program())
    assert len(counts) == 50
    assert recorded(run) == counts
    assert run.problems == []


INTERRUPTED = """
    import time
    from distributed import Client
    import dasf_hpc

    if __name__ == "__main__":
        with Client(n_workers=2, dashboard_address=":0") as client:
            with dasf_hpc.record(client, "runs") as run:
                client.gather(client.map(lambda x: x, range(30), pure=False))
                future = client.submit(time.sleep, 100, key="endless")
                print("in", flush=True)
                future.result()
"""


def test_ctrl_c_in_a_terminal_ends_the_block_and_leaves_its_trace(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(textwrap.dedent(INTERRUPTED))
    process = subprocess.Popen(
        [sys.executable, "job.py"], cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    time.sleep(0.5)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of its processes
    _, said = process.communicate(timeout=90)
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    (run,) = (tmp_path / "runs").iterdir()
    with dasf_hpc.open_trace(run) as trace:
        states = trace.tasks["state"].astype(str).value_counts()
    assert states["memory"] == 30
    assert states["lost"] == 1
    assert time.monotonic() - began < 30, "waited for workers that are gone"


# --------------------------------------------------------------------------------- two clients


@pytest.mark.usefixtures("no_warning")
def test_two_clients_in_threads_have_a_trace_each(client: Client, tmp_path: Path) -> None:
    both_inside, both_done = threading.Barrier(2), threading.Barrier(2)
    runs: dict[str, RecordedRun] = {}

    def program(name: str) -> None:
        with (
            Client(client.scheduler.address, set_as_default=False) as own,
            record(own, tmp_path / name, report=False) as run,
        ):
            runs[name] = run
            both_inside.wait(60)
            own.gather(own.map(nap, range(10), key=[f"{name}-{i}" for i in range(10)]))
            both_done.wait(60)

    threads = [threading.Thread(target=program, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    everything = {f"{name}-{i}": 1 for name in "ab" for i in range(10)}
    assert recorded(runs["a"]) == recorded(runs["b"]) == everything
    assert left_behind(client) == []


PLAIN = """
    import sys
    from distributed import Client
    from dasf_hpc import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
    with Client(sys.argv[1]) as client:
        client.register_plugin(WorkerTaskPlugin())
        client.register_plugin(ResourceMonitor())
        client.register_plugin(GPUAnnotationPlugin())
        print(sum(client.gather(client.map(lambda x: x, range(40), pure=False))))
"""


def test_plain_plugins_of_a_second_program_make_journals_of_their_own(
    client: Client, tmp_path: Path
) -> None:
    if not client.scheduler.address.startswith("tcp"):
        pytest.skip("another program cannot reach this one")
    script = tmp_path / "plain.py"
    script.write_text(textwrap.dedent(PLAIN))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, str(script), client.scheduler.address],
            cwd=tmp_path / name, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == "780\n"
        (journals,) = (tmp_path / name / "runs").glob("*/journals")
        found.append(journals)
    assert "records this cluster into" in done.stderr
    assert str(found[0]) in done.stderr
    names = client.run(lambda dask_worker: [n for n in dask_worker.plugins if "Trace" in n])
    for there in names.values():
        assert len(there) == 2
        assert there[0] == "TracePlugin"
    for name in {name for there in names.values() for name in there}:
        client.unregister_worker_plugin(name)
    for number, journals in enumerate(found):
        subprocess.run(command("merge", str(journals.parent)), check=True, capture_output=True)
        with dasf_hpc.open_trace(journals.parent) as trace:
            # the first one's plugins stay, and record the second one's tasks, too
            assert len(trace.tasks) == (80, 40)[number]


# ------------------------------------------------------------------- clusters started by hand


@dataclass
class ByHand:
    """``dask scheduler`` and ``dask worker`` as programs, in folders of their own."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, before: str = "", path: str | None = None) -> None:
        """Start the scheduler, as `worker` does a worker."""
        self.run("scheduler", "distributed.cli.dask_scheduler", "--port", "0", "--host",
                 "127.0.0.1", "--dashboard-address", ":0",
                 "--scheduler-file", str(self.folder / "scheduler.json"),
                 before=before, path=path)  # fmt: skip

    def worker(self, name: str, before: str = "", path: str | None = None) -> Path:
        """Start a worker, after shell commands in a mount namespace of its own; gives its folder.

        Its folder of temporary files is there.
        """
        if not self.processes:
            self.start()
        return self.run(
            name, "distributed.cli.dask_worker",
            "--scheduler-file", str(self.folder / "scheduler.json"), "--name", name,
            "--nthreads", "2", "--no-dashboard", "--local-directory", str(self.folder / name),
            before=before, path=path,
        )  # fmt: skip

    def run(
        self, name: str, module: str, *words: str, before: str = "", path: str | None = None
    ) -> Path:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        line = [sys.executable, "-m", module, *words]
        if before:
            script = f'{before}\nexec "$@"'
            line = ["unshare", "--mount", "bash", "-ec", script, "bash", *line]
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        if path is not None:
            environment["PYTHONPATH"] = path
        with (folder / "log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
            )
        return folder

    def client(self, workers: int) -> Client:
        client = Client(scheduler_file=str(self.folder / "scheduler.json"), timeout=60)
        client.wait_for_workers(workers, 90)
        return client


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[ByHand]:
    """Give a cluster whose scheduler and workers are to be started by hand."""
    cluster = ByHand(tmp_path / "cluster")
    try:
        yield cluster
    finally:
        for process in cluster.processes[1:]:
            process.terminate()
        for process in reversed(cluster.processes):  # without a scheduler a worker takes 8 s to end
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def mount_namespaces() -> None:
    """Skip where this user has no mount namespaces."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare (package util-linux)")
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no mount namespace of our own: {done.stderr.decode().strip()} (be root)")


@pytest.mark.usefixtures("no_warning", "mount_namespaces")
def test_journals_come_through_dask_where_no_folder_is_shared(
    by_hand: ByHand, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    hide = f"mount -t tmpfs none {runs}"
    folders = [by_hand.worker(f"far{i}", hide) for i in range(2)]
    near = by_hand.worker("near")
    with by_hand.client(3) as client:
        with record(client, runs) as run, counting(client) as counts:
            seen = client.run(os.path.isdir, str(run.directory))
            assert sorted(seen.values()) == [False, False, True]
            client.gather(client.map(nap, range(300), pure=False))
        assert left_behind(client) == []
    assert sum(counts.values()) == 300
    assert recorded(run) == counts
    assert ended(run) == ["closed"] * 3
    assert run.trace.tasks["process"].nunique() == 3
    roles = run.trace.processes["role"].astype(str).value_counts().to_dict()
    # two of the recorder processes are far ones', whose folders of temporary files differ
    assert roles == {"worker": 3, "scheduler": 1, "sampler": 3}
    assert len(run.trace.node_samples) > 3
    assert list((run.directory / "journals").glob(".*")) == []
    for folder in (*folders, near):
        assert list((folder / "tmp").glob("dasf-hpc*")) == [], "left behind"


@pytest.mark.usefixtures("mount_namespaces")
def test_a_journal_larger_than_a_message_comes_in_pieces(
    by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasf_hpc.block.PIECE", 10_000)
    runs = tmp_path / "runs"
    runs.mkdir()
    hide = f"mount -t tmpfs none {runs}"
    by_hand.start(hide)
    by_hand.worker("far", hide)
    with by_hand.client(1) as client, record(client, runs, report=False) as run:
        client.gather(client.map(nap, range(500), seconds=0, pure=False))
    assert len(run.trace.tasks) == 500
    assert ended(run) == ["closed"]
    assert sorted(run.trace.processes["role"]) == ["sampler", "scheduler", "worker"]
    for folder in by_hand.folder.glob("*/tmp"):
        assert list(folder.glob("dasf-hpc*")) == [], "left behind"
    assert max(p.stat().st_size for p in (run.directory / "journals").glob("worker-*")) > 50_000


MISSING = "import sys\nsys.modules['dasf_hpc'] = None\n"


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("sitecustomize.py", MISSING, "dasf-hpc cannot be imported there"),
        ("dasf_hpc/__init__.py", "__version__ = '0.0.9'\n", "it has dasf-hpc 0.0.9, the client"),
        ("dasf_hpc/__init__.py", "raise RuntimeError('broken here')\n", "broken here"),
    ],
    ids=["missing", "other version", "broken"],
)
def test_the_client_is_told_of_a_worker_that_cannot_record(
    by_hand: ByHand, tmp_path: Path, file: str, text: str, why: str
) -> None:
    path = tmp_path / "path" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    by_hand.worker("good")
    by_hand.worker("bad", path=str(tmp_path / "path"))
    with by_hand.client(2) as client:
        with pytest.warns(RecordWarning, match=why) as told:
            run = record(client, tmp_path / "runs", report=False).__enter__()
        try:
            assert [w.filename for w in told] == [__file__]
            (problem,) = run.problems
            assert re.match(r"Worker bad at tcp://\S+ is not recorded: ", problem)
            # and one that comes while the block lasts comes in spite of it, and is told of
            by_hand.worker("worse", path=str(tmp_path / "path"))
            client.wait_for_workers(3, 60)
            addresses = client.run(lambda dask_worker: dask_worker.name)
            for address, name in addresses.items():
                client.submit(nap, 1, key=f"on-{name}", workers=[address]).result()
            # gone before the block's end
            client.retire_workers([a for a, name in addresses.items() if name == "worse"])
        finally:
            with pytest.warns(RecordWarning, match=f"Worker worse .*{why}"):
                run.__exit__(None, None, None)
        assert left_behind(client) == []
    assert recorded(run) == {"on-good": 1}
    assert len(run.problems) == 2
    gaps = run.trace.gaps
    reasons = gaps["reason"][gaps["kind"] == "worker without journal"].astype(str)
    assert sorted(reason.split()[1] for reason in reasons) == ["bad", "worse"]
    assert '"state": "partial"' in (run.directory / "run.json").read_text()
    html = run._repr_html_()
    assert "Worker worse" in html


def test_workers_are_recorded_where_the_scheduler_has_no_dasf_hpc(
    by_hand: ByHand, tmp_path: Path
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(MISSING)
    by_hand.start(path=str(tmp_path / "path"))
    by_hand.worker("one")
    with by_hand.client(1) as client:
        with pytest.warns(RecordWarning, match=r"scheduler records nothing: .*dasf_hpc"):
            run = record(client, tmp_path, report=False).__enter__()
        client.gather(client.map(nap, range(10), pure=False))
        run.__exit__(None, None, None)
    assert len(run.problems) == 1
    assert len(run.trace.tasks) == 10
    assert ended(run) == ["closed"]


@pytest.mark.usefixtures("mount_namespaces")
def test_the_client_is_told_of_a_worker_that_may_write_nowhere(
    by_hand: ByHand, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    bad = by_hand.worker("bad", "true")
    by_hand.worker("good")
    with by_hand.client(2) as client:
        pids = client.run(lambda dask_worker: (dask_worker.name, os.getpid()))
        (pid,) = (pid for name, pid in pids.values() if name == "bad")
        assert str(bad / "tmp") in client.run(tempfile.gettempdir).values()
        for folder in (runs, bad):
            subprocess.run(
                ["nsenter", "-t", str(pid), "-m", "mount", "-t", "tmpfs", "-o", "ro", "none",
                 str(folder)], check=True,
            )  # fmt: skip
        with pytest.warns(RecordWarning, match=r"Worker bad .*: no folder .*can be written"):
            run = record(client, runs, report=False).__enter__()
        client.gather(client.map(nap, range(20), pure=False))
        run.__exit__(None, None, None)
    assert len(run.problems) == 1
    assert 0 < len(run.trace.tasks) < 20
    assert "worker without journal" in set(run.trace.gaps["kind"])


def test_a_worker_that_does_not_answer_keeps_no_other_waiting(
    by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasf_hpc.block.ANSWER_S", 8.0)
    by_hand.worker("good")
    by_hand.worker("still")
    with by_hand.client(2) as client:
        pids = client.run(lambda dask_worker: (dask_worker.name, os.getpid()))
        (pid,) = (pid for name, pid in pids.values() if name == "still")
        try:
            with (  # noqa: PT031
                pytest.warns(
                    RecordWarning,
                    match=r"Worker still .* did not end its recording: no answer in 8 s",
                ),
                record(client, tmp_path, report=False) as run,
            ):
                client.gather(client.map(nap, range(20), pure=False))
                os.kill(pid, signal.SIGSTOP)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert len(run.trace.tasks) == 20
    assert sorted(ended(run)) == ["closed", "unknown"]


def test_a_scheduler_that_is_killed_in_the_block_leaves_what_is_on_disk(
    by_hand: ByHand, tmp_path: Path
) -> None:
    by_hand.worker("one")
    client = by_hand.client(1)
    with (  # noqa: PT031
        pytest.warns(RecordWarning, match=r"cluster was left|does not answer"),
        record(client, tmp_path / "runs", report=False) as run,
    ):
        client.gather(client.map(nap, range(10), pure=False))
        by_hand.processes[0].kill()
        by_hand.processes[0].wait()
        began = time.monotonic()
    assert time.monotonic() - began < 25
    client.close(timeout=5)
    assert len(run.trace.tasks) == 10
    assert '"state": "partial"' in (run.directory / "run.json").read_text()


TOGETHER = """
    import sys, time
    from pathlib import Path
    from distributed import Client
    import dasf_hpc

    name = sys.argv[2]
    with Client(scheduler_file=sys.argv[1]) as client, dasf_hpc.record(client, name) as run:
        Path(name + "-is-in").touch()
        while not (Path("a-is-in").exists() and Path("b-is-in").exists()):
            time.sleep(0.01)
        keys = [f"{name}-{i}" for i in range(20)]
        client.gather(client.map(lambda x: x, range(20), key=keys))
        Path(name + "-is-done").touch()
        while not (Path("a-is-done").exists() and Path("b-is-done").exists()):
            time.sleep(0.01)
    print(run.problems, run.directory)
"""


def test_two_programs_that_record_one_cluster_at_once_have_a_trace_each(
    by_hand: ByHand, tmp_path: Path
) -> None:
    (tmp_path / "together.py").write_text(textwrap.dedent(TOGETHER))
    by_hand.worker("one")
    by_hand.client(1).close()
    programs = [
        subprocess.Popen(
            [sys.executable, "together.py", str(by_hand.folder / "scheduler.json"), name],
            cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    said = [program.communicate(timeout=90)[0].split() for program in programs]
    for problems, directory in said:
        assert problems == "[]"
        with dasf_hpc.open_trace(tmp_path / directory) as trace:
            keys = sorted(trace.tasks["key"])
            assert set(trace.processes["ended"]) == {"closed"}
        assert keys == sorted(f"{name}-{i}" for name in "ab" for i in range(20))
    assert said[0] != said[1]


def lose_connection(client: Client) -> None:
    """Break a client's connection to the scheduler, and wait until it is there again."""
    before = client.scheduler_comm
    client.loop.add_callback(before.comm.abort)
    deadline = time.monotonic() + 30
    while client.status != "running" or client.scheduler_comm is before:
        assert time.monotonic() < deadline, "not connected again"
        time.sleep(0.05)


def test_a_client_that_loses_its_connection_for_a_moment_goes_on_recording(
    by_hand: ByHand, tmp_path: Path
) -> None:
    by_hand.worker("one")
    with by_hand.client(1) as client, record(client, tmp_path, report=False) as run:
        client.submit(nap, 1, key="before").result()
        lose_connection(client)
        time.sleep(AWAY_S + 1)
        client.submit(nap, 1, key="after").result()
    assert run.problems == []
    assert recorded(run) == {"before": 1, "after": 1}


def test_a_client_that_is_killed_leaves_no_recording_behind(
    by_hand: ByHand, tmp_path: Path
) -> None:
    by_hand.worker("one")
    program = (
        "import os, sys\nfrom distributed import Client\nimport dasf_hpc\n"
        "client = Client(scheduler_file=sys.argv[1])\n"
        "dasf_hpc.record(client, 'runs').__enter__()\n"
        "client.submit(sum, [1, 2]).result()\n"
        "print('in', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    with by_hand.client(1) as client:
        done = subprocess.run(
            [sys.executable, "-c", program, str(by_hand.folder / "scheduler.json")],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout == "in\n", done.stderr
        deadline = time.monotonic() + 20
        while left_behind(client) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left_behind(client) == []
    (run,) = (tmp_path / "runs").iterdir()
    subprocess.run(command("merge", str(run)), check=True, capture_output=True)
    with dasf_hpc.open_trace(run) as trace:
        assert len(trace.tasks) == 1
        assert set(trace.processes["ended"]) == {"closed"}


# ------------------------------------------------------------------------ clusters of many hosts

SLURM = """
    import sys, time
    from dask_jobqueue import SLURMCluster
    from distributed import Client
    import dasf_hpc
    import json

    def work(number):
        time.sleep(0.01)
        return number

    with SLURMCluster(
        cores=2, memory="8GB", processes=1, interface="lo", log_directory="logs",
        scheduler_options={"dashboard_address": ":0"}, local_directory="/tmp",
    ) as cluster, Client(cluster) as client:
        cluster.scale(jobs=2)
        client.wait_for_workers(2, timeout=120)
        with dasf_hpc.record(client, "runs") as run:
            futures = client.map(work, range(200), pure=False)
            client.gather(futures)
        print(json.dumps({"keys": [f.key for f in futures], "run": str(run.directory),
                          "problems": run.problems}))
"""


@pytest.mark.needs("slurm")
def test_an_existing_slurm_cluster_whose_hosts_have_clocks_of_their_own(
    slurm: SlurmTestbed, tmp_path: Path
) -> None:
    slurm.wait_until_idle()
    (tmp_path / "job.py").write_text(textwrap.dedent(SLURM))
    done = subprocess.run(
        [sys.executable, "job.py"],
        cwd=tmp_path, env={**os.environ, **slurm.environment}, timeout=240,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["problems"] == []
    with dasf_hpc.open_trace(tmp_path / said["run"]) as trace:
        assert sorted(trace.tasks["key"]) == sorted(said["keys"])
        workers = trace.processes[trace.processes["role"] == "worker"]
        hosts = set(trace.nodes["hostname"].iloc[workers["node"]])
        assert len(hosts) == 2
        assert hosts < set(slurm.nodes)
        # Their clocks are hours apart: only by round trips do times lie within the block.
        assert trace.tasks["start"].min() >= 0
        assert trace.tasks["stop"].max() < 100e9
        clocks = trace.clocks
        far = clocks[clocks["clock"] != trace.attributes["reference_clock"]]
        assert len(far) == 2
        assert set(far["source"]) == {"probes"}, clocks.to_string()
        assert far["bound"].between(0, 50_000_000).all()


def sshd_words(folder: Path, port: int) -> list[str]:
    """Write the files of an SSH server for this user on loopback and give its command."""
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPermitRootLogin yes\n"
        f"PidFile {folder}/pid\n"
    )
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert sshd is not None
    return [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]


@pytest.mark.usefixtures("no_warning")
def test_an_ssh_cluster(tmp_path: Path) -> None:
    pytest.importorskip("asyncssh")
    if shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("there is no sshd (apt-get install openssh-server)")
    from distributed import SSHCluster

    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = free_ports()
    server = subprocess.Popen(sshd_words(folder, port), stderr=subprocess.DEVNULL)
    try:
        options = {
            "port": port, "known_hosts": None, "client_keys": [str(folder / "user")],
        }  # fmt: skip
        wait_for_port(port)
        with (
            SSHCluster(
                ["127.0.0.1"] * 3,
                connect_options=options,
                worker_options={"nthreads": 1, "dashboard": False},
                scheduler_options={"port": 0, "dashboard_address": ":0"},
                remote_python=sys.executable,
            ) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(2, 60)
            with record(client, tmp_path / "runs") as run, counting(client) as counts:
                client.gather(client.map(nap, range(60), pure=False))
        assert recorded(run) == counts
        assert len(counts) == 60
        assert ended(run) == ["closed", "closed"]
    finally:
        server.terminate()
        server.wait(20)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


IN_SUBMIT = """
    import time
    from distributed import Client
    import dasf_hpc

    def work(number):
        time.sleep(0.005)
        return number

    with Client() as client:
        client.gather(client.map(work, range(20), key=[f"out-{i}" for i in range(20)]))
        with dasf_hpc.record(client, "blocks") as run:
            client.gather(client.map(work, range(30), key=[f"in-{i}" for i in range(30)]))
        print(run.problems, len(run.trace.tasks))
"""


@pytest.mark.needs("nsys")
def test_a_block_inside_a_run_of_submit_leaves_both_whole(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    done = submit("--on", "local", script(IN_SUBMIT))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "[] 30"
    (block,) = (tmp_path / "blocks").iterdir()
    inside, outside = {f"in-{i}" for i in range(30)}, {f"out-{i}" for i in range(20)}
    with dasf_hpc.open_trace(block) as trace:
        assert sorted(trace.tasks["key"]) == sorted(inside)
    with dasf_hpc.open_trace(done.directory) as trace:
        assert sorted(trace.tasks["key"]) == sorted(inside | outside)
        # a second range around a task would be counted, too
        (ranges,) = trace.reports["compute_ranges"]
        assert ranges == 50
    assert done.manifest["state"] == "complete"
