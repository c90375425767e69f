"""Analysis, a set of spans: what time they cover together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Ints


class Covered:
    """The time that spans cover; where several do it counts once.

    Parameters
    ----------
    start, stop
        Of each span, ns, in any order.

    Attributes
    ----------
    start, stop
        The stretches that are covered without a hole, in the order of time.
    """

    def __init__(self, start: Ints, stop: Ints) -> None:
        order = np.argsort(start, kind="stable")
        start = start[order]
        stop = np.maximum.accumulate(np.maximum(start, stop[order]))
        firsts = np.flatnonzero(np.append(True, start[1:] > stop[:-1])[: len(start)])
        self.start: Ints = start[firsts]
        self.stop: Ints = stop[np.append(firsts[1:] - 1, len(stop) - 1)[: len(firsts)]]
        self._sum = np.concatenate([[0], np.cumsum(self.stop - self.start)])

    @property
    def total(self) -> int:
        """The time covered, ns."""
        return int(self._sum[-1])

    def until(self, time: Any) -> Any:
        """Give the time covered before some moments, ns."""
        place = np.searchsorted(self.start, time, "right")
        if not len(self.start):
            return np.zeros_like(place)
        last = self.stop[np.maximum(place - 1, 0)]
        past = np.where(place > 0, np.maximum(0, last - np.asarray(time)), 0)
        return self._sum[place] - past

    def between(self, start: Any, stop: Any) -> Any:
        """Give the time covered from one moment to another, ns."""
        return self.until(stop) - self.until(start)

    def gaps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give start and stop of the holes between the stretches."""
        return self.stop[:-1], self.start[1:]
