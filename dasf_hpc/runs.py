"""Runs on disk: which there are and in what state, how to stop one, what it said."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasf_hpc.errors import BatchError, RunDirectoryError
from dasf_hpc.launch.head import HEAD_LOG, in_queue
from dasf_hpc.launch.head_end import HEAD_ENDED
from dasf_hpc.launch.last_words import batch_logs
from dasf_hpc.launch.node import read_node_records
from dasf_hpc.launch.worker_environment import delete_environment
from dasf_hpc.manifest import (
    FINAL,
    MANIFEST,
    STOP_REQUEST,
    TRACE,
    Manifest,
    find_run,
    run_state,
    worker_recorded,
)
from dasf_hpc.systems import SYSTEMS

#: A head whose run is over says so within this time, or was killed before it could.
HEAD_SAYS_S = 60.0


@dataclass(frozen=True)
class ListedRun:
    """A run in a folder of runs.

    Attributes
    ----------
    name, directory, job, on
        What it is.
    state
        queued, running, complete, partial, failed or abandoned (its submit died).
    doing
        The step it is at while it runs, or why it failed.
    started, ended
        Seconds of the epoch, None where not known.
    exit_code
        The script's, None where it did not end.
    """

    name: str
    directory: str
    job: str
    on: str
    state: str
    doing: str
    started: float | None
    ended: float | None
    exit_code: int | None


def list_runs(runs_dir: Path) -> list[ListedRun]:
    """List the runs of a folder, oldest first.

    Raises
    ------
    RunDirectoryError
        If there is no such folder.
    """
    if not runs_dir.is_dir():
        raise RunDirectoryError(f"There is no folder {runs_dir}; give the folder of the runs.")
    found = []
    for path in sorted(runs_dir.glob(f"*/{MANIFEST}")):
        content = Manifest(path.parent).content
        state = state_now(path.parent)
        doing = str(content.get("error") or content.get("waiting_for") or "")
        if state == "running" and not doing:
            doing = str(content.get("state", ""))
        found.append(
            ListedRun(
                name=path.parent.name,
                directory=str(path.parent),
                job=str(content.get("job", "")),
                on=str(content.get("on", "")),
                state=state,
                doing=doing,
                started=content.get("started"),
                ended=content.get("ended"),
                exit_code=content.get("exit_code"),
            )
        )
    return found


#: How long the submission of a head may take: as long as its command is waited for, and some.
SUBMITTING_S = 90.0


def _age(content: dict[str, Any]) -> float:
    started = content.get("started")
    return time.time() - started if isinstance(started, int | float) else 0.0


def state_now(directory: Path) -> str:
    """Give the state of a run; one whose head left the queue without having begun is abandoned."""
    state = run_state(directory)
    if state == "queued":
        content = Manifest(directory).content
        head = content.get("head_job")
        if head is None:  # it is being submitted just now, unless that died
            return "abandoned" if _age(content) > SUBMITTING_S else state
        if in_queue(str(content.get("on")), str(head)) is False:
            state = run_state(directory)  # it may have begun meanwhile
            return "abandoned" if state == "queued" else state
    return state


def _to_merge(directory: Path) -> str:
    """Say how to merge what was recorded; empty where there is nothing, or it is merged."""
    if (directory / TRACE).exists() or not worker_recorded(directory):
        return ""
    return f"; to merge what was recorded: dasf-hpc merge {directory}"


#: How long a cancelled job may stay in the queue.
GONE_S = 10.0


def cancel_run(run: Path, wait_s: float) -> str:
    """Stop a run gracefully and say how that went, in a sentence.

    A run whose `submit` lives, on whatever host, finds the request in its directory. Where it does
    not, the run's batch jobs are cancelled by their ids.

    Raises
    ------
    RunDirectoryError
        If there is no run.
    BatchError
        If a job could not be cancelled.
    """
    directory = find_run(run)
    if run_state(directory) in FINAL:
        return f"{directory.name} is over already ({run_state(directory)}){_to_merge(directory)}."
    if run_state(directory) == "running":
        try:
            (directory / STOP_REQUEST).touch(mode=0o600)
        except OSError as error:
            raise RunDirectoryError(f"{directory} cannot be written: {error.strerror}.") from None
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            state = run_state(directory)
            if state != "running":
                return f"{directory.name} has ended ({state}){_to_merge(directory)}."
            time.sleep(0.5)
        return f"{directory.name} was asked to end and has not yet, after {wait_s:g} s."
    content = Manifest(directory).content
    head = content.get("head_job")
    jobs = [str(job) for job in (*([head] if head else []), *content.get("batch_jobs", []))]
    system = SYSTEMS.get(str(content.get("on")))
    if system is None:
        return (
            f"The submit of {directory.name} is gone; its workers on this machine end by "
            f"themselves: dasf-hpc merge {directory}"
        )
    cancelled = system.cancel_own(jobs, directory.name)
    for job, said in cancelled.failed.items():
        raise BatchError(f"The job {job} of {directory.name} could not be ended: {said}")
    delete_environment(directory)
    if run_state(directory) == "queued":
        deadline = time.monotonic() + GONE_S
        while head and in_queue(str(content.get("on")), str(head)) is not False:
            if time.monotonic() > deadline:
                raise BatchError(
                    f"The job {head} of {directory.name} was cancelled and is still in the queue, "
                    "or the batch scheduler does not answer: try again."
                )
            time.sleep(0.5)
        Manifest(directory).update(
            state="failed", ended=time.time(), error="cancelled in the queue"
        )
        return f"{directory.name} was taken out of the queue."
    return (
        f"The submit of {directory.name} is gone; {len(cancelled.done)} batch job(s) were "
        f"cancelled: dasf-hpc merge {directory}"
    )


def log_files(directory: Path, who: str) -> list[Path]:
    """Give the log files of a run's job, scheduler or node, also of one that is to come.

    Raises
    ------
    RunDirectoryError
        If the run has no such node.
    """
    logs = directory / "logs"
    if who == "job":
        return [logs / "job.out", logs / "job.err"]
    if who == "scheduler":
        return [logs / "scheduler.log"]
    head = Manifest(directory).content.get("head_job")
    if who == "head" and head:
        # What its script wrote, and what the batch scheduler has to add.
        return [logs / HEAD_LOG, *batch_logs(logs, head)]
    records = read_node_records(directory)
    files = sorted(
        {
            path
            for record in records
            if who in (record["hostname"], record.get("batch_job"), record.get("name"))
            for path in (
                *batch_logs(logs, record.get("batch_job")),
                *logs.glob(f"{record.get('name')}.log"),
            )
        }
    )
    if not files:
        known = ", ".join(sorted({str(record["hostname"]) for record in records})) or "none yet"
        raise RunDirectoryError(
            f"{directory.name} has no log of {who!r}; there are: job, scheduler, and the nodes "
            f"{known}."
        )
    return files


def read_logs(run: Path, who: str, follow: bool) -> Iterator[str]:
    """Give the text of a run's logs, and with ``follow`` what is added until the run is over."""
    directory = find_run(run)
    files = log_files(directory, who)
    positions = dict.fromkeys(files, 0)
    # A file may end within a character while it is written.
    decoders = {path: codecs.getincrementaldecoder("utf-8")("replace") for path in files}
    final_since = None
    while True:
        over = state_now(directory) not in ("queued", "running")
        if over and who == "head" and follow:  # it says what the run holds after that
            final_since = final_since or time.monotonic()
            said = (directory / "logs" / HEAD_ENDED).exists()
            over = said or time.monotonic() - final_since > HEAD_SAYS_S
        for path in files:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(positions[path])
                data = file.read()
                positions[path] = file.tell()
            text = decoders[path].decode(data, final=not follow or over)
            if text:
                yield text
        if not follow or over:
            return
        time.sleep(0.3)
