"""Opening a project, and letting go of it."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tidegate


def test_a_project_is_found_from_below_and_by_the_variable(
    example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(example / "sql")
    with tidegate.Client() as client:
        assert client.root == example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_PROJECT_DIR", str(example))
    with tidegate.Client() as client:
        assert client.root == example
        assert repr(client) == f"<tidegate.Client of `flights` in {example}>"


def test_no_project_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEGATE_PROJECT_DIR", raising=False)
    for given in (None, tmp_path):
        with pytest.raises(tidegate.NotFound, match="there is no `tidegate.yaml`") as caught:
            tidegate.Client(given)
        assert caught.value.hint is not None
        assert "`project=`" in caught.value.hint


def test_nothing_applied_is_said(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("project: empty\n")
    with pytest.raises(tidegate.WrongRequest, match="nothing has been applied yet"):
        tidegate.Client(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["tidegate.yaml"], "a look leaves nothing behind"


def test_wrong_settings_are_shown_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("project: empty\nregisty: sqlite://x.db\n")
    with pytest.raises(tidegate.WrongRequest) as caught:
        tidegate.Client(tmp_path)
    assert "tidegate.yaml:2:1" in str(caught.value)
    assert "did you mean `registry`" in str(caught.value)


def test_a_profile_that_is_not_there(example: Path) -> None:
    with pytest.raises(tidegate.WrongRequest, match="profile"):
        tidegate.Client(example, profile="nothing")


def test_a_closed_client_says_so(example: Path) -> None:
    client = tidegate.Client(example)
    client.close()
    client.close()
    with pytest.raises(tidegate.WrongRequest, match="this client is closed"):
        client.views()


def test_a_pickled_client_opens_the_same_project(example: Path) -> None:
    with tidegate.Client(example) as client, pickle.loads(pickle.dumps(client)) as other:
        assert other.root == example
        assert other.views() == client.views()


def test_a_forked_process_is_told_to_open_its_own(example: Path) -> None:
    """A fork has none of the client's threads, and would wait for them forever."""
    script = """
import os, sys, tidegate
client = tidegate.Client(sys.argv[1])
if os.fork() == 0:
    try:
        client.views()
    except tidegate.Failed as error:
        print(error, flush=True)
    with tidegate.Client(sys.argv[1]) as own:
        print(len(own.views()), flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
print(len(client.views()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, example], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "open a client in each process" in lines[1]
    assert lines[2] == lines[3]


def test_ctrl_c_stops_what_is_computed(client: tidegate.Client) -> None:
    """Labels by the hundred million would take minutes."""
    many = "SELECT a.carrier, a.time_hour AS event_timestamp FROM flights a, flights b, flights c"
    stop = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.training_set(tidegate.Sql(many), "carrier_delays")
    finally:
        stop.cancel()
    assert len(client.views()) > 0, "the client goes on"


def test_other_threads_go_on_while_something_is_computed(client: tidegate.Client) -> None:
    query = "SELECT a.carrier, a.time_hour AS event_timestamp FROM flights a, airlines b"
    ticks = []
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.001):
            ticks.append(1)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        found = client.training_set(tidegate.Sql(query), "carrier_delays")
    finally:
        done.set()
        counter.join()
    assert len(found) > 100_000
    assert len(ticks) > 20
