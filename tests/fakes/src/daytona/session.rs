//! Sessions: one shell, one command after another, each with a log file that can be followed.
//!
//! The quirks are the daemon's and come from doing as it does: outputs pass through `while read` loops, so they are
//! text only, and a command's `exit` ends the session's shell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin};
use tokio::time::Instant;

use super::http::{Answer, Asked, answer, error};
use super::processes;
use super::socket::{self, Socket};
use super::toolbox::Inside;
use super::world::random_name;

/// How often the daemon looks at a log file.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a follower is kept after the exit code shows.
const AFTER_EXIT: Duration = Duration::from_secs(1);
/// The longest message of a followed log.
const CHUNK_BYTES: usize = 1024;

/// A session's shell and its commands.
#[derive(Debug)]
pub(super) struct Session {
    folder: PathBuf,
    shell: tokio::sync::Mutex<(Child, ChildStdin)>,
    leader: u32,
    commands: Mutex<BTreeMap<String, String>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        processes::signal_group(self.leader, Signal::KILL);
    }
}

impl Session {
    fn start(inside: &Inside, id: &str) -> std::io::Result<Self> {
        let folder = inside.home.join(".daytona/sessions").join(id);
        fs::create_dir_all(&folder)?;
        let mut command = processes::command(
            &inside.shared.settings.shell,
            &inside.id,
            &inside.home,
            &inside.env,
        );
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take().expect("stdin is a pipe");
        Ok(Self {
            folder,
            leader: child.id().unwrap_or_default(),
            shell: tokio::sync::Mutex::new((child, stdin)),
            commands: Mutex::default(),
        })
    }

    fn remember(&self, command: &str, text: &str) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.insert(command.to_owned(), text.to_owned());
    }

    fn text_of(&self, command: &str) -> Option<String> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.get(command).cloned()
    }

    fn exit_code(&self, command: &str) -> Option<i32> {
        let text = fs::read_to_string(self.folder.join(command).join("exit")).ok()?;
        text.trim().parse().ok()
    }

    fn log(&self, command: &str) -> PathBuf {
        self.folder.join(command).join("log")
    }

    fn described(&self, command: &str) -> Value {
        let mut described = json!({"id": command, "command": self.text_of(command)});
        if let Some(code) = self.exit_code(command) {
            described["exitCode"] = json!(code);
        }
        described
    }
}

pub(super) async fn route(inside: &Inside, asked: Asked, method: &str, rest: &[&str]) -> Answer {
    let find = |id: &str| {
        let found = inside
            .shared
            .with(&inside.id, |sandbox| sandbox.sessions.get(id).cloned());
        found.flatten()
    };
    match (method, rest) {
        ("POST", []) => create(inside, &asked.json()),
        (method, [id, rest @ ..]) => match (find(id), method, rest) {
            (None, _, _) => error(404, "NOT_FOUND", "session not found"),
            (Some(session), "GET", []) => {
                let commands = session.commands.lock().unwrap_or_else(PoisonError::into_inner);
                let commands: Vec<Value> = commands
                    .keys()
                    .map(|command| session.described(command))
                    .collect();
                answer(200, &json!({"sessionId": id, "commands": commands}))
            }
            (Some(session), "DELETE", []) => delete(inside, id, &session).await,
            (Some(session), "POST", ["exec"]) => exec(&session, &asked.json()).await,
            (Some(session), method, ["command", command, rest @ ..]) => {
                if session.text_of(command).is_none() {
                    return error(404, "NOT_FOUND", "command not found");
                }
                let command = (*command).to_owned();
                match (method, rest) {
                    ("GET", []) => answer(200, &session.described(&command)),
                    ("GET", ["logs"]) => logs(inside, asked, session, command),
                    ("POST", ["input"]) => input(&session, &command, &asked.json()).await,
                    _ => error(404, "NOT_FOUND", "Cannot find the path"),
                }
            }
            _ => error(404, "NOT_FOUND", "Cannot find the path"),
        },
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}

fn create(inside: &Inside, request: &Value) -> Answer {
    let id = request
        .get("sessionId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if id.is_empty() || id.contains('/') {
        return error(400, "BAD_REQUEST", "sessionId is required");
    }
    let made = inside.shared.with(&inside.id, |sandbox| {
        if sandbox.sessions.contains_key(id) {
            return error(409, "CONFLICT", "session already exists");
        }
        match Session::start(inside, id) {
            Ok(session) => {
                sandbox.sessions.insert(id.to_owned(), Arc::new(session));
                answer(201, &Value::Null)
            }
            Err(fault) => error(500, "INTERNAL", &fault.to_string()),
        }
    });
    made.unwrap_or_else(|| error(404, "NOT_FOUND", "Sandbox not found"))
}

async fn delete(inside: &Inside, id: &str, session: &Session) -> Answer {
    let removed = inside
        .shared
        .with(&inside.id, |sandbox| sandbox.sessions.remove(id));
    drop(removed);
    processes::signal_group(session.leader, Signal::TERM);
    let mut shell = session.shell.lock().await;
    let gone = tokio::time::timeout(Duration::from_secs(5), shell.0.wait()).await;
    if gone.is_err() {
        processes::signal_group(session.leader, Signal::KILL);
    }
    answer(204, &Value::Null)
}

async fn exec(session: &Session, request: &Value) -> Answer {
    let Some(text) = request.get("command").and_then(Value::as_str) else {
        return error(400, "BAD_REQUEST", "command is required");
    };
    let flag = |key: &str| request.get(key).and_then(Value::as_bool).unwrap_or_default();
    let waits = !flag("runAsync") && !flag("async");
    let command = random_name();
    let folder = session.folder.join(&command);
    let made = fs::create_dir_all(&folder).and_then(|()| fs::write(session.log(&command), b""));
    if let Err(fault) = made {
        return error(500, "INTERNAL", &fault.to_string());
    }
    if flag("suppressInputEcho") {
        drop(fs::write(folder.join("quiet"), b""));
    }
    let mut shell = session.shell.lock().await;
    let ended = matches!(shell.0.try_wait(), Ok(Some(_)));
    let sent = shell.1.write_all(wrapped(&folder, text).as_bytes()).await;
    drop(shell);
    if ended || sent.is_err() {
        return error(500, "INTERNAL", "failed to write command: broken pipe");
    }
    session.remember(&command, text);
    if !waits {
        return answer(202, &json!({"cmdId": command}));
    }
    loop {
        if let Some(code) = session.exit_code(&command) {
            let mut body = streams(&fs::read(session.log(&command)).unwrap_or_default());
            body["cmdId"] = json!(command);
            body["exitCode"] = json!(code);
            return answer(200, &body);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the session's shell reads for one command.
fn wrapped(folder: &Path, text: &str) -> String {
    let d = folder.display();
    format!(
        "mkfifo '{d}/in' '{d}/o' '{d}/e'\n\
         ( while IFS= read -r l || [ -n \"$l\" ]; do printf '\\001\\001\\001%s\\n' \"$l\"; done <'{d}/o' >>'{d}/log' ) & _o=$!\n\
         ( while IFS= read -r l || [ -n \"$l\" ]; do printf '\\002\\002\\002%s\\n' \"$l\"; done <'{d}/e' >>'{d}/log' ) & _e=$!\n\
         ( sleep 1000000 >'{d}/in' ) & _i=$!\n\
         {{\n{text}\n}} <'{d}/in' >'{d}/o' 2>'{d}/e'\n\
         _x=$?\nwait $_o $_e\necho $_x >'{d}/exit.part'; mv '{d}/exit.part' '{d}/exit'; kill $_i; rm -f '{d}/in'\n"
    )
}

async fn input(session: &Session, command: &str, request: &Value) -> Answer {
    let folder = session.folder.join(command);
    if session.exit_code(command).is_some() {
        return error(410, "GONE", "command has already completed");
    }
    let mut data = request
        .get("data")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if !data.ends_with('\n') {
        data.push('\n');
    }
    if !folder.join("quiet").exists() {
        let echo = format!("\u{1}\u{1}\u{1}{data}");
        let log = fs::OpenOptions::new().append(true).open(session.log(command));
        drop(log.and_then(|mut log| std::io::Write::write_all(&mut log, echo.as_bytes())));
    }
    // Refused as long as the command has not opened its side.
    for _ in 0..250 {
        if let Ok(mut input) = pipe::OpenOptions::new().open_sender(folder.join("in")) {
            return match input.write_all(data.as_bytes()).await {
                Ok(()) => answer(204, &Value::Null),
                Err(fault) => error(500, "INTERNAL", &fault.to_string()),
            };
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    error(500, "INTERNAL", "the command does not read its input")
}

fn logs(inside: &Inside, asked: Asked, session: Arc<Session>, command: String) -> Answer {
    let version = asked.header("x-daytona-sdk-version").unwrap_or_default();
    let split = version.split('.').count() == 3 || asked.header("x-daytona-split-output") == Some("true");
    if asked.query("follow") != Some("true") {
        return answer(
            200,
            &streams(&fs::read(session.log(&command)).unwrap_or_default()),
        );
    }
    socket::accept(&inside.shared, asked, None, move |socket| {
        follow(socket, session, command, split)
    })
}

/// The log from its first byte on, until about a second after the exit code shows.
async fn follow(mut socket: Socket, session: Arc<Session>, command: String, split: bool) {
    let mut sent = 0;
    let mut ends = None;
    loop {
        let exited = session.exit_code(&command).is_some();
        let log = fs::read(session.log(&command)).unwrap_or_default();
        for chunk in log.get(sent..).unwrap_or_default().chunks(CHUNK_BYTES) {
            sent += chunk.len();
            let chunk = if split { chunk.to_vec() } else { unmarked(chunk) };
            if socket.send(socket::binary(Bytes::from(chunk))).await.is_err() {
                return;
            }
        }
        if exited {
            let end = *ends.get_or_insert_with(|| Instant::now() + AFTER_EXIT);
            if Instant::now() >= end {
                return socket::close(socket, 1000, "").await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn unmarked(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, 1 | 2))
        .collect()
}

/// A log taken apart by its markers.
fn streams(log: &[u8]) -> Value {
    let (mut output, mut stdout, mut stderr) = (vec![], vec![], vec![]);
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let (stream, text) = match line {
            [1, 1, 1, text @ ..] => (&mut stdout, text),
            [2, 2, 2, text @ ..] => (&mut stderr, text),
            text => (&mut stdout, text),
        };
        stream.extend_from_slice(text);
        output.extend_from_slice(text);
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    json!({"output": text(output), "stdout": text(stdout), "stderr": text(stderr)})
}
