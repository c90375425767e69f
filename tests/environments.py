"""Python environments in which what dasf-hpc stands on has other versions than in the tests' own.

``oldest`` has every package that pyproject.toml names at the lowest version that it allows,
``dask-cuda`` the newest dask-cuda and the Dask that this pins. The newest of all is what README's
command installs, which runs the other tests. In each dasf-hpc is installed as a user installs it,
with what its tests need. By hand::

    python tests/environments.py oldest /tmp/oldest && /tmp/oldest/bin/pytest tests/test_plugins.py
"""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: What is installed in each environment, and whether at the lowest versions.
EXTRAS = {"oldest": ("test", True), "dask-cuda": ("gpu,test", False)}

#: A resolution of some 80 packages and their downloads; measured: 40 s to 6 minutes.
INSTALL_TIMEOUT_S = 1200


def lowest_versions() -> dict[str, str]:
    """Read the lowest version of every package that pyproject.toml names.

    Raises
    ------
    ValueError
        If one has no lowest version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lowest = {}
    for text in [
        *project["dependencies"],
        *(t for e in ("graph", "image", "notebook", "test") for t in extras[e]),
    ]:
        found = re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?(?:>=([\w.]+))?(,<[\w.]+)?", text)
        if found is None or (found[1] != "dasf-hpc" and found[2] is None):
            raise ValueError(f"pyproject.toml: {text!r} has no lowest version")
        if found[2]:
            lowest[found[1]] = found[2]
    return lowest


def make_environment(name: str, folder: Path) -> Path:
    """Make an environment and give its Python.

    Parameters
    ----------
    name
        One of `EXTRAS`.
    folder
        Where to make it.

    Raises
    ------
    RuntimeError
        If pip finds no set of packages, or cannot install one; with its last words.
    """
    extras, lowest = EXTRAS[name]
    words = ["-m", "pip", "install", "--quiet", "--prefer-binary", f"{ROOT}[{extras}]"]
    subprocess.run([sys.executable, "-m", "venv", folder], stdin=subprocess.DEVNULL, check=True)
    if lowest:
        constraints = folder / "lowest.txt"
        lines = [f"{package}=={version}" for package, version in lowest_versions().items()]
        constraints.write_text("\n".join(lines) + "\n")
        words += ["--constraint", str(constraints)]
    done = subprocess.run(
        [folder / "bin" / "python", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: pip ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return folder / "bin" / "python"


def python_of(name: str, folder: Path) -> Path:
    """Give the Python of an environment that all processes which test share.

    Parameters
    ----------
    name
        One of `EXTRAS`.
    folder
        Where environments are, one for all processes.
    """
    folder.mkdir(exist_ok=True)
    python = folder / name / "bin" / "python"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / f"{name}.made").exists():
            make_environment(name, folder / name)
            (folder / f"{name}.made").touch()
    return python


if __name__ == "__main__":
    print(make_environment(sys.argv[1], Path(sys.argv[2])))
