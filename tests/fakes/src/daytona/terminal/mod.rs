//! Terminals: a login shell on a real pseudo-terminal, its output to every socket that is attached.
//!
//! Here: their calls and what a socket carries. The pseudo-terminal itself is in [`device`]. Not here: sessions,
//! which have no terminal.

mod device;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::execute::variables;
use super::http::{Answer, Asked, answer, error};
use super::socket::{self, Socket};
use super::toolbox::Inside;
use super::{Daemon, processes};
use device::Device;

/// Messages that wait to be written to the terminal; then the reader waits.
const INBOUND_MESSAGES: usize = 1024;
/// The subprotocol that asks for the exit control message.
const EXIT_CONTROL: &str = "X-Daytona-Pty-Exit-Control";
/// The subprotocol that carries the variables of `create-connect`.
const ENVS: &str = "X-Daytona-Pty-Envs~";
/// How long a full queue has to move on: what reads it may merely not have had its turn.
const FULL: Duration = Duration::from_millis(200);
/// How long a message that was being written has until a slow reader is dropped.
const SLOW: Duration = Duration::from_secs(120);

/// One terminal and who is attached to it.
#[derive(Debug)]
pub(super) struct Terminal {
    leader: u32,
    input: mpsc::Sender<Bytes>,
    readers: Mutex<Vec<mpsc::Sender<Bytes>>>,
    /// The exit code, once all output has been handed to the readers.
    exit: watch::Receiver<Option<i32>>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        processes::end_session(self.leader);
    }
}

pub(super) fn route(inside: &Inside, asked: Asked, method: &str, rest: &[&str]) -> Answer {
    let newer = inside.shared.settings.daemon == Daemon::Newer;
    match (method, rest) {
        ("POST", []) => {
            let request = asked.json();
            let id = request.get("id").and_then(Value::as_str).unwrap_or_default();
            match create(inside, id, &request) {
                Ok(_) => answer(201, &json!({"sessionId": id})),
                Err(refused) => *refused,
            }
        }
        ("GET", []) => {
            let ids = inside.shared.with(&inside.id, |sandbox| {
                let ids = sandbox.terminals.keys();
                ids.map(|id| json!({"id": id, "active": true}))
                    .collect::<Vec<_>>()
            });
            answer(200, &json!({"sessions": ids.unwrap_or_default()}))
        }
        ("GET", ["create-connect"]) if newer => create_connect(inside, asked),
        (method, [id, rest @ ..]) => {
            let Some(terminal) = find(inside, id) else {
                return error(404, "NOT_FOUND", "PTY session not found");
            };
            match (method, rest) {
                ("GET", ["connect"]) => connect(inside, asked, terminal),
                ("GET", []) => answer(200, &json!({"id": id, "active": true})),
                ("DELETE", []) => {
                    processes::end_session(terminal.leader);
                    answer(200, &json!({"message": "PTY session deleted"}))
                }
                ("POST", ["resize"]) => answer(200, &json!({"id": id, "active": true})),
                _ => error(404, "NOT_FOUND", "Cannot find the path"),
            }
        }
        _ => error(404, "NOT_FOUND", "Cannot find the path"),
    }
}

fn find(inside: &Inside, id: &str) -> Option<Arc<Terminal>> {
    let found = inside
        .shared
        .with(&inside.id, |sandbox| sandbox.terminals.get(id).cloned());
    found.flatten()
}

fn create(inside: &Inside, id: &str, request: &Value) -> Result<Arc<Terminal>, Box<Answer>> {
    if id.is_empty() {
        return Err(refused(400, "BAD_REQUEST", "id is required"));
    }
    let size = |key: &str, default: u64| request.get(key).and_then(Value::as_u64).unwrap_or(default);
    let (columns, rows) = (size("cols", 80), size("rows", 24));
    let (Ok(columns), Ok(rows)) = (u16::try_from(columns), u16::try_from(rows)) else {
        return Err(refused(400, "BAD_REQUEST", "cols and rows are at most 1000"));
    };
    if columns > 1000 || rows > 1000 {
        return Err(refused(400, "BAD_REQUEST", "cols and rows are at most 1000"));
    }
    if find(inside, id).is_some() {
        return Err(refused(409, "CONFLICT", "PTY session already exists"));
    }
    let mut env: BTreeMap<String, String> = inside.env.clone();
    env.extend(variables(request.get("envs")));
    env.insert("TERM".to_owned(), "xterm-256color".to_owned());
    let cwd = request.get("cwd").and_then(Value::as_str);
    // `setsid` makes the terminal the controlling one of a new session, and then is the shell.
    let mut command = processes::command("setsid", &inside.id, &inside.home, &env);
    command
        .arg("--ctty")
        .arg(&inside.shared.settings.shell)
        .args(["-i", "-l"])
        .current_dir(inside.path(cwd.unwrap_or(".")));
    let (device, child) = Device::start(command, columns, rows)
        .map_err(|fault| refused(500, "INTERNAL", &format!("failed to start PTY: {fault}")))?;
    let (input, inbound) = mpsc::channel(INBOUND_MESSAGES);
    let (exited, exit) = watch::channel(None);
    let terminal = Arc::new(Terminal {
        leader: child.id().unwrap_or_default(),
        input,
        readers: Mutex::default(),
        exit,
    });
    inside.shared.with(&inside.id, |sandbox| {
        sandbox.terminals.insert(id.to_owned(), Arc::clone(&terminal))
    });
    let (weak, shared) = (Arc::downgrade(&terminal), Arc::clone(&inside.shared));
    let (sandbox_id, id) = (inside.id.clone(), id.to_owned());
    tokio::spawn(async move {
        let code = device.run(child, inbound, weak).await;
        let _ = exited.send(Some(code));
        // Removed at once: only who is attached learns of the end.
        shared.with(&sandbox_id, |sandbox| sandbox.terminals.remove(&id));
    });
    Ok(terminal)
}

fn refused(status: u16, code: &str, message: &str) -> Box<Answer> {
    Box::new(error(status, code, message))
}

impl Terminal {
    /// Output for everybody; a reader whose queue is full and stays so is dropped.
    async fn hand_out(&self, chunk: &Bytes) {
        let readers = self.readers().clone();
        for reader in readers {
            if !matches!(timeout(FULL, reader.send(chunk.clone())).await, Ok(Ok(()))) {
                self.readers().retain(|other| !other.same_channel(&reader));
            }
        }
    }

    fn readers(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Bytes>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create_connect(inside: &Inside, asked: Asked) -> Answer {
    let protocols = asked.header("sec-websocket-protocol").unwrap_or_default();
    let envs = protocols
        .split(',')
        .find_map(|one| one.trim().strip_prefix(ENVS))
        .and_then(|envs| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(envs).ok()?).ok());
    let number = |key: &str| asked.query(key).and_then(|value| value.parse::<u64>().ok());
    let request = json!({
        "cwd": asked.query("cwd"),
        "cols": number("cols"),
        "rows": number("rows"),
        "envs": envs,
    });
    let id = asked.query("id").unwrap_or_default().to_owned();
    match create(inside, &id, &request) {
        Ok(terminal) => connect(inside, asked, terminal),
        Err(refused) => *refused,
    }
}

fn connect(inside: &Inside, asked: Asked, terminal: Arc<Terminal>) -> Answer {
    let offered = asked.header("sec-websocket-protocol").unwrap_or_default();
    let newer = inside.shared.settings.daemon == Daemon::Newer;
    let wants_exit = newer && offered.split(',').any(|one| one.trim() == EXIT_CONTROL);
    let chosen = newer
        .then(|| offered.split(',').map(str::trim).find(|one| !one.is_empty()))
        .flatten()
        .map(str::to_owned);
    let (sender, output) = mpsc::channel(inside.shared.settings.outbound_messages);
    terminal.readers().push(sender);
    socket::accept(&inside.shared, asked, chosen.as_deref(), move |socket| {
        serve(socket, terminal, output, wants_exit)
    })
}

/// Carries both directions until the terminal ends, the client leaves, or it is dropped.
async fn serve(mut socket: Socket, terminal: Arc<Terminal>, mut output: mpsc::Receiver<Bytes>, exit: bool) {
    let (input, exited) = (terminal.input.clone(), terminal.exit.clone());
    // A terminal that is deleted must not be kept by who looks at it.
    drop(terminal);
    let hello = json!({"type": "control", "status": "connected"});
    if socket.send(socket::text(&hello)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            chunk = output.recv() => match chunk {
                Some(chunk) => {
                    let lagging = output.is_closed();
                    let sent = timeout(SLOW, socket.send(socket::binary(chunk))).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return;
                    }
                    if lagging && exited.borrow().is_none() {
                        return socket::close(socket, 1008, "slow consumer").await;
                    }
                }
                None => return ended(socket, exited, exit).await,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => drop(input.send(Bytes::from(text)).await),
                Some(Ok(Message::Binary(bytes))) => drop(input.send(bytes).await),
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                    return socket::close(socket, 1009, "").await;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// All output has been sent: tells the exit code, by control message where that was asked for.
async fn ended(mut socket: Socket, mut exited: watch::Receiver<Option<i32>>, exit: bool) {
    let code = match exited.wait_for(Option::is_some).await {
        Ok(code) => code.unwrap_or(-1),
        Err(_) => 137,
    };
    if exit {
        let bye = json!({"type": "control", "status": "exited", "exitCode": code});
        drop(socket.send(socket::text(&bye)).await);
    }
    let (close, reason) = match code {
        0 => (1000, json!({"exitCode": 0})),
        code => (1011, json!({"exitCode": code, "exitReason": "non-zero exit"})),
    };
    socket::close(socket, close, &reason.to_string()).await;
}
