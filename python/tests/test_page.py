"""The examples of docs/python.md run."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_of_the_page_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert "PROJECT" in block
        assert "assert " in block, "an example shows something"
        variables: dict[str, object] = {}
        exec(compile(block.replace("PROJECT", str(example)), str(PAGE), "exec"), variables)
        variables["client"].close()  # type: ignore[attr-defined]
    assert "is allowed" in capsys.readouterr().out
