"""Nsight: nsys's table of sessions on a node, and how to get past one that a killed nsys left.

All nsys of one version on a host share a table in memory, ``/dev/shm/NSys-VERSION``, whoever runs
them. Where one is killed while it makes that table, the next ones wait for it to be finished: each
gives up after 10 s ("Agent launcher failed.") and leaves an agent process behind that waits for
ever and holds up the ones after it. Seen with nsys 2022.4.2 after a batch scheduler had killed a
job; only taking the table away helps. Those that have it open go on as if nothing had happened
(tried: their reports are whole), and the next nsys makes a new one.
"""

from __future__ import annotations

import contextlib
import pwd
import re
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

TABLES = Path("/dev/shm")
"""Where Linux keeps memory that has a name."""

LOCKS = Path("/tmp/nvidia/nsight_systems")
"""Where nsys keeps the locks in front of its tables."""

#: What the first word of Boost's managed shared memory says of a segment that is being made, and of
#: one whose making failed (boost/interprocess/detail/managed_open_or_create_impl.hpp).
INITIALIZING, CORRUPTED = 1, 3

#: Making the table takes less than a millisecond.
MAKING_TAKES_S = 1.0


def table_of(version: str) -> Path:
    """Give the table of sessions of the nsys of a version, such as ``2022.4.2.1``."""
    return TABLES / f"NSys-{version}"


def half_made(version: str) -> bool:
    """Say whether the table was left half made, by an nsys that is no more.

    Takes a second where the table is being made.
    """

    def state() -> tuple[int, int]:
        table = table_of(version)
        try:
            with table.open("rb") as stream:
                word = int.from_bytes(stream.read(4), "little")
            return table.stat().st_ino, word
        except OSError:
            return 0, 0

    first = state()
    if first[1] not in (INITIALIZING, CORRUPTED):
        return False
    time.sleep(MAKING_TAKES_S)
    return state() == first


def profiler_of(words: Sequence[str]) -> int | None:
    """Give the ``nsys profile`` that an agent belongs to, by the agent's command line."""
    if "--start-agent" not in words:
        return None
    for word in words:
        if match := re.fullmatch(r"--session-name=profile-.*-(\d+)", word, re.DOTALL):
            return int(match[1])
    return None


def left_agents(profiler: int | None) -> list[psutil.Process]:
    """Give the agents that wait for the table and whose ``nsys profile`` is no more.

    Parameters
    ----------
    profiler
        One that is known to have ended before it had started its program: its agent counts
        wherever it waits.
    """
    agents, locked = [], _in_line()
    for process in psutil.process_iter(["cmdline"]):
        owner = profiler_of(process.info["cmdline"] or ())
        if owner is None:
            continue
        if owner == profiler or (process.pid in locked and not psutil.pid_exists(owner)):
            agents.append(process)
    return agents


def _in_line() -> set[int]:
    """Give the processes that hold or wait for the lock in front of the tables."""
    inodes, processes = set(), set()
    for lock in LOCKS.glob("*SessionManager*"):
        with contextlib.suppress(OSError):
            inodes.add(str(lock.stat().st_ino))
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # As "1: -> POSIX  ADVISORY  WRITE 22055 fe:00:2205190 0 EOF" (proc_locks(5)).
            process, place = line.split()[-4:-2]
            if place.rpartition(":")[2] in inodes:
                processes.add(int(process))
    return processes


def make_way(version: str, profiler: int | None = None) -> str | None:
    """Take away what keeps nsys from starting on this host, if that is what is there.

    Parameters
    ----------
    version
        The version of the nsys that is to start, ``2022.4.2.1``.
    profiler
        The process id of one that ended before it had started its program.

    Returns
    -------
    str or None
        A sentence on what was done, or on who has to do it; ``None`` where nothing was found.
    """
    agents = left_agents(profiler)
    for agent in agents:
        with contextlib.suppress(psutil.Error):
            agent.terminate()
    _, stubborn = psutil.wait_procs(agents, timeout=2.0)
    for agent in stubborn:
        with contextlib.suppress(psutil.Error):
            agent.kill()
    if not agents and not half_made(version):
        return None
    table = table_of(version)
    try:
        owner = table.stat().st_uid
        table.unlink()
    except FileNotFoundError:
        return f"{len(agents)} agents of killed nsys kept others from starting: they were ended"
    except OSError:
        return (
            f"a killed nsys left {table} half made, so that none can start on this node: "
            f"{_name_of(owner)}, whose it is, or the site's operators can remove it"
        )
    return f"a killed nsys had left its table of sessions half made ({table}): it was removed"


def _name_of(user: int) -> str:
    """Give a user's name, or the number where it has none here."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
