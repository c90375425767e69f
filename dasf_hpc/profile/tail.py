"""Recording, watched: what was added to a journal since one looked last, from its file alone."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile.drain import BLOCK, HEADER
from dasf_hpc.profile.journal import (
    DTYPES,
    MAGIC,
    JournalContents,
    Stream,
    _decode_records,
    _decode_text,
    _read_blocks,
    _ReadBlock,
)

#: Where a block's header has its stream.
_STREAM_OFFSET = 6

#: Blocks that were reserved and not written yet, of those before the end of the file, that are
#: looked at again: as many as one recorder has on the way at a time (a guess).
_HOLES = 256


#: For how many seconds, of those in which the journal grows, a block may stay as it is before it is
#: taken for finished. Each thread has its own block of a stream and begins another after 4.3 s.
_SETTLED_S = 10.0

#: A look counts for this many of them at most: what stalled is not older for it.
_LOOK_S = 1.0


@dataclass
class _Watched:
    """A block that may still grow: how much of it was given, and when it grew last."""

    stream: int
    changed: float
    given: int = 0


class JournalTail:
    """Reads a journal as it grows.

    Each look reads the headers of the blocks that are new and, of the streams that are wanted, the
    new blocks and those that may still grow: what it costs depends on what is new.

    Parameters
    ----------
    path
        A journal that is, or was, being written.
    streams
        What is wanted: META or streams of records.
    """

    def __init__(self, path: Path, streams: Collection[Stream]) -> None:
        self.path = path
        self._wanted = frozenset(int(stream) for stream in streams)
        self._seen = 0
        self._holes: list[int] = []
        self._watched: dict[int, _Watched] = {}
        self._last_meta = -1
        self._looked = time.monotonic()
        #: Seconds in which the journal grew.
        self._age = 0.0

    def read(self) -> tuple[dict[Stream, NDArray[np.void]], list[dict[str, Any]]]:
        """Give what is new: records by stream, times in ns of the writer's clock, and documents.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        new: dict[Stream, list[_ReadBlock]] = {}
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # the last block is there as far as it is filled
            blocks = -(-os.fstat(file).st_size // BLOCK)
            self._find_blocks(file, blocks * BLOCK)
            for offset, watched in sorted(self._watched.items()):
                contents = JournalContents(self.path)
                data = memoryview(os.pread(file, BLOCK, offset))
                for block in _read_blocks(data, contents):
                    fresh = block.data[watched.given :]
                    if block.stream is not Stream.META:
                        size_of_one = DTYPES[block.stream].itemsize
                        fresh = fresh[: len(fresh) // size_of_one * size_of_one]
                    watched.given += len(fresh)
                    if fresh:
                        watched.changed = self._age
                        part = _ReadBlock(
                            block.stream,
                            block.writer,
                            block.number,
                            block.first,
                            block.base,
                            block.base_key,
                            fresh,
                        )
                        new.setdefault(block.stream, []).append(part)
        finally:
            os.close(file)
        self._forget(bool(new))
        documents = _documents(new.pop(Stream.META, []))
        return {
            stream: _decode_records(stream, blocks) for stream, blocks in new.items()
        }, documents

    def _forget(self, grown: bool) -> None:
        """Let go of blocks that are full or have settled; the last one of documents never is."""
        now = time.monotonic()
        if grown:
            self._age += min(_LOOK_S, now - self._looked)
        self._looked = now
        for offset, watched in list(self._watched.items()):
            room = BLOCK - HEADER - watched.given
            full = watched.stream != Stream.META and room < DTYPES[Stream(watched.stream)].itemsize
            settled = self._age - watched.changed > _SETTLED_S and offset != self._last_meta
            if full or settled:
                del self._watched[offset]

    def _find_blocks(self, file: int, size: int) -> None:
        """Look at the headers of new blocks."""
        holes = []
        for offset in [*self._holes, *range(self._seen, size, BLOCK)]:
            head = os.pread(file, HEADER, offset)
            if head[:4] != MAGIC:
                holes.append(offset)
                continue
            stream = head[_STREAM_OFFSET]
            if stream in self._wanted:
                self._watched[offset] = _Watched(stream, self._age)
                if stream == Stream.META:
                    self._last_meta = max(offset, self._last_meta)
        self._holes = holes[-_HOLES:]
        self._seen = max(size, self._seen)


def _documents(blocks: list[_ReadBlock]) -> list[dict[str, Any]]:
    found = []
    for block in blocks:
        for raw in block.data.split(b"\0")[:-1]:
            with contextlib.suppress(ValueError):
                document = json.loads(_decode_text(raw))
                if isinstance(document, dict):
                    found.append(document)
    return found
