"""What a check of a GPU machine leaves: one flat folder of few files, of a limited size.

The limits are those of places that carry results off a machine without a network.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20
#: Names of the two files that are always there; room is kept for them.
SUMMARY_TEXT, SUMMARY_JSON = "summary.txt", "summary.json"
SUMMARY_ROOM = MIB

OK, FAILED, COULD_NOT = "ok", "failed", "could not"

#: Exit codes.
ALL_OK, A_STEP_FAILED, USAGE, SOMETHING_COULD_NOT, WHEELS_MISSING = 0, 1, 2, 3, 4


@dataclass
class Step:
    """One step: how it ended, after how many seconds, and why.

    Attributes
    ----------
    state
        ``ok``, ``failed`` or ``could not``.
    reason
        A sentence; where it is ok what was seen.
    figures
        What was measured.
    """

    name: str
    state: str
    seconds: float
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Limits:
    """How much may come back, bytes and files; the summary included."""

    file: int = 16 * MIB
    total: int = 64 * MIB
    files: int = 8

    @classmethod
    def from_environment(cls) -> Limits:
        """Take ``MAX_FILE_MIB``, ``MAX_MIB`` and ``MAX_FILES`` where they are set."""
        given = os.environ
        return cls(
            int(float(given.get("MAX_FILE_MIB", 16)) * MIB),
            int(float(given.get("MAX_MIB", 64)) * MIB),
            int(given.get("MAX_FILES", 8)),
        )


class Results:
    """The folder of results. The summary is written anew after every step."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        self.began = time.time()

    def keep(self, path: Path, name: str) -> bool:
        """Copy a file into the folder under a name; leave it out, with a line, if it is too large.

        Gives whether it was kept.
        """
        size = path.stat().st_size
        problem = self._no_room(name, size)
        if problem:
            self.notes.append(f"left out: {name}, {size / MIB:.1f} MiB: {problem}")
        else:
            shutil.copyfile(path, self.folder / name)
        self.write()
        return not problem

    def keep_packed(self, path: Path, name: str, work: Path) -> bool:
        """Compress a file and keep that: a .qdstrm shrinks to a fraction."""
        packed = work / f"{name}.xz"
        with path.open("rb") as source, lzma.open(packed, "wb", preset=1) as target:
            shutil.copyfileobj(source, target, MIB)
        return self.keep(packed, packed.name)

    def pack(
        self,
        name: str,
        work: Path,
        folder: Path,
        wanted: Callable[[Path], bool] = lambda path: True,
    ) -> bool:
        """Pack a folder's files into one archive and keep that; gives whether it was kept."""
        archive = work / name
        with tarfile.open(archive, "w:gz") as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink() and wanted(path):
                    tar.add(path, str(path.relative_to(folder.parent)), recursive=False)
        return self.keep(archive, name)

    def _no_room(self, name: str, size: int) -> str:
        if size > self.limits.file:
            return f"more than {self.limits.file / MIB:g} MiB"
        others = [
            path.stat().st_size
            for path in self.folder.iterdir()
            if path.name not in (name, SUMMARY_TEXT, SUMMARY_JSON)
        ]
        if len(others) + 3 > self.limits.files:
            return f"there are {self.limits.files} files already"
        if sum(others) + size + SUMMARY_ROOM > self.limits.total:
            return f"it would make more than {self.limits.total / MIB:g} MiB"
        return ""

    @property
    def exit_code(self) -> int:
        """The worst of all steps, as an exit code."""
        states = {step.state for step in self.steps}
        if FAILED in states:
            return A_STEP_FAILED
        return SOMETHING_COULD_NOT if COULD_NOT in states else ALL_OK

    def write(self) -> None:
        """Write the summary, in plain text and as JSON."""
        document = {
            "began": self.began,
            "seconds": round(time.time() - self.began, 1),
            "exit_code": self.exit_code,
            "facts": self.facts,
            "steps": [asdict(step) for step in self.steps],
            "notes": self.notes,
        }
        for name, text in (
            (SUMMARY_JSON, json.dumps(document, indent=1)),
            (SUMMARY_TEXT, "\n".join(self.lines()) + "\n"),
        ):
            partial = self.folder / f".{name}"
            partial.write_text(text)
            partial.replace(self.folder / name)

    def lines(self) -> Sequence[str]:
        """Give the summary as lines of text."""
        width = max((len(step.name) for step in self.steps), default=0)
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [""] if lines else []
        lines += [
            f"{step.name:{width}}  {step.state:9}  {step.seconds:6.1f} s  {step.reason}".rstrip()
            for step in self.steps
        ]
        figures = [
            f"{step.name}: {name} {value}"
            for step in self.steps
            for name, value in step.figures.items()
        ]
        return [
            *lines,
            *([""] if figures else []),
            *figures,
            *([""] if self.notes else []),
            *self.notes,
        ]
