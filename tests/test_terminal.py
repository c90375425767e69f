"""What the terminal shows fits it: names give way, numbers never, and no name breaks a row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dasf_hpc.analysis.answer import Answer, Finding, Severity
from dasf_hpc.analysis.headline import Headline
from dasf_hpc.show.answers import show_answer, show_headline, value_text
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.show.progress import cut
from dasf_hpc.show.terminal import show_questions, show_summary
from dasf_hpc.trace.summary import FunctionTime, Summary

LONG = "compute_instantaneous_phase_and_cosine_of_phase_for_each_trace"
FUSED = "-".join(["map_blocks", LONG, "sum_partial", "rechunk_merge", "store"])[:120]
NAMES = [
    "short",
    LONG,
    FUSED,
    "new\nline",
    "\x1b[31mred",
    "k" * 5000 + "end",
    "\u202eright to left",
    "層" * 90,
]


def printed(width: int, show: Any, *arguments: Any) -> str:
    text = io.StringIO()
    show(Console(file=text, width=width), *arguments)
    return text.getvalue()


def summary_of(width: int, *names: str) -> str:
    """Give the summary of a run of some functions on a terminal of some width."""
    times = (12, 1_234_567_890, 987_654_321, 1_111_111_111)
    functions = [FunctionTime(name, *times) for name in names]
    return printed(width, show_summary, Summary(functions=functions), {})


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_a_line_and_no_number_in_it_is_cut(width: int, name: str) -> None:
    text = summary_of(width, name)
    lines = text[text.index("Longest functions") :].rstrip().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert lines[2].split() == ["Function", "Tasks", "In", "all", "Mean", "Longest"]
    row = lines[-1]
    assert lines[-2].strip(" ─") == ""  # the line under the headings
    assert row.split()[-7:] == ["12", "1.23", "s", "988", "ms", "1.11", "s"]
    assert "\x1b" not in text


def test_both_ends_of_a_long_name_are_kept() -> None:
    row = summary_of(80, "k" * 5000 + "end").rstrip().splitlines()[-1]
    assert row.split()[0].startswith("kkk")
    assert row.split()[0].endswith("kend")
    assert "…" in row
    assert FUSED in summary_of(200, FUSED)


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_cut_name_is_one_line_of_its_room(text: str, room: int) -> None:
    short = cut(text, room)
    assert cell_len(short) <= room
    assert short.isprintable()
    if cell_len(text) <= room and text.isprintable():
        assert short == text


@given(
    st.lists(
        st.tuples(
            st.text("abc ", min_size=1, max_size=12),
            st.sampled_from(list(Kind)),
            st.text(max_size=80),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(40, 200),
)
def test_no_table_is_wider_than_the_terminal_and_what_is_left_out_is_named(
    drawn: list[tuple[str, Kind, str]], width: int
) -> None:
    columns = [
        # what is never cut must have room by itself
        Column(f"c{i}{name}", [text if kind in (Kind.NAME, Kind.PROSE) else f"{i}.25 s"], kind)
        for i, (name, kind, text) in enumerate(drawn)
    ]
    shown = printed(width, show_table, "", columns)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    words = shown.split()
    for column in columns:
        assert all(word in words or f"{word}," in words for word in column.heading.split())
    for i, (_, kind, _) in enumerate(drawn):
        left = f"c{i}" in " ".join(words).partition("columns:")[2]
        if kind in (Kind.NUMBER, Kind.EXACT) and not left:
            assert f"{i}.25 s" in shown


def answer(name: str, table: pd.DataFrame, units: dict[str, str], *findings: Finding) -> Answer:
    columns = {str(c): (units.get(str(c), ""), "") for c in table.columns}
    return Answer(name, {name: table}, {name: columns}, list(findings), [])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_columns_that_have_no_room_are_named(width: int) -> None:
    table = pd.DataFrame({"function": [LONG], **{f"column_{i}": [123_456_789] for i in range(12)}})
    units = {f"column_{i}": "ns" for i in range(12)}
    text = printed(width, show_answer, answer("functions", table, units))
    [row] = [line for line in text.splitlines() if "ms" in line]
    there = row.count("123 ms")
    assert 0 < there < 12 or width == 200
    named = " ".join(text.split())
    assert named.partition("columns:")[2].count("Column") == 12 - there


def test_what_holds_nothing_is_no_column_and_parts_are_called_as_in_the_page() -> None:
    table = pd.DataFrame(
        {"part": ["nothing_submitted", "elsewhere"], "message": ["", ""], "count": [1, 2]}
    )
    text = printed(80, show_answer, answer("where", table, {}))
    assert "Message" not in text
    assert "script submitted nothing" in text
    assert "others queue elsewhere" in text
    assert "Message" in printed(80, show_answer, answer("where", table.assign(message="x"), {}))


def test_a_summary_tells_how_to_learn_more() -> None:
    shown = printed(200, show_questions, Path("/runs/a b"), False)
    assert "dasf-hpc analyze where '/runs/a b'" in shown
    assert "dasf-hpc report '/runs/a b'" in shown
    assert "dasf-hpc report" not in printed(200, show_questions, Path("/runs/a"), True)


def test_moments_are_told_from_the_first_task_and_durations_with_their_unit() -> None:
    assert value_text(3_500_000_000, "moment", 1_000_000_000) == "2.500 s"
    assert value_text(500_000_000, "moment", 1_000_000_000) == "-0.500 s"
    assert value_text(27_900, "ns") == "27.9 us"
    assert value_text(-1, "ns") == value_text(-1, "moment") == ""  # it is not known
    assert value_text(5180, "") == "5,180"
    assert value_text(7.13, "%") == "7.1 %"
    assert value_text(0.23, "GB s") == "230 MB s"
    kept = pd.DataFrame({"function": [LONG], "holder": ["a task that has not run yet"]})
    assert "a task that has not run yet" in printed(60, show_answer, answer("kept", kept, {}))
    table = pd.DataFrame({"start": [2_000_000_000], "duration": [27_753]})
    text = printed(80, show_answer, answer("gaps", table, {"start": "ns", "duration": "ns"}))
    assert text.split()[-3:] == ["s", "27.8", "us"]
    assert "2.000 s" in text


def test_rows_of_a_drawing_are_not_printed() -> None:
    table = pd.DataFrame({"time": [5 * 10**9], "function": ["f"], "bytes": [96_000_000]})
    drawn = Answer("memory", {"over_time": table}, {"over_time": {}}, [], [])
    text = printed(80, show_answer, drawn)
    assert "--csv --table over_time" in " ".join(text.split())
    assert "96 MB" not in text


def finding(sentence: str, saves: int, severity: Severity = Severity.WARNING) -> Finding:
    return Finding(severity, "where", "summary", (), sentence, "Do less.", saves)


def test_findings_are_told_with_what_they_could_save_the_costliest_first() -> None:
    table = pd.DataFrame({"time": [1]})
    found = [finding("Small.", 10**9), finding("Unknown.", -1), finding("Large.", 32 * 10**9)]
    text = printed(60, show_answer, answer("where", table, {"time": "ns"}, *found))
    assert text.index("Large.") < text.index("Small.") < text.index("Unknown.")
    assert "warning, could save up to 32 s\n  Large." in text.replace(" \n", "\n")
    assert text.count("could save") == 2


def test_a_runs_end_names_three_findings_then_its_length() -> None:
    found = [finding(f"Number {i}. " + "word " * 40, (9 - i) * 10**9) for i in range(5)]
    head = Headline("95.6 s from first to last task.", 0, 95_600_000_000, -1, found)
    text = printed(60, show_headline, head)
    assert all(f"Number {i}." in text for i in range(3))
    assert "Number 3." not in text
    assert "and 2 more" in text
    assert text.rstrip().endswith("95.6 s from first to last task.")
    wrapped = [line for line in text.splitlines() if "word" in line]
    assert all(line.startswith("  ") and len(line) <= 60 for line in wrapped)


def test_a_run_is_told_from_its_first_to_its_last_task() -> None:
    summary = Summary(duration=10 * 10**9, work=7 * 10**9, before=10**9, after=2 * 10**9)
    text = printed(80, show_summary, summary, {})
    assert "7 s from first to last task" in text
    assert "began 1 s before the first task, recording ended 2 s after the last" in " ".join(
        text.split()
    )
    assert "10 s recorded" in printed(80, show_summary, Summary(duration=10 * 10**9), {})
