"""Settings: where an option may be set, which place wins, and what a bad value is answered with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest

from dasf_hpc.errors import SettingsError
from dasf_hpc.settings import (
    Settings,
    load_settings,
    settings_words,
    walltime_seconds,
    with_jobqueue_yaml,
)

BAD_SETTING = 64
"""Exit code for a setting that cannot be used, as the README documents it."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out: another home, folder and environment."""
    for name in list(os.environ):
        if name.startswith("DASF_HPC_"):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")


def in_home(text: str) -> None:
    """Write the user's own settings file."""
    path = Path("~/.config/dasf-hpc/config.toml").expanduser()
    path.parent.mkdir(parents=True)
    path.write_text(text)


def in_folder(text: str) -> None:
    """Write the settings file of the working directory."""
    Path("dasf-hpc.toml").write_text(text)


WARM = """
import json, os, sys, traceback
import dasf_hpc.cli, dasf_hpc.run, dasf_hpc.show.terminal

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for number, name in enumerate((os.devnull, request["out"], request["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["dasf-hpc", *request["words"]]
        code = 0
        try:
            dasf_hpc.cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the program again and again without loading it again, each time in a process of its own."""

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    """Give the process that has the program loaded."""
    with subprocess.Popen(
        [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def cli(warm: subprocess.Popen[str], tmp_path: Path) -> Cli:
    """Give a function that runs the program as a user does."""

    def run(*words: str) -> Done:
        out, err = tmp_path / "out", tmp_path / "err"
        request = {
            "words": words,
            "folder": str(Path.cwd()),
            "environment": dict(os.environ),
            "out": str(out),
            "err": str(err),
        }
        assert warm.stdin is not None
        assert warm.stdout is not None
        print(json.dumps(request), file=warm.stdin, flush=True)
        code = int(warm.stdout.readline())
        return Done(words, code, out.read_text(), err.read_text())

    return run


@pytest.fixture
def refused(cli: Cli) -> Refused:
    """Give a function that makes a submission refused for a setting, and returns the sentence."""

    def run(*words: str) -> str:
        Path("job.py").write_text("print('never run')")
        done = cli("submit", "--dry-run", "--on", "local", *words, "job.py")
        assert done.returncode == BAD_SETTING, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == ""
        assert re.fullmatch(r"dasf-hpc: .+\.\n", done.stderr), done.stderr
        return done.stderr

    return run


# ------------------------------------------------------------------------------------- the order


def test_the_default_holds_where_nothing_is_set() -> None:
    settings = load_settings({})
    assert settings.nodes == 1
    assert settings.walltime == "00:30:00"
    assert settings.tls is True


def test_each_place_wins_over_the_weaker_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    in_home("nodes = 2\n")
    assert load_settings({}).nodes == 2
    in_folder("nodes = 3\n")
    assert load_settings({}).nodes == 3
    monkeypatch.setenv("DASF_HPC_NODES", "4")
    assert load_settings({}).nodes == 4
    assert load_settings({"nodes": 5}).nodes == 5


def test_places_are_put_together_setting_by_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    in_home('partition = "home"\naccount = "home"\ninterface = "home"\nmemory = "1GB"\n')
    in_folder('account = "folder"\ninterface = "folder"\nmemory = "2GB"\n')
    monkeypatch.setenv("DASF_HPC_INTERFACE", "variable")
    monkeypatch.setenv("DASF_HPC_MEMORY", "3GB")
    settings = load_settings({"memory": "4GB"})
    assert settings.partition == "home"
    assert settings.account == "folder"
    assert settings.interface == "variable"
    assert settings.memory == "4GB"


def test_a_profile_is_laid_over_the_files_it_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    in_home('partition = "cpu"\n[profile.big]\nnodes = 8\n[profile.gpu]\npartition = "gpu"\n')
    in_folder('account = "abc"\n[profile.big]\nmemory = "8GB"\n')
    assert load_settings({}).nodes == 1
    big = load_settings({"profile": "big"})
    assert (big.nodes, big.memory, big.partition, big.account) == (8, "8GB", "cpu", "abc")
    assert load_settings({"profile": "big", "nodes": 2}).nodes == 2
    monkeypatch.setenv("DASF_HPC_PROFILE", "gpu")
    assert load_settings({}).partition == "gpu"
    monkeypatch.setenv("DASF_HPC_PARTITION", "debug")
    assert load_settings({}).partition == "debug"


def test_an_unknown_profile_or_a_wrong_key_in_one_is_told(refused: Refused) -> None:
    in_folder("[profile.big]\nnodes = 8\n[profile.odd]\nnods = 8\n")
    assert "there are: big, odd" in refused("--profile", "small")
    assert "did you mean nodes?" in refused("--profile", "odd")


def test_dask_jobqueues_own_configuration_fills_what_is_not_set(tmp_path: Path) -> None:
    site = {"queue": "long", "project": "abc", "job-extra-directives": ["--qos=x"],
            "job-script-prologue": ["module load a"], "walltime": "02:00:00"}  # fmt: skip
    with dask.config.set({"jobqueue.slurm": site}):
        found = with_jobqueue_yaml(load_settings({"account": "mine"}), "slurm")
        assert (found.partition, found.account, found.walltime) == ("long", "mine", "02:00:00")
        assert (found.directive, found.prologue) == (["--qos=x"], ["module load a"])
        assert with_jobqueue_yaml(load_settings({}), "pbs").partition is None
    with (
        dask.config.set({"jobqueue.slurm": {"walltime": "soon"}}),
        pytest.raises(SettingsError, match="dask-jobqueue's configuration"),
    ):
        with_jobqueue_yaml(load_settings({}), "slurm")


def test_the_words_of_settings_give_the_same_settings_again() -> None:
    given = {"nodes": 3, "tls": False, "directive": ["--a=1", "--b"], "image": Path("x y.sif")}
    assert sorted(settings_words(load_settings(given))) == [
        "--directive=--a=1", "--directive=--b", "--image=x y.sif", "--no-tls", "--nodes=3",
    ]  # fmt: skip


def test_the_command_line_wins_in_the_program_itself(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    Path("job.py").write_text("")
    in_folder("threads_per_worker = 3\nworkers_per_node = 2\n")
    monkeypatch.setenv("DASF_HPC_WORKERS_PER_NODE", "5")
    done = cli("submit", "--dry-run", "--on", "local", "--memory", "8GiB", "job.py")
    assert "--nthreads 3" in done.stdout
    assert "--nworkers 5" in done.stdout
    done = cli("submit", "--dry-run", "--on", "local", "--threads-per-worker", "7", "job.py")
    assert "--nthreads 7" in done.stdout


def test_a_repeated_option_replaces_the_list_of_a_file_and_keeps_its_order(cli: Cli) -> None:
    Path("job.py").write_text("")
    in_folder('prologue = ["echo from-file"]\n')
    done = cli("submit", "--dry-run", "--on", "local", "job.py")
    assert "\necho from-file\n" in done.stdout
    done = cli(
        "submit", "--dry-run", "--on", "local", "--prologue", "echo b", "--prologue", "echo a",
        "job.py",
    )  # fmt: skip
    assert "echo from-file" not in done.stdout
    assert "\necho b\necho a\n" in done.stdout


def test_switches_of_the_command_line_override_files_both_ways(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    in_folder("tls = false\nnsys = true\n")
    assert load_settings({}).tls is False
    assert load_settings({}).nsys is True
    Path("job.py").write_text("")
    assert " --nsys " in cli("submit", "--dry-run", "--on", "local", "job.py").stdout
    done = cli("submit", "--dry-run", "--on", "local", "--no-nsys", "job.py")
    assert " --no-nsys " in done.stdout
    assert " --nsys " not in done.stdout


# ------------------------------------------------------------------------------------ bad values


@pytest.mark.parametrize(("wrong", "near"), [("node", "nodes"), ("wall_time", "walltime")])
def test_an_unknown_key_in_a_file_names_the_near_one(
    wrong: str, near: str, refused: Refused
) -> None:
    in_folder(f'{wrong} = "1"\n')
    sentence = refused()
    assert repr(wrong) in sentence
    assert f"did you mean {near}?" in sentence


def test_an_unknown_key_that_resembles_nothing_lists_what_there_is(refused: Refused) -> None:
    in_folder("zzz = 1\n")
    sentence = refused()
    assert "'zzz'" in sentence
    assert "did you mean" not in sentence
    for name in Settings.model_fields:
        assert name in sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nodes", "0"], "--nodes is 0"),
        (["--workers-per-node", "0"], "--workers-per-node is 0"),
        (["--threads-per-worker", "-1"], "--threads-per-worker is -1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node is -1"),
        (["--min-workers", "0"], "--min-workers is 0"),
        (["--scheduler-port", "70000"], "65534"),
        (["--start-timeout", "0"], "--start-timeout is 0.0"),
        (["--stop-timeout", "-5"], "--stop-timeout is -5.0"),
        (["--sample-interval", "nan"], "--sample-interval is nan"),
        (["--on", "moon"], "'auto', 'slurm', 'pbs', 'lsf', 'local' or 'allocation'"),
        (["--nvtx-message", "all"], "'prefix' or 'key'"),
        (["--memory", "lots"], "such as 4GB"),
        (["--memory", "4"], "write a unit"),
        (["--memory", "-4GB"], "--memory is '-4GB'"),
        (["--walltime", "soon"], "00:30:00"),
        (["--walltime", "00:00:00"], "no time at all"),
        (["--walltime", "01:60:00"], "up to 59"),
        (["--walltime", "30"], "[D-]HH:MM:SS"),
        (["--partition", "a b"], "letters"),
        (["--partition", "$(reboot)"], "letters"),
        (["--account", ""], "letters"),
        (["--interface", "ib0\n"], "one line"),
        (["--directive", "--qos=x\n#PBS -q other"], "one line"),
        (["--prologue", "module load a\nreboot"], "one line"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_is_one_sentence_and_its_exit_code(
    words: list[str], says: str, refused: Refused
) -> None:
    assert says in refused(*words)


def test_an_amount_of_memory_beyond_all_measure_is_one_sentence_too(refused: Refused) -> None:
    assert "--memory" in refused("--memory", "1e400GB")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DASF_HPC_NODES", "many", "--nodes is 'many'"),
        ("DASF_HPC_NSYS", "maybe", "--nsys is 'maybe'"),
        ("DASF_HPC_DIRECTIVE", "--qos=x", "directive"),
    ],
)
def test_a_bad_value_of_a_variable_is_one_sentence_too(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv(variable, value)
    assert says in refused()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('nodes = "many"', "--nodes is 'many'"),
        ("nodes = 2.5", "--nodes is 2.5"),
        ("partition = 5", "--partition is 5"),
        ('directive = "--qos=x"', "--directive is '--qos=x'"),
        ("nodes = ", "dasf-hpc.toml"),
        ("nodes = 1\nnodes = 2", "dasf-hpc.toml"),
    ],
)
def test_a_bad_line_of_a_file_is_one_sentence_too(text: str, says: str, refused: Refused) -> None:
    in_folder(text)
    assert says in refused()


def test_a_settings_file_that_is_no_text_is_one_sentence_too(refused: Refused) -> None:
    Path("dasf-hpc.toml").write_bytes(b"\xff\xfe\x00")
    assert "dasf-hpc.toml" in refused()


def test_what_contradicts_itself_is_refused(refused: Refused) -> None:
    assert "one worker a GPU" in refused("--gpus-per-node", "2", "--workers-per-node", "3")


def test_the_installed_program_says_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", "submit", "--dry-run", "--nodes", "0", "job.py"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == BAD_SETTING
    assert re.fullmatch(r"dasf-hpc: .*--nodes is 0.*\.\n", done.stderr)


@pytest.mark.parametrize("words", [["--nodes", "x"], ["--nosuch"], ["--walltime"]])
def test_words_that_make_no_command_line_are_a_usage_error(words: list[str], cli: Cli) -> None:
    assert cli("submit", *words, "job.py").returncode == 2


# -------------------------------------------------------------------------------------- walltime


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:30:00", 1800),
        ("30:00", 1800),
        ("90:00", 5400),
        ("36:00:00", 36 * 3600),
        ("1-12:00:00", 36 * 3600),
        ("0-00:00:01", 1),
        ("7-00:00:00", 7 * 86400),
    ],
)
def test_walltimes_mean_what_they_mean_to_the_batch_schedulers(text: str, seconds: int) -> None:
    assert walltime_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2:3:4", "-1:00", "1-", "one", "00:00", "1:00:60", "1.5:0"])
def test_what_is_no_walltime_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time"):
        walltime_seconds(text)


def test_days_and_two_numbers_are_not_minutes_and_seconds() -> None:
    # sbatch(1): "days-hours", "days-hours:minutes" and "days-hours:minutes:seconds".
    with contextlib.suppress(ValueError):  # refusing it is as good as understanding it
        assert walltime_seconds("1-12:30") == 86400 + 12 * 3600 + 30 * 60


def test_digits_of_other_scripts_are_no_walltime() -> None:
    with pytest.raises(SettingsError):
        load_settings({"walltime": "٠٠:٣٠:٠٠"})


def test_blanks_around_a_walltime_do_not_reach_the_script() -> None:
    assert load_settings({"walltime": "\n00:30:00 "}).walltime == "00:30:00"


# ---------------------------------------------------------------------------------------- help


def test_every_setting_is_in_the_help_of_submit(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = cli("submit", "--help")
    assert done.returncode == 0
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in done.stdout
        assert field.description is not None
        first_words = " ".join(field.description.split()[:3])
        assert first_words in done.stdout, name


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.rstrip().endswith("."), name
