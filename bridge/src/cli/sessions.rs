//! `paperclip-bridge sessions`: the sessions of a daemon.
//!
//! Here: the options of `open` turned into a request, and how sessions are shown. Not here: how a daemon is spoken to
//! (`control::Client`).

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::app::{App, GatewayChoice, TargetSpec};
use crate::cli::control::{ControlOptions, SOON, failure, id};
use crate::cli::exit::{Exit, Failure};
use crate::cli::open::exports;
use crate::cli::opening;
use crate::cli::options::{SessionOptions, ShellName, run_id};
use crate::cli::policies::pack_name;
use crate::cli::secrets::SecretOptions;
use crate::cli::stdio::{as_value, print, print_json};
use crate::config::spelled::duration;
use crate::daemon::{
    EnvironmentShown, NO_HEARTBEAT, NewSession, Opened, OwnerShown, Reaped, Rotated, SessionShown,
    SessionsShown,
};

/// Opening a session has a limit of its own, below this.
const OPENING: Duration = Duration::from_secs(200);
/// Giving back what others left asks providers, one after another.
const REAPING: Duration = Duration::from_secs(600);

/// What can be done with the sessions of a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Make a session on TARGET and print its environment; the token is shown this once
    #[command(after_help = crate::cli::exit::EXIT_CODES)]
    New(Box<NewArguments>),
    /// List sessions, also those that ended within the last day
    Ls(ControlOptions),
    /// Show one session
    Show(OneArguments),
    /// Print what its agent's process is given, without the token
    Env(OneArguments),
    /// End a session at once: its token is void and its callers are cut
    Revoke(OneArguments),
    /// Give a session another token; the one before is void
    Rotate(OneArguments),
    /// Forget sessions that have ended, and give back what earlier processes left at providers
    Reap(ControlOptions),
}

/// Arguments of `sessions new`.
#[derive(Args, Debug)]
pub(crate) struct NewArguments {
    #[command(flatten)]
    options: SessionOptions,

    /// Agent that makes the run
    #[arg(long, value_name = "ID", value_parser = run_id)]
    agent_id: Option<String>,

    /// End the session after so long, such as 4h [default: the daemon's, 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,

    /// End the session unless it is heard of so often through the control API; it may miss three
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    heartbeat: Option<Duration>,

    /// When to return
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = WaitFor::Ready)]
    wait: WaitFor,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WaitFor {
    /// Once the agent can call
    Ready,
    /// At once; the session is opened meanwhile, and `sessions env` tells the rest
    Nothing,
}

/// One session.
#[derive(Args, Debug)]
pub(crate) struct OneArguments {
    /// The session, as `sessions ls` shows it
    #[arg(value_name = "ID", value_parser = id)]
    id: Uuid,

    #[command(flatten)]
    daemon: ControlOptions,
}

/// Carries out one of them.
///
/// # Errors
///
/// Code 4 where no daemon answers; otherwise what it says.
pub(crate) async fn run(app: &App, command: SessionsCommand) -> Result<Exit, Failure> {
    match command {
        SessionsCommand::New(arguments) => Box::pin(new(app, &arguments)).await,
        SessionsCommand::Ls(daemon) => list(&daemon).await,
        SessionsCommand::Show(one) => one.shown(false).await,
        SessionsCommand::Revoke(one) => one.shown(true).await,
        SessionsCommand::Env(one) => one.environment().await,
        SessionsCommand::Rotate(one) => one.rotate().await,
        SessionsCommand::Reap(daemon) => reap(&daemon).await,
    }
}

async fn new(app: &App, arguments: &NewArguments) -> Result<Exit, Failure> {
    let asked = arguments.asked(app)?;
    let (target, limit) = match arguments.wait {
        WaitFor::Ready => ("/v1/sessions?wait=ready", OPENING),
        WaitFor::Nothing => ("/v1/sessions", SOON),
    };
    let client = arguments.daemon.client()?;
    let made: Opened = client.post(target, Some(&asked), limit).await.map_err(failure)?;
    if arguments.daemon.json {
        print_json(&as_value(&made)?)?;
    } else if made.env.is_empty() {
        // It is being opened: there is nothing to export yet.
        let token = made.token.as_deref().unwrap_or("(shown where it is waited for)");
        print(&format!("session {}\ntoken   {token}\n", made.session))?;
    } else {
        print(&exports(&made.env))?;
    }
    Ok(Exit::Ok)
}

async fn list(daemon: &ControlOptions) -> Result<Exit, Failure> {
    let shown: SessionsShown = daemon
        .client()?
        .get("/v1/sessions", SOON)
        .await
        .map_err(failure)?;
    if daemon.json {
        print_json(&as_value(&shown)?)?;
    } else {
        print(&shown.sessions.iter().map(line).collect::<String>())?;
    }
    Ok(Exit::Ok)
}

async fn reap(daemon: &ControlOptions) -> Result<Exit, Failure> {
    let reaped: Reaped = daemon
        .client()?
        .post("/v1/reap", None::<&()>, REAPING)
        .await
        .map_err(failure)?;
    if daemon.json {
        print_json(&as_value(&reaped)?)?;
    } else {
        let mut text = format!("{} ended sessions forgotten\n", reaped.forgotten);
        for lease in &reaped.leases {
            // A `String` takes every write.
            let _ = writeln!(text, "{:<10}{}: {}", lease.outcome, lease.entry, lease.detail);
        }
        print(&text)?;
    }
    let owed = reaped.leases.iter().any(|lease| lease.outcome == "owed");
    Ok(if owed { Exit::Failed } else { Exit::Ok })
}

impl OneArguments {
    fn target(&self, what: &str) -> String {
        format!("/v1/sessions/{}{what}", self.id)
    }

    async fn shown(&self, revoke: bool) -> Result<Exit, Failure> {
        let client = self.daemon.client()?;
        let shown: SessionShown = if revoke {
            client.post(&self.target("/revoke"), None::<&()>, SOON).await
        } else {
            client.get(&self.target(""), SOON).await
        }
        .map_err(failure)?;
        if self.daemon.json {
            print_json(&as_value(&shown)?)?;
        } else {
            print(&page(&shown))?;
        }
        Ok(Exit::Ok)
    }

    async fn environment(&self) -> Result<Exit, Failure> {
        let client = self.daemon.client()?;
        let shown: EnvironmentShown = client.get(&self.target("/env"), SOON).await.map_err(failure)?;
        if self.daemon.json {
            print_json(&as_value(&shown)?)?;
        } else {
            print(&exports(&shown.env))?;
        }
        Ok(Exit::Ok)
    }

    async fn rotate(&self) -> Result<Exit, Failure> {
        let client = self.daemon.client()?;
        let rotated: Rotated = client
            .post(&self.target("/rotate"), None::<&()>, SOON)
            .await
            .map_err(failure)?;
        if self.daemon.json {
            print_json(&as_value(&rotated)?)?;
        } else {
            print(&format!("{}\n", rotated.token))?;
        }
        Ok(Exit::Ok)
    }
}

impl NewArguments {
    /// The options as the daemon reads them. References stay references, and paths become absolute: the daemon stands
    /// elsewhere.
    fn asked(&self, app: &App) -> Result<NewSession, Failure> {
        let options = &self.options;
        let usage = |what: &str| Err(Failure::new(Exit::Usage, what));
        if options.state_dir.is_some() {
            return usage("--state-dir is for `serve`: the daemon keeps what its sessions leave");
        }
        if options.upstream.secrets != SecretOptions::default() {
            return usage(
                "--secrets-cache-ttl and --secrets-max-stale stand in the configuration of `serve`, as secrets.cache_ttl and max_stale",
            );
        }
        if options.shell != ShellName::None {
            return usage("--shell is for a command, and a session has none");
        }
        let leased = matches!(options.target, TargetSpec::Provider(_));
        if options.provider.are_given() && !leased {
            return usage("--provider and --provider-config are for targets of providers only");
        }
        let provider = if leased && options.provider.are_given() {
            let config = options.provider.config()?;
            if let TargetSpec::Provider(target) = &options.target {
                // A value in place of a reference must not travel.
                let mut target = target.clone();
                target.config = config.clone();
                app.check(&TargetSpec::Provider(target))
                    .map_err(opening::failure)?;
            }
            Some(config.0)
        } else {
            None
        };
        let path = |path: &Path| in_words(path).map(Some);
        let optional = |given: Option<&std::path::PathBuf>| given.map_or(Ok(None), |given| path(given));
        let identity = options
            .ssh
            .identity
            .iter()
            .map(|given| in_words(given))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(NewSession {
            target: options.target_in_words(),
            upstream: options.upstream.upstream.clone(),
            credential: options.upstream.credential_given(),
            upstream_ca: optional(options.upstream.upstream_ca.as_ref())?,
            no_upstream_check: options.no_upstream_check.then_some(true),
            run_id: options.run_id.clone(),
            agent_id: self.agent_id.clone(),
            company_id: options.scope.company_id.clone(),
            issue_id: options.scope.issue_id.clone(),
            environment_id: options.scope.environment_id.clone(),
            policy: optional(options.policy.file.as_ref())?,
            pack: options.policy.pack.map(pack_name),
            tunnel: options
                .tunnel
                .to_possible_value()
                .map(|value| value.get_name().to_owned()),
            gateway: match &options.gateway {
                GatewayChoice::Builtin => None,
                GatewayChoice::Binary(file) => path(file)?,
                GatewayChoice::Script(file) => Some(format!("node:{}", in_words(file)?)),
            },
            streams: options.streams,
            max_body: options.max_body.map(|bytes| bytes.to_string()),
            rate: options.rate.map(|rate| rate.to_string()),
            provider,
            identity: Some(identity).filter(|identity| !identity.is_empty()),
            known_hosts: optional(options.ssh.known_hosts.as_ref())?,
            unix_socket: optional(options.unix_socket.as_ref())?,
            allow_exposed_forward: options.allow_exposed_forward.then_some(true),
            ttl: self.ttl.map(milliseconds),
            // Whoever types this has gone when it has returned.
            heartbeat: Some(
                self.heartbeat
                    .map_or_else(|| NO_HEARTBEAT.to_owned(), milliseconds),
            ),
        })
    }
}

/// An absolute path as text, which is what JSON can carry.
fn in_words(path: &Path) -> Result<String, Failure> {
    let unusable = |why: String| Failure::new(Exit::Configuration, format!("{}: {why}", path.display()));
    std::path::absolute(path)
        .map_err(|error| unusable(error.to_string()))?
        .into_os_string()
        .into_string()
        .map_err(|_| unusable("the path is not UTF-8".to_owned()))
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// One session on one line.
fn line(shown: &SessionShown) -> String {
    let reason = shown.reason.as_ref().map(|reason| format!(" ({reason})"));
    format!(
        "{}  {:<13}{:<13}{}  run {}{}\n",
        shown.session,
        shown.state.name(),
        shown.tunnel.as_deref().unwrap_or("-"),
        shown.target,
        shown.run_id,
        reason.unwrap_or_default()
    )
}

/// One session on a page of its own.
/// The daemon that serves a session, and where to ask it for more.
fn owner(owner: &OwnerShown) -> String {
    let mut text = format!("daemon {}", owner.daemon);
    let parts = [
        ("at", &owner.address),
        ("on", &owner.host),
        ("last seen", &owner.seen_at),
    ];
    for (word, part) in parts {
        if let Some(part) = part {
            // A `String` takes every write.
            let _ = write!(text, " {word} {part}");
        }
    }
    text
}

fn page(shown: &SessionShown) -> String {
    let heartbeat = shown.heartbeat_ms.map(|ms| format!("{ms} ms"));
    let open = Some(shown.open_outcomes)
        .filter(|open| *open > 0)
        .map(|open| open.to_string());
    [
        ("session", Some(shown.session.clone())),
        ("state", Some(shown.state.name().to_owned())),
        ("reason", shown.reason.clone()),
        ("detail", shown.detail.clone()),
        ("owner", shown.owner.as_ref().map(owner)),
        ("since", Some(shown.since.clone())),
        ("target", Some(shown.target.clone())),
        ("tunnel", shown.tunnel.clone()),
        ("url", shown.url.clone()),
        ("run", Some(shown.run_id.clone())),
        ("agent", shown.agent_id.clone()),
        ("company", shown.company_id.clone()),
        ("issue", shown.issue_id.clone()),
        ("environment", shown.environment_id.clone()),
        ("lease", shown.lease.clone()),
        ("created", Some(shown.created_at.clone())),
        ("expires", Some(shown.expires_at.clone())),
        ("heartbeat", heartbeat),
        ("open outcomes", open),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("{name:<14}{}\n", value?)))
    .chain(
        shown
            .warnings
            .iter()
            .map(|warning| format!("{:<14}{}\n", "warning", warning.detail)),
    )
    .chain(shown.ladder.iter().map(|rung| {
        let (tunnel, reason, detail) = (&rung.tunnel, &rung.reason, &rung.detail);
        format!("{:<14}{tunnel}: {reason} ({detail})\n", "not taken")
    }))
    .collect()
}
