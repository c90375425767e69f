"""Nsight, what nsys says of its own recording: texts that may be stored, and what they say is lost.

The texts come out of the profiled program's surroundings: before they are kept they lose values of
variables and the folders of paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Stands for what was taken out of a text.
TAKEN_OUT = "…"

#: Characters of a text that are kept: nsys's own have up to 200, a driver's message may have more.
MOST = 500
#: Of a text that is longer the rest is not looked at, and not kept.
LOOKED_AT = 2000

#: What the numbers of ``DIAGNOSTIC_EVENT`` mean where the export does not say it itself.
SEVERITIES: Mapping[int, str] = {1: "info", 2: "warning", 3: "error"}
SOURCES: Mapping[int, str] = {1: "injection", 2: "daemon", 3: "analysis"}
TARGET_TIME = 1
"""``timestampType`` of a time of the recording; others are of the host that made the report."""

# ---------------------------------------------------------------------------------- redaction

#: A word as a shell reads it: quotes and backslashes keep blanks inside; one without end goes on.
_WORD = r"""(?:"(?:\\.|[^"\\])*(?:"|\\?\Z)|'[^']*(?:'|\Z)|\\(?:.|\Z)|[^\s"'\\])+"""
_VALUE = re.compile(rf"=(?:\s*){_WORD}", re.DOTALL)
#: What is secret by its name also where a colon stands before it.
_SECRET = re.compile(
    r"(?i)(\b[\w.-]*(?:token|secret|passw\w*|passphrase|credentials?|authorization|api[_-]?key"
    rf"|access[_-]?key)[\w.-]*[\"']?\s*:\s*(?:(?:bearer|basic)\s+)?){_WORD}",
    re.DOTALL,
)
_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://\S*")
_QUOTED_PATH = re.compile(r"""(["'`])((?:~\w*|\.{1,2}|[A-Za-z]:)?[/\\][^"'`\n]*)\1""")
#: Folders of Windows may hold blanks; all up to the last backslash of the line goes.
_WINDOWS_PATH = re.compile(r"(?:[A-Za-z]:\\|\\\\)(?:[^\n\"'`]*\\)?")
#: A path, and on over blanks where words follow that a slash ends ("/data/My Files/x").
_PATH = re.compile(
    r"(?:[^\s\"'`(){}\[\]<>,;/]*/[^\s/]*/|(?<![^\s\"'`(){}\[\]<>,;:|=])(?:~\w*)?/)[^\s]*"
    r"(?:(?<![,;:.!?])(?:[ \t]+[^\s/]*[^\s/,;:.!?]){1,4}/[^\s]*)*"
)


def redacted(text: str) -> str:
    """Give a text without values of variables (``NAME=VALUE``) and without folders of paths.

    Of a path the last part stays. The rest of the sentence is kept, on one line.
    """
    whole = len(text) <= LOOKED_AT
    text = _VALUE.sub(f"={TAKEN_OUT}", text[:LOOKED_AT])
    text = _SECRET.sub(rf"\1{TAKEN_OUT}", text)
    text = _ADDRESS.sub(TAKEN_OUT, text)
    text = _QUOTED_PATH.sub(lambda m: f"{m[1]}{_last_part(m[2])}{m[1]}", text)
    text = _WINDOWS_PATH.sub("", text)
    text = _PATH.sub(lambda m: _last_part(m[0]), text)
    words = text.split()
    # what was cut may end in a folder
    text = " ".join(words if whole else [*words[:-1], TAKEN_OUT])
    return text if len(text) <= MOST else text[: MOST - 1] + TAKEN_OUT


def _last_part(path: str) -> str:
    """Give a path's last part, with the punctuation that ends the sentence after it."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return parts[-1] if parts else TAKEN_OUT


# --------------------------------------------------------------------------------------- loss

_THINGS = r"(?:events?|samples?|records?|buffers?|packets?|ranges?|markers?|data|activit(?:y|ies))"
_GONE = r"(?:lost|dropped|discarded|overwritten|truncated|missed)"
#: "Not all CUDA events might have been collected.", "not all the events were copied to ..."
_NOT_ALL = re.compile(
    rf"not all\b.*?\b{_THINGS}\b.*?"
    r"\b(?:collected|recorded|copied|captured|saved|imported|processed)"
)
#: "Number of incomplete CUPTI events dropped: 2", "Lost events = 7", "buffer overflow: 3 ..."
_COUNT_AFTER = re.compile(rf"(?:{_THINGS} {_GONE}|{_GONE} {_THINGS})\s*[:=]\s*(?P<count>\d+)")
#: "3 events were lost", "Some events ( 7) were lost", "12 of 90 samples have been dropped"
_COUNT_BEFORE = re.compile(
    rf"(?P<count>\d+)\s*\)?(?:\s+of\s+\d+)?(?:\s+[a-z]+){{0,3}}?\s+(?:{_THINGS}\s+)?"
    rf"(?:(?:were|was|have been|has been|had been|got)\s+)?{_GONE}\b"
)
_LOST = re.compile(
    rf"\b{_THINGS}\b[^.]*?\b{_GONE}\b|\b{_GONE}\b[^.]*?\b{_THINGS}\b"
    rf"|\bbuffers?\b[^.]*?\boverflow|\boverflow[^.]*?\bbuffers?\b|\bdata loss\b|\bloss of data\b"
)
#: "49 of 50 buffers": what was got of what there was
_BUFFERS = re.compile(r"(?P<got>\d+)\s+(?:out\s+)?of\s+(?P<all>\d+)\s+(?:[a-z]+\s+){0,2}buffers?\b")
_NOTHING = re.compile(
    rf"\b(?:no|zero|none of the)\s+(?:[a-z]+\s+){{0,2}}{_THINGS}\b[^.]*?\b{_GONE}\b"
    rf"|\b(?:not|never|without)\b[^.]{{0,12}}\b{_GONE}\b|\bno (?:data loss|loss of data)\b"
)


@dataclass(frozen=True)
class Loss:
    """What a text says is lost; `count` is -1 where it does not say how much."""

    count: int = -1


def loss(text: str) -> Loss | None:
    """Say whether a text of nsys tells that something it recorded was lost.

    The wordings are those of nsys's own libraries and of published reports. That a process made no
    call of a kind ("No CUDA events collected. Does the process use CUDA?") is no loss.

    Returns
    -------
    Loss or None
        None where the text tells of none.
    """
    said = " ".join(text[:LOOKED_AT].lower().split())
    if _NOT_ALL.search(said):
        buffers = _BUFFERS.search(said)
        return Loss(_missing_buffers(buffers)) if buffers else Loss()
    for pattern in (_COUNT_AFTER, _COUNT_BEFORE):
        if found := pattern.search(said):
            count = int(found["count"])
            return Loss(count) if count else None
    if found := _BUFFERS.search(said):
        missing = _missing_buffers(found)
        return Loss(missing) if missing > 0 else None
    return Loss() if _LOST.search(said) and not _NOTHING.search(said) else None


def _missing_buffers(found: re.Match[str]) -> int:
    """Give how many buffers are missing of "N of M buffers"."""
    return int(found["all"]) - int(found["got"])


def concerns(text: str) -> frozenset[str]:
    """Say what a text is about: ``nvtx``, ``cuda``, ``metrics``, ``samples`` and ``switches``."""
    said = text.lower()
    about = {"nvtx"} if "nvtx" in said else set()
    if "gpu metrics" in said:
        about.add("metrics")
    elif "cuda" in said or "cupti" in said or "gpu" in said:
        about.add("cuda")
    elif "sampl" in said:
        about.add("samples")
    if "context switch" in said or "sched" in said:
        about.add("switches")
    return frozenset(about)


#: A text that proves that something was traced, whether or not any of it came.
_TRACED = re.compile(
    r"no (?P<none>cuda|nvtx) events collected|(?P<begun>cuda|nvtx) injection initialized"
    r"|number of (?P<number>cuda|nvtx) events collected"
)


def traced(text: str) -> frozenset[str]:
    """Say what was traced, of ``nvtx`` and ``cuda``, as far as a text of nsys proves it."""
    found = _TRACED.search(text.lower())
    return frozenset(kind for kind in found.groups() if kind) if found else frozenset()
