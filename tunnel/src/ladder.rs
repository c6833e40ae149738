//! Which tunnel, and why not the others.
//!
//! Here: [`Ladder`], a tunnel made of several: it tries one after the other until one is ready, and stays on that one for
//! good. What it tried, how long that took and the named reason why it was not taken stand in its [`LadderReport`].
//! Not here: which tunnels a target has; who puts the rungs together knows that.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Callbacks, Status, StatusReporter, Tunnel, TunnelEnd};

/// One tunnel may take so long to become ready; a connection that is only slow is there by then.
pub const RUNG_PATIENCE: Duration = Duration::from_secs(45);
/// A tunnel that is given up promises to be gone within five seconds.
const GIVING_UP: Duration = Duration::from_secs(6);

/// One tunnel that was tried and not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its name.
    pub tunnel: &'static str,
    /// How long it took to know.
    pub took: Duration,
    /// Stable reason, such as `forwarding_refused`.
    pub reason: &'static str,
    /// What is in the way and how to change it.
    pub detail: String,
}

/// In words, for people: `ssh-reverse not taken: forwarding_refused (…), 120 ms`.
impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tunnel,
            took,
            reason,
            detail,
        } = self;
        write!(
            f,
            "{tunnel} not taken: {reason} ({detail}), {} ms",
            took.as_millis()
        )
    }
}

/// How far the ladder has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LadderReport {
    /// What was tried before, in that order.
    pub attempts: Vec<Attempt>,
    /// What is tried now; the one that was taken, once the status has been [`Status::Ready`].
    pub current: &'static str,
}

/// Tries tunnels in order, best first, and keeps to the first that becomes ready.
///
/// A rung that is refused makes room for the next one. A target that cannot be reached ends the ladder: no other rung
/// would find it. Once a rung has been ready there is no switch any more; its end is the ladder's.
#[derive(Debug)]
pub struct Ladder {
    rungs: Vec<Box<dyn Tunnel>>,
    report: watch::Sender<LadderReport>,
    patience: Duration,
}

impl Ladder {
    /// The rungs, best first.
    #[must_use]
    pub fn new(rungs: Vec<Box<dyn Tunnel>>) -> Self {
        let report = LadderReport {
            attempts: Vec::new(),
            current: rungs.first().map_or("none", |rung| rung.name()),
        };
        Self {
            rungs,
            report: watch::Sender::new(report),
            patience: RUNG_PATIENCE,
        }
    }

    /// The same with another time that one rung may take, at most.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Told of each attempt; `current` is what is taken when the status becomes [`Status::Ready`].
    #[must_use]
    pub fn report(&self) -> watch::Receiver<LadderReport> {
        self.report.subscribe()
    }

    async fn climb(
        self,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> TunnelEnd {
        let several = self.rungs.len() > 1;
        for rung in self.rungs {
            let tunnel = rung.name();
            self.report.send_modify(|report| report.current = tunnel);
            status.set(Status::Starting);
            let began = Instant::now();
            let end = one(rung, &callbacks, &status, &stop, self.patience).await;
            let (reason, detail) = match end {
                TunnelEnd::Refused { reason, detail } if !status.was_ready() && !stop.is_cancelled() => {
                    (reason, detail)
                }
                TunnelEnd::Refused { .. }
                | TunnelEnd::Stopped
                | TunnelEnd::StoppedUnclean(_)
                | TunnelEnd::Unreachable(_) => return end,
            };
            if !several {
                return TunnelEnd::Refused { reason, detail };
            }
            let took = began.elapsed();
            tracing::debug!(
                tunnel,
                reason,
                detail,
                ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                "tunnel not taken"
            );
            self.report.send_modify(|report| {
                report.attempts.push(Attempt {
                    tunnel,
                    took,
                    reason,
                    detail,
                });
            });
        }
        none_works(&self.report.borrow().attempts)
    }
}

/// Serves with one rung to its end, or gives it up when it is not ready in time.
async fn one(
    rung: Box<dyn Tunnel>,
    callbacks: &Arc<dyn Callbacks>,
    status: &StatusReporter,
    stop: &CancellationToken,
    patience: Duration,
) -> TunnelEnd {
    let own_stop = stop.child_token();
    let mut serving = rung.serve(Arc::clone(callbacks), status.clone(), own_stop.clone());
    {
        // Gone with its timer once the rung is ready: a thousand sessions would each wake the process for nothing.
        let late = Box::pin(tokio::time::timeout(patience, status.until_ready()));
        let late = late.then(|ready| async move {
            if ready.is_ok() {
                std::future::pending::<()>().await;
            }
        });
        tokio::select! {
            biased;
            end = &mut serving => return end,
            () = late => {}
        }
    }
    own_stop.cancel();
    let left = match tokio::time::timeout(GIVING_UP, serving).await {
        Ok(TunnelEnd::Unreachable(detail)) => return TunnelEnd::Unreachable(detail),
        Ok(TunnelEnd::StoppedUnclean(left)) => format!("; {left}"),
        Ok(TunnelEnd::Stopped | TunnelEnd::Refused { .. }) => String::new(),
        Err(_) => "; it did not end in time either".to_owned(),
    };
    TunnelEnd::Refused {
        reason: "not_ready_in_time",
        detail: format!("it was not ready within {} s{left}", patience.as_secs()),
    }
}

fn none_works(attempts: &[Attempt]) -> TunnelEnd {
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| format!("{}: {} ({})", attempt.tunnel, attempt.reason, attempt.detail))
        .collect();
    TunnelEnd::Refused {
        reason: "no_tunnel_works",
        detail: if told.is_empty() {
            "there is no tunnel for this target".to_owned()
        } else {
            told.join("; ")
        },
    }
}

impl Tunnel for Ladder {
    fn serve(
        self: Box<Self>,
        callbacks: Arc<dyn Callbacks>,
        status: StatusReporter,
        stop: CancellationToken,
    ) -> BoxFuture<'static, TunnelEnd> {
        self.climb(callbacks, status, stop).boxed()
    }

    /// That of the rung tried now.
    fn name(&self) -> &'static str {
        self.report.borrow().current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentMessage, AgentStream, Listening, MessageBody};

    #[derive(Debug)]
    struct Nobody;

    impl Callbacks for Nobody {
        fn serve_stream(&self, _: AgentStream) -> BoxFuture<'static, ()> {
            std::future::ready(()).boxed()
        }

        fn serve_message(&self, _: AgentMessage) -> BoxFuture<'static, http::Response<MessageBody>> {
            unreachable!("no rung here hands anything over")
        }
    }

    /// What a rung does, in that order.
    #[derive(Debug, Clone, Copy)]
    enum Plan {
        Refuse,
        Unreachable,
        /// Ready, then the end that a tunnel has which was asked to stop.
        Serve,
        /// Ready, then refused all the same.
        ServeAndRefuse,
        /// Never ready; ends when asked to.
        Hang,
        /// Never ready; does not listen.
        HangOn,
    }

    #[derive(Debug)]
    struct Rung(&'static str, Plan, Arc<std::sync::Mutex<Vec<&'static str>>>);

    impl Tunnel for Rung {
        fn serve(
            self: Box<Self>,
            _: Arc<dyn Callbacks>,
            status: StatusReporter,
            stop: CancellationToken,
        ) -> BoxFuture<'static, TunnelEnd> {
            self.2.lock().unwrap().push(self.0);
            let refused = TunnelEnd::Refused {
                reason: "not_here",
                detail: "no".into(),
            };
            let ready = Status::Ready {
                listening: Listening::Tcp { port: 1 },
                verified_loopback: None,
            };
            async move {
                match self.1 {
                    Plan::Refuse => refused,
                    Plan::Unreachable => TunnelEnd::Unreachable("gone".into()),
                    Plan::Serve => {
                        status.set(ready);
                        stop.cancelled().await;
                        TunnelEnd::Stopped
                    }
                    Plan::ServeAndRefuse => {
                        status.set(ready);
                        status.set(Status::Reconnecting {
                            reason: "connection_lost",
                            detail: String::new(),
                        });
                        refused
                    }
                    Plan::Hang => {
                        stop.cancelled().await;
                        TunnelEnd::Stopped
                    }
                    Plan::HangOn => std::future::pending().await,
                }
            }
            .boxed()
        }

        fn name(&self) -> &'static str {
            self.0
        }
    }

    struct Climbed {
        end: TunnelEnd,
        tried: Vec<&'static str>,
        report: LadderReport,
    }

    /// Climbs; once a rung is ready, asks it to stop.
    async fn climb(plans: &[(&'static str, Plan)]) -> Climbed {
        let tried = Arc::new(std::sync::Mutex::new(Vec::new()));
        let rungs = plans
            .iter()
            .map(|(name, plan)| Box::new(Rung(name, *plan, Arc::clone(&tried))) as Box<dyn Tunnel>)
            .collect();
        let ladder = Ladder::new(rungs);
        let report = ladder.report();
        let (reporter, mut status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let stopping = async {
            let _ = status
                .wait_for(|status| matches!(status, Status::Ready { .. }))
                .await;
            stop.cancel();
        };
        let serving = Box::new(ladder).serve(Arc::new(Nobody), reporter, stop.clone());
        let (end, ()) = tokio::join!(serving, stopping);
        Climbed {
            end,
            tried: tried.lock().unwrap().clone(),
            report: report.borrow().clone(),
        }
    }

    #[tokio::test]
    async fn the_first_rung_that_becomes_ready_is_kept_and_no_other_is_tried() {
        let climbed = climb(&[("a", Plan::Refuse), ("b", Plan::Serve), ("c", Plan::Serve)]).await;

        assert!(matches!(climbed.end, TunnelEnd::Stopped), "{:?}", climbed.end);
        assert_eq!(climbed.tried, ["a", "b"]);
        assert_eq!(climbed.report.current, "b");
        let told: Vec<_> = climbed
            .report
            .attempts
            .iter()
            .map(|attempt| (attempt.tunnel, attempt.reason))
            .collect();
        assert_eq!(told, [("a", "not_here")]);
    }

    #[tokio::test]
    async fn a_target_that_cannot_be_reached_ends_the_ladder() {
        let climbed = climb(&[("a", Plan::Unreachable), ("b", Plan::Serve)]).await;

        assert!(
            matches!(climbed.end, TunnelEnd::Unreachable(_)),
            "{:?}",
            climbed.end
        );
        assert_eq!(climbed.tried, ["a"]);
    }

    #[tokio::test]
    async fn once_ready_there_is_no_other_rung_whatever_happens() {
        let climbed = climb(&[("a", Plan::ServeAndRefuse), ("b", Plan::Serve)]).await;

        assert!(
            matches!(
                climbed.end,
                TunnelEnd::Refused {
                    reason: "not_here",
                    ..
                }
            ),
            "{:?}",
            climbed.end
        );
        assert_eq!(climbed.tried, ["a"]);
    }

    #[tokio::test]
    async fn a_single_rung_says_its_own_reason() {
        let climbed = climb(&[("a", Plan::Refuse)]).await;

        assert!(
            matches!(
                climbed.end,
                TunnelEnd::Refused {
                    reason: "not_here",
                    ..
                }
            ),
            "{:?}",
            climbed.end
        );
        assert_eq!(climbed.report.attempts, []);
    }

    #[tokio::test]
    async fn when_no_rung_works_every_reason_is_told() {
        let climbed = climb(&[("a", Plan::Refuse), ("b", Plan::Refuse)]).await;

        let TunnelEnd::Refused { reason, detail } = climbed.end else {
            panic!("{:?}", climbed.end)
        };
        assert_eq!(reason, "no_tunnel_works");
        assert!(
            detail.contains("a: not_here") && detail.contains("b: not_here"),
            "{detail}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_rung_that_is_never_ready_makes_room_for_the_next() {
        for plan in [Plan::Hang, Plan::HangOn] {
            let climbed = climb(&[("a", plan), ("b", Plan::Serve)]).await;

            assert_eq!(climbed.tried, ["a", "b"]);
            assert_eq!(
                climbed.report.attempts.first().unwrap().reason,
                "not_ready_in_time"
            );
            assert!(climbed.report.attempts.first().unwrap().took >= RUNG_PATIENCE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_does_not_end_a_rung_that_serves() {
        let rungs: Vec<Box<dyn Tunnel>> = vec![Box::new(Rung("a", Plan::Serve, Arc::default()))];
        let (reporter, _status) = StatusReporter::new();
        let stop = CancellationToken::new();
        let mut serving = Box::new(Ladder::new(rungs)).serve(Arc::new(Nobody), reporter, stop.clone());

        let served = tokio::time::timeout(RUNG_PATIENCE * 10, &mut serving).await;

        assert!(served.is_err(), "{served:?}");
        stop.cancel();
        assert!(matches!(serving.await, TunnelEnd::Stopped));
    }

    /// Ready at once; counts how often it is looked at.
    #[derive(Debug)]
    struct Counted(Arc<std::sync::atomic::AtomicUsize>);

    impl Tunnel for Counted {
        fn serve(
            self: Box<Self>,
            _: Arc<dyn Callbacks>,
            status: StatusReporter,
            _: CancellationToken,
        ) -> BoxFuture<'static, TunnelEnd> {
            status.set(Status::Ready {
                listening: Listening::Tcp { port: 1 },
                verified_loopback: None,
            });
            std::future::poll_fn(move |_| {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                std::task::Poll::Pending
            })
            .boxed()
        }

        fn name(&self) -> &'static str {
            "counted"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rung_that_serves_is_woken_by_no_timer_of_the_ladder() {
        let looked = Arc::default();
        let rungs: Vec<Box<dyn Tunnel>> = vec![Box::new(Counted(Arc::clone(&looked)))];
        let (reporter, _status) = StatusReporter::new();
        let serving =
            Box::new(Ladder::new(rungs)).serve(Arc::new(Nobody), reporter, CancellationToken::new());
        let serving = tokio::spawn(serving);
        tokio::time::sleep(RUNG_PATIENCE / 2).await;
        let at_rest = looked.load(std::sync::atomic::Ordering::Relaxed);

        tokio::time::sleep(RUNG_PATIENCE * 2).await;

        assert!(at_rest > 0);
        assert_eq!(looked.load(std::sync::atomic::Ordering::Relaxed), at_rest);
        serving.abort();
    }
}
