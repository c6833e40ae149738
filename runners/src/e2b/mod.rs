//! E2B: sandboxes made by its API, commands run by the server inside them (`envd`).
//!
//! Here: [`E2B`], what this provider declares. `config` is what an operator may set, `control` the API calls,
//! `leases` what is done with them; [`connect`] the frames of the server inside, `envd` its calls, `follow` a
//! process's events, `exec` and `duplex` what is made of those, `runner` the seam. Not here: the shell lines;
//! they are those of [`crate::shell`].

pub mod connect;

mod config;
mod control;
mod leases;
mod access;
mod envd;
mod follow;
mod input;
mod exec;
mod ending;
mod duplex;
mod upload;
mod runner;

use crate::Shell;
use crate::provider::{ProviderCapabilities, ProviderSpec, schema};

/// The provider `e2b`.
pub static E2B: ProviderSpec = ProviderSpec {
    key: KEY,
    about: "Sandboxes of E2B, or of a server of your own that speaks its protocol",
    capabilities: ProviderCapabilities {
        duplex: true,
        file_transfer: true,
        streaming_output: true,
        reuse_leases: true,
        background: true,
    },
    shell: Some(Shell::Sh),
    schema: || schema::<config::Config>(config::SECRETS),
    secrets: config::SECRETS,
    build: leases::build,
};

const KEY: &str = "e2b";
