"""What shows itself in a notebook, and ``%%record`` in a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pandas as pd
import pytest
from handmade import Made, Task, Worker, make_trace
from readme import readme_block
from synthetic import write_run

import dasf_hpc
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.answer import Answer, Finding, Severity
from dasf_hpc.analysis.headline import headline
from dasf_hpc.errors import PartialRecording
from dasf_hpc.run import RunResult
from dasf_hpc.show.notebook import ASKED, FINDINGS, LABEL, ROWS, WIDTH, run_html, timeline_svg
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.summary import Summary, summarise

EVIL = "<script>alert('x')</script>&\""


class Balanced(HTMLParser):
    """Checks that tags nest, and gathers text, tags and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attributes if name in ("href", "src")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in ("br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("br", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two nodes."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "journals", nodes=2, workers=2, tasks=400, failing=0.02)
    merge_journals(folder / "journals").write(folder / "trace.h5")
    return folder


def test_a_trace_says_what_it_holds(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        tasks = trace.rows("tasks")
        assert repr(trace).startswith(f"<Trace {run_folder / 'trace.h5'}: {tasks:,} tasks, ")
        page = Balanced(trace._repr_html_())
        for name in trace.tables:
            assert name in page.text
        assert f"{tasks:,}" in page.text
    assert repr(trace).endswith(", closed>")
    assert "closed" in Balanced(trace._repr_html_()).text


def test_an_answer_shows_findings_and_tables_and_no_foreign_markup() -> None:
    finding = Finding(Severity.SERIOUS, "where", "one", (0,), EVIL, EVIL)
    table = pd.DataFrame({"name": [EVIL, None], "time": [1234567, 5]})
    columns = {"one": {"name": ("", EVIL), "time": ("ns", "how long")}}
    answer = Answer("where", {"one": table}, columns, [finding], [EVIL])
    assert repr(answer) == "<Answer where: 1 finding; one (2 rows)>"
    page = Balanced(answer._repr_html_())
    assert page.text.count(EVIL) == 4
    assert "1,234,567" in page.text
    assert "script" not in page.tags
    none = Answer("gpu", {"gpus": table.head(0)}, {"gpus": columns["one"]}, [], ["no GPU"])
    assert repr(none) == "<Answer gpu: could not look; gpus (0 rows)>"


def test_every_analysis_shows_itself(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        for name in dasf_hpc.analysis.ANALYSES:
            answer = analyse(name, trace)
            text = Balanced(answer._repr_html_()).text
            for finding in answer.findings:
                assert finding.sentence in text
            assert len(repr(answer)) < 300


def test_a_run_shows_findings_timeline_and_links_and_asks_no_network(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_folder / "report.html").touch()
    monkeypatch.chdir(run_folder.parent)
    with open_trace(run_folder) as trace:
        summary = summarise(trace)
        page = Balanced(run_html(run_folder, trace, summary, [EVIL]))
        found = headline(trace, {name: analyse(name, trace) for name in ASKED}).findings
    assert f"{sum(summary.tasks.values()):,} tasks" in page.text
    assert "on 4 workers of 2 nodes" in page.text
    shown = [finding for finding in found if finding.sentence in page.text]
    assert shown == found[: len(shown)]  # the costliest
    assert len(shown) >= min(1, len(found))
    assert EVIL in page.text
    assert page.tags.count("svg") == 1
    assert "script" not in page.tags
    assert page.addresses == [f"{run_folder.name}/report.html", f"{run_folder.name}/trace.h5"]
    monkeypatch.chdir("/")
    other = Path("/proc")  # from a folder that the run is not below
    monkeypatch.chdir(other)
    with open_trace(run_folder) as trace:
        page = Balanced(run_html(run_folder, trace, summary))
    assert page.addresses[0] == (run_folder / "report.html").as_uri()


def test_the_timeline_shows_who_was_busy_when(tmp_path: Path) -> None:
    ms = 1_000_000
    tasks = [Task("a-1", 0, 0, 50 * ms), Task(f"x{EVIL}-2", 1, 50 * ms, 100 * ms)]
    workers = [Worker(stop=100 * ms), Worker(stop=100 * ms)]
    trace = make_trace(tmp_path / "trace.h5", Made(tasks, workers, span=(0, 100 * ms)))
    svg = timeline_svg(trace)
    assert f"x{EVIL}" in Balanced(svg).text
    rects = [
        {name: float(value) for name, value in re.findall(r' (x|y|width)="([\d.]+)"', rect)}
        for rect in re.findall(r"<rect[^>]*>", svg)
    ]
    half = (WIDTH - LABEL) / 2
    by_row = {y: [r for r in rects if r["y"] == y] for y in sorted({r["y"] for r in rects})}
    assert len(by_row) == 2
    first, second = by_row.values()
    assert sum(r["width"] for r in first) == pytest.approx(half, abs=3)
    assert sum(r["width"] for r in second) == pytest.approx(half, abs=3)
    assert min(r["x"] for r in first) == pytest.approx(LABEL, abs=3)
    assert min(r["x"] for r in second) == pytest.approx(LABEL + half, abs=3)


def test_the_timeline_of_many_workers_is_short(tmp_path: Path) -> None:
    tasks = [Task(f"a-{i}", i, i, 10**9 + i) for i in range(100)]
    trace = make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(stop=2 * 10**9)] * 100))
    svg = timeline_svg(trace)
    assert f"and {100 - ROWS} more workers" in Balanced(svg).text
    assert len(svg) < 20_000


def test_the_result_of_submit_shows_itself(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        summary = summarise(trace)
    result = RunResult(run_folder, 0, summary)
    assert repr(result).startswith(f"<RunResult {run_folder}: ")
    assert repr(result).endswith(", exit code 0>")
    assert "svg" in Balanced(result._repr_html_()).tags
    partial = RunResult(run_folder, 80, summary, PartialRecording("it is <partial>"))
    assert "exit code 80, it is <partial>" in repr(partial)
    assert "it is <partial>" in Balanced(partial._repr_html_()).text
    gone = RunResult(run_folder / "gone", 0, Summary())
    assert "no trace" in Balanced(gone._repr_html_()).text


def test_dir_shows_what_there_is() -> None:
    shown = dir(dasf_hpc)
    assert {"record", "submit", "open_trace", "WorkerTaskPlugin", "RecordWarning"} <= set(shown)
    assert [name for name in shown if not name.startswith("__")] == sorted(dasf_hpc.__all__)
    for name in dasf_hpc.__all__:
        assert getattr(dasf_hpc, name).__doc__


def test_ipython_is_not_needed_but_for_its_extension() -> None:
    program = (
        "import sys\n"
        "sys.modules['IPython'] = None\n"
        "import dasf_hpc\n"
        "for name in dasf_hpc.__all__: getattr(dasf_hpc, name)\n"
        "import dasf_hpc.show.notebook\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ------------------------------------------------------------------------------ real notebooks


def run_cells(folder: Path, *cells: str, errors: bool = False) -> list[list[Any]]:
    """Run cells in a kernel of their own and give the outputs of each."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    kernel = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", allow_errors=errors,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    kernel.execute()
    return [cell.outputs for cell in notebook.cells]


SETUP = """
%load_ext dasf_hpc
from distributed import Client
client = Client(n_workers=1, threads_per_worker=2, dashboard_address=":0")
def inc(x):
    return x + 1
"""


def html_of(outputs: list[Any]) -> str:
    """Give the one piece of HTML of a cell's outputs."""
    (html,) = (o.data["text/html"] for o in outputs if "text/html" in o.get("data", {}))
    return str(html)


def test_the_magic_records_a_cell_and_shows_it(tmp_path: Path) -> None:
    outputs = run_cells(
        tmp_path,
        SETUP,
        "%%record\n"
        "futures = client.map(inc, range(30), pure=False)\n"
        "total = sum(client.gather(futures))\n"
        "print('within')\n"
        "total",
        "print(total, len(run.trace.tasks), run.directory.parent.name)\n"
        "print(sorted(run.trace.tasks['key']) == sorted(f.key for f in futures))",
        "%%record other --client mine --run second --no-report\n42",
        "mine = client\n",
        "%%record other --client mine --run second --no-report\n"
        "sum(client.gather(client.map(inc, range(5), pure=False)));",
        "print(len(second.trace.tasks), second.directory.parent.name, second.report)",
        "%%record --no-report\nclient.submit(inc, 1, pure=False).result()\n1 / 0",
        "print(len(run.trace.tasks))\nclient.close()",
        errors=True,
    )
    first = outputs[1]
    assert first[0]["text"] == "within\n"
    results = [o for o in first if o.output_type == "execute_result"]
    assert next(o.data["text/plain"] for o in results) == "465"
    page = Balanced(html_of(first))
    assert "30 tasks on 1 worker of 1 node" in page.text
    assert "svg" in page.tags
    address = page.addresses[0]
    assert (tmp_path / address).is_file()
    assert address.endswith("report.html")
    assert outputs[2][0]["text"].startswith("465 30 runs\nTrue")
    assert "--client mine: there is no such variable" in str(outputs[3])
    html_of(outputs[5])
    assert outputs[6][0]["text"] == "5 other None\n"
    (error,) = (o for o in outputs[7] if o.output_type == "error")
    assert error["ename"] == "ZeroDivisionError"
    assert outputs[8][0]["text"].startswith("1\n")


def test_the_readmes_with_line_runs_as_it_stands(tmp_path: Path) -> None:
    text = readme_block("record")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=os.environ | {"COLUMNS": "200"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = re.search(r"<RecordedRun (.*): (\d+) tasks on .*>", done.stdout)
    assert said is not None, done.stdout
    with Trace(Path(said[1]) / "trace.h5") as trace:
        assert len(trace.tasks) == int(said[2]) > 1
    assert (Path(said[1]) / "report.html").is_file()
    ((*_, shown),) = run_cells(tmp_path, text.replace("print(run)", "run"))
    assert "tasks on" in Balanced(html_of([shown])).text


def test_many_findings_are_cut_short(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Finding(Severity.NOTICE, "where", "t", (), f"number {n}", "") for n in range(9)]
    answer = Answer("where", {"t": pd.DataFrame({"a": [1]})}, {"t": {"a": ("", "")}}, many)
    monkeypatch.setattr("dasf_hpc.show.notebook.ASKED", ("where",))
    monkeypatch.setattr("dasf_hpc.show.notebook.analyse", lambda name, trace: answer)
    with open_trace(run_folder) as trace:
        text = Balanced(run_html(run_folder, trace, summarise(trace))).text
    assert text.count("number ") == FINDINGS
    assert f"{9 - FINDINGS} more in the report" in text
