"""Launch: where a run keeps its things, and how many workers of what size it has."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from dask.utils import parse_bytes

from dasf_hpc.errors import SettingsError
from dasf_hpc.launch.image import PYTHON, Container
from dasf_hpc.settings import Settings


@dataclass(frozen=True)
class RunPlace:
    """Where a run keeps its things.

    Attributes
    ----------
    directory
        The run's directory, seen by head and nodes under this path.
    name
        The run's name.
    working_directory
        Where the user called us; the workers start there.
    container
        The image in which workers and script run; None for none.
    script_folder
        Where Python looks for modules first, as it does for ``python SCRIPT``; None for nowhere.
    """

    directory: Path
    name: str
    working_directory: Path
    container: Container | None = None
    script_folder: Path | None = None

    def python(self, settings: Settings) -> str:
        """Give the Python of workers and script."""
        return settings.worker_python or (PYTHON if self.container else sys.executable)

    def python_words(self, settings: Settings) -> list[str]:
        """Give the words that run that Python on this host, in the image where there is one."""
        words = self.container.words() if self.container else []
        return [*words, self.python(settings)]


@dataclass(frozen=True)
class Shape:
    """How many workers of what size, all defaults filled in.

    Attributes
    ----------
    nodes, workers_per_node, threads_per_worker, gpus_per_node
        Numbers.
    memory
        Bytes of one node job.
    """

    nodes: int
    workers_per_node: int
    threads_per_worker: int
    gpus_per_node: int
    memory: int

    @property
    def workers(self) -> int:
        """Number of worker processes of the run."""
        return self.nodes * self.workers_per_node


def run_shape(settings: Settings, local: bool) -> Shape:
    """Fill in the defaults of a run's shape.

    Raises
    ------
    SettingsError
        If what was asked for contradicts itself.
    """
    workers = settings.workers_per_node or settings.gpus_per_node or 1
    if settings.gpus_per_node and workers != settings.gpus_per_node:
        raise SettingsError(
            f"Option --workers-per-node is {workers} and --gpus-per-node {settings.gpus_per_node}: "
            "with GPUs there is one worker a GPU, so leave --workers-per-node out."
        )
    threads = settings.threads_per_worker
    if threads is None:
        cores = psutil.cpu_count() or 1
        # one for a GPU, as dask-cuda has it: threads that share one wait for each other
        alone = local and not settings.gpus_per_node
        threads = max(1, cores // (workers * settings.nodes)) if alone else 1
    if settings.memory is not None:
        memory = parse_bytes(settings.memory)
    elif local:
        memory = int(psutil.virtual_memory().total * 0.8 / settings.nodes)
    else:
        memory = workers * 4 * 10**9
    return Shape(settings.nodes, workers, threads, settings.gpus_per_node, memory)
