"""What several checks ask: how long a role may take to stop, on which port it answers, how sizes are written."""

import re
from pathlib import Path

# Time between the end of a worker's grace and the moment at which its supervisor may kill it.
STOP_MARGIN_SECS = 15


def stop_secs_min(root: Path) -> int:
    """The least time that a supervisor must leave a worker to stop, in seconds."""
    source = (root / "worker/src/worker.rs").read_text()
    found = re.search(r"const GRACE: Duration = Duration::from_secs\((\d+)\);", source)
    if not found:
        raise SystemExit("tests/infra/shared.py looks for `const GRACE` in worker/src/worker.rs: tell it where it went")
    return int(found[1]) + STOP_MARGIN_SECS


def seconds(text: str) -> int:
    """A duration as systemd and compose write it: `60s`, `2min`, `1h`."""
    number, unit = re.fullmatch(r"(\d+)(s|min|m|h)?", str(text)).groups()
    return int(number) * {"s": 1, "min": 60, "m": 60, "h": 3600, None: 1}[unit]


def size(text: str) -> int:
    """A size in bytes as Tidegate (`2GiB`), Kubernetes (`3Gi`), compose (`512m`, powers of two) and systemd (`3G`, too) write
    it."""
    number, unit = re.fullmatch(r"(\d+)([KMGkmg])?i?[Bb]?", str(text)).groups()
    return int(number) << {"k": 10, "m": 20, "g": 30, None: 0}[unit.lower() if unit else None]


def port(address: str) -> int:
    """The port of `0.0.0.0:8080`."""
    return int(address.rpartition(":")[2])
