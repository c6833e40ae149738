//! `paperclip-bridge serve` as a child process, with its control socket and its command line.
//!
//! Here: starting it on a temporary folder and free ports, speaking to it by the command line and by its socket. Not
//! here: what its sessions stand on ([`crate::world`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::{BridgeCommand, Finished, LIMIT, Opened, Running};
use crate::raw::{Agent, Answer, Broken};
use crate::upstream::Upstream;
use crate::waiting::eventually;
use crate::world::{CREDENTIAL, CREDENTIAL_VARIABLE, Place};

/// How often a state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A daemon that has not been started.
#[derive(Debug)]
pub struct ServingBuilder {
    folder: TempDir,
    launcher: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: Option<PathBuf>,
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Serving {
    /// The process.
    pub running: Running,
    /// Where health is asked for, such as `http://127.0.0.1:40123`.
    pub ops: String,
    /// The folder of its socket and its state.
    pub folder: TempDir,
}

impl Serving {
    /// One on folders of its own and free ports.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// One that is told more than the usual.
    ///
    /// # Panics
    ///
    /// Where there is no temporary folder.
    pub fn builder() -> ServingBuilder {
        Self::in_folder(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    /// One on the folder of another.
    pub fn in_folder(folder: TempDir) -> ServingBuilder {
        ServingBuilder {
            folder,
            launcher: vec![],
            arguments: vec![],
            environment: vec![],
            log: None,
        }
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// `--control` and what goes with it.
    pub fn control(&self) -> [String; 2] {
        control(self.folder.path())
    }

    /// Runs a command against it.
    pub async fn run(&self, words: &[&str]) -> Finished {
        BridgeCommand::new(words.iter().copied())
            .args(self.control())
            .finish()
            .await
    }

    /// The same with `--json`: its line.
    ///
    /// # Panics
    ///
    /// Where it fails or prints something else.
    pub async fn ask(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.push("--json");
        let ended = self.run(&words).await;
        assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {}", ended.stdout))
    }

    /// `sessions new local` on this upstream, ready.
    ///
    /// # Panics
    ///
    /// Where it is not opened.
    pub async fn session(&self, upstream: &Upstream, more: &[&str]) -> Opened {
        self.session_at(&Place::Local, upstream, more).await
    }

    /// `sessions new` at this place, ready.
    ///
    /// # Panics
    ///
    /// Where it is not opened.
    pub async fn session_at(&self, place: &Place, upstream: &Upstream, more: &[&str]) -> Opened {
        let (target, options) = (place.target(), place.options());
        let options = options.iter().map(String::as_str).chain(more.iter().copied());
        self.session_named(&target, upstream, &options.collect::<Vec<_>>())
            .await
    }

    /// The same for a target that is no [`Place`].
    ///
    /// # Panics
    ///
    /// Where it is not opened.
    pub async fn session_named(&self, target: &str, upstream: &Upstream, more: &[&str]) -> Opened {
        let url = upstream.url();
        let credential = format!("env:{CREDENTIAL_VARIABLE}");
        let mut words = vec!["sessions", "new", target, "--wait", "ready"];
        words.extend(["--upstream", &url, "--credential", &credential]);
        words.extend(more);
        serde_json::from_value(self.ask(&words).await).expect("it is the line of `open --json`")
    }

    /// One request over its socket.
    ///
    /// # Panics
    ///
    /// Where there is no whole answer.
    pub async fn call(&self, method: &str, target: &str, body: &str) -> Answer {
        self.try_call(method, target, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {target}: {error:?}"))
    }

    /// The same where there may be none.
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub async fn try_call(&self, method: &str, target: &str, body: &str) -> Result<Answer, Broken> {
        self.caller()
            .call(
                method,
                target,
                &[("content-type", "application/json")],
                body.as_bytes(),
            )
            .await
    }

    /// Speaks to its socket byte by byte.
    pub fn caller(&self) -> Agent {
        Agent {
            url: format!("unix:{}", self.socket().display()),
            token: "none".to_owned(),
        }
    }

    /// Waits until the session is in this state, and shows it.
    ///
    /// # Panics
    ///
    /// Where it does not come to that in time.
    pub async fn until(&self, session: &str, state: &str) -> Value {
        let waited = async {
            loop {
                let shown = self
                    .call("GET", &format!("/v1/sessions/{session}"), "")
                    .await
                    .json();
                if shown["state"] == state {
                    return shown;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        crate::waiting::within(LIMIT, &format!("session {session} is {state}"), waited).await
    }
}

impl ServingBuilder {
    /// More options of `serve`.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Started by this program; see [`BridgeCommand::by`].
    #[must_use]
    pub fn by<A: Into<String>>(mut self, launcher: impl IntoIterator<Item = A>) -> Self {
        self.launcher = launcher.into_iter().map(Into::into).collect();
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its stderr goes to this file and not into memory.
    #[must_use]
    pub fn log_to(mut self, file: &Path) -> Self {
        self.log = Some(file.to_owned());
        self
    }

    /// Where its control socket stands.
    pub fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// Starts it and reads its line.
    ///
    /// # Panics
    ///
    /// With its own words where it does not start.
    pub async fn start(self) -> Serving {
        let mut running = self.command().start();
        let line = eventually(LIMIT, "`serve` prints its line or ends", || {
            let said = running.stdout();
            match said.split_once('\n') {
                Some((line, _)) => Some(Ok(line.to_owned())),
                None => running.has_ended().then(|| Err(running.stderr())),
            }
        })
        .await
        .unwrap_or_else(|stderr| panic!("`serve` ended: {stderr}"));
        let told: Value = serde_json::from_str(&line).expect("it is JSON");
        assert_eq!(told["pid"], running.pid());
        Serving {
            ops: format!(
                "http://{}",
                told["ops"].as_str().expect("it says where it listens")
            ),
            running,
            folder: self.folder,
        }
    }

    /// Its command line.
    ///
    /// # Panics
    ///
    /// Where the file of its log cannot be made.
    pub fn command(&self) -> BridgeCommand {
        let state = self.folder.path().join("state");
        let elsewhere = self.arguments.iter().any(|argument| argument == "--ops");
        let ops: &[_] = if elsewhere { &[] } else { &["--ops", "127.0.0.1:0"] };
        let mut command = BridgeCommand::new(["serve", "--json"])
            .args(ops.iter().copied())
            .args(["--state-dir".to_owned(), state.display().to_string()])
            .args(control(self.folder.path()))
            .args(self.arguments.clone())
            .by(self.launcher.clone())
            .env(CREDENTIAL_VARIABLE, CREDENTIAL);
        for (name, value) in &self.environment {
            command = command.env(name, value);
        }
        match &self.log {
            Some(path) => {
                command.log_to(std::fs::File::create(path).expect("the file of its log can be made"))
            }
            None => command,
        }
    }
}

/// What an agent of the session is.
pub fn agent(opened: &Opened) -> Agent {
    Agent {
        url: opened.url.clone(),
        token: opened.token.clone(),
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

fn control(folder: &Path) -> [String; 2] {
    [
        "--control".to_owned(),
        format!("unix:{}", socket(folder).display()),
    ]
}
