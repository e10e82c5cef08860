"""What a project's views ought to hold, worked out a second time: in Python and DuckDB, sharing no code with Tidegate.

`Project` reads the YAML files, `Project.grid` cuts time into intervals with the zone database of Python, and `Oracle`
computes the rows of every view for every interval that is asked for, in the order of their ends, so that a view which
reads the state or the history of others finds what they left before.

It checks nothing about the files: a wrong project makes it stop with a Python error.
"""

import datetime as dt
import re
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import yaml

UTC = dt.timezone.utc
Interval = tuple[dt.datetime, dt.datetime]

TYPES = {
    "string": "VARCHAR",
    "boolean": "BOOLEAN",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}


def sql_type(name: str) -> str:
    item = re.fullmatch(r"array<(\w+)>", name)
    return f"{TYPES[item[1]]}[]" if item else TYPES[name]


@dataclass
class View:
    name: str
    version: int
    keys: list[tuple[str, str]]
    features: list[tuple[str, str]]
    sql: str
    ttl: dt.timedelta | None
    checks: list[dict]
    max_deletes: float | None
    dag: str | None = None
    # (table name as the SQL says it, "state" or "history", view id)
    reads: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{self.name}@v{self.version}"

    @property
    def key_names(self) -> list[str]:
        return [name for name, _ in self.keys]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Keys, `event_timestamp`, features: what a query gives and what SQL sees of another view."""
        return [*self.keys, ("event_timestamp", "timestamp"), *self.features]

    @property
    def table(self) -> str:
        return f'oracle."{self.id}"'


class Project:
    """The definitions below a folder."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.sources: dict[str, dict] = {}
        self.views: dict[str, View] = {}
        self.dags: dict[str, dict] = {}
        files = [f for f in sorted(self.root.rglob("*.y*ml")) if f.suffix in (".yaml", ".yml")]
        documents = [
            yaml.safe_load(f.read_text(encoding="utf-8"))
            for f in files
            if f.name != "tidegate.yaml" and not any(part.startswith(".") for part in f.relative_to(self.root).parts)
        ]
        merged: dict[str, list] = {}
        for document in documents:
            for kind, items in document.items():
                merged.setdefault(kind, []).extend(items)
        entities = {e["name"]: [(k["name"], k["type"]) for k in e["keys"]] for e in merged.get("entities", [])}
        self.sources = {s["name"]: s for s in merged.get("sources", [])}
        for raw in merged.get("feature_views", []):
            view = View(
                name=raw["name"],
                version=raw.get("version", 1),
                keys=entities[raw["entity"]],
                features=[(f["name"], f["type"]) for f in raw["features"]],
                sql=raw["sql"] if "sql" in raw else (self.root / raw["sql_file"]).read_text(encoding="utf-8"),
                ttl=duration(raw["ttl"]) if raw.get("output") == "partial" else None,
                checks=raw.get("checks", []),
                max_deletes=(raw.get("online") or {}).get("max_deletes"),
            )
            self.views[view.id] = view
        services = {s["name"]: s["features"] for s in merged.get("feature_services", [])}
        for raw in merged.get("datasets", []):
            view = self._dataset(raw, entities[raw["entity"]], services)
            self.views[view.id] = view
        for dag in merged.get("dags", []):
            self.dags[dag["name"]] = dag
            for name in dag["views"]:
                for view in self.views.values():
                    if name in (view.name, view.id):
                        view.dag = dag["name"]
        for view in self.views.values():
            view.reads = self._reads(view)

    def highest(self, name: str) -> View | None:
        return max((v for v in self.views.values() if v.name == name), key=lambda v: v.version, default=None)

    def _dataset(self, raw: dict, keys: list[tuple[str, str]], services: dict[str, list[str]]) -> View:
        """A dataset is a view of what other views hold for the keys that its query gives; the order of columns is free."""
        assert "sql" in raw and raw.get("names", "full") == "full", f"{raw['name']}: the oracle knows no such dataset"
        names = [name for item in raw["features"] for name in services.get(item, [item])]
        features, joined = [], f"SELECT * FROM ({raw['sql']}) AS spine"
        for name in dict.fromkeys(name.partition(".")[0] for name in names):
            view = self.highest(name)
            assert view, f"{raw['name']} asks for {name}, which is no view"
            asked = [f for f in view.features if name in names or f"{name}.{f[0]}" in names]
            features += [(f"{name}__{feature}", kind) for feature, kind in asked]
            columns = [*view.key_names, *(f"{quote(feature)} AS {name}__{feature}" for feature, _ in asked)]
            joined += f" LEFT JOIN (SELECT {', '.join(columns)} FROM {name}) USING ({', '.join(view.key_names)})"
        return View(
            name=raw["name"],
            version=raw.get("version", 1),
            keys=keys,
            features=features,
            sql=joined,
            ttl=None,
            checks=raw.get("checks", []),
            max_deletes=None,
        )

    def _reads(self, view: View) -> list[tuple[str, str, str]]:
        reads = []
        # The parser lists names without knowing the tables, but refuses parameters.
        without_parameters = re.sub(r"\$interval_(start|end)\b", "NULL", view.sql)
        for name in sorted(duckdb.connect().get_table_names(without_parameters, qualified=True)):
            schema, _, table = re.sub(" AS .*$", "", name).rpartition(".")
            table = table.strip('"')
            target = self.views.get(table) or self.highest(table)
            if schema == "history":
                assert target, f"{view.id} reads {name}, which is no view"
                reads.append((table, "history", target.id))
            elif table not in self.sources:
                assert target, f"{view.id} reads {name}, which is neither a source nor a view"
                reads.append((table, "state", target.id))
        return reads

    def in_dependency_order(self) -> list[View]:
        ordered: list[View] = []
        waiting = [v for v in self.views.values() if v.dag]
        while waiting:
            left = {v.id for v in waiting}
            ready = [v for v in waiting if not any(target in left for _, _, target in v.reads)]
            assert ready, f"{sorted(left)} read each other in a circle"
            ordered += ready
            waiting = [v for v in waiting if v not in ready]
        return ordered

    def grid(self, dag: str, start=None, end=None) -> list[Interval]:
        """The intervals of a DAG, those whose start lies in `[start, end)` if given (a date is midnight in its zone)."""
        schedule = self.dags[dag]["schedule"]
        zone = ZoneInfo(schedule.get("timezone", "UTC"))
        assert schedule.get("end") or end, f"{dag} has no end, so say where to stop"
        low = instant(schedule["start"], zone)
        high = instant(schedule["end"], zone) if schedule.get("end") else instant(end, zone)
        elapsed = any("*" in part or "/" in part for part in schedule["cron"].split()[:2])
        gap = schedule.get("gap", "skip" if elapsed else "run_after")
        overlap = schedule.get("overlap", "both" if elapsed else "first")
        # Two days more than asked for: the last interval ends at a tick after `high`, however rare ticks are.
        ticks: list[dt.datetime] = []
        day = low.astimezone(zone).date() - dt.timedelta(days=1)
        while not (ticks and ticks[-1] >= high):
            ticks = sorted(set(ticks) | set(ticks_of_day(schedule["cron"], day, zone, gap, overlap)))
            day += dt.timedelta(days=1)
        intervals = [(a, b) for a, b in zip(ticks, ticks[1:]) if low <= a < high]
        if start is not None:
            intervals = [i for i in intervals if i[0] >= instant(start, zone)]
        if end is not None:
            intervals = [i for i in intervals if i[0] < instant(end, zone)]
        return intervals


def duration(text: str) -> dt.timedelta:
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[text[-1]]
    return dt.timedelta(**{unit: int(text[:-1])})


def instant(value, zone: ZoneInfo) -> dt.datetime:
    """A date is midnight in the zone; a time without an offset is read on the zone's clock."""
    if isinstance(value, str):
        value = dt.date.fromisoformat(value) if len(value) == 10 else dt.datetime.fromisoformat(value)
    if isinstance(value, dt.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)
    return dt.datetime.combine(value, dt.time(), zone).astimezone(UTC)


NAMES = {
    3: {m: i + 1 for i, m in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split())},
    4: {d: i for i, d in enumerate("sun mon tue wed thu fri sat".split())},
}
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def cron_fields(cron: str) -> list[set[int]]:
    fields = []
    for at, text in enumerate(SHORT.get(cron, cron).split()):
        low, high = RANGES[at]
        number = lambda word: NAMES.get(at, {}).get(word.lower(), None) if word.isalpha() else int(word)
        values: set[int] = set()
        for part in text.split(","):
            span, _, step = part.partition("/")
            if span == "*":
                first, last = low, high
            elif "-" in span:
                first, last = (number(word) for word in span.split("-"))
            else:
                first = number(span)
                last = high if step else first
            values |= set(range(first, last + 1, int(step or 1)))
        fields.append({v % 7 for v in values} if at == 4 else values)
    return fields


def ticks_of_day(cron: str, day: dt.date, zone: ZoneInfo, gap: str, overlap: str) -> list[dt.datetime]:
    minutes, hours, days, months, weekdays = cron_fields(cron)
    _, _, day_text, _, weekday_text = SHORT.get(cron, cron).split()
    in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
    # crontab(5): when both day fields are restricted, either may match.
    either = not day_text.startswith("*") and not weekday_text.startswith("*")
    if day.month not in months or not ((in_month or in_week) if either else (in_month and in_week)):
        return []
    walls = [dt.datetime.combine(day, dt.time(h, m)) for h in sorted(hours) for m in sorted(minutes)]
    return sorted({tick for wall in walls for tick in resolve(wall, zone, gap, overlap)})


def resolve(wall: dt.datetime, zone: ZoneInfo, gap: str, overlap: str) -> list[dt.datetime]:
    """The instants that a wall-clock time stands for: none, one or two."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first.astimezone(zone).replace(tzinfo=None) != wall:
        if gap == "skip":
            return []
        # With fold=1 the offset after the change is used, which leads to before the change, and the other way round.
        before, after = second, first
        offset = lambda at: at.astimezone(zone).utcoffset()
        while after - before > dt.timedelta(seconds=1):
            middle = before + dt.timedelta(seconds=(after - before).total_seconds() // 2)
            before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
        return [after]
    if first == second:
        return [first]
    return {"first": [first], "second": [second], "both": [first, second]}[overlap]


class Oracle:
    """The rows of every view, in DuckDB: `run` fills them, `rows` reads them."""

    def __init__(self, project: Project):
        self.project = project
        self.db = duckdb.connect()
        self.db.execute("SET TimeZone = 'UTC'; CREATE SCHEMA oracle; CREATE SCHEMA history")
        self.published: dict[str, list[Interval]] = {v: [] for v in project.views}
        for source in project.sources.values():
            self._load(source)
        for view in project.views.values():
            columns = [*view.columns, ("interval_start", "timestamp"), ("interval_end", "timestamp")]
            self.db.execute(f"CREATE TABLE {view.table} ({', '.join(f'{quote(n)} {sql_type(t)}' for n, t in columns)})")

    def _load(self, source: dict) -> None:
        (kind,) = {"parquet", "csv", "delta"} & source.keys()
        place = source[kind] + (f"*.{kind}" if source[kind].endswith("/") else "")
        assert kind != "delta", "the oracle reads Parquet and CSV sources only"
        self.db.execute(
            f"CREATE TABLE {quote(source['name'])} AS SELECT * FROM read_{kind}(?)", [str(self.project.root / place)]
        )

    def run(self, intervals: dict[str, list[Interval]]) -> None:
        """Computes `intervals` (by view id), oldest end first, a view after those that it reads."""
        order = self.project.in_dependency_order()
        work = [(i[1], i[0], at) for at, view in enumerate(order) for i in intervals.get(view.id, [])]
        for end, start, at in sorted(work, key=lambda w: (w[0], w[2])):
            self._compute(order[at], (start, end))

    def _compute(self, view: View, interval: Interval) -> None:
        start, end = interval
        for name, meaning, target in view.reads:
            if meaning == "history":
                self.db.execute(f"CREATE OR REPLACE VIEW history.{quote(name)} AS {self._history(target, end)}")
            else:
                self.db.execute(f"CREATE OR REPLACE TEMP VIEW {quote(name)} AS {self._state(target, end)}")
        given = {"interval_start": start, "interval_end": end}
        parameters = {n: v for n, v in given.items() if re.search(rf"\${n}\b", view.sql)}
        self.db.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {view.sql}", parameters)
        made = {column for column, *_ in self.db.execute("DESCRIBE staged").fetchall()}
        declared = {name for name, _ in view.columns}
        assert made | {"event_timestamp"} == declared, f"{view.id} gives {sorted(made)}, declared {sorted(declared)}"
        values = [quote(n) if n in made else f"{literal(end)} AS {quote(n)}" for n, _ in view.columns]
        self.db.execute(
            f"INSERT INTO {view.table} SELECT {', '.join(values)}, {literal(start)}, {literal(end)} FROM staged"
        )
        self.published[view.id].append(interval)

    def _columns(self, view: View) -> str:
        return ", ".join(quote(n) for n, _ in view.columns)

    def _history(self, view_id: str, at: dt.datetime) -> str:
        view = self.project.views[view_id]
        # History also says which interval each row belongs to.
        return f"SELECT * FROM {view.table} WHERE interval_end <= {literal(at)}"

    def _state(self, view_id: str, at: dt.datetime) -> str:
        view = self.project.views[view_id]
        if view.ttl is None:
            # The newest published interval counts also when it has no rows, so ask the ledger and not the rows.
            newest = max((end for _, end in self.published[view_id] if end <= at), default=None)
            chosen = f"interval_end = {literal(newest)}" if newest else "false"
            return f"SELECT {self._columns(view)} FROM {view.table} WHERE {chosen}"
        keys = ", ".join(quote(n) for n in view.key_names)
        seconds = view.ttl.total_seconds()
        return f"""
            SELECT {self._columns(view)} FROM (
              SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY event_timestamp DESC, interval_end DESC) AS nth
              FROM {view.table} WHERE interval_end <= {literal(at)}
            ) WHERE nth = 1 AND event_timestamp + to_seconds({seconds}) > {literal(at)}"""

    def rows(self, view: View, interval: Interval | None = None):
        """The rows of a view, or of one interval of it, as an Arrow table."""
        where = f"WHERE interval_start = {literal(interval[0])}" if interval else ""
        return self.db.sql(f"SELECT * FROM {view.table} {where}").to_arrow_table()


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(at: dt.datetime) -> str:
    return f"TIMESTAMPTZ '{at.astimezone(UTC).isoformat()}'"
