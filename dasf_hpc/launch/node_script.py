"""Launch: what the batch script of a node job says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dask_jobqueue.core import Job
from distributed.security import Security

from dasf_hpc.launch.dask_settings import WORKERS
from dasf_hpc.launch.deadline import STARTED_VARIABLE, margin_seconds
from dasf_hpc.launch.node import UMASK_VARIABLE, users_umask
from dasf_hpc.launch.node_job import NAME_PLACE
from dasf_hpc.launch.quoting import shell_path, shell_word
from dasf_hpc.launch.shape import RunPlace, Shape
from dasf_hpc.launch.worker_command import node_command
from dasf_hpc.launch.worker_environment import ENVIRONMENT, FOLDER_VARIABLE
from dasf_hpc.launch.worker_options import CUDA_WORKER, named_words
from dasf_hpc.settings import Settings, walltime_seconds


class NodeScripts(ABC):
    """The part of a launcher that writes scripts; `Launcher` has the contract."""

    job_class: ClassVar[type[Job]]
    local: ClassVar[bool]
    settings: Settings
    place: RunPlace
    security: Security | None
    shape: Shape

    @abstractmethod
    def job_options(self) -> dict[str, Any]:
        """Give what goes into the job class besides what is common to all."""

    def common_options(self) -> dict[str, Any]:
        """Give the keywords for dask-jobqueue's job class that do not depend on the scheduler."""
        settings, shape, place = self.settings, self.shape, self.place
        python = place.python(settings)
        # Without the address a worker's HTTP server would listen for everybody.
        extra: list[str] = ["--dashboard-address", "127.0.0.1:0"]
        walltime = walltime_seconds(settings.walltime)
        margin = margin_seconds(walltime, settings.walltime_margin)
        options: dict[str, Any] = {
            "cores": shape.workers_per_node * shape.threads_per_worker,
            "processes": shape.workers_per_node,
            "memory": f"{shape.memory} B",
            "python": node_command(
                python,
                str(place.directory),
                NAME_PLACE,
                settings.nsys,
                settings.nsys_path,
                settings.nsys_arg,
                None if self.local else (walltime, margin),
                place.container.words() if place.container else (),
                settings.gpu_metrics_frequency if settings.gpu_metrics else None,
                settings.stacks,
            ),
            "job_script_prologue": [
                f"export {STARTED_VARIABLE}=${{EPOCHSECONDS:-$(date +%s)}}",
                f"export {UMASK_VARIABLE}={users_umask():04o}",
                "umask 077",
                *(f"export {name}={shell_word(value)}" for name, value in WORKERS.items()),
                f"cd -- {shell_word(str(place.working_directory))} || exit 1",
                *settings.prologue,
                *self._modules(),
            ],
            "log_directory": None,
            "worker_extra_args": extra,
            "death_timeout": 60,
        }
        if shape.gpus_per_node:
            options["worker_command"] = CUDA_WORKER
            options["job_script_prologue"].append(self.visible_gpus())
        if not settings.dashboard:
            extra.append("--no-dashboard")
        if settings.env:
            # Before what else is preloaded: that may need them.
            extra += ["--preload", "dasf_hpc.launch.worker_environment"]
            folder = shell_word(str(place.directory / ENVIRONMENT))
            options["job_script_prologue"].append(f"export {FOLDER_VARIABLE}={folder}")
        # dask-jobqueue pastes these unquoted into the script.
        extra += [shell_word(word) for word in (*named_words(settings), *settings.worker_arg)]
        if settings.local_directory:
            options["local_directory"] = shell_path(settings.local_directory)
        return options

    def job_script(self) -> str:
        """Give the batch script of a node job as it would be submitted."""
        job = self.job_class(
            f"{self._protocol() or 'tcp://'}SCHEDULER:PORT",
            name=f"{self.place.name}-0",
            launcher=self,
            security=self.security,
            interface=self.settings.interface,
            protocol=self._protocol(),
            **self.common_options(),
            **self.job_options(),
        )
        script: str = job.job_script()
        return script

    def _modules(self) -> list[str]:
        """Give the shell lines with which a node's Python sees what lies beside the script."""
        if self.place.script_folder is None:
            return []
        folder = shell_word(str(self.place.script_folder))
        return [f'export PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}"']

    def visible_gpus(self) -> str:
        """Give the shell line that names a node's GPUs, on each of which dask-cuda starts a worker.

        Some batch schedulers (PBS without its cgroups hook) name none, and dask-cuda would take all
        that the node has.
        """
        first = ",".join(map(str, range(self.shape.gpus_per_node)))
        return f'export CUDA_VISIBLE_DEVICES="${{CUDA_VISIBLE_DEVICES-{first}}}"'

    def _protocol(self) -> str | None:
        """Give the protocol as dask-jobqueue takes it; None for tcp, its own."""
        protocol = self.settings.protocol or ("tls" if self.security else "tcp")
        return None if protocol == "tcp" else f"{protocol}://"

    def scheduler_options(self) -> dict[str, Any]:
        """Give the options of the Dask scheduler."""
        options: dict[str, Any] = {
            "port": self.settings.scheduler_port,
            "dashboard": self.settings.dashboard,
            "dashboard_address": "127.0.0.1:0",
        }
        return options
