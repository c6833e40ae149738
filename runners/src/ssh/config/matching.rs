//! Which blocks of a configuration apply: `Host` and `Match`; pure.
//!
//! Here: the criteria. What cannot be decided without running something is an error, and only if all else in that
//! `Match` fits.

use super::ConfigError;
use super::lines::Line;
use super::pattern;

/// What criteria are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The name that was asked for.
    pub original_host: &'a str,
    /// Its `HostName` as far as read, else the name itself.
    pub host: &'a str,
    /// The login name as far as read, else the local user's.
    pub user: &'a str,
    /// The local user's name.
    pub local_user: &'a str,
    /// This is the second reading, for `Match final`.
    pub final_pass: bool,
}

/// What a `Match` line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchVerdict {
    /// The block applies.
    pub applies: bool,
    /// The line asks for a second reading.
    pub wants_final_pass: bool,
}

/// Whether a `Host` line names `original_host`: at least one pattern and no negated one.
#[must_use]
pub fn host_line_applies(patterns: &[String], original_host: &str) -> bool {
    let mut applies = false;
    for item in patterns {
        match item.strip_prefix('!') {
            Some(negated) if pattern::matches(negated, original_host) => return false,
            Some(_) => {}
            None => applies = applies || pattern::matches(item, original_host),
        }
    }
    applies
}

/// Judges a `Match` line.
///
/// # Errors
///
/// [`ConfigError`]: no criteria, an unknown one, `all` beside others, a criterion without its value, or one that
/// cannot be decided here (`exec` and what newer versions know) while all others fit.
pub fn match_line_applies(line: &Line, subject: &Subject<'_>) -> Result<MatchVerdict, ConfigError> {
    let error = |message: String| ConfigError::new(Some(&line.at), message);
    let mut verdict = MatchVerdict {
        applies: true,
        wants_final_pass: false,
    };
    let mut undecidable = None;
    let mut count = 0_usize;
    let mut words = line.args.iter();
    while let Some(word) = words.next() {
        let (word, mut value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
            None => (word.as_str(), None),
        };
        let (negated, name) = match word.strip_prefix('!') {
            Some(name) => (true, name.to_ascii_lowercase()),
            None => (false, word.to_ascii_lowercase()),
        };
        if name == "all" {
            if count > 1 || words.next().is_some() {
                return Err(error(
                    "`Match all` cannot be combined with other criteria".to_owned(),
                ));
            }
            verdict.applies = verdict.applies && !negated;
            count += 1;
            break;
        }
        count += 1;
        if name == "final" || name == "canonical" {
            verdict.wants_final_pass |= name == "final";
            verdict.applies = verdict.applies && subject.final_pass != negated;
            continue;
        }
        if value.is_none() {
            value = words.next().map(String::as_str);
        }
        let value = value.ok_or_else(|| error(format!("Match {name} has no value")))?;
        let fits = match name.as_str() {
            "host" => host_matches(value, subject.host),
            "originalhost" => host_matches(value, subject.original_host),
            "user" => pattern::list_matches(value, subject.user),
            "localuser" => pattern::list_matches(value, subject.local_user),
            "exec" | "localnetwork" | "tagged" | "version" | "command" | "sessiontype" => {
                undecidable = Some(name);
                continue;
            }
            _ => return Err(error(format!("Match {name} is not a known criterion"))),
        };
        verdict.applies = verdict.applies && fits != negated;
    }
    if count == 0 {
        return Err(error("Match has no criteria".to_owned()));
    }
    match undecidable {
        Some(name) if verdict.applies => Err(error(format!(
            "`Match {name}` may apply to {} but is not evaluated (no command is run for a configuration): put this \
             host's settings above it, or exclude the host from it with `!originalhost {0}`",
            subject.original_host
        ))),
        _ => Ok(verdict),
    }
}

/// Host names have no case in `Match`, unlike in a `Host` line.
fn host_matches(list: &str, host: &str) -> bool {
    pattern::list_matches(&list.to_ascii_lowercase(), &host.to_ascii_lowercase())
}
