//! `paperclip-bridge serve`: many sessions, made and ended through a control API.
//!
//! Here: where it listens and keeps what it keeps, the line that says so, and its end in order. Not here: sessions
//! (`daemon/`), what is answered (`control/`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::cli::control::{ControlAddress, address};
use crate::cli::exit::{Exit, Failure};
use crate::cli::serving::{self, ControlPlace, Setup};
use crate::cli::signals::Signals;
use crate::cli::stdio::{print, print_json};
use crate::config::{self, Flag, spelled};
use crate::control::{self, Control, Listening, Ops, TcpControl};
use crate::daemon::Daemon;
use crate::session::state::own_folder;

/// Beyond the time that callbacks get, what taking down listeners and giving back leases may need.
const TAKING_DOWN: Duration = Duration::from_secs(10);

/// So often what limits no longer count is forgotten.
const FORGETTING: Duration = Duration::from_secs(60);

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeArguments {
    /// Configuration file (`docs/config.md`); without one, requests of our own user bring what they need
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Folder of what outlives the process [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Where the control API listens, as `unix:PATH` or `tcp:ADDRESS:PORT`; TCP needs a certificate and a token or an
    /// authority of clients in the configuration (`listeners.control`) [default: unix:$RUNTIME_DIRECTORY/control.sock, else
    /// unix:$XDG_RUNTIME_DIR/paperclip-bridge/control.sock]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    control: Option<ControlAddress>,

    /// Where /healthz, /readyz and /metrics are answered; port 0 takes a free one [default: 127.0.0.1:4409]
    #[arg(long, value_name = "ADDRESS")]
    ops: Option<SocketAddr>,

    /// User that may use the control API beside our own, by its number; may be repeated
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,

    /// Callbacks under way get so long when the daemon ends [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration_text)]
    drain_timeout: Option<String>,

    /// Say in one line of JSON where it listens
    #[arg(long)]
    json: bool,
}

/// Serves until it is told to end.
///
/// # Errors
///
/// Code 3 for places that cannot be used; 1 where it was forced to end, or could not end in order.
pub(crate) async fn serve(arguments: ServeArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let Setup {
        settings,
        control,
        secrets,
        audit,
    } = arguments.setup().await?;
    let audit = match audit {
        Some(settings) => Some(Audit::open(settings).map_err(|error| unusable(error.to_string()))?),
        None => None,
    };
    let control = match control {
        ControlPlace::Unix(path) => Control::bind(&path, settings.allow_uids.clone())
            .await
            .map(Listening::Unix),
        ControlPlace::Tcp(tcp) => TcpControl::bind(tcp, &secrets).await.map(Listening::Tcp),
    };
    let control = control.map_err(unusable)?;
    let ops = Ops::bind(settings.ops).await.map_err(unusable)?;
    arguments.tell(&control, &ops)?;
    let drain = settings.drain;
    let daemon = Daemon::new(settings, secrets, audit);
    let stop = CancellationToken::new();
    let listeners = TaskTracker::new();
    listeners.spawn(control.serve(control::router(Arc::clone(&daemon)), stop.clone()));
    listeners.spawn(ops.serve(Arc::clone(&daemon), stop.clone()));
    listeners.spawn(forget(Arc::clone(&daemon), stop.clone()));
    listeners.close();
    tokio::select! {
        ending = signals.next() => tracing::info!(signal = ending.number(), "ending in order; a second signal forces"),
        () = daemon.drain_asked() => tracing::info!("ending in order, as was asked; a signal forces"),
    }
    daemon.begin_drain();
    let ended = tokio::select! {
        ended = tokio::time::timeout(drain + TAKING_DOWN, daemon.drained()) => {
            ended.map_err(|_| "sessions were not closed in time; what they left on their targets ends by itself")
        }
        ending = signals.next() => {
            tracing::warn!(signal = ending.number(), "ending at once");
            Err("the daemon was forced to end; what its sessions left on their targets ends by itself")
        }
    };
    stop.cancel();
    listeners.wait().await;
    match ended {
        Ok(()) => {
            daemon.settle().await;
            Ok(Exit::Ok)
        }
        Err(why) => {
            // Nobody waits for leases now, but what was written down is signed.
            daemon.close_audit().await;
            Err(Failure::new(Exit::Failed, why))
        }
    }
}

impl ServeArguments {
    async fn setup(&self) -> Result<Setup, Failure> {
        let loaded = serving::load(self.config.as_deref(), self.flags())?;
        let state_dir = self.state_dir()?;
        own_folder(&state_dir).map_err(|error| unusable(error.to_string()))?;
        let control = serving::control(&loaded.config)?;
        Setup::new(&loaded.config, state_dir, control).await
    }

    /// The options that stand for a key of the configuration.
    fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut flag = |option, key, value| flags.push(Flag { option, key, value });
        match &self.control {
            Some(ControlAddress::Unix(path)) => {
                let address = format!("unix:{}", path.display());
                flag("--control", "listeners.control.address", json!(address));
            }
            Some(ControlAddress::Tcp(host, port)) => {
                let address = match host.contains(':') {
                    true => format!("tcp:[{host}]:{port}"),
                    false => format!("tcp:{host}:{port}"),
                };
                flag("--control", "listeners.control.address", json!(address));
            }
            None => {}
        }
        if let Some(ops) = self.ops {
            flag("--ops", "listeners.ops.address", json!(ops.to_string()));
        }
        if !self.allow_uid.is_empty() {
            flag("--allow-uid", "control.allow_uids", json!(self.allow_uid));
        }
        if let Some(drain) = &self.drain_timeout {
            flag("--drain-timeout", "drain.timeout", json!(drain));
        }
        flags
    }

    fn state_dir(&self) -> Result<PathBuf, Failure> {
        let named = self.state_dir.as_ref().map(std::path::absolute).transpose();
        let named = named.map_err(|error| unusable(format!("the folder of --state-dir: {error}")))?;
        named
            .or_else(|| state_directory(&config::environment))
            .or_else(|| config::state_folder(&config::environment))
            .ok_or_else(|| {
                unusable(
                    "there is no folder for what outlives the process: neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME \
                     is an absolute path"
                        .to_owned(),
                )
                .hint("name one with --state-dir DIR")
            })
    }

    fn tell(&self, control: &Listening, ops: &Ops) -> Result<(), Failure> {
        let (control, ops, pid) = (control.address(), ops.address().to_string(), std::process::id());
        if self.json {
            return print_json(&json!({ "ops": ops, "control": control, "pid": pid }));
        }
        print(&format!(
            "control API on {control}, health on http://{ops}/readyz\n"
        ))
    }
}

/// Limits keep a key for each session, agent and issue; what no longer counts is forgotten.
async fn forget(daemon: Arc<Daemon>, stop: CancellationToken) {
    while tokio::time::timeout(FORGETTING, stop.cancelled()).await.is_err() {
        daemon.forget_the_rested();
    }
}

/// Checks a duration and keeps its text, which the configuration reads.
fn duration_text(text: &str) -> Result<String, String> {
    spelled::duration(text).map(|_| text.to_owned())
}

/// The first of the folders that a service manager made for us.
fn state_directory(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    environment("STATE_DIRECTORY")
        .and_then(|paths| paths.split(':').next().map(PathBuf::from))
        .filter(|path| path.is_absolute())
}

fn unusable(why: String) -> Failure {
    Failure::new(Exit::Configuration, why)
}
