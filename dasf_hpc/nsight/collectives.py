"""Nsight, collectives: which calls of several ranks are one, and what that says of their clocks.

MPI orders the collectives of a communicator: the first call of one rank belongs to the first one of
every other. So calls are matched by their number in the communicator, if the operations agree all
along. It has to be known that the communicator is the same:

- nsys gives it a number of the whole job (table MPI_COMMUNICATORS), or
- the process's handle is MPI_COMM_WORLD's: MPICH's has a fixed value, and with others it is the
  only one that was used before a communicator was made. Those made later are not matched: ranks of
  different rows of a process grid make the same calls on different communicators.
- nsys 2022 tells neither communicators nor when one was made. Then all ranks must have made the
  same calls, and nothing may contradict: not the clock that ranks of one report share, not UTC.
  What remains is an assumption: a program whose ranks make the same calls in groups of their own,
  in step, would be taken for one on MPI_COMM_WORLD.

A rank whose record begins late is matched where its calls fit another one's at just one place
within what UTC allows. What cannot be matched ties nothing, and the reason is told.

NCCL's ranges only queue a collective, so that they wait for nothing; its kernels wait, but one
kernel may hold several collectives, no table names its communicator, and its times are a GPU's:
they tie no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dasf_hpc.nsight.attribute import grouped
from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.join import START_UNCERTAINTY_NS, same_host
from dasf_hpc.nsight.messages import LIBRARIES, MPI, Messages, read_messages
from dasf_hpc.nsight.sqlite import FAR, NONE, Export, Integers
from dasf_hpc.trace.align import UTC_DISAGREEMENT_NS, Correction
from dasf_hpc.trace.causality import Order
from dasf_hpc.trace.ties import EVERYONE_WAITS, NEVER, Prior, Tied, tie_clocks

#: Collectives in which all wait for the root, and those in which the root waits for all.
_FROM_ROOT = frozenset({"MPI_Bcast", "MPI_Scatter"})
_TO_ROOT = frozenset({"MPI_Reduce", "MPI_Gather"})
#: Those whose size is the same at every rank.
_ONE_SIZE = frozenset({"MPI_Allreduce", "MPI_Bcast", "MPI_Reduce", "MPI_Allgather", "MPI_Alltoall"})

#: Calls that make a communicator.
_MAKES = re.compile(
    r"MPI_(Comm_(split|dup|idup|create|spawn|accept|connect|join)|Cart_(create|sub)|Graph_create"
    r"|Dist_graph_create|Intercomm_(create|merge))"
)
_INIT = re.compile(r"MPI_Init(_thread)?")

#: MPICH's handles of MPI_COMM_WORLD and MPI_COMM_SELF, and those of what is built on it.
_WORLD, _SELF = 0x44000000, 0x44000001

#: Reports that UTC puts further apart, ns, are not taken for one job's: a guess.
_APART_NS = 60_000_000_000

#: Tables that tell of the end of a session.
_LONG = ("NVTX_EVENTS", "OSRT_API", "CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_KERNEL")

#: Places at which a rank whose record began late is tried.
_PLACES = 10_000


@dataclass(frozen=True)
class Source:
    """A report among several whose collectives are matched.

    Attributes
    ----------
    hostname
        Its host, None where it does not say.
    start
        UTC of its time 0, ns; None where it does not say.
    calls
        Calls of MPI, UCX and NCCL.
    stop
        Its session's end, ns from its start; 0 where it does not say.
    """

    hostname: str | None
    start: int | None
    calls: Messages
    stop: int = 0

    @classmethod
    def read(cls, sqlite: Path) -> Source | None:
        """Read a report; None: it has no call of MPI."""
        calls = read_messages(sqlite)
        if not (calls.library == LIBRARIES.index(MPI)).any():
            return None
        with Export.opened(sqlite) as export:
            host = export.named_value("TARGET_INFO_SYSTEM_ENV", "Hostname")
            start = export.single_number("TARGET_INFO_SESSION_START_TIME", "utcEpochNs")
            return cls(host, start, calls, _end(export))


def _end(export: Export) -> int:
    """Give when the last that an export tells of ended, ns from the session's start."""
    stop = export.single_number("ANALYSIS_DETAILS", "stopTime")
    if stop is not None and 0 < stop < FAR:
        return stop
    last = 0
    for table in _LONG:
        if "end" in export.columns.get(table, {}):
            (found,) = export.query(f'SELECT max("end") FROM {table}')
            last = max(last, found[0] or 0)
    return min(last, FAR)


@dataclass(frozen=True)
class _Stream:
    """The collectives of one rank on one communicator, in the order of their start."""

    report: int
    pid: int
    rank: int
    rows: Integers
    operation: Integers
    size: Integers
    whole: bool
    told: bool


@dataclass(frozen=True)
class ReportTie:
    """What collectives say of one report, in the order in which reports are joined.

    Attributes
    ----------
    collective
        Of each call the number of the collective that it is part of; -1: none that was matched.
    anchor
        The report to whose session time this one is tied.
    tied
        How; None where nothing ties it.
    said
        Why not; empty where there is nothing to say.
    matters
        Whether collectives could have told more of its clock: there are ranks on other hosts.
    """

    collective: Integers
    anchor: int = NONE
    tied: Tied | None = None
    said: str = ""
    matters: bool = False

    def of(self, calls: int) -> Integers:
        """Give the collective of each of so many calls."""
        if len(self.collective) == calls:
            return self.collective
        return np.full(calls, NONE, np.int32)

    def correction(self, anchors: Mapping[int, Correction | None]) -> Correction | None:
        """Give the correction to the trace's time, by that of the report it is tied to."""
        anchor = anchors.get(self.anchor)
        if self.tied is None or anchor is None or anchor.bound_ns < 0:
            return None
        return self.tied.clock.correction.then(anchor)


#: Of a report whose collectives say nothing.
UNTIED = ReportTie(np.empty(0, np.int32))


@dataclass
class Collectives:
    """What the collectives of several reports say.

    Attributes
    ----------
    reports
        By the number of a report.
    entered, left : (collectives, reports) int64
        Session time of the last entry for which others wait, and of the first return that waits.
    numbers
        The report of each column.
    """

    reports: dict[int, ReportTie] = field(default_factory=dict)
    entered: Integers = field(default_factory=lambda: np.empty((0, 0), np.int64))
    left: Integers = field(default_factory=lambda: np.empty((0, 0), np.int64))
    numbers: list[int] = field(default_factory=list)

    def of(self, number: int) -> ReportTie:
        """Give what they say of a report."""
        return self.reports.get(number, UNTIED)

    def check(self, corrections: Mapping[int, Correction | None]) -> Order:
        """Count returns before another report's entry, on the trace's time.

        Parameters
        ----------
        corrections
            Of each report that was joined, by number; None: it is on an axis of its own.
        """
        order = Order()
        columns = [
            (column, correction)
            for column, number in enumerate(self.numbers)
            if (correction := corrections.get(number)) is not None
        ]
        for one, to_trace in columns:
            left = self.left[:, one]
            for other, from_other in columns:
                if other == one:
                    continue
                entered = self.entered[:, other]
                rows = np.flatnonzero((left != NEVER) & (entered != NEVER))
                known = min(to_trace.bound_ns, from_other.bound_ns) >= 0
                bound = to_trace.bound_ns + from_other.bound_ns if known else NONE
                order.compare(
                    from_other.apply(entered[rows]),
                    to_trace.apply(left[rows]),
                    np.full(len(rows), bound),
                )
        return order


def read_collectives(sqlites: Mapping[int, Path], first: int = 0) -> Collectives:
    """Match the collectives of reports and tie their clocks.

    Parameters
    ----------
    sqlites
        Exports by the number of the report, in the order in which they are joined. One that cannot
        be read is left out: who joins it says why.
    first
        The number of the first collective: the trace may hold some already.
    """
    sources: dict[int, Source] = {}
    for number, sqlite in sqlites.items():
        try:
            source = Source.read(sqlite)
        except NsightError:
            continue
        if source is not None:
            sources[number] = source
    return match_collectives(sources, first)


def match_collectives(sources: Mapping[int, Source], first: int = 0) -> Collectives:
    """Match the collectives of reports and tie their clocks; see `read_collectives`."""
    found = {
        number: np.full(len(source.calls), NONE, np.int32) for number, source in sources.items()
    }
    said: dict[int, list[str]] = {number: [] for number in sources}
    columns = {number: column for column, number in enumerate(sources)}
    entered: list[Integers] = []
    left: list[Integers] = []
    untold: set[int] = set()
    for streams in _communicators(sources, said).values():
        streams = _of_one_job(streams, sources, said)
        places, count = _matched(streams, sources, said)
        if not count:
            continue
        times = _times(streams, places, count, sources, columns)
        wrong = _contradicted(streams, places, count, sources)
        if wrong.any() and not streams[0].told:
            for stream in streams:
                said[stream.report].append(
                    "its ranks' collectives go over several communicators, which this version of "
                    "nsys does not tell apart"
                )
            continue
        for stream, place in zip(streams, places, strict=True):
            rows = stream.rows[place != NONE]
            found[stream.report][rows] = first + place[place != NONE]
        if not streams[0].told:
            untold |= {stream.report for stream in streams}
        entered.append(np.where(wrong[:, None], NEVER, times[0]))
        left.append(np.where(wrong[:, None], NEVER, times[1]))
        first += count
    result = Collectives(numbers=list(sources))
    shape = (0, len(sources))
    result.entered = np.concatenate([np.empty(shape, np.int64), *entered])
    result.left = np.concatenate([np.empty(shape, np.int64), *left])
    ties = _tie(result, sources, said, untold)
    for number in sources:
        anchor, tied = ties.get(number, (NONE, None))
        text = "; ".join(dict.fromkeys(said[number])) if tied is None else ""
        hosts = [source.hostname for source in sources.values()]
        matters = any(not host or not hosts[0] or not same_host(host, hosts[0]) for host in hosts)
        result.reports[number] = ReportTie(found[number], anchor, tied, text, matters)
    return result


# ---------------------------------------------------------------------------------- matching


def _communicators(
    sources: Mapping[int, Source], said: dict[int, list[str]]
) -> dict[Any, list[_Stream]]:
    """Give the collectives of each rank by communicator."""
    names: dict[str, int] = {}
    found: dict[Any, list[_Stream]] = {}
    seen: set[tuple[str | None, int | None, int]] = set()
    for number, source in sources.items():
        calls = source.calls
        categories = [str(name) for name in calls.operation.categories.tolist()]
        codes = np.array([names.setdefault(name, len(names)) for name in categories] + [NONE])
        of_name = codes[calls.operation.codes]
        makes = np.array([bool(_MAKES.match(name)) for name in categories] + [False])
        begins = np.array([bool(_INIT.fullmatch(name)) for name in categories] + [False])
        one_size = np.array([name in _ONE_SIZE for name in categories] + [False])
        size = np.where(
            one_size[calls.operation.codes], np.maximum(calls.sent, calls.received), NONE
        )
        mpi = calls.library == LIBRARIES.index(MPI)
        repeated = False
        for pid, rows in grouped(calls.pid):
            own = rows[mpi[rows]]
            if pid == NONE or not len(own):
                continue
            # an export and the report it is of may both be named
            identity = (source.hostname, source.start, pid)
            if identity in seen and source.start is not None:
                repeated = True
                continue
            seen.add(identity)
            own = own[np.argsort(calls.start[own], kind="stable")]
            whole = bool(begins[calls.operation.codes[own]].any())
            made = calls.start[own[makes[calls.operation.codes[own]]]]
            collective = own[calls.collective[own].astype(bool)]
            for key, chosen, told in _divided(calls, own, collective, made):
                if key is None:
                    said[number].append(
                        "which communicator is MPI_COMM_WORLD cannot be told from its handles"
                    )
                    continue
                stream = _Stream(
                    report=number,
                    pid=pid,
                    rank=int(calls.rank[chosen[0]]),
                    rows=chosen,
                    operation=of_name[chosen],
                    size=size[chosen],
                    whole=whole,
                    told=told,
                )
                found.setdefault(key, []).append(stream)
        if repeated:
            said[number].append("it is of a recording that another report is of")
    return found


def _divided(
    calls: Messages, own: Integers, collective: Integers, made: Integers
) -> list[tuple[Any, Integers, bool]]:
    """Divide a rank's collectives by communicators that mean the same at other ranks.

    Gives of each its identity, None where there is none, its rows, and whether it was told.
    """
    found: list[tuple[Any, Integers, bool]] = []
    everywhere = calls.everywhere[collective].astype(bool)
    numbered = collective[everywhere]
    for number, rows in grouped(calls.communicator[numbered].astype(np.int64)):
        found.append((("number", number), numbered[rows], True))
    others = collective[~everywhere]
    if not len(others):
        return found
    handles = calls.communicator[others].astype(np.int64)
    if (handles == NONE).all():
        return [*found, ("untold", others, False)]
    world = _WORLD if (handles == _WORLD).any() else None
    if world is None:
        used = own[~calls.everywhere[own].astype(bool)]
        if len(made):
            used = used[calls.start[used] < made.min()]
        early = set(calls.communicator[used].astype(np.int64).tolist()) - {NONE, _SELF}
        if len(early) != 1:
            return [*found, (None, others, True)]
        (world,) = early
    rows = others[handles == world]
    return [*found, ("world", rows, True)] if len(rows) else found


def _of_one_job(
    streams: Sequence[_Stream], sources: Mapping[int, Source], said: dict[int, list[str]]
) -> list[_Stream]:
    """Leave out ranks that cannot be of one job."""
    ranks = [stream.rank for stream in streams]
    kept = []
    for stream in streams:
        if stream.rank == NONE:
            said[stream.report].append("it does not say the ranks of its processes")
        elif ranks.count(stream.rank) > 1:
            said[stream.report].append(
                f"several processes say that they are rank {stream.rank}, as of several jobs"
            )
        else:
            kept.append(stream)
    times = [start for s in kept if (start := _utc_of(sources[s.report], s)) is not None]
    if times and max(times) - min(times) > _APART_NS:
        for stream in kept:
            said[stream.report].append(
                f"by UTC the first collectives of its ranks and of others' are "
                f"{(max(times) - min(times)) / 1e9:.0f} s apart, which no job's are"
            )
        return []
    return kept


def _utc_of(source: Source, stream: _Stream) -> int | None:
    if source.start is None or not stream.whole:
        return None
    return source.start + int(source.calls.start[stream.rows[0]])


def _matched(
    streams: Sequence[_Stream], sources: Mapping[int, Source], said: dict[int, list[str]]
) -> tuple[list[Integers], int]:
    """Number the collectives of a communicator: each rank's calls, -1 where that is unsure."""
    places = [np.full(len(stream.rows), NONE, np.int64) for stream in streams]
    if len(streams) < 2:
        return places, 0
    order = sorted(range(len(streams)), key=lambda n: (not streams[n].whole, -len(streams[n].rows)))
    reference = streams[order[0]]
    lowest = 0
    for number in order:
        stream = streams[number]
        shift, why = _shift(reference, stream, sources)
        if shift is None:
            said[stream.report].append(why)
            if not stream.told:
                # the communicators are not told: one rank that differs shows several
                said[reference.report].append(why)
                return [np.full(len(s.rows), NONE, np.int64) for s in streams], 0
            continue
        places[number] = shift + np.arange(len(stream.rows))
        lowest = min(lowest, shift)
    for place in places:
        place[place != NONE] -= lowest
    return places, 1 + max(int(place.max(initial=NONE)) for place in places)


def _shift(
    reference: _Stream, stream: _Stream, sources: Mapping[int, Source]
) -> tuple[int | None, str]:
    """Give the place of a rank's first collective among the reference's, or why it has none."""
    if stream is reference:
        return 0, ""
    if reference.whole and stream.whole:
        if not _agree(reference, stream, 0):
            return None, (
                f"the collectives of its rank {stream.rank} are others than those of rank "
                f"{reference.rank}"
            )
        if not stream.told and len(stream.rows) != len(reference.rows):
            return None, (
                f"its rank {stream.rank} made {len(stream.rows)} collectives and rank "
                f"{reference.rank} made {len(reference.rows)}"
            )
        return 0, ""
    if not stream.told:
        return None, (
            f"the record of rank {stream.rank} or {reference.rank} begins after MPI_Init, and this "
            "version of nsys does not tell communicators"
        )
    return _aligned(reference, stream, sources)


def _overlap(reference: _Stream, stream: _Stream, shift: int) -> tuple[slice, slice]:
    first = max(0, shift)
    last = min(len(reference.rows), shift + len(stream.rows))
    return slice(first, last), slice(first - shift, max(first, last) - shift)


def _agree(reference: _Stream, stream: _Stream, shift: int) -> bool:
    here, there = _overlap(reference, stream, shift)
    one, other = reference.size[here], stream.size[there]
    differ = (one != other) & (one != NONE) & (other != NONE)
    same = reference.operation[here] == stream.operation[there]
    return bool(len(same) and same.all() and not differ.any())


def _aligned(
    reference: _Stream, stream: _Stream, sources: Mapping[int, Source]
) -> tuple[int | None, str]:
    """Find the only place at which a rank's collectives fit, within what UTC allows."""
    begins = f"the record of rank {stream.rank} or {reference.rank} begins after MPI_Init"
    one, other = sources[reference.report], sources[stream.report]
    offset = 0
    if reference.report != stream.report:
        if one.start is None or other.start is None:
            return None, f"{begins}, and without UTC nothing says which of its collectives is which"
        offset = other.start - one.start
    slack = _utc_bound(one, other)
    start, stop = one.calls.start[reference.rows], _stops(one, reference)
    begin, end = other.calls.start[stream.rows] + offset, _stops(other, stream) + offset
    # at its first collective it is where the other's may have been, or the other's first one is
    tried = set(np.flatnonzero((start <= end[0] + slack) & (begin[0] <= stop + slack)).tolist())
    tried |= {
        -int(n) for n in np.flatnonzero((begin <= stop[0] + slack) & (start[0] <= end + slack))
    }
    fitting = []
    for shift in sorted(tried)[:_PLACES]:
        here, there = _overlap(reference, stream, shift)
        meet = (start[here] <= end[there] + slack) & (begin[there] <= stop[here] + slack)
        if meet.all() and _agree(reference, stream, shift):
            fitting.append(shift)
    if len(fitting) == 1 and len(tried) <= _PLACES:
        return fitting[0], ""
    many = "at several places" if fitting else "nowhere"
    return None, f"{begins}, and its collectives fit the others' {many} within what UTC allows"


def _stops(source: Source, stream: _Stream) -> Integers:
    stop = source.calls.stop[stream.rows]
    found: Integers = np.where(stop == NONE, np.int64(FAR), stop)
    return found


def _utc_bound(one: Source, other: Source) -> int:
    """Give how far the UTC of two reports' starts may be off against each other, ns."""
    known = one.hostname and other.hostname
    same = known and same_host(str(one.hostname), str(other.hostname))
    return 2 * START_UNCERTAINTY_NS + (0 if same else UTC_DISAGREEMENT_NS)


# --------------------------------------------------------------------------------------- times


def _times(
    streams: Sequence[_Stream],
    places: Sequence[Integers],
    count: int,
    sources: Mapping[int, Source],
    columns: Mapping[int, int],
) -> tuple[Integers, Integers]:
    """Give the last entry for which others wait, and the first return that waits, by report."""
    entered = np.full((count, len(columns)), -NEVER, np.int64)
    left = np.full((count, len(columns)), NEVER, np.int64)
    for stream, place in zip(streams, places, strict=True):
        calls, column = sources[stream.report].calls, columns[stream.report]
        enters, waits = _roles(calls, stream.rows)
        start, stop = calls.start[stream.rows], calls.stop[stream.rows]
        rows = (place != NONE) & enters & (start != NONE)
        np.maximum.at(entered[:, column], place[rows], start[rows])
        rows = (place != NONE) & waits & (stop != NONE) & (stop >= start)
        np.minimum.at(left[:, column], place[rows], stop[rows])
    entered[entered == -NEVER] = NEVER
    return entered, left


def _roles(calls: Messages, rows: Integers) -> tuple[Integers, Integers]:
    """Say of each call whether others wait for it, and whether it waits for others."""
    categories = [str(name) for name in calls.operation.categories.tolist()] + [""]
    codes = calls.operation.codes[rows]

    def among(names: frozenset[str]) -> Integers:
        found: Integers = np.array([name in names for name in categories])[codes]
        return found

    size = np.maximum(calls.sent[rows], calls.received[rows])
    # with nothing to exchange only a barrier waits
    moves = (size != 0) | among(frozenset({"MPI_Barrier"}))
    root, rank = calls.root[rows], calls.rank[rows]
    known = (root != NONE) & (rank != NONE)
    is_root, other = known & (root == rank), known & (root != rank)
    from_root, to_root, every = among(_FROM_ROOT), among(_TO_ROOT), among(EVERYONE_WAITS)
    enters = moves & (every | (from_root & is_root) | (to_root & other))
    waits = moves & (every | (from_root & other) | (to_root & is_root))
    return enters, waits


def _contradicted(
    streams: Sequence[_Stream],
    places: Sequence[Integers],
    count: int,
    sources: Mapping[int, Source],
) -> Integers:
    """Say of each collective whether ranks that share a report's clock show that it is none."""
    columns = {number: column for column, number in enumerate(sources)}
    entered, left = _times(streams, places, count, sources, columns)
    found: Integers = ((entered != NEVER) & (left != NEVER) & (entered > left)).any(axis=1)
    return found


def _tie(
    collectives: Collectives,
    sources: Mapping[int, Source],
    said: dict[int, list[str]],
    untold: set[int],
) -> dict[int, tuple[int, Tied | None]]:
    """Tie the clocks of each group of reports to the first report of it."""
    numbers = list(sources)
    takes_part = (collectives.entered != NEVER) | (collectives.left != NEVER)
    found: dict[int, tuple[int, Tied | None]] = {}
    left_over = list(range(len(numbers)))
    while len(left_over) > 1:
        anchor = left_over[0]
        rows = takes_part[:, left_over].sum(axis=1) > 1
        group = [n for n in left_over if n == anchor or takes_part[rows, n].any()]
        found_now: list[Tied | None] = [None] * len(group)
        if len(group) > 1:
            found_now = tie_clocks(
                collectives.entered[np.ix_(rows, group)],
                collectives.left[np.ix_(rows, group)],
                [_span(sources[numbers[n]]) for n in group],
                [_prior(sources[numbers[anchor]], sources[numbers[n]]) for n in group],
            )
        done = {anchor}
        for place, tied in zip(group, found_now, strict=True):
            if tied is None:
                continue
            done.add(place)
            number = numbers[place]
            why = _refused(tied, number in untold)
            if why:
                said[number].append(why)
            else:
                found[number] = (numbers[anchor], tied)
        left_over = [n for n in left_over if n not in done]
    return found


def _refused(tied: Tied, untold: bool) -> str:
    residual = tied.clock.correction.residual_ns
    if residual:
        return (
            f"no steady clock fits its collectives, which contradict each other by {residual:,} ns"
        )
    if tied.contradicts and untold:
        return (
            f"its collectives contradict UTC by {tied.contradicts:,} ns, and this version of nsys "
            "does not tell communicators, so that they may be of several"
        )
    return ""


def _span(source: Source) -> tuple[int, int]:
    """Give from when to when a report's times have to be right: all of its session."""
    start, stop = source.calls.start, source.calls.stop
    times = np.concatenate([[0], start[start != NONE], stop[stop != NONE]])
    return int(times.min()), max(source.stop, int(times.max()))


def _prior(anchor: Source, source: Source) -> Prior | None:
    """Give what UTC says of a report's clock against another one's."""
    if anchor.start is None or source.start is None:
        return None
    return Prior(source.start - anchor.start, _utc_bound(anchor, source))
