"""Trace, its nodes and processes by name: short, unique, and the same in every output.

A node is its host's name without the domain, where that is enough to tell it from the others. A
worker is the name that Dask knows it by without what the names of all have in common: a run's
workers are ``w0-1``, not ``2026-11-29T17-14-21-job-3f2a-0-1``. One without a name is called by its
port. A name that is long still is cut in its middle. GPUs are in `dasf_hpc.trace.gpus`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from dasf_hpc.trace.open import Trace

UNKNOWN = "?"

#: Longest name of a node or a worker, in characters.
LONGEST = 24

#: Names of workers of so many characters stay as they are, whatever all begin with.
SHORT = 12

#: What a run's directory is called, and its workers' names begin with: ``make_run_directory``.
_OF_RUN = re.compile(r"^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-.*?-[0-9a-f]{4}-")

#: As ``tcp://10.0.0.1:43211``.
_ADDRESS = re.compile(r"^(?:[a-z]+://)?.*[:\]](\d+)$")

#: After one of these a name may be cut off, as all begin with it.
_ENDS = re.compile(r"[-_.:/ ]")


def short_hosts(hosts: Sequence[object]) -> list[str]:
    """Name hosts shortly, no two alike.

    Parameters
    ----------
    hosts
        Their names; what is no text is not known.

    Returns
    -------
    list of str
        In the same order.
    """
    whole = [host if isinstance(host, str) and host else UNKNOWN for host in hosts]
    short = [_first_label(host) for host in whole]
    of = Counter(short[i] for i in range(len(whole)) if whole[i] not in whole[:i])
    chosen = [s if of[s] == 1 else w for s, w in zip(short, whole, strict=True)]
    return _distinct([_cut(name) for name in chosen])


def short_workers(names: Sequence[object]) -> list[str]:
    """Name workers shortly, no two alike.

    Parameters
    ----------
    names
        What Dask calls them: their names, or their addresses.

    Returns
    -------
    list of str
        In the same order.
    """
    whole = [str(name) if name is not None and name == name else "" for name in names]
    bare = [_OF_RUN.sub("", name) for name in whole]
    ports = [_ADDRESS.match(name) for name in bare]
    if len({m.group(1) for m in ports if m}) == sum(m is not None for m in ports):
        bare = [m.group(1) if m else name for name, m in zip(bare, ports, strict=True)]
    if max(map(len, bare), default=0) > SHORT:
        common = _common_beginning([name for name in bare if name])
        bare = [name.removeprefix(common) if name else "" for name in bare]
    named = [f"w{name}" if name[:1].isdigit() else name or "worker" for name in bare]
    return _distinct([_cut(name) for name in named])


def node_names(trace: Trace) -> list[str]:
    """Name the nodes of a trace, in the order of ``nodes``; no two have one name."""
    kept = _kept(trace)
    if "nodes" not in kept:
        kept["nodes"] = short_hosts(trace.nodes["hostname"].tolist())
    return list(kept["nodes"])


def process_names(trace: Trace) -> list[str]:
    """Name the processes of a trace, in the order of ``processes``.

    No two workers have one name; other processes are called by what they are, ``scheduler``, or
    by their ids.
    """
    kept = _kept(trace)
    if "processes" not in kept:
        kept["processes"] = _process_names(trace)
    return list(kept["processes"])


def natural(name: str) -> list[tuple[int, str]]:
    """Give what sorts names with the numbers in them by value."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _process_names(trace: Trace) -> list[str]:
    processes = trace.processes.to_dict("records")
    # those that nsys profiled and no journal names are many: by their ids
    names = [
        f"process {p['pid']}" if p["role"] in ("profiled", None) else str(p["role"])
        for p in processes
    ]
    workers = [row for row, p in enumerate(processes) if p["role"] == "worker"]
    of_workers = short_workers(
        [_text(processes[row]["name"]) or _text(processes[row]["address"]) for row in workers]
    )
    for row, name in zip(workers, of_workers, strict=True):
        names[row] = name
    taken = set(of_workers)
    for row, process in enumerate(processes):
        if process["role"] != "worker" and names[row] in taken:
            names[row] = f"{names[row]} process"
    return names


#: Names that were made for a trace: a report asks for them in each of its parts.
_MADE: WeakKeyDictionary[Trace, dict[str, list[str]]] = WeakKeyDictionary()


def _kept(trace: Trace) -> dict[str, list[str]]:
    return _MADE.setdefault(trace, {})


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _first_label(host: str) -> str:
    """Give a host's name without its domain; an address whole."""
    label = host.split(".")[0]
    return label if label and not label.isdigit() and ":" not in host else host


def _common_beginning(names: list[str]) -> str:
    """Give what all of two and more names begin with, in whole words."""
    different = sorted(set(names))
    if len(different) < 2:
        return ""
    first, last = different[0], different[-1]
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    common = first[:alike]
    cuts = [match.end() for match in _ENDS.finditer(common)]
    while cuts and not all(name[cuts[-1] :] for name in different):
        cuts.pop()
    found = common[: cuts[-1]] if cuts else ""
    # numbers say which node's it is: they stay where other workers may still come
    return found if any(c.isalpha() for c in found) else ""


def _cut(name: str) -> str:
    """Give a name of `LONGEST` characters at most, all of them to be seen; its ends are kept."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) <= LONGEST:
        return name
    half = LONGEST // 2
    return f"{name[: half - 1]}…{name[len(name) - half :]}"


def _distinct(names: list[str]) -> list[str]:
    """Number those that are alike, from the second on."""
    taken = set(names)
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        if seen[name] == 1:
            found.append(name)
            continue
        number = seen[name]
        while f"{name} [{number}]" in taken:
            number += 1
        taken.add(f"{name} [{number}]")
        found.append(f"{name} [{number}]")
    return found
