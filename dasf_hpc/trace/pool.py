"""Trace, at work: processes of this machine that do the steps of a merge.

Making parts is Python at work on keys, so that threads would wait for each other. The standard
library's pools fork, which a process with threads must not, or import the caller's script anew,
which need not stand that; these processes are started fresh and import what they are told to call.
They end with the process that started them, however that ends: they read its calls from a pipe.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from dasf_hpc.trace.store import TraceError

Result = TypeVar("Result")


class ProcessPool:
    """Calls functions in processes; what is passed and given must be picklable.

    A process is started when there is a call for it. A pool that is forgotten ends its processes.

    Parameters
    ----------
    count
        Number of processes.
    """

    def __init__(self, count: int) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        # Each waits for one process. They are no ThreadPoolExecutor's, for whose threads an
        # interpreter waits at its end, for ever where Ctrl-C came while one was being started.
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._calls, self._processes), name="merge", daemon=True
            )
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._calls, self._processes, count)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a function of a module called."""
        future: Future[Result] = Future()
        self._calls.put((future, function, arguments))
        return future

    def shutdown(self) -> None:
        """End the processes, also where they are at work."""
        with contextlib.suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call[0].cancel()
                    call[0].set_running_or_notify_cancel()
        while any(thread.is_alive() for thread in self._threads):
            # again and again: one may just have been started
            _end(self._calls, self._processes, len(self._threads))
            for thread in self._threads:
                thread.join(0.1)


_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


def _serve(calls: SimpleQueue[_Call | None], processes: list[subprocess.Popen[bytes]]) -> None:
    """Have calls done, one after the other, by one process."""
    process: subprocess.Popen[bytes] | None = None
    while (call := calls.get()) is not None:
        future, function, arguments = call
        if not future.set_running_or_notify_cancel():
            continue
        try:
            if process is None:
                process = _start()
                processes.append(process)
            result = _ask(process, function, arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
            del result
        del call, future, function, arguments  # until the next one comes, nothing is kept


def _ask(
    process: subprocess.Popen[bytes], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((function, arguments), process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        result, error = pickle.load(process.stdout)
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as broken:
        raise TraceError(
            f"a process of the merge ended early (exit code {process.wait()}): see whether it was "
            "short of memory, and merge again."
        ) from broken
    if error is not None:
        raise error
    return result


def _end(
    calls: SimpleQueue[_Call | None], processes: list[subprocess.Popen[bytes]], count: int
) -> None:
    for _ in range(count):
        calls.put(None)
    started = list(processes)  # one that is started meanwhile is not killed, and not waited for
    for process in started:
        process.kill()
    for process in started:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # a call that was not taken any more
                if pipe is not None:
                    pipe.close()


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in the terminal is for the one who calls, who then ends this.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )


def main() -> None:
    """Do what is asked on standard input until there is no more."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    calls = sys.stdin.buffer
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*arguments), None
        except Exception as error:
            # A traceback does not go from one process to another, but a note does.
            error.add_note("In a process of the merge:\n" + traceback.format_exc())
            answer = None, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
