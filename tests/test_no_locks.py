"""Runs on a file system without POSIX locks: what is read and written needs none there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from system.conftest import command
from test_nsight import make_export
from testbed import nolocks

from dasf_hpc.nsight.errors import NsightError, ReportDamaged
from dasf_hpc.nsight.export import export_sqlite, find_nsys, is_whole
from dasf_hpc.nsight.reader import read_report

pytestmark = pytest.mark.skipif(
    nolocks.why_not_here() is not None, reason=str(nolocks.why_not_here())
)

JOB = """
import time
from distributed import Client

def inc(x):
    time.sleep(0.01)
    return x + 1

with Client() as client:
    print(sum(client.gather(client.map(inc, range(20)))))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the library that takes the locks away."""
    return nolocks.build(tmp_path_factory.mktemp("nolocks"))


def said(*words: str, **environment: str) -> tuple[int, str]:
    """Give a command's exit code, and all it says."""
    done = subprocess.run(
        command(*words),
        env={**os.environ, "DASF_HPC_REPORT": "false", "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(nsys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of a run with a report."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.py").write_text(JOB)
    words = ("--runs-dir", str(folder / "runs"), "--on", "local", "--nodes", "1", "--nsys")
    code, text = said("submit", *words, str(folder / "job.py"))
    assert code == 0, text
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Give a copy of the run without its trace and exports."""
    run = tmp_path / "with space, 100% #1?" / finished.name
    shutil.copytree(finished, run)
    (run / "trace.h5").unlink()
    for export in (run / "nsight").glob("*.sqlite"):
        export.unlink()
    return run


def wrapped(nsys: Path, path: Path, environment: Mapping[str, str]) -> str:
    """Give an nsys that has these variables, whatever it is started with."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
    path.write_text(f'#!/bin/sh\n{exports}exec {nsys} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.needs("nsys")
@pytest.mark.parametrize("where", ["on the run's file system", "anywhere"])
def test_a_run_is_merged_shown_and_analysed(
    run: Path, library: Path, nsys: Path, tmp_path: Path, where: str
) -> None:
    below = run.parent if where.startswith("on") else None
    environment = nolocks.variables(library, below)
    words = ["merge", str(run)]
    if below is not None:  # nsys meets them, too
        words += ["--nsys-path", wrapped(nsys, tmp_path / "nsys", environment)]
    code, text = said(*words, **environment)
    assert code == 0, text
    assert "Reports 1 of 1" in " ".join(text.split()), text
    assert "20 of 20 task ranges linked" in text
    merged = json.loads((run / "run.json").read_text())["merged"]
    assert [report["sentence"] for report in merged["reports"]] == [""]
    (export,) = (run / "nsight").glob("*.sqlite")
    left = [p.name for p in (run / "nsight").iterdir() if p.name.startswith(".")]
    assert is_whole(export)
    assert left == []
    # now from the export that is there
    code, text = said("merge", str(run), **environment)
    assert code == 0, text
    for words in (["show", "--strict", str(run)], ["analyze", "where", str(run)]):
        code, text = said(*words, **environment)
        assert code == 0, text
    code, text = said("compare", str(run), "--head", str(run), **environment)
    assert code == 82, text
    assert "1 and 1 runs are too few" in text


@pytest.mark.needs("nsys")
def test_hdf5_that_is_told_to_lock_is_named(finished: Path, library: Path) -> None:
    environment = nolocks.variables(library, finished) | {"HDF5_USE_FILE_LOCKING": "TRUE"}
    code, text = said("show", str(finished), **environment)
    assert code == 76
    assert "HDF5_USE_FILE_LOCKING=TRUE insists on" in text


@pytest.mark.needs("nsys")
def test_a_whole_run_where_there_are_no_locks(library: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    words = ("--runs-dir", str(tmp_path / "runs"), "--on", "local", "--nodes", "1", "--nsys")
    environment = nolocks.variables(library, tmp_path)
    code, text = said("submit", *words, str(tmp_path / "job.py"), **environment)
    assert code == 0, text
    assert "20 of 20 task ranges linked" in text


def test_whose_turn_it_is_to_start_nsys_is_not_waited_for(library: Path) -> None:
    program = (
        "import time; from dasf_hpc.nsight.sessions import turn\n"
        "begun = time.monotonic()\nwith turn(): print(time.monotonic() - begun)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **nolocks.variables(library)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 5


# ------------------------------------------------------------- exports that another one writes


def counting(export: Path) -> int:
    """Give the NVTX ranges of an export."""
    return len(read_report(export).ranges)


def add_range(connection: sqlite3.Connection) -> None:
    """Add a copy of a range to an export."""
    rows = connection.execute("SELECT * FROM NVTX_EVENTS WHERE eventType = 59").fetchall()
    marks = ", ".join("?" for _ in rows[0])
    connection.execute(f"INSERT INTO NVTX_EVENTS VALUES ({marks})", rows[0])


def test_an_export_is_read_whatever_its_name(tmp_path: Path) -> None:
    export = make_export(tmp_path / "100% of #1?&mode=rw \xe9.sqlite", "2023.4")
    assert counting(export) > 0


def test_what_stands_in_a_write_ahead_log_is_read(tmp_path: Path) -> None:
    export = make_export(tmp_path / "node.sqlite", "2023.4")
    before = counting(export)
    writer = sqlite3.connect(export)
    writer.execute("PRAGMA journal_mode=WAL")
    add_range(writer)
    writer.commit()
    assert (tmp_path / "node.sqlite-wal").stat().st_size > 0
    assert is_whole(export)
    assert counting(export) == before + 1
    writer.close()


def test_an_export_that_is_half_written_is_not_taken(tmp_path: Path) -> None:
    export = make_export(tmp_path / "node.sqlite", "2023.4")
    assert is_whole(export)
    whole = export.read_bytes()
    nobody = find_nsys(str(tmp_path / "nsys"))
    # cut, as a copy that goes on; grown; and with the first page still empty, as nsys has it
    for half in (whole[:-4096], whole + bytes(4096), bytes(4096) + whole[4096:]):
        export.write_bytes(half)
        assert not is_whole(export)
        with pytest.raises(ReportDamaged, match="export the report again"):
            export_sqlite(export, nobody)
    export.write_bytes(whole)
    # One writes with a journal, and was killed or goes on.
    (tmp_path / "node.sqlite-journal").write_bytes(bytes(512))
    assert is_whole(export)
    (tmp_path / "node.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    with pytest.raises(ReportDamaged, match="half written; export the report again"):
        export_sqlite(export, nobody)


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    """Give a real report."""
    (report,) = (finished / "nsight").glob("*.nsys-rep")
    return report


@pytest.mark.needs("nsys")
class TestRealReport:
    def test_an_export_in_the_making_is_made_again(
        self, report: Path, nsys: Path, tmp_path: Path
    ) -> None:
        own = tmp_path / "node.nsys-rep"
        own.write_bytes(report.read_bytes())
        export = export_sqlite(own, find_nsys())
        whole, ranges = export.read_bytes(), counting(export)
        for half in (whole[:-8192], bytes(4096) + whole[4096:]):
            export.write_bytes(half)
            assert counting(export_sqlite(own, find_nsys())) == ranges
        journal = tmp_path / "node.sqlite-journal"
        journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
        assert counting(export_sqlite(own, find_nsys())) == ranges
        assert sorted(p.name for p in tmp_path.iterdir()) == ["node.nsys-rep", "node.sqlite"]

    @pytest.mark.parametrize("place", ["missing", "a file", "full"])
    def test_an_export_is_made_where_the_first_scratch_folder_is_no_use(
        self, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        scratch = tmp_path / "scratch"
        if place == "a file":
            scratch.touch()
        monkeypatch.setenv("TMPDIR", str(scratch))
        if place == "full":
            scratch.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scratch)]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                pytest.skip("a file system cannot be mounted: run this as root")
        try:
            assert counting(export_sqlite(report, find_nsys(), tmp_path / "into")) > 0
            assert [p.name for p in (tmp_path / "into").iterdir()] == [f"{report.stem}.sqlite"]
        finally:
            if place == "full":
                subprocess.run(["umount", str(scratch)], check=True)

    def test_where_no_folder_has_locks_the_sentence_says_so(
        self, report: Path, nsys: Path, library: Path, tmp_path: Path
    ) -> None:
        program = find_nsys(wrapped(nsys, tmp_path / "nsys", nolocks.variables(library)))
        with pytest.raises(NsightError, match=r"it needs a folder whose file system has locks"):
            export_sqlite(report, program, tmp_path / "into")
        assert list((tmp_path / "into").iterdir()) == []

    def test_an_export_from_another_file_system_is_copied_whole(
        self, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shm = Path("/dev/shm")
        if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system: /dev/shm is the same one")
        monkeypatch.setenv("TMPDIR", str(shm))
        export = export_sqlite(report, find_nsys(), tmp_path)
        assert is_whole(export)
        assert counting(export) > 0
        assert not list(shm.glob(".dasf-hpc-export-*"))
