"""How often `trend` says that a series changed which did not, and how often it finds what did.

Series are simulated. False alarms: of noise of four kinds, none of which changes, the share of
series that are said to change at the default setting. Power: of series with noise of 3 % and a step
of 10 %, in the middle and near the end, the share whose step is found, within two points of where
it is::

    python tests/benchmarks/trend_alarms.py [--series 2000] [--seed 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from dasf_hpc.trend.changepoints import LEVEL, changes, look

Floats = NDArray[np.float64]

#: Relative noise, the step, and how far from it a step may be found.
NOISE, STEP, WITHIN = 0.03, 1.1, 2
#: Autocorrelation of the noise that has one, and points before it counts.
CORRELATION, WARM = 0.3, 50
#: Share of points that are outliers, and how many times too long those are.
OUTLIERS, LONG = 0.05, (1.2, 2.0)

#: Series that do not change for one that does.
FEWER = 6

#: Length of a series, and the first point after its step.
STEPS = ((10, 5), (20, 10), (50, 25), (50, 40), (50, 45), (200, 100), (200, 195))


def normal(chance: np.random.Generator, count: int) -> Floats:
    """Give independent normal noise around 1."""
    return 1 + NOISE * chance.standard_normal(count)


def lognormal(chance: np.random.Generator, count: int) -> Floats:
    """Give independent lognormal noise, of a tenth."""
    return np.exp(0.1 * chance.standard_normal(count))


def outliers(chance: np.random.Generator, count: int) -> Floats:
    """Give normal noise of which some points take much longer."""
    far = chance.random(count) < OUTLIERS
    return normal(chance, count) * np.where(far, chance.uniform(*LONG, count), 1.0)


def correlated(chance: np.random.Generator, count: int) -> Floats:
    """Give AR(1) noise of the same deviation as `normal`."""
    noise = lfilter([1.0], [1.0, -CORRELATION], chance.standard_normal(count + WARM))[WARM:]
    result: Floats = 1 + NOISE * math.sqrt(1 - CORRELATION**2) * noise
    return result


NOISES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": normal,
    "lognormal": lognormal,
    "outliers": outliers,
    "correlated": correlated,
}


def alarm(given: tuple[str, int, int]) -> bool:
    """Say if a series that does not change is said to; of a noise, a length and a seed."""
    name, count, seed = given
    return look(NOISES[name](np.random.default_rng([seed, count]), count)).p <= LEVEL


def hit(given: tuple[str, int, int, int]) -> tuple[bool, bool, bool]:
    """Say if a step is found, if within `WITHIN` points of where it is, and if others are, too."""
    name, count, at, seed = given
    series = NOISES[name](np.random.default_rng([seed, count, at]), count)
    series[at:] *= STEP
    found = changes(series)
    return bool(found), any(abs(one - at) <= WITHIN for one in found), len(found) > 1


def rates(series: int, seed: int, processes: int | None = None) -> dict[str, Any]:
    """Simulate, print each figure as it comes, and give shares of 1.

    Parameters
    ----------
    series
        Series of each kind that do not change; so many over `FEWER` do, which take longer.
    seed
        The first series' seed.
    processes
        How many share the work; None: as many as there are CPUs.
    """
    seeds, fewer = range(seed, seed + series), range(seed, seed + max(1, series // FEWER))
    alarms, steps = [], []
    with multiprocessing.Pool(processes) as pool:
        for count in (10, 50, 200):
            for name in NOISES:
                found = pool.map(alarm, [(name, count, one) for one in seeds], 10)
                share = sum(found) / series
                alarms.append({"noise": name, "points": count, "alarms": share})
                print(f"false alarms, {name:10} {count:4} points: {share:.2%}", flush=True)
        for name in NOISES:
            if name == "lognormal":  # its noise is wider than 3 %
                continue
            for count, at in STEPS:
                hits = pool.map(hit, [(name, count, at, one) for one in fewer], 10)
                found, within, more = (sum(one) / len(fewer) for one in zip(*hits, strict=True))
                steps.append(
                    {
                        "noise": name,
                        "points": count,
                        "at": at,
                        "found": found,
                        "within": within,
                        "more": more,
                    }
                )
                print(
                    f"step at {at:3} of {count:3}, {name:10}: found {found:.1%}, "
                    f"within {WITHIN} points {within:.1%}, another beside it {more:.1%}",
                    flush=True,
                )
    middle = [
        row
        for row in steps
        if row["noise"] == "normal" and (row["points"], row["at"]) in ((50, 25), (200, 100))
    ]
    return {"series": series, "alarms": alarms, "steps": steps, "middle": middle}


def main() -> None:
    """Simulate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--series", type=int, default=2000, help="series of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found = rates(options.series, options.seed)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
