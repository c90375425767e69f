"""Samples of the CPU and context switches that a real nsys records of a real run's tasks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from system.conftest import Submit

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.trace.holdings import Kind, State, held
from dasf_hpc.trace.stacks import Source, read_stacks, weights

#: One function that computes and one that sleeps, each 4 times 0.5 s and more.
JOB = """
    import time
    from distributed import Client

    def compute(number):
        end = time.thread_time() + 0.5
        while time.thread_time() < end:
            sum(range(10_000))
        return number

    def rest(number):
        time.sleep(0.5)
        return number

    with Client() as client:
        for function in (compute, rest):
            futures = client.map(function, range(4), pure=False)
            assert client.gather(futures) == list(range(4))
"""

ASKS = ("--nsys-arg=--sample=process-tree", "--nsys-arg=--cpuctxsw=process-tree")


#: Exit code of a run whose job ended well and whose recording is not whole.
PARTIAL = 80


def end_agents(folder: Path) -> int:
    """End the agents of nsys that were started in a folder; gives how many there were."""
    ended = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "--start-agent" in process.cmdline() and process.environ().get("PWD") == str(folder):
                process.kill()
                ended += 1
    return ended


@pytest.mark.needs("nsys")
def test_samples_and_switches_are_of_the_tasks_that_ran(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    words = ["--workers-per-node", "1", "--threads-per-worker", "1", "--stop-timeout", "20"]
    job = script(JOB)
    for _ in range(3):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        done = submit("--on", "local", "--nsys", *ASKS, *words, job)
        if not (done.code == PARTIAL and "0 of 1; 0 of 0" in done.err):
            break
        # seen of 2022.4.2 in 2 of 5 runs: its agent computes on and on, and writes no report
        end_agents(tmp_path)
    else:
        pytest.skip("nsys's agent did not end in three runs, so that there is no report")
    assert done.code == 0, done.err
    with open_trace(done.directory) as trace:
        found = held(trace)
        assert found[Kind.SAMPLES].state is State.RECORDED
        assert found[Kind.SWITCHES].state is State.RECORDED
        samples, tasks = trace.cpu_samples, trace.tasks
        of_tasks = samples[samples["task"] >= 0]
        rows = tasks.loc[of_tasks["task"].to_numpy()]
        # half of them at least are by the thread itself, since there is one
        own = of_tasks["thread"].to_numpy() == rows["thread"].to_numpy()
        assert own.mean() > 0.5
        stacks = read_stacks(trace)
        # a thread that computes is sampled, one that sleeps is not
        computing, resting = (
            weights(trace, function=name, source=Source.CPU) for name in ("compute", "rest")
        )
        assert computing.sum() > 10 * max(1, resting.sum())
        frames = stacks.of_frames(computing)
        assert any("python" in str(module) for module in frames["module"])
        assert not frames["module"].str.contains("/").any()
        sums = analyse("cpu", trace).table.set_index("function").to_dict("index")
        for name in ("compute", "rest"):
            assert sums[name]["known"] <= sums[name]["executing"]
        # where nsys lost a switch it is not known whether the thread was on a CPU
        unknown = sums["compute"]["executing"] - sums["compute"]["known"]
        assert sums["compute"]["on_cpu"] <= 2.2e9
        assert sums["compute"]["on_cpu"] + unknown >= 1.9e9
        assert sums["rest"]["off_share"] > 90
        assert sums["rest"]["on_cpu"] < 0.2e9
        # those of the event loop are no calls of the function
        assert sums["compute"]["others"] < sums["compute"]["samples"] / 2
