"""Trend, what it is about: finds runs in folders, baselines and histories, and reads their figures.

A trace is read once: what is kept of it is left beside it and read from there, for as long as the
trace has the same size and time of change.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dasf_hpc.analysis.compare import load_baseline
from dasf_hpc.errors import DasfHpcError, RunDirectoryError
from dasf_hpc.manifest import MANIFEST, TRACE, Manifest, run_state
from dasf_hpc.show.export import written
from dasf_hpc.show.report import REPORT_NAME
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trend.history import HISTORY, read_history
from dasf_hpc.trend.point import RunPoint, measured, of_manifest, of_measures, point_of

#: What is kept of a trace, beside it.
KEPT = "trend.json"
#: Another number for other figures of the same trace.
_VERSION = 1


@dataclass(frozen=True)
class Gathered:
    """Runs, oldest first.

    Attributes
    ----------
    points
        Their figures, each run once.
    places
        The directory of a run, by its name, where it is known.
    jobs
        The script's path, by the run's name, where it is known.
    skipped
        What was left out, and why: a sentence each.
    """

    points: list[RunPoint] = field(default_factory=list)
    places: dict[str, Path] = field(default_factory=dict)
    jobs: dict[str, Path] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def report(self, name: str) -> Path | None:
        """Give a run's report, if it has one."""
        place = self.places.get(name)
        page = place / REPORT_NAME if place else None
        return page if page is not None and page.is_file() else None


def gather(paths: Sequence[Path], told: Told = lambda step: None) -> Gathered:
    """Read the figures of runs.

    Parameters
    ----------
    paths
        Folders of runs, runs, traces, baselines (``.json``) and histories (``.jsonl``).
    told
        Called with the progress.

    Raises
    ------
    DasfHpcError
        If a path is none of those.
    """
    found = Gathered()
    points: dict[str, RunPoint] = {}
    runs: dict[Path, None] = {}
    files: list[Path] = []
    for path in paths:
        inside, beside = _inside(path)
        runs.update(dict.fromkeys(inside))
        files += [file for file in beside if file not in files]
    for file in files:
        for point in _of_file(file, found.skipped, file in paths):
            # a history knows more than a baseline
            known = points.get(point.name)
            if known is None or (point.revision and not known.revision):
                points[point.name] = point
    for number, run in enumerate(runs):
        told(Step(f"Reading runs: {run.name}", number, len(runs)))
        try:
            point = of_run(run)
        except DasfHpcError as error:
            found.skipped.append(f"{run.name} was left out: {str(error).rstrip('.')}.")
            continue
        if point.name in found.places:  # another folder has one of that name
            point = replace(point, name=str(run))
        if known := points.get(point.name):
            point = replace(point, batch=point.batch or known.batch)
        points[point.name] = point
        found.places[point.name] = run if run.is_dir() else run.parent
        job = Path(str(Manifest(found.places[point.name]).content.get("job") or ""))
        if job.is_absolute():
            found.jobs[point.name] = job
    found.points.extend(sorted(points.values(), key=lambda point: (point.started, point.name)))
    return found


def _inside(path: Path) -> tuple[list[Path], list[Path]]:
    """Give the runs, and the baselines and histories, that a path names."""
    if path.is_file():
        return ([], [path]) if path.suffix in (".json", ".jsonl") else ([path.absolute()], [])
    if not path.is_dir():
        raise RunDirectoryError(f"There is nothing at {path}; give a folder of runs, or runs.")
    path = path.absolute()
    if _is_run(path):
        return [path], []
    folders = [path, path / "runs"]  # those of `ci` are one deeper
    runs = [one for folder in folders if folder.is_dir() for one in sorted(folder.iterdir())]
    runs = [one for one in runs if one.is_dir() and _is_run(one)]
    files = [path / name for name in (HISTORY, "head.json") if (path / name).is_file()]
    if not runs and not files:
        from dasf_hpc.scaling.study import STUDY

        studies = any((one / STUDY).is_file() for one in path.iterdir())
        raise RunDirectoryError(
            f"There is no run in {path}: it holds no folder with a {MANIFEST} or a {TRACE}, "
            f"and no {HISTORY}."
            + (" It holds studies of scaling: give one, for its runs." if studies else "")
        )
    return runs, files


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in (MANIFEST, TRACE, "journals"))


def _of_file(path: Path, skipped: list[str], named: bool) -> Iterable[RunPoint]:
    try:
        if path.suffix == ".jsonl":
            points, left_out = read_history(path)
            skipped += left_out
            return points
        return [of_measures(one, f"baseline {path.stem}") for one in load_baseline(path)]
    except DasfHpcError as error:
        if named:
            raise
        skipped.append(f"{path.name} was left out: {str(error).rstrip('.')}.")
        return []


def of_run(run: Path) -> RunPoint:
    """Give the figures of a run, or of a trace, from what is kept of it if that is still true.

    Raises
    ------
    DasfHpcError
        If there is no trace, or it cannot be read.
    """
    directory = run if run.is_dir() else run.parent
    manifest = Manifest(directory).content if run.is_dir() or run.name == TRACE else {}
    trace = run / TRACE if run.is_dir() else run
    if manifest and not trace.exists() and run_state(directory) in ("running", "queued"):
        raise RunDirectoryError("it is not over")
    kept = directory / (KEPT if trace.name == TRACE else f".{trace.name}.{KEPT}")
    point = _kept(kept, trace)
    if point is None:
        with open_trace(run) as opened:
            point = measured(opened)
        point = replace(point, **of_manifest(manifest, directory if manifest else trace.parent))
        if not manifest and run.name != TRACE and not run.is_dir():
            point = replace(point, name=run.stem)
        _keep(kept, trace, point)
    reasons = list(point.partial)
    code = manifest.get("exit_code")
    if isinstance(code, int) and code != 0:
        reasons.append(f"its script ended with {code}")
    return replace(point, partial=reasons, name=point.name or directory.name)


def _signature(trace: Path) -> list[int]:
    known = trace.stat()
    return [_VERSION, known.st_size, known.st_mtime_ns]


def _kept(kept: Path, trace: Path) -> RunPoint | None:
    try:
        document = json.loads(kept.read_text())
        return point_of(document["run"]) if document["of"] == _signature(trace) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(kept: Path, trace: Path, point: RunPoint) -> None:
    with contextlib.suppress(OSError), written(kept) as file:  # who only reads has it each time
        document = {"of": _signature(trace), "run": point.document()}
        file.write(json.dumps(document).encode())
