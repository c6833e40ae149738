//! The program `paperclip-bridge-gateway`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::FAILURE
}
