//! The variables that a gateway is started with, and the block of text in which they travel.
//!
//! Here: which variables each kind of gateway gets, and the block's form. Not here: who reads it (`scripts`).

use std::fmt;
use std::time::Duration;

use runners::SecretText;
use runners::shell::check_env_key;
use sha2::{Digest, Sha256};
use wire::names::{mode, variable};
use zeroize::Zeroizing;

use super::{GatewayKind, LaunchFault, hex};

/// Longest accepted value of one variable; a path is the longest there is.
const VALUE_LIMIT_BYTES: usize = 8 * 1024;

/// The session's token, as far as the daemon still knows it.
#[derive(Clone, Debug)]
pub struct GatewayToken {
    text: Option<SecretText>,
    sha256: [u8; 32],
}

impl GatewayToken {
    /// A token that is known.
    #[must_use]
    pub fn from_text(text: SecretText) -> Self {
        let sha256 = Sha256::digest(text.expose().as_bytes()).into();
        Self {
            text: Some(text),
            sha256,
        }
    }

    /// A token of which only the SHA-256 was kept: enough for our own gateway, not for the peer's script.
    #[must_use]
    pub fn from_digest(sha256: [u8; 32]) -> Self {
        Self { text: None, sha256 }
    }

    /// Its SHA-256.
    pub(crate) fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

/// What a gateway with a file queue is told besides its token.
#[derive(Clone, Debug)]
pub struct QueueVariables {
    /// The queue's directory on the target, absolute.
    pub directory: String,
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// How often it looks for an answer.
    pub poll_interval: Duration,
    /// How long it waits for one.
    pub response_timeout: Duration,
    /// Requests that may wait at the same time.
    pub max_queue_depth: usize,
    /// Largest body in bytes.
    pub max_body: u64,
    /// How long our own gateway stays without a sign of life from the host.
    pub linger: Duration,
}

/// A gateway's variables, in the order in which they are set. Prints names only.
pub struct GatewayEnvironment {
    variables: Vec<(String, Zeroizing<String>)>,
}

impl GatewayEnvironment {
    /// The variables for HTTP/2 over its stdin and stdout.
    ///
    /// # Errors
    ///
    /// [`LaunchFault::TokenNotKept`] where the token's text is needed and not known, [`LaunchFault::Invalid`] where a
    /// value holds a line end.
    pub fn http2(
        kind: GatewayKind,
        token: &GatewayToken,
        port: u16,
        nonce: &str,
        max_body: u64,
    ) -> Result<Self, LaunchFault> {
        let mut environment = Self {
            variables: Vec::new(),
        };
        environment.set(variable::MODE, mode::HTTP2)?;
        environment.set_token(kind, token)?;
        environment.set(variable::HOST, "127.0.0.1")?;
        environment.set(variable::PORT, port.to_string())?;
        environment.set(variable::NONCE, nonce)?;
        environment.set(variable::MAX_BODY_BYTES, max_body.to_string())?;
        Ok(environment)
    }

    /// The variables for a file queue.
    ///
    /// # Errors
    ///
    /// As [`Self::http2`].
    pub fn queue(
        kind: GatewayKind,
        token: &GatewayToken,
        queue: &QueueVariables,
    ) -> Result<Self, LaunchFault> {
        let mut environment = Self {
            variables: Vec::new(),
        };
        let millis = |time: Duration| time.as_millis().max(1).to_string();
        environment.set(variable::MODE, mode::QUEUE)?;
        environment.set(variable::QUEUE_DIR, queue.directory.as_str())?;
        environment.set_token(kind, token)?;
        environment.set(variable::HOST, "127.0.0.1")?;
        environment.set(variable::PORT, queue.port.to_string())?;
        environment.set(variable::POLL_INTERVAL_MS, millis(queue.poll_interval))?;
        environment.set(variable::RESPONSE_TIMEOUT_MS, millis(queue.response_timeout))?;
        environment.set(variable::MAX_QUEUE_DEPTH, queue.max_queue_depth.to_string())?;
        environment.set(variable::MAX_BODY_BYTES, queue.max_body.to_string())?;
        if kind == GatewayKind::Binary {
            environment.set(
                variable::LINGER_SECONDS,
                queue.linger.as_secs().max(1).to_string(),
            )?;
        }
        Ok(environment)
    }

    fn set_token(&mut self, kind: GatewayKind, token: &GatewayToken) -> Result<(), LaunchFault> {
        match (kind, &token.text) {
            (GatewayKind::Binary, _) => self.set(variable::TOKEN_SHA256, hex(&token.sha256)),
            (GatewayKind::Script, Some(text)) => self.set(variable::TOKEN, text.expose()),
            (GatewayKind::Script, None) => Err(LaunchFault::TokenNotKept),
        }
    }

    /// Adds one variable.
    ///
    /// # Errors
    ///
    /// [`LaunchFault::Invalid`] for a name that is none, and for a value that holds NUL or a line end or is longer
    /// than 8 KiB. The value is never part of the text.
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> Result<(), LaunchFault> {
        let value = Zeroizing::new(value.into());
        check_env_key(key).map_err(|error| LaunchFault::Invalid(error.to_string()))?;
        if value.len() > VALUE_LIMIT_BYTES || value.contains(['\0', '\n', '\r']) {
            return Err(LaunchFault::Invalid(format!(
                "the value of {key} holds NUL or a line end, or is longer than {VALUE_LIMIT_BYTES} bytes"
            )));
        }
        self.variables.push((key.to_owned(), value));
        Ok(())
    }

    /// The block that the start script reads before it becomes the gateway: the number of lines, then one line
    /// `NAME=value` each. Nothing in it is read as shell text.
    #[must_use]
    pub fn block(&self) -> Zeroizing<Vec<u8>> {
        // Sized ahead: a growing vector would leave unwiped copies behind.
        let size = self
            .variables
            .iter()
            .map(|(key, value)| key.len() + value.len() + 2)
            .sum::<usize>();
        let mut block = Zeroizing::new(Vec::with_capacity(size + 24));
        block.extend_from_slice(self.variables.len().to_string().as_bytes());
        block.push(b'\n');
        for (key, value) in &self.variables {
            block.extend_from_slice(key.as_bytes());
            block.push(b'=');
            block.extend_from_slice(value.as_bytes());
            block.push(b'\n');
        }
        block
    }
}

impl fmt::Debug for GatewayEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.variables.iter().map(|(key, _)| key))
            .finish()
    }
}
