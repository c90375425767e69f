"""The doctor: each check says ok where all is well, and fails for the right reason.

What is broken here is broken for real: programs on PATH that do not work, folders that cannot be
written, limits that are low, nodes without a network.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from testbed.openpbs import OpenPbsTestbed
from testbed.slurm import SlurmTestbed

from dasf_hpc.doctor import examine
from dasf_hpc.doctor.check import Status
from dasf_hpc.doctor.examine import apptainer, as_json, batch_scheduler, look_into_image
from dasf_hpc.doctor.host import HostRequest, clock_synchronisation, host_checks, port
from dasf_hpc.doctor.trial import compare_versions
from dasf_hpc.launch.choice import LAUNCHERS
from dasf_hpc.launch.environment import clash, versions_here
from dasf_hpc.settings import load_settings

OLDER_DASK = "2026.7.1"

FAILED = 78
"""Exit code for a check that failed, as the README documents it."""

Found = dict[tuple[str, str], dict[str, str]]


def look(
    *before: str,
    request: HostRequest | None = None,
    environment: Mapping[str, str] | None = None,
    python: str | Path = sys.executable,
) -> dict[str, dict[str, str]]:
    """Run the checks of a host in a process of its own, after the words of ``before``."""
    code = (
        "import json, sys; from dataclasses import asdict\n"
        "from dasf_hpc.doctor.host import HostRequest, host_checks\n"
        "request = HostRequest(**json.loads(sys.argv[1]))\n"
        "print(json.dumps([asdict(c) for c in host_checks('compute node', request)]))"
    )
    asked = json.dumps(asdict(request or HostRequest(nsys=False)))
    done = subprocess.run(
        [*before, python, "-c", code, asked],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)}


def in_mounts(*commands: str) -> list[str]:
    """Give the words that run a command with mounts of its own."""
    return ["unshare", "--mount", "sh", "-c", " && ".join((*commands, 'exec "$0" "$@"'))]


def broken(folder: Path, *names: str, by: str = "false") -> str:
    """Make a PATH on which programs are there and do not work."""
    folder.mkdir(exist_ok=True)
    program = shutil.which(by)
    assert program is not None
    for name in names:
        (folder / name).symlink_to(program)
    return f"{folder}:{os.environ['PATH']}"


def other_environment(folder: Path, *without: str) -> Path:
    """Make a virtual environment of this one's packages without some; give its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*without, "__pycache__")):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def install_older_dask(folder: Path) -> None:
    """Put another Dask, which works, into a folder of packages."""
    packages = [f"{name}=={OLDER_DASK}" for name in ("dask", "distributed")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-t", folder, *packages],
        stdin=subprocess.DEVNULL, check=True, timeout=120,
    )  # fmt: skip


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts of one's own need root")


# -------------------------------------------------------------------------------------- one host


@pytest.mark.needs("nsys")
def test_a_range_is_captured_exported_and_found() -> None:
    found = look(request=HostRequest(nsys=True))
    assert [found[name]["status"] for name in ("nsys", "nsys report", "nvtx range")] == ["ok"] * 3


@pytest.mark.needs("nsys")
def test_an_nvtx_that_marks_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "nvtx.py").write_text("def push_range(**words): ...\ndef pop_range(**words): ...\n")
    found = look(request=HostRequest(nsys=True), environment={"PYTHONPATH": str(tmp_path)})
    assert found["nsys report"]["status"] == "ok"
    assert found["nvtx range"]["status"] == "fail"
    assert "nvtx" in found["nvtx range"]["remedy"]


def test_an_nsys_that_is_none_is_told(tmp_path: Path) -> None:
    path = broken(tmp_path / "bin", "nsys")
    found = look(request=HostRequest(), environment={"PATH": path})
    assert found["nsys"]["status"] == "fail"
    assert "does not tell its version" in found["nsys"]["detail"]
    assert found["nsys report"]["status"] == "could not look"


def test_a_missing_nsys_is_a_failure_only_where_it_is_asked_for() -> None:
    nowhere = {"PATH": "/nonexistent"}
    assert look(request=HostRequest(), environment=nowhere)["nsys"]["status"] == "warn"
    assert look(request=HostRequest(nsys=True), environment=nowhere)["nsys"]["status"] == "fail"
    assert look()["nsys"]["status"] == "could not look"  # --no-nsys


@pytest.mark.needs("nsys")
def test_an_nsys_that_leaves_no_report_is_told(tmp_path: Path, nsys: Path) -> None:
    # It tells its version as the real one does, and then cannot write.
    wrapper = tmp_path / "nsys"
    wrapper.write_text(f'#!/bin/sh\n[ "$1" = profile ] || exec {nsys} "$@"\necho disk full; exit 1')
    wrapper.chmod(0o755)
    found = look(request=HostRequest(nsys_path=str(wrapper)))
    assert found["nsys report"]["status"] == "fail"
    assert "disk full" in found["nsys report"]["detail"]
    assert found["nvtx range"]["status"] == "could not look"


def test_a_scratch_folder_that_cannot_be_written_is_told() -> None:
    found = look(request=HostRequest(nsys=False, scratch="/proc/scratch"))
    assert found["scratch folder"]["status"] == "fail"
    assert "--local-directory" in found["scratch folder"]["remedy"]


@needs_root
def test_a_scratch_folder_without_programs_is_told(tmp_path: Path) -> None:
    found = look(
        *in_mounts(f"mount -t tmpfs -o noexec none '{tmp_path}'"),
        request=HostRequest(nsys=False, scratch=str(tmp_path)),
    )
    assert found["scratch folder"]["status"] == "warn"
    assert "noexec" in found["scratch folder"]["remedy"]


@needs_root
def test_a_kernel_that_forbids_sampling_and_has_a_slow_clock_is_told(tmp_path: Path) -> None:
    (tmp_path / "paranoid").write_text("4\n")
    (tmp_path / "clock").write_text("hpet\n")
    source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    found = look(
        *in_mounts(
            f"mount --bind '{tmp_path}/paranoid' /proc/sys/kernel/perf_event_paranoid",
            f"mount --bind '{tmp_path}/clock' {source}",
        )
    )
    assert found["perf_event_paranoid"]["status"] == "warn"
    assert "it is 4" in found["perf_event_paranoid"]["detail"]
    assert found["clock source"]["status"] == "warn"
    assert "hpet" in found["clock source"]["detail"]


@needs_root
def test_a_kernel_that_does_not_tell_is_no_failure() -> None:
    # As in some containers: both folders of the kernel are empty.
    found = look(
        *in_mounts(
            "mount -t tmpfs none /sys/devices/system/clocksource/clocksource0",
            "mount -t tmpfs none /proc/sys/kernel",
        )
    )
    for name in ("clock source", "perf_event_paranoid"):
        assert found[name]["status"] == "could not look"
        assert "No such file" in found[name]["detail"]


def test_a_missing_package_for_gpus_is_told(tmp_path: Path) -> None:
    python = other_environment(tmp_path / "venv", "pynvml", "nvidia_ml_py")
    found = look(request=HostRequest(nsys=False, gpus=1), python=python)
    assert found["nvml"]["status"] == "fail"
    assert found["nvml"]["remedy"] == "pip install nvidia-ml-py"


@pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver"
)
def test_gpus_that_are_asked_for_and_not_there_are_told() -> None:
    found = look(request=HostRequest(nsys=False, gpus=2))
    assert found["gpu"]["status"] == found["nvml"]["status"] == "fail"
    assert "2 asked for" in found["gpu"]["detail"]
    assert found["mig"]["status"] == "could not look"
    assert {look()[name]["status"] for name in ("gpu", "nvml", "mig")} == {"could not look"}


@pytest.mark.parametrize(("limit", "status"), [(128, "fail"), (512, "warn"), (4096, "ok")])
def test_a_low_limit_of_open_files_is_told(limit: int, status: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < limit:
        pytest.skip(f"the hard limit here is {hard}")
    found = look("sh", "-c", f'ulimit -Sn {limit}; exec "$0" "$@"')
    assert found["open-file limit"]["status"] == status
    assert f"it is {limit}" in found["open-file limit"]["detail"]


def test_a_clock_is_judged_by_what_the_kernel_says() -> None:
    said = [clock_synchronisation("login node", *state).status for state in
            ((True, 0.01), (False, 16.0), (None, 0.0))]  # fmt: skip
    assert said == [Status.OK, Status.WARN, Status.COULD_NOT_LOOK]
    assert "clock synchronisation" in look()  # and it does say something here


def test_a_port_where_nobody_listens_is_told() -> None:
    check = port("compute node", "127.0.0.1", 1)
    assert check.status is Status.FAIL
    assert "--interface" in check.remedy
    found = look(request=HostRequest(nsys=False, head=("127.0.0.1", 1), clock_port=2))
    assert (found["port"]["status"], found["clock port"]["status"]) == ("fail", "warn")


def test_other_versions_elsewhere_are_told() -> None:
    same = versions_here()
    older = {**same, "dask": "2020.1.0"}
    patch = {**same, "numpy": "1.0"}
    assert compare_versions("image", [("a", same)]).status is Status.OK
    check = compare_versions("image", [("a", same), ("b", older)])
    assert check.status is Status.FAIL
    assert "b has dask 2020.1.0" in check.detail
    assert compare_versions("image", [("b", patch)]).status is Status.WARN
    assert compare_versions("image", []).status is Status.COULD_NOT_LOOK
    assert clash({**same, "python": "3.11.2"}, {**same, "python": "3.11.9"}) is None
    assert clash({**same, "python": "3.11.2"}, {**same, "python": "3.12.0"}) == "python"


def test_the_json_is_as_documented() -> None:
    checks = host_checks("login node", HostRequest(nsys=False))
    entries = json.loads(as_json(checks))["checks"]
    assert len(entries) == len(checks)
    for entry in entries:
        assert list(entry) == ["name", "where", "status", "detail", "remedy"]
        assert entry["status"] in ("ok", "warn", "fail", "could not look")


# ------------------------------------------------------------------------------------ the cluster


def test_programs_of_the_batch_scheduler_that_are_missing_or_broken_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    path = broken(folder, "sbatch", "squeue")
    monkeypatch.setenv("PATH", str(folder))
    check = batch_scheduler(LAUNCHERS["slurm"], "")
    assert check.status is Status.FAIL
    assert "not on PATH: scancel" in check.detail
    monkeypatch.setenv("PATH", path)
    broken(folder, "scancel")
    check = batch_scheduler(LAUNCHERS["slurm"], "")
    assert check.status is Status.FAIL
    assert "ended with 1" in check.detail


def test_a_batch_scheduler_that_does_not_answer_is_told(
    openpbs: OpenPbsTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", openpbs.environment["PATH"])
    monkeypatch.setenv("OPENPBS_TESTBED", str(tmp_path / "gone"))
    check = batch_scheduler(LAUNCHERS["pbs"], "")
    assert check.status is Status.FAIL
    assert "cannot connect to server" in check.detail
    # A server that takes the question and says nothing.
    (tmp_path / "deaf").mkdir()
    monkeypatch.setenv("OPENPBS_TESTBED", str(tmp_path / "deaf"))
    monkeypatch.setattr(examine, "ANSWER_TIMEOUT_S", 0.5)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf" / "socket"))
        deaf.listen()
        check = batch_scheduler(LAUNCHERS["pbs"], "")
    assert check.status is Status.FAIL
    assert "qstat did not answer within 0.5 s" in check.detail


def test_an_apptainer_that_does_not_work_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "some.sif"
    image.write_bytes(b"")
    asked = load_settings({"image": image})
    broken(tmp_path / "bin", "apptainer")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert apptainer().status is Status.WARN  # nobody asked for an image
    (check,), container, _ = look_into_image(asked)
    assert (check.name, check.status, container) == ("apptainer", Status.FAIL, None)
    assert "does not work" in check.detail
    monkeypatch.setenv("PATH", "/nonexistent")
    (check,), _, _ = look_into_image(asked)
    assert "not on PATH" in check.detail


Doctor = Callable[..., tuple[int, Found]]


@pytest.fixture
def doctor(slurm: SlurmTestbed, tmp_path: Path) -> Doctor:
    """Give a function that runs ``dasf-hpc doctor`` on the testbed."""

    def run(*words: str, **environment: str) -> tuple[int, Found]:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "dasf_hpc.cli", "doctor", "--on", "slurm", "--json"),
                *("--interface", "lo", "--no-nsys", *words),
            ],
            env={**os.environ, **slurm.environment, **environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout.startswith("{"), done.stderr
        found: Any = json.loads(done.stdout)["checks"]
        assert slurm.queue() == []
        return done.returncode, {(check["where"], check["name"]): check for check in found}

    return run


@pytest.mark.needs("slurm", "nsys")
def test_a_cluster_where_all_is_well(doctor: Doctor, slurm: SlurmTestbed, tmp_path: Path) -> None:
    number = free_ports()
    words = ("--nodes", "2", "--memory", "8GB", "--nsys", "--scheduler-port", str(number))
    code, found = doctor(*words)
    failed = [check for check in found.values() if check["status"] == "fail"]
    assert (code, failed) == (0, [])
    names = ("trial job", "shared file system", "tls", "versions", "port", "clock port")
    for name in (*names, "nvtx range"):
        assert found["compute node", name]["status"] == "ok", found["compute node", name]
    assert found["login node", "batch scheduler"]["status"] == "ok"
    assert found["compute node", "scratch folder"]["detail"].split(":")[0] in slurm.nodes
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.needs("slurm")
def test_nodes_that_do_not_reach_the_head_are_told(doctor: Doctor) -> None:
    # The batch script starts itself again with a network of its own: no way to the head.
    alone = '[ -n "$ALONE" ] || ALONE=1 exec unshare --net bash "$0"'
    number = free_ports()
    with socket.create_server(("", number + 1)):  # nor can the head use the port beside its own
        code, found = doctor("--prologue", alone, "--scheduler-port", str(number))
    assert code == FAILED
    assert found["compute node", "port"]["status"] == "fail"
    assert found["compute node", "clock port"]["status"] == "warn"
    assert found["login node", "clock port"]["status"] == "warn"
    assert "in use" in found["login node", "clock port"]["detail"]
    assert found["compute node", "shared file system"]["status"] == "ok"
    assert found["compute node", "tls"]["status"] == "could not look"


@pytest.mark.needs("slurm")
def test_a_folder_that_the_nodes_do_not_share_is_told(doctor: Doctor, tmp_path: Path) -> None:
    # The batch script starts itself again with an empty folder in place of the runs.
    hide = f'unshare --mount sh -c \'mount -t tmpfs none {tmp_path}/runs && exec bash "$0"\' "$0"'
    code, found = doctor("--prologue", f'[ -n "$HIDDEN" ] || HIDDEN=1 exec {hide}')
    assert code == FAILED
    assert found["compute node", "shared file system"]["status"] == "fail"
    assert "--runs-dir" in found["compute node", "shared file system"]["remedy"]


@pytest.mark.needs("slurm")
def test_a_trial_job_that_is_refused_or_waits_is_told(doctor: Doctor) -> None:
    code, found = doctor("--partition", "nosuch")
    assert code == FAILED
    assert "partition" in found["compute node", "trial job"]["detail"]
    assert found["compute node", "tls"]["status"] == "could not look"
    code, found = doctor("--directive=--begin=now+1hour", "--start-timeout", "4", "--no-tls")
    assert code == 0
    assert found["compute node", "trial job"]["status"] == "could not look"
    assert found["compute node", "shared file system"]["status"] == "could not look"
    assert found["compute node", "tls"]["status"] == "warn"
    code, found = doctor("--prologue", "echo no such module >&2; exit 3")
    assert code == FAILED
    assert found["compute node", "trial job"]["status"] == "fail"
    assert "no such module" in found["compute node", "trial job"]["detail"]
    assert Path(found["login node", "logs"]["detail"].split(": ")[1]).is_dir()


@pytest.mark.needs("slurm")
def test_another_dask_on_the_nodes_is_told(doctor: Doctor, tmp_path: Path) -> None:
    python = other_environment(tmp_path / "venv", "dask-", "distributed", "dask")
    install_older_dask(next((tmp_path / "venv").glob("lib/python*/site-packages")))
    code, found = doctor("--worker-python", str(python))
    assert code == FAILED
    assert found["compute node", "versions"]["status"] == "fail"
    assert f"has dask {OLDER_DASK}, the head" in found["compute node", "versions"]["detail"]


@pytest.mark.needs("slurm")
def test_a_runs_directory_that_cannot_be_made_is_told(doctor: Doctor) -> None:
    code, found = doctor("--runs-dir", "/proc/nowhere")
    assert code == FAILED
    assert found["login node", "runs directory"]["status"] == "fail"


def test_a_cluster_with_pbs_where_all_is_well(openpbs: OpenPbsTestbed, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dasf_hpc.cli", "doctor", "--on", "pbs", "--json"),
            *("--interface", "lo", "--no-nsys", "--memory", "1GB"),
        ],
        env={**os.environ, **openpbs.environment}, cwd=tmp_path,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = {(c["where"], c["name"]): c["status"] for c in json.loads(done.stdout)["checks"]}
    names = ("trial job", "shared file system", "tls", "versions", "port")
    assert {found["compute node", name] for name in names} == {"ok"}
    assert found["login node", "batch scheduler"] == "ok"
    openpbs.wait_until_empty()


def test_a_host_without_the_batch_scheduler_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", "doctor", "--on", "slurm", "--json"],
        env={**os.environ, "PATH": "/nonexistent"}, cwd=tmp_path,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == FAILED
    assert done.stderr.count("\n") == 1
    first = json.loads(done.stdout)["checks"][0]
    assert (first["name"], first["status"]) == ("batch scheduler", "fail")
    assert "sbatch" in first["detail"]
