//! When: cron, grids, planning, readiness, retries.
