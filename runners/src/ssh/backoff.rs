//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Doubling waits from 100 ms to 5 s, each spread by a quarter to both sides. Without clock and without randomness of
/// its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure.
    ///
    /// - `random`: any value; all values equally likely spread the waits of many clients.
    pub fn next(&mut self, random: u32) -> Duration {
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.min(LONGEST);
        // Whole numbers, so that no platform rounds otherwise.
        let share = wait.saturating_mul(random >> 16) / (1 << 16);
        wait * 3 / 4 + share / 2
    }

    /// As [`Self::next`] with the system's random numbers.
    pub fn next_jittered(&mut self) -> Duration {
        // Without a source of randomness the waits are not spread, which is no reason to fail.
        self.next(getrandom::u32().unwrap_or(u32::MAX / 2))
    }

    /// It worked: begin anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_tenth_of_a_second_to_five_seconds() {
        let mut backoff = Backoff::default();

        let waits: Vec<u128> = (0..8).map(|_| backoff.next(1 << 31).as_millis()).collect();

        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn randomness_spreads_a_wait_by_a_quarter_to_both_sides() {
        assert_eq!(Backoff::default().next(0), Duration::from_millis(75));
        let longest = Backoff::default().next(u32::MAX);
        assert!(
            longest <= Duration::from_millis(125) && longest > Duration::from_millis(124),
            "{longest:?}"
        );
    }

    #[test]
    fn a_success_begins_anew_and_many_failures_do_not_overflow() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.next(u32::MAX) <= Duration::from_millis(6250));
        }

        backoff.reset();

        assert_eq!(backoff.next(0), Duration::from_millis(75));
    }
}
