"""Analysis: what would a faster function bring?

The run's schedule is played again with other durations (`dasf_hpc.analysis.graph.Schedule`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity, costliest_first
from dasf_hpc.analysis.causes import FASTER, causes
from dasf_hpc.analysis.executions import Executions, group_sums, read_executions
from dasf_hpc.analysis.savings import PLAYED, Change, savings
from dasf_hpc.errors import SettingsError
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: Functions that are looked at where none is named: those with the longest times in total.
LONGEST = 8
#: A function is told of where it saves this share of the time from first to last task, %, ...
NAMED_SHARE = 2.0
#: ... and what it saves beside other causes where that is this much less.
LESS = 0.9

CHANGES: Columns = {
    "function": ("", "the function that would be faster"),
    "factor": ("", "how many times faster; below 1: slower"),
    "total": ("ns", "what it takes now, in sum over its tasks"),
    "recorded": ("ns", "from the first task to the last, as it was"),
    "time": ("ns", "the same, as it would be"),
    "saved": ("ns", "recorded minus time"),
    "saved_share": ("%", "of what was recorded"),
}


def what_if(trace: Trace, faster: Mapping[str, float] | None = None) -> Answer:
    """Say how long the run would take if a function were faster.

    Parameters
    ----------
    trace
        The trace.
    faster
        How many times faster by function; the longest eight, each twice as fast, by default.

    Returns
    -------
    Answer
        Table ``changes``, a row a function, each for itself; the one that saves most first.

    Raises
    ------
    ValueError
        If a factor is not above 0.
    SettingsError
        If a function is not in the run.

    Notes
    -----
    Tasks stay on their workers and keep their order and delays. Dask would move some to workers
    that become free, so that what it saves may be more; a change of the delays is not foreseen.
    """
    runs = read_executions(trace)
    columns = {"changes": CHANGES}
    if not len(runs):
        empty = pd.DataFrame(columns=list(CHANGES))
        reason = "No task was executed in this run."
        return Answer("what_if", {"changes": empty}, columns, [], [reason])
    width = len(runs.functions)
    total = group_sums(runs.function, runs.duration, width)
    unanswered = []
    asked = faster is not None
    if faster is None:
        longest = [f for f in np.argsort(-total, kind="stable")[:LONGEST] if total[f] > 0]
        faster = {runs.functions[f]: FASTER for f in longest}
    for name, factor in faster.items():
        if not factor > 0:
            raise ValueError(f"{name} cannot be {factor:g} times as fast: give a factor above 0")
        if name not in runs.functions:
            raise _unknown(name, runs.functions)
    if not trace.rows("dependencies"):
        unanswered.append("What tasks needed of each other: no dependency was recorded.")
    run = savings(trace)
    if len(runs) > PLAYED:
        unanswered.append(
            f"What exactly is saved of more than {PLAYED:,} executions: told is what the critical "
            "path has of it, which is the most that it can be."
        )
    rows = []
    for name, factor in faster.items():
        code = runs.functions.index(name)
        shorter = run.duration - np.round(run.duration / factor).astype(np.int64)
        removed = np.where(run.graph.function == code, shorter, 0)
        if factor >= 1:
            time = run.length(Change(duration=removed))
        else:
            time = run.schedule.length(run.duration + run.schedule.delays - removed)
        rows.append(
            {
                "function": name,
                "factor": factor,
                "total": int(total[code]),
                "recorded": run.recorded,
                "time": time,
                "saved": run.recorded - time,
                "saved_share": 100.0 * (run.recorded - time) / max(1, run.recorded),
            }
        )
    table = pd.DataFrame(rows, columns=list(CHANGES))
    table = table.sort_values("saved", ascending=False, kind="stable").reset_index(drop=True)
    found = _asked(table) if asked else _findings(trace, runs, table)
    return Answer("what_if", {"changes": table}, columns, found, unanswered)


def _asked(table: pd.DataFrame) -> list[Finding]:
    """Tell of changes that were asked about."""
    return [
        Finding(
            Severity.NOTICE,
            "what_if",
            "changes",
            (int(str(row)),),
            f"{_sentence(change)}.",
            "Begin with the one that saves most.",
            saves=int(change["saved"]),
        )
        for row, change in table.iterrows()
        if change["saved_share"] >= NAMED_SHARE
    ]


def _sentence(change: Any) -> str:
    return (
        f"If {change['function']} were {change['factor']:g}x faster, the tasks would take "
        f"{duration_text(change['time'])} instead of {duration_text(change['recorded'])} "
        f"({share_text(-change['saved_share'])})"
    )


def _findings(trace: Trace, runs: Executions, table: pd.DataFrame) -> list[Finding]:
    """Tell of functions that save something where they are faster, beside all other causes.

    One that a worker is slow at, or whose tasks are too small, is told of as that.
    """
    known = causes(trace)
    told = {cause.figures.get("example") for cause in known.of("slow")}
    told |= {name for cause in known.of("small") for name in cause.figures["tiny"]}
    where = (
        "`dasf-hpc analyze stacks` says in which lines its time is spent"
        if trace.rows("call_samples")
        else "`dasf-hpc analyze functions` says how long its tasks take, and for how much data"
    )
    found = []
    for row, change in table[table["factor"] == FASTER].iterrows():
        if change["saved_share"] < NAMED_SHARE or change["function"] in told:
            continue
        cause = known.faster(runs.functions.index(change["function"]))
        if cause.saves < NAMED_SHARE / 100 * known.savings.recorded:
            continue
        less = cause.saves < LESS * change["saved"]
        found.append(
            Finding(
                Severity.NOTICE,
                "what_if",
                "changes",
                (int(str(row)),),
                _sentence(change)
                + (
                    f": {duration_text(change['saved'])} less alone, "
                    f"{duration_text(cause.saves)} once all other findings are mended."
                    if less
                    else "."
                ),
                f"Make {change['function']} faster, or its tasks' share of the work smaller: "
                f"{where}.",
                **cause.told,
            )
        )
    return costliest_first(found)


def _unknown(name: str, functions: list[str]) -> SettingsError:
    near = difflib.get_close_matches(name, functions, 3, 0.4) or sorted(functions)[:5]
    return SettingsError(
        f"No task of {name} was executed in this run; of {', '.join(near)} some were."
    )
