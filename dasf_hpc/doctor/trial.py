"""Doctor: a trial job on the cluster, through the launcher that runs use too.

The batch script first runs `dasf_hpc.doctor.host` on the node and then a worker, without nsys. What
the node finds comes back through the folder that head and nodes should share.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from distributed.utils import get_ip, get_ip_interface

from dasf_hpc.doctor.check import COMPUTE, LOGIN, Check, Status, could_not_look, fail, ok, warn
from dasf_hpc.doctor.host import HostRequest, ask_host, checks_of, read_answers
from dasf_hpc.errors import BatchError, DasfHpcError, WorkersError
from dasf_hpc.launch.credentials import make_credentials
from dasf_hpc.launch.environment import Versions, clash, versions_here
from dasf_hpc.launch.image import Container
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.shape import RunPlace
from dasf_hpc.launch.worker_options import check_worker_command
from dasf_hpc.manifest import make_run_directory
from dasf_hpc.settings import Settings, clock_port
from dasf_hpc.units import duration_text

#: How long the trial job may wait in the queue and start, unless --start-timeout says otherwise.
TRIAL_TIMEOUT_S = 30.0
#: After the workers are there, a file of theirs should be seen within this; NFS may take longer,
#: which is worth a word.
SHARED_WAIT_S = 5.0

#: What needs the trial job to be looked at.
NAMES = ("trial job", "shared file system", "port", "tls", "versions")


def trial(
    launcher_class: type[Launcher], settings: Settings, container: Container | None
) -> list[Check]:
    """Run the trial job and give what it showed; with a container, all of it inside.

    Raises
    ------
    RunDirectoryError
        If the runs directory cannot be used.
    """
    directory = make_run_directory(settings, "doctor")
    checks: list[Check] = []
    try:
        with contextlib.ExitStack() as listening:
            checks = _listen_beside(settings, listening)
            checks += _trial(launcher_class, settings, directory, container)
    except DasfHpcError as error:
        checks = [fail(NAMES[0], COMPUTE, str(error), "see the batch scheduler's own words")]
        checks += [could_not_look(n, COMPUTE, "the trial job did not run") for n in NAMES[1:]]
    finally:
        failed = any(check.status is Status.FAIL for check in checks)
        if failed and _said_something(directory / "logs"):
            shutil.rmtree(directory / "tls", ignore_errors=True)
            checks.append(
                could_not_look("logs", LOGIN, f"what the trial job said: {directory / 'logs'}")
            )
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return checks


def _listen_beside(settings: Settings, listening: contextlib.ExitStack) -> list[Check]:
    """Listen where a run's clock responder would, if the scheduler's port is a fixed one."""
    number = clock_port(settings.scheduler_port)
    if not number:
        return []
    try:
        listening.enter_context(socket.create_server(("", number)))
    except OSError as error:
        detail = f"port {number} of this host, after --scheduler-port, cannot be used: "
        remedy = "choose another --scheduler-port; without this one times are less exact"
        return [warn("clock port", LOGIN, detail + (error.strerror or str(error)), remedy)]
    return []


def _trial(
    launcher_class: type[Launcher],
    settings: Settings,
    directory: Path,
    container: Container | None,
) -> list[Check]:
    token, number = secrets.token_hex(8), settings.scheduler_port or _free_port()
    head = get_ip_interface(settings.interface) if settings.interface else get_ip()
    request = HostRequest(
        scratch=settings.local_directory,
        gpus=settings.gpus_per_node,
        nsys=settings.nsys,
        nsys_path=settings.nsys_path,
        head=("127.0.0.1" if launcher_class.local else head, number),
        clock_port=clock_port(settings.scheduler_port),
    )
    if container is not None:
        container = container.with_binds([directory])
    place = RunPlace(directory, directory.name, Path.cwd(), container)
    look = ask_host(directory / "doctor.json", COMPUTE, request, token)
    look = [*(container.words() if container else []), place.python(settings), *look]
    changed = settings.model_copy(
        update={
            "scheduler_port": number,
            "nsys": False,
            "prologue": [*settings.prologue, shlex.join(look)],
            "start_timeout": settings.start_timeout or TRIAL_TIMEOUT_S,
        }
    )
    security = make_credentials(directory / "tls") if settings.tls else None
    check_worker_command(settings, launcher_class.name, place.python_words(settings))
    launcher = launcher_class(changed, place, security)
    checks, arrived, refused = [], False, ""
    begun = time.monotonic()
    try:
        launcher.start()

        def waiting(there: int, why: str) -> None:
            if any(_unreachable(answer) for answer in read_answers(directory)):
                launcher.cancel_on_stop()
                raise WorkersError("the node does not reach the head")

        launcher.wait_for_workers(launcher.shape.workers, waiting)
        arrived = True
        seconds = time.monotonic() - begun
        checks.append(
            ok(NAMES[0], COMPUTE, f"its workers were there after {duration_text(1e9 * seconds)}")
        )
        deadline = time.monotonic() + SHARED_WAIT_S
        while len(read_answers(directory)) < launcher.shape.nodes and time.monotonic() < deadline:
            time.sleep(0.1)
    except BatchError as error:
        refused = str(error)
        checks.append(fail(NAMES[0], COMPUTE, refused, "change what is asked for, or the site"))
    except WorkersError as error:
        if any(_unreachable(answer) for answer in read_answers(directory)):
            checks.append(ok(NAMES[0], COMPUTE, "it started"))
        elif " 0 of " in str(error) and "workers are there:" in str(error):
            remedy = "give it more time with --start-timeout, or another --partition"
            checks.append(could_not_look(NAMES[0], COMPUTE, str(error), remedy))
        else:
            checks.append(fail(NAMES[0], COMPUTE, str(error), "read its log"))
    finally:
        launcher.stop()
    answers = read_answers(directory)
    if not refused:
        checks.append(_shared(answers, token, arrived, directory))
    checks += _connection(arrived, security is not None, refused)
    if not answers:
        checks.append(could_not_look(NAMES[2], COMPUTE, "no node answered"))
    checks.append(compare_versions(COMPUTE, [(a["hostname"], a["versions"]) for a in answers]))
    for answer in answers:
        checks += checks_of(answer, f"{answer['hostname']}: ")
    return checks


def _shared(answers: list[dict[str, Any]], token: str, arrived: bool, directory: Path) -> Check:
    """Say whether what the head wrote was read on a node, and the node's answer came back."""
    name, remedy = NAMES[1], "name a folder that head and nodes share with --runs-dir"
    if answers and all(answer["token"] == token for answer in answers):
        return ok(name, COMPUTE, f"head and nodes see the same files in {directory.parent}")
    if arrived or _said_something(directory / "logs"):
        return fail(
            name, COMPUTE, f"the nodes do not see what the head writes to {directory.parent}, "
            "or the head not what they write", remedy,
        )  # fmt: skip
    return could_not_look(name, COMPUTE, "no node answered", remedy)


def _said_something(logs: Path) -> bool:
    """Say if a node job began: its log is there before, empty; the batch system's own is not."""
    return any(log.suffix != ".log" or log.stat().st_size for log in logs.iterdir())


def _connection(arrived: bool, tls: bool, refused: str) -> list[Check]:
    name = NAMES[3]
    if not tls:
        remedy = "leave out --no-tls: whoever reaches the port can run code as you"
        return [warn(name, COMPUTE, "switched off", remedy)]
    if arrived:
        return [ok(name, COMPUTE, "workers joined over TLS with the run's certificate")]
    why = refused or "no worker joined"
    return [could_not_look(name, COMPUTE, why)]


def compare_versions(where: str, others: list[tuple[str, Versions]]) -> Check:
    """Compare versions elsewhere with those here; dask's and Python's must be equal.

    Parameters
    ----------
    where
        Where the others are.
    others
        A host's or image's name and its versions, as `versions_here` gives them.
    """
    name, here = NAMES[4], versions_here()
    if not others:
        return could_not_look(name, where, "no answer came back")
    different = [
        f"{who} has {package} {theirs.get(package)}, the head {version}"
        for who, theirs in others
        for package, version in here.items()
        if theirs.get(package) != version and (package != "python" or clash(here, theirs))
    ]
    if not different:
        return ok(name, where, f"Python, dask and {len(here) - 2} more packages are the same")
    remedy = "use one environment for both, or --worker-python"
    breaking = any(clash(here, theirs) for _, theirs in others)
    return (fail if breaking else warn)(name, where, "; ".join(different), remedy)


def _unreachable(answer: dict[str, Any]) -> bool:
    return any(c["name"] == "port" and c["status"] == Status.FAIL for c in answer["checks"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        number: int = probe.getsockname()[1]
        return number
