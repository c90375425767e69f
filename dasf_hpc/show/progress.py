"""Show, while it lasts: the steps of a run as a line on the terminal.

Stands alone so that what shows results, and loads pandas for it, is not loaded before a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from dasf_hpc.steps import Step, Told


@contextmanager
def progress(console: Console) -> Iterator[Told]:
    """Draw the steps of a run on a terminal; a pipe or a file gets only what a step says for good.

    Yields
    ------
    Told
        To be called with each step.
    """

    def say(step: Step) -> None:
        if step.said:
            console.print(f"dasf-hpc: {step.said}", soft_wrap=True, highlight=False, markup=False)

    if not console.is_terminal:
        yield say
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("Starting", total=None)
        shown = ""

        def told(step: Step) -> None:
            nonlocal shown
            say(step)
            name = step.label.split(":")[0]
            if name != shown:
                shown = name
                bar.reset(task, description=step.label, total=step.total)
            bar.update(task, description=step.label, total=step.total, completed=step.done or 0)
            # The job writes to the terminal itself while it runs.
            if name == "Running the job":
                bar.stop()
            elif not bar.live.is_started:
                bar.start()

        yield told
