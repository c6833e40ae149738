//! How words become one shell command, and how that command is found again to end it.
//!
//! Here: shell selection, quoting, and the checks on names and values; in [`remote`] the one string that an SSH
//! server is given, in [`report`] how the started process tells its pid, in [`kill`] how it is ended. Not here: any
//! transport. Read next: [`remote`].

pub mod remote;
pub mod report;
pub mod kill;

#[cfg(test)]
mod tests;

pub use kill::{KillOutcome, kill_line};
pub use remote::{CommandParts, RemoteCommand};
pub use report::{Report, ReportReader, Scope, StartedProcess};

use crate::RunnerError;

/// The shell that a target's scripts are run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shell {
    /// `bash`
    Bash,
    /// `sh`, which every target has.
    #[default]
    Sh,
}

impl Shell {
    /// Reads a shell selection; none is `sh`.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Invalid`] for any name but `bash` and `sh`; it names the value.
    pub fn parse(name: Option<&str>) -> Result<Self, RunnerError> {
        match name {
            None | Some("sh") => Ok(Self::Sh),
            Some("bash") => Ok(Self::Bash),
            Some(other) => Err(RunnerError::Invalid(format!(
                "shell {other:?} is not supported: use `bash` or `sh`"
            ))),
        }
    }

    /// The program's name.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Sh => "sh",
        }
    }

    /// The arguments that make [`Self::program`] run `script`: not a login shell, so no profile is read.
    pub fn script_args(self, script: impl Into<String>) -> [String; 2] {
        ["-c".to_owned(), script.into()]
    }
}

/// Makes `word` one word of a POSIX shell, whatever it holds: wrapped in `'`, each inner `'` as `'"'"'`.
///
/// NUL cannot be passed to any program; callers refuse it first with [`check_text`].
#[must_use]
pub fn quote(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for character in word.chars() {
        match character {
            '\'' => quoted.push_str("'\"'\"'"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// `command` and `args` as one line of a POSIX shell, each word quoted.
#[must_use]
pub fn join(command: &str, args: &[String]) -> String {
    let mut line = quote(command);
    for arg in args {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    line
}

/// Accepts the name of an environment variable: `[A-Za-z_][A-Za-z0-9_]*`.
///
/// # Errors
///
/// [`RunnerError::Invalid`] naming the key.
pub fn check_env_key(key: &str) -> Result<(), RunnerError> {
    let mut bytes = key.bytes();
    let starts_well = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if starts_well && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Ok(());
    }
    Err(RunnerError::Invalid(format!(
        "environment variable name {key:?} is not valid: use letters, digits and `_`, not starting with a digit"
    )))
}

/// Refuses text with a NUL byte, which no program can be given.
///
/// - `what`: what the text is, for the error; never the text itself, which may be secret.
///
/// # Errors
///
/// [`RunnerError::Invalid`] naming `what`.
pub fn check_text(what: &str, text: &str) -> Result<(), RunnerError> {
    if text.contains('\0') {
        return Err(RunnerError::Invalid(format!(
            "{what} holds a NUL byte, which no program can be given"
        )));
    }
    Ok(())
}

/// Checks what every runner checks of a command before anything is started.
///
/// # Errors
///
/// [`RunnerError::Invalid`]: an empty program name, one that starts with `-` (a shell would read an option), a bad
/// variable name, a variable that is both plain and secret, or a NUL byte anywhere.
pub fn check_parts(parts: &CommandParts<'_>) -> Result<(), RunnerError> {
    if parts.command.is_empty() {
        return Err(RunnerError::Invalid("the command is empty".to_owned()));
    }
    if parts.command.starts_with('-') {
        return Err(RunnerError::Invalid(format!(
            "the command {:?} starts with `-`: write `./{0}` if it is a program's name",
            parts.command
        )));
    }
    check_text("the command", parts.command)?;
    for arg in parts.args {
        check_text("an argument", arg)?;
    }
    match parts.cwd {
        Some("") => return Err(RunnerError::Invalid("the working directory is empty".to_owned())),
        Some(cwd) => check_text("the working directory", cwd)?,
        None => {}
    }
    for (key, value) in parts.env {
        check_env_key(key)?;
        check_text(&format!("the value of {key}"), value)?;
    }
    for (key, value) in parts.secret_env {
        check_env_key(key)?;
        check_text(&format!("the value of {key}"), value.expose())?;
        if parts.env.contains_key(key) {
            return Err(RunnerError::Invalid(format!(
                "{key} is given both as a plain and as a secret variable"
            )));
        }
    }
    Ok(())
}
