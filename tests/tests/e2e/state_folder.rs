//! What a killed daemon leaves, and what the next one with the same state folder makes of it.
//!
//! That a queue goes on without sending a write twice is in the tests of the queue.

use std::path::{Path, PathBuf};
use std::time::Duration;

use paperclip_bridge_tests::binary::{Bridge, BridgeCommand, Finished};
use paperclip_bridge_tests::world::{Place, daemon};
use paperclip_bridge_tests::{Agent, Upstream, eventually, processes};
use tempfile::TempDir;

const ME: &str = "/api/agents/me";
const LIMIT: Duration = Duration::from_secs(20);

/// This machine as a sandbox with a home of its own, and a state folder beside it.
struct Sandbox {
    upstream: Upstream,
    folder: TempDir,
}

impl Sandbox {
    async fn new() -> Self {
        Self {
            upstream: Upstream::start().await,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, subcommand: &str, tunnel: &str) -> BridgeCommand {
        daemon(subcommand, &Place::Local, &self.upstream.url())
            .args(["--tunnel", tunnel, "--state-dir"])
            .args([self.state().display().to_string()])
            .env("HOME", self.folder.path().to_str().unwrap())
    }

    async fn try_open(&self, tunnel: &str) -> Result<Bridge, Finished> {
        let command = self.command("open", tunnel);
        command.args(["--json", "--until-stdin-closes"]).open().await
    }

    async fn open(&self, tunnel: &str) -> Bridge {
        let opened = self.try_open(tunnel).await;
        opened.unwrap_or_else(|ended| panic!("`open` ended with {:?}: {}", ended.code, ended.stderr))
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What lies in the sandbox besides the gateway's program.
    fn left(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join(".cache/paperclip-bridge")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("gateway-"))
            .collect()
    }

    async fn is_clean(&self) {
        eventually(LIMIT, "nothing is left in the sandbox", || {
            self.left().is_empty().then_some(())
        })
        .await;
    }

    /// The process of a session's gateway.
    fn gateway(&self, session: &str) -> u32 {
        let record = self
            .folder
            .path()
            .join(format!(".cache/paperclip-bridge/run-{session}"));
        let text = std::fs::read_to_string(record).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
}

async fn kill(bridge: Bridge) {
    bridge.running.signal("KILL");
    bridge.running.finish().await;
}

async fn serves(bridge: &Bridge) {
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_killed_http2_v1_session_leaves_nothing_and_the_next_one_is_new() {
    let sandbox = Sandbox::new().await;
    let killed = sandbox.open("http2_v1").await;
    let first = killed.opened.clone();
    assert!(!sandbox.left().is_empty(), "a gateway that runs is recorded");

    kill(killed).await;

    sandbox.is_clean().await;
    assert!(!processes::anyone_listens(port(&first.url)));
    let second = sandbox.open("http2_v1").await;
    assert_ne!(second.opened.session, first.session);
    serves(&second).await;
    assert_eq!(second.close().await.code, Some(0));
    sandbox.is_clean().await;
}

#[tokio::test]
async fn a_session_goes_on_at_its_port_although_its_gateway_was_killed_too() {
    let sandbox = Sandbox::new().await;
    let killed = sandbox.open("queue_v1").await;
    let first = killed.opened.clone();
    let directory = &first.env["PAPERCLIP_BRIDGE_QUEUE_DIR"];
    assert!(Path::new(directory).join("ready.json").exists(), "{directory}");
    kill(killed).await;
    processes::signal(sandbox.gateway(&first.session), "KILL");

    let second = sandbox.open("queue_v1").await;

    assert_eq!(
        (&second.opened.session, &second.opened.url),
        (&first.session, &first.url)
    );
    let agent = Agent {
        url: first.url.clone(),
        token: first.token.clone(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
    assert_eq!(second.close().await.code, Some(0));
    sandbox.is_clean().await;
}

#[tokio::test]
async fn a_session_that_cannot_be_gone_on_with_makes_room_for_a_new_one() {
    let sandbox = Sandbox::new().await;
    let killed = sandbox.open("queue_v1").await;
    let first = killed.opened.clone();
    kill(killed).await;
    processes::signal(sandbox.gateway(&first.session), "KILL");
    let taken = eventually(LIMIT, "the port can be taken", || {
        std::net::TcpListener::bind(("127.0.0.1", port(&first.url))).ok()
    })
    .await;

    let second = sandbox.open("queue_v1").await;

    assert_ne!(second.opened.session, first.session);
    serves(&second).await;
    drop(taken);
    let ended = second.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("cannot be gone on with"),
        "{}",
        ended.stderr
    );
    sandbox.is_clean().await;
}

#[tokio::test]
async fn what_a_killed_queue_left_is_cleared_away_by_another_tunnel_and_by_run() {
    for next in ["open http2_v1", "run queue_v1"] {
        let sandbox = Sandbox::new().await;
        let killed = sandbox.open("queue_v1").await;
        let first = killed.opened.clone();
        kill(killed).await;

        let (subcommand, tunnel) = next.split_once(' ').unwrap();
        let ended = if subcommand == "run" {
            let command = sandbox.command("run", tunnel);
            command.command(["sh", "-c", "exit 7"]).finish().await
        } else {
            sandbox.open(tunnel).await.close().await
        };

        let expected = if subcommand == "run" { 7 } else { 0 };
        assert_eq!(ended.code, Some(expected), "{next}: {}", ended.stderr);
        assert!(ended.stderr.contains("cleared away"), "{next}: {}", ended.stderr);
        sandbox.is_clean().await;
        assert!(!processes::anyone_listens(port(&first.url)), "{next}");
    }
}

#[tokio::test]
async fn a_record_of_another_target_is_said_to_be_one_and_not_gone_on_with() {
    let sandbox = Sandbox::new().await;
    let killed = sandbox.open("queue_v1").await;
    let first = killed.opened.session.clone();
    kill(killed).await;
    let path = sandbox.state().join("session.json");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, record.replace("\"local\"", "\"ssh://elsewhere\"")).unwrap();

    let second = sandbox.open("queue_v1").await;

    assert_ne!(second.opened.session, first);
    serves(&second).await;
    let ended = second.close().await;
    assert!(ended.stderr.contains("another target"), "{}", ended.stderr);
    let gateway = sandbox.gateway(&first);
    processes::signal(gateway, "TERM");
    eventually(LIMIT, "the gateway that was left to itself ends", || {
        processes::one(gateway)
            .is_none_or(|one| one.state == 'Z')
            .then_some(())
    })
    .await;
    // Nobody but its host removes the directory of a queue whose gateway was told to end.
    assert_eq!(sandbox.left(), [format!("q-{first}")]);
}

#[tokio::test]
async fn a_record_that_is_not_understood_is_an_error_that_names_the_file_and_the_way_out() {
    let sandbox = Sandbox::new().await;
    let opened = sandbox.open("http2_v1").await;
    kill(opened).await;
    let path = sandbox.state().join("session.json");
    std::fs::write(&path, "{ broken").unwrap();

    let ended = sandbox.try_open("http2_v1").await.unwrap_err();

    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    for told in [path.to_str().unwrap(), "remove it to begin anew"] {
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
    std::fs::remove_file(path).unwrap();
    assert_eq!(sandbox.open("http2_v1").await.close().await.code, Some(0));
}
