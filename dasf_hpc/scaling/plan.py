"""Scaling, the plan: which runs a study is to have, in which order, with which words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from dasf_hpc.errors import SettingsError
from dasf_hpc.launch.choice import choose_launcher
from dasf_hpc.launch.shape import Shape, run_shape
from dasf_hpc.settings import Settings

#: What stands for a run's size in the script's arguments.
PLACEHOLDERS = ("nodes", "workers", "threads", "size")
#: What a study may count its scales in.
PLANNED_BY = ("nodes", "workers", "gpus")

_PLACEHOLDER = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")


@dataclass(frozen=True)
class Turn:
    """One run of a plan: its scale, and the how-manieth of that scale it is, from 1."""

    scale: int
    repeat: int


@dataclass(frozen=True)
class Plan:
    """What a study is to run.

    Attributes
    ----------
    job
        The script, as `submit` takes it.
    arguments
        Its arguments, in which ``{nodes}``, ``{workers}``, ``{threads}`` and ``{size}`` stand for
        the run's; workers and threads are all of the run's.
    by
        What scales are counted in: nodes, workers or gpus (those two of one node).
    scales
        The smallest first.
    repeats
        Runs of each scale.
    weak
        Whether the work grows with the scale.
    size
        What ``{size}`` is at scale 1; None: there is none.
    """

    job: str
    arguments: tuple[str, ...]
    by: str
    scales: tuple[int, ...]
    repeats: int
    weak: bool = False
    size: int | None = None

    def turns(self) -> list[Turn]:
        """Give the runs in their order: all scales once, then again.

        What changes slowly in a cluster, such as how busy its file system is, then looks like noise
        between repeats, and not like scaling.
        """
        return [
            Turn(scale, repeat) for repeat in range(1, self.repeats + 1) for scale in self.scales
        ]

    def settings_at(self, settings: Settings, scale: int) -> Settings:
        """Give a run's settings."""
        names = {"nodes": "nodes", "workers": "workers_per_node", "gpus": "gpus_per_node"}
        update: dict[str, int] = {names[self.by]: scale}
        if self.by != "nodes":
            update["nodes"] = 1
        return settings.model_copy(update=update)

    def arguments_at(self, scale: int, shape: Shape) -> list[str]:
        """Give a run's arguments."""
        values = {
            "nodes": shape.nodes,
            "workers": shape.workers,
            "threads": shape.workers * shape.threads_per_worker,
            "size": (self.size or 0) * scale,
        }
        return [
            _PLACEHOLDER.sub(lambda found: str(values[found[1]]), word) for word in self.arguments
        ]


def read_scales(option: str, text: str) -> tuple[int, ...]:
    """Read scales as they are given: ``1,2,4,8``.

    Raises
    ------
    SettingsError
        If they are not at least two whole numbers above 0.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,7}", word) and int(word) for word in words):
        raise SettingsError(
            f"Option {option} is {text!r}: write whole numbers above 0, as in {option} 1,2,4,8."
        )
    scales = tuple(sorted({int(word) for word in words}))
    if len(scales) < 2:
        raise SettingsError(
            f"Option {option} is {text!r}: one scale shows no scaling, so write two at least, as "
            f"in {option} 1,2."
        )
    return scales


def make_plan(
    job: str,
    arguments: Sequence[str],
    scales: dict[str, str | None],
    repeats: int = 3,
    weak: bool = False,
    size: int | None = None,
) -> Plan:
    """Make a plan of what was asked for.

    Parameters
    ----------
    job, arguments
        As of `Plan`.
    scales
        By what they are counted in (`PLANNED_BY`): what was given, one of them.
    repeats, weak, size
        As of `Plan`.

    Raises
    ------
    SettingsError
        If what was asked for contradicts itself.
    """
    given = {by: text for by, text in scales.items() if text is not None}
    options = [f"--{by}" for by in PLANNED_BY]
    if len(given) != 1:
        raise SettingsError(
            f"Give the scales by one of {', '.join(options)}, as in --nodes 1,2,4,8"
            + (f", not by {len(given)} of them." if given else ".")
        )
    ((by, text),) = given.items()
    used = {found for word in arguments for found in _PLACEHOLDER.findall(word)}
    if weak and not used:
        raise SettingsError(
            "Option --weak needs work that grows with the scale, and no argument of the script "
            "says how large it is: write {nodes}, {workers}, {threads}, or {size} with "
            "--size-per-node, in one of them, as in job.py --size {size}."
        )
    if "size" in used and size is None:
        raise SettingsError(
            "An argument of the script has {size}: say what it is at scale 1, with "
            "--size-per-node N."
        )
    if size is not None and "size" not in used:
        raise SettingsError(
            "Option --size-per-node is given, and no argument of the script has {size}, which "
            "stands for that size times the scale."
        )
    if size is not None and not weak:
        raise SettingsError(
            "Option --size-per-node makes the work grow with the scale, which is weak scaling: "
            "give --weak, too, or write the size itself in place of {size}."
        )
    return Plan(job, tuple(arguments), by, read_scales(f"--{by}", text), repeats, weak, size)


def study_settings(plan: Plan, settings: Settings) -> Settings:
    """Give the settings that all runs of a study have in common.

    On this machine a worker's threads are, by default, its cores shared out among the workers:
    then more workers would not be more threads. So all runs have the threads of the largest scale.

    Raises
    ------
    SettingsError
        If a scale cannot be run with these settings.
    """
    launcher = choose_launcher(settings)
    if plan.by == "workers" and settings.gpus_per_node:
        raise SettingsError(
            "Option --workers counts workers, and with --gpus-per-node there is one a GPU: give "
            "--gpus 1,2,4 and no --gpus-per-node."
        )
    for name, by in (("workers_per_node", "workers"), ("gpus_per_node", "gpus")):
        if plan.by == by and name in settings.model_fields_set:
            settings = settings.model_copy(
                update={name: type(settings).model_fields[name].get_default()}
            )
    most = plan.settings_at(settings, plan.scales[-1])
    shape = run_shape(most, launcher.local)
    if launcher.local and settings.threads_per_worker is None and not most.gpus_per_node:
        threads = max(1, (psutil.cpu_count() or 1) // shape.workers)
        settings = settings.model_copy(update={"threads_per_worker": threads})
    if launcher.name == "allocation" and plan.by == "nodes":
        batch = getattr(launcher, "batch", None)
        there = len(set(batch.list_hosts(os.environ[batch.nodes_variable]))) if batch else 0
        if plan.scales[-1] > there:
            raise SettingsError(
                f"Option --nodes goes up to {plan.scales[-1]}, and this batch job has {there} "
                "node(s): ask for as many as the largest scale has."
            )
    for scale in plan.scales:
        run_shape(plan.settings_at(settings, scale), launcher.local)
    return settings


def plan_lines(plan: Plan, settings: Settings) -> list[str]:
    """Say what a plan would run: a line for each run, in their order."""
    local = choose_launcher(settings).local
    turns = plan.turns()
    lines = []
    for number, turn in enumerate(turns, 1):
        shape = run_shape(plan.settings_at(settings, turn.scale), local)
        words = " ".join([plan.job, *plan.arguments_at(turn.scale, shape)])
        workers = shape.workers
        lines.append(
            f"{number:{len(str(len(turns)))}} of {len(turns)}: {shape.nodes} "
            f"node{'s' * (shape.nodes != 1)}, {workers} worker{'s' * (workers != 1)}, "
            f"{workers * shape.threads_per_worker} threads: {words}"
        )
    return lines
