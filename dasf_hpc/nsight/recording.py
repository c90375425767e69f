"""Nsight, which recording a report is of: one is told again whatever file it comes in.

A report and its export, or the exports of two nsys, are files of one recording. nsys notes
when a session began to the nanosecond, in every export alike (seen with those of 2022.4 and 2023.4
of one report), and anew for each report of a process that leaves several
(``--capture-range-end=repeat``): of one host and one process no two recordings begin at once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.join import same_host
from dasf_hpc.nsight.reader import Report, read_report
from dasf_hpc.nsight.rows import Additions
from dasf_hpc.nsight.sqlite import NONE

SAME_FILE = "the trace holds it already"
SAME_RECORDING = "it is of the same recording as {file}, which the trace holds: it is not added"


@dataclass
class Recording:
    """What tells one recording from another.

    Attributes
    ----------
    file
        The report that the trace holds of it, as it was named.
    sha256
        Digest of that file.
    host, start, pids
        Its host, when its session began, ns of UTC, and its processes; None, -1 and none where the
        report does not say.
    stored
        Digest of its events, where that was stored.
    sqlite
        Its export, where it is at hand.
    """

    file: str
    sha256: str | None
    host: str | None = None
    start: int = NONE
    pids: frozenset[int] = frozenset()
    stored: str | None = None
    sqlite: Path | None = None

    @classmethod
    def of(cls, file: str, sha256: str | None, report: Report | None) -> Recording:
        """Tell which recording a report is of; one that is None could not be read."""
        found = cls(file, sha256)
        if report is None:
            return found
        found.host, found.sqlite = report.hostname, report.sqlite
        if report.session_start_utc_ns is not None:
            with contextlib.suppress(NsightError):  # whoever reads it for its rows says so
                found.pids = report.recorded_pids()
                found.start = report.session_start_utc_ns
        return found

    @functools.cached_property
    def events(self) -> str | None:
        """Digest of the times of its events, None where that cannot be told, or it holds none."""
        if self.stored is not None or self.sqlite is None:
            return self.stored
        try:
            return read_report(self.sqlite).events_digest()
        except NsightError:
            return None

    def same_as(self, other: Recording) -> bool:
        """Say whether both are of one recording."""
        if self.start != NONE and other.start != NONE:
            if self.start != other.start:
                return False
            if self.host and other.host and not same_host(self.host, other.host):
                return False
            # one exporter may tell of a process of which another says nothing
            return bool(self.pids & other.pids) or not (self.pids or other.pids)
        # 2020.3 says neither host nor start: the same events at the same ns are no chance
        return self.events is not None and self.events == other.events


class Recordings:
    """The recordings that a trace holds."""

    def __init__(self, additions: Additions) -> None:
        table = additions.run.tables["reports"]
        joined = table["status"] == additions.strings("report_states").code("joined")
        hosts = additions.hostnames()
        self._known: list[Recording] = []
        for row in np.flatnonzero(joined).tolist():
            node = int(table["node"][row])
            names = ("file", "sha256", "session_start_utc", "pids", "events")
            codes = {name: int(table[name][row]) for name in names}
            pids = additions.text("pids", codes["pids"]) or ""
            self._known.append(
                Recording(
                    additions.text("files", codes["file"]) or "",
                    additions.text("sha256", codes["sha256"]),
                    hosts[node] or None if node != NONE else None,
                    codes["session_start_utc"],
                    frozenset(int(pid) for pid in pids.split(",") if pid),
                    additions.text("sha256", codes["events"]),
                )
            )

    def known(self, found: Recording) -> str | None:
        """Say in a sentence that the trace holds a recording already, None where it does not."""
        for one in self._known:
            if found.sha256 is not None and one.sha256 == found.sha256:
                return SAME_FILE
        for one in self._known:
            if found.sqlite is not None and one.same_as(found):
                return SAME_RECORDING.format(file=one.file)
        return None

    def add(self, joined: Recording) -> None:
        """Take note of a recording that was joined."""
        self._known.append(joined)


def written_pids(pids: Iterable[int]) -> str | None:
    """Give processes as a trace stores them, None for none."""
    return ",".join(str(pid) for pid in sorted(pids)) or None
