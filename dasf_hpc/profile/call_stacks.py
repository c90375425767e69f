"""Recording: samples of the Python calls of task threads and event loops, in the journal.

One thread a process looks, as often as Dask's own profile does, at the frames of the threads that
run a task now, which Dask itself notes, and of the event loops. It is no callback of the event
loop, as Dask's is, so that it sees what blocks that, and it costs a task nothing at all: only the
GIL, for as long as a look takes.

A look has two steps. The first takes the frames, at once, and notes, of each, a number of its code
and its position in that. The second finds the stack of calls that this is.
Each different call within calls (`Stream.STACKS`) is stored once; a sample names the innermost.
All caches are bounded: what does not fit is cut short, and counted.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable
from itertools import accumulate, chain, repeat, starmap, takewhile
from operator import truth
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta

from dasf_hpc.profile.execution import Executions, coroutines
from dasf_hpc.profile.frames import Frame, Namer, packed, part_of
from dasf_hpc.profile.journal import Journal, Stream

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger(__name__)

#: Ways in which ``--stacks`` has calls sampled.
WAYS = ("off", "dask", "nsys")

#: What Dask reads for its own profile.
INTERVAL, ENABLED = "distributed.worker.profile.interval", "distributed.worker.profile.enabled"
_DASKS_INTERVAL = "10 ms"
#: Seconds between two looks at least, whatever is asked for.
_LEAST_S = 0.001

#: How long the thread sleeps at a time, seconds: it ends so soon.
_NAP_S = 0.05

#: Whoever ends the sampling waits no longer for a look to end, seconds.
_PATIENCE_S = 1.0

#: All looks may take so much of a core; where they take more, they become rarer.
MOST_SHARE = 0.01
#: How much the latest look says of what the next one takes; and what a single one, the first or one
#: at much new code, may add at most: seconds, and so many times what was thought.
_LATEST = 0.05
_SURPRISE_S, _SURPRISE = 0.0001, 10

#: Calls of a stack that are kept: so many of the outermost, and of the innermost.
OUTER, INNER = 64, 136
LEFT_OUT = Frame("(calls left out)", "", "", "")
_LEFT_OUT = -1
#: Stands for functions beyond the limit.
UNNAMED = Frame("(one of many functions)", "", "", "")

#: Limits of what is kept of a process: code objects, names of functions, and of each journal calls
#: within calls; and of the caches that find the latter, steps and whole stacks. With all of them
#: full it is some 20 MB (measured), besides the code objects themselves.
MOST_CODES = 1 << 13
MOST_NAMES = 1 << 14
MOST_CALLS = 1 << 16
_MOST_STEPS = 1 << 15
_MOST_STACKS = 1 << 11

#: After so many failures, one after the other, no more is tried.
_MOST_FAILURES = 20

#: Kinds of code, in the two lowest bits of its number.
_PLAIN, _RUNS_TASK, _RUNS_COROUTINE = 0, 1, 2

#: Codes of a sample's role, in the two lowest bits of its last field; with `COROUTINE` the field
#: ``thread`` holds the number of the execution, which knows its thread.
TASK, LOOP, OTHER, COROUTINE = 0, 1, 2, 3
#: The two bits above say how late the look came: they count the times, in seconds, that it did not
#: come before, once due. Another thread held the GIL, which it gives up after 5 ms if it can, and
#: else when it has done its call; or the CPU was somebody else's.
LATE = 1 << 2
LATE_S = (0.004, 0.02)
#: The rest of the field is the time for which a sample stands, in so many ns.
SPAN_AT, SPAN_NS = 4, 4000
_MOST_SPAN = (1 << 32 - SPAN_AT) - 1

_NONE = 0xFFFFFFFF


def unusable(way: str) -> str | None:
    """Say why a way to sample calls is none, in one sentence; None where it is one."""
    return None if way in WAYS else f"stacks is {way!r}; it may be 'off', 'dask' or 'nsys'"


def dasks_interval() -> float:
    """Give the seconds between samples of Dask's own profile."""
    asked = dask.config.get(INTERVAL, None) or _DASKS_INTERVAL
    try:
        seconds = float(parse_timedelta(asked, default="ms"))
    except (ValueError, KeyError, TypeError):
        seconds = float(parse_timedelta(_DASKS_INTERVAL))
    return max(_LEAST_S, seconds)


class _Codes:
    """The functions that were seen in this process: numbers, names and lines of their code.

    Attributes
    ----------
    known
        By ``id()`` of a code object its number, shifted by two bits, and its kind. The object is
        held by `codes`, so that no other one gets its id.
    full
        Whether to `forget` all of it before the next look.
    """

    def __init__(self) -> None:
        self.known: dict[int, int] = {}
        self.codes: list[tuple[CodeType, int]] = []
        self.machinery: set[int] = set()
        self.waiting: set[int] = set()
        self.full = False
        self.names: dict[str, int] = {}
        self.texts: list[str] = []
        self.unnamed = 0
        self.namer = Namer()

    def meet(self, code: CodeType, module: object) -> int:
        """Number a code object that is seen for the first time."""
        name = module if isinstance(module, str) else ""
        part = part_of(code, name)
        number = len(self.codes)
        self.codes.append((code, self.named(self.namer.name(code, module))))
        kind = _RUNS_TASK if part.runs_task else _PLAIN
        kind = _RUNS_COROUTINE if part.runs_coroutine else kind
        met = self.known[id(code)] = number << 2 | kind
        if part.machinery:
            self.machinery.add(met)
        if part.waits:
            self.waiting.add(met)
        self.full = self.full or number >= MOST_CODES
        return met

    def named(self, frame: Frame) -> int:
        """Give the number of a function's name."""
        text = packed(frame)
        number = self.names.get(text)
        if number is None:
            if len(self.texts) >= MOST_NAMES and frame not in (UNNAMED, LEFT_OUT):
                self.unnamed += 1
                return self.named(UNNAMED)
            number = self.names[text] = len(self.texts)
            self.texts.append(text)
        return number

    def call(self, call: int) -> tuple[int, int]:
        """Give the name's number and the line of a code's number and position; -1: not known."""
        code, name = self.codes[call >> 34]
        at = call & 0xFFFFFFFF
        for start, stop, line in code.co_lines():
            if start <= at < stop:
                return name, -1 if line is None else line
        return name, -1

    def forget(self) -> None:
        """Let go of code objects, which generated code may have made, and of their numbers."""
        self.known.clear()
        self.codes.clear()
        self.machinery.clear()
        self.waiting.clear()
        self.full = False


class Sampled:
    """A journal into which samples go, and of whose threads; see `StackSampler.add`."""

    def __init__(
        self,
        journal: Journal,
        loop: int,
        loop_native: int,
        worker: Worker | None,
        executions: Executions | None,
    ) -> None:
        self.journal = journal
        self.loop, self.loop_native, self.thread = loop, loop_native, _thread(loop)
        self.worker = None if worker is None else weakref.ref(worker)
        self.executions = executions
        self.directory: Path = journal.path.parent
        # Both belong to the sampling thread.
        self._sample = journal.recorder(Stream.CALL_SAMPLES)
        self._call = journal.recorder(Stream.STACKS)
        self._stacks: dict[tuple[int, ...], int] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._calls: dict[tuple[int, int, int], int] = {}
        self._names: dict[int, int] = {}
        self.count = self.cut = 0

    def record(self, now: int, thread: int, what: int, calls: list[int], codes: _Codes) -> None:
        """Record a sample.

        Parameters
        ----------
        now
            When it was taken, CLOCK_MONOTONIC in ns.
        thread
            Native id of the thread, or of a coroutine the number of its execution.
        what
            The time for which it stands, how late it came and its role, see `LATE`.
        calls
            Number and position of each call's code, the innermost first.
        codes
            What knows the codes.
        """
        if len(calls) > OUTER + INNER:  # what is kept of deep ones is no more than of others
            key = (*calls[:INNER], _LEFT_OUT, *calls[-OUTER:])
        else:
            key = tuple(calls)
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._find(key, codes)
            if len(self._stacks) >= _MOST_STACKS:
                self._stacks.clear()
            self._stacks[key] = stack
        self._sample(now, stack, thread, what)
        self.count += 1

    def _find(self, calls: tuple[int, ...], codes: _Codes) -> int:
        """Give the number of a stack of calls, and store what of it is new."""
        self.cut += len(calls) > OUTER + INNER
        steps = self._steps
        at = _NONE
        for call in reversed(calls):
            step = (at, call)
            found = steps.get(step)
            if found is None:
                named = (codes.named(LEFT_OUT), -1) if call == _LEFT_OUT else codes.call(call)
                found = self._number(at, *named, codes)
                if found == at:  # there is no room for more
                    return at
                if len(steps) >= _MOST_STEPS:
                    steps.clear()
                steps[step] = found
            at = found
        return at

    def _number(self, parent: int, name: int, line: int, codes: _Codes) -> int:
        key = (parent, name, line)
        number = self._calls.get(key)
        if number is None:
            if len(self._calls) >= MOST_CALLS:
                self.cut += 1
                return parent
            number = self._calls[key] = len(self._calls)
            text = self._names.get(name)
            if text is None:
                text = self._names[name] = self.journal.string(codes.texts[name])
            self._call(number, parent, text, line & 0xFFFFFFFF)
        return number

    def forget_codes(self) -> None:
        """Let go of what numbers of code stand in."""
        self._stacks.clear()
        self._steps.clear()


class StackSampler:
    """Samples the calls of this process's threads, for all journals that want them.

    Attributes
    ----------
    interval
        Seconds between looks, as they are asked for.
    """

    def __init__(self) -> None:
        self.interval = dasks_interval()
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._all: tuple[Sampled, ...] = ()
        self._codes = _Codes()
        self._thread: threading.Thread | None = None
        self._end: list[bool] = []
        self._pid = os.getpid()
        self._looks = self._failures = self._failed = 0
        self._spent = 0
        #: Seconds that a look takes.
        self._cost = 0.0
        self._given_up = ""

    # -- from the threads that record

    def add(
        self,
        journal: Journal,
        worker: Worker | None = None,
        executions: Executions | None = None,
        script: str | None = None,
    ) -> Sampled:
        """Sample from now on: the event loop that calls this, and a worker's tasks.

        Parameters
        ----------
        journal
            Where samples go.
        worker, executions
            The worker, and what tells of its tasks; without, the event loop alone is sampled.
        script
            Name of the file whose functions are sent to the worker by value.
        """
        self._codes.namer.script = script or self._codes.namer.script
        sampled = Sampled(
            journal, threading.get_ident(), threading.get_native_id(), worker, executions
        )
        with self._changing:
            if self._given_up:
                raise RuntimeError(self._given_up)
            journal.meta({"kind": "stacks", "time": time.monotonic_ns(), "interval": self.interval})
            if self._thread is None:
                self._end = []
                thread = threading.Thread(
                    target=self._run, args=(self._end,), name="dasf-hpc-stacks", daemon=True
                )
                thread.start()
                self._thread = thread
            self._all = (*self._all, sampled)
            if executions is not None:
                executions.sampled += 1
        return sampled

    def remove(self, sampled: Sampled) -> None:
        """Sample no more for a journal; it has all of it when this returns."""
        if os.getpid() != self._pid:
            return
        with self._changing:
            self._all = left = tuple(one for one in self._all if one is not sampled)
            # A look that goes on may still record. What it lets go of may run code of the user's,
            # which may wait for the event loop that calls this: so this does not wait for ever.
            if self._lock.acquire(timeout=_PATIENCE_S):
                self._lock.release()
            if sampled.executions is not None:
                sampled.executions.sampled -= 1
            thread = self._thread
            if not left and thread is not None:
                self._thread = None
                self._end.append(True)
        with contextlib.suppress(Exception):  # a journal that was closed takes no more
            sampled.journal.meta(self._account(sampled))

    def _account(self, sampled: Sampled) -> dict[str, Any]:
        return {
            "kind": "stacks-end",
            "time": time.monotonic_ns(),
            "samples": sampled.count,
            "looks": self._looks,
            "cpu": self._spent,
            "cut": sampled.cut,
            "unnamed": self._codes.unnamed,
            "failures": self._failures,
        }

    # -- in the thread

    def _run(self, end: list[bool]) -> None:
        """Look at the threads until the list has an item: once in each interval, anywhere in it.

        On a grid what takes turns at the same pace would be seen in one of its turns only.
        """
        shift = random.Random().random  # the user's own random numbers stay what they are
        begun = time.thread_time_ns()
        base = self._spent
        before = time.monotonic_ns()
        cell = time.monotonic()
        while True:
            # below `MOST_SHARE` of a core, whatever a look takes
            interval = max(self.interval, self._cost / MOST_SHARE)
            now = time.monotonic()
            if cell < now - interval:  # the GIL or the CPU was somebody else's for longer
                cell = now
            due = cell + interval * shift()
            if not _sleep(due - now, end):
                return
            came = time.monotonic() - due
            late = sum(came >= least for least in LATE_S)
            cell += interval
            try:
                with self._lock:
                    before = self._look(before, late)
                self._failed = 0
            except Exception:
                self._failures += 1
                self._failed += 1
                before = time.monotonic_ns()
                if self._failures == 1:
                    logger.warning("dasf-hpc could not sample calls", exc_info=True)
                if self._failed >= _MOST_FAILURES:
                    self._give_up()
                    return
            spent = base + time.thread_time_ns() - begun
            latest = min((spent - self._spent) / 1e9, _SURPRISE_S + _SURPRISE * self._cost)
            self._cost += _LATEST * (latest - self._cost)
            self._spent = spent
            self._looks += 1

    def _give_up(self) -> None:
        why = f"a look at the threads failed {_MOST_FAILURES} times, one after the other"
        self._given_up = why
        for sampled in self._all:
            with contextlib.suppress(Exception):
                sampled.journal.meta({"kind": "unavailable", "what": "call stacks", "why": why})

    def _look(self, before: int, late: int = 0) -> int:
        """Sample all threads that are wanted; gives the time of it."""
        every, codes = self._all, self._codes
        if codes.full:
            codes.forget()
            for sampled in every:
                sampled.forget_codes()
        codes.namer.look_at_path()
        busy: list[tuple[Sampled, list[int]]] = []
        wanted: dict[int, Any] = {}
        worker = None
        now = time.monotonic_ns()
        for sampled in every:
            # a thread that ended may have left its number to another one
            if _thread(sampled.loop) is sampled.thread:
                wanted[sampled.loop] = None
            worker = None if sampled.worker is None else sampled.worker()
            if worker is not None:
                threads = list(worker.active_threads)
                if threads:
                    busy.append((sampled, threads))
                    wanted.update(dict.fromkeys(threads))
        worker = None  # nothing of the threads is to live longer for our sake
        for ident in wanted:
            wanted[ident] = _calls_of(ident, codes)
        what = min((now - before) // SPAN_NS, _MOST_SPAN) << SPAN_AT | LATE * late
        for sampled, threads in busy:
            for ident in threads:
                found = wanted[ident]
                if found is not None and found[1] is _TASK_FOUND:
                    native = _native_id(ident)
                    if native:
                        calls = _of_user(found[0], codes)
                        sampled.record(now, native, what | TASK, calls, codes)
        told: set[tuple[int, Path]] = set()
        for sampled in every:
            found = wanted.get(sampled.loop)
            if found is None or found[1] is _TASK_FOUND:
                continue
            calls, running = found
            if running is not None:
                if running[0] is sampled.executions:
                    calls = _of_user(calls, codes)
                    sampled.record(now, running[1] & _NONE, what | COROUTINE, calls, codes)
                continue
            # of several journals of one loop the first has its samples
            place = (sampled.loop, sampled.directory)
            if place in told or calls[0] >> 32 in codes.waiting:
                continue
            told.add(place)
            sampled.record(now, sampled.loop_native, what | LOOP, calls, codes)
        return now


#: What `_walk` gives where the calls are those of a task in its thread.
_TASK_FOUND: Any = object()


#: Whether garbage may be collected wherever memory is asked for, as for the object of a frame. What
#: that runs may let other threads go on, and a frame of theirs that ends meanwhile is looked at
#: when something else lies in its place: a crash, or worse.
_COLLECTS_ANYWHERE = sys.version_info < (3, 12)


def _calls_of(ident: int, codes: _Codes) -> tuple[list[int], Any] | None:
    """Give what `_walk` finds in a thread; None if there is no such thread."""
    collects = _COLLECTS_ANYWHERE and gc.isenabled()
    if collects:
        gc.disable()
    try:
        frames = _frames_of(ident)
    finally:
        if collects:
            gc.enable()
    try:
        return _walk(frames, codes) if frames else None
    finally:
        # This call's own frame may be among them: after a failure they would hold each other until
        # the cycle collector comes.
        frames.clear()


def _frames_of(ident: int) -> list[FrameType]:
    """Give the frames of a thread, the innermost first; none if there is no such thread.

    No other thread runs between the look at the threads and the last frame, for all of it is one
    call of C, in which Python lets no other thread go on: what is given is the stack of one moment,
    and no frame ends while it is followed.
    """
    step: Callable[[Any, Any], Any] = getattr
    first = map(dict.get, starmap(sys._current_frames, ((),)), (ident,))
    return list(takewhile(truth, accumulate(chain(first, repeat("f_back")), step)))


def _walk(frames: list[FrameType], codes: _Codes) -> tuple[list[int], Any]:
    """Give the calls of a thread, the innermost first: number and position of their code.

    They end with the one that runs a task, if there is one; then the second is `_TASK_FOUND`, or
    of a coroutine its executions and its number; else None.
    """
    calls: list[int] = []
    add, known = calls.append, codes.known.get
    for frame in frames:
        code = frame.f_code
        met = known(id(code))
        if met is None:
            # a class of somebody's may stand in for the dictionary: nothing of it is to run here
            met = codes.meet(code, dict.get(frame.f_globals, "__name__"))
        add(met << 32 | frame.f_lasti & 0xFFFFFFFF)
        if met & 3:
            if met & 3 == _RUNS_TASK:
                return calls, _TASK_FOUND
            running = coroutines.get(id(frame))
            if running is not None:
                return calls, running
    return calls, None


def _of_user(calls: list[int], codes: _Codes) -> list[int]:
    """Leave out Dask's own calls that lead to the user's function; one is left in any case."""
    count, machinery = len(calls), codes.machinery
    while count and calls[count - 1] >> 32 in machinery:
        count -= 1
    return calls[: max(1, count)]


def _sleep(seconds: float, end: list[bool]) -> bool:
    """Sleep, unless the list has an item by then; a wait for an event costs half as much again."""
    while seconds > _NAP_S and not end:
        time.sleep(_NAP_S)
        seconds -= _NAP_S
    if not end:
        time.sleep(max(0.0, seconds))
    return not end


def _thread(ident: int) -> threading.Thread | None:
    found: threading.Thread | None = threading._active.get(ident)  # type: ignore[attr-defined]
    return found


def _native_id(ident: int) -> int:
    thread = _thread(ident)
    return (thread.native_id or 0) if thread is not None else 0


# ------------------------------------------------------------------------------ of the process

_sampler: StackSampler | None = None
_making = threading.Lock()


def start_sampling(
    journal: Journal,
    way: str,
    worker: Worker | None = None,
    executions: Executions | None = None,
    script: str | None = None,
) -> Callable[[], None]:
    """Have the calling event loop, and a worker's tasks, sampled into a journal.

    Parameters
    ----------
    journal
        The journal.
    way
        One of `WAYS`; only ``dask`` samples here.
    worker, executions, script
        See `StackSampler.add`.

    Returns
    -------
    callable
        Ends it; does nothing a second time.
    """
    global _sampler
    if way != "dask":
        return _nothing
    why = None
    if not dask.config.get(ENABLED, True):
        why = f"Dask's own profile is switched off ({ENABLED}), and with it these samples"
    elif not hasattr(sys, "_current_frames"):
        why = "this Python does not show the frames of its threads"
    elif worker is not None and not hasattr(worker, "active_threads"):
        why = "this distributed does not say which threads run tasks"
    if why is not None:
        journal.meta({"kind": "unavailable", "what": "call stacks", "why": why})
        return _nothing
    try:
        with _making:
            if _sampler is None:
                _sampler = StackSampler()
            sampler = _sampler
            if not sampler._all:
                sampler.interval = dasks_interval()
        sampled = sampler.add(journal, worker, executions, script)
    except Exception as error:  # no thread can be started, say: the rest is recorded
        logger.warning("dasf-hpc samples no calls", exc_info=True)
        journal.meta({"kind": "unavailable", "what": "call stacks", "why": str(error)})
        return _nothing
    ended = threading.Lock()

    def end() -> None:
        if ended.acquire(blocking=False):
            sampler.remove(sampled)

    return end


def _nothing() -> None:
    pass


def _in_child() -> None:
    """Begin anew in a process that was forked: the thread is its parent's, and so are journals."""
    global _sampler, _making
    _sampler, _making = None, threading.Lock()


def _at_exit() -> None:
    """Have the thread end before Python does."""
    sampler = _sampler
    if sampler is not None and (thread := sampler._thread) is not None:
        sampler._thread = None
        sampler._end.append(True)
        thread.join(4 * _NAP_S)


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)
