"""Launch: which launcher a run uses."""

from __future__ import annotations

import shutil

from dasf_hpc.errors import ProgramMissingError
from dasf_hpc.launch.allocation import AllocationLauncher, allocation_launcher
from dasf_hpc.launch.batch import batch_launcher
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.local import LocalLauncher
from dasf_hpc.settings import Settings
from dasf_hpc.systems import SYSTEMS

#: In the order in which ``--on auto`` looks for them; the local one is always there.
_ALL: tuple[type[Launcher], ...] = (
    *(batch_launcher(system) for system in SYSTEMS.values()),
    LocalLauncher,
    AllocationLauncher,
)
LAUNCHERS: dict[str, type[Launcher]] = {launcher.name: launcher for launcher in _ALL}


def choose_launcher(settings: Settings) -> type[Launcher]:
    """Choose where to run.

    Raises
    ------
    ProgramMissingError
        If a batch scheduler was asked for that this host cannot submit to.
    SettingsError
        If a batch job's own nodes were asked for, and this is none.
    """
    if settings.on == "auto":
        for candidate in LAUNCHERS.values():
            if candidate.submit_program is None or shutil.which(candidate.submit_program):
                return candidate
    launcher = allocation_launcher() if settings.on == "allocation" else LAUNCHERS[settings.on]
    program = launcher.submit_program
    if program is not None and not shutil.which(program):
        raise ProgramMissingError(
            f"--on {settings.on} needs {program}, which is not on PATH: run this on a login node, "
            "or use --on local."
        )
    return launcher
