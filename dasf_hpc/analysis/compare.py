"""Analysis, the gate: did it get slower?

Runs before a change (base) and after it (head) are compared, per function and in total, by the
runs' own noise: how much runs of one side differ among themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtr, stdtrit

from dasf_hpc.analysis.executions import Floats, group_sums, read_executions, workers
from dasf_hpc.errors import BaselineError
from dasf_hpc.trace.gpus import known_gpus
from dasf_hpc.trace.open import Trace

#: Chance of at least one false "regression" among all that is compared. Measured with it, on
#: thousands of synthetic A/A pairs of five runs a side: 0.2 % at 2 % noise, 0.9 % at 3 % to 10 %.
ALPHA = 0.005
#: What the other functions say of a function's noise counts for so many times its own runs at most.
MOST_PRIOR = 4
#: What a confidence interval that is shown holds.
CONFIDENCE = 0.95
#: Degrees of freedom below which noise is not known: three runs a side have four.
LEAST_FREEDOM = 4
#: Where noise could hide a change of so many times the threshold, no change is not "the same".
HIDES = 3
#: The name of the row that is the whole run: from the first task to the last.
WHOLE_RUN = "(whole run)"
#: Gaps that do not touch the times of tasks: one host's differences are compared, and that NVTX
#: was not available, say, changes no task.
_HARMLESS = ("clock not aligned", "not available")
_FORMAT = "dasf-hpc baseline"
_VERSION = 1


class Verdict(StrEnum):
    """What a comparison says."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    SAME = "same"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class RunMeasures:
    """What is compared of a run; times in ns.

    Attributes
    ----------
    name
        The run's directory or file.
    hardware
        What the workers ran on, as text; runs on other hardware are not compared.
    software
        Versions, as text.
    partial
        Why the trace is not whole; empty: it is.
    duration
        From the first task to the last.
    functions
        By function: executions, and their time in sum.
    """

    name: str
    hardware: str
    software: str
    partial: list[str]
    duration: int
    functions: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Difference:
    """A function, or the whole run, on both sides.

    Attributes
    ----------
    function
        Its name, or `WHOLE_RUN`.
    base, head
        Geometric mean of the runs' times, ns; 0: it did not run.
    base_count, head_count
        Mean number of executions a run.
    change, low, high
        Relative change of the time, %, and its 95 % confidence interval; NaN: not known.
    p
        Chance of so large a change, up or down, by noise alone, corrected for the number of
        comparisons; NaN: not tested.
    verdict, why
        What that means, in a word and in a sentence.
    """

    function: str
    base: float
    head: float
    base_count: float
    head_count: float
    change: float
    low: float
    high: float
    p: float
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Comparison:
    """What came out, over all: a regression of one function is one of the run.

    Attributes
    ----------
    verdict, why
        In a word and in a sentence.
    differences
        The whole run first, then functions, the longest on the base side first.
    base, head
        Names of the runs.
    notes
        What else is to know.
    another
        Whether one more run of the head side would tell: its only run is slower.
    """

    verdict: Verdict
    why: str
    differences: list[Difference]
    base: list[str]
    head: list[str]
    notes: list[str] = field(default_factory=list)
    another: bool = False

    def document(self) -> dict[str, Any]:
        """Give it as what JSON can hold."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------- what is compared


def measure(trace: Trace, name: str = "") -> RunMeasures:
    """Measure a run for a comparison.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    runs = read_executions(trace, ("prefix", "state"))
    width = max(1, len(runs.functions))
    count = np.bincount(runs.function, minlength=width)
    total = group_sums(runs.function, runs.duration, width)
    found = workers(trace, runs)
    nodes = trace.nodes
    rows = [r for r in sorted(set(found["node_row"])) if 0 <= r < len(nodes)]
    gpus = trace.gpus.loc[known_gpus(trace)]
    hosts = sorted(
        f"{nodes['cpus'].iloc[r]} CPUs, {max(0, int(nodes['memory'].iloc[r])) >> 30} GiB"
        + "".join(f", {g}" for g in sorted(gpus.loc[gpus["node"] == r, "name"].astype(str)))
        for r in rows
    )
    threads = sorted(int(t) for t in found["threads"])
    processes = trace.processes[(trace.processes["role"] == "worker").to_numpy()]
    versions = {
        f"{package} {version}"
        for package in ("python", "dask", "distributed", "dasf_hpc")
        for version in processes[package].dropna().astype(str).unique()
    }
    return RunMeasures(
        name=name or str(trace.path),
        hardware=f"nodes: {_counted(hosts)}; threads of workers: {_counted(threads)}",
        software=", ".join(sorted(versions)),
        partial=_partial(trace, int(runs.in_state("lost").sum()), len(runs)),
        duration=int(runs.stop.max() - runs.start.min()) if len(runs) else 0,
        functions={
            name: (int(count[code]), int(total[code]))
            for code, name in enumerate(runs.functions)
            if count[code]
        },
    )


def _counted(values: Sequence[object]) -> str:
    return ", ".join(f"{values.count(value)} x {value}" for value in dict.fromkeys(values))


def _partial(trace: Trace, lost: int, executions: int) -> list[str]:
    reasons = [] if executions else ["no task was executed"]
    if lost:
        reasons.append(f"{lost} executions were lost")
    for kind in trace.gaps["kind"].dropna().unique():
        if str(kind) not in _HARMLESS:
            reasons.append(str(kind))
    return reasons


def save_baseline(path: Path, runs: Sequence[RunMeasures]) -> None:
    """Write a baseline: a small JSON file that can be kept in a repository.

    Raises
    ------
    BaselineError
        If it cannot be written.
    """
    document = {"format": _FORMAT, "version": _VERSION, "runs": [asdict(run) for run in runs]}
    try:
        path.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise BaselineError(f"The baseline {path} cannot be written: {error.strerror}.") from None


def load_baseline(path: Path) -> list[RunMeasures]:
    """Read a baseline.

    Raises
    ------
    BaselineError
        If there is none at `path`, or it is not one.
    """
    try:
        document = json.loads(path.read_text())
        if document["format"] != _FORMAT or document["version"] > _VERSION:
            raise ValueError(f"its format is {document['format']} {document['version']}")
        return [
            RunMeasures(
                name=str(run["name"]),
                hardware=str(run["hardware"]),
                software=str(run["software"]),
                partial=[str(reason) for reason in run["partial"]],
                duration=int(run["duration"]),
                functions={str(f): (int(n), int(t)) for f, (n, t) in run["functions"].items()},
            )
            for run in document["runs"]
        ]
    except OSError as error:
        raise BaselineError(f"The baseline {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaselineError(
            f"{path} is no baseline of dasf-hpc ({type(error).__name__}: {error}); make one with "
            "`dasf-hpc compare RUN... --save-baseline FILE`."
        ) from None


# --------------------------------------------------------------------------- the comparison


def compare(
    base: Sequence[RunMeasures],
    head: Sequence[RunMeasures],
    relative: float = 5.0,
    absolute: float = 0.1,
) -> Comparison:
    """Compare runs before and after a change.

    Parameters
    ----------
    base, head
        The runs of each side.
    relative
        A smaller change than this is none, %.
    absolute
        A smaller change than this is none, s.

    Notes
    -----
    Logarithms of times are compared, so that a change is relative, by Student's t-test for two
    samples with the variance of both pooled: runs of one program on one kind of machine. A few runs
    say little of a function's noise; what all functions of the run say is added as in G. Smyth,
    "Linear models and empirical Bayes methods for assessing differential expression", Statistical
    Applications in Genetics and Molecular Biology 2004 (moderated t, section 4 and 6.2). The
    chances are corrected for the number of comparisons by the method of S. Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Whatever the test, its power is bounded: of m things compared, one that is slower by the factor
    f in n runs a side whose times vary by s (standard deviation of their logarithm) is found with
    a chance of at most Phi(ln(f) / (s sqrt(2 / n)) - z(a / m)) where a is the chance of a false
    alarm and z the normal distribution's quantile from above. For f = 1.1, n = 5, m = 7, a = 1 %
    that is 99 % for s = 2.6 % and 91 % for s = 3.5 %: functions that vary by 2 % and 3 %, with what
    their tasks and the whole run vary. More runs help, also of one side alone, as a baseline may
    hold them: 2 / n is 1 / n + 1 / k then.

    A regression, or an improvement, has to pass that test and both thresholds. The noise that is
    pooled is that of runs nothing disturbed; one run that something else slowed, a busy disk or a
    host that stood still, is no part of it, and of a side's only run nobody can say if it is such
    a one. So the slower side has to have two runs: a disturbed one among them makes the noise
    large. A function is the same where its confidence interval holds no change beyond a threshold,
    or where its change is smaller and the interval holds none of three times the relative
    threshold.
    """
    notes = _notes(base, head)
    base, head = _distinct(base, notes), _distinct(head, notes)
    names = [run.name for run in base], [run.name for run in head]
    why_not = _why_not(base, head)
    pairs = _samples(base, head)
    freedom = len(base) + len(head) - 2
    chosen = [
        name
        for name, (one, other) in pairs.items()
        if not why_not
        and (len(one), len(other)) == (len(base), len(head))
        and max(np.mean(one), np.mean(other)) >= absolute * 1e9
    ]
    tested, freedom = _tests({name: pairs[name] for name in chosen}, freedom)
    corrected = _holm(
        {
            name: float(stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
            for name, (mean, error) in tested.items()
        }
    )
    differences = []
    for name, (one, other) in pairs.items():
        before, after = _geometric_mean(one), _geometric_mean(other)
        change = low = high = p = float("nan")
        if before and after:
            change = 100 * (after / before - 1)
        if name in tested:
            mean, error = tested[name]
            reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
            low, high = (100 * math.expm1(mean + sign * reach) + 0.0 for sign in (-1, 1))
            p = corrected[name]
        verdict, why = _verdict(
            before, after, change, low, high, p, relative, absolute, why_not, len(one), len(other)
        )
        differences.append(
            Difference(
                function=name,
                base=before,
                head=after,
                base_count=_mean_count(base, name),
                head_count=_mean_count(head, name),
                change=change,
                low=low,
                high=high,
                p=p,
                verdict=verdict,
                why=why,
            )
        )
    verdict, why = _overall(differences, why_not)
    another = len(head) == 1 and any(d.head > d.base for d in _of_one_run(differences))
    return Comparison(verdict, why, differences, *names, notes, another)


def _why_not(base: Sequence[RunMeasures], head: Sequence[RunMeasures]) -> str:
    """Say why the two sides cannot be compared at all; empty: they can."""
    if not base or not head:
        return f"there are no runs of the {'base' if not base else 'head'} side"
    partial = [run for run in (*base, *head) if run.partial]
    if partial:
        return f"{partial[0].name} is not whole: {'; '.join(partial[0].partial)}"
    kinds = list(dict.fromkeys(run.hardware for run in (*base, *head)))
    if len(kinds) > 1:
        return f"the runs were on other hardware: {kinds[0]} and {kinds[1]}"
    freedom = len(base) + len(head) - 2
    if freedom < LEAST_FREEDOM:
        return (
            f"{len(base)} and {len(head)} runs are too few to know their noise: give "
            f"{LEAST_FREEDOM + 2} in all at least, better five of each side"
        )
    return ""


def _distinct(runs: Sequence[RunMeasures], notes: list[str]) -> list[RunMeasures]:
    """Leave out runs that were given twice: they would make the noise look small."""
    kept: list[RunMeasures] = []
    for run in runs:
        if any((run.duration, run.functions) == (k.duration, k.functions) for k in kept):
            notes.append(f"{run.name} was given twice and counts once.")
        else:
            kept.append(run)
    return kept


def _notes(base: Sequence[RunMeasures], head: Sequence[RunMeasures]) -> list[str]:
    software = [sorted({run.software for run in side}) for side in (base, head)]
    if software[0] and software[1] and software[0] != software[1]:
        return [f"Other software: {'; '.join(software[0])} and {'; '.join(software[1])}."]
    return []


def _samples(
    base: Sequence[RunMeasures], head: Sequence[RunMeasures]
) -> dict[str, tuple[list[float], list[float]]]:
    """Give the times of each side by what is compared, the longest first."""
    sizes: dict[str, float] = {}
    for side in (base, head):
        for run in side:
            for name, (_, total) in run.functions.items():
                sizes[name] = sizes.get(name, 0) + total / len(side)
    pairs = {
        name: (
            [float(r.functions[name][1]) for r in base if r.functions.get(name, (0, 0))[1] > 0],
            [float(r.functions[name][1]) for r in head if r.functions.get(name, (0, 0))[1] > 0],
        )
        for name in sorted(sizes, key=lambda name: (-sizes[name], name))
    }
    whole = (
        [float(run.duration) for run in base if run.duration > 0],
        [float(run.duration) for run in head if run.duration > 0],
    )
    return {WHOLE_RUN: whole, **pairs}


def _mean_count(runs: Sequence[RunMeasures], name: str) -> float:
    if name == WHOLE_RUN or not runs:
        return float("nan")
    return sum(run.functions.get(name, (0, 0))[0] for run in runs) / len(runs)


def _geometric_mean(times: list[float]) -> float:
    return math.exp(sum(map(math.log, times)) / len(times)) if times else 0.0


def _tests(
    pairs: dict[str, tuple[list[float], list[float]]], freedom: int
) -> tuple[dict[str, tuple[float, float]], int]:
    """Give each difference of mean logarithms, its standard error, and the degrees of freedom."""
    means, variances = [], []
    scale = 0.0
    for one, other in pairs.values():
        base, head = np.log(one), np.log(other)
        squares = ((base - base.mean()) ** 2).sum() + ((head - head.mean()) ** 2).sum()
        means.append(float(head.mean() - base.mean()))
        variances.append(float(squares) / freedom)
        scale = 1 / len(base) + 1 / len(head)
    moderated, freedom = moderate(np.array(variances), freedom)
    errors = np.sqrt(moderated * scale).tolist()
    return dict(zip(pairs, zip(means, errors, strict=True), strict=True)), freedom


def moderate(variances: Floats, freedom: int) -> tuple[Floats, int]:
    """Draw variances towards what they have in common, as far as they have.

    Parameters
    ----------
    variances
        One of each function.
    freedom
        The degrees of freedom of each.

    Returns
    -------
    variances, freedom
        The same with what the others say, and how many degrees of freedom they have then.
    """
    known = variances[variances > 0]
    if len(known) < 3:
        return variances, freedom
    half = freedom / 2
    logs = np.log(known) - digamma(half) + math.log(half)
    spread = float(logs.var(ddof=1)) - float(polygamma(1, half))
    most = MOST_PRIOR * freedom
    prior = most if spread <= 0 else min(most, 2 * _inverse_trigamma(spread))
    common = math.exp(float(logs.mean()) + float(digamma(prior / 2)) - math.log(prior / 2))
    result: Floats = (prior * common + freedom * variances) / (prior + freedom)
    return result, int(prior + freedom)


def _inverse_trigamma(y: float) -> float:
    """Invert it, between 1e-6 and 1e6."""
    least, most = 1e-6, 1e6
    if y <= float(polygamma(1, most)):
        return most
    found: float = brentq(lambda x: float(polygamma(1, x)) - y, least, most)
    return found


def _holm(chances: dict[str, float]) -> dict[str, float]:
    """Correct chances for their number by Holm's method."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(chances, key=chances.__getitem__)):
        largest = max(largest, min(1.0, chances[name] * (len(chances) - rank)))
        corrected[name] = largest
    return corrected


def _verdict(
    before: float,
    after: float,
    change: float,
    low: float,
    high: float,
    p: float,
    relative: float,
    absolute: float,
    why_not: str,
    base: int,
    head: int,
) -> tuple[Verdict, str]:
    if why_not:
        return Verdict.CANNOT_TELL, why_not
    least = absolute * 1e9
    if max(before, after) < least:
        return Verdict.SAME, f"it takes less than {absolute:g} s"
    if not before or not after:
        side = "head" if before else "base"
        return Verdict.CANNOT_TELL, f"no run of the {side} side executed it"
    if math.isnan(p):
        return Verdict.CANNOT_TELL, f"only {base} base and {head} head runs executed it"
    large = abs(change) >= relative and abs(after - before) >= least
    if p < ALPHA and large:
        side = _only_one_is_slower(before, after, base, head)
        if side:
            return Verdict.CANNOT_TELL, (
                f"{change:+.1f} %, but something else may have slowed the {side} side's only run: "
                "give another"
            )
        if change > 0:
            return Verdict.REGRESSION, f"{change:+.1f} % ({low:+.1f} to {high:+.1f} %)"
        return Verdict.IMPROVEMENT, f"{change:+.1f} % ({low:+.1f} to {high:+.1f} %)"
    if p < ALPHA:
        return Verdict.SAME, f"{change:+.1f} % is below the thresholds"
    # the largest change that is not excluded, in % and in ns
    reach = max(abs(low), abs(high))
    if reach < relative or before * reach / 100 < least:
        return Verdict.SAME, f"no change beyond {reach:.1f} %"
    if not large and reach < HIDES * relative:
        return Verdict.SAME, f"{change:+.1f} % is within noise ({low:+.1f} to {high:+.1f} %)"
    return Verdict.CANNOT_TELL, f"noise hides it ({low:+.1f} to {high:+.1f} %): give more runs"


def _only_one_is_slower(before: float, after: float, base: int, head: int) -> str:
    """Name the side that is slower, if it has one run only; empty: it has more."""
    side, runs = ("head", head) if after > before else ("base", base)
    return side if runs == 1 else ""


def _of_one_run(differences: Sequence[Difference]) -> list[Difference]:
    """Give those that only one run shows: what else is tested and cannot be told is noise."""
    return [d for d in differences if d.p < ALPHA and d.verdict is Verdict.CANNOT_TELL]


def _overall(differences: list[Difference], why_not: str) -> tuple[Verdict, str]:
    if why_not:
        return Verdict.CANNOT_TELL, f"Cannot tell: {why_not}."
    for verdict, those in (
        (Verdict.REGRESSION, [d for d in differences if d.verdict is Verdict.REGRESSION]),
        (Verdict.CANNOT_TELL, _of_one_run(differences)),
        (Verdict.IMPROVEMENT, [d for d in differences if d.verdict is Verdict.IMPROVEMENT]),
    ):
        if those:
            more = f" and {len(those) - 3} more" if len(those) > 3 else ""
            listed = "; ".join(f"{d.function} {d.why}" for d in those[:3])
            return verdict, f"{verdict.capitalize()}: {listed}{more}."
    if differences[0].verdict is Verdict.CANNOT_TELL:
        return Verdict.CANNOT_TELL, f"Cannot tell: the whole run: {differences[0].why}."
    return Verdict.SAME, f"The same: the whole run: {differences[0].why}."
