"""Images: prints the definition of one, and builds one with Apptainer.

The definitions are made by ``containers/recipe.py``, which needs hpccm. What it makes is kept
beside it, so that printing one needs nothing and building one Apptainer only.
"""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import ImageError, ProgramMissingError, SettingsError
from dasf_hpc.launch.image import find_apptainer, last_line
from dasf_hpc.manifest import git_revision
from dasf_hpc.shipped import checkout, shipped

VARIANTS = ("cpu", "cuda12", "cuda13")
FORMATS = ("apptainer", "docker")

#: How the kept definitions of a format are named.
KEPT = {"apptainer": "{}.def", "docker": "{}.Dockerfile"}


def image_recipe(container_format: str, variant: str) -> str:
    """Give the text of an image's definition: made by the recipe, or, without hpccm, as it is kept.

    Raises
    ------
    SettingsError
        If the format or the variant is not known.
    ProgramMissingError
        If hpccm is not installed and the kept definition is gone.
    """
    for option, value, known in (
        ("--format", container_format, FORMATS),
        ("--variant", variant, VARIANTS),
    ):
        if value not in known:
            raise SettingsError(f"Option {option} is {value!r}: it is one of {', '.join(known)}.")
    folder = shipped("containers")
    text: str
    if importlib.util.find_spec("hpccm") is not None:
        text = runpy.run_path(str(folder / "recipe.py"))["recipe"](container_format, variant)
        return text
    kept = folder / KEPT[container_format].format(variant)
    text = kept.read_text() if kept.is_file() else ""
    if not text:  # as it is where a shell has opened it for this output
        raise ProgramMissingError(
            f"{kept} is not there or empty, and making it needs hpccm: "
            "pip install 'dasf-hpc[image]'."
        )
    return text


def build_image(
    variant: str,
    target: Path,
    sandbox: bool = False,
    fakeroot: bool = False,
    build_args: Sequence[str] = (),
    binds: Sequence[str] = (),
) -> Path:
    """Build an image with Apptainer from this checkout; what Apptainer says is shown as it comes.

    Parameters
    ----------
    variant
        One of `VARIANTS`.
    target
        The file, or the folder of a sandbox, to make.
    sandbox, fakeroot
        Apptainer's options of these names.
    build_args
        ``NAME=VALUE`` for the definition's arguments.
    binds
        ``SOURCE:DESTINATION`` of what the build needs to see, such as a site's certificates.

    Raises
    ------
    SettingsError
        If the variant is not known, or there is no checkout to build from.
    ProgramMissingError
        If there is no Apptainer.
    ImageError
        If it cannot build the image.
    """
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise SettingsError(f"Option --variant is {variant!r}: it is one of {known}.")
    source = checkout()
    if source is None:
        raise SettingsError(
            "An image is built from a checkout: clone the repository and pip install -e '.' it."
        )
    command = [find_apptainer(), "build"]
    command += ["--sandbox"] * sandbox + ["--fakeroot"] * fakeroot
    given = [f"revision={git_revision(source) or 'unknown'}", *build_args]
    command += [word for value in given for word in ("--build-arg", value)]
    command += [word for bind in binds for word in ("--bind", bind)]
    command += [str(target.absolute()), str(source / "containers" / f"{variant}.def")]
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=source,  # the definitions name what they copy from there
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said = [*said[-50:], line]
    if process.returncode != 0:
        fatal = [line for line in said if "FATAL" in line] or said
        raise ImageError(f"The image {target} could not be built: {last_line(''.join(fatal))}.")
    return target
