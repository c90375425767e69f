"""Which run a user means: a path, the name of a run in the folder of runs, or ``last``."""

from __future__ import annotations

import json
from pathlib import Path

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.settings import load_settings

#: Names the run that began last.
LAST = "last"
_MANIFEST = "run.json"


def runs_folder(given: Path | None) -> Path:
    """Give the folder of runs: what was given, or where `submit` puts them."""
    return given if given is not None else load_settings({}).runs_dir


def named_run(named: Path, runs_dir: Path | None) -> Path:
    """Give the path of a run, or of a file of it, from what a user calls it.

    Parameters
    ----------
    named
        A path, or the name of a run, or ``last``. A path that exists is that one.
    runs_dir
        The folder of runs; None for the setting.

    Raises
    ------
    RunDirectoryError
        If there is no such run.
    """
    if len(named.parts) != 1 or (runs_dir is None and named.exists()):
        return named
    folder = runs_folder(runs_dir)
    if (folder / named).exists():
        return folder / named
    if named.exists():
        return named
    if str(named) == LAST:
        return _last(folder)
    if named.suffix:  # a file's name, such as trace.h5: whoever opens it says what is wrong
        return named
    raise RunDirectoryError(
        f"There is no run {named}, neither here nor in {folder}; give its path, its name in the "
        f"folder that --runs-dir names, or '{LAST}'."
    )


def _last(folder: Path) -> Path:
    """Give the run of a folder that began last.

    Raises
    ------
    RunDirectoryError
        If it has none.
    """
    runs = [path.parent for path in folder.glob(f"*/{_MANIFEST}")]
    if not runs:
        raise RunDirectoryError(
            f"There is no run in {folder}; give the folder of the runs with --runs-dir."
        )
    return max(runs, key=lambda run: (_began(run), run.name))


def _began(run: Path) -> float:
    """Give when a run began; 0 where that cannot be read."""
    try:
        return float(json.loads((run / _MANIFEST).read_text())["started"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0
