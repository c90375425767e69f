"""Recording: whether the nsys around this process hears it.

What nsys puts into a program asks nsys's table of sessions for a place to leave its records when
the program starts. Where the table has gone, because another nsys or a cleaning of ``/dev/shm``
took it, the program runs, nothing is said, and the report holds nothing of it. (A program whose
nsys is there and does not answer for 3 s ends with 1: "Failed to connect to Agent".)

Measured with nsys 2022.4.2, by removing the table: a process that is heard has its
``injection_PID_N_storage.dat`` mapped; one that is not has left an
``injection_PID_N_version.dat`` only. Of an nsys that has no such files nothing is said here.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Where nsys's environment says that its sessions' files are.
FOLDER_VARIABLE = "NSYS_AGENT_TMP_DIR"
#: Where nsys keeps its table, ``NSys-VERSION``.
TABLES = Path("/dev/shm")
INJECTED = "libToolsInjection64.so"
STORAGE = "_storage.dat"

UNHEARD = (
    "nsys's table of sessions was gone when this process started: no report holds what it did; "
    "another nsys on the node may have taken it, or a cleaning of /dev/shm"
)


def unheard() -> str:
    """Say that nsys is around this process and does not record it; empty if not, or not known."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return ""
    try:
        mapped = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return ""
    # An nsys that waits for a range gives no storage yet, and keeps its table.
    if INJECTED not in mapped or STORAGE in mapped or any(TABLES.glob("NSys-*")):
        return ""
    sessions = Path(folder) / "nvidia" / "nsight_systems"
    asked = f"quadd_session_*/injection_files/injection_{os.getpid()}_*_version.dat"
    return UNHEARD if any(sessions.glob(asked)) else ""
