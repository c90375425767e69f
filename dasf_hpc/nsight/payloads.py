"""Nsight, payloads of NVTX that are no integers: floating-point numbers, texts and structures.

Few ranges have one, so that only the rows that do are looked at one by one.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.sqlite import Names, encode

if TYPE_CHECKING:
    from dasf_hpc.nsight.sqlite import Export

Numbers = npt.NDArray[np.float64]

_TABLE = "NVTX_EVENTS"
_REAL = ("floatValue", "doubleValue")
_COLUMNS = (*_REAL, "jsonText", "jsonTextId", "binaryData")

#: Characters of a text that are kept.
LONGEST = 1000
#: Different texts of a report that are kept; the rest is `TOO_MANY`.
MOST = 50_000
TOO_MANY = '"(more different payloads than a trace keeps)"'
_ROWS_AT_ONCE = 100_000

#: What stands before a binary payload: domain, schema, size of the payload and of all, 64 bits
#: each. As published of reports of 2026.
_HEADER = struct.Struct("<QQQQ")
#: Type of a field, NVTX_PAYLOAD_ENTRY_TYPE_* of nvToolsExtPayload.h: how it is packed on Linux.
_TYPES: Mapping[int, str] = {
    1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "q", 8: "Q", 9: "q", 10: "Q",
    11: "b", 12: "B", 13: "h", 14: "H", 15: "i", 16: "I", 17: "q", 18: "Q",
    19: "f", 20: "d", 22: "Q", 23: "Q", 25: "B", 26: "H", 27: "I", 32: "B",
}  # fmt: skip


@dataclass(frozen=True)
class Payloads:
    """Payloads of some events that are no integers.

    Attributes
    ----------
    value
        Floating-point numbers, NaN for none.
    data
        Texts and structures, as JSON.
    """

    value: Numbers
    data: Names


def read_payloads(export: Export, count: int, where: str) -> Payloads:
    """Read the payloads of events that are no integers.

    Parameters
    ----------
    export
        The export.
    count
        How many events there are.
    where
        Which of the rows of ``NVTX_EVENTS`` they are, SQL; they are in order of rowid.

    Returns
    -------
    Payloads
        A text is cut to `LONGEST` characters; of a structure, fields that are one number each are
        kept.
    """
    value, index = np.full(count, np.nan), np.zeros(count, np.intp)
    code_of: dict[str, int] = {"": 0}
    columns = [c for c in _COLUMNS if c in export.columns.get(_TABLE, ())]
    used: list[str] = []
    if columns and count:
        any_of = ", ".join(f"max({column} IS NOT NULL)" for column in columns)
        (found,) = export.query(f"SELECT {any_of} FROM {_TABLE} WHERE {where}")
        used = [column for column, some in zip(columns, found, strict=True) if some]
    if not used:
        return Payloads(value, encode([""], index))
    row = export.numbers(_TABLE, {}, extra={"row": "rowid"}, where=where)["row"]
    schemas = _Schemas.of(export)
    for column in used:
        content, source = column, _TABLE
        if column == "jsonTextId":
            content = "StringIds.value"
            source = f"{_TABLE} JOIN StringIds ON StringIds.id = {_TABLE}.{column}"
        query = (
            f"SELECT {_TABLE}.rowid, {content} FROM {source} "
            f"WHERE ({where}) AND {column} IS NOT NULL"
        )
        for rows in _by_many(export, query):
            place = np.searchsorted(row, [number for number, _ in rows])
            if column in _REAL:
                value[place] = [v if isinstance(v, float | int) else np.nan for _, v in rows]
                continue
            codes = []
            for _, said in rows:
                text = schemas.json(said) if column == "binaryData" else str(said)
                if len(text) > LONGEST:
                    text = text[: LONGEST - 1] + "…"
                if text not in code_of and len(code_of) > MOST:
                    text = TOO_MANY
                codes.append(code_of.setdefault(text, len(code_of)))
            new = np.array(codes, np.intp)
            index[place] = np.where(new > 0, new, index[place])
    return Payloads(value, encode(list(code_of), index))


def _by_many(export: Export, query: str) -> Iterator[list[tuple[int, Any]]]:
    cursor = export.connection.execute(query)
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        yield rows


@dataclass(frozen=True)
class _Schemas:
    """How structures are packed.

    Attributes
    ----------
    fields
        By domain and schema: name, type and offset of each field that is one number.
    """

    fields: dict[tuple[int, int], list[tuple[str, int, int]]]

    @classmethod
    def of(cls, export: Export) -> _Schemas:
        """Read them; a report without has none."""
        table = "NVTX_PAYLOAD_SCHEMA_ENTRIES"
        wanted = ("domainId", "schemaId", "idx", "type", "name", "offset", "arrayOrUnionDetail")
        columns = export.columns.get(table, {})
        if not {"schemaId", "type", "name"} <= columns.keys():
            return cls({})
        selected = ", ".join(f'"{c}"' if c in columns else "NULL" for c in wanted)
        fields: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
        for domain, schema, _, kind, name, offset, several in export.query(
            f"SELECT {selected} FROM {table} ORDER BY 1, 2, 3"
        ):
            own = fields.setdefault((int(domain or 0), int(schema or 0)), [])
            if kind in _TYPES and not several:
                own.append((str(name or f"field {len(own)}"), int(kind), int(offset or 0)))
        return cls(fields)

    def json(self, content: object) -> str:
        """Write a binary payload as JSON; "" where its schema is not known, or it is damaged."""
        raw = content
        if isinstance(raw, str):
            with contextlib.suppress(ValueError):
                raw = bytes.fromhex(raw.removeprefix("0x"))
        if not isinstance(raw, bytes) or len(raw) < _HEADER.size:
            return ""
        domain, schema, _, _ = _HEADER.unpack_from(raw)
        # only the lower half of the ids is used
        key = (domain & 0xFFFFFFFF, schema & 0xFFFFFFFF)
        found: dict[str, float] = {}
        for name, kind, offset in self.fields.get(key, []):
            with contextlib.suppress(struct.error):
                (found[name],) = struct.unpack_from(f"<{_TYPES[kind]}", raw, _HEADER.size + offset)
        # JSON knows no infinity and no NaN
        plain = {n: v if np.isfinite(v) else None for n, v in found.items()}
        return json.dumps(plain, ensure_ascii=False) if plain else ""
