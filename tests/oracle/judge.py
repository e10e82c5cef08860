"""The verdict of every kind of check on the rows that `oracle` has computed: in DuckDB, numpy and scipy, sharing no code
with Tidegate.

`Judge` judges the checks of a view, `of_source` those of a source. Where Tidegate estimates, the exact number must be
further from the bound than the estimate may be from it, so that the verdict is the same for every estimate that keeps its
promise: distinct counts 5 standard deviations of HyperLogLog (8.1 %), quantiles 3.4 % of rank (see quality.py),
Kolmogorov-Smirnov 0.08, the stability index of numbers (whose bins are Tidegate's own) a factor of 1.5, and whatever is
computed in floating point a millionth. `Near` says of a number that it is not.
"""

import collections
import math
from zoneinfo import ZoneInfo

import numpy as np
from scipy import stats
from scipy.spatial.distance import jensenshannon

from oracle import Oracle, duration, literal, quote


NUMBERS = {"null_rate", "distinct_count", "mean", "stddev", "sum", "true_ratio", "quantile"}


class Near(Exception):
    """A number is too near to its bound for an estimate to be on the same side for sure."""


def bounded(low: float, high: float, rule: dict) -> str:
    """The verdict on a number that lies in `[low, high]`."""
    if math.isnan(low):
        return "passed"
    within = {rule.get("min", -math.inf) <= number <= rule.get("max", math.inf) for number in (low, high)}
    if len(within) == 2:
        raise Near(f"{low} to {high}, bounds {rule}")
    return "passed" if within.pop() else "failed"


def beyond(limit: float, low: float, high: float) -> str:
    """The verdict on a distance that Tidegate may find anywhere in `[low, high]`."""
    return bounded(low, high, {"max": limit})


class Judge:
    """The verdicts on the checks of a view, from the rows that the oracle has computed for it."""

    def __init__(self, oracle: Oracle, view):
        self.oracle, self.view = oracle, view
        self.grid = oracle.project.grid(view.dag)

    def select(self, interval, what: str, tail: str = "") -> list[tuple]:
        rows = f"(SELECT * FROM {self.view.table} WHERE interval_start = {literal(interval[0])})"
        return self.oracle.db.execute(f"SELECT {what} FROM {rows} AS s {tail}").fetchall()

    def number(self, interval, what: str, tail: str = ""):
        return self.select(interval, what, tail)[0][0]

    def column(self, interval, name: str, where: str = "true") -> np.ndarray:
        values = self.select(interval, quote(name), f"WHERE {quote(name)} IS NOT NULL AND {where}")
        return np.array([value for value, in values])

    def metric(self, interval, kind: str, rule: dict, where: str = "true"):
        """The exact number of the rows for which `where` is true, or None where there is none."""
        tail = f"WHERE {where}"
        if kind == "row_count":
            return self.number(interval, "count(*)", tail)
        column = quote(rule["column"])
        if kind == "null_rate":
            rows = self.number(interval, "count(*)", tail)
            return self.number(interval, f"count(*) - count({column})", tail) / rows if rows else None
        if kind == "distinct_count":
            rows, distinct = self.select(interval, f"count(*), count(DISTINCT {column})", tail)[0]
            return distinct if rows else None
        values = self.column(interval, rule["column"], where)
        if len(values) < (2 if kind == "stddev" else 1):
            return None
        numbers = values.astype(float)
        return {"mean": np.mean, "sum": np.sum, "true_ratio": np.mean, "stddev": lambda all: np.std(all, ddof=1)}[kind](numbers)

    # --- one method for each family -------------------------------------------------------------------------------------

    def rows(self, interval, kind: str, rule: dict) -> tuple[str, int]:
        """The verdict of a check that judges single rows, and how many break it."""
        start, end = interval
        sql = lambda text: text.replace("$interval_start", literal(start)).replace("$interval_end", literal(end))
        chosen = sql(rule.get("where", "true"))
        broken = f"({self.broken(interval, kind, rule)}) IS TRUE AND ({chosen}) IS TRUE"
        looked_at = f"({chosen}) IS TRUE"
        if kind == "unique" and "on_fail" not in rule:
            # The first of equal rows breaks nothing. A null equals a null, as it does in a GROUP BY.
            columns = ", ".join(map(quote, rule["columns"]))
            counts = self.select(interval, "count(*) - 1", f"WHERE {looked_at} GROUP BY {columns}")
            bad = sum(number for number, in counts)
        else:
            bad = self.number(interval, f"count(*) FILTER (WHERE {broken})")
        budget = rule.get("on_fail", {}).get("quarantine")
        if budget is not None:
            rows = self.number(interval, "count(*)")
            fits = bad <= budget.get("max_rows", bad) and bad <= budget.get("max_ratio", 1) * rows
            return ("passed" if bad == 0 else "quarantined" if fits else "failed"), bad
        tolerance = rule.get("tolerate", {})
        tolerates = lambda bad, rows: bad <= tolerance.get("rows", tolerance.get("ratio", 0) * rows)
        if "group_by" in rule:
            groups = ", ".join(map(quote, rule["group_by"]))
            counts = f"count(*) FILTER (WHERE {broken}), count(*) FILTER (WHERE {looked_at})"
            counts = self.select(interval, counts, f"GROUP BY {groups}")
        else:
            counts = [(bad, self.number(interval, f"count(*) FILTER (WHERE {looked_at})"))]
        return ("passed" if all(bad == 0 or tolerates(bad, rows) for bad, rows in counts) else "failed"), bad

    def doubled(self, interval, names: list[str]) -> str:
        columns = ", ".join(map(quote, names))
        filled = " AND ".join(f"{quote(name)} IS NOT NULL" for name in names)
        rows = f"SELECT {columns} FROM {self.view.table} WHERE interval_start = {literal(interval[0])} AND {filled}"
        return f"({columns}) IN ({rows} GROUP BY {columns} HAVING count(*) > 1)"

    def kept(self, interval) -> str:
        """The condition in SQL under which no check of the view sets a row aside."""
        rules = [next(iter(check.items())) for check in self.view.checks]
        aside = [f"({self.broken(interval, kind, rule)}) IS NOT TRUE" for kind, rule in rules if "on_fail" in rule]
        return " AND ".join(aside) or "true"

    def broken(self, interval, kind: str, rule: dict) -> str:
        """The condition in SQL under which a row breaks the rule."""
        column = quote(rule.get("column", "event_timestamp"))
        if kind == "not_null":
            return " OR ".join(f"{quote(name)} IS NULL" for name in rule["columns"])
        if kind == "unique":
            # All of equal rows are set aside; without `on_fail` no single one of them is the wrong one.
            return self.doubled(interval, rule["columns"]) if "on_fail" in rule else "false"
        if kind == "range":
            sides = [f"{column} {sign} {rule[at]}" for at, sign in (("min", "<"), ("max", ">")) if at in rule]
            # Not a number is in no range.
            return " OR ".join([*sides, f"isnan({column})"])
        if kind == "accepted_values":
            return f"{column} NOT IN ({', '.join(repr(value) for value in rule['values'])})"
        if kind == "regex":
            return f"NOT regexp_matches({column}, {rule['pattern']!r})"
        if kind == "format":
            shape = {
                "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
                "email": "^[^@ ]+@[^@ ]+$",
                "iso_date": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
                "iso_timestamp": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
            }[rule["is"]]
            is_time = {"iso_date": f" OR TRY_CAST({column} AS DATE) IS NULL",
                       "iso_timestamp": f" OR TRY_CAST({column} AS TIMESTAMP) IS NULL"}.get(rule["is"], "")
            return f"{column} IS NOT NULL AND (NOT regexp_matches({column}, '{shape}'){is_time})"
        if kind == "length":
            return f"length({column}) NOT BETWEEN {rule['min']} AND {rule['max']}"
        if kind == "event_time":
            at = literal(interval[0 if rule.get("at") == "interval_start" else 1])
            age = lambda key: f"to_microseconds({round(duration(rule[key]).total_seconds() * 1e6)})"
            sides = [f"{column} {sign} {at} - {age(key)}" for key, sign in (("min_age", ">"), ("max_age", "<")) if key in rule]
            return " OR ".join(sides)
        if kind == "expression":
            return f"NOT ({rule['condition']})"
        if kind == "referential":
            there = rule["references"]
            names = there.get("columns", rule["columns"])
            if "source" in there:
                other = quote(there["source"])
            else:
                target = self.oracle.project.highest(there["view"])
                other = f"(SELECT * FROM {target.table} WHERE interval_start = {literal(interval[0])})"
            pairs = list(zip(rule["columns"], names, strict=True))
            filled = " AND ".join(f"s.{quote(own)} IS NOT NULL" for own, _ in pairs)
            same = " AND ".join(f"s.{quote(own)} = o.{quote(name)}" for own, name in pairs)
            return f"{filled} AND NOT EXISTS (SELECT 1 FROM {other} o WHERE {same})"
        raise SystemExit(f"judge.py knows no check of rows of the kind {kind}")

    def number_of_groups(self, interval, kind: str, rule: dict) -> str:
        """The verdict when the number of every group of rows has to lie within the bounds. Nothing of it is estimated."""
        columns = [quote(name) for name in rule["group_by"]]
        is_in = lambda column, value: f"{column} IS NOT DISTINCT FROM {'NULL' if value is None else repr(value)}"
        same = lambda group: " AND ".join(map(is_in, columns, group))
        groups = self.select(interval, f"DISTINCT {', '.join(columns)}")
        numbers = [self.metric(interval, kind, rule, same(group)) for group in groups]
        numbers = [number for number in numbers if number is not None]
        if not numbers:
            return "skipped"
        # Whole numbers are exact.
        error = lambda number: 0 if float(number).is_integer() else 1e-6 * abs(number)
        verdicts = {bounded(number - error(number), number + error(number), rule) for number in numbers}
        return "failed" if "failed" in verdicts else "passed"

    def number_of_run(self, interval, kind: str, rule: dict) -> str:
        if kind == "quantile":
            values = np.sort(self.column(interval, rule["column"]).astype(float))
            if not len(values):
                return "skipped"
            ranks = np.clip([rule["rank"] - 0.034, rule["rank"] + 0.034], 0, 1)
            return bounded(*np.quantile(values, ranks), rule)
        exact = self.metric(interval, kind, rule)
        if exact is None:
            return "skipped"
        error = 0.081 if kind == "distinct_count" else 1e-6
        return bounded(exact * (1 - error), exact * (1 + error), rule)

    def before(self, interval, same=None) -> list:
        """Earlier intervals, the newest first."""
        zone = ZoneInfo(self.oracle.project.dags[self.view.dag]["schedule"].get("timezone", "UTC"))
        local = lambda interval: interval[0].astimezone(zone)
        alike = {None: lambda at: 0, "weekday": lambda at: at.weekday(), "hour": lambda at: at.hour,
                 "weekday_hour": lambda at: (at.weekday(), at.hour)}[same]
        earlier = [other for other in self.grid if other[1] <= interval[0] and alike(local(other)) == alike(local(interval))]
        return earlier[::-1]

    def row_count(self, interval, rule: dict) -> str:
        rows = self.metric(interval, "row_count", rule)
        if not rule.get("min", 0) <= rows <= rule.get("max", rows):
            return "failed"
        if "max_change" not in rule:
            return "passed"
        before = self.before(interval, rule.get("same"))
        was = self.metric(before[0], "row_count", rule) if before else 0
        if not was:
            return "skipped"
        return "passed" if abs(rows - was) / was <= rule["max_change"] else "failed"

    def anomaly(self, interval, rule: dict) -> str:
        value = self.metric(interval, rule["of"], rule)
        earlier = self.before(interval, rule.get("same"))[: rule.get("last", 30)]
        history = [number for number in (self.metric(other, rule["of"], rule) for other in earlier) if number is not None]
        if value is None or len(history) < rule.get("least", 7):
            return "skipped"
        median = np.median(history)
        deviation = stats.median_abs_deviation(history, scale="normal")
        if deviation == 0:
            deviation = math.sqrt(math.pi / 2) * np.mean(np.abs(np.array(history) - median))
        apart = abs(value - median)
        z = 0 if apart == 0 else math.inf if deviation == 0 else apart / deviation
        return beyond(rule.get("threshold", 3.5), z * (1 - 1e-6), z * (1 + 1e-6))

    def monotonic(self, interval, rule: dict) -> str:
        before = self.before(interval)
        now = self.metric(interval, rule["of"], rule)
        was = self.metric(before[0], rule["of"], rule) if before else None
        if now is None or was is None:
            return "skipped"
        return "passed" if (now <= was if rule.get("direction") == "down" else now >= was) else "failed"

    def drift(self, interval, rule: dict) -> str:
        measure, column = rule.get("measure", "psi"), rule["column"]
        earlier = self.before(interval)[: rule.get("last", 7)]
        now = self.column(interval, column)
        then = [self.column(other, column) for other in earlier]
        then = np.concatenate([values for values in then if len(values)]) if any(map(len, then)) else np.array([])
        if not len(now) or not len(then):
            return "skipped"
        if measure == "kolmogorov_smirnov":
            found = stats.ks_2samp(then.astype(float), now.astype(float)).statistic
            return beyond(rule.get("max", 0.1), found - 0.08, found + 0.08)
        if now.dtype.kind == "f":
            # Tidegate has more bins, of its own.
            edges = np.unique(np.quantile(then, np.linspace(0, 1, 11)[1:-1]))
            counts = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (then, now)]
            slack = 1.5
        else:
            seen = [collections.Counter(values.tolist()) for values in (then, now)]
            names = sorted(seen[0].keys() | seen[1].keys())
            counts = [np.array([side[name] for name in names]) for side in seen]
            slack = 1 + 1e-6
        if measure == "chi_square":
            p = stats.chi2_contingency(np.array(counts), correction=False).pvalue if len(counts[0]) > 1 else 1.0
            return bounded(p / slack, p * slack, {"min": rule.get("min_p_value", 0.001)})
        if measure == "jensen_shannon":
            found = jensenshannon(*counts, base=2)
        else:
            then, now = ((side + 0.5) / (side.sum() + 0.5 * len(side)) for side in counts)
            found = float(np.sum((now - then) * np.log(now / then)))
        return beyond(rule.get("max", 0.25 if measure == "psi" else 0.1), found / slack, found * slack)

    def reconciliation(self, interval, rule: dict) -> str:
        start, end = interval
        other = rule["equals"]
        what = lambda side: f"{side['of']}({quote(side['column']) if 'column' in side else '*'})"
        theirs = other if "of" in other else {**rule, **other}
        condition = other.get("where", "true")
        condition = condition.replace("$interval_start", literal(start)).replace("$interval_end", literal(end))
        if "source" in other:
            table = quote(other["source"])
        else:
            target = self.oracle.project.highest(other["view"])
            table = f"(SELECT * FROM {target.table} WHERE interval_start = {literal(start)})"
        there = self.oracle.db.execute(f"SELECT {what(theirs)} FROM {table} WHERE {condition}").fetchone()[0] or 0
        here = self.number(interval, what(rule), f"WHERE {rule.get('where', 'true')}") or 0
        within = rule.get("within", {})
        allowed = within.get("value", within.get("ratio", 1e-9) * abs(there))
        # Whole numbers add up exactly.
        error = 0 if isinstance(here, int) and isinstance(there, int) else 1e-7
        return beyond(allowed, abs(here - there) - error, abs(here - there) + error)

    def query(self, interval, rule: dict) -> tuple[str, int]:
        staged = f"SELECT * FROM {self.view.table} WHERE interval_start = {literal(interval[0])}"
        self.oracle.db.execute(f"CREATE OR REPLACE TEMP VIEW {quote(self.view.name)} AS {staged}")
        rows = self.oracle.db.execute(f"SELECT count(*) FROM ({rule['query']})").fetchone()[0]
        return ("passed" if rows <= rule.get("tolerate", {}).get("rows", 0) else "failed"), rows

    def judge(self, interval, kind: str, rule: dict) -> tuple[str, int | None]:
        """The verdict, and how many rows break the rule where that is told."""
        if "group_by" in rule and kind in ("row_count", *NUMBERS):
            return self.number_of_groups(interval, kind, rule), None
        if kind in NUMBERS:
            return self.number_of_run(interval, kind, rule), None
        if kind == "sql":
            return self.query(interval, rule)
        of_run = {"row_count": self.row_count, "anomaly": self.anomaly, "monotonic": self.monotonic, "drift": self.drift,
                  "reconciliation": self.reconciliation}.get(kind)
        return (of_run(interval, rule), None) if of_run else self.rows(interval, kind, rule)


def of_source(oracle: Oracle, source: dict, kind: str, rule: dict, day, before) -> str:
    """The verdict on a check of a source whose files were those of `day` (see verdicts.py) when it was judged, and those of
    `before`, if there was one, when the view that reads it was recorded last."""
    start, end = day.interval
    count = lambda day: oracle.db.execute(
        f"SELECT count(*) FROM {quote(source['name'])} WHERE {quote(source['event_time'])} >= {literal(day.interval[0])} "
        f"AND {quote(source['event_time'])} < {literal(day.interval[1])}"
    ).fetchone()[0]
    if kind == "freshness":
        if rule.get("of") == "files":
            return "passed" if day.shops_age <= duration(rule["max_age"]) else "failed"
        # As a number: DuckDB gives Python instants by way of a package that is not there.
        column = quote(source["event_time"])
        newest = f"SELECT epoch(max({column})) FROM {quote(source['name'])} WHERE {column} < {literal(end)}"
        newest = oracle.db.execute(newest).fetchone()[0]
        fresh = newest is not None and end.timestamp() - newest <= duration(rule["max_age"]).total_seconds()
        return "passed" if fresh else "failed"
    if kind == "volume":
        of = rule.get("of", "rows")
        size = (lambda day: count(day)) if of == "rows" else lambda day: getattr(day, of)
        now = size(day)
        if not rule.get("min", 0) <= now <= rule.get("max", now):
            return "failed"
        if "max_change" not in rule:
            return "passed"
        if before is None or not size(before):
            return "skipped"
        return "passed" if abs(now - size(before)) / size(before) <= rule["max_change"] else "failed"
    if kind == "schema":
        if before is None:
            return "skipped"
        added = day.shops.keys() - before.shops.keys()
        removed = before.shops.keys() - day.shops.keys()
        changed = {name for name in day.shops.keys() & before.shops.keys() if day.shops[name] != before.shops[name]}
        default = {"added": "ignore", "removed": "block", "changed": "block"}
        found = {"added": added, "removed": removed, "changed": changed}
        noticed = [what for what, names in found.items() if names and rule.get(what, default[what]) != "ignore"]
        return "failed" if noticed else "passed"
    raise SystemExit(f"judge.py knows no check of sources of the kind {kind}")
