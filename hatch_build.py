"""Builds the compiled part of the recording with the compiler that the machine has."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCE = Path("dasf_hpc/profile/_recorder.c")
PRODUCT = SOURCE.with_suffix(".abi3.so")

#: The stable ABI of the oldest Python that is supported: one binary for it and all after it.
PYTHON_TAG = "cp311-abi3"

HOW = (
    "dasf-hpc has a small part in C and no wheel of it was found for this machine. Building it "
    "takes a C compiler and Python's headers: apt-get install gcc libc6-dev python3-dev, dnf "
    "install gcc python3-devel, module load gcc, or conda install c-compiler"
)


class CompiledRecorder(BuildHookInterface[Any]):
    """Compiles ``_recorder.c``, in the source tree for an editable installation as for a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the product packed.

        Raises
        ------
        SystemExit
            If there is no compiler, none that works, or no header of Python's; with what to do.
        """
        root = Path(self.root)
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise SystemExit(
                "dasf-hpc does not run on a free-threaded Python yet: install it with a Python "
                "that has the GIL"
            )
        product = root / PRODUCT
        # beside it and then moved: a program that runs has the one before loaded
        made = product.with_suffix(f".{os.getpid()}")
        command = [*compiler(), "-o", str(made), str(root / SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{HOW}.\n{shlex.join(command)}\n{done.stderr}")
            made.chmod(0o755)
            made.replace(product)
        finally:
            made.unlink(missing_ok=True)
        build_data["pure_python"] = False
        build_data["tag"] = f"{PYTHON_TAG}-{next(iter(platform_tags()))}"
        build_data["artifacts"].append(f"/{PRODUCT}")

    def clean(self, versions: list[str]) -> None:
        """Remove the product."""
        Path(self.root, PRODUCT).unlink(missing_ok=True)


def compiler() -> list[str]:
    """Give the command that makes a shared library of a C file: ``CC`` and ``CFLAGS`` count.

    Raises
    ------
    SystemExit
        If there is no compiler.
    """
    # what Python was built with may be called otherwise where it runs
    chosen = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    programs = [shlex.split(chosen), ["cc"], ["gcc"], ["clang"]]
    found = next((words for words in programs if words and shutil.which(words[0])), None)
    if found is None:
        raise SystemExit(
            f"{HOW}. There is no compiler: {chosen}, cc, gcc and clang were looked for."
        )
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("include", "platinclude"))
    return [
        *found, "-O2", "-g0", "-std=c11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-Wl,-s",
        *(f"-I{folder}" for folder in folders), *flags,
    ]  # fmt: skip
