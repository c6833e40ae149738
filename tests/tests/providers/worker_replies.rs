//! The provider `worker` and replies that are not its Worker's: changed on the way, stripped of their signature, or made
//! by somebody without the key.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::conformance::sh;
use paperclip_bridge_tests::relayed::{config, provider, scope};
use paperclip_bridge_tests::workerd::{Settings, Workerd, installed};
use runners::RunnerError;
use runners::provider::{Lease, Provider, ProviderError, Released};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// What is done to the answers of one call. Both texts are of one length, so that an answer's framing stays.
#[derive(Clone, Copy)]
struct Meddling {
    call: &'static str,
    from: &'static str,
    to: &'static str,
    /// Ends the connection behind what was changed, and then lets everything pass.
    cuts: bool,
}

type Rule = Arc<Mutex<Option<Meddling>>>;

const fn meddling(call: &'static str, from: &'static str, to: &'static str) -> Meddling {
    Meddling {
        call,
        from,
        to,
        cuts: false,
    }
}

const STRIPPED: (&str, &str) = ("esponse-signature", "esponse-signaturx");

/// A Worker, and somebody on the way to it.
struct Way {
    worker: Workerd,
    url: String,
    rule: Rule,
    _task: AbortOnDropHandle<()>,
}

impl Way {
    async fn new() -> Option<Self> {
        if !can_run(installed().map(drop)) {
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let worker = Workerd::start(&Settings {
            allowed_hosts: vec![host.clone()],
            keep_alive: Duration::from_millis(200),
            ..Settings::default()
        });
        let to = worker.url.trim_start_matches("http://").to_owned();
        let rule = Rule::default();
        let applied = Arc::clone(&rule);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(pass(near, to.clone(), Arc::clone(&applied)));
            }
        });
        Some(Self {
            worker,
            url: format!("http://{host}"),
            rule,
            _task: AbortOnDropHandle::new(task),
        })
    }

    fn set(&self, rule: Option<Meddling>) {
        *self.rule.lock().unwrap() = rule;
    }

    /// A provider of its own, which asks for health anew, and a lease that was had in order.
    async fn leased(&self, changes: Value) -> (Arc<dyn Provider>, Lease) {
        self.set(None);
        let mut config = config(&self.worker, changes);
        config.insert("bridgeBaseUrl".to_owned(), json!(self.url));
        let provider = provider(config);
        let lease = provider.acquire(&scope()).await.expect("a sandbox is leased");
        (provider, lease)
    }
}

/// Carries both ways, and meddles with what comes back.
async fn pass(mut near: TcpStream, to: String, rule: Rule) -> Option<()> {
    let mut far = TcpStream::connect(to).await.ok()?;
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut call = String::new();
    loop {
        tokio::select! {
            count = near.read(&mut asked) => {
                let asked = &asked[..count.ok().filter(|count| *count > 0)?];
                if let Some(line) = String::from_utf8_lossy(asked).lines().next().filter(|line| line.contains(" /api/")) {
                    call = line.to_owned();
                }
                far.write_all(asked).await.ok()?;
            }
            count = far.read(&mut answered) => {
                let answered = &mut answered[..count.ok().filter(|count| *count > 0)?];
                let cuts = meddle(answered, &call, &rule);
                near.write_all(answered).await.ok()?;
                if cuts {
                    return near.shutdown().await.ok();
                }
            }
        }
    }
}

/// Changes what the rule says; true where the connection ends behind it.
fn meddle(answered: &mut [u8], call: &str, rule: &Rule) -> bool {
    let mut rule = rule.lock().unwrap();
    let Some(meddling) = rule.filter(|rule| call.contains(rule.call)) else {
        return false;
    };
    assert_eq!(meddling.from.len(), meddling.to.len());
    let length = meddling.from.len();
    let found = answered
        .windows(length)
        .position(|window| window.eq_ignore_ascii_case(meddling.from.as_bytes()));
    let Some(at) = found else { return false };
    answered[at..at + length].copy_from_slice(meddling.to.as_bytes());
    if meddling.cuts {
        *rule = None;
    }
    meddling.cuts
}

#[tokio::test]
async fn a_plain_reply_that_was_changed_on_the_way_counts_for_nothing() {
    let Some(way) = Way::new().await else { return };
    let rows = [
        ("/resume", "\"resumedLease\":true", "\"resumedLease\":1234"),
        ("/resume", "200 OK", "409 No"),
        ("/resume", "200 OK", "404 No"),
        ("/resume", "200 OK", "401 No"),
        ("/resume", "application/json", "application/jsoo"),
        ("/resume", "application/json", "Application/JSON"),
        ("/resume", "esponse-signature: v1=", "esponse-signature: v1-"),
        ("/resume", STRIPPED.0, STRIPPED.1),
    ];
    for (call, from, to) in rows {
        let (provider, lease) = way.leased(json!({})).await;
        way.set(Some(meddling(call, from, to)));

        let resumed = provider.resume(&lease.id, &lease.metadata, &scope()).await;

        // Of a content type, only its spelling is free.
        if to == "Application/JSON" {
            assert!(resumed.is_ok(), "{resumed:?}");
        } else {
            assert!(
                matches!(resumed, Err(ProviderError::Unproven(_))),
                "{to}: {resumed:?}"
            );
        }
        way.set(None);
        assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
    }
}

#[tokio::test]
async fn a_lost_lease_is_believed_only_with_a_signature() {
    let Some(way) = Way::new().await else { return };
    let (provider, lease) = way.leased(json!({})).await;
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));

    way.set(Some(meddling("/leases/", STRIPPED.0, STRIPPED.1)));
    let stripped = provider.resume(&lease.id, &lease.metadata, &scope()).await;
    let released = provider.release(&lease).await;
    way.set(None);
    let signed = provider.resume(&lease.id, &lease.metadata, &scope()).await;

    assert!(
        matches!(stripped, Err(ProviderError::Unproven(_))),
        "{stripped:?}"
    );
    assert!(
        matches!(released, Err(ProviderError::Unproven(_))),
        "{released:?}"
    );
    assert!(matches!(signed, Err(ProviderError::LeaseLost(_))), "{signed:?}");
}

#[tokio::test]
async fn a_worker_that_signs_no_replies_is_refused_unless_that_is_accepted() {
    let Some(way) = Way::new().await else { return };
    let stripped = meddling(" /api/", STRIPPED.0, STRIPPED.1);
    let acquired = async |changes: Value| {
        let mut config = config(&way.worker, changes);
        config.insert("bridgeBaseUrl".to_owned(), json!(way.url));
        let provider = provider(config);
        (provider.acquire(&scope()).await, provider)
    };
    way.set(Some(stripped));

    let (refused, _) = acquired(json!({})).await;
    let (accepted, provider) = acquired(json!({"unsignedReplies": "accept"})).await;

    assert!(
        matches!(&refused, Err(ProviderError::Refused(text)) if text.contains("unsignedReplies")),
        "{refused:?}"
    );
    let lease = accepted.unwrap();
    // Where none is demanded, a wrong one is refused all the same.
    way.set(Some(meddling(
        "/resume",
        "\"resumedLease\":true",
        "\"resumedLease\":1234",
    )));
    let wrong = provider.resume(&lease.id, &lease.metadata, &scope()).await;
    assert!(matches!(wrong, Err(ProviderError::Unproven(_))), "{wrong:?}");
    way.set(None);
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
}

/// `hello` and a line feed, as the script around a command sends it.
const HELLO: &str = "aGVsbG8K";
/// The same for `jello`.
const JELLO: &str = "amVsbG8K";

#[tokio::test]
async fn a_stream_that_was_changed_on_the_way_has_no_result() {
    let Some(way) = Way::new().await else { return };
    let rows = [
        (HELLO, JELLO),
        ("\"timedOut\":false", "\"timedOut\":true "),
        ("event: result", "event: resulx"),
        (
            "event: complete\ndata: {\"signature\":\"v1=",
            "event: complete\ndata: {\"signaturx\":\"v1=",
        ),
        ("event: complete\ndata: {", "event: error\n:x\ndata: {"),
        ("\"exitCode\":0,\"signal\"", "\"exitCode\":1,\"signal\""),
        (": alive\n", ": alivx\n"),
        ("200 OK", "404 No"),
        ("text/event-stream", "text/event-streem"),
    ];
    let (provider, lease) = way.leased(json!({})).await;
    let runner = provider.runner(&lease).unwrap();
    let alone = runner.execute(sh("echo hello")).await.unwrap();
    assert_eq!((alone.exit_code, alone.stdout), (Some(0), b"hello\n".to_vec()));
    for (from, to) in rows {
        // A silent second brings a comment and a signed part.
        let script = if from.starts_with(": ") {
            "sleep 1; echo hello"
        } else {
            "echo hello"
        };
        way.set(Some(meddling("/exec", from, to)));

        let result = runner.execute(sh(script)).await;

        assert!(
            matches!(result, Err(RunnerError::Lost { .. })),
            "{to}: {result:?}"
        );
    }
    way.set(None);
    assert!(runner.execute(sh("true")).await.unwrap().success());
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn output_that_was_changed_before_a_cut_is_found_out_by_the_repeat() {
    let Some(way) = Way::new().await else { return };
    let (provider, lease) = way.leased(json!({})).await;
    let runner = provider.runner(&lease).unwrap();
    for (to, is_good) in [(HELLO, true), (JELLO, false)] {
        way.set(Some(Meddling {
            cuts: true,
            ..meddling("/exec", HELLO, to)
        }));

        let result = runner.execute(sh("echo hello; sleep 1; echo more; exit 3")).await;

        assert!(way.rule.lock().unwrap().is_none(), "the connection was cut");
        if is_good {
            let result = result.unwrap();
            assert_eq!(
                (result.exit_code, result.stdout),
                (Some(3), b"hello\nmore\n".to_vec())
            );
        } else {
            assert!(matches!(result, Err(RunnerError::Lost { .. })), "{result:?}");
        }
    }
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn a_command_whose_output_somebody_holds_ends_with_a_signed_part() {
    let Some(way) = Way::new().await else { return };
    let (provider, lease) = way.leased(json!({})).await;
    let runner = provider.runner(&lease).unwrap();
    let held = || sh("echo hello; sleep 600 & exit 4");

    let result = runner.execute(held()).await.unwrap();
    way.set(Some(meddling("/exec", "event: proof", "event: proox")));
    let unsigned = runner.execute(held()).await;
    way.set(None);

    assert_eq!((result.exit_code, result.stdout), (Some(4), b"hello\n".to_vec()));
    assert!(matches!(unsigned, Err(RunnerError::Lost { .. })), "{unsigned:?}");
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn who_has_the_bearer_and_not_the_key_is_no_worker() {
    if !can_run(installed().map(drop)) {
        return;
    }
    // It takes what others sign by not looking, and answers as a Worker does.
    let impostor = Workerd::start(&Settings {
        auth_mode: "bearer",
        keys: [("k1".to_owned(), vec![7; 32])].into(),
        ..Settings::default()
    });
    let provider = provider(config(&impostor, json!({})));
    let scope = scope();
    let lease = Lease {
        id: "pc-run-1".to_owned(),
        metadata: serde_json::Map::new(),
        remote_cwd: None,
        expires_at: None,
        resumed: true,
    };

    let acquired = provider.acquire(&scope).await;
    let released = provider.release(&lease).await;
    let kept = provider.keep_alive(&lease).await;

    assert!(matches!(acquired, Err(ProviderError::Refused(_))), "{acquired:?}");
    assert!(
        matches!(released, Err(ProviderError::Unproven(_))),
        "{released:?}"
    );
    assert!(matches!(kept, Err(ProviderError::Unproven(_))), "{kept:?}");
}
