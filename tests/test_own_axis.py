"""Times that cannot be placed on the trace's stay on their report's own axis, and that is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from exports import Export
from perfetto_file import track_names, whole
from synthetic import BEGIN, PlainWorker, write_workers

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.cli import main
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.attribute import SENTENCES, Reason
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.outcome import merge_run
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.trace.own_axis import SENTENCE
from dasf_hpc.trace.summary import summarise

MS = 1_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")
APART = "old.sqlite, on an axis of its own"


def old(path: Path, kernels: int = 3, at: int = 0, **more: Any) -> Path:
    """Write an export of 2020, which says neither host nor UTC."""
    with Export(path, "2020.3") as report:
        report.gpu(0, "", name="Tesla V100")
        for n in range(kernels):
            begin = at + (10 * n + 5) * MS
            report.kernel(600, begin, begin + 2 * MS, "old", correlationId=n, **more)
    return path


def new(path: Path, start: int = 0) -> Path:
    with Export(path, "2025.1") as report:
        report.begun(utc=UTC + start)
        report.gpu(0, "GPU-1")
        report.kernel(700, 50 * MS, 53 * MS, "new", correlationId=1)
    return path


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Give a trace of a report with UTC and of one without."""
    paths = [old(tmp_path / "old.sqlite"), new(tmp_path / "new.sqlite")]
    done = import_files(paths, tmp_path / "trace.h5", NO_NSYS)
    assert {entry.file: entry.sentence for entry in done.reports} == {
        "new.sqlite": "",
        "old.sqlite": SENTENCE,
    }
    return tmp_path / "trace.h5"


def test_durations_are_right_and_the_trace_says_what_is_not_placed(both: Path) -> None:
    with open_trace(both) as trace:
        kernels = trace.kernels
        assert kernels["start"].tolist() == [5 * MS, 15 * MS, 25 * MS, 50 * MS]
        assert (kernels["stop"] - kernels["start"]).tolist() == [2 * MS] * 3 + [3 * MS]
        sources = dict(zip(trace.reports["file"], trace.reports["correction_source"], strict=True))
        assert sources == {"new.sqlite": "reference", "old.sqlite": "own axis"}
        row = trace.reports["file"].tolist().index("old.sqlite")
        assert trace.gpus["own_axis"].tolist() == [NONE, row]
        assert trace.gpus["busy"].tolist() == [3 * MS, 6 * MS]
        assert trace.task_gpu["share"].sum() == 9 * MS
        summary = summarise(trace)
        assert summary.own_axis == ["old.sqlite"]
        assert summary.gpu is not None
        assert summary.gpu.busy == 9 * MS


def test_analyses_find_what_is_there(both: Path) -> None:
    with open_trace(both) as trace:
        tables = analyse("gpu", trace).tables
        of = tables["gpus"].set_index("gpu")
        apart = next(name for name in of.index if "own axis of old.sqlite" in name)
        assert of["kernels"].tolist() == [1, 3]
        assert of.loc[apart, "kernel_time"] == 6 * MS
        # from 5 to 27 ms
        assert of.loc[apart, "busy_share"] == pytest.approx(100 * 6 / 22)
        kernels = tables["kernels"].set_index("kernel")
        assert [*kernels.loc["old"][["count", "total", "max"]]] == [3, 6 * MS, 2 * MS]
        where = analyse("where", trace)
        assert not any("old.sqlite" in str(gpu) for gpu in where.tables["gpus"]["gpu"])


def tracks(path: Path) -> dict[str, list[tuple[int, str]]]:
    """Give the slices' starts and names by the name of their group, of a Chrome trace."""
    events = json.loads(path.read_text())["traceEvents"]
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in groups.values()}
    for event in events:
        if event["ph"] == "X":
            found[groups[event["pid"]]].append((round(event["ts"] * 1000), event["name"]))
    return found


def test_exports_draw_them_apart(both: Path, tmp_path: Path) -> None:
    export(both, Format.CHROME, tmp_path / "chrome.json")
    export(both, Format.PERFETTO, tmp_path / "perfetto")
    drawn = tracks(tmp_path / "chrome.json")
    assert drawn.pop(APART) == [(5 * MS, "old"), (15 * MS, "old"), (25 * MS, "old")]
    assert [slices for slices in drawn.values() if slices] == [[(50 * MS, "new")]]
    assert track_names(tmp_path / "perfetto")[APART,].description == SENTENCE


@pytest.mark.parametrize("to", [Format.CHROME, Format.PERFETTO])
def test_rows_without_a_time_are_left_out_and_counted(tmp_path: Path, to: Format) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as report:
        report.begun(utc=UTC)
        report.kernel(700, 50 * MS, 53 * MS, "there", correlationId=1)
        report.kernel(700, 2**62, 2**62 + 1, "nowhere", correlationId=2)
    import_files([tmp_path / "r.sqlite"], tmp_path / "trace.h5", NO_NSYS)
    export(tmp_path / "trace.h5", to, tmp_path / "made")
    made = (tmp_path / "made").read_bytes()
    if to is Format.PERFETTO:
        made = b"".join(p.SerializeToString() for p in whole(tmp_path / "made"))
    assert b"left out: kernels" in made
    assert b"1 that have no time" in made
    assert b"-0.001" not in made
    assert b"nowhere" not in made


def test_what_names_no_process_is_on_the_reports_time(tmp_path: Path) -> None:
    for number, version in enumerate(("2020.3", "2025.1")):
        with Export(tmp_path / f"{version}.sqlite", version) as report:
            report.begun(utc=UTC + MS)
            for n in range(400):
                begin = (n * 10 + number) * 1000
                report.kernel(600, begin, begin + 500, "k", globalPid=None, correlationId=n)
        trace_path = tmp_path / f"{version}.h5"
        import_files([tmp_path / f"{version}.sqlite"], trace_path, NO_NSYS)
        with open_trace(trace_path) as trace:
            kernels = trace.kernels
            assert kernels["start"].tolist() == [(n * 10 + number) * 1000 for n in range(400)]
            table = analyse("gpu", trace).tables["gpus"]
            assert table["kernels"].tolist() == [400]
            assert table["kernel_time"].tolist() == [400 * 500]
            assert trace.gpus["busy"].tolist() == [400 * 500]
            assert set(kernels["reason"]) == {SENTENCES[Reason.NO_PROCESS]}


def test_gpus_of_hosts_that_are_not_told_are_not_one(tmp_path: Path) -> None:
    # both run at once on "GPU 0" of a host that neither says
    paths = [old(tmp_path / "a.sqlite"), old(tmp_path / "b.sqlite", at=MS)]
    import_files(paths, tmp_path / "trace.h5", NO_NSYS)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert trace.gpus["busy"].tolist() == [6 * MS, 6 * MS]
        assert trace.gpus["own_axis"].tolist() == [NONE, 1]


WORKER = PlainWorker(
    4242,
    [
        (4250, BEGIN + 10 * MS, BEGIN + 20 * MS),
        (4250, BEGIN + 30 * MS, BEGIN + 40 * MS),
    ],
    [("GPU-aaaa-0", 0)],
)


def test_kernels_in_the_range_of_a_task_are_the_tasks_on_any_axis(tmp_path: Path) -> None:
    write_workers(tmp_path / "run" / "journals", [WORKER])
    merge_run(tmp_path / "run")
    with Export(tmp_path / "old.sqlite", "2020.3") as report:
        report.range(4242, 4250, 2 * MS, 9 * MS, WORKER.task_id(0))
        report.call(4242, 4250, 3 * MS, 3 * MS + 10, 1)
        report.kernel(4242, 4 * MS, 5 * MS, "within", correlationId=1)
        # by the numbers alone it would be in the second task
        report.call(4242, 4250, 35 * MS, 35 * MS + 10, 2)
        report.kernel(4242, 36 * MS, 37 * MS, "outside", correlationId=2)
    join_into([tmp_path / "old.sqlite"], tmp_path / "run", NO_NSYS)
    with open_trace(tmp_path / "run") as trace:
        kernels = trace.kernels.set_index("short_name")
        first = trace.tasks.index[trace.tasks["id"] == WORKER.task_id(0)].tolist()
        assert kernels.loc["within", "task"] == first[0]
        assert kernels.loc["outside", "task"] == NONE
        assert kernels.loc["outside", "reason"] == SENTENCES[Reason.NOT_TIED]
        # how long a GPU was idle while the task ran cannot be told across axes
        assert set(trace.task_gpu["idle"]) == {NONE}
        users = analyse("gpu", trace).tables["gaps"]["worker"]
        assert users.isna().all()


def test_show_says_it(
    both: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dasf-hpc", "show", str(both)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = " ".join(capsys.readouterr().out.split())
    assert f"old.sqlite: {SENTENCE}" in said
