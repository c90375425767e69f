"""Launch: signs of life of the nodes, which a batch scheduler may take hours to miss.

The batch script of a node job leaves one every few seconds as a file of the run's directory. A job
is silent when neither that file has changed nor a worker of it been heard of for a while: then its
node, or its way to the file system, is dead, whatever state the queue shows. Files are compared
with themselves, never with a clock: those of nodes and file servers differ.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from dasf_hpc.launch.quoting import shell_word

#: The folder in the run's directory.
SIGNS = "nodes"
#: Between two signs.
EVERY_S = 5


def sign_line(sign: Path) -> str:
    """Give the shell line that leaves signs for as long as the script runs.

    The loop ignores what ends the script's other processes: nsys may then write for minutes.
    """
    path = shell_word(str(sign))
    return (
        f"(trap '' HUP INT TERM; while kill -0 $$; do echo $SECONDS > {path}; sleep {EVERY_S}; "
        "done) < /dev/null > /dev/null 2>&1 &"
    )


@dataclass
class Sign:
    """What was seen of a node job's signs.

    Attributes
    ----------
    path
        Its file.
    changed_at
        When a change was last seen, in seconds of the monotonic clock; None where none was yet:
        a script of a job that has not begun leaves no sign.
    """

    path: Path
    changed_at: float | None = None
    _last: tuple[int, int] | None = field(default=None, repr=False)

    def look(self, now: float | None = None) -> float:
        """Look at the file; give for how long it has not changed, in seconds."""
        now = time.monotonic() if now is None else now
        try:
            # To open a file has NFS ask the server; to look at it has not.
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            seen = None
        else:
            status = os.fstat(descriptor)
            os.close(descriptor)
            seen = (status.st_mtime_ns, status.st_size)
        if seen is not None and seen != self._last:
            self._last, self.changed_at = seen, now
        return 0.0 if self.changed_at is None else now - self.changed_at
