-- Restores that were rehearsed. `views` and `scenarios` are JSON lists of texts, `report` is what came of it.
CREATE TABLE drills (
    id          TEXT NOT NULL PRIMARY KEY,
    name        TEXT,
    views       TEXT NOT NULL,
    scenarios   TEXT NOT NULL,
    actor       TEXT NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER,
    state       TEXT NOT NULL,
    report      TEXT
) STRICT;
CREATE INDEX drills_open ON drills (id) WHERE finished_at IS NULL;
CREATE INDEX drills_by_name ON drills (name, started_at) WHERE name IS NOT NULL;
-- Per view what a drill proved; `took_ms` is null when it did not come back as it was.
CREATE TABLE drill_views (
    view    TEXT NOT NULL,
    drill   TEXT NOT NULL REFERENCES drills (id),
    at      INTEGER NOT NULL,
    took_ms INTEGER,
    PRIMARY KEY (view, drill)
) STRICT;
