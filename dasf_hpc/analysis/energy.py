"""Analysis: what did the GPUs' work cost in energy?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.executions import (
    Executions,
    Floats,
    Ints,
    read_executions,
    run_span,
    workers,
)
from dasf_hpc.trace.gpus import gpu_labels, gpu_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import share_text

#: A pause of so many usual distances between samples is a hole: its energy is not known.
HOLE = 10
#: Idle energy is named from this share.
IDLE_SHARE = 30.0
IDLE = "(no task)"

_ENERGY = ("J", "energy drawn, by trapezoids between samples of the power")
GPUS: Columns = {
    "gpu": ("", "the GPU"),
    "node": ("", "the host"),
    "energy": _ENERGY,
    "covered": ("%", "of the run's time, from the first sample to the last without holes"),
    "mean_power": ("W", "energy over the time covered"),
    "max_power": ("W", "largest sample"),
    "idle_energy": ("J", "of the energy: while no task ran on a worker of the GPU"),
}
NODES: Columns = {
    "node": ("", "the host"),
    "gpus": ("", "its GPUs whose power was sampled"),
    "energy": _ENERGY,
}
FUNCTIONS: Columns = {
    "function": ("", f"name of the function; {IDLE}: no task ran on a worker of the GPU"),
    "energy": ("J", "energy drawn while its tasks ran; tasks at once share it evenly"),
    "share": ("%", "of the energy of all GPUs"),
    "count": ("", "executions on workers with a GPU"),
    "each": ("J", "energy an execution"),
}


def energy(trace: Trace) -> Answer:
    """Say what energy the GPUs drew, for each node, GPU and function.

    Only GPUs' power is sampled; that of CPUs and memory is not in it.

    Returns
    -------
    Answer
        Tables ``gpus``, ``nodes`` and ``functions``; the energies of each sum to the same.
    """
    if not trace.rows("gpu_samples"):
        return _refused("No GPU was sampled in this run, so that nothing is known of its energy.")
    samples = trace.table("gpu_samples", ["time", "gpu", "power"])
    samples = samples[samples["power"] >= 0].sort_values("time", kind="stable")
    if not len(samples):
        return _refused("The GPUs of this run do not tell their power: each sample lacks it.")
    runs = read_executions(trace, ("thread", "prefix"))
    found = workers(trace, runs)
    span = run_span(trace, runs)
    names = gpu_names(trace)
    hosts = [host for host, _ in gpu_labels(trace)]
    width = len(runs.functions)
    by_function = np.zeros(width + 1)
    counted = np.zeros(width, np.int64)
    rows = []
    for gpu, part in samples.groupby("gpu"):
        row = int(str(gpu))
        meter = _Meter(part["time"].to_numpy(), part["power"].to_numpy(np.float64))
        users = [process for process, own in found["gpus"].items() if row in own]
        mine = np.flatnonzero(np.isin(runs.process, np.array(users, np.int64)))
        idle = _share_out(meter, runs, mine, by_function)
        counted += np.bincount(runs.function[mine], minlength=width)[:width]
        rows.append(
            {
                "gpu": names[row] if 0 <= row < len(names) else f"GPU {row}",
                "node": hosts[row] if 0 <= row < len(hosts) else "?",
                "energy": meter.total,
                "covered": 100.0 * meter.covered / span.duration if span.duration else 0.0,
                "mean_power": meter.total / (meter.covered / 1e9) if meter.covered else np.nan,
                "max_power": float(part["power"].max()),
                "idle_energy": idle,
            }
        )
        by_function[width] += idle
    gpus = pd.DataFrame(rows, columns=list(GPUS))
    nodes = (
        gpus.groupby("node", sort=False)
        .agg(gpus=("gpu", "size"), energy=("energy", "sum"))
        .reset_index()
    )
    whole = float(gpus["energy"].sum())
    functions = pd.DataFrame(
        {
            "function": pd.Series([*runs.functions, IDLE], dtype=str),
            "energy": by_function,
            "share": 100.0 * by_function / whole if whole else 0.0,
            "count": np.append(counted, 0),
        }
    )
    functions["each"] = (functions["energy"] / functions["count"]).where(functions["count"] > 0)
    functions = functions[(functions["count"] > 0) | (functions["function"] == IDLE)]
    functions = functions.sort_values("energy", ascending=False, kind="stable")
    functions = functions.reset_index(drop=True)
    return Answer(
        "energy",
        {"gpus": gpus, "nodes": nodes, "functions": functions},
        {"gpus": GPUS, "nodes": NODES, "functions": FUNCTIONS},
        _findings(functions, gpus),
        _partly(gpus, names),
    )


def _refused(reason: str) -> Answer:
    tables = {"gpus": GPUS, "nodes": NODES, "functions": FUNCTIONS}
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in tables.items()}
    return Answer("energy", empty, tables, [], [reason])


def _partly(gpus: pd.DataFrame, names: list[str]) -> list[str]:
    missing = [name for name in names if name not in set(gpus["gpu"])]
    if not missing:
        return []
    return [f"The power of {len(missing)} GPU(s) was not sampled: {', '.join(missing[:8])}."]


class _Meter:
    """The energy a GPU drew up to any moment."""

    def __init__(self, times: Ints, power: Floats) -> None:
        self._times, self._power = times, power
        lengths = np.diff(times)
        usual = float(np.median(lengths)) if len(lengths) else 0.0
        self._whole = lengths <= HOLE * max(usual, 1.0)
        parts = (power[1:] + power[:-1]) / 2 * lengths * self._whole
        self._sums = np.concatenate([[0.0], np.cumsum(parts)])
        self.total = float(self._sums[-1]) / 1e9
        self.covered = int(lengths[self._whole].sum())

    def until(self, times: Ints) -> Floats:
        """Give the energy drawn before some times, J."""
        if len(self._times) < 2:
            return np.zeros(len(times))
        place = np.clip(np.searchsorted(self._times, times, "right") - 1, 0, len(self._times) - 2)
        length = self._times[place + 1] - self._times[place]
        past = np.clip(times - self._times[place], 0, length)
        before, after = self._power[place], self._power[place + 1]
        slope = (after - before) / np.maximum(length, 1)
        part = (before + slope * past / 2) * past * self._whole[place]
        result: Floats = (self._sums[place] + part) / 1e9
        return result


def _share_out(meter: _Meter, runs: Executions, mine: np.ndarray, by_function: Floats) -> float:
    """Add the energy of a GPU to the functions whose tasks ran on its workers; give the rest."""
    if not len(mine):
        return meter.total
    start, stop = runs.start[mine], runs.stop[mine]
    grid, place = np.unique(np.concatenate([start, stop]), return_inverse=True)
    first, last = place[: len(mine)], place[len(mine) :]
    changes = np.bincount(first, minlength=len(grid)) - np.bincount(last, minlength=len(grid))
    at_once = np.cumsum(changes)[:-1]
    drawn = np.diff(meter.until(grid))
    each = np.concatenate([[0.0], np.cumsum(drawn / np.maximum(at_once, 1) * (at_once > 0))])
    width = len(by_function) - 1
    shared = each[last] - each[first]
    by_function[:width] += np.bincount(runs.function[mine], weights=shared, minlength=width)
    return meter.total - float(drawn[at_once > 0].sum())


def _findings(functions: pd.DataFrame, gpus: pd.DataFrame) -> list[Finding]:
    idle = functions[(functions["function"] == IDLE) & (functions["share"] >= IDLE_SHARE)]
    return [
        Finding(
            Severity.WARNING,
            "energy",
            "functions",
            (int(str(row)),),
            f"{share_text(part['share'])} of the GPUs' energy ({part['energy']:.0f} J of "
            f"{gpus['energy'].sum():.0f} J) was drawn while no task ran on their workers.",
            "Give the nodes back sooner, or keep them busy: see `dasf-hpc analyze where`.",
        )
        for row, part in idle.iterrows()
    ]
