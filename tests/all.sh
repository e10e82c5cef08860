#!/usr/bin/env bash
# Runs every test: those in Rust, and the comparison of the example project's lake with DuckDB and deltalake.
# Needs Rust, a C compiler and git; installs Python with its packages (into the target folder) when they are missing.
# Leaves nothing behind but the target folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target="${CARGO_TARGET_DIR:-$PWD/target}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*" >&2; }

# A virtual environment with the packages of the oracle, kept between runs and made anew when they change.
oracle_python() {
    local venv="$target/oracle-venv" wanted=tests/oracle/requirements.txt
    if ! cmp -s "$wanted" "$venv/requirements.txt"; then
        if ! python3 -c 'import ensurepip' 2>/dev/null; then
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
                apt-get update -q >&2 && apt-get install -qy python3 python3-venv >&2
            else
                echo "tests/all.sh needs Python 3.10 or newer with venv: install it, then run this again" >&2
                exit 2
            fi
        fi
        rm -rf "$venv"
        python3 -m venv "$venv" >&2
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" >&2
        cp "$wanted" "$venv/requirements.txt"
    fi
    echo "$venv/bin/python"
}

say "Rust: unit, property, conformance, scenario and crash tests"
# This also leaves the binary that the scenarios ran in the target folder.
cargo test --workspace --features tidegate/failpoints --locked

say "The example project, computed whole by tidegate"
tidegate="$target/debug/tidegate"
export HOME="$work/home"
mkdir -p "$HOME"
cp -r dags "$work/example"
# All of the example's time has passed, so that both DAGs can be computed to their ends.
export TIDEGATE_CLOCK_START=2013-04-02T00:00:00-04:00
"$tidegate" --project "$work/example" apply --yes
"$tidegate" --project "$work/example" backfill flights_daily --from 2013-01-08 --to 2013-03-31
"$tidegate" --project "$work/example" backfill flights_hourly --from 2013-03-08 --to 2013-03-12
"$tidegate" --project "$work/example" --format json snapshots list --limit 0 >"$work/snapshots.json"

say "… and a second time by DuckDB, row by row against the Delta tables as DuckDB and deltalake read them"
python="$(oracle_python)"
"$python" tests/oracle/compare.py --self-test
"$python" tests/oracle/checks.py dags
"$python" tests/oracle/compare.py "$work/example/.tidegate/lake" "$work/example" --intervals "$work/snapshots.json"

say "all tests passed"
