-- Where a daemon is to be found; empty for one of an earlier version, which only says that it lives.
ALTER TABLE daemons ADD COLUMN address TEXT;
ALTER TABLE daemons ADD COLUMN host TEXT;
ALTER TABLE daemons ADD COLUMN version TEXT;
ALTER TABLE daemons ADD COLUMN started_us INTEGER;
