"""A script that ends while its tasks run: they are given 10 s, and then called abandoned."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from system.conftest import Submit, command

from dasf_hpc import open_trace
from dasf_hpc.launch.abandoned import PATIENCE_S

JOB = """
    import asyncio, sys, time
    from distributed import Client

    class Counter:
        def count(self, seconds):
            time.sleep(seconds)

        def fail(self):
            raise ValueError

        async def count_on_loop(self, seconds):
            await asyncio.sleep(seconds)

    def work(seconds):
        time.sleep(seconds)

    async def work_on_loop(seconds):
        await asyncio.sleep(seconds)

    client = Client()
    counter = client.submit(Counter, actor=True, key="counter").result()
    try:  # Dask forgets to strike out the thread of a call that fails
        counter.fail().result()
    except ValueError:
        pass
    print(client.submit(work, 0).result())
    seconds = float(sys.argv[1])
    if seconds:
        left = [client.submit(work, seconds, key=f"work-{i}") for i in range(3)]
        left.append(client.submit(work_on_loop, seconds, key="on-loop"))
        left.append(counter.count(seconds))
        left.append(counter.count_on_loop(seconds))
        time.sleep(2)
    print(time.time())
"""


@pytest.mark.parametrize(
    ("seconds", "waits", "ended"),
    [("0", (0, 3), "memory"), ("5", (2, 9), "memory"), ("600", (PATIENCE_S, 16), "abandoned")],
)
def test_what_the_script_left_running(
    seconds: str, waits: tuple[float, float], ended: str, submit: Submit,
    script: Callable[[str], str],
) -> None:  # fmt: skip
    done = submit(
        "--on", "local", "--nodes", "2", "--threads-per-worker", "2", "--no-nsys", script(JOB),
        seconds,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = done.manifest
    waited = manifest["job_ended"] - float(done.out.splitlines()[1])
    assert waits[0] <= waited < waits[1]
    assert manifest["stop"]["seconds"] < 15, "the workers' ends wait for nothing more"
    assert manifest["state"] == "complete"
    with open_trace(done.directory) as trace:
        left = trace.tasks[trace.tasks["prefix"].isin(["Counter.count", "Counter.count_on_loop"])]
        left_tasks = trace.tasks[trace.tasks["key"].astype(str).str.match("work-.$|on-loop")]
        states = [*left["state"], *left_tasks["state"]]
        assert states == [ended] * (6 if float(seconds) else 0)
        assert trace.gaps.empty
    told = [note for note in manifest["notes"] if "abandoned" in note]
    if ended == "abandoned":
        assert len(told) == 1
        assert told[0].startswith("6 tasks were abandoned by the script")
        assert "6 abandoned" in done.err
    else:
        assert told == []
    strict = subprocess.run(command("show", "--strict", str(done.directory)), check=False)
    assert strict.returncode == 0
