"""The check of a GPU machine: what of it needs no GPU, with the real scripts.

That it runs to its end without a network is tried by hand: it needs the wheels, some 330 MiB
(``unshare -n bash tests/gpu/check.sh``, with ``REHEARSE=1``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from gpu import wheels
from gpu.check import find_nsys, link_cuda
from gpu.results import COULD_NOT, FAILED, OK, Limits, Results, Step

HERE = Path(__file__).parent / "gpu"
CHECK = HERE / "check.sh"


def script(path: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts with this Python."""
    return subprocess.run(
        ["bash", str(path), *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def wheel(folder: Path, name: str, needs: Sequence[str] = ()) -> Path:
    """Make a wheel of a file name that holds nothing but what it needs."""
    folder.mkdir(exist_ok=True)
    package, version, *_ = name.split("-")
    lines = [f"Name: {package}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    with zipfile.ZipFile(folder / name, "w") as file:
        file.writestr(
            f"{package}-{version}.dist-info/METADATA",
            "\n".join(["Metadata-Version: 2.1", *lines]) + "\n",
        )
    return folder / name


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Give a folder of few wheels: one too old, one with a need, one for another system."""
    folder = tmp_path / "wheels"
    wheel(folder, "numpy-1.0-py3-none-any.whl")
    wheel(folder, "dask_cuda-99.0-py3-none-any.whl", ["nobody-has-this>=2", "x; extra == 'y'"])
    wheel(folder, "h5py-3.16.0-cp27-cp27m-win32.whl")
    wheel(folder, "hatchling-1.33.0-py3-none-any.whl")
    return folder


# ------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "two or three arguments"),
        (["{few}"], "two or three arguments"),
        (["{few}", "a", "b", "c"], "two or three arguments"),
        (["{none}", "results"], "no folder"),
        (["{empty}", "results"], "no wheels"),
        (["{few}", "{few}"], "not empty"),
        (["{few}", "{file}"], "not a folder"),
        (["{few}", "{empty}", "{none}"], "there is no"),
    ],
)
def test_what_it_cannot_work_with_is_told_at_once(
    words: list[str], says: str, few: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    names = {"few": few, "none": tmp_path / "none", "empty": tmp_path / "empty"}
    done = script(CHECK, *(w.format(**names, file=tmp_path / "file") for w in words))
    assert done.returncode == 2
    assert says in done.stderr
    assert "usage: bash tests/gpu/check.sh WHEELS RESULTS [NSYS]" in done.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_a_python_that_cannot_be_used_is_told(few: Path, tmp_path: Path) -> None:
    done = script(CHECK, few, tmp_path / "results", PYTHON="no-such-python")
    assert (done.returncode, "there is no no-such-python" in done.stderr) == (2, True)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = script(CHECK, few, tmp_path / "results", PYTHON=str(old))
    assert (done.returncode, "not Python 3.11 or newer" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a folder"),
        (["a", "b"], "one folder"),
        (["a", "--python"], "takes a value"),
        (["a", "--python", "2.7"], "3.12"),
        (["a", "--cuda", "11"], "12 or 13"),
        (["a", "--glibc", "x"], "2.28"),
        (["a", "--have", "/no/such"], "no file"),
        (["a", "--what"], "unknown option"),
    ],
)
def test_wheels_sh_tells_what_it_does_not_understand(words: list[str], says: str) -> None:
    done = script(HERE / "wheels.sh", *words)
    assert done.returncode == 2
    assert says in done.stderr


# ------------------------------------------------------------------------------- missing wheels


def test_all_wheels_that_are_missing_are_named_before_anything_is_done(
    few: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    done = script(CHECK, few, results, TMPDIR=str(tmp_path))
    assert done.returncode == 4, done.stdout + done.stderr
    summary = json.loads((results / "summary.json").read_text())
    (step,) = summary["steps"]
    assert (step["name"], step["state"]) == ("wheels", FAILED)
    missing = step["figures"]["missing"]
    text = "\n".join(missing)
    assert "numpy>=1.26 (needed by dasf-hpc[gpu,test]; there is 1.0)" in text
    assert "nobody-has-this>=2 (needed by dask-cuda)" in text
    assert "h5py-3.16.0-cp27-cp27m-win32.whl, for another Python or system" in text
    assert "cupy-cuda13x or cupy-cuda12x" in text
    assert any(line.startswith("pytest>=8") for line in missing), "of the extra test"
    assert any(line.startswith("hpccm") for line in missing), "of an extra that an extra names"
    assert not any(line.startswith(("dask-cuda", "hatchling", "x ")) for line in missing)
    assert "nobody-has-this" in (results / "summary.txt").read_text()
    assert "nobody-has-this" in done.stdout
    assert not list(tmp_path.glob("gpu-check-*")), "nothing is left behind"


def test_what_is_installed_counts_where_it_is_wanted(few: Path) -> None:
    here = [path for path in sys.path if path.endswith("site-packages")]
    without, _ = wheels.missing_wheels(few)
    with_installed, _ = wheels.missing_wheels(few, here)
    assert any(line.startswith("numpy>=1.26") for line in without)
    assert not any(line.startswith(("numpy", "h5py", "dask-jobqueue")) for line in with_installed)
    # what builds the project is looked for among wheels alone: pip builds apart
    (few / "hatchling-1.33.0-py3-none-any.whl").unlink()
    assert any(line.startswith("hatchling") for line in wheels.missing_wheels(few, here)[0])


def test_a_list_of_what_a_machine_has_keeps_to_versions_that_fit(tmp_path: Path) -> None:
    freeze = "numpy==2.5.2\nnvtx==0.2.10\n# nothing\ncupy-cuda13x==14.2.0\nPyYAML\n-e git+x\n"
    good, bad = wheels.usable(freeze, tmp_path)
    assert good == ["numpy==2.5.2", "cupy-cuda13x==14.2.0", "pyyaml"]
    assert bad == ["nvtx==0.2.10"]
    kept = wheel(tmp_path, "nvtx-0.2.11-py3-none-any.whl")
    gone = wheel(tmp_path, "PyYAML-6.0-py3-none-any.whl")
    wheels.drop(tmp_path, "\n".join(good))
    assert (kept.exists(), gone.exists()) == (True, False)


# ------------------------------------------------------------------------------------- results


def test_the_environment_of_all_steps_is_clean(few: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    seen = tmp_path / "seen"
    python.write_text(f'#!/bin/sh\nenv > "{seen}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    results = tmp_path / "results"
    script(CHECK, few, results, PYTHON=str(python), A_TOKEN="hush", CUDA_HOME="/cuda")
    assert "A_TOKEN" not in seen.read_text()
    assert "CUDA_HOME=/cuda" in seen.read_text()
    named = json.loads((results / "summary.json").read_text())["facts"]
    assert named["variables that profiled processes had"] == "CUDA_HOME HOME LANG PATH TMPDIR"


def test_files_that_are_too_large_are_left_out_with_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    results = Results(folder, Limits(file=1000, total=2**20 + 1500, files=5))
    for name, size in (("a", 1001), ("b", 900), ("c", 900), ("d", 500), ("e", 1), ("f", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
        results.keep(tmp_path / name, name)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["b", "d", "e", "summary.json", "summary.txt"]
    assert [note.partition(",")[0] for note in results.notes] == [
        "left out: a",
        "left out: c",
        "left out: f",
    ]
    text = (folder / "summary.txt").read_text()
    assert all(note in text for note in results.notes)


def test_a_folder_is_packed_without_what_is_not_wanted(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "results"
    (run / "journals").mkdir(parents=True)
    folder.mkdir()
    (run / "journals" / "x.journal").write_text("x")
    (run / "trace.h5").write_text("x")
    results = Results(folder, Limits())
    assert results.pack("run.tar.gz", tmp_path, run, lambda path: path.suffix != ".h5")
    with tarfile.open(folder / "run.tar.gz") as tar:
        assert tar.getnames() == ["run/journals/x.journal"]


@pytest.mark.parametrize(
    ("states", "code"),
    [([OK, OK], 0), ([OK, COULD_NOT], 3), ([COULD_NOT, FAILED, OK], 1)],
)
def test_the_exit_code_is_that_of_the_worst_step(
    states: list[str], code: int, tmp_path: Path
) -> None:
    results = Results(tmp_path, Limits())
    results.steps = [Step(str(n), state, 1.5, "why") for n, state in enumerate(states)]
    assert results.exit_code == code
    results.write()
    assert json.loads((tmp_path / "summary.json").read_text())["exit_code"] == code
    assert "could not" in (tmp_path / "summary.txt").read_text() or COULD_NOT not in states


# ------------------------------------------------------------------------------------ programs


def test_a_program_over_its_time_is_ended_with_all_it_started(tmp_path: Path) -> None:
    # in a process of its own: pytest's is not to adopt orphans
    program = f"""
import os, sys, time
sys.path.insert(0, {str(HERE.parent)!r})
from pathlib import Path
from gpu import programs
programs.INTERRUPT_WAIT_S = 0.5
programs.adopt_orphans()
# deaf to Ctrl-C, and its child in a session of its own, whose parent is gone
words = ["bash", "-c", "trap '' INT; (setsid sleep 977 &) ; echo begun; sleep 978; sleep 978"]
begun = time.monotonic()
ran = programs.run(words, Path({str(tmp_path / "log")!r}), 1.0, os.environ, Path("/"))
print(ran.code, ran.output.strip(), time.monotonic() - begun < 15, programs.descendants())
"""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["None", "begun", "True", "[]"]
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "977"]]
    assert not left
    assert time.monotonic() - begun < 30


def test_what_a_program_says_is_logged_and_its_code_given(tmp_path: Path) -> None:
    # in a process of its own: what pytest's has started is not to be ended
    log = tmp_path / "log"
    program = f"""
import os, sys
sys.path.insert(0, {str(HERE.parent)!r})
from pathlib import Path
from gpu import programs
log, here = Path({str(log)!r}), Path("/")
ran = programs.run(["sh", "-c", "echo one; echo two >&2; exit 5"], log, 10, {{}}, here)
programs.run(["true"], log, 10, dict(os.environ), here)
print(ran.code, ran.last)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["5", "two"]
    assert log.read_text().count("$ ") == 2


def test_cudas_libraries_of_another_environment_are_found_as_cuda_looks_for_them(
    tmp_path: Path,
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (theirs / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    ours.mkdir()
    link_cuda(ours, [str(tmp_path / "none"), str(theirs)])
    assert (ours / "nvidia" / "cu13" / "lib").is_dir()
    own = tmp_path / "own"
    (own / "nvidia").mkdir(parents=True)
    link_cuda(own, [str(theirs)])
    assert not (own / "nvidia").is_symlink(), "what the wheels brought comes first"
    shutil.rmtree(ours)
    assert (theirs / "nvidia" / "cu13" / "lib").is_dir(), "cleaning up leaves theirs alone"


# ---------------------------------------------------------------------------------------- nsys


def no_unpacking(packages: Sequence[Path]) -> Path:
    raise AssertionError("there is nothing to unpack")


def test_nsys_is_found_in_a_folder_beside_its_libraries(tmp_path: Path) -> None:
    for place in ("bin", "host-linux-x64", "target-linux-x64"):
        path = tmp_path / "nsight" / place / "nsys"
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    found = find_nsys(tmp_path, no_unpacking)
    assert found == tmp_path / "nsight" / "target-linux-x64" / "nsys"
    assert find_nsys(tmp_path / "nsight" / "bin" / "nsys", no_unpacking) is not None
    (tmp_path / "empty").mkdir()
    assert find_nsys(tmp_path / "empty", no_unpacking) is None


@pytest.mark.parametrize("name", ["check.sh", "wheels.sh"])
def test_scripts_pass_shellcheck(name: str) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        found = shutil.which("shellcheck")
        if found is None:
            pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
        checker = Path(found)
    done = subprocess.run(
        [str(checker), str(HERE / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
