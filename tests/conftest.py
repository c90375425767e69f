"""What tests share: which programs a test needs, and the cluster and programs themselves.

A test that needs a program which Python's package index does not have says so::

    @pytest.mark.needs("slurm", "nsys")

and is skipped, with the reason and the way to get it, where that program cannot be used. A
machine that is meant to have it names it in the environment, and then the skip is a failure::

    DASF_HPC_REQUIRE=slurm,nsys pytest
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import environments
import hypothesis
import pytest

from dasf_hpc.launch.node import NSYS_STARTS
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.nsight.sessions import make_way

TESTBED = Path(__file__).parent / "testbed"
sys.path.insert(0, str(TESTBED.parent))  # so that `testbed` is found from wherever pytest is run

from testbed import openpbs as openpbs_testbed  # noqa: E402
from testbed import slurm as slurm_testbed  # noqa: E402

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

REQUIRED_VARIABLE = "DASF_HPC_REQUIRE"
"""Comma-separated programs without which a run of the tests is no good."""

INSTALL = "bash tests/testbed/install.sh"

ELSEWHERE = {
    "environments": "run this where pip reaches an index of packages",
    "gpu": "run this on a machine with one",
    "mpi": "apt-get install openmpi-bin libopenmpi-dev, pip install mpi4py",
}
"""How to get what `INSTALL` does not install."""

PROGRAM_TIMEOUT_S = 60.0
"""How long a program may take to tell its version; a cold browser takes several seconds."""


def why_no_slurm() -> str | None:
    """Say what keeps a SLURM cluster from starting here, ``None`` if nothing is known to."""
    return slurm_testbed.why_not_here()


def why_no_nsys() -> str | None:
    """Say what keeps ``nsys`` from running here, ``None`` if nothing does."""
    return _why_not_running("nsys")


def why_no_apptainer() -> str | None:
    """Say what keeps Apptainer from running here, ``None`` if nothing does."""
    return _why_not_running("apptainer")


def why_no_browser() -> str | None:
    """Say what keeps a browser driven by ``chromedriver`` from running here."""
    reasons = [_why_not_running(name) for name in ("chromium", "google-chrome")]
    if None not in reasons:
        return reasons[0]
    return _why_not_running("chromedriver")


def why_no_mpi() -> str | None:
    """Say what keeps two ranks of MPI from being started from Python here."""
    if importlib.util.find_spec("mpi4py") is None:
        return "the Python package mpi4py is not installed"
    return _why_not_running("mpirun")


def why_no_zsh() -> str | None:
    """Say what keeps zsh from running here, ``None`` if nothing does."""
    return _why_not_running("zsh")


def why_no_valgrind() -> str | None:
    """Say what keeps valgrind from running here, ``None`` if nothing does."""
    return _why_not_running("valgrind")


def why_no_speedscope() -> str | None:
    """Say what keeps the pages of speedscope from being there, ``None`` if nothing does."""
    from speedscope_page import why_not

    return why_not()


def why_no_gpu() -> str | None:
    """Say why there is no GPU that CUDA can use, ``None`` if there is one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine"
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver finds no GPU that it can use"
    return None if count.value else "there is no GPU"


def why_no_environments() -> str | None:
    """Say why pip cannot install into environments of their own, ``None`` if it can."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "toolz"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return f"pip cannot download: {said[-1]}" if done.returncode else None


CLONE_NEWNS = 0x20000  # unshare(2)
MS_REC, MS_SLAVE = 0x4000, 0x80000  # mount(2)

WHY_NOT: dict[str, Callable[[], str | None]] = {
    "slurm": functools.cache(why_no_slurm),
    "nsys": functools.cache(why_no_nsys),
    "apptainer": functools.cache(why_no_apptainer),
    "browser": functools.cache(why_no_browser),
    "environments": functools.cache(why_no_environments),
    "mpi": functools.cache(why_no_mpi),
    "zsh": functools.cache(why_no_zsh),
    "speedscope": functools.cache(why_no_speedscope),
    "valgrind": functools.cache(why_no_valgrind),
    "gpu": functools.cache(why_no_gpu),
}
"""Every name `needs` and the environment variable know, and how to find out about it."""


def _why_not_running(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return f"{name} is not installed"
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    if done.returncode != 0:
        return f"{path} does not run: {(done.stderr or done.stdout).strip()}"
    return None


def required_programs() -> frozenset[str]:
    """Read which programs this run of the tests must not do without."""
    names = os.environ.get(REQUIRED_VARIABLE, "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def require(*programs: str) -> None:
    """Skip the running test unless it can use all of `programs`.

    Parameters
    ----------
    *programs
        Names out of :data:`WHY_NOT`.

    Raises
    ------
    pytest.skip.Exception
        If one of them cannot be used here, with the reason and the way to get it.
    pytest.fail.Exception
        The same, if the environment variable ``DASF_HPC_REQUIRE`` names that program.
    """
    for program in programs:
        reason = WHY_NOT[program]()
        if reason is None:
            continue
        how = ELSEWHERE.get(program, f"{INSTALL} {program}")
        message = f"{program}: {reason}; to get it: {how}"
        if program in required_programs():
            pytest.fail(f"{message} ({REQUIRED_VARIABLE} requires it)", pytrace=False)
        pytest.skip(message)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known and refuse names that would be ignored in silence."""
    config.addinivalue_line(
        "markers",
        f"needs(*programs): skip unless all of them can be used ({', '.join(WHY_NOT)}); "
        f"fail instead if {REQUIRED_VARIABLE} names one that cannot",
    )
    _check_names(required_programs(), REQUIRED_VARIABLE)
    if "PYTEST_XDIST_WORKER" in os.environ and sys.platform == "linux" and os.geteuid() == 0:
        have_own_places_of_nsys()


def have_own_places_of_nsys() -> None:
    """Give this process, and all that it starts, what all nsys of a host share, for itself.

    Tests that kill nsys leave that in need of repair, which is felt by whatever else runs nsys on
    the host at that moment: other tests must not.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNS) != 0:
        return  # in a container that forbids it
    library.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None)
    Path("/tmp/nvidia").mkdir(exist_ok=True)
    for place in (b"/dev/shm", b"/tmp/nvidia"):
        library.mount(b"tmpfs", place, b"tmpfs", 0, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker that names something nobody knows how to look for."""
    for item in items:
        _check_names(_needed(item), item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for what the test needs before any of its fixtures is set up."""
    require(*_needed(item))


def _needed(item: pytest.Item) -> list[str]:
    """List what a test needs, on its own, its class's and its module's account."""
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    return list(dict.fromkeys(names))


def _check_names(names: frozenset[str] | list[str], where: str) -> None:
    unknown = sorted(set(names) - set(WHY_NOT))
    if unknown:
        raise pytest.UsageError(
            f"{where} names {', '.join(unknown)}; known programs are {', '.join(WHY_NOT)}"
        )


@pytest.fixture(scope="session")
def slurm() -> Iterator[slurm_testbed.SlurmTestbed]:
    """Give a started SLURM cluster of three hosts, the same one for all tests."""
    require("slurm")
    with slurm_testbed.SlurmTestbed() as testbed:
        yield testbed


@pytest.fixture(scope="session")
def nsys() -> Path:
    """Give the path of the program ``nsys``, which does run here."""
    require("nsys")
    path = shutil.which("nsys")
    assert path is not None
    return Path(path)


@pytest.fixture(scope="session")
def profile(nsys: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give a function that runs ``nsys profile``, again where it dies at its start, like a node.

    Its arguments are the report's path without suffix, the words for nsys and the command; those by
    name are ``subprocess.run``'s, and `program` is another nsys.
    """
    version = find_nsys(str(nsys)).version_text
    assert version is not None

    def run(
        report: Path,
        flags: Sequence[str],
        command: Sequence[str],
        program: Path = nsys,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        for _ in range(NSYS_STARTS):
            make_way(version)
            done = subprocess.run(
                [str(program), "profile", *flags, "-o", str(report), *command],
                capture_output=True, text=True, check=False, **options,
            )  # fmt: skip
            if list(report.parent.glob(f"{report.name}.*")):
                break
        return done

    return run


@pytest.fixture(scope="session")
def python_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a function that gives the Python of an environment (`environments.EXTRAS`)."""
    require("environments")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return functools.partial(environments.python_of, folder=folder / "environments")


@pytest.fixture(scope="session")
def openpbs() -> Iterator[openpbs_testbed.OpenPbsTestbed]:
    """Give a started server that behaves like OpenPBS's, the same one for all tests."""
    with openpbs_testbed.OpenPbsTestbed() as testbed:
        yield testbed


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Give a headless Chromium under Selenium's control; its console is kept."""
    require("browser")
    from chromium import headless_browser

    with headless_browser() as driver:
        yield driver
