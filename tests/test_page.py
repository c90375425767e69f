"""The page tells at first sight what was slow; its tables are named, closed, and lead to places."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgpack
import numpy as np
import pytest
from exports import Export
from handmade import Made, Task, Worker, make_trace
from hypothesis import given
from hypothesis import strategies as st
from pages import forget_history, go_back, wait_until, window_of
from rich.console import Console

from dasf_hpc.analysis import ANALYSES, analyse
from dasf_hpc.analysis.answer import Answer, Finding, Severity
from dasf_hpc.analysis.executions import Span, read_executions, work_span
from dasf_hpc.analysis.where import GPU_PARTS, PART_WORDS, PARTS
from dasf_hpc.imports import Wishes, import_files
from dasf_hpc.manifest import Manifest
from dasf_hpc.show import report
from dasf_hpc.show.column_names import NO_WORKER, column_name
from dasf_hpc.show.first_screen import moments
from dasf_hpc.show.moments import around_work
from dasf_hpc.show.page_tables import NAME, SMALL, cut, view, whole_of
from dasf_hpc.show.places import Places, place_of_finding, place_of_row, places, stretches
from dasf_hpc.show.report import SECTIONS, write_report
from dasf_hpc.show.terminal import show_summary
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import write_trace
from dasf_hpc.trace.summary import Summary, summarise
from dasf_hpc.units import duration_text

MS = 1_000_000

#: Keys that would break a row, or a page.
LONG = f"('decode-{'0123456789abcdef' * 310}', 7)"
LINES = "('two\nlines-1', 0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two nodes: 60 tasks from 100 ms on, one that was retried, one that failed."""
    made = tmp_path_factory.mktemp("page")
    tasks = [
        Task(f"load-{i}", i % 2, (100 + 10 * i) * MS, (108 + 10 * i) * MS, needs=[LONG])
        for i in range(1, 57)
    ]
    tasks += [
        Task(LONG, 0, 100 * MS, 109 * MS, nbytes=5_000_000),
        Task(LINES, 1, 100 * MS, 105 * MS),
        Task("flaky-1", 0, 700 * MS, 710 * MS, state="error"),
        Task("flaky-1", 1, 720 * MS, 730 * MS),
        Task("bad-1", 0, 740 * MS, 900 * MS, state="error"),
    ]
    times = np.array([200, 300, 400, 500]) * MS
    samples = {
        "time": times,
        "node": np.array([0, 1, 0, 1], np.int32),
        "process": np.array([0, 1, 0, 1], np.int32),
        "memory": np.array([300, 100, 500, 900]) * 1_000_000,
    }
    workers = [Worker(0, memory_limit=10**9), Worker(1, memory_limit=2 * 10**9)]
    more = {"process_samples": samples}
    make_trace(made / "trace.h5", Made(tasks, workers, span=(0, 1000 * MS), more=more)).close()
    Manifest(made).update(name="2026-11-30T15-06-38-job-d24b", state="complete", job="/x/job.py")
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write_report(folder)


@pytest.fixture(scope="module")
def known(folder: Path) -> Places:
    with open_trace(folder) as trace:
        return places(trace)


@pytest.fixture(scope="module")
def import_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report of two GPUs without Dask."""
    made = tmp_path_factory.mktemp("import")
    with Export(made / "train.sqlite", "2023.4") as export:
        export.begun(utc=10**18)
        for gpu in range(2):
            export.gpu(gpu, f"GPU-{gpu}{gpu}-0")
            for i in range(50):
                start = (10 + 10 * i) * MS
                export.call(100, 100, start - MS, start, 100 * gpu + i + 1, "cudaLaunchKernel")
                export.kernel(
                    100,
                    start,
                    start + 5 * MS,
                    "gemm",
                    deviceId=gpu,
                    correlationId=100 * gpu + i + 1,
                )
        export.memcpy(100, 20 * MS + 3 * MS, 27 * MS, 1, 4096, deviceId=0)
        export.user_range(100, 100, 0, 400 * MS, "epoch")
    import_files([made / "train.sqlite"], made / "trace.h5", Wishes())
    return write_report(made / "trace.h5")


def _text(page: Path) -> str:
    """Give the page without what its timeline draws."""
    return re.sub(r'id="data">[^<]*<', ">", page.read_text())


def _section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found, name
    return found[0]


# ------------------------------------------------------------------------------- first screen


def test_the_bar_is_the_workers_time_from_first_to_last_task(page: Path, folder: Path) -> None:
    first = _section(_text(page), "first")
    shares = [
        float(share) for share in re.findall(r'class="part-\w+" style="width:([\d.]+)%', first)
    ]
    assert sum(shares) == pytest.approx(100, abs=0.01)
    assert "part-starting" not in first
    assert "part-stopping" not in first
    with open_trace(folder) as trace:
        runs = read_executions(trace)
        busy = runs.duration.sum() / (2 * work_span(trace, runs).duration)
    executing = re.search(r'class="part-executing" style="width:([\d.]+)%', first)
    assert executing
    assert float(executing[1]) == pytest.approx(100 * busy, abs=0.1)


def test_tiles_name_the_worker_nearest_its_limit_and_what_failed(page: Path) -> None:
    tiles = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", _section(_text(page), "first"))
    told = {name: re.sub("<[^>]*>", "", text) for name, text in tiles}
    assert told["Peak memory"] == "500 MB of 1 GB 50 % of the limit of node1 worker-0"
    assert told["Failures"] == "1 task of bad without a result 1 other retried with success"
    assert set(told) == {"Peak memory", "Failures"}  # clocks and completeness are well


def test_clocks_are_a_figure_only_where_their_error_is_large(tmp_path: Path) -> None:
    tasks = [Task(f"a-{i}", i % 2, i * MS, (i + 1) * MS) for i in range(10)]
    workers = [Worker(0), Worker(1)]
    for bound, told in ((MS // 100, False), (MS // 2, True), (-1, True)):
        made = tmp_path / str(bound)
        made.mkdir()
        make_trace(made / "trace.h5", Made(tasks, workers, bounds=(0, bound))).close()
        first = _section(_text(write_report(made)), "first")
        assert ("<dt>Clocks" in first) == told, bound


def test_what_is_wrong_with_a_run_is_said_first(tmp_path: Path) -> None:
    Manifest(tmp_path).update(name="x", state="failed", error="the script ended with <code> 1")
    made = Made([], [Worker(0)], span=(0, 10**9))
    make_trace(tmp_path / "trace.h5", made).close()
    text = _text(write_report(tmp_path))
    first = _section(text, "first")
    assert "the script ended with &lt;code&gt; 1" in first
    assert "No task reached the run" in first
    assert text.count("the script did not use them") == 1
    assert "nothing that costs" not in first
    make_trace(tmp_path / "good.h5", Made([Task("a-1", 0, 0, MS)])).close()
    assert "none" in _section(_text(write_report(tmp_path / "good.h5")), "first")


def test_the_page_and_the_terminal_tell_the_same_of_before_and_after(
    tmp_path: Path, folder: Path
) -> None:
    facts = {"started": 10**9 - 2.0, "job_started": 10**9, "job_ended": 10**9 + 1, "ended": 0}
    with open_trace(folder) as trace:
        trace.attributes.update({**trace.attributes, "origin_utc_ns": 10**18})
        summary = summarise(trace)
    told = around_work(facts, summary)
    assert told == [
        "run began 2.1 s before the first task",
        "script began 100 ms before",
        "script ended 100 ms after the last",
    ]
    assert around_work(facts | {"batch_jobs": ["1"]}, summary)[0].startswith("batch jobs submitted")
    assert moments(facts, summary)[1:] == told
    output = io.StringIO()
    show_summary(Console(file=output, width=200), summary, facts)
    assert ", ".join(told) in output.getvalue()
    # without such times the recording's begin and end count; without tasks there is nothing to say
    assert around_work({}, replace(summary, before=MS, after=2 * MS)) == [
        "recording began 1 ms before the first task",
        "recording ended 2 ms after the last",
    ]
    assert around_work(facts, replace(summary, work=-1)) == moments(facts, Summary()) == []


@pytest.mark.parametrize("saves", [[3, 1, 2], [-1, 5, 0]])
def test_findings_are_ranked_by_what_mending_them_saves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: list[int]
) -> None:
    def found(name: str, trace: Any) -> Answer:
        answer = analyse(name, trace)
        if name != "functions":
            return replace(answer, findings=[])
        findings = [
            Finding(Severity.WARNING, name, "functions", (0,), f"No {i}.", "Do.", saves=s * MS)
            for i, s in enumerate(saves)
        ]
        return replace(answer, findings=findings)

    monkeypatch.setattr(report, "analyse", found)
    text = _text(write_report(folder, tmp_path / "page.html"))
    order = sorted(range(3), key=lambda i: -max(saves[i], 0))
    for section in ("first", "findings"):
        told = [int(i) for i in re.findall(r"No (\d)\.", _section(text, section))]
        assert told == order
        shown = re.findall(r'class="saves">([^<]*)<', _section(text, section))
        assert shown == [f"up to {duration_text(saves[i] * MS)}" for i in order if saves[i] > 0]


# ------------------------------------------------------------------------------------- places


def _place(link: str) -> dict[str, str]:
    assert link.startswith("#")
    return dict(part.split("=") for part in link[1:].split("&"))


def test_a_finding_leads_to_its_time_worker_and_task(known: Places) -> None:
    def place(**more: Any) -> str:
        finding = Finding(Severity.NOTICE, "functions", "functions", (), "", "", **more)
        return place_of_finding(finding, known)

    assert place() == ""
    assert place(start=300 * MS, stop=400 * MS, process=1) == "#t=0.15,0.35&w=1"
    assert place(process=1) == "#t=0,0.8&w=1"
    task = int(np.flatnonzero(known.executions.start == 740 * MS)[0])
    begin, end = (t - known.span.start for t in (740 * MS, known.executions.stop[task]))
    shown = _place(place(task=task))
    first, last = (float(second) * 1e9 for second in shown["t"].split(","))
    assert shown["task"] == str(task)
    assert first <= begin
    assert end <= last
    # all of the run, where three times the task's length and the task are more than that
    assert last - first >= min(4 * (end - begin), known.span.duration) - 1e4
    # a task that lies beside what the finding is about is not picked
    assert "task" not in _place(place(start=300 * MS, stop=400 * MS, task=task))
    assert "task" in _place(place(start=300 * MS, stop=800 * MS, task=task))


@given(start=st.integers(0, 40 * 10**9), took=st.integers(0, 10**10))
def test_a_short_task_is_some_pixels_of_what_its_link_shows(
    known: Places, start: int, took: int
) -> None:
    executions = replace(known.executions, start=np.array([start]), stop=np.array([start + took]))
    changed = replace(known, executions=executions, span=Span(0, 43 * 10**9))
    row = {"task": 0, "start": start, "duration": took}
    first, last = (
        float(second) * 1e9 for second in _place(place_of_row(row, changed))["t"].split(",")
    )
    assert last - first >= min(4 * took, 43 * 10**9) - 2000
    assert last - first >= 20_000 - 2000
    if 1000 <= took < 10**9:  # of 1,000 pixels several
        assert took >= 0.009 * (last - first)


def test_a_finding_marks_what_it_is_about(known: Places) -> None:
    finding = Finding(Severity.NOTICE, "f", "f", (), "", "", start=300 * MS, stop=400 * MS)
    assert place_of_finding(finding, known, number=3) == "#t=0.15,0.35&m=0.2,0.3&i=3"
    assert place_of_finding(replace(finding, start=-1, stop=-1), known, number=3) == ""
    sentence = "For 0.3 s: 100 ms from 0.2 s, 0.2 s from 0.5 s; 9 s from 77 s, w0-1 from 0.1 s."
    found = stretches(sentence, known, 2)
    assert [(sentence[begin:end], place) for begin, end, place in found] == [
        ("100 ms from 0.2 s", "#t=0.15,0.35&m=0.2,0.3&i=2"),
        ("0.2 s from 0.5 s", "#t=0.4,0.8&m=0.5,0.7&i=2"),
    ]


def test_a_row_leads_to_its_task_or_to_its_worker_or_function(known: Places) -> None:
    assert place_of_row({"part": "executing", "time": 5}, known) == ""
    assert place_of_row({"worker": "worker-1", "busy": 5}, known) == "#t=0,0.8&w=1"
    assert place_of_row({"function": "load"}, known) == "#t=0,0.8&f=load"
    assert place_of_row({"function": "(script)"}, known) == ""
    row = {"task": 3, "worker": "worker-1", "function": "load"}
    executions = known.executions
    link = _place(place_of_row(row, known))
    assert (link["task"], link["w"]) == ("3", "1")
    first, last = (float(second) for second in link["t"].split(","))
    assert first <= (executions.start[3] - known.span.start) / 1e9 < last


@given(start=st.integers(0, 10**12), took=st.integers(0, 10**12), name=st.text(min_size=1))
def test_every_place_is_a_stretch_of_the_timeline(
    known: Places, start: int, took: int, name: str
) -> None:
    executions = replace(known.executions, functions=[*known.executions.functions, name])
    changed = replace(known, executions=executions)
    link = place_of_row({"start": start, "duration": took, "function": name}, changed)
    found = _place(link)
    first, last = (float(second) for second in found["t"].split(","))
    assert 0 <= first < last <= known.span.duration / 1e9
    assert unquote(found["f"]) == name
    assert re.fullmatch(r"[#\w.,=&%~-]+", link)


def test_rows_of_the_page_link_to_places(page: Path, known: Places) -> None:
    text = _text(page)
    rows = re.findall(r'<td><a href="(#t=[^"]*)">', _section(text, "functions"))
    assert len(rows) > 60
    for link in rows:
        assert place_of_row({}, known) == ""
        first, last = _place(html.unescape(link))["t"].split(",")
        assert 0 <= float(first) < float(last) <= 0.8


def test_every_link_within_the_page_leads_to_something(page: Path, import_page: Path) -> None:
    for one in (page, import_page):
        text = _text(one)
        names = set(re.findall(r'id="([^"]+)"', text))
        links = {html.unescape(link) for link in re.findall(r'href="#([^"]+)"', text)}
        assert {link for link in links if not link.startswith("t=")} <= names
        assert len(re.findall(r'id="([^"]+)"', text)) == len(names)  # none twice


# ------------------------------------------------------------------------------------- tables


def test_tables_are_named_for_readers_and_large_ones_are_closed(page: Path, folder: Path) -> None:
    text = _text(page)
    heads = re.findall(r'<th [^>]*><button[^>]*title="([^"]+)">([^<]+)<', text)
    assert {"Median", "Result size", "Took", "Task"} <= {title for _, title in heads}
    assert not [title for _, title in heads if "_" in title or title[:1].islower()]
    # what a column means can be read without a mouse, too
    meanings = re.findall(r"<dt>([^<]+)</dt><dd>", text)
    assert {title for _, title in heads} <= set(meanings)
    tables = r'<details class="data"( open)?>\s*<summary>([^<]*)<span class="note">([\d,]+)'
    for drawn in ("memory", "graph-section"):  # there a picture is seen first
        assert not any(opening for opening, _, _ in re.findall(tables, _section(text, drawn)))
        text = text.replace(_section(text, drawn), "")
    for opening, title, size in re.findall(tables, text):
        assert bool(opening) == (int(size.replace(",", "")) <= SMALL), title
    assert not re.search(r"<details open><summary>Evidence", text)


def test_every_table_of_a_section_is_one_that_its_analysis_has(folder: Path) -> None:
    with open_trace(folder) as trace:
        for section in SECTIONS:
            for name, kinds in section.parts:
                if name not in ANALYSES or name == "balance":
                    continue  # parts of analyses that are to come
                assert set(kinds) <= set(analyse(name, trace).tables), name


def test_tasks_are_named_by_their_keys_and_moments_from_the_first_task(folder: Path) -> None:
    with open_trace(folder) as trace:
        known = places(trace)
        answer = analyse("task_bottleneck", trace)
        shown = view(trace, answer, "tasks", known)
        path = view(trace, analyse("critical_path", trace), "path", known)
    heads = [head.name for head in shown.columns]
    assert heads[0] == "key"
    assert "task" not in heads
    names = {row[0].whole or row[0].text for row in shown.rows}
    assert {LONG, LINES, "bad-1", "load-5"} <= names
    starts = [row[[h.name for h in path.columns].index("start")].text for row in path.rows]
    assert starts[0] == "0.000 s"


def test_a_part_is_called_the_same_in_bar_legend_and_tables(page: Path, folder: Path) -> None:
    assert set(PART_WORDS) == set(PARTS) | set(GPU_PARTS)
    assert len(set(PART_WORDS.values())) == len(PART_WORDS)
    text = _text(page)
    for part in re.findall(r'<span class="part-(\w+)"', _section(text, "first")):
        word = PART_WORDS[part]
        first, split = _section(text, "first"), " ".join(_section(text, "split").split())
        assert f'title="{word}: ' in first
        meaning = f'<span class="meaning">{word} – {PARTS[part]}<'
        assert meaning in first.replace("&#39;", "'")
        assert f">{word}</td>" in split
        assert column_name("where", "workers", part).lower() == word
    body = text[text.index("<body>") :]
    assert not re.search(r">[^<]*nothing_submitted[^<]*<", body)


def test_what_is_no_node_is_named_and_its_empty_row_left_out(tmp_path: Path) -> None:
    tasks = [Task("a-1", 0, 0, 10 * MS), Task("b-1", 1, 20 * MS, 30 * MS, needs=["a-1"])]
    transfers = {
        "start": np.array([12, 32]) * MS,
        "stop": np.array([14, 34]) * MS,
        "process": np.array([1, 1], np.int32),
        "direction": ["incoming", "outgoing"],
        "peer_process": np.array([0, -1], np.int32),
        "nbytes": np.array([10**6, 10**3]),
        "keys": np.array([1, 1], np.int32),
    }
    made = Made(tasks, [Worker(0), Worker(1)], more={"transfers": transfers})
    make_trace(tmp_path / "trace.h5", made).close()
    found = _section(_text(write_report(tmp_path)), "communication")
    matrix = re.search(r'<table class="matrix">.*?</table>', found, re.DOTALL)
    assert matrix
    assert re.findall(r'<th scope="col">([^<]*)<', matrix[0])[-1] == NO_WORKER
    assert NO_WORKER not in re.findall(r'<th scope="row">([^<]*)<', matrix[0])
    assert f">{NO_WORKER}</td>" in found
    assert ">?<" not in found


@given(st.text(), st.integers(8, 60))
def test_a_name_is_one_line_of_its_length_at_most(text: str, longest: int) -> None:
    shown = cut(text, longest)
    assert len(shown) <= max(longest, 0)
    assert shown.isprintable()
    if shown != text:
        assert whole_of(text, longest) == text
    else:
        assert whole_of(text, longest) == ""


def test_a_long_key_is_cut_in_its_middle() -> None:
    shown = cut(LONG)
    assert len(shown) == NAME
    assert shown.startswith("('decode-0123")
    assert shown.endswith("f', 7)")


# ----------------------------------------------------------- what is not there, and who it is


def test_what_is_not_recorded_is_a_closed_list_and_no_section(page: Path) -> None:
    text = _text(page)
    block = re.search(r'<details id="not-recorded">.*?</details>', text, re.DOTALL)
    assert block
    head, *told = re.findall(r"<(?:summary|li)>(.*?)</(?:summary|li)>", block[0])
    assert head.startswith("No GPU was used or recorded.")
    assert f": {len(told)}<" in head
    assert any("GPU metrics" in line for line in told)
    reasons = [line.partition(", because ")[2] for line in told]
    assert all(reasons)
    assert len(reasons) == len(set(reasons))
    assert "gpus" not in re.findall(r'<section id="(\w+)"', text)
    nav = re.search(r"<nav.*?</nav>", text, re.DOTALL)
    assert nav
    sections = set(re.findall(r'<section id="(\w+)"', text)) - {"first", "timeline"}
    assert set(re.findall(r'href="#(\w+)"', nav[0])) == sections


def test_a_run_is_called_by_its_job_and_an_import_by_its_files(
    page: Path, import_page: Path, tmp_path: Path
) -> None:
    title = re.compile(r"<h1>(.*?)</h1>")
    assert title.findall(_text(page)) == ["job.py"]
    assert "2026-11-30T15-06-38-job-d24b" in _section(_text(page), "run")
    assert title.findall(_text(import_page)) == ["train.sqlite"]
    files = [tmp_path / f"TracePlugin-node{n}.msgpack" for n in range(3)]
    for n, file in enumerate(files):
        args = {"key": f"a-{n}", "dependencies": []}
        event = {"name": "Compute", "timestamp": 2.0 + n, "duration": 1.0, "args": args}
        packed = msgpack.packb(event | {"process_id": f"node{n}", "thread_id": "worker-0"})
        file.write_bytes(len(packed).to_bytes(8, "big") + packed)
    import_files(files, tmp_path / "trace.h5", Wishes())
    told = title.findall(_text(write_report(tmp_path / "trace.h5")))
    assert told == ["TracePlugin-node0.msgpack and 2 more"]
    make_trace(tmp_path / "mine.h5", Made([Task("a-1", 0, 0, MS)])).close()
    assert title.findall(_text(write_report(tmp_path / "mine.h5"))) == ["mine.h5"]


def test_more_gpus_than_have_bars_are_counted(tmp_path: Path) -> None:
    count, second = 12, 10**9
    numbers = np.arange(count, dtype=np.int32)
    kernels: dict[str, Any] = {
        "gpu": numbers.astype(np.int16),
        "start": np.zeros(count, np.int64),
        "stop": (numbers + 1) * (second // count),
        "name": ["k"] * count,
        "short_name": ["k"] * count,
    }
    gpus = {"node": np.zeros(count, np.int32), "index": numbers}
    write_trace(
        tmp_path / "trace.h5",
        {
            "nodes": {"hostname": ["n"]},
            "gpus": gpus,
            "kernels": kernels,
            "processes": {"start": np.array([0]), "stop": np.array([second])},
        },
    )
    text = write_report(tmp_path).read_text()
    assert (
        "12 GPUs were busy for 54 % of 1 s in the mean: n GPU 0 for 8.3 %, n GPU 11 for 100 %."
        in text
    )
    assert re.findall('class="bar-name">n GPU ([0-9]+)<', text) == [str(n) for n in range(8)]
    assert "4 more GPUs are left out" in text


def test_where_there_are_no_tasks_gpus_come_first(import_page: Path) -> None:
    text = _text(import_page)
    first = _section(text, "first")
    # 50 kernels of 5 ms from 10 ms to 505 ms, and 2 ms of a copy beside one of them
    with open_trace(import_page.parent / "trace.h5") as trace:
        whole = work_span(trace, read_executions(trace)).duration
    busy = 100 * 252 * MS / whole, 100 * 250 * MS / whole
    assert "2 GPUs were busy for" in first
    bars = re.findall(r'class="part-idle" style="width:([\d.]+)%', first)
    assert [100 - float(share) for share in bars] == pytest.approx(busy, abs=0.01)
    assert "node7 GPU 0 (H100, " in first
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections.index("gpus") < sections.index("functions")
    assert not {"split", "path"} & set(sections)
    assert "No task was executed" not in text
    heads = re.findall(r"<th [^>]*><button[^>]*>([^<]+)<", text)
    assert "Kernel" in heads
    assert "Function" not in heads


# ---------------------------------------------------------------------------------- browser


@pytest.fixture
def opened(browser: Any) -> Any:
    """Give a function that opens a page in a window of a size and a theme."""
    wishes = {"prefers-reduced-motion": "reduce"}

    def show(page: Path, width: int = 1280, height: int = 720, theme: str = "light") -> Any:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [
            {"name": name, "value": value}
            for name, value in (wishes | {"prefers-color-scheme": theme}).items()
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(page.as_uri())
        wait_until(browser, "return document.body.dataset.ready")
        forget_history(browser)
        return browser

    yield show
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _press(browser: Any, key: str) -> None:
    codes = {"Tab": 9, "Enter": 13}
    for kind in ("keyDown", "keyUp"):
        event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        if key == "Enter" and kind == "keyDown":
            event["text"] = "\r"
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)


@pytest.mark.needs("browser")
@pytest.mark.parametrize("kind", ["page", "import_page"])
def test_the_timeline_begins_above_the_fold(
    opened: Callable[..., Any], kind: str, request: pytest.FixtureRequest
) -> None:
    browser = opened(request.getfixturevalue(kind))
    top = "return document.querySelector('#timeline canvas').getBoundingClientRect().top"
    assert browser.execute_script(top) < 720
    assert browser.get_log("browser") == []


@pytest.mark.needs("browser")
def test_the_keyboard_is_at_the_timeline_within_three_tabs(
    opened: Callable[..., Any], page: Path
) -> None:
    browser = opened(page)
    _press(browser, "Tab")
    active = browser.switch_to.active_element
    assert active.text == "Skip to the timeline"
    assert active.rect["y"] >= 0  # it can be seen while it has the keyboard
    _press(browser, "Enter")
    where = "const a = document.activeElement; return a.tagName + ' ' + a.closest('section')?.id"
    presses = 0
    while browser.execute_script(where) != "CANVAS timeline":
        presses += 1
        assert presses <= 2, browser.execute_script(where)
        _press(browser, "Tab")


@pytest.mark.needs("browser")
@pytest.mark.parametrize("kind", ["page", "import_page"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_off_the_page_even_when_all_is_open(
    opened: Callable[..., Any], kind: str, width: int, request: pytest.FixtureRequest
) -> None:
    browser = opened(request.getfixturevalue(kind), width, 740)
    needs = "return document.documentElement.scrollWidth"
    assert browser.execute_script(needs) <= width
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.execute_script(needs) <= width


@pytest.mark.needs("browser")
def test_a_row_of_a_long_key_is_as_high_as_any_other(
    opened: Callable[..., Any], page: Path
) -> None:
    browser = opened(page)
    heights = browser.execute_script(
        """document.querySelectorAll('details.data').forEach(d => { d.open = true; });
        return [...document.querySelectorAll('#functions tbody tr')]
            .filter(row => row.offsetHeight).map(row => row.offsetHeight);"""
    )
    assert len(heights) > 10
    assert max(heights) <= 1.5 * min(heights)
    whole = browser.execute_script(
        """const one = [...document.querySelectorAll('#functions .whole')]
            .find(d => d.textContent.includes('decode-'));
        one.open = true;
        return one.querySelector('code').textContent;"""
    )
    assert whole == LONG


#: Text whose contrast with what lies behind it is too little: below 4.5, or 3 where it is large.
CONTRAST = """
const parse = text => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a];
};
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
document.querySelectorAll('details').forEach(d => { d.open = true; });
const bad = [];
for (const one of document.querySelectorAll('body *')) {
  if (one.closest('canvas, script, .skip') || !one.offsetParent) continue;
  if (![...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  let behind = [255, 255, 255], layers = [], pattern = false;
  for (let at = one; at; at = at.parentElement) {
    const style = getComputedStyle(at), paint = parse(style.backgroundColor);
    if (style.backgroundImage !== 'none') pattern = true;
    layers.unshift(paint);
    if (paint[3] === 1) break;
  }
  if (pattern) continue;  // black on light stripes
  for (const [r, g, b, a] of layers) behind = behind.map((c, i) => c * (1 - a) + [r, g, b][i] * a);
  const style = getComputedStyle(one), ink = parse(style.color);
  const [low, high] = [light(ink), light(behind)].sort((a, b) => a - b);
  const large = parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700
    || parseFloat(style.fontSize) >= 24;
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < (large ? 3 : 4.5)) bad.push([ratio, one.className, one.textContent.slice(0, 40)]);
}
return bad;
"""


@pytest.mark.needs("browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_against_what_is_behind_it(
    opened: Callable[..., Any], page: Path, theme: str
) -> None:
    assert opened(page, theme=theme).execute_script(CONTRAST) == []


@pytest.mark.needs("browser")
def test_headings_stand_in_order(opened: Callable[..., Any], page: Path) -> None:
    levels = opened(page).execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.needs("browser")
def test_a_link_opens_what_it_leads_to(opened: Callable[..., Any], page: Path) -> None:
    browser = opened(page)
    number = browser.execute_script(
        "return document.querySelector('.finding details').closest('.finding').id"
    )
    browser.execute_script("location.hash = arguments[0]", f"#{number}")
    is_open = "return document.getElementById(arguments[0]).querySelector('details').open"
    wait_until(browser, is_open, number)
    # from a row to its place: that is seen, and has the keyboard
    browser.execute_script(
        """document.querySelectorAll('details.data').forEach(d => { d.open = true; });
        document.querySelector('#functions td a').click();"""
    )
    wait_until(
        browser,
        """const {top} = document.getElementById('timeline').getBoundingClientRect();
        return top >= -1 && top < 200 && document.activeElement.tagName === 'CANVAS'""",
    )
    assert browser.get_log("browser") == []


#: What a reader sees of the timeline, and where in the page.
SEEN = """const l = document.getElementById('chart').timeline;
const shown = document.getElementById('shown');
return {view: [l.view.from / 1e6, l.view.to / 1e6], mark: l.mark && l.mark.map(t => t / 1e6),
  shown: shown.hidden ? '' : shown.textContent, scroll: Math.round(scrollY), picked: l.picked,
  said: document.getElementById('picked').textContent, alone: l.ranks[l.filter.fn] || ''};"""


@pytest.fixture(scope="module")
def found_page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one finding, which tells of two stretches of time."""

    def found(name: str, trace: Any) -> Answer:
        answer = analyse(name, trace)
        if name != "functions":
            return replace(answer, findings=[])
        sentence = "No thread had work: 100 ms from 0.2 s, 50 ms from 0.4 s."
        told = Finding(
            Severity.SERIOUS, name, "functions", (0,), sentence, "Do.", 50 * MS, 300 * MS, 400 * MS
        )
        return replace(answer, findings=[replace(told, cause="script submitted nothing")])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "analyse", found)
        return write_report(folder, tmp_path_factory.mktemp("found") / "page.html")


@pytest.mark.needs("browser")
def test_a_finding_is_marked_in_the_timeline_and_one_comes_back(
    opened: Callable[..., Any], found_page: Path
) -> None:
    browser = opened(found_page)

    def seen() -> dict[str, Any]:
        return dict(browser.execute_script(SEEN))

    picture = "return document.getElementById('chart').toDataURL()"
    browser.execute_script(
        """document.getElementById('chart').timeline.doing.in();
        document.getElementById('findings').scrollIntoView();"""
    )
    before = seen()
    assert before["scroll"] > 100
    assert before["shown"] == ""
    browser.execute_script("document.querySelector('#findings .links a').click()")
    wait_until(browser, "return !document.getElementById('shown').hidden")
    there = seen()
    assert there["shown"].startswith("Shown: script submitted nothing, up to 50 ms")
    assert there["mark"] == pytest.approx([0.2, 0.3])
    assert there["view"] == pytest.approx([0.15, 0.35])
    assert there["scroll"] < before["scroll"]
    marked = browser.execute_script(picture)
    browser.execute_script(
        "const l = document.getElementById('chart').timeline; l.mark = null; l.draw()"
    )
    assert browser.execute_script(picture) != marked
    # zooming is no step of its own: one step back is where the link was
    for _ in range(2):
        browser.execute_script("document.querySelector('[data-do=in]').click()")
    wait_until(
        browser, "return location.hash.includes('i=1') && !location.hash.includes('t=0.15,')"
    )
    go_back(browser)
    wait_until(browser, "return document.getElementById('shown').hidden")
    wait_until(browser, "return Math.abs(scrollY - arguments[0]) < 3", before["scroll"])
    assert seen() == before
    # each stretch that the sentence tells of has its own place, and leads back to the finding
    browser.execute_script("document.querySelectorAll('#first .what a')[1].click()")
    wait_until(browser, "return !document.getElementById('shown').hidden")
    assert seen()["mark"] == pytest.approx([0.4, 0.45])
    browser.execute_script("document.querySelector('#shown a').click()")
    wait_until(
        browser,
        """const {top} = document.getElementById('finding-1').getBoundingClientRect();
        return location.hash === '#finding-1' && top > -5 && top < innerHeight;""",
    )
    go_back(browser)
    wait_until(browser, "return location.hash.startsWith('#t=')")
    assert seen()["mark"] == pytest.approx([0.4, 0.45])
    go_back(browser)
    wait_until(browser, "return document.getElementById('shown').hidden")
    assert seen()["view"] == pytest.approx(before["view"])
    assert browser.get_log("browser") == []


@pytest.mark.needs("browser")
def test_a_link_to_a_function_lets_go_of_the_task_before(
    opened: Callable[..., Any], page: Path
) -> None:
    browser = opened(page)
    browser.execute_script("location.hash = arguments[0]", "#t=0,0.8&task=3")
    wait_until(browser, "return document.getElementById('chart').timeline.picked >= 0")
    assert "took" in browser.execute_script(SEEN)["said"]
    browser.execute_script("location.hash = arguments[0]", "#t=0,0.8&f=load")
    wait_until(browser, "return document.getElementById('chart').timeline.picked < 0")
    seen = browser.execute_script(SEEN)
    assert seen["alone"] == "load"
    assert seen["said"] == "load: shown alone · 56 executions"


@pytest.mark.needs("browser")
def test_what_is_told_of_a_task_is_on_the_screen_and_slash_searches_from_anywhere(
    opened: Callable[..., Any], page: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = opened(page, height=420)
    browser.find_element("tag name", "body").send_keys("/")
    search = browser.switch_to.active_element
    assert search.get_attribute("id") == "search"
    search.send_keys("load-5" + Keys.ENTER)
    # the one of exactly this key comes before load-50 to load-56, though these are more
    assert "8 of 61 executions" in browser.find_element("id", "found").text
    assert "1 of exactly this name" in browser.find_element("id", "found").text
    assert "key load-5 " in browser.execute_script(SEEN)["said"]
    bottom = "return document.getElementById('picked').getBoundingClientRect().bottom"
    assert browser.execute_script(bottom) <= 420
    assert window_of(browser)


@pytest.mark.needs("browser")
def test_meanings_of_parts_are_shown_to_the_keyboard(
    opened: Callable[..., Any], page: Path
) -> None:
    shown = opened(page, 360).execute_script(
        """return [...document.querySelectorAll('#first .parts li')].map(one => {
          const told = one.querySelector('.meaning'), before = told.offsetHeight;
          one.focus();
          const box = told.getBoundingClientRect();
          return [before, box.height > 0 && box.left >= 0 && box.right <= 360];
        });"""
    )
    assert len(shown) > 1
    assert all(one == [0, True] for one in shown)


@pytest.mark.needs("browser")
@pytest.mark.parametrize("width", [360, 1280])
def test_shares_stand_where_they_have_room(
    opened: Callable[..., Any], page: Path, width: int
) -> None:
    cut, whole = opened(page, width).execute_script(
        """const shown = [...document.querySelectorAll('.bar b')].filter(one => one.offsetWidth);
        const over = one => one.offsetWidth > one.parentElement.clientWidth;
        return [shown.filter(over).length, shown.filter(one => !over(one)).length];"""
    )
    assert cut == 0
    assert whole > 0


@pytest.mark.needs("browser")
def test_a_table_that_goes_on_says_so(opened: Callable[..., Any], page: Path) -> None:
    browser = opened(page, 700)
    look = """document.querySelectorAll('#functions details.data').forEach(d => { d.open = true; });
        return [...document.querySelectorAll('#functions .scroll')].map(one => [
          one.scrollWidth - one.clientWidth > 2, one.previousElementSibling.offsetHeight > 0,
          one.classList.contains('goes-on')]);"""
    wait_until(browser, "return document.querySelector('.more-columns')")
    browser.execute_script(look)
    # a table that was open from the first has its say before those that are opened now
    browser.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));"
    )
    wait_until(browser, "return document.querySelector('#functions .goes-on')")
    found = browser.execute_script(look)
    assert any(wide for wide, _, _ in found)
    assert all(wide == told == goes for wide, told, goes in found)
    browser.execute_script(
        "const one = document.querySelector('#functions .goes-on'); one.scrollLeft = 1e5;"
    )
    wait_until(browser, "return document.querySelector('#functions .more-columns.at-end')")


@pytest.mark.needs("browser")
def test_paper_shows_the_tables_and_no_controls(opened: Callable[..., Any], page: Path) -> None:
    browser = opened(page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        seen = browser.execute_script(
            """dispatchEvent(new Event('beforeprint'));
            const shown = css => [...document.querySelectorAll(css)].some(one => one.offsetHeight);
            return [shown('.data table'), shown('#theme, nav, .meanings, .unfold')];"""
        )
    finally:
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert seen == [True, False]
    closed = "return document.querySelectorAll('.finding details[open]').length"
    assert browser.execute_script(closed) == 0
