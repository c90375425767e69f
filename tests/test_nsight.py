"""Reports: what a real nsys recorded is exported, read and joined whole, whatever its schema."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import (
    KERNEL,
    MEMCPY,
    MEMSET,
    NVTX_2020,
    ON_DEVICE,
    RUNTIME,
    SCHEMAS,
    SYNC,
    SYSTEM_ENV,
    global_id,
)

from dasf_hpc.nsight.errors import (
    NsightError,
    NsysUnavailable,
    ReportDamaged,
    ReportMissing,
    ReportTooNew,
)
from dasf_hpc.nsight.export import (
    NsysProgram,
    NsysState,
    _find_importer,
    export_command,
    export_sqlite,
    find_nsys,
    import_stream,
    report_version,
    sha256_file,
)
from dasf_hpc.nsight.join import Link, join_report, report_corrections, same_host
from dasf_hpc.nsight.reader import Report, read_report
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.nsight.sqlite import Export as ReportExport

PROFILED = textwrap.dedent(
    """
    import json, os, subprocess, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    import nvtx
    from dasf_hpc.profile.nvtx_domain import speak_always

    speak_always()

    base, out = int(sys.argv[1]), sys.argv[2]
    child = None
    if len(sys.argv) > 3:
        child = subprocess.Popen([sys.executable, __file__, sys.argv[3], out])

    def mark():
        for _ in range(8):
            nvtx.mark(message="clock", domain="dasf_hpc.clock", payload=time.monotonic_ns())

    def task(number):
        started = time.monotonic_ns()
        nvtx.push_range(message=f"name-{number % 3}", domain="compute", payload=base + number)
        time.sleep(0.0005)
        nvtx.pop_range(domain="compute")
        return base + number, threading.get_native_id(), started, time.monotonic_ns()

    mark()
    with ThreadPoolExecutor(3) as pool:
        tasks = list(pool.map(task, range(100)))
    opened = nvtx.start_range(message="started", domain="compute", payload=base + 1000)
    nvtx.end_range(opened)
    nvtx.push_range(message="someone else's", domain="library", payload=base + 5000)
    nvtx.pop_range(domain="library")
    nvtx.push_range(message="no domain")
    nvtx.pop_range()
    nvtx.push_range(message="no payload", domain="compute")
    nvtx.pop_range(domain="compute")
    mark()
    with open(os.path.join(out, f"{base}.json"), "w") as file:
        json.dump({"pid": os.getpid(), "tasks": tasks}, file)
    if child is not None:
        child.wait()
    """
)
BASES = (2**61 + 2**24, 5 * 2**24)
"""Ids of the first task of the parent and of the child: one beyond what a float can hold."""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, profile: Callable[..., Any]) -> Path:
    """Profile two processes of several threads; gives the folder with the report and journals."""
    folder = tmp_path_factory.mktemp("profiled")
    (folder / "job.py").write_text(PROFILED)
    flags = ["-t", "nvtx,osrt", "--sample=none", "--cpuctxsw=none"]
    command = [sys.executable, str(folder / "job.py"), str(BASES[0]), str(folder), str(BASES[1])]
    environment = os.environ | {"SECRET_TOKEN": "hunter2-never-copied"}
    done = profile(folder / "node", flags, command, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def program(nsys: Path) -> NsysProgram:
    """Give the nsys of this machine."""
    return find_nsys(str(nsys))


@pytest.fixture(scope="module")
def report_file(profiled: Path, program: NsysProgram) -> Path:
    """Give the report, imported if nsys could not do that."""
    report = profiled / "node.nsys-rep"
    return report if report.exists() else import_stream(profiled / "node.qdstrm", program)


@pytest.fixture(scope="module")
def report(report_file: Path, program: NsysProgram) -> Report:
    """Give the report, exported and read."""
    return read_report(export_sqlite(report_file, program))


@pytest.fixture(scope="module")
def journals(profiled: Path) -> list[dict[str, Any]]:
    """Give what the two processes themselves recorded."""
    return [json.loads((profiled / f"{base}.json").read_text()) for base in BASES]


@pytest.mark.needs("nsys")
class TestRealReport:
    def test_every_range_is_there_with_its_process_thread_and_payload(
        self, report: Report, journals: list[dict[str, Any]]
    ) -> None:
        ranges = report.ranges
        assert (np.diff(ranges.start) >= 0).all()
        assert (ranges.stop >= ranges.start).all()
        read = {
            (pid, tid, payload)
            for pid, tid, payload, domain in zip(
                ranges.pid.tolist(),
                ranges.tid.tolist(),
                ranges.payload.tolist(),
                ranges.domain.values().tolist(),
                strict=True,
            )
            if domain == "compute" and payload not in (NONE, BASES[0] + 1000, BASES[1] + 1000)
        }
        recorded = {
            (journal["pid"], tid, task)
            for journal in journals
            for task, tid, _, _ in journal["tasks"]
        }
        assert len(recorded) == 200
        assert read == recorded

    def test_ranges_keep_their_domain_and_message(
        self, report: Report, journals: list[dict[str, Any]]
    ) -> None:
        ranges = report.ranges
        names = dict(zip(ranges.payload.tolist(), ranges.message.values(), strict=True))
        assert names[BASES[1] + 4] == "name-1"
        assert names[BASES[0] + 1000] == "started"
        domains = dict(zip(ranges.message.values(), ranges.domain.values(), strict=True))
        assert domains["someone else's"] == "library"
        assert domains["no domain"] == ""
        payloads = dict(zip(ranges.message.values(), ranges.payload.tolist(), strict=True))
        assert payloads["no payload"] == NONE

    def test_only_profiled_processes_are_listed(
        self, report: Report, journals: list[dict[str, Any]]
    ) -> None:
        pids = {journal["pid"] for journal in journals}
        assert pids <= set(report.processes.pid.tolist())
        assert 1 not in report.processes.pid

    def test_the_report_says_where_and_when_it_is_from(
        self, report: Report, program: NsysProgram
    ) -> None:
        assert report.hostname is not None
        assert same_host(report.hostname, os.uname().nodename)
        assert report.session_start_utc_ns is not None
        assert abs(report.session_start_utc_ns - time.time_ns()) < 3600e9
        assert report.exporter_version is not None
        assert program.version_text is not None
        assert program.version_text.startswith(report.exporter_version)

    def test_no_environment_variable_gets_out(self, report: Report) -> None:
        assert "hunter2" not in repr(report)
        for column in (report.ranges.message, report.ranges.domain):
            assert not any("hunter2" in name for name in column.categories)

    def test_every_task_range_is_linked_to_its_task(
        self, report: Report, journals: list[dict[str, Any]]
    ) -> None:
        processes = {
            "id": np.array([7, 3]),
            "hostname": np.array([os.uname().nodename] * 2),
            "pid": np.array([journal["pid"] for journal in journals]),
        }
        ids = [[task for task, *_ in journal["tasks"]] for journal in journals]
        tasks = {"id": np.array(ids[0] + ids[1]), "process": np.array([7] * 100 + [3] * 100)}
        joined = join_report(report, processes, tasks)
        assert joined.counts[Link.LINKED] == joined.tasks_linked == 200
        assert joined.counts[Link.UNKNOWN_TASK] == 2  # "started", of each process
        assert joined.counts[Link.NO_TASK_ID] == 2
        assert sum(joined.counts.values()) == len(joined.ranges) == 204
        linked = joined.link == Link.LINKED
        assert (joined.task[linked] == joined.ranges.payload[linked]).all()
        assert (joined.task[~linked] == NONE).all()

    def test_marks_tie_the_ranges_to_the_tasks_own_clock(
        self, report: Report, journals: list[dict[str, Any]]
    ) -> None:
        corrections = report_corrections(report)
        for journal in journals:
            correction = corrections[journal["pid"]]
            assert correction.source == "marks"
            assert correction.points == 16
            assert correction.bound_ns < 5_000_000  # some 10 us; a busy machine holds marks up
            place = {payload: row for row, payload in enumerate(report.ranges.payload.tolist())}
            for task, _, started, stopped in journal["tasks"]:
                start = correction.apply(int(report.ranges.start[place[task]]))
                stop = correction.apply(int(report.ranges.stop[place[task]]))
                assert started - correction.bound_ns <= start
                assert stop <= stopped + correction.bound_ns

    def test_utc_tells_the_clock_where_marks_are_missing(self, report: Report) -> None:
        marked = report_corrections(report)
        pid = next(iter(marked))
        before, utc, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        unmarked = _without_marks(report)
        fallen_back = report_corrections(unmarked, {pid: np.array([[before, utc, after]])})[pid]
        off = abs(fallen_back.apply(10**9) - marked[pid].apply(10**9))
        assert off <= fallen_back.bound_ns + marked[pid].bound_ns


@pytest.mark.needs("nsys")
class TestExport:
    def test_a_fresh_export_is_reused_and_a_stale_one_made_again(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        exported = export_sqlite(report_file, program, tmp_path)
        assert exported == tmp_path / "node.sqlite"
        first = exported.stat()
        assert export_sqlite(report_file, program, tmp_path).stat().st_mtime_ns == first.st_mtime_ns
        os.utime(exported, ns=(0, report_file.stat().st_mtime_ns - 1))
        again = export_sqlite(report_file, program, tmp_path)
        assert again.stat().st_mtime_ns >= report_file.stat().st_mtime_ns
        assert list(tmp_path.iterdir()) == [exported]

    def test_an_export_that_was_cut_off_is_made_again(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        (tmp_path / "node.sqlite").write_bytes(b"")
        assert len(read_report(export_sqlite(report_file, program, tmp_path)).ranges) > 0

    def test_an_export_that_was_named_is_read_though_its_report_is_newer(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        report = tmp_path / "node.nsys-rep"
        report.write_bytes(report_file.read_bytes())
        exported = export_sqlite(report, program)
        assert export_sqlite(exported, program).stat() == exported.stat()
        os.utime(exported, ns=(0, report.stat().st_mtime_ns - 1))
        old = exported.stat().st_mtime_ns
        assert export_sqlite(exported, program) == exported
        assert exported.stat().st_mtime_ns == old
        exported.write_bytes(exported.read_bytes()[:-4096])  # half written
        assert export_sqlite(exported, program) == exported
        assert exported.stat().st_mtime_ns >= report.stat().st_mtime_ns

    def test_a_fresh_export_needs_no_nsys(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        exported = export_sqlite(report_file, program, tmp_path)
        absent = find_nsys(str(tmp_path / "nsys"))
        assert export_sqlite(report_file, absent, tmp_path) == exported
        assert export_sqlite(exported, absent) == exported
        exported.unlink()
        with pytest.raises(NsysUnavailable, match="--nsys-path"):
            export_sqlite(report_file, absent, tmp_path)

    @pytest.mark.parametrize("kept", [1, 100, 20_000, -100])
    def test_a_truncated_report_is_named(
        self, report_file: Path, program: NsysProgram, tmp_path: Path, kept: int
    ) -> None:
        cut = tmp_path / "cut.nsys-rep"
        cut.write_bytes(report_file.read_bytes()[:kept])
        with pytest.raises(ReportDamaged, match=r"cut\.nsys-rep is truncated or damaged"):
            export_sqlite(cut, program)
        assert list(tmp_path.iterdir()) == [cut]

    def test_a_report_of_a_newer_nsys_is_named(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        newer = tmp_path / "newer.nsys-rep"
        magic = b"NVIDIA Tegra Profiler Report "
        newer.write_bytes(magic + b"2099@1@2@3-feed.\n" + report_file.read_bytes()[30:])
        assert report_version(newer) == (2099, 1, 2, 3)
        with pytest.raises(ReportTooNew, match=r"written by nsys 2099\.1\.2\.3") as raised:
            export_sqlite(newer, program)
        command = "nsys export --type sqlite --output newer.sqlite newer.nsys-rep"
        assert command in str(raised.value)

    def test_the_command_that_a_sentence_names_makes_what_is_read_then(
        self, report_file: Path, tmp_path: Path
    ) -> None:
        report = tmp_path / "a report.nsys-rep"
        shutil.copy(report_file, report)
        with pytest.raises(NsysUnavailable) as raised:
            export_sqlite(report, find_nsys(str(tmp_path / "none")), places=())
        command = export_command(report)
        assert command in str(raised.value)
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
        exported = export_sqlite(report, find_nsys(str(tmp_path / "none")), places=())
        assert exported == tmp_path / "a report.sqlite"
        assert len(read_report(exported).ranges) > 0

    def test_a_newer_nsys_of_the_machine_exports_what_is_too_new(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        report = tmp_path / "made.nsys-rep"
        shutil.copy(report_file, report)
        old = _executable(
            tmp_path / "old" / "nsys",
            'case $1 in --version) echo "NVIDIA Nsight Systems version 2019.1.1";; '
            '*) echo "Version number is invalid: 1" >&2; exit 1;; esac',
        )
        (tmp_path / "cuda-12" / "bin").mkdir(parents=True)
        (tmp_path / "cuda-12" / "bin" / "nsys").symlink_to(str(program.path))
        found = find_nsys(str(old))
        with pytest.raises(ReportTooNew):
            export_sqlite(report, found, places=())
        exported = export_sqlite(report, found, places=(f"{tmp_path}/cuda*/bin/nsys",))
        assert len(read_report(exported).ranges) > 0

    def test_an_export_that_takes_too_long_is_stopped(
        self, report_file: Path, tmp_path: Path
    ) -> None:
        slow = _executable(tmp_path / "bin" / "nsys", "sleep 60 & sleep 60")
        program = NsysProgram(NsysState.READY, slow, (2099, 1))
        begun = time.monotonic()
        with pytest.raises(NsightError, match=r"took more than 0\.2 s"):
            export_sqlite(report_file, program, tmp_path, timeout_s=0.2)
        assert time.monotonic() - begun < 30

    def test_a_folder_that_cannot_be_written_is_named(
        self, report_file: Path, program: NsysProgram, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(NsightError, match="cannot be written"):
            export_sqlite(report_file, program, tmp_path / "file" / "folder")

    def test_a_stream_left_behind_is_imported(
        self,
        profiled: Path,
        nsys: Path,
        program: NsysProgram,
        profile: Callable[..., Any],
        tmp_path: Path,
    ) -> None:
        if program.importer is None:
            pytest.skip("this nsys has no QdstrmImporter")
        # an nsys that has no host folder beside it leaves its stream, as a target-only install
        installed = Path(os.path.realpath(nsys)).parent
        alone = tmp_path / "alone" / installed.name
        alone.mkdir(parents=True)
        for file in installed.iterdir():
            if file.name != "nsys":
                (alone / file.name).symlink_to(file)
        (alone / "nsys").write_bytes((installed / "nsys").read_bytes())
        (alone / "nsys").chmod(0o755)
        lonely = find_nsys(str(alone / "nsys"))
        assert lonely.state is NsysState.IMPORTER_MISSING
        flags = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none"]
        command = [sys.executable, str(profiled / "job.py"), "4096", str(tmp_path)]
        profile(tmp_path / "left", flags, command, program=alone / "nsys", timeout=300)
        stream = tmp_path / "left.qdstrm"
        if not stream.exists():
            pytest.skip("this nsys found its importer elsewhere and left no .qdstrm")
        with pytest.raises(NsysUnavailable, match="imported first"):
            export_sqlite(stream, lonely)
        exported = export_sqlite(stream, program)
        assert exported == tmp_path / "left.sqlite"
        assert (tmp_path / "left.nsys-rep").exists()
        payloads = read_report(exported).ranges.payload
        assert set(range(4096, 4196)) <= set(payloads.tolist())
        cut = tmp_path / "cut.qdstrm"
        cut.write_bytes(stream.read_bytes()[:-5000])
        with pytest.raises(ReportDamaged, match=r"cut\.qdstrm is truncated or damaged"):
            export_sqlite(cut, program)


class TestBadFiles:
    nsys = NsysProgram(NsysState.ABSENT, None)

    def test_what_is_missing_or_empty_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ReportMissing, match="No such file"):
            export_sqlite(tmp_path / "none.nsys-rep", self.nsys)
        with pytest.raises(ReportMissing, match="No such file"):
            sha256_file(tmp_path / "none.nsys-rep")
        with pytest.raises(ReportMissing, match="No such file"):
            read_report(tmp_path / "none.sqlite")
        (tmp_path / "empty.nsys-rep").touch()
        with pytest.raises(ReportDamaged, match="is empty"):
            export_sqlite(tmp_path / "empty.nsys-rep", self.nsys)

    def test_a_file_of_another_kind_is_named(self, tmp_path: Path) -> None:
        other = tmp_path / "notes.txt"
        other.write_text("no report")
        with pytest.raises(ReportDamaged, match=r"should end in \.nsys-rep"):
            export_sqlite(other, self.nsys)
        fake = tmp_path / "fake.sqlite"
        fake.write_text("no database")
        for reads in (lambda: read_report(fake), lambda: export_sqlite(fake, self.nsys)):
            with pytest.raises(ReportDamaged, match=r"fake\.sqlite"):
                reads()

    def test_a_database_that_is_no_export_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "other.sqlite"
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE people (name TEXT)")
        with pytest.raises(ReportDamaged, match="no table StringIds"):
            read_report(path)

    def test_a_truncated_export_is_named(self, tmp_path: Path) -> None:
        whole = make_export(tmp_path / "whole.sqlite", "2025.1", rows=20_000)
        cut = tmp_path / "cut.sqlite"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ReportDamaged, match=r"cut\.sqlite is no whole"):
            read_report(cut)

    def test_what_is_no_integer_is_never_read_as_one(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "odd.sqlite", "2025.1")
        with sqlite3.connect(path) as database:
            database.execute("UPDATE NVTX_EVENTS SET start = 'late' WHERE start = 5000")
        with pytest.raises(ReportDamaged, match="something else than integers"):
            read_report(path)

    @pytest.mark.parametrize("odd", [1.5, "late", b"7", 1e300])
    @pytest.mark.parametrize("place", [0, 70_000, 199_999])
    def test_what_is_no_integer_is_found_wherever_it_is(
        self, tmp_path: Path, place: int, odd: Any
    ) -> None:
        path = _column(tmp_path / "odd.sqlite", [*range(place), odd, *range(199_999 - place)])
        with pytest.raises(ReportDamaged, match=r"NUMBERS .*(else than integers|INT64)"):
            _numbers(path)

    @pytest.mark.parametrize("place", [0, 70_000, 199_999])
    def test_integers_of_all_sizes_and_none_are_read_as_they_are(
        self, tmp_path: Path, place: int
    ) -> None:
        values: list[Any] = [5] * 200_000
        some = [None, 2**63 - 1, -(2**63), 0, -1, 3.0, "12"]
        values[place : place + len(some)] = some
        found = _numbers(_column(tmp_path / "all.sqlite", values))
        # SQLite keeps what is a whole number in a column of integers as one
        assert found.tolist() == [NONE if v is None else int(v) for v in values]

    def test_the_hash_is_the_files(self, tmp_path: Path) -> None:
        (tmp_path / "abc").write_text("abc")
        assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


class TestFindingNsys:
    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        found = find_nsys(str(tmp_path / "nsys"))
        assert found.state is NsysState.ABSENT
        assert not found.profiles
        assert str(tmp_path) in found.sentence

    def test_one_that_may_not_be_run(self, tmp_path: Path) -> None:
        (tmp_path / "nsys").write_text("#!/bin/sh\n")
        assert find_nsys(str(tmp_path / "nsys")).state is NsysState.NOT_EXECUTABLE

    def test_one_of_another_architecture(self, tmp_path: Path) -> None:
        program = tmp_path / "nsys"
        program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(64))
        program.chmod(0o755)
        assert find_nsys(str(program)).state is NsysState.NOT_EXECUTABLE

    @pytest.mark.parametrize("script", ["exit 0", "echo hello", "echo version 2023.1; exit 3"])
    def test_one_that_does_not_tell_its_version(self, tmp_path: Path, script: str) -> None:
        found = find_nsys(str(_executable(tmp_path / "nsys", script)))
        assert found.state is NsysState.VERSION_UNREADABLE
        assert "--nsys-path" in found.sentence

    def test_one_without_importer(self, tmp_path: Path) -> None:
        program = _nsys(tmp_path / "target-linux-x64" / "nsys")
        found = find_nsys(str(program))
        assert found.state is NsysState.IMPORTER_MISSING
        assert found.profiles
        assert found.version == (2099, 4, 2, 1)
        assert "2099.4.2.1" in found.sentence

    def test_one_whose_importer_is_where_it_does_not_look(self, tmp_path: Path) -> None:
        # as Debian 12 installs it: /usr/bin/nsys → lib/…/bin/nsys → ../target-linux-x64/nsys,
        # which is a link into another folder, and the host folder is in the first
        real = tmp_path / "arch" / "target-linux-x64" / "nsys"
        real.parent.mkdir(parents=True)
        real.write_bytes(Path("/bin/sh").read_bytes())
        real.chmod(0o755)
        shared = tmp_path / "shared"
        (shared / "bin").mkdir(parents=True)
        (shared / "target-linux-x64").symlink_to(real.parent)
        (shared / "bin" / "nsys").symlink_to("../target-linux-x64/nsys")
        (tmp_path / "nsys").symlink_to("shared/bin/nsys")
        importer = _executable(shared / "host-linux-x64" / "QdstrmImporter", "exit 0")
        assert _find_importer(tmp_path / "nsys", (2099, 4)) == importer
        program = NsysProgram(NsysState.IMPORTER_UNLINKED, tmp_path / "nsys", (2099, 4), importer)
        assert f"ln -s {importer.parent} {tmp_path / 'arch' / 'host-linux-x64'}" in program.sentence

    def test_one_with_its_importer(self, tmp_path: Path) -> None:
        importer = _executable(tmp_path / "host-linux-x64" / "QdstrmImporter", "exit 0")
        found = find_nsys(str(_nsys(tmp_path / "bin" / "nsys")))
        assert (found.state, found.importer) == (NsysState.READY, importer)


def _column(path: Path, values: Sequence[Any]) -> Path:
    """Write an export of one table of one column."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE StringIds (id INTEGER NOT NULL, value TEXT NOT NULL)")
        database.execute("CREATE TABLE NUMBERS (x INTEGER)")
        database.executemany("INSERT INTO NUMBERS VALUES (?)", [(value,) for value in values])
    database.close()
    return path


def _numbers(path: Path) -> Any:
    with ReportExport.opened(path) as export:
        return export.numbers("NUMBERS", {"payload": ("x", NONE)})["payload"]


def _executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _nsys(path: Path) -> Path:
    return _executable(path, "echo NVIDIA Nsight Systems version 2099.4.2.1-abc")


def _without_marks(report: Report, **changed: Any) -> Report:
    marks = report.clock_marks
    none = np.empty(0, np.int64)
    return replace(report, clock_marks=type(marks)(none, none, none, none), **changed)


# ---- exports of every schema, with known answers ----

PID, CHILD, TID = 4242, 4300, 4250


def make_export(path: Path, version: str, rows: int = 0) -> Path:
    """Write an export in the schema of a version; ``rows`` adds as many ranges."""
    schema = SCHEMAS[version]
    in_text = version == "2022.4"  # one export with names in `text`, the others in `textId`
    strings: dict[str, int] = {}

    def string(value: str) -> int:
        return strings.setdefault(value, 100 + len(strings))

    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE StringIds (id INTEGER NOT NULL, value TEXT NOT NULL)")
        extra = ", binaryData TEXT" if version >= "2025" else ""
        database.execute(f"CREATE TABLE NVTX_EVENTS ({NVTX_2020}{extra})")

        def event(kind: int, start: int, end: int | None, name: str | None, **more: Any) -> None:
            if name is not None:
                more |= {"text": name} if in_text else {"textId": string(name)}
            row = {"eventType": kind, "start": start, '"end"': end} | more
            holes = ", ".join("?" * len(row))
            database.execute(
                f"INSERT INTO NVTX_EVENTS ({', '.join(row)}) VALUES ({holes})", list(row.values())
            )

        main, child, pool = global_id(PID, PID), global_id(CHILD, CHILD), global_id(PID, TID)
        # domain 1 is `compute` in one process and the clock's in the other
        event(75, 10, None, "compute", globalTid=main, domainId=1)
        event(75, 11, None, "dasf_hpc.clock", globalTid=main, domainId=2)
        event(75, 12, None, "dasf_hpc.clock", globalTid=child, domainId=1)
        event(75, 13, None, "compute", globalTid=child, domainId=2)
        event(60, 5_000, 6_000, "late", globalTid=main, domainId=1, uint64Value=12)
        event(59, 1_000, 2_000, "größe", globalTid=pool, domainId=1, int64Value=2**62 + 1)
        event(59, 1_500, None, "open", globalTid=child, domainId=2, int64Value=11)
        event(59, 1_600, 1_700, None, globalTid=main, domainId=0)
        event(59, 1_800, 1_900, "half", globalTid=main, domainId=1, doubleValue=0.5)
        event(34, 100, None, "clock", globalTid=main, domainId=2, int64Value=10**18 + 90)
        event(34, 200, None, "clock", globalTid=child, domainId=1, uint64Value=10**18 + 195)
        event(34, 300, None, "clock", globalTid=main, domainId=1, int64Value=1)
        event(33, 50, None, "category", globalTid=main, category=1)
        event(76, 9_000, None, None, globalTid=main, domainId=1)
        database.executemany(
            "INSERT INTO NVTX_EVENTS (start, end, eventType, globalTid, textId, domainId, "
            "int64Value) VALUES (?, ?, 59, ?, ?, 1, ?)",
            ((10_000 + i, 10_001 + i, main, string("many"), i) for i in range(rows)),
        )
        _add_cuda(database, schema, version, string)
        if schema["start"]:
            database.execute(f"CREATE TABLE TARGET_INFO_SESSION_START_TIME ({schema['start']})")
            values = [1_700_000_000_000_000_001, "then", "then"]
            values += [123_456_789] if "systemClockNs" in schema["start"] else []
            database.execute(
                f"INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES "
                f"({', '.join('?' * len(values))})",
                values,
            )
            database.execute(f"CREATE TABLE TARGET_INFO_SYSTEM_ENV ({SYSTEM_ENV})")
            database.executemany(
                "INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES ('', ?, 0, ?)",
                [("DeviceEnvironment", "TOKEN=hunter2"), ("Hostname", "node7")],
            )
            database.execute("CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT)")
            database.executemany(
                "INSERT INTO PROCESSES VALUES (?, ?, ?)",
                [(global_id(1), 1, "init"), (global_id(PID), PID, "/usr/bin/python")],
            )
        if schema["meta"]:
            database.execute(f"CREATE TABLE {schema['meta']} (name TEXT NOT NULL, value TEXT)")
            database.executemany(
                f"INSERT INTO {schema['meta']} VALUES (?, ?)",
                [("EXPORT_USER", "hunter2"), ("EXPORT_PRODUCT_VERSION", version)],
            )
        database.executemany(
            "INSERT INTO StringIds VALUES (?, ?)", [(i, value) for value, i in strings.items()]
        )
    database.close()
    return path


def _add_cuda(
    database: sqlite3.Connection,
    schema: dict[str, Any],
    version: str,
    string: Callable[[str], int],
) -> None:
    common = ON_DEVICE.format(green="greenContextId INTEGER," if version >= "2023.4" else "")

    def table(name: str, columns: str, rows: list[dict[str, Any]]) -> None:
        database.execute(f"CREATE TABLE {name} ({columns})")
        for row in rows:
            holes = ", ".join("?" * len(row))
            database.execute(
                f"INSERT INTO {name} ({', '.join(row)}) VALUES ({holes})", list(row.values())
            )

    def work(start: int, end: int, correlation: int, **more: Any) -> dict[str, Any]:
        place = {"deviceId": 1, "contextId": 2, "streamId": 2**32 - 1}
        times = {"start": start, '"end"': end, "correlationId": correlation}
        return times | place | {"globalPid": global_id(PID)} | more

    activity = "CUPTI_ACTIVITY_KIND_"
    if "K" in schema["tables"]:
        names = {
            "demangledName": string("void add<float>(float*)"),
            "shortName": string("add"),
            "gridX": 1,
        }
        last = work(3_100, 3_150, 8, **names) | {"globalPid": None}
        kernels = [work(3_000, 3_050, 7, **names), last]
        table(f"{activity}KERNEL", f"{common}, {KERNEL}", kernels)
    if "M" in schema["tables"]:
        copies = [work(3_200, 3_300, 9, bytes=2**33, copyKind=1)]
        table(f"{activity}MEMCPY", f"{common}, {MEMCPY}", copies)
    if "S" in schema["tables"]:
        table(
            f"{activity}MEMSET", f"{common}, {MEMSET}", [work(3_400, 3_401, 10, value=0, bytes=16)]
        )
    if "Y" in schema["tables"]:
        waits = [work(3_500, 3_600, 11, syncType=3, eventId=0)]
        table(f"{activity}SYNCHRONIZATION", f"{common}, {SYNC}", waits)
    if "R" in schema["tables"]:
        call = {"eventClass": 0, "globalTid": global_id(PID, TID), "returnValue": 0}
        call |= {"start": 2_900, '"end"': 2_950, "correlationId": 7}
        calls = [call | {"nameId": string("cudaLaunchKernel_v7000")}]
        table(f"{activity}RUNTIME", RUNTIME, calls)
    if schema["gpu"]:
        gpu: dict[str, Any] = {"vmId": 0, "name": "NVIDIA H100", "busLocation": "0000:01:00.0"}
        if version == "2020.3":
            gpu["deviceId"] = 1
        else:
            gpu |= {"id": 1, "uuid": "GPU-1-2-3", "totalMemory": 2**36, "smCount": 132}
        table("TARGET_INFO_GPU", schema["gpu"], [gpu])
    if version == "2025.1":
        device = {"gpuId": 1, "cudaId": 0, "pid": PID}
        columns = "gpuId INTEGER, cudaId INTEGER NOT NULL, pid INTEGER NOT NULL"
        table("TARGET_INFO_CUDA_DEVICE", columns, [device])


@pytest.fixture(params=sorted(SCHEMAS))
def version(request: pytest.FixtureRequest) -> str:
    """Give each version whose schema is known."""
    return str(request.param)


@pytest.fixture
def made(version: str, tmp_path: Path) -> Report:
    """Give the made export of a version, read."""
    return read_report(make_export(tmp_path / "made.sqlite", version))


class TestEverySchema:
    def test_ranges(self, made: Report) -> None:
        ranges = made.ranges
        assert ranges.start.tolist() == [1_000, 1_500, 1_600, 1_800, 5_000]
        assert ranges.stop.tolist() == [2_000, NONE, 1_700, 1_900, 6_000]
        assert ranges.pid.tolist() == [PID, CHILD, PID, PID, PID]
        assert ranges.tid.tolist() == [TID, CHILD, PID, PID, PID]
        assert ranges.payload.tolist() == [2**62 + 1, 11, NONE, NONE, 12]
        assert ranges.message.values().tolist() == ["größe", "open", "", "half", "late"]
        assert ranges.domain.values().tolist() == ["compute", "compute", "", "compute", "compute"]

    def test_clock_marks(self, made: Report) -> None:
        marks = made.clock_marks
        assert marks.pid.tolist() == [PID, CHILD]
        assert marks.session_ns.tolist() == [100, 200]
        assert marks.clock_ns.tolist() == [10**18 + 90, 10**18 + 195]

    def test_where_and_when(self, made: Report, version: str) -> None:
        told = version != "2020.3"
        assert made.hostname == ("node7" if told else None)
        assert made.session_start_utc_ns == (1_700_000_000_000_000_001 if told else None)
        assert made.system_clock_ns == (123_456_789 if version == "2026.2" else None)
        assert made.exporter_version == (version if told else None)
        assert made.processes.pid.tolist() == [PID, CHILD]
        assert made.processes.name.tolist() == ["/usr/bin/python" if told else "", ""]
        assert "hunter2" not in repr(made)

    def test_kernels_and_the_calls_that_launched_them(self, made: Report, version: str) -> None:
        kernels, calls = made.kernels, made.cuda_api
        if "K" not in SCHEMAS[version]["tables"]:
            assert (len(kernels), len(calls)) == (0, 0)
            return
        assert kernels.start.tolist() == [3_000, 3_100]
        assert kernels.stop.tolist() == [3_050, 3_150]
        assert kernels.pid.tolist() == [PID, NONE]
        assert kernels.device.tolist() == [1, 1]
        assert kernels.context.tolist() == [2, 2]
        assert kernels.stream.tolist() == [2**32 - 1] * 2
        assert kernels.correlation.tolist() == [7, 8]
        assert kernels.name.values().tolist() == ["void add<float>(float*)"] * 2
        assert kernels.short_name.values().tolist() == ["add"] * 2
        assert (calls.pid.tolist(), calls.tid.tolist()) == ([PID], [TID])
        assert calls.correlation.tolist() == [7]
        assert calls.name.values().tolist() == ["cudaLaunchKernel_v7000"]

    def test_copies_fills_and_waits(self, made: Report, version: str) -> None:
        tables = str(SCHEMAS[version]["tables"])
        assert made.memcpys.bytes.tolist() == [2**33] * ("M" in tables)
        assert made.memcpys.kind.tolist() == [1] * ("M" in tables)
        assert made.memsets.bytes.tolist() == [16] * ("S" in tables)
        assert made.synchronizations.kind.tolist() == [3] * ("Y" in tables)

    def test_gpus(self, made: Report, version: str) -> None:
        if SCHEMAS[version]["gpu"] is None:
            assert len(made.gpus) == 0
            return
        old = version == "2020.3"
        assert made.gpus.id.tolist() == [1]
        assert made.gpus.name.tolist() == ["NVIDIA H100"]
        assert made.gpus.bus.tolist() == ["0000:01:00.0"]
        assert made.gpus.uuid.tolist() == ["" if old else "GPU-1-2-3"]
        assert made.gpus.multiprocessors.tolist() == [NONE if old else 132]
        assert made.cuda_devices.gpu.tolist() == [1] * (version == "2025.1")


class TestReading:
    def test_a_million_ranges_take_seconds_and_lose_nothing(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "big.sqlite", "2023.4", rows=1_000_000)
        begun = time.monotonic()
        ranges = read_report(path).ranges
        assert time.monotonic() - begun < 15  # 2 s on two cores
        many = ranges.message.equal("many")
        assert (ranges.payload[many] == np.arange(1_000_000)).all()
        assert (ranges.start[many] == 10_000 + np.arange(1_000_000)).all()

    def test_rows_wherever_their_numbers_are(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "sparse.sqlite", "2023.4", rows=700_000)
        with sqlite3.connect(path) as database:
            many = "FROM NVTX_EVENTS WHERE start >= 10000"
            database.execute(f"DELETE {many} AND start % 7 IN (1, 2)")
            database.execute("UPDATE NVTX_EVENTS SET rowid = rowid + 2000000 WHERE start > 400000")
            database.execute("UPDATE NVTX_EVENTS SET rowid = 1 << 62 WHERE start = 660000")
            kept = [row[0] for row in database.execute(f"SELECT int64Value {many} ORDER BY start")]
        ranges = read_report(path).ranges
        assert ranges.payload[ranges.message.equal("many")].tolist() == kept
        assert len(kept) > 490_000

    def test_a_number_that_is_no_time_costs_no_other_row(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "odd.sqlite", "2023.4")
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE NVTX_EVENTS SET start = {2**63 - 1} WHERE start = 5000")
            database.execute("UPDATE NVTX_EVENTS SET start = -1 << 62 WHERE start = 100")
        report = read_report(path)
        assert report.ranges.start.tolist() == [NONE, 1_000, 1_500, 1_600, 1_800]
        assert report.clock_marks.session_ns.tolist() == [200]

    def test_text_and_text_id_may_be_mixed(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "mixed.sqlite", "2022.4", rows=3)
        messages = read_report(path).ranges.message.values().tolist()
        assert messages == ["größe", "open", "", "half", "late", "many", "many", "many"]

    def test_a_name_that_is_no_utf8_does_not_cost_the_report(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "latin.sqlite", "2022.4")
        with sqlite3.connect(path) as database:
            database.execute("UPDATE NVTX_EVENTS SET text = CAST(x'ff' AS TEXT) WHERE start = 5000")
        assert read_report(path).ranges.message.values().tolist()[-1] == "\N{REPLACEMENT CHARACTER}"

    def test_an_export_without_nvtx_is_empty(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "none.sqlite", "2026.2")
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE NVTX_EVENTS")
        report = read_report(path)
        assert (len(report.ranges), len(report.clock_marks)) == (0, 0)
        assert len(report.kernels) == 2

    def test_reading_leaves_the_export_as_it_was(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "kept #1?.sqlite", "2025.1")
        path.chmod(0o444)
        before = sha256_file(path)
        read_report(path)
        assert sha256_file(path) == before
        assert len(list(tmp_path.iterdir())) == 1


class TestJoin:
    def tables(self, hostname: str = "node7.cluster") -> dict[str, Any]:
        return {
            "processes": {
                "id": np.array([5, 9]),
                "hostname": np.array([hostname, hostname], object),
                "pid": np.array([PID, CHILD]),
            },
            "tasks": {"id": np.array([2**62 + 1, 12, 11]), "process": np.array([5, 5, 5])},
        }

    def test_ranges_are_linked_by_the_task_id_and_checked_by_process(self, tmp_path: Path) -> None:
        report = read_report(make_export(tmp_path / "made.sqlite", "2025.1"))
        joined = join_report(report, **self.tables())
        assert joined.task.tolist() == [2**62 + 1, NONE, NONE, 12]
        assert joined.link.tolist() == [
            Link.LINKED,
            Link.OTHER_PROCESS,  # the task of id 11 ran in the other process
            Link.NO_TASK_ID,
            Link.LINKED,
        ]
        assert sum(joined.counts.values()) == len(joined.ranges) == 4

    def test_a_task_of_another_host_is_not_linked(self, tmp_path: Path) -> None:
        report = read_report(make_export(tmp_path / "made.sqlite", "2025.1"))
        joined = join_report(report, **self.tables("node8"))
        assert joined.counts[Link.OTHER_HOST] == 3
        assert joined.counts[Link.LINKED] == 0

    def test_without_tasks_nothing_is_linked(self, tmp_path: Path) -> None:
        report = read_report(make_export(tmp_path / "made.sqlite", "2025.1"))
        nothing = {"id": np.empty(0, np.int64), "process": np.empty(0, np.int64)}
        none = {"id": np.empty(0, np.int64), "hostname": np.empty(0, object)}
        none["pid"] = np.empty(0, np.int64)
        joined = join_report(report, none, nothing)
        assert joined.counts[Link.UNKNOWN_TASK] == 3
        assert joined.tasks_linked == 0

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("node1", "node1", True),
            ("node1", "NODE1.cluster.edu", True),
            ("node1.a", "node1.b", False),
            ("node1", "node10", False),
        ],
    )
    def test_host_names_with_and_without_domain(self, one: str, other: str, same: bool) -> None:
        assert same_host(one, other) is same


class TestReportClocks:
    def test_the_marks_of_each_process(self, tmp_path: Path) -> None:
        report = read_report(make_export(tmp_path / "made.sqlite", "2025.1"))
        corrections = report_corrections(report)
        assert corrections[PID].apply(100) == 10**18 + 90
        assert corrections[CHILD].apply(200) == 10**18 + 195
        assert {c.source for c in corrections.values()} == {"marks"}

    def test_a_process_without_marks_takes_its_neighbours_clock(self, tmp_path: Path) -> None:
        path = make_export(tmp_path / "made.sqlite", "2025.1")
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM NVTX_EVENTS WHERE eventType = 34 AND start = 200")
        corrections = report_corrections(read_report(path))
        assert corrections[CHILD].source == "same-host"
        assert corrections[CHILD].apply(100) == corrections[PID].apply(100)

    def test_without_any_marks_the_system_clock_tells(self, tmp_path: Path) -> None:
        report = _without_marks(read_report(make_export(tmp_path / "made.sqlite", "2026.2")))
        corrections = report_corrections(report)
        assert corrections[PID].source == "system-clock"
        assert corrections[PID].apply(11) == 123_456_800

    def test_at_last_utc_tells_if_the_process_recorded_it(self, tmp_path: Path) -> None:
        report = _without_marks(read_report(make_export(tmp_path / "made.sqlite", "2025.1")))
        assert report_corrections(report) == {}
        anchors = {PID: np.array([[500, 1_700_000_000_000_000_101, 700]], np.int64)}
        corrections = report_corrections(report, anchors)
        assert list(corrections) == [PID]
        assert corrections[PID].source == "utc"
        # 100 ns before the anchor, whose reading took 200 ns
        assert abs(corrections[PID].apply(0) - 500) <= 1
        assert corrections[PID].bound_ns < 2_000_000
