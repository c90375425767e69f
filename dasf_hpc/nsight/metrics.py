"""Nsight, samples of GPU metrics and of network adapters' counters, into a trace.

nsys writes a row a sample and metric. What it calls a metric depends on the GPU and on nsys's
version; `MEASURES` says what each is. A row has one time. The user guide defines every metric as a
ratio to the cycles *in the sample period*, and the hardware hands its counters out at the trigger
that ends a period, so a sample stands here for the time from the sample before it to its own; the
guide does not say so in words. Were it the other way round, a sample would be placed one period
late: 0.1 ms at nsys's 10 kHz. Where samples are missing ("Missing Data" in nsys's own pictures) the
sample after the gap stands for one period only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import grouped
from dasf_hpc.nsight.diagnostics import redacted
from dasf_hpc.nsight.sqlite import FAR, NONE, Export, distinct_values, quoted
from dasf_hpc.trace.align import Correction

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

Array = npt.NDArray[Any]

_USER_OR_PROTOCOL = ("requests user", "requests protocol", "responses user", "responses protocol")

#: What nsys's metrics measure, by their names in lower case and without what stands in brackets.
#: Sources: "Available metrics" in NVIDIA's Nsight Systems user guide, and the names that public
#: scripts read from reports of RTX 2080 Ti, RTX 3050 Ti, A100, H100, H200 and RTX 5090 (2021 to
#: 2026). The four parts of NVLink's traffic are ratios to one maximum, so they add up.
MEASURES: Mapping[str, str] = {
    "gr active": "gr_active",
    "gpu active": "gpu_active",
    "sm active": "sm_active",
    "sms active": "sm_active",
    "sm issue": "sm_issue",
    "tensor active": "tensor_active",
    "tensor active / fp16 active": "tensor_active",
    "compute warps in flight": "compute_warps",
    "unallocated warps in active sms": "unused_warps",
    "active sm unused warp slots": "unused_warps",
    "dram read bandwidth": "dram_read",
    "dram read throughput": "dram_read",
    "vram read bandwidth": "dram_read",
    "dram write bandwidth": "dram_write",
    "dram write throughput": "dram_write",
    "vram write bandwidth": "dram_write",
    "pcie rx throughput": "pcie_rx",
    "pcie read throughput": "pcie_rx",
    "pcie tx throughput": "pcie_tx",
    "pcie write throughput": "pcie_tx",
    "nvlink bytes received": "nvlink_rx",
    "nvlink bytes transmitted": "nvlink_tx",
    "nvlink rx throughput": "nvlink_rx",
    "nvlink tx throughput": "nvlink_tx",
    **{f"nvlink rx {part} data": "nvlink_rx" for part in _USER_OR_PROTOCOL},
    **{f"nvlink tx {part} data": "nvlink_tx" for part in _USER_OR_PROTOCOL},
    "gpc clock frequency": "gpc_clock",
    "sys clock frequency": "sys_clock",
}

#: Measures in Hz; the others are shares, in %.
CLOCKS = frozenset({"gpc_clock", "sys_clock"})

#: A sample that comes later than this many periods after the one before follows a gap.
GAP_PERIODS = 2

#: So many of a metric's samples say how far apart they are.
ENOUGH = 100_000

#: The most that a column of 32 bits holds, and more: nsys puts clocks in Hz into one with a sign.
_WRAPS = 1 << 32

#: Clocks are written in Hz, whatever their names say ("[MHz]"); one below this was meant in MHz.
_LEAST_HZ = 1_000_000

_BRACKETS = re.compile(r"\s*\[([^\]]*)\]\s*$")


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes
    ----------
    name
        nsys's.
    measure
        See `MEASURES`; None for others.
    unit
        Of its values as they are kept.
    """

    name: str
    measure: str | None
    unit: str

    @classmethod
    def of(cls, name: str) -> Metric:
        """Tell by nsys's name, as ``SMs Active [Throughput %]``."""
        found = _BRACKETS.search(name)
        said = found[1] if found else ""
        base = " ".join((name[: found.start()] if found else name).lower().split())
        measure = MEASURES.get(base)
        if measure in CLOCKS or said.lower() in ("mhz", "hz"):
            return cls(name, measure, "Hz")
        if "%" in said or (measure and not said):
            return cls(name, measure, "%")
        # of a metric that comes in several units, such as warps, the share is the measure
        return cls(name, None, said.lower())


def place(placing: Placing) -> None:
    """Put a report's samples of GPU metrics and of network adapters into files."""
    with Export.opened(placing.report.sqlite) as export:
        _gpu_metrics(placing, export)
        _nic_metrics(placing, export)


def _metric_row(placing: Placing, metric: Metric) -> int:
    """Give the row of a metric in the trace's table, which is added where it is not there."""
    additions = placing.additions
    if "metrics" not in placing.run.tables:
        additions.made("metrics")
    table = placing.run.tables["metrics"]
    row = {"name": metric.name, "measure": metric.measure, "unit": metric.unit or None}
    codes = (
        additions.strings("metrics").code(metric.name),
        additions.strings("units").code(metric.unit or None),
    )
    same = np.flatnonzero((table["name"] == codes[0]) & (table["unit"] == codes[1]))
    return int(same[0]) if len(same) else additions.add("metrics", row)


def _correction(placing: Placing) -> Correction | None:
    """Give the correction of what no process did: the best that the report has."""
    told = [one for one in placing.corrections.values() if one is not None]
    known = [one for one in told if one.bound_ns >= 0]
    return min(known or told, key=lambda one: one.bound_ns, default=placing.of_report)


def _to_trace(correction: Correction | None, *times: Array) -> None:
    if correction is not None:
        for values in times:
            values[:] = correction.apply(values)


# ---------------------------------------------------------------------------------------- GPUs


def _gpu_metrics(placing: Placing, export: Export) -> None:
    columns = export.columns.get("GPU_METRICS", {})
    if not {"timestamp", "typeId", "metricId", "value"} <= columns.keys():
        return
    rows = export.numbers(
        "GPU_METRICS",
        {"start": ("timestamp", NONE), "type": ("typeId", NONE), "metric": ("metricId", NONE)},
        # a column takes what it is given: a fraction is no integer
        extra={"value": "CAST(value AS INTEGER)"},
        where=f"timestamp BETWEEN -{FAR} AND {FAR} AND value IS NOT NULL",
    )
    if not len(rows["start"]):
        return
    names = _gpu_metric_names(export)
    stop, value = rows.pop("start"), rows.pop("value").astype(np.int64)
    start = stop.copy()
    gpu, metric = np.full(len(stop), NONE, np.int32), np.full(len(stop), NONE, np.int32)
    number, kept = rows.pop("metric"), np.ones(len(stop), bool)
    types = rows.pop("type")
    # those of a report differ in their last bytes, and small numbers are grouped quickly
    least = int(types.min())
    types -= least
    for above, of_kind in grouped(types):
        kind = least + above
        groups = [(one, of_kind[places]) for one, places in grouped(number[of_kind])]
        period = _period(stop[places] for _, places in groups)
        gpu[of_kind] = _gpu_row(placing, kind & 0xFF)
        for one, places in groups:
            told = Metric.of(names.get((kind, one), f"metric {one}"))
            metric[places] = _metric_row(placing, told)
            kept[places] = _readable(value, places, told)
            places = places[kept[places]]
            places = places[np.argsort(stop[places], kind="stable")]
            start[places] = stop[places] - _lasts(stop[places], period)
    _to_trace(_correction(placing), start, stop)
    found = {"gpu": gpu, "metric": metric, "start": start, "stop": stop, "value": value}
    del gpu, metric, start, stop, value
    if not kept.all():
        found = {name: values[kept] for name, values in found.items()}
    placing.spool("gpu_metrics", found)


def _gpu_metric_names(export: Export) -> dict[tuple[int, int], str]:
    """Read the names of metrics, by type and number; numbers change from report to report."""
    columns = export.columns.get("TARGET_INFO_GPU_METRICS", {})
    if not {"typeId", "metricId", "metricName"} <= columns.keys():
        return {}
    rows = export.query("SELECT typeId, metricId, metricName FROM TARGET_INFO_GPU_METRICS")
    return {
        (kind, number): redacted(str(name))
        for kind, number, name in rows
        if isinstance(kind, int) and isinstance(number, int) and name
    }


def _gpu_row(placing: Placing, number: int) -> int:
    """Give the row of a GPU by nsys's number of it.

    The metrics of a GPU that is divided into MIG instances are those of all of it.
    """
    if number not in placing.mig_of:
        # without a list of GPUs only what ran there tells which one it is
        of_nsys = placing.run.tables["gpus"]["nsys_id"]
        for row in placing.gpu_rows.values():
            if row != NONE and of_nsys[row] == number:
                return row
    row = int(placing.gpus(np.array([NONE]), np.array([number]))[0])
    if number in placing.mig_of:
        # what ran there ran on its instances: that it was idle is not known of it
        placing.gpu_rows.pop((NONE, number), None)
    return row


def _period(times: Iterator[Array]) -> int:
    """Give the time from a sample to the next, of most samples; 0 where there are not two."""
    medians = []
    for one in times:
        gaps = np.diff(np.sort(one[:ENOUGH]))
        if len(gaps := gaps[gaps > 0]):
            medians.append(int(np.median(gaps)))
    return min(medians, default=0)


def _lasts(stop: Array, period: int) -> Array:
    """Give how long each of a metric's samples, sorted, stands for."""
    lasts = np.diff(stop, prepend=stop[:1] - period)
    return np.where(lasts > GAP_PERIODS * period, period, lasts)


def _readable(value: Array, rows: Array, metric: Metric) -> Array:
    """Put the values of a metric into its unit, in place; gives which of them can be."""
    own = value[rows]
    if metric.unit == "Hz":
        own = np.where(own < 0, own + _WRAPS, own)
        if len(own) and own.max() < _LEAST_HZ:
            own = own * 1_000_000
    value[rows] = own
    told: Array = own >= 0
    return told


# ------------------------------------------------------------------------------------- network


def _nic_metrics(placing: Placing, export: Export) -> None:
    columns = export.columns.get("NET_NIC_METRIC", {})
    if not {"start", "globalId", "metricsListId", "metricsIdx", "value"} <= columns.keys():
        return
    rows = export.numbers(
        "NET_NIC_METRIC",
        {
            "start": ("start", NONE),
            "stop": ("end", NONE),
            "nic": ("globalId", NONE),
            "port": ("portId", NONE),
            "list": ("metricsListId", NONE),
            "metric": ("metricsIdx", NONE),
        },
        extra={"value": "CAST(value AS INTEGER)"},
        where="start IS NOT NULL AND value IS NOT NULL",
    )
    count = len(rows["start"])
    if not count:
        return
    known = _nic_metric_names(export)
    metric = np.full(count, NONE, np.int32)
    for of_list, in_list in grouped(rows.pop("list")):
        for number, places in grouped(rows["metric"][in_list]):
            told = known.get((of_list, number), Metric(f"metric {number}", None, ""))
            metric[in_list[places]] = _metric_row(placing, told)
    stop = np.where(rows["stop"] == NONE, rows["start"], rows["stop"])
    start = rows["start"]
    _to_trace(_correction(placing), start, stop)
    placing.spool(
        "nic_metrics",
        {
            "node": np.full(count, placing.node, np.int32),
            "nic": _nics(placing, export, rows["nic"]),
            "port": rows["port"].astype(np.int32),
            "metric": metric,
            "start": start,
            "stop": stop,
            "value": rows["value"].astype(np.int64),
        },
    )


def _nics(placing: Placing, export: Export, ids: Array) -> Array:
    """Give the codes of the names of adapters; to 2023 their own table names them by these ids."""
    columns = export.columns.get("TARGET_INFO_NIC_INFO", {})
    found: list[tuple[Any, ...]] = []
    if {"nicId", "globalId"} <= export.columns.get("NIC_ID_MAP", {}).keys():
        if {"nicId", "name"} <= columns.keys():
            found = export.query(
                "SELECT m.globalId, i.name FROM NIC_ID_MAP m "
                "JOIN TARGET_INFO_NIC_INFO i ON i.nicId = m.nicId"
            )
    elif {"globalId", "name"} <= columns.keys():
        found = export.query("SELECT globalId, name FROM TARGET_INFO_NIC_INFO")
    names = {number: redacted(str(name)) for number, name in found if name}
    strings = placing.additions.strings("nics")
    distinct, index = distinct_values(ids)
    codes = [strings.code(names.get(one, f"adapter {one}")) for one in distinct.tolist()]
    return np.array(codes, np.int32)[index]


def _nic_metric_names(export: Export) -> dict[tuple[int, int], Metric]:
    columns = export.columns.get("TARGET_INFO_NETWORK_METRICS", {})
    if not {"metricsListId", "metricsIdx", "name"} <= columns.keys():
        return {}
    unit = quoted("unit") if "unit" in columns else "''"
    rows = export.query(
        f"SELECT metricsListId, metricsIdx, name, {unit} FROM TARGET_INFO_NETWORK_METRICS"
    )
    return {
        (of_list, number): Metric(redacted(str(name)), None, redacted(str(unit or "")))
        for of_list, number, name, unit in rows
        if isinstance(of_list, int) and isinstance(number, int) and name
    }
