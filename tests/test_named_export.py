"""An export that was named is read, and each report says which nsys recorded and exported it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from exports import Export

from dasf_hpc import open_trace
from dasf_hpc.imports import Wishes, import_files

MS = 1_000_000
HEAD = b"NVIDIA Tegra Profiler Report 2023@4@4@54-feed.\n"


def write(path: Path, folder: str = "") -> Path:
    with Export(path, "2025.1") as report:
        report.begun(utc=10**18)
        report.kernel(4711, MS, 2 * MS, "only", correlationId=1)
        if folder:
            report.env("TargetInstallDir", folder)
    return path


def beside(export: Path, later_ns: int, head: bytes = HEAD) -> Path:
    """Write what the first bytes say is a report, later than the export."""
    report = export.with_suffix(".nsys-rep")
    report.write_bytes(head)
    time = export.stat().st_mtime_ns + later_ns
    os.utime(report, ns=(time, time))
    return report


def imported(path: Path, tmp_path: Path) -> tuple[str, list[str | None], int]:
    """Give the sentence, the versions of recorder and exporter, and the number of kernels."""
    done = import_files([path], tmp_path / "trace.h5", Wishes("no nsys"))
    with open_trace(tmp_path / "trace.h5") as trace:
        row = trace.reports.astype(object).where(trace.reports.notna(), None).iloc[0]
        assert (row["sentence"] or "") == done.reports[0].sentence
        versions = [row["nsys_version"], row["exporter_version"]]
        return done.reports[0].sentence, versions, len(trace.kernels)


def test_a_newer_report_beside_a_named_export_is_told_and_the_export_read(tmp_path: Path) -> None:
    export = write(tmp_path / "r.sqlite")
    before = export.read_bytes()
    beside(export, 10**9)
    sentence, versions, kernels = imported(export, tmp_path)
    assert kernels == 1
    assert sentence == "r.nsys-rep beside it is newer and was not read: name that one to read it"
    assert export.read_bytes() == before
    # which nsys recorded the report beside it says nothing of this one
    assert versions == [None, "2025.1"]


def test_the_report_of_an_export_says_which_nsys_recorded_it(tmp_path: Path) -> None:
    export = write(tmp_path / "r.sqlite")
    beside(export, -(10**9))
    assert imported(export, tmp_path) == ("", ["2023.4.4.54", "2025.1"], 1)


@pytest.mark.parametrize(
    ("folder", "version"),
    [
        ("/opt/nvidia/nsight-systems/2023.4.4/target-linux-x64", "2023.4.4"),
        ("/opt/nvidia/nsight-systems-cli/2024.5.1/target-linux-x64", "2024.5.1"),
        ("/usr/local/cuda-12.2/nsight-systems-2023.2.3/target-linux-sbsa-armv8", "2023.2.3"),
        ("/usr/lib/x86_64-linux-gnu/nsight-systems/target-linux-x64", None),
        ("", None),
    ],
)
def test_the_recorders_folder_says_its_version(
    tmp_path: Path, folder: str, version: str | None
) -> None:
    export = write(tmp_path / "r.sqlite", folder)
    assert imported(export, tmp_path)[1] == [version, "2025.1"]
    assert b"target-linux" not in (tmp_path / "trace.h5").read_bytes()


def test_an_export_that_is_named_beside_its_report_is_not_written_over(
    tmp_path: Path,
) -> None:
    export = write(tmp_path / "r.sqlite")
    before = export.read_bytes()
    report = beside(export, 10**9)
    nsys = tmp_path / "nsys"  # a program that exports as nsys does, to what -o says
    nsys.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "NVIDIA Nsight Systems version 2025.1.1.1"; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp "{tmp_path}/fresh" "$2"\n'
    )
    nsys.chmod(0o755)
    write(tmp_path / "fresh.sqlite").rename(tmp_path / "fresh")
    done = import_files([report, export], tmp_path / "trace.h5", Wishes(str(nsys)))
    assert export.read_bytes() == before
    assert "same recording as r.nsys-rep" in done.reports[1].sentence
    with open_trace(tmp_path / "trace.h5") as trace:
        assert len(trace.kernels) == 1
