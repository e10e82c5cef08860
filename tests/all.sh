#!/usr/bin/env bash
# Runs every test: those in Rust, with private servers on free ports; the comparisons of statistics with scipy, and of the
# example project's lake with DuckDB and deltalake; the Python SDK as it is installed; and the checks of what operators deploy
# (infra/).
#
# Needs Rust, a C compiler, git, PostgreSQL, Redis, systemd's tools and Python 3.11 or newer with venv. As root on Debian and
# its kin it installs what is missing of these, without starting any service; elsewhere it says what to install. Python
# packages go into the target folder. Leaves nothing else behind, and talks to no server that happens to run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target="${CARGO_TARGET_DIR:-$PWD/target}"
mkdir -p "$target"
target="$(cd "$target" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# Names the part that begins, and says how long the one before took.
say() {
    if [ -n "${part:-}" ]; then printf '== … took %d s\n' "$((SECONDS - began))" >&2; fi
    part="$1" began=$SECONDS
    printf '\n== %s\n' "$part" >&2
}

# What the user has set for projects, clusters and clouds of their own is no part of a test.
for name in $(compgen -e); do
    case "$name" in
        TIDEGATE_* | AWS_* | AZURE_* | GOOGLE_* | PG* | REDIS* | MINIO_*) unset "$name" ;;
    esac
done
export PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The Debian packages of programs that are missing.
missing_packages() {
    local postgres
    # Debian keeps the server's programs out of the path, below a folder per version.
    postgres="$(compgen -G '/usr/lib/postgresql/*/bin/initdb' || command -v initdb || true)"
    [ -n "$postgres" ] || echo postgresql
    command -v redis-server >/dev/null && command -v redis-cli >/dev/null || echo redis-server
    # Verifies the units in infra/systemd; other systems than Linux do without.
    [ "$(uname)" != Linux ] || command -v systemd-analyze >/dev/null || echo systemd
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || echo python3-venv
}

install_missing() {
    local packages
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests/all.sh needs what Debian has in: ${packages[*]}. Install it (on macOS: brew install postgresql redis python)," \
            "then run this again" >&2
        exit 2
    fi
    say "Installing ${packages[*]}"
    # Packages of servers start them when they are installed, unless the machine's policy says no.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -rf "$work" /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}" >&2
    local still
    still="$(missing_packages)"
    if [ -n "$still" ]; then
        echo "tests/all.sh installed ${packages[*]}, and still lacks what should be in: $still" >&2
        exit 2
    fi
}

# A virtual environment with every Python package that tests use, kept between runs and made anew when they change.
make_python() {
    local venv="$target/test-venv" wanted="$work/requirements.txt"
    cat tests/oracle/requirements.txt tests/servers/requirements.txt tests/infra/requirements.txt python/requirements.txt \
        >"$wanted"
    if ! cmp -s "$wanted" "$venv/requirements.txt" || ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "Installing Python packages into $venv"
        rm -rf "$venv"
        python3 -m venv "$venv" >&2
        "$venv/bin/pip" install --quiet --requirement "$wanted" >&2
        cp "$wanted" "$venv/requirements.txt"
    fi
    export PATH="$venv/bin:$PATH"
}

install_missing
make_python
export TIDEGATE_TEST_MOTO="$target/test-venv/bin/python"

say "Rust: unit, property, conformance, scenario and crash tests"
# This also leaves the binary that the scenarios ran in the target folder.
cargo test --workspace --features tidegate/failpoints --locked

tidegate="$target/debug/tidegate"
own_home="$HOME"
export HOME="$work/home"
mkdir -p "$HOME"

say "Statistics of columns and drift, against numpy and scipy"
python tests/oracle/quality.py "$target/debug/examples/oracle"

say "Verdicts of every kind of check, against DuckDB, numpy and scipy"
python tests/oracle/verdicts.py "$tidegate"

say "The example project, computed whole by tidegate"
cp -r dags "$work/example"
# All of the example's time has passed, so that both DAGs can be computed to their ends.
export TIDEGATE_CLOCK_START=2013-04-02T00:00:00-04:00
"$tidegate" --project "$work/example" apply --yes
"$tidegate" --project "$work/example" backfill flights_daily --from 2013-01-08 --to 2013-03-31
"$tidegate" --project "$work/example" backfill flights_hourly --from 2013-03-08 --to 2013-03-12
"$tidegate" --project "$work/example" backfill flights_scoring --from 2013-01-08 --to 2013-03-31
"$tidegate" --project "$work/example" --format json snapshots list --limit 0 >"$work/snapshots.json"
unset TIDEGATE_CLOCK_START

say "… and a second time by DuckDB, row by row against the Delta tables as DuckDB and deltalake read them"
python tests/oracle/compare.py --self-test
python tests/oracle/checks.py dags
python tests/oracle/compare.py "$work/example/.tidegate/lake" "$work/example" --intervals "$work/snapshots.json"

say "The page that shows other engines reading it"
python tests/oracle/reading.py docs/reading-the-lake.md "$work/example/.tidegate/lake"

say "Datasets of it, against DuckDB, Polars and plain Python"
python tests/oracle/datasets.py "$tidegate" "$work/example/.tidegate/lake" "$work/example" "$work/snapshots.json"

say "How far old pipelines' tables agree with it, against DuckDB"
python tests/oracle/agreement.py "$tidegate" "$work/example/.tidegate/lake" "$work/example" "$work/snapshots.json"

say "The Python SDK: its wheel, and its tests on the example"
# With the feature `tests` dependencies are those that the tests in Rust were built with, so that only the SDK is compiled.
HOME="$own_home" CARGO_TARGET_DIR="$target" maturin build --quiet --manifest-path python/Cargo.toml --profile dev \
    --features tests --locked --out "$work/wheel"
pip install --quiet --no-deps --force-reinstall "$work"/wheel/tidegate-*.whl
TIDEGATE_TEST_EXAMPLE="$work/example" TIDEGATE_TEST_BINARY="$tidegate" \
    pytest -p no:cacheprovider --basetemp "$work/pytest" -c python/pyproject.toml python/tests

say "What operators deploy: compose file, Containerfile, Kubernetes manifests, systemd units"
# Cargo is asked something there, and its toolchains are below the home that is really ours.
HOME="$own_home" python tests/infra/lint.py "$tidegate" --self-test

say "All tests passed"
