"""Launch: variables of workers and script whose values stand in one file, and only while it lasts.

The file lies in the run's directory, for its owner alone. On a node a shell reads it right before
it becomes the worker: below nsys, for nsys keeps the environment that it is started with in its
reports (seen with 2022.4, which keeps none that is set below it).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import RunDirectoryError

#: In the run's directory.
ENVIRONMENT = "environment.sh"
#: What nsys and the shell need themselves, and is no secret.
_NEEDED = ("HOME", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


def write_environment(directory: Path, pairs: Sequence[str]) -> None:
    """Keep variables, ``NAME=VALUE``, for the nodes of a run; nothing is made where there are none.

    Raises
    ------
    RunDirectoryError
        If the run's directory cannot be written.
    """
    if not pairs:
        return
    lines = []
    for pair in pairs:
        name, _, value = pair.partition("=")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    path = directory / ENVIRONMENT
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(lines)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}.") from None


def read_environment(directory: Path) -> list[str] | None:
    """Give the variables that were kept for a run, ``NAME=VALUE``; None where there are none.

    Raises
    ------
    RunDirectoryError
        If they cannot be read.
    """
    path = directory / ENVIRONMENT
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}.") from None
    return shlex.split(text)[1::2]


def take_environment(directory: Path) -> dict[str, list[str]]:
    """Give, for the head of a detached run, the setting ``env`` that was kept, and delete the file.

    It is made again when the node jobs are submitted, so that an early end leaves none behind.
    """
    pairs = read_environment(directory)
    delete_environment(directory)
    return {} if pairs is None else {"env": pairs}


def delete_environment(directory: Path) -> None:
    """Delete what was kept for a run; nothing happens where nothing was."""
    (directory / ENVIRONMENT).unlink(missing_ok=True)


def hide_from_nsys(path: Path) -> None:
    """Take the variables of a file out of this process's environment, which nsys would inherit.

    Batch schedulers, too, hand on the environment of whoever submits.
    """
    for pair in read_environment(path.parent) or []:
        name = pair.partition("=")[0]
        if name not in _NEEDED:
            os.environ.pop(name, None)


def in_environment(path: Path, command: Sequence[str]) -> list[str]:
    """Give the words that run a command with the variables of a file, of which they hold none."""
    return ["/bin/sh", "-c", '. "$0" && exec "$@"', str(path), *command]
