//! What an operator may set, and what is said of a mistake.

use fakes::FakeE2b;
use fakes::e2b::API_KEY;
use serde_json::{Value, json};

use super::{provider, scope};

fn problem(config: Value) -> String {
    provider(config, |_| None).expect_err("a mistake").to_string()
}

#[test]
fn a_mistake_is_told_with_its_field_and_never_with_a_secret() {
    let key = json!("file:/key");
    for (config, field) in [
        (json!({}), "apiKey"),
        (json!({"apiKey": API_KEY}), "apiKey"),
        (json!({"apiKey": key, "timeoutMs": 0}), "timeoutMs"),
        (json!({"apiKey": key, "timeoutMs": 86_400_001}), "timeoutMs"),
        (json!({"apiKey": key, "onRelease": "keep"}), "onRelease"),
        (json!({"apiKey": key, "apiUrl": "http://api.e2b.app"}), "apiUrl"),
        (
            json!({"apiKey": key, "sandboxUrl": "https://u:p@host"}),
            "sandboxUrl",
        ),
        (json!({"apiKey": key, "requestedCwd": "work"}), "requestedCwd"),
        (json!({"apiKey": key, "user": "a:b"}), "user"),
        (json!({"apiKey": key, "envs": {"A-B": "c"}}), "envs"),
        (json!({"apiKey": key, "templat": "base"}), "templat"),
    ] {
        let problem = problem(config.clone());

        assert!(
            problem.starts_with(&format!("e2b: `{field}` ")),
            "{config}: {problem}"
        );
        assert!(!problem.contains(API_KEY), "{problem}");
    }
}

#[tokio::test]
async fn the_variables_that_operators_know_are_honoured() {
    use std::sync::OnceLock;
    static URL: OnceLock<String> = OnceLock::new();
    let fake = FakeE2b::start().await;
    URL.set(fake.url().to_owned()).expect("set once");
    let known = provider(json!({}), |name| match name {
        "E2B_API_KEY" => Some("a value that only the source of secrets reads".to_owned()),
        "E2B_API_URL" | "E2B_SANDBOX_URL" => URL.get().cloned(),
        _ => None,
    });

    let lease = known
        .expect("a configuration")
        .acquire(&scope())
        .await
        .expect("a lease");

    assert_eq!(fake.sandboxes(), [lease.id]);
}
