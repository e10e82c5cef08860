"""The units: `systemd-analyze verify` and `security`, hardening that is the same in all of them, time enough to stop."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import seconds, size, stop_secs_min

FOLDER = "infra/systemd"
# In tenths: 2.0 of 10. They have 1.2 to 1.3; a service without any hardening has 9.6.
EXPOSURE_MAX = 20


def check(root: Path) -> list[str]:
    units = {path.name: path.read_text() for path in sorted((root / FOLDER).iterdir())}
    services = {name: text for name, text in units.items() if name.endswith(".service")}
    found = []
    if len({hardening(text) for text in services.values()}) != 1:
        found.append(f"{FOLDER}: the services are not hardened alike")
    for name in ("tidegate-scheduler.service", "tidegate-worker@.service"):
        text = services[name]
        if seconds(value(text, "TimeoutStopSec")) < stop_secs_min(root):
            found.append(f"{FOLDER}/{name}: it is killed before a worker has handed back what it holds")
        if (value(text, "Restart"), value(text, "KillSignal")) != ("always", "SIGTERM"):
            found.append(f"{FOLDER}/{name}: it is not restarted always, or not stopped by SIGTERM")
    memory = re.search(r"^TIDEGATE_MEMORY=(\S+)", units["tidegate.env.example"], re.MULTILINE)[1]
    if size(value(services["tidegate-worker@.service"], "MemoryMax")) < 1.5 * size(memory):
        found.append(f"{FOLDER}: MemoryMax is less than 1.5 times TIDEGATE_MEMORY, {memory}")
    for unit in re.findall(r"\S+\.(?:service|timer)", value(units["tidegate.target"], "Wants")):
        if re.sub(r"@\w+", "@", unit) not in units:
            found.append(f"{FOLDER}/tidegate.target: there is no `{unit}`")
    for name, text in services.items():
        address = re.search(r"TIDEGATE_HEALTH=(\S+):\d+", text)
        if address and address[1] != "127.0.0.1":
            found.append(f"{FOLDER}/{name}: its health port is open to other machines")
    return found + analyze(units)


def hardening(text: str) -> str:
    return re.search(r"^# Hardening.*?(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)[0].strip()


def value(text: str, key: str) -> str:
    found = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def analyze(units: dict[str, str]) -> list[str]:
    """What systemd itself says. The binary is not installed here, so that /bin/true stands for it."""
    if sys.platform != "linux":
        print("infra: systemd's units were not verified: this is not Linux", file=sys.stderr)
        return []
    if not shutil.which("systemd-analyze"):
        return ["`systemd-analyze` is not installed: `apt-get install systemd` brings it"]
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in units if name.endswith((".service", ".timer", ".target"))]
        for name in names:
            (Path(folder) / name).write_text(units[name].replace("/usr/bin/tidegate", "/bin/true"))
        paths = [f"./{name}" for name in names]
        verify = ["systemd-analyze", "verify", "--man=no", *paths]
        ran = subprocess.run(verify, cwd=folder, capture_output=True, text=True, check=False)
        found = [f"{FOLDER}: {line}" for line in (ran.stdout + ran.stderr).splitlines()]
        if ran.returncode and not found:
            found.append(f"{FOLDER}: `systemd-analyze verify` ended with {ran.returncode}")
        for path in paths:
            if path.endswith(".service"):
                security = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", path]
                ran = subprocess.run(security, cwd=folder, capture_output=True, text=True, check=False)
                if ran.returncode:
                    found.append(f"{FOLDER}/{path[2:]}: {(ran.stdout + ran.stderr).strip().splitlines()[-1]}")
        return found
