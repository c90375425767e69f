"""The batch systems that are known: one module each, with all its facts.

What a run does with them is in `dasf_hpc.launch`. Nothing here loads Dask before a job is made.
"""

from __future__ import annotations

import os

from dasf_hpc.systems.base import BatchSystem
from dasf_hpc.systems.lsf import LSF
from dasf_hpc.systems.pbs import PBS
from dasf_hpc.systems.slurm import SLURM

#: By their names, in the order in which ``--on auto`` looks for them.
SYSTEMS: dict[str, BatchSystem] = {system.name: system for system in (SLURM, PBS, LSF)}


def batch_job_id() -> str | None:
    """Give the id of the batch job that this runs in; None where it is none."""
    ids = (os.environ.get(system.job_variable) for system in SYSTEMS.values())
    return next((job_id for job_id in ids if job_id), None)
