-- Instants are microseconds since 1970 in UTC. Those named *_at are project time, except retry_at, lease_until and
-- heard_at, which are the database's own clock. Ids are UUIDs as text. JSON is text.
-- Text is compared byte by byte, as everywhere in Tidegate.

-- The database's clock as SQLite spells it, so that queries have one text: seconds since 1970, when the statement began.
CREATE FUNCTION unixepoch(resolution TEXT) RETURNS NUMERIC LANGUAGE sql STABLE AS
$$ SELECT CAST(extract(epoch FROM statement_timestamp()) AS NUMERIC) $$;

CREATE TABLE registry (
    one           BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    id            TEXT COLLATE "C" NOT NULL,
    project       TEXT COLLATE "C",
    revision      BIGINT NOT NULL DEFAULT 0,
    clock_real    BIGINT,
    clock_project BIGINT
);

CREATE TABLE applies (
    revision   BIGINT NOT NULL PRIMARY KEY,
    applied_at BIGINT NOT NULL,
    actor      TEXT COLLATE "C" NOT NULL,
    message    TEXT COLLATE "C"
);

-- Every version of every definition: in force from revision `since` until before revision `until`.
CREATE TABLE definitions (
    kind        TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    since       BIGINT NOT NULL,
    until       BIGINT,
    position    BIGINT NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    body        TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, name, since)
);
CREATE UNIQUE INDEX definitions_current ON definitions (kind, name) WHERE until IS NULL;
CREATE INDEX definitions_position ON definitions (position);

CREATE TABLE dags (
    dag                  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    paused               BIGINT NOT NULL DEFAULT 0,
    planned_until        BIGINT,
    due_at               BIGINT,
    schedule_fingerprint TEXT COLLATE "C",
    created_at           BIGINT NOT NULL,
    -- The last revision that changed the DAG, its views or their sources.
    changed              BIGINT NOT NULL,
    -- No longer defined; kept so that it continues its grid if it returns.
    retired              BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX dags_due ON dags (due_at, dag) WHERE due_at IS NOT NULL;

CREATE TABLE ticks (
    dag TEXT COLLATE "C" NOT NULL REFERENCES dags (dag),
    at  BIGINT NOT NULL,
    PRIMARY KEY (dag, at)
);

CREATE TABLE runs (
    id             TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    dag            TEXT COLLATE "C" NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end   BIGINT NOT NULL,
    views          TEXT COLLATE "C" NOT NULL,
    -- The views sorted, so that the same set in another order is the same run.
    views_key      TEXT COLLATE "C" NOT NULL,
    cause          TEXT COLLATE "C" NOT NULL,
    -- 0, or for a run made anew by a retry its revision: it keeps the cause and is still a run of its own.
    retry          BIGINT NOT NULL DEFAULT 0,
    definitions    BIGINT NOT NULL,
    revision       BIGINT NOT NULL,
    attempts_max   BIGINT NOT NULL,
    state          TEXT COLLATE "C" NOT NULL,
    reason         TEXT COLLATE "C",
    created_at     BIGINT NOT NULL,
    started_at     BIGINT,
    -- Null as long as something may still happen to the run.
    finished_at    BIGINT,
    restarts       BIGINT NOT NULL DEFAULT 0,
    UNIQUE (dag, interval_start, interval_end, views_key, cause, retry),
    UNIQUE (dag, interval_start, interval_end, revision)
);
CREATE INDEX runs_open ON runs (interval_start, dag, revision) WHERE finished_at IS NULL;
CREATE INDEX runs_by_interval ON runs (interval_start, revision);

CREATE TABLE tasks (
    run            TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    seq            BIGINT NOT NULL,
    kind           TEXT COLLATE "C" NOT NULL,
    state          TEXT COLLATE "C" NOT NULL,
    -- The seqs of the tasks that must have succeeded before, as a JSON array.
    waits_for      TEXT COLLATE "C" NOT NULL,
    attempts       BIGINT NOT NULL DEFAULT 0,
    attempts_max   BIGINT NOT NULL,
    -- How often a process died while it ran this task and its successor gave the lease back.
    crashes        BIGINT NOT NULL DEFAULT 0,
    rows           BIGINT,
    started_at     BIGINT,
    finished_at    BIGINT,
    error          TEXT COLLATE "C",
    output         TEXT COLLATE "C",
    -- 1 while it is queued, its run is admitted and all that it waits for is done.
    ready          BIGINT NOT NULL DEFAULT 0,
    -- Copied from the run, so that one index yields the tasks in the order in which they are claimed.
    begun          BIGINT NOT NULL DEFAULT 0,
    interval_start BIGINT NOT NULL,
    retry_at       BIGINT,
    -- Of the attempt that runs, or of the one that ended the task last.
    token          TEXT COLLATE "C",
    lease_owner    TEXT COLLATE "C",
    lease_until    BIGINT,
    PRIMARY KEY (run, seq)
);
-- Nearly every row changes a few times in its first seconds and then never again.
ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);
CREATE INDEX tasks_ready ON tasks (begun DESC, interval_start, run, seq, retry_at) WHERE ready = 1;
CREATE INDEX tasks_leased ON tasks (lease_until, lease_owner) WHERE lease_until IS NOT NULL;
CREATE UNIQUE INDEX tasks_token ON tasks (token) WHERE token IS NOT NULL;

CREATE TABLE task_logs (
    id      BIGINT NOT NULL GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    run     TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    at      BIGINT NOT NULL,
    task    TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    level   TEXT COLLATE "C" NOT NULL,
    message TEXT COLLATE "C" NOT NULL
);
CREATE INDEX task_logs_by_run ON task_logs (run, id);

CREATE TABLE view_states (
    view              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- The highest given out, and the highest recorded.
    publish_number    BIGINT NOT NULL DEFAULT 0,
    recorded_number   BIGINT NOT NULL DEFAULT 0,
    publishing        TEXT COLLATE "C" REFERENCES runs (id),
    records           BIGINT NOT NULL DEFAULT 0,
    delta_version     BIGINT NOT NULL,
    online_generation BIGINT,
    newest_start      BIGINT,
    newest_end        BIGINT
);
CREATE INDEX view_states_publishing ON view_states (publishing) WHERE publishing IS NOT NULL;

CREATE TABLE intents (
    run      TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES runs (id),
    taken_at BIGINT NOT NULL,
    views    TEXT COLLATE "C" NOT NULL
);

CREATE TABLE snapshots (
    id             TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    run            TEXT COLLATE "C" NOT NULL UNIQUE REFERENCES runs (id),
    dag            TEXT COLLATE "C" NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end   BIGINT NOT NULL,
    created_at     BIGINT NOT NULL,
    -- The order of recording: instants of project time may tie.
    number         BIGINT NOT NULL UNIQUE
);
CREATE INDEX snapshots_by_dag ON snapshots (dag, number);

CREATE TABLE snapshot_views (
    snapshot          TEXT COLLATE "C" NOT NULL REFERENCES snapshots (id),
    position          BIGINT NOT NULL,
    view              TEXT COLLATE "C" NOT NULL,
    fingerprint       TEXT COLLATE "C" NOT NULL,
    delta_version     BIGINT NOT NULL,
    publish_number    BIGINT NOT NULL,
    rows              BIGINT NOT NULL,
    digest            TEXT COLLATE "C" NOT NULL,
    online_generation BIGINT,
    profile           TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (snapshot, position)
);
CREATE INDEX snapshot_views_by_view ON snapshot_views (view);

CREATE TABLE manifests (
    run  TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES runs (id),
    pins TEXT COLLATE "C" NOT NULL
);

CREATE TABLE ledger (
    view           TEXT COLLATE "C" NOT NULL,
    interval_end   BIGINT NOT NULL,
    interval_start BIGINT NOT NULL,
    run            TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    snapshot       TEXT COLLATE "C" NOT NULL REFERENCES snapshots (id),
    rows           BIGINT NOT NULL,
    digest         TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (view, interval_end, interval_start)
);

-- Verdicts. `seq` is that of the view's task in its run.
CREATE TABLE checks (
    run      TEXT COLLATE "C" NOT NULL REFERENCES runs (id),
    seq      BIGINT NOT NULL,
    position BIGINT NOT NULL,
    view     TEXT COLLATE "C" NOT NULL,
    verdict  TEXT COLLATE "C" NOT NULL,
    result   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (run, seq, position)
);
CREATE INDEX checks_by_view ON checks (view, run);
CREATE INDEX checks_by_verdict ON checks (verdict, run);

CREATE TABLE workers (
    owner    TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    heard_at BIGINT NOT NULL
);

CREATE TABLE audit_events (
    id      BIGINT NOT NULL GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at      BIGINT NOT NULL,
    actor   TEXT COLLATE "C" NOT NULL,
    action  TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    detail  TEXT COLLATE "C" NOT NULL
);
CREATE FUNCTION audit_events_keep() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'audit events are only ever added'; END $$;
CREATE TRIGGER audit_events_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
FOR EACH STATEMENT EXECUTE FUNCTION audit_events_keep();
