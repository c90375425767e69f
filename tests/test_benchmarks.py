"""The one command that runs all benchmarks finds their figures and says which it cannot have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import run_all  # noqa: E402


def test_a_benchmark_is_run_and_its_figure_stands_beside_its_goal(tmp_path: Path) -> None:
    result = tmp_path / "table.json"
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "run_all.py"), "--quick", "--only", "merge_size"),
            *("--json", str(result)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bytes/task" in done.stdout
    (row,) = json.loads(result.read_text())["rows"]
    assert row["goal"] == "≤ 45"
    assert 10 < row["value"] < 200
    assert row["met"] == (row["value"] <= 45)


def test_no_benchmark_is_forgotten() -> None:
    no_figures = {"run_all.py", "synth_run.py", "clock_plot.py"}
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - no_figures
    assert scripts <= {benchmark.script for benchmark in run_all.BENCHMARKS}


@pytest.mark.parametrize(
    ("figure", "value", "low", "met"),
    [
        (run_all.Figure("", "", "a.b", 2), 1.0, None, True),
        (run_all.Figure("", "", "rows.1.x", 3), 4.0, None, False),
        (run_all.Figure("", "", "rows.*.x", 3), 4.0, 3.0, False),
        (run_all.Figure("", "", "rows.*.x", 3, least=True), 3.0, 3.0, True),
        (run_all.Figure("", "", "rows.0.x", scale=0.5), 1.5, None, None),
    ],
)
def test_the_worst_of_several_values_counts(
    figure: run_all.Figure, value: float, low: float | None, met: bool | None
) -> None:
    found = {"a": {"b": 1}, "rows": [{"x": 3}, {"x": 4}]}
    row = run_all.row_of("script.py", figure, found)
    assert (row.value, row.low, row.met) == (value, low, met)
    assert not row.skipped


def test_a_figure_that_is_not_there_and_a_script_that_fails_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = run_all.row_of("script.py", run_all.Figure("", "", "a.c", 1), {"a": {}})
    assert "a.c" in lost.skipped
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    figures = (run_all.Figure("figure", "s", "x"),)
    (row,) = run_all.run(run_all.Benchmark("bad.py", figures), quick=True)
    assert row.skipped == "there is no such script"
    (tmp_path / "bad.py").write_text("raise SystemExit('out of luck')")
    (row,) = run_all.run(run_all.Benchmark("bad.py", figures), quick=True)
    assert "out of luck" in row.skipped
