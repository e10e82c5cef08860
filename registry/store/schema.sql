CREATE TABLE applies (
    revision   INTEGER NOT NULL PRIMARY KEY,
    applied_at INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    message    TEXT
) STRICT;
CREATE TABLE approvals (
    id           TEXT NOT NULL PRIMARY KEY,
    ask          TEXT NOT NULL,
    summary      TEXT NOT NULL,
    views        TEXT NOT NULL,
    approvers    TEXT NOT NULL,
    requester    TEXT NOT NULL,
    reason       TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    approved_by  TEXT,
    approved_at  INTEGER,
    used_for     TEXT
) STRICT;
CREATE TRIGGER audit_events_chained BEFORE INSERT ON audit_events WHEN NEW.hash = ''
BEGIN SELECT RAISE(ABORT, 'audit events are chained: use a newer version of Tidegate'); END;
CREATE TRIGGER audit_events_keep BEFORE UPDATE ON audit_events
BEGIN SELECT RAISE(ABORT, 'audit events are only ever added'); END;
CREATE TRIGGER audit_events_stay BEFORE DELETE ON audit_events
BEGIN SELECT RAISE(ABORT, 'audit events are only ever added'); END;
CREATE TABLE audit_events (
    id      INTEGER NOT NULL PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
, recorded_at INTEGER, reason TEXT, before TEXT, after TEXT, duration INTEGER, hash TEXT NOT NULL DEFAULT '') STRICT;
CREATE INDEX audit_events_at ON audit_events (at);
CREATE TABLE audit_head (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    hash   TEXT NOT NULL
) STRICT;
CREATE TABLE bad_snapshots (
    snapshot  TEXT NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    marked_at INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL
) STRICT;
CREATE TABLE checks (
    run      TEXT NOT NULL REFERENCES runs (id),
    seq      INTEGER NOT NULL,
    position INTEGER NOT NULL,
    view     TEXT NOT NULL,
    verdict  TEXT NOT NULL,
    result   TEXT NOT NULL,
    PRIMARY KEY (run, seq, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX checks_by_verdict ON checks (verdict, run);
CREATE INDEX checks_by_view ON checks (view, run);
CREATE TABLE dags (
    dag                  TEXT NOT NULL PRIMARY KEY,
    paused               INTEGER NOT NULL DEFAULT 0,
    planned_until        INTEGER,
    due_at               INTEGER,
    schedule_fingerprint TEXT,
    created_at           INTEGER NOT NULL,
    -- The last revision that changed the DAG, its views or their sources.
    changed              INTEGER NOT NULL,
    -- No longer defined; kept so that it continues its grid if it returns.
    retired              INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX dags_due ON dags (due_at, dag) WHERE due_at IS NOT NULL;
CREATE TABLE dataset_views (
    dataset  TEXT NOT NULL REFERENCES datasets (id),
    view     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    snapshot TEXT REFERENCES snapshots (id),
    PRIMARY KEY (dataset, view)
) STRICT, WITHOUT ROWID;
CREATE INDEX dataset_views_by_snapshot ON dataset_views (snapshot) WHERE snapshot IS NOT NULL;
CREATE INDEX dataset_views_by_view ON dataset_views (view, number);
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
CREATE TABLE definitions (
    kind        TEXT NOT NULL,
    name        TEXT NOT NULL,
    since       INTEGER NOT NULL,
    until       INTEGER,
    position    INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (kind, name, since)
) STRICT;
CREATE UNIQUE INDEX definitions_current ON definitions (kind, name) WHERE until IS NULL;
CREATE INDEX definitions_position ON definitions (position);
CREATE TABLE drill_views (
    view    TEXT NOT NULL,
    drill   TEXT NOT NULL REFERENCES drills (id),
    at      INTEGER NOT NULL,
    took_ms INTEGER,
    PRIMARY KEY (view, drill)
) STRICT;
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
CREATE INDEX drills_by_name ON drills (name, started_at) WHERE name IS NOT NULL;
CREATE INDEX drills_open ON drills (id) WHERE finished_at IS NULL;
CREATE TABLE duties (
    name  TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT;
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
CREATE TABLE intents (
    run      TEXT NOT NULL PRIMARY KEY REFERENCES runs (id),
    taken_at INTEGER NOT NULL,
    views    TEXT NOT NULL
) STRICT;
CREATE TABLE ledger (
    view           TEXT NOT NULL,
    interval_end   INTEGER NOT NULL,
    interval_start INTEGER NOT NULL,
    run            TEXT NOT NULL REFERENCES runs (id),
    snapshot       TEXT NOT NULL REFERENCES snapshots (id),
    rows           INTEGER NOT NULL,
    digest         TEXT NOT NULL,
    PRIMARY KEY (view, interval_end, interval_start)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE manifests (
    run  TEXT NOT NULL PRIMARY KEY REFERENCES runs (id),
    pins TEXT NOT NULL
) STRICT;
CREATE TABLE notice_deliveries (
    notice      TEXT NOT NULL REFERENCES notices (id),
    webhook     TEXT NOT NULL,
    state       TEXT NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER NOT NULL,
    token       TEXT,
    lease_until INTEGER,
    error       TEXT,
    PRIMARY KEY (notice, webhook)
) STRICT;
CREATE INDEX notice_deliveries_by_state ON notice_deliveries (state, notice);
CREATE INDEX notice_deliveries_due ON notice_deliveries (due_at, notice, webhook) WHERE state = 'due';
CREATE UNIQUE INDEX notice_deliveries_token ON notice_deliveries (token) WHERE token IS NOT NULL;
CREATE TABLE notices (
    id         TEXT NOT NULL PRIMARY KEY,
    -- A second notice with the same key is not written.
    key        TEXT NOT NULL UNIQUE,
    event      TEXT NOT NULL,
    subject    TEXT NOT NULL,
    at         INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    actor      TEXT,
    message    TEXT NOT NULL,
    detail     TEXT NOT NULL,
    -- 1 once it is known who wants it.
    routed     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX notices_by_time ON notices (created_at, id);
CREATE INDEX notices_new ON notices (created_at, id) WHERE routed = 0;
CREATE TABLE pools (
    name  TEXT NOT NULL PRIMARY KEY,
    slots INTEGER NOT NULL
) STRICT;
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
CREATE TABLE recipe_looks (
    one  INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    seen INTEGER NOT NULL
) STRICT;
CREATE TABLE registry (
    one           INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    id            TEXT NOT NULL,
    project       TEXT,
    revision      INTEGER NOT NULL DEFAULT 0,
    clock_real    INTEGER,
    clock_project INTEGER
, holds INTEGER NOT NULL DEFAULT 0) STRICT;
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
CREATE TABLE runs (
    id             TEXT NOT NULL PRIMARY KEY,
    dag            TEXT NOT NULL,
    interval_start INTEGER NOT NULL,
    interval_end   INTEGER NOT NULL,
    views          TEXT NOT NULL,
    -- The views sorted, so that the same set in another order is the same run.
    views_key      TEXT NOT NULL,
    cause          TEXT NOT NULL,
    -- 0, or for a run made anew by a retry its revision: it keeps the cause and is still a run of its own.
    retry          INTEGER NOT NULL DEFAULT 0,
    definitions    INTEGER NOT NULL,
    revision       INTEGER NOT NULL,
    attempts_max   INTEGER NOT NULL,
    state          TEXT NOT NULL,
    reason         TEXT,
    created_at     INTEGER NOT NULL,
    started_at     INTEGER,
    -- Null as long as something may still happen to the run.
    finished_at    INTEGER,
    restarts       INTEGER NOT NULL DEFAULT 0, priority INTEGER NOT NULL DEFAULT 0, overriding TEXT,
    UNIQUE (dag, interval_start, interval_end, views_key, cause, retry),
    UNIQUE (dag, interval_start, interval_end, revision)
) STRICT;
CREATE INDEX runs_by_interval ON runs (interval_start, revision);
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_open ON runs (interval_start, dag, revision) WHERE finished_at IS NULL;
CREATE TABLE schema_steps (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, compatible_from INTEGER) STRICT;
CREATE TABLE snapshot_pins (
    snapshot  TEXT NOT NULL PRIMARY KEY REFERENCES snapshots (id),
    pinned_at INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL,
    -- Per view the files of its table, as JSON.
    files     TEXT NOT NULL
) STRICT;
CREATE TABLE snapshot_views (
    snapshot          TEXT NOT NULL REFERENCES snapshots (id),
    position          INTEGER NOT NULL,
    view              TEXT NOT NULL,
    fingerprint       TEXT NOT NULL,
    delta_version     INTEGER NOT NULL,
    publish_number    INTEGER NOT NULL,
    rows              INTEGER NOT NULL,
    digest            TEXT NOT NULL,
    online_generation INTEGER,
    profile           TEXT NOT NULL, quarantined INTEGER NOT NULL DEFAULT 0, summary TEXT, quarantine_version INTEGER, newest_start INTEGER, newest_end INTEGER, flipped INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (snapshot, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_views_by_view ON snapshot_views (view);
CREATE TABLE snapshots (
    id             TEXT NOT NULL PRIMARY KEY,
    run            TEXT NOT NULL UNIQUE REFERENCES runs (id),
    dag            TEXT NOT NULL,
    interval_start INTEGER NOT NULL,
    interval_end   INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    -- The order of recording: instants of project time may tie.
    number         INTEGER NOT NULL UNIQUE
, expired_at INTEGER) STRICT;
CREATE INDEX snapshots_by_dag ON snapshots (dag, number);
CREATE INDEX snapshots_kept ON snapshots (number) WHERE expired_at IS NULL;
CREATE TABLE task_logs (
    id      INTEGER NOT NULL PRIMARY KEY,
    run     TEXT NOT NULL REFERENCES runs (id),
    at      INTEGER NOT NULL,
    task    TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    level   TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX task_logs_by_run ON task_logs (run, id);
CREATE TABLE tasks (
    run            TEXT NOT NULL REFERENCES runs (id),
    seq            INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    state          TEXT NOT NULL,
    -- The seqs of the tasks that must have succeeded before, as a JSON array.
    waits_for      TEXT NOT NULL,
    attempts       INTEGER NOT NULL DEFAULT 0,
    attempts_max   INTEGER NOT NULL,
    -- How often a process died while it ran this task and its successor gave the lease back.
    crashes        INTEGER NOT NULL DEFAULT 0,
    rows           INTEGER,
    started_at     INTEGER,
    finished_at    INTEGER,
    error          TEXT,
    output         TEXT,
    -- 1 while it is queued, its run is admitted and all that it waits for is done.
    ready          INTEGER NOT NULL DEFAULT 0,
    -- Copied from the run, so that one index yields the tasks in the order in which they are claimed.
    begun          INTEGER NOT NULL DEFAULT 0,
    interval_start INTEGER NOT NULL,
    retry_at       INTEGER,
    -- Of the attempt that runs, or of the one that ended the task last.
    token          TEXT,
    lease_owner    TEXT,
    lease_until    INTEGER, queue TEXT NOT NULL DEFAULT 'default', pool TEXT, rank INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, seq)
) STRICT;
CREATE INDEX tasks_leased ON tasks (lease_until, lease_owner) WHERE lease_until IS NOT NULL;
CREATE INDEX tasks_pooled ON tasks (pool) WHERE lease_until IS NOT NULL AND pool IS NOT NULL;
CREATE INDEX tasks_ready ON tasks (begun DESC, rank, interval_start, run, seq, retry_at, queue, pool) WHERE ready = 1;
CREATE UNIQUE INDEX tasks_token ON tasks (token) WHERE token IS NOT NULL;
CREATE TABLE ticks (
    dag TEXT NOT NULL REFERENCES dags (dag),
    at  INTEGER NOT NULL,
    PRIMARY KEY (dag, at)
) STRICT, WITHOUT ROWID;
CREATE TABLE view_states (
    view              TEXT NOT NULL PRIMARY KEY,
    -- The highest given out, and the highest recorded.
    publish_number    INTEGER NOT NULL DEFAULT 0,
    recorded_number   INTEGER NOT NULL DEFAULT 0,
    publishing        TEXT REFERENCES runs (id),
    records           INTEGER NOT NULL DEFAULT 0,
    delta_version     INTEGER NOT NULL,
    online_generation INTEGER,
    newest_start      INTEGER,
    newest_end        INTEGER
, quarantine_version INTEGER) STRICT;
CREATE INDEX view_states_publishing ON view_states (publishing) WHERE publishing IS NOT NULL;
CREATE TABLE workers (
    owner    TEXT NOT NULL PRIMARY KEY,
    heard_at INTEGER NOT NULL
, queues TEXT NOT NULL DEFAULT '[]', slots INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0, version TEXT NOT NULL DEFAULT '', host TEXT NOT NULL DEFAULT '', drained INTEGER NOT NULL DEFAULT 0) STRICT;
