"""What the documents say is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from readme import readme_command, readme_commands

from dasf_hpc.errors import exit_code_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_exit_code_is_documented_as_it_is() -> None:
    table = README[README.index("| code | meaning |") :]
    rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in table.splitlines()[2:]]
    assert rows == [(str(code), meaning) for code, meaning in exit_code_table()]


def test_every_test_that_the_readme_points_at_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "system").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)…`", README)
    assert len(named) > 10
    assert [name for name in named if f"def {name}" not in tests] == []


def test_every_command_of_an_image_or_a_batch_job_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    parts = re.findall(r'readme_command\("batch", "([^"]+)"\)', tests)
    parts += re.findall(r'run_readme\(\s*cluster, tmp_path, "([^"]+)"', tests)
    commands = readme_commands("batch")
    assert {readme_command("batch", part) for part in parts} == set(commands)
    assert 'readme_block("image")' in tests  # of which all lines are run, in their order
    # What no test can run stands apart, with the reason.
    sections = README.split("### In an image")[1].split("## What comes back")[0]
    others = re.findall(r"(?<!-->\n)```bash\n(.*?)```", sections, re.DOTALL)
    assert len(others) == 1
    assert "cuda13" in others[0]


def test_the_commands_that_ci_runs_are_there() -> None:
    for name in ("run", "test"):
        block = README.split(f"<!-- ci: {name} -->")[1].split("```")[1]
        assert block.startswith("bash\npython3 -m venv .venv\n")
