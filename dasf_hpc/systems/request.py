"""Batch systems: what a node job asks for, in words that are no batch system's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What one node job asks for.

    Attributes
    ----------
    cores
        Number of cores.
    memory
        Bytes.
    gpus
        Number of GPUs; 0 for none.
    exclusive
        Whether it takes the whole node.
    walltime
        Its time limit as the user wrote it, ``[D-]HH:MM:SS``.
    seconds
        The same in seconds.
    partition, account
        Where it goes and who pays; None where that is not said.
    directives
        What the user adds to the batch script, without the mark in front.
    chunk
        What the user adds to the request for the node itself.
    gpu_resource
        What the site calls its GPUs; None for the batch system's own word.
    """

    cores: int
    memory: int
    gpus: int
    exclusive: bool
    walltime: str
    seconds: int
    partition: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()
    chunk: tuple[str, ...] = ()
    gpu_resource: str | None = None


def hours_minutes_seconds(seconds: int) -> str:
    """Write a time as HH:MM:SS, with as many hours as it takes."""
    return f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
