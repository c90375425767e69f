"""Doctor: what can be seen on one host, whether login node, compute node or inside an image.

Also run there as ``python -m dasf_hpc.doctor.host --request FILE``: the request, written by the
head into a folder that the hosts should share, says what to look for and where to put the answer.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dasf_hpc.doctor.check import Check, Status, could_not_look, fail, ok, warn
from dasf_hpc.launch.environment import versions_here
from dasf_hpc.launch.gpu_metrics import ask_nsys, only_administrators
from dasf_hpc.launch.node import NSYS_STARTS, has_nvidia_driver
from dasf_hpc.launch.worker_command import choose_nsys, file_stem, nsys_command
from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.export import (
    STREAM_SUFFIX,
    NsysProgram,
    NsysState,
    export_sqlite,
    find_nsys,
)
from dasf_hpc.nsight.reader import read_report
from dasf_hpc.nsight.sessions import make_way, turn
from dasf_hpc.profile.devices import NvmlState, nvml_devices
from dasf_hpc.profile.identity import installed_version
from dasf_hpc.units import duration_text

CAPTURE_TIMEOUT_S = 20.0
"""A capture of one range takes 1 to 2 s (measured with 2022.4 on two busy cores)."""

CONNECT_TIMEOUT_S = 5.0

OPEN_FILES_NEEDED = 256
"""A guess: a worker with a dozen peers, its journals and nsys hold about 100 files."""
OPEN_FILES_COMFORTABLE = 1024
"""A guess: below it a scheduler or worker with some hundred peers runs out."""

SLOW_CLOCK_SOURCES = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")
"""Reading these takes a system call and around 1 us instead of 20 ns."""

PROFILED = """
import nvtx
from dasf_hpc.profile.nvtx_domain import speak_always
speak_always()
nvtx.push_range(message="doctor", domain="dasf_hpc.doctor")
nvtx.pop_range(domain="dasf_hpc.doctor")
"""


@dataclass(frozen=True)
class HostRequest:
    """What to look for on a host.

    Attributes
    ----------
    scratch
        Folder for what workers spill; None for the system's own for temporary files.
    gpus
        GPUs a node is to have.
    nsys
        Whether nsys is asked for; None: wanted where it is there.
    nsys_path
        The nsys to use; None: from PATH.
    head
        Address and port of the head to connect to, None to leave that out.
    clock_port
        Port there that tells nodes the time; 0 where it is any free one.
    """

    scratch: str | None = None
    gpus: int = 0
    nsys: bool | None = None
    nsys_path: str | None = None
    head: tuple[str, int] | None = None
    clock_port: int = 0


def host_checks(where: str, request: HostRequest) -> list[Check]:
    """Look at this host; takes a few seconds, most of them nsys's."""
    checks = [
        scratch(where, request.scratch),
        *nsys_checks(where, request),
        perf_event_paranoid(where),
        *gpu_checks(where, request.gpus),
        clock_source(where),
        clock_synchronisation(where, *kernel_clock()),
        open_files(where),
    ]
    if request.head is not None:
        checks.append(port(where, *request.head))
        if request.clock_port:
            checks.append(clock_port(where, request.head[0], request.clock_port))
    return checks


def scratch(where: str, folder: str | None) -> Check:
    """Write a program into the scratch folder and run it."""
    name = "scratch folder"
    place = Path(folder or tempfile.gettempdir())
    program = place / f".dasf-hpc-doctor-{secrets.token_hex(4)}"
    remedy = "name a folder of the nodes' own with --local-directory"
    try:
        place.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\nexit 7\n")
        program.chmod(stat.S_IRWXU)
    except OSError as error:
        return fail(name, where, f"{place} cannot be written: {error.strerror}", remedy)
    try:
        code = subprocess.run([str(program)], check=False, timeout=10).returncode
    except OSError as error:
        detail = f"{place} is writable, but programs in it cannot be run: {error.strerror}"
        return warn(name, where, detail, f"it may be mounted noexec: {remedy}")
    finally:
        program.unlink(missing_ok=True)
    if code != 7:
        return fail(name, where, f"a program in {place} ended with {code} instead of 7", remedy)
    return ok(name, where, f"{place} is writable, and programs in it run")


# ------------------------------------------------------------------------------------------ nsys


def nsys_checks(where: str, request: HostRequest) -> list[Check]:
    """Look for nsys, capture one NVTX range with it, export that, and look for the range."""
    names = ("nsys", "gpu metrics", "nsys report", "nvtx range")
    if request.nsys is False:
        return [could_not_look(name, where, "left out by --no-nsys") for name in names]
    nsys = find_nsys(request.nsys_path)
    if not nsys.profiles:
        absent = nsys.state is NsysState.ABSENT and not request.nsys and not request.nsys_path
        say = warn if absent else fail
        remedy = "load the module that has Nsight Systems (--prologue), or name it with --nsys-path"
        found = say(names[0], where, nsys.sentence, remedy)
        return [found, *(could_not_look(n, where, "there is no usable nsys") for n in names[1:])]
    if nsys.state is NsysState.READY:
        checks = [ok(names[0], where, nsys.sentence)]
    else:
        remedy = "reports are imported when the run is merged, where the head has the importer"
        checks = [warn(names[0], where, nsys.sentence, remedy)]
    checks.append(gpu_metrics(where, nsys, has_nvidia_driver()))
    with tempfile.TemporaryDirectory(prefix="dasf-hpc-doctor-") as folder:
        return [*checks, *captured(where, nsys, Path(folder))]


def gpu_metrics(where: str, nsys: NsysProgram, has_gpu: bool) -> Check:
    """Ask nsys which GPUs it can sample, and the driver who may."""
    name = "gpu metrics"
    if not has_gpu:
        return could_not_look(name, where, "there is no NVIDIA driver here")
    assert nsys.path is not None
    offer, admins = ask_nsys(nsys.path), only_administrators()
    driver = {
        None: "",
        True: "; the driver lets only administrators (RmProfilingAdminOnly: 1)",
        False: "; the driver lets everybody (RmProfilingAdminOnly: 0)",
    }[admins]
    if offer.gpus:
        can = f"nsys can sample {len(offer.gpus)} GPU(s) (--gpu-metrics)"
        if not offer.why_not:
            return ok(name, where, can + driver)
        return warn(name, where, f"{can}, not all: {offer.why_not}{driver}", "see the sentence")
    remedy = "runs go on without them; leave --gpu-metrics out, or ask the site's operators"
    return warn(name, where, offer.why_not + driver, remedy)


def captured(where: str, nsys: NsysProgram, folder: Path) -> list[Check]:
    """Capture one NVTX range with nsys, export the report and look for the range."""
    assert nsys.version is not None
    assert nsys.version_text is not None
    report, names = folder / "doctor.nsys-rep", ("nsys report", "nvtx range")
    unread = could_not_look(names[1], where, "there is no report to look into")
    said, way = "", None
    command = nsys_command(
        str(nsys.path),
        choose_nsys((), has_nvidia_driver()),
        str(folder / "doctor"),
        [sys.executable, "-c", PROFILED],
    )
    try:
        for _ in range(NSYS_STARTS):
            way = make_way(nsys.version_text) or way
            with turn():
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=CAPTURE_TIMEOUT_S,
                    cwd=folder,
                    check=False,
                )
            said = (done.stderr + done.stdout).strip()
            if any(folder.glob("doctor.*")):
                break
        if not report.exists() and report.with_suffix(STREAM_SUFFIX).exists():
            report = report.with_suffix(STREAM_SUFFIX)
        if not report.exists():
            last = way or (said.splitlines()[-1] if said else "it said nothing")
            return [
                fail(names[0], where, f"nsys wrote no report: {last}", "run nsys by hand"),
                unread,
            ]
        read = read_report(export_sqlite(report, nsys))
    except subprocess.TimeoutExpired:
        detail = f"nsys did not end within {CAPTURE_TIMEOUT_S:g} s"
        return [fail(names[0], where, detail, "run nsys by hand"), unread]
    except NsightError as error:
        if report.suffix == STREAM_SUFFIX:
            remedy = "the head imports it at the end if its nsys has the importer"
            return [warn(names[0], where, f"left as .qdstrm: {error}", remedy), unread]
        remedy = "use the nsys of one version everywhere (--nsys-path)"
        return [fail(names[0], where, f"it cannot be exported: {error}", remedy), unread]
    detail = "a report was written and exported"
    checks = [ok(names[0], where, f"{detail}; {way}" if way else detail)]
    if read.ranges.message.equal("doctor").any():
        checks.append(ok(names[1], where, "a range of the package nvtx was recorded"))
    else:
        version = installed_version("nvtx")
        known = f"no range of nvtx {version} was recorded: {said[-200:]}"
        detail = known if version else "nvtx is not installed"
        remedy = "pip install 'nvtx>=0.2.11' there"
        checks.append(fail(names[1], where, detail, remedy))
    return checks


# ------------------------------------------------------------------------------------ the machine


def perf_event_paranoid(where: str) -> Check:
    """Look whether nsys may sample the CPU (Nsight Systems' guide: 2 or lower)."""
    name = "perf_event_paranoid"
    try:
        value = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    except (OSError, ValueError) as error:
        return could_not_look(name, where, str(error))
    if value > 2:
        return warn(
            name,
            where,
            f"it is {value}: nsys cannot sample the CPU",
            "nothing for the default traces; for --nsys-arg=--sample=cpu ask for 2 or lower",
        )
    return ok(name, where, f"it is {value}")


def gpu_checks(where: str, wanted: int) -> list[Check]:
    """Look for GPUs, the right to read them, and MIG."""
    names = ("gpu", "nvml", "mig")
    devices, state = nvml_devices()
    if state in (NvmlState.NO_LIBRARY, NvmlState.NO_DRIVER, NvmlState.NO_DEVICE) and not wanted:
        return [could_not_look(n, where, f"{state.value}; none was asked for") for n in names]
    if state is not NvmlState.READY:
        remedy = "ask for a node with GPUs (--gpus-per-node, --partition)"
        if state is NvmlState.NO_PERMISSION:
            remedy = "ask the site's operators for the right to read GPU counters"
        if state is NvmlState.NO_PACKAGE:
            remedy = "pip install nvidia-ml-py"
        return [
            fail(names[0], where, f"{wanted} asked for: {state.value}", remedy)
            if wanted
            else could_not_look(names[0], where, state.value),
            fail(names[1], where, state.value, remedy),
            could_not_look(names[2], where, state.value),
        ]
    driver, mig = nvml_driver_and_mig(len(devices))
    listed = ", ".join(device.name for device in devices)
    checks = []
    if len(devices) < wanted:
        detail = f"{len(devices)} there ({listed}), {wanted} asked for"
        checks.append(fail(names[0], where, detail, "lower --gpus-per-node"))
    else:
        checks.append(ok(names[0], where, f"{listed}; driver {driver}"))
    checks.append(ok(names[1], where, state.value))
    if mig:
        detail = f"MIG is on for GPU {', '.join(map(str, mig))}"
        remedy = "utilisation of a MIG device is not recorded; turn MIG off to have it"
        checks.append(warn(names[2], where, detail, remedy))
    else:
        checks.append(ok(names[2], where, "MIG is off"))
    return checks


def nvml_driver_and_mig(count: int) -> tuple[str, list[int]]:
    """Give the driver's version and the GPUs whose MIG mode is on."""
    import pynvml

    pynvml.nvmlInit()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        mig = []
        for index in range(count):
            try:
                mode = pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(index))
            except pynvml.NVMLError:  # a GPU that has no MIG
                continue
            if mode[0]:
                mig.append(index)
        return driver.decode() if isinstance(driver, bytes) else str(driver), mig
    finally:
        pynvml.nvmlShutdown()


def clock_source(where: str) -> Check:
    """Look what the kernel reads its clock from."""
    name = "clock source"
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    try:
        source = path.read_text().strip()
    except OSError as error:
        return could_not_look(name, where, str(error))
    if source in SLOW_CLOCK_SOURCES:
        detail = f"it is {source}: every time stamp costs about 1 us"
        return warn(name, where, detail, "ask the site's operators for tsc")
    return ok(name, where, f"it is {source}")


class _Timex(ctypes.Structure):
    """The first fields of ``struct timex`` of adjtimex(2), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_clock() -> tuple[bool | None, float]:
    """Ask the kernel (adjtimex(2)) for its wall clock's state.

    Returns
    -------
    synchronised : bool or None
        None where the kernel does not tell.
    maxerror : float
        Its bound on the error, in seconds.
    """
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None, 0.0
    if state < 0:
        return None, 0.0
    unsynchronised = 0x40  # STA_UNSYNC
    return state != 5 and not timex.status & unsynchronised, timex.maxerror / 1e6  # TIME_ERROR


def clock_synchronisation(where: str, synchronised: bool | None, maxerror: float) -> Check:
    """Judge the state of the kernel's wall clock."""
    name = "clock synchronisation"
    if synchronised is None:
        return could_not_look(name, where, "the kernel does not tell")
    if not synchronised:
        return warn(
            name,
            where,
            "the wall clock is not synchronised (adjtimex)",
            "times in a trace do not depend on it; dates of files and TLS do: start chronyd",
        )
    within = duration_text(1e9 * maxerror)
    return ok(name, where, f"the wall clock is synchronised within {within}")


def open_files(where: str) -> Check:
    """Look how many files a process may have open."""
    name = "open-file limit"
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit in (-1, resource.RLIM_INFINITY):
        return ok(name, where, "there is none")
    remedy = (
        f"--prologue 'ulimit -n {OPEN_FILES_COMFORTABLE}'"
        if where != "login node"
        else (f"ulimit -n {OPEN_FILES_COMFORTABLE}")
    )
    if 0 <= hard < OPEN_FILES_COMFORTABLE:
        remedy = f"ask the site's operators: the hard limit is {hard}"
    if limit < OPEN_FILES_NEEDED:
        return fail(name, where, f"it is {limit}, less than {OPEN_FILES_NEEDED}", remedy)
    if limit < OPEN_FILES_COMFORTABLE:
        return warn(name, where, f"it is {limit}: enough for few workers only", remedy)
    return ok(name, where, f"it is {limit}")


def port(where: str, host: str, number: int) -> Check:
    """Connect to the head's port."""
    problem = _unreachable(host, number)
    if problem:
        remedy = "name a network that both see with --interface, or an open port with "
        return fail("port", where, problem, f"{remedy}--scheduler-port")
    return ok("port", where, f"{host}:{number} of the head can be reached")


def clock_port(where: str, host: str, number: int) -> Check:
    """Connect to the head's port that tells nodes the time."""
    problem = _unreachable(host, number)
    if problem:
        remedy = "open the port after --scheduler-port, too; without it times are less exact"
        return warn("clock port", where, problem, remedy)
    return ok("clock port", where, f"{host}:{number} of the head can be reached")


def _unreachable(host: str, number: int) -> str:
    """Say why a port of the head cannot be reached; nothing where it can."""
    try:
        socket.create_connection((host, number), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{host}:{number} of the head cannot be reached: {error.strerror or error}"
    return ""


# ------------------------------------------------------------------------------------ as a program


def ask_host(path: Path, where: str, request: HostRequest, token: str = "") -> list[str]:
    """Write the request and give the words after a Python that answer it on another host."""
    path.write_text(json.dumps({"token": token, "request": asdict(request)}))
    return ["-m", "dasf_hpc.doctor.host", "--request", str(path), "--where", where]


def read_answers(directory: Path) -> list[dict[str, Any]]:
    """Read what hosts answered to a request in this folder."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("answer-*.json"))]


def checks_of(answer: dict[str, Any], prefix: str = "") -> list[Check]:
    """Give the checks of an answer, each detail with a prefix."""
    return [
        Check(
            **{
                **entry,
                "detail": prefix + entry["detail"],
                "status": Status(entry["status"]),
            }
        )
        for entry in answer["checks"]
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Read the request, look, and write the answer beside it."""
    parser = argparse.ArgumentParser(prog="python -m dasf_hpc.doctor.host")
    parser.add_argument("--request", type=Path, required=True)
    parser.add_argument("--where", required=True)
    arguments = parser.parse_args(words)
    os.umask(0o077)
    try:
        asked = json.loads(arguments.request.read_text())
    except (OSError, ValueError) as error:
        print(f"dasf-hpc doctor: {arguments.request} cannot be read: {error}", file=sys.stderr)
        return 0  # the workers that come next may still say more
    head = asked["request"].pop("head")
    request = HostRequest(**asked["request"], head=tuple(head) if head else None)
    answer = {
        "token": asked["token"],
        "hostname": socket.gethostname(),
        "versions": versions_here(),
        "time": time.time(),
        "checks": [asdict(check) for check in host_checks(arguments.where, request)],
    }
    name = file_stem(f"answer-{socket.gethostname()}-{os.getpid()}")
    partial = arguments.request.with_name(f".{name}")
    partial.write_text(json.dumps(answer))
    partial.rename(arguments.request.with_name(f"{name}.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
