"""Recording: the clock responder, a process beside the scheduler that answers clock probes.

It says what time it is to who knows the run's secret (`dasf_hpc.profile.probe`), and nothing to
anybody else: messages have a fixed size, an answer is as long as its question, connections are
bounded in number, and who has not asked a valid question in time is hung up on. It ends, and
deletes the file that holds the secret, when its standard input does: with the process that started
it, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import secrets
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dasf_hpc.profile.probe import QUESTION_SIZE, answer, heard, write_contact

logger = logging.getLogger(__name__)

#: Connections at once: one a node. Beyond that new ones are closed.
MOST = 4000
#: Connections at once of those that have not asked a valid question yet, and how long they have.
MOST_STRANGERS = 64
STRANGER_S = 5.0

#: How long the one who started it waits for its end.
_END_S = 2.0


@dataclass
class _Caller:
    """Who holds a connection."""

    since: float
    known: bool = False
    question: bytearray = field(default_factory=bytearray)


class Responder:
    """Answers probes on a listening socket until a stream ends.

    Parameters
    ----------
    listener
        The socket.
    secret
        The run's secret.
    leash
        Descriptor of the stream.
    """

    def __init__(self, listener: socket.socket, secret: bytes, leash: int) -> None:
        self._listener, self._secret, self._leash = listener, secret, leash
        self._callers: dict[socket.socket, _Caller] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(leash, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve."""
        while True:
            for key, _ in self._selector.select(1.0 if self._strangers() else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._leash:
                    return
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]
            late = time.monotonic() - STRANGER_S
            for connection in self._strangers():
                if self._callers[connection].since < late:
                    self._hang_up(connection)

    def _strangers(self) -> list[socket.socket]:
        return [connection for connection, caller in self._callers.items() if not caller.known]

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        strangers = self._strangers()
        if len(strangers) >= MOST_STRANGERS:
            self._hang_up(strangers[0])
        if len(self._callers) >= MOST:
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._callers[connection] = _Caller(time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        caller = self._callers.get(connection)
        if caller is None:  # hung up on since the selector spoke
            return
        try:
            # one byte more than a question: who sends more than one at once is none of ours
            data = connection.recv(QUESTION_SIZE + 1)
            received = time.monotonic_ns()
            if not data:
                raise OSError
            caller.question += data
            if len(caller.question) < QUESTION_SIZE:
                return
            if len(caller.question) > QUESTION_SIZE:
                raise OSError
            nonce = heard(self._secret, bytes(caller.question))
            if nonce is None:
                raise OSError
            connection.send(answer(self._secret, nonce, received))
        except OSError:
            self._hang_up(connection)
            return
        caller.known = True
        caller.question.clear()

    def _hang_up(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._callers[connection]
        connection.close()


class ResponderProcess:
    """A responder, from its start to `end`, in a process of its own.

    Parameters
    ----------
    directory
        The run's folder of journals, where recorders find how to reach it.
    host
        The address, of this host, at which they may.
    port
        The port there; 0 for any free one.

    Raises
    ------
    OSError
        If it cannot listen there or be started.
    """

    def __init__(self, directory: Path, host: str, port: int = 0) -> None:
        secret = secrets.token_bytes(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            # As Dask does: the last run's connections may linger on a port that is always the same.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1024)
            self._contact = write_contact(directory, (host, listener.getsockname()[1]), secret)
            words = ["--listener", str(listener.fileno()), "--contact", str(self._contact)]
            try:
                # A session of its own: Ctrl-C is for the run, whose last probes are still to come.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "dasf_hpc.profile.probe_responder", *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[listener.fileno()],
                )
                assert self._process.stdin is not None
                self._process.stdin.write(secret)
                self._process.stdin.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    self._contact.unlink(missing_ok=True)
                raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def end(self) -> None:
        """End the process; nobody can use the secret any more."""
        with contextlib.suppress(OSError):  # the directory may be gone, or read-only by now
            self._contact.unlink(missing_ok=True)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run the responder on a listening socket that was handed down."""
    parser = argparse.ArgumentParser(prog="python -m dasf_hpc.profile.probe_responder")
    parser.add_argument("--listener", type=int, required=True, help="descriptor of its socket")
    parser.add_argument("--contact", type=Path, required=True, help="file to delete at the end")
    given = parser.parse_args(arguments)
    try:
        # A connection is a descriptor, of which 1024 are usual and many more allowed.
        _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        secret = os.read(sys.stdin.fileno(), 32)
        listener = socket.socket(fileno=given.listener)
        Responder(listener, secret, sys.stdin.fileno()).run()
    finally:
        with contextlib.suppress(OSError):
            given.contact.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
