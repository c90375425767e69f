"""Collectives: messages are read whatever the schema, and tie the clocks of reports' hosts."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from exports import MPI_COMMUNICATORS, Export
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog
from synthetic import BEGIN, BEGIN_UTC, PlainWorker, write_workers

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.imports import Imported, Wishes, import_files, join_into
from dasf_hpc.nsight.export import export_sqlite, find_nsys
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.align import DRIFT_LIMIT, RATE_WANDER
from dasf_hpc.trace.causality import COLLECTIVE
from dasf_hpc.trace.holdings import Kind, State, held
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.ties import NEVER, Prior, Tied, tie_clocks

US, MS, S = 1_000, 1_000_000, 1_000_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")
UTC_BOUND = 11 * MS
Array = NDArray[Any]


# ---------------------------------------------------------------------- clocks and collectives


@dataclass(frozen=True)
class Clocks:
    """Clocks that are off by ``offset + drift * local`` ns, and collectives as each noted them."""

    offset: Array
    drift: Array
    entered: Array
    left: Array

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [
            (0, int(self.left[:, n][self.left[:, n] != NEVER].max(initial=1) + 100 * MS))
            for n in range(len(self.offset))
        ]

    def error(self, number: int, tied: Tied) -> float:
        """Give how far a clock's correction is off over its span, ns."""
        at = np.linspace(*self.spans[number], 41).astype(np.int64)
        truth = self.offset[number] + self.drift[number] * at
        found: float = np.abs(tied.clock.correction.apply(at) - at - truth).max()
        return found


def made_clocks(
    seed: int,
    clocks: int,
    collectives: int,
    seconds: float = 10.0,
    drift: float = 50e-6,
    present: float = 1.0,
    communicators: int = 1,
) -> Clocks:
    """Make clocks and collectives of which each clock's host is last now and then."""
    rng = np.random.default_rng(seed)
    offset = np.append(0.0, rng.uniform(-5 * MS, 5 * MS, clocks - 1))
    drifts = np.append(0.0, rng.uniform(-drift, drift, clocks - 1))
    begin = np.sort(rng.uniform(S, (1 + seconds) * S, collectives))
    takes = rng.random((collectives, clocks)) < present
    # some are of a part of all
    group = rng.integers(0, communicators, collectives)
    member = rng.random((communicators, clocks)) < (1.0 if communicators == 1 else 0.7)
    takes &= member[group]
    enter = begin[:, None] + rng.exponential(MS, (collectives, clocks))
    last = np.where(takes, enter, -np.inf).max(axis=1)
    leave = last[:, None] + 2 * US + rng.exponential(30 * US, (collectives, clocks))

    def noted(times: Array) -> Array:
        times = np.where(np.isfinite(times), times, 0.0)
        local = np.rint((times - offset) / (1 + drifts)).astype(np.int64)
        return np.where(takes, local, NEVER)

    return Clocks(offset, drifts, noted(enter), noted(leave))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    clocks=st.integers(2, 7),
    collectives=st.integers(1, 60),
    seconds=st.sampled_from([0.1, 3.0, 60.0, 600.0]),
    drift=st.sampled_from([0.0, 50e-6, 400e-6]),
    present=st.sampled_from([1.0, 0.6]),
    communicators=st.sampled_from([1, 3]),
)
def test_no_clock_is_off_by_more_than_its_bound(
    seed: int,
    clocks: int,
    collectives: int,
    seconds: float,
    drift: float,
    present: float,
    communicators: int,
) -> None:
    made = made_clocks(seed, clocks, collectives, seconds, drift, present, communicators)
    found = tie_clocks(made.entered, made.left, made.spans, [None] * clocks)
    assert found[0] is None
    for number, tied in enumerate(found):
        if tied is not None:
            # 2: clocks are read in whole ns
            assert made.error(number, tied) <= tied.clock.correction.bound_ns + 2
            assert tied.clock.correction.residual_ns == 0


@pytest.mark.parametrize("seconds", [60, 600])
def test_a_clock_whose_rate_wanders_is_within_its_bound(seconds: int) -> None:
    """Its rate changes by 2e-6 in the middle, as a machine's does that warms up."""
    middle = seconds / 2 * S
    at = np.arange(0.0, seconds * S, S / 4)

    def ahead(times: Array) -> Array:
        found: Array = 3 * MS + RATE_WANDER * np.maximum(times - middle, 0.0)
        return found

    entered = np.column_stack([at, at - ahead(at)]).astype(np.int64)
    left = entered + 3 * US
    (tied,) = tie_clocks(entered, left, [(0, 1), (0, seconds * S)], [None, None])[1:]
    assert tied is not None
    assert tied.clock.correction.residual_ns == 0
    local = entered[:, 1]
    off = np.abs(tied.clock.correction.apply(local) - entered[:, 0])
    assert off.max() <= tied.clock.correction.bound_ns + 2
    # half of it is what no straight line can follow
    assert tied.clock.correction.bound_ns < 3 * RATE_WANDER * seconds * S / 8


def test_clocks_that_no_steady_rate_explains_are_not_tied() -> None:
    at = np.arange(0, 20 * S, S)
    entered = np.column_stack([at, at + np.where(at > 10 * S, 50 * MS, 0)])
    found = tie_clocks(entered, entered + 10 * US, [(0, 1), (0, 20 * S)], [None, None])
    assert found[1] is not None
    assert found[1].clock.correction.residual_ns > MS


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), off=st.integers(-9 * MS, 9 * MS))
def test_what_is_known_beforehand_only_tightens(seed: int, off: int) -> None:
    made = made_clocks(seed, 3, 4)
    alone = tie_clocks(made.entered, made.left, made.spans, [None] * 3)
    prior = [Prior(int(offset) + off, UTC_BOUND) for offset in made.offset]
    both = tie_clocks(made.entered, made.left, made.spans, prior)
    for number in (1, 2):
        one, other = alone[number], both[number]
        assert one is not None
        assert other is not None
        assert other.clock.correction.bound_ns <= one.clock.correction.bound_ns
        assert made.error(number, other) <= other.clock.correction.bound_ns + 2
        assert other.contradicts == 0


def least_bounds(made: Clocks) -> list[float]:
    """Give the least bound of each clock but the first that holds for every solution.

    By linear programs over all clocks and instants at once: the least and the greatest correction
    at both ends of each span, of clocks whose rates change as `fit_ties` allows.
    """
    count, clocks = made.entered.shape
    wander = [RATE_WANDER * (span[1] - span[0]) / 8 / US for span in made.spans]
    rows, columns, values, limits = [], [], [], []
    row = 0
    for collective in range(count):
        zero = int(made.entered[collective, 0])
        for clock in range(clocks):
            # entered + D <= instant <= left + D; in us, rates in us/s
            for sign, times in ((1.0, made.entered), (-1.0, made.left)):
                local = int(times[collective, clock])
                parts = {2 * clocks + collective: -sign}
                if clock:
                    parts |= {2 * clock: sign, 2 * clock + 1: sign * local / S}
                for column, value in parts.items():
                    rows.append(row)
                    columns.append(column)
                    values.append(value)
                limits.append(-sign * (local - zero) / US + (wander[clock] if clock else 0.0))
                row += 1
    unknowns = 2 * clocks + count
    matrix = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(row, unknowns))
    free = (None, None)
    ranges = [free, (-DRIFT_LIMIT * 1e6, DRIFT_LIMIT * 1e6)] * clocks + [free] * count
    found = []
    for clock in range(1, clocks):
        halves = []
        for at in made.spans[clock]:
            goal = np.zeros(unknowns)
            goal[2 * clock], goal[2 * clock + 1] = 1.0, at / S
            low, high = (
                linprog(sign * goal, A_ub=matrix, b_ub=limits, bounds=ranges) for sign in (1, -1)
            )
            halves.append((-high.fun - low.fun) / 2 + wander[clock])
        found.append(max(halves) * US)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_close_to_the_best_that_the_inequalities_allow(seed: int) -> None:
    clocks = [2, 3, 5, 8][seed % 4]
    made = made_clocks(seed, clocks, 30, seconds=[1.0, 30.0][seed // 4])
    found = tie_clocks(made.entered, made.left, made.spans, [None] * clocks)
    ratios = []
    for best, tied in zip(least_bounds(made), found[1:], strict=True):
        assert tied is not None
        ratios.append(tied.clock.correction.bound_ns / best)
    # 0.99: the solver's own tolerance. Two clocks have no third one that could tell more.
    assert min(ratios) > 0.99
    assert max(ratios) < (1.01 if clocks == 2 else 1.5)


def test_without_drift_the_bounds_are_the_shortest_paths() -> None:
    """A chain: the first and the second meet, the second and the third, and no others."""
    entered = np.array([[1000, 3000, NEVER], [NEVER, 9000, 5000]], np.int64) * US
    left = np.array([[1400, 3300, NEVER], [NEVER, 9500, 5200]], np.int64) * US
    entered[entered < 0], left[left < 0] = NEVER, NEVER
    entered[0, 2] = left[0, 2] = entered[1, 0] = left[1, 0] = NEVER
    spans = [(1000 * US, 1400 * US), (3000 * US, 9500 * US), (5000 * US, 5200 * US)]
    _, second, third = tie_clocks(entered, left, spans, [None] * 3)
    assert second is not None
    assert third is not None
    # second: -2.3 to -1.6 ms, third: 3.8 to 4.5 ms against it; drifts of 500e-6 over some ms
    assert second.clock.correction.bound_ns == pytest.approx(350 * US, abs=5 * US)
    assert second.clock.correction.apply(3000 * US) == pytest.approx(1050 * US, abs=5 * US)
    assert third.clock.correction.bound_ns == pytest.approx(700 * US, abs=15 * US)
    assert third.clock.correction.apply(5000 * US) == pytest.approx(7200 * US, abs=15 * US)


def test_of_very_many_collectives_the_tight_ones_are_kept() -> None:
    made = made_clocks(3, 3, 20_000, seconds=30.0)
    few = made_clocks(3, 3, 4_000, seconds=30.0)
    found = tie_clocks(made.entered, made.left, made.spans, [None] * 3)[1]
    other = tie_clocks(few.entered, few.left, few.spans, [None] * 3)[1]
    assert found is not None
    assert other is not None
    assert made.error(1, found) <= found.clock.correction.bound_ns + 2
    assert found.clock.correction.bound_ns < 1.2 * other.clock.correction.bound_ns


# -------------------------------------------------------------------------- reports of a job


@dataclass
class Job:
    """A job of MPI that is written as an export for each of its hosts.

    Attributes
    ----------
    hosts
        Of each host its name, when its session began (ns from the first one's), how far its UTC is
        wrong (ns), its clock's drift, and its ranks.
    """

    folder: Path
    hosts: Sequence[tuple[str, int, int, float, Sequence[int]]]
    version: str = "2025.1"
    handles: bool = True
    init: bool = True
    calls: list[tuple[int, float, float, str, dict[str, Any]]] = field(default_factory=list)
    seed: int = 1

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.time = 2.0 * S
        self.ranks = [rank for host in self.hosts for rank in host[4]]

    def collective(self, name: str, ranks: Sequence[int] | None = None, **more: Any) -> None:
        """All ranks, or some, make a collective in which all wait for all."""
        ranks = self.ranks if ranks is None else ranks
        entered = {rank: self.time + self.rng.exponential(MS) for rank in ranks}
        last = max(entered.values())
        for rank in ranks:
            left = last + 2 * US + self.rng.exponential(30 * US)
            self.calls.append((rank, entered[rank], left, name, more))
        self.time = last + self.rng.exponential(20 * MS)

    def program(self, rounds: int) -> None:
        """Make rounds of an Allreduce and a Barrier."""
        for _ in range(rounds):
            self.collective("MPI_Allreduce", size=800, recvSize=800)
            self.collective("MPI_Barrier")

    def local(self, host: int, time: float) -> int:
        """Give what a host's session says at a time of the first one."""
        _, begun, _, drift, _ = self.hosts[host]
        return round((time - begun) / (1 + drift))

    def write(self, late: dict[int, float] | None = None) -> list[Path]:
        """Write the exports; records of hosts in `late` begin at a time."""
        paths = []
        for number, (name, begun, wrong, _, ranks) in enumerate(self.hosts):
            path = self.folder / f"{number}-{name}.sqlite"
            since = (late or {}).get(number, 0.0)
            with Export(path, self.version, name) as export:
                export.begun(utc=UTC + begun + wrong)
                for rank in ranks:
                    pid = 1000 + rank
                    export.mpi_rank(pid, rank)
                    if self.init and not since:
                        at = self.local(number, 1.2 * S)
                        export.mpi("OTHER", pid, at, at + MS, "MPI_Init")
                for rank, entered, left, call, more in self.calls:
                    if rank not in ranks or entered < since:
                        continue
                    told = {"commHandle": 4000 + rank} if self.handles else {}
                    times = self.local(number, entered), self.local(number, left)
                    export.mpi("COLLECTIVES", 1000 + rank, *times, call, **told | more)
            paths.append(path)
        return paths

    def error(self, trace: Trace, host: int) -> int:
        """Give how far the trace's times of a host's collectives are off, ns."""
        row = int(trace.reports.index[trace.reports["file"].str.startswith(f"{host}-")][0])
        messages = trace.table("messages", ["report", "start", "operation"])
        own = messages[
            (messages["report"] == row)
            & ~messages["operation"].isin(["MPI_Init", "MPI_Comm_split"])
        ]
        ranks = self.hosts[host][4]
        truth = np.sort([entered for rank, entered, *_ in self.calls if rank in ranks])
        assert len(truth) == len(own)
        return int(np.abs(np.sort(own["start"].to_numpy()) - truth).max())


def imported(paths: Sequence[Path]) -> tuple[Trace, Imported]:
    into = paths[0].parent / "trace.h5"
    done = import_files(paths, into, NO_NSYS)
    return open_trace(into), done


FIVE = [
    ("n1", 0, 0, 0.0, (0, 1)),
    ("n2", 700 * MS, 6 * MS, 40e-6, (2, 3)),
    ("n3", -300 * MS, -4 * MS, -80e-6, (4, 5)),
    ("n4", 20 * MS, 8 * MS, 10e-6, (6,)),
    ("n5", 1, -9 * MS, -100e-6, (7, 8)),
]


@pytest.mark.parametrize("version", ["2022.4", "2025.1", "2026.2"])
@pytest.mark.parametrize("hosts", [2, 5])
def test_reports_that_have_only_utc_are_put_on_one_time(
    tmp_path: Path, version: str, hosts: int
) -> None:
    used = [FIVE[0], *FIVE[1:hosts]]
    used = [host for host in used if host[1] >= 0] if hosts == 2 else used
    # the one that began first is the trace's time
    used = sorted(used, key=lambda host: host[1] + host[2])
    first = used[0][1]
    used = [(name, begun - first, *more) for name, begun, *more in used]  # type: ignore[misc]
    used[0] = (used[0][0], 0, used[0][2], 0.0, used[0][4])
    job = Job(tmp_path, used, version, handles=version != "2022.4")
    job.program(30)
    trace, done = imported(job.write())
    assert [entry.sentence for entry in done.reports] == [""] * hosts
    reports = trace.reports.set_index("file")
    for number, (name, *_) in enumerate(used):
        report = reports.loc[f"{number}-{name}.sqlite"]
        assert job.error(trace, number) <= report["correction_bound"] + 2
        if number:
            assert report["correction_source"] == "collectives"
            assert report["correction_bound"] < UTC_BOUND / 20
    points = trace.report_clocks.groupby("report")["points"].max()
    assert points.iloc[1:].tolist() == [60] * (hosts - 1)
    (checked,) = trace.causality.to_dict("records")
    assert checked["order"] == COLLECTIVE
    assert checked["checked"] == 60 * hosts * (hosts - 1)
    assert checked["violations"] == 0


def two(tmp_path: Path, wrong: int = 5 * MS, **more: Any) -> Job:
    return Job(tmp_path, [("n1", 0, 0, 0.0, (0, 1)), ("n2", S, wrong, 3e-5, (2, 3))], **more)


def second(trace: Trace) -> dict[str, Any]:
    return {str(name): value for name, value in trace.reports.iloc[1].items()}


def test_collectives_win_over_a_utc_that_is_worse_than_assumed(tmp_path: Path) -> None:
    job = two(tmp_path, wrong=300 * MS)
    job.program(20)
    trace, _ = imported(job.write())
    report = second(trace)
    assert report["correction_source"] == "collectives"
    assert job.error(trace, 1) <= report["correction_bound"] < MS
    assert "contradict what UTC tells of its clock by 288 ms" in report["sentence"]
    assert "they were used" in report["sentence"]


def test_where_communicators_are_not_told_utc_wins(tmp_path: Path) -> None:
    job = two(tmp_path, wrong=300 * MS, version="2022.4", handles=False)
    job.program(20)
    trace, _ = imported(job.write())
    report = second(trace)
    assert report["correction_source"] == "utc"
    assert "does not tell communicators" in report["sentence"]
    # and the trace says that its times contradict each other
    (checked,) = trace.causality.to_dict("records")
    assert checked["violations"] > 0
    assert checked["worst"] == pytest.approx(288 * MS, abs=5 * MS)


def test_ranks_of_other_rows_of_a_grid_are_not_taken_for_one_communicator(tmp_path: Path) -> None:
    """Both rows make the same calls in step, the second host's always 3 ms later."""
    job = two(tmp_path, wrong=0)
    job.program(3)
    for rank in job.ranks:
        at = job.time
        job.calls.append((rank, at, at + MS, "MPI_Allreduce", {"size": 8, "recvSize": 8}))
    made = job.time + 2 * MS
    for number in range(40):
        for row, later in (((0, 1), 0), ((2, 3), 3 * MS)):
            job.time = made + 10 * MS * number + later
            for rank in row:
                more = {"commHandle": 7000 + rank, "size": 8, "recvSize": 8}
                job.calls.append((rank, job.time, job.time + 10 * US, "MPI_Allreduce", more))
    paths = job.write()
    for path in paths:
        with sqlite3.connect(path) as database:
            text = database.execute("SELECT max(id) FROM StringIds").fetchone()[0] + 1
            database.execute("INSERT INTO StringIds VALUES (?, 'MPI_Comm_split')", (text,))
            ranks = database.execute("SELECT globalTid FROM MPI_RANKS").fetchall()
            offset = 0 if path.name.startswith("0") else S
            for (thread,) in ranks:
                database.execute(
                    "INSERT INTO MPI_OTHER_EVENTS VALUES (?, ?, ?, ?)",
                    (round(made) - MS - offset, round(made) - offset, thread, text),
                )
    trace, _ = imported(paths)
    messages = trace.table("messages", ["collective", "communicator"])
    rows = messages["communicator"] >= 7000
    assert (messages["collective"][rows] == -1).all()
    assert (messages["collective"][messages["communicator"].between(4000, 4003)] >= 0).all()
    assert job.error(trace, 1) <= second(trace)["correction_bound"]


def test_a_number_of_a_communicator_that_the_whole_job_knows_matches_its_ranks(
    tmp_path: Path,
) -> None:
    job = two(tmp_path)
    pairs = ((0, 2), (1, 3))
    for _ in range(25):
        for pair in pairs:
            job.collective("MPI_Barrier", pair, commHandle=9)
    paths = job.write()
    for path, ranks in zip(paths, ((0, 1), (2, 3)), strict=True):
        with sqlite3.connect(path) as database:
            database.execute(
                "CREATE TABLE MPI_COMMUNICATORS (rank INTEGER, timestamp INTEGER, "
                "commHandle INTEGER, localRank INTEGER, commUid INTEGER)"
            )
            for rank in ranks:
                told = (rank, 0, 9, rank // 2, 500 + rank % 2)
                database.execute("INSERT INTO MPI_COMMUNICATORS VALUES (?, ?, ?, ?, ?)", told)
    trace, _ = imported(paths)
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < MS
    messages = trace.table("messages", ["communicator", "collective", "rank"])
    called = messages[messages["collective"] >= 0]
    assert set(called["communicator"]) == {500, 501}
    assert set(called["rank"]) == {0, 1}
    assert called.groupby("collective").size().tolist() == [2] * 50
    assert (called.groupby("collective")["communicator"].nunique() == 1).all()


def test_a_rank_that_no_report_holds_is_not_missed(tmp_path: Path) -> None:
    job = Job(tmp_path, [("n1", 0, 0, 0.0, (0,)), ("n3", S, 4 * MS, 0.0, (2,))])
    job.ranks = [0, 1, 2]
    job.program(25)
    job.calls = [call for call in job.calls if call[0] != 1]
    trace, _ = imported(job.write())
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < UTC_BOUND / 5


def test_a_record_that_begins_late_is_matched_where_it_fits_only_once(tmp_path: Path) -> None:
    job = two(tmp_path)
    for number in range(40):
        job.collective("MPI_Allreduce", size=8 * (number + 1), recvSize=8 * (number + 1))
    since = sorted(entered for _, entered, *_ in job.calls)[4 * 17] - MS
    job.calls = [c for c in job.calls if c[0] < 2 or c[1] >= since]
    job.init = True
    paths = job.write(late={1: since})
    trace, _ = imported(paths)
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < MS


def test_a_record_that_begins_late_in_a_run_of_equal_calls_ties_nothing(tmp_path: Path) -> None:
    job = two(tmp_path)
    for _ in range(40):
        job.collective("MPI_Barrier")
        job.time -= 15 * MS if job.time > 2.1 * S else 0
    for _ in range(30):
        entered = job.time
        for rank in job.ranks:
            job.calls.append((rank, entered, entered + 3 * MS, "MPI_Barrier", {}))
        job.time += 4 * MS
    since = job.time - 60 * MS
    job.calls = [c for c in job.calls if c[0] < 2 or c[1] >= since]
    trace, _ = imported(job.write(late={1: since}))
    report = second(trace)
    assert report["correction_source"] == "utc"
    assert "begins after MPI_Init" in report["sentence"]
    assert "at several places within what UTC allows" in report["sentence"]


def test_ranks_that_made_other_calls_are_of_another_program(tmp_path: Path) -> None:
    job = two(tmp_path)
    job.program(20)
    job.calls = [
        (rank, entered, left, "MPI_Alltoall" if rank >= 2 and n % 7 == 3 else name, more)
        for n, (rank, entered, left, name, more) in enumerate(job.calls)
    ]
    trace, _ = imported(job.write())
    assert second(trace)["correction_source"] == "utc"
    assert "are others than those of rank" in second(trace)["sentence"]


def test_a_clock_that_jumped_is_not_tied_and_that_is_said(tmp_path: Path) -> None:
    job = two(tmp_path)
    job.program(20)
    middle = job.time / 2 + S
    paths = job.write()
    with sqlite3.connect(paths[1]) as database:
        database.execute(
            "UPDATE MPI_COLLECTIVES_EVENTS SET start = start + 30000000, end = end + 30000000 "
            "WHERE start > ?",
            (round(middle) - S,),
        )
    trace, _ = imported(paths)
    assert second(trace)["correction_source"] == "utc"
    assert "no steady clock fits its collectives" in second(trace)["sentence"]


def test_groups_that_nsys_does_not_tell_apart_tie_nothing(tmp_path: Path) -> None:
    """Ranks of one report share a clock, which shows that they did not wait for each other."""
    job = two(tmp_path, version="2022.4", handles=False)
    for number in range(20):
        job.time = (2 + number / 10) * S
        job.collective("MPI_Barrier", (0, 2))
        job.time = (2 + number / 10) * S + 30 * MS
        job.collective("MPI_Barrier", (1, 3))
    trace, _ = imported(job.write())
    assert second(trace)["correction_source"] == "utc"
    assert "go over several communicators" in second(trace)["sentence"]
    assert (trace.table("messages")["collective"] == -1).all()


def test_a_recording_in_two_files_is_one(tmp_path: Path) -> None:
    job = two(tmp_path)
    job.program(20)
    paths = job.write()
    again = tmp_path / "again.sqlite"
    shutil.copyfile(paths[1], again)
    trace, _ = imported([*paths, again])
    assert len(trace.reports) == 2
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"]


def test_a_report_without_utc_is_placed_by_its_collectives(tmp_path: Path) -> None:
    job = two(tmp_path)
    job.program(20)
    paths = job.write()
    with sqlite3.connect(paths[1]) as database:
        database.execute("DROP TABLE TARGET_INFO_SESSION_START_TIME")
    trace, _ = imported(paths)
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < MS


def test_reports_of_two_jobs_tie_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, [("n1", 0, 0, 0.0, (0, 1)), ("n2", S, 0, 0.0, (2, 3))])
    job.program(10)
    paths = job.write()
    with sqlite3.connect(paths[1]) as database:
        database.execute("UPDATE MPI_RANKS SET rank = rank - 2")
    trace, _ = imported(paths)
    assert second(trace)["correction_source"] == "utc"
    assert "several processes say that they are rank" in second(trace)["sentence"]


def test_collectives_with_nothing_to_exchange_say_nothing(tmp_path: Path) -> None:
    job = two(tmp_path)
    for _ in range(20):
        job.collective("MPI_Allreduce", size=0, recvSize=0)
    trace, _ = imported(job.write())
    assert second(trace)["correction_source"] == "utc"
    assert not len(trace.causality)


def test_a_broadcast_says_that_none_leaves_before_its_root_entered(tmp_path: Path) -> None:
    """Two ranks broadcast in turn and leave at once; the third one comes late, and none waits."""
    job = Job(tmp_path, [("n1", 0, 0, 0.0, (0,)), ("n2", S, 5 * MS, 0.0, (1, 2))])
    for number in range(30):
        root, other = number % 2, 1 - number % 2
        at, more = job.time, {"rootRank": root, "size": 64}
        job.calls.append((root, at, at + 2 * US, "MPI_Bcast", more))
        job.calls.append((other, at - MS, at + 10 * US, "MPI_Bcast", more))
        job.calls.append((2, at + 5 * MS, at + 5 * MS + US, "MPI_Bcast", more))
        job.time += 20 * MS
    trace, _ = imported(job.write())
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < MS


def test_a_reduction_says_that_its_root_leaves_when_all_have_entered(tmp_path: Path) -> None:
    job = Job(tmp_path, [("n1", 0, 0, 0.0, (0,)), ("n2", S, 5 * MS, 0.0, (1, 2))])
    for number in range(30):
        root, other = number % 2, 1 - number % 2
        at, more = job.time, {"rootRank": root, "size": 64}
        job.calls.append((other, at, at + 2 * US, "MPI_Reduce", more))
        job.calls.append((root, at - MS, at + 10 * US, "MPI_Reduce", more))
        job.calls.append((2, at - 5 * MS, at - 5 * MS + US, "MPI_Reduce", more))
        job.time += 20 * MS
    trace, _ = imported(job.write())
    assert second(trace)["correction_source"] == "collectives"
    assert job.error(trace, 1) <= second(trace)["correction_bound"] < MS


# ------------------------------------------------------------------------- runs with journals


RUNNER = PlainWorker(1000, [(1000, BEGIN + 2 * S, BEGIN + 2 * S + 900 * MS)], [])


@pytest.mark.parametrize("merged", [True, False])
def test_in_a_run_collectives_check_what_journals_tie_and_tie_what_they_do_not(
    tmp_path: Path, merged: bool
) -> None:
    """Rank 0 is a worker with a journal, ranks 2 and 3 are processes of another host."""
    job = Job(tmp_path, [("node7", 0, 0, 0.0, (0,)), ("n2", S, 5 * MS, 3e-5, (2, 3))])
    job.program(20)
    paths = job.write()
    run = tmp_path / "run"
    write_workers(run / "journals", [RUNNER])
    for path, host in zip(paths, job.hosts, strict=True):
        if host[0] == "node7":
            with Export(tmp_path / "marks.sqlite", "2025.1") as marks:
                for n in range(10):
                    marks.mark(1000, MS + n * 1000, BEGIN + MS + n * 1000)
            _move_ranges(tmp_path / "marks.sqlite", path)
        with sqlite3.connect(path) as database:
            # UTC of the run
            database.execute(
                "UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs + ?",
                (BEGIN_UTC - UTC,),
            )
    if merged:
        (run / "nsight").mkdir()
        for path in paths:
            report = run / "nsight" / f"{path.stem}.nsys-rep"
            report.write_bytes(path.name.encode())
            shutil.copyfile(path, report.with_suffix(".sqlite"))
        merge_run(run, str(run / "no nsys"))
    else:
        merge_run(run)
        join_into(paths, run, NO_NSYS)
    with open_trace(run) as trace:
        reports = trace.reports
        first = reports[reports["file"].str.contains("node7")].iloc[0]
        other = reports[reports["file"].str.contains("n2")].iloc[0]
        assert first["correction_source"] == "marks"
        assert other["correction_source"] == "collectives+marks"
        assert other["correction_bound"] < MS
        orders = trace.causality.set_index("order")
        assert len(orders) == 5
        assert orders.loc[COLLECTIVE, "checked"] == 2 * 40
        assert orders["violations"].sum() == 0
        messages = trace.table("messages")
        mine = messages[(messages["rank"] == 0) & (messages["operation"] != "MPI_Init")]
        inside = (mine["start"] + BEGIN >= RUNNER.tasks[0][1]) & (
            mine["start"] + BEGIN < RUNNER.tasks[0][2]
        )
        assert inside.any()
        assert ((mine["task"] >= 0) == inside).all()
        waiting = analyse("collectives", trace).tables["waiting"]
        assert waiting["calls"][waiting["function"] == "task"].sum() == inside.sum()


def _move_ranges(source: Path, target: Path) -> None:
    """Add the NVTX events and strings of one export to another one that has none."""
    with sqlite3.connect(target) as database:
        database.execute("ATTACH ? AS other", (str(source),))
        database.execute("CREATE TABLE NVTX_EVENTS AS SELECT * FROM other.NVTX_EVENTS")
        database.execute("UPDATE NVTX_EVENTS SET textId = textId + 10000")
        database.execute("INSERT INTO StringIds SELECT id + 10000, value FROM other.StringIds")


# ----------------------------------------------------------------------------- who waited


def test_who_came_last_and_how_long_the_others_waited_is_told(tmp_path: Path) -> None:
    """Rank 3 is always 8 ms late."""
    job = two(tmp_path)
    for number in range(20):
        at = job.time = (2 + number / 50) * S
        for rank in job.ranks:
            entered = at + (8 * MS if rank == 3 else rank * US)
            job.calls.append((rank, entered, at + 8 * MS + 10 * US, "MPI_Barrier", {}))
    trace, _ = imported(job.write())
    answer = analyse("collectives", trace)
    (row,) = answer.tables["collectives"].to_dict("records")
    bound = second(trace)["correction_bound"]
    truth = 20 * (3 * 8 * MS - 3 * US)
    assert (row["operation"], row["ranks"], row["count"], row["calls"]) == (
        "MPI_Barrier",
        4,
        20,
        80,
    )
    assert row["wait"] == pytest.approx(truth, abs=60 * int(bound))
    waiting = answer.tables["waiting"]
    assert waiting["rank"].tolist()[0] == 3
    assert waiting["last"].tolist() == [20, 0, 0, 0]
    assert waiting["caused"].sum() == waiting["wait"].sum() == row["wait"]
    assert waiting["calls"].sum() == row["calls"]
    assert waiting["time"].sum() == row["time"]
    (finding,) = answer.findings
    assert "process 1003 on n2 (rank 3) came last 20 times" in finding.sentence
    assert answer.tables["clocks"]["points"].tolist() == [20]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_nothing_that_was_waited_is_counted_twice_or_lost(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = two(Path(folder), seed=seed)
        job.program(6)
        job.collective("MPI_Bcast", rootRank=0, size=4)
        trace, _ = imported(job.write())
        messages = trace.table("messages", ["start", "stop", "collective", "operation"])
        answer = analyse("collectives", trace)
        trace.close()
    waited = 0
    for _, calls in messages[messages["collective"] >= 0].groupby("collective"):
        if calls["operation"].iloc[0] != "MPI_Bcast":
            last = calls["start"].max()
            waited += int((np.minimum(last, calls["stop"]) - calls["start"]).clip(lower=0).sum())
    tables = answer.tables
    assert tables["collectives"]["wait"].sum() == waited
    assert tables["waiting"]["wait"].sum() == tables["waiting"]["caused"].sum() == waited
    assert tables["collectives"]["calls"].sum() == 13 * 4
    assert tables["operations"]["calls"].sum() == len(messages)
    assert tables["operations"]["time"].sum() == (messages["stop"] - messages["start"]).sum()


# -------------------------------------------------------------------------------- messages


def test_messages_are_read_from_the_tables_of_every_library(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Export(path, "2025.1") as export:
        export.begun(utc=UTC)
        export.mpi_rank(50, 3)
        export.mpi("P2P", 50, 10, 20, "MPI_Send", size=64, remoteRank=2, commHandle=8, tag=1)
        export.mpi("P2P", 50, 30, 40, "MPI_Recv", size=32, remoteRank=1, commHandle=8, tag=1)
        export.mpi("START_WAIT", 50, 50, 60, "MPI_Wait", requestHandle=77)
        export.mpi("COLLECTIVES", 50, 70, 80, "MPI_Bcast", size=16, rootRank=0, commHandle=8)
        export.mpi("COLLECTIVES", 50, 90, None, "MPI_Allreduce", size=8, recvSize=8)
        export.ucp("SUBMIT", 50, 100, 110, "ucp_tag_send_nbx", packedSize=5, peerWorkerUid=9)
        export.ucp("SUBMIT", 50, 120, 130, "ucp_tag_recv_nbx", packedSize=6, peerWorkerUid=9)
        communicator = {"NCCL communicator ID": (2**63 + 5, 8)}
        rank = {"No. of ranks": (2, 4), "Rank": (1, 4), "CUDA device": (0, 4)}
        export.nccl(50, 140, 150, "ncclCommInitRank", communicator | rank)
        export.nccl(
            50, 160, 170, "ncclAllReduce", communicator | {"Message size [bytes]": (4096, 8)}
        )
        export.nccl(
            50,
            180,
            190,
            "ncclBroadcast",
            communicator | {"Message size [bytes]": (512, 8), "Root": (1, 4)},
        )
    trace, _ = imported([path])
    messages = trace.table("messages")
    columns = ["library", "operation", "start", "stop", "sent", "received", "peer", "root", "rank"]
    nccl = 5 - 2**63
    assert [tuple(row) for row in messages[columns].itertuples(index=False)] == [
        ("MPI", "MPI_Send", 10, 20, 64, -1, 2, -1, 3),
        ("MPI", "MPI_Recv", 30, 40, -1, 32, 1, -1, 3),
        ("MPI", "MPI_Wait", 50, 60, -1, -1, -1, -1, 3),
        ("MPI", "MPI_Bcast", 70, 80, -1, 16, -1, 0, 3),
        ("MPI", "MPI_Allreduce", 90, -1, 8, 8, -1, -1, 3),
        ("UCX", "ucp_tag_send_nbx", 100, 110, 5, -1, 9, -1, -1),
        ("UCX", "ucp_tag_recv_nbx", 120, 130, -1, 6, 9, -1, -1),
        ("NCCL", "ncclCommInitRank", 140, 150, -1, -1, -1, -1, 1),
        ("NCCL", "ncclAllReduce", 160, 170, 4096, -1, -1, -1, 1),
        ("NCCL", "ncclBroadcast", 180, 190, 512, -1, -1, 1, 1),
    ]
    assert messages["communicator"].tolist() == [8, 8, -1, 8, -1, -1, -1, nccl, nccl, nccl]
    assert (messages["collective"] == -1).all()
    assert held(trace)[Kind.MESSAGES].state is State.RECORDED


@pytest.mark.parametrize(
    ("content", "bytes_"),
    [
        ('{"Message size [bytes]": 77, "Root": 1}', 77),
        ('{"Message size [bytes]": "77"}', -1),
        ("[1]", -1),
        ("{", -1),
        ("", -1),
    ],
)
def test_odd_payloads_cost_no_report(tmp_path: Path, content: str, bytes_: int) -> None:
    path = tmp_path / "r.sqlite"
    with Export(path, "2023.4") as export:
        export.begun(utc=UTC)
        export.nccl(50, 140, 150, "ncclAllReduce", {})
        export.database.execute(
            "UPDATE NVTX_EVENTS SET jsonText = ?, binaryData = x'00' WHERE eventType = 59",
            (content,),
        )
    trace, _ = imported([path])
    assert trace.table("messages")["sent"].tolist() == [bytes_]


@pytest.mark.parametrize("value", ["NULL", "-1", "0", "9223372036854775807", "-9e18", "'text'"])
@pytest.mark.parametrize(
    "column",
    ["start", "end", "globalTid", "textId", "commHandle", "rootRank", "size", "rank", "commUid"],
)
def test_odd_contents_cost_at_most_their_report(tmp_path: Path, column: str, value: str) -> None:
    job = two(tmp_path, version="2026.2")
    job.program(3)
    paths = job.write()
    with sqlite3.connect(paths[1]) as database:
        database.execute(f"CREATE TABLE MPI_COMMUNICATORS ({MPI_COMMUNICATORS})")
        database.execute("INSERT INTO MPI_COMMUNICATORS (rank, commHandle) VALUES (2, 4002)")
        for table in ("MPI_COLLECTIVES_EVENTS", "MPI_RANKS", "MPI_COMMUNICATORS"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            if column in columns:
                definition = ", ".join(columns)
                database.execute(f"CREATE TABLE odd AS SELECT {definition} FROM {table}")
                database.execute(f"UPDATE odd SET {column} = {value} WHERE rowid % 2 = 1")
                database.execute(f"DROP TABLE {table}")
                database.execute(f"ALTER TABLE odd RENAME TO {table}")
    trace, done = imported(paths)
    analyse("collectives", trace)
    statuses = [entry.status for entry in done.reports]
    assert statuses[0] == "joined"
    assert statuses[1] == ("joined" if value not in ("'text'", "-9e18") else statuses[1])


def test_what_was_not_traced_is_not_recorded_and_what_is_empty_is_none(tmp_path: Path) -> None:
    for name, make in (("a", False), ("b", True)):
        folder = tmp_path / name
        folder.mkdir()
        with Export(folder / "r.sqlite", "2025.1") as export:
            export.begun(utc=UTC)
            export.kernel(1, 10, 20)
            if make:
                export.mpi_rank(1, 0)
        trace, _ = imported([folder / "r.sqlite"])
        state = held(trace)[Kind.MESSAGES].state
        assert state is (State.NONE if make else State.MISSING)


# ------------------------------------------------------------------------------- a real job

PROGRAM = """
import time
import numpy as np
from mpi4py import MPI
ranks = MPI.COMM_WORLD
rank = ranks.Get_rank()
one, other = np.ones(1024), np.empty(1024)
for number in range(20):
    time.sleep(0.005 * (1 + (number + rank) % 2))
    ranks.Barrier()
    ranks.Allreduce(one, other)
if rank:
    ranks.Recv(other, source=0)
else:
    ranks.Send(one, dest=1)
"""


@pytest.mark.needs("mpi", "nsys")
@pytest.mark.timeout(240)
def test_two_real_ranks_taken_for_two_hosts_are_put_on_one_time(tmp_path: Path, nsys: Path) -> None:
    """One host's UTC is one clock, so it tells what the offset of the two sessions really is."""
    (tmp_path / "job.py").write_text(PROGRAM)
    done = subprocess.run(
        [
            "mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2",
            str(nsys), "profile", "-s", "none", "--cpuctxsw=none", "-t", "mpi,nvtx",
            "--mpi-impl=openmpi", "-o", "rank%q{OMPI_COMM_WORLD_RANK}",
            sys.executable, "job.py",
        ],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=180,
    )  # fmt: skip
    program = find_nsys(str(nsys))
    paths, starts = [], []
    for rank in (0, 1):
        report = tmp_path / f"rank{rank}.nsys-rep"
        assert report.exists(), done.stdout + done.stderr
        copy = tmp_path / "copies" / f"rank{rank}.sqlite"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(export_sqlite(report, program), copy)
        paths.append(copy)
        with sqlite3.connect(copy) as database:
            query = "SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME"
            starts.append(int(database.execute(query).fetchone()[0]))
            if rank:
                database.execute(
                    "UPDATE TARGET_INFO_SYSTEM_ENV SET value = 'other' WHERE name = 'Hostname'"
                )
                database.execute(
                    "UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs + ?",
                    (7 * MS,),
                )
    trace, _ = imported(paths)
    reports = trace.reports.set_index("file")
    tied = reports[reports["correction_source"] == "collectives"]
    assert len(tied) == 1
    sign = 1 if tied.index[0] == "rank1.sqlite" else -1
    clock = trace.report_clocks[trace.report_clocks["source"] == "collectives"].iloc[0]
    at_zero = clock["offset"] - clock["drift"] * clock["origin"]
    off = abs(at_zero - sign * (starts[1] - starts[0]))
    # nsys states the UTC of a session's start with an error of up to 34 us, measured
    assert off <= clock["bound"] + 2 * 34 * US
    # on a busy machine ranks leave late: 0.15 to 0.4 ms were measured
    assert clock["bound"] < UTC_BOUND / 3
    assert clock["points"] == 40
    messages = trace.table("messages", ["operation", "rank", "collective"])
    assert set(messages["rank"]) == {0, 1}
    assert {"MPI_Send", "MPI_Recv", "MPI_Barrier"} <= set(messages["operation"])
    matched = messages[messages["collective"] >= 0]
    assert matched.groupby("collective").size().tolist() == [2] * 40
