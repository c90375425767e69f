"""Trace: clocks that nothing but collectives ties to each other, corrected together.

Of a collective in which all wait for all, no rank leaves before the last has entered: there is an
instant that lies, on every clock, after each rank's entry and before each rank's return. One rank's
entry and another one's return limit how far their clocks are apart, whatever the network did. (As
the round trips of module ``align`` do; two collectives, of which one rank came last in the one and
the other in the other, are a round trip.)

What is known of each instant on the reference clock limits every other clock, and what is then
known of that clock limits the instant further: this is repeated until nothing changes. Of clocks
without drift that gives the shortest paths of the difference constraints, so the best possible
bounds; drifts are bounded clock by clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.align import TiedClock, fit_ties

Array = NDArray[Any]

#: Collectives in which every rank waits for every other, if there is anything to exchange.
EVERYONE_WAITS = frozenset(
    {"MPI_Barrier", "MPI_Allreduce", "MPI_Allgather", "MPI_Alltoall", "MPI_Reduce_scatter_block"}
)

#: Stands for the time of who did not take part, or of whom the others do not wait.
NEVER = np.iinfo(np.int64).max

#: How often it is gone around. Measured with 5 to 40 clocks: nothing changes after 2 to 4.
_ROUNDS = 8

#: A change of less than this part of a bound is none.
_CHANGE = 0.01

#: Collectives that a fit takes; of more the tightest of equal stretches of time are taken.
_MOST = 4096

_FAR = 1 << 61


@dataclass(frozen=True)
class Prior:
    """What is known of a clock beside the collectives: reference minus local time, and its error.

    Attributes
    ----------
    offset_ns, bound_ns
        Both in ns.
    """

    offset_ns: int
    bound_ns: int


@dataclass(frozen=True)
class Tied:
    """A clock that was tied to the reference.

    Attributes
    ----------
    clock
        How to read it on the reference clock.
    contradicts
        How far the collectives are at least from what was known of it before, ns; 0: not at all.
    """

    clock: TiedClock
    contradicts: int = 0


def tie_clocks(
    entered: Array,
    left: Array,
    spans: Sequence[tuple[int, int]],
    priors: Sequence[Prior | None],
) -> list[Tied | None]:
    """Correct clocks by collectives to the first of them.

    Parameters
    ----------
    entered, left : (collectives, clocks) int64
        Local times, ns: the last entry for which others wait, and the first return that waits for
        others; `NEVER` for none.
    spans
        Of each clock the local times between which its bound has to hold, ns.
    priors
        What is known of each clock beside that, None: nothing. It is taken as far as it agrees.

    Returns
    -------
    list of Tied or None
        None for a clock that nothing ties, or whose limits contradict each other so that
        `Tied.clock.correction.residual_ns` would not be 0 for any drift; that one is given with its
        residual. The first one is never tied to itself: None.
    """
    chosen = _tightest(entered, left)
    entered, left = entered[chosen], left[chosen]
    count = entered.shape[1]
    found: list[Tied | None] = [None] * count
    # from when to when each instant may have been, on the reference clock
    earliest = np.where(entered[:, 0] != NEVER, entered[:, 0], -_FAR)
    latest = np.where(left[:, 0] != NEVER, left[:, 0], _FAR)
    for _ in range(_ROUNDS):
        changed = False
        for number in range(1, count):
            tied = _tie(
                entered[:, number], left[:, number], earliest, latest, spans[number], priors[number]
            )
            if tied is None:
                continue
            before = found[number]
            bound = tied.clock.correction.bound_ns
            if before is None or bound < before.clock.correction.bound_ns * (1 - _CHANGE):
                changed = True
            elif bound >= before.clock.correction.bound_ns:
                continue
            found[number] = tied
            if tied.clock.correction.residual_ns == 0:
                _narrow(entered[:, number], left[:, number], earliest, latest, tied.clock)
        if not changed:
            break
    return found


def _tie(
    entered: Array,
    left: Array,
    earliest: Array,
    latest: Array,
    span: tuple[int, int],
    prior: Prior | None,
) -> Tied | None:
    """Fit one clock to what is known of the instants."""
    above = np.flatnonzero((entered != NEVER) & (latest < _FAR))
    below = np.flatnonzero((left != NEVER) & (earliest > -_FAR))
    if not len(above) or not len(below):
        return None
    limits = (entered[above], latest[above], left[below], earliest[below])
    points = len(np.union1d(above, below))
    alone = fit_ties(*limits, span)
    tied = Tied(replace(alone, correction=replace(alone.correction, points=points)))
    if prior is None or alone.correction.residual_ns:
        return tied
    ends = np.array([alone.first, alone.last], np.int64)
    known = ends + prior.offset_ns
    both = fit_ties(
        np.concatenate([limits[0], ends]),
        np.concatenate([limits[1], known + prior.bound_ns]),
        np.concatenate([limits[2], ends]),
        np.concatenate([limits[3], known - prior.bound_ns]),
        span,
    )
    if both.correction.residual_ns == 0:
        return Tied(replace(both, correction=replace(both.correction, points=points)))
    apart = np.abs(alone.correction.apply(ends) - known).max() - prior.bound_ns
    return replace(tied, contradicts=max(1, int(apart)))


def _narrow(entered: Array, left: Array, earliest: Array, latest: Array, clock: TiedClock) -> None:
    """Limit the instants by a clock's entries and returns, in place."""
    rows = np.flatnonzero(entered != NEVER)
    earliest[rows] = np.maximum(earliest[rows], clock.earliest(entered[rows]))
    rows = np.flatnonzero(left != NEVER)
    latest[rows] = np.minimum(latest[rows], clock.latest(left[rows]))


def _tightest(entered: Array, left: Array) -> Array:
    """Choose collectives, in their order: of equal stretches those that limit a clock most."""
    count, clocks = entered.shape
    if count <= _MOST:
        return np.arange(count)
    kept = set()
    stretches = np.array_split(np.arange(count), max(8, _MOST // (2 * clocks)))
    for number in range(1, clocks):
        above = np.where(
            (entered[:, number] != NEVER) & (left[:, 0] != NEVER),
            left[:, 0] - entered[:, number],
            NEVER,
        )
        below = np.where(
            (left[:, number] != NEVER) & (entered[:, 0] != NEVER),
            left[:, number] - entered[:, 0],
            NEVER,
        )
        for rows in stretches:
            kept |= {int(rows[np.argmin(above[rows])]), int(rows[np.argmin(below[rows])])}
    return np.array(sorted(kept), np.intp)
