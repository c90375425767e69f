"""The README's own commands, for the tests that run them as they stand.

A code block is named by a comment in front of it, ``<!-- ci: NAME -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def readme_block(name: str) -> str:
    """Give the lines of a code block."""
    block = README.read_text().split(f"<!-- ci: {name} -->\n")[1].split("```")[1]
    return block.partition("\n")[2]  # without the language


def readme_commands(name: str) -> list[str]:
    """Give the commands of a code block, without comments, continued lines as one."""
    lines = readme_block(name).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line))]


def readme_command(name: str, part: str) -> str:
    """Give the one command of a block that holds these words."""
    (found,) = (command for command in readme_commands(name) if part in command)
    return found
