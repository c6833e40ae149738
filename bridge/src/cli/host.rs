//! `paperclip-bridge host --queue DIR | --stdio`: one session's host side, for a gateway that somebody else started.
//!
//! Here: what the environment says of that gateway, under the names that Paperclip itself uses, and what ends the
//! session. Not here: the serving (`hosting.rs`, `tunnel`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use policy::{Limits, RateLimit, TokenDigest};
use runners::SecretText;
use sha2::{Digest, Sha256};
use tunnel::Tunnel;
use tunnel::http2::{GivenHttp2, GivenOptions};
use tunnel::launch::{GatewayKind, GatewayToken, SessionName};
use tunnel::queue::{Bodies, HostedQueue, Journal, QueueOptions};
use tunnel::wire::names::variable;

use crate::audit::{Audit, AuditSettings};
use crate::cli::exit::{Exit, Failure};
use crate::cli::opening;
use crate::cli::options::{self, UpstreamOptions};
use crate::cli::policies::{Loaded, PolicyOptions};
use crate::cli::secrets::check_credential;
use crate::cli::signals::Signals;
use crate::cli::stdio::Stdin;
use crate::config;
use crate::hosting::{HostRequest, Hosted};
use crate::placing::with_causes;
use crate::session::state::StateFolder;

/// What `--help` says of the environment.
const ENVIRONMENT: &str = "\
Environment, as the gateway has it:
  PAPERCLIP_BRIDGE_TOKEN                what callers must show; required
                                        (or PCBRIDGE_GATEWAY_TOKEN_SHA256, for this project's own gateway)
  PAPERCLIP_BRIDGE_QUEUE_DIR            the directory, where --queue does not name it
  PAPERCLIP_BRIDGE_NONCE                what its READY line must repeat; required with --stdio
  PAPERCLIP_BRIDGE_PORT                 where it listens
  PAPERCLIP_BRIDGE_MAX_BODY_BYTES       largest body each way
  PAPERCLIP_BRIDGE_RESPONSE_TIMEOUT_MS  how long it waits for an answer in a queue";

/// How long a gateway on our standard streams may take to become ready.
const READY: Duration = Duration::from_secs(10);

/// Arguments of `host`.
#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(crate) struct HostArguments {
    #[command(flatten)]
    channel: ChannelOptions,

    #[command(flatten)]
    upstream: UpstreamOptions,

    /// Serve although the upstream does not answer a connection attempt
    #[arg(long)]
    no_upstream_check: bool,

    /// Id of the run, sent upstream as x-paperclip-run-id [default: a fresh UUIDv7]
    #[arg(long, value_name = "ID", value_parser = options::run_id)]
    run_id: Option<String>,

    #[command(flatten)]
    policy: PolicyOptions,

    /// Largest body each way [default: $PAPERCLIP_BRIDGE_MAX_BODY_BYTES, the policy file's, else 10 MiB + 64 KiB]
    #[arg(long, value_name = "SIZE", value_parser = options::size)]
    max_body: Option<u64>,

    /// Most calls over time: `COUNT/UNIT[:BURST]` [default: no limit]
    #[arg(long, value_name = "RATE")]
    rate: Option<RateLimit>,

    /// Calls at the same time over --stdio [default: what the gateway bears]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    streams: Option<u32>,

    /// Answer a --queue in text, for gateways of Paperclip before 2026.824; what is not UTF-8 is lost
    #[arg(long, requires = "queue")]
    text_bodies: bool,

    /// Folder where writes are noted before they are sent, so that a restart never sends one twice, and of the audit
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Which channel.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct ChannelOptions {
    /// A queue directory on this machine [default: $PAPERCLIP_BRIDGE_QUEUE_DIR]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    #[expect(
        clippy::option_option,
        reason = "how clap spells an option whose value may be left out"
    )]
    queue: Option<Option<PathBuf>>,

    /// HTTP/2 on our own standard input and output; the log stays on standard error
    #[arg(long)]
    stdio: bool,
}

/// What the environment says of the gateway.
struct GatewayTold {
    kind: GatewayKind,
    token: GatewayToken,
    digest: TokenDigest,
}

/// Serves until end of input, or until told to end.
///
/// # Errors
///
/// Code 3 for what is missing or wrong; 4 where upstream or gateway do not come; 1 where an outcome was given up.
pub(crate) async fn host(arguments: HostArguments) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let told = gateway_told(&config::environment)?;
    let credential = arguments.upstream.credential();
    check_credential(&credential).await?;
    let upstream = arguments.upstream.settings()?;
    let Loaded { rules, limits } = arguments.policy.load()?;
    let mut sizes = Limits::default().with_file(&limits);
    if let Some(bytes) = max_body(&arguments, &config::environment)? {
        sizes.max_body = bytes;
    }
    if !arguments.no_upstream_check {
        upstream.probe().await.map_err(|reason| {
            Failure::new(Exit::Unreachable, reason).hint("--no-upstream-check serves all the same")
        })?;
    }
    let state = match &arguments.state_dir {
        Some(path) => Some(
            StateFolder::open(path).map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?,
        ),
        None => None,
    };
    let tunnel = tunnel(&arguments, &told, sizes.max_body, state.as_ref())?;
    let audit = match &arguments.state_dir {
        Some(path) => Some(
            Audit::open(AuditSettings::in_state_folder(path))
                .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?,
        ),
        None => None,
    };
    let request = HostRequest {
        upstream,
        credential,
        run_id: config::run_id(arguments.run_id.as_deref()),
        rules: rules.into(),
        limits: sizes,
        rate: arguments.rate.or(limits.rate),
        token: told.digest,
        tunnel,
        state,
        audit,
        target: target(&arguments.channel),
    };
    let tunnel_name = request.tunnel.name();
    let mut hosted = Hosted::begin(request).map_err(opening::failure)?;
    let status = hosted.status.clone();
    let ended = tokio::select! {
        ended = hosted.ended() => ended.map_err(opening::failure),
        ending = signals.next() => {
            tracing::info!(signal = ending.number(), "ending the session");
            Ok(())
        }
        () = async {
            opening::watch(tunnel_name, status).await;
            std::future::pending::<()>().await;
        } => Ok(()),
    };
    let closed = hosted
        .close()
        .await
        .map_err(|left| Failure::new(Exit::Failed, format!("the session did not end cleanly: {left}")));
    ended.and(closed).map(|()| Exit::Ok)
}

/// Where the gateway is, as the audit names it.
fn target(channel: &ChannelOptions) -> String {
    match &channel.queue {
        Some(Some(directory)) => format!("queue:{}", directory.display()),
        Some(None) => format!(
            "queue:{}",
            config::environment(variable::QUEUE_DIR).unwrap_or_default()
        ),
        None => "stdio".to_owned(),
    }
}

fn gateway_told(environment: &dyn Fn(&str) -> Option<String>) -> Result<GatewayTold, Failure> {
    let given = |name| environment(name).filter(|value| !value.is_empty());
    match (given(variable::TOKEN_SHA256), given(variable::TOKEN)) {
        (Some(text), _) => {
            let digest = digest(&text).ok_or_else(|| {
                Failure::new(
                    Exit::Configuration,
                    format!("{} is not 64 hexadecimal digits", variable::TOKEN_SHA256),
                )
            })?;
            Ok(GatewayTold {
                kind: GatewayKind::Binary,
                token: GatewayToken::from_digest(digest),
                digest: TokenDigest::from_bytes(digest),
            })
        }
        (None, Some(token)) => Ok(GatewayTold {
            kind: GatewayKind::Script,
            digest: TokenDigest::from_bytes(Sha256::digest(token.as_bytes()).into()),
            token: GatewayToken::from_text(SecretText::new(token)),
        }),
        (None, None) => Err(Failure::new(
            Exit::Configuration,
            format!("{} is not set: it is what callers must show", variable::TOKEN),
        )),
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (place, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            value = value * 16 + char::from(*digit).to_digit(16)?;
        }
        *place = u8::try_from(value).ok()?;
    }
    Some(digest)
}

/// The option, else the variable, read as the gateway reads it: what is no positive number counts as not given.
fn max_body(
    arguments: &HostArguments,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<u64>, Failure> {
    if arguments.max_body.is_some() {
        return Ok(arguments.max_body);
    }
    let told = number(environment, variable::MAX_BODY_BYTES);
    match told {
        Some(bytes) if bytes > options::MAX_BODY_BYTES => Err(Failure::new(
            Exit::Configuration,
            format!(
                "{} is {bytes}; at most {} are served",
                variable::MAX_BODY_BYTES,
                options::MAX_BODY_BYTES
            ),
        )),
        told => Ok(told),
    }
}

fn number(environment: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<u64> {
    environment(name)
        .and_then(|text| text.trim().parse().ok())
        .filter(|number| *number > 0)
}

fn tunnel(
    arguments: &HostArguments,
    told: &GatewayTold,
    max_body: u64,
    state: Option<&StateFolder>,
) -> Result<Box<dyn Tunnel>, Failure> {
    let Some(queue) = &arguments.channel.queue else {
        let nonce = config::environment(variable::NONCE)
            .filter(|nonce| !nonce.is_empty())
            .ok_or_else(|| {
                Failure::new(
                    Exit::Configuration,
                    format!(
                        "{} is not set: it is what the gateway's READY line must repeat",
                        variable::NONCE
                    ),
                )
            })?;
        let options = GivenOptions {
            kind: told.kind,
            nonce,
            port: number(&config::environment, variable::PORT)
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(0),
            streams: arguments.streams,
            ready_timeout: READY,
        };
        let stdin = Stdin::read()
            .map_err(|error| Failure::new(Exit::Failed, "cannot read standard input").because(error))?;
        let stream = tokio::io::join(stdin, tokio::io::stdout());
        return Ok(Box::new(GivenHttp2::new(Box::new(stream), options)));
    };
    let named = match queue {
        Some(named) => named.clone(),
        None => config::environment(variable::QUEUE_DIR)
            .filter(|named| !named.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| {
                Failure::new(
                    Exit::Configuration,
                    format!(
                        "--queue names no directory, and {} is not set",
                        variable::QUEUE_DIR
                    ),
                )
            })?,
    };
    let max_body = usize::try_from(max_body).unwrap_or(usize::MAX);
    let mut options = QueueOptions::new(queue_name(&named, told.digest)?, told.token.clone(), max_body);
    if let Some(wait) = number(&config::environment, variable::RESPONSE_TIMEOUT_MS) {
        options.response_timeout = Duration::from_millis(wait);
    }
    if arguments.text_bodies {
        options.bodies = Bodies::Text;
    }
    if let Some(state) = state {
        options.journal = Journal::open(state.journal())
            .map_err(|fault| Failure::new(Exit::Configuration, with_causes(&fault)))?;
    }
    Ok(Box::new(HostedQueue::new(named, options)))
}

/// The same queue with the same token is the same session, also for a restarted host: the journal goes by this name.
fn queue_name(directory: &Path, token: TokenDigest) -> Result<SessionName, Failure> {
    let place = std::path::absolute(directory).map_err(|error| {
        Failure::new(Exit::Configuration, "the queue's directory is no path").because(error)
    })?;
    let mut hash = Sha256::new();
    hash.update(token.to_bytes());
    hash.update(place.as_os_str().as_encoded_bytes());
    let name: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    SessionName::new(name).map_err(|fault| Failure::new(Exit::Failed, fault.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_token_is_read_under_either_name_and_never_guessed() {
        let with = |pairs: &'static [(&str, &str)]| {
            gateway_told(&move |name: &str| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };

        let theirs = with(&[("PAPERCLIP_BRIDGE_TOKEN", "abc")]).unwrap();
        assert_eq!(theirs.kind, GatewayKind::Script);
        assert!(theirs.digest.matches(b"abc") && !theirs.digest.matches(b""));
        let ours = with(&[(
            "PCBRIDGE_GATEWAY_TOKEN_SHA256",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        )])
        .unwrap();
        assert_eq!(ours.kind, GatewayKind::Binary);
        assert!(ours.digest.matches(b"abc"));
        assert!(with(&[]).is_err());
        assert!(with(&[("PAPERCLIP_BRIDGE_TOKEN", "")]).is_err());
        assert!(with(&[("PCBRIDGE_GATEWAY_TOKEN_SHA256", "12")]).is_err());
    }

    #[test]
    fn a_restarted_host_of_the_same_queue_has_the_same_name_and_no_other_has() {
        let token = |text: &str| TokenDigest::from_bytes(Sha256::digest(text.as_bytes()).into());
        let name = |path: &str, text| queue_name(Path::new(path), token(text)).unwrap();

        assert_eq!(name("/q", "a"), name("/q", "a"));
        assert_ne!(name("/q", "a"), name("/r", "a"));
        assert_ne!(name("/q", "a"), name("/q", "b"));
    }
}
