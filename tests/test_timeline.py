"""The timeline shows what was, at every zoom: what is in the page, and what a browser paints."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import given
from hypothesis import strategies as st
from pages import (
    check_clean,
    data_of,
    open_page,
    picked,
    picture_of,
    wait_until,
    window_of,
    write_timeline,
)
from synthetic import write_run

from dasf_hpc.analysis.critical_path import critical_path
from dasf_hpc.analysis.executions import read_executions, work_span
from dasf_hpc.manifest import Manifest
from dasf_hpc.show import picture
from dasf_hpc.show.coverage import COLOURED, DIGITS, binned, digits, lanes, side_by_side
from dasf_hpc.show.curves import curves
from dasf_hpc.show.page_data import Columns, signed, three_digits, unpacked, unsigned
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import write_trace
from dasf_hpc.units import bytes_text, duration_text, moment_text, share_text

#: What the synthetic runs' workers use, to four digits.
GIBIBYTE = float(f"{2**30:.4g}")
MS, SECOND = 10**6, 10**9


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two nodes with a GPU each, of which some tasks fail."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "journals", nodes=2, workers=2, tasks=400, gpus=1, failing=0.02)
    merge_journals(folder / "journals").write(folder / "trace.h5")
    Manifest(folder).update(name="a-run", state="complete", job="job.py")
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    return write_timeline(run_folder)


@pytest.fixture(scope="module")
def binned_page(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the same run as it were too long to show each execution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "EXACT", 100)
        return write_timeline(run_folder, tmp_path_factory.mktemp("binned") / "binned.html")


# ------------------------------------------------------------------------------ what it holds


def times_of(line: dict[str, Any], columns: Any) -> pd.DataFrame:
    """Give the tasks of a page: when they began and how long they took, ns from time 0."""
    tasks = line["tasks"]
    lanes = [(row, count) for row, one in enumerate(line["rows"]) for count in one["lanes"]]
    row = np.repeat([row for row, _ in lanes], [count for _, count in lanes])
    edges = np.cumsum([0, *(count for _, count in lanes)])
    start = columns[tasks["start"]].astype(np.int64)
    number = unsigned(columns[tasks["task"]])
    for first, last in pairwise(edges.tolist()):
        start[first:last] = np.cumsum(start[first:last])
        number[first:last] = np.cumsum(number[first:last])
    step = line["resolution"]
    return pd.DataFrame(
        {
            "start": line["begin"] + start * step,
            "took": columns[tasks["took"]].astype(np.int64) * step,
            "row": row,
            "function": [line["functions"][f] for f in columns[tasks["function"]]],
        },
        index=number,
    ).sort_index()


def test_all_executions_of_a_run_are_in_the_page(page: Path, run_folder: Path) -> None:
    described, columns = data_of(page)
    line = described["timeline"]
    assert line["tasks"]["whole"]
    found = times_of(line, columns)
    with open_trace(run_folder) as trace:
        tasks, names = trace.tasks.sort_index(), trace.processes["name"].tolist()
        zero = work_span(trace, read_executions(trace)).start
    assert found.index.tolist() == tasks.index.tolist()
    assert (found["start"] == tasks["start"] - zero).all()
    assert found["start"].min() == 0
    assert (found["took"] == tasks["stop"] - tasks["start"]).all()
    assert found["function"].tolist() == tasks["prefix"].astype(str).tolist()
    of = [line["rows"][row]["name"].split()[-1] for row in found["row"]]
    assert of == [names[p] for p in tasks["process"]]
    keys = bytes(columns[line["tasks"]["keys"]].astype(np.uint8)).decode().split("\0")
    assert sorted(keys) == sorted(tasks["key"])
    spent = (tasks["stop"] - tasks["start"]).groupby(tasks["prefix"].astype(str)).sum()
    assert line["functions"][: len(spent)] == spent.sort_values(ascending=False).index.tolist()


def test_rows_stand_by_node_then_worker_then_its_gpus(page: Path) -> None:
    rows = data_of(page)[0]["timeline"]["rows"]
    assert [row["kind"] for row in rows] == ["worker", "worker", "gpu"] * 2
    assert [row["name"].split()[0] for row in rows] == ["node1"] * 3 + ["node2"] * 3


def test_a_long_run_is_drawn_by_its_longest_executions_and_the_failed(
    binned_page: Path, run_folder: Path
) -> None:
    described, columns = data_of(binned_page)
    line = described["timeline"]
    assert not line["tasks"]["whole"]
    with open_trace(run_folder) as trace:
        tasks = trace.tasks
    longest = (tasks["stop"] - tasks["start"]).nlargest(100).index
    failed = tasks.index[tasks["state"] != "memory"]
    assert times_of(line, columns).index.tolist() == sorted({*longest, *failed})
    for row in line["rows"]:
        if row["kind"] == "worker":
            assert len(columns[row["bins"]]) == line["bins"] * (COLOURED + 1)


def test_times_of_many_executions_are_right_to_a_tenth_of_a_microsecond(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "FINE", 10)
    with open_trace(run_folder) as trace:
        executions = read_executions(trace)
        columns = Columns()
        line = picture.timeline(trace, executions, columns)
        found = times_of(line, unpacked(columns.packed({}))[1])
        zero = work_span(trace, executions).start
    assert line["resolution"] == 100
    assert np.abs(found["start"].to_numpy() - (executions.start - zero)).max() <= 100
    assert np.abs(found["took"].to_numpy() - executions.duration).max() <= 100


def test_bins_say_how_busy_a_worker_was_and_with_what() -> None:
    """Against the same, moment by moment."""
    random = np.random.default_rng(3)
    start = np.sort(random.integers(0, 9_000, 200))
    stop = np.minimum(start + random.integers(1, 2_000, 200), 10_000)
    row, colour = random.integers(0, 3, 200), random.integers(0, COLOURED + 1, 200)
    threads = np.array([40, 40, 80])
    bins = 25
    shares = binned(start / 400, stop / 400, row, colour, threads, bins)
    truth = np.zeros((3, COLOURED + 1, 10_000))
    for i in range(200):
        truth[row[i], colour[i], start[i] : stop[i]] += 1
    truth = truth.reshape(3, COLOURED + 1, bins, -1).mean(axis=3)
    for number, share in enumerate(shares):
        assert share == pytest.approx(truth[number] / threads[number])
    told = [DIGITS.index(letter) / 63 for letter in digits(shares[0].sum(axis=0))]
    assert told == pytest.approx(shares[0].sum(axis=0).tolist(), abs=1 / 63 + 1e-9)


def test_rows_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=11, tasks=3, answers=False)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    rows = data_of(write_timeline(tmp_path))[0]["timeline"]["rows"]
    assert [row["name"] for row in rows] == [f"node1 worker-{i}" for i in range(11)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30))
def test_spans_side_by_side_never_overlap(spans: list[tuple[int, int]]) -> None:
    spans.sort()
    start = np.array([s for s, _ in spans], np.int64)
    stop = start + np.array([took for _, took in spans], np.int64)
    lane, count = side_by_side(start, stop)
    for number in range(count):
        mine = lane == number
        assert mine.any()
        assert (start[mine][1:] >= stop[mine][:-1]).all()
    at_once = max((int(((start <= t) & (t < stop)).sum()) for t in range(80)), default=0)
    assert count <= max(at_once, 1 if len(spans) else 0) + int((start == stop).any())


def test_tasks_of_one_thread_that_overlap_get_lanes_of_their_own(tmp_path: Path) -> None:
    tasks = [Task(f"a-{n}", 0, n * SECOND, (n + 2) * SECOND + 1, thread=0) for n in range(5)]
    made = Made(tasks, [Worker(0)], span=(0, 9 * SECOND), transitions=[])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        executions = read_executions(trace)
        lane = lanes(executions)
        (row,) = picture.timeline(trace, executions, Columns())["rows"]
    assert lane.tolist() == [0, 1, 2, 0, 1]
    assert row["lanes"] == [2, 2, 1]


@given(st.lists(st.integers(-(2**40), 2**40)), st.text(max_size=20))
def test_columns_come_back_as_they_were(values: list[int], text: str) -> None:
    columns = Columns()
    numbers = [columns.add_steps(np.array(values, np.int64)), columns.add_text(text)]
    packed = columns.packed({"text": text})
    described, back = unpacked(packed)
    assert described == {"text": text}
    assert numbers == [0, 1]
    assert np.cumsum(unsigned(back[0])).tolist() == values
    assert bytes(back[1].astype(np.uint8)).decode() == text
    assert unsigned(signed(np.array(values, np.int64))).tolist() == values


@given(st.integers(-1, 10**15))
def test_sizes_keep_three_digits(size: int) -> None:
    code = int(three_digits(np.array([size]))[0])
    assert code < 1 << 16
    if code <= 1000:
        assert code - 1 == size
        return
    back = (100 + (code - 1001) % 900) * 10 ** (1 + (code - 1001) // 900)
    assert back == pytest.approx(size, rel=5.1e-3)


def test_curves_hold_what_was_sampled(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        executions = read_executions(trace)
        found = {chart["title"]: chart for chart in curves(trace, executions)}
        span = trace.processes["stop"].max() - trace.processes["start"].min()
    assert [c["name"] for c in found["CPU of the nodes"]["curves"]] == ["node1", "node2"]
    assert set(found["GPU power"]["curves"][0]["values"]) <= {300.0, None}
    assert set(found["Memory of the workers"]["curves"][0]["values"]) <= {GIBIBYTE, None}
    assert {v for v in found["From the network"]["curves"][0]["values"] if v} == {10_000.0}
    busy = np.array(found["Threads that execute tasks"]["curves"][0]["values"])
    assert busy.mean() * span == pytest.approx(executions.duration.sum(), rel=2e-3)
    assert busy.max() <= found["Threads that execute tasks"]["top"] + 1e-6


def test_many_curves_become_a_mean_within_extremes(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=5, tasks=20, answers=False)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        charts = {c["title"]: c for c in curves(trace, read_executions(trace))}
    chart = charts["Memory of the workers"]
    assert [curve["name"] for curve in chart["curves"]] == ["mean of 10"]
    assert set(chart["band"][0]) <= {GIBIBYTE, None}


@pytest.mark.parametrize("tables", [("nodes", "tasks"), ("nodes",), ()])
def test_a_trace_of_nothing_says_so(tmp_path: Path, tables: tuple[str, ...]) -> None:
    write_trace(tmp_path / "trace.h5", {name: {} for name in tables})
    path = write_timeline(tmp_path)
    described, _ = data_of(path)
    assert described["timeline"]["tasks"]["count"] == 0
    assert described["curves"] == []
    assert "Nothing to draw" in path.read_text()


def test_the_data_of_a_page_holds_nothing_of_the_environment(page: Path, run_folder: Path) -> None:
    described, _ = data_of(page)
    text = json.dumps(described)
    with open_trace(run_folder) as trace:
        addresses = [a for a in trace.processes["address"] if isinstance(a, str)]
    assert not [word for word in (*addresses, "TOKEN", "PATH=", "export ") if word in text]


# ------------------------------------------------------------------------------ GPUs


def gpu_tables(busy: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Give tables of kernels on one GPU: stream, start, stop."""
    return {
        "nodes": {"hostname": ["n"]},
        "gpus": {"node": np.zeros(1, np.int32), "index": np.zeros(1, np.int32)},
        "kernels": {
            "gpu": np.zeros(len(busy), np.int32),
            "stream": np.array([stream for stream, _, _ in busy]),
            "start": np.array([start for _, start, _ in busy]),
            "stop": np.array([stop for _, _, stop in busy]),
            "name": [f"k{stream}" for stream, _, _ in busy],
            "short_name": [f"k{stream}" for stream, _, _ in busy],
        },
    }


@pytest.mark.needs("browser")
@pytest.mark.parametrize("many", [False, True])
def test_kernels_without_a_run_are_drawn_by_stream(
    browser: Any, tmp_path: Path, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(picture, "ON_GPUS", 2)
    begin = SECOND
    busy = [(7, begin, begin + 25 * MS), (8, begin + 10 * MS, begin + 30 * MS)]
    busy += [(7, begin + 60 * MS, begin + 100 * MS), (9, begin + 60 * MS, begin + 100 * MS)]
    write_trace(tmp_path / "trace.h5", gpu_tables(busy))
    open_page(browser, write_timeline(tmp_path))
    row = browser.execute_script(
        "const l = document.getElementById('chart').timeline, row = l.rows[0];"
        "return [row.kind, row.open, row.lines.map(line => line.label), l.toldColumn(row, 0, 1e5)]"
    )
    assert row[:2] == ["gpu", True]
    assert row[3][0] == ["kernels", "70 %"]  # what ran on several streams at once counts once
    if not many:
        assert row[2] == ["stream 7", "stream 8", "stream 9"]
    found = painted(browser, [0, 1e5])
    assert found[0] == pytest.approx(0.7, abs=0.02)
    browser.find_element("id", "search").send_keys("k8\n")
    if not many:
        assert browser.find_element("id", "found").text == "1 of kernels, copies and ranges"
    check_clean(browser)


# ------------------------------------------------------------------------------ what is painted

#: Goes to a window and gives, for each row, what part of it is painted: is not of the ground.
PAINTED = """
const line = document.getElementById('chart').timeline;
line.view.show(...arguments[0]);
const {width, height} = line.canvas, copy = new OffscreenCanvas(width, height);
const pen = copy.getContext('2d', {willReadFrequently: true});
pen.drawImage(line.canvas, 0, 0);
const pixels = pen.getImageData(0, 0, width, height);
const rgb = colour => [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
const style = getComputedStyle(document.documentElement);
const get = name => rgb(style.getPropertyValue('--' + name).trim());
const ground = get('idle'), names = [0, 1, 2, 3, 4, 5, 6, 7].map(i => 'f' + i);
const of = [...names, 'faint', 'ink'].map(get);
// of a pixel the part that a colour covers, the one that explains the pixel best
const part = at => {
  const given = [0, 1, 2].map(i => pixels.data[at + i] - ground[i]);
  if (given.every(v => Math.abs(v) <= 1)) return 0;
  let best = 1e9, found = 1;
  for (const colour of of) {
    const whole = colour.map((v, i) => v - ground[i]);
    const length = whole.reduce((sum, v) => sum + v * v, 0);
    const along = whole.reduce((sum, v, i) => sum + v * given[i], 0) / length;
    const share = Math.min(1, Math.max(0, along));
    const off = whole.reduce((sum, v, i) => sum + (given[i] - share * v) ** 2, 0);
    if (off < best) { best = off; found = share; }
  }
  return best > 3000 ? 1 : found; // of two colours in one pixel, or an edge
};
return line.rows.filter(row => row.kind !== 'path' && row.body).map(row => {
  let sum = 0, all = 0;
  row.own.concat(row.kind === 'gpu' ? [{}] : []).forEach((lane, number, lanes) => {
    const split = !row.stacked && lanes.length > 1;
    if (!split && number) return;
    const top = Math.round(row.y - line.top + (split ? number * row.lane : 0));
    const end = Math.round(row.y - line.top + (split ? (number + 1) * row.lane : row.body));
    const bottom = end - (split && row.lane > 6 ? 1 : 0);
    for (let y = top; y < bottom; y++) for (let x = line.gutter; x < width; x++) {
      sum += part((y * width + x) * 4);
      all++;
    }
  });
  return sum / all;
});
"""


def painted(browser: Any, window: list[float]) -> list[float]:
    """Give what part of each row is painted in a window of time, us."""
    found: list[float] = browser.execute_script(PAINTED, window)
    return found


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thousands of tasks of 10 us, now sparse, now dense, then long ones; a worker has threads."""
    random = np.random.default_rng(5)
    tasks = []
    for worker, threads in ((0, 1), (1, 3), (2, 1)):
        for thread in range(threads):
            time = SECOND
            for part, (count, took, gap) in enumerate(
                [(400, 10_000, 1_240_000), (6000, 10_000, 40_000), (40, 9 * MS, 40 * MS)]
            ):
                count //= 1 + 3 * (worker == 2)
                for n in range(count):
                    length = int(random.exponential(took)) + 1000
                    key = f"('{'abc'[(part + n) % 3]}{part}-t', {worker}, {thread}, {n})"
                    tasks.append(Task(key, worker, time, time + length, thread + 1))
                    time += length + int(random.exponential(gap))
    made = Made(
        tasks, [Worker(0), Worker(0, threads=3), Worker(1)], span=(0, 12 * SECOND), transitions=[]
    )
    folder = tmp_path_factory.mktemp("tiny")
    make_trace(folder / "trace.h5", made).close()
    return folder


#: Ten windows, shares of the work from its begin: all of it, wide ones and narrow ones.
WINDOWS = [
    (0, 1), (0.05, 0.55), (0.3, 0.6), (0.1, 0.2), (0.58, 0.74), (0.7, 1), (0.4, 0.405),
    (0.1, 0.1005), (0.11, 0.11002), (0.8, 0.803),
]  # fmt: skip


@pytest.mark.needs("browser")
@pytest.mark.parametrize("kind", ["whole", "binned"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_painted_is_what_was_busy(
    browser: Any, tiny_run: Path, tmp_path: Path, kind: str, theme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In ten windows: of each row the painted part is its busy share, to two points."""
    if kind == "binned":
        monkeypatch.setattr(picture, "EXACT", 50)
    open_page(browser, write_timeline(tiny_run, tmp_path / "page.html"), theme)
    with open_trace(tiny_run) as trace:
        executions = read_executions(trace)
        work = work_span(trace, executions)
    threads = [1, 3, 1]
    # a bin is no narrower than this, so that narrower windows cannot be told of a long run
    windows = [w for w in WINDOWS if kind == "whole" or w[1] - w[0] > 0.01]
    seen = []
    for low, high in windows:
        begin, end = (work.start + part * work.duration for part in (low, high))
        covered = np.minimum(executions.stop, end) - np.maximum(executions.start, begin)
        busy = np.bincount(executions.process, np.maximum(covered, 0), 3) / (end - begin) / threads
        found = painted(browser, [(t - work.start) / 1000 for t in (begin, end)])
        assert found == pytest.approx(busy.tolist(), abs=0.02), (low, high)
        seen += busy.tolist()
    assert min(seen) < 0.01  # so that nearly nothing was to be seen as nearly nothing
    assert max(seen) > 0.15
    check_clean(browser)


@pytest.mark.needs("browser")
def test_coverage_adds_up_whatever_is_drawn_as_one(browser: Any, page: Path) -> None:
    """Blocks of spans give what the spans give one by one."""
    open_page(browser, page)
    off = browser.execute_script(
        """
        const line = document.getElementById('chart').timeline, size = 20000;
        const start = new Float64Array(size), stop = new Float64Array(size);
        let seed = 7, time = 0;
        const random = () => (seed = seed * 16807 % 2147483647) / 2147483647;
        for (let i = 0; i < size; i++) {
          start[i] = time += random();
          stop[i] = time += random() * (i % 1000 ? 1 : 3000);
        }
        const planes = Uint8Array.from(start, (_, i) => i % 5), Spans = line.spans.constructor;
        let worst = 0;
        for (const [columns, from, to] of [[10, 0, time], [37, 4e3, 2e4], [300, 5e3, 6e3]]) {
          const spans = new Spans(start, stop, planes), filled = new Float64Array(20 * columns);
          spans.fill(filled, columns, ...spans.visible(0, size, from, to), from, to);
          const slow = new Float64Array(filled.length), width = (to - from) / columns;
          for (let i = 0; i < size; i++)
            for (let c = 0; c < columns; c++)
              slow[planes[i] * columns + c] += Math.max(0, Math.min(stop[i], from + (c + 1) * width)
                - Math.max(start[i], from + c * width)) / width;
          filled.forEach((value, k) => { worst = Math.max(worst, Math.abs(value - slow[k])); });
        }
        return worst;
        """
    )
    assert off < 1e-6


# ------------------------------------------------------------------------------ moving in it


@pytest.mark.needs("browser")
@pytest.mark.parametrize("kind", ["page", "binned_page"])
def test_the_timeline_zooms_by_button_key_and_drag(
    browser: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, request.getfixturevalue(kind))
    seen = [(window_of(browser), picture_of(browser))]
    assert seen[0][0].startswith("0.0")  # from the first task's start

    def changed() -> None:
        now = (window_of(browser), picture_of(browser))
        assert now[0] != seen[-1][0]
        assert now[1] != seen[-1][1]
        seen.append(now)

    browser.find_element(By.CSS_SELECTOR, "[data-do=in]").click()
    changed()
    chart = browser.find_element(By.ID, "chart")
    browser.execute_script("arguments[0].focus()", chart)
    for key in ("+", Keys.ARROW_LEFT, "-", Keys.ARROW_RIGHT):
        chart.send_keys(key)
        changed()
    chart.send_keys("r")
    changed()
    assert window_of(browser).startswith("-")  # what was before the first task
    chart.send_keys("0")
    assert window_of(browser) == seen[0][0]
    seen.append((window_of(browser), picture_of(browser)))
    ActionChains(browser).move_to_element_with_offset(chart, 50, 0).click_and_hold().move_by_offset(
        150, 0
    ).release().perform()
    changed()
    overview = browser.find_element(By.ID, "overview")
    ActionChains(browser).move_to_element_with_offset(overview, 200, 0).click().perform()
    changed()
    check_clean(browser)


@pytest.mark.needs("browser")
def test_the_timeline_says_what_an_execution_is(browser: Any, page: Path, run_folder: Path) -> None:
    open_page(browser, page)
    chart = browser.find_element("id", "chart")
    chart.send_keys("n")
    told = picked(browser)
    with open_trace(run_folder) as trace:
        first = trace.tasks.sort_values("start").iloc[0]
    assert str(first["prefix"]) in told
    assert str(first["key"]) in told
    assert f"row {first.name} of table tasks" in told
    chart.send_keys("n")
    assert picked(browser) != told
    chart.send_keys("p")
    assert picked(browser) == told
    check_clean(browser)


@pytest.mark.needs("browser")
def test_the_card_says_what_is_under_the_pointer(browser: Any, tiny_run: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(browser, write_timeline(tiny_run))
    chart = browser.find_element("id", "chart")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)

    def card(dx: float) -> str:
        wide, high, y = browser.execute_script(
            "const l = document.getElementById('chart').timeline;"
            "const row = l.rows.find(row => row.kind === 'worker');"
            "return [l.width, l.height, row.y + row.body / 2 - l.top]"
        )
        ActionChains(browser).move_to_element_with_offset(
            chart, int(dx * wide - wide / 2), int(y - high / 2)
        ).pause(0.2).perform()
        return str(browser.execute_script("return document.getElementById('card').innerText"))

    assert "busy" in card(0.3)
    browser.execute_script(
        "const l = document.getElementById('chart').timeline, i = l.model.tasks.row.indexOf(5);"
        "const {start, stop} = l.model.tasks, took = stop[i] - start[i];"
        "l.view.show(start[i] - took, stop[i] + took); l.pick(i)"
    )
    assert "row 5 of table tasks" in picked(browser)
    text = card(0.57 if "worker-0" in picked(browser) else 0.5)
    assert "busy" in text or "of table tasks" in text
    check_clean(browser)


@pytest.mark.needs("browser")
def test_a_function_can_be_shown_alone(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, page)
    before = picture_of(browser)
    button = browser.find_elements(By.CSS_SELECTOR, "#legend button")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert picture_of(browser) != before
    button.click()
    assert picture_of(browser) == before


@pytest.mark.needs("browser")
def test_a_search_finds_functions_and_keys(browser: Any, page: Path, run_folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    with open_trace(run_folder) as trace:
        tasks = trace.tasks.sort_values("start")
    open_page(browser, page)
    before = picture_of(browser)
    chart = browser.find_element("id", "chart")
    chart.send_keys("/")
    search = browser.switch_to.active_element
    assert search.get_attribute("id") == "search"
    key = str(tasks["key"].iloc[40])
    search.send_keys(key + Keys.ENTER)
    same = tasks[tasks["key"].str.contains(key, regex=False)]
    assert f"{len(same)} of {len(tasks):,} executions" in browser.find_element("id", "found").text
    assert key in picked(browser)
    assert picture_of(browser) != before
    assert browser.switch_to.active_element.get_attribute("id") == "chart"
    chart.send_keys(Keys.ESCAPE)
    assert picture_of(browser) == before
    name = str(tasks["prefix"].iloc[0])
    chart.send_keys("/")
    search.send_keys(name + Keys.ENTER)
    found = int(browser.find_element("id", "found").text.split()[0].replace(",", ""))
    assert found == sum(
        name in str(k) or name in str(p) for k, p in zip(tasks["key"], tasks["prefix"], strict=True)
    )
    check_clean(browser)


@pytest.mark.needs("browser")
def test_failures_alone_are_gone_through_in_order(
    browser: Any, page: Path, run_folder: Path
) -> None:
    with open_trace(run_folder) as trace:
        tasks = trace.tasks.sort_values("start")
    bad = tasks[tasks["state"] != "memory"]
    assert len(bad) > 2
    open_page(browser, page)
    chart = browser.find_element("id", "chart")
    chart.send_keys("e")
    assert browser.find_element("id", "errors").get_attribute("aria-pressed") == "true"
    for row, task in bad.iloc[:3].iterrows():
        chart.send_keys("n")
        assert f"row {row} of table tasks" in picked(browser)
        assert f"ended {task['state']}" in picked(browser)
    check_clean(browser)


@pytest.mark.needs("browser")
def test_a_task_that_gave_its_place_up_has_not_failed(browser: Any, tmp_path: Path) -> None:
    tasks = [
        Task("shuffle-1", 0, 0, 10 * MS, state="rescheduled"),
        Task("f-1", 0, 20 * MS, 30 * MS, state="error"),
        Task("shuffle-1", 0, 40 * MS, 50 * MS),
    ]
    make_trace(tmp_path / "trace.h5", Made(tasks, [Worker()])).close()
    open_page(browser, write_timeline(tmp_path))
    chart = browser.find_element("id", "chart")
    chart.send_keys("n")
    assert "ended rescheduled" in picked(browser)
    chart.send_keys("e")
    assert browser.find_element("id", "found").text.startswith("1 of 3 executions")
    chart.send_keys("n")
    assert "ended error" in picked(browser)
    check_clean(browser)


@pytest.mark.needs("browser")
def test_an_address_leads_to_a_place_and_is_written(
    browser: Any, page: Path, run_folder: Path
) -> None:
    import time

    with open_trace(run_folder) as trace:
        executions = read_executions(trace)
        zero = work_span(trace, executions).start
        tasks = trace.tasks
    task = int(tasks.index[50])
    begin = (tasks["start"][task] - zero) / 1e9
    end = (tasks["stop"][task] - zero) / 1e9
    name = str(tasks["prefix"][task])
    process = int(tasks["process"][task])
    place = f"#t={begin:.6f},{end + 0.01:.6f}&w={process}&task={task}&f={quote(name)}"
    open_page(browser, page, place=place)
    state = (
        "const l = document.getElementById('chart').timeline;"
        "return [l.view.from / 1e6, l.view.to / 1e6, l.model.tasks.row[l.picked],"
        "l.rows[l.current].process, l.ranks[l.filter.fn], document.activeElement.id]"
    )
    found = browser.execute_script(state)
    assert found[:2] == pytest.approx([begin, end + 0.01], abs=2e-6)
    assert found[2:] == [task, process, name, "chart"]
    assert (
        browser.execute_script(
            "return document.getElementById('timeline').getBoundingClientRect().top"
        )
        < 20
    )
    browser.execute_script("location.hash = '#t=0,0.5'")
    shown = "return Math.abs(document.getElementById('chart').timeline.view.to - 5e5) < 1"
    wait_until(browser, shown)
    time.sleep(0.5)  # what was gone to is not written once more
    found = browser.execute_script(state.replace("l.rows[l.current].process", "l.current"))
    assert found[:2] == pytest.approx([0, 0.5])
    assert browser.execute_script("return location.hash") == "#t=0,0.5"
    browser.find_element("id", "chart").send_keys("+")
    wait_until(browser, "return location.hash === '#t=0.125,0.375'")
    for broken in ("#t=", "#t=a,b", "#task=99999999", "#t=5,1&w=x&f=%E0%A4", "#nowhere"):
        browser.execute_script("location.hash = arguments[0]", broken)
    check_clean(browser)


@pytest.mark.needs("browser")
def test_the_timeline_is_reached_in_three_tabs_and_works_by_keys(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    # from the section on, where a link leads
    browser.execute_script("location.hash = '#timeline'")
    browser.switch_to.active_element.send_keys(Keys.TAB)
    for _ in range(2):
        active = browser.switch_to.active_element
        if active.get_attribute("id") == "chart":
            break
        active.send_keys(Keys.TAB)
    chart = browser.switch_to.active_element
    assert chart.get_attribute("id") == "chart"
    chart.send_keys(Keys.ARROW_DOWN)
    first = picked(browser)
    chart.send_keys(Keys.ARROW_DOWN)
    assert picked(browser) != first
    assert "busy" in picked(browser)
    chart.send_keys(Keys.ENTER)
    assert "of table tasks" in picked(browser)
    chart.send_keys(Keys.ESCAPE)
    assert picked(browser) == ""
    check_clean(browser)


@pytest.mark.needs("browser")
def test_a_picked_task_is_tied_to_what_it_needs(browser: Any, tmp_path: Path) -> None:
    tasks = [
        Task("a-1", 0, SECOND, 2 * SECOND),
        Task("b-1", 1, SECOND, 2 * SECOND),
        Task("c-1", 0, 3 * SECOND, 4 * SECOND, needs=("a-1", "b-1")),
        Task("d-1", 1, 5 * SECOND, 6 * SECOND, needs=("c-1",)),
    ]
    made = Made(tasks, [Worker(0), Worker(0)], span=(0, 7 * SECOND), transitions=[])
    make_trace(tmp_path / "trace.h5", made).close()
    open_page(browser, write_timeline(tmp_path))
    without = picture_of(browser)
    browser.execute_script(
        "const l = document.getElementById('chart').timeline; l.pick(l.model.tasks.row.indexOf(2))"
    )
    told = picked(browser)
    assert "inputs 2: a, b" in told
    assert "needed by 1: d" in told
    assert picture_of(browser) != without
    check_clean(browser)


def worker_tables() -> dict[str, Any]:
    """Give transfers, spills and deserialisations of a worker, for a trace."""
    return {
        "transfers": {
            "start": [SECOND, 3 * SECOND], "stop": [2 * SECOND, 4 * SECOND], "process": [0, 0],
            "direction": ["incoming", "outgoing"], "peer_process": [1, 1], "nbytes": [5000, 1],
        },
        "activities": {
            "start": [2 * SECOND, 5 * SECOND], "stop": [3 * SECOND, 6 * SECOND], "process": [0, 0],
            "action": ["disk-write", "deserialize"], "key": ["a-1", "a-1"],
        },
    }  # fmt: skip


@pytest.mark.needs("browser")
def test_what_a_worker_received_and_spilled_stands_under_its_tasks(
    browser: Any, tmp_path: Path
) -> None:
    tasks = [Task("a-1", 0, SECOND, 7 * SECOND), Task("b-1", 1, SECOND, 7 * SECOND)]
    made = Made(
        tasks, [Worker(0), Worker(0)], span=(0, 8 * SECOND), transitions=[], more=worker_tables()
    )
    make_trace(tmp_path / "trace.h5", made).close()
    open_page(browser, write_timeline(tmp_path))
    found = browser.execute_script(
        """
        const line = document.getElementById('chart').timeline;
        const row = line.rows.find(r => r.process === 0);
        const at = (us, kind) => {
          const place = line.kinds.indexOf(kind);
          const found = line.at(line.x(us), row.y + row.body + 1 + place * 3 + 1 - line.top);
          return line.said(line.told(found));
        };
        return [line.kinds, at(5e5, 'transfer'), at(1.5e6, 'disk'), at(4.5e6, 'deserialising'),
          at(2.5e6, 'transfer')];
        """
    )
    kinds, received, spilled, deserialised, nothing = found
    assert kinds == ["transfer", "disk", "deserialising"]
    assert "receives data" in received
    assert "from worker-1 1 s, 5 kB" in received
    assert "disk-write 1 s" in spilled
    assert "deserialize 1 s" in deserialised
    assert "nothing here" in nothing
    check_clean(browser)


@pytest.mark.needs("browser")
def test_the_scripts_write_units_as_everything_else_does(browser: Any) -> None:
    source = files("dasf_hpc.show").joinpath("templates/units.js").read_text()
    rng = np.random.default_rng(4)
    values = [*(10.0 ** rng.uniform(1, 17, 200)).round().tolist(), 0, 1, 999, 999_500, 1000, 10**15]
    shares = [0, 0.1, 1, 5, 9.94, 9.95, 10, 49.6, 100]
    browser.get("about:blank")
    durations, sizes, moments, parts = browser.execute_script(
        f"{source}\nreturn [arguments[0].map(v => duration(v / 1e3)),"
        "arguments[0].map(v => amount(v, 'bytes')), arguments[0].map(v => moment(v / 1e3, 1e3)),"
        "arguments[1].map(v => share(v / 100))]",
        values,
        shares,
    )
    assert durations == [duration_text(value) for value in values]
    assert sizes == [bytes_text(value) for value in values]
    assert moments == [moment_text(value) for value in values]
    assert parts == [share_text(value) for value in shares]


@pytest.mark.needs("browser")
def test_a_place_is_exact_to_the_least_that_is_shown(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.execute_script(
        "const l = document.getElementById('chart').timeline;"
        "l.writes = true; l.view.show(1000.0123, 1000.0625)"
    )
    written = wait_until(browser, "return location.hash.startsWith('#t=') && location.hash")
    assert [float(v) for v in written[3:].split(",")] == pytest.approx(
        [0.0010000123, 0.0010000625], abs=2e-9
    )
    browser.execute_script("document.getElementById('chart').timeline.doing.all()")
    browser.execute_script("location.hash = '#t=0,1'; location.hash = arguments[0]", written)
    wait_until(
        browser, "return document.getElementById('chart').timeline.view.to - 1000.0625 < 1e-3"
    )


@pytest.mark.needs("browser")
def test_labels_of_the_axis_never_run_into_each_other(browser: Any, tmp_path: Path) -> None:
    day = 86_400 * SECOND
    make_trace(
        tmp_path / "trace.h5", Made([Task("f-1", 0, 0, day), Task("f-2", 0, 3 * day, 5 * day)])
    ).close()
    open_page(browser, write_timeline(tmp_path))
    for window in ([4.2e11, 4.2e11 + 0.05], [0, 5 * 86_400e6], [4e11, 4e11 + 1e3]):
        spans = browser.execute_script(
            """const line = document.getElementById('chart').timeline, found = [];
            const measure = line.pen.measureText.bind(line.pen), write = line.pen.fillText;
            line.pen.fillText = (text, x, y) => {
              if (y === 9) found.push([x, x + measure(text).width]);
            };
            line.view.show(...arguments[0]);
            line.pen.fillText = write;
            return found""",
            window,
        )
        assert spans
        assert all(one[1] < other[0] for one, other in pairwise(spans))


@pytest.mark.needs("browser")
def test_thousands_of_ranges_at_once_are_drawn_in_sixteen_lines(
    browser: Any, tmp_path: Path
) -> None:
    count = 20_000
    made = gpu_tables([(7, i, 10 * SECOND + i) for i in range(count)])
    write_trace(tmp_path / "trace.h5", made)
    open_page(browser, write_timeline(tmp_path))
    lines = browser.execute_script(
        "return document.getElementById('chart').timeline.rows[0].lines.map(l => l.label)"
    )
    assert len(lines) == 16
    assert lines[-1] == f"{count - 16:,} more"


@pytest.mark.needs("browser")
def test_marks_of_direction_and_control_are_signs(browser: Any, tmp_path: Path) -> None:
    make_trace(tmp_path / "trace.h5", Made([Task("f\u202eabc\nd-1", 0, 0, SECOND)])).close()
    open_page(browser, write_timeline(tmp_path))
    browser.find_element("id", "chart").send_keys("n")
    assert "f\ufffdabc\ufffdd" in picked(browser)
    assert browser.find_element("id", "legend").text.startswith("f\ufffdabc\ufffdd")


@pytest.mark.needs("browser")
def test_between_ranges_nothing_is_said_to_be_idle(browser: Any, tmp_path: Path) -> None:
    ranges: dict[str, Any] = {
        "process": np.zeros(2, np.int32),
        "thread": np.full(2, 5),
        "start": np.array([0, 8 * SECOND]),
        "stop": np.array([SECOND, 9 * SECOND]),
        "message": ["a", "b"],
        "domain": ["user", "user"],
        "task": np.full(2, -1),
    }
    processes: dict[str, Any] = {"node": np.zeros(1, np.int32), "role": ["program"], "name": ["p"]}
    processes |= {"start": np.array([0]), "stop": np.array([10 * SECOND])}
    tables = {"nodes": {"hostname": ["n"]}, "processes": processes, "nvtx_ranges": ranges}
    write_trace(tmp_path / "trace.h5", tables)
    open_page(browser, write_timeline(tmp_path))
    kind, lines = browser.execute_script(
        "const l = document.getElementById('chart').timeline, [row] = l.rows;"
        "return [row.kind, l.toldColumn(row, 4e6, 5e6)]"
    )
    assert kind == "ranges"
    assert not lines
    browser.find_element("id", "chart").send_keys("\ue015")
    assert "busy" not in picked(browser)


def test_a_path_of_nanoseconds_is_drawn_as_it_was(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 300), Task("f-2", 0, 340, 900)]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        found = picture.timeline(trace, read_executions(trace), Columns(), critical_path(trace))[
            "path"
        ]
    own = [
        (start, took)
        for kind, start, took in zip(found["kind"], found["start"], found["took"], strict=True)
        if kind == "task"
    ]
    assert own == [(0, 0.3), (0.34, 0.56)]


def test_samples_alone_have_a_time(tmp_path: Path) -> None:
    times = np.arange(1, 11) * SECOND
    samples: dict[str, Any] = {
        "time": times,
        "node": np.zeros(10, np.int32),
        "cpu": np.linspace(0, 90, 10),
    }
    write_trace(tmp_path / "trace.h5", {"nodes": {"hostname": ["n"]}, "node_samples": samples})
    with open_trace(tmp_path) as trace:
        executions = read_executions(trace)
        line = picture.timeline(trace, executions, Columns())
        (chart,) = curves(trace, executions)
    assert line["end"] - line["begin"] == 9 * SECOND
    assert chart["curves"][0]["values"] == pytest.approx([5, 25, 45, 65, 85], abs=0.1)


@pytest.mark.needs("browser")
def test_paper_has_no_room_below_the_rows(browser: Any, page: Path) -> None:
    open_page(browser, page)
    try:
        # what is drawn for the window is made as wide as the paper
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        browser.execute_script("document.getElementById('stage').style.width = '500px'")
        room, chart, frame = browser.execute_script(
            "return ['room', 'chart', 'lanes'].map(id => document.getElementById(id).offsetHeight)"
        )
    finally:
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert chart > 50
    assert room == chart
    assert frame <= chart + 3  # its border


#: Says of each chart below the window whether anything but its ground is painted.
DRAWN = """
return [...document.querySelectorAll('#charts canvas')].map(one => {
  const {data} = one.getContext('2d').getImageData(0, 0, one.width, one.height);
  return data.some((value, i) => i % 4 === 3 && value > 0);
});
"""


@pytest.mark.needs("browser")
def test_charts_that_nobody_scrolled_to_are_drawn(browser: Any, page: Path) -> None:
    open_page(browser, page)
    drawn = browser.execute_script(DRAWN)
    assert len(drawn) > 5
    assert all(drawn)
    # and follow the timeline when that stands still
    last = "return [...document.querySelectorAll('#charts canvas')].at(-1).toDataURL()"
    before = browser.execute_script(last)
    browser.execute_script("document.getElementById('chart').timeline.view.zoom(0.1)")
    wait_until(browser, f"{last} !== arguments[0]", before)


@pytest.mark.needs("browser")
def test_it_can_be_used_on_a_phone(browser: Any, page: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, page)
        gutter, width = browser.execute_script(
            "const l = document.getElementById('chart').timeline; return [l.gutter, l.width]"
        )
        assert gutter < 0.25 * width <= 90
        before = window_of(browser)
        browser.execute_script(PINCH)
        assert window_of(browser) != before
        check_clean(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


#: Two fingers that part, then one that draws the picture along.
PINCH = """
const chart = document.getElementById('chart'), box = chart.getBoundingClientRect();
const finger = (type, id, x) => chart.dispatchEvent(new PointerEvent(type, {
  pointerId: id, pointerType: 'touch', button: 0, bubbles: true,
  clientX: box.left + x, clientY: box.top + 40}));
finger('pointerdown', 11, 150); finger('pointerdown', 12, 200);
finger('pointermove', 11, 120); finger('pointermove', 12, 280);
return new Promise(done => requestAnimationFrame(() => {
  finger('pointerup', 11, 120); finger('pointerup', 12, 280); done(1);
}));
"""
