//! Two hundred sessions on ten connections: each answers to its own token on its own port, and to no other.
//!
//! One process that holds many sessions is a matter of the library today; the command line opens one each.

use std::collections::HashSet;
use std::sync::Arc;

use bridge::app::{App, GatewayChoice, OpenSession, SessionRequest, SshTarget, TargetSpec, TunnelChoice};
use bridge::secrets::Secret;
use bridge::upstream::UpstreamSettings;
use futures_util::StreamExt as _;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::{Agent, Upstream, within};
use policy::{Limits, Pack, Rules};
use std::time::Duration;

use crate::ssh_can_run;

const CONNECTIONS: usize = 10;
const SESSIONS_EACH: usize = 20;
const QUEUES: usize = 20;
const CREDENTIAL: &str = "credential-of-the-whole-fleet";

#[tokio::test]
async fn two_hundred_sessions_on_ten_connections_each_take_only_their_own_token() {
    if !ssh_can_run() {
        return;
    }
    let server = Sshd::builder().line("MaxStartups 100").start();
    let upstream = Upstream::start().await;
    let rules = Arc::new(Rules::from_pack(Pack::newest()));
    // An `App` shares one connection per host among its sessions; ten of them make ten connections to one host.
    let apps: Vec<App> = (0..CONNECTIONS).map(|_| App::default()).collect();

    let mut sessions: Vec<OpenSession> = Vec::new();
    for app in &apps {
        for number in 0..SESSIONS_EACH {
            let request = request(
                &server,
                &upstream,
                &rules,
                format!("run-{}-{number}", sessions.len()),
            );
            let opened = within(
                Duration::from_secs(60),
                "a session opens",
                Box::pin(app.open(request)),
            )
            .await;
            sessions.push(opened.expect("a session opens"));
        }
    }

    // One sshd process per connection: its monitor and, for a user other than root, its unprivileged half.
    let ports: HashSet<&str> = sessions.iter().map(|session| session.url.as_str()).collect();
    assert_eq!(
        ports.len(),
        CONNECTIONS * SESSIONS_EACH,
        "each session has a port of its own"
    );
    assert_eq!(connections_to(server.port()), CONNECTIONS);
    for (at, session) in sessions.iter().enumerate() {
        // The neighbour on the same connection, and one on the next connection.
        let neighbour = &sessions[at / SESSIONS_EACH * SESSIONS_EACH + (at + 1) % SESSIONS_EACH];
        let stranger = &sessions[(at + SESSIONS_EACH) % sessions.len()];
        let own = agent(session, session)
            .get("/api/agents/me")
            .await
            .expect("an answer");
        assert_eq!(own.status, 200, "session {at} with its own token");
        for other in [neighbour, stranger] {
            let answer = agent(session, other)
                .get("/api/agents/me")
                .await
                .expect("an answer");
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "invalid_token"),
                "session {at}"
            );
        }
    }

    let seen = upstream.seen();
    let runs: HashSet<&str> = seen
        .iter()
        .filter_map(|one| one.header("x-paperclip-run-id"))
        .collect();
    assert_eq!(
        (seen.len(), runs.len()),
        (sessions.len(), sessions.len()),
        "one call of each run, none of another's"
    );
    // All at once: every session has a call under way at the same time.
    let mut calls = tokio::task::JoinSet::new();
    for session in &sessions {
        let agent = agent(session, session);
        calls.spawn(async move { agent.get("/api/agents/me").await.map(|answer| answer.status) });
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.expect("a call"), Ok(200));
    }
    for session in sessions {
        session.close().await.expect("a clean end");
    }
    assert_eq!(server.forwards(), [], "nothing listens afterwards");
}

#[tokio::test]
async fn twenty_queues_on_one_host_are_served_at_once_at_ten_sessions_a_connection() {
    if !ssh_can_run() {
        return;
    }
    let server = Sshd::builder().line("MaxSessions 10").start();
    let upstream = Upstream::start().await;
    let rules = Arc::new(Rules::from_pack(Pack::newest()));
    let app = App::default();
    let mut opening = futures_util::stream::FuturesUnordered::new();
    for number in 0..QUEUES {
        let mut request = request(&server, &upstream, &rules, format!("run-{number}"));
        request.tunnel = TunnelChoice::Queue;
        opening.push(Box::pin(app.open(request)));
    }
    let mut sessions = Vec::new();
    while let Some(opened) = within(Duration::from_secs(120), "a session opens", opening.next()).await {
        sessions.push(opened.expect("a session opens"));
    }

    let mut calls = tokio::task::JoinSet::new();
    for session in &sessions {
        let agent = agent(session, session);
        calls.spawn(async move { agent.get("/api/agents/me").await.map(|answer| answer.status) });
    }
    while let Some(call) = within(Duration::from_secs(120), "a call is answered", calls.join_next()).await {
        assert_eq!(call.expect("a call"), Ok(200));
    }

    let runs: HashSet<String> = upstream
        .seen()
        .iter()
        .filter_map(|one| one.header("x-paperclip-run-id").map(str::to_owned))
        .collect();
    assert_eq!((sessions.len(), runs.len()), (QUEUES, QUEUES));
    assert!(sessions.iter().all(|session| session.tunnel == "queue_v1"));
    for session in sessions {
        session.close().await.expect("a clean end");
    }
}

/// An agent at the URL of `at`, with the token of `holder`.
fn agent(at: &OpenSession, holder: &OpenSession) -> Agent {
    Agent {
        url: at.url.clone(),
        token: holder
            .token
            .as_ref()
            .expect("a new session has one")
            .expose()
            .to_owned(),
    }
}

fn request(server: &Sshd, upstream: &Upstream, rules: &Arc<Rules>, run_id: String) -> SessionRequest {
    let access = server.access();
    SessionRequest {
        whose: bridge::audit::Identities::default(),
        named: None,
        target: TargetSpec::Ssh(SshTarget {
            host: "127.0.0.1".into(),
            user: Some(server.user()),
            port: Some(server.port()),
            directory: None,
            identities: vec![access.identity],
            known_hosts: Some(access.known_hosts),
            ssh_config: false,
        }),
        upstream: UpstreamSettings::parse(&upstream.url(), None).expect("a URL"),
        credential: Secret::new(CREDENTIAL).into(),
        run_id,
        rules: Arc::clone(rules).into(),
        limits: Limits::default(),
        rate: None,
        tunnel: TunnelChoice::Auto,
        gateway: GatewayChoice::Builtin,
        streams: None,
        state_dir: None,
        resume: false,
        returns: None,
        unix_socket: None,
        passed: None,
        allow_exposed_forward: false,
        hold: None,
    }
}

/// Established connections of this process to a port on loopback.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            Some((*fields.get(2)?, *fields.get(3)?))
        })
        .filter(|(remote, state)| remote.ends_with(&suffix) && *state == "01")
        .count()
}
