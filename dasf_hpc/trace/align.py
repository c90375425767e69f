"""Trace: the only place where clocks are corrected, each correction with a bound on its error.

All fits here rest on one fact. Let ``D(t) = reference - local`` at local time ``t``. A reference
reading that was taken *after* local time ``t`` is too late for it, so ``D(t) <= reading - t``; one
taken *before* is too early, so ``D(t) >= reading - t``. An exchange with the reference gives one of
each: nothing about delays has to be assumed, neither that they are symmetric nor how they are
distributed. If the two clocks run at constant rates ``D`` is a straight line under all the first
and over all the second, and the correction is the one in the middle of such lines. (After Moon,
Skelly and Towsley, "Estimation and Removal of Clock Skew from Network Delay Measurements", 1999;
Marzullo and Owicki, "Maintaining the Time in a Distributed System", 1983.)

The bound trusts clocks less. It holds for every ``D`` that keeps all limits and

- has a rate, within `DRIFT_LIMIT`, that changes by no more than `RATE_WANDER` over the run, and
- jumps once, by any amount, at any time between the first and the last quick burst of probes, but
  within a burst, or never.

So a jump that probes show is in the bound, and so is what one between two probes could hide; from
one or two bursts alone nothing tells a jump from a drift, and the bound then grows with
`DRIFT_LIMIT` times the time between them. Where even such a ``D`` contradicts the probes, twice the
least wander that does not is assumed in place of `RATE_WANDER`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

DRIFT_LIMIT = 500e-6
"""Largest drift that is believed, s/s: NTP's limit for a clock it still disciplines (RFC 5905)."""

UTC_DISAGREEMENT_NS = 10_000_000
"""How far two hosts' UTC are assumed to be apart, ns.

An assumption, not a measurement: NVIDIA quotes one to tens of milliseconds for hosts under NTP.
"""

MARK_LAG_NS = 100_000
"""Lag of the best of `MARKS_PER_WINDOW` NVTX marks that were made singly, ns.

Measured on a busy 2-core machine: up to 34 us above the best of all, itself within 39 us.
"""

LONE_MARK_LAG_NS = 5_000_000
"""Lag of any mark where there are fewer, ns. Measured: a first mark was up to 2.4 ms late."""

MARKS_PER_WINDOW = 8

RATE_WANDER = 2e-6
"""How far apart two rates that a clock has during a run may be, s/s.

An assumption: crystals of servers change by less than 1e-6 as they warm up, and a clock that NTP
has settled is corrected by less.
"""

BURST_NS = 100_000_000
"""Probes that are no further apart are one burst, in which no clock jumps."""

QUICK = 10.0
"""A quick probe's round trip is at most so many times the shortest.

What is slower, as all are while workers start on a busy host, tells too little to look for a jump
before or after it.
"""

_THINNED, _ENDS = 512, 64
"""Probes of which every two are compared, and how many of them are the first and the last ones.

Work and memory grow with the square: 512 take 30 ms. Of more probes, the quickest of as many in a
row stands for them, which widens the bound and never narrows it.
"""

_ROUNDING_NS = 2
"""Clocks are read in whole ns, so constraints may contradict each other by that much."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """How to read one clock on another, and how wrong that can be.

    ``target = local + offset_ns + rint(drift * (local - origin_ns))``

    Attributes
    ----------
    source
        Where it comes from: "reference" (it is the target clock), "same-host" (another process's
        clock is the same), "probes", "utc", "marks", "system-clock", "collectives"; corrections
        one after the other are joined with "+".
    origin_ns
        Local time at which the correction is just `offset_ns`, ns.
    offset_ns
        Target minus local at the origin, ns.
    drift
        How much faster the target runs, s/s.
    bound_ns
        The corrected time is off by at most this, ns, over the time the fit was made for.
    residual_ns
        How far the observations contradict two clocks of constant rates, ns; 0 when they do not.
    points
        How many observations it rests on.
    """

    source: str
    origin_ns: int
    offset_ns: int
    drift: float
    bound_ns: int
    residual_ns: int
    points: int

    @classmethod
    def reference(cls) -> Correction:
        """Give the correction of the target clock itself: none, without error."""
        return cls("reference", 0, 0, 0.0, 0, 0, 0)

    @overload
    def apply(self, local_ns: int) -> int: ...

    @overload
    def apply(self, local_ns: Integers) -> Integers: ...

    def apply(self, local_ns: int | Integers) -> int | Integers:
        """Read local times on the target clock; exact to the rounding of the drift's part, ns."""
        if isinstance(local_ns, (int, np.integer)):
            since = int(local_ns) - self.origin_ns
            return int(local_ns) + self.offset_ns + round(self.drift * since)
        local = np.asarray(local_ns, np.int64)
        if self.drift == 0.0:
            moved: Integers = local + np.int64(self.offset_ns)
            return moved
        # a float holds 53 bits: only the short way from the origin is multiplied, never a time
        drifted = np.rint(self.drift * (local - np.int64(self.origin_ns))).astype(np.int64)
        corrected: Integers = local + np.int64(self.offset_ns) + drifted
        return corrected

    def then(self, following: Correction) -> Correction:
        """Give the one correction that does this one and then another; the bounds add."""
        if self.source == "reference":
            return following
        if following.source == "reference":
            return self
        return Correction(
            source=f"{self.source}+{following.source}",
            origin_ns=self.origin_ns,
            offset_ns=following.apply(self.origin_ns + self.offset_ns) - self.origin_ns,
            drift=self.drift + following.drift + self.drift * following.drift,
            # the first one's error is stretched by the second one's drift
            bound_ns=_stretched(self.bound_ns, following.drift) + following.bound_ns,
            residual_ns=self.residual_ns + following.residual_ns,
            points=min(self.points, following.points),
        )

    def inverse(self) -> Correction:
        """Give the correction from the target clock back to the local one."""
        # target - (origin + offset) = (1 + drift) * (local - origin)
        back = -self.drift / (1.0 + self.drift)
        return replace(
            self,
            origin_ns=self.origin_ns + self.offset_ns,
            offset_ns=-self.offset_ns,
            drift=back,
            bound_ns=_stretched(self.bound_ns, back),
        )


def fit_probes(probes: Integers, span: tuple[int, int] | None = None) -> Correction:
    """Fit a correction to exchanges with the reference clock.

    Each probe tells that ``D(t1) <= t2 - t1`` and ``D(t4) >= t3 - t4``, whatever its delays were.
    Its middle, ``((t2 - t1) + (t3 - t4)) / 2``, is NTP's offset and half its round trip,
    ``((t4 - t1) - (t3 - t2)) / 2``, bounds that offset's error (RFC 5905; Cristian 1989). All
    probes together bound the lines that ``D`` can be; the correction is the line in the middle of
    them at both ends of the span, so that none is nearer to the farthest of them, or the middle
    one without drift as long as that is among them.

    Where no line satisfies all probes (a clock stepped or changed its rate) the line is the one
    that violates them least, `residual_ns` says by how much, and the bound holds every best probe
    of a few in a row, with its half round trip, and what the clock did between two of them.

    Parameters
    ----------
    probes : (n, 4) int64
        Local send, reference receive, reference send, local receive, ns. Probes whose times run
        backwards, or whose offset no clock can reach from those of both its neighbours, are left
        out.
    span : tuple of int, optional
        Local times, ns, from which to which the correction will be used and the bound has to hold;
        at least all probes.

    Raises
    ------
    ValueError
        If no probe is left.
    """
    accepted = _plausible(np.asarray(probes, np.int64).reshape(-1, 4))
    if len(accepted) == 0:
        raise ValueError("no clock probe could be used")
    line = _fit(accepted, span, source="probes")
    return replace(line, points=len(accepted))


def fit_utc(
    anchors: Integers,
    reference_anchors: Integers,
    same_clock: bool = False,
) -> Correction:
    """Fit a correction through UTC, for a clock that was never probed.

    UTC read between two readings of the local clock is a probe whose reference is UTC (`fit_probes`
    with ``t2 = t3``); so the local clock is corrected to UTC, and UTC to the reference clock. Linux
    runs CLOCK_MONOTONIC and UTC at one rate, so that nothing is added for the time between anchors.

    Parameters
    ----------
    anchors : (n, 3) int64
        Of the local host: monotonic before, UTC, monotonic after, ns.
    reference_anchors : (n, 3) int64
        The same of the reference host.
    same_clock
        Whether both hosts' UTC is the same clock; otherwise `UTC_DISAGREEMENT_NS` is added to the
        bound.

    Raises
    ------
    ValueError
        If one of the hosts has no anchor.
    """
    fitted = _fit_anchors(anchors).then(_fit_anchors(reference_anchors).inverse())
    disagreement = 0 if same_clock else UTC_DISAGREEMENT_NS
    return replace(fitted, source="utc", bound_ns=fitted.bound_ns + disagreement)


def fit_marks(
    session_ns: Integers,
    clock_ns: Integers,
    thread: Integers | None = None,
    span: tuple[int, int] | None = None,
) -> Correction:
    """Fit a correction from a report's session time to the clock of one of its processes.

    A mark's payload was read just before nsys stamped the mark, so ``D(session) >= clock -
    session``: the lag is one-sided, and the marks with the smallest lag tell the offset. The next
    mark of the same thread read its clock after that stamp, so ``D(session) <= next clock -
    session``: a few marks back to back bound the lag by what one call takes (measured: 2 us).
    Marks made singly bound it by an assumption, `MARK_LAG_NS`.

    Parameters
    ----------
    session_ns, clock_ns : (n,) int64
        When the report says the mark was, and what it carried, ns.
    thread : (n,) int64, optional
        Which thread made it; without, all are taken for one thread's.
    span : tuple of int, optional
        Session times over which the bound has to hold; at least all marks.

    Raises
    ------
    ValueError
        If there is no mark.
    """
    session = np.asarray(session_ns, np.int64)
    clock = np.asarray(clock_ns, np.int64)
    if len(session) == 0:
        raise ValueError("the process left no clock mark in the report")
    threads = np.zeros(len(session), np.int64) if thread is None else np.asarray(thread, np.int64)
    order = np.lexsort((session, threads))
    session, clock, threads = session[order], clock[order], threads[order]
    # a next mark that came later than any lag tells nothing
    near = np.diff(session) <= LONE_MARK_LAG_NS
    follows = np.flatnonzero((threads[1:] == threads[:-1]) & near)
    pairs = np.column_stack(
        (session[follows], clock[follows + 1], clock[follows + 1], session[follows + 1])
    )
    best, lag = _least_lagging(session, clock)
    # a probe in form only: at that session time the clock was between its reading and lag later
    singles = np.column_stack((session[best], clock[best] + lag, clock[best], session[best]))
    fitted = _fit(np.concatenate((pairs, singles)), span, "marks", np.stack((session, clock)))
    return replace(fitted, points=len(session))


@dataclass(frozen=True)
class TiedClock:
    """A clock that collectives tie to another one.

    Attributes
    ----------
    correction
        How to read it on the other one; its bound holds from `first` to `last`.
    first, last
        Local times, ns.
    drifts, lowest, highest
        Lines that hold all that the clock can be: of each the drift, and at the correction's origin
        the least and the greatest value, ns, relative to `level_ns`.
    level_ns
        What `lowest` and `highest` count from, ns.
    """

    correction: Correction
    first: int
    last: int
    drifts: Floats
    lowest: Floats
    highest: Floats
    level_ns: int

    def earliest(self, local_ns: Integers) -> Integers:
        """Give the earliest times of the other clock at which this one may have read these, ns."""
        return self._read(local_ns, self.lowest, np.minimum, np.floor)

    def latest(self, local_ns: Integers) -> Integers:
        """Give the latest times of the other clock at which this one may have read these, ns."""
        return self._read(local_ns, self.highest, np.maximum, np.ceil)

    def _read(
        self, local_ns: Integers, values: Floats, outer: np.ufunc, rounded: np.ufunc
    ) -> Integers:
        local = np.asarray(local_ns, np.int64)
        since = (local - np.int64(self.correction.origin_ns)).astype(np.float64)
        away = np.full(len(local), values[0]) + self.drifts[0] * since
        for drift, value in zip(self.drifts[1:].tolist(), values[1:].tolist(), strict=True):
            outer(away, value + drift * since, out=away)
        read: Integers = local + np.int64(self.level_ns) + rounded(away).astype(np.int64)
        return read


def fit_ties(
    upper_at: Integers,
    upper: Integers,
    lower_at: Integers,
    lower: Integers,
    span: tuple[int, int],
) -> TiedClock:
    """Fit a correction to limits of which each stands alone, as those of collectives do.

    ``D(upper_at) <= upper - upper_at`` and ``D(lower_at) >= lower - lower_at``. The correction is
    the line in the middle, at both ends of the span, of all lines between the limits whose drift is
    within `DRIFT_LIMIT`; so half of what lies between the outermost lines is the bound.

    A clock whose rate changes by no more than `RATE_WANDER` is nowhere further from one of its
    lines than an eighth of that times the span: so far the limits are moved apart first, and so
    much is added to the bound. Jumps are not allowed for, as they are for probes: limits that no
    line keeps give a `residual_ns`, and a correction that should not be used.

    Parameters
    ----------
    upper_at, upper, lower_at, lower : (n,) int64
        Local times, and readings of the reference that are no earlier, or no later, than these, ns;
        at least one of each.
    span
        Local times, ns, between which the bound has to hold.
    """
    first = min(int(upper_at.min()), int(lower_at.min()), span[0])
    last = max(int(upper_at.max()), int(lower_at.max()), span[1])
    origin = (first + last) // 2
    level = int(upper[0] - upper_at[0])
    wander = RATE_WANDER * (last - first) / 8
    limits = _Limits(
        (upper_at - origin).astype(np.float64),
        (upper - upper_at - level).astype(np.float64) + wander,
        (lower_at - origin).astype(np.float64),
        (lower - lower_at - level).astype(np.float64) - wander,
    )
    lines = limits.lines()
    begin, end = float(first - origin), float(last - origin)
    # at any time the outermost line has the least or the greatest drift, or goes through an edge
    # of the limits' hulls
    drifts = np.unique(
        np.clip(
            np.concatenate(([lines.least, lines.most], *map(_steepness, lines.limits.sides()))),
            lines.least,
            lines.most,
        )
    )
    lowest = np.array([lines.limits.lowest(drift, 0.0) for drift in drifts.tolist()]) - wander
    highest = np.array([lines.limits.highest(drift, 0.0) for drift in drifts.tolist()]) + wander
    low_first, low_last = ((lowest + drifts * at).min() for at in (begin, end))
    high_first, high_last = ((highest + drifts * at).max() for at in (begin, end))
    middle_first, middle_last = (low_first + high_first) / 2, (low_last + high_last) / 2
    drift = (middle_last - middle_first) / (end - begin) if end > begin else 0.0
    bound = max(high_first - low_first, high_last - low_last) / 2
    correction = Correction(
        source="collectives",
        origin_ns=origin,
        offset_ns=level + round(middle_first - drift * begin),
        drift=float(drift),
        # 1: the offset and the drift's part are rounded
        bound_ns=math.ceil(bound) + 1,
        residual_ns=math.ceil(lines.residual) if lines.residual > _ROUNDING_NS else 0,
        points=len(upper_at),
    )
    return TiedClock(correction, first, last, drifts, lowest, highest, level)


def _steepness(side: tuple[Floats, Floats]) -> Floats:
    """Give the drifts of the lines through neighbours of these points, in order of time."""
    at, value = side
    apart = np.diff(at)
    steep: Floats = np.diff(value)[apart > 0] / apart[apart > 0]
    return steep


def bounds_between(
    clocks: npt.NDArray[np.integer[Any]],
    bounds: Integers,
    one: npt.NDArray[np.integer[Any]],
    other: npt.NDArray[np.integer[Any]],
) -> Integers:
    """Give how far the difference of times of two processes may be wrong, ns.

    Processes that share a clock are corrected alike, so that their times differ by what they should
    and the bound is 0; otherwise both clocks' bounds add.

    Parameters
    ----------
    clocks : (p,) int
        The clock of each process; -1: not known.
    bounds : (c,) int64
        The bound of each clock, ns; -1: unknown.
    one, other : (n,) int
        Processes; -1: not known.

    Returns
    -------
    (n,) int64
        -1: unknown.
    """
    # the last one stands for -1
    clock_of, bound_of = np.append(clocks, -1), np.append(bounds, -1)
    first, second = clock_of[one], clock_of[other]
    added = bound_of[first] + bound_of[second]
    known = (bound_of[first] >= 0) & (bound_of[second] >= 0)
    between: Integers = np.where((first == second) & (first >= 0), 0, np.where(known, added, -1))
    return between


def _fit_anchors(anchors: Integers) -> Correction:
    before, utc, after = np.asarray(anchors, np.int64).reshape(-1, 3).T
    return fit_probes(np.column_stack((before, utc, utc, after)))


def _stretched(bound_ns: int, drift: float) -> int:
    """Give a bound as the clock with this drift against it counts it, ns."""
    return bound_ns + math.ceil(bound_ns * drift)


def _plausible(probes: Integers) -> Integers:
    """Leave out the probes that cannot have happened; gives the others in order of time."""
    t1, t2, t3, t4 = probes.T
    # beyond 2**62 ns (146 years) it is no time, and differences would overflow
    sane = (
        ((probes > -(2**62)) & (probes < 2**62)).all(axis=1)
        & (t4 >= t1)
        & (t3 >= t2)
        & (t4 - t1 >= t3 - t2)
    )
    probes = probes[sane]
    probes = probes[np.argsort(probes[:, 0], kind="stable")]
    if len(probes) < 3:
        return probes
    t1, t2, t3, t4 = probes.T
    offset = ((t2 - t1) + (t3 - t4)) // 2
    half = ((t4 - t1) - (t3 - t2)) / 2 + _ROUNDING_NS
    apart = np.abs(np.diff(offset)) - (half[1:] + half[:-1])
    reachable = apart <= DRIFT_LIMIT * (t4[1:] - t1[:-1])
    # One that neither neighbour agrees with is no reading of this clock. The first and the last
    # have one neighbour only: there it could be the clock that stepped, and the bound says so.
    alone = np.zeros(len(probes), bool)
    alone[1:-1] = ~reachable[1:] & ~reachable[:-1]
    return probes[~alone] if 2 * alone.sum() < len(probes) else probes


def _least_lagging(session: Integers, clock: Integers) -> tuple[npt.NDArray[np.intp], int]:
    """Give the marks that lag least, one of every few in a row, and how much they may lag, ns."""
    order = np.argsort(session, kind="stable")
    ahead = (clock - session)[order]
    if len(ahead) < MARKS_PER_WINDOW:
        return order, LONE_MARK_LAG_NS
    # seen from the straight line between the best of both halves, so that drift picks no side
    relative = (ahead - ahead[0]).astype(np.float64)
    at = (session[order] - session[order[0]]).astype(np.float64)
    half = len(ahead) // 2
    first, second = int(np.argmax(relative[:half])), half + int(np.argmax(relative[half:]))
    rise = (relative[second] - relative[first]) / max(at[second] - at[first], 1.0)
    level = relative - np.clip(rise, -DRIFT_LIMIT, DRIFT_LIMIT) * at
    windows = np.lib.stride_tricks.sliding_window_view(level, MARKS_PER_WINDOW)
    places = np.unique(np.argmax(windows, axis=1) + np.arange(len(windows)))
    return order[places], MARK_LAG_NS


def _fit(
    probes: Integers,
    span: tuple[int, int] | None,
    source: str,
    early: Integers | None = None,
) -> Correction:
    """Fit a line to probes, or let it rest on readings that are known to be early.

    Parameters
    ----------
    probes : (n, 4) int64
        ``D(t1) <= t2 - t1`` and ``D(t4) >= t3 - t4``.
    span
        Local times between which the bound has to hold, beside the observations' own.
    source
        For the result.
    early : (2, n) int64, optional
        Local times and readings of the reference shortly before: lower limits instead of the
        probes', and the line then is the lowest over them and not the middle one.
    """
    lower_at, reading = (probes[:, 3], probes[:, 2]) if early is None else early
    begin = min(int(probes[:, 0].min()), int(lower_at.min()))
    end = max(int(probes[:, 3].max()), int(lower_at.max()))
    ends = (begin, end) if span is None else (min(begin, *span), max(end, *span))
    origin = (ends[0] + ends[1]) // 2
    level = int(probes[0, 1] - probes[0, 0])
    limits = _Limits(
        upper_at=(probes[:, 0] - origin).astype(np.float64),
        upper=(probes[:, 1] - probes[:, 0] - level).astype(np.float64),
        lower_at=(lower_at - origin).astype(np.float64),
        lower=(reading - lower_at - level).astype(np.float64),
    )
    lines = limits.lines()
    first, last = float(ends[0] - origin), float(ends[1] - origin)
    (low_first, high_first), (low_last, high_last) = lines.range(first), lines.range(last)
    drift = 0.0  # as long as that is possible: a drift that is not told from none is noise
    if not lines.least <= 0.0 <= lines.most:
        drift = (lines.least + lines.most) / 2
        if early is None:
            drift = (high_last + low_last - high_first - low_first) / 2 / (last - first)
    if early is not None:
        offset = lines.limits.lowest(drift, 0.0)
    elif drift == 0.0:
        offset = (lines.limits.highest(0.0, 0.0) + lines.limits.lowest(0.0, 0.0)) / 2
    else:
        offset = (high_last + low_last + high_first + low_first) / 4 - drift * (first + last) / 2
    relative = _Limits(
        limits.upper_at,
        limits.upper - offset - drift * limits.upper_at,
        (probes[:, 3] - origin).astype(np.float64),
        (probes[:, 2] - probes[:, 3] - level).astype(np.float64)
        - offset
        - drift * (probes[:, 3] - origin),
    )
    # 1: the offset and the drift's part are rounded
    bound = math.ceil(_bound(relative, drift, first, last)) + 1
    residual = math.ceil(lines.residual) if lines.residual > _ROUNDING_NS else 0
    return Correction(
        source=source,
        origin_ns=origin,
        offset_ns=level + round(offset),
        drift=drift,
        bound_ns=bound,
        residual_ns=residual,
        points=len(probes),
    )


def _bound(limits: _Limits, drift: float, first: float, last: float) -> float:
    """Give how far ``D`` may be from 0 between two times, by what the module's text assumes of it.

    Parameters
    ----------
    limits
        The upper and the lower limit of each probe, of ``D`` less the correction.
    drift
        The correction's, s/s.
    first, last
        Times, ns.
    """
    limits = limits.chosen(np.argsort(limits.upper_at, kind="stable"))
    upper_at, lower_at = limits.upper_at, limits.lower_at
    few = _thinned(limits)
    quick = QUICK
    least, most, contradicted = _rates(few, _burst_begins(few, quick), drift)
    if contradicted:  # then it may have jumped anywhere
        quick = np.inf
        least, most, _ = _rates(few, _burst_begins(few, quick), drift)
    begins = _burst_begins(limits, quick)
    ends = np.append(begins[1:], len(upper_at)) - 1
    # what D may gain, or lose, in the time between a limit and a reading
    up, down = max(most, 0.0), max(-least, 0.0)
    until = np.append(upper_at[begins[1:]], max(last, lower_at.max()))
    since = np.append(min(first, upper_at[0]), np.maximum.accumulate(lower_at)[ends[:-1]])
    # Until a jump all earlier limits hold, after it all later ones, and it may be anywhere: only
    # what both sides know, each without the other, is sure.
    highest = max(
        (np.minimum.accumulate(limits.upper - up * upper_at)[ends] + up * until).max(),
        (_from_the_end(np.minimum, limits.upper + down * upper_at)[begins] - down * since).max(),
    )
    lowest = min(
        (np.maximum.accumulate(limits.lower + down * lower_at)[ends] - down * until).min(),
        (_from_the_end(np.maximum, limits.lower - up * lower_at)[begins] + up * since).min(),
    )
    burst_begins, burst_ends = upper_at[begins], lower_at[ends]
    burst_begins[0], burst_ends[-1] = since[0], until[-1]
    in_a_burst = (up + down) * float((burst_ends - burst_begins).max())
    quickest = float((limits.upper - limits.lower).min()) / 2
    return float(max(highest, -lowest, quickest)) + in_a_burst


def _rates(
    limits: _Limits, begins: npt.NDArray[np.intp], drift: float
) -> tuple[float, float, bool]:
    """Give the least and the largest rate that ``D`` may have at any time, s/s.

    Rates are less the correction's drift, as the limits are.

    For each burst before which it may have jumped, limits before and limits after are compared
    among themselves. Between an upper limit and a later lower one ``D`` climbs at least so steeply
    in the mean, and between a lower and a later upper one at most so steeply.

    Returns
    -------
    least, most : float
    contradicted : bool
        Whether it took more than `RATE_WANDER` and one jump.
    """
    later = limits.lower_at[None, :] - limits.upper_at[:, None]
    over = limits.lower[None, :] - limits.upper[:, None] - 2 * _ROUNDING_NS
    steepness = over / np.where(later == 0.0, 1.0, later)
    steepest = []
    for sign, chosen in ((1.0, later > 0.0), (-1.0, later < 0.0)):
        steep = np.where(chosen, sign * steepness, -np.inf)
        before = np.diag(_running_maximum(steep))[np.append(begins[1:], len(later)) - 1]
        after = np.diag(_running_maximum(steep[::-1, ::-1]))[::-1][begins[1:]]
        # the last one: it never jumped
        steepest.append(np.maximum(before, np.append(after, -np.inf)))
    lowest, highest = -DRIFT_LIMIT - drift, DRIFT_LIMIT - drift
    least, most = steepest[0], -steepest[1]
    needed = np.maximum(least - most, np.maximum(least - highest, lowest - most))
    contradicted = bool(needed.min() > RATE_WANDER)
    if contradicted:
        # what takes more wander than that was a jump, faster than any drift
        wander = 2 * float(needed.min())
        lowest, highest = lowest - wander, highest + wander
    else:
        wander = RATE_WANDER
    possible = needed <= wander
    return (
        max(float(least[possible].min()) - wander, lowest),
        min(float(most[possible].max()) + wander, highest),
        contradicted,
    )


def _running_maximum(values: Floats) -> Floats:
    """Give, for each place, the maximum of all that are in no later row and column."""
    return np.maximum.accumulate(np.maximum.accumulate(values, axis=0), axis=1)


def _from_the_end(function: np.ufunc, values: Floats) -> Floats:
    accumulated: Floats = function.accumulate(values[::-1])[::-1]
    return accumulated


def _burst_begins(limits: _Limits, quick: float) -> npt.NDArray[np.intp]:
    """Give the places of the probes that begin a burst.

    What comes before the end of the first burst with a quick probe, one that took at most so many
    times the shortest, counts as that burst, and what comes after the begin of the last such one as
    that one.
    """
    at, took = limits.upper_at, limits.upper - limits.lower
    places = np.flatnonzero(took <= quick * max(float(took.min()), 1.0))
    begins, times = [0], at.tolist()
    while (place := bisect_right(times, times[begins[-1]] + BURST_NS)) < len(times):
        begins.append(place)
    found = np.array(begins, np.intp)
    return np.append(found[:1], found[(found > places[0]) & (found <= places[-1])])


def _thinned(limits: _Limits) -> _Limits:
    """Give, of many probes in order of time, the quickest of as many in a row."""
    count = len(limits.upper)
    if count <= _THINNED:
        return limits
    width = limits.upper - limits.lower
    middle = np.array_split(np.arange(_ENDS, count - _ENDS), _THINNED - 2 * _ENDS)
    kept = [places[np.argmin(width[places])] for places in middle]
    ends = np.arange(_ENDS)
    return limits.chosen(np.concatenate((ends, kept, count - _ENDS + ends)))


@dataclass(frozen=True)
class _Limits:
    """Points that the line ``D`` passes under (``upper``) and over (``lower``).

    Times are ns from an origin and values ns from a level, so that floats hold them to the ns.
    """

    upper_at: Floats
    upper: Floats
    lower_at: Floats
    lower: Floats

    def chosen(self, places: npt.NDArray[np.intp]) -> _Limits:
        """Give some of them."""
        return _Limits(
            self.upper_at[places], self.upper[places], self.lower_at[places], self.lower[places]
        )

    def highest(self, drift: float, at: float) -> float:
        """Give the value at a time of the highest line of this drift that is under all."""
        return float((self.upper + drift * (at - self.upper_at)).min())

    def lowest(self, drift: float, at: float) -> float:
        """Give the value at a time of the lowest line of this drift that is over all."""
        return float((self.lower + drift * (at - self.lower_at)).max())

    def room(self, drift: float) -> float:
        """Give how far a line of this drift can be moved between all; negative: it misses some."""
        return self.highest(drift, 0.0) - self.lowest(drift, 0.0)

    def sides(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Give the upper and the lower limits, times and values."""
        return (self.upper_at, self.upper), (self.lower_at, self.lower)

    def lines(self) -> _Lines:
        """Find the lines between all, or, where there is none, the one that misses them least."""
        upper_at, negated = _hull(self.upper_at, -self.upper)
        hull = _Limits(upper_at, -negated, *_hull(self.lower_at, self.lower))
        # between an upper limit and a later lower one the line climbs at least so steeply, and
        # between a lower and a later upper one at most so steeply
        later = np.subtract.outer(hull.lower_at, hull.upper_at)
        over = np.subtract.outer(hull.lower, hull.upper)
        steepness = over / np.where(later == 0.0, 1.0, later)
        least = max(-DRIFT_LIMIT, float(steepness.max(initial=-np.inf, where=later > 0.0)))
        most = min(DRIFT_LIMIT, float(steepness.min(initial=np.inf, where=later < 0.0)))
        if least <= most and not (over[later == 0.0] > 0.0).any():
            return _Lines(hull, least, most, 0.0)
        # room() is concave, so thirds close in on its top; 64 of them leave 1e-14 s/s
        least, most = -DRIFT_LIMIT, DRIFT_LIMIT
        for _ in range(64):
            one, two = least + (most - least) / 3, most - (most - least) / 3
            least, most = (one, most) if hull.room(one) < hull.room(two) else (least, two)
        best = (least + most) / 2
        missed = max(0.0, -hull.room(best) / 2)
        moved = _Limits(upper_at, hull.upper + missed, hull.lower_at, hull.lower - missed)
        return _Lines(moved, best, best, missed)


@dataclass(frozen=True)
class _Lines:
    """The straight lines between limits.

    Attributes
    ----------
    limits
        The corners of the limits' convex hulls, no others can hold a line's end; moved apart by
        the residual.
    least, most
        The smallest and the largest drift of such a line, s/s.
    residual
        How far the limits had to be moved to let a line through, ns.
    """

    limits: _Limits
    least: float
    most: float
    residual: float

    def range(self, at: float) -> tuple[float, float]:
        """Give the lowest and the highest value that such a line has, outside all limits' times."""
        drifts = (self.least, self.most)
        # after all limits the steepest lines are the outermost, before all the others are
        return (
            min(self.limits.lowest(drift, at) for drift in drifts),
            max(self.limits.highest(drift, at) for drift in drifts),
        )


def _hull(at: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Give the corners of the upper convex hull, in order of time (Andrew's monotone chain)."""
    corners: list[tuple[float, float]] = []
    order = np.lexsort((value, at))
    for x, y in zip(at[order].tolist(), value[order].tolist(), strict=True):
        if corners and corners[-1][0] == x:
            corners.pop()
        while len(corners) > 1:
            (x1, y1), (x2, y2) = corners[-2:]
            if (y2 - y1) * (x - x1) > (y - y1) * (x2 - x1):
                break
            corners.pop()
        corners.append((x, y))
    hull_at, hull_value = np.array(corners, np.float64).T
    return hull_at, hull_value
