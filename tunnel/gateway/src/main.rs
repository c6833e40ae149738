//! The program `paperclip-bridge-gateway`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use gateway::node::{Called, called, hand_over};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match (called(&arguments), arguments.get(1)) {
        (Called::AsNode(arguments), _) => hand_over(&arguments),
        (Called::InPlaceOfTheScript, _) | (Called::AsItself, None) => serve(),
        (Called::AsItself, Some(argument)) if argument == "--version" => version(),
        (Called::AsItself, Some(_)) => {
            gateway::say("takes no arguments but --version; what it needs is in its environment");
            ExitCode::from(2)
        }
    }
}

fn serve() -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    gateway::run(&environment)
}

fn version() -> ExitCode {
    let line = concat!("paperclip-bridge-gateway ", env!("CARGO_PKG_VERSION"), "\n");
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
