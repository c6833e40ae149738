//! `queue_v1` with real gateways on real targets: whole calls, many at once, and nothing left at the end.
//!
//! Here also [`Sandbox`], the place that other files' queues stand in. Restarts are in `queue_restart.rs`, queues whose
//! gateway somebody else started in `queue_hosted.rs`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use paperclip_bridge_tests::binary::Bridge;
use paperclip_bridge_tests::peer::{Installed, Release, gateway, installed, their_script};
use paperclip_bridge_tests::sshd::{Access, Sshd};
use paperclip_bridge_tests::world::{Place, daemon};
use paperclip_bridge_tests::{Agent, Script, Upstream, can_run, eventually, processes, user};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::ssh_can_run;

pub(crate) const ME: &str = "/api/agents/me";
pub(crate) const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");
const TEN_MEBIBYTES: usize = 10 * 1024 * 1024;

/// Where a queue stands: a target, a home on it, and the upstream behind it all.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) upstream: Upstream,
    pub(crate) place: Place,
    pub(crate) folder: TempDir,
    path: String,
}

impl Sandbox {
    /// This machine.
    pub(crate) async fn local() -> Self {
        Self::at(Place::Local, "/usr/local/bin:/usr/bin:/bin".to_owned()).await
    }

    /// A user of an SSH server of its own.
    pub(crate) async fn ssh() -> Self {
        let place = Place::Ssh(Box::new(Sshd::start()));
        Self::at(place, "/usr/local/bin:/usr/bin:/bin".to_owned()).await
    }

    /// A target whose `node`, if any, is found in `path`.
    async fn at(place: Place, path: String) -> Self {
        Self {
            upstream: Upstream::start().await,
            place,
            folder: tempfile::tempdir().unwrap(),
            path,
        }
    }

    /// Opens a session there.
    pub(crate) async fn open(&self, arguments: &[&str]) -> Bridge {
        let opened = daemon("open", &self.place, &self.upstream.url())
            .args(["--json", "--until-stdin-closes", "--tunnel", "queue_v1"])
            .args(arguments.iter().copied())
            .env("HOME", self.folder.path().to_str().unwrap())
            .env("PATH", &self.path)
            .open()
            .await;
        let bridge =
            opened.unwrap_or_else(|ended| panic!("`open` ended with {:?}: {}", ended.code, ended.stderr));
        assert_eq!(bridge.opened.tunnel, "queue_v1");
        bridge
    }

    fn home(&self) -> PathBuf {
        match &self.place {
            Place::Ssh(server) => match server.made_user() {
                Some(user) => user.home().to_owned(),
                None => PathBuf::from(std::env::var_os("HOME").unwrap()),
            },
            Place::Local | Place::Other(_) => self.folder.path().to_owned(),
        }
    }

    /// The queue directory of a session.
    pub(crate) fn queue(&self, session: &str) -> PathBuf {
        self.home().join(format!(".cache/paperclip-bridge/q-{session}"))
    }

    /// The processes whose arguments or environment name this queue: its gateway and its shells.
    pub(crate) fn processes(&self, session: &str) -> Vec<String> {
        let name = format!("q-{session}").into_bytes();
        let names = |text: &[u8]| text.windows(name.len()).any(|part| part == name);
        processes::all()
            .into_iter()
            .filter(|one| one.state != 'Z')
            .filter(|one| names(&processes::command_line(one.pid)) || names(&processes::environment(one.pid)))
            .map(|one| format!("{} {}", one.pid, one.name))
            .collect()
    }

    /// Waits until nothing of a session is left on the target.
    pub(crate) async fn is_clean_after(&self, session: &str, port: u16) {
        assert!(!processes::anyone_listens(port), "the port still listens");
        let queue = self.queue(session);
        assert!(!queue.exists(), "{} is left", queue.display());
        eventually(Duration::from_secs(5), "no process of the queue is left", || {
            self.processes(session).is_empty().then_some(())
        })
        .await;
    }
}

pub(crate) fn agent(bridge: &Bridge) -> Agent {
    Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    }
}

pub(crate) fn port(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// One call of each kind, 64 of them at once, and the end.
async fn carries_everything(sandbox: &Sandbox, gateway: &str) {
    let what = format!("{} by {gateway}", sandbox.place.target());
    let bridge = sandbox.open(&["--gateway", gateway]).await;
    let agent = agent(&bridge);

    assert_eq!(agent.get(ME).await.unwrap().status, 200, "{what}");
    let made = Script::json(201, r#"{"made":true}"#);
    sandbox.upstream.on("POST", COMMENTS, made);
    assert_eq!(agent.post(COMMENTS, r#"{"body":"x"}"#).await.unwrap().status, 201);
    carries_ten_mebibytes_both_ways(sandbox, &agent, &what).await;
    sixty_four_at_once_are_answered(&agent, &what).await;

    let opened = bridge.opened.clone();
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{what}: {}", ended.stderr);
    assert!(
        ended.stderr.contains("queue_v1 ended"),
        "{what}: {}",
        ended.stderr
    );
    sandbox.is_clean_after(&opened.session, port(&opened.url)).await;
}

async fn carries_ten_mebibytes_both_ways(sandbox: &Sandbox, agent: &Agent, what: &str) {
    let body = format!("{:?}", "x".repeat(TEN_MEBIBYTES - 2)).into_bytes();
    let echo = Script::answer(200, &[JSON], &body);
    sandbox.upstream.on_next(1, "POST", COMMENTS, echo);
    let before = sandbox.upstream.count();

    let started = Instant::now();
    let answer = agent.call("POST", COMMENTS, &[JSON], &body).await.unwrap();

    eprintln!("{what}: 10 MiB each way in {:?}", started.elapsed());
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    assert!(answer.body == body, "{what}: another body came back");
    let seen = sandbox.upstream.seen_since(before);
    assert!(
        seen.len() == 1 && seen[0].body == body,
        "{what}: another body arrived"
    );
}

async fn sixty_four_at_once_are_answered(agent: &Agent, what: &str) {
    let mut callers = JoinSet::new();
    for number in 0..64 {
        let agent = agent.clone();
        callers.spawn(async move {
            match number % 2 {
                0 => agent.get(ME).await.map(|answer| answer.status == 200),
                _ => agent
                    .post(COMMENTS, "{}")
                    .await
                    .map(|answer| answer.status == 201),
            }
        });
    }
    let answered = callers.join_all().await;

    assert!(
        answered.iter().all(|answer| *answer == Ok(true)),
        "{what}: {answered:?}"
    );
}

/// An SSH server whose `node` is the installed one.
pub(crate) fn server_with_node(installed: &Installed, line: &str) -> Sshd {
    Sshd::builder()
        .line(&format!("SetEnv PATH={}", gateway::path_with_node(installed)))
        .line(line)
        .start()
}

#[tokio::test]
async fn our_gateway_on_this_machine_carries_everything_and_leaves_nothing() {
    carries_everything(&Sandbox::local().await, "builtin").await;
}

#[tokio::test]
async fn our_gateway_over_ssh_carries_everything_and_leaves_nothing() {
    if !ssh_can_run() {
        return;
    }
    let sandbox = Sandbox::ssh().await;

    carries_everything(&sandbox, "builtin").await;
}

#[tokio::test]
async fn the_published_gateway_on_this_machine_carries_everything_and_leaves_nothing() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let installed = installed().unwrap();
    let sandbox = Sandbox::at(Place::Local, gateway::path_with_node(installed)).await;
    let script = their_script(installed, Release::R916, sandbox.folder.path());

    carries_everything(&sandbox, &format!("node:{}", script.display())).await;
}

#[tokio::test]
async fn the_published_gateway_over_ssh_carries_everything_and_leaves_nothing() {
    if !(ssh_can_run() && can_run(installed().map(drop)) && can_run(readable(installed().unwrap()))) {
        return;
    }
    let installed = installed().unwrap();
    let place = Place::Ssh(Box::new(server_with_node(installed, "")));
    let sandbox = Sandbox::at(place, "/usr/bin:/bin".to_owned()).await;
    let script = their_script(installed, Release::R916, sandbox.folder.path());

    carries_everything(&sandbox, &format!("node:{}", script.display())).await;
}

/// Whether the user whom a test makes may run the installed Node.
pub(crate) fn readable(installed: &Installed) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let closed =
        |folder: &Path| std::fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0);
    match installed.node().ancestors().find(|folder| closed(folder)) {
        Some(folder) if user::is_root() => Err(format!("{} is closed to other users", folder.display())),
        Some(_) | None => Ok(()),
    }
}

/// A way to a server on which each byte is under way for half of `round_trip`, however many there are.
async fn slow_way(server: &Sshd, folder: &Path, round_trip: Duration) -> (Access, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = (listener.local_addr().unwrap().port(), server.port());
    let relay = tokio::spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((caller, _)) = listener.accept().await {
            let called = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
            let (caller_out, caller_in) = caller.into_split();
            let (called_out, called_in) = called.into_split();
            ways.spawn(delay(caller_out, called_in, round_trip / 2));
            ways.spawn(delay(called_out, caller_in, round_trip / 2));
        }
    });
    let access = server.access();
    let moved = |text: String| text.replace(&format!(":{far}"), &format!(":{near}"));
    let known_hosts = folder.join("known_hosts");
    let known = std::fs::read_to_string(&access.known_hosts).unwrap();
    std::fs::write(&known_hosts, moved(known)).unwrap();
    let access = Access {
        target: moved(access.target),
        identity: access.identity,
        known_hosts,
    };
    (access, relay)
}

async fn delay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, time: Duration) {
    // As much as a link of many megabytes a second has under way.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(256);
    let sending = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let receiving = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let piece = (Instant::now() + time, buffer[..count].to_vec());
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_with_a_round_trip_of_40_ms_carries_sixty_four_at_once() {
    if !ssh_can_run() {
        return;
    }
    let server = Sshd::start();
    let folder = tempfile::tempdir().unwrap();
    let (access, relay) = slow_way(&server, folder.path(), Duration::from_millis(40)).await;
    let sandbox = Sandbox::at(Place::Other(access), "/usr/bin:/bin".to_owned()).await;
    sandbox.upstream.on("POST", COMMENTS, Script::json(201, "{}"));
    let bridge = sandbox.open(&[]).await;
    let agent = agent(&bridge);

    sixty_four_at_once_are_answered(&agent, "40 ms away").await;

    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    relay.abort();
}

#[tokio::test]
async fn a_lost_connection_is_told_opened_again_and_waited_for_by_callers() {
    if !ssh_can_run() {
        return;
    }
    let sandbox = Sandbox::ssh().await;
    let bridge = sandbox.open(&[]).await;
    let Place::Ssh(server) = &sandbox.place else {
        unreachable!()
    };
    let agent = agent(&bridge);
    assert_eq!(agent.get(ME).await.unwrap().status, 200);

    for round in 0..3 {
        server.kill_sessions();
        let started = Instant::now();
        // The gateway stands on the target and takes the call; it waits there for us.
        let answer = agent.post(COMMENTS, "{}").await.unwrap();

        assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
    }

    let stderr = bridge.running.stderr();
    assert!(stderr.contains("reconnecting"), "{stderr}");
    let opened = bridge.opened.clone();
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    sandbox.is_clean_after(&opened.session, port(&opened.url)).await;
}
