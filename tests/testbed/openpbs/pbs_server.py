"""The server, the scheduler and the execution hosts behind this folder's commands, in one process.

It answers ``qsub``, ``qstat``, ``qdel`` and ``pbsdsh`` on a Unix socket, starts the jobs it has
hosts for as processes of this machine, and ends them as OpenPBS does: SIGTERM to every process of
the job's sessions, SIGKILL after ``kill_delay_s``; as soon as the job's shell has ended, whatever
is left of them is killed. A task that ``pbsdsh`` starts is a session of its own, with the
environment that the job began with and not the one its script made. The hosts are only counted:
their processors, memory and GPUs are promises.

A job's script is started by a login shell, so that the hosts' profile has the last word about the
variables that ``qsub -V`` handed over. What a job says lies in the spool until the job has ended
and is copied only then; a copy that fails (``stage_out_fails``) keeps the job in state ``E`` for
``stage_out_stall_s``, and what it said stays in ``undelivered``.

A host can die, with the processes that it was promised to: its jobs are shown as running, and the
server cannot have them deleted except by force. When ``node_fail_requeue_s`` have passed it takes
the host for down and queues those jobs again that may be rerun (``qsub -r``); others are deleted.
That is played for the host of a job's shell; a job that lost another one goes on without it.

It ends, and everything it started with it, when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import re
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SERVER = "pbsserver"
TICK_S = 0.03
JOB_PATH = "/usr/local/bin:/usr/bin:/bin"
LOGIN = ("/bin/sh", "-c", '. "$0"; exec "$@"')
"""A login shell: the profile, which is the next word, and then what follows."""
KILLED_AT_WALLTIME = -29
"""``JOB_EXEC_KILL_WALLTIME``."""
SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans of the jobs become our children, so that none is lost from sight."""

UNKNOWN_JOB = 15001
BAD_VALUE = 15014
BAD_STATE = 15016
NO_MOM = 15070
UNKNOWN_QUEUE = 15018
QUEUE_DISABLED = 15021
UNKNOWN_RESOURCE = 15035
EXCEEDS_QUEUE = 15036
JOB_WIDE_WITH_SELECT = 15109
PLACE_WITHOUT_SELECT = 15111
FINISHED_JOB = 15139

CHUNK_RESOURCES = ("ncpus", "mem", "vmem", "ngpus", "mpiprocs", "ompthreads", "host", "arch")
JOB_RESOURCES = ("select", "place", "walltime", "cput", "ncpus", "mem", "ngpus", "nodect")
_ARRANGEMENTS = ("free", "pack", "scatter", "vscatter")
_SHARINGS = ("excl", "shared", "exclhost")


class Refused(Exception):
    """A request that the server does not grant: an error number and its text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number, self.text = number, text


@dataclass
class Host:
    """A simulated execution host and what of it is in use."""

    name: str
    ncpus: int
    mem: int
    ngpus: int
    free: dict[str, int] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    exclusive: bool = False
    died_at: float | None = None
    down: bool = False

    def __post_init__(self) -> None:
        self.free = self.total()

    def total(self) -> dict[str, int]:
        """Give what the host has when nothing runs on it."""
        return {"ncpus": self.ncpus, "mem": self.mem, "ngpus": self.ngpus}


@dataclass
class Task:
    """What pbsdsh started on one of a job's hosts."""

    process: subprocess.Popen[bytes]
    host: Host
    status: int | None = None


@dataclass
class Job:
    """A batch job from its submission until it is forgotten.

    An array (``qsub -J``) has ``indices``; each of its subjobs is a job of its own, with an
    ``index``.
    """

    number: int
    name: str
    queue: str
    script: str
    options: dict[str, Any]
    directory: str
    variables: dict[str, str]
    arguments: str
    chunks: list[dict[str, int]]
    exclusive: bool
    walltime_s: float | None
    state: str = "Q"
    comment: str = ""
    queued_at: float = field(default_factory=time.time)
    started_at: float = 0.0
    ended_at: float = 0.0
    changed_at: float = field(default_factory=time.time)
    process: subprocess.Popen[bytes] | None = None
    placed: list[tuple[Host, dict[str, int]]] = field(default_factory=list)
    exit_status: int | None = None
    deleted: bool = False
    run_count: int = 0
    #: What `exit_status` becomes whatever the script makes of the signal.
    ended_by: int | None = None
    kill_at: float | None = None
    cookie: str = field(default_factory=lambda: secrets.token_hex(16).upper())
    indices: tuple[int, ...] = ()
    index: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The identifier without the server: ``3``, an array's ``3[]``, a subjob's ``3[1]``."""
        if self.indices:
            return f"{self.number}[]"
        return str(self.number) if self.index is None else f"{self.number}[{self.index}]"

    @property
    def id(self) -> str:
        """The identifier that users see."""
        return f"{self.key}.{SERVER}"

    @property
    def host_died(self) -> bool:
        """Whether the host of the job's shell is dead."""
        return bool(self.placed) and self.placed[0][0].died_at is not None


class Server:
    """All jobs of a testbed.

    Parameters
    ----------
    directory
        Where ``configuration.json`` lies and the socket and the spool are made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = json.loads(
            (directory / "configuration.json").read_text(encoding="utf-8")
        )
        self.hosts = [Host(**host) for host in self.settings["hosts"]]
        self.jobs: dict[str, Job] = {}
        self.next_number = 0
        self.user = pwd.getpwuid(os.getuid())
        self.host_name = socket.gethostname()
        (directory / "spool").mkdir(mode=0o700)

    # -- requests

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of a command."""
        try:
            match request["do"]:
                case "submit":
                    return {"id": self.submit(request).id}
                case "status":
                    jobs = self.find(request["what"], request["history"], request["subjobs"])
                    return {
                        "jobs": [{"id": job.id, "attributes": self.describe(job)} for job in jobs]
                    }
                case "delete":
                    self.delete(request["what"], request["force"])
                    return {}
                case "spawn":
                    return {"task": self.spawn(request)}
                case "obit":
                    return {"status": self.task_of(request).status}
                case "signal":
                    for pid in members({self.task_of(request).process.pid}):
                        send(pid, request["number"])
                    return {}
                case "nodes":
                    return {"nodes": len(self.running_job(request).placed)}
                case "configure":
                    self.settings |= request["settings"]
                    return {}
                case "kill_host":
                    self.kill_host(request["host"])
                    return {}
                case "start_host":
                    host = self.host(request["host"])
                    host.died_at, host.down = None, False
                    return {}
                case other:
                    raise Refused(15005, f"Unknown request {other}")
        except Refused as refusal:
            return {"error": [refusal.number, refusal.text]}

    def submit(self, request: dict[str, Any]) -> Job:
        """Take a job into a queue, or refuse it."""
        options = request["options"]
        queue = options["q"].split("@")[0] or self.settings["default_queue"]
        limits = self.settings["queues"].get(queue)
        if limits is None:
            raise Refused(UNKNOWN_QUEUE, "Unknown queue")
        if not limits.get("enabled", True):
            raise Refused(QUEUE_DISABLED, "Queue is not enabled")
        chunks, exclusive = read_request(options["l"])
        walltime_s = None
        if "walltime" in options["l"]:
            walltime_s = read_seconds(options["l"]["walltime"])
        elif "walltime" in limits:
            walltime_s = float(limits["walltime"])
            options["l"]["walltime"] = clock_text(walltime_s)
        asked = {name: sum(c[name] for c in chunks) for name in ("ncpus", "mem", "ngpus")}
        asked["walltime"] = int(walltime_s or 0)
        if any(asked[name] > limits[name] for name in asked if name in limits):
            raise Refused(EXCEEDS_QUEUE, "Job violates queue and/or server resource limits")
        job = Job(
            number=self.next_number,
            name=request["name"],
            queue=queue,
            script=request["script"],
            options=options,
            directory=request["directory"],
            variables=request["variables"] | {"PBS_O_QUEUE": queue},
            arguments=request["arguments"],
            chunks=chunks,
            exclusive=exclusive,
            walltime_s=walltime_s,
            state="H" if options["h"] else "Q",
        )
        self.next_number += 1
        subjobs = [replace(job, index=index) for index in array_indices(options["J"])]
        for subjob in subjobs:
            subjob.cookie = secrets.token_hex(16).upper()
            subjob.placed, subjob.tasks = [], []
        job.indices = tuple(array_indices(options["J"]))
        self.jobs |= {one.key: one for one in (job, *subjobs)}
        return job

    def subjobs(self, array: Job) -> list[Job]:
        """Give the subjobs of an array."""
        return [self.jobs[f"{array.number}[{index}]"] for index in array.indices]

    def find(self, what: str, history: bool, subjobs: bool = False) -> list[Job]:
        """Find the jobs that a job identifier or a destination names; ``""`` is the server.

        Subjobs are only listed where they are asked for.
        """
        current = [
            job
            for job in self.jobs.values()
            if (history or job.state != "F") and (subjobs or job.index is None)
        ]
        if what in ("", f"@{SERVER}"):
            return current
        named = re.fullmatch(r"(\d+(?:\[\d*\])?)(\..*)?", what)
        if named is None:
            queue = what.split("@")[0]
            if queue not in self.settings["queues"]:
                raise Refused(UNKNOWN_QUEUE, f"Unknown queue {what}")
            return [job for job in current if job.queue == queue]
        job = self.jobs.get(named[1])
        identifier = what if named[2] else f"{what}.{SERVER}"
        if job is None:
            raise Refused(UNKNOWN_JOB, f"Unknown Job Id {identifier}")
        if job.state == "F" and not history:
            raise Refused(
                FINISHED_JOB,
                f"{identifier} Job has finished, use -x or -H to obtain historical job information",
            )
        return [job, *(self.subjobs(job) if subjobs else [])]

    def delete(self, what: str, force: bool) -> None:
        """Delete a job: at once where it waits, by signals where it runs."""
        if not re.fullmatch(r"\d+(\[\d*\])?(\..*)?", what):
            raise Refused(1, f"illegally formed job identifier: {what}")
        try:
            [job] = self.find(what, history=False)
        except Refused as refusal:
            if refusal.number == FINISHED_JOB:
                raise Refused(FINISHED_JOB, f"Job has finished {what}") from None
            raise
        if job.state == "E":
            raise Refused(BAD_STATE, f"Request invalid for state of job {job.id}")
        if job.state == "R" and job.host_died:
            if not force:
                raise Refused(NO_MOM, f"Server could not connect to MOM {job.id}")
            job.comment += " and terminated"
            self.finish(job)
            return
        job.deleted = True
        if job.indices:
            for subjob in self.subjobs(job):
                if subjob.state not in "EF":
                    self.delete(subjob.id, force)
        elif job.state in "QH":
            job.comment = f"{job.comment or 'Not Running'} and terminated"
            self.finish(job)
        elif job.kill_at is None or force:
            # The login shell above the script does not trap SIGTERM: 256 and its number.
            job.ended_by = 256 + (signal.SIGKILL if force else signal.SIGTERM)
            self.terminate(job, 0.0 if force else self.settings["kill_delay_s"])

    def describe(self, job: Job) -> dict[str, str]:
        """Give a job's attributes under their names, in the order ``qstat -f`` shows them."""
        now = time.time()
        here = self.host_name
        facts = {"Job_Name": job.name, "Job_Owner": f"{self.user.pw_name}@{here}"}
        if job.started_at:
            used = (job.ended_at or now) - job.started_at
            facts |= {
                "resources_used.cpupercent": "0",
                "resources_used.cput": "00:00:00",
                "resources_used.mem": "0kb",
                "resources_used.ncpus": str(sum(chunk["ncpus"] for chunk in job.chunks)),
                "resources_used.vmem": "0kb",
                "resources_used.walltime": clock_text(used),
            }
        # A subjob that is over is "expired" as long as its array is not (qstat(1B)).
        expired = job.index is not None and self.jobs[f"{job.number}[]"].state != "F"
        state = "X" if job.state == "F" and expired else job.state
        facts |= {"job_state": state, "queue": job.queue, "server": SERVER}
        if job.indices:
            facts |= {"array": "True", "array_indices_submitted": job.options["J"]}
        if job.index is not None:
            facts |= {"array_id": f"{job.number}[].{SERVER}", "array_index": str(job.index)}
        if job.options["A"]:
            facts["Account_Name"] = job.options["A"]
        facts |= {
            "Checkpoint": "u",
            "ctime": time.ctime(job.queued_at),
            "Error_Path": f"{here}:{self.output_path(job, 'e')}",
        }
        if job.placed:
            facts["exec_host"] = "+".join(
                f"{host.name}/0" + (f"*{chunk['ncpus']}" if chunk["ncpus"] != 1 else "")
                for host, chunk in job.placed
            )
            facts["exec_vnode"] = exec_vnode(job)
        facts |= {
            "Hold_Types": "u" if job.state == "H" else "n",
            "Join_Path": job.options["j"] or "n",
            "Keep_Files": job.options["k"] or "n",
            "Mail_Points": "a",
            "mtime": time.ctime(job.changed_at),
            "Output_Path": f"{here}:{self.output_path(job, 'o')}",
            "Priority": job.options["p"] or "0",
            "qtime": time.ctime(job.queued_at),
            "Rerunable": "False" if job.options["r"] == "n" else "True",
        }
        facts |= {f"Resource_List.{name}": text for name, text in sorted(job.options["l"].items())}
        if job.started_at:
            facts["stime"] = time.ctime(job.started_at)
        if job.process is not None:
            facts |= {"session_id": str(job.process.pid), "jobdir": self.user.pw_dir}
        substates = {"Q": "10", "H": "20", "R": "42", "E": "50", "B": "60", "F": "92"}
        facts["substate"] = substates[job.state]
        facts["Variable_List"] = ",".join(f"{k}={v}" for k, v in job.variables.items())
        if job.comment:
            facts["comment"] = job.comment
        facts["etime"] = time.ctime(job.queued_at)
        if job.started_at:
            facts["run_count"] = str(job.run_count)
        if job.exit_status is not None:
            facts["Exit_status"] = str(job.exit_status)
        facts |= {"Submit_arguments": job.arguments, "project": "_pbs_project_default"}
        return facts

    # -- what happens by itself

    def tick(self) -> None:
        """Take notice of what has ended, of time limits, and of room for another job."""
        self.reap()
        now = time.time()
        for host in self.hosts:
            wait = self.settings["node_fail_requeue_s"]
            if host.died_at is not None and not host.down and now - host.died_at >= wait:
                self.declare_down(host)
        for job in list(self.jobs.values()):
            if job.state == "R" and not job.host_died:
                self.look_at_running(job, now)
            elif job.state == "E" and now - job.ended_at >= self.exiting_s(job):
                left = list(members(sessions(job)))
                for pid in left:
                    send(pid, signal.SIGKILL)
                if not left:
                    self.deliver(job)
                    self.finish(job)
        for job in list(self.jobs.values()):
            if job.indices:
                self.look_at_array(job)
            elif job.state == "Q" and now - job.queued_at >= self.settings["queued_s"]:
                self.try_to_run(job)

    def host(self, name: str) -> Host:
        """Find a host."""
        return next(host for host in self.hosts if host.name == name)

    def kill_host(self, name: str) -> None:
        """End a host and all that runs there; whoever asks is not told of it."""
        host = self.host(name)
        host.died_at = time.time()
        for job in self.jobs.values():
            if job.state not in "RE" or not any(other is host for other, _ in job.placed):
                continue
            lost = {task.process.pid for task in job.tasks if task.host is host}
            if job.process is not None and job.placed[0][0] is host:
                lost.add(job.process.pid)
            gone = set(members(lost))
            if all(other is host for other, _ in job.placed):
                gone |= set(marked_processes({f"PBS_JOBCOOKIE={job.cookie}".encode()}))
            for pid in gone:
                send(pid, signal.SIGKILL)
            if job.placed[0][0] is host:
                job.state = "R"

    def declare_down(self, host: Host) -> None:
        """Queue the jobs of a dead host again, or delete those that are not to be rerun."""
        host.down = True
        for job in list(self.jobs.values()):
            if job.state != "R" or job.placed[0][0] is not host:
                continue
            for pid in members(sessions(job)):
                send(pid, signal.SIGKILL)
            if job.options["r"] == "n":
                self.finish(job)
                continue
            self.release(job)
            job.placed, job.tasks, job.process = [], [], None
            job.state, job.comment, job.started_at = "Q", "", 0.0
            job.kill_at = job.ended_by = None
            job.cookie = secrets.token_hex(16).upper()
            job.queued_at = job.changed_at = time.time()

    def exiting_s(self, job: Job) -> float:
        """Give how long a job is shown as exiting."""
        stalls = self.settings["stage_out_fails"] and self.staged_out(job)
        return float(self.settings["stage_out_stall_s" if stalls else "exiting_s"])

    def look_at_array(self, array: Job) -> None:
        """Let an array begin with the first of its subjobs and end with the last."""
        states = {subjob.state for subjob in self.subjobs(array)}
        if states == {"F"} and array.state != "F":
            array.state, array.changed_at = "F", time.time()
            if not self.settings["history"]:
                for job in (*self.subjobs(array), array):
                    del self.jobs[job.key]
        elif array.state == "Q" and not states <= {"Q", "H"}:
            array.state, array.changed_at = "B", time.time()

    def reap(self) -> None:
        """Collect every child that ended, the jobs' shells and the orphans they left us."""
        shells = {job.process.pid: job for job in self.jobs.values() if job.process is not None}
        tasks = {task.process.pid: task for job in self.jobs.values() for task in job.tasks}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in tasks:
                code = os.waitstatus_to_exitcode(status)
                tasks[pid].process.returncode = code
                tasks[pid].status = code if code >= 0 else 256 - code
            job = shells.get(pid)
            if job is None or job.process is None or job.state != "R":
                continue
            code = os.waitstatus_to_exitcode(status)
            job.process.returncode = code
            if job.host_died:
                continue  # nobody is left there who would tell the server
            # pbs_job_attributes(7B): a signal's number is added to 256.
            job.exit_status = code if code >= 0 else 256 - code
            if job.ended_by is not None:
                job.exit_status = job.ended_by
            job.ended_at = job.changed_at = time.time()
            job.state = "E"
            for other in members(sessions(job)):
                send(other, signal.SIGKILL)

    def look_at_running(self, job: Job, now: float) -> None:
        """Enforce a job's walltime, and kill what did not heed SIGTERM."""
        if job.kill_at is not None:
            if now >= job.kill_at:
                for pid in members(sessions(job)):
                    send(pid, signal.SIGKILL)
        elif job.walltime_s is not None and now - job.started_at > job.walltime_s:
            limit, used = int(job.walltime_s), int(now - job.started_at) + 1
            with self.spool(job, "ER").open("a") as file:
                file.write(f"=>> PBS: job killed: walltime {used} exceeded limit {limit}\n")
            job.ended_by = KILLED_AT_WALLTIME
            self.terminate(job, self.settings["kill_delay_s"])

    def terminate(self, job: Job, delay_s: float) -> None:
        """Send SIGTERM to all of a job, and SIGKILL when the delay is over."""
        job.kill_at = time.time() + delay_s
        shell = set() if job.process is None else {job.process.pid}
        heard = set(members(sessions(job) if self.settings["tasks_hear_qdel"] else shell))
        if self.settings["descendants_hear_qdel"]:
            heard = descendants(heard)
        for pid in heard:
            send(pid, signal.SIGTERM)

    # -- tasks

    def running_job(self, request: dict[str, Any]) -> Job:
        """Find the job that a task manager's request comes from."""
        job = self.jobs.get(str(request["job"]).split(".")[0])
        if job is None or job.state != "R" or job.cookie != request["cookie"]:
            raise Refused(BAD_STATE, "tm_init failed, rc = TM_ESYSTEM (17000)")
        return job

    def task_of(self, request: dict[str, Any]) -> Task:
        """Find a task."""
        task: Task = self.running_job(request).tasks[request["task"]]
        return task

    def spawn(self, request: dict[str, Any]) -> int:
        """Start a task on one of a job's hosts; give its number."""
        job = self.running_job(request)
        if job.placed[request["node"]][0].died_at is not None:
            raise Refused(BAD_STATE, "error 17002 on spawn")
        numbers = {"PBS_NODENUM": str(request["node"]), "PBS_TASKNUM": str(len(job.tasks) + 2)}
        with (
            self.output_of(job, "OU").open("ab") as stdout,
            self.output_of(job, "ER").open("ab") as stderr,
        ):
            try:
                process = subprocess.Popen(
                    request["words"],
                    env=job.environment | numbers,
                    cwd=self.user.pw_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            except OSError as error:
                raise Refused(BAD_STATE, f"error {error.errno} on spawn") from None
        job.tasks.append(Task(process, job.placed[request["node"]][0]))
        return len(job.tasks) - 1

    def output_of(self, job: Job, suffix: str) -> Path:
        """Give the file for one of a job's streams while it runs, with -j for both."""
        joined = {"eo": "ER", "oe": "OU"}.get(job.options["j"], suffix)
        return self.spool(job, joined)

    def try_to_run(self, job: Job) -> None:
        """Start a job where there are hosts for it, or write down why not."""
        placed, why = self.place(job)
        if why:
            if job.comment != why:
                job.comment, job.changed_at = why, time.time()
            return
        for host, chunk in placed:
            for name, amount in chunk.items():
                host.free[name] -= amount
            host.jobs.add(job.key)
            host.exclusive = host.exclusive or job.exclusive
        job.placed = placed
        self.start(job)

    def place(self, job: Job) -> tuple[list[tuple[Host, dict[str, int]]], str]:
        """Find a host for every chunk; the comment says why there is none."""
        totals = {name: max(h.total()[name] for h in self.hosts) for name in job.chunks[0]}
        for chunk in job.chunks:
            for name, amount in chunk.items():
                if amount > totals[name]:
                    return [], (
                        f"Can Never Run: Insufficient amount of resource: {name} "
                        f"(R: {amount_text(name, amount)} A: {amount_text(name, totals[name])} "
                        f"T: {amount_text(name, totals[name])})"
                    )
        if not self.would_fit(job):
            return [], "Can Never Run: Not enough total nodes available"
        running = sum(other.state in "RE" for other in self.jobs.values())
        limit = self.settings["max_running"]
        if limit is not None and running >= limit:
            return [], "Not Running: Server job limit has been reached."
        left = {host.name: dict(host.free) for host in self.hosts}
        scatter = "scatter" in job.options["l"].get("place", "").split(":")
        placed: list[tuple[Host, dict[str, int]]] = []
        for chunk in job.chunks:
            lacking, exclusive_only = "ncpus", True
            for host in self.hosts:
                if host.died_at is not None:
                    continue
                if host.exclusive or (job.exclusive and host.jobs):
                    continue
                exclusive_only = False
                if scatter and any(host is taken for taken, _ in placed):
                    continue
                short = [n for n, amount in chunk.items() if amount > left[host.name][n]]
                if not short:
                    for name, amount in chunk.items():
                        left[host.name][name] -= amount
                    placed.append((host, chunk))
                    break
                lacking = short[0]
            else:
                if exclusive_only and job.exclusive:
                    return [], (
                        "Not Running: Job is requesting an exclusive node and node is in use"
                    )
                if exclusive_only:
                    return [], "Not Running: Node is in an ineligible state: job-exclusive"
                free = max(host.free[lacking] for host in self.hosts)
                return [], (
                    f"Not Running: Insufficient amount of resource: {lacking} "
                    f"(R: {amount_text(lacking, chunk[lacking])} "
                    f"A: {amount_text(lacking, free)} T: {amount_text(lacking, totals[lacking])})"
                )
        return placed, ""

    def would_fit(self, job: Job) -> bool:
        """Say whether a job has room where nothing else runs."""
        scatter = "scatter" in job.options["l"].get("place", "").split(":")
        left = [host.total() for host in self.hosts]
        for chunk in job.chunks:
            for at, free in enumerate(left):
                if all(amount <= free[name] for name, amount in chunk.items()):
                    for name, amount in chunk.items():
                        free[name] -= amount
                    if scatter:
                        del left[at]
                    break
            else:
                return False
        return True

    def start(self, job: Job) -> None:
        """Have a login shell run a job's script in a session of its own, in the user's home."""
        script, nodes = self.spool(job, "SC"), self.spool(job, "nodes")
        script.write_bytes(job.script.encode("utf-8", "surrogateescape"))
        nodes.write_text("".join(f"{host.name}\n" for host, _ in job.placed))
        scratch = self.directory / "spool" / f"pbs.{job.id}"
        scratch.mkdir(exist_ok=True)
        first = job.script.split("\n", 1)[0]
        shell = first[2:].split() if first.startswith("#!") else [self.user.pw_shell]
        cpus = str(sum(chunk["ncpus"] for _, chunk in job.placed))
        array = {}
        if job.index is not None:
            array = {"PBS_ARRAY_INDEX": str(job.index), "PBS_ARRAY_ID": f"{job.number}[].{SERVER}"}
        job.environment = (
            array
            | job.variables
            | {
                # As pbs.conf on every host: a job's own commands find the server, too.
                "OPENPBS_TESTBED": str(self.directory),
                "HOME": self.user.pw_dir,
                "LOGNAME": self.user.pw_name,
                "USER": self.user.pw_name,
                "SHELL": self.user.pw_shell,
                "PATH": job.variables["PATH"] if job.options["V"] else JOB_PATH,
                "TMPDIR": str(scratch),
                "NCPUS": cpus,
                "OMP_NUM_THREADS": cpus,
                "ENVIRONMENT": "BATCH",
                "PBS_ENVIRONMENT": "PBS_BATCH",
                "PBS_JOBID": job.id,
                "PBS_JOBNAME": job.name,
                "PBS_QUEUE": job.queue,
                "PBS_NODEFILE": str(nodes),
                "PBS_NODENUM": "0",
                "PBS_TASKNUM": "1",
                "PBS_JOBDIR": self.user.pw_dir,
                "PBS_JOBCOOKIE": job.cookie,
            }
        )
        for suffix in ("OU", "ER"):
            self.spool(job, suffix).touch(mode=0o600)
        with (
            self.output_of(job, "OU").open("ab") as stdout,
            self.output_of(job, "ER").open("ab") as stderr,
        ):
            job.process = subprocess.Popen(
                [*LOGIN, self.settings["profile"], *(shell or ["/bin/sh"]), str(script)],
                env=job.environment,
                cwd=self.user.pw_dir,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        job.state = "R"
        job.run_count += 1
        job.started_at = job.changed_at = time.time()
        at = time.strftime("%a %b %d at %H:%M", time.localtime(job.started_at))
        job.comment = f"Job run at {at} on {exec_vnode(job)}"

    def staged_out(self, job: Job) -> list[tuple[Path, Path]]:
        """Give the files of the spool that are copied when a job has ended, and where to.

        qsub(1B): what goes to ``/dev/null`` is not copied.
        """
        joined, files = job.options["j"], []
        for letter, suffix, kept in (
            ("o", "OU", joined != "eo"),
            ("e", "ER", joined != "oe"),
        ):
            target = self.output_path(job, letter)
            if kept and target != Path("/dev/null"):
                if target.is_dir():
                    target /= f"{job.id}.{suffix}"
                files.append((self.spool(job, suffix), target))
        return files

    def deliver(self, job: Job) -> None:
        """Copy a job's output to where its submitter wanted it."""
        undelivered = self.directory / "undelivered"
        for source, target in self.staged_out(job):
            if self.settings["stage_out_fails"]:
                undelivered.mkdir(exist_ok=True)
                target = undelivered / source.name
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
                with target.open("xb") as file:
                    target.chmod(0o600)
                    file.write(source.read_bytes())

    def finish(self, job: Job) -> None:
        """Free a job's hosts; it stays known as finished where there is a history."""
        self.release(job)
        if job.state == "E":
            job.comment += " and failed" if job.exit_status else " and finished"
        job.state = "F"
        job.changed_at = time.time()
        if not self.settings["history"] and job.index is None:
            del self.jobs[job.key]

    def release(self, job: Job) -> None:
        """Free a job's hosts."""
        for host, chunk in job.placed:
            if job.key in host.jobs:
                host.jobs.discard(job.key)
                host.exclusive = False
            for name, amount in chunk.items():
                host.free[name] += amount

    def output_path(self, job: Job, letter: str) -> Path:
        """Give the path of a job's output (``o``) or error (``e``) stream."""
        given = job.options[letter].rpartition(":")[2]
        if given:
            return Path(job.directory, given)
        index = "" if job.index is None else f".{job.index}"
        return Path(job.directory, f"{job.name}.{letter}{job.number}{index}")

    def spool(self, job: Job, suffix: str) -> Path:
        """Give the path of a file that is kept while the job is."""
        return self.directory / "spool" / f"{job.id}.{suffix}"

    def end_everything(self) -> None:
        """Kill every process that carries the cookie of one of our jobs, wherever it went."""
        cookies = {f"PBS_JOBCOOKIE={job.cookie}".encode() for job in self.jobs.values()}
        while cookies and (found := list(marked_processes(cookies))):
            for pid in found:
                send(pid, signal.SIGKILL)
            self.reap()
            time.sleep(0.01)

    # -- the loop

    def serve(self) -> None:
        """Answer until standard input is closed."""
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
            listener.bind(str(self.directory / "socket"))
            listener.listen(128)
            selector.register(listener, selectors.EVENT_READ)
            selector.register(sys.stdin, selectors.EVENT_READ)
            print("ready", flush=True)
            while True:
                for key, _ in selector.select(TICK_S):
                    if key.fileobj is sys.stdin:
                        self.end_everything()
                        return
                    self.answer_one(listener)
                self.tick()

    def answer_one(self, listener: socket.socket) -> None:
        """Take one connection and answer its request."""
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(5.0)
            with connection.makefile("rb") as requests:
                request = json.loads(requests.readline())
            connection.sendall(json.dumps(self.answer(request)).encode() + b"\n")


# ---------------------------------------------------------------------------- requests in words


def read_request(resources: dict[str, str]) -> tuple[list[dict[str, int]], bool]:
    """Read what a job asks for: its chunks, and whether its hosts are for it alone."""
    for name in resources:
        if name not in JOB_RESOURCES:
            raise Refused(UNKNOWN_RESOURCE, f"Unknown resource: {name}")
    select = resources.get("select")
    if select is None and "place" in resources:
        raise Refused(PLACE_WITHOUT_SELECT, 'Cannot have "place" without "select"')
    if select is not None:
        for name in ("ncpus", "mem", "ngpus"):
            if name in resources:
                raise Refused(
                    JOB_WIDE_WITH_SELECT,
                    f'"-lresource=" cannot be used with "select" or "place", resource is: {name}',
                )
    else:
        given = [f"{n}={resources[n]}" for n in ("ncpus", "mem", "ngpus") if n in resources]
        select = ":".join(["1", *given])
    chunks: list[dict[str, int]] = []
    for text in select.split("+"):
        parts = text.split(":")
        count = parts.pop(0) if parts[0].isdigit() else "1"
        chunk = {"ncpus": 1, "mem": 0, "ngpus": 0}
        for part in parts:
            name, equals, amount = part.partition("=")
            if name not in CHUNK_RESOURCES and equals:
                raise Refused(UNKNOWN_RESOURCE, f"Unknown resource: {name}")
            value = read_amount(name, amount)
            if value is None or not equals:
                raise Refused(BAD_VALUE, f"{_BAD_VALUE} Resource_List.select")
            if name in chunk:
                chunk[name] = value
        chunks += [dict(chunk) for _ in range(int(count))]
    if not chunks:
        raise Refused(BAD_VALUE, f"{_BAD_VALUE} Resource_List.select")
    place = resources.get("place", "free").split(":")
    known = (*_ARRANGEMENTS, *_SHARINGS)
    if any(word not in known and not word.startswith("group=") for word in place):
        raise Refused(BAD_VALUE, f"{_BAD_VALUE} Resource_List.place")
    return chunks, "excl" in place or "exclhost" in place


_BAD_VALUE = "Illegal attribute or resource value"


def array_indices(text: str) -> range:
    """Read ``X-Y[:Z]``, the indices of an array; none where there is no text."""
    if not text:
        return range(0)
    first, last, step = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text).groups()  # type: ignore[union-attr]
    return range(int(first), int(last) + 1, int(step or 1))


def read_amount(name: str, text: str) -> int | None:
    """Read a number or, for memory, a size in bytes; ``None`` for what is neither."""
    if name in ("host", "arch"):
        return 0
    if name not in ("mem", "vmem"):
        return int(text) if re.fullmatch(r"[0-9]+", text) else None
    size = re.fullmatch(r"([0-9]+)([kmgtp]?)([bw]?)", text, re.IGNORECASE)
    if size is None:
        return None
    power = " kmgtp".index(size[2].lower() or " ")
    return (int(size[1]) << 10 * power) * (8 if size[3].lower() == "w" else 1)


def read_seconds(text: str) -> float:
    """Read a duration, ``[[hours:]minutes:]seconds[.milliseconds]``."""
    if not re.fullmatch(r"(?:(?:[0-9]+:)?[0-9]+:)?[0-9]+(?:\.[0-9]+)?", text):
        raise Refused(BAD_VALUE, f"{_BAD_VALUE} Resource_List.walltime")
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def clock_text(seconds: float) -> str:
    """Write a duration as ``qstat`` does, 01:30:00."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"


def amount_text(name: str, amount: int) -> str:
    """Write an amount of a resource; sizes are in kilobytes."""
    return f"{-(-amount // 1024)}kb" if name == "mem" else str(amount)


def exec_vnode(job: Job) -> str:
    """Write where a job's chunks were placed."""
    parts = []
    for host, chunk in job.placed:
        given = [f"{n}={amount_text(n, a)}" for n, a in chunk.items() if a]
        parts.append(f"({':'.join([host.name, *given])})")
    return "+".join(parts)


# ------------------------------------------------------------------------------------ processes


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def sessions(job: Job) -> set[int]:
    """Give a job's sessions: its shell's and its tasks'."""
    shell = [] if job.process is None else [job.process]
    return {process.pid for process in (*shell, *(task.process for task in job.tasks))}


def members(leaders: set[int]) -> Iterator[int]:
    """Find the living processes of sessions."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5): after the name in parentheses come state, parent, group and session.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) in leaders and fields[0] not in "ZX":
                    yield int(entry.name)


def descendants(processes: set[int]) -> set[int]:
    """Give these processes and their living descendants, in whatever session."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(entry.name)] = int(fields[1])
    found = set(processes)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def marked_processes(cookies: set[bytes]) -> Iterator[int]:
    """Find the living processes whose environment holds one of these variables."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if not cookies.isdisjoint((entry / "environ").read_bytes().split(b"\0")):
                    yield int(entry.name)


def main() -> int:
    """Serve in the directory that is the only argument."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the closed standard input ends us; SIG_IGN would be handed down to the jobs.
        signal.signal(number, lambda *_: None)
    Server(Path(sys.argv[1])).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
