"""Programs in the manner of what people run, on nodes: what they print and what the trace counts.

Each runs with the product, on SLURM, and without, on a scheduler and workers started by hand. Its
output is the same, and the trace has as many executions of each key as a plugin of the scheduler's
counts that is not ours.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from system.conftest import NO_REPORT, command, last_words
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

PROGRAMS = Path(__file__).with_name("programs")
WORKERS = 2


@dataclass(frozen=True)
class Program:
    """How a program is run.

    Attributes
    ----------
    words
        What stands behind ``dasf-hpc submit``, and behind ``python``.
    prefix
        A function of which tasks must be there.
    calls
        Calls of actors in it.
    nsys
        Whether its workers run under nsys.
    folder
        Where both are run; None for one of their own.
    notebook
        Whether its cells, which ``# %%`` parts, are run as a notebook.
    own
        Whether it makes a cluster of its own where it is run without the product.
    """

    words: tuple[str, ...]
    prefix: str
    calls: int = 0
    nsys: bool = False
    folder: Path | None = None
    notebook: bool = False
    own: bool = False

    def submitted(self, folder: Path) -> tuple[str, ...]:
        """Give the words for ``dasf-hpc submit``; a notebook is made in the folder."""
        if not self.notebook:
            return self.words
        cells = Path(self.words[0]).read_text().split("# %%\n")[1:]
        content = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
        )
        nbformat.write(content, folder / "program.ipynb")
        return (str(folder / "program.ipynb"),)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """Give the words for a script of the folder."""
    return str(PROGRAMS / f"{name}.py"), *arguments


ALL = {
    "array": Program(script("array_stack"), "normal", nsys=True),
    "bag": Program(script("bag_words"), "foldby-a"),
    "dataframe": Program(script("dataframe_shuffle"), "shuffle-barrier"),
    "delayed": Program(script("delayed_tree"), "load"),
    "futures": Program(script("futures_search"), "score"),
    "nested": Program(script("nested_tasks"), "fibonacci"),
    "actors": Program(script("actor_counter"), "learn", calls=6 + 2 * 8 + 4),
    "joblib": Program(script("joblib_backend"), "batch_of_len_4_calls"),
    "async": Program(script("async_client"), "fetch"),
    "scikit-learn": Program(script("sklearn_search"), "batch_of__fit_and_score_1_calls"),
    "xarray": Program(script("xarray_climate"), "block"),
    "package": Program(script("package_job", "12"), "clean"),
    "coordination": Program(script("coordination"), "consume"),
    "persisted": Program(script("persisted"), "add"),
    "module": Program(("-m", "pipeline", "9"), "clean", folder=PROGRAMS),
    "notebook": Program(script("notebook_cells"), "fit", notebook=True, own=True),
}


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give the variables with which a script finds a scheduler and workers started by hand."""
    folder = tmp_path_factory.mktemp("by hand")
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        log = (folder / f"{len(started)}.log").open("wb")
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        )  # fmt: skip

    start("dask_scheduler", "--host", address, "--no-dashboard")
    for _ in range(WORKERS):
        start("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    try:
        yield {"DASK_SCHEDULER_ADDRESS": address}
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # a worker whose scheduler is gone may try for long
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Ran:
    """A program that was run in both ways, and where the first one left what."""

    out: str
    plain: str
    run: Path
    counted: Counter[str]


def run_both(program: Program, slurm: SlurmTestbed, by_hand: dict[str, str], folder: Path) -> Ran:
    """Run a program with and without the product, at the same time."""
    counts, runs = folder / "counts", folder / "runs"
    counts.mkdir()
    submitted = subprocess.Popen(
        command(
            "submit", "--on", "slurm", "--interface", "lo", "--nodes", str(WORKERS),
            "--runs-dir", str(runs), *([] if program.nsys else ["--no-nsys"]),
            *program.submitted(folder),
        ),
        cwd=program.folder or folder,
        env={
            **os.environ, **NO_REPORT, **slurm.environment, "EXECUTION_COUNTS": str(counts),
            "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": str(PROGRAMS / "count_executions.py"),
        },
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        plain = subprocess.run(
            [sys.executable, *program.words], cwd=program.folder or folder,
            env={**os.environ, **({} if program.own else by_hand)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        out, err = submitted.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        submitted.kill()
        raise AssertionError(f"{submitted.communicate()[1]}\n{last_words(runs)}") from None
    assert plain.returncode == 0, plain.stderr
    assert submitted.returncode == 0, f"{err}\n{last_words(runs)}"
    [run] = runs.iterdir()
    [counted] = counts.iterdir()
    return Ran(out, plain.stdout, run, Counter(json.loads(counted.read_text())))


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("name", ALL)
def test_a_program_prints_the_same_and_each_execution_is_recorded_once(
    name: str, slurm: SlurmTestbed, by_hand: dict[str, str], tmp_path: Path
) -> None:
    slurm.wait_until_idle()
    program = ALL[name]
    done = run_both(program, slurm, by_hand, tmp_path)
    assert done.out == done.plain != ""
    with open_trace(done.run) as trace:
        tasks, reports = trace.tasks, trace.reports
        known = trace.transitions["key"].dropna().astype(str).unique()
        workers = trace.processes[trace.processes["role"] == "worker"]
    keys = tasks["key"].astype(str)
    is_task = keys.isin(known)
    assert Counter(keys[is_task]) == done.counted
    assert (~is_task).sum() == program.calls
    assert (tasks["stop"] > tasks["start"]).all()
    assert program.prefix in set(tasks["prefix"])
    assert len(workers) == WORKERS
    manifest = json.loads((done.run / "run.json").read_text())
    assert manifest["state"] == "complete", manifest
    assert not [note for note in manifest["notes"] if "abandoned" in note]
    if program.nsys:
        assert list(reports["status"]) == ["joined"] * WORKERS
        assert reports["linked"].sum() == len(tasks)
    counted = done.counted
    print(f"{name}: {len(counted)} keys, {counted.total()} executions, {program.calls} calls")
