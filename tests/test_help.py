"""The help is read on a terminal of 60 columns as of 200: by topic, no option cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dasf_hpc.cli import app
from dasf_hpc.errors import exit_code_table
from dasf_hpc.settings import TOPICS, Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands() -> Iterator[tuple[str, Any]]:
    """Give every command by its words."""
    main: Any = typer.main.get_command(app)
    yield "", main
    for name, command in main.commands.items():
        yield name, command
        for below, one in getattr(command, "commands", {}).items():
            yield f"{name} {below}", one


COMMANDS = dict(commands())


def help_of(words: str, monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    done = CliRunner().invoke(app, [*words.split(), "--help"])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_told_whole(
    words: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(words, monkeypatch, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    told = text.split()
    for param in COMMANDS[words].params:
        if getattr(param, "hidden", False):
            continue
        if param.param_type_name == "argument":
            assert param.metavar, f"{param.name} is called as in the code"
            assert any(param.metavar in word for word in told)
            continue
        for flag in (*param.opts, *param.secondary_opts):
            assert flag in told or f"{flag}," in told
        assert param.is_flag or param.metavar, f"{param.name} has no word for its value"
        assert " ".join(param.help.split()[:2]) in " ".join(told)


@pytest.mark.parametrize("words", COMMANDS)
def test_what_options_do_is_not_squeezed(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 80):
        for line in help_of(words, monkeypatch, width).splitlines():
            assert width - (len(line) - len(line.lstrip())) >= 40 or not line.strip()


@pytest.mark.parametrize("words", ["submit", "doctor", "template", "merge", "ci"])
def test_settings_stand_under_their_topics(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(words, monkeypatch, 80)
    parts = re.split(r"^(\S[^\n]*):$", text, flags=re.MULTILINE)
    topics = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert [name for name in topics if name in TOPICS] == [
        topic for topic in TOPICS if topic in topics
    ]
    shown = {flag for param in COMMANDS[words].params for flag in param.opts}
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        extra: Any = field.json_schema_extra
        assert len(extra["metavar"]) <= 10
        if flag in shown and words != "merge" and name != "runs_dir":
            assert re.search(rf"^  {flag}\b", topics[extra["topic"]], re.MULTILINE)


def test_exit_codes_are_told_as_the_readme_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 1000):
        monkeypatch.setenv("COLUMNS", str(width))
        done = CliRunner().invoke(app, ["--help-exit-codes"])
        assert done.exit_code == 0
        said = " ".join(done.stdout.split())
        for code, meaning in exit_code_table():
            assert f"{code} {' '.join(meaning.split())}" in said
            assert f"| {code} | {meaning} |" in README


@pytest.mark.parametrize("words", COMMANDS)
def test_every_help_says_where_exit_codes_are(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert help_of(words, monkeypatch, 80).rstrip().endswith("dasf-hpc --help-exit-codes")
