"""Scaling: planted laws are found within their intervals; a study goes on where it was ended."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import check_clean, open_page
from typer.testing import CliRunner

from dasf_hpc.cli import app
from dasf_hpc.errors import (
    BatchError,
    DasfHpcError,
    InterruptedRun,
    PartialRecording,
    RunDirectoryError,
    ScalingError,
    SettingsError,
    StudyIncomplete,
    WorkersError,
)
from dasf_hpc.manifest import HEARTBEAT, Manifest
from dasf_hpc.run import RunResult
from dasf_hpc.scaling import runs as runs_module
from dasf_hpc.scaling import scale as whole
from dasf_hpc.scaling.fit import Law, better, fit, foretell, laws
from dasf_hpc.scaling.measure import FACTORS, FunctionTime, RunMeasure, measure_run
from dasf_hpc.scaling.page import write_page
from dasf_hpc.scaling.plan import Turn, make_plan, read_scales, study_settings
from dasf_hpc.scaling.study import STUDY, Study, new_study, open_study
from dasf_hpc.scaling.table import GROWN, Scaling, scaling
from dasf_hpc.scaling.words import markdown
from dasf_hpc.settings import Settings, load_settings
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.summary import Summary, summarise

S = 10**9
AMDAHL, USL = laws(weak=False)
GUSTAFSON, USL_WEAK = laws(weak=True)


def times_of(law: Law, scales: Any, values: Sequence[float], base: float = 10 * S) -> Any:
    return base * np.exp(law.shape(np.asarray(scales, float), *values))


# --------------------------------------------------------------------------------- laws that fit


@given(
    st.sampled_from([AMDAHL, GUSTAFSON]),
    st.floats(0.0, 1.0),
    st.lists(st.integers(1, 4096), min_size=2, max_size=6, unique=True),
    st.floats(1e-3, 1e5),
)
@settings(max_examples=60)
def test_a_law_without_noise_is_found_as_it_was_planted(
    law: Law, serial: float, scales: list[int], seconds: float
) -> None:
    # a fraction that makes no difference between the scales cannot be found
    times = times_of(law, scales, [serial], seconds * S)
    found = fit(law, scales, times)
    assert found is not None
    np.testing.assert_allclose(found.times(scales), times, rtol=1e-4)
    sensitive = abs(np.diff(law.shape(np.array(scales, float), serial + 1e-3))).max()
    if sensitive > 1e-3 and min(scales) < 64:
        assert found.parameters["serial"].value == pytest.approx(serial, abs=2e-3)


@pytest.mark.parametrize(("contention", "coherency"), [(0.05, 0.002), (0.0, 0.01), (0.2, 0.0)])
@pytest.mark.parametrize("law", [USL, USL_WEAK], ids=["strong", "weak"])
def test_contention_and_coherency_are_found_as_they_were_planted(
    law: Law, contention: float, coherency: float
) -> None:
    scales = [1, 2, 4, 8, 16]
    found = fit(law, scales, times_of(law, scales, [contention, coherency]))
    assert found is not None
    assert found.parameters["contention"].value == pytest.approx(contention, abs=1e-4)
    assert found.parameters["coherency"].value == pytest.approx(coherency, abs=1e-5)
    if coherency:
        assert found.peak == pytest.approx(math.sqrt((1 - contention) / coherency), rel=0.02)


def test_without_coherency_usl_is_amdahls_law() -> None:
    n = np.array([1.0, 3, 17, 256])
    np.testing.assert_allclose(USL.shape(n, 0.13, 0.0), AMDAHL.shape(n, 0.13), rtol=1e-12)


def covered(
    law: Law,
    values: Sequence[float],
    scales: Sequence[int],
    repeats: int,
    noise: float,
    trials: int,
) -> list[float]:
    """Give how often the interval of each parameter holds the planted value."""
    chance = np.random.default_rng(5)
    n = np.repeat(scales, repeats).astype(float)
    hits = np.zeros(len(values))
    for _ in range(trials):
        found = fit(law, n.tolist(), times_of(law, n, values) * chance.lognormal(0, noise, len(n)))
        assert found is not None
        hits += [
            one.low <= value <= one.high
            for one, value in zip(found.parameters.values(), values, strict=True)
        ]
    return [float(share) for share in hits / trials]


@pytest.mark.parametrize(
    ("law", "values", "scales", "repeats", "noise", "trials"),
    [
        (AMDAHL, [0.1], (1, 2, 4, 8), 3, 0.03, 300),
        (AMDAHL, [0.3], (1, 2, 3), 2, 0.05, 300),
        (AMDAHL, [0.02], (2, 4, 8, 16), 2, 0.02, 300),
        (GUSTAFSON, [0.1], (1, 2, 4, 8), 3, 0.03, 300),
        (USL, [0.05, 0.004], (1, 2, 4, 8, 16), 2, 0.03, 80),
    ],
    ids=["amdahl", "few", "not-from-1", "gustafson", "usl"],
)
def test_a_95_percent_interval_holds_the_planted_value_as_often_as_it_says(
    law: Law, values: list[float], scales: tuple[int, ...], repeats: int, noise: float, trials: int
) -> None:
    for share in covered(law, values, scales, repeats, noise, trials):
        assert 0.90 <= share <= 0.99


def test_the_law_that_is_there_is_the_better_one() -> None:
    chance = np.random.default_rng(6)
    n = np.repeat([1, 2, 4, 8, 16], 3).astype(float)
    right = {"amdahl": 0, "usl": 0}
    for law, values in ((AMDAHL, [0.08]), (USL, [0.03, 0.01])):
        for _ in range(20):
            times = times_of(law, n, values) * chance.lognormal(0, 0.02, len(n))
            fits = [one for one in (fit(AMDAHL, n, times), fit(USL, n, times)) if one is not None]
            chosen = better(fits)
            assert chosen is not None
            right[law.name] += chosen.law.name == law.name
    assert right["usl"] == 20
    assert right["amdahl"] >= 17


def test_a_law_that_does_not_hold_at_the_largest_scale_is_found_out() -> None:
    chance = np.random.default_rng(7)
    n = np.repeat([1, 2, 4, 8], 3).astype(float)
    times = times_of(AMDAHL, n, [0.05]) * chance.lognormal(0, 0.01, len(n))
    told = foretell(AMDAHL, n, times)
    assert told is not None
    assert told.holds
    assert told.scales == [1, 2, 4]
    slow = np.where(n == 8, 1.5 * times, times)
    told = foretell(AMDAHL, n, slow)
    assert told is not None
    assert not told.holds
    assert told.high < told.measured
    found = fit(AMDAHL, n, slow)
    assert found is not None
    assert found.lack < 0.01


def test_too_few_scales_give_no_law() -> None:
    assert fit(USL, [1, 1, 2, 2], [10, 10.1, 6, 6.1]) is None
    assert fit(AMDAHL, [4, 4], [10, 10.1]) is None
    assert foretell(AMDAHL, [1, 2], [10, 6]) is None
    alone = fit(AMDAHL, [1, 2], [10, 6])
    assert alone is not None
    assert alone.parameters["serial"].value == pytest.approx(0.2)
    assert math.isnan(alone.parameters["serial"].low)


# ----------------------------------------------------------------------------- what runs that say


def a_run(
    scale: int,
    seconds: float,
    functions: dict[str, float] | None = None,
    factors: Sequence[float] = (0.9, 0.95, 0.9 / 0.95, 0.98, 0.9 / 0.95 / 0.98),
    wall: dict[str, float] | None = None,
    number: int = 0,
    path: Path = Path("x"),
) -> RunMeasure:
    functions = {"work": 10.0} if functions is None else functions
    return RunMeasure(
        name=f"run-{scale}-{number}",
        path=path,
        scale=scale,
        nodes=scale,
        workers=2 * scale,
        threads=4 * scale,
        gpus=0,
        time=round(seconds * S),
        useful=round(sum(functions.values()) * S),
        factors=dict(zip(FACTORS, factors, strict=True)),
        functions={
            name: FunctionTime(100, round(t * S), round((wall or {}).get(name, t / 4 / scale) * S))
            for name, t in functions.items()
        },
        job="job.py",
    )


def study_of(
    chance: np.random.Generator,
    grows: dict[str, dict[int, float]] | None = None,
    serial: float = 0.1,
    repeats: int = 3,
    scales: Sequence[int] = (1, 2, 4, 8),
    noise: float = 0.02,
) -> list[RunMeasure]:
    """Make runs by Amdahl's law; functions that grow at some scale by a factor."""
    runs = []
    for number in range(repeats):
        for scale in scales:
            took = 100 * (serial + (1 - serial) / scale) * chance.lognormal(0, noise)
            functions = {
                name: base * (grows or {}).get(name, {}).get(scale, 1) * chance.lognormal(0, noise)
                for name, base in {"load": 40.0, "fft": 100.0, "filter": 60.0, "sum": 9.0}.items()
            }
            runs.append(a_run(scale, took, functions, number=number))
    return runs


def test_speed_up_and_efficiency_are_over_the_smallest_scale() -> None:
    runs = [a_run(2, 10), a_run(2, 12), a_run(2, 11), a_run(4, 6), a_run(8, 4)]
    strong = scaling(runs).answer.tables["scales"]
    assert strong["time"].tolist() == [11 * S, 6 * S, 4 * S]
    assert strong["time_min"].tolist() == [10 * S, 6 * S, 4 * S]
    assert strong["speedup"].tolist() == pytest.approx([1, 11 / 6, 11 / 4])
    assert strong["efficiency"].tolist() == pytest.approx([100, 100 * 11 / 12, 100 * 11 / 16])
    weak = scaling(runs, weak=True).answer.tables["scales"]
    assert weak["efficiency"].tolist() == pytest.approx([100, 100 * 11 / 6, 100 * 11 / 4])
    assert weak["speedup"].tolist() == pytest.approx([1, 2 * 11 / 6, 4 * 11 / 4])


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.floats(0.1, 100), st.floats(0.2, 1), st.floats(0.2, 1)),
        min_size=2, max_size=8, unique_by=lambda one: one[0],
    )
)  # fmt: skip
@settings(max_examples=25)
def test_the_factors_multiply_to_the_relative_efficiency(
    sizes: list[tuple[int, float, float, float]],
) -> None:
    runs = []
    for scale, useful, balance, serialisation in sizes:
        transfer = 0.9
        parallel = balance * serialisation * transfer
        seconds = useful / (4 * scale * parallel)
        parts = (parallel, balance, serialisation * transfer, serialisation, transfer)
        runs.append(a_run(scale, seconds, {"work": useful}, parts))
    rows = scaling(runs).answer.tables["scales"].to_dict("records")
    for row in rows:
        product = row["computation_scalability"] * row["parallel_efficiency"]
        assert row["efficiency"] / 100 == pytest.approx(
            product / rows[0]["parallel_efficiency"], rel=1e-5
        )
        assert row["parallel_efficiency"] == pytest.approx(
            row["load_balance"] * row["serialisation"] * row["transfer"]
        )


def test_the_function_that_stops_scaling_first_is_named() -> None:
    grows = {"filter": {4: 1.5, 8: 2.4}, "load": {8: 3.0}}
    found = scaling(study_of(np.random.default_rng(1), grows))
    table = found.answer.tables["functions"]
    grown = table[table["grown"]]
    assert set(zip(grown["function"], grown["scale"], strict=True)) == {
        ("filter", 4), ("filter", 8), ("load", 8)
    }  # fmt: skip
    (told,) = [f.sentence for f in found.answer.findings if "stops scaling first" in f.sentence]
    assert re.match(
        r"filter stops scaling first: at 4 nodes it executes 1\.[45]\d* times as long in sum as at "
        r"1 node, in as many tasks; then load\.$",
        told,
    )


def test_noise_is_seldom_taken_for_a_function_that_stops_scaling() -> None:
    chance = np.random.default_rng(2)
    false = 0
    for _ in range(50):
        table = scaling(study_of(chance, noise=0.08, repeats=2)).answer.tables["functions"]
        false += bool(table["grown"].any())
    assert false <= 2  # the growth that is none has to pass GROWN, too
    assert GROWN > 0


def test_the_factor_that_fell_most_is_named_where_efficiency_falls_most() -> None:
    good = (0.95, 0.97, 0.95 / 0.97, 0.99, 0.95 / 0.97 / 0.99)
    bad = (0.64, 0.95, 0.64 / 0.95, 0.95, 0.64 / 0.95 / 0.95)
    sizes = ((1, 1.0, good), (2, 0.99, good), (4, 0.81, good), (8, 0.52, bad))
    runs = [a_run(n, 80 / n / e, factors=f, number=k) for k in range(2) for n, e, f in sizes]
    first = scaling(runs).answer.findings[0]
    assert first.sentence.startswith(
        "From 4 to 8 nodes efficiency falls from 81 % to 52 %: transfer (0.99 to 0.71) is the "
        "factor that fell most"
    )
    assert "analyze where" in first.next_step


def test_a_function_that_one_thread_executes_is_told_as_serial() -> None:
    runs = [
        a_run(n, 90 / n + 10, {"work": 360.0, "collect": 10.0}, number=k,
              wall={"work": 90 / n, "collect": 10.0})
        for k in range(2) for n in (1, 2, 4, 8)
    ]  # fmt: skip
    found = scaling(runs)
    (told,) = [f.sentence for f in found.answer.findings if "as good as serial" in f.sentence]
    assert told.startswith("collect is as good as serial: it is at work for 10 s at 8 nodes")
    table = found.answer.tables["functions"].set_index(["function", "scale"])
    assert table.loc[("work", 8), "speedup"] == pytest.approx(8)
    assert table.loc[("collect", 8), "speedup"] == pytest.approx(1)


def test_two_scales_or_one_run_each_say_what_they_cannot_tell() -> None:
    found = scaling([a_run(1, 10), a_run(2, 6)])
    other = replace(a_run(2, 6), job="job.py --more")
    assert "weak scaling" in " ".join(scaling([a_run(1, 10), other]).answer.unanswered)
    assert "(--weak)" not in " ".join(scaling([a_run(1, 10), other], weak=True).answer.unanswered)
    two = replace(a_run(2, 6), job="b.py", script="b.py")
    mixed = scaling([replace(a_run(1, 10), script="a.py"), two]).answer.unanswered
    assert mixed[0].startswith("The runs are of 2 scripts, a.py, b.py:")
    assert "weak scaling" not in " ".join(mixed)
    said = " ".join(found.answer.unanswered)
    assert "2 scripts" not in said
    assert "one run of each scale" in said
    assert "universal scalability law needs three" in said
    assert [one.law.name for one in found.fits] == ["amdahl"]
    assert "there is no interval" in found.answer.findings[-1].sentence


def test_a_program_that_gets_no_faster_is_told_so() -> None:
    found = scaling([a_run(n, 10 + n, number=k) for n in (1, 2) for k in range(2)])
    assert "more nodes make it no faster" in found.answer.findings[-1].sentence
    assert found.answer.findings[-1].next_step == ""


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [a_run(2, 10)],
        [a_run(2, 10), a_run(2, 9)],
        [a_run(1, 9), replace(a_run(2, 9), failed="it was lost")],
    ],
)
def test_runs_of_one_scale_say_nothing(runs: list[RunMeasure]) -> None:
    with pytest.raises(ScalingError, match="two scales at least"):
        scaling(runs)


def test_the_document_is_json_and_the_markdown_has_every_scale() -> None:
    found = scaling(study_of(np.random.default_rng(3)))
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert [row["scale"] for row in document["tables"]["scales"]["rows"]] == [1, 2, 4, 8]
    fitted = next(one for one in document["fits"] if one["law"] == "amdahl")
    serial = fitted["parameters"]["serial"]
    assert serial["low"] <= 0.1 <= serial["high"]
    text = markdown(found)
    assert "| Nodes | Runs | Time |" in text
    assert all(f"\n| {scale} | 3 |" in text for scale in (1, 2, 4, 8))
    assert "| `fft` |" in text


# ---------------------------------------------------------------------------- what runs are asked


def write_trace_of(folder: Path, workers: int, seconds: float = 0.1, serial: float = 0.2) -> None:
    """Write a run: 12 tasks shared out among workers, then one that collects."""
    folder.mkdir(parents=True, exist_ok=True)
    part = round(seconds * S)
    tasks = [
        Task(f"part-{i}", i % workers, i // workers * part, (i // workers + 1) * part)
        for i in range(12)
    ]
    end = math.ceil(12 / workers) * part
    tasks.append(
        Task("collect", 0, end, end + round(serial * S), needs=[task.key for task in tasks])
    )
    made = Made(tasks, [Worker(node=i) for i in range(workers)])
    make_trace(folder / "trace.h5", made).close()


def test_a_run_is_measured_by_its_trace(tmp_path: Path) -> None:
    write_trace_of(tmp_path / "one", 4)
    found = measure_run(tmp_path / "one")
    assert (found.scale, found.nodes, found.workers, found.threads) == (4, 4, 4, 4)
    assert found.time == round(0.5 * S)
    assert found.useful == round(1.4 * S)
    assert found.functions["part"] == FunctionTime(12, round(1.2 * S), round(0.3 * S))
    assert found.functions["collect"] == FunctionTime(1, round(0.2 * S), round(0.2 * S))
    assert found.factors["parallel_efficiency"] == pytest.approx(1.4 / (4 * 0.5))
    assert measure_run(tmp_path / "one", "threads").scale == 4
    assert measure_run(tmp_path / "one", "gpus").failed == "it has no gpus"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.integers(0, 1)), min_size=1))
@settings(max_examples=12)
def test_a_function_is_at_work_while_any_of_its_tasks_is(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[tuple[int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    made = Made(
        [Task(f"f{which}-{i}", 0, start, start + took, thread=i)
         for i, (start, took, which) in enumerate(tasks)],
        [Worker(threads=len(tasks))],
    )  # fmt: skip
    make_trace(folder / "trace.h5", made).close()
    found = measure_run(folder)
    for which in {which for _, _, which in tasks}:
        moments = {t for start, took, w in tasks if w == which for t in range(start, start + took)}
        name = next(n for n in found.functions if n == f"f{which}")
        assert found.functions[name].wall == len(moments)


@pytest.mark.parametrize("text", ["", "1", "2,2", "1,x", "0,1", "1,-2", "1.5,2", "1,,2", "١,٢"])
def test_scales_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--nodes"):
        read_scales("--nodes", text)


def test_all_scales_are_run_once_then_again() -> None:
    plan = make_plan("job.py", [], {"nodes": "4, 1,2,1"}, repeats=2)
    assert plan.turns() == [
        Turn(1, 1), Turn(2, 1), Turn(4, 1), Turn(1, 2), Turn(2, 2), Turn(4, 2)
    ]  # fmt: skip


def test_arguments_name_the_size_of_the_run() -> None:
    words = ["--n={nodes}", "{workers}x{threads}", "{size}", "{other}", "{scheduler_file}"]
    plan = make_plan("job.py", words, {"nodes": "1,3"}, weak=True, size=100)
    given = load_settings({"on": "local", "workers_per_node": 2, "threads_per_worker": 5})
    own = plan.settings_at(study_settings(plan, given), 3)
    from dasf_hpc.launch.shape import run_shape

    told = plan.arguments_at(3, run_shape(own, local=True))
    assert told == ["--n=3", "6x30", "300", "{other}", "{scheduler_file}"]


@pytest.mark.parametrize(
    ("words", "more", "match"),
    [
        (["--size", "10"], {"weak": True}, r"no argument of the script says.*\{size\}"),
        (["{size}"], {"weak": True}, "say what it is at scale 1"),
        (["{nodes}"], {"weak": True, "size": 5}, r"no argument of the script has \{size\}"),
        (["{size}"], {"size": 5}, "give --weak, too"),
    ],
)
def test_weak_scaling_needs_work_that_grows(
    words: list[str], more: dict[str, Any], match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        make_plan("job.py", words, {"nodes": "1,2"}, **more)


@pytest.mark.parametrize("scales", [{}, {"nodes": "1,2", "workers": "1,2"}])
def test_scales_are_counted_in_one_thing(scales: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="by one of --nodes, --workers, --gpus"):
        make_plan("job.py", [], dict(scales))


def test_more_workers_of_a_machine_are_more_threads() -> None:
    plan = make_plan("job.py", [], {"workers": "1,2,4"})
    settings = study_settings(plan, load_settings({"on": "local", "nodes": 3}))
    assert settings.threads_per_worker is not None
    own = [plan.settings_at(settings, scale) for scale in plan.scales]
    assert [(s.nodes, s.workers_per_node) for s in own] == [(1, 1), (1, 2), (1, 4)]
    assert len({s.threads_per_worker for s in own}) == 1
    with pytest.raises(SettingsError, match="--gpus 1,2,4"):
        study_settings(plan, load_settings({"on": "local", "gpus_per_node": 2}))
    on_gpus = make_plan("job.py", [], {"gpus": "1,2"})
    settings = study_settings(on_gpus, load_settings({"on": "local"}))
    assert on_gpus.settings_at(settings, 2).gpus_per_node == 2


# ---------------------------------------------------------------------------------------- studies


class Cluster:
    """Stands for `submit`: writes a run at once, or ends as it was told to for a turn."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.made: list[tuple[int, list[str]]] = []

    def submit(
        self, settings: Settings, job: str, arguments: Sequence[str], told: Any, directory: Path
    ) -> RunResult:
        workers = settings.workers_per_node or 1
        self.made.append((workers, list(arguments)))
        end = self.ends.pop(0) if self.ends else None
        Manifest(directory).update(state="complete", job=job, exit_code=0)
        if isinstance(end, BaseException) and not isinstance(end, PartialRecording):
            raise end
        write_trace_of(directory, workers)
        with open_trace(directory) as trace:
            summary: Summary = summarise(trace)
        if isinstance(end, int):
            Manifest(directory).update(exit_code=end)
            return RunResult(directory, end, summary)
        return RunResult(directory, end.exit_code if end else 0, summary, end)


Begin = Callable[..., Study]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Give a function that begins, or goes on with, a study of 1 and 2 workers, twice each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("print()\n")

    def run(cluster: Cluster, anew: bool = False, **more: Any) -> Study:
        monkeypatch.setattr(runs_module, "submit", cluster.submit)
        plan = make_plan("job.py", ["{workers}"], {"workers": "1,2"}, repeats=2)
        asked = load_settings({"on": "local", "runs_dir": tmp_path / "runs", **more})
        return whole.begin(plan, asked, lambda step: None, anew)

    return run


def test_a_study_makes_its_runs_and_says_what_they_say(begin: Begin) -> None:
    cluster = Cluster()
    study = begin(cluster)
    assert cluster.made == [(1, ["1"]), (2, ["2"]), (1, ["1"]), (2, ["2"])]
    assert study.content["state"] == "complete"
    assert [run["state"] for run in study.runs] == ["done"] * 4
    found, page = whole.conclude(study, lambda step: None)
    assert page == study.directory / "scaling.html"
    assert found.by == "workers"
    (law,) = found.fits
    assert law.parameters["serial"].value == pytest.approx(0.2 / 1.4, abs=1e-3)
    assert begin(Cluster()).directory != study.directory  # a complete one is not gone on with


def test_a_study_that_was_interrupted_goes_on_by_the_same_command(begin: Begin) -> None:
    with pytest.raises(InterruptedRun, match=r"1 of 4 runs are made.*--resume"):
        begin(Cluster(None, InterruptedRun("Interrupted.")))
    second = Cluster(None, KeyboardInterrupt())
    with pytest.raises(InterruptedRun, match="2 of 4"):
        begin(second)
    assert [made[0] for made in second.made] == [2, 1]
    last = Cluster()
    study = begin(last)
    assert [made[0] for made in last.made] == [1, 2]
    assert study.content["state"] == "complete"
    assert len(study.content["given_up"]) == 2
    kept = {run["directory"] for run in study.runs}
    assert len(kept) == 4
    assert not kept & set(study.content["given_up"])


def test_a_failed_run_is_told_and_the_others_are_made(begin: Begin) -> None:
    study = begin(Cluster(3, WorkersError("All went away."), None, None))
    assert [run["state"] for run in study.runs] == ["failed", "failed", "done", "done"]
    assert study.content["state"] == "failed"
    error = runs_module.failed_error(study)
    assert isinstance(error, StudyIncomplete)
    assert "2 of 4 runs failed: 1 worker, repeat 1 (code 3); 2 workers, repeat 1 (All" in str(error)
    found, _ = whole.conclude(study, lambda step: None)
    assert len(found.runs) == 2
    again = Cluster()
    assert begin(again).content["state"] == "complete"
    assert [made[0] for made in again.made] == [1, 2]


def test_a_partial_recording_is_kept_and_told(begin: Begin) -> None:
    study = begin(Cluster(PartialRecording("It is partial.")))
    assert [run["state"] for run in study.runs] == ["partial", "done", "done", "done"]
    assert runs_module.failed_error(study) is None


def test_what_keeps_every_run_from_being_made_ends_the_study(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Cluster):
        def submit(self, *given: Any) -> RunResult:
            self.made.append((0, []))
            raise BatchError("There is no cluster.")

    refusing = Refusing()
    with pytest.raises(BatchError):
        begin(refusing)
    assert len(refusing.made) == 1
    (file,) = Path("runs").glob(f"*/{STUDY}")
    assert sorted(path.name for path in file.parent.iterdir()) == [STUDY]


def test_a_killed_study_keeps_a_run_that_was_over(begin: Begin) -> None:
    with pytest.raises(InterruptedRun):
        begin(Cluster(None, None, InterruptedRun("Interrupted.")))
    (file,) = Path("runs").glob(f"*/{STUDY}")
    content = json.loads(file.read_text())
    over, half = content["runs"][1]["directory"], content["runs"][2]["directory"]
    for number in (1, 2):  # as they stood when the process was killed
        content["runs"][number]["state"] = "running"
    Manifest(file.parent / half).update(state="running")
    content.update(state="running", pid=2**22 + 1)
    file.write_text(json.dumps(content))
    (file.parent / HEARTBEAT).touch()
    last = Cluster()
    study = begin(last)
    assert [made[0] for made in last.made] == [1, 2]
    assert study.runs[1]["directory"] == over
    assert half in study.content["given_up"]


def test_a_study_that_somebody_is_at_work_on_is_left_alone(begin: Begin) -> None:
    with pytest.raises(InterruptedRun):
        begin(Cluster(InterruptedRun("Interrupted.")))
    (file,) = Path("runs").glob(f"*/{STUDY}")
    content = json.loads(file.read_text())
    content.update(state="running", pid=os.getppid())
    file.write_text(json.dumps(content))
    (file.parent / HEARTBEAT).touch()
    with pytest.raises(SettingsError, match="is at work on"):
        begin(Cluster())
    assert begin(Cluster(), anew=True).directory != file.parent


def test_a_script_that_has_changed_is_not_gone_on_with(begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun):
        begin(Cluster(None, InterruptedRun("Interrupted.")))
    (file,) = Path("runs").glob(f"*/{STUDY}")
    (tmp_path / "job.py").write_text("print(2)\n")
    with pytest.raises(SettingsError, match="has changed since"):
        whole.resume(file.parent, [], lambda step: None)
    assert begin(Cluster()).directory != file.parent


def test_other_options_begin_another_study(begin: Begin) -> None:
    with pytest.raises(InterruptedRun):
        begin(Cluster(None, InterruptedRun("Interrupted.")))
    other = begin(Cluster(), memory="2GB")
    assert len(list(Path("runs").glob(f"*/{STUDY}"))) == 2
    assert other.content["asked"]["settings"]["memory"] == "2GB"


def test_values_of_variables_are_not_kept_and_asked_for_again(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedRun):
        begin(Cluster(None, InterruptedRun("Interrupted.")), env=["TOKEN=planted-secret"])
    (file,) = (tmp_path / "runs").glob(f"*/{STUDY}")
    assert "planted-secret" not in file.read_text()
    with pytest.raises(SettingsError, match="--env TOKEN=VALUE"):
        whole.resume(file.parent, [], lambda step: None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # relative paths are those of where it was begun
    study = whole.resume(file.parent, ["TOKEN=other"], lambda step: None)
    assert study.content["state"] == "complete"
    assert Path.cwd() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: re.sub(r'"repeat": 2', '"repeat": 7', text),
        lambda text: text.replace('"given_up": []', '"given_up": 3'),
        lambda text: text.replace('"directory": null', '"directory": "../../x"'),
        lambda text: text.replace('"scales"', '"scale"'),
    ],
)
def test_a_damaged_study_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text("")
    plan = make_plan("job.py", [], {"workers": "1,2"}, repeats=2)
    study = new_study(plan, load_settings({"on": "local", "runs_dir": tmp_path / "runs"}))
    assert open_study(study.directory).plan == plan
    file = study.directory / STUDY
    broken = damage(file.read_text())
    assert broken != file.read_text()
    file.write_text(broken)
    with pytest.raises(RunDirectoryError, match="is no study"):
        open_study(study.directory)
    with pytest.raises(RunDirectoryError, match="There is no study"):
        open_study(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("scale", 2),
        ("scale --nodes 1,2", 2),
        ("scale --nodes 1,2 --on local missing.py", 66),
        ("scale --nodes 1 --on local job.py", 64),
        ("scale --nodes 1,2 --weak --on local job.py", 64),
        ("scale --resume nowhere", 73),
        ("scale --resume nowhere --on local", 2),
        ("scaling nowhere", 73),
        ("scaling . --by moons", 2),
        ("scaling one one", 85),
    ],
)
def test_bad_input_is_a_sentence_and_a_code(
    words: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("")
    write_trace_of(tmp_path / "one", 2)
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("")
    words = "scale --on local --workers 1,2 --repeats 2 --weak --threads-per-worker 3 "
    words += "--size-per-node 50 --dry-run job.py {size}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "1 of 4: 1 node, 1 worker, 3 threads: job.py 50",
        "2 of 4: 1 node, 2 workers, 6 threads: job.py 100",
        "3 of 4: 1 node, 1 worker, 3 threads: job.py 50",
        "4 of 4: 1 node, 2 workers, 6 threads: job.py 100",
    ]
    assert not (tmp_path / "runs").exists()


def test_runs_that_are_there_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for workers in (1, 2, 4):
        write_trace_of(tmp_path / f"run-{workers}", workers)
    names = [f"run-{workers}" for workers in (4, 1, 2)]
    given = [*names, names[0]]  # one of them twice
    done = CliRunner().invoke(app, ["scaling", *given, "--json", "--html", "page.html"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["time"] for row in found["tables"]["scales"]["rows"]] == [
        1.4 * S, 0.8 * S, 0.5 * S
    ]  # fmt: skip
    assert [row["runs"] for row in found["tables"]["scales"]["rows"]] == [1, 1, 1]
    law = next(one for one in found["fits"] if one["law"] == "amdahl")
    assert law["parameters"]["serial"]["value"] == pytest.approx(0.2 / 1.4, abs=1e-4)
    assert "run-4" in (tmp_path / "page.html").read_text()
    done = CliRunner().invoke(app, ["scaling", *names, "--by", "threads", "--markdown"])
    assert done.stdout.startswith("### Strong scaling over 1, 2, 4 threads, 3 runs\n")


JOB = """
    import time
    from distributed import Client

    def part(number):
        time.sleep(0.1)
        return number

    def collect(numbers):
        time.sleep(1)
        return sum(numbers)

    with Client() as client:
        parts = client.map(part, range(30), pure=False)
        print(client.submit(collect, parts).result())
"""
#: Of 4 s at one worker, 1 s.
SERIAL = 0.25


def test_a_real_study_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))
    command = [
        str(Path(sys.executable).with_name("dasf-hpc")), "scale", "--on", "local", "--no-nsys",
        "--threads-per-worker", "1", "--workers", "1,2", "--repeats", "2", "--json", "job.py",
    ]  # fmt: skip
    environment = {**os.environ, "DASF_HPC_REPORT": "false"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        study = _wait_for_second_run(tmp_path, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, said
    assert "1 of 4 runs are made and kept" in said
    assert "Run 2 of 4, 2 workers, repeat 1" in said
    states = [run["state"] for run in open_study(study).runs]
    assert states == ["done", "interrupted", "planned", "planned"]
    first = open_study(study).runs[0]["directory"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Going on with" in done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["study"] == str(study)
    assert open_study(study).content["state"] == "complete"
    assert open_study(study).runs[0]["directory"] == first
    assert [row["runs"] for row in found["tables"]["scales"]["rows"]] == [2, 2]
    (law,) = found["fits"]
    assert law["parameters"]["serial"]["value"] == pytest.approx(SERIAL, abs=0.1)
    assert (study / "scaling.html").is_file()
    again = subprocess.run(
        [command[0], "scale", "--resume", str(study), "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "All 4 runs" in again.stderr
    assert json.loads(again.stdout)["fits"] == found["fits"]


def _wait_for_second_run(folder: Path, process: subprocess.Popen[str]) -> Path:
    """Wait until the second run's script runs; gives the study."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        for file in folder.glob(f"runs/*/{STUDY}"):
            run = json.loads(file.read_text())["runs"][1]
            if run["directory"]:
                content = Manifest(file.parent / run["directory"]).content
                if content.get("state") == "running":
                    return file.parent
        time.sleep(0.1)
    raise AssertionError("the second run did not begin")


# --------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def found() -> Scaling:
    runs = study_of(np.random.default_rng(4), {"filter": {8: 1.6}}, noise=0.05)
    evil = "</script><script>document.title='taken'</script>"
    runs = [
        replace(run, functions={**run.functions, evil: FunctionTime(3, 5 * S, 2 * S)})
        for run in runs
    ]
    return scaling([*runs, replace(a_run(16, 1), failed=f"it {evil}")])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, found: Scaling) -> Path:
    folder = tmp_path_factory.mktemp("study")
    runs = []
    for run in found.runs:
        own = folder / f"a run {run.name}"
        own.mkdir()
        if run.scale == 4:
            (own / "report.html").write_text("<title>the report</title>")
        runs.append(replace(run, path=own))
    return write_page(replace(found, runs=runs), folder / "scaling.html", "a study")


def test_the_page_refers_to_reports_alone(page: Path) -> None:
    text = page.read_text()
    outside = set(re.findall(r"""(?:src|href)=["'](?!#|data:,)([^"']*)""", text))
    assert outside == {f"a%20run%20run-4-{number}/report.html" for number in range(3)}
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert page.stat().st_mode & 0o777 == 0o600


@pytest.mark.needs("browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_opens_on_any_screen(browser: Any, page: Path, theme: str, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, page, theme)
        assert browser.title == "a study – dasf-hpc"  # names of functions are text alone
        needs, has = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert needs <= has
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('figure text')]"
            ".map(one => one.getBoundingClientRect().height)"
        )
        assert len(sizes) > 20
        assert min(sizes) > 10  # labels can be read
        ink = "return getComputedStyle(document.querySelector('figure .name')).fill"
        before = browser.execute_script(ink)
        browser.execute_script("document.getElementById('theme').click()")
        assert browser.execute_script(ink) != before
        check_clean(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.needs("browser")
def test_labels_of_the_drawings_do_not_touch(browser: Any, page: Path) -> None:
    open_page(browser, page)
    touching = browser.execute_script("""
        const bad = [];
        for (const svg of document.querySelectorAll('figure > svg')) {
          const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
          const frame = svg.getBoundingClientRect();
          boxes.forEach(([one, a], i) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1) bad.push(one + ' outside');
            boxes.slice(i + 1).forEach(([other, b]) => {
              if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
                bad.push(`${one} on ${other}`);
            });
          });
        }
        return bad;
    """)  # noqa: E501
    assert touching == []


@pytest.mark.needs("browser")
def test_a_dot_leads_to_its_report_by_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.execute_script("return !!document.activeElement.closest('figure a')"):
            break
    label = browser.execute_script("return document.activeElement.getAttribute('aria-label')")
    assert label.startswith("4 nodes: ")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    deadline = time.monotonic() + 20
    while browser.title != "the report":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.needs("browser")
def test_every_run_and_the_fit_are_drawn(browser: Any, page: Path, found: Scaling) -> None:
    open_page(browser, page)
    count = "return [...document.querySelectorAll('figure')].map(f => f.querySelectorAll(arguments[0]).length)"  # noqa: E501
    assert browser.execute_script(count, ".run title") == [len(found.runs), len(found.runs), 0]
    assert browser.execute_script(count, ".band") == [2, 1, 0]
    assert browser.execute_script(count, ".mark title") == [0, 0, 4 * len(found.scales)]


def test_errors_have_their_codes() -> None:
    codes = [error.exit_code for error in DasfHpcError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert (StudyIncomplete.exit_code, ScalingError.exit_code) == (84, 85)
