//! The runner of Daytona against the fake: the shared suite on both daemons, and what only this provider can do wrong.

mod leases;
mod commands;
mod channel;

use fakes::daytona::{API_KEY, Daemon, Daytona, Settings};
use futures_util::future::BoxFuture;
use paperclip_bridge_tests::conformance;
use paperclip_bridge_tests::conformance::{Difference, Subject};
use paperclip_bridge_tests::within;
use runners::SecretText;
use runners::daytona::DAYTONA;
use runners::http::HttpClient;
use runners::provider::{
    Lease, LeaseScope, Provider, ProviderSettings, RequestSigner, SecretFault, SecretSource, UnsignedRequest,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// No wait in here should need a tenth of it.
const LIMIT: Duration = Duration::from_secs(60);

conformance!(on_the_newer_daemon, newer);
conformance!(on_the_old_daemon, old);

async fn newer() -> Option<Subject> {
    subject(Settings::default()).await
}

async fn old() -> Option<Subject> {
    // Its images often have nothing but dash.
    let settings = Settings {
        daemon: Daemon::Old,
        shell: "/bin/sh".into(),
        ..Settings::default()
    };
    subject(settings).await
}

async fn subject(settings: Settings) -> Option<Subject> {
    let world = World::with(settings, &json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).expect("its own lease");
    let subject = Subject::new(runner)
        .differing(Difference::StdinCollected, "the toolbox's call knows no stdin")
        .differing(Difference::SignalAsExitCode, "the toolbox tells no signal");
    Some(subject.keeping(world))
}

/// A fake and a provider that is configured for it.
struct World {
    fake: Daytona,
    provider: Arc<dyn Provider>,
}

impl World {
    async fn new(config: &Value) -> Self {
        Self::with(Settings::default(), config).await
    }

    async fn with(settings: Settings, config: &Value) -> Self {
        let fake = Daytona::with(settings).await;
        let mut config = config.as_object().expect("an object").clone();
        config.insert("apiKey".to_owned(), "env:KEY".into());
        config.insert("apiUrl".to_owned(), fake.api_url().into());
        let provider = build(config);
        Self { fake, provider }
    }

    async fn acquire(&self) -> Lease {
        let acquired = within(LIMIT, "a lease", self.provider.acquire(&scope())).await;
        acquired.expect("the fake gives a sandbox")
    }

    fn calls(&self, what: &str) -> Vec<fakes::daytona::Call> {
        let calls = self.fake.calls().into_iter();
        calls.filter(|call| call.line.contains(what)).collect()
    }
}

fn build(config: Map<String, Value>) -> Arc<dyn Provider> {
    let settings = ProviderSettings {
        config,
        secrets: Arc::new(Keys),
        signer: Arc::new(Keys),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    (DAYTONA.build)(settings).expect("the configuration is right")
}

struct Keys;

impl SecretSource for Keys {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        assert_eq!(reference, "env:KEY");
        Box::pin(async { Ok(SecretText::new(API_KEY)) })
    }
}

impl RequestSigner for Keys {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("Daytona signs nothing".to_owned())
    }
}

fn scope() -> LeaseScope {
    LeaseScope {
        run_id: "run-1".to_owned(),
        environment_id: Some("environment-1".to_owned()),
        issue_id: Some("issue-1".to_owned()),
        company_id: Some("company-1".to_owned()),
        requested_cwd: None,
        request_id: None,
    }
}
