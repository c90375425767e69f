"""Launch: node jobs that a batch system holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from dasf_hpc.launch.launcher import Launcher
from dasf_hpc.launch.node_job import NodeJob
from dasf_hpc.settings import walltime_seconds
from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.request import Request
from dasf_hpc.systems.states import JobStatus


class BatchLauncher(Launcher):
    """Node jobs of a batch system; see `Launcher` for the contract."""

    system: ClassVar[BatchSystem]

    def request(self) -> Request:
        """Give what one node job asks for."""
        settings, shape = self.settings, self.shape
        return Request(
            cores=shape.workers_per_node * shape.threads_per_worker,
            memory=shape.memory,
            gpus=shape.gpus_per_node,
            exclusive=settings.exclusive,
            walltime=settings.walltime,
            seconds=walltime_seconds(settings.walltime),
            partition=settings.partition,
            account=settings.account,
            directives=tuple(settings.directive),
            chunk=tuple(settings.chunk),
            gpu_resource=settings.gpu_resource,
        )

    def job_options(self) -> dict[str, Any]:
        """Have the batch system say what it is asked for."""
        return self.system.job_options(self.request())

    async def ask(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask it for all jobs at once."""
        return await asyncio.to_thread(self.system.ask, job_ids)


def batch_launcher(system: BatchSystem) -> type[BatchLauncher]:
    """Give the launcher of a batch system."""
    job = type(f"{system.title}NodeJob", (NodeJob, system.dask_job()), {"system": system})
    facts = {
        "name": system.name,
        "system": system,
        "submit_program": system.submit,
        "job_class": job,
    }
    return type(f"{system.title}Launcher", (BatchLauncher,), facts)
