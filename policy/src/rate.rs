//! Rates as values.
//!
//! Here: [`RateLimit`] and its spelling. Not here: the bucket that is emptied and refilled.

use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

use thiserror::Error;

/// So many callbacks in a period, and so many at once.
///
/// ```
/// use policy::RateLimit;
///
/// let rate = RateLimit::parse("600/m:20").expect("a rate");
/// assert_eq!((rate.per_second_f64(), rate.burst().get()), (10.0, 20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    count: NonZeroU32,
    period: Period,
    burst: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Second,
    Minute,
    Hour,
}

/// Why a text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RateFault {
    /// Not `COUNT/UNIT` or `COUNT/UNIT:BURST`.
    #[error("write COUNT/UNIT or COUNT/UNIT:BURST, such as 50/s, 50/s:100 or 600/m")]
    Shape,
    /// A unit other than `s`, `m`, `h`.
    #[error("the unit is s, m or h")]
    Unit,
    /// Zero, or beyond a million.
    #[error("count and burst are whole numbers from 1 to {MAX_COUNT}")]
    Number,
}

/// Largest count and burst.
const MAX_COUNT: u32 = 1_000_000;

impl RateLimit {
    /// Reads `50/s`, `600/m`, `1000/h`, each perhaps with `:BURST` behind. The burst is the count when it
    /// is left out.
    ///
    /// # Errors
    ///
    /// [`RateFault`], whose text says what to write.
    pub fn parse(text: &str) -> Result<Self, RateFault> {
        let (count, rest) = text.split_once('/').ok_or(RateFault::Shape)?;
        let (unit, burst) = match rest.split_once(':') {
            Some((unit, burst)) => (unit, burst),
            None => (rest, count),
        };
        let period = match unit {
            "s" => Period::Second,
            "m" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(RateFault::Unit),
        };
        Ok(Self {
            count: number(count)?,
            period,
            burst: number(burst)?,
        })
    }

    /// The time in which one more callback is earned: the period divided by the count.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.period.length() / self.count.get()
    }

    /// How many callbacks a second this is.
    #[must_use]
    pub fn per_second_f64(&self) -> f64 {
        f64::from(self.count.get()) / self.period.length().as_secs_f64()
    }

    /// How many callbacks may come at once.
    #[must_use]
    pub const fn burst(&self) -> NonZeroU32 {
        self.burst
    }
}

impl Period {
    const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        })
    }
}

impl core::str::FromStr for RateLimit {
    type Err = RateFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period {
            Period::Second => "s",
            Period::Minute => "m",
            Period::Hour => "h",
        };
        write!(formatter, "{}/{unit}:{}", self.count, self.burst)
    }
}

fn number(text: &str) -> Result<NonZeroU32, RateFault> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RateFault::Number);
    }
    let number: NonZeroU32 = text.parse().map_err(|_| RateFault::Number)?;
    if number.get() > MAX_COUNT {
        Err(RateFault::Number)
    } else {
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn rates_are_read_in_their_three_units() {
        for (text, interval, burst) in [
            ("50/s", Duration::from_millis(20), 50),
            ("50/s:100", Duration::from_millis(20), 100),
            ("600/m", Duration::from_millis(100), 600),
            ("1/h:1", Duration::from_secs(3600), 1),
        ] {
            let rate = RateLimit::parse(text).expect(text);
            assert_eq!((rate.interval(), rate.burst().get()), (interval, burst), "{text}");
            assert_eq!(RateLimit::parse(&rate.to_string()), Ok(rate));
        }
    }

    #[test]
    fn what_is_not_a_rate_is_refused() {
        for (text, fault) in [
            ("", RateFault::Shape),
            ("50", RateFault::Shape),
            ("50/d", RateFault::Unit),
            ("50/s ", RateFault::Unit),
            ("0/s", RateFault::Number),
            ("+5/s", RateFault::Number),
            ("5/s:0", RateFault::Number),
            ("5/s:", RateFault::Number),
            ("1000001/s", RateFault::Number),
            ("99999999999/s", RateFault::Number),
        ] {
            assert_eq!(RateLimit::parse(text), Err(fault), "{text}");
        }
    }
}
