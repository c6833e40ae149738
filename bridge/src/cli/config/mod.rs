//! `paperclip-bridge config`: checking, printing and describing the configuration.
//!
//! Here: the commands. Not here: how it is read (`crate::config`). One file a command: `check.rs` what `run` and `open`
//! would be made of, `daemon.rs` what the daemon would be made of, `print.rs` what was said and where.

use std::path::Path;

use clap::Subcommand;

use crate::app::App;
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::print;
use crate::config::{self, Config, Effective, LoadOptions};

mod check;
mod daemon;
mod print;

/// `config check | print | schema`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check what run and open, or with --config the daemon, would be made of, without connecting to anything
    Check(Box<check::CheckArguments>),
    /// Print the configuration of the daemon
    Print(print::PrintArguments),
    /// Print the JSON Schema of the configuration file
    Schema,
}

/// Carries out one of the commands.
///
/// # Errors
///
/// Code 3 for a configuration with mistakes, each with its place; code 1 where nothing can be printed.
pub(crate) async fn run(app: &App, command: ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Check(arguments) => check::check(app, &arguments).await,
        ConfigCommand::Print(arguments) => print::print_configuration(&arguments),
        ConfigCommand::Schema => {
            print(&format!("{:#}\n", config::schema()))?;
            Ok(Exit::Ok)
        }
    }
}

/// The configuration of this file and our environment.
///
/// # Errors
///
/// Code 3 with every mistake.
fn load(file: Option<&Path>) -> Result<Effective, Failure> {
    let options = LoadOptions {
        file: file.map(Path::to_owned),
        environment: config::variables(),
        flags: Vec::new(),
    };
    Config::load(options).map_err(|errors| {
        Failure::new(Exit::Configuration, "the configuration is refused").listing(errors.to_string())
    })
}
