"""Recording: raw readings of a process's own clocks; nothing is corrected here."""

from __future__ import annotations

import socket
import time
from pathlib import Path

#: Name of the scheduler's handler that answers clock probes.
PROBE_HANDLER = "dasf_hpc_clock"


def clock_identity() -> str:
    """Name the CLOCK_MONOTONIC that this process reads.

    Processes with an equal name share the clock: they run on one boot of one host and in one time
    namespace (Linux's ``time_namespaces(7)`` may offset CLOCK_MONOTONIC).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "unknown-boot"
    try:
        namespace = str(Path("/proc/self/ns/time").readlink())
    except OSError:
        namespace = "time"
    return f"{socket.gethostname()}/{boot}/{namespace}"


def read_anchor(tries: int = 5) -> tuple[int, int, int]:
    """Read UTC between two readings of CLOCK_MONOTONIC, the narrowest of several tries.

    Returns
    -------
    tuple of int
        Monotonic before, UTC, monotonic after; ns.
    """
    best = (0, 0, 1 << 62)
    for _ in range(tries):
        before = time.monotonic_ns()
        utc = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best[2] - best[0]:
            best = (before, utc, after)
    return best


def wall_offset() -> int:
    """Give CLOCK_MONOTONIC minus UTC, ns, from two readings between which nothing came."""
    before, utc, after = read_anchor(3)
    return (before + after) // 2 - utc
