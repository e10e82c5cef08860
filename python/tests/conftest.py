"""What the tests work on: a copy of the example project, computed whole, and the command to compare with.

    TIDEGATE_TEST_EXAMPLE=FOLDER TIDEGATE_TEST_BINARY=PROGRAM pytest

`tests/all.sh` computes the example and sets both.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tidegate

Command = Callable[..., str]


def given(name: str) -> Path:
    if name not in os.environ:
        pytest.exit(f"{name} is not set: tests/all.sh does so", returncode=2)
    return Path(os.environ[name])


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The computed example, for reading."""
    copy = tmp_path_factory.mktemp("example") / "flights"
    shutil.copytree(given("TIDEGATE_TEST_EXAMPLE"), copy)
    return copy


@pytest.fixture
def project(example: Path, tmp_path: Path) -> Path:
    """A computed project for one test, which may change it."""
    copy = tmp_path / "flights"
    shutil.copytree(example, copy)
    return copy


@pytest.fixture(scope="session")
def client(example: Path) -> Iterator[tidegate.Client]:
    """The example, opened."""
    with tidegate.Client(example) as opened:
        yield opened


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs the command and gives what it prints."""
    program = given("TIDEGATE_TEST_BINARY")

    def run(project: Path, *arguments: str) -> str:
        done = subprocess.run(
            [program, "--project", project, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def listed(command: Command) -> Callable[..., list[dict[str, Any]]]:
    """What a list command prints, read."""
    return lambda project, *arguments: json.loads(command(project, "--format", "json", *arguments))
