-- Retention, pins, duties that one process at a time has.

-- When retention let go of it: it can no longer be restored.
ALTER TABLE snapshots ADD COLUMN expired_at INTEGER;
CREATE INDEX snapshots_kept ON snapshots (number) WHERE expired_at IS NULL;

CREATE TABLE snapshot_pins (
    snapshot  TEXT NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    pinned_at INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL,
    -- Per view the files of its table, as JSON.
    files     TEXT NOT NULL
) STRICT;

CREATE TABLE duties (
    name  TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT;

CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;
