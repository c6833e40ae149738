//! `paperclip-bridge demo`: the whole path on one machine, with nothing to set up.
//!
//! Here: what is shown and in which order ([`run`]). The sandbox is an SSH server in this process (`sandbox.rs`), the
//! API a stand-in (`api.rs`), the agent raw HTTP (`agent.rs`); between them is the real thing: a session opened by
//! [`App::open`] over a real reverse tunnel. Read next: `report.rs`, for what a newcomer gets to see.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use policy::{Limits, Pack, Rules};
use russh::keys::ssh_key::LineEnding;

use crate::app::{
    App, GatewayChoice, OpenError, OpenSession, SessionRequest, SshTarget, TargetSpec, TunnelChoice,
};
use crate::config;
use crate::secrets::Secret;
use crate::upstream::UpstreamSettings;

mod sandbox;
mod api;
mod agent;
pub mod report;

use agent::{Agent, Reply};
use api::{Asked, LOSE_THE_ANSWER, StandIn};
use report::{Report, Step};
use sandbox::Sandbox;

/// Why the demo could not be shown to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// This machine did not give us a loopback listener, a temporary folder or randomness.
    #[error("the demo needs a loopback listener, a temporary folder and randomness")]
    Machine(#[from] io::Error),
    /// The built-in policy pack or upstream URL was not accepted.
    #[error("the demo's own configuration was not accepted: {0}")]
    Configuration(String),
    /// The session could not be opened.
    #[error("the session over the in-process SSH server could not be opened")]
    Open(#[source] OpenError),
}

/// Largest body in the demo's session, so that the oversize call is quick.
const BODY_LIMIT_BYTES: u64 = 1024 * 1024;

/// Plays the demo and reports each call against what was promised.
///
/// Takes well under five seconds; leaves no file, process or listener.
///
/// # Errors
///
/// [`DemoError`] where there was nothing to report. A call that came out otherwise than promised is in the report.
pub async fn run(app: &App) -> Result<Report, DemoError> {
    let started = Instant::now();
    let credential = Secret::new(format!("pk_demo_{}", uuid::Uuid::new_v4().simple()));
    let api = StandIn::start(&credential).await?;
    let client_key = sandbox::fresh_key()?;
    let sandbox = Sandbox::start(client_key.public_key().clone()).await?;
    let files = Files::write(&client_key, &sandbox)?;
    let request = request(&credential, &api, &sandbox, &files)?;
    let run_id = request.run_id.clone();
    // Boxed: opening is by far the largest future here.
    let session = Box::pin(app.open(request)).await.map_err(DemoError::Open)?;

    let agent = Agent {
        place: session
            .url
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned(),
        token: session
            .token
            .as_ref()
            .map(|token| token.expose().to_owned())
            .unwrap_or_default(),
    };
    let (url, tunnel) = (session.url.clone(), session.tunnel);
    let mut steps = calls(&agent).await;
    steps.extend(what_each_side_saw(&api.asked(), &sandbox, &credential, &run_id));
    steps.push(end(session, &agent).await);
    Ok(Report {
        steps,
        url,
        tunnel,
        took: started.elapsed(),
    })
}

fn request(
    credential: &Secret,
    api: &StandIn,
    sandbox: &Sandbox,
    files: &Files,
) -> Result<SessionRequest, DemoError> {
    let upstream = UpstreamSettings::parse(&format!("http://{}", api.address), None)
        .map_err(|error| DemoError::Configuration(error.to_string()))?;
    Ok(SessionRequest {
        whose: crate::audit::Identities::default(),
        named: None,
        target: TargetSpec::Ssh(SshTarget {
            host: sandbox.address.ip().to_string(),
            user: Some(sandbox::USER.to_owned()),
            port: Some(sandbox.address.port()),
            directory: None,
            identities: vec![files.identity.clone()],
            known_hosts: Some(files.known_hosts.clone()),
            // Whatever the newcomer has configured for real hosts does not concern this one.
            ssh_config: false,
        }),
        upstream,
        credential: credential.clone().into(),
        run_id: config::run_id(None),
        rules: Rules::from_pack(Pack::newest()).into(),
        limits: Limits {
            max_body: BODY_LIMIT_BYTES,
            ..Limits::default()
        },
        rate: None,
        tunnel: TunnelChoice::SshReverse,
        gateway: GatewayChoice::Builtin,
        streams: None,
        state_dir: None,
        resume: false,
        returns: None,
        unix_socket: None,
        passed: None,
        allow_exposed_forward: false,
        hold: None,
    })
}

/// The key and known hosts of the demo's SSH client, in a folder only we can read; gone when dropped.
struct Files {
    identity: PathBuf,
    known_hosts: PathBuf,
    _folder: tempfile::TempDir,
}

impl Files {
    fn write(client_key: &russh::keys::PrivateKey, sandbox: &Sandbox) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("paperclip-bridge-demo-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()?;
        let key = client_key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
        Ok(Self {
            identity: private_file(folder.path(), "id_ed25519", &key)?,
            known_hosts: private_file(folder.path(), "known_hosts", &sandbox.known_hosts()?)?,
            _folder: folder,
        })
    }
}

fn private_file(folder: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let path = folder.join(name);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?
        .write_all(text.as_bytes())?;
    Ok(path)
}

/// What the agent does, in order.
async fn calls(agent: &Agent) -> Vec<Step> {
    const COMMENTS: &str = "POST /api/issues/PAP-1/comments";
    let oversize = "x".repeat(usize::try_from(BODY_LIMIT_BYTES).unwrap_or(usize::MAX));
    let body = |text: &str| Some(format!(r#"{{"body":"{text}"}}"#));

    let mut steps = Vec::new();
    let mut show = |did: &str, promised: &str, came, as_promised: fn(&Reply) -> bool| {
        steps.push(judge(did, promised, came, as_promised));
    };
    show(
        "GET /api/agents/me",
        "200 from the API",
        agent.call("GET /api/agents/me", None).await,
        |reply| reply.status == 200 && reply.text("id") == Some("agent-7"),
    );
    let comment = agent.call(COMMENTS, body("done").as_deref()).await;
    show("POST a comment", "201 from the API", comment, |reply| {
        reply.status == 201
    });
    let secrets = agent.call("GET /api/companies/acme/secrets", None).await;
    show(
        "GET /api/companies/acme/secrets",
        "403 route_not_allowed",
        secrets,
        |reply| is(reply, 403, "route_not_allowed"),
    );
    let around = agent
        .call("GET /api/agents/../companies/acme/secrets", None)
        .await;
    show(
        "GET /api/agents/../companies/acme/secrets",
        "400 path_not_canonical",
        around,
        |reply| is(reply, 400, "path_not_canonical"),
    );
    let stranger = agent
        .call_with_token("GET /api/agents/me", None, "pcb_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
        .await;
    show(
        "GET /api/agents/me with another token",
        "401 invalid_token",
        stranger,
        |reply| is(reply, 401, "invalid_token"),
    );
    let large = agent.call(COMMENTS, body(&oversize).as_deref()).await;
    show(
        "POST a comment above the limit of 1 MiB",
        "413 body_too_large",
        large,
        |reply| is(reply, 413, "body_too_large"),
    );
    let lost = agent.call(COMMENTS, body(LOSE_THE_ANSWER).as_deref()).await;
    let lost_id = lost.as_ref().ok().and_then(|reply| reply.request_id.clone());
    show(
        "POST a comment; the API dies answering",
        "409 outcome_indeterminate",
        lost,
        |reply| is(reply, 409, "outcome_indeterminate"),
    );
    let outcome_path = format!(
        "GET /_bridge/outcome/{}",
        lost_id.unwrap_or_else(|| "unknown".into())
    );
    let outcome = agent.call(&outcome_path, None).await;
    show(
        "GET /_bridge/outcome/ID of that one",
        "200 indeterminate",
        outcome,
        |reply| reply.status == 200 && reply.text("outcome") == Some("indeterminate"),
    );
    steps
}

fn is(reply: &Reply, status: u16, code: &str) -> bool {
    reply.status == status && reply.text("code") == Some(code)
}

fn judge(
    did: &str,
    promised: &str,
    came: io::Result<Reply>,
    as_promised: impl FnOnce(&Reply) -> bool,
) -> Step {
    let (came_out, ok) = match came {
        Ok(reply) => {
            let word = reply.text("code").or_else(|| reply.text("outcome"));
            let came_out = match word {
                Some(word) => format!("{} {word}", reply.status),
                None => format!("{} from the API", reply.status),
            };
            (came_out, as_promised(&reply))
        }
        Err(error) => (format!("no answer: {error}"), false),
    };
    Step {
        did: did.to_owned(),
        promised: promised.to_owned(),
        came_out,
        ok,
    }
}

/// What was seen on either side of the bridge while the agent worked.
fn what_each_side_saw(asked: &[Asked], sandbox: &Sandbox, credential: &Secret, run_id: &str) -> Vec<Step> {
    let reached = asked.len();
    let lost = asked
        .iter()
        .filter(|call| String::from_utf8_lossy(&call.body).contains(LOSE_THE_ANSWER))
        .count();
    let proper = asked
        .iter()
        .all(|call| call.credential && call.run_id.as_deref() == Some(run_id) && !call.smuggled);
    let leaked = sandbox.seen.contains(credential.expose());
    vec![
        Step {
            did: "afterwards: what reached the API".into(),
            promised: "3 calls, the lost once".into(),
            came_out: format!("{reached} calls, the lost {}", times(lost)),
            ok: reached == 3 && lost == 1 && asked.iter().all(|call| !call.what.contains("secrets")),
        },
        Step {
            did: "afterwards: what each of them carried".into(),
            promised: "real credential, run id".into(),
            came_out: if proper {
                "real credential, run id"
            } else {
                "something else"
            }
            .into(),
            ok: proper && reached > 0,
        },
        Step {
            did: "afterwards: real credential in the sandbox".into(),
            promised: "never".into(),
            came_out: if leaked { "it was there" } else { "never" }.into(),
            // The token did pass there, so the search does find what is there.
            ok: !leaked && sandbox.seen.contains("Authorization: Bearer pcb_"),
        },
    ]
}

fn times(count: usize) -> String {
    match count {
        1 => "once".into(),
        count => format!("{count} times"),
    }
}

/// Ends the session and looks whether anything still listens.
async fn end(session: OpenSession, agent: &Agent) -> Step {
    let left = session.close().await.err().map(|left| left.to_string());
    let listening = agent.is_answered().await;
    let came_out = match (&left, listening) {
        (None, false) => "nothing".into(),
        (None, true) => "the URL in the sandbox".into(),
        (Some(left), _) => left.clone(),
    };
    Step {
        did: "the session ends: what still listens".into(),
        promised: "nothing".into(),
        came_out,
        ok: left.is_none() && !listening,
    }
}
