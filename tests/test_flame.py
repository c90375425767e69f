"""The flame graph of a page: its bars are the trace's shares, by mouse, keyboard and on a phone."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import Made, Task, make_trace
from pages import check_clean, open_page, wait_until
from sampled import MS, make_large, make_small, small_run

from dasf_hpc.show.report import write_report

pytestmark = pytest.mark.needs("browser")

#: Gives the bars as they are laid out: name, share of the width, its begin, depth.
BARS = """
const flame = document.getElementById('flame').flame;
return flame.rects.map(one => [flame.nameOf(one), one.wide, one.x, one.depth]);
"""
#: Chooses in one of the lists, by the words in it.
CHOOSE = """
const list = document.getElementById(arguments[0]);
const one = [...list.options].find(o => o.textContent.startsWith(arguments[1]));
list.value = one.value;
list.dispatchEvent(new Event('change'));
return one.disabled;
"""
#: Gives the colour of a pixel of the graph as drawn.
PIXEL = """
const canvas = document.getElementById('flame'), ratio = canvas.width / canvas.clientWidth;
const copy = document.createElement('canvas');
const pen = copy.getContext('2d', {willReadFrequently: true});
[copy.width, copy.height] = [canvas.width, canvas.height];
pen.drawImage(canvas, 0, 0);
return [...pen.getImageData(arguments[0] * ratio, arguments[1] * ratio, 1, 1).data];
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_small(folder / "trace.h5").close()
    return write_report(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    make_large(folder / "trace.h5", samples=200_000, stacks=800, workers=16).close()
    return write_report(folder)


def opened(browser: Any, page: Path, theme: str = "light") -> None:
    open_page(browser, page, theme)
    wait_until(browser, "return document.getElementById('flame').dataset.ready")


def bars(browser: Any) -> dict[str, tuple[float, float, int]]:
    """Give the bars by name; of several of one name the first."""
    found: dict[str, tuple[float, float, int]] = {}
    for name, wide, x, depth in browser.execute_script(BARS):
        found.setdefault(name, (wide, x, depth))
    return found


def choose(browser: Any, name: str, text: str) -> None:
    assert not browser.execute_script(CHOOSE, name, text)


def said(browser: Any, name: str = "flame-said") -> str:
    return str(
        browser.execute_script("return document.getElementById(arguments[0]).textContent", name)
    )


def keys(browser: Any, *pressed: str) -> None:
    canvas = browser.find_element("id", "flame")
    browser.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys(*pressed)


@pytest.fixture(autouse=True)
def clean(browser: Any) -> Iterator[None]:
    """Check after each test that nothing was said on the console."""
    yield
    check_clean(browser)


def test_bars_are_as_wide_as_their_shares(browser: Any, small: Path) -> None:
    opened(browser, small)
    whole: Counter[str] = Counter()
    for one in small_run()[0]:
        if one.task:
            calls = [c for c in one.calls if c[4] in ("own", "package")]
            names = {f"{c[0]}  {c[2]}:{c[3]}" if c[4] == "own" else c[0] for c in calls}
            for name in names | {one.task.split("-")[0], "all functions"}:
                whole[name] += one.span
    found = {
        name if "  " in name else name.split(".")[-1]: wide
        for name, (wide, _, _) in bars(browser).items()
    }
    assert found == pytest.approx(
        {name: time / whole["all functions"] for name, time in whole.items()}
    )
    # what is drawn, by its pixels: own code is orange as far as it goes, then there is paper
    canvas = browser.find_element("id", "flame")
    width, high = canvas.rect["width"], 18
    wide, x, depth = bars(browser)["scipy.signal.hilbert"]
    blue = [124, 196, 238, 255]
    y = depth * high + 5
    assert browser.execute_script(PIXEL, (x + wide) * width - 4, y) == blue
    assert browser.execute_script(PIXEL, (x + wide) * width + 3, y) == [255, 255, 255, 255]
    assert browser.execute_script(PIXEL, 4, 2 * high + 5)[:3] == [230, 159, 0]


def test_a_search_counts_what_it_finds_once(browser: Any, small: Path) -> None:
    opened(browser, small)
    search = browser.find_element("id", "flame-search")
    for text, expected in (
        ("hilbert", "23 % in 1 call"),  # 680 ms of 3 s
        ("scipy", "23 % in 2 calls"),  # one lies in the other
        ("job.py:44", "6.7 % in 1 call"),
        ("FILTER", "33 % in 4 calls"),
        ("nothing of that", "nothing found"),
    ):
        search.clear()
        search.send_keys(text)
        wait_until(
            browser, f"return document.getElementById('flame-found').textContent === '{expected}'"
        )
    search.clear()
    search.send_keys("hilbert")
    wait_until(
        browser, "return document.getElementById('flame-found').textContent.startsWith('23')"
    )
    width = browser.find_element("id", "flame").rect["width"]
    # what is not found is pale
    assert browser.execute_script(PIXEL, 0.3 * width, 2 * 18 + 5)[:3] != [230, 159, 0]


def test_zoom_and_back_by_mouse(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, small)
    before = bars(browser)
    canvas = browser.find_element("id", "flame")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)

    def move(name: str) -> ActionChains:
        wide, x, depth = bars(browser)[name]
        size = canvas.rect
        return ActionChains(browser, 0).move_to_element_with_offset(
            canvas,
            int((x + wide / 2 - 0.5) * size["width"]),
            int(depth * 18 + 9 - size["height"] / 2),
        )

    move("filter_trace").perform()
    card = said(browser, "flame-card")
    for words in ("filter_trace", "share33 %", "in all1 s", "samples100"):
        assert words in card
    move("scipy.signal.hilbert").perform()
    card = said(browser, "flame-card")
    for words in (
        "scipy.signal.hilbert", "modulescipy.signal._signaltools",
        "atscipy/signal/_signaltools.py:2400", "packages", "share23 %", "in all680 ms",
        "in itself380 ms", "samples68",
    ):  # fmt: skip
        assert words in card
    move("filter_trace").click().perform()
    zoomed = bars(browser)
    assert zoomed["filter_trace"][0] == 1.0
    assert zoomed["scipy.signal.hilbert"][0] == pytest.approx(0.68)
    assert "load" not in zoomed
    move("filter_trace  job.py:41").click().perform()
    assert bars(browser)["scipy.fft.c2c"][0] == pytest.approx(300 / 680)
    assert "share 23 %, 100 % of what is shown" in said(browser)
    browser.find_element("id", "flame-back").click()
    assert bars(browser) == zoomed
    browser.find_element("id", "flame-all").click()
    assert bars(browser) == before
    assert not browser.find_element("id", "flame-back").is_enabled()


def test_everything_by_keyboard(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, small)
    before = bars(browser)
    keys(browser, Keys.ARROW_DOWN)
    assert said(browser).startswith("all functions · share 100 %")
    keys(browser, Keys.ARROW_DOWN)
    keys(browser, Keys.ARROW_RIGHT)
    assert said(browser).startswith("filter_trace · share 33 %") or "filter_trace" in said(browser)
    keys(browser, Keys.ENTER, Keys.ARROW_DOWN)
    assert bars(browser)["filter_trace"][0] == 1.0
    assert said(browser).startswith("filter_trace  job.py:41 · module __main__ · at job.py:41")
    keys(browser, Keys.ARROW_DOWN)
    assert "origin packages" in said(browser)
    keys(browser, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert "job.py:44" in said(browser)
    keys(browser, Keys.ARROW_LEFT, Keys.BACKSPACE)
    assert bars(browser) == before
    keys(browser, Keys.ENTER)
    assert bars(browser) != before
    keys(browser, "0", Keys.ESCAPE)
    assert bars(browser) == before
    assert "3 s in 300 samples" in said(browser)


def test_two_functions_are_compared_by_their_own_shares(browser: Any, small: Path) -> None:
    opened(browser, small)
    choose(browser, "flame-of", "filter_trace")
    assert bars(browser)["scipy.signal.hilbert"][0] == pytest.approx(0.68)
    choose(browser, "flame-with", "load")
    found = bars(browser)
    # each as wide as the mean of its shares in both
    assert found["scipy.signal.hilbert"][0] == pytest.approx(0.34)
    assert found["load  job.py:12"][0] == pytest.approx(0.5)
    label = """
    const flame = document.getElementById('flame').flame, pen = flame.canvas.getContext('2d');
    const bar = flame.rects.find(one => flame.nameOf(one).startsWith(arguments[0]));
    return flame.labelOf(bar, pen, 999);
    """
    assert browser.execute_script(label, "scipy.signal.hilbert").startswith("+68")
    assert browser.execute_script(label, "load").startswith("−100")
    canvas = browser.find_element("id", "flame")
    colours = {}
    for name in ("filter_trace  job.py:41", "load  job.py:12"):
        wide, x, depth = found[name]
        colours[name] = browser.execute_script(
            PIXEL, (x + wide) * canvas.rect["width"] - 4, depth * 18 + 5
        )
    red, blue = colours.values()
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert "more in filter_trace" in said(browser, "flame-legend")


def test_halves_of_the_time_and_workers_are_compared(browser: Any, small: Path) -> None:
    opened(browser, small)
    choose(browser, "flame-with", "its second half")
    # of the first half 1 s of 2 s is filter_trace, of the second nothing is
    found = bars(browser)
    samples = [one for one in small_run()[0] if one.task]
    halves = [[one for one in samples if (one.start >= 1005 * MS) == late] for late in (0, 1)]
    shares = [
        sum(one.task.startswith("filter") for one in half) / max(1, len(half)) for half in halves
    ]
    assert found["filter_trace"][0] == pytest.approx(sum(shares) / 2, abs=0.01)
    choose(browser, "flame-with", "nothing")
    choose(browser, "flame-on", "node1 worker-0")
    assert bars(browser)["filter_trace"][0] == pytest.approx(0.5)
    choose(browser, "flame-with", "node2 worker-1")
    found = bars(browser)
    assert "all functions: node1 worker-0 | node2 worker-1" in found
    assert found["filter_trace"][0] == pytest.approx(0.25)
    assert found["load"][0] == pytest.approx(0.75)


def test_it_follows_the_timeline(browser: Any, small: Path) -> None:
    opened(browser, small)
    show = "document.getElementById('chart').timeline.view.show(arguments[0], arguments[1])"
    browser.execute_script(show, 0, 1_000_000)
    box = browser.find_element("id", "flame-window")
    browser.execute_script("arguments[0].click()", box)
    samples = [one for one in small_run()[0] if one.task and one.start < 1000 * MS]
    expected = sum(one.task.startswith("filter") for one in samples) / len(samples)
    assert bars(browser)["filter_trace"][0] == pytest.approx(expected)
    browser.execute_script(show, 1_500_000, 2_000_000)
    wait_until(
        browser,
        "return !document.getElementById('flame').flame.rects"
        ".some(one => document.getElementById('flame').flame.nameOf(one).startsWith('filter'))",
    )
    assert bars(browser)["load"][0] == 1.0
    choose(browser, "flame-with", "the time outside")
    assert bars(browser)["filter_trace"][0] > 0.15
    browser.execute_script("arguments[0].click()", box)
    assert bars(browser)["filter_trace"][0] == pytest.approx(1 / 3)


def test_event_loops_wait_only_where_one_asks(browser: Any, small: Path) -> None:
    opened(browser, small)
    choose(browser, "flame-of", "event loop of the scheduler")
    found = bars(browser)
    assert found["distributed.scheduler.Scheduler.update_graph"][0] == pytest.approx(2 / 3)
    assert "selectors.select" not in found
    browser.execute_script("document.getElementById('flame-idle').click()")
    assert bars(browser)["selectors.select"][0] == pytest.approx(0.7)
    choose(browser, "flame-of", "all functions")
    assert not browser.find_element("id", "flame-idle").is_displayed()


def test_of_many_samples_workers_and_times_are_known_apart(browser: Any, large: Path) -> None:
    opened(browser, large)
    assert "not together with the worker" in browser.find_element("id", "stacks").text
    tables = "return document.getElementById('flame').flame.tables.map(one => one.by.join())"
    assert browser.execute_script(tables) == ["bin", "process"]
    browser.execute_script("document.getElementById('flame-window').click()")
    assert bars(browser)
    choose(browser, "flame-with", "its second half")
    browser.execute_script("document.getElementById('flame-window').click()")
    choose(browser, "flame-with", "nothing")
    choose(browser, "flame-on", "node1 worker-3")
    assert not browser.find_element("id", "flame-window").is_enabled()
    assert browser.execute_script(CHOOSE, "flame-with", "its second half")
    choose(browser, "flame-with", "node2 worker-9")
    assert "node2 worker-9" in said(browser)


def test_of_very_many_functions_the_longest_stand_apart(browser: Any, tmp_path: Path) -> None:
    from sampled import STEP, Sample, make_sampled, own

    tasks, samples, at = [], [], 0
    for n in range(70):
        name = "f" + chr(97 + n // 26) + chr(97 + n % 26)
        many = 70 - n
        tasks.append(Task(f"{name}-1", 0, at, at + many * STEP))
        for k in range(many):
            samples.append(Sample(0, at + (k + 1) * STEP, [own(name, 5)], task=f"{name}-1"))
        at += many * STEP
    make_sampled(tmp_path / "trace.h5", samples, tasks).close()
    opened(browser, write_report(tmp_path))
    found, whole = bars(browser), 70 * 71 / 2
    assert found["faa"][0] == pytest.approx(70 / whole)
    assert found["fbx"][0] == pytest.approx(21 / whole)
    assert "fby" not in found
    assert found["20 more functions"][0] == pytest.approx(20 * 21 / 2 / whole)
    assert sum(wide for _, wide, _, depth in browser.execute_script(BARS) if depth == 1) == (
        pytest.approx(1)
    )
    choose(browser, "flame-of", "fby")
    assert said(browser).startswith("200 ms in 20 samples")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, large: Path, theme: str) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, large, theme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        widest = browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('#flame, .flame-controls *')]"
            ".map(one => one.getBoundingClientRect().right))"
        )
        assert widest <= 360
        # bars too narrow to be seen are left out, and none overlaps another
        by_depth: dict[int, list[tuple[float, float]]] = {}
        for _, wide, x, depth in browser.execute_script(BARS):
            by_depth.setdefault(depth, []).append((x, x + wide))
        for row in by_depth.values():
            row.sort()
            assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(row))
            assert row[0][0] >= 0
            assert row[-1][1] <= 1 + 1e-9
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints(browser: Any, small: Path) -> None:
    opened(browser, small, "dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert bars(browser)["load"][0] == pytest.approx(2 / 3)


def test_without_samples_there_is_no_graph_and_why(browser: Any, tmp_path: Path) -> None:
    make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, 10 * MS)])).close()
    page = write_report(tmp_path)
    open_page(browser, page)
    assert browser.execute_script("return document.getElementById('flame')") is None
    text = browser.execute_script("return document.getElementById('not-recorded').textContent")
    assert "Call stacks" in text
    assert "the run recorded no samples of Python calls" in text


def test_odd_names_are_text_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    from sampled import Sample, make_sampled

    evil = "</script><script>document.title='taken'</script>"
    calls = [(evil, evil, f"{evil}.py", 3, "own"), ("b\u202ed", "m\n", "", -1, "package")]
    samples = [Sample(0, n + 1, calls, task="f-1") for n in range(3)]
    make_sampled(tmp_path / "trace.h5", samples, [Task("f-1", 0, 0, 10 * MS)]).close()
    opened(browser, write_report(tmp_path))
    keys(browser, *"\ue015\ue015\ue015")  # arrows down
    assert evil in said(browser)
    keys(browser, "\ue015")
    assert "\u202e" not in said(browser)
    assert "dasf-hpc" in browser.title
