"""What is recorded of a task takes no more instructions than it did when that was measured.

Instructions are counted, not timed: what else the machine does changes nothing.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from recording_task import instructions  # noqa: E402

#: Instructions that recording adds to a task, by what is attached (Python 3.11, x86-64).
ADDED = {"task plugin": 16_900, "with ranges": 21_500}

pytestmark = [
    pytest.mark.needs("valgrind"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64",
        reason="instructions were counted with Python 3.11 on x86-64",
    ),
]


@pytest.fixture(scope="module")
def bare() -> float:
    return instructions("bare", "map")


@pytest.mark.parametrize("arm", sorted(ADDED))
def test_a_task_takes_no_more_instructions_than_are_known_of_it(bare: float, arm: str) -> None:
    added = instructions(arm, "map") - bare
    assert 0.5 * ADDED[arm] < added < 1.1 * ADDED[arm]
