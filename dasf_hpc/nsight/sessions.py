"""Nsight: what all nsys of a host share, and how to get past what of it is in the way.

All nsys of one version on a host share a table in memory, ``/dev/shm/NSys-VERSION``, whoever runs
them. The lock in front of it lies below ``TMPDIR``, and where every batch job has a TMPDIR of its
own, two that start at once both make the table, which is never finished then; nor is it where one
is killed while making it. Whoever comes waits for it: nsys itself for ever, or, where only its
agent waits, for 10 s ("Agent launcher failed."), and the agent is left behind and holds up the ones
after it. Only taking the table away helps.

The last nsys of a table that ends takes all that lies below ``TMPDIR/nvidia`` for left behind, and
deletes it. Where that is another's, whose table is another one, that one's report holds nothing
that its processes recorded, no range and no call, without a word. So it is where a table was taken
away, and where two nsys see other tables and one TMPDIR, as in containers and namespaces. So our
own have a TMPDIR of their own (`own_place`). A process that starts when the table is gone is not
recorded either: one that is whole and in use is left alone.

All of this was seen with nsys 2022.4.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

TABLES = Path("/dev/shm")
"""Where Linux keeps memory that has a name."""

ENDED_AGENTS = "{} agents of ended nsys kept others from starting: they were ended"

#: What the first word of Boost's managed shared memory says of a segment that is being made, and of
#: one whose making failed (boost/interprocess/detail/managed_open_or_create_impl.hpp).
INITIALIZING, CORRUPTED = 1, 3

#: nsys makes sockets in its TMPDIR, whose paths hold 107 bytes (unix(7)): 21 of its own name them.
LONGEST_PLACE = 80

#: Making the table takes less than a millisecond.
MAKING_TAKES_S = 1.0

#: Nobody waits longer than this for the others who start nsys on this host: it takes half a second.
TURN_WAIT_S = 30.0


def table_of(version: str) -> Path:
    """Give the table of sessions of the nsys of a version, such as ``2022.4.2.1``."""
    return TABLES / f"NSys-{version}"


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Let one process of a user at a time start nsys on a host."""
    path = TABLES / f"dasf-hpc-nsys-{os.getuid()}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:  # it is no worse than without
        yield
        return
    try:
        deadline = time.monotonic() + TURN_WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, InterruptedError):
                time.sleep(0.02)
            except OSError:  # no locks here: as above
                break
            else:
                break
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def own_place() -> Iterator[Path | None]:
    """Make a folder for what an nsys keeps while it runs; None where none can be made.

    It is to be nsys's ``TMPDIR``, and lies below our own, where a report's parts have room.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="nsys-"))
    except OSError:
        yield None
        return
    try:
        yield folder if len(os.fsencode(folder)) <= LONGEST_PLACE else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def half_made(version: str) -> bool:
    """Say whether the table is half made, and nobody makes it any more.

    Takes a second where the table is being made.
    """
    first = _state(table_of(version))
    if first is None:
        return False
    time.sleep(MAKING_TAKES_S)
    return _state(table_of(version)) == first


def waits_for_ever(profiler: int) -> bool:
    """Say whether an ``nsys profile`` waits for a table that nobody will finish.

    Takes a second where it waits for one.
    """

    def waited_for() -> list[tuple[int, int]]:
        states = []
        with contextlib.suppress(OSError):
            for opened in Path(f"/proc/{profiler}/fd").iterdir():
                with contextlib.suppress(OSError):
                    # The table may have been taken away meanwhile, and is still read here.
                    if str(opened.readlink()).startswith(str(table_of(""))):
                        states.append(_state(opened))
        return [state for state in states if state is not None]

    first = waited_for()
    if not first:
        return False
    time.sleep(MAKING_TAKES_S)
    return waited_for() == first


def _state(table: Path) -> tuple[int, int] | None:
    """Give the file and the state of a table that is not whole, ``None`` of one that is."""
    try:
        with table.open("rb") as stream:
            word = int.from_bytes(stream.read(4), "little")
            number = os.fstat(stream.fileno()).st_ino
    except OSError:
        return None
    return (number, word) if word in (INITIALIZING, CORRUPTED) else None


def profiler_of(words: Sequence[str]) -> int | None:
    """Give the ``nsys profile`` that an agent belongs to, by the agent's command line."""
    if "--start-agent" not in words:
        return None
    for word in words:
        if match := re.fullmatch(r"--session-name=profile-.*-(\d+)", word, re.DOTALL):
            return int(match[1])
    return None


def agents_of(profiler: int) -> list[psutil.Process]:
    """Give the agents of an ``nsys profile``, which outlive it where its program does."""
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if profiler_of(p.info["cmdline"] or ()) == profiler]


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
        if owner is None or not _shares_tables(process.pid):
            continue
        if owner == profiler or (process.pid in locked and not psutil.pid_exists(owner)):
            agents.append(process)
    return agents


def _shares_tables(process: int) -> bool:
    """Say if a process sees the tables that this one sees: one in a container may have others."""
    try:
        return Path(f"/proc/{process}/root{TABLES}").stat().st_dev == TABLES.stat().st_dev
    except OSError:
        return False


def _in_line() -> set[int]:
    """Give the processes that hold or wait for a lock, as agents do for that of the table."""
    processes = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # As "1: -> POSIX  ADVISORY  WRITE 22055 fe:00:2205190 0 EOF" (proc_locks(5)).
            with contextlib.suppress(ValueError, IndexError):
                processes.add(int(line.split()[-4]))
    return processes


def _others() -> bool:
    """Say if an ``nsys profile`` is there, or its agent with a program that it profiles."""
    processes = psutil.process_iter(["cmdline"])
    return any(
        profiler_of(process.info["cmdline"] or ()) is not None and _shares_tables(process.pid)
        for process in processes
    )


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
    with turn():
        agents = left_agents(profiler)
        for agent in agents:
            with contextlib.suppress(psutil.Error):
                agent.terminate()
        _, stubborn = psutil.wait_procs(agents, timeout=2.0)
        for agent in stubborn:
            with contextlib.suppress(psutil.Error):
                agent.kill()
        if not half_made(version) and (profiler is None or _others()):
            return ENDED_AGENTS.format(len(agents)) if agents else None
        table = table_of(version)
        try:
            owner = table.stat().st_uid
            table.unlink()
        except FileNotFoundError:
            return ENDED_AGENTS.format(len(agents))
        except OSError:
            return (
                f"what another nsys left in {table} keeps nsys from starting on this node: "
                f"{_name_of(owner)}, whose it is, or the site's operators can remove it"
            )
    return f"what another nsys had left in {table} kept nsys from starting: it was removed"


def _name_of(user: int) -> str:
    """Give a user's name, or the number where it has none here."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
