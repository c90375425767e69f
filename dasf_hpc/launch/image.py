"""Launch: an Apptainer image in which workers and the user's script run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dasf_hpc.errors import ProgramMissingError, SettingsError, VersionsError
from dasf_hpc.launch.environment import clash, versions_here
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.settings import Settings

#: The Python of an image unless --worker-python names another.
PYTHON = "python3"

#: A first start unpacks or mounts the image, which takes seconds on a cold network disk.
START_TIMEOUT_S = 120.0


def find_apptainer() -> str:
    """Give the path of Apptainer.

    Raises
    ------
    ProgramMissingError
        If there is none, or it does not run.
    """
    path = shutil.which("apptainer")
    if path is None:
        raise ProgramMissingError(
            "Images need apptainer, which is not on PATH: load its module, or install it."
        )
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramMissingError(f"{path} cannot be run: {error}.") from None
    if done.returncode != 0:
        raise ProgramMissingError(f"{path} does not work: {last_line(done.stderr + done.stdout)}.")
    return path


@dataclass(frozen=True)
class Inside:
    """What an image holds of use here.

    Attributes
    ----------
    versions
        As `versions_here` gives them there.
    nsys
        Whether it has an nsys that can profile.
    """

    versions: dict[str, str | None]
    nsys: bool


@dataclass(frozen=True)
class Container:
    """How to run commands inside an image.

    Attributes
    ----------
    image
        The image, a file or a sandbox folder.
    binds
        Folders that are the same inside as outside.
    working_directory
        Where commands start, inside.
    gpus
        Whether the NVIDIA driver and its libraries are bound in.
    """

    image: Path
    binds: tuple[Path, ...]
    working_directory: Path
    gpus: bool = False

    def words(self) -> list[str]:
        """Give the words in front of a command.

        Packages in the user's home do not come before the image's own.
        """
        words = ["apptainer", "exec", "--env", "PYTHONNOUSERSITE=1"]
        words += ["--pwd", str(self.working_directory)]
        for path in dict.fromkeys((self.working_directory, *self.binds)):
            words += ["--mount", f'type=bind,"source={path}","destination={path}"']
        if self.gpus:
            words.append("--nv")
        return [*words, str(self.image)]

    def with_binds(self, more: Iterable[Path]) -> Container:
        """Give the same with more folders bound."""
        return Container(self.image, (*self.binds, *more), self.working_directory, self.gpus)


def check_image(image: Path) -> Path:
    """Give the image's absolute path.

    Raises
    ------
    SettingsError
        If there is no such image.
    """
    if not image.exists():
        raise SettingsError(
            f"Option --image is {str(image)!r}: there is no such file; dasf-hpc image build makes "
            "one."
        )
    return image.absolute()


def look_inside(container: Container, python: str = PYTHON) -> Inside:
    """Run this module inside the image.

    Raises
    ------
    ProgramMissingError
        If that does not work: no Apptainer, no Python or no dasf-hpc in it.
    """
    find_apptainer()
    command = [*container.words(), python, "-m", "dasf_hpc.launch.image"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProgramMissingError(
            f"The image {container.image} did not start within {START_TIMEOUT_S:g} s."
        ) from None
    if done.returncode != 0:
        raise ProgramMissingError(
            f"The image {container.image} cannot be used: {python} -m dasf_hpc in it says: "
            f"{last_line(done.stderr)}; it must hold dasf-hpc (dasf-hpc image build)."
        )
    try:
        return Inside(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        raise ProgramMissingError(
            f"The image {container.image} cannot be used: {python} -m dasf_hpc.launch.image in it "
            f"answers {last_line(done.stdout)!r}; its dasf-hpc may be of another version."
        ) from None


def check_versions(container: Container, inside: Inside) -> None:
    """Compare what is in the image with what is here.

    Raises
    ------
    VersionsError
        If they do not work together.
    """
    here = versions_here()
    package = clash(here, inside.versions)
    if package is not None:
        raise VersionsError(
            f"The image {container.image} has {package} {inside.versions.get(package)}, this host "
            f"{here[package]}: build the image from this environment (dasf-hpc image build), or "
            "run dasf-hpc from the image's."
        )


def host_nsys(nsys_path: str | None) -> tuple[Path, tuple[Path, ...]] | None:
    """Give this host's nsys and the folders that an image needs of it; None where there is none.

    The links on the way to the program are followed: inside, only what is bound is there. A script
    that starts an nsys elsewhere, as CUDA's toolkit has, cannot be bound.
    """
    nsys = find_nsys(nsys_path)
    if not nsys.profiles or nsys.path is None:
        return None
    program = Path(os.path.realpath(nsys.path))
    with program.open("rb") as file:
        if file.read(2) == b"#!":
            return None
    folders = [program.parent.parent]
    if nsys.importer is not None:
        folders.append(Path(os.path.realpath(nsys.importer)).parent.parent)
    return program, tuple(dict.fromkeys(folders))


def open_image(settings: Settings, script_folder: Path) -> tuple[Container | None, Settings]:
    """Look into the image, and choose its nsys, or this host's where --nsys-path says so.

    Returns
    -------
    container : Container or None
        Without the run's directory, which is not there yet.
    settings : Settings
        With the nsys that is there inside.

    Raises
    ------
    DasfHpcError
        If the image cannot be used, or what is in it does not work with what is here.
    """
    if settings.image is None:
        return None, settings
    binds = [script_folder]
    if settings.local_directory:
        binds.append(Path(settings.local_directory))
    container = Container(
        check_image(settings.image), tuple(binds), Path.cwd(), settings.gpus_per_node > 0
    )
    inside = look_inside(container, settings.worker_python or PYTHON)
    check_versions(container, inside)
    if settings.nsys is False or (inside.nsys and settings.nsys_path is None):
        return container, settings
    found = host_nsys(settings.nsys_path)
    if found is None:
        if settings.nsys:
            raise ProgramMissingError(
                "--nsys was asked for, and neither the image nor this host has an nsys that can "
                "be used in it: name this host's real nsys with --nsys-path."
            )
        return container, settings
    program, folders = found
    return container.with_binds(folders), settings.model_copy(update={"nsys_path": str(program)})


def last_line(text: str) -> str:
    """Give the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else "nothing"


def main() -> None:
    """Say what is here, inside an image."""
    print(json.dumps(asdict(Inside(versions_here(), find_nsys().profiles))))


if __name__ == "__main__":
    main()
