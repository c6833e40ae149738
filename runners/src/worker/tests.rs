//! What needs no Worker: the configuration, names and times. The rest is tested with a Worker, in `tests/`.

use futures_util::future::BoxFuture;

use super::*;
use crate::SecretText;
use crate::http::HttpClient;
use crate::provider::{RequestSigner, SecretFault, SecretSource, UnsignedRequest};

struct Nothing;

impl SecretSource for Nothing {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        std::future::ready(Err(SecretFault(format!("{reference} is not set")))).boxed()
    }
}

impl RequestSigner for Nothing {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("not here".to_owned())
    }
}

fn built(changes: Value) -> Result<Arc<dyn Provider>, ConfigError> {
    let mut config = json!({"bridgeBaseUrl": "https://bridge.example.dev/", "authToken": "env:TOKEN"});
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    build(ProviderSettings {
        config: config.as_object().unwrap().clone(),
        secrets: Arc::new(Nothing),
        signer: Arc::new(Nothing),
        http: HttpClient::new([]),
        environment: |_| None,
    })
}

fn lease_of(id: &str) -> Lease {
    let reply = json!({"providerLeaseId": id, "metadata": {"remoteCwd": "/w", "resumedLease": false}});
    lease(reply.as_object().unwrap().clone(), &LeaseScope::default()).unwrap()
}

#[test]
fn what_contradicts_itself_is_refused_and_names_its_field() {
    let rows = [
        (json!({"bridgeBaseUrl": ""}), "bridgeBaseUrl"),
        (
            json!({"bridgeBaseUrl": "http://bridge.example.dev"}),
            "bridgeBaseUrl",
        ),
        (json!({"authToken": null}), "authToken"),
        (json!({"authToken": "the-token-itself"}), "authToken"),
        (json!({"signingKey": "env:KEY"}), "signingKeyId"),
        (json!({"signingKeyId": "k1"}), "signingKey"),
        (json!({"reuseLease": true}), "reuseLease"),
        (json!({"requestedCwd": "workspace"}), "requestedCwd"),
        (json!({"relayUrl": "https://relay.example.dev"}), "relayUrl"),
        (
            json!({"relayUrl": "https://r.dev/x", "signingKeyId": "k", "signingKey": "env:K"}),
            "relayUrl",
        ),
        (json!({"relayBridgeId": "a b"}), "relayBridgeId"),
        (json!({"timeoutMs": 0}), "timeoutMs"),
        (json!({"timeoutMs": 86_400_001}), "timeoutMs"),
        (json!({"sessionStrategy": "shared"}), "sessionStrategy"),
        (json!({"timeout": 5}), "timeout"),
    ];
    for (changes, field) in rows {
        let error = built(changes.clone()).unwrap_err();

        assert_eq!(error.field, field, "{changes}: {error}");
        assert!(!error.to_string().contains("the-token-itself"), "{error}");
    }
}

#[test]
fn there_is_a_relay_where_one_is_configured_and_each_lease_has_its_own() {
    let relay =
        json!({"relayUrl": "https://relay.example.dev", "signingKeyId": "k1", "signingKey": "env:KEY"});

    assert!(built(json!({})).unwrap().relay(&lease_of("pc-1")).is_none());
    let provider = built(relay).unwrap();
    let route = provider.relay(&lease_of("pc-1")).unwrap();
    let other = provider.relay(&lease_of("pc-2")).unwrap();

    assert_eq!(route.base_url, "https://bridge.example.dev");
    assert_eq!(route.expected_host, "bridge.example.dev");
    assert_eq!(route.agent_url, "https://relay.example.dev");
    assert_eq!(
        route.bridge_id,
        provider.relay(&lease_of("pc-1")).unwrap().bridge_id
    );
    assert_ne!(route.bridge_id, other.bridge_id);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    assert!(route.bridge_id.bytes().all(plain) && route.bridge_id.len() <= 64);
}

#[test]
fn a_lease_that_is_none_is_an_answer_that_cannot_be_used() {
    for reply in [
        json!({}),
        json!({"providerLeaseId": "", "metadata": {"remoteCwd": "/w"}}),
        json!({"providerLeaseId": 5, "metadata": {"remoteCwd": "/w"}}),
        json!({"providerLeaseId": "pc-1"}),
        json!({"providerLeaseId": "pc-1", "metadata": {}}),
        json!({"providerLeaseId": "pc-1", "metadata": {"remoteCwd": "w"}}),
    ] {
        let read = lease(reply.as_object().unwrap().clone(), &LeaseScope::default());

        assert!(matches!(read, Err(ProviderError::Broken(_))), "{reply}");
    }
}

#[test]
fn whom_a_lease_is_for_is_known_again_from_its_metadata() {
    let scope = LeaseScope {
        run_id: "r1".to_owned(),
        issue_id: Some("PAP-1".to_owned()),
        ..LeaseScope::default()
    };
    let reply = json!({"providerLeaseId": "pc-1", "metadata": {"remoteCwd": "/w"}});

    let lease = lease(reply.as_object().unwrap().clone(), &scope).unwrap();

    assert_eq!(scope_of(&lease), scope);
}

#[test]
fn times_and_path_segments_are_read_and_written() {
    let seconds = |text| sleep_after(text).map(|time| time.as_secs());
    let read: Vec<_> = ["90", "90s", "10m", "2h", "", "m", "0", "1d", "-5m"]
        .map(seconds)
        .to_vec();
    let mut expected = vec![Some(90), Some(90), Some(600), Some(7200)];
    expected.resize(9, None);

    assert_eq!(read, expected);
    assert_eq!(encoded("pc-1/ü?"), "pc-1%2F%C3%BC%3F");
}
