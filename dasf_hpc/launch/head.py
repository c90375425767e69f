"""Launch: the head of a run as a batch job, from the templates in ``slurm/`` and ``pbs/``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.launch.head_end import HEAD_ENDED, HEAD_VARIABLE
from dasf_hpc.launch.head_limit import HEAD_LIMIT_VARIABLE
from dasf_hpc.launch.node import users_umask
from dasf_hpc.launch.quoting import shell_word
from dasf_hpc.settings import Settings, walltime_seconds, with_jobqueue_yaml
from dasf_hpc.shipped import shipped
from dasf_hpc.systems import SYSTEMS
from dasf_hpc.systems.base import head_name
from dasf_hpc.systems.request import hours_minutes_seconds

#: The line of a template after which a site's own lines stand.
_SITE = "# Site: lines such as 'module load cuda'.\n"
#: What the head says, in the run's logs.
HEAD_LOG = "head.log"


def filled_template(system: str, kind: str, settings: Settings) -> str:
    """Give a template with a site's directives, prologue and the path of this dasf-hpc.

    Raises
    ------
    SettingsError
        If there is no such template.
    """
    known = SYSTEMS.get(system)
    if known is None:
        raise SettingsError(f"There are templates for {' and '.join(SYSTEMS)}, not for {system!r}.")
    if kind not in known.templates:
        raise SettingsError(
            f"There is no template {kind!r} for {system}; there are: {', '.join(known.templates)}."
        )
    settings = with_jobqueue_yaml(settings, system)
    text = (shipped(system) / known.templates[kind]).read_text(encoding="utf-8")
    limit = settings.walltime if kind == "allocation" else settings.head_walltime
    seconds = walltime_seconds(limit or settings.walltime)
    directives = [known.walltime_directive.format(known.walltime_text(seconds))]
    if settings.partition:
        directives.append(known.queue_directive.format(settings.partition))
    if settings.account:
        directives.append(known.account_directive.format(settings.account))
    lines = "".join(map(known.directive_line, (*directives, *settings.directive)))
    time = re.escape(f"{known.mark} {known.walltime_directive.format('')}")
    text = re.sub(rf"^{time}.*\n", lambda _: lines, text, flags=re.MULTILINE)
    # Where the batch system does not answer a job's question for its limit.
    clock = hours_minutes_seconds(seconds)
    text = re.sub(rf"({HEAD_LIMIT_VARIABLE}:=)[\d:]+", rf"\g<1>{clock}", text)
    text = text.replace(_SITE, _SITE + "".join(f"{line}\n" for line in settings.prologue))
    program = Path(sys.executable).with_name("dasf-hpc")
    if program.is_file():
        text = text.replace("${DASF_HPC:-dasf-hpc}", f"${{DASF_HPC:-{program}}}")
    return text


def head_script(system: str, settings: Settings, directory: Path, words: Sequence[str]) -> str:
    """Give the batch script of a run's head.

    Parameters
    ----------
    system
        slurm or pbs.
    settings
        Those of the run.
    directory
        The run's directory.
    words
        Of ``dasf-hpc submit``.
    """
    known = SYSTEMS[system]
    text = filled_template(system, "head", settings)
    named = known.directive_line(known.name_directive.format("dasf-head"))
    assert named in text, f"the head of {system} has no name"
    own = known.directive_line(known.name_directive.format(head_name(directory.name)))
    directives, _, begin = text[: text.index(_SITE)].replace(named, own).partition("\n\n")
    # A template says where its output goes, for it knows no run; this script knows one.
    begin = re.sub(r"^#.*\n.*\bexec >>.*\n\n", "", begin, flags=re.MULTILINE)
    log = directory / "logs" / HEAD_LOG
    commands = [
        f"cd -- {shell_word(str(Path.cwd()))} || exit 1",
        f"umask {users_umask():04o}",
        *settings.prologue,
        f"export {HEAD_VARIABLE}=$$:{shell_word(str(log.with_name(HEAD_ENDED)))}",
        f"exec {shlex.join([sys.executable, '-m', 'dasf_hpc.cli', 'submit', *words])}",
    ]
    return (
        f"{directives}\n\n# At once, where a batch scheduler copies it when the job has ended.\n"
        f"exec >>{shell_word(str(log))} 2>&1\n\n{begin}" + "\n".join(commands) + "\n"
    )


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
