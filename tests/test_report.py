"""The report is one page that shows the run, by itself, to everyone who opens it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_run

from dasf_hpc import run as run_module
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.errors import TraceFileError
from dasf_hpc.manifest import Manifest
from dasf_hpc.show import picture, report
from dasf_hpc.show.picture import COLOURED, DIGITS, _binned, curves
from dasf_hpc.show.report import write_report
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import write_trace
from dasf_hpc.units import duration_text

#: What the synthetic runs' workers use, to four digits.
GIBIBYTE = float(f"{2**30:.4g}")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two nodes with a GPU each, of which some tasks fail."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "journals", nodes=2, workers=2, tasks=400, gpus=1, failing=0.02)
    merge_journals(folder / "journals").write(folder / "trace.h5")
    Manifest(folder).update(
        name="a-run",
        state="complete",
        job="job.py",
        arguments=["--token", "secret-argument"],
        settings={"prologue": ["export TOKEN=secret-setting"]},
        notes=["vm: <b>no</b> CUDA trace"],
    )
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    return write_report(run_folder)


@pytest.fixture(scope="module")
def binned_page(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the same run as it were too long to show each execution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "EXACT", 100)
        return write_report(run_folder, tmp_path_factory.mktemp("binned") / "binned.html")


def _data(page: Path) -> Any:
    """Unpack what the page's script draws."""
    found = re.search(r'id="data">([^<]*)<', page.read_text())
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


# ------------------------------------------------------------------------------ what it holds


def test_a_folder_that_is_no_run_is_not_to_be_merged(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match=r"holds neither trace\.h5 nor journals"):
        write_report(tmp_path)
    (tmp_path / "journals").mkdir()
    with pytest.raises(TraceFileError, match="dasf-hpc merge"):
        write_report(tmp_path)


def test_a_short_run_is_drawn_execution_by_execution(page: Path, run_folder: Path) -> None:
    drawn, _ = _data(page)
    assert drawn["whole"]
    with open_trace(run_folder) as trace:
        tasks, processes = trace.tasks.sort_values("start"), trace.processes
    begin = min(processes["start"].min(), tasks["start"].min())
    exact = drawn["exact"]
    assert exact["task"] == tasks.index.tolist()
    assert exact["start"] == ((tasks["start"] - begin) // 1000).tolist()
    assert exact["took"] == ((tasks["stop"] - tasks["start"]) // 1000).tolist()
    assert exact["key"] == tasks["key"].tolist()
    assert [drawn["functions"][f] for f in exact["function"]] == tasks["prefix"].tolist()
    names = processes["name"].tolist()
    assert [drawn["rows"][r]["name"].split()[-1] for r in exact["row"]] == [
        names[p] for p in tasks["process"]
    ]
    spent = (tasks["stop"] - tasks["start"]).groupby(tasks["prefix"].astype(str)).sum()
    assert drawn["functions"][: len(spent)] == spent.sort_values(ascending=False).index.tolist()
    assert [row["kind"] for row in drawn["rows"]] == ["worker"] * 4 + ["gpu"] * 2


def test_a_long_run_is_drawn_by_its_longest_executions(binned_page: Path, run_folder: Path) -> None:
    drawn, _ = _data(binned_page)
    assert not drawn["whole"]
    with open_trace(run_folder) as trace:
        tasks = trace.tasks
    longest = (tasks["stop"] - tasks["start"]).nlargest(100).index
    assert sorted(drawn["exact"]["task"]) == sorted(longest)
    for row in drawn["rows"][:4]:
        assert len(row["busy"]) == len(row["most"]) == drawn["bins"] == picture.MOST_BINS
    assert len(binned_page.read_bytes()) < 1_000_000


def test_bins_say_how_busy_a_worker_was_and_with_what() -> None:
    """Against the same, moment by moment."""
    random = np.random.default_rng(3)
    start = np.sort(random.integers(0, 9_000, 200))
    stop = np.minimum(start + random.integers(1, 2_000, 200), 10_000)
    row, colour = random.integers(0, 3, 200), random.integers(0, COLOURED + 1, 200)
    threads = np.array([40, 40, 80])
    bins = 25
    texts = _binned(start / 400, stop / 400, row, colour, threads, bins)
    truth = np.zeros((3, COLOURED + 1, 10_000))
    for i in range(200):
        truth[row[i], colour[i], start[i] : stop[i]] += 1
    truth = truth.reshape(3, COLOURED + 1, bins, -1).mean(axis=3)
    for number, text in enumerate(texts):
        busy = truth[number].sum(axis=0) / threads[number]
        told = [DIGITS.index(letter) / 63 for letter in text["busy"]]
        assert told == pytest.approx(busy.tolist(), abs=1 / 63 + 1e-9)
        for place, most in enumerate(text["most"]):
            assert truth[number, int(most), place] == pytest.approx(truth[number, :, place].max())


def test_rows_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=11, tasks=3, answers=False)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    drawn, _ = _data(write_report(tmp_path))
    assert [row["name"] for row in drawn["rows"]] == [f"node1 worker-{i}" for i in range(11)]


def test_curves_hold_what_was_sampled(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        executions = read_executions(trace)
        found = {chart["title"]: chart for chart in curves(trace, executions)}
        span = trace.processes["stop"].max() - trace.processes["start"].min()
    assert [c["name"] for c in found["CPU of the nodes"]["curves"]] == ["node1", "node2"]
    assert set(found["GPU power"]["curves"][0]["values"]) <= {300.0, None}
    assert set(found["Memory of the workers"]["curves"][0]["values"]) <= {
        float(f"{2**30:.4g}"),
        None,
    }
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


def test_the_page_names_findings_clocks_and_what_is_missing(page: Path, run_folder: Path) -> None:
    text = page.read_text()
    with open_trace(run_folder) as trace:
        for clock in trace.clocks.to_dict("records"):
            assert f"within {duration_text(clock['bound'])}" in text
    assert "Where did the workers&#39; time go?" in text
    assert "vm: &lt;b&gt;no&lt;/b&gt; CUDA trace" in text
    assert "Not recorded" in text


def test_the_page_holds_no_settings_and_no_arguments(page: Path) -> None:
    assert "secret" not in page.read_text()
    assert "secret" not in json.dumps(_data(page))
    assert page.stat().st_mode & 0o777 == 0o600


def test_the_page_refers_to_nothing_outside_of_it(page: Path) -> None:
    text = re.sub(r'id="data">[^<]*<', "<", page.read_text())
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", text)
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("tables", [("nodes", "tasks"), ("nodes",), ()])
def test_a_trace_of_nothing_gets_a_page(tmp_path: Path, tables: tuple[str, ...]) -> None:
    write_trace(tmp_path / "trace.h5", {name: {} for name in tables})
    drawn, charts = _data(write_report(tmp_path))
    assert drawn["exact"]["start"] == []
    assert charts == []


def test_kernels_without_a_run_are_drawn(tmp_path: Path) -> None:
    half = 50_000_000
    kernels: dict[str, Any] = {
        "gpu": np.zeros(2, np.int32),
        "start": np.array([10**9, 10**9 + half]),
        "stop": np.array([10**9 + half // 2, 10**9 + 2 * half]),
        "name": ["a", "b"],
    }
    gpus = {"node": np.zeros(1, np.int32), "index": np.zeros(1, np.int32)}
    write_trace(
        tmp_path / "trace.h5", {"nodes": {"hostname": ["n"]}, "gpus": gpus, "kernels": kernels}
    )
    drawn, _ = _data(write_report(tmp_path))
    assert drawn["length"] == 2 * half // 1000
    (row,) = drawn["rows"]
    busy = [DIGITS.index(letter) / 63 for letter in row["busy"]]
    quarter = len(busy) // 4
    shares = [np.mean(busy[i * quarter : (i + 1) * quarter]) for i in range(4)]
    assert shares == pytest.approx([1, 0, 1, 1], abs=0.01)


def test_where_there_is_no_trace_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_that_fails_costs_its_section_only(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(name: str, trace: Any) -> Any:
        if name == "communication":
            raise ZeroDivisionError("just so")
        return analyse(name, trace)

    monkeypatch.setattr(report, "analyse", failing)
    text = write_report(run_folder, tmp_path / "page.html").read_text()
    assert "This analysis failed" in text
    assert "just so" in text
    assert text.count("<table") > 5


def test_a_report_that_fails_is_a_note_of_the_run(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("just so")

    Manifest(tmp_path).update(name="x", state="complete")
    monkeypatch.setattr(report, "write_report", failing)
    run_module._write_report(tmp_path, lambda step: None)
    content = Manifest(tmp_path).content
    assert content["state"] == "complete"
    assert any("just so" in note and "dasf-hpc report" in note for note in content["notes"])


# ------------------------------------------------------------------------------ in a browser


def _open(browser: Any, page: Path, theme: str = "light") -> None:
    wishes = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    deadline = time.monotonic() + 30
    while not browser.execute_script("return document.body.dataset.ready"):
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.05)


def _window(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('window').textContent"))


def _pixels(browser: Any) -> str:
    """Give the timeline's picture."""
    return str(browser.execute_script("return document.getElementById('chart').toDataURL()"))


def _clean(browser: Any) -> None:
    """Check that the console is empty and nothing but the page was asked for."""
    assert browser.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}


@pytest.mark.needs("browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_in_both_themes_without_a_word_on_the_console(
    browser: Any, page: Path, theme: str
) -> None:
    _open(browser, page, theme)
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    needs, has = browser.execute_script(wide)
    assert needs <= has  # nothing runs off the page
    before = _pixels(browser)
    browser.execute_script("document.getElementById('theme').click()")
    other = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert other != colour
    assert _pixels(browser) != before
    _clean(browser)


@pytest.mark.needs("browser")
@pytest.mark.parametrize("kind", ["page", "binned_page"])
def test_the_timeline_zooms_by_button_key_and_drag(
    browser: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _open(browser, request.getfixturevalue(kind))
    seen = [(_window(browser), _pixels(browser))]

    def changed() -> None:
        now = (_window(browser), _pixels(browser))
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
    chart.send_keys("0")
    assert (_window(browser), _pixels(browser))[0] == seen[0][0]
    seen.append((_window(browser), _pixels(browser)))
    ActionChains(browser).move_to_element_with_offset(chart, 50, 0).click_and_hold().move_by_offset(
        150, 0
    ).release().perform()
    changed()
    _clean(browser)


@pytest.mark.needs("browser")
def test_the_timeline_says_what_an_execution_is(browser: Any, page: Path, run_folder: Path) -> None:
    from selenium.webdriver.common.by import By

    _open(browser, page)
    chart = browser.find_element(By.ID, "chart")
    chart.send_keys("n")
    told = browser.find_element(By.ID, "picked").text
    with open_trace(run_folder) as trace:
        first = trace.tasks.sort_values("start").iloc[0]
    assert str(first["prefix"]) in told
    assert str(first["key"]) in told
    assert f"row {first.name} of table tasks" in told
    chart.send_keys("n")
    assert browser.find_element(By.ID, "picked").text != told
    chart.send_keys("p")
    assert browser.find_element(By.ID, "picked").text == told
    _clean(browser)


@pytest.mark.needs("browser")
def test_a_function_can_be_shown_alone(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    _open(browser, page)
    before = _pixels(browser)
    button = browser.find_elements(By.CSS_SELECTOR, "#legend button")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert _pixels(browser) != before
    button.click()
    assert _pixels(browser) == before


@pytest.mark.needs("browser")
def test_tables_sort_by_number_and_by_name(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    _open(browser, page)
    browser.execute_script("document.querySelector('#functions details.data').open = true")
    table = browser.find_element(By.CSS_SELECTOR, "#functions table")
    heads = [head.text.strip() for head in table.find_elements(By.CSS_SELECTOR, "th")]

    def column(name: str) -> list[str]:
        return [
            str(cell)
            for cell in browser.execute_script(
                "return [...arguments[0].tBodies[0].rows]"
                ".map(row => row.cells[arguments[1]])"
                ".map(cell => cell.dataset.order ?? cell.textContent.trim())",
                table,
                heads.index(name),
            )
        ]

    def press(name: str) -> str | None:
        head = table.find_elements(By.CSS_SELECTOR, "th")[heads.index(name)]
        button = head.find_element(By.CSS_SELECTOR, "button")
        browser.execute_script("arguments[0].focus()", button)
        button.send_keys("\n")
        return str(head.get_attribute("aria-sort"))

    assert press("Longest") == "descending"
    values = [float(cell) for cell in column("Longest")]
    assert values == sorted(values, reverse=True)
    assert press("Longest") == "ascending"
    assert [float(cell) for cell in column("Longest")] == sorted(values)
    assert press("Function") == "ascending"
    assert column("Function") == sorted(column("Function"))
    assert len(column("Function")) == len(values) > 3
    _clean(browser)


@pytest.mark.needs("browser")
def test_everything_can_be_reached_with_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(browser, page)
    reached = set()
    for _ in range(60):
        active = browser.switch_to.active_element
        active.send_keys(Keys.TAB)
        reached.add(
            browser.execute_script(
                "const a = document.activeElement; return a.id || a.dataset.do || a.tagName"
            )
        )
    assert {"theme", "chart", "in", "out", "left", "right", "all", "SUMMARY", "BUTTON"} <= reached


@pytest.mark.needs("browser")
def test_it_prints_in_ink_on_paper(browser: Any, page: Path) -> None:
    _open(browser, page, "dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert browser.execute_script("return document.documentElement.dataset.theme") is None
    _clean(browser)


@pytest.mark.needs("browser")
def test_names_are_text_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    evil = (
        "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='t'\">"
    )
    write_trace(
        tmp_path / "trace.h5",
        {
            "nodes": {"hostname": [evil]},
            "processes": {
                "node": np.array([0], np.int32),
                "role": ["worker"],
                "name": [evil],
                "start": np.array([0]),
                "stop": np.array([10**9]),
                "nthreads": np.array([1], np.int32),
            },
            "tasks": {
                "id": np.array([1]),
                "key": [evil],
                "prefix": [evil],
                "process": np.array([0], np.int32),
                "thread": np.array([5]),
                "attempt": np.array([1], np.int32),
                "start": np.array([10**8]),
                "stop": np.array([9 * 10**8]),
                "state": ["memory"],
            },
        },
    )
    Manifest(tmp_path).update(name="named", job=evil)
    _open(browser, write_report(tmp_path))
    browser.find_element("id", "chart").send_keys("n")
    assert browser.title.endswith("onerror=\"document.title='t'\"> – dasf-hpc")
    assert "onerror" in browser.find_element("id", "picked").text
    _clean(browser)
