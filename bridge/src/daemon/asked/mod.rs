//! What a session is asked to be, as it comes in and as it is kept.
//!
//! Here: [`NewSession`], which holds references only and no secret, the reading of it with every mistake at its field,
//! in `configured` what it takes from the configuration
//! and may not bring itself; in `fields` the values of single fields. Not here: what is made of it (`app/`), how it travels
//! (`control/`).

mod configured;
mod fields;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::policies::Policies;
use super::settings::DaemonSettings;
use crate::app::{SessionRecord, SessionRequest};
use crate::audit::Identities;
use crate::secrets::Secrets;
use crate::upstream::{Deadlines, UpstreamSettings};

use fields::Parts;

/// What `heartbeat` says where none is wanted.
pub(crate) const NO_HEARTBEAT: &str = "off";

/// What a session shall be: the options of `open` by their names, and whose it is.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NewSession {
    /// Where the agent runs: a name of the configuration's `targets`, `ssh://user@host[:port]`, an ssh_config alias,
    /// `local`, or a provider's sandbox.
    #[schema(required = true, min_length = 1)]
    pub target: String,
    /// The Paperclip API: a name of the configuration's, or, only from the daemon's own user, a URL. Without it, the one
    /// named `default`, or the only one.
    pub upstream: Option<String>,
    /// Where the API credential is found, never the value; only from the daemon's own user.
    pub credential: Option<String>,
    /// A PEM file with what to trust for an https upstream; an absolute path.
    pub upstream_ca: Option<String>,
    /// Open although the upstream does not answer a connection attempt.
    pub no_upstream_check: Option<bool>,
    /// Sent upstream as `x-paperclip-run-id`; a fresh one where it is left out.
    pub run_id: Option<String>,
    /// The agent that makes the run.
    pub agent_id: Option<String>,
    /// The company that owns it.
    pub company_id: Option<String>,
    /// The issue that the run works on.
    pub issue_id: Option<String>,
    /// The environment that a lease belongs to.
    pub environment_id: Option<String>,
    /// A policy file on the daemon's machine, which adds to the configuration's; an absolute path.
    pub policy: Option<String>,
    /// The routes of a Paperclip release to start from, instead of the configuration's, or `none`; from others than the
    /// daemon's own user one of the configuration's.
    pub pack: Option<String>,
    /// `auto`, `ssh-reverse`, `http2_v1`, `queue_v1`, `worker` or `local`.
    pub tunnel: Option<String>,
    /// `builtin`, a program's absolute path, or `node:` and the absolute path of a script.
    pub gateway: Option<String>,
    /// Calls at the same time over `http2_v1`, 1 to 1024.
    pub streams: Option<u32>,
    /// Largest body each way, such as `10MiB`.
    pub max_body: Option<String>,
    /// Most calls over time, such as `20/s` or `600/m:40`.
    pub rate: Option<String>,
    /// The fields of the target's provider; secrets as references.
    #[schema(value_type = Option<Object>)]
    pub provider: Option<Map<String, Value>>,
    /// Private keys for an SSH target; absolute paths.
    pub identity: Option<Vec<String>>,
    /// Host keys of SSH targets; an absolute path.
    pub known_hosts: Option<String>,
    /// Listen on a unix socket of this path on the target instead of a port.
    pub unix_socket: Option<String>,
    /// Go on although the listener is reachable from other machines.
    pub allow_exposed_forward: Option<bool>,
    /// The session ends after so long, such as `4h`.
    pub ttl: Option<String>,
    /// How often its owner is heard of, such as `30s`, or `off`; it ends after three misses.
    pub heartbeat: Option<String>,
}

/// Names only: a secret may stand where a reference belongs.
impl fmt::Debug for NewSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSession").finish_non_exhaustive()
    }
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mistake {
    /// Which; empty where it is the whole.
    pub field: String,
    /// What is wrong, and what to give.
    pub detail: String,
}

/// A request that was understood.
#[derive(Debug)]
pub(crate) struct Understood {
    pub(crate) request: SessionRequest,
    pub(crate) check_upstream: bool,
    pub(crate) ttl: Duration,
    pub(crate) heartbeat: Option<Duration>,
}

/// What the daemon brings to every request.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub(crate) secrets: Secrets,
    /// How the daemon is set up at the moment.
    pub(crate) settings: Arc<DaemonSettings>,
    pub(crate) policies: Arc<Policies>,
}

impl NewSession {
    /// Reads a JSON object.
    ///
    /// # Errors
    ///
    /// Every mistake, at its field.
    pub fn read(fields: &Map<String, Value>) -> Result<Self, Vec<Mistake>> {
        let known = Self::fields();
        let mut mistakes = Vec::new();
        for (name, value) in fields {
            if !known.iter().any(|known| known == name) {
                mistakes.push(Mistake::new(name, unknown(name, &known)));
                continue;
            }
            // One field at a time, so that each mistake is told; the value is not repeated: it may be a secret.
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            if serde_json::from_value::<Self>(alone).is_err() {
                mistakes.push(Mistake::new(name, wrong_kind(name, value)));
            }
        }
        if mistakes.is_empty() {
            return serde_json::from_value(Value::Object(fields.clone()))
                .map_err(|error| vec![Mistake::new("", error.to_string())]);
        }
        Err(mistakes)
    }

    /// The names of all fields.
    fn fields() -> Vec<String> {
        match serde_json::to_value(Self::default()) {
            Ok(Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// Whose it is; the run is told apart from these.
    pub(crate) fn whose(&self) -> Identities {
        Identities {
            run: None,
            agent: self.agent_id.clone(),
            company: self.company_id.clone(),
            issue: self.issue_id.clone(),
            environment: self.environment_id.clone(),
        }
    }

    /// Every field that only the daemon's own user may bring: each names a file or a place of the daemon's, or lets a
    /// command run here.
    #[must_use]
    pub fn reserved(&self) -> Vec<&'static str> {
        let own_gateway = self
            .gateway
            .as_deref()
            .is_some_and(|gateway| gateway != "builtin");
        [
            ("target", self.target == "local"),
            ("upstream", self.upstream.is_some()),
            ("credential", self.credential.is_some()),
            ("upstream_ca", self.upstream_ca.is_some()),
            ("policy", self.policy.is_some()),
            ("gateway", own_gateway),
            ("provider", self.provider.is_some()),
            ("identity", self.identity.is_some()),
            ("known_hosts", self.known_hosts.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, brought)| brought.then_some(name))
        .collect()
    }

    /// Whether [`Self::understand`] reads from the disk.
    pub(crate) fn names_files(&self) -> bool {
        self.policy.is_some()
            || self.provider.is_some()
            || self.upstream_ca.is_some()
            || self.gateway.is_some()
    }

    /// Checks every field and reads the files that it names. Blocks on the disk then.
    ///
    /// # Errors
    ///
    /// Every mistake, at its field; what only shows when the fields are put together comes without one.
    pub(crate) fn understand(&self, around: &Around) -> Result<Understood, Vec<Mistake>> {
        let settings = &around.settings;
        let configured = around.upstream(self)?;
        let Parts {
            options,
            ttl,
            heartbeat,
        } = around.completed(self).parts(Some(settings.state_dir.clone()))?;
        let rules = around.rules(&options)?;
        let mut request = options
            .request_under(around.secrets.clone(), rules)
            .map_err(|failure| vec![Mistake::new("", failure.to_string())])?;
        if let Some(upstream) = configured {
            let parsed = UpstreamSettings::parse(&upstream.url, upstream.ca.clone());
            let mut settings = parsed.map_err(|error| vec![Mistake::new("upstream", error.to_string())])?;
            settings.deadlines = Deadlines {
                connect: upstream.deadlines.connect,
                head: upstream.deadlines.head,
                total: upstream.deadlines.total,
            };
            request.upstream = settings;
            request.credential = around.secrets.live(&upstream.credential);
        }
        // Leases stand there; what else a successor needs is the daemon's own to keep.
        request.state_dir = None;
        Ok(Understood {
            request,
            check_upstream: !options.no_upstream_check,
            ttl: ttl.unwrap_or(settings.ttl),
            heartbeat: heartbeat.unwrap_or(Some(settings.heartbeat)),
        })
    }

    /// What is wrong with the values of single fields. Reads no file.
    #[must_use]
    pub fn faults(&self) -> Vec<Mistake> {
        self.parts(None).err().unwrap_or_default()
    }
}

impl Mistake {
    pub(crate) fn new(field: &str, detail: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            detail: detail.into(),
        }
    }
}

/// What is said of a field that is none.
fn unknown(name: &str, known: &[String]) -> String {
    let closest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    match closest {
        Some((_, known)) => format!("there is no such field; did you mean `{known}`?"),
        None => format!("there is no such field; there are {}", known.join(", ")),
    }
}

fn wrong_kind(name: &str, value: &Value) -> String {
    let wanted = match name {
        "streams" => "a whole number from 1 to 1024",
        "no_upstream_check" | "allow_exposed_forward" => "true or false",
        "identity" => "a list of texts",
        "provider" => "an object",
        _ => "a text",
    };
    let given = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("give {wanted}; this is {given}")
}

/// What of a session is kept, so that a later process can go on with it: the request as it was given, and nothing that
/// could not be shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its name.
    pub(crate) session: Uuid,
    /// The request as it was given; references only.
    pub(crate) asked: NewSession,
    /// The user who asked.
    pub(crate) uid: u32,
    /// The run id that was taken.
    pub(crate) run_id: String,
    pub(crate) created: SystemTime,
    pub(crate) expires: SystemTime,
    pub(crate) heartbeat: Option<Duration>,
    /// The digest of the token that is its agent's now, in hexadecimal digits.
    #[serde(default)]
    pub(crate) token_sha256: String,
    /// Whoever asked for it was shown its token at once, and holds it while it is being opened.
    #[serde(default)]
    pub(crate) shown: bool,
    /// Where it stands, once it has been open.
    #[serde(default)]
    pub(crate) place: Option<SessionRecord>,
}
