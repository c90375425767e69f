"""Launch: dasf-hpc's own client of a run's cluster."""

from __future__ import annotations

import logging
import time
from typing import Any

from distributed import Client

logger = logging.getLogger(__name__)

#: A connection that breaks while it is made is made again; what cannot be reached is not there.
ATTEMPTS = 3
PAUSE_S = 0.2


def connect(cluster: Any) -> Client:
    """Give a client of a cluster, or of the scheduler at an address.

    Dask tries again where nobody answers, but not where the connection breaks in the handshake
    (seen once, with the TLS of Python 3.14).

    Raises
    ------
    OSError
        If it breaks each time.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return Client(cluster, set_as_default=False)
        except OSError as error:
            if attempt == ATTEMPTS:
                raise
            logger.warning("connecting to the scheduler: %s; trying again", error)
            time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")
