"""A job that keeps a ledger of what it did, and what must be found of it in the trace.

A task writes a line when it has done its work. A task that is in the ledger must be in the trace.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from dasf_hpc import open_trace

LEDGER = """
    import os, signal, sys, time
    from distributed import Client, wait

    LEDGER = os.path.abspath("ledger")

    def work(number, seconds=0.05):
        time.sleep(seconds)
        with open(LEDGER, "a") as ledger:
            ledger.write(f"{number} {os.getpid()}\\n")
        return number

    client = Client()
    futures = [client.submit(work, i, key=f"work-{i}") for i in range(COUNT)]
"""


def ledger_job(ending: str, count: int = 60) -> str:
    """Give a job that runs tasks and then ends in its own way."""
    return LEDGER.replace("COUNT", str(count)) + "\n".join(
        "    " + line for line in ending.strip().splitlines()
    )


def ledger(folder: Path) -> list[tuple[str, int]]:
    """Read the key and pid of every task that did its work."""
    path = folder / "ledger"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(f"work-{number}", int(pid)) for number, pid in map(str.split, lines)]


def check_nothing_lost(directory: Path, done: list[tuple[str, int]], at_most: int = 0) -> None:
    """Check that every task of the ledger is in the trace, in the process that ran it.

    Where a whole node dies, what was recorded in its last 0.1 s may be missing: ``at_most`` tasks.
    """
    assert done
    with open_trace(directory) as trace:
        tasks = trace.tasks
        pids = trace.processes["pid"].to_numpy()[tasks["process"]]
        recorded = list(zip(tasks["key"].astype(str), pids, strict=True))
    missing = [entry for entry in done if entry not in recorded]
    assert len(missing) <= at_most, missing


def check_reports(directory: Path, joined: int) -> None:
    """Check that so many reports are joined, with every range linked."""
    with open_trace(directory) as trace:
        reports = trace.reports
        good = reports[reports["status"] == "joined"]
        assert len(good) == joined, reports.to_string()
        assert (good["linked"] == good["compute_ranges"]).all(), good.to_string()


def process_of_run(run: Path, words: list[str]) -> list[psutil.Process]:
    """Find processes of a run by words of their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(run) in line and all(word in line for word in words):
            found.append(process)
    return found
