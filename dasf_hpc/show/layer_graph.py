"""Show, the task graph by layer: functions as boxes, what goes between them as lines between.

Where boxes go igraph's layout by Sugiyama's method says, which is in the extra ``graph``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.show.page_tables import cut
from dasf_hpc.show.places import Places, place_of_row
from dasf_hpc.units import bytes_text, count_text, duration_text, share_text

#: Boxes at most: of more those with least executing time are one.
BOXES = 100

#: What that one is called.
FOLDED = "{count} more"

#: What is to say where igraph is not there.
MISSING = (
    "The graph is not drawn, since igraph is not installed: `pip install 'dasf-hpc[graph]'` gets "
    "it. The tables tell all that it shows."
)

#: Sizes, pixels: a box, the room from box to box, and around all.
WIDE, HIGH, BESIDE, BELOW, AROUND = 172, 46, 26, 62, 14

#: The widest line and the narrowest, pixels; lines of a share of the most bytes have a label.
WIDEST, THINNEST, LABELLED = 12.0, 1.0, 0.01

#: How far beside the middle of its boxes a line is that has one the other way, pixels, and
#: the widest line from a box to itself.
ASIDE, LOOP = 14.0, 4.0

#: Characters of a name in a box.
NAME = 20

#: A function is on the critical path where it has this share of it, %.
ON_PATH = 5.0

Point = tuple[float, float]


@dataclass(frozen=True)
class LayerGraph:
    """The graph as the page shows it.

    Attributes
    ----------
    svg
        The drawing; empty where there is none.
    note
        What is to be said of it.
    """

    svg: str = ""
    note: str = ""


@dataclass
class _Box:
    """A box: what is told of it, and its middle."""

    name: str
    row: Mapping[str, Any]
    folded: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass
class _Line:
    """A line from box to box, the points that it goes through, and how far beside middles."""

    source: int
    target: int
    count: int
    nbytes: int
    moved: int
    through: list[Point]
    aside: float = 0.0


def layer_graph(
    answer: Answer | None,
    path: Answer | None,
    known: Places,
    colours: Mapping[str, int],
) -> LayerGraph:
    """Draw the functions of a run and what goes between them.

    Parameters
    ----------
    answer
        What analysis ``layers`` gave.
    path
        What analysis ``critical_path`` gave: functions on it are marked.
    known
        Of the trace: where boxes lead.
    colours
        Numbers of the colours that functions have in the page.
    """
    if answer is None or len(answer.tables["layers"]) < 2 or not len(answer.tables["edges"]):
        return LayerGraph()
    boxes, lines = _folded(answer)
    if not _placed(boxes, lines):
        return LayerGraph(note=MISSING)
    on_path = _on_path(path)
    note = (
        "A box is a function, its bar the share of the executing time that it took; a line is what "
        "the tasks of the lower need of the upper, as wide as that is large. "
    )
    if on_path:
        note += "A thick frame: 5 % of the critical path and more are there. "
    if boxes[-1].folded:
        note += f"{boxes[-1].folded} functions of least executing time are one box. "
    return LayerGraph(_svg(boxes, lines, known, colours, on_path), note.strip())


def _folded(answer: Answer) -> tuple[list[_Box], list[_Line]]:
    """Give the boxes and lines of the tables; of too many functions the last are one box."""
    rows = [{str(k): v for k, v in r.items()} for r in answer.tables["layers"].to_dict("records")]
    shown, rest = rows, []
    if len(rows) > BOXES:
        shown, rest = rows[: BOXES - 1], rows[BOXES - 1 :]
    boxes = [_Box(str(row["function"]), row) for row in shown]
    if rest:
        sums = {c: sum(int(row[c]) for row in rest) for c in ("tasks", "executing", "bytes")}
        boxes.append(_Box(FOLDED.format(count=len(rest)), sums, len(rest)))
    place = {box.name: number for number, box in enumerate(boxes) if not box.folded}
    lines: dict[tuple[int, int], _Line] = {}
    for row in answer.tables["edges"].to_dict("records"):
        ends = tuple(place.get(str(row[end]), len(boxes) - 1) for end in ("source", "target"))
        line = lines.setdefault((ends[0], ends[1]), _Line(ends[0], ends[1], 0, 0, 0, []))
        line.count += int(row["dependencies"])
        line.nbytes += int(row["bytes"])
        line.moved += int(row["moved"])
    for source, target in lines:
        if source != target and (target, source) in lines:  # they are not to lie on each other
            lines[source, target].aside = ASIDE
    return boxes, list(lines.values())


def _placed(boxes: list[_Box], lines: list[_Line]) -> bool:
    """Say where boxes and lines go; False where igraph is not there."""
    try:
        from igraph import Graph
    except ImportError:
        return False
    count = len(boxes)
    # what depends on nothing and is needed by nothing stands in rows below
    joined = sorted({end for line in lines for end in (line.source, line.target)})
    number = {box: i for i, box in enumerate(joined)}
    ends = [(number[e.source], number[e.target]) for e in lines if e.source != e.target]
    graph = Graph(n=len(joined), edges=ends, directed=True)
    layers = [round(y) for _, y in graph.layout_sugiyama(vgap=1).coords[: len(joined)]]
    # a line that passes layers has a point in each, so that it does not cross their boxes
    at, all_layers, steps, passing = len(joined), list(layers), [], []
    for line in lines:
        if line.source == line.target:
            continue
        first, last = number[line.source], number[line.target]
        way = 1 if layers[last] >= layers[first] else -1
        before, points = first, []
        for layer in range(layers[first] + way, layers[last], way):
            all_layers.append(layer)
            steps.append((before, at) if way > 0 else (at, before))
            points.append(at)
            before, at = at, at + 1
        steps.append((before, last) if way > 0 else (last, before))
        passing.append((line, points))
    whole = Graph(n=at, edges=steps, directed=True)
    places = whole.layout_sugiyama(layers=all_layers, hgap=1, vgap=1).coords[:at]
    left = min((x for x, _ in places), default=0.0)
    spots = [
        ((x - left) * (WIDE + BESIDE) + AROUND + WIDE / 2, y * (HIGH + BELOW) + AROUND + HIGH / 2)
        for x, y in places
    ]
    for box, i in number.items():
        boxes[box].x, boxes[box].y = spots[i]
    for line, points in passing:
        line.through = [spots[point] for point in points]
    alone = [box for box in range(count) if box not in number]
    across = max(4, round((max(x for x, _ in spots) - AROUND) / (WIDE + BESIDE)))
    below = max(y for _, y in spots) + HIGH + 30
    for i, box in enumerate(alone):
        boxes[box].x = AROUND + WIDE / 2 + (i % across) * (WIDE + BESIDE)
        boxes[box].y = below + (i // across) * (HIGH + 14)
    return True


def _on_path(path: Answer | None) -> dict[str, float]:
    """Give the functions on the critical path, and their shares of it."""
    if path is None or "functions" not in path.tables:
        return {}
    table = path.tables["functions"]
    table = table[(table["kind"] == "task") & (table["share"] >= ON_PATH)]
    return dict(zip(table["function"].astype(str), table["share"].astype(float), strict=True))


def _svg(
    boxes: list[_Box],
    lines: list[_Line],
    known: Places,
    colours: Mapping[str, int],
    on_path: Mapping[str, float],
) -> Markup:
    points = [(box.x, box.y) for box in boxes] + [p for line in lines for p in line.through]
    wide = max(x for x, _ in points) + WIDE / 2 + AROUND
    high = max(y for _, y in points) + HIGH / 2 + AROUND
    most = max(1, max(line.nbytes for line in lines))
    total = max(1, sum(int(box.row["executing"]) for box in boxes))
    made = [
        Markup(
            '<svg class="layers" width="{0:.0f}" height="{1:.0f}" viewBox="0 0 {0:.0f} {1:.0f}" '
            'role="group" aria-label="The task graph by function">'
        ).format(wide, high)
    ]
    labels = []
    for line in sorted(lines, key=lambda one: one.nbytes):
        width = THINNEST + (WIDEST - THINNEST) * math.sqrt(line.nbytes / most)
        made.append(_drawn_line(boxes, line, width))
        if line.nbytes >= LABELLED * most:
            labels.append(_label(boxes, line))
    made += labels
    told: list[list[str]] = [[] for _ in boxes]
    for line in sorted(lines, key=lambda one: -one.nbytes):
        text = _line_text(line)
        source, target = boxes[line.source].name, boxes[line.target].name
        told[line.target].append(f"needs {source}: {text}")
        if line.source != line.target:
            told[line.source].append(f"for {target}: {text}")
    for number, box in enumerate(boxes):
        made.append(_drawn_box(number, box, told[number], total, known, colours, on_path))
    made.append(Markup("</svg>"))
    return Markup("\n").join(made)


def _line_text(line: _Line) -> str:
    text = f"{bytes_text(line.nbytes)} in {counted(line.count, 'dependency', 'dependencies')}"
    if line.moved:
        text += f", {bytes_text(line.moved)} of it between workers"
    return text


def _attribute(text: str) -> Markup:
    """Write a text of several lines as an attribute: XML would make spaces of their ends."""
    return Markup(str(escape(text)).replace("\n", "&#10;"))


def counted(count: int, one: str, several: str) -> str:
    """Write how many there are of something."""
    return f"{count_text(count)} {one if count == 1 else several}"


def _ends(boxes: list[_Box], line: _Line) -> list[Point]:
    """Give the points of a line, from the edge of its first box to that of its last one."""
    source, target = boxes[line.source], boxes[line.target]
    half = HIGH / 2
    if line.source == line.target:
        return []
    way = 1 if target.y >= source.y else -1
    aside = way * line.aside
    return [
        (source.x + aside, source.y + way * half),
        *line.through,
        (target.x + aside, target.y - way * (half + 5)),
    ]


def _drawn_line(boxes: list[_Box], line: _Line, width: float) -> Markup:
    points = _ends(boxes, line)
    card = f"{boxes[line.source].name} → {boxes[line.target].name}\n{_line_text(line)}"
    if not points:  # a function that needs its own results
        box = boxes[line.source]
        x, y, width = box.x + WIDE / 2, box.y, min(LOOP, width)
        d = f"M{x:.1f} {y - 10:.1f}c22 -6 22 26 0 20"
        head = ""
    else:
        d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            bend = (y1 - y0) / 2
            d += f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
        x, y = points[-1]
        way = 1 if y > points[-2][1] else -1
        wing = max(4.0, width * 0.9)
        head = (
            f"M{x - wing:.1f} {y - way * 3:.1f}L{x + wing:.1f} {y - way * 3:.1f}"
            f"L{x:.1f} {y + way * 5:.1f}Z"
        )
    return Markup(
        '<g class="line" data-ends="{} {}" data-card="{}"><path d="{}" stroke-width="{:.1f}"/>'
        '<path class="head" d="{}"/><path class="near" d="{}"/></g>'
    ).format(line.source, line.target, _attribute(card), d, width, head, d)


def _label(boxes: list[_Box], line: _Line) -> Markup:
    points = _ends(boxes, line)
    if not points:
        return Markup("")
    part = (len(points) - 1) // 2
    (x0, y0), (x1, y1) = points[part], points[part + 1]
    # on the curve, before its middle: one the other way has its own elsewhere
    t = 0.4
    x = x0 + (x1 - x0) * (3 * t**2 - 2 * t**3)
    y = y0 + (y1 - y0) * (1.5 * t - 1.5 * t**2 + t**3)
    return Markup('<text class="size" x="{:.1f}" y="{:.1f}">{}</text>').format(
        x, y + 4, bytes_text(line.nbytes)
    )


def _drawn_box(
    number: int,
    box: _Box,
    told: list[str],
    total: int,
    known: Places,
    colours: Mapping[str, int],
    on_path: Mapping[str, float],
) -> Markup:
    row = box.row
    executing = int(row["executing"])
    share = executing / total
    figures = f"{counted(int(row['tasks']), 'task', 'tasks')} · {duration_text(executing)}"
    facts = [
        box.name,
        f"{figures}, {share_text(100 * share)} of the executing time",
        f"results of {bytes_text(int(row['bytes']))}",
    ]
    if box.name in on_path:
        facts.append(f"{share_text(on_path[box.name])} of the critical path")
    card = "\n".join([*facts, *told])
    left, top = box.x - WIDE / 2, box.y - HIGH / 2
    colour = f"f{colours.get(box.name, 7)}"
    href = "" if box.folded else place_of_row({"function": box.name}, known)
    inside = Markup(
        '<rect class="frame" x="{x:.1f}" y="{y:.1f}" width="{w}" height="{h}" rx="4"/>'
        '<rect class="colour {colour}" x="{x:.1f}" y="{y:.1f}" width="7" height="{h}" rx="3"/>'
        '<rect class="took {colour}" x="{bx:.1f}" y="{by:.1f}" width="{bw:.1f}" height="5"/>'
        '<text class="name" x="{tx:.1f}" y="{t1:.1f}">{name}</text>'
        '<text class="figures" x="{tx:.1f}" y="{t2:.1f}">{figures}</text>'
    ).format(
        x=left,
        y=top,
        w=WIDE,
        h=HIGH,
        colour=colour,
        bx=left + 7,
        by=top + HIGH - 6,
        bw=(WIDE - 8) * share,
        tx=left + 14,
        t1=top + 17,
        t2=top + 33,
        name=cut(box.name, NAME),
        figures=figures,
    )
    kind = "box on-path" if box.name in on_path else "box"
    common = Markup('class="{}" data-box="{}" data-card="{}" aria-label="{}"').format(
        kind, number, _attribute(card), card.replace("\n", "; ")
    )
    if href:
        return Markup('<a href="{}" {}>{}</a>').format(href, common, inside)
    return Markup('<g tabindex="0" role="img" {}>{}</g>').format(common, inside)
