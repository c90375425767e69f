"""Show, a command's help: its options by topic, to be read on a terminal of any width.

Names of options are never cut; what they do stands beside them where there is room, else beneath.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer.core
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: On a terminal that is less wide, what an option does stands beneath it.
BESIDE = 72

#: The widest column of options; what a longer one does stands beneath it.
WIDEST = 30

#: Topics of what has none of its own.
ARGUMENTS, OPTIONS, COMMANDS = "Arguments", "Options", "Commands"

#: Where exit codes are told.
EPILOG = "Exit codes: dasf-hpc --help-exit-codes"


class Command(typer.core.TyperCommand):
    """A command whose help is written by `show_help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        show_help(self, ctx)


class Group(typer.core.TyperGroup):
    """A group of commands whose help is written by `show_help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        show_help(self, ctx)


def show_help(command: Any, ctx: Any) -> None:
    """Print a command's help: usage, what it does, arguments and options, exit codes."""
    console = Console(highlight=False)
    console.print(Text(" ".join(command.get_usage(ctx).split()), "bold"))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print()
        console.print(Text(" ".join(paragraph.split())))
    topics: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        argument = param.param_type_name == "argument"
        topic = getattr(param, "rich_help_panel", None) or (ARGUMENTS if argument else OPTIONS)
        topics.setdefault(topic, []).append((_named(param), _told(param)))
    if isinstance(command, Group):
        topics[COMMANDS] = []
        for name in command.list_commands(ctx):
            one = command.get_command(ctx, name)
            if one is not None and not one.hidden:
                paragraph = inspect.cleandoc(one.help or "").split("\n\n")[0]
                topics[COMMANDS].append((name, " ".join(paragraph.split())))
    # one width for all topics: what options do begins at one place
    widest = max((len(name) for rows in topics.values() for name, _ in rows), default=0)
    for topic, rows in topics.items():
        if rows:
            console.print()
            console.print(Text(f"{topic}:", "bold"))
            _show_rows(console, rows, min(widest, WIDEST))
    console.print()
    console.print(Text(command.epilog or EPILOG, "dim"))


def _show_rows(console: Console, rows: list[tuple[str, str]], room: int) -> None:
    beside = console.width >= BESIDE
    for name, told in rows:
        if not beside or len(name) > room:
            console.print(Padding(Text(name, "cyan"), (0, 0, 0, 2)))
            console.print(Padding(Text(told), (0, 0, 0, 4 + room if beside else 6)))
            continue
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=room + 2, no_wrap=True)
        line.add_column()
        line.add_row(Text(f"  {name}", "cyan"), Text(told))
        console.print(line)


def _named(param: Any) -> str:
    """Name a parameter as it is given: ``-o, --output PATH``."""
    if param.param_type_name == "argument":
        name = str(param.metavar or param.name.upper())
        return f"{name}..." if param.nargs != 1 and not name.endswith("...") else name
    words = [*sorted(param.opts, key=len), *param.secondary_opts]
    text = ", ".join(words)
    if param.is_flag or getattr(param, "count", False):
        return text
    return f"{text} {param.metavar or 'TEXT'}"


def _told(param: Any) -> str:
    """Say what a parameter does, what it may be and what it is where it is not given."""
    text = " ".join((param.help or "").split())
    default = param.default
    known = default is not None and default is not False and default != [] and default != ()
    if param.show_default and known and not callable(default):
        text += f" Default: {getattr(default, 'value', default)}."
    return text + " Required." * bool(param.required)
