"""The package is typed as strictly as mypy can ask."""

import subprocess
import sys
from pathlib import Path

import tidegate


def test_the_package_and_its_use_are_well_typed(tmp_path: Path) -> None:
    assert (Path(tidegate.__file__).parent / "py.typed").exists()
    use = tmp_path / "use.py"
    use.write_text(
        """
import datetime as dt
import tidegate

client = tidegate.Client("flights", cache_seconds=5)
table = client.training_set({"carrier": ["UA"]}, ["carrier_delays"]).to_arrow()
one: tidegate.OnlineRow = client.online("carrier_delays", {"carrier": "UA"}, max_staleness=dt.timedelta(hours=30))
many: list[tidegate.OnlineRow] = client.online("carrier_delays", [{"carrier": "UA"}], defaults={})
source: tidegate.Source = one.sources["flights_7d"]
"""
    )
    strict = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", "--ignore-missing-imports"]
    for what in (["-p", "tidegate"], [use]):
        checked = subprocess.run([*strict, *what], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text('import tidegate\ntidegate.Client(project=7, cache="no")\n')
    checked = subprocess.run([*strict, wrong], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert checked.returncode == 1, "types that nobody checks would pass"
