"""Launch: whether nsys may sample a node's GPUs, which of them, and the words that ask for it.

nsys refuses to start where it is asked to sample a GPU that it may not or cannot sample (seen with
2022.4: "Illegal --gpu-metrics-device argument"), so it is asked first, with the word ``help`` for
the GPUs. Only one program at a time can sample a GPU, so of several node jobs of a user on a host
that see one GPU the first asks for it.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dasf_hpc.nsight.sessions import TABLES
from dasf_hpc.profile.devices import Device, visible_devices

#: How nsys calls the option, newer first (the older one stands in the help of 2022.4).
OPTIONS = ("--gpu-metrics-devices", "--gpu-metrics-device")

#: What nsys takes for the GPUs that CUDA_VISIBLE_DEVICES names, where it knows it.
CUDA_VISIBLE = "cuda-visible"

#: nsys 2022.4 answers within 0.1 s here; a first start from a cold network disk takes seconds.
HELP_TIMEOUT_S = 60.0

#: Whether only administrators may read the GPUs' counters, as the driver says.
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")

#: As "0: Turing TU104 | GeForce RTX 2070 SUPER PCI[0000:65:00.0]".
_GPU = re.compile(r"^\s*(?P<id>\d+):\s*(?P<name>.+?)\s*$")
_PCI = re.compile(r"PCI\[(?P<address>[0-9a-fA-F:.]+)\]")
#: What comes before the GPUs that nsys cannot sample: none or some "are not supported:".
_REFUSED = re.compile(r"not supported|none of the installed", re.IGNORECASE)
_NOT_PERMITTED = re.compile(r"insufficient privilege|ERR_NVGPUCTRPERM", re.IGNORECASE)
_SITE = (
    "the site's operators permit it with the driver's option NVreg_RestrictProfilingToAdminUsers=0"
)


@dataclass(frozen=True)
class Offer:
    """What nsys says of sampling the GPUs of this host.

    Attributes
    ----------
    option
        Its name in this nsys; None: it has none.
    gpus
        Those that it can sample, by its number: product and PCI address, as it writes them.
    cuda_visible
        Whether it takes `CUDA_VISIBLE` for the GPUs.
    why_not
        Why it samples none, or not all of them; empty where it samples all.
    """

    option: str | None
    gpus: Mapping[int, str] = field(default_factory=dict)
    cuda_visible: bool = False
    why_not: str = ""


def ask_nsys(nsys: Path | str) -> Offer:
    """Ask nsys which GPUs it can sample on this host."""
    said = ""
    for option in OPTIONS:
        try:
            done = subprocess.run(
                [str(nsys), "profile", f"{option}=help"],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=HELP_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return Offer(None, why_not=f"nsys did not answer {option}=help")
        except OSError as error:
            return Offer(None, why_not=f"nsys cannot be run: {error.strerror or error}")
        said = done.stdout.decode(errors="replace")
        if "unrecognised option" not in said and "unrecognized option" not in said:
            return read_offer(option, said)
    return Offer(None, why_not="this nsys samples no GPUs: it has no option --gpu-metrics-devices")


def read_offer(option: str, said: str) -> Offer:
    """Read nsys's answer to ``--gpu-metrics-devices=help``."""
    gpus: dict[int, str] = {}
    refused: list[str] = []
    cuda_visible = among_refused = False
    for line in said.splitlines():
        text = line.strip()
        if _REFUSED.search(text) and text.endswith(":"):
            among_refused = True
        elif text.startswith(("See the user guide", "Use the ")):
            among_refused = False
        elif among_refused and text:
            refused.append(text)
        elif found := _GPU.match(line):
            gpus[int(found["id"])] = found["name"]
        elif text.startswith(f"{CUDA_VISIBLE}:"):
            cuda_visible = True
    why_not = ""
    if refused and (not_permitted := [line for line in refused if _NOT_PERMITTED.search(line)]):
        why_not = (
            f"this user may not read the counters of {len(not_permitted)} GPU(s) "
            f"(ERR_NVGPUCTRPERM): {_SITE}"
        )
    elif refused:
        why_not = f"nsys cannot sample {refused[0]}"
    elif not gpus:
        why_not = "nsys finds no GPU that it can sample"
        told = [line.strip() for line in said.splitlines() if "not available" in line]
        why_not += f" ({told[0]})" if told else ""
    return Offer(option, gpus, cuda_visible, why_not)


def only_administrators(parameters: Path = DRIVER_PARAMETERS) -> bool | None:
    """Say whether the driver lets only administrators read counters; None: it does not say."""
    try:
        found = re.search(r"^RmProfilingAdminOnly:\s*(\d+)", parameters.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else found[1] != "0"


@dataclass(frozen=True)
class Sampling:
    """What nsys is asked to sample, and what of it is left out and why.

    Attributes
    ----------
    words
        For ``nsys profile``; none where it is to sample nothing.
    sentences
        What is left out.
    """

    words: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


def sampling_words(option: str, gpus: str, frequency: int) -> tuple[str, ...]:
    """Give the words that ask nsys to sample GPUs, so often a second."""
    return f"{option}={gpus}", f"--gpu-metrics-frequency={frequency}"


def choose_sampling(
    offer: Offer,
    frequency: int,
    devices: Sequence[Device],
    environment: Mapping[str, str],
    claims: Claims,
) -> Sampling:
    """Choose which GPUs nsys is to sample on this node: those of the job that it can sample.

    Parameters
    ----------
    offer
        What nsys says that it can.
    frequency
        Samples a second.
    devices
        The node's GPUs as NVML lists them: by PCI address, as nsys counts them.
    environment
        This process's; CUDA_VISIBLE_DEVICES names the job's GPUs.
    claims
        Those that a node job of this host samples already are left out.
    """
    none = "no GPU metrics: "
    if offer.option is None or not offer.gpus:
        return Sampling(sentences=(none + offer.why_not,))
    given = environment.get("CUDA_VISIBLE_DEVICES")
    pci_order = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    chosen, sentences = sorted(offer.gpus), []
    if given is not None:
        visible, _ = visible_devices(given, list(devices), pci_order)
        if not visible:
            return Sampling(sentences=(none + "CUDA_VISIBLE_DEVICES names no GPU of this node",))
        if any(str(one.get("uuid", "")).startswith("MIG-") for one in visible):
            why = "a MIG instance cannot be sampled by itself"
            return Sampling(sentences=(none + why,))
        numbers = [one.get("index") for one in visible]
        if None in numbers:
            if offer.cuda_visible:
                words = sampling_words(offer.option, CUDA_VISIBLE, frequency)
                return Sampling(words)
            why = "which GPUs CUDA_VISIBLE_DEVICES names cannot be told without nvidia-ml-py"
            return Sampling(sentences=(none + why,))
        chosen = [number for number in chosen if number in numbers]
        if len(chosen) < len(numbers) and offer.why_not:
            sentences.append(offer.why_not)
    elif offer.why_not:
        sentences.append(offer.why_not)
    free = [number for number in chosen if claims.claim(_identity(number, offer.gpus[number]))]
    if len(free) < len(chosen):
        sentences.append("another nsys of yours on this node samples its GPUs already")
    if not free:
        why = "; ".join(sentences) or "nsys cannot sample the GPUs of this job"
        return Sampling(sentences=(none + why,))
    words = sampling_words(offer.option, ",".join(map(str, free)), frequency)
    partly = f"GPU metrics of {len(free)} GPU(s) only: "
    return Sampling(words, tuple(partly + sentence for sentence in sentences))


def _identity(number: int, name: str) -> str:
    """Give what tells a GPU from the others of its host, in letters that a file's name may have."""
    found = _PCI.search(name)
    return re.sub(r"\W", "-", found["address"] if found else f"gpu{number}", flags=re.ASCII)


class Claims:
    """GPUs of this host that this process's nsys samples: locks, which end with the process.

    Parameters
    ----------
    folder
        Where the locks lie, which all processes of the host see.
    """

    def __init__(self, folder: Path = TABLES) -> None:
        self._folder = folder
        self._locks: dict[str, int] = {}

    def claim(self, gpu: str) -> bool:
        """Say whether the GPU is ours; where nothing can be locked it is taken for ours."""
        if gpu in self._locks:
            return True
        path = self._folder / f"dasf-hpc-gpu-{os.getuid()}-{gpu}.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError:  # no locks here
            pass
        self._locks[gpu] = lock
        return True

    def give_up(self) -> None:
        """Let others have the GPUs."""
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()
