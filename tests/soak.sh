#!/usr/bin/env bash
# Minutes of random deaths: 200 DAGs on PostgreSQL, S3 and Redis, two schedulers and three workers that are killed, frozen
# and stopped all the time; then an audit that every interval was published once and nothing is stale. Prints its numbers.
#
# Takes the seconds to go on for: tests/soak.sh 300. Needs what tests/all.sh needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TIDEGATE_SOAK_SECONDS="${1:-180}" exec cargo test --workspace --features tidegate/failpoints --test crash -- \
    soak:: --nocapture
