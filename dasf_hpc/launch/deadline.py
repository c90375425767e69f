"""Launch: when a node's workers are to end, told from its batch script to its workers.

Imports nothing that is slow to load: the node step, which runs in front of every node's workers,
needs it.
"""

from __future__ import annotations

import os
import time

#: Seconds of the epoch at which the batch script began; its first line sets it.
STARTED_VARIABLE = "DASF_HPC_STARTED"
#: CLOCK_MONOTONIC in seconds at which the node's workers are to end; the node step sets it.
DEADLINE_VARIABLE = "DASF_HPC_DEADLINE"
#: Seconds between that and the walltime.
MARGIN_VARIABLE = "DASF_HPC_MARGIN"

#: A guess at what a large report takes to be written.
DEFAULT_MARGIN_S = 60.0


def margin_seconds(walltime_s: float, asked_s: float | None) -> float:
    """Give the seconds before the walltime at which workers end: by default 60, at most a quarter.

    Parameters
    ----------
    walltime_s
        The node job's, in seconds.
    asked_s
        What was asked for with ``--walltime-margin``, in seconds; ``None`` for the default.
    """
    if asked_s is not None:
        return min(asked_s, walltime_s - 1.0)
    return min(DEFAULT_MARGIN_S, walltime_s / 4)


def set_deadline(walltime_s: float, margin_s: float) -> None:
    """Put the deadline into this process's environment, for the workers it becomes."""
    started = float(os.environ.get(STARTED_VARIABLE) or time.time())
    ran = max(0.0, time.time() - started)
    os.environ[DEADLINE_VARIABLE] = repr(time.monotonic() + walltime_s - margin_s - ran)
    os.environ[MARGIN_VARIABLE] = repr(margin_s)
