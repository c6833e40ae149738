//! One-shot commands: fed to the shell on its stdin, both outputs merged, the group killed on time-out.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http::{Answer, answer, error};
use super::toolbox::Inside;
use super::{Daemon, processes};

pub(super) async fn run(inside: &Inside, request: &Value) -> Answer {
    let script = request
        .get("command")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if script.trim().is_empty() {
        return error(400, "BAD_REQUEST", "empty command");
    }
    let limit = request.get("timeout").and_then(Value::as_u64).unwrap_or_default();
    let (mut output, into) = tokio_pipe();
    let errors = into.try_clone().expect("a pipe can be shared");
    let mut env = inside.env.clone();
    env.extend(variables(request.get("envs")));
    let mut command = processes::command(&inside.shared.settings.shell, &inside.id, &inside.home, &env);
    command
        .stdin(Stdio::piped())
        .stdout(into)
        .stderr(errors)
        .process_group(0);
    if let Some(cwd) = request.get("cwd").and_then(Value::as_str) {
        command.current_dir(inside.path(cwd));
    }
    let spawned = command.spawn();
    // It holds the writing ends of the pipe.
    drop(command);
    let Ok(mut child) = spawned else {
        return answer(200, &json!({"exitCode": -1, "result": ""}));
    };
    let leader = child.id().unwrap_or_default();
    let mut feed = child.stdin.take().expect("stdin is a pipe");
    let mut result = vec![];
    let whole = async {
        let fed = async {
            // A shell that stops reading its script breaks the pipe.
            drop(feed.write_all(script.as_bytes()).await);
            drop(feed);
        };
        // The daemon waits for the pipe, too: a background process that holds it keeps the call open.
        tokio::join!(fed, output.read_to_end(&mut result)).1.ok();
        child.wait().await
    };
    let status = if limit == 0 {
        whole.await
    } else {
        match tokio::time::timeout(Duration::from_secs(limit), whole).await {
            Ok(status) => status,
            Err(_) => {
                processes::signal_group(leader, Signal::KILL);
                drop(child.wait().await);
                let code = match inside.shared.settings.daemon {
                    Daemon::Newer => "PROCESS_EXECUTION_TIMEOUT",
                    Daemon::Old => "REQUEST_TIMEOUT",
                };
                return error(408, code, "command execution timeout");
            }
        }
    };
    let code = status.ok().and_then(|status| status.code()).unwrap_or(-1);
    let result = String::from_utf8_lossy(&result);
    answer(200, &json!({"exitCode": code, "code": code, "result": result}))
}

/// An object of strings as variables.
pub(super) fn variables(envs: Option<&Value>) -> BTreeMap<String, String> {
    let entries = envs.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn tokio_pipe() -> (tokio::net::unix::pipe::Receiver, std::io::PipeWriter) {
    let (read, write) = std::io::pipe().expect("a pipe can be made");
    let read = tokio::net::unix::pipe::Receiver::from_owned_fd(read.into());
    (read.expect("a pipe is watched by the runtime"), write)
}
