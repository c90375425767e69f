"""Images: definitions that are current, and a run whose workers and script are inside one."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from readme import readme_block, readme_command
from testbed.slurm import SlurmTestbed

from dasf_hpc import open_trace
from dasf_hpc.errors import SettingsError
from dasf_hpc.image import FORMATS, KEPT, VARIANTS, image_recipe
from dasf_hpc.launch.image import Container, host_nsys

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.timeout(1200),  # building an image takes minutes on a busy machine
    pytest.mark.xdist_group("image"),  # so that no process waits for another's image
]

Done = subprocess.CompletedProcess[str]


def cli(
    *words: str, folder: Path, timeout: float = 240, environment: Mapping[str, str] | None = None
) -> Done:
    """Run dasf-hpc as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words],
        cwd=folder, env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


# ----------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("container_format", FORMATS)
def test_the_definitions_that_are_kept_are_those_of_the_recipe(
    container_format: str, variant: str
) -> None:
    pytest.importorskip("hpccm", reason="hpccm is not installed: pip install -e '.[image]'")
    kept = (ROOT / "containers" / KEPT[container_format].format(variant)).read_text()
    assert kept == image_recipe(container_format, variant), "dasf-hpc image recipe makes it anew"


def sections(definition: str) -> dict[str, str]:
    """Give the parts of an Apptainer definition by name; the header's is empty."""
    parts: dict[str, str] = {}
    for part in re.split(r"^(?=%)", definition, flags=re.MULTILINE):
        name, _, text = part.partition("\n") if part.startswith("%") else ("", "", part)
        parts[name] = parts.get(name, "") + text
    return parts


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_definition_is_whole_and_its_scripts_are_shell(variant: str) -> None:
    parts = sections((ROOT / "containers" / f"{variant}.def").read_text())
    assert set(parts) == {
        "", "%arguments", "%post", "%files", "%environment", "%labels", "%runscript", "%test",
    }  # fmt: skip
    assert "dasf-hpc doctor" in parts["%test"]
    assert "dasf-hpc submit" in parts["%test"]
    assert parts["%runscript"].strip() == 'exec dasf-hpc "$@"'
    assert "{{ revision }}" in parts["%labels"]
    for name in ("%post", "%test", "%runscript", "%environment"):
        script = re.sub(r"{{ (\w+) }}", r"\1", parts[name])
        checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
    for line in parts["%files"].splitlines():
        if line.strip() and "{{" not in line:
            assert (ROOT / line.split()[0]).exists(), line
    declared = re.findall(r"^\s+(\w+)=", parts["%arguments"], re.MULTILINE)
    used = re.findall(r"{{ (\w+) }}", "".join(parts.values()))
    assert set(used) - {"mirror"} == set(declared)
    if variant.startswith("cuda"):
        assert f"nvidia/cuda:{variant[-2:]}." in parts[""]
        assert f"cuda-nsight-systems-{variant[-2:]}-" in parts["%post"]
        for package in (f"dask-cuda[cu{variant[-2:]}]", f"cupy-cuda{variant[-2:]}x[ctk]", "ucxx"):
            assert package in parts["%post"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_package_of_an_image_is_pinned(variant: str) -> None:
    lines = (ROOT / "containers" / f"constraints-{variant}.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines)
    names = {line.split("==")[0] for line in lines}
    requires = importlib.metadata.requires("dasf-hpc") or []
    direct = {re.split(r"[^\w-]", line)[0] for line in requires if "extra ==" not in line}
    assert direct <= names
    # What a variant adds is pinned, too, with the toolkit that CuPy compiles with.
    post = sections((ROOT / "containers" / f"{variant}.def").read_text())["%post"]
    added = re.findall(r"'([\w-]+)(?:\[\w+\])?'", post)
    assert set(added) <= names
    assert bool(added) == variant.startswith("cuda")
    assert ("cuda-toolkit" in names) == any("cuda-runtime" in name for name in names) == bool(added)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_docker_recipe_installs_the_same(variant: str) -> None:
    pytest.importorskip("hpccm", reason="hpccm is not installed: pip install -e '.[image]'")
    docker = image_recipe("docker", variant)
    assert docker.startswith("FROM ")
    assert 'ENTRYPOINT ["dasf-hpc"]' in docker
    pip = next(line for line in docker.splitlines() if "pip install" in line)
    kept = (ROOT / "containers" / f"{variant}.def").read_text()
    same = next(line for line in kept.splitlines() if "pip install" in line)
    assert re.findall(r"'[^']+'", pip) == re.findall(r"'[^']+'", same)


def test_no_other_format_or_variant() -> None:
    assert FORMATS == ("apptainer", "docker")
    with pytest.raises(SettingsError, match="one of apptainer, docker"):
        image_recipe("oci", "cpu")
    with pytest.raises(SettingsError, match="one of cpu, cuda12, cuda13"):
        image_recipe("docker", "rocm")


# ------------------------------------------------------------------------------ without Apptainer


def test_without_apptainer_there_is_a_clear_word(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print('never run')")
    (tmp_path / "some.sif").write_bytes(b"")
    for words in (
        ["image", "build", "x.sif", "--variant", "cpu"],
        ["submit", "--on", "local", "--image", "some.sif", "job.py"],
    ):
        done = cli(*words, folder=tmp_path, environment={"PATH": "/nonexistent"})
        assert done.returncode == 69, done.stderr
        assert "apptainer, which is not on PATH" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_image_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print('never run')")
    done = cli("submit", "--on", "local", "--image", "no.sif", "job.py", folder=tmp_path)
    assert done.returncode == 64
    assert "no.sif" in done.stderr
    assert "dasf-hpc image build" in done.stderr


@pytest.mark.needs("apptainer")
def test_what_apptainer_cannot_build_is_told(tmp_path: Path) -> None:
    done = cli("image", "build", "x.sif", "--variant", "cpu", folder=tmp_path)
    assert done.returncode == 79
    assert "mirror" in done.stderr  # the argument that has no default


@pytest.mark.needs("apptainer")
def test_a_file_that_is_no_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print('never run')")
    (tmp_path / "some.sif").write_text("not an image")
    done = cli("submit", "--on", "local", "--image", "some.sif", "job.py", folder=tmp_path)
    assert done.returncode == 69, done.stderr
    assert "some.sif cannot be used" in done.stderr


def test_a_container_binds_its_folders_where_they_are() -> None:
    container = Container(Path("/i.sif"), (Path("/a b"),), Path("/home/me"), gpus=True)
    words = container.with_binds([Path("/runs/one")]).words()
    assert words[:2] == ["apptainer", "exec"]
    assert words[-2:] == ["--nv", "/i.sif"]
    assert 'type=bind,"source=/a b","destination=/a b"' in words
    assert 'type=bind,"source=/runs/one","destination=/runs/one"' in words


@pytest.mark.needs("nsys")
def test_what_an_image_needs_of_this_hosts_nsys(nsys: Path, tmp_path: Path) -> None:
    found = host_nsys(None)
    assert found is not None
    program, folders = found
    assert program == nsys.resolve()
    assert any(folder in program.parents for folder in folders)
    wrapper = tmp_path / "nsys"
    wrapper.write_text(f'#!/bin/sh\nexec {nsys} "$@"')
    wrapper.chmod(0o755)
    assert host_nsys(str(wrapper)) is None


# --------------------------------------------------------------------------------- a real image


def debian_mirror() -> str:
    """Read the address of this machine's own mirror of Debian."""
    for path in (*Path("/etc/apt").rglob("*.sources"), *Path("/etc/apt").rglob("*.list")):
        text = path.read_text(errors="replace")
        found = re.search(r"^URIs:\s*(\S+/debian/?)\s*$", text, re.MULTILINE) or re.search(
            r"^deb\s+(?:\[[^]]*\]\s+)?(\S+/debian/?)\s", text, re.MULTILINE
        )
        if found:
            return found[1]
    pytest.skip("this machine has no Debian mirror in /etc/apt")


def environment_of_packages(folder: Path) -> None:
    """Make a virtual environment that sees this one's packages, so that pip need not get them.

    Its pip is its own: another's would install into the other's environment.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], stdin=subprocess.DEVNULL, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a fresh clone in which the README's commands have built ``dasf-hpc.sif``.

    That takes minutes: one is built for all processes that run the tests (pytest 9.2 and xdist 3.8
    together do not heed groups), and whoever works on these tests keeps one and names it in a
    variable.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    clone = shared / "image" / "dasf-hpc"
    clone.parent.mkdir(exist_ok=True)
    with (clone.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (clone.parent / "built").exists():
            build_as_the_readme_says(clone)
            (clone.parent / "built").touch()
    return clone


def build_as_the_readme_says(clone: Path) -> None:
    """Clone this checkout and run the README's commands up to the image in it."""
    if (ROOT / ".git").exists():
        command = ["git", "clone", "--quiet", str(ROOT), str(clone)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    else:  # an unpacked sdist
        shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".venv", "runs", "*.sif"))
    environment_of_packages(clone / ".venv")
    lines = readme_block("image")
    assert lines.rstrip().endswith(readme_command("image", "sbatch"))
    lines = lines[: lines.index("sbatch")]
    if kept := os.environ.get("DASF_HPC_TEST_IMAGE"):
        (clone / "dasf-hpc.sif").symlink_to(kept)
        lines = lines[: lines.index("dasf-hpc image build")]
    cache = Path(
        subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    binds, variables = f"{cache}:/media", "PIP_CACHE_DIR=/media"
    if certificates := os.environ.get("PIP_CERT"):  # a site whose proxy has one of its own
        binds += f",{Path(certificates).parent}:/mnt"
        variables += f" PIP_CERT=/mnt/{Path(certificates).name}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=clone, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1100,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MIRROR": debian_mirror(),
            "BUILD_VARIABLES": variables,
            "APPTAINER_BIND": binds,
            # Six seconds instead of forty, and a little larger.
            "APPTAINER_MKSQUASHFS_ARGS": "-Xcompression-level 1",
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}"


@pytest.fixture(scope="session")
def image(checkout: Path) -> Path:
    """Give the cpu image, built from this checkout with the versions of this environment."""
    return (checkout / "dasf-hpc.sif").resolve()


JOB = """
    import os, sys
    from distributed import Client

    def where(number):
        return os.environ.get("APPTAINER_CONTAINER", "outside"), sys.prefix

    with Client() as client:
        found = {*client.gather(client.map(where, range(40), pure=False)), where(0)}
    assert len(found) == 1, found
    print("all in", *found.pop())
"""


@pytest.mark.needs("slurm", "nsys", "apptainer")
def test_from_a_fresh_clone_to_a_report_with_the_readmes_commands(
    slurm: SlurmTestbed, checkout: Path
) -> None:
    (checkout / "job.py").write_text(textwrap.dedent(JOB))
    slurm.wait_until_idle()
    programs = f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    settings = {"INTERFACE": "lo", "MEMORY": "8GB", "NSYS": "true"}  # as a site's own file has them
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", readme_command("image", "sbatch")],
        cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
        env={
            **os.environ,
            **slurm.environment,
            **{f"DASF_HPC_{name}": value for name, value in settings.items()},
            "PATH": programs,
        },
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while slurm.queue():
        assert time.monotonic() < deadline, slurm.queue()
        time.sleep(0.2)
    said = "\n".join(path.read_text() for path in checkout.glob("slurm-*.out"))
    assert done.returncode == 0, done.stderr
    (run,) = (checkout / "runs").iterdir()
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["state"] == "complete", said
    assert f"all in {checkout / 'dasf-hpc.sif'} /opt/dasf-hpc" in (run / "logs/job.out").read_text()
    with open_trace(run) as trace:
        assert len(trace.tasks) == trace.reports["linked"].sum() == 40
        assert list(trace.reports["status"]) == ["joined"] * 2
        workers = trace.processes[trace.processes["role"] == "worker"]
        assert len(set(trace.nodes["hostname"].iloc[workers["node"]])) == 2
    report = (run / "report.html").read_text()
    assert report.startswith("<!doctype html>")
    assert run.name in report


@pytest.mark.needs("slurm", "nsys", "apptainer")
def test_workers_and_script_run_inside_with_blanks_in_all_paths(
    slurm: SlurmTestbed, image: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "job.py").write_text(textwrap.dedent(JOB))
    slurm.wait_until_idle()
    done = cli(
        "submit", "--on", "slurm", "--memory", "8GB", "--interface", "lo", "--nsys", "--no-report",
        "--image", str(image), "job.py", folder=folder, environment=slurm.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"all in {image} /opt/dasf-hpc" in done.stdout
    assert slurm.queue() == []
    (run,) = (folder / "runs").iterdir()
    with open_trace(run) as trace:
        assert len(trace.tasks) == trace.reports["linked"].sum() == 40
        assert list(trace.reports["status"]) == ["joined"]


@pytest.mark.needs("slurm", "nsys", "apptainer")
def test_the_doctor_looks_into_the_image(slurm: SlurmTestbed, image: Path, tmp_path: Path) -> None:
    words = ("doctor", "--on", "slurm", "--interface", "lo", "--nsys", "--json")
    done = cli(*words, "--image", str(image), folder=tmp_path, environment=slurm.environment)
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 0, checks
    found = {(check["where"], check["name"]): check["status"] for check in checks}
    assert found["login node", "apptainer"] == "ok"
    assert found["image", "image"] == found["image", "versions"] == "ok"
    assert found["image", "nvtx range"] in (
        "ok",
        "could not look",
    )  # its importer may lack libraries
    assert found["compute node", "trial job"] == "ok"
    broken = tmp_path / "broken.sif"
    broken.write_bytes(b"no image")
    done = cli(*words, "--image", str(broken), folder=tmp_path, environment=slurm.environment)
    found = {(c["where"], c["name"]): c["status"] for c in json.loads(done.stdout)["checks"]}
    assert done.returncode == 78
    assert found["image", "image"] == "fail"
    assert found["compute node", "trial job"] == "could not look"


@pytest.mark.needs("apptainer")
def test_other_versions_inside_are_told_before_anything_is_queued(
    image: Path, tmp_path: Path
) -> None:
    # Inside, and only there, another Dask comes before the image's.
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps"),
            *("-t", tmp_path / "other", "dask==2026.7.1"),
        ],
        stdin=subprocess.DEVNULL, check=True, timeout=120,
    )  # fmt: skip
    environment = {"APPTAINERENV_PYTHONPATH": str(tmp_path / "other")}
    (tmp_path / "job.py").write_text("print('never run')")
    words = ("--on", "local", "--image", str(image))
    done = cli("submit", *words, "job.py", folder=tmp_path, environment=environment)
    assert done.returncode == 74, done.stderr
    assert "dask 2026.7.1" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = cli("doctor", *words, "--json", folder=tmp_path, environment=environment)
    assert done.returncode == 78, done.stderr
    found = {(c["where"], c["name"]): c for c in json.loads(done.stdout)["checks"]}
    assert found["image", "versions"]["status"] == "fail"
    assert "dask 2026.7.1" in found["image", "versions"]["detail"]


@pytest.mark.needs("apptainer")
def test_the_image_runs_the_program_and_tells_its_versions(image: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["apptainer", "run", str(image), "--help"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "dasf-hpc" in done.stdout, done.stderr
    done = subprocess.run(
        ["apptainer", "inspect", "--labels", str(image)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    version = importlib.metadata.version("dasf-hpc")
    assert f"org.opencontainers.image.version: {version}" in done.stdout
    assert re.search(r"org.opencontainers.image.revision: [0-9a-f]{40}", done.stdout)
