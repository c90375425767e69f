"""One run from its start to its trace: the file to read first.

`submit` tells the story: a directory, a launcher, workers, plugins, the user's script, a graceful
stop, and `merge_run`, which can be called again at any time from what is on disk.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import Client, WorkerPlugin

from dasf_hpc.batch import run_place, workers_python
from dasf_hpc.errors import (
    BatchError,
    DasfHpcError,
    InterruptedRun,
    PartialRecording,
    ProgramMissingError,
    WalltimeError,
    WorkersError,
)
from dasf_hpc.interrupts import Interrupts
from dasf_hpc.launch.abandoned import let_end
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.connection import ask
from dasf_hpc.launch.credentials import (
    client_environment,
    delete_credentials,
    make_credentials,
)
from dasf_hpc.launch.environment import check_workers
from dasf_hpc.launch.head_limit import seconds_to_end
from dasf_hpc.launch.image import open_image
from dasf_hpc.launch.job import Job, JobProcess, find_job
from dasf_hpc.launch.launcher import SCHEDULER_FILE, Launcher
from dasf_hpc.launch.leaving import going
from dasf_hpc.launch.look import drop_now, keep_now, look
from dasf_hpc.launch.messages import logging_to
from dasf_hpc.launch.node import read_node_records
from dasf_hpc.launch.node_job import is_worker_of
from dasf_hpc.launch.policy import (
    REPLACED_IN_VAIN,
    End,
    Loss,
    Memory,
    Wishes,
    decide,
    refused,
    submitted,
)
from dasf_hpc.launch.queue import LostJob
from dasf_hpc.launch.script_environment import (
    ADDRESS_VARIABLE,
    FOLDER_VARIABLE,
    OWN_CLUSTER_VARIABLE,
    RUN_VARIABLE,
    SCHEDULER_FILE_VARIABLE,
    STACKS_VARIABLE,
    WORKERS_VARIABLE,
)
from dasf_hpc.launch.script_notes import script_notes
from dasf_hpc.launch.shape import run_shape
from dasf_hpc.launch.tls import TidyWorker
from dasf_hpc.launch.unrunnable import Unrunnable
from dasf_hpc.launch.walltime import EndBeforeWalltime
from dasf_hpc.launch.worker_environment import (
    ENVIRONMENT,
    delete_environment,
    withheld,
)
from dasf_hpc.launch.worker_options import check_together, check_worker_command, open_note
from dasf_hpc.lost import explained
from dasf_hpc.manifest import (
    HEARTBEAT,
    STOP_REQUEST,
    Heartbeat,
    Manifest,
    git_revision,
    make_run_directory,
    versions,
    worker_recorded,
)
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
from dasf_hpc.profile.scheduler import SchedulerRecorder
from dasf_hpc.settings import Settings, clock_port, lowered_resources, not_taken
from dasf_hpc.steps import Now, Step, Told

if TYPE_CHECKING:
    from dasf_hpc.analysis.headline import Headline
    from dasf_hpc.trace.summary import Summary


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
    headline
        What the analyses found, the costliest first; None where no report was written.
    """

    directory: Path
    exit_code: int
    summary: Summary
    error: DasfHpcError | None = None
    headline: Headline | None = None

    def __repr__(self) -> str:
        from dasf_hpc.show.notebook import summary_text

        why = f", {self.error}" if self.error is not None else ""
        text = summary_text(self.summary)
        return f"<RunResult {self.directory}: {text}, exit code {self.exit_code}{why}>"

    def _repr_html_(self) -> str:
        from dasf_hpc.show.notebook import result_html

        return result_html(self.directory, self.summary, self.error)


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
        The script, the notebook, ``example:NAME`` or ``module:NAME``, and its arguments, in which
        ``{scheduler_file}`` stands for the path of the run's scheduler file.
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
    program = find_job(job)
    run_shape(settings, launcher_class.local)
    check_together(settings)
    if settings.nsys and launcher_class.local:
        require_nsys(settings)
    here = settings.worker_python is None and settings.image is None
    if settings.gpus_per_node and here and not find_spec("dask_cuda"):
        raise ProgramMissingError(
            "GPU workers are dask-cuda's, which is not installed here: pip install 'dasf-hpc[gpu]'."
        )
    container, settings = open_image(settings, program.folder)
    python = workers_python(container, settings)
    unchecked = check_worker_command(settings, launcher_class.name, python)
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
        git_revision=git_revision(program.folder),
    )
    watch = shlex.join(["dasf-hpc", "watch", str(directory)])
    told(Step("Starting", said=f"Run: {directory}"))
    told(Step("Starting", said=f"From another terminal: {watch}"))
    told_besides = [*not_taken(launcher_class.name), *lowered_resources(os.environ)]
    for sentence in (open_note(settings), unchecked, *told_besides):
        if sentence is not None:
            manifest.note(sentence)
            told(Step("Starting", said=sentence))
    place = run_place(directory, container, program.folder)
    error: DasfHpcError | None = None
    exit_code = 0
    limit_s = seconds_to_end(settings.walltime_margin)
    with Interrupts(limit_s) as interrupts, Heartbeat(directory), withheld(settings.env):
        try:
            with logging_to(directory / "logs" / "scheduler.log"):
                security = make_credentials(directory / "tls") if settings.tls else None
                launcher = launcher_class(settings, place, security)
                manifest.update(shape=asdict(launcher.shape))
                with _modules_of(program.folder):
                    exit_code = _run_job(launcher, program, arguments, manifest, interrupts, told)
        except DasfHpcError as caught:
            error = caught
        except KeyboardInterrupt:  # before a launcher was there that could end anything
            error = InterruptedRun("Interrupted before the run had begun.")
        except BaseException as bug:
            manifest.update(state="failed", ended=time.time(), error=repr(bug))
            raise
        finally:
            delete_credentials(directory / "tls")
            delete_environment(directory)
            with contextlib.suppress(OSError):
                (directory / SCHEDULER_FILE).unlink()
            drop_now(directory)
            for sentence in script_notes(directory):
                manifest.note(sentence)
        recorded = worker_recorded(directory)
        if error is not None:
            manifest.update(error=str(error), exit_code=error.exit_code)
        elif interrupts.at_once:  # which is no error of the recording
            error = InterruptedRun("Interrupted after the job's script had ended.")
        if interrupts.at_once or not recorded:
            manifest.update(state="failed", ended=time.time())
            raise _unmerged(error, directory, recorded)
        manifest.update(state="merging", exit_code=error.exit_code if error else exit_code)
        try:
            interrupts.release()
            from dasf_hpc.outcome import merge_run

            summary = merge_run(directory, settings.nsys_path, told)
        except KeyboardInterrupt:
            manifest.update(state="partial", ended=time.time())
            raise _unmerged(
                InterruptedRun("Interrupted while merging."), directory, recorded
            ) from None
        except DasfHpcError as failed:
            manifest.update(state="partial", ended=time.time())
            manifest.note(str(failed))
            raise
        found = _write_report(directory, told) if settings.report else None
    if isinstance(error, InterruptedRun):
        error = InterruptedRun(f"{_begun(error)}; what was recorded is merged in {directory}.")
    if error is None and exit_code == 0 and Manifest(directory).content["state"] != "complete":
        error = PartialRecording(
            f"The job ended with 0, but its recording is partial: dasf-hpc show {directory}"
        )
    return RunResult(directory, error.exit_code if error else exit_code, summary, error, found)


def _begun(error: DasfHpcError) -> str:
    """Give an error's sentence without its end, to go on with."""
    return str(error).rstrip(".")


def _unmerged(error: DasfHpcError | None, directory: Path, recorded: bool) -> DasfHpcError:
    """Give the error of a run that is over and not merged, which says what is left to do.

    Made when the run is over: a second signal may have come since the error was raised.
    """
    if error is None:
        return WorkersError(f"No worker recorded anything: see {directory / 'logs'}.")
    left = f"what was recorded is in {directory}, to merge it: dasf-hpc merge {directory}"
    if not recorded:
        if not isinstance(error, InterruptedRun):
            return error
        left = f"no worker had recorded anything (logs: {directory / 'logs'})."
    return type(error)(f"{_begun(error)}; {left}")


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Have the scheduler, which is in this process, see what ``python SCRIPT`` sees beside it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def require_nsys(settings: Settings) -> None:
    """Raise where nsys was asked for and this host has none that can be used."""
    nsys = find_nsys(settings.nsys_path)
    if not nsys.profiles:
        raise ProgramMissingError(nsys.sentence[:1].upper() + nsys.sentence[1:] + ".")


def _run_job(
    launcher: Launcher,
    program: Job,
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
        if address := launcher.dashboard():
            told(Step("Submitting node jobs", said=f"Dashboard: {address}"))
        threading.Thread(target=_load_what_merges, name="dasf-hpc-load", daemon=True).start()
        recorder = _attach_recording(launcher, program.path.name)
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
        check_workers(launcher.cluster)
        manifest.update(state="running", job_started=time.time(), waiting_for="")
        told(Step("Running the job", now=_first_look(launcher)))
        place, environment = launcher.place, _job_environment(launcher, directory)
        python = [sys.executable]
        if place.container is not None:
            python = [*place.container.words(), place.python(launcher.settings)]
        words = _words(program, arguments, directory)
        process = JobProcess(words, environment, directory / "logs", python)
        code = _wait_for_job(process, launcher, recorder, manifest, told)
        manifest.update(exit_code=code)  # from now on the script is known to have ended by itself
        if abandoned := let_end(launcher, told):
            manifest.note(abandoned)
        return code
    except KeyboardInterrupt:
        if interrupts.at_limit:
            raise WalltimeError(
                "The head's time limit was near before the job ended, so the run was ended; what "
                f"was recorded is in {directory} (more time: --head-walltime, or the time limit of "
                "the batch job that the head is)."
            ) from None
        raise InterruptedRun("Interrupted; the workers were ended.") from None
    finally:
        interrupts.hold(launcher.cancel_on_stop)
        if process is not None:
            if not interrupts.at_once:
                process.terminate(heard=interrupts.taken == signal.SIGINT)
            process.end_line()
        told(Step("Ending the workers and writing their reports"))
        if process is not None:  # what tasks waited for is among the notes
            manifest.content["waiting_for"] = ""
        manifest.update(state="stopping", job_ended=time.time())
        if not interrupts.at_once and not (launcher.local and interrupts.taken):
            _note_lost(manifest, going(launcher))
        report = launcher.stop(
            lambda ended, jobs: told(
                Step("Ending the workers and writing their reports", ended, jobs)
            )
        )
        for job_id, why in report.left.items():
            manifest.note(
                f"the batch job {job_id} could not be ended and may be queued still: {why}"
            )
        if recorder is not None:
            recorder.end()
            manifest.update(workers_joined=len(recorder.joined))
        manifest.update(stop=asdict(report), batch_jobs=launcher.job_ids())
        if lost := manifest.content.get("lost"):
            records = read_node_records(directory)
            manifest.update(lost=explained(lost, records, directory / "logs"))
        if process is not None:
            process.terminate()  # at once: after the workers, for which PBS leaves 10 s in all
            process.wait_output()
            process.end_line()


def _load_what_merges() -> None:
    """Load the modules of the run's end while it begins: pandas and HDF5 take half a second."""
    from dasf_hpc import outcome  # noqa: F401
    from dasf_hpc.show import report  # noqa: F401


def _heed_request(directory: Path) -> None:
    """End gracefully where ``dasf-hpc cancel`` asked for it, from whatever host."""
    if (directory / STOP_REQUEST).exists():
        raise KeyboardInterrupt


def _attach_recording(launcher: Launcher, script: str) -> SchedulerRecorder:
    """Register the plugins: the scheduler hands them to every worker, also to late ones."""
    journals = launcher.place.directory / "journals"
    settings = launcher.settings
    recorder = SchedulerRecorder(journals, clock_port(settings.scheduler_port), settings.stacks)
    scheduler = launcher.cluster.scheduler

    async def attach() -> None:
        scheduler.add_plugin(recorder)
        await recorder.start(scheduler)

    launcher.cluster.sync(attach)
    plugins: list[WorkerPlugin] = [
        EndBeforeWalltime(),
        *([TidyWorker()] if launcher.security is not None else []),
        WorkerTaskPlugin(
            directory=journals, probe_clock=True, stacks=settings.stacks, script=script
        ),
        GPUAnnotationPlugin(directory=journals, message=settings.nvtx_message),
        ResourceMonitor.for_workers(settings.sample_interval, directory=journals),
    ]

    def register(client: Client) -> None:  # by their names: a second time does no harm
        for plugin in plugins:
            client.register_plugin(plugin)

    ask(launcher.cluster, register)
    return recorder


def _job_environment(launcher: Launcher, directory: Path) -> dict[str, str]:
    """Give the variables with which the script's ``Client()`` finds the cluster, and the user's."""
    environment = {
        ADDRESS_VARIABLE: launcher.cluster.scheduler_address,
        RUN_VARIABLE: str(directory),
        WORKERS_VARIABLE: str(launcher.shape.workers),
        OWN_CLUSTER_VARIABLE: launcher.settings.own_cluster,
        STACKS_VARIABLE: launcher.settings.stacks,
        FOLDER_VARIABLE: str(directory / ENVIRONMENT),
        SCHEDULER_FILE_VARIABLE: str(directory / SCHEDULER_FILE),
    }
    if launcher.security is not None:
        environment.update(client_environment(launcher.security))
    return environment


def _first_look(launcher: Launcher) -> Now:
    """Look at a cluster that has just been made."""

    async def first() -> Now:
        return look(launcher.cluster.scheduler, 0.0, launcher.shape.workers)

    now: Now = launcher.cluster.sync(first)
    return now


def _words(program: Job, arguments: Sequence[str], directory: Path) -> list[str]:
    """Give what Python is told to run."""
    executed = [str(directory / "logs" / program.executed)] if program.executed else []
    path = str(directory / SCHEDULER_FILE)
    return [
        *program.words,
        *executed,
        *(argument.replace("{scheduler_file}", path) for argument in arguments),
    ]


def _wait_for_job(
    process: JobProcess,
    launcher: Launcher,
    recorder: SchedulerRecorder,
    manifest: Manifest,
    told: Told,
) -> int:
    """Wait for the script, replacing node jobs that are lost where that was asked for.

    Tasks that no worker can run are told of.

    Raises
    ------
    WalltimeError, WorkersError
        If no node job is left: the script would wait for workers that cannot come.
    """
    settings, directory = launcher.settings, launcher.place.directory
    memory = Memory()
    unrunnable, scheduler = Unrunnable(), launcher.cluster.scheduler
    began = time.monotonic()

    async def look_at_scheduler() -> tuple[str | None, Now]:
        now = look(scheduler, time.monotonic() - began, launcher.shape.workers)
        return unrunnable.look(scheduler), now

    looked, tasks_wait = began, ""
    while (code := process.poll()) is None:
        time.sleep(0.05)
        if time.monotonic() - looked < 1.0:
            continue
        looked = time.monotonic()
        _heed_request(directory)
        waits, now = launcher.cluster.sync(look_at_scheduler)
        said = ""
        if waits is not None:
            tasks_wait = waits
            manifest.update(waiting_for=waits)
            if waits:
                manifest.note(waits)
            process.end_line()
            said = waits or "no task waits for such a worker any more"
        now = replace(now, waits_for=tasks_wait or launcher.why_workers_wait(now.workers))
        told(Step("Running the job", said=said, now=now))
        keep_now(directory, now)
        memory, end = _replace_jobs(launcher, recorder, manifest, memory)
        if end is not None and not launcher.jobs() and process.poll() is None:
            if end is End.WALLTIME:
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
    process.end_line()
    return code


def _replace_jobs(
    launcher: Launcher, recorder: SchedulerRecorder, manifest: Manifest, memory: Memory
) -> tuple[Memory, End | None]:
    """Look for node jobs that are lost or soon will be, and do what `policy` says about them."""
    settings, lost = launcher.settings, launcher.losses()
    _note_lost(manifest, lost)
    workers = recorder.joined.values()
    losses = [
        Loss(job.name, job.walltime, job.replaced, any(is_worker_of(job.name, w) for w in workers))
        for job in lost
    ]
    expiring = [job for job in launcher.expiring() if not job.replaced]
    wishes = Wishes(settings.on_lost == "replace", settings.on_walltime == "replace")
    names = [str(job.name) for job in expiring]
    decision = decide(losses, names, wishes, memory, time.monotonic())
    memory = decision.memory
    for job in expiring:
        job.replaced = str(job.name) in decision.expiring
    if decision.gave_up:
        manifest.note(
            f"the last {REPLACED_IN_VAIN} node jobs ended before a worker of theirs was there, so "
            f"no more replace them; one said: {launcher.last_words()}"
        )
    for _ in range(decision.submit):
        try:
            launcher.add_job()
        except BatchError as error:
            memory = refused(memory, time.monotonic())
            manifest.note(f"a replacement is asked for again later: {error}")
            break
        memory = submitted(memory)
        known = set(manifest.content.get("batch_jobs", []))
        jobs = launcher.job_ids()
        manifest.update(batch_jobs=jobs)
        if not decision.expiring:  # those are replaced before they are lost
            _note_replaced(manifest, [job for job in jobs if job not in known])
    return memory, decision.end


def _note_lost(manifest: Manifest, lost: Sequence[LostJob]) -> None:
    """Keep which node jobs were lost."""
    if lost:
        manifest.update(lost=[*manifest.content.get("lost", []), *map(asdict, lost)])


def _note_replaced(manifest: Manifest, new: Sequence[str]) -> None:
    """Keep which node job came in the place of the first lost one that has none."""
    lost = [dict(job) for job in manifest.content.get("lost", [])]
    for job in lost:
        if new and not job["replaced"] and not job.get("replaced_by"):
            job["replaced_by"] = new[0]
            manifest.update(lost=lost)
            return


def _write_report(directory: Path, told: Told) -> Headline | None:
    """Write the run's page and give what it says first; a run is no worse for not having one."""
    found: list[Headline] = []
    again = f"to write it again: dasf-hpc report {directory}"
    try:
        from dasf_hpc.show.report import write_report

        write_report(directory, told=told, heard=found.append)
    except KeyboardInterrupt:
        Manifest(directory).note(f"The report was interrupted; {again}")
    except DasfHpcError as error:
        Manifest(directory).note(f"{error} {again}")
    except Exception as bug:
        Manifest(directory).note(f"The report was not written, which is a bug: {bug!r}; {again}")
    return found[0] if found else None
