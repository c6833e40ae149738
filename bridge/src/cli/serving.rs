//! From the configuration to what `serve` is made of.
//!
//! Here: the options laid over the configuration, and each section handed to the part that it is for. [`source`] does it again for a daemon that runs. Not
//! here: the configuration itself
//! (`crate::config`), the serving (`serve.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use policy::Limits;

use crate::audit::{self, AuditKey, AuditSettings};
use crate::cli;
use crate::cli::control::chosen;
use crate::cli::exit::{Exit, Failure};
use crate::cli::logging;
use crate::config::model::{
    AgentsAddress, AuditConfig, BodyDigest, Config, ControlAddress, Durability, Idempotency, OnFailure,
    RateLimits, ScopeRates,
};
use crate::config::{self, Effective, Flag, LoadOptions};
use crate::control::TcpSettings;
use crate::daemon::{
    AllowedUids, ConfiguredPolicy, DaemonSettings, Mistake, ReloadRefused, Reloading, Source,
};
use crate::secrets::{Secret, SecretSettings, Secrets};
use crate::session::Minting;
use crate::session::rates::{Rate, Scope};
use crate::session::state::own_folder;
use crate::store::{self, StoreSettings, StoreUrl};
use crate::telemetry::metrics::Class;
use crate::telemetry::otlp::{Export, Tracing};

/// What the daemon is set up with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) settings: DaemonSettings,
    /// Where the control API listens.
    pub(super) control: ControlPlace,
    pub(super) secrets: Secrets,
    /// `None`: no audit is wanted.
    pub(super) audit: Option<AuditSettings>,
    /// Where what outlives the process is kept.
    pub(super) store: StoreSettings,
    /// Where metrics are sent to; `None`: nowhere.
    pub(super) export: Option<Export>,
    /// How the settings are read again.
    pub(super) reloading: Reloading,
}

/// What a configuration is refused for.
struct Refused {
    what: &'static str,
    mistakes: Vec<Mistake>,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let lines: Vec<_> = refused
            .mistakes
            .iter()
            .map(|mistake| mistake.detail.as_str())
            .collect();
        Self::new(Exit::Configuration, refused.what).listing(lines.join("\n"))
    }
}

/// Reads and checks the configuration with the options over it.
///
/// # Errors
///
/// Code 3: every mistake.
pub(super) fn load(file: Option<&Path>, flags: Vec<Flag>) -> Result<Effective, Failure> {
    Ok(checked(file, flags)?)
}

/// The same again and again, with the settings of a daemon that are made of it.
pub(super) fn source(file: Option<PathBuf>, flags: Vec<Flag>) -> Source {
    Arc::new(move || {
        let refused = |Refused { mistakes, .. }| ReloadRefused { mistakes };
        let Effective { config, .. } = checked(file.as_deref(), flags.clone()).map_err(refused)?;
        // Its places are those of the daemon that runs.
        let mut settings = DaemonSettings::new(PathBuf::new(), config.listeners.ops.address);
        follow(&config, &mut settings).map_err(refused)?;
        Ok((config, settings))
    })
}

fn checked(file: Option<&Path>, flags: Vec<Flag>) -> Result<Effective, Refused> {
    let options = LoadOptions {
        file: file.map(Path::to_owned),
        environment: config::variables(),
        flags,
    };
    Config::load(options).map_err(|errors| Refused {
        what: "the configuration is refused",
        mistakes: errors
            .iter()
            .map(|mistake| Mistake::new(&mistake.key, mistake.to_string()))
            .collect(),
    })
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
        source: Source,
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
        let store = store_settings(config, &secrets, &state_dir).await?;
        let mut settings = DaemonSettings::new(state_dir, config.listeners.ops.address);
        settings.dashboard = config.listeners.ops.dashboard;
        settings.address.clone_from(&config.listeners.control.advertise);
        settings.keep_outcomes = config.store.keep_outcomes;
        settings.metrics = config.telemetry.metrics;
        settings.tracing = Tracing::start(config.telemetry.otlp, &config::environment)
            .map_err(|why| Failure::new(Exit::Configuration, why))?;
        let export = Export::start(config.telemetry.otlp, &config::environment)
            .map_err(|why| Failure::new(Exit::Configuration, why))?;
        if export.is_some() && !settings.metrics {
            return Err(Failure::new(
                Exit::Configuration,
                "telemetry.metrics is off, so that there are no metrics to send; turn it on, or set OTEL_METRICS_EXPORTER=none",
            ));
        }
        follow(config, &mut settings)?;
        Ok(Self {
            settings,
            export,
            control,
            secrets,
            audit,
            store,
            reloading: Reloading::new(source, config),
        })
    }
}

/// What of a configuration a daemon follows, also while it runs. Reads the policy file.
fn follow(config: &Config, settings: &mut DaemonSettings) -> Result<(), Refused> {
    settings.policy = Arc::new(ConfiguredPolicy::read(config).map_err(|lines| Refused {
        what: "the policy of the configuration is refused",
        mistakes: lines.lines().map(|line| Mistake::new("policy", line)).collect(),
    })?);
    if let AgentsAddress::Unix(folder) = &config.listeners.agents.address {
        own_folder(folder).map_err(|error| Refused {
            what: "the folder of agents' sockets cannot be used",
            mistakes: vec![Mistake::new(
                "listeners.agents.address",
                format!("listeners.agents.address: {error}"),
            )],
        })?;
    }
    settings.agents.clone_from(&config.listeners.agents.address);
    settings.log = Some(logging::configured(&config.telemetry));
    settings.allow_uids = AllowedUids::new(config.control.allow_uids.clone());
    settings.adhoc = config.control.adhoc.unwrap_or_default();
    settings.ttl = config.sessions.ttl;
    settings.heartbeat = config.sessions.heartbeat;
    settings.misses = config.sessions.misses;
    settings.session_drain = config.sessions.drain_timeout;
    settings.keep_ended = config.sessions.keep_ended;
    settings.most_sessions = usize::try_from(config.sessions.max).unwrap_or(usize::MAX);
    settings.drain = config.drain.timeout;
    settings.sizes = Limits {
        max_body: config.limits.max_body,
        max_head: usize::try_from(config.limits.max_head).unwrap_or(usize::MAX),
        ..Limits::default()
    };
    settings.concurrency = config.limits.concurrency;
    settings.bytes = config.limits.bytes;
    settings.rates = rates(&config.limits.rate);
    settings.minting = match config.mutations.idempotency {
        Idempotency::Forward => None,
        Idempotency::Mint => Some(Minting {
            except: config.mutations.mint_except.clone(),
        }),
    };
    settings.targets.clone_from(&config.targets);
    settings.upstreams.clone_from(&config.upstreams);
    settings.providers.clone_from(&config.providers);
    Ok(())
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

/// Where the store is and how hard it writes; its durability is the audit's.
///
/// # Errors
///
/// Code 3 for a URL that cannot be used, and where its password cannot be read.
async fn store_settings(
    config: &Config,
    secrets: &Secrets,
    state_dir: &Path,
) -> Result<StoreSettings, Failure> {
    let refused = |key: &str, error: &dyn std::fmt::Display| {
        Failure::new(Exit::Configuration, format!("store.{key}: {error}"))
    };
    let url = match &config.store.url {
        None => StoreUrl::Sqlite,
        Some(url) if url == "sqlite:" => StoreUrl::Sqlite,
        Some(url) if url.starts_with("sqlite:") => {
            return Err(refused(
                "url",
                &"the SQLite file is store.db in the state folder; leave the key out, and place the folder with --state-dir",
            ));
        }
        Some(url) => StoreUrl::parse(&Secret::new(url.as_str())).map_err(|error| refused("url", &error))?,
    };
    let password = match &config.store.password {
        None => None,
        Some(reference) => {
            let read = secrets.live(reference).get().await;
            let read = read.map_err(|error| refused("password", &error))?;
            Some(Secret::clone(&read))
        }
    };
    Ok(StoreSettings {
        url,
        password,
        connections: config.store.connections,
        folder: state_dir.to_owned(),
        durability: match config.audit.durability {
            Durability::Write => store::Durability::Write,
            Durability::Fsync | Durability::FsyncAll => store::Durability::Fsync,
        },
    })
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
        body_digest_bytes: config.body_digest_max,
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
