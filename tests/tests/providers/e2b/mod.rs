//! E2B: the fake judged by the provider's own clients ([`judges`]) and by what was seen of a real server ([`facts`]),
//! then our provider and its runner on that fake.

mod judges;
mod caller;
mod facts;
mod config;
mod leases;
mod commands;
mod channel;

use std::sync::Arc;
use std::time::Duration;

use fakes::FakeE2b;
use fakes::e2b::API_KEY;
use futures_util::future::BoxFuture;
use paperclip_bridge_tests::conformance;
use paperclip_bridge_tests::conformance::{Difference, Subject};
use runners::http::HttpClient;
use runners::provider::{
    ConfigError, Lease, LeaseScope, Provider, ProviderSettings, RequestSigner, SecretFault, SecretSource,
    UnsignedRequest, find,
};
use runners::{CommandManagedRuntimeRunner, SecretText};
use serde_json::{Value, json};

/// For whatever is waited for.
const LIMIT: Duration = Duration::from_secs(60);

conformance!(e2b_runner, subject);

async fn subject() -> Option<Subject> {
    let world = World::start().await;
    let (_, runner) = world.sandbox().await;
    let subject = Subject::new(runner).differing(
        Difference::BackgroundHoldsResult,
        "the server tells of a process's end when nobody holds its outputs any more",
    );
    Some(subject.keeping(world))
}

/// Knows one secret.
struct OneSecret;

impl SecretSource for OneSecret {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        Box::pin(async move {
            match reference {
                "env:E2B_API_KEY" | "file:/key" => Ok(SecretText::new(API_KEY)),
                "file:/wrong" => Ok(SecretText::new("e2b_ffff")),
                other => Err(SecretFault(format!("{other} is not set"))),
            }
        })
    }
}

/// Nothing of this provider is signed.
struct NoSigner;

impl RequestSigner for NoSigner {
    fn sign(
        &self,
        _key_id: &str,
        _key: &SecretText,
        _request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("nothing is signed here".to_owned())
    }
}

/// A provider of this configuration.
fn provider(
    config: Value,
    environment: fn(&str) -> Option<String>,
) -> Result<Arc<dyn Provider>, ConfigError> {
    (find("e2b").expect("it is in the list").build)(ProviderSettings {
        config: config.as_object().expect("an object").clone(),
        secrets: Arc::new(OneSecret),
        signer: Arc::new(NoSigner),
        http: HttpClient::new([]),
        environment,
    })
}

/// The fake, and our provider pointed at it.
struct World {
    fake: FakeE2b,
    provider: Arc<dyn Provider>,
}

impl World {
    async fn start() -> Self {
        Self::with(json!({})).await
    }

    /// With these fields in the configuration.
    async fn with(more: Value) -> Self {
        let fake = FakeE2b::start().await;
        let mut config = json!({"apiKey": "file:/key", "apiUrl": fake.url(), "sandboxUrl": fake.url()});
        let more = more.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(more);
        let provider = provider(config, |_| None).expect("a configuration");
        Self { fake, provider }
    }

    /// A new lease and its runner.
    async fn sandbox(&self) -> (Lease, Arc<dyn CommandManagedRuntimeRunner>) {
        let lease = self.provider.acquire(&scope()).await.expect("a lease");
        let runner = self.provider.runner(&lease).expect("a runner");
        (lease, runner)
    }
}

fn scope() -> LeaseScope {
    LeaseScope {
        run_id: "run-1".to_owned(),
        environment_id: Some("env-1".to_owned()),
        ..LeaseScope::default()
    }
}
