//! A session behind a Worker's relay, over the daemon's end: the same URL and bearer, and a higher epoch.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::relayed::config;
use paperclip_bridge_tests::serving::{Serving, ServingBuilder, agent};
use paperclip_bridge_tests::workerd::{Settings, TOKEN, Workerd, installed, key};
use paperclip_bridge_tests::{Upstream, can_run};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::returning::{BOTH, ended};

const ME: &str = "/api/agents/me";

/// In front of the Worker: passes everything on and remembers with which epoch the relay was connected to.
struct Watch {
    address: String,
    epochs: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn start(listener: TcpListener, worker: String) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let epochs = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&epochs);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::pass(client, worker.clone(), Arc::clone(&seen)));
            }
        });
        Self {
            address,
            epochs,
            task,
        }
    }

    async fn pass(mut client: TcpStream, worker: String, epochs: Arc<Mutex<Vec<u64>>>) -> Option<()> {
        let mut begin = vec![];
        while !begin.windows(2).any(|pair| pair == b"\r\n") {
            let read = client.read_buf(&mut begin).await.ok()?;
            (read > 0).then_some(())?;
        }
        let text = String::from_utf8_lossy(&begin).into_owned();
        if let Some((_, rest)) = text.split_once("/connect?epoch=") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            epochs.lock().unwrap().push(digits.parse().unwrap());
        }
        let mut server = TcpStream::connect(worker).await.ok()?;
        server.write_all(&begin).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
    }

    fn newest(&self) -> u64 {
        *self.epochs.lock().unwrap().last().expect("it was connected to")
    }
}

fn keyed(builder: ServingBuilder) -> ServingBuilder {
    builder
        .env("WORKER_TOKEN", TOKEN)
        .env("WORKER_KEY", &STANDARD.encode(key()))
}

#[tokio::test]
async fn a_session_behind_a_relay_comes_back_at_its_url_with_a_higher_epoch() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = Workerd::start(&Settings {
        allowed_hosts: vec![listener.local_addr().unwrap().to_string()],
        ..Settings::default()
    });
    let watch = Watch::start(listener, worker.url.trim_start_matches("http://").to_owned());
    let upstream = Upstream::start().await;
    let fields = config(
        &worker,
        json!({ "bridgeBaseUrl": format!("http://{}", watch.address) }),
    );
    let fields: Vec<_> = fields
        .iter()
        .flat_map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ["--provider".to_owned(), format!("{name}={value}")]
        })
        .collect();
    let fields: Vec<_> = fields.iter().map(String::as_str).collect();
    for end in BOTH {
        let serving = keyed(Serving::builder()).start().await;
        let opened = serving.session_named("worker:", &upstream, &fields).await;
        assert_eq!(
            (opened.tunnel.as_str(), &opened.url),
            ("worker", &worker.relay_url)
        );
        assert_eq!(agent(&opened).get(ME).await.unwrap().status, 200);
        let lease = serving.call("GET", "/v1/sessions", "").await.json()["sessions"][0]["lease"].clone();
        let mut serving = serving;
        let mut epoch = watch.newest();

        // Twice: what comes back can come back again.
        for _ in 0..2 {
            serving = keyed(ended(serving, end).await).start().await;

            let shown = serving.until(&opened.session, "ready").await;
            assert_eq!(
                (&shown["url"], &shown["lease"]),
                (&json!(opened.url), &lease),
                "{end:?}"
            );
            assert_eq!(agent(&opened).get(ME).await.unwrap().status, 200, "{end:?}");
            assert!(watch.newest() > epoch, "{:?}", watch.epochs);
            epoch = watch.newest();
        }
        // The bearer of the relay holds the token: another one is given out, and the one before is void.
        let rotated = serving.ask(&["sessions", "rotate", &opened.session]).await;
        let fresh = paperclip_bridge_tests::Agent {
            token: rotated["token"].as_str().unwrap().to_owned(),
            ..agent(&opened)
        };
        assert_eq!(fresh.get(ME).await.unwrap().status, 200);
        assert_eq!(agent(&opened).get(ME).await.unwrap().status, 401);
        serving.ask(&["sessions", "revoke", &opened.session]).await;
        serving.until(&opened.session, "ended").await;
        let folder = std::path::PathBuf::from(worker.workspace());
        paperclip_bridge_tests::eventually(super::SOON, "the sandbox is given back", || {
            (!folder.exists()).then_some(())
        })
        .await;
    }
}
