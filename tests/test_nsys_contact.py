"""A process that nsys is around and does not hear says so, and the trace counts it as a loss."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dasf_hpc.launch.node import NSYS_STARTS
from dasf_hpc.nsight import sessions
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.profile.nsys_contact import unheard
from dasf_hpc.show.timeline import facts
from dasf_hpc.trace.open import open_trace

ASK = "from dasf_hpc.profile.nsys_contact import unheard; print(unheard())"

#: Starts a program when the table has gone.
WITHOUT_TABLE = f'rm {sessions.TABLES}/NSys-*; exec "$@"'

APART = f'mount -t tmpfs tmpfs {sessions.TABLES} && exec nsys profile "$@"'

BLOCK = """
import sys
from distributed import Client
import dasf_hpc

with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
    with dasf_hpc.record(client, directory=sys.argv[1]) as run:
        client.gather(client.map(abs, range(4)))
print(run.directory)
"""


@pytest.fixture(scope="module", autouse=True)
def version(nsys: Path) -> None:
    """The files of other versions are not known."""
    text = find_nsys().version_text
    if text != "2022.4.2.1":
        pytest.skip(f"what an unheard process leaves is known of nsys 2022.4.2.1, not of {text}")


def under_nsys(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program under an nsys that has shared memory, and a folder of locks, of its own.

    Again, as a node does, where nsys dies before it has started the program.
    """
    options = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none", "-o", str(folder / "report")]
    apart = ["unshare", "--mount", "--map-root-user", "sh", "-c", APART, "apart"]
    begun = folder / "begun"
    program = ["sh", "-c", f'touch {shlex.quote(str(begun))}; exec "$@"', "sh", *words]
    for _ in range(NSYS_STARTS):
        # another nsys that ends deletes what it finds below the TMPDIR that both have
        with tempfile.TemporaryDirectory(prefix="nsys") as own:
            done = subprocess.run(
                [*apart, *options, *program],
                env=os.environ | {"TMPDIR": own}, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        if begun.exists():
            break
    return done


def test_without_nsys_nothing_is_said() -> None:
    assert unheard() == ""


def test_who_is_heard_says_nothing(tmp_path: Path) -> None:
    done = under_nsys(tmp_path, sys.executable, "-c", f"{ASK}; print('asked')")
    assert "\n\nasked\n" in f"\n{done.stdout}", done


def test_who_is_not_heard_says_so(tmp_path: Path) -> None:
    done = under_nsys(tmp_path, "sh", "-c", WITHOUT_TABLE, "sh", sys.executable, "-c", ASK)
    assert "table of sessions was gone when this process started" in done.stdout, done


def test_it_is_a_loss_of_the_trace(tmp_path: Path) -> None:
    block = [sys.executable, "-c", BLOCK, str(tmp_path / "runs")]
    done = under_nsys(tmp_path, "sh", "-c", WITHOUT_TABLE, "sh", *block)
    assert (tmp_path / "runs").is_dir(), done
    (directory,) = (tmp_path / "runs").iterdir()
    with open_trace(directory) as trace:
        (gap,) = trace.gaps[trace.gaps["kind"] == "not heard by nsys"].to_dict("records")
        assert "no report holds what it did" in gap["reason"]
        told = facts(trace)["missing: not heard by nsys"]
    assert told.startswith("in 1 place (nsys's table of sessions was gone"), told
    shown = subprocess.run(
        [sys.executable, "-m", "dasf_hpc", "show", str(directory), "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "not heard by nsys" in json.dumps(json.loads(shown.stdout)), done
