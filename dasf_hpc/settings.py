"""Settings: every option of a run once, with its type, unit, default and help.

Where an option is set, from strongest to weakest: the command line; an environment variable
``DASF_HPC_NAME``; ``dasf-hpc.toml`` in the working directory; ``~/.config/dasf-hpc/config.toml``;
``/etc/dasf-hpc/config.toml``; the default.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_serializer, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dasf_hpc.errors import SettingsError
from dasf_hpc.systems import SYSTEMS
from dasf_hpc.systems.base import PREFIX

#: Files read for settings, from weakest to strongest.
TOML_FILES = (
    Path("/etc/dasf-hpc/config.toml"),
    Path("~/.config/dasf-hpc/config.toml"),
    Path("dasf-hpc.toml"),
)

# [D-]HH:MM:SS, HH:MM:SS or MM:SS, as SLURM's sbatch(1) and OpenPBS's qsub(1B) both take them;
# the day form is SLURM's alone and is turned into hours for PBS.
_WALLTIME = re.compile(
    r"(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)", re.ASCII
)

#: Options of the worker command that a run sets itself, and the setting that says how, if one does.
SET_FOR_WORKERS: dict[str, str | None] = {
    "--contact-address": "interface",
    "--dashboard": "dashboard",
    "--dashboard-address": "dashboard",
    "--death-timeout": None,
    "--host": "interface",
    "--interface": "interface",
    "--lifetime": "walltime_margin",
    "--lifetime-restart": "on_walltime",
    "--lifetime-stagger": "walltime_margin",
    "--listen-address": "interface",
    "--local-directory": "local_directory",
    "--memory-limit": "memory",
    "--name": None,
    "--nanny": None,
    "--no-dashboard": "dashboard",
    "--no-lifetime-restart": "on_walltime",
    "--no-nanny": None,
    "--nthreads": "threads_per_worker",
    "--nworkers": "workers_per_node",
    "--protocol": "protocol",
    "--scheduler-file": None,
    "--tls-ca-file": "tls",
    "--tls-cert": "tls",
    "--tls-key": "tls",
}
#: With these it would print something and end.
_NO_WORKER = ("--help", "--version")

#: Variables that the system's loader, the C library, Python, Dask and NumPy's libraries read before
#: a worker runs a line of ours.
_READ_AT_START = (*("DASK_", "GLIBC_", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON"),)

#: Protocols over which Dask has no TLS.
UCX = ("ucx", "ucxx")


#: Topics of options, in the order in which a command's help tells them.
TOPICS = (
    WHERE := "Where",
    SIZE := "Size",
    TIME := "Time",
    PYTHON := "Python and image",
    GPUS := "GPUs",
    NETWORK := "Network",
    RECORDING := "nsys and recording",
    OUTPUT := "Output",
)


def shown(topic: str, metavar: str = "") -> dict[str, Any]:
    """Say how an option is shown: under which topic, and what stands for its value."""
    return {"topic": topic, "metavar": metavar}


class Settings(BaseSettings):
    """The settings of one run."""

    model_config = SettingsConfigDict(env_prefix="DASF_HPC_", extra="forbid")

    on: Literal["auto", "slurm", "pbs", "lsf", "local", "allocation"] = Field(
        "auto",
        description="Where the workers run; auto: SLURM where there is sbatch, PBS where there is "
        "qsub, LSF where there is bsub, else this machine; allocation: on the nodes of the batch "
        "job that this runs in.",
        json_schema_extra=shown(WHERE, "PLACE"),
    )
    profile: str | None = Field(
        None,
        description="Which section profile.NAME of the settings files to use, such as a site's.",
        json_schema_extra=shown(WHERE, "NAME"),
    )
    nodes: int = Field(
        1,
        ge=1,
        description="Number of node jobs, one batch job each.",
        json_schema_extra=shown(SIZE, "N"),
    )
    workers_per_node: int | None = Field(
        None,
        ge=1,
        description="Worker processes a node; default: one a GPU, or 1.",
        json_schema_extra=shown(SIZE, "N"),
    )
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="Threads of each worker that run tasks; default: 1, locally without GPUs this "
        "machine's cores shared out.",
        json_schema_extra=shown(SIZE, "N"),
    )
    memory: str | None = Field(
        None,
        description="Memory of one node job, such as 4GB; default: 4GB a worker, locally 80% of "
        "this machine's shared out.",
        json_schema_extra=shown(SIZE, "SIZE"),
    )
    gpus_per_node: int = Field(
        0,
        ge=0,
        description="GPUs a node; above 0 the workers are dask-cuda's, one a GPU.",
        json_schema_extra=shown(SIZE, "N"),
    )
    exclusive: bool = Field(
        False,
        description="Have every node job take a whole node, so that no two share one.",
        json_schema_extra=shown(WHERE),
    )
    walltime: str = Field(
        "00:30:00",
        description="Time limit of a node job, [D-]HH:MM:SS.",
        json_schema_extra=shown(TIME, "TIME"),
    )
    head_walltime: str | None = Field(
        None,
        description="Time limit of the head where it is a batch job (--detach, templates); what "
        "its nodes wait in the queue counts; default: that of a node job.",
        json_schema_extra=shown(TIME, "TIME"),
    )
    walltime_margin: float | None = Field(
        None,
        gt=0,
        description="Seconds before the walltime at which workers end, so that reports get "
        "written; default: 60, at most a quarter of the walltime.",
        json_schema_extra=shown(TIME, "SECONDS"),
    )
    on_walltime: Literal["stop", "replace"] = Field(
        "stop",
        description="When node jobs reach their walltime: stop the run, or replace them.",
        json_schema_extra=shown(TIME, "ACTION"),
    )
    on_lost: Literal["continue", "replace"] = Field(
        "continue",
        description="When a node job is lost (cancelled, node down): continue with the others, or "
        "replace it by a new one.",
        json_schema_extra=shown(TIME, "ACTION"),
    )
    partition: str | None = Field(
        None,
        description="SLURM partition, PBS or LSF queue.",
        json_schema_extra=shown(WHERE, "NAME"),
    )
    account: str | None = Field(
        None, description="Account to charge.", json_schema_extra=shown(WHERE, "NAME")
    )
    directive: list[str] = Field(
        [],
        description="One more directive for the batch script, such as --qos=debug; repeatable.",
        json_schema_extra=shown(WHERE, "TEXT"),
    )
    chunk: list[str] = Field(
        [],
        description="One more resource of the chunk that a PBS node job asks for, such as "
        "model=a100; ncpus and mem prevail over the run's own; repeatable.",
        json_schema_extra=shown(WHERE, "NAME=VALUE"),
    )
    gpu_resource: str | None = Field(
        None,
        description="What the site calls its GPUs where a node job asks for them, such as gpu:a100 "
        "on SLURM or gpus on PBS; default: gpu and ngpus.",
        json_schema_extra=shown(GPUS, "NAME"),
    )
    prologue: list[str] = Field(
        [],
        description="One more shell line to run before the workers, such as 'module load cuda'; "
        "repeatable.",
        json_schema_extra=shown(WHERE, "LINE"),
    )
    interface: str | None = Field(
        None,
        description="Network interface of scheduler and workers, such as ib0.",
        json_schema_extra=shown(NETWORK, "NAME"),
    )
    scheduler_port: int = Field(
        0,
        ge=0,
        le=65534,
        description="Port of the Dask scheduler; the next one tells the nodes the time; 0: any "
        "free ones.",
        json_schema_extra=shown(NETWORK, "PORT"),
    )
    tls: bool = Field(
        True,
        description="Encrypt and authenticate Dask's connections, with keys of this run.",
        json_schema_extra=shown(NETWORK),
    )
    protocol: Literal["tcp", "tls", "ucx", "ucxx"] | None = Field(
        None,
        description="Protocol between scheduler, workers and script; default: tls, tcp with "
        "--no-tls; ucx and ucxx have no TLS in Dask and want --no-tls.",
        json_schema_extra=shown(NETWORK, "NAME"),
    )
    dashboard: bool = Field(
        False,
        description="Serve Dask's dashboard on this host's loopback address.",
        json_schema_extra=shown(NETWORK),
    )
    worker_python: str | None = Field(
        None,
        description="Python of the workers; default: the one that runs dasf-hpc.",
        json_schema_extra=shown(PYTHON, "PATH"),
    )
    worker_arg: list[str] = Field(
        [],
        description="One more argument for the worker command (dask worker, or dask cuda worker "
        "with GPUs), such as '--worker-port=9000:9003'; repeatable.",
        json_schema_extra=shown(PYTHON, "ARG"),
    )
    resources: str | None = Field(
        None,
        description="Resources that each worker has for tasks that ask for some, such as 'GPU=1'; "
        "several: 'GPU=1 MEM=8e9'.",
        json_schema_extra=shown(SIZE, "NAME=N"),
    )
    preload: list[str] = Field(
        [],
        description="Module, or path of a Python file, that each worker loads at its start; "
        "repeatable.",
        json_schema_extra=shown(PYTHON, "MODULE"),
    )
    env: list[str] = Field(
        [],
        repr=False,
        description="Variable of workers and script, NAME=VALUE, or NAME for the value it has "
        "here; values are neither kept nor shown, nor in nsys's reports; repeatable.",
        json_schema_extra=shown(PYTHON, "NAME=VALUE"),
    )
    own_cluster: Literal["adopt", "record"] = Field(
        "adopt",
        description="When the script makes a cluster of its own (Client(n_workers=4), "
        "LocalCluster, LocalCUDACluster, SLURMCluster, PBSCluster), or no client at all: adopt has "
        "it use the run's; record lets it have its own, whose workers are recorded without nsys.",
        json_schema_extra=shown(PYTHON, "ACTION"),
    )
    rmm_pool_size: str | None = Field(
        None,
        description="GPU memory that RMM takes for each worker at its start, such as 20GB, or 0.8 "
        "of the GPU's; dask-cuda's workers only.",
        json_schema_extra=shown(GPUS, "SIZE"),
    )
    device_memory_limit: str | None = Field(
        None,
        description="GPU memory above which a worker spills to the host's, such as 20GB, or 0.8 "
        "of the GPU's; dask-cuda's workers only.",
        json_schema_extra=shown(GPUS, "SIZE"),
    )
    enable_nvlink: bool | None = Field(
        None,
        description="Have UCX use NVLink, or not; dask-cuda's workers only.",
        json_schema_extra=shown(GPUS),
    )
    enable_infiniband: bool | None = Field(
        None,
        description="Have UCX use InfiniBand, or not; dask-cuda's workers only.",
        json_schema_extra=shown(GPUS),
    )
    image: Path | None = Field(
        None,
        description="Apptainer image, a file or a sandbox folder, in which workers and script run.",
        json_schema_extra=shown(PYTHON, "PATH"),
    )
    local_directory: str | None = Field(
        None,
        description="Folder on the nodes for what workers spill, such as /scratch.",
        json_schema_extra=shown(PYTHON, "DIR"),
    )
    runs_dir: Path = Field(
        Path("runs"),
        description="Folder in which runs get their directories.",
        json_schema_extra=shown(OUTPUT, "DIR"),
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Start the job when this many workers are there; default: all.",
        json_schema_extra=shown(SIZE, "N"),
    )
    start_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds to wait for the workers; default: for ever.",
        json_schema_extra=shown(TIME, "SECONDS"),
    )
    node_timeout: float = Field(
        90.0,
        gt=0,
        description="Seconds without a sign of life, of a node job's script or of a worker of it, "
        "after which its node is taken for dead, whatever the queue shows.",
        json_schema_extra=shown(TIME, "SECONDS"),
    )
    stop_timeout: float = Field(
        300.0,
        gt=0,
        description="Seconds to wait at the end for reports to be written and jobs to leave the "
        "queue, before what is left is cancelled.",
        json_schema_extra=shown(TIME, "SECONDS"),
    )
    nsys: bool | None = Field(
        None,
        description="Run the workers under nsys profile; default: where nsys is there.",
        json_schema_extra=shown(RECORDING),
    )
    nsys_path: str | None = Field(
        None,
        description="The nsys to use; default: from PATH.",
        json_schema_extra=shown(RECORDING, "PATH"),
    )
    nsys_arg: list[str] = Field(
        [],
        description="One more argument for nsys profile, such as '--trace=nvtx'; repeatable.",
        json_schema_extra=shown(RECORDING, "ARG"),
    )
    gpu_metrics: bool = Field(
        False,
        description="Have nsys sample what the nodes' GPUs do (SMs, tensor cores, memory, NVLink, "
        "PCIe), where a node permits it.",
        json_schema_extra=shown(RECORDING),
    )
    gpu_metrics_frequency: int = Field(
        1000,
        ge=10,
        le=200_000,
        description="Samples of GPU metrics a second; each has some 20 values.",
        json_schema_extra=shown(RECORDING, "N"),
    )
    nvtx_message: Literal["prefix", "key"] = Field(
        "prefix",
        description="Message of the NVTX range around a task; key costs 0.7 kB and 10 us a task.",
        json_schema_extra=shown(RECORDING, "WORD"),
    )
    sample_interval: float = Field(
        100.0,
        gt=0,
        description="Milliseconds between samples of the nodes' resources.",
        json_schema_extra=shown(RECORDING, "MS"),
    )
    stacks: Literal["off", "dask", "nsys"] = Field(
        "dask",
        description="Which Python calls run in tasks and event loops is sampled: dask, as often as "
        "Dask's own profile does it; nsys, by nsys where that can; off: not at all.",
        json_schema_extra=shown(RECORDING, "BY"),
    )
    report: bool = Field(
        True,
        description="Write report.html, a page that shows the run, at its end.",
        json_schema_extra=shown(OUTPUT),
    )

    @field_validator("walltime", "head_walltime")
    @classmethod
    def _check_walltime(cls, value: str | None) -> str | None:
        if value is None:
            return None
        walltime_seconds(value)
        return value.strip()

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, value: str | None) -> str | None:
        if value is not None:
            from dask.utils import parse_bytes  # late: the command line completes words without

            try:
                size = parse_bytes(value)
            except (ValueError, OverflowError):
                raise ValueError("it is not an amount of memory such as 4GB") from None
            if size < 2**20:
                raise ValueError("it is less than a MiB; write a unit, such as 4GB")
        return value

    @field_validator("chunk", "gpu_resource")
    @classmethod
    def _check_resource(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value or []:
            if not re.fullmatch(r"[\w.=:+-]+", text, re.ASCII):
                raise ValueError("it is not the name of a resource, or NAME=VALUE")
        return value

    @field_validator("partition", "account", "interface", "directive", "prologue", "preload")
    @classmethod
    def _check_one_line(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value or []:
            if "\n" in text or "\r" in text or "\0" in text:
                raise ValueError("it must be one line")
        return value

    @field_validator("nsys_arg")
    @classmethod
    def _check_nsys_arg(cls, value: list[str]) -> list[str]:
        for word in value:
            if word.startswith("--output") or (word.startswith("-o") and not word.startswith("--")):
                raise ValueError("reports are named by dasf-hpc, one for each node job")
        return value

    @field_validator("worker_arg")
    @classmethod
    def _check_worker_arg(cls, value: list[str]) -> list[str]:
        for word in value:
            name = word.split("=")[0]
            if name in _NO_WORKER:
                raise ValueError(f"with {name} no worker starts")
            if name not in SET_FOR_WORKERS:
                continue
            ours = SET_FOR_WORKERS[name]
            if ours is None:
                raise ValueError(f"{name} is set by dasf-hpc itself")
            flag = f"--{ours.replace('_', '-')}"
            raise ValueError(f"{name} is set by dasf-hpc itself; {flag} is for that")
        return value

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, value: str | None) -> str | None:
        for pair in (value or "").replace(",", " ").split() if value is not None else []:
            name, _, number = pair.partition("=")
            if not name or not _is_number(number) or float(number) <= 0:
                raise ValueError("it is not NAME=NUMBER, such as 'GPU=1' or 'GPU=1 MEM=8e9'")
        if value is not None and not value.replace(",", " ").split():
            raise ValueError("it names none; write NAME=NUMBER, such as 'GPU=1'")
        return value

    @field_validator("rmm_pool_size", "device_memory_limit")
    @classmethod
    def _check_gpu_memory(cls, value: str | None) -> str | None:
        if value is None or value in ("auto", "default"):
            return value
        from dask.utils import parse_bytes

        try:
            size = float(value) if _is_number(value) else parse_bytes(value)
        except (ValueError, OverflowError):
            size = -1
        if not size >= 0:
            raise ValueError("it is neither an amount of memory, such as 20GB, nor a share as 0.8")
        return value

    @field_validator("preload")
    @classmethod
    def _check_preload(cls, value: list[str]) -> list[str]:
        if any(not module or module.startswith("-") for module in value):
            raise ValueError("it is neither a module nor the path of a Python file")
        return value

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: list[str]) -> list[str]:
        # No sentence here holds more than a name: values may be secret.
        whole = []
        for number, pair in enumerate(value, 1):
            name, equals, _ = pair.partition("=")
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"number {number} does not begin with a variable's name")
            if name.startswith("DASF_HPC_"):
                raise ValueError(f"{name} is dasf-hpc's own")
            if name.startswith(_READ_AT_START):
                raise ValueError(
                    f"{name} is read before a worker sets it: use --prologue 'export {name}=VALUE'"
                )
            if not equals and name not in os.environ:
                raise ValueError(f"there is no variable {name} here; write {name}=VALUE")
            whole.append(pair if equals else f"{name}={os.environ[name]}")
            if "\0" in whole[-1]:
                raise ValueError(f"the value of {name} holds a NUL")
        return whole

    @field_serializer("env")
    def _names_only(self, value: list[str]) -> list[str]:
        return [pair.partition("=")[0] for pair in value]

    @field_validator("partition", "account", "interface")
    @classmethod
    def _check_word(cls, value: str | None) -> str | None:
        # These go into directives, which batch schedulers split at blanks and do not unquote.
        if value is not None and not re.fullmatch(r"[\w.@:+,/-]+", value):
            raise ValueError("it may hold letters, digits and . _ - @ : + , / only")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line, then the environment, then the TOML files."""
        return (init_settings, env_settings, _Files(settings_cls, init_settings, env_settings))


class _Files(InitSettingsSource):
    """The TOML files, and over them the section of the profile that was chosen."""

    def __init__(
        self, settings_cls: type[BaseSettings], *stronger: PydanticBaseSettingsSource
    ) -> None:
        plain: dict[str, Any] = {}
        profiles: dict[str, dict[str, Any]] = {}
        for path in (path.expanduser() for path in TOML_FILES):
            if not path.is_file():
                continue
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            sections = content.pop("profile", {})
            if isinstance(sections, str):  # the profile to use where nothing else says so
                content["profile"], sections = sections, {}
            for name, section in sections.items():
                profiles.setdefault(name, {}).update(section)
            plain.update(content)
        sources = [*(source() for source in stronger), plain]
        chosen = next((found["profile"] for found in sources if found.get("profile")), None)
        if chosen is not None:
            if chosen not in profiles:
                known = ", ".join(sorted(profiles)) or "none"
                raise SettingsError(
                    f"There is no profile {chosen!r} in the settings files; there are: {known}."
                )
            plain.update(profiles[chosen])
        super().__init__(settings_cls, plain)


#: Settings by the names that dask-jobqueue gives them in its ``jobqueue.yaml``; an old name comes
#: after the one that took its place.
_JOBQUEUE = {
    "queue": "partition",
    "account": "account",
    "project": "account",
    "walltime": "walltime",
    "interface": "interface",
    "local-directory": "local_directory",
    "job-extra-directives": "directive",
    "job-extra": "directive",
    "job-script-prologue": "prologue",
    "env-extra": "prologue",
    "worker-extra-args": "worker_arg",
    "extra": "worker_arg",
    "job-mem": "memory",
    "memory": "memory",
}
#: Those for which a run has its own: what is said there holds for clusters that a script makes.
_NOT_TAKEN = {
    "death-timeout": "workers wait 60 s for their scheduler, which is there before them",
    "log-directory": "what node jobs say is in the run's own folder of logs",
    "resource-spec": "--memory, --threads-per-worker, --workers-per-node and --chunk are for that",
    "job-cpu": "--threads-per-worker and --workers-per-node are for that",
    "cores": "--threads-per-worker and --workers-per-node are for that",
    "processes": "--workers-per-node is for that",
    "python": "--worker-python is for that",
}
#: What dask-jobqueue's own jobqueue.yaml says of them where nobody has set them.
_AS_DASK_JOBQUEUE_HAS_IT = {"death-timeout": 60}

#: The beginning of variables that name a resource of workers.
_RESOURCES = "DASK_DISTRIBUTED__WORKER__RESOURCES__"


def with_jobqueue_yaml(settings: Settings, system: str) -> Settings:
    """Take what is not set from dask-jobqueue's own configuration of a batch scheduler.

    Raises
    ------
    SettingsError
        If a value there cannot be used.
    """
    found, known = _jobqueue_yaml(system), SYSTEMS.get(system)
    more: dict[str, Any] = {}
    for theirs, ours in _JOBQUEUE.items():
        if found.get(theirs) and ours not in settings.model_fields_set:
            more.setdefault(ours, found[theirs])
    if "worker_arg" in more:
        more["worker_arg"] = _jobqueue_words(more["worker_arg"])
    if known is not None and isinstance(more.get("walltime"), str):
        more["walltime"] = known.read_walltime(more["walltime"])
    if str(more.get("memory", "")).isdecimal():  # sbatch(1): a number alone is in MB
        more["memory"] = f"{more['memory']}MB"
    shebang = str(found.get("shebang") or "#!/bin/bash")
    if not re.match(r"#!\s*(\S*/)?(env\s+)?(bash|sh|ksh|zsh|dash)\b", shebang):
        raise SettingsError(
            f"In dask-jobqueue's configuration (shebang in jobqueue.yaml): {shebang!r} runs no "
            "shell of sh's kind, in which the scripts of node jobs are written."
        )
    skipped = found.get("job-directives-skip") or found.get("header-skip") or []
    for text in skipped:
        if known is not None and text in f"{known.mark} {known.name_option} {PREFIX}":
            raise SettingsError(
                "In dask-jobqueue's configuration (job-directives-skip in jobqueue.yaml): "
                f"{text!r} leaves out the name of a node job, by which a run knows its own."
            )
    try:
        Settings.model_validate(more)
    except ValidationError as error:
        said = error.errors()[0]
        where = next((t for t, o in _JOBQUEUE.items() if said["loc"][:1] == (o,) and o in more), "")
        where = f"{where} in jobqueue.yaml" if where else "jobqueue.yaml"
        raise SettingsError(
            f"In dask-jobqueue's configuration ({where}): {_sentence(said)}"
        ) from None
    return settings.model_copy(update=more)


def _jobqueue_yaml(system: str) -> dict[str, Any]:
    """Give dask-jobqueue's own configuration of a batch scheduler."""
    import dask

    found = dask.config.get(f"jobqueue.{system}", {}) or {}
    return {str(name).replace("_", "-"): value for name, value in found.items()}


def not_taken(system: str) -> list[str]:
    """Say what of dask-jobqueue's configuration of a batch scheduler a run does not heed."""
    found = _jobqueue_yaml(system)
    return [
        f"{name} in dask-jobqueue's configuration is not heeded: {why}"
        for name, why in _NOT_TAKEN.items()
        if found.get(name) and found[name] != _AS_DASK_JOBQUEUE_HAS_IT.get(name)
    ]


def lowered_resources(environment: Mapping[str, str]) -> list[str]:
    """Say which workers' resources a variable names otherwise than Dask takes them.

    Dask makes the names of its variables small (dask.config.collect_env).
    """
    given = {
        name.removeprefix(_RESOURCES): value
        for name, value in sorted(environment.items())
        if name.startswith(_RESOURCES)
    }
    return [
        f"{_RESOURCES}{name} gives workers the resource {name.lower()!r}, as Dask makes the names "
        f"of its variables small; --resources '{name}={value}' gives them {name!r}"
        for name, value in given.items()
        if name != name.lower()
    ]


def _jobqueue_words(entries: Any) -> list[str]:
    """Give the words of ``worker-extra-args``, which dask-jobqueue pastes into its script as it is.

    Ours are quoted: what only the shell on a node would fill in cannot be taken over.
    """
    entries = [entries] if isinstance(entries, str) else entries
    try:
        words = [word for entry in entries for word in shlex.split(str(entry))]
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"In dask-jobqueue's configuration, worker-extra-args in jobqueue.yaml: {error}."
        ) from None
    for word in words:
        if "$" in word or "`" in word:
            raise SettingsError(
                f"In dask-jobqueue's configuration, worker-extra-args in jobqueue.yaml: {word!r} "
                "would be filled in by a shell, which dasf-hpc does not do; to leave them out, set "
                "worker_arg = [] in dasf-hpc.toml."
            )
    return words


def from_jobqueue_yaml(name: str, given: Settings, taken: Settings) -> bool:
    """Say whether `with_jobqueue_yaml` took a setting from there.

    Parameters
    ----------
    name
        Of the setting.
    given, taken
        The settings that it was called with, and those that it gave.
    """
    return name not in given.model_fields_set and name in taken.model_fields_set


def settings_words(settings: Settings) -> list[str]:
    """Give the options that set these settings on a command line, wherever it is called."""
    words = []
    for name in Settings.model_fields:
        value, flag = getattr(settings, name), name.replace("_", "-")
        # A profile's settings are among the others; the values of env are to stand nowhere.
        if name not in settings.model_fields_set or value is None or name in ("profile", "env"):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}={one}" for one in values]
    return words


#: Settings of a run's workers that have no use where workers only merge.
OF_WORKERS = frozenset(
    {
        "device_memory_limit",
        "enable_infiniband",
        "enable_nvlink",
        "env",
        "preload",
        "protocol",
        "resources",
        "rmm_pool_size",
        "worker_arg",
    }
)

#: Settings of a run that say nothing of how its nodes are got.
OF_RECORDING = OF_WORKERS | frozenset(
    {
        "gpu_metrics",
        "gpu_metrics_frequency",
        "gpus_per_node",
        "head_walltime",
        "min_workers",
        "nsys",
        "nsys_arg",
        "nsys_path",
        "nvtx_message",
        "node_timeout",
        "on_lost",
        "on_walltime",
        "report",
        "runs_dir",
        "sample_interval",
        "stacks",
    }
)


def walltime_seconds(text: str) -> int:
    """Give the seconds of a time limit.

    Raises
    ------
    ValueError
        If the text is not [D-]HH:MM:SS, HH:MM:SS or MM:SS, or no time at all.
    """
    found = _WALLTIME.fullmatch(text.strip())
    if not found:
        raise ValueError("it is not a time; write [D-]HH:MM:SS, such as 00:30:00")
    parts = {name: int(value or 0) for name, value in found.groupdict().items()}
    if parts["seconds"] > 59 or (found["hours"] and parts["minutes"] > 59):
        raise ValueError("it is not a time; minutes and seconds go up to 59")
    seconds = ((parts["days"] * 24 + parts["hours"]) * 60 + parts["minutes"]) * 60 + parts[
        "seconds"
    ]
    if seconds == 0:
        raise ValueError("it is no time at all")
    return seconds


def _is_number(text: str) -> bool:
    """Say whether a text is a number that is finite."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def merging(settings: Settings) -> Settings:
    """Give the settings of workers that only merge, without what is for a run's own."""
    plain = {name: Settings.model_fields[name].get_default() for name in OF_WORKERS}
    return settings.model_copy(update={**plain, "nsys": False, "gpus_per_node": 0})


def clock_port(scheduler_port: int) -> int:
    """Give the port at which the nodes ask for the time: the scheduler's neighbour, 0 for any."""
    return scheduler_port + 1 if scheduler_port else 0


def load_settings(given: dict[str, Any]) -> Settings:
    """Put the settings together from the command line, environment, files and defaults.

    Parameters
    ----------
    given
        What the command line set.

    Raises
    ------
    SettingsError
        One sentence on the first option that cannot be used.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_sentence(error.errors()[0])) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        files = ", ".join(str(path) for path in TOML_FILES if path.expanduser().is_file())
        raise SettingsError(f"A settings file ({files}) cannot be read as TOML: {error}.") from None
    except Exception as error:  # pydantic-settings wraps what a source could not parse
        if type(error).__name__ == "SettingsError":
            raise SettingsError(
                f"A variable DASF_HPC_… cannot be read: {error} (a list is written as JSON, such "
                "as '[\"--qos=debug\"]')."
            ) from None
        raise


def _sentence(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else "a setting"
    if error["type"] == "extra_forbidden":
        known = sorted(Settings.model_fields)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"There is no setting {name!r}; {hint}the settings are: {', '.join(known)}."
    reason = error["msg"].removeprefix("Value error, ")
    if name == "env":  # what was given may be secret
        return f"Option --env cannot be used: {reason}."
    reason = reason[:1].lower() + reason[1:]
    return f"Option --{name.replace('_', '-')} is {error['input']!r}: {reason}."
