"""Launch: what a killed node step leaves behind is ended.

A batch system that kills a job at once (``qdel -W force``) reaches the processes of the job's
session. nsys's agent and the worker have sessions of their own: the agent stays for an hour, and
the worker goes on for the run, outside of any job (seen with nsys 2022.4 and OpenPBS). This program
is started by the node step before nsys, in a session of its own, and waits at its standard input,
whose other end the node step alone has. It imports nothing that takes time or room.

Usage: python node_watch.py BEGUN, where the worker leaves its process id in the file BEGUN; on the
standard input come nsys's process id, a line each, and ``ok`` at an orderly end.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time

#: An nsys that is told to end writes its report: it is given that long.
REPORT_TAKES_S = 30.0
#: Whoever does not end within this after SIGTERM gets SIGKILL.
ENDING_TAKES_S = 10.0
ORDERLY = "ok"


def words_of(process: int) -> list[str]:
    """Give a process's command line; empty where there is no such process."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:  # noqa: PTH123 - pathlib takes time
            return file.read().decode(errors="replace").split("\0")
    except OSError:
        return []


def agents(profiler: int) -> list[int]:
    """Give the agents of an ``nsys profile``."""
    name = re.compile(rf"--session-name=profile-.*-{profiler}", re.DOTALL)
    return [
        process
        for process in map(int, filter(str.isdecimal, os.listdir("/proc")))  # noqa: PTH208
        if "--start-agent" in (words := words_of(process))
        and any(name.fullmatch(word) for word in words)
    ]


def worker_in(begun: str) -> int | None:
    """Give the process that the worker command is, if it runs: a later one may have its number."""
    try:
        with open(begun, encoding="ascii") as file:  # noqa: PTH123
            process = int(file.read())
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            started = int(file.read().rpartition(")")[2].split()[19])  # proc(5), field 22
        written = time.time() - os.stat(begun).st_mtime  # noqa: PTH116
    except (OSError, ValueError, IndexError):
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return process if age > written - 1.0 else None


def end(processes: list[int], seconds: float) -> None:
    """Tell processes to end, and kill those that have not after a time."""
    for what in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                os.kill(process, what)
            except OSError:
                continue
        deadline = time.monotonic() + seconds
        while any(map(words_of, processes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        processes = [process for process in processes if words_of(process)]


def main(words: list[str]) -> int:
    """Wait for an orderly end, and clear up after any other."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    profiler = None
    for line in sys.stdin:
        if line.strip() == ORDERLY:
            return 0
        profiler = int(line)
    if profiler is None:
        return 0
    if "profile" in words_of(profiler):
        os.kill(profiler, signal.SIGTERM)
        deadline = time.monotonic() + REPORT_TAKES_S
        while words_of(profiler) and time.monotonic() < deadline:
            time.sleep(0.1)
    worker = worker_in(words[0])
    end([worker] if worker is not None else [], ENDING_TAKES_S)
    end(agents(profiler), ENDING_TAKES_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
