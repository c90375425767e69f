"""Nobody else gets in, and nothing gets out that should not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.security import Security
from system.conftest import Submit, command

WAITING = """
    import os, time
    from distributed import Client

    with Client() as client:
        print(client.scheduler.address, flush=True)
        while not os.path.exists("go"):
            time.sleep(0.1)
"""


@pytest.fixture
def running(tmp_path: Path, script: Callable[[str], str]) -> Iterator[tuple[str, Path]]:
    """Give the scheduler's address of a run that goes on, and the run's directory."""
    process = subprocess.Popen(
        command("submit", "--on", "local", "--no-nsys", "--runs-dir", str(tmp_path / "runs"),
                script(WAITING)),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    (directory,) = (tmp_path / "runs").iterdir()
    yield address, directory
    (tmp_path / "go").touch()
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_client_without_the_runs_credentials_is_refused(running: tuple[str, Path]) -> None:
    address, directory = running
    assert address.startswith("tls://")
    host, port = address.removeprefix("tls://").split(":")

    with socket.create_connection((host, int(port)), timeout=5) as plain:
        # Dask's plain protocol begins with the number of frames; the port answers with a TLS alert
        # or closes, never with Dask's handshake.
        plain.sendall((1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\x80")
        plain.settimeout(5)
        try:
            answer = plain.recv(64)
        except ConnectionResetError:
            answer = b""
        assert answer == b"" or answer[0] == 0x15

    with pytest.raises((OSError, TimeoutError)):
        Client(address.replace("tls://", "tcp://"), timeout=3)

    # Speaking TLS is not enough: a certificate of one's own is not the run's.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    refused = False
    try:
        with (
            socket.create_connection((host, int(port)), timeout=5) as raw,
            context.wrap_socket(raw) as stranger,
        ):
            refused = stranger.recv(64) == b""
    except (ssl.SSLError, OSError):
        refused = True
    assert refused
    with pytest.raises((OSError, TimeoutError)):
        Client(address, security=Security.temporary(), timeout=3)

    credentials = list((directory / "tls").iterdir())
    assert {path.stat().st_mode & 0o777 for path in credentials} == {0o600}
    assert (directory / "tls").stat().st_mode & 0o777 == 0o700


def test_nothing_of_a_run_is_open_to_others_whatever_the_umask(
    submit: Submit, tmp_path: Path
) -> None:
    kept = os.umask(0)
    try:
        done = submit("--on", "local", "example:seismic", "--shape", "64", "64", "64")
    finally:
        os.umask(kept)
    assert done.code == 0, done.err
    everything = [done.directory, *done.directory.rglob("*")]
    assert len(everything) > 15
    assert [path for path in everything if path.lstat().st_mode & 0o077] == []


def test_going_without_tls_is_told(submit: Submit, script: Callable[[str], str]) -> None:
    job = script("from distributed import Client\nprint(Client().scheduler.address)")
    done = submit("--on", "local", "--no-nsys", "--no-tls", job)
    assert done.code == 0, done.err
    assert "tcp://127.0.0.1" in done.out
    assert "--no-tls" in done.err


def test_only_loopback_is_listened_on_by_a_local_run(running: tuple[str, Path]) -> None:
    _, directory = running
    ours = {
        process
        for process in psutil.process_iter(["cmdline"])
        if str(directory.parent) in " ".join(process.info["cmdline"] or [])
    }
    family = ours | {child for process in ours for child in process.children(recursive=True)}
    assert len(family) >= 3
    open_to_all = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            open_to_all += [
                f"{process.name()} {connection.laddr}"
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
                and not connection.laddr.ip.startswith("127.")
            ]
    assert open_to_all == []


@pytest.mark.parametrize("name", ["a b", "$(touch pwned)", "q'uote", 'd"quote', "semi;touch pwned"])
def test_odd_paths_and_arguments_run_as_themselves(
    name: str, tmp_path: Path, submit: Submit
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    job = folder / f"{name}.py"
    job.write_text(
        "import sys\nfrom distributed import Client\n"
        "with Client() as client:\n    print(client.submit(repr, sys.argv[1:]).result())\n"
    )
    done = submit("--on", "local", "--no-nsys", str(job), name, runs=folder / "the runs")
    assert done.code == 0, done.err
    assert repr([name]) in done.out
    assert not list(tmp_path.rglob("pwned"))
