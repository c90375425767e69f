"""Launch: TLS connections that are not taken for broken because another one was.

CPython (issues 148594 and 81891; 3.13 and 3.14 with OpenSSL 3.5 and 3.6) leaves an error in
OpenSSL's queue of the thread where a connection breaks in a certain order: its peer has closed it,
something is written to it, something is read. Whatever connection is read next in this thread,
an event loop's, is said to be broken, too, with that error: ``BrokenPipeError`` of a healthy one.
Measured: 20 of 20 (`tests/test_tls.py`), and one of eight runs of ours.

So a socket whose reading or writing fails empties the queue. Contexts make such sockets by
``sslsocket_class`` (https://docs.python.org/3/library/ssl.html).
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

import wrapt
from distributed import Worker, WorkerPlugin
from distributed.security import Security

T = TypeVar("T")

#: They say that a connection goes on.
_GOES_ON = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


@functools.cache
def _scratch() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def empty_error_queue() -> None:
    """Empty OpenSSL's queue of errors of this thread.

    There is no function for it. To ask for ciphers that are not there does it: `_ssl.c` empties the
    queue before it raises, in each version from 3.11 to 3.14.
    """
    with contextlib.suppress(ssl.SSLError):
        _scratch().set_ciphers("NONE-OF-THIS-NAME")


class TidySocket(ssl.SSLSocket):
    """A TLS socket that leaves no error behind for another one."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Receive, as tornado does."""
        return _tidily(super().recv_into, *args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        """Send, as tornado does."""
        return _tidily(super().send, *args, **kwargs)

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        """Shake hands."""
        _tidily(super().do_handshake, *args, **kwargs)


def _tidily(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return function(*args, **kwargs)
    except _GOES_ON:
        raise
    except OSError:
        empty_error_queue()
        raise


def tidy(context: Any) -> None:
    """Have a context make sockets that leave no error behind, from now on."""
    if isinstance(context, ssl.SSLContext):
        context.sslsocket_class = TidySocket


def _tidied(
    wrapped: Callable[..., dict[str, Any]], instance: Security, args: Any, kwargs: Any
) -> dict[str, Any]:
    given = wrapped(*args, **kwargs)
    tidy(given.get("ssl_context"))
    return given


@functools.cache
def tidy_connections() -> None:
    """Have all of Dask's TLS connections of this process, from now on, leave no error behind."""
    for name in ("get_connection_args", "get_listen_args"):
        wrapt.wrap_function_wrapper(Security, name, _tidied)


class TidyWorker(WorkerPlugin):
    """The same for a worker that runs already."""

    name = "dasf-hpc-tls"

    def setup(self, worker: Worker) -> None:
        """Change the contexts that it has."""
        tidy_connections()
        tidy(worker.connection_args.get("ssl_context"))
        for listener in worker.listeners:
            tidy(getattr(listener, "server_args", {}).get("ssl_options"))
