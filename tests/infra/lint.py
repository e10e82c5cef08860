"""Checks what operators deploy (`infra/`), as far as that goes without a container, a cluster or a service manager.

    python lint.py TIDEGATE             the binary, so that every command named in infra/ is asked whether it exists
    python lint.py TIDEGATE --self-test also breaks a copy in many ways, each of which must be found

Formats are checked by their own tools: the compose-spec schema, hadolint, `kubectl kustomize` with Kubernetes' schemas,
`systemd-analyze`, shellcheck. What they cannot know is checked here: that the files agree with each other and with the
binary (ports, probes, settings, commands, memory, time to stop).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cluster
import compose
import container
import kubernetes
import names
import self_test
import systemd


# By the folder that they look at; names are looked at everywhere.
CHECKS = {
    "infra/container": container.check,
    "infra/compose": compose.check,
    "infra/kubernetes": kubernetes.check,
    "infra/systemd": systemd.check,
}
SCRIPTS = ["infra/container/healthy.sh", "tests/all.sh", ".ci/run"]


def problems_of(root: Path, tidegate: Path, below: str = "infra") -> list[str]:
    """Everything that is wrong below `root`, one line each; only with what lies `below` that folder, where that is quicker."""
    found = []
    for folder, check in CHECKS.items():
        if folder.startswith(below):
            found += check(root)
    found += names.check(root, tidegate, below)
    scripts = SCRIPTS if below == "infra" else [script for script in SCRIPTS if script.startswith(below)]
    if scripts:
        shellcheck = ["shellcheck", "--format=gcc", *scripts]
        ran = subprocess.run(shellcheck, cwd=root, capture_output=True, text=True, check=False)
        found += (ran.stdout + ran.stderr).splitlines()
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("tidegate", type=Path)
    arguments.add_argument("--self-test", action="store_true")
    given = arguments.parse_args()
    root = Path(__file__).resolve().parents[2]
    tidegate = given.tidegate.resolve()
    found = problems_of(root, tidegate)
    if not found:
        found += container.try_health_check(root)
        with tempfile.TemporaryDirectory() as folder:
            found += compose.try_redis(root, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            found += cluster.check(root, tidegate, Path(folder))
    if not found and given.self_test:
        found += self_test.run(root, tidegate, problems_of)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        return 1
    print("infra: compose file, Containerfile, Kubernetes manifests and systemd units are in order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
