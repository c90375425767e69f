"""Launch: what Dask's client says to itself in a script's process goes to a file of the run.

A client that ends while it waits for futures leaves a task of asyncio for each of them. Those end
with an exception that nobody asks for, and asyncio logs each with its traceback: six lines for
every pending future (seen with distributed 2026.7: `Client.gather` at Ctrl-C, 11,900 lines for
2,000). A client whose scheduler has ended before it logs in 35 lines how it could not connect
again. The script's own traceback, and all that its own coroutines and loggers say, stay where they
are.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

#: In the run's directory.
LOG = Path("logs") / "script-dask.log"

#: So many are kept, for they are all alike; the rest is counted.
KEPT = 20


class DasksOwn(logging.Filter):
    """Takes out of a log what ends the tasks of Dask's own client.

    Parameters
    ----------
    distributed
        The module.
    path
        The file in which they are kept.
    """

    def __init__(self, distributed: Any, path: Path) -> None:
        super().__init__()
        self._folder = str(Path(distributed.__file__).parent)
        # A client's word to itself that it need not wait any more.
        quiet = getattr(distributed.client, "AllExit", asyncio.CancelledError)
        self._endings = (quiet, asyncio.CancelledError, distributed.comm.CommClosedError)
        self._path = path
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record in the file; where it is not Dask's own, let it pass."""
        if not self._is_dasks(record):
            return True
        self._count += 1
        if self._count > KEPT + 1:
            return False
        text = logging.Formatter().format(record)
        if self._count > KEPT:
            text = "more of the same are not kept"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError:  # they are lost
            pass
        return False

    def _is_dasks(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or not isinstance(record.exc_info[1], self._endings):
            return False
        trace = record.exc_info[2]
        return trace is not None and self._began(trace).startswith(self._folder)

    @staticmethod
    def _began(trace: TracebackType) -> str:
        """Give the file of the function in which an exception left a task: the task's own."""
        return trace.tb_frame.f_code.co_filename


def keep_dasks_own(distributed: Any, directory: Path) -> None:
    """From now on keep what Dask's client says to itself in the run's directory."""
    own = DasksOwn(distributed, directory / LOG)
    for name in ("asyncio", "distributed.client"):
        logging.getLogger(name).addFilter(own)
