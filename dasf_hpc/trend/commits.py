"""Trend, the commits: what lies between two revisions, where their repository is at hand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: Commits that are listed of a range.
LISTED = 20
_REVISION = re.compile(r"[0-9a-f]{7,64}")


def commits_between(folders: Iterable[Path], before: str, after: str) -> list[str]:
    """Give the commits that one revision has and another has not, the newest first.

    Parameters
    ----------
    folders
        Where a repository may be; the first that knows both revisions counts.
    before, after
        The revisions; a ``+`` at their end is left out.

    Returns
    -------
    list of str
        A line a commit, as ``git log --oneline`` writes it, `LISTED` at most and then a line that
        says how many more there are; empty where no repository knows them.
    """
    ends = [one.removesuffix("+") for one in (before, after)]
    if not all(map(_REVISION.fullmatch, ends)) or ends[0] == ends[1]:
        return []
    span = "..".join(ends)
    for folder in dict.fromkeys(folders):
        found = _git(folder, "log", "--oneline", "--no-decorate", f"-{LISTED}", span, "--")
        if found is None:
            continue
        lines = [line for line in found.splitlines() if line.strip()]
        if len(lines) == LISTED:
            count = (_git(folder, "rev-list", "--count", span, "--") or "").strip()
            if count.isdigit() and int(count) > LISTED:
                lines.append(f"and {int(count) - LISTED} more")
        return lines
    return []


def _git(folder: Path, *words: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *words],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=10, check=True,
            stdin=subprocess.DEVNULL,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
