"""What is true of the testbed's clocks, to grade an alignment against.

Every simulated host's ``CLOCK_MONOTONIC`` is ahead of the machine's by whole seconds, exactly, and
the scheduler reads the machine's: what a host's correction should be is known to the nanosecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dasf_hpc.trace.open import Trace

#: libfaketime would do it for any program, but Python 3.11's ``time.sleep`` fails under it (EINVAL
#: from clock_nanosleep), also where it is told not to touch CLOCK_MONOTONIC.
_SKEW = """
import socket
import time

_ahead = 7 * int("".join(filter(str.isdigit, socket.gethostname())) or 0)
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _ahead
time.time_ns = lambda: _time_ns() + _ahead * 10**9
"""


def skewed_wall_clocks(folder: Path) -> str:
    """Give the line of a batch script that has hosts' wall clocks 7 s, 14 s, 21 s ahead.

    It holds for what Python programs read; nsys reads the true one.
    """
    site = folder / "skew"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SKEW)
    return f"export PYTHONPATH={site}"


def task_errors(trace: Trace, ahead_s: Mapping[str, float]) -> pd.DataFrame:
    """Grade the corrected start of every task.

    Parameters
    ----------
    trace
        Of a run whose scheduler was on this machine.
    ahead_s
        By host: how far its ``CLOCK_MONOTONIC`` is ahead of this machine's, s.

    Returns
    -------
    pandas.DataFrame
        A row a task: ``start`` (trace time), ``host``, the true ``error`` of its start (signed),
        and the ``bound`` that its clock states; ns.
    """
    processes, clocks = trace.processes, trace.clocks
    hosts = trace.nodes["hostname"].astype(str).to_numpy()
    tasks = trace.table("tasks", columns=["start", "process"])
    start = tasks["start"].to_numpy()
    process = tasks["process"].to_numpy()
    rows = clocks.iloc[processes["clock"].to_numpy()[process]]
    host = hosts[processes["node"].to_numpy()[process]]
    # undo the correction, then do the true one
    reference = start + int(trace.attributes["origin_monotonic_ns"])
    since = reference - rows["offset"].to_numpy() - rows["origin"].to_numpy()
    drift = rows["drift"].to_numpy()
    local = rows["origin"].to_numpy() + np.rint(since / (1 + drift)).astype(np.int64)
    ahead = np.array([round(ahead_s[name] * 1e9) for name in host], np.int64)
    return pd.DataFrame(
        {
            "start": start,
            "host": host,
            "error": reference - (local - ahead),
            "bound": rows["bound"].to_numpy(),
        }
    )


def range_lags(trace: Trace) -> pd.DataFrame:
    """Compare each task's compute span with its own NVTX range in the report.

    Returns
    -------
    pandas.DataFrame
        A row a linked range: how much later it starts (``start``) and stops (``stop``) than the
        task, and how much longer it is (``duration``); ns.
    """
    ranges = trace.nvtx_ranges
    linked = ranges[(ranges["domain"] == "compute") & (ranges["task"] >= 0) & (ranges["stop"] >= 0)]
    tasks = trace.table("tasks", columns=["start", "stop"]).loc[linked["task"].to_numpy()]
    start = linked["start"].to_numpy() - tasks["start"].to_numpy()
    stop = linked["stop"].to_numpy() - tasks["stop"].to_numpy()
    return pd.DataFrame({"start": start, "stop": stop, "duration": stop - start})
