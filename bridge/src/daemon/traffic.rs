//! How much is going on: callbacks of the last minutes, and of each session since it began.
//!
//! Here: [`Watched`], which every callback that ends is counted into, and [`Traffic`], what is told of a stretch of time.
//! Memory is bounded: a fixed number of slots and buckets, and the newest callbacks. Not here: what a scraper reads
//! (`telemetry/metrics`), what nobody may lose (`audit/`).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::events::Event;
use super::shown::time;
use crate::session::observer::Seen;

/// Callbacks that a page which is opened now is shown.
const REMEMBERED: usize = 256;
/// Length of one slot, and how many there are: five minutes together.
const SLOT: Duration = Duration::from_secs(5);
const SLOTS: u64 = 60;
/// Slots that rates and quantiles are taken of: the last minute.
const RECENT: u64 = 12;
/// Four buckets to a doubling, from 64 us to 18 minutes: a quantile is told within an eighth.
const BUCKETS: usize = 96;
/// The power of two that the first bucket begins with.
const FIRST: u32 = 6;

/// Callbacks of a stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Traffic {
    /// All that have ended.
    pub callbacks: u64,
    /// Those that policy, or a check before it, said no to.
    pub denied: u64,
    /// Those beyond a limit of rate or concurrency.
    pub throttled: u64,
    /// Unsafe ones that were sent and whose outcome is not known.
    pub indeterminate: u64,
    /// Those that the upstream did not answer, or not in time.
    pub failed: u64,
    /// Half of them took no longer, in microseconds; `null` where there are none.
    pub p50_us: Option<u64>,
    /// 19 of 20 took no longer.
    pub p95_us: Option<u64>,
}

/// What was going on just now.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Recent {
    /// Over how many seconds.
    pub seconds: u64,
    /// Callbacks a second.
    pub per_second: f64,
    /// What they were.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Counted so far.
#[derive(Clone, Debug, Default)]
struct Counts {
    callbacks: u64,
    denied: u64,
    throttled: u64,
    indeterminate: u64,
    failed: u64,
    durations: Durations,
}

/// How many took how long. Made with the first one, so that a session which makes no call costs next to nothing.
#[derive(Clone, Debug, Default)]
struct Durations(Option<Box<[u32; BUCKETS]>>);

impl Durations {
    fn add(&mut self, took: Duration) {
        let counts = self.0.get_or_insert_with(|| Box::new([0; BUCKETS]));
        if let Some(count) = counts.get_mut(bucket(took)) {
            *count = count.saturating_add(1);
        }
    }

    fn merge(&mut self, other: &Self) {
        let Some(other) = &other.0 else { return };
        let counts = self.0.get_or_insert_with(|| Box::new([0; BUCKETS]));
        for (count, more) in counts.iter_mut().zip(other.iter()) {
            *count = count.saturating_add(*more);
        }
    }

    /// How long the fastest `percent` of a hundred took at most.
    fn quantile(&self, percent: u64) -> Option<u64> {
        let counts = self.0.as_ref()?;
        let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let rank = (all * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (index, count) in counts.iter().enumerate() {
            below += u64::from(*count);
            if below >= rank {
                return Some(middle(index));
            }
        }
        None
    }
}

fn bucket(took: Duration) -> usize {
    let us = u64::try_from(took.as_micros())
        .unwrap_or(u64::MAX)
        .max(1 << FIRST);
    let power = us.ilog2();
    let quarter = (us >> (power - 2)) & 3;
    let index = u64::from(power - FIRST) * 4 + quarter;
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The middle of a bucket, in microseconds.
fn middle(index: usize) -> u64 {
    let index = u64::try_from(index).unwrap_or_default();
    let base = 1_u64 << (u64::from(FIRST) + index / 4);
    base + base * (2 * (index % 4) + 1) / 8
}

impl Counts {
    fn add(&mut self, seen: &Seen<'_>) {
        self.callbacks += 1;
        match seen.code {
            "rate_limited" => self.throttled += 1,
            "outcome_indeterminate" => self.indeterminate += 1,
            "upstream_unreachable" | "upstream_failed" | "upstream_timeout" => self.failed += 1,
            _ => {}
        }
        if seen.verdict == "deny" {
            self.denied += 1;
        }
        self.durations.add(seen.duration);
    }

    fn merge(&mut self, other: &Self) {
        self.callbacks += other.callbacks;
        self.denied += other.denied;
        self.throttled += other.throttled;
        self.indeterminate += other.indeterminate;
        self.failed += other.failed;
        self.durations.merge(&other.durations);
    }

    fn told(&self) -> Traffic {
        Traffic {
            callbacks: self.callbacks,
            denied: self.denied,
            throttled: self.throttled,
            indeterminate: self.indeterminate,
            failed: self.failed,
            p50_us: self.durations.quantile(50),
            p95_us: self.durations.quantile(95),
        }
    }
}

/// One session's callbacks since it began.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<(Counts, Option<SystemTime>)>);

impl Tally {
    fn add(&self, seen: &Seen<'_>) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.0.add(seen);
        tally.1 = Some(SystemTime::now());
    }

    /// What it was, and when the last one ended.
    pub(crate) fn told(&self) -> (Traffic, Option<String>) {
        let tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (tally.0.told(), tally.1.map(time))
    }
}

/// The last minutes, slot by slot; times are given as what has passed since the beginning.
#[derive(Debug, Default)]
struct Window {
    /// The newest last, each with its number.
    slots: VecDeque<(u64, Counts)>,
}

impl Window {
    fn add(&mut self, now: Duration, seen: &Seen<'_>) {
        let number = slot(now);
        if self.slots.back().is_none_or(|(newest, _)| *newest < number) {
            self.slots.push_back((number, Counts::default()));
            while self.slots.front().is_some_and(|(old, _)| old + SLOTS <= number) {
                self.slots.pop_front();
            }
        }
        if let Some((_, counts)) = self.slots.back_mut() {
            counts.add(seen);
        }
    }

    /// The last minute, or what there is of it.
    fn recent(&self, now: Duration) -> Recent {
        let number = slot(now);
        let mut all = Counts::default();
        self.slots
            .iter()
            .filter(|(slot, _)| slot + RECENT > number)
            .for_each(|(_, counts)| all.merge(counts));
        // The slot that is under way counts for what has passed of it.
        let begin = SLOT * u32::try_from((number + 1).saturating_sub(RECENT)).unwrap_or(u32::MAX);
        let passed = now.saturating_sub(begin).max(Duration::from_secs(1));
        let callbacks = u32::try_from(all.callbacks).unwrap_or(u32::MAX);
        Recent {
            seconds: passed.as_secs(),
            per_second: f64::from(callbacks) / passed.as_secs_f64(),
            traffic: all.told(),
        }
    }

    /// Callbacks and denied ones in each slot, the oldest first.
    fn course(&self, now: Duration) -> Vec<[u64; 2]> {
        let number = slot(now);
        let first = (number + 1).saturating_sub(SLOTS);
        let mut course = vec![[0, 0]; usize::try_from(SLOTS).unwrap_or_default()];
        let ahead = SLOTS - (number + 1 - first);
        for (slot, counts) in &self.slots {
            let place = slot.checked_sub(first).map(|place| place + ahead);
            let place = place.and_then(|place| course.get_mut(usize::try_from(place).ok()?));
            if let Some(place) = place {
                *place = [counts.callbacks, counts.denied];
            }
        }
        course
    }
}

fn slot(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs()
}

/// What is going on in the daemon.
pub(crate) struct Watched {
    began: Instant,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    window: Window,
    total: Counts,
    tallies: HashMap<Uuid, Arc<Tally>>,
    newest: VecDeque<Arc<Event>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            inside: Mutex::default(),
        }
    }
}

impl Watched {
    fn inside(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session's callbacks are counted here from now on.
    pub(super) fn begins(&self, session: Uuid) -> Arc<Tally> {
        Arc::clone(self.inside().tallies.entry(session).or_default())
    }

    /// It makes no more of them.
    pub(super) fn is_over(&self, session: Uuid) {
        self.inside().tallies.remove(&session);
    }

    pub(super) fn callback(&self, seen: &Seen<'_>) {
        let now = self.began.elapsed();
        let mut inside = self.inside();
        inside.window.add(now, seen);
        inside.total.add(seen);
        let tally = inside.tallies.get(&seen.session).cloned();
        drop(inside);
        if let Some(tally) = tally {
            tally.add(seen);
        }
    }

    /// Callbacks and tokens astray are shown to whoever looks later.
    pub(super) fn remember(&self, event: &Arc<Event>) {
        let mut inside = self.inside();
        if inside.newest.len() >= REMEMBERED {
            inside.newest.pop_front();
        }
        inside.newest.push_back(Arc::clone(event));
    }

    /// The newest callbacks and tokens astray, the oldest first.
    pub(crate) fn newest(&self) -> Vec<Arc<Event>> {
        self.inside().newest.iter().cloned().collect()
    }

    /// The last minute.
    pub(crate) fn recent(&self) -> Recent {
        self.inside().window.recent(self.began.elapsed())
    }

    /// Since the daemon began.
    pub(crate) fn total(&self) -> Traffic {
        self.inside().total.told()
    }

    /// Callbacks and denied ones of the last five minutes, in steps of [`Self::step_seconds`], the oldest first.
    pub(crate) fn course(&self) -> Vec<[u64; 2]> {
        self.inside().window.course(self.began.elapsed())
    }

    /// How long a step of [`Self::course`] is.
    pub(crate) const fn step_seconds() -> u64 {
        SLOT.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(code: &'static str, verdict: &'static str, us: u64) -> Seen<'static> {
        Seen {
            session: Uuid::nil(),
            run_id: "r",
            request_id: Uuid::nil(),
            method: "GET",
            path: "/api/x",
            rule: "",
            verdict,
            status: 200,
            code,
            answer_bytes: 0,
            duration: Duration::from_micros(us),
        }
    }

    #[test]
    fn a_quantile_is_told_within_an_eighth() {
        for us in [64, 100, 999, 5_000, 123_456, 30_000_000, 300_000_000] {
            let mut durations = Durations::default();
            durations.add(Duration::from_micros(us));

            let told = durations.quantile(95).unwrap();

            assert!(told.abs_diff(us) * 8 <= us, "{us} was told as {told}");
        }
    }

    #[test]
    fn half_and_nineteen_of_twenty_are_told_apart() {
        let mut counts = Counts::default();
        for _ in 0..90 {
            counts.add(&seen("", "allow", 1_000));
        }
        for _ in 0..10 {
            counts.add(&seen("", "allow", 100_000));
        }

        let told = counts.told();

        assert!(
            told.p50_us.unwrap() < 1_200 && told.p95_us.unwrap() > 80_000,
            "{told:?}"
        );
        assert_eq!(Counts::default().told().p50_us, None);
    }

    #[test]
    fn a_minute_passes_and_five_minutes_are_kept() {
        let mut window = Window::default();
        for second in 0..60 {
            window.add(Duration::from_secs(second), &seen("rate_limited", "deny", 500));
        }

        let now = window.recent(Duration::from_secs(59));
        let later = window.recent(Duration::from_secs(125));

        assert_eq!((now.traffic.callbacks, now.traffic.throttled), (60, 60));
        assert!((now.per_second - 60.0 / 59.0).abs() < 0.01, "{now:?}");
        assert_eq!((later.traffic.callbacks, later.traffic.p95_us), (0, None));
        let course = window.course(Duration::from_secs(125));
        assert_eq!(course.len(), 60);
        assert_eq!(course.iter().map(|[all, _]| all).sum::<u64>(), 60);
        assert_eq!(course.last(), Some(&[0, 0]));
        window.add(Duration::from_secs(3_000), &seen("", "allow", 1));
        assert_eq!(window.slots.len(), 1);
        assert_eq!(window.course(Duration::from_secs(3_000)).last(), Some(&[1, 0]));
    }

    #[test]
    fn what_a_session_did_is_kept_for_it_and_only_so_much_is_remembered() {
        let watched = Watched::default();
        let tally = watched.begins(Uuid::nil());

        watched.callback(&seen("outcome_indeterminate", "allow", 10));
        watched.is_over(Uuid::nil());
        watched.callback(&seen("upstream_timeout", "allow", 10));
        for _ in 0..REMEMBERED + 9 {
            watched.remember(&Arc::new(Event::WrongChannel {
                session: Uuid::nil(),
                at: String::new(),
                owner: Uuid::nil(),
            }));
        }

        let (told, last) = tally.told();
        assert_eq!((told.callbacks, told.indeterminate, told.failed), (1, 1, 0));
        assert!(last.is_some());
        assert_eq!((watched.total().callbacks, watched.total().failed), (2, 1));
        assert_eq!(watched.newest().len(), REMEMBERED);
    }
}
