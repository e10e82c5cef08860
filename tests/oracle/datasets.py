"""Datasets of the computed example, worked out three more times: by DuckDB, by Polars, and row by row in Python.

    datasets.py TIDEGATE LAKE PROJECT SNAPSHOTS [--labels N] [--seed N]

Labels are drawn at random for every view of the project: keys that exist, keys that do not, nulls, duplicates; instants
anywhere, at the very end of an interval, at the very instant of a row and of its expiry, and a microsecond to either side,
the hours around the change to daylight saving time among them. `tidegate dataset build` joins them with all features of
the view, then with those of several views at once. Every value must be the same, in the order of the labels.
"""

import argparse
import datetime as dt
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lake import read_with_duckdb
from oracle import UTC, Project, View

MICRO = dt.timedelta(microseconds=1)
TIME = pa.timestamp("us", tz="UTC")
Period = tuple[dt.datetime, dt.datetime]


def instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def published(snapshots: list[dict]) -> dict[str, list[Period]]:
    """Per view its published intervals, oldest first."""
    found: dict[str, set[Period]] = {}
    for snapshot in snapshots:
        interval = (instant(snapshot["interval_start"]), instant(snapshot["interval_end"]))
        for view in snapshot["views"]:
            found.setdefault(view["view"], set()).add(interval)
    return {view: sorted(intervals, key=lambda interval: interval[1]) for view, intervals in found.items()}


def draw(rng: random.Random, view: View, rows: list[dict], periods: list[Period], count: int) -> pa.Table:
    """Labels for `view`, most of which see something."""
    moments = [end for _, end in periods]
    times = [row["event_timestamp"] for row in rows]
    first, last = min(moments), max(moments)
    labels = []
    for _ in range(count):
        row = rng.choice(rows)
        keys = [row[name] for name in view.key_names]
        if rng.random() < 0.05:
            keys[rng.randrange(len(keys))] = None
        elif rng.random() < 0.05:
            keys[rng.randrange(len(keys))] = "nobody"
        at = rng.choice(
            [
                first + (last - first) * rng.uniform(-0.1, 1.1),
                rng.choice(moments),
                rng.choice(times),
                row["event_timestamp"],
                row["event_timestamp"] + (view.ttl or dt.timedelta(days=1)),
                # two o'clock in New York does not exist on that day
                dt.datetime(2013, 3, 10, 6, tzinfo=UTC) + dt.timedelta(minutes=rng.randrange(120)),
            ]
        )
        labels.append([*keys, at + MICRO * rng.choice([-1, 0, 0, 0, 1])])
        if rng.random() < 0.05:
            labels.append(list(labels[-1]))
    names = [*view.key_names, "event_timestamp"]
    columns = [
        pa.array([label[at] for label in labels], TIME if name == "event_timestamp" else pa.string())
        for at, name in enumerate(names)
    ]
    return pa.table([*columns, pa.array(range(len(labels)), pa.int64())], [*names, "label"])


def by_duckdb(view: View, spine: pa.Table, table: pa.Table, periods: list[Period]) -> list[list]:
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.register("spine", spine)
    db.register("rows", table)
    features = ", ".join(f'"{name}"' for name, _ in view.features)
    keys = " AND ".join(f's."{name}" = r."{name}"' for name in view.key_names)
    if view.ttl is None:
        db.register(
            "periods",
            pa.table(
                {
                    "interval_start": pa.array([start for start, _ in periods], TIME),
                    "available": pa.array([end for _, end in periods], TIME),
                }
            ),
        )
        query = f"""SELECT {features} FROM (SELECT s.*, p.interval_start AS period FROM spine s
                    ASOF LEFT JOIN periods p ON s.event_timestamp >= p.available) s
                    LEFT JOIN rows r ON r.interval_start = s.period AND {keys} ORDER BY s.label"""
    else:
        partition = ", ".join(f'"{name}"' for name in view.key_names)
        alive = f"s.event_timestamp < r.event_timestamp + INTERVAL '{int(view.ttl.total_seconds())} seconds'"
        cases = ", ".join(f'CASE WHEN {alive} THEN r."{name}" END' for name, _ in view.features)
        query = f"""SELECT {cases} FROM spine s ASOF LEFT JOIN (SELECT * FROM rows QUALIFY row_number() OVER (
                    PARTITION BY {partition}, event_timestamp ORDER BY interval_start DESC) = 1) r
                    ON {keys} AND s.event_timestamp >= r.event_timestamp ORDER BY s.label"""
    columns = [column.to_pylist() for column in db.sql(query).to_arrow_table().columns]
    return [list(row) for row in zip(*columns, strict=True)]


def by_polars(view: View, spine: pa.Table, table: pa.Table, periods: list[Period]) -> list[list]:
    labels, rows = pl.from_arrow(spine), pl.from_arrow(table)
    features = [name for name, _ in view.features]
    if view.ttl is None:
        known = (
            pl.DataFrame({"interval_start": [start for start, _ in periods], "available": [end for _, end in periods]})
            .with_columns(pl.col("interval_start", "available").cast(pl.Datetime("us", "UTC")))
            .sort("available")
        )
        dated = labels.sort("event_timestamp").join_asof(known, left_on="event_timestamp", right_on="available")
        wanted = rows.select("interval_start", *view.key_names, *features).with_columns(
            pl.col("interval_start").cast(pl.Datetime("us", "UTC"))
        )
        joined = dated.join(wanted, on=["interval_start", *view.key_names], how="left")
    else:
        newest = rows.sort("event_timestamp", "interval_start").unique(
            [*view.key_names, "event_timestamp"], keep="last", maintain_order=True
        )
        newest = newest.select(
            *view.key_names, *features, pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")).alias("at")
        )
        joined = labels.sort("event_timestamp").join_asof(
            newest.sort("at"), left_on="event_timestamp", right_on="at", by=view.key_names, check_sortedness=False
        )
        # Polars joins null keys with nothing, as it should; what has expired is no feature any more.
        alive = pl.col("event_timestamp") < pl.col("at") + view.ttl
        joined = joined.with_columns([pl.when(alive).then(pl.col(name)).alias(name) for name in features])
    return [list(row) for row in joined.sort("label").select(features).iter_rows()]


def by_hand(view: View, spine: pa.Table, rows: list[dict], periods: list[Period]) -> list[list]:
    """The rule as it is written, one label after the other."""
    of_key: dict[tuple, list[dict]] = {}
    for row in rows:
        of_key.setdefault(tuple(row[name] for name in view.key_names), []).append(row)
    found = []
    for label in spine.to_pylist():
        at, seen = label["event_timestamp"], None
        mine = of_key.get(tuple(label[name] for name in view.key_names), [])
        if view.ttl is None:
            over = [start for start, end in periods if end <= at]
            seen = next((row for row in mine if over and row["interval_start"] == over[-1]), None)
        else:
            past = [row for row in mine if row["event_timestamp"] <= at]
            newest = max(past, key=lambda row: (row["event_timestamp"], row["interval_start"]), default=None)
            if newest is not None and at < newest["event_timestamp"] + view.ttl:
                seen = newest
        found.append([None if seen is None else seen[name] for name, _ in view.features])
    return found


def build(tidegate: str, project: Path, spine: pa.Table, features: str, folder: Path) -> pa.Table:
    labels, out = folder / "labels.parquet", folder / "out.parquet"
    pq.write_table(spine, labels)
    out.unlink(missing_ok=True)
    command = [
        tidegate,
        "--project",
        str(project),
        "dataset",
        "build",
        "--spine",
        str(labels),
        "--features",
        features,
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return pq.read_table(out)


def same(wanted: list[list], built: pa.Table, names: list[str], by: str) -> int:
    """How many values were compared; stops at the first that differs."""
    columns = [built.column(name).to_pylist() for name in names]
    for label, row in enumerate(wanted):
        for name, column, value in zip(names, columns, row, strict=True):
            got = column[label]
            if isinstance(value, dt.datetime) and value.tzinfo is None:
                value = value.replace(tzinfo=UTC)
            if got != value and not (got != got and value != value):
                sys.exit(
                    f"label {label}, {name}: {by} says {value!r}, the dataset {got!r}\n{built.slice(label, 1).to_pylist()}"
                )
    return len(wanted) * len(names)


def of_text(text: str | None, like: object) -> object:
    """What an online text says, as a value of the kind of `like`."""
    if text is None or like is None:
        return text
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text)
    if isinstance(like, dt.datetime):
        return instant(text)
    if isinstance(like, dt.date):
        return dt.date.fromisoformat(text)
    if isinstance(like, list):
        return json.loads(text)
    return type(like)(text)


def online_is_the_dataset(
    tidegate: str, project: Path, views: list[View], ends: dict[str, dt.datetime], folder: Path
) -> int:
    """What readers are given online after the newest interval is what a label at its end sees; how many entities that were."""
    db = sqlite3.connect(f"file:{project}/.tidegate/online.db?mode=ro", uri=True)
    entities = 0
    for view in views:
        at = ends[view.id]
        micros = (at - dt.datetime(1970, 1, 1, tzinfo=UTC)) // MICRO
        online = db.execute(
            """SELECT entity_key, features FROM live JOIN feature_rows USING (view, generation)
               WHERE view = ? AND (expires_at IS NULL OR expires_at > ?)""",
            (view.id, micros),
        ).fetchall()
        if not db.execute("SELECT 1 FROM live WHERE view = ?", (view.id,)).fetchone():
            continue  # lake only
        out = folder / f"{view.name}.parquet"
        command = [tidegate, "--project", str(project), "dataset", "build", "--all-entities", "--at", at.isoformat()]
        subprocess.run([*command, "--features", view.id, "--out", str(out)], capture_output=True, check=True)
        offline = {}
        for row in pq.read_table(out).to_pylist():
            key = ":".join(str(row[name]).replace("\\", "\\\\").replace(":", "\\:") for name in view.key_names)
            offline[key] = {name: row[f"{view.name}__{name}"] for name, _ in view.features}
        assert offline.keys() == {key for key, _ in online}, f"{view.id}: other entities are online than in the lake"
        for key, features in online:
            texts = json.loads(features)
            got = {name: of_text(texts.get(name), value) for name, value in offline[key].items()}
            assert got == offline[key], f"{view.id} of {key}: online {got}, in the lake {offline[key]}"
        entities += len(online)
    return entities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tidegate")
    parser.add_argument("lake", type=Path)
    parser.add_argument("project", type=Path)
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20130308)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    project = Project(arguments.project)
    periods = published(json.loads(arguments.snapshots.read_text(encoding="utf-8")))
    compared, seen, tables, spines = 0, 0, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for view in project.views.values():
            table = read_with_duckdb(arguments.lake / "features" / view.name / f"v{view.version}")
            rows = table.to_pylist()
            spine = draw(rng, view, rows, periods[view.id], arguments.labels)
            built = build(arguments.tidegate, arguments.project, spine, view.id, Path(folder))
            assert built.column("label").to_pylist() == list(range(spine.num_rows)), "the order of labels is kept"
            names = [f"{view.name}__{name}" for name, _ in view.features]
            wanted = by_hand(view, spine, rows, periods[view.id])
            for by, values in [
                ("Python", wanted),
                ("DuckDB", by_duckdb(view, spine, table, periods[view.id])),
                ("Polars", by_polars(view, spine, table, periods[view.id])),
            ]:
                compared += same(values, built, names, by)
            seen += sum(any(value is not None for value in row) for row in wanted)
            tables[view.id], spines[view.id] = (rows, wanted), spine
        # Several views on one spine, as one of them alone.
        for view in project.views.values():
            alike = [other for other in project.views.values() if set(other.key_names) <= set(view.key_names)]
            if len(alike) > 1:
                spine = spines[view.id]
                built = build(
                    arguments.tidegate, arguments.project, spine, ",".join(other.id for other in alike), Path(folder)
                )
                for other in alike:
                    wanted = by_hand(other, spine, tables[other.id][0], periods[other.id])
                    compared += same(wanted, built, [f"{other.name}__{name}" for name, _ in other.features], "Python")
        ends = {view: intervals[-1][1] for view, intervals in periods.items()}
        views = list(project.views.values())
        served = online_is_the_dataset(arguments.tidegate, arguments.project, views, ends, Path(folder))
    assert seen > arguments.labels, f"only {seen} labels saw anything"
    print(
        f"{len(spines)} views, {sum(spine.num_rows for spine in spines.values())} labels of which {seen} saw something: {compared} values are the same; "
        f"{served} entities online are as a label at the end of the newest interval sees them"
    )


if __name__ == "__main__":
    main()
