//! A daemon's side of a Worker: the provider as an operator would configure it, and a session behind its push relay.
//!
//! Here: what a test or a benchmark needs to lease a sandbox from a [`Workerd`] and to call back from it. The session is
//! the daemon's own; only what opens it is left out. Not here: the Worker ([`crate::workerd`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bridge::secrets::Secret;
use bridge::session::budget::Budget;
use bridge::session::{PROCESS_BODY_BYTES, Session, SessionParts, Shared};
use bridge::signing::EnvelopeSigner;
use bridge::upstream::{Upstream, UpstreamSettings};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use policy::envelope::{RelayBearer, SigningKey};
use policy::token::Token;
use policy::{Limits, Pack, Rules};
use runners::SecretText;
use runners::http::HttpClient;
use runners::provider::{
    Lease, LeaseScope, Provider, ProviderSettings, RelayRoute, SecretFault, SecretSource, find,
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tunnel::worker::Relay;
use tunnel::{Status, StatusReporter, Tunnel as _, TunnelEnd};

use crate::raw::Agent;
use crate::waiting::within;
use crate::workerd::{KEY_ID, TOKEN, Workerd, key};
use crate::world::{CREDENTIAL, RUN_ID};

const LIMIT: Duration = Duration::from_secs(30);

/// Resolves the two references of [`config`].
struct Secrets;

impl SecretSource for Secrets {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        let value = match reference {
            "env:WORKER_TOKEN" => Ok(SecretText::new(TOKEN)),
            "env:WORKER_KEY" => Ok(SecretText::new(STANDARD.encode(key()))),
            other => Err(SecretFault(format!("{other} is not set"))),
        };
        std::future::ready(value).boxed()
    }
}

/// What an operator would write for a Worker; `changes` are put over it, null takes a field away.
pub fn config(worker: &Workerd, changes: Value) -> Map<String, Value> {
    let mut config = json!({
        "bridgeBaseUrl": worker.url,
        "authToken": "env:WORKER_TOKEN",
        "signingKeyId": KEY_ID,
        "signingKey": "env:WORKER_KEY",
        "relayUrl": worker.relay_url,
        "requestedCwd": worker.workspace(),
    });
    let fields = config.as_object_mut().expect("it is an object");
    if let Value::Object(changes) = changes {
        for (name, value) in changes {
            fields.insert(name, value);
        }
    }
    fields.retain(|_, value| !value.is_null());
    std::mem::take(fields)
}

/// The provider of this configuration.
///
/// # Panics
///
/// Where it is refused.
pub fn provider(config: Map<String, Value>) -> Arc<dyn Provider> {
    provider_with(config, Arc::new(Secrets))
}

/// The same with secrets of the test's own.
///
/// # Panics
///
/// Where it is refused.
pub fn provider_with(config: Map<String, Value>, secrets: Arc<dyn SecretSource>) -> Arc<dyn Provider> {
    let spec = find("worker").expect("it is in the list");
    let settings = ProviderSettings {
        config,
        secrets,
        signer: Arc::new(EnvelopeSigner),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    (spec.build)(settings).expect("the configuration is good")
}

/// Whom the leases of the tests are for.
pub fn scope() -> LeaseScope {
    LeaseScope {
        run_id: RUN_ID.to_owned(),
        environment_id: Some("env-1".to_owned()),
        issue_id: Some("PAP-1".to_owned()),
        ..LeaseScope::default()
    }
}

/// A session behind a Worker's push relay. Dropped, its tunnel is cut as by a crash.
#[derive(Debug)]
pub struct Relayed {
    /// What an agent in the sandbox knows.
    pub agent: Agent,
    /// The tunnel's.
    pub status: watch::Receiver<Status>,
    /// The daemon's.
    pub session: Arc<Session>,
    stop: CancellationToken,
    task: JoinHandle<TunnelEnd>,
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relayed {
    /// Opens a session for the lease, and waits until its relay is connected.
    ///
    /// # Panics
    ///
    /// Where it does not connect in time.
    pub async fn open(provider: &Arc<dyn Provider>, lease: &Lease, upstream: &str) -> Self {
        let route = provider.relay(lease).expect("a relay is configured");
        let mut random = [0; 24];
        getrandom::fill(&mut random).expect("random bytes");
        Self::with_token(route, upstream, &Token::from_random(random)).await
    }

    /// As [`Self::open`] for an agent that has its token from an earlier life of the daemon.
    ///
    /// # Panics
    ///
    /// As [`Self::open`].
    pub async fn with_token(route: RelayRoute, upstream: &str, token: &Token) -> Self {
        let settings = UpstreamSettings::parse(upstream, None).expect("an upstream");
        let session = Session::new(SessionParts {
            run_id: HeaderValue::from_static(RUN_ID),
            tunnel: "worker",
            rules: Rules::from_pack(Pack::newest()).into(),
            limits: Limits::default(),
            rate: None,
            upstream: Upstream::new(&settings, Secret::new(CREDENTIAL)).expect("a client"),
            token: token.digest(),
            audit: None,
            process_bodies: Budget::new(PROCESS_BODY_BYTES),
            shared: Shared::default(),
        });
        let agent = Agent {
            url: route.agent_url.clone(),
            token: bearer(&route.bridge_id, token),
        };
        let relay = Relay::new(route, Arc::new(EnvelopeSigner), HttpClient::new([]));
        let (reporter, status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(Box::new(relay).serve(session.callbacks(), reporter, stop.clone()));
        let mut relayed = Self {
            agent,
            status,
            session,
            stop,
            task,
        };
        relayed.ready().await;
        relayed
    }

    /// Waits until the relay is connected.
    ///
    /// # Panics
    ///
    /// Where it is not in time.
    pub async fn ready(&mut self) {
        let ready = |status: &Status| matches!(status, Status::Ready { .. });
        let waited = within(LIMIT, "the relay is connected", self.status.wait_for(ready)).await;
        waited.expect("the tunnel has not ended");
    }

    /// Ends the tunnel in order.
    ///
    /// # Panics
    ///
    /// Where it does not end in time.
    pub async fn close(mut self) -> TunnelEnd {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until the tunnel ends.
    ///
    /// # Panics
    ///
    /// Where it does not end in time.
    pub async fn ended(&mut self) -> TunnelEnd {
        within(LIMIT, "the tunnel ends", &mut self.task)
            .await
            .expect("the tunnel does not panic")
    }
}

/// What an agent shows: the Worker reads the first four parts, the daemon the last.
fn bearer(bridge_id: &str, token: &Token) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since.expect("a clock after 1970").as_secs();
    let bearer = RelayBearer {
        bridge_id,
        expires_unix: now + 3600,
        session_token: token.expose(),
    };
    let key = SigningKey::from_bytes(key()).expect("a key of 32 bytes");
    bearer.mint(&key).expect("it can stand in a bearer").to_string()
}
