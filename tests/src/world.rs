//! A whole world for one test: an SSH server, an upstream and the daemon between them.
//!
//! Here: the builder and the usual ways in. Not here: the parts ([`crate::sshd`], [`crate::upstream`],
//! [`crate::binary`]), and worlds with a part that is special in a way only one test needs: that test puts it
//! together itself.

use std::path::PathBuf;

use crate::binary::{Bridge, BridgeCommand, Finished};
use crate::raw::Agent;
use crate::sshd::{Access, Sshd};
use crate::upstream::Upstream;

/// The real credential of every test. It must never be seen anywhere but at the upstream.
pub const CREDENTIAL: &str = "real-credential-5f3b0c6d9a";

/// The run id of every test.
pub const RUN_ID: &str = "run-7d1f";

/// The variable of the daemon that holds [`CREDENTIAL`].
pub const CREDENTIAL_VARIABLE: &str = "TEST_CREDENTIAL";

/// The option that names a certificate authority for the upstream.
pub const UPSTREAM_CA_OPTION: &str = "--upstream-ca";

/// Header names that may reach the upstream: the request allowlist, what we set, and HTTP's own.
pub const UPSTREAM_HEADERS: [&str; 16] = [
    "accept",
    "content-type",
    "if-match",
    "if-none-match",
    "idempotency-key",
    "x-paperclip-github-capability",
    "traceparent",
    "tracestate",
    "authorization",
    "x-paperclip-run-id",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "expect",
    "accept-encoding",
];

/// Where the agent's side is.
#[derive(Debug)]
pub enum Place {
    /// On this machine, without SSH.
    Local,
    /// Behind an SSH server of this world's own.
    Ssh(Box<Sshd>),
    /// Behind a server that the test keeps.
    Other(Access),
}

impl Place {
    /// What the daemon is given as its TARGET.
    pub fn target(&self) -> String {
        match self {
            Self::Local => "local".to_owned(),
            Self::Ssh(server) => server.access().target,
            Self::Other(access) => access.target.clone(),
        }
    }

    /// How to log in there.
    pub fn options(&self) -> Vec<String> {
        match self {
            Self::Local => vec![],
            Self::Ssh(server) => server.access().options(),
            Self::Other(access) => access.options(),
        }
    }
}

/// What a world shall be made of.
#[derive(Debug)]
pub struct WorldBuilder {
    place: Place,
    tls: bool,
    arguments: Vec<String>,
    base_path: String,
}

impl WorldBuilder {
    /// The upstream speaks TLS and the daemon is given its authority.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// More options of `open`.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A path in the upstream's URL.
    #[must_use]
    pub fn base_path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.base_path);
        self
    }

    /// Opens the session.
    ///
    /// # Panics
    ///
    /// With the daemon's own words where it does not open.
    pub async fn open(self) -> World {
        match self.try_open().await {
            Ok(world) => world,
            Err((_, finished)) => panic!("`open` ended with {:?}: {}", finished.code, finished.stderr),
        }
    }

    /// Opens the session.
    ///
    /// # Errors
    ///
    /// How the daemon ended, with what it was to stand on.
    pub async fn try_open(self) -> Result<World, (Place, Finished)> {
        let upstream = if self.tls {
            Upstream::start_tls().await
        } else {
            Upstream::start().await
        };
        let mut command = daemon(
            "open",
            &self.place,
            &format!("{}{}", upstream.url(), self.base_path),
        )
        .args(["--json", "--until-stdin-closes"])
        .args(self.arguments);
        if let Some(authority) = upstream.authority() {
            command = command.args([
                UPSTREAM_CA_OPTION.to_owned(),
                authority.file().display().to_string(),
            ]);
        }
        match command.open().await {
            Ok(bridge) => Ok(World {
                bridge,
                upstream,
                place: self.place,
            }),
            Err(finished) => Err((self.place, finished)),
        }
    }
}

/// `paperclip-bridge SUBCOMMAND TARGET` with the credential, the run id and the log-in of the place.
pub fn daemon(subcommand: &str, place: &Place, upstream: &str) -> BridgeCommand {
    BridgeCommand::new([subcommand.to_owned(), place.target()])
        .args(place.options())
        .args(["--upstream", upstream, "--run-id", RUN_ID])
        .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
        .env(CREDENTIAL_VARIABLE, CREDENTIAL)
}

/// An open session with both of its ends.
///
/// The order of the fields is the order of their end: the daemon first.
#[derive(Debug)]
pub struct World {
    /// The daemon.
    pub bridge: Bridge,
    /// The API that it calls.
    pub upstream: Upstream,
    /// Where the agent is.
    pub place: Place,
}

impl World {
    /// A session on this machine, through the `local` tunnel.
    pub fn local() -> WorldBuilder {
        Self::at(Place::Local)
    }

    /// A session over SSH to a server of its own.
    pub fn ssh() -> WorldBuilder {
        Self::over(Sshd::start())
    }

    /// A session over SSH to this server.
    pub fn over(server: Sshd) -> WorldBuilder {
        Self::at(Place::Ssh(Box::new(server)))
    }

    /// A session at this place.
    pub fn at(place: Place) -> WorldBuilder {
        WorldBuilder {
            place,
            tls: false,
            arguments: vec![],
            base_path: String::new(),
        }
    }

    /// A caller with the session's URL and token.
    pub fn agent(&self) -> Agent {
        Agent {
            url: self.bridge.opened.url.clone(),
            token: self.bridge.opened.token.clone(),
        }
    }

    /// The SSH server.
    ///
    /// # Panics
    ///
    /// In a world without one of its own.
    pub fn sshd(&self) -> &Sshd {
        match &self.place {
            Place::Ssh(server) => server,
            Place::Local | Place::Other(_) => panic!("this world has no SSH server of its own"),
        }
    }

    /// The port that the agent connects to.
    ///
    /// # Panics
    ///
    /// Where the session's URL has none.
    pub fn port(&self) -> u16 {
        let url = &self.bridge.opened.url;
        let port = url
            .trim_end_matches('/')
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {url}"))
    }

    /// Asserts that no request at the upstream carried what it must not, and that each carried what it must.
    pub fn assert_upstream_saw_only_what_it_may(&self) {
        assert_headers(&self.upstream.seen());
    }

    /// A folder of the workspace, for files that tests hand to the daemon.
    pub fn workspace() -> PathBuf {
        let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        package.parent().map(PathBuf::from).unwrap_or(package)
    }
}

/// Asserts of each request that its headers are the allowed ones, and that credential and run id are ours.
pub fn assert_headers(seen: &[crate::upstream::Seen]) {
    for request in seen {
        let what = format!("{} {} {:?}", request.method, request.target, request.headers);
        for (name, _) in &request.headers {
            assert!(
                UPSTREAM_HEADERS.contains(&name.to_ascii_lowercase().as_str()),
                "{name} reached it: {what}"
            );
        }
        assert_eq!(request.count("authorization"), 1, "{what}");
        assert_eq!(
            request.header("authorization"),
            Some(format!("Bearer {CREDENTIAL}").as_str()),
            "{what}"
        );
        assert_eq!(request.count("x-paperclip-run-id"), 1, "{what}");
        assert_eq!(request.header("x-paperclip-run-id"), Some(RUN_ID), "{what}");
        assert_eq!(request.count("host"), 1, "{what}");
        // Ours, and the only value under which the answer can be judged by its size.
        assert!(
            matches!(request.header("accept-encoding"), None | Some("identity")),
            "{what}"
        );
    }
}
