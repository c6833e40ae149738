//! A process's events, as long as anything can be heard of it.
//!
//! Here: [`Followed`], which reads one stream and takes up another when that breaks. What the process wrote while
//! nobody listened is lost: [`Followed::gap`] says that there was such a time. Not here: what is done with events.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::connect::{Event, Frame, FrameReader, RpcFault};
use super::envd::{CallFault, Envd, KEEPALIVE_SECONDS};
use crate::RunnerError;

/// Silence for longer than this is a dead connection: three intervals of the server's own signs.
const SILENCE_LIMIT: Duration = Duration::from_secs(3 * KEEPALIVE_SECONDS);
/// Pauses before each try to follow a process again.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
];

/// Why there are no more events.
#[derive(Debug)]
pub(super) enum Silence {
    /// The server ended the stream with this error.
    Told(RpcFault),
    /// The connection broke, and the process could not be found again.
    Lost(CallFault),
    /// The connection broke, and nobody tried again.
    Broken(String),
}

impl Silence {
    pub(super) fn told(self, target: &str) -> RunnerError {
        match self {
            Self::Lost(CallFault::Provider(error)) => RunnerError::from((target, error)),
            Self::Told(_) | Self::Lost(_) | Self::Broken(_) => RunnerError::Lost {
                target: target.to_owned(),
            },
        }
    }
}

/// The events of one process.
pub(super) struct Followed<'a> {
    envd: &'a Envd,
    tag: &'a str,
    stream: Stream,
    /// Streams taken up since the process was last heard of.
    tries: usize,
    /// Some output is missing, or may be.
    pub(super) gap: bool,
    /// Its id in the sandbox.
    pub(super) pid: u32,
}

impl<'a> Followed<'a> {
    /// Starts a process, under a tag of its own, and waits until it runs.
    pub(super) async fn start(
        envd: &'a Envd,
        line: &str,
        tag: &'a str,
        stdin: bool,
        limit: Option<Duration>,
    ) -> Result<Self, RunnerError> {
        let told = |fault: CallFault| fault.told(&envd.target);
        let started = envd.start(line, tag, stdin, limit).await;
        let mut gap = false;
        let mut stream = match started {
            Ok(body) => Stream::new(body),
            // It may run all the same: its tag tells.
            Err(CallFault::Unknown(reason)) => {
                gap = true;
                let found = envd.follow(tag).await;
                Stream::new(found.map_err(|_| told(CallFault::Unknown(reason)))?)
            }
            Err(fault) => return Err(told(fault)),
        };
        let pid = match stream.first().await {
            Ok(pid) => pid,
            Err(Silence::Told(fault)) => return Err(told(CallFault::Rpc(fault))),
            Err(_) => {
                gap = true;
                stream = Stream::new(
                    envd.follow(tag)
                        .await
                        .map_err(|_| told(CallFault::Unknown(String::new())))?,
                );
                stream
                    .first()
                    .await
                    .map_err(|silence| silence.told(&envd.target))?
            }
        };
        Ok(Self {
            envd,
            tag,
            stream,
            tries: 0,
            gap,
            pid,
        })
    }

    /// The next event, from another stream if this one breaks. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Event, Silence> {
        loop {
            match self.stream.next().await {
                Err(Silence::Broken(reason)) => {
                    tracing::debug!(target_sandbox = %self.envd.target, reason, "a process's stream broke");
                    self.gap = true;
                    self.take_up().await?;
                }
                Ok(event @ Event::Started { .. }) => return Ok(event),
                other => {
                    self.tries = 0;
                    return other;
                }
            }
        }
    }

    /// The next event of this stream; [`Silence::Broken`] where it breaks.
    pub(super) async fn next_here(&mut self) -> Result<Event, Silence> {
        self.stream.next().await
    }

    async fn take_up(&mut self) -> Result<(), Silence> {
        let mut last = CallFault::NotDone("it breaks at once, again and again".to_owned());
        while let Some(pause) = PAUSES.get(self.tries) {
            self.tries += 1;
            tokio::time::sleep(*pause).await;
            match self.envd.follow(self.tag).await {
                Ok(body) => {
                    self.stream = Stream::new(body);
                    return Ok(());
                }
                // Neither a lost lease nor a process that is gone comes back.
                Err(fault @ (CallFault::Rpc(_) | CallFault::Provider(_))) => {
                    return Err(Silence::Lost(fault));
                }
                Err(fault @ (CallFault::NotDone(_) | CallFault::Unknown(_))) => last = fault,
            }
        }
        Err(Silence::Lost(last))
    }
}

/// One connection's events.
struct Stream {
    body: Incoming,
    reader: FrameReader,
}

impl Stream {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            reader: FrameReader::default(),
        }
    }

    /// The pid, which comes before anything else.
    async fn first(&mut self) -> Result<u32, Silence> {
        let Event::Started { pid } = self.next().await? else {
            return Err(Silence::Broken("it did not begin with a start".to_owned()));
        };
        Ok(pid)
    }

    /// Cancel safe: what was read stays.
    async fn next(&mut self) -> Result<Event, Silence> {
        let broken = |error: &dyn std::fmt::Display| Silence::Broken(error.to_string());
        loop {
            match self.reader.next_frame().map_err(|fault| broken(&fault))? {
                Some(Frame::Message(message)) => {
                    return Event::parse(&message).map_err(|fault| broken(&fault));
                }
                Some(Frame::End(Some(fault))) => return Err(Silence::Told(fault)),
                Some(Frame::End(None)) => return Err(broken(&"the stream ended before the process")),
                None => {}
            }
            let frame = tokio::time::timeout(SILENCE_LIMIT, self.body.frame()).await;
            match frame {
                Ok(Some(Ok(frame))) => self.reader.feed(&frame.into_data().unwrap_or_default()),
                Ok(Some(Err(error))) => return Err(broken(&error)),
                Ok(None) => return Err(broken(&"the connection was closed")),
                Err(_) => return Err(broken(&format!("nothing came for {SILENCE_LIMIT:?}"))),
            }
        }
    }
}
