"""Analysis, in one sentence: how long a run took, how much of that is avoidable, and why.

All findings of all analyses are one list, one for each cause, the costliest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasf_hpc.analysis.answer import Answer, Finding, costliest_first, one_a_cause
from dasf_hpc.analysis.causes import FAILED, causes
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.executions import Span, read_executions, work_span
from dasf_hpc.analysis.where import gpu_work
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.units import duration_text, share_text

#: Causes that the sentence names, at most.
NAMED = 4

#: Of one cause that several analyses found, the finding of the first of these is kept.
_SAID_BEST = ("where", "balance", "what_if", "cuda", "functions", "critical_path")


@dataclass(frozen=True)
class Headline:
    """What is to say of a run first.

    Attributes
    ----------
    sentence
        From first to last task, how much of it is avoidable, and what it goes to.
    start, duration
        The time that it is about: the first task's start, ns of trace time, and the time from there
        to the last task's end, ns.
    avoidable
        What mending all causes at once would save of it, ns, at most; -1: it cannot be told.
    findings
        All findings, one for each cause, the costliest first.
    """

    sentence: str
    start: int
    duration: int
    avoidable: int
    findings: list[Finding]


def headline(trace: Trace, answers: Mapping[str, Answer]) -> Headline:
    """Say what is to say first.

    Parameters
    ----------
    trace
        The trace.
    answers
        Answers of `dasf_hpc.analysis.analyse` by name of the analysis, any of them.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    executions = read_executions(trace)
    span = work_span(trace, executions)
    names = sorted(
        answers, key=lambda n: _SAID_BEST.index(n) if n in _SAID_BEST else len(_SAID_BEST)
    )
    found = [finding for name in names for finding in answers[name].findings]
    findings = costliest_first(one_a_cause(_failures_once(found)))
    if not len(executions):
        return Headline(_of_reports(trace, span), span.start, span.duration, -1, findings)
    known = causes(trace)
    words = {finding.cause for finding in findings}
    avoidable = known.avoidable(words)
    sentence = f"{duration_text(span.duration)} from first to last task"
    mended = known.mendable(words)
    if mended:
        named = [f"{cause.words} ({duration_text(cause.saves)})" for cause in mended[:NAMED]]
        more = f" and {len(mended) - NAMED} more" if len(mended) > NAMED else ""
        sentence += f"; up to {duration_text(avoidable)} of it avoidable: {', '.join(named)}{more}"
    return Headline(f"{sentence}.", span.start, span.duration, avoidable, findings)


def _failures_once(found: list[Finding]) -> list[Finding]:
    """Leave out what analysis functions tells of failures where failures does."""
    if not any(finding.analysis == "failures" for finding in found):
        return found
    return [f for f in found if not (f.analysis == "functions" and f.cause == FAILED)]


def _of_reports(trace: Trace, span: Span) -> str:
    """Say how long a trace without tasks is, and what its GPUs did."""
    recorded = f"{duration_text(span.duration)} recorded"
    names, apart = gpu_names(trace), gpus_apart(trace)
    idle = [
        (100.0 * max(0.0, 1 - busy / max(1, span.duration)), names[gpu])
        for gpu, busy in enumerate(_busy(trace))
        if gpu not in apart and busy >= 0
    ]
    if not idle:
        return f"{recorded}."
    share, worst = max(idle)
    count = f"{len(idle)} GPU{'s' * (len(idle) != 1)}"
    return f"{recorded} on {count}; {worst} was idle {share_text(share)} of it."


def _busy(trace: Trace) -> list[int]:
    """Give for how long each GPU did anything, ns; -1: not known."""
    gpus = trace.gpus
    if "busy" in gpus and (gpus["busy"] >= 0).any():
        return [int(busy) for busy in gpus["busy"]]
    work = gpu_work(trace)
    return [Covered(*work[gpu]).total if gpu in work else -1 for gpu in range(len(gpus))]
