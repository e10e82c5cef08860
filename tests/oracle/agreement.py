"""What `tidegate compare` counts, counted a second time by DuckDB.

    agreement.py TIDEGATE LAKE PROJECT SNAPSHOTS [--seed N]

For every view of the computed example an old pipeline's table is made up from what the lake has: entities are missing,
others are strange, values are null, changed or a little off, some columns have other names and other types. Its rows are
once those of the newest interval and once the whole history. The counts, the largest and the mean difference must be those
that DuckDB finds in a full join, exactly and with tolerances; and the online store must agree in everything.
"""

import argparse
import datetime as dt
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from datasets import MICRO, TIME, published
from lake import read_with_duckdb
from oracle import Project, View

NUMBERS = ("integer", "bigint", "float", "double")
# Types that hold every value which the declared one has in the example.
OTHER_TYPES = {
    "integer": [pa.int32(), pa.int64(), pa.float64()],
    "bigint": [pa.int64(), pa.float64()],
    "double": [pa.float64(), pa.float32()],
    "string": [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    "timestamp": [TIME, pa.timestamp("ns", tz="UTC"), pa.timestamp("us")],
    "date": [pa.date32(), pa.date64()],
    "boolean": [pa.bool_()],
}
TOLERANCES = [("0", "false"), ("0.5", "abs({a} - {b}) <= 0.5"), ("10%", "abs({a} - {b}) <= 0.1 * greatest(abs({a}), abs({b}))")]


def changed(rng: random.Random, value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([-3, -1, 1, 1000])
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, dt.datetime):
        return value + MICRO
    if isinstance(value, dt.date):
        return value + dt.timedelta(days=1)
    if isinstance(value, list):
        return [*value, None]
    return value


def old_table(rng: random.Random, view: View, rows: list[dict]) -> tuple[pa.Table, dict[str, str]]:
    """What an old pipeline might have made of `rows`, and what it calls the features."""
    theirs = []
    for row in rows:
        if rng.random() < 0.05:
            continue
        row = dict(row)
        if rng.random() < 0.05:
            row[view.key_names[-1]] = f"nobody {len(theirs)}"
        for name, kind in view.features:
            luck = rng.random()
            if luck < 0.05:
                row[name] = None
            elif luck < 0.1:
                row[name] = changed(rng, row[name])
            elif luck < 0.15 and kind == "double" and row[name] is not None:
                row[name] += rng.uniform(-1, 1)
        theirs.append(row)
    rng.shuffle(theirs)
    names = {name: name.upper() if rng.random() < 0.5 else name for name, _ in view.features}
    kinds = {name: rng.choice(OTHER_TYPES[kind]) if kind in OTHER_TYPES else None for name, kind in view.features}
    columns = {name: pa.array([row[name] for row in theirs], pa.string()) for name in view.key_names}
    columns["event_timestamp"] = pa.array([row["event_timestamp"] for row in theirs], TIME)
    for name, _ in view.features:
        columns[names[name]] = pa.array([row[name] for row in theirs], kinds[name])
    columns["region"] = pa.nulls(len(theirs))
    return pa.table(columns), names


def by_duckdb(view: View, names: dict[str, str], ours: pa.Table, file: Path, keys: list[str], allowed: str) -> dict:
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.register("lake", ours)
    counts = []
    for name, kind in view.features:
        a, b = f'a."{name}"', f'b."{names[name]}"'
        near = allowed.format(a=a, b=b) if kind in NUMBERS else "false"
        agrees = f"({a} IS NOT DISTINCT FROM {b} OR coalesce({near}, false))"
        counts += [
            f"count(*) FILTER (a.here AND b.there AND {agrees})",
            f"count(*) FILTER (a.here AND b.there AND {a} IS NOT NULL AND {b} IS NOT NULL AND NOT {agrees})",
            f"count(*) FILTER (a.here AND b.there AND {a} IS NULL AND {b} IS NOT NULL)",
            f"count(*) FILTER (a.here AND b.there AND {a} IS NOT NULL AND {b} IS NULL)",
        ]
        distance = f"abs({a}::DOUBLE - {b}::DOUBLE)" if kind in NUMBERS else "NULL::DOUBLE"
        counts += [f"max({distance})", f"avg({distance})"]
    on = " AND ".join(f'a."{key}" = b."{key}"' for key in keys)
    (found,) = db.sql(
        f"""SELECT count(*) FILTER (a.here AND b.there), count(*) FILTER (b.there IS NULL), count(*) FILTER (a.here IS NULL),
            {", ".join(counts)} FROM (SELECT *, true AS here FROM lake) a
            FULL JOIN (SELECT *, true AS there FROM read_parquet('{file}')) b ON {on}"""
    ).fetchall()
    features = {name: found[3 + 6 * at : 9 + 6 * at] for at, (name, _) in enumerate(view.features)}
    return {"rows": found[:3], "features": features}


def compared(tidegate: str, project: Path, view: View, options: list[str]) -> dict:
    command = [tidegate, "--project", str(project), "--format", "json", "compare", view.id, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def close(one: float | None, other: float | None) -> bool:
    return one is other or one is not None and other is not None and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def check(view: View, wanted: dict, found: dict, what: str) -> int:
    rows = (found["rows_both"], found["rows_only_view"], found["rows_only_other"])
    assert rows == wanted["rows"], f"{view.id} {what}: DuckDB counts {wanted['rows']} rows, tidegate {rows}"
    assert found["features_only_other"] == ["region"] and not found["features_only_view"], found
    for feature in found["features"]:
        counts = tuple(feature[name] for name in ("equal", "different", "null_view", "null_other"))
        *expected, largest, mean = wanted["features"][feature["feature"]]
        where = f"{view.id}.{feature['feature']} {what}"
        assert counts == tuple(expected), f"{where}: DuckDB counts {expected}, tidegate {counts}"
        for name, value in (("largest_difference", largest), ("mean_difference", mean)):
            assert close(feature[name], value), f"{where}: {name} is {value} by DuckDB, {feature[name]} by tidegate"
    return len(found["features"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tidegate")
    parser.add_argument("lake", type=Path)
    parser.add_argument("project", type=Path)
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("--seed", type=int, default=20130308)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    project = Project(arguments.project)
    periods = published(json.loads(arguments.snapshots.read_text(encoding="utf-8")))
    features, differing, online = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for view in project.views.values():
            table = read_with_duckdb(arguments.lake / "features" / view.name / f"v{view.version}")
            history = table.to_pylist()
            start, end = periods[view.id][-1]
            if view.ttl is None:
                state = [row for row in history if row["interval_start"] == start]
            else:
                newest: dict[tuple, dict] = {}
                for row in sorted(history, key=lambda row: (row["event_timestamp"], row["interval_start"])):
                    if row["event_timestamp"] <= end < row["event_timestamp"] + view.ttl:
                        newest[tuple(row[name] for name in view.key_names)] = row
                state = list(newest.values())
            for what, rows, keys, options in [
                ("as of the newest interval", state, view.key_names, []),
                ("of all times", history, [*view.key_names, "event_timestamp"], ["--from", "2000-01-01"]),
            ]:
                theirs, names = old_table(rng, view, rows)
                file = Path(folder) / f"{view.name}.parquet"
                pq.write_table(theirs, file)
                renamed = ",".join(f"{theirs}={ours}" for ours, theirs in names.items() if ours != theirs)
                asked = [*options, "--with", str(file), *(["--columns", renamed] if renamed else [])]
                ours = pa.Table.from_pylist(rows, schema=table.schema)
                for tolerance, allowed in TOLERANCES:
                    wanted = by_duckdb(view, names, ours, file, keys, allowed)
                    found = compared(arguments.tidegate, arguments.project, view, [*asked, "--tolerance", tolerance])
                    features += check(view, wanted, found, f"{what}, tolerance {tolerance}")
                    differing += sum(feature["different"] for feature in found["features"])
            served = subprocess.run(
                [arguments.tidegate, "--project", str(arguments.project), "--format", "json", "compare", view.id]
                + ["--with", "online", "--min-agreement", "100"],
                capture_output=True,
                text=True,
                check=False,
            )
            if served.returncode != 0:
                # Of a view whose rows have all outlived their ttl by now nothing is left to compare.
                gone = view.ttl is not None and "nothing to compare" in served.stderr
                assert gone or "is not published online" in served.stderr, served.stderr
                continue
            found = json.loads(served.stdout)
            assert view.ttl is not None or found["rows_both"] == len(state), found
            assert (found["agreement"], found["entity_agreement"]) == (100.0, 100.0), found
            online += found["rows_both"]
    assert differing > 1_000, f"only {differing} values differ"
    print(
        f"{len(project.views)} views: {features} comparisons of a feature count {differing} differing values as DuckDB does; "
        f"{online} entities are online as in the lake"
    )


if __name__ == "__main__":
    main()
