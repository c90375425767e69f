"""Launch: the words by which nsys samples stacks of calls, and Python's too where it can.

The CPU's stacks come with ``--sample``, in every nsys that is known here. Python's come with
``--python-sampling``, which newer ones have (it stands in no help of 2022.4): nsys is asked. One
without it may be so old that with samples it does not come to its report's end now and then (seen
with 2022.4 on a busy host).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasf_hpc.launch.gpu_metrics import HELP_TIMEOUT_S

SAMPLE = "--sample"
PYTHON, PYTHON_FREQUENCY = "--python-sampling", "--python-sampling-frequency"

#: Samples of Python's calls a second: as many as Dask's own profile takes, a tenth of nsys's own
#: default.
FREQUENCY = 100


@dataclass(frozen=True)
class StackSampling:
    """What nsys is asked to sample, and what of it is left out and why.

    Attributes
    ----------
    words
        For ``nsys profile``.
    sentences
        What is left out.
    """

    words: tuple[str, ...]
    sentences: tuple[str, ...] = ()


def python_sampling(nsys: Path | str) -> bool | None:
    """Ask nsys whether it samples Python's calls; None where it does not answer."""
    try:
        done = subprocess.run(
            [str(nsys), "profile", "--help"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{PYTHON}=" in done.stdout.decode(errors="replace")


def stack_sampling(extra: Sequence[str], offered: bool | None) -> StackSampling:
    """Give the words for nsys.

    Parameters
    ----------
    extra
        The user's own arguments for nsys; what they set is not set here.
    offered
        What `python_sampling` says.
    """
    names = {word.partition("=")[0] for word in extra}
    words: list[str] = []
    if SAMPLE not in names and not any(word.startswith("-s") for word in extra):
        words.append(f"{SAMPLE}=process-tree")
    if PYTHON in names:
        return StackSampling(tuple(words))
    if not offered:
        why = "it does not say what it can" if offered is None else f"it has no option {PYTHON}"
        sentence = f"no Python calls in nsys's samples: {why}; --stacks dask samples them"
        return StackSampling(tuple(words), (sentence,))
    words.append(f"{PYTHON}=true")
    if PYTHON_FREQUENCY not in names:
        words.append(f"{PYTHON_FREQUENCY}={FREQUENCY}")
    return StackSampling(tuple(words))
