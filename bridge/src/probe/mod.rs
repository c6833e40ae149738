//! `probe`: what a target is like, which tunnels it bears, and what to do about what it does not.
//!
//! Here: what is looked at, in which order and for how long ([`run`]). In `ground` what the target says of itself, in
//! `calling` a callback from inside it, in `diagnosis` the names of what goes wrong, in `report` how it is told. Not
//! here: how a target is taken and a tunnel tried (`app::standing`).
//!
//! Everything runs through the target's own runner. Where that is not to be had the probe ends: there is nothing here
//! that could run a command elsewhere.

mod calling;
mod diagnosis;
mod ground;
mod report;

use std::time::Duration;

use policy::explain::explain;
use tokio::time::Instant;

pub(crate) use report::{Fitness, Report};

use crate::app::{App, SessionRequest, Standing, TargetSpec, Tried, TunnelChoice, logins};
use report::{Check, Found};

/// All checks together; with what follows them, a probe takes two minutes at most.
const CHECKING: Duration = Duration::from_secs(60);
/// Until the target is there: a sandbox has to be made.
const REACHING: Duration = Duration::from_secs(40);
/// One short command.
const COMMAND: Duration = Duration::from_secs(10);
/// Until a tunnel is ready.
const TUNNEL: Duration = Duration::from_secs(15);
/// One callback, from the command that makes it to its answer.
const CALLBACK: Duration = Duration::from_secs(10);
/// The upstream, asked from here.
const UPSTREAM: Duration = Duration::from_secs(5);
/// The end of the connection or of the lease.
const LEAVING: Duration = Duration::from_secs(20);

/// What is to be looked at.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What a session there would be.
    pub(crate) request: SessionRequest,
    /// The target in the operator's words.
    pub(crate) target: String,
    /// Whether the upstream is to be looked at, too.
    pub(crate) upstream: bool,
}

/// Looks at the target, and takes everything down again that it brought up.
///
/// # Cancel safety
///
/// Dropping the future cuts what it had begun; a lease is given back by [`App::settle`].
pub(crate) async fn run(app: &App, asked: Asked) -> Report {
    let began = Instant::now();
    let mut probe = Probe {
        deadline: began + CHECKING,
        checks: Vec::new(),
        tunnel: None,
    };
    let Asked {
        mut request,
        target,
        upstream,
    } = asked;
    // A probe leaves no session behind that could be gone on with.
    request.state_dir = None;
    request.resume = false;
    if let TargetSpec::Provider(target) = &mut request.target {
        target.probed = target.id.is_some();
    }
    if let Some(mut standing) = probe.reach(app, request).await {
        probe.look_around(app, &mut standing, upstream).await;
        probe.leave(standing).await;
    }
    Report {
        target,
        checks: probe.checks,
        tunnel: probe.tunnel,
        took: began.elapsed(),
    }
}

/// What was found so far, and how long there is still.
struct Probe {
    deadline: Instant,
    checks: Vec<Check>,
    tunnel: Option<&'static str>,
}

/// A tunnel that is asked for by its own name.
const fn name(tunnel: &TunnelChoice) -> &'static str {
    match tunnel {
        TunnelChoice::Auto => "auto",
        TunnelChoice::SshReverse => "ssh-reverse",
        TunnelChoice::Http2 => "http2_v1",
        TunnelChoice::Queue => "queue_v1",
        TunnelChoice::Local => "local",
        TunnelChoice::Worker => tunnel::worker::NAME,
    }
}

fn late(limit: Duration) -> Found {
    Found::fail(
        "timed_out",
        format!("no end within {} s", limit.as_secs()),
        "look at the target's load and at the network in between, then probe again",
    )
}

impl Probe {
    fn tell(&mut self, name: impl Into<String>, since: Instant, found: Found) {
        self.checks.push(Check {
            name: name.into(),
            took: since.elapsed(),
            found,
        });
    }

    /// Less than the limit where the whole probe has less.
    fn limit(&self, own: Duration) -> Duration {
        own.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// Awaits one check for so long, and no longer than the whole probe may take.
    async fn within<T>(&self, own: Duration, work: impl Future<Output = T>) -> Result<T, Found> {
        let limit = self.limit(own);
        if limit.is_zero() {
            return Err(Found::skipped("there was no time left for it"));
        }
        tokio::time::timeout(limit, work).await.map_err(|_| late(limit))
    }

    /// Takes the target and connects to it.
    async fn reach(&mut self, app: &App, request: SessionRequest) -> Option<Standing> {
        let began = Instant::now();
        let reached = self
            .within(REACHING, async {
                let standing = app
                    .stand(request)
                    .await
                    .map_err(|error| diagnosis::of_open(&error))?;
                match standing.connect().await {
                    Ok(()) => Ok(standing),
                    Err(error) => Err(diagnosis::of_runner(&error)),
                }
            })
            .await
            .and_then(std::convert::identity);
        match reached {
            Ok(standing) => {
                let found = match standing.lease() {
                    Some(lease) => format!("{}, lease {lease}", standing.runner().target()),
                    None => format!("{} reached", standing.runner().target()),
                };
                self.tell("target", began, Found::ok(found));
                Some(standing)
            }
            Err(found) => {
                self.tell("target", began, found);
                None
            }
        }
    }

    async fn look_around(&mut self, app: &App, standing: &mut Standing, upstream: bool) {
        if !self.command(standing).await {
            return;
        }
        self.ground(standing).await;
        let health = self.upstream(standing, upstream).await;
        for tunnel in standing.tunnels() {
            self.tunnel(app, standing, tunnel, health).await;
            if standing.lease_lost().is_some() {
                return;
            }
        }
    }

    /// Whether commands run there at all; nothing else could be found out otherwise.
    async fn command(&mut self, standing: &Standing) -> bool {
        let began = Instant::now();
        let limit = self.limit(COMMAND);
        let ran = self
            .within(
                limit * 2,
                ground::command(standing.runner().as_ref(), standing.shell(), limit),
            )
            .await;
        let found = settled(ran);
        let runs = found.outcome == report::Outcome::Ok;
        self.tell("command", began, found);
        runs
    }

    /// What the target says of itself.
    async fn ground(&mut self, standing: &Standing) {
        let began = Instant::now();
        let directory = match &standing.request().target {
            TargetSpec::Ssh(target) => target.directory.as_deref(),
            TargetSpec::Local | TargetSpec::Provider(_) => None,
        };
        let (runner, shell) = (standing.runner().as_ref(), standing.shell());
        let asked = ground::facts(runner, shell, directory, COMMAND);
        let facts = match self.within(COMMAND * 2, asked).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(error)) => Err(diagnosis::of_runner(&error)),
            Err(found) => Err(found),
        };
        match facts {
            Ok(facts) => {
                self.tell("shell", began, facts.shell());
                self.tell("tools", began, facts.tools());
                let gateway = &standing.request().gateway;
                self.tell("architecture", began, facts.architecture(gateway));
                self.tell("folders", began, facts.folders());
            }
            Err(found) => self.tell("shell", began, found),
        }
        let began = Instant::now();
        let asked = ground::clock(runner, shell, COMMAND);
        let found = settled(self.within(COMMAND * 2, asked).await);
        self.tell("clock", began, found);
        if standing.ssh().is_some() {
            self.logins(standing).await;
        }
    }

    /// Whether others could take a port of a session there while its connection is lost.
    async fn logins(&mut self, standing: &Standing) {
        let began = Instant::now();
        let asked = logins(standing.runner().as_ref(), standing.shell());
        let found = match self.within(COMMAND * 2, asked).await {
            Ok(Some(0)) => Found::ok("nobody else can log in"),
            Ok(Some(others)) => Found::warn(
                "other_logins",
                format!("accounts that others can log in to: {others}"),
                "make sessions there with --unix-socket: a port could be taken while its connection is lost",
            ),
            Ok(None) => Found::skipped("the target does not say"),
            Err(found) => found,
        };
        self.tell("logins", began, found);
    }

    /// Whether an agent could ask the API for its health: it is there, we are known to it, and policy lets agents ask.
    async fn upstream(&mut self, standing: &Standing, asked: bool) -> bool {
        let began = Instant::now();
        if !asked {
            self.tell("upstream", began, Found::skipped("--no-upstream-check"));
            return false;
        }
        let request = standing.request();
        let connected = self.within(UPSTREAM, request.upstream.probe()).await;
        let found = match connected {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(Found::warn(
                "upstream_unreachable",
                reason,
                "sessions need it; what follows asks the bridge itself only",
            )),
            Err(found) => Some(found),
        };
        if let Some(found) = found {
            self.tell("upstream", began, found);
            return false;
        }
        let there = format!("{} answers", request.upstream.origin());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if !explain(
            &request.rules.load().rules,
            "GET",
            calling::HEALTH.as_bytes(),
            now,
        )
        .is_allowed()
        {
            let found = format!(
                "{there}; agents may not ask for {}, so the bridge itself is asked",
                calling::HEALTH
            );
            self.tell("upstream", began, Found::ok(found));
            return false;
        }
        let credential = self.within(UPSTREAM, request.credential.get()).await;
        let found = match credential {
            Ok(Ok(_)) => Found::ok(there),
            Ok(Err(error)) => Found::warn(
                "no_credential",
                format!("{there}, but there is no credential: {error}"),
                "name where it is found with --credential; what follows asks the bridge itself only",
            ),
            Err(found) => found,
        };
        let known = found.outcome == report::Outcome::Ok;
        self.tell("upstream", began, found);
        known
    }

    /// Brings up one tunnel, calls through it, and takes it down.
    async fn tunnel(&mut self, app: &App, standing: &mut Standing, tunnel: TunnelChoice, health: bool) {
        let (began, name) = (Instant::now(), name(&tunnel));
        let forwards = matches!(tunnel, TunnelChoice::SshReverse);
        let tried = Box::pin(self.within(TUNNEL, standing.try_tunnel(app, tunnel))).await;
        let tried = match tried {
            Ok(Ok(tried)) => tried,
            Ok(Err(error)) => {
                let found = diagnosis::of_open(&error);
                if forwards {
                    self.tell("forwarding", began, found.clone());
                }
                self.tell(format!("tunnel {name}"), began, found);
                return;
            }
            Err(found) => return self.tell(format!("tunnel {name}"), began, found),
        };
        if forwards {
            self.tell("forwarding", began, forwarding(&tried));
        }
        let found = Found::ok(format!("ready at {}", tried.url()));
        self.tell(format!("tunnel {name}"), began, found);
        if self.callback(standing, &tried, name, calling::WHOAMI).await {
            self.tunnel = self.tunnel.or(Some(name));
            if health {
                self.callback(standing, &tried, name, calling::HEALTH).await;
            }
        }
        let began = Instant::now();
        if let Some(left) = tried.close().await {
            let to_do = "look on the target for a listener that is still there; its token is void";
            self.tell(
                format!("end of {name}"),
                began,
                Found::warn("left_behind", left, to_do),
            );
        }
    }

    /// Whether nothing speaks against the way there and back.
    async fn callback(
        &mut self,
        standing: &Standing,
        tried: &Tried,
        tunnel: &str,
        path: &'static str,
    ) -> bool {
        let began = Instant::now();
        let limit = self.limit(CALLBACK);
        let (runner, shell) = (standing.runner().as_ref(), standing.shell());
        let called = self
            .within(limit + COMMAND, calling::call(runner, shell, tried, path, limit))
            .await;
        let found = settled(called);
        let works = matches!(found.outcome, report::Outcome::Ok | report::Outcome::Warn);
        self.tell(format!("callback {tunnel}"), began, found);
        works
    }

    async fn leave(&mut self, standing: Standing) {
        let began = Instant::now();
        let leased = standing.lease().is_some();
        let borrowed = matches!(&standing.request().target, TargetSpec::Provider(target) if target.probed);
        let lost = standing.lease_lost();
        let left = tokio::time::timeout(LEAVING, standing.leave()).await;
        if !leased {
            return;
        }
        if let Some(why) = lost {
            self.tunnel = None;
            return self.tell("lease", began, diagnosis::lease_lost(why));
        }
        let found = match left {
            Ok(Ok(())) if borrowed => Found::ok("left as it is: it was there before"),
            Ok(Ok(())) => Found::ok("given back"),
            Ok(Err(owed)) => Found::warn("lease_owed", owed, "see `paperclip-bridge leases ls`"),
            Err(_) => Found::warn(
                "lease_owed",
                late(LEAVING).found,
                "see `paperclip-bridge leases ls`",
            ),
        };
        self.tell("lease", began, found);
    }
}

fn settled(looked: Result<Result<Found, runners::RunnerError>, Found>) -> Found {
    match looked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => diagnosis::of_runner(&error),
        Err(found) => found,
    }
}

/// What the server's listener is like.
fn forwarding(tried: &Tried) -> Found {
    match tried.verified_loopback() {
        Some(true) => Found::ok("the server listens, on loopback only"),
        None => Found::ok("the server listens; on which address could not be seen"),
        Some(false) => Found::warn(
            "forward_not_loopback",
            "the server listens where other machines reach it",
            "set `GatewayPorts no` in its sshd_config",
        ),
    }
}
