"""Launch: which versions there are here, and which must be alike for head and workers."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from dasf_hpc.profile.identity import installed_version

#: Packages that a run needs.
PACKAGES = ("dasf-hpc", "dask", "distributed", "dask-jobqueue", "numpy", "nvtx")

Versions = Mapping[str, str | None]


def versions_here() -> dict[str, str | None]:
    """Give the versions of Python and of the packages that a run needs."""
    return {"python": platform.python_version()} | {p: installed_version(p) for p in PACKAGES}


def clash(here: Versions, there: Versions) -> str | None:
    """Name what has versions here and there that do not work together; None where all do.

    Functions travel as byte code, which a Python of another minor version does not read.
    """
    for package in ("dask", "distributed"):
        if here.get(package) != there.get(package):
            return package
    minor = [(versions.get("python") or "").split(".")[:2] for versions in (here, there)]
    return "python" if minor[0] != minor[1] else None
