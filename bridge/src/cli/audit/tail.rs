//! `audit tail`: the newest records, and those that come.

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;

use super::{FilterOptions, Place, as_json, shown, unusable};
use crate::audit::query::{Entry, Follow, Joined, record};
use crate::cli::exit::{Exit, Failure};
use crate::cli::signals::Signals;
use crate::cli::stdio::{print, print_json};

/// How often a followed audit is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What `--lines` may ask for.
const MOST_LINES: u64 = 100_000;

/// Arguments of `audit tail`.
#[derive(Args, Debug)]
pub(crate) struct TailArguments {
    /// So many of those that are there
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=MOST_LINES))]
    lines: u64,

    /// Go on as records are written, until Ctrl-C
    #[arg(long, short = 'f')]
    follow: bool,

    #[command(flatten)]
    filter: FilterOptions,

    #[command(flatten)]
    place: Place,

    /// A JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

/// Prints the newest and, if asked, goes on.
///
/// # Errors
///
/// Code 3 where the audit cannot be read.
pub(super) async fn tail(arguments: &TailArguments) -> Result<Exit, Failure> {
    let folder = arguments.place.folder()?;
    let filter = arguments.filter.filter();
    let mut follow = Follow::new(&folder);
    let mut joined = Joined::default();
    let mut newest = VecDeque::new();
    let most = usize::try_from(arguments.lines).unwrap_or(usize::MAX);
    let mut keep = |entry: Entry| {
        if filter.admits(&entry) {
            newest.push_back(entry);
            if newest.len() > most {
                newest.pop_front();
            }
        }
        true
    };
    pass(&mut follow, &mut joined, &mut keep)?;
    if !arguments.follow {
        joined.rest(&mut keep);
    }
    for entry in newest {
        show(&entry, arguments.json)?;
    }
    if !arguments.follow {
        return Ok(Exit::Ok);
    }
    let mut signals = Signals::listen()?;
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(Exit::Ok),
            () = tokio::time::sleep(LOOK) => {}
        }
        let mut printed = Ok(());
        pass(&mut follow, &mut joined, &mut |entry| {
            if filter.admits(&entry) {
                printed = show(&entry, arguments.json);
            }
            printed.is_ok()
        })?;
        printed?;
    }
}

/// Hands out what is whole of all that was written since the last pass.
fn pass(
    follow: &mut Follow,
    joined: &mut Joined,
    take: &mut dyn FnMut(Entry) -> bool,
) -> Result<(), Failure> {
    follow
        .lines(&mut |line| record(line).is_none_or(|record| joined.add(record, take)))
        .map_err(unusable)
}

fn show(entry: &Entry, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&as_json(entry))
    } else {
        print(&shown(entry))
    }
}
