"""What is installed."""

from importlib.metadata import files
from pathlib import Path

LICENSE = Path(__file__).parents[2] / "LICENSE"


def test_the_licence_travels_with_the_package() -> None:
    """A link to the repository's would lead nowhere."""
    text = LICENSE.read_text(encoding="utf-8")
    assert "Apache License" in text
    assert (LICENSE.parent / "python" / "LICENSE").read_text(encoding="utf-8") == text
    (installed,) = (path for path in files("tidegate") or [] if path.name == "LICENSE")
    assert installed.read_text(encoding="utf-8") == text
