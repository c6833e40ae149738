//! How a command line ends: the exit codes and the errors that carry them.
//!
//! Here: the one list of codes, which `--help` and the README repeat. Not here: which error gets which code; each
//! command says so where the error arises.

use std::error::Error;
use std::fmt::{self, Write as _};

use crate::telemetry::escape::turns_the_line;

/// What a run of this program ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: done, and the answer is no; or something failed that no other code is for.
    Failed,
    /// 2: the command line is not understood.
    Usage,
    /// 3: a file, a variable or an option's value is missing or wrong.
    Configuration,
    /// 4: the target or the upstream cannot be reached, or refuses what is needed.
    Unreachable,
    /// 5: policy denies it.
    Denied,
    /// What COMMAND ended with under `run`: its own status, or 128 + n for signal n.
    Command(u8),
    /// 125: under `run`, we failed while COMMAND ran.
    Bridge,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Configuration => 3,
            Self::Unreachable => 4,
            Self::Denied => 5,
            Self::Command(code) => code,
            Self::Bridge => 125,
        }
    }
}

/// The end of every `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    ok
  1    failed
  2    usage: the command line is not understood
  3    configuration: a file, a variable or a value is missing or wrong
  4    the target or the upstream cannot be reached, or refuses what is needed
  5    denied by policy
  `run` ends with COMMAND's own code once COMMAND has started (128+n for signal n),
  with 124 if COMMAND took longer than --timeout, and with 125 if the bridge failed
  or the lease was lost while it ran";

/// Why a command line ended early: what is wrong, what to do, and the code.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What is wrong, in one line.
    what: String,
    /// Every mistake, a line each.
    listing: Option<String>,
    /// What to do about it, if there is something to say.
    hint: Option<String>,
    /// What was underneath.
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// Something is wrong.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            listing: None,
            hint: None,
            source: None,
        }
    }

    /// Every mistake, a line each.
    #[must_use]
    pub fn listing(mut self, lines: impl Into<String>) -> Self {
        self.listing = Some(lines.into());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What was underneath.
    #[must_use]
    pub fn because(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

/// `what: cause: cause`, then the listing and the hint on lines of their own. What a peer may have put into its message
/// can neither drive the terminal nor start a line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, &self.what)?;
        let mut source = self
            .source
            .as_deref()
            .map(|error| error as &(dyn Error + 'static));
        while let Some(error) = source {
            f.write_str(": ")?;
            write_line(f, &error.to_string())?;
            source = error.source();
        }
        for line in self.listing.iter().flat_map(|listing| listing.lines()) {
            f.write_str("\n  ")?;
            write_line(f, line)?;
        }
        if let Some(hint) = &self.hint {
            f.write_str("\n  ")?;
            write_line(f, hint)?;
        }
        Ok(())
    }
}

/// Writes text of several lines with everything but its line breaks made visible.
pub(crate) fn write_lines(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.split_inclusive('\n')
        .try_for_each(|line| match line.strip_suffix('\n') {
            Some(line) => write_line(f, line).and_then(|()| f.write_str("\n")),
            None => write_line(f, line),
        })
}

fn write_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|character| {
        if turns_the_line(character) {
            write!(f, "{}", character.escape_unicode())
        } else {
            f.write_char(character)
        }
    })
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // Already part of the text.
        None
    }
}

/// The number of a signal by its name without `SIG`, as Linux has them; what is not known there counts as `KILL`.
#[must_use]
pub fn signal_number(name: &str) -> u8 {
    match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "XCPU" => 24,
        "XFSZ" => 25,
        "SYS" => 31,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_and_what_to_do() {
        let failure = Failure::new(Exit::Configuration, "cannot read rules.toml")
            .because(std::io::Error::other("disk is gone"))
            .hint("check the disk");

        assert_eq!(
            failure.to_string(),
            "cannot read rules.toml: disk is gone\n  check the disk"
        );
    }

    #[test]
    fn a_peer_cannot_drive_the_terminal_through_an_error() {
        let failure = Failure::new(Exit::Failed, "banner: \u{1b}[2J\r\nok");

        assert_eq!(failure.to_string(), "banner: \\u{1b}[2J\\u{d}\\u{a}ok");
    }

    #[test]
    fn every_code_stands_in_the_help() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Configuration,
            Exit::Unreachable,
            Exit::Denied,
        ] {
            assert!(
                EXIT_CODES.contains(&format!("\n  {}    ", exit.code())),
                "{exit:?}"
            );
        }
        assert!(EXIT_CODES.contains("125"));
    }
}
