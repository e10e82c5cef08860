"""Features online: values of their types, where they come from, and what is given in their place."""

import datetime as dt
import enum
import math
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tidegate
from conftest import Command
from tidegate import _online

FOREVER = dt.timedelta(days=36_500)


def test_one_entity(client: tidegate.Client) -> None:
    row = client.online("carrier_delays", {"carrier": "UA"})
    assert (row.view, row.entity, row.found) == ("carrier_delays@v1", {"carrier": "UA"}, True)
    assert set(row.features) == {"avg_dep_delay_7d", "worst_dep_delay_7d", "flights_7d", "cancelled_share_7d"}
    assert isinstance(row["avg_dep_delay_7d"], float)
    assert isinstance(row["flights_7d"], int)
    assert row["flights_7d"] > 100
    assert set(row.sources.values()) == {"online"}
    assert row.event_timestamp == dt.datetime(2013, 3, 31, 6, 15, tzinfo=dt.timezone.utc)
    assert row.snapshot == client.snapshots(view="carrier_delays", limit=1)[0]["id"]
    assert row.age is None


def test_online_is_what_a_scoring_set_says(client: tidegate.Client) -> None:
    """Of every entity of every view that is published online: training equals serving."""
    views = {view["view"]: view["output"] for view in client.views() if view["online"]}
    assert len(views) >= 4
    compared = 0
    for view, output in views.items():
        at = max(snapshot["interval_end"] for snapshot in client.snapshots(view=view, limit=0))
        names = [feature["name"] for feature in client.features() if feature["view"] == view]
        offline = client.scoring_set(view, at, names="short").to_arrow().to_pylist()
        keys = [{name: row[name] for name in row if name not in [*names, "event_timestamp"]} for row in offline]
        online = client.online(view, keys)
        for row, key, expected in zip(online, keys, offline, strict=True):
            assert row.entity == key
            for name in names:
                # Rows of a partial view expire, and the project's clock has gone on since.
                if not row.found and output == "partial":
                    continue
                if row.sources[name] != "online":
                    assert expected[name] is None, f"{view} {key} {name}"
                else:
                    given = row.features[name]
                    same = given == expected[name] or (isinstance(given, float) and math.isnan(given))
                    assert same, f"{view} {key} {name}: {given!r} and {expected[name]!r}"
                    compared += 1
    assert compared > 500


def test_several_entities_in_their_order(client: tidegate.Client) -> None:
    rows = client.online("carrier_delays", [{"carrier": "UA"}, {"carrier": "nobody"}, {"carrier": "AA"}], ["flights_7d"])
    assert [row.found for row in rows] == [True, False, True]
    assert [list(row.features) for row in rows] == [["flights_7d"]] * 3
    assert rows[1].features == {"flights_7d": 0}
    assert client.online("carrier_delays", []) == []
    assert client.online("carrier_delays", [], max_staleness=FOREVER) == []


@pytest.mark.parametrize(
    "several",
    [
        lambda keys: (key for key in keys),
        lambda keys: tuple(keys),
        pd.DataFrame,
        lambda keys: pd.DataFrame(keys).set_index("carrier"),
        pl.DataFrame,
        lambda keys: pa.Table.from_pylist(keys),
        lambda keys: pa.RecordBatch.from_pylist(keys),
        lambda keys: pa.table({"carrier": pa.array([key["carrier"] for key in keys]).dictionary_encode()}),
    ],
    ids=["generator", "tuple", "pandas", "index of pandas", "polars", "table", "batch", "dictionary"],
)
def test_several_entities_may_be_anything_with_rows(client: tidegate.Client, several: Any) -> None:
    keys = [{"carrier": "UA"}, {"carrier": "nobody"}, {"carrier": "AA"}]
    assert client.online("carrier_delays", several(keys)) == client.online("carrier_delays", keys)


@pytest.mark.parametrize(
    "given",
    ["UA", 7, None, ["UA"], pl.Series(["UA"]), pd.Series(["UA"]), pa.chunked_array([["UA"]]), pa.array(["UA"])],
    ids=lambda given: type(given).__name__,
)
def test_keys_without_names_are_refused(client: tidegate.Client, given: Any) -> None:
    with pytest.raises(tidegate.WrongRequest) as caught:
        client.online("carrier_delays", given)
    assert caught.value.hint is not None
    assert "frame" in caught.value.hint


def test_what_is_missing_has_the_stored_default_then_the_callers(client: tidegate.Client) -> None:
    row = client.online(
        "route_reliability",
        {"origin": "EWR", "dest": "XXX"},
        defaults={"distance_miles": 500, "flights_30d": 99},
    )
    assert not row.found
    assert row.event_timestamp is None
    assert (row["flights_30d"], row.sources["flights_30d"]) == (0, "default"), "the definition's comes first"
    assert (row["distance_miles"], row.sources["distance_miles"]) == (500, "caller")
    assert (row["last_scheduled_on"], row.sources["last_scheduled_on"]) == (None, "none")


def test_values_have_the_types_of_their_features(client: tidegate.Client) -> None:
    route = client.online("route_reliability", {"dest": "ORD", "origin": "EWR"})
    assert type(route["last_scheduled_on"]) is dt.date
    assert type(route["distance_miles"]) is int
    trend = client.online("carrier_trend", {"carrier": "UA"})
    assert type(trend["getting_worse"]) is bool
    assert trend["airline"] == "United Air Lines Inc."


def test_an_age_limit(client: tidegate.Client) -> None:
    fresh = client.online("carrier_delays", {"carrier": "UA"}, max_staleness=FOREVER)
    assert fresh.age is not None
    assert dt.timedelta(hours=1) < fresh.age < FOREVER
    with pytest.raises(tidegate.Stale, match="old, and at most 1:00:00 is allowed") as caught:
        client.online("carrier_delays", {"carrier": "UA"}, max_staleness=3600)
    assert "carrier_delays@v1" in caught.value.message
    instead = client.online("carrier_delays", {"carrier": "UA"}, max_staleness=3600, defaults={})
    assert instead.found
    assert set(instead.sources.values()) == {"default"}
    assert instead["flights_7d"] == 0
    assert client.online("carrier_delays", [], max_staleness=3600) == [], "of nobody nothing is too old"


def test_a_time_limit_may_be_none(client: tidegate.Client) -> None:
    assert client.online("carrier_delays", {"carrier": "UA"}, timeout=None).found
    assert client.online("carrier_delays", {"carrier": "UA"}, timeout=math.inf).found
    assert client.online("carrier_delays", {"carrier": "UA"}, timeout=dt.timedelta(seconds=20)).found


def test_a_feature_that_is_switched_off(project: Path, command: Command) -> None:
    command(project, "feature", "disable", "carrier_delays.flights_7d", "--serve", "null", "--reason", "a test")
    command(
        project, "feature", "disable", "carrier_delays.avg_dep_delay_7d", "--serve", "default", "--reason", "a test"
    )
    with tidegate.Client(project) as client:
        row = client.online("carrier_delays", {"carrier": "UA"}, defaults={"flights_7d": 7})
        assert (row["flights_7d"], row.sources["flights_7d"]) == (None, "switched_off")
        assert (row["avg_dep_delay_7d"], row.sources["avg_dep_delay_7d"]) == (0.0, "switched_off")
        assert row.sources["worst_dep_delay_7d"] == "online"


def overwrite(project: Path, flights: int) -> None:
    """Changes what is stored behind everybody's back."""
    with sqlite3.connect(project / ".tidegate" / "online.db") as db:
        changed = db.execute(
            "UPDATE feature_rows SET features = json_set(features, '$.flights_7d', ?) WHERE entity_key = 'UA' "
            "AND (view, generation) IN (SELECT view, generation FROM live WHERE view = 'carrier_delays@v1')",
            (str(flights),),
        )
        assert changed.rowcount == 1
    db.close()


def test_what_was_read_is_remembered_for_some_seconds(project: Path) -> None:
    ua = {"carrier": "UA"}
    with tidegate.Client(project, cache_seconds=3600) as client, tidegate.Client(project) as forgetful:
        first = client.online("carrier_delays", ua)
        overwrite(project, 1)
        again = client.online("carrier_delays", ua)
        assert again.features == first.features
        assert set(again.sources.values()) == {"cache"}
        assert again.snapshot == first.snapshot
        read = forgetful.online("carrier_delays", ua)
        assert (read["flights_7d"], read.sources["flights_7d"]) == (1, "online")
        both = client.online("carrier_delays", [{"carrier": "AA"}, ua, {"carrier": "DL"}], ["flights_7d"])
        assert [row.sources["flights_7d"] for row in both] == ["online", "cache", "online"]
    with tidegate.Client(project, cache_seconds=0.2) as client:
        client.online("carrier_delays", ua)
        overwrite(project, 2)
        time.sleep(0.3)
        assert client.online("carrier_delays", ua)["flights_7d"] == 2


def test_what_is_remembered_is_dropped_when_something_else_goes_live(project: Path, command: Command) -> None:
    ua = {"carrier": "UA"}
    with tidegate.Client(project, cache_seconds=3600) as client:
        before = client.online("carrier_delays", ua)
        command(project, "restore", "--view", "carrier_delays", "--last-good", "--reason", "a test", "--yes")
        deadline = time.monotonic() + 60
        while (after := client.online("carrier_delays", ua)).snapshot == before.snapshot:
            assert time.monotonic() < deadline, "a restore must reach readers that remember"
            time.sleep(0.05)
        assert set(after.sources.values()) == {"online"}
        assert after.features != before.features
        assert set(client.online("carrier_delays", ua).sources.values()) == {"cache"}


def test_no_answer_mixes_what_was_remembered_with_what_is_live_now(project: Path) -> None:
    """Something else may go live just after it was looked what is live, and entities that are not remembered are of it."""
    view, keys = "carrier_delays", [{"carrier": carrier} for carrier in ("UA", "AA", "DL")]
    with tidegate.Client(project, cache_seconds=3600) as client, tidegate.Client(project) as forgetful:
        snapshots = [snapshot["id"] for snapshot in client.snapshots(view=view, limit=2)]
        before = client.online(view, keys[:2], max_staleness=FOREVER)
        assert [row.snapshot for row in before] == snapshots[:1] * 2
        with sqlite3.connect(project / ".tidegate" / "online.db") as db:
            # As a restore does it.
            changed = db.execute(
                "UPDATE live SET publish_number = publish_number + 1, tag = replace(tag, ?, ?), "
                "generation = (SELECT max(generation) FROM generations WHERE view = live.view AND state = 'published' "
                "AND generation < live.generation) WHERE view = 'carrier_delays@v1'",
                snapshots,
            )
            assert changed.rowcount == 1
        db.close()
        after = client.online(view, keys, max_staleness=FOREVER)
        expected = forgetful.online(view, keys, max_staleness=FOREVER)
        assert [row.features for row in after] == [row.features for row in expected]
        assert [row.snapshot for row in after] == snapshots[1:] * 3
        assert after[0]["avg_dep_delay_7d"] != before[0]["avg_dep_delay_7d"]
        assert {source for row in after for source in row.sources.values()} == {"online"}
        assert (after[0].age or FOREVER) > (before[0].age or FOREVER) + dt.timedelta(hours=12)
        again = client.online(view, keys)
        assert [row.features for row in again] == [row.features for row in after]
        assert {source for row in again for source in row.sources.values()} == {"cache"}


def test_what_is_remembered_may_be_so_for_ever(project: Path) -> None:
    with tidegate.Client(project, cache_seconds=math.inf) as client:
        client.online("carrier_delays", {"carrier": "UA"})
        assert client.online("carrier_delays", {"carrier": "UA"}).sources["flights_7d"] == "cache"


def test_a_switch_reaches_what_is_remembered(project: Path, command: Command) -> None:
    with tidegate.Client(project, cache_seconds=3600) as client:
        client.online("carrier_delays", {"carrier": "UA"})
        command(project, "feature", "disable", "carrier_delays.flights_7d", "--serve", "null", "--reason", "a test")
        deadline = time.monotonic() + 60
        while client.online("carrier_delays", {"carrier": "UA"}).sources["flights_7d"] != "switched_off":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_keys_are_texts_numbers_dates_and_what_looks_like_them(client: tidegate.Client) -> None:
    import numpy as np

    assert client.online("carrier_delays", {"carrier": np.str_("UA")}).found
    for value, expected in [
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (np.datetime64("2013-01-09"), "2013-01-09"),
        (np.datetime64("2013-01-09T12:00", "ns"), "2013-01-09T12:00:00+00:00"),
    ]:
        assert _online.text("key", value) == expected
    for keys, error, says in [
        ({"carier": "UA"}, tidegate.WrongRequest, "did you mean `carrier`?"),
        ({}, tidegate.WrongRequest, "the key `carrier` is missing"),
        ({"carrier": 1.5}, tidegate.WrongRequest, "the key `carrier` cannot be 1.5"),
        ({"carrier": np.array(["UA", "AA"])}, tidegate.WrongRequest, "the key `carrier` cannot be array"),
        ({"carrier": np.longdouble(1)}, tidegate.WrongRequest, "the key `carrier` cannot be np.longdouble"),
        ({"carrier": None}, tidegate.WrongRequest, "the key `carrier` cannot be None"),
    ]:
        with pytest.raises(error, match=says.replace("?", r"\?")):
            client.online("carrier_delays", keys)


class Carrier(str, enum.Enum):
    """A key as programs like to write it: ``str`` of a member is its name."""

    UA = "UA"


class Feature(str, enum.Enum):
    FLIGHTS = "flights_7d"


class Number(int, enum.Enum):
    SEVEN = 7


def test_members_of_enums_are_what_they_hold(client: tidegate.Client) -> None:
    row = client.online("carrier_delays", {"carrier": Carrier.UA}, [Feature.FLIGHTS])
    assert row == client.online("carrier_delays", {"carrier": "UA"}, ["flights_7d"])
    assert row.found
    assert _online.text("number", Number.SEVEN) == "7"
    assert _online.text("flag", True) == "true"


def test_names_that_mean_nothing(client: tidegate.Client) -> None:
    ua = {"carrier": "UA"}
    with pytest.raises(tidegate.NotFound, match="did you mean `flights_7d`"):
        client.online("carrier_delays", ua, ["flights_7"])
    with pytest.raises(tidegate.NotFound, match="did you mean `carrier_delays`"):
        client.online("carrier_delay", ua)
    with pytest.raises(tidegate.WrongRequest, match="a default for `flights`, which is not asked for"):
        client.online("carrier_delays", ua, defaults={"flights": 1})
    with pytest.raises(tidegate.WrongRequest, match=r"give a list, as in `\['flights_7d'\]`"):
        client.online("carrier_delays", ua, "flights_7d")
    with pytest.raises(tidegate.WrongRequest, match="no length of time"):
        client.online("carrier_delays", ua, max_staleness=-1)
    with pytest.raises(tidegate.WrongRequest, match="'soon' is no length of time"):
        client.online("carrier_delays", ua, timeout="soon")  # type: ignore[arg-type]


def test_a_batch_only_project_says_so(project: Path) -> None:
    settings = project / "tidegate.yaml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("online:")]
    settings.write_text("\n".join(lines) + "\n")
    with (
        tidegate.Client(project) as client,
        pytest.raises(tidegate.WrongRequest, match="the project has no online store"),
    ):
        client.online("carrier_delays", {"carrier": "UA"})
