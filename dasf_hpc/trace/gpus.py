"""Trace, its GPUs by name: as people tell them apart, the same in every output."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from dasf_hpc.trace.names import UNKNOWN, node_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart

#: Words that every product's name begins with.
_BRANDS = re.compile(r"^(?:NVIDIA|Tesla)\s+", re.IGNORECASE)

#: As ``00000000:3B:00.0`` of NVML and ``0000:3b:00.0`` of nsys.
_ADDRESS = re.compile(r"^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2})(?:\.([0-9a-f]))?$")


#: Columns of ``gpus``: one that is there has a text in one of these at least, or a number.
_TEXTS, _NUMBERS = ["uuid", "name", "bus"], ["nsys_id", "memory"]

#: Tables whose rows tell of a GPU.
_OF_GPU = (
    *("kernels", "memcpys", "memsets", "task_gpu"),
    *("gpu_samples", "gpu_metrics", "gpu_allocations"),
)


def known_gpus(trace: Trace) -> list[int]:
    """Give the rows of ``gpus`` of which more is known than that somebody was given them.

    A GPU has a uuid, a name, a bus, a size or a sample, or something ran on it. A scheduler gives
    GPUs by their numbers also where there are none: such rows are no GPUs.
    """
    gpus = trace.gpus
    described = gpus[_TEXTS].notna().any(axis=1) | (gpus[_NUMBERS] >= 0).any(axis=1)
    known = set(np.flatnonzero(described).tolist())
    for table in _OF_GPU:
        if len(known) < len(gpus) and table in trace.tables and trace.rows(table):
            for piece in trace.pieces(table, ["gpu"]):
                known.update(piece["gpu"].unique().tolist())
    return sorted(row for row in known if 0 <= row < len(gpus))


def gpu_names(trace: Trace) -> list[str]:
    """Name each GPU by host, index, product and bus, as ``node7 GPU 0 (H100, 3b:00)``.

    No two have one name.
    """
    return [f"{host} {label}" for host, label in gpu_labels(trace)]


def gpu_labels(trace: Trace) -> list[tuple[str, str]]:
    """Give the host of each GPU, and its name there."""
    hosts = node_names(trace)
    apart = gpus_apart(trace)
    gpus = trace.gpus.to_dict("records")
    of = [hosts[g["node"]] if 0 <= g["node"] < len(hosts) else UNKNOWN for g in gpus]
    labels = [_label(gpu, apart.get(row)) for row, gpu in enumerate(gpus)]
    alike = Counter(zip(of, labels, strict=True))
    for row, gpu in enumerate(gpus):
        uuid = _text(gpu.get("uuid"))
        if alike[of[row], labels[row]] > 1 and uuid:
            labels[row] += f" {uuid.removeprefix('GPU-')[:8]}"
    seen: Counter[tuple[str, str]] = Counter()
    taken = set(zip(of, labels, strict=True))
    for row, host in enumerate(of):
        seen[host, labels[row]] += 1
        if (number := seen[host, labels[row]]) > 1:
            while (host, f"{labels[row]} [{number}]") in taken:
                number += 1
            labels[row] += f" [{number}]"
            taken.add((host, labels[row]))
    return list(zip(of, labels, strict=True))


def bus_address(address: str) -> str:
    """Give a PCI address as every program's is written here: short, without what is always 0."""
    found = _ADDRESS.match(address.strip().lower())
    if found is None:
        return address.strip().lower()
    domain, place, function = found.groups()
    before = f"{int(domain, 16):04x}:" if domain and int(domain, 16) else ""
    return f"{before}{place}" + (f".{function}" if function not in (None, "0") else "")


def _label(gpu: dict[Any, Any], apart: str | None) -> str:
    number = gpu["index"] if gpu["index"] >= 0 else gpu.get("nsys_id", -1)
    uuid, product, bus = (_text(gpu.get(name)) for name in ("uuid", "name", "bus"))
    about = [_BRANDS.sub("", product)] if product else []
    if bus:
        about.append(bus_address(bus))
    if _text(gpu.get("mig_of")) and uuid:
        about.append(f"MIG {uuid.removeprefix('MIG-')[:8]}")
    if apart is not None:
        about.append(f"own axis of {apart}")
    return f"GPU {number if number >= 0 else '?'}" + (f" ({', '.join(about)})" if about else "")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
