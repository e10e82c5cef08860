-- What the ledger held when: from the snapshot numbered `since` until before the one numbered `until`.
CREATE TABLE ledger_log (
    view           TEXT NOT NULL,
    interval_end   INTEGER NOT NULL,
    interval_start INTEGER NOT NULL,
    since          INTEGER NOT NULL,
    until          INTEGER,
    run            TEXT NOT NULL REFERENCES runs (id),
    snapshot       TEXT NOT NULL REFERENCES snapshots (id),
    rows           INTEGER NOT NULL,
    digest         TEXT NOT NULL,
    PRIMARY KEY (view, interval_end, interval_start, since)
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_log_by_snapshot ON ledger_log (snapshot, view);
INSERT INTO ledger_log (view, interval_end, interval_start, since, until, run, snapshot, rows, digest)
SELECT v.view, s.interval_end, s.interval_start, s.number,
       lead(s.number) OVER (PARTITION BY v.view, s.interval_end, s.interval_start ORDER BY s.number),
       s.run, s.id, v.rows, v.digest
FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot;

-- The version of the quarantine table as of the snapshot; of a restore the view's newest interval afterwards (of a run it
-- is the run's), and whether a generation was made live as it was.
ALTER TABLE snapshot_views ADD COLUMN quarantine_version INTEGER;
ALTER TABLE snapshot_views ADD COLUMN newest_start INTEGER;
ALTER TABLE snapshot_views ADD COLUMN newest_end INTEGER;
ALTER TABLE snapshot_views ADD COLUMN flipped INTEGER NOT NULL DEFAULT 0;

CREATE TABLE restores (
    run         TEXT NOT NULL PRIMARY KEY REFERENCES runs (id),
    plan        TEXT NOT NULL,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    begun_at    INTEGER NOT NULL,
    recorded_at INTEGER,
    -- By the database's clock.
    begun_real  INTEGER NOT NULL,
    took        INTEGER,
    validation  TEXT
) STRICT;

CREATE TABLE holds (
    id          TEXT NOT NULL PRIMARY KEY,
    view        TEXT NOT NULL,
    policy      TEXT NOT NULL,
    actor       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    placed_at   INTEGER NOT NULL,
    restore     TEXT REFERENCES runs (id),
    fingerprint TEXT,
    lifted_at   INTEGER
) STRICT;
CREATE INDEX holds_in_force ON holds (view) WHERE lifted_at IS NULL;
ALTER TABLE registry ADD COLUMN holds INTEGER NOT NULL DEFAULT 0;

CREATE TABLE bad_snapshots (
    snapshot  TEXT NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    marked_at INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL
) STRICT;
