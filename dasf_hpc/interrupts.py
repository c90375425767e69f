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

    The first Ctrl-C asks for a graceful end; a second one, SIGTERM or SIGHUP for an end at once. A
    head's time limit that is near asks as a first Ctrl-C does, unless the end has begun.

    Parameters
    ----------
    limit_s
        In how many seconds the run is to end for its head's time limit; None for never.

    Attributes
    ----------
    taken
        Number of the first signal; None while there was none.
    at_once
        Whether to cancel rather than wait.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self.taken: int | None = None
        self.at_once = False
        self._raising = True
        self._on_hurry: Callable[[], None] | None = None
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_AT_ONCE):
                self._kept[number] = signal.signal(number, self._handle)
            if self._limit_s is not None:
                self._kept[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
                # 0 would be no timer.
                signal.setitimer(signal.ITIMER_REAL, max(self._limit_s, 0.001))
        return self

    @property
    def at_limit(self) -> bool:
        """Whether the head's time limit is what ends the run."""
        return self.taken == signal.SIGALRM

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_timer()
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def hold(self, on_hurry: Callable[[], None]) -> None:
        """From now on signals raise nothing; one that asks for an end at once is told on."""
        self._stop_timer()
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

    def _stop_timer(self) -> None:
        if signal.SIGALRM in self._kept:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM and self.taken is not None:
            return
        if self.taken is not None or number in _AT_ONCE:
            self.at_once = True
        self.taken = self.taken or number
        if self._on_hurry is not None and self.at_once:
            self._on_hurry()
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt
