//! The program: allocator, TLS provider and runtime; everything else is `bridge::cli`.

use std::process::ExitCode;

use bridge::cli::{self, Arguments, Exit, complain};
use bridge::telemetry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(code) => return ExitCode::from(code),
    };
    telemetry::install(arguments.telemetry());
    // Exactly one provider is built in; an error would mean that it is installed already, which is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    // One thread for the SSH connection and all its callbacks: about 40 % less CPU a callback than work stealing.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let exit = runtime.block_on(cli::run(arguments)).unwrap_or_else(|failure| {
        complain(&failure.to_string());
        failure.exit
    });
    // A thread that still writes to a pager that nobody reads must not hold up our end.
    runtime.shutdown_background();
    ExitCode::from(exit.code())
}
