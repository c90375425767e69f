"""Clock probes: what the responder tells and whom, and what a prober makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_ports

from dasf_hpc.profile import probe
from dasf_hpc.profile.probe import CONTACT, Prober, answer, answered, ask, heard
from dasf_hpc.profile.probe_responder import MOST_STRANGERS, STRANGER_S, ResponderProcess

Probe = tuple[int, int, int, int]


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.01)
    return what()


@pytest.fixture
def responder(tmp_path: Path) -> Iterator[ResponderProcess]:
    process = ResponderProcess(tmp_path, "127.0.0.1")
    yield process
    process.end()


def contact(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / CONTACT).read_text())
    return found


def elsewhere(directory: Path) -> None:
    """Have the responder's clock seem to be another host's: ours needs no probes."""
    document = {**contact(directory), "clock": "another host"}
    (directory / CONTACT).write_text(json.dumps(document))


def caller(directory: Path) -> socket.socket:
    found = contact(directory)
    return socket.create_connection((found["host"], int(found["port"])), 10)


def hung_up(connection: socket.socket) -> bool:
    """Say whether the other end closes without a word."""
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.usefixtures("responder")
def test_probes_tell_the_time_within_their_round_trip(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    probes: list[Probe] = []
    prober = Prober(tmp_path, lambda *times: probes.append(times))
    prober.start()
    assert wait_for(lambda: len(probes) > 4)
    before = len(probes)
    prober.stop(10)
    assert len(probes) > before, "no probe at the end"
    # both ends read this host's clock
    assert all(t1 <= t2 <= t3 <= t4 for t1, t2, t3, t4 in probes)
    quickest = min(t4 - t1 - (t3 - t2) for t1, t2, t3, t4 in probes)
    print(f"quickest round trip {quickest / 1e3} us, {len(probes)} kept")
    assert quickest < 5_000_000


@pytest.mark.usefixtures("responder")
def test_a_host_whose_clock_is_the_heads_does_not_probe(tmp_path: Path) -> None:
    probes: list[Probe] = []
    prober = Prober(tmp_path, lambda *times: probes.append(times))
    prober.start()
    prober.stop()
    assert probes == []


def test_without_a_responder_there_are_no_probes_and_no_fault(tmp_path: Path) -> None:
    probes: list[Probe] = []
    for text in (None, "", "[]", '{"host": "127.0.0.1"}'):
        if text is not None:
            (tmp_path / CONTACT).write_text(text)
        prober = Prober(tmp_path, lambda *times: probes.append(times))
        prober.start()
        prober.stop()
    process = ResponderProcess(tmp_path, "127.0.0.1")
    elsewhere(tmp_path)
    kept = (tmp_path / CONTACT).read_bytes()
    process.end()
    (tmp_path / CONTACT).write_bytes(kept)
    prober = Prober(tmp_path, lambda *times: probes.append(times))
    prober.start()
    time.sleep(0.5)
    prober.stop(10)
    assert probes == []


def test_a_responder_that_dies_stops_nothing(tmp_path: Path) -> None:
    process = ResponderProcess(tmp_path, "127.0.0.1")
    elsewhere(tmp_path)
    probes: list[Probe] = []
    prober = Prober(tmp_path, lambda *times: probes.append(times))
    prober.start()
    assert wait_for(lambda: bool(probes))
    os.kill(process.pid, signal.SIGKILL)
    begun = time.monotonic()
    prober.stop(10)
    assert time.monotonic() - begun < 5
    process.end()


def test_a_question_and_its_answer_and_no_other() -> None:
    secret, other = b"1" * 32, b"2" * 32
    question, nonce = ask(secret)
    assert heard(secret, question) == nonce
    assert heard(other, question) is None
    reply = answer(secret, nonce, 17)
    assert len(reply) <= len(question), "an amplifier"
    times = answered(secret, nonce, reply)
    assert times is not None
    assert times[0] == 17
    assert answered(other, nonce, reply) is None
    assert answered(secret, ask(secret)[1], reply) is None, "an answer can be played back"
    assert answered(secret, nonce, reply[:8] + b"\1" + reply[9:]) is None
    assert heard(secret, reply) is None, "an answer passes for a question"


@pytest.mark.usefixtures("responder")
def test_who_does_not_know_the_secret_gets_no_answer(tmp_path: Path) -> None:
    for message in (ask(b"x" * 32)[0], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2, b"\0" * 100):
        with caller(tmp_path) as connection:
            connection.sendall(message)
            assert hung_up(connection)
    secret = bytes.fromhex(contact(tmp_path)["secret"])
    with caller(tmp_path) as connection:  # more than one question at once
        connection.sendall(ask(secret)[0] + ask(secret)[0])
        assert hung_up(connection)
    with caller(tmp_path) as connection:  # and who knows it does, also in parts
        question, nonce = ask(secret)
        connection.sendall(question[:5])
        time.sleep(0.05)
        connection.sendall(question[5:])
        assert answered(secret, nonce, connection.recv(100)) is not None


@pytest.mark.usefixtures("responder")
def test_strangers_are_hung_up_on_and_keep_nobody_out(tmp_path: Path) -> None:
    secret = bytes.fromhex(contact(tmp_path)["secret"])
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(caller(tmp_path))
        question, nonce = ask(secret)
        known.sendall(question)
        assert answered(secret, nonce, known.recv(100)) is not None
        strangers = [stack.enter_context(caller(tmp_path)) for _ in range(2 * MOST_STRANGERS)]
        question, nonce = ask(secret)
        known.sendall(question)
        assert answered(secret, nonce, known.recv(100)) is not None
        assert all(hung_up(stranger) for stranger in strangers[:MOST_STRANGERS])
        late = strangers[-1]
        late.settimeout(3 * STRANGER_S)
        assert hung_up(late)


def test_a_forged_answer_is_not_recorded(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        probe.write_contact(tmp_path, listener.getsockname(), b"k" * 32)
        elsewhere(tmp_path)

        def forge() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        question = connection.recv(100)
                        connection.sendall(answer(b"other" * 6, question[:16], 1))

        threading.Thread(target=forge, daemon=True).start()
        probes: list[Probe] = []
        prober = Prober(tmp_path, lambda *times: probes.append(times))
        prober.start()
        time.sleep(0.5)
        prober.stop(5)
        assert probes == []


def test_the_secret_is_private_and_goes_with_the_responder(tmp_path: Path) -> None:
    process = ResponderProcess(tmp_path, "127.0.0.1")
    path = tmp_path / CONTACT
    assert path.stat().st_mode & 0o777 == 0o600
    secret = contact(tmp_path)["secret"]
    for file in ("cmdline", "environ"):
        assert secret.encode() not in Path(f"/proc/{process.pid}/{file}").read_bytes()
    with caller(tmp_path) as connection:
        connection.sendall(ask(bytes.fromhex(secret))[0])
        assert connection.recv(100)
        process.end()
        assert hung_up(connection)
    assert not path.exists()
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_responder_dies_with_the_one_who_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from dasf_hpc.profile.probe_responder import ResponderProcess\n"
        "print(ResponderProcess(Path(sys.argv[1]), '127.0.0.1').pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    with caller(tmp_path) as connection:
        connection.sendall(ask(bytes.fromhex(contact(tmp_path)["secret"]))[0])
        assert connection.recv(100)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not (tmp_path / CONTACT).exists())

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    assert wait_for(gone)


def test_a_fixed_port_of_the_scheduler_fixes_the_clocks_too(tmp_path: Path) -> None:
    number = free_ports()
    (tmp_path / "job.py").write_text(
        "import json, os\n"
        f"path = os.path.join(os.environ['DASF_HPC_RUN'], 'journals', {CONTACT!r})\n"
        "print(os.environ['DASK_SCHEDULER_ADDRESS'], json.load(open(path))['port'])\n"
    )
    words = ("submit", "--on", "local", "--no-nsys", "--no-report", "--scheduler-port", str(number))
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words, "job.py"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f":{number} {number + 1}" in done.stdout


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        ResponderProcess(tmp_path, "127.0.0.1", taken.getsockname()[1])
    assert not (tmp_path / CONTACT).exists()
