//! What the gateway was told when it was started.
//!
//! Here: the environment, read once, checked in the order in which Paperclip's own gateway checks it. Which role is
//! played follows from it: only our daemon gives the token as a digest. Not here: what the values do.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use wire::limits;
use wire::names::{mode, variable};

use crate::diagnostics::say;
use crate::token::TokenCheck;

/// The variables of the environment that are text.
pub type Environment = BTreeMap<String, String>;

/// Whose answers the gateway gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Started by our daemon.
    Ours,
    /// Started by Paperclip's own host, in place of Paperclip's own gateway.
    Peer,
}

/// How callbacks travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// HTTP/2 on standard input and output.
    Http2,
    /// Files in a directory.
    Queue,
}

/// Everything the gateway was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose answers to give.
    pub role: Role,
    /// How callbacks travel.
    pub mode: Mode,
    /// Knows the bridge token.
    pub token: TokenCheck,
    /// The file by which another token comes, if it may.
    pub token_file: Option<PathBuf>,
    /// The address to listen on, as it was spelled.
    pub host: String,
    /// … and as it was read.
    pub address: SocketAddr,
    /// What the READY line repeats.
    pub nonce: String,
    /// The queue directory; empty only in mode [`Mode::Http2`].
    pub queue_dir: PathBuf,
    /// Between two looks for an answer in the queue.
    pub poll_interval: Duration,
    /// After which an answer in the queue is given up.
    pub response_timeout: Duration,
    /// Requests that may wait in the queue.
    pub max_queue_depth: usize,
    /// Bytes a body may have.
    pub max_body: u64,
    /// How long a detached gateway stays after its host's last sign of life.
    pub linger: Duration,
    /// Without a byte from an `http2_v1` host for so long, the gateway ends; `None`: it waits on.
    pub silence: Option<Duration>,
}

impl Settings {
    /// Reads `environment`.
    ///
    /// # Errors
    ///
    /// One line on the first variable that is missing or wrong, without its value where that is secret.
    pub fn read(environment: &Environment) -> Result<Self, String> {
        let get = |name: &str| {
            environment
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let (role, token) = match (get(variable::TOKEN_SHA256), get(variable::TOKEN)) {
            (Some(digest), _) => {
                let check = TokenCheck::of_digest(digest)
                    .ok_or_else(|| format!("{} is not 64 hexadecimal digits.", variable::TOKEN_SHA256))?;
                (Role::Ours, check)
            }
            (None, Some(token)) => (Role::Peer, TokenCheck::of_text(token)),
            (None, None) => return Err(format!("{} is required.", variable::TOKEN)),
        };
        let mode = match get(variable::MODE) {
            Some(mode::HTTP2) => Mode::Http2,
            None | Some(mode::QUEUE) => Mode::Queue,
            Some(other) => return Err(format!("Unsupported {}: {other}", variable::MODE)),
        };
        let queue_dir = match (mode, get(variable::QUEUE_DIR)) {
            (Mode::Queue, None) => {
                return Err(format!(
                    "{} and {} are required.",
                    variable::QUEUE_DIR,
                    variable::TOKEN
                ));
            }
            (_, path) => PathBuf::from(path.unwrap_or_default()),
        };
        let host = get(variable::HOST).unwrap_or("127.0.0.1");
        let address = SocketAddr::new(address(host, role)?, port(get(variable::PORT), mode)?);
        let number = |name, default| number(get(name), default);
        Ok(Self {
            role,
            mode,
            token,
            token_file: get(variable::TOKEN_FILE)
                .filter(|_| role == Role::Ours)
                .map(PathBuf::from),
            host: host.to_owned(),
            address,
            nonce: get(variable::NONCE).unwrap_or_default().to_owned(),
            queue_dir,
            poll_interval: Duration::from_millis(number(variable::POLL_INTERVAL_MS, 100)),
            response_timeout: Duration::from_millis(number(variable::RESPONSE_TIMEOUT_MS, 30_000)),
            max_queue_depth: usize::try_from(number(variable::MAX_QUEUE_DEPTH, 64)).unwrap_or(usize::MAX),
            max_body: number(variable::MAX_BODY_BYTES, limits::DEFAULT_MAX_BODY),
            linger: Duration::from_secs(number(variable::LINGER_SECONDS, 600)),
            silence: match (role, get(variable::SILENCE_MS)) {
                (_, given @ Some(_)) => Some(Duration::from_millis(self::number(given, 25_000))),
                (Role::Ours, None) => Some(limits::SILENCE),
                // Paperclip's gateway waits for ever, and its host may be held up for longer than ours.
                (Role::Peer, None) => None,
            },
        })
    }
}

impl Settings {
    /// The same, from now on with the token that its file says, where it has one and that can be made. Without it the first
    /// token holds to the end: whoever would change it sees that there is no file.
    #[must_use]
    pub fn following(self) -> Self {
        let Some(path) = &self.token_file else {
            return self;
        };
        match self.token.following(path.clone(), &self.nonce) {
            Ok(token) => Self { token, ..self },
            Err(error) => {
                say(format!(
                    "the token cannot be changed: {}: {error}",
                    path.display()
                ));
                self
            }
        }
    }
}

/// The address to bind; names are not resolved, and our own role listens on nothing but loopback.
fn address(host: &str, role: Role) -> Result<IpAddr, String> {
    let address = if host.eq_ignore_ascii_case("localhost") {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        host.parse()
            .map_err(|_| format!("{} is not an IP address: {host}", variable::HOST))?
    };
    if role == Role::Ours && !address.is_loopback() {
        return Err(format!("{} is not a loopback address: {host}", variable::HOST));
    }
    Ok(address)
}

fn port(given: Option<&str>, mode: Mode) -> Result<u16, String> {
    let given = given.unwrap_or("0");
    match (given.trim().parse(), mode) {
        (Ok(0), Mode::Http2) | (Err(_), Mode::Http2) => Err(format!(
            "http2 gateway requires a positive assigned {}; got {given}",
            variable::PORT
        )),
        (Ok(port), _) => Ok(port),
        (Err(_), Mode::Queue) => Err(format!("{} is not a port: {given}", variable::PORT)),
    }
}

/// A positive whole number; anything else counts as not given, as on the host's side.
fn number(given: Option<&str>, default: u64) -> u64 {
    given
        .and_then(|text| text.trim().parse().ok())
        .filter(|number| *number > 0)
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let environment = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Settings::read(&environment)
    }

    #[test]
    fn mistakes_are_found_in_the_published_order() {
        let digest = "0".repeat(64);
        let table: &[(&[(&str, &str)], &str)] = &[
            (
                &[("PAPERCLIP_API_BRIDGE_MODE", "x")],
                "PAPERCLIP_BRIDGE_TOKEN is required.",
            ),
            (
                &[
                    ("PAPERCLIP_BRIDGE_TOKEN", "t"),
                    ("PAPERCLIP_API_BRIDGE_MODE", "x"),
                ],
                "Unsupported PAPERCLIP_API_BRIDGE_MODE: x",
            ),
            (
                &[("PAPERCLIP_BRIDGE_TOKEN", "t")],
                "PAPERCLIP_BRIDGE_QUEUE_DIR and PAPERCLIP_BRIDGE_TOKEN are required.",
            ),
            (
                &[
                    ("PAPERCLIP_BRIDGE_TOKEN", "t"),
                    ("PAPERCLIP_API_BRIDGE_MODE", "http2_v1"),
                ],
                "http2 gateway requires a positive assigned PAPERCLIP_BRIDGE_PORT; got 0",
            ),
            (
                &[("PCBRIDGE_GATEWAY_TOKEN_SHA256", "secret")],
                "PCBRIDGE_GATEWAY_TOKEN_SHA256 is not 64 hexadecimal digits.",
            ),
            (
                &[
                    ("PCBRIDGE_GATEWAY_TOKEN_SHA256", &digest),
                    ("PAPERCLIP_BRIDGE_QUEUE_DIR", "/q"),
                    ("PAPERCLIP_BRIDGE_HOST", "0.0.0.0"),
                ],
                "PAPERCLIP_BRIDGE_HOST is not a loopback address: 0.0.0.0",
            ),
            (
                &[
                    ("PAPERCLIP_BRIDGE_TOKEN", "t"),
                    ("PAPERCLIP_BRIDGE_QUEUE_DIR", "/q"),
                    ("PAPERCLIP_BRIDGE_HOST", "example.com"),
                ],
                "PAPERCLIP_BRIDGE_HOST is not an IP address: example.com",
            ),
        ];

        for (pairs, text) in table {
            assert_eq!(read(pairs).expect_err("a mistake"), *text);
        }
    }

    #[test]
    fn defaults_are_the_published_ones() {
        let settings = read(&[
            ("PAPERCLIP_BRIDGE_TOKEN", "t"),
            ("PAPERCLIP_BRIDGE_QUEUE_DIR", "/q"),
            ("PAPERCLIP_BRIDGE_MAX_QUEUE_DEPTH", "-1"),
        ])
        .expect("enough");

        assert_eq!((settings.role, settings.mode), (Role::Peer, Mode::Queue));
        assert_eq!(settings.address.to_string(), "127.0.0.1:0");
        assert_eq!(settings.poll_interval, Duration::from_millis(100));
        assert_eq!(settings.response_timeout, Duration::from_secs(30));
        assert_eq!((settings.max_queue_depth, settings.max_body), (64, 10_551_296));
        assert_eq!(settings.silence, None);
    }

    #[test]
    fn a_digest_makes_the_role_ours_also_beside_a_token() {
        let settings = read(&[
            ("PAPERCLIP_BRIDGE_TOKEN", "t"),
            ("PCBRIDGE_GATEWAY_TOKEN_SHA256", &"0".repeat(64)),
            ("PAPERCLIP_API_BRIDGE_MODE", "http2_v1"),
            ("PAPERCLIP_BRIDGE_PORT", "40000"),
        ])
        .expect("enough");

        assert_eq!((settings.role, settings.mode), (Role::Ours, Mode::Http2));
        assert_eq!(settings.linger, Duration::from_secs(600));
        assert_eq!(settings.silence, Some(Duration::from_secs(25)));
    }
}
