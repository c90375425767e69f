"""Scripts that make a cluster of their own, or no client: the run's cluster, or recorded."""

from __future__ import annotations

import html
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from system.conftest import Submit, Submitted, command
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

HERE = ("--on", "local", "--no-nsys", "--workers-per-node", "2")

SUM = "print('RESULT', float(da.ones((200, 200), chunks=50).sum().compute()))"
RESULT = "RESULT 40000.0"
#: 16 sums of blocks, 5 of those, and in newer versions of Dask one more.
TASKS = (21, 22)

CLIENT = f"""
    import dask.array as da
    from dask.distributed import Client
    if __name__ == "__main__":
        client = Client(n_workers=4, threads_per_worker=2, memory_limit="1GB")
        {SUM}
"""

PROCESSES = f"""
    import dask.array as da
    from dask.distributed import Client
    client = Client(processes=False)
    {SUM}
"""

LOCAL_CLUSTER = f"""
    import dask.array as da
    from dask.distributed import Client, LocalCluster
    if __name__ == "__main__":
        with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
            assert isinstance(cluster, LocalCluster)
            assert client.cluster is cluster
            assert cluster.get_client() is client
            assert client.scheduler.address == cluster.scheduler_address
            assert cluster.scheduler.address == cluster.scheduler_address
            assert len(cluster.workers) == len(cluster.observed) == 2, cluster.workers
            assert cluster.dashboard_link == client.dashboard_link
            assert "workers=2" in repr(cluster)
            {SUM}
            # a second one, after the first one's end, and one beside it
        with LocalCluster() as cluster, Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result() == 3
"""

CONTROL = f"""
    import dask.array as da
    from distributed import Client, LocalCluster
    cluster = LocalCluster(n_workers=1)
    client = Client(cluster)
    cluster.scale(4)
    cluster.scale(4)
    adaptive = cluster.adapt(minimum=1, maximum=8)
    client.wait_for_workers(4)
    {SUM}
    adaptive.stop()
    try:
        cluster.worker_spec
    except AttributeError as error:
        print(error)
    client.shutdown()
    cluster.close()
"""

ASYNC = """
    import asyncio
    from distributed import Client, LocalCluster

    async def main():
        async with LocalCluster(n_workers=3, asynchronous=True) as cluster:
            async with Client(cluster, asynchronous=True) as client:
                cluster.scale(4)
                print(await client.submit(sum, [1, 2]), len(cluster.workers))
        async with Client(n_workers=1, asynchronous=True) as client:
            print(await client.gather(client.map(abs, [-1, 2])))

    asyncio.run(main())
"""

BATCH = """
    from dask_jobqueue import PBSCluster, SLURMCluster
    from distributed import Client
    for kind in (SLURMCluster, PBSCluster):
        cluster = kind(cores=1, processes=1, memory="1GB", walltime="00:05:00", queue="debug")
        cluster.scale(jobs=1)
        with Client(cluster) as client:
            print("RESULT", client.submit(sum, [1, 2]).result(), "dask worker" in
                  cluster.job_script().replace("distributed.cli.dask_worker", "dask worker"))
        cluster.close()
"""

ADDRESS = """
    from distributed import Client
    with Client("tcp://10.255.255.1:8786", timeout=20) as client:
        print("RESULT", client.submit(sum, [1, 2]).result())
    with Client(scheduler_file="/nowhere/scheduler.json") as client:
        print("RESULT", client.submit(sum, [1, 3]).result())
"""

OWN_ADDRESS = """
    import os, subprocess, sys
    from distributed import Client
    with Client(os.environ["DASK_SCHEDULER_ADDRESS"]) as client:
        print("RESULT", client.submit(sum, [1, 2]).result())
    with Client(scheduler_file=os.environ["DASF_HPC_SCHEDULER_FILE"]) as client:
        print("RESULT", client.submit(sum, [1, 3]).result())
    # a program that the script starts
    other = "from distributed import Client; print(Client({}).submit(sum, [{}]).result())"
    for words, number in (("", "1, 4"), (f"scheduler_file={sys.argv[1]!r}", "1, 5")):
        subprocess.run([sys.executable, "-c", other.format(words, number)], check=True)
"""

NO_CLIENT = f"""
    import dask.array as da
    {SUM}
"""

THREADS = """
    import dask, dask.array as da
    print('RESULT', float(da.ones((200, 200), chunks=50).sum().compute(scheduler="threads")))
    with dask.config.set(scheduler="synchronous"):
        da.ones(3).sum().compute()
"""

#: A cluster of a maker that is not known.
OTHER = f"""
    import dask.array as da
    from distributed import Client, Nanny, Scheduler, SpecCluster
    if __name__ == "__main__":
        worker = {{"cls": Nanny, "options": {{"nthreads": 1}}}}
        scheduler = {{"cls": Scheduler, "options": {{"dashboard": False}}}}
        with SpecCluster(workers={{0: worker, 1: worker}}, scheduler=scheduler) as cluster:
            with Client(cluster) as client, Client(cluster.scheduler_address):
                {SUM}
"""


def tasks(done: Submitted) -> int:
    """Give the number of executions of a run."""
    with open_trace(done.directory) as trace:
        return len(trace.tasks)


def notes(done: Submitted) -> list[str]:
    """Give what the run said to the script's user; the summary and standard error say the same."""
    said = [
        line.removeprefix("dasf-hpc: ")
        for line in (done.directory / "logs" / "job.err").read_text().splitlines()
        if line.startswith("dasf-hpc: ")
    ]
    assert set(said) <= set(done.manifest["notes"])
    return said


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


INSTEAD = "has the run's 2 workers in place of a cluster of its own"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            CLIENT,
            "Client(n_workers=4, threads_per_worker=2, memory_limit) of the script " + INSTEAD,
        ),
        (PROCESSES, "Client(processes=False) of the script " + INSTEAD),
        (NO_CLIENT, "the script makes no Client: what it computes goes to the run's 2 workers"),
    ],
    ids=["client", "processes", "no client"],
)
def test_what_a_script_asks_of_dask_comes_to_the_run(
    source: str, said: str, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(source))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert tasks(done) in TASKS
    (note,) = notes(done)
    assert note.startswith(said)
    assert "UserWarning" not in done.err


def test_a_local_cluster_is_the_runs(submit: Submit, script: Callable[[str], str]) -> None:
    done = submit(*HERE, script(LOCAL_CLUSTER))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert tasks(done) - 1 in TASKS
    assert [note.partition(" of ")[0] for note in notes(done)] == [
        "LocalCluster(n_workers=3, threads_per_worker=1)", "LocalCluster()",
    ]  # fmt: skip
    assert done.manifest["merged"]["workers_found"] == 2


def test_scale_adapt_and_shutdown_are_told_of_once(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(CONTROL), timeout=60)
    assert done.code == 0, done.err
    result, lacking = done.out.splitlines()[:2]
    assert result == RESULT
    assert "which has no 'worker_spec' (--own-cluster record" in lacking
    assert [" ".join(note.split()[:2]) for note in notes(done)] == [
        "LocalCluster(n_workers=1) of", "cluster.scale of", "cluster.adapt of", "the script",
        "client.shutdown of",
    ]  # fmt: skip
    # the run ended as ever: its workers left by themselves
    assert done.manifest["state"] == "complete"
    assert len(done.manifest["stop"]["by_themselves"]) == 1


def test_so_it_is_for_asynchronous_scripts(submit: Submit, script: Callable[[str], str]) -> None:
    done = submit(*HERE, script(ASYNC))
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["3 2", "[1, 2]"]
    assert tasks(done) == 3


def test_clusters_of_dask_jobqueue_submit_nothing(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(BATCH))
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["RESULT 3 True"] * 2
    assert [note.partition("(")[0] for note in notes(done)] == [
        "SLURMCluster", "cluster.scale of the script has no effect: the run has 2 workers ",
        "PBSCluster",
    ]  # fmt: skip


def test_an_address_of_another_scheduler_is_the_runs(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(ADDRESS))
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["RESULT 3", "RESULT 4"]
    assert [note.partition(" of ")[0] for note in notes(done)] == [
        "Client('tcp://10.255.255.1:8786')", "Client('/nowhere/scheduler.json')",
    ]  # fmt: skip


def test_the_runs_own_address_and_file_need_no_word(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(OWN_ADDRESS), "{scheduler_file}")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:4] == ["RESULT 3", "RESULT 4", "5", "6"]
    assert notes(done) == []
    assert not (done.directory / "scheduler.json").exists()


def test_a_cluster_of_another_maker_is_recorded(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(OTHER))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert tasks(done) in TASKS
    (note,) = notes(done)
    assert note.startswith("the script has a cluster of its own")
    assert done.manifest["merged"]["workers_found"] == 4


OWN = f"""
    import dask.array as da
    from dask.distributed import Client, LocalCluster
    if __name__ == "__main__":
        with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
            {SUM}
"""


@pytest.mark.parametrize(
    "source", [CLIENT, PROCESSES, OWN], ids=["client", "processes", "local cluster"]
)
def test_own_clusters_can_be_kept_and_recorded(
    source: str, submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, "--own-cluster", "record", script(source))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    assert tasks(done) in TASKS
    with open_trace(done.directory) as trace:
        used = trace.processes["address"].astype(str)[trace.tasks["process"].unique()]
        assert not used.str.startswith("tls").any()
    (note,) = notes(done)
    assert note.startswith("the script has a cluster of its own")


@pytest.mark.needs("slurm")
def test_a_batch_cluster_of_the_scripts_own_is_recorded(
    submit: Submit, script: Callable[[str], str], slurm: SlurmTestbed
) -> None:
    slurm.wait_until_idle()
    source = """
        from dask_jobqueue import SLURMCluster
        from distributed import Client
        with SLURMCluster(
            cores=1, memory="500MB", walltime="00:05:00", interface="lo",
            scheduler_options={"dashboard": False, "interface": "lo"},
        ) as cluster, Client(cluster) as client:
            cluster.scale(jobs=2)
            client.wait_for_workers(2)
            print("RESULT", sum(client.gather(client.map(abs, range(-20, 0)))))
    """
    done = submit(*HERE, "--own-cluster", "record", script(source), environment=slurm.environment)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "RESULT 210"
    assert tasks(done) == 20
    assert done.manifest["merged"]["workers_found"] == 4
    slurm.wait_until_idle()


def test_a_run_that_its_script_did_not_use_says_so(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit(*HERE, script(THREADS), environment={"DASF_HPC_REPORT": "true"})
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == RESULT
    said = "o task reached the run's workers: the script did not use them"
    for words in (("show",), ("analyze", "where"), ("analyze", "gpu"), ("analyze", "overhead")):
        shown = run(*words, str(done.directory))
        assert shown.returncode == 0
        text = " ".join(shown.stdout.split())
        assert (said in text) == (words[-1] in ("show", "where")), text
        assert "notice" not in text
    assert notes(done) == []
    assert said in " ".join(done.err.split())
    assert said in html.unescape((done.directory / "report.html").read_text())
    strict = run("show", "--strict", str(done.directory))
    assert strict.returncode == 80
    assert said in " ".join(strict.stderr.split())


@pytest.mark.needs("environments")
def test_dask_cudas_cluster_is_the_runs(
    python_of: Callable[[str], Path], script: Callable[[str], str], tmp_path: Path
) -> None:
    source = """
        from dask_cuda import LocalCUDACluster
        from distributed import Client
        if __name__ == "__main__":
            with LocalCUDACluster(CUDA_VISIBLE_DEVICES="0,1", protocol="ucx") as cluster:
                assert isinstance(cluster, LocalCUDACluster)
                with Client(cluster) as client:
                    print("RESULT", client.submit(sum, [1, 2]).result())
    """
    command = python_of("dask-cuda").with_name("dasf-hpc")
    words = [str(command), "submit", *HERE, "--no-report", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run([*words, script(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "RESULT 3"
    assert "LocalCUDACluster(CUDA_VISIBLE_DEVICES, protocol) of the script has" in done.stderr
