-- Recipes that something triggered, each once for a subject; `views` is a JSON list of texts.
CREATE TABLE recipe_firings (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    recipe      TEXT COLLATE "C" NOT NULL,
    event       TEXT COLLATE "C" NOT NULL,
    subject     TEXT COLLATE "C" NOT NULL,
    audit_event BIGINT NOT NULL,
    snapshot    TEXT COLLATE "C",
    views       TEXT COLLATE "C" NOT NULL,
    steps       TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    fired_at    BIGINT NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,
    steps_done  BIGINT NOT NULL DEFAULT 0,
    -- The restore that the next step is.
    restore     TEXT COLLATE "C",
    outcome     TEXT COLLATE "C",
    ended_at    BIGINT,
    UNIQUE (recipe, event, subject)
);
CREATE INDEX recipe_firings_open ON recipe_firings (id) WHERE ended_at IS NULL;

-- Up to which audit event somebody has looked for what triggers recipes. What was before triggers nothing.
CREATE TABLE recipe_looks (
    one  BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    seen BIGINT NOT NULL
);
INSERT INTO recipe_looks (one, seen) VALUES (1, coalesce((SELECT max(number) FROM audit_head), 0));
