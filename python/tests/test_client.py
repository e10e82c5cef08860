"""Opening a project, and letting go of it."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_a_pickled_client_opens_the_same_folder_elsewhere(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it arrives the current folder is another one, and so are variables."""
    monkeypatch.chdir(example / "sql")
    clients = [tidegate.Client(), tidegate.Client("..")]
    monkeypatch.setenv("TIDEGATE_PROJECT_DIR", os.pardir)
    clients.append(tidegate.Client())
    pickled = [pickle.dumps(client) for client in clients]
    monkeypatch.delenv("TIDEGATE_PROJECT_DIR")
    monkeypatch.chdir(tmp_path)
    for client, given in zip(clients, pickled, strict=True):
        with client, pickle.loads(given) as other:
            assert other.root.resolve() == example.resolve()
            assert other.views() == client.views()


def test_a_pickled_client_keeps_its_profile(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = project / "tidegate.yaml"
    settings.write_text(settings.read_text().replace("profiles:\n", "profiles:\n  batch: {online: none}\n"))
    monkeypatch.setenv("TIDEGATE_PROFILE", "batch")
    with tidegate.Client(project) as client:
        pickled = pickle.dumps(client)
    monkeypatch.delenv("TIDEGATE_PROFILE")
    with pickle.loads(pickled) as other, pytest.raises(tidegate.WrongRequest, match="has no online store"):
        other.online("carrier_delays", {"carrier": "UA"})


LABELS = {"carrier": ["UA"], "event_timestamp": ["2013-01-15T12:00:00Z"]}


def threads() -> dict[str, str]:
    """The threads of this process that Tidegate started, with their names."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue  # it has just ended
        if name.startswith(("tidegate", "engine", "sqlx")):
            found[task.name] = name
    return found


def open_files(folder: Path) -> list[str]:
    """The files below a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except OSError:
            continue
    return [path for path in found if path.startswith(f"{folder}{os.sep}")]


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where clients spill."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux says which threads and files there are")
@pytest.mark.parametrize("way", ["closed", "collected"])
def test_letting_go_leaves_neither_threads_nor_files(project: Path, scratch: Path, way: str) -> None:
    before = threads()
    client = tidegate.Client(project)
    client.training_set(LABELS, "carrier_delays")
    client.online("carrier_delays", {"carrier": "UA"})
    added = {name for number, name in threads().items() if number not in before}
    assert {"engine", "tidegate"} <= added
    assert open_files(project)
    assert os.listdir(scratch)
    if way == "closed":
        client.close()
        assert client.root == project, "what needs no connection is still known"
    else:
        del client
        gc.collect()
    assert open_files(project) == []
    # Threads and the folder that only computing needs go by themselves, soon.
    wait_until(lambda: threads().keys() <= before.keys(), "threads stay")
    wait_until(lambda: not os.listdir(scratch), "the folder to spill into stays")


def test_closing_disturbs_no_call_of_another_thread(example: Path, scratch: Path) -> None:
    """What it computes may be in the folder to spill into."""
    some = "SELECT a.carrier, a.time_hour AS event_timestamp FROM flights a, (SELECT * FROM airlines LIMIT 4) b"
    client = tidegate.Client(example)
    with ThreadPoolExecutor(1) as other:
        computing = other.submit(client.training_set, tidegate.Sql(some), "carrier_delays")
        wait_until(lambda: len(os.listdir(scratch)) > 0, "nothing is computed")
        client.close()
        folders = os.listdir(scratch)
        assert not computing.done(), "it takes a second or more"
        assert folders, "the folder is in use"
        with pytest.raises(tidegate.WrongRequest, match="this client is closed"):
            client.views()
        assert len(computing.result()) > 10_000
    wait_until(lambda: not os.listdir(scratch), "the folder to spill into stays")


def test_a_fork_leaves_what_it_was_given_to_its_owner(example: Path, scratch: Path) -> None:
    """It has none of the client's threads, and would wait for them forever: also when it closes, collects or ends."""
    script = """
import gc, os, signal, sys, tidegate

labels = {"carrier": ["UA"], "event_timestamp": ["2013-01-15T12:00:00Z"]}
client = tidegate.Client(sys.argv[1])
before = client.training_set(labels, "carrier_delays").to_arrow()
online = client.online("carrier_delays", {"carrier": "UA"})
folders = os.listdir(os.environ["TMPDIR"])
assert folders

for way in ("close", "with", "collect", "end"):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills also what never lets Python run
        if way == "close":
            client.close()
            try:
                tidegate.Client(sys.argv[1])
            except tidegate.Failed as error:
                assert "a client was open in the process that this one was forked from" in str(error)
            else:
                sys.exit("what the threads held is held there for ever")
        elif way == "with":
            with client:
                sys.exit(7)
        elif way == "collect":
            del client
            gc.collect()
        sys.exit(7)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == 7, f"{way}: {ended}"
    assert os.listdir(os.environ["TMPDIR"]) == folders, way
assert client.training_set(labels, "carrier_delays").to_arrow().equals(before)
assert client.online("carrier_delays", {"carrier": "UA"}) == online
"""
    done = subprocess.run(
        [sys.executable, "-c", script, example], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_process_is_told_to_open_its_own(example: Path) -> None:
    """Also when its parent closed the one that it had."""
    script = """
import os, sys, tidegate
client = tidegate.Client(sys.argv[1])
if os.fork() == 0:
    try:
        client.views()
    except tidegate.Failed as error:
        print(error, flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
print(len(client.views()), flush=True)
client.close()
if os.fork() == 0:
    with tidegate.Client(sys.argv[1]) as own:
        print(len(own.views()), flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", script, example], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "open clients only in the processes that use them" in lines[1]
    assert lines[2] == lines[3]


def test_ctrl_c_stops_what_is_computed(client: tidegate.Client) -> None:
    """Labels by the hundred million would take minutes."""
    many = "SELECT a.carrier, a.time_hour AS event_timestamp FROM flights a, flights b, flights c"
    # Programs that are started in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.training_set(tidegate.Sql(many), "carrier_delays")
    finally:
        stop.cancel()
        signal.signal(signal.SIGINT, before)
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
