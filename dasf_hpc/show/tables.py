"""Show, as a folder of plain tables: a Parquet or a CSV file for each table of the trace.

Strings stand as strings, units and meanings with the columns (Parquet) or in ``columns.csv`` (CSV).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from dasf_hpc.show.timeline import facts, time_windows
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.schema import TABLES

#: Rows at once, of tables that have no order in time.
ROWS = 1 << 20


def write_csv(trace: Trace, folder: Path, told: Told) -> None:
    """Write a CSV file a table, one of the columns' units and meanings, and one of clock bounds."""
    for name in _tables(trace, told):
        first = True
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            for part in _parts(trace, name):
                part.to_csv(file, index_label="row", header=first)
                first = False
    with (folder / "columns.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "column", "unit", "meaning"])
        for name in trace.tables:
            for column, unit, meaning in _described(name):
                writer.writerow([name, column, unit, meaning])
    with (folder / "about.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "value"), *facts(trace).items()])


def write_parquet(trace: Trace, folder: Path, told: Told) -> None:
    """Write a Parquet file a table; its metadata holds units, meanings and clock bounds."""
    # only this export pays for loading it
    import pyarrow as arrow
    from pyarrow import parquet

    about = json.dumps(facts(trace))
    for name in _tables(trace, told):
        schema: Any = None
        writer: Any = None
        try:
            for part in _parts(trace, name):
                part.index.name = "row"
                part = part.reset_index()
                texts = part.select_dtypes("category").columns
                part = part.astype(dict.fromkeys(texts, "str"))
                table = arrow.Table.from_pandas(part, schema, preserve_index=False)
                if writer is None:
                    schema = _arrow_schema(arrow, table.schema, name, about)
                    table = table.cast(schema)
                    writer = parquet.ParquetWriter(folder / f"{name}.parquet", schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def _tables(trace: Trace, told: Told) -> Any:
    names = [name for name in trace.tables if name in TABLES]
    for number, name in enumerate(names):
        told(Step(f"Exporting: {name}", number, len(names)))
        yield name


def _parts(trace: Trace, name: str) -> Any:
    """Give a table's rows, in order of time where it has one, so many at once."""
    if TABLES[name].order is None:
        whole = trace.table(name)
        for first in range(0, max(1, len(whole)), ROWS):
            yield whole.iloc[first : first + ROWS]
        return
    for start, stop in time_windows(trace):
        yield trace.table(name, None, start, stop)


def _described(name: str) -> list[tuple[str, str, str]]:
    table = TABLES.get(name)
    if table is None:
        return []
    return [(c.name, c.unit, c.meaning) for c in (*table.derived, *table.columns)]


def _arrow_schema(arrow: Any, schema: Any, name: str, about: str) -> Any:
    """Put units and meanings with the columns, and make every column of strings one of text."""
    described = {column: (unit, meaning) for column, unit, meaning in _described(name)}
    fields = []
    for one in schema:
        unit, meaning = described.get(one.name, ("", "row number in the trace's table"))
        kind = arrow.string() if arrow.types.is_null(one.type) else one.type
        kind = arrow.string() if arrow.types.is_large_string(kind) else kind
        fields.append(arrow.field(one.name, kind, metadata={"unit": unit, "meaning": meaning}))
    return arrow.schema(fields, metadata={"table": TABLES[name].meaning, "about": about})
