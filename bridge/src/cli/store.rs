//! `paperclip-bridge store`: the store of a state folder.
//!
//! Here: `backup`, which needs no daemon and disturbs none. Not here: the store itself (`store/`).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};
use crate::{config, store};

/// What can be done with the store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Write a copy of the SQLite store into a new FILE, also while a daemon uses it
    Backup(BackupArguments),
}

/// Arguments of `store backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArguments {
    /// The copy; must not be there yet
    file: PathBuf,

    /// The daemon's state folder [default: $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// A JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Carries out one of them.
///
/// # Errors
///
/// Code 3 for a folder that cannot be found; 1 where no copy was made.
pub(crate) async fn run(command: StoreCommand) -> Result<Exit, Failure> {
    let StoreCommand::Backup(arguments) = command;
    let folder = arguments
        .state_dir
        .or_else(|| config::state_folder(&config::environment));
    let folder = folder.ok_or_else(|| {
        Failure::new(
            Exit::Configuration,
            "neither XDG_STATE_HOME nor HOME is an absolute path",
        )
        .hint("name the daemon's state folder with --state-dir DIR")
    })?;
    store::backup(&folder, &arguments.file)
        .await
        .map_err(|error| Failure::new(Exit::Failed, "the store was not copied").because(error))?;
    if arguments.json {
        print_json(&json!({ "file": arguments.file, "store": folder.join("store.db") }))?;
    } else {
        print(&format!(
            "{} is a copy of the store in {}\n",
            arguments.file.display(),
            folder.display()
        ))?;
    }
    Ok(Exit::Ok)
}
