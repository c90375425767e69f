"""A trend finds what changed, since which commit, and says nothing where nothing changed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Made, Task, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import check_clean, open_page, wait_until
from system.conftest import command
from typer.testing import CliRunner

from dasf_hpc.analysis.compare import save_baseline
from dasf_hpc.ci import keep_history
from dasf_hpc.cli import app
from dasf_hpc.errors import BaselineError, Regression, RunDirectoryError
from dasf_hpc.manifest import Manifest
from dasf_hpc.trend.changepoints import EACH_SIDE, LEVEL, changes, discoveries, look
from dasf_hpc.trend.commits import commits_between
from dasf_hpc.trend.find import fails, trend
from dasf_hpc.trend.gather import KEPT, Gathered, gather
from dasf_hpc.trend.history import HISTORY, LINE, add_to_history, line_of, read_history
from dasf_hpc.trend.page import page
from dasf_hpc.trend.point import FunctionFigures, RunPoint, point_of
from dasf_hpc.trend.series import configurations, series_of, together
from dasf_hpc.trend.text import markdown, sparkline

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import trend_alarms

S = 1_000_000_000
#: When the first run of a folder began.
BEGUN = 1_767_225_600.0


def git(folder: Path, *words: str) -> str:
    """Run git, as somebody."""
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.strip()


def write_run(
    folder: Path,
    number: int,
    job: Path,
    slower: float = 1.0,
    revision: str | None = None,
    begun: float | None = None,
    **manifest: Any,
) -> Path:
    """Write a run of a tenth of a second a task; `slower` is how many times longer ``g`` takes."""
    chance = np.random.default_rng(number)
    tasks, now = [], S
    for i in range(12):
        took = int(0.2 * S * chance.normal(1, 0.03) * (slower if i % 2 else 1))
        tasks.append(Task(f"{'fg'[i % 2]}-{i:032x}", 0, now, now + took))
        now += took
    path = folder / f"2026-01-01T00-00-00-{job.stem}-{number:04x}"
    path.mkdir(parents=True)
    samples = {"time": [1], "node": [0], "process": [0], "memory": [int(chance.normal(8e8, 1e7))]}
    make_trace(path / "trace.h5", Made(tasks, more={"process_samples": samples})).close()
    began = BEGUN + 7200 * number if begun is None else begun
    described = {
        "name": path.name,
        "state": "complete",
        "job": str(job),
        "arguments": ["--token", "secret-argument"],
        "settings": {"env": {"TOKEN": "secret-setting"}},
        "host": "secret-host",
        "started": began,
        "job_started": began,
        "job_ended": began + now / S,
        "exit_code": 0,
        "git_revision": revision,
    }
    Manifest(path).update(**described | manifest)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository of 16 commits, of which the eleventh made ``g`` a third slower, and its runs."""
    folder = tmp_path_factory.mktemp("planted")
    repository = folder / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    revisions = []
    for number in range(16):
        (repository / "job.py").write_text(f"# {number}\n")
        git(repository, "add", ".")
        git(repository, "commit", "-qm", f"the change with number {number}")
        revisions.append(git(repository, "rev-parse", "HEAD"))
        slower = 1.33 if number >= 10 else 1.0
        for repeat in (0, 1):
            begun = BEGUN + 7200 * number + 60 * repeat
            write_run(
                folder / "runs", 2 * number + repeat, repository / "job.py", slower,
                revisions[-1], begun,
            )  # fmt: skip
    return folder / "runs", revisions


# ----------------------------------------------------------------------------- change points


def test_noise_is_no_change_and_a_step_is_found_where_it_is() -> None:
    for name in trend_alarms.NOISES:
        for count in (50, 200):
            alarms = sum(trend_alarms.alarm((name, count, seed)) for seed in range(40))
            assert alarms <= 2, (name, count)
    hits = [trend_alarms.hit(("normal", 50, at, seed)) for at in (25, 35) for seed in range(10)]
    assert sum(within for _, within, _ in hits) >= 19


@pytest.mark.parametrize("count", [10, 50, 500])
def test_a_clear_step_is_found_in_ten_and_in_five_hundred_points(count: int) -> None:
    chance = np.random.default_rng(count)
    series = 1 + 0.01 * chance.standard_normal(count)
    series[count // 2 :] *= 1.3
    assert changes(series, 0.02) == [count // 2]


def test_up_and_down_again_is_two_changes() -> None:
    series = 1 + 0.02 * np.random.default_rng(4).standard_normal(100)
    series[60:75] *= 1.2
    assert changes(series) == [60, 75]


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 50, [0.0] * 50])
def test_what_cannot_change_does_not(values: list[float]) -> None:
    assert look(values).p == 1
    assert changes(values) == []


def test_rare_failures_are_told_from_many() -> None:
    few = [0.0] * 40
    few[7] = few[23] = 1.0
    assert changes(few) == []
    assert changes([0.0] * 20 + [3.0, 4.0] * 10) == [20]


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.5, 2), min_size=12, max_size=40),
    st.floats(1e-3, 1e3),
    st.integers(6, 34),
)
def test_changes_do_not_depend_on_the_unit_and_leave_points_on_each_side(
    values: list[float], scale: float, at: int
) -> None:
    series = np.array(values)
    series[at:] *= 4
    found = changes(series)
    ends = [0, *found, len(series)]
    assert all(b - a >= EACH_SIDE for a, b in itertools.pairwise(ends))
    assert look(scale * series).p == pytest.approx(look(series).p, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_more_series_are_said_to_change_the_more_do(chances: list[float]) -> None:
    allowed = discoveries(chances)
    assert allowed <= LEVEL
    taken = [p for p in chances if p <= allowed] if allowed else []
    assert allowed == pytest.approx(LEVEL * len(taken) / len(chances))
    assert discoveries([0.0, *chances]) >= allowed * len(chances) / (len(chances) + 1)


# -------------------------------------------------------------------------------- the answer


def test_a_planted_change_is_found_at_its_commit(planted: tuple[Path, list[str]]) -> None:
    folder, revisions = planted
    found = trend(gather([folder]))
    assert len(found.configurations) == 1
    assert [len(point.runs) for point in found.configurations[0].points] == [2] * 16
    names = {found.series[change.series].name for change in found.changes}
    assert names == {
        "first to last task",
        "the script, start to end",
        "executing, in sum",
        "g: in sum",
        "g: median execution",
    }
    for change in found.changes:
        assert (change.commit_before, change.commit_after) == (revisions[9], revisions[10])
        assert change.commits == [f"{revisions[10][:7]} the change with number 10"]
        assert change.still
        assert change.worse
        assert change.direction == "slower"
    span, g = found.changes[0], found.changes[-2]
    assert span.percent == pytest.approx(16.5, abs=3)
    assert span.function == "g"
    assert span.contribution > 90
    assert g.percent == pytest.approx(33, abs=4)
    assert g.before.low <= g.before.median <= g.before.high
    assert f"became slower by {span.percent:.1f} % ({revisions[9][:9]} .." in found.sentence
    assert "most of it by g" in found.sentence


def test_the_command_says_it_in_every_form_and_fails_only_when_told(
    planted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, revisions = planted
    call = CliRunner().invoke
    answer = call(app, ["trend", str(folder), "--json"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    assert document["changes"][0]["name"] == "first to last task"
    assert document["changes"][0]["range"] == f"{revisions[9][:9]} .. {revisions[10][:9]}"
    assert len(document["configurations"][0]["points"]) == 16
    text = call(app, ["trend", str(folder), "--markdown"]).stdout
    assert "| `g: in sum` | +3" in text
    assert "- " + revisions[10][:7] in text
    shown = call(app, ["trend", str(folder)], env={"COLUMNS": "150"})
    assert shown.exit_code == 0
    assert "█" in shown.stdout
    assert isinstance(call(app, ["trend", str(folder), "--fail-on-change"]).exception, Regression)
    old = call(app, ["trend", str(folder), "--fail-on-change", "--recent", "3"])
    assert old.exit_code == 0
    assert call(app, ["trend", str(tmp_path)]).exception.__class__ is RunDirectoryError


def test_the_installed_program_reads_a_folder_of_runs(planted: tuple[Path, list[str]]) -> None:
    folder, revisions = planted
    done = subprocess.run(
        command("trend", str(folder), "--fail-on-change"),
        capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "150"},
    )  # fmt: skip
    assert done.returncode == Regression.exit_code, done.stderr
    assert f"{revisions[9][:9]} .. {revisions[10][:9]}" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_stationary_folder_is_silent(tmp_path: Path) -> None:
    for number in range(20):
        write_run(tmp_path / "runs", number, tmp_path / "job.py")
    found = trend(gather([tmp_path / "runs"]))
    assert found.changes == []
    assert found.sentence.startswith("No change: 20 runs, 20 points")
    assert fails(found, 0) == []


# ------------------------------------------------- points, configurations: figures made by hand


def run_of(number: int, **changes: Any) -> RunPoint:
    """Give a run of ten seconds."""
    chance = np.random.default_rng([number, 3])
    took = int(10 * S * chance.normal(1, 0.02))
    run = RunPoint(
        name=f"run{number}",
        started=BEGUN + 7200 * number,
        script="job.py",
        arguments="abc123",
        hardware="h",
        revision=f"{number:040x}",
        span=took,
        executing=took,
        failures=0,
        functions={"f": FunctionFigures(10, took, took // 10)},
    )
    return replace(run, **changes)


def longer(run: RunPoint, factor: float) -> RunPoint:
    """Give a run that took so many times as long."""
    took = int(run.span * factor)
    functions = {"f": FunctionFigures(10, took, took // 10)}
    return replace(run, span=took, executing=took, functions=functions)


def test_scripts_arguments_and_hardware_are_not_mixed() -> None:
    runs = [run_of(n) for n in range(12)]
    runs += [longer(run_of(20 + n, arguments="def456"), 2) for n in range(12)]
    runs += [longer(run_of(40 + n, script="other.py"), 3) for n in range(12)]
    runs += [longer(run_of(60 + n, hardware="i"), 4) for n in range(5)]
    found = trend(Gathered(runs))
    assert len(found.configurations) == 4
    assert found.changes == []
    assert any("4 configurations" in note for note in found.notes)
    assert any("5 points, too few to tell" in note for note in found.notes)


def test_repeats_of_a_commit_are_one_point_wherever_they_were_run() -> None:
    def run(revision: str, hours: float, batch: str = "") -> RunPoint:
        return run_of(0, revision=revision, started=BEGUN + 3600 * hours, batch=batch)

    a, b = "a" * 40, "b" * 40
    order = [run(a, 0), run(a, 0.1), run(b, 1), run(a, 30)]
    assert [len(point.runs) for point in together(order)] == [3, 1]
    # the same commit a day later, with nothing between: the machine may have changed
    assert [len(point.runs) for point in together([run(a, 0), run(a, 24)])] == [1, 1]
    # with changed files, or not known, it is never known to be the same
    assert len(together([run(a + "+", 0), run(a + "+", 0.1)])) == 2
    assert len(together([run("", 0), run("", 0.1)])) == 2
    assert len(together([run("", 0, "x"), run("", 5, "x"), run("", 6, "y")])) == 2


def test_what_was_mended_is_no_longer_so_and_fails_nothing() -> None:
    runs = [longer(run_of(n), 1.5 if 12 <= n < 24 else 1) for n in range(36)]
    found = trend(Gathered(runs))
    spans = [c for c in found.changes if found.series[c.series].name == "first to last task"]
    assert [(c.at, c.direction, c.still) for c in spans] == [
        (24, "faster", True),
        (12, "slower", False),
    ]
    assert fails(found, 0) == []
    text = markdown(found)
    assert "gone, now" in text


def test_a_change_at_the_same_commit_is_not_the_codes() -> None:
    runs = [
        longer(run_of(n, revision="c" * 40, software=f"dask {1 + n // 10}"), 1 + 0.3 * (n // 10))
        for n in range(20)
    ]
    found = trend(Gathered(runs))
    change = found.changes[0]
    assert "the same commit before and after" in change.range
    assert change.software == "dask 1 → dask 2"
    assert change.commits == []


def test_small_changes_are_not_told() -> None:
    runs = [longer(run_of(n), 1.1 if n >= 15 else 1) for n in range(30)]
    assert trend(Gathered(runs)).changes
    assert trend(Gathered(runs), relative=15).changes == []
    large = trend(Gathered(runs), absolute=5)  # which a median execution is not held to
    assert {large.series[change.series].measure for change in large.changes} == {"median"}


def test_times_of_failed_runs_do_not_count_but_their_failures_do() -> None:
    runs = [
        replace(longer(run_of(n), 0.1), partial=["its script ended with 1"], failures=7)
        if n >= 20
        else run_of(n)
        for n in range(40)
    ]
    found = trend(Gathered(runs))
    assert {found.series[change.series].measure for change in found.changes} == {"failures"}
    assert found.changes[0].direction == "more"
    assert any("do not count, such as run20" in note for note in found.notes)


def test_functions_that_take_little_are_left_out_and_said_to_be() -> None:
    functions = {"f": FunctionFigures(1, 10 * S, S), "tiny": FunctionFigures(1, S // 50, S // 50)}
    runs = [run_of(n, functions=functions) for n in range(12)]
    (configuration,) = configurations(runs)
    series, left_out = series_of(configuration, 0)
    assert {one.function for one in series} == {"", "f"}
    assert left_out == 1


def test_revisions_that_git_does_not_know_are_no_error(tmp_path: Path) -> None:
    assert commits_between([tmp_path, tmp_path / "none"], "a" * 40, "b" * 40) == []
    assert commits_between([tmp_path], "--output=x", "b" * 40) == []
    git(tmp_path, "init", "-q")
    assert commits_between([tmp_path], "a" * 40, "b" * 40) == []


def test_a_sparkline_shows_small_noise_small() -> None:
    assert set(sparkline([100, 101, 99, 100])) <= set("▃▄▅▆")
    assert sparkline([1, 2]) == "▁█"
    assert sparkline([]) == ""


# ---------------------------------------------------------------- traces, damaged and kept


def test_damaged_runs_are_named_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    runs = [write_run(folder, number, tmp_path / "job.py") for number in range(3)]
    (runs[0] / "trace.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    (runs[1] / "trace.h5").unlink()
    found = gather([folder])
    assert [point.name for point in found.points] == [runs[2].name]
    assert [sentence.partition(" ")[0] for sentence in found.skipped] == [
        runs[0].name,
        runs[1].name,
    ]
    answer = CliRunner().invoke(app, ["trend", str(folder)])
    assert answer.exit_code == 0
    assert "2026-01-01T00-00-00-job-0001 was left out" in " ".join(answer.output.split())
    assert "Cannot tell: 1 run, 1 point" in " ".join(answer.output.split())


def test_a_trace_is_read_once_until_it_is_another(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, tmp_path / "job.py", revision="a" * 40)
    trace = run / "trace.h5"
    (first,) = gather([run]).points
    assert (run / KEPT).stat().st_mode & 0o777 == 0o600
    times = trace.stat()
    trace.write_bytes(bytes(times.st_size))  # were it read, it would be damaged
    os.utime(trace, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert gather([run]).points == [first]
    os.utime(trace, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert gather([run]).points == []
    (run / KEPT).write_text("{")
    assert len(gather([run]).skipped) == 1


def test_runs_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        write_run(tmp_path / folder, 1, tmp_path / "job.py")
    found = gather([tmp_path / "one", tmp_path / "other"])
    assert len(found.points) == len(found.places) == 2


def test_a_trace_alone_is_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, tmp_path / "job.py")
    lone = tmp_path / "lone.h5"
    (run / "trace.h5").rename(lone)
    (point,) = gather([lone]).points
    assert (point.name, point.failures, sorted(point.functions)) == ("lone", 0, ["f", "g"])


def test_a_baseline_has_points_too(tmp_path: Path) -> None:
    from dasf_hpc.analysis.compare import measure
    from dasf_hpc.trace.open import open_trace

    measured = []
    for number in range(2):
        run = write_run(tmp_path / "runs", number, tmp_path / "job.py")
        with open_trace(run) as trace:
            measured.append(measure(trace, run.name))
    save_baseline(tmp_path / "head.json", measured)
    (configuration,) = configurations(gather([tmp_path / "head.json"]).points)
    (point,) = configuration.points  # repeats
    assert configuration.script == "job"
    assert [run.span for run in point.runs] == [one.duration for one in measured]
    # with the runs themselves they are there once, and of one configuration
    (both,) = configurations(gather([tmp_path]).points)
    assert sum(len(point.runs) for point in both.points) == 2


# ------------------------------------------------------------------------------- the history


def test_ci_keeps_what_a_trend_needs_when_traces_are_gone(
    planted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = planted
    history = tmp_path / HISTORY
    runs = sorted(folder.iterdir())
    for number in range(0, len(runs), 2):
        assert keep_history(runs[number : number + 2], history) == []
    found, of_traces = trend(gather([history])), trend(gather([folder]))
    assert [c.range for c in found.changes] == [c.range for c in of_traces.changes]
    assert [s.values for s in found.series] == [s.values for s in of_traces.series]
    text = history.read_text()
    assert "secret" not in text
    assert str(folder) not in text
    assert len(text) / len(runs) < 700
    missing = keep_history([tmp_path / "none"], history)
    assert len(missing) == 1
    assert "is not in the history" in missing[0]
    assert "cannot be written" in keep_history(runs[:1], tmp_path / "no" / HISTORY)[0]


def test_a_line_is_bounded_and_reads_as_it_was_written() -> None:
    functions = {f"{'f' * 100}{i}": FunctionFigures(i + 1, S * i, S) for i in range(500)}
    line = line_of(run_of(1, functions=functions, software="s" * 10000))
    assert len(line) <= LINE
    assert line.startswith(b"\n")
    assert line.endswith(b"\n")
    read = point_of(json.loads(line))
    assert f"{'f' * 100}499" in read.functions


@given(st.text(max_size=30), st.integers(-1, 2**60), st.lists(st.text(max_size=5), max_size=2))
def test_any_run_reads_as_it_was_written(name: str, span: int, partial: list[str]) -> None:
    name = name.encode("utf-8", "replace").decode()
    functions = {name: FunctionFigures(1, max(0, span), -1)}
    partial = [one.encode("utf-8", "replace").decode() for one in partial]
    run = RunPoint(name, 5.0, span=span, partial=partial, functions=functions)
    assert point_of(json.loads(line_of(run))) == run


def test_lines_that_are_damaged_cost_themselves_alone(tmp_path: Path) -> None:
    history = tmp_path / HISTORY
    add_to_history(history, [run_of(1)])
    with history.open("ab") as file:
        file.write(line_of(run_of(2))[:100])  # its writer died
    add_to_history(history, [run_of(3)])
    with history.open("ab") as file:
        file.write(b'[1]\n{"format": "other"}\n\xff\xfe\n')
        bad = json.loads(line_of(run_of(4)))
        for damage in ({"span": "x"}, {"functions": {"f": [1]}}, {"started": -5}, {"span": 1e300}):
            file.write(json.dumps(bad | damage).encode() + b"\n")
    points, skipped = read_history(history)
    assert points == [run_of(1), run_of(3)]
    assert len(skipped) == 8
    assert all("was left out" in sentence for sentence in skipped)
    (tmp_path / "other.jsonl").write_text("no history\n")
    with pytest.raises(BaselineError, match="no history of dasf-hpc"):
        read_history(tmp_path / "other.jsonl")


def test_a_folder_of_studies_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with pytest.raises(RunDirectoryError, match=r"no history\.jsonl\.$"):
        gather([tmp_path])
    (tmp_path / "study" / "study.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="It holds studies of scaling: give one"):
        gather([tmp_path])


def test_each_line_of_a_history_is_json(tmp_path: Path) -> None:
    history = tmp_path / HISTORY
    add_to_history(history, [run_of(1), run_of(2)])
    add_to_history(history, [run_of(3)])
    assert [json.loads(line)["name"] for line in history.open()] == [
        run_of(number).name for number in (1, 2, 3)
    ]


def _add(path: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        add_to_history(path, [run_of(number)])


def test_several_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    history = tmp_path / HISTORY
    writers = [
        multiprocessing.get_context("spawn").Process(
            target=_add, args=(history, range(100 * i, 100 * i + 100))
        )
        for i in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    points, skipped = read_history(history)
    assert skipped == []
    assert sorted(point.name for point in points) == sorted(f"run{n}" for n in range(300))


# ---------------------------------------------------------------------------------- the page


def test_the_page_links_reports_from_where_it_is(planted: tuple[Path, list[str]]) -> None:
    folder, _ = planted
    gathered = gather([folder])
    found = trend(gathered)
    place = gathered.places[found.changes[0].first_after]
    (place / "report.html").touch()
    found = trend(gather([folder]))
    text = page(found, folder.parent / "pages")
    assert f'href="../runs/{place.name}/report.html"' in text
    assert "secret" not in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.needs("browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_shows_runs_by_pointer_and_by_keys(
    planted: tuple[Path, list[str]], tmp_path: Path, browser: Any, theme: str
) -> None:
    folder, revisions = planted
    target = tmp_path / "trend.html"
    answer = CliRunner().invoke(app, ["trend", str(folder), "--html", str(target)])
    assert answer.exit_code == 0
    browser.set_window_size(1280, 900)
    open_page(browser, target, theme)
    do = browser.execute_script
    assert do("return document.querySelectorAll('.series .change.bad').length") == 5
    assert do("return document.querySelectorAll('#series-0 circle').length") == 17
    background = do("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
    # the pointer at the point after the change
    do(
        "const c = document.querySelector('#series-0 svg'), b = c.getBoundingClientRect();"
        "c.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientY: b.top + 20,"
        " clientX: b.left + b.width * (6 + 328 * 10.5 / 16) / 340}))"
    )
    card = wait_until(
        browser, "const c = document.getElementById('card'); return c.hidden ? '' : c.textContent"
    )
    assert revisions[10][:9] in card
    assert "1 more run" in card
    do("document.querySelector('#series-0 svg').dispatchEvent(new PointerEvent('pointerleave'))")
    assert do("return document.getElementById('card').hidden")
    # keys
    from selenium.webdriver.common.keys import Keys

    chart = browser.find_element("css selector", "#series-0 svg")
    chart.send_keys(Keys.HOME)
    assert revisions[0][:9] in do("return document.getElementById('card').textContent")
    chart.send_keys(Keys.ARROW_RIGHT)
    assert revisions[1][:9] in do("return document.getElementById('card').textContent")
    chart.send_keys(Keys.ESCAPE)
    assert do("return document.getElementById('card').hidden")
    wide = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wide)
    assert do("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    check_clean(browser)
