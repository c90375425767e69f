"""What a run of the check recorded, as JSON; run with the Python that has dasf-hpc.

python look.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import dasf_hpc
from dasf_hpc.outcome import missing, show_run


def look(run: Path) -> dict[str, Any]:
    """Count what a trace holds of tasks and GPUs, and say what became of the reports."""
    summary, manifest, _ = show_run(run)
    with dasf_hpc.open_trace(run) as trace:
        kernels, samples, tasks = trace.kernels, trace.gpu_samples, trace.tasks
        table = trace.task_gpu
        found: dict[str, Any] = {
            "tasks": len(tasks),
            "gpus": [str(name) for name in trace.gpus["name"]],
            "gpu samples": len(samples),
            "kernels": len(kernels),
            "kernels under a task": int((kernels["task"] >= 0).sum()),
            "copies": len(trace.memcpys),
            "GPU busy, ms": round(float(trace.gpus["busy"].clip(lower=0).sum()) / 1e6, 3),
            "of that under tasks, ms": round(
                float(table["share"][table["task"] >= 0].sum()) / 1e6, 3
            ),
        }
        if len(samples):
            for name in ("power", "utilization", "memory_used", "temperature"):
                if name in samples:
                    values = samples[name]
                    found[f"{name}, lowest and highest"] = [
                        float(values.min()),
                        float(values.max()),
                    ]
    found["state"] = manifest.get("state")
    found["reports"] = manifest.get("merged", {}).get("reports", [])
    found["missing"] = missing(summary, manifest)
    return found


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1])), default=str))
