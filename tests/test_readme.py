"""What the documents say is what the program does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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


def test_the_worked_example_finds_what_it_says_and_the_change_helps(tmp_path: Path) -> None:
    commands = README.split("<!-- example -->")[1].split("```")[1].removeprefix("bash\n")
    few = (
        commands.replace("--block 8", "--shape 48 48 64 --block 6")
        .replace("--block 48", "--shape 48 48 64 --block 24")
        .replace("in 2 3 4 5;", "in;")
    )
    assert few != commands
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", few],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 82, done.stdout + done.stderr  # two runs are too few to compare
    found = re.search(r"^ *Tasks are too small: .*$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert re.search(r"about \d+ times as large", done.stdout[found.end() :])
    waits = []
    for name in ("before", "after"):
        words = ["dasf-hpc", "analyze", "where", str(next((tmp_path / name).iterdir())), "--json"]
        answer = subprocess.run(
            words, env=os.environ | {"PATH": path}, check=True, capture_output=True, text=True
        )
        parts = json.loads(answer.stdout)["tables"]["summary"]["rows"]
        waits.append(sum(p["time"] for p in parts if p["part"] in ("dispatching", "scheduler")))
    assert waits[1] < 0.5 * waits[0], waits
