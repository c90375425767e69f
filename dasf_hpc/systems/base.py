"""Batch systems: what one is asked, in which words, and what is believed of its answers.

`Slurm`, `Pbs` and `Lsf`, each with all its facts in a module of its own, are such. Nothing is
believed that the batch system does not document: an id is a whole line of a submission's answer,
and a job is a run's only if the queue shows it under the name that the run gave it. What does not
carry the run's name is never cancelled.
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dasf_hpc.errors import BatchError
from dasf_hpc.systems.request import Request, hours_minutes_seconds
from dasf_hpc.systems.states import JobStatus, PendingReason

if TYPE_CHECKING:
    from dask_jobqueue.core import Job

    from dasf_hpc.settings import Settings

#: A controller that does not answer within this does not answer (SLURM's own MessageTimeout is 10).
COMMAND_TIMEOUT_S = 60.0

#: All batch jobs of a run are named by it: this, the run's name, and a number or "head".
PREFIX = "dasf-"
HEAD = "head"


def batch_name(node_job: str) -> str:
    """Give the name under which the queue shows a node job."""
    return PREFIX + node_job


def head_name(run: str) -> str:
    """Give the name under which the queue shows the head of a run."""
    return f"{PREFIX}{run}-{HEAD}"


def is_of_run(name: str, run: str) -> bool:
    """Say by its name in the queue if a job is a run's."""
    return name.startswith(f"{PREFIX}{run}-")


@dataclass
class Cancelled:
    """What came of cancelling jobs.

    Attributes
    ----------
    done
        Ids of those that the batch system was told to end, and took it.
    failed
        Of the others, what it said.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class BatchSystem(ABC):
    """The facts of one batch system."""

    #: Name in settings and manifest, and as people write it.
    name: ClassVar[str]
    title: ClassVar[str]
    #: The program that submits a script, and whether it wants that as its standard input.
    submit: ClassVar[str]
    submits_stdin: ClassVar[bool] = False
    #: Other programs that a run calls, and a harmless question to the server.
    programs: ClassVar[tuple[str, ...]]
    question: ClassVar[tuple[str, ...]]
    #: Variables with which a user or site has commands ask for, show or cancel something else than
    #: their words say; names, or beginnings of names where they end with ``_``.
    hijacking: ClassVar[tuple[str, ...]]
    #: The variable that holds a batch job's id.
    job_variable: ClassVar[str]
    #: The variable that tells a batch job of its nodes, and the program that runs steps on them.
    nodes_variable: ClassVar[str]
    step_program: ClassVar[str]
    #: Whether a step lives on for a moment when the program that started it is told to end, and
    #: must not be told, too, where its whole job is being ended.
    steps_end_late: ClassVar[bool] = False
    #: The mark in front of a script's directives, and the option with which dask-jobqueue names a
    #: job.
    mark: ClassVar[str]
    name_option: ClassVar[str]
    #: The templates in the folder of the system's name, such as the head's.
    templates: ClassVar[Mapping[str, str]]
    #: Directives of a head; each takes one word at ``{}``.
    queue_directive: ClassVar[str]
    account_directive: ClassVar[str]
    walltime_directive: ClassVar[str]
    name_directive: ClassVar[str]

    def directive_line(self, directive: str) -> str:
        """Give the line of a script that holds a directive."""
        return f"{self.mark} {directive}\n"

    def walltime_text(self, seconds: int) -> str:
        """Write a time limit as the directive takes it."""
        return hours_minutes_seconds(seconds)

    # -- what a batch system gives: submitting

    @abstractmethod
    def read_ids(self, answer: str) -> list[str]:
        """Give the ids in the answer to a submission, those alone that stand as documented."""

    @abstractmethod
    def dask_job(self) -> type[Job]:
        """Give dask-jobqueue's job class."""

    @abstractmethod
    def job_options(self, request: Request) -> dict[str, Any]:
        """Give the keywords with which that class asks for what is wanted.

        Raises
        ------
        SettingsError
            If what the user adds would be ignored by the batch system.
        """

    @abstractmethod
    def refused_words(self, said: str) -> list[str]:
        """Give what matters of what the submit program said when it refused a script."""

    # -- … asking and cancelling

    @abstractmethod
    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Give the command that tells of jobs."""

    @abstractmethod
    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read its answer."""

    @abstractmethod
    def pending_reason(self, reason: str) -> PendingReason | None:
        """Say what a job's reason to wait means; None where there is nothing to say about it."""

    @abstractmethod
    def find_words(self, name: str) -> list[str]:
        """Give the command that gives the ids of the user's jobs of a name, one a line."""

    @abstractmethod
    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Give the command that cancels a job; where it can, only if that has the name."""

    @abstractmethod
    def is_not_held(self, code: int, said: str) -> bool:
        """Say if a command failed because the batch system does not hold the job any more."""

    @abstractmethod
    def ended_words(self, job_id: str) -> list[str]:
        """Give the command that tells of a job that left the queue."""

    @abstractmethod
    def read_ending(self, answer: str) -> str:
        """Say from its answer how the job ended, as the end of "it …"; empty where not known."""

    def read_walltime(self, text: str) -> str:
        """Give a time limit as dask-jobqueue's configuration has it, as ``[D-]HH:MM:SS``."""
        return text

    def submit_variables(self, settings: Settings | None) -> set[str]:
        """Give those variables of `hijacking` that a submission may obey: a site's own defaults."""
        return set()

    # -- … steps of a batch job

    @abstractmethod
    def list_hosts(self, nodes: str) -> list[str]:
        """Name the nodes of the batch job that this runs in, each once, as `step_words` takes them.

        Parameters
        ----------
        nodes
            The value of `nodes_variable`.

        Raises
        ------
        BatchError
            If the batch system does not name them.
        """

    @abstractmethod
    def step_words(self, host: str, script: str, log: Path, cores: int) -> list[str]:
        """Give the words that run a script on a node of this batch job, its output in the log.

        What the words themselves write is put into the log, too.
        """

    # -- what is the same for all

    def environment(
        self, settings: Settings | None = None, submits: bool = False
    ) -> dict[str, str]:
        """Give the environment of a command of ours: without what would have it do another thing.

        Parameters
        ----------
        settings
            Those of the run, None where they are not known.
        submits
            Whether the command submits a job.
        """
        kept = self.submit_variables(settings) if submits else set()
        return {
            name: value
            for name, value in os.environ.items()
            if name in kept or not self._hijacks(name)
        }

    def _hijacks(self, name: str) -> bool:
        return any(
            name.startswith(known) if known.endswith("_") else name == known
            for known in self.hijacking
        )

    def ask(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Give what the batch system says of jobs; those that it does not hold are left out.

        Raises
        ------
        BatchError
            If it does not answer.
        """
        if not ids:
            return {}
        words = self.ask_words(ids)
        done = _run(words, self.environment())
        if done is None:
            raise BatchError(f"{words[0]} could not be run, or does not answer.")
        if done.returncode == 0:
            return self.read(done.stdout)
        if not self.is_not_held(done.returncode, done.stderr):
            said = self._said(done.stderr or done.stdout)
            raise BatchError(f"{words[0]} does not answer: {said}.")
        found: dict[str, JobStatus] = {}
        if len(ids) > 1:  # one that is gone may keep the others from being shown
            for job_id in ids:
                found.update(self.ask([job_id]))
        return found

    def find(self, name: str) -> list[str]:
        """Give the ids of the user's jobs of a name that are in the queue."""
        done = _run(self.find_words(name), self.environment())
        return self.read_ids(done.stdout) if done is not None and done.returncode == 0 else []

    def how_it_ended(self, job_id: str) -> str:
        """Say how a job that left the queue ended, as the end of "it …"; empty where not known."""
        done = _run(self.ended_words(job_id), self.environment())
        return self.read_ending(done.stdout) if done is not None else ""

    def why_pending(self, reason: str) -> PendingReason:
        """Give the sentence for a job's reason to wait, its own words where there is none."""
        known = self.pending_reason(reason)
        if known is not None:
            return known
        return PendingReason(f"the scheduler says: {reason.strip('()') or 'nothing'}")

    def submit_script(self, script: Path, folder: Path, name: str, settings: Settings) -> str:
        """Submit a script from a folder; give the id of the job, whose name is known.

        Raises
        ------
        BatchError
            If it is refused, or the answer names no job.
        """
        words = [self.submit] if self.submits_stdin else [self.submit, str(script)]
        done = _run(
            words, self.environment(settings, True), folder, script if self.submits_stdin else None
        )
        if done is None:
            raise BatchError(f"{self.submit} could not be run, or did not answer.")
        if done.returncode != 0:
            what = "the head's job" if name.endswith(f"-{HEAD}") else "a node job"
            raise self.refusal(f"{done.stderr}\n{done.stdout}", what, script)
        ids = self.read_ids(done.stdout)
        if len(ids) != 1:
            ids = self.find(name)
        if len(ids) != 1:
            raise BatchError(self.no_id(done.stdout))
        return ids[0]

    def own_id(self, job_id: str, name: str) -> str:
        """Give a job's id again if the queue shows it under its name, else that which has it.

        Raises
        ------
        BatchError
            If none has.
        """
        try:
            status = self.ask([job_id]).get(job_id)
        except BatchError:  # it was asked just now: that it does not answer is no reason to doubt
            return job_id
        if status is None or status.name in ("", name):
            return job_id
        found = self.find(name)
        if len(found) != 1:
            raise BatchError(
                f"The answer to a submission named the job {job_id}, which is not this run's, and "
                f"none in the queue has the name {name}."
            )
        return found[0]

    def refusal(self, said: str, what: str, script: Path) -> BatchError:
        """Make one sentence of what the submit program said when it refused a script."""
        return BatchError(
            f"{self.title} refused {what}: {self._said(said)} (the script is {script})."
        )

    def _said(self, answer: str) -> str:
        """Give what matters of a failed command's words."""
        words = list(dict.fromkeys(self.refused_words(answer))) or [_last_line(answer)]
        return "; ".join(words)[:400].removesuffix(".")

    def no_id(self, answer: str) -> str:
        """Say that an answer names no job."""
        said = " / ".join(answer.split("\n"))[:300].strip(" /")
        return (
            f"{self.submit} answered {said!r}, which names no job, and the queue has none of the "
            "run's name: is it a wrapper of the site's?"
        )

    def cancel_own(self, ids: Sequence[str], run: str) -> Cancelled:
        """Cancel those of these jobs that carry a run's name.

        Raises
        ------
        BatchError
            If the batch system does not answer.
        """
        cancelled = Cancelled()
        try:
            found = self.ask(ids)
        except BatchError as error:
            raise BatchError(f"Not cancelled, try again: {', '.join(ids)}; {error}") from None
        for job_id, status in found.items():
            if not is_of_run(status.name, run) or not status.state.in_queue:
                continue
            words = self.cancel_words(job_id, status.name)
            done = _run(words, self.environment())
            if done is None:
                raise BatchError(f"{' '.join(words)} could not be run, or does not answer.")
            if done.returncode == 0 or self.is_not_held(done.returncode, done.stderr):
                cancelled.done.append(job_id)
            else:
                cancelled.failed[job_id] = self._said(done.stderr or done.stdout)
        return cancelled


def _run(
    words: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None = None,
    standard_input: Path | None = None,
) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None where it cannot be run or does not answer."""
    try:
        with (standard_input or Path(os.devnull)).open("rb") as stream:
            return subprocess.run(
                words,
                cwd=folder,
                env=environment,
                stdin=stream,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
