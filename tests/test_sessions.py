"""nsys starts also where another left the host's table of sessions, or its lock, in its way.

Each test has shared memory and a lock folder of its own, in a mount namespace, so that nothing it
breaks is met by another.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from dasf_hpc.launch import node
from dasf_hpc.nsight import sessions
from dasf_hpc.nsight.export import find_nsys

LOCKS = Path("/tmp/nvidia/nsight_systems")

OWN_PLACES = f"""
mount -t tmpfs tmpfs {sessions.TABLES}
mkdir -p {LOCKS.parent} && mount -t tmpfs tmpfs {LOCKS.parent}
mkdir -p {LOCKS}
"""

HALF_MADE = (
    'head -c 179488 /dev/zero > "$TABLE"; printf "\\\\001" | dd of="$TABLE" conv=notrunc 2>&1'
)

NODE_STEP = [sys.executable, "-m", "dasf_hpc.launch.node", "--name", "R-0", "--nsys"]
PROFILE = ["nsys", "profile", "-t", "nvtx", "--sample=none", "--cpuctxsw=none"]


@pytest.fixture
def version(nsys: Path, nothing_is_left: None) -> str:
    """Give the version of the nsys that is here; nothing of it may be left behind."""
    text = find_nsys().version_text
    assert text is not None
    if text != "2022.4.2.1":
        pytest.skip(f"the half made table is known of nsys 2022.4.2.1, not of {text}")
    return text


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Look that no agent that a test started waits for ever."""
    before = set(agents())
    yield
    deadline = time.monotonic() + 5.0
    while left := set(agents()) - before:
        if time.monotonic() > deadline:
            end(left)
            pytest.fail(f"agents are left: {left}")
        time.sleep(0.1)


def agents() -> list[int]:
    """Give the agents of nsys whose profiler is no more."""
    owners = (
        (p.pid, sessions.profiler_of(p.info["cmdline"] or ()))
        for p in psutil.process_iter(["cmdline"])
    )
    return [pid for pid, owner in owners if owner is not None and not psutil.pid_exists(owner)]


def end(processes: Iterable[int]) -> None:
    """End agents."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def start_apart(version: str, before: str, *command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command that has shared memory and nsys's lock folder of its own."""
    script = f'set -e; {OWN_PLACES} TABLE="{sessions.table_of(version)}"; {before}\nexec "$@"'
    try:
        return subprocess.Popen(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "apart", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=folder,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("unshare is missing: install util-linux")


def profile_apart(folder: Path) -> None:
    """Run an ``nsys profile`` that has another table; again where it dies at its start.

    It does on a busy machine: its agent has 3 s to answer, and 10 s to be launched.
    """
    report = folder / "another"
    script = f"mount -t tmpfs tmpfs {sessions.TABLES}; exec {shlex.join(PROFILE)} -o {report} true"
    for _ in range(node.NSYS_STARTS):
        before = agents()
        done = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode == 0:
            return
        end(set(agents()) - set(before))
    pytest.fail(f"nsys did not start {node.NSYS_STARTS} times: {done.stdout}")


def said(process: subprocess.Popen[str]) -> str:
    """Give what a process says until its end."""
    output, _ = process.communicate(timeout=90)
    return output


def wait_for_record(folder: Path) -> None:
    """Wait until a node step is about to start nsys, and a moment more."""
    deadline = time.monotonic() + 30.0
    while not list((folder / "nodes").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)


def test_a_half_made_table_is_taken_away_and_told(tmp_path: Path, version: str) -> None:
    step = [*NODE_STEP, "--run", str(tmp_path), "--", "echo", "ran"]
    process = start_apart(version, HALF_MADE, *step, folder=tmp_path)
    output = said(process)
    assert process.returncode == 0, output
    assert "\nran\n" in output
    (record,) = node.read_node_records(tmp_path)
    assert any("kept nsys from starting: it was removed" in note for note in record["notes"])
    assert (tmp_path / record["report"]).exists()


#: Waits until an agent is where it waits for ever.
IN_LINE = f"""{sys.executable} -c '
import time
from dasf_hpc.nsight.sessions import left_agents
end = time.monotonic() + 30.0
while not left_agents(None) and time.monotonic() < end:
    time.sleep(0.05)
'"""


def test_what_a_killed_nsys_left_in_line_is_ended(tmp_path: Path, version: str) -> None:
    # nsys itself leaves an agent that waits for ever, with the lock, for a table since taken away.
    before = f'{HALF_MADE}; {" ".join(PROFILE)} -o r true || rm "$TABLE"; {IN_LINE}'
    step = [*NODE_STEP, "--run", str(tmp_path), "--", "echo", "ran"]
    process = start_apart(version, before, *step, folder=tmp_path)
    output = said(process)
    assert process.returncode == 0, output
    assert "Agent launcher failed" in output
    (record,) = node.read_node_records(tmp_path)
    # before the first start: what was left would have ended every one
    ended = next(n for n, note in enumerate(record["notes"]) if "agents of ended nsys" in note)
    assert not any("died at its start" in note for note in record["notes"][:ended])
    assert (tmp_path / record["report"]).exists()


def stand_in(folder: Path, first: str) -> Path:
    """Write an nsys that does something else before, or in place of, its first profiling."""
    path = folder / "bin" / "nsys"
    path.parent.mkdir()
    once = f'if [ "$1" = profile ] && mkdir {folder}/once; then {first}; fi'
    path.write_text(f'#!/bin/sh\n{once}\nexec {shutil.which("nsys")} "$@"\n')
    path.chmod(0o755)
    return path


def test_an_nsys_that_could_not_start_is_started_again(tmp_path: Path, version: str) -> None:
    own = ["--nsys-path", str(stand_in(tmp_path, "exit 1"))]
    step = [*NODE_STEP, *own, "--run", str(tmp_path), "--", "echo", "ran"]
    process = start_apart(version, "", *step, folder=tmp_path)
    output = said(process)
    assert process.returncode == 0, output
    assert "\nran\n" in output
    (record,) = node.read_node_records(tmp_path)
    assert any("died at its start" in note for note in record["notes"])
    assert (tmp_path / record["report"]).exists()


def test_a_table_that_cannot_be_removed_is_told(tmp_path: Path, version: str) -> None:
    ask = f"from dasf_hpc.nsight.sessions import make_way; print(make_way({version!r}))"
    before = f"{HALF_MADE}; mount -o remount,ro {sessions.TABLES}"
    output = said(start_apart(version, before, sys.executable, "-c", ask, folder=tmp_path))
    assert "keeps nsys from starting on this node: root, whose it is" in output


def test_a_table_in_use_is_left_alone(tmp_path: Path, version: str) -> None:
    ask = (
        "from dasf_hpc.nsight import sessions as s\n"
        f"print(s.table_of({version!r}).exists(), s.make_way({version!r}))"
    )
    command = [*PROFILE, "-o", "r", sys.executable, "-c", ask]
    before = set(agents())
    for _ in range(node.NSYS_STARTS):
        output = said(start_apart(version, "", *command, folder=tmp_path))
        if (tmp_path / "r.nsys-rep").exists():
            break
        end(set(agents()) - before)
    assert "True None" in output
    assert (tmp_path / "r.nsys-rep").exists()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_who_waits_for_ever_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TABLES", tmp_path)
    table = sessions.table_of("1.2.3")
    table.write_bytes((1).to_bytes(4, "little") + bytes(100))
    open_it = f"import sys; file = open({str(table)!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", open_it], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert sessions.waits_for_ever(process.pid)
        with table.open("r+b") as stream:
            stream.write((2).to_bytes(4, "little"))
        assert not sessions.waits_for_ever(process.pid)
        with table.open("r+b") as stream:
            stream.write((1).to_bytes(4, "little"))
        table.unlink()
        assert sessions.waits_for_ever(process.pid)
        process.kill()
    assert not sessions.waits_for_ever(process.pid)


def test_jobs_with_a_tmpdir_each_start_nsys_at_once(tmp_path: Path, version: str) -> None:
    """As batch schedulers give them: then nsys's own lock keeps nobody apart."""
    step = shlex.join([*NODE_STEP, "--run"])
    begin = "\n".join(
        f"mkdir -p {folder}/tmp; TMPDIR={folder}/tmp {step} {folder} -- sleep 1 &"
        for folder in (tmp_path / str(n) for n in range(4))
    )
    process = start_apart(version, f"{begin}\nwait", "true", folder=tmp_path)
    output = said(process)
    for n in range(4):
        (record,) = node.read_node_records(tmp_path / str(n))
        assert (tmp_path / str(n) / record["report"]).exists(), output
        assert not any("its start" in note for note in record["notes"])


def test_an_nsys_that_waits_for_ever_is_started_again(tmp_path: Path, version: str) -> None:
    """The table becomes half made when nsys has already begun to start."""
    table = sessions.table_of(version)
    own = ["--nsys-path", str(stand_in(tmp_path, f"TABLE={table}; {HALF_MADE}"))]
    step = [*NODE_STEP, *own, "--run", str(tmp_path), "--", "echo", "ran"]
    process = start_apart(version, "", *step, folder=tmp_path)
    output = said(process)
    assert process.returncode == 0, output
    (record,) = node.read_node_records(tmp_path)
    assert any("died at its start" in note for note in record["notes"])
    assert (tmp_path / record["report"]).exists()


RANGES = """
import os, pathlib, sys, time, nvtx
from dasf_hpc.profile.nvtx_domain import speak_always
speak_always()  # as in a worker: a newer nvtx says nothing to this nsys by itself
for i in range(70):
    nvtx.end_range(nvtx.start_range("x"))
    time.sleep(0.03)
print("TMPDIR", os.environ.get("TMPDIR"), flush=True)
pathlib.Path(sys.argv[1], "said").touch()
while not pathlib.Path(sys.argv[1], "go").exists():
    time.sleep(0.05)
"""


def test_what_was_recorded_is_kept_though_an_nsys_with_another_table_ends(
    tmp_path: Path, version: str
) -> None:
    """As in a container, which has other shared memory and the same folder for temporary files."""
    script = tmp_path / "ranges.py"
    script.write_text(RANGES)
    step = [*NODE_STEP, "--run", str(tmp_path), "--", sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(
        step, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_record(tmp_path)
    (record,) = node.read_node_records(tmp_path)
    deadline = time.monotonic() + 30.0
    while not (tmp_path / "said").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    profile_apart(tmp_path)
    (tmp_path / "go").touch()
    output = said(process)
    assert process.returncode == 0, output
    report = tmp_path / record["report"]
    subprocess.run(
        ["nsys", "export", "-t", "sqlite", "-o", str(tmp_path / "a.sqlite"), str(report)],
        check=True, capture_output=True,
    )  # fmt: skip
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        ((count,),) = database.execute(
            "SELECT count(*) FROM NVTX_EVENTS AS event LEFT JOIN StringIds ON id = event.textId "
            "WHERE coalesce(text, value) = 'x'"
        )
    assert count > 35  # nsys may miss a program's very first; of what was deleted it has none
    assert f"TMPDIR {os.environ.get('TMPDIR')}\n" in output  # the user's own, as it was
