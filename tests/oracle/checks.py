#!/usr/bin/env python3
"""Proves that the data of the example project is good where it should be, and bad where it should be.

    python checks.py [PROJECT_DIR]                      default: the example, ../../dags

Judges every check of every view for every interval of both DAGs in DuckDB: over the good files all must pass, warnings
too. Then it puts each file of `bad/` in the place of the good one of the same name and judges again: at least one check
must block the first interval that reads it, none an earlier one; or some rows are set aside, and nothing is blocked.
Prints which checks fire; exits 1 if anything differs. Whether Tidegate judges as this does is for verdicts.py to prove.
"""

import argparse
import datetime as dt
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb

from judge import Judge
from oracle import Oracle, Project, View, literal, quote


def judge(project: Project) -> dict[str, list[tuple[dt.datetime, str, str, str]]]:
    """By DAG: (interval start, view, check, severity) of each failure, oldest first."""
    oracle = Oracle(project)
    oracle.run({view.id: project.grid(view.dag) for view in project.views.values() if view.dag})
    failures: dict[str, list] = {dag: [] for dag in project.dags}
    for view in project.views.values():
        if not view.dag:
            continue
        before = None
        for interval in project.grid(view.dag):
            staged = f"SELECT * FROM {view.table} WHERE interval_start = {literal(interval[0])}"
            oracle.db.execute(f"CREATE OR REPLACE TEMP VIEW {quote(view.name)} AS {staged}")
            count = lambda sql: oracle.db.execute(f"SELECT count(*) FROM ({sql})").fetchone()[0]
            for name, severity, passed in verdicts(Judge(oracle, view), view, interval, before, count):
                if not passed:
                    failures[view.dag].append((interval[0], view.name, name, severity))
            before = interval
    return {dag: sorted(found) for dag, found in failures.items()}


def verdicts(judge: Judge, view: View, interval, before, count):
    """Yields (check, severity, passed). `count` counts the rows of a query; the view's name means the staged rows."""
    staged = quote(view.name)
    keys = ", ".join(quote(k) for k in view.key_names)
    rows = count(f"SELECT 1 FROM {staged}")
    rows_before = count(f"SELECT 1 FROM {view.table} WHERE interval_start = {literal(before[0])}") if before else 0
    no_key = " OR ".join(f"{quote(k)} IS NULL" for k in view.key_names)
    yield "entity keys are set", "block", count(f"SELECT 1 FROM {staged} WHERE {no_key}") == 0
    yield "entity keys are unique", "block", count(f"SELECT DISTINCT {keys} FROM {staged}") == rows
    late = f"SELECT 1 FROM {staged} WHERE event_timestamp > {literal(interval[1])}"
    yield "no event after the interval", "block", count(late) == 0
    if view.max_deletes is not None and rows_before:
        gone = f"""SELECT {keys} FROM {view.table} WHERE interval_start = {literal(before[0])}
                   EXCEPT SELECT {keys} FROM {staged}"""
        yield "max_deletes", "block", count(gone) / rows_before <= view.max_deletes
    for check in view.checks:
        ((kind, rule),) = check.items()
        verdict, _ = judge.judge(interval, kind, rule)
        # Rows that are set aside within their budget stop nothing.
        severity = "aside" if verdict == "quarantined" else rule.get("severity", "block")
        columns = rule.get("columns", [rule["column"]] if "column" in rule else [])
        name = rule.get("name", f"{kind}({', '.join(columns)})" if columns else kind)
        yield name, severity, verdict in ("passed", "skipped")


def first_readers(project: Project, file: Path) -> dict[str, dt.datetime | None]:
    """By DAG, the start of the interval that holds the first event of `file`, or of the first interval after it."""
    (column,) = {s["event_time"] for s in project.sources.values() if s.get("parquet", "").startswith(f"data/{file.parent}")}
    path = str(project.root / "data" / file)
    event = duckdb.execute(f"SELECT epoch(min({quote(column)})) FROM read_parquet(?)", [path]).fetchone()[0]
    event = dt.datetime.fromtimestamp(event, dt.timezone.utc)
    return {dag: min((a for a, b in project.grid(dag) if b > event), default=None) for dag in project.dags}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "dags")
    root = parser.parse_args().project
    good = Project(root)
    wrong = 0
    for dag, failures in judge(good).items():
        print(f"good data, {dag}: {len(good.grid(dag))} intervals, {len(failures)} checks failed")
        for at, view, check, severity in failures:
            print(f"  {at:%Y-%m-%dT%H:%MZ}  {view}: {check} ({severity})")
        wrong += len(failures)

    for file in sorted((root / "bad").rglob("*.parquet")):
        relative = file.relative_to(root / "bad")
        assert (root / "data" / relative).exists(), f"bad/{relative} replaces nothing"
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "project"
            shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".tidegate"))
            shutil.copyfile(file, copy / "data" / relative)
            found = judge(Project(copy))
        for dag, failures in found.items():
            blocking = [f for f in failures if f[3] == "block"]
            aside = {(view, check) for _, view, check, severity in failures if severity == "aside"}
            for view, check in sorted(aside):
                print(f"bad/{relative}, {dag}: {view}: {check} sets rows aside")
            if not blocking:
                print(f"bad/{relative}, {dag}: nothing is blocked")
                continue
            first = first_readers(good, relative)[dag]
            intervals = {at for at, *_ in blocking}
            print(f"bad/{relative}, {dag}: {len(intervals)} intervals blocked, the first at {min(intervals):%Y-%m-%dT%H:%MZ}")
            for _, view, check, _ in (f for f in blocking if f[0] == min(intervals)):
                print(f"  {view}: {check}")
            if min(intervals) != first:
                print(f"  but the first interval that reads it is the one at {first:%Y-%m-%dT%H:%MZ}")
                wrong += 1
        if not any(f[3] in ("block", "aside") for failures in found.values() for f in failures):
            print(f"bad/{relative} is stopped by nothing")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
