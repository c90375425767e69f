"""What a Perfetto file says: its events with whole times, names and details, by the row."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

BOOTTIME = 6


@dataclass
class _Sequence:
    """What a sequence said before: the last time, its default row, numbers of texts."""

    time: int = 0
    track: int = 0
    clock: int = BOOTTIME
    names: dict[int, str] = field(default_factory=dict)
    details: dict[int, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An event; the sequence it is of knows the texts."""

    time: int
    track: int
    event: Any
    sequence: _Sequence

    @property
    def kind(self) -> int:
        return int(self.event.type)

    @property
    def name(self) -> str:
        return self.event.name or self.sequence.names.get(self.event.name_iid, "")


def whole(path: Path) -> Any:
    """Give all packets, those that are compressed, too."""
    return _packets(path.read_bytes())


def _packets(content: bytes) -> Any:
    for packet in Trace.FromString(content).packet:
        if packet.compressed_packets:
            yield from Trace.FromString(zlib.decompress(packet.compressed_packets)).packet
        else:
            yield packet


def read_packets(path: Path) -> list[Event]:
    """Give the events of rows in the order in which they stand in the file."""
    return events(path.read_bytes())


def events(content: bytes) -> list[Event]:
    """Give the events of what a file holds."""
    sequences: dict[int, _Sequence] = {}
    found = []
    for packet in _packets(content):
        one = sequences.setdefault(packet.trusted_packet_sequence_id, _Sequence())
        if packet.HasField("trace_packet_defaults"):
            one.track = packet.trace_packet_defaults.track_event_defaults.track_uuid
            one.clock = packet.trace_packet_defaults.timestamp_clock_id
        interned = packet.interned_data
        one.names.update({n.iid: n.name for n in interned.event_names})
        one.details.update({n.iid: n.name for n in interned.debug_annotation_names})
        texts = interned.debug_annotation_string_values
        one.texts.update({n.iid: n.str.decode() for n in texts})
        if packet.HasField("track_event") and packet.track_event.type in (
            TrackEvent.TYPE_SLICE_BEGIN,
            TrackEvent.TYPE_SLICE_END,
            TrackEvent.TYPE_COUNTER,
            TrackEvent.TYPE_INSTANT,
        ):
            time = packet.timestamp
            if one.clock != BOOTTIME and not packet.HasField("timestamp_clock_id"):
                time = one.time = one.time + packet.timestamp
            track = packet.track_event.track_uuid or one.track
            found.append(Event(time, track, packet.track_event, one))
    return found


def told(one: Event) -> dict[str, Any]:
    """Give the details of an event."""
    return {
        one.sequence.details[detail.name_iid]: detail.int_value
        if detail.HasField("int_value")
        else one.sequence.texts.get(detail.string_value_iid, detail.string_value)
        for detail in one.event.debug_annotations
    }


def track_names(path: Path) -> dict[tuple[str, ...], Any]:
    """Give the description of each row by the names of those it is in, and its own."""
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in whole(path)
        if packet.HasField("track_descriptor")
    }

    def path_of(track: Any) -> tuple[str, ...]:
        above = tracks.get(track.parent_uuid)
        return (*(path_of(above) if above else ()), track.name)

    return {path_of(track): track for track in tracks.values()}
