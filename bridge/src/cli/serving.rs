//! From the configuration to what `serve` is made of.
//!
//! Here: the options laid over the configuration, and each section handed to the part that it is for. What a section
//! asks for and this version cannot do is an error, never passed over. Not here: the configuration itself
//! (`crate::config`), the serving (`serve.rs`).

use std::path::{Path, PathBuf};

use crate::audit::{self, AuditKey, AuditSettings};
use crate::cli;
use crate::cli::control::chosen;
use crate::cli::exit::{Exit, Failure};
use crate::config::model::{
    AuditConfig, BodyDigest, Config, ControlAddress, Durability, Idempotency, OnFailure, RateLimits,
    ScopeRates,
};
use crate::config::{self, Effective, Flag, LoadOptions, Origin, leaves};
use crate::control::TcpSettings;
use crate::daemon::DaemonSettings;
use crate::secrets::{SecretSettings, Secrets};
use crate::session::Minting;
use crate::session::rates::{Rate, Scope};
use crate::telemetry::metrics::Class;
use crate::telemetry::otlp::Tracing;

/// Keys, or what they begin with, that this version's `serve` does not follow yet.
const NOT_YET: &[&str] = &[
    "listeners.agents",
    "targets",
    "policy",
    "limits.max_body",
    "limits.max_head",
    "limits.concurrency",
    "limits.bytes",
    "sessions.misses",
    "sessions.drain_timeout",
    "sessions.keep_ended",
    "store",
    "audit.body_digest_max",
    "telemetry.log",
    "telemetry.level",
    "telemetry.metrics",
];

/// What the daemon is set up with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) settings: DaemonSettings,
    /// Where the control API listens.
    pub(super) control: ControlPlace,
    pub(super) secrets: Secrets,
    /// `None`: no audit is wanted.
    pub(super) audit: Option<AuditSettings>,
}

/// Reads and checks the configuration with the options over it.
///
/// # Errors
///
/// Code 3: every mistake, or every key that is not followed yet.
pub(super) fn load(file: Option<&Path>, flags: Vec<Flag>) -> Result<Effective, Failure> {
    let options = LoadOptions {
        file: file.map(Path::to_owned),
        environment: config::variables(),
        flags,
    };
    let loaded = Config::load(options).map_err(|errors| {
        Failure::new(Exit::Configuration, "the configuration is refused").listing(errors.to_string())
    })?;
    let ignored = not_yet(&loaded);
    if ignored.is_empty() {
        return Ok(loaded);
    }
    Err(Failure::new(
        Exit::Configuration,
        "the configuration asks for what this version's serve does not do yet; leave it out",
    )
    .listing(ignored.join("\n")))
}

/// Everything that somebody said and nobody would follow.
fn not_yet(loaded: &Effective) -> Vec<String> {
    let values = serde_json::to_value(&loaded.config).unwrap_or_default();
    leaves(&values)
        .iter()
        .map(|leaf| leaf.key())
        .filter(|key| {
            NOT_YET.iter().any(|prefix| {
                key.strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
        })
        .filter_map(|key| {
            let origin = loaded.origins.of_leaf(&key);
            (origin != Origin::Default).then(|| format!("{key}, said by {origin}"))
        })
        .collect()
}

impl Setup {
    /// Around these places.
    ///
    /// # Errors
    ///
    /// Code 3 where a secret that signs the audit cannot be read.
    pub(super) async fn new(
        config: &Config,
        state_dir: PathBuf,
        control: ControlPlace,
    ) -> Result<Self, Failure> {
        let secrets = Secrets::new(
            SecretSettings {
                cache_ttl: config.secrets.cache_ttl,
                max_stale: config.secrets.max_stale,
            },
            config::environment,
        );
        let audit = match config.audit.enabled {
            true => Some(audit_settings(&config.audit, &secrets, &state_dir).await?),
            false => None,
        };
        let mut settings = DaemonSettings::new(state_dir, config.listeners.ops.address);
        settings.allow_uids.clone_from(&config.control.allow_uids);
        settings.adhoc = config.control.adhoc.unwrap_or_default();
        settings.ttl = config.sessions.ttl;
        settings.heartbeat = config.sessions.heartbeat;
        settings.most_sessions = usize::try_from(config.sessions.max).unwrap_or(usize::MAX);
        settings.drain = config.drain.timeout;
        settings.rates = rates(&config.limits.rate);
        settings.minting = match config.mutations.idempotency {
            Idempotency::Forward => None,
            Idempotency::Mint => Some(Minting {
                except: config.mutations.mint_except.clone(),
            }),
        };
        settings.tracing = Tracing::start(config.telemetry.otlp, &config::environment)
            .map_err(|why| Failure::new(Exit::Configuration, why))?;
        settings.upstreams.clone_from(&config.upstreams);
        settings.providers.clone_from(&config.providers);
        Ok(Self {
            settings,
            control,
            secrets,
            audit,
        })
    }
}

/// Where the control API listens.
#[derive(Clone, Debug)]
pub(super) enum ControlPlace {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, with TLS.
    Tcp(TcpSettings),
}

/// Where the control API listens by the configuration, else at the default place.
///
/// # Errors
///
/// Code 3 where there is no default place, or TCP without TLS.
pub(super) fn control(config: &Config) -> Result<ControlPlace, Failure> {
    let control = &config.listeners.control;
    let address = match &control.address {
        Some(ControlAddress::Unix(path)) => return Ok(ControlPlace::Unix(path.clone())),
        Some(ControlAddress::Tcp(address)) => *address,
        None => {
            return match chosen(None, &config::environment)? {
                cli::control::ControlAddress::Unix(path) => Ok(ControlPlace::Unix(path)),
                cli::control::ControlAddress::Tcp(..) => {
                    Err(Failure::new(Exit::Failed, "the default is a unix socket"))
                }
            };
        }
    };
    let (Some(certificate), Some(key)) = (control.certificate.clone(), control.key.clone()) else {
        return Err(Failure::new(
            Exit::Configuration,
            "listeners.control.address: a control API over TCP needs TLS; set certificate and key beside it",
        ));
    };
    Ok(ControlPlace::Tcp(TcpSettings {
        address,
        certificate,
        key,
        token: control.token.clone(),
        client_ca: control.client_ca.clone(),
    }))
}

async fn audit_settings(
    config: &AuditConfig,
    secrets: &Secrets,
    state_dir: &Path,
) -> Result<AuditSettings, Failure> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Configuration, format!("audit.key: {error}"));
    let key = match &config.key {
        None => None,
        Some(reference) => {
            let secret = secrets
                .live(reference)
                .get()
                .await
                .map_err(|error| refused(&error))?;
            Some(AuditKey::of_secret(&secret).map_err(|error| refused(&error))?)
        }
    };
    Ok(AuditSettings {
        key,
        durability: match config.durability {
            Durability::Write => audit::Durability::Write,
            Durability::Fsync => audit::Durability::Fsync,
            Durability::FsyncAll => audit::Durability::FsyncAll,
        },
        on_failure: match config.on_failure {
            OnFailure::Refuse => audit::OnFailure::Refuse,
            OnFailure::Allow => audit::OnFailure::Allow,
        },
        body_digest: match config.body_digest {
            BodyDigest::Off => audit::BodyDigest::Off,
            BodyDigest::Unsafe => audit::BodyDigest::Unsafe,
            BodyDigest::All => audit::BodyDigest::All,
        },
        segment_bytes: config.rotate_bytes,
        segment_age: config.rotate_age,
        keep_age: Some(config.retention).filter(|age| !age.is_zero()),
        ..AuditSettings::in_state_folder(state_dir)
    })
}

fn rates(limits: &RateLimits) -> Vec<Rate> {
    let scopes = [
        (Scope::Session, limits.session),
        (Scope::Agent, limits.agent),
        (Scope::Issue, limits.issue),
        (Scope::Company, limits.company),
    ];
    let by_class = scopes.into_iter().flat_map(|(scope, rates)| {
        let ScopeRates {
            all,
            read,
            write,
            upload,
        } = rates;
        [
            (None, all),
            (Some(Class::Read), read),
            (Some(Class::Write), write),
            (Some(Class::Upload), upload),
        ]
        .into_iter()
        .filter_map(move |(class, rate)| Some((scope, class, rate?)))
    });
    let comments = limits.comments.map(|rate| (Scope::Comments, None, rate));
    by_class.chain(comments).collect()
}
