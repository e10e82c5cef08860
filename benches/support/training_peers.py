"""The same training set by DuckDB and Polars, and whether results are equal. Called by `benches/training.rs`."""

import resource
import sys
import time
from pathlib import Path

FEATURES = [f"f{number}" for number in range(8)]


def duckdb(folder: Path) -> None:
    import duckdb

    features = ", ".join(
        f"CASE WHEN l.event_timestamp < h.event_timestamp + INTERVAL 720 HOUR THEN h.{name} END AS {name}"
        for name in FEATURES
    )
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.execute(
        f"""
        COPY (
            SELECT l.row, l.entity, l.event_timestamp, {features}
            FROM read_parquet('{folder}/labels.parquet') AS l
            ASOF LEFT JOIN read_parquet('{folder}/history.parquet') AS h
            ON l.entity = h.entity AND l.event_timestamp >= h.event_timestamp
        ) TO '{folder}/out-duckdb.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)
        """
    )


def polars(folder: Path) -> None:
    import polars

    labels = polars.scan_parquet(folder / "labels.parquet").sort("event_timestamp")
    history = polars.scan_parquet(folder / "history.parquet").select("entity", "event_timestamp", *FEATURES)
    labels.join_asof(
        history.sort("event_timestamp"), on="event_timestamp", by="entity", strategy="backward", tolerance="30d"
    ).sink_parquet(folder / "out-polars.parquet", compression="zstd", compression_level=1)


def compare(outputs: list[str]) -> None:
    """Whether the files hold the same rows, whatever their order."""
    import duckdb

    columns = ", ".join(["row", *FEATURES])
    counts = ", ".join(f"count({name})" for name in FEATURES)
    found = {
        path: duckdb.execute(
            f"SELECT count(*), sum(hash({columns})::HUGEINT), {counts} FROM read_parquet('{path}')"
        ).fetchone()
        for path in outputs
    }
    if len(set(found.values())) == 1:
        rows, _, matched, *_ = next(iter(found.values()))
        print(f"equal: {rows} rows, {matched} with features, in {len(found)} outputs")
    else:
        print(f"different: {found}")


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "versions":
        import duckdb as first
        import polars as second

        print(f"DuckDB {first.__version__}, Polars {second.__version__}")
    elif what == "compare":
        compare(rest)
    else:
        started = time.perf_counter()
        {"duckdb": duckdb, "polars": polars}[what](Path(rest[0]))
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


main()
