"""Launch: how a run's head, a batch job, leaves word that it has said everything.

A run is over before its head has said what it holds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

#: In the run's folder of logs, made when the head has said everything.
HEAD_ENDED = "head.ended"
#: Tells the head's process, by its number, where that file is to be: ``PID:PATH``.
HEAD_VARIABLE = "DASF_HPC_HEAD"


def leave_word_of_the_end() -> None:
    """Say, where this process is a run's head, that it has said everything."""
    process, _, path = os.environ.get(HEAD_VARIABLE, "").partition(":")
    if process == str(os.getpid()):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            Path(path).touch(mode=0o600)
