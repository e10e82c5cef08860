"""The compose file: the compose-spec schema, services that can come up in their order, no password that has a default."""

import contextlib
import importlib.resources
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from shared import port, seconds, size, stop_secs_min

FILE = "infra/compose/compose.yaml"
ROLES = ("scheduler", "worker")


def load(root: Path) -> dict:
    return yaml.safe_load((root / FILE).read_text())


def check(root: Path) -> list[str]:
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    project = load(root)
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(project)
    found = [f"{FILE}: {'.'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]
    if found:
        return found
    services = project["services"]
    for name, service in services.items():
        found += [f"{FILE}: {name}: {problem}" for problem in check_service(root, project, service)]
    return found + check_variables(root)


def check_service(root: Path, project: dict, service: dict) -> list[str]:
    found = []
    services = project["services"]
    ours = service["image"].startswith("tidegate:")
    tag = service["image"].rpartition(":")[2]
    if "/" in tag or tag == "latest":
        found.append("its image has no fixed tag")
    for key in ("read_only", "cap_drop", "security_opt"):
        if key not in service:
            found.append(f"`{key}` is missing")
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            found.append(f"it waits for `{other}`, which is no service")
        elif how["condition"] == "service_healthy" and not has_health_check(services[other]):
            found.append(f"it waits for `{other}` to be healthy, which has no health check")
        elif how["condition"] == "service_completed_successfully" and services[other]["restart"] != "no":
            found.append(f"it waits for `{other}` to end, which is restarted for ever")
    for secret in service.get("secrets", []):
        if secret not in project["secrets"]:
            found.append(f"there is no secret `{secret}`")
    for published in service.get("ports", []):
        if not str(published).startswith("127.0.0.1:"):
            found.append(f"port {published} is open to other machines")
    if service["restart"] == "no":
        return found
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"cpus", "memory"} <= limits.keys():
        return [*found, "it has no limits"]
    if ours:
        if seconds(service["stop_grace_period"]) < stop_secs_min(root):
            found.append("it is killed before a worker has handed back what it holds")
        memory = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", service["environment"]["TIDEGATE_MEMORY"])
        if service["command"] == ["worker"] and size(limits["memory"]) < 1.5 * size(memory):
            found.append(f"{limits['memory']} of memory is less than 1.5 times TIDEGATE_MEMORY, {memory}")
        if port(service["environment"].get("TIDEGATE_HEALTH", "0.0.0.0:8080")) != 8080:
            found.append("its health port is not the image's")
    return found


def has_health_check(service: dict) -> bool:
    """Our own image brings one along."""
    check = service.get("healthcheck", {})
    return not check.get("disable") and ("test" in check or service["image"].startswith("tidegate:"))


def check_variables(root: Path) -> list[str]:
    """Every variable is in the example; what is secret has no default in either file."""
    text = (root / FILE).read_text()
    example = (root / "infra/compose/.env.example").read_text()
    listed = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    found = []
    for name, default in re.findall(r"(?<!\$)\$\{([A-Z_]+)(?::([-?])[^}]*)?\}", text):
        if name not in listed:
            found.append(f"{FILE}: `{name}` is not in .env.example")
        if re.search("PASSWORD|USER", name) and (default != "?" or listed.get(name)):
            found.append(f"{FILE}: the secret `{name}` has a default, or may be left out")
    for secret in load(root)["secrets"].values():
        if listed.get(secret["environment"]) != "":
            found.append(f"{FILE}: the secret `{secret['environment']}` is not an empty line of .env.example")
    return found


@contextlib.contextmanager
def redis(root: Path, folder: Path) -> Iterator[int]:
    """Redis as the file starts it, with the server of this machine, once its own health check is content; its port."""
    service = load(root)["services"]["redis"]
    if not shutil.which("redis-server"):
        raise RuntimeError("`redis-server` is not installed: `apt-get install redis-server` brings it")
    (folder / "redis_password").write_text("secret123")
    (folder / "data").mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]

    def here(command: str) -> str:
        # As compose does: `$$` is a dollar. The rest is where things are on this machine.
        command = command.replace("$$", "$").replace("/run/secrets", str(folder)).replace("/data", f"{folder}/data")
        return command.replace("redis-cli", f"redis-cli -p {free}")

    shell, flag, start = service["entrypoint"]
    command = [shell, flag, f"{here(start).rstrip()} --port {free} --bind 127.0.0.1"]
    healthy = ["sh", "-c", here(service["healthcheck"]["test"][1])]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(healthy, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError("redis: its health check does not succeed")
            time.sleep(0.05)
        yield free
    finally:
        # The whole group: a shell that is ended leaves its child behind.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def try_redis(root: Path, folder: Path) -> list[str]:
    """Whether that Redis asks for its password, and never evicts."""
    try:
        with redis(root, folder) as at:
            cli = ["redis-cli", "-p", str(at), "--no-auth-warning"]
            stranger = subprocess.run([*cli, "ping"], capture_output=True, text=True, check=False).stdout
            policy = [*cli, "-a", "secret123", "config", "get", "maxmemory-policy"]
            policy = subprocess.run(policy, capture_output=True, text=True, check=False).stdout
    except RuntimeError as error:
        return [f"{FILE}: {error}"]
    found = [] if "NOAUTH" in stranger else [f"{FILE}: redis: it answers without a password"]
    return found + ([] if "noeviction" in policy else [f"{FILE}: redis: it evicts"])
