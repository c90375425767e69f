"""Scaling, drawn: speed-up, efficiency and factors against the scale, as SVG.

Colours are the page's variables, so that a drawing is dark where the page is. Texts are as large as
the page's where a drawing has its own width; on a narrow screen it shrinks little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from dasf_hpc.units import count_text, share_text, three_digits

#: Size of a drawing, and its room for labels, in units of which the page shows about one a pixel.
WIDTH, HEIGHT = 380.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 26.0, 42.0
#: Labels of an axis are no nearer to each other.
APART_X, APART_Y = 30.0, 18.0
#: Runs of one scale stand beside each other, so far apart.
BESIDE = 7.0

_SHAPES = ("circle", "square", "triangle", "diamond", "circle")

#: Corners of those that are no circle, about their place.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
    "triangle": [(0, -4.6), (4.4, 3.4), (-4.4, 3.4)],
    "diamond": [(0, -5), (5, 0), (0, 5), (-5, 0)],
}


@dataclass(frozen=True)
class Dot:
    """A run: where it is, what is told of it, and where it leads; empty: nowhere."""

    x: float
    y: float
    told: str
    href: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points, in one of the page's colours.

    Attributes
    ----------
    name
        For the legend.
    colour
        Name of one of the page's variables.
    points
        Pairs (x, y); where y is not known the line has a gap.
    style
        ``solid``, ``dashed`` or ``dotted``.
    marks
        Whether every point is marked, with a shape of the line's own.
    band
        Triples (x, low, high) of an area about it.
    """

    name: str
    colour: str
    points: list[tuple[float, float]]
    style: str = "solid"
    marks: bool = False
    band: list[tuple[float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """A drawing and its legend: name, colour, style and shape of each line."""

    title: str
    svg: Markup
    legend: list[tuple[str, Markup]]


@dataclass(frozen=True)
class _Axes:
    x: Callable[[float], float]
    y: Callable[[float], float]
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]


def draw(
    title: str,
    unit: str,
    scales: Sequence[float],
    lines: Sequence[Line],
    dots: Sequence[Dot] = (),
    logarithmic: bool = False,
    percent: bool = False,
) -> Chart:
    """Draw lines and dots against the scale.

    Parameters
    ----------
    title
        What is drawn upwards.
    unit
        What is counted to the right, in the plural.
    scales
        What is labelled there; that axis is logarithmic.
    lines, dots
        What is drawn.
    logarithmic
        Whether the other axis is, too.
    percent
        Whether it is of shares, in %.
    """
    axes = _axes(scales, lines, dots, logarithmic, percent)
    parts = [_frame(title, unit, axes)]
    for line in lines:
        if line.band:
            there = [(axes.x(x), axes.y(high)) for x, _, high in line.band]
            back = [(axes.x(x), axes.y(low)) for x, low, _ in reversed(line.band)]
            parts.append(
                Markup('<polygon class="band" style="fill:var(--{})" points="{}"/>').format(
                    line.colour, _points([*there, *back])
                )
            )
    for number, line in enumerate(lines):
        for piece in _unbroken(line.points):
            places = [(axes.x(x), axes.y(y)) for x, y in piece]
            parts.append(
                Markup('<polyline class="{}" style="stroke:var(--{})" points="{}"/>').format(
                    line.style, line.colour, _points(places)
                )
            )
            if line.marks:
                parts += [
                    _mark(place, _SHAPES[number % len(_SHAPES)], line.colour, f"{line.name}: "
                          f"{_value(y, percent)} at {count_text(x)} {unit}")
                    for place, (x, y) in zip(places, piece, strict=True)
                ]  # fmt: skip
    parts += _dots(dots, axes)
    svg = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="group" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{title} against {unit}", Markup("").join(parts)
    )
    legend = [
        (line.name, _sample(line, _SHAPES[number % len(_SHAPES)])) for number, line in
        enumerate(lines)
    ]  # fmt: skip
    if dots:
        legend.append(("a run", _sample(None, "circle")))
    return Chart(title, svg, legend)


def _value(y: float, percent: bool) -> str:
    return share_text(y) if percent else three_digits(y)


def _axes(
    scales: Sequence[float],
    lines: Sequence[Line],
    dots: Sequence[Dot],
    logarithmic: bool,
    percent: bool,
) -> _Axes:
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ys += [dot.y for dot in dots]
    left, right = LEFT + 12, WIDTH - RIGHT - 12
    first, last = math.log(min(scales)), math.log(max(scales))

    def x(scale: float) -> float:
        return left + (math.log(scale) - first) / max(1e-9, last - first) * (right - left)

    low, high = TOP, HEIGHT - BOTTOM
    if logarithmic:
        least = math.log(min(1.0, *ys) * 0.95)
        most = math.log(max(1.0, *ys) * 1.05)

        def y(value: float) -> float:
            share = (math.log(max(value, 1e-9)) - least) / (most - least)
            return high - min(1.05, max(0.0, share)) * (high - low)

        top = max(ys)
        values = [
            v for v in (0.25, 0.5, *(s / min(scales) for s in scales)) if least <= math.log(v)
        ]
        values = [v for v in values if v <= top * 1.05]
    else:
        whole = 100.0 if percent else 1.0
        top = max(whole, *ys) * 1.04

        def y(value: float) -> float:
            return high - min(1.05, max(0.0, value / top)) * (high - low)

        step = whole / 4 if top <= 1.6 * whole else whole / 2
        values = [step * i for i in range(int(top / step) + 1)]
    ticks_x = _thinned([(x(s), count_text(s)) for s in scales], APART_X)
    ticks_y = _thinned([(y(v), _value(v, percent) if v else "0") for v in values], APART_Y)
    return _Axes(x, y, ticks_x, ticks_y)


def _thinned(ticks: list[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """Leave out labels that have no room, the ends last."""
    kept: list[tuple[float, str]] = []
    for place, text in ticks:
        if all(abs(place - other) >= apart for other, _ in kept):
            kept.append((place, text))
    return kept


def _frame(title: str, unit: str, axes: _Axes) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        Markup('<text class="name" x="{:.1f}" y="14">{}</text>').format(4, title),
        Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            (LEFT + right) / 2, HEIGHT - 6, unit
        ),
    ]
    for place, text in axes.ticks_y:
        parts.append(
            Markup(
                '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, right, place, place, LEFT - 5, place + 4, text)
        )
    for place, text in axes.ticks_x:
        parts.append(
            Markup(
                '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
            ).format(place, place, bottom, bottom + 4, place, bottom + 18, text)
        )
    parts.append(
        Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, right, bottom, bottom
        )
    )
    return Markup("").join(parts)


def _dots(dots: Sequence[Dot], axes: _Axes) -> list[Markup]:
    """Draw runs; those of one scale stand beside each other."""
    drawn = []
    for scale in sorted({dot.x for dot in dots}):
        own = [dot for dot in dots if dot.x == scale]
        apart = min(BESIDE, 24.0 / max(1, len(own) - 1))
        for number, dot in enumerate(own):
            x = axes.x(scale) + (number - (len(own) - 1) / 2) * apart
            mark = _mark((x, axes.y(dot.y)), "circle", "f5", dot.told, "run")
            if dot.href:
                mark = Markup('<a href="{}" aria-label="{}">{}</a>').format(
                    dot.href, dot.told, mark
                )
            drawn.append(mark)
    return drawn


def _mark(
    place: tuple[float, float], shape: str, colour: str, told: str, name: str = "mark"
) -> Markup:
    x, y = place
    style = Markup('class="{}" style="fill:var(--{})"').format(name, colour)
    inner = Markup("<title>{}</title>").format(told) if told else Markup("")
    if shape == "circle":
        return Markup('<circle {} cx="{:.1f}" cy="{:.1f}" r="4">{}</circle>').format(
            style, x, y, inner
        )
    points = _points([(x + a, y + b) for a, b in _CORNERS[shape]])
    return Markup('<polygon {} points="{}">{}</polygon>').format(style, points, inner)


def _sample(line: Line | None, shape: str) -> Markup:
    """Draw what stands for a line, or for a run, in the legend."""
    if line is None:
        inside = _mark((14, 6), shape, "f5", "", "run")
    else:
        inside = Markup('<polyline class="{}" style="stroke:var(--{})" points="1,6 27,6"/>').format(
            line.style, line.colour
        )
        if line.marks:
            inside += _mark((14, 6), shape, line.colour, "")
    return Markup('<svg class="sample" viewBox="0 0 28 12" aria-hidden="true">{}</svg>').format(
        inside
    )


def _unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Divide a line where a value is not known."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _points(places: Sequence[tuple[float, float]]) -> Markup:
    return escape(" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
