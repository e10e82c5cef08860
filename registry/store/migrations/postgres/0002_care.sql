-- Retention, pins, duties that one process at a time has.

-- When retention let go of it: it can no longer be restored.
ALTER TABLE snapshots ADD COLUMN expired_at BIGINT;
CREATE INDEX snapshots_kept ON snapshots (number) WHERE expired_at IS NULL;

CREATE TABLE snapshot_pins (
    snapshot  TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    pinned_at BIGINT NOT NULL,
    actor     TEXT COLLATE "C" NOT NULL,
    reason    TEXT COLLATE "C" NOT NULL,
    -- Per view the files of its table, as JSON.
    files     TEXT COLLATE "C" NOT NULL
);

CREATE TABLE duties (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    until BIGINT NOT NULL
);

CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;
