-- Who may claim a task (queue), whose slot it takes (pool), and when its turn comes (rank: the database's clock at
-- admission, earlier by a minute for each point of the run's priority).
ALTER TABLE runs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN queue TEXT NOT NULL DEFAULT 'default';
ALTER TABLE tasks ADD COLUMN pool TEXT;
ALTER TABLE tasks ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
DROP INDEX tasks_ready;
CREATE INDEX tasks_ready ON tasks (begun DESC, rank, interval_start, run, seq, retry_at, queue, pool) WHERE ready = 1;
CREATE INDEX tasks_pooled ON tasks (pool) WHERE lease_until IS NOT NULL AND pool IS NOT NULL;

CREATE TABLE pools (
    name  TEXT NOT NULL PRIMARY KEY,
    slots INTEGER NOT NULL
) STRICT;

-- What workers say of themselves. `queues` is a JSON array, empty for all.
ALTER TABLE workers ADD COLUMN queues TEXT NOT NULL DEFAULT '[]';
ALTER TABLE workers ADD COLUMN slots INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN running INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN drained INTEGER NOT NULL DEFAULT 0;
