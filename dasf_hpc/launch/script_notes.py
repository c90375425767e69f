"""Launch: what the run said to its script's user while the script ran, for the run's summary."""

from __future__ import annotations

from pathlib import Path

#: Sentences, one a line, in the run's directory.
NOTES = Path("logs") / "script-notes.txt"


def note(directory: Path, sentence: str) -> None:
    """Keep a sentence; where that cannot be, it was said at least."""
    try:
        with (directory / NOTES).open("a", encoding="utf-8") as file:
            file.write(sentence.replace("\n", " ") + "\n")
    except OSError:
        return


def script_notes(directory: Path) -> list[str]:
    """Give the sentences that were kept."""
    try:
        text = (directory / NOTES).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()
