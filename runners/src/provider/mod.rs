//! The seam by which a sandbox provider is added: what it declares, and what it does with leases.
//!
//! Here: [`ProviderSpec`], the traits [`Provider`] and [`SecretSource`], leases as values, and the one list of
//! providers. In [`config`] how a configuration is described and read, in [`secret`] what stands for a secret in it.
//! Not here: any provider; each has a folder of its own beside this one, and nothing else names it. Read next:
//! [`crate::runner`], what a lease is good for.

pub mod config;
pub mod secret;

mod check;

pub use config::{read, schema};
pub use secret::SecretHandle;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::http::HttpClient;
use crate::{CommandManagedRuntimeRunner, RunnerError, SecretText, Shell};

/// Every provider of this build, in the order in which they are listed.
pub static PROVIDERS: &[&ProviderSpec] = &[
    &crate::daytona::DAYTONA,
    &crate::e2b::E2B,
    &crate::worker::SPEC,
    &crate::fake::SPEC,
];

/// The provider whose targets start with `key:`.
#[must_use]
pub fn find(key: &str) -> Option<&'static ProviderSpec> {
    PROVIDERS.iter().find(|provider| provider.key == key).copied()
}

/// The candidate that `name` is most likely a misspelling of, if there is one; case and separators count for little.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let wanted = plain(name);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// What a provider declares of itself; a `static` in its own folder.
#[derive(Debug)]
pub struct ProviderSpec {
    /// Its name, which is also the scheme of its targets: `[a-z][a-z0-9-]*`.
    pub key: &'static str,
    /// One line for an operator.
    pub about: &'static str,
    /// What its sandboxes can do.
    pub capabilities: ProviderCapabilities,
    /// `shellCommand` of its leases where their metadata say nothing; `None` is `sh`.
    pub shell: Option<Shell>,
    /// JSON Schema of its configuration, made from the struct that reads it.
    pub schema: fn() -> Value,
    /// Which fields of the configuration are references to secrets.
    pub secrets: &'static [SecretField],
    /// Reads the configuration. Connects to nothing and resolves no secret.
    pub build: fn(ProviderSettings) -> Result<Arc<dyn Provider>, ConfigError>,
}

/// What the sandboxes of a provider can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderCapabilities {
    /// A byte stream to a long-lived command, for `http2_v1`.
    pub duplex: bool,
    /// Files are uploaded by a call of the provider's own.
    pub file_transfer: bool,
    /// Output arrives while a command runs.
    pub streaming_output: bool,
    /// A lease can be released and resumed later.
    pub reuse_leases: bool,
    /// A long command does not keep others waiting.
    pub background: bool,
}

/// A field of a configuration that holds a reference such as `env:NAME`, never a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretField {
    /// Its name in the configuration.
    pub name: &'static str,
    /// The variable of the daemon's environment that is looked up where the field is absent.
    pub fallback_env: Option<&'static str>,
}

/// What a provider is built from.
#[derive(Clone)]
pub struct ProviderSettings {
    /// The operator's configuration, as yet unread.
    pub config: Map<String, Value>,
    /// Resolves references at each use.
    pub secrets: Arc<dyn SecretSource>,
    /// Signs requests for providers that want that.
    pub signer: Arc<dyn RequestSigner>,
    /// The client that all providers share, with the system's root certificates.
    pub http: HttpClient,
    /// One variable of the daemon's environment; this crate reads none by itself.
    pub environment: fn(&str) -> Option<String>,
}

impl fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values stay out: somebody may have put a secret where a reference belongs.
        f.debug_struct("ProviderSettings")
            .field("config", &self.config.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Resolves references to secrets.
pub trait SecretSource: Send + Sync {
    /// The value behind `reference`, such as `env:E2B_API_KEY`.
    ///
    /// # Errors
    ///
    /// [`SecretFault`]: the reference, where it was looked for, and never the value.
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>>;

    /// The provider answered 401 to what `reference` gave: it is read anew at its next use, however fresh it seems.
    /// Providers do not call it themselves; [`SecretHandle::renewed`] does.
    fn rejected(&self, _reference: &str) {}
}

/// Signs requests to a provider; the form of the signature is no business of this crate's.
pub trait RequestSigner: Send + Sync {
    /// The header fields that sign `request` now, each with a fresh nonce; they are added as they are.
    ///
    /// # Errors
    ///
    /// One line saying why it cannot be signed; nothing may then be sent.
    fn sign(
        &self,
        key_id: &str,
        key: &SecretText,
        request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String>;

    /// Whether whoever answered holds `key`, too, and gave this answer to this request. A signer that cannot tell says no.
    fn is_answer(&self, _key: &SecretText, _answer: &SignedAnswer<'_>) -> bool {
        false
    }
}

/// What the signature of an answer covers.
#[derive(Clone, Copy, Debug)]
pub struct SignedAnswer<'a> {
    /// What [`RequestSigner::sign`] gave for the request.
    pub request: &'a [(&'static str, String)],
    /// The status.
    pub status: u16,
    /// The `Content-Type` header; empty for none.
    pub content_type: &'a str,
    /// Which part of a stream it is, from 1; `None` for a whole answer and for the end of a stream.
    pub part: Option<u64>,
    /// SHA-256 of the bytes that are covered.
    pub sha256: [u8; 32],
    /// The signature as it came.
    pub presented: &'a str,
}

/// What a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct UnsignedRequest<'a> {
    /// Upper case.
    pub method: &'a str,
    /// Path and query, exactly as they stand in the request line.
    pub target: &'a str,
    /// The `Host` header, exactly as sent.
    pub host: &'a str,
    /// The `Content-Type` header; empty for none.
    pub content_type: &'a str,
    /// The present ones of `environment-id`, `issue-id` and `run-id`.
    pub context: &'a [(&'a str, &'a str)],
    /// The bytes of the body as sent.
    pub body: &'a [u8],
}

/// Why a secret could not be had. Holds the reference and where it was looked for, never a value.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SecretFault(pub String);

/// What is wrong with a provider's configuration.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{provider}: `{field}` {problem}")]
pub struct ConfigError {
    /// The provider's key.
    pub provider: &'static str,
    /// The field, as the operator writes it; for a fault of the whole, `config`.
    pub field: String,
    /// What is wrong and what to do. Never repeats a secret field's value.
    pub problem: String,
}

/// Whom a lease is for; what a provider labels its sandbox with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseScope {
    /// The agent's run. Never empty.
    pub run_id: String,
    /// The environment whose leases may be used again.
    pub environment_id: Option<String>,
    /// The issue that the run works on.
    pub issue_id: Option<String>,
    /// The company that owns them.
    pub company_id: Option<String>,
    /// Where commands shall run; absolute.
    pub requested_cwd: Option<String>,
    /// Which acquire this is, at a provider for which [`Provider::repeats_acquire`] holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A provider's hold on a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The provider's own name of it.
    pub id: String,
    /// What the provider wants to see again: opaque to everybody else, and without secrets.
    pub metadata: Map<String, Value>,
    /// The working directory of commands that name none; absolute.
    pub remote_cwd: Option<String>,
    /// When the provider ends it by itself, if it does.
    pub expires_at: Option<SystemTime>,
    /// It was there before.
    pub resumed: bool,
}

impl Lease {
    /// The shell that the metadata name under `shellCommand`, else the provider's default, else `sh`.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Broken`] for any value but `bash`, `sh` and null: nothing else gets through.
    pub fn shell(&self, provider: &ProviderSpec) -> Result<Shell, ProviderError> {
        let fault = |value: &Value| {
            ProviderError::Broken(format!(
                "the lease names the shell {value}; only \"bash\" and \"sh\" are known"
            ))
        };
        match self.metadata.get("shellCommand") {
            None | Some(Value::Null) => Ok(provider.shell.unwrap_or_default()),
            Some(value @ Value::String(name)) => Shell::parse(Some(name)).map_err(|_| fault(value)),
            Some(value) => Err(fault(value)),
        }
    }
}

/// What became of a lease, as the provider confirmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Released {
    /// The sandbox is kept and can be resumed.
    Stopped,
    /// The sandbox is gone, also if it had gone before.
    Destroyed,
}

/// Acquires leases and makes runners of them. One for each configuration; shared by all its leases.
///
/// # Cancel safety
///
/// Dropping a future abandons the call, whose effect is then unknown: [`Self::list`] finds what it made.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Makes a sandbox, or takes one for use again where the configuration allows it.
    ///
    /// # Errors
    ///
    /// [`ProviderError`], with nothing left behind; [`ProviderError::Unknown`] where that is not certain.
    fn acquire<'a>(&'a self, scope: &'a LeaseScope) -> BoxFuture<'a, Result<Lease, ProviderError>>;

    /// Whether an acquire that is asked again with the same `request_id` has the same lease, and none once that was given
    /// back. Asked before each acquire; where it does, the scope of the acquire has one, written down before it is sent.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where that cannot be found out; nothing has been made.
    fn repeats_acquire(&self) -> BoxFuture<'_, Result<bool, ProviderError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Goes on with a lease of before. `metadata` are those of the lease, or empty where only the id is known.
    ///
    /// # Errors
    ///
    /// [`ProviderError::LeaseLost`] where it is gone; the sandbox is never destroyed by a failed resume.
    fn resume<'a>(
        &'a self,
        id: &'a str,
        metadata: &'a Map<String, Value>,
        scope: &'a LeaseScope,
    ) -> BoxFuture<'a, Result<Lease, ProviderError>>;

    /// Gives the lease back: keeps the sandbox for use again if the configuration says so, else ends it.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] as long as the provider has not confirmed. May be called again for the same lease; a lease
    /// that is gone is [`Released::Destroyed`].
    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>>;

    /// A session on a borrowed sandbox is over, one that was there before and that somebody goes on using: puts it to
    /// rest where the configuration asks for that in so many words, else leaves it as it is. Never ends it.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where it could not be put to rest; it is left as it is then.
    fn let_go<'a>(&'a self, _lease: &'a Lease) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Ends the sandbox whatever the configuration says.
    ///
    /// # Errors
    ///
    /// As [`Self::release`].
    fn destroy<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Released, ProviderError>>;

    /// Tells the provider that the lease is in use; returns when it must hear of it next, at the latest.
    ///
    /// # Errors
    ///
    /// [`ProviderError::LeaseLost`] where it is gone.
    fn keep_alive<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Option<Duration>, ProviderError>>;

    /// The ids of all sandboxes that this configuration's account holds and that we made: for reaping.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unsupported`] where the provider has no list.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>>;

    /// Whose sandboxes these are: what two leases of the same id differ in, such as the address of an installation.
    /// Empty where ids are never used twice. Connects to nothing, and holds no secret.
    fn account(&self) -> String {
        String::new()
    }

    /// The ids of the sandboxes that were made for the scope's run: for an acquire whose answer was lost.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unsupported`] where the provider cannot tell them apart.
    fn made_for<'a>(&'a self, _scope: &'a LeaseScope) -> BoxFuture<'a, Result<Vec<String>, ProviderError>> {
        Box::pin(std::future::ready(Err(ProviderError::Unsupported(
            "finding the sandboxes of a run",
        ))))
    }

    /// Runs commands in the lease's sandbox. One runner serves all its executions; it never acquires another lease.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Broken`] for metadata that are not of this provider.
    fn runner(&self, lease: &Lease) -> Result<Arc<dyn CommandManagedRuntimeRunner>, ProviderError>;

    /// Where the lease's sandbox reaches the daemon without a process of ours in it; `None` where there is no such way.
    fn relay(&self, _lease: &Lease) -> Option<RelayRoute> {
        None
    }
}

/// A way from the sandbox to the daemon over a socket that the daemon opens: a Worker's push relay.
#[derive(Clone, Debug)]
pub struct RelayRoute {
    /// Base URL of the Worker's bridge API, without a trailing slash.
    pub base_url: String,
    /// What agents call: scheme and host of a name that serves the relay at `/`.
    pub agent_url: String,
    /// The Durable Object that holds the socket: `[A-Za-z0-9_-]{1,64}`.
    pub bridge_id: String,
    /// What an agent shows to the relay is good for so long from the opening of its session.
    pub agent_key_life: Duration,
    /// The only host, and port where it is not the scheme's own, that anything may be signed for.
    pub expected_host: String,
    /// Name of the key that signs.
    pub key_id: String,
    /// The signing key, 32 bytes or more in base64; looked up each time the tunnel connects.
    pub key: SecretHandle,
    /// The bearer of the bridge API.
    pub bearer: SecretHandle,
}

/// Why a provider did not do what was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderError {
    /// The lease is not there any more.
    #[error("the lease is lost: {0}")]
    LeaseLost(String),
    /// Not reached, or refused before anything was done; trying again is safe.
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    /// It answered that it will not: credentials, quota, a bad setting. Trying again changes nothing.
    #[error("the provider refuses: {0}")]
    Refused(String),
    /// It asks to wait.
    #[error("the provider is busy: {reason}")]
    Busy {
        /// In its words.
        reason: String,
        /// How long to wait, if it says so.
        retry_after: Option<Duration>,
    },
    /// The call may have had its effect, and nobody knows.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// It answered what it should not.
    #[error("the provider's answer cannot be used: {0}")]
    Broken(String),
    /// What answered has not shown that it is the provider, so nothing that it said counts: the call may have had its
    /// effect.
    #[error("the answer is not shown to be the provider's, and the outcome is unknown: {0}")]
    Unproven(String),
    /// A secret could not be had.
    #[error("{0}")]
    Secret(#[from] SecretFault),
    /// It has no such call.
    #[error("{0} is not supported by this provider")]
    Unsupported(&'static str),
}

impl From<(&str, ProviderError)> for RunnerError {
    /// For a runner whose call to its provider failed; `.0` is the target in the operator's words.
    fn from((target, error): (&str, ProviderError)) -> Self {
        let target = target.to_owned();
        match error {
            ProviderError::LeaseLost(reason) => Self::LeaseLost { target, reason },
            ProviderError::Unknown(_) | ProviderError::Unproven(_) => Self::Lost { target },
            ProviderError::Refused(reason) => Self::Refused { target, reason },
            ProviderError::Unsupported(what) => Self::Unsupported(what),
            ProviderError::Unreachable(_)
            | ProviderError::Busy { .. }
            | ProviderError::Broken(_)
            | ProviderError::Secret(_) => Self::Unreachable {
                target,
                reason: error.to_string(),
            },
        }
    }
}
