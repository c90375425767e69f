"""Trend, where a series changes: at which points its level becomes another, and how sure that is.

The statistic is the largest standardised difference of means (CUSUM) over the intervals of seeded
binary segmentation (S. Kovács, P. Bühlmann, H. Li and A. Munk, "Seeded binary segmentation",
Biometrika 2023), of logarithms that are cut where outliers begin. Its chance comes from
permutations (R. Fisher, "The design of experiments", 1935), which are exact for independent noise
of whatever distribution. Several changes are found by binary segmentation (L. Vostrikova,
"Detecting disorder in multidimensional random processes", Soviet Mathematics Doklady 1981), each
part tested anew.

Noise of runs is seldom independent: one after the other on a warm machine are alike. The statistic
is therefore divided by what autocorrelation adds to the deviation of means, sqrt((1 + r) / (1 - r))
for AR(1) (G. Bayley and J. Hammersley, "The effective number of independent observations in an
autocorrelated time series", Journal of the Royal Statistical Society Supplement 1946), with r
estimated from the series without its steps, and not below 0. How often that is a false alarm is
measured: ``tests/benchmarks/trend_alarms.py``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

#: Points on each side of a change at least: two in a row may be chance.
EACH_SIDE = 3
#: With fewer points hardly a split is as unlikely as `LEVEL`: 2 of the 252 orders of 5 and 5 are.
LEAST = 10
#: Chance of a change in a series that has none.
LEVEL = 0.02
#: Permutations, and the chance above which so many are enough. The last are the most: the least
#: chance that can be told is one in so many and one.
PERMUTATIONS = ((99, 0.1), (999, 0.03), (9999, 0.0))
#: Values further from the middle than so many deviations of the noise count as if they were there.
CUT = 3.5
#: Intervals of the next layer are shorter by this.
_DECAY = math.sqrt(0.5)
#: Autocorrelation beyond which a series is rather a walk: there is nothing to be told then.
MOST = 0.9
#: Steps that are taken away beside the largest one, each with a Student's t of so much.
MORE_STEPS, CLEAR_STEP = 4, 7.0
#: Numbers of a block of permutations: a block stays in a processor's cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Looked:
    """What was seen in a series.

    Attributes
    ----------
    p
        Chance of so large a difference in a series that never changed; 1: too few points.
    correlation
        Autocorrelation of neighbouring points that was allowed for.
    """

    p: float
    correlation: float


def look(values: Sequence[float] | Floats) -> Looked:
    """Test if a series changes anywhere.

    Parameters
    ----------
    values
        Of shape (points,), in the order of time, finite.
    """
    p, _, correlation = _test(np.asarray(values, np.float64))
    return Looked(p, correlation)


def changes(values: Sequence[float] | Floats, level: float = LEVEL) -> list[int]:
    """Give where a series changes: positions of the first points of new levels, ascending.

    Parameters
    ----------
    values
        Of shape (points,), in the order of time, finite.
    level
        Chance of a change that is none, in each part that has none.
    """
    series = np.asarray(values, np.float64)
    found: list[int] = []
    parts = [(0, len(series))]
    while parts:
        first, last = parts.pop()
        p, at, _ = _test(series[first:last])
        if p <= level:
            found.append(first + at)
            parts += [(first, first + at), (first + at, last)]
    return _settled(series, sorted(found), level)


def _settled(series: Floats, found: list[int], level: float) -> list[int]:
    """Test each change again, between its neighbours, and move it to where it fits best there.

    The first ones were placed while the later ones were not known.
    """
    for _ in range(len(found) + 1):
        ends = [0, *found, len(series)]
        settled = []
        for before, after in zip(ends, ends[2:], strict=False):
            p, _, _ = _test(series[before:after])
            if p <= level:
                settled.append(before + _split(_scores(series[before:after])))
        settled = sorted(set(settled))
        if settled == found:
            break
        found = settled
    return found


def _test(series: Floats) -> tuple[float, int, float]:
    """Give the chance of a series' largest step, where it is, and the autocorrelation."""
    return _tested(series.tobytes())


@functools.lru_cache(maxsize=1024)
def _tested(data: bytes) -> tuple[float, int, float]:
    """Test a series; the same part is asked for again when changes are settled."""
    series = np.frombuffer(data, np.float64)
    if len(series) < 2 * EACH_SIDE or series.min() == series.max():
        return 1.0, 0, 0.0
    scores = _scores(series)
    largest, at = _largest(scores)
    correlation = autocorrelation(scores)
    # the statistic's rounding must not make one that is reached look exceeded
    reduced = _reduced(largest, len(series), correlation) - 1e-9
    reached = tried = 0
    for tried, clearly in PERMUTATIONS:
        reached = int((_null(scores, tried) >= reduced).sum())
        if reached > tried * clearly:
            break
    return (1 + reached) / (1 + tried), at, correlation


def _reduced(largest: float, count: int, correlation: float) -> float:
    """Take from a step what autocorrelation has added to it.

    That is of the noise alone, so it is taken from Student's t, which is the step in units of the
    noise; the step is in units of all deviation, of which it is a part itself.
    """
    student = _student(largest, count)
    student *= math.sqrt((1 - correlation) / (1 + correlation))
    return student * math.sqrt(count / (count - 2 + student**2))


def _student(largest: float, count: int) -> float:
    """Give Student's t of a standardised step of a whole series."""
    return largest * math.sqrt((count - 2) / max(count - largest**2, 1e-9))


def _scores(series: Floats) -> Floats:
    """Give logarithms, cut where outliers begin, of mean 0 and variance 1.

    The noise is taken from differences of neighbours, of which a step touches one. Where most
    points are equal it is not known: ranks stand for values then.
    """
    values = np.log(series) if series.min() > 0 else series
    noise = float(np.median(np.abs(np.diff(values)))) / (0.6745 * math.sqrt(2))
    if noise > 0:
        middle = float(np.median(values))
        values = np.clip(values, middle - CUT * noise, middle + CUT * noise)
    if noise <= 0 or values.min() == values.max():
        values = rankdata(series)
    scores: Floats = values - values.mean()
    spread = scores.std()
    result: Floats = scores / spread if spread else scores
    return result


def autocorrelation(scores: Floats) -> float:
    """Estimate the correlation of neighbouring points, between 0 and 0.9.

    Notes
    -----
    Of what is left when the largest step is taken away, and others that are as clear, with the
    usual correction for the bias of short series (F. Marriott and J. Pope, "Bias in the estimation
    of autocorrelations", Biometrika 1954).
    """
    left = scores
    ends = [0, _split(scores), len(scores)]
    while True:
        levels = [
            np.full(last - first, scores[first:last].mean())
            for first, last in itertools.pairwise(ends)
        ]
        left = scores - np.concatenate(levels)
        spread = float(left.std())
        if not spread or len(ends) > 2 + MORE_STEPS:
            break
        largest, at = _largest(left / spread)
        if at in ends or _student(largest, len(left)) < CLEAR_STEP:
            break
        ends = sorted([*ends, at])
    square = float(left @ left)
    if square <= 0:
        return 0.0
    found = float(left[1:] @ left[:-1]) / square
    found += 1.5 * (1 + 3 * found) / len(scores)
    return min(MOST, max(0.0, found))


def _split(scores: Floats) -> int:
    """Give the split of a whole series into two whose means differ most."""
    count = len(scores)
    size = np.arange(EACH_SIDE, count - EACH_SIDE + 1)
    sums = np.cumsum(scores)
    step = np.abs(sums[size - 1] - sums[-1] * size / count)
    return int(size[int((step * np.sqrt(count / (size * (count - size)))).argmax())])


@functools.lru_cache(maxsize=256)
def _intervals(count: int) -> list[tuple[int, int]]:
    """Give the seeded intervals, layer by layer shorter; each half overlaps its neighbours."""
    found = set()
    layer = 0
    while (length := count * _DECAY**layer) >= 2 * EACH_SIDE or not layer:
        number = 2 * math.ceil(_DECAY**-layer) - 1
        shift = (count - length) / max(1, number - 1)
        for i in range(number):
            first = math.floor(i * shift)
            found.add((first, min(count, math.ceil(i * shift + length))))
        layer += 1
    return sorted(found)


def _largest(scores: Floats) -> tuple[float, int]:
    """Give the largest standardised step within any interval, and where it is."""
    best, at = -1.0, 0
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    for first, last in _intervals(len(scores)):
        steps = _steps(sums[None, :], first, last)[0]
        position = int(steps.argmax())
        if steps[position] > best:
            best, at = float(steps[position]), first + EACH_SIDE + position
    return best, at


def _steps(sums: Floats, first: int, last: int) -> Floats:
    """Give the standardised steps of an interval at each split, of sums (series, points + 1)."""
    count = last - first
    size = np.arange(EACH_SIDE, count - EACH_SIDE + 1)
    share = (sums[:, last : last + 1] - sums[:, first : first + 1]) * (size / count)
    steps = sums[:, first + EACH_SIDE : last - EACH_SIDE + 1] - sums[:, first : first + 1] - share
    np.abs(steps, out=steps)
    steps *= np.sqrt(count / (size * (count - size)))
    result: Floats = steps
    return result


def _null(scores: Floats, count: int) -> Floats:
    """Give the statistic of so many permutations of the scores; the same ones each time."""
    chance = np.random.default_rng(len(scores))
    rows = max(1, _BLOCK // len(scores))
    found = []
    for begin in range(0, count, rows):
        block = np.tile(scores, (min(rows, count - begin), 1))
        block = chance.permuted(block, axis=1)
        sums = np.zeros((len(block), len(scores) + 1))
        np.cumsum(block, axis=1, out=sums[:, 1:])
        largest = np.zeros(len(block))
        for first, last in _intervals(len(scores)):
            np.maximum(largest, _steps(sums, first, last).max(axis=1), out=largest)
        found.append(largest)
    return np.concatenate(found)


def discoveries(chances: Sequence[float], level: float = LEVEL) -> float:
    """Give the level at which each of several series is to be tested.

    Parameters
    ----------
    chances
        Chance of each series (`Looked.p`).
    level
        The share of false ones among those said to change, at most.

    Returns
    -------
    float
        `level` times the share of series that may be said to change; 0: none. A series whose
        chance is not above it changes, and its own changes are looked for at this level.

    Notes
    -----
    Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", Journal of the Royal
    Statistical Society B 1995; within those selected as Y. Benjamini and M. Bogomolov, "Selective
    inference on multiple families of hypotheses", ibid. 2014.
    """
    ordered = sorted(chances)
    allowed = [n for n, p in enumerate(ordered, 1) if p <= level * n / len(ordered)]
    return level * allowed[-1] / len(ordered) if allowed else 0.0
