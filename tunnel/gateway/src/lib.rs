//! The gateway: listens on the sandbox's loopback and hands each call to the host.
//!
//! Here: all of it; `main.rs` only starts it. Not here: rules and credentials, which it never holds. Read
//! [`settings`], then [`listen`], then a carrier.

pub mod settings;
pub mod token;
mod token_file;
pub mod caller;
pub mod headers;
pub mod answers;
mod cut;
pub mod listen;
mod http2;
pub mod queue;
mod url;
mod record;
pub mod node;
mod diagnostics;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use diagnostics::say;
use settings::{Environment, Mode, Settings};

/// Runs a gateway to its end.
#[must_use]
pub fn run(environment: &Environment) -> ExitCode {
    let carried = Settings::read(environment).and_then(|settings| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let ended = runtime.block_on(serve(settings));
        // A thread that waits for a terminal's next line must not hold up the end.
        runtime.shutdown_background();
        ended
    });
    token_file::remove(environment);
    record::remove(environment);
    match carried {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            say(text);
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings) -> Result<(), String> {
    let listener = TcpListener::bind(settings.address)
        .await
        .map_err(|error| not_listening(settings.address, &error))?;
    // Only now: a gateway that cannot listen must not touch the file of the one that does.
    let settings = Arc::new(settings.following());
    match settings.mode {
        Mode::Http2 => http2::serve(listener, settings).await,
        Mode::Queue => queue::serve(listener, settings).await,
    }
}

/// What Paperclip's host and its tests look for: its gateway's words and Node's name of the error, beside ours.
fn not_listening(address: SocketAddr, error: &io::Error) -> String {
    let names = [
        (io::ErrorKind::AddrInUse, "EADDRINUSE: "),
        (io::ErrorKind::AddrNotAvailable, "EADDRNOTAVAIL: "),
        (io::ErrorKind::PermissionDenied, "EACCES: "),
    ];
    let name = names
        .iter()
        .find(|(kind, _)| *kind == error.kind())
        .map_or("", |(_, name)| name);
    format!("server error: cannot listen on {address}: {name}{error}")
}
