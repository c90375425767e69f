"""Show, when a run's first and last task were: how long after its begin, how long before its end.

The page and the terminal tell it in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasf_hpc.trace.summary import Summary
from dasf_hpc.units import duration_text


def around_work(manifest: Mapping[str, Any], summary: Summary) -> list[str]:
    """Tell what was before the first task and after the last one, and how long before and after.

    Parameters
    ----------
    manifest
        Content of the run's ``run.json``, whose times count; empty where there is none.
    summary
        Of its trace: where the manifest tells nothing, the recording's begin and end count.

    Returns
    -------
    list of str
        As ``batch jobs submitted 7.06 s before the first task``; none where there was no task.
    """
    if summary.work < 0:
        return []
    first = summary.first_task_utc
    last = first + summary.work

    def gone(name: str, sign: int) -> float:
        """Tell how long before the first task, or after the last, something was, ns."""
        seconds = manifest.get(name)
        if first < 0 or not isinstance(seconds, int | float):
            return 0
        return sign * (seconds * 1e9 - (first if sign < 0 else last))

    begun = "batch jobs submitted" if manifest.get("batch_jobs") else "run began"
    before = [(begun, gone("started", -1)), ("script began", gone("job_started", -1))]
    after = [("script ended", gone("job_ended", 1)), ("all written", gone("ended", 1))]
    if not any(time > 0 for _, time in before):
        before = [("recording began", summary.before)]
    if not any(time > 0 for _, time in after):
        after = [("recording ended", summary.after)]
    told = []
    for what, side in ((before, "before the first task"), (after, "after the last")):
        for name, time in what:
            if time > 0:
                told.append(f"{name} {duration_text(time)} {side}")
                side = side.split(" ")[0]  # which task that is has been said
    return told
