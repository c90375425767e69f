"""Analysis: what did the recording itself cost?

Measured is what the trace shows: how many records each kind has, and how much longer the NVTX range
around a task is than the task. What a record costs is timed when this is asked, with the writer
that the workers use, on the machine that asks: the run's own nodes may be faster or slower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.executions import Ints, read_executions, workers
from dasf_hpc.nsight.join import COMPUTE_DOMAIN
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text

#: Records written to time one.
TIMED = 20_000
#: The cost is named from this share of the executing time.
NAMED_SHARE = 1.0

COSTS: Columns = {
    "what": ("", "what was recorded"),
    "count": ("", "how often"),
    "each": ("ns", "cost of one"),
    "time": ("ns", "cost in sum over all threads; in the task's thread or the event loop's"),
    "share": ("%", "of the executing time of all tasks"),
    "source": ("", "measured in this run, or counted in it and timed on this machine"),
}

_COUNTED = "counted in this run, timed on this machine"
_MEASURED = "measured in this run"


def overhead(trace: Trace) -> Answer:
    """Say what recording the run cost its workers.

    Returns
    -------
    Answer
        Table ``costs``; its last row is the sum.
    """
    runs = read_executions(trace)
    if not len(runs):
        empty = {"costs": pd.DataFrame(columns=list(COSTS))}
        return Answer(
            "overhead", empty, {"costs": COSTS}, [], ["No task was executed in this run."]
        )
    executing = int(runs.duration.sum())
    each = time_records()
    rows = []

    def put(what: str, count: int, cost: float, source: str) -> None:
        total = round(count * cost)
        rows.append(
            {
                "what": what,
                "count": count,
                "each": cost,
                "time": total,
                "share": 100.0 * total / executing if executing else np.nan,
                "source": source,
            }
        )

    put("start and stop of tasks", len(runs), 2 * each["timed"], _COUNTED)
    put("transitions", trace.rows("transitions"), each["transition"], _COUNTED)
    others = ("dependencies", "activities", "transfers", "reschedules")
    put(
        "dependencies, activities, transfers",
        sum(trace.rows(name) for name in others),
        each["plain"],
        _COUNTED,
    )
    unanswered = []
    lags = _range_lags(trace, runs.start, runs.stop)
    if lags is None:
        unanswered.append("NVTX ranges around tasks: no Nsight report was joined to this run.")
    else:
        count, cost = lags
        put("NVTX ranges around tasks, with nsys", count, cost, _MEASURED)
    unanswered.append(
        "What nsys costs inside CUDA calls: a report does not tell; compare with a run of --no-nsys"
        " (`dasf-hpc compare`)."
    )
    put("all", 1, sum(row["time"] for row in rows), f"{_COUNTED}; ranges measured")  # type: ignore[misc]
    table = pd.DataFrame(rows, columns=list(COSTS))
    findings = []
    share = float(table["share"].iloc[-1])
    if share >= NAMED_SHARE:
        threads = int(workers(trace, runs)["threads"].sum())
        whole = int(table["time"].iloc[-1])
        findings.append(
            Finding(
                Severity.WARNING,
                "overhead",
                "costs",
                (len(table) - 1,),
                f"Recording cost {duration_text(whole)} of {threads} thread(s)' time, "
                f"{share:.1f} % of the executing time: tasks are very short "
                f"({duration_text(executing / max(1, len(runs)))} in the mean).",
                "Make larger tasks; Dask itself costs more than this for each of them.",
            )
        )
    return Answer("overhead", {"costs": table}, {"costs": COSTS}, findings, unanswered)


def time_records() -> dict[str, float]:
    """Time a record of each kind on this machine, ns: the best of five rounds."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "timed.journal", {"role": "worker"})
        now = time.monotonic_ns
        timed = journal.timed_recorder(Stream.STARTS)
        transition = journal.transition_recorder()
        plain = journal.recorder(Stream.EDGES)
        key = journal.key("key")
        kinds: dict[str, Callable[[int], object]] = {
            "timed": lambda i: timed(now(), i, key, 1),
            "transition": lambda i: transition(now(), key, 18),
            "plain": lambda i: plain(key, key),
        }
        costs = {}
        for kind, record in kinds.items():
            rounds = []
            for _ in range(5):
                begun = now()
                for i in range(TIMED // 5):
                    record(i)
                rounds.append((now() - begun) / (TIMED // 5))
            costs[kind] = min(rounds)
        journal.close({"time": now()})
    return costs


def _range_lags(trace: Trace, start: Ints, stop: Ints) -> tuple[int, float] | None:
    """Give the number of ranges around tasks, and how much longer than the task they are, ns."""
    if not trace.rows("nvtx_ranges"):
        return None
    ranges = trace.table("nvtx_ranges", ["task", "start", "stop", "domain"])
    ranges = ranges[ranges["domain"].isna() | (ranges["domain"] == COMPUTE_DOMAIN)]
    ranges = ranges[(ranges["task"] >= 0) & (ranges["task"] < len(start)) & (ranges["stop"] >= 0)]
    if not len(ranges):
        return None
    task = ranges["task"].to_numpy()
    longer = (ranges["stop"] - ranges["start"]).to_numpy() - (stop[task] - start[task])
    # ranges that the user's own code made inside a task are shorter than it
    around = longer >= 0
    if not around.any():
        return len(ranges), 0.0
    return int(around.sum()), float(np.mean(longer[around]))
