"""What a report holds, what it says it lost, and what of its texts may be kept."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from exports import Export
from hypothesis import example, given
from hypothesis import strategies as st
from test_join import OTHER, POOL_1, WORKER, at, write_report, write_run_with_report

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.cli import main
from dasf_hpc.imports import Imported, Wishes, import_files, join_into
from dasf_hpc.nsight.diagnostics import concerns, loss, redacted, traced
from dasf_hpc.nsight.reader import read_report
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.outcome import merge_run
from dasf_hpc.show.report import report_page
from dasf_hpc.trace.holdings import Evidence, Kind, State, held, judge
from dasf_hpc.trace.summary import NOT_AVAILABLE, summarise

NOT_ALL_CUDA = "Not all CUDA events might have been collected."
NOT_ALL_NVTX = "Not all NVTX events might have been collected."
PID = 6000


# ------------------------------------------------------------------------------ what is lost


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (NOT_ALL_CUDA, -1),
        (NOT_ALL_NVTX, -1),
        ("Number of incomplete CUPTI events dropped: 2", 2),
        (
            "Number of incomplete CUPTI events dropped: 55000. Their GPU timestamps are missing.",
            55000,
        ),
        ("49 of 50 buffers", 1),
        ("Only 49 out of 50 CUPTI buffers were flushed.", 1),
        ("3 of 50 buffers were dropped", 3),
        ("Some events (\t77) were lost. Certain charts may display incorrect data.", 77),
        ("Sampling events were lost in the interval 12 - 44 (32) ns.", -1),
        ("Lost events = 5", 5),
        ("12 samples have been dropped", 12),
        ("Session buffer overflow: records dropped", -1),
        ("Not all the events were copied to the output report.", -1),
    ],
)
def test_a_text_that_tells_of_a_loss_is_recognised(text: str, count: int) -> None:
    told = loss(text)
    assert told is not None
    assert told.count == count


@pytest.mark.parametrize(
    "text",
    [
        "Profiling has started.",
        "No CUDA events collected. Does the process use CUDA?",
        "Number of CUDA events collected: \t0.",
        "Number of CUPTI events produced: \t29687, CUPTI buffers: 50.",
        "Buffers holding CUDA trace data will be flushed on CudaProfilerStop() call.",
        "CUDA profiling might have not been started correctly.",
        "Number of incomplete CUPTI events dropped: 0",
        "50 of 50 buffers",
        "No events were lost.",
        "",
    ],
)
def test_other_texts_tell_of_none(text: str) -> None:
    assert loss(text) is None


def test_what_a_text_is_about_and_proves() -> None:
    assert concerns(NOT_ALL_CUDA) == concerns("incomplete CUPTI events") == {"cuda"}
    assert concerns(NOT_ALL_NVTX) == {"nvtx"}
    assert traced("No CUDA events collected. Does the process use CUDA?") == {"cuda"}
    assert traced("NVTX injection initialized successfully.") == {"nvtx"}
    assert traced(NOT_ALL_CUDA) == set()


# -------------------------------------------------------------------------- what may be kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (NOT_ALL_CUDA, NOT_ALL_CUDA),
        ("Tracing CUDA/NVTX failed (12 of 13).", "Tracing CUDA/NVTX failed (12 of 13)."),
        (
            "Loaded CUPTI library: /opt/nvidia/nsight/2025.1/target/libcupti.so.12.8",
            "Loaded CUPTI library: libcupti.so.12.8",
        ),
        (
            "Loaded: C:\\Program Files\\NVIDIA Corporation\\Nsight 2026\\target\\cupti64_129.dll",
            "Loaded: cupti64_129.dll",
        ),
        ("Cannot open /etc/x.conf: denied. Try again.", "Cannot open x.conf: denied. Try again."),
        ("Cannot open '/home/ann/My Files/x': denied", "Cannot open 'x': denied"),
        ("LD_PRELOAD=/home/ann/x.so was set", "LD_PRELOAD=… was set"),
        ('With TOKEN="a b c" it failed', "With TOKEN=… it failed"),
        ("password: hunter2, and on", "password: … and on"),
        ("See https://ann:pw@host/x for more", "See … for more"),
        ("one\n  line\twith tabs", "one line with tabs"),
    ],
)
def test_a_text_is_kept_without_values_and_folders(text: str, kept: str) -> None:
    assert redacted(text) == kept


#: Characters of a value or a name in a path; "" of them is none.
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=4, max_size=12)
PLAIN = st.text(st.sampled_from("abcdefghij .,:()-"), max_size=20)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Z", "C"), exclude_characters="\"'`\\"),
    min_size=1,
    max_size=16,
)


@given(before=PLAIN, name=NAMES, value=VALUES, blanks=st.sampled_from(["", " "]), after=PLAIN)
@example("", "A", "=b", "", "")
def test_no_value_of_a_variable_gets_through(
    before: str, name: str, value: str, blanks: str, after: str
) -> None:
    marked = f"Q{value}Q"
    for quoted in (
        marked,
        f'"{marked} {marked}"',
        f"'{marked} {marked}'",
        f'"{marked} \\" {marked}',
    ):
        kept = redacted(f"{before} {name}{blanks}={blanks}{quoted} {after}")
        assert marked not in kept
        assert re.search(r"=(?!…)", kept) is None


@given(
    before=PLAIN,
    folders=st.lists(WORDS, min_size=1, max_size=5),
    last=WORDS,
    around=st.sampled_from(["{} ", "'{}'", '"{}"', "({})", "file:{}", "[{}],", "x:{}.", "~{}"]),
    after=PLAIN,
)
@pytest.mark.parametrize("root", ["/", "C:\\", "\\\\", "C:/", "/Q  Q/", "C:\\Q Q\\"])
def test_no_folder_of_a_path_gets_through(
    root: str, before: str, folders: list[str], last: str, around: str, after: str
) -> None:
    marked = [f"Q{folder}Q" for folder in folders]
    if " " in root:  # a folder with blanks is known as one only in quotes, or on Windows
        around = "'{}'"
    between = "\\" if "\\" in root else "/"
    path = root + between.join([*marked, f"Z{last}Z"])
    kept = redacted(f"{before} {around.format(path)} {after}")
    assert f"Z{last}Z" in kept
    assert not any(folder in kept for folder in marked)
    assert not re.search(r"(?:^|[\s'\"(\[:=])/\S|[A-Za-z]:\\|\\\\", kept)


# ---------------------------------------------------------------------------- in a trace


def import_one(folder: Path) -> tuple[Imported, Path]:
    done = import_files([folder / "r.sqlite"], folder / "trace.h5", Wishes())
    return done, folder / "trace.h5"


def test_diagnostics_are_read_in_words_and_without_what_may_not_be_kept(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.enum("ENUM_DIAGNOSTIC_SEVERITY_LEVEL", {1: "Info", 2: "Warning", 7: "Fatal"})
        made.say(NOT_ALL_CUDA, PID, 70)
        made.say("TOKEN=hunter2 in /home/ann/x", None, 80, severity=7, source=2)
        made.say("of another clock", PID, 90, severity=1, source=9, clock=2)
    report = read_report(tmp_path / "r.sqlite")
    assert report.diagnostics is not None
    told = [(d.pid, d.time, d.severity, d.source, d.text, d.lost) for d in report.diagnostics]
    assert told == [
        (PID, 70, "warning", "analysis", NOT_ALL_CUDA, -1),
        (NONE, 80, "fatal", "daemon", "TOKEN=… in x", None),
        (PID, NONE, "info", "source 9", "of another clock", None),
    ]
    with Export(tmp_path / "old.sqlite", "2023.4"):
        pass
    assert read_report(tmp_path / "old.sqlite").diagnostics is None


def test_an_imported_loss_is_a_gap_and_the_recording_partial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Export(tmp_path / "r.sqlite", "2026.2") as made:
        made.begun(utc=10**18)
        made.call(PID, PID, 1000, 2000, 1, "cudaLaunchKernel_v7000")
        made.kernel(PID, 2000, 3000, correlationId=1)
        made.say("SECRET=hunter2 was set", PID, 5)
        made.say("Number of incomplete CUPTI events dropped: 2", PID, 50)
        made.say(NOT_ALL_NVTX, PID + 1, 60)
    _, path = import_one(tmp_path)
    assert b"hunter2" not in path.read_bytes()
    with open_trace(path) as trace:
        told = trace.diagnostics
        assert told["lost"].tolist() == [-2, 2, -1]
        assert told["time"].tolist() == [5, 50, 60]
        assert told["pid"].tolist() == [PID, PID, PID + 1]
        assert told["process"].tolist() == [0, 0, NONE]
        gaps = trace.gaps
        assert gaps["kind"].tolist() == ["lost by nsys"] * 2
        assert gaps["count"].tolist() == [2, NONE]
        assert gaps["journal"].tolist() == ["r.sqlite"] * 2
        found = held(trace)
        assert found[Kind.KERNELS].state is State.PARTLY
        assert found[Kind.RANGES].state is State.LOST
        found_of = [finding.sentence for finding in analyse("gpu", trace).findings]
        assert found_of[:2] == [
            "Nsight's recording is not whole: NVTX ranges lost (Not all NVTX events might have "
            "been collected).",
            "Nsight's recording is not whole: CUDA calls partly lost, kernels partly lost (Number "
            "of incomplete CUPTI events dropped: 2).",
        ]
        page = report_page(trace, {})
        assert re.search(r"Recording.{0,80}partial", page, re.DOTALL)
        assert "Not all NVTX events might have been collected" in page
    monkeypatch.setattr(sys, "argv", ["dasf-hpc", "show", str(path), "--strict"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (0, None)
    said = capsys.readouterr()
    assert "lost by nsys: 2 in 2 places" in " ".join(said.err.split())
    assert "kernels: 1, partly lost" in " ".join(said.out.split())


def test_a_report_without_loss_is_whole(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.kernel(PID, 2000, 3000)
        made.say("Profiling has started.", None, 5, severity=1)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        assert len(trace.diagnostics) == 1
        assert len(trace.gaps) == 0


def test_a_runs_report_tells_of_its_workers_and_a_helper_is_no_loss(tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = write_run_with_report(run, "2025.1")
    _say(report.with_suffix(".sqlite"), WORKER.pid)
    merge_run(run)
    again = tmp_path / "again"
    write_run_without(again)
    exported = tmp_path / "node7.sqlite"
    write_report(exported, "2025.1")
    _say(exported, WORKER.pid)
    for _ in range(2):  # the second time it adds nothing
        join_into([exported], again, Wishes())
    for trace_path in (run, again):
        with open_trace(trace_path) as trace:
            assert len(trace.diagnostics) == 2
            assert len(trace.recorded) == len(Kind)
            (worker,) = trace.processes.index[trace.processes["pid"] == WORKER.pid]
            gaps = trace.gaps[["kind", "process", "count"]].to_numpy().tolist()
            assert ["lost by nsys", worker, -1] in gaps
            assert [NOT_AVAILABLE, NONE, -1] in gaps
            assert len(gaps) == 2
            lost = [gap for gap in summarise(trace).gaps if gap.kind != NOT_AVAILABLE]
            assert [gap.sentence for gap in lost] == [
                "lost by nsys in 1 place (Not all CUDA events might have been collected)"
            ]
    assert json.loads((run / "run.json").read_text())["state"] == "partial"


def write_run_without(run: Path) -> None:
    from synthetic import write_workers

    write_workers(run / "journals", [WORKER, OTHER])
    merge_run(run)


def _say(exported: Path, pid: int) -> None:
    """Add what nsys says of a worker and of a shell to an export that is there."""
    import sqlite3

    from exports import DIAGNOSTIC, global_id

    with sqlite3.connect(exported) as database:
        database.execute(f"CREATE TABLE DIAGNOSTIC_EVENT ({DIAGNOSTIC})")
        for process in (pid, 31000):
            row = (at(50), 1, 3, 2, NOT_ALL_CUDA, global_id(process))
            database.execute("INSERT INTO DIAGNOSTIC_EVENT VALUES (?, ?, ?, ?, ?, ?)", row)
    database.close()


# ------------------------------------------------------------------------ what a report holds


def _copies(made: Export) -> None:
    made.call(PID, PID, 1000, 1100, 1, "cudaMemcpyAsync_v3020")
    made.memcpy(PID, 1200, 1700, 1, 4096, correlationId=1)


def _fills(made: Export) -> None:
    made.call(PID, PID, 1000, 1100, 1, "cudaMemsetAsync_v3020")
    made.memset(PID, 1200, 1700, 4096, correlationId=1)


def _launches(made: Export) -> None:
    for number in range(13):
        made.call(PID, PID, 1000 + number, 1001 + number, number, "cudaLaunchKernel_v7000")


def _calls_that_launch_nothing(made: Export) -> None:
    made.call(PID, PID, 1000, 1100, 1, "cudaGetDevice_v3020")


def _metrics(made: Export) -> None:
    for number in range(3):
        made.metric(1000 * number, 5, 90)


def _ranges(made: Export) -> None:
    made.range(PID, PID, 1000, 2000, 7)


def _nothing_came(made: Export) -> None:
    made.context(PID)
    made.say("No NVTX events collected. Does the process use NVTX?", PID)


def _all_lost(made: Export) -> None:
    made.context(PID)
    made.say("Number of incomplete CUPTI events dropped: 9", PID)


def _nothing(made: Export) -> None:
    pass


R, N, L, M = State.RECORDED, State.NONE, State.LOST, State.MISSING


@pytest.mark.parametrize(
    ("fill", "states", "sentence", "answer"),
    [
        (_copies, [M, R, N, R, N, N, M], "", None),
        (_fills, [M, R, N, N, R, N, M], "", None),
        (
            _launches,
            [M, R, L, N, N, N, M],
            "it holds calls of CUDA and no GPU activity: calls to launch kernels: 13, and "
            "nothing of it was recorded; it was lost, or recording it was not permitted",
            "lost (calls to launch kernels: 13, and nothing",
        ),
        (_calls_that_launch_nothing, [M, R, N, N, N, N, M], "", "recorded, none"),
        (
            _metrics,
            [M, M, M, M, M, M, R],
            "",
            "not recorded (the reports hold samples of GPU metrics and nothing of CUDA)",
        ),
        (_ranges, [R, M, M, M, M, M, M], "", "not recorded (CUDA was not traced"),
        (
            _nothing_came,
            [N, N, N, N, N, N, M],
            "it holds no NVTX range and no call of CUDA: were none made, or were they not traced?",
            "recorded, none",
        ),
        (
            _all_lost,
            [M, L, L, L, L, L, M],
            "what ran on GPUs is lost: Number of incomplete CUPTI events dropped: 9",
            "lost (Number of incomplete CUPTI events dropped: 9)",
        ),
        (
            _nothing,
            [M] * 7,
            "it holds no NVTX range and no call of CUDA: were none made, or were they not traced?",
            "not recorded (CUDA was not traced",
        ),
    ],
)
def test_not_recorded_nothing_came_and_lost_are_told_apart(
    fill: object,
    states: list[State],
    sentence: str,
    answer: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        fill(made)  # type: ignore[operator]
    done, path = import_one(tmp_path)
    assert done.reports[0].sentence == sentence
    with open_trace(path) as trace:
        # what else a report may hold stands after these
        kinds = list(Kind)[: len(states)]
        found = dict(zip(trace.recorded["what"], trace.recorded["state"], strict=True))
        assert [found[kind] for kind in kinds] == [str(state) for state in states]
        assert [held(trace)[kind].state for kind in kinds] == states
        told = analyse("gpu", trace)
        where = analyse("where", trace)
        functions = analyse("functions", trace)
        if answer is None:
            busy = told.tables["gpus"]
            assert busy["busy"].sum() == trace.task_gpu["share"].sum() == 500
            assert not any("Kernels, copies and gaps" in why for why in told.unanswered)
            assert not any("Why GPUs were idle" in why for why in where.unanswered)
        else:
            for unanswered in (told.unanswered[0], where.unanswered[-1], functions.unanswered[-1]):
                assert answer in unanswered
        lost = State.LOST in states
        assert [str(kind) for kind in trace.gaps["kind"]] == (["lost by nsys"] if lost else [])
        assert any("lost" in finding.sentence for finding in told.findings) == lost
        assert "What Nsight recorded" in report_page(trace, {})
    monkeypatch.setattr(sys, "argv", ["dasf-hpc", "show", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    shown = " ".join(capsys.readouterr().out.split())
    recorded, _, missing = shown.partition(" Not recorded ")
    for kind, state in zip(kinds, states, strict=True):
        if state is State.MISSING:
            assert str(kind) in missing
        else:
            assert f"{kind}: {state if state is not State.RECORDED else ''}" in recorded


def test_an_empty_table_says_that_it_was_traced(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2020.3") as made:
        made.call(PID, POOL_1, 1, 2, 1, "cudaGetDevice_v3020")
        made.database.execute("DELETE FROM CUPTI_ACTIVITY_KIND_RUNTIME")
    import_one(tmp_path)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert held(trace)[Kind.KERNELS].state is State.NONE
        assert held(trace)[Kind.RANGES].state is State.MISSING


def test_a_gpu_of_which_all_is_lost_was_not_idle(tmp_path: Path) -> None:
    for name, fill in (("lost", _launches), ("none", _calls_that_launch_nothing)):
        with Export(tmp_path / f"{name}.sqlite", "2025.1") as made:
            made.begun(utc=10**18)
            made.gpu(0, "GPU-aaaa-0")
            fill(made)
        import_files([tmp_path / f"{name}.sqlite"], tmp_path / f"{name}.h5", Wishes())
    for name, busy in (("lost", -1), ("none", 0)):
        with open_trace(tmp_path / f"{name}.h5") as trace:
            assert trace.gpus["busy"].tolist() == [busy]


def test_of_two_reports_what_one_lost_is_not_whole(tmp_path: Path) -> None:
    for name, kernels in (("a", True), ("b", False)):
        with Export(tmp_path / f"{name}.sqlite", "2025.1", hostname=name) as made:
            made.begun(utc=10**18)
            made.call(PID, PID, 1000, 1001, 1, "cudaLaunchKernel_v7000")
            if kernels:
                made.kernel(PID, 2000, 3000, correlationId=1)
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    import_files(paths, tmp_path / "trace.h5", Wishes())
    with open_trace(tmp_path / "trace.h5") as trace:
        found = held(trace)
    assert (found[Kind.KERNELS].state, found[Kind.KERNELS].count) == (State.PARTLY, 1)
    assert "calls to launch kernels: 1, and" in found[Kind.KERNELS].reason


@given(
    counts=st.dictionaries(st.sampled_from(list(Kind)), st.integers(0, 3)),
    asked=st.dictionaries(
        st.sampled_from([Kind.KERNELS, Kind.COPIES, Kind.FILLS]), st.integers(0, 3)
    ),
    traced_=st.sets(st.sampled_from(["nvtx", "cuda"])),
    losses=st.dictionaries(st.sampled_from(["nvtx", "cuda"]), st.just("said")),
)
def test_what_is_there_is_there_and_what_is_lost_has_a_reason(
    counts: dict[Kind, int], asked: dict[Kind, int], traced_: set[str], losses: dict[str, str]
) -> None:
    judged = judge(Evidence(counts, asked, frozenset(traced_), losses))
    assert [holding.kind for holding in judged] == list(Kind)
    for one in judged:
        assert one.there == (counts.get(one.kind, 0) > 0)
        assert one.count == counts.get(one.kind, 0)
        if one.state in (State.LOST, State.PARTLY):
            assert one.reason
            assert losses or asked.get(one.kind, 0)
