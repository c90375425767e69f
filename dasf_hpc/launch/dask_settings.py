"""Launch: settings of Dask that a run depends on, whatever the user's own configuration says.

All others are the user's, from files and variables as always. What a run sets by options of the
worker command, or by arguments of Dask's classes, is not here: those prevail by themselves.
"""

from __future__ import annotations

from typing import Any

#: For the scheduler, while it is made: a run may wait in the queue, or its script do other things,
#: for longer than any time of idleness, and it is the script that says when it ends.
SCHEDULER: dict[str, Any] = {"distributed.scheduler.idle-timeout": None}

#: For the workers, as variables, which prevail over files: when a worker ends is the walltime's to
#: say, or the run's; one that ended of itself would be taken for lost.
WORKERS: dict[str, str] = {
    "DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION": "None",
    "DASK_DISTRIBUTED__WORKER__LIFETIME__RESTART": "False",
    "DASK_DISTRIBUTED__WORKER__LIFETIME__STAGGER": "0 seconds",
}

#: Settings of dask-jobqueue that `dasf_hpc.settings.with_jobqueue_yaml` takes over or that a run
#: has its own of: its job classes are not to read them again where a run gives nothing.
_JOBQUEUE = (
    "account",
    "cores",
    "death-timeout",
    "env-extra",
    "extra",
    "interface",
    "job-cpu",
    "job-extra",
    "job-extra-directives",
    "job-mem",
    "job-script-prologue",
    "local-directory",
    "log-directory",
    "mem",
    "memory",
    "ncpus",
    "processes",
    "project",
    "python",
    "queue",
    "resource-spec",
    "walltime",
    "worker-extra-args",
)


def jobqueue_settings(system: str) -> dict[str, Any]:
    """Give what dask-jobqueue's configuration is to say while a node job is made."""
    return {f"jobqueue.{system}.{name}": None for name in _JOBQUEUE}
