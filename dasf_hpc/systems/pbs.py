"""Batch systems: PBS (OpenPBS, PBS Professional, and what of Torque's commands is the same)."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.request import Request, hours_minutes_seconds
from dasf_hpc.systems.states import JobState, JobStatus, PendingReason

if TYPE_CHECKING:
    from dask_jobqueue.core import Job

#: qstat(1B), "job_state"; C is Torque's word for a job that ended.
_STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "T": JobState.PENDING,
    "W": JobState.PENDING,
    "M": JobState.PENDING,
    "R": JobState.RUNNING,
    "B": JobState.RUNNING,
    "S": JobState.SUSPENDED,
    "U": JobState.SUSPENDED,
    "E": JobState.ENDING,
    "C": JobState.GONE,
    "F": JobState.GONE,
    "X": JobState.GONE,
}

#: qstat's exit codes for a job that the server does not hold (PBSE_UNKJOBID, PBSE_HISTJOBID).
_NOT_HELD = (153, 35)
_FORGOTTEN = ("Unknown Job Id", "Job has finished")

#: With these words a job never runs, whether PBS says so or "Not Running".
_NEVER = (
    "Not enough total nodes available",
    "does not exist",
    "can't fit in the largest placement",
)

#: PBS Professional's guide for administrators, "Job Exit Status Codes": 256 and the number of a
#: signal; what it kills itself has a negative one.
_SIGNALLED = 256
_SIGTERM, _SIGKILL = 15, 9
_OVER_LIMIT = {-25: "cput", -26: "mem", -27: "ncpus", -28: "vmem", -29: "walltime"}


class Pbs(BatchSystem):
    """PBS."""

    name: ClassVar[str] = "pbs"
    title: ClassVar[str] = "PBS"
    submit: ClassVar[str] = "qsub"
    programs: ClassVar[tuple[str, ...]] = ("qstat", "qdel", "qselect")
    question: ClassVar[tuple[str, ...]] = ("qstat",)
    #: qsub(1B): the prefix of a script's directives. The others are of Torque's wrappers.
    hijacking: ClassVar[tuple[str, ...]] = ("PBS_DPREFIX", "QSUB_", "QSTAT_", "QDEL_")
    job_variable: ClassVar[str] = "PBS_JOBID"
    nodes_variable: ClassVar[str] = "PBS_NODEFILE"
    step_program: ClassVar[str] = "pbsdsh"
    #: pbsdsh passes a signal on and ends without waiting for the task.
    steps_end_late: ClassVar[bool] = True
    mark: ClassVar[str] = "#PBS"
    name_option: ClassVar[str] = "-N"
    templates: ClassVar[Mapping[str, str]] = {
        "head": "dasf-hpc.pbs",
        "allocation": "allocation.pbs",
        "array": "array.pbs",
    }
    queue_directive: ClassVar[str] = "-q {}"
    account_directive: ClassVar[str] = "-A {}"
    walltime_directive: ClassVar[str] = "-l walltime={}"
    name_directive: ClassVar[str] = "-N {}"

    # -- submitting

    def read_ids(self, answer: str) -> list[str]:
        """Read qsub(1B)'s line, ``NUMBER.SERVER``, or with the number alone where none is such."""
        found = re.findall(r"^(\d+)(?:\[\])?\.[\w.-]+\s*$", answer, re.MULTILINE)
        found = found or re.findall(r"^(\d+)\s*$", answer, re.MULTILINE)
        return list(dict.fromkeys(found))

    def dask_job(self) -> type[Job]:
        """Give dask-jobqueue's class for PBS."""
        from dask_jobqueue.pbs import PBSJob

        job: type[Job] = PBSJob
        return job

    def job_options(self, request: Request) -> dict[str, Any]:
        """Give queue, account, walltime, the chunk and the user's directives.

        PBS takes the first ``select`` and the first ``place`` of a script and ignores another one
        in silence. A job is not rerun by itself (qsub(1B), ``-r n``): the run may be over by then.
        """
        from dask_jobqueue.pbs import pbs_format_bytes_ceil

        for line in request.directives:
            if re.match(r"-l\s*(?:.*,)?\s*select=", line):
                raise SettingsError(
                    f"Option --directive is {line!r}: the run asks for its chunk itself, and PBS "
                    "takes the first select alone; add to it with --chunk, such as "
                    "--chunk=ngpus=1:model=a100."
                )
            if request.exclusive and re.match(r"-l\s*(?:.*,)?\s*place=", line):
                raise SettingsError(
                    f"Option --directive is {line!r}, and with --exclusive the run says place=excl "
                    "itself, of which PBS takes the first alone: leave --exclusive out."
                )
        chunk = [f"ncpus={request.cores}", f"mem={pbs_format_bytes_ceil(request.memory)}"]
        if request.gpus:
            chunk.append(f"{request.gpu_resource or 'ngpus'}={request.gpus}")
        added = [part for text in request.chunk for part in text.split(":")]
        named = {part.partition("=")[0] for part in added}
        chunk = [part for part in chunk if part.partition("=")[0] not in named]
        directives = list(request.directives)
        if not any(re.match(r"-r\s*[yn]", line) for line in directives):
            directives.insert(0, "-r n")
        if request.exclusive:
            directives.insert(0, "-l place=excl")
        # What the job says goes to the run's log; PBS would keep it until the end, and then wait
        # for minutes where it cannot be brought back.
        directives = ["-j oe", "-o /dev/null", *directives]
        return {
            "queue": request.partition,
            "account": request.account,
            "walltime": hours_minutes_seconds(request.seconds),
            "resource_spec": "select=1:" + ":".join([*chunk, *added]),
            "job_extra_directives": directives,
        }

    def refused_words(self, said: str) -> list[str]:
        """Give the lines that qsub marks with its name."""
        lines = re.findall(r"(?:qsub|qstat|sbatch|error): (?:error: )?(.+)", said)
        lines = [line.strip().rstrip("'") for line in lines if "There was an error" not in line]
        return [line.removeprefix("Batch job submission failed: ") for line in lines]

    # -- asking and cancelling

    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Ask qstat for all it knows."""
        return ["qstat", "-f", *ids]

    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read blocks of ``key = value`` after ``Job Id:`` lines.

        Job ids are cut to their number, as dask-jobqueue does: ``12.server`` and ``12`` are one.
        """
        found: dict[str, JobStatus] = {}
        for block in re.split(r"^Job Id:", _unwrapped(answer), flags=re.MULTILINE)[1:]:
            number = re.match(r"\s*(\d+)", block)
            state = re.search(r"^\s*job_state = (\w)", block, re.MULTILINE)
            comment = re.search(r"^\s*comment = (.+)$", block, re.MULTILINE)
            name = re.search(r"^\s*Job_Name = (.+)$", block, re.MULTILINE)
            if number:
                found[number[1]] = JobStatus(
                    _STATES.get(state[1], JobState.RUNNING) if state else JobState.RUNNING,
                    comment[1].strip() if comment else "",
                    name[1].strip() if name else "",
                )
        return found

    def pending_reason(self, reason: str) -> PendingReason | None:
        """Know OpenPBS's comments, "Can Never Run: WHY" and "Not Running: WHY".

        Their texts are those of its scheduler's ``job_info.cpp``.
        """
        never = reason.startswith("Can Never Run")
        said = reason.partition(":")[2].strip() or "PBS does not say why"
        if never or any(text in said for text in _NEVER):
            return PendingReason(
                f"PBS can never run it ({said}): lower the cores (--workers-per-node, "
                "--threads-per-worker), --memory or --gpus-per-node, or see --chunk",
                True,
            )
        lacks = re.search(r"of (?:\w+ )?resource: (\S+) \(R: (\S+) A: \S+ T: (\S+)\)", said)
        if lacks is not None and _number(lacks[2]) > _number(lacks[3]):
            # Of which nodes PBS speaks it does not say: another may have more.
            return PendingReason(
                f"PBS says that {lacks[3]} is all there is of {lacks[1]}, and {lacks[2]} is asked "
                "for: it may wait for ever"
            )
        return None

    def find_words(self, name: str) -> list[str]:
        """Ask qselect for the user's jobs of a name."""
        return ["qselect", "-u", getpass.getuser(), "-N", name]

    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Give qdel's words; it knows ids alone."""
        return ["qdel", job_id]

    def is_not_held(self, code: int, said: str) -> bool:
        """Know what qstat says of a job that is over and forgotten."""
        return code in _NOT_HELD or any(words in said for words in _FORGOTTEN)

    def ended_words(self, job_id: str) -> list[str]:
        """Ask qstat with the history, which a site may have turned off."""
        return ["qstat", "-x", "-f", job_id]

    def read_ending(self, answer: str) -> str:
        """Read ``Exit_status``, Torque's ``exit_status``."""
        found = re.search(r"^\s*[Ee]xit_status = (-?\d+)", _unwrapped(answer), re.MULTILINE)
        if found is None:
            return ""
        code = int(found[1])
        if code in _OVER_LIMIT:
            return f"was ended by PBS: it was over its limit of {_OVER_LIMIT[code]}"
        if code < 0:
            return f"was ended by PBS (Exit_status {code})"
        if code == _SIGNALLED + _SIGTERM:
            return "was ended by qdel or at its walltime (SIGTERM)"
        if code == _SIGNALLED + _SIGKILL:
            return "was killed (SIGKILL)"
        if code > _SIGNALLED:
            return f"was ended by signal {code - _SIGNALLED}"
        return f"ended with exit code {code}"

    # -- steps

    def list_hosts(self, nodes: str) -> list[str]:
        """Give the first line of each host in the file of nodes, by number: pbsdsh counts lines."""
        try:
            lines = Path(nodes).read_text().split()
        except OSError as error:
            raise BatchError(f"{nodes} does not name the nodes of this job: {error}.") from None
        return [str(lines.index(host)) for host in dict.fromkeys(lines)]

    def step_words(self, host: str, script: str, log: Path, cores: int) -> list[str]:
        """Start it with pbsdsh, which sends a task's output to the job's and not to us.

        A task has the environment that the job began with, perhaps without a PATH.
        """
        logged = 'exec /bin/bash "$0" >> "$1" 2>&1'
        words = ["/bin/bash", "-c", logged, script, str(log)]
        return ["pbsdsh", "-n", host, "--", *words]


def _number(text: str) -> float:
    """Give the number of an amount such as ``4``, ``16gb`` or ``16777216kb``; 0 for none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtp]?)[bw]?", text.lower())
    return float(found[1]) * 1024 ** " kmgtp".index(found[2] or " ") if found else 0.0


def _unwrapped(answer: str) -> str:
    """Give what ``qstat -f`` prints with every entry on one line.

    OpenPBS indents entries by blanks and wraps them at 78 columns with a tab; Torque's commands
    indent every entry by a tab.
    """
    return re.sub(r"\n\t(?![\w.]+ = )", "", answer)


PBS = Pbs()
