//! Names that both ends must spell alike: environment variables of a gateway, and header fields.
//!
//! Here: the strings. Not here: what they may hold; that is with who reads them. Names that begin with `PAPERCLIP_` and
//! `x-paperclip-` are Paperclip's own, the others are ours.

/// The environment a gateway is started with.
pub mod variable {
    /// `http2_v1` or `queue_v1`.
    pub const MODE: &str = "PAPERCLIP_API_BRIDGE_MODE";
    /// The bridge token, where Paperclip's own host started the gateway.
    pub const TOKEN: &str = "PAPERCLIP_BRIDGE_TOKEN";
    /// SHA-256 of the bridge token, 64 hexadecimal digits, where our daemon started it.
    pub const TOKEN_SHA256: &str = "PCBRIDGE_GATEWAY_TOKEN_SHA256";
    /// Address to listen on.
    pub const HOST: &str = "PAPERCLIP_BRIDGE_HOST";
    /// Port to listen on; 0 for any (queue only).
    pub const PORT: &str = "PAPERCLIP_BRIDGE_PORT";
    /// What the READY line must repeat; in the file of [`TOKEN_FILE`] it marks what is meant for this gateway.
    pub const NONCE: &str = "PAPERCLIP_BRIDGE_NONCE";
    /// The queue directory.
    pub const QUEUE_DIR: &str = "PAPERCLIP_BRIDGE_QUEUE_DIR";
    /// Milliseconds between two looks for an answer.
    pub const POLL_INTERVAL_MS: &str = "PAPERCLIP_BRIDGE_POLL_INTERVAL_MS";
    /// Milliseconds until an answer in the queue is given up.
    pub const RESPONSE_TIMEOUT_MS: &str = "PAPERCLIP_BRIDGE_RESPONSE_TIMEOUT_MS";
    /// Requests that may wait in the queue.
    pub const MAX_QUEUE_DEPTH: &str = "PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH";
    /// Bytes a body may have.
    pub const MAX_BODY_BYTES: &str = "PAPERCLIP_BRIDGE_MAX_BODY_BYTES";
    /// Seconds a detached gateway of ours stays after its host's last sign of life.
    pub const LINGER_SECONDS: &str = "PCBRIDGE_GATEWAY_LINGER_SECONDS";
    /// The file that names the process of a gateway of ours, which removes it when it ends.
    pub const RECORD: &str = "PCBRIDGE_GATEWAY_RECORD";
    /// The file by which a gateway of ours takes another token while it runs: one line with [`NONCE`] and the SHA-256 of the
    /// token that holds, 64 hexadecimal digits. It makes the file when it starts, and removes it when it ends.
    pub const TOKEN_FILE: &str = "PCBRIDGE_GATEWAY_TOKEN_FILE";
    /// Milliseconds without any byte of the host after which an `http2_v1` gateway ends; for tests.
    pub const SILENCE_MS: &str = "PCBRIDGE_GATEWAY_SILENCE_MS";
}

/// Values of [`variable::MODE`].
pub mod mode {
    /// HTTP/2 over the gateway's standard input and output.
    pub const HTTP2: &str = "http2_v1";
    /// Files in a directory.
    pub const QUEUE: &str = "queue_v1";
}

/// Header fields, in lower case.
pub mod header {
    /// base64url without padding of the caller's `Host`, where `:authority` cannot carry it.
    pub const HOST: &str = "x-pcbridge-host";
    /// base64url without padding of the request target, where `:path` cannot carry it.
    pub const TARGET: &str = "x-pcbridge-target";
    /// Begins every field of ours between gateway and host; a caller's own of such a name are dropped.
    pub const OWN_PREFIX: &str = "x-pcbridge-";
    /// `indeterminate` on an answer that may not be retried.
    pub const OUTCOME: &str = "x-paperclip-bridge-outcome";
    /// The value of [`OUTCOME`].
    pub const INDETERMINATE: &str = "indeterminate";
    /// On every answer under our daemon.
    pub const REQUEST_ID: &str = "x-paperclip-bridge-request-id";
}

/// `:authority` of a stream whose caller's `Host` stands in [`header::HOST`].
pub const NO_AUTHORITY: &str = "gateway.invalid";
