"""Recording: the three plugins a Dask worker carries.

Each works alone, in a script of your own as under ``dasf-hpc submit``::

    client.register_plugin(WorkerTaskPlugin())
    client.register_plugin(ResourceMonitor())
    client.register_plugin(GPUAnnotationPlugin())

and writes journals that ``dasf-hpc merge`` turns into one trace. None of them raises into Dask.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time as clock
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Reschedule
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import StealRequestEvent

from dasf_hpc.profile import _recorder
from dasf_hpc.profile.actors import ActorCall
from dasf_hpc.profile.call_stacks import start_sampling, unusable
from dasf_hpc.profile.clock import PROBE_HANDLER, read_anchor, wall_offset
from dasf_hpc.profile.execution import Started, Stopped
from dasf_hpc.profile.frames import script_name
from dasf_hpc.profile.identity import installed_version
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.link import RecorderLink
from dasf_hpc.profile.listener import listener, log_of, unknown
from dasf_hpc.profile.nsys_contact import unheard
from dasf_hpc.profile.nvtx_domain import open_domain
from dasf_hpc.profile.recording import (
    Recording,
    default_directory,
    join_recording,
    leave_recording,
)
from dasf_hpc.profile.registration import RecordingPlugin
from dasf_hpc.profile.results import ResultTexts, byte_count, shown_error, type_name
from dasf_hpc.profile.running import answer_running

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger(__name__)

#: Domain of the NVTX ranges around tasks.
COMPUTE_DOMAIN = "compute"
#: Domain of the NVTX marks whose payload is the process's CLOCK_MONOTONIC in ns.
CLOCK_DOMAIN = "dasf_hpc.clock"

#: A mark after a pause is 5 to 50 us late, a process's first one up to 2.4 ms; in a burst each mark
#: bounds the lag of the one before to about 2 us (measured).
MARKS = 8
MARK_INTERVAL_S = 1.0

PROBES_AT_START = 10
PROBES = 4
#: The node's recorder probes better; these are for where it cannot reach the head's responder.
PROBE_INTERVAL_S = 5.0
PROBE_INTERVAL_MOST_S = 60.0
#: A probe at the end must not hold up a worker whose scheduler is gone.
PROBE_TIMEOUT_S = 2.0

OUTGOING_INTERVAL_S = 0.1
#: Bounds what one look at the sent transfers costs the event loop: 2,500 of them at once took it
#: 1.5 to 17 ms (measured).
TRANSFERS_AT_ONCE = 50

_NONE = 0xFFFFFFFF
#: Stands for the size of what the worker does not hold.
NO_SIZE = 2**64 - 1


class WorkerTaskPlugin(RecordingPlugin):
    """Records every task of a worker: transitions, executions, activities, transfers, results.

    Parameters
    ----------
    name
        Name under which Dask knows the plugin.
    directory
        Folder for the journals, seen by every worker. The default is given by
        `dasf_hpc.profile.recording.default_directory` in the process that makes the plugin.
    probe_clock
        Whether to ask the scheduler for its clock, which only a scheduler with a
        `SchedulerRecorder` answers; without, hosts are lined up by UTC.
    stacks
        Whether to sample the Python calls of task threads and of the event loop: ``"dask"``, as
        often as Dask's own profile does (``distributed.worker.profile.interval``), or ``"off"``;
        with ``"nsys"`` they are left to that.
    script
        Name of the file whose functions are sent to the workers by value; Dask says of them only
        that they are of ``__main__``. The default is what the process runs that makes the plugin.
    """

    def __init__(
        self,
        name: str = "TracePlugin",
        directory: str | Path | None = None,
        probe_clock: bool = False,
        stacks: str = "dask",
        script: str | None = None,
    ) -> None:
        if why := unusable(stacks):
            raise ValueError(why)
        self.name = name
        self.directory = Path(directory) if directory else default_directory()
        self.probe_clock = probe_clock
        self.stacks = stacks
        self.script = script_name() if script is None else script
        self._recording: Recording | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments()

    def _arguments(self) -> tuple[Any, ...]:
        script = self.script or ""
        return self.name, self.directory, self.probe_clock, self.stacks, script

    def setup(self, worker: Worker) -> None:
        """Open the worker's journal and start to record."""
        if self._recording is not None:
            # Dask tells a plugin of a transition but not of which worker, so that an object given
            # to several workers of one process is replaced by its twin on all but the first.
            twin = type(self)(*self._arguments())
            for name in [name for name, plugin in worker.plugins.items() if plugin is self]:
                worker.plugins[name] = twin
            twin.setup(worker)
            return
        recording = join_recording(worker, self.directory)
        if recording.journal is None or recording.task_plugin is not None:
            why = recording.problem or f"{recording.task_plugin!r} records this worker already"
            logger.warning("dasf-hpc: %r records nothing of this worker: %s", self.name, why)
            leave_recording(worker, recording, {})
            return
        recording.task_plugin = self.name
        self._recording = recording
        self._worker = worker
        self._journal = recording.journal
        self._executions = recording.executions
        self._tasks = worker.state.tasks
        self._stimuli = worker.state.stimulus_log
        self._ids: dict[Any, int] = {}
        self._transitions = self._journal.transitions()
        self._edges = self._journal.records(Stream.EDGES)
        self._activity = self._journal.recorder(Stream.ACTIVITIES)
        self._transfer = self._journal.recorder(Stream.TRANSFERS)
        self._stored = self._journal.recorder(Stream.STORED)
        self._reschedule = self._journal.recorder(Stream.RESCHEDULES)
        self._probe = self._journal.recorder(Stream.PROBES)
        if not isinstance(worker.transfer_incoming_log, _DelayNoted):
            worker.transfer_incoming_log = _DelayNoted(worker)
        # What was before is not of this recording: a worker may have worked for days.
        self._last_incoming: Any = _last(worker.transfer_incoming_log)
        self._last_outgoing: Any = _last(worker.transfer_outgoing_log)
        self._recorded_activities: dict[Any, int] = {}
        for key, task in list(self._tasks.items()):
            self._id(key)
            if task.startstops:
                self._recorded_activities[key] = len(task.startstops)
        self._threads = _ThreadRecorder(self._journal, self._ids)
        self._executions.add(self._threads)
        self._heard = self._listen
        if silent := unknown(worker):
            logger.warning("no transitions of this worker are recorded: %s", silent)
            self._journal.meta({"kind": "unavailable", "what": "transitions", "why": silent})
        else:
            self._table = worker.state._TRANSITIONS_TABLE
            log_of(worker).listen(self._heard)
        if type(self).transition is WorkerTaskPlugin.transition:
            _tell_nothing(worker, self)
        answer_running(worker, self._journal)
        self._end_sampling = start_sampling(
            self._journal, self.stacks, worker, self._executions, self.script
        )
        self._outside: tuple[Callable[..., None], Callable[..., None]] | None = None
        self._background = [
            asyncio.ensure_future(self._keep_clock()),
            asyncio.ensure_future(self._keep_outgoing()),
        ]

    async def teardown(self, worker: Worker) -> None:
        """Record the clocks once more and close the journal."""
        if self._recording is None or worker is not self._worker:
            return
        recording, self._recording = self._recording, None
        if unknown(worker) is None:
            log_of(worker).listen_no_more(self._heard)
        recording.task_plugin = None
        self._end_sampling()
        if recording.journal is not None:
            for task in self._background:
                task.cancel()
            self._executions.remove(self._threads)
            try:
                while self._outgoing():
                    pass
                if self.probe_clock:
                    await asyncio.wait_for(self._probe_clock(PROBES), PROBE_TIMEOUT_S)
            except Exception:  # the scheduler may be gone: then the earlier probes must do
                logger.debug("no clock probe at the end", exc_info=True)
        leave_recording(worker, recording, {})

    # ------------------------------------------------------------------ event loop

    def _id(self, key: Any) -> int:
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = self._journal.key(key)
        return number

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: transitions are heard of from the log of the worker's state machine."""

    def _listen(self, append: Callable[[Any], None]) -> Callable[[Any], None]:
        return listener(
            append,
            self._table,
            self._tasks,
            self._ids,
            self._threads.seen,
            self._recorded_activities,
            self._transitions,
            self._edges,
            self._journal.keys,
            self._journal.key,
            self._on_other,
            self._executions.failed,
        )

    def _on_other(self, key: Any, number: int, now: int, start: str, finish: str) -> None:
        if finish == "rescheduled":
            self._reschedule(now, number, self._journal.string("reschedule"))
        elif finish == "released":
            self._on_not_started(key, number, now)
        elif start in ("executing", "long-running"):
            self._on_executed(key, number)
        else:
            self._on_come(key, number, now)

    def _on_executed(self, key: Any, number: int) -> None:
        task = self._tasks[key]
        if len(task.startstops) > 1:
            self._activities(key, task.startstops, number)
        try:
            self._threads.seen.remove(number)
        except KeyError:
            self._executed_elsewhere(task, number)

    def _on_come(self, key: Any, number: int, now: int) -> None:
        """Record what is in memory, or failed to come there, and was not executed here."""
        task = self._tasks[key]
        if task.startstops:
            self._activities(key, task.startstops, number)
        if task.state == "memory":
            self._stored(now, number, task.nbytes or 0)
        self._incoming()

    def _on_not_started(self, key: Any, number: int, now: int) -> None:
        # Dask does not tell plugins why; its log's last entry is the event being handled.
        event = self._stimuli[-1] if self._stimuli else None
        if isinstance(event, StealRequestEvent) and event.key == key:
            self._reschedule(now, number, self._journal.string("steal"))

    def _activities(self, key: Any, startstops: list[Any], number: int) -> None:
        """Record what Dask noted of a task besides its compute, on this process's own clock."""
        done = self._recorded_activities.get(key, 0)
        self._recorded_activities[key] = len(startstops)
        shift = wall_offset()
        string = self._journal.string
        for span in startstops[done:]:
            action = span["action"]
            if action == "compute":
                continue  # recorded in the task's own thread
            delay = self._scheduler_delay() if action == "transfer" else 0.0
            peer = span.get("source")
            self._activity(
                round((span["start"] - delay) * 1e9) + shift,
                round((span["stop"] - delay) * 1e9) + shift,
                number,
                string(action),
                _NONE if peer is None else string(peer),
            )

    def _executed_elsewhere(self, task: Any, number: int) -> None:
        """Record an execution that no thread of this process ran, by Dask's own clock readings.

        So does a task in a pool of processes; its thread is not known (0).
        """
        spans = [span for span in task.startstops if span["action"] == "compute"]
        if not spans:
            return
        if self._outside is None:
            self._outside = (
                self._journal.recorder(Stream.STARTS),
                self._journal.recorder(Stream.STOPS),
            )
        shift = wall_offset()
        delay = self._scheduler_delay()
        sequence = next(self._executions.sequence)
        start, stop = self._outside
        start(round((spans[-1]["start"] - delay) * 1e9) + shift, sequence, number, 0)
        failed = task.state == "error"
        what = shown_error(task.exception_text or "") if failed else f"{type_name(task.type)}||"
        stop(
            round((spans[-1]["stop"] - delay) * 1e9) + shift,
            sequence,
            self._journal.string(what),
            int(failed),
            0 if failed else byte_count(task.nbytes),
        )

    def _scheduler_delay(self) -> float:
        # Dask adds its latest heartbeat's guess to the times of computing and of transfers
        delay: float = self._worker.scheduler_delay
        return delay

    def _incoming(self) -> None:
        log = self._worker.transfer_incoming_log
        if log and log[-1] is not self._last_incoming:
            self._last_incoming = self._transfers(log, self._last_incoming, 0, len(log))

    def _outgoing(self) -> bool:
        """Record some of what was sent; True where there is more."""
        log = self._worker.transfer_outgoing_log
        if log and log[-1] is not self._last_outgoing:
            self._last_outgoing = self._transfers(log, self._last_outgoing, 1, TRANSFERS_AT_ONCE)
            return log[-1] is not self._last_outgoing
        return False

    async def _keep_outgoing(self) -> None:
        """Look for what was sent: Dask tells nobody."""
        while True:
            await asyncio.sleep(OUTGOING_INTERVAL_S)
            try:
                self._outgoing()
            except Exception:
                self._executions.failed()

    def _transfers(self, log: Any, last: Any, direction: int, most: int) -> Any:
        fresh: list[Any] = []
        for entry in reversed(log):
            if entry is last:
                break
            fresh.append(entry)
        fresh = fresh[::-1][:most]
        shift = wall_offset()
        for entry in fresh:
            if direction:  # here the middle stands in the log without the delay
                delay = (entry["start"] + entry["stop"]) / 2 - entry["middle"]
            else:
                delay = entry.get("delay", 0.0)
            self._transfer(
                round((entry["start"] - delay) * 1e9) + shift,
                round((entry["stop"] - delay) * 1e9) + shift,
                entry["total"],
                self._journal.string(entry["who"] or "unknown"),
                min(len(entry["keys"]), 0xFFFF),
                direction,
            )
        return fresh[-1]

    # ------------------------------------------------------------------ clocks

    async def _keep_clock(self) -> None:
        count = PROBES_AT_START
        pause = PROBE_INTERVAL_S
        probe_at = clock.monotonic()
        while True:
            try:
                self._recording.anchor(*read_anchor())  # type: ignore[union-attr]
                if self.probe_clock and clock.monotonic() >= probe_at:
                    probe_at = clock.monotonic() + pause
                    pause = min(2 * pause, PROBE_INTERVAL_MOST_S)
                    await self._probe_clock(count)
                    count = PROBES
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.debug("no clock probe", exc_info=True)
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _probe_clock(self, count: int) -> None:
        """Ask the scheduler for its clock."""
        ask = getattr(self._worker.scheduler, PROBE_HANDLER)
        for _ in range(count):
            t1 = clock.monotonic_ns()
            answer = await ask()
            t4 = clock.monotonic_ns()
            self._probe(t1, answer[0], answer[1], t4)


def _last(log: Any) -> Any:
    return log[-1] if log else None


class _Plugins(dict[str, Any]):
    """A worker's plugins, of which some are not told of transitions: they do nothing then.

    Dask tells each plugin 6 to 7 times a task; two that do nothing took 4 us of a task's CPU
    (measured). What it tells is the dictionary `told`, which holds the others.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told)
        self.told = told

    def __setitem__(self, name: str, plugin: Any) -> None:
        super().__setitem__(name, plugin)
        self.told[name] = plugin

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.told.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        self.told.pop(name, None)
        return super().pop(name, *default)


def _tell_nothing(worker: Worker, plugin: WorkerPlugin) -> None:
    """Have a worker not tell a plugin of transitions, if it keeps its plugins as known here."""
    told = worker.state.plugins
    if worker.plugins is told and type(told) is dict:
        worker.plugins = _Plugins(told)
    if isinstance(worker.plugins, _Plugins):
        for name in [name for name, other in told.items() if other is plugin]:
            del told[name]


class _DelayNoted(deque[dict[str, Any]]):
    """Dask's log of what came in, each entry with the delay that Dask has just added to its times.

    The worker's own may have changed, by milliseconds, by when the entry is looked at.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.transfer_incoming_log, worker.transfer_incoming_log.maxlen)
        self._worker = worker

    def append(self, entry: dict[str, Any]) -> None:
        entry["delay"] = getattr(self._worker, "scheduler_delay", 0.0)
        super().append(entry)


class _ThreadRecorder:
    """Records executions in the threads that run them."""

    def __init__(self, journal: Journal, ids: dict[Any, int]) -> None:
        self._journal = journal
        self._ids = ids
        self._results = ResultTexts(journal.string)
        #: All recorders. They are held here, not by who uses them: what a failure's traceback
        #: holds of an ended thread is freed by the cycle collector, which would end the blocks of
        #: the very recorders that the next thread is given.
        self._recorders: list[tuple[_recorder.Recorder, _recorder.Recorder]] = []
        #: Positions of those whose thread ended: a task that submits tasks leaves its thread for
        #: ever.
        self._idle: list[int] = []
        self._growing = threading.Lock()
        #: Keys whose execution was seen in a thread, until the event loop tells of its end.
        self.seen: set[int] = set()

    def in_thread(self, nested: bool) -> tuple[Started, Stopped]:
        try:
            position = self._idle.pop()
            start, stop = self._recorders[position]
        except IndexError:
            start = self._journal.records(Stream.STARTS)
            stop = self._journal.records(Stream.STOPS)
            with self._growing:
                position = len(self._recorders)
                self._recorders.append((start, stop))
        thread = _recorder.thread(
            start,
            stop,
            self._ids,
            self.seen,
            self._results.known,
            self._unknown,
            self._ended,
            _Lease(position, self._idle),
            threading.get_native_id(),
        )
        return thread.started, thread.stopped

    def _unknown(self, key: Any) -> int:
        """Give the id of a key that the event loop has not told of."""
        if type(key) is ActorCall:  # of which it will not tell
            return self._journal.key(str(key))
        number = self._journal.key(key)
        self.seen.add(number)
        return number

    def _ended(self, message: dict[str, Any] | None) -> tuple[int, int, int]:
        """Give text, status and bytes of an end of which the type does not say it all."""
        if message is None:
            return self._journal.string("SystemExit"), 1, 0
        if message["op"] == "task-finished":
            nbytes = message["nbytes"]
            size = NO_SIZE if nbytes is None else byte_count(nbytes)
            return self._results.describe(message["result"]), 0, size
        error = message["actual_exception"]
        text = self._results.describe_error(error, message.get("exception_text", ""))
        return text, 2 if issubclass(type(error), Reschedule) else 1, 0


class _Lease:
    """A thread's recorders; when the thread ends the next one gets them, with their blocks."""

    __slots__ = ("_idle", "_position")

    def __init__(self, position: int, idle: list[int]) -> None:
        self._position, self._idle = position, idle

    def __del__(self) -> None:
        self._idle.append(self._position)


class GPUAnnotationPlugin(RecordingPlugin):
    """Puts an NVTX range around every task, in the thread that runs it, and marks the clock.

    The range is in domain ``compute``; its message is the function's name (the key's prefix), its
    payload the task's id in the trace. Works the same on a node without a GPU, and makes no CUDA
    context.

    Parameters
    ----------
    name
        Name under which Dask knows the plugin.
    directory
        See `WorkerTaskPlugin`.
    message
        ``"prefix"``, or ``"key"`` for the whole key as message: then each distinct key costs the
        process 0.6 to 0.7 kB and about 10 us (measured with nvtx 0.2.11).
    """

    def __init__(
        self,
        name: str = "GPUAnnotationPlugin",
        directory: str | Path | None = None,
        message: str = "prefix",
    ) -> None:
        if message not in ("prefix", "key"):
            raise ValueError(f"message is {message!r}; it may be 'prefix' or 'key'")
        self.name = name
        self.directory = Path(directory) if directory else default_directory()
        self.message = message
        self._attached: dict[Worker, Recording] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.directory, self.message)

    def setup(self, worker: Worker) -> None:
        """Start to annotate; where nvtx cannot be used say so once and do nothing."""
        if type(self).transition is GPUAnnotationPlugin.transition:
            _tell_nothing(worker, self)
        recording = join_recording(worker, self.directory)
        try:
            _annotate(worker, recording, self.message == "key")
        except Exception as error:
            why = f"the package nvtx cannot be used: {error} (pip install 'nvtx>=0.2.11')"
            logger.warning("no NVTX ranges: %s", why, exc_info=not isinstance(error, ImportError))
            if recording.journal is not None:
                recording.journal.meta({"kind": "unavailable", "what": "nvtx", "why": why})
            leave_recording(worker, recording, {})
            return
        if why := unheard():
            logger.warning("%s", why)
            if recording.journal is not None:
                recording.journal.meta({"kind": "unavailable", "what": "nsys", "why": why})
        self._attached[worker] = recording

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ranges are set in the task's thread, not on the event loop."""

    def teardown(self, worker: Worker) -> None:
        """Mark the clock once more and stop annotating."""
        recording = self._attached.pop(worker, None)
        if recording is None:
            return
        _annotate_no_more(worker, recording)
        leave_recording(worker, recording, {"nvtx": installed_version("nvtx")})


@dataclass
class _Annotated:
    """The ranges around a worker's tasks, and how many plugins want them."""

    ranges: _Ranges
    marking: asyncio.Task[None]
    users: int = 0


#: Of several plugins that annotate a worker, each into a folder of its own, the first one's ranges
#: serve all: the task's id is the same, and a report with two ranges a task would count double.
_annotated: weakref.WeakKeyDictionary[Worker, _Annotated] = weakref.WeakKeyDictionary()


def _annotate(worker: Worker, recording: Recording, whole_key: bool) -> None:
    annotated = _annotated.get(worker)
    if annotated is None:
        ranges = _Ranges(recording.executions.base, worker, whole_key)
        ranges.mark_clock(2 * MARKS)
        recording.executions.add(ranges, first=True)
        marking = asyncio.ensure_future(_keep_marking(ranges))
        annotated = _annotated[worker] = _Annotated(ranges, marking)
    annotated.users += 1


def _annotate_no_more(worker: Worker, recording: Recording) -> None:
    annotated = _annotated[worker]
    annotated.users -= 1
    if annotated.users == 0:
        del _annotated[worker]
        annotated.marking.cancel()
        recording.executions.remove(annotated.ranges)
        annotated.ranges.mark_clock(MARKS)


async def _keep_marking(ranges: _Ranges) -> None:
    while True:
        await asyncio.sleep(MARK_INTERVAL_S)
        ranges.mark_clock(MARKS)


class _Ranges:
    """NVTX ranges around executions. Attributes are kept per thread: their payload is changed."""

    def __init__(self, base: int, worker: Worker, whole_key: bool) -> None:
        from nvtx import nvtx as binding

        self._base = base
        self._tasks = worker.state.tasks
        self._whole_key = whole_key
        self._push: Any
        self._pop: Any
        self._start: Any
        self._end: Any
        self._mark: Any
        self._domain: Any = open_domain(COMPUTE_DOMAIN)
        self._clock: Any = open_domain(CLOCK_DOMAIN)
        if hasattr(self._domain, "push_range"):  # nvtx 0.2.12 and newer
            self._push, self._pop = self._domain.push_range, self._domain.pop_range
            self._start, self._end = self._domain.start_range, self._domain.end_range
            self._mark = self._clock.mark
        else:
            compute, marks = self._domain.handle, self._clock.handle
            self._push = lambda attributes: binding.libnvtx_push_range(attributes, compute)
            self._pop = lambda: binding.libnvtx_pop_range(compute)
            self._start = lambda attributes: binding.libnvtx_start_range(attributes, compute)
            self._end = binding.libnvtx_end_range
            self._mark = lambda attributes: binding.libnvtx_mark(attributes, marks)

    def in_thread(self, nested: bool) -> tuple[Started, Stopped]:
        tasks, whole_key = self._tasks, self._whole_key
        get_attributes = self._domain.get_event_attributes
        known: dict[str, Any] = {}

        def make(key: Any) -> Any:
            task = key if type(key) is ActorCall else tasks.get(key)
            message = str(key) if whole_key or task is None else task.prefix
            attributes = known.get(message)
            if attributes is None:
                attributes = get_attributes(message=message, payload=self._base)
                if not whole_key:
                    known[message] = attributes
            return attributes

        if nested:
            ranges = _recorder.ranges(tasks, known, self._base, make, self._push, self._pop)
            return ranges.started, ranges.stopped
        base, start, end = self._base, self._start, self._end
        open_ranges: dict[int, Any] = {}

        def started(sequence: int, key: Any, at: int) -> int:
            attributes = make(key)
            attributes.payload = base + sequence
            at = at or clock.monotonic_ns()
            open_ranges[sequence] = start(attributes)
            return at

        def stopped(sequence: int, message: dict[str, Any] | None) -> None:
            end(open_ranges.pop(sequence))

        return started, stopped

    def mark_clock(self, count: int) -> None:
        """Mark this process's CLOCK_MONOTONIC in Nsight's report."""
        attributes = self._clock.get_event_attributes(message="clock", payload=0)
        for _ in range(count):
            attributes.payload = clock.monotonic_ns()
            self._mark(attributes)


class ResourceMonitor(RecordingPlugin):
    """Has the node sampled: CPU, memory, network, disk, GPUs, and each worker process.

    However many workers share a node, one recorder process serves them all; it is no thread of a
    worker, so that a task that holds the GIL does not stop the samples. In a plain script, with no
    worker around, it samples this node for as long as the monitor lives.

    Parameters
    ----------
    time
        Milliseconds between samples.
    autostart
        Whether to start at once: on a worker when it is attached, in a script when it is made. A
        monitor that is sent to workers stops sampling for the process that made it.
    name
        Name under which Dask knows the plugin.
    directory
        See `WorkerTaskPlugin`.
    **monitor_kwargs
        Of Dask's SystemMonitor: ``monitor_net_io``, ``monitor_disk_io``, ``monitor_host_cpu`` (all
        True), ``monitor_gpu`` (True); any other is accepted and does nothing.
    """

    def __init__(
        self,
        time: float = 100,
        autostart: bool = True,
        name: str = "ResourceMonitor",
        directory: str | Path | None = None,
        **monitor_kwargs: Any,
    ) -> None:
        if not time > 0:
            raise ValueError(f"time is {time!r}; it is the milliseconds between samples, above 0")
        self.time = time
        self.autostart = autostart
        self.name = name
        self.directory = Path(directory) if directory else default_directory()
        self.monitor_kwargs = monitor_kwargs
        self._link: RecorderLink | None = None
        if autostart:
            self.start()

    @classmethod
    def for_workers(
        cls,
        time: float,
        name: str = "ResourceMonitor",
        directory: str | Path | None = None,
        autostart: bool = True,
        monitor_kwargs: dict[str, Any] | None = None,
    ) -> ResourceMonitor:
        """Make a monitor that samples nothing until a worker sets it up."""
        monitor = cls(time, False, name, directory, **(monitor_kwargs or {}))
        monitor.autostart = autostart
        return monitor

    def __reduce__(self) -> tuple[Any, ...]:
        self.stop()
        return type(self).for_workers, (
            self.time,
            self.name,
            self.directory,
            self.autostart,
            self.monitor_kwargs,
        )

    def setup(self, worker: Worker) -> None:
        """Start sampling the worker's node."""
        if type(self).transition is ResourceMonitor.transition:
            _tell_nothing(worker, self)
        if self.autostart:
            self.start()

    def teardown(self, worker: Worker) -> None:
        """Stop sampling for this worker."""
        self.stop()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: sampling does not depend on tasks."""

    def start(self) -> None:
        """Start sampling this node for this process; does nothing where it is on already."""
        if self._link is None:
            self._link = RecorderLink(
                self.directory, interval=self.time / 1000, options=self.monitor_kwargs
            )
            self._link.start()

    def stop(self) -> None:
        """Stop sampling for this process; the node's recorder ends with its last process."""
        link, self._link = self._link, None
        if link is not None:
            link.stop()

    def update(self) -> dict[str, Any]:
        """Sample now and give the sample: the fields of NODE_SAMPLES, empty where there is none."""
        return {} if self._link is None else self._link.sample()

    def __del__(self) -> None:
        link = self.__dict__.get("_link")
        if link is not None:
            link.stop()
