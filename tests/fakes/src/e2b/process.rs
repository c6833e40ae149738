//! One process: who follows its output, what it is told, how it ended.
//!
//! Here: the fan-out with its back-pressure, stdin, and the supervisor. Not here: how a call finds a process
//! ([`super::table`]) or how one is started ([`super::start`]).

use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pty_process::OwnedWritePty;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::clock::Clock;
use super::rpc::Fault;

/// Messages that a follower may be behind before everything waits for it.
const BEHIND: usize = 64;
/// How long a signalled process's last output is awaited once it has gone.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// What a process reads from.
pub(super) enum Stdin {
    /// `/dev/null`, or closed.
    None,
    Pipe(ChildStdin),
    Pty(OwnedWritePty),
}

/// A process that was started, and for a while one that has ended.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) tag: Option<String>,
    /// As it was asked for.
    pub(super) config: Value,
    pub(super) stdin: tokio::sync::Mutex<Stdin>,
    pub(super) is_pty: bool,
    signals: mpsc::Sender<Signal>,
    following: Mutex<Following>,
}

#[derive(Default)]
struct Following {
    followers: Vec<mpsc::Sender<Value>>,
    end: Option<(Value, SystemTime)>,
}

impl Process {
    pub(super) fn new(
        pid: u32,
        tag: Option<String>,
        config: Value,
        stdin: Stdin,
        signals: mpsc::Sender<Signal>,
    ) -> Self {
        Self {
            pid,
            tag,
            config,
            is_pty: matches!(stdin, Stdin::Pty(_)),
            stdin: tokio::sync::Mutex::new(stdin),
            signals,
            following: Mutex::default(),
        }
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its messages from now on: `start`, whatever comes, `end`. Closed after `end`.
    pub(super) fn follow(&self) -> mpsc::Receiver<Value> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let start = json!({"start": {"pid": self.pid}});
        sender.try_send(start).expect("an empty queue");
        let mut following = self.following();
        match &following.end {
            Some((end, _)) => sender.try_send(end.clone()).expect("room for two"),
            None => following.followers.push(sender),
        }
        receiver
    }

    /// When it ended, if it did.
    pub(super) fn ended_at(&self) -> Option<SystemTime> {
        self.following().end.as_ref().map(|(_, at)| *at)
    }

    /// Hands `event` to every follower and waits for the slowest. Without followers it is lost.
    async fn publish(&self, event: Value) {
        let followers = self.following().followers.clone();
        for follower in followers {
            // One that has gone is taken out below.
            let _ = follower.send(event.clone()).await;
        }
        self.following()
            .followers
            .retain(|follower| !follower.is_closed());
    }

    /// Writes to its stdin and returns once it took all of it.
    pub(super) async fn input(&self, bytes: &[u8], to_pty: bool) -> Result<(), Fault> {
        let wrong = |what: &str| Fault::new("internal", format!("error writing to {what}"));
        let mut stdin = self.stdin.lock().await;
        let written = match (&mut *stdin, to_pty) {
            (Stdin::Pipe(pipe), false) => async {
                pipe.write_all(bytes).await?;
                pipe.flush().await
            }
            .await
            .map_err(|error| ("stdin", error)),
            (Stdin::Pty(pty), true) => pty.write_all(bytes).await.map_err(|error| ("tty", error)),
            (Stdin::None | Stdin::Pty(_), false) => return Err(wrong("stdin: stdin not enabled or closed")),
            (Stdin::None | Stdin::Pipe(_), true) => {
                return Err(wrong("tty: tty not assigned to process"));
            }
        };
        written.map_err(|(what, error)| wrong(&format!("{what}: write |1: {error}")))
    }

    /// Ends its input; again is no fault.
    pub(super) async fn close_stdin(&self) -> Result<(), Fault> {
        if self.is_pty {
            return Err(Fault::new(
                "internal",
                "error closing stdin: tty has no stdin, send 0x04",
            ));
        }
        *self.stdin.lock().await = Stdin::None;
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) {
        // A full queue has signals enough; a closed one has nobody to signal.
        let _ = self.signals.try_send(signal);
    }
}

/// What the supervisor of a process holds.
pub(super) struct Supervised {
    pub(super) process: Arc<Process>,
    pub(super) child: Child,
    pub(super) signals: mpsc::Receiver<Signal>,
    /// The end that its caller set.
    pub(super) deadline: Option<Instant>,
}

impl Supervised {
    /// Waits for the end of the process and of all who hold its outputs, and publishes it.
    ///
    /// A deadline or a signal reaches the process alone, not its children; after one, output that its children still
    /// hold is not awaited.
    pub(super) async fn run(mut self, pumps: impl Future<Output = ()>, clock: &Clock) {
        tokio::pin!(pumps);
        let (mut pumped, mut signalled) = (false, false);
        let deadline = self.deadline;
        let too_late = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(too_late);
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = &mut pumps, if !pumped => pumped = true,
                Some(signal) = self.signals.recv() => {
                    signalled = true;
                    send(&self.child, signal);
                }
                () = &mut too_late, if !signalled => {
                    signalled = true;
                    send(&self.child, Signal::KILL);
                }
            }
        };
        while !pumped {
            tokio::select! {
                () = &mut pumps => pumped = true,
                () = tokio::time::sleep(LAST_WORDS), if signalled => break,
                // As long as others hold the outputs, the process can still be signalled: that ends the wait.
                Some(_) = self.signals.recv() => signalled = true,
                () = &mut too_late, if !signalled => signalled = true,
            }
        }
        *self.process.stdin.lock().await = Stdin::None;
        let end = json!({"end": describe(status.expect("a child can be waited for"))});
        self.process.publish_end(end, clock.now()).await;
    }
}

impl Process {
    async fn publish_end(&self, end: Value, at: SystemTime) {
        let followers = {
            let mut following = self.following();
            following.end = Some((end.clone(), at));
            std::mem::take(&mut following.followers)
        };
        for follower in followers {
            let _ = follower.send(end.clone()).await;
        }
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Takes one output to the followers, in pieces of at most `limit` bytes, to its end.
pub(super) async fn pump(process: &Process, name: &str, mut output: impl AsyncRead + Unpin, limit: usize) {
    let mut buffer = vec![0; limit];
    // A pty whose other side has gone fails instead of ending.
    while let Ok(count) = output.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let text = STANDARD.encode(&buffer[..count]);
        process.publish(json!({"data": {name: text}})).await;
    }
}

/// An end in the words of the server; what is a default is left out.
fn describe(status: ExitStatus) -> Value {
    use std::os::unix::process::ExitStatusExt as _;
    if let Some(signal) = status.signal() {
        let core = if status.core_dumped() {
            " (core dumped)"
        } else {
            ""
        };
        let status = format!("signal: {}{core}", signal_text(signal));
        return json!({"exitCode": -1, "status": status, "error": status});
    }
    match status.code() {
        None | Some(0) => json!({"exited": true, "status": "exit status 0"}),
        Some(code) => {
            let status = format!("exit status {code}");
            json!({"exitCode": code, "exited": true, "status": status, "error": status})
        }
    }
}

fn signal_text(signal: i32) -> String {
    let text = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    text.to_owned()
}
