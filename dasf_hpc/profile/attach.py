"""Recording, of one block: what `dasf_hpc.record` attaches to workers and scheduler, and asks them.

One plugin a block goes to the workers, and holds the three that record; one goes to the scheduler.
Each process looks for the block's folder by a file that the client put there, and where it does not
see it, or may not write there, records into a folder of its own, which the client then gathers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
from dasf_hpc.profile.recording import join_recording, leave_recording
from dasf_hpc.profile.scheduler import SchedulerRecorder

if TYPE_CHECKING:
    from distributed import Scheduler, Worker

logger = logging.getLogger(__name__)

#: Name of the file, in the block's folder of journals, by which a process knows the folder.
TOKEN = ".token"

#: How long a client may be away before its block's recording ends: it may lose its connection and
#: come again.
AWAY_S = 5.0

#: How long the end of a node's recorder process is waited for once nobody holds it.
SAMPLER_END_S = 5.0

_SAMPLER = re.compile(r"sampler-.*-(\d+)-[0-9a-f]+\.journal")


@dataclass(frozen=True)
class Block:
    """What workers and scheduler must know of a block.

    Attributes
    ----------
    name
        Of its plugins; no other block has it.
    directory
        Its folder of journals as the client names it.
    token
        Content of the file by which the folder is known.
    client
        Id of the Dask client.
    interval
        Milliseconds between samples of a node.
    version
        The client's dasf-hpc.
    stacks, script
        See `WorkerTaskPlugin`.
    """

    name: str
    directory: str
    token: str
    client: str
    interval: float
    version: str
    stacks: str = "dask"
    script: str = ""


def folder_for_journals(block: Block, *others: str) -> Path:
    """Give the folder that this process records into: the block's own, or one that it does not see.

    Parameters
    ----------
    block
        The block.
    others
        Where to make a folder besides the folder for temporary files.

    Raises
    ------
    OSError
        If no folder can be written.
    """
    directory = Path(block.directory)
    why = "it is not seen from here"
    with contextlib.suppress(OSError):
        if (directory / TOKEN).read_text() == block.token:
            try:
                _try_to_write(directory)
                return directory
            except OSError as error:
                why = f"it cannot be written ({error.strerror})"
    tried = [f"{directory}: {why}"]
    places = list(others)
    with contextlib.suppress(OSError):  # where there is no such folder at all
        places.insert(0, tempfile.gettempdir())
    for place in places:
        folder = Path(place) / block.name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            # What others may have put under this name is not for our records.
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                raise PermissionError(1, "it is another user's")
            _try_to_write(folder)
            return folder
        except OSError as error:
            tried.append(f"{folder}: {error.strerror}")
    raise OSError("no folder for journals can be written: " + "; ".join(tried))


def _try_to_write(folder: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".writable-", dir=folder)
    os.close(descriptor)
    Path(name).unlink()


class _Folder:
    """A process's folder of journals, as the client asks for it."""

    def __init__(self, block: Block, folder: Path) -> None:
        self._block, self.folder = block, folder

    @property
    def own(self) -> bool:
        """Whether it is not the block's."""
        return self.folder != Path(self._block.directory)

    def _paths(self) -> list[Path]:
        # Of a folder that all nodes write, what this one wrote: each tells of its own.
        pattern = "*.journal" if self.own else f"*-{socket.gethostname()}-*.journal"
        return sorted(self.folder.glob(pattern))

    async def files(self) -> dict[str, int]:
        """Give the names and sizes of this node's journals, when its recorder process has ended."""
        deadline = time.monotonic() + SAMPLER_END_S
        while any(map(_is_written, self._paths())) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return {path.name: path.stat().st_size for path in self._paths()}

    async def read(self, name: str, start: int, size: int) -> bytes:
        """Give a piece of a journal."""
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    async def forget(self) -> None:
        """Delete the folder, if it is not the block's."""
        if self.own:
            shutil.rmtree(self.folder, ignore_errors=True)


def _is_written(path: Path) -> bool:
    """Tell whether a journal is one of a recorder process that lives; its name has the pid."""
    named = _SAMPLER.fullmatch(path.name)
    if named is None:
        return False
    try:
        process = psutil.Process(int(named[1]))
        return bool(process.status() != psutil.STATUS_ZOMBIE) and "dasf_hpc.profile.sampler" in (
            process.cmdline()
        )
    except psutil.Error:
        return False


class WorkerHold(_Folder):
    """A block's hold on one worker: its plugins.

    Attributes
    ----------
    transition
        What Dask is to call for every transition.
    problem
        Why nothing is recorded; None where it is.

    Raises
    ------
    OSError
        If no folder can be written.
    """

    def __init__(self, worker: Worker, block: Block) -> None:
        super().__init__(block, folder_for_journals(block, worker.local_directory))
        self._worker = worker
        folder = self.folder
        self._tasks = WorkerTaskPlugin(
            f"{block.name}-tasks", folder, True, block.stacks, block.script
        )
        self._ranges = GPUAnnotationPlugin(f"{block.name}-ranges", folder)
        self._samples = ResourceMonitor.for_workers(block.interval, f"{block.name}-samples", folder)
        recording = join_recording(worker, folder)
        self.problem = None if recording.journal is not None else recording.problem
        for plugin in (self._tasks, self._ranges, self._samples):
            plugin.setup(worker)
        leave_recording(worker, recording, {})
        self.transition: Callable[..., None] = self._tasks.transition
        self._open = True

    async def close(self) -> None:
        """Stop recording and have the journal on file."""
        if self._open:
            self._open = False
            self._samples.teardown(self._worker)
            self._ranges.teardown(self._worker)
            await self._tasks.teardown(self._worker)


def worker_plugin(order: dict[str, Any]) -> WorkerPlugin:
    """Make the plugin that is sent to workers.

    Its class has no name by which a worker could import it, so that it is sent as it stands: it is
    there also where dasf-hpc is missing or another one, and says so. A plugin that could not be
    loaded would keep workers from starting for as long as the block lasts.

    Parameters
    ----------
    order
        The fields of a `Block`.
    """

    class BlockPlugin(WorkerPlugin):
        idempotent = True

        def __init__(self) -> None:
            self.order = order
            self.name = order["name"]
            self.hold: Any = None
            self.problem: str | None = None

        async def setup(self, worker: Any) -> None:
            try:
                import dasf_hpc

                version = dasf_hpc.__version__
                if version == self.order["version"]:
                    from dasf_hpc.profile import attach

                    self.hold = attach.WorkerHold(worker, attach.Block(**self.order))
                    self.transition = self.hold.transition
                    self.problem = self.hold.problem
                else:
                    self.problem = (
                        f"it has dasf-hpc {version}, the client {self.order['version']}: "
                        "install the same on both"
                    )
            except ImportError as error:
                self.problem = f"dasf-hpc cannot be imported there: {error}"
            except Exception as error:
                self.problem = str(error) or repr(error)
            if self.problem:
                worker.log_event(self.name, [str(worker.name), worker.address, self.problem])

        async def ask(self, what: str, *arguments: Any) -> Any:
            if self.hold is None:
                return None
            if what == "close":
                self.__dict__.pop("transition", None)
            return await getattr(self.hold, what)(*arguments)

        async def teardown(self, worker: Any) -> None:
            await self.ask("close")

    return BlockPlugin()


class SchedulerHold(SchedulerPlugin):
    """A block's hold on the scheduler; where its client goes away, it ends the recording."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.name = block.name
        self._folder: _Folder | None = None
        self._recorder: SchedulerRecorder | None = None
        self._ending: asyncio.Future[None] | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Record from now on, also which workers are there.

        Raises
        ------
        OSError
            If no folder can be written.
        """
        self._folder = _Folder(self._block, folder_for_journals(self._block))
        self._recorder = SchedulerRecorder(self._folder.folder, stacks=self._block.stacks)
        await self._recorder.start(scheduler)
        for address in list(scheduler.workers):
            self._recorder.add_worker(scheduler, address)

    async def ask(self, what: str, *arguments: Any) -> Any:
        """Do what the client asks for; `close`, or of the folder `files`, `read` or `forget`."""
        return await getattr(self if what == "close" else self._folder, what)(*arguments)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Record a worker that joined."""
        if self._recorder is not None:
            self._recorder.add_worker(scheduler, worker)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Record a worker that left."""
        if self._recorder is not None:
            self._recorder.remove_worker(scheduler, worker, **kwargs)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """End the recording of a client that is gone: nobody else would."""
        if client == self._block.client and self._recorder is not None:
            self._ending = asyncio.ensure_future(self._end(scheduler))

    async def _end(self, scheduler: Scheduler) -> None:
        await asyncio.sleep(AWAY_S)
        if self._block.client in scheduler.clients:
            return
        logger.warning("dasf-hpc: the client of %s is gone: its recording ends", self.name)
        with contextlib.suppress(Exception):  # a worker that is gone has nothing to end
            await scheduler.unregister_worker_plugin(None, self.name)
        self._stop()
        with contextlib.suppress(Exception):
            await scheduler.unregister_scheduler_plugin(self.name)

    async def close(self) -> None:
        """Stop recording and have the journal on file."""
        if self._ending is not None:
            self._ending.cancel()
        self._stop()

    def _stop(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.end()
