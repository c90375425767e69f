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
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
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
        self._threads = ThreadPoolExecutor(count, "merge")  # each waits for one process
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        weakref.finalize(self, _end, self._processes)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have a function of a module called."""
        return self._threads.submit(_call, self._processes, self._idle, function, arguments)

    def shutdown(self) -> None:
        """End the processes, also where they are at work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        _end(self._processes)
        self._threads.shutdown(wait=True)


def _call(
    processes: list[subprocess.Popen[bytes]],
    idle: SimpleQueue[subprocess.Popen[bytes] | None],
    function: Callable[..., Result],
    arguments: tuple[Any, ...],
) -> Result:
    process = idle.get()
    if process is None:
        process = _start()
        processes.append(process)
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
    finally:
        idle.put(process)
    if error is not None:
        raise error
    done: Result = result
    return done


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
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
            answer = None, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
