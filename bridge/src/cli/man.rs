//! `paperclip-bridge man DIR`: the manual pages, a page a command, for whoever packages the program.

use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::Arguments;
use crate::cli::exit::{Exit, Failure};

/// Writes `paperclip-bridge.1` and the page of each command into a folder, which is made where it is missing.
///
/// # Errors
///
/// Code 3 for a folder that cannot be written.
pub(crate) fn man(folder: &Path) -> Result<Exit, Failure> {
    let unusable = |error: std::io::Error| {
        Failure::new(
            Exit::Configuration,
            format!("the manual cannot be written to {}", folder.display()),
        )
        .because(error)
    };
    std::fs::create_dir_all(folder).map_err(unusable)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(unusable)?;
    Ok(Exit::Ok)
}
