"""Doctor: all checks, on the login node, in the image, and by a trial job on a compute node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable

from dasf_hpc.doctor.check import COMPUTE, LOGIN, Check, could_not_look, fail, ok
from dasf_hpc.doctor.host import HostRequest, host_checks
from dasf_hpc.doctor.trial import NAMES as TRIAL_NAMES
from dasf_hpc.doctor.trial import trial
from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.settings import Settings

#: What a launcher calls besides its submit program, and a harmless question to its server.
QUESTIONS = {
    "slurm": (("squeue", "scancel"), ["squeue", "-h", "--user", str(os.getuid())]),
    "pbs": (("qstat", "qdel"), ["qstat"]),
}
#: A busy controller answers within this, or a run would wait too.
ANSWER_TIMEOUT_S = 15.0

#: Told what is being looked at.
Looking = Callable[[str], None]


def examine(
    launcher_class: type[Launcher] | None,
    no_launcher: str,
    settings: Settings,
    looking: Looking = lambda what: None,
) -> list[Check]:
    """Look at everything a run needs.

    Parameters
    ----------
    launcher_class
        Where a run would go; None where that cannot be used.
    no_launcher
        Why not.
    settings
        Those of a run.
    looking
        Called with what is being looked at.
    """
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
    looking("a compute node")
    if launcher_class is None or scheduler.status == "fail":
        return checks + [could_not_look(n, COMPUTE, scheduler.detail) for n in TRIAL_NAMES]
    try:
        checks += trial(launcher_class, settings)
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
    if launcher_class.name not in QUESTIONS:
        return ok(name, LOGIN, "none is needed on this machine (--on local)")
    programs, question = QUESTIONS[launcher_class.name]
    missing = [program for program in programs if shutil.which(program) is None]
    remedy = "load the batch scheduler's module, or mend PATH"
    if missing:
        return fail(name, LOGIN, f"not on PATH: {', '.join(missing)}", remedy)
    words = " ".join(question)
    try:
        done = subprocess.run(
            question,
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
