"""Which wheels an installation without a network lacks, all of them at once.

pip names the first one only, after it has unpacked what came before. This reads the requirements of
the project and of every wheel in the folder, as pip does, and lists what neither a wheel nor, where
wanted, an installed package gives.

    python -m gpu.wheels missing FOLDER [--installed FOLDER ...]
    python -m gpu.wheels have FILE          # what of a `pip freeze` the project can use
    python -m gpu.wheels drop FOLDER FILE   # takes away the wheels of what FILE names
    python -m gpu.wheels list FOLDER        # what is there, and how large it is

Run with `tests` on the path. It needs the pip that is in the folder, or any other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: The same CuPy for two major versions of CUDA: one is enough.
CUPY = ("cupy-cuda13x", "cupy-cuda12x")


def pip_of(folder: Path) -> Path | None:
    """Give a wheel of pip: of the folder, or the one that Python keeps for new environments."""
    wheels = sorted(folder.glob("pip-*.whl"))
    if not wheels:
        try:
            import ensurepip
        except ImportError:  # Debian's python3 without python3-venv
            return None
        wheels = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    return wheels[-1] if wheels else None


def packaging_of(folder: Path) -> Any:
    """Import the package packaging, wherever there is one: in pip's wheel, in pip, or by itself.

    Raises
    ------
    ImportError
        If there is none.
    """
    wheel = pip_of(folder)
    if wheel is not None:
        sys.path.insert(0, str(wheel))
    names = ("pip._vendor.packaging", "packaging")
    try:
        for name in names:
            with contextlib.suppress(ImportError):
                for part in ("requirements", "tags", "utils", "version"):
                    importlib.import_module(f"{name}.{part}")
                return importlib.import_module(name)
        raise ImportError("neither pip nor packaging can be imported")
    finally:
        if wheel is not None:
            sys.path.remove(str(wheel))


@dataclass(frozen=True)
class Candidate:
    """A version of a package that can be had, and what it needs."""

    version: Any
    requires: tuple[str, ...]


@dataclass
class Shelf:
    """The packages that can be had.

    Attributes
    ----------
    packages
        By name, each in all versions there are.
    unfit
        Wheels for another Python or system, by name.
    """

    packaging: Any
    packages: dict[str, list[Candidate]] = field(default_factory=dict)
    unfit: dict[str, list[str]] = field(default_factory=dict)

    def add_wheels(self, folder: Path) -> None:
        """Take in every wheel of a folder that this Python can install."""
        fit = frozenset(self.packaging.tags.sys_tags())
        for path in sorted(folder.glob("*.whl")):
            try:
                name, version, _, tags = self.packaging.utils.parse_wheel_filename(path.name)
            except self.packaging.utils.InvalidWheelFilename:
                continue
            if fit.isdisjoint(tags):
                self.unfit.setdefault(name, []).append(path.name)
            else:
                self._add(name, Candidate(version, wheel_requires(path)))

    def add_installed(self, folders: Sequence[str]) -> None:
        """Take in what is installed in some folders."""
        for found in importlib.metadata.distributions(path=list(folders)):
            name, version = found.metadata["Name"], found.version
            if name and version:
                parsed = self.packaging.version.parse(version)
                self._add(name, Candidate(parsed, tuple(found.requires or ())))

    def _add(self, name: str, candidate: Candidate) -> None:
        canonical = self.packaging.utils.canonicalize_name(name)
        self.packages.setdefault(canonical, []).append(candidate)

    def lacks(self, requirements: Iterable[tuple[str, str]]) -> list[str]:
        """Say what is missing for some requirements, each with the name of who needs it."""
        missing: dict[str, str] = {}
        seen: set[tuple[str, str]] = set()
        queue = [(text, who, frozenset[str]()) for text, who in requirements]
        while queue:
            text, who, extras = queue.pop()
            wanted = self.packaging.requirements.Requirement(text)
            if wanted.marker and not any(
                wanted.marker.evaluate({"extra": extra}) for extra in (extras or {""})
            ):
                continue
            name = self.packaging.utils.canonicalize_name(wanted.name)
            key = (name, f"{wanted.specifier}{sorted(wanted.extras)}")
            if key in seen:
                continue
            seen.add(key)
            fitting = [
                c
                for c in self.packages.get(name, ())
                if wanted.specifier.contains(c.version, prereleases=True)
            ]
            if not fitting:
                missing.setdefault(f"{name}{wanted.specifier}", f"needed by {who}{self._why(name)}")
                continue
            best = max(fitting, key=lambda candidate: candidate.version)
            queue += [(need, name, frozenset({"", *wanted.extras})) for need in best.requires]
        return [f"{what} ({why})" for what, why in sorted(missing.items())]

    def _why(self, name: str) -> str:
        others = [str(candidate.version) for candidate in self.packages.get(name, ())]
        if others:
            return f"; there is {', '.join(sorted(set(others)))}"
        if name in self.unfit:
            return f"; there is {', '.join(self.unfit[name])}, for another Python or system"
        return ""


def wheel_requires(path: Path) -> tuple[str, ...]:
    """Read what a wheel needs; a damaged wheel needs nothing, pip will say the rest."""
    try:
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            text = wheel.read(name).decode()
    except (OSError, ValueError, zipfile.BadZipFile):
        return ()
    return tuple(HeaderParser().parsestr(text).get_all("Requires-Dist") or ())


def project() -> dict[str, Any]:
    """Read the project's own description."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def project_requires(extras: Sequence[str]) -> list[str]:
    """Give the requirements of the project with extras; one extra may name others."""
    table = project()["project"]
    optional = table["optional-dependencies"]
    needs, left, done = list(table["dependencies"]), list(extras), set[str]()
    while left:
        extra = left.pop()
        if extra in done:
            continue
        done.add(extra)
        for need in optional[extra]:
            own = re.fullmatch(rf"{re.escape(table['name'])}\[([\w, -]+)\]", need)
            if own:
                left += [name.strip() for name in own[1].split(",")]
            else:
                needs.append(need)
    return needs


def missing_wheels(folder: Path, installed: Sequence[str] = ()) -> tuple[list[str], str]:
    """List what is missing, and name the CuPy that is there.

    Parameters
    ----------
    folder
        That of the wheels.
    installed
        Folders whose packages count, too.
    """
    packaging = packaging_of(folder)
    shelf = Shelf(packaging)
    shelf.add_wheels(folder)
    # pip builds the project in an environment of its own, which sees no installed package.
    missing = shelf.lacks((need, "the build") for need in project()["build-system"]["requires"])
    shelf.add_installed(installed)
    cupy = next((name for name in CUPY if shelf.packages.get(name)), "")
    needs = [(need, "dasf-hpc[gpu,test]") for need in project_requires(["gpu", "test"])]
    missing += shelf.lacks([*needs, *([(cupy, "the example")] if cupy else [])])
    if not cupy:
        unfit = [wheel for name in CUPY for wheel in shelf.unfit.get(name, ())]
        there = f"; there is {', '.join(unfit)}, for another Python or system" if unfit else ""
        missing.append(f"{' or '.join(CUPY)} (needed by the example{there})")
    return list(dict.fromkeys(missing)), cupy


def usable(freeze: str, folder: Path) -> tuple[list[str], list[str]]:
    """Sort the lines of a ``pip freeze``: those the project can use, and those it cannot.

    A package that the project wants in another version does not count as there.
    """
    packaging = packaging_of(folder)
    wanted: dict[str, list[Any]] = {}
    for text in project_requires(["gpu", "test"]):
        need = packaging.requirements.Requirement(text)
        wanted.setdefault(packaging.utils.canonicalize_name(need.name), []).append(need.specifier)
    good: list[str] = []
    bad: list[str] = []
    for line in freeze.splitlines():
        matched = re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:==\s*([\w.!+-]+)|\s*$)", line.strip())
        if not matched:
            continue
        name, version = packaging.utils.canonicalize_name(matched[1]), matched[2]
        fits = not version or all(
            s.contains(version, prereleases=True) for s in wanted.get(name, ())
        )
        (good if fits else bad).append(f"{name}=={version}" if version else name)
    return good, bad


def drop(folder: Path, names: str) -> None:
    """Take away the wheels of packages, named one a line, with a version or without."""
    utils = packaging_of(folder).utils
    gone = {utils.canonicalize_name(line.partition("==")[0]) for line in names.split()}
    for path in sorted(folder.glob("*.whl")):
        if utils.parse_wheel_filename(path.name)[0] in gone:
            path.unlink()


def listed(folder: Path) -> str:
    """Give the largest wheels, and how many there are of what size."""
    sizes = sorted(((p.stat().st_size / 2**20, p.name) for p in folder.glob("*.whl")), reverse=True)
    lines = [f"{size:7.1f} MiB  {name}" for size, name in sizes[:12]]
    total = sum(size for size, _ in sizes)
    return "\n".join([*lines, f"{total:7.1f} MiB  in all, {len(sizes)} wheels, in {folder}"])


def main() -> int:
    """Do what is asked for; exits with 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    asked = parser.add_subparsers(dest="asked", required=True)
    lacking = asked.add_parser("missing")
    lacking.add_argument("folder", type=Path)
    lacking.add_argument("--installed", nargs="*", default=[])
    asked.add_parser("have").add_argument("file", type=Path)
    dropping = asked.add_parser("drop")
    dropping.add_argument("folder", type=Path)
    dropping.add_argument("file", type=Path)
    asked.add_parser("list").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.asked == "missing":
        missing, _ = missing_wheels(given.folder, given.installed)
        print("\n".join(missing))
        return int(bool(missing))
    if given.asked == "drop":
        drop(given.folder, given.file.read_text())
        return 0
    if given.asked == "list":
        print(listed(given.folder))
        return 0
    good, bad = usable(given.file.read_text(), Path())
    print("\n".join(good))
    if bad:
        print(f"not usable, another version is wanted: {', '.join(bad)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
