"""Launch: what a batch system is asked, in which words, and what is believed of its answers.

`Slurm` and `Pbs`, each in the module of its launcher, are such. Nothing is believed that the batch
system does not document: an id is a whole line of a submission's answer, and a job is a run's only
if the queue shows it under the name that the run gave it. What does not carry the run's name is
never cancelled.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.states import JobStatus
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


class BatchSystem(ABC):
    """The facts of one batch system."""

    #: Name in settings and manifest.
    name: ClassVar[str]
    #: The program that submits a script.
    submit: ClassVar[str]
    #: Variables with which a user or site has commands ask for, show or cancel something else than
    #: their words say; names, or beginnings of names where they end with ``_``.
    hijacking: ClassVar[tuple[str, ...]]

    # -- how a batch script is written

    #: The templates in the folder of the system's name: head, allocation and array.
    templates: ClassVar[Mapping[str, str]]
    #: What a line with a directive begins with.
    mark: ClassVar[str]
    #: Directives; each takes one word at ``{}``.
    queue_directive: ClassVar[str]
    account_directive: ClassVar[str]
    walltime_directive: ClassVar[str]
    name_directive: ClassVar[str]

    def directive_line(self, directive: str) -> str:
        """Give the line of a script that holds a directive."""
        return f"{self.mark} {directive}\n"

    def walltime_text(self, seconds: int) -> str:
        """Write a time limit as the directive takes it."""
        return f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"

    # -- what a batch system gives

    @abstractmethod
    def read_ids(self, answer: str) -> list[str]:
        """Give the ids in the answer to a submission, those alone that stand as documented."""

    @abstractmethod
    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Give the command that tells of jobs."""

    @abstractmethod
    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read its answer."""

    @abstractmethod
    def find_words(self, name: str) -> list[str]:
        """Give the command that gives the ids of the user's jobs of a name, one a line."""

    @abstractmethod
    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Give the command that cancels a job; where it can, only if that has the name."""

    @abstractmethod
    def is_not_held(self, code: int, said: str) -> bool:
        """Say if a command failed because the batch system does not hold the job any more."""

    def submit_variables(self, settings: Settings | None) -> set[str]:
        """Give those variables of `hijacking` that a submission may obey: a site's own defaults."""
        return set()

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

    def ask(self, ids: Sequence[str]) -> dict[str, JobStatus] | None:
        """Give what the batch system says of jobs; None where it does not answer."""
        found: dict[str, JobStatus] = {}
        for job_id in ids:
            done = _run(self.ask_words([job_id]), self.environment())
            if done is None:
                return None
            if done.returncode == 0:
                found.update(self.read(done.stdout))
            elif not self.is_not_held(done.returncode, done.stderr):
                return None
        return found

    def find(self, name: str) -> list[str]:
        """Give the ids of the user's jobs of a name that are in the queue."""
        done = _run(self.find_words(name), self.environment())
        return self.read_ids(done.stdout) if done is not None and done.returncode == 0 else []

    def submit_script(self, script: Path, folder: Path, name: str, settings: Settings) -> str:
        """Submit a script from a folder; give the id of the job, whose name is known.

        Raises
        ------
        BatchError
            If it is refused, or the answer names no job.
        """
        done = _run([self.submit, str(script)], self.environment(settings, True), folder)
        if done is None:
            raise BatchError(f"{self.submit} could not be run, or did not answer.")
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
            raise BatchError(
                f"The batch scheduler refused the head's job: {said[0]} (see {script})."
            )
        ids = self.read_ids(done.stdout)
        shown = self.ask(ids) if len(ids) == 1 else {}
        if len(ids) != 1 or any(status.name not in ("", name) for status in (shown or {}).values()):
            ids = self.find(name)
        if len(ids) != 1:
            raise BatchError(self.no_id(done.stdout))
        return ids[0]

    def no_id(self, answer: str) -> str:
        """Say that an answer names no job."""
        said = " / ".join(answer.split("\n"))[:300].strip(" /")
        return (
            f"{self.submit} answered {said!r}, which names no job, and the queue has none of the "
            "run's name: is it a wrapper of the site's?"
        )

    def cancel_own(self, ids: Sequence[str], run: str) -> list[str]:
        """Cancel those of these jobs that carry a run's name; give them.

        Raises
        ------
        BatchError
            If the batch system does not answer.
        """
        found = self.ask(ids)
        if found is None:
            raise BatchError(f"{shlex.join(self.ask_words(ids))} does not answer: try again.")
        own = [job_id for job_id, status in found.items() if is_of_run(status.name, run)]
        for job_id in own:
            words = self.cancel_words(job_id, found[job_id].name)
            if _run(words, self.environment()) is None:
                raise BatchError(f"{' '.join(words)} could not be run, or does not answer.")
        return own


def _run(
    words: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None where it cannot be run or does not answer."""
    try:
        return subprocess.run(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
