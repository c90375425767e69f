"""Launch: Dask's own messages of this process go to a file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path


class _LogFile(logging.FileHandler):
    """A log file that may fail: a full disk is no reason to fill the terminal with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the message."""

    def flush(self) -> None:
        """Write what is buffered, where that works."""
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Close the file, also where what is buffered cannot be written any more."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Have Dask's own messages of this process in a file, not on the user's terminal."""
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    names = ("distributed", "distributed.client", "dask_jobqueue", "dasf_hpc")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers[:] = handlers
            logger.propagate = propagate
        handler.close()
