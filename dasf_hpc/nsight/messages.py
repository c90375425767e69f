"""Nsight, what went between ranks: calls of MPI, UCX and NCCL, from tables or NVTX ranges.

From 2023 on nsys has tables of MPI's and UCX's calls; before, and for NCCL in every version, the
calls are NVTX ranges in a domain of the library's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dasf_hpc.nsight.attribute import grouped
from dasf_hpc.nsight.sqlite import NONE, Export, Integers, Names, encode

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

MPI, UCX, NCCL = "MPI", "UCX", "NCCL"

#: Libraries in the order of their codes here.
LIBRARIES = (MPI, UCX, NCCL)

#: Domains of NVTX that hold a library's calls, and how the names of the calls begin.
_DOMAINS = {"MPI": (MPI, "MPI_"), "UCX": (UCX, "uc"), "UCP": (UCX, "uc"), "NCCL": (NCCL, "nccl")}

_MPI_TABLES = (
    "MPI_COLLECTIVES_EVENTS",
    "MPI_P2P_EVENTS",
    "MPI_START_WAIT_EVENTS",
    "MPI_OTHER_EVENTS",
)
_UCX_TABLES = ("UCP_SUBMIT_EVENTS", "UCP_PROGRESS_EVENTS", "UCP_EVENTS")

#: Tables that an export has where calls of a library were traced, whether or not with rows.
TRACED_BY = (*_MPI_TABLES, "MPI_RANKS", *_UCX_TABLES, "UCP_WORKERS")

_RECEIVES = re.compile(r"(?i)recv|_get\b|_get_n|Rget|Gatherv?$")
_ONLY_RECEIVES = re.compile(r"(?i)^MPI_I?m?recv|^MPI_Recv|recv_n|_recv|_get_n|_get_|^ncclRecv")

#: Type of an NVTX event, and of the event by which nsys names a thread.
_RANGES, _DOMAIN, _THREAD = "(59, 60)", 75, 39


@dataclass(frozen=True)
class Messages:
    """Calls of a report, in the order of their tables; -1 is what is not told.

    Attributes
    ----------
    pid, tid, start, stop
        Who called, and when: session time, ns.
    library
        Place in `LIBRARIES`.
    operation
        The function's name.
    sent, received
        Bytes.
    communicator
        Its number in the whole job where nsys knows one, else its handle in the process.
    everywhere
        Whether that number means the same communicator in every process.
    peer
        The other rank of a message between two, or the other worker's number of UCX.
    root
        The rank from which, or to which, a collective goes, in its communicator.
    rank
        The caller's own, in the communicator where that is known, else of all.
    collective
        Whether every rank of the communicator takes part.
    """

    pid: Integers
    tid: Integers
    start: Integers
    stop: Integers
    library: Integers
    operation: Names
    sent: Integers
    received: Integers
    communicator: Integers
    everywhere: Integers
    peer: Integers
    root: Integers
    rank: Integers
    collective: Integers

    def __len__(self) -> int:
        """Give the number of calls."""
        return len(self.start)


def read_messages(sqlite: Path) -> Messages:
    """Read the calls of MPI, UCX and NCCL that an export holds.

    Raises
    ------
    NsightError
        If the export is missing, none, or damaged.
    """
    with Export.opened(sqlite) as export:
        domains = _domains(export)
        ranks = _ranks(export, MPI in domains.values())
        found = [*_mpi(export, ranks), *_ucx(export), *_nvtx(export, ranks, domains)]
    return _together(found)


# ------------------------------------------------------------------------------------- tables

_CALL = {
    "pid": ("globalTid", NONE),
    "tid": ("globalTid", NONE),
    "start": ("start", NONE),
    "stop": ("end", NONE),
    "text": ("textId", NONE),
}


def _mpi(export: Export, ranks: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Read MPI's tables, of those that there are."""
    more = {
        "communicator": ("commHandle", NONE),
        "peer": ("remoteRank", NONE),
        "root": ("rootRank", NONE),
        "size": ("size", NONE),
        "received": ("recvSize", NONE),
    }
    communicators = _Communicators(export)
    for table in _MPI_TABLES:
        call: dict[str, Any] = dict(export.numbers(table, _CALL | more))
        count = len(call["start"])
        if not count:
            continue
        names = export.strings(call.pop("text"))
        call |= {"library": np.full(count, LIBRARIES.index(MPI)), "operation": names}
        call["rank"] = _of_process(call["pid"], ranks)
        call["collective"] = np.full(count, table == "MPI_COLLECTIVES_EVENTS")
        call["everywhere"] = np.zeros(count, bool)
        communicators.resolve(call)
        call["sent"] = call.pop("size")
        _directed(call)
        yield call


def _directed(call: dict[str, Any]) -> None:
    """Put a size that stands for one direction where it belongs."""
    names, sent, received = call["operation"], call["sent"], call["received"]
    for code, name in enumerate(names.categories.tolist()):
        rows = names.codes == code
        if _ONLY_RECEIVES.search(name) and not re.search(r"(?i)sendrecv", name):
            taken = rows & (received == NONE)
            received[taken], sent[taken] = sent[taken], NONE
        elif re.fullmatch(r"MPI_I?bcast|ncclBroadcast|ncclBcast", name, re.IGNORECASE):
            # the root sends, the others receive; where neither is told it is left as it stands
            taken = rows & (call["root"] != NONE) & (call["rank"] != NONE)
            taken &= (call["root"] != call["rank"]) & (received == NONE)
            received[taken], sent[taken] = sent[taken], NONE


class _Communicators:
    """What table MPI_COMMUNICATORS tells, which newer nsys write."""

    def __init__(self, export: Export) -> None:
        columns = {
            "rank": ("rank", NONE),
            "time": ("timestamp", NONE),
            "handle": ("commHandle", NONE),
            "local": ("localRank", NONE),
            "root": ("groupRoot", NONE),
            "root_uid": ("groupRootUid", NONE),
            "uid": ("commUid", NONE),
        }
        self._told: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        found = export.numbers("MPI_COMMUNICATORS", columns)
        rows = zip(*(found[name].tolist() for name in columns), strict=True)
        for rank, time, handle, local, root, root_uid, uid in rows:
            number = uid
            if number == NONE and root != NONE and root_uid != NONE:
                # its number in the process of the group's root, and that process
                number = (root & 0x7FFFFFFF) << 32 | (root_uid & 0xFFFFFFFF)
            if number != NONE:
                self._told.setdefault((rank, handle), []).append((time, number, local))

    def resolve(self, call: dict[str, Any]) -> None:
        """Replace handles of processes by numbers of the job, and ranks by those in it."""
        if not self._told:
            return
        handles, ranks = call["communicator"].astype(np.int64), call["rank"].astype(np.int64)
        found, local = handles.copy(), ranks.copy()
        for rank, places in grouped(ranks):
            for handle, own in grouped(handles[places]):
                told = sorted(self._told.get((rank, handle), ()))
                if not told:
                    continue
                rows = places[own]
                # a handle may come again for another communicator
                times = np.array([time for time, _, _ in told])
                which = np.searchsorted(times, call["start"][rows], side="right") - 1
                which = np.maximum(which, 0) if len(told) == 1 else which
                known = which >= 0
                numbers = np.array([number for _, number, _ in told], np.int64)
                locals_ = np.array([place for _, _, place in told], np.int64)
                found[rows[known]] = numbers[which[known]]
                call["everywhere"][rows[known]] = True
                placed = known & (locals_[which] != NONE)
                local[rows[placed]] = locals_[which[placed]]
        call["communicator"], call["rank"] = found, local


def _ranks(export: Export, ranges: bool) -> dict[int, int]:
    """Give the rank of each process, by table MPI_RANKS, or for ranges the names of threads."""
    found = export.numbers("MPI_RANKS", {"pid": ("globalTid", NONE), "rank": ("rank", NONE)})
    ranks = dict(zip(found["pid"].tolist(), found["rank"].tolist(), strict=True))
    if (
        ranks
        or not ranges
        or not {"text", "globalTid", "eventType"} <= export.columns.get("NVTX_EVENTS", {}).keys()
    ):
        return ranks
    named = export.query(
        "SELECT (globalTid >> 24) & 0xffffff, text FROM NVTX_EVENTS "
        f"WHERE eventType = {_THREAD} AND text LIKE 'MPI Rank %' AND globalTid IS NOT NULL"
    )
    for pid, text in named:
        number = str(text).removeprefix("MPI Rank ").strip()
        if number.isdecimal():
            ranks[int(pid)] = int(number)
    return ranks


def _of_process(pid: Integers, values: Mapping[int, int]) -> Integers:
    found = np.full(len(pid), NONE, np.int64)
    for number, rows in grouped(pid):
        found[rows] = values.get(number, NONE)
    return found


def _ucx(export: Export) -> Iterator[dict[str, Any]]:
    """Read UCX's tables, of those that there are."""
    more = {"peer": ("peerWorkerUid", NONE), "sent": ("packedSize", NONE)}
    for table in _UCX_TABLES:
        call: dict[str, Any] = dict(export.numbers(table, _CALL | more))
        count = len(call["start"])
        if not count:
            continue
        call["operation"] = export.strings(call.pop("text"))
        call["library"] = np.full(count, LIBRARIES.index(UCX))
        for name in ("received", "communicator", "root", "rank"):
            call[name] = np.full(count, NONE)
        call["everywhere"] = call["collective"] = np.zeros(count, bool)
        _directed(call)
        yield call


# --------------------------------------------------------------------------------- NVTX ranges


def _nvtx(
    export: Export, ranks: Mapping[int, int], domains: Mapping[tuple[int, int], str]
) -> Iterator[dict[str, Any]]:
    """Read the ranges of libraries' domains."""
    table = "NVTX_EVENTS"
    if not domains:
        return
    numbers = ", ".join(str(number) for _, number in sorted(domains))
    where = f"eventType IN {_RANGES} AND domainId IN ({numbers})"
    columns = _CALL | {"domain": ("domainId", NONE)}
    call: dict[str, Any] = dict(export.numbers(table, columns, where=where))
    texts = export.strings(call.pop("text"), export.inline_texts(table, where))
    code = np.full(len(call["start"]), NONE)
    named = texts.values()
    tabled = {
        MPI: any(name in export.columns for name in _MPI_TABLES),
        UCX: any(name in export.columns for name in _UCX_TABLES),
    }
    for pid, rows in grouped(call["pid"]):
        for number, own in grouped(call["domain"][rows]):
            domain = domains.get((pid, number))
            if domain is None:
                continue
            library, begin = _DOMAINS[domain]
            if tabled.get(library):
                continue  # then these are the same calls
            places = rows[own]
            fits = [str(text).startswith(begin) for text in named[places]]
            code[places[np.array(fits, bool)]] = LIBRARIES.index(library)
    chosen = np.flatnonzero(code != NONE)
    if not len(chosen):
        return
    del call["domain"]
    call = {name: values[chosen] for name, values in call.items()}
    count = len(chosen)
    call |= {"library": code[chosen], "operation": texts[chosen]}
    call["rank"] = _of_process(call["pid"], ranks)
    for name in ("sent", "received", "communicator", "peer", "root"):
        call[name] = np.full(count, NONE, np.int64)
    call["everywhere"] = np.zeros(count, bool)
    call["collective"] = _is_collective(call["operation"])
    nccl = call["library"] == LIBRARIES.index(NCCL)
    if nccl.any():
        call["rank"] = np.where(nccl, NONE, call["rank"])
        _payloads(export, where, chosen, nccl, call)
    yield call


def _domains(export: Export) -> dict[tuple[int, int], str]:
    """Give the libraries' domains by process and number."""
    columns = export.columns.get("NVTX_EVENTS", {})
    if not {"domainId", "globalTid", "eventType"} <= columns.keys():
        return {}
    text = "n.text" if "text" in columns else "NULL"
    said = "n.textId" if "textId" in columns else "NULL"
    rows = export.query(
        f"SELECT (n.globalTid >> 24) & 0xffffff, n.domainId, coalesce({text}, s.value) "
        f"FROM NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = {said} "
        f"WHERE n.eventType = {_DOMAIN} AND n.globalTid IS NOT NULL AND n.domainId IS NOT NULL"
    )
    return {(int(pid), int(n)): str(name) for pid, n, name in rows if str(name) in _DOMAINS}


#: The collectives of MPI and NCCL that wait for their end.
_COLLECTIVE = re.compile(
    r"MPI_(Barrier|Bcast|(All)?(gather|reduce|toall)[vw]?|Gatherv?|Reduce|Scatterv?"
    r"|Reduce_scatter(_block)?|Scan|Exscan)"
    r"|nccl(AllReduce|Broadcast|Bcast|Reduce|AllGather|ReduceScatter|AlltoAll|AllToAll|Gather|Scatter)",
    re.IGNORECASE,
)


def _is_collective(names: Names) -> Integers:
    fits = [bool(_COLLECTIVE.fullmatch(str(name))) for name in names.categories.tolist()]
    found: Integers = np.append(np.array(fits, bool), False)[names.codes]
    return found


#: What NCCL calls the parts of its payload, in lower case, and ours.
_PARTS = {
    "message size [bytes]": "sent",
    "nccl communicator id": "communicator",
    "root": "root",
    "peer rank": "peer",
    "rank": "rank",
}


#: Payloads that are looked at together.
_AT_ONCE = 1 << 16


def _payloads(
    export: Export, where: str, chosen: Integers, nccl: Integers, call: dict[str, Any]
) -> None:
    """Read what NCCL's ranges carry: bytes, communicator, root or peer."""
    columns = export.columns.get("NVTX_EVENTS", {})
    wanted = [name for name in ("jsonText", "jsonTextId", "binaryData") if name in columns]
    if not wanted:
        return
    layouts = _layouts(export)
    parts = {part: np.full(len(chosen), NONE, np.int64) for part in set(_PARTS.values())}
    cursor = export.connection.execute(
        f"SELECT {', '.join(wanted)} FROM NVTX_EVENTS WHERE {where} ORDER BY rowid"
    )
    first = 0
    while batch := cursor.fetchmany(_AT_ONCE):
        number = np.arange(first, first + len(batch))
        first += len(batch)
        places = np.minimum(np.searchsorted(chosen, number), len(chosen) - 1)
        own = np.flatnonzero((chosen[places] == number) & nccl[places])
        for column, name in enumerate(wanted):
            values = [(int(places[row]), batch[row][column]) for row in own.tolist()]
            values = [(place, value) for place, value in values if value is not None]
            if name == "binaryData":
                _put_binary(values, layouts, parts)
            else:
                _put_json(export, values, name == "jsonTextId", parts)
    told = parts.pop("rank")
    for part, numbers in parts.items():
        call[part] = np.where(nccl & (numbers != NONE), numbers, call[part])
    # of its communicator each process tells its rank once, when it makes it
    communicator = call["communicator"]
    makes = np.flatnonzero(nccl & (told != NONE) & (communicator != NONE))
    own_rank = dict(
        zip(
            zip(call["pid"][makes].tolist(), communicator[makes].tolist(), strict=True),
            told[makes].tolist(),
            strict=True,
        )
    )
    ours = np.flatnonzero(nccl)
    for pid, rows in grouped(call["pid"][ours]):
        for uid, inner in grouped(communicator[ours[rows]]):
            call["rank"][ours[rows[inner]]] = own_rank.get((pid, uid), NONE)
    # NCCL's number of a communicator is a hash that all its ranks share
    call["everywhere"] |= nccl & (communicator != NONE)
    names = call["operation"].values()
    receives = np.array([str(name) == "ncclRecv" for name in names], bool) & nccl
    receives &= call["sent"] != NONE
    call["received"][receives], call["sent"][receives] = call["sent"][receives], NONE


def _put_json(
    export: Export, values: Sequence[tuple[int, Any]], by_id: bool, parts: dict[str, Integers]
) -> None:
    """Put what texts of JSON tell where it belongs; each distinct one is read once."""
    rows: dict[Any, list[int]] = {}
    for place, value in values:
        rows.setdefault(value, []).append(place)
    for value, places in rows.items():
        text = value
        if by_id:
            found = export.connection.execute("SELECT value FROM StringIds WHERE id = ?", (value,))
            text = (found.fetchone() or ("",))[0]
        for part, number in _json(text).items():
            parts[part][places] = number


def _signed(number: int) -> int:
    """Give a number of 64 bits as the column holds it."""
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number >> 63 else number


def _json(text: Any) -> dict[str, int]:
    try:
        told = json.loads(text)
    except (TypeError, ValueError):
        return {}
    found = {}
    for name, value in told.items() if isinstance(told, dict) else ():
        part = _PARTS.get(str(name).lower())
        if part is not None and isinstance(value, int):
            found[part] = _signed(value)
    return found


def _layouts(export: Export) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Give where the parts of payloads stand: by domain and schema, name and offset."""
    table = "NVTX_PAYLOAD_SCHEMA_ENTRIES"
    if not {"domainId", "schemaId", "name", "offset"} <= export.columns.get(table, {}).keys():
        return {}
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for domain, schema, name, offset in export.query(
        f"SELECT domainId, schemaId, name, offset FROM {table}"
    ):
        part = _PARTS.get(str(name).lower())
        place = (domain, schema, offset)
        if part is not None and all(isinstance(n, int) for n in place) and offset >= 0:
            found.setdefault((domain, schema), []).append((part, offset))
    return found


#: Bytes of the parts of NCCL's payloads: sizes and communicators are 64 bits, ranks 32.
_WIDTHS = {"sent": 8, "communicator": 8, "root": 4, "peer": 4, "rank": 4}

#: Before a payload stand its domain, schema, length and begin, each of 64 bits. Taken from what
#: other readers of such exports expect: no nsys that writes them was at hand.
_HEADER = 32


def _put_binary(
    values: Sequence[tuple[int, Any]],
    layouts: Mapping[tuple[int, int], Sequence[tuple[str, int]]],
    parts: dict[str, Integers],
) -> None:
    """Put what binary payloads tell where it belongs; those of one length are read together."""
    of_length: dict[int, tuple[list[int], list[bytes]]] = {}
    for place, value in values:
        raw = _bytes(value)
        if len(raw) >= _HEADER:
            places, payloads = of_length.setdefault(len(raw), ([], []))
            places.append(place)
            payloads.append(raw)
    for length, (places, payloads) in of_length.items():
        data = np.frombuffer(b"".join(payloads), np.uint8).reshape(-1, length)
        header = _numbers(data, 0, _HEADER, "<u8").astype(np.int64)
        for (domain, schema), layout in layouts.items():
            same = (header[:, 0] == domain) & (header[:, 1] == schema)
            for begin in np.unique(header[same, 3]).tolist():
                rows = np.flatnonzero(same & (header[:, 3] == begin))
                for part, offset in layout:
                    at, width = begin + offset, _WIDTHS[part]
                    if at >= _HEADER and at + width <= length:
                        kind = "<i8" if width == 8 else "<i4"
                        found = _numbers(data[rows], at, width, kind)
                        parts[part][np.array(places)[rows]] = found[:, 0]


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            return b""
    return value if isinstance(value, bytes) else b""


def _numbers(data: Integers, at: int, width: int, kind: str) -> Integers:
    """Read numbers that begin at a byte of each row."""
    return np.ascontiguousarray(data[:, at : at + width]).view(kind)


def _together(parts: Sequence[dict[str, Any]]) -> Messages:
    """Put calls of several tables together."""
    categories: list[str] = []
    codes = []
    for part in parts:
        names = part["operation"]
        codes.append(np.where(names.codes >= 0, names.codes + len(categories), NONE))
        categories += names.categories.tolist()
    index = np.concatenate(codes) if codes else np.empty(0, np.int64)
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, np.int64)
        for name in Messages.__dataclass_fields__
        if name != "operation"
    }
    limit = np.iinfo(np.int32).max
    for name in ("rank", "root"):
        # no job has as many: something else stands there
        columns[name] = np.where(np.abs(columns[name]) > limit, NONE, columns[name])
        columns[name] = columns[name].astype(np.int32)
    # the last one stands for -1
    return Messages(operation=encode([*categories, ""], index), **columns)


# --------------------------------------------------------------------------------- into a trace


def place(placing: Placing) -> None:
    """Put a report's messages into files."""
    report = placing.report
    domains = set(report.ranges.domain.categories.tolist())
    if not report.tables & set(TRACED_BY) and not domains & _DOMAINS.keys():
        return
    found = read_messages(report.sqlite)
    matched = placing.tie.of(len(found))
    count = len(found)
    if not count:
        return
    pid, start, stop = found.pid, found.start.copy(), found.stop.copy()
    process = placing.process(pid)
    placing.times(pid, start, stop)
    task, _ = placing.task_at(pid, found.tid, start)
    strings = placing.additions.strings("message_libraries")
    libraries = strings.codes(LIBRARIES).astype(np.int8)
    placing.spool(
        "messages",
        {
            "process": process,
            "thread": found.tid,
            "start": start,
            "stop": stop,
            "library": libraries[found.library],
            "operation": placing.additions.names("message_operations", found.operation),
            "sent": found.sent,
            "received": found.received,
            "communicator": found.communicator,
            "peer": found.peer,
            "root": found.root,
            "rank": found.rank,
            "collective": matched,
            "task": task,
        },
    )
