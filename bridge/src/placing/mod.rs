//! From what a session shall be to where it runs: the runner of its target.
//!
//! Here: [`Place`], and how a provider is asked for a lease. In `rungs` which tunnels a target has, in which order. Not
//! here: the climbing (`tunnel::ladder`), the life of a lease (`leases/`), what is then opened (`app/`).

mod rungs;

use std::sync::Arc;

use runners::local::{BaseEnvironment, LocalRunner};
use runners::provider::{LeaseScope, ProviderError};
use runners::ssh::{SshHost, SshRunner};
use runners::{CommandManagedRuntimeRunner, Shell};

use crate::app::{App, OpenError, ProviderTarget, SessionRequest, TargetSpec};
use crate::config::environment;
use crate::leases::{BookError, HeldLease, LeaseBook, LeaseError, Wish};
use crate::secrets::Secrets;
use crate::session::target;

pub(crate) use rungs::{Placed, QUEUE, clear_predecessor, ladder, leaves_gateway, with_causes};

/// Where commands of a session are run.
#[derive(Debug)]
pub(crate) struct Place {
    /// Runs them.
    pub(crate) runner: Arc<dyn CommandManagedRuntimeRunner>,
    /// What stands between us and them.
    pub(crate) reach: Reach,
}

/// What stands between us and the target.
#[derive(Debug)]
pub(crate) enum Reach {
    /// Nothing: this machine.
    Local,
    /// A connection, perhaps shared with other sessions.
    Ssh(Arc<SshHost>),
    /// A provider, which lends us a sandbox.
    Leased(Box<HeldLease>),
}

impl Reach {
    /// The lease that the session stands on, if it stands on one.
    pub(crate) fn lease(&self) -> Option<&HeldLease> {
        match self {
            Self::Local | Self::Ssh(_) => None,
            Self::Leased(held) => Some(held),
        }
    }

    /// The shell of our own scripts there.
    pub(crate) fn shell(&self) -> Shell {
        self.lease().map_or(Shell::Sh, |held| held.shell)
    }
}

/// The runner of the target; a provider is asked for a lease. Leases that earlier processes left are given back from now on.
///
/// # Errors
///
/// [`OpenError::Configuration`] for what cannot be read, and what became of the lease.
pub(crate) async fn place(request: &SessionRequest, app: &App) -> Result<Place, OpenError> {
    match &request.target {
        TargetSpec::Local => {
            reap_beside(request, app)?;
            let base = BaseEnvironment {
                home: environment("HOME").unwrap_or_else(|| "/".into()),
                user: environment("USER").unwrap_or_default(),
                lang: environment("LANG").unwrap_or_else(|| "C.UTF-8".into()),
            };
            Ok(Place {
                runner: Arc::new(LocalRunner::new(base, None)),
                reach: Reach::Local,
            })
        }
        TargetSpec::Ssh(target) => {
            reap_beside(request, app)?;
            let (settings, notes) = target::ssh_settings(target).map_err(OpenError::Configuration)?;
            for note in notes {
                tracing::debug!(note, "ssh_config is not followed in one point");
            }
            let host = app.ssh.host(settings);
            Ok(Place {
                runner: Arc::new(SshRunner::new(Arc::clone(&host))),
                reach: Reach::Ssh(host),
            })
        }
        TargetSpec::Provider(target) => {
            let held = leased(request, target, app).await?;
            Ok(Place {
                runner: Arc::clone(&held.runner),
                reach: Reach::Leased(Box::new(held)),
            })
        }
    }
}

/// A state folder may hold what sessions of other targets owe.
fn reap_beside(request: &SessionRequest, app: &App) -> Result<(), OpenError> {
    let Some(folder) = &request.state_dir else {
        return Ok(());
    };
    let book = LeaseBook::existing(folder).map_err(|error| OpenError::Configuration(error.to_string()))?;
    if let Some(book) = book {
        app.reap(&book, &Secrets::default());
    }
    Ok(())
}

async fn leased(
    request: &SessionRequest,
    target: &ProviderTarget,
    app: &App,
) -> Result<HeldLease, OpenError> {
    let provider = app
        .providers
        .build(target.spec, &target.config, &target.secrets)
        .map_err(|error| OpenError::Configuration(error.to_string()))?;
    let book =
        LeaseBook::open(&target.leases).map_err(|error| OpenError::Configuration(error.to_string()))?;
    let wish = Wish {
        spec: target.spec,
        provider,
        config: &target.config,
        scope: LeaseScope {
            run_id: request.run_id.clone(),
            environment_id: target.environment_id.clone(),
            issue_id: target.issue_id.clone(),
            company_id: target.company_id.clone(),
            requested_cwd: None,
            request_id: None,
        },
        // A session that goes on knows no other sandbox.
        id: request
            .returns
            .as_ref()
            .and_then(|record| record.lease.as_ref())
            .map(|lease| lease.id.as_str())
            .or(target.id.as_deref()),
        probed: target.probed,
        go_on: request.resume && request.state_dir.is_some(),
        returns: request.returns.is_some(),
    };
    let held = app.leases.hold(&book, wish).await;
    // After it, so that a lease that is gone on with is not given back first.
    app.reap(&book, &target.secrets);
    held.map_err(|error| match error {
        LeaseError::Provider {
            error: ProviderError::LeaseLost(why),
            ..
        } => OpenError::LeaseLost(why),
        LeaseError::Provider {
            error: ProviderError::Refused(_) | ProviderError::Unsupported(_),
            ..
        } => OpenError::Refused {
            reason: "provider_refused",
            detail: error.to_string(),
        },
        LeaseError::Provider {
            error: ProviderError::Secret(_),
            ..
        }
        | LeaseError::Book(BookError::State(_)) => OpenError::Configuration(error.to_string()),
        LeaseError::Book(BookError::Taken { .. }) => OpenError::Refused {
            reason: "lease_taken",
            detail: error.to_string(),
        },
        LeaseError::Book(BookError::Busy(_)) | LeaseError::Provider { .. } | LeaseError::Keeper => {
            OpenError::Unreachable(error.to_string())
        }
    })
}
