-- What waits, or waited, for a second person; `views` and `approvers` are JSON lists of texts.
CREATE TABLE approvals (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    ask          TEXT COLLATE "C" NOT NULL,
    summary      TEXT COLLATE "C" NOT NULL,
    views        TEXT COLLATE "C" NOT NULL,
    approvers    TEXT COLLATE "C" NOT NULL,
    requester    TEXT COLLATE "C" NOT NULL,
    reason       TEXT COLLATE "C" NOT NULL,
    requested_at BIGINT NOT NULL,
    approved_by  TEXT COLLATE "C",
    approved_at  BIGINT,
    used_for     TEXT COLLATE "C"
);
