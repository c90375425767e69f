"""The report is one page that shows the run, by itself, to everyone who opens it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import check_clean, data_of, open_page, picture_of
from synthetic import write_run

from dasf_hpc import run as run_module
from dasf_hpc.analysis import analyse
from dasf_hpc.errors import TraceFileError
from dasf_hpc.manifest import Manifest
from dasf_hpc.show import report
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
        settings={"prologue": ["export TOKEN=secret-setting"], "env": {"TOKEN": "secret-env"}},
        environment={"TOKEN": "secret-environment"},
        notes=["vm: <b>no</b> CUDA trace"],
    )
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    return write_report(run_folder)


# ------------------------------------------------------------------------------ what it holds


def test_a_folder_that_is_no_run_is_not_to_be_merged(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match=r"holds neither trace\.h5 nor journals"):
        write_report(tmp_path)
    (tmp_path / "journals").mkdir()
    with pytest.raises(TraceFileError, match="dasf-hpc merge"):
        write_report(tmp_path)


def test_the_page_names_findings_clocks_and_what_is_missing(page: Path, run_folder: Path) -> None:
    text = page.read_text()
    with open_trace(run_folder) as trace:
        for clock in trace.clocks.to_dict("records"):
            assert f"within {duration_text(clock['bound'])}" in text
    assert "Where did the workers&#39; time go?" in text
    assert "vm: &lt;b&gt;no&lt;/b&gt; CUDA trace" in text
    assert "Not all was recorded." in text  # there is a GPU


def test_the_page_holds_no_settings_and_no_arguments(page: Path, run_folder: Path) -> None:
    described, columns = data_of(page)
    whole = [page.read_text(), json.dumps(described)]
    whole += [bytes((c & 255).astype(np.uint8)).decode("latin-1") for c in columns]
    keys = described["timeline"]["tasks"]["keys"]
    assert all("secret" not in text and "TOKEN" not in text for text in whole)
    with open_trace(run_folder) as trace:  # texts of columns are looked at
        assert trace.tasks["key"].iloc[0] in whole[2 + keys]
    assert "secret" not in json.dumps(data_of(page)[0])
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
    described, _ = data_of(write_report(tmp_path))
    assert described["timeline"]["tasks"]["count"] == 0
    assert described["curves"] == []


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


@pytest.mark.needs("browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_in_both_themes_without_a_word_on_the_console(
    browser: Any, page: Path, theme: str
) -> None:
    open_page(browser, page, theme)
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    needs, has = browser.execute_script(wide)
    assert needs <= has  # nothing runs off the page
    before = picture_of(browser)
    browser.execute_script("document.getElementById('theme').click()")
    other = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert other != colour
    assert picture_of(browser) != before
    check_clean(browser)


@pytest.mark.needs("browser")
def test_tables_sort_by_number_and_by_name(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, page)
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
    check_clean(browser)


@pytest.mark.needs("browser")
def test_everything_can_be_reached_with_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
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
    open_page(browser, page, "dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert browser.execute_script("return document.documentElement.dataset.theme") is None
    check_clean(browser)


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
    open_page(browser, write_report(tmp_path))
    browser.find_element("id", "chart").send_keys("n")
    assert browser.title.endswith("onerror=\"document.title='t'\"> – dasf-hpc")
    assert "onerror" in browser.find_element("id", "picked").text
    check_clean(browser)


@pytest.mark.needs("browser")
def test_no_script_but_the_pages_own_runs(browser: Any, page: Path, tmp_path: Path) -> None:
    text = page.read_text().replace("<main>", "<main><script>window.other = 1</script>", 1)
    (tmp_path / "other.html").write_text(text)
    open_page(browser, tmp_path / "other.html")
    assert browser.execute_script("return window.other") is None
    assert any("Content Security Policy" in e["message"] for e in browser.get_log("browser"))


@pytest.mark.needs("browser")
def test_an_address_of_any_kind_is_no_error(browser: Any, page: Path) -> None:
    open_page(browser, page, place="#%E0%A4%A")
    seen = "return document.getElementById('chart').timeline.view"
    for place in ("%", "t=NaN,1", "t=-1e300,1e300", "t=0,0&task=-1&w=99", "f=%E0%A4", "__proto__"):
        browser.execute_script("location.hash = arguments[0]", f"#{place}")
        browser.execute_async_script("setTimeout(arguments[0], 20)")
        view = browser.execute_script(seen)
        assert view["from"] < view["to"]
    # what is left empty is no place
    before = browser.execute_script(seen)
    browser.execute_script("location.hash = '#t=,&w='")
    browser.execute_async_script("setTimeout(arguments[0], 20)")
    after = browser.execute_script(seen)
    assert (after["from"], after["to"]) == (before["from"], before["to"])
    assert browser.execute_script("return document.getElementById('chart').timeline.current") == -1
    check_clean(browser)


def test_a_sentence_keeps_its_direction() -> None:
    assert str(report._prose("f\u202edc\x1b `a<b`")) == "f\ufffddc\ufffd <code>a&lt;b</code>"
