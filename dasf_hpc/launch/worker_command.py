"""Launch: the command line of a node's workers, put together from its parts.

A node job runs ``(image →) node step → nsys profile → Dask worker``. This module only composes
lists of words from plain values; `dasf_hpc.launch.node` runs on the node and calls it there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dasf_hpc.launch.call_stacks import StackSampling
from dasf_hpc.launch.gpu_metrics import OPTIONS, Sampling
from dasf_hpc.launch.quoting import nsys_output

#: What nsys traces by default, and what it does not do: sample and trace the CPU, which needs
#: privileges on most clusters and costs more than all the rest.
TRACES = ("cuda", "nvtx", "osrt")
NO_CPU = ("--sample=none", "--cpuctxsw=none")


@dataclass(frozen=True)
class NsysChoice:
    """What nsys is asked to do on a node, and what was left out of it and why.

    Attributes
    ----------
    arguments
        Words after ``nsys profile``, without the report's name.
    reductions
        A sentence for each thing left out, and for what was added because of the user's.
    """

    arguments: tuple[str, ...]
    reductions: tuple[str, ...]


def file_stem(name: str) -> str:
    """Make a file name of a run's, host's or job's name: what is not a word becomes ``_``."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def _sets(arguments: Sequence[str], long: str, short: str | None) -> bool:
    return any(
        a == long
        or a.startswith(long + "=")
        or (short is not None and (a == short or (a.startswith(short) and not a.startswith("--"))))
        for a in arguments
    )


def _value(arguments: Sequence[str], long: str, short: str | None) -> str | None:
    """Give what an option is set to, None where it is not; the last one counts."""
    value = None
    for place, word in enumerate(arguments):
        if word in (long, short):
            value = arguments[place + 1] if place + 1 < len(arguments) else ""
        elif word.startswith(long + "="):
            value = word.removeprefix(long + "=")
        elif short is not None and word.startswith(short) and not word.startswith("--"):
            value = word.removeprefix(short)
    return value


def records_in_part(extra: Sequence[str]) -> str | None:
    """Give the argument by which nsys records a part of its worker's time only, None for none.

    By all of them but ``--delay`` nsys may end before its worker.
    """
    for long, short, never in (
        ("--duration", "-d", "0"),
        ("--duration-frames", None, "0"),
        ("--capture-range", "-c", "none"),
        ("--delay", "-y", "0"),
    ):
        value = _value(extra, long, short)
        if value not in (None, "", never):
            return f"{long}={value}"
    return None


def why_not_together(extra: Sequence[str]) -> str | None:
    """Say why arguments for nsys would end the run with it, None where they do not."""
    part, kill = records_in_part(extra), _value(extra, "--kill", None)
    if part is None or part.startswith("--delay") or kill in (None, "none"):
        return None
    return (
        f"with {part} and --kill={kill} nsys would end the workers as soon as it has recorded "
        "enough; leave --kill out, and they go on without it"
    )


def asks_for_gpu_metrics(extra: Sequence[str]) -> bool:
    """Say whether the user's own arguments for nsys ask for GPU metrics."""
    return any(_sets(extra, option, None) for option in OPTIONS)


def choose_nsys(
    extra: Sequence[str],
    has_gpu: bool,
    sampling: Sampling | None = None,
    stacks: StackSampling | None = None,
) -> NsysChoice:
    """Choose nsys's arguments for a node.

    Parameters
    ----------
    extra
        The user's ``--nsys-arg``; what they set is not set by us.
    has_gpu
        Whether the node has an NVIDIA driver.
    sampling
        What to sample on GPUs, where that is asked for.
    stacks
        How to sample stacks of calls, where that is asked for.
    """
    arguments: list[str] = []
    reductions: list[str] = []
    if not _sets(extra, "--trace", "-t"):
        traces = list(TRACES)
        if not has_gpu:
            traces.remove("cuda")
            reductions.append("no CUDA trace: there is no NVIDIA driver on this node")
        arguments.append("--trace=" + ",".join(traces))
    if stacks is not None:
        arguments += stacks.words
        reductions += stacks.sentences
    elif not _sets(extra, "--sample", "-s"):
        arguments.append(NO_CPU[0])
    if not _sets(extra, "--cpuctxsw", None):
        arguments.append(NO_CPU[1])
    if not _sets(extra, "--wait", "-w"):
        # Ends with the worker, not with whatever a task left running.
        arguments.append("--wait=primary")
    if sampling is not None and not asks_for_gpu_metrics(extra):
        words = sampling.words
        if _sets(extra, "--gpu-metrics-frequency", None):
            words = words[:1]
        arguments += words
        reductions += sampling.sentences
    part = records_in_part(extra)
    if part is not None and not _sets(extra, "--kill", None):
        # nsys profile --help: by default it sends SIGTERM at the session's end. With 2022.4 the
        # worker dies also where newer documents say that it goes on (capture ranges).
        arguments.append("--kill=none")
        reductions.append(f"--kill=none was added: with {part} nsys may end before its worker")
    return NsysChoice((*arguments, *extra), tuple(reductions))


def nsys_command(nsys: str, choice: NsysChoice, report: str, command: Sequence[str]) -> list[str]:
    """Give the words of ``nsys profile`` around a command; ``report`` is without its suffix."""
    return [nsys, "profile", *choice.arguments, "--output", nsys_output(report), *command]


def node_command(
    python: str,
    run_directory: str,
    name: str,
    nsys: bool | None,
    nsys_path: str | None,
    nsys_arg: Sequence[str],
    walltime: tuple[float, float] | None,
    container: Sequence[str] = (),
    gpu_metrics: int | None = None,
    stacks: str = "dask",
) -> str:
    """Give what dask-jobqueue takes as its ``python``: the node step in front of the worker.

    dask-jobqueue pastes it in front of ``-m distributed.cli.dask_worker …``, so every word is
    quoted for the shell here. ``walltime`` is the job's time limit and the margin before it, in
    seconds; None where there is no limit. ``container`` are the words that run a command inside an
    image: then the node step, nsys and the workers are inside. ``gpu_metrics`` is how often in
    a second GPUs are sampled; None: they are not. ``stacks`` is the setting of that name.
    """
    words = [
        *container,
        python,
        "-m",
        "dasf_hpc.launch.node",
        "--run",
        run_directory,
        "--name",
        name,
    ]
    if nsys is not None:
        words.append("--nsys" if nsys else "--no-nsys")
    if nsys_path:
        words += ["--nsys-path", nsys_path]
    words += [f"--nsys-arg={argument}" for argument in nsys_arg]
    if gpu_metrics is not None:
        words.append(f"--gpu-metrics={gpu_metrics}")
    if stacks == "nsys":
        words.append("--stacks-by-nsys")
    if walltime is not None:
        words += ["--walltime", f"{walltime[0]:g}", "--margin", f"{walltime[1]:g}"]
    return shlex.join([*words, "--", python])
