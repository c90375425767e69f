"""A trace on disk is whole or absent, reads as its page says, and gives what was asked for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_run

from dasf_hpc.trace import store
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.schema import (
    ATTRIBUTES,
    DICTIONARIES,
    FORMAT,
    NUL,
    TABLES,
    VERSION,
    Column,
    format_page,
)
from dasf_hpc.trace.store import LONGEST_FIXED, TraceError, replace_tables, write_trace
from dasf_hpc.trace.summary import summarise


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with a merged trace large enough for several chunks."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "journals", nodes=2, workers=2, tasks=4000, failing=0.02, answers=False)
    merge_journals(folder / "journals").write(folder / "trace.h5")
    return folder


@pytest.fixture
def trace(run_folder: Path) -> Iterator[Trace]:
    with open_trace(run_folder) as trace:
        yield trace


# ------------------------------------------------------------------------------ the schema


def _columns() -> list[tuple[str, Column]]:
    tables = TABLES.values()
    return [(table.name, c) for table in tables for c in (*table.columns, *table.derived)]


def test_what_columns_point_at_exists() -> None:
    for table, column in _columns():
        assert column.dictionary is None or column.dictionary in DICTIONARIES, (table, column.name)
        assert column.refers is None or column.refers in TABLES, (table, column.name)
        assert not (column.dictionary and column.refers)
        assert np.dtype(column.dtype).kind in "if"
        assert column.meaning
    used = {column.dictionary for _, column in _columns()} - {None}
    assert used == set(DICTIONARIES)


def test_a_tables_order_is_a_column_of_times() -> None:
    for table in TABLES.values():
        assert len({column.name for column in table.columns}) == len(table.columns)
        if table.order:
            ordered = table.column(table.order)
            assert (ordered.dtype, ordered.unit) == ("int64", "ns")


def test_the_format_page_lists_everything() -> None:
    page = format_page()
    sections = re.split(r"^### `(\w+)`$", page.split("## Dictionaries")[0], flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(described) == list(TABLES)
    for table, column in _columns():
        if column in TABLES[table].derived:
            assert f"`{column.name}`" in described[table]
            continue
        row = next(
            line for line in described[table].splitlines() if line.startswith(f"| `{column.name}`")
        )
        assert column.meaning in row
        assert column.dtype in row
        assert column.dictionary is None or f"`{column.dictionary}`" in row
    for name in [*DICTIONARIES, *(name for name, _, _ in ATTRIBUTES)]:
        assert f"| `{name}` |" in page


def test_the_format_page_in_the_repository_is_the_generated_one() -> None:
    committed = (Path(__file__).parents[1] / "FORMAT.md").read_text()
    assert committed.strip() == format_page().strip(), "write format_page() to FORMAT.md"


def test_the_format_pages_program_reads_a_trace(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", format_page(), flags=re.DOTALL)
    monkeypatch.chdir(run_folder)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(program, {})
    with open_trace(run_folder) as trace:
        lines = shown.getvalue().splitlines()
        assert len(lines) >= len(trace.tasks)  # a key may hold line feeds
        first = trace.tasks.loc[0]
        assert lines[0] == f"{first['key']} {(first['stop'] - first['start']) / 1e9}"


# ------------------------------------------------------------------------------ the file


def _text(attribute: Any) -> Any:
    """Give the text of an attribute, which h5py gives as bytes where its length is fixed."""
    return attribute.decode() if isinstance(attribute, bytes) else attribute


def test_the_file_is_what_the_page_says(run_folder: Path) -> None:
    with h5py.File(run_folder / "trace.h5") as file:
        # only a trace that was made of dasf-core's files names these
        assert set(file.attrs) == {name for name, _, _ in ATTRIBUTES} - {"imported"}
        assert _text(file.attrs["format"]) == FORMAT
        assert file.attrs["version"] == VERSION
        for name, group in file.items():
            if name == "dictionaries":
                continue
            table = TABLES[name]
            assert set(group) == {column.name for column in table.columns}
            assert _text(group.attrs.get("order")) == table.order
            for column in table.columns:
                dataset = group[column.name]
                assert dataset.shape == (group.attrs["rows"],)
                assert dataset.dtype == column.dtype
                assert _text(dataset.attrs["unit"]) == column.unit
                assert _text(dataset.attrs["meaning"]) == column.meaning
                assert _text(dataset.attrs.get("refers")) == column.refers
                assert _text(dataset.attrs.get("dictionary")) == column.dictionary
                if name in {c.name for c in TABLES["blocks"].columns}:
                    assert _text(dataset.attrs.get("after")) == column.after
                    assert ("differences" in dataset.attrs) == column.differences
                    assert dataset.attrs.get("resolution", 1) == column.resolution
                assert dataset.compression in (None, "gzip")
                if column.dictionary:
                    strings = file["dictionaries"][column.dictionary]
                    assert h5py.check_string_dtype(strings.dtype).encoding == "utf-8"
                    assert h5py.check_string_dtype(strings.dtype).length is not None
                    assert dataset[:].max(initial=-1) < len(strings)
        assert file["tasks/start"].compression == "gzip"
        assert file["tasks/start"].shuffle
        assert file["tasks/start"].fletcher32


_TEXTS = st.one_of(st.none(), st.text(max_size=20))


@st.composite
def _tables(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Draw some rows for some tables, as numbers and strings."""
    tables = {}
    for name in draw(st.lists(st.sampled_from(sorted(TABLES)), unique=True, max_size=4)):
        rows = draw(st.integers(0, 5))
        columns: dict[str, Any] = {}
        for column in TABLES[name].columns:
            if draw(st.booleans()):
                continue
            kind = np.dtype(column.dtype)
            values: st.SearchStrategy[Any]
            if column.dictionary:
                values = _TEXTS
            elif kind.kind == "f":
                values = st.floats(width=32) if kind.itemsize == 4 else st.floats()
            else:
                limits = np.iinfo(kind)
                values = st.integers(int(limits.min), int(limits.max))
            columns[column.name] = draw(st.lists(values, min_size=rows, max_size=rows))
        if columns:
            tables[name] = columns
    return tables


def _stored(text: str | None) -> str | None:
    return None if text is None else text.replace("\0", NUL)


def _check(trace: Trace, tables: dict[str, dict[str, Any]]) -> None:
    for name, columns in tables.items():
        table = getattr(trace, name)
        for column in TABLES[name].columns:
            read = table[column.name].tolist()
            if column.name not in columns:
                missing = np.nan if column.dictionary or column.dtype.startswith("float") else -1
                np.testing.assert_array_equal(read, [missing] * len(table))
            elif column.dictionary:
                texts = [None if isinstance(v, float) else v for v in read]
                assert texts == [_stored(v) for v in columns[column.name]]
            else:
                np.testing.assert_array_equal(read, columns[column.name])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=_tables(), second=_tables())
def test_tables_come_back_and_can_be_replaced_one_by_one(
    tmp_path: Path, first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> None:
    path = tmp_path / "trace.h5"
    write_trace(path, first, attributes={"origin_utc_ns": 7})
    with open_trace(path) as trace:
        assert set(trace.tables) == set(first)
        _check(trace, first)
    replace_tables(path, second)
    with open_trace(path) as trace:
        assert set(trace.tables) == set(first) | set(second)
        assert trace.attributes["origin_utc_ns"] == 7
        _check(trace, {**first, **second})
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_nul_at_a_strings_end_is_kept(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.h5", {"dependencies": {"key": ["a\0"], "dependency": ["\0"]}})
    with open_trace(tmp_path) as trace:
        assert trace.dependencies.to_numpy().tolist() == [[f"a{NUL}", NUL]]


@pytest.mark.parametrize("length", [1, LONGEST_FIXED, LONGEST_FIXED + 1, 100_000])
def test_strings_of_any_length_come_back(tmp_path: Path, length: int) -> None:
    texts = ["a", "\N{SNOWMAN}" * (length // 3), "x" * length, ""]
    write_trace(tmp_path / "trace.h5", {"dependencies": {"key": texts, "dependency": texts}})
    with open_trace(tmp_path) as trace:
        assert trace.dependencies["key"].tolist() == texts
    with h5py.File(tmp_path / "trace.h5") as file:
        kind = h5py.check_string_dtype(file["dictionaries/keys"].dtype)
        assert (kind.length is None) == (length > LONGEST_FIXED)


def test_codes_and_strings_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    codes = np.array([1, 0, -1], np.int32)
    write_trace(
        path,
        {"dependencies": {"key": codes, "dependency": ["c", "a", None]}},
        {"keys": ["a", "b"]},
    )
    with open_trace(path) as trace:
        pairs = trace.dependencies
        assert pairs["key"].tolist()[:2] == ["b", "a"]
        assert pairs["key"].isna().tolist() == [False, False, True]
        assert pairs["dependency"].tolist()[:2] == ["c", "a"]
        assert list(pairs["key"].cat.categories) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": [1, 2], "dependency": [1]}, "differ in length"),
        ({"keys": [1]}, "no column keys"),
        ({"key": np.array([3])}, "a code without a string"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_and_the_old_trace_stays(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = tmp_path / "trace.h5"
    write_trace(path, {"dependencies": {"key": ["a"], "dependency": ["b"]}})
    before = path.read_bytes()
    for write in (write_trace, replace_tables):
        with pytest.raises(TraceError, match=message):
            write(path, {"dependencies": columns})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_too_large_for_its_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nodes\.cpus .* does not fit int32"):
        write_trace(tmp_path / "trace.h5", {"nodes": {"cpus": [1 << 40]}})


# ------------------------------------------------------------------------------ crashes

_WRITER = """
import sys
from pathlib import Path
import numpy as np
from dasf_hpc.trace.store import replace_tables, write_trace

path = Path(sys.argv[1])
rows = np.arange(200_000)
print("ready", flush=True)
for turn in range(10**9):
    columns = {"time": rows, "swap_used": np.full(len(rows), turn)}
    if turn % 2:
        replace_tables(path, {"node_samples": columns})
    else:
        write_trace(path, {"node_samples": columns})
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    write_trace(path, {"node_samples": {"time": np.arange(5), "swap_used": np.full(5, -7)}})
    for turn in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with open_trace(path) as trace:
            samples = trace.node_samples
        assert len(samples) in (5, 200_000)
        assert samples["swap_used"].nunique() == 1
        assert samples["time"].tolist() == list(range(len(samples)))


def test_a_full_disk_leaves_the_old_trace(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted (run as root): {mounted.stderr.strip()}")
    try:
        path = disk / "trace.h5"
        write_trace(path, {"node_samples": {"time": [1]}})
        before = path.read_bytes()
        noise = np.random.default_rng(0).integers(0, 1 << 62, 1_000_000)
        for write in (write_trace, replace_tables):
            with pytest.raises(TraceError, match="could not be written") as raised:
                write(path, {"node_samples": {"time": noise}})
            assert "\n" not in str(raised.value)
            assert path.read_bytes() == before
            assert list(disk.iterdir()) == [path]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_folder_that_does_not_exist_is_a_trace_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="could not be written: No such file"):
        write_trace(tmp_path / "none" / "trace.h5", {})


# ------------------------------------------------------------------------------ bad files


def _refused(path: Path) -> str:
    with pytest.raises(TraceError) as raised:
        open_trace(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "No such file" in _refused(tmp_path / "none.h5")
    assert "holds neither trace.h5 nor journals" in _refused(tmp_path)
    (tmp_path / "journals").mkdir()
    assert "dasf-hpc merge" in _refused(tmp_path)
    path = tmp_path / "a.h5"
    path.touch()
    assert "is empty" in _refused(path)
    path.write_text("not HDF5")
    assert "is not an HDF5 file" in _refused(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]
    assert "no trace of dasf-hpc" in _refused(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "something else"
    assert "'something else'" in _refused(path)
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION + 1})
    assert f"version {VERSION + 1}" in _refused(path)
    assert "newer dasf-hpc" in _refused(path)


def test_a_truncated_trace_is_refused(tmp_path: Path, run_folder: Path) -> None:
    whole = (run_folder / "trace.h5").read_bytes()
    path = tmp_path / "a.h5"
    for length in (len(whole) - 1, len(whole) // 2, 4000, 100):
        path.write_bytes(whole[:length])
        assert "is truncated" in _refused(path)
    path.write_bytes(whole[:4])
    assert "is not an HDF5 file" in _refused(path)


def test_a_trace_that_may_not_be_read_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.h5"
        write_trace(path, {})
        Path(folder).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0  # who may read every file
        if root:
            os.seteuid(65534)
        try:
            assert "Permission denied" in _refused(path)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("dataset", ["tasks/start", "transitions/key", "dictionaries/keys"])
def test_a_damaged_column_is_a_trace_error_and_no_other_rows(
    tmp_path: Path, run_folder: Path, dataset: str
) -> None:
    damaged = bytearray((run_folder / "trace.h5").read_bytes())
    with h5py.File(run_folder / "trace.h5") as file:
        chunk = file[dataset].id.get_chunk_info(0)
    damaged[chunk.byte_offset + chunk.size // 2] ^= 16
    path = tmp_path / "damaged.h5"
    path.write_bytes(damaged)
    table = "transitions" if dataset == "transitions/key" else "tasks"
    with open_trace(path) as trace, pytest.raises(TraceError, match="is damaged") as raised:
        trace.table(table)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------ reading


def test_a_table_that_lost_a_column_is_damaged(tmp_path: Path, run_folder: Path) -> None:
    path = tmp_path / "lost.h5"
    path.write_bytes((run_folder / "trace.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["processes/start"]
    with open_trace(path) as trace:
        assert len(trace.tasks)
        for read in (lambda: summarise(trace), lambda: trace.table("processes", ["start"])):
            with pytest.raises(TraceError, match="table processes lacks column start"):
                read()


def test_a_dictionary_that_repeats_a_string_is_damaged(tmp_path: Path, run_folder: Path) -> None:
    path = tmp_path / "repeats.h5"
    path.write_bytes((run_folder / "trace.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        states = file["dictionaries/states"]
        states[1] = states[0]
    with (
        open_trace(path) as trace,
        pytest.raises(TraceError, match="dictionary states repeats a string"),
    ):
        trace.table("transitions")


def test_only_the_columns_that_are_asked_for_are_read(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = store.read_column

    def watched(file: Any, table: str, column: str, rows: slice) -> Any:
        read.append(column)
        return real(file, table, column, rows)

    monkeypatch.setattr(store, "read_column", watched)
    table = trace.table("tasks", ["stop", "prefix"])
    # by "start" the rows are sorted, and "stop" is stored relative to it
    assert set(read) == {"start", "stop", "prefix"}
    assert list(table.columns) == ["stop", "prefix"]
    pd.testing.assert_frame_equal(table, trace.tasks[["stop", "prefix"]])
    read.clear()
    assert len(trace.tasks)
    assert read == []  # a table that was read is kept


@pytest.mark.parametrize("name", ["tasks", "transitions", "memory"])
def test_a_window_of_time_holds_what_begins_in_it(trace: Trace, name: str) -> None:
    order = TABLES[name].order
    assert order is not None
    whole = trace.table(name)
    times = whole[order].to_numpy()
    chance = np.random.default_rng(0)
    windows: list[tuple[int | None, int | None]] = [
        (None, int(times[5])),
        (int(times[-5]), None),
        (int(times[7]), int(times[7])),
        (int(times[7]), int(times[7]) + 1),
        (int(times[-1]) + 1, None),
        (-100, -50),
        (int(times[100]), int(times[50])),
    ]
    windows += [
        (int(a), int(b)) for a, b in np.sort(chance.integers(times[0], times[-1], (20, 2)), axis=1)
    ]
    for start, stop in windows:
        expected = whole
        if start is not None:
            expected = expected[expected[order] >= start]
        if stop is not None:
            expected = expected[expected[order] < stop]
        found = trace.table(name, start=start, stop=stop)
        assert found.index.tolist() == expected.index.tolist()
        for column in whole.columns:
            assert found[column].astype(object).equals(expected[column].astype(object)), column


def test_a_windows_strings_are_read_from_their_stretch_of_the_dictionary(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches = []
    real = store.read_dictionary

    def watched(file: Any, name: str, start: int = 0, stop: int | None = None) -> Any:
        stretches.append((start, stop))
        return real(file, name, start, stop)

    monkeypatch.setattr(store, "read_dictionary", watched)
    with open_trace(run_folder) as trace:
        times = trace.table("tasks", ["start"])["start"]
        window = trace.table("tasks", ["key"], int(times.iloc[5000]), int(times.iloc[5100]))
        assert len(window) == 100
        ((start, stop),) = stretches
        assert stop is not None
        # keys are numbered by the row of their first execution
        assert 0 < stop - start < store.dictionary_size(trace._file, "keys")
        assert window["key"].tolist() == trace.tasks["key"].iloc[5000:5100].tolist()


def test_a_window_of_a_table_without_order_is_refused(trace: Trace) -> None:
    with pytest.raises(TraceError, match="not sorted by time"):
        trace.table("nodes", start=0)


def test_tables_and_columns_that_are_not_there_say_so(trace: Trace) -> None:
    with pytest.raises(AttributeError, match="no table 'flights'"):
        _ = trace.flights
    with pytest.raises(KeyError, match="no table 'flights'"):
        trace.table("flights")
    with pytest.raises(KeyError, match="no column 'colour'"):
        trace.table("tasks", ["colour"])
    assert not hasattr(trace, "__length_hint__")


def test_an_absent_table_is_empty_with_its_columns(trace: Trace) -> None:
    assert "reports" not in trace.tables
    reports = trace.reports
    assert len(reports) == 0
    assert list(reports.columns) == [column.name for column in TABLES["reports"].columns]
    assert reports["session_start_utc"].dtype == np.int64
    assert trace.rows("reports") == 0
    assert trace.rows("tasks") == len(trace.tasks)


def test_dependents_are_sorted_and_complete(trace: Trace) -> None:
    dependents = trace.dependents()
    assert len(dependents) == len(trace.dependencies)
    assert dependents["key"].cat.codes.is_monotonic_increasing
    assert isinstance(dependents["dependent"].dtype, pd.CategoricalDtype)


def test_a_closed_trace_keeps_what_was_read(run_folder: Path) -> None:
    with open_trace(run_folder) as trace:
        count = len(trace.tasks)
    assert len(trace.tasks) == count
    assert "closed" in repr(trace)
    with pytest.raises(TraceError, match="was closed"):
        _ = trace.memory


def test_a_trace_can_be_opened_by_run_and_by_file_and_by_text(run_folder: Path) -> None:
    for path in (run_folder, run_folder / "trace.h5", str(run_folder)):
        with open_trace(path) as trace:
            assert trace.path == run_folder / "trace.h5"
            assert "tasks" in dir(trace)


# ------------------------------------------------------------------------------ the summary


def test_the_summary_says_what_the_trace_holds(trace: Trace) -> None:
    summary = summarise(trace)
    assert summary.nodes == ["node1", "node2"]
    assert summary.workers == 4
    assert sum(summary.tasks.values()) == len(trace.tasks)
    assert set(summary.tasks) == {"memory", "error"}
    assert summary.keys == trace.tasks["key"].nunique() == 16_000
    assert summary.duration == trace.processes["stop"].max()
    assert summary.reports == []
    assert summary.bound == trace.clocks["bound"].max()
    assert summary.bound_source == "probes"
    assert summary.gaps == []
    assert len(summary.functions) == 10
    totals = [function.total for function in summary.functions]
    assert totals == sorted(totals, reverse=True)
    first = summary.functions[0]
    tasks = trace.tasks[trace.tasks["prefix"] == first.prefix]
    duration = tasks["stop"] - tasks["start"]
    assert (first.count, first.total) == (len(tasks), duration.sum())
    assert (first.mean, first.max) == (duration.sum() // len(tasks), duration.max())
    assert json.loads(json.dumps(asdict(summary))) == asdict(summary)


def test_the_summary_of_an_empty_trace_is_empty(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.h5", {})
    with open_trace(tmp_path) as trace:
        summary = summarise(trace)
    assert summary.nodes == []
    assert summary.tasks == {}
    assert summary.bound is None
    assert summary.functions == []
    assert summary.duration == 0


def test_the_summary_shows_reports_and_gaps(tmp_path: Path, run_folder: Path) -> None:
    path = tmp_path / "trace.h5"
    path.write_bytes((run_folder / "trace.h5").read_bytes())
    replace_tables(
        path,
        {
            "reports": {
                "node": [0, -1],
                "file": ["nsight/a.nsys-rep", None],
                "status": ["joined", "missing"],
                "ranges": [12, -1],
                "compute_ranges": [10, -1],
                "linked": [9, -1],
            },
            "gaps": {
                "kind": ["records dropped", "records dropped", "blocks damaged"],
                "count": [5, -1, 2],
                "reason": ["ENOSPC", "ENOSPC", "torn"],
            },
        },
    )
    with open_trace(path) as trace:
        summary = summarise(trace)
        assert len(trace.tasks) == 16_000 + (trace.tasks["state"] == "error").sum()
    assert [asdict(report) for report in summary.reports] == [
        {
            "node": trace.nodes["hostname"].iloc[0],
            "file": "nsight/a.nsys-rep",
            "status": "joined",
            "ranges": 12,
            "compute_ranges": 10,
            "linked": 9,
        },
        {
            "node": None,
            "file": None,
            "status": "missing",
            "ranges": -1,
            "compute_ranges": -1,
            "linked": -1,
        },
    ]
    assert [asdict(gap) for gap in summary.gaps] == [
        {"kind": "records dropped", "places": 2, "count": 5, "reasons": ("ENOSPC",)},
        {"kind": "blocks damaged", "places": 1, "count": 2, "reasons": ("torn",)},
    ]
    assert summary.gaps[0].sentence == "records dropped: 5 in 2 places (ENOSPC)"


@pytest.mark.parametrize("locking", [None, True, False])
def test_a_trace_that_this_process_has_open_with_h5py_is_opened(
    locking: bool | None, tmp_path: Path
) -> None:
    path = tmp_path / "trace.h5"
    write_trace(path, {"nodes": {"hostname": ["a"]}})
    with h5py.File(path, "r", locking=locking), open_trace(path) as trace:
        assert list(trace.nodes["hostname"]) == ["a"]
