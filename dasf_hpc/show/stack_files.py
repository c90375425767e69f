"""Show, call stacks elsewhere: files of speedscope, of flame graph scripts, and of pprof.

Weights are ns where samples stand for a time, else numbers of samples. Files of speedscope and of
flame graphs have calls of own code by line and others by function; pprof's have every line.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.executions import Ints, group_sums
from dasf_hpc.analysis.stacks import Groups, chosen_of, read_groups, why_none
from dasf_hpc.errors import TraceFileError
from dasf_hpc.show.flame import merged
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.names import UNKNOWN, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import ROLES, Source, Stacks, read_stacks, source_of, sums

#: What a thread is called by its role.
THREADS = {"task": "task thread", "event loop": "event loop", "other": "other thread"}

#: By this speedscope knows its own files.
SCHEMA = "https://www.speedscope.app/file-format-schema.json"

#: The profile that holds all functions, each as the outermost call of its own.
ALL = "all functions"

_STEP = "Writing call stacks"

#: Messages of pprof's ``profile.proto``: fields by number, name and type (i: int64, u: uint64, b:
#: bool, s: string, else a message); a star is repeated. Strings are numbers of the string table.
MESSAGES: dict[str, tuple[tuple[int, str, str], ...]] = {
    "Profile": (
        (1, "sample_type", "*ValueType"), (2, "sample", "*Sample"), (3, "mapping", "*Mapping"),
        (4, "location", "*Location"), (5, "function", "*Function"), (6, "string_table", "*s"),
        (9, "time_nanos", "i"), (10, "duration_nanos", "i"), (11, "period_type", "ValueType"),
        (12, "period", "i"), (13, "comment", "*i"), (14, "default_sample_type", "i"),
    ),
    "ValueType": ((1, "type", "i"), (2, "unit", "i")),
    "Sample": ((1, "location_id", "*u"), (2, "value", "*i"), (3, "label", "*Label")),
    "Label": ((1, "key", "i"), (2, "str", "i"), (3, "num", "i"), (4, "num_unit", "i")),
    "Mapping": (
        (1, "id", "u"), (5, "filename", "i"), (7, "has_functions", "b"), (8, "has_filenames", "b"),
        (9, "has_line_numbers", "b"),
    ),
    "Location": ((1, "id", "u"), (2, "mapping_id", "u"), (4, "line", "*Line")),
    "Line": ((1, "function_id", "u"), (2, "line", "i")),
    "Function": ((1, "id", "u"), (2, "name", "i"), (3, "system_name", "i"), (4, "filename", "i")),
}  # fmt: skip


def write_speedscope(trace: Trace, file: IO[bytes], told: Told, wanted: dict[str, Any]) -> None:
    """Write a file of speedscope: a profile for all functions, for each, and for event loops.

    Each different stack is one sample of its profile, as heavy as all samples of it together:
    samples of many threads at once have no order in time.

    Parameters
    ----------
    trace
        The trace.
    file
        Where to.
    told
        Called with the progress.
    wanted
        ``function``, ``worker`` and ``between``, as for `dasf_hpc.analysis.stacks.chosen_of`.

    Raises
    ------
    TraceFileError
        If there are no samples, or none of those that are wanted.
    """
    told(Step(_STEP, 0, 2))
    source, stacks, groups, found = _read(trace, ["process", "function", "role"], wanted)
    nodes = _Nodes(stacks, found)
    found["node"] = nodes.of(found)
    found = found.groupby(["group", "node"], as_index=False)[["samples", "weight"]].sum()
    totals = found.groupby("group")["weight"].sum().sort_values(ascending=False, kind="stable")
    order = [int(str(group)) for group in totals.index]
    frames: list[dict[str, Any]] = [nodes.frame(node) for node in range(len(nodes))]
    numbers: dict[tuple[Any, ...], int] = {}
    shared: list[dict[str, Any]] = []

    def number(frame: dict[str, Any]) -> int:
        key = tuple(frame.values()) + tuple(frame)
        if key not in numbers:
            numbers[key] = len(shared)
            shared.append(frame)
        return numbers[key]

    of_node = [number(frame) for frame in frames]
    profiles = []
    whole: list[tuple[list[int], int]] = []
    for group in order:
        some = found[found["group"] == group]
        samples = sorted(
            ([of_node[one] for one in nodes.path(node)], weight)
            for node, weight in zip(some["node"].tolist(), some["weight"].tolist(), strict=True)
        )
        name = groups.names[group]
        if group < groups.functions:
            outer = number({"name": name})
            whole += [([outer, *stack], weight) for stack, weight in samples]
        profiles.append(_profile(name.strip("()"), samples, source))
    if sum(group < groups.functions for group in order) > 1:
        profiles.insert(0, _profile(ALL, whole, source))
    told(Step(_STEP, 1, 2))
    content = {
        "$schema": SCHEMA,
        "shared": {"frames": shared},
        "profiles": profiles,
        "name": trace.path.parent.name or trace.path.name,
        "activeProfileIndex": 0,
        "exporter": f"dasf-hpc {importlib.metadata.version('dasf-hpc')}",
    }
    file.write(json.dumps(content, separators=(",", ":")).encode())
    told(Step(_STEP, 2, 2))


def _profile(name: str, samples: list[tuple[list[int], int]], source: Source) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds" if source.timed else "none",
        "startValue": 0,
        "endValue": sum(weight for _, weight in samples),
        "samples": [stack for stack, _ in samples],
        "weights": [weight for _, weight in samples],
    }


def write_collapsed(trace: Trace, file: IO[bytes], told: Told, wanted: dict[str, Any]) -> None:
    """Write collapsed stacks: ``process;thread;function;call;call N``, a line for each.

    N is ns, or a number of samples. Calls are ``scipy.signal.hilbert``; of own code with the line,
    ``filter_trace (job.py:41)``. What stands between two semicolons has none in it.

    Parameters
    ----------
    trace, file, told, wanted
        As for `write_speedscope`.

    Raises
    ------
    TraceFileError
        As there.
    """
    told(Step(_STEP, 0, 2))
    _, stacks, groups, found = _read(trace, ["process", "function", "role"], wanted)
    nodes = _Nodes(stacks, found)
    found["node"] = nodes.of(found)
    found = found.groupby(["process", "role", "group", "node"], as_index=False)[["weight"]].sum()
    told(Step(_STEP, 1, 2))
    processes = _places(trace)
    names = [_joined(nodes.frame(node)) for node in range(len(nodes))]
    for process, role, group, node, weight in zip(
        *(found[name].tolist() for name in ("process", "role", "group", "node", "weight")),
        strict=True,
    ):
        words = [processes[process][0], THREADS[ROLES[role]]]
        if group < groups.functions:
            words.append(groups.names[group])
        words += [names[one] for one in nodes.path(node)]
        line = ";".join(word.replace(";", ":").replace("\n", " ") for word in words)
        file.write(f"{line} {weight}\n".encode())
    told(Step(_STEP, 2, 2))


def _joined(frame: dict[str, Any]) -> str:
    return (
        f"{frame['name']} ({frame['file']}:{frame['line']})" if "line" in frame else frame["name"]
    )


def write_pprof(trace: Trace, file: IO[bytes], told: Told, wanted: dict[str, Any]) -> None:
    """Write a profile of pprof, not compressed: its files are, with gzip.

    Values of a sample are samples/count and, where samples stand for a time, time/nanoseconds; its
    labels are ``prefix`` (of the task's key), ``worker``, ``node``, ``thread`` (what it is for) and
    ``thread_id``.

    Parameters
    ----------
    trace, file, told, wanted
        As for `write_speedscope`.

    Raises
    ------
    TraceFileError
        As there.
    """
    told(Step(_STEP, 0, 2))
    by = ["process", "thread", "function", "role"]
    source, stacks, groups, found = _read(trace, by, wanted)
    profile = messages()["Profile"]()
    texts: dict[str, int] = {}

    def text(word: str) -> int:
        return texts.setdefault(word, len(texts))

    text("")  # the first one is none
    for kind, unit in [("samples", "count"), ("time", "nanoseconds")][: 1 + source.timed]:
        profile.sample_type.add(type=text(kind), unit=text(unit))
    if source.timed:
        profile.period_type.type, profile.period_type.unit = text("time"), text("nanoseconds")
        profile.period = int(found["weight"].sum() // max(1, found["samples"].sum()))
        profile.default_sample_type = text("time")
    profile.mapping.add(
        id=1, filename=text("python"), has_functions=True, has_filenames=True, has_line_numbers=True
    )
    names = stacks.names()
    for frame, (name, module, path) in enumerate(
        zip(names, *(stacks.frames[c] for c in ("module", "file")), strict=True)
    ):
        profile.function.add(
            id=frame + 1, name=text(name), system_name=text(name), filename=text(path or module)
        )
    used = np.zeros(len(stacks), bool)
    used[found["stack"].to_numpy()] = True
    for rows in reversed(stacks.levels()[1:]):
        used[stacks.parent[rows[used[rows]]]] = True
    location = np.full(len(stacks), -1, np.int64)
    places: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(used).tolist():
        frame, line = int(stacks.frame[row]), max(0, int(stacks.line[row]))
        if (frame, line) not in places:
            places[frame, line] = len(places) + 1
            one = profile.location.add(id=places[frame, line], mapping_id=1)
            one.line.add(function_id=frame + 1, line=line)
        location[row] = places[frame, line]
    told(Step(_STEP, 1, 2))
    processes = _places(trace)
    columns = ("process", "thread", "role", "group", "stack", "samples", "weight")
    for process, thread, role, group, stack, samples, weight in zip(
        *(found[name].tolist() for name in columns), strict=True
    ):
        sample = profile.sample.add(value=[samples, weight] if source.timed else [samples])
        sample.location_id.extend(location[stacks.path(stack)[::-1]].tolist())
        _, worker, node = processes[process]
        labels = [("worker", worker), ("node", node), ("thread", THREADS[ROLES[role]])]
        if group < groups.functions:
            labels.append(("prefix", groups.names[group]))
        for key, value in labels:
            sample.label.add(key=text(key), str=text(value))
        if thread > 0:
            sample.label.add(key=text("thread_id"), num=thread)
    _set_times(trace, source, profile)
    profile.string_table.extend(texts)
    file.write(profile.SerializeToString())
    told(Step(_STEP, 2, 2))


def _set_times(trace: Trace, source: Source, profile: Any) -> None:
    """Tell when the samples were taken."""
    times = trace.table(source, ["start"])["start"]
    first, last = int(times.min()), int(times.max())
    origin = int(trace.attributes.get("origin_utc_ns", -1))
    if origin > 0:
        profile.time_nanos = origin + first
    profile.duration_nanos = last - first


@functools.cache
def messages() -> dict[str, Any]:
    """Make the classes of `MESSAGES`, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    kinds = {
        "i": field.TYPE_INT64,
        "u": field.TYPE_UINT64,
        "b": field.TYPE_BOOL,
        "s": field.TYPE_STRING,
    }
    package = "perftools.profiles"
    described = descriptor_pb2.FileDescriptorProto(
        name="dasf_hpc/profile.proto", package=package, syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = described.message_type.add(name=name)
        for number, called, kind in fields:
            repeated, kind = kind.startswith("*"), kind.lstrip("*")
            one = message.field.add(
                name=called,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=kinds.get(kind, field.TYPE_MESSAGE),
            )
            if kind not in kinds:
                one.type_name = f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in MESSAGES
    }


class _Nodes:
    """Calls as they are drawn, with the paths to them."""

    def __init__(self, stacks: Stacks, found: pd.DataFrame) -> None:
        weights = group_sums(found["stack"].to_numpy(), found["weight"].to_numpy(), len(stacks))
        self._tree, self._stacks = merged(stacks, weights), stacks
        self._names = stacks.names()
        self._parent = self._tree.parent.tolist()

    def __len__(self) -> int:
        return len(self._tree)

    def of(self, found: pd.DataFrame) -> Ints:
        """Give the call of each sum."""
        nodes: Ints = self._tree.node[found["stack"].to_numpy()]
        return nodes

    def path(self, node: int) -> list[int]:
        """Give the calls from the outermost to this one."""
        return list(self._upwards(node))[::-1]

    def _upwards(self, node: int) -> Iterator[int]:
        while node >= 0:
            yield node
            node = self._parent[node]

    def frame(self, node: int) -> dict[str, Any]:
        """Give what speedscope calls a frame; the line is that of own code."""
        number = int(self._tree.frame[node])
        frames = self._stacks.frames
        found: dict[str, Any] = {"name": self._names[number]}
        file, origin = frames["file"].iloc[number], frames["origin"].iloc[number]
        if file or frames["module"].iloc[number]:
            found["file"] = file or frames["module"].iloc[number]
        if file and origin == "own" and self._tree.line[node] > 0:
            found["line"] = int(self._tree.line[node])
        return found


def _read(
    trace: Trace, by: list[str], wanted: dict[str, Any]
) -> tuple[Source, Stacks, Groups, pd.DataFrame]:
    """Sum up what is wanted, by some columns, by group and by stack."""
    chosen = chosen_of(trace, **wanted)
    source = source_of(trace)
    if source is None:
        raise TraceFileError(f"{trace.path} holds no call stacks: {why_none(trace)}.")
    groups = read_groups(trace)
    found = sums(trace, [*by, "stack"], source, chosen)
    if not len(found):
        raise TraceFileError(
            f"{trace.path} holds no call stacks of what was asked for: no sample was taken of it."
        )
    found["group"] = groups.of(found)
    return source, read_stacks(trace), groups, found


def _places(trace: Trace) -> list[tuple[str, str, str]]:
    """Name each row of ``processes``, with its node and alone, and its node; the last: unknown."""
    nodes, names = node_names(trace), process_names(trace)
    found = []
    for name, node in zip(names, trace.processes["node"].tolist(), strict=True):
        known = nodes[node] if 0 <= node < len(nodes) else ""
        found.append((f"{known} {name}".strip(), name, known or UNKNOWN))
    return [*found, (UNKNOWN, UNKNOWN, UNKNOWN)]
