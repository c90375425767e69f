"""How wrong corrected times are, on hosts whose clocks' true difference is known.

Starts the three-host testbed, whose hosts' clocks are hours apart by known amounts, runs a job that
passes data between all workers, and prints the true error of every task's start (p50, p99, largest)
beside the bound that the trace states, violations of causality, and, with ``--nsys``, how far each
task's span is from its own NVTX range in the report. ``--wall-skew`` sets the hosts' wall clocks
apart by seconds, too::

    python tests/benchmarks/clock_error.py [--seconds 20] [--nsys] [--wall-skew] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed.clocks import range_lags, skewed_wall_clocks, task_errors
from testbed.slurm import SlurmTestbed

from dasf_hpc.trace.open import Trace, open_trace

JOB = """
import sys, time
from distributed import Client

def work(number, *needed):
    time.sleep(0.005)
    return bytes(1000)

with Client() as client:
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    ends = time.monotonic() + float(sys.argv[1])
    layer = []
    while time.monotonic() < ends:
        layer = [
            client.submit(
                work, number, *layer[number - 1 : number + 1], pure=False,
                workers=[workers[number % len(workers)]],
            )
            for number in range(10 * len(workers))
        ]
        client.gather(layer)
"""


def figures(trace: Trace, ahead_s: dict[str, float]) -> dict[str, Any]:
    """Give what is printed of a trace; times in us."""
    errors = task_errors(trace, ahead_s)
    size = errors["error"].abs().to_numpy() / 1e3
    clocks = trace.clocks
    found: dict[str, Any] = {
        "tasks": len(errors),
        "error_us": {**_percentiles(size), "max": float(size.max())},
        "bound_us": {
            str(host): float(bound) / 1e3
            for host, bound in errors.groupby("host")["bound"].max().items()
        },
        "above_bound": int((errors["error"].abs() > errors["bound"]).sum()),
        "sources": clocks["source"].astype(str).tolist(),
        "points": clocks["points"].tolist(),
        "residual_us": (clocks["residual"] / 1e3).tolist(),
    }
    if len(trace.nvtx_ranges):
        lags = range_lags(trace)
        found["range_lag_us"] = {
            name: {
                **_percentiles(lags[name].abs().to_numpy() / 1e3),
                "max": float(lags[name].abs().max()) / 1e3,
            }
            for name in lags.columns
        }
        found["report_bound_us"] = (trace.reports["correction_bound"] / 1e3).tolist()
    return found


def _percentiles(values: Any) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 99)}


def main() -> None:
    """Run the job and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the job computes")
    parser.add_argument("--nsys", action="store_true", help="profile the workers")
    parser.add_argument("--wall-skew", action="store_true", help="set wall clocks seconds apart")
    parser.add_argument("--keep", type=Path, help="folder for the run's directory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with SlurmTestbed() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.py").write_text(JOB)
        runs = (options.keep or folder / "runs").absolute()
        subprocess.run(
            [
                *(sys.executable, "-m", "dasf_hpc.cli", "submit", "--on", "slurm"),
                *("--nodes", "3", "--workers-per-node", "2", "--threads-per-worker", "1"),
                *("--memory", "8GB", "--interface", "lo", "--runs-dir", str(runs)),
                "--nsys" if options.nsys else "--no-nsys",
                *(("--prologue", skewed_wall_clocks(folder)) if options.wall_skew else ()),
                *("job.py", str(options.seconds)),
            ],
            cwd=folder,
            env={**os.environ, **cluster.environment},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        (run,) = runs.iterdir()
        with open_trace(run) as trace:
            found = figures(trace, cluster.monotonic_offset_s)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key:16}{value}")


if __name__ == "__main__":
    main()
