"""Recording: clock probes, round trips from a node's recorder to a responder beside the scheduler.

The responder (`dasf_hpc.profile.probe_responder`) is a process of its own that does nothing else,
and so is the recorder: no event loop and no task's hold on the GIL is in a round trip. One recorder
probes for all processes of its node, since they share the clock.

Both know a secret of the run, which lies in a file of mode 0600 beside the journals while the run
lasts. A question is 32 bytes, a nonce and its HMAC; an answer is 32 bytes, two times and the HMAC
of nonce and times. So an answer can be neither forged nor played back, and who does not know the
secret gets none.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dasf_hpc.profile.clock import clock_identity

#: Name of the file, in the folder of the run's journals, that says how to reach the responder.
CONTACT = "clock-responder.json"

_TAG = 16
_QUESTION = struct.Struct(f"!16s{_TAG}s")
_ANSWER = struct.Struct(f"!qq{_TAG}s")
QUESTION_SIZE = _QUESTION.size

#: Seconds from one burst to the next: at the start, doubled each time, at most.
FIRST_INTERVAL_S = 0.25
INTERVAL_S = 5.0
#: Probes of the first and the last burst, and of one between. A burst ends before, having so many,
#: when two round trips were not much longer than the shortest of all so far.
LONG_BURST = 48
BURST = 24
SHORT_BURST = 6
_QUICK = 1.2
#: How long an answer is waited for, and a connection.
ANSWER_S = 0.5
CONNECT_S = 5.0


def ask(secret: bytes) -> tuple[bytes, bytes]:
    """Give a new question, and its nonce, by which its answer is known."""
    nonce = os.urandom(16)
    return _QUESTION.pack(nonce, _tag(secret, b"question", nonce)), nonce


def heard(secret: bytes, question: bytes) -> bytes | None:
    """Give a question's nonce, None where who asks does not know the secret."""
    nonce, tag = _QUESTION.unpack(question)
    return nonce if hmac.compare_digest(tag, _tag(secret, b"question", nonce)) else None


def answer(secret: bytes, nonce: bytes, received: int) -> bytes:
    """Answer with when the question was received, ns, and the time by now."""
    now = time.monotonic_ns()
    times = _ANSWER.pack(received, now, b"")[:-_TAG]
    return times + _tag(secret, b"answer", nonce + times)


def answered(secret: bytes, nonce: bytes, message: bytes) -> tuple[int, int] | None:
    """Give the two times of an answer, None where it is no answer to this question."""
    received, sent, tag = _ANSWER.unpack(message)
    genuine = hmac.compare_digest(tag, _tag(secret, b"answer", nonce + message[:-_TAG]))
    return (received, sent) if genuine else None


def _tag(secret: bytes, kind: bytes, content: bytes) -> bytes:
    return hmac.digest(secret, kind + content, "sha256")[:_TAG]


def write_contact(directory: Path, address: tuple[str, int], secret: bytes) -> Path:
    """Leave word of how to reach the responder; gives the file, which holds the secret."""
    path = directory / CONTACT
    partial = directory / f".{CONTACT}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        host, port = address
        json.dump(
            {"host": host, "port": port, "secret": secret.hex(), "clock": clock_identity()}, file
        )
    partial.rename(path)
    return path


class Prober:
    """Probes the head's clock in a thread, in bursts, from `start` to `stop`.

    Parameters
    ----------
    directory
        The run's folder of journals. Where it names no responder, or this host's clock is the
        responder's, nothing is done.
    record
        Called in the thread with the four times of each probe that is worth it, ns: local send,
        remote receive, remote send, local receive.
    """

    def __init__(self, directory: Path, record: Callable[[int, int, int, int], None]) -> None:
        self._record = record
        self._stopping = threading.Event()
        self._abandoned = False
        self._connection: socket.socket | None = None
        self._quickest = 1 << 62
        self._thread: threading.Thread | None = None
        try:
            contact = json.loads((directory / CONTACT).read_text())
            self._address = (str(contact["host"]), int(contact["port"]))
            self._secret = bytes.fromhex(contact["secret"])
            known = contact["clock"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if known != clock_identity():
            self._thread = threading.Thread(target=self._run, name="dasf-hpc-prober", daemon=True)

    def start(self) -> None:
        """Start to probe."""
        if self._thread is not None:
            self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Probe once more and end; after the time given nothing is recorded any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._abandoned = True

    def _run(self) -> None:
        interval = FIRST_INTERVAL_S
        most = LONG_BURST
        while not self._stopping.is_set():
            if self._connection is None:
                self._connect()
            self._burst(most)
            most = BURST
            self._stopping.wait(interval)
            interval = min(2 * interval, INTERVAL_S)
        self._burst(LONG_BURST)
        self._hang_up()

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(self._address, CONNECT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(ANSWER_S)
            self._connection = connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _burst(self, most: int) -> None:
        """Probe a few times in a row and record those that tell most, one way or both."""
        probes: list[tuple[int, int, int, int]] = []
        quick = 0
        while self._connection is not None and len(probes) < most:
            probe = self._probe(self._connection)
            if probe is None:
                # a late answer would be taken for the next one's
                self._hang_up()
                break
            probes.append(probe)
            took = _round_trip(probe)
            self._quickest = min(self._quickest, took)
            quick += took <= _QUICK * self._quickest
            if most == BURST and quick >= 2 and len(probes) >= SHORT_BURST:
                break
        if probes and not self._abandoned:
            there = min(probes, key=lambda p: p[1] - p[0])
            back = min(probes, key=lambda p: p[3] - p[2])
            for probe in sorted({there, back, min(probes, key=_round_trip)}):
                self._record(*probe)

    def _probe(self, connection: socket.socket) -> tuple[int, int, int, int] | None:
        question, nonce = ask(self._secret)
        message = b""
        try:
            t1 = time.monotonic_ns()
            connection.sendall(question)
            while len(message) < _ANSWER.size:
                part = connection.recv(_ANSWER.size - len(message))
                t4 = time.monotonic_ns()
                if not part:
                    return None
                message += part
        except OSError:
            return None
        times = answered(self._secret, nonce, message)
        return None if times is None else (t1, *times, t4)


def _round_trip(probe: tuple[int, int, int, int]) -> int:
    return (probe[3] - probe[0]) - (probe[2] - probe[1])
