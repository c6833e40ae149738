//! The published other side: the peer's own host and gateway, as its packages on npm hold them.
//!
//! Here: installing the pinned releases with a Node that runs them ([`install`]), and starting the peer's host
//! ([`host`]) with a gateway of choice ([`gateway`]), here or behind an SSH server ([`ssh`]). Not here: what is asked through them; that is in
//! `tests/interop/`. The JavaScript that calls the packages is in `tests/peer/`.

pub mod gateway;
pub mod host;
pub mod install;
pub mod ssh;

pub use gateway::{our_gateway, their_script};
pub use host::{HostOptions, PeerHost};
pub use install::{Installed, installed};
pub use ssh::SshSandbox;

/// A release of the peer that is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    /// 2026.707.0, the first stable one with a bridge: `queue_v1` with text bodies only.
    R707,
    /// 2026.916.1, with both transports.
    R916,
}

impl Release {
    /// Its version.
    pub const fn version(self) -> &'static str {
        match self {
            Self::R707 => "2026.707.0",
            Self::R916 => "2026.916.1",
        }
    }

    /// The route list of ours that is this release's.
    pub const fn pack(self) -> &'static str {
        match self {
            Self::R707 => "paperclip-2026.707",
            Self::R916 => "paperclip-2026.916",
        }
    }
}

/// A transport by its wire name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP/2 over the gateway's stdin and stdout.
    Http2,
    /// Files in a directory of the sandbox.
    Queue,
}

impl Transport {
    /// `http2_v1` or `queue_v1`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http2 => "http2_v1",
            Self::Queue => "queue_v1",
        }
    }
}
