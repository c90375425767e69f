"""Ports of this host that a test may use."""

from __future__ import annotations

import contextlib
import socket


def free_ports() -> int:
    """Find a port that is free, as is the one after it."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("", 0))
            number: int = one.getsockname()[1]
            with contextlib.suppress(OSError):
                next_one.bind(("", number + 1))
                return number
