"""Launch: the head of a run as a batch job, from the templates in ``slurm/`` and ``pbs/``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.launch.node import users_umask
from dasf_hpc.settings import Settings, walltime_seconds, with_jobqueue_yaml
from dasf_hpc.shipped import shipped
from dasf_hpc.systems import SYSTEMS
from dasf_hpc.systems.base import head_name

TEMPLATES = {
    "slurm": {
        "head": "dasf-hpc.sbatch",
        "allocation": "allocation.sbatch",
        "array": "array.sbatch",
    },
    "pbs": {"head": "dasf-hpc.pbs", "allocation": "allocation.pbs", "array": "array.pbs"},
}
#: The line of a template after which a site's own lines stand.
_SITE = "# Site: lines such as 'module load cuda'.\n"


def filled_template(system: str, kind: str, settings: Settings) -> str:
    """Give a template with a site's directives, prologue and the path of this dasf-hpc.

    Raises
    ------
    SettingsError
        If there is no such template.
    """
    known = TEMPLATES.get(system)
    if known is None:
        raise SettingsError(f"There are templates for slurm and pbs, not for {system!r}.")
    if kind not in known:
        raise SettingsError(
            f"There is no template {kind!r} for {system}; there are: {', '.join(known)}."
        )
    settings = with_jobqueue_yaml(settings, system)
    text = (shipped(system) / known[kind]).read_text(encoding="utf-8")
    limit = settings.walltime if kind == "allocation" else settings.head_walltime
    seconds = walltime_seconds(limit or settings.walltime)
    walltime = f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
    if system == "slurm":
        mark, queue = "#SBATCH ", "--partition="
        account, time = "--account=", f"#SBATCH --time={walltime}\n"
    else:
        mark, queue = "#PBS ", "-q "
        account, time = "-A ", f"#PBS -l walltime={walltime}\n"
    directives = [f"{queue}{settings.partition}"] if settings.partition else []
    directives += [f"{account}{settings.account}"] if settings.account else []
    lines = time + "".join(f"{mark}{line}\n" for line in (*directives, *settings.directive))
    text = re.sub(r"^#\w+ (--time|-l walltime)=.*\n", lambda _: lines, text, flags=re.MULTILINE)
    text = text.replace("B:INT@120", f"B:INT@{min(120, seconds // 4)}")
    text = text.replace(_SITE, _SITE + "".join(f"{line}\n" for line in settings.prologue))
    program = Path(sys.executable).with_name("dasf-hpc")
    if program.is_file():
        text = text.replace("${DASF_HPC:-dasf-hpc}", f"${{DASF_HPC:-{program}}}")
    return text


def head_script(system: str, settings: Settings, run: str, words: Sequence[str]) -> str:
    """Give the batch script of a run's head.

    Parameters
    ----------
    system
        slurm or pbs.
    settings
        Those of the run.
    run
        The run's name.
    words
        Of ``dasf-hpc submit``.
    """
    text = filled_template(system, "head", settings)
    text = re.sub(r"(--job-name=|#PBS -N )dasf-head", lambda m: m[1] + head_name(run), text)
    begin = text.index(_SITE)
    commands = [
        f"cd -- {shlex.quote(str(Path.cwd()))} || exit 1",
        f"umask {users_umask():04o}",
        *settings.prologue,
        f"exec {shlex.join([sys.executable, '-m', 'dasf_hpc.cli', 'submit', *words])}",
    ]
    return text[:begin] + "\n".join(commands) + "\n"


def submit_head(system: str, script: str, directory: Path, settings: Settings) -> str:
    """Submit the head of a run as a batch job; give its id.

    Parameters
    ----------
    system
        slurm or pbs.
    script
        What `head_script` gives.
    directory
        The run's directory.
    settings
        Those of the run.

    Raises
    ------
    BatchError
        If the job is refused.
    """
    path = directory / "scripts" / "head.sh"
    path.write_text(script, encoding="utf-8")
    # From where the batch scheduler then puts what the head says.
    name = head_name(directory.name)
    job_id = SYSTEMS[system].submit_script(path, directory / "logs", name, settings)
    return SYSTEMS[system].own_id(job_id, name)


def in_queue(system: str, job: str) -> bool | None:
    """Say whether the batch scheduler still holds a head's job; None where it does not answer."""
    try:
        found = SYSTEMS[system].ask([job])
    except BatchError:
        return None
    return any(status.state.in_queue for status in found.values())
