"""What users pass to their workers: it is checked before anything is queued, and gets there.

The worker commands are the real ones, asked by the Python that would run them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dasf_hpc.cli import main
from dasf_hpc.launch.choice import LAUNCHERS
from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.local import LocalLauncher
from dasf_hpc.launch.shape import RunPlace
from dasf_hpc.launch.worker_options import CUDA_WORKER, DASK_WORKER, ask_worker_command
from dasf_hpc.settings import (
    OF_RECORDING,
    OF_WORKERS,
    SET_FOR_WORKERS,
    Settings,
    load_settings,
    merging,
    settings_words,
)

PROGRAM = Path(sys.executable).with_name("dasf-hpc")
BAD_SETTING, MISSING = 64, 69

GPU_OPTIONS = {
    "none": [],
    "rmm-pool-size": ["--rmm-pool-size", "0.5"],
    "device-memory-limit": ["--device-memory-limit", "20GB"],
    "enable-nvlink": ["--enable-nvlink"],
    "no-enable-nvlink": ["--no-enable-nvlink"],
    "enable-infiniband": ["--enable-infiniband"],
    "no-enable-infiniband": ["--no-enable-infiniband"],
    "resources": ["--resources", "GPU=1"],
    "preload": ["--preload", "math"],
    "env": ["--env", "TOKEN=1"],
    "worker-arg": ["--worker-arg=--rmm-async"],
    "tcp": ["--no-tls", "--protocol", "tcp"],
    "tls": ["--protocol", "tls"],
    "interface": ["--interface", "lo"],
    "local-directory": ["--local-directory", "/scratch"],
    "dashboard": ["--dashboard"],
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out."""
    for name in list(os.environ):
        if name.startswith(("DASF_HPC_", "DASK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("print('never run')")


def dry_run(*words: str, code: int = 0, installed: bool = False) -> str:
    """Run a dry run; give what it prints, or its sentence.

    The installed program is run as a user does, or else the same in this process, which is quicker.
    """
    words = ("submit", "--dry-run", "--on", "local", *words, "job.py")
    if installed:
        done = subprocess.run(
            [str(PROGRAM), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        got, out, err = done.returncode, done.stdout, done.stderr
    else:
        out_file, err_file = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out_file),
            contextlib.redirect_stderr(err_file),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["dasf-hpc", *words])
            got = 0
            try:
                main()
            except SystemExit as end:
                got = int(end.code or 0)
        out, err = out_file.getvalue(), err_file.getvalue()
    assert got == code, (got, out, err)
    if code:
        assert not out
        assert re.fullmatch(r"dasf-hpc: .+\.\n", err), err
    return err if code else out


def worker_words(script: str, module: str = DASK_WORKER) -> list[str]:
    """Give the words of the worker command in a script, those after its module."""
    (line,) = [line for line in script.splitlines() if f" -m {module} " in line]
    words = shlex.split(line)
    return words[words.index(module) + 1 :]


def asked(python: str, module: str) -> dict[str, Any]:
    """Ask a worker command for its options."""
    command = ask_worker_command((python,), module, "")
    assert command.unread is None
    return dict(command.takes)


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", sorted(SET_FOR_WORKERS))
def test_what_a_run_sets_itself_is_refused_with_the_setting_for_it(name: str) -> None:
    with pytest.raises(Exception, match=re.escape(name)) as caught:
        load_settings({"worker_arg": [f"{name}=x"]})
    ours = SET_FOR_WORKERS[name]
    assert ours is None or f"--{ours.replace('_', '-')} is for that" in str(caught.value)
    assert ours is None or ours in Settings.model_fields


def test_everything_that_a_run_sets_is_an_option_that_a_worker_command_has() -> None:
    assert set(SET_FOR_WORKERS) <= set(asked(sys.executable, DASK_WORKER))


def test_every_option_that_our_command_has_is_refused_to_users_or_has_a_name_of_its_own() -> None:
    words = worker_words(dry_run("--local-directory", "/scratch", "--workers-per-node", "2"))
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    assert len(options) > 8
    assert options <= set(SET_FOR_WORKERS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--worker-arg=--wrker-port=9000"], "no option --wrker-port; the nearest that it has is "
         "--worker-port"),
        (["--worker-arg=--zzz"], "has no option --zzz."),
        (["--worker-arg=9000"], "'9000' is no option"),
        (["--worker-arg=--worker-port"], "--worker-port of distributed"),
        (["--worker-arg=--worker-port", "--worker-arg=--pid-file=x"], "takes a value"),
        (["--worker-arg=--no-lifetime-restart=1"], "--on-walltime is for that"),
        (["--worker-arg=--help"], "no worker starts"),
        (["--resources=GPU=1", "--worker-arg=--resources=GPU=2"], "set by option --resources, too"),
        (["--gpus-per-node=0", "--rmm-pool-size=1GB"], "--gpus-per-node"),
        (["--enable-nvlink"], "--gpus-per-node"),
        (["--no-enable-infiniband"], "--gpus-per-node"),
        (["--device-memory-limit=1GB"], "--gpus-per-node"),
        (["--protocol=tls", "--no-tls"], "contradict"),
        (["--protocol=tcp"], "--no-tls"),
        (["--protocol=ucx"], "nothing but your network protects it"),
        (["--protocol=ucxx"], "nothing but your network protects it"),
        (["--protocol=udp"], "--protocol is 'udp'"),
        (["--resources=GPU"], "NAME=NUMBER"),
        (["--resources=GPU=nan"], "NAME=NUMBER"),
        (["--resources= "], "NAME=NUMBER"),
        (["--rmm-pool-size=much"], "neither an amount of memory"),
        (["--device-memory-limit=-1"], "neither an amount of memory"),
        (["--preload=--x"], "neither a module"),
    ],
)  # fmt: skip
def test_what_workers_do_not_take_is_one_sentence_before_anything_is_made(
    words: list[str], says: str
) -> None:
    assert says in dry_run(*words, code=BAD_SETTING)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("1A=hush", "number 1 does not begin with a variable's name"),
        ("A B=hush", "number 1 does not begin with a variable's name"),
        ("DASF_HPC_NODES=hush", "DASF_HPC_NODES is dasf-hpc's own"),
        ("LD_LIBRARY_PATH=hush", "--prologue 'export LD_LIBRARY_PATH=VALUE'"),
        ("NOT_THERE", "write NOT_THERE=VALUE"),
    ],
)
def test_a_refused_variable_is_told_without_its_value(pair: str, says: str) -> None:
    said = dry_run("--env", pair, code=BAD_SETTING)
    assert says in said
    assert "hush" not in said


def test_a_setting_of_variables_that_is_no_list_is_told_without_its_value() -> None:
    Path("dasf-hpc.toml").write_text('env = "TOKEN=hush"\n')
    assert "hush" not in dry_run(code=BAD_SETTING)


@pytest.mark.skipif(find_spec("distributed_ucxx") is not None, reason="distributed-ucxx is here")
def test_a_protocol_that_is_not_installed_is_told_before_anything_is_made() -> None:
    said = dry_run("--protocol", "ucx", "--no-tls", code=MISSING)
    assert "distributed-ucxx" in said
    assert not Path("runs").exists()


def test_submit_and_detach_check_as_a_dry_run_does() -> None:
    for more in ([], ["--detach"]):
        done = subprocess.run(
            [str(PROGRAM), "submit", "--on", "slurm", *more, "--worker-arg=--zzz", "job.py"],
            env={**os.environ, "PATH": f"{_sbatch()}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == BAD_SETTING, done.stderr
        assert "has no option --zzz" in done.stderr
        assert not Path("runs").exists()
        assert not Path("called").exists()


def _sbatch() -> Path:
    """Make an sbatch that says that it was called."""
    folder = Path("bin").absolute()
    folder.mkdir(exist_ok=True)
    (folder / "sbatch").write_text(f"#!/bin/sh\ntouch {Path('called').absolute()}\nexit 1\n")
    (folder / "sbatch").chmod(0o700)
    return folder


# ------------------------------------------------------------------------------------ jobqueue.yaml


def jobqueue_yaml(*entries: str) -> None:
    """Write dask-jobqueue's configuration where Dask looks for it."""
    folder = Path.home() / ".config" / "dask"
    folder.mkdir(parents=True)
    lines = "".join(f"      - {json.dumps(entry)}\n" for entry in entries)
    (folder / "jobqueue.yaml").write_text(f"jobqueue:\n  local:\n    worker-extra-args:\n{lines}")


def test_worker_extra_args_of_jobqueue_yaml_are_honoured() -> None:
    jobqueue_yaml("--worker-port 9000:9003", "--resources", "GPU=1")
    words = worker_words(dry_run(installed=True))
    assert words[words.index("--worker-port") + 1] == "9000:9003"
    assert words[words.index("--resources") + 1] == "GPU=1"
    assert "--worker-port" not in worker_words(dry_run("--worker-arg=--pid-file=x", installed=True))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("--zzz", "has no option --zzz"),
        ("--lifetime 25m", "--walltime-margin is for that"),
        ("--local-directory $TMPDIR", "'$TMPDIR' would be filled in by a shell"),
        ("--pid-file 'x", "No closing quotation"),
    ],
)
def test_what_workers_do_not_take_of_jobqueue_yaml_is_told_with_its_name(
    entry: str, says: str
) -> None:
    jobqueue_yaml(entry)
    said = dry_run(code=BAD_SETTING, installed=True)
    assert "worker-extra-args in jobqueue.yaml" in said
    assert says in said


def test_what_jobqueue_yaml_has_can_be_left_out() -> None:
    jobqueue_yaml("--zzz")
    Path("dasf-hpc.toml").write_text("worker_arg = []\n")
    assert "--zzz" not in worker_words(dry_run(installed=True))


# -------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("kind", [LAUNCHERS["slurm"], LAUNCHERS["pbs"], LocalLauncher])
def test_every_word_gets_to_the_worker_as_it_was_given(kind: type[Launcher]) -> None:
    given = {
        "memory": "4GB",
        "resources": "GPU=1, MEM=8e9",
        "preload": ["my module.py", "other"],
        "worker_arg": ["--scheduler-sni", "a b'c$d", "--pid-file=x;y"],
        "env": ["TOKEN=hush"],
    }
    place = RunPlace(Path("/shared/a run"), "RUN", Path("/shared"))
    script = kind(load_settings(given), place, None).job_script()
    words = worker_words(script)
    at = words.index("--preload")
    assert words[at : at + 11] == [
        "--preload", "dasf_hpc.launch.worker_environment",  # before what may need it
        "--resources", "GPU=1, MEM=8e9", "--preload", "my module.py", "--preload", "other",
        "--scheduler-sni", "a b'c$d", "--pid-file=x;y",
    ]  # fmt: skip
    assert "hush" not in script
    assert "export DASF_HPC_ENVIRONMENT='/shared/a run/environment'\n" in script


def test_values_are_in_no_form_of_the_settings_but_themselves() -> None:
    settings = load_settings({"env": ["TOKEN=hush", "A=b=c"]})
    assert settings.env == ["TOKEN=hush", "A=b=c"]
    assert settings.model_dump(mode="json")["env"] == ["TOKEN", "A"]
    for text in (settings.model_dump_json(), repr(settings), str(settings_words(settings))):
        assert "hush" not in text


def test_workers_that_only_merge_get_nothing_of_it() -> None:
    given: dict[str, Any] = {
        "worker_arg": ["--pid-file=x"], "resources": "GPU=1", "preload": ["x"], "env": ["A=1"],
        "protocol": "ucx", "tls": False, "gpus_per_node": 2, "rmm_pool_size": "1GB",
        "device_memory_limit": "1GB", "enable_nvlink": True, "enable_infiniband": False, "nodes": 3,
    }  # fmt: skip
    assert set(given) >= OF_WORKERS
    assert OF_WORKERS < OF_RECORDING
    plain = merging(load_settings(given))
    assert plain.nodes == 3
    assert plain.tls is False
    for name in OF_WORKERS:
        assert not getattr(plain, name)


def test_where_the_workers_python_is_not_here_the_words_are_taken_and_it_is_said() -> None:
    said = dry_run("--worker-python", "/not/here/python", "--worker-arg=--zzz")
    assert "--zzz" in worker_words(said)
    assert "# Note: the options of the workers were not checked: /not/here/python" in said


def test_words_that_may_be_for_what_is_preloaded_are_left_to_it_and_it_is_said() -> None:
    said = dry_run("--preload", "mine.py", "--worker-arg=--mine", "--worker-arg=3")
    assert worker_words(said).index("--mine") > 0
    assert "# Note: --mine, 3: no option of distributed" in said


@pytest.mark.needs("environments")
@pytest.mark.parametrize("words", GPU_OPTIONS.values(), ids=GPU_OPTIONS)
def test_dask_cuda_knows_every_option_of_the_command_for_gpus(
    words: list[str], python_of: Callable[[str], Path]
) -> None:
    python = str(python_of("dask-cuda"))
    script = dry_run(
        *("--gpus-per-node", "1", "--worker-python", python, *words),
        installed=words in ([], ["--rmm-pool-size", "0.5"]),
    )
    help_text = subprocess.run(
        [python, "-m", CUDA_WORKER, "--help"], capture_output=True, text=True, check=True
    ).stdout
    lines = re.findall(r"^ {2}(-\S.*?)(?: {2}|$)", help_text, re.MULTILINE)
    known = {word for line in lines for word in re.findall(r"--[\w-]+", line)}
    assert len(known) > 30
    used = [word for word in worker_words(script, CUDA_WORKER) if word.startswith("--")]
    assert "--nthreads" in used
    assert [word for word in used if word.split("=")[0] not in known] == []
    assert set(asked(python, CUDA_WORKER)) == known - {"--help"}  # what we ask is what it says
    assert "# Note" not in script
    if words[:1] in (["--rmm-pool-size"], ["--device-memory-limit"], ["--resources"]):
        assert used.count(words[0]) == 1


@pytest.mark.needs("environments")
def test_an_option_that_this_dask_cuda_has_not_is_told_with_the_version(
    python_of: Callable[[str], Path],
) -> None:
    python = str(python_of("dask-cuda"))
    words = ("--gpus-per-node", "1", "--worker-python", python)
    said = dry_run(*words, "--worker-arg=--rmm-asynk", code=BAD_SETTING)
    assert re.search(
        r"dask-cuda \d+\.\S+ has no option --rmm-asynk; the nearest .*--rmm-async", said
    )
    said = dry_run(*words, "--worker-arg=--rmm-async=1", code=BAD_SETTING)
    assert "takes no value; write --rmm-async alone" in said
