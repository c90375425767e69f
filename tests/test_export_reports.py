"""What Nsight reports hold is drawn where it belongs: messages, marks, time off the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Export
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
from perfetto_file import read_packets, told, track_names, whole
from perfetto_page import opened, query
from test_cuda import made_run
from test_join import OTHER, POOL_1, POOL_2, WORKER, at

from dasf_hpc.imports import Wishes, import_files
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.show.timeline import Launches, _most_of_each
from dasf_hpc.trace.open import open_trace

MS = 1_000_000
WORKERS = {pid: f"node7 w{pid}" for pid in (WORKER.pid, OTHER.pid)}
COMMUNICATOR = 2**53 + 1
"""A number that JavaScript cannot tell from the one before."""


def _fill(made: Export) -> None:
    for n, (thread, start, stop) in enumerate(WORKER.tasks):
        stretch = start - WORKER.tasks[0][1], stop - WORKER.tasks[0][1]
        made.range(WORKER.pid, thread, at(10) + stretch[0], at(10) + stretch[1], WORKER.task_id(n))
    # a call that lies in another, and one that overlaps it
    send = {"size": 64, "remoteRank": 2, "commHandle": COMMUNICATOR, "tag": 1}
    made.mpi("P2P", WORKER.pid, at(12), at(16), "MPI_Send", **send)
    made.ucp("SUBMIT", WORKER.pid, at(13), at(14), "ucp_tag_send_nbx", packedSize=5)
    bcast = {"size": 16, "recvSize": 0, "rootRank": 0, "commHandle": 8}
    made.mpi("COLLECTIVES", OTHER.pid, at(12), at(15), "MPI_Bcast", **bcast)
    made.mpi("COLLECTIVES", OTHER.pid, at(17), None, "MPI_Barrier", commHandle=8)
    made.user_range(WORKER.pid, POOL_1, at(11), at(19), "outer", "io")
    made.category(WORKER.pid, 4, "reading", "io")
    made.user_mark(WORKER.pid, POOL_1, at(13), "here", "io", category=4, int64Value=3)
    made.user_mark(WORKER.pid, POOL_2, at(35), "there", doubleValue=-1.0)
    made.user_mark(WORKER.pid, POOL_2, at(36), "far", doubleValue=float("inf"))
    for time, on, state in ((10, True, None), (12, False, 2), (15, True, None), (19, False, 2)):
        made.switch(WORKER.pid, POOL_1, at(time), on, state)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run whose report holds something of each sort."""
    folder = tmp_path_factory.mktemp("made")
    made_run(folder, _fill).close()
    return folder / "run"


Drawn = dict[tuple[str, str], list[tuple[str, int, int | None, dict[str, Any]]]]
"""By group and track: name, start, how long, what is told; of a mark there is no how long."""


def _chrome(path: Path) -> Drawn:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    events = json.loads(path.read_bytes(), parse_constant=refuse)["traceEvents"]
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: Drawn = {}
    for event in events:
        if event["ph"] in ("X", "i"):
            took = round(event["dur"] * 1000) if event["ph"] == "X" else None
            assert event["ph"] == "X" or event["s"] == "t"
            found.setdefault((groups[event["pid"]], threads[event["tid"]]), []).append(
                (event["name"], round(event["ts"] * 1000), took, event["args"])
            )
    return found


def _perfetto(path: Path) -> Drawn:
    paths = {track.uuid: path for path, track in track_names(path).items()}
    found: Drawn = {}
    for one in read_packets(path):
        *groups, row = paths[one.track]
        if not groups:
            continue  # what is told of the whole trace
        drawn = found.setdefault((" ".join(groups), row), [])
        if one.kind == TrackEvent.TYPE_SLICE_END:
            last = max(i for i, known in enumerate(drawn) if known[2] == -1)
            name, start, _, details = drawn[last]
            drawn[last] = name, start, one.time - start, details
        elif one.kind != TrackEvent.TYPE_COUNTER:
            instant = one.kind == TrackEvent.TYPE_INSTANT
            drawn.append((one.name, one.time, None if instant else -1, told(one)))
    return found


def _drawn(path: Path, to: Format, target: Path) -> Drawn:
    made = export(path, to, target)
    return _chrome(made) if to is Format.CHROME else _perfetto(made)


@pytest.fixture(params=[Format.CHROME, Format.PERFETTO], scope="module")
def drawn(request: pytest.FixtureRequest, run: Path, tmp_path_factory: Any) -> Drawn:
    """Give what an export of the run draws."""
    return _drawn(run, request.param, tmp_path_factory.mktemp("export") / "made")


def _track(drawn: Drawn, pid: int, name: str) -> list[Any]:
    (found,) = (
        rows for (group, track), rows in drawn.items() if group == WORKERS[pid] and track == name
    )
    return found


def test_calls_of_libraries_are_slices_of_their_thread(drawn: Drawn) -> None:
    send, inner = _track(drawn, WORKER.pid, "thread 3 messages")
    assert send[:3] == ("MPI_Send", 12 * MS, 4 * MS)
    assert send[3] == {
        "library": "MPI",
        "bytes sent": 64,
        "communicator": str(COMMUNICATOR),
        "peer": 2,
        "task": 0,
    }
    assert inner[:3] == ("ucp_tag_send_nbx", 13 * MS, 1 * MS)
    assert inner[3] == {"library": "UCX", "bytes sent": 5, "task": 0}
    # a call that never ended has no length
    ((name, start, took, told),) = _track(drawn, OTHER.pid, "thread 2 messages")
    assert (name, start, took) == ("MPI_Bcast", 12 * MS, 3 * MS)
    assert told.items() >= {"library": "MPI", "root": 0, "communicator": "8"}.items()
    assert "peer" not in told


def test_marks_are_moments_beside_the_ranges_of_their_thread(drawn: Drawn) -> None:
    outer, here = _track(drawn, WORKER.pid, "thread 1 NVTX")
    assert outer[:3] == ("outer", 11 * MS, 8 * MS)
    assert here[:3] == ("here", 13 * MS, None)
    assert here[3] == {"domain": "io", "category": "reading", "payload": 3, "task": 0}
    there, far = _track(drawn, WORKER.pid, "thread 2 NVTX")
    assert there == ("there", 35 * MS, None, {"value": "-1.0"})
    assert far == ("far", 36 * MS, None, {"value": "inf"})
    marks = [one for rows in drawn.values() for one in rows if one[2] is None]
    assert len(marks) == 3  # those that tie clocks are not the user's


def test_time_off_the_cpu_is_a_row_of_its_thread(drawn: Drawn) -> None:
    (off,) = _track(drawn, WORKER.pid, "thread 1 off the CPU")
    assert off[1:] == (12 * MS, 3 * MS, {"task": 0})


@pytest.mark.parametrize("to", [Format.CHROME, Format.PERFETTO])
def test_what_is_on_an_axis_of_its_own_is_drawn_apart(tmp_path: Path, to: Format) -> None:
    for pid, name in ((7, "a"), (8, "b")):
        with Export(tmp_path / f"{name}.sqlite", "2025.1", f"node-{name}") as made:
            if name == "a":
                made.begun(utc=10**18)
            made.range(pid, pid, 0, 10_000 * pid, 1)
            sent = {"size": 64, "remoteRank": 2, "commHandle": 8}
            made.mpi("P2P", pid, 100, 200, f"MPI_Send {name}", **sent)
            made.user_mark(pid, pid, 300, f"mark {name}")
    path = tmp_path / "trace.h5"
    import_files([tmp_path / "a.sqlite", tmp_path / "b.sqlite"], path, Wishes())
    drawn = _drawn(path, to, tmp_path / "made")
    apart = {group: group.startswith("b.sqlite, on an axis") for group, _ in drawn}
    found = sorted((one[0], apart[group]) for (group, _), rows in drawn.items() for one in rows)
    assert found == [
        ("MPI_Send a", False),
        ("MPI_Send b", True),
        ("mark a", False),
        ("mark b", True),
    ]


@pytest.mark.parametrize("to", [Format.CHROME, Format.PERFETTO])
def test_what_has_no_time_is_left_out_and_counted(tmp_path: Path, to: Format) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.range(7, 7, 0, 10_000, 1)
        made.mpi("P2P", 7, 2**62, 2**62 + 1, "nowhere", size=64, remoteRank=2, commHandle=8)
        made.user_mark(7, 7, 2**62, "neither")
    import_files([tmp_path / "r.sqlite"], tmp_path / "trace.h5", Wishes())
    path = export(tmp_path / "trace.h5", to, tmp_path / "made")
    content = path.read_bytes()
    if to is Format.PERFETTO:
        content = b"".join(packet.SerializeToString() for packet in whole(path))
    assert b"left out: messages" in content
    assert b"left out: nvtx_marks" in content
    assert b"neither" not in content
    assert b"nowhere" not in content


def _launch(made: Export) -> None:
    """Have the first task launch three kernels, the second one two; one is of no task."""
    for number, (thread, call, start) in enumerate(
        [(POOL_1, 11, 12), (POOL_2, 16, 17), (POOL_1, 13, 18), (POOL_2, 20, 21), (POOL_1, 14, 24)]
    ):
        made.call(WORKER.pid, thread, at(call), at(call) + 1000, number + 1)
        made.kernel(
            WORKER.pid, at(start), at(start + 1), f"k{number}", correlationId=number + 1, streamId=7
        )
    made.kernel(WORKER.pid, at(60), at(61), "alone", correlationId=99, streamId=7)


@pytest.fixture(scope="module")
def launching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launching")
    made_run(folder, _launch).close()
    return folder / "run"


WANTED = {(10, "k0"), (10, "k2"), (10, "k4"), (15, "k1"), (15, "k3")}
"""When the task began that launched a kernel, ms, and the kernel."""


def test_perfetto_has_an_arrow_from_each_task_to_its_kernels(
    launching: Path, tmp_path: Path
) -> None:
    out, into = {}, {}
    for one in read_packets(export(launching, Format.PERFETTO, tmp_path / "made")):
        out.update(dict.fromkeys(one.event.flow_ids, one.time // MS))
        into.update(dict.fromkeys(one.event.terminating_flow_ids, one.name))
    assert out.keys() == into.keys()
    assert {(out[number], into[number]) for number in out} == WANTED


def test_chrome_has_an_arrow_from_each_task_to_its_kernels(launching: Path, tmp_path: Path) -> None:
    path = export(launching, Format.CHROME, tmp_path / "made")
    events = json.loads(path.read_bytes())["traceEvents"]
    slices = {(e["pid"], e["tid"], e["ts"]): e["name"] for e in events if e["ph"] == "X"}
    arrows = [e for e in events if e["ph"] in "sf" and e["cat"] == "launch"]
    into = {e["id"]: slices[e["pid"], e["tid"], e["ts"]] for e in arrows if e["ph"] == "f"}
    out = {e["id"]: round(e["ts"] / 1000) for e in arrows if e["ph"] == "s"}
    assert len(arrows) == 2 * len(WANTED)
    assert {(out[number], into[number]) for number in out} == WANTED


@pytest.mark.needs("browser")
@pytest.mark.parametrize("to", [Format.PERFETTO, Format.CHROME])
def test_perfettos_page_has_arrows_from_tasks_to_kernels(
    launching: Path, tmp_path: Path, browser: Any, to: Format
) -> None:
    with opened(browser, export(launching, to, tmp_path / "made")):
        found = query(
            browser,
            "select task.ts / 1000000, kernel.name from flow "
            "join slice task on task.id = slice_out join slice kernel on kernel.id = slice_in",
        )
    assert {tuple(one) for one in found} == WANTED


@pytest.mark.parametrize(("most", "of_each"), [(5, (3, 2)), (4, (2, 2)), (3, (1, 1)), (1, (0, 0))])
def test_arrows_to_kernels_are_no_more_than_there_may_be(
    launching: Path, most: int, of_each: tuple[int, int]
) -> None:
    with open_trace(launching) as trace:
        launches = Launches(trace, 100, most)
        tasks = trace.tasks.sort_values("start")
        kernels = set(trace.kernels["task"])
        named = [row for row in tasks.index.tolist() if row in kernels]
        leaving = [list(launches.of_task(row)) for row in named]
        assert tuple(map(len, leaving)) == of_each
        entering = {row: [*launches.into_kernel(row), *launches.into_kernel(row)] for row in named}
        for row, numbers in zip(named, leaving, strict=True):
            assert entering[row] == numbers[:2]
        assert launches.into_kernel(-1) == ()


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 500))
def test_as_many_are_taken_of_each_as_all_may_be(counts: list[int], most: int) -> None:
    each = _most_of_each(np.array(counts, np.int64), most)
    assert sum(min(count, each) for count in counts) <= most
    if each < max(counts, default=0):
        assert sum(min(count, each + 1) for count in counts) > most
