"""`training_set` in Python beside `dataset build`, on one project: time, CPU time and peak memory, results checked equal.

    python benches/python.py TIDEGATE PROJECT LABELS FEATURE… [--rounds N]

`LABELS` is a Parquet file. The tables of `cargo bench -p tidegate-worker --bench dataset -- --folder DIR` will do as a project:
1,000,000 labels, 10,000,000 rows. Install a release build of the package into the interpreter (`pip install ./python`), and name
the command of the same build.

Each measurement is a process of its own, in turns: the command, which writes Parquet; Python from the same file; and Python
from a frame that it holds already. Of Python both the whole process is shown, imports and opening the project included, and the
call alone. Exits with 1 when rows differ.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CALL = """
import json, sys, time
import pyarrow.parquet as pq
import tidegate

project, labels, form, *features = sys.argv[1:]
given = pq.read_table(labels) if form == "frame" else labels
began = time.perf_counter()
with tidegate.Client(project) as client:
    found = client.training_set(given, features)
    took = time.perf_counter() - began
    output = found.manifest["output"]
    print(json.dumps({"rows": len(found), "digest": output["digest"], "seconds": took}))
"""


def measured(command: list[str]) -> tuple[str, float, float, int]:
    """What `command` prints, its seconds, its CPU seconds, and its peak memory in bytes."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{command[:4]} ended with {child.returncode}")
    return printed, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("tidegate")
    arguments.add_argument("project", type=Path)
    arguments.add_argument("labels", type=Path)
    arguments.add_argument("features", nargs="+")
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    figures: dict[str, list[tuple[float, float, int, float]]] = {}
    digests = set()
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.parquet"
            build = [given.tidegate, "--project", str(given.project), "--format", "json", "dataset", "build"]
            build += ["--spine", str(given.labels), "--features", ",".join(given.features), "--out", str(out)]
            printed, seconds, cpu, peak = measured(build)
            digests.add(json.loads(printed)["digest"])
            figures.setdefault("dataset build", []).append((seconds, cpu, peak, seconds))
        for form in ("file", "frame"):
            call = [sys.executable, "-c", CALL, str(given.project), str(given.labels), form, *given.features]
            printed, seconds, cpu, peak = measured(call)
            told = json.loads(printed)
            digests.add(told["digest"])
            figures.setdefault(f"training_set, {form}", []).append((seconds, cpu, peak, told["seconds"]))
        print(f"round {number + 1} of {given.rounds} done", file=sys.stderr)
    base = statistics.median(seconds for seconds, *_ in figures["dataset build"])
    print(f"{'':22} {'process':>9} {'call':>9} {'CPU':>9} {'peak':>9}   process beside the command")
    for name, measurements in figures.items():
        seconds, cpu, peak, call = (statistics.median(column) for column in zip(*measurements, strict=True))
        print(f"{name:22} {seconds:7.2f} s {call:7.2f} s {cpu:7.2f} s {peak / 1e6:6.0f} MB   {seconds / base:.2f}")
    if len(digests) != 1:
        print(f"the rows differ: {digests}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
