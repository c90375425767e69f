"""Analysis: which of the reads from disk that Dask reports were some.

Dask reports as a read from disk whatever it took 5 ms or more to collect a task's input, also where
all of that was in memory and the worker's thread did not get Python's lock in the meantime. A
worker puts results on disk when these, or its process, are above shares of its memory limit
(``distributed.worker.memory.target``, 0.6, and ``.spill``, 0.7). One that stayed below half of it,
and of which no write is known, has read nothing back.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import pandas as pd

from dasf_hpc.analysis.executions import workers
from dasf_hpc.analysis.held import held
from dasf_hpc.trace.open import Trace

#: Share of its memory limit below which a worker puts nothing on disk.
NO_SPILL = 0.5

_FOUND: WeakKeyDictionary[Trace, frozenset[int]] = WeakKeyDictionary()


def without_false_reads(trace: Trace, activities: pd.DataFrame) -> pd.DataFrame:
    """Leave out reads from disk by workers that had nothing there.

    Parameters
    ----------
    activities
        Rows of table ``activities``, with ``process`` and ``action``.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    reads = (activities["action"] == "disk-read").to_numpy()
    if not reads.any():
        return activities
    if trace not in _FOUND:
        _FOUND[trace] = frozenset(_nothing_on_disk(trace))
    return activities[~(reads & activities["process"].isin(_FOUND[trace]).to_numpy())]


def _nothing_on_disk(trace: Trace) -> set[int]:
    """Give the workers that put nothing on disk; of those of which too little is known, none."""
    found = workers(trace)
    below = {  # what the memory of GPUs had no room for is read back, too
        row: NO_SPILL * limit
        for row, limit, gpus in zip(
            found.index.tolist(), found["memory_limit"], found["gpus"], strict=True
        )
        if limit > 0 and not len(gpus)
    }
    for piece in trace.pieces("activities", ["process", "action"]):
        for row in piece["process"][piece["action"] == "disk-write"].unique().tolist():
            below.pop(row, None)
    sampled = set()
    for piece in trace.pieces("process_samples", ["process", "memory"]):
        for row, most in piece.groupby("process")["memory"].max().items():
            sampled.add(int(str(row)))
            if most >= below.get(int(str(row)), 0):
                below.pop(int(str(row)), None)
    left = set(below) & sampled
    if not left:
        return left
    whole = held(trace)
    return {row for row in left if whole.steps(whole.process == row).peak()[0] < below[row]}
