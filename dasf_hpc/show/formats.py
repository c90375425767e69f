"""Show, the formats that a trace can be exported to, and what the files are called."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """What a trace can be exported to."""

    PERFETTO = "perfetto"
    CHROME = "chrome"
    DASF = "dasf"
    PARQUET = "parquet"
    CSV = "csv"
    OTLP_JSON = "otlp-json"
    SPEEDSCOPE = "speedscope"
    COLLAPSED = "collapsed"
    PPROF = "pprof"


#: Name of the file, or of the folder of files, that is written beside the trace by default.
DEFAULT_NAMES = {
    Format.PERFETTO: "trace.pftrace",
    Format.CHROME: "trace.chrome.json",
    Format.DASF: "trace.msgpack",
    Format.PARQUET: "parquet",
    Format.CSV: "csv",
    Format.OTLP_JSON: "trace.otlp.jsonl",
    Format.SPEEDSCOPE: "trace.speedscope.json",
    Format.COLLAPSED: "trace.folded.txt",
    Format.PPROF: "trace.pb.gz",
}

#: Those of call stacks, of which it can be chosen what is written.
OF_STACKS = (Format.SPEEDSCOPE, Format.COLLAPSED, Format.PPROF)
