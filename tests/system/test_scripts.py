"""Scripts as people have them: what runs with ``python job.py`` runs with ``dasf-hpc submit``."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from system.conftest import Submit
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace

BESIDE = """
    class Thing:
        def __init__(self, value):
            self.value = value

    def helper(thing):
        return thing.value * 10
"""

JOB = """
    import dask
    import beside
    from distributed import Client

    if __name__ == "__main__":
        with Client() as client:
            future = client.submit(beside.helper, beside.Thing(3), key="helper")
            # the second one's result is a class of that module, in the scheduler's hands, too
            thing = dask.delayed(beside.Thing)(dask.delayed(beside.helper)(beside.Thing(4)))
            print(future.result(), thing.compute().value)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a script and a module, which is not the one that the command runs in."""
    folder = tmp_path / "a source"
    folder.mkdir()
    for name, text in (("job.py", JOB), ("beside.py", BESIDE)):
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def test_a_script_imports_a_module_beside_it(submit: Submit, folder: Path) -> None:
    done = submit("--on", "local", "--no-nsys", str(folder / "job.py"))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "30 40"
    with open_trace(done.directory) as trace:
        assert {"helper", "Thing"} <= set(trace.tasks["prefix"])


@pytest.mark.needs("slurm")
def test_so_it_does_on_nodes(submit: Submit, folder: Path, slurm: SlurmTestbed) -> None:
    slurm.wait_until_idle()
    # a module that a prologue loads may have a PYTHONPATH of its own
    prologue = "export PYTHONPATH=/site/packages"
    done = submit(
        "--on", "slurm", "--interface", "lo", "--no-nsys", "--prologue", prologue,
        str(folder / "job.py"), environment=slurm.environment,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "30 40"
    (script,) = (done.directory / "scripts").iterdir()
    assert f"PYTHONPATH='{folder}'\"" in script.read_text()
