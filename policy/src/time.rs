//! Dates as seconds since 1970, without a clock.

use alloc::format;
use alloc::string::String;

use toml::value::{Datetime, Offset};

const DAY: i64 = 86_400;

/// Seconds since 1970-01-01T00:00:00Z; fractions of a second are cut off.
///
/// # Errors
///
/// What to write instead, when the date has no time or no offset, or lies before 1970.
pub(crate) fn unix_seconds(datetime: &Datetime) -> Result<u64, &'static str> {
    let (Some(date), Some(time), Some(offset)) = (datetime.date, datetime.time, datetime.offset) else {
        return Err("write a date with time and offset, such as 2026-12-01T00:00:00Z");
    };
    let offset_minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let of_day =
        i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
    let days = days_from_civil(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    u64::try_from(days * DAY + of_day - offset_minutes * 60).map_err(|_| "write a date after 1970")
}

/// Seconds since 1970-01-01T00:00:00Z of (year, month, day) and (hour, minute, second) in UTC.
pub(crate) fn civil_seconds(date: (i64, i64, i64), clock: (i64, i64, i64)) -> Option<u64> {
    let days = days_from_civil(date.0, date.1, date.2);
    u64::try_from(days * DAY + clock.0 * 3600 + clock.1 * 60 + clock.2).ok()
}

/// `2026-12-01T00:00:00Z`.
pub(crate) fn in_words(unix: u64) -> String {
    let unix = i64::try_from(unix).unwrap_or(i64::MAX);
    let (year, month, day) = civil_from_days(unix.div_euclid(DAY));
    let second = unix.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, counted in years that begin in March.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + (month <= 2) as i64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Result<u64, &'static str> {
        unix_seconds(&text.parse().expect("a TOML date"))
    }

    #[test]
    fn dates_become_seconds_and_back() {
        for (text, unix) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(seconds(text), Ok(unix), "{text}");
            assert_eq!(in_words(unix), text);
        }
    }

    #[test]
    fn an_offset_is_taken_into_account() {
        assert_eq!(
            seconds("2026-12-01T02:00:00+02:00"),
            seconds("2026-12-01T00:00:00Z")
        );
    }

    #[test]
    fn a_date_without_offset_is_refused() {
        assert!(seconds("2026-12-01T00:00:00").is_err());
        assert!(seconds("2026-12-01").is_err());
        assert!(seconds("1969-12-31T23:59:59Z").is_err());
    }
}
