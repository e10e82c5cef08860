"""Reads a feature table of the lake as other engines do, once with the Python package `deltalake` and once with DuckDB.

DuckDB reads Delta through an extension that has to be downloaded, which a test must not need. Where it is installed
already it is used. Elsewhere the table is put together here as the Delta protocol says: the log is replayed (files added
and not removed), DuckDB reads those Parquet files, and the partition value of each is what the log says of it.
"""

import json
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import DeltaTable


def read_with_deltalake(table: Path) -> pa.Table:
    return DeltaTable(str(table)).to_pyarrow_table()


def read_with_duckdb(table: Path) -> pa.Table:
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    if has_delta_extension(db):
        return db.sql("SELECT * FROM delta_scan(?)", params=[str(table)]).to_arrow_table()
    live, schema = replay(table)
    if not live:
        return pa.table({field["name"]: pa.array([], arrow_type(field["type"])) for field in schema["fields"]})
    db.execute("CREATE TABLE live (filename VARCHAR, interval_start TIMESTAMPTZ)")
    db.executemany("INSERT INTO live VALUES (?, ?)", live)
    return db.sql(
        """SELECT * EXCLUDE (filename)
           FROM read_parquet(?, filename = true, hive_partitioning = false, union_by_name = true)
           JOIN live USING (filename)""",
        params=[[name for name, _ in live]],
    ).to_arrow_table()


def has_delta_extension(db: duckdb.DuckDBPyConnection) -> bool:
    installed = "SELECT count(*) FROM duckdb_extensions() WHERE extension_name = 'delta' AND installed"
    return db.execute(installed).fetchone()[0] > 0


def replay(table: Path) -> tuple[list[list[str]], dict]:
    """The live files with their partition values, and the schema."""
    live: dict[str, str] = {}
    schema: dict = {}
    commits = sorted((table / "_delta_log").glob("[0-9]*.json"))
    # Tidegate keeps the whole log; if its start were gone, what follows would be half a table.
    assert [int(c.stem) for c in commits] == list(range(len(commits))) and commits, f"{table} has not its whole log"
    for commit in commits:
        for line in commit.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "metaData" in action:
                schema = json.loads(action["metaData"]["schemaString"])
            if "remove" in action:
                live.pop(action["remove"]["path"], None)
            if "add" in action:
                add = action["add"]
                assert not add.get("deletionVector"), f"{table} has deletion vectors"
                live[add["path"]] = add["partitionValues"]["interval_start"]
    return [[str(table / unquote(path)), value] for path, value in live.items()], schema


def arrow_type(name: str) -> pa.DataType:
    simple = {"string": pa.string(), "boolean": pa.bool_(), "integer": pa.int32(), "long": pa.int64(), "float": pa.float32()}
    more = {"double": pa.float64(), "date": pa.date32(), "timestamp": pa.timestamp("us", tz="UTC")}
    return (simple | more)[name] if isinstance(name, str) else pa.list_(arrow_type(name["elementType"]))


READERS = {"deltalake": read_with_deltalake, "DuckDB": read_with_duckdb}
