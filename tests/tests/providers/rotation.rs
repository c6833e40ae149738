//! A key that is rotated under a provider: what it refused is read anew at once, and the call made once more.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fakes::FakeE2b;
use fakes::daytona::{self, Daytona};
use fakes::e2b;
use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::conformance::sh;
use paperclip_bridge_tests::relayed::{self, scope};
use paperclip_bridge_tests::rotating::Rotating;
use paperclip_bridge_tests::workerd::{Settings, TOKEN, Workerd, installed, key};
use runners::DuplexRequest;
use runners::http::HttpClient;
use runners::provider::{Provider, ProviderError, ProviderSettings, find};
use serde_json::{Value, json};

const KEY: &str = "aws-sm:eu-central-1/key";
const ROTATED: &str = "rotated_00112233445566778899";

fn provider(name: &str, config: &Value, secrets: &Arc<Rotating>) -> Arc<dyn Provider> {
    let settings = ProviderSettings {
        config: config.as_object().unwrap().clone(),
        secrets: Arc::<Rotating>::clone(secrets),
        signer: Arc::<Rotating>::clone(secrets),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    (find(name).unwrap().build)(settings).unwrap()
}

/// The fake, our provider at it, and the place of its key.
async fn at_e2b() -> (FakeE2b, Arc<dyn Provider>, Arc<Rotating>) {
    let (fake, secrets) = (FakeE2b::start().await, Arc::<Rotating>::default());
    secrets.put(KEY, e2b::API_KEY);
    let config = json!({"apiKey": KEY, "apiUrl": fake.url(), "sandboxUrl": fake.url()});
    let provider = provider("e2b", &config, &secrets);
    (fake, provider, secrets)
}

async fn at_daytona() -> (Daytona, Arc<dyn Provider>, Arc<Rotating>) {
    let (fake, secrets) = (Daytona::start().await, Arc::<Rotating>::default());
    secrets.put(KEY, daytona::API_KEY);
    let config = json!({"apiKey": KEY, "apiUrl": fake.api_url()});
    let provider = provider("daytona", &config, &secrets);
    (fake, provider, secrets)
}

#[tokio::test]
async fn e2b_goes_on_with_a_key_that_was_rotated_under_a_lease() {
    let (fake, provider, secrets) = at_e2b().await;
    let lease = provider.acquire(&scope()).await.unwrap();

    secrets.put(KEY, ROTATED);
    fake.rotate_key(ROTATED);
    provider.keep_alive(&lease).await.unwrap();
    let another = provider.acquire(&scope()).await.unwrap();

    assert_eq!(secrets.rejected(), [KEY], "it is read anew once");
    assert_eq!(fake.sandboxes().len(), 2);
    for lease in [lease, another] {
        provider.destroy(&lease).await.unwrap();
    }
}

#[tokio::test]
async fn daytona_goes_on_with_a_key_that_was_rotated_under_a_lease() {
    let (fake, provider, secrets) = at_daytona().await;
    let lease = provider.acquire(&scope()).await.unwrap();
    let runner = provider.runner(&lease).unwrap();

    secrets.put(KEY, ROTATED);
    fake.rotate_key(ROTATED);
    let ran = runner.execute(sh("echo here")).await.unwrap();
    let request = DuplexRequest {
        command: "cat".to_owned(),
        ..DuplexRequest::default()
    };
    let duplex = runner.open_duplex(request).await;

    assert_eq!(ran.stdout, b"here\n");
    assert!(duplex.is_ok(), "{duplex:?}");
    assert_eq!(secrets.rejected(), [KEY], "it is read anew once");
    provider.destroy(&lease).await.unwrap();
}

#[tokio::test]
async fn a_worker_is_called_with_the_bearer_and_the_key_that_it_takes_now() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let worker = Workerd::start(&Settings::default());
    let secrets = Arc::<Rotating>::default();
    for (bearer, signing) in [
        ("the-bearer-of-yesterday", STANDARD.encode(key())),
        (TOKEN, STANDARD.encode([7; 32])),
    ] {
        secrets.put("env:WORKER_TOKEN", bearer);
        secrets.put("env:WORKER_KEY", &signing);
        let shared: Arc<Rotating> = Arc::clone(&secrets);
        let provider = relayed::provider_with(relayed::config(&worker, json!({})), shared.clone());
        // Kept before it is rotated.
        for reference in ["env:WORKER_TOKEN", "env:WORKER_KEY"] {
            runners::provider::SecretSource::rejected(&*shared, reference);
            runners::provider::SecretSource::resolve(&*shared, reference)
                .await
                .unwrap();
        }
        secrets.put("env:WORKER_TOKEN", TOKEN);
        secrets.put("env:WORKER_KEY", &STANDARD.encode(key()));

        let lease = provider.acquire(&scope()).await.unwrap();

        provider.destroy(&lease).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_is_refused_and_has_not_changed_is_told_after_one_call() {
    let (e2b, at_e2b, of_e2b) = at_e2b().await;
    let (daytona, at_daytona, of_daytona) = at_daytona().await;
    e2b.rotate_key(ROTATED);
    daytona.rotate_key(ROTATED);

    for (provider, secrets) in [(at_e2b, of_e2b), (at_daytona, of_daytona)] {
        let refused = provider.acquire(&scope()).await.unwrap_err();

        assert!(matches!(&refused, ProviderError::Refused(_)), "{refused}");
        assert!(refused.to_string().contains("401"), "{refused}");
        assert_eq!(secrets.rejected(), [KEY]);
    }
    assert_eq!((e2b.calls().len(), daytona.calls().len()), (1, 1));
}
