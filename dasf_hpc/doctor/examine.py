"""Doctor: all checks, on the login node, in the image, and by a trial job on a compute node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from dasf_hpc.doctor.check import COMPUTE, IMAGE, LOGIN, Check, could_not_look, fail, ok, warn
from dasf_hpc.doctor.host import (
    HostRequest,
    ask_host,
    checks_of,
    host_checks,
    read_answers,
)
from dasf_hpc.doctor.trial import NAMES as TRIAL_NAMES
from dasf_hpc.doctor.trial import compare_versions, trial
from dasf_hpc.errors import (
    ProgramMissingError,
    RunDirectoryError,
    SettingsError,
    VersionsError,
)
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.image import PYTHON, START_TIMEOUT_S, Container, find_apptainer, open_image
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.messages import logging_to
from dasf_hpc.settings import Settings
from dasf_hpc.steps import Step, Told

#: A busy controller answers within this, or a run would wait too.
ANSWER_TIMEOUT_S = 15.0

#: Told what is being looked at.
Looking = Callable[[str], None]


def examine(settings: Settings, told: Told = lambda step: None) -> list[Check]:
    """Look at everything a run with these settings needs.

    Parameters
    ----------
    settings
        Those of a run.
    told
        Called with every step.
    """
    launcher_class, no_launcher = None, ""
    try:
        launcher_class = choose_launcher(settings)
    except ProgramMissingError as error:
        no_launcher = str(error)
    with logging_to(Path(os.devnull)):
        return _checks(
            launcher_class, no_launcher, settings, lambda what: told(Step(f"Looking at {what}"))
        )


def _checks(
    launcher_class: type[Launcher] | None, no_launcher: str, settings: Settings, looking: Looking
) -> list[Check]:
    looking("the login node")
    scheduler = batch_scheduler(launcher_class, no_launcher)
    checks = [scheduler]
    checks += host_checks(
        LOGIN,
        HostRequest(
            scratch=settings.local_directory if launcher_class and launcher_class.local else None,
            gpus=settings.gpus_per_node if launcher_class and launcher_class.local else 0,
            nsys=settings.nsys,
            nsys_path=settings.nsys_path,
        ),
    )
    container: Container | None = None
    if settings.image is None:
        checks.append(apptainer())
    else:
        looking("the image")
        in_image, container, settings = look_into_image(settings)
        checks += in_image
        if container is None:
            why = "the image cannot be used"
            return checks + [could_not_look(n, COMPUTE, why) for n in TRIAL_NAMES]
    looking("a compute node")
    if launcher_class is None or scheduler.status == "fail":
        return checks + [could_not_look(n, COMPUTE, scheduler.detail) for n in TRIAL_NAMES]
    try:
        checks += trial(launcher_class, settings, container)
    except RunDirectoryError as error:
        checks.append(fail("runs directory", LOGIN, str(error), "name another with --runs-dir"))
        return checks + [could_not_look(n, COMPUTE, str(error)) for n in TRIAL_NAMES]
    checks.insert(1, ok("runs directory", LOGIN, f"{settings.runs_dir.absolute()} is writable"))
    return checks


def batch_scheduler(launcher_class: type[Launcher] | None, no_launcher: str) -> Check:
    """Look whether the batch scheduler's programs are there and its server answers."""
    name = "batch scheduler"
    if launcher_class is None:
        return fail(name, LOGIN, no_launcher, "run this on a login node, or load its module")
    system = launcher_class.system
    if system is None:
        return ok(name, LOGIN, "none is needed on this machine (--on local)")
    question = system.question
    missing = [program for program in system.programs if shutil.which(program) is None]
    remedy = "load the batch scheduler's module, or mend PATH"
    if missing:
        return fail(name, LOGIN, f"not on PATH: {', '.join(missing)}", remedy)
    words = " ".join(question)
    try:
        done = subprocess.run(
            question,
            env=system.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        detail = f"{words} did not answer within {ANSWER_TIMEOUT_S:g} s"
        return fail(name, LOGIN, detail, "try again; if it stays, tell the site's operators")
    except OSError as error:
        return fail(name, LOGIN, f"{question[0]} cannot be run: {error.strerror}", remedy)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        detail = f"{words} ended with {done.returncode}: {said[0]}"
        return fail(name, LOGIN, detail, "is this a login node, and is its configuration there?")
    return ok(name, LOGIN, f"{launcher_class.submit_program} is there and the server answers")


def apptainer() -> Check:
    """Look for Apptainer, which only --image needs."""
    name = "apptainer"
    try:
        return ok(name, LOGIN, find_apptainer())
    except ProgramMissingError as error:
        return warn(name, LOGIN, str(error), "nothing, unless you want to use --image")


def look_into_image(settings: Settings) -> tuple[list[Check], Container | None, Settings]:
    """Open the image as a run does, and look around inside.

    Returns
    -------
    checks : list of Check
    container : Container or None
        None where the image cannot be used.
    settings : Settings
        With the nsys that is there inside.
    """
    try:
        checks = [ok("apptainer", LOGIN, find_apptainer())]
    except ProgramMissingError as error:
        return [fail("apptainer", LOGIN, str(error), "load its module")], None, settings
    try:
        container, settings = open_image(settings, Path.cwd())
    except VersionsError as error:
        remedy = "build the image from this environment: dasf-hpc image build"
        return [*checks, fail("versions", IMAGE, str(error), remedy)], None, settings
    except (SettingsError, ProgramMissingError) as error:
        remedy = "make one with dasf-hpc image build"
        return [*checks, fail("image", IMAGE, str(error), remedy)], None, settings
    assert container is not None
    checks.append(ok("image", IMAGE, f"{container.image} starts and has dasf-hpc"))
    with tempfile.TemporaryDirectory(prefix="dasf-hpc-doctor-") as folder:
        request = HostRequest(nsys=settings.nsys, nsys_path=settings.nsys_path)
        look = ask_host(Path(folder) / "doctor.json", IMAGE, request)
        python = settings.worker_python or PYTHON
        subprocess.run(
            [*container.with_binds([Path(folder)]).words(), python, *look],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        answers = read_answers(Path(folder))
    checks.append(compare_versions(IMAGE, [("it", answer["versions"]) for answer in answers]))
    for answer in answers:
        # What the kernel says is the same inside and outside.
        inside = ("scratch folder", "nsys", "gpu metrics", "nsys report", "nvtx range")
        checks += [check for check in checks_of(answer) if check.name in inside]
    return checks, container, settings


def as_json(checks: list[Check]) -> str:
    """Give the checks as the documented JSON."""
    entries = [
        {
            "name": check.name,
            "where": check.where,
            "status": str(check.status),
            "detail": check.detail,
            "remedy": check.remedy,
        }
        for check in checks
    ]
    return json.dumps({"checks": entries}, indent=1)
