//! The provider `worker` against the Worker template in its own runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paperclip_bridge_tests::conformance::{Difference, Shared, Subject, sh};
use paperclip_bridge_tests::relayed::{config, provider, scope};
use paperclip_bridge_tests::workerd::{Settings, TOKEN, Workerd, installed};
use paperclip_bridge_tests::{can_run, conformance};
use runners::provider::{Lease, Provider, ProviderError, Released};
use runners::{CommandManagedRuntimeRunner, RunnerError};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

static WORKER: Shared<Workerd> = Shared::new();

conformance!(worker_runner, subject);

async fn subject() -> Option<Subject> {
    let leased = leased(json!({})).await?;
    let subject = Subject::new(leased.runner())
        .differing(
            Difference::SignalAsExitCode,
            "the bridge API carries a shell's exit code and no signal",
        )
        .differing(
            Difference::StdinCollected,
            "the bridge API takes all of stdin in the request that starts the command",
        );
    Some(subject.keeping(leased))
}

/// A lease on the Worker that the tests share; released by being dropped with the Worker's world.
struct Leased {
    worker: Arc<Workerd>,
    provider: Arc<dyn Provider>,
    lease: Lease,
}

impl Leased {
    fn runner(&self) -> Arc<dyn CommandManagedRuntimeRunner> {
        self.provider
            .runner(&self.lease)
            .expect("the lease is the provider's own")
    }
}

async fn leased(changes: Value) -> Option<Leased> {
    if !can_run(installed().map(drop)) {
        return None;
    }
    let worker = WORKER.get(|| Workerd::start(&Settings::default()));
    let provider = provider(config(&worker, changes));
    let lease = provider.acquire(&scope()).await.expect("a sandbox is leased");
    Some(Leased {
        worker,
        provider,
        lease,
    })
}

#[tokio::test]
async fn a_lease_is_acquired_resumed_kept_alive_and_released() {
    let Some(leased) = leased(json!({})).await else {
        return;
    };
    let (provider, lease) = (&leased.provider, &leased.lease);
    assert!(!lease.resumed && lease.id.starts_with("pc-"), "{lease:?}");

    let resumed = provider
        .resume(&lease.id, &lease.metadata, &scope())
        .await
        .unwrap();
    let next = provider.keep_alive(lease).await.unwrap();
    let released = provider.release(lease).await.unwrap();

    assert!(resumed.resumed && resumed.id == lease.id && resumed.remote_cwd == lease.remote_cwd);
    assert!(next.is_some());
    assert_eq!(released, Released::Destroyed);
    assert_eq!(
        provider.destroy(lease).await,
        Ok(Released::Destroyed),
        "also if it is gone"
    );
    let gone = provider.resume(&lease.id, &lease.metadata, &scope()).await;
    assert!(matches!(gone, Err(ProviderError::LeaseLost(_))), "{gone:?}");
}

#[tokio::test]
async fn a_lease_that_is_used_again_is_stopped_and_keeps_its_files() {
    let changes = json!({"reuseLease": true, "keepAlive": true});
    let Some(leased) = leased(changes).await else {
        return;
    };
    let (provider, lease) = (&leased.provider, &leased.lease);
    let write = provider
        .runner(lease)
        .unwrap()
        .execute(sh("echo kept > note"))
        .await
        .unwrap();
    assert!(write.success());

    assert_eq!(provider.release(lease).await, Ok(Released::Stopped));
    let again = provider.acquire(&scope()).await.unwrap();

    assert_eq!(again.id, lease.id);
    let read = provider
        .runner(&again)
        .unwrap()
        .execute(sh("cat note"))
        .await
        .unwrap();
    assert_eq!(read.stdout, b"kept\n");
    assert_eq!(provider.destroy(&again).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn a_lost_lease_is_told_apart_from_a_failure() {
    let Some(leased) = leased(json!({})).await else {
        return;
    };
    let (provider, lease) = (&leased.provider, &leased.lease);
    let runner = provider.runner(lease).unwrap();
    let failed = runner.execute(sh("exit 9")).await.unwrap();
    assert_eq!(failed.exit_code, Some(9));

    // What a platform does that takes a sandbox away: its files are gone, and with them the sentinel.
    let removed = runner.execute(sh("rm .paperclip-lease.json")).await.unwrap();
    assert!(removed.success());
    let lost = runner.execute(sh("true")).await;

    assert!(matches!(lost, Err(RunnerError::LeaseLost { .. })), "{lost:?}");
    let resumed = provider.resume(&lease.id, &lease.metadata, &scope()).await;
    assert!(matches!(resumed, Err(ProviderError::LeaseLost(_))), "{resumed:?}");
    assert_eq!(provider.destroy(lease).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn the_configured_time_out_reaches_the_process_whatever_the_limit_of_other_calls() {
    // The limit of other calls is shorter than the command's, so that it would cut this one if it held for it.
    let Some(leased) = leased(json!({})).await else {
        return;
    };
    let limits = json!({"timeoutMs": 3000, "bridgeRequestTimeoutMs": 1000});
    let runner = provider(config(&leased.worker, limits))
        .runner(&leased.lease)
        .unwrap();

    let slow = runner.execute(sh("sleep 2; echo done")).await.unwrap();
    let late = runner.execute(sh("echo $$; exec sleep 987")).await.unwrap();

    assert_eq!(slow.stdout, b"done\n", "{slow:?}");
    assert!(late.timed_out, "{late:?}");
    let pid = String::from_utf8(late.stdout).unwrap();
    let gone = runner
        .execute(sh(&format!("kill -0 {} 2>/dev/null", pid.trim())))
        .await
        .unwrap();
    assert!(!gone.success(), "the process goes on");
    assert_eq!(
        leased.provider.destroy(&leased.lease).await,
        Ok(Released::Destroyed)
    );
}

#[tokio::test]
async fn a_command_outlives_its_connection_and_its_result_is_had_by_asking_again() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let proxy = Cutting::bind().await;
    let worker = Workerd::start(&Settings {
        allowed_hosts: vec![proxy.host.clone()],
        ..Settings::default()
    });
    let cut = proxy.serve(&worker.url);
    let provider = provider(config(&worker, json!({"bridgeBaseUrl": cut.url})));
    let lease = provider.acquire(&scope()).await.unwrap();
    let runner = provider.runner(&lease).unwrap();

    let result = runner
        .execute(sh("echo one; sleep 1; echo two; exit 5"))
        .await
        .unwrap();

    assert_eq!(
        (result.exit_code, result.stdout),
        (Some(5), b"one\ntwo\n".to_vec())
    );
    assert!(cut.happened(), "the first connection was cut");
    assert_eq!(provider.destroy(&lease).await, Ok(Released::Destroyed));
}

/// Stands between the runner and the Worker, and cuts the first connection on which output arrives.
struct Cutting {
    listener: TcpListener,
    host: String,
}

struct Cut {
    url: String,
    happened: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Cut {
    fn happened(&self) -> bool {
        self.happened.load(Ordering::Relaxed)
    }
}

impl Cutting {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        Self { listener, host }
    }

    fn serve(self, to: &str) -> Cut {
        let to = to.trim_start_matches("http://").to_owned();
        let happened = Arc::new(AtomicBool::new(false));
        let url = format!("http://{}", self.host);
        let cuts = Arc::clone(&happened);
        let serving = async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = self.listener.accept().await {
                connections.spawn(pass(stream, to.clone(), Arc::clone(&cuts)));
            }
        };
        Cut {
            url,
            happened,
            _task: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }
}

async fn pass(mut near: TcpStream, to: String, cuts: Arc<AtomicBool>) {
    let mut far = TcpStream::connect(to).await.unwrap();
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        tokio::select! {
            count = near.read(&mut asked) => match count {
                Ok(count) if count > 0 => far.write_all(&asked[..count]).await.unwrap(),
                Ok(_) | Err(_) => return,
            },
            count = far.read(&mut answered) => match count {
                Ok(count) if count > 0 => {
                    let word = b"event: stdout";
                    let output = answered[..count].windows(word.len()).any(|window| window == word);
                    if output && !cuts.swap(true, Ordering::Relaxed) {
                        return;
                    }
                    if near.write_all(&answered[..count]).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(_) => return,
            },
        }
    }
}

#[tokio::test]
async fn a_url_of_another_host_is_refused_and_nothing_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = json!({
        "bridgeBaseUrl": format!("http://{}", listener.local_addr().unwrap()),
        "expectedHostHeader": "bridge.example.dev",
        "authToken": "env:WORKER_TOKEN",
    });
    let provider = provider(config.as_object().unwrap().clone());

    let refused = provider.acquire(&scope()).await.unwrap_err();

    let text = refused.to_string();
    assert!(matches!(refused, ProviderError::Refused(_)), "{text}");
    assert!(
        text.contains("host_header_mismatch") && text.contains("nothing was sent"),
        "{text}"
    );
    let nobody = futures_util::FutureExt::now_or_never(listener.accept());
    assert!(nobody.is_none());
}

/// A Worker that answers every connection alike.
async fn scripted(answer: String, changes: Value) -> ProviderError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = json!({
        "bridgeBaseUrl": format!("http://{}", listener.local_addr().unwrap()),
        "authToken": "env:WORKER_TOKEN",
    });
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    let provider = provider(config.as_object().unwrap().clone());
    let scope = scope();
    let serving = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    tokio::select! {
        error = provider.acquire(&scope) => error.unwrap_err(),
        () = serving => unreachable!(),
    }
}

fn answer(status: &str, fields: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_refusal_for_its_time_names_the_clocks() {
    let body = r#"{"error":"timestamp_out_of_window","message":"too old"}"#;
    let late = answer(
        "401 Unauthorized",
        "date: Thu, 01 Jan 2015 00:00:00 GMT\r\n",
        body,
    );

    let text = scripted(late, json!({})).await.to_string();

    assert!(
        text.contains("timestamp_out_of_window") && text.contains("set the clock"),
        "{text}"
    );
    assert!(!text.contains(TOKEN), "{text}");
}

#[tokio::test]
async fn a_redirect_is_an_error_and_is_not_followed() {
    let elsewhere = answer("302 Found", "location: http://127.0.0.1:1/\r\n", "");

    let error = scripted(elsewhere, json!({})).await;

    assert!(
        matches!(&error, ProviderError::Refused(text) if text.contains("redirect")),
        "{error}"
    );
}

#[tokio::test]
async fn a_worker_that_does_not_check_signatures_is_refused_by_one_who_signs() {
    let health = answer(
        "200 OK",
        "",
        r#"{"ok":true,"provider":"cloudflare","capabilities":{}}"#,
    );
    let signing = json!({"signingKeyId": "k1", "signingKey": "env:WORKER_KEY"});

    let error = scripted(health, signing).await;

    assert!(
        matches!(&error, ProviderError::Refused(text) if text.contains("BRIDGE_AUTH_MODE")),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_host_at_the_worker_is_a_refusal() {
    let Some(leased) = leased(json!({})).await else {
        return;
    };
    let proxy = Cutting::bind().await.serve(&leased.worker.url);
    let provider = provider(config(&leased.worker, json!({"bridgeBaseUrl": proxy.url})));

    let error = provider.acquire(&scope()).await.unwrap_err();

    assert!(
        matches!(&error, ProviderError::Refused(text) if text.contains("host_mismatch")),
        "{error}"
    );
    assert_eq!(
        leased.provider.destroy(&leased.lease).await,
        Ok(Released::Destroyed)
    );
}
