-- Datasets as they were built: `manifest` is JSON, `pin_files` a JSON map from view to its table's files.
CREATE TABLE datasets (
    id         TEXT NOT NULL PRIMARY KEY,
    name       TEXT,
    place      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    manifest   TEXT NOT NULL,
    pinned_at  INTEGER,
    pin_actor  TEXT,
    pin_reason TEXT,
    pin_files  TEXT
) STRICT;
CREATE INDEX datasets_by_name ON datasets (name) WHERE name IS NOT NULL;

-- What each was built from: a view as it was when the snapshot with that number had been recorded.
CREATE TABLE dataset_views (
    dataset  TEXT NOT NULL REFERENCES datasets (id),
    view     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    snapshot TEXT REFERENCES snapshots (id),
    PRIMARY KEY (dataset, view)
) STRICT, WITHOUT ROWID;
CREATE INDEX dataset_views_by_view ON dataset_views (view, number);
CREATE INDEX dataset_views_by_snapshot ON dataset_views (snapshot) WHERE snapshot IS NOT NULL;
