"""What signals ask of a run: to end gracefully, or at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

#: The terminal was closed, or a batch scheduler or an administrator ends us: no time to wait.
_AT_ONCE = (signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt where the run can take it.

    The first Ctrl-C asks for a graceful end; a second one, SIGTERM or SIGHUP for an end at once.

    Attributes
    ----------
    taken
        Number of the first signal; None while there was none.
    at_once
        Whether to cancel rather than wait.
    """

    def __init__(self) -> None:
        self.taken: int | None = None
        self.at_once = False
        self._raising = True
        self._on_hurry: Callable[[], None] | None = None
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_AT_ONCE):
                self._kept[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def hold(self, on_hurry: Callable[[], None]) -> None:
        """From now on signals raise nothing; one that asks for an end at once is told on."""
        self._raising = False
        self._on_hurry = on_hurry
        if self.at_once:
            on_hurry()

    def release(self) -> None:
        """From now on the next signal raises KeyboardInterrupt again.

        Raises
        ------
        KeyboardInterrupt
            If one has come that asks for an end at once.
        """
        self._on_hurry = None
        self._raising = True
        if self.at_once:
            self._raising = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.taken is not None or number in _AT_ONCE:
            self.at_once = True
        self.taken = self.taken or number
        if self._on_hurry is not None and self.at_once:
            self._on_hurry()
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt
