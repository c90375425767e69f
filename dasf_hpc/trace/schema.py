"""Trace, what it holds: every table, column, unit and dictionary of the merged trace, named once.

Nothing else in the package spells a table's layout: `store` writes and reads what stands here, and
`format_page` turns it into the page from which a stranger can read the file.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Root attribute ``format`` of every trace.
FORMAT = "dasf-hpc trace"

#: Root attribute ``version``. A reader refuses a larger one; added columns do not need one.
VERSION = 1

#: Rows a chunk; differences begin anew in each. Measured on 5.6 million transitions: 2**14 to 2**18
#: rows differ by 1 % in size and not in time to read a whole column, while reading one row takes
#: 0.5 ms to 3.3 ms.
CHUNK = 1 << 15

#: What times of transitions are rounded down to a multiple of, ns: about what it takes to record
#: one. Measured: the ten lower bits of a task's 7 times cost 4 to 9 bytes.
TRANSITION_RESOLUTION = 1024

#: What stands for a NUL character, which no HDF5 string can hold, inside a stored string.
NUL = "\u2400"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name
        The dataset's name in the table's group.
    dtype
        NumPy's name of the stored type.
    unit
        Unit of the numbers; empty for codes, row numbers and plain counts.
    meaning
        One sentence or less; says what stands for "not available".
    dictionary
        For strings: the dictionary under ``/dictionaries`` of which the column holds positions
        (-1: no string).
    refers
        For row numbers: the table whose rows the column counts, from 0 (-1: none).
    differences
        Whether a merge stores each value's difference to the value before; see `CHUNK`.
    after
        The column to which a merge stores the values relative, None where it stores them plain.
    resolution
        What times are rounded down to a multiple of, ns.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    dictionary: str | None = None
    refers: str | None = None
    differences: bool = False
    after: str | None = None
    resolution: int = 1


@dataclass(frozen=True)
class Table:
    """One table: a group of columns of equal length.

    Attributes
    ----------
    name
        The group's name.
    meaning
        What one row is.
    columns
        In the order in which they are shown.
    order
        The time column by which rows are sorted, or None where rows have another order. Where a
        merge made them they lie in blocks of time (table ``blocks``), by process in each.
    derived
        Columns that are not stored but follow from the others.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    order: str | None = None
    derived: tuple[Column, ...] = ()

    def column(self, name: str) -> Column:
        """Give a column by name.

        Raises
        ------
        KeyError
            If the table has no such column.
        """
        for column in (*self.columns, *self.derived):
            if column.name == name:
                return column
        raise KeyError(name)


def _time(
    name: str,
    meaning: str,
    *,
    differences: bool = False,
    after: str | None = None,
    resolution: int = 1,
) -> Column:
    return Column(
        name,
        "int64",
        "ns",
        meaning,
        differences=differences,
        after=after,
        resolution=resolution,
    )


def _text(name: str, meaning: str, dictionary: str | None = None, dtype: str = "int32") -> Column:
    return Column(name, dtype, "", meaning, dictionary=dictionary or name)


def _row(name: str, table: str, meaning: str) -> Column:
    return Column(name, "int32", "", meaning, refers=table)


_PROCESS = _row("process", "processes", "the process that recorded it")
_KEY = _text("key", "the task's key, as text", "keys")

#: Strings that several columns may share: name under ``/dictionaries`` and what it holds.
DICTIONARIES: dict[str, str] = {
    "hostnames": "host names",
    "clocks": "identities of clocks: processes with an equal one share a CLOCK_MONOTONIC",
    "sources": "where a clock correction comes from",
    "orders": "what must come before what",
    "roles": "what a process did in the run",
    "names": "names of workers",
    "addresses": "Dask addresses of workers",
    "endings": "how a process ended",
    "batch_jobs": "ids of batch jobs",
    "uuids": "UUIDs of GPUs",
    "gpu_names": "product names of GPUs",
    "sentences": "sentences that say what was not available or went wrong",
    "versions": "versions of software",
    "files": "names of files, relative to the run's directory or its journals",
    "keys": "keys of tasks as text, in the order of the rows of `tasks` in which they stand first; "
    "then those that were never executed",
    "prefixes": "names of functions: Dask's key_split of the key",
    "task_states": "how an execution of a task ended",
    "types": "qualified names of the types of results",
    "dtypes": "array element types of results, as text",
    "shapes": "array shapes of results, as text",
    "exceptions": "qualified names of exception types",
    "messages": "what exceptions say",
    "states": "states of a Dask worker's state machine",
    "actions": "activities that Dask reports for a task",
    "directions": "directions of a transfer, seen from the recording process",
    "reasons": "why something happened",
    "gap_kinds": "what is missing",
    "sha256": "SHA-256 digests, hexadecimal",
    "report_states": "what became of a report",
    "nvtx_domains": "NVTX domains",
    "nvtx_messages": "NVTX messages",
    "thread_states": "states of a thread, in words of nsys; running: others got its CPU",
    "frame_functions": "functions that stand in stacks of calls",
    "frame_modules": "files of programs and libraries that stand in stacks of calls, without their "
    "folders; of Python's functions their module, as it is imported",
    "frame_files": "files of Python's source that stand in stacks of calls, relative to the folder "
    "from which they are imported",
    "frame_origins": "whose code it is: own (the user's), package (installed), dask (dask or "
    "distributed), standard library, dasf-hpc",
    "thread_roles": "what a thread of a process of Dask is for",
    "nvtx_categories": "NVTX categories",
    "nvtx_data": "NVTX payloads that are texts or structures, as JSON",
    "kernel_names": "names of kernels, demangled, with and without arguments",
    "cuda_calls": "functions of CUDA's runtime and driver",
    "copy_kinds": "from where to where data was copied",
    "memory_kinds": "kinds of memory: pageable and pinned are the host's",
    "migration_causes": "why unified memory was migrated",
    "access_types": "how memory was accessed",
    "synchronization_kinds": "what was waited for",
    "os_calls": "functions of the operating system's libraries",
    "message_libraries": "libraries that send messages between ranks",
    "message_operations": "functions of such libraries",
    "buses": "PCI addresses",
    "severities": "how much what a profiler says of itself matters",
    "diagnostic_sources": "parts of a profiler",
    "diagnostics": "what a profiler says of itself, without values of variables and folders",
    "recorded_kinds": "what a report may hold",
    "recorded_states": "whether a report holds it",
    "metrics": "names of what a profiler samples, as it calls them",
    "measures": "what a metric measures, one name over all products and versions",
    "units": "units of numbers",
    "nics": "names of network adapters",
    "pids": "process ids, separated by commas",
}

_REPORT = _row("report", "reports", "the report it stands in")
_REPORTED = (_REPORT, _row("process", "processes", "the process; -1: the report does not say"))
_START = _time("start", "it began", differences=True)
_STOP = _time("stop", "it ended; -1: never", after="start")
_TASK = (
    _row("task", "tasks", "the task that called or launched it"),
    _text("reason", "why it belongs to no task, or how it was found", "reasons"),
)


_NVTX = (
    Column("payload", "int64", "", "NVTX payload that is an integer; -1: none"),
    Column("value", "float64", "", "NVTX payload that is a floating-point number; NaN: none"),
    _text("data", "any other NVTX payload, as JSON of at most 1,000 characters", "nvtx_data"),
    _text("category", "NVTX category", "nvtx_categories"),
)


def _on_gpu(*more: Column) -> tuple[Column, ...]:
    """Give the columns of what ran on a GPU."""
    return (
        *_REPORTED,
        Column("thread", "int32", "", "native id of the thread that launched it; -1: not known"),
        _row("gpu", "gpus", "the GPU"),
        Column("context", "int32", "", "CUDA context in its process"),
        Column("stream", "int64", "", "CUDA stream in its context"),
        _START,
        _STOP,
        _time("launched", "the call that launched it began; -1: not known", after="start"),
        Column(
            "correlation",
            "int64",
            "",
            "the same in the row of `cuda_api` that launched it, of the same report and process",
            differences=True,
        ),
        *more,
        *_TASK,
    )


_TABLES = (
    Table(
        "nodes",
        "A host that took part in the run.",
        (
            _text("hostname", "the host's name", "hostnames"),
            Column("cpus", "int32", "", "logical CPUs; -1: not known"),
            Column("memory", "int64", "bytes", "main memory; -1: not known"),
            Column("gpus", "int32", "", "GPUs known on the host"),
            _text("gpu_status", "what the node's sampler says of its GPUs", "sentences"),
            _time("start", "first time anything was recorded on the host"),
            _time("stop", "last time anything was recorded on the host"),
        ),
    ),
    Table(
        "clocks",
        "A CLOCK_MONOTONIC of the run and its correction to the reference clock: "
        "reference = local + offset + drift * (local - origin).",
        (
            _text("clock", "identity of the clock", "clocks"),
            _row("node", "nodes", "the host whose clock it is"),
            _text(
                "source",
                "reference, probes (round trips to the scheduler; probes+probes: of both clocks), "
                "utc (wall clocks compared) or none (put at the reference's first record)",
                "sources",
            ),
            Column("origin", "int64", "ns", "local time at which the offset holds"),
            Column("offset", "int64", "ns", "reference minus local time at the origin"),
            Column("drift", "float64", "ns/ns", "change of the offset per local time"),
            Column(
                "bound",
                "int64",
                "ns",
                "largest error a corrected time may have; -1: unknown. Times of two clocks compare "
                "within the sum of their bounds, times of one clock exactly",
            ),
            Column(
                "residual",
                "int64",
                "ns",
                "how far the points contradict steady clocks",
            ),
            Column("points", "int64", "", "number of points the correction rests on"),
        ),
    ),
    Table(
        "causality",
        "Something that must come before something else, and how often times say otherwise.",
        (
            _text("order", "what must be", "orders"),
            Column("checked", "int64", "", "pairs that were compared"),
            Column("unchecked", "int64", "", "pairs of which a time or a bound is not known"),
            Column("inverted", "int64", "", "pairs whose corrected times are the wrong way round"),
            Column(
                "violations", "int64", "", "those of them that both clocks' bounds do not explain"
            ),
            Column(
                "worst",
                "int64",
                "ns",
                "how far the worst violation is beyond the bounds; -1: there is none",
            ),
        ),
    ),
    Table(
        "processes",
        "A process that kept a journal (the scheduler, a worker, a node's sampler), or of which "
        "only an Nsight report knows.",
        (
            _row("node", "nodes", "the host it ran on"),
            _row("clock", "clocks", "the clock it read"),
            _text("role", "scheduler, worker, sampler, or profiled: without journal", "roles"),
            Column("pid", "int64", "", "process id; -1: not known"),
            _text("name", "the worker's name", "names"),
            _text("address", "the worker's Dask address", "addresses"),
            _time("start", "when its journal began"),
            _time("stop", "when its journal was closed, else its last record"),
            _text(
                "ended",
                "closed (by itself), killed (the scheduler saw it go, its journal was not closed) "
                "or unknown (its journal was not closed: killed unseen, or still running)",
                "endings",
            ),
            Column("task_id_base", "int64", "", "ids of its tasks begin here; -1: not known"),
            Column("nthreads", "int32", "", "threads that run tasks; -1: not known"),
            Column("memory_limit", "int64", "bytes", "the worker's limit; -1: none or not known"),
            _text("gpus", "UUIDs of the worker's GPUs, separated by commas", "uuids"),
            _text("gpu_status", "what the worker says of its GPUs", "sentences"),
            _text("batch_job", "the batch job it ran in", "batch_jobs"),
            _text("python", "version of Python", "versions"),
            _text("dask", "version of dask", "versions"),
            _text("distributed", "version of distributed", "versions"),
            _text("dasf_hpc", "version of dasf-hpc", "versions"),
            _text("journal", "its journal's file name", "files"),
            Column("damaged", "int64", "", "blocks of the journal that were given up"),
            Column("dropped", "int64", "", "records it could not store, as far as it said"),
        ),
    ),
    Table(
        "gpus",
        "A GPU of a node.",
        (
            _row("node", "nodes", "the host it is in"),
            Column("index", "int32", "", "NVML's index on the host; -1: not known"),
            Column(
                "nsys_id",
                "int32",
                "",
                "nsys's number of it on the host, which counts in the order of buses, as NVML "
                "does; -1: no report tells",
            ),
            _text("uuid", "the GPU's UUID; of a MIG instance its own", "uuids"),
            _text("mig_of", "UUID of the GPU of which it is a MIG instance", "uuids"),
            _text("name", "product name", "gpu_names"),
            Column("memory", "int64", "bytes", "memory of the GPU; -1: not known"),
            Column("multiprocessors", "int32", "", "streaming multiprocessors; -1: not known"),
            _text("bus", "PCI address", "buses"),
            _row(
                "own_axis",
                "reports",
                "the report on whose own axis the times of what ran on it are, since nothing ties "
                "that report's clock to the trace's; -1: they are on the trace's",
            ),
            Column(
                "busy",
                "int64",
                "ns",
                "time in which at least one kernel, copy or fill ran on it, over all streams and "
                "reports; -1: no report tells",
            ),
        ),
    ),
    Table(
        "tasks",
        "One execution of a task in a worker's thread; a task that was retried has several. A call "
        "of an actor's method is one, too: its key is CLASS.METHOD-(KEY OF THE ACTOR)-NUMBER, and "
        "no other table has a row of that key.",
        (
            Column(
                "id",
                "int64",
                "",
                "globally unique; the payload of its NVTX range in Nsight",
                differences=True,
            ),
            _KEY,
            _text("prefix", "name of the function", "prefixes"),
            _row("process", "processes", "the worker process that ran it"),
            Column(
                "thread",
                "int64",
                "",
                "native id of the thread that ran it; 0: not one of the worker's, or not known",
            ),
            Column(
                "attempt",
                "int32",
                "",
                "1 for the key's first execution in the run, 2 …; -1: the key is not known",
            ),
            _time("start", "compute begins, read in the task's own thread", differences=True),
            _time("stop", "compute ended; -1: never", after="start"),
            _text(
                "state",
                "memory, error, rescheduled, lost (never stopped) or abandoned (it ran on when the "
                "script had ended, and was ended with its worker)",
                "task_states",
                "int8",
            ),
            Column(
                "nbytes",
                "int64",
                "bytes",
                "size of the result as Dask sees it; -1: none, as of an actor's call",
            ),
            _text("type", "qualified name of the result's type", "types"),
            _text(
                "dtype",
                "element type of a result of NumPy, CuPy, pandas, cuDF, xarray, torch or SciPy, or "
                "of a Dask array; of others it is not asked",
                "dtypes",
            ),
            _text("shape", "shape of such a result", "shapes"),
            _text("exception", "qualified name of the exception's type", "exceptions"),
            _text(
                "message",
                "first line of what the exception says, of at most 200 characters; of many "
                "different ones a worker leaves out the numbers (#), then the text",
                "messages",
            ),
        ),
        order="start",
    ),
    Table(
        "dependencies",
        "A task needs another one's result; each pair of keys once, sorted by key.",
        (
            Column("key", "int32", "", "the task's key", dictionary="keys", differences=True),
            Column(
                "dependency",
                "int32",
                "",
                "key of the task whose result it needs",
                dictionary="keys",
                after="key",
            ),
        ),
    ),
    Table(
        "transitions",
        "A task changed its state in a worker's state machine.",
        (
            _time(
                "time",
                "when the worker's event loop made the change",
                differences=True,
                resolution=TRANSITION_RESOLUTION,
            ),
            _PROCESS,
            _KEY,
            Column(
                "change",
                "int16",
                "",
                "16 times the state before plus the state after, positions in dictionary `states`",
            ),
        ),
        order="time",
        derived=(
            _text("start_state", "state before", "states", "int8"),
            _text("finish_state", "state after", "states", "int8"),
        ),
    ),
    Table(
        "activities",
        "A span of work for a task as Dask itself reports it (on Dask's clock readings).",
        (
            _time("start", "the span begins", differences=True),
            _time("stop", "the span ends", after="start"),
            _PROCESS,
            _KEY,
            _text("action", "transfer, deserialize, disk-read, compute, …", "actions", "int16"),
            _text("peer", "address of the other worker, where there is one", "addresses"),
        ),
        order="start",
    ),
    Table(
        "transfers",
        "Data that went between two workers in one message.",
        (
            _time("start", "the request begins", differences=True),
            _time("stop", "the data is there", after="start"),
            _PROCESS,
            _text("direction", "incoming or outgoing", "directions", "int8"),
            _text("peer", "address of the other worker", "addresses"),
            _row("peer_process", "processes", "the other worker, where its journal is known"),
            Column("nbytes", "int64", "bytes", "size of the data"),
            Column("keys", "int32", "", "number of keys in the message"),
        ),
        order="start",
    ),
    Table(
        "memory",
        "A worker's memory in task results changed (Dask's managed memory).",
        (
            Column(
                "transition",
                "int64",
                "",
                "the transition with which it changed: it says when and in which process",
                refers="transitions",
                differences=True,
            ),
            Column("managed", "int64", "bytes", "size of all results in memory after the change"),
            Column("tasks", "int32", "", "number of keys in memory after the change"),
        ),
        order="time",
        derived=(_time("time", "when the change was made"), _PROCESS),
    ),
    Table(
        "reschedules",
        "A task was taken from a worker or given back by it.",
        (
            _time("time", "when the worker learned it", differences=True),
            _PROCESS,
            _KEY,
            _text("reason", "steal, reschedule, …", "reasons", "int16"),
        ),
        order="time",
    ),
    Table(
        "node_samples",
        "A sample of a host's resources; -1 or NaN: not available.",
        (
            _time("time", "when it was taken", differences=True),
            _row("node", "nodes", "the host"),
            Column("cpu", "float32", "%", "use of all CPUs since the sample before, 0 to 100"),
            Column("memory_used", "int64", "bytes", "main memory in use"),
            Column("memory_available", "int64", "bytes", "main memory a program could still get"),
            Column("swap_used", "int64", "bytes", "swap space in use"),
            Column("network_received", "int64", "bytes", "received since the host started"),
            Column("network_sent", "int64", "bytes", "sent since the host started"),
            Column("disk_read", "int64", "bytes", "read from disks since the host started"),
            Column("disk_written", "int64", "bytes", "written to disks since the host started"),
        ),
        order="time",
    ),
    Table(
        "gpu_samples",
        "A sample of a GPU; -1 or NaN: not available.",
        (
            _time("time", "when it was taken", differences=True),
            _row("gpu", "gpus", "the GPU"),
            Column("utilization", "float32", "%", "time in which a kernel ran, 0 to 100"),
            Column("memory_utilization", "float32", "%", "time in which memory was accessed"),
            Column("memory_used", "int64", "bytes", "GPU memory in use"),
            Column("power", "float32", "W", "power drawn"),
            Column("temperature", "float32", "°C", "temperature of the GPU"),
            Column("sm_clock", "float32", "MHz", "clock of the multiprocessors"),
            Column("memory_clock", "float32", "MHz", "clock of the memory"),
            Column("pcie_sent", "float32", "kB/s", "PCIe traffic out of the GPU"),
            Column("pcie_received", "float32", "kB/s", "PCIe traffic into the GPU"),
            Column("nvlink_sent", "int64", "KiB", "NVLink traffic out of the GPU, counted up"),
            Column("nvlink_received", "int64", "KiB", "NVLink traffic into the GPU, counted up"),
        ),
        order="time",
    ),
    Table(
        "process_samples",
        "A sample of a worker process, taken by its node's sampler; -1 or NaN: not available.",
        (
            _time("time", "when it was taken", differences=True),
            _row("node", "nodes", "the host"),
            _row("process", "processes", "the process, where its journal is known"),
            Column("pid", "int64", "", "process id"),
            Column("cpu", "float32", "%", "CPU since the sample before; 100 is one CPU"),
            Column("memory", "int64", "bytes", "resident memory"),
            Column("fds", "int64", "", "open file descriptors"),
            Column("threads", "int64", "", "threads"),
        ),
        order="time",
    ),
    Table(
        "blocks",
        "A stretch of time: every row of the tables named here whose time lies in it stands, in "
        "each table, from the row given here to the next block's.",
        (
            _time("time", "the block begins; the first one holds what is earlier, too"),
            *(
                Column(name, "int64", "", f"first row in table {name}", refers=name)
                for name in (
                    "tasks",
                    "transitions",
                    "memory",
                    "activities",
                    "transfers",
                    "reschedules",
                    "node_samples",
                    "gpu_samples",
                    "process_samples",
                    "call_samples",
                )
            ),
        ),
    ),
    Table(
        "gaps",
        "Something that is missing from the trace, named and counted.",
        (
            _text(
                "kind",
                "records dropped, blocks damaged, journal unreadable, journal duplicated, "
                "stops without start, unknown keys, unknown calls (of samples of them), calls cut "
                "short, worker without journal, clock not aligned, executions from transitions "
                "(start and stop are Dask's readings of its own clock, threads are not known, "
                "lost and rescheduled ones are missing), not heard by nsys (a worker that ran "
                "under nsys and is in no report), lost by nsys (as it "
                "says itself, or as calls show of which nothing ran) or not available",
                "gap_kinds",
                "int16",
            ),
            _row("process", "processes", "the process it is missing from"),
            _text("journal", "the file name of the journal or report", "files"),
            _time("start", "nothing is missing before; -1: not known"),
            _time("stop", "nothing is missing after; -1: not known"),
            Column("count", "int64", "", "how many are missing; -1: not known"),
            _text("reason", "why", "sentences"),
        ),
    ),
    Table(
        "reports",
        "An Nsight Systems report that was expected or found.",
        (
            _row("node", "nodes", "the host it was made on"),
            _text("file", "the report, relative to the run's directory", "files"),
            _text("sha256", "digest of the report's file", "sha256"),
            _text("nsys_version", "version of the nsys that recorded it, if known", "versions"),
            _text("exporter_version", "version of the nsys that exported it", "versions"),
            Column(
                "session_start_utc",
                "int64",
                "ns",
                "start of its session, ns since 1970-01-01 UTC; -1: not known",
            ),
            _text(
                "pids",
                "process ids of its processes, separated by commas: with its host and the start of "
                "its session they tell which recording it is of",
                "pids",
            ),
            _text(
                "events",
                "digest of the times of its events, where it does not say when its session began",
                "sha256",
            ),
            _text("status", "what became of it", "report_states"),
            _text("sentence", "why it is missing or not whole", "sentences"),
            Column("ranges", "int64", "", "NVTX ranges in it"),
            Column("compute_ranges", "int64", "", "NVTX ranges around tasks"),
            Column("linked", "int64", "", "NVTX ranges that were linked to a task"),
            Column("processes", "int32", "", "processes of the run that it covers"),
            _text(
                "correction_source",
                "where its clock correction comes from; own axis: nothing ties its clock, so that "
                "its times count from the start of its session, durations are right, and when in "
                "the run anything was is not known",
                "sources",
            ),
            Column("correction_offset", "int64", "ns", "trace time minus session time"),
            Column("correction_drift", "float64", "ns/ns", "change of the offset per time"),
            Column("correction_bound", "int64", "ns", "largest error; -1: unknown"),
        ),
    ),
    Table(
        "report_clocks",
        "A process of a report and its correction: "
        "trace time = session time + offset + drift * (session time - origin).",
        (
            _REPORT,
            _row("process", "processes", "the process"),
            _text(
                "source",
                "marks (NVTX marks carry the process's own clock), same-host (another process's "
                "marks), system-clock or utc (as the report states them), then, after a plus, "
                "that of the process's clock (see `clocks`); collectives: no rank leaves one "
                "before all entered, which ties its session to another report's",
                "sources",
            ),
            Column("origin", "int64", "ns", "session time at which the offset holds"),
            Column("offset", "int64", "ns", "trace time minus session time at the origin"),
            Column("drift", "float64", "ns/ns", "change of the offset per session time"),
            Column("bound", "int64", "ns", "largest error; -1: unknown"),
            Column(
                "points",
                "int64",
                "",
                "number of points the correction rests on: of marks, or of collectives",
            ),
        ),
    ),
    Table(
        "diagnostics",
        "Something that nsys says of its own recording. Values of variables and folders of paths "
        "are taken out of the texts.",
        (
            _REPORT,
            _row("process", "processes", "the process it is of; -1: of none that is known"),
            Column("pid", "int64", "", "that process's id; -1: none"),
            _time("time", "when it was said; -1: not known"),
            _text("severity", "info, warning or error, or what nsys calls it", "severities"),
            _text(
                "source",
                "injection (in the process), daemon, analysis, or what nsys calls it",
                "diagnostic_sources",
            ),
            _text("text", "what it says", "diagnostics"),
            Column(
                "lost", "int64", "", "how much it says is lost; -1: not how much; -2: none is lost"
            ),
        ),
    ),
    Table(
        "recorded",
        "Something that a report may hold, and whether it does.",
        (
            _REPORT,
            _text(
                "what",
                "NVTX ranges, CUDA calls, kernels, copies, fills, waits, GPU metrics, messages, "
                "NVTX marks, CPU samples, context switches, OS runtime calls, allocations, page "
                "faults or network counters",
                "recorded_kinds",
                "int8",
            ),
            _text(
                "state",
                "recorded, partly lost, recorded, none (it was traced and nothing came), lost "
                "(something must have been there) or not recorded",
                "recorded_states",
                "int8",
            ),
            Column("count", "int64", "", "how many there are"),
            _text("reason", "how that is known", "sentences"),
        ),
    ),
    Table(
        "nvtx_ranges",
        "An NVTX range of a report.",
        (
            *_REPORTED,
            Column("thread", "int64", "", "native id of the thread"),
            _time("start", "the range was pushed or started", differences=True),
            _time("stop", "the range was popped or ended; -1: never", after="start"),
            _text("domain", "NVTX domain", "nvtx_domains"),
            _text("message", "NVTX message", "nvtx_messages"),
            *_NVTX,
            Column(
                "stacked",
                "int8",
                "",
                "1: it was pushed, so lies within what its thread pushed before; 0: it was started "
                "and may end on another thread, at any time; -1: not told",
            ),
            Column("task", "int64", "", "the task it belongs to", refers="tasks"),
            _text("reason", "why it belongs to no task, or how it was found", "reasons"),
        ),
        order="start",
    ),
    Table(
        "nvtx_marks",
        "An NVTX mark of a report; those by which clocks are tied are left out.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _time("start", "when it was", differences=True),
            _text("domain", "NVTX domain", "nvtx_domains"),
            _text("message", "NVTX message", "nvtx_messages"),
            *_NVTX,
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "kernels",
        "A kernel that ran on a GPU, or a CUDA graph whose launch was recorded as a whole.",
        _on_gpu(
            _text("name", "demangled name", "kernel_names"),
            _text("short_name", "name without arguments", "kernel_names"),
            Column("graph_node", "int64", "", "the node of a CUDA graph that ran it; -1: none"),
        ),
        order="start",
    ),
    Table(
        "memcpys",
        "A copy to, from or on a GPU.",
        _on_gpu(
            Column("bytes", "int64", "bytes", "size"),
            _text("kind", "from where to where", "copy_kinds", "int8"),
            _text("source", "kind of the memory it was copied from", "memory_kinds", "int8"),
            _text("target", "kind of the memory it was copied to", "memory_kinds", "int8"),
            Column("source_gpu", "int16", "", "the GPU it was copied from", refers="gpus"),
            Column("target_gpu", "int16", "", "the GPU it was copied to", refers="gpus"),
            _text("cause", "why unified memory was migrated by it", "migration_causes", "int8"),
        ),
        order="start",
    ),
    Table(
        "memsets",
        "A fill of GPU memory.",
        _on_gpu(
            Column("bytes", "int64", "bytes", "size"),
            _text("memory", "kind of the memory that was filled", "memory_kinds", "int8"),
        ),
        order="start",
    ),
    Table(
        "synchronizations",
        "A wait for a GPU.",
        _on_gpu(_text("kind", "what was waited for", "synchronization_kinds", "int8")),
        order="start",
    ),
    Table(
        "cuda_api",
        "A call of CUDA's runtime or driver.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _START,
            _STOP,
            Column(
                "correlation", "int64", "", "the same in what the call launched", differences=True
            ),
            _text("name", "the function", "cuda_calls"),
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "os_runtime",
        "A call of the operating system's libraries; stored only where that was asked for.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _START,
            _STOP,
            _text("name", "the function", "os_calls"),
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "os_runtime_sums",
        "What calls of one of the operating system's functions cost a task, or those of no known "
        "task, by process and reason, whether or not the calls themselves are stored. nsys keeps "
        "those that took long enough only.",
        (
            _REPORT,
            _row(
                "process",
                "processes",
                "the process; -1: the trace knows nothing else of it, or it is not told",
            ),
            *_TASK,
            _text("name", "the function", "os_calls"),
            Column("count", "int64", "", "number of calls"),
            Column(
                "time",
                "int64",
                "ns",
                "times of all added up; what a call spends in another one counts for both",
            ),
            Column("longest", "int64", "ns", "the longest of them"),
        ),
    ),
    Table(
        "gpu_allocations",
        "Memory that CUDA gave, or took back; of those with another end the sums of `bytes` say "
        "how much was in use.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread that called; -1: not known"),
            _row("gpu", "gpus", "the GPU; -1: it is memory of the host"),
            _time("start", "it was allocated or released", differences=True),
            _time(
                "other",
                "an allocation was released, or that of a release was made; -1: not in the report",
            ),
            Column("bytes", "int64", "bytes", "size of it, less than 0: it was released"),
            _text("kind", "kind of the memory", "memory_kinds", "int8"),
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "page_faults",
        "An access to unified memory that was not where it was accessed.",
        (
            *_REPORTED,
            Column("on_gpu", "int8", "", "1: a GPU accessed it, 0: a CPU"),
            _row("gpu", "gpus", "the GPU that accessed it"),
            _time("start", "it began", differences=True),
            _time("stop", "it was served; -1: not told, as of CPUs"),
            Column("count", "int32", "", "faults of the same page"),
            _text("access", "how it was accessed", "access_types", "int8"),
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "metrics",
        "A metric that nsys sampled, of a GPU or of a network adapter.",
        (
            _text("name", "nsys's name of it", "metrics"),
            _text(
                "measure",
                "what it measures, whatever GPU and version of nsys; the metrics of one measure "
                "are parts of it, which add up; none: it has no other name than nsys's",
                "measures",
            ),
            _text("unit", "unit of its values, %: of the most there can be", "units"),
        ),
    ),
    Table(
        "gpu_metrics",
        "A sample of a metric of a GPU: a mean over the time from start to stop. Of several reports"
        " that sampled a GPU at once each has its rows.",
        (
            _REPORT,
            _row("gpu", "gpus", "the GPU"),
            _row("metric", "metrics", "what was sampled"),
            _START,
            _STOP,
            Column("value", "int64", "", "the mean, in the unit of the metric"),
        ),
        order="start",
    ),
    Table(
        "nic_metrics",
        "A sample of a counter of a network adapter, over the time from start to stop.",
        (
            _REPORT,
            _row("node", "nodes", "the host it is in; -1: the report does not say"),
            _text("nic", "the adapter's name", "nics"),
            Column("port", "int32", "", "its port; -1: not told"),
            _row("metric", "metrics", "what was sampled"),
            _START,
            _STOP,
            Column("value", "int64", "", "what was counted, in the unit of the metric"),
        ),
        order="start",
    ),
    Table(
        "messages",
        "A call of MPI, UCX or NCCL in a report. NCCL's are what the host queues, not what runs.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _START,
            _STOP,
            _text("library", "MPI, UCX or NCCL", "message_libraries", "int8"),
            _text("operation", "the function", "message_operations"),
            Column("sent", "int64", "bytes", "size of what it sends; -1: not told"),
            Column("received", "int64", "bytes", "size of what it receives; -1: not told"),
            Column(
                "communicator",
                "int64",
                "",
                "the communicator: its number in the whole job where nsys knows one, else its "
                "handle in the process; -1: not told",
            ),
            Column(
                "peer",
                "int64",
                "",
                "the other rank of a message between two, or UCX's number of the other worker; "
                "-1: not told",
            ),
            Column(
                "root",
                "int32",
                "",
                "rank to or from which a collective goes, in the communicator; -1: not told",
            ),
            Column(
                "rank",
                "int32",
                "",
                "the caller's own, in the communicator where that is known, else of all; "
                "-1: not told",
            ),
            Column(
                "collective",
                "int32",
                "",
                "the same number in every rank's call of one collective, unique among the reports "
                "that were joined together; -1: none that was matched",
            ),
            _row("task", "tasks", "the task that its thread ran then"),
        ),
        order="start",
    ),
    Table(
        "cpu_samples",
        "A sample of what a thread did on a CPU.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _time("start", "when it was taken", differences=True),
            _row("stack", "stacks", "the innermost call; -1: no calls were recorded with it"),
            Column("cpu", "int16", "", "number of the CPU; -1: not told"),
            _text("state", "the thread's state", "thread_states", "int8"),
            *_TASK,
        ),
        order="start",
    ),
    Table(
        "stacks",
        "A call within calls: a row for each different stack of calls that was seen.",
        (
            _row("parent", "stacks", "the call that made it, in an earlier row; -1: none"),
            _text("function", "the function; none: its name is not known", "frame_functions"),
            _text(
                "module",
                "file of the program or library it is in; of a Python function its module",
                "frame_modules",
            ),
            _text(
                "file", "file of its source; none: not known, as of compiled code", "frame_files"
            ),
            Column(
                "line",
                "int32",
                "",
                "line of that file at which it was, from 1: of the innermost call the one that "
                "ran, of the others the one that called; -1: not known",
            ),
            _text("origin", "whose code it is; none: not known", "frame_origins", "int8"),
        ),
    ),
    Table(
        "call_samples",
        "A sample of the Python calls of a thread of Dask's, whether it was on a CPU or not.",
        (
            _PROCESS,
            Column("thread", "int64", "", "native id of the thread"),
            _time("start", "when it was taken", differences=True),
            Column(
                "span",
                "int64",
                "ns",
                "the time for which it stands: since this process' threads were sampled before. Of "
                "a task's, where that was unusually long: since the task began",
            ),
            _row("stack", "stacks", "the innermost call"),
            _text(
                "role",
                "task (a thread that ran a task), event loop, or other",
                "thread_roles",
                "int8",
            ),
            _row("task", "tasks", "the task that the thread ran then; -1: none"),
            Column(
                "late",
                "int8",
                "",
                "how late it was taken, for another thread held the interpreter (GIL) or the CPU "
                "was somebody else's: 2: 20 ms or more after it was due, 1: 4 ms or more, 0: less, "
                "-1: not known",
            ),
        ),
        order="start",
    ),
    Table(
        "off_cpu",
        "A stretch of 1 ms and more within a task that the task's thread was off the CPU.",
        (
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            _START,
            _STOP,
            _text("state", "the thread's state as it left the CPU", "thread_states", "int8"),
            _row("task", "tasks", "the task"),
        ),
        order="start",
    ),
    Table(
        "task_cpu",
        "How long the thread of a task was off the CPU within the task. Where tasks of a thread "
        "lie in each other, an instant is of the one that began last.",
        (
            _row("task", "tasks", "the task"),
            *_REPORTED,
            Column("thread", "int32", "", "native id of the thread"),
            Column("known", "int64", "ns", "of the task's time: that of which the report tells it"),
            Column("off", "int64", "ns", "of that time: off the CPU"),
            Column("blocked", "int64", "ns", "of the time off the CPU: the thread waited"),
            Column(
                "preempted",
                "int64",
                "ns",
                "of the time off the CPU: it could have gone on, others got the CPU. Of what is "
                "neither the report does not say why, as none before nsys 2023 does",
            ),
            Column("count", "int64", "", "how often it was off the CPU"),
            Column("longest", "int64", "ns", "the longest time it was off within the task"),
        ),
    ),
    Table(
        "task_gpu",
        "What a task did on a GPU; rows without a task are what was launched by no known task, by "
        "process and reason. Of each GPU the column `share` adds up to its time `busy` in `gpus`.",
        (
            _row("task", "tasks", "the task; -1: none"),
            _text("reason", "why there is no task", "reasons"),
            _row("process", "processes", "the process that launched it"),
            _row("gpu", "gpus", "the GPU; -1: not known"),
            Column("kernels", "int64", "", "number of kernels"),
            Column("kernel_time", "int64", "ns", "times of all kernels added up"),
            _time("first", "its first kernel began; -1: it had none"),
            _time("last", "its last kernel ended; -1: it had none"),
            Column(
                "latency_mean",
                "int64",
                "ns",
                "from the begin of the launching call to the begin of the kernel, mean of those "
                "whose call is known, rounded down; -1: none",
            ),
            Column("latency_max", "int64", "ns", "the longest of those; -1: none"),
            *(
                column
                for name, meaning in (
                    ("to_device", "copies from host to device"),
                    ("to_host", "copies from device to host"),
                    ("on_device", "copies within a device"),
                    ("other_copies", "other copies (between devices, on the host)"),
                    ("fills", "fills"),
                )
                for column in (
                    Column(f"{name}_time", "int64", "ns", f"times of all {meaning} added up"),
                    Column(f"{name}_bytes", "int64", "bytes", f"size of all {meaning}"),
                )
            ),
            Column("busy", "int64", "ns", "time in which one of its kernels, copies or fills ran"),
            Column(
                "share",
                "int64",
                "ns",
                "its part of the GPU's busy time: each instant belongs to what, of all that ran "
                "then on the GPU, began first (of equal begins: kernels before copies before "
                "fills, then in the order of rows)",
            ),
            Column(
                "idle",
                "int64",
                "ns",
                "time in which nothing at all ran on the GPU while the task ran; -1: not known",
            ),
            Column("synchronization", "int64", "ns", "times of all its waits for the GPU added up"),
        ),
    ),
)

#: Every table by name.
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

_IN_BLOCKS = {column.refers for column in TABLES["blocks"].columns}

#: Root attributes: name, type and meaning.
ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    ("format", "string", f"always ``{FORMAT}``"),
    ("version", "int64", f"version of this format, {VERSION}; a reader refuses a larger one"),
    ("producer", "string", "the program that wrote the file"),
    ("reference_host", "string", "host whose clock all times are on"),
    ("reference_clock", "string", "identity of that clock (see table ``clocks``)"),
    ("origin_monotonic_ns", "int64", "reading of the reference clock at time 0 of the trace"),
    (
        "origin_utc_ns",
        "int64",
        "ns since 1970-01-01 UTC at time 0 as the reference host's wall clock said; -1: not known",
    ),
    (
        "imported",
        "string",
        "names of the files of dasf-core that the trace was made of, a line each; else not there",
    ),
)


def format_page() -> str:
    """Give the description of the file format, in Markdown, from which a stranger can read it."""
    lines = [
        "# The trace file",
        "",
        f"This page is generated from `dasf_hpc/trace/schema.py`; it describes version {VERSION}.",
        "",
        "A trace is an HDF5 file. A group of the root is a table, each one-dimensional dataset in",
        "it a column; all columns of a table have the same length, and a row is the same position",
        "in each. Long columns are chunked, shuffled, compressed with gzip and carry Fletcher-32",
        "checksums; every HDF5 reader undoes and checks that by itself.",
        "",
        "Some columns are stored as what compresses better; their attributes say so, and the",
        "program at the end of this page undoes it:",
        "",
        "- `differences`: each value is the difference to the value in the row before. They",
        "  begin anew, with a value itself, after each so many rows as the attribute says.",
        "- `after`: each value is relative to that in the same row of the column that the",
        "  attribute names; the smallest number of the type stands for -1, which means none.",
        "- `resolution`: times are rounded down to multiples of so many ns.",
        "",
        "Rows of a table with an order in time lie in blocks: table `blocks` says with which row",
        "of each table a block begins and which times are in it. Within a block the rows stand",
        "process after process, those that one process recorded in the order of time. The",
        "attribute `blocks` marks such tables; without it rows are sorted by time.",
        "",
        "- **Times** are 64-bit integers: nanoseconds on the reference clock, counted from time 0",
        "  of the trace, its first record. Wall time in ns since 1970 is `origin_utc_ns + time`.",
        "  A time of -1 stands for none. How far a corrected time may be wrong stands in `clocks`.",
        "- **Strings** are stored once, in a dataset of the group `/dictionaries`; the column",
        "  holds positions in it, from 0 (-1: no string), and its attribute `dictionary` names it.",
        "  Strings are UTF-8 of fixed length, padded with zeros (of variable length where one is",
        f"  longer than 512 bytes). A NUL inside a string is written as U+{ord(NUL):04X}.",
        "- **Row numbers** count from 0 (-1: none); the attribute `refers` names the table.",
        "- Every column carries the attributes `unit` and `meaning`, every table `meaning`, `rows`",
        "  and, where its rows have an order in time, `order`: the name of the column. Texts of",
        "  attributes have a fixed length.",
        "- A table that the run gave no reason to write may be absent, and so may columns that",
        "  came after the file was written: the table's attribute `columns` names those it was",
        "  written with. Readers must not mind tables, columns and attributes they do not know.",
        "",
        "## Attributes of the root",
        "",
        "| name | type | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in ATTRIBUTES),
        "",
        "## Tables",
    ]
    for table in TABLES.values():
        lines += ["", f"### `{table.name}`", "", table.meaning]
        if table.order:
            how = "In blocks of time, by" if table.name in _IN_BLOCKS else "Sorted by"
            lines[-1] += f" {how} `{table.order}`."
        if table.derived:
            names = ", ".join(f"`{column.name}`" for column in table.derived)
            lines[-1] += f" What follows from the columns, and dasf-hpc gives, too: {names}."
        lines += ["", "| column | type | unit | holds | meaning |", "|---|---|---|---|---|"]
        for column in table.columns:
            holds = ""
            if column.dictionary:
                holds = f"strings of `{column.dictionary}`"
            elif column.refers:
                holds = f"rows of `{column.refers}`"
            lines.append(
                f"| `{column.name}` | {column.dtype} | {column.unit} | {holds} | {column.meaning} |"
            )
    lines += ["", "## Dictionaries", "", "| name | strings |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in DICTIONARIES.items()]
    lines += [
        "",
        "## Reading it with h5py alone",
        "",
        "```python",
        "import h5py",
        "",
        "import numpy",
        "",
        "",
        "def column(table, name):",
        "    values, how = table[name][:], table[name].attrs",
        '    if rows := how.get("differences"):',
        "        for first in range(0, len(values), rows):",
        "            part = values[first : first + rows]",
        "            numpy.cumsum(part, out=part)",
        '    if "after" in how:',
        "        none = values == numpy.iinfo(values.dtype).min",
        '        values = numpy.where(none, -1, values + column(table, how["after"].decode()))',
        "    return values",
        "",
        "",
        'with h5py.File("trace.h5") as file:',
        '    keys = file["dictionaries/keys"].asstr()[:]',
        '    tasks = file["tasks"]',
        '    seconds = (column(tasks, "stop") - column(tasks, "start")) / 1e9',
        '    for code, duration in zip(column(tasks, "key"), seconds):',
        '        print(keys[code] if code >= 0 else "?", duration)',
        "```",
        "",
    ]
    return "\n".join(lines)
