"""Launch: what the user adds to the worker command, and whether that command takes it.

The worker command is distributed's or dask-cuda's, of whatever version the workers' Python has: it
is asked itself, before anything is queued (`worker_cli`).
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dasf_hpc.errors import ProgramMissingError, SettingsError
from dasf_hpc.launch import worker_cli
from dasf_hpc.launch.worker_command import why_not_together
from dasf_hpc.settings import UCX, Settings, from_jobqueue_yaml, with_jobqueue_yaml

#: The module of each worker command, and the package that it comes with.
DASK_WORKER = "distributed.cli.dask_worker"
CUDA_WORKER = "dask_cuda.cli"
_PACKAGES = {DASK_WORKER: "distributed", CUDA_WORKER: "dask-cuda"}

#: What only dask-cuda's workers have.
_CUDA_ONLY = ("rmm_pool_size", "device_memory_limit", "enable_nvlink", "enable_infiniband")

#: Loading Dask from a cold network disk takes seconds, starting an image some more.
ASK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class WorkerCommand:
    """What a worker command takes.

    Attributes
    ----------
    program
        What it is, with its version.
    takes
        How many words each option takes, by every name of it.
    many
        The names of those that may come more than once.
    no_protocol
        Why the protocol that was asked for is not there; None where it is.
    unread
        Why the options could not be read; None where they were.
    """

    program: str
    takes: Mapping[str, int]
    many: frozenset[str]
    no_protocol: str | None = None
    unread: str | None = None


def worker_module(settings: Settings) -> str:
    """Give the module of the worker command."""
    return CUDA_WORKER if settings.gpus_per_node else DASK_WORKER


def named_words(settings: Settings) -> list[str]:
    """Give the words that settings with a name of their own add to the worker command."""
    words = []
    if settings.resources is not None:
        words += ["--resources", settings.resources]
    for module in settings.preload:
        words += ["--preload", module]
    if settings.rmm_pool_size is not None:
        words += ["--rmm-pool-size", settings.rmm_pool_size]
    if settings.device_memory_limit is not None:
        words += ["--device-memory-limit", settings.device_memory_limit]
    for name, wanted in (
        ("nvlink", settings.enable_nvlink),
        ("infiniband", settings.enable_infiniband),
    ):
        if wanted is not None:
            words.append(f"--{'enable' if wanted else 'disable'}-{name}")
    return words


def check_together(settings: Settings) -> None:
    """Look whether what is asked of the workers fits together.

    Raises
    ------
    SettingsError
        If it does not.
    """
    if not settings.gpus_per_node:
        for name in _CUDA_ONLY:
            if getattr(settings, name) is not None:
                raise SettingsError(
                    f"Option --{name.replace('_', '-')} is for dask-cuda's workers, which a run "
                    "has with --gpus-per-node."
                )
    protocol = settings.protocol
    if protocol in UCX and settings.tls:
        raise SettingsError(
            f"Option --protocol is {protocol!r}, for which Dask has no TLS: with --no-tls it runs "
            "open, and then nothing but your network protects it, as whoever reaches a port of it, "
            "at any address of its hosts, can run code as you."
        )
    if why := why_not_together(settings.nsys_arg):
        raise SettingsError(f"Option --nsys-arg: {why}.")
    if protocol == "tls" and not settings.tls:
        raise SettingsError("Options --protocol tls and --no-tls contradict: leave one out.")
    if protocol == "tcp" and settings.tls:
        raise SettingsError(
            "Option --protocol is 'tcp', which has no TLS: leave it out, or switch TLS off with "
            "--no-tls."
        )


def open_note(settings: Settings) -> str | None:
    """Say who can get into a run without TLS; None with it."""
    if settings.tls:
        return None
    if settings.protocol in UCX:
        # UCX listens at 0.0.0.0 whatever --host and --interface say (ucxx 0.52, seen with ss).
        return (
            f"--protocol {settings.protocol} has no TLS: while the job runs, whoever reaches a "
            "port of scheduler or workers, at any address of their hosts, can run code as you; "
            "only the network protects it"
        )
    return "--no-tls: whoever reaches the scheduler's port while the job runs can run code as you"


def adds_to_workers(settings: Settings, system: str) -> bool:
    """Say whether anything is asked of the workers that they may not have."""
    taken = with_jobqueue_yaml(settings, system)
    return bool(named_words(taken) or taken.worker_arg or taken.protocol in UCX)


def check_worker_command(settings: Settings, system: str, python: Sequence[str]) -> str | None:
    """Look whether the worker command takes what is added to it.

    Parameters
    ----------
    settings
        Those of the run.
    system
        The batch scheduler's name, whose part of ``jobqueue.yaml`` counts.
    python
        The words that run the workers' Python, perhaps in an image.

    Returns
    -------
    str or None
        A sentence on what could not be checked.

    Raises
    ------
    SettingsError
        If it does not take a word.
    ProgramMissingError
        If the protocol is not there.
    """
    check_together(settings)
    taken = with_jobqueue_yaml(settings, system)
    protocol = settings.protocol if settings.protocol in UCX else ""
    named = named_words(taken)
    if not adds_to_workers(settings, system):
        return None
    if protocol and (why := worker_cli.without_protocol(protocol)):
        raise ProgramMissingError(_no_protocol(protocol, "on this host", why))
    command = ask_worker_command(tuple(python), worker_module(settings), protocol)
    if command.unread is not None:
        return f"the options of the workers were not checked: {command.unread}"
    if command.no_protocol is not None:
        where = f"for the workers' Python, {python[-1]}"
        raise ProgramMissingError(_no_protocol(protocol, where, command.no_protocol))
    source = "Option --worker-arg"
    if from_jobqueue_yaml("worker_arg", settings, taken):
        source = "In dask-jobqueue's configuration, worker-extra-args in jobqueue.yaml"
    check_named(named, command)
    left = check_words(taken.worker_arg, named, command, source)
    if left:
        return f"{', '.join(left)}: no option of {command.program}, and left to what is preloaded"
    return None


def _no_protocol(protocol: str, where: str, why: str) -> str:
    return (
        f"The protocol {protocol} cannot be used {where} ({why}): install distributed-ucxx-cu13 "
        "or -cu12, for head and workers."
    )


@functools.lru_cache
def ask_worker_command(python: tuple[str, ...], module: str, protocol: str) -> WorkerCommand:
    """Ask a worker command for its options, by the workers' Python.

    Parameters
    ----------
    python
        The words that run it.
    module
        The command's module.
    protocol
        A protocol to look for, too; empty for none.
    """
    package = _PACKAGES[module]

    def unread(why: str) -> WorkerCommand:
        return WorkerCommand(package, {}, frozenset(), unread=why)

    source = Path(worker_cli.__file__).read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [*python, "-c", source, module, package, protocol],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return unread(f"{python[-1]} did not answer within {ASK_TIMEOUT_S:g} s")
    except OSError as error:
        return unread(f"{python[-1]} cannot be run on this host ({error.strerror})")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        if found["options"] is None:
            return unread(f"{module} cannot be loaded by {found['python']} ({found['why']})")
        options = [(o["names"], int(o["takes"]), bool(o["many"])) for o in found["options"]]
        return WorkerCommand(
            f"{package} {found['version']}",
            {name: takes for names, takes, _ in options for name in names},
            frozenset(name for names, _, many in options if many for name in names),
            found["no_protocol"],
        )
    except (IndexError, ValueError, TypeError, KeyError):
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        return unread(f"{python[-1]} says {said[-1][:200]!r}")


def check_named(named: Sequence[str], command: WorkerCommand) -> None:
    """Look whether a worker command has the options that settings with names stand for.

    Raises
    ------
    SettingsError
        If not.
    """
    for word in named:
        if word.startswith("--") and word not in command.takes:
            flag = re.sub("^--disable-", "--no-enable-", word)
            raise SettingsError(f"Option {flag} cannot be used: {command.program} has no {word}.")


def check_words(
    words: Sequence[str], named: Sequence[str], command: WorkerCommand, source: str
) -> list[str]:
    """Look whether a worker command takes words.

    Parameters
    ----------
    words
        Those of the user.
    named
        Those before them.
    command
        What it takes.
    source
        Where the user's words stand, to begin a sentence with.

    Returns
    -------
    list of str
        Words that may belong to what is preloaded: they are looked at when a worker starts.

    Raises
    ------
    SettingsError
        If it does not take one of them.
    """
    left: list[str] = []
    preloads = "--preload" in named or any(re.match("--preload(=|$)", word) for word in words)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=") if word.startswith("--") else (word, "", "")
        takes = command.takes.get(name)
        if takes is None:
            if preloads:
                left.append(word)
                continue
            raise SettingsError(f"{source}: {_unknown(word, name, command)}.")
        if name in named and name not in command.many:
            raise SettingsError(f"{source}: {name} is set by option {name}, too; leave one out.")
        if takes == 0 and equals:
            raise SettingsError(
                f"{source}: {name} of {command.program} takes no value; write {name} alone."
            )
        missing = takes - bool(equals)
        values = rest[: max(0, missing)]
        if len(values) < missing or any(value.split("=")[0] in command.takes for value in values):
            raise SettingsError(
                f"{source}: {name} of {command.program} takes a value; write {name}=VALUE."
            )
        del rest[: len(values)]
    return left


def _unknown(word: str, name: str, command: WorkerCommand) -> str:
    if not word.startswith("-"):
        return f"{word!r} is no option of {command.program}, and none before it takes a value"
    near = difflib.get_close_matches(name, command.takes, 1)
    hint = f"; the nearest that it has is {near[0]}" if near else ""
    return f"{command.program} has no option {name}{hint}"
