"""Show: what the doctor found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dasf_hpc.doctor.check import Check, Status

_STYLES = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.COULD_NOT_LOOK: "dim",
}


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Print checks, a line each, and what to do about those that are not ok."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("Where", "Check", "Status"):
        table.add_column(name, no_wrap=True)
    table.add_column("Found; what to do", overflow="fold")
    for check in checks:
        text = escape(check.detail)
        if check.remedy and check.status is not Status.OK:
            text += f"\n[italic]{escape(check.remedy)}[/]"
        style = _STYLES[check.status]
        table.add_row(check.where, check.name, f"[{style}]{check.status}[/]", text)
    console.print(table)
