"""What the terminal shows of names that are longer than a line has room for."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.show.answers import show_answer
from dasf_hpc.show.terminal import NAME_MOST, show_summary
from dasf_hpc.trace.summary import FunctionTime, Summary

LONG = "compute_instantaneous_phase_and_cosine_of_phase_for_each_trace"
FUSED = "-".join(["map_blocks", LONG, "sum_partial", "rechunk_merge", "store"])[:120]


def shown(width: int, *names: str) -> str:
    """Give the summary of a run of some functions on a terminal of some width."""
    times = (12, 1_234_567_890, 987_654_321, 1_111_111_111)
    functions = [FunctionTime(name, *times) for name in names]
    text = io.StringIO()
    console = Console(file=text, width=width)
    show_summary(console, Summary(functions=functions), {}, "trace.h5")  # type: ignore[arg-type]
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", ["short", LONG, FUSED])
def test_no_number_and_no_name_is_cut(width: int, name: str) -> None:
    text = shown(width, name)
    lines = text[text.index("Longest functions") :].splitlines()
    assert lines[2].split() == ["Function", "Tasks", "Total", "Mean", "Max"]
    [row] = [line for line in lines if "1.23 s" in line]
    assert row.split()[-7:] == ["12", "1.23", "s", "988", "ms", "1.11", "s"]
    first = lines.index(row)
    rest = [line.strip() for line in lines[first + 1 : lines.index("Trace: trace.h5") - 1]]
    assert row.split()[0] + "".join(rest) == name


def test_names_are_on_lines_of_their_own_whatever_is_in_them() -> None:
    text = shown(100, "new\nline", "\x1b[31mred", "k" * 3000 + "end")
    assert "new\\nline" in text
    assert "\\x1b[31mred" in text
    assert "\x1b" not in text
    assert text.count("k") < NAME_MOST + 10
    assert "kend" in text


def test_a_long_name_takes_no_room_from_an_answers_numbers() -> None:
    table = pd.DataFrame({"function": [LONG], "count": [12345], "total": [1_234_567_890]})
    columns = {"function": ("", "its name"), "count": ("", "how many"), "total": ("ns", "time")}
    text = io.StringIO()
    answer = Answer("functions", {"functions": table}, {"functions": columns}, [], [])
    show_answer(Console(file=text, width=60), answer)
    lines = text.getvalue().splitlines()
    [row] = [line for line in lines if "1.23 s" in line]
    assert "12,345" in row or "12345" in row
    assert LONG in "".join(line.split()[0] for line in lines[lines.index(row) :] if line.strip())
