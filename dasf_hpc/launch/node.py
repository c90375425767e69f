"""Launch: the step that runs on a node, in front of its workers.

Run by the batch script as ``python -m dasf_hpc.launch.node … -- WORKER COMMAND``. It looks at the
node, decides how nsys is used here, claims a report name that no other job can have, writes what it
decided where the head finds it (``RUN/nodes/NAME.json``), and becomes the worker command, or runs
it under nsys.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil

from dasf_hpc.launch.call_stacks import python_sampling, stack_sampling
from dasf_hpc.launch.deadline import set_deadline
from dasf_hpc.launch.gpu_metrics import Claims, Sampling, ask_nsys, choose_sampling
from dasf_hpc.launch.late import RUN_OVER, run_is_over
from dasf_hpc.launch.node_watch import ORDERLY
from dasf_hpc.launch.quoting import shell_word
from dasf_hpc.launch.worker_command import (
    asks_for_gpu_metrics,
    choose_nsys,
    file_stem,
    nsys_command,
    records_in_part,
)
from dasf_hpc.nsight.export import find_nsys, reports_of
from dasf_hpc.nsight.room import no_room
from dasf_hpc.nsight.sessions import agents_of, make_way, own_place, turn, waits_for_ever
from dasf_hpc.profile.devices import NvmlState, nvml_devices
from dasf_hpc.systems import batch_job_id
from dasf_hpc.units import duration_text

#: nsys 2022.4 dies now and then before it has started anything ("sem_open: No such file or
#: directory"; measured on a busy host: 1 of 30 starts, one after the other): it is started again.
NSYS_STARTS = 4

#: Exit code of a node job whose nsys was asked for and cannot be used (as errors.py's).
NSYS_UNUSABLE = 69

#: Exit code of a node job that cannot write into the run's directory (as errors.py's).
RUN_DIRECTORY_UNUSABLE = 73

#: Exit codes of a worker command that is not there, or cannot be run (as a shell's).
NOT_FOUND, NOT_EXECUTABLE = 127, 126

#: A worker that was told to end with its nsys gets this long until it is told again: nannies close
#: with a timeout of 10 s.
CLOSING_TAKES_S = 10.0

#: nsys's own processes end within 2 s of a worker that outlived nsys (measured with 2022.4).
NSYS_CLEARS_UP_S = 10.0

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


#: The suffix of the file that a node step which ran nsys makes last.
ENDED = ".ended"

#: Carries the umask of the user who submitted to the workers: ours is for our own files.
UMASK_VARIABLE = "DASF_HPC_UMASK"


def users_umask() -> int:
    """Give this process's umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class NsysUnusable(Exception):
    """nsys was asked for and cannot be used on this node; the message is a sentence."""


def claim_report(directory: Path, host: str, job: str) -> Path:
    """Claim a report name ``HOST-JOB`` that nobody else has, however often the job starts again.

    Returns
    -------
    Path
        The name without suffix; an empty file ``NAME.claim`` stays beside it.
    """
    stem = file_stem(f"{host}-{job}")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = stem
    while True:
        try:
            os.close(os.open(directory / f"{name}.claim", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            name = f"{stem}-{secrets.token_hex(3)}"
        else:
            return directory / name


def has_nvidia_driver() -> bool:
    """Say whether this node has an NVIDIA driver: the kernel module makes this file when loaded.

    In a container or virtual machine that passes a GPU on by other means there is no such file, and
    NVML tells. The device files tell nothing: installing a library may make them (seen on
    Debian 12).
    """
    loaded = Path("/proc/driver/nvidia/version").exists()
    return loaded or nvml_devices()[1] is NvmlState.READY


#: GPUs that this node's nsys samples.
_CLAIMS = Claims()


def _sampling(arguments: argparse.Namespace, nsys: Path, has_gpu: bool) -> Sampling | None:
    """Choose what nsys is to sample on GPUs, None where that is not asked for."""
    if arguments.gpu_metrics is None or asks_for_gpu_metrics(arguments.nsys_arg):
        return None
    if not has_gpu:
        why = "no GPU metrics: there is no NVIDIA driver on this node"
        return Sampling(sentences=(why,))
    devices, _ = nvml_devices()
    offer = ask_nsys(nsys)
    return choose_sampling(offer, arguments.gpu_metrics, devices, os.environ, _CLAIMS)


def decide(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Decide what this node runs.

    Returns
    -------
    command : list of str
        The command to become.
    record : dict
        What was decided and why, for ``RUN/nodes``.

    Raises
    ------
    NsysUnusable
        If nsys was asked for and cannot be used.
    """
    host, job = socket.gethostname(), batch_job_id() or f"pid{os.getpid()}"
    record: dict[str, Any] = {
        "name": arguments.name,
        "hostname": host,
        "batch_job": job,
        "time": time.time(),
        "report": None,
        "nsys_version": None,
        "notes": [],
    }
    command = list(arguments.command)
    if arguments.nsys is False:
        record["notes"].append("the workers run without nsys")
        return command, _without_stacks(arguments, record)
    nsys = find_nsys(arguments.nsys_path)
    if not nsys.profiles or nsys.version is None or nsys.path is None:
        if arguments.nsys:
            raise NsysUnusable(nsys.sentence)
        record["notes"].append(nsys.sentence)
        return command, _without_stacks(arguments, record)
    if lacks := no_room():
        if arguments.nsys:
            raise NsysUnusable(lacks)
        record["notes"].append(f"{lacks}: the workers run without it")
        return command, _without_stacks(arguments, record)
    has_gpu = has_nvidia_driver()
    sampling = _sampling(arguments, nsys.path, has_gpu)
    record["gpu_metrics"] = bool(sampling is not None and sampling.words)
    stacks = None
    if arguments.stacks_by_nsys:
        stacks = stack_sampling(arguments.nsys_arg, python_sampling(nsys.path))
    choice = choose_nsys(arguments.nsys_arg, has_gpu, sampling, stacks)
    report = claim_report(arguments.run / "nsight", host, job)
    record["notes"] += choice.reductions
    record["report"] = f"nsight/{report.name}.nsys-rep"
    record["nsys_version"] = nsys.version_text
    record["nsys_state"] = nsys.sentence
    return nsys_command(str(nsys.path), choice, str(report), command), record


def _without_stacks(arguments: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Say of a node without nsys that calls are not sampled, if nsys was to do it."""
    if arguments.stacks_by_nsys:
        record["notes"].append("no calls are sampled: with --stacks nsys that is nsys's")
    return record


def read_node_records(run_directory: Path) -> list[dict[str, Any]]:
    """Read what the nodes of a run decided, in the order of their names."""
    records = []
    for path in sorted((run_directory / "nodes").glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            record = {"hostname": path.stem, "report": None, "notes": [], **record}
            if isinstance(record["report"], str | None) and isinstance(record["notes"], list):
                if not _are_names(record.get("reports")):
                    record.pop("reports", None)
                records.append(record)
    return records


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def parser() -> argparse.ArgumentParser:
    """Give the parser of the node step's command line."""
    parsed = argparse.ArgumentParser(prog="python -m dasf_hpc.launch.node")
    parsed.add_argument("--run", type=Path, required=True)
    parsed.add_argument("--name", required=True)
    parsed.add_argument("--nsys", action=argparse.BooleanOptionalAction, default=None)
    parsed.add_argument("--nsys-path", default=None)
    parsed.add_argument("--nsys-arg", action="append", default=[])
    parsed.add_argument("--stacks-by-nsys", action="store_true")
    parsed.add_argument("--gpu-metrics", type=int, default=None, help="samples a second")
    parsed.add_argument("--walltime", type=float, default=None, help="seconds")
    parsed.add_argument("--margin", type=float, default=0.0, help="seconds")
    parsed.add_argument("command", nargs=argparse.REMAINDER)
    return parsed


def write_record(run: Path, record: dict[str, Any]) -> Path:
    """Leave word of what was decided; give the path."""
    path = _record_path(run, record)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(record, indent=1))
    partial.rename(path)
    return path


def worker_began(run: Path, record: dict[str, Any]) -> bool:
    """Say if the worker command of a node that decided for nsys was begun."""
    return _begun(_record_path(run, record)).exists()


def writes_report(run: Path, name: str) -> bool:
    """Say if a node job decided for nsys, began its worker, and its step has not ended."""
    return any(
        path.exists() and not path.with_suffix(ENDED).exists()
        for path in map(_begun, (run / "nodes").glob(f"{glob.escape(file_stem(name))}-*.json"))
    )


def _begun(record: Path) -> Path:
    """Give the file that the worker command makes first."""
    return record.with_suffix(".begun")


def _record_path(run: Path, record: dict[str, Any]) -> Path:
    """Give where a node leaves word."""
    words = (record.get("name"), record.get("hostname"), record.get("batch_job"))
    return run / "nodes" / (file_stem("-".join(map(str, words))) + ".json")


class AskedToEnd:
    """Whether this process was asked to end, by which signal and when."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.at = 0.0

    def listen(self) -> None:
        """Hear of signals from now on, which end nothing then."""
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            # A handler, unlike SIG_IGN, is not handed down to the command.
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.by is None and number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.by, self.at = signal.Signals(number), time.monotonic()


class Ended(NamedTuple):
    """How nsys ended.

    Attributes
    ----------
    process
        Its process id.
    code
        Its exit code as a shell gives it.
    worker
        The worker, where that goes on.
    """

    process: int
    code: int
    worker: psutil.Process | None


def _users_tmpdir() -> str:
    """Give the shell's words that set TMPDIR as it is here: nsys has one of its own."""
    here = os.environ.get("TMPDIR")
    return "unset TMPDIR" if here is None else f"export TMPDIR={shell_word(here)}"


@contextlib.contextmanager
def watched(begun: Path) -> Iterator[Callable[[int], None]]:
    """Have what an nsys leaves be ended also where this process is killed; see `node_watch`.

    Gives a function to call with nsys's process id.
    """
    words = [sys.executable, "-SE", str(Path(__file__).with_name("node_watch.py")), str(begun)]
    nothing = subprocess.DEVNULL
    try:
        watcher = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True
        )
    except OSError:  # it is no worse than without
        yield lambda process: None
        return
    assert watcher.stdin is not None
    pipe = watcher.stdin.fileno()

    def tell(word: int | str) -> None:
        with contextlib.suppress(OSError):
            os.write(pipe, f"{word}\n".encode())

    try:
        yield tell
        tell(ORDERLY)
    finally:
        with contextlib.suppress(OSError):
            watcher.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        watcher.wait(5.0)


def run_to_its_end(
    command: Sequence[str],
    begun: Path,
    place: Path | None = None,
    tell: Callable[[int], None] = lambda process: None,
) -> Ended:
    """Run nsys with a command to nsys's end, whatever signals ask this process to end meanwhile.

    Batch schedulers and terminals signal every process of a job. So nsys has had the signal, too,
    and it is not passed on: nsys writes its report at the first SIGTERM and gives it up at a second
    one. An nsys that waits at its start for what will never come is killed.

    Parameters
    ----------
    command
        The words of ``nsys profile`` and of the command.
    begun
        The file into which the command writes its process id at first.
    place
        nsys's TMPDIR, None for this process's.
    tell
        Called with nsys's process id.

    Raises
    ------
    OSError
        If nsys cannot be started.
    """
    with turn():
        environment = {**os.environ, **({"TMPDIR": str(place)} if place else {})}
        process = subprocess.Popen(command, env=environment)
        tell(process.pid)
        looked = time.monotonic()
        while process.poll() is None and not begun.exists():
            time.sleep(0.02)
            if time.monotonic() - looked > 2.0:
                if waits_for_ever(process.pid):
                    process.kill()
                looked = time.monotonic()
    # A worker that outlives nsys stays below this process, and so below its batch job. Not before
    # nsys's agent has gone its own way: it is no business of who ends this process's children.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    worker = _worker(begun)  # known now, its number may be another's later
    _wait_and_reap(process)
    code = process.wait()
    goes_on = worker if worker is not None and _runs(worker) else None
    return Ended(process.pid, code if code >= 0 else 128 - code, goes_on)


def _wait_and_reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a child; of others, which tasks left behind, take leave."""
    while process.returncode is None:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_pid == process.pid:
            return
        os.waitpid(ended.si_pid, 0)


def _worker(begun: Path) -> psutil.Process | None:
    """Give the process that the worker command is, None where it has ended."""
    deadline = time.monotonic() + 2.0
    while begun.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            number = int(begun.read_text())
            with contextlib.suppress(psutil.Error):
                return psutil.Process(number)
            return None
        time.sleep(0.02)  # made, and not written yet
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_for_worker(worker: psutil.Process, profiler: int, asked: AskedToEnd) -> int:
    """Wait for the end of a worker that outlived its nsys, and of what nsys left with it.

    Asked to end while nsys was there, both have been told: nsys passes it on. Afterwards, or where
    it has not helped, the worker is told from here.

    Returns
    -------
    int
        Its exit code, as a shell gives it.
    """
    parent = worker.pid
    with contextlib.suppress(psutil.Error):  # it may end just now
        parent = worker.ppid()  # this process, or nsys's launcher, which ends as its child does
    due = asked.at + CLOSING_TAKES_S if asked.by is not None else 0.0
    told = False
    while _runs(worker):
        if asked.by is not None and not told and time.monotonic() >= due:
            told = True
            with contextlib.suppress(psutil.Error):
                worker.terminate()
        time.sleep(0.1)
    code = 0
    deadline = time.monotonic() + NSYS_CLEARS_UP_S
    for child in psutil.Process().children():
        if child.pid in (worker.pid, parent):
            code = _exit_code(child.pid, deadline)
    with contextlib.suppress(psutil.Error):
        left = [c for c in psutil.Process().children() if c.name().startswith("nsys")]
        left += agents_of(profiler)
        while (left := [process for process in left if _runs(process)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.terminate()
    return code


def _exit_code(child: int, deadline: float) -> int:
    """Give the exit code of a child that is about to end, 0 where it does not."""
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            time.sleep(0.05)
    return 0


def say(sentence: str) -> None:
    """Write a sentence into the job's output."""
    print(f"dasf-hpc: {sentence}", file=sys.stderr, flush=True)


def add_note(run: Path, record: dict[str, Any], sentence: str) -> None:
    """Say something about a node, and leave it in its record if that can be written."""
    say(sentence)
    record["notes"].append(sentence)
    with contextlib.suppress(OSError):
        write_record(run, record)


def main(words: Sequence[str] | None = None) -> int:
    """Decide, leave word, and become the worker command or run it under nsys."""
    asked = AskedToEnd()
    asked.listen()
    arguments = parser().parse_args(words)
    if arguments.command[:1] == ["--"]:
        arguments.command = arguments.command[1:]
    if late := run_is_over(arguments.run):
        say(late)
        return RUN_OVER
    umask = os.environ.pop(UMASK_VARIABLE, None) or f"{users_umask():04o}"
    os.umask(0o077)
    if arguments.walltime is not None:
        set_deadline(arguments.walltime, arguments.margin)
    try:
        return work(arguments, int(umask, 8), asked)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        say(
            f"the run's directory {arguments.run} cannot be used on this node: "
            f"{error.strerror or error}{where}; no worker was started"
        )
        return RUN_DIRECTORY_UNUSABLE


def work(arguments: argparse.Namespace, umask: int, asked: AskedToEnd) -> int:
    """Start what `decide` says, again where nsys does not start, and give the job's exit code.

    Every way out of it without a worker says why.
    """
    failures: list[str] = []
    record: dict[str, Any] = {}
    for attempt in range(NSYS_STARTS + 1):
        if attempt == NSYS_STARTS:
            if arguments.nsys:
                sentence = f"nsys could not be started on this node: {'; '.join(failures)}"
                add_note(arguments.run, record, sentence)
                return NSYS_UNUSABLE
            arguments.nsys = False  # nobody insisted on it: the job goes on without
        try:
            command, record = decide(arguments)
        except NsysUnusable as error:
            say(str(error))
            return NSYS_UNUSABLE
        if record["report"] is not None and (done := make_way(record["nsys_version"])):
            failures.append(done)
        record["notes"] += failures
        record["command"] = command
        path = write_record(arguments.run, record)
        for note in record["notes"]:
            say(note)
        if asked.by is not None:
            return _asked_too_early(arguments.run, record, asked.by)
        if record["report"] is None:
            os.umask(umask)
            return _become(arguments.run, record, command)
        # The worker command's first act is to make this file: where it is missing, nsys died alone.
        begun = _begun(path)
        begun.unlink(missing_ok=True)
        begun.with_suffix(ENDED).unlink(missing_ok=True)
        at = command.index(arguments.command[0], len(command) - len(arguments.command))
        text = (
            'umask 077; echo $$ > "$0" || { rm -f "$0"; exit 73; }; '
            f'umask {umask:04o}; {_users_tmpdir()}; exec "$@"'
        )
        starter = ["/bin/sh", "-c", text, str(begun)]
        started = time.monotonic()
        with own_place() as place, watched(begun) as tell:
            try:
                whole = [*command[:at], *starter, *command[at:]]
                ended = run_to_its_end(whole, begun, place, tell)
            except OSError as error:
                failures = [f"nsys cannot be run: {error.strerror or error}"]
            else:
                if begun.exists():
                    _leave_reports(arguments, record, ended, time.monotonic() - started)
                    code = ended.code
                    if ended.worker is not None:
                        code = wait_for_worker(ended.worker, ended.process, asked)
                    with contextlib.suppress(OSError):
                        begun.with_suffix(ENDED).touch(mode=0o600)
                    return code
                died = f"nsys died at its start ({attempt + 1} times, exit code {ended.code})"
                failures = [died]
                if done := make_way(record["nsys_version"], ended.process):
                    failures.append(done)
                if record["gpu_metrics"] and attempt:
                    # once it may have been as above NSYS_STARTS; twice it is what it was asked for
                    arguments.gpu_metrics = None
                    _CLAIMS.give_up()
                    failures.append("no GPU metrics: nsys did not start with them")
                elif arguments.stacks_by_nsys and attempt:
                    arguments.stacks_by_nsys = False
                    failures.append("no calls are sampled: nsys did not start with it")
        if asked.by is not None:
            _asked_too_early(arguments.run, record, asked.by)
            return ended.code or 128 + asked.by
        claim = arguments.run / record["report"].replace(".nsys-rep", ".claim")
        claim.unlink(missing_ok=True)
    raise AssertionError("the last attempt runs without nsys")


def _asked_too_early(run: Path, record: dict[str, Any], by: signal.Signals) -> int:
    """Leave word that the job is over before its worker is there; give its exit code."""
    add_note(run, record, f"the job was asked to end ({by.name}) before its worker had begun")
    return 128 + by


def _become(run: Path, record: dict[str, Any], command: list[str]) -> int:
    """Become the worker command; give an exit code where that cannot be."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        why = error.strerror or str(error)
        add_note(run, record, f"the worker command {command[0]} cannot be run: {why}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _leave_reports(
    arguments: argparse.Namespace, record: dict[str, Any], ended: Ended, seconds: float
) -> None:
    """Leave word of which reports there are, and of what they do not hold."""
    stem = Path(record["report"]).name.removesuffix(".nsys-rep")
    found = reports_of(arguments.run / "nsight", stem)
    part = records_in_part(arguments.nsys_arg)
    by = f", as {part} asks" if part is not None else f" (exit code {ended.code})"
    if found or part is not None:
        record["reports"] = [f"nsight/{name}.nsys-rep" for name in found]
    if ended.worker is not None:
        sentence = (
            f"nsys ended{by}, {duration_text(1e9 * seconds)} after its start, before its worker: "
            "what ran later is in no report"
        )
    elif part is None:
        return
    elif found:
        sentence = f"nsys recorded in part, as {part} asks: what ran outside of it is in no report"
    else:
        sentence = f"nsys recorded nothing, as what {part} waits for did not come"
    add_note(arguments.run, record, sentence)


if __name__ == "__main__":
    sys.exit(main())
