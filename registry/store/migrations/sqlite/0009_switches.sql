-- Features that were ever switched; `serve` is null when the feature is on again, so that the revision stays.
CREATE TABLE feature_switches (
    view       TEXT NOT NULL,
    feature    TEXT NOT NULL,
    serve      TEXT,
    below      INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    revision   INTEGER NOT NULL,
    PRIMARY KEY (view, feature)
) STRICT;
