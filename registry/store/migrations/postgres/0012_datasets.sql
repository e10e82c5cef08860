-- Datasets as they were built: `manifest` is JSON, `pin_files` a JSON map from view to its table's files.
CREATE TABLE datasets (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT COLLATE "C",
    place      TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    actor      TEXT COLLATE "C" NOT NULL,
    manifest   TEXT COLLATE "C" NOT NULL,
    pinned_at  BIGINT,
    pin_actor  TEXT COLLATE "C",
    pin_reason TEXT COLLATE "C",
    pin_files  TEXT COLLATE "C"
);
CREATE INDEX datasets_by_name ON datasets (name) WHERE name IS NOT NULL;

-- What each was built from: a view as it was when the snapshot with that number had been recorded.
CREATE TABLE dataset_views (
    dataset  TEXT COLLATE "C" NOT NULL REFERENCES datasets (id),
    view     TEXT COLLATE "C" NOT NULL,
    number   BIGINT NOT NULL,
    snapshot TEXT COLLATE "C" REFERENCES snapshots (id),
    PRIMARY KEY (dataset, view)
);
CREATE INDEX dataset_views_by_view ON dataset_views (view, number);
CREATE INDEX dataset_views_by_snapshot ON dataset_views (snapshot) WHERE snapshot IS NOT NULL;
