"""Recording: how a journal's blocks get from the memory where they are recorded to the file.

A process records into anonymous memory, never into a file: no fault and no stall of a file system
reaches it. The memory is shared with whoever drains it, as a rule the node's recorder process
(`dasf_hpc.profile.sampler`), every 0.1 s; it outlives the process that records, so that a SIGKILL
of either of the two loses nothing. What is lost is what was not drained yet, 0.1 s of it, when both
are killed before one of them is replaced: the whole node job at once, or the node.

The memory is an array of blocks as `dasf_hpc.profile.journal` describes them, block n of the
journal going to n * 4096 of the file. In memory two numbers of 8 bytes stand in place of the
header's two slots and its last 8 bytes, each written by one store: at 40 where the data ends, from
the beginning of the memory (0 where there is none yet), and at 56 what becomes of the block: 0
while it is recorded into; the end of its data, from its own beginning, once its writer is done with
it; all ones once that is on file, and the writer may use the place again. In blocks of the streams
`WORDS` the first number stays 0 while they are recorded into: their records are whole words of 8
bytes, of which the first is stored last and is never 0, and the data ends before the first record
that is 0. The checksums that a block has on file are made here. The first block of the memory
holds, as its first number, the errno of the latest attempt to write, 0 where it worked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import platform
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

#: Version of what is said above of the memory: who records and who files must agree on it.
LAYOUT = 3

BLOCK = 4096
HEADER = 64
#: Where a block's header holds its CRC-32 and, on file, its two slots.
CRC_OFFSET = 36
SLOT_OFFSETS = (40, 48)
#: Where it holds, in memory, the end of its data and its state.
END_OFFSET = 40
STATE_OFFSET = 56
#: The state of a block that is on file and may be used again.
FREE = 2**64 - 1

CRC = struct.Struct("<I")
SLOT = struct.Struct("<II")
_WORD = struct.Struct("<Q")
_NUMBER_OFFSET = 16
_STREAM_OFFSET = 6
_META = 0

#: Words of a record by number of the stream, for the streams whose records publish themselves: one
#: store a record less, and the record's own is of one word (transitions).
WORDS = {3: 1}

#: Seconds between two turns, and after one that failed.
INTERVAL_S = 0.1
RETRY_S = 1.0

#: Between reading where the data ends and reading header and data. A processor of the x86 family
#: shows its stores to others in their order; others may show the end some 100 ns before the data.
SETTLE_S = 0.0 if platform.machine() in ("x86_64", "AMD64") else 0.001

#: The words of a block's header that say how much of the block there is to read.
_PUBLISHED = [END_OFFSET // 8, STATE_OFFSET // 8]

_MFD_CLOEXEC = 1


def anonymous_memory(size: int) -> int:
    """Give a descriptor of shared memory that belongs to no file system; it is used as it fills.

    Raises
    ------
    OSError
        If there is none to be had.
    """
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("dasf-hpc-journal")
    else:  # Pythons that are built for an old C library and run with a newer one, as conda's
        create = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
        memory = -1 if create is None else create(b"dasf-hpc-journal", _MFD_CLOEXEC)
        if memory < 0:
            raise OSError(errno.ENOSYS, "this system has no anonymous shared memory")
    os.ftruncate(memory, size)
    return memory


class Drain:
    """Copies the blocks of one journal from memory to its file, as far as they are committed.

    Parameters
    ----------
    memory, file
        Descriptors; the drain closes them at its end.
    sizes
        Bytes of a record by number of its stream; the others' records end with a NUL.

    Raises
    ------
    OSError, ValueError
        If the memory is none.
    """

    def __init__(self, memory: int, file: int, sizes: Mapping[int, int]) -> None:
        self._descriptors = (memory, file)
        self._file = file
        self._sizes = sizes
        self._map = mmap.mmap(memory, 0)
        self._words: NDArray[np.uint64] = np.frombuffer(self._map, "<u8").reshape(-1, BLOCK // 8)
        self._used = 1
        self._seen: NDArray[np.uint64] = np.zeros((len(self._words), HEADER // 8), "<u8")
        # Slot on file of the blocks that are still recorded into, by number.
        self._filed: dict[int, bytes] = {}
        self._failing_since = 0
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._patience: float | None = None
        self._thread: threading.Thread | None = None

    # -- by hand

    def turn(self) -> bool:
        """File what was committed since the last turn; False where writing failed."""
        with self._lock:
            failed = 0
            try:
                self._file_changed()
            except OSError as error:
                failed = error.errno or errno.EIO
                self._failing_since = self._failing_since or time.monotonic_ns()
            else:
                self._failing_since = 0
            self._words[0, 0] = failed
            return not failed

    @property
    def failure(self) -> int:
        """The errno of the latest turn, 0 where it worked."""
        return int(self._words[0, 0])

    def _changed(self) -> list[tuple[int, bytes]]:
        """Give index and header of the blocks that are not on file as they are, by number.

        The writer stores header, then state 0, then data, then the end of the data or its last
        state, each in a call of its own, so that no compiler moves them. Here they are read the
        other way round: state and end, then the header, then the data. So whoever sees a state or
        an end sees, after it, the header and the data that belong to it:

        - A processor of the x86 family shows stores in their order and reads in its order.
        - Others do neither, but a store does not stay unseen for as long as `SETTLE_S`. Without a
          second look at the header, a place that was free and is used again could show its new
          state with its old header, and new data went where old data is on file.

        Meanwhile no place changes its owner: only this thread frees one, and one that was free when
        its state was read is left for the next turn, whatever its header says by now. A header that
        is only half there has a wrong CRC; a place never used before has state 0 without a header,
        and no end and no data. Before a place is freed its data was read and written to the file,
        and for that the GIL was let go and taken again, which no processor reads past; the writer
        stores into it only after it saw that it is free.
        """
        words = self._words
        while self._used < len(words) and words[self._used, 0]:
            self._used += 1
        ends_and_states = words[: self._used, _PUBLISHED]  # a list of columns: a copy
        if SETTLE_S:
            time.sleep(SETTLE_S)
        heads = words[: self._used, : HEADER // 8].copy()
        heads[:, _PUBLISHED] = ends_and_states
        heads[0] = 0
        streams = heads.view(np.uint8)[:, _STREAM_OFFSET]
        for stream, size in WORDS.items():
            begun = (streams == stream) & (heads[:, STATE_OFFSET // 8] == 0)
            for index in begun.nonzero()[0].tolist():
                length = published(words[index, HEADER // 8 :], size)
                if length:
                    heads[index, END_OFFSET // 8] = index * BLOCK + HEADER + length
        indices = (heads != self._seen[: self._used]).any(axis=1).nonzero()[0]
        numbers = heads[indices, _NUMBER_OFFSET // 8] & 0xFFFFFFFF
        return [(i, heads[i].tobytes()) for i in indices[np.argsort(numbers)].tolist()]

    def _file_changed(self) -> None:
        # Blocks that are on file come first, having the lower numbers: a full disk takes them.
        changed = self._changed()
        if changed and os.fstat(self._file).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was removed")
        for index, head in changed:
            state = _word(head, STATE_OFFSET)
            if state != FREE:
                data = self._published(index, head)
                if data is None:
                    continue
                self._write(head, data)
                if state:
                    self._filed.pop(_number(head), None)
                    # Without an end before it is free: its next header begins without data.
                    self._words[index, END_OFFSET // 8] = np.uint64(0)
                    self._words[index, STATE_OFFSET // 8] = np.uint64(FREE)
                    # Not read again: the place may be in use again, with data not seen yet.
                    head = head[:END_OFFSET] + bytes(8) + head[END_OFFSET + 8 : STATE_OFFSET]
                    head += _WORD.pack(FREE)
            self._seen[index] = np.frombuffer(head, "<u8")

    def _published(self, index: int, head: bytes) -> bytes | None:
        """Give a block's data as far as it is published, None where it is only being made."""
        if zlib.crc32(head[:CRC_OFFSET]) != CRC.unpack_from(head, CRC_OFFSET)[0]:
            return None
        start = index * BLOCK
        end = _word(head, STATE_OFFSET) or _word(head, END_OFFSET) - start
        return self._map[start + HEADER : start + end] if HEADER <= end <= BLOCK else None

    def _write(self, head: bytes, data: bytes) -> None:
        number = _number(head)
        slot = SLOT.pack(HEADER + len(data), zlib.crc32(data))
        # The slot before stays: a node that dies while this is written leaves the block readable.
        slots = slot + self._filed.get(number, bytes(8))
        block = (head[: SLOT_OFFSETS[0]] + slots + bytes(8) + data).ljust(BLOCK, b"\0")
        if data and os.pwrite(self._file, block, number * BLOCK) != BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._filed[number] = slot

    def _name_loss(self) -> int:
        """Give up what is not on file: count it, and say so where the journal has room left."""
        count, last = 0, None
        for index, head in self._changed():
            data = None if _word(head, STATE_OFFSET) == FREE else self._published(index, head)
            if data is None:
                continue
            filed = SLOT.unpack(self._filed.get(_number(head), SLOT.pack(HEADER, 0)))[0] - HEADER
            size = self._sizes.get(head[_STREAM_OFFSET])
            fresh = data[filed:]
            count += fresh.count(b"\0") if size is None else len(fresh) // size
        for index in range(1, self._used):
            head = self._words[index, : HEADER // 8].tobytes()
            if head[_STREAM_OFFSET] == _META and _number(head) in self._filed:
                last = (index, head)
        if count and last is not None:
            document = {
                "kind": "gap",
                "start": self._failing_since,
                "stop": time.monotonic_ns(),
                "count": count,
                "reason": errno.errorcode.get(self.failure, str(self.failure)),
            }
            data = self._published(*last)
            text = json.dumps(document).encode() + b"\0"
            if data is not None and HEADER + len(data) + len(text) <= BLOCK:
                with contextlib.suppress(OSError):  # then the journal's end is missing, too
                    self._write(last[1], data + text)
        return count

    # -- in a thread

    def start(self) -> None:
        """Take a turn every 0.1 s, in a thread; does nothing where it does so already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dasf-hpc-drain", daemon=True)
            self._thread.start()

    def ask(self, answer: Callable[[], None]) -> None:
        """Take a turn now and have a function called after it, both in the thread."""
        self._asked.put(answer)

    def finish(self, patience: float, answer: Callable[[], None] | None = None) -> None:
        """End: file what is left, trying for so many seconds, and give up the rest; in the thread.

        Returns at once; a function is called when all is done.
        """
        self._patience = patience
        self.ask(answer or (lambda: None))

    def join(self, timeout: float) -> bool:
        """Wait for the end that `finish` began; says whether it came."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        worked = True
        while True:
            answer = None
            with contextlib.suppress(queue.Empty):
                answer = self._asked.get(timeout=INTERVAL_S if worked else RETRY_S)
            if self._patience is not None:
                break
            worked = self.turn()
            if answer is not None:
                answer()
        deadline = time.monotonic() + self._patience
        while not (worked := self.turn()) and time.monotonic() < deadline:
            time.sleep(INTERVAL_S)
        with self._lock:
            if not worked:
                self._name_loss()
            for descriptor in self._descriptors:
                os.close(descriptor)
        if answer is not None:
            answer()
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait()()


def published(words: NDArray[np.uint64], size: int) -> int:
    """Give the bytes of the whole records at the beginning of a block's words.

    Parameters
    ----------
    words
        A block's data in memory, of one of the streams `WORDS`.
    size
        Words of a record.
    """
    first = words[: len(words) // size * size : size]
    empty = first == 0
    count = int(empty.argmax()) if empty.any() else len(first)
    return count * size * 8


def _word(head: bytes, offset: int) -> int:
    word: int = _WORD.unpack_from(head, offset)[0]
    return word


def _number(head: bytes) -> int:
    number: int = CRC.unpack_from(head, _NUMBER_OFFSET)[0]
    return number


def describe(failure: int) -> str:
    """Name what keeps blocks in memory: an errno, or 0 for a file that takes them too slowly."""
    return errno.errorcode.get(failure, str(failure)) if failure else "writing to the file stalled"
