"""The rules of what happens to a run when node jobs are lost, expire, or are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasf_hpc.launch.policy import (
    PAUSE_MOST_S,
    PAUSE_S,
    REPLACED_IN_VAIN,
    Decision,
    End,
    Loss,
    Memory,
    Wishes,
    decide,
    refused,
    submitted,
)

NEITHER, BOTH = Wishes(False, False), Wishes(True, True)


def loss(walltime: bool = False, replaced: bool = False, came: bool = True) -> Loss:
    return Loss("n-0", walltime, replaced, came)


@pytest.mark.parametrize(
    ("seen", "expiring", "wishes", "expected"),
    [
        # nothing happens
        ([], [], BOTH, Decision(Memory())),
        # a lost job: replaced where that is wished, and only then
        ([loss()], [], NEITHER, Decision(Memory(), end=End.LOST)),
        ([loss()], [], Wishes(True, False), Decision(Memory(owed=1), 1, end=End.LOST)),
        ([loss()], [], Wishes(False, True), Decision(Memory(), end=End.LOST)),
        # one at its walltime: the other wish
        ([loss(True)], [], Wishes(True, False), Decision(Memory(), end=End.WALLTIME)),
        ([loss(True)], [], Wishes(False, True), Decision(Memory(owed=1), 1, end=End.WALLTIME)),
        # one that was replaced before it went
        ([loss(True, True)], [], BOTH, Decision(Memory(), end=End.WALLTIME)),
        # both kinds at once: each counts as what it is, whatever came before
        ([loss(True), loss()], [], Wishes(False, True),
         Decision(Memory(owed=1), 1, end=End.LOST)),
        # soon at the walltime
        ([], ["n-0", "n-1"], BOTH, Decision(Memory(owed=2), 2, ("n-0", "n-1"))),
        ([], ["n-0"], Wishes(True, False), Decision(Memory())),
    ],
)  # fmt: skip
def test_what_is_replaced(
    seen: list[Loss], expiring: list[str], wishes: Wishes, expected: Decision
) -> None:
    assert decide(seen, expiring, wishes, Memory(), 0.0) == expected


def test_jobs_that_bring_no_worker_are_replaced_no_more() -> None:
    memory, vain = Memory(), loss(came=False)
    for number in range(1, REPLACED_IN_VAIN):
        decision = decide([vain], [], BOTH, memory, 0.0)
        assert decision.submit == 1
        assert not decision.gave_up
        memory = submitted(decision.memory)
        assert memory == Memory(in_vain=number)
    decision = decide([vain], ["n-9"], BOTH, memory, 0.0)
    # the one that expires was still replaced: nothing was in vain three times when it was seen
    assert decision.gave_up
    assert decision.submit == 0
    again = decide([vain], ["n-8"], BOTH, decision.memory, 0.0)
    assert not again.gave_up  # it was said
    assert again.submit == 0
    assert again.expiring == ()
    assert again.end is End.LOST
    # one that brought workers, and is lost later, counts anew
    assert decide([loss()], [], BOTH, again.memory, 0.0).submit == 1


def test_a_refused_replacement_is_asked_for_again_later() -> None:
    decision = decide([loss(), loss()], [], BOTH, Memory(), 100.0)
    assert decision.submit == 2
    memory = refused(submitted(decision.memory), 100.0)
    assert memory.owed == 1
    assert decide([], [], BOTH, memory, 100.0 + PAUSE_S - 1).submit == 0
    # another loss meanwhile waits, too
    waiting = decide([loss()], [], BOTH, memory, 100.0 + PAUSE_S - 1)
    assert (waiting.submit, waiting.memory.owed) == (0, 2)
    later = decide([], [], BOTH, waiting.memory, 100.0 + PAUSE_S)
    assert later.submit == 2
    longer = refused(later.memory, 130.0)
    assert longer.try_at == 130.0 + 2 * PAUSE_S
    for _ in range(10):
        longer = refused(longer, 0.0)
    assert longer.try_at == PAUSE_MOST_S
    assert submitted(longer).pause == PAUSE_S


LOSSES = st.lists(st.builds(Loss, st.just("n"), st.booleans(), st.booleans(), st.booleans()))


@given(
    st.lists(st.tuples(LOSSES, st.lists(st.just("e"), max_size=2))), st.booleans(), st.booleans()
)
def test_no_more_jobs_are_submitted_than_went_or_will(
    looks: list[tuple[list[Loss], list[str]]], lost: bool, walltime: bool
) -> None:
    memory, made, gone = Memory(), 0, 0
    for number, (losses, expiring) in enumerate(looks):
        decision = decide(losses, expiring, Wishes(lost, walltime), memory, float(number))
        gone += sum(not seen.replaced for seen in losses) + len(decision.expiring)
        memory = decision.memory
        for _ in range(decision.submit):
            memory = submitted(memory)
            made += 1
        assert memory.owed == 0
        assert made <= gone
        assert (decision.end is None) == (not losses)
    if not lost and not walltime:
        assert made == 0
