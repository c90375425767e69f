"""The processes of a merge do what they are asked, and end with the one who asks."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest
from synthetic import write_run

from dasf_hpc.trace import merge
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.pool import ProcessPool
from dasf_hpc.trace.store import TraceError


def _gone(pids: list[int], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_calls_are_answered_by_other_processes_which_end() -> None:
    pool = ProcessPool(2)
    pids = {pool.submit(os.getpid).result() for _ in range(4)}
    assert os.getpid() not in pids
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    # what a function prints is no answer
    assert pool.submit(print, "word").result() is None
    pool.shutdown()
    assert _gone(list(pids))


def test_a_pool_that_is_forgotten_ends_its_processes() -> None:
    pool = ProcessPool(1)
    pid = pool.submit(os.getpid).result()
    del pool
    gc.collect()
    assert _gone([pid])


def test_a_process_that_is_killed_is_an_error_in_words() -> None:
    pool = ProcessPool(1)
    pid = pool.submit(os.getpid).result()
    waiting = pool.submit(time.sleep, 60)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TraceError, match=r"ended early.*-9"):
        waiting.result(timeout=20)
    pool.shutdown()


def test_shutting_down_waits_for_no_call() -> None:
    pool = ProcessPool(1)
    waiting = [pool.submit(time.sleep, 60) for _ in range(3)]
    begun = time.monotonic()
    while not pool._processes:
        time.sleep(0.01)
    pool.shutdown()
    assert time.monotonic() - begun < 20
    assert all(call.done() for call in waiting)


_ASKING = """
import os, sys, time
from dasf_hpc.trace.pool import ProcessPool
pool = ProcessPool(2)
print(*{pool.submit(os.getpid).result() for _ in range(2)}, flush=True)
call = pool.submit(time.sleep, float(sys.argv[1]))
while True:  # a signal that comes just before one long sleep begins does not interrupt it
    time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [0.0, 2.0])
def test_processes_end_with_the_one_that_started_them(number: int, busy: float) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-c", _ASKING, str(busy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert asking.stdout is not None
    pids = [int(word) for word in asking.stdout.readline().split()]
    assert pids
    asking.send_signal(number)
    asking.communicate(timeout=20)
    assert _gone(pids)


def test_processes_give_the_same_trace_as_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "journals", nodes=2, workers=2, tasks=60, killed=1, failing=0.1)
    (tmp_path / "journals" / "bad.journal").write_bytes(b"no journal" * 1000)
    merge_journals(tmp_path / "journals").write(tmp_path / "here.h5")
    monkeypatch.setattr(merge, "SMALL_RUN", 0)
    before = psutil.Process().children(recursive=True)
    merged = merge_journals(tmp_path / "journals")
    assert len(psutil.Process().children(recursive=True)) > len(before)
    assert [name for name, _ in merged.skipped] == ["bad.journal"]
    merged.write(tmp_path / "there.h5")
    assert psutil.Process().children(recursive=True) == before
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()


def test_a_script_that_guards_nothing_is_not_run_again(tmp_path: Path) -> None:
    write_run(tmp_path / "journals", nodes=1, workers=2, tasks=20)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from dasf_hpc.trace import merge\n"
        "merge.SMALL_RUN = 0\n"
        "print('begun')\n"
        f"merge.merge_journals(Path({str(tmp_path / 'journals')!r})).write(Path('trace.h5'))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "begun\n"
    assert (tmp_path / "trace.h5").exists()


def test_a_bug_in_a_process_names_the_line_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("def half(x):\n    return x / 0  # HERE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = importlib.import_module("broken")
    pool = ProcessPool(1)
    with pytest.raises(ZeroDivisionError) as caught:
        pool.submit(broken.half, 1).result(timeout=60)
    pool.shutdown()
    text = "".join(traceback.format_exception(caught.value))
    assert 'broken.py", line 2' in text
    assert str(caught.value) == "division by zero"
