"""Launch: the line of a node job's output that tells why it ended."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

#: So much of a log's end is looked at, in bytes.
LOOKED_AT = 64 * 1024
#: What is said where something is wrong: by Python, shells, batch systems and the system.
_WRONG = re.compile(
    r"\b\w*(?:Error|Exception)\b|\berror\b|command not found|[Nn]o such file|"
    r"[Pp]ermission denied|[Cc]annot |CANCELLED|[Kk]illed|Segmentation fault|[Oo]ut of memory"
)
#: nsys's own words at its end, which say where its report is.
_OF_NSYS = re.compile(
    r"^(?:Generating '|Generated:|Collecting data\.\.\.|Processing events\.\.\.|"
    r"Capturing |\s*\[\d+/\d+\] \[)|\.(?:nsys-rep|qdstrm|qdrep)'?$"
)


def batch_logs(logs: Path, job_id: object) -> list[Path]:
    """Give what a batch system wrote of a job into a run's logs: its id stands alone in the names.

    As ``slurm-5.out``, ``NAME.o5`` and ``5.server.OU``. A run's name may hold any number, and what
    node jobs write themselves (``RUN-5.log``) is counted by itself.
    """
    alone = re.compile(rf"(?:^|[^0-9A-Za-z]|\.[oe]){re.escape(str(job_id))}(?![0-9A-Za-z])")
    run = logs.parent.name
    return sorted(
        path
        for path in logs.glob(f"*{glob.escape(str(job_id))}*")
        if path.suffix != ".log" and alone.search(path.name.replace(run, ""))
    )


def last_words(logs: Iterable[Path]) -> str:
    """Give the last line that names a fault; where none does, the last line; empty for no line.

    Parameters
    ----------
    logs
        What one node job wrote; what the batch system says of it comes last.
    """
    lines: list[str] = []
    for path in logs:
        try:
            with path.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - LOOKED_AT))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not _OF_NSYS.search(line)]
    faults = [line for line in lines if _WRONG.search(line)]
    return (faults or lines or [""])[-1][:300]
