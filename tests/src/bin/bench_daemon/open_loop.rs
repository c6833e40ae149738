//! Callbacks at a fixed rate over many sessions, whatever the answers take.
//!
//! Here: each session's connection has its own beat. Where an answer comes after the next beat, that call's time counts
//! from the beat: a slow daemon cannot hide behind a caller that waits.

use std::time::Duration;

use anyhow::ensure;
use paperclip_bridge_tests::measure::load;
use paperclip_bridge_tests::raw::Agent;
use tokio::io::AsyncWriteExt as _;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::ground::{Connection, bridged, connect, small_call};

/// After the last beat, answers are waited for so long.
const GRACE: Duration = Duration::from_secs(30);

/// No comment: those of an issue are limited.
const CHANGE: &[u8] = br#"{"status":"in_progress","priority":"medium"}"#;

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beaten {
    /// Sorted.
    pub(crate) took: Vec<Duration>,
    /// Those of unsafe callbacks among them, sorted.
    pub(crate) unsafe_took: Vec<Duration>,
    /// Calls with another answer than 200, or none.
    pub(crate) lost: u64,
    /// What came of one of them.
    pub(crate) fault: Option<String>,
}

impl Beaten {
    pub(crate) fn percentile_ms(&self, share: f64) -> f64 {
        percentile_ms(&self.took, share)
    }

    pub(crate) fn unsafe_percentile_ms(&self, share: f64) -> f64 {
        percentile_ms(&self.unsafe_took, share)
    }
}

fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3
}

/// So many callbacks a second over all of these sessions, every other one unsafe, on a thread of its own.
///
/// # Errors
///
/// Where a session cannot be connected to, or nothing was answered.
pub(crate) async fn beat(sessions: &[Agent], rate: u32, length: Duration) -> anyhow::Result<Beaten> {
    let sessions = sessions.to_vec();
    let beaten = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, beat_here(sessions, rate, length))
    });
    let beaten = beaten.await??;
    ensure!(!beaten.took.is_empty(), "no call was answered");
    Ok(beaten)
}

async fn beat_here(sessions: Vec<Agent>, rate: u32, length: Duration) -> anyhow::Result<Beaten> {
    let count = sessions.len() as u32;
    let (own_beat, apart) = (
        Duration::from_secs(1) * count / rate,
        Duration::from_secs(1) / rate,
    );
    let mut callers = JoinSet::new();
    let mut connections = Vec::new();
    for agent in &sessions {
        connections.push(connect(agent).await?);
    }
    let begin = Instant::now() + Duration::from_millis(50);
    for (number, (agent, connection)) in (0_u32..).zip(sessions.into_iter().zip(connections)) {
        let mut caller = Caller {
            read: small_call(&agent),
            agent,
            connection: Some(connection),
            buffer: Vec::with_capacity(4096),
        };
        callers.spawn_local(async move {
            let mut beaten = Beaten::default();
            let (mut due, end) = (begin + apart * number, begin + length);
            let mut unsafe_turn = number % 2 == 1;
            while due < end {
                let late = Instant::now() >= due;
                sleep_until(due).await;
                // The timer is up to a millisecond late, which is not the daemon's.
                let from = if late { due } else { Instant::now() };
                match caller.call(unsafe_turn).await {
                    Ok(()) => {
                        beaten.took.push(from.elapsed());
                        if unsafe_turn {
                            beaten.unsafe_took.push(from.elapsed());
                        }
                    }
                    Err(fault) => {
                        beaten.lost += 1;
                        beaten.fault = Some(fault.to_string());
                    }
                }
                unsafe_turn = !unsafe_turn;
                due += own_beat;
            }
            beaten
        });
    }
    let all = tokio::time::timeout(length + GRACE, callers.join_all()).await?;
    let mut sum = Beaten::default();
    for beaten in all {
        sum.took.extend(beaten.took);
        sum.unsafe_took.extend(beaten.unsafe_took);
        sum.lost += beaten.lost;
        sum.fault = sum.fault.or(beaten.fault);
    }
    sum.took.sort_unstable();
    sum.unsafe_took.sort_unstable();
    Ok(sum)
}

struct Caller {
    agent: Agent,
    read: Vec<u8>,
    connection: Option<Connection>,
    buffer: Vec<u8>,
}

impl Caller {
    async fn call(&mut self, writes: bool) -> anyhow::Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.agent).await?,
        };
        if writes {
            connection.write_all(&self.change()).await?;
        } else {
            connection.write_all(&self.read).await?;
        }
        load::answer(&mut connection, &mut self.buffer).await?;
        self.connection = Some(connection);
        Ok(())
    }

    fn change(&self) -> Vec<u8> {
        let key = Uuid::now_v7().to_string();
        let mut headers = vec![
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key.as_str()),
        ];
        headers.extend(bridged(&self.agent));
        let path = "/api/issues/PAP-1";
        let mut request = self.agent.head("PATCH", path, &headers, Some(CHANGE.len()));
        request.extend_from_slice(CHANGE);
        request
    }
}
