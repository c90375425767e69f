"""The command line: parses and calls; every command is a few lines."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from dasf_hpc.errors import (
    CannotTell,
    DasfHpcError,
    DoctorError,
    InterruptedRun,
    PartialRecording,
    Regression,
    exit_code_table,
)
from dasf_hpc.launch.head_end import leave_word_of_the_end
from dasf_hpc.settings import OF_RECORDING, TOPICS, Settings, load_settings
from dasf_hpc.show.formats import Format
from dasf_hpc.show.help import Command, Group

if TYPE_CHECKING:
    from dasf_hpc.analysis.answer import Answer
    from dasf_hpc.analysis.compare import Comparison
    from dasf_hpc.imports import Imported
    from dasf_hpc.run import RunResult
    from dasf_hpc.trace.open import Trace
    from dasf_hpc.trace.summary import Summary

app = typer.Typer(
    name="dasf-hpc",
    help="Runs an ordinary Dask script on a GPU cluster and brings back one file that says where "
    "every second went.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=Group,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dasf-hpc {importlib.metadata.version('dasf-hpc')}")
        raise typer.Exit


def _print_exit_codes(wanted: bool) -> None:
    if wanted:
        from dasf_hpc.show.fit import Column, Kind, show_table

        codes, meanings = zip(*exit_code_table(), strict=True)
        columns = [
            Column("Code", [str(code) for code in codes], Kind.NUMBER),
            Column("Meaning", meanings, Kind.PROSE),
        ]
        show_table(Console(), "", columns)
        raise typer.Exit


@app.callback()
def all_commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    exit_codes: Annotated[
        bool,
        typer.Option(
            "--help-exit-codes",
            callback=_print_exit_codes,
            is_eager=True,
            help="Print what every exit code means.",
        ),
    ] = False,
) -> None:
    """Take what all commands share."""


#: Whether a command prints JSON.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


#: Whether anything that is missing is an error.
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with a code above 0 if anything is missing.")
]


#: The nsys to use.
NsysPath = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The nsys that exports the reports; default: from PATH."),
]

#: Whether to store what is large and seldom looked at.
OsRuntime = Annotated[
    bool,
    typer.Option(
        "--os-runtime", help="Store the calls of the operating system's libraries, too: many rows."
    ),
]

#: What to join or import.
Reports = Annotated[
    list[Path],
    typer.Argument(metavar="REPORT...", help="A .nsys-rep, or its export (.sqlite)."),
]


#: The folder of runs.
RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        help="Folder in which runs are named; default: the setting runs_dir.",
        metavar="DIR",
        show_default=False,
    ),
]

#: A run: its path, or its name in the folder of runs.
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run's directory, its name in the folder of runs, or 'last'."
    ),
]

#: A run or a trace.
RunOrTrace = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|TRACE",
        help="A trace.h5, or a run: its directory, its name in the folder of runs, or 'last'.",
    ),
]


#: Which samples of calls are meant.
OfFunction = Annotated[
    str | None,
    typer.Option(
        "--function",
        metavar="NAME",
        help="Of call stacks: only tasks of this function.",
        show_default=False,
    ),
]
OnWorker = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="NAME",
        help="Of call stacks: only this worker, or the scheduler.",
        show_default=False,
    ),
]
Between = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="SECONDS SECONDS",
        help="Of call stacks: only between two moments, from the first task's start.",
        show_default=False,
    ),
]


def of_runs(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command take ``--runs-dir``, and some of its paths be names of runs as well.

    Parameters
    ----------
    names
        Parameters of the command, each a path, a list of paths, or None.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        def with_named_runs(*, runs_dir: Path | None = None, **values: Any) -> None:
            from dasf_hpc.named import named_run

            for name in names:
                given = values.get(name)
                if isinstance(given, list):
                    values[name] = [named_run(path, runs_dir) for path in given]
                elif given is not None:
                    values[name] = named_run(given, runs_dir)
            command(**values)

        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        option = inspect.Parameter(
            "runs_dir", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=RunsDir
        )
        _as(command, with_named_runs, [*parameters, option])
        return with_named_runs

    return add


def _as(
    command: Callable[..., None], wrapper: Callable[..., None], parameters: list[inspect.Parameter]
) -> None:
    """Have a function that calls a command look to typer like the command, with its parameters."""
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__


def choices(*names: str) -> Callable[[str], list[str]]:
    """Give what completes an option that is one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def _analyses(incomplete: str) -> list[tuple[str, str]]:
    from dasf_hpc.analysis import ANALYSES

    return [(name, asked.text) for name, asked in ANALYSES.items() if name.startswith(incomplete)]


def _console() -> Console:
    return Console(stderr=True)


def _say(console: Console) -> Callable[[str], None]:
    """Give what prints a sentence as it is: on a terminal it breaks lines, a pipe gets it whole."""
    return functools.partial(
        console.print, markup=False, highlight=False, soft_wrap=not console.is_terminal
    )


def settings_options(
    command: Callable[..., None], without: frozenset[str] = frozenset()
) -> Callable[..., None]:
    """Give a command an option for every setting; those that were given arrive as ``given``.

    Settings' own defaults are shown but not passed, so that variables and files come through.

    Parameters
    ----------
    command
        The command.
    without
        Names of settings that it has no option for.
    """
    fields = {name: field for name, field in Settings.model_fields.items() if name not in without}
    shown = {name: dict(cast("dict[str, str]", f.json_schema_extra)) for name, f in fields.items()}
    fields = dict(sorted(fields.items(), key=lambda f: TOPICS.index(shown[f[0]]["topic"])))
    parameters = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name != "given"
    ]
    for name, field in fields.items():
        annotation: Any = field.annotation
        flag = "--" + name.replace("_", "-")
        plain = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
        kind = annotation
        if type(None) in getattr(annotation, "__args__", ()):
            kind = plain[0]
        text, complete = field.description or "", None
        if getattr(kind, "__origin__", None) is not None and "Literal" in str(kind):
            text += f" One of: {', '.join(kind.__args__)}."
            complete = choices(*kind.__args__)
            kind = str
        if field.default not in (None, [], False) and kind is not bool:
            default = field.default
            text += (
                f" Default: {default:g}." if isinstance(default, float) else f" Default: {default}."
            )
        flags = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
        metavar = None if kind is bool else shown[name]["metavar"]
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    kind | None,
                    typer.Option(
                        *flags,
                        help=text,
                        metavar=metavar,
                        show_default=False,
                        autocompletion=complete,
                        rich_help_panel=shown[name]["topic"],
                    ),
                ],
            )
        )

    def with_settings(**values: Any) -> None:
        given = {name: values.pop(name) for name in fields if values.get(name) not in (None, [])}
        command(given=given, **{k: v for k, v in values.items() if k not in fields})

    parameters.sort(key=lambda p: p.kind is inspect.Parameter.KEYWORD_ONLY)
    _as(command, with_settings, parameters)
    return with_settings


def _load_hidden(given: dict[str, Any]) -> Settings:
    """Load the settings of a run; where some are secret, in a process that is started without."""
    from dasf_hpc.launch.worker_environment import handed_over, start_again_without

    handed = handed_over()
    settings = load_settings(given if handed is None else {**given, "env": handed})
    if settings.env and handed is None:
        start_again_without(settings.env, given.get("env") or [])
    return settings


def submit(
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB", help="A Python script, a notebook (.ipynb), or example:seismic."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="The script's arguments; {scheduler_file} in one stands for the path of the "
            "run's scheduler file.",
        ),
    ] = None,
    module: Annotated[
        bool,
        typer.Option("--module", "-m", help="JOB is a module, run as 'python -m JOB' does."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script and start nothing.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Have a batch job be the head, and return at once."),
    ] = False,
    run_directory: Annotated[Path | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Run a Dask script on a cluster and bring back its trace.

    The script runs as a process of its own, unmodified: Client() in it finds the cluster, and so
    does Client(scheduler_file=...) with the file that DASF_HPC_SCHEDULER_FILE names. The command's
    exit code is the script's, or one of those that dasf-hpc --help-exit-codes lists.
    """
    if module:
        from dasf_hpc.launch.job import MODULE

        job = MODULE + job
    if run_directory is not None:
        from dasf_hpc.launch.worker_environment import take_environment

        settings = load_settings({**(given or {}), **take_environment(run_directory)})
    elif dry_run or detach:
        settings = load_settings(given or {})
    else:
        settings = _load_hidden(given or {})
    from dasf_hpc import batch, run
    from dasf_hpc.launch.output import begin_line
    from dasf_hpc.show.progress import progress

    if dry_run:
        print(batch.dry_run(settings, job, arguments or [], detach))
        return
    if detach:
        directory = batch.detach(settings, job, arguments or [])
        name = {"run": directory.name, "directory": str(directory)}
        print(json.dumps(name, indent=1) if as_json else directory)
        return
    console = _console()
    with progress(console, phases=True) as told:
        result = run.submit(settings, job, arguments or [], told, run_directory)
    if as_json:
        begin_line(sys.stdout.fileno())
    _print_summary(result.directory, as_json, console, result.summary, ended=result)
    if result.error is not None:
        raise result.error
    raise typer.Exit(result.exit_code)


app.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)(settings_options(submit))


def doctor(as_json: AsJson = False, given: dict[str, Any] | None = None) -> None:
    """Look at login node, compute node and image: what would keep a run from working?

    A trial job is submitted with the options of a run. Exits with 78 if a check failed.
    """
    settings = load_settings(given or {})
    from dasf_hpc.doctor import examine
    from dasf_hpc.show.checks import show_checks
    from dasf_hpc.show.progress import progress

    with progress(_console()) as told:
        checks = examine.examine(settings, told)
    if as_json:
        print(examine.as_json(checks))
    else:
        show_checks(Console(), checks)
    failed = [f"{check.name} ({check.where})" for check in checks if check.status == "fail"]
    if failed:
        raise DoctorError(f"{len(failed)} check(s) failed: {', '.join(failed)}.")


app.command(cls=Command)(settings_options(doctor))


def template(
    system: Annotated[
        str,
        typer.Argument(
            metavar="SYSTEM",
            help="slurm, pbs or lsf.",
            autocompletion=choices("slurm", "pbs", "lsf"),
        ),
    ],
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="head, allocation or array.",
            autocompletion=choices("head", "allocation", "array"),
        ),
    ] = "head",
    given: dict[str, Any] | None = None,
) -> None:
    """Print a batch script to submit runs with, filled in for the site."""
    settings = load_settings(given or {})
    from dasf_hpc.launch.head import filled_template

    print(filled_template(system, kind, settings), end="")


app.command(cls=Command)(settings_options(template))


def merge(
    run_path: Run,
    nsys_path: NsysPath = None,
    os_runtime: OsRuntime = False,
    strict: Strict = False,
    as_json: AsJson = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Merge a run's journals and join its reports again, from what is on disk.

    With --on, --nodes or any other option that says how to get nodes, workers on those read the
    journals and make the trace, the same one; without, this machine's cores do.
    """
    settings = load_settings(given) if given else None
    from dasf_hpc import outcome
    from dasf_hpc.show.progress import progress

    console = _console()
    with progress(console) as told, _told_of_interruption(run_path):
        if settings is None:
            summary = outcome.merge_run(run_path, nsys_path, told, os_runtime)
        else:
            summary = outcome.merge_on_nodes(
                run_path, settings, nsys_path, told, _say(console), os_runtime
            )
    _print_summary(run_path, as_json, console, summary, strict)


@contextlib.contextmanager
def _told_of_interruption(run_path: Path) -> Iterator[None]:
    """Say how to go on where a merge is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun(
            f"Interrupted while merging; to merge again: dasf-hpc merge {run_path}"
        ) from None


app.command(cls=Command)(settings_options(of_runs("run_path")(merge), OF_RECORDING))


@app.command(cls=Command)
@of_runs("into")
def join(
    reports: Reports,
    into: Annotated[
        Path, typer.Option(metavar="PATH", help="A trace.h5, or the directory of a run.")
    ],
    nsys_path: NsysPath = None,
    os_runtime: OsRuntime = False,
    as_json: AsJson = False,
) -> None:
    """Add Nsight reports that no submit made to a trace, linked to its tasks by host and pid."""
    from dasf_hpc.imports import Wishes, join_into
    from dasf_hpc.show.progress import progress

    console = _console()
    with progress(console) as told:
        done = join_into(reports, into, Wishes(nsys_path, os_runtime), told)
    _print_imported(done, as_json, console)


@app.command(name="import", cls=Command)
def import_(
    reports: Reports,
    into: Annotated[Path, typer.Option(metavar="PATH", help="The trace.h5 to write.")],
    nsys_path: NsysPath = None,
    os_runtime: OsRuntime = False,
    as_json: AsJson = False,
) -> None:
    """Make a trace of Nsight reports alone, without Dask, or of dasf-core's own traces."""
    from dasf_hpc.imports import Wishes, import_files
    from dasf_hpc.show.progress import progress

    console = _console()
    with progress(console) as told:
        done = import_files(reports, into, Wishes(nsys_path, os_runtime), told)
    _print_imported(done, as_json, console)


@app.command(cls=Command)
@of_runs("run_path")
def show(
    run_path: RunOrTrace,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run's trace holds, what is missing from it, and how efficient the run was."""
    _print_summary(run_path, as_json, Console(), strict=strict, efficient=True)


@app.command(cls=Command)
def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="Folder of the runs, as --runs-dir.", show_default=False
        ),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder and their states."""
    from dasf_hpc.named import runs_folder
    from dasf_hpc.runs import list_runs
    from dasf_hpc.show.terminal import show_runs

    if None not in (folder, runs_dir):
        raise typer.BadParameter("give the folder once: as DIR or with --runs-dir")
    found = list_runs(runs_folder(folder or runs_dir))
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=1))
    else:
        show_runs(Console(), found)


@app.command(cls=Command)
@of_runs("run_path")
def cancel(
    run_path: Run,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long to wait for the run to end gracefully."),
    ] = 300.0,
) -> None:
    """Stop a run gracefully, from any host; one whose submit died has its jobs cancelled."""
    from dasf_hpc.runs import cancel_run

    print(cancel_run(run_path, wait))


@app.command(cls=Command)
@of_runs("run_path")
def logs(
    run_path: Run,
    node: Annotated[
        str | None,
        typer.Argument(
            metavar="NODE", help="A node's host name, or job or scheduler; default: job."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run is over.")
    ] = False,
) -> None:
    """Print what the job, the scheduler or a node of a run said."""
    from dasf_hpc.runs import read_logs

    for text in read_logs(run_path, node or "job", follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command(cls=Command)
@of_runs("run_path", "reference")
def analyze(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The analysis; without one they are listed.",
            autocompletion=_analyses,
        ),
    ] = None,
    run_path: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|TRACE",
            help="A trace.h5, or a run: its directory, its name in the folder of runs, or 'last'.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="functions: function, node, worker, gpu; communication: node, worker; layers: "
            "function, layer.",
            autocompletion=choices("function", "node", "worker", "gpu", "layer"),
        ),
    ] = None,
    faster: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FUNCTION=TIMES", help="what_if: a function and how many times faster."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="efficiencies: a run of the same work to compare the computation to.",
        ),
    ] = None,
    function: OfFunction = None,
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="memory: only this worker. stacks: only this worker, or the scheduler.",
        ),
    ] = None,
    between: Between = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Rows of a table at most; default: 20 on a terminal, else all."
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The table for --csv; default: the first."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask one question of a run: where, functions, balance, critical_path, what_if, gpu ...

    Findings come first, each with what to do next; what could not be looked at is said.
    """
    from dasf_hpc.show import answers

    if name is None or run_path is None:
        if name is not None:
            raise typer.BadParameter(f"give a run: dasf-hpc analyze {name} RUN")
        if as_json:
            print(json.dumps(answers.questions(), indent=1))
        else:
            answers.show_analyses(Console())
        return
    from dasf_hpc.analysis import ANALYSES
    from dasf_hpc.trace.open import open_trace

    if name not in ANALYSES:
        raise typer.BadParameter(f"there is no analysis {name}; there are {', '.join(ANALYSES)}")
    more: dict[str, Any] = {}
    if name == "task_bottleneck" and (rows is not None or as_json or as_csv):
        from dasf_hpc.analysis.functions import LONGEST

        more = {"longest": None if rows is None else max(rows, LONGEST)}
    if reference is not None and name != "efficiencies":
        raise typer.BadParameter(f"{name} takes no --reference")
    chosen = {"function": function, "worker": worker, "between": between}
    more |= {option: given for option, given in chosen.items() if given is not None}
    if name != "stacks":
        _only_of_stacks({**chosen, "worker": None if name == "memory" else worker}, name)
    with contextlib.ExitStack() as opened:
        trace = opened.enter_context(open_trace(run_path))
        if reference is not None:
            more["reference"] = opened.enter_context(open_trace(reference))
        answer = _answer(name, trace, by, faster or [], **more)
        if as_json:
            print(json.dumps(answer.document(rows), indent=1))
        elif as_csv:
            if table is not None and table not in answer.tables:
                raise typer.BadParameter(f"{name} has the tables {', '.join(answer.tables)}")
            answers.write_csv(answer, table, rows, sys.stdout)
        else:
            answers.show_answer(Console(), answer, rows or answers.ROWS, trace)


def _only_of_stacks(chosen: dict[str, Any], name: str) -> None:
    """Refuse to choose samples where there is nothing to choose from."""
    for option, given in chosen.items():
        if given is not None:
            raise typer.BadParameter(f"{name} takes no --{option}")


def _answer(name: str, trace: Trace, by: str | None, faster: list[str], **options: Any) -> Answer:
    from dasf_hpc.analysis import analyse

    if by is not None:
        if name not in ("functions", "communication", "layers"):
            raise typer.BadParameter(f"{name} takes no --by")
        options["by"] = by
    if faster:
        if name != "what_if":
            raise typer.BadParameter(f"{name} takes no --faster")
        options["faster"] = dict(map(_times_faster, faster))
    try:
        return analyse(name, trace, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _times_faster(given: str) -> tuple[str, float]:
    function, _, factor = given.rpartition("=")
    try:
        return function, float(factor.removesuffix("x"))
    except ValueError:
        raise typer.BadParameter(f"{given} is not FUNCTION=TIMES, as fft=2") from None


class _Sides(Command):
    """Reads ``BASE ... --head HEAD ...``: what follows --head, up to an option, is of its side."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelt: list[str] = []
        in_head = False
        for i, argument in enumerate(args):
            if argument.startswith("-"):
                in_head = argument == "--head" or argument.startswith("--head=")
                if argument != "--head":
                    spelt.append(argument)
            elif in_head:
                spelt += ["--head", argument]
            else:
                spelt.append(argument)
            if argument == "--head" and args[i + 1 : i + 2] in ([], ["--"]):
                spelt.append("--head")  # which is an error, and said so
        return super().parse_args(ctx, spelt)


@app.command(cls=_Sides)
@of_runs("base", "head")
def compare(
    base: Annotated[
        list[Path] | None, typer.Argument(metavar="BASE...", help="Runs before the change.")
    ] = None,
    head: Annotated[
        list[Path] | None, typer.Option(metavar="HEAD...", help="Runs after it.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A saved baseline: more runs before the change."),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Save the head runs, or without any the base runs, as a baseline."
        ),
    ] = None,
    relative: Annotated[
        float, typer.Option(metavar="PERCENT", min=0, help="A smaller change is none.")
    ] = 5.0,
    absolute: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="A smaller change is none, of the threads' time."
        ),
    ] = 0.1,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for a pull request.")
    ] = False,
    as_github: Annotated[
        bool, typer.Option("--github", help="Print GitHub's annotations.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write JUnit XML to this file, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the head runs are slower than the base runs, by the runs' own noise.

    Give several runs of each side, best five: their differences among themselves are the noise.
    Exit codes: 0 the same or faster, 81 slower, 82 cannot tell.
    """
    from dasf_hpc.analysis import compare as gate
    from dasf_hpc.show import gate as show_gate

    before, after = _measured(base or []), _measured(head or [])
    if baseline is not None:
        before = [*gate.load_baseline(baseline), *before]
    if save_baseline is not None and (before or after):
        gate.save_baseline(save_baseline, after or before)
        if not after:
            return
    if not before or not after:
        raise typer.BadParameter("give runs of both sides: BASE... --head HEAD...")
    found = gate.compare(before, after, relative, absolute)
    if junit is not None:
        _write_text(junit, show_gate.junit(found))
    if as_json:
        print(json.dumps(found.document(), indent=1))
    elif as_markdown:
        print(show_gate.markdown(found), end="")
    elif as_github:
        print(show_gate.github(found), end="")
    else:
        show_gate.show_comparison(Console(), found)
    _exit_by_verdict(found)


@app.command(cls=Command)
@of_runs("paths")
def trend(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|RUN|FILE...",
            help="Folders of runs, runs, baselines (.json) and histories of ci (.jsonl).",
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write a page that opens offline, too.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    false_alarms: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0.1, max=20, help="What may be false of what is said to change."
        ),
    ] = 2.0,
    relative: Annotated[
        float, typer.Option(metavar="PERCENT", min=0, help="A smaller change is none.")
    ] = 2.0,
    absolute: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="A smaller change is none, of a sum.")
    ] = 0.1,
    fail_on_change: Annotated[
        bool,
        typer.Option("--fail-on-change", help="Exit with 81 if it became slower and still is so."),
    ] = False,
    recent: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="For that, a change began within the last N commits; 0: ever."
        ),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Show many runs over time, and which commits made them slower or faster.

    Ten commits (or runs, where commits are not known) of one script on the same hardware are
    needed at least. Exit code 0, or with --fail-on-change 81 for what is worse and still so.
    """
    from dasf_hpc.show.progress import progress
    from dasf_hpc.trend.find import fails
    from dasf_hpc.trend.find import trend as find
    from dasf_hpc.trend.gather import gather
    from dasf_hpc.trend.text import markdown, show_trend

    console = _console()
    with progress(console) as told:
        gathered = gather(paths, told)
        found = find(gathered, false_alarms / 100, relative, absolute, told)
        if html is not None:
            from dasf_hpc.trend.page import write_page

            _say(console)(f"Written: {write_page(found, html)}")
    if as_json:
        print(json.dumps(found.document(), indent=1))
    elif as_markdown:
        print(markdown(found), end="")
    else:
        show_trend(Console(), found)
    if fail_on_change and fails(found, recent):
        raise Regression(found.sentence)


def _exit_by_verdict(found: Comparison, allow_cannot_tell: bool = False) -> None:
    if found.verdict == "regression":
        raise Regression(found.why)
    if found.verdict == "cannot tell" and not allow_cannot_tell:
        raise CannotTell(found.why)


def ci(
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB", help="A Python script, a notebook (.ipynb), or example:seismic."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="The script's arguments; {scheduler_file} in one stands for the path of the "
            "run's scheduler file.",
        ),
    ] = None,
    module: Annotated[
        bool,
        typer.Option("--module", "-m", help="JOB is a module, run as 'python -m JOB' does."),
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="How often to run it; once more if the only run is slower."
        ),
    ] = 5,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The base side: a head.json of before. It need not be there yet."
        ),
    ] = None,
    into: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for runs/, compare.md, .xml and .json, and head.json."
        ),
    ] = Path("dasf-hpc-ci"),
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where a line of each run is kept for trend; default: history.jsonl beside the "
            "baseline, or in --into.",
        ),
    ] = None,
    allow_cannot_tell: Annotated[
        bool, typer.Option("--allow-cannot-tell", help="Exit with 0, not 82, if it cannot tell.")
    ] = False,
    relative: Annotated[
        float, typer.Option(metavar="PERCENT", help="A smaller change is none.")
    ] = 5.0,
    absolute: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="A smaller change is none, of the threads' time."),
    ] = 0.1,
    as_github: Annotated[
        bool, typer.Option("--github", help="Print GitHub's annotations, too.")
    ] = False,
    as_json: AsJson = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Run a script several times and compare it with a baseline: submit and compare in one.

    Exit codes: 0 the same or faster, 81 slower, 82 cannot tell; those of submit where a run failed.
    """
    settings = _load_hidden(given or {})
    from dasf_hpc.analysis.compare import load_baseline
    from dasf_hpc.ci import (
        HISTORY,
        compare_with_baseline,
        keep_history,
        only_run_is_slower,
        repeat,
    )
    from dasf_hpc.launch.output import begin_line
    from dasf_hpc.show import gate as show_gate
    from dasf_hpc.show.progress import progress

    base = load_baseline(baseline) if baseline and baseline.exists() else []
    console = _console()
    with progress(console, phases=True) as told:
        results = repeat(
            settings,
            job,
            arguments or [],
            repeats,
            into,
            told,
            lambda runs: only_run_is_slower(runs, base, relative, absolute),
        )
    directories = [result.directory for result in results]
    beside = history or (baseline or into / HISTORY).with_name(HISTORY)
    for sentence in keep_history(directories, beside):
        _say(console)(sentence)
    if results[-1].exit_code:
        raise results[-1].error or typer.Exit(results[-1].exit_code)
    found = compare_with_baseline(directories, base, into, relative, absolute)
    begin_line(sys.stdout.fileno())
    if as_json:
        print(json.dumps(found.document(), indent=1))
    else:
        show_gate.show_comparison(Console(), found)
    if as_github:
        print(show_gate.github(found), end="")
    _exit_by_verdict(found, allow_cannot_tell)


app.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)(settings_options(ci, frozenset({"runs_dir"})))


def scale(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB", help="A Python script, a notebook (.ipynb), or example:seismic."
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="The script's arguments; {nodes}, {workers} and {threads} in one stand for how "
            "many a run has, {size} for --size-per-node times the scale.",
        ),
    ] = None,
    module: Annotated[
        bool,
        typer.Option("--module", "-m", help="JOB is a module, run as 'python -m JOB' does."),
    ] = False,
    nodes: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="The scales: numbers of nodes, such as 1,2,4,8."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="The scales: numbers of workers of one node."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="The scales: numbers of GPUs of one node."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs of each scale; they show the noise.")
    ] = 3,
    weak: Annotated[
        bool, typer.Option("--weak", help="The work grows with the scale, as an argument says.")
    ] = False,
    size_per_node: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="What {size} is at scale 1: of a node, worker or GPU."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="STUDY",
            help="Make the runs that this study lacks; so does the command that began it.",
        ),
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Begin a new study, also where one can be gone on with.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which runs there would be and start none.")
    ] = False,
    as_json: AsJson = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Run a script at several scales and say how it scales.

    All scales are run once, then again. Interrupted, it goes on where it was; what fails is told at
    the end and the rest is kept. Exit codes: 84 some runs failed, 130 interrupted.
    """
    if (job is None) == (resume is None):
        raise typer.BadParameter("give a job, or --resume STUDY")
    if resume is not None and set(given or {}) - {"env"}:
        raise typer.BadParameter("with --resume a study has the options that it was begun with")
    settings = _load_hidden(given or {})
    from dasf_hpc.launch.output import begin_line
    from dasf_hpc.scaling import plan, runs, words
    from dasf_hpc.scaling import scale as whole
    from dasf_hpc.show.progress import progress

    if resume is not None:
        from dasf_hpc.named import named_run

        resume = named_run(resume, None)
    if job is not None:
        if module:
            from dasf_hpc.launch.job import MODULE

            job = MODULE + job
        counted = {"nodes": nodes, "workers": workers, "gpus": gpus}
        asked = plan.make_plan(job, arguments or [], counted, repeats, weak, size_per_node)
        if dry_run:
            lines = plan.plan_lines(asked, plan.study_settings(asked, settings))
            print(json.dumps(lines, indent=1) if as_json else "\n".join(lines))
            return
    console = _console()
    with progress(console, phases=True) as told:
        if resume is not None:
            study = whole.resume(resume, settings.env, told)
        else:
            study = whole.begin(asked, settings, told, new)
        failed = runs.failed_error(study)
        try:
            found, page = whole.conclude(study, told)
        except DasfHpcError as error:
            raise failed or error from None
    begin_line(sys.stdout.fileno())
    if as_json:
        print(json.dumps({"study": str(study.directory), **found.document()}, indent=1))
    else:
        words.show_scaling(Console(), found)
        console.print(f"Study: {study.directory}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"Page: {page}", soft_wrap=True, highlight=False, markup=False)
    if failed is not None:
        raise failed


app.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)(settings_options(scale, frozenset({"nodes"})))


@app.command(cls=Command)
@of_runs("paths")
def scaling(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|STUDY...",
            help="Runs at several scales, or the directory of a study that scale made.",
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What a scale is counted in: nodes, workers, threads or gpus; default: as the "
            "study, else nodes.",
            autocompletion=choices("nodes", "workers", "threads", "gpus"),
        ),
    ] = None,
    weak: Annotated[
        bool, typer.Option("--weak", help="The work grows with the scale; a study says so itself.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for a paper or an issue.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write a page to this file, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how a program scales, from runs at several scales.

    Speed-up and efficiency, POP's factors, each function's time, the laws of Amdahl, Gustafson and
    Gunther with their intervals, and what stops scaling first.
    """
    from dasf_hpc.scaling import words
    from dasf_hpc.scaling.measure import BY
    from dasf_hpc.scaling.scale import look
    from dasf_hpc.show.progress import progress

    if by is not None and by not in BY:
        raise typer.BadParameter(f"--by {by}: there are {', '.join(BY)}")
    with progress(_console()) as told:
        found = look(paths, by, weak, told)
    if html is not None:
        from dasf_hpc.scaling.page import write_page

        write_page(found, html, paths[0].name)
    if as_json:
        print(json.dumps(found.document(), indent=1))
    elif as_markdown:
        print(words.markdown(found), end="")
    else:
        words.show_scaling(Console(), found)


def _measured(paths: list[Path]) -> list[Any]:
    from dasf_hpc.analysis.compare import measure
    from dasf_hpc.trace.open import open_trace

    measures = []
    for path in paths:
        with open_trace(path) as trace:
            measures.append(measure(trace, path.name))
    return measures


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}") from None


@app.command(cls=Command)
@of_runs("run_path")
def export(
    run_path: RunOrTrace,
    to: Annotated[
        Format,
        typer.Option(
            metavar="NAME", help=f"The format, one of: {', '.join(one.value for one in Format)}."
        ),
    ] = Format.PERFETTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="What to write; default: beside the trace."
        ),
    ] = None,
    function: OfFunction = None,
    worker: OnWorker = None,
    between: Between = None,
    as_json: AsJson = False,
) -> None:
    """Write a trace in another program's format: Perfetto's, Chrome's, speedscope's, Parquet, …"""
    from dasf_hpc.show.export import export as write
    from dasf_hpc.show.formats import OF_STACKS
    from dasf_hpc.show.progress import progress

    chosen = {"function": function, "worker": worker, "between": between}
    if to not in OF_STACKS:
        _only_of_stacks(chosen, f"--to {to.value}")
    try:
        with progress(_console()) as told:
            target = write(run_path, to, output, told, **chosen)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print(json.dumps({"written": str(target)}) if as_json else f"Written: {target}")


@app.command(cls=Command)
@of_runs("run_path")
def watch(
    run_path: Run,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, help="How long between two looks.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Watch a run until it is over, from what it records; the run does not notice."""
    from dasf_hpc.show import watch as show

    if as_json:
        for snapshot in show.watch(run_path, interval):
            print(json.dumps(show.snapshot_document(snapshot)), flush=True)
    else:
        show.show_watch(Console(), run_path, interval)


@app.command(cls=Command)
@of_runs("run_path")
def report(
    run_path: RunOrTrace,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file; default: report.html beside the trace.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report: one page that opens offline."""
    from dasf_hpc.show.progress import progress
    from dasf_hpc.show.report import write_report

    with progress(_console()) as told:
        target = write_report(run_path, output, told)
    print(json.dumps({"written": str(target)}) if as_json else f"Written: {target}")


image = typer.Typer(help="Make Apptainer or Docker images.", no_args_is_help=True, cls=Group)
app.add_typer(image, name="image")

#: Which of the images.
Variant = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="One of: cpu, cuda12, cuda13.",
        autocompletion=choices("cpu", "cuda12", "cuda13"),
    ),
]


@image.command(cls=Command)
def recipe(
    variant: Variant,
    container_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="One of: apptainer, docker.",
            autocompletion=choices("apptainer", "docker"),
        ),
    ] = "apptainer",
) -> None:
    """Print the definition of an image."""
    from dasf_hpc.image import image_recipe

    print(image_recipe(container_format, variant), end="")


@image.command(cls=Command)
def build(
    target: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="The image to make, such as dasf-hpc.sif.")
    ],
    variant: Variant,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Make a folder.")] = False,
    fakeroot: Annotated[bool, typer.Option("--fakeroot", help="Build without root.")] = False,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Argument of the definition: constraints (a file of versions), environment "
            "(variables for apt and pip, such as 'https_proxy=… PIP_INDEX_URL=…'), mirror "
            "(Debian's, for cpu); repeatable.",
        ),
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE:DESTINATION",
            help="Have the build see a folder, such as certificates for pip; repeatable.",
        ),
    ] = None,
) -> None:
    """Build an image with Apptainer from this checkout."""
    from dasf_hpc.image import build_image

    print(build_image(variant, target, sandbox, fakeroot, build_arg or [], bind or []))


def _print_summary(
    path: Path,
    as_json: bool,
    console: Console,
    summary: Summary | None = None,
    strict: bool = False,
    ended: RunResult | None = None,
    efficient: bool = False,
) -> None:
    """Print what a run's trace holds; the summary is read from the trace where none is given."""
    from dasf_hpc.outcome import missing, show_run
    from dasf_hpc.show.terminal import show_places, show_questions, show_summary

    summary, manifest, trace = show_run(path, summary)
    if as_json:
        told: dict[str, Any] = {
            "trace": str(trace),
            "summary": asdict(summary),
            "run": _public(manifest),
        }
        if efficient:
            told["efficiencies"] = _efficiencies(trace)
        print(json.dumps(told, indent=1))
    else:
        show_summary(console, summary, manifest)
        if ended is not None:
            _print_headline(ended, console)
        if efficient:
            _print_efficiencies(trace, console)
        page = trace.with_name("report.html")
        show_places(console, trace, page if page.exists() else None)
        if ended is None and summary.work >= 0:
            whole = trace.name == "trace.h5"
            show_questions(console, trace.parent if whole else trace, page.exists())
    gaps = missing(summary, manifest)
    if summary.unused:
        gaps.append(summary.unused)
    if strict and gaps:
        raise PartialRecording(f"The recording is not complete: {'; '.join(gaps)}.")


def _efficiencies(path: Path) -> list[dict[str, Any]] | None:
    """Give the rows of the tree of a run's efficiencies; None where that is not quickly made."""
    from dasf_hpc.show.efficiencies import quick
    from dasf_hpc.trace.open import open_trace

    with open_trace(path) as trace:
        answer = quick(trace)
    rows: list[dict[str, Any]] | None = None
    if answer is not None:
        rows = answer.document()["tables"]["tree"]["rows"]
    return rows


def _print_efficiencies(path: Path, console: Console) -> None:
    """Print the tree of a run's efficiencies, where that is quickly made."""
    from dasf_hpc.show.efficiencies import show_efficiencies
    from dasf_hpc.trace.open import open_trace

    with open_trace(path) as trace:
        show_efficiencies(console, trace, str(path))


def _print_headline(ended: RunResult, console: Console) -> None:
    """Print what cost a run most, where that was looked at for its report."""
    if ended.headline is not None:
        from dasf_hpc.show.answers import show_headline

        show_headline(console, ended.headline)
    elif ended.summary.work >= 0:
        from dasf_hpc.show.terminal import show_questions

        show_questions(console, ended.directory, (ended.directory / "report.html").exists())


def _print_imported(done: Imported, as_json: bool, console: Console) -> None:
    from dasf_hpc.outcome import show_run
    from dasf_hpc.show.terminal import show_places, show_reports, show_summary

    summary, _, trace = show_run(done.trace)
    if as_json:
        reports = [asdict(report) for report in done.reports]
        print(
            json.dumps(
                {
                    "trace": str(trace),
                    "reports": reports,
                    "skipped": done.skipped,
                    "summary": asdict(summary),
                },
                indent=1,
            )
        )
    else:
        show_reports(console, done.reports)
        for sentence in done.skipped:
            _say(console)(sentence)
        show_summary(console, summary, {})
        show_places(console, trace)


def _public(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give the manifest without the settings, whose prologue lines may hold what is private."""
    return {name: value for name, value in manifest.items() if name != "settings"}


def main() -> None:
    """Run the command line; errors a user can meet are one sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot write is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="dasf-hpc")  # also where it is called as python -m dasf_hpc
    except KeyboardInterrupt:
        sys.exit(InterruptedRun.exit_code)
    except DasfHpcError as error:
        print(f"dasf-hpc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    finally:
        leave_word_of_the_end()


if __name__ == "__main__":
    main()
