"""Launch: variables of workers and script whose values stand in one file, while the run lasts.

nsys keeps in its reports the environment and the words with which every process of the user that
it finds on the host was started (seen with 2022.4). So no process of a run is started with these
variables: each worker process, and the user's script, sets them itself, as its first act. What
those start inherits them as usual, except the run's own recorders, and the ``uname`` that Dask has
Python ask for the processor: that is asked before. And ``dasf-hpc`` itself, where it was started
with the values, starts again without.

A worker loads this module (``--preload``), the script's Python what `script_environment` holds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.launch import script_environment
from dasf_hpc.launch.script_environment import FOLDER_VARIABLE as FOLDER_VARIABLE
from dasf_hpc.launch.script_environment import VALUES
from dasf_hpc.profile.link import HIDDEN_VARIABLE

#: Names the open file that holds the values for a program that starts itself again.
_HANDED = "DASF_HPC_HANDED"
#: The settings' own variable holds values, too.
_SETTING = "DASF_HPC_ENV"

#: In the run's directory.
ENVIRONMENT = "environment"


def write_environment(directory: Path, pairs: Sequence[str]) -> None:
    """Keep variables, ``NAME=VALUE``, for the processes of a run, for their owner alone.

    Beside them lies what sets them in the script's process.

    Raises
    ------
    RunDirectoryError
        If the run's directory cannot be written.
    """
    delete_environment(directory)
    folder = directory / ENVIRONMENT
    values = json.dumps(dict(pair.split("=", 1) for pair in pairs))
    hook = Path(script_environment.__file__).read_text(encoding="utf-8")
    try:
        folder.mkdir(mode=0o700)
        for name, text in ((VALUES, values), ("sitecustomize.py", hook)):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise RunDirectoryError(f"{folder} cannot be written: {error.strerror}.") from None


def take_environment(directory: Path) -> dict[str, list[str]]:
    """Give, for the head of a detached run, the setting ``env`` that was kept, and delete it there.

    It is kept again when the node jobs are submitted, so that an early end leaves nothing.

    Raises
    ------
    RunDirectoryError
        If it cannot be read.
    """
    path = directory / ENVIRONMENT / VALUES
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise RunDirectoryError(f"The variables of the run cannot be read from {path}.") from None
    delete_environment(directory)
    return {"env": [f"{name}={value}" for name, value in values.items()]} if values else {}


def delete_environment(directory: Path) -> None:
    """Delete what was kept for a run; nothing happens where nothing was."""
    shutil.rmtree(directory / ENVIRONMENT, ignore_errors=True)


@contextlib.contextmanager
def withheld(pairs: Sequence[str]) -> Iterator[None]:
    """Take variables out of this process's environment: batch schedulers would hand them on."""
    names = [_SETTING, *(pair.partition("=")[0] for pair in pairs)]
    kept = {name: os.environ.pop(name) for name in dict.fromkeys(names) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def start_again_without(pairs: Sequence[str], typed: Sequence[str]) -> None:
    """Become this program anew, started with neither these variables nor their values.

    The process stays the same one. It gets the variables by `handed_over`.

    Parameters
    ----------
    pairs
        The variables, ``NAME=VALUE``.
    typed
        Those words of the command line that hold some.
    """
    handed = os.memfd_create("dasf-hpc", 0)
    os.write(handed, json.dumps(list(pairs)).encode())
    os.set_inheritable(handed, True)
    left, words = list(typed), []
    for word in sys.orig_argv:
        value = word.removeprefix("--env=")
        if value in left:  # the first of them: what follows may be the script's own words
            left.remove(value)
            word = word.removesuffix(value) + value.partition("=")[0]
        words.append(word)
    with withheld(pairs):
        os.execve(sys.executable, words, {**os.environ, _HANDED: str(handed)})


def handed_over() -> list[str] | None:
    """Give the variables, ``NAME=VALUE``, that this program handed to itself; None for none."""
    number = os.environ.pop(_HANDED, None)
    if number is None:
        return None
    with os.fdopen(int(number), "rb") as file:
        file.seek(0)
        pairs: list[str] = json.loads(file.read())
    return pairs


def set_variables() -> None:
    """Set the variables of the run that this worker process belongs to."""
    path = Path(os.environ[FOLDER_VARIABLE]) / VALUES
    values = json.loads(path.read_text(encoding="utf-8"))
    if values:
        platform.processor()  # starts a process, and is kept
    os.environ.update(values)
    os.environ[HIDDEN_VARIABLE] = ",".join(values)


def dask_setup(worker: Any) -> None:
    """Set the variables where that was not done yet: Dask calls this in every worker process."""
    set_variables()


# A nanny's process loads this, too, and starts the worker's, which loads it before anything else.
if multiprocessing.parent_process() is not None and FOLDER_VARIABLE in os.environ:
    set_variables()
