"""A real SLURM cluster of three simulated hosts on this one machine, for tests.

Each host is a set of Linux namespaces: its own host name, its own ``/etc/hosts``, its own
``/dev/shm`` and its own ``CLOCK_MONOTONIC``, shifted by a known amount, so that whatever aligns the
clocks of the hosts can be graded against the truth. The daemons, the controller and the
authentication service are the distribution's own programs; they share the machine's processors,
files and network. Each host claims four processors, 12000 MB and two GPUs, whatever the machine
has.

Root is needed (for the namespaces), and the programs ``bash tests/testbed/install.sh slurm``
installs. Several clusters may run at once: each has its own directory, ports and key.

As a program it starts a cluster and keeps it until Ctrl-C or SIGTERM::

    python tests/testbed/slurm.py
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

PROGRAMS = (
    "bash",
    "hostname",
    "mount",
    "munged",
    "nsenter",
    "scancel",
    "scontrol",
    "setpriv",
    "sinfo",
    "slurmctld",
    "slurmd",
    "squeue",
    "unshare",
)
"""What has to be installed; ``install.sh slurm`` brings all of it."""

MONOTONIC_OFFSET_S: Mapping[str, int] = {"node1": 1_000, "node2": 50_000, "node3": 200_000}
"""How far each host's ``CLOCK_MONOTONIC`` is ahead of the machine's. Chosen wide apart, so that
a clock taken for another host's is off by hours rather than by something that looks plausible."""

NODE_CPUS = 4
NODE_MEMORY_MB = 12_000
NODE_GPUS = 2

START_TIMEOUT_S = 60.0
"""Three seconds are usual on two cores; the rest is for a machine that is busy with tests."""

CANCEL_TIMEOUT_S = 5.0
"""How long :meth:`SlurmTestbed.stop` lets cancelled jobs end before it kills them."""

EXIT_TIMEOUT_S = 5.0
"""How long a daemon may take to end after SIGTERM before it gets SIGKILL."""

LOG_TAIL_LINES = 20

_MUNGE_USER = "munge"
_PORTS = range(20_000, 32_000)  # below Linux's ephemeral ports, so that no client takes one first
_HOLDER = (
    'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs tmpfs /dev/shm || exit 1; '
    'echo >&"$3"; exec sleep infinity'
)
_SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge_socket}
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdSpoolDir={directory}/spool/%n
SlurmdPidFile={directory}/%n.pid
SlurmdLogFile={directory}/log/%n.log
SlurmdParameters=config_overrides
SlurmdTimeout={node_down_after_s}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
MinJobAge=300
ReturnToService=2
GresTypes=gpu
{node_lines}
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE DefaultTime=01:00:00 State=UP
PartitionName=gpu Nodes={nodes} MaxTime=1-00:00:00 DefaultTime=01:00:00 State=UP
"""


class SlurmTestbedError(RuntimeError):
    """The cluster, or one of its hosts, did not do what was asked of it."""


@dataclass(frozen=True)
class QueuedJob:
    """One line of ``squeue``.

    Attributes
    ----------
    id
        The job's number.
    state
        SLURM's own long word: ``PENDING``, ``RUNNING``, ``COMPLETING``, …
    partition
        Where it was submitted to.
    nodes
        The hosts it has, in SLURM's notation (``node[1-2]``); empty while it waits.
    reason
        Why it waits, ``None`` if it does not.
    name
        The name its submitter gave it.
    """

    id: int
    state: str
    partition: str
    nodes: str
    reason: str | None
    name: str


@dataclass
class _Host:
    """A simulated host: the process that holds its namespaces, and its daemon."""

    name: str
    address: str
    port: int
    monotonic_offset_s: int
    holder: subprocess.Popen[bytes] | None = None
    uts_namespace: int | None = None
    """Open file descriptor: while it is open no other namespace can get the same number."""
    slurmd: subprocess.Popen[bytes] | None = None


def why_not_here() -> str | None:
    """Say what keeps a cluster from starting on this machine.

    Returns
    -------
    str or None
        A sentence for a person, or ``None`` when nothing is known to be in the way.
    """
    if sys.platform != "linux":
        return "simulated hosts need Linux namespaces"
    missing = [program for program in PROGRAMS if _find_program(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "simulated hosts need root (unshare --uts --time --mount)"
    if not Path("/proc/self/ns/time").exists():
        return "this kernel has no time namespaces (5.6 or newer with CONFIG_TIME_NS)"
    return None


class SlurmTestbed:
    """A SLURM cluster of three hosts that lives as long as this object is started.

    Parameters
    ----------
    node_down_after_s
        SLURM's ``SlurmdTimeout``: how long a host may be silent before the controller calls it
        down. Sites mostly keep 300 s, which is long for a test.
    keep_directory
        Leave the directory with configuration and logs behind after :meth:`stop`.

    Attributes
    ----------
    environment
        What to put into ``os.environ`` (or hand to a subprocess) for ``sbatch``, ``qsub`` and
        the like to talk to this cluster.
    nodes
        The names of the hosts.
    monotonic_offset_s
        For each host, its ``CLOCK_MONOTONIC`` minus that of this process, exactly.

    Notes
    -----
    The daemons end with this process even if it is killed. That is tied to the thread which
    calls :meth:`start`, so it is only asked for when that is the main thread.
    """

    def __init__(self, *, node_down_after_s: int = 60, keep_directory: bool = False) -> None:
        self.node_down_after_s = node_down_after_s
        self.keep_directory = keep_directory
        self.nodes: list[str] = list(MONOTONIC_OFFSET_S)
        self.monotonic_offset_s: dict[str, float] = {
            node: float(offset) for node, offset in MONOTONIC_OFFSET_S.items()
        }
        self.environment: dict[str, str] = {}
        self._directory: Path | None = None
        self._hosts: dict[str, _Host] = {}
        self._munged: subprocess.Popen[bytes] | None = None
        self._slurmctld: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """Configuration, logs and state of the cluster; only there while it is started."""
        if self._directory is None:
            raise SlurmTestbedError("the SLURM testbed is not started")
        return self._directory

    def __enter__(self) -> SlurmTestbed:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until every host is idle.

        Raises
        ------
        SlurmTestbedError
            If that did not happen in time; the message holds the ends of the logs, and
            nothing is left running.
        """
        if self._directory is not None:
            raise SlurmTestbedError("the SLURM testbed is started already")
        reason = why_not_here()
        if reason is not None:
            raise SlurmTestbedError(f"no SLURM testbed on this machine: {reason}")
        try:
            self._prepare_directory()
            self._start_munged()
            self._slurmctld = self._start_daemon([_program("slurmctld"), "-D"], "slurmctld.out")
            for node in self.nodes:
                self.start_node(node)
            self.wait_until_idle(START_TIMEOUT_S)
        except BaseException as error:
            logs = self._log_tails()
            self.stop()
            if isinstance(error, SlurmTestbedError | OSError | subprocess.SubprocessError):
                raise SlurmTestbedError(f"the SLURM testbed did not start: {error}\n{logs}") from (
                    error
                )
            raise

    def stop(self) -> None:
        """Cancel all jobs, end all that was started, and remove the directory.

        May be called at any time, also twice. Whatever still runs on a host after its jobs were
        cancelled is killed, as if the host had been switched off.
        """
        if self._directory is None:
            return
        if self._slurmctld is not None and self._slurmctld.poll() is None:
            self._cancel_all_jobs()
        for host in self._hosts.values():
            _end(host.slurmd)
        for node in self._hosts:
            self.kill_node(node)
        _end(self._slurmctld)
        _end(self._munged)
        self._slurmctld = self._munged = None
        self._hosts = {}
        self.environment = {}
        if not self.keep_directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    def queue(self) -> list[QueuedJob]:
        """List the jobs that have not ended yet, oldest first."""
        answer = self.command("squeue", "--noheader", "--sort=i", "--format=%i|%T|%P|%N|%r|%j")
        jobs = []
        for line in answer.splitlines():
            number, state, partition, nodes, reason, name = line.split("|", maxsplit=5)
            jobs.append(
                QueuedJob(
                    id=int(number.split("_")[0]),
                    state=state,
                    partition=partition,
                    nodes=nodes,
                    reason=None if reason == "None" else reason,
                    name=name,
                )
            )
        return jobs

    def node_states(self) -> dict[str, str]:
        """Tell what the controller thinks of each host (``idle``, ``mixed``, ``down*``, …)."""
        answer = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        return dict(line.split(maxsplit=1) for line in answer.splitlines())

    def wait_until_idle(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until no host has a job and all of them answer.

        Raises
        ------
        SlurmTestbedError
            If that takes longer than `timeout_s`, or a daemon has ended meanwhile.
        """
        states: dict[str, str] = {}

        def all_idle() -> bool:
            self._check_daemons()
            with contextlib.suppress(SlurmTestbedError):  # the controller may not listen yet
                states.update(self.node_states())
            return len(states) == len(self.nodes) and set(states.values()) == {"idle"}

        if not _wait_for(all_idle, timeout_s):
            raise SlurmTestbedError(f"not all hosts idle after {timeout_s:g} s: {states}")

    def command(self, *words: str) -> str:
        """Run one of SLURM's programs against this cluster and return what it prints.

        Raises
        ------
        SlurmTestbedError
            If it ends with another code than 0.
        """
        done = subprocess.run(
            [_program(words[0]), *words[1:]],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SlurmTestbedError(
                f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def slurmd_pid(self, node: str) -> int:
        """Return the process id of the daemon of `node`.

        Raises
        ------
        SlurmTestbedError
            If the daemon does not run.
        """
        slurmd = self._host(node).slurmd
        if slurmd is None or slurmd.poll() is not None:
            raise SlurmTestbedError(f"slurmd of {node} does not run")
        return slurmd.pid

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of `node` at once. Jobs there go on; the controller notices later."""
        pid = self.slurmd_pid(node)
        os.kill(pid, signal.SIGKILL)
        _wait(self._host(node).slurmd)

    def start_slurmd(self, node: str) -> None:
        """Start the daemon of `node` again, on the host as it is, clocks and jobs included."""
        host = self._host(node)
        if host.slurmd is not None and host.slurmd.poll() is None:
            raise SlurmTestbedError(f"slurmd of {node} runs already")
        if host.holder is None or host.holder.poll() is not None:
            raise SlurmTestbedError(f"{node} is switched off; start_node() switches it on")
        pid = _only_child(host.holder.pid)
        host.slurmd = self._start_daemon(
            [
                *(_program("nsenter"), f"--target={pid}", "--uts", "--mount", "--time"),
                *(_program("slurmd"), "-D", "-N", node),
            ],
            f"{node}.out",
        )

    def kill_node(self, node: str) -> None:
        """Kill all that runs on `node`, its daemon and its jobs, as a power failure would.

        The controller notices after `node_down_after_s`, or at once after
        ``scontrol update nodename=… state=down reason=…``.
        """
        host = self._host(node)
        if host.uts_namespace is not None:
            namespace = os.fstat(host.uts_namespace).st_ino

            def nobody_left() -> bool:
                pids = list(_processes_in(namespace))
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return not pids

            if not _wait_for(nobody_left, EXIT_TIMEOUT_S, every_s=0.02):
                raise SlurmTestbedError(f"processes on {node} do not die")
            os.close(host.uts_namespace)
            host.uts_namespace = None
        _wait(host.slurmd)
        _end(host.holder)
        host.slurmd = host.holder = None

    def start_node(self, node: str) -> None:
        """Switch on a host that was never started or has been killed."""
        host = self._host(node)
        if host.holder is not None and host.holder.poll() is None:
            raise SlurmTestbedError(f"{node} runs already")
        read_end, write_end = os.pipe()
        try:
            host.holder = self._start_daemon(
                [
                    *(_program("unshare"), "--uts", "--mount", "--propagation=slave", "--time"),
                    f"--monotonic={host.monotonic_offset_s}",
                    f"--boottime={host.monotonic_offset_s}",
                    *("--fork", "--kill-child", _program("bash"), "-c", _HOLDER),
                    *("holder", node, str(self.directory / "hosts"), str(write_end)),
                ],
                f"{node}.out",
                pass_fds=(write_end,),
            )
            os.close(write_end)
            write_end = -1
            if not os.read(read_end, 1):
                raise SlurmTestbedError(f"the namespaces of {node} were refused by the system")
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        pid = _only_child(host.holder.pid)
        host.uts_namespace = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self.start_slurmd(node)

    def _host(self, node: str) -> _Host:
        try:
            return self._hosts[node]
        except KeyError:
            raise SlurmTestbedError(f"no host {node!r} in the started testbed") from None

    def _prepare_directory(self) -> None:
        # Not tempfile's own 0700: munged and jobs of other users have to get in.
        self._directory = Path(tempfile.mkdtemp(prefix="slurm-testbed-"))
        self._directory.chmod(0o755)
        for name in ("dev", "log", "munge", "spool", "state"):
            (self._directory / name).mkdir()
        controller_port, *ports = _free_ports(1 + len(self.nodes))
        self._hosts = {
            node: _Host(node, f"127.0.0.{10 + number}", port, MONOTONIC_OFFSET_S[node])
            for number, (node, port) in enumerate(zip(self.nodes, ports, strict=True), start=1)
        }
        machine = Path("/etc/hosts").read_text(encoding="utf-8")
        hosts = "".join(f"{host.address} {host.name}\n" for host in self._hosts.values())
        (self._directory / "hosts").write_text(hosts + machine, encoding="utf-8")

        for number in range(NODE_GPUS):  # null devices: SLURM asks that the files exist, no more
            os.mknod(self._directory / f"dev/nvidia{number}", 0o20666, os.makedev(1, 3))
        (self._directory / "gres.conf").write_text(
            f"NodeName={','.join(self.nodes)} Name=gpu "
            f"File={self._directory}/dev/nvidia[0-{NODE_GPUS - 1}]\n",
            encoding="utf-8",
        )
        configuration = self._directory / "slurm.conf"
        configuration.write_text(
            _SLURM_CONF.format(
                hostname=socket.gethostname().split(".")[0],
                controller_port=controller_port,
                directory=self._directory,
                munge_socket=self._directory / "munge/socket",
                node_down_after_s=self.node_down_after_s,
                nodes=",".join(self.nodes),
                node_lines="\n".join(
                    f"NodeName={host.name} NodeHostname={host.name} NodeAddr=127.0.0.1 "
                    f"Port={host.port} CPUs={NODE_CPUS} RealMemory={NODE_MEMORY_MB} "
                    f"Gres=gpu:{NODE_GPUS} State=UNKNOWN"
                    for host in self._hosts.values()
                ),
            ),
            encoding="utf-8",
        )
        self.environment = {"SLURM_CONF": str(configuration)}

    def _start_munged(self) -> None:
        """Start the authentication service with a key of its own, as the user it belongs to."""
        try:
            user = pwd.getpwnam(_MUNGE_USER)
        except KeyError:
            raise SlurmTestbedError(f"there is no user {_MUNGE_USER!r} to run munged") from None
        place = self.directory / "munge"
        key = place / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for path in (place, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._munged = self._start_daemon(
            [
                *(_program("munged"), "--foreground", f"--key-file={key}"),
                f"--socket={place}/socket",
                f"--pid-file={place}/pid",
                f"--seed-file={place}/seed",
            ],
            "munged.out",
            user=user,
        )
        if not _wait_for((place / "socket").exists, EXIT_TIMEOUT_S):
            raise SlurmTestbedError("munged does not listen")

    def _start_daemon(
        self,
        words: Sequence[str],
        log: str,
        *,
        user: pwd.struct_passwd | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        if threading.current_thread() is threading.main_thread():
            words = [_program("setpriv"), "--pdeathsig=KILL", *words]
        with self._open_log(log) as output:
            return subprocess.Popen(
                words,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for us: we end the daemons in order
                pass_fds=pass_fds,
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
            )

    def _open_log(self, name: str) -> IO[bytes]:
        return (self.directory / "log" / name).open("ab")

    def _check_daemons(self) -> None:
        daemons = {"munged": self._munged, "slurmctld": self._slurmctld}
        daemons |= {f"slurmd of {host.name}": host.slurmd for host in self._hosts.values()}
        for name, daemon in daemons.items():
            if daemon is not None and daemon.poll() is not None:
                raise SlurmTestbedError(f"{name} has ended with code {daemon.returncode}")

    def _cancel_all_jobs(self) -> None:
        """Empty the queue, politely at first; errors only mean that the hosts are killed next."""

        def empty() -> bool:
            return not self.queue()

        with contextlib.suppress(SlurmTestbedError):
            for how in (["--quiet"], ["--quiet", "--full", "--signal=KILL"]):
                jobs = [str(job.id) for job in self.queue()]
                if not jobs:
                    return
                self.command("scancel", *how, *jobs)
                if _wait_for(empty, CANCEL_TIMEOUT_S):
                    return

    def _log_tails(self) -> str:
        if self._directory is None:
            return ""
        parts = []
        for log in sorted((self._directory / "log").iterdir()):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines:
                parts.append(f"--- {log.name}\n" + "\n".join(lines[-LOG_TAIL_LINES:]))
        return "\n".join(parts)


def _find_program(name: str) -> str | None:
    """Find a program also where the daemons are, which is not in every user's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _program(name: str) -> str:
    path = _find_program(name)
    if path is None:
        raise SlurmTestbedError(f"{name} is not installed: bash tests/testbed/install.sh slurm")
    return path


def _free_ports(count: int) -> list[int]:
    """Pick ports nobody listens on; all are held until all are found, so they differ."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(_PORTS, k=len(_PORTS)):
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise SlurmTestbedError(f"no {count} free ports in {_PORTS}")


def _wait_for(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def _wait(process: subprocess.Popen[bytes] | None) -> None:
    """Wait for a process that is about to end, so that it does not stay as a zombie."""
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_TIMEOUT_S)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _only_child(pid: int) -> int:
    """Return the process that ``unshare --fork`` has put into the new namespaces."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    if len(children) != 1:
        raise SlurmTestbedError(f"process {pid} has {len(children)} children, not one")
    return int(children[0])


def _processes_in(uts_namespace: int) -> Iterator[int]:
    """Find the processes of a host: those in the UTS namespace made for it, and no others."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile, or a zombie
                if (entry / "ns/uts").stat().st_ino == uts_namespace:
                    yield int(entry.name)


def main() -> int:
    """Start a cluster for trying things by hand, and keep it until a signal comes."""

    def on_signal(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    try:
        with SlurmTestbed() as testbed:
            for name, value in testbed.environment.items():
                print(f"export {name}={value}")
            print(f"# hosts: {', '.join(testbed.nodes)}; Ctrl-C ends the cluster", flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except SlurmTestbedError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
