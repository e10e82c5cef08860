#!/usr/bin/env python3
"""Proves that the lake holds what the project's SQL says, by other engines than Tidegate's.

    python compare.py LAKE_DIR PROJECT_DIR [--dag DAG]… [--from T] [--to T] [--intervals FILE]
    python compare.py --self-test [PROJECT_DIR]

Every interval of every view is computed anew with DuckDB over the project's Parquet files (see oracle.py), on a grid cut
by Python's zone database. The Delta tables `LAKE_DIR/features/{view}/v{N}` are read with the package `deltalake` and with
DuckDB (see lake.py). All three must agree row by row: entity keys, event_timestamp, features, interval_start,
interval_end; whole numbers, texts and times exactly, floating point within 1e-9 of the value. No row may lack a run_id,
no interval have two of them, no interval may be missing and none be there that should not.

Which intervals should be there: all of the DAG's grid; with --from and --to those whose start lies in [from, to) (a date
is midnight in the DAG's zone); with --intervals those that a JSON file names: what `tidegate snapshots list --limit 0
--format json` prints, or {"view@v1": [["2013-01-08T07:15:00Z", "2013-01-09T07:15:00Z"], …]}. They must be of the grid.

Prints one line for each view and reader, exits 1 when anything differs.
"""

import argparse
import datetime as dt
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.types as pt

from lake import READERS
from oracle import UTC, Interval, Oracle, Project, View

SHOWN_MAX = 10

ARROW = {
    "string": lambda t: pt.is_string(t) or pt.is_large_string(t) or pt.is_string_view(t),
    "boolean": pt.is_boolean,
    "integer": pt.is_int32,
    "bigint": pt.is_int64,
    "float": pt.is_float32,
    "double": pt.is_float64,
    "date": pt.is_date32,
    "timestamp": lambda t: pt.is_timestamp(t) and t.tz is not None,
}


def has_type(actual: pa.DataType, declared: str) -> bool:
    if declared.startswith("array<"):
        return (pt.is_list(actual) or pt.is_large_list(actual)) and has_type(actual.value_type, declared[6:-1])
    return ARROW[declared](actual)


def compare(lake: Path, project: Project, intervals: dict[str, list[Interval]]) -> list[tuple[str, list[str]]]:
    """For each view and reader a line that sums up, and what differs."""
    oracle = Oracle(project)
    oracle.run(intervals)
    results = []
    for view_id, wanted in intervals.items():
        view = project.views[view_id]
        expected = by_interval(view, oracle.rows(view))
        for reader, read in READERS.items():
            path = lake / "features" / view.name / f"v{view.version}"
            try:
                table = read(path)
            except Exception as error:  # whatever a reader dislikes is a finding
                results.append((f"{view_id} ({reader}): cannot be read", [f"{path}: {error}"]))
                continue
            differences = wrong_columns(view, table.schema) or differing(view, wanted, expected, table)
            rows = f"{len(wanted)} intervals, {table.num_rows} rows"
            verdict = f"{len(differences)} differences" if differences else "equal"
            results.append((f"{view_id} ({reader}): {rows} {verdict}", differences))
    return results


def wrong_columns(view: View, schema: pa.Schema) -> list[str]:
    more = [("interval_start", "timestamp"), ("interval_end", "timestamp"), ("run_id", "string")]
    declared = dict([*view.columns, *more])
    found = dict(zip(schema.names, schema.types))
    lines = [f"column {name} is missing" for name in declared if name not in found]
    lines += [f"column {name} should not be there" for name in found if name not in declared]
    lines += [
        f"column {name} is {found[name]}, declared {kind}"
        for name, kind in declared.items()
        if name in found and not has_type(found[name], kind)
    ]
    return lines


def by_interval(view: View, table: pa.Table) -> dict[Interval, list[dict]]:
    grouped: dict[Interval, list[dict]] = {}
    for row in table.to_pylist():
        row = {name: in_utc(value) for name, value in row.items()}
        grouped.setdefault((row.pop("interval_start"), row.pop("interval_end")), []).append(row)
    return grouped


def in_utc(value):
    return value.astimezone(UTC) if isinstance(value, dt.datetime) else value


def differing(view: View, wanted: list[Interval], expected: dict[Interval, list[dict]], table: pa.Table) -> list[str]:
    lines = []
    found = by_interval(view, table)
    for interval in sorted(found.keys() - set(wanted)):
        lines.append(f"{shown(interval)}: has {len(found[interval])} rows and should not be there")
    for interval in wanted:
        want, have = expected.get(interval, []), found.get(interval, [])
        if want and not have:
            lines.append(f"{shown(interval)}: is missing, {len(want)} rows")
            continue
        runs = {row["run_id"] for row in have}
        if None in runs or len(runs) > 1:
            lines.append(f"{shown(interval)}: should come from one run, comes from {sorted(map(str, runs))}")
        key = lambda row: tuple(row[name] for name in view.key_names)
        counts = Counter(map(key, have))
        lines += [f"{shown(interval)} {label(view, k)}: is there {n} times" for k, n in counts.items() if n > 1]
        want_rows, have_rows = {key(row): row for row in want}, {key(row): row for row in have}
        lines += [f"{shown(interval)} {label(view, k)}: is missing" for k in sorted(want_rows.keys() - have_rows.keys())]
        lines += [
            f"{shown(interval)} {label(view, k)}: should not be there"
            for k in sorted(have_rows.keys() - want_rows.keys(), key=repr)
        ]
        for k in want_rows.keys() & have_rows.keys():
            for name, _ in view.columns:
                if not same(want_rows[k][name], have_rows[k][name]):
                    values = f"{have_rows[k][name]!r}, should be {want_rows[k][name]!r}"
                    lines.append(f"{shown(interval)} {label(view, k)}: {name} is {values}")
    return lines


def same(want, have) -> bool:
    if isinstance(want, float) and isinstance(have, float):
        # The order of additions is each engine's own. Near zero a relative bound would forbid what it allows elsewhere.
        return math.isclose(want, have, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(want) and math.isnan(have))
    if isinstance(want, list) and isinstance(have, list):
        return len(want) == len(have) and all(map(same, want, have))
    return type(want) is type(have) and want == have


def shown(interval: Interval) -> str:
    return f"[{interval[0]:%Y-%m-%dT%H:%M:%SZ}, {interval[1]:%Y-%m-%dT%H:%M:%SZ})"


def label(view: View, key: tuple) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(view.key_names, key))


def chosen(project: Project, dags: list[str], start, end, file: Path | None) -> dict[str, list[Interval]]:
    """The intervals that should be there, by view id."""
    views = [view for view in project.views.values() if view.dag and (not dags or view.dag in dags)]
    if file is None:
        return {view.id: project.grid(view.dag, start, end) for view in views}
    named = named_in(project, json.loads(file.read_text(encoding="utf-8")))
    intervals = {}
    for view in views:
        grid = project.grid(view.dag, start, end)
        strangers = [i for i in named.get(view.id, []) if i not in project.grid(view.dag)]
        assert not strangers, f"{view.id}: {shown(strangers[0])} is not on the grid of {view.dag}"
        intervals[view.id] = [i for i in grid if i in named.get(view.id, set())]
    return intervals


def named_in(project: Project, document) -> dict[str, set[Interval]]:
    interval = lambda start, end: (dt.datetime.fromisoformat(start).astimezone(UTC), dt.datetime.fromisoformat(end).astimezone(UTC))
    if isinstance(document, dict):
        return {view: {interval(*pair) for pair in pairs} for view, pairs in document.items()}
    named: dict[str, set[Interval]] = {}
    for snapshot in document:
        for published in snapshot["views"]:
            known = project.views.get(published["view"]) or project.highest(published["view"])
            assert known, f"snapshot {snapshot['id']} names {published['view']}, which the project does not define"
            named.setdefault(known.id, set()).add(interval(snapshot["interval_start"], snapshot["interval_end"]))
    return named


def report(results: list[tuple[str, list[str]]]) -> int:
    for summary, differences in results:
        print(summary)
        for line in differences[:SHOWN_MAX]:
            print(f"  {line}")
        if len(differences) > SHOWN_MAX:
            print(f"  and {len(differences) - SHOWN_MAX} more")
    return 1 if any(differences for _, differences in results) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="LAKE_DIR PROJECT_DIR")
    parser.add_argument("--dag", action="append", default=[], help="only the views of this DAG; may be repeated")
    parser.add_argument("--from", dest="start", help="a date or an RFC 3339 time")
    parser.add_argument("--to", dest="end", help="a date or an RFC 3339 time")
    parser.add_argument("--intervals", type=Path, metavar="FILE", help="JSON that names the published intervals")
    parser.add_argument("--self-test", action="store_true", help="prove that differences are noticed")
    args = parser.parse_args()
    if args.self_test:
        import self_test

        example = Path(__file__).resolve().parents[2] / "dags"
        return self_test.run(Project(args.folders[0] if args.folders else example))
    if len(args.folders) != 2:
        parser.error("needs LAKE_DIR and PROJECT_DIR")
    lake, project = args.folders[0], Project(args.folders[1])
    unknown = set(args.dag) - project.dags.keys()
    if unknown:
        parser.error(f"the project has no DAG {', '.join(sorted(unknown))}")
    intervals = chosen(project, args.dag, args.start, args.end, args.intervals)
    if not any(intervals.values()):
        parser.error("no interval to compare: nothing would be proven")
    return report(compare(lake, project, intervals))


if __name__ == "__main__":
    sys.exit(main())
