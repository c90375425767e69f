"""The gate: what is slower is found, what is noise is not, and what cannot be told is said."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from handmade import Made, Task, Worker, make_trace
from typer.testing import CliRunner

from dasf_hpc.analysis.compare import (
    WHOLE_RUN,
    Comparison,
    Difference,
    RunMeasures,
    Verdict,
    compare,
    load_baseline,
    measure,
    moderate,
    save_baseline,
)
from dasf_hpc.cli import app
from dasf_hpc.errors import BaselineError, CannotTell, Regression
from dasf_hpc.show.gate import github, junit, markdown

S = 10**9
#: Thread seconds of the functions of the synthetic program.
PROGRAM = {"fft": 40.0, "load": 20.0, "filter": 10.0, "sum": 8.0, "store": 5.0, "norm": 3.0}


def runs(
    chance: np.random.Generator,
    count: int = 5,
    slower: dict[str, float] | None = None,
    noise: float = 0.02,
    hardware: str = "4 x node",
) -> list[RunMeasures]:
    """Make runs whose functions vary by `noise` from run to run, and all of a run by 1 %.

    Each function has 200 tasks that vary by 20 % among themselves.
    """
    made = []
    for number in range(count):
        whole = chance.normal(0, 0.01)
        functions = {}
        for name, seconds in PROGRAM.items():
            factor = np.exp(whole + chance.normal(0, noise)) * (slower or {}).get(name, 1)
            tasks = seconds * S / 200 * factor * chance.lognormal(0, 0.2, 200)
            functions[name] = (200, int(tasks.sum()))
        duration = int(sum(total for _, total in functions.values()) / 8)
        made.append(RunMeasures(f"run-{number}", hardware, "dask 1", [], duration, functions))
    return made


def _of(comparison: Comparison, function: str) -> Difference:
    return next(d for d in comparison.differences if d.function == function)


def test_of_a_hundred_pairs_without_a_change_at_most_one_is_a_false_alarm() -> None:
    for noise in (0.02, 0.05):
        chance = np.random.default_rng(1)
        verdicts = [
            compare(runs(chance, noise=noise), runs(chance, noise=noise)).verdict
            for _ in range(100)
        ]
        assert verdicts.count(Verdict.REGRESSION) <= 1, noise


def test_a_function_that_is_a_tenth_slower_is_found_by_five_runs_a_side() -> None:
    chance = np.random.default_rng(2)
    found = 0
    for turn in range(100):
        name = list(PROGRAM)[turn % len(PROGRAM)]
        comparison = compare(runs(chance), runs(chance, slower={name: 1.1}))
        if comparison.verdict is Verdict.REGRESSION:
            found += _of(comparison, name).verdict is Verdict.REGRESSION
    assert found >= 95


def test_noise_of_three_percent_needs_more_runs_and_a_baseline_may_hold_them() -> None:
    # five runs a side cannot do it: see `compare`'s notes
    chance = np.random.default_rng(13)
    found = false = 0
    for turn in range(100):
        name = list(PROGRAM)[turn % len(PROGRAM)]
        base = runs(chance, 15, noise=0.03)
        slow = compare(base, runs(chance, noise=0.03, slower={name: 1.1}))
        found += _of(slow, name).verdict is Verdict.REGRESSION
        false += compare(base, runs(chance, noise=0.03)).verdict is Verdict.REGRESSION
    assert found >= 95
    assert false <= 1


def test_what_became_faster_is_an_improvement() -> None:
    chance = np.random.default_rng(3)
    comparison = compare(runs(chance), runs(chance, slower={"fft": 0.5}))
    assert comparison.verdict is Verdict.IMPROVEMENT
    assert _of(comparison, "fft").change == pytest.approx(-50, abs=3)
    low, high = _of(comparison, "fft").low, _of(comparison, "fft").high
    assert low < -50 < high < -45


def test_intervals_hold_the_true_change_as_often_as_they_say() -> None:
    chance = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        difference = _of(compare(runs(chance), runs(chance, slower={"sum": 1.05})), "sum")
        held += difference.low < 5 < difference.high
    assert 180 <= held <= 199  # 95 %


def test_a_change_below_a_threshold_is_none() -> None:
    chance = np.random.default_rng(5)
    base, head = runs(chance, noise=0.001), runs(chance, noise=0.001, slower={"fft": 1.04})
    assert _of(compare(base, head), "fft").verdict is Verdict.SAME
    assert _of(compare(base, head, relative=2), "fft").verdict is Verdict.REGRESSION
    assert _of(compare(base, head, relative=2, absolute=5), "fft").verdict is Verdict.SAME


def test_noise_that_hides_a_change_is_said() -> None:
    chance = np.random.default_rng(6)
    verdicts = [
        _of(
            compare(runs(chance, 3, noise=0.2), runs(chance, 3, {"fft": 1.3}, noise=0.2)), "fft"
        ).verdict
        for _ in range(20)
    ]
    assert verdicts.count(Verdict.CANNOT_TELL) >= 10
    assert Verdict.IMPROVEMENT not in verdicts


def test_what_cannot_be_compared_is_not() -> None:
    chance = np.random.default_rng(7)
    base = runs(chance)
    for head, why in (
        (runs(chance, 0), "there are no runs of the head side"),
        (runs(chance, hardware="8 x node"), "other hardware: 4 x node and 8 x node"),
        ([RunMeasures("r", "4 x node", "", ["blocks damaged"], 1, {})], "r is not whole: blocks"),
    ):
        comparison = compare(base, head)
        assert comparison.verdict is Verdict.CANNOT_TELL
        assert why in comparison.why
    assert "too few" in compare(base[:2], runs(chance, 2)).why
    assert compare(base, runs(chance, 1)).verdict is not Verdict.CANNOT_TELL


def test_one_run_that_something_disturbed_is_no_regression() -> None:
    chance = np.random.default_rng(12)
    disturbed = dict.fromkeys(PROGRAM, 1.5)
    once = compare(runs(chance), runs(chance, 1, disturbed))
    assert (once.verdict, once.another) == (Verdict.CANNOT_TELL, True)
    assert "something else may have slowed the head side's only run" in once.why
    # an improvement of another function does not hide it
    mixed = compare(runs(chance), runs(chance, 1, {"fft": 1.5, "load": 0.4}))
    assert (mixed.verdict, mixed.another) == (Verdict.CANNOT_TELL, True)
    assert _of(mixed, "load").verdict is Verdict.IMPROVEMENT
    # a second run tells: either both are slower, or one of two was disturbed
    slow = [*runs(chance, 1, disturbed), *runs(chance, 1, disturbed)]
    assert compare(runs(chance), slow).verdict is Verdict.REGRESSION
    one_of_two = compare(runs(chance), [*runs(chance, 1, disturbed), *runs(chance, 1)])
    assert one_of_two.verdict is Verdict.CANNOT_TELL
    assert not one_of_two.another
    # what is faster in its only run is so, and of the base's only run it is not known
    assert compare(runs(chance), runs(chance, 1, {"fft": 0.5})).verdict is Verdict.IMPROVEMENT
    before = compare(runs(chance, 1, disturbed), runs(chance))
    assert (before.verdict, before.another) == (Verdict.CANNOT_TELL, False)
    assert "the base side's only run" in before.why


def test_runs_given_twice_do_not_make_the_noise_small() -> None:
    (run,) = runs(np.random.default_rng(8), 1)
    comparison = compare([run] * 5, [run] * 5)
    assert comparison.verdict is Verdict.CANNOT_TELL
    assert "run-0 was given twice and counts once." in comparison.notes


def test_a_new_function_cannot_be_compared_and_does_not_hide_others() -> None:
    chance = np.random.default_rng(9)
    head = [
        RunMeasures(
            r.name, r.hardware, "dask 2", [], r.duration, {**r.functions, "new": (1, 9 * S)}
        )
        for r in runs(chance, slower={"load": 1.5})
    ]
    comparison = compare(runs(chance), head)
    assert _of(comparison, "new").verdict is Verdict.CANNOT_TELL
    assert comparison.verdict is Verdict.REGRESSION
    assert comparison.notes == ["Other software: dask 1 and dask 2."]


def test_variances_are_drawn_together_only_as_far_as_they_agree() -> None:
    chance = np.random.default_rng(10)
    alike = chance.chisquare(8, 40) / 8
    drawn, freedom = moderate(alike, 8)
    assert freedom == 40  # as much as the others may say
    assert drawn.std() < 0.4 * alike.std()
    apart = alike * 10.0 ** chance.uniform(-4, 4, 40)
    drawn, freedom = moderate(apart, 8)
    assert freedom == 8
    assert np.median(np.abs(np.log(drawn / apart))) < 0.1
    two, freedom = moderate(np.array([1.0, 2.0]), 8)
    assert (two.tolist(), freedom) == ([1.0, 2.0], 8)


def _run(path: Path, seed: int, factor: float = 1.0, **changes: object) -> Path:
    chance = np.random.default_rng(seed)
    tasks, now = [], 0
    for i in range(60):
        took = int(0.05 * S * chance.normal(1, 0.02) * (factor if i % 2 else 1))
        tasks.append(Task(f"{'fg'[i % 2]}-{i}", 0, now, now + took))
        now += took
    path.mkdir(parents=True)
    made = Made(tasks, [Worker()], more=changes)  # type: ignore[arg-type]
    make_trace(path / "trace.h5", made).close()
    return path


def test_the_command_says_it_in_every_form_and_by_its_exit_code(tmp_path: Path) -> None:
    base = [str(_run(tmp_path / f"base{i}", i)) for i in range(5)]
    same = [str(_run(tmp_path / f"same{i}", 10 + i)) for i in range(5)]
    slow = [str(_run(tmp_path / f"slow{i}", 20 + i, 1.3)) for i in range(5)]
    call = CliRunner().invoke
    answer = call(app, ["compare", *base, "--head", *same])
    assert answer.exit_code == 0, answer.output
    assert "same" in answer.output

    # --head=FIRST takes those that follow, too
    answer = call(app, ["compare", *base, f"--head={slow[0]}", *slow[1:], "--json"])
    assert isinstance(answer.exception, Regression)
    document = json.loads(answer.stdout)
    assert document["verdict"] == "regression"
    by_name = {d["function"]: d for d in document["differences"]}
    assert by_name["g"]["verdict"] == "regression"
    assert by_name["f"]["verdict"] == "same"
    assert by_name["g"]["change"] == pytest.approx(30, abs=2)
    assert [Path(name).name for name in document["head"]] == [f"slow{i}" for i in range(5)]

    saved = tmp_path / "baseline.json"
    assert call(app, ["compare", *base, "--save-baseline", str(saved)]).exit_code == 0
    xml = tmp_path / "junit.xml"
    options = ["--baseline", str(saved), "--junit", str(xml), "--markdown"]
    answer = call(app, ["compare", *options, "--head", *slow])
    assert isinstance(answer.exception, Regression)
    assert "| **`g`** |" in answer.output
    suite = ElementTree.fromstring(xml.read_text())
    failed = [c.get("name") for c in suite.iter("testcase") if c.find("failure") is not None]
    assert failed == [WHOLE_RUN, "g"]
    assert suite.get("failures") == "2"

    answer = call(app, ["compare", "--baseline", str(saved), "--github", "--head", *slow])
    assert "::error title=g%3A regression::g: +" in answer.output
    answer = call(app, ["compare", base[0], "--head", same[0]])
    assert isinstance(answer.exception, CannotTell)
    assert call(app, ["compare", *base]).exit_code == 2
    assert call(app, ["compare", *base, "--head"]).exit_code == 2


def test_a_partial_trace_and_other_hardware_are_seen_in_the_file(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", 1)
    gap = {"kind": ["not available", "records dropped"], "process": [0, 0], "count": [1, 3]}
    partial = _run(tmp_path / "partial", 2, gaps=gap)
    larger = _run(
        tmp_path / "larger", 3, nodes={"hostname": ["n"], "cpus": [64], "memory": [1 << 40]}
    )
    from dasf_hpc.trace.open import open_trace

    measured = []
    for path in (whole, partial, larger):
        with open_trace(path) as trace:
            measured.append(measure(trace))
    assert measured[0].partial == []
    assert measured[1].partial == ["records dropped"]
    assert measured[0].hardware == "nodes: 1 x 4 CPUs, 8 GiB; threads of workers: 1 x 1"
    assert measured[2].hardware == "nodes: 1 x 64 CPUs, 1024 GiB; threads of workers: 1 x 1"


def test_a_baseline_reads_as_it_was_written_and_others_are_refused(tmp_path: Path) -> None:
    made = runs(np.random.default_rng(11), 2)
    save_baseline(tmp_path / "b.json", made)
    assert load_baseline(tmp_path / "b.json") == made
    for text in ("", "{}", "[1]", '{"format": "other", "version": 1}', '{"format": 5}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BaselineError, match=r"bad\.json is no baseline"):
            load_baseline(tmp_path / "bad.json")
    with pytest.raises(BaselineError, match="cannot be read: No such file"):
        load_baseline(tmp_path / "none.json")
    with pytest.raises(BaselineError, match="cannot be written"):
        save_baseline(tmp_path / "none" / "b.json", made)


def test_names_of_functions_cannot_break_the_formats() -> None:
    chance = np.random.default_rng(12)
    name = "a|b`c\n::error::x%,<&\x00"
    seconds = [1.0, 1.01, 0.99, 1.0, 1.02, 2, 2.01, 1.99, 2.0, 2.02]
    odd = [
        RunMeasures(
            r.name, r.hardware, "", [], r.duration, {**r.functions, name: (1, int(took * S))}
        )
        for r, took in zip(runs(chance, 10), seconds, strict=True)
    ]
    comparison = compare(odd[:5], odd[5:])
    assert _of(comparison, name).verdict is Verdict.REGRESSION
    ElementTree.fromstring(junit(comparison))
    assert all(line.startswith("::") for line in github(comparison).splitlines())
    assert "\n::error::x" not in github(comparison)
    table = [line for line in markdown(comparison).splitlines() if "::error::x" in line]
    assert len([line for line in table if line.startswith("|")]) == 1
