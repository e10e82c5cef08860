-- The audit trail as a chain: what an event says more, and its hash, which covers all before it.
ALTER TABLE audit_events ADD COLUMN recorded_at BIGINT;
ALTER TABLE audit_events ADD COLUMN reason TEXT COLLATE "C";
ALTER TABLE audit_events ADD COLUMN before TEXT COLLATE "C";
ALTER TABLE audit_events ADD COLUMN after TEXT COLLATE "C";
-- In microseconds.
ALTER TABLE audit_events ADD COLUMN duration BIGINT;
ALTER TABLE audit_events ADD COLUMN hash TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX audit_events_at ON audit_events (at);

-- The newest event. Whoever adds one locks this row, as the last thing in its transaction.
CREATE TABLE audit_head (
    one    BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    number BIGINT NOT NULL,
    hash   TEXT COLLATE "C" NOT NULL
);
INSERT INTO audit_head (one, number, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE FUNCTION audit_events_chained() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'audit events are chained: use a newer version of Tidegate'; END $$;
CREATE TRIGGER audit_events_chained BEFORE INSERT ON audit_events
FOR EACH ROW WHEN (NEW.hash = '') EXECUTE FUNCTION audit_events_chained();
