"""Trace, sums of rows by codes, of which a piece is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Sums of pieces that wait to be put together.
_WAITING = 1 << 21


class Sums:
    """How often rows with equal codes were, and what of them added up.

    Parameters
    ----------
    codes
        Names of the codes, each -1 or more.
    values
        Names of what is added up.
    largest
        Of which of these the largest is wanted, too: it is called ``largest``.
    """

    def __init__(self, codes: Sequence[str], values: Sequence[str], largest: str = "") -> None:
        self._codes, self._values = tuple(codes), tuple(values)
        self._largest = self._values.index(largest) if largest else None
        self._parts: list[tuple[Array, Array]] = []
        self._waiting = 0

    def add(self, *columns: Array) -> None:
        """Add rows: a column of each code, then one of each value, of which less than 0 is 0."""
        split = len(self._codes)
        keys = np.stack([column.astype(np.int64) for column in columns[:split]])
        values = [np.maximum(column, 0).astype(np.int64) for column in columns[split:]]
        rows = [np.ones(keys.shape[1], np.int64), *values]
        if self._largest is not None:
            rows.append(values[self._largest])
        self._parts.append(self._summed(keys, np.stack(rows)))
        self._waiting += self._parts[-1][0].shape[1]
        if self._waiting > _WAITING:
            self._parts = [self._whole()]
            self._waiting = 0

    def columns(self) -> dict[str, Array]:
        """Give the codes, ``count``, what was added up and ``largest``, a row for equal codes."""
        names = [*self._codes, "count", *self._values]
        if self._largest is not None:
            names.append("largest")
        if not self._parts:
            return {name: np.empty(0, np.int64) for name in names}
        keys, values = self._whole()
        return dict(zip(names, (*keys, *values), strict=True))

    def _whole(self) -> tuple[Array, Array]:
        keys, values = zip(*self._parts, strict=True)
        return self._summed(np.concatenate(keys, axis=1), np.concatenate(values, axis=1))

    def _summed(self, keys: Array, values: Array) -> tuple[Array, Array]:
        if not keys.shape[1]:
            return keys, values
        # codes are few: one number of all of a row is quicker to sort than several columns
        whole, wide = np.zeros(keys.shape[1], np.int64), 1
        for code in keys:
            size = int(code.max()) + 2
            wide *= size
            whole = whole * size + (code + 1) if wide < 1 << 63 else whole
        order = np.argsort(whole, kind="stable") if wide < 1 << 63 else np.lexsort(keys)
        keys, values = keys[:, order], values[:, order]
        new = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))
        firsts = np.flatnonzero(new)
        sums = np.add.reduceat(values, firsts, axis=1)
        if self._largest is not None:
            sums[-1] = np.maximum.reduceat(values[-1], firsts)
        return keys[:, firsts], sums
