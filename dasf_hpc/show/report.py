"""Show, as a page: one file that opens offline and tells at first sight what was slow, and why."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dasf_hpc.analysis import ANALYSES, Answer, analyse
from dasf_hpc.analysis.answer import Finding, Severity
from dasf_hpc.analysis.executions import UNKNOWN, read_executions
from dasf_hpc.analysis.headline import Headline, headline
from dasf_hpc.analysis.savings import PLAYED
from dasf_hpc.analysis.where import PART_WORDS, PARTS
from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.lost import lost_sentence
from dasf_hpc.manifest import Manifest
from dasf_hpc.show.column_names import value_name
from dasf_hpc.show.coverage import COLOURED, by_time_spent
from dasf_hpc.show.efficiencies import boxes
from dasf_hpc.show.export import written
from dasf_hpc.show.first_screen import (
    GPU_PARTS,
    GPUS,
    OUTSIDE,
    counted,
    gpu_bars,
    gpu_sentence,
    moments,
    tiles,
    work_bar,
    worker_bars,
)
from dasf_hpc.show.flame import flame
from dasf_hpc.show.layer_graph import layer_graph
from dasf_hpc.show.page_tables import View, cut, view
from dasf_hpc.show.picture import picture
from dasf_hpc.show.places import Places, place_of_finding, places, stretches
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.holdings import gpu_activity
from dasf_hpc.trace.names import node_names
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.store import TraceError
from dasf_hpc.trace.summary import Summary, summarise
from dasf_hpc.units import bytes_text, count_text, duration_text, rate_text

#: Name of the report in a run's directory.
REPORT_NAME = "report.html"

#: Parts of the script that draws, in their order.
SCRIPTS = (
    "units.js", "theme.js", "data.js", "coverage.js",
    "timeline.js", "pick.js", "curves.js", "memory.js", "graph.js", "moves.js", "flame.js",
)  # fmt: skip

#: Questions that a page of more executions than this does not ask: they play the run again, task
#: by task, for each of several functions.
PATIENCE = {"what_if": PLAYED}

#: Findings on the first screen, and rows of a finding's evidence.
FIRST, EVIDENCE = 3, 10

#: Findings after those, which the first screen names.
ALSO = 3

#: Characters of what a finding is about, where it has no cause of its own.
LABEL = 60

#: Nodes in the matrix of communication, and workers in the split: those with most of it.
NODES, WORKERS = 24, 40

#: Files of an import that its title names.
TITLED = 2

#: What of a manifest goes into the page. Settings and arguments stay out: a report is passed on,
#: and they may hold what is private.
FACTS = ("name", "state", "job", "on", "host", "git_revision", "exit_code", "error", "batch_jobs")


@dataclass(frozen=True)
class Section:
    """A section of the page: its id, its title, and the analyses in it with their tables."""

    id: str
    title: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]


#: The sections of analyses, in the order of a run's page.
SECTIONS: tuple[Section, ...] = (
    Section(
        "efficiencies",
        "Efficiency",
        (("efficiencies", ("tree", "workers", "functions", "gpus")),),
    ),
    Section(
        "functions",
        "Functions and tasks",
        (
            ("functions", ("functions",)),
            ("task_bottleneck", ("tasks",)),
            ("failures", ("failures", "tasks")),
            ("what_if", ("changes",)),
            ("cpu", ("functions", "frames")),
            ("ranges", ("ranges", "marks")),
        ),
    ),
    Section(
        "stacks",
        "Call stacks",
        (("stacks", ("hot", "frames", "event_loops", "blocked", "threads")),),
    ),
    Section(
        "split",
        "Workers",
        (
            ("where", ("summary", "waits", "gaps", "chains", "gpus")),
            ("balance", ("summary", "functions", "workers", "stragglers")),
        ),
    ),
    Section(
        "memory",
        "Memory and data",
        (("memory", ("prefixes", "workers", "peak", "spills", "duplicates", "kept")),),
    ),
    Section("path", "Critical path", (("critical_path", ("functions", "path")),)),
    Section("graph-section", "Task graph", (("layers", ("layers", "edges")),)),
    Section(
        "communication",
        "Communication",
        (
            ("communication", ("links", "types")),
            ("collectives", ("collectives", "waiting", "operations", "clocks")),
        ),
    ),
    Section(
        "gpus",
        "GPUs",
        (
            ("gpu", ("gpus", "kernels", "functions", "gaps", "recorded")),
            (
                "cuda",
                (
                    "rules",
                    "calls",
                    "copies",
                    "fills",
                    "migrations",
                    "page_faults",
                    "memory",
                    "memory_holders",
                    "os_calls",
                    "about",
                ),
            ),
            ("gpu_metrics", ("functions", "metrics", "function_metrics", "tasks")),
            ("energy", ("gpus", "nodes", "functions")),
        ),
    ),
)

#: Sections where there are no tasks, and what they are called: GPUs come first.
GPU_FIRST = {
    "gpus": "GPUs",
    "efficiencies": "Efficiency",
    "functions": "Ranges and CPUs",
    "stacks": "Call stacks",
    "communication": "Communication",
}

#: Analyses of tasks: of a recording that has none it is not told that they say nothing.
OF_TASKS = {
    "where",
    "functions",
    "task_bottleneck",
    "failures",
    "balance",
    "critical_path",
    "what_if",
    "efficiencies",
    "communication",
    "memory",
    "layers",
    "overhead",
}

#: What an analysis tells of, where it does not say what of that it could not look at.
SUBJECTS = {
    "where": "workers' time",
    "task_bottleneck": "longest tasks",
    "what_if": "what faster functions would bring",
    "ranges": "NVTX ranges",
    "cpu": "CPU time",
    "stacks": "call stacks",
    "cuda": "calls of CUDA",
    "gpu": "what GPUs did",
    "memory": "what held the workers' memory",
    "layers": "what goes between functions",
    "overhead": "what the recording cost",
}

#: Words with which a reason may begin that are small within a sentence.
BEGINNINGS = ("No", "None", "Nothing", "The", "What", "Workers", "It", "There", "Their")

#: Tables that say nothing by themselves: a part of which nothing else is there is empty.
BESIDE = {("gpu", "recorded"), ("cuda", "about"), ("cuda", "os_calls")}

#: Analyses of which the page has a picture: their tables are closed.
DRAWN = {"memory", "layers"}

#: Tables of what tasks did with GPUs.
BUSY = {("where", "gpus"), ("gpu", "functions"), ("energy", "functions")}


def write_report(
    path: Path,
    output: Path | None = None,
    told: Told = lambda step: None,
    heard: Callable[[Headline], None] = lambda found: None,
) -> Path:
    """Write a run's report.

    Parameters
    ----------
    path
        A trace, or the directory of a run.
    output
        The file; ``report.html`` beside the trace by default.
    told
        Called with the progress.
    heard
        Called with what the analyses found: they are asked once.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TraceFileError
        If there is no trace, or it cannot be read.
    RunDirectoryError
        If the file cannot be written.
    """
    try:
        with open_trace(path) as trace:
            target = output or trace.path.parent / REPORT_NAME
            page = report_page(trace, Manifest(trace.path.parent).content, told, heard)
            with written(target) as file:
                file.write(page.encode())
    except OSError as error:
        raise RunDirectoryError(
            f"The report cannot be written: {error.filename or target}: {error.strerror}."
        ) from None
    return target


def report_page(
    trace: Trace,
    manifest: dict[str, Any],
    told: Told = lambda step: None,
    heard: Callable[[Headline], None] = lambda found: None,
) -> str:
    """Make the page of a trace.

    Parameters
    ----------
    trace
        The trace.
    manifest
        Content of the run's ``run.json``; empty where there is none.
    told
        Called with the progress.
    heard
        Called with what the analyses found.

    Returns
    -------
    str
        HTML without a reference to anything outside of it.
    """
    answers, failures = _answers(trace, told)
    told(Step("Writing the report", len(ANALYSES), len(ANALYSES)))
    executions = read_executions(trace)
    known = places(trace)
    summary = summarise(trace)
    lost = lost_sentence(manifest)
    gpu_first = not len(executions) and gpu_activity(trace)
    head = headline(trace, answers)
    heard(head)
    on_gpus = gpu_bars(trace, known.span)
    drawn = picture(trace, executions, answers.get("critical_path"))
    flames = flame(trace)
    findings = [
        _shown(trace, finding, answers, known, number)
        for number, finding in enumerate(head.findings, 1)
    ]
    first = [finding for finding in findings if gpu_first or not finding["folded"]]
    # what has no result is told by a figure of its own
    first.sort(key=lambda finding: bool(finding["incomplete"]))
    bars, left_out = worker_bars(answers.get("where"), WORKERS, known)
    matrix = _matrix(answers.get("communication"))
    sections = _sections(trace, answers, failures, known, gpu_first)
    colours = {
        executions.functions[code]: number
        for number, code in enumerate(by_time_spent(executions)[:COLOURED])
    }
    if len(bars) < 3:  # one worker: its bar is the first screen's
        bars = []
    title = _title(manifest, trace)
    tables_script, script = _resource("tables.js"), _script(*SCRIPTS)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            subtitle=_subtitle(trace, summary, len(executions)),
            state=manifest.get("state"),
            sentence=gpu_sentence(on_gpus, known.span, len(summary.gpus))
            if gpu_first
            else head.sentence,
            gpu_first=gpu_first,
            first_bars=on_gpus[:GPUS] if gpu_first else work_bar(answers.get("where")),
            moments=moments(manifest, summary),
            tiles=tiles(trace, summary, known, answers, lost),
            findings=findings,
            first=first[:FIRST],
            also=first[FIRST : FIRST + ALSO],
            nothing=_nothing(trace, summary),
            error=str(manifest.get("error") or ""),
            sections=sections,
            not_recorded=_not_recorded(
                {name: a for name, a in answers.items() if not gpu_first or name not in OF_TASKS},
                summary.unused,
            ),
            without_gpu=not summary.gpus and not gpu_activity(trace),
            colours=colours,
            graph=layer_graph(answers.get("layers"), answers.get("critical_path"), known, colours),
            split=bars,
            split_left_out=left_out,
            gpu_bars=[] if gpu_first else on_gpus[:GPUS],
            gpus_left_out=max(0, len(on_gpus) - GPUS),
            parts={
                part: (PART_WORDS[part], meaning)
                for part, meaning in PARTS.items()
                if part not in OUTSIDE
            },
            gpu_parts={part: (part, meaning) for part, meaning in GPU_PARTS.items()},
            matrix=matrix,
            has_curves=bool(drawn.charts),
            clocks=_clocks(trace),
            gaps=[gap.sentence for gap in summary.gaps],
            recorded=[one.sentence for one in summary.recorded],
            facts=_facts(manifest, trace),
            overhead=_part(trace, "overhead", ("costs",), answers, failures, known),
            lost=lost,
            notes=manifest.get("notes", []),
            drawn=drawn,
            efficiencies=boxes(answers.get("efficiencies")),
            flame=flames,
            bin_text=duration_text(flames.bin),
            style=_resource("report.css") + _resource("efficiencies.css"),
            timeline_style=_resource("timeline.css") + _resource("memory.css"),
            tables_script=tables_script,
            script=script,
            scripts_allowed=Markup(" ").join(map(_allowed, (tables_script, script))),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dasf_hpc.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    environment.filters["cut"] = cut
    return environment


def _answers(trace: Trace, told: Told) -> tuple[dict[str, Answer], dict[str, str]]:
    """Ask the questions; one that fails costs its own section and no other."""
    answers, failures = {}, {}
    for number, name in enumerate(ANALYSES):
        told(Step(f"Writing the report: {name}", number, len(ANALYSES)))
        if trace.rows("tasks") > PATIENCE.get(name, math.inf):
            failures[name] = f"It takes long for so many tasks: `dasf-hpc analyze {name} RUN`."
            continue
        try:
            answers[name] = analyse(name, trace)
        except TraceError:
            raise
        except Exception as bug:
            failures[name] = f"This analysis failed, which is a bug in it: {bug!r}."
    return answers, failures


def _resource(name: str) -> Markup:
    """Give a file of the package as it is: it is ours, and not to be escaped."""
    return Markup((files("dasf_hpc.show") / "templates" / name).read_text(encoding="utf-8"))


def _script(*names: str) -> Markup:
    """Put scripts together into one that leaves no name of its own in the page."""
    return Markup("'use strict';\n(() => {\n%s})();\n") % Markup("").join(map(_resource, names))


def _allowed(script: str) -> Markup:
    """Name a script as the page's policy does that lets this one run and no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Markup("'sha256-{}'").format(digest)


def _prose(text: str) -> Markup:
    """Set what stands between backquotes as code; what turns or hides text stands as a sign."""
    seen = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "�", str(text)
    )
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(seen))))


# ------------------------------------------------------------------------------------- title


def _title(manifest: Mapping[str, Any], trace: Trace) -> str:
    """Name a run by its job and date, an import by its files, any other trace by its own file."""
    job, name = manifest.get("job"), manifest.get("name")
    if job or name:
        what = Path(str(job)).name if job else str(name)
        return ", ".join(filter(None, (cut(what, 80), _date(manifest, trace))))
    imported = trace.attributes.get("imported")
    sources = str(imported).split("\n") if imported else trace.reports["file"].dropna().tolist()
    names = list(dict.fromkeys(Path(str(source)).name for source in sources if source))
    if not names:
        return cut(trace.path.name, 80)
    title = " and ".join(cut(one, 80) for one in names[:TITLED])
    if len(names) > TITLED:
        title = f"{cut(names[0], 80)} and {len(names) - 1} more"
    return title


def _date(manifest: Mapping[str, Any], trace: Trace) -> str:
    seconds = manifest.get("started")
    if not isinstance(seconds, int | float):
        seconds = int(trace.attributes.get("origin_utc_ns", -1)) / 1e9
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else ""


def _subtitle(trace: Trace, summary: Summary, executions: int) -> str:
    """Tell how much there is, in a few words; what there is none of is left out."""
    found = [
        (executions, "execution"),
        (summary.workers, "worker"),
        (len(summary.nodes) or len(trace.nodes), "node"),
        (len(summary.gpus), "GPU"),
        (0 if executions else trace.rows("kernels"), "kernel"),
    ]
    return " · ".join(counted(count, what) for count, what in found if count)


def _nothing(trace: Trace, summary: Summary) -> str:
    """Say what stands in the place of findings where there are none."""
    if summary.unused:
        return f"{summary.unused[:1].upper()}{summary.unused[1:]}."
    if not trace.rows("tasks") and not gpu_activity(trace):
        return "No task, and nothing on a GPU, was recorded."
    return "Looked, and found nothing that costs more than a few percent."


# ---------------------------------------------------------------------------------- findings


def _shown(
    trace: Trace, finding: Finding, answers: Mapping[str, Answer], known: Places, number: int
) -> dict[str, Any]:
    """Give a finding as it is shown: what it costs, where to see it, the rows it rests on."""
    answer = answers[finding.analysis]
    table = answer.tables[finding.table]
    rows = [row for row in finding.rows[:EVIDENCE] if row in table.index]
    first = table.loc[rows[:1]].to_dict("records")
    return {
        "number": number,
        "severity": str(finding.severity),
        "folded": finding.severity == Severity.NOTICE and finding.saves <= 0,
        "saves": f"up to {duration_text(finding.saves)}" if finding.saves > 0 else "",
        "incomplete": finding.incomplete,
        "unknown": f"{finding.severity.capitalize()}: "
        + ("results are missing" if finding.incomplete else "what it costs is not known"),
        "label": finding.cause or cut(re.split("[:;.,(] ?", finding.sentence)[0], LABEL),
        "sentence": _linked(finding.sentence, known, number),
        "next_step": finding.next_step,
        "place": place_of_finding(finding, known, _named(first[0]) if first else None, number),
        "evidence": view(trace, answer, finding.table, known, rows),
    }


def _linked(sentence: str, known: Places, number: int) -> Markup:
    """Set a finding's sentence; the stretches of time that it tells of lead to the timeline."""
    made, done = Markup(), 0
    for begin, end, place in stretches(sentence, known, number):
        link = Markup('<a href="{}">{}</a>').format(place, sentence[begin:end])
        made += _prose(sentence[done:begin]) + link
        done = end
    return made + _prose(sentence[done:])


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(column): value for column, value in row.items()}


# ---------------------------------------------------------------------------------- sections


def _sections(
    trace: Trace,
    answers: Mapping[str, Answer],
    failures: Mapping[str, str],
    known: Places,
    gpu_first: bool,
) -> list[dict[str, Any]]:
    """Give the sections that hold anything, in the order in which they are shown."""
    ordered = SECTIONS
    if gpu_first:
        of = {section.id: section for section in SECTIONS}
        ordered = tuple(Section(one, title, of[one].parts) for one, title in GPU_FIRST.items())
    found = []
    for section in ordered:
        parts = [
            _part(trace, name, kinds, answers, failures, known) for name, kinds in section.parts
        ]
        parts = [part for part in parts if part["views"] or part["failed"]]
        if parts:
            found.append({"id": section.id, "title": section.title, "parts": parts})
    return found


def _part(
    trace: Trace,
    name: str,
    kinds: tuple[str, ...],
    answers: Mapping[str, Answer],
    failures: Mapping[str, str],
    known: Places,
) -> dict[str, Any]:
    """Give what an analysis found: its question and those of its tables that hold anything."""
    views: list[View] = []
    kinds = tuple(kind for kind in kinds if len(known.executions) or (name, kind) not in BUSY)
    if name in answers:
        answer = answers[name]
        there = [kind for kind in kinds if kind in answer.tables and len(answer.tables[kind])]
        if any((name, kind) not in BESIDE for kind in there):
            views = [view(trace, answer, kind, known) for kind in there]
            if name in DRAWN:
                views = [replace(one, open=False) for one in views]
    question = ANALYSES[name].text if name in ANALYSES else name.replace("_", " ")
    return {"name": name, "question": question, "views": views, "failed": failures.get(name, "")}


def _not_recorded(answers: Mapping[str, Answer], unused: str) -> list[tuple[str, str]]:
    """Give what could not be looked at, together with all that has the same reason.

    Parameters
    ----------
    answers
        The answers.
    unused
        What is said before all else of a run that was not used, and not said again.
    """
    of: dict[str, list[str]] = {}
    for name, answer in answers.items():
        for why in answer.unanswered:
            if unused and unused[1:] in why:
                continue
            what, colon, reason = why.partition(": ")
            if not colon or len(what) > 60:
                what, reason = SUBJECTS.get(name, name.replace("_", " ")), why
            reason = reason.strip().rstrip(".")
            while inner := re.fullmatch(r"(?:messages: )?not recorded \((.*)\)", reason, re.DOTALL):
                reason = inner[1]
            if not what[1:2].isupper():
                what = what[:1].lower() + what[1:]
            if reason.split(" ")[0] in BEGINNINGS:
                reason = reason[:1].lower() + reason[1:]
            if what not in of.setdefault(reason, []):
                of[reason].append(what)
    return [(_listed(what), reason) for reason, what in of.items()]


def _listed(names: list[str]) -> str:
    return f"{'; '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _facts(manifest: Mapping[str, Any], trace: Trace) -> list[tuple[str, str]]:
    found = [(name.replace("_", " "), manifest[name]) for name in FACTS if manifest.get(name)]
    found += [(f"version of {name}", v) for name, v in manifest.get("versions", {}).items() if v]
    shape = manifest.get("shape") or {}
    found += [
        (name.replace("_", " "), bytes_text(value) if name == "memory" else value)
        for name, value in shape.items()
        if value
    ]
    merged = manifest.get("merged") or {}
    for what in ("workers", "reports"):
        if f"{what}_expected" in merged:
            text = f"{merged.get(f'{what}_found')} of {merged[f'{what}_expected']}"
            found.append((f"{what} found", text))
    files = [str(file) for file in trace.reports["file"].dropna()] if not manifest else []
    if files:
        found.append(("reports", f"{', '.join(files[:8])}{' …' * (len(files) > 8)}"))
    found += [("trace", trace.path.name)]
    found += [("trace made by", trace.attributes.get("producer", ""))]
    found += [("reference clock", trace.attributes.get("reference_clock", ""))]
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in found
        if value
    ]


def _clocks(trace: Trace) -> list[tuple[str, str]]:
    """Give each clock by its node, and how far its times may be wrong."""
    nodes = node_names(trace)
    clocks = trace.clocks.to_dict("records")
    of = [nodes[c["node"]] if 0 <= c["node"] < len(nodes) else "" for c in clocks]
    found = []
    for name, clock in zip(of, clocks, strict=True):
        known = name and of.count(name) == 1
        source = clock["source"] if isinstance(clock["source"], str) else "no source"
        bound = clock["bound"]
        within = f"within {duration_text(bound)}" if bound >= 0 else "error not known"
        identity = clock["clock"] if isinstance(clock["clock"], str) else "?"
        found.append((name if known else f"{name} {identity}".strip(), f"{within} ({source})"))
    return found


def _matrix(answer: Answer | None) -> dict[str, Any]:
    """Give the bytes that went between nodes, those with most of them.

    Of what is no node only the row or column is there in which anything stands.
    """
    if answer is None or not len(answer.table):
        return {"columns": [], "rows": []}
    links = answer.table
    traffic = (
        links.groupby("source")["bytes"]
        .sum()
        .add(links.groupby("target")["bytes"].sum(), fill_value=0)
    )
    names = sorted(map(str, traffic.nlargest(NODES).index), key=lambda n: (n == UNKNOWN, n))
    sources, targets = (
        [name for name in names if name != UNKNOWN or (links[side] == UNKNOWN).any()]
        for side in ("source", "target")
    )
    called = {name: value_name("communication", "source", name) for name in names}
    of = {(str(row["source"]), str(row["target"])): row for row in links.to_dict("records")}
    most = max(1, int(links["bytes"].max()))
    rows = []
    for source in sources:
        cells = []
        for target in targets:
            link = of.get((source, target))
            cells.append(
                {
                    "text": bytes_text(link["bytes"]) if link else "",
                    "hint": f"{called[source]} to {called[target]}: "
                    f"{count_text(link['messages'])} messages, "
                    f"{rate_text(link['throughput'])}"
                    if link
                    else "",
                    # ten steps
                    "heat": -(-10 * int(link["bytes"]) // most) if link else 0,
                }
            )
        rows.append((called[source], cells))
    return {
        "columns": [called[target] for target in targets],
        "rows": rows,
        "left_out": len(traffic) - len(names),
    }
