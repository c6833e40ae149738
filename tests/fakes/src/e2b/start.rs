//! Starting a process as the server does: through `/bin/sh`, with an environment of its own, on pipes or a pty.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ending::MARK;
use super::process::{Process, Stdin, Supervised, pump};
use super::rpc::Fault;
use super::sandbox::Sandbox;

/// Largest piece of an output in one message.
const PIPE_PIECE: usize = 32 * 1024;
/// Largest piece of a pty's output.
const PTY_PIECE: usize = 16 * 1024;
/// Signals that may wait for a process.
const SIGNALS: usize = 16;
/// Becomes the program: what cannot be run is exit 127 and a line on stderr, no error of the call.
const WRAPPER: &str = r#"exec "$@""#;

/// Starts what `request` says in `sandbox`.
pub(super) fn start(
    sandbox: &Arc<Sandbox>,
    user: Option<&str>,
    request: &Value,
    limit: Option<Duration>,
) -> Result<Arc<Process>, Fault> {
    let plan = Plan::read(sandbox, user, request)?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    let (sender, signals) = mpsc::channel(SIGNALS);
    let made = |pid: Option<u32>, stdin| {
        let pid = pid.expect("a child that was not waited for");
        Arc::new(Process::new(
            pid,
            plan.tag.clone(),
            plan.config.clone(),
            stdin,
            sender,
        ))
    };
    let process = if let Some(size) = plan.pty {
        let (read, write, child) = plan.on_pty(size)?;
        let process = made(child.id(), Stdin::Pty(write));
        supervise(sandbox, &process, child, signals, deadline, {
            let process = Arc::clone(&process);
            async move { pump(&process, "pty", read, PTY_PIECE).await }
        });
        process
    } else {
        let mut child = plan.on_pipes()?;
        let stdin = child.stdin.take().map_or(Stdin::None, Stdin::Pipe);
        let stdout = child.stdout.take().expect("a piped stdout");
        let stderr = child.stderr.take().expect("a piped stderr");
        let process = made(child.id(), stdin);
        supervise(sandbox, &process, child, signals, deadline, {
            let process = Arc::clone(&process);
            async move {
                tokio::join!(
                    pump(&process, "stdout", stdout, PIPE_PIECE),
                    pump(&process, "stderr", stderr, PIPE_PIECE),
                );
            }
        });
        process
    };
    sandbox.processes.add(Arc::clone(&process));
    Ok(process)
}

fn supervise(
    sandbox: &Arc<Sandbox>,
    process: &Arc<Process>,
    child: Child,
    signals: mpsc::Receiver<Signal>,
    deadline: Option<Instant>,
    pumps: impl Future<Output = ()> + Send + 'static,
) {
    let supervised = Supervised {
        process: Arc::clone(process),
        child,
        signals,
        deadline,
    };
    let clock = Arc::clone(&sandbox.clock);
    let task = async move { supervised.run(pumps, &clock).await };
    sandbox.tasks.spawn(task);
}

/// A request to start, checked.
struct Plan {
    config: Value,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: String,
    tag: Option<String>,
    pty: Option<(u16, u16)>,
    stdin: bool,
}

impl Plan {
    fn read(sandbox: &Sandbox, user: Option<&str>, request: &Value) -> Result<Self, Fault> {
        let config = request.get("process").cloned().unwrap_or_default();
        let words = config["args"].as_array().cloned().unwrap_or_default();
        let mut argv = vec![config["cmd"].as_str().unwrap_or_default().to_owned()];
        argv.extend(
            words
                .iter()
                .map(|word| word.as_str().unwrap_or_default().to_owned()),
        );
        let home = sandbox.home();
        let cwd = config["cwd"].as_str().filter(|cwd| !cwd.is_empty());
        let cwd = sandbox.resolve(cwd.unwrap_or(&home));
        if !cwd.is_dir() {
            let message = format!("cwd '{}' does not exist", cwd.display());
            return Err(Fault::new("invalid_argument", message));
        }
        let user = sandbox.check_user(user)?;
        let mut env = BTreeMap::from([
            (
                "PATH".to_owned(),
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ),
            ("HOME".to_owned(), home),
            ("USER".to_owned(), user.clone()),
            ("LOGNAME".to_owned(), user),
            ("E2B_SANDBOX".to_owned(), "true".to_owned()),
            (MARK.to_owned(), sandbox.id.clone()),
        ]);
        env.extend(sandbox.env.clone());
        let own = config["envs"].as_object().cloned().unwrap_or_default();
        env.extend(
            own.into_iter()
                .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))),
        );
        let side = |name: &str, default| {
            let side = request["pty"]["size"][name].as_u64().unwrap_or(default);
            u16::try_from(side).unwrap_or(u16::MAX)
        };
        Ok(Self {
            argv,
            env,
            cwd: cwd.to_string_lossy().into_owned(),
            tag: request["tag"].as_str().map(str::to_owned),
            pty: request["pty"]
                .is_object()
                .then(|| (side("rows", 24), side("cols", 80))),
            stdin: request["stdin"].as_bool().unwrap_or(true),
            config,
        })
    }

    fn on_pipes(&self) -> Result<Child, Fault> {
        Command::new("/bin/sh")
            .args(["-c", WRAPPER, "sh"])
            .args(&self.argv)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.cwd)
            .stdin(if self.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot_start)
    }

    fn on_pty(
        &self,
        (rows, cols): (u16, u16),
    ) -> Result<(pty_process::OwnedReadPty, pty_process::OwnedWritePty, Child), Fault> {
        let (pty, slave) = pty_process::open().map_err(cannot_start)?;
        pty.resize(pty_process::Size::new(rows, cols))
            .map_err(cannot_start)?;
        let child = pty_process::Command::new("/bin/sh")
            .args(["-c", WRAPPER, "sh"])
            .args(&self.argv)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.cwd)
            .kill_on_drop(true)
            .spawn(slave)
            .map_err(cannot_start)?;
        let (read, write) = pty.into_split();
        Ok((read, write, child))
    }
}

fn cannot_start(error: impl std::fmt::Display) -> Fault {
    Fault::new("invalid_argument", format!("error starting process: {error}"))
}
