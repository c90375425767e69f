"""Recording: what a Python function is called in a sample of calls, and whose code it is.

Nothing of the machine or of the run's data is in it: no folder but those within what is imported,
no value, no argument.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import parent_process
from pathlib import Path
from types import CodeType
from typing import NamedTuple

#: Longer names are cut, characters.
LONGEST = 300

#: What cloudpickle calls the file of code that it sent by value, such as a script's functions.
SENT = "<dynamic-code>"

#: Folders of installed packages, whatever lies above them.
_INSTALLED = ("site-packages", "dist-packages")

#: Code of Dask's between a thread's task and the function that the user gave: modules, and of
#: ``dask.utils`` these functions.
_MACHINERY = (
    "distributed.worker",
    "dask._task_spec",
    "dask.core",
    "dask.optimization",
    "dasf_hpc.profile.execution",
    "dasf_hpc.profile.actors",
)
_OF_UTILS = ("apply", "methodcaller.__call__")

#: Functions of ``distributed.worker``, of several versions, in which a thread runs a task; and ours
#: around them.
_RUNS_TASK = (
    "_run_task",
    "_run_task_simple",
    "_run_actor",
    "apply_function",
    "apply_function_simple",
    "apply_function_actor",
)
_OURS = {
    "dasf_hpc.profile.execution": ("run_task", "run_task_async"),
    "dasf_hpc.profile.actors": ("run_actor", "actor_execute"),
}

#: Innermost function of an event loop that waits: asyncio's own, or where the loop is no Python
#: what began it.
_WAITS = {
    "selectors": ("select",),
    "tornado.platform.asyncio": ("start",),
    "asyncio.runners": ("run", "run_until_complete"),
    "asyncio.base_events": ("run_forever", "run_until_complete"),
}


class Origin(StrEnum):
    """Whose code a function is."""

    OWN = "own"
    PACKAGE = "package"
    DASK = "dask"
    STANDARD = "standard library"
    DASF_HPC = "dasf-hpc"


class Frame(NamedTuple):
    """What a function is called: as in table ``stacks``, "" for what is not known."""

    function: str
    module: str
    file: str
    origin: str


@dataclass(frozen=True, slots=True)
class Part:
    """What of a thread's calls a function is.

    Attributes
    ----------
    runs_task, runs_coroutine
        Whether what it calls is a task of the thread, or of the event loop.
    machinery
        Whether it is Dask's, between that and the user's function.
    waits
        Whether an event loop waits of which it is the innermost.
    """

    runs_task: bool
    runs_coroutine: bool
    machinery: bool
    waits: bool


def script_name() -> str | None:
    """Give the name of the file that this process runs, None for a prompt or a notebook."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(path).name if isinstance(path, str) else None


def part_of(code: CodeType, module: str) -> Part:
    """Tell what of a thread's calls a function is."""
    name = code.co_name
    ours = name in _OURS.get(module, ())
    coroutine = ours and name in ("run_task_async", "actor_execute")
    qualified = _qualified(code)
    return Part(
        runs_task=(module == "distributed.worker" and name in _RUNS_TASK)
        or (ours and not coroutine),
        runs_coroutine=coroutine,
        machinery=module in _MACHINERY or (module == "dask.utils" and qualified in _OF_UTILS),
        waits=name in _WAITS.get(module, ()),
    )


def _qualified(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name))


class Namer:
    """Names functions, by where their files lie on this machine.

    Attributes
    ----------
    script
        Name of the file whose functions are sent by value, where it is known.
    """

    def __init__(self) -> None:
        self.script: str | None = None
        paths = sysconfig.get_paths()
        self._standard = _folders(paths.get(name) for name in ("stdlib", "platstdlib"))
        installed = [paths.get(name) for name in ("purelib", "platlib")]
        with suppress(Exception):  # a Python without a home, say
            installed += [*site.getsitepackages(), site.getusersitepackages()]
        self._installed = _folders(installed)
        self._imported: tuple[str, ...] = ()
        self._path: list[str] = []
        self._own = _folders([Path(__file__).parent.parent])
        self._dask = _folders(
            Path(file).parent
            for name in ("dask", "distributed")
            if (file := getattr(sys.modules.get(name), "__file__", None))
        )

        self.look_at_path()

    def look_at_path(self) -> None:
        """Read ``sys.path`` where it has changed; this asks the file system, `name` does not."""
        if self._path != sys.path:
            self._path = list(sys.path)
            self._imported = _folders(p for p in self._path if isinstance(p, str))

    def name(self, code: CodeType, module: object) -> Frame:
        """Name a function, given its code and what its module calls itself."""
        said = module.rpartition("/")[2] if isinstance(module, str) else ""
        path = code.co_filename
        return Frame(
            _text(_qualified(code)),
            _text(said),
            _text(self._file(path, said)),
            self._origin(path, said, code.co_name),
        )

    def _file(self, path: str, module: str) -> str:
        """Give a file's name relative to the folder from which it is imported."""
        if path == SENT and module:
            if module == "__main__":
                return self.script or path
            return module.replace(".", "/") + ".py"
        if path.startswith("<"):
            return path if "/" not in path else f"<{path.rpartition('/')[2]}"
        name = path.replace(os.sep, "/")
        if module and module != "__main__":
            for end in (
                module.replace(".", "/") + ".py",
                module.replace(".", "/") + "/__init__.py",
            ):
                if name == end or name.endswith(f"/{end}"):
                    return end
        if path.startswith(os.sep) and module != "__main__":
            folders = (*self._installed, *self._standard, *self._imported)
            above = max((f for f in folders if path.startswith(f)), key=len, default=None)
            if above is not None:
                return name[len(above) :]
        return name.rpartition("/")[2]

    def _origin(self, path: str, module: str, name: str) -> str:
        """Tell whose code a file holds."""
        if path.startswith("<"):
            # a process that another one started begins with a line of multiprocessing's
            begins = (path, module, name) == ("<string>", "__main__", "<module>")
            if path.startswith("<frozen") or (begins and parent_process() is not None):
                return Origin.STANDARD
            # what was made at run time is of whoever made it
            maker = sys.modules.get(module.partition(".")[0]) if module != "__main__" else None
            file = _file_of(maker)
            if file is None:
                builtin = module.partition(".")[0] in sys.stdlib_module_names
                return Origin.STANDARD if builtin else Origin.OWN
            path = file
        if path.startswith(self._own):
            return Origin.DASF_HPC
        if path.startswith(self._dask):
            return Origin.DASK
        if path.startswith(self._installed) or any(f"/{name}/" in path for name in _INSTALLED):
            return Origin.PACKAGE
        if path.startswith(self._standard):
            return Origin.STANDARD
        return Origin.OWN


def _file_of(module: object) -> str | None:
    """Give a module's file, and run nothing of its own: one that is lazy would be imported here."""
    try:
        file = object.__getattribute__(module, "__dict__").get("__file__")
    except Exception:  # anything may stand in `sys.modules`
        return None
    return file if isinstance(file, str) else None


def _folders(paths: Iterable[str | Path | None]) -> tuple[str, ...]:
    """Give folders as the beginnings of the paths in them: as they are named, and without links."""
    found = []
    for path in paths:
        if path and Path(path).is_absolute():
            for way in (Path(path), Path(path).resolve()):
                if way != way.parent:
                    found.append(f"{way}{os.sep}")
    return tuple(dict.fromkeys(found))


def _text(text: str) -> str:
    """Give a name as it is stored."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("\0", " ").replace("\x1f", " ")


#: Between the parts of a name in a journal.
_BETWEEN = "\x1f"


def packed(frame: Frame) -> str:
    """Give a name as one text."""
    return _BETWEEN.join(frame)


def unpacked(text: str) -> Frame:
    """Give the name that a text stands for; what is none is a function of that name."""
    parts = text.split(_BETWEEN)
    return Frame(*parts) if len(parts) == len(Frame._fields) else Frame(text, "", "", "")
