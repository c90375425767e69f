"""Recording: which GPUs a process may use, by UUID, without ever making a CUDA context."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class NvmlState(Enum):
    """Whether NVIDIA's management library answers, and what to do where it does not."""

    READY = "NVML answers"
    NO_PACKAGE = "the package nvidia-ml-py is not installed: pip install nvidia-ml-py"
    NO_LIBRARY = "no NVIDIA driver library on this node (libnvidia-ml.so)"
    NO_DRIVER = "the NVIDIA driver is not loaded on this node"
    NO_PERMISSION = "NVML refused: this user may not query the GPUs of this node"
    NO_DEVICE = "NVML answers and there is no GPU on this node"
    FAILED = "NVML failed for another reason"


@dataclass(frozen=True)
class Device:
    """A GPU of a node, in NVML's order (by PCI bus id).

    Attributes
    ----------
    index
        NVML's index.
    uuid
        Such as ``GPU-8f3c…``.
    name
        The product's name.
    memory
        Total memory in bytes; -1 where the GPU has none of its own, as in a system on a chip.
    """

    index: int
    uuid: str
    name: str
    memory: int


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def nvml_devices() -> tuple[list[Device], NvmlState]:
    """List the node's GPUs as NVML sees them; NVML is shut down again.

    Returns
    -------
    devices : list of Device
    state : NvmlState
    """
    try:
        import pynvml
    except ImportError:
        return [], NvmlState.NO_PACKAGE
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], nvml_state(error)
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            devices.append(
                Device(
                    index,
                    _text(pynvml.nvmlDeviceGetUUID(handle)),
                    _text(pynvml.nvmlDeviceGetName(handle)),
                    _memory(handle),
                )
            )
    except pynvml.NVMLError as error:
        return [], nvml_state(error)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return devices, NvmlState.READY if devices else NvmlState.NO_DEVICE


def _memory(handle: Any) -> int:
    import pynvml

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:
        return -1


def nvml_state(error: Exception) -> NvmlState:
    """Name the reason behind an NVMLError."""
    import pynvml

    return {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlState.NO_LIBRARY,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
        pynvml.NVML_ERROR_NO_PERMISSION: NvmlState.NO_PERMISSION,
    }.get(getattr(error, "value", None), NvmlState.FAILED)


def visible_devices(
    value: str | None, devices: list[Device], pci_order: bool
) -> tuple[list[dict[str, Any]], str]:
    """Say which GPUs a value of CUDA_VISIBLE_DEVICES selects, as the CUDA driver reads it.

    Parameters
    ----------
    value
        The variable's value, None where it is not set: then every GPU is visible.
    devices
        The node's GPUs in NVML's order.
    pci_order
        Whether ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. Otherwise CUDA numbers the fastest GPU first,
        which NVML cannot tell: an index then names a GPU for sure only where all are alike.

    Returns
    -------
    visible : list of dict
        One a GPU, in the process's own order: ``index``, ``uuid``, ``name``, ``memory``; a MIG
        device has its ``uuid`` alone. The rule is the driver's: entries are taken from the left,
        and the first one that names no GPU, or is of another kind than the ones before, hides all
        that follow; of MIG devices only the first is used; an entry that comes twice hides all.
    status : str
        How sure this is, in a sentence.

    Notes
    -----
    Sources: CUDA C++ Programming Guide, section "CUDA Environment Variables" (which also says that
    a single MIG device is supported); for repeated and mixed entries, which it does not tell of,
    what PyTorch's and nvitop's readings of the variable agree on.
    """
    if value is None:
        return [asdict(d) for d in devices], "CUDA_VISIBLE_DEVICES is not set: all GPUs"
    entries = [entry.strip() for entry in value.split(",")]
    if not value.strip():
        return [], "CUDA_VISIBLE_DEVICES is empty: no GPU"
    visible: list[dict[str, Any]] = []
    kinds = set()
    for entry in entries:
        kind, found = _named_device(entry, devices)
        kinds.add(kind)
        if found is None or len(kinds) > 1 or (kind == "MIG" and visible):
            break
        if found in visible:
            return [], f"CUDA_VISIBLE_DEVICES names a GPU twice (entry {entries.index(entry) + 1})"
        visible.append(found)
    by_index = "index" in kinds
    hidden = len(entries) - len(visible)
    status = f"CUDA_VISIBLE_DEVICES selects {len(visible)}"
    if hidden:
        status += f"; {hidden} hidden, since entry {len(visible) + 1} names no single GPU here"
    if by_index and not pci_order and len({d.name for d in devices}) > 1:
        status += "; indices are uncertain: GPUs differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID"
    return visible, status


def _named_device(entry: str, devices: list[Device]) -> tuple[str, dict[str, Any] | None]:
    """Give what kind of name an entry is, and the device it names; None where there is not one.

    Where NVML lists no device, what the entry itself says is taken.
    """
    if entry.startswith("MIG-"):
        return "MIG", {"uuid": entry}
    if entry.startswith("GPU-"):
        matching = [d for d in devices if d.uuid.startswith(entry)]
        unlisted: dict[str, Any] = {"uuid": entry}
        kind = "UUID"
    elif number := re.match(r"\d+", entry, re.ASCII):  # read as strtoul(3) does
        matching = [d for d in devices if d.index == int(number[0])]
        unlisted = {"index": int(number[0])}
        kind = "index"
    else:
        return "none", None
    if not devices:
        return kind, unlisted
    return kind, asdict(matching[0]) if len(matching) == 1 else None
