"""Launch: what a script gets that makes a cluster of its own: the run's, behind the same face."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from distributed.security import Security

#: How often a cluster looks which workers there are.
LOOK_INTERVAL_S = 1.0

#: Word of a cluster's own attributes that the run's cluster does not have.
RECORD = "--own-cluster record has the script keep its own"


class RunCluster(NamedTuple):
    """The cluster of the run that a script belongs to.

    Attributes
    ----------
    address
        Its scheduler's.
    security
        What a client needs to get in.
    workers
        So many are asked for.
    directory
        The run's directory.
    say
        Tells the user a sentence, once.
    """

    address: str
    security: Security
    workers: int
    directory: Path
    say: Callable[[str], None]


def counted(workers: int) -> str:
    """Write a number of workers."""
    return f"{workers} worker{'' if workers == 1 else 's'}"


def own_arguments(name: str, arguments: dict[str, Any]) -> str:
    """Write a call; of what is no number only the name, for values may be secret."""
    words = [
        f"{key}={value!r}" if isinstance(value, bool | int | float) else key
        for key, value in arguments.items()
    ]
    return f"{name}({', '.join(words)})"


class NotAdaptive:
    """What `adapt` of a run's cluster gives: the workers stay as they are.

    Attributes
    ----------
    minimum, maximum
        The run's number of workers.
    """

    def __init__(self, workers: int) -> None:
        self.minimum = self.maximum = workers
        self.periodic_callback = None

    def stop(self) -> None:
        """Do nothing."""


class NamedScheduler(NamedTuple):
    """The scheduler of a run's cluster, as far as a script sees it: it is another process's."""

    address: str


class AdoptedCluster(Cluster):
    """The run's cluster, in place of the one that a script would have made.

    Its workers are the run's, whatever it is asked for, and stay until the script ends. `adopted`
    gives the classes that scripts see; each of them is a subclass of what the script asked for, and
    nothing of that is started.
    """

    #: Set by `adopted`.
    _run: RunCluster
    status: Status
    _looking: asyncio.Task[None]
    _supports_scaling = True
    _numbers = itertools.count()

    def __init__(
        self,
        *args: Any,
        asynchronous: bool = False,
        loop: Any = None,
        name: Any = None,
        asked_by: str | None = None,
        **kwargs: Any,
    ) -> None:
        run, made = self._run, asked_by or type(self).__name__
        self.security = run.security
        called = f"{run.directory.name}-{next(self._numbers)}"
        Cluster.__init__(self, asynchronous, loop, quiet=True, name=str(name or called))
        run.say(
            f"{own_arguments(made, kwargs)} of the script has the run's {counted(run.workers)} in "
            f"place of a cluster of its own ({RECORD})"
        )
        if not self.called_from_running_loop:
            self._loop_runner.start()
            self.sync(self._start)

    async def _start(self) -> None:
        # Not Cluster's: its subscription would take the place of the one that the run has.
        if self.status == Status.created:
            arguments = self.security.get_connection_args("client")
            self.scheduler_comm = rpc(self._run.address, connection_args=arguments)
            await self._look()
            self._looking = asyncio.ensure_future(self._keep_looking())
            self.status = Status.running

    async def _look(self) -> None:
        self.scheduler_info = SchedulerInfo(await self.scheduler_comm.identity())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            with contextlib.suppress(OSError):
                await self._look()

    async def _close(self) -> None:
        if self.status == Status.running:
            self._looking.cancel()
        await Cluster._close(self)

    def close(self, timeout: float | None = None) -> Any:
        """Part with the run's cluster; its workers stay."""
        return Cluster.close(self, timeout)

    def __await__(self) -> Generator[Any, Any, AdoptedCluster]:
        async def started() -> AdoptedCluster:
            await self._start()
            return self

        return started().__await__()

    def __enter__(self) -> AdoptedCluster:
        if self.asynchronous:
            raise TypeError("an asynchronous cluster is entered by 'async with'")
        return self

    def __exit__(self, *how: object) -> None:
        self.close()

    async def __aenter__(self) -> AdoptedCluster:
        return await self

    async def __aexit__(self, *how: object) -> None:
        await self._close()

    def __del__(self) -> None:
        """Say nothing where it was not closed: nothing is left running."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_run" not in type(self).__dict__:
            raise AttributeError(name)
        raise AttributeError(
            f"this {type(self).__name__} is the run's cluster, which has no {name!r} ({RECORD})"
        )

    # What a script may ask of it.

    def scale(self, *args: Any, **kwargs: Any) -> None:
        """Say that the run's options decide how many workers there are."""
        self._keeps_its_workers("scale")

    scale_up = scale_down = scale

    def adapt(self, *args: Any, **kwargs: Any) -> Any:
        """Say that the run's options decide how many workers there are."""
        self._keeps_its_workers("adapt")
        return NotAdaptive(self._run.workers)

    def _keeps_its_workers(self, what: str) -> None:
        self._run.say(
            f"cluster.{what} of the script has no effect: the run has "
            f"{counted(self._run.workers)} (--nodes, --workers-per-node)"
        )

    @property
    def scheduler(self) -> NamedScheduler:
        """The scheduler's address; it runs in another process."""
        return NamedScheduler(self.scheduler_address)

    @property
    def workers(self) -> dict[Any, Any]:
        """What the scheduler says of each worker, by the worker's name."""
        workers: dict[str, dict[str, Any]] = self.scheduler_info["workers"]
        return {worker["name"]: worker for worker in workers.values()}

    @property
    def plan(self) -> set[Any]:
        """Names of the workers."""
        return set(self.workers)

    requested = observed = plan

    def job_script(self) -> str:
        """Give the batch script of one of the run's node jobs."""
        scripts = sorted((self._run.directory / "scripts").glob("*"))
        return scripts[0].read_text(errors="replace") if scripts else ""

    def __repr__(self) -> str:
        text: str = Cluster.__repr__(self)
        return text

    def _repr_html_(self, cluster_status: Any = None) -> Any:
        return Cluster._repr_html_(self, cluster_status)


def adopted(asked: type, run: RunCluster) -> type:
    """Give the class whose objects are the run's cluster and look like those of ``asked``."""
    members = {"_run": run, "__module__": asked.__module__, "__doc__": asked.__doc__}
    return type(asked.__name__, (AdoptedCluster, asked), members)
