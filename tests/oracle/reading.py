"""Runs the Python of docs/reading-the-lake.md on the computed example, block by block.

    reading.py PAGE LAKE
"""

import re
import sys
from pathlib import Path


def main() -> None:
    page, lake = Path(sys.argv[1]), sys.argv[2]
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5, f"only {len(blocks)} blocks were found in {page}"
    for block in blocks:
        assert "assert " in block and "LAKE" in block, f"this block shows nothing:\n{block}"
        try:
            exec(compile(block.replace("LAKE", lake), str(page), "exec"), {})
        except Exception:
            print(f"this block of {page} failed:\n{block}", file=sys.stderr)
            raise
    print(f"{len(blocks)} examples of {page} ran")


if __name__ == "__main__":
    main()
