"""Proves that compare.py notices what it is there to notice: `python compare.py --self-test`.

A lake is written from the oracle's own rows, which must compare as equal; then one thing at a time is spoilt.
"""

import contextlib
import datetime as dt
import io
import json
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

import oracle as o
from compare import chosen, compare, report

SPOILT = ["route_reliability@v1", "aircraft_last_seen@v1"]


def run(project: o.Project) -> int:
    failures = grid_failures()
    # Both DAGs, the night of the change to daylight saving time among them.
    intervals = {
        view.id: project.grid(view.dag, "2013-03-09", "2013-03-12")[:30] for view in project.views.values() if view.dag
    }
    oracle = o.Oracle(project)
    oracle.run(intervals)
    tables = {view_id: with_run(oracle.rows(project.views[view_id])) for view_id in intervals}
    with tempfile.TemporaryDirectory() as scratch:
        lake = Path(scratch)
        for view_id, table in tables.items():
            write(lake, view_id, table)
        failures += expect("an equal lake", compare(lake, project, intervals), equal=True)
        ledger = lake / "ledger.json"
        for document in (ledger_of(intervals), snapshots_of(intervals)):
            ledger.write_text(json.dumps(document))
            same_again = chosen(project, [], None, None, ledger)
            if {v: set(i) for v, i in same_again.items()} != {v: set(i) for v, i in intervals.items()}:
                failures.append("--intervals: the intervals that were written are not those that are read")

        for view_id in SPOILT:
            one = {view_id: intervals[view_id]} | {
                target: intervals[target] for _, _, target in project.views[view_id].reads
            }
            for what, spoil, equal in spoilers(project.views[view_id]):
                write(lake, view_id, spoil(tables[view_id]))
                failures += expect(f"{view_id}: {what}", compare(lake, project, one), equal)
            write(lake, view_id, tables[view_id])
            fewer = one | {view_id: one[view_id][:-1]}
            failures += expect(f"{view_id}: an interval too many", compare(lake, project, fewer), equal=False)
    print("\n".join(failures) if failures else "self-test: every spoilt table was noticed")
    return 1 if failures else 0


def spoilers(view: o.View):
    """(what, a spoilt copy of a table, whether it must still count as equal)"""
    number = next(name for name, kind in view.features if kind in ("bigint", "integer"))
    cases = [
        ("a wrong whole number", lambda t: change(t, number, lambda v: (v or 0) + 1), False),
        ("a null instead of a value", lambda t: change(t, number, lambda v: None), False),
        ("a wrong event time", lambda t: change(t, "event_timestamp", lambda v: v - dt.timedelta(microseconds=1)), False),
        ("a wrong interval end", lambda t: change(t, "interval_end", lambda v: v + dt.timedelta(minutes=15)), False),
        ("a wrong key", lambda t: change(t, view.key_names[-1], lambda v: v + "x"), False),
        ("a missing row", lambda t: t.slice(1), False),
        ("a doubled row", lambda t: pa.concat_tables([t, t.slice(0, 1)]), False),
        ("a doubled interval", lambda t: pa.concat_tables([t, with_run(first_interval(t), "run-2")]), False),
        ("a missing interval", lambda t: t.filter(pc.not_equal(t["interval_start"], t["interval_start"][0])), False),
        ("a row of no run", lambda t: change(t, "run_id", lambda v: None), False),
        ("rows of no run", lambda t: with_run(t, None), False),
        ("a missing column", lambda t: t.drop_columns([number]), False),
        ("a column of another type", lambda t: retype(t, number, pa.float64()), False),
        ("no rows at all", lambda t: t.slice(0, 0), False),
        ("rows in another order", lambda t: t.take(pa.array(range(t.num_rows - 1, -1, -1))), True),
    ]
    doubles = [name for name, kind in view.features if kind == "double"]
    for name in doubles[:1]:
        cases.append(("a wrong floating point number", lambda t: change(t, name, lambda v: v * (1 + 1e-7) + 1e-7), False))
        cases.append(("additions in another order", lambda t: change(t, name, lambda v: v * (1 + 1e-13)), True))
    return cases


def change(table: pa.Table, column: str, new) -> pa.Table:
    """`table` with one value changed: the first that is not null."""
    values = table[column].to_pylist()
    at = next(i for i, value in enumerate(values) if value is not None)
    values[at] = new(values[at])
    field = table.schema.field(column)
    return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))


def retype(table: pa.Table, column: str, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(column), pa.field(column, kind), table[column].cast(kind))


def first_interval(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["interval_start"], table["interval_start"][0]))


def with_run(table: pa.Table, run: str | None = "run-1") -> pa.Table:
    if "run_id" in table.column_names:
        table = table.drop_columns(["run_id"])
    return table.append_column("run_id", pa.array([run] * table.num_rows, pa.string()))


def write(lake: Path, view_id: str, table: pa.Table) -> None:
    name, version = view_id.split("@")
    path = str(lake / "features" / name / version)
    write_deltalake(path, table, partition_by=["interval_start"], mode="overwrite", schema_mode="overwrite")


def expect(what: str, results, equal: bool) -> list[str]:
    """Every reader must say the same. Only the spoilt view may differ."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        is_equal = report(results) == 0
    if is_equal == equal and (equal or len([r for r in results if r[1]]) >= 2):
        return []
    return [f"self-test: {what} should {'count as equal' if equal else 'be noticed by both readers'}:\n{text.getvalue()}"]


def ledger_of(intervals):
    return {view: [[a.isoformat(), b.isoformat()] for a, b in found] for view, found in intervals.items()}


def snapshots_of(intervals):
    return [
        {"id": str(n), "interval_start": a.isoformat(), "interval_end": b.isoformat(), "views": [{"view": view}]}
        for view, found in intervals.items()
        for n, (a, b) in enumerate(found)
    ]


def grid_failures() -> list[str]:
    """The zone rule, on days whose answers can be looked up."""
    new_york, lord_howe = ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")
    at = lambda text: dt.datetime.fromisoformat(text)
    table = [
        # The clock jumps from 02:00 to 03:00 EDT, which is 07:00 UTC.
        (new_york, at("2013-03-10T02:15"), "run_after", "first", [at("2013-03-10T07:00+00:00")]),
        (new_york, at("2013-03-10T02:15"), "skip", "both", []),
        (new_york, at("2013-03-09T02:15"), "run_after", "first", [at("2013-03-09T07:15+00:00")]),
        (new_york, at("2013-03-11T02:15"), "run_after", "first", [at("2013-03-11T06:15+00:00")]),
        # 01:30 exists twice: 05:30 and 06:30 UTC.
        (new_york, at("2013-11-03T01:30"), "run_after", "first", [at("2013-11-03T05:30+00:00")]),
        (new_york, at("2013-11-03T01:30"), "run_after", "second", [at("2013-11-03T06:30+00:00")]),
        (new_york, at("2013-11-03T01:30"), "skip", "both", [at("2013-11-03T05:30+00:00"), at("2013-11-03T06:30+00:00")]),
        # A change of half an hour: 02:00 becomes 02:30, at 15:30 UTC of the day before.
        (lord_howe, at("2013-10-06T02:10"), "run_after", "first", [at("2013-10-05T15:30+00:00")]),
    ]
    failures = []
    for zone, wall, gap, overlap, want in table:
        have = o.resolve(wall, zone, gap, overlap)
        if have != want:
            failures.append(f"self-test: {wall} in {zone} ({gap}, {overlap}) is {have}, should be {want}")
    return failures
