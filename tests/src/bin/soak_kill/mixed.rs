//! One `serve` with a session of each kind at once, killed at random moments.
//!
//! Here: which sessions, when it is killed, and how long they take to be back by the daemon's own table. Not here: the
//! callers ([`super::callers`]) and what they are told afterwards ([`super::outcomes`]).

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use paperclip_bridge_tests::Agent;
use paperclip_bridge_tests::binary::{Opened, Running};
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::upstream::Upstream;
use paperclip_bridge_tests::world::Place;
use tempfile::TempDir;

use super::callers::{Called, Callers};
use super::served::{END_LIMIT, Served};
use super::{Line, Options, RECOVERY_LIMIT, outcomes};

/// Its name in the table.
pub(crate) const NAME: &str = "serve mixed: host";

/// The tunnels of its sessions; the one on a unix socket is local.
const TUNNELS: [&str; 5] = ["ssh-reverse", "http2_v1", "queue_v1", "ssh-reverse", "local"];

/// Between everything being back and the next kill, at most.
const PEACE: Duration = Duration::from_millis(1200);

/// After its start, at most, where it is killed while its sessions come back.
const HASTE: Duration = Duration::from_millis(400);

/// Every so many kills, one comes while sessions are coming back.
const HASTY: usize = 4;

/// How long the table is not looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is killed, with all of its sessions.
struct Mixed {
    directory: TempDir,
    sessions: Vec<Opened>,
    running: Option<Running>,
}

impl Mixed {
    async fn begin(sshd: &Sshd, upstream: &Upstream) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let served = Served::new(directory.path());
        let running = served.start().await?;
        let socket = directory.path().join("agent.sock").display().to_string();
        let mut sessions = vec![];
        for tunnel in TUNNELS {
            let opened = if tunnel == "local" {
                let more = ["--unix-socket", &socket];
                served.session(&Place::Local, upstream, &more).await?
            } else {
                let place = Place::Other(sshd.access());
                served.session(&place, upstream, &["--tunnel", tunnel]).await?
            };
            anyhow::ensure!(
                opened.tunnel == tunnel,
                "{tunnel} was asked for, {} came",
                opened.tunnel
            );
            sessions.push(opened);
        }
        Ok(Self {
            directory,
            sessions,
            running: Some(running),
        })
    }

    fn served(&self) -> Served {
        Served::new(self.directory.path())
    }

    fn called(&self) -> Vec<Called> {
        let called = self.sessions.iter().map(|opened| Called {
            agent: Agent {
                url: opened.url.clone(),
                token: opened.token.clone(),
            },
            gateway: matches!(opened.tunnel.as_str(), "http2_v1" | "queue_v1"),
        });
        called.collect()
    }

    /// Kills it without a warning and starts it again, as a supervisor does.
    async fn killed(&mut self, callers: &Callers) -> anyhow::Result<()> {
        let running = self.running.take().context("it was not started again")?;
        running.signal("KILL");
        callers.killed();
        // Until the process is gone, the state folder is its own.
        drop(tokio::time::timeout(END_LIMIT, running.finish()).await);
        self.running = Some(self.served().start().await?);
        Ok(())
    }

    /// Waits until every session is ready again by the daemon's own table.
    async fn all_back(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let back = self.served().sessions_that_are("ready").await;
            if back == self.sessions.len() {
                return Ok(());
            }
            anyhow::ensure!(
                since.elapsed() < RECOVERY_LIMIT,
                "{back} of {} sessions are back; {}",
                self.sessions.len(),
                self.served().log()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn end(mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("it was not started again")?;
        let ids: Vec<_> = self
            .sessions
            .iter()
            .map(|opened| opened.session.as_str())
            .collect();
        self.served().end(&ids, running).await
    }
}

/// Kills it again and again under load, and says what became of everything.
pub(crate) async fn scenario(sshd: &Sshd, upstream: &Upstream, options: &Options) -> anyhow::Result<Line> {
    let mut mixed = Mixed::begin(sshd, upstream).await?;
    let called = mixed.called();
    let callers = Callers::start(called.clone(), options.callers);
    let mut random = Random::new(options.seed)?;
    let mut recoveries = vec![];
    let mut violations = vec![];
    let mut kills = 0;
    while kills < options.kills {
        let hasty = kills % HASTY == HASTY - 1;
        tokio::time::sleep(random.below(if hasty { HASTE } else { PEACE })).await;
        let killed = Instant::now();
        let mut back = mixed.killed(&callers).await;
        kills += 1;
        // The next one comes before they are back.
        let early = kills % HASTY == HASTY - 1 && kills < options.kills;
        if back.is_ok() && !early {
            back = mixed.all_back().await;
            recoveries.push(killed.elapsed());
        }
        if let Err(fault) = back {
            violations.push(format!("after kill {kills}: {fault:#}"));
            break;
        }
    }
    // The table must not say more than is true.
    for (session, called) in called.iter().enumerate() {
        match called.agent.get("/api/agents/me").await {
            Ok(answer) if answer.status == 200 => {}
            other => violations.push(format!(
                "session {session} is said to be back and answers {other:?}"
            )),
        }
    }
    let tally = callers.end().await;
    let seen = upstream.seen();
    violations.extend(tally.violations(&seen));
    for (session, called) in called.iter().enumerate() {
        violations.extend(outcomes::untold(&tally, session, &seen, &called.agent).await);
        let wrong = outcomes::mislisted(&tally, session, &seen, &called.agent, options.callers);
        violations.extend(wrong.await);
    }
    let unserved: BTreeSet<usize> = (0..called.len())
        .filter(|session| {
            !tally
                .calls
                .iter()
                .any(|call| call.session == *session && call.came == Ok(200))
        })
        .collect();
    violations.extend(
        unserved
            .into_iter()
            .map(|session| format!("session {session} never answered")),
    );
    violations.extend(mixed.end().await.err().map(|fault| format!("{fault:#}")));
    Ok(Line {
        name: NAME.to_owned(),
        kills,
        tally: std::sync::Arc::unwrap_or_clone(tally),
        recoveries,
        violations,
    })
}

/// Moments, the same again for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: Option<u32>) -> anyhow::Result<Self> {
        let seed = match seed {
            Some(seed) => seed,
            None => getrandom::u32().context("no randomness")?,
        };
        writeln!(std::io::stderr(), "soak-kill: --seed {seed}")?;
        Ok(Self(u64::from(seed) | 1 << 32))
    }

    /// Xorshift: good enough for moments.
    fn below(&mut self, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.0 % most.max(1))
    }
}
