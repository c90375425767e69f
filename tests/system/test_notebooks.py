"""Notebooks and modules as a run's program."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from system.conftest import Submit, command, wait_until_over
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

HERE = ("--on", "local", "--no-nsys")

#: As Jupyter leaves it on a site whose kernels have names of their own.
KERNEL = {"name": "rapids-24", "display_name": "RAPIDS", "language": "python"}


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes a notebook of cells, in a folder of its own with a module."""

    def write(*cells: str) -> Path:
        folder = tmp_path / "note books"
        folder.mkdir()
        (folder / "beside.py").write_text("def half(x):\n    return x // 2\n")
        (folder / "numbers.txt").write_text("2 4 6")
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title")])
        content.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
        content.metadata["kernelspec"] = KERNEL
        nbformat.write(content, folder / "nb.ipynb")
        return folder / "nb.ipynb"

    return write


CELLS = (
    "from distributed import Client\nimport beside\nclient = Client(n_workers=4)",
    "numbers = [int(n) for n in open('numbers.txt').read().split()]",
    "import sys\nprint('to standard error', file=sys.stderr)\n"
    "print(client.gather(client.map(beside.half, numbers)))",
    "client.submit(sum, numbers).result()",
)


def test_a_notebook_is_run_and_kept(submit: Submit, notebook: Callable[..., Path]) -> None:
    given = notebook(*CELLS)
    before = given.read_bytes()
    done = submit(*HERE, str(given))
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["[1, 2, 3]", "12"]
    assert "to standard error" in done.err.splitlines()
    assert "Client(n_workers=4) of the script has the run's 1 worker" in done.err
    with open_trace(done.directory) as trace:
        assert dict(trace.tasks["prefix"].value_counts()) == {"half": 3, "sum": 1}
    assert given.read_bytes() == before
    kept = nbformat.read(done.directory / "logs" / "nb.ipynb", as_version=4)
    nbformat.validate(kept)
    assert kept.cells[4]["outputs"][0]["data"]["text/plain"] == "12"
    assert (done.directory / "logs" / "nb.ipynb").stat().st_mode & 0o077 == 0


def test_a_cell_that_fails_ends_the_notebook_which_is_kept_so_far(
    submit: Submit, notebook: Callable[..., Path]
) -> None:
    done = submit(*HERE, str(notebook(*CELLS[:2], "1 / 0", "print('never')")))
    assert done.code == 1
    assert "ZeroDivisionError: division by zero" in done.err
    assert "\x1b" not in done.err
    assert "never" not in done.out
    kept = nbformat.read(done.directory / "logs" / "nb.ipynb", as_version=4)
    assert kept.cells[3]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert kept.cells[4]["execution_count"] is None


def test_a_kernel_that_dies_is_told_of(submit: Submit, notebook: Callable[..., Path]) -> None:
    done = submit(*HERE, str(notebook("import os", "os._exit(3)")), timeout=90)
    assert done.code == 1
    assert "the kernel of nb.ipynb died" in done.err
    assert "Traceback" not in done.err


@pytest.mark.needs("slurm")
def test_so_it_is_on_nodes(
    submit: Submit, notebook: Callable[..., Path], slurm: SlurmTestbed
) -> None:
    slurm.wait_until_idle()
    words = ("--on", "slurm", "--interface", "lo", "--no-nsys", "--nodes", "2")
    done = submit(*words, str(notebook(*CELLS)), environment=slurm.environment)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["[1, 2, 3]", "12"]


def test_what_is_no_notebook_of_python_is_refused(submit: Submit, tmp_path: Path) -> None:
    julia = nbformat.v4.new_notebook()
    julia.metadata["kernelspec"] = {"name": "julia-1.10", "display_name": "J", "language": "julia"}
    for name, text, said in (
        ("torn.ipynb", '{"cells": [', "torn.ipynb is no notebook"),
        ("other.ipynb", json.dumps({"cells": 3, "nbformat": 4}), "other.ipynb is no notebook"),
        ("julia.ipynb", nbformat.writes(julia), "is written in julia, not in Python"),
    ):
        (tmp_path / name).write_text(text)
        done = submit(*HERE, name)
        assert done.code == 66, done.err
        assert said in done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "runs").exists()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Give a folder with a package that can be run."""
    inner = tmp_path / "work" / "study" / "steps"
    inner.mkdir(parents=True)
    (tmp_path / "work" / "study" / "__init__.py").write_text("")
    (tmp_path / "work" / "study" / "tools.py").write_text("def twice(x):\n    return 2 * x\n")
    (inner / "__init__.py").write_text("")
    main = (
        "import sys\nfrom distributed import Client\nfrom study.tools import twice\n\n"
        "if __name__ == '__main__':\n"
        "    with Client() as client:\n"
        "        print(sys.argv[1:], client.gather(client.map(twice, range(3))))\n"
    )
    (inner / "first.py").write_text(main)
    (inner / "__main__.py").write_text(main)
    return tmp_path / "work"


@pytest.mark.parametrize("name", ["study.steps.first", "study.steps"])
def test_a_module_is_run_as_python_runs_it(name: str, package: Path) -> None:
    done = subprocess.run(
        command("submit", *HERE, "--no-report", "-m", name, "--alpha", "a b"),
        cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "['--alpha', 'a b'] [0, 2, 4]"
    (directory,) = (package / "runs").iterdir()
    with open_trace(directory) as trace:
        assert dict(trace.tasks["prefix"].value_counts()) == {"twice": 3}


@pytest.mark.needs("slurm")
def test_so_is_a_detached_one(package: Path, slurm: SlurmTestbed) -> None:
    slurm.wait_until_idle()
    words = ("--on", "slurm", "--interface", "lo", "--no-nsys", "--no-report", "--detach")
    done = subprocess.run(
        command("submit", *words, "-m", "study.steps.first", "x"),
        cwd=package, env=slurm.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    wait_until_over(directory)
    assert (directory / "logs" / "job.out").read_text() == "['x'] [0, 2, 4]\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("study.nothing", "There is no module 'study.nothing' in "),
        ("study", "The package study cannot be run: it has no __main__.py."),
        ("study.tools.twice", "There is no module 'study.tools.twice' in "),
    ],
)
def test_what_is_no_module_is_refused(name: str, said: str, package: Path) -> None:
    done = subprocess.run(
        command("submit", *HERE, "-m", name),
        cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 66
    assert done.stderr.startswith(f"dasf-hpc: {said}")
    assert not (package / "runs").exists()
