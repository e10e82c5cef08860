-- What waits, or waited, for a second person; `views` and `approvers` are JSON lists of texts.
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
