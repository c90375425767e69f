"""Analysis of the recording's own cost: what is known is a range, what is not has a reason."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from handmade import Made, Task, make_trace
from synthetic import write_run

from dasf_hpc import open_trace
from dasf_hpc.analysis import overhead as module
from dasf_hpc.analysis.answer import Answer, Severity
from dasf_hpc.analysis.overhead import ALL, CALLS, COSTS, RANGES, overhead
from dasf_hpc.analysis.recording_cost import Cost, time_recording
from dasf_hpc.profile.execution import _watched
from dasf_hpc.trace.merge import merge_journals

ENDS = ("low", "high")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, dict[str, int]]:
    """Give the answer for a run of many kinds of records, and the rows of its tables."""
    folder = tmp_path_factory.mktemp("overhead")
    run = write_run(folder / "journals", nodes=1, workers=2, tasks=80)
    merge_journals(run.journals).write(folder / "trace.h5")
    with open_trace(folder) as trace:
        rows = {name: trace.rows(name) for name in trace.tables}
        return overhead(trace), rows


def test_counts_are_those_of_the_run(recorded: tuple[Answer, dict[str, int]]) -> None:
    answer, rows = recorded
    count = answer.table.set_index("what")["count"]
    assert count["starts and stops of tasks"] == count[ALL] == rows["tasks"]
    for name in ("transitions", "dependencies", "activities", "transfers"):
        assert rows[name] > 0
        assert count[name] == rows[name]


def test_costs_are_ranges_of_calls_that_were_made(recorded: tuple[Answer, dict[str, int]]) -> None:
    table = recorded[0].table.set_index("what").drop([RANGES])
    for column in ("each", "time", "share"):
        assert (table[f"{column}_low"] <= table[f"{column}_high"]).all(), column
    assert (table.drop("dependencies")["each_low"] > 50).all()  # a Python call takes 50 ns
    assert (table["share_high"] > 0).all()


def test_the_last_row_is_the_sum_and_costs_of_one_task(
    recorded: tuple[Answer, dict[str, int]],
) -> None:
    table = recorded[0].table
    assert table["what"].iloc[-1] == ALL
    for end in ENDS:
        assert table[f"time_{end}"].iloc[:-1].sum() == table[f"time_{end}"].iloc[-1]
        share = table[f"share_{end}"]
        assert share.iloc[:-1].sum() == pytest.approx(share.iloc[-1])
        whole = table[f"each_{end}"].iloc[-1] * table["count"].iloc[-1]
        assert whole == pytest.approx(table[f"time_{end}"].iloc[-1])


def test_what_could_not_be_looked_at_has_a_reason_and_no_number(
    recorded: tuple[Answer, dict[str, int]],
) -> None:
    answer, _ = recorded
    row = answer.table.set_index("what").loc[RANGES]
    assert row.drop("how").isna().all()
    assert row["how"] == "not known: no Nsight report was joined to this run"
    assert any(RANGES in why for why in answer.unanswered)
    assert any("CUDA calls" in why for why in answer.unanswered)
    document = json.loads(json.dumps(answer.document(), allow_nan=False))
    (plain,) = [r for r in document["tables"]["costs"]["rows"] if r["what"] == RANGES]
    assert plain["count"] is plain["each_low"] is plain["time_high"] is None
    assert set(document["tables"]["costs"]["columns"]) == set(COSTS)


def ranges(
    start: Sequence[int], stop: Sequence[int], domain: Sequence[str | None]
) -> dict[str, dict[str, list[object]]]:
    """Make NVTX ranges within the first tasks."""
    task = [min(i, 1) for i in range(len(start))]
    return {
        "nvtx_ranges": {
            "start": list(start),
            "stop": list(stop),
            "task": list(task),
            "domain": list(domain),
        }
    }


TASKS = [Task("f-1", 0, 1000, 9000), Task("f-2", 0, 20_000, 30_000)]


def test_time_outside_ranges_is_measured_in_the_run(tmp_path: Path) -> None:
    more = ranges([1300, 20_700, 22_000], [8900, 29_900, 23_000], ["compute", "compute", None])
    with make_trace(tmp_path / "trace.h5", Made(TASKS, more=more)) as trace:
        row = overhead(trace).table.set_index("what").loc[RANGES]
    # 400 and 800 ns: the range that the user's code made is none around a task
    assert (row["count"], row["each_low"], row["time_low"]) == (2, 600, 1200)
    assert "measured in this run" in row["how"]
    assert row["each_high"] >= 600


@pytest.mark.parametrize("domain", [None, "mine"])
def test_ranges_of_the_users_code_are_not_taken_for_those_around_tasks(
    tmp_path: Path, domain: str | None
) -> None:
    more = ranges([1300], [8900], [domain])
    with make_trace(tmp_path / "trace.h5", Made(TASKS, more=more)) as trace:
        table = overhead(trace).table
    row = table.set_index("what").loc[RANGES]
    assert pd.isna(row["count"])
    assert row["how"].startswith("not known: no range in the joined reports is around a task")
    measured = table[table["how"].str.contains("measured in this run")]
    assert not len(measured)


def test_no_row_says_of_nothing_that_it_was_measured_or_counted(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made(TASKS)) as trace:
        table = overhead(trace).table
    told = table[table["how"].str.contains("measured|counted")]
    assert (told["count"] > 0).all()
    assert table["what"].tolist() == ["starts and stops of tasks", RANGES, ALL]


def test_what_nsys_adds_to_cuda_calls_is_not_told(tmp_path: Path) -> None:
    more = {"cuda_api": {"start": [1, 2], "stop": [2, 3], "task": [0, 0]}}
    with make_trace(tmp_path / "trace.h5", Made(TASKS, more=more)) as trace:
        row = overhead(trace).table.set_index("what").loc[CALLS]
    assert row["count"] == 2
    assert row["how"].startswith("not told")
    assert row[["each_low", "each_high", "time_low", "time_high"]].isna().all()


def test_short_tasks_are_named_and_long_ones_are_not(tmp_path: Path) -> None:
    short = [Task(f"f-{i}", 0, i * 1000, i * 1000 + 500) for i in range(20)]
    with make_trace(tmp_path / "short.h5", Made(short)) as trace:
        (finding,) = overhead(trace).findings
    assert finding.severity is Severity.WARNING
    figure = r"[\d.,]+ (ns|us|ms)"
    assert re.match(f"Recording cost {figure} to {figure} a task", finding.sentence)
    with make_trace(tmp_path / "long.h5", Made([Task("f-1", 0, 0, 10**10)])) as trace:
        assert overhead(trace).findings == []


def test_where_nothing_can_be_timed_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> dict[str, Cost]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "time_recording", full)
    with make_trace(tmp_path / "trace.h5", Made(TASKS)) as trace:
        answer = overhead(trace)
    assert answer.table[["each_low", "time_low", "share_high"]].isna().all(axis=None)
    assert "No space left on device" in answer.table["how"].iloc[0]
    assert answer.findings == []


def test_timing_leaves_the_process_as_it_was() -> None:
    watched = dict(_watched)
    assert gc.isenabled()
    costs = time_recording()
    assert gc.isenabled()
    assert _watched == watched
    assert {"transition", "dependency", "execution", "activity", "transfer", "reschedule"} <= set(
        costs
    )
    assert all(0 <= cost.low <= cost.high for cost in costs.values())
    assert costs["transition"].high > 0
