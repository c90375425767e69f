"""One block of a program, recorded on the cluster that it has: ``with dasf_hpc.record(client)``.

`RecordedRun` tells the story: a directory as of any run, plugins on workers and scheduler, the
block itself, journals that are gathered where no folder is shared, and `merge_run`. Whatever goes
wrong with the recording is a sentence in a warning and in the manifest; the block goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import Client, default_client

from dasf_hpc import __version__
from dasf_hpc.errors import DasfHpcError, RunDirectoryError, SettingsError, TraceFileError
from dasf_hpc.manifest import Heartbeat, Manifest, git_revision, make_directory, versions
from dasf_hpc.profile.attach import TOKEN, Block, SchedulerHold, worker_plugin
from dasf_hpc.profile.frames import script_name

if TYPE_CHECKING:
    from dasf_hpc.trace.open import Trace
    from dasf_hpc.trace.summary import Summary

Result = TypeVar("Result")

#: How long one answer of a worker or the scheduler is waited for: at the end of a block each waits,
#: bounded, for its clock (2 s), its file (5 s) and its node's recorder (5 s).
ANSWER_S = 30.0
#: How often it is looked whether who is to answer is still there.
LOOK_S = 1.0
#: How long is waited for a client that tries to reach its scheduler again.
RECONNECT_S = 10.0

#: Bytes of a journal that travel at once, and so many journals at a time.
PIECE = 4 << 20
AT_ONCE = 8
#: Workers that are asked at a time.
ASKED_AT_ONCE = 128

#: What it means that a worker does not answer a question.
UNANSWERED = {
    "state": "is not recorded",
    "close": "did not end its recording",
    "files": "does not tell of its journals",
    "read": "does not give its journals",
    "forget": "keeps its folder of journals",
}

#: What a worker may call its journal: it becomes a file here.
_JOURNAL = re.compile(r"[\w.-]+\.journal")


class RecordWarning(UserWarning):
    """Something of a block is not recorded; the message says of whom and why."""


def record(
    client: Client | None = None,
    directory: str | Path = "runs",
    *,
    name: str | None = None,
    sample_interval: float = 100.0,
    stacks: str = "dask",
    report: bool = True,
) -> RecordedRun:
    """Record what a block does on a Dask cluster that is already there, whoever started it.

    Parameters
    ----------
    client
        The cluster's client; by default the current one (`distributed.default_client`).
    directory
        Where the run's directory is made. Workers that do not see it are recorded, too.
    name
        The middle of its name; by default that of the script.
    sample_interval
        Milliseconds between samples of the nodes.
    stacks
        Whether to sample the Python calls of tasks and event loops, as often as Dask's own profile
        does: ``"dask"``, or ``"off"``.
    report
        Whether to write ``report.html``.

    Returns
    -------
    RecordedRun
        To be used as ``with record(client) as run:``, or ``async with`` where the client is
        asynchronous.

    Raises
    ------
    SettingsError
        If there is no client, or `stacks` is something else.

    Examples
    --------
    >>> with dasf_hpc.record(client, "runs") as run:  # doctest: +SKIP
    ...     frame.groupby("x").mean().compute()
    >>> run.trace.tasks  # doctest: +SKIP
    """
    if stacks not in ("dask", "off"):
        raise SettingsError(
            f"stacks is {stacks!r}; of a cluster that is already there it may be 'dask' or 'off'."
        )
    if client is None:
        try:
            client = default_client()
        except ValueError:
            raise SettingsError(
                "There is no Dask client to record: make one before, or give it: "
                "dasf_hpc.record(client)."
            ) from None
    return RecordedRun(client, Path(directory), name or _program(), sample_interval, report, stacks)


def _program() -> str:
    """Name what runs: the script, or a notebook or prompt, which have none."""
    name = Path(sys.argv[0] if sys.argv else "").stem
    return "notebook" if "ipykernel" in name or "ipykernel" in sys.argv[0] else name or "python"


@dataclass(frozen=True)
class _Answer:
    """What a worker, or the scheduler, answered: something, or why it did not.

    Where nobody was `there` to answer, and there is no problem, it left: its plugin has ended.
    """

    value: Any = None
    problem: str = ""
    there: bool = False


class RecordedRun:
    """A block's recording, and what came of it.

    Attributes
    ----------
    directory
        The run's directory, as that of a run of ``dasf-hpc submit``.
    problems
        What is not recorded and why, a sentence each.
    summary
        What the trace holds; None until the block has ended, and where nothing could be merged.
    """

    def __init__(
        self,
        client: Client,
        parent: Path,
        name: str,
        sample_interval: float,
        report: bool,
        stacks: str = "dask",
    ) -> None:
        self._client = client
        self._parent, self._name = parent, name
        self._sample_interval, self._wants_report = sample_interval, report
        self._stacks = stacks
        self.problems: list[str] = []
        self.summary: Summary | None = None
        self._told = 0
        self._directory: Path | None = None
        self._ended = False
        self._scheduler_records = False
        self._trace: Trace | None = None

    # -- the block

    def __enter__(self) -> RecordedRun:
        if self._client.asynchronous:
            raise SettingsError(
                "The client is asynchronous: record it with `async with dasf_hpc.record(client)`."
            )
        self._begin()
        try:
            self._client.sync(self._attach)
            self._warn()
        except BaseException:
            self._client.sync(self._take_away)
            self._give_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._connected():
                self._client.sync(self._detach)
            self._finish(kind)
        except BaseException:
            if self._connected():
                self._client.sync(self._take_away)
            self._give_up()
            raise
        self._warn()

    async def __aenter__(self) -> RecordedRun:
        if not self._client.asynchronous:
            raise SettingsError(
                "The client is not asynchronous: record it with `with dasf_hpc.record(client)`."
            )
        self._begin()
        try:
            await self._attach()
            self._warn()
        except BaseException:
            await self._take_away()
            self._give_up()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._connected():
                await self._detach()
            await asyncio.to_thread(self._finish, kind)
        except BaseException:
            if self._connected():
                await self._take_away()
            self._give_up()
            raise
        self._warn()

    # -- what came of it

    @property
    def directory(self) -> Path:
        """The run's directory."""
        if self._directory is None:
            raise SettingsError("The block has not begun: use `with dasf_hpc.record(client)`.")
        return self._directory

    @property
    def trace(self) -> Trace:
        """The merged trace, opened when it is first asked for.

        Raises
        ------
        TraceFileError
            If there is none: the block has not ended, or nothing was recorded.
        """
        from dasf_hpc.trace.open import open_trace

        if not self._ended:
            raise TraceFileError(f"{self._title} has no trace before its block has ended.")
        if self._trace is None:
            self._trace = open_trace(self.directory)
        return self._trace

    @property
    def report(self) -> Path | None:
        """The page ``report.html``; None where there is none (yet)."""
        path = None if self._directory is None else self._directory / "report.html"
        return path if path is not None and path.is_file() else None

    @property
    def _title(self) -> str:
        return "the run" if self._directory is None else self._directory.name

    def __repr__(self) -> str:
        if self._directory is None:
            return "<RecordedRun, not begun>"
        if not self._ended:
            return f"<RecordedRun {self._directory}, recording>"
        if self.summary is None:
            return f"<RecordedRun {self._directory}: {'; '.join(self.problems)}>"
        from dasf_hpc.show.notebook import summary_text

        text = summary_text(self.summary)
        missing = f", {len(self.problems)} problem(s)" if self.problems else ""
        return f"<RecordedRun {self._directory}: {text}{missing}>"

    def _repr_html_(self) -> str:
        from dasf_hpc.show.notebook import run_html

        trace = self.trace if self._ended and self.summary is not None else None
        return run_html(self._directory, trace, self.summary, self.problems)

    # -- begin

    def _begin(self) -> None:
        if self._directory is not None:
            raise SettingsError(f"{self._title} is recorded already: call record() again.")
        self._directory = make_directory(
            self._parent, self._name, "give another to record(client, DIRECTORY)"
        )
        journals = self._directory / "journals"
        self._block = Block(
            name=f"dasf-hpc-block-{secrets.token_hex(8)}",
            directory=str(journals),
            token=secrets.token_hex(16),
            client=self._client.id,
            interval=self._sample_interval,
            version=__version__,
            stacks=self._stacks,
            script=script_name() or "",
        )
        try:
            (journals / TOKEN).write_text(self._block.token)
        except OSError as error:
            raise RunDirectoryError(f"{journals} cannot be written: {error.strerror}.") from None
        self._manifest = Manifest(self._directory)
        self._heartbeat = Heartbeat(self._directory)
        self._heartbeat.__enter__()
        self._manifest.update(
            name=self._directory.name,
            state="running",
            job=self._name,
            arguments=[],
            started=time.time(),
            job_started=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            on="record",
            versions=versions(),
            git_revision=git_revision(Path.cwd()),
        )

    async def _attach(self) -> None:
        """Attach the plugins; the scheduler hands them to every worker, also to late ones."""
        try:
            await _bounded(self._client.register_plugin(SchedulerHold(self._block)))
            self._scheduler_records = True
        except Exception as error:
            self._problem(f"The scheduler records nothing: {_reason(error)}")
        refused = "the block's plugin did not reach it"
        try:
            await _bounded(self._client.register_plugin(worker_plugin(asdict(self._block))))
        except Exception as error:  # of one worker, maybe: the others have it
            refused = _reason(error)
        try:
            workers = await self._workers()
        except Exception as error:
            self._problem(f"The scheduler does not answer, so nothing is recorded: {error!r}")
            return
        await self._ask_workers(workers, "state", refused=refused)

    # -- end

    def _connected(self) -> bool:
        """Tell whether the client can be asked anything, and say where it cannot."""
        if self._client.status in ("running", "connecting"):
            return True
        self._problem(
            f"The cluster was left before the block ended (the client is {self._client.status}): "
            "what is on disk is merged."
        )
        return False

    async def _detach(self) -> None:
        """End the recording of this block and get here what it wrote."""
        deadline = time.monotonic() + RECONNECT_S
        while self._client.status == "connecting" and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        try:
            if self._client.status != "running":
                raise OSError(f"the client is {self._client.status}")
            workers = await self._workers()
        except Exception as error:
            self._problem(
                f"The scheduler does not answer ({_reason(error)}): what is on disk is merged."
            )
            return
        try:
            await self._fetch_all(workers)
        except Exception as bug:  # the block's own outcome is not to depend on it
            self._problem(f"The recording's end failed, which is a bug: {bug!r}")
        await self._take_away()

    async def _fetch_all(self, workers: Mapping[str, str]) -> None:
        """Have everybody end the recording, and get here what is not here."""
        closed = await self._ask_workers(workers, "close")
        if self._scheduler_records and not (await self._ask_scheduler("close")).there:
            self._problem(
                "The scheduler lost the client in the block, and with it the recording ended."
            )
        self._manifest.update(job_ended=time.time(), workers_joined=len(workers))
        # Those that did not answer, or have left, are not waited for again.
        there = {address: workers[address] for address in workers if closed[address].there}
        await self._gather(await self._ask_workers(there, "files"))
        await self._ask_workers(there, "forget", silent=True)
        await self._ask_scheduler("forget", silent=True)
        await self._hear_late_workers()

    async def _take_away(self) -> None:
        """Take the block's plugins off the cluster."""
        client = self._client
        for unregister in (client.unregister_worker_plugin, client.unregister_scheduler_plugin):
            try:
                await _bounded(unregister(self._block.name))
            except (KeyError, ValueError):  # there was none
                continue
            except Exception as error:
                self._problem(f"The block's plugins may be left on workers: {_reason(error)}")

    async def _hear_late_workers(self) -> None:
        """Hear of workers that came and went meanwhile, and could not record."""
        try:
            events = await _bounded(self._client.get_events(self._block.name))
        except Exception:  # then nobody said anything
            return
        for _, (name, address, problem) in events:
            who = f"Worker {name} at {address}"
            self._problem(f"{who} is not recorded: {problem}", about=address)

    async def _gather(self, answers: Mapping[str, _Answer]) -> None:
        """Fetch the journals that are not in the run's directory: no folder is shared."""
        owners: dict[str, tuple[str | None, int]] = {}
        scheduler = await self._ask_scheduler("files")
        for address, answer in (*answers.items(), (None, scheduler)):
            for name, size in (answer.value or {}).items():
                owners.setdefault(name, (address, size))
        folder = self.directory / "journals"
        absent = [
            (name, address, size)
            for name, (address, size) in owners.items()
            if _JOURNAL.fullmatch(name) and _size(folder / name) < size
        ]
        turn = asyncio.Semaphore(AT_ONCE)

        async def fetch(name: str, address: str | None, size: int) -> None:
            async with turn:
                try:
                    await self._fetch(folder / name, address, size)
                except Exception as error:
                    self._problem(
                        f"The journal {name} could not be fetched from "
                        f"{address or 'the scheduler'}: {_reason(error)}"
                    )

        await asyncio.gather(*(fetch(*one) for one in absent))

    async def _fetch(self, path: Path, address: str | None, size: int) -> None:
        """Fetch one journal, a piece after the other, beside its place and then rename it."""
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            while file.tell() < size:
                question = ("read", path.name, file.tell(), min(PIECE, size - file.tell()))
                if address is None:
                    answer = await self._ask_scheduler(*question)
                else:
                    answer = (await self._ask_workers({address: ""}, *question))[address]
                if not answer.value:
                    raise OSError(f"it ended after {file.tell()} of {size} bytes")
                file.write(answer.value)
        partial.replace(path)

    def _finish(self, kind: type[BaseException] | None) -> None:
        """Merge what was recorded and write the report."""
        from dasf_hpc.outcome import merge_run
        from dasf_hpc.show.report import write_report

        self._forget_token()
        manifest = self._manifest
        manifest.update(state="merging")
        if kind is not None:
            manifest.note(f"The block ended with {kind.__name__}")
        for problem in self.problems:
            manifest.note(problem)
        if self.problems:
            manifest.update(error=self.problems[0])
        try:
            self.summary = merge_run(self.directory)
            if self._wants_report:
                write_report(self.directory)
        except DasfHpcError as error:
            self._problem(str(error))
        except Exception as bug:
            self._problem(
                f"The merge failed, which is a bug: {bug!r}; again: dasf-hpc merge {self.directory}"
            )
        if self.summary is None:
            state = "partial" if any((self.directory / "journals").glob("*")) else "failed"
            Manifest(self.directory).update(
                state=state, ended=time.time(), error=" ".join(self.problems)
            )
        elif lost := self.summary.tasks.get("lost"):
            self._problem(
                f"{lost} task(s) have no end in the trace: they were still running when the block "
                "ended, or their worker was killed."
            )
        self._heartbeat.__exit__()
        self._ended = True

    def _forget_token(self) -> None:
        with contextlib.suppress(OSError):  # the directory may be gone, or read-only by now
            (self.directory / "journals" / TOKEN).unlink()

    def _give_up(self) -> None:
        """Leave a directory that says what it is, where the end itself was interrupted."""
        self._forget_token()
        self._heartbeat.__exit__()
        self._ended = True
        Manifest(self.directory).update(state="partial", ended=time.time(), error="interrupted")

    # -- questions

    async def _workers(self) -> dict[str, str]:
        """Give the addresses and names of the workers that are there."""
        workers: dict[str, str] = await _bounded(
            self._client.run_on_scheduler(
                lambda dask_scheduler: {
                    address: str(state.name) for address, state in dask_scheduler.workers.items()
                }
            )
        )
        return workers

    async def _ask_workers(
        self,
        workers: Mapping[str, str],
        what: str,
        *arguments: Any,
        silent: bool = False,
        refused: str = "",
    ) -> dict[str, _Answer]:
        """Ask the plugin of each worker; one that does not answer keeps no other waiting."""
        turn = asyncio.Semaphore(ASKED_AT_ONCE)
        question = _question(self._block.name, what, arguments)

        async def ask(address: str) -> _Answer:
            async with turn:
                try:
                    value = await self._answer(question, address)
                except Exception as error:
                    return _Answer(problem=f"{UNANSWERED[what]}: {_reason(error)}")
            if value is None:
                return _Answer(problem=f"{UNANSWERED[what]}: {refused}" if refused else "")
            problem = f"is not recorded: {value['problem']}" if value["problem"] else ""
            return _Answer(value["answer"], problem, there=True)

        answers = dict(zip(workers, await asyncio.gather(*map(ask, workers)), strict=True))
        for address, answer in answers.items():
            if answer.problem and not silent:
                who = f"Worker {workers[address] or address} at {address}"
                self._problem(f"{who} {answer.problem}", about=address)
        return answers

    async def _answer(self, question: Callable[..., Any], address: str) -> Any:
        """Give a worker's answer, None where it leaves instead of answering."""
        asked = asyncio.ensure_future(
            self._client.run(question, workers=[address], on_error="return")
        )
        deadline = time.monotonic() + ANSWER_S
        try:
            while not (await asyncio.wait({asked}, timeout=LOOK_S))[0]:
                # Dask would try for 30 s to reach one that is gone.
                if address not in await self._workers():
                    return None
                if time.monotonic() > deadline:
                    raise TimeoutError
        finally:
            asked.cancel()
        value = asked.result().get(address)
        if isinstance(value, BaseException):
            raise value
        return value

    async def _ask_scheduler(self, what: str, *arguments: Any, silent: bool = False) -> _Answer:
        name = self._block.name

        async def ask(dask_scheduler: Any) -> Any:
            plugin = dask_scheduler.plugins.get(name)
            return None if plugin is None else [await plugin.ask(what, *arguments)]

        try:
            answer = await _bounded(self._client.run_on_scheduler(ask))
            return _Answer(answer[0], there=True) if answer else _Answer()
        except Exception as error:
            if not silent:
                self._problem(f"The scheduler's recorder failed at {what!r}: {_reason(error)}")
            return _Answer(problem=_reason(error))

    # -- problems

    def _problem(self, sentence: str, about: str | None = None) -> None:
        """Keep a sentence for the client, one about each worker."""
        known = any(f" {about} " in known for known in self.problems) if about else False
        if not known and sentence not in self.problems:
            self.problems.append(sentence)

    def _warn(self) -> None:
        """Tell what was not told yet, at the line of the ``with``."""
        fresh, self._told = self.problems[self._told :], len(self.problems)
        for sentence in fresh:
            warnings.warn(sentence, RecordWarning, stacklevel=3)


def _question(name: str, what: str, arguments: tuple[Any, ...]) -> Callable[..., Awaitable[Any]]:
    """Make a question to a worker's plugin: a function that needs no dasf-hpc there."""

    async def ask(dask_worker: Any) -> Any:
        plugin = dask_worker.plugins.get(name)
        if plugin is None:
            return None
        answer = None if what == "state" else await plugin.ask(what, *arguments)
        return {"problem": plugin.problem, "answer": answer}

    return ask


async def _bounded(answer: Any) -> Any:
    return await asyncio.wait_for(answer, ANSWER_S)


def _reason(error: BaseException) -> str:
    """Say in one line why something failed."""
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return f"no answer in {ANSWER_S:g} s"
    lines = str(error).strip().splitlines()
    if isinstance(error, DasfHpcError | OSError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else repr(error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
