#!/usr/bin/env python3
"""Compares the verdict of every kind of check with one that is worked out without Tidegate: in DuckDB, numpy and scipy.

    python verdicts.py PROGRAM                     PROGRAM: the built `tidegate`

Makes 21 days of orders, some of which are wrong in one way or another (one has no rows, one has a single row, one has nulls
wherever there may be some), lets PROGRAM run the project `gates/` over them day by day, and judges every check of every
day a second time. Verdicts must be the same, and for checks of rows the number of rows that break the rule. Of each kind
that docs/checks.md lists there must be a verdict `passed` and one `failed`, and of those that compare with history one
`skipped`; else this file lacks a case.

judge.py states how exact numbers and Tidegate's estimates may differ; a number that is nearer to its bound than that is
an error of this file. Prints what was compared; exits 1 if anything differs.
"""

import collections
import datetime as dt
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from judge import Judge, Near, of_source
from oracle import Oracle, Project

HERE = Path(__file__).resolve().parent
ZONE = ZoneInfo("America/New_York")
KINDS = ["book", "food", "tool", "toy"]
SHOPS = [f"s{number:02}" for number in range(10)]
HISTORY = {"anomaly", "monotonic", "drift"}
# Days by number, the first being Monday, 25 February 2013.
BAD_ROWS, OTHER_NUMBERS, BAD_SLIPS, FEW, MANY, ODD_FLOATS, NOTHING, ONE, NULLS = 7, 9, 11, 13, 14, 16, 18, 19, 20


def orders(day: int, interval, random) -> pa.Table:
    """What is ordered on a day."""
    start, end = interval
    weekend = start.astimezone(ZONE).weekday() >= 5
    rows = {FEW: 60, MANY: 1700, NOTHING: 0, ONE: 1}.get(day, 230 if weekend else 600) + (0 if day in (NOTHING, ONE) else day)
    # Nobody orders at night; on the day with few orders nothing comes after the morning.
    hours = (0.1, 0.4) if day == FEW else (0.1, 0.98)
    placed = [start + (end - start) * share for share in random.uniform(*hours, rows)]
    chances = [0.1, 0.2, 0.6, 0.1] if day == OTHER_NUMBERS else [0.4, 0.3, 0.2, 0.1]
    amounts = np.round(random.gamma(4.0, 10.0, rows) + 5, 2) * (4.0 if day == OTHER_NUMBERS else 1.0)
    nulls = 0.5 if day == OTHER_NUMBERS else 0.1
    gifts = 0.8 if day == OTHER_NUMBERS else 0.3
    instant = lambda at: at.astimezone(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    number = lambda at: day * 10_000 + at
    columns = {
        "id": [number(at) for at in range(rows)],
        "shop": random.choice(SHOPS, rows).tolist(),
        "placed_at": placed,
        "amount": amounts.tolist(),
        "units": random.integers(1, 5, rows).tolist(),
        "kind": random.choice(KINDS, rows, p=chances).tolist(),
        "email": [f"somebody.{number(at)}@example.com" for at in range(rows)],
        "token": [str(uuid.UUID(int=int(number(at)) * 2**64 + 1)) for at in range(rows)],
        "due": [(at.date() + dt.timedelta(days=3)).isoformat() for at in placed],
        "seen": [instant(at) for at in placed],
        "code": [f"SL{number(at):06}" for at in range(rows)],
        "score": random.uniform(0, 1, rows).tolist(),
        "gift": (random.random(rows) < gifts).tolist(),
        "note": [None if gone else "please ring" for gone in random.random(rows) < nulls],
        "packed_at": [start - dt.timedelta(hours=float(age)) for age in random.uniform(0, 150, rows)],
    }
    if day == BAD_ROWS:
        columns["amount"][:4] = [None, -1.0, -5.5, 2500.0]
        columns["kind"][:4] = ["gold", "gold", None, "silver"]
        columns["shop"][:9] = ["s99"] * 9
        columns["kind"][4:9] = ["book"] * 5
        columns["email"][:3] = ["nobody", "a@b@example.com", "somebody@example.com "]
        columns["token"][:2] = ["{" + columns["token"][0] + "}", columns["token"][1][:-1]]
        columns["due"][:3] = ["2013-02-29", "08.01.2013", "2013-1-8"]
        columns["seen"][:3] = ["2013-03-04", "2013-03-04T25:00:00Z", "yesterday"]
        columns["code"][5:12] = [columns["code"][5]] * 7
        columns["shop"][5:12] = ["s01"] * 7
        columns["packed_at"][:3] = [start + dt.timedelta(hours=1), start - dt.timedelta(days=8), None]
        columns["units"][20] = 1_000
        for at in (at for at, shop in enumerate(columns["shop"]) if shop == "s03"):
            columns["note"][at] = None
    if day == BAD_SLIPS:
        columns["code"][:40] = [f"SLIP{at}" for at in range(40)]
    if day == ODD_FLOATS:
        columns["score"][:3] = [math.nan, math.inf, -math.inf]
    if day == NULLS:
        for name in columns.keys() - {"id", "placed_at", "shop"}:
            columns[name] = [None] * rows
    instants = pa.timestamp("us", tz="UTC")
    kinds = {"id": pa.int64(), "placed_at": instants, "amount": pa.float64(), "units": pa.int64(), "score": pa.float64(),
             "gift": pa.bool_(), "packed_at": instants}
    return pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()})


def shops(day: int) -> pa.Table:
    """The table of shops, whose columns change."""
    table = {"code": pa.array(SHOPS), "region": pa.array(["north", "south"] * 5), "floor": pa.array(range(10), pa.int64())}
    if day >= 3:
        table["manager"] = pa.array(["ana"] * 10)
    if day >= 6:
        table["floor"] = pa.array(map(float, range(10)), pa.float64())
    if day >= 9:
        del table["manager"]
    return pa.table(table)


class Day:
    """What lies about when a day is computed; sources as they are then."""

    def __init__(self, root: Path, number: int, interval, random):
        self.number, self.interval = number, interval
        data = root / "data"
        table = orders(number, interval, random)
        pq.write_table(table, data / "orders" / f"{number:02}.parquet")
        pq.write_table(shops(number), data / "shops.parquet")
        # On one day the shops have not been written for long.
        age = dt.timedelta(days=5) if number == FEW else dt.timedelta(hours=3)
        os.utime(data / "shops.parquet", (time.time() - age.total_seconds(),) * 2)
        self.shops_age = age
        self.shops = {field.name: str(field.type) for field in shops(number).schema}
        files = sorted((data / "orders").iterdir())
        self.files, self.bytes = len(files), sum(file.stat().st_size for file in files)


def tidegate(program: str, root: Path, *arguments: str, stopped: bool = False) -> str:
    """What it prints. With `stopped` a check has to stop the run, else it has to succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    done = subprocess.run([program, "--project", root, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != (1 if stopped else 0):
        raise SystemExit(f"tidegate {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def documented() -> set[str]:
    """The kinds of the generated part of docs/checks.md; those of sources begin with `source `."""
    text = (HERE.parents[1] / "docs" / "checks.md").read_text(encoding="utf-8").split("<!-- Generated", 1)[1]
    kinds = {name for name in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    return kinds | {f"source {name}" for name in re.findall(r"^### (\w+)$", text, re.MULTILINE)}


def compute(program: str, root: Path) -> tuple[list[Day], dict]:
    """Runs the project day by day. What Tidegate says, by day, view and check."""
    project = Project(root)
    grid = project.grid("days")
    random = np.random.default_rng(20130225)
    days, said = [], {}
    for number, interval in enumerate(grid):
        day = Day(root, number, interval, random)
        days.append(day)
        total = round(float(pc.sum(pq.read_table(root / "data/orders" / f"{number:02}.parquet")["amount"]).as_py() or 0), 2)
        add_total(root, interval, total + (5 if number == ODD_FLOATS else 0))
        if number == 0:
            tidegate(program, root, "apply", "--yes")
        span = "/".join(at.isoformat() for at in interval)
        dags = ["days", *(["kept"] if number in (BAD_ROWS - 1, BAD_ROWS, BAD_SLIPS, NOTHING) else [])]
        for dag in dags:
            stopped = dag == "kept" and number == BAD_SLIPS
            tidegate(program, root, "run", dag, "--interval", span, stopped=stopped)
    rows = json.loads(tidegate(program, root, "--format", "json", "checks", "--limit", "0"))
    runs = json.loads(tidegate(program, root, "--format", "json", "runs", "list", "--limit", "0"))
    starts = {run["id"]: dt.datetime.fromisoformat(run["interval_start"]) for run in runs}
    at = {day.interval[0]: day.number for day in days}
    for row in rows:
        said[at[starts[row["run"]]], row["view"], row["check"]] = row
    return days, said


def add_total(root: Path, interval, amount: float) -> None:
    place = root / "data" / "totals.parquet"
    new = pa.table({"day": pa.array([interval[0]], pa.timestamp("us", tz="UTC")), "amount": pa.array([amount], pa.float64())})
    pq.write_table(pa.concat_tables([pq.read_table(place), new]) if place.exists() else new, place)


def main() -> int:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "gates"
        shutil.copytree(HERE / "gates", root)
        (root / "data" / "orders").mkdir(parents=True)
        days, said = compute(os.path.abspath(sys.argv[1]), root)
        return compare(root, days, said)


def compare(root: Path, days: list[Day], said: dict) -> int:
    project = Project(root)
    oracle = Oracle(project)
    grid = project.grid("days")
    oracle.run({view.id: grid for view in project.views.values()})
    wrong, left = [], dict(said)
    verdicts = collections.defaultdict(collections.Counter)

    def expect(number: int, view, check: str, kind: str, judged) -> None:
        row = left.pop((number, view.id, check), None)
        try:
            verdict, bad = judged()
        except Near as near:
            wrong.append(f"day {number}, {view.id}: {check} is too near to its bound to be compared: {near}")
            return
        verdicts[kind][verdict] += 1
        where = f"day {number}, {view.id}: {check}"
        if row is None:
            wrong.append(f"{where} should be {verdict}, and there is no verdict")
        elif row["verdict"] != verdict:
            wrong.append(f"{where} should be {verdict}, and is {row['verdict']}: {row['message']}")
        elif bad is not None and row["failing_rows"] != bad:
            wrong.append(f"{where} is broken by {bad} rows, not by {row['failing_rows']}: {row['message']}")

    for view in project.views.values():
        judge = Judge(oracle, view)
        rules = [rule for check in view.checks for rule in check.values()]
        others = {rule.get(side, {}).get("source") for rule in rules for side in ("references", "equals")}
        read = [s for name, s in project.sources.items() if name in others or re.search(rf"\b{name}\b", view.sql)]
        before = None
        for number in sorted({number for number, of, _ in said if of == view.id}):
            interval = grid[number]
            # They see what is not set aside.
            kept = judge.kept(interval)
            for name in ("not_null", "unique"):
                check, keys = f"{name}({', '.join(view.key_names)}) of every view", {"columns": view.key_names, "where": kept}
                expect(number, view, check, f"{name} of every view", lambda: judge.rows(interval, name, keys))
            late = {"column": "event_timestamp", "min_age": "0s", "where": kept}
            check = "event_timestamp of every view"
            expect(number, view, check, check, lambda: judge.rows(interval, "event_time", late))
            for written in view.checks:
                ((kind, rule),) = written.items()
                expect(number, view, rule["name"], kind, lambda: judge.judge(interval, kind, rule))
            for source in read:
                for written in source.get("checks", []):
                    ((kind, rule),) = written.items()
                    check = f"source {source['name']}: {rule['name']}"
                    judged = lambda: (of_source(oracle, source, kind, rule, days[number], before), None)
                    expect(number, view, check, f"source {kind}", judged)
            # What is blocked is not recorded.
            if not (view.dag == "kept" and number == BAD_SLIPS):
                before = days[number]
    for (number, view, check), row in left.items():
        wrong.append(f"day {number}, {view}: {check} is {row['verdict']}, and nobody expects it")

    for kind in sorted(documented() | verdicts.keys()):
        counts = verdicts[kind]
        print(f"{kind:32} " + ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items())))
        wanted = {"passed", "failed"} if not kind.endswith("of every view") else {"passed"}
        wanted |= {"skipped"} if kind in HISTORY else set()
        wrong += [f"no check of the kind {kind} is {verdict}" for verdict in sorted(wanted - counts.keys())]
    if not any(counts["quarantined"] for counts in verdicts.values()):
        wrong.append("nothing is set aside")
    compared = sum(counts.total() for counts in verdicts.values())
    print(f"{compared} verdicts on {len(days)} days, {len(wrong)} differences")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
