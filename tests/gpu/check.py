"""All steps of a check of a GPU machine; `check.sh` beside this starts it and tells of it.

It runs with a Python that has nothing installed, makes an environment with dasf-hpc from the
wheels, and runs everything else with that. Every step is bounded in time, and whatever it does the
next one follows. ``python -m gpu.check WHEELS RESULTS WORK [NSYS]`` with `tests` on the path.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gpu import programs
from gpu.results import COULD_NOT, FAILED, OK, WHEELS_MISSING, Limits, Results, Step
from gpu.wheels import ROOT, missing_wheels, pip_of

#: Signals that ask it to end.
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Asked of the driver itself, by a process of its own: a driver that hangs is ended with it.
DRIVER = """
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    sys.exit(f"no NVIDIA driver ({error})")
code, count, version = cuda.cuInit(0), ctypes.c_int(), ctypes.c_int()
if code:
    sys.exit(f"no NVIDIA driver that can be used (cuInit gave {code})")
cuda.cuDeviceGetCount(ctypes.byref(count))
cuda.cuDriverGetVersion(ctypes.byref(version))
if not count.value:
    sys.exit("no NVIDIA GPU that CUDA can see")
name = ctypes.create_string_buffer(256)
cuda.cuDeviceGetName(name, 256, 0)
print(f"{count.value} GPU, {name.value.decode()}, "
      f"CUDA {version.value // 1000}.{version.value % 1000 // 10} of the driver")
"""

#: What the example needs of CuPy: a compiled kernel, an FFT and a copy back.
CUPY_WORKS = """
import cupy
x = (cupy.arange(4096, dtype="float32") % 7).reshape(8, 512)
y = cupy.fft.ifft(cupy.fft.fft(x, axis=-1), axis=-1).real
assert float(abs(y - x).max()) < 1e-3, "CuPy's FFT is wrong"
print(f"CuPy {cupy.__version__}, CUDA runtime {cupy.cuda.runtime.runtimeGetVersion()}, "
      "compiles kernels and has cuFFT")
"""

NSYS_STATE = """
import json, sys
from dasf_hpc.nsight.export import NsysState, find_nsys
nsys = find_nsys(sys.argv[1])
print(json.dumps([nsys.sentence, nsys.profiles, nsys.state is NsysState.READY]))
"""

#: Where CUDA's packages put an nsys that is on no PATH; that of Nsight Compute has no importer.
NSYS_PLACES = (
    "/usr/local/cuda/bin/nsys",
    "/usr/local/cuda-*/bin/nsys",
    "/opt/nvidia/nsight-systems*/*/bin/nsys",
    "/opt/nvidia/nsight-systems*/*/target-linux-*/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-*/nsys",
    "/usr/local/cuda*/nsight-compute*/host/target-linux-*/nsys",
)

#: Seconds a step may take: a guess from the same steps without a GPU, some times over.
LIMITS_S = {
    "environment": 240.0,
    "gpu": 60.0,
    "cupy": 90.0,
    "nsys": 90.0,
    "doctor": 120.0,
    "example": 180.0,
    "tests": 180.0,
    "benchmark": 200.0,
}
#: Kept for packing the results.
PACKING_S = 15.0

#: Exit codes of dasf-hpc (its errors.py): a check failed; what was recorded is not whole.
DOCTOR_FAILED, PARTIAL = 78, 80


class Told(Exception):
    """The check was asked to end."""


class Check:
    """The steps, and what they know of each other.

    Parameters
    ----------
    wheels, work
        Folders.
    results
        Where everything goes.
    nsys
        What was named as nsys.
    """

    def __init__(self, wheels: Path, results: Results, work: Path, nsys: Path | None) -> None:
        self.wheels, self.results, self.work, self.named = wheels, results, work, nsys
        given = os.environ
        self.preinstalled = preinstalled() if given.get("SYSTEM_SITE_PACKAGES") else []
        self.rehearse = bool(given.get("REHEARSE"))
        self.deadline = time.monotonic() + float(given.get("TIME_S", 560))
        self.environment = {
            name: value
            for name, value in given.items()
            if name.startswith(("CUDA_", "LD_LIBRARY_PATH"))
            or name in ("PATH", "HOME", "TMPDIR", "LANG")
        }
        self.logs = work / "logs"
        self.logs.mkdir()
        self.venv = work / "venv"
        self.python = self.venv / "bin" / "python"
        self.cupy = ""
        self.nsys: Path | None = None
        self.importer = False
        #: Why later steps cannot be done, each by what is lacking.
        self.lacking: dict[str, str] = {}

    # -- the frame of a step

    def step(self, name: str, needs: Sequence[str], act: Callable[[], Step]) -> Step:
        """Do a step, whatever comes of it, and write it down."""
        begun = time.monotonic()
        why = next((self.lacking[need] for need in needs if need in self.lacking), "")
        if not why and self.left() < 5:
            why = "no time left (TIME_S gives more)"
        if why:
            step = Step(name, COULD_NOT, 0.0, why)
        else:
            print(f"{name} ...", flush=True)
            try:
                step = act()
            except Told:
                self.results.steps.append(Step(name, FAILED, 0.0, "it was told to end"))
                raise
            except Exception as error:  # the next step is worth having all the same
                step = Step(name, FAILED, 0.0, f"{type(error).__name__}: {error}")
        step.seconds = round(time.monotonic() - begun, 1)
        self.results.steps.append(step)
        self.results.write()
        print(f"{name}: {step.state}. {step.reason}", flush=True)
        return step

    def left(self) -> float:
        """Seconds that are left for steps."""
        return self.deadline - PACKING_S - time.monotonic()

    def run(
        self, step: str, words: Sequence[str | Path], more: dict[str, str] | None = None
    ) -> programs.Ran:
        """Run a program of a step, with its output in the step's log."""
        limit = max(1.0, min(LIMITS_S[step], self.left()))
        ran = programs.run(
            [str(word) for word in words],
            self.logs / f"{step}.log",
            limit,
            {**self.environment, **(more or {})},
            self.work,
        )
        if ran.code is None:
            raise TimeoutError(f"not done after {limit:.0f} s; {ran.last}")
        return ran

    @property
    def no_gpu(self) -> str:
        """Why a step that needs a GPU does not count; empty where there is one."""
        return self.lacking.get("gpu", "")

    def of_gpu(self, step: Step) -> Step:
        """Give a step its place in a rehearsal: what went well without a GPU does not count."""
        if self.no_gpu and step.state == OK:
            step.state = COULD_NOT
            step.reason = f"{self.no_gpu}; rehearsed without: {step.reason}"
        return step

    # -- the steps

    def environment_step(self) -> Step:
        """Make the environment: packages of the wheels, and of this Python where it was told so."""
        wheel = pip_of(self.wheels)
        self.run("environment", [sys.executable, "-s", "-m", "venv", "--without-pip", self.venv])
        if self.preinstalled:
            (packages,) = self.venv.glob("lib/python*/site-packages")
            lines = [f"import site; site.addsitedir({folder!r})" for folder in self.preinstalled]
            (packages / "preinstalled.pth").write_text("\n".join(lines) + "\n")
        if wheel is not None:
            pip: list[str | Path] = [self.python, wheel / "pip"]
        else:
            pip = [sys.executable, "-m", "pip", "--python", self.python]
        options = ["--no-index", "--find-links", str(self.wheels), "--no-compile", "--no-cache-dir"]
        ran = self.run(
            "environment",
            [*pip, "install", "--disable-pip-version-check", "--no-warn-script-location", *options,
             f"{ROOT}[gpu,test]", self.cupy],
            {"PIP_CONFIG_FILE": os.devnull},
        )  # fmt: skip
        if ran.code != 0:
            return Step("environment", FAILED, 0, f"pip: {ran.last}")
        (packages,) = self.venv.glob("lib/python*/site-packages")
        link_cuda(packages, self.preinstalled)
        ran = self.run(
            "environment",
            [self.python, "-c", "import importlib.metadata as m; print(', '.join(sorted("
             "f'{d.name} {d.version}' for d in m.distributions() if d.name in "
             "('dask', 'distributed', 'dask-cuda', 'numpy', 'nvtx', 'cuda-bindings') "
             "or d.name.startswith('cupy'))))"],
        )  # fmt: skip
        return Step("environment", OK, 0, ran.last)

    def gpu_step(self) -> Step:
        """Ask the driver."""
        ran = self.run("gpu", [sys.executable, "-c", DRIVER])
        if shutil.which("nvidia-smi"):
            with contextlib.suppress(OSError, TimeoutError):
                self.run("gpu", ["nvidia-smi"])
        return Step("gpu", COULD_NOT if ran.code else OK, 0, ran.last)

    def cupy_step(self) -> Step:
        """Compile and run a kernel."""
        ran = self.run("cupy", [self.python, "-c", CUPY_WORKS])
        return Step("cupy", FAILED if ran.code else OK, 0, ran.last)

    def nsys_step(self) -> Step:
        """Find nsys: what was named, unpacked where it is a package, or what is on the machine."""
        found = find_nsys(self.named, self.unpack)
        if found is None:
            where = str(self.named) if self.named else "PATH and where CUDA's packages put it"
            return Step("nsys", COULD_NOT, 0, f"no nsys in {where}; name one as third argument")
        ran = self.run("nsys", [self.python, "-c", NSYS_STATE, found])
        if ran.code:
            return Step("nsys", FAILED, 0, ran.last)
        sentence, profiles, self.importer = ran.document
        if not profiles:
            return Step("nsys", FAILED, 0, sentence)
        self.nsys = found
        # tests look for it on PATH
        self.environment["PATH"] = f"{found.parent}:{self.environment['PATH']}"
        return Step("nsys", OK, 0, sentence)

    def unpack(self, packages: Sequence[Path]) -> Path:
        """Unpack .deb files into a folder of the work."""
        into = self.work / "nsys"
        into.mkdir(exist_ok=True)
        for package in packages:
            if shutil.which("dpkg-deb"):
                ran = self.run("nsys", ["dpkg-deb", "-x", package, into])
            else:
                unpack = 'ar p "$1" "$(ar t "$1" | grep "^data.tar")" | tar -x -C "$2" '
                kind = subprocess.run(["ar", "t", package], capture_output=True, text=True).stdout
                filters = {"zst": "--zstd", "xz": "--xz", "gz": "--gzip"}
                option = next((o for end, o in filters.items() if f"data.tar.{end}" in kind), "")
                ran = self.run("nsys", ["sh", "-c", unpack + option, "sh", package, into])
            if ran.code:
                raise RuntimeError(f"{package.name} cannot be unpacked: {ran.last}")
        return into

    @property
    def _dasf_hpc(self) -> list[str | Path]:
        return [self.python, "-m", "dasf_hpc.cli"]

    @property
    def _shape(self) -> list[str | Path]:
        words: list[str | Path] = ["--on", "local"]
        if not self.no_gpu:
            words += ["--gpus-per-node", "1"]
        return [*words, *(["--nsys-path", self.nsys] if self.nsys else ["--no-nsys"])]

    def doctor_step(self) -> Step:
        """Have the doctor look."""
        words = [*self._dasf_hpc, "doctor", *self._shape, "--runs-dir", self.work / "doctor-runs"]
        ran = self.run("doctor", [*words, "--json"])
        try:
            checks = json.JSONDecoder().raw_decode(ran.output, ran.output.index("{"))[0]["checks"]
        except (ValueError, LookupError):
            return Step("doctor", FAILED, 0, ran.last)
        (self.logs / "doctor.json").write_text(json.dumps(checks, indent=1))
        by_state: dict[str, list[str]] = {}
        for check in checks:
            by_state.setdefault(check["status"], []).append(
                f"{check['name']} ({check['where']}): {check['detail']}"
            )
        counts = ", ".join(f"{len(names)} {state}" for state, names in by_state.items())
        bad = by_state.get("fail", [])
        figures = {state: names for state, names in by_state.items() if state != "ok"}
        of_gpus = [c["detail"] for c in checks if c["name"] in ("gpu", "nvml", "mig")]
        figures["gpu checks"] = list(dict.fromkeys(of_gpus))
        step = Step("doctor", FAILED if bad else OK, 0, counts, figures)
        if ran.code not in (0, DOCTOR_FAILED):
            step = Step("doctor", FAILED, 0, ran.last, figures)
        return self.of_gpu(step)

    def example_step(self) -> Step:
        """Run the example, as the README does, and look at what was recorded."""
        runs = self.work / "runs"
        words = [*self._dasf_hpc, "submit", *self._shape, "--runs-dir", runs]
        if self.nsys and not self.importer:
            # With the operating system's calls a .qdstrm holds 22 MB of programs and libraries,
            # which hardly shrink (measured with 2022.4).
            words.append(f"--nsys-arg=--trace={'nvtx' if self.no_gpu else 'cuda,nvtx'}")
        words += ["example:seismic", *([] if self.no_gpu else ["--gpu"])]
        ran = self.run("example", words)
        directories = sorted(runs.glob("*/run.json"))
        if not directories:
            return Step("example", FAILED, 0, ran.last)
        directory = directories[-1].parent
        streams = self.keep_run(directory)
        if ran.code not in (0, PARTIAL):
            return Step("example", FAILED, 0, f"exit code {ran.code}: {ran.last}")
        seen = self.run("example", [self.python, ROOT / "tests" / "gpu" / "look.py", directory])
        if seen.code:
            return Step("example", FAILED, 0, seen.last)
        figures = seen.document
        reports = [r for r in figures.pop("reports") or [] if r["status"] != "joined"]
        unimported = streams and not self.importer
        problems = list(figures.pop("missing"))
        problems += [f"{r['file']}: {r['sentence']}" for r in reports if not unimported]
        if unimported:  # the only thing that may be missing
            problems = [p for p in problems if not p.endswith("reports")]
        if not self.no_gpu:
            if "computed with CuPy" not in ran.output:
                problems.append("the blocks were not computed with CuPy")
            if not figures["gpu samples"]:
                problems.append("the GPU was not sampled")
            if self.nsys and not unimported:
                if not figures["kernels under a task"]:
                    problems.append("no kernel is under a task")
                if not figures["copies"]:
                    problems.append("no copy was recorded")
        if problems:
            return Step("example", FAILED, 0, "; ".join(problems), figures)
        how = "its report is joined"
        if unimported:
            how = "its report is left as .qdstrm, without the operating system's calls"
        reason = f"{figures['tasks']} tasks; {how if self.nsys else 'without nsys'}"
        return self.of_gpu(Step("example", OK, 0, reason, figures))

    def keep_run(self, directory: Path) -> bool:
        """Put a run's files among the results; gives whether its report is still a .qdstrm."""
        keep = self.results.keep
        for name in ("run.json", "trace.h5", "report.html"):
            if (directory / name).exists():
                keep(directory / name, name)
        whole = sorted((directory / "nsight").glob("*.nsys-rep"))
        streams = sorted((directory / "nsight").glob("*.qdstrm"))
        for report in [*whole, *(streams if not whole else [])]:
            if not os.environ.get("ALONE"):
                self.results.notes.append(
                    "left out: the Nsight report, which holds other processes' variables: no PID "
                    "namespace could be made (unshare)"
                )
                break
            kept = self.results.keep_packed(report, f"report{report.suffix}", self.work)
            if kept and report in streams:
                self.results.notes.append(
                    "report.qdstrm.xz is to be imported where there is a whole Nsight Systems of "
                    f"this version or newer: tar -xf run.tar.gz; xz -dc report.qdstrm.xz > "
                    f"{directory.name}/nsight/{report.name}; dasf-hpc merge {directory.name}"
                )
        left = (".nsys-rep", ".qdstrm", ".sqlite", ".h5", ".html")
        self.results.pack("run.tar.gz", self.work, directory, lambda p: p.suffix not in left)
        return bool(streams) and not whole

    def tests_step(self) -> Step:
        """Run the tests that need a GPU; one that skips has not been run."""
        files = sorted(
            path
            for path in (ROOT / "tests").rglob("test_*.py")
            if "pytest.mark.gpu" in path.read_text()
        )
        ran = self.run(
            "tests",
            [self.python, "-m", "pytest", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider",
             "--rootdir", ROOT, "-c", ROOT / "pyproject.toml",
             "--basetemp", self.work / "pytest", *files],
            {} if self.no_gpu else {"DASF_HPC_REQUIRE": "gpu,nsys"},
        )  # fmt: skip
        said = ran.last.strip("= ")
        return self.of_gpu(Step("tests", FAILED if ran.code else OK, 0, said))

    def benchmark_step(self) -> Step:
        """Measure what the plugins and nsys cost tasks that launch kernels."""
        into = self.work / "benchmark.json"
        words: list[str | Path] = [
            self.python, ROOT / "tests" / "benchmarks" / "recording_kernels.py", "--json", into,
        ]  # fmt: skip
        if self.nsys:
            words += ["--nsys", self.nsys]
        if self.no_gpu:
            words += ["--on", "host", "--rounds", "2", "--tasks", "20"]
        words += ["--seconds", f"{min(LIMITS_S['benchmark'], self.left()) - 40:.0f}"]
        ran = self.run("benchmark", words)
        if ran.code:
            return Step("benchmark", FAILED, 0, ran.last)
        shutil.copyfile(into, self.logs / into.name)
        figures: dict[str, Any] = {}
        for label, variants in json.loads(into.read_text()).items():
            for name, row in variants.items():
                if isinstance(row, dict):
                    ratio, added = row["ratio"], row["us_a_kernel_added"]
                    figures[f"{label}, {name}"] = (
                        f"{row['tasks_per_s']['median']:.1f} tasks/s, "
                        f"{ratio['median']:.3f} of bare "
                        f"({ratio['low']:.3f} to {ratio['high']:.3f}), "
                        f"{added['median']:+.2f} us a kernel"
                    )
        how = "all three plugins and nsys" if self.nsys else "all three plugins, without nsys,"
        reason = f"{how} over bare, in {variants['rounds']} rounds of each size: see the figures"
        return self.of_gpu(Step("benchmark", OK, 0, reason, figures))

    # -- all of them

    def all(self) -> None:
        """Do every step."""
        facts = self.results.facts
        facts["Python"] = f"{platform.python_version()} ({sys.executable})"
        facts["system"] = " ".join([platform.system(), platform.release(), *platform.libc_ver()])
        facts["variables that profiled processes had"] = " ".join(sorted(self.environment))
        if self.preinstalled:
            facts["packages taken from"] = " ".join(self.preinstalled)
        wheels = self.step("wheels", (), self.wheels_step)
        if wheels.state != OK:
            return
        gpu = self.step("gpu", (), self.gpu_step)
        if gpu.state != OK:
            self.lacking["gpu"] = gpu.reason
            if not self.rehearse:
                self.lacking["a GPU to count"] = gpu.reason
        needs = ["a GPU to count", "environment"]
        if self.step("environment", (), self.environment_step).state != OK:
            self.lacking["environment"] = "there is no environment"
        if (
            self.step("cupy", ("gpu", "environment"), self.cupy_step).state != OK
            and not self.no_gpu
        ):
            self.lacking["cupy"] = "CuPy cannot be used (see step cupy)"
        self.step("nsys", ("environment",), self.nsys_step)
        self.step("doctor", needs, self.doctor_step)
        self.step("example", [*needs, "cupy"], self.example_step)
        if self.nsys is None:
            self.lacking["nsys"] = "no nsys (see step nsys)"
        elif not self.importer:
            self.lacking["importer"] = f"{self.nsys} cannot import its reports here"
        self.step("tests", [*needs, "nsys", "importer"], self.tests_step)
        self.step("benchmark", [*needs, "cupy"], self.benchmark_step)

    def wheels_step(self) -> Step:
        """Look for every wheel before anything takes long."""
        try:
            missing, self.cupy = missing_wheels(self.wheels, self.preinstalled)
        except ImportError:
            return Step("wheels", FAILED, 0, f"there is no pip: put its wheel into {self.wheels}")
        if missing:
            return Step("wheels", FAILED, 0, f"{len(missing)} missing", {"missing": missing})
        size = sum(path.stat().st_size for path in self.wheels.glob("*.whl"))
        return Step("wheels", OK, 0, f"all there, {size / 2**20:.0f} MiB, with {self.cupy}")


def link_cuda(packages: Path, folders: Sequence[str]) -> None:
    """Let CUDA's libraries that a Python has as packages be found from the new environment.

    CuPy and CUDA's bindings look for them in the environment's own folder of packages alone
    (cuda-pathfinder 1.9). This is for after pip has run: it would write through the link.
    """
    for folder in folders:
        if (Path(folder) / "nvidia").is_dir() and not (packages / "nvidia").exists():
            (packages / "nvidia").symlink_to(Path(folder) / "nvidia")


def find_nsys(named: Path | None, unpack: Callable[[Sequence[Path]], Path]) -> Path | None:
    """Find nsys in what was named: the program, a package, or a folder of either."""
    if named is None:
        on_path = shutil.which("nsys")
        places = [path for place in NSYS_PLACES for path in sorted(Path("/").glob(place[1:]))[::-1]]
        return Path(on_path) if on_path else next((p for p in places if runs(p)), None)
    if named.suffix == ".deb":
        named = unpack([named])
    elif named.is_file():
        return named
    found = nsys_below(named)
    if found is None and (packages := sorted(named.glob("*.deb"))):
        found = nsys_below(unpack(packages))
    return found


def nsys_below(folder: Path) -> Path | None:
    """Find the program in a folder; the one that lies beside its own libraries comes first."""
    found = [path for path in sorted(folder.rglob("nsys")) if runs(path)]
    found.sort(key=lambda path: not path.parent.name.startswith("target-linux-"))
    return found[0] if found else None


def runs(path: Path) -> bool:
    """Say whether a path names a program."""
    return path.is_file() and os.access(path, os.X_OK)


def preinstalled() -> list[str]:
    """List the folders of packages that this Python has, those of a caller's PYTHONPATH first.

    An environment made from an environment sees the packages of the system's Python only, so they
    are named to it one by one.
    """
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [folder for folder in os.environ.get("PREINSTALLED", "").split(":") if folder]
    folders += [str(home / ".local" / "lib" / version / "site-packages"), *site.getsitepackages()]
    return [f for f in dict.fromkeys(folders) if os.path.isdir(f)]  # noqa: PTH112 no error where it is not ours


def told_to_end(number: int, frame: FrameType | None) -> None:
    """Make an exception of a signal, once: results are packed meanwhile."""
    deaf()
    raise Told


def deaf() -> None:
    """Hear no more signals: packing is short, and so is cleaning up."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def main(words: Sequence[str]) -> int:
    """Check, and leave the results."""
    wheels, folder, work = (Path(word) for word in words[:3])
    os.umask(0o077)
    results = Results(folder, Limits.from_environment())
    for number in ENDINGS:
        signal.signal(number, told_to_end)
    programs.adopt_orphans()
    check = Check(wheels, results, work, Path(words[3]) if len(words) > 3 else None)
    try:
        check.all()
    except Told:
        results.notes.append("the check was told to end before it was done")
    finally:
        deaf()
        programs.end_descendants()
        if any(check.logs.iterdir()):
            results.pack("logs.tar.gz", work, check.logs)
        results.write()
        if not os.environ.get("KEEP"):
            shutil.rmtree(work, ignore_errors=True)
    print("\n".join(["", *results.lines()]))
    missing: Any = results.steps[0].figures.get("missing") if results.steps else None
    return WHEELS_MISSING if missing else results.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
