"""Launch: brings what a user's script asks of Dask to its run, in the script's own process.

Loaded where the script first imports distributed (`script_environment`). The classes of Dask are
changed in this process's memory alone:

- ``Client(n_workers=…)``, ``LocalCluster``, ``LocalCUDACluster`` and the clusters of dask-jobqueue
  are the run's cluster; so is what a script without any client computes. With
  ``--own-cluster record`` they are the script's own and are recorded where they are.
- Clusters of other makers are recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.base
import wrapt
from distributed.security import Security

from dasf_hpc.launch.adopted_cluster import (
    RECORD,
    RunCluster,
    adopted,
    counted,
)
from dasf_hpc.launch.script_environment import (
    ADDRESS_VARIABLE,
    OWN_CLUSTER_VARIABLE,
    RUN_VARIABLE,
    SCHEDULER_FILE_VARIABLE,
    STACKS_VARIABLE,
    WORKERS_VARIABLE,
)
from dasf_hpc.launch.script_messages import keep_dasks_own
from dasf_hpc.launch.script_notes import note
from dasf_hpc.launch.tls import tidy_connections

#: Dask's variables of a run's credentials, and the keys of its configuration that they set.
_TLS = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "distributed.comm.require-encryption",
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": "distributed.comm.tls.ca-file",
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": "distributed.comm.tls.client.cert",
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": "distributed.comm.tls.client.key",
}


#: What this process's script is of, once `install` has been called.
_script: _Script | None = None


def install(distributed: Any) -> None:
    """Change Dask's classes in this process; does nothing outside a run's script."""
    global _script
    address, directory = os.environ.get(ADDRESS_VARIABLE), os.environ.get(RUN_VARIABLE)
    if not address or not directory or OWN_CLUSTER_VARIABLE not in os.environ:
        return
    keep_dasks_own(distributed, Path(directory))
    tidy_connections()
    workers = int(os.environ.get(WORKERS_VARIABLE, "1"))
    say = _Said(Path(directory))
    run = RunCluster(address, _security(), workers, Path(directory), say)
    adopts = os.environ[OWN_CLUSTER_VARIABLE] == "adopt"
    _as_without_run(keep_variables=adopts)
    script = _script = _Script(run, adopts)
    wrap = wrapt.wrap_function_wrapper
    wrap("distributed.client", "Client.__init__", script.client_made)
    wrap("distributed.client", "Client._start", script.client_started)
    wrap("distributed.client", "Client._close", script.client_closed)
    wrap("distributed.client", "Client.wait_for_workers", script.wait_for_workers)
    wrap("distributed.client", "Client.shutdown", script.shutdown)
    wrap("distributed.deploy.cluster", "Cluster.__init__", script.cluster_made)
    if adopts:
        wrap("distributed.client", "default_client", script.default_client)
        distributed.default_client = distributed.client.default_client
        script.adopt(distributed.LocalCluster)


def adopt_batch_clusters(core: Any) -> None:
    """Have dask-jobqueue's clusters be the run's."""
    if _script is not None and _script.adopts:
        _script.adopt(core.JobQueueCluster)


def _security() -> Security:
    """Give what a client of the run needs, from the variables that it set."""
    require, ca_file, certificate, key = (os.environ.get(name) for name in _TLS)
    return Security(
        require_encryption=require == "True",
        tls_ca_file=ca_file,
        tls_client_cert=certificate,
        tls_client_key=key,
    )


def _as_without_run(keep_variables: bool) -> None:
    """Have Dask's configuration of this process be what it would be without the run's credentials.

    They are handed to the run's clients; a cluster of the script's own would stumble over them.
    Programs that the script starts find the run by the variables, unless those are taken away.
    """
    given = {name: key for name, key in _TLS.items() if name in os.environ}
    others = {name: value for name, value in os.environ.items() if name not in given}
    without = dask.config.collect(env=others)
    for name, key in given.items():
        if str(dask.config.get(key, None)) == os.environ[name]:
            dask.config.set({key: dask.config.get(key, None, config=without)})
    if not keep_variables:
        for name in (*given, ADDRESS_VARIABLE):
            os.environ.pop(name, None)


#: Names of the plugins on clusters of the script's own: tasks, ranges, samples.
PLUGINS = ("dasf-hpc-tasks", "dasf-hpc-ranges", "dasf-hpc-samples")

#: So long a client waits at its end for the journals of a cluster of the script's own.
END_WAIT_S = 10.0


class _Said:
    """Tells the user a sentence, on standard error and for the run's summary, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said: set[str] = set()

    def __call__(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            print(f"dasf-hpc: {sentence}", file=sys.stderr, flush=True)
            note(self._directory, sentence)


def _place(address: Any) -> str:
    """Give host and port of an address."""
    return str(address).rpartition("://")[2].rstrip("/")


def _scheduler_asked_for() -> Any:
    """Give the scheduler that the script names for what it computes now, None where it names none.

    Dask looks for a client before it looks at that name.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is dask.base.get_scheduler.__code__:
            given = frame.f_locals.get("scheduler")
            if given is not None:
                return given.lower() if isinstance(given, str) else given
        frame = frame.f_back  # type: ignore[assignment]
    return dask.config.get("scheduler", None)


class _Script:
    """What is done for the clients and clusters of a script."""

    def __init__(self, run: RunCluster, adopts: bool) -> None:
        self._run = run
        self.adopts = adopts
        #: Clusters of the script's own.
        self._clusters: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Clients of each scheduler whose workers are recorded.
        self._recorded: dict[str, set[str]] = {}

    def adopt(self, cluster_class: Any) -> None:
        """Have calls of a cluster's class, and of its subclasses, give the run's cluster."""
        made = functools.lru_cache(None)(functools.partial(adopted, run=self._run))

        def new(cls: type, *args: Any, **kwargs: Any) -> Any:
            return object.__new__(made(cls))

        cluster_class.__new__ = new

    def _is_runs(self, address: Any) -> bool:
        return address is not None and _place(address) == _place(self._run.address)

    def _is_runs_file(self, file: Any) -> bool:
        path = os.environ.get(SCHEDULER_FILE_VARIABLE)
        return bool(file and path) and Path(file).resolve() == Path(str(path)).resolve()

    def cluster_made(
        self, wrapped: Callable[..., None], cluster: Any, args: Any, kwargs: Any
    ) -> None:
        """Remember the script's own clusters."""
        wrapped(*args, **kwargs)
        if getattr(cluster, "_run", None) is not self._run:
            self._clusters.add(cluster)

    def client_made(
        self, wrapped: Callable[..., None], client: Any, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Have a client be the run's, where it does not name a cluster of the script's own."""
        run = self._run
        address = args[0] if args else kwargs.get("address")
        rest = {key: value for key, value in kwargs.items() if key != "address"}
        known = inspect.signature(wrapped).parameters
        own = {key: value for key, value in rest.items() if key not in known}
        file = rest.get("scheduler_file")
        if kwargs.get("name") == "worker":  # of a worker of the script's own, in this process
            wrapped(*args, **kwargs)
        elif address is None and file is None:
            configured = dask.config.get("scheduler-address", None)
            if configured is not None and not self._is_runs(configured):
                wrapped(*args, **kwargs)  # a program that Dask's configuration leads elsewhere
            elif not own:
                rest["security"] = run.security
                wrapped(run.address, *args[1:], **rest)
            else:
                # Dask makes the LocalCluster that these are for, and that is the run's.
                if self.adopts:
                    rest |= {"security": run.security, "asked_by": "Client"}
                with dask.config.set({"scheduler-address": None}):
                    wrapped(None, *args[1:], **rest)
        elif isinstance(address, str) or (address is None and file is not None):
            if self._is_runs(address) or self._is_runs_file(file):
                rest.setdefault("security", run.security)
                wrapped(address or run.address, *args[1:], **rest)
            elif self.adopts and not self._is_own(address):
                rest.pop("scheduler_file", None)
                rest["security"] = run.security
                name = address or file
                run.say(
                    f"Client({str(name)!r}) of the script has the run's {counted(run.workers)} "
                    f"instead ({RECORD})"
                )
                wrapped(run.address, *args[1:], **{k: rest[k] for k in rest if k not in own})
            else:
                wrapped(*args, **kwargs)
        else:
            wrapped(*args, **kwargs)

    def _is_own(self, address: Any) -> bool:
        """Say if an address is that of a cluster that the script made."""
        return any(
            _place(cluster.scheduler_address) == _place(address) for cluster in self._clusters
        )

    async def client_started(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Record the workers of a cluster of the script's own when a client of it is there."""
        given = await wrapped(*args, **kwargs)
        try:
            address = client.scheduler.address
            if not self._is_runs(address):
                clients = self._recorded.setdefault(address, set())
                clients.add(client.id)
                if len(clients) == 1:
                    await self._record(client)
        except Exception as error:
            self._run.say(f"a cluster of the script's own is not recorded: {error}")
        return given

    async def _record(self, client: Any) -> None:
        from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin

        journals = self._run.directory / "journals"
        self._run.say(
            "the script has a cluster of its own, whose workers are recorded where they are, "
            "without nsys"
        )
        tasks, ranges, samples = PLUGINS
        for plugin in (
            WorkerTaskPlugin(tasks, journals, stacks=os.environ.get(STACKS_VARIABLE, "dask")),
            GPUAnnotationPlugin(ranges, journals),
            ResourceMonitor.for_workers(100, samples, journals),
        ):
            await client.register_plugin(plugin)

    async def client_closed(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """End the recording of a cluster of the script's own with its last client."""
        for clients in self._recorded.values():
            if client.id in clients:
                clients.remove(client.id)
                if not clients:
                    with contextlib.suppress(Exception):  # the cluster is gone
                        await asyncio.wait_for(self._end_recording(client), END_WAIT_S)
        return await wrapped(*args, **kwargs)

    @staticmethod
    async def _end_recording(client: Any) -> None:
        for name in PLUGINS:
            await client.unregister_worker_plugin(name)

    def wait_for_workers(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Wait for no more workers than the run has."""
        words = dict(zip(("n_workers", "timeout"), args, strict=False)) | kwargs
        wanted, have = words.get("n_workers"), self._run.workers
        if isinstance(wanted, int) and wanted > have and self._is_runs(client.scheduler.address):
            self._run.say(
                f"the script waits for {counted(wanted)}, and the run has {have}: it waits for "
                f"{'it' if have == 1 else 'those'} (--nodes, --workers-per-node)"
            )
            words["n_workers"] = have
        return wrapped(**words)

    def shutdown(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Close a client of the run in place of the run's cluster, which ends with the script."""
        if client.scheduler is None or not self._is_runs(client.scheduler.address):
            return wrapped(*args, **kwargs)
        self._run.say(
            "client.shutdown of the script closed its client; the run's workers end with the script"
        )
        return client.close()

    def default_client(
        self, wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any
    ) -> Any:
        """Give the default client; a script that has none gets the run's."""
        try:
            return wrapped(*args, **kwargs)
        except ValueError:
            if not self._may_be_default():
                raise
        from distributed import Client

        self._run.say(
            "the script makes no Client: what it computes goes to the run's "
            f"{counted(self._run.workers)}"
        )
        return Client()

    @staticmethod
    def _may_be_default() -> bool:
        """Say if the run's cluster may be what a script computes with that says nothing of it."""
        if _scheduler_asked_for() not in (None, "distributed", "dask.distributed"):
            return False
        # Dask's own loop cannot wait for a client to connect.
        return threading.current_thread().name != "IO loop"
