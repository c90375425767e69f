"""A recording counts once, in whatever files, order and steps it is given."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from exports import Export
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasf_hpc import open_trace
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.export import export_sqlite, find_nsys

MS = 1_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")


@dataclass(frozen=True)
class Recorded:
    """What one nsys recorded, as far as anything tells recordings apart."""

    host: str
    start: int
    pid: int
    kernels: int

    def export(self, path: Path, version: str, overhead: int | None = None) -> Path:
        """Write it as the exporter of a version does, to which it may name one process more."""
        with Export(path, version, hostname=self.host) as report:
            report.begun(utc=UTC + self.start)
            for n in range(self.kernels):
                begin = (2 * n + 1) * MS + self.pid + self.start
                report.call(self.pid, self.pid, begin, begin + 10, n + 1)
                report.kernel(self.pid, begin + 20, begin + MS, f"k{n}", correlationId=n + 1)
            if overhead is not None:
                report.range(overhead, overhead, MS, 2 * MS, 1)
        return path


def kernels_of(trace: Path) -> int:
    with open_trace(trace) as opened:
        return len(opened.kernels)


ONE = Recorded("node7", 5 * MS, 4711, 3)


@pytest.mark.parametrize("versions", [("2023.1", "2025.1"), ("2020.3", "2020.3")])
def test_two_exports_of_one_recording_count_once_and_one_sentence_says_so(
    tmp_path: Path, versions: tuple[str, str]
) -> None:
    first = ONE.export(tmp_path / "a.sqlite", versions[0])
    second = ONE.export(tmp_path / "b.sqlite", versions[1])
    if versions[0] == versions[1]:  # the files differ nevertheless
        second.write_bytes(second.read_bytes()[:24] + b"\0\0\0\x7f" + second.read_bytes()[28:])
    done = import_files([first, second], tmp_path / "trace.h5", NO_NSYS)
    assert kernels_of(tmp_path / "trace.h5") == 3
    told = "it is of the same recording as a.sqlite, which the trace holds: it is not added"
    assert [entry.sentence for entry in done.reports][1] == told
    with open_trace(tmp_path / "trace.h5") as trace:
        assert trace.reports["file"].tolist() == ["a.sqlite"]


@pytest.mark.parametrize(("version", "other"), [("2023.4", "2026.2"), ("2020.3", "2020.3")])
def test_what_a_trace_holds_is_not_joined_again(tmp_path: Path, version: str, other: str) -> None:
    ONE.export(tmp_path / "a.sqlite", version)
    again = ONE.export(tmp_path / "renamed.sqlite", other)
    with Export(tmp_path / "c.sqlite", "2023.4", hostname="node8") as report:
        report.begun(utc=UTC + 5 * MS)
        report.kernel(4711, 3 * MS, 4 * MS, "k0", correlationId=1)
    import_files([tmp_path / "a.sqlite"], tmp_path / "trace.h5", NO_NSYS)
    with Export(tmp_path / "d.sqlite", other) as report:
        report.begun(utc=UTC + 6 * MS)
        report.kernel(4711, MS, 2 * MS, "k0", correlationId=1)
    join_into([again, tmp_path / "d.sqlite"], tmp_path / "trace.h5", NO_NSYS)
    assert kernels_of(tmp_path / "trace.h5") == 3 + 1
    # another host's, of the same ns and process
    join_into([tmp_path / "c.sqlite"], tmp_path / "trace.h5", NO_NSYS)
    assert kernels_of(tmp_path / "trace.h5") == 3 + 1 + 1


def test_an_export_that_says_when_it_began_is_kept_before_one_that_does_not(
    tmp_path: Path,
) -> None:
    old = ONE.export(tmp_path / "old.sqlite", "2020.3")
    new = ONE.export(tmp_path / "new.sqlite", "2025.1")
    early = Recorded("node9", 0, 9, 1).export(tmp_path / "early.sqlite", "2025.1")
    import_files([old, early, new], tmp_path / "trace.h5", NO_NSYS)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert trace.reports["file"].tolist() == ["early.sqlite", "new.sqlite"]
        assert len(trace.kernels) == 4


RECORDINGS = st.builds(
    Recorded,
    host=st.sampled_from(["node7", "node8"]),
    start=st.sampled_from([0, 3 * MS]),
    pid=st.sampled_from([10, 11]),
    kernels=st.integers(1, 3),
)


def distinct(given: list[Recorded]) -> list[Recorded]:
    """Keep one of those that are told apart by nothing but what was recorded."""
    return list({(r.host, r.start, r.pid): r for r in given}.values())


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    recorded=st.lists(RECORDINGS, min_size=1, max_size=3).map(distinct),
    draw=st.data(),
)
def test_nothing_is_counted_twice_however_reports_are_given(
    recorded: list[Recorded], draw: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed = ["2023.1", "2023.4", "2025.1", "2026.2"]
        files = []
        for number, recording in enumerate(recorded):
            for copy, version in enumerate(
                draw.draw(st.lists(st.sampled_from(timed), min_size=1, max_size=2))
            ):
                more = draw.draw(st.sampled_from([None, 77 + number]))  # of that recording
                name = place / f"{number}-{copy}.sqlite"
                files.append(recording.export(name, version, more))
        files = draw.draw(st.permutations(files))
        cut = draw.draw(st.integers(1, len(files)))
        trace = place / "trace.h5"
        import_files(files[:cut], trace, NO_NSYS)
        while cut < len(files):
            step = draw.draw(st.integers(1, len(files) - cut))
            join_into(files[cut : cut + step], trace, NO_NSYS)
            cut += step
        # the same again, all at once
        join_into(files, trace, NO_NSYS)
        assert kernels_of(trace) == sum(recording.kernels for recording in recorded)
        with open_trace(trace) as opened:
            assert len(opened.reports) == len(recorded)
            per_process = opened.kernels.groupby(["report", "process"]).size()
            assert sorted(per_process.tolist()) == sorted(r.kernels for r in recorded)


@pytest.mark.needs("nsys")
def test_a_report_and_its_export_count_once(
    tmp_path: Path, profile: Callable[..., Any], nsys: Path
) -> None:
    program = "from dasf_hpc.profile.nvtx_domain import speak_always; speak_always()\n"
    program += "import nvtx\nwith nvtx.annotate('one'): pass\n"
    flags = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none"]
    done = profile(tmp_path / "r", flags, [sys.executable, "-c", program], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = next(p for p in (tmp_path / "r.nsys-rep", tmp_path / "r.qdstrm") if p.exists())
    (tmp_path / "elsewhere").mkdir()
    sqlite = export_sqlite(report, find_nsys(str(nsys)), tmp_path / "elsewhere")
    import_files([report, sqlite], tmp_path / "trace.h5", Wishes(str(nsys)))
    with open_trace(tmp_path / "trace.h5") as trace:
        assert trace.nvtx_ranges["message"].tolist() == ["one"]
        assert len(trace.reports) == 1
