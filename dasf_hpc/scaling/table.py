"""Scaling, the answer: tables by scale and function, laws that fit, and what is to be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.compare import moderate
from dasf_hpc.errors import ScalingError
from dasf_hpc.scaling.fit import CONFIDENCE, Fit, Foretold, better, fit, foretell, laws
from dasf_hpc.scaling.measure import FACTORS, RunMeasure
from dasf_hpc.units import count_text, duration_text, share_text, three_digits

Floats = NDArray[np.float64]

#: A function's executing time has grown where it is so much more than at the smallest scale, ...
GROWN = 0.10
#: ... beyond noise: the chance that it is not is less than this, over all functions and scales.
ALPHA = 0.05
#: Functions with a smaller share of the executing time are not tested.
SHARE = 0.01
#: Efficiency that falls by fewer points from one scale to the next is not told of.
FALL = 0.05
#: A function is as good as serial where the time in which it is at work has shrunk by less than
#: this from the smallest to the largest scale, as a share, and is this share of a run at least.
SERIAL_SHRUNK, SERIAL_SHARE = 0.2, 0.1
#: A serial fraction above this is all of the time.
ALL = 0.99

#: What a scale is called: one, and more.
UNITS = {
    "nodes": ("node", "nodes"),
    "workers": ("worker", "workers"),
    "threads": ("thread", "threads"),
    "gpus": ("GPU", "GPUs"),
}
#: Factors of which the relative efficiency is the product, where threads are as many a scale.
PARTS = ("computation_scalability", "load_balance", "serialisation", "transfer")
#: What to look at where a factor is the one that fell.
LOOK = {
    "computation_scalability": "the same tasks take longer in sum, or there are more of them: look "
    "at what they share (memory, disks, file system, caches): `dasf-hpc analyze functions RUN`",
    "load_balance": "some threads have more to do than others: `dasf-hpc analyze balance RUN`",
    "serialisation": "tasks wait for each other, so that there is less to do at once than there "
    "are threads: `dasf-hpc analyze critical_path RUN`",
    "transfer": "threads wait for data, for the scheduler or for the script: "
    "`dasf-hpc analyze where RUN`",
}

SCALES: Columns = {
    "scale": ("", "nodes, workers, threads or GPUs"),
    "runs": ("", "runs of this scale"),
    "time": ("ns", "from the first task's start to the last one's end: median of the runs"),
    "time_min": ("ns", "of the fastest run"),
    "time_max": ("ns", "of the slowest run"),
    "speedup": ("", "how many times as fast as the smallest scale; of weak scaling: how many times "
                "as much in the same time"),
    "efficiency": ("%", "speed-up, of what the scale has grown by"),
    "computation_scalability": ("", "executing time in sum of the smallest scale, over that of "
                                "this one; of weak scaling for the same amount of work"),
    "parallel_efficiency": ("", "POP: load balance x communication efficiency"),
    "load_balance": ("", "POP: mean over maximum of the threads' executing times"),
    "communication_efficiency": ("", "POP: serialisation x transfer"),
    "serialisation": ("", "POP: what tasks that wait for each other leave"),
    "transfer": ("", "POP: what waiting for data, scheduler and script leaves"),
    "executing": ("ns", "time of all executions in sum: geometric mean of the runs"),
    "tasks": ("", "executions: mean of the runs"),
}  # fmt: skip

FUNCTIONS: Columns = {
    "function": ("", "name of the function: prefix of its tasks' keys"),
    "scale": ("", "nodes, workers, threads or GPUs"),
    "count": ("", "executions: mean of the runs"),
    "executing": ("ns", "time of its executions in sum: geometric mean of the runs"),
    "growth": ("", "that over the one at the smallest scale; of weak scaling for the same amount "
               "of work"),
    "wall": ("ns", "time in which one of its tasks executed at least: geometric mean of the runs"),
    "speedup": ("", "its own: that at the smallest scale over this one; of weak scaling for the "
                "same amount of work"),
    "wall_share": ("%", "of the run's time, in which one of its tasks executed at least: mean"),
    "p": ("", f"chance of such growth beyond {GROWN:.0%} by noise alone, corrected for the number "
          "of functions and scales; empty: not tested"),
    "grown": ("", f"whether it has grown by more than {GROWN:.0%}, beyond noise"),
}  # fmt: skip

RUNS: Columns = {
    "run": ("", "name of the run"),
    "scale": ("", "nodes, workers, threads or GPUs"),
    "nodes": ("", "nodes"),
    "workers": ("", "worker processes"),
    "threads": ("", "threads that run tasks"),
    "time": ("ns", "from the first task's start to the last one's end"),
    "executing": ("ns", "time of all executions in sum"),
    "parallel_efficiency": ("", "POP: load balance x communication efficiency"),
    "remark": ("", "why it is left out, or what its recording lacks"),
}

FITS: Columns = {
    "law": ("", "amdahl, gustafson or usl"),
    "parameter": ("", "serial: the serial fraction of the time at scale 1; contention; coherency"),
    "value": ("", "its best value"),
    "low": ("", "least value of the 95 % interval"),
    "high": ("", "largest value of it"),
    "aicc": ("", "Akaike's criterion for few runs; of two laws the one with less is better"),
    "lack": ("", "chance that runs lie so far from the law by their noise"),
    "chosen": ("", "whether this law is the better one"),
}


@dataclass(frozen=True)
class Scaling:
    """What runs at several scales say.

    Attributes
    ----------
    by
        What scales are counted in.
    weak
        Whether the work grows with the scale.
    scales
        Those that there are, the smallest first.
    runs
        Those that count.
    left_out
        Those that do not.
    answer
        Tables ``scales``, ``functions``, ``runs`` and ``fits``, findings, what is not known.
    fits
        Laws through the times.
    chosen
        The better one; None: none was fitted.
    foretold
        What laws say of the largest scale that were fitted without it.
    """

    by: str
    weak: bool
    scales: list[int]
    runs: list[RunMeasure]
    left_out: list[RunMeasure]
    answer: Answer
    fits: list[Fit]
    chosen: Fit | None
    foretold: list[Foretold]

    def document(self) -> dict[str, Any]:
        """Give it as what JSON can hold."""
        return {
            "by": self.by,
            "weak": self.weak,
            **self.answer.document(),
            "fits": [_fit_document(one, one is self.chosen) for one in self.fits],
            "foretold": [
                {
                    "law": one.law.name,
                    "fitted_to": one.scales,
                    "scale": one.scale,
                    "low": one.low,
                    "high": one.high,
                    "measured": one.measured,
                    "holds": one.holds,
                }
                for one in self.foretold
            ],
        }


def _fit_document(one: Fit, chosen: bool) -> dict[str, Any]:
    return {
        "law": one.law.name,
        "chosen": chosen,
        "time_at_1": one.base,
        "parameters": {
            name: {"value": e.value, "low": _finite(e.low), "high": _finite(e.high)}
            for name, e in one.parameters.items()
        },
        "confidence": CONFIDENCE,
        "spread": _finite(one.spread),
        "freedom": one.freedom,
        "aicc": _finite(one.aicc),
        "lack": _finite(one.lack),
        "peak": _finite(one.peak) if one.law.name == "usl" else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def scaled(scale: float, by: str) -> str:
    """Write a scale: ``1 node``, ``8 nodes``."""
    one, more = UNITS[by]
    return f"{count_text(scale)} {one if scale == 1 else more}"


def scaling(runs: Sequence[RunMeasure], by: str = "nodes", weak: bool = False) -> Scaling:
    """Say how a program scales.

    Parameters
    ----------
    runs
        Of at least two scales.
    by
        What scales are counted in.
    weak
        Whether the work grows with the scale.

    Raises
    ------
    ScalingError
        If the runs that count are of fewer than two scales.

    Notes
    -----
    Of strong scaling the speed-up is S(n) = T(m) / T(n) and the efficiency S(n) m / n, of weak
    scaling they are S(n) = (n / m) T(m) / T(n) and T(m) / T(n), with T the median of the runs'
    times and m the smallest scale.

    Factors are geometric means over the runs of a scale. Computation scalability is U(m) / U(n),
    with U the executing time in sum, of weak scaling U(m) / m over U(n) / n. Where every scale has
    its number of threads, T(m) / T(n) m / n is, with geometric means, exactly the product of
    computation scalability and parallel efficiency, over the parallel efficiency at m (M. Wagner
    et al., "A Structured Approach to Performance Analysis", Tools for High Performance Computing
    2017).

    A function stops scaling at the first scale where its executing time in sum has grown by more
    than `GROWN` over that at the smallest scale, beyond noise: by Student's t-test of the
    logarithms, one-sided, with a variance from repeats at all scales, drawn towards that of the
    other functions (`dasf_hpc.analysis.compare.moderate`), and its chance times the number of
    functions and scales (Bonferroni's correction) below `ALPHA`.
    """
    good = [run for run in runs if not run.failed]
    sizes = sorted({run.scale for run in good})
    if len(sizes) < 2:
        there = f"those that count are of {scaled(sizes[0], by)}" if sizes else "none counts"
        why = next((f" ({run.name}: {run.failed})" for run in runs if run.failed), "")
        raise ScalingError(
            f"Scaling needs runs of two scales at least, and {there}{why}; give more runs, or "
            "count by something else (--by nodes, workers, threads, gpus)."
        )
    groups = {size: [run for run in good if run.scale == size] for size in sizes}
    unanswered = _unanswered(groups, by, weak)
    table = _scales(groups, weak)
    functions = _functions(groups, weak)
    numbers = [float(run.scale) for run in good]
    times = [float(run.time) for run in good]
    known = laws(weak)
    fits = [one for law in known if (one := fit(law, numbers, times)) is not None]
    chosen = better(fits)
    foretold = [told for law in known if (told := foretell(law, numbers, times)) is not None]
    findings = [
        *_falls(groups, table, functions, by, weak),
        *_stops(functions, sizes, by, weak),
        *_serial(groups, functions, by, weak),
        *_laws(fits, chosen, sizes, by, weak),
        *_breaks(fits, chosen, foretold, by),
    ]
    answer = Answer(
        "scaling",
        {
            "scales": table,
            "functions": functions,
            "runs": _runs(runs),
            "fits": _fits(fits, chosen),
        },
        {"scales": SCALES, "functions": FUNCTIONS, "runs": RUNS, "fits": FITS},
        findings,
        unanswered,
    )
    left_out = [run for run in runs if run.failed]
    return Scaling(by, weak, sizes, good, left_out, answer, fits, chosen, foretold)


# -------------------------------------------------------------------------------------- tables


def _mean(values: Sequence[float]) -> float:
    """Give the geometric mean; NaN where a value is not known or none is above 0."""
    if not values or not all(value > 0 for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def _scales(groups: dict[int, list[RunMeasure]], weak: bool) -> pd.DataFrame:
    smallest = min(groups)
    first = float(np.median([run.time for run in groups[smallest]]))
    useful = {size: _mean([run.useful for run in runs]) for size, runs in groups.items()}
    rows = []
    for size, runs in groups.items():
        times = [run.time for run in runs]
        ratio, grown = first / float(np.median(times)), size / smallest
        speedup = ratio * grown if weak else ratio
        scalability = useful[smallest] / useful[size] * (grown if weak else 1)
        rows.append(
            {
                "scale": size,
                "runs": len(runs),
                "time": round(float(np.median(times))),
                "time_min": min(times),
                "time_max": max(times),
                "speedup": speedup,
                "efficiency": 100 * speedup / grown,
                "computation_scalability": scalability,
                **{f: _mean([run.factors[f] for run in runs]) for f in FACTORS},
                "executing": useful[size],
                "tasks": float(
                    np.mean([sum(f.count for f in run.functions.values()) for run in runs])
                ),
            }
        )
    return pd.DataFrame(rows, columns=list(SCALES))


def _functions(groups: dict[int, list[RunMeasure]], weak: bool) -> pd.DataFrame:
    smallest, every = min(groups), [run for runs in groups.values() for run in runs]
    names: dict[str, float] = {}
    for run in every:
        for name, took in run.functions.items():
            names[name] = max(names.get(name, 0.0), took.executing / max(1, run.useful))
    chances = _chances(groups, [n for n, share in names.items() if share >= SHARE], weak)
    rows = []
    for name in sorted(names, key=lambda n: (-names[n], n)):
        first = first_wall = math.nan
        for size, runs in groups.items():
            own = [run.functions[name] for run in runs if name in run.functions]
            executing = _mean([one.executing for one in own])
            wall = _mean([one.wall for one in own])
            if size == smallest:
                first, first_wall = executing, wall
            grown = size / smallest
            growth = executing / first / (grown if weak else 1)
            share = [
                100 * run.functions[name].wall / max(1, run.time) if name in run.functions else 0.0
                for run in runs
            ]
            p = chances.get((name, size), math.nan)
            rows.append(
                {
                    "function": name,
                    "scale": size,
                    "count": sum(one.count for one in own) / len(runs),
                    "executing": executing if own else 0.0,
                    "growth": growth,
                    "wall": wall if own else 0.0,
                    "speedup": first_wall / wall * (grown if weak else 1),
                    "wall_share": float(np.mean(share)),
                    "p": p,
                    "grown": p < ALPHA,
                }
            )
    return pd.DataFrame(rows, columns=list(FUNCTIONS))


def _chances(
    groups: dict[int, list[RunMeasure]], names: Sequence[str], weak: bool
) -> dict[tuple[str, int], float]:
    """Give the chance, by function and scale, that the growth beyond `GROWN` is noise."""
    sizes = list(groups)
    freedom = sum(len(runs) - 1 for runs in groups.values())
    logs: dict[str, list[Floats]] = {}
    for name in names:
        every = [[r.functions[name].executing if name in r.functions else 0 for r in groups[size]]
                 for size in sizes]  # fmt: skip
        if all(min(values) > 0 for values in every):
            logs[name] = [np.log(values) for values in every]
    if not freedom or not logs:
        return {}
    variances = np.array(
        [sum(float(((v - v.mean()) ** 2).sum()) for v in of) / freedom for of in logs.values()]
    )
    variances, freedom = moderate(variances, freedom)
    tests = len(logs) * (len(sizes) - 1)
    found = {}
    for (name, of), variance in zip(logs.items(), variances.tolist(), strict=True):
        for size, values in zip(sizes[1:], of[1:], strict=True):
            more = float(values.mean() - of[0].mean())
            more -= math.log(size / sizes[0]) if weak else 0.0
            error = math.sqrt(variance * (1 / len(values) + 1 / len(of[0])))
            beyond = more - math.log1p(GROWN)
            chance = float(stdtr(freedom, -beyond / error)) if error else float(beyond <= 0)
            found[name, size] = min(1.0, tests * chance)
    return found


def _runs(runs: Sequence[RunMeasure]) -> pd.DataFrame:
    rows = [
        {
            "run": run.name,
            "scale": run.scale,
            "nodes": run.nodes,
            "workers": run.workers,
            "threads": run.threads,
            "time": run.time,
            "executing": run.useful,
            "parallel_efficiency": run.factors["parallel_efficiency"],
            "remark": f"left out: {run.failed}" if run.failed else "; ".join(run.partial),
        }
        for run in sorted(runs, key=lambda run: run.scale)
    ]
    return pd.DataFrame(rows, columns=list(RUNS))


def _fits(fits: Sequence[Fit], chosen: Fit | None) -> pd.DataFrame:
    rows = [
        {
            "law": one.law.name,
            "parameter": name,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "aicc": one.aicc,
            "lack": one.lack,
            "chosen": one is chosen,
        }
        for one in fits
        for name, estimate in one.parameters.items()
    ]
    return pd.DataFrame(rows, columns=list(FITS))


# ----------------------------------------------------------------------------- what is not known


def _unanswered(groups: dict[int, list[RunMeasure]], by: str, weak: bool) -> list[str]:
    runs = [run for of in groups.values() for run in of]
    found = []
    scripts = sorted({run.script for run in runs if run.script})
    if len(scripts) > 1:
        found.append(
            f"The runs are of {len(scripts)} scripts, {', '.join(scripts[:4])}"
            f"{' and others' if len(scripts) > 4 else ''}: what differs between scales may be what "
            "differs between these."
        )
    if all(len(of) == 1 for of in groups.values()):
        found.append(
            "There is one run of each scale: what differs by noise is not known, so that no "
            "function is tested; make more with --repeats."
        )
    if len(groups) < 3:
        found.append(
            f"There are {len(groups)} scales: the universal scalability law needs three, and "
            "whether a law holds cannot be told from two."
        )
    if not weak and len(scripts) < 2 and len({run.job for run in runs}) > 1:
        found.append(
            "The runs are not of one job with the same arguments: where the work grows with the "
            "scale, that is weak scaling (--weak)."
        )
    if by in ("nodes", "gpus"):
        most = {run.threads / run.scale for run in runs}
        if max(most) > 1.01 * min(most):
            found.append(
                f"There are not as many threads a {UNITS[by][0]} in all runs: --by threads counts "
                "those."
            )
    for run in runs:
        if run.partial:
            found.append(f"The recording of {run.name} is not whole: {'; '.join(run.partial)}.")
    return found


# -------------------------------------------------------------------------------------- findings


def _noise(groups: dict[int, list[RunMeasure]]) -> tuple[float, int]:
    """Give the relative spread of runs of one scale, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for runs in groups.values():
        logs = np.log([run.time for run in runs])
        squares += float(((logs - logs.mean()) ** 2).sum())
        freedom += len(runs) - 1
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def _falls(
    groups: dict[int, list[RunMeasure]],
    table: pd.DataFrame,
    functions: pd.DataFrame,
    by: str,
    weak: bool,
) -> list[Finding]:
    """Tell between which scales efficiency falls most, and which factor with it."""
    spread, freedom = _noise(groups)
    rows = table.to_dict("records")
    worst: tuple[float, int] | None = None
    for number in range(1, len(rows)):
        before, after = rows[number - 1], rows[number]
        fall = (before["efficiency"] - after["efficiency"]) / 100
        noise = 0.0
        if freedom:
            error = spread * math.sqrt(1 / before["runs"] + 1 / after["runs"])
            noise = float(stdtrit(freedom, CONFIDENCE)) * error
        relative = math.log(before["efficiency"] / after["efficiency"])
        if fall >= FALL and relative > noise and (worst is None or fall > worst[0]):
            worst = fall, number
    last = rows[-1]
    if worst is None:
        if last["efficiency"] < 100 * (1 - FALL):
            return []
        return [
            Finding(
                Severity.NOTICE, "scaling", "scales", (len(rows) - 1,),
                f"Efficiency at {scaled(last['scale'], by)} is "
                f"{share_text(last['efficiency'])}: it scales as far as was looked.",
                "More would help still: try a larger scale.",
            )
        ]  # fmt: skip
    number = worst[1]
    before, after = rows[number - 1], rows[number]
    one, more = (count_text(row["scale"]) for row in (before, after))
    sentence = (
        f"From {one} to {more} {UNITS[by][1]} efficiency falls from "
        f"{share_text(before['efficiency'])} to {share_text(after['efficiency'])}"
    )
    step = ""
    ratios = {f: after[f] / before[f] for f in PARTS if before[f] > 0 and after[f] > 0}
    if ratios:
        factor = min(ratios, key=ratios.__getitem__)
        sentence += (
            f": {factor.replace('_', ' ')} ({before[factor]:.2f} to {after[factor]:.2f}) is the "
            "factor that fell most"
        )
        step = LOOK[factor]
    grown = _most_grown(functions, before["scale"], after["scale"])
    if grown is not None:
        name, times = grown
        sentence += f"; {name} executes {three_digits(times)} times as long"
    serious = after["efficiency"] < 50
    next_step = f"{step[:1].upper()}{step[1:]}, with a run of {scaled(after['scale'], by)}."
    return [
        Finding(
            Severity.SERIOUS if serious else Severity.WARNING, "scaling", "scales",
            (number - 1, number), f"{sentence}.", next_step if step else "",
        )
    ]  # fmt: skip


def _most_grown(functions: pd.DataFrame, one: int, more: int) -> tuple[str, float] | None:
    """Give the function whose executing time adds most from one scale to another, and the ratio.

    None where that is no growth beyond noise.
    """
    before = functions[functions["scale"] == one].set_index("function")
    after = functions[functions["scale"] == more].set_index("function")
    after = after[after["grown"].astype(bool)]
    ratio = after["growth"] / before["growth"].reindex(after.index)
    added = (after["growth"] - before["growth"].reindex(after.index)) * (
        after["executing"] / after["growth"]
    )
    added = added[ratio > 1 + GROWN]
    if not len(added):
        return None
    name = str(added.idxmax())
    return name, float(ratio[name])


def _stops(functions: pd.DataFrame, sizes: list[int], by: str, weak: bool) -> list[Finding]:
    """Tell which function stops scaling first."""
    grown = functions[functions["grown"].astype(bool)]
    if not len(grown):
        return []
    at = int(grown["scale"].min())
    first = grown[grown["scale"] == at]
    added = first["executing"] * (1 - 1 / first["growth"])
    place = int(np.argmax(added.to_numpy()))
    name, growth = first["function"].iloc[place], float(first["growth"].iloc[place])
    others = [str(f) for f in grown["function"].unique() if f != name]
    evidence = tuple(int(row) for row in grown.index[:100])
    sentence = (
        f"{name} stops scaling first: at {scaled(at, by)} it executes {three_digits(growth)} "
        f"times as long in sum as at {scaled(sizes[0], by)}"
        + (" for the same amount of work" if weak else "")
    )
    own = functions[functions["function"] == name].set_index("scale")["count"]
    more = float(own[at] / own[sizes[0]]) / (at / sizes[0] if weak else 1)
    if more > 1 + FALL:
        sentence += f", in {three_digits(more)} times as many tasks"
        step = "Larger chunks, or fewer partitions, give it as many tasks at every scale."
    else:
        sentence += ", in as many tasks" if more > 1 - FALL else ", in fewer tasks"
        step = (
            "Its tasks compete for something at the larger scale: memory, disks, the file system, "
            "a lock, or data that was on one node before."
        )
    if others:
        listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        sentence += f"; then {listed}"
    return [
        Finding(
            Severity.WARNING, "scaling", "functions", evidence, f"{sentence}.",
            step,
        )
    ]  # fmt: skip


def _serial(
    groups: dict[int, list[RunMeasure]], functions: pd.DataFrame, by: str, weak: bool
) -> list[Finding]:
    """Tell of a function that is at work as long at the largest scale as at the smallest."""
    if weak:
        return []
    least, most = min(groups), max(groups)
    walls: dict[int, dict[str, float]] = {}
    for size in (least, most):
        runs = groups[size]
        names = {name for run in runs for name in run.functions}
        walls[size] = {
            n: float(np.mean([r.functions[n].wall if n in r.functions else 0 for r in runs]))
            for n in names
        }
    time = {size: float(np.mean([run.time for run in groups[size]])) for size in (least, most)}
    found = [
        name
        for name, wall in walls[most].items()
        if walls[least].get(name, 0) > 0
        and wall >= (1 - SERIAL_SHRUNK) * walls[least][name]
        and wall >= SERIAL_SHARE * time[most]
        and time[most] < (1 - SERIAL_SHRUNK) * time[least]
    ]
    if not found:
        return []
    name = max(found, key=lambda n: walls[most][n])
    share = {size: 100 * walls[size][name] / time[size] for size in (least, most)}
    rows = functions.index[functions["function"] == name]
    return [
        Finding(
            Severity.WARNING, "scaling", "functions", tuple(int(row) for row in rows),
            f"{name} is as good as serial: it is at work for {duration_text(walls[most][name])} at "
            f"{scaled(most, by)}, and for {duration_text(walls[least][name])} at "
            f"{scaled(least, by)}; that is {share_text(share[most])} of the time, from "
            f"{share_text(share[least])}.",
            "Divide it into more tasks, or have less of it: more of everything else makes it no "
            "shorter.",
        )
    ]  # fmt: skip


def interval_text(low: float, high: float, percent: bool = False) -> str:
    """Write a 95 % interval, in brackets; empty where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if percent:
        return f" (95 % interval {share_text(100 * low)} to {share_text(100 * high)})"
    return f" (95 % interval {three_digits(low)} to {three_digits(high)})"


def law_sentence(one: Fit, by: str, weak: bool) -> str:
    """Say what a law that was fitted means."""
    unit = UNITS[by]
    if one.law.name == "usl":
        a, b = one.parameters["contention"], one.parameters["coherency"]
        text = (
            f"The universal scalability law has contention {three_digits(a.value)}"
            f"{interval_text(a.low, a.high)} and coherency {three_digits(b.value)}"
            f"{interval_text(b.low, b.high)}"
        )
        if not b.low > 0:
            return f"{text}: that it peaks anywhere is not certain"
        peak = max(1.0, one.peak)
        capacity = float(one.base / one.times([peak])[0]) * (peak if weak else 1)
        return (
            f"{text}: no more than {three_digits(capacity)} times what one {unit[0]} does, at "
            f"{count_text(round(peak))} {unit[1]}, and less with more"
        )
    s = one.parameters["serial"]
    share = f"{share_text(100 * s.value)}{interval_text(s.low, s.high, percent=True)}"
    if weak:
        return (
            f"By Gustafson's law {share} of the time is serial: n {unit[1]} do "
            f"{three_digits(1 - s.value)} n + {three_digits(s.value)} times what one does"
        )
    text = f"By Amdahl's law {share} of the time on one {unit[0]} is serial"
    if s.value > ALL:
        return f"{text}: more {unit[1]} make it no faster"
    most = one.most
    if not math.isfinite(most.value):
        return f"{text}: it foretells no limit"
    limit = three_digits(most.value)
    if math.isfinite(most.low) and math.isfinite(most.high):
        limit += f" ({three_digits(most.low)} to {three_digits(most.high)})"
    elif math.isfinite(most.low):
        limit += f" ({three_digits(most.low)} at least)"
    return f"{text}: however many {unit[1]}, no more than {limit} times as fast as one"


def _laws(
    fits: Sequence[Fit], chosen: Fit | None, sizes: list[int], by: str, weak: bool
) -> list[Finding]:
    """Tell which law fits, and what that means."""
    if chosen is None:
        return []
    sentence = law_sentence(chosen, by, weak)
    others = [one for one in fits if one is not chosen]
    for other in others:
        if math.isfinite(other.aicc) and math.isfinite(chosen.aicc):
            sentence += (
                f". It fits better than {other.law.title} (AICc {chosen.aicc:.1f} against "
                f"{other.aicc:.1f})"
            )
        else:
            sentence += f". There are too few runs to tell if {other.law.title} fits better"
    if not chosen.freedom:
        sentence += ". With so few runs there is no interval"
    next_step = ""
    if chosen.law.name == "usl" and chosen.parameters["coherency"].low > 0:
        next_step = f"Beyond about {scaled(round(max(1.0, chosen.peak)), by)} more make it slower."
    elif chosen.law.name == "amdahl" and 0 < chosen.parameters["serial"].value <= ALL:
        half = 1 + 1 / chosen.parameters["serial"].value  # where the efficiency is a half
        next_step = f"At about {scaled(round(half), by)} half of what they could do is lost."
    rows = range(sum(len(one.parameters) for one in fits))
    return [
        Finding(Severity.NOTICE, "scaling", "fits", tuple(rows), f"{sentence}.", next_step)
    ]  # fmt: skip


def _breaks(
    fits: Sequence[Fit], chosen: Fit | None, foretold: Sequence[Foretold], by: str
) -> list[Finding]:
    """Tell where the law does not hold."""
    found = []
    for one in foretold:
        if chosen is None or one.law.name != chosen.law.name or one.holds:
            continue
        found.append(
            f"{one.law.title[:1].upper()}{one.law.title[1:]}, fitted up to "
            f"{scaled(one.scales[-1], by)}, foretells {duration_text(one.low)} to "
            f"{duration_text(one.high)} at {scaled(one.scale, by)}, and "
            f"{duration_text(one.measured)} was measured: it breaks down there"
        )
    for law in fits:
        if law is chosen and law.lack < ALPHA:
            found.append(
                f"The runs lie further from {law.law.title} than their noise explains "
                f"(p = {three_digits(law.lack) if law.lack >= 0.001 else 'less than 0.001'}), so "
                "that its intervals say less than they seem to"
            )
    return [
        Finding(
            Severity.WARNING, "scaling", "fits", (), f"{sentence}.",
            "Do not read anything off the law beyond the scales that were run.",
        )
        for sentence in found
    ]  # fmt: skip
