"""Which GPUs a value of CUDA_VISIBLE_DEVICES selects, and what is said where NVML does not answer.

NVIDIA's documentation ("CUDA Environment Variables") gives most rules. That a repeated entry hides
every GPU, that indices and UUIDs do not mix and that an index is read up to its last digit is what
PyTorch and nvitop found the driver to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dasf_hpc.profile.devices import Device, NvmlState, nvml_devices, visible_devices

GPUS = [
    Device(0, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "NVIDIA A100", 80 << 30),
    Device(1, "GPU-8932aaaa-0000-4106-c12f-20bd9faed9f6", "NVIDIA A100", 80 << 30),
    Device(2, "GPU-18ef14e9-dec6-1d7e-1284-3010c6ce98b1", "NVIDIA A100", 80 << 30),
]
MIG = "MIG-d184f67c-c95f-5ef2-a935-195bd0094fbd"


def indices(value: str | None, devices: list[Device] = GPUS) -> list[int]:
    visible, _ = visible_devices(value, devices, pci_order=True)
    return [gpu["index"] for gpu in visible]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("   ", []),
        ("0", [0]),
        ("2,1", [2, 1]),
        (" 2 , 0 ", [2, 0]),
        ("-1", []),
        ("0,2,-1,1", [0, 2]),
        ("7", []),
        ("0,7,1", [0]),
        ("NoDevFiles", []),
        ("0,nonsense,1", [0]),
        ("0,,1", [0]),
        (GPUS[1].uuid, [1]),
        (f"{GPUS[2].uuid},{GPUS[0].uuid}", [2, 0]),
        ("GPU-18ef", [2]),
        ("GPU-8932f", [0]),
        ("GPU-8932", []),
        ("GPU-18ef,GPU-8932,GPU-8932f", [2]),
        ("GPU-00000000", []),
    ],
)
def test_documented_rules(value: str | None, expected: list[int]) -> None:
    assert indices(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,0", []),
        ("0,1,0", []),
        ("1,2,1,0", []),
        ("0,-1,0", [0]),
        (f"{GPUS[0].uuid},{GPUS[0].uuid}", []),
        ("GPU-18ef,GPU-18ef", []),
    ],
)
def test_a_repeated_entry_hides_every_gpu(value: str, expected: list[int]) -> None:
    assert indices(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("0,GPU-18ef", [0]), ("GPU-18ef,0", [2]), ("1gpu,2ampere", [1, 2])]
)
def test_what_the_driver_makes_of_odd_entries(value: str, expected: list[int]) -> None:
    assert indices(value) == expected


def test_entries_are_described_and_what_is_hidden_is_said() -> None:
    visible, status = visible_devices("1,9,0", GPUS, pci_order=True)
    assert visible == [
        {"index": 1, "uuid": GPUS[1].uuid, "name": "NVIDIA A100", "memory": 80 << 30}
    ]
    assert "selects 1" in status
    assert "2 hidden" in status
    assert "entry 2" in status


def test_absent_and_empty_say_so() -> None:
    assert "not set" in visible_devices(None, GPUS, True)[1]
    assert "empty" in visible_devices("", GPUS, True)[1]


@pytest.mark.parametrize(
    "value",
    [MIG, "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2", f"{MIG},0", f"{MIG},MIG-0000"],
)
def test_of_mig_instances_one_is_visible(value: str) -> None:
    visible, _ = visible_devices(value, GPUS, pci_order=True)
    assert visible == [{"uuid": value.split(",")[0]}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1", [{"index": 0}, {"index": 1}]),
        ("GPU-18ef", [{"uuid": "GPU-18ef"}]),
        (MIG, [{"uuid": MIG}]),
        ("-1", []),
        ("", []),
        (None, []),
    ],
)
def test_where_nvml_does_not_answer_the_value_itself_is_kept(
    value: str | None, expected: list[dict[str, Any]]
) -> None:
    assert visible_devices(value, [], pci_order=False)[0] == expected


def test_indices_are_uncertain_where_gpus_differ_and_cuda_may_reorder_them() -> None:
    mixed = [*GPUS, Device(3, "GPU-ffff0000", "NVIDIA T4", 16 << 30)]
    assert "uncertain" in visible_devices("0", mixed, pci_order=False)[1]
    assert "uncertain" not in visible_devices("0", mixed, pci_order=True)[1]
    assert "uncertain" not in visible_devices("0", GPUS, pci_order=False)[1]
    assert "uncertain" not in visible_devices(GPUS[0].uuid, mixed, pci_order=False)[1]


def test_nvml_answers_with_devices_or_with_a_named_reason() -> None:
    devices, state = nvml_devices()
    assert isinstance(state, NvmlState)
    assert bool(devices) == (state is NvmlState.READY)
    assert nvml_devices()[1] is state, "asking twice is no different"


def test_a_missing_package_is_a_named_reason(tmp_path: Path) -> None:
    # A module of that name that cannot be imported, as in an environment without nvidia-ml-py.
    (tmp_path / "pynvml.py").write_text("raise ImportError('not installed')\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from dasf_hpc.profile.devices import nvml_devices\n"
        "import json; print(json.dumps([d.index for d in nvml_devices()[0]] "
        "+ [nvml_devices()[1].name]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == ["NO_PACKAGE"]
