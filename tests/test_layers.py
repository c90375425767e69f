"""How functions depend on each other: checked against plain loops, and in a browser."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import check_clean, open_page, wait_until
from typer.testing import CliRunner

from dasf_hpc.analysis.critical_path import critical_path
from dasf_hpc.analysis.layers import layers
from dasf_hpc.cli import app
from dasf_hpc.show import layer_graph
from dasf_hpc.show.layer_graph import MISSING
from dasf_hpc.show.places import places
from dasf_hpc.show.report import write_report
from dasf_hpc.trace.open import Trace

MS = 1_000_000
MB = 1_000_000


def _run(path: Path) -> Trace:
    """Make two loads on two workers, of which one is sent to the other for two sums there."""
    tasks = [
        Task("load-1", 0, 0, 100 * MS, nbytes=30 * MB),
        Task("load-2", 1, 0, 50 * MS, nbytes=10 * MB),
        Task("sum-1", 1, 200 * MS, 300 * MS, nbytes=100, needs=["load-1", "load-2"]),
        Task("sum-2", 1, 300 * MS, 350 * MS, nbytes=200, needs=["load-1"]),
        Task("total-1", 1, 360 * MS, 400 * MS, nbytes=8, needs=["sum-1", "sum-2"]),
        Task("alone-1", 0, 100 * MS, 101 * MS, nbytes=8),
    ]
    changes = [
        (0, 100 * MS, "load-1", "executing", "memory"),
        (1, 50 * MS, "load-2", "executing", "memory"),
        (1, 190 * MS, "load-1", "flight", "memory"),
    ]
    return make_trace(path, Made(tasks, [Worker(0), Worker(1)], changes, (0, 500 * MS)))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trace]:
    with _run(tmp_path / "trace.h5") as trace:
        yield trace


def test_functions_and_what_goes_between_them(run: Trace) -> None:
    answer = layers(run)
    table: Any = answer.tables["layers"].set_index("function")
    assert table["tasks"].to_dict() == {"load": 2, "sum": 2, "total": 1, "alone": 1}
    assert table.loc["load", ["executing", "bytes", "needed"]].tolist() == [150 * MS, 40 * MB, 0]
    assert table.loc["sum", ["needed", "moved"]].tolist() == [70 * MB, 30 * MB]
    edges: Any = answer.tables["edges"].set_index(["source", "target"])
    assert sorted(edges.index) == [("load", "sum"), ("sum", "total")]
    assert edges.loc[("load", "sum")].to_dict() == {
        "dependencies": 3, "results": 2, "bytes": 70 * MB, "moved": 30 * MB, "moves": 1,
    }  # fmt: skip
    assert edges.loc[("sum", "total"), "bytes"] == 300
    assert edges.loc[("sum", "total"), "moved"] == 0


def test_most_of_an_edge_that_moved_is_told_of(tmp_path: Path) -> None:
    tasks = [
        Task("load-1", 0, 0, MS, nbytes=30 * MB),
        Task("sum-1", 1, 20 * MS, 30 * MS, needs=["load-1"]),
    ]
    changes = [(1, 10 * MS, "load-1", "flight", "memory")]
    with make_trace(tmp_path / "t.h5", Made(tasks, [Worker(0), Worker(1)], changes)) as trace:
        (found,) = layers(trace).findings
    assert found.sentence.startswith("30 MB of load's results went to other workers for sum, 100 %")


def test_layers_are_calls_of_map(tmp_path: Path) -> None:
    call = "0d2b3c4d-1111-2222-3333-444455556666"
    tasks = [Task(f"load-{call}-{i}", 0, i * MS, (i + 1) * MS) for i in range(3)]
    tasks += [Task("('rechunk-split-ab12', 0, 1)", 0, 5 * MS, 6 * MS, needs=[tasks[0].key])]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        answer = layers(trace, by="layer")
    table: Any = answer.tables["layers"].set_index("layer")
    assert table["tasks"].to_dict() == {f"load-{call}": 3, "rechunk-split-ab12": 1}
    assert table["function"].tolist() == ["load", "rechunk-split"]
    assert answer.tables["edges"][["source", "target"]].values.tolist() == [
        [f"load-{call}", "rechunk-split-ab12"]
    ]
    with (
        make_trace(tmp_path / "other.h5", Made(tasks)) as trace,
        pytest.raises(ValueError, match="cannot be told apart by node"),
    ):
        layers(trace, by="node")


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    """Give tasks of four functions on three workers, each needing some before it."""
    tasks: list[Task] = []
    for i in range(draw(st.integers(1, 15))):
        name = f"{draw(st.sampled_from(['load', 'map', 'sum', 'join']))}-{i}"
        needs = (
            draw(st.lists(st.sampled_from([t.key for t in tasks]), unique=True)) if tasks else []
        )
        tasks.append(
            Task(
                name, draw(st.integers(0, 2)), i * MS, i * MS + draw(st.integers(1, MS)),
                nbytes=draw(st.integers(1, 10**9)), needs=needs,
            )
        )  # fmt: skip
    return tasks


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tasks=graphs())
def test_edges_are_what_a_plain_loop_finds(tmp_path: Path, tasks: list[Task]) -> None:
    of = {task.key: task for task in tasks}
    count: dict[tuple[str, str], int] = defaultdict(int)
    nbytes: dict[tuple[str, str], int] = defaultdict(int)
    moved: dict[tuple[str, str], int] = defaultdict(int)
    changes = []
    sent: set[tuple[str, int]] = set()
    for task in tasks:  # in the order of their starts
        for need in task.needs:
            edge = (need.split("-")[0], task.key.split("-")[0])
            count[edge] += 1
            nbytes[edge] += of[need].nbytes
            if of[need].worker != task.worker and (need, task.worker) not in sent:
                sent.add((need, task.worker))
                moved[edge] += of[need].nbytes
                changes.append((task.worker, task.start, need, "flight", "memory"))
    path = tmp_path / "trace.h5"
    path.unlink(missing_ok=True)
    with make_trace(path, Made(tasks, [Worker(n) for n in range(3)], changes)) as trace:
        answer = layers(trace)
    edges: Any = answer.tables["edges"].set_index(["source", "target"])
    assert edges["dependencies"].to_dict() == dict(count)
    assert edges["bytes"].to_dict() == dict(nbytes)
    assert {e: b for e, b in edges["moved"].items() if b} == dict(moved)
    table: Any = answer.tables["layers"]
    assert table["executing"].sum() == sum(t.stop - t.start for t in tasks)
    assert table["tasks"].sum() == len(tasks)


@pytest.mark.parametrize("lacks", ["tasks", "dependencies", "transitions"])
def test_a_trace_that_lacks_a_part(tmp_path: Path, lacks: str) -> None:
    tasks = [Task("a-1", 0, 0, MS), Task("b-1", 0, MS, 2 * MS, needs=["a-1"])]
    if lacks == "dependencies":
        tasks = [Task("a-1", 0, 0, MS), Task("b-1", 0, MS, 2 * MS)]
    made = Made([] if lacks == "tasks" else tasks, span=(0, 3 * MS))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = layers(trace)
        assert len(answer.unanswered) == 1
        assert {
            "tasks": "No task was executed",
            "dependencies": "no dependency was recorded",
            "transitions": "was not recorded in this run",
        }[lacks] in answer.unanswered[0]
        write_report(trace.path, tmp_path / "page.html")


def test_the_command(run: Trace) -> None:
    done = CliRunner().invoke(app, ["analyze", "layers", str(run.path), "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.output)["tables"]) == {"layers", "edges"}
    done = CliRunner().invoke(app, ["analyze", "layers", str(run.path), "--by", "layer", "--csv"])
    assert done.output.startswith("function,layer,tasks")
    assert (
        CliRunner().invoke(app, ["analyze", "layers", str(run.path), "--by", "gpu"]).exit_code == 2
    )


# ------------------------------------------------------------------------------------ drawn


def _drawn(trace: Trace) -> ElementTree.Element:
    pytest.importorskip("igraph", reason="igraph is not installed: pip install 'dasf-hpc[graph]'")
    graph = layer_graph.layer_graph(layers(trace), critical_path(trace), places(trace), {"load": 2})
    return ElementTree.fromstring(graph.svg)


def _boxes(svg: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {
        str(one.get("data-card")).split("\n")[0]: one for one in svg.iter() if one.get("data-box")
    }


def _place(box: ElementTree.Element) -> tuple[float, float, float, float]:
    frame = box[0]
    x, y, w, h = (float(frame.get(n, "nan")) for n in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def test_what_is_needed_stands_above_what_needs_it(run: Trace) -> None:
    svg = _drawn(run)
    boxes = _boxes(svg)
    assert set(boxes) == {"load", "sum", "total", "alone"}
    tops = {name: _place(box)[1] for name, box in boxes.items()}
    assert tops["load"] < tops["sum"] < tops["total"] < tops["alone"]
    assert re.match(r"#t=[\d.,]+&f=load$", boxes["load"].get("href", ""))
    assert "f2" in boxes["load"][1].get("class", "")
    assert "on-path" in boxes["load"].get("class", "")
    assert "needs load: 70 MB in 3 dependencies, 30 MB of it between workers" in str(
        boxes["sum"].get("data-card")
    )
    lines = [one for one in svg if one.get("class") == "line"]
    widths = {
        str(one.get("data-card")).split("\n")[0]: float(one[0].get("stroke-width", "0"))
        for one in lines
    }
    assert widths["load → sum"] > 3 * widths["sum → total"]
    assert [t.text for t in svg.iter("text") if t.get("class") == "size"] == ["70 MB"]


def _many(path: Path, functions: int) -> Trace:
    tasks = [
        Task(f"f{i:03d}x-1", 0, i * MS, (i + 1) * MS - i, needs=[f"f{i // 2:03d}x-1"] if i else [])
        for i in range(functions)
    ]
    return make_trace(path, Made(tasks))


@pytest.mark.parametrize("functions", [40, 100, 250])
def test_no_box_lies_on_another_and_of_many_the_rest_is_one(tmp_path: Path, functions: int) -> None:
    with _many(tmp_path / "trace.h5", functions) as trace:
        boxes = _boxes(_drawn(trace))
    assert len(boxes) == min(functions, layer_graph.BOXES)
    assert (f"{functions - 99} more" in boxes) == (functions > 100)
    spots = [_place(box) for box in boxes.values()]
    for i, (left, top, right, bottom) in enumerate(spots):
        assert left >= 0
        assert top >= 0
        for other in spots[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_functions_that_need_each_other_are_drawn(tmp_path: Path) -> None:
    tasks = [Task("a-1", 0, 0, MS, nbytes=MB)]
    for i in range(1, 6):
        tasks.append(
            Task(f"{'ab'[i % 2]}-{i + 1}", 0, i * MS, (i + 1) * MS, needs=[tasks[-1].key, "a-1"])
        )
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        svg = _drawn(trace)
    cards = {str(one.get("data-card")).split("\n")[0] for one in svg if one.get("class") == "line"}
    assert cards == {"a → b", "b → a", "a → a"}


def test_without_igraph_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "igraph", None)  # as Python marks what cannot be imported
    with _run(tmp_path / "trace.h5"):
        pass
    text = write_report(tmp_path / "trace.h5", tmp_path / "page.html").read_text()
    assert "since igraph is not installed" in text
    assert "pip install" in MISSING
    assert "<svg" not in text


def test_the_graph_in_a_browser(tmp_path: Path, browser: Any) -> None:
    pytest.importorskip("igraph", reason="igraph is not installed: pip install 'dasf-hpc[graph]'")
    with _many(tmp_path / "trace.h5", 30):
        pass
    page = write_report(tmp_path / "trace.h5", tmp_path / "page.html")
    for theme, width in (("light", 1280), ("dark", 360)):
        browser.set_window_size(width, 900)
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        try:
            open_page(browser, page, theme=theme)
            assert browser.execute_script(
                "return document.documentElement.scrollWidth <= innerWidth"
            ), "the page is wider than the screen"
            told, wider = browser.execute_script(
                "const pan = document.querySelector('#graph .pan');"
                "const hint = pan.previousElementSibling;"
                "return [!hint.hidden && hint.innerText, pan.scrollWidth > pan.clientWidth + 2];"
            )
            assert told == ("more to the right →" if wider else False)
            assert wider or width > 360
            ink, frame = browser.execute_script(
                "const box = document.querySelector('svg.layers .box');"
                "return ['.name', '.frame'].map(n => getComputedStyle(box.querySelector(n)).fill);"
            )
            assert ink != frame
            browser.execute_script("document.querySelectorAll('svg.layers .box')[3].focus()")
            card = wait_until(
                browser,
                "const c = document.getElementById('graph-card'); return !c.hidden && c.innerText",
            )
            assert card.startswith("f")
            assert "of the executing time" in card
            seen = browser.execute_script(
                "return document.querySelectorAll('svg.layers .line.seen').length"
            )
            assert 1 <= seen < 29
            # it leads to the function in the timeline
            browser.execute_script(
                "document.querySelectorAll('svg.layers a.box')[3].dispatchEvent("
                "new MouseEvent('click', {bubbles: true, cancelable: true}))"
            )
            wait_until(browser, "return /f=f\\d+x/.test(location.hash)")
            check_clean(browser)
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.set_window_size(1280, 900)


def test_tables_have_units(run: Trace) -> None:
    answer = layers(run)
    for name, table in answer.tables.items():
        assert isinstance(table, pd.DataFrame)
        assert set(table) <= set(answer.columns[name])
