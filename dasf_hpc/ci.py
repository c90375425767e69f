"""Continuous integration: runs a job several times and compares it with a baseline."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
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

__all__ = ["HISTORY", "keep_history", "repeat_and_compare"]


def repeat_and_compare(
    settings: Settings,
    job: str,
    arguments: Sequence[str],
    repeats: int,
    base: Sequence[RunMeasures],
    into: Path,
    relative: float,
    absolute: float,
    told: Told,
) -> tuple[list[RunResult], Comparison | None]:
    """Run a job several times into ``into/runs``, and compare the runs with a baseline.

    Parameters
    ----------
    settings, job, arguments
        As of `dasf_hpc.run.submit`.
    repeats
        How often it is run; where the only run is slower than the baseline's, once more.
    base
        The baseline; where it is empty nothing can be told.
    into
        Gets ``compare.md``, ``compare.xml`` (JUnit) and ``compare.json``; and ``head.json``, which
        is these runs as a baseline.
    relative, absolute
        As of `dasf_hpc.analysis.compare.compare`.
    told
        Is told each step, with the number of the run.

    Returns
    -------
    results
        In their order; one that failed is the last, and no other is started after it.
    comparison
        None if a run failed.

    Raises
    ------
    DasfHpcError
        What kept a run from being made.
    BaselineError
        If `head.json` cannot be written.
    RunDirectoryError
        If another file cannot be written.
    """
    settings = settings.model_copy(update={"runs_dir": into / "runs"})
    results: list[RunResult] = []
    while True:
        _repeat(settings, job, arguments, repeats, results, told)
        if results[-1].exit_code:
            return results, None
        found = _compare([result.directory for result in results], base, into, relative, absolute)
        if not found.another:
            return results, found
        repeats += 1


def _repeat(
    settings: Settings,
    job: str,
    arguments: Sequence[str],
    repeats: int,
    results: list[RunResult],
    told: Told,
) -> None:
    """Add to the results of runs until they are so many, or one has failed."""
    for n in range(len(results) + 1, repeats + 1):

        def told_which(step: Step, n: int = n) -> None:
            told(replace(step, label=f"{step.label} (run {n} of {repeats})"))

        results.append(submit(settings, job, arguments, told_which))
        if results[-1].exit_code:
            break


def _compare(
    runs: Sequence[Path],
    base: Sequence[RunMeasures],
    into: Path,
    relative: float,
    absolute: float,
) -> Comparison:
    """Compare runs with a baseline, and write what comes out into a folder."""
    head = []
    for path in runs:
        with open_trace(path) as trace:
            head.append(measure(trace, path.name))
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
