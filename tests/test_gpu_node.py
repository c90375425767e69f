"""What runs on a node with GPUs, on a stand-in for NVIDIA's management library.

The library is loaded by its name, as the real one is, and answers as its documentation says;
nothing here computes on a GPU (`tests/gpu/check.sh` does).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testbed import nvml

from dasf_hpc import open_trace

NEEDS = pytest.mark.skipif(nvml.why_not_here() is not None, reason=str(nvml.why_not_here()))

pytestmark = NEEDS


@pytest.fixture(scope="session")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give the variables with which a program finds the stand-in."""
    return nvml.build(tmp_path_factory.mktemp("nvml"))


def asked(program: str, variables: dict[str, str], **more: str) -> Any:
    """Give what a program prints as JSON, in a process that has the GPUs."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_gpus_are_listed(variables: dict[str, str]) -> None:
    program = """
import json
from dasf_hpc.profile.devices import nvml_devices
devices, state = nvml_devices()
print(json.dumps([[d.index, d.uuid, d.name, d.memory] for d in devices] + [state.name]))
"""
    *devices, state = asked(program, variables, STAND_IN_GPUS="2")
    assert state == "READY"
    assert [d[0] for d in devices] == [0, 1]
    assert devices[1] == [1, "GPU-00000001-0000-0000-0000-000000000000", "Stand-in GPU", 80 << 30]
    # a system on a chip: NVML has no memory to tell of, and the GPU is there all the same
    *devices, state = asked(program, variables, STAND_IN_SHARED="1")
    assert [state, devices[0][3]] == ["READY", -1]


def test_the_samples_of_many_gpus_are_not_held_up_by_pcie(variables: dict[str, str]) -> None:
    program = """
import json, math, time
from dasf_hpc.profile.sampler import GpuProbe
probe = GpuProbe(True)
longest, deadline = 0.0, time.monotonic() + 20
while True:
    begun = time.perf_counter()
    rows = probe.read()
    longest = max(longest, time.perf_counter() - begun)
    if not any(math.isnan(row[8]) for row in rows) or time.monotonic() > deadline:
        break
    time.sleep(0.1)
print(json.dumps([longest, rows]))
"""
    longest, rows = asked(program, variables, STAND_IN_GPUS="8", STAND_IN_PCIE_MS="200")
    assert [row[0] for row in rows] == list(range(8))
    # index, busy, memory busy, memory, W, degrees, MHz, MHz, kB/s out and in, no NVLink
    watts = pytest.approx(123.456)
    for row in rows:
        assert row[1:] == [50, 25, 1 << 30, watts, 42, 1980, 2619, 1000, 2000, -1, -1]
    assert longest < 1, "8 GPUs of 2 questions of 200 ms are 3.2 s, one after the other"


def test_a_driver_without_its_file_is_seen_by_what_nvml_says(variables: dict[str, str]) -> None:
    program = "from dasf_hpc.launch.node import has_nvidia_driver as h; print(int(h()))"
    assert asked(program, variables) == 1
    if not Path("/proc/driver/nvidia/version").exists():
        assert asked(program, {}, LD_LIBRARY_PATH="") in (0, 1)
        assert asked(program, variables, STAND_IN_GPUS="0") == 0


def test_the_doctor_finds_the_gpus(variables: dict[str, str]) -> None:
    program = """
import json
from dasf_hpc.doctor.host import gpu_checks
print(json.dumps([[c.name, c.status.value, c.detail] for c in gpu_checks("node", 2)]))
"""
    found = asked(program, variables, STAND_IN_GPUS="2")
    assert [row[:2] for row in found] == [["gpu", "ok"], ["nvml", "ok"], ["mig", "ok"]]
    assert found[0][2] == "Stand-in GPU, Stand-in GPU; driver 999.1"
    found = asked(program, variables, STAND_IN_GPUS="1")
    assert found[0][:2] == ["gpu", "fail"]


@pytest.mark.needs("environments")
def test_dask_cudas_workers_start_with_our_options_and_are_recorded(
    variables: dict[str, str], python_of: Callable[[str], Path], tmp_path: Path
) -> None:
    words = ["--on", "local", "--no-nsys", "--no-report", "--gpus-per-node", "2"]
    words += ["--threads-per-worker", "1", "--memory", "4GB", "--runs-dir", str(tmp_path)]
    job = ["example:seismic", "--no-gpu", "--shape", "64", "64", "64"]
    done = subprocess.run(
        [python_of("dask-cuda").with_name("dasf-hpc"), "submit", *words, *job],
        # three are there and named: the run is to have the first two
        env={**os.environ, **variables, "STAND_IN_GPUS": "3", "CUDA_VISIBLE_DEVICES": "0,1,2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "computed with NumPy" in done.stdout
    (directory,) = tmp_path.glob("*-seismic-*")
    with open_trace(directory) as trace:
        workers = trace.processes[trace.processes["role"] == "worker"]
        assert len(workers) == 2
        uuids = [f"GPU-{n:08d}-0000-0000-0000-000000000000" for n in range(3)]
        firsts = sorted(text.split(",")[0] for text in workers["gpus"])
        assert firsts == uuids[:2]
        assert sorted(trace.gpus["uuid"]) == uuids
        samples = trace.gpu_samples
        assert set(samples["gpu"]) == {0, 1, 2}
        assert (samples["power"].round(3) == 123.456).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "0,1"), ("3,2,1", "3,2"), (" GPU-aa , MIG-bb", "GPU-aa,MIG-bb")],
)
def test_a_local_run_has_as_many_gpus_as_it_asked_for(
    given: str | None, expected: str, tmp_path: Path
) -> None:
    done = dry_run(given, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [li for li in done.stdout.splitlines() if "CUDA_VISIBLE_DEVICES" in li]
    assert line == f"export CUDA_VISIBLE_DEVICES={expected}"


@pytest.mark.parametrize(
    ("given", "seen"), [(None, ["0", "1"]), ("5,6", ["5", "6"]), ("GPU-aa", ["GPU-aa"])]
)
@pytest.mark.parametrize("on", ["slurm", "pbs"])
def test_a_node_whose_gpus_are_named_keeps_them_and_another_gives_the_first(
    on: str, given: str | None, seen: list[str], tmp_path: Path
) -> None:
    done = dry_run(None, tmp_path, on)
    assert done.returncode == 0, done.stderr
    (line,) = [li for li in done.stdout.splitlines() if "CUDA_VISIBLE_DEVICES" in li]
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    shown = subprocess.run(
        ["sh", "-c", f"{line}; printenv CUDA_VISIBLE_DEVICES"],
        env=environment | ({} if given is None else {"CUDA_VISIBLE_DEVICES": given}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip().split(",") == seen


@pytest.mark.parametrize("given", ["", "0"])
def test_fewer_gpus_than_asked_for_are_told(given: str, tmp_path: Path) -> None:
    done = dry_run(given, tmp_path)
    assert done.returncode == 64
    assert f"CUDA_VISIBLE_DEVICES names {len(given)}" in done.stderr


def dry_run(
    visible: str | None, folder: Path, on: str = "local"
) -> subprocess.CompletedProcess[str]:
    """Run ``submit --dry-run`` for two GPUs with a value of CUDA_VISIBLE_DEVICES."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    words = ["submit", "--on", on, "--gpus-per-node", "2", "--dry-run", "example:seismic"]
    return subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
