"""What is looked up in the registry is what the command lists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tidegate
from conftest import Command

Listed = Callable[..., list[dict[str, Any]]]


def test_lists_are_those_of_the_command(client: tidegate.Client, listed: Listed, example: Path) -> None:
    assert client.views() == listed(example, "views", "list")
    assert client.views(search="route") == listed(example, "views", "list", "--search", "route")
    assert client.views(tag="week") == listed(example, "views", "list", "--tag", "week") != []
    assert client.views(owner="nobody") == []
    assert client.features() == listed(example, "features", "list")
    assert client.features(tag="volume") == listed(example, "features", "list", "--tag", "volume") != []
    assert client.services() == listed(example, "services", "list")
    assert client.consumers() == listed(example, "consumers", "list")
    assert client.consumers(view="carrier_delays") == listed(example, "consumers", "list", "--view", "carrier_delays")
    assert client.snapshots(limit=3) == listed(example, "snapshots", "list", "--limit", "3")
    assert len(client.snapshots(limit=3)) == 3
    assert client.snapshots(dag="flights_hourly", limit=2) == listed(
        example, "snapshots", "list", "--dag", "flights_hourly", "--limit", "2"
    )


def test_datasets_are_found_by_what_they_were_built_from(
    project: Path, command: Command, listed: Listed, tmp_path: Path
) -> None:
    command(
        project, "dataset", "build", "--all-entities", "--at", "2013-01-15", "--features", "carrier_delays",
        "--name", "first", "--out", str(tmp_path / "first.parquet"),
    )  # fmt: skip
    with tidegate.Client(project) as client:
        # Others were built in the project that this one is a copy of.
        assert client.datasets()[0]["name"] == "first"
        assert client.datasets() == listed(project, "dataset", "list")
        assert "first" not in [dataset["name"] for dataset in client.datasets(view="airport_day", limit=0)]
        oldest = client.snapshots(view="carrier_delays", limit=0)[-1]["id"]
        assert client.datasets(built_from=oldest)[0]["name"] == "first"


def test_a_set_with_a_name_is_remembered(project: Path, listed: Listed) -> None:
    with tidegate.Client(project) as client:
        client.scoring_set("carrier_delays", "2013-01-14")
        count = len(client.datasets(limit=0))
        made = client.scoring_set("carrier_delays", "2013-01-15", name="the scores of a notebook")
        found = client.datasets(limit=0)
        assert len(found) == count + 1, "only what has a name is remembered"
        assert found[0]["name"] == "the scores of a notebook"
        assert found[0]["out"] == "(in memory)"
        assert found[0]["manifest"] == made.manifest
    assert listed(project, "dataset", "list", "--view", "carrier_delays")[0] == found[0]


def test_what_is_applied_meanwhile_is_seen(project: Path, command: Command) -> None:
    with tidegate.Client(project) as client:
        assert client.project == "flights"
        assert client.root == project
        (project / "more.yaml").write_text(
            "feature_services:\n  - {name: just_delays, owner: delays, description: a few, features: [carrier_delays]}\n"
        )
        command(project, "apply", "--yes")
        assert "just_delays" in [service["service"] for service in client.services()]
        assert len(client.scoring_set("just_delays", "2013-01-15")) > 5


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda client: client.snapshots(dag="flights_dayly"), "did you mean `flights_daily`?"),
        (lambda client: client.snapshots(view="carrier_delays@v9"), "no feature view `carrier_delays@v9`"),
        (lambda client: client.consumers(view="nothing"), "no feature view `nothing`"),
        (lambda client: client.datasets(built_from="ffff"), "no snapshot `ffff`"),
    ],
)
def test_names_that_mean_nothing_are_not_found(
    client: tidegate.Client, ask: Callable[[tidegate.Client], object], says: str
) -> None:
    with pytest.raises(tidegate.NotFound, match=says.replace("?", r"\?")):
        ask(client)


def test_a_dag_or_a_view(client: tidegate.Client) -> None:
    with pytest.raises(tidegate.WrongRequest, match="by DAG or by view"):
        client.snapshots(dag="flights_daily", view="carrier_delays")
