"""Recording: one worker's journal, shared by the plugins attached to it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasf_hpc.profile.actors import unwatch_actors, watch_actors
from dasf_hpc.profile.clock import read_anchor
from dasf_hpc.profile.execution import Executions, unwatch, watch
from dasf_hpc.profile.identity import journal_path, process_document
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.link import RecorderLink
from dasf_hpc.systems import batch_job_id

if TYPE_CHECKING:
    from distributed import Worker

_lock = threading.Lock()
_default: Path | None = None


def default_directory() -> Path:
    """Give the folder for journals of plugins that were told none.

    It is ``$DASF_HPC_JOURNALS``, or ``runs/TIME-plugins-PID/journals`` below the working directory
    of the process that made the first plugin.
    """
    global _default
    given = os.environ.get("DASF_HPC_JOURNALS")
    if given:
        return Path(given).absolute()
    with _lock:
        if _default is None:
            stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
            _default = Path.cwd() / "runs" / f"{stamp}-plugins-{os.getpid()}" / "journals"
        return _default


class Recording:
    """What the plugins of one worker and folder share: a journal and the watch over executions.

    Attributes
    ----------
    directory
        The folder.
    journal
        The worker's journal, or None where it could not be made; `problem` says why.
    executions
        Tells of every start and stop of a task.
    """

    def __init__(self, worker: Worker, directory: Path) -> None:
        self.directory = directory
        self.executions: Executions
        self.executions, self.problem = watch(worker)
        no_actors = watch_actors(worker, self.executions)
        self.journal: Journal | None = None
        self.users = 0
        #: Name of the plugin that records the worker's tasks into this folder: there is one only.
        self.task_plugin: str | None = None
        try:
            self.journal = Journal(
                journal_path(directory, "worker"),
                process_document("worker", self.executions.base),
                alone=False,
            )
        except OSError as error:
            self.problem = f"no journal could be made in {directory}: {error.strerror}"
        else:
            self._link = RecorderLink(directory, self.journal)
            self._link.start()
            self.anchor = self.journal.recorder(Stream.ANCHORS)
            self.anchor(*read_anchor())
            self.journal.meta(worker_document(worker))
            if self.problem:
                self.journal.meta(
                    {"kind": "unavailable", "what": "executions", "why": self.problem}
                )
            if no_actors:
                self.journal.meta(
                    {"kind": "unavailable", "what": "calls of actors", "why": no_actors}
                )

    def close(self, worker: Worker, meta: Mapping[str, Any]) -> None:
        """Write the last anchor and end the journal."""
        unwatch_actors(worker)
        unwatch(worker)
        if self.journal is not None and not self.journal.closed:
            self.anchor(*read_anchor())
            self.journal.close({"failures": self.executions.failures, **meta}, self._link.file)


def worker_document(worker: Worker) -> dict[str, Any]:
    """Describe a worker: of the environment only which GPUs it selects and the batch job's id."""
    from dasf_hpc.profile.devices import nvml_devices, visible_devices

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices, state = nvml_devices()
    gpus, status = visible_devices(
        visible, devices, os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    )
    if not devices:
        status = f"{status}; {state.value}"
    return {
        "kind": "worker",
        "name": str(worker.name),
        "address": worker.address,
        "nthreads": worker.state.nthreads,
        "memory_limit": getattr(worker.memory_manager, "memory_limit", None),
        "batch_job": batch_job_id(),
        "gpus": gpus,
        "gpu_status": status,
    }


_recordings: weakref.WeakKeyDictionary[Worker, dict[Path, Recording]] = weakref.WeakKeyDictionary()


def join_recording(worker: Worker, directory: Path) -> Recording:
    """Give the worker's recording into a folder, made by the first plugin that asks for it.

    It is undone by one `leave_recording`. Of several folders each has a recording of its own.
    """
    with _lock:
        recordings = _recordings.setdefault(worker, {})
        recording = recordings.get(directory)
        if recording is None:
            recording = recordings[directory] = Recording(worker, directory)
        recording.users += 1
        return recording


def leave_recording(worker: Worker, recording: Recording, meta: Mapping[str, Any]) -> None:
    """Undo one `join_recording`; the last one closes the journal."""
    with _lock:
        recording.users -= 1
        if recording.users > 0:
            return
        _recordings.get(worker, {}).pop(recording.directory, None)
    recording.close(worker, meta)
