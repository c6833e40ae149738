//! Secrets by reference, through the whole daemon: AWS is moto with signatures checked.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use paperclip_bridge_tests::binary::{BridgeCommand, Finished, LIMIT};
use paperclip_bridge_tests::moto::{self, Asked, Keys, Moto, REGION};
use paperclip_bridge_tests::world::RUN_ID;
use paperclip_bridge_tests::{Agent, Script, Upstream, can_run, waiting};

const NAME: &str = "team/paperclip/api-key";
const VALUE: &str = "value-of-secrets-manager-71c2";
const NEW_VALUE: &str = "rotated-value-of-secrets-manager-83fa";

/// A call that policy allows.
const CALL: &str = "/api/agents/me";

fn reference(rest: &str) -> String {
    format!("aws-sm:{REGION}/{rest}")
}

/// `paperclip-bridge SUBCOMMAND local` with a credential of AWS.
fn daemon(subcommand: &str, upstream: &Upstream, endpoint: &str, reference: &str) -> BridgeCommand {
    BridgeCommand::new([
        subcommand,
        "local",
        "--upstream",
        &upstream.url(),
        "--run-id",
        RUN_ID,
    ])
    .args(["--credential", reference])
    .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint)
    .env("AWS_EC2_METADATA_DISABLED", "true")
}

fn with_keys(command: BridgeCommand, keys: &Keys) -> BridgeCommand {
    let command = command
        .env("AWS_ACCESS_KEY_ID", &keys.id)
        .env("AWS_SECRET_ACCESS_KEY", &keys.key);
    match &keys.token {
        Some(token) => command.env("AWS_SESSION_TOKEN", token),
        None => command,
    }
}

/// moto that holds [`VALUE`] under [`NAME`] and checks signatures, with the keys that it takes.
async fn aws() -> (Moto, Keys) {
    let mut moto = Moto::start().await;
    let keys = moto.user().await;
    moto.put(NAME, VALUE).await;
    (moto, keys)
}

fn moto_can_run() -> bool {
    can_run(moto::here())
}

/// The bearer of the newest request at the upstream.
fn bearer(upstream: &Upstream) -> String {
    let seen = upstream.seen();
    let last = seen.last().expect("a request came");
    last.header("authorization").unwrap_or_default().to_owned()
}

fn assert_refused(ended: &Finished, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    for word in words {
        assert!(
            ended.stderr.contains(word),
            "{word} is missing in {}",
            ended.stderr
        );
    }
}

/// Calls until the upstream sees `value`.
async fn until_sent(agent: &Agent, upstream: &Upstream, value: &str) {
    let wanted = format!("Bearer {value}");
    let calls = async {
        loop {
            agent.get(CALL).await.expect("an answer");
            if bearer(upstream) == wanted {
                return;
            }
        }
    };
    waiting::within(LIMIT, "the new credential is sent", calls).await;
}

#[test]
fn moto_is_installed_as_pinned() {
    moto_can_run();
}

#[tokio::test]
async fn a_credential_of_aws_reaches_the_upstream_and_nothing_else() {
    if !moto_can_run() || !can_run(waiting::program("curl").map(drop)) {
        return;
    }
    let (mut moto, keys) = aws().await;
    let json = format!(r#"{{"user":"x","token":"{VALUE}"}}"#);
    let arn = moto.put("in-json", &json).await;
    let upstream = Upstream::start().await;
    let script = r#"curl -sS -H "Authorization: Bearer $PAPERCLIP_API_KEY" "$PAPERCLIP_API_URL/api/agents/me"
        env; tr '\0' '\n' < /proc/$PPID/cmdline; tr '\0' '\n' < /proc/self/environ"#;

    for reference in [
        reference(NAME),
        reference("in-json#token"),
        reference(&format!("{arn}#token")),
    ] {
        let ended = with_keys(daemon("run", &upstream, &moto.url(), &reference), &keys)
            .args(["--log-level", "trace"])
            .command(["sh", "-c", script])
            .finish()
            .await;

        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(r#"{"ok":true}"#), "{}", ended.stdout);
        assert_eq!(bearer(&upstream), format!("Bearer {VALUE}"));
        for secret in [VALUE, &keys.key] {
            assert!(!ended.stdout.contains(secret), "the command saw {secret}");
            assert!(!ended.stderr.contains(secret), "the log has {secret}");
        }
    }
}

#[tokio::test]
async fn keys_of_a_role_and_of_a_profile_sign_as_well() {
    if !moto_can_run() {
        return;
    }
    let (mut moto, keys) = aws().await;
    moto.put_binary("binary", VALUE).await;
    let upstream = Upstream::start().await;
    let role = keys.role.clone().expect("moto gives a role's keys");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let text = format!(
        "[ci]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.id, keys.key
    );
    std::fs::write(&file, text).unwrap();
    let daemon =
        || daemon("run", &upstream, &moto.url(), &reference("binary")).args(["--log-level", "trace"]);

    let of_role = with_keys(daemon(), &role).command(["true"]).finish().await;
    let of_profile = daemon()
        .env("AWS_PROFILE", "ci")
        .env("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())
        .command(["true"])
        .finish()
        .await;

    assert_eq!(
        (of_role.code, of_profile.code),
        (Some(0), Some(0)),
        "{}{}",
        of_role.stderr,
        of_profile.stderr
    );
    for secret in [&role.key, role.token.as_ref().unwrap(), &keys.key] {
        assert!(!format!("{}{}", of_role.stderr, of_profile.stderr).contains(secret));
    }
    let seen = moto.seen().await;
    let tokens: Vec<bool> = seen.iter().map(|asked| asked.session_token).collect();
    assert_eq!(tokens, [true, false]);
}

#[tokio::test]
async fn wrong_keys_end_with_3_and_are_not_repeated() {
    if !moto_can_run() {
        return;
    }
    let (moto, mut keys) = aws().await;
    let upstream = Upstream::start().await;
    keys.key = format!("wrong{}", keys.key);

    let ended = with_keys(daemon("open", &upstream, &moto.url(), &reference(NAME)), &keys)
        .finish()
        .await;

    assert_refused(
        &ended,
        3,
        &["403", "SignatureDoesNotMatch", NAME, "AWS_ACCESS_KEY_ID"],
    );
    assert!(
        !ended.stderr.contains(&keys.key) && !ended.stderr.contains(VALUE),
        "{}",
        ended.stderr
    );
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_secret_that_is_missing_ends_with_3_and_says_where_it_was_looked_for() {
    if !moto_can_run() {
        return;
    }
    let (mut moto, keys) = aws().await;
    moto.put("in-json", r#"{"a":"b"}"#).await;
    let upstream = Upstream::start().await;
    let host = moto.url().replace("http://", "");
    let open = async |rest: &str| {
        with_keys(daemon("open", &upstream, &moto.url(), &reference(rest)), &keys)
            .finish()
            .await
    };

    assert_refused(
        &open("absent").await,
        3,
        &[&reference("absent"), REGION, &host, "AWS_ACCESS_KEY_ID"],
    );
    assert_refused(&open("in-json#c").await, 3, &[&reference("in-json#c"), "`c`"]);
    let without_keys = daemon("open", &upstream, &moto.url(), &reference(NAME))
        .finish()
        .await;
    assert_refused(
        &without_keys,
        3,
        &[
            "AWS_ACCESS_KEY_ID",
            "`default`",
            ".aws/credentials",
            "AWS_EC2_METADATA_DISABLED",
        ],
    );
}

#[tokio::test]
async fn a_rotated_secret_reaches_a_running_session_when_its_lifetime_ends() {
    if !moto_can_run() {
        return;
    }
    let (mut moto, keys) = aws().await;
    let upstream = Upstream::start().await;
    let bridge = with_keys(daemon("open", &upstream, &moto.url(), &reference(NAME)), &keys)
        .args(["--json", "--until-stdin-closes", "--secrets-cache-ttl", "100ms"])
        .open()
        .await
        .expect("it opens");
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    until_sent(&agent, &upstream, VALUE).await;

    moto.put(NAME, NEW_VALUE).await;

    until_sent(&agent, &upstream, NEW_VALUE).await;
    let ended = bridge.close().await;
    assert!(!ended.stderr.contains(VALUE) && !ended.stderr.contains(NEW_VALUE));
}

#[tokio::test]
async fn a_401_of_the_upstream_makes_a_rotated_secret_be_read_before_its_time() {
    if !moto_can_run() {
        return;
    }
    let (mut moto, keys) = aws().await;
    let upstream = Upstream::start().await;
    let bridge = with_keys(daemon("open", &upstream, &moto.url(), &reference(NAME)), &keys)
        .args(["--json", "--until-stdin-closes", "--secrets-cache-ttl", "24h"])
        .open()
        .await
        .expect("it opens");
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    moto.put(NAME, NEW_VALUE).await;
    upstream.on_next(1, "GET", CALL, Script::json(401, r#"{"error":"unknown key"}"#));

    let refused = agent.get(CALL).await.unwrap();
    let first = bearer(&upstream);
    let taken = agent.get(CALL).await.unwrap();

    assert_eq!((refused.status, first), (401, format!("Bearer {VALUE}")));
    assert_eq!(
        (taken.status, bearer(&upstream)),
        (200, format!("Bearer {NEW_VALUE}"))
    );
    let reads = moto.seen().await;
    assert_eq!(reads.len(), 2, "{reads:?}");
}

#[tokio::test]
async fn while_aws_is_down_the_old_value_serves_for_its_time_and_then_callbacks_are_refused() {
    if !moto_can_run() {
        return;
    }
    let (moto, keys) = aws().await;
    let upstream = Upstream::start().await;
    let open = async |max_stale: &str| {
        let daemon = with_keys(daemon("open", &upstream, &moto.url(), &reference(NAME)), &keys)
            .args(["--json", "--until-stdin-closes"])
            .args(["--secrets-cache-ttl", "0s", "--secrets-max-stale", max_stale]);
        let bridge = daemon.open().await.expect("it opens");
        let agent = Agent {
            url: bridge.opened.url.clone(),
            token: bridge.opened.token.clone(),
        };
        (bridge, agent)
    };
    let (_patient, patient) = open("24h").await;
    let (strict_bridge, strict) = open("0s").await;
    assert_eq!(strict.get(CALL).await.unwrap().status, 200);

    moto.stop().await;

    let served = patient.get(CALL).await.unwrap();
    let sent = upstream.count();
    let refused = strict.get(CALL).await.unwrap();
    let write = strict.post("/api/issues/1/comments", "{}").await.unwrap();
    assert_eq!(served.status, 200);
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"));
    assert_eq!((write.status, write.code().as_str()), (503, "unavailable"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(upstream.count(), sent, "nothing was sent without a credential");
    assert!(
        !refused.text().contains("aws") && !refused.text().contains("127.0.0.1"),
        "{}",
        refused.text()
    );
    let ended = strict_bridge.close().await;
    assert!(
        ended.stderr.contains(NAME) && !ended.stderr.contains(VALUE),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn aws_that_cannot_be_reached_at_the_start_ends_with_4() {
    let upstream = Upstream::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let keys = Keys {
        id: "AKIDEXAMPLE".into(),
        key: "secret-key-of-nobody".into(),
        token: None,
        role: None,
    };

    let ended = with_keys(daemon("open", &upstream, &endpoint, &reference(NAME)), &keys)
        .finish()
        .await;

    assert_refused(
        &ended,
        4,
        &[NAME, "does not answer", &endpoint.replace("http://", "")],
    );
}

#[tokio::test]
async fn the_role_of_the_instance_is_asked_for_by_version_2_only() {
    if !moto_can_run() {
        return;
    }
    let mut moto = Moto::start().await;
    moto.put(NAME, VALUE).await;
    let upstream = Upstream::start().await;

    let ended = daemon("run", &upstream, &moto.url(), &reference(NAME))
        .env("AWS_EC2_METADATA_DISABLED", "false")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &moto.url())
        .command(["true"])
        .finish()
        .await;

    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let asked = moto.seen().await;
    let (of_secrets, of_metadata): (Vec<Asked>, _) =
        asked.into_iter().partition(|asked| asked.target.is_some());
    assert!(
        of_secrets.iter().all(|asked| asked.session_token) && of_secrets.len() == 1,
        "{of_secrets:?}"
    );
    let methods: Vec<_> = of_metadata
        .iter()
        .map(|asked| (asked.method.as_str(), asked.metadata_token))
        .collect();
    assert_eq!(
        methods,
        [("PUT", false), ("GET", true), ("GET", true)],
        "{of_metadata:?}"
    );
}

#[tokio::test]
async fn aws_is_trusted_by_the_named_bundle_alone() {
    let aws = Upstream::start_tls().await;
    aws.on(
        "POST",
        "/",
        Script::json(200, &format!(r#"{{"SecretString":"{VALUE}"}}"#)),
    );
    let upstream = Upstream::start().await;
    let bundle = aws.authority().unwrap().file();
    let keys = Keys {
        id: "AKIDEXAMPLE".into(),
        key: "secret-key-of-nobody".into(),
        token: None,
        role: None,
    };
    let run = || with_keys(daemon("run", &upstream, &aws.url(), &reference(NAME)), &keys).command(["true"]);

    let trusted = run()
        .env("AWS_CA_BUNDLE", bundle.to_str().unwrap())
        .finish()
        .await;
    let distrusted = run().finish().await;

    assert_eq!(trusted.code, Some(0), "{}", trusted.stderr);
    assert_refused(&distrusted, 4, &[NAME, "certificate"]);
}

#[tokio::test]
async fn a_file_that_others_can_read_ends_with_3_and_a_replaced_one_reaches_a_running_session() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let key = write("key", VALUE, 0o644);
    let reference = format!("file:{}", key.display());
    let open = || {
        daemon("open", &upstream, "http://127.0.0.1:9", &reference).args(["--json", "--until-stdin-closes"])
    };

    let refused = open().finish().await;
    assert_refused(&refused, 3, &[&reference, "chmod 600"]);

    write("key", VALUE, 0o600);
    let bridge = open().open().await.expect("it opens");
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    agent.get(CALL).await.unwrap();
    assert_eq!(bearer(&upstream), format!("Bearer {VALUE}"));
    std::fs::rename(write("new", NEW_VALUE, 0o600), &key).unwrap();
    agent.get(CALL).await.unwrap();
    assert_eq!(bearer(&upstream), format!("Bearer {NEW_VALUE}"));
    std::fs::remove_file(&key).unwrap();
    let gone = agent.get(CALL).await.unwrap();
    assert_eq!((gone.status, gone.code().as_str()), (503, "unavailable"));
    let ended = bridge.close().await;
    assert!(
        !ended.stderr.contains(VALUE) && !ended.stderr.contains(NEW_VALUE),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_credential_of_systemd_is_taken_from_its_folder() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("api-key");
    std::fs::write(&file, VALUE).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    let run = |reference: &str| {
        daemon("run", &upstream, "http://127.0.0.1:9", reference)
            .env("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())
            .command(["true"])
    };

    let found = run("cred:api-key").finish().await;
    let missing = run("cred:other").finish().await;

    assert_eq!(found.code, Some(0), "{}", found.stderr);
    assert_refused(&missing, 3, &["cred:other", folder.path().to_str().unwrap()]);
}

#[tokio::test]
async fn sso_and_processes_of_a_profile_are_refused_by_name() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    for key in ["credential_process", "sso_session"] {
        std::fs::write(&config, format!("[profile work]\n{key} = anything\n")).unwrap();

        let ended = daemon("open", &upstream, "http://127.0.0.1:9", &reference(NAME))
            .env("AWS_PROFILE", "work")
            .env("AWS_CONFIG_FILE", config.to_str().unwrap())
            .finish()
            .await;

        assert_refused(&ended, 3, &["`work`", key, "not supported"]);
    }
}
