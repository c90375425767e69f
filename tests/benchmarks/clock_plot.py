"""Draw how wrong corrected times are, beside what the trace says they may be: ``clocks.svg``.

On the left a run on the testbed, made with ``clock_error.py --keep FOLDER``, each dot a task; on
the right an hour with drift, jitter and lost probes, seeded, of which the truth is known::

    python tests/benchmarks/clock_plot.py FOLDER/RUN clocks.svg
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_align import HOUR, Clock, exchange
from testbed.clocks import task_errors
from testbed.slurm import MONOTONIC_OFFSET_S

from dasf_hpc.trace.align import fit_probes
from dasf_hpc.trace.open import open_trace

WIDTH, HEIGHT, GAP, TOP, LEFT = 330, 170, 80, 44, 52

STYLE = """
text { font: 12px sans-serif; fill: #24292f }
.title { font-weight: bold }
.axis { stroke: #8c959f; fill: none }
.band { fill: #54aeff; fill-opacity: .22 }
.error { fill: #0969da } .line { stroke: #0969da; fill: none; stroke-width: 1.5 }
.probe { fill: #8c959f; fill-opacity: .55 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .error { fill: #79c0ff } .line { stroke: #79c0ff }
}
"""


@dataclass(frozen=True)
class Panel:
    """One plot: errors in us over time in its own unit.

    Attributes
    ----------
    title, unit
        Texts.
    until, most
        Largest time and largest error shown.
    bands
        Bound of each stretch of time: begin, end, us.
    probes, errors
        Points (time, us); errors that are a line are drawn as one.
    """

    title: str
    unit: str
    until: float
    most: float
    bands: list[tuple[float, float, float]]
    probes: NDArray[Any]
    errors: NDArray[Any]
    line: bool = False
    labels: tuple[tuple[float, str], ...] = ()


def testbed(run: Path) -> Panel:
    """Show the tasks of a run on the testbed, host beside host."""
    with open_trace(run) as trace:
        graded = task_errors(trace, MONOTONIC_OFFSET_S)
    bands, points, labels = [], [], []
    seconds = (graded["start"] - graded["start"].min()) / 1e9
    lasts = float(seconds.max()) * 1.06
    for place, (host, rows) in enumerate(graded.groupby("host")):
        at = seconds.loc[rows.index].to_numpy() + place * lasts
        points.append(np.column_stack((at, rows["error"].to_numpy() / 1e3)))
        bound = float(rows["bound"].iloc[0]) / 1e3
        bands.append((place * lasts, place * lasts + lasts / 1.06, bound))
        labels.append((place * lasts, str(host)))
    thinned = np.concatenate(points)[::6]
    most = 1.25 * max(band[2] for band in bands)
    title = f"Three hosts of a real SLURM run, {len(graded)} tasks"
    unit = f"{lasts / 1.06:.0f} s of a run, host beside host"
    return Panel(
        title, unit, 3 * lasts, most, bands, np.empty((0, 2)), thinned, labels=tuple(labels)
    )


def synthetic() -> Panel:
    """Show an hour of a clock that drifts, probed every 10 s through a network with jitter."""
    clock = Clock(7, 100e-6)
    probes = exchange(clock, 7, 360, HOUR)
    probes = probes[np.random.default_rng(7).random(360) > 0.05]
    fitted = fit_probes(probes)
    since = np.linspace(0, HOUR, 200)
    error = (fitted.apply(clock.local(since)) - clock.reference(since)) / 1e3
    t1, t2, t3, t4 = probes.T
    at = (t1 - clock.start).astype(np.float64)
    middle = ((t2 - t1) + (t3 - t4)) / 2 - (clock.reference(at) - clock.local(at))
    bound = fitted.bound_ns / 1e3
    return Panel(
        "Synthetic hour: 100 ppm drift, 1 ms jitter",
        "60 minutes; grey: what single probes say",
        60.0,
        max(1.25 * bound, 2000.0),
        [(0.0, 60.0, bound)],
        np.column_stack((at / 60e9, middle / 1e3)),
        np.column_stack((since / 60e9, error)),
        line=True,
    )


def drawn(panel: Panel, left: float) -> list[str]:
    """Give a panel's elements."""

    def x(time: float) -> float:
        return round(left + WIDTH * time / panel.until, 1)

    def y(error: float) -> float:
        return round(TOP + HEIGHT / 2 - HEIGHT / 2 * error / panel.most, 1)

    parts = [f'<text class="title" x="{left}" y="{TOP - 22}">{panel.title}</text>']
    for begin, end, bound in panel.bands:
        height = round(y(-bound) - y(bound), 1)
        width = round(x(end) - x(begin), 1)
        parts.append(
            f'<rect class="band" x="{x(begin)}" y="{y(bound)}" width="{width}" height="{height}"/>'
        )
    for time, label in panel.labels:
        parts.append(f'<text x="{x(time) + 2}" y="{TOP - 4}">{label}</text>')
    shown = panel.probes[np.abs(panel.probes[:, 1]) <= panel.most]
    parts += [f'<circle class="probe" cx="{x(t)}" cy="{y(e)}" r="1.3"/>' for t, e in shown]
    if panel.line:
        path = " ".join(f"{x(t)},{y(e)}" for t, e in panel.errors)
        parts.append(f'<polyline class="line" points="{path}"/>')
    else:
        # a path of dots is a third of as many circles
        dots = "".join(f"M{x(t)} {y(e)}h0" for t, e in panel.errors)
        parts.append(f'<path class="line" stroke-linecap="round" d="{dots}"/>')
    parts.append(f'<path class="axis" d="M{left} {TOP}v{HEIGHT}h{WIDTH}"/>')
    nice = 10.0 ** np.floor(np.log10(panel.most))
    nice *= max(n for n in (1, 2, 5) if n * nice <= panel.most)
    for value in (-nice, 0.0, nice):
        parts.append(f'<text text-anchor="end" x="{left - 5}" y="{y(value) + 4}">{value:g}</text>')
    parts.append(f'<text x="{left}" y="{TOP + HEIGHT + 18}">{panel.unit}</text>')
    return parts


def main() -> None:
    """Draw both panels."""
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    width, height = LEFT + 2 * WIDTH + GAP + 10, TOP + HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        f"<style>{STYLE}</style>",
        *drawn(testbed(run), LEFT),
        *drawn(synthetic(), LEFT + WIDTH + GAP),
        f'<text transform="rotate(-90)" x="{-TOP - HEIGHT / 2}" y="12" text-anchor="middle">'
        "true error, µs</text>",
        "</svg>\n",
    ]
    out.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
