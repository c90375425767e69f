"""Show, as a Perfetto trace: protobuf packets, written as they are made; opens in Perfetto's UI."""

from __future__ import annotations

from typing import IO

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    TracePacket,
    TrackEvent,
)
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

from dasf_hpc.show.timeline import Mark, Slice

#: All packets are of one sequence: interned names hold for the whole file.
_SEQUENCE = 1

#: Clocks 1 and 6 of Perfetto's ``builtin_clock.proto``: REALTIME and BOOTTIME, the default of time
#: stamps.
_REALTIME, _BOOTTIME = 1, 6

#: Where uuids of groups and of tracks begin; that of group 0, which no group has, is the trace's.
_FIRST_GROUP, _FIRST_TRACK = 1 << 32, 1 << 33

#: Made-up thread ids begin above the made-up process ids: Linux has a process's main thread share
#: its id, and Perfetto takes equal ones for that.
_FIRST_THREAD = 10_000_000

_UNITS = {
    "bytes": CounterDescriptor.UNIT_SIZE_BYTES,
}


class PerfettoDrawing:
    """Draws into a file that Perfetto reads.

    A group becomes a process and a track a thread of it, both with made-up ids, for pids and tids
    of different hosts may be equal; the real ones stand in the names.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._builder = StreamingTraceProtoBuilder(file)
        self._names: dict[str, int] = {}
        self._detail_names: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        self._fresh = True

    def about(self, facts: dict[str, str]) -> None:
        """Say what holds for the whole trace, as details of one mark at its beginning."""
        origin = int(facts.get("origin_utc_ns", -1))
        if origin >= 0:
            packet = self._packet()
            for clock, time in ((_BOOTTIME, 0), (_REALTIME, origin)):
                packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=time)
            self._builder.write_packet(packet)
        packet = self._packet()
        packet.track_descriptor.uuid = _FIRST_GROUP
        packet.track_descriptor.name = "dasf-hpc trace"
        self._builder.write_packet(packet)
        packet = self._packet(0)
        event = packet.track_event
        event.type, event.track_uuid = TrackEvent.TYPE_INSTANT, _FIRST_GROUP
        event.name = "About this trace"
        for name, value in facts.items():
            event.debug_annotations.add(name=name, string_value=value)
        self._builder.write_packet(packet)

    def group(self, group: int, name: str, label: str) -> None:
        """Declare a process."""
        packet = self._packet()
        track = packet.track_descriptor
        track.uuid = _FIRST_GROUP + group
        track.process.pid = group
        track.process.process_name = name
        if label:
            track.process.process_labels.append(label)
            track.description = label
        self._builder.write_packet(packet)

    def track(self, track: int, group: int, name: str) -> None:
        """Declare a thread."""
        packet = self._packet()
        described = packet.track_descriptor
        described.uuid, described.parent_uuid = _FIRST_TRACK + track, _FIRST_GROUP + group
        described.thread.pid = group
        described.thread.tid = _FIRST_THREAD + track
        described.thread.thread_name = name
        self._builder.write_packet(packet)

    def counter(self, track: int, group: int, name: str, unit: str) -> None:
        """Declare a counter of a process."""
        packet = self._packet()
        described = packet.track_descriptor
        described.uuid, described.parent_uuid = _FIRST_TRACK + track, _FIRST_GROUP + group
        described.name = name
        if unit in _UNITS:
            described.counter.unit = _UNITS[unit]
        else:
            described.counter.unit_name = unit
        self._builder.write_packet(packet)

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices: two packets each, names interned."""
        write = self._builder.write_packet
        for one in slices:
            packet = self._packet(one.start)
            event = packet.track_event
            event.type, event.track_uuid = TrackEvent.TYPE_SLICE_BEGIN, _FIRST_TRACK + one.track
            event.name_iid = self._intern(packet, one.name)
            self._details(packet, one.details)
            if one.arrows_out:
                event.flow_ids.extend(one.arrows_out)
            if one.arrows_in:
                event.terminating_flow_ids.extend(one.arrows_in)
            write(packet)
            packet = self._packet(one.stop)
            event = packet.track_event
            event.type, event.track_uuid = TrackEvent.TYPE_SLICE_END, _FIRST_TRACK + one.track
            write(packet)

    def marks(self, marks: list[Mark]) -> None:
        """Draw moments: a packet each, names interned."""
        for one in marks:
            packet = self._packet(one.time)
            event = packet.track_event
            event.type, event.track_uuid = TrackEvent.TYPE_INSTANT, _FIRST_TRACK + one.track
            event.name_iid = self._intern(packet, one.name)
            self._details(packet, one.details)
            self._builder.write_packet(packet)

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values."""
        for time, value in zip(times, values, strict=True):
            packet = self._packet(time)
            event = packet.track_event
            event.type, event.track_uuid = TrackEvent.TYPE_COUNTER, _FIRST_TRACK + track
            event.double_counter_value = value
            self._builder.write_packet(packet)

    def _packet(self, time: int | None = None) -> TracePacket:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if self._fresh:
            packet.sequence_flags = (
                TracePacket.SEQ_INCREMENTAL_STATE_CLEARED | TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
            )
            self._fresh = False
        else:
            packet.sequence_flags = TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        if time is not None:
            packet.timestamp = time
        return packet

    def _details(self, packet: TracePacket, details: dict[str, str | int]) -> None:
        for name, value in details.items():
            detail = packet.track_event.debug_annotations.add()
            detail.name_iid = self._intern_detail(packet, name)
            if isinstance(value, int):
                detail.int_value = value
            elif name == "key":  # each is another one
                detail.string_value = value
            else:
                detail.string_value_iid = self._intern_text(packet, value)

    def _intern(self, packet: TracePacket, name: str) -> int:
        number = self._names.get(name)
        if number is None:
            number = self._names[name] = len(self._names) + 1
            packet.interned_data.event_names.add(iid=number, name=name)
        return number

    def _intern_detail(self, packet: TracePacket, name: str) -> int:
        number = self._detail_names.get(name)
        if number is None:
            number = self._detail_names[name] = len(self._detail_names) + 1
            packet.interned_data.debug_annotation_names.add(iid=number, name=name)
        return number

    def _intern_text(self, packet: TracePacket, text: str) -> int:
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = len(self._texts) + 1
            packet.interned_data.debug_annotation_string_values.add(iid=number, str=text.encode())
        return number
