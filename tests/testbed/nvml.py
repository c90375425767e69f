"""A stand-in for NVIDIA's management library: what runs on GPU nodes, tried where there is no GPU.

The code under test loads it as it loads the real one, by its name. It computes nothing: CUDA's own
library is not there, so a worker of dask-cuda has no context and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"


def why_not_here() -> str | None:
    """Say what keeps the stand-in from being built, None where nothing does."""
    return None if shutil.which("cc") else "there is no C compiler (cc)"


def build(folder: Path) -> dict[str, str]:
    """Build it into a folder; gives the variables with which programs find it."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", folder / LIBRARY, SOURCE],
        check=True,
    )
    before = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{folder}{f':{before}' if before else ''}"}
