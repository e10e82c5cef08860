-- Restores that were rehearsed. `views` and `scenarios` are JSON lists of texts, `report` is what came of it.
CREATE TABLE drills (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name        TEXT COLLATE "C",
    views       TEXT COLLATE "C" NOT NULL,
    scenarios   TEXT COLLATE "C" NOT NULL,
    actor       TEXT COLLATE "C" NOT NULL,
    started_at  BIGINT NOT NULL,
    finished_at BIGINT,
    state       TEXT COLLATE "C" NOT NULL,
    report      TEXT COLLATE "C"
);
CREATE INDEX drills_open ON drills (id) WHERE finished_at IS NULL;
CREATE INDEX drills_by_name ON drills (name, started_at) WHERE name IS NOT NULL;
-- Per view what a drill proved; `took_ms` is null when it did not come back as it was.
CREATE TABLE drill_views (
    view    TEXT COLLATE "C" NOT NULL,
    drill   TEXT COLLATE "C" NOT NULL REFERENCES drills (id),
    at      BIGINT NOT NULL,
    took_ms BIGINT,
    PRIMARY KEY (view, drill)
);
