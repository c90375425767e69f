"""Nsight, what memory a copy was between and why; and whose what nobody launched is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import Reason, grouped
from dasf_hpc.nsight.sqlite import NONE, quoted

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

Array = npt.NDArray[Any]

MEMORY_KINDS: Mapping[int, str] = {
    0: "pageable",
    1: "pinned",
    2: "device",
    3: "array",
    4: "managed",
    5: "device static",
    6: "managed static",
    7: "unknown",
}
"""nsys's ``ENUM_CUDA_MEM_KIND``, which no version has numbered otherwise."""

MIGRATION_CAUSES: Mapping[int, str] = {
    0: "unknown",
    1: "user",
    2: "coherence",
    3: "prefetch",
    4: "eviction",
    5: "access counters",
}
"""CUPTI's ``CUpti_ActivityUnifiedMemoryMigrationCause``."""

UNIFIED_KINDS = (11, 12, 13)
"""Kinds of copies that are migrations of unified memory."""

#: Numbers up to this one fit into their places in a packed column; larger ones are "not told".
_MOST_KIND, _MOST_DEVICE = 0xFE, 0xFFFE


def packed_columns(present: Collection[str]) -> dict[str, str]:
    """Give the SQL of columns ``memory`` and ``devices`` of copies.

    A column costs 0.1 s per million rows to read, so each of these two holds several: from bit 0
    the source, then the target (8 bits each, of devices 16), then the cause of a migration; each
    is the number and one, 0 where the report does not tell.

    Parameters
    ----------
    present
        Columns that the report's copies have.
    """

    def packed(most: int, *columns: str) -> str:
        terms = [
            f"(CASE WHEN {quoted(column)} BETWEEN 0 AND {most} THEN {quoted(column)} + 1 "
            f"ELSE 0 END << {place * most.bit_length()})"
            for place, column in enumerate(columns)
            if column in present
        ]
        return " + ".join(terms) or "0"

    return {
        "memory": packed(_MOST_KIND, "srcKind", "dstKind", "migrationCause"),
        "devices": packed(_MOST_DEVICE, "srcDeviceId", "dstDeviceId"),
    }


def unpack(placing: Placing, columns: dict[str, Any], added: dict[str, Any], pid: Array) -> None:
    """Put the packed columns of copies into the trace's terms, and migrations to their tasks.

    Parameters
    ----------
    placing
        The report.
    columns
        Of its copies, on the trace's clock; ``memory`` and ``devices`` give way to the trace's.
    added
        Their ``gpu``, ``task`` and ``reason``, which change for migrations: the driver moves
        unified memory by itself, so that no call launched it.
    pid
        The process of each.
    """
    packed, devices = columns.pop("memory"), columns.pop("devices")
    for place, (name, dictionary, names) in enumerate(
        (
            ("source", "memory_kinds", MEMORY_KINDS),
            ("target", "memory_kinds", MEMORY_KINDS),
            ("cause", "migration_causes", MIGRATION_CAUSES),
        )
    ):
        number = (packed >> 8 * place & 0xFF).astype(np.uint8)
        there = np.flatnonzero(np.bincount(number, minlength=1 << 8)[1:])
        code = np.full(1 << 8, NONE, np.int8)
        code[there + 1] = placing.kinds(dictionary, names, there)
        columns[name] = code[number]
    for place, name in enumerate(("source_gpu", "target_gpu")):
        number = (devices >> 16 * place & 0xFFFF) - 1
        gpu = np.full(len(number), NONE, np.int16)
        told = np.flatnonzero(number >= 0)
        if len(told):
            gpu[told] = placing.gpus(pid[told], number[told])
        columns[name] = gpu
    moved = np.flatnonzero(np.isin(columns["kind"], UNIFIED_KINDS) & (added["task"] == NONE))
    if len(moved):
        task, reason = TasksOnGpus(placing).at(added["gpu"][moved], columns["start"][moved])
        added["task"][moved] = task
        added["reason"][moved] = placing.reason_codes[reason]


class TasksOnGpus:
    """Which task's kernels alone ran on a GPU at a moment.

    Parameters
    ----------
    placing
        The report, whose kernels are placed.
    """

    def __init__(self, placing: Placing) -> None:
        self._on: dict[int, OnlyTask] = {}
        kernels = placing.rows.get("kernels")
        if kernels is None:
            return
        rows = kernels.read(("gpu", "start", "stop", "task"), 0, len(kernels.start))
        for gpu, own in grouped(rows["gpu"]):
            spans = (rows[name][own] for name in ("start", "stop", "task"))
            self._on[gpu] = OnlyTask.of(*spans)

    def at(self, gpu: Array, time: Array) -> tuple[Array, Array]:
        """Give the task at each moment, -1 for none, and a `Reason` each."""
        task = np.full(len(gpu), NONE, np.int32)
        for number, rows in grouped(gpu):
            if number in self._on:
                task[rows] = self._on[number].at(time[rows])
        return task, np.where(task == NONE, Reason.NO_KERNEL, Reason.BY_KERNELS).astype(np.int8)


@dataclass(frozen=True)
class OnlyTask:
    """Intervals of tasks on one GPU, of which that task is wanted that is alone at a moment.

    Attributes
    ----------
    starts, stops
        Sorted, each for itself.
    began, ended
        Sums, from none on, over those that began or ended first: how many, their tasks, and a hash
        of each task. All that run at a moment are of one task if the hash of the mean task, times
        how many they are, is the sum of their hashes (modulo 2^64).
    """

    starts: Array
    stops: Array
    began: tuple[Array, Array]
    ended: tuple[Array, Array]

    @classmethod
    def of(cls, start: Array, stop: Array, task: Array) -> OnlyTask:
        """Prepare intervals [start, stop), in any order; task -1: of none."""
        # none is a task of its own: it is not alone beside it
        stop = np.maximum(start, stop)

        def sums(order: Array) -> tuple[Array, Array]:
            tasks = task[order].astype(np.int64)
            return (
                np.concatenate([[0], np.cumsum(tasks)]),
                np.concatenate([np.zeros(1, np.uint64), np.cumsum(_hash(tasks), dtype=np.uint64)]),
            )

        by_start, by_stop = np.argsort(start, kind="stable"), np.argsort(stop, kind="stable")
        return cls(start[by_start], stop[by_stop], sums(by_start), sums(by_stop))

    def at(self, time: Array) -> Array:
        """Give the task of each moment, -1 where none or several ran."""
        began = np.searchsorted(self.starts, time, side="right")
        ended = np.searchsorted(self.stops, time, side="right")
        count = began - ended
        tasks = self.began[0][began] - self.ended[0][ended]
        hashes = self.began[1][began] - self.ended[1][ended]
        mean = tasks // np.maximum(count, 1)
        alone = (count > 0) & (_hash(mean) * count.astype(np.uint64) == hashes)
        return np.where(alone, mean, NONE).astype(np.int32)


def _hash(values: Array) -> Array:
    """Mix the bits of numbers: the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    mixed: Array = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
