"""Analysis, all of it in one sentence: how long the work took, and what of it could be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasf_hpc.analysis.answer import Answer, Finding, costliest_first
from dasf_hpc.analysis.executions import read_executions, work_span
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text


@dataclass(frozen=True)
class Headline:
    """The run in one sentence.

    Attributes
    ----------
    sentence
        How long it took, and how much of that could be saved.
    start, duration
        From the first task's start to the last one's end: trace time and its length, ns.
    avoidable
        What mending what was found could save at most, ns; -1: it cannot be told.
    findings
        All findings, the costliest first.
    """

    sentence: str
    start: int
    duration: int
    avoidable: int
    findings: list[Finding]


def headline(trace: Trace, answers: Mapping[str, Answer]) -> Headline:
    """Tell a run in one sentence."""
    span = work_span(trace, read_executions(trace))
    findings = costliest_first([f for answer in answers.values() for f in answer.findings])
    avoidable = max((finding.saves for finding in findings), default=-1)
    sentence = f"{duration_text(span.duration)} from first to last task"
    if avoidable > 0:
        sentence += f"; up to {duration_text(avoidable)} of it avoidable"
    return Headline(sentence + ".", span.start, span.duration, avoidable, findings)
