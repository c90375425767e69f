"""Recording: sees every task start and stop in the thread that runs it.

Dask tells plugins of state transitions, on the event loop and late. The run of a task itself goes
through one function of ``distributed.worker``, called in the task's own thread with the task's key;
while at least one worker of this process is watched, that function is wrapped. Where a distributed
(before 2024.11, or a future one) has no such function, `watch` says so, tasks are recorded from
transitions alone, and the trace has a gap that says that.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import secrets
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import distributed.worker

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger(__name__)


#: Told, in the task's own thread, of a start: its number in the process, the task's key, and when
#: it was, CLOCK_MONOTONIC in ns, 0 where no observer has read the clock yet. Gives that time, or 0:
#: one observer's reading serves all. The task id is `Executions.base` + the number.
Started = Callable[[int, Any, int], int]
#: Told of its stop: the number and Dask's result message, None after an exit.
Stopped = Callable[[int, dict[str, Any] | None], None]


class Observer(Protocol):
    """What a plugin offers to be told of executions."""

    def in_thread(self, nested: bool) -> tuple[Started, Stopped]:
        """Give the functions that are told of executions in the calling thread, until it ends.

        Parameters
        ----------
        nested
            Whether starts and stops in this thread nest (False for coroutines on the event loop).
        """


class Executions:
    """The executions of one worker's tasks and who wants to know of them.

    Attributes
    ----------
    base
        Task id of number 0. Random, a multiple of 2**24 below 2**62, so that ids of different
        processes do not meet: with 8000 processes of under 16 million tasks each the chance that
        any two do is 1 in 8000.
    failures
        Number of observer calls that raised; their records are missing.
    sampled
        How many want to know, by `coroutines`, which one the event loop runs.
    sequence
        Counts the executions.
    threads
        For each thread, as ``nested`` and ``loose``, what tells its observers: their functions for
        starts, and those for stops.
    """

    def __init__(self) -> None:
        self.base = secrets.randbits(38) << 24
        self.failures = 0
        self.sampled = 0
        self.sequence = itertools.count(1)
        self.threads = threading.local()
        self._observers: tuple[Observer, ...] = ()

    def add(self, observer: Observer, first: bool = False) -> None:
        """Tell an observer from now on, before or after those that are told already."""
        known = self._observers
        self._observers = (observer, *known) if first else (*known, observer)
        self.threads = threading.local()

    def remove(self, observer: Observer) -> None:
        """Stop telling an observer."""
        self._observers = tuple(o for o in self._observers if o is not observer)
        self.threads = threading.local()

    def enter(self, nested: bool) -> tuple[list[Started], list[Stopped]]:
        """Ask the observers for their functions for the calling thread, the first time in it."""
        threads = self.threads
        pairs = []
        for observer in self._observers:
            try:
                pairs.append(observer.in_thread(nested))
            except Exception:
                self.failed()
        told = [p[0] for p in pairs], [p[1] for p in pairs]
        setattr(threads, "nested" if nested else "loose", told)
        return told

    def failed(self) -> None:
        """Count a record that could not be made; the first one's traceback goes to the log."""
        self.failures += 1
        if self.failures == 1:
            logger.warning("dasf-hpc could not record a task", exc_info=True)


#: The executions of event loops that have begun, of workers whose calls are sampled: whose, and
#: their numbers, by the id() of the frame of `run_task_async`, or of what runs an actor's method.
coroutines: dict[int, tuple[Executions, int]] = {}

#: By the worker's id(): a look-up by weak reference takes 300 ns in place of 50 (measured).
_watched: dict[int, Executions] = {}
_users: weakref.WeakKeyDictionary[Worker, int] = weakref.WeakKeyDictionary()
_originals: dict[str, Callable[..., Any]] = {}
#: What of distributed could not be wrapped, and so is not seen.
_problem: str | None = None
_lock = threading.Lock()


def watch(worker: Worker) -> tuple[Executions, str | None]:
    """Watch a worker's executions; every call is undone by one `unwatch`.

    Returns
    -------
    executions : Executions
        The same one for every caller with this worker.
    problem : str or None
        Why executions cannot be seen with this version of distributed.
    """
    global _problem
    with _lock:
        if not _originals:
            _problem = _install()
        executions = _watched.get(id(worker))
        if executions is None:
            executions = _watched[id(worker)] = Executions()
            weakref.finalize(worker, _watched.pop, id(worker), None)
        _users[worker] = _users.get(worker, 0) + 1
        return executions, _problem


def unwatch(worker: Worker) -> None:
    """Undo one `watch`; after the last one of the process distributed is as it was."""
    with _lock:
        count = _users.get(worker, 0) - 1
        if count > 0:
            _users[worker] = count
            return
        _users.pop(worker, None)
        _watched.pop(id(worker), None)
        if not _watched:
            for name, original in _originals.items():
                setattr(distributed.worker, name, original)
            _originals.clear()


def _position(function: Callable[..., Any], name: str) -> int | None:
    parameters = list(inspect.signature(function).parameters)
    return parameters.index(name) if name in parameters else None


def _install() -> str | None:
    """Wrap distributed's functions; gives the reason where that cannot be done."""
    unknown = f"distributed {distributed.__version__} runs %s in a way that is not known here"
    in_thread = getattr(distributed.worker, "_run_task", None)
    if in_thread is None:
        return unknown % "tasks"
    key_at = _position(in_thread, "key")
    state_at = _position(in_thread, "execution_state")
    if key_at is None or state_at is None:
        return unknown % "tasks"
    _originals["_run_task"] = in_thread
    distributed.worker._run_task = _wrap_thread(in_thread, key_at, state_at)
    coroutine = getattr(distributed.worker, "_run_task_async", None)
    if coroutine is None or not hasattr(distributed.worker, "_worker_cvar"):
        return unknown % "coroutines"
    _originals["_run_task_async"] = coroutine
    distributed.worker._run_task_async = _wrap_coroutine(coroutine)
    return None


def _wrap_thread(
    original: Callable[..., Any], key_at: int, state_at: int
) -> Callable[..., dict[str, Any]]:
    watched = _watched

    def run_task(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:  # distributed passes all of them by position
            executions = watched[id(args[state_at]["worker"])]
        except (IndexError, KeyError):
            unseen: dict[str, Any] = original(*args, **kwargs)
            return unseen
        try:
            starts, stops = executions.threads.nested
        except AttributeError:
            starts, stops = executions.enter(nested=True)
        sequence = next(executions.sequence)
        at = 0
        for started in starts:
            try:
                at = started(sequence, args[key_at], at)
            except Exception:
                executions.failed()
        message: dict[str, Any] | None = None
        try:
            message = original(*args, **kwargs)
            return message
        finally:
            for stopped in stops:
                try:
                    stopped(sequence, message)
                except Exception:
                    executions.failed()

    return run_task


def _wrap_coroutine(original: Callable[..., Any]) -> Callable[..., Any]:
    watched = _watched

    async def run_task_async(task: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        worker = distributed.worker._worker_cvar.get(None)
        executions = watched.get(id(worker))
        if executions is None:
            unseen: dict[str, Any] = await original(task, *args, **kwargs)
            return unseen
        try:
            starts, stops = executions.threads.loose
        except AttributeError:
            starts, stops = executions.enter(nested=False)
        sequence = next(executions.sequence)
        at = 0
        for started in starts:
            try:
                at = started(sequence, task.key, at)
            except Exception:
                executions.failed()
        message: dict[str, Any] | None = None
        frame = id(sys._getframe()) if executions.sampled else 0
        if frame:
            coroutines[frame] = executions, sequence
        try:
            message = await original(task, *args, **kwargs)
            return message
        finally:
            if frame:
                coroutines.pop(frame, None)
            for stopped in stops:
                try:
                    stopped(sequence, message)
                except Exception:
                    executions.failed()

    return run_task_async
