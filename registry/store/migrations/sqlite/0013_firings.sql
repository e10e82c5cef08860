-- Recipes that something triggered, each once for a subject; `views` is a JSON list of texts.
CREATE TABLE recipe_firings (
    id          TEXT NOT NULL PRIMARY KEY,
    recipe      TEXT NOT NULL,
    event       TEXT NOT NULL,
    subject     TEXT NOT NULL,
    audit_event INTEGER NOT NULL,
    snapshot    TEXT,
    views       TEXT NOT NULL,
    steps       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    fired_at    INTEGER NOT NULL,
    state       TEXT NOT NULL,
    steps_done  INTEGER NOT NULL DEFAULT 0,
    -- The restore that the next step is.
    restore     TEXT,
    outcome     TEXT,
    ended_at    INTEGER,
    UNIQUE (recipe, event, subject)
) STRICT;
CREATE INDEX recipe_firings_open ON recipe_firings (id) WHERE ended_at IS NULL;

-- Up to which audit event somebody has looked for what triggers recipes. What was before triggers nothing.
CREATE TABLE recipe_looks (
    one  INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    seen INTEGER NOT NULL
) STRICT;
INSERT INTO recipe_looks (one, seen) VALUES (1, coalesce((SELECT max(number) FROM audit_head), 0));
