"""Analysis of failures: what was retried with success, what has no result, and what it said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, wait
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.answer import Severity
from dasf_hpc.analysis.failures import LOST, MOST_TASKS, failures, printable
from dasf_hpc.profile.journal import Stream, read_journal
from dasf_hpc.profile.plugins import WorkerTaskPlugin
from dasf_hpc.profile.results import (
    MAX_MESSAGE,
    MOST_MESSAGES,
    ResultTexts,
    error_message,
    shown_error,
)
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace

Said = Mapping[int, tuple[str, str]]


def flaky(number: int, folder: str) -> int:
    """Fail once or twice where the number is odd."""
    seen = Path(folder, str(number))
    text = seen.read_text() if seen.exists() else ""
    seen.write_text(text + "x")
    if len(text) < (number % 2) * (1 + number % 3 // 2):
        raise RuntimeError(f"bad trace header {number}")
    return number


def always_bad(number: int) -> None:
    raise ValueError(f"corrupt SEG-Y block {number}\nand more of it")


class Loud(Exception):
    """An exception whose own words are not asked for."""

    def __str__(self) -> str:
        raise SystemExit("its __str__ was called")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str], Counter[str]]:
    """Give a real run: its folder, what Dask says of each key in the end, and failures by key."""
    folder = tmp_path_factory.mktemp("failures")
    journals, counts = folder / "journals", folder / "counts"
    counts.mkdir()
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=False,
            dashboard_address=":0",
            local_directory=str(folder / "space"),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(WorkerTaskPlugin(directory=journals))
        futures = client.map(flaky, range(60), folder=str(counts), retries=5, pure=False)
        futures += client.map(always_bad, range(12), pure=False)
        futures += client.map(always_bad, range(12, 15), retries=2, pure=False, key="stubborn")
        wait(futures)
        ends = {str(future.key): future.status for future in futures}
    failed: Counter[str] = Counter()
    for path in journals.glob("*.journal"):
        journal = read_journal(path)
        key_of = {s["sequence"]: s["key"] for s in journal.records[Stream.STARTS]}
        for stop in journal.records[Stream.STOPS]:
            if stop["status"] == 1:
                failed[journal.keys[key_of[stop["sequence"]]]] += 1
    merge_journals(journals).write(folder / "trace.h5")
    return folder, ends, failed


def test_retried_and_final_failures_are_those_of_dask_and_of_the_journals(
    run: tuple[Path, Mapping[str, str], Counter[str]],
) -> None:
    folder, ends, failed = run
    with open_trace(folder) as trace:
        answer = failures(trace)
    table = answer.table.set_index("function")
    assert table["executions"].sum() == failed.total()
    assert table["tasks"].sum() == len(failed)
    erred = {key for key, status in ends.items() if status == "error"}
    assert table["final"].sum() == len(erred) == 15
    assert set(answer.tables["tasks"]["key"]) == erred
    assert table["recovered"].sum() == len(set(failed) - erred) == 30
    assert (table.loc["flaky", "final"], table.loc["stubborn", "executions"]) == (0, 9)
    assert answer.unanswered == []


def test_messages_are_told_whole_and_together_but_for_their_numbers(
    run: tuple[Path, Mapping[str, str], Counter[str]],
) -> None:
    with open_trace(run[0]) as trace:
        answer = failures(trace)
    table = answer.table.set_index("function")
    assert table["exception"].to_dict() == {
        "flaky": "RuntimeError",
        "always_bad": "ValueError",
        "stubborn": "ValueError",
    }
    assert table.loc["flaky", "message"] == "bad trace header #"
    assert str(table.loc["flaky", "example"]).removeprefix("bad trace header ").isdigit()
    # of a message of several lines the first one
    assert table.loc["always_bad", "message"] == "corrupt SEG-Y block #"
    told = set(answer.tables["tasks"]["message"])
    assert told == {f"corrupt SEG-Y block {number}" for number in range(15)}


def test_findings_tell_final_ones_from_retried_ones_and_where_they_began(
    run: tuple[Path, Mapping[str, str], Counter[str]],
) -> None:
    with open_trace(run[0]) as trace:
        answer = failures(trace)
        final, retried = answer.findings
        assert (final.severity, retried.severity) == (Severity.SERIOUS, Severity.WARNING)
        assert "12 tasks of always_bad: ValueError: corrupt SEG" in final.sentence
        assert "30 tasks of flaky gave a result only when retried: Runtime" in retried.sentence
        for finding in (final, retried):
            assert trace.tasks.loc[finding.task, "state"] == "error"
            assert finding.start == trace.tasks.loc[finding.task, "start"]
            assert finding.start == answer.table.loc[list(finding.rows), "first_start"].min()
        assert (final.saves, final.incomplete, retried.incomplete) == (-1, True, False)
        assert retried.saves >= 0
        assert final.next_step == (
            "Tasks that need them, if there are any, never ran. Mend what the message names."
        )
    json.dumps(answer.document(), allow_nan=False)


def write(path: Path, tasks: list[Task], said: Said, workers: int = 2) -> Trace:
    """Write a trace in which the tasks of these positions say what they failed with."""
    made = Made(tasks, [Worker() for _ in range(workers)])
    make_trace(path, made).close()
    order = sorted(range(len(tasks)), key=lambda i: tasks[i].start)
    with open_trace(path) as plain:
        columns: dict[str, Any] = {str(name): plain.tasks[name].tolist() for name in plain.tasks}
    for name in ("exception", "message", "type", "dtype", "shape"):
        columns[name] = [None] * len(tasks)
    for position, (exception, message) in said.items():
        row = order.index(position)
        columns["exception"][row], columns["message"][row] = exception, message
    path.unlink()
    return make_trace(path, Made(tasks, made.workers, more={"tasks": columns}))


def test_a_run_without_failures_was_looked_at(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, 10)])) as trace:
        answer = failures(trace)
    assert answer.looked
    assert not len(answer.table)
    assert (answer.findings, answer.unanswered) == ([], [])


def test_a_task_fails_with_one_thing_and_in_the_end_with_another(tmp_path: Path) -> None:
    tasks = [
        Task("f-1", 0, 0, 10, state="error"),
        Task("f-1", 1, 20, 50, state="error"),
        Task("f-2", 0, 20, 40, state="error"),
        Task("f-2", 0, 60, 70),
    ]
    said = {0: ("OSError", "full"), 1: ("ValueError", "bad"), 2: ("OSError", "full")}
    with write(tmp_path / "trace.h5", tasks, said) as trace:
        table = failures(trace).table.set_index("exception")
    figures = table[["tasks", "recovered", "final", "time"]]
    assert figures.loc[["OSError", "ValueError"]].values.tolist() == [[2, 1, 0, 30], [1, 0, 1, 30]]
    assert table["worker"].to_dict() == {"OSError": "worker-0", "ValueError": "worker-1"}


def test_executions_lost_with_their_worker_are_told_apart(tmp_path: Path) -> None:
    tasks = [
        Task("f-1", 0, 0, -1, state="lost"),
        Task("f-2", 0, 5, -1, state="lost"),
        Task("f-1", 1, 100, 120),
        Task("g-1", 0, 3, 4, state="abandoned"),
    ]
    made = Made(tasks, [Worker(stop=50), Worker()], span=(0, 200))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = failures(trace)
    (row,) = answer.table.to_dict("records")
    assert (row["function"], row["exception"], row["lost"], row["executions"]) == ("f", LOST, 2, 2)
    assert (row["recovered"], row["final"], row["time"]) == (1, 1, 95)
    assert answer.tables["tasks"]["key"].tolist() == ["f-2"]
    (finding,) = answer.findings
    assert finding.severity is Severity.SERIOUS
    assert "2 executions of f were lost with worker worker-0" in finding.sentence
    assert "1 of 2 tasks was not executed again" in finding.sentence


def test_messages_are_printed_so_that_no_character_is_hidden(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 10, state="error")]
    with write(tmp_path / "trace.h5", tasks, {0: ("E", "a\x1b[31mred\tb")}) as trace:
        answer = failures(trace)
    assert answer.table.loc[0, "example"] == "a\\x1b[31mred\\tb"
    assert answer.tables["tasks"].loc[0, "message"] == "a\\x1b[31mred\\tb"
    assert printable("Größe 漢") == "Größe 漢"


def test_addresses_and_ids_do_not_part_messages(tmp_path: Path) -> None:
    texts = [
        "no block 0x7f3a00 in 1,024 of 3.5 s by 3f2a-0b1c9d8e-77aa",
        "no block 0x99 in 17 of 0.25 s by 3f2a-0b1c9d8e-77aa",
    ]
    tasks = [Task(f"f-{i}", 0, 10 * i, 10 * i + 5, state="error") for i in range(2)]
    said = {i: ("E", text) for i, text in enumerate(texts)}
    with write(tmp_path / "trace.h5", tasks, said) as trace:
        (message,) = failures(trace).table["message"]
    assert message.startswith("no block # in # of # s by ")


def test_the_table_of_tasks_is_bounded_and_the_counts_are_not(tmp_path: Path) -> None:
    count = MOST_TASKS + 20
    tasks = [Task(f"f-{i}", 0, i, i + 1, state="error") for i in range(count)]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        answer = failures(trace)
    assert answer.table["final"].tolist() == [count]
    assert answer.tables["tasks"]["key"].tolist() == [f"f-{i}" for i in range(MOST_TASKS)]
    # a trace that was recorded without messages says so, once
    assert len(answer.unanswered) == 1
    assert "message" not in answer.table
    assert "message" not in answer.tables["tasks"]
    (finding,) = answer.findings
    assert "`dasf-hpc logs RUN` shows the messages" in finding.next_step


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["memory", "error", "lost"])),
        min_size=1,
        max_size=30,
    )
)
def test_each_task_that_failed_is_final_or_recovered_as_its_last_execution_says(
    tmp_path_factory: pytest.TempPathFactory, ends: list[tuple[int, str]]
) -> None:
    tasks = [Task(f"f-{k}", 0, 10 * i, 10 * i + 5, state=s) for i, (k, s) in enumerate(ends)]
    path = tmp_path_factory.mktemp("failures") / "trace.h5"
    with make_trace(path, Made(tasks)) as trace:
        answer = analyse("failures", trace)
    last = dict(ends)
    failed = {k for k, state in ends if state != "memory"}
    final = {k for k in failed if last[k] != "memory"}
    assert answer.table["executions"].sum() == sum(state != "memory" for _, state in ends)
    assert answer.table["final"].sum() == len(final)
    assert set(answer.tables["tasks"]["key"]) == {f"f-{k}" for k in final}
    assert (answer.table["recovered"] + answer.table["final"] <= answer.table["tasks"]).all()


# ------------------------------------------------------------------------------ what is recorded


def test_what_an_exception_says_is_read_without_its_own_code(tmp_path: Path) -> None:
    assert error_message(Loud("a", 2), "Loud('a', 2)") == "'a', 2"
    assert error_message(Loud("word")) == "word"
    assert error_message(ValueError("\n  first \nsecond")) == "first"
    assert error_message(ValueError()) == ""
    assert error_message(ZeroDivisionError("division by zero")) == "division by zero"
    assert len(error_message(ValueError("x" * 5000))) == MAX_MESSAGE
    with pytest.raises(OSError, match="No such file") as caught:
        (tmp_path / "none").read_text()
    text = error_message(caught.value, repr(caught.value))
    assert text == f"No such file or directory: {str(tmp_path / 'none')!r}"[:MAX_MESSAGE]
    assert shown_error("mine.Error('a|b')") == "mine.Error|'a|b'"
    assert shown_error("") == ""
    assert shown_error("<a|b\nmore>") == "<a/b|<a|b"


def test_many_different_messages_lose_their_numbers_then_their_text() -> None:
    known: dict[str, int] = {}

    def string(text: str) -> int:
        return known.setdefault(text, len(known))

    texts = ResultTexts(string)
    for number in range(3 * MOST_MESSAGES):
        texts.describe_error(ValueError(f"block {number}"))
    whole = [text for text in known if "#" not in text]
    assert len(whole) == MOST_MESSAGES
    assert set(known) - set(whole) == {"ValueError|block #"}
    for number in range(3 * MOST_MESSAGES):
        texts.describe_error(ValueError("".join(chr(97 + int(c)) for c in str(number))))
    assert len(known) <= 2 * MOST_MESSAGES + 1
    assert "ValueError" in known


def test_a_message_that_ends_in_a_full_stop_gets_no_second_one(tmp_path: Path) -> None:
    tasks = [Task("f-1", 0, 0, 9, state="error")]
    with write(tmp_path / "trace.h5", tasks, {0: ("ValueError", "Nothing there.")}) as trace:
        (finding,) = failures(trace).findings
    assert finding.sentence == "1 task of f failed for good: ValueError: Nothing there."
