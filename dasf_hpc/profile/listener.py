"""Recording: hears of a worker's transitions from the log that its state machine keeps.

Dask tells every plugin of every transition, which costs a task some 15,000 instructions whatever
the plugin does with it. It also puts each transition into a log (`WorkerState.log`), just after it
has told the plugins, in the same order. So it is the log that is listened to, and the plugin is
told nothing.

The log has more than plugins are told: where a transition leads over ``released``, there are those
it is made of, and after them the one that was asked for, of which plugins do not hear. It is no
transition of the state machine's table, and is left out here, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import distributed

from dasf_hpc.profile import _recorder
from dasf_hpc.profile.journal import STATES

if TYPE_CHECKING:
    from distributed import Worker

#: What is done besides with a transition; the numbers are those of ``_recorder.c``.
NOTHING, EXECUTING, EXECUTED, FORGOTTEN, OTHER = range(5)

_CODES = {state: code for code, state in enumerate(STATES)}

#: Given what puts an entry into the log, gives what does so and listens.
Listen = Callable[[Callable[[Any], None]], Callable[[Any], None]]


class Log(deque[Any]):
    """A state machine's log that is listened to."""

    def __init__(self, entries: deque[Any]) -> None:
        super().__init__(entries, entries.maxlen)
        self._listeners: list[Listen] = []

    def listen(self, listener: Listen) -> None:
        """Have every further entry heard."""
        self._chain([*self._listeners, listener])

    def listen_no_more(self, listener: Listen) -> None:
        """End what `listen` began."""
        self._chain([other for other in self._listeners if other is not listener])

    def _chain(self, listeners: list[Listen]) -> None:
        self._listeners = listeners
        append: Callable[[Any], None] = super().append
        for listener in listeners:
            append = listener(append)
        # Dask looks it up with each entry: what is the instance's comes before the class's.
        if listeners:
            self.__dict__["append"] = append
        else:
            self.__dict__.pop("append", None)


def unknown(worker: Worker) -> str | None:
    """Say why the transitions of a worker cannot be heard of; None where they can."""
    table = getattr(worker.state, "_TRANSITIONS_TABLE", None)
    if table and isinstance(getattr(worker.state, "log", None), deque):
        return None
    version = distributed.__version__
    return f"distributed {version} logs transitions in a way that is not known here"


def log_of(worker: Worker) -> Log:
    """Give the log of a worker's state machine, as one that can be listened to."""
    log: deque[Any] = worker.state.log
    if isinstance(log, Log):
        return log
    heard = worker.state.log = Log(log)
    return heard


def steps(table: Any) -> dict[str, dict[str, int]]:
    """Give what each transition is recorded as: ``kind << 8 | start << 4 | finish``.

    Parameters
    ----------
    table
        The pairs of states (start, finish) between which the state machine has a transition.
    """
    made: dict[str, dict[str, int]] = {}
    for start, finish in table:
        states = _CODES.get(start, 0) << 4 | _CODES.get(finish, 0)
        made.setdefault(start, {})[finish] = _kind(start, finish) << 8 | states
    return made


def _kind(start: str, finish: str) -> int:
    if finish == "executing":
        return EXECUTING
    if finish in ("memory", "error"):
        return EXECUTED if start in ("executing", "long-running") else OTHER
    if finish == "rescheduled":
        return OTHER
    if finish == "released" and start in ("ready", "constrained", "waiting"):
        return OTHER
    if finish == "forgotten":
        return FORGOTTEN
    return NOTHING


#: Is told of what is rare: key, its id, the time, and the two states.
Other = Callable[[Any, int, int, str, str], None]


def listener(
    append: Callable[[Any], None],
    table: Any,
    tasks: dict[Any, Any],
    ids: dict[Any, int],
    seen: set[int],
    activities: dict[Any, int],
    transitions: _recorder.Transitions,
    edges: _recorder.Recorder,
    keys: _recorder.Texts,
    define: Callable[[Any], int],
    other: Other,
    failed: Callable[[], None],
) -> Callable[[Any], None]:
    """Give the function that puts an entry into the log and records it where it is a transition.

    It is the hottest call of the recording, 6 to 7 a task, and compiled for that.

    Parameters
    ----------
    append
        Puts it into the log.
    table
        See `steps`.
    tasks
        Dask's own tasks by key, of which dependencies and activities are asked.
    ids
        Id of each key that is known; new ones are added, forgotten ones taken away.
    seen
        Ids of the keys whose execution was seen in a thread; taken away when the log tells of it.
    activities
        By key, how many activities are recorded; forgotten ones are taken away.
    transitions, edges, keys
        Where transitions, dependencies and keys go.
    define
        Gives the id of a new key that is not stored as it is (`Journal.key`).
    other
        Is told of what came to memory or failed without an execution in a thread of this process,
        or with activities besides, of what was rescheduled, and of what did not start.
    failed
        Is called in an exception's place.
    """
    heard = _recorder.listen(
        append,
        steps(table),
        tasks,
        ids,
        seen,
        activities,
        transitions,
        edges,
        keys,
        define,
        other,
        failed,
    )
    listen: Callable[[Any], None] = heard.append
    return listen
