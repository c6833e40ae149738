//! AWS on this machine: moto's server, which checks signatures and answers for Secrets Manager and instance metadata.
//!
//! Here: starting it and telling it what to hold. What runs is `tests/sdk/moto/server.py`. Not here: its packages
//! ([`install`]).

pub mod install;

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::waiting::within;

pub use install::here;

/// How long it may take to start, and for each order.
const LIMIT: Duration = Duration::from_secs(60);

/// The region of all that it holds.
pub const REGION: &str = "us-east-1";

/// Keys that sign calls.
#[derive(Clone, Debug, Deserialize)]
pub struct Keys {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub key: String,
    /// Session token, of a role's keys.
    #[serde(default)]
    pub token: Option<String>,
    /// A role's keys, beside those of a user.
    #[serde(default)]
    pub role: Option<Box<Keys>>,
}

/// A request that it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// `X-Amz-Target`: which operation.
    pub target: Option<String>,
    /// It carried a token of instance metadata, version 2.
    pub metadata_token: bool,
    /// It carried a role's session token.
    pub session_token: bool,
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Moto {
    /// Starts it on a free port.
    ///
    /// # Panics
    ///
    /// Where it does not start; ask [`here`] first.
    pub async fn start() -> Self {
        let python = install::python().expect("`here` was asked first");
        let mut child = Command::new(python)
            .args(["-I", "-B"])
            .arg(install::folder().join("server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_clear()
            .kill_on_drop(true)
            .spawn()
            .expect("the installed Python starts");
        let stdin = child.stdin.take().expect("it is piped");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut moto = Self {
            child,
            stdin,
            lines,
            port: 0,
        };
        let began = moto.line().await;
        moto.port = serde_json::from_value(began["port"].clone()).expect("it says its port");
        moto
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Keys that may read secrets. From then on every signature is checked.
    pub async fn user(&mut self) -> Keys {
        let made = self.order(json!({ "do": "user" })).await;
        serde_json::from_value(made).expect("it gives keys")
    }

    /// Makes the secret, or gives it another value; returns its ARN.
    pub async fn put(&mut self, name: &str, text: &str) -> String {
        let put = self
            .order(json!({ "do": "put", "name": name, "text": text }))
            .await;
        put["arn"].as_str().expect("an ARN").to_owned()
    }

    /// As [`Self::put`], with a binary value.
    pub async fn put_binary(&mut self, name: &str, value: &str) {
        self.order(json!({ "do": "put", "name": name, "binary": value }))
            .await;
    }

    /// What clients have asked for so far.
    pub async fn seen(&mut self) -> Vec<Asked> {
        let seen = self.order(json!({ "do": "seen" })).await;
        serde_json::from_value(seen["asked"].clone()).expect("a list")
    }

    /// Ends it; its port then refuses.
    pub async fn stop(mut self) {
        drop(self.stdin);
        let ended = within(LIMIT, "moto ends with its input", self.child.wait()).await;
        ended.expect("it can be waited for");
    }

    async fn order(&mut self, order: Value) -> Value {
        let line = format!("{order}\n");
        let sent = within(
            LIMIT,
            "moto takes an order",
            self.stdin.write_all(line.as_bytes()),
        )
        .await;
        sent.expect("moto runs");
        self.line().await
    }

    async fn line(&mut self) -> Value {
        let line = within(LIMIT, "moto answers", self.lines.next_line()).await;
        let line = line
            .expect("its output is text")
            .expect("moto runs; its errors are above");
        serde_json::from_str(&line).expect("it answers in JSON")
    }
}
