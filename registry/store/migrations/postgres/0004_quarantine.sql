-- Who let a run through that checks stop (JSON), how many rows runs set aside, and where these are.
ALTER TABLE runs ADD COLUMN overriding TEXT COLLATE "C";
ALTER TABLE view_states ADD COLUMN quarantine_version BIGINT;
ALTER TABLE snapshot_views ADD COLUMN quarantined BIGINT NOT NULL DEFAULT 0;
