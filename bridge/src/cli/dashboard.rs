//! `paperclip-bridge dashboard`: a way into the dashboard of a daemon.

use clap::Args;

use crate::cli::control::{ControlOptions, SOON, failure};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{as_value, print, print_json};
use crate::dashboard::Ticket;

/// Arguments of `dashboard`.
#[derive(Args, Debug)]
pub(crate) struct DashboardArguments {
    #[command(flatten)]
    daemon: ControlOptions,
}

/// Prints a URL for a browser on the daemon's machine.
///
/// # Errors
///
/// Code 3 where the daemon shows no dashboard, 4 where none answers.
pub(crate) async fn dashboard(arguments: &DashboardArguments) -> Result<Exit, Failure> {
    let client = arguments.daemon.client()?;
    let ticket: Ticket = client
        .post("/v1/dashboard/login", None::<&()>, SOON)
        .await
        .map_err(failure)?;
    if arguments.daemon.json {
        print_json(&as_value(&ticket)?)?;
    } else {
        let minutes = ticket.expires_in_seconds / 60;
        print(&format!("{}\ngood once, for {minutes} min\n", ticket.url))?;
    }
    Ok(Exit::Ok)
}
