//! How a connection comes about, and what comes after it, on loopback.

use super::*;

struct Given;

impl SecretSource for Given {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        let value = SecretText::new(format!("value-of-{}", reference.replace(':', "-")));
        std::future::ready(Ok(value)).boxed()
    }
}

impl RequestSigner for Given {
    fn sign(
        &self,
        key_id: &str,
        key: &SecretText,
        request: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        let said = format!(
            "{} {} {} {}",
            request.method,
            request.target,
            request.host,
            key.expose()
        );
        Ok(vec![
            ("x-paperclip-key-id", key_id.to_owned()),
            ("x-test-signed", said),
        ])
    }
}

fn secret(name: &str) -> SecretHandle {
    let settings = ProviderSettings {
        config: serde_json::Map::new(),
        secrets: Arc::new(Given),
        signer: Arc::new(Given),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    let field = SecretField {
        name: "key",
        fallback_env: None,
    };
    SecretHandle::required("test", &field, Some(format!("env:{name}")), &settings).unwrap()
}

/// A Worker on loopback whose relay is served in a task of its own.
struct Loopback {
    listener: TcpListener,
    status: watch::Receiver<Status>,
    end: JoinHandle<TunnelEnd>,
    stop: CancellationToken,
}

async fn loopback(expected_host: Option<&str>) -> Loopback {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let route = RelayRoute {
        base_url: format!("http://{address}"),
        agent_url: "https://relay.example".into(),
        bridge_id: "b-1".into(),
        agent_key_life: std::time::Duration::from_secs(60),
        expected_host: expected_host.unwrap_or(&address).into(),
        key_id: "k1".into(),
        key: secret("KEY"),
        bearer: secret("BEARER"),
    };
    let relay = Relay::new(route, Arc::new(Given), HttpClient::new([]));
    let (reporter, status) = StatusReporter::new();
    let stop = CancellationToken::new();
    let served = Box::new(relay).serve(agent(|_| pending()), reporter, stop.clone());
    Loopback {
        listener,
        status,
        end: tokio::spawn(served),
        stop,
    }
}

impl Loopback {
    /// Takes the daemon's next connection and its hello.
    async fn accept(&self) -> (Worker<TcpStream>, String, http::HeaderMap) {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut seen = None;
        #[expect(clippy::result_large_err, reason = "the library's own signature")]
        let note = |request: &Request, response: Upgraded| {
            seen = Some((request.uri().to_string(), request.headers().clone()));
            Ok::<Upgraded, ErrorResponse>(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
        let mut worker = Worker::on(socket);
        let (target, headers) = seen.unwrap();
        assert!(matches!(worker.hear().await, Ok(Frame::Hello(_))));
        (worker, target, headers)
    }

    /// Answers the daemon's next connection without an upgrade.
    async fn answer(&self, answer: &str) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn ready(&mut self) {
        let ready = |status: &Status| matches!(status, Status::Ready { .. });
        self.status.wait_for(ready).await.unwrap();
    }
}

#[tokio::test]
async fn the_upgrade_is_signed_for_its_host_and_nothing_secret_is_in_its_url() {
    let mut world = loopback(None).await;

    let (mut worker, target, headers) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    let host = world.listener.local_addr().unwrap().to_string();
    let path = "/api/paperclip-sandbox/v1/relay/b-1/connect?epoch=";
    assert!(target.starts_with(path), "{target}");
    assert_eq!(headers["host"], host.as_str());
    assert_eq!(headers["authorization"], "Bearer value-of-env-BEARER");
    assert_eq!(headers["x-paperclip-key-id"], "k1");
    let signed = format!("GET {target} {host} value-of-env-KEY");
    assert_eq!(headers["x-test-signed"], signed.as_str());
    world.stop.cancel();
    while worker.hear().await.is_ok() {}
    assert!(matches!(world.end.await.unwrap(), TunnelEnd::Stopped));
}

#[tokio::test]
async fn a_url_of_another_host_is_refused_and_nothing_is_sent() {
    let world = loopback(Some("bridge.example")).await;

    let end = world.end.await.unwrap();

    let TunnelEnd::Refused { reason, detail } = end else {
        panic!("{end:?}")
    };
    assert_eq!(reason, "host_header_mismatch");
    assert!(detail.contains("nothing was sent"), "{detail}");
    assert!(world.listener.accept().now_or_never().is_none());
}

#[tokio::test]
async fn a_relay_that_is_lost_is_connected_again() {
    let mut world = loopback(None).await;
    let (mut worker, first, _) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    drop(worker);
    let lost = |status: &Status| matches!(status, Status::Reconnecting { .. });
    world.status.wait_for(lost).await.unwrap();
    let (mut worker, again, _) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;

    world.ready().await;
    assert_eq!(first, again, "the epoch is that of the daemon's life");
    world.stop.cancel();
    while worker.hear().await.is_ok() {}
    world.end.await.unwrap();
}

#[tokio::test]
async fn a_relay_that_another_daemon_took_over_is_left_to_it() {
    let mut world = loopback(None).await;
    let (mut worker, ..) = world.accept().await;
    worker.say(&[Frame::Hello(hello())]).await;
    world.ready().await;

    worker.close(code::SUPERSEDED).await;

    let end = world.end.await.unwrap();
    assert!(
        matches!(
            end,
            TunnelEnd::Refused {
                reason: "relay_superseded",
                ..
            }
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_refusal_says_why_and_what_the_clocks_have_to_do_with_it() {
    let rows = [
        (
            "HTTP/1.1 401 No\r\nDate: Thu, 01 Jan 2015 00:00:00 GMT\r\nContent-Length: 37\r\n\r\n\
             {\"error\": \"timestamp_out_of_window\" }\n",
            "relay_refused",
            vec!["timestamp_out_of_window", "set the clock"],
        ),
        (
            "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
            "no_relay",
            vec!["404"],
        ),
        (
            "HTTP/1.1 302 No\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
            "relay_unavailable",
            vec!["redirect"],
        ),
        ("SSH-2.0-x\r\n\r\n", "relay_protocol", vec![]),
    ];
    for (answer, expected, words) in rows {
        let world = loopback(None).await;

        world.answer(answer).await;

        let end = world.end.await.unwrap();
        let TunnelEnd::Refused { reason, detail } = end else {
            panic!("{end:?}")
        };
        assert_eq!(reason, expected, "{detail}");
        for word in words {
            assert!(detail.contains(word), "{detail}");
        }
        assert!(!detail.contains("value-of"), "{detail}");
    }
}

#[tokio::test]
async fn a_hello_of_another_relay_is_refused() {
    let strange = [
        Hello { v: 2, ..hello() },
        Hello {
            bridge_id: "b-2".into(),
            ..hello()
        },
        Hello { window: 0, ..hello() },
    ];
    for hello in strange {
        let world = loopback(None).await;
        let (mut worker, ..) = world.accept().await;

        worker.say(&[Frame::Hello(hello)]).await;

        let end = world.end.await.unwrap();
        assert!(
            matches!(
                end,
                TunnelEnd::Refused {
                    reason: "relay_protocol",
                    ..
                }
            ),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = loopback(None).await;
    drop(world.listener);
    world.listener = listener;

    let end = world.end.await.unwrap();
    assert!(matches!(end, TunnelEnd::Unreachable(_)), "{end:?}");
}

#[tokio::test]
async fn a_worker_that_lets_no_websocket_through_is_no_reason_not_to_try_another_tunnel() {
    let world = loopback(None).await;

    let (stream, _) = world.listener.accept().await.unwrap();
    drop(stream);

    let end = world.end.await.unwrap();
    assert!(
        matches!(
            end,
            TunnelEnd::Refused {
                reason: "relay_unavailable",
                ..
            }
        ),
        "{end:?}"
    );
}
