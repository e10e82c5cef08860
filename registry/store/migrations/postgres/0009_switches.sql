-- Features that were ever switched; `serve` is null when the feature is on again, so that the revision stays.
CREATE TABLE feature_switches (
    view       TEXT COLLATE "C" NOT NULL,
    feature    TEXT COLLATE "C" NOT NULL,
    serve      TEXT COLLATE "C",
    below      BIGINT NOT NULL,
    actor      TEXT COLLATE "C" NOT NULL,
    reason     TEXT COLLATE "C" NOT NULL,
    changed_at BIGINT NOT NULL,
    revision   BIGINT NOT NULL,
    PRIMARY KEY (view, feature)
);
