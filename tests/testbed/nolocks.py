"""A file system without POSIX locks, for the programs that are started with a variable set."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nolocks.c")


def why_not_here() -> str | None:
    """Say what keeps it from being built, None where nothing does."""
    return None if shutil.which("cc") else "there is no C compiler (cc)"


def build(folder: Path) -> Path:
    """Build the library into a folder; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "nolocks.so"
    words = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run([*words, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def variables(library: Path, below: Path | None = None) -> dict[str, str]:
    """Give the variables with which a program can lock no file below a folder, or none at all."""
    where = {} if below is None else {"NO_LOCKS_BELOW": str(below)}
    return {"LD_PRELOAD": str(library), **where}
