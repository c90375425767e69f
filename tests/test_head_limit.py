"""A head that is a batch job ends its run before its own time limit does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dasf_hpc.interrupts import Interrupts
from dasf_hpc.launch.deadline import STARTED_VARIABLE
from dasf_hpc.launch.head_limit import (
    HEAD_LIMIT_VARIABLE,
    head_margin_seconds,
    seconds_to_end,
)


@pytest.mark.parametrize(
    ("limit_s", "asked_s", "margin_s"),
    [
        (3600.0, None, 120.0),
        (40.0, None, 10.0),
        (3600.0, 300.0, 300.0),  # what reports need, the head's end needs, too
        (3600.0, 15.0, 120.0),
        (60.0, 300.0, 59.0),
    ],
)
def test_the_margin_is_two_minutes_and_never_all_of_the_time(
    limit_s: float, asked_s: float | None, margin_s: float
) -> None:
    assert head_margin_seconds(limit_s, asked_s) == margin_s


@pytest.mark.parametrize(
    ("limit", "ran_s", "left_s"),
    [
        ("1-00:00:00", 0, 86400 - 120),  # as squeue writes it
        ("59:59", 600, 3599 - 600 - 120),
        ("00:01:00", 3600, 0.0),
        ("UNLIMITED", 0, None),
        ("", 0, None),
    ],
)
def test_what_the_job_has_run_is_taken_off(
    limit: str, ran_s: int, left_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HEAD_LIMIT_VARIABLE, limit)
    monkeypatch.setenv(STARTED_VARIABLE, str(int(time.time()) - ran_s))
    found = seconds_to_end(None)
    assert found == (None if left_s is None else pytest.approx(left_s, abs=2.0))
    # What the run starts is no head: it would take this one's limit for its own.
    assert HEAD_LIMIT_VARIABLE not in os.environ


def test_the_limit_asks_once_and_a_ctrl_c_after_it_is_the_second() -> None:
    with Interrupts(0.05) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
        assert interrupts.at_limit
        assert not interrupts.at_once
        interrupts.hold(lambda: None)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.at_once


def test_an_end_that_has_begun_is_not_disturbed_by_the_limit() -> None:
    with Interrupts(0.2) as interrupts:
        interrupts.hold(lambda: pytest.fail("nobody asked for an end at once"))
        interrupts.release()
        time.sleep(0.4)
        assert interrupts.taken is None
    with Interrupts(0.2) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.4)
        assert interrupts.taken == signal.SIGINT
        assert not interrupts.at_once
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
