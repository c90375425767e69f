"""Trace, compressed: columns as chunks that HDF5's own filters (shuffle, gzip, Fletcher-32) undo.

Chunks are made here, outside HDF5, so that several cores or hosts can make them at once; HDF5 only
puts them in their place. What a column's numbers look like before that, differences and values
relative to another column, is undone by `decode` and said on the format page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import deflate
import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.schema import CHUNK, Column

Array = NDArray[Any]

#: Level of gzip for numbers, by libdeflate. Measured, beside zlib's level 4 (for differences its
#: strategy RLE): half the time, 4 % smaller; level 6 takes 30 % longer to be 1 % smaller.
LEVEL = 4

#: Level of gzip for strings. Measured, beside zlib's level 6: a third of the time, 10 % smaller;
#: level 6 takes 25 % longer to be 1 % smaller.
STRING_LEVEL = 5

#: Bytes a chunk of strings.
STRING_CHUNK = 1 << 18

_WORDS = 1 << 16


def fletcher32(data: bytes | bytearray) -> int:
    """Give the checksum that HDF5's filter of that name appends to a chunk."""
    words = np.frombuffer(data, ">u2", len(data) // 2).astype(np.uint64)
    if len(data) % 2:
        words = np.append(words, np.uint64(data[-1] << 8))
    first = second = 0
    for start in range(0, len(words), _WORDS):  # no sum of a piece overflows
        piece = words[start : start + _WORDS]
        weights = np.arange(len(piece), 0, -1, dtype=np.uint64)
        second = (second + first * len(piece) + int((piece * weights).sum())) % 65535
        first = (first + int(piece.sum())) % 65535
    # the sums are kept as HDF5 does it: what is a multiple of 65535 and not zero is 65535
    if words.any():
        first, second = first or 65535, second or 65535
    return second << 16 | first


def encode(values: Array, column: Column, reference: Array | None = None) -> Array:
    """Give a column's numbers as they are stored, but for the differences within chunks.

    Parameters
    ----------
    values
        The column.
    column
        Its description.
    reference
        The column to which it is stored relative, where there is one.
    """
    dtype = np.dtype(column.dtype)
    if column.resolution > 1:
        values = values // column.resolution * column.resolution
    values = values.astype(dtype, copy=False)
    if reference is not None:
        none = values == -1
        values = values - reference.astype(dtype, copy=False)
        values[none] = np.iinfo(dtype).min
    return values


def decode(values: Array, first: int, differences: int, reference: Array | None) -> Array:
    """Give back the numbers of rows from `first` on, which must be the first row of a chunk.

    Parameters
    ----------
    differences
        After how many rows differences begin anew; 0: there are none.
    reference
        The column to which the values are relative, where there is one.
    """
    if differences:
        assert first % differences == 0
        whole = len(values) // differences * differences
        summed = np.empty_like(values)
        np.cumsum(
            values[:whole].reshape(-1, differences),
            axis=1,
            dtype=values.dtype,
            out=summed[:whole].reshape(-1, differences),
        )
        np.cumsum(values[whole:], dtype=values.dtype, out=summed[whole:])
        values = summed
    if reference is not None:
        none = values == np.iinfo(values.dtype).min
        values = values + reference.astype(values.dtype, copy=False)
        values[none] = -1
    return values


def differences_of(values: Array) -> Array:
    """Give the first value of a chunk and each other's difference to the one before."""
    stored = values.copy()
    stored[1:] -= values[:-1]
    return stored


def compress(values: Array, differences: bool) -> bytes:
    """Give a whole chunk of numbers as shuffle, gzip and Fletcher-32 make it."""
    if differences:
        values = differences_of(values)
    size = values.dtype.itemsize
    plain = np.ascontiguousarray(values.view(np.uint8).reshape(-1, size).T).tobytes()
    return _checked(deflate.zlib_compress(plain, LEVEL))


def compress_strings(values: Array) -> bytes:
    """Give a whole chunk of fixed-length strings as gzip and Fletcher-32 make it."""
    return _checked(deflate.zlib_compress(values.tobytes(), STRING_LEVEL))


def _checked(data: bytes | bytearray) -> bytes:
    return bytes(data) + fletcher32(data).to_bytes(4, "little")


@dataclass
class Piece:
    """Consecutive rows of a column: whole chunks are compressed, what is left at the ends is not.

    Attributes
    ----------
    head
        Rows that end the chunk in which the piece begins.
    chunks
        Whole chunks.
    tail
        Rows that begin the chunk in which the piece ends.
    """

    head: Array
    chunks: list[bytes] = field(default_factory=list)
    tail: Array | None = None


def piece(values: Array, first: int, column: Column | None) -> Piece:
    """Cut rows of a column, of which `first` is the first one's number, into chunks.

    A column of None is one of fixed-length strings.
    """
    rows = CHUNK if column is not None else string_rows(values.dtype.itemsize)
    ahead = min(len(values), -first % rows)
    cut = Piece(values[:ahead])
    whole = ahead + (len(values) - ahead) // rows * rows
    for start in range(ahead, whole, rows):
        part = values[start : start + rows]
        cut.chunks.append(
            compress_strings(part) if column is None else compress(part, column.differences)
        )
    if whole < len(values):
        cut.tail = values[whole:]
    return cut


def string_rows(length: int) -> int:
    """Give the rows of a chunk of strings of this length."""
    return max(1, STRING_CHUNK // max(1, length))
