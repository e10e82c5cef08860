-- The audit trail as a chain: what an event says more, and its hash, which covers all before it.
ALTER TABLE audit_events ADD COLUMN recorded_at INTEGER;
ALTER TABLE audit_events ADD COLUMN reason TEXT;
ALTER TABLE audit_events ADD COLUMN before TEXT;
ALTER TABLE audit_events ADD COLUMN after TEXT;
-- In microseconds.
ALTER TABLE audit_events ADD COLUMN duration INTEGER;
ALTER TABLE audit_events ADD COLUMN hash TEXT NOT NULL DEFAULT '';
CREATE INDEX audit_events_at ON audit_events (at);

-- The newest event. Whoever adds one locks this row, as the last thing in its transaction.
CREATE TABLE audit_head (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    hash   TEXT NOT NULL
) STRICT;
INSERT INTO audit_head (one, number, hash)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TRIGGER audit_events_chained BEFORE INSERT ON audit_events WHEN NEW.hash = ''
BEGIN SELECT RAISE(ABORT, 'audit events are chained: use a newer version of Tidegate'); END;
