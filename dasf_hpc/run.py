"""One run from its start to its trace: the file to read first.

`submit` tells the story: a directory, a launcher, workers, plugins, the user's script, a graceful
stop, and `merge_run`, which can be called again at any time from what is on disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.scheduler import KilledWorker

from dasf_hpc.doctor.check import Check
from dasf_hpc.doctor.examine import examine as doctor
from dasf_hpc.errors import (
    BatchError,
    DasfHpcError,
    InterruptedRun,
    PartialRecording,
    ProgramMissingError,
    RunDirectoryError,
    SettingsError,
    TraceFileError,
    VersionsError,
    WalltimeError,
    WorkersError,
)
from dasf_hpc.interrupts import Interrupts
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.credentials import (
    client_environment,
    credentials_in,
    delete_credentials,
    make_credentials,
)
from dasf_hpc.launch.head import submit_head
from dasf_hpc.launch.image import Container, open_image
from dasf_hpc.launch.job import JobProcess, find_job
from dasf_hpc.launch.launcher import Launcher, RunPlace, run_shape
from dasf_hpc.launch.node import read_node_records
from dasf_hpc.launch.walltime import EndBeforeWalltime
from dasf_hpc.launch.worker_command import choose_nsys, nsys_command
from dasf_hpc.manifest import (
    FOLDERS,
    HEARTBEAT,
    STOP_REQUEST,
    TRACE,
    Heartbeat,
    Manifest,
    close_to_others,
    find_run,
    git_revision,
    make_run_directory,
    versions,
)
from dasf_hpc.nsight.collect import add_reports
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
from dasf_hpc.profile.scheduler import SchedulerRecorder
from dasf_hpc.settings import Settings, settings_words
from dasf_hpc.show.report import write_report
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import TraceError
from dasf_hpc.trace.summary import NOT_AVAILABLE, Summary, summarise

#: A file that a node wrote may show up on the head later: NFS clients cache a folder's entries for
#: up to a minute (nfs(5), acdirmax), for a few seconds where it changes.
REPORT_WAIT_S = 10.0


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes
    ----------
    directory
        The run's directory.
    exit_code
        The script's exit code, or that of ``error``.
    summary
        What the trace holds.
    error
        What ended the run early, or that its recording is partial.
    """

    directory: Path
    exit_code: int
    summary: Summary
    error: DasfHpcError | None = None


def dry_run(settings: Settings, job: str, arguments: Sequence[str]) -> str:
    """Give the batch script of a node job, made but not submitted, and what a node makes of it.

    What is not known before a run stands in capitals: RUN, its name, and the scheduler's address.
    """
    launcher_class = choose_launcher(settings)
    script_path = find_job(job)
    container, settings = open_image(settings, script_path.parent)
    place = run_place(settings.runs_dir.absolute() / "RUN", container)
    security = credentials_in(place.directory / "tls") if settings.tls else None
    script = launcher_class(settings, place, security).job_script().rstrip()
    if settings.nsys is False:
        return script
    profile = nsys_command(
        settings.nsys_path or "nsys",
        choose_nsys(settings.nsys_arg, has_gpu=True),
        str(place.directory / "nsight" / "HOST-JOBID"),
        ["WORKER COMMAND"],
    )
    return (
        f"{script}\n\n# A node that has nsys (and, for cuda, a GPU) runs the words after -- as:\n"
        f"# {shlex.join(profile)}"
    )


def submit(
    settings: Settings,
    job: str,
    arguments: Sequence[str] = (),
    told: Told = lambda step: None,
    directory: Path | None = None,
) -> RunResult:
    """Run a script on a cluster and merge what was recorded.

    Parameters
    ----------
    settings
        Where and how.
    job, arguments
        The script, or ``example:NAME``, and its arguments.
    told
        Called with every step.
    directory
        The run's directory where `detach` made it; None for a new one.

    Returns
    -------
    RunResult
        Also where the run ended early but something was recorded: then ``error`` says why.

    Raises
    ------
    DasfHpcError
        What kept the run from being made; the queue is empty, what was recorded is on disk.
    """
    launcher_class = choose_launcher(settings)
    script = find_job(job)
    run_shape(settings, launcher_class.local)
    if settings.nsys and launcher_class.local:
        require_nsys(settings)
    here = settings.worker_python is None and settings.image is None
    if settings.gpus_per_node and here and not find_spec("dask_cuda"):
        raise ProgramMissingError(
            "GPU workers are dask-cuda's, which is not installed here: pip install 'dasf-hpc[gpu]'."
        )
    container, settings = open_image(settings, script.parent)
    directory = directory or make_run_directory(settings, job)
    (directory / HEARTBEAT).touch(mode=0o600)  # before the state says that it has begun
    manifest = Manifest(directory)
    manifest.update(
        name=directory.name,
        state="starting",
        job=job,
        arguments=list(arguments),
        started=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        on=launcher_class.name,
        settings=settings.model_dump(mode="json"),
        versions=versions(),
        git_revision=git_revision(script.parent),
    )
    if not settings.tls:
        manifest.note(
            "--no-tls: whoever reaches the scheduler's port while the job runs can run code as you"
        )
    place = run_place(directory, container)
    error: DasfHpcError | None = None
    exit_code = 0
    with Interrupts() as interrupts, Heartbeat(directory):
        try:
            with _logging_to(directory / "logs" / "scheduler.log"):
                security = make_credentials(directory / "tls") if settings.tls else None
                launcher = launcher_class(settings, place, security)
                manifest.update(shape=asdict(launcher.shape))
                exit_code = _run_job(launcher, script, arguments, manifest, interrupts, told)
        except DasfHpcError as caught:
            error = caught
            manifest.update(error=str(error), exit_code=error.exit_code)
        except BaseException as bug:
            manifest.update(state="failed", ended=time.time(), error=repr(bug))
            raise
        finally:
            delete_credentials(directory / "tls")
        if interrupts.at_once or not any((directory / "journals").glob("worker-*")):
            manifest.update(state="failed", ended=time.time())
            raise error or WorkersError(f"No worker recorded anything: see {directory / 'logs'}.")
        manifest.update(state="merging", exit_code=error.exit_code if error else exit_code)
        interrupts.release()
        try:
            summary = merge_run(directory, settings.nsys_path, told)
        except KeyboardInterrupt:
            manifest.update(state="partial", ended=time.time())
            raise InterruptedRun(
                f"Interrupted while merging; to merge again: dasf-hpc merge {directory}"
            ) from None
        except DasfHpcError as failed:
            manifest.update(state="partial", ended=time.time())
            manifest.note(str(failed))
            raise
        if settings.report:
            _write_report(directory, told)
    if error is None and exit_code == 0 and Manifest(directory).content["state"] != "complete":
        error = PartialRecording(
            f"The job ended with 0, but its recording is partial: dasf-hpc show {directory}"
        )
    return RunResult(directory, error.exit_code if error else exit_code, summary, error)


def run_place(directory: Path, container: Container | None) -> RunPlace:
    """Give the place of a run, its directory bound into the image."""
    if container is not None:
        container = container.with_binds([directory])
    return RunPlace(directory, directory.name, Path.cwd(), container)


def examine(settings: Settings, told: Told = lambda step: None) -> list[Check]:
    """Look at everything a run with these settings needs; see `dasf_hpc.doctor`."""
    launcher_class, why = None, ""
    try:
        launcher_class = choose_launcher(settings)
    except ProgramMissingError as error:
        why = str(error)
    with _logging_to(Path(os.devnull)):
        return doctor(launcher_class, why, settings, lambda what: told(Step("Looking at " + what)))


def detach(settings: Settings, job: str, arguments: Sequence[str] = ()) -> Path:
    """Have a batch job be the head of a run, and give the run's directory at once.

    Raises
    ------
    DasfHpcError
        What kept the run from being made; nothing is queued then.
    """
    launcher_class = choose_launcher(settings)
    if launcher_class.name not in ("slurm", "pbs"):
        raise SettingsError(
            f"Option --detach needs SLURM or PBS, and the run would be {launcher_class.name}."
        )
    find_job(job)
    run_shape(settings, launcher_class.local)
    directory = make_run_directory(settings, job)
    manifest = Manifest(directory)
    manifest.update(
        name=directory.name,
        state="queued",
        job=job,
        arguments=list(arguments),
        started=time.time(),
        on=launcher_class.name,
    )
    settings = settings.model_copy(update={"on": launcher_class.name})
    words = ["--run-directory", str(directory), *settings_words(settings), "--", job, *arguments]
    try:
        head = submit_head(launcher_class.name, settings, words, directory)
    except (DasfHpcError, OSError) as error:
        manifest.update(state="failed", ended=time.time(), error=str(error))
        if isinstance(error, OSError):
            raise RunDirectoryError(
                f"{directory} cannot be written: {error.strerror or error}."
            ) from None
        raise
    manifest.update(head_job=head)
    return directory


def require_nsys(settings: Settings) -> None:
    """Raise where nsys was asked for and this host has none that can be used."""
    nsys = find_nsys(settings.nsys_path)
    if not nsys.profiles:
        raise ProgramMissingError(nsys.sentence[:1].upper() + nsys.sentence[1:] + ".")


def _run_job(
    launcher: Launcher,
    script: Path,
    arguments: Sequence[str],
    manifest: Manifest,
    interrupts: Interrupts,
    told: Told,
) -> int:
    """Have the workers, the plugins and the script; whatever happens, end the workers."""
    directory = launcher.place.directory
    recorder: SchedulerRecorder | None = None
    process: JobProcess | None = None
    try:
        told(Step("Submitting node jobs"))
        launcher.start()
        recorder = _attach_recording(launcher)
        manifest.update(state="waiting", batch_jobs=launcher.job_ids())
        wanted = min(
            launcher.settings.min_workers or launcher.shape.workers, launcher.shape.workers
        )

        def waiting(there: int, why: str) -> None:
            told(Step(f"Waiting for workers{': ' + why if why else ''}", there, wanted))
            if manifest.content.get("waiting_for") != why:
                manifest.update(waiting_for=why)
            _heed_request(directory)

        launcher.wait_for_workers(wanted, waiting)
        _check_versions(launcher)
        manifest.update(state="running", job_started=time.time(), waiting_for="")
        told(Step("Running the job"))
        place, environment = launcher.place, _job_environment(launcher, directory)
        python = [sys.executable]
        if place.container is not None:
            python = [*place.container.words(), place.python(launcher.settings)]
        process = JobProcess(script, arguments, environment, directory / "logs", python)
        return _wait_for_job(process, launcher, manifest)
    except KeyboardInterrupt:
        raise InterruptedRun(
            f"Interrupted; the workers were ended and what was recorded is in {directory}"
            + (f": dasf-hpc merge {directory}" if interrupts.at_once else ".")
        ) from None
    finally:
        interrupts.hold(launcher.cancel_on_stop)
        if process is not None:
            process.terminate()
        told(Step("Ending the workers and writing their reports"))
        manifest.update(state="stopping", job_ended=time.time())
        report = launcher.stop()
        if recorder is not None:
            recorder.end()
            manifest.update(workers_joined=len(recorder.joined))
        manifest.update(stop=asdict(report), batch_jobs=launcher.job_ids())
        if process is not None:
            process.wait_output()


def _heed_request(directory: Path) -> None:
    """End gracefully where ``dasf-hpc cancel`` asked for it, from whatever host."""
    if (directory / STOP_REQUEST).exists():
        raise KeyboardInterrupt


def _attach_recording(launcher: Launcher) -> SchedulerRecorder:
    """Register the plugins: the scheduler hands them to every worker, also to late ones."""
    journals = launcher.place.directory / "journals"
    settings = launcher.settings
    recorder = SchedulerRecorder(journals)
    scheduler = launcher.cluster.scheduler

    async def attach() -> None:
        scheduler.add_plugin(recorder)
        await recorder.start(scheduler)

    launcher.cluster.sync(attach)
    with Client(launcher.cluster, set_as_default=False) as client:
        client.register_plugin(EndBeforeWalltime())
        client.register_plugin(WorkerTaskPlugin(directory=journals, probe_clock=True))
        client.register_plugin(
            GPUAnnotationPlugin(directory=journals, message=settings.nvtx_message)
        )
        client.register_plugin(
            ResourceMonitor.for_workers(settings.sample_interval, directory=journals)
        )
    return recorder


def _check_versions(launcher: Launcher) -> None:
    """Compare dask and distributed of the workers with ours."""
    with Client(launcher.cluster, set_as_default=False) as client:
        found = client.get_versions(check=False)
    here = found["scheduler"]["packages"]
    for address, there in found["workers"].items():
        for package in ("dask", "distributed"):
            ours, theirs = here.get(package), there["packages"].get(package)
            if ours != theirs:
                raise VersionsError(
                    f"The worker {address} has {package} {theirs}, this host {ours}: use one "
                    "environment for both (--worker-python names the workers' Python)."
                )


def _job_environment(launcher: Launcher, directory: Path) -> dict[str, str]:
    """Give the variables with which the script's ``Client()`` finds the cluster."""
    environment = {
        "DASK_SCHEDULER_ADDRESS": launcher.cluster.scheduler_address,
        "DASF_HPC_RUN": str(directory),
    }
    if launcher.security is not None:
        environment.update(client_environment(launcher.security))
    return environment


def _wait_for_job(process: JobProcess, launcher: Launcher, manifest: Manifest) -> int:
    """Wait for the script, replacing node jobs that are lost where that was asked for.

    Raises
    ------
    WalltimeError, WorkersError
        If no node job is left: the script would wait for workers that cannot come.
    """
    settings, directory = launcher.settings, launcher.place.directory
    looked = time.monotonic()
    while (code := process.poll()) is None:
        time.sleep(0.05)
        if time.monotonic() - looked < 1.0:
            continue
        looked = time.monotonic()
        _heed_request(directory)
        if settings.on_walltime == "replace":
            for job in launcher.expiring():
                if not job.replaced:
                    job.replaced = True
                    launcher.add_job()
                    manifest.update(batch_jobs=launcher.job_ids())
        for lost in launcher.cluster.sync(launcher.losses):
            manifest.update(lost=[*manifest.content.get("lost", []), asdict(lost)])
            wish = settings.on_walltime if lost.walltime else settings.on_lost
            if wish == "replace" and not lost.replaced:
                launcher.add_job()
                manifest.update(batch_jobs=launcher.job_ids())
            if not launcher.jobs() and process.poll() is None:
                if lost.walltime:
                    raise WalltimeError(
                        f"The node jobs reached their walltime of {settings.walltime} before the "
                        "job ended; ask for more with --walltime, or have them replaced with "
                        "--on-walltime replace."
                    )
                raise WorkersError(
                    "All node jobs ended while the job was running; the last words of one: "
                    f"{launcher.last_words()} (more in {directory / 'logs'})."
                )
    process.wait_output()
    return code


class _LogFile(logging.FileHandler):
    """A log file that may fail: a full disk is no reason to fill the terminal with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the message."""

    def flush(self) -> None:
        """Write what is buffered, where that works."""
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Close the file, also where what is buffered cannot be written any more."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Have Dask's own messages of this process in a file, not on the user's terminal."""
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    names = ("distributed", "distributed.client", "dask_jobqueue", "dasf_hpc")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers[:] = handlers
            logger.propagate = propagate
        handler.close()


# --------------------------------------------------------------------------------- after the run


def merge_run(
    run: Path,
    nsys_path: str | None = None,
    told: Told = lambda step: None,
    os_runtime: bool = False,
    nodes: MergeNodes | None = None,
) -> Summary:
    """Merge a run's journals, join its reports, write ``trace.h5``, and say what is missing.

    May be repeated, also for a run whose `submit` was killed.

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
        expected = [record["report"] for record in records if record["report"]]
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
        merged.write(directory / TRACE)
        with open_trace(directory / TRACE) as trace:
            summary = summarise(trace)
    except TraceError as error:
        raise TraceFileError(str(error)) from None
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
    manifest.update(
        ended=manifest.content.get("ended") or time.time(),
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
    close_to_others(directory)
    complete = not missing(summary, manifest.content) and not manifest.content.get("error")
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
    settings = settings.model_copy(update={"nsys": False, "gpus_per_node": 0})
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
    with Interrupts() as interrupts, _logging_to(folder / "logs" / "scheduler.log"):
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
            _check_versions(launcher)
            hostnames = sorted({str(r["hostname"]) for r in read_node_records(folder)})
            with Client(launcher.cluster, set_as_default=False) as client:
                client.register_plugin(EndBeforeWalltime())
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
            launcher.cluster.sync(launcher.losses)
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


def _write_report(directory: Path, told: Told) -> None:
    """Write the run's page; a run is no worse for not having one."""
    again = f"to write it again: dasf-hpc report {directory}"
    try:
        write_report(directory, told=told)
    except KeyboardInterrupt:
        Manifest(directory).note(f"The report was interrupted; {again}")
    except DasfHpcError as error:
        Manifest(directory).note(f"{error} {again}")
    except Exception as bug:
        Manifest(directory).note(f"The report was not written, which is a bug: {bug!r}; {again}")


def missing(summary: Summary, manifest: dict[str, Any]) -> list[str]:
    """Name everything that a run's recording lacks, a sentence's part each."""
    merged = manifest.get("merged", {})
    named = []
    for what in ("workers", "reports"):
        expected, found = merged.get(f"{what}_expected", 0), merged.get(f"{what}_found", 0)
        if found < expected:
            named.append(f"{found} of {expected} {what}")
    named += [f"{name} unreadable" for name, _ in merged.get("skipped", [])]
    named += [
        f"{gap.kind}: {gap.count} in {gap.places} place(s)"
        for gap in summary.gaps
        if gap.kind != NOT_AVAILABLE  # what a node cannot give is told, and is no loss
    ]
    return named


def _wait_for_reports(directory: Path, expected: Sequence[str], manifest: Manifest) -> None:
    """Give files of nodes that have just ended the time to show up here."""
    just_ended = time.time() - (manifest.content.get("job_ended") or 0) < 600
    deadline = time.monotonic() + (REPORT_WAIT_S if just_ended else 0)
    while time.monotonic() < deadline:
        reports = [directory / name for name in expected]
        if all(r.exists() or r.with_suffix(".qdstrm").exists() for r in reports):
            return
        time.sleep(0.5)


def show_run(path: Path) -> tuple[Summary, dict[str, Any], Path]:
    """Read the summary of a run or trace again.

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
    try:
        with open_trace(trace_path) as trace:
            summary = summarise(trace)
    except TraceError as error:
        raise TraceFileError(str(error)) from None
    return summary, Manifest(trace_path.parent).content, trace_path


__all__ = ["DasfHpcError", "RunResult", "Step", "dry_run", "merge_run", "show_run", "submit"]
