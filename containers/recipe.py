"""The one recipe of all images: prints a definition for Apptainer or Docker.

``dasf-hpc image recipe`` calls it where hpccm is installed, and the ``.def`` files and Dockerfiles
beside it are what it gives::

    dasf-hpc image recipe --format apptainer --variant cuda13 > containers/cuda13.def
    dasf-hpc image recipe --format docker --variant cuda13 > containers/cuda13.Dockerfile
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import hpccm
from hpccm.building_blocks import apt_get
from hpccm.primitives import baseimage, copy, environment, label, raw, runscript, shell

#: Where the image's Python environment is.
ENVIRONMENT = "/opt/dasf-hpc"
#: Where the sources are while the image is made.
SOURCE = "/opt/dasf-hpc-source"
#: What of a checkout is installed.
PARTS = (
    *("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"),
    *("containers", "dasf_hpc", "lsf", "pbs", "slurm"),
)
#: Packages of the distribution that build it, and are not kept.
COMPILER = "gcc libc6-dev python3-dev"


@dataclass(frozen=True)
class Variant:
    """What differs between images.

    Attributes
    ----------
    base
        The Docker image that it starts from.
    system
        Packages of the distribution.
    python
        Packages of Python besides dasf-hpc's own; their versions stand in
        ``constraints-VARIANT.txt``.
    debian
        Release for Apptainer to start from instead of ``base``, without a registry of images.
    """

    base: str
    system: tuple[str, ...]
    python: tuple[str, ...] = ()
    debian: str | None = None


#: The CUDA images are Ubuntu 24.04, whose Python is 3.12. Where their names come from:
#:
#: - the base is CUDA without its libraries, as of RAPIDS' own images (rapidsai/docker, Dockerfile);
#:   both tags are in use by published projects;
#: - cuda-nsight-systems-X-Y is in the package source that these images have set up; it puts nsys on
#:   PATH, with its importer (2025.1 with 12.9, say published installation notes);
#: - dask-cuda[cuNN] and distributed-ucxx-cuNN are of dask-cuda's guide ("Installation", "Pip" and
#:   "UCXX Support"); the latter brings UCX (libucx-cuNN);
#: - cupy-cudaNNx[ctk] is CuPy's: the wheel alone wants a CUDA toolkit to be installed, which the
#:   base is not, and [ctk] brings it as packages of Python.
#:
#: The versions in constraints-VARIANT.txt are what pip resolves these and dasf-hpc's own to, for
#: Python 3.12 on Linux. The images themselves were not built.
VARIANTS = {
    "cpu": Variant("debian:bookworm-slim", ("python3", "python3-venv"), debian="bookworm"),
    "cuda12": Variant(
        "nvidia/cuda:12.9.1-base-ubuntu24.04",
        ("cuda-nsight-systems-12-9", "python3", "python3-venv"),
        ("dask-cuda[cu12]", "cupy-cuda12x[ctk]", "distributed-ucxx-cu12"),
    ),
    "cuda13": Variant(
        "nvidia/cuda:13.0.1-base-ubuntu24.04",
        ("cuda-nsight-systems-13-0", "python3", "python3-venv"),
        ("dask-cuda[cu13]", "cupy-cuda13x[ctk]", "distributed-ucxx-cu13"),
    ),
}

FORMATS = ("apptainer", "docker")


def recipe(container_format: str, variant: str) -> str:
    """Give the text of a definition.

    Parameters
    ----------
    container_format
        One of `FORMATS`.
    variant
        One of `VARIANTS`.
    """
    apptainer = container_format == "apptainer"
    hpccm.config.set_container_format("singularity" if apptainer else "docker")
    hpccm.config.set_linux_distro("ubuntu24")  # apt-get, all of them
    chosen = VARIANTS[variant]
    defaults = {
        "constraints": f"containers/constraints-{variant}.txt",
        "environment": "PIP_NO_CACHE_DIR=1",
        "revision": "unknown",
    }
    stage = hpccm.Stage()
    if apptainer and chosen.debian:
        # No image registry is needed; the mirror is the site's own, so it has no default.
        stage += raw(
            singularity=f"Bootstrap: debootstrap\nOSVersion: {chosen.debian}\n"
            "MirrorURL: {{ mirror }}"
        )
    else:
        stage += baseimage(image=chosen.base, _docker_env=False)
    settings = "\n".join(f"    {name}={value}" for name, value in defaults.items())
    arguments = "\n".join(f'ARG {name}="{value}"' for name, value in defaults.items())
    stage += raw(singularity=f"%arguments\n{settings}", docker=arguments)
    constraints, variables, revision = (
        ("{{ " + name + " }}") if apptainer else ("${" + name + "}") for name in defaults
    )
    if apptainer:  # Docker has arguments of its own for proxies
        stage += shell(commands=[f"export {variables}"], chdir=False)
    stage += apt_get(ospackages=list(chosen.system))
    for part in PARTS:
        stage += copy(src=part, dest=f"{SOURCE}/{part}")
    stage += copy(src=constraints, dest=f"{SOURCE}/constraints.txt")
    wanted = " ".join(f"'{name}'" for name in chosen.python)
    stage += shell(
        commands=[
            "apt-get update -y",
            f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {COMPILER}",
            f"python3 -m venv {ENVIRONMENT}",
            f"export {variables}",
            f"{ENVIRONMENT}/bin/pip install "
            f"--constraint {SOURCE}/constraints.txt {SOURCE} {wanted}".rstrip(),
            f"apt-get purge -y --auto-remove {COMPILER}",
            f"rm -r {SOURCE} /var/lib/apt/lists/*",
        ]
    )
    stage += environment(variables={"PATH": f"{ENVIRONMENT}/bin:$PATH"}, _export=False)
    stage += label(
        metadata={
            "org.opencontainers.image.title": f"dasf-hpc-{variant}",
            "org.opencontainers.image.version": version("dasf-hpc"),
            "org.opencontainers.image.revision": revision,
        }
    )
    stage += runscript(commands=["dasf-hpc"])
    # A trial of the whole way: also of nsys, where the image has it.
    runs = "--on local --runs-dir /tmp/dasf-hpc-image-test"
    stage += shell(
        commands=[
            f"export PATH={ENVIRONMENT}/bin:$PATH",
            f"dasf-hpc doctor {runs}",
            f"dasf-hpc submit {runs} example:seismic --shape 16 16 16",
            "rm -rf /tmp/dasf-hpc-image-test",
        ],
        _test=True,
    )
    return f"{stage}\n"
