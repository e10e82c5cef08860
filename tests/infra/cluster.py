"""The compose file's cluster with processes for containers: the same commands, settings and health checks, with PostgreSQL, Redis
and an S3 server of this machine.

It shows what a schema cannot: that the URLs are understood, that steps come in an order that works, that nothing is written
below the project (which is mounted read-only), and that every role stops in the time that it is given.
"""

import contextlib
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import compose
from shared import seconds

# More than anything here takes on a machine that does much else.
PATIENCE_SECS = 120
SERVE_S3 = Path(__file__).resolve().parents[1] / "servers/src/serve_s3.py"
SECRETS = {"POSTGRES_PASSWORD": "p0stgres", "REDIS_PASSWORD": "secret123", "STORE_USER": "store", "STORE_PASSWORD": "st0restore"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(what: str, ready, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECS
    while not ready():
        if process and process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {PATIENCE_SECS} s")
        time.sleep(0.2)


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[int]:
    """A private server with the database and the user of the compose file; its port."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb")]
    programs = Path(found[-1]).parent
    port, data = free_port(), folder / "postgres"
    data.mkdir(mode=0o700)
    (folder / "pg_password").write_text(SECRETS["POSTGRES_PASSWORD"])
    as_user = []
    if os.getuid() == 0:
        # It refuses to run as root.
        shutil.chown(data, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    options = ["--username=tidegate", "--auth=scram-sha-256", f"--pwfile={folder}/pg_password", "--data-checksums", "--no-sync"]
    made = subprocess.run(
        [*as_user, programs / "initdb", f"--pgdata={data}", *options], capture_output=True, text=True, check=False, cwd="/"
    )
    if made.returncode:
        raise RuntimeError(f"initdb: {made.stderr}")
    start = [*as_user, programs / "postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", data, "-F"]
    with running([str(word) for word in start], cwd="/") as server:
        wait_until("postgres", lambda: listens(port), server)
        environment = os.environ | {"PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
        create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "tidegate", "tidegate"]
        subprocess.run(create, env=environment, check=True)
        yield port
        # Not killed: its children would hold on to its shared memory.
        server.send_signal(signal.SIGINT)
        server.wait()


@contextlib.contextmanager
def store(bucket: str) -> Iterator[int]:
    port = free_port()
    with running([sys.executable, str(SERVE_S3), str(port)]) as server:
        wait_until("moto", lambda: listens(port), server)
        put = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
        urllib.request.urlopen(put).close()
        yield port


def interpolated(text: str) -> str:
    """As compose does with the secrets in `.env`, and all else left out."""
    return re.sub(
        r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: SECRETS.get(found[1], found[2] if found[2] else ""), str(text)
    )


class Cluster:
    """The services of the compose file that are Tidegate, as processes."""

    def __init__(self, root: Path, tidegate: Path, folder: Path, places: dict[str, str]) -> None:
        self.services = compose.load(root)["services"]
        self.root, self.tidegate, self.folder, self.places = root, tidegate, folder, places
        self.project = folder / "project"
        shutil.copytree(root / "dags", self.project, ignore=shutil.ignore_patterns(".tidegate"))

    def environment(self, service: str) -> dict[str, str]:
        settings = {name: interpolated(value) for name, value in self.services[service]["environment"].items()}
        for name, value in settings.items():
            for there, here in self.places.items():
                settings[name] = settings[name].replace(there, here)
        scratch = self.folder / f"scratch-{service}"
        scratch.mkdir(exist_ok=True)
        image = {"TIDEGATE_PROJECT_DIR": str(self.project), "TIDEGATE_SPILL_DIR": str(scratch)}
        return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | image | settings

    def run(self, service: str, *command: str) -> str:
        words = [self.tidegate, *(command or self.services[service]["command"])]
        ran = subprocess.run(words, env=self.environment(service), capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"`tidegate {' '.join(map(str, words[1:]))}` ended with {ran.returncode}: {ran.stderr}")
        return ran.stdout

    def start(self, stack: contextlib.ExitStack, service: str) -> subprocess.Popen:
        """A role, once its health check is content."""
        health = f"127.0.0.1:{free_port()}"
        log = stack.enter_context((self.folder / f"{service}.log").open("w"))
        words = [self.tidegate, *self.services[service]["command"]]
        environment = self.environment(service) | {"TIDEGATE_HEALTH": health}
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        for path in ("/healthz", "/readyz"):
            ask = ["bash", self.root / "infra/container/healthy.sh", path]
            asked = {"env": {"TIDEGATE_HEALTH": health, "PATH": "/usr/bin:/bin"}, "stderr": subprocess.DEVNULL}
            wait_until(f"{service}: {path}", lambda: not subprocess.run(ask, check=False, **asked).returncode, process)
        return process


def check(root: Path, tidegate: Path, folder: Path) -> list[str]:
    """Brings the cluster up, lets it publish, and stops it."""
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        try:
            places = {
                "@postgres:5432": f"@127.0.0.1:{stack.enter_context(postgres(folder))}",
                "@redis:6379": f"@127.0.0.1:{stack.enter_context(compose.redis(root, folder))}",
                "http://store:9000": f"http://127.0.0.1:{stack.enter_context(store('tidegate'))}",
            }
            return drive(Cluster(root, tidegate, folder, places), stack)
        except RuntimeError as error:
            logs = [f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.log")]
            return [f"{compose.FILE}: {error}", *logs]


def drive(cluster: Cluster, stack: contextlib.ExitStack) -> list[str]:
    for service in ("migrate", "apply"):
        cluster.run(service)
        # Compose starts them anew whenever something changes.
        cluster.run(service)
    roles = {name: cluster.start(stack, name) for name in ("scheduler", "worker", "worker-big")}
    snapshots = ["--format", "json", "snapshots", "list"]
    wait_until("a snapshot", lambda: json.loads(cluster.run("tidegate", *snapshots)), roles["worker"])
    cluster.run("tidegate", "online", "get", "carrier_delays", "carrier=UA")
    found = []
    for name, process in roles.items():
        began = time.monotonic()
        process.terminate()
        given = seconds(cluster.services[name]["stop_grace_period"])
        try:
            ended = process.wait(timeout=given)
        except subprocess.TimeoutExpired:
            found.append(f"{compose.FILE}: {name}: it did not stop within {given} s")
            continue
        if ended:
            found.append(f"{compose.FILE}: {name}: it ended with {ended} after {time.monotonic() - began:.0f} s")
    if (cluster.project / ".tidegate").exists():
        found.append(f"{compose.FILE}: something was written below the project, which is mounted read-only")
    return found
