"""Scaling, the runs of a study: one after the other, each on file before it begins and after."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dasf_hpc.errors import (
    DasfHpcError,
    InterruptedRun,
    PartialRecording,
    StudyIncomplete,
    WalltimeError,
)
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.head_limit import HEAD_LIMIT_VARIABLE
from dasf_hpc.launch.shape import run_shape
from dasf_hpc.manifest import MANIFEST, Heartbeat, make_run_directory
from dasf_hpc.run import submit
from dasf_hpc.scaling.study import Study
from dasf_hpc.scaling.table import scaled
from dasf_hpc.settings import Settings
from dasf_hpc.steps import Step, Told


def run_study(study: Study, settings: Settings, told: Told = lambda step: None) -> None:
    """Make the runs of a study that are still to be made.

    A run that fails is on file, and the others are made all the same.

    Parameters
    ----------
    study
        The study.
    settings
        Those that all its runs have in common.
    told
        Called with every step of every run.

    Raises
    ------
    InterruptedRun
        If the user ended it; what was made is kept, and the study can go on.
    WalltimeError
        If it runs in a batch job whose time is nearly over; as before.
    DasfHpcError
        If no run could be made at all.
    """
    study.begin()
    limit = os.environ.get(HEAD_LIMIT_VARIABLE)
    settings = settings.model_copy(update={"runs_dir": study.directory})
    try:
        with Heartbeat(study.directory), study.where_it_began():
            for number in study.left:
                if limit is not None:  # each run takes it out of the environment
                    os.environ[HEAD_LIMIT_VARIABLE] = limit
                _run(study, number, settings, told)
    except KeyboardInterrupt:
        study.update(state="interrupted", ended=time.time())
        raise InterruptedRun(f"Interrupted. {_how_to_go_on(study)}") from None
    except DasfHpcError:
        study.update(state="interrupted", ended=time.time())
        raise
    study.update(state="failed" if study.left else "complete", ended=time.time())


def _how_to_go_on(study: Study) -> str:
    made = len(study.runs) - len(study.left)
    return (
        f"{made} of {len(study.runs)} runs are made and kept; to go on: "
        f"dasf-hpc scale --resume {study.directory}"
    )


def _run(study: Study, number: int, settings: Settings, told: Told) -> None:
    """Make one of the runs, and keep what became of it."""
    plan, run = study.plan, study.runs[number]
    scale = run["scale"]
    own = plan.settings_at(settings, scale)
    shape = run_shape(own, choose_launcher(own).local)
    which = f"run {number + 1} of {len(study.runs)}, {scaled(scale, plan.by)}"
    told(Step("Starting", said=f"{which[:1].upper()}{which[1:]}, repeat {run['repeat']}"))

    def told_which(step: Step) -> None:
        # what comes after a colon is a detail, in a pipe told only of what is waited for
        label = step.label
        told(replace(step, label=f"{label} ({which})" if ":" in label else f"{label}: {which}"))

    directory = make_run_directory(own, plan.job)
    study.update_run(number, state="running", directory=directory.name, started=time.time())
    end: dict[str, Any] = {"state": "interrupted"}
    stops: DasfHpcError | None = None
    try:
        result = submit(own, plan.job, plan.arguments_at(scale, shape), told_which, directory)
        end = {"state": "done", "exit_code": result.exit_code}
        if isinstance(result.error, PartialRecording):
            end["state"] = "partial"
        elif result.exit_code:
            end["state"] = "failed"
        if result.error is not None:
            end["error"] = str(result.error)
            stops = _stops(study, settings, result.error)
    except DasfHpcError as error:
        end = {"state": "failed", "exit_code": error.exit_code, "error": str(error)}
        if not (directory / MANIFEST).exists():  # nothing was begun, nor would the others be
            shutil.rmtree(directory, ignore_errors=True)
            end["directory"] = None
            stops = error
        else:
            stops = _stops(study, settings, error)
    finally:
        if isinstance(stops, InterruptedRun | WalltimeError):
            end["state"] = "interrupted"
        study.update_run(number, **end, ended=time.time())
    if end["state"] == "failed":
        said = end.get("error") or f"it ended with the code {end['exit_code']}"
        told(Step("Starting", said=f"Failed: {which}: {said}"))
    if isinstance(stops, InterruptedRun | WalltimeError):
        raise type(stops)(f"{str(stops).rstrip('.')}. {_how_to_go_on(study)}")
    if stops is not None:
        raise stops


def _stops(study: Study, settings: Settings, error: DasfHpcError) -> DasfHpcError | None:
    """Give the error where the study is to end with it, and go on later."""
    if isinstance(error, InterruptedRun):
        return error
    # in a batch job its own time is over: no other run would be longer
    if isinstance(error, WalltimeError) and settings.on == "allocation":
        return error
    return None


def failed_error(study: Study) -> StudyIncomplete | None:
    """Give the error that names the runs that failed; None where there is none."""
    failed = [run for run in study.runs if run["state"] == "failed"]
    if not failed:
        return None
    by = study.plan.by
    named = [f"{scaled(r['scale'], by)}, repeat {r['repeat']} ({_why(r)})" for r in failed[:3]]
    if len(failed) > 3:
        named.append(f"{len(failed) - 3} more")
    return StudyIncomplete(
        f"{len(failed)} of {len(study.runs)} runs failed: {'; '.join(named)}. To make them again: "
        f"dasf-hpc scale --resume {study.directory}"
    )


def _why(run: dict[str, Any]) -> str:
    error = str(run.get("error") or f"code {run.get('exit_code')}")
    return error if len(error) <= 120 else f"{error[:119]}…"


def runs_of(study: Study) -> Iterator[tuple[Path, int]]:
    """Give the directories of the runs that are kept, and their scales."""
    for run in study.runs:
        if run["state"] in ("done", "partial") and run["directory"]:
            yield study.directory / run["directory"], int(run["scale"])
