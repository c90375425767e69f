"""Before a run: what would be submitted, and runs whose head is a batch job itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import DasfHpcError, RunDirectoryError, SettingsError
from dasf_hpc.launch.call_stacks import stack_sampling
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.credentials import credentials_in
from dasf_hpc.launch.gpu_metrics import OPTIONS, Sampling, sampling_words
from dasf_hpc.launch.head import head_script, submit_head
from dasf_hpc.launch.image import Container, open_image
from dasf_hpc.launch.job import find_job
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.shape import RunPlace, run_shape
from dasf_hpc.launch.worker_command import choose_nsys, nsys_command
from dasf_hpc.launch.worker_environment import delete_environment, withheld, write_environment
from dasf_hpc.launch.worker_options import (
    adds_to_workers,
    check_together,
    check_worker_command,
)
from dasf_hpc.manifest import Manifest, make_run_directory
from dasf_hpc.settings import Settings, settings_words
from dasf_hpc.systems import SYSTEMS


def dry_run(settings: Settings, job: str, arguments: Sequence[str], detached: bool = False) -> str:
    """Give the batch script of a node job, made but not submitted, and what a node makes of it.

    Of a detached run the head's script is given first. What is not known before a run stands in
    capitals: RUN, its name, and the scheduler's address.
    """
    launcher_class = choose_launcher(settings)
    if detached:
        require_batch(launcher_class)
    program = find_job(job)
    container, settings = open_image(settings, program.folder)
    place = run_place(settings.runs_dir.absolute() / "RUN", container, program.folder)
    unchecked = check_worker_command(
        settings, launcher_class.name, workers_python(container, settings)
    )
    security = credentials_in(place.directory / "tls") if settings.tls else None
    script = launcher_class(settings, place, security).job_script().rstrip()
    if detached:
        head = _detached_head(launcher_class, settings, job, arguments, place.directory)
        script = f"{head.rstrip()}\n\n{script}"
    if unchecked is not None:
        script += f"\n\n# Note: {unchecked}"
    if settings.nsys is False:
        return script
    sampling = None
    if settings.gpu_metrics:
        words = sampling_words(OPTIONS[0], "THOSE OF THE JOB", settings.gpu_metrics_frequency)
        sampling = Sampling(words)
    profile = nsys_command(
        settings.nsys_path or "nsys",
        choose_nsys(
            settings.nsys_arg,
            True,
            sampling,
            stack_sampling(settings.nsys_arg, True) if settings.stacks == "nsys" else None,
        ),
        str(place.directory / "nsight" / "HOST-JOBID"),
        ["WORKER COMMAND"],
    )
    return (
        f"{script}\n\n# A node that has nsys (and, for cuda, a GPU) runs the words after -- as:\n"
        f"# {shlex.join(profile)}"
    )


def run_place(directory: Path, container: Container | None, folder: Path) -> RunPlace:
    """Give the place of a script's run, its directory bound into the image.

    ``folder`` is where the script's modules lie.
    """
    if container is not None:
        container = container.with_binds([directory])
    return RunPlace(directory, directory.name, Path.cwd(), container, folder)


def workers_python(container: Container | None, settings: Settings) -> list[str]:
    """Give the words that run the workers' Python on this host, before there is a run."""
    return RunPlace(Path(), "", Path.cwd(), container).python_words(settings)


def detach(settings: Settings, job: str, arguments: Sequence[str] = ()) -> Path:
    """Have a batch job be the head of a run, and give the run's directory at once.

    Raises
    ------
    DasfHpcError
        What kept the run from being made; nothing is queued then.
    """
    launcher_class = choose_launcher(settings)
    require_batch(launcher_class)
    program = find_job(job)
    run_shape(settings, launcher_class.local)
    check_together(settings)
    unchecked = None
    if adds_to_workers(settings, launcher_class.name):
        container, inside = open_image(settings, program.folder)
        python = workers_python(container, inside)
        unchecked = check_worker_command(settings, launcher_class.name, python)
    directory = make_run_directory(settings, job)
    manifest = Manifest(directory)
    manifest.update(
        name=directory.name,
        state="queued",
        job=job,
        arguments=list(arguments),
        started=time.time(),
        on=launcher_class.name,
    )
    if unchecked is not None:
        manifest.note(unchecked)
    script = _detached_head(launcher_class, settings, job, arguments, directory)
    try:
        write_environment(directory, settings.env)
        with withheld(settings.env):
            head = submit_head(launcher_class.name, script, directory, settings)
    except (DasfHpcError, OSError) as error:
        delete_environment(directory)
        manifest.update(state="failed", ended=time.time(), error=str(error))
        if isinstance(error, OSError):
            raise RunDirectoryError(
                f"{directory} cannot be written: {error.strerror or error}."
            ) from None
        raise
    manifest.update(head_job=head)
    return directory


def require_batch(launcher_class: type[Launcher]) -> None:
    """Raise where no batch scheduler would run the head."""
    if launcher_class.system is None:
        systems = ", ".join(system.title for system in SYSTEMS.values())
        raise SettingsError(
            f"Option --detach needs a batch system ({systems}), and the run would be "
            f"{launcher_class.name}."
        )


def _detached_head(
    launcher_class: type[Launcher],
    settings: Settings,
    job: str,
    arguments: Sequence[str],
    directory: Path,
) -> str:
    """Give the batch script of a detached run's head."""
    settings = settings.model_copy(update={"on": launcher_class.name})
    words = ["--run-directory", str(directory), *settings_words(settings), "--", job, *arguments]
    return head_script(launcher_class.name, settings, directory, words)
