"""Causality: every pair that must have an order is compared, and only what bounds do not explain
is a violation."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import write_run

from dasf_hpc.trace import align, causality, merge
from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.causality import ASKED, ONE_CLOCK, RECEIVED, TWO_CLOCKS, check_causality
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.summary import summarise

Array = NDArray[Any]

#: Processes 0 and 1 share clock 0, the reference; 2 reads clock 1, 3 clock 2, of unknown bound.
CLOCKS = np.array([0, 0, 1, 2], np.int32)
BOUNDS = np.array([0, 100, -1], np.int64)


class Plain:
    """Tables that are in memory."""

    def __init__(self, **tables: dict[str, Any]) -> None:
        self._tables = {
            name: {column: np.asarray(values) for column, values in columns.items()}
            for name, columns in tables.items()
        }

    def rows(self, name: str) -> int:
        return len(next(iter(self._tables[name].values()))) if name in self._tables else 0

    def read(self, table: str, column: str, rows: slice) -> Array:
        return self._tables[table][column][rows]


def tasks(*rows: tuple[int, int, int, int]) -> dict[str, Any]:
    """Give table ``tasks`` from key, process, start, stop."""
    key, process, start, stop = np.array(rows, np.int64).reshape(-1, 4).T
    some = np.ones(len(key), np.int64)
    return {"key": key, "process": process, "start": start, "stop": stop, "state": 0 * some,
            "thread": 7 * some}  # fmt: skip


def needs(*pairs: tuple[int, int]) -> dict[str, Any]:
    key, dependency = np.array(pairs, np.int64).reshape(-1, 2).T
    return {"key": key, "dependency": dependency}


def found(tables: Plain, keys: int = 10) -> dict[str, dict[str, int]]:
    """Give the rows of table ``causality`` by order."""
    columns = check_causality(tables, keys, CLOCKS, BOUNDS)
    return {
        order: {name: values[row] for name, values in columns.items() if name != "order"}
        for row, order in enumerate(columns["order"])
    }


def test_one_clock_leaves_no_room_and_two_leave_both_bounds() -> None:
    rows = tasks((0, 0, 0, 1000), (1, 1, 999, 2000), (2, 2, 900, 2000), (3, 2, 890, 2000))
    counted = found(Plain(tasks=rows, dependencies=needs((1, 0), (2, 0), (3, 0))))
    assert counted[ONE_CLOCK] == {
        "checked": 1,
        "unchecked": 0,
        "inverted": 1,
        "violations": 1,
        "worst": 1,
    }
    assert counted[TWO_CLOCKS] == {
        "checked": 2,
        "unchecked": 0,
        "inverted": 2,
        "violations": 1,
        "worst": 10,
    }


def test_what_is_not_known_is_not_judged() -> None:
    rows = tasks((0, 0, 0, 1000), (1, 3, 0, 2000), (2, 0, 5, -1), (3, 0, 6, 2000))
    rows["state"][2] = 3  # lost: it never ended
    rows["thread"][3] = 0  # timed on Dask's clock
    pairs = needs((1, 0), (3, 2), (3, 0), (0, 9))
    counted = found(Plain(tasks=rows, dependencies=pairs))
    assert counted[TWO_CLOCKS] == {
        "checked": 0,
        "unchecked": 1,
        "inverted": 0,
        "violations": 0,
        "worst": -1,
    }
    assert counted[ONE_CLOCK]["checked"] == 0


def test_a_key_that_was_executed_again_is_given_the_benefit_of_the_doubt() -> None:
    # 0 is computed again after 1 was: 1 used the first; then 1 again, from either
    rows = tasks((0, 0, 0, 10), (1, 0, 20, 30), (0, 0, 40, 50), (1, 0, 45, 60))
    counted = found(Plain(tasks=rows, dependencies=needs((1, 0))))
    assert counted[ONE_CLOCK]["violations"] == 0


@pytest.mark.parametrize("rows_at_once", [1 << 20, 7])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_counted_as_a_plain_loop_counts_them(
    seed: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causality, "ROWS", rows_at_once)
    random = np.random.default_rng(seed)
    start = random.integers(0, 3000, 60)
    rows = list(
        zip(
            random.integers(0, 40, 60).tolist(),
            random.integers(0, 4, 60).tolist(),
            start.tolist(),
            (start + random.integers(1, 300, 60)).tolist(),
            strict=True,
        )
    )
    pairs = [tuple(p) for p in np.unique(random.integers(0, 40, (80, 2)), axis=0).tolist()]
    counted = found(Plain(tasks=tasks(*rows), dependencies=needs(*pairs)), keys=40)
    expected: dict[str, list[int]] = defaultdict(list)
    unknown = 0
    for key, dependency in pairs:
        begins = [(s, p) for k, p, s, _ in rows if k == key]
        ends = [(e, p) for k, p, _, e in rows if k == dependency]
        if not begins or not ends or key == dependency:
            continue
        (began, here), (ended, there) = max(begins), min(ends)
        one = CLOCKS[here] == CLOCKS[there]
        if not one and 2 in (CLOCKS[here], CLOCKS[there]):
            unknown += 1
            continue
        room = 0 if one else int(BOUNDS[CLOCKS[here]] + BOUNDS[CLOCKS[there]])
        expected[ONE_CLOCK if one else TWO_CLOCKS].append(ended - began - room)
    for order in (ONE_CLOCK, TWO_CLOCKS):
        excess = [e for e in expected[order] if e > 0]
        assert counted[order]["checked"] == len(expected[order])
        assert counted[order]["violations"] == len(excess)
        assert counted[order]["worst"] == max(excess, default=-1)
    assert counted[TWO_CLOCKS]["unchecked"] == unknown
    assert sum(len(e) for e in expected.values()) > 10


@pytest.mark.parametrize("rows_at_once", [1 << 20, 3])
def test_both_ends_of_a_transfer_are_compared(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causality, "ROWS", rows_at_once)
    columns = ("process", "peer_process", "direction", "nbytes", "keys", "start", "stop")
    rows = np.array(
        [
            (0, 1, 0, 50, 1, 100, 200),  # 0 asks 1, in order
            (1, 0, 1, 50, 1, 120, 210),
            (0, 1, 0, 70, 1, 300, 320),  # received before it was sent
            (1, 0, 1, 70, 1, 325, 340),
            (0, 2, 0, 50, 1, 500, 600),  # sent 150 before it was asked for, 50 beyond the bound
            (2, 0, 1, 50, 1, 350, 700),
            (1, 0, 0, 50, 1, 800, 900),  # of two, one end has one only
            (1, 0, 0, 50, 1, 801, 901),
            (0, 1, 1, 50, 1, 700, 950),
            (0, -1, 0, 50, 1, 0, 1),  # of nobody known
        ],
        np.int64,
    )
    table = dict(zip(columns, rows.T, strict=True))
    counted = found(Plain(transfers=table))
    assert counted[RECEIVED] == {
        "checked": 3,
        "unchecked": 2,
        "inverted": 1,
        "violations": 1,
        "worst": 5,
    }
    assert counted[ASKED] == {
        "checked": 3,
        "unchecked": 2,
        "inverted": 1,
        "violations": 1,
        "worst": 50,
    }


def test_a_merged_run_violates_nothing_until_a_clock_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "journals", seed=5, nodes=2, workers=2, tasks=200)
    merge_journals(tmp_path / "journals").write(tmp_path / "right.h5")
    with open_trace(tmp_path / "right.h5") as trace:
        right = trace.causality.set_index("order")
        assert right["checked"].loc[[ONE_CLOCK, TWO_CLOCKS]].min() > 50
        assert (right["violations"] == 0).all()
        processes, clocks = trace.processes, trace.clocks["bound"].tolist()
        workers = processes.index[processes["role"] == "worker"]
        of = processes["clock"].tolist()
        for one in workers:
            for other in workers:
                room = 0 if of[one] == of[other] else clocks[of[one]] + clocks[of[other]]
                assert trace.bound_between(one, other) == room
        both = trace.bound_between(workers.to_numpy(), workers.to_numpy()[::-1])
        assert both.tolist() == [
            trace.bound_between(a, b) for a, b in zip(workers, workers[::-1], strict=True)
        ]

    shifts = itertools.count(1)

    def wrong(*arguments: Any) -> Correction:
        fitted = align.fit_probes(*arguments)
        return replace(fitted, offset_ns=fitted.offset_ns + next(shifts) * 10**10, bound_ns=1000)

    monkeypatch.setattr(merge, "fit_probes", wrong)
    merge_journals(tmp_path / "journals").write(tmp_path / "wrong.h5")
    with open_trace(tmp_path / "wrong.h5") as trace:
        summary = summarise(trace)
    orders = {order.order: order for order in summary.causality}
    assert orders[ONE_CLOCK].violations == 0
    assert orders[TWO_CLOCKS].violations > 20
    assert 10**9 < orders[TWO_CLOCKS].worst <= 3 * 10**10
