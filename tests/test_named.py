"""Every command that works on runs takes a run's name, or ``last``, in the folder of runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import Made, Task, make_trace

from dasf_hpc.errors import RunDirectoryError, TraceFileError
from dasf_hpc.named import named_run

OLDER, NEWER = "2026-11-23T15-04-05-job-3f2a", "2026-11-23T15-04-05-job-0001"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of two runs that are over, of which the one named first began later."""
    for started, name, key in ((1000.0, OLDER, "older"), (2000.0, NEWER, "newer")):
        run = tmp_path / "mine" / name
        (run / "logs").mkdir(parents=True)
        make_trace(run / "trace.h5", Made([Task(f"{key}-1", 0, 0, 10**9)])).close()
        content = {"name": name, "state": "complete", "started": started}
        (run / "run.json").write_text(json.dumps(content))
        (run / "logs" / "job.out").write_text(f"{key} said\n")
    return tmp_path / "mine"


def cli(
    *words: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words],
        cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "more", "says"),
    [
        (("show",), (), "newer"),
        (("logs",), (), "newer said"),
        (("cancel",), (), f"{NEWER} is over already"),
        (("analyze", "functions"), (), "newer"),
        (("compare", OLDER, "--head"), (), "cannot tell"),
        (("export",), ("--to", "perfetto"), NEWER),
        (("report",), (), NEWER),
        (("watch",), ("--json",), NEWER),
        (("merge",), (), NEWER),
    ],
    ids=lambda given: given[0] if given and isinstance(given, tuple) else "",
)
def test_a_command_takes_a_name_in_the_folder_of_runs(
    words: tuple[str, ...], more: tuple[str, ...], says: str, folder: Path, tmp_path: Path
) -> None:
    for named in ("last", NEWER):
        done = cli(*words, named, *more, "--runs-dir", "mine", cwd=tmp_path)
        assert says in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_the_folder_is_where_submit_puts_runs(folder: Path, tmp_path: Path) -> None:
    set_there = {"DASF_HPC_RUNS_DIR": str(folder)}
    assert cli("logs", "last", cwd=tmp_path, environment=set_there).stdout == "newer said\n"
    assert NEWER in cli("runs", cwd=tmp_path, environment=set_there).stdout
    shutil.move(folder, tmp_path / "runs")
    assert cli("logs", OLDER, cwd=tmp_path).stdout == "older said\n"


def test_runs_takes_the_folder_as_the_others_do(folder: Path, tmp_path: Path) -> None:
    lists = [
        cli("runs", *words, "--json", cwd=tmp_path).stdout
        for words in (("mine",), ("--runs-dir", "mine"))
    ]
    assert lists[0] == lists[1]
    assert [run["name"] for run in json.loads(lists[0])] == [NEWER, OLDER]
    assert cli("runs", "mine", "--runs-dir", "mine", cwd=tmp_path).returncode == 2


def test_a_path_is_that_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last").mkdir()
    assert named_run(Path("last"), None) == Path("last")
    assert named_run(Path("last"), Path("mine")).name == "last"
    assert named_run(folder / OLDER, Path("elsewhere")) == folder / OLDER
    assert named_run(Path(OLDER), Path("mine")) == Path("mine") / OLDER


def test_a_run_that_is_not_there_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    done = cli("show", "nope", "--runs-dir", "mine", cwd=tmp_path)
    assert done.returncode == RunDirectoryError.exit_code
    assert done.stderr.startswith("dasf-hpc: There is no run nope, neither here nor in mine")
    file = cli("show", "nope.h5", cwd=tmp_path)
    assert file.returncode == TraceFileError.exit_code
    empty = cli("show", "last", cwd=tmp_path)
    assert empty.returncode == RunDirectoryError.exit_code
    assert "--runs-dir" in empty.stderr
