//! The program's place on the target: found there, or put there once.
//!
//! Here: the two executions (a look, and an upload only where needed) and what their answers mean. Not here: their
//! text (`scripts`). The program goes over stdin as raw bytes, or by the runner's own upload where it has one, never
//! through argv; its name holds its digest, and what is there is hashed before it is believed.

use std::time::Duration;

use runners::{Execution, ExecutionResult, Input, RunnerError};

use super::scripts::{self, MARK, Wanted};
use super::{GatewayKind, LaunchFault, Launcher, SessionName, hex};

/// Hashing and starting a few megabytes on a slow machine.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Waiting for another upload, and one's own over a slow line.
const UPLOAD_LIMIT: Duration = Duration::from_secs(180);
/// Our scripts say a few lines; a target that says more is not believed further.
const OUTPUT_LIMIT_BYTES: usize = 16 * 1024;
/// Longest text of the target's in an error.
const EXCERPT_LIMIT: usize = 200;
/// Longest path accepted from the target.
const PATH_LIMIT_BYTES: usize = 4096;

/// A gateway's program in its place on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The program's absolute path.
    path: String,
    /// The folder of the bridge's files, absolute; ours alone.
    folder: String,
    /// Node's path, for a script.
    node: Option<String>,
}

impl Installed {
    /// The program's absolute path on the target.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The folder of the bridge's files on the target, absolute, mode 0700 and ours alone: queues and records too.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Node's path on the target, where the program is a script.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Where a session's gateway is recorded.
    pub(crate) fn record(&self, name: &SessionName) -> String {
        format!("{}/run-{}", self.folder, name.as_str())
    }

    /// Where a session's gateway on a byte stream finds another token; the end of its record removes it, too.
    pub(crate) fn token_file(&self, name: &SessionName) -> String {
        format!("{}/token-{}", self.folder, name.as_str())
    }
}

/// One thing that a script said.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    System(&'a str),
    Node(&'a str),
    Installed(&'a str),
    Missing,
    Room(&'a str),
    Short(&'a str),
    Mismatch,
    Refused(&'a str),
    Nowhere,
}

/// How the program travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Upload,
    Stdin,
    StdinBesideHome,
}

impl Launcher {
    /// Finds the program on the target, or puts it there; one execution where it is there, two where not.
    ///
    /// Tried are `${XDG_CACHE_HOME:-$HOME/.cache}/paperclip-bridge` and then
    /// `${TMPDIR:-/tmp}/paperclip-bridge-UID`; the second where the first cannot be written or lies on a file system
    /// that runs no programs. May be called again at any time.
    ///
    /// # Errors
    ///
    /// [`LaunchFault`] as its variants say.
    pub async fn install(&self) -> Result<Installed, LaunchFault> {
        let name = self.program.file_name();
        let wanted = Wanted {
            name: &name,
            sha256: &self.program.sha256,
            size: self.program.bytes.len(),
            is_binary: self.program.kind == GatewayKind::Binary,
        };
        let by_upload = self.runner.capabilities().file_transfer;
        let result = self
            .script(scripts::probe(wanted, by_upload), Input::None, PROBE_LIMIT)
            .await?;
        let lines = lines(&result);
        let node = self.judge_target(&lines, &result)?;
        if let Some(found) = place(&lines, &name, node.clone())? {
            return Ok(found);
        }
        if !lines.contains(&Said::Missing) {
            return Err(unexpected(&result));
        }
        let room = lines.iter().find_map(|line| {
            let Said::Room(folder) = line else { return None };
            Some(absolute(folder))
        });
        self.upload(wanted, room.transpose()?, node).await
    }

    /// Whether the target can run the program at all; for a script, where Node is.
    fn judge_target(
        &self,
        lines: &[Said<'_>],
        result: &ExecutionResult,
    ) -> Result<Option<String>, LaunchFault> {
        for line in lines {
            match (self.program.kind, line) {
                (GatewayKind::Binary, Said::System(found)) if *found == super::PLATFORM => return Ok(None),
                (GatewayKind::Binary, Said::System(found)) => {
                    return Err(LaunchFault::NoGatewayForPlatform {
                        found: excerpt(found),
                    });
                }
                (GatewayKind::Script, Said::Node("")) => return Err(LaunchFault::NodeMissing),
                (GatewayKind::Script, Said::Node(path)) => return absolute(path).map(Some),
                _ => {}
            }
        }
        Err(unexpected(result))
    }

    /// By the runner's own upload where there is `room` for it, else over stdin, and there into the home first.
    async fn upload(
        &self,
        wanted: Wanted<'_>,
        room: Option<String>,
        node: Option<String>,
    ) -> Result<Installed, LaunchFault> {
        let mut reason = String::new();
        for way in [Way::Upload, Way::Stdin, Way::StdinBesideHome] {
            let staging = random_name()?;
            let uploaded = match (way, &room) {
                (Way::Upload, Some(room)) => {
                    let path = scripts::staged(room, &staging);
                    if !self.handed_over(&path).await? {
                        continue;
                    }
                    Some(path)
                }
                (Way::Upload, None) => continue,
                (Way::Stdin | Way::StdinBesideHome, _) => None,
            };
            let stdin = if uploaded.is_some() {
                Input::None
            } else {
                Input::Bytes(self.program.bytes.clone())
            };
            let skip_home = way == Way::StdinBesideHome;
            let script = scripts::upload(wanted, &staging, skip_home, uploaded.as_deref());
            let result = self.script(script, stdin, UPLOAD_LIMIT).await?;
            let lines = lines(&result);
            if let Some(installed) = place(&lines, wanted.name, node.clone())? {
                tracing::info!(target_host = %self.runner.target(), path = installed.path, "gateway installed");
                return Ok(installed);
            }
            match lines.last() {
                // The first folder ran full, most likely; its input is spent, so once more with the other.
                Some(Said::Short(folder)) => {
                    reason = format!(
                        "not all of it could be written to {}; is the disk full?",
                        excerpt(folder)
                    );
                }
                Some(Said::Mismatch) => {
                    return Err(LaunchFault::SyncFailed(
                        "what arrived has another SHA-256 than what was sent".to_owned(),
                    ));
                }
                Some(Said::Nowhere) => return Err(nowhere(&lines)),
                _ => return Err(unexpected(&result)),
            }
        }
        Err(LaunchFault::SyncFailed(reason))
    }

    /// Whether the runner's own upload took the program to `path`, unchecked as yet. Where it fails, stdin is left.
    async fn handed_over(&self, path: &str) -> Result<bool, LaunchFault> {
        let upload = self.runner.upload(path, self.program.bytes.clone(), 0o600);
        match tokio::time::timeout(UPLOAD_LIMIT, upload).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error @ RunnerError::LeaseLost { .. })) => Err(LaunchFault::running(&error)),
            Ok(Err(error)) => {
                tracing::debug!(target_host = %self.runner.target(), %error, "the gateway goes over stdin instead");
                Ok(false)
            }
            Err(_) => Err(LaunchFault::SyncFailed(format!(
                "the provider did not take the gateway within {UPLOAD_LIMIT:?}"
            ))),
        }
    }

    /// Runs one of our short scripts.
    pub(super) async fn script(
        &self,
        script: String,
        stdin: Input,
        limit: Duration,
    ) -> Result<ExecutionResult, LaunchFault> {
        let result = self
            .execute(script, stdin, limit)
            .await
            .map_err(|error| LaunchFault::running(&error))?;
        if result.timed_out {
            return Err(LaunchFault::SyncFailed(format!(
                "the target did not finish a command within {limit:?}"
            )));
        }
        Ok(result)
    }

    /// The same with the runner's own word for what went wrong.
    pub(super) async fn execute(
        &self,
        script: String,
        stdin: Input,
        limit: Duration,
    ) -> Result<ExecutionResult, RunnerError> {
        let mut execution = Execution::new(self.shell.program(), self.shell.script_args(script));
        execution.stdin = stdin;
        execution.timeout = Some(limit);
        execution.keep_output = OUTPUT_LIMIT_BYTES;
        execution
            .env
            .insert("PAPERCLIP_SANDBOX_EXEC_CHANNEL".to_owned(), "bridge".to_owned());
        self.runner.execute(execution).await
    }
}

/// 16 random bytes in hex.
pub(crate) fn random_name() -> Result<String, LaunchFault> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random)
        .map_err(|error| LaunchFault::Invalid(format!("cannot get random bytes from the system: {error}")))?;
    Ok(hex(&random))
}

fn lines(result: &ExecutionResult) -> Vec<Said<'_>> {
    let Ok(text) = std::str::from_utf8(&result.stdout) else {
        return Vec::new();
    };
    text.lines()
        .filter_map(|line| {
            let said = line.strip_prefix(MARK)?;
            let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
            Some(match word {
                "system" => Said::System(rest),
                "node" => Said::Node(rest),
                "installed" => Said::Installed(rest),
                "missing" => Said::Missing,
                "room" => Said::Room(rest),
                "short" => Said::Short(rest),
                "mismatch" => Said::Mismatch,
                "refused" => Said::Refused(rest),
                "nowhere" => Said::Nowhere,
                _ => return None,
            })
        })
        .collect()
}

/// Where the program is, if one of the lines says so.
fn place(lines: &[Said<'_>], name: &str, node: Option<String>) -> Result<Option<Installed>, LaunchFault> {
    let mut found = None;
    for line in lines {
        if let Said::Installed(path) = line {
            found = Some(*path);
        }
    }
    let Some(path) = found else { return Ok(None) };
    let path = absolute(path)?;
    let folder = path
        .strip_suffix(name)
        .and_then(|folder| folder.strip_suffix('/'))
        .filter(|folder| !folder.is_empty())
        .ok_or_else(|| {
            LaunchFault::SyncFailed(format!("the target names {:?} as its place", excerpt(&path)))
        })?
        .to_owned();
    Ok(Some(Installed { path, folder, node }))
}

/// Accepts a path from the target: it becomes a word of our next command.
fn absolute(path: &str) -> Result<String, LaunchFault> {
    if path.starts_with('/') && path.len() <= PATH_LIMIT_BYTES && !path.chars().any(char::is_control) {
        return Ok(path.to_owned());
    }
    Err(LaunchFault::SyncFailed(format!(
        "the target names {:?}, which is no absolute path",
        excerpt(path)
    )))
}

fn nowhere(lines: &[Said<'_>]) -> LaunchFault {
    let refusals: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let Said::Refused(text) = line else { return None };
            Some(excerpt(text))
        })
        .collect();
    if refusals.is_empty() {
        return LaunchFault::SyncFailed(
            "neither ~/.cache nor the temporary folder can be written by this account, or what lies there is \
             somebody else's; set XDG_CACHE_HOME or TMPDIR on the target"
                .to_owned(),
        );
    }
    LaunchFault::SyncFailed(format!(
        "the program does not run where it can be put ({}); set XDG_CACHE_HOME or TMPDIR on the target to a folder \
         whose programs may run",
        refusals.join("; ")
    ))
}

fn unexpected(result: &ExecutionResult) -> LaunchFault {
    let end = match (result.exit_code, &result.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    };
    let said = String::from_utf8_lossy(if result.stderr.is_empty() {
        &result.stdout
    } else {
        &result.stderr
    });
    LaunchFault::SyncFailed(format!(
        "the target's shell ended with {end} and said {:?}",
        excerpt(said.trim())
    ))
}

/// The beginning of a text of the target's, on one line.
pub(super) fn excerpt(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(EXCERPT_LIMIT)
        .collect()
}
