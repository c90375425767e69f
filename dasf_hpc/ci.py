"""Continuous integration: runs a job several times and compares it with a baseline."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dasf_hpc.analysis.compare import (
    Comparison,
    RunMeasures,
    compare,
    measure,
    save_baseline,
)
from dasf_hpc.errors import BaselineError, DasfHpcError, RunDirectoryError
from dasf_hpc.run import RunResult, submit
from dasf_hpc.settings import Settings
from dasf_hpc.show import gate
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trend.gather import of_run
from dasf_hpc.trend.history import HISTORY, add_to_history

__all__ = ["HISTORY", "compare_with_baseline", "keep_history", "only_run_is_slower", "repeat"]


def repeat(
    settings: Settings,
    job: str,
    arguments: Sequence[str],
    repeats: int,
    into: Path,
    told: Told,
    another: Callable[[Sequence[Path]], bool] = lambda runs: False,
) -> list[RunResult]:
    """Run a job several times, one after the other, into ``into/runs``.

    Parameters
    ----------
    settings, job, arguments
        As of `dasf_hpc.run.submit`.
    repeats
        How often.
    into
        The folder.
    told
        Is told each step, with the number of the run.
    another
        Is asked once, of the runs' directories, whether to run it once more.

    Returns
    -------
    list of RunResult
        In their order; one that failed is the last, and no other is started after it.

    Raises
    ------
    DasfHpcError
        What kept a run from being made.
    """
    settings = settings.model_copy(update={"runs_dir": into / "runs"})
    results: list[RunResult] = []

    def run(of: int) -> bool:
        n = len(results) + 1

        def told_which(step: Step) -> None:
            told(replace(step, label=f"{step.label} (run {n} of {of})"))

        results.append(submit(settings, job, arguments, told_which))
        return results[-1].exit_code == 0

    if all(run(repeats) for _ in range(repeats)) and another([r.directory for r in results]):
        run(repeats + 1)
    return results


def only_run_is_slower(
    runs: Sequence[Path], base: Sequence[RunMeasures], relative: float, absolute: float
) -> bool:
    """Say if the only run is slower than a baseline, so that a second one has to tell.

    Raises
    ------
    TraceError
        If its trace is damaged.
    """
    return len(runs) == 1 and compare(base, _measured(runs), relative, absolute).another


def _measured(runs: Sequence[Path]) -> list[RunMeasures]:
    measured = []
    for path in runs:
        with open_trace(path) as trace:
            measured.append(measure(trace, path.name))
    return measured


def compare_with_baseline(
    runs: Sequence[Path],
    base: Sequence[RunMeasures],
    into: Path,
    relative: float,
    absolute: float,
) -> Comparison:
    """Compare runs with a baseline, and write what comes out into a folder.

    Parameters
    ----------
    runs
        Their directories.
    base
        The baseline; where it is empty nothing can be told.
    into
        Gets ``compare.md``, ``compare.xml`` (JUnit) and ``compare.json``; and ``head.json``, which
        is these runs as a baseline.
    relative, absolute
        As of `dasf_hpc.analysis.compare.compare`.

    Raises
    ------
    BaselineError
        If `head.json` cannot be written.
    RunDirectoryError
        If another file cannot be written.
    """
    head = _measured(runs)
    found = compare(base, head, relative, absolute)
    if not base:
        found = replace(found, notes=[*found.notes, "There is no baseline yet."])
    save_baseline(into / "head.json", head)
    for name, text in (
        ("compare.md", gate.markdown(found)),
        ("compare.xml", gate.junit(found)),
        ("compare.json", json.dumps(found.document(), indent=1) + "\n"),
    ):
        try:
            (into / name).write_text(text)
        except OSError as error:
            raise RunDirectoryError(f"{into / name} cannot be written: {error.strerror}.") from None
    return found


def keep_history(runs: Sequence[Path], history: Path) -> list[str]:
    """Add runs, as repeats of each other, to the history that ``dasf-hpc trend`` reads.

    Returns
    -------
    list of str
        What kept runs from being added, a sentence each: a verdict does not depend on it.
    """
    batch, said = secrets.token_hex(4), []
    points = []
    for run in runs:
        try:
            points.append(replace(of_run(run), batch=batch))
        except DasfHpcError as error:
            said.append(f"{run.name} is not in the history: {error}")
    try:
        add_to_history(history, points)
    except BaselineError as error:
        said.append(str(error))
    return said
