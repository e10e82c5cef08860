-- Notices on their way out. `at` is project time; `created_at`, `due_at` and `lease_until` are the database's own clock.
CREATE TABLE notices (
    id         TEXT NOT NULL PRIMARY KEY,
    -- A second notice with the same key is not written.
    key        TEXT NOT NULL UNIQUE,
    event      TEXT NOT NULL,
    subject    TEXT NOT NULL,
    at         INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    actor      TEXT,
    message    TEXT NOT NULL,
    detail     TEXT NOT NULL,
    -- 1 once it is known who wants it.
    routed     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX notices_new ON notices (created_at, id) WHERE routed = 0;
CREATE INDEX notices_by_time ON notices (created_at, id);

CREATE TABLE notice_deliveries (
    notice      TEXT NOT NULL REFERENCES notices (id),
    webhook     TEXT NOT NULL,
    state       TEXT NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER NOT NULL,
    token       TEXT,
    lease_until INTEGER,
    error       TEXT,
    PRIMARY KEY (notice, webhook)
) STRICT;
CREATE INDEX notice_deliveries_due ON notice_deliveries (due_at, notice, webhook) WHERE state = 'due';
CREATE UNIQUE INDEX notice_deliveries_token ON notice_deliveries (token) WHERE token IS NOT NULL;
CREATE INDEX notice_deliveries_by_state ON notice_deliveries (state, notice);
