"""Recording: several clients of one cluster, each with plugins that record into its own folder.

Dask knows a plugin by its name, and where one of that name is there already it drops the second
without a word. Two programs that record one cluster give their plugins the same names.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import loads

logger = logging.getLogger(__name__)


class RecordingPlugin(WorkerPlugin):
    """A plugin that records into a folder, and shares its name with those of other folders.

    Attributes
    ----------
    name
        Name under which Dask knows the plugin. Where a plugin of this name records into another
        folder already, `Client.register_plugin` makes it ``NAME-DIGEST``.
    directory
        The folder.
    """

    name: str
    directory: Path
    idempotent = True


async def _register(client: Client, plugin: RecordingPlugin, name: str, idempotent: bool) -> Any:
    """Register a plugin as Dask does; where its name is another folder's, under one of its own."""
    responses = await client._register_worker_plugin(plugin, name, idempotent)
    if responses:
        return responses
    # No worker answered: there is none yet, or Dask has dropped the plugin. It keeps the first.
    kept = await client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.worker_plugins.get(name)
    )
    other = getattr(loads(kept), "directory", None) if kept else plugin.directory
    if other == plugin.directory:
        return responses
    digest = hashlib.sha256(str(plugin.directory).encode()).hexdigest()[:8]
    plugin.name = f"{name}-{digest}"
    logger.warning(
        "dasf-hpc: %r records this cluster into %s already; this one is %r and records into %s",
        name,
        other,
        plugin.name,
        plugin.directory,
    )
    return await client._register_worker_plugin(plugin, plugin.name, idempotent)


def _register_recording(
    client: Client, plugin: RecordingPlugin, name: str, idempotent: bool
) -> Any:
    return client.sync(_register, client, plugin, name, idempotent)


# Dask registers a plugin by its type, in every version from 2024.11 to 2026.8. In one that does
# not, the first plugin of a name is the only one, as in Dask itself.
if hasattr(Client.__dict__.get("_register_plugin"), "register"):
    Client.__dict__["_register_plugin"].register(RecordingPlugin, _register_recording)
