-- Where a daemon is to be found; empty for one of an earlier version, which only says that it lives.
ALTER TABLE daemons
    ADD COLUMN address    TEXT,
    ADD COLUMN host       TEXT,
    ADD COLUMN version    TEXT,
    ADD COLUMN started_us BIGINT;
