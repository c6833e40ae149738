//! How amounts are spelled, on the command line and in the configuration: `90s`, `10MiB`, `600/m`.
//!
//! Here: one reader and one writer for each, for clap, serde and the schema. Not here: bounds; each key and option has
//! its own.

use std::time::Duration;

use policy::RateLimit;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Units of a duration, largest first, with their length in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Units of a size, largest first, with their length in bytes.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

const DURATION_FORM: &str = "give a whole number with ms, s, m, h or d behind it, such as 90s, 30m or 4h";
const SIZE_FORM: &str =
    "give a whole number of bytes with B, KiB, MiB, GiB or nothing behind it, such as 10MiB";

/// Reads `250ms`, `90s`, `30m`, `4h` or `7d`.
///
/// # Errors
///
/// What to write; the text is not repeated.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (count, unit) = count_and_unit(text);
    let known = DURATION_UNITS.iter().find(|(name, _)| *name == unit);
    known
        .and_then(|(_, length)| count?.checked_mul(*length))
        .map(Duration::from_millis)
        .ok_or_else(|| DURATION_FORM.to_owned())
}

/// Reads `10MiB`, `512KiB` or a plain number of bytes.
///
/// # Errors
///
/// What to write; the text is not repeated.
pub fn size(text: &str) -> Result<u64, String> {
    let (count, unit) = count_and_unit(text);
    let unit = if unit.is_empty() { "B" } else { unit };
    let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
    known
        .and_then(|(_, length)| count?.checked_mul(*length))
        .ok_or_else(|| SIZE_FORM.to_owned())
}

/// Reads `50/s`, `600/m:20`, or `off` for no limit.
///
/// # Errors
///
/// What to write; the text is not repeated.
pub fn rate(text: &str) -> Result<Option<RateLimit>, String> {
    if text == "off" {
        return Ok(None);
    }
    RateLimit::parse(text)
        .map(Some)
        .map_err(|fault| format!("is not a rate, nor `off`: {fault}"))
}

/// As [`duration`] reads it, in the largest unit that loses nothing.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    in_units(length, &DURATION_UNITS, "s")
}

/// As [`size`] reads it, in the largest unit that loses nothing.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    in_units(bytes, &SIZE_UNITS, "B")
}

/// As [`rate`] reads it.
#[must_use]
pub fn rate_text(rate: Option<RateLimit>) -> String {
    rate.map_or_else(|| "off".to_owned(), |rate| rate.to_string())
}

/// The number in front, where there is one, and what stands behind its digits.
fn count_and_unit(text: &str) -> (Option<u64>, &str) {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (plain.then(|| digits.parse().ok()).flatten(), unit)
}

fn in_units(amount: u64, units: &[(&str, u64)], of_nothing: &str) -> String {
    let fitting = units
        .iter()
        .find(|(_, length)| amount > 0 && amount.is_multiple_of(*length));
    fitting.map_or_else(
        || format!("{amount}{of_nothing}"),
        |(unit, length)| format!("{}{unit}", amount / length),
    )
}

/// For `#[serde(with = …)]` of a [`Duration`].
pub(crate) mod duration_as_text {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::duration_text(*value))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        super::duration(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// For `#[serde(with = …)]` of a number of bytes.
pub(crate) mod size_as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::size_text(*value))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<u64, D::Error> {
        super::size(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// For `#[serde(with = …)]` of a [`RateLimit`] or none.
pub(crate) mod rate_as_text {
    use policy::RateLimit;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &Option<RateLimit>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::rate_text(*value))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<RateLimit>, D::Error> {
        super::rate(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// The schema of a duration as text.
#[derive(Debug)]
pub(crate) struct DurationText;

/// The schema of a size as text.
#[derive(Debug)]
pub(crate) struct SizeText;

/// The schema of a rate as text.
#[derive(Debug)]
pub(crate) struct RateText;

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "duration" })
    }
}

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "size" })
    }
}

impl JsonSchema for RateText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": "rate" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_units_only() {
        assert_eq!(size("10MiB"), Ok(10 * 1024 * 1024));
        assert_eq!(size("512KiB"), Ok(512 * 1024));
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("1B"), Ok(1));
        for text in [
            "",
            "10MB",
            "10 MiB",
            "-1",
            "+1",
            "1.5MiB",
            "99999999999999999999",
            "18446744073709551615KiB",
            "MiB",
            "0x10",
        ] {
            assert!(size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("4h"), Ok(Duration::from_secs(14_400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in ["", "90", "-1s", "1.5h", "1 s", "1w", "s", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read_again() {
        for text in ["0s", "1ms", "90s", "2m", "5h", "30d"] {
            assert_eq!(duration_text(duration(text).unwrap()), text);
        }
        for text in ["0B", "1B", "64KiB", "10304KiB", "3GiB"] {
            assert_eq!(size_text(size(text).unwrap()), text);
        }
        for text in ["off", "50/s:50", "600/m:20"] {
            assert_eq!(rate_text(rate(text).unwrap()), text);
        }
    }
}
