//! Starting an installed gateway, on a byte stream or on its own, and ending it again.
//!
//! Here: the command that reads the gateway's variables from stdin and then becomes it, and the record by which it is
//! found later. The record is a file in the bridge's folder on the target with pid and start time; a predecessor of
//! the same name is ended by both before a new one starts. Not here: what the gateway says.

use std::time::Duration;

use bytes::Bytes;
use runners::shell::{join, quote};
use runners::{Duplex, DuplexRequest, Input};
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use super::install::excerpt;
use super::scripts::{self, MARK};
use super::{GatewayEnvironment, Installed, LaunchFault, Launcher, SessionName};
use crate::listeners::{self, Exposure};

/// A predecessor without its channel has nothing left to finish.
const PREDECESSOR_GRACE: Duration = Duration::from_millis(300);
/// How long a started channel may take to accept the variables.
const BLOCK_LIMIT: Duration = Duration::from_secs(10);
/// Ending a predecessor and forking.
const DETACH_LIMIT: Duration = Duration::from_secs(15);
/// Reading one table of the kernel's.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// How a gateway is started on a byte stream.
#[derive(Debug)]
pub struct StartCommand {
    /// What the runner is asked for.
    pub request: DuplexRequest,
    /// What must be written first: it is all that is written before the gateway has said that it is ready.
    pub block: Zeroizing<Vec<u8>>,
}

/// A gateway that runs on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachedGateway {
    /// Its process id on the target.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`; `None` where it had ended at once, or there is no `/proc`.
    pub start: Option<u64>,
}

/// What became of a gateway that was to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing of it was left; the record is gone.
    WasGone,
    /// It was ended; the record is gone.
    Now,
    /// It is still there although it was killed, or may not be ended by us.
    StillThere,
}

impl Launcher {
    /// The command for [`Self::open`], for whoever opens the byte stream in another way.
    #[must_use]
    pub fn start_command(
        &self,
        installed: &Installed,
        name: &SessionName,
        environment: &GatewayEnvironment,
    ) -> StartCommand {
        let script = scripts::start(
            &installed.record(name),
            &command_line(installed),
            steps(PREDECESSOR_GRACE),
        );
        StartCommand {
            request: DuplexRequest {
                command: self.shell.program().to_owned(),
                args: self.shell.script_args(script).into(),
                cwd: None,
            },
            block: environment.block(),
        }
    }

    /// Starts the gateway on a byte stream and gives it its variables; a predecessor of this name is ended first.
    ///
    /// The stream then carries what the gateway says and hears, and nothing of ours.
    ///
    /// # Errors
    ///
    /// [`LaunchFault`] where the channel cannot be opened or breaks at once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the channel; a gateway whose start was under way ends at its end of input.
    pub async fn open(
        &self,
        installed: &Installed,
        name: &SessionName,
        environment: &GatewayEnvironment,
    ) -> Result<Duplex, LaunchFault> {
        if !self.runner.capabilities().duplex {
            return Err(LaunchFault::CapabilityAbsent);
        }
        let StartCommand { request, block } = self.start_command(installed, name, environment);
        let mut duplex = self
            .runner
            .open_duplex(request)
            .await
            .map_err(LaunchFault::opening)?;
        let given = async {
            duplex.stream.write_all(&block).await?;
            duplex.stream.flush().await
        };
        match tokio::time::timeout(BLOCK_LIMIT, given).await {
            Ok(Ok(())) => Ok(duplex),
            Ok(Err(error)) => Err(LaunchFault::ChannelOpenFailed(format!(
                "the command ended before it had read its variables: {error}"
            ))),
            Err(_) => Err(LaunchFault::ChannelOpenFailed(format!(
                "the command did not read its variables within {BLOCK_LIMIT:?}"
            ))),
        }
    }

    /// Starts the gateway on its own: no terminal, no stdin, its output appended to the file `log` on the target. A
    /// predecessor of this name is ended first.
    ///
    /// # Errors
    ///
    /// [`LaunchFault`] where the command could not be run or did not say what it started.
    pub async fn start_detached(
        &self,
        installed: &Installed,
        name: &SessionName,
        environment: &GatewayEnvironment,
        log: &str,
    ) -> Result<DetachedGateway, LaunchFault> {
        let script = scripts::start_detached(
            &installed.record(name),
            &command_line(installed),
            log,
            steps(PREDECESSOR_GRACE),
        );
        let block = Bytes::from_owner(environment.block());
        let result = self.script(script, Input::Bytes(block), DETACH_LIMIT).await?;
        let said = String::from_utf8_lossy(&result.stdout);
        said.lines()
            .find_map(|line| read_started(line.strip_prefix(MARK)?))
            .ok_or_else(|| {
                let error = String::from_utf8_lossy(&result.stderr);
                LaunchFault::ChannelOpenFailed(format!(
                    "the target did not say which process it started: {:?}",
                    excerpt(error.trim())
                ))
            })
    }

    /// Ends the gateway of this name, if it is still the recorded process, and removes its record: `TERM`, and `KILL`
    /// after `grace`. Takes up to `grace` and a second more where the process does not go away.
    ///
    /// # Errors
    ///
    /// [`LaunchFault`] where the command could not be run or did not say what it did.
    pub async fn end(
        &self,
        installed: &Installed,
        name: &SessionName,
        grace: Duration,
    ) -> Result<Ended, LaunchFault> {
        let script = scripts::end(&installed.record(name), steps(grace));
        let limit = grace.saturating_add(DETACH_LIMIT);
        let result = self.script(script, Input::None, limit).await?;
        let said = String::from_utf8_lossy(&result.stdout);
        said.lines()
            .find_map(|line| match line.strip_prefix(MARK)? {
                "ended -" => Some(Ended::WasGone),
                said if said.starts_with("ended ") => Some(Ended::Now),
                said if said.starts_with("left ") => Some(Ended::StillThere),
                _ => None,
            })
            .ok_or_else(|| {
                LaunchFault::SyncFailed("the target did not say whether the gateway has ended".to_owned())
            })
    }
}

impl Launcher {
    /// Who can reach what listens on `port` of the target; unknown where nothing does.
    pub(crate) async fn listener(&self, port: u16) -> Result<Exposure, LaunchFault> {
        let result = self
            .script(listeners::script(port), Input::None, LOOK_LIMIT)
            .await?;
        Ok(listeners::read(&String::from_utf8_lossy(&result.stdout), port))
    }
}

/// The gateway's command line, quoted for a POSIX shell.
fn command_line(installed: &Installed) -> String {
    match installed.node() {
        Some(node) => join(node, &[installed.path().to_owned()]),
        None => quote(installed.path()),
    }
}

fn steps(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(100)).unwrap_or(u32::MAX)
}

fn read_started(said: &str) -> Option<DetachedGateway> {
    let mut words = said.strip_prefix("started ")?.split(' ');
    let pid = words.next()?.parse().ok().filter(|pid| *pid > 1)?;
    let start = words.next()?.parse().ok();
    Some(DetachedGateway { pid, start })
}
