"""Batch systems: SLURM, from 20.02 on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.request import Request
from dasf_hpc.systems.states import JobState, JobStatus, PendingReason

if TYPE_CHECKING:
    from dask_jobqueue.core import Job

    from dasf_hpc.settings import Settings

#: squeue(1), "JOB STATE CODES"; whatever is not here and still listed is being ended.
_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "SUSPENDED": JobState.SUSPENDED,
    "STOPPED": JobState.SUSPENDED,
    "STAGE_OUT": JobState.ENDING,
    "COMPLETING": JobState.ENDING,
}

#: squeue(1), "JOB REASON CODES", as far as there is something to say about them.
REASONS = {
    "Priority": PendingReason("jobs with a higher priority are waiting in the same partition"),
    "Resources": PendingReason("no node is free that has what is asked for"),
    "None": PendingReason("the scheduler has not looked at it yet"),
    "BeginTime": PendingReason("it is not to begin yet"),
    "Dependency": PendingReason("it waits for another job"),
    "JobHeldUser": PendingReason("it is held; release it with scontrol release"),
    "JobHeldAdmin": PendingReason("an administrator holds it"),
    "Reservation": PendingReason("its reservation has not begun"),
    "ReqNodeNotAvail": PendingReason("a node it needs is down, drained or reserved"),
    "Licenses": PendingReason("it waits for a licence"),
    "PartitionDown": PendingReason("the partition is down", True),
    "PartitionInactive": PendingReason("the partition is inactive", True),
    "PartitionConfig": PendingReason(
        "no node of the partition can ever give what is asked for: lower the cores "
        "(--workers-per-node, --threads-per-worker), --memory or --gpus-per-node",
        True,
    ),
    "PartitionNodeLimit": PendingReason(
        "the partition cannot give what is asked for: lower --workers-per-node, "
        "--threads-per-worker or --memory",
        True,
    ),
    "PartitionTimeLimit": PendingReason("--walltime is longer than the partition allows", True),
    "BadConstraints": PendingReason("no node meets its constraints", True),
    "InvalidAccount": PendingReason("the account is not valid: see --account", True),
    "InvalidQOS": PendingReason("the quality of service is not valid: see --directive", True),
    "AssocGrpGRES": PendingReason("the account's share of GPUs is in use"),
    "AssocMaxWallDurationPerJobLimit": PendingReason(
        "--walltime is longer than the account may use", True
    ),
    "QOSMaxWallDurationPerJobLimit": PendingReason(
        "--walltime is longer than the quality of service allows", True
    ),
    "QOSMaxJobsPerUserLimit": PendingReason("you run as many jobs as you may at once"),
    "QOSMaxCpuPerUserLimit": PendingReason("you use as many cores as you may at once"),
    "QOSMaxGRESPerUser": PendingReason("you use as many GPUs as you may at once"),
}

#: What scontrol(1) calls the end of a job, squeue(1), "JOB STATE CODES".
_ENDINGS = {
    "BOOT_FAIL": "ended because its node did not boot",
    "CANCELLED": "was cancelled",
    "DEADLINE": "reached its deadline",
    "NODE_FAIL": "ended because its node failed",
    "OUT_OF_MEMORY": "used more memory than it had asked for",
    "PREEMPTED": "was preempted by another job",
    "REVOKED": "was revoked",
    "TIMEOUT": "reached its time limit",
}


class Slurm(BatchSystem):
    """SLURM."""

    name: ClassVar[str] = "slurm"
    title: ClassVar[str] = "SLURM"
    submit: ClassVar[str] = "sbatch"
    programs: ClassVar[tuple[str, ...]] = ("squeue", "scancel")
    question: ClassVar[tuple[str, ...]] = ("squeue", "-h", "--me")
    #: The sections "INPUT ENVIRONMENT VARIABLES" of sbatch(1), squeue(1) and scancel(1). What
    #: concerns the cluster as such, SLURM_CONF and SLURM_CLUSTERS, is left: all obey it alike.
    hijacking: ClassVar[tuple[str, ...]] = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SLURM_EXPORT_ENV")
    job_variable: ClassVar[str] = "SLURM_JOB_ID"
    nodes_variable: ClassVar[str] = "SLURM_JOB_NODELIST"
    step_program: ClassVar[str] = "srun"
    mark: ClassVar[str] = "#SBATCH"
    name_option: ClassVar[str] = "-J"
    templates: ClassVar[Mapping[str, str]] = {
        "head": "dasf-hpc.sbatch",
        "allocation": "allocation.sbatch",
        "array": "array.sbatch",
    }
    queue_directive: ClassVar[str] = "--partition={}"
    account_directive: ClassVar[str] = "--account={}"
    walltime_directive: ClassVar[str] = "--time={}"
    name_directive: ClassVar[str] = "--job-name={}"
    #: A site's or user's defaults for what a run need not say, and the options that say it.
    _defaults: ClassVar[dict[str, tuple[str, ...]]] = {
        "SBATCH_ACCOUNT": ("--account", "-A"),
        "SBATCH_CLUSTERS": ("--clusters", "-M"),
        "SBATCH_CONSTRAINT": ("--constraint", "-C"),
        "SBATCH_PARTITION": ("--partition", "-p"),
        "SBATCH_QOS": ("--qos", "-q"),
        "SBATCH_RESERVATION": ("--reservation",),
    }

    # -- submitting

    def submit_variables(self, settings: Settings | None) -> set[str]:
        """Give defaults for what this run does not say: sbatch prefers them to a script."""
        said = list(settings.directive) if settings else []
        if settings is not None and settings.account:
            said.append("--account")
        if settings is not None and settings.partition:
            said.append("--partition")
        return {
            name
            for name, options in self._defaults.items()
            if not any(_sets(line, option) for line in said for option in options)
        }

    def read_ids(self, answer: str) -> list[str]:
        """Read sbatch(1)'s own line, or that of its option ``--parsable``."""
        found = re.findall(
            r"^(?:Submitted batch job (\d+)(?: on cluster \S+)?|(\d+)(?:;\S+)?)\s*$",
            answer,
            re.MULTILINE,
        )
        said = [line for line, _ in found if line] or [number for _, number in found]
        return list(dict.fromkeys(said))

    def dask_job(self) -> type[Job]:
        """Give dask-jobqueue's class for SLURM."""
        from dask_jobqueue.slurm import SLURMJob

        job: type[Job] = SLURMJob
        return job

    def job_options(self, request: Request) -> dict[str, Any]:
        """Give partition, account, walltime, GPUs and the user's directives.

        A job is not put into the queue again by itself (sbatch(1), ``--no-requeue``): the run may
        be over by then.
        """
        if request.chunk:
            raise SettingsError(
                "Option --chunk is for PBS, whose jobs are made of chunks; on SLURM use "
                f"--directive, such as --directive=--constraint={request.chunk[0]}."
            )
        directives = list(request.directives)
        if not any(_sets(line, "--requeue") for line in directives):
            directives.insert(0, "--no-requeue")
        if request.gpus:
            directives.insert(0, f"--gres={request.gpu_resource or 'gpu'}:{request.gpus}")
        if request.exclusive:
            directives.insert(0, "--exclusive")
        return {
            "queue": request.partition,
            "account": request.account,
            "walltime": request.walltime,
            "job_extra_directives": directives,
        }

    def refused_words(self, said: str) -> list[str]:
        """Give the lines that sbatch marks as errors."""
        words = re.findall(r"(?:sbatch|slurm_\w+)?: ?error: (.+)", said)
        words = words or re.findall(r"^sbatch: (.+)", said, re.MULTILINE)
        return [re.sub(r"^Batch job submission failed: ", "", line).strip() for line in words]

    # -- asking and cancelling

    def ask_words(self, ids: Sequence[str]) -> list[str]:
        """Ask squeue; a name comes last, for it may hold anything."""
        return ["squeue", "-h", "-o", "%i|%T|%r|%j", "-j", ",".join(ids)]

    def read(self, answer: str) -> dict[str, JobStatus]:
        """Read squeue's lines."""
        found = {}
        for line in answer.splitlines():
            parts = line.strip().split("|", 3)
            if len(parts) == 4:
                job_id, state, reason, name = parts
                found[job_id] = JobStatus(_STATES.get(state, JobState.ENDING), reason, name)
        return found

    def pending_reason(self, reason: str) -> PendingReason | None:
        """Look it up; details may follow a comma or a blank."""
        return REASONS.get(reason.strip("()").split(",")[0].split(" ")[0])

    def find_words(self, name: str) -> list[str]:
        """Ask squeue for the user's jobs of a name."""
        return ["squeue", "-h", "--me", "-o", "%i", "-n", name]

    def cancel_words(self, job_id: str, name: str) -> list[str]:
        """Have scancel look at the name, too."""
        return ["scancel", f"--name={name}", job_id]

    def is_not_held(self, code: int, said: str) -> bool:
        """Know what squeue says of a job that is over and forgotten."""
        return "Invalid job id" in said

    def ended_words(self, job_id: str) -> list[str]:
        """Ask scontrol, which knows a job for a while (slurm.conf(5), MinJobAge: 300 s)."""
        return ["scontrol", "--oneliner", "show", "job", job_id]

    def read_ending(self, answer: str) -> str:
        """Read ``JobState``, and ``ExitCode``, which is ``CODE:SIGNAL``."""
        state = re.search(r"\bJobState=(\w+)", answer)
        if state is not None and state[1] in _ENDINGS:
            return _ENDINGS[state[1]]
        code = re.search(r"\bExitCode=(\d+):(\d+)", answer)
        if state is None or code is None or state[1] not in ("COMPLETED", "FAILED"):
            return ""
        if code[2] != "0":
            return f"was ended by signal {code[2]}"
        return f"ended with exit code {code[1]}"

    # -- steps

    def list_hosts(self, nodes: str) -> list[str]:
        """Have scontrol write the compressed list out."""
        try:
            return subprocess.run(
                ["scontrol", "show", "hostnames", nodes],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout.split()
        except (OSError, subprocess.SubprocessError) as error:
            raise BatchError(f"scontrol does not name the nodes of this job: {error}.") from None

    def step_words(self, host: str, script: str, log: Path, cores: int) -> list[str]:
        """Start it with srun, whose output is the step's."""
        return [
            *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}"),
            # All memory and GPUs of the job's share of the node, also while another step ends.
            *("--overlap", "--mem=0", f"--cpus-per-task={cores}", "--cpu-bind=none"),
            *("bash", script),
        ]


def _sets(line: str, option: str) -> bool:
    """Say if a directive sets an option."""
    short = len(option) == 2 and line.startswith(option)
    return short or line == option or line.startswith((f"{option}=", f"{option} "))


SLURM = Slurm()
