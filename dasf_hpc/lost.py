"""Node jobs that a run lost: how many, when, on which node and, as far as anything said it, why.

The run notes them in ``run.json`` (``lost``); whoever sums the run up reads them from there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasf_hpc.units import duration_text

#: So many are told one by one.
TOLD = 3

#: What batch schedulers write into a job's output when they end it: slurmstepd and pbs_mom.
_ENDED = re.compile(
    r"\*\*\* (?:JOB|STEP) \S+ ON \S+ (?P<slurm>CANCELLED|FAILED)(?: AT \S+)?(?P<due>[^*\n]*)\*\*\*"
    r"|=>> PBS: (?P<pbs>[^\n]*)"
)


def explained(
    lost: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], logs: Path
) -> list[dict[str, Any]]:
    """Give lost node jobs with the name of their node and why they were lost.

    Parameters
    ----------
    lost
        As the launcher noticed them.
    records
        What the nodes of the run wrote when they began (``RUN/nodes``).
    logs
        The folder of what the node jobs said.
    """
    hosts = {str(record.get("name")): str(record["hostname"]) for record in records}
    return [
        {
            **job,
            "hostname": hosts.get(str(job.get("name"))),
            "why": "its walltime was near"
            if job.get("walltime")
            else _said(logs, job) or str(job.get("how") or ""),
        }
        for job in lost
    ]


def _said(logs: Path, job: dict[str, Any]) -> str:
    """Give what the batch scheduler wrote into a job's output when it ended that; else nothing."""
    number = str(job.get("job_id")).split(".")[0]
    for path in sorted(logs.glob("*")):
        if not re.search(rf"(?<!\d){re.escape(number)}(?!\d)", path.name):
            continue
        try:
            found = _ENDED.search(path.read_text(errors="replace"))
        except OSError:
            continue
        if found and found["pbs"]:
            return found["pbs"].strip()
        if found:
            return f"{found['slurm']}{found['due'].rstrip()}".lower()
    return ""


def lost_sentence(manifest: dict[str, Any]) -> str:
    """Say how many node jobs a run lost, when and why; empty where it lost none.

    Parameters
    ----------
    manifest
        Content of the run's ``run.json``.
    """
    lost = [job for job in manifest.get("lost") or [] if isinstance(job, dict)]
    if not lost:
        return ""
    jobs = manifest.get("batch_jobs") or []
    of = f" of {len(jobs)}" if len(jobs) >= len(lost) else ""
    told = [_clause(job, manifest.get("started")) for job in lost[:TOLD]]
    if len(lost) > TOLD:
        told.append(f"{len(lost) - TOLD} more (run.json)")
    return f"{len(lost)}{of} node jobs: {'; '.join(told)}"


def _clause(job: dict[str, Any], started: Any) -> str:
    """Tell of one."""
    node = f" on {job['hostname']}" if job.get("hostname") else ""
    when = ""
    if isinstance(at := job.get("time"), int | float):
        when = f" at {time.strftime('%H:%M:%S', time.localtime(at))}"
        if isinstance(started, int | float):
            when += f", {duration_text(1e9 * (at - started))} after the run began"
    why = job.get("why") or ("its walltime was near" if job.get("walltime") else "")
    why = f" ({why})" if why else " (nothing said why)"
    if job.get("replaced_by"):
        instead = f", replaced by {job['replaced_by']}"
    else:
        instead = ", replaced" if job.get("replaced") else ", not replaced"
    return f"{job.get('job_id')}{node}{when}{why}{instead}"


def read_run(directory: Path) -> dict[str, Any]:
    """Give the content of a run's ``run.json``; empty where there is none that can be read."""
    try:
        content = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
