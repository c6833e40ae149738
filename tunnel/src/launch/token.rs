//! Another token in the place of the one that a running gateway holds.
//!
//! Here: [`SharedToken`], which a tunnel starts its gateway with and which somebody else may change, and the execution that
//! has the gateway take it. The gateway follows a file that it made itself (`wire::names::variable::TOKEN_FILE`); its line is
//! replaced only where it still is the one that is expected, so that a command that comes late undoes nothing. Not here: the
//! command's text (`scripts`), and what else goes by the token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runners::{Input, RunnerError};
use tokio::sync::{Mutex, MutexGuard};

use super::fault::with_causes;
use super::scripts::{self, MARK};
use super::{GatewayToken, Launcher, hex};

/// A gateway that is just being started is waited for.
const START_LIMIT: Duration = Duration::from_secs(4);
/// One execution.
const EXECUTION_LIMIT: Duration = Duration::from_secs(10);
/// All of them; a client of the daemon's waits half a minute.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);
/// Lines that may stand there in place of the expected one, before it is given up.
const ATTEMPTS: usize = 5;
/// The longest line that is believed.
const LINE_LIMIT_BYTES: usize = 256;

/// The token that a session's gateway holds, or is started with next. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct SharedToken(Arc<Mutex<Held>>);

/// What is known of it. Whoever starts a gateway keeps hold of it until that runs, so that no change is lost between.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) token: GatewayToken,
    /// What runs now; `None` where nothing does that could take another one.
    pub(crate) gateway: Option<Following>,
}

/// A gateway that takes another token when its file says so.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    pub(crate) launcher: Launcher,
    /// The file's path on the target.
    pub(crate) file: String,
    /// What its line begins with; `None` where another host started it.
    pub(crate) start: Option<String>,
    /// The directory of its queue with the fence under which it is served.
    pub(crate) fence: Option<(String, u64)>,
}

/// Why a gateway did not take another token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeFault {
    /// It does not follow its file.
    #[error(
        "no gateway that takes another token is on the target: it is not there at the moment, or is one that knows only \
         the token that it was started with"
    )]
    NotFollowed,
    /// A later owner of the session was there.
    #[error("another host serves the session by now, under the fence {0}")]
    TakenOver(u64),
    /// Nothing was changed.
    #[error("the gateway was not told: {0}; the token before holds on")]
    Unchanged(String),
    /// It may have been changed, or may yet be.
    #[error("it is not known whether the gateway has taken another token: {0}; ask for another one again")]
    Uncertain(String),
}

/// What a command said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Taken,
    NoFile,
    Behind(u64),
    /// Another line stands there.
    Other(String),
    Failed,
}

impl From<GatewayToken> for SharedToken {
    fn from(token: GatewayToken) -> Self {
        Self(Arc::new(Mutex::new(Held { token, gateway: None })))
    }
}

impl SharedToken {
    /// Has the gateway that runs take the token of this SHA-256, and each one that is started afterwards. The one before is
    /// void when this returns. Takes up to 24 seconds, two or three commands on the target.
    ///
    /// # Errors
    ///
    /// [`ChangeFault`]; only after [`ChangeFault::Uncertain`] the token before may be void, too.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it uncertain which token holds; another change sets that right.
    pub async fn change(&self, sha256: [u8; 32]) -> Result<(), ChangeFault> {
        let Ok(mut held) = tokio::time::timeout(START_LIMIT, self.0.lock()).await else {
            return Err(ChangeFault::Unchanged("it is being started just now".to_owned()));
        };
        let gateway = held.gateway.as_ref().ok_or(ChangeFault::NotFollowed)?;
        let taking = gateway.takes(held.token.sha256(), &sha256);
        match tokio::time::timeout(CHANGE_LIMIT, taking).await {
            Ok(taken) => taken?,
            Err(_) => {
                return Err(ChangeFault::Uncertain(format!(
                    "the target did not answer within {CHANGE_LIMIT:?}"
                )));
            }
        }
        held.token = GatewayToken::from_digest(sha256);
        Ok(())
    }

    /// Keeps everybody else from changing it, and from starting a gateway with it. Cancel safe.
    pub(crate) async fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().await
    }
}

impl Following {
    async fn takes(&self, before: &[u8; 32], next: &[u8; 32]) -> Result<(), ChangeFault> {
        let line = |start: &str, sha256: &[u8; 32]| format!("{start} {}", hex(sha256));
        // Where the beginning is not known, nothing fits this line, and what stands there is told.
        let mut start = self.start.clone().unwrap_or_default();
        let mut expected = line(&start, before);
        let mut doubt: Option<String> = None;
        for _ in 0..ATTEMPTS {
            let said = match self.ask(&expected, &line(&start, next)).await {
                Ok(said) => said,
                Err(NoWord { detail, .. }) if doubt.is_some() => return Err(ChangeFault::Uncertain(detail)),
                Err(NoWord { detail, ran }) if !ran || start.is_empty() => {
                    return Err(ChangeFault::Unchanged(detail));
                }
                // The same once more tells, and takes the other one's chance to come late.
                Err(NoWord { detail, .. }) => {
                    doubt = Some(detail);
                    continue;
                }
            };
            match said {
                Said::Taken => return Ok(()),
                Said::NoFile => return Err(ChangeFault::NotFollowed),
                Said::Behind(fence) => return Err(ChangeFault::TakenOver(fence)),
                Said::Failed => {
                    let why = "its file cannot be written; is the disk full?".to_owned();
                    return Err(doubt.map_or(ChangeFault::Unchanged(why), ChangeFault::Uncertain));
                }
                // A change whose end was not known came through, or another host started it.
                Said::Other(other) => {
                    let begins = other.split_once(' ').map(|(begins, _)| begins.to_owned());
                    let begins = begins.ok_or(ChangeFault::NotFollowed)?;
                    if self.start.as_ref().is_some_and(|start| *start != begins) {
                        return Err(ChangeFault::NotFollowed);
                    }
                    start = begins;
                    expected = other;
                }
            }
        }
        Err(ChangeFault::Uncertain(
            "others change its file at the same time".to_owned(),
        ))
    }

    async fn ask(&self, expected: &str, next: &str) -> Result<Said, NoWord> {
        let fence = self.fence.as_ref();
        let script = scripts::change_token(
            &self.file,
            fence.map(|(directory, fence)| (directory.as_str(), *fence)),
        );
        let stdin = Input::Bytes(Bytes::from(format!("{expected}\n{next}\n")));
        let result = self.launcher.execute(script, stdin, EXECUTION_LIMIT).await;
        let result = result.map_err(|error| NoWord {
            ran: may_have_run(&error),
            detail: with_causes(&error),
        })?;
        let said = String::from_utf8_lossy(&result.stdout);
        said.lines().find_map(read).ok_or_else(|| NoWord {
            ran: true,
            detail: "the command did not say what it did".to_owned(),
        })
    }
}

/// A command that did not say what it did.
struct NoWord {
    /// It may have done it all the same.
    ran: bool,
    detail: String,
}

/// Reads one line of the command's; `None` for what is none of ours.
fn read(line: &str) -> Option<Said> {
    let said = line.strip_prefix(MARK)?;
    let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
    Some(match word {
        "taken" => Said::Taken,
        "none" => Said::NoFile,
        "behind" => Said::Behind(rest.parse().unwrap_or(u64::MAX)),
        "other" if rest.len() <= LINE_LIMIT_BYTES && !rest.contains(char::is_control) => {
            Said::Other(rest.to_owned())
        }
        "other" => Said::NoFile,
        "failed" => Said::Failed,
        _ => return None,
    })
}

fn may_have_run(error: &RunnerError) -> bool {
    !matches!(
        error,
        RunnerError::Invalid(_)
            | RunnerError::Unreachable { .. }
            | RunnerError::Refused { .. }
            | RunnerError::Unsupported(_)
    )
}
