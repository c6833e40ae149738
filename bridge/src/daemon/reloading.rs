//! Settings that are read again while the daemon runs.
//!
//! Here: [`Daemon::reload`], which a signal and the control API call: everything is read and checked again, then in force at
//! once, or not at all. Not here: where settings are read from (`cli/serving.rs`), what sessions read of them
//! (`session/live.rs`, `policies.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Daemon, DaemonSettings, Mistake, Reloaded};
use crate::config::{Config, leaves};
use crate::service::Notifier;

/// Keys, or what they begin with, whose values are taken when the daemon starts and not later.
const NEEDS_RESTART: &[&str] = &[
    "listeners.control.address",
    "listeners.control.token",
    "listeners.control.client_ca",
    "listeners.ops",
    "secrets",
    "store",
    "audit",
    "telemetry.metrics",
    "telemetry.otlp",
];

/// Reads the configuration anew, with the settings that are made of it. Blocks on the disk.
pub type Source = Arc<dyn Fn() -> Result<(Config, DaemonSettings), ReloadRefused> + Send + Sync>;

/// What is read again with the settings and kept elsewhere: the first step may fail and changes nothing, the second puts it
/// in force and gives the keys of what has changed.
pub type Companion =
    Box<dyn Fn(&Config) -> BoxFuture<'static, Result<PutInForce, Vec<Mistake>>> + Send + Sync>;
/// See [`Companion`].
pub type PutInForce = Box<dyn FnOnce() -> Vec<String> + Send>;

/// Why settings were not taken over; those before still hold.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the configuration is refused, and the one before still holds")]
pub struct ReloadRefused {
    /// Each key that is wrong, with the line that says it.
    pub mistakes: Vec<Mistake>,
}

/// How settings are read again, and what they were.
pub struct Reloading {
    source: Source,
    companions: Vec<Companion>,
    /// Held while settings are read and put in force: one after another.
    known: Mutex<Known>,
}

struct Known {
    /// What the daemon was started with.
    started: Value,
    in_force: Value,
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").finish_non_exhaustive()
    }
}

impl Reloading {
    /// From `source`, for a daemon that was started with `config`.
    #[must_use]
    pub fn new(source: Source, config: &Config) -> Self {
        let started = values(config);
        Self {
            source,
            companions: Vec::new(),
            known: Mutex::new(Known {
                in_force: started.clone(),
                started,
            }),
        }
    }
}

impl Reloading {
    /// With something that is kept elsewhere.
    pub(crate) fn with(&mut self, companion: Companion) {
        self.companions.push(companion);
    }
}

impl Daemon {
    /// From now on its settings can be read again. Counts the first time only.
    pub fn reloads_from(&self, reloading: Reloading) {
        // Once in its life.
        let _first = self.reloading.set(reloading);
    }

    /// Reads the settings again and puts them in force: the next callback of every session is held to them.
    ///
    /// # Errors
    ///
    /// [`ReloadRefused`]; nothing has changed then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves either the settings before or the new ones in force, never a part of them.
    pub async fn reload(&self) -> Result<Reloaded, ReloadRefused> {
        Notifier.reloading().await;
        let reloaded = self.read_again().await;
        Notifier.ready("serving".to_owned()).await;
        self.metrics.reloaded(reloaded.is_ok());
        match &reloaded {
            Ok(Reloaded {
                changed,
                needs_restart,
            }) => {
                let (changed, needs_restart) = (changed.join(" "), needs_restart.join(" "));
                tracing::info!(
                    changed,
                    needs_restart,
                    "the configuration was read again and is in force"
                );
                if let Some(audit) = &self.audit {
                    // A failure is counted, and the next callback is refused for it.
                    let _written = audit.append("reloaded", |line| line.text_if("changed", &changed));
                }
            }
            Err(refused) => {
                for mistake in &refused.mistakes {
                    tracing::error!(
                        key = mistake.field,
                        mistake = mistake.detail,
                        "the configuration is refused, and the one before still holds"
                    );
                }
            }
        }
        reloaded
    }

    async fn read_again(&self) -> Result<Reloaded, ReloadRefused> {
        let reloading = self.reloading.get().ok_or_else(|| {
            ReloadRefused::because("this daemon has no configuration that could be read again")
        })?;
        let mut known = reloading.known.lock().await;
        let source = Arc::clone(&reloading.source);
        let (config, settings) = tokio::task::spawn_blocking(move || source())
            .await
            .map_err(|error| ReloadRefused::because(format!("it could not be read: {error}")))??;
        let mut prepared = Vec::new();
        for companion in &reloading.companions {
            let put = companion(&config).await;
            prepared.push(put.map_err(|mistakes| ReloadRefused { mistakes })?);
        }
        let values = values(&config);
        let mut changed = differing(&known.in_force, &values);
        changed.retain(|key| !needs_restart(key));
        let mut waiting = differing(&known.started, &values);
        waiting.retain(|key| needs_restart(key));
        if self.follow(settings)? && !changed.iter().any(|key| key.starts_with("policy.")) {
            // The key is as it was, and what the file says is not.
            changed.push("policy.file".to_owned());
        }
        for put in prepared {
            changed.extend(put());
        }
        changed.sort();
        changed.dedup();
        known.in_force = values;
        Ok(Reloaded {
            changed,
            needs_restart: waiting,
        })
    }

    /// Whether the policy has changed.
    fn follow(&self, settings: DaemonSettings) -> Result<bool, ReloadRefused> {
        let before = self.settings();
        let uids = settings.allow_uids.all();
        let now = before.followed(settings);
        // First, because it can fail.
        self.policies
            .follow(Arc::clone(&now.policy))
            .map_err(|mistakes| ReloadRefused::because(mistakes.to_string()))?;
        let policy_changed = *before.policy != *now.policy;
        self.put_in_force(&now);
        self.settings.store(Arc::new(now));
        before.allow_uids.set(uids);
        Ok(policy_changed)
    }
}

impl ReloadRefused {
    fn because(why: impl Into<String>) -> Self {
        Self {
            mistakes: vec![Mistake::new("", why)],
        }
    }
}

fn values(config: &Config) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

/// The keys whose values are not the same on both sides, in the order of their names.
fn differing(one: &Value, other: &Value) -> Vec<String> {
    let known = |values| -> BTreeMap<String, Value> {
        let leaves = leaves(values);
        leaves
            .iter()
            .map(|leaf| (leaf.key(), leaf.value.clone()))
            .collect()
    };
    let (one, other) = (known(one), known(other));
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter()
        .filter(|key| one.get(*key) != other.get(*key))
        .cloned()
        .collect()
}

fn needs_restart(key: &str) -> bool {
    NEEDS_RESTART.iter().any(|prefix| {
        let rest = key.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}
