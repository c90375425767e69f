"""After a run: journals and reports become one trace, here or on nodes; what it holds and lacks."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from distributed import Client
from distributed.scheduler import KilledWorker

from dasf_hpc.errors import (
    BatchError,
    InterruptedRun,
    RunDirectoryError,
    TraceFileError,
    WorkersError,
)
from dasf_hpc.interrupts import Interrupts
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.connection import connect
from dasf_hpc.launch.credentials import (
    delete_credentials,
    make_credentials,
)
from dasf_hpc.launch.environment import check_workers
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.messages import logging_to
from dasf_hpc.launch.node import read_node_records, worker_began
from dasf_hpc.launch.node_job import is_worker_of
from dasf_hpc.launch.shape import RunPlace, run_shape
from dasf_hpc.launch.tls import TidyWorker
from dasf_hpc.launch.walltime import EndBeforeWalltime
from dasf_hpc.launch.worker_environment import delete_environment
from dasf_hpc.manifest import (
    FOLDERS,
    RECORDING,
    TRACE,
    Manifest,
    close_to_others,
    find_run,
    run_state,
)
from dasf_hpc.nsight.collect import REPORT_SUFFIX, add_reports
from dasf_hpc.nsight.export import reports_of
from dasf_hpc.settings import Settings, merging
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.merge import MergedTables, merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.summary import NOT_AVAILABLE, Summary, summarise

#: A file that a node wrote may show up on the head later: NFS clients cache a folder's entries for
#: up to a minute (nfs(5), acdirmax), for a few seconds where it changes.
REPORT_WAIT_S = 10.0


def merge_run(
    run: Path,
    nsys_path: str | None = None,
    told: Told = lambda step: None,
    os_runtime: bool = False,
    nodes: MergeNodes | None = None,
) -> Summary:
    """Merge a run's journals, join its reports, write ``trace.h5``, and say what is missing.

    May be repeated, also for a run whose `submit` was killed; that of a run which still runs leaves
    its state as it is.

    Parameters
    ----------
    run
        The run's directory, or a file in it.
    nsys_path
        The nsys that exports the reports; by default from ``PATH``.
    told
        Called with every step.
    os_runtime
        Whether the reports' calls of the operating system's libraries are stored too.
    nodes
        Those who do the work; by default this machine's cores.

    Raises
    ------
    RunDirectoryError
        If there is no run.
    TraceFileError
        If there is nothing to merge or the trace cannot be written.
    """
    directory = find_run(run)
    manifest = Manifest(directory)
    elsewhere = submit_lives(directory, manifest.content)
    if not elsewhere and (why := cut_off(manifest.content)):
        manifest.update(error=why, state="merging")
    journals = _journals(directory)
    try:
        merged = merge_journals(
            journals,
            lambda done, total, label: told(Step("Merging: " + label, done, total)),
            nodes.client if nodes else None,
        )
        if merged.journals == 0:
            why = f": {merged.skipped[0][1]}" if merged.skipped else ""
            raise TraceFileError(f"There is no journal to merge in {journals}{why}")
        told(Step("Joining Nsight reports"))
        records = read_node_records(directory)
        expected = _reports_expected(directory, records, merged)
        _wait_for_reports(directory, expected, manifest)
        reports = add_reports(
            merged,
            directory,
            expected,
            nsys_path,
            lambda done, total, label: told(Step("Joining Nsight reports: " + label, done, total)),
            os_runtime,
        )
        told(Step("Writing the trace"))
        merged.write(
            directory / TRACE,
            lambda done, total, label: told(Step("Writing the trace: " + label, done, total)),
        )
        told(Step("Summing up"))
        with open_trace(directory / TRACE) as trace:
            summary = summarise(trace)
    except OSError as error:
        raise TraceFileError(
            f"The files of the merge cannot be written or read in {directory}: "
            f"{error.strerror or error}; make room there and repeat: dasf-hpc merge {directory}"
        ) from None
    shape = manifest.content.get("shape") or {}
    asked = (shape.get("nodes"), shape.get("workers_per_node"))
    workers = summary.workers
    if isinstance(asked[0], int) and isinstance(asked[1], int):
        workers = asked[0] * asked[1]
    found = sum(report.status == "joined" for report in reports)
    if not elsewhere:
        manifest.update(ended=manifest.content.get("ended") or time.time())
    manifest.update(
        merged={
            "on": nodes.hostnames if nodes else [socket.gethostname()],
            "journals": merged.journals,
            "skipped": merged.skipped,
            "events": merged.events,
            "workers_expected": workers,
            "workers_found": summary.workers,
            "reports_expected": len(reports),
            "reports_found": found,
            "reports": [asdict(report) for report in reports],
            "gaps": [asdict(gap) for gap in summary.gaps],
        },
    )
    if run_state(directory) not in ("queued", "running"):
        delete_environment(directory)  # of a `submit` that was killed
        delete_credentials(directory / "tls")
    close_to_others(directory)
    if not elsewhere:
        manifest.update(state="merging")
        complete = not missing(summary, manifest.content)
        manifest.update(state="complete" if complete else "partial")
    for record in records:
        for sentence in record["notes"]:
            manifest.note(f"{record['hostname']}: {sentence}")
    return summary


def _journals(directory: Path) -> Path:
    """Give the folder of a run's journals."""
    return directory / "journals" if (directory / "journals").is_dir() else directory


@dataclass(frozen=True)
class MergeNodes:
    """Nodes that do a merge.

    Attributes
    ----------
    client
        Of the Dask cluster whose workers run there.
    hostnames
        Their names.
    """

    client: Client
    hostnames: list[str]


def merge_on_nodes(
    run: Path,
    settings: Settings,
    nsys_path: str | None = None,
    told: Told = lambda step: None,
    warn: Callable[[str], None] = lambda sentence: None,
    os_runtime: bool = False,
) -> Summary:
    """Merge as `merge_run` does, with workers on nodes of a cluster; the trace is the same one.

    Where the nodes do not come, or go away, the merge is done here, and `warn` is told why.

    Raises
    ------
    DasfHpcError
        What `merge_run` raises, and what keeps nodes from being asked for.
    """
    directory = find_run(run)
    launcher_class = choose_launcher(settings)
    settings = merging(settings)
    run_shape(settings, launcher_class.local)
    if not any(_journals(directory).glob("*.journal")):
        raise TraceFileError(f"There is no journal to merge in {_journals(directory)}")
    try:
        with _merge_nodes(directory, launcher_class, settings, told) as nodes:
            return merge_run(directory, nsys_path, told, os_runtime, nodes)
    except (BatchError, WorkersError) as error:
        warn(f"{error} The merge goes on without them, on this machine.")
    return merge_run(directory, nsys_path, told, os_runtime)


@contextlib.contextmanager
def _merge_nodes(
    directory: Path, launcher_class: type[Launcher], settings: Settings, told: Told
) -> Iterator[MergeNodes]:
    """Get nodes, and end their jobs whatever happens; what they said is kept where they failed.

    Raises
    ------
    BatchError, WorkersError
        If the nodes do not come, or go away.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="merge-", dir=directory))
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700)
    except OSError as error:
        raise RunDirectoryError(f"{directory} cannot be written: {error.strerror}.") from None
    with Interrupts() as interrupts, logging_to(folder / "logs" / "scheduler.log"):
        security = make_credentials(folder / "tls") if settings.tls else None
        launcher = launcher_class(settings, RunPlace(folder, directory.name, Path.cwd()), security)
        try:
            told(Step("Submitting node jobs"))
            launcher.start()
            workers = launcher.shape.workers
            launcher.wait_for_workers(
                workers,
                lambda there, why: told(
                    Step(f"Waiting for workers{': ' + why if why else ''}", there, workers)
                ),
            )
            check_workers(launcher.cluster)
            hostnames = sorted({str(r["hostname"]) for r in read_node_records(folder)})
            with connect(launcher.cluster) as client:
                client.register_plugin(EndBeforeWalltime())
                if launcher.security is not None:
                    client.register_plugin(TidyWorker())
                with _closed_when_nobody_is_left(launcher, client):
                    yield MergeNodes(client, hostnames)
        except (CancelledError, KilledWorker):
            raise WorkersError(
                "The workers on the nodes ended before the merge did; the last words of one: "
                f"{launcher.last_words()} (more in {folder / 'logs'})."
            ) from None
        except KeyboardInterrupt:
            raise InterruptedRun(
                f"Interrupted while merging; to merge again: dasf-hpc merge {directory}"
            ) from None
        finally:
            interrupts.hold(launcher.cancel_on_stop)
            told(Step("Ending the node jobs"))
            launcher.stop()
            delete_credentials(folder / "tls")
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _closed_when_nobody_is_left(launcher: Launcher, client: Client) -> Iterator[None]:
    """Close the client when the last node job is gone: its futures would wait for ever."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            launcher.losses()
            if not launcher.jobs():
                client.close(timeout=5)
                return

    watcher = threading.Thread(target=watch, name="dasf-hpc-merge-nodes", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def missing(summary: Summary, manifest: dict[str, Any]) -> list[str]:
    """Name everything that a run's recording lacks, a sentence's part each.

    The rest of a script that was cut off, or still runs, is among it.
    """
    merged = manifest.get("merged", {})
    named = [str(manifest["error"]).rstrip(".")] if manifest.get("error") else []
    if manifest.get("state") in RECORDING:
        named.append("the run was not over when it was merged")
    for what in ("workers", "reports"):
        expected, found = merged.get(f"{what}_expected", 0), merged.get(f"{what}_found", 0)
        if found < expected:
            named.append(f"{found} of {expected} {what}")
    named += [f"{name} unreadable" for name, _ in merged.get("skipped", [])]
    named += [
        gap.sentence
        for gap in summary.gaps
        if gap.kind != NOT_AVAILABLE  # what a node cannot give is told, and is no loss
    ]
    return named


def cut_off(manifest: dict[str, Any]) -> str:
    """Say that what made a run was killed before its script or block had ended; empty if not."""
    if manifest.get("state") not in (*RECORDING, "merging"):
        return ""
    if manifest.get("on") == "record":  # a block has no script, and so no exit code
        if manifest.get("job_ended") is not None:
            return ""
        return "the program was killed before its block had ended"
    if manifest.get("exit_code") is not None:
        return ""
    return "submit was killed before the job's script had ended"


def submit_lives(directory: Path, manifest: dict[str, Any]) -> bool:
    """Say if the `submit` of a run goes on, in a process other than this one.

    Its heartbeat tells that, on its own host sooner its process.
    """
    pid = manifest.get("pid")
    if pid == os.getpid() or run_state(directory) != "running":
        return False
    if manifest.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        # One that began later has only its number; clocks of containers differ by some.
        return psutil.Process(pid).create_time() < float(manifest.get("started") or 0) + 60
    except (psutil.Error, TypeError, ValueError):
        return False


def _reports_expected(
    directory: Path, records: Sequence[dict[str, Any]], merged: MergedTables
) -> list[str]:
    """Give the reports that node jobs owe.

    A node job that was told to end before its worker was there, as a replacement may be at the
    run's end, has nothing to tell: that is noted in its record. Nor has one whose nsys waited for a
    part of the run that was another node's; where it was no node's, its report is missing.
    """
    processes, names = merged.tables["processes"], merged.dictionaries["names"]
    workers = [names[code] for code in processes["name"].tolist() if code >= 0]
    expected: list[str] = []
    elsewhere = any(record.get("reports") for record in records)
    for record in records:
        if not record["report"]:
            continue
        known = any(is_worker_of(str(record.get("name")), worker) for worker in workers)
        if known or worker_began(directory, record):
            told = record.get("reports")
            expected += told if told or (told is not None and elsewhere) else [record["report"]]
        else:
            record["notes"].append(
                f"node job {record.get('batch_job')} ended before its worker began, so it has no "
                "report"
            )
    return expected


def _wait_for_reports(directory: Path, expected: Sequence[str], manifest: Manifest) -> None:
    """Give files of nodes that have just ended the time to show up here."""
    just_ended = time.time() - (manifest.content.get("job_ended") or 0) < 600
    deadline = time.monotonic() + (REPORT_WAIT_S if just_ended else 0)
    while time.monotonic() < deadline:
        stems = [Path(name).name.removesuffix(REPORT_SUFFIX) for name in expected]
        if all(reports_of(directory / "nsight", stem) for stem in stems):
            return
        time.sleep(0.5)


def show_run(path: Path, summary: Summary | None = None) -> tuple[Summary, dict[str, Any], Path]:
    """Give the summary of a run or trace, and what belongs to it.

    Parameters
    ----------
    path
        The run's directory, or a trace.
    summary
        The summary where it is known; by default it is read from the trace.

    Returns
    -------
    summary : Summary
    manifest : dict
        Empty where there is none.
    trace : Path

    Raises
    ------
    TraceFileError
        If there is no trace or it cannot be read.
    """
    trace_path = path if path.is_file() else path / TRACE
    if not trace_path.is_file():
        if path.is_dir():
            find_run(path)
            raise TraceFileError(f"{path} has no {TRACE} yet: dasf-hpc merge {path}")
        raise TraceFileError(f"There is no trace at {path}.")
    if summary is None:
        with open_trace(trace_path) as trace:
            summary = summarise(trace)
    return summary, Manifest(trace_path.parent).content, trace_path
