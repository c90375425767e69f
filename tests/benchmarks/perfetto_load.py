"""What a Perfetto export takes to write and to load in Perfetto's own user interface.

    python tests/benchmarks/perfetto_load.py [--tasks 1] [--json FILE]
    python tests/benchmarks/perfetto_load.py --trace trace.h5 [--also OTHER.pftrace ...]

`--tasks` is in millions; the run is synthetic, of 8 nodes and 64 workers. `--also` names files that
were written before, to be loaded in the same run: only ratios of one run compare. Each is loaded
`--times` times in turn, each time in a fresh browser; the shortest counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import headless_browser
from perfetto_page import opened, query
from synthetic_large import synthesise

from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.trace.merge import merge_journals

NODES, WORKERS = 8, 8
WAIT_S = 600


def loaded(path: Path) -> dict[str, Any]:
    """Load a trace in a browser of its own and give what it took, and what is in it."""
    with headless_browser() as browser, opened(browser, path, WAIT_S) as seconds:
        ((slices,),) = query(browser, "select count(*) from slice")
        ((flows,),) = query(browser, "select count(*) from flow")
        errors = query(
            browser, "select name, value from stats where severity = 'error' and value > 0"
        )
    return {"load_s": seconds, "slices": slices, "arrows": flows, "errors": errors}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=float, default=1, metavar="MILLIONS")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--also", type=Path, nargs="+", default=[])
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.trace
        if path is None:
            synthesise(Path(folder), NODES, WORKERS, round(given.tasks * 1e6 / NODES / WORKERS))
            path = Path(folder) / "trace.h5"
            merge_journals(Path(folder) / "journals").write(path)
        begun = time.monotonic()
        written = export(path, Format.PERFETTO, Path(folder) / "new.pftrace")
        print(f"exported in {time.monotonic() - begun:.1f} s")
        results: dict[Path, dict[str, Any]] = {}
        for _ in range(given.times):
            for one in (*given.also, written):
                found = loaded(one)
                best = results.setdefault(one, found)
                best["load_s"] = min(best["load_s"], found["load_s"])
        print(f"{'file':<24} {'MB':>7} {'load s':>7} {'slices':>10} {'arrows':>10}  errors")
        for one, found in results.items():
            found["mb"] = one.stat().st_size / 1e6
            print(
                f"{one.name:<24} {found['mb']:7.1f} {found['load_s']:7.1f} {found['slices']:10,}"
                f" {found['arrows']:10,}  {found['errors'] or 'none'}"
            )
    if given.json:
        told = [{"file": one.name, **found} for one, found in results.items()]
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
