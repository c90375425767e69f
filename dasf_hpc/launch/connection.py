"""Launch: dasf-hpc's own client of a run's cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from distributed import Client

from dasf_hpc.errors import WorkersError

logger = logging.getLogger(__name__)

#: A connection that breaks while it is made or asked is made again; what cannot be reached is not
#: there.
ATTEMPTS = 3
PAUSE_S = 0.2

T = TypeVar("T")


def connect(cluster: Any) -> Client:
    """Give a client of a cluster, or of the scheduler at an address.

    Dask tries again where nobody answers, but not where the connection breaks in the handshake
    (`tls` has what did that).

    Raises
    ------
    WorkersError
        If it breaks each time.
    """
    return _again(cluster, lambda: Client(cluster, set_as_default=False))


def ask(cluster: Any, question: Callable[[Client], T]) -> T:
    """Ask a cluster something, once more where the connection breaks meanwhile.

    Parameters
    ----------
    cluster
        As for `connect`.
    question
        What may be asked several times.

    Raises
    ------
    WorkersError
        If it breaks each time.
    """

    def once() -> T:
        with Client(cluster, set_as_default=False) as client:
            return question(client)

    return _again(cluster, once)


def _again(cluster: Any, do: Callable[[], T]) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return do()
        except OSError as error:
            if attempt == ATTEMPTS:
                where = getattr(cluster, "scheduler_address", cluster)
                raise WorkersError(
                    f"The connection to the scheduler at {where} broke {ATTEMPTS} times, at last "
                    f"with: {str(error).rstrip('.') or type(error).__name__}."
                ) from error
            logger.warning("the connection to the scheduler: %s; trying again", error)
            time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")
