"""Recording: sees every call of an actor's method start and stop.

Such a call is no task: the scheduler knows nothing of it, no worker's state changes for it, and it
runs in a thread of its own, or on the event loop where it is a coroutine. A worker's handler of the
call is put in another's place that names it, and the function that runs it in its thread in one
that tells of it there. Where a distributed has no such ones `watch_actors` says so. What an actor
calls of another one on the same worker is part of its own call, for Dask just calls it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import distributed.worker
from distributed.utils import iscoroutinefunction

from dasf_hpc.profile.execution import Executions, coroutines

if TYPE_CHECKING:
    from distributed import Worker

#: Operation of a worker that calls an actor's method.
OPERATION = "actor_execute"
_IN_THREAD = "_run_actor"

_name_of = type.__dict__["__name__"].__get__


class ActorCall(str):
    """What stands for a task's key where a call of an actor is told of.

    It reads ``CLASS.METHOD-(KEY OF THE ACTOR)-NUMBER``, of which Dask takes the first part for the
    function's name.

    Attributes
    ----------
    prefix
        That name.
    """

    prefix: str

    @classmethod
    def of(cls, kind: type, method: str, actor: Any, number: int) -> ActorCall:
        """Name a call."""
        prefix = f"{_name_of(kind)}.{method}"[:200]
        call = cls(f"{prefix}-({actor})-{number}")
        call.prefix = prefix
        return call


@dataclass(frozen=True)
class _Named:
    """What a call is to be named by, once it is begun."""

    kind: type
    method: str
    actor: Any


class _Arguments(list[Any]):
    """A call's arguments, on their way to its thread with what it is to be named by."""

    named: _Named


@dataclass
class _Watched:
    """A worker whose actors are watched: by how many, and its own handler."""

    executions: Executions
    original: Callable[..., Any]
    users: int = 1
    #: Calls that run now.
    running: int = 0


_watched: dict[int, _Watched] = {}
_original: Callable[..., Any] | None = None
_lock = threading.Lock()


def watch_actors(worker: Worker, executions: Executions) -> str | None:
    """Tell a worker's executions of its actors' calls; undone by one `unwatch_actors`.

    Returns
    -------
    str or None
        Why they cannot be seen with this version of distributed.
    """
    global _original
    with _lock:
        known = _watched.get(id(worker))
        if known is not None:
            known.users += 1
            return None
        handler = worker.handlers.get(OPERATION)
        in_thread: Any = _original or getattr(distributed.worker, _IN_THREAD, None)
        if not (
            _takes(handler, ("actor", "function", "args", "kwargs"))
            and _takes(in_thread, ("func", "args", "kwargs", "execution_state"))
        ):
            return f"distributed {distributed.__version__} calls actors in a way not known here"
        if _original is None:
            _original = in_thread
            setattr(distributed.worker, _IN_THREAD, _wrap_thread(in_thread))
        known = _watched[id(worker)] = _Watched(executions, handler)
        worker.handlers[OPERATION] = _wrap_handler(worker, known)
        return None


def unwatch_actors(worker: Worker) -> None:
    """Undo one `watch_actors`; after the last one of the process distributed is as it was."""
    global _original
    with _lock:
        known = _watched.get(id(worker))
        if known is None:
            return
        known.users -= 1
        if known.users:
            return
        del _watched[id(worker)]
        worker.handlers[OPERATION] = known.original
        if not _watched and _original is not None:
            setattr(distributed.worker, _IN_THREAD, _original)
            _original = None


def _takes(function: Any, names: tuple[str, ...]) -> bool:
    return callable(function) and set(names) <= set(inspect.signature(function).parameters)


def calls_of(worker: Worker) -> int:
    """Count the calls of a worker's actors that have not ended.

    Dask's own list of busy threads keeps those that failed.
    """
    known = _watched.get(id(worker))
    return 0 if known is None else known.running


def _wrap_handler(worker: Worker, watched: _Watched) -> Callable[..., Any]:
    actors, original = worker.state.actors, watched.original
    on_loop: dict[tuple[type, str], bool] = {}

    @functools.wraps(original)
    async def actor_execute(
        actor: Any = None, function: Any = None, args: Any = (), kwargs: Any = None, **more: Any
    ) -> Any:
        try:
            kind = type(actors[actor])
            loop = on_loop.get((kind, function))
            if loop is None:
                loop = on_loop[kind, function] = _is_coroutine(kind, function)
            named = _Named(kind, function, actor)
            arguments = _Arguments(args)
            arguments.named = named
        except Exception:  # there is no such actor, say, which Dask is to tell
            return await original(actor=actor, function=function, args=args, kwargs=kwargs, **more)
        if not loop and (kwargs or {}).get("separate_thread", True):
            watched.running += 1
            try:
                return await original(
                    actor=actor, function=function, args=arguments, kwargs=kwargs, **more
                )
            finally:
                watched.running -= 1
        frame = id(sys._getframe()) if watched.executions.sampled else 0
        stopped = _started(watched.executions, named, False, frame)
        watched.running += 1
        answer: Any = None
        try:
            answer = await original(
                actor=actor, function=function, args=args, kwargs=kwargs, **more
            )
            return answer
        finally:
            watched.running -= 1
            coroutines.pop(frame, None)
            stopped(*_outcome(answer))

    return actor_execute


def _wrap_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    parameters = list(inspect.signature(original).parameters)
    args_at, state_at = parameters.index("args"), parameters.index("execution_state")

    @functools.wraps(original)
    def run_actor(*args: Any, **kwargs: Any) -> Any:
        try:  # distributed passes all of them by position
            named = args[args_at].named
            executions = _watched[id(args[state_at]["worker"])].executions
        except (AttributeError, IndexError, KeyError):
            return original(*args, **kwargs)
        stopped = _started(executions, named, True)
        error: BaseException | None = None
        result: Any = None
        try:
            result = original(*args, **kwargs)
            return result
        except BaseException as raised:
            error = raised
            raise
        finally:
            stopped(result, error)
            error = None  # or it would hold this frame, and the frame it

    return run_actor


def _started(
    executions: Executions, named: _Named, nested: bool, frame: int = 0
) -> Callable[[Any, BaseException | None], None]:
    """Tell of a call's start; gives what tells of its stop.

    The ``id()`` of its frame is given where it is on the event loop and wanted in `coroutines`.
    """
    told = getattr(executions.threads, "nested" if nested else "loose", None)
    starts, stops = told or executions.enter(nested)
    sequence = next(executions.sequence)
    if frame:
        coroutines[frame] = executions, sequence
    call = ActorCall.of(named.kind, named.method, named.actor, sequence)
    at = 0
    for started in starts:
        try:
            at = started(sequence, call, at)
        except Exception:
            executions.failed()

    def stop(result: Any, error: BaseException | None) -> None:
        message: dict[str, Any]
        if error is None:  # what it gives is not the worker's to hold: it has no size there
            message = {"op": "task-finished", "result": result, "nbytes": None}
        else:
            message = {"op": "task-erred", "actual_exception": error}
        for stopped in stops:
            try:
                stopped(sequence, message)
            except Exception:
                executions.failed()

    return stop


def _outcome(answer: Any) -> tuple[Any, BaseException | None]:
    """Read what a call gave, or raised, from what the handler sends back."""
    try:
        if answer["status"] == "OK":
            return answer["result"].data, None
        error = answer["exception"].data
        return None, error if isinstance(error, BaseException) else RuntimeError()
    except Exception:  # there is none: it was cancelled, with its worker or its caller
        return None, asyncio.CancelledError()


def _is_coroutine(kind: type, method: str) -> bool:
    """Say whether Dask runs a method on the event loop, without asking the actor itself."""
    found = inspect.getattr_static(kind, method, None)
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    elif isinstance(found, functools.partialmethod):
        found = found.func
    return bool(iscoroutinefunction(found))
