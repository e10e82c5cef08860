"""Names: every variable in infra/ is a documented setting, and every command is one that the binary has."""

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

# Those of other programs, and of the services beside Tidegate.
VARIABLE = re.compile(r"\b(?:TIDEGATE|AWS)_[A-Z][A-Z0-9_]*\b")


def check(root: Path, tidegate: Path, below: str) -> list[str]:
    known = set(VARIABLE.findall((root / "docs/settings.md").read_text()))
    found = []
    for path in files(root, below):
        where = path.relative_to(root)
        text = path.read_text()
        for name in sorted(set(VARIABLE.findall(text)) - known):
            found.append(f"{where}: `{name}` is not in docs/settings.md")
        for words in calls(path, text):
            problem = unknown(str(tidegate), tuple(words))
            if problem:
                found.append(f"{where}: `tidegate {' '.join(words)}`: {problem}")
    return found


def files(root: Path, below: str) -> list[Path]:
    """Those of operators, and the page that leads to them."""
    texts = [path for path in (root / below).rglob("*") if path.is_file() and path.name != ".env"]
    return sorted([*texts, *(root / "docs").glob("deploy.md")])


def calls(path: Path, text: str) -> Iterator[list[str]]:
    """What follows `tidegate` wherever it is called."""
    if path.name == "compose.yaml":
        services = yaml.safe_load(text)["services"].values()
        yield from (s["command"] for s in services if s["image"].startswith("tidegate:") and "command" in s)
    elif path.suffix == ".yaml":
        for document in yaml.safe_load_all(text):
            yield from container_calls(document)
    if path.suffix == ".service":
        yield from shell_calls("\n".join(re.findall(r"^Exec\w+=(.*)", text, re.MULTILINE)))
    if path.suffix == ".md":
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            yield from shell_calls(block)
    # In comments, where they stand in backticks.
    yield from (shlex.split(words) for words in re.findall(r"`tidegate ([a-z][^`]*)`", text))


def container_calls(thing: object) -> Iterator[list[str]]:
    if isinstance(thing, dict):
        if thing.get("image") == "tidegate":
            yield from shell_calls("\n".join(thing["args"])) if "command" in thing else [thing["args"]]
        for value in thing.values():
            yield from container_calls(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from container_calls(value)


def shell_calls(text: str) -> Iterator[list[str]]:
    """Calls as lines of a shell have them: several in one line, by path, and after other words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = re.split(r"[\s\"']+", line.partition(" #")[0].strip())
        for at, word in enumerate(words):
            called = word.rpartition("/")[2] == "tidegate" and (at == 0 or words[at - 1] != "--namespace")
            if called and at + 1 < len(words):
                end = next((end for end in range(at, len(words)) if words[end] in ("&&", "||", "|", ";")), len(words))
                yield words[at + 1 : end]


@functools.cache
def help_of(tidegate: str, path: tuple[str, ...]) -> str:
    ran = subprocess.run([tidegate, *path, "--help"], capture_output=True, text=True, check=False)
    return ran.stdout if ran.returncode == 0 else ""


def subcommands(tidegate: str, path: tuple[str, ...]) -> set[str]:
    section = re.search(r"^Commands:\n(.*?)^\S", help_of(tidegate, path), re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^  ([a-z][a-z-]*)", section[1], re.MULTILINE)) if section else set()


def unknown(tidegate: str, words: tuple[str, ...]) -> str | None:
    """What in a call the binary does not know."""
    path: tuple[str, ...] = ()
    rest = list(words)
    while choices := subcommands(tidegate, path):
        if not rest or rest[0] not in choices:
            return f"there is no such command (known: {', '.join(sorted(choices))})"
        path += (rest.pop(0),)
    for word in rest:
        flag = word.partition("=")[0]
        if flag.startswith("--") and not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_of(tidegate, path)):
            return f"it has no `{flag}`"
    return None
