"""Show, columns and tables of the analyses as a reader calls them."""

from __future__ import annotations

from dasf_hpc.analysis.executions import UNKNOWN
from dasf_hpc.analysis.where import PART_WORDS

#: Names of columns that are no plain words, or say too little; others are theirs with spaces.
COLUMNS: dict[str, str] = {
    "at_peak": "At the peak",
    "blocked": "Waiting, off the CPU",
    "bound": "Clock error",
    "busy_covered": "Busy, sampled",
    "busy_share": "Share busy",
    "bytes": "Size",
    "bytes_in": "Input size",
    "bytes_out": "Result size",
    "byte_seconds": "Size times time",
    "caused": "Wait of the others",
    "compute_warps": "Warps in use",
    "copy_time": "Time of copies",
    "coverage": "Sampled",
    "covered": "Sampled",
    "dram_read": "Memory read",
    "dram_write": "Memory written",
    "duration": "Took",
    "each_high": "Each, at most",
    "each_low": "Each, at least",
    "example": "The first one",
    "excess": "Beyond the median",
    "factor": "Times faster",
    "fill_time": "Time of fills",
    "final": "Without a result",
    "finished": "Ended",
    "first_start": "First task at",
    "gpc_clock": "SM clock",
    "called_from": "Called from",
    "gpu": "GPU",
    "gpu_active": "GPU active",
    "gpu_memory": "GPU memory",
    "gpu_utilization": "GPU utilisation",
    "gpus": "GPUs",
    "gr_active": "Engine active",
    "half_width": "95 % within ±",
    "held": "Had the GPU",
    "how": "How it is known",
    "idle": "GPU idle",
    "idle_energy": "Energy while idle",
    "kernel_mean": "Mean kernel",
    "kernel_time": "Time of kernels",
    "key": "Task",
    "last_stop": "Last task until",
    "latency_max": "Longest launch latency",
    "launch_bound": "Launch-bound",
    "launch_time": "Time of launches",
    "longest_off": "Longest off the CPU",
    "max": "Longest",
    "max_power": "Most power",
    "memory_used": "Memory in use",
    "nbytes": "Result size",
    "nvlink_rx": "NVLink received",
    "nvlink_tx": "NVLink sent",
    "off_cpu": "Off the CPU",
    "off_share": "Share off the CPU",
    "on_cpu": "On the CPU",
    "overlap": "Copies beside kernels",
    "overlap_share": "Share of copies beside kernels",
    "p50": "Median",
    "p95": "95th percentile",
    "part": "Spent on",
    "on_disk": "On disk, at least",
    "pcie_rx": "PCIe received",
    "pcie_tx": "PCIe sent",
    "peak_memory": "Most memory",
    "peak_memory_share": "Share of its memory",
    "peak_time": "Most at",
    "process_peak": "Most its process used",
    "process_peak_time": "Its process used most at",
    "ratio": "Times the median",
    "recorded": "As it was",
    "sampled_peak": "Most, sampled",
    "saved": "Saves",
    "saved_share": "Saves, share",
    "recovered": "Succeeded later",
    "self": "In itself",
    "self_share": "Share in itself",
    "share_high": "Share, at most",
    "share_low": "Share, at least",
    "slowdown": "Times the usual",
    "span_share": "Share of all their time",
    "sm_active": "SMs active",
    "sm_issue": "SMs issuing",
    "start": "From",
    "stop": "Until",
    "sys_clock": "Front-end clock",
    "tensor_active": "Tensor cores active",
    "time_high": "Time, at most",
    "time_low": "Time, at least",
    "times_off": "Times off the CPU",
    "total": "In all",
    "total_share": "Share in all",
    "unreleased": "Never released",
    "unreleased_bytes": "Size never released",
    "unused_warps": "Warps unused",
    "wall": "Threads' time",
    "within": "Within one node",
    "work_share": "Share of the work",
}

#: Where a column of one table needs another name than elsewhere.
COLUMNS_OF: dict[tuple[str, str], dict[str, str]] = {
    ("balance", "over_time"): {"held": "Results held"},
    ("balance", "summary"): {"factor": "Busiest over mean", "lost": "Lost by uneven shares"},
    ("critical_path", "functions"): {"share": "Share of the path", "time": "On the path"},
    ("cuda", "about"): {"time": "What its time is"},
    ("cuda", "calls"): {"share": "Share of all calls"},
    ("cuda", "memory_holders"): {"share": "Share of the peak"},
    ("cuda", "os_calls"): {"share": "Share of all calls"},
    ("cuda", "rules"): {"share": "Share of its tasks"},
    ("efficiencies", "functions"): {
        "balance": "Its load balance",
        "lost": "Loses, alone",
        "worker": "Most on",
    },
    ("efficiencies", "gpus"): {
        "idle": "Idle",
        "kernel_share": "Share in kernels",
        "kernels": "In kernels",
        "memory": "In copies alone",
    },
    ("efficiencies", "tree"): {"factor": "Factor", "lost": "Loses", "run": "Loses of the run"},
    ("efficiencies", "workers"): {
        "busiest": "Busiest thread",
        "least": "Least busy thread",
        "there": "Was there",
    },
    ("energy", "functions"): {"each": "An execution", "share": "Share of the energy"},
    ("failures", "failures"): {"first_start": "First at", "task": "The first task"},
    ("functions", "functions"): {"share": "Share of executing"},
    ("gpu", "gpus"): {"utilization": "Utilisation"},
    ("gpu", "kernels"): {"share": "Share of kernels"},
    ("gpu", "memory"): {"time": "At"},
    ("gpu_metrics", "metrics"): {"idle": "Idle"},
    ("memory", "prefixes"): {
        "copied": "Size received",
        "copies": "Received",
        "longest": "Longest held",
        "mean": "Held, mean",
        "peak": "Most at once",
        "unsized": "Of unknown size",
    },
    ("memory", "workers"): {
        "function": "Held most then",
        "function_bytes": "Size of these",
        "peak": "Most in results",
        "peak_time": "Most in results at",
        "share": "Share of the limit",
        "unmanaged": "No results, at least",
    },
    ("memory", "over_time"): {"time": "At"},
    ("memory", "peak"): {"share": "Share of all"},
    ("memory", "spills"): {
        "again": "Read several times",
        "longest": "There before it was read, longest",
    },
    ("memory", "duplicates"): {
        "extra": "Size of the copies",
        "keys": "Results",
        "largest": "Largest result",
        "most": "Most workers",
        "start": "Most at",
    },
    ("memory", "kept"): {
        "bytes": "Most at once",
        "holder": "Kept for",
        "share": "Share of its size times time",
        "start": "Most at",
    },
    ("overhead", "costs"): {"what": "Recorded", "source": "How it is known"},
    ("ranges", "ranges"): {"share": "Share of its function"},
    ("stacks", "hot"): {"called_from": "Own line", "share": "Share of its function"},
    ("stacks", "event_loops"): {"frame": "Mostly in", "role": "Of", "share": "Share while busy"},
    ("stacks", "blocked"): {"called_from": "Own line", "frame": "By", "role": "Of"},
    ("stacks", "threads"): {"role": "For", "time": "Sampled time"},
    ("task_bottleneck", "tasks"): {"share": "Share of its worker"},
    ("what_if", "changes"): {"total": "Takes in all", "time": "Would be"},
    ("where", "summary"): {"share": "Share of the run"},
    ("where", "waits"): {"first_start": "First at", "last_stop": "Last until"},
}

#: What tables hold, where their own name says too little.
TABLES: dict[tuple[str, str], str] = {
    ("where", "summary"): "Workers' time by what it was spent on",
    ("where", "workers"): "The same by worker",
    ("where", "gpus"): "GPUs' time by what it was spent on",
    ("task_bottleneck", "tasks"): "Longest tasks",
    ("balance", "summary"): "Evenness of the work",
    ("balance", "stragglers"): "Tasks much longer than their function's median",
    ("critical_path", "functions"): "The critical path by function",
    ("critical_path", "path"): "The critical path, segment by segment",
    ("failures", "failures"): "Failures by cause",
    ("failures", "tasks"): "Tasks without a result",
    ("balance", "functions"): "Functions by worker",
    ("what_if", "changes"): "The run with one function faster",
    ("gpu", "gpus"): "GPUs",
    ("gpu", "functions"): "Functions on GPUs",
    ("gpu", "gaps"): "Times in which nothing ran on a GPU",
    ("gpu", "recorded"): "What the reports hold",
    ("gpu_metrics", "functions"): "GPU metrics by function",
    ("gpu_metrics", "tasks"): "GPU metrics by task",
    ("gpu_metrics", "metrics"): "GPU metrics",
    ("gpu_metrics", "function_metrics"): "Other GPU metrics by function",
    ("ranges", "ranges"): "NVTX ranges",
    ("ranges", "marks"): "NVTX marks",
    ("cpu", "functions"): "CPU time by function",
    ("cpu", "frames"): "Sampled code by function",
    ("stacks", "hot"): "Lines that took most, by function",
    ("stacks", "frames"): "Calls, by their own and their whole time",
    ("stacks", "event_loops"): "What event loops did",
    ("stacks", "blocked"): "What blocked event loops",
    ("stacks", "threads"): "Threads that were sampled",
    ("cuda", "calls"): "Calls of CUDA",
    ("cuda", "os_calls"): "Calls of the operating system",
    ("cuda", "rules"): "What costs time on GPUs, by rule",
    ("cuda", "about"): "The rules",
    ("cuda", "fills"): "Fills of memory",
    ("cuda", "migrations"): "Migrations of unified memory",
    ("cuda", "page_faults"): "Page faults of unified memory",
    ("cuda", "memory"): "GPU memory",
    ("where", "waits"): "What tasks waited for",
    ("where", "gaps"): "When nothing was submitted",
    ("where", "chains"): "Chains of tasks that ran alone",
    ("cuda", "memory_holders"): "What held GPU memory",
    ("communication", "links"): "Between nodes",
    ("communication", "types"): "By type of result",
    ("memory", "prefixes"): "Results in memory by function",
    ("memory", "workers"): "Memory by worker",
    ("memory", "peak"): "What was held when most was held at once",
    ("memory", "over_time"): "Results in memory over time",
    ("memory", "spills"): "Written to disk and read back",
    ("memory", "duplicates"): "Results on several workers at once",
    ("memory", "kept"): "For whom results were kept",
    ("layers", "layers"): "Functions",
    ("layers", "edges"): "What goes between functions",
    ("collectives", "waiting"): "Ranks",
    ("collectives", "operations"): "Calls between ranks",
    ("collectives", "clocks"): "Clocks of the reports",
    ("efficiencies", "tree"): "Efficiencies, factor by factor",
    ("efficiencies", "workers"): "Useful time of workers' threads",
    ("efficiencies", "functions"): "Load balance of functions",
    ("efficiencies", "gpus"): "GPUs' time in kernels and copies",
    ("energy", "gpus"): "Energy of GPUs",
    ("energy", "nodes"): "Energy by node",
    ("energy", "functions"): "Energy by function",
    ("overhead", "costs"): "Cost of the recording",
}

#: Factors of table ``tree`` that are no plain words.
FACTORS: dict[str, str] = {
    "between_workers": "balance between workers",
    "within_workers": "balance within workers",
    "data": "data movement",
}

#: Who is at the other end of what a worker sent, where that is no worker that kept a journal.
NO_WORKER = "client or scheduler"


def column_name(analysis: str, table: str, column: str) -> str:
    """Name a column of an analysis's table for readers."""
    known = COLUMNS_OF.get((analysis, table), {}).get(column)
    if known is None and analysis == "where" and table != "summary":
        known = PART_WORDS.get(column)
    plain = known or COLUMNS.get(column) or column.replace("_", " ")
    return plain[:1].upper() + plain[1:]


def factor_name(factor: str) -> str:
    """Name a factor of a run's efficiency for readers."""
    plain = FACTORS.get(factor) or factor.replace("_", " ")
    return plain[:1].upper() + plain[1:]


def value_name(analysis: str, column: str, value: str) -> str:
    """Give a text of an analysis's table as readers call it: a part in the words of its bar."""
    if column == "part":
        return PART_WORDS.get(value, value.replace("_", " "))
    if analysis == "efficiencies" and column in ("factor", "parent"):
        return factor_name(value) if value else ""
    if analysis == "communication" and column in ("source", "target") and value == UNKNOWN:
        return NO_WORKER
    return value


def table_name(analysis: str, table: str) -> str:
    """Name a table of an analysis for readers."""
    plain = table.replace("_", " ")
    return TABLES.get((analysis, table)) or plain[:1].upper() + plain[1:]
