"""Recording: what a process says of itself at the start of its journal, and the journal's name."""

from __future__ import annotations

import os
import platform
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dasf_hpc.profile.clock import clock_identity


def installed_version(package: str) -> str | None:
    """Give the version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def process_document(role: str, task_id_base: int = 0) -> dict[str, Any]:
    """Describe this process for the first document of its journal (no environment values)."""
    return {
        "role": role,
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "clock": clock_identity(),
        "start": time.monotonic_ns(),
        "task_id_base": task_id_base,
        "python": platform.python_version(),
        "dask": installed_version("dask"),
        "distributed": installed_version("distributed"),
        "nvtx": installed_version("nvtx"),
        "dasf_hpc": installed_version("dasf-hpc"),
    }


def journal_path(directory: Path, role: str) -> Path:
    """Name a new journal; the process's start keeps names apart when a pid comes again."""
    return directory / f"{role}-{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}.journal"
