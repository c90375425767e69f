"""As a package: what is built, and that it works where there is no checkout."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import dasf_hpc

ROOT = Path(__file__).parents[1]

#: What lies in a checkout that is worked with, and belongs to nobody else.
STRAY = (
    ".venv/lib/python3/site-packages/some.py",
    "runs/2026-11-23T15-04-05-job-3f2a/keys/key.pem",
    "before/one/trace.h5",
    "tests/runs/one/trace.h5",
    "dasf_hpc/__pycache__/cli.cpython-311.pyc",
    "containers/__pycache__/recipe.cpython-311.pyc",
    "dasf-hpc.sif",
    "dasf-hpc.toml",
    "constraints.txt",
    "job.py",
    ".env",
)

#: A fast part of the tests that reads the folders beside them and runs the command line.
FAST = ("test_settings.py", "test_image.py", "test_readme.py")
FAST_ONLY = "not apptainer and not image and not example and not nsys"

pytestmark = pytest.mark.xdist_group("package")


def run(*words: str | Path, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program without what the environment says of this checkout or this run of tests."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "PYTHONPATH", "DASF_HPC", "MYPY"))
    }
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def run_well(*words: str | Path, cwd: Path) -> str:
    """Run a program that ends with 0; gives what it printed."""
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What was built, from a copy of this checkout that is not in git."""

    source: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist, and the wheel from it, as ``python -m build`` does."""
    source = tmp_path_factory.mktemp("source") / "dasf-hpc"
    unwanted = (".git", ".venv", "runs", "dist", "build", ".*_cache", "__pycache__", "*.sif")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*unwanted))
    for name in STRAY:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stray")
    run_well(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    (sdist,), (wheel,) = (source / "dist").glob("*.tar.gz"), (source / "dist").glob("*.whl")
    return Built(source, sdist, wheel)


def sdist_names(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive if not member.isdir()]
    return {name.partition("/")[2] for name in files}


def wheel_contents(wheel: Path | bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel) if isinstance(wheel, bytes) else wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_holds_all_that_is_kept_and_nothing_that_only_lies_there(built: Built) -> None:
    names = sdist_names(built.sdist)
    assert names & set(STRAY) == set()
    assert not [name for name in names if name.endswith((".pyc", ".sif", ".h5", ".pem"))]
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: what is kept cannot be told")
    kept = run_well("git", "ls-files", cwd=ROOT).splitlines()
    assert set(kept) - names == set(), "name it in pyproject.toml, sdist's only-include"


def test_every_way_to_a_wheel_makes_the_same(built: Built, tmp_path: Path) -> None:
    # As `pip install dasf_hpc-….tar.gz` makes it, and `pip install .` in a checkout.
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run_well(*pip, "-w", tmp_path / "of-sdist", built.sdist, cwd=tmp_path)
    run_well(*pip, "-w", tmp_path / "of-tree", built.source, cwd=tmp_path)
    expected = wheel_contents(built.wheel)
    for folder in ("of-sdist", "of-tree"):
        (wheel,) = (tmp_path / folder).glob("*.whl")
        assert wheel_contents(wheel) == expected


def test_a_wheel_serves_every_python_from_the_oldest_on_and_one_kind_of_machine(
    built: Built,
) -> None:
    assert "-cp311-abi3-linux_" in built.wheel.name
    contents = wheel_contents(built.wheel)
    (metadata,) = (text for name, text in contents.items() if name.endswith("/WHEEL"))
    assert b"Root-Is-Purelib: false" in metadata


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PATH": "/nowhere", "CC": "nocc"}, "There is no compiler: nocc, cc, gcc and clang"),
        ({"CFLAGS": "-DPy_PYTHON_H -include nothing.h"}, "nothing.h: No such file"),
    ],
    ids=["none", "no header"],
)
def test_where_it_cannot_be_compiled_one_sentence_says_what_to_install(
    built: Built, tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    words = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    code = (
        "import os, sys; os.environ.update(eval(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
    )
    done = run(
        *(sys.executable, "-c", code, repr(variables)),
        *(*words, "--no-index", "-w", tmp_path / "wheels", built.sdist),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert "apt-get install gcc libc6-dev python3-dev" in output
    assert said in output
    assert "Traceback" not in output
    assert not (tmp_path / "wheels").exists() or not list((tmp_path / "wheels").iterdir())


def test_the_description_points_at_nothing_that_is_not_there(built: Built) -> None:
    contents = wheel_contents(built.wheel)
    (metadata,) = (text for name, text in contents.items() if name.endswith("/METADATA"))
    description = metadata.decode().partition("\n\n")[2]
    assert description.startswith("# dasf-hpc")
    assert "dasf-hpc submit" in description
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert "https://jobqueue.dask.org" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "FORMAT.md has the few lines" in description
    assert b"Author: The dasf-hpc maintainers" in metadata or b"Author-email" in metadata


def test_the_wheel_holds_what_the_program_reads(built: Built) -> None:
    contents = wheel_contents(built.wheel)
    packed = {name for name in contents if name.startswith("dasf_hpc/")}
    tree = [path for path in (ROOT / "dasf_hpc").rglob("*") if path.is_file()]
    expected = {p.relative_to(ROOT).as_posix() for p in tree if p.suffix not in (".pyc", ".c")}
    expected.add("dasf_hpc/profile/_recorder.abi3.so")
    for folder in ("containers", "lsf", "pbs", "slurm"):
        files = [path for path in (ROOT / folder).iterdir() if path.is_file()]
        expected |= {f"dasf_hpc/{folder}/{path.name}" for path in files}
    assert packed == expected
    assert "dasf_hpc/py.typed" in packed
    assert {name.partition("/")[0] for name in contents} == {
        "dasf_hpc",
        f"dasf_hpc-{dasf_hpc.__version__}.dist-info",
    }


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment without a checkout; gives the environment's programs.

    Its other packages are those of this environment, but neither dasf-hpc nor hpccm.
    """
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run_well(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    run_well(
        *(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install"),
        *("--no-deps", "--no-index", built.wheel),
        cwd=environment.parent,
    )
    (site,) = environment.glob("lib/python*/site-packages")
    for path in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for package in path.iterdir():
            name = package.name.lower()
            ours = name.startswith(("dasf_hpc", "_dasf_hpc", "hpccm", "__pycache__"))
            if not ours and package.suffix != ".pth" and not (site / package.name).exists():
                (site / package.name).symlink_to(package)
    return environment / "bin"


def test_the_program_runs_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    where = run_well(python, "-c", "import dasf_hpc; print(dasf_hpc.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    for words in ((installed / "dasf-hpc",), (python, "-m", "dasf_hpc")):
        version = run_well(*words, "--version", cwd=tmp_path)
        assert version == f"dasf-hpc {dasf_hpc.__version__}\n"
        assert "Usage: dasf-hpc [OPTIONS] COMMAND" in run_well(*words, "--help", cwd=tmp_path)
        wrong = run(*words, "submit", "--no-such", "job.py", cwd=tmp_path)
        assert wrong.returncode == 2
        assert "Usage: dasf-hpc submit" in wrong.stderr
        assert "Try 'dasf-hpc submit -h'" in wrong.stderr
        missing = run(*words, "show", "nothing", cwd=tmp_path)
        assert missing.returncode == 73, missing.stderr
        assert missing.stderr.startswith("dasf-hpc: ")
    written = run_well(installed / "dasf-hpc", "template", "slurm", cwd=tmp_path)
    assert "#SBATCH" in written


@pytest.mark.parametrize(
    ("container_format", "suffix"), [("apptainer", "def"), ("docker", "Dockerfile")]
)
@pytest.mark.parametrize("variant", ["cpu", "cuda12", "cuda13"])
def test_without_hpccm_the_kept_definition_is_printed(
    installed: Path, tmp_path: Path, container_format: str, suffix: str, variant: str
) -> None:
    assert run(installed / "python", "-c", "import hpccm", cwd=tmp_path).returncode == 1
    words = ("image", "recipe", "--variant", variant, "--format", container_format)
    kept = (ROOT / "containers" / f"{variant}.{suffix}").read_text()
    assert run_well(installed / "dasf-hpc", *words, cwd=tmp_path) == kept


def test_a_definition_that_is_being_made_anew_without_hpccm_is_an_error(
    built: Built, installed: Path, tmp_path: Path
) -> None:
    shutil.copytree(built.source / "dasf_hpc", tmp_path / "dasf_hpc")
    shutil.copytree(built.source / "containers", tmp_path / "containers")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "containers" / "cpu.def").write_text("")  # as a shell does before the program runs
    words = (installed / "python", "-m", "dasf_hpc", "image", "recipe", "--variant", "cpu")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 69
    assert "cpu.def is not there or empty" in done.stderr
    assert "pip install 'dasf-hpc[image]'" in done.stderr


def test_the_tests_run_from_the_unpacked_sdist(
    built: Built, installed: Path, tmp_path: Path
) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    # What is tested is what is installed, not the package in the sdist; by what tests start, too.
    python = ("env", "PYTHONSAFEPATH=1", installed / "python")
    pytest_here = (*python, "-m", "pytest", "-n", "0", "-q", "-rs")
    every = run_well(*pytest_here, "--collect-only", cwd=unpacked)
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert path.relative_to(ROOT).as_posix() in every
    fast = [f"tests/{name}" for name in FAST]
    said = run_well(*pytest_here, "-k", FAST_ONLY, *fast, cwd=unpacked)
    assert int(said.rpartition(" passed")[0].split()[-1]) > 50, said


def test_a_users_program_is_checked_against_our_types(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    (tmp_path / "right.py").write_text(
        "import dasf_hpc\n\n"
        "with dasf_hpc.open_trace('runs/one') as trace:\n"
        "    print(trace.table('tasks', columns=['start']), dasf_hpc.WorkerTaskPlugin(name='x'))\n"
    )
    (tmp_path / "wrong.py").write_text("import dasf_hpc\n\ndasf_hpc.open_trace(3)\n")
    mypy = (
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache"),
        *("--python-executable", installed / "python"),
    )
    done = run(*mypy, "right.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(*mypy, "wrong.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "wrong.py:3" in done.stdout
    assert "[arg-type]" in done.stdout
