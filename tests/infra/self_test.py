"""Breaks a copy of the repository in one place at a time: a check that finds nothing then is not a check."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

NEEDED = [
    ".ci/run", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "asof", "benches", "cli", "dags", "docs", "infra",
    "notify", "python", "registry", "quality", "scheduler", "tests", "worker",
]

# File, what stands there, what is written instead, and what must be said about it.
BREAKS = [
    ("infra/container/Containerfile", "ARG RUST_VERSION=", "ARG RUST_VERSION=9", "rust-toolchain.toml wants"),
    ("infra/container/Containerfile", "USER 10001:10001", "USER root", "USER"),
    ("infra/container/Containerfile", "EXPOSE 8080", "EXPOSE 8081", "EXPOSE"),
    ("infra/container/Containerfile", "apt-get install", "apt install", "DL3027"),
    ("infra/container/Containerfile.dockerignore", "!benches\n", "", "build context lacks"),
    ("infra/container/healthy.sh", "exit 1", "exit $1", "SC2086"),
    ("infra/compose/compose.yaml", "restart: unless-stopped", "restarts: always", "restarts"),
    ("infra/compose/compose.yaml", "migrate: {condition", "migration: {condition", "no service"),
    ("infra/compose/compose.yaml", "${REDIS_PASSWORD:?fill in .env}", "${REDIS_PASSWORD:-redis}", "has a default"),
    ("infra/compose/compose.yaml", "stop_grace_period: 60s\n\nservices", "stop_grace_period: 10s\n\nservices", "killed"),
    ("infra/compose/compose.yaml", "memory: 1536m", "memory: 1g", "1.5 times"),
    ("infra/compose/compose.yaml", '["registry", "migrate"]', '["registry", "upgrade"]', "no such command"),
    ("infra/kubernetes/base/worker.yaml", "periodSeconds: 2", "periodSeconds: two", "periodSeconds"),
    ("infra/kubernetes/base/worker.yaml", "path: /readyz", "path: /ready", "readinessProbe"),
    ("infra/kubernetes/base/worker.yaml", "containerPort: 8080", "containerPort: 8081", "on port"),
    ("infra/kubernetes/base/worker.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "restricted"),
    ("infra/kubernetes/base/worker.yaml", "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 9", "killed"),
    ("infra/kubernetes/base/disruption.yaml", "component: worker", "component: works", "selects no pod"),
    ("infra/kubernetes/base/apply.yaml", '"--yes"', '"--sure"', "it has no"),
    ("infra/kubernetes/base/kustomization.yaml", "  - network.yaml", "  - nets.yaml", "nets.yaml"),
    ("infra/kubernetes/overlays/example/kustomization.yaml", "TIDEGATE_HEALTH", "TIDEGATE_HEALTHY", "settings.md"),
    ("infra/systemd/tidegate-worker@.service", "Type=exec", "Type=exek", "exek"),
    ("infra/systemd/tidegate-worker@.service", "NoNewPrivileges=yes", "NoNewPrivileges=no", "alike"),
    ("infra/systemd/tidegate-worker@.service", "TimeoutStopSec=60s", "TimeoutStopSec=5s", "killed"),
    ("infra/systemd/tidegate.target", "worker@1", "helper@1", "there is no"),
    ("infra/systemd/tidegate-backup.service", "registry backup", "registry copy", "no such command"),
    ("infra/kubernetes/base/janitor.yaml", '["janitor"]', '["caretaker"]', "no such command"),
]


def run(root: Path, tidegate: Path, problems_of: Callable[[Path, Path, str], list[str]]) -> list[str]:
    """The breaks that nobody noticed."""
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for path in NEEDED:
            source, target = root / path, copy / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("target", ".tidegate"))
            else:
                shutil.copy(source, target)
        for path, before, after, expected in BREAKS:
            file = copy / path
            text = file.read_text()
            if before not in text:
                missed.append(f"tests/infra/self_test.py: `{before}` is no longer in {path}")
                continue
            file.write_text(text.replace(before, after))
            try:
                found = problems_of(copy, tidegate, "/".join(path.split("/")[:2]))
            except (KeyError, TypeError, ValueError) as error:
                found = [f"the check itself failed: {error!r}"]
            if not any(expected in problem for problem in found):
                missed.append(f"{path}: `{before}` became `{after}`, and the checks only said {found}")
            file.write_text(text)
    return missed
