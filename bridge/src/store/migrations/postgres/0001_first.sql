-- Times are microseconds since 1970. Identifiers are UUIDs in their usual text form.

-- The clock by which leases run. Not now(), which stands still in a transaction.
CREATE FUNCTION now_us() RETURNS BIGINT LANGUAGE SQL VOLATILE AS
    'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT';

CREATE TABLE daemons (
    id      TEXT PRIMARY KEY,
    seen_us BIGINT NOT NULL
);

CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    state          TEXT NOT NULL,
    reason         TEXT,
    target         TEXT NOT NULL,
    request        TEXT NOT NULL,
    anywhere       BOOLEAN NOT NULL,
    tunnel         TEXT,
    port           BIGINT,
    url            TEXT,
    unix_path      TEXT,
    token_sha256   BYTEA NOT NULL,
    run_id         TEXT NOT NULL,
    agent_id       TEXT,
    company_id     TEXT,
    issue_id       TEXT,
    environment_id TEXT,
    upstream       TEXT NOT NULL,
    created_us     BIGINT NOT NULL,
    ready_us       BIGINT,
    heartbeat_us   BIGINT,
    expires_us     BIGINT,
    ended_us       BIGINT,
    revoked        BOOLEAN NOT NULL DEFAULT FALSE,
    owner          TEXT,
    fence          BIGINT NOT NULL,
    lease_until_us BIGINT
);
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
    dispatched_us   BIGINT NOT NULL,
    fence           BIGINT NOT NULL,
    outcome         TEXT NOT NULL,
    status          BIGINT,
    reason          TEXT,
    delivered       BOOLEAN,
    settled_us      BIGINT
);
CREATE INDEX ledger_recent ON ledger (session, dispatched_us);
CREATE INDEX ledger_by_key ON ledger (session, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE leases (
    name     TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    account  TEXT NOT NULL,
    stage    TEXT NOT NULL,
    session  TEXT,
    record   TEXT NOT NULL,
    since_us BIGINT NOT NULL
);

CREATE TABLE cleanups (
    name     TEXT PRIMARY KEY,
    session  TEXT,
    target   TEXT NOT NULL,
    record   TEXT NOT NULL,
    since_us BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_us  BIGINT
);

CREATE TABLE nonces (
    key_id   TEXT NOT NULL,
    nonce    TEXT NOT NULL,
    until_us BIGINT NOT NULL,
    PRIMARY KEY (key_id, nonce)
);
CREATE INDEX nonces_until ON nonces (until_us);

CREATE TABLE audit_heads (
    daemon  TEXT NOT NULL,
    segment TEXT NOT NULL,
    seq     BIGINT NOT NULL,
    sha256  BYTEA NOT NULL,
    hmac    BYTEA NOT NULL,
    at_us   BIGINT NOT NULL,
    PRIMARY KEY (daemon, segment)
);
