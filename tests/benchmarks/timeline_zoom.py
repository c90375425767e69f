"""What a step of zooming takes in the report's timeline, in a real browser.

    python tests/benchmarks/timeline_zoom.py [--tasks 1] [--workers 64] [--json FILE]
    python tests/benchmarks/timeline_zoom.py --trace trace.h5

`--tasks` is in millions; the run is synthetic. Fifty steps go from the whole run into it and out
again, at 1280x720 pixels; each is all that the page does at once, drawn to its last pixel. They are
gone five times; of each step the fastest counts, and beside it stands what all of them took, which
others' work on the machine is in.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import write_timeline

from dasf_hpc.trace.store import write_trace

STEPS, TIMES = 50, 5

#: Zooms and gives what each step took, ms. Reading a pixel waits for all that was drawn.
ZOOM = """
const line = document.getElementById('chart').timeline, pen = line.canvas.getContext('2d');
const middle = line.model.work * 0.43, took = [];
for (let k = 0; k < arguments[0]; k++) {
  const begun = performance.now();
  line.view.zoom(k < arguments[0] / 2 ? 0.7 : 1 / 0.7, middle);
  pen.getImageData(0, 0, 1, 1);
  took.push(performance.now() - begun);
  await new Promise(requestAnimationFrame);
}
return took;
"""


def write_run(folder: Path, count: int, workers: int) -> None:
    """Write a trace of so many short tasks of twelve functions."""
    random = np.random.default_rng(1)
    process = np.arange(count) % workers
    took = random.exponential(200_000, count).astype(np.int64) + 5_000
    gap = random.exponential(100_000, count).astype(np.int64)
    start = np.zeros(count, np.int64)
    for worker in range(workers):
        mine = process == worker
        start[mine] = 10**9 + np.cumsum(took[mine] + gap[mine]) - took[mine]
    order = np.argsort(start, kind="stable")
    start, took, process = start[order], took[order], process[order]
    function = random.integers(0, 12, count)
    names = [f"function_{number}" for number in range(12)]
    last = int((start + took).max()) + 10**9
    write_trace(
        folder / "trace.h5",
        {
            "nodes": {"hostname": [f"node{n}" for n in range(max(1, workers // 8))]},
            "processes": {
                "role": ["worker"] * workers,
                "name": [f"worker-{n}" for n in range(workers)],
                "node": [n // 8 for n in range(workers)],
                "nthreads": [1] * workers,
                "start": [0] * workers,
                "stop": [last] * workers,
            },
            "tasks": {
                "id": np.arange(count),
                "key": [f"('{names[f]}-0123', {n})" for n, f in enumerate(function.tolist())],
                "prefix": [names[f] for f in function.tolist()],
                "process": process.astype(np.int32),
                "thread": process + 1,
                "attempt": np.ones(count, np.int32),
                "start": start,
                "stop": start + took,
                "state": ["memory"] * count,
                "nbytes": random.integers(0, 10**7, count),
            },
        },
    )


def measured(page: Path) -> dict[str, Any]:
    """Open a page and give what it took, and each step of zooming."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1280,720")
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        begun = time.monotonic()
        browser.get(page.as_uri())
        while not browser.execute_script("return document.body.dataset.ready"):
            time.sleep(0.02)
        loaded = time.monotonic() - begun
        script = (
            f"const done = arguments[arguments.length - 1]; (async function () {{{ZOOM}}})"
            ".apply(null, arguments).then(done)"
        )
        every = np.array([browser.execute_async_script(script, STEPS) for _ in range(TIMES)])
        took = every.min(axis=0)
    finally:
        browser.quit()
    return {
        "mb": page.stat().st_size / 1e6,
        "load_s": loaded,
        "median_ms": float(np.median(took)),
        "p95_ms": float(np.percentile(took, 95)),
        "of_all": {"median_ms": float(np.median(every)), "p95_ms": float(np.percentile(every, 95))},
        "steps_ms": took.tolist(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=float, default=1, metavar="MILLIONS")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.trace is None:
            write_run(folder, round(given.tasks * 1e6), given.workers)
        begun = time.monotonic()
        page = write_timeline(given.trace or folder, folder / "timeline.html")
        made = time.monotonic() - begun
        found = {"write_s": made, **measured(page)}
    print(f"written in {made:.1f} s, {found['mb']:.1f} MB, loaded in {found['load_s']:.1f} s")
    for name, of in (("fastest of each step", found), ("all steps", found["of_all"])):
        print(f"{name}: median {of['median_ms']:.1f} ms, 95th percentile {of['p95_ms']:.1f} ms")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
