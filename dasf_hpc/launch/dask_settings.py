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
