//! The toolbox daemon of one sandbox: commands, files and terminals as calls.
//!
//! Here: [`Toolbox`]. Not here: what the commands are; see [`super::script`].

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, Body, Call, Fault, encoded};
use super::{multipart, random_name};
use crate::http::BaseUrl;

/// What the answer to a time-out of `limit` may take longer than that.
pub(super) const CALL_SLACK: Duration = Duration::from_secs(5);
/// No time limit is longer than this: 30 days.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a one-shot command gave.
#[derive(Debug, Deserialize)]
pub(super) struct Ran {
    /// Older daemons call it `code`.
    #[serde(rename = "exitCode", default)]
    exit_code: Option<i32>,
    #[serde(default)]
    code: Option<i32>,
    #[serde(default)]
    pub(super) result: String,
}

impl Ran {
    /// -1 where the shell could not be started.
    pub(super) fn exit_code(&self) -> i32 {
        self.exit_code.or(self.code).unwrap_or(-1)
    }

    /// The last line that starts with `mark`, without the mark: profiles may print ahead of it.
    pub(super) fn line(&self, mark: &str) -> Option<&str> {
        let lines = self.result.lines().rev();
        lines.filter_map(|line| line.strip_prefix(mark)).next()
    }

    /// The lines behind the line that starts with `mark`, and that line without the mark.
    pub(super) fn after(&self, mark: &str) -> Option<(&str, std::str::Lines<'_>)> {
        let mut lines = self.result.lines();
        let first = lines.by_ref().find_map(|line| line.strip_prefix(mark))?;
        Some((first, lines))
    }
}

/// One sandbox's daemon.
#[derive(Clone, Debug)]
pub(super) struct Toolbox {
    pub(super) api: Api,
    /// Of the sandbox: the proxy's URL and the id.
    base: BaseUrl,
    /// Limit of a call that runs no command of the caller's.
    liveness: Duration,
}

impl Toolbox {
    /// - `proxy`: what the sandbox says is its toolbox proxy.
    pub(super) fn new(api: Api, proxy: &str, id: &str, liveness: Duration) -> Result<Self, Fault> {
        let base = BaseUrl::parse(&format!("{}/{}", proxy.trim_end_matches('/'), encoded(id)))
            .map_err(|problem| Fault::Broken(format!("the address of the toolbox {problem}")))?;
        Ok(Self { api, base, liveness })
    }

    pub(super) fn url(&self, path: &str) -> String {
        self.base.join(path)
    }

    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, self.url(path), self.liveness)
    }

    /// Runs a script of the shell with a limit that the daemon keeps: then it kills the whole group and answers 408.
    pub(super) async fn execute(&self, script: &str, limit: Duration) -> Result<Ran, Fault> {
        let (seconds, deadline) = limits(limit);
        let mut call = self
            .call(Method::POST, "/process/execute")
            .json(json!({"command": script, "timeout": seconds}));
        call.deadline = deadline;
        call.limit = 16 * 1024 * 1024;
        self.api.ask(call).await
    }

    /// A short script of our own.
    pub(super) async fn script(&self, script: &str) -> Result<Ran, Fault> {
        self.execute(script, self.liveness).await
    }

    /// Any answer will do: it counts as activity.
    pub(super) async fn version(&self) -> Result<(), Fault> {
        self.api.send(self.call(Method::GET, "/version")).await.map(drop)
    }

    /// Where the image wants commands to run.
    pub(super) async fn work_dir(&self) -> Result<String, Fault> {
        #[derive(Deserialize)]
        struct Said {
            dir: String,
        }
        let said = match self.api.ask::<Said>(self.call(Method::GET, "/work-dir")).await {
            Err(Fault::Status(fault)) if fault.status == 404 => {
                self.api.ask(self.call(Method::GET, "/user-home-dir")).await?
            }
            other => other?,
        };
        if said.dir.starts_with('/') && !said.dir.contains('\0') {
            return Ok(said.dir.trim_end_matches('/').to_owned());
        }
        Err(Fault::Broken(format!(
            "the work folder {:?} is no absolute path",
            said.dir
        )))
    }

    /// Makes a folder and what is above it.
    pub(super) async fn folder(&self, path: &str, mode: &str) -> Result<(), Fault> {
        let path = format!("/files/folder?path={}&mode={mode}", encoded(path));
        let mut call = self.call(Method::POST, &path);
        call.repeatable = true;
        self.api.send(call).await.map(drop)
    }

    /// Writes files, in folders that are there.
    pub(super) async fn upload(&self, files: &[(&str, &[u8])]) -> Result<(), Fault> {
        let boundary = random_name().map_err(Fault::Broken)?;
        let (content_type, bytes) = multipart::upload(&boundary, files);
        let mut call = self.call(Method::POST, "/files/bulk-upload");
        // A megabyte a second is slow.
        call.deadline += Duration::from_secs(u64::try_from(bytes.len() >> 20).unwrap_or(u64::MAX).min(3600));
        call.body = Body::Form(content_type, bytes);
        call.repeatable = true;
        self.api.send(call).await.map(drop)
    }

    /// The bytes of a file; none where there is no such file.
    pub(super) async fn download(&self, path: &str, limit: usize) -> Result<Option<bytes::Bytes>, Fault> {
        let mut call = self.call(Method::GET, &format!("/files/download?path={}", encoded(path)));
        call.limit = limit;
        match self.api.send(call).await {
            Err(Fault::Status(fault)) if fault.status == 404 => Ok(None),
            other => other.map(Some),
        }
    }

    /// Removes a file or a folder; that it is gone is no fault.
    pub(super) async fn remove(&self, path: &str) -> Result<(), Fault> {
        let path = format!("/files?path={}&recursive=true", encoded(path));
        match self.api.send(self.call(Method::DELETE, &path)).await {
            Err(Fault::Status(fault)) if fault.status == 404 => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes a terminal with a login shell; nobody is attached yet.
    pub(super) async fn create_terminal(&self, id: &str, cwd: &str) -> Result<(), Fault> {
        let request = json!({"id": id, "cwd": cwd, "cols": 120, "rows": 30});
        let call = self.call(Method::POST, "/process/pty").json(request);
        self.api.ask::<Value>(call).await.map(drop)
    }

    /// Ends a terminal and all that runs on it; that it is gone is no fault.
    pub(super) async fn delete_terminal(&self, id: &str) -> Result<(), Fault> {
        let path = format!("/process/pty/{}", encoded(id));
        match self.api.send(self.call(Method::DELETE, &path)).await {
            Err(Fault::Status(fault)) if fault.status == 404 => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A command's limit in the daemon's whole seconds, and how long its answer is waited for, which is longer.
fn limits(limit: Duration) -> (u64, Duration) {
    let limit = limit.min(LONGEST);
    // A part of a second is a whole one: less would end what still has time.
    let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
    let seconds = seconds.max(1);
    (seconds, Duration::from_secs(seconds) + CALL_SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_s_limit_is_never_shorter_in_the_call_nor_in_the_request_around_it() {
        for (limit, seconds) in [(1, 1), (1000, 1), (1001, 2), (86_400_000, 86_400)] {
            let (told, waited) = limits(Duration::from_millis(limit));

            assert_eq!(
                (told, waited),
                (seconds, Duration::from_secs(seconds + 5)),
                "{limit} ms"
            );
        }
        assert_eq!(limits(Duration::MAX).0, LONGEST.as_secs());
    }
}
