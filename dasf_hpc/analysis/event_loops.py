"""Analysis, event loops of workers and the scheduler: what they did, and what blocked them.

An event loop runs one piece of work after another; as long as one lasts, nothing else is answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Ints
from dasf_hpc.trace.stacks import OWN, Stacks

#: A stretch in one call that is longer is told, ns: Dask warns of those of 3 s, while messages to a
#: worker wait from the first ms on.
LONG = 100_000_000
#: So many samples in one call at least: one alone may have come late, as a long one does when
#: another thread had the interpreter.
IN_A_ROW = 3
#: Two samples are of one stretch where the time that the second stands for begins so near to the
#: first, in parts of that time.
SLACK = 0.5

#: Calls of the system that do not wait, by the functions around them: those of sockets that are not
#: to, and of locks that are given back.
_QUICK = {
    "tornado.iostream": ("write_to_fd", "read_from_fd"),
    "asyncio.selector_events": ("_read_from_self", "_write_to_self"),
    "threading": ("notify",),
}

#: Modules in which a call of a C function may hold the GIL for as long as the data is large.
_HOLDS = ("distributed.protocol", "pickle", "cloudpickle", "json", "msgpack", "copy")

IDLE = "waiting for something to do"
RECORDING = "the recording"
USER = "own code"
OTHER = "other"
#: It could go on, but did not: a task held the interpreter, mostly, or threads are more than CPUs.
#: Samples then come late.
KEPT = "waiting for the interpreter (GIL) or a CPU"


@dataclass(frozen=True)
class Activity:
    """What an event loop may do.

    Attributes
    ----------
    words
        What it is.
    functions
        Functions of Dask, without their classes, in which it happens.
    modules
        Modules in which it happens, with those below them.
    advice
        What makes it less.
    """

    words: str
    functions: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    advice: str = ""


_FEWER = "Give it fewer and larger tasks: larger chunks, or several steps in one function"

#: In this order: the outermost call that is of one of these says what is done.
ACTIVITIES = (
    Activity(
        "taking in graphs",
        ("update_graph", "materialize_graph", "_materialize_graph", "set_priorities",
         "_set_priorities", "_create_taskstate_from_graph", "generate_taskstates",
         "_generate_taskstates"),
        ("dask.order", "dask.optimization", "dask.blockwise", "dask.highlevelgraph"),
        f"{_FEWER}, fewer calls of compute() and submit(), and no data within the graph.",
    ),
    Activity(
        "states of tasks",
        ("transitions", "_transitions", "_transition", "transition", "handle_task_finished",
         "handle_task_erred", "stimulus_task_finished", "stimulus_queue_slots_maybe_opened",
         "handle_stimulus", "_handle_stimulus_from_task", "decide_worker",
         "client_releases_keys", "handle_long_running"),
        ("distributed.worker_state_machine",),
        f"{_FEWER}, and fewer dependencies between them.",
    ),
    Activity("work stealing", (), ("distributed.stealing",),
             "Set `distributed.scheduler.work-stealing` to False, or make tasks longer."),
    Activity("the memory manager", (), ("distributed.active_memory_manager",),
             "Set `distributed.scheduler.active-memory-manager.start` to False, or its interval "
             "longer."),
    Activity("memory and spilling", (), ("distributed.spill", "distributed.worker_memory", "zict"),
             "Give workers more memory, or let tasks make smaller results: nothing is answered "
             "while one goes to disk."),
    Activity("the dashboard", (), ("bokeh", "distributed.dashboard", "distributed.diagnostics"),
             "Close the dashboard's pages, or set `distributed.scheduler.dashboard` off."),
    Activity("looking after the jobs", (),
             ("dasf_hpc.launch.ending", "dasf_hpc.launch.node_job", "dasf_hpc.launch.queue"),
             "Nothing need be done: it is seldom, and at the end."),
    Activity("messages", (), ("distributed.comm", "distributed.protocol", "distributed.batched",
                              "tornado.iostream"),
             f"{_FEWER}, and keep large data out of the graph and out of arguments."),
    Activity("calls of functions", ("execute", "_deserialize", "get_data", "gather_dep", "gather"),
             (), f"{_FEWER}."),
)  # fmt: skip

_ADVICE = {one.words: one.advice for one in ACTIVITIES} | {
    USER: "Move what takes long out of asynchronous tasks and plugins into ordinary tasks.",
    KEPT: "Call what gives up the interpreter (GIL), as NumPy does for most of its work, have more "
    "workers with fewer threads each, and no more threads than CPUs.",
    RECORDING: "Record less: `dasf-hpc analyze overhead` says what costs most.",
}


def advice(words: str) -> str:
    """Say what makes an activity less."""
    return _ADVICE.get(words, f"{_FEWER}.")


@dataclass(frozen=True)
class Calls:
    """What is known of each row of ``stacks`` that an event loop may have been in.

    Attributes
    ----------
    idle
        Whether the loop waits, where this is the innermost call.
    activity
        Position in `words`.
    words
        What it does.
    below
        How many calls it lies below that which the loop itself made.
    quick
        Whether the innermost call itself gives up the GIL for a moment and never waits: where a
        loop is seen in it time and again it waits for the GIL.
    holds
        Whether it may itself be what holds the GIL for long: own code, and what reads or writes
        data in one call.
    """

    idle: NDArray[np.bool_]
    activity: Ints
    words: list[str]
    below: Ints
    quick: NDArray[np.bool_]
    holds: NDArray[np.bool_]


def read_calls(stacks: Stacks) -> Calls:
    """Tell what each row means to an event loop."""
    words = [*(one.words for one in ACTIVITIES), USER, RECORDING, OTHER, KEPT]
    frames = stacks.frames
    short = [str(name).rsplit(".", 1)[-1] for name in frames["function"]]
    modules = [str(name) for name in frames["module"]]
    waits = np.array(
        [
            (name in ("select", "poll") and module.split(".")[0] in ("selectors", "select"))
            or (
                name in ("run_forever", "run_until_complete", "run")
                and module.split(".")[0] in ("asyncio", "uvloop")
                and module != "asyncio.events"
            )
            or (name == "start" and module == "tornado.platform.asyncio")
            for name, module in zip(short, modules, strict=True)
        ],
        bool,
    )
    quick = np.array(
        [name in _QUICK.get(module, ()) for name, module in zip(short, modules, strict=True)], bool
    )
    holds = np.array([any(_within(module, one) for one in _HOLDS) for module in modules], bool)
    called = np.array(
        [
            name == "_run" and module == "asyncio.events"
            for name, module in zip(short, modules, strict=True)
        ],
        bool,
    )
    of_frame = np.array(
        [
            _activity(name, module, str(origin), words)
            for name, module, origin in zip(short, modules, frames["origin"], strict=True)
        ],
        np.int64,
    )
    activity = np.full(len(stacks), -1, np.int64)
    below = np.zeros(len(stacks), np.int64)
    recording = np.zeros(len(stacks), bool)
    library = (frames["origin"] == "standard library").to_numpy(bool)
    # of ours what records: what encrypts, say, is a part of the messages
    ours = np.array([name.startswith("dasf_hpc.profile") for name in modules], bool)
    for level, rows in enumerate(stacks.levels()):
        frame = stacks.frame[rows]
        parent = stacks.parent[rows] if level else np.zeros(len(rows), np.int64)
        before = np.where(level, activity[parent], -1)
        # own code overrides what lies around it
        own = of_frame[frame]
        activity[rows] = np.where((own == words.index(USER)) | (before < 0), own, before)
        below[rows] = np.where(called[frame], 0, np.where(level, below[parent], 0) + 1)
        # ours may lie around Dask's own: then it is not we who take the time
        recording[rows] = ours[frame] | (library[frame] & np.where(level, recording[parent], False))
    activity[activity < 0] = words.index(OTHER)
    activity[recording] = words.index(RECORDING)
    return Calls(
        waits[stacks.frame],
        activity,
        words,
        below,
        quick[stacks.frame],
        holds[stacks.frame] | (activity == words.index(USER)),
    )


def _within(module: str, other: str) -> bool:
    """Say whether a module is another one, or lies in it."""
    return module == other or module.startswith(f"{other}.")


def _activity(name: str, module: str, origin: str, words: list[str]) -> int:
    """Give what a frame says of what is done; -1: nothing."""
    if origin == OWN:
        return words.index(USER)
    for number, one in enumerate(ACTIVITIES):
        if any(_within(module, m) for m in one.modules):
            return number
        if name in one.functions and module.split(".")[0] in ("distributed", "dask"):
            return number
    return -1


def blocked(stacks: Stacks, calls: Calls, samples: pd.DataFrame) -> pd.DataFrame:
    """Find stretches in which an event loop was in one and the same call.

    A call is the same where all calls around it were at the same lines in samples that follow each
    other without a pause, and it is either the innermost call of all of them or was made by a call
    of the loop's: of the loop's own many calls of one function are no single one. What is called
    again at once, from the same line, looks as one call that goes on.

    Parameters
    ----------
    stacks, calls
        The stacks.
    samples
        Samples of event loops that were not idle: ``process``, ``thread``, ``start``, ``weight``,
        ``stack``.

    Returns
    -------
    pandas.DataFrame
        ``process``, ``start``, ``stop``, ``stack`` (row of the call), ``samples``.
    """
    found: list[tuple[int, int, int, int, int]] = []
    ordered = samples.sort_values(["process", "thread", "start"], kind="stable")
    columns = ("process", "thread", "start", "weight", "stack")
    process, thread, stop, span, stack = (ordered[c].to_numpy(np.int64) for c in columns)
    start = stop - span
    new = np.ones(len(ordered), bool)
    new[1:] = (
        (process[1:] != process[:-1])
        | (thread[1:] != thread[:-1])
        | (start[1:] - stop[:-1] > SLACK * span[1:])
    )
    cuts = np.append(np.flatnonzero(new), len(ordered))
    long = (cuts[1:] - cuts[:-1] >= IN_A_ROW) & (stop[cuts[1:] - 1] - start[cuts[:-1]] > LONG)
    for first, last in zip(cuts[:-1][long].tolist(), cuts[1:][long].tolist(), strict=True):
        begin, row, alike = first, int(stack[first]), True
        for place in range(first + 1, last + 1):
            if place < last:
                common = _common(stacks, row, int(stack[place]))
                same = alike and int(stack[place]) == row
                if common >= 0 and (same or calls.below[common] >= 2):
                    row, alike = common, same
                    continue
            if place - begin >= IN_A_ROW and stop[place - 1] - start[begin] > LONG:
                one = int(process[begin]), int(start[begin]), int(stop[place - 1])
                found.append((*one, row, place - begin))
            if place < last:
                begin, row, alike = place, int(stack[place]), True
    names = ["process", "start", "stop", "stack", "samples"]
    return pd.DataFrame(found, columns=names).astype(np.int64)


def _common(stacks: Stacks, one: int, other: int) -> int:
    """Give the innermost row that two rows lie within, or are; -1: none."""
    while one != other and one >= 0 and other >= 0:
        # a row stands after the row of the call that made it
        if one > other:
            one = int(stacks.parent[one])
        else:
            other = int(stacks.parent[other])
    return one if one == other else -1
