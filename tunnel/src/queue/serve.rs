//! A queue from its start to its end: gateway, channel, worker, and what happens when one of them is lost.
//!
//! Here: the order of things. Not here: the things themselves (`gateway.rs`, `channel.rs`, `worker.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runners::ssh::Backoff;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use wire::envelope::envelope_limit;

use super::batch::Batch;
use super::channel::{ChannelFault, OpenQueue, QueueAccess, QueueChannel};
use super::desk::Desk;
use super::directory::Directory;
use super::either::Either;
use super::gateway::{GatewayFault, GatewayLife};
use super::named::Named;
use super::pump::Pump;
use super::worker::{Pause, Worker};
use super::{QueueOptions, TAKEN_OVER};
use crate::launch::{LaunchFault, Launcher};
use crate::{Callbacks, Listening, Status, StatusReporter, TunnelEnd};

/// All of a stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The part of it in which open callbacks are answered.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// A channel that lived so long was a good one.
const GOOD_CHANNEL: Duration = Duration::from_secs(5);

/// Serves with a gateway of our own on the target.
pub(super) async fn on_target(
    launcher: Launcher,
    options: QueueOptions,
    callbacks: Arc<dyn Callbacks>,
    status: StatusReporter,
    stop: CancellationToken,
) -> TunnelEnd {
    let installed = tokio::select! {
        installed = launcher.install() => match installed {
            Ok(installed) => installed,
            Err(fault) => return fault.into_end(),
        },
        () = stop.cancelled() => return TunnelEnd::Stopped,
    };
    let taken_over = match is_taken_over(&options).await {
        Ok(taken_over) => taken_over,
        Err(end) => return end,
    };
    let mut life = GatewayLife::new(launcher.clone(), installed, &options);
    // The first to say so is this session's only one.
    let _ = options.place.set(life.directory().to_owned());
    let begun = tokio::select! {
        begun = life.begin() => Some(begun),
        () = stop.cancelled() => None,
    };
    let port = match begun {
        Some(Ok(port)) => port,
        // What is there is somebody's, and not ours to clear away.
        Some(Err(fault)) if options.again || matches!(fault, GatewayFault::Fenced(_)) => {
            return refused(fault);
        }
        Some(Err(fault)) => {
            let left = clean_up(&life, Instant::now() + STOP_LIMIT).await;
            if let Err(detail) = left {
                tracing::warn!(
                    session = options.session.as_str(),
                    detail,
                    "something may be left on the target"
                );
            }
            return refused(fault);
        }
        None if options.again && options.leave.get().is_some() => return TunnelEnd::Stopped,
        None => return clean_end(clean_up(&life, Instant::now() + STOP_LIMIT).await),
    };
    let channel = channel(&launcher, &life, &options);
    let listening = Listening::Tcp { port };
    let session = Session {
        channel,
        listening: listening.clone(),
        status,
        stop,
        gateway: Some(&life),
        backoff: Backoff::default(),
    };
    let mut worker = Worker::new(Desk {
        taken_over: taken_over.then(Instant::now),
        ..desk(&options, callbacks, listening)
    });
    let last = match session.run(&mut worker).await {
        Ok(last) => last,
        Err(fault) => {
            if !options.again && !matches!(fault, ChannelFault::Fenced(_)) {
                let _ = clean_up(&life, Instant::now() + STOP_LIMIT).await;
            }
            return unusable(fault);
        }
    };
    let callbacks = worker.begun();
    if let Some(patience) = options.leave.get() {
        if let Some(queue) = last {
            worker.leave_to_a_successor(queue, *patience).await;
        }
        tell(&options, callbacks);
        return TunnelEnd::Stopped;
    }
    let deadline = Instant::now() + STOP_LIMIT;
    // The gateway takes no more requests from the first moment on; callers that wait get their answers meanwhile.
    let finish = async {
        match last {
            Some(queue) => worker.finish(queue, FINISH_LIMIT).await,
            None => drop(worker),
        }
    };
    let (ended, ()) = tokio::join!(timeout_at(deadline - Duration::from_secs(1), life.end()), finish);
    let removed = timeout_at(deadline, life.remove()).await;
    let late = || Err("the target did not answer in time".to_owned());
    let left = ended
        .unwrap_or_else(|_| late())
        .and(removed.unwrap_or_else(|_| late()));
    if left.is_ok()
        && let Err(fault) = options.journal.close(options.session.as_str())
    {
        tracing::warn!(session = options.session.as_str(), %fault, "the journal keeps a session that is over");
    }
    tell(&options, callbacks);
    clean_end(left)
}

/// Ends the gateway of an earlier host of this session, and removes its directory.
pub(super) async fn clear(launcher: Launcher, options: &QueueOptions) -> Result<(), String> {
    let installed = launcher.install().await.map_err(|fault| fault.to_string())?;
    let life = GatewayLife::new(launcher, installed, options);
    clean_up(&life, Instant::now() + STOP_LIMIT).await
}

/// Serves a directory of this machine.
pub(super) async fn in_directory(
    directory: PathBuf,
    options: QueueOptions,
    callbacks: Arc<dyn Callbacks>,
    status: StatusReporter,
    stop: CancellationToken,
) -> TunnelEnd {
    let named = Named::new(callbacks, directory.join("ready.json"));
    let listening = match named.port().await {
        Some(port) => Listening::Tcp { port },
        // Where its gateway listens is not ours to know; the directory names it as well.
        None => Listening::Unix {
            path: directory.clone(),
        },
    };
    let session = Session {
        channel: Box::new(Directory::new(directory, envelope_limit(options.max_body))),
        listening: listening.clone(),
        status,
        stop,
        gateway: None,
        backoff: Backoff::default(),
    };
    let mut worker = Worker::new(desk(&options, Arc::new(named), listening));
    match session.run(&mut worker).await {
        Ok(Some(queue)) => worker.finish(queue, FINISH_LIMIT).await,
        Ok(None) => {}
        Err(fault) => return unusable(fault),
    }
    tell(&options, worker.begun());
    TunnelEnd::Stopped
}

/// What the session cost, for whoever compares.
fn tell(options: &QueueOptions, callbacks: u64) {
    tracing::info!(
        session = options.session.as_str(),
        executions = options.executions.load(Ordering::Relaxed),
        callbacks,
        "queue_v1 ended"
    );
}

/// Whether what an earlier host has sent is unknown: its journal is not ours.
async fn is_taken_over(options: &QueueOptions) -> Result<bool, TunnelEnd> {
    let (journal, session) = (options.journal.clone(), options.session.as_str().to_owned());
    let known = tokio::task::spawn_blocking(move || journal.opens(&session)).await;
    match known {
        Ok(Ok(known)) => Ok(options.again && !known),
        Ok(Err(fault)) => Err(TunnelEnd::Refused {
            reason: "journal_unusable",
            detail: fault.to_string(),
        }),
        Err(error) => Err(TunnelEnd::Refused {
            reason: "journal_unusable",
            detail: error.to_string(),
        }),
    }
}

fn desk(options: &QueueOptions, callbacks: Arc<dyn Callbacks>, listening: Listening) -> Desk {
    Desk {
        taken_over: None,
        callbacks,
        journal: options.journal.clone(),
        session: options.session.as_str().to_owned(),
        listening,
        max_body: options.max_body,
        response_timeout: options.response_timeout,
        bodies: options.bodies,
    }
}

fn channel(launcher: &Launcher, life: &GatewayLife, options: &QueueOptions) -> Box<dyn QueueChannel> {
    let access = QueueAccess {
        runner: launcher.runner().clone(),
        shell: launcher.shell().program().to_owned(),
        directory: life.directory().to_owned(),
        record: life.record().to_owned(),
        fence: options.fence,
        limit_bytes: envelope_limit(options.max_body),
        executions: options.executions.clone(),
    };
    let duplex = access.runner.capabilities().duplex && !options.batch_only;
    let batch = Batch::new(access.clone());
    if !duplex {
        return Box::new(batch);
    }
    let pump = Pump::new(access);
    Box::new(Either::new(pump, batch))
}

/// One queue while it is served.
struct Session<'a> {
    channel: Box<dyn QueueChannel>,
    listening: Listening,
    status: StatusReporter,
    stop: CancellationToken,
    gateway: Option<&'a GatewayLife>,
    backoff: Backoff,
}

impl Session<'_> {
    /// Serves until asked to stop; gives back the last channel if it still works. Fails only before the first one, and where
    /// a later owner of the session has been there.
    async fn run(mut self, worker: &mut Worker) -> Result<Option<OpenQueue>, ChannelFault> {
        let mut served_before = false;
        loop {
            let opened = tokio::select! {
                opened = self.channel.open() => opened,
                () = self.stop.cancelled() => return Ok(None),
            };
            let fault = match opened {
                Ok(queue) => {
                    served_before = true;
                    let since = Instant::now();
                    match self.serve(queue, worker).await {
                        Ok(last) => return Ok(last),
                        Err(fault) => {
                            if since.elapsed() > GOOD_CHANNEL {
                                self.backoff.reset();
                            }
                            fault
                        }
                    }
                }
                Err(fault) if !served_before => return Err(fault),
                Err(fault) => fault,
            };
            if matches!(fault, ChannelFault::Fenced(_)) {
                return Err(fault);
            }
            tracing::info!(%fault, "the queue's channel was lost and is opened again");
            self.status.set(Status::Reconnecting {
                reason: "connection_lost",
                detail: fault.to_string(),
            });
            if !self.pause().await || !self.revive().await? {
                return Ok(None);
            }
        }
    }

    /// Serves one channel.
    async fn serve(
        &mut self,
        mut queue: OpenQueue,
        worker: &mut Worker,
    ) -> Result<Option<OpenQueue>, ChannelFault> {
        loop {
            self.status.set(Status::Ready {
                listening: self.listening.clone(),
                verified_loopback: None,
            });
            match worker.serve(queue, &self.stop).await {
                Pause::Stop(last) => return Ok(Some(last)),
                Pause::Lost(fault) => return Err(fault),
                Pause::GatewayGone(same) => {
                    if !self.revive().await? {
                        return Ok(Some(same));
                    }
                    queue = same;
                }
            }
        }
    }

    /// Brings the gateway back until it is there; `false` when asked to stop. Fails where it is not ours any more.
    async fn revive(&mut self) -> Result<bool, ChannelFault> {
        let Some(gateway) = self.gateway else {
            return Ok(true);
        };
        loop {
            let fault = tokio::select! {
                revived = gateway.revive() => match revived {
                    Ok(()) => return Ok(true),
                    Err(GatewayFault::Fenced(fence)) => return Err(ChannelFault::Fenced(fence)),
                    Err(fault) => fault,
                },
                () = self.stop.cancelled() => return Ok(false),
            };
            tracing::warn!(%fault, "the gateway is not back yet");
            self.status.set(Status::Degraded {
                reason: fault.reason(),
                detail: fault.to_string(),
            });
            if !self.pause().await {
                return Ok(false);
            }
        }
    }

    async fn pause(&mut self) -> bool {
        let wait = self.backoff.next_jittered();
        tokio::select! {
            () = sleep(wait) => true,
            () = self.stop.cancelled() => false,
        }
    }
}

async fn clean_up(life: &GatewayLife, deadline: Instant) -> Result<(), String> {
    let late = || Err("the target did not answer in time".to_owned());
    let half = deadline.saturating_duration_since(Instant::now()) / 2;
    let ended = timeout(half, life.end()).await.unwrap_or_else(|_| late());
    let removed = timeout_at(deadline, life.remove())
        .await
        .unwrap_or_else(|_| late());
    ended.and(removed)
}

fn clean_end(left: Result<(), String>) -> TunnelEnd {
    match left {
        Ok(()) => TunnelEnd::Stopped,
        Err(detail) => TunnelEnd::StoppedUnclean(detail),
    }
}

fn refused(fault: GatewayFault) -> TunnelEnd {
    match fault {
        GatewayFault::Launch(fault) => fault.into_end(),
        GatewayFault::Runner(error) => LaunchFault::Unreachable(error.to_string()).into_end(),
        fault @ (GatewayFault::Died(_)
        | GatewayFault::Late
        | GatewayFault::Ready(_)
        | GatewayFault::OtherPort(_)
        | GatewayFault::Fenced(_)
        | GatewayFault::Directory(_)) => TunnelEnd::Refused {
            reason: fault.reason(),
            detail: fault.to_string(),
        },
    }
}

fn unusable(fault: ChannelFault) -> TunnelEnd {
    let source = std::error::Error::source(&fault).map_or_else(String::new, |source| format!(": {source}"));
    let reason = match fault {
        ChannelFault::Fenced(_) => TAKEN_OVER,
        ChannelFault::Runner(_)
        | ChannelFault::Ended(_)
        | ChannelFault::Silent(_)
        | ChannelFault::Listing(_)
        | ChannelFault::Directory { .. } => "queue_channel_failed",
    };
    TunnelEnd::Refused {
        reason,
        detail: format!("{fault}{source}"),
    }
}
