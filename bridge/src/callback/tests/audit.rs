//! Each callback stands in the audit before it is sent, and again with its outcome; or it is not sent.

use serde_json::Value;

use super::*;
use crate::audit::query::{Entry, Filter, Record};
use crate::audit::{Audit, AuditSettings, Durability, Identities, SessionAudit, query};

struct Audited {
    world: World,
    audit: Arc<Audit>,
    _folder: tempfile::TempDir,
}

async fn audited<F: Future<Output = Option<TcpStream>> + Send + 'static>(
    shape: Shape,
    durability: Durability,
    script: Script<F>,
) -> Audited {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = AuditSettings::in_state_folder(folder.path());
    settings.durability = durability;
    let audit = Audit::open(settings).unwrap();
    let identities = Identities {
        run: Some("run-1".into()),
        agent: Some("agent-1".into()),
        ..Identities::default()
    };
    let hand = SessionAudit::begin(&audit, uuid::Uuid::now_v7(), &identities, "local").unwrap();
    let shape = Shape {
        audit: Some(hand),
        ..shape
    };
    Audited {
        world: world(shape, script).await,
        audit,
        _folder: folder,
    }
}

impl Audited {
    /// Every callback, attempt and outcome.
    fn callbacks(&self) -> Vec<(Record, Record)> {
        let mut callbacks = Vec::new();
        query::read(&self.audit.settings().folder, &Filter::default(), &mut |entry| {
            if let Entry::Callback { attempt, outcome } = entry {
                callbacks.push((attempt.clone(), outcome.clone().unwrap_or_default()));
            }
            true
        })
        .unwrap();
        callbacks
    }

    fn text(&self) -> String {
        let mut text = String::new();
        query::lines(&self.audit.settings().folder, &mut |line| {
            text.push_str(std::str::from_utf8(line).unwrap());
            text.push('\n');
            true
        })
        .unwrap();
        text
    }

    /// From now on nothing can be written.
    fn fails(&self) {
        self.audit.close().unwrap();
    }
}

fn word<'a>(record: &'a Record, key: &str) -> &'a str {
    record.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn a_callback_leaves_an_attempt_and_an_outcome() {
    let audited = audited(Shape::default(), Durability::Write, ok).await;

    audited.world.ask("GET /api/issues/PAP-1?q=secret", "").await;

    let (attempt, outcome) = audited.callbacks().remove(0);
    assert_eq!(
        ["run", "agent", "method", "route", "path", "verdict", "decided_by"].map(|key| word(&attempt, key)),
        [
            "run-1",
            "agent-1",
            "GET",
            "/api/issues/{issue}",
            "/api/issues/PAP-1",
            "allow",
            "policy"
        ]
    );
    assert!(!word(&attempt, "rule").is_empty());
    assert_eq!(
        (&outcome["status"], &outcome["answer_bytes"]),
        (&200.into(), &11.into())
    );
    assert_eq!(word(&outcome, "decided_by"), "upstream");
    assert!(outcome.contains_key("dispatched_us") && outcome.contains_key("upstream_us"));
}

#[tokio::test]
async fn denials_malformed_requests_and_questions_to_the_bridge_are_in_it_too() {
    let audited = audited(Shape::default(), Durability::Write, ok).await;
    let world = &audited.world;

    world.ask("GET /api/no/such/route", "").await;
    world.ask("GET /api/../x", "").await;
    world
        .raw(b"GET /api/agents/me HTTP/1.1\r\nHost: 127.0.0.1:40123\r\n\r\n")
        .await;
    world.raw(b"GET  /x\r\n\r\n").await;
    world.ask("GET /_bridge/whoami", "").await;

    let callbacks = audited.callbacks();
    let said: Vec<_> = callbacks
        .iter()
        .map(|(attempt, outcome)| {
            let decided = ["verdict", "code", "decided_by"].map(|key| word(attempt, key));
            (decided, outcome["status"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        said,
        [
            (["deny", "route_not_allowed", "policy"], 403),
            (["deny", "path_not_canonical", "policy"], 400),
            (["deny", "invalid_token", "bridge"], 401),
            (["deny", "malformed_request", "bridge"], 400),
            (["own", "", "bridge"], 200),
        ]
    );
    assert!(
        callbacks
            .iter()
            .take(4)
            .all(|(attempt, _)| !word(attempt, "reason").is_empty())
    );
}

#[tokio::test]
async fn no_token_credential_query_or_body_is_in_it() {
    let audited = audited(Shape::default(), Durability::Write, ok).await;
    let world = &audited.world;

    world
        .ask(
            "GET /api/issues/PAP-1?q=needle-query",
            "X-Needle: needle-header\r\n",
        )
        .await;
    world
        .post(
            "/api/issues/1/comments?q=needle-query",
            r#"{"body":"needle-body"}"#,
        )
        .await;
    world.ask("GET /api/no?q=needle-query", "").await;

    let text = audited.text();
    assert!(!text.contains("needle") && !text.contains(CREDENTIAL) && !text.contains(world.token.expose()));
}

#[tokio::test]
async fn the_bodies_of_a_write_stand_in_it_by_their_digests() {
    use sha2::Digest as _;
    let hex = |bytes: &[u8]| -> String {
        let digest = sha2::Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let audited = audited(Shape::default(), Durability::Write, ok).await;

    audited.world.post("/api/issues/1/comments", "{\"a\":1}").await;
    audited.world.ask("GET /api/agents/me", "").await;

    let callbacks = audited.callbacks();
    assert_eq!(word(&callbacks[0].1, "request_sha256"), hex(b"{\"a\":1}"));
    assert_eq!(word(&callbacks[0].1, "answer_sha256"), hex(b"{\"ok\":true}"));
    assert!(!callbacks[1].1.contains_key("answer_sha256"), "a read");
}

#[tokio::test]
async fn a_callback_whose_attempt_cannot_be_written_is_refused_and_nothing_is_sent() {
    let audited = audited(Shape::default(), Durability::Write, ok).await;
    audited.fails();

    let read = audited.world.ask("GET /api/agents/me", "").await;
    let written = audited.world.post("/api/issues/1/comments", "{}").await;
    let own = audited.world.ask("GET /_bridge/whoami", "").await;

    for answer in [&read, &written, &own] {
        assert_eq!(code(answer), refused(503, "unavailable"));
        assert!(
            answer.contains("audit") && json(answer)["retryable"] == true,
            "{answer}"
        );
    }
    assert!(audited.world.seen().is_empty());
}

#[tokio::test]
async fn the_attempt_stands_on_the_disk_before_the_upstream_sees_the_callback() {
    for durability in [Durability::Write, Durability::Fsync, Durability::FsyncAll] {
        let audited = audited(Shape::default(), durability, looks).await;
        *LOOK.lock().unwrap() = Some(audited.audit.settings().folder.clone());

        let answer = audited.world.post("/api/issues/1/comments", "{}").await;

        // What the upstream saw of the audit when the callback came.
        assert!(answer.ends_with("attempt"), "{durability:?}: {answer}");
    }
}

static LOOK: Mutex<Option<std::path::PathBuf>> = Mutex::new(None);

/// Answers with the kind of the audit's newest record.
async fn looks(_: String, stream: TcpStream) -> Option<TcpStream> {
    let folder = LOOK.lock().unwrap().clone().unwrap();
    let mut newest = String::new();
    query::lines(&folder, &mut |line| {
        newest = word(&query::record(line).unwrap(), "type").to_owned();
        true
    })
    .unwrap();
    say(
        stream,
        &format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{newest}",
            newest.len()
        ),
    )
    .await
}

#[tokio::test]
async fn what_became_of_a_write_whose_caller_has_gone_is_written_down_later() {
    static GO: tokio::sync::Notify = tokio::sync::Notify::const_new();
    async fn slow(_: String, stream: TcpStream) -> Option<TcpStream> {
        GO.notified().await;
        say(stream, "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await
    }
    let audited = audited(Shape::default(), Durability::Write, slow).await;
    let (mut agent, served) = audited.world.open();
    let head = audited.world.head(
        "POST /api/issues/1/comments",
        "Content-Type: application/json\r\nContent-Length: 2\r\n",
    );
    agent.write_all((head + "{}").as_bytes()).await.unwrap();
    until(|| audited.world.seen().len() == 1).await;

    audited.world.session.cut.cancel();
    served.await.unwrap();
    until(|| audited.text().contains("\"broken\":\"caller_gone\"")).await;
    GO.notify_one();

    until(|| {
        let text = audited.text();
        let settled = text.lines().find(|line| line.contains("\"type\":\"settled\""));
        settled.is_some_and(|line| line.contains("\"outcome\":\"answered\",\"status\":201"))
    })
    .await;
}

/// Waits for a condition; a generous limit only guards against hanging.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
}
