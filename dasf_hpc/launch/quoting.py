"""Launch: names and paths of the user's on their way into scripts and options, one place a way."""

from __future__ import annotations

import re
import shlex

#: A variable in a word for the shell, ``$NAME`` or ``${NAME}``.
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})", re.ASCII)
#: What means something to the shell between double quotes.
_SPECIAL = re.compile(r'([\\"`$])')


def shell_word(text: str) -> str:
    """Quote a text for the shell, which then sees it as it is."""
    return shlex.quote(text)


def shell_path(text: str) -> str:
    """Quote a path for the shell, which fills in variables, as in ``$TMPDIR/dask``, and only those.

    A variable that is not set there ends the script with a sentence rather than with another path.
    """
    if not _VARIABLE.search(text):
        return shlex.quote(text)
    parts, end = [], 0
    for found in _VARIABLE.finditer(text):
        name = found[0].strip("${}")
        parts.append(_SPECIAL.sub(r"\\\1", text[end : found.start()]))
        parts.append(f"${{{name}:?is not set on this node}}")
        end = found.end()
    return '"' + "".join([*parts, _SPECIAL.sub(r"\\\1", text[end:])]) + '"'


def nsys_output(path: str) -> str:
    """Write a path for ``nsys profile --output``, which fills in what follows a ``%``.

    ``nsys profile --help``: %p, %h, %n and %q{NAME} are a process, a host, a number, a variable.
    """
    return path.replace("%", "%%")
