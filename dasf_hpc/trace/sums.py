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
        self._parts: list[_Part] = []
        self._waiting = 0

    def add(self, *columns: Array) -> None:
        """Add rows: a column of each code, then one of each value, of which less than 0 is 0."""
        split = len(self._codes)
        values = [np.maximum(column, 0).astype(np.int64) for column in columns[split:]]
        largest = None if self._largest is None else values[self._largest]
        part = _summed(list(columns[:split]), None, values, largest)
        self._parts.append(part)
        self._waiting += len(part[1])
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
        keys, count, values, largest = self._whole()
        found = [*keys, count, *values, *([] if largest is None else [largest])]
        return dict(zip(names, found, strict=True))

    def _whole(self) -> _Part:
        keys, counts, values, largest = zip(*self._parts, strict=True)
        return _summed(
            [np.concatenate(column) for column in zip(*keys, strict=True)],
            np.concatenate(counts),
            [np.concatenate(column) for column in zip(*values, strict=True)],
            None if self._largest is None else np.concatenate(largest),
        )


#: Codes, how often, what was added up, and the largest, of rows with different codes.
_Part = tuple[list[Array], Array, list[Array], Array | None]


def _summed(
    keys: list[Array], count: Array | None, values: list[Array], largest: Array | None
) -> _Part:
    """Put rows with equal codes together; without a count each is one."""
    length = len(keys[0])
    whole, wide = np.zeros(length, np.int64), 1
    for code in keys:
        # codes are few: one number of all of a row is quicker to sort than several columns
        size = int(code.max(initial=-1)) + 2
        wide *= size
        if wide < 1 << 63:
            whole *= size
            whole += code
            whole += 1
    if wide <= 1 << 15:
        order = np.argsort(whole.astype(np.int16), kind="stable")  # by radix
    elif wide < 1 << 63:
        order = np.argsort(whole)
    else:
        order = np.lexsort(keys)
    new = np.zeros(length, bool)
    new[:1] = True
    for code in [whole] if wide < 1 << 63 else keys:
        inorder = code[order]
        new[1:] |= inorder[1:] != inorder[:-1]
    firsts = np.flatnonzero(new)
    if count is None:
        counts = np.diff(np.append(firsts, length))
    else:
        counts = np.add.reduceat(count[order], firsts) if length else count
    return (
        [code[order[firsts]].astype(np.int64) for code in keys],
        counts,
        [np.add.reduceat(value[order], firsts) if length else value for value in values],
        None
        if largest is None
        else np.maximum.reduceat(largest[order], firsts)
        if length
        else largest,
    )
