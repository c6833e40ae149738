//! What an operator types.
//!
//! Here: the commands and where each is carried out; clap makes the parser, the help and the completions out of these
//! definitions. Not here: the work itself; one file a command. Read next: `run.rs`, the main job, and `exit.rs`, how
//! every command ends.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::json;

use crate::app::App;
use crate::{demo, gateway, telemetry};

mod run;
mod open;
mod host;
mod opening;
pub(crate) mod options;
mod values;
pub(crate) mod provider_options;
pub(crate) mod secrets;
pub mod target;
pub(crate) mod policies;
pub(crate) mod control;
mod serve;
mod serving;
mod reload;
mod sessions;
mod asking;
mod tail;
mod top;
mod dashboard;
mod envelope;
mod providers;
mod probe;
mod config;
mod leases;
mod audit;
mod store;
mod man;
mod signals;
mod stdio;
mod logging;
pub mod exit;

pub use exit::{Exit, Failure};
pub use stdio::complain;

use logging::LogOptions;
use stdio::{print, print_json};

/// Gives an agent run a local URL inside its sandbox and carries its calls to the Paperclip API under policy.
#[derive(Debug, Parser)]
#[command(
    name = "paperclip-bridge",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = exit::EXIT_CODES,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Arguments {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole path on this machine, with nothing to set up
    Demo {
        /// A JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Run COMMAND on TARGET with the API at its side, then leave nothing behind
    #[command(after_help = exit::EXIT_CODES)]
    Run(run::RunArguments),
    /// Open a session on TARGET, print its environment, and serve until told to end
    #[command(after_help = exit::EXIT_CODES)]
    Open(open::OpenArguments),
    /// Look whether TARGET is fit for sessions, and say what to do where it is not
    #[command(after_help = exit::EXIT_CODES)]
    Probe(probe::ProbeArguments),
    /// Serve one session for a gateway that somebody else started
    Host(Box<host::HostArguments>),
    /// Serve many sessions, made and ended through a control API
    #[command(after_help = exit::EXIT_CODES)]
    Serve(serve::ServeArguments),
    /// Make, list and end the sessions of a daemon
    #[command(subcommand)]
    Sessions(sessions::SessionsCommand),
    /// Show a daemon as a whole
    Status(asking::StatusArguments),
    /// Say what became of a callback of a daemon's sessions
    Outcome(asking::OutcomeArguments),
    /// End a daemon in order, as SIGTERM does
    Drain(asking::DrainArguments),
    /// Have a daemon read its configuration again, as SIGHUP does
    #[command(after_help = exit::EXIT_CODES)]
    Reload(reload::ReloadArguments),
    /// Show what happens in a daemon as it happens
    Tail(tail::TailArguments),
    /// Show a daemon and its sessions in the terminal, drawn anew each second
    Top(top::TopArguments),
    /// Print a way into a daemon's dashboard, good once
    Dashboard(dashboard::DashboardArguments),
    /// Check, explain and test policies
    #[command(subcommand)]
    Policy(policies::PolicyCommand),
    /// See and settle what is held and owed at providers
    #[command(subcommand)]
    Leases(leases::LeasesCommand),
    /// Verify and read the audit of a state folder
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Copy the daemon's store
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Sign and verify requests between the daemon and a Worker, for auditors
    #[command(subcommand)]
    Envelope(envelope::EnvelopeCommand),
    /// List sandbox providers, what they can do and how they are configured
    Providers(providers::ProvidersArguments),
    /// Check, print and describe the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the version
    Version {
        /// A JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into DIR, for whoever packages the program
    #[command(hide = true)]
    Man {
        /// The folder; made where it is missing
        dir: PathBuf,
    },
}

impl Arguments {
    /// Reads the command line of this process.
    ///
    /// # Errors
    ///
    /// The exit code to end with: help or version was printed, or what is wrong with the command line.
    pub fn read() -> Result<Self, u8> {
        Self::try_parse().map_err(|mut error| {
            hide_secrets(&mut error);
            // Nowhere else to say it when that fails.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code())
        })
    }

    /// The log that was asked for.
    #[must_use]
    pub fn telemetry(&self) -> telemetry::Settings {
        // The table says it all; what goes wrong on the way there would only puzzle.
        let quiet = matches!(self.command, Command::Demo { .. } | Command::Probe(_));
        self.log.settings(quiet)
    }
}

/// clap repeats the value it refuses. A password in TARGET, or a credential given in place of a reference to it, would
/// so end up in a log.
fn hide_secrets(error: &mut clap::Error) {
    let about_a_secret = matches!(
        error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(argument)) if ["TARGET", "--credential", "--provider"].iter().any(|secret| argument.contains(secret))
    );
    if about_a_secret && error.get(ContextKind::InvalidValue).is_some() {
        error.insert(ContextKind::InvalidValue, ContextValue::String("…".into()));
    }
}

/// Carries out one command line.
///
/// # Errors
///
/// [`Failure`]: what is wrong, what to do, and the exit code.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let app = App::default();
    let ended = dispatch(&app, arguments.command, arguments.log).await;
    // However it ended: what is being given back is given back.
    app.settle().await;
    ended
}

async fn dispatch(app: &App, command: Command, log: LogOptions) -> Result<Exit, Failure> {
    match command {
        Command::Demo { json } => play(app, json).await,
        Command::Run(arguments) => run::run(app, arguments).await,
        Command::Open(arguments) => open::open(app, arguments).await,
        Command::Probe(arguments) => probe::probe(app, arguments).await,
        Command::Host(arguments) => Box::pin(host::host(*arguments)).await,
        Command::Serve(arguments) => Box::pin(serve::serve(arguments, log)).await,
        Command::Sessions(command) => sessions::run(app, command).await,
        Command::Status(arguments) => asking::status(&arguments).await,
        Command::Outcome(arguments) => asking::outcome(&arguments).await,
        Command::Drain(arguments) => asking::drain(&arguments).await,
        Command::Reload(arguments) => reload::reload(&arguments).await,
        Command::Tail(arguments) => tail::tail(&arguments).await,
        Command::Top(arguments) => top::top(&arguments).await,
        Command::Dashboard(arguments) => dashboard::dashboard(&arguments).await,
        Command::Policy(command) => policies::run(command),
        Command::Leases(command) => leases::run(app, command).await,
        Command::Audit(command) => Box::pin(audit::run(command)).await,
        Command::Store(command) => store::run(command).await,
        Command::Envelope(command) => envelope::run(&command),
        Command::Providers(arguments) => providers::providers(&arguments),
        Command::Config(command) => Box::pin(config::run(app, command)).await,
        Command::Version { json } => version(json),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => man::man(&dir),
    }
}

async fn play(app: &App, json: bool) -> Result<Exit, Failure> {
    // Boxed: the demo holds a whole sandbox and API.
    let report = Box::pin(demo::run(app))
        .await
        .map_err(|error| Failure::new(Exit::Failed, "the demo could not be shown").because(error))?;
    if json {
        print_json(&report.json())?
    } else {
        print(&report.text())?
    }
    Ok(if report.ok() { Exit::Ok } else { Exit::Failed })
}

fn version(json: bool) -> Result<Exit, Failure> {
    let (name, version) = ("paperclip-bridge", env!("CARGO_PKG_VERSION"));
    if json {
        let packs: Vec<_> = policy::Pack::all().iter().map(policy::Pack::name).collect();
        print_json(
            &json!({ "name": name, "version": version, "packs": packs, "gateway": gateway::described() }),
        )?;
    } else {
        print(&format!("{name} {version}\n"))?;
    }
    Ok(Exit::Ok)
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "paperclip-bridge", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_secret_given_in_the_wrong_place_is_not_repeated() {
        for arguments in [
            [
                "paperclip-bridge",
                "run",
                "local",
                "--credential",
                "pk_live_1",
                "--",
                "true",
            ]
            .as_slice(),
            &["paperclip-bridge", "open", "ssh://me:pk_live_1@host"],
        ] {
            let mut error = Arguments::try_parse_from(arguments).unwrap_err();
            assert!(
                error.to_string().contains("pk_live_1"),
                "clap no longer repeats values: {error}"
            );

            hide_secrets(&mut error);

            assert!(!error.to_string().contains("pk_live_1"), "{error}");
        }
    }
}
