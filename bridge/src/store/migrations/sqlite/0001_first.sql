-- Times are microseconds since 1970. Identifiers are UUIDs in their usual text form.

-- The clock by which leases run; of the same moment throughout a statement.
CREATE VIEW clock AS SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now_us;

CREATE TABLE daemons (
    id      TEXT PRIMARY KEY,
    seen_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    state          TEXT NOT NULL,
    reason         TEXT,
    target         TEXT NOT NULL,
    request        TEXT NOT NULL,
    anywhere       INTEGER NOT NULL,
    tunnel         TEXT,
    port           INTEGER,
    url            TEXT,
    unix_path      TEXT,
    token_sha256   BLOB NOT NULL,
    run_id         TEXT NOT NULL,
    agent_id       TEXT,
    company_id     TEXT,
    issue_id       TEXT,
    environment_id TEXT,
    upstream       TEXT NOT NULL,
    created_us     INTEGER NOT NULL,
    ready_us       INTEGER,
    heartbeat_us   INTEGER,
    expires_us     INTEGER,
    ended_us       INTEGER,
    revoked        INTEGER NOT NULL DEFAULT 0,
    owner          TEXT,
    fence          INTEGER NOT NULL,
    lease_until_us INTEGER
) STRICT;
CREATE INDEX sessions_open ON sessions (lease_until_us) WHERE ended_us IS NULL;
CREATE INDEX sessions_ended ON sessions (ended_us) WHERE ended_us IS NOT NULL;

-- No foreign key: an entry is inserted by a SELECT on its session, which proves that it is there.
CREATE TABLE ledger (
    request_id      TEXT PRIMARY KEY,
    session         TEXT NOT NULL,
    idempotency_key TEXT,
    method          TEXT NOT NULL,
    route           TEXT NOT NULL,
    path            TEXT NOT NULL,
    dispatched_us   INTEGER NOT NULL,
    fence           INTEGER NOT NULL,
    outcome         TEXT NOT NULL,
    status          INTEGER,
    reason          TEXT,
    delivered       INTEGER,
    settled_us      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_recent ON ledger (session, dispatched_us);
CREATE INDEX ledger_by_key ON ledger (session, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TRIGGER session_gone AFTER DELETE ON sessions BEGIN
    DELETE FROM ledger WHERE session = OLD.id;
END;

CREATE TABLE leases (
    name     TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    account  TEXT NOT NULL,
    stage    TEXT NOT NULL,
    session  TEXT,
    record   TEXT NOT NULL,
    since_us INTEGER NOT NULL
) STRICT;

CREATE TABLE cleanups (
    name     TEXT PRIMARY KEY,
    session  TEXT,
    target   TEXT NOT NULL,
    record   TEXT NOT NULL,
    since_us INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_us  INTEGER
) STRICT;

CREATE TABLE nonces (
    key_id   TEXT NOT NULL,
    nonce    TEXT NOT NULL,
    until_us INTEGER NOT NULL,
    PRIMARY KEY (key_id, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_until ON nonces (until_us);

CREATE TABLE audit_heads (
    daemon  TEXT NOT NULL,
    segment TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    sha256  BLOB NOT NULL,
    hmac    BLOB NOT NULL,
    at_us   INTEGER NOT NULL,
    PRIMARY KEY (daemon, segment)
) STRICT, WITHOUT ROWID;
