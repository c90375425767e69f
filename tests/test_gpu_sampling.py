"""Asking nsys for GPU metrics: where a node allows it, of whose GPUs, and never at a run's cost."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dasf_hpc.doctor.host import gpu_metrics
from dasf_hpc.errors import SettingsError
from dasf_hpc.launch import node
from dasf_hpc.launch.gpu_metrics import (
    OPTIONS,
    Claims,
    Offer,
    Sampling,
    ask_nsys,
    choose_sampling,
    only_administrators,
    read_offer,
)
from dasf_hpc.launch.worker_command import choose_nsys, node_command
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.profile.devices import Device
from dasf_hpc.settings import load_settings

NEW, OLD = OPTIONS
#: As NVIDIA's user guide shows the answer.
GUIDE = """Possible --gpu-metrics-devices values are:
    1: Turing TU104 | GeForce RTX 2070 SUPER PCI[0000:65:00.0]
    all: Select all supported GPUs
    cuda-visible: Select GPUs that match CUDA_VISIBLE_DEVICES
    none: Disable GPU Metrics [Default]
Some GPUs are not supported:
    0: Volta GV100 | Quadro GV100 PCI[0000:17:00.0]
See the user guide: https://docs.nvidia.com/nsight-systems/UserGuide/index.html#gpu-metrics
"""
#: As published by those who may not.
FORBIDDEN = """GPU Metrics: None of the installed GPUs are supported:
\tBlackwell GB202 | NVIDIA GeForce RTX 5090 - Insufficient privilege, see ERR_NVGPUCTRPERM
"""
FOUR = "Possible --gpu-metrics-devices values are:\n" + "".join(
    f"\t{n}: Hopper GH100 | NVIDIA H100 PCI[0000:0{n}:00.0]\n" for n in range(4)
)
DEVICES = [Device(n, f"GPU-{n}", "NVIDIA H100", 2**36) for n in range(4)]


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path)


# ----------------------------------------------------------------------------- what nsys says


def test_the_gpus_that_nsys_can_sample_are_read() -> None:
    offer = read_offer(NEW, GUIDE)
    assert offer.gpus == {1: "Turing TU104 | GeForce RTX 2070 SUPER PCI[0000:65:00.0]"}
    assert offer.cuda_visible
    assert "Quadro GV100" in offer.why_not
    assert read_offer(NEW, FOUR) == Offer(
        NEW, {n: f"Hopper GH100 | NVIDIA H100 PCI[0000:0{n}:00.0]" for n in range(4)}
    )


def test_who_may_not_is_told_what_to_ask_for() -> None:
    offer = read_offer(NEW, FORBIDDEN)
    assert not offer.gpus
    assert "NVreg_RestrictProfilingToAdminUsers=0" in offer.why_not


def test_an_answer_that_says_nothing_offers_nothing() -> None:
    for said in ("", "error\n", "Possible --gpu-metrics-devices values are:\n"):
        offer = read_offer(NEW, said)
        assert not offer.gpus
        assert offer.why_not


def _program(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_an_older_nsys_is_asked_by_its_own_option(tmp_path: Path) -> None:
    nsys = _program(
        tmp_path / "nsys",
        f'[ "$2" = {OLD}=help ] || {{ echo "unrecognised option"; exit 1; }}\n'
        f"printf '%s' {shlex.quote(FOUR)}\n",
    )
    offer = ask_nsys(nsys)
    assert offer.option == OLD
    assert len(offer.gpus) == 4


def test_an_nsys_without_the_option_and_none_at_all_are_told(tmp_path: Path) -> None:
    nsys = _program(tmp_path / "nsys", 'echo "unrecognised option"; exit 1')
    assert "no option" in ask_nsys(nsys).why_not
    assert "cannot be run" in ask_nsys(tmp_path / "none").why_not


@pytest.mark.needs("nsys")
@pytest.mark.skipif(node.has_nvidia_driver(), reason="this host has a GPU")
def test_the_real_one_says_why_it_samples_nothing(nsys: Path) -> None:
    offer = ask_nsys(nsys)
    assert offer.option in OPTIONS
    assert not offer.gpus
    assert "no GPU" in offer.why_not


# ------------------------------------------------------------------------------- whose GPUs


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, "0,1,2,3"),
        ("2", "2"),
        ("3,1", "1,3"),
        ("GPU-2", "2"),
        ("", None),
        ("MIG-1", None),
    ],
)
def test_the_jobs_own_gpus_are_asked_for(
    visible: str | None, asked: str | None, claims: Claims
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = choose_sampling(read_offer(NEW, FOUR), 500, DEVICES, environment, claims)
    words = () if asked is None else (f"{NEW}={asked}", "--gpu-metrics-frequency=500")
    assert found.words == words
    assert bool(found.sentences) == (asked is None)


def test_where_nothing_tells_which_uuid_is_which_nsys_is_left_to_tell(claims: Claims) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-2"}
    assert not choose_sampling(read_offer(NEW, FOUR), 9, [], environment, claims).words
    offer = read_offer(NEW, GUIDE)
    words = choose_sampling(offer, 9, [], environment, claims).words
    assert words[0] == f"{NEW}=cuda-visible"


def test_of_two_node_jobs_that_see_one_gpu_the_first_samples_it(tmp_path: Path) -> None:
    offer, first, second = read_offer(NEW, FOUR), Claims(tmp_path), Claims(tmp_path)
    one, both = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert choose_sampling(offer, 9, DEVICES, one, first).words[0] == f"{NEW}=0"
    assert choose_sampling(offer, 9, DEVICES, one, first).words  # asks again, as after a failure
    found = choose_sampling(offer, 9, DEVICES, both, second)
    assert found.words[0] == f"{NEW}=1"
    assert "another nsys" in found.sentences[0]
    assert not choose_sampling(offer, 9, DEVICES, one, Claims(tmp_path)).words
    first.give_up()
    assert choose_sampling(offer, 9, DEVICES, one, Claims(tmp_path)).words


def test_gpus_that_may_not_be_sampled_are_told(claims: Claims) -> None:
    found = choose_sampling(read_offer(NEW, FORBIDDEN), 9, DEVICES, {}, claims)
    assert found.words == ()
    assert found.sentences[0].startswith("no GPU metrics: this user may not")
    part = choose_sampling(read_offer(NEW, GUIDE), 9, DEVICES, {}, claims)
    assert part.words[0] == f"{NEW}=1"
    assert "only" in part.sentences[0]


# ---------------------------------------------------------------------------------- the words


def test_what_the_user_asks_of_nsys_is_not_asked_again() -> None:
    sampling = Sampling((f"{NEW}=0", "--gpu-metrics-frequency=9"), ("a sentence",))
    choice = choose_nsys([], True, sampling)
    assert set(sampling.words) < set(choice.arguments)
    assert choice.reductions == ("a sentence",)
    own = choose_nsys([f"{OLD}=all"], True, sampling)
    assert not set(sampling.words) & set(own.arguments)
    faster = choose_nsys(["--gpu-metrics-frequency=77"], True, sampling).arguments
    assert f"{NEW}=0" in faster
    assert "--gpu-metrics-frequency=9" not in faster


def test_the_node_step_is_told_only_where_it_was_asked_for() -> None:
    def words(frequency: int | None) -> list[str]:
        text = node_command("python", "/r", "R-0", None, None, [], None, gpu_metrics=frequency)
        return shlex.split(text)

    assert not any("gpu-metrics" in word for word in words(None))
    parsed = node.parser().parse_args(words(50)[3:])
    assert parsed.gpu_metrics == 50


def test_a_frequency_that_nsys_does_not_take_is_refused() -> None:
    assert load_settings({}).gpu_metrics is False
    assert load_settings({"gpu_metrics_frequency": 10}).gpu_metrics_frequency == 10
    with pytest.raises(SettingsError, match="--gpu-metrics-frequency is 9"):
        load_settings({"gpu_metrics_frequency": 9})


# ---------------------------------------------------------------------------- the real program

#: A node step on a node that takes itself for one with a GPU.
STEP = """
import sys
from dasf_hpc.launch import node
node.has_nvidia_driver = lambda: True
sys.exit(node.main(sys.argv[1:]))
"""


def _step(folder: Path, program: Path, *words: str, gpu: bool) -> tuple[int, str]:
    start = ["-c", STEP] if gpu else ["-m", "dasf_hpc.launch.node"]
    done = subprocess.run(
        [sys.executable, *start, "--run", str(folder), "--name", "R-0", "--nsys-path",
         str(program), "--nsys", *words, "--", sys.executable, "-c", "print('worked')"],
        env={**os.environ, "PBS_JOBID": "12.srv"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def _recorded(folder: Path) -> tuple[list[str], bool]:
    (record,) = node.read_node_records(folder)
    reports = [p for p in (folder / "nsight").iterdir() if p.suffix in (".nsys-rep", ".qdstrm")]
    return record["notes"], bool(reports)


@pytest.mark.needs("nsys")
@pytest.mark.skipif(node.has_nvidia_driver(), reason="this host has a GPU")
def test_on_a_node_without_a_gpu_a_sentence_says_so_and_all_is_recorded(
    tmp_path: Path, nsys: Path
) -> None:
    code, said = _step(tmp_path, nsys, "--gpu-metrics=1000", gpu=False)
    assert code == 0, said
    assert "worked" in said
    notes, reports = _recorded(tmp_path)
    assert notes.count("no GPU metrics: there is no NVIDIA driver on this node") == 1
    assert reports


@pytest.mark.needs("nsys")
@pytest.mark.skipif(node.has_nvidia_driver(), reason="this host has a GPU")
def test_what_nsys_says_that_it_cannot_is_not_asked_of_it(tmp_path: Path, nsys: Path) -> None:
    code, said = _step(tmp_path, nsys, "--gpu-metrics=1000", gpu=True)
    assert code == 0, said
    assert "worked" in said
    notes, reports = _recorded(tmp_path)
    assert [note for note in notes if note.startswith("no GPU metrics: nsys finds no GPU")]
    assert reports


@pytest.mark.needs("nsys")
@pytest.mark.skipif(node.has_nvidia_driver(), reason="this host has a GPU")
def test_where_nsys_refuses_to_start_with_them_it_is_started_without(
    tmp_path: Path, nsys: Path
) -> None:
    # it promises a GPU that the real one then refuses: "Illegal --gpu-metrics-device argument"
    program = _program(
        tmp_path / "nsys",
        f'case "$2" in {OLD}=help) printf "%s" {shlex.quote(FOUR)}; exit 0;;\n'
        f"*=help) echo unrecognised option; exit 1;; esac\n"
        f'exec {nsys} "$@"\n',
    )
    run = tmp_path / "run"
    run.mkdir()
    code, said = _step(run, program, "--gpu-metrics=1000", gpu=True)
    assert code == 0, said
    assert "worked" in said
    assert "Illegal --gpu-metrics-device" in said
    notes, reports = _recorded(run)
    assert "no GPU metrics: nsys did not start with them" in notes
    assert reports


# -------------------------------------------------------------------------------------- doctor


def test_the_driver_is_asked_who_may(tmp_path: Path) -> None:
    file = tmp_path / "params"
    assert only_administrators(file) is None
    for line, answer in (
        ("RmProfilingAdminOnly: 1", True),
        ("RmProfilingAdminOnly: 0", False),
        ("Other: 1", None),
    ):
        file.write_text(f"ResmanDebugLevel: 4294967295\n{line}\n")
        assert only_administrators(file) is answer


@pytest.mark.needs("nsys")
def test_doctor_says_whether_gpus_can_be_sampled(tmp_path: Path, nsys: Path) -> None:
    assert gpu_metrics("here", find_nsys(str(nsys)), False).status == "could not look"
    for said, status, words in (
        (FOUR, "ok", "can sample 4 GPU(s)"),
        (GUIDE, "warn", "not all"),
        (FORBIDDEN, "warn", "NVreg_RestrictProfilingToAdminUsers=0"),
    ):
        wrapper = _program(
            tmp_path / "nsys",
            f'case "$2" in *=help) printf "%s" {shlex.quote(said)}; exit 0;; esac\n'
            f'exec {nsys} "$@"\n',
        )
        check = gpu_metrics("here", find_nsys(str(wrapper)), True)
        assert check.status == status
        assert words in check.detail
