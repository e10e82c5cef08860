-- Notices on their way out. `at` is project time; `created_at`, `due_at` and `lease_until` are the database's own clock.
CREATE TABLE notices (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- A second notice with the same key is not written.
    key        TEXT COLLATE "C" NOT NULL UNIQUE,
    event      TEXT COLLATE "C" NOT NULL,
    subject    TEXT COLLATE "C" NOT NULL,
    at         BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    actor      TEXT COLLATE "C",
    message    TEXT COLLATE "C" NOT NULL,
    detail     TEXT COLLATE "C" NOT NULL,
    -- 1 once it is known who wants it.
    routed     BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX notices_new ON notices (created_at, id) WHERE routed = 0;
CREATE INDEX notices_by_time ON notices (created_at, id);

CREATE TABLE notice_deliveries (
    notice      TEXT COLLATE "C" NOT NULL REFERENCES notices (id),
    webhook     TEXT COLLATE "C" NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,
    attempts    BIGINT NOT NULL DEFAULT 0,
    due_at      BIGINT NOT NULL,
    token       TEXT COLLATE "C",
    lease_until BIGINT,
    error       TEXT COLLATE "C",
    PRIMARY KEY (notice, webhook)
);
CREATE INDEX notice_deliveries_due ON notice_deliveries (due_at, notice, webhook) WHERE state = 'due';
CREATE UNIQUE INDEX notice_deliveries_token ON notice_deliveries (token) WHERE token IS NOT NULL;
CREATE INDEX notice_deliveries_by_state ON notice_deliveries (state, notice);
