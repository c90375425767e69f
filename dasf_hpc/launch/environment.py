"""Launch: which versions there are here, and which must be alike for head and workers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from dasf_hpc.errors import VersionsError
from dasf_hpc.launch.connection import ask
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


def check_workers(cluster: Any) -> None:
    """Compare the versions of a cluster's workers with ours.

    Raises
    ------
    VersionsError
        If they do not work together.
    WorkersError
        If the scheduler cannot be asked.
    """
    found = ask(cluster, lambda client: client.get_versions(check=False))
    here = _versions_said(found["scheduler"])
    for address, said in found["workers"].items():
        there = _versions_said(said)
        package = clash(here, there)
        if package is not None:
            raise VersionsError(
                f"The worker {address} has {package} {there.get(package)}, this host "
                f"{here.get(package)}: use one environment for both (--worker-python names the "
                "workers' Python)."
            )


def _versions_said(found: Mapping[str, Any]) -> dict[str, str | None]:
    """Give the versions in what Dask says of a process (``Client.get_versions``)."""
    return {"python": found["host"]["python"], **found["packages"]}
