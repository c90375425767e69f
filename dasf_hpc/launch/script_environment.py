"""Launch: sets a run's variables in the user's script, in its own process.

The text of this file lies as ``sitecustomize.py`` beside the values, and Python loads that at its
start, before the script. So it imports nothing of ours, and gives way to a ``sitecustomize`` that
the site has.
"""

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

#: Names the folder that holds the values.
FOLDER_VARIABLE = "DASF_HPC_ENVIRONMENT"
VALUES = "values.json"


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
        os.environ.update(json.loads(Path(folder, VALUES).read_text(encoding="utf-8")))
    this = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        sys.modules["sitecustomize"] = this


if __name__ == "sitecustomize":
    take_over()
