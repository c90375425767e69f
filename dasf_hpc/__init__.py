"""Takes an ordinary Dask script to a GPU cluster and brings back where every second went.

What users import: the three plugins, `open_trace`, `record` and `submit`; each is loaded when it is
first asked for, so that a worker which only records does not load what reads.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dasf_hpc.block import RecordWarning, record
    from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
    from dasf_hpc.run import submit
    from dasf_hpc.trace.open import open_trace

__all__ = [
    "GPUAnnotationPlugin",
    "RecordWarning",
    "ResourceMonitor",
    "WorkerTaskPlugin",
    "open_trace",
    "record",
    "submit",
]

_HOME = {
    "GPUAnnotationPlugin": "dasf_hpc.profile.plugins",
    "RecordWarning": "dasf_hpc.block",
    "ResourceMonitor": "dasf_hpc.profile.plugins",
    "WorkerTaskPlugin": "dasf_hpc.profile.plugins",
    "open_trace": "dasf_hpc.trace.open",
    "record": "dasf_hpc.block",
    "submit": "dasf_hpc.run",
}

try:
    __version__ = version("dasf-hpc")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # What a module holds by itself is mostly ours: what users look for is named.
    return sorted([*__all__, "__version__", "__doc__"])


def load_ipython_extension(ipython: Any) -> None:
    """Add the cell magic ``%%record`` to IPython: ``%load_ext dasf_hpc``."""
    from dasf_hpc.magic import load

    load(ipython)
