//! `paperclip-bridge serve`: many sessions, made and ended through a control API.
//!
//! Here: where it listens and keeps what it keeps, the line that says so, and its end in order. Not here: sessions
//! (`daemon/`), what is answered (`control/`).

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::cli::control::{ControlAddress, address};
use crate::cli::exit::{Exit, Failure};
use crate::cli::logging::{self, LogOptions};
use crate::cli::serving::{self, ControlPlace, Setup};
use crate::cli::signals::{Ending, Signals, Wish};
use crate::cli::stdio::{complain, print, print_json};
use crate::config::{self, Flag, spelled};
use crate::control::{self, Control, Listening, Ops, TcpControl};
use crate::daemon::{AgentSockets, Daemon};
use crate::placing::with_causes;
use crate::service::{self, Notifier, Passed};
use crate::session::state::own_folder;
use crate::{store, telemetry};

/// Beyond the time that callbacks get, what taking down listeners and giving back leases may need.
const TAKING_DOWN: Duration = Duration::from_secs(10);

/// Giving back leases and signing the audit's last records may then take this long.
const SETTLING: Duration = Duration::from_secs(40);

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
pub(super) async fn serve(arguments: ServeArguments, log: LogOptions) -> Result<Exit, Failure> {
    // First of all, while there is one thread.
    let passed = Passed::take(&config::environment).map_err(unusable)?;
    let mut signals = Signals::listen()?;
    allow_many_files();
    let Setup {
        mut settings,
        control,
        secrets,
        audit,
        store,
        export,
        mut reloading,
    } = arguments.setup(log).await?;
    settings.agent_sockets = AgentSockets::new(passed.agents).map_err(unusable)?;
    let store = store::open(store)
        .await
        .map_err(|error| unusable(with_causes(&error)))?;
    let audit = match audit {
        Some(settings) => Some(Audit::open(settings).map_err(|error| unusable(error.to_string()))?),
        None => None,
    };
    let control = match (passed.control, control) {
        (Some(listener), _) => Control::passed(listener, settings.allow_uids.clone()).map(Listening::Unix),
        (None, ControlPlace::Unix(path)) => Control::bind(&path, settings.allow_uids.clone())
            .await
            .map(Listening::Unix),
        (None, ControlPlace::Tcp(tcp)) => TcpControl::bind(tcp, &secrets).await.map(Listening::Tcp),
    };
    let control = control.map_err(unusable)?;
    let ops = match passed.ops {
        Some(listener) => Ops::passed(listener),
        None => Ops::bind(settings.ops).await,
    };
    let ops = ops.map_err(unusable)?;
    settings.address.get_or_insert_with(|| control.address());
    let dashboard = settings.dashboard;
    let daemon = Daemon::new(settings, secrets, audit, Some(store));
    daemon.resume().await.map_err(|error| {
        Failure::new(Exit::Failed, "what is in the store cannot be taken on").because(error)
    })?;
    daemon.clear_sockets_left().await;
    arguments.tell(&control, &ops)?;
    if let Some(companion) = control.companion() {
        reloading.with(companion);
    }
    daemon.reloads_from(reloading);
    if dashboard && daemon.door().opens(ops.address()) {
        tell_of_dashboard(&daemon, ops.address());
    }
    let stop = CancellationToken::new();
    let listeners = TaskTracker::new();
    listeners.spawn(control.serve(control::router(Arc::clone(&daemon)), stop.clone()));
    listeners.spawn(ops.serve(Arc::clone(&daemon), stop.clone()));
    listeners.spawn(forget(Arc::clone(&daemon), stop.clone()));
    listeners.spawn(service::watch(Arc::clone(&daemon), Notifier, stop.clone()));
    listeners.spawn(Arc::clone(&daemon).hold(stop.clone()));
    if let Some(export) = export {
        let counted = Arc::clone(&daemon);
        listeners.spawn(export.run(move || counted.metrics_text(), stop.clone()));
    }
    listeners.close();
    Notifier.ready("serving".to_owned()).await;
    tokio::select! {
        ending = ending(&mut signals, &daemon, &listeners) => tracing::info!(signal = ending.number(), "ending in order; a second signal forces"),
        () = daemon.drain_asked() => tracing::info!("ending in order, as was asked; a signal forces"),
    }
    let drain = daemon.settings().drain;
    daemon.begin_drain();
    Notifier.stopping(drain + TAKING_DOWN + SETTLING).await;
    let ended = tokio::select! {
        ended = tokio::time::timeout(drain + TAKING_DOWN, daemon.drained()) => {
            ended.map_err(|_| "sessions were not closed in time; what they left on their targets ends by itself")
        }
        ending = ending(&mut signals, &daemon, &listeners) => {
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

/// The next signal that ends the daemon; those that are for its configuration are followed. Cancel safe.
async fn ending(signals: &mut Signals, daemon: &Arc<Daemon>, tasks: &TaskTracker) -> Ending {
    loop {
        match signals.next_wish().await {
            Wish::End(ending) => return ending,
            Wish::Reload => {
                let daemon = Arc::clone(daemon);
                // Whether it was refused stands in the log.
                tasks.spawn(async move { drop(daemon.reload().await) });
            }
        }
    }
}

impl ServeArguments {
    async fn setup(&self, log: LogOptions) -> Result<Setup, Failure> {
        let flags: Vec<_> = self.flags().into_iter().chain(log.flags()).collect();
        let loaded = serving::load(self.config.as_deref(), flags.clone())?;
        // From here on, so that what goes wrong at the start is told at this level, too.
        telemetry::follow(logging::configured(&loaded.config.telemetry));
        let state_dir = self.state_dir()?;
        own_folder(&state_dir).map_err(|error| unusable(error.to_string()))?;
        let control = serving::control(&loaded.config)?;
        let source = serving::source(self.config.clone(), flags);
        Setup::new(&loaded.config, state_dir, control, source).await
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

/// An operator who started it in a terminal is shown a way in. Elsewhere standard error is a log, which others read.
fn tell_of_dashboard(daemon: &Daemon, address: SocketAddr) {
    if std::io::stderr().is_terminal()
        && let Ok(ticket) = daemon.door().ticket(Instant::now())
    {
        let minutes = ticket.expires_in_seconds / 60;
        complain(&format!(
            "dashboard (good once, for {minutes} min): {}",
            ticket.url
        ));
    } else {
        tracing::info!(url = %format_args!("http://{address}/dashboard/"), "`paperclip-bridge dashboard` prints a login");
    }
}

/// Each session has a listener and perhaps connections; the soft limit of most systems, 1024, is for older programs.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the number of open files stays as low as it is");
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
