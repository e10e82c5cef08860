-- What is known of the rows that a run recorded of a view, as a whole (JSON).
ALTER TABLE snapshot_views ADD COLUMN summary TEXT COLLATE "C";
