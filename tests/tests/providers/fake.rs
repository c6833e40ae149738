//! The runner of the provider for tests, in one of its sandboxes.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use paperclip_bridge_tests::conformance;
use paperclip_bridge_tests::conformance::Subject;
use runners::SecretText;
use runners::http::HttpClient;
use runners::provider::{
    LeaseScope, ProviderSettings, RequestSigner, SecretFault, SecretSource, UnsignedRequest, find,
};
use serde_json::{Value, json};

conformance!(fake_runner, whole);
conformance!(fake_runner_with_nothing_optional, bare);

async fn whole() -> Option<Subject> {
    Some(subject(json!({})).await)
}

async fn bare() -> Option<Subject> {
    let less = json!({"duplex": false, "fileTransfer": false, "streamingOutput": false, "background": false});
    Some(subject(less).await)
}

async fn subject(mut config: Value) -> Subject {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    config["cloud"] = json!(folder.path().join("cloud"));
    let spec = find("fake").expect("it is among the providers");
    let provider = (spec.build)(settings(config)).expect("the configuration is good");
    let scope = LeaseScope {
        run_id: "run-1".to_owned(),
        ..LeaseScope::default()
    };
    let lease = provider.acquire(&scope).await.expect("a lease is acquired");
    let runner = provider.runner(&lease).expect("a lease has a runner");
    Subject::new(runner).keeping(folder)
}

fn settings(config: Value) -> ProviderSettings {
    ProviderSettings {
        config: config.as_object().cloned().expect("an object"),
        secrets: Arc::new(Nothing),
        signer: Arc::new(Nothing),
        http: HttpClient::new([]),
        environment: |_| None,
    }
}

struct Nothing;

impl SecretSource for Nothing {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        std::future::ready(Err(SecretFault(format!("{reference} is not known here")))).boxed()
    }
}

impl RequestSigner for Nothing {
    fn sign(
        &self,
        _key_id: &str,
        _key: &SecretText,
        _request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("nothing is signed here".to_owned())
    }
}
