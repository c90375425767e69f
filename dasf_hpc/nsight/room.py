"""Nsight: whether a node has the room that nsys needs to start, before it is started.

With less, nsys leaves no report, or ends what it should profile by a segmentation fault, and names
no cause (seen with 2022.4: TMPDIR missing, or of 1 to 16 MiB; /dev/shm of 1 MiB).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MIB = 1 << 20
#: With 32 MiB it started.
TEMPORARY = 64 * MIB
#: With 4 MiB it started.
SHARED = 8 * MIB
SHARED_FOLDER = Path("/dev/shm")


def no_room() -> str | None:
    """Say what of TMPDIR or of /dev/shm nsys could not work with; None for nothing."""
    temporary = os.environ.get("TMPDIR")
    name = f"TMPDIR, {temporary}," if temporary else "/tmp"
    return _lacks(Path(temporary or "/tmp"), name, TEMPORARY) or _lacks(
        SHARED_FOLDER, str(SHARED_FOLDER), SHARED
    )


def _lacks(folder: Path, name: str, needed: int) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        room = os.statvfs(folder)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return f"nsys cannot work here: {name} cannot be used ({why})"
    free = room.f_bavail * room.f_frsize
    if free < needed:
        return (
            f"nsys cannot work here: {name} has {free // MIB} MiB left, and nsys needs "
            f"{needed // MIB}"
        )
    return None
