//! How far this machine's clock and the Worker's are apart, as a reply tells.
//!
//! Here: [`Skew`], for the error of a request that was refused for its timestamp. Not here: any correction; a client
//! that took the time from whoever answers could be made to sign for any hour.

use core::fmt;

use super::seconds;
use crate::time;

/// Two clocks that differ. Its text says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    ahead_seconds: i64,
}

impl Skew {
    /// Compares `now_unix` with `X-Paperclip-Time` (Unix seconds) or else `Date` (RFC 9110 section 5.6.7) of a reply; `None`
    /// where the reply tells no time.
    #[must_use]
    pub fn of_reply(paperclip_time: Option<&str>, date: Option<&str>, now_unix: u64) -> Option<Self> {
        let theirs = paperclip_time
            .and_then(seconds)
            .or_else(|| date.and_then(http_date))?;
        let ahead = i128::from(now_unix) - i128::from(theirs);
        Some(Self {
            ahead_seconds: i64::try_from(ahead).ok()?,
        })
    }

    /// How many seconds this machine is ahead; negative where it is behind.
    #[must_use]
    pub const fn ahead_seconds(self) -> i64 {
        self.ahead_seconds
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.ahead_seconds < 0 {
            "behind"
        } else {
            "ahead of"
        };
        write!(
            f,
            "the clock of this machine is {} s {direction} the Worker's; set it by NTP",
            self.ahead_seconds.unsigned_abs()
        )
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that servers write.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let (day, month, year, clock, zone) = (
        words.next()?,
        words.next()?,
        words.next()?,
        words.next()?,
        words.next()?,
    );
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let mut clock = clock.split(':');
    let (hour, minute, second) = (clock.next()?, clock.next()?, clock.next()?);
    let ends = words.next().is_none() && clock.next().is_none() && zone == "GMT";
    let number = |text: &str, digits: usize, most: i64| {
        let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        let number: i64 = plain.then(|| text.parse().ok()).flatten()?;
        (number <= most).then_some(number)
    };
    ends.then(|| {
        time::civil_seconds(
            (
                number(year, 4, 9999)?,
                i64::try_from(month).ok()?,
                number(day, 2, 31)?,
            ),
            // A leap second is written as 60.
            (
                number(hour, 2, 23)?,
                number(minute, 2, 59)?,
                number(second, 2, 60)?,
            ),
        )
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_date_field_is_read_in_its_one_form() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for text in [
            "",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 GMT x",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov -994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1969 08:49:37 GMT",
        ] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn the_hint_says_which_way_the_clock_is_off() {
        let date = Some("Thu, 01 Jan 2026 00:00:00 GMT");

        let ahead = Skew::of_reply(None, date, 1_767_225_600 + 412).expect("a time");
        let behind = Skew::of_reply(Some("1767226000"), date, 1_767_225_600).expect("a time");

        assert!(ahead.to_string().contains("412 s ahead of"), "{ahead}");
        assert_eq!(behind.ahead_seconds(), -400);
        assert!(behind.to_string().contains("400 s behind"), "{behind}");
        assert_eq!(Skew::of_reply(Some("soon"), None, 0), None);
    }
}
