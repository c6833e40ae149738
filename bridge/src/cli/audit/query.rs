//! `audit query`: callbacks, each with its outcome.

use clap::Args;

use super::{FilterOptions, Place, as_json, shown, unusable};
use crate::audit::query::read;
use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::{print, print_json};

/// Arguments of `audit query`.
#[derive(Args, Debug)]
pub(crate) struct QueryArguments {
    #[command(flatten)]
    filter: FilterOptions,

    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,

    #[command(flatten)]
    place: Place,

    /// A JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

/// Prints what is wanted, in the order in which it ended.
///
/// # Errors
///
/// Code 3 where the audit cannot be read.
pub(super) fn query(arguments: &QueryArguments) -> Result<Exit, Failure> {
    let folder = arguments.place.folder()?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut printed = Ok(());
    if left == 0 {
        return Ok(Exit::Ok);
    }
    read(&folder, &arguments.filter.filter(), &mut |entry| {
        printed = if arguments.json {
            print_json(&as_json(entry))
        } else {
            print(&shown(entry))
        };
        left -= 1;
        printed.is_ok() && left > 0
    })
    .map_err(unusable)?;
    printed.map(|()| Exit::Ok)
}
