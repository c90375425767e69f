"""Launch: the contract of a launcher, and all of it that does not depend on the batch scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import re
import shlex
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import dask
import psutil
from dask.utils import parse_bytes
from dask_jobqueue.core import Job, JobQueueCluster
from distributed.core import Status
from distributed.security import Security

from dasf_hpc.errors import BatchError, PortError, RunDirectoryError, SettingsError, WorkersError
from dasf_hpc.launch.batch_system import COMMAND_TIMEOUT_S, BatchSystem, batch_name
from dasf_hpc.launch.dask_settings import SCHEDULER, WORKERS
from dasf_hpc.launch.deadline import STARTED_VARIABLE, margin_seconds
from dasf_hpc.launch.image import PYTHON, Container
from dasf_hpc.launch.node import UMASK_VARIABLE, users_umask
from dasf_hpc.launch.states import JobState, JobStatus, pending_reason
from dasf_hpc.launch.walltime import TOPIC
from dasf_hpc.launch.worker_command import file_stem, node_command
from dasf_hpc.launch.worker_environment import (
    ENVIRONMENT,
    FOLDER_VARIABLE,
    delete_environment,
    write_environment,
)
from dasf_hpc.launch.worker_options import (
    CUDA_WORKER,
    check_together,
    named_words,
)
from dasf_hpc.settings import Settings, walltime_seconds, with_jobqueue_yaml

logger = logging.getLogger(__name__)

#: Between two questions to the batch scheduler: site operators ask for no more than this.
POLL_S = 1.0
#: A reason for which waiting cannot help must last this long: SLURM corrects itself a few seconds
#: after a submission (measured: PartitionConfig became PartitionTimeLimit).
HOPELESS_AFTER_S = 8.0
#: SLURM's KillWait is 30 s by default, PBS's kill_delay 10 s: what was cancelled is gone by then.
CANCEL_WAIT_S = 45.0
#: The same where the user or the system wants us to end at once.
HURRY_WAIT_S = 3.0
#: How long the batch scheduler may not know a job yet that it has just accepted.
UNKNOWN_GRACE_S = 5.0


@dataclass(frozen=True)
class RunPlace:
    """Where a run keeps its things.

    Attributes
    ----------
    directory
        The run's directory, seen by head and nodes under this path.
    name
        The run's name.
    working_directory
        Where the user called us; the workers start there.
    container
        The image in which workers and script run; None for none.
    script_folder
        Where Python looks for modules first, as it does for ``python SCRIPT``; None for nowhere.
    """

    directory: Path
    name: str
    working_directory: Path
    container: Container | None = None
    script_folder: Path | None = None

    def python(self, settings: Settings) -> str:
        """Give the Python of workers and script."""
        return settings.worker_python or (PYTHON if self.container else sys.executable)

    def python_words(self, settings: Settings) -> list[str]:
        """Give the words that run that Python on this host, in the image where there is one."""
        words = self.container.words() if self.container else []
        return [*words, self.python(settings)]


@dataclass(frozen=True)
class Shape:
    """How many workers of what size, all defaults filled in.

    Attributes
    ----------
    nodes, workers_per_node, threads_per_worker, gpus_per_node
        Numbers.
    memory
        Bytes of one node job.
    """

    nodes: int
    workers_per_node: int
    threads_per_worker: int
    gpus_per_node: int
    memory: int

    @property
    def workers(self) -> int:
        """Number of worker processes of the run."""
        return self.nodes * self.workers_per_node


def run_shape(settings: Settings, local: bool) -> Shape:
    """Fill in the defaults of a run's shape.

    Raises
    ------
    SettingsError
        If what was asked for contradicts itself.
    """
    workers = settings.workers_per_node or settings.gpus_per_node or 1
    if settings.gpus_per_node and workers != settings.gpus_per_node:
        raise SettingsError(
            f"Option --workers-per-node is {workers} and --gpus-per-node {settings.gpus_per_node}: "
            "with GPUs there is one worker a GPU, so leave --workers-per-node out."
        )
    threads = settings.threads_per_worker
    if threads is None:
        cores = psutil.cpu_count() or 1
        # one for a GPU, as dask-cuda has it: threads that share one wait for each other
        alone = local and not settings.gpus_per_node
        threads = max(1, cores // (workers * settings.nodes)) if alone else 1
    if settings.memory is not None:
        memory = parse_bytes(settings.memory)
    elif local:
        memory = int(psutil.virtual_memory().total * 0.8 / settings.nodes)
    else:
        memory = workers * 4 * 10**9
    return Shape(settings.nodes, workers, threads, settings.gpus_per_node, memory)


@dataclass
class StopReport:
    """How the node jobs ended.

    Attributes
    ----------
    by_themselves, cancelled
        Batch job ids.
    seconds
        How long it took.
    """

    by_themselves: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def job_ids(self) -> list[str]:
        """All of them."""
        return [*self.by_themselves, *self.cancelled]


@dataclass(frozen=True)
class LostJob:
    """A node job that left the queue before the run was over.

    Attributes
    ----------
    job_id, name
        The batch job, and its name in the run.
    walltime
        Whether its workers ended because its walltime was near.
    replaced
        Whether another one was submitted in its place before it went.
    time
        When it was noticed, seconds of the epoch.
    """

    job_id: str
    name: str
    walltime: bool
    replaced: bool
    time: float


class NodeJob:
    """What our batch jobs do otherwise than dask-jobqueue's; mixed into its job classes.

    The script is kept in the run's directory, a refused submission is remembered rather than
    raised into Dask's event loop, and `close` lets the job end by itself: it asks the job's workers
    to exit, waits until nsys has written its report and the job has left the queue, and cancels
    only what is left after the time given.
    """

    job_id: str | None
    name: str
    _command_template: str

    #: Of jobs that a batch system holds.
    system: ClassVar[BatchSystem | None] = None

    def __init__(
        self,
        scheduler: Any = None,
        name: Any = None,
        *,
        launcher: Launcher,
        security: Any = None,
        **kwargs: Any,
    ) -> None:
        self.launcher = launcher
        self.batch_name = kwargs["job_name"] = batch_name(str(name))
        # dask-jobqueue pastes paths unquoted into the script; ours may hold blanks.
        tls = security.get_tls_config_for_role("worker") if security is not None else {}
        arguments = [
            word
            for key, value in tls.items()
            if key != "ciphers" and value
            for word in (f"--tls-{key.replace('_', '-')}", shlex.quote(str(value)))
        ]
        extra = [*kwargs.pop("worker_extra_args", []), *arguments]
        super().__init__(scheduler, name, worker_extra_args=extra, **kwargs)  # type: ignore[call-arg]
        # The placeholder of the node step's name, filled in where the name is known.
        self._command_template = self._command_template.replace(NAME_PLACE, shlex.quote(str(name)))
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.replaced = False

    async def _submit_job(self, script_filename: str) -> str:
        """Submit the script, and give the id of its job."""
        system = self.system
        assert system is not None
        # From the folder of logs, where the batch system then puts what the job says.
        answer = await self._call(
            [system.submit, script_filename],
            cwd=self.launcher.place.directory / "logs",
            env=system.environment(self.launcher.settings, submits=True),
        )
        ids = system.read_ids(answer)
        if len(ids) != 1:
            ids = await self.find()
        if len(ids) != 1:
            raise ValueError(system.no_id(answer))
        return ids[0]

    def _job_id_from_submit_output(self, out: str) -> str:
        """Take what `_submit_job` gives, for dask-jobqueue."""
        return out

    async def find(self) -> list[str]:
        """Look for the job in the queue by its name."""
        assert self.system is not None
        return await asyncio.to_thread(self.system.find, self.batch_name)

    @staticmethod
    async def _call(cmd: list[str], **kwargs: Any) -> str:
        """Run a command of the batch scheduler, bounded in time."""
        answer: str = await asyncio.wait_for(Job._call(cmd, **kwargs), COMMAND_TIMEOUT_S)
        return answer

    @contextlib.contextmanager
    def job_file(self) -> Iterator[str]:
        """Write the script into the run's directory, where it stays."""
        directory = self.launcher.place.directory / "scripts"
        path = directory / f"{file_stem(str(self.name))}.sh"
        path.write_text(self.job_script(), encoding="utf-8")  # type: ignore[attr-defined]
        yield str(path)

    async def start(self) -> None:
        """Submit the job."""
        try:
            await super().start()  # type: ignore[misc]
        except (TimeoutError, RuntimeError, OSError, ValueError) as error:
            said = str(error) or "no answer"
            self.launcher.refusals.append(self.launcher.refusal(said))
            self.status = Status.failed
            self.status = Status.running  # SpecCluster asserts it; the launcher ends the run
        self.submitted_at = time.monotonic()

    async def close(self) -> None:
        """Let the job end by itself, and cancel it where it does not."""
        if self.job_id is not None:
            await self.launcher.end_job(self)
        self.status = Status.closed
        self._event_finished.set()  # type: ignore[attr-defined]


#: Stands for the node job's name in the command until dask-jobqueue has given it one.
NAME_PLACE = "__DASF_HPC_NAME__"


#: Dask's word of where the scheduler is, in the run's directory while the run lasts.
SCHEDULER_FILE = "scheduler.json"


def is_worker_of(job: str, worker: str) -> bool:
    """Say by their names if a worker is a node job's: named as the job, or NAME-0, NAME-1 …"""
    return re.fullmatch(re.escape(job) + r"(-\d+)?", worker) is not None


class NodeJobs(JobQueueCluster):
    """A cluster in which a node job that takes the place of another gets a name of its own.

    Dask would give it the name of one that is gone, whose workers and files were others.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._numbers = itertools.count()
        super().__init__(**kwargs)

    def new_worker_spec(self) -> dict[str, Any]:
        """Give name and description of the next node job."""
        (description,) = super().new_worker_spec().values()
        return {f"{self.name}-{next(self._numbers)}": description}

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster ends the job of a worker it has not seen for 15 s; a nanny may take longer to
        # restart one, and whether a node job is lost is for the batch scheduler to say. It looks
        # this up here, and only here: the caller's configuration stays as it is.
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"}):
            super()._update_worker_status(op, msg)


class Launcher(ABC):
    """Gives a started Dask cluster whose workers are wrapped, and ends it without losing a report.

    The contract of a launcher, whatever the batch scheduler:

    - `start` starts the Dask scheduler in this process and submits one batch job a node; each runs
      `dasf_hpc.launch.node`, which starts the workers under nsys. It returns when all jobs are
      submitted, and raises `BatchError` with the batch scheduler's own words where one is refused.
    - `wait_for_workers` returns when enough workers are there. It raises where that cannot happen
      any more: a job that is refused while it waits, all jobs gone from the queue, time out.
    - `losses` names node jobs that left the queue before `stop`, `expiring` those that soon will;
      `add_job` submits another one.
    - `statuses` asks the batch scheduler once for all jobs, at most once a second.
    - `stop` asks every worker to exit and waits, bounded, until the jobs have left the queue by
      themselves; nothing that is left afterwards stays in the queue. It may be called at any time
      after `start` was, also when `start` raised, and more than once.

    A concrete launcher names its dask-jobqueue job class (with `NodeJob` mixed in), says what of
    the settings goes into it, turns its scheduler's answers into `JobStatus`, and shortens its
    scheduler's refusals.
    """

    #: Name in settings and manifest.
    name: ClassVar[str]
    #: The program that submits; its absence means that this launcher cannot be used here.
    submit_program: ClassVar[str | None] = None
    #: The batch system that holds the jobs, None where they are processes of this machine.
    system: ClassVar[BatchSystem | None] = None
    job_class: ClassVar[type[Job]]
    local: ClassVar[bool] = False

    def __init__(self, settings: Settings, place: RunPlace, security: Security | None) -> None:
        self.settings = settings = with_jobqueue_yaml(settings, self.name)
        check_together(settings)
        self.place = place
        self.security = security
        self.shape = run_shape(settings, self.local)
        self.refusals: list[BatchError] = []
        self.cluster: Any = None
        self.stop_report = StopReport()
        self._lost: list[str] = []
        self._statuses: dict[str, JobStatus] = {}
        self._asked_at = 0.0
        self._asking: asyncio.Lock | None = None
        self._stopping = False
        self._cancel_now = False
        self._tasks_abandoned = False

    # -- what a concrete launcher gives

    @abstractmethod
    def job_options(self) -> dict[str, Any]:
        """Give what goes into the job class besides what is common to all."""

    @abstractmethod
    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask the batch scheduler for these jobs; a job it does not hold any more may be left out.

        Raises
        ------
        BatchError
            If it does not answer.
        """

    @abstractmethod
    def refusal(self, message: str) -> BatchError:
        """Make one sentence of what the batch scheduler said when it refused a job."""

    # -- the job script

    def common_options(self) -> dict[str, Any]:
        """Give the keywords for dask-jobqueue's job class that do not depend on the scheduler."""
        settings, shape, place = self.settings, self.shape, self.place
        python = place.python(settings)
        # Without the address a worker's HTTP server would listen for everybody.
        extra: list[str] = ["--dashboard-address", "127.0.0.1:0"]
        walltime = walltime_seconds(settings.walltime)
        margin = margin_seconds(walltime, settings.walltime_margin)
        options: dict[str, Any] = {
            "cores": shape.workers_per_node * shape.threads_per_worker,
            "processes": shape.workers_per_node,
            "memory": f"{shape.memory} B",
            "python": node_command(
                python,
                str(place.directory),
                NAME_PLACE,
                settings.nsys,
                settings.nsys_path,
                settings.nsys_arg,
                None if self.local else (walltime, margin),
                place.container.words() if place.container else (),
            ),
            "job_script_prologue": [
                f"export {STARTED_VARIABLE}=${{EPOCHSECONDS:-$(date +%s)}}",
                f"export {UMASK_VARIABLE}={users_umask():04o}",
                "umask 077",
                *(f"export {name}={shlex.quote(value)}" for name, value in WORKERS.items()),
                f"cd -- {shlex.quote(str(place.working_directory))} || exit 1",
                *settings.prologue,
                *self._modules(),
            ],
            "log_directory": None,
            "worker_extra_args": extra,
            "death_timeout": 60,
        }
        if shape.gpus_per_node:
            options["worker_command"] = CUDA_WORKER
            options["job_script_prologue"].append(self.visible_gpus())
        if not settings.dashboard:
            extra.append("--no-dashboard")
        if settings.env:
            # Before what else is preloaded: that may need them.
            extra += ["--preload", "dasf_hpc.launch.worker_environment"]
            folder = shlex.quote(str(place.directory / ENVIRONMENT))
            options["job_script_prologue"].append(f"export {FOLDER_VARIABLE}={folder}")
        # dask-jobqueue pastes these unquoted into the script.
        extra += [shlex.quote(word) for word in (*named_words(settings), *settings.worker_arg)]
        if settings.local_directory:
            options["local_directory"] = shlex.quote(settings.local_directory)
        return options

    def job_script(self) -> str:
        """Give the batch script of a node job as it would be submitted."""
        job = self.job_class(
            f"{self._protocol() or 'tcp://'}SCHEDULER:PORT",
            name=f"{self.place.name}-0",
            launcher=self,
            security=self.security,
            interface=self.settings.interface,
            protocol=self._protocol(),
            **self.common_options(),
            **self.job_options(),
        )
        script: str = job.job_script()
        return script

    def _modules(self) -> list[str]:
        """Give the shell lines with which a node's Python sees what lies beside the script."""
        if self.place.script_folder is None:
            return []
        folder = shlex.quote(str(self.place.script_folder))
        return [f'export PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}"']

    def visible_gpus(self) -> str:
        """Give the shell line that names a node's GPUs, on each of which dask-cuda starts a worker.

        Some batch schedulers (PBS without its cgroups hook) name none, and dask-cuda would take all
        that the node has.
        """
        first = ",".join(map(str, range(self.shape.gpus_per_node)))
        return f'export CUDA_VISIBLE_DEVICES="${{CUDA_VISIBLE_DEVICES-{first}}}"'

    def _protocol(self) -> str | None:
        """Give the protocol as dask-jobqueue takes it; None for tcp, its own."""
        protocol = self.settings.protocol or ("tls" if self.security else "tcp")
        return None if protocol == "tcp" else f"{protocol}://"

    # -- start

    def scheduler_options(self) -> dict[str, Any]:
        """Give the options of the Dask scheduler."""
        options: dict[str, Any] = {
            "port": self.settings.scheduler_port,
            "dashboard": self.settings.dashboard,
            "dashboard_address": "127.0.0.1:0",
        }
        return options

    def start(self) -> None:
        """Start the scheduler and submit the node jobs.

        Raises
        ------
        PortError
            If the scheduler's port or interface cannot be used.
        BatchError
            If a job is refused.
        """
        self._check_port()
        write_environment(self.place.directory, self.settings.env)
        try:
            with dask.config.set(SCHEDULER):
                self.cluster = NodeJobs(
                    job_cls=self.job_class,
                    name=self.place.name,
                    security=self.security,
                    silence_logs=False,
                    protocol=self._protocol(),
                    scheduler_options=self.scheduler_options(),
                    interface=self.settings.interface,
                    launcher=self,
                    **self.common_options(),
                    **self.job_options(),
                )
        except (RuntimeError, ValueError, OSError) as error:
            text = str(error)
            if "interface" in text:
                raise PortError(
                    f"The interface {self.settings.interface!r} cannot be used on this host: "
                    f"{text.splitlines()[0]}"
                ) from None
            raise
        self._write_scheduler_file()
        self.cluster.scale(jobs=self.shape.nodes)
        while len(self.jobs()) < self.shape.nodes and not self.refusals:
            time.sleep(0.02)
        self.check_refused()

    def _write_scheduler_file(self) -> None:
        """Write what ``dask scheduler --scheduler-file`` does."""
        # Dask's own way ends in a traceback where the folder cannot be written at the end.
        path = self.place.directory / SCHEDULER_FILE
        try:
            path.touch(mode=0o600)
            path.write_text(json.dumps(self.cluster.scheduler.identity(), indent=2))
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be written: {error.strerror}.") from None

    def _check_port(self) -> None:
        """Try the scheduler's port: Dask's own complaint about a taken one names another cause."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1" if self.local else "", self.settings.scheduler_port))
            except OSError as error:
                raise PortError(
                    f"Port {self.settings.scheduler_port} of this host cannot be used "
                    f"({(error.strerror or str(error)).lower()}): choose another with "
                    "--scheduler-port, or 0 for any free one."
                ) from None

    def check_refused(self) -> None:
        """Raise the first refusal of the batch scheduler, if there is one."""
        if self.refusals:
            raise self.refusals[0]

    def jobs(self) -> list[Any]:
        """Give the node jobs that were submitted."""
        return [] if self.cluster is None else list(self.cluster.workers.values())

    def job_ids(self) -> list[str]:
        """Give the ids of all batch jobs that were submitted, also of those that are gone."""
        ids = [job.job_id for job in self.jobs() if job.job_id is not None]
        return list(dict.fromkeys([*self._lost, *ids, *self.stop_report.job_ids]))

    def workers(self) -> int:
        """Give the number of workers that are connected."""
        return len(self.cluster.scheduler.workers)

    def wait_for_workers(self, wanted: int, told: Callable[[int, str], None]) -> None:
        """Wait until enough workers are connected.

        Parameters
        ----------
        wanted
            How many.
        told
            Called with the number of workers and a word on what the rest waits for.

        Raises
        ------
        BatchError
            If a job is refused, or waits for what it can never get.
        WorkersError
            If all jobs ended without enough workers, or the time is over.
        """
        begun = time.monotonic()
        hopeless_since: float | None = None
        while self.workers() < wanted:
            self.check_refused()
            statuses = self.cluster.sync(self.statuses)
            pending = [s for s in statuses.values() if s.state is JobState.PENDING]
            reasons = sorted({pending_reason(s.reason).sentence for s in pending})
            told(self.workers(), "; ".join(reasons))
            hopeless = [s for s in pending if pending_reason(s.reason).hopeless]
            now = time.monotonic()
            if not hopeless:
                hopeless_since = None
            elif hopeless_since is None:
                hopeless_since = now
            elif now - hopeless_since > HOPELESS_AFTER_S:
                self._cancel_now = True
                sentence = pending_reason(said := hopeless[0].reason).sentence
                said = "" if said in sentence else f" ({said})"
                raise BatchError(f"A node job can never start{said}: {sentence}.")
            waited_for = sum(s.state.in_queue for s in statuses.values())
            possible = waited_for * self.shape.workers_per_node
            possible += sum(
                len(self.workers_of(job))
                for job in self.jobs()
                if job.job_id in statuses and not statuses[job.job_id].state.in_queue
            )
            if statuses and possible < wanted:
                raise WorkersError(
                    f"{len(statuses) - waited_for} of {len(statuses)} node jobs ended before their "
                    f"workers were there; the last words of one: {self.last_words()} (more in "
                    f"{self.place.directory / 'logs'}); --min-workers starts with fewer."
                )
            timeout = self.settings.start_timeout
            if timeout is not None and now - begun > timeout:
                self._cancel_now = True
                waits = f": {'; '.join(reasons)}" if reasons else ""
                raise WorkersError(
                    f"After {timeout:g} s {self.workers()} of {wanted} workers are there{waits}; "
                    "wait longer with --start-timeout, or start with fewer (--min-workers)."
                )
            time.sleep(0.1)

    def last_words(self) -> str:
        """Give the last line that any node job wrote."""
        lines = []
        for path in sorted((self.place.directory / "logs").glob("*")):
            with contextlib.suppress(OSError):
                text = path.read_text(errors="replace").strip()
                if text and not path.name.startswith(("job.", "scheduler.")):
                    lines.append(text.splitlines()[-1][:300])
        return lines[-1] if lines else "none"

    # -- the queue

    async def statuses(self) -> dict[str, JobStatus]:
        """Give the state of every submitted job, asked for at most once a second."""
        if self._asking is None:
            self._asking = asyncio.Lock()
        async with self._asking:
            jobs = [job for job in self.jobs() if job.job_id is not None]
            ids = [job.job_id for job in jobs]
            if ids and time.monotonic() - self._asked_at >= POLL_S:
                try:
                    answer = await self.ask(ids)
                except BatchError as error:
                    # A busy controller answers again; what it said last still holds meanwhile.
                    logger.warning("%s", error)
                else:
                    now = time.monotonic()
                    for job in jobs:
                        if not self._is_own(job, answer):
                            await self._find_own(job)
                            continue
                        status = answer.get(job.job_id, JobStatus(JobState.GONE))
                        fresh = now - job.submitted_at < UNKNOWN_GRACE_S
                        if not status.state.in_queue and fresh and job.job_id not in answer:
                            status = JobStatus(JobState.PENDING, "None")
                        self._statuses[job.job_id] = status
                        if status.state is JobState.RUNNING and job.started_at is None:
                            job.started_at = now
                self._asked_at = time.monotonic()
            return {i: self._statuses.get(i, JobStatus(JobState.PENDING, "None")) for i in ids}

    def _is_own(self, job: Any, answer: dict[str, JobStatus]) -> bool:
        """Say if the queue shows a job's id under the name that we gave it, or does not show it."""
        status = answer.get(job.job_id)
        return status is None or status.name in ("", job.batch_name)

    async def _find_own(self, job: Any) -> None:
        """Look for a job whose id turned out to be that of another one."""
        other, found = job.job_id, await job.find()
        if len(found) == 1:
            job.job_id = found[0]
            return
        job.job_id = None
        self.refusals.append(
            BatchError(
                f"The answer to a submission named the job {other}, which is not this run's, and "
                f"none in the queue has the name {job.batch_name}."
            )
        )

    async def losses(self) -> list[LostJob]:
        """Look for node jobs that left the queue since the last call, and let them go."""
        statuses = await self.statuses()
        ended = [str(event.get("name")) for _, event in self.cluster.scheduler.get_events(TOPIC)]
        fresh = []
        for job in self.jobs():
            status = statuses.get(job.job_id)
            if status is None or status.state.in_queue:
                continue
            name = str(job.name)
            walltime = any(is_worker_of(name, worker) for worker in ended)
            fresh.append(LostJob(job.job_id, name, walltime, job.replaced, time.time()))
            self._lost.append(job.job_id)
            self._let_go(job)
        return fresh

    def _let_go(self, job: Any) -> None:
        """Have the cluster know a job no more."""
        job.status = Status.closed  # SpecCluster looks at what it made when it closes
        self.cluster.worker_spec.pop(job.name, None)
        del self.cluster.workers[job.name]

    def expiring(self) -> list[Any]:
        """Give the node jobs whose workers will end for the walltime soon.

        Soon is early enough for another job to start and take over what the workers hold, if the
        queue is short: three margins, at most half of the time there is.
        """
        if self.local:
            return []
        walltime = walltime_seconds(self.settings.walltime)
        margin = margin_seconds(walltime, self.settings.walltime_margin)
        usable = walltime - margin
        lead = min(3 * margin, usable / 2)
        now = time.monotonic()
        return [
            job
            for job in self.jobs()
            if job.started_at is not None and now - job.started_at > usable - lead
        ]

    def add_job(self) -> None:
        """Submit one more node job.

        Raises
        ------
        BatchError
            If it is refused; the others are as they were.
        """
        wanted = len(self.cluster.worker_spec) + 1
        self.cluster.scale(jobs=wanted)
        while len(self.jobs()) < wanted and not self.refusals:
            time.sleep(0.02)
        if not self.refusals:
            return

        async def forget() -> None:
            for job in self.jobs():
                if job.job_id is None:
                    self._let_go(job)

        while len(self.jobs()) < wanted:  # the cluster has it a moment after it was refused
            time.sleep(0.02)
        self.cluster.sync(forget)
        refusal = self.refusals[0]
        self.refusals.clear()
        raise refusal

    # -- the end

    def workers_of(self, job: Any) -> list[str]:
        """Give the addresses of a job's workers."""
        return [
            address
            for address, state in self.cluster.scheduler.workers.items()
            if is_worker_of(str(job.name), str(state.name))
        ]

    async def end_job(self, job: Any) -> None:
        """Let one job end by itself, bounded by ``stop_timeout``; cancel what is left."""
        scheduler = self.cluster.scheduler
        deadline = time.monotonic() + self.settings.stop_timeout
        asked: set[str] = set()
        while True:
            for address in set(self.workers_of(job)) - asked:
                asked.add(address)
                if self._tasks_abandoned:  # or the worker would wait 30 s for them
                    close = {"op": "close", "reason": "tasks abandoned", "executor_wait": False}
                    scheduler.worker_send(address, close)
                else:
                    scheduler.close_worker(address)
            status = (await self.statuses()).get(job.job_id, JobStatus(JobState.GONE))
            if not status.state.in_queue:
                self.stop_report.by_themselves.append(job.job_id)
                return
            unstarted = status.state is JobState.PENDING and not asked
            if unstarted or self._cancel_now or time.monotonic() > deadline:
                await self.cancel_job(job)
                self.stop_report.cancelled.append(job.job_id)
                await self._wait_gone(job, HURRY_WAIT_S if self._cancel_now else CANCEL_WAIT_S)
                return
            await asyncio.sleep(0.1)

    async def _close(self, job: Any) -> None:
        """End one job; whatever goes wrong on the way, cancel it."""
        try:
            await job.close()
        except Exception:
            logger.exception("the node job %s could not be ended gracefully", job.job_id)
            if job.job_id is not None:
                await self.cancel_job(job)
                self.stop_report.cancelled.append(job.job_id)

    async def _wait_gone(self, job: Any, seconds: float) -> None:
        """Give a cancelled job the time to be killed, which is when its report may be written."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = (await self.statuses()).get(job.job_id)
            if status is None or not status.state.in_queue:
                return
            await asyncio.sleep(0.2)

    async def cancel_job(self, job: Any) -> None:
        """Cancel a job at once, if the queue shows it as ours."""
        system = self.system
        assert system is not None
        try:
            await asyncio.to_thread(system.cancel_own, [job.job_id], self.place.name)
        except BatchError as error:
            logger.warning("%s", error)

    def abandon_tasks(self) -> None:
        """Have `stop` not wait for what the workers still execute."""
        self._tasks_abandoned = True

    def cancel_on_stop(self) -> None:
        """Have `stop` cancel the jobs rather than wait for them, also while it is waiting."""
        self._cancel_now = True

    def stop(self) -> StopReport:
        """End the run's jobs, then the scheduler."""
        if self.cluster is None:
            delete_environment(self.place.directory)
        if self.cluster is None or self._stopping:
            return self.stop_report
        self._stopping = True
        begun = time.monotonic()

        async def end_all() -> None:
            await asyncio.gather(*(self._close(job) for job in self.jobs()))

        self.cluster.sync(end_all)
        self.stop_report.seconds = time.monotonic() - begun
        self.cluster.worker_spec.clear()
        self.cluster.workers.clear()
        if self.cluster.scheduler.status in (Status.closing, Status.closed):
            # The script shut it down: Dask would try for 30 s to reach it.
            self.cluster.shutdown_scheduler = False
        self.cluster.close()
        delete_environment(self.place.directory)
        return self.stop_report
