"""Launch: is the run of a node job over before the node job begins?

A batch system may start a node job late, or again: PBS reruns one whose node died, SLURM requeues
it. Then nobody waits for its workers, and what is in the run's directory is final. Asked by the
node step, so nothing is imported that takes time to load.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from dasf_hpc.units import duration_text

#: Exit code of a node job that came too late (as errors.py's).
RUN_OVER = 83

#: As in ``manifest.py``, which is not loaded here (a test holds them together).
MANIFEST, HEARTBEAT, DEAD_AFTER_S = "run.json", ".alive", 75.0
FINAL = ("complete", "partial", "failed")
#: States in which the workers are being ended, or have been.
_ENDING = ("stopping", "merging")

#: The file systems of clusters have clocks of their own: a heartbeat must be older by this, too.
CLOCKS_DIFFER_S = 60.0


def run_is_over(directory: Path, now: float | None = None) -> str | None:
    """Say why a node job of a run need not begin; None where it is waited for.

    Where nothing can be read it is: a file may be on its way to this node.

    Parameters
    ----------
    directory
        The run's directory.
    now
        The time, seconds of the epoch; by default this host's.

    Returns
    -------
    str or None
        A sentence for the node job's own log. Nothing is written.
    """
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        gone = not directory.is_dir()
        return (
            f"The run's directory {directory} is gone: this node job is not begun."
            if gone
            else None
        )
    except (OSError, ValueError):
        return None
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, str):
        return None
    if state in (*FINAL, *_ENDING):
        how = f"is over ({state})" if state in FINAL else f"is ending ({state})"
        return f"The run {directory.name} {how}: this node job came too late and is not begun."
    if state == "queued":  # its head has not begun, and so submitted no node job
        return None
    try:
        age = (time.time() if now is None else now) - (directory / HEARTBEAT).stat().st_mtime
    except FileNotFoundError:
        return f"The submit of the run {directory.name} has ended: this node job is not begun."
    except OSError:
        return None
    if age > DEAD_AFTER_S + CLOCKS_DIFFER_S:
        return (
            f"The submit of the run {directory.name} gave no sign of life for "
            f"{duration_text(1e9 * age)}: this node job is not begun."
        )
    return None
