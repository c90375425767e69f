"""Analysis, how fast each type of result goes between workers.

Which results a message held no record tells. A worker takes them into memory one after the other
when the message is there, message after message. So each message has the next ones of those that
its worker received, as many as it had; that is believed where their sizes add up to its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Columns
from dasf_hpc.analysis.executions import Ints, read_executions
from dasf_hpc.analysis.held import RECEIVED, Held, held
from dasf_hpc.trace.open import Trace

#: Smaller messages say more of their latency than of their speed, bytes.
LARGE = 100_000
#: Of what is compared so many messages of about one size, ...
ENOUGH = 10
#: ... which is within this factor, and slow is what has this part of the others' speed.
ALIKE, SLOW = 4.0, 1 / 3

#: Of more groups than this each is compared with all, itself among them.
FEW = 64

#: Messages of results of several types, and those of which the results are not known.
SEVERAL, NOT_KNOWN = "several types", "not known"

#: So many results further on a message's are looked for.
_AHEAD = 64

TYPES: Columns = {
    "type": (
        "",
        f"type of the results, and of their elements; {SEVERAL}: in one message; {NOT_KNOWN}: "
        "which results they were",
    ),
    "messages": ("", "messages that held results of this type only"),
    "keys": ("", "results in them"),
    "bytes": ("bytes", "size of the data"),
    "time": ("ns", "time from request to data, in sum over messages; they may overlap"),
    "throughput": ("bytes/s", "bytes over time"),
    "median": ("bytes/s", f"throughput of a message of {LARGE // 1000} kB or more, median"),
}


def message_types(trace: Trace, counted: pd.DataFrame) -> tuple[Ints, list[str]]:
    """Say of what type the results are that each message held.

    Parameters
    ----------
    trace
        The trace.
    counted
        Rows of ``transfers``: ``stop``, ``process``, ``direction``, ``nbytes``, ``keys``.

    Returns
    -------
    codes
        Position of each message's type in names.
    names
        Names of types, `SEVERAL` and `NOT_KNOWN`.
    """
    whole = held(trace)
    type_of, names = _types(trace, whole)
    several, unknown = len(names), len(names) + 1
    codes = np.full(len(counted), unknown, np.int64)
    incoming = (counted["direction"] == "incoming").to_numpy()
    process = counted["process"].to_numpy(np.int64)
    stop = counted["stop"].to_numpy(np.int64)
    size, keys = counted["nbytes"].to_numpy(np.int64), counted["keys"].to_numpy(np.int64)
    came = np.flatnonzero(whole.how == RECEIVED)
    came = came[np.lexsort((whole.start[came], whole.process[came]))]
    for worker in np.unique(process[incoming]).tolist():
        mine = np.flatnonzero(incoming & (process == worker))
        mine = mine[np.argsort(stop[mine], kind="stable")]
        first, last = np.searchsorted(whole.process[came], [worker, worker + 1])
        own = came[first:last]
        kinds = type_of[own]
        begins = _first_results(size[mine], keys[mine], whole.nbytes[own])
        for message, begin in zip(mine.tolist(), begins.tolist(), strict=True):
            if begin >= 0:
                part = kinds[begin : begin + int(keys[message])]
                low, high = int(part.min()), int(part.max())
                codes[message] = low if low == high >= 0 else unknown if low < 0 else several
    return codes, [*names, SEVERAL, NOT_KNOWN]


def _first_results(sizes: Ints, counts: Ints, results: Ints) -> Ints:
    """Give which result is each message's first one; -1: it cannot be told."""
    sums = np.concatenate([[0], np.cumsum(results)])
    counts = np.maximum(0, counts)
    begin = np.cumsum(counts) - counts
    fits = (counts > 0) & (begin + counts <= len(results))
    fits[fits] = sums[begin[fits] + counts[fits]] - sums[begin[fits]] == sizes[fits]
    if fits.all():
        return begin
    # something came otherwise, or twice: each message's are looked for from the last one's on
    found = np.full(len(sizes), -1, np.int64)
    at = 0
    for message, (size, count) in enumerate(zip(sizes.tolist(), counts.tolist(), strict=True)):
        last = min(at + _AHEAD, len(results) - count)
        if count <= 0 or last < at:
            continue
        tried = np.arange(at, last + 1)
        good = np.flatnonzero(sums[tried + count] - sums[tried] == size)
        if len(good):
            found[message] = tried[good[0]]
            at = int(tried[good[0]]) + count
    return found


def _types(trace: Trace, whole: Held) -> tuple[Ints, list[str]]:
    """Give the type of each held result as a number, -1 where no task tells, and names of them."""
    runs = read_executions(trace)
    parts = []
    known: dict[tuple[str, str], int] = {}
    for piece in trace.pieces("tasks", ["type", "dtype"]):
        kinds, dtypes = piece["type"].cat, piece["dtype"].cat
        pair = kinds.codes.to_numpy(np.int64) << 32 | (dtypes.codes.to_numpy(np.int64) + 1)
        codes, pairs = pd.factorize(pair)
        numbers = []
        for one in pairs.tolist():
            kind, dtype = one >> 32, (one & 0xFFFFFFFF) - 1
            if kind < 0:
                numbers.append(-1)
                continue
            name = str(kinds.categories[kind]), str(dtypes.categories[dtype]) if dtype >= 0 else ""
            numbers.append(known.setdefault(name, len(known)))
        parts.append(np.array([*numbers, -1], np.int64)[codes])
    of_task = np.concatenate([np.empty(0, np.int64), *parts])
    top = int(max(whole.key.max(initial=-1), runs.key.max(initial=-1))) + 1
    of_key = np.full(max(1, top), -1, np.int64)
    good = (runs.key >= 0) & (of_task >= 0)
    of_key[runs.key[good]] = of_task[good]
    names = [f"{kind} ({dtype})" if dtype else kind for kind, dtype in known]
    return of_key[whole.key], names


def types_table(
    codes: Ints, names: list[str], keys: Ints, nbytes: Ints, took: Ints
) -> pd.DataFrame:
    """Make the table of types, the one with the most bytes first."""
    rows = []
    for code in np.unique(codes).tolist():
        mine = codes == code
        size, time = int(nbytes[mine].sum()), int(took[mine].sum())
        large = mine & (nbytes >= LARGE) & (took > 0)
        rates = nbytes[large] / took[large] * 1e9
        rows.append(
            {
                "type": names[code],
                "messages": int(mine.sum()),
                "keys": int(keys[mine].sum()),
                "bytes": size,
                "time": time,
                "throughput": size / time * 1e9 if time else np.nan,
                "median": float(np.median(rates)) if len(rates) else np.nan,
            }
        )
    table = pd.DataFrame(rows, columns=list(TYPES))
    return table.sort_values("bytes", ascending=False, kind="stable").reset_index(drop=True)


def beside_others(
    group: NDArray[Any], kind: NDArray[Any], nbytes: Ints, took: Ints, groups: int
) -> NDArray[np.float64]:
    """Give each group's speed as a part of the others', of messages of about one size.

    Parameters
    ----------
    group
        Of each message, what it is compared by; less than 0: it is not.
    kind
        Only messages of one kind are compared with each other.
    nbytes, took
        Size of each message and what it took, ns.
    groups
        How many groups there are.

    Returns
    -------
    numpy.ndarray
        By group the median, by bytes, over classes of size of the ratio of medians; NaN where
        there are less than `ENOUGH` messages of it, or of others, in every class.
    """
    found = np.full(groups, np.nan)
    some = np.flatnonzero((group >= 0) & (nbytes >= LARGE) & (took > 0))
    if not len(some):
        return found
    size = np.floor(np.log(nbytes[some] / LARGE) / np.log(ALIKE)).astype(np.int64)
    rate = nbytes[some] / took[some]
    classes, of_class = np.unique(
        np.stack([kind[some].astype(np.int64), size]), axis=1, return_inverse=True
    )
    ratios: dict[int, list[tuple[float, float]]] = {}
    for number in range(classes.shape[1]):
        inside = of_class.reshape(-1) == number
        here, rates, weights = group[some][inside], rate[inside], nbytes[some][inside]
        order = np.argsort(here, kind="stable")
        here, rates, weights = here[order], rates[order], weights[order]
        ones, firsts = np.unique(here, return_index=True)
        lasts = np.append(firsts[1:], len(here))
        whole = float(np.median(rates))
        for one, first, last in zip(ones.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
            if min(last - first, len(here) - last + first) < ENOUGH:
                continue
            usual = whole  # of many groups no single one moves it much
            if len(ones) <= FEW:
                usual = float(np.median(np.concatenate([rates[:first], rates[last:]])))
            ratio = float(np.median(rates[first:last])) / usual
            ratios.setdefault(one, []).append((ratio, float(weights[first:last].sum())))
    for one, told in ratios.items():
        told.sort()
        so_far = np.cumsum([weight for _, weight in told])
        found[one] = told[int(np.searchsorted(so_far, so_far[-1] / 2))][0]
    return found
