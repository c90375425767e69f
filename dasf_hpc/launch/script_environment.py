"""Launch: what is done in the process of a user's script before the script.

Sets the run's variables, and has `script_clusters` loaded when the script imports distributed.

The text of this file lies as ``sitecustomize.py`` beside the values, and Python loads that at its
start. So it imports nothing of ours at once, and gives way to a ``sitecustomize`` of the site's.
"""

import contextlib
import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

#: Names the folder that holds the values.
FOLDER_VARIABLE = "DASF_HPC_ENVIRONMENT"
VALUES = "values.json"

#: What the script's process is told of its run: the scheduler's address (Dask's own variable), the
#: run's directory, how many workers were asked for, and the settings ``own_cluster``, ``stacks``.
ADDRESS_VARIABLE = "DASK_SCHEDULER_ADDRESS"
RUN_VARIABLE = "DASF_HPC_RUN"
WORKERS_VARIABLE = "DASF_HPC_RUN_WORKERS"
OWN_CLUSTER_VARIABLE = "DASF_HPC_RUN_OWN_CLUSTER"
STACKS_VARIABLE = "DASF_HPC_RUN_STACKS"
#: For programs that want a scheduler file: its path.
SCHEDULER_FILE_VARIABLE = "DASF_HPC_SCHEDULER_FILE"


def take_over() -> None:
    """Set the variables, and have everything else as if this had not been here."""
    folder = os.environ[FOLDER_VARIABLE]
    sys.path[:] = [path for path in sys.path if path != folder]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in paths if path != folder]
    if any(paths):
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        os.environ.pop("PYTHONPATH", None)
    with contextlib.suppress(OSError):
        values = json.loads(Path(folder, VALUES).read_text(encoding="utf-8"))
        if values:  # Dask has a process started for this, which is to be done without them
            importlib.import_module("platform").processor()
        os.environ.update(values)
    with contextlib.suppress(ImportError):  # an image of before
        when_imported = importlib.import_module("wrapt").register_post_import_hook
        when_imported(functools.partial(bring, "install"), "distributed")
        when_imported(functools.partial(bring, "adopt_batch_clusters"), "dask_jobqueue.core")
    this = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        sys.modules["sitecustomize"] = this


def bring(what: str, module: Any) -> None:
    """Have what the script asks of a module that is now imported come to the run."""
    try:
        getattr(importlib.import_module("dasf_hpc.launch.script_clusters"), what)(module)
    except Exception as error:  # whatever it is, the script must not fail for it
        said = f"{type(error).__name__}: {error}"
        print(f"dasf-hpc: clusters of the script's own are not the run's: {said}", file=sys.stderr)


if __name__ == "sitecustomize":
    take_over()
