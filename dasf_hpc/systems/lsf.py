"""Batch systems: IBM Spectrum LSF, 10.1 on, as its reference documents it.

It was tried with commands that behave as documented, and has met no real LSF.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.request import Request
from dasf_hpc.systems.states import JobState, JobStatus, PendingReason

if TYPE_CHECKING:
    from dask_jobqueue.core import Job

#: bjobs, "Job states". The host of a job that is UNKWN does not answer; a ZOMBI was to be killed
#: there.
_STATES = {
    "PEND": JobState.PENDING,
    "PROV": JobState.PENDING,
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "UNKWN": JobState.RUNNING,
    "USUSP": JobState.SUSPENDED,
    "SSUSP": JobState.SUSPENDED,
    "DONE": JobState.GONE,
    "EXIT": JobState.GONE,
    "ZOMBI": JobState.ENDING,
}

#: bjobs, "exit_reason", the words before its colon.
_ENDINGS = {
    "TERM_OWNER": "was ended by bkill",
    "TERM_FORCE_OWNER": "was ended by bkill",
    "TERM_ADMIN": "was ended by an administrator",
    "TERM_FORCE_ADMIN": "was ended by an administrator",
    "TERM_RUNLIMIT": "reached its time limit",
    "TERM_MEMLIMIT": "used more memory than it had asked for",
    "TERM_PREEMPT": "was preempted by another job",
}

#: Between the fields of an answer: nothing that a job's name holds.
_BETWEEN = "|"
_MISSING = "-"


class Lsf(BatchSystem):
    """LSF."""

    name: ClassVar[str] = "lsf"
    title: ClassVar[str] = "LSF"
    submit: ClassVar[str] = "bsub"
    #: A script's own ``#BSUB`` lines are read from the standard input alone.
    submits_stdin: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ("bjobs", "bkill")
    question: ClassVar[tuple[str, ...]] = ("bjobs",)
    #: The reference's "Environment variables": what has bsub wait, be quiet or ask for more, and
    #: bjobs show or count otherwise.
    hijacking: ClassVar[tuple[str, ...]] = ("BSUB_", "LSB_BJOBS_", "LSB_SUB_")
    job_variable: ClassVar[str] = "LSB_JOBID"
    nodes_variable: ClassVar[str] = "LSB_DJOB_HOSTFILE"
    step_program: ClassVar[str] = "blaunch"
    mark: ClassVar[str] = "#BSUB"
    name_option: ClassVar[str] = "-J"
    templates: ClassVar[Mapping[str, str]] = {"head": "dasf-hpc.bsub"}
    queue_directive: ClassVar[str] = "-q {}"
    account_directive: ClassVar[str] = "-P {}"
    walltime_directive: ClassVar[str] = "-W {}"
    name_directive: ClassVar[str] = "-J {}"

    # -- submitting

    def read_ids(self, answer: str) -> list[str]:
        """Read bsub's line, or a number alone, as bjobs gives it."""
        found = re.findall(
            r"^Job <(\d+)> is submitted to (?:default )?queue <[^>]*>\.\s*$", answer, re.MULTILINE
        )
        found = found or re.findall(r"^(\d+)\s*$", answer, re.MULTILINE)
        return list(dict.fromkeys(found))

    def dask_job(self) -> type[Job]:
        """Give dask-jobqueue's class for LSF."""
        from dask_jobqueue.lsf import LSFJob

        job: type[Job] = LSFJob
        return job

    def job_options(self, request: Request) -> dict[str, Any]:
        """Give queue, project, walltime, GPUs and the user's directives.

        A job is not rerun by itself (bsub, ``-rn``): the run may be over by then.
        """
        if request.chunk:
            raise SettingsError(
                "Option --chunk is for PBS, whose jobs are made of chunks; on LSF use "
                f"--directive, such as --directive='-R \"select[{request.chunk[0]}]\"'."
            )
        directives = list(request.directives)
        if not any(re.match(r"-rn?(?:\s|$)", line) for line in directives):
            directives.insert(0, "-rn")
        if request.gpus:
            directives.insert(0, f'-gpu "num={request.gpus}"')
        if request.exclusive:
            directives.insert(0, "-x")
        # What the job says goes to the run's log; LSF would send it by mail.
        return {
            "queue": request.partition,
            "project": request.account,
            "walltime": self.walltime_text(request.seconds),
            "job_extra_directives": ["-o /dev/null", *directives],
        }

    def walltime_text(self, seconds: int) -> str:
        """Write bsub's ``hour:minute``, never less than what was asked for."""
        minutes = -(-seconds // 60)
        return f"{minutes // 60:02}:{minutes % 60:02}"

    def read_walltime(self, text: str) -> str:
        """Read bsub's ``[hour:]minute``."""
        hours, _, minutes = text.strip().rpartition(":")
        if not minutes.isdecimal() or (hours and not hours.isdecimal()):
            return text
        return f"{int(hours or 0) + int(minutes) // 60:02}:{int(minutes) % 60:02}:00"

    def refused_words(self, said: str) -> list[str]:
        """Give what bsub says before the words with which it ends a refusal."""
        lines = [line.strip() for line in said.splitlines()]
        return [
            line.removesuffix(" Job not submitted.").removesuffix(".")
            for line in lines
            if line and line not in ("Job not submitted.", "Request aborted by esub.")
        ]

    # -- asking and cancelling

    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Ask bjobs; a name comes last, for it may hold anything."""
        fields = f"jobid stat pend_reason job_name delimiter='{_BETWEEN}'"
        return ["bjobs", "-noheader", "-a", "-o", fields, *ids]

    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read bjobs' lines."""
        found = {}
        for line in answer.splitlines():
            # A reason may hold anything, too: what is sure is where the others stand.
            job_id, _, rest = line.strip().partition(_BETWEEN)
            state, _, rest = rest.partition(_BETWEEN)
            reason, between, name = rest.rpartition(_BETWEEN)
            if between and job_id.isdecimal():
                reason = "" if reason == _MISSING else reason
                found[job_id] = JobStatus(_STATES.get(state, JobState.ENDING), reason, name)
        return found

    def pending_reason(self, reason: str) -> PendingReason | None:
        """Leave it to LSF's own words, which are sentences."""
        return None

    def find_words(self, name: str) -> list[str]:
        """Ask bjobs for the user's jobs of a name."""
        return ["bjobs", "-noheader", "-o", "jobid", "-J", name]

    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Give bkill's words; with an id it looks at nothing else."""
        return ["bkill", job_id]

    def is_not_held(self, code: int, said: str) -> bool:
        """Know what bjobs and bkill say of a job that is over."""
        return "is not found" in said or "Job has already finished" in said

    def ended_words(self, job_id: str) -> list[str]:
        """Ask bjobs, which knows a job for a while (lsb.params, CLEAN_PERIOD: an hour)."""
        fields = f"stat exit_code exit_reason delimiter='{_BETWEEN}'"
        return ["bjobs", "-noheader", "-a", "-o", fields, job_id]

    def read_ending(self, answer: str) -> str:
        """Read state, exit code and LSF's reason."""
        state, _, rest = answer.strip().partition(_BETWEEN)
        code, _, reason = rest.partition(_BETWEEN)
        known = _ENDINGS.get(reason.partition(":")[0].strip())
        if known is not None:
            return known
        if state == "DONE":
            return "ended with exit code 0"
        return f"ended with exit code {code}" if state == "EXIT" and code.isdecimal() else ""

    # -- steps

    def list_hosts(self, nodes: str) -> list[str]:
        """Read the file of hosts, a line a slot."""
        try:
            lines = Path(nodes).read_text().split()
        except OSError as error:
            raise BatchError(f"{nodes} does not name the nodes of this job: {error}.") from None
        return list(dict.fromkeys(lines))

    def step_words(self, host: str, script: str, log: Path, cores: int) -> list[str]:
        """Start it with blaunch, whose output is the step's."""
        return ["blaunch", host, "/bin/bash", script]


LSF = Lsf()
