//! `paperclip-bridge probe TARGET`: is the target fit for sessions, and what is to be done where it is not?
//!
//! Here: the options, the form of the report and the exit code. Not here: what is looked at (`probe/`).

use clap::Args;

use crate::app::App;
use crate::cli::exit::{Exit, Failure};
use crate::cli::opening;
use crate::cli::options::SessionOptions;
use crate::cli::signals::Signals;
use crate::cli::stdio::{print, print_json};
use crate::probe::{self, Fitness};

/// Arguments of `probe`.
#[derive(Args, Debug)]
pub(crate) struct ProbeArguments {
    #[command(flatten)]
    options: Box<SessionOptions>,

    /// A JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Looks at the target and reports everything that was found.
///
/// # Errors
///
/// Code 2 or 3 before anything is connected to; 1 when a signal came first. A target that is not fit is code 4 in `Ok`.
pub(crate) async fn probe(app: &App, arguments: ProbeArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let options = &arguments.options;
    if options.unix_socket.is_some() {
        return Err(Failure::new(
            Exit::Usage,
            "probe calls the bridge over a port; leave --unix-socket away",
        ));
    }
    let request = options.request()?;
    app.check(&request.target).map_err(opening::failure)?;
    let asked = probe::Asked {
        request,
        target: options.target_in_words(),
        upstream: !options.no_upstream_check,
    };
    let report = tokio::select! {
        // Boxed: the checks hold whole sessions.
        report = Box::pin(probe::run(app, asked)) => report,
        ending = signals.next() => {
            let what = format!("interrupted by signal {} before the probe was over", ending.number());
            return Err(Failure::new(Exit::Failed, what));
        }
    };
    if arguments.json {
        print_json(&report.json())?
    } else {
        print(&report.text())?
    }
    Ok(match report.fitness() {
        Fitness::Fit => Exit::Ok,
        Fitness::Unfit => Exit::Unreachable,
        Fitness::Misconfigured => Exit::Configuration,
    })
}
