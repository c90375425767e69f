"""Clocks, graded: on the testbed the true difference of every host's clock is known exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from system.conftest import Submit
from testbed.clocks import range_lags, skewed_wall_clocks, task_errors
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

JOB = """
    import time
    from distributed import Client

    def work(number, *needed):
        time.sleep(0.01)
        return bytes(1000)

    with Client() as client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        layer = []
        for _ in range(10):
            layer = [
                client.submit(
                    work, number, *layer[number - 1 : number + 1], pure=False,
                    workers=[workers[number % len(workers)]],
                )
                for number in range(20)
            ]
            client.gather(layer)
"""


@pytest.mark.needs("slurm", "nsys")
def test_no_time_is_further_off_than_its_clock_says(
    slurm: SlurmTestbed, submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    slurm.wait_until_idle()
    # Wall clocks seconds apart, too: no time may rest on them.
    done = submit(
        "--on", "slurm", "--nodes", "3", "--memory", "8GB", "--interface", "lo", "--nsys",
        "--prologue", skewed_wall_clocks(tmp_path), script(JOB),
        environment=slurm.environment,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert not list(done.directory.rglob("clock-responder.json"))
    with open_trace(done.directory) as trace:
        graded = task_errors(trace, slurm.monotonic_offset_s)
        print(json.dumps(graded.groupby("host")[["error", "bound"]].agg(["min", "max"]).to_dict(
            "split"
        )["data"]))  # fmt: skip
        assert set(graded["host"]) == set(slurm.nodes)
        assert (graded["error"].abs() <= graded["bound"]).all()
        clocks = trace.clocks[trace.clocks["source"] != "reference"]
        assert (clocks["source"] == "probes").all()
        # by the responder: Dask's own round trips take a millisecond at best
        assert (clocks["bound"] < 20_000_000).all()
        samplers = trace.processes["role"] == "sampler"
        assert samplers.sum() == 3

        causality = trace.causality.set_index("order")
        print(causality)
        assert (causality["checked"] > 20).all()
        assert (causality["violations"] == 0).all()

        lags = range_lags(trace)
        assert len(lags) == len(trace.tasks)
        bound = int(trace.reports["correction_bound"].max())
        print(lags.describe(), bound)
