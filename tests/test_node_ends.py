"""A node job lives as long as its worker, whatever becomes of nsys, and no way out is silent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dasf_hpc.errors import SettingsError
from dasf_hpc.launch import node, node_watch
from dasf_hpc.launch.worker_command import choose_nsys, records_in_part, why_not_together
from dasf_hpc.launch.worker_options import check_together
from dasf_hpc.nsight.export import reports_of
from dasf_hpc.nsight.sessions import agents_of
from dasf_hpc.settings import load_settings

WORKER = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def hear(number, frame):
    with (here / "heard").open("a") as file:
        print(signal.Signals(number).name, file=file)
    time.sleep(0.5)
    (here / "closed").touch()
    sys.exit(5)
signal.signal(signal.SIGTERM, hear)
from dasf_hpc.profile.nvtx_domain import speak_always
speak_always()
import nvtx
(here / "worker").touch()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with nvtx.annotate("range", domain="job"):
        time.sleep(0.2)
    time.sleep(0.1)
(here / "done").touch()
sys.exit(7)
"""

CAPTURE = ("--nsys-arg=--capture-range=nvtx", "--nsys-arg=--nvtx-capture=range@job")


class Step:
    """A node step that runs."""

    def __init__(self, folder: Path, *words: str, path: str | None = None) -> None:
        self.folder = folder
        environment = {**os.environ, "PBS_JOBID": "12.srv"}
        environment.pop("SLURM_JOB_ID", None)
        if path is not None:
            environment["PATH"] = f"{path}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dasf_hpc.launch.node", "--run", str(folder), "--name", "R-0",
             *words],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, there: Callable[[], Any], seconds: float = 40) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Give its exit code, and what it said."""
        said, _ = self.process.communicate(timeout=90)
        return self.process.returncode, said

    @property
    def record(self) -> dict[str, Any]:
        """What it left."""
        (record,) = node.read_node_records(self.folder)
        return record

    def nsys(self) -> psutil.Process:
        """Give its nsys."""
        children = psutil.Process(self.process.pid).children()
        (nsys,) = (child for child in children if "profile" in child.cmdline())
        return nsys


def processes_of(folder: Path) -> list[psutil.Process]:
    """Give the processes that have a folder in their command line."""
    words = ((p, " ".join(p.info["cmdline"] or ())) for p in psutil.process_iter(["cmdline"]))
    return [process for process, line in words if str(folder) in line]


Start = Callable[..., Step]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a node step, all of whose processes must end with it."""
    steps: list[Step] = []

    def begin(*words: str, path: str | None = None) -> Step:
        step = Step(tmp_path, *words, path=path)
        steps.append(step)
        return step

    yield begin
    for step in steps:
        if step.process.poll() is None:
            step.process.kill()
            step.process.wait()
    deadline = time.monotonic() + 20.0  # a step that was killed has a watcher, which clears up
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        process.kill()
    assert left == []


def worker(folder: Path, seconds: float) -> list[str]:
    """Give the words of the worker command."""
    (folder / "worker.py").write_text(WORKER)
    return ["--", sys.executable, str(folder / "worker.py"), str(folder), str(seconds)]


# ---------------------------------------------------------------------------- nsys ends first


@pytest.mark.needs("nsys")
def test_the_job_goes_on_when_nsys_has_recorded_enough(tmp_path: Path, start: Start) -> None:
    step = start("--nsys", "--nsys-arg=--duration=3", *worker(tmp_path, 9))
    step.wait_for((tmp_path / "worker").exists)
    nsys = step.nsys()
    (agent,) = agents_of(nsys.pid)
    code, said = step.end()
    assert (tmp_path / "done").exists()
    assert code == 7, said
    assert not (tmp_path / "heard").exists()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert agent.status() == psutil.STATUS_ZOMBIE
    record = step.record
    assert record["reports"] == [record["report"]]
    assert (tmp_path / record["report"]).exists()
    notes = [note for note in record["notes"] if "--duration=3" in note]
    assert len(notes) == 2
    assert "--kill=none was added" in notes[0]
    assert "before its worker: what ran later is in no report" in notes[1]
    assert all(note in said for note in notes)


@pytest.mark.needs("nsys")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_nsyss_end_reaches_the_worker_once(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    step = start("--nsys", "--nsys-arg=--duration=2", *worker(tmp_path, 60))
    step.wait_for(lambda: (tmp_path / "worker").exists() and step.record.get("reports"))
    step.process.send_signal(number)
    step.process.send_signal(number)
    code, said = step.end()
    assert code == 5, said
    assert (tmp_path / "heard").read_text() == "SIGTERM\n"
    assert (tmp_path / "closed").exists()


@pytest.mark.needs("nsys")
def test_a_signal_before_nsyss_end_lets_both_end(tmp_path: Path, start: Start) -> None:
    """Batch schedulers signal every process: here nsys and the node step."""
    step = start("--nsys", "--nsys-arg=--duration=50", *worker(tmp_path, 60))
    step.wait_for((tmp_path / "worker").exists)
    time.sleep(1.0)
    nsys = step.nsys()
    step.process.terminate()
    nsys.terminate()
    _, said = step.end()  # the worker's exit code, or nsys's where that ended just after it
    assert (tmp_path / "heard").read_text() == "SIGTERM\n", said
    assert (tmp_path / "closed").exists()
    assert (tmp_path / step.record["report"]).exists()


@pytest.mark.needs("nsys")
def test_the_job_goes_on_when_nsys_is_killed(tmp_path: Path, start: Start) -> None:
    step = start("--nsys", *worker(tmp_path, 5))
    step.wait_for((tmp_path / "worker").exists)
    step.nsys().kill()
    code, said = step.end()
    assert (tmp_path / "done").exists()
    assert code == 7, said
    assert "nsys ended (exit code 137), " in said
    assert any("before its worker" in note for note in step.record["notes"])
    assert "reports" not in step.record  # so its report is missing


@pytest.mark.needs("nsys")
def test_every_report_of_a_job_is_named(tmp_path: Path, start: Start) -> None:
    step = start("--nsys", *CAPTURE, "--nsys-arg=--capture-range-end=repeat:2",
                 *worker(tmp_path, 4))  # fmt: skip
    code, said = step.end()
    assert code == 7, said
    stem = step.record["report"].removesuffix(".nsys-rep")
    assert step.record["reports"] == [f"{stem}.1.nsys-rep", f"{stem}.2.nsys-rep"]
    assert all((tmp_path / report).exists() for report in step.record["reports"])
    assert sum("recorded in part" in note for note in step.record["notes"]) == 1


@pytest.mark.needs("nsys")
def test_a_capture_range_that_never_comes_is_told(tmp_path: Path, start: Start) -> None:
    words = ("--nsys-arg=--capture-range=nvtx", "--nsys-arg=--nvtx-capture=other@job")
    step = start("--nsys", *words, *worker(tmp_path, 1))
    code, said = step.end()
    assert code == 7, said
    assert step.record["reports"] == []
    assert sum("nsys recorded nothing" in note for note in step.record["notes"]) == 1


# ---------------------------------------------------------------------------- no worker begins


def stand_in(folder: Path, profile: str, version: str = "") -> str:
    """Make an nsys that does something else, and give its folder."""
    program = folder / "bin" / "nsys"
    program.parent.mkdir()
    program.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        case $1 in
        --version) VERSION
            echo "NVIDIA Nsight Systems version 2099.1.1.1-stand-in" ;;
        profile) PROFILE ;;
        esac
        """)
        .replace("VERSION", version)
        .replace("PROFILE", profile)
    )
    program.chmod(0o755)
    return str(program.parent)


SAY = ("--", sys.executable, "-c", "print('ran')")


def test_an_nsys_that_ends_well_without_its_program_is_no_success(
    tmp_path: Path, start: Start
) -> None:
    path = stand_in(tmp_path, 'echo started >> "$(dirname "$0")/started"')
    step = start("--nsys", *SAY, path=path)
    code, said = step.end()
    assert code == node.NSYS_UNUSABLE
    assert (tmp_path / "bin" / "started").read_text().count("\n") == node.NSYS_STARTS
    assert "ran" not in said.splitlines()
    sentence = f"nsys died at its start ({node.NSYS_STARTS} times, exit code 0)"
    assert f"dasf-hpc: nsys could not be started on this node: {sentence}" in said
    assert any("could not be started" in note for note in step.record["notes"])


def test_without_insisting_on_such_an_nsys_the_worker_runs(tmp_path: Path, start: Start) -> None:
    step = start(*SAY, path=stand_in(tmp_path, "exit 0"))
    code, said = step.end()
    assert code == 0
    assert "ran" in said.splitlines()
    assert step.record["report"] is None
    assert any("exit code 0" in note for note in step.record["notes"])


@pytest.mark.parametrize(
    ("profile", "version", "code"),
    [
        ('touch "$(dirname "$0")/asked"; sleep 3; exit 0', "", 143),
        ('touch "$(dirname "$0")/asked"; sleep 3; exit 9', "", 9),
        ("exit 0", 'touch "$(dirname "$0")/asked"; sleep 3', 143),
    ],
    ids=["nsys-ends-well", "nsys-fails", "before-nsys"],
)
def test_a_job_that_is_over_before_its_worker_began_says_so(
    tmp_path: Path, start: Start, profile: str, version: str, code: int
) -> None:
    step = start("--nsys", *SAY, path=stand_in(tmp_path, profile, version))
    step.wait_for((tmp_path / "bin" / "asked").exists)
    step.process.terminate()
    ended, said = step.end()
    assert ended == code
    assert "ran" not in said.splitlines()
    sentence = "the job was asked to end (SIGTERM) before its worker had begun"
    assert f"dasf-hpc: {sentence}" in said
    assert sentence in step.record["notes"]


def test_a_worker_command_that_is_not_there_is_told(tmp_path: Path, start: Start) -> None:
    step = start("--no-nsys", "--", str(tmp_path / "python"), "-c", "pass")
    code, said = step.end()
    assert code == 127
    assert f"{tmp_path / 'python'} cannot be run: No such file or directory" in said
    assert any("cannot be run" in note for note in step.record["notes"])


def test_a_run_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    step = Step(tmp_path / "run", "--no-nsys", *SAY)
    code, said = step.end()
    assert code == node.RUN_DIRECTORY_UNUSABLE
    assert said.startswith(f"dasf-hpc: the run's directory {tmp_path / 'run'} cannot be used on")
    assert said.count("\n") == 1


# ---------------------------------------------------------------------------- nsys's arguments


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ([], None),
        (["--trace=nvtx", "--delay=0", "-d", "0", "--capture-range=none"], None),
        (["--duration=3"], "--duration=3"),
        (["--duration", "3"], "--duration=3"),
        (["-d", "3"], "--duration=3"),
        (["-d3"], "--duration=3"),
        (["--duration=3", "-d0"], None),
        (["-c", "cudaProfilerApi"], "--capture-range=cudaProfilerApi"),
        (["--capture-range=nvtx", "--capture-range-end=stop"], "--capture-range=nvtx"),
        (["--delay=5"], "--delay=5"),
        (["--duration-frames=60"], "--duration-frames=60"),
    ],
)
def test_what_records_a_part_only_does_not_end_the_worker(
    extra: list[str], part: str | None
) -> None:
    assert records_in_part(extra) == part
    arguments = choose_nsys(extra, has_gpu=True).arguments
    assert ("--kill=none" in arguments) == (part is not None)
    assert why_not_together([*extra, "--kill=none"]) is None
    assert "--kill=none" not in choose_nsys([*extra, "--kill=sigterm"], has_gpu=True).arguments
    ends = part is not None and not part.startswith("--delay")
    assert (why_not_together([*extra, "--kill", "9"]) is not None) == ends


def test_an_nsys_that_is_to_end_the_workers_is_refused() -> None:
    settings = load_settings({"nsys_arg": ["--duration=3", "--kill=sigkill"]})
    with pytest.raises(SettingsError, match=r"--duration=3 and --kill=sigkill nsys would end"):
        check_together(settings)


def test_reports_of_one_job_are_told_from_anothers(tmp_path: Path) -> None:
    assert reports_of(tmp_path, "node-1") == []
    for name in ("node-1.1.nsys-rep", "node-1.2.qdstrm", "node-1.4.nsys-rep", "node-12.nsys-rep",
                 "node-2.1.nsys-rep", "node-2.1.claim", "node-2.2.nsys-rep"):  # fmt: skip
        (tmp_path / name).touch()
    assert reports_of(tmp_path, "node-1") == ["node-1.1", "node-1.2"]
    assert reports_of(tmp_path, "node-2") == []
    assert reports_of(tmp_path, "node-12") == ["node-12"]


def test_what_a_record_says_of_its_reports_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    for name, reports in (("a", ["x"]), ("b", "x"), ("c", [1]), ("d", None)):
        text = json.dumps({"report": "x", "reports": reports})
        (tmp_path / "nodes" / f"{name}.json").write_text(text)
    found = [record.get("reports") for record in node.read_node_records(tmp_path)]
    assert found == [["x"], None, None, None]


# ------------------------------------------------------------------------- the step is killed


@pytest.mark.needs("nsys")
def test_a_job_that_is_killed_at_once_leaves_no_worker_and_no_agent(
    tmp_path: Path, start: Start
) -> None:
    """As ``qdel -W force`` does it: what has the job's session gets SIGKILL, and no more."""
    step = start("--nsys", *worker(tmp_path, 60))
    step.wait_for((tmp_path / "worker").exists)
    nsys = step.nsys()
    agents = agents_of(nsys.pid)
    assert len(agents) == 1
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == step.process.pid:
                process.kill()
    step.process.wait()
    assert agents[0].is_running()  # it has a session of its own
    _, left = psutil.wait_procs([*agents, *processes_of(tmp_path)], timeout=30)
    assert left == []
    assert (tmp_path / "closed").exists()  # the worker was told, and not killed


@pytest.mark.needs("nsys")
def test_of_a_step_that_alone_is_killed_the_report_is_written(tmp_path: Path, start: Start) -> None:
    step = start("--nsys", *worker(tmp_path, 60))
    step.wait_for((tmp_path / "worker").exists)
    time.sleep(1.0)
    step.process.kill()
    step.process.wait()
    _, left = psutil.wait_procs(processes_of(tmp_path), timeout=60)
    assert left == []
    assert (tmp_path / step.record["report"]).exists()


def test_who_is_watched_and_ends_in_order_is_left_alone(tmp_path: Path) -> None:
    script = Path(node.__file__).with_name("node_watch.py")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        begun = tmp_path / "begun"
        begun.write_text(str(bystander.pid))
        for said, ended in ((f"{bystander.pid}\nok\n", False), ("", False), ("999999\n", True)):
            words = [sys.executable, "-SE", str(script), str(begun)]
            done = subprocess.run(words, input=said, text=True, timeout=30, check=False)
            assert done.returncode == 0
            assert (bystander.poll() is not None) is ended
        assert bystander.wait() == -signal.SIGTERM


def test_a_later_process_with_the_workers_number_is_left_alone(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with subprocess.Popen(["sleep", "60"]) as bystander:
        begun.write_text(str(bystander.pid))
        os.utime(begun, (time.time() - 60, time.time() - 60))
        assert node_watch.worker_in(str(begun)) is None
        begun.touch()
        assert node_watch.worker_in(str(begun)) == bystander.pid
        bystander.kill()
