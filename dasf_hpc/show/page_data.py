"""Show, the data of a page: a description and columns of whole numbers, as one compressed text.

What a page's script unpacks (``unpacked`` in ``data.js``): base64 of gzip of the length of the
description (4 bytes, the least significant one first), the description (JSON) and the columns. The
description's ``columns`` says of each its number of values and bytes a value. A column's bytes
stand by significance: first the lowest of all values, then the next. So compresses what is small
and what grows steadily: a million tasks take some 5 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How hard gzip tries: 6 takes twice the time for 2 % less (measured: a million tasks).
LEVEL = 5


class Columns:
    """Columns of whole numbers, none of them negative."""

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []
        self._bytes: list[bytes] = []

    def add(self, values: NDArray[Any]) -> int:
        """Take a column in, and give its number."""
        whole = np.ascontiguousarray(values, np.uint64)
        most = int(whole.max()) if len(whole) else 0
        width = max(1, (most.bit_length() + 7) // 8)
        planes = whole.view(np.uint8).reshape(-1, 8)[:, :width].T
        self._sizes.append((len(whole), width))
        self._bytes.append(np.ascontiguousarray(planes).tobytes())
        return len(self._sizes) - 1

    def add_steps(self, values: NDArray[Any]) -> int:
        """Take a column in as the steps from each value to the next; see `signed`."""
        return self.add(signed(np.diff(values, prepend=0)))

    def add_text(self, text: str) -> int:
        """Take a text in, a byte of UTF-8 a value."""
        data = text.encode()
        self._sizes.append((len(data), 1))
        self._bytes.append(data)
        return len(self._sizes) - 1

    def packed(self, description: dict[str, Any]) -> str:
        """Give all of it as a text that HTML can hold."""
        whole = json.dumps(description | {"columns": self._sizes}, separators=(",", ":"))
        head = whole.encode()
        content = b"".join([len(head).to_bytes(4, "little"), head, *self._bytes])
        return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode()


def unpacked(text: str) -> tuple[dict[str, Any], list[NDArray[np.uint64]]]:
    """Give what `Columns.packed` wrote: the description and the columns."""
    content = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(content[:4], "little")
    description = json.loads(content[4 : 4 + size])
    columns, place = [], 4 + size
    for count, width in description.pop("columns"):
        planes = np.frombuffer(content, np.uint8, count * width, place).reshape(width, count)
        place += count * width
        whole = np.zeros((count, 8), np.uint8)
        whole[:, :width] = planes.T
        columns.append(whole.view(np.uint64).reshape(-1))
    return description, columns


def signed(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Write whole numbers of either sign as others of none: 0, -1, 1, -2 become 0, 1, 2, 3."""
    whole = np.asarray(values, np.int64)
    return ((whole << 1) ^ (whole >> 63)).view(np.uint64)


def unsigned(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Give the numbers that `signed` wrote."""
    whole = values.view(np.int64)
    return (whole >> 1) ^ -(whole & 1)


def three_digits(sizes: NDArray[Any]) -> NDArray[np.uint64]:
    """Write sizes with three digits, in two bytes: 0 is none, below 1,000 it is one more.

    Others are 1,001 and 900 for each power of ten, and their first three digits less 100.
    """
    size = np.asarray(sizes, np.int64)
    power = np.floor(np.log10(np.maximum(size, 1))).astype(np.int64) - 2
    digits = np.rint(size / 10.0 ** np.maximum(power, 0)).astype(np.int64)
    power, digits = (
        np.where(digits == 1000, power + 1, power),
        np.where(digits == 1000, 100, digits),
    )
    large = 1001 + 900 * (power - 1) + digits - 100
    return np.where(size < 0, 0, np.where(size < 1000, size + 1, large)).astype(np.uint64)
