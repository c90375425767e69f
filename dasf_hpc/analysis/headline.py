"""Analysis, in one sentence: how long a run took, and how much of that is avoidable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasf_hpc.analysis.answer import Answer, Finding, costliest_first
from dasf_hpc.analysis.executions import read_executions, work_span
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text


@dataclass(frozen=True)
class Headline:
    """What is to say of a run first.

    Attributes
    ----------
    sentence
        From first to last task, and how much of it is avoidable.
    start, duration
        The time that it is about, ns.
    avoidable
        What mending all would save of it at most, ns; -1: it cannot be told.
    findings
        All findings, the costliest first.
    """

    sentence: str
    start: int
    duration: int
    avoidable: int
    findings: list[Finding]


def headline(trace: Trace, answers: Mapping[str, Answer]) -> Headline:
    """Say what is to say first, from answers by the names of their analyses."""
    span = work_span(trace, read_executions(trace))
    findings = costliest_first([f for answer in answers.values() for f in answer.findings])
    sentence = f"{duration_text(span.duration)} from first to last task."
    return Headline(sentence, span.start, span.duration, -1, findings)
