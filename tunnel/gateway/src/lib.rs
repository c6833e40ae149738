//! The gateway: listens on the sandbox's loopback and hands each call to the host.
//!
//! Here: all of it; `main.rs` only starts it. Not here: rules and credentials, which it never holds. Read
//! [`settings`], then [`listen`], then a carrier.

pub mod settings;
pub mod token;
pub mod caller;
pub mod headers;
pub mod answers;
pub mod listen;
mod diagnostics;

use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;

use settings::{Environment, Mode, Settings};

/// Runs a gateway to its end.
#[must_use]
pub fn run(environment: &Environment) -> ExitCode {
    let settings = match Settings::read(environment) {
        Ok(settings) => Arc::new(settings),
        Err(text) => {
            diagnostics::say(text);
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    match runtime.map(|runtime| runtime.block_on(serve(settings))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(text)) => {
            diagnostics::say(text);
            ExitCode::FAILURE
        }
        Err(error) => {
            diagnostics::say(format_args!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Arc<Settings>) -> Result<(), String> {
    let listener = TcpListener::bind(settings.address)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", settings.address))?;
    drop(listener);
    match settings.mode {
        Mode::Http2 => Err("http2_v1 is not carried yet".into()),
        Mode::Queue => Err("queue_v1 is not carried yet".into()),
    }
}
