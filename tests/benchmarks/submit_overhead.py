"""What `submit` adds to the wall time of a job on SLURM, against plain dask-jobqueue.

Starts the three-host testbed and runs the same script both ways, in turn: with dask-jobqueue's own
SLURMCluster, without nsys and plugins, and with ``dasf-hpc submit`` under nsys. Both wait for all
workers before the script starts. Prints each pair's wall seconds and their ratio; the time from the
script's end until the reports are written, and the merge, stand apart::

    python tests/benchmarks/submit_overhead.py [--pairs 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed.slurm import SlurmTestbed

NODES, WORKERS = 3, 2

STORM = """
import time
from distributed import Client

def work(number):
    time.sleep(0.02)
    return number

with Client() as client:
    assert sum(client.gather(client.map(work, range(2000), pure=False))) == sum(range(2000))
"""

PLAIN = """
import os, subprocess, sys
from dask_jobqueue import SLURMCluster
from distributed import Client

script, nodes, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with SLURMCluster(
    cores=workers, processes=workers, memory="8GB", interface="lo", walltime="00:30:00",
    scheduler_options={"dashboard_address": ":0"}, log_directory="plain-logs",
) as cluster:
    cluster.scale(jobs=nodes)
    with Client(cluster) as client:
        client.wait_for_workers(nodes * workers)
    environment = {**os.environ, "DASK_SCHEDULER_ADDRESS": cluster.scheduler_address}
    subprocess.run([sys.executable, script], env=environment, check=True)
"""


def timed(words: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run a command and give its wall seconds."""
    begun = time.perf_counter()
    subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return time.perf_counter() - begun


def main() -> None:
    """Run the pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with SlurmTestbed() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.py").write_text(STORM)
        (folder / "plain.py").write_text(PLAIN)
        for pair in range(options.pairs):
            cluster.wait_until_idle()
            plain = timed(
                [sys.executable, "plain.py", "job.py", str(NODES), str(WORKERS)],
                folder,
                cluster.environment,
            )
            while cluster.queue():
                time.sleep(0.5)
            cluster.wait_until_idle()
            runs = folder / f"runs-{pair}"
            ours = timed(
                [
                    *(sys.executable, "-m", "dasf_hpc.cli", "submit", "--on", "slurm", "--nsys"),
                    *("--nodes", str(NODES), "--workers-per-node", str(WORKERS)),
                    *("--memory", "8GB", "--interface", "lo", "--runs-dir", str(runs), "job.py"),
                ],
                folder,
                cluster.environment,
            )
            (manifest_path,) = runs.glob("*/run.json")
            manifest = json.loads(manifest_path.read_text())
            stop = manifest["stop"]["seconds"]
            merge = manifest["ended"] - manifest["job_ended"] - stop
            rows.append(
                {
                    "plain_s": plain,
                    "submit_s": ours,
                    "reports_s": stop,
                    "merge_s": max(0.0, merge),
                    "ratio": (ours - stop) / plain,
                    "ratio_all": ours / plain,
                }
            )
            print("  ".join(f"{key} {value:.2f}" for key, value in rows[-1].items()), flush=True)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print("medians  " + "  ".join(f"{key} {value:.2f}" for key, value in medians.items()))
    if options.json:
        options.json.write_text(json.dumps({"pairs": rows, "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
