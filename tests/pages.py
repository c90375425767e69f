"""A page in a browser: open it, ask its timeline, look at its pixels."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.show.page_data import unpacked
from dasf_hpc.show.picture import picture
from dasf_hpc.show.report import SCRIPTS, _resource, _script
from dasf_hpc.trace.open import open_trace

#: A page of a timeline and curves, and of nothing else of a report.
BARE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><style>{{ style }}</style></head><body>
<button type="button" id="theme">theme</button>
{% include 'timeline.html' %}
<section id="curves"><div id="charts"></div></section>
<script type="application/octet-stream" id="data">{{ drawn.packed }}</script>
<script>{{ script }}</script></body></html>"""


def write_timeline(folder: Path, target: Path | None = None) -> Path:
    """Write a page of a run's timeline and curves, which asks no question of the run."""
    with open_trace(folder) as trace:
        drawn = picture(trace, read_executions(trace))
    page = Environment(loader=PackageLoader("dasf_hpc.show"), autoescape=True).from_string(BARE)
    style = Markup("").join([_resource("report.css"), _resource("timeline.css")])
    target = target or folder / "timeline.html"
    target.write_text(page.render(drawn=drawn, style=style, script=_script(*SCRIPTS)))
    return target


def data_of(page: Path) -> tuple[dict[str, Any], Any]:
    """Unpack what a page's script draws: the description and the columns."""
    found = re.search(r'id="data">([^<]*)<', page.read_text())
    assert found
    return unpacked(found[1])


def open_page(browser: Any, page: Path, theme: str = "light", place: str = "") -> None:
    """Open a page, at a place of its own, and wait until all of it is drawn."""
    wishes = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri() + place)
    wait_until(browser, "return document.body.dataset.ready")
    forget_history(browser)


def forget_history(browser: Any) -> None:
    """Have the page that is open begin the browser's history.

    Chrome keeps 50 entries. Beyond those it drops first what came without a user's hand, as all
    that a test does comes, and then goes back to another page than the one before.
    """
    browser.execute_cdp_cmd("Page.resetNavigationHistory", {})


def wait_until(browser: Any, script: str, *given: Any) -> Any:
    """Wait until a script gives something true, and give that."""
    deadline = time.monotonic() + 30
    while not (found := browser.execute_script(script, *given)):
        assert time.monotonic() < deadline, f"never came true: {script}"
        time.sleep(0.02)
    return found


def go_back(browser: Any) -> None:
    """Go back one step of the page's history.

    The page itself goes back: WebDriver counts steps by what the browser's own process knows of, to
    which the latest link may not have come yet.
    """
    browser.execute_script("history.back()")


def window_of(browser: Any) -> str:
    """Give the stretch of time that is shown, as the page writes it."""
    return str(browser.execute_script("return document.getElementById('window').textContent"))


def picture_of(browser: Any) -> str:
    """Give the timeline's picture."""
    return str(browser.execute_script("return document.getElementById('chart').toDataURL()"))


def picked(browser: Any) -> str:
    """Give what the page says of what was picked."""
    return str(browser.execute_script("return document.getElementById('picked').textContent"))


def check_clean(browser: Any) -> None:
    """Check that the console is empty and nothing but the page was asked for."""
    assert browser.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}
