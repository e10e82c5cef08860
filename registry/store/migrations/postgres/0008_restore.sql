-- What the ledger held when: from the snapshot numbered `since` until before the one numbered `until`.
CREATE TABLE ledger_log (
    view           TEXT COLLATE "C" NOT NULL,
    interval_end   BIGINT NOT NULL,
    interval_start BIGINT NOT NULL,
    since          BIGINT NOT NULL,
    until          BIGINT,
    run            TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    snapshot       TEXT COLLATE "C" NOT NULL REFERENCES snapshots (id),
    rows           BIGINT NOT NULL,
    digest         TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (view, interval_end, interval_start, since)
);
CREATE INDEX ledger_log_by_snapshot ON ledger_log (snapshot, view);
INSERT INTO ledger_log (view, interval_end, interval_start, since, until, run, snapshot, rows, digest)
SELECT v.view, s.interval_end, s.interval_start, s.number,
       lead(s.number) OVER (PARTITION BY v.view, s.interval_end, s.interval_start ORDER BY s.number),
       s.run, s.id, v.rows, v.digest
FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot;

-- The version of the quarantine table as of the snapshot; of a restore the view's newest interval afterwards (of a run it
-- is the run's), and whether a generation was made live as it was.
ALTER TABLE snapshot_views ADD COLUMN quarantine_version BIGINT;
ALTER TABLE snapshot_views ADD COLUMN newest_start BIGINT;
ALTER TABLE snapshot_views ADD COLUMN newest_end BIGINT;
ALTER TABLE snapshot_views ADD COLUMN flipped BIGINT NOT NULL DEFAULT 0;

CREATE TABLE restores (
    run         TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES runs (id),
    plan        TEXT COLLATE "C" NOT NULL,
    actor       TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    begun_at    BIGINT NOT NULL,
    recorded_at BIGINT,
    -- By the database's clock.
    begun_real  BIGINT NOT NULL,
    took        BIGINT,
    validation  TEXT COLLATE "C"
);

CREATE TABLE holds (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    view        TEXT COLLATE "C" NOT NULL,
    policy      TEXT COLLATE "C" NOT NULL,
    actor       TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    placed_at   BIGINT NOT NULL,
    restore     TEXT COLLATE "C" REFERENCES runs (id),
    fingerprint TEXT COLLATE "C",
    lifted_at   BIGINT
);
CREATE INDEX holds_in_force ON holds (view) WHERE lifted_at IS NULL;
ALTER TABLE registry ADD COLUMN holds BIGINT NOT NULL DEFAULT 0;

CREATE TABLE bad_snapshots (
    snapshot  TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    marked_at BIGINT NOT NULL,
    actor     TEXT COLLATE "C" NOT NULL,
    reason    TEXT COLLATE "C" NOT NULL
);
