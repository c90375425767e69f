"""Launch: when a head that is a batch job itself is to end, before the batch scheduler ends it."""

from __future__ import annotations

import os
import time

from dasf_hpc.launch.deadline import STARTED_VARIABLE
from dasf_hpc.settings import walltime_seconds

#: The time limit of the head's batch job, counted from `STARTED_VARIABLE`; its script sets both.
HEAD_LIMIT_VARIABLE = "DASF_HPC_HEAD_LIMIT"

#: A guess at what the end of a run takes: nodes write their reports, and all is merged.
HEAD_MARGIN_S = 120.0


def head_margin_seconds(limit_s: float, asked_s: float | None) -> float:
    """Give the seconds before its time limit at which a head ends the run.

    They are 120, at most a quarter of the limit, and no fewer than the workers are given.

    Parameters
    ----------
    limit_s
        The head's, in seconds.
    asked_s
        What was asked for with ``--walltime-margin``, in seconds; ``None`` for the default.
    """
    return min(max(min(HEAD_MARGIN_S, limit_s / 4), asked_s or 0.0), limit_s - 1.0)


def seconds_to_end(asked_margin_s: float | None) -> float | None:
    """Give in how many seconds this head is to end; None where nothing limits it.

    The limit is taken out of the environment: what the run starts has one of its own, or none.

    Parameters
    ----------
    asked_margin_s
        What was asked for with ``--walltime-margin``, in seconds; ``None`` for the default.
    """
    limit = os.environ.pop(HEAD_LIMIT_VARIABLE, "")
    try:
        limit_s = walltime_seconds(limit)
    except ValueError:  # none is set, or it is UNLIMITED
        return None
    ran = max(0.0, time.time() - float(os.environ.get(STARTED_VARIABLE) or time.time()))
    return max(0.0, limit_s - head_margin_seconds(limit_s, asked_margin_s) - ran)
