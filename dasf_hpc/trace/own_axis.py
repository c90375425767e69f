"""Trace, what of it is not on its time: reports whose clock nothing ties to the trace's.

Their times stand as nsys noted them, ns from the start of the session: how long anything took is
right, and so is the order within the report, but not when in the run it was.
"""

from __future__ import annotations

from dasf_hpc.trace.open import Trace

OWN_AXIS = "own axis"
"""``correction_source`` of such a report."""

SENTENCE = (
    "nothing ties its clock to the trace's: its times count from the start of its own session, so "
    "that durations are right, and when in the run it was is not known"
)


def reports_apart(trace: Trace) -> dict[int, str]:
    """Give the file of each report that is on an axis of its own, by its row."""
    reports = trace.reports
    apart = reports[reports["correction_source"] == OWN_AXIS]
    return {int(str(row)): str(file) for row, file in apart["file"].items()}


def gpus_apart(trace: Trace) -> dict[int, str]:
    """Give, by row of ``gpus``, the file of the report on whose own axis a GPU's times are."""
    gpus, reports = trace.gpus, trace.reports
    if "own_axis" not in gpus:  # written before there were any
        return {}
    files = reports["file"].astype(object).tolist()
    rows = gpus["own_axis"].tolist()
    return {gpu: str(files[row]) for gpu, row in enumerate(rows) if 0 <= row < len(files)}
