"""Trace, what its reports hold: recorded, not recorded, recorded and nothing came, or lost.

The only place that judges it. A report is judged when it is put into a trace (`judge`), which keeps
the verdicts in table ``recorded``; whoever shows or analyses a trace asks `held`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dasf_hpc.trace.open import Trace

#: Kind of gap for what nsys did not keep, as it says itself or as calls show.
LOST_BY_NSYS = "lost by nsys"


class Kind(StrEnum):
    """What a report may hold."""

    RANGES = "NVTX ranges"
    CALLS = "CUDA calls"
    KERNELS = "kernels"
    COPIES = "copies"
    FILLS = "fills"
    WAITS = "waits"
    METRICS = "GPU metrics"
    MESSAGES = "messages"
    MARKS = "NVTX marks"
    SAMPLES = "CPU samples"
    SWITCHES = "context switches"
    OS_CALLS = "OS runtime calls"
    ALLOCATIONS = "allocations"
    FAULTS = "page faults"
    NETWORK = "network counters"


#: The trace's table of each kind; of context switches and of the operating system's calls there are
#: sums.
TABLE_OF: Mapping[Kind, str] = {
    Kind.RANGES: "nvtx_ranges",
    Kind.CALLS: "cuda_api",
    Kind.KERNELS: "kernels",
    Kind.COPIES: "memcpys",
    Kind.FILLS: "memsets",
    Kind.WAITS: "synchronizations",
    Kind.METRICS: "gpu_metrics",
    Kind.MESSAGES: "messages",
    Kind.MARKS: "nvtx_marks",
    Kind.SAMPLES: "cpu_samples",
    Kind.ALLOCATIONS: "gpu_allocations",
    Kind.FAULTS: "page_faults",
    Kind.NETWORK: "nic_metrics",
}

#: What keeps a GPU busy.
ON_GPU = (Kind.KERNELS, Kind.COPIES, Kind.FILLS)
_CUDA = (Kind.CALLS, *ON_GPU, Kind.WAITS)

#: What each kind is part of, as evidence names it; else CUDA.
_PART_OF: Mapping[Kind, str] = {
    Kind.RANGES: "nvtx",
    Kind.MARKS: "nvtx",
    Kind.METRICS: "metrics",
    Kind.MESSAGES: "messages",
    Kind.SAMPLES: "samples",
    Kind.SWITCHES: "switches",
    Kind.OS_CALLS: "osrt",
    Kind.ALLOCATIONS: "allocations",
    Kind.FAULTS: "faults",
    Kind.NETWORK: "nic",
}
#: Why nothing of a part was recorded.
_UNTRACED: Mapping[str, str] = {
    "metrics": "nsys was not asked for them (--gpu-metrics), or could not take them",
    "messages": "neither MPI, UCX nor NCCL was traced, or no process that was traced used them",
    "nvtx": "NVTX was not traced, or no process that was traced used it",
    "cuda": "CUDA was not traced, or no process that was traced used it",
    "samples": "CPUs were not sampled: `--nsys-arg=--sample=process-tree` has nsys do it where the "
    "node permits it",
    "switches": "context switches were not traced: `--nsys-arg=--cpuctxsw=process-tree` has nsys "
    "do it where the node permits it",
    "osrt": "the operating system's calls were not traced (nsys's --trace=osrt)",
    "allocations": "`--nsys-arg=--cuda-memory-usage=true` has nsys record them",
    "faults": "`--nsys-arg=--cuda-um-gpu-page-faults=true` and "
    "`--nsys-arg=--cuda-um-cpu-page-faults=true` have nsys record them",
    "nic": "`--nsys-arg=--nic-metrics=true` has nsys record them",
}

#: How the names of the calls begin that have something run on a GPU, of the runtime and the driver.
CALLS_FOR: Mapping[Kind, tuple[str, ...]] = {
    Kind.KERNELS: ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch"),
    Kind.COPIES: ("cudaMemcpy", "cuMemcpy"),
    Kind.FILLS: ("cudaMemset", "cuMemset"),
}
_SAYS = "nsys says: "
_ASKS = {Kind.KERNELS: "launch kernels", Kind.COPIES: "copy", Kind.FILLS: "fill memory"}


class State(StrEnum):
    """Whether a report holds something of a kind."""

    RECORDED = "recorded"
    #: It holds some; more was there.
    PARTLY = "partly lost"
    #: It was traced, and nothing came.
    NONE = "recorded, none"
    #: Something must have been there, and the report does not hold it.
    LOST = "lost"
    #: Nothing says that it was traced.
    MISSING = "not recorded"


#: Of several reports the state that is told is the first of these that one has.
_ORDER = (State.PARTLY, State.RECORDED, State.LOST, State.NONE, State.MISSING)


@dataclass(frozen=True)
class Holding:
    """What of one kind a report, or all of a trace, holds.

    Attributes
    ----------
    kind, state
        What, and whether it is there.
    count
        How many there are.
    reason
        How that is known; empty where the count says it.
    """

    kind: Kind
    state: State
    count: int
    reason: str = ""

    @property
    def there(self) -> bool:
        """Whether any of it can be looked at."""
        return self.state in (State.RECORDED, State.PARTLY)

    @property
    def short(self) -> str:
        """The state in words: ``kernels: 12, partly lost``, ``copies: recorded, none``."""
        state = {State.RECORDED: f"{self.count:,}", State.PARTLY: f"{self.count:,}, partly lost"}
        return f"{self.kind}: {state.get(self.state, self.state)}"

    @property
    def sentence(self) -> str:
        """The state in words and how that is known."""
        return f"{self.short} ({self.reason})" if self.reason else self.short


@dataclass(frozen=True)
class Evidence:
    """What a report shows of what was recorded.

    Attributes
    ----------
    counts
        Rows of each kind.
    asked
        Calls that had something of a kind run on a GPU.
    traced
        What was recorded beyond doubt, of ``cuda`` and the parts in `_UNTRACED`: a table of it is
        there, if without rows, or nsys says so.
    losses
        What nsys says is lost, by what it concerns.
    refused
        What nsys says of sampling GPUs that it could not do, as where another tool samples them.
    """

    counts: Mapping[Kind, int]
    asked: Mapping[Kind, int] = field(default_factory=dict)
    traced: frozenset[str] = frozenset()
    losses: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""


def judge(evidence: Evidence) -> list[Holding]:
    """Say of each kind whether a report holds it, and how that is known."""
    counts = {kind: evidence.counts.get(kind, 0) for kind in Kind}
    cuda = "cuda" in evidence.traced or any(counts[kind] for kind in _CUDA)
    traced = {kind: _PART_OF.get(kind) in evidence.traced for kind in Kind}
    traced |= dict.fromkeys(_CUDA, cuda)
    on_gpu = any(counts[kind] for kind in ON_GPU)
    found = []
    for kind in Kind:
        about = _PART_OF.get(kind, "cuda")
        if kind in (Kind.ALLOCATIONS, Kind.FAULTS) and counts[kind]:
            about = "cuda"  # where there are none, nothing says that they were asked for
        loss, asked = evidence.losses.get(about, ""), evidence.asked.get(kind, 0)
        # a call may copy or fill nothing, or on the host; where nothing at all ran, it tells
        owed = asked if kind is Kind.KERNELS or not on_gpu else 0
        if counts[kind]:
            found.append(
                Holding(kind, State.PARTLY if loss else State.RECORDED, counts[kind], loss)
            )
        elif owed:
            calls = f"calls to {_ASKS[kind]}: {asked:,}, and nothing of it was recorded"
            why = f"{_SAYS}{loss}" if loss else "it was lost, or recording it was not permitted"
            found.append(Holding(kind, State.LOST, 0, f"{calls}; {why}"))
        elif (
            loss
            # few programs make marks
            and kind is not Kind.MARKS
            and not any(counts[other] for other in _CUDA if kind in _CUDA)
        ):
            found.append(Holding(kind, State.LOST, 0, loss))
        elif loss:
            # others of its sort came: that it was among what is lost nothing says
            found.append(Holding(kind, State.NONE, 0, loss))
        elif kind is Kind.METRICS and evidence.refused:
            found.append(Holding(kind, State.MISSING, 0, f"{_SAYS}{evidence.refused}"))
        elif traced[kind]:
            found.append(Holding(kind, State.NONE, 0))
        else:
            found.append(Holding(kind, State.MISSING, 0, _untraced(kind)))
    return found


def _untraced(kind: Kind) -> str:
    return _UNTRACED[_PART_OF.get(kind, "cuda")]


def lost_on_gpu(holdings: Iterable[Holding]) -> bool:
    """Say whether things ran on GPUs of which a report holds nothing."""
    states = {holding.state for holding in holdings if holding.kind in ON_GPU}
    return State.LOST in states and not states & {State.RECORDED, State.PARTLY}


def unexplained(holdings: Iterable[Holding], told: bool) -> list[Holding]:
    """Give what is lost though nsys says nothing of it; with `told` it said that CUDA is."""
    return [h for h in holdings if h.state is State.LOST and h.kind in ON_GPU and not told]


def lacks(holdings: Sequence[Holding]) -> str:
    """Say what a report does not hold that a run needs; empty where it holds what can be used."""
    of = {holding.kind: holding for holding in holdings}
    on_gpu = [of[kind] for kind in ON_GPU]
    if not any(h.there for h in on_gpu):
        lost = [h for h in on_gpu if h.state is State.LOST]
        if of[Kind.CALLS].there and lost:
            return f"it holds calls of CUDA and no GPU activity: {lost[0].reason}"
        if lost:
            return f"what ran on GPUs is lost: {lost[0].reason}"
    if of[Kind.RANGES].state is State.LOST:
        return f"its NVTX ranges are lost: {of[Kind.RANGES].reason}"
    if not any(h.there for h in holdings if h.kind is not Kind.OS_CALLS):
        return (
            "it holds no NVTX range and no call of CUDA: were none made, or were they not traced?"
        )
    return ""


# -------------------------------------------------------------------------------- of a trace


def held(trace: Trace) -> dict[Kind, Holding]:
    """Say of each kind whether a trace holds it, over all its reports."""
    table = trace.recorded
    reports = len(trace.reports)
    found = {}
    for kind in Kind:
        own = table[table["what"] == kind]
        name = TABLE_OF.get(kind)
        rows = trace.rows(name) if name else int(own["count"].clip(lower=0).sum())
        states = {State(str(state)) for state in own["state"]}
        if not states:
            states = {State.RECORDED if rows else State.MISSING}
        state = next(state for state in _ORDER if state in states)
        if not rows and state in (State.RECORDED, State.PARTLY):
            state = State.MISSING  # a report says so that the trace did not take
        reason = ""
        if state in (State.PARTLY, State.LOST):
            # what is lost in one of several reports is no less lost
            told = own[own["state"].isin([State.PARTLY, State.LOST])]["reason"].dropna()
            reason = str(told.iloc[0]) if len(told) else ""
        elif state is State.RECORDED and State.LOST in states:
            state = State.PARTLY
            reason = str(own[own["state"] == State.LOST]["reason"].iloc[0])
        elif state is State.MISSING:
            said = [str(one) for one in own["reason"].dropna() if str(one).startswith(_SAYS)]
            reason = said[0] if said else _why_missing(kind, reports)
        found[kind] = Holding(kind, state, rows, reason)
    return found


def _why_missing(kind: Kind, reports: int) -> str:
    if not reports:
        part = _PART_OF.get(kind, "CUDA")
        what = {"nvtx": "NVTX", "CUDA": "CUDA"}.get(part, str(kind))
        return f"no {what} table in this trace"
    return _untraced(kind)


def gpu_activity(trace: Trace) -> bool:
    """Say whether a trace tells of anything that ran on a GPU: a kernel, a copy or a fill."""
    return any(trace.rows(TABLE_OF[kind]) for kind in ON_GPU)


def no_gpu_activity(trace: Trace) -> str:
    """Say why a trace tells of nothing that ran on a GPU: not recorded, recorded, none, or lost."""
    found = held(trace)
    on_gpu = [found[kind] for kind in ON_GPU]
    worst = min(on_gpu, key=lambda holding: _ORDER.index(holding.state))
    why = worst.reason
    if worst.state is State.MISSING and found[Kind.METRICS].there:
        why = "the reports hold samples of GPU metrics and nothing of CUDA"
    return f"{worst.state} ({why})" if why else str(worst.state)
