"""Launch: the step that runs on a node, in front of its workers.

Run by the batch script as ``python -m dasf_hpc.launch.node … -- WORKER COMMAND``. It looks at the
node, decides how nsys is used here, claims a report name that no other job can have, writes what it
decided where the head finds it (``RUN/nodes/NAME.json``), and becomes the worker command, or runs
it under nsys.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from dasf_hpc.launch.deadline import set_deadline
from dasf_hpc.launch.worker_command import choose_nsys, file_stem, nsys_command
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.nsight.room import no_room
from dasf_hpc.nsight.sessions import make_way, turn, waits_for_ever
from dasf_hpc.profile.devices import NvmlState, nvml_devices
from dasf_hpc.systems import batch_job_id

#: nsys 2022.4 dies now and then before it has started anything ("sem_open: No such file or
#: directory"; measured on a busy host: 1 of 30 starts, one after the other): it is started again.
NSYS_STARTS = 4

#: Exit code of a node job whose nsys was asked for and cannot be used (as errors.py's).
NSYS_UNUSABLE = 69


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
        return command, record
    nsys = find_nsys(arguments.nsys_path)
    if not nsys.profiles or nsys.version is None or nsys.path is None:
        if arguments.nsys:
            raise NsysUnusable(nsys.sentence)
        record["notes"].append(nsys.sentence)
        return command, record
    if lacks := no_room():
        if arguments.nsys:
            raise NsysUnusable(lacks)
        record["notes"].append(f"{lacks}: the workers run without it")
        return command, record
    choice = choose_nsys(arguments.nsys_arg, has_nvidia_driver())
    report = claim_report(arguments.run / "nsight", host, job)
    record["notes"] += choice.reductions
    record["report"] = f"nsight/{report.name}.nsys-rep"
    record["nsys_version"] = nsys.version_text
    record["nsys_state"] = nsys.sentence
    return nsys_command(str(nsys.path), choice, str(report), command), record


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
                records.append(record)
    return records


def parser() -> argparse.ArgumentParser:
    """Give the parser of the node step's command line."""
    parsed = argparse.ArgumentParser(prog="python -m dasf_hpc.launch.node")
    parsed.add_argument("--run", type=Path, required=True)
    parsed.add_argument("--name", required=True)
    parsed.add_argument("--nsys", action=argparse.BooleanOptionalAction, default=None)
    parsed.add_argument("--nsys-path", default=None)
    parsed.add_argument("--nsys-arg", action="append", default=[])
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


def _begun(record: Path) -> Path:
    """Give the file that the worker command makes first."""
    return record.with_suffix(".begun")


def _record_path(run: Path, record: dict[str, Any]) -> Path:
    """Give where a node leaves word."""
    words = (record.get("name"), record.get("hostname"), record.get("batch_job"))
    return run / "nodes" / (file_stem("-".join(map(str, words))) + ".json")


class Ended(NamedTuple):
    """How a command ended: its process, its code as a shell gives it, and if it was told to."""

    process: int
    code: int
    told: bool


def run_to_its_end(command: Sequence[str], begun: Path) -> Ended:
    """Run nsys with a command to its end, whatever signals ask this process to end meanwhile.

    Batch schedulers and terminals signal every process of a job. So nsys has had the signal, too,
    and it is not passed on: nsys writes its report at the first SIGTERM and gives it up at a second
    one. An nsys that waits at its start for what will never come is killed.

    Parameters
    ----------
    command
        The words of ``nsys profile`` and of the command.
    begun
        The file that the command makes first.
    """
    told = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = told or number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # A handler, unlike SIG_IGN, is not handed down to the command.
        signal.signal(number, hear)
    with turn():
        process = subprocess.Popen(command)
        looked = time.monotonic()
        while process.poll() is None and not begun.exists():
            time.sleep(0.02)
            if time.monotonic() - looked > 2.0:
                if waits_for_ever(process.pid):
                    process.kill()
                looked = time.monotonic()
    code = process.wait()
    return Ended(process.pid, code if code >= 0 else 128 - code, told)


def main(words: Sequence[str] | None = None) -> int:
    """Decide, leave word, and become the worker command or run it under nsys."""
    arguments = parser().parse_args(words)
    if arguments.command[:1] == ["--"]:
        arguments.command = arguments.command[1:]
    umask = os.environ.pop(UMASK_VARIABLE, None) or f"{users_umask():04o}"
    os.umask(0o077)
    if arguments.walltime is not None:
        set_deadline(arguments.walltime, arguments.margin)
    failures: list[str] = []
    for attempt in range(NSYS_STARTS + 1):
        if attempt == NSYS_STARTS:
            if arguments.nsys:
                why = "; ".join(failures)
                print(f"dasf-hpc: nsys could not be started on this node: {why}", file=sys.stderr)
                return NSYS_UNUSABLE
            arguments.nsys = False  # nobody insisted on it: the job goes on without
        try:
            command, record = decide(arguments)
        except NsysUnusable as error:
            print(f"dasf-hpc: {error}", file=sys.stderr)
            return NSYS_UNUSABLE
        if record["report"] is not None and (done := make_way(record["nsys_version"])):
            failures.append(done)
        record["notes"] += failures
        record["command"] = command
        path = write_record(arguments.run, record)
        for note in record["notes"]:
            print(f"dasf-hpc: {note}", file=sys.stderr)
        sys.stderr.flush()
        if record["report"] is None:
            os.umask(int(umask, 8))
            os.execvp(command[0], command)
        # The worker command's first act is to make this file: where it is missing, nsys died alone.
        begun = _begun(path)
        begun.unlink(missing_ok=True)
        at = command.index(arguments.command[0], len(command) - len(arguments.command))
        text = f'umask 077; : > "$0"; umask {int(umask, 8):04o}; exec "$@"'
        starter = ["/bin/sh", "-c", text, str(begun)]
        ended = run_to_its_end([*command[:at], *starter, *command[at:]], begun)
        if begun.exists() or ended.code == 0:
            return ended.code
        failures = [f"nsys died at its start ({attempt + 1} times, exit code {ended.code})"]
        if done := make_way(record["nsys_version"], ended.process):
            failures.append(done)
        if ended.told:
            return ended.code
        claim = arguments.run / record["report"].replace(".nsys-rep", ".claim")
        claim.unlink(missing_ok=True)
    raise AssertionError("the last attempt runs without nsys")


if __name__ == "__main__":
    sys.exit(main())
