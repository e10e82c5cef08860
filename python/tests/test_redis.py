"""A Redis as online store, and what happens when it goes away."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tidegate
from conftest import Command

UA = {"carrier": "UA"}


class Redis:
    """A server of our own."""

    def __init__(self, folder: Path) -> None:
        # It is held and never listened on: nobody else is handed the port, also while the server is down.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "tests/all.sh installs redis-server"
        self._process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        self._held.close()


class Proxy:
    """Hands commands on to a server one by one, each after `before` has seen it."""

    def __init__(self, port: int) -> None:
        self.before: Callable[[bytes], None] = lambda _: None
        self._behind = port
        self._ears = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._ears.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ears.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._ears.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._behind))
            threading.Thread(target=self._questions, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answers, args=(client, server), daemon=True).start()

    def _questions(self, client: socket.socket, server: socket.socket) -> None:
        stream = client.makefile("rb")
        while line := stream.readline():
            command = [line]
            for _ in range(int(line[1:])):  # *2 $4 PING $1 x
                length = stream.readline()
                command += [length, stream.read(int(length[1:]) + 2)]
            self.before(b"".join(command))
            server.sendall(b"".join(command))
        server.close()

    @staticmethod
    def _answers(client: socket.socket, server: socket.socket) -> None:
        try:
            while part := server.recv(1 << 16):
                client.sendall(part)
        except OSError:
            pass  # one of both is gone
        client.close()


def serve_from(project: Path, port: int) -> None:
    settings = project / "tidegate.yaml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("online:")]
    settings.write_text("\n".join([*lines, f"online: redis://127.0.0.1:{port}"]) + "\n")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.close()


@pytest.fixture
def served(project: Path, redis: Redis, command: Command) -> Path:
    """The example, served from Redis."""
    serve_from(project, redis.port)
    command(project, "online", "rebuild")
    return project


def test_redis_answers_as_sqlite_does(client: tidegate.Client, served: Path) -> None:
    keys = [{"carrier": carrier} for carrier in ("UA", "AA", "nobody")]
    with tidegate.Client(served) as other:
        assert other.online("carrier_delays", keys) == client.online("carrier_delays", keys)


def test_a_store_that_goes_away(served: Path, redis: Redis) -> None:
    with tidegate.Client(served, cache_seconds=3600) as client, tidegate.Client(served) as forgetful:
        before = client.online("carrier_delays", UA)
        assert forgetful.online("carrier_delays", UA) == before
        redis.stop()
        time.sleep(1.1)  # the next call looks what is live, and cannot
        remembered = client.online("carrier_delays", UA)
        assert remembered.features == before.features
        assert set(remembered.sources.values()) == {"cache"}
        with pytest.raises(tidegate.Unavailable, match="not available"):
            client.online("carrier_delays", {"carrier": "AA"})
        with pytest.raises(tidegate.Unavailable):
            forgetful.online("carrier_delays", UA)
        row = forgetful.online("carrier_delays", UA, defaults={"flights_7d": 9})
        assert (row.found, row.snapshot) == (False, None)
        assert set(row.sources.values()) == {"default"}
        both = client.online("carrier_delays", [UA, {"carrier": "AA"}], ["flights_7d"], defaults={})
        assert [each.sources["flights_7d"] for each in both] == ["cache", "default"]


def test_a_store_that_says_nothing(project: Path) -> None:
    """It takes the connection and never answers, as a machine does that hangs."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        serve_from(project, silent.getsockname()[1])
        with tidegate.Client(project) as client:
            began = time.monotonic()
            with pytest.raises(tidegate.Unavailable, match="did not answer within 0.3 s"):
                client.online("carrier_delays", UA, timeout=0.3)
            row = client.online("carrier_delays", UA, timeout=0.3, defaults={})
            assert set(row.sources.values()) == {"default"}
            assert time.monotonic() - began < 10, "without a limit each takes 15 s"


@pytest.fixture
def proxy(redis: Redis) -> Iterator[Proxy]:
    between = Proxy(redis.port)
    yield between
    between.close()


def test_the_time_limit_is_one_for_the_whole_answer(served: Path, proxy: Proxy) -> None:
    """Connecting, looking what is live, and reading: each of them is fast enough, and all together are not."""
    serve_from(served, proxy.port)
    proxy.before = lambda _: time.sleep(0.25)
    with tidegate.Client(served, cache_seconds=3600) as client:
        client.online("carrier_delays", UA, timeout=60)
        time.sleep(1.1)  # the next call looks what is live
        began = time.monotonic()
        with pytest.raises(tidegate.Unavailable, match="did not answer within 0.9 s"):
            client.online("carrier_delays", {"carrier": "AA"}, timeout=0.9)
        assert time.monotonic() - began < 2
        assert client.online("carrier_delays", {"carrier": "AA"}, timeout=None).found


@pytest.mark.parametrize("cache_seconds", [0, 3600])
@pytest.mark.parametrize("asked_before", [False, True])
def test_rows_are_of_what_is_said_to_be_live(
    served: Path, proxy: Proxy, command: Command, cache_seconds: float, asked_before: bool
) -> None:
    """Whatever goes live between the questions of one call."""
    serve_from(served, proxy.port)
    restored = threading.Event()

    def restore(question: bytes) -> None:
        if b"carrier_delays@v1:tag" in question and b"HMGET" in question and not restored.is_set():
            restored.set()
            command(served, "restore", "--view", "carrier_delays", "--last-good", "--reason", "a test", "--yes")

    with tidegate.Client(served, cache_seconds=cache_seconds) as client, tidegate.Client(served) as forgetful:
        old = forgetful.online("carrier_delays", UA)
        if asked_before:
            client.online("carrier_delays", {"carrier": "AA"})
        proxy.before = restore
        row = client.online("carrier_delays", UA, timeout=60)
        assert restored.is_set()
        new = forgetful.online("carrier_delays", UA)
        assert new.snapshot != old.snapshot
        assert new.features != old.features
        assert (row.snapshot, row.features) in [(each.snapshot, each.features) for each in (old, new)]
        time.sleep(1.1)
        later = client.online("carrier_delays", UA)
        assert (later.snapshot, later.features) == (new.snapshot, new.features)


def test_a_store_that_is_not_there_at_first(served: Path, redis: Redis, command: Command) -> None:
    redis.stop()
    with tidegate.Client(served) as client:
        with pytest.raises(tidegate.Unavailable):
            client.online("carrier_delays", UA)
        assert client.online("carrier_delays", UA, defaults={}).sources["flights_7d"] == "default"
        redis.start()
        command(served, "online", "rebuild")
        assert client.online("carrier_delays", UA).sources["flights_7d"] == "online"
