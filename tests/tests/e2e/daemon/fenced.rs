//! A queue whose owner was stopped, and goes on after another daemon has taken the session over.
//!
//! Here: the one owner that cannot learn it from the database, because nothing answers there. Not here: those that can
//! (`owners.rs`), the check itself (`tunnel/tests/queue_channels.rs`).

use std::path::{Path, PathBuf};
use std::time::Instant;

use paperclip_bridge_tests::postgres::Cluster;
use paperclip_bridge_tests::serving::agent;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::Place;
use paperclip_bridge_tests::{Agent, Upstream};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::owners::{COMMENTS, LIMIT, answers, daemon, here, one_serves, serves};

/// A way to the database that can be made to swallow everything: connections stay, and nothing answers any more.
struct Way {
    folder: TempDir,
    swallows: CancellationToken,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

/// The name of PostgreSQL's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

impl Way {
    fn to(database: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Path::new(database.split_once("?host=").unwrap().1).join(SOCKET);
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let swallows = CancellationToken::new();
        let task = tokio::spawn(carry(listener, server, swallows.clone()));
        Self {
            folder,
            swallows,
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    fn database(&self, database: &str) -> String {
        let (url, _) = database.split_once("?host=").unwrap();
        format!("{url}?host={}", self.folder.path().display())
    }
}

async fn carry(listener: UnixListener, server: PathBuf, swallows: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let (server, swallows) = (server.clone(), swallows.clone());
        connections.spawn(async move {
            let mut far = UnixStream::connect(server).await.unwrap();
            tokio::select! {
                biased;
                () = swallows.cancelled() => std::future::pending().await,
                // Either may go away.
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            }
        });
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Whether a write with this key was carried out.
async fn write(caller: &Agent, key: &str) -> bool {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    let answer = caller.call("POST", COMMENTS, &headers, b"{\"body\":\"x\"}").await;
    answer.unwrap().status < 300
}

#[tokio::test]
async fn an_old_owner_that_goes_on_takes_nothing_out_of_a_queue_that_has_a_new_one() {
    if !here() {
        return;
    }
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let database = cluster.database();
    let way = Way::to(&database);
    let place = Place::Ssh(Box::new(Sshd::start()));
    let first = daemon(&way.database(&database)).await;
    let second = daemon(&database).await;
    let session = first
        .session_at(&place, &upstream, &["--tunnel", "queue_v1"])
        .await;
    let queue = PathBuf::from(&session.env["PAPERCLIP_BRIDGE_QUEUE_DIR"]);
    let (fence, turn) = (queue.join("fence"), queue.join("pump"));
    answers(&session).await;
    assert_eq!(read(&fence), "1\n");

    first.running.signal("STOP");
    way.swallows.cancel();
    let begin = Instant::now();
    while read(&fence) != "2\n" {
        assert!(begin.elapsed() < LIMIT, "nobody takes the queue over");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    one_serves(&[&second], &session).await;
    answers(&session).await;
    // What was written at the time of the takeover may have been sent by the old owner, and is told as not known.
    let begin = Instant::now();
    while !write(&agent(&session), "before").await {
        assert!(begin.elapsed() < LIMIT, "the new owner sends no write");
    }
    let new = read(&turn);
    let (end, caller) = (CancellationToken::new(), agent(&session));
    let writing = tokio::spawn({
        let end = end.clone();
        async move {
            let mut keys = Vec::new();
            while !end.is_cancelled() {
                let key = format!("write-{}", keys.len());
                assert!(write(&caller, &key).await, "{key}");
                keys.push(key);
            }
            keys
        }
    });
    first.running.signal("CONT");

    // Its connection to the target is as it was, and the store does not tell it anything.
    let begin = Instant::now();
    while serves(&first, &session).await {
        assert!(
            begin.elapsed() < LIMIT,
            "it believes to the end that it owns the session"
        );
        assert_eq!(read(&turn), new, "the old owner has taken the queue back");
        assert_eq!(read(&fence), "2\n");
    }
    end.cancel();
    let keys = writing.await.unwrap();

    assert_eq!(read(&turn), new, "the old owner has taken the queue back");
    assert!(!keys.is_empty());
    let seen: Vec<_> = upstream
        .seen()
        .iter()
        .filter_map(|seen| seen.header("idempotency-key").map(str::to_owned))
        .filter(|key| key.starts_with("write-"))
        .collect();
    assert_eq!(seen, keys, "each once, and by the new owner");
}
