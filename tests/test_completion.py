"""Completion: in the real shells, as a user sets it up and types."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("dasf-hpc")

#: What a shell is waited for, in seconds, on a busy machine.
PATIENCE_S = 60.0

SHELLS = [pytest.param("bash"), pytest.param("zsh", marks=pytest.mark.needs("zsh"))]


class Terminal:
    """A shell that somebody types into."""

    def __init__(self, shell: str, home: Path, environment: dict[str, str]) -> None:
        self.shell = shell
        self.said = ""
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.chdir(home)
            os.execvpe(shell, [shell, "-i"], environment)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Wait until what was said since the last wait has this; gives all of that."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.said)):
            left = deadline - time.monotonic()
            ready = select.select([self._terminal], [], [], max(0, left))[0]
            assert ready, f"no {pattern!r} in {self.said!r}"
            data = os.read(self._terminal, 65536).decode(errors="replace")
            self.said += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\x1b[=>]|\r", "", data)
        text, self.said = self.said, self.said[found.end() :]
        return text

    def end(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._terminal)


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """Give a shell for which ``dasf-hpc --install-completion`` was called from that shell."""
    shell: str = request.param
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PS1": "ready$ ",
    }
    said = subprocess.run(
        [shell, "-c", "dasf-hpc --install-completion; exit $?"],
        env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert f"{shell} completion installed" in said.stdout
    (tmp_path / "a-run").mkdir()
    with (tmp_path / f".{shell}rc").open("a") as file:
        file.write("PS1='ready$ '\nbind 'set enable-bracketed-paste off' 2>/dev/null\n")
    made = Terminal(shell, tmp_path, environment)
    try:
        made.wait_for(r"ready\$ ")
        if shell == "zsh":  # the first time in a session it only loads what completes
            made.type("dasf-hpc \t")
            made.wait_for("\x07")
            made.type("\x15\n")
            made.wait_for(r"ready\$ ")
        yield made
    finally:
        made.end()


def test_what_was_begun_is_completed(terminal: Terminal) -> None:
    for begun, whole in (
        ("ana", "analyze "),
        ("submit --wallt", "--walltime"),
        ("submit --on allo", "allocation "),
        ("export --to perf", "perfetto "),
        ("analyze crit", "critical_path "),
        ("show a-r", "a-run"),  # files and folders, where nothing else is meant
    ):
        typed, last = f"dasf-hpc {begun}", begun.split()[-1]
        terminal.type(typed + "\t")
        terminal.wait_for(f"{re.escape(typed)}.*{re.escape(whole[len(last) :])}")
        terminal.type("\x15\n")  # the line is taken back
        terminal.wait_for(r"ready\$ ")


def test_what_could_follow_is_listed(terminal: Terminal) -> None:
    terminal.type("dasf-hpc export --to \t")
    if terminal.shell == "bash":  # rings, and lists the second time
        terminal.wait_for("\x07")
        terminal.type("\t")
    formats = ("perfetto", "chrome", "dasf", "parquet", "csv", "otlp-json")
    # In any order: as many lookaheads as there are words.
    terminal.wait_for(r"(?s)\A.*\n" + "".join(f"(?=.*{re.escape(name)})" for name in formats))


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", {"COMP_WORDS": "dasf-hpc analyze wh", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "dasf-hpc submit --"}),
    ],
)
def test_completing_loads_nothing_large(shell: str, words: dict[str, str]) -> None:
    environment = os.environ | words | {"_DASF_HPC_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--walltime" in done.stdout or "where" in done.stdout
    source = "import sys\nfrom dasf_hpc.cli import main\ntry:\n    main()\nfinally:\n"
    source += "    print(*sys.modules, file=sys.stderr)\n"
    loaded = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    ).stderr.split()
    assert {"dasf_hpc.cli", "dasf_hpc.settings"} <= set(loaded)
    assert {"dask", "distributed", "pandas", "numpy", "h5py"} & set(loaded) == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_shown(shell: str) -> None:
    done = subprocess.run(
        [shell, "-c", f"{PROGRAM} --show-completion; exit $?"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"bash": "complete -o default -F", "zsh": "#compdef dasf-hpc"}[shell] in done.stdout
    checked = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
