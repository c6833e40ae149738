//! Signing what a Worker checks: the daemon's own requests to it, and what an agent shows to its relay.
//!
//! Here: [`EnvelopeSigner`] and `agent_key`, which bring the clock and the random bytes. Not here: the formats
//! (`policy::envelope`), nor whether a request goes to the right host, which the caller sees to before it signs.

use std::time::{SystemTime, UNIX_EPOCH};

use policy::Token;
use policy::envelope::{
    KeyId, NONCE, Nonce, RelayBearer, Reply, SIGNATURE, SigningKey, Stamp, Unsigned, sign, verify_reply,
};
use runners::SecretText;
use runners::provider::{RelayRoute, RequestSigner, SignedAnswer, UnsignedRequest};

/// Signs with `PCS1-HMAC-SHA256`, at this machine's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvelopeSigner;

impl RequestSigner for EnvelopeSigner {
    fn sign(
        &self,
        key_id: &str,
        key: &SecretText,
        request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        let name = key_name(key_id)?;
        let key = signing_key(&name, key)?;
        let stamp = Stamp {
            key_id: &name,
            timestamp: now_unix()?,
            nonce: fresh_nonce()?,
        };
        let request = Unsigned {
            method: request.method,
            target: request.target,
            host: request.host,
            content_type: request.content_type,
            context: request.context,
            body: request.body,
        };
        sign(&key, stamp, &request)
            .map(|signed| signed.into_fields().into())
            .map_err(|fault| format!("the request cannot be signed: {fault}"))
    }

    fn is_answer(&self, key: &SecretText, answer: &SignedAnswer<'_>) -> bool {
        let field = |wanted: &str| {
            let found = answer.request.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        let of_request = field(NONCE)
            .and_then(Nonce::parse)
            .zip(field(SIGNATURE).and_then(|value| value.strip_prefix("v1=")));
        let Some(((request_nonce, request_signature), key)) =
            of_request.zip(SigningKey::from_base64(key.expose().trim_ascii()).ok())
        else {
            return false;
        };
        let reply = Reply {
            request_nonce,
            request_signature,
            status: answer.status,
            content_type: answer.content_type,
            part: answer.part,
            body_sha256: answer.sha256,
        };
        verify_reply(&key, &reply, answer.presented)
    }
}

/// What an agent shows behind a relay: its session's token, in a bearer that the Worker checks without asking us. It is
/// good for as long as the route says.
///
/// # Errors
///
/// One line saying why there is none.
pub(crate) async fn agent_key(route: &RelayRoute, token: &Token) -> Result<SecretText, String> {
    let name = key_name(&route.key_id)?;
    let key = route.key.get().await.map_err(|fault| fault.to_string())?;
    let bearer = RelayBearer {
        bridge_id: &route.bridge_id,
        expires_unix: now_unix()?.saturating_add(route.agent_key_life.as_secs()),
        session_token: token.expose(),
    };
    bearer
        .mint(&signing_key(&name, &key)?)
        .map(|bearer| SecretText::new(bearer.as_str()))
        .map_err(|_| format!("`{}` is no name of a relay", route.bridge_id))
}

fn key_name(key_id: &str) -> Result<KeyId, String> {
    KeyId::parse(key_id)
        .ok_or_else(|| format!("`{key_id}` is no name of a signing key; use 1 to 64 of A-Z a-z 0-9 . _ -"))
}

fn signing_key(name: &KeyId, key: &SecretText) -> Result<SigningKey, String> {
    SigningKey::from_base64(key.expose().trim_ascii())
        .map_err(|fault| format!("the signing key `{name}` {fault}"))
}

fn now_unix() -> Result<u64, String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .map(|since| since.as_secs())
        .map_err(|_| "the clock of this machine is before 1970; set it by NTP".to_owned())
}

/// A nonce of the system's generator.
///
/// # Errors
///
/// The generator does not answer.
pub(crate) fn fresh_nonce() -> Result<Nonce, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    Ok(Nonce::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::future::BoxFuture;
    use policy::TokenDigest;
    use policy::envelope::{KeyRing, Received, SeenNonces, Validity, Verifier};
    use runners::http::HttpClient;
    use runners::provider::{ProviderSettings, SecretFault, SecretField, SecretHandle, SecretSource};

    use super::*;

    /// Bytes 0 to 31.
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const REQUEST: UnsignedRequest<'_> = UnsignedRequest {
        method: "POST",
        target: "/api/paperclip-sandbox/v1/exec",
        host: "bridge.example.dev",
        content_type: "application/json",
        context: &[("run-id", "r1")],
        body: b"{}",
    };

    #[test]
    fn what_the_daemon_signs_is_taken_now_and_once() {
        let key = SecretText::new(format!("{KEY}\n"));
        let fields = EnvelopeSigner.sign("k1", &key, &REQUEST).unwrap();
        let mut headers = vec![
            ("Host", REQUEST.host.as_bytes()),
            ("Content-Type", REQUEST.content_type.as_bytes()),
            ("X-Paperclip-Run-Id", b"r1"),
            ("Authorization", b"Bearer b"),
        ];
        headers.extend(fields.iter().map(|(name, value)| (*name, value.as_bytes())));
        let received = Received {
            method: REQUEST.method,
            target: REQUEST.target,
            headers: &headers,
            has_trailers: false,
            body: REQUEST.body,
        };
        let mut keys = KeyRing::default();
        let signing_key = SigningKey::from_base64(KEY).unwrap();
        keys.add(KeyId::parse("k1").unwrap(), signing_key, Validity::default())
            .unwrap();
        let verifier = Verifier::new(keys, [REQUEST.host], 1024, Some(TokenDigest::of(b"b")));
        let seen = RefCell::new(SeenNonces::default());
        let verdict = || verifier.verify(&received, &seen, now_unix().unwrap()).map(drop);

        assert_eq!(verdict(), Ok(()));
        assert!(verdict().is_err());
    }

    struct Given;

    impl SecretSource for Given {
        fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
            Box::pin(std::future::ready(match reference {
                "env:KEY" => Ok(SecretText::new(KEY)),
                other => Err(SecretFault(format!("{other} is not set"))),
            }))
        }
    }

    fn route(key: &str) -> RelayRoute {
        let settings = ProviderSettings {
            config: serde_json::Map::new(),
            secrets: Arc::new(Given),
            signer: Arc::new(EnvelopeSigner),
            http: HttpClient::new([]),
            environment: |_| None,
        };
        let field = SecretField {
            name: "key",
            fallback_env: None,
        };
        let secret = |reference: &str| {
            SecretHandle::required("test", &field, Some(reference.to_owned()), &settings).unwrap()
        };
        RelayRoute {
            base_url: "https://bridge.example.dev".into(),
            agent_url: "https://relay.example.dev".into(),
            bridge_id: "b-1".into(),
            agent_key_life: Duration::from_hours(72),
            expected_host: "bridge.example.dev".into(),
            key_id: "k1".into(),
            key: secret(key),
            bearer: secret("env:BEARER"),
        }
    }

    #[tokio::test]
    async fn what_an_agent_shows_to_a_relay_is_good_for_as_long_as_configured_and_no_longer() {
        let token = Token::from_random([7; 24]);
        let before = now_unix().unwrap();

        let shown = agent_key(&route("env:KEY"), &token).await.unwrap();

        let mut keys = KeyRing::default();
        keys.add(
            KeyId::parse("k1").unwrap(),
            SigningKey::from_base64(KEY).unwrap(),
            Validity::default(),
        )
        .unwrap();
        let bearer = RelayBearer::check(shown.expose(), &keys, before).unwrap();
        assert_eq!((bearer.bridge_id, bearer.session_token), ("b-1", token.expose()));
        let life = 72 * 3600;
        assert!((before + life..=now_unix().unwrap() + life).contains(&bearer.expires_unix));
        let late = RelayBearer::check(shown.expose(), &keys, bearer.expires_unix);
        assert!(late.is_err());
    }

    #[tokio::test]
    async fn without_its_key_an_agent_is_given_nothing() {
        let refused = agent_key(&route("env:OTHER"), &Token::from_random([7; 24])).await;

        assert_eq!(refused.unwrap_err(), "env:OTHER is not set");
    }

    #[test]
    fn each_request_has_a_nonce_of_its_own() {
        let nonce = || {
            let fields = EnvelopeSigner
                .sign("k1", &SecretText::new(KEY), &REQUEST)
                .unwrap();
            let nonce = fields.into_iter().find(|(name, _)| *name == "X-Paperclip-Nonce");
            nonce.unwrap().1
        };

        assert_ne!(nonce(), nonce());
    }

    #[test]
    fn a_key_that_cannot_sign_is_named_and_not_shown() {
        for key in ["c2hvcnQ=", "hunter2-hunter2-hunter2-hunter2-hunter2"] {
            let error = EnvelopeSigner
                .sign("k1", &SecretText::new(key), &REQUEST)
                .unwrap_err();

            assert!(error.contains("the signing key `k1`"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("short"), "{error}");
        }
        assert!(
            EnvelopeSigner
                .sign("k 1", &SecretText::new(KEY), &REQUEST)
                .is_err()
        );
    }
}
