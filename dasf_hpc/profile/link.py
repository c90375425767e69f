"""Recording: a process's hold on its node's recorder (`dasf_hpc.profile.sampler`).

The recorder listens on a Unix socket in Linux's abstract namespace, whose name says run and host:
it belongs to no file system, and the kernel frees it with its process. Whoever finds no recorder
makes that socket, so that only one does, and starts a recorder on it. Each process keeps a
connection open; that is how the recorder learns whom to sample and whose journal to file, that a
process was killed, and when it is no longer needed, and how a process learns that the recorder
died, and starts another.

What a process sends, a message each: ``journal`` with two descriptors (memory, file), ``file``
(file the rest of it now), ``sample {"interval": seconds, "options": {}}``, ``now`` (sample now),
``drain`` (file all journals now), ``bye``. All but ``sample`` and ``bye`` are answered with a JSON
object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dasf_hpc.profile.drain import LAYOUT
from dasf_hpc.profile.journal import CLOSE_WAIT_S, Journal

START_TIMEOUT_S = 20.0
#: Attempts of one process to get a recorder before it gives up (each may start a process), counted
#: anew when one lived for so many seconds.
MAX_STARTS = 5
SETTLED_S = 30.0

#: Longest wait, in seconds, for a process to be started; it takes about 10 ms.
HAND_OVER_S = 1.0

#: Bytes of one message.
MESSAGE = 65536

_PEER = struct.Struct("3i")

#: Variables through which nsys loads itself into child processes: the recorder is not profiled.
_INJECTION = ("INJECTION", "NSYS", "QUADD")


def socket_name(directory: Path) -> str:
    """Name the recorder's socket: the same for all workers of a run on one host, and no other's.

    Nor that of a dasf-hpc that lays out its memory in another way, in an image, say.
    """
    what = f"{directory.absolute()}\n{socket.gethostname()}\n{os.getuid()}\n{LAYOUT}"
    return "\0dasf-hpc-recorder-" + hashlib.sha256(what.encode()).hexdigest()[:32]


def peer(connection: socket.socket) -> tuple[int, int]:
    """Give pid and uid of the other end, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(raw)
    return pid, uid


class RecorderLink:
    """A process's hold on its node's recorder: starts it when there is none, again when it dies.

    Parameters
    ----------
    directory
        The run's folder of journals.
    journal
        A journal of this process that the recorder shall file.
    interval
        Seconds between samples of the node; None asks for none.
    options
        ResourceMonitor's ``monitor_kwargs``.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal | None = None,
        interval: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._directory = directory
        self._journal = journal
        # Its own: the journal may be closed while this still starts a recorder.
        self._descriptors = [os.dup(d) for d in (journal.memory, journal.file)] if journal else []
        self._interval = interval
        self._options = options or {}
        self._stopping = threading.Event()
        self._connection: socket.socket | None = None
        self._connected = threading.Event()
        self._taken = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._answers: list[dict[str, Any]] = []
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self._hold, name="dasf-hpc-recorder", daemon=True)

    def start(self) -> None:
        """Start to hold the recorder, in a thread of its own.

        Where there is a journal, waits until the recorder, though it may just be starting, is sure
        to get it: from then on this process may be killed.
        """
        self._thread.start()
        if self._journal is not None:
            self._connected.wait(HAND_OVER_S)

    def stop(self) -> None:
        """Let the recorder go."""
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.send(b"bye", socket.MSG_DONTWAIT)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def sample(self, timeout: float = 2.0) -> dict[str, Any]:
        """Have one sample taken now and give it; empty where no recorder answers in time."""
        began = time.monotonic()
        if self._interval is None or not self._connected.wait(timeout):
            return {}
        return self._ask(b"now", timeout - (time.monotonic() - began)) or {}

    def file(self) -> bool:
        """Have the recorder file the rest of the journal and let it go.

        Returns
        -------
        bool
            Whether it has done so, or is still at it after 5 s; if not, nobody files the journal.
        """
        taken = self._taken.is_set()
        if taken:
            # None is also the answer of one that died, or that stands still for now.
            taken = self._ask(b"file", CLOSE_WAIT_S) is not None or self._taken.is_set()
        self.stop()
        return taken

    def _ask(self, word: bytes, timeout: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout
        with self._answered:
            self._answers.clear()
            try:
                assert self._connection is not None
                self._connection.send(word, socket.MSG_DONTWAIT)
            except OSError:
                return None
            while not self._answers:
                left = deadline - time.monotonic()
                if left <= 0 or not self._connected.is_set() or not self._answered.wait(left):
                    return None
            return self._answers[-1]

    def _hold(self) -> None:
        starts = 0
        why = "no recorder process could be reached or started"
        while starts < MAX_STARTS and not self._stopping.is_set():
            starts += 1
            began = time.monotonic()
            try:
                connection = self._connect()
            except OSError as error:
                why = f"no recorder process could be started: {error.strerror}"
                break
            if connection is None:
                continue
            with connection:
                self._connection = connection
                with contextlib.suppress(OSError):
                    self._introduce(connection)
                    self._connected.set()
                    if self._stopping.is_set():
                        self.stop()
                    self._listen(connection)
                with self._answered:
                    self._connected.clear()
                    self._taken.clear()
                    self._answered.notify_all()
            for child in self._children:
                child.poll()
            if time.monotonic() - began > SETTLED_S:
                starts = 0
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self._journal is not None and not self._stopping.is_set():
            self._journal.drain_here()
            self._journal.meta({"kind": "unavailable", "what": "recorder", "why": why})

    def _introduce(self, connection: socket.socket) -> None:
        if self._descriptors:
            socket.send_fds(connection, [b"journal"], self._descriptors)
        if self._interval is not None:
            wish = {"interval": self._interval, "options": self._options}
            connection.send(b"sample " + json.dumps(wish).encode())

    def _listen(self, connection: socket.socket) -> None:
        while data := connection.recv(MESSAGE):
            answer = json.loads(data)
            if answer.get("taken"):
                self._taken.set()
                continue
            with self._answered:
                self._answers.append(answer)
                self._answered.notify_all()

    def _connect(self) -> socket.socket | None:
        deadline = time.monotonic() + START_TIMEOUT_S
        spawned = False
        while time.monotonic() < deadline and not self._stopping.is_set():
            connection = connect(self._directory)
            if connection is not None or spawned:
                return connection
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                try:
                    listener.bind(socket_name(self._directory))
                except OSError:  # somebody was faster, and listens in a moment
                    self._stopping.wait(0.02)
                    continue
                listener.listen(256)
                self._children.append(self._spawn(listener.fileno()))
                spawned = True
        return None

    def _spawn(self, listener: int) -> subprocess.Popen[bytes]:
        module, directory = "dasf_hpc.profile.sampler", str(self._directory)
        # A session of its own: Ctrl-C in the terminal is for the run, which then ends the recorder.
        return subprocess.Popen(
            [sys.executable, "-m", module, "--directory", directory, "--listener", str(listener)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=unprofiled(dict(os.environ)),
            start_new_session=True,
            pass_fds=[listener],
        )


def connect(directory: Path) -> socket.socket | None:
    """Connect to a run's recorder on this host, None where there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):
        connection.connect(socket_name(directory))
        if peer(connection)[1] == os.getuid():
            return connection
    connection.close()
    return None


def drain(directory: Path, timeout: float = 10.0) -> bool:
    """Have a run's journals on this host filed as far as they go; False where nobody does it."""
    connection = connect(directory)
    if connection is None:
        return False
    with connection:
        connection.settimeout(timeout)
        try:
            connection.send(b"drain")
            return bool(connection.recv(MESSAGE))
        except OSError:
            return False


#: Names variables, after commas, with which no process of ours is started: nsys would keep them.
HIDDEN_VARIABLE = "DASF_HPC_HIDDEN"


def unprofiled(environment: dict[str, str]) -> dict[str, str]:
    """Give an environment without what nsys put there to load itself into children.

    Variables that are not to be in its reports are left out, too.
    """
    clean = {}
    hidden = environment.get(HIDDEN_VARIABLE, "").split(",")
    for name, value in environment.items():
        if name in hidden or any(part in name for part in _INJECTION):
            continue
        if name == "LD_PRELOAD":
            value = ":".join(
                part
                for part in value.replace(" ", ":").split(":")
                if part and "nsight" not in part.lower() and "ToolsInjection" not in part
            )
            if not value:
                continue
        clean[name] = value
    return clean
