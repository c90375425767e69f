"""Show, as a Perfetto trace: protobuf packets, written as they are made; opens in Perfetto's UI.

The file is small and loads fast by what the format has for it: packets are compressed, each row is
a packet sequence of its own with its track as a default, times in it are differences to the time
before, and names are numbers after their first use.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

from dasf_hpc.show.timeline import Group, Mark, Row, Slice
from dasf_hpc.trace.names import natural

#: Packets that stand for no row are of one sequence; those of a row have its number more.
_SEQUENCE = 1

#: Clocks 1 and 6 of Perfetto's ``builtin_clock.proto``: REALTIME and BOOTTIME, the default of time
#: stamps.
_REALTIME, _BOOTTIME = 1, 6

#: Clocks 64 to 127 are a sequence's own: here the one whose times are differences.
_DIFFERENCES = 64

#: Where uuids of groups and of tracks begin; that of group 0, which no group has, is the trace's.
_FIRST_GROUP, _FIRST_TRACK = 1 << 32, 1 << 33

#: Bytes of packets that are compressed together: more make the file hardly smaller.
_TOGETHER = 1 << 20

#: Of zlib, its default: more takes three times as long for a percent (measured).
_LEVEL = 6

#: Details that are the same for all of a function's tasks, or that the key and the attempt say,
#: too: each costs its bytes, and a row of the page's table for every task.
_LEFT_OUT = frozenset({"id", "result type"})

_UNITS = {
    "bytes": CounterDescriptor.UNIT_SIZE_BYTES,
}


@dataclass
class _Sequence:
    """What a reader knows of a row's sequence: the last time and the numbers of names."""

    track: int
    time: int = 0
    fresh: bool = True
    open: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    detail_names: dict[str, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)


class PerfettoDrawing:
    """Draws into a file that Perfetto reads.

    Groups and rows are plain tracks in each other, not Perfetto's processes and threads: those
    have no order of their own in its page, are called by a number after their name, and their
    numbers must be the operating system's, which on different hosts may be equal.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packets = io.BytesIO()
        self._builder = StreamingTraceProtoBuilder(self._packets)
        self._sequences: dict[int, _Sequence] = {}
        self._in_root = False

    def about(self, facts: dict[str, str], roots: Sequence[str]) -> None:
        """Say what holds for the whole trace, as details of one mark at its beginning."""
        # Perfetto sorts outermost tracks by name: digits one by one, where numbers are meant
        self._in_root = sorted(roots) != sorted(roots, key=natural)
        origin = int(facts.get("origin_utc_ns", -1))
        if origin >= 0:
            packet = self._packet()
            for clock, time in ((_BOOTTIME, 0), (_REALTIME, origin)):
                packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=time)
            self._write(packet)
        packet = self._packet()
        packet.track_descriptor.uuid = _FIRST_GROUP
        packet.track_descriptor.name = "dasf-hpc trace"
        packet.track_descriptor.child_ordering = TrackDescriptor.EXPLICIT
        self._write(packet)
        packet = self._packet()
        packet.timestamp = 0
        event = packet.track_event
        event.type, event.track_uuid = TrackEvent.TYPE_INSTANT, _FIRST_GROUP
        event.name = "About this trace"
        for name, value in facts.items():
            event.debug_annotations.add(name=name, string_value=value)
        self._write(packet)

    def group(self, group: Group) -> None:
        """Declare a track that holds others."""
        packet = self._packet()
        track = packet.track_descriptor
        track.uuid = _FIRST_GROUP + group.number
        track.name = group.name
        track.child_ordering = TrackDescriptor.EXPLICIT
        if group.parent is not None or self._in_root:
            track.parent_uuid = _FIRST_GROUP + (group.parent or 0)
            track.sibling_order_rank = group.rank
        if group.about:
            track.description = group.about
        self._write(packet)

    def track(self, row: Row) -> None:
        """Declare a row of slices, and say that what comes of its sequence is on it."""
        self._write(self._described(row))
        self._sequences[row.number] = _Sequence(row.number)

    def counter(self, row: Row, unit: str) -> None:
        """Declare a counter."""
        packet = self._described(row)
        counter = packet.track_descriptor.counter
        if unit in _UNITS:
            counter.unit = _UNITS[unit]
        else:
            counter.unit_name = unit
        self._write(packet)
        self._sequences[row.number] = _Sequence(row.number)

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices: two packets each, names interned."""
        for one in slices:
            sequence = self._sequences[one.track]
            self._end_until(sequence, one.start)
            packet = self._event(sequence, one.start, TrackEvent.TYPE_SLICE_BEGIN)
            self._tell(packet, sequence, one.name, one.details)
            if one.arrows_out or one.launches:
                packet.track_event.flow_ids.extend([*one.arrows_out, *one.launches])
            if one.arrows_in:
                packet.track_event.terminating_flow_ids.extend(one.arrows_in)
            self._write(packet)
            sequence.open.append(one.stop)

    def marks(self, marks: list[Mark]) -> None:
        """Draw moments: a packet each, names interned."""
        for one in marks:
            sequence = self._sequences[one.track]
            packet = self._event(sequence, one.time, TrackEvent.TYPE_INSTANT)
            self._tell(packet, sequence, one.name, one.details)
            self._write(packet)

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values."""
        sequence = self._sequences[track]
        for time, value in zip(times, values, strict=True):
            packet = self._event(sequence, time, TrackEvent.TYPE_COUNTER)
            packet.track_event.double_counter_value = value
            self._write(packet)

    def close(self) -> None:
        """End what is open and write the rest."""
        for sequence in self._sequences.values():
            self._end_until(sequence, None)
        self._compress()

    def _end_until(self, sequence: _Sequence, time: int | None) -> None:
        """End the slices that are over by then, the innermost first."""
        while sequence.open and (time is None or sequence.open[-1] <= time):
            self._write(self._event(sequence, sequence.open.pop(), TrackEvent.TYPE_SLICE_END))

    def _described(self, row: Row) -> TracePacket:
        packet = self._packet()
        track = packet.track_descriptor
        track.uuid, track.parent_uuid = _FIRST_TRACK + row.number, _FIRST_GROUP + row.group
        track.name, track.sibling_order_rank = row.name, row.rank
        if row.about:
            track.description = row.about
        return packet

    def _packet(self) -> TracePacket:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _event(self, sequence: _Sequence, time: int, kind: Any) -> TracePacket:
        """Begin an event of a row, after what a reader must know first."""
        if sequence.fresh:
            sequence.fresh = False
            self._introduce(sequence)
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE + sequence.track
        if time >= sequence.time:
            packet.timestamp, sequence.time = time - sequence.time, time
        else:
            packet.timestamp, packet.timestamp_clock_id = time, _BOOTTIME
        packet.track_event.type = kind
        return packet

    def _introduce(self, sequence: _Sequence) -> None:
        """Say which clock and which track a sequence has."""
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE + sequence.track
        packet.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        defaults = packet.trace_packet_defaults
        defaults.timestamp_clock_id = _DIFFERENCES
        defaults.track_event_defaults.track_uuid = _FIRST_TRACK + sequence.track
        clocks = packet.clock_snapshot.clocks
        clocks.add(clock_id=_BOOTTIME, timestamp=0)
        clocks.add(clock_id=_DIFFERENCES, timestamp=0, is_incremental=True)
        self._write(packet)

    def _tell(
        self, packet: TracePacket, sequence: _Sequence, name: str, details: dict[str, str | int]
    ) -> None:
        """Name an event and tell its details."""
        event, interned = packet.track_event, packet.interned_data
        event.name_iid, new = _number(sequence.names, name)
        if new:
            interned.event_names.add(iid=event.name_iid, name=name)
        for title, value in details.items():
            if title in _LEFT_OUT:
                continue
            detail = event.debug_annotations.add()
            detail.name_iid, new = _number(sequence.detail_names, title)
            if new:
                interned.debug_annotation_names.add(iid=detail.name_iid, name=title)
            if isinstance(value, int):
                detail.int_value = value
            elif title == "key":  # each is another one
                detail.string_value = value
            else:
                detail.string_value_iid, new = _number(sequence.texts, value)
                if new:
                    interned.debug_annotation_string_values.add(
                        iid=detail.string_value_iid, str=value.encode()
                    )

    def _write(self, packet: TracePacket) -> None:
        self._builder.write_packet(packet)
        if self._packets.tell() >= _TOGETHER:
            self._compress()

    def _compress(self) -> None:
        packet = TracePacket(compressed_packets=zlib.compress(self._packets.getvalue(), _LEVEL))
        StreamingTraceProtoBuilder(self._file).write_packet(packet)
        self._packets.seek(0)
        self._packets.truncate()


def _number(known: dict[str, int], text: str) -> tuple[int, bool]:
    """Give a text's number, and whether it is new."""
    found = known.get(text)
    if found is not None:
        return found, False
    known[text] = len(known) + 1
    return len(known), True
