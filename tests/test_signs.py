"""Launch: signs of life that a node job's script leaves, and the words that tell why it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dasf_hpc.launch.last_words import batch_logs, last_words
from dasf_hpc.launch.signs import EVERY_S, Sign, sign_line


def is_there(group: int) -> bool:
    """Say if a process group has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_signs_are_left_until_the_script_has_ended_whatever_signal_its_processes_get(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a sign's $(place)"
    script = f"{sign_line(path)}\ntrap '' TERM\nsleep 9 & wait; wait; sleep 30"
    process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    sign = Sign(path)
    deadline = time.monotonic() + 5
    while sign.changed_at is None:
        assert time.monotonic() < deadline
        sign.look()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    first = sign.changed_at
    deadline = time.monotonic() + 2 * EVERY_S + 2
    while sign.changed_at == first:
        assert time.monotonic() < deadline
        sign.look()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 2 * EVERY_S + 2
    while (quiet := sign.look()) < EVERY_S + 1.5:
        assert time.monotonic() < deadline, quiet
        time.sleep(0.1)
    assert time.monotonic() - sign.changed_at >= EVERY_S
    deadline = time.monotonic() + 2 * EVERY_S
    while is_there(process.pid):  # the loop ends, too
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sign_is_compared_with_itself_and_never_with_a_clock(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    sign = Sign(path)
    assert sign.look(100.0) == 0.0
    assert sign.look(1000.0) == 0.0  # a script that has not begun is not silent
    path.write_text("1")
    os.utime(path, (1, 1))  # a file server that lives in 1970
    assert sign.look(1000.0) == 0.0
    assert sign.look(1080.0) == 80.0
    os.utime(path, (6, 6))
    assert sign.look(1081.0) == 0.0
    path.unlink()  # nor is a file that cannot be seen for a moment a change
    assert sign.look(1091.0) == 10.0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            [
                "dasf-hpc: no CUDA trace: there is no NVIDIA driver on this node",
                "Traceback (most recent call last):",
                "ModuleNotFoundError: No module named 'dask_cuda'",
                "Generating '/tmp/nsys-report-a3f2.qdstrm'",
                "[1/1] [========================100%] node1-1.nsys-rep",
                "Generated:",
                "    /runs/RUN/nsight/node1-1.nsys-rep",
            ],
            "ModuleNotFoundError: No module named 'dask_cuda'",
        ),
        (["distributed.nanny - INFO - Start Nanny at: 'tls://10.0.0.1:40003'"],
         "distributed.nanny - INFO - Start Nanny at: 'tls://10.0.0.1:40003'"),
        (["bash: line 3: dasf-hpc: command not found", "", "one more line"],
         "bash: line 3: dasf-hpc: command not found"),
        ([], ""),
    ],
)  # fmt: skip
def test_the_last_words_name_the_fault_and_not_where_nsys_put_its_report(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    log = tmp_path / "x.log"
    log.write_bytes("\n".join(lines).encode() + b"\xff")
    assert (
        last_words([tmp_path / "missing", log]).removesuffix("\N{REPLACEMENT CHARACTER}") == words
    )


def test_what_the_batch_system_says_comes_last(tmp_path: Path) -> None:
    own, system = tmp_path / "own.log", tmp_path / "slurm-7.out"
    own.write_text("ValueError: of the worker\n")
    system.write_text("slurmstepd: error: *** JOB 7 ON n1 CANCELLED DUE TO TIME LIMIT ***\n")
    assert "TIME LIMIT" in last_words([own, system])


def test_what_the_batch_system_wrote_of_a_job_is_found_whatever_numbers_the_run_is_named_by(
    tmp_path: Path,
) -> None:
    run = "2026-11-30T17-55-18-job-5b15"
    logs = tmp_path / run / "logs"
    logs.mkdir(parents=True)
    ours = ["slurm-5.out", f"{run}-1.o5", "5.server.OU", "job.e5", f"{run}.5.err"]
    others = [f"{run}-1.log", f"{run}-5.log", "slurm-15.out", "slurm-55.out", "job.o50", "head.log"]
    for name in (*ours, *others):
        (logs / name).touch()
    assert [path.name for path in batch_logs(logs, "5")] == sorted(ours)
    assert batch_logs(logs, None) == []
