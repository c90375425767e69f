"""The command line: parses and calls; every command is a few lines."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dasf_hpc.errors import (
    DasfHpcError,
    DoctorError,
    InterruptedRun,
    PartialRecording,
    exit_code_table,
)
from dasf_hpc.settings import Settings, load_settings

app = typer.Typer(
    name="dasf-hpc",
    help="Runs an ordinary Dask script on a GPU cluster and brings back one file that says where "
    "every second went.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + "; ".join(f"{c} {m[:1].lower()}{m[1:]}" for c, m in exit_code_table()),
)

#: Whether a command prints JSON.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


#: Whether anything that is missing is an error.
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with a code above 0 if anything is missing.")
]


def _console() -> Console:
    return Console(stderr=True)


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting; those that were given arrive as ``given``.

    Settings' own defaults are shown but not passed, so that variables and files come through.
    """
    parameters = [
        p
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name != "given"
    ]
    for name, field in Settings.model_fields.items():
        annotation: Any = field.annotation
        flag = "--" + name.replace("_", "-")
        plain = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
        kind = annotation
        if type(None) in getattr(annotation, "__args__", ()):
            kind = plain[0]
        text = field.description or ""
        if getattr(kind, "__origin__", None) is not None and "Literal" in str(kind):
            text += f" One of: {', '.join(kind.__args__)}."
            kind = str
        if field.default not in (None, [], False) and kind is not bool:
            text += f" Default: {field.default}."
        flags = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
        metavar = None if kind is bool else name.split("_")[-1].upper()
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    kind | None,
                    typer.Option(*flags, help=text, metavar=metavar, show_default=False),
                ],
            )
        )

    def with_settings(**values: Any) -> None:
        given = {
            name: values.pop(name)
            for name in Settings.model_fields
            if values.get(name) not in (None, [])
        }
        command(given=given, **{k: v for k, v in values.items() if k not in Settings.model_fields})

    signature = inspect.Signature(
        sorted(parameters, key=lambda p: p.kind is inspect.Parameter.KEYWORD_ONLY)
    )
    with_settings.__signature__ = signature  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    with_settings.__name__ = command.__name__
    with_settings.__doc__ = command.__doc__
    return with_settings


def submit(
    job: Annotated[str, typer.Argument(help="A Python script, or example:seismic.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's arguments.")
    ] = None,
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

    The script runs as a process of its own, unmodified: Client() in it finds the cluster. The
    command's exit code is the script's, or one of those listed in the README.
    """
    settings = load_settings(given or {})
    from dasf_hpc import run
    from dasf_hpc.show.terminal import progress, show_summary

    if dry_run:
        print(run.dry_run(settings, job, arguments or []))
        return
    if detach:
        directory = run.detach(settings, job, arguments or [])
        name = {"run": directory.name, "directory": str(directory)}
        print(json.dumps(name, indent=1) if as_json else directory)
        return
    console = _console()
    with progress(console) as told:
        result = run.submit(settings, job, arguments or [], told, run_directory)
    _print_summary(result.directory, as_json, console, show_summary)
    if result.error is not None:
        raise result.error
    raise typer.Exit(result.exit_code)


app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(
    settings_options(submit)
)


def doctor(as_json: AsJson = False, given: dict[str, Any] | None = None) -> None:
    """Look at login node, compute node and image: what would keep a run from working?

    A trial job is submitted with the options of a run. Exits with 78 if a check failed.
    """
    settings = load_settings(given or {})
    from dasf_hpc import run
    from dasf_hpc.doctor.examine import as_json as checks_json
    from dasf_hpc.show.checks import show_checks
    from dasf_hpc.show.terminal import progress

    with progress(_console()) as told:
        checks = run.examine(settings, told)
    if as_json:
        print(checks_json(checks))
    else:
        show_checks(Console(), checks)
    failed = [f"{check.name} ({check.where})" for check in checks if check.status == "fail"]
    if failed:
        raise DoctorError(f"{len(failed)} check(s) failed: {', '.join(failed)}.")


app.command()(settings_options(doctor))


def template(
    system: Annotated[str, typer.Argument(help="slurm or pbs.")],
    kind: Annotated[str, typer.Argument(help="head, allocation (slurm) or array.")] = "head",
    given: dict[str, Any] | None = None,
) -> None:
    """Print a batch script to submit runs with, filled in for the site."""
    settings = load_settings(given or {})
    from dasf_hpc.launch.head import filled_template

    print(filled_template(system, kind, settings), end="")


app.command()(settings_options(template))


@app.command()
def merge(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    nsys_path: Annotated[
        str | None, typer.Option(help="The nsys that exports the reports; default: from PATH.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Merge a run's journals and join its reports again, from what is on disk."""
    from dasf_hpc import run
    from dasf_hpc.show.terminal import progress, show_summary

    console = _console()
    with progress(console) as told:
        run.merge_run(run_path, nsys_path, told)
    _print_summary(run_path, as_json, console, show_summary, strict)


@app.command()
def show(
    run_path: Annotated[
        Path, typer.Argument(metavar="RUN|TRACE", help="A run's directory or a trace.h5.")
    ],
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run's trace holds, and what is missing from it."""
    from dasf_hpc.show.terminal import show_summary

    _print_summary(run_path, as_json, Console(), show_summary, strict)


@app.command()
def runs(
    runs_dir: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder and their states."""
    from dasf_hpc.runs import list_runs
    from dasf_hpc.show.terminal import show_runs

    found = list_runs(runs_dir)
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=1))
    else:
        show_runs(Console(), found)


@app.command()
def cancel(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the run to end gracefully.")
    ] = 300.0,
) -> None:
    """Stop a run gracefully, from any host; one whose submit died has its jobs cancelled."""
    from dasf_hpc.runs import cancel_run

    print(cancel_run(run_path, wait))


@app.command()
def logs(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    node: Annotated[
        str | None, typer.Argument(help="A node's host name, or job or scheduler; default: job.")
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


image = typer.Typer(help="Make Apptainer or Docker images.", no_args_is_help=True)
app.add_typer(image, name="image")

#: Which of the images.
Variant = Annotated[str, typer.Option(help="One of: cpu, cuda12, cuda13.")]


@image.command()
def recipe(
    variant: Variant,
    container_format: Annotated[
        str, typer.Option("--format", help="One of: apptainer, docker.")
    ] = "apptainer",
) -> None:
    """Print the definition of an image."""
    from dasf_hpc.image import image_recipe

    print(image_recipe(container_format, variant), end="")


@image.command()
def build(
    target: Annotated[Path, typer.Argument(help="The image to make, such as dasf-hpc.sif.")],
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
    show_summary: Callable[..., None],
    strict: bool = False,
) -> None:
    from dasf_hpc.run import missing, show_run

    summary, manifest, trace = show_run(path)
    if as_json:
        print(
            json.dumps(
                {"trace": str(trace), "summary": asdict(summary), "run": _public(manifest)},
                indent=1,
            )
        )
    else:
        show_summary(console, summary, manifest, trace)
    gaps = missing(summary, manifest)
    if strict and gaps:
        raise PartialRecording(f"The recording is not complete: {'; '.join(gaps)}.")


def _public(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give the manifest without the settings, whose prologue lines may hold what is private."""
    return {name: value for name, value in manifest.items() if name != "settings"}


def main() -> None:
    """Run the command line; errors a user can meet are one sentence and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(InterruptedRun.exit_code)
    except DasfHpcError as error:
        print(f"dasf-hpc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
