"""Recording: sees every task start and stop in the thread that runs it.

Dask tells plugins of state transitions, on the event loop and late. The run of a task itself goes
through one function of ``distributed.worker``, called in the task's own thread with the task's key;
while at least one worker of this process is watched, that function is wrapped. Where a future
distributed has no such function, `watch` says so and tasks are recorded from transitions alone.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import distributed.worker

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """What a plugin offers to be told of executions; called in the task's own thread."""

    def started(self, sequence: int, key: Any, nested: bool) -> None:
        """Tell that a task starts.

        Parameters
        ----------
        sequence
            Number of the execution in its process; the task id is `Executions.base` + sequence.
        key
            The task's key.
        nested
            Whether starts and stops in this thread nest (False for coroutines on the event loop).
        """

    def stopped(self, sequence: int, key: Any, message: dict[str, Any] | None) -> None:
        """Tell that it stopped; ``message`` is Dask's result message, None after an exit."""


class Executions:
    """The executions of one worker's tasks and who wants to know of them.

    Attributes
    ----------
    base
        Task id of sequence 0. Random, a multiple of 2**24 below 2**62, so that ids of different
        processes do not meet: with 8000 processes of under 16 million tasks each the chance that
        any two do is 1 in 8000.
    failures
        Number of observer calls that raised; their records are missing.
    """

    def __init__(self) -> None:
        self.base = secrets.randbits(38) << 24
        self.failures = 0
        self.sequence = itertools.count(1)
        self.observers: tuple[Observer, ...] = ()

    def add(self, observer: Observer, first: bool = False) -> None:
        """Tell an observer from now on; ``first`` puts its start before and its stop after all."""
        self.observers = (observer, *self.observers) if first else (*self.observers, observer)

    def remove(self, observer: Observer) -> None:
        """Stop telling an observer."""
        self.observers = tuple(o for o in self.observers if o is not observer)

    def tell_start(self, key: Any, nested: bool) -> tuple[int, tuple[Observer, ...]]:
        """Tell the observers of a start; gives what `tell_stop` wants."""
        sequence = next(self.sequence)
        observers = self.observers
        for observer in observers:
            try:
                observer.started(sequence, key, nested)
            except Exception:
                self.failed()
        return sequence, observers

    def tell_stop(
        self,
        started: tuple[int, tuple[Observer, ...]],
        key: Any,
        message: dict[str, Any] | None,
    ) -> None:
        """Tell the observers that were told of the start, in reverse order."""
        sequence, observers = started
        for observer in reversed(observers):
            try:
                observer.stopped(sequence, key, message)
            except Exception:
                self.failed()

    def failed(self) -> None:
        """Count a record that could not be made; the first one's traceback goes to the log."""
        self.failures += 1
        if self.failures == 1:
            logger.warning("dasf-hpc could not record a task", exc_info=True)


_watched: weakref.WeakKeyDictionary[Worker, Executions] = weakref.WeakKeyDictionary()
_users: weakref.WeakKeyDictionary[Worker, int] = weakref.WeakKeyDictionary()
_originals: dict[str, Callable[..., Any]] = {}
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
    with _lock:
        problem = None if _originals else _install()
        executions = _watched.get(worker)
        if executions is None:
            executions = _watched[worker] = Executions()
        _users[worker] = _users.get(worker, 0) + 1
        return executions, problem


def unwatch(worker: Worker) -> None:
    """Undo one `watch`; after the last one of the process distributed is as it was."""
    with _lock:
        count = _users.get(worker, 0) - 1
        if count > 0:
            _users[worker] = count
            return
        _users.pop(worker, None)
        _watched.pop(worker, None)
        if not _watched:
            for name, original in _originals.items():
                setattr(distributed.worker, name, original)
            _originals.clear()


def _position(function: Callable[..., Any], name: str) -> int | None:
    parameters = list(inspect.signature(function).parameters)
    return parameters.index(name) if name in parameters else None


def _install() -> str | None:
    """Wrap distributed's functions; gives the reason where that cannot be done."""
    in_thread = getattr(distributed.worker, "_run_task", None)
    if in_thread is None:
        return f"distributed {distributed.__version__} runs tasks in a way not known here"
    key_at = _position(in_thread, "key")
    state_at = _position(in_thread, "execution_state")
    if key_at is None or state_at is None:
        return f"distributed {distributed.__version__} runs tasks in a way not known here"
    _originals["_run_task"] = in_thread
    distributed.worker._run_task = _wrap_thread(in_thread, key_at, state_at)
    coroutine = getattr(distributed.worker, "_run_task_async", None)
    if coroutine is not None and hasattr(distributed.worker, "_worker_cvar"):
        _originals["_run_task_async"] = coroutine
        distributed.worker._run_task_async = _wrap_coroutine(coroutine)
    return None


def _wrap_thread(
    original: Callable[..., Any], key_at: int, state_at: int
) -> Callable[..., dict[str, Any]]:
    watched = _watched

    def run_task(*args: Any, **kwargs: Any) -> dict[str, Any]:
        # distributed passes all of them by position
        executions = watched.get(args[state_at]["worker"]) if len(args) > state_at else None
        if executions is None:
            message: dict[str, Any] = original(*args, **kwargs)
            return message
        key = args[key_at]
        started = executions.tell_start(key, True)
        try:
            message = original(*args, **kwargs)
        except BaseException:
            executions.tell_stop(started, key, None)
            raise
        executions.tell_stop(started, key, message)
        return message

    return run_task


def _wrap_coroutine(original: Callable[..., Any]) -> Callable[..., Any]:
    watched = _watched

    async def run_task_async(task: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        worker = distributed.worker._worker_cvar.get(None)
        executions = watched.get(worker) if worker is not None else None
        if executions is None:
            message: dict[str, Any] = await original(task, *args, **kwargs)
            return message
        started = executions.tell_start(task.key, False)
        try:
            message = await original(task, *args, **kwargs)
        except BaseException:
            executions.tell_stop(started, task.key, None)
            raise
        executions.tell_stop(started, task.key, message)
        return message

    return run_task_async
