"""Training and scoring sets: the same rows as the command's, from whatever labels come as."""

import datetime as dt
import json
import random
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tidegate
from conftest import Command

UTC = dt.timezone.utc
NOON = dt.datetime(2013, 1, 15, 12, tzinfo=UTC)
FEATURES = ["carrier_delays", "carrier_trend.getting_worse"]


def labels(count: int = 300) -> pa.Table:
    """Labels of every carrier, and of one that does not exist, at any time of the first weeks."""
    rng = random.Random(7)
    carriers = ["UA", "AA", "DL", "HA", "WN", "nobody", None]
    rows = [
        (rng.choice(carriers), NOON + dt.timedelta(seconds=rng.randrange(-900_000, 900_000)), number)
        for number in range(count)
    ]
    carrier, at, number = zip(*rows, strict=True)
    return pa.table(
        {
            "carrier": pa.array(carrier, pa.string()),
            "event_timestamp": pa.array(at, pa.timestamp("us", tz="UTC")),
            "number": pa.array(number, pa.int64()),
        }
    )


def test_rows_and_digests_are_those_of_the_command(
    client: tidegate.Client, command: Command, example: Path, tmp_path: Path
) -> None:
    spine, out = tmp_path / "labels.parquet", tmp_path / "out.parquet"
    pq.write_table(labels(), spine)
    command(example, "dataset", "build", "--spine", str(spine), "--features", ",".join(FEATURES), "--out", str(out))
    built, manifest = pq.read_table(out), json.loads(Path(f"{out}.manifest.json").read_text())
    for given in (labels(), spine, str(spine)):
        found = client.training_set(given, FEATURES)
        assert found.to_arrow().equals(built)
        assert found.manifest["output"]["digest"] == manifest["output"]["digest"]
        assert found.manifest["spine"]["digest"] == manifest["spine"]["digest"]
        assert found.manifest["output"]["columns"] == manifest["output"]["columns"]
        assert found.manifest["views"] == manifest["views"]
    assert built.column("carrier_delays__flights_7d").null_count < len(built), "labels must see something"


def test_labels_may_be_any_frame(client: tidegate.Client) -> None:
    table = labels()
    expected = client.training_set(table, FEATURES).to_arrow()
    frame = table.to_pandas()
    forms = {
        "batch": table.combine_chunks().to_batches()[0],
        "reader": table.to_reader(max_chunksize=50),
        "dict": table.to_pydict(),
        "polars": pl.from_arrow(table),
        "pandas": frame,
        "shuffled index": frame.set_index(pd.Index(range(len(frame), 0, -1))),
        "categories": frame.astype({"carrier": "category"}),
        "dictionaries": table.set_column(0, "carrier", table.column("carrier").dictionary_encode()),
        "nanoseconds": table.set_column(1, "event_timestamp", table.column(1).cast(pa.timestamp("ns", tz="UTC"))),
        "another zone": table.set_column(
            1, "event_timestamp", table.column(1).cast(pa.timestamp("us", tz="America/New_York"))
        ),
    }
    names = [name for name in expected.column_names if "__" in name]
    for form, given in forms.items():
        found = client.training_set(given, FEATURES).to_arrow()
        assert found.select(names).equals(expected.select(names)), form
        assert found.column("number").to_pylist() == list(range(len(table))), f"{form}: the order is the labels'"


def test_an_index_of_pandas_with_names_is_columns(client: tidegate.Client) -> None:
    frame = labels().to_pandas().set_index(["carrier", "event_timestamp"])
    found = client.training_set(frame, FEATURES)
    assert {"carrier", "event_timestamp", "number"} <= set(found.column_names)
    assert isinstance(found.to_pandas().index, pd.RangeIndex)


def test_rows_go_to_arrow_pandas_and_polars(client: tidegate.Client) -> None:
    found = client.training_set(labels(), FEATURES)
    assert len(found) == 300
    assert found.column_names[:3] == ["carrier", "event_timestamp", "number"]
    table = found.to_arrow()
    assert pa.table(found).equals(table), "any reader of Arrow streams takes it as it is"
    assert list(found.to_pandas().columns) == found.column_names
    frame = found.to_polars()
    assert frame["number"].to_list() == table.column("number").to_pylist()
    assert frame["carrier_delays__flights_7d"].null_count() == table.column("carrier_delays__flights_7d").null_count
    assert repr(found) == "<tidegate.Dataset of 300 rows × 8 columns from carrier_delays@v1, carrier_trend@v1>"


def test_no_value_is_copied_on_its_way_out(client: tidegate.Client) -> None:
    given = labels(50_000)
    before = pa.total_allocated_bytes()
    table = client.training_set(given, FEATURES).to_arrow()
    assert table.nbytes > 2_000_000
    assert pa.total_allocated_bytes() - before < 100_000, "pyarrow would have to take memory for copies"


def test_rows_outlive_the_client(example: Path) -> None:
    with tidegate.Client(example) as opened:
        table = opened.training_set(labels(), FEATURES).to_arrow()
    del opened
    table.validate(full=True)
    assert table.column("carrier_delays__flights_7d").null_count < 300


def test_no_labels_are_no_rows(client: tidegate.Client) -> None:
    found = client.training_set(labels().slice(0, 0), FEATURES)
    assert len(found) == 0
    assert len(found.column_names) == 8
    assert found.manifest["spine"]["labels"] is None


def test_labels_may_be_a_query_over_sources(client: tidegate.Client) -> None:
    query = "SELECT DISTINCT carrier, time_hour AS event_timestamp FROM flights WHERE time_hour < '2013-01-10'"
    found = client.training_set(tidegate.Sql(query), "carrier_delays.flights_7d", names="short")
    assert found.column_names == ["carrier", "event_timestamp", "flights_7d"]
    assert found.manifest["spine"]["from"]["sql"]["sql"] == query


def test_the_column_with_the_instant_may_have_any_name_and_be_a_date_or_a_text(client: tidegate.Client) -> None:
    days = [dt.date(2013, 1, 9), dt.date(2013, 1, 20)]
    texts = ["2013-01-09T00:00:00Z", "2013-01-19T19:00:00-05:00"]
    rows = [
        client.training_set({"carrier": ["UA", "UA"], "day": given}, "carrier_delays", event_timestamp="day").to_arrow()
        for given in (days, texts)
    ]
    assert rows[0].drop_columns(["day"]).equals(rows[1].drop_columns(["day"]))
    assert rows[0].column("day").to_pylist() == days


def test_a_scoring_set_is_what_everybody_has_at_an_instant(
    client: tidegate.Client, command: Command, example: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    at = "2013-01-15T12:00:00Z"
    command(
        example, "dataset", "build", "--all-entities", "--at", at, "--features", "carrier_delays", "--out", str(out)
    )
    expected = pq.read_table(out)
    for given in (at, NOON, dt.datetime(2013, 1, 15, 12), NOON.astimezone(dt.timezone(dt.timedelta(hours=-5)))):
        assert client.scoring_set("carrier_delays", given).to_arrow().equals(expected)
    assert client.scoring_set("carrier_delays", dt.date(2013, 1, 15)).manifest["spine"]["from"] == {
        "entities": {"at": "2013-01-15T00:00:00Z"}
    }


def test_views_can_be_read_as_they_were(client: tidegate.Client) -> None:
    snapshots = client.snapshots(view="carrier_delays", limit=0)
    early = snapshots[-1]["id"]
    late = dt.datetime(2013, 3, 20, tzinfo=UTC)
    then = client.scoring_set("carrier_delays", late, at_snapshot=early)
    assert then.manifest["views"]["carrier_delays@v1"]["snapshot"] == early
    assert then.manifest["views"]["carrier_delays@v1"]["intervals"] == 1
    assert client.scoring_set("carrier_delays", late).manifest["views"]["carrier_delays@v1"]["intervals"] > 1
    # Nothing had been published in January: all of it was computed in April.
    nothing = client.training_set(labels(), "carrier_delays", known_at="2013-01-20").to_arrow()
    assert nothing.column("carrier_delays__flights_7d").null_count == len(nothing)


def test_labels_beyond_what_is_published_are_warned_of(client: tidegate.Client) -> None:
    late = {"carrier": ["UA"], "event_timestamp": [dt.datetime(2013, 5, 1, tzinfo=UTC)]}
    with pytest.warns(tidegate.LateWarning, match="1 of 1 rows are later than what `carrier_delays@v1` had") as caught:
        client.training_set(late, "carrier_delays")
    assert caught[0].filename == __file__, "it points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.training_set(labels(), "carrier_delays")


def test_a_set_that_cannot_be_remembered_is_handed_over_with_a_warning(project: Path) -> None:
    """It may have taken hours."""
    with tidegate.Client(project) as client:
        expected = client.training_set(labels(), FEATURES)
        db = sqlite3.connect(project / ".tidegate" / "registry.db", isolation_level=None)
        db.execute("CREATE TRIGGER full BEFORE INSERT ON datasets BEGIN SELECT RAISE(ABORT, 'no room for it'); END")
        with pytest.warns(tidegate.ForgottenWarning, match="does not remember it as `lost`") as caught:
            found = client.training_set(labels(), FEATURES, name="lost")
        assert found.to_arrow().equals(expected.to_arrow())
        assert "no room for it" in str(caught[0].message)
        assert "make it again under this name" in str(caught[0].message)
        assert caught[0].filename == __file__, "it points at the caller"
        db.execute("DROP TRIGGER full")
        db.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.training_set(labels(), FEATURES, name="kept")
        assert [dataset["name"] for dataset in client.datasets()][0] == "kept"
        assert "lost" not in [dataset["name"] for dataset in client.datasets()]


@contextmanager
def written_by_another(project: Path) -> Iterator[None]:
    """Nobody else can write into the registry meanwhile. Locks are of processes, so another one has to hold it."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""
    holder = [sys.executable, "-c", script, project / ".tidegate" / "registry.db"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate()


def test_a_registry_that_takes_no_name_is_found_before_anything_is_computed(project: Path) -> None:
    # What is wrong with it shows when it is computed.
    timeless = pa.table({"carrier": ["UA"], "event_timestamp": pa.array([None], pa.timestamp("us"))})
    with tidegate.Client(project) as client:
        with written_by_another(project), pytest.raises(tidegate.Unavailable, match="whether `weekly` can be remembered"):
            client.training_set(timeless, FEATURES, name="weekly")
        with pytest.raises(tidegate.WrongRequest, match="no `event_timestamp`"):
            client.training_set(timeless, FEATURES, name="weekly")


def test_several_threads_may_ask_at_once(client: tidegate.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = client.training_set(labels(), FEATURES).to_arrow()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: client.training_set(labels(), FEATURES).to_arrow(), range(8)))
    assert all(table.equals(expected) for table in found)


@pytest.mark.parametrize(
    ("given", "features", "options", "error", "says"),
    [
        (labels(), "carrier_delay", {}, tidegate.NotFound, "carrier_delays"),
        (labels(), "carrier_delays.flights", {}, tidegate.NotFound, "has no feature `flights`"),
        (labels(), [], {}, tidegate.WrongRequest, "no feature is asked for"),
        (labels(), FEATURES, {"at_snapshot": "0000"}, tidegate.NotFound, "no snapshot `0000`"),
        (labels(), FEATURES, {"at_snapshot": "0", "known_at": NOON}, tidegate.WrongRequest, "and not both"),
        (labels(), FEATURES, {"known_at": "soon"}, tidegate.WrongRequest, "`soon` is no time"),
        (labels(), FEATURES, {"names": "long"}, tidegate.WrongRequest, "it is `full` or `short`"),
        (labels().drop_columns(["carrier"]), FEATURES, {}, tidegate.WrongRequest, "carrier"),
        ({"at": ["2013-01-15"]}, FEATURES, {"event_timestamp": "at"}, tidegate.WrongRequest, "it has `at`: rename one"),
        (labels(), FEATURES, {"event_timestamp": "at"}, tidegate.WrongRequest, "name it with `event_timestamp=`"),
        (labels(), FEATURES, {"event_timestamp": "number"}, tidegate.WrongRequest, "not an instant"),
        (7, FEATURES, {}, tidegate.WrongRequest, "labels cannot be a int"),
        ({"carrier": ["UA"], "event_timestamp": []}, FEATURES, {}, tidegate.WrongRequest, "equal length"),
        ("nowhere.parquet", FEATURES, {}, tidegate.WrongRequest, "cannot be read"),
        (pa.chunked_array([["UA"]]), FEATURES, {}, tidegate.WrongRequest, "the labels are no table"),
        (pa.array(["UA"]), FEATURES, {}, tidegate.WrongRequest, "the labels are no table"),
        (pl.Series(["UA"]), FEATURES, {}, tidegate.WrongRequest, "the labels are no table"),
        (pd.Series(["UA"]), FEATURES, {}, tidegate.WrongRequest, "hint: give a frame"),
        (labels(), FEATURES, {"name": " "}, tidegate.WrongRequest, "the dataset's name is empty"),
        (tidegate.Sql("SELEC 1"), FEATURES, {}, tidegate.WrongRequest, "the spine's query is wrong"),
    ],
)
def test_what_is_wrong_is_said(
    client: tidegate.Client,
    given: object,
    features: object,
    options: dict[str, object],
    error: type[tidegate.TidegateError],
    says: str,
) -> None:
    with pytest.raises(error) as caught:
        client.training_set(given, features, **options)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert says in str(caught.value)


def test_a_label_without_an_instant_is_refused(client: tidegate.Client) -> None:
    given = pa.table({"carrier": ["UA"], "event_timestamp": pa.array([None], pa.timestamp("us"))})
    with pytest.raises(tidegate.WrongRequest, match="no `event_timestamp`"):
        client.training_set(given, FEATURES)
