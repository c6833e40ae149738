//! `paperclip-bridge reload`: a daemon reads its configuration again.

use std::time::Duration;

use clap::Args;

use crate::cli::control::{ControlOptions, failure};
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{as_value, print, print_json};
use crate::control::ClientError;
use crate::daemon::Reloaded;

/// Every session's rules may be compiled anew.
const RELOADING: Duration = Duration::from_secs(60);

/// Arguments of `reload`.
#[derive(Args, Debug)]
pub(crate) struct ReloadArguments {
    #[command(flatten)]
    daemon: ControlOptions,
}

/// Has the daemon read its configuration again, and says what has changed.
///
/// # Errors
///
/// Code 3 where it is refused, with every mistake; 4 where no daemon answers.
pub(crate) async fn reload(arguments: &ReloadArguments) -> Result<Exit, Failure> {
    let client = arguments.daemon.client()?;
    let reloaded: Result<Reloaded, _> = client.post("/v1/reload", None::<&()>, RELOADING).await;
    let reloaded = reloaded.map_err(|error| match error {
        ClientError::Problem(problem) if problem.code == "configuration_refused" => {
            let lines: Vec<_> = problem
                .mistakes
                .iter()
                .map(|mistake| mistake.detail.as_str())
                .collect();
            let what = "the daemon refuses its configuration, and the one before still holds";
            Failure::new(Exit::Configuration, what).listing(lines.join("\n"))
        }
        error @ (ClientError::Problem(_)
        | ClientError::NoDaemon { .. }
        | ClientError::Unusable(_)
        | ClientError::Broken(_)
        | ClientError::Late(_)) => failure(error),
    })?;
    if arguments.daemon.json {
        print_json(&as_value(&reloaded)?)?;
        return Ok(Exit::Ok);
    }
    let mut text = match reloaded.changed.as_slice() {
        [] => "nothing has changed\n".to_owned(),
        changed => format!("in force: {}\n", changed.join(", ")),
    };
    if !reloaded.needs_restart.is_empty() {
        text += &format!("after a restart: {}\n", reloaded.needs_restart.join(", "));
    }
    print(&text)?;
    Ok(Exit::Ok)
}
