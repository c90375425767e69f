"""Launch: node jobs on PBS (OpenPBS, PBS Professional, and Torque's commands)."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from dask_jobqueue.pbs import PBSJob, pbs_format_bytes_ceil

from dasf_hpc.errors import BatchError
from dasf_hpc.launch.batch_system import BatchSystem
from dasf_hpc.launch.launcher import Launcher, NodeJob
from dasf_hpc.launch.states import JobState, JobStatus
from dasf_hpc.settings import walltime_seconds

#: qstat(1B), "job_state"; C is Torque's word for a job that ended.
_STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "T": JobState.PENDING,
    "W": JobState.PENDING,
    "M": JobState.PENDING,
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
    "B": JobState.RUNNING,
    "E": JobState.ENDING,
    "C": JobState.GONE,
    "F": JobState.GONE,
    "X": JobState.GONE,
}

#: qstat's exit codes for a job that the server does not hold (PBSE_UNKJOBID, PBSE_HISTJOBID).
_NOT_HELD = ("153", "35")
_FORGOTTEN = ("Unknown Job Id", "Job has finished")


class Pbs(BatchSystem):
    """PBS: OpenPBS, PBS Professional, and what of Torque's commands is the same."""

    name: ClassVar[str] = "pbs"
    submit: ClassVar[str] = "qsub"
    templates: ClassVar[Mapping[str, str]] = {
        "head": "dasf-hpc.pbs",
        "allocation": "allocation.pbs",
        "array": "array.pbs",
    }
    mark: ClassVar[str] = "#PBS"
    queue_directive: ClassVar[str] = "-q {}"
    account_directive: ClassVar[str] = "-A {}"
    walltime_directive: ClassVar[str] = "-l walltime={}"
    name_directive: ClassVar[str] = "-N {}"
    #: qsub(1B): the prefix of a script's directives. The others are of Torque's wrappers.
    hijacking: ClassVar[tuple[str, ...]] = ("PBS_DPREFIX", "QSUB_", "QSTAT_", "QDEL_")

    def read_ids(self, answer: str) -> list[str]:
        """Read qsub(1B)'s line, ``NUMBER.SERVER``, or with the number alone where none is such."""
        found = re.findall(r"^(\d+)(?:\[\])?\.[\w.-]+\s*$", answer, re.MULTILINE)
        found = found or re.findall(r"^(\d+)\s*$", answer, re.MULTILINE)
        return list(dict.fromkeys(found))

    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Ask qstat for all it knows."""
        return ["qstat", "-f", *ids]

    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read what `parse_qstat` reads."""
        return parse_qstat(answer)

    def find_words(self, name: str) -> list[str]:
        """Ask qselect for the user's jobs of a name."""
        return ["qselect", "-u", getpass.getuser(), "-N", name]

    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Give qdel's words; it knows ids alone."""
        return ["qdel", job_id]

    def is_not_held(self, code: int, said: str) -> bool:
        """Know what qstat says of a job that is over and forgotten."""
        return str(code) in _NOT_HELD or any(words in said for words in _FORGOTTEN)


PBS = Pbs()


class PbsNodeJob(NodeJob, PBSJob):
    """A node job submitted with qsub."""

    system: ClassVar[BatchSystem | None] = PBS


class PbsLauncher(Launcher):
    """Node jobs on PBS; see `Launcher` for the contract."""

    name: ClassVar[str] = "pbs"
    system: ClassVar[BatchSystem | None] = PBS
    submit_program: ClassVar[str | None] = PBS.submit
    job_class: ClassVar[type[Job]] = PbsNodeJob

    def job_options(self) -> dict[str, Any]:
        """Give queue, account, walltime, resources and the user's directives."""
        shape = self.shape
        resources = (
            f"select=1:ncpus={shape.workers_per_node * shape.threads_per_worker}"
            f":mem={pbs_format_bytes_ceil(shape.memory)}"
        )
        if shape.gpus_per_node:
            resources += f":ngpus={shape.gpus_per_node}"
        directives = list(self.settings.directive)
        if self.settings.exclusive:
            directives.insert(0, "-l place=excl")
        seconds = walltime_seconds(self.settings.walltime)
        return {
            "queue": self.settings.partition,
            "account": self.settings.account,
            "walltime": f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}",
            "resource_spec": resources,
            "job_extra_directives": directives,
        }

    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask qstat for all jobs at once; where one is gone, for each of them."""
        try:
            answer = await PbsNodeJob._call(PBS.ask_words(job_ids), env=PBS.environment())
            return PBS.read(answer)
        except (OSError, TimeoutError) as error:
            raise BatchError(f"qstat does not answer: {error or 'time out'}") from None
        except RuntimeError as error:
            if len(job_ids) == 1:
                code = re.search(r"Exit code: (\d+)", str(error))
                if code and code[1] in _NOT_HELD:
                    return {}
                raise BatchError(f"qstat does not answer: {_said(str(error))}") from None
        found: dict[str, JobStatus] = {}
        for job_id in job_ids:
            found.update(await self.ask([job_id]))
        return found

    def refusal(self, message: str) -> BatchError:
        """Make one sentence of qsub's words."""
        return BatchError(
            f"PBS refused a node job: {_said(message)} (the script is in "
            f"{self.place.directory / 'scripts'})."
        )


def parse_qstat(answer: str) -> dict[str, JobStatus]:
    """Read what ``qstat -f`` prints: blocks of ``key = value`` after ``Job Id:`` lines.

    Job ids are cut to their number, as dask-jobqueue does: ``12.server`` and ``12`` are one.
    """
    found: dict[str, JobStatus] = {}
    # OpenPBS indents entries by blanks and wraps them at 78 columns with a tab; Torque's commands
    # indent every entry by a tab.
    answer = re.sub(r"\n\t(?![\w.]+ = )", "", answer)
    for block in re.split(r"^Job Id:", answer, flags=re.MULTILINE)[1:]:
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


def _said(message: str) -> str:
    """Give the words of qsub or qstat out of a failed command's output."""
    errors = re.findall(r"(?:qsub|qstat|sbatch|error): (?:error: )?(.+)", message)
    errors = [line.strip().rstrip("'") for line in errors if "There was an error" not in line]
    errors = [line.removeprefix("Batch job submission failed: ") for line in errors]
    unique = list(dict.fromkeys(errors))
    if unique:
        return "; ".join(unique)[:400]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
