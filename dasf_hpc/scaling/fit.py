"""Scaling, the fit: laws of scaling through the times of runs, and how sure their parameters are.

Errors are relative: what is fitted is the logarithm of the times. With T1 the time at scale 1:

- Amdahl: T(n) = T1 (s + (1 - s) / n), with s the serial fraction of T1. G. Amdahl, "Validity of the
  single processor approach to achieving large scale computing capabilities", AFIPS 1967.
- Gustafson, for weak scaling: the scaled speed-up n T1 / T(n) = s + (1 - s) n, so that T(n) =
  T1 / ((1 - s) + s / n). J. Gustafson, "Reevaluating Amdahl's law", CACM 31(5), 1988.
- USL, the universal scalability law: the capacity C(n) = n / (1 + a (n - 1) + b n (n - 1)), with a
  the contention and b the coherency (what every one does with every other). N. Gunther, "Guerrilla
  Capacity Planning", Springer 2007. It is T1 / T(n), of weak scaling n T1 / T(n). It peaks at
  n = sqrt((1 - a) / b). With b = 0 and a = s it is Amdahl's law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, least_squares
from scipy.special import fdtrc, fdtri, stdtrit

Floats = NDArray[np.float64]

#: What an interval holds.
CONFIDENCE = 0.95
#: Contention and coherency above this are not looked for.
MOST = 10.0
#: Values of a parameter that are tried at first, between the two about the best of them then, and
#: how often: to a millionth of a first step.
GRID, FINER, ROUNDS = 121, 33, 6
#: Scales that a fit of each law needs at least.
LEAST_SCALES = {"amdahl": 2, "gustafson": 2, "usl": 3}
#: Ends of an interval are no further from its middle than this, as logarithms.
_FAR = 100.0
#: Residuals (of logarithms) below this are those of floating point numbers.
_EXACT = 1e-9


@dataclass(frozen=True)
class Law:
    """A law of scaling.

    Attributes
    ----------
    name
        ``amdahl``, ``gustafson`` or ``usl``.
    title
        What it is called in a sentence.
    parameters
        By name: what it means, and the largest value that it is looked for; the least is 0.
    shape
        Gives ln(T(n) / T1) of scales and the parameters' values.
    """

    name: str
    title: str
    parameters: dict[str, tuple[str, float]]
    shape: Callable[..., Floats]


def _log(values: Any) -> Floats:
    result: Floats = np.log(np.maximum(values, 1e-300))
    return result


def _amdahl(n: Floats, s: Any) -> Floats:
    return _log(s + (1 - s) / n)


def _gustafson(n: Floats, s: Any) -> Floats:
    return -_log((1 - s) + s / n)


def _usl(n: Floats, a: Any, b: Any) -> Floats:
    return _log((1 + a * (n - 1) + b * n * (n - 1)) / n)


def _usl_weak(n: Floats, a: Any, b: Any) -> Floats:
    return _log(1 + a * (n - 1) + b * n * (n - 1))


_SERIAL = {"serial": ("the serial fraction", 1.0)}
_USL = {"contention": ("contention", MOST), "coherency": ("coherency", MOST)}


def laws(weak: bool) -> tuple[Law, ...]:
    """Give the laws of strong or of weak scaling, the simpler one first."""
    if weak:
        return (
            Law("gustafson", "Gustafson's law", _SERIAL, _gustafson),
            Law("usl", "the universal scalability law", _USL, _usl_weak),
        )
    return (
        Law("amdahl", "Amdahl's law", _SERIAL, _amdahl),
        Law("usl", "the universal scalability law", _USL, _usl),
    )


@dataclass(frozen=True)
class Estimate:
    """A parameter's value, and the 95 % interval of it; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A law through the times of runs.

    Attributes
    ----------
    law
        The law.
    base
        T1, ns.
    parameters
        By name.
    spread
        Standard deviation of the runs' times about the law, relative; NaN: not known.
    freedom
        Degrees of freedom that it rests on.
    aicc
        Akaike's criterion with the correction for few runs; the law with the least is the better
        one. NaN: too few runs.
    lack
        Chance of runs that are as far from the law as these, by the noise that repeats of one
        scale show; NaN: not known. Small: the law is not that of these runs.
    covariance
        Of ln(T1) and the parameters; NaN: not known.
    """

    law: Law
    base: float
    parameters: dict[str, Estimate]
    spread: float
    freedom: int
    aicc: float
    lack: float
    covariance: Floats

    @property
    def values(self) -> list[float]:
        """Values of the parameters."""
        return [one.value for one in self.parameters.values()]

    def times(self, scales: Sequence[float] | Floats) -> Floats:
        """Give the times at some scales, ns."""
        n = np.asarray(scales, np.float64)
        result: Floats = self.base * np.exp(self.law.shape(n, *self.values))
        return result

    def interval(self, scales: Sequence[float] | Floats, runs: float = math.inf) -> Floats:
        """Give the 95 % interval of the mean time at some scales, ns, of shape (scales, 2).

        Parameters
        ----------
        scales
            The scales.
        runs
            Of so many new runs; infinity: of the law itself.

        Notes
        -----
        By the delta method: the variance of the law's logarithm from the covariance of its
        parameters, and Student's t with the fit's degrees of freedom.
        """
        n = np.asarray(scales, np.float64)
        gradient = _gradient(self.law, n, self.values)
        variance = np.einsum("ij,jk,ik->i", gradient, self.covariance, gradient)
        variance = variance + (self.spread**2 / runs if math.isfinite(runs) else 0.0)
        # what is not known at all ends at numbers that can be written
        reach = np.minimum(_t(self.freedom) * np.sqrt(np.maximum(variance, 0)), _FAR)
        middle = _log(self.times(n))
        result: Floats = np.exp(np.stack([middle - reach, middle + reach], axis=1))
        return result

    @property
    def most(self) -> Estimate:
        """The speed-up that no scale exceeds, of a strong scaling by Amdahl's law: 1 / s."""
        one = self.parameters["serial"]
        return Estimate(*(1 / v if v > 0 else math.inf for v in (one.value, one.high, one.low)))

    @property
    def peak(self) -> float:
        """The scale at which the capacity of the USL peaks; infinity: it does not."""
        a, b = (self.parameters[name].value for name in ("contention", "coherency"))
        return math.sqrt(max(0.0, 1 - a) / b) if b > 0 else math.inf


def fit(law: Law, scales: Sequence[float] | Floats, times: Sequence[float] | Floats) -> Fit | None:
    """Fit a law to the times of runs by least squares of their relative errors.

    Parameters
    ----------
    law
        The law.
    scales, times
        Of each run: scale, and time in ns, above 0.

    Returns
    -------
    Fit or None
        None where there are fewer scales than the law needs.

    Notes
    -----
    Intervals are those of the profile of the sum of squares: they hold all values of a parameter
    for which the best fit of the others has a sum of squares of at most
    S (1 + F(95 %; 1, v) / v), with S that of the best fit and v its degrees of freedom. That is the
    profile likelihood's interval with the correction for noise that is not known beforehand (D.
    Bates and D. Watts, "Nonlinear Regression Analysis and Its Applications", Wiley 1988, 6.1).
    Simulated: 93 to 98 % of the intervals hold the planted value, the more the nearer to 0 it is,
    for no parameter is below 0. Where the law is not that of the runs (`Fit.lack`), they say less.
    """
    return _fit(law, np.asarray(scales, np.float64), _log(np.asarray(times, np.float64)))


def _fit(law: Law, n: Floats, y: Floats, intervals: bool = True) -> Fit | None:
    """Fit a law to logarithms of times."""
    if len(np.unique(n)) < LEAST_SCALES[law.name]:
        return None
    best = _best(law, n, y)
    least = max(_squares(law, n, y, *best), len(n) * _EXACT**2)
    count = len(law.parameters) + 1
    freedom = len(n) - count
    spread = math.sqrt(least / freedom) if freedom > 0 else math.nan
    parameters = {}
    for number, (name, (_, top)) in enumerate(law.parameters.items()):
        low = high = math.nan
        if freedom > 0 and intervals:
            limit = least * (1 + float(fdtri(1, freedom, CONFIDENCE)) / freedom)
            low, high = _interval(law, n, y, best, number, top, limit)
        parameters[name] = Estimate(float(best[number]), low, high)
    covariance = np.full((count, count), math.nan)
    if freedom > 0:
        gradient = _gradient(law, n, best)
        covariance = spread**2 * np.linalg.pinv(gradient.T @ gradient)
    base = float(np.exp(np.mean(y - law.shape(n, *best))))
    return Fit(
        law=law,
        base=base,
        parameters=parameters,
        spread=spread,
        freedom=max(0, freedom),
        aicc=_aicc(least, len(n), count + 1),
        lack=_lack(n, y, least, count),
        covariance=covariance,
    )


def better(fits: Sequence[Fit]) -> Fit | None:
    """Give the fit with the least AICc; the first where that of none is known."""
    known = [one for one in fits if math.isfinite(one.aicc)]
    return min(known, key=lambda one: one.aicc) if known else next(iter(fits), None)


@dataclass(frozen=True)
class Foretold:
    """What a law that was fitted without the largest scale says of that one; times in ns.

    Attributes
    ----------
    law
        The law.
    scales
        Those that it was fitted to.
    scale
        The largest one.
    low, high
        The 95 % interval in which the mean of that scale's runs was to be.
    measured
        Their geometric mean.
    """

    law: Law
    scales: list[float]
    scale: float
    low: float
    high: float
    measured: float

    @property
    def holds(self) -> bool:
        """Whether what was measured is what was foretold."""
        return self.low <= self.measured <= self.high


def foretell(
    law: Law, scales: Sequence[float] | Floats, times: Sequence[float] | Floats
) -> Foretold | None:
    """Fit a law without the largest scale, and look whether it foretells that one.

    Returns
    -------
    Foretold or None
        None where there are too few runs for that.
    """
    n, t = np.asarray(scales, np.float64), np.asarray(times, np.float64)
    if not len(n):
        return None
    last = n == n.max()
    found = _fit(law, n[~last], np.log(t[~last]), intervals=False)
    if found is None or found.freedom < 1:
        return None
    low, high = found.interval([float(n.max())], int(last.sum()))[0].tolist()
    measured = float(np.exp(np.mean(np.log(t[last]))))
    return Foretold(law, sorted(set(n[~last].tolist())), float(n.max()), low, high, measured)


# ------------------------------------------------------------------------------- its arithmetic


def _t(freedom: int) -> float:
    """Give how many standard errors reach to the ends of a 95 % interval."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if freedom > 0 else math.nan


def _squares(law: Law, n: Floats, y: Floats, *values: Any) -> float:
    """Give the sum of squares about a law whose T1 is the best for these parameters."""
    residuals = y - law.shape(n, *values)
    return float(np.sum((residuals - residuals.mean()) ** 2))


def _least(law: Law, n: Floats, y: Floats, given: Callable[[Any], tuple[Any, ...]], top: float
           ) -> tuple[float, float]:  # fmt: skip
    """Give the value of one parameter for which the sum of squares is least, and that sum.

    ``given`` puts a value, or a column of values, in its place among the others.
    """
    # cubes of equal steps: what matters of a parameter may be near 0
    grid = top * np.linspace(0, 1, GRID) ** 3
    for _ in range(ROUNDS):
        residuals = y - law.shape(n, *given(grid[:, None]))
        sums = np.sum((residuals - residuals.mean(axis=1, keepdims=True)) ** 2, axis=1)
        place = int(np.argmin(sums))
        best, least = float(grid[place]), float(sums[place])
        grid = np.linspace(grid[max(0, place - 1)], grid[min(len(grid) - 1, place + 1)], FINER)
    return best, least


def _best(law: Law, n: Floats, y: Floats) -> list[float]:
    """Give the parameters' best values."""
    tops = [top for _, top in law.parameters.values()]
    if len(tops) == 1:
        return [_least(law, n, y, lambda v: (v,), tops[0])[0]]
    # from several places: there may be a second valley
    starts = [(0.01, 1e-4), (0.3, 1e-3), (0.01, 0.05), (0.9, 0.5)]
    with_one = _least(law, n, y, lambda v: (v, 0.0 * v), tops[0])[0]
    starts.append((min(max(with_one, 1e-9), tops[0] / 2), 1e-9))

    def residuals(values: Floats) -> Floats:
        left = y - law.shape(n, *values)
        result: Floats = left - left.mean()
        return result

    found = [
        least_squares(
            residuals, start, bounds=([0.0, 0.0], tops), x_scale=[0.1, 0.01],
            xtol=1e-12, ftol=1e-12, gtol=1e-12,
        )
        for start in starts
    ]  # fmt: skip
    best = [float(v) for v in min(found, key=lambda one: float(one.cost)).x]
    # the solver stays within its bounds: a parameter that should be 0 is there only nearly
    first = _least(law, n, y, lambda v: (v, best[1] + 0 * v), tops[0])[0]
    candidates = [best, [with_one, 0.0], [first, best[1]]]
    candidates.append([0.0, _least(law, n, y, lambda v: (0 * v, v), tops[1])[0]])
    return min(candidates, key=lambda values: _squares(law, n, y, *values))


def _interval(
    law: Law, n: Floats, y: Floats, best: list[float], number: int, top: float, limit: float
) -> tuple[float, float]:
    """Give the least and the largest value of a parameter with which the sum stays within a limit.

    An interval that goes on beyond what is looked for ends there.
    """
    tops = [most for _, most in law.parameters.values()]

    def beyond(value: float) -> float:
        if len(best) == 1:
            return _squares(law, n, y, value) - limit
        other = 1 - number
        pair = (lambda v: (value + 0 * v, v)) if other else (lambda v: (v, value + 0 * v))
        return _least(law, n, y, pair, tops[other])[1] - limit

    def edge(end: float) -> float:
        value = best[number]
        if value == end or beyond(end) <= 0:
            return end
        # without noise the best one may itself be beyond what is none
        return (
            float(brentq(beyond, end, value, xtol=1e-8, rtol=1e-5)) if beyond(value) < 0 else value
        )

    return edge(0.0), edge(top)


def _gradient(law: Law, n: Floats, values: Sequence[float]) -> Floats:
    """Give the derivatives of ln T(n) by ln T1 and each parameter, of shape (n, 1 + parameters)."""
    columns = [np.ones(len(n))]
    for number, value in enumerate(values):
        step = 1e-6 * max(1e-3, abs(value))
        above, below = list(values), list(values)
        above[number], below[number] = value + step, value - step
        columns.append((law.shape(n, *above) - law.shape(n, *below)) / (2 * step))
    return np.stack(columns, axis=1)


def _aicc(squares: float, runs: int, parameters: int) -> float:
    """Give Akaike's criterion, corrected for few runs; the noise is one of the parameters.

    N. Sugiura, "Further analysis of the data by Akaike's information criterion and the finite
    corrections", Communications in Statistics 1978.
    """
    left = runs - parameters - 1
    if left <= 0:
        return math.nan
    return (
        runs * math.log(squares / runs) + 2 * parameters + 2 * parameters * (parameters + 1) / left
    )


def _lack(n: Floats, y: Floats, squares: float, parameters: int) -> float:
    """Test by F whether scales lie further from the law than their own repeats explain."""
    scales = np.unique(n)
    pure = sum(float(np.sum((y[n == s] - y[n == s].mean()) ** 2)) for s in scales)
    of_law, of_noise = len(scales) - parameters, len(n) - len(scales)
    if of_law < 1 or of_noise < 1 or pure <= 0:
        return math.nan
    ratio = max(0.0, squares - pure) / of_law / (pure / of_noise)
    return float(fdtrc(of_law, of_noise, ratio))
