"""Analysis: what went between the nodes, and how fast?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import (
    Answer,
    Columns,
    Finding,
    Severity,
    costliest_first,
    told_as_one,
)
from dasf_hpc.analysis.bandwidth import (
    NOT_KNOWN,
    SEVERAL,
    TYPES,
    beside_others,
    message_types,
    types_table,
)
from dasf_hpc.analysis.bandwidth import SLOW as SLOW_BESIDE
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.executions import (
    UNKNOWN,
    Ints,
    group_sums,
    read_executions,
    work_span,
    workers,
)
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import bytes_text, rate_text, share_text, three_digits

#: Links that carried less say little of their speed.
ENOUGH_BYTES = 10_000_000
#: A link is slow at this part of the median speed of the links that carried enough.
SLOW = 0.5
#: Where the types of so much of the data are not known, that is said, %.
UNTOLD = 5.0

LINKS: Columns = {
    "source": ("", "where the data came from: a node, or a worker (by=worker)"),
    "target": ("", f"where it went to; {UNKNOWN}: to the script, or a worker without a journal"),
    "messages": ("", "messages"),
    "keys": ("", "results in them"),
    "bytes": ("bytes", "size of the data"),
    "time": ("ns", "time from request to data, in sum over messages; they may overlap"),
    "throughput": ("bytes/s", "bytes over time"),
    "slowest": ("ns", "the longest message"),
    "within": ("", "whether source and target are one node"),
}


def communication(trace: Trace, by: str = "node") -> Answer:
    """Say what went between nodes, or workers, and which links were slow.

    Parameters
    ----------
    trace
        The trace.
    by
        ``node`` or ``worker``.

    Returns
    -------
    Answer
        Tables ``links``, the one with the most bytes first: a matrix in the long form, and
        ``types``.

    Raises
    ------
    ValueError
        If there is no such `by`.

    Notes
    -----
    A message is counted once, as its receiver recorded it; what only its sender recorded is counted
    as the sender did. Times are differences of one clock.
    """
    if by not in ("node", "worker"):
        raise ValueError(f"communication cannot be told apart by {by}")
    columns = ["start", "stop", "process", "direction", "peer_process", "nbytes", "keys"]
    transfers = trace.table("transfers", columns)
    found = workers(trace)
    journals = set(found.index.tolist())
    incoming = transfers["direction"] == "incoming"
    seen = transfers["peer_process"].isin(journals)
    # what a worker sent to another one that keeps a journal stands in that one's, too
    counted = transfers[incoming | ~seen]
    incoming = counted["direction"] == "incoming"
    source = counted["peer_process"].where(incoming, counted["process"])
    target = counted["process"].where(incoming, counted["peer_process"])
    names = found[by].to_dict()
    nodes = found["node"].to_dict()
    labels = pd.DataFrame(
        {
            "source": source.map(names).fillna(UNKNOWN).astype(str),
            "target": target.map(names).fillna(UNKNOWN).astype(str),
        },
        dtype=object,
    )
    codes, pairs = pd.factorize(pd.MultiIndex.from_frame(labels))
    count = len(pairs)
    took = (counted["stop"] - counted["start"]).clip(lower=0).to_numpy(np.int64)
    slowest = np.zeros(count, np.int64)
    np.maximum.at(slowest, codes, took)
    table = pd.DataFrame(
        {
            "source": pd.Series([p[0] for p in pairs], dtype=str),
            "target": pd.Series([p[1] for p in pairs], dtype=str),
            "messages": np.bincount(codes, minlength=count),
            "keys": group_sums(codes, counted["keys"].to_numpy(np.int64), count),
            "bytes": group_sums(codes, counted["nbytes"].to_numpy(np.int64), count),
            "time": group_sums(codes, took, count),
            "slowest": slowest,
        }
    )
    seconds = table["time"] / 1e9
    table["throughput"] = (table["bytes"] / seconds).where(seconds > 0)
    same = np.ones(count, bool)
    np.logical_and.at(
        same,
        codes,
        (source.map(nodes).fillna("") == target.map(nodes).fillna(UNKNOWN)).to_numpy(),
    )
    table["within"] = same
    table = table.sort_values("bytes", ascending=False, kind="stable").reset_index(drop=True)
    table = table[list(LINKS)]
    keys, nbytes = counted["keys"].to_numpy(np.int64), counted["nbytes"].to_numpy(np.int64)
    kinds, called = message_types(trace, counted)
    types = types_table(kinds, called, keys, nbytes, took)
    found_slow = _slow_types(types, kinds, called, nbytes, took)
    ends = {(p[0], p[1]): code for code, p in enumerate(pairs)}
    links = [
        ends[source, target]
        for source, target in zip(table["source"], table["target"], strict=True)
    ]
    speed = beside_others(codes, same[codes], nbytes, took, count)[links]
    unanswered = []
    untold = types["bytes"][types["type"].isin([SEVERAL, NOT_KNOWN])].sum()
    share = 100 * untold / max(1, types["bytes"].sum())
    if share >= UNTOLD:
        unanswered.append(
            f"Types of {share_text(share)} of the data: it went in messages of several types, or "
            "which results were in them is not known."
        )
    if not len(transfers) and not trace.rows("transitions"):
        unanswered.append("What workers did with their tasks was not recorded in this run.")
    return Answer(
        "communication",
        {"links": table, "types": types},
        {"links": LINKS, "types": TYPES},
        costliest_first(
            _findings(trace, table, int(found["threads"].sum()), speed) + found_slow,
        ),
        unanswered,
    )


def matrix(links: pd.DataFrame, value: str = "bytes") -> pd.DataFrame:
    """Make a matrix of table ``links``: a row for each source, a column for each target."""
    wide = links.pivot(index="source", columns="target", values=value)
    ends = sorted({*wide.index, *wide.columns})
    return wide.reindex(index=ends, columns=ends).fillna(0)


def _slow_types(
    types: pd.DataFrame, kinds: Ints, called: list[str], nbytes: Ints, took: Ints
) -> list[Finding]:
    """Tell of a type that goes much slower than the others do."""
    one_type = np.where(kinds < len(called) - 2, kinds, -1)
    speed = beside_others(one_type, np.zeros(len(kinds)), nbytes, took, len(called))
    of = dict(zip(called, speed.tolist(), strict=True))
    beside = types["type"].map(of)
    slow = types[(beside < SLOW_BESIDE) & (types["bytes"] >= ENOUGH_BYTES)]
    return told_as_one(
        Severity.WARNING,
        "communication",
        "types",
        slow,
        "types of results go slowly",
        lambda row: (
            f"Results of type {row['type']} go at {rate_text(row['median'])}, "
            f"{three_digits(1 / of[row['type']])} times slower than others of their size"
        ),
        "Have tasks give results that Dask sends without pickling them whole, as arrays of NumPy "
        "or CuPy, or frames of pandas with PyArrow's types; or register a serialiser for the type.",
    )


def _findings(
    trace: Trace, table: pd.DataFrame, threads: int, speed: NDArray[np.float64]
) -> list[Finding]:
    found: list[Finding] = []
    duration = work_span(trace, read_executions(trace)).duration
    between = table[~table["within"]]
    enough = between[between["bytes"] >= ENOUGH_BYTES]
    if len(enough) >= 3:
        usual = float(enough["throughput"].median())
        slow = enough[enough["throughput"] < SLOW * usual].sort_values("throughput")
        found += told_as_one(
            Severity.WARNING,
            "communication",
            "links",
            slow,
            "links are slow",
            lambda link: (
                f"The link from {link['source']} to {link['target']} is slow: "
                f"{rate_text(link['throughput'])} where the median of the links is "
                f"{rate_text(usual)}"
            ),
            "See whether that node uses the right interface (--interface), or exclude it.",
        )
    told = {row for finding in found for row in finding.rows}
    beside = table.assign(speed=speed)
    beside = beside[
        (beside["speed"] < SLOW_BESIDE)
        & (beside["bytes"] >= ENOUGH_BYTES)
        & ~beside.index.isin(list(told))
    ].sort_values("speed")
    found += told_as_one(
        Severity.WARNING,
        "communication",
        "links",
        beside,
        "links are slow",
        lambda link: (
            f"What goes from {link['source']} to {link['target']} takes "
            f"{three_digits(1 / link['speed'])} times as long as what is of its size elsewhere: "
            f"{rate_text(link['throughput'])}"
        ),
        "See whether both use the right interface (--interface), and what else uses it.",
    )
    spent = int(table["time"].sum())
    if duration and spent >= 0.1 * duration * max(1, threads):
        found.append(
            Finding(
                Severity.WARNING,
                "communication",
                "links",
                tuple(range(min(10, len(table)))),
                f"Workers fetched {bytes_text(table['bytes'].sum())} from each other in "
                f"{table['messages'].sum():,} messages, "
                f"{share_text(100 * spent / duration / threads)} of the time "
                "of their threads if it were not done beside the tasks.",
                "Use larger chunks along the axis that is exchanged, or fewer nodes.",
                **causes(trace).told("transferring"),
            )
        )
    return costliest_first(found)
