//! The program `paperclip-bridge-gateway`.

use std::ffi::OsString;
use std::process::ExitCode;

use gateway::node::{Called, called, hand_over};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match called(&arguments) {
        Called::AsItself | Called::InPlaceOfTheScript => serve(),
        Called::AsNode(arguments) => hand_over(&arguments),
    }
}

fn serve() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    gateway::run(&environment)
}
