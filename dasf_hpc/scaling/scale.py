"""Scaling, a study from its start to its page: the file to read first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import SettingsError
from dasf_hpc.scaling.measure import measure_runs
from dasf_hpc.scaling.page import write_page
from dasf_hpc.scaling.plan import Plan, study_settings
from dasf_hpc.scaling.runs import run_study, runs_of
from dasf_hpc.scaling.study import Study, find_unfinished, is_study, new_study, open_study
from dasf_hpc.scaling.table import Scaling, scaling
from dasf_hpc.settings import Settings
from dasf_hpc.steps import Step, Told

#: Name of the page in a study's directory.
PAGE = "scaling.html"


def begin(plan: Plan, settings: Settings, told: Told, anew: bool = False) -> Study:
    """Make the runs of a plan, or those that the same command has not made yet.

    Parameters
    ----------
    plan
        What is to be run.
    settings
        What was asked for besides.
    told
        Called with every step.
    anew
        Whether a study that the same command began and did not end is left as it is.

    Returns
    -------
    Study
        Some of its runs may have failed (`dasf_hpc.scaling.runs.failed_error`).

    Raises
    ------
    DasfHpcError
        If it was interrupted, or no run can be made.
    """
    settings = study_settings(plan, settings)
    study = None if anew else find_unfinished(plan, settings)
    if study is None:
        study = new_study(plan, settings)
        told(Step("Starting", said=f"Study: {study.directory}"))
    else:
        _tell_of_going_on(study, told)
    run_study(study, settings, told)
    return study


def resume(path: Path, env: Sequence[str], told: Told) -> Study:
    """Make the runs of a study that are still to be made.

    Parameters
    ----------
    path
        The study's directory.
    env
        The variables that it was begun with, whose values it does not keep.
    told
        Called with every step.

    Raises
    ------
    DasfHpcError
        As `begin`.
    """
    study = open_study(path)
    with study.where_it_began():
        study.check_job()
    settings = study_settings(study.plan, study.settings(list(env)))
    if not study.left:
        told(Step("Starting", said=f"All {len(study.runs)} runs of {study.directory} are made"))
        return study
    _tell_of_going_on(study, told)
    run_study(study, settings, told)
    return study


def _tell_of_going_on(study: Study, told: Told) -> None:
    made, runs = len(study.runs) - len(study.left), len(study.runs)
    told(Step("Starting", said=f"Going on with {study.directory}: {made} of {runs} runs are made"))


def conclude(study: Study, told: Told) -> tuple[Scaling, Path]:
    """Say what a study's runs say, and write its page.

    Raises
    ------
    ScalingError
        If too few of its runs were made.
    """
    found = look([study.directory], None, study.plan.weak, told)
    return found, write_page(found, study.directory / PAGE, study.directory.name)


def look(paths: Sequence[Path], by: str | None, weak: bool, told: Told) -> Scaling:
    """Say what runs that are there say of how a program scales.

    Parameters
    ----------
    paths
        Directories of runs, or of studies.
    by
        What scales are counted in; None: what a study counts them in, else nodes.
    weak
        Whether the work grows with the scale; a study of weak scaling says so itself.
    told
        Called with the progress.

    Raises
    ------
    DasfHpcError
        If a run cannot be read, or they do not tell.
    """
    runs: list[tuple[Path, int | None]] = []
    kinds: set[tuple[str, bool]] = set()
    for path in paths:
        if not is_study(path):
            runs.append((path, None))
            continue
        study = open_study(path)
        plan = study.plan
        kinds.add((plan.by, plan.weak))
        own = by in (None, plan.by)
        runs += [(run, scale if own else None) for run, scale in runs_of(study)]
    if len(kinds) > 1:
        raise SettingsError(
            "The studies count their scales in different things, or are of strong and of weak "
            "scaling: look at them one by one."
        )
    planned = next(iter(kinds), ("nodes", weak))
    # one that is given twice would make the noise look small
    runs = list({run.resolve(): (run, scale) for run, scale in runs}.values())
    by = by or planned[0]
    return scaling(measure_runs(runs, by, told), by, weak or planned[1])
