-- Who may claim a task (queue), whose slot it takes (pool), and when its turn comes (rank: the database's clock at
-- admission, earlier by a minute for each point of the run's priority).
ALTER TABLE runs ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN queue TEXT COLLATE "C" NOT NULL DEFAULT 'default';
ALTER TABLE tasks ADD COLUMN pool TEXT COLLATE "C";
ALTER TABLE tasks ADD COLUMN rank BIGINT NOT NULL DEFAULT 0;
DROP INDEX tasks_ready;
CREATE INDEX tasks_ready ON tasks (begun DESC, rank, interval_start, run, seq, retry_at, queue, pool) WHERE ready = 1;
CREATE INDEX tasks_pooled ON tasks (pool) WHERE lease_until IS NOT NULL AND pool IS NOT NULL;

CREATE TABLE pools (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    slots BIGINT NOT NULL
);

-- What workers say of themselves. `queues` is a JSON array, empty for all.
ALTER TABLE workers ADD COLUMN queues TEXT COLLATE "C" NOT NULL DEFAULT '[]';
ALTER TABLE workers ADD COLUMN slots BIGINT NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN running BIGINT NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN version TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN host TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN drained BIGINT NOT NULL DEFAULT 0;
