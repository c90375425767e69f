"""A TLS connection that broke does not break another one of the same thread.

`untidy` is the smallest case of CPython issue 148594: it needs sockets and `ssl` alone.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed.security import Security

from dasf_hpc.launch import tls
from dasf_hpc.launch.credentials import make_credentials

ROUNDS = 10


@pytest.fixture
def security(tmp_path: Path) -> Security:
    return make_credentials(tmp_path / "tls")


def pair(client: ssl.SSLContext, server: ssl.SSLContext) -> list[ssl.SSLSocket]:
    """Connect two sockets, the client's first; neither blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mine = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: made.append(server.wrap_socket(theirs, server_side=True))
    )
    thread.start()
    made.insert(0, client.wrap_socket(mine))
    thread.join(10)
    for end in made:
        end.setblocking(False)
    return made


def read(end: ssl.SSLSocket) -> str:
    """Read what is not there, and say what came of it."""
    try:
        return f"{end.recv_into(bytearray(8))} bytes"
    except ssl.SSLWantReadError:
        return "waits"
    except OSError as error:
        return type(error).__name__


def broken_and_healthy(
    client: ssl.SSLContext, server: ssl.SSLContext, side: int, writes: int
) -> tuple[str, str]:
    """Break one connection, and say what reading it gives and what reading another one."""
    broken, healthy = pair(client, server), pair(client, server)
    try:
        assert {read(end) for end in (broken[side], *healthy)} == {"waits"}
        broken[1 - side].close()
        for _ in range(writes):
            time.sleep(0.002)
            with contextlib.suppress(OSError):
                broken[side].send(b"to nobody")
        time.sleep(0.002)
        return read(broken[side]), read(healthy[0])
    finally:
        for end in (*broken, *healthy):
            end.close()


@pytest.fixture
def untidied() -> Iterator[ssl.SSLContext]:
    """Leave an error in this thread's queue, and take it away in the end."""
    yield ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.empty_error_queue()


@pytest.mark.parametrize("ignore", [0, ssl.OP_IGNORE_UNEXPECTED_EOF], ids=["", "ends ignored"])
@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_broken_connection_breaks_no_other(
    security: Security, untidied: None, side: int, writes: int, ignore: int
) -> None:
    contexts = [
        security.get_connection_args("client")["ssl_context"],
        security.get_listen_args("scheduler")["ssl_context"],
    ]
    for context in contexts:
        context.options |= ignore
        tls.tidy(context)
    for _ in range(ROUNDS):
        broken, healthy = broken_and_healthy(contexts[0], contexts[1], side, writes)
        assert broken != "waits"
        assert healthy == "waits", (broken, ssl.OPENSSL_VERSION)


def untidy(client: ssl.SSLContext, server: ssl.SSLContext) -> list[tuple[str, str]]:
    """Give what Python itself does."""
    return [
        broken_and_healthy(client, server, side, writes) for side in (0, 1) for writes in (1, 2)
    ]


def test_python_itself_is_known_to_fail_or_not_to(security: Security, untidied: None) -> None:
    """Where no Python that is supported fails here any more, `tls` can go."""
    contexts = (
        security.get_connection_args("client")["ssl_context"],
        security.get_listen_args("scheduler")["ssl_context"],
    )
    for context in contexts:
        context.sslsocket_class = ssl.SSLSocket
    found = untidy(*contexts)
    if all(healthy == "waits" for _, healthy in found):
        pytest.skip(f"this Python does not have the fault: {sys.version_info}, {found}")
    assert sys.version_info >= (3, 13), (ssl.OPENSSL_VERSION, found)


MANY_CLIENTS = """
import sys
from distributed import Client, LocalCluster
from dasf_hpc.launch import tls
from dasf_hpc.launch.credentials import make_credentials
from pathlib import Path

if __name__ == "__main__":
    tls.tidy_connections()
    security = make_credentials(Path(sys.argv[1]))
    with LocalCluster(
        n_workers=1, threads_per_worker=2, security=security, protocol="tls://",
        dashboard_address=None,
    ) as cluster:
        with Client(cluster, security=security) as first:
            first.register_plugin(tls.TidyWorker())
            kinds = first.run(
                lambda dask_worker: [
                    dask_worker.connection_args["ssl_context"].sslsocket_class.__name__,
                    *(l.server_args["ssl_options"].sslsocket_class.__name__
                      for l in dask_worker.listeners),
                ]
            )
            assert set(sum(kinds.values(), [])) == {"TidySocket"}, kinds
        for number in range(20):
            with Client(cluster, security=security, set_as_default=False) as client:
                client.get_versions(check=False)
                assert client.submit(sum, [1, number]).result(timeout=20) == 1 + number
    print("all connected")
"""


def test_clients_come_and_go(tmp_path: Path) -> None:
    script = tmp_path / "clients.py"
    script.write_text(MANY_CLIENTS)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "tls")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "all connected\n", done.stderr
