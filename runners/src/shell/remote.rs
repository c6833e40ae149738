//! One command as the one string that an SSH server is given.
//!
//! Here: [`RemoteCommand`], made of a small POSIX script around the command: it enters the directory, reports its pid
//! ([`super::report`]), takes secrets from stdin, exports the variables and becomes the command. Not here: sending
//! it. Read next: [`super::report`].
//!
//! The string is read by the account's login shell, whatever that is. Inside `exec sh -c '…'` it holds nothing that
//! csh or fish reads otherwise than a POSIX shell does. Limits: `cmd.exe`, PowerShell, and csh with a command line
//! over its own word limit (1 KiB in the original csh, none in tcsh).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{check_parts, join, quote};
use crate::{DuplexRequest, Execution, RunnerError, SecretText};

/// What of an execution makes up its command line; borrowed, so that the rest of the request stays with its owner.
#[derive(Clone, Copy, Debug)]
pub struct CommandParts<'a> {
    /// Program to run.
    pub command: &'a str,
    /// Its arguments.
    pub args: &'a [String],
    /// Working directory; `None` is the login's own.
    pub cwd: Option<&'a str>,
    /// Variables that may be seen in argv.
    pub env: &'a BTreeMap<String, String>,
    /// Variables that must not.
    pub secret_env: &'a BTreeMap<String, SecretText>,
}

impl<'a> From<&'a Execution> for CommandParts<'a> {
    fn from(execution: &'a Execution) -> Self {
        Self {
            command: &execution.command,
            args: &execution.args,
            cwd: execution.cwd.as_deref(),
            env: &execution.env,
            secret_env: &execution.secret_env,
        }
    }
}

static NO_ENV: BTreeMap<String, String> = BTreeMap::new();
static NO_SECRET_ENV: BTreeMap<String, SecretText> = BTreeMap::new();

impl<'a> From<&'a DuplexRequest> for CommandParts<'a> {
    fn from(request: &'a DuplexRequest) -> Self {
        Self {
            command: &request.command,
            args: &request.args,
            cwd: request.cwd.as_deref(),
            env: &NO_ENV,
            secret_env: &NO_SECRET_ENV,
        }
    }
}

/// Exit code of the wrapper itself when it did not start the command; the report says why.
pub const WRAPPER_FAILED: i32 = 126;

/// A command ready to be sent: one string, what goes ahead of its stdin, and the mark of its pid report.
#[derive(Debug)]
pub struct RemoteCommand {
    /// The string for the SSH `exec` request.
    pub line: String,
    /// Bytes to write to stdin before anything of the caller's; empty without secrets, wiped when dropped.
    pub stdin_prefix: Zeroizing<Vec<u8>>,
    /// What marks this command's report on stderr: for [`super::ReportReader::new`].
    pub nonce: String,
}

impl RemoteCommand {
    /// Builds the string for one command, with a fresh random nonce.
    ///
    /// # Errors
    ///
    /// [`RunnerError::Invalid`] as [`check_parts`] says; [`RunnerError::Io`] without a source of random bytes.
    pub fn new(parts: &CommandParts<'_>) -> Result<Self, RunnerError> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).map_err(|error| RunnerError::Io {
            action: "cannot get random bytes from the system".to_owned(),
            source: std::io::Error::other(error),
        })?;
        let nonce = random.iter().fold(String::new(), |mut nonce, byte| {
            // Writing to a string cannot fail.
            let _ = write!(nonce, "{byte:02x}");
            nonce
        });
        Self::with_nonce(parts, nonce)
    }

    /// As [`Self::new`] with a given nonce, which must be hex digits.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_nonce(parts: &CommandParts<'_>, nonce: String) -> Result<Self, RunnerError> {
        check_parts(parts)?;
        if let Some(key) = parts
            .env
            .keys()
            .chain(parts.secret_env.keys())
            .find(|key| key.starts_with("__pcb"))
        {
            return Err(RunnerError::Invalid(format!(
                "environment variable name {key:?} is reserved: names starting with `__pcb` belong to the runner"
            )));
        }
        Ok(Self {
            line: login_shell_line(&script(parts, &nonce)),
            stdin_prefix: secret_block(parts),
            nonce,
        })
    }
}

/// The wrapper. It holds no newline, `!` or backslash of its own, so that short commands stay readable in `ps`.
fn script(parts: &CommandParts<'_>, nonce: &str) -> String {
    let mut script = String::from("unset CDPATH; ");
    if let Some(cwd) = parts.cwd {
        let cwd = quote(&plain_directory(cwd));
        // The second `cd` says on stderr what is wrong with the directory.
        let _ = write!(
            script,
            "cd -- {cwd} >/dev/null 2>&1 || {{ echo \"pcb {nonce} no-directory\" >&2; cd -- {cwd}; exit {WRAPPER_FAILED}; }}; "
        );
    }
    script.push_str(&identity("$$"));
    // Field 5 of stat is the group. A group leader must not run `setsid`: that would fork, and the pid be another.
    script.push_str(
        "__pcb_w=; __pcb_k=group; if [ \"$__pcb_g\" != $$ ]; then \
         __pcb_w=$(command -v setsid 2>/dev/null) || { __pcb_w=; __pcb_k=leader; }; fi; ",
    );
    let _ = write!(script, "echo \"pcb {nonce} $$ $__pcb_k ${{__pcb_t:--}}\" >&2; ");
    if !parts.secret_env.is_empty() {
        // Only builtins, so that no secret stands in an argv; `read` takes nothing beyond its newline from a pipe
        // or a socket, unlike `head -c` of busybox, so the rest of stdin stays the command's.
        let _ = write!(
            script,
            "__pcb_l=$(echo; echo .); __pcb_l=${{__pcb_l%.}}; __pcb_e=; IFS= read -r __pcb_n || exit {WRAPPER_FAILED}; \
             while [ \"$__pcb_n\" -gt 0 ]; do IFS= read -r __pcb_r || exit {WRAPPER_FAILED}; \
             __pcb_e=$__pcb_e$__pcb_r$__pcb_l; __pcb_n=$((__pcb_n-1)); done; "
        );
    }
    // Exports come last: a PATH or IFS of the caller must not change how the lines above work.
    for (key, value) in parts.env {
        let _ = write!(script, "export {key}={}; ", quote(value));
    }
    if !parts.secret_env.is_empty() {
        script.push_str("eval \"$__pcb_e\"; unset __pcb_e __pcb_r; ");
    }
    let _ = write!(
        script,
        "exec ${{__pcb_w:+\"$__pcb_w\"}} {}",
        join(parts.command, parts.args)
    );
    script
}

/// Script text that sets `__pcb_g` to the process group and `__pcb_t` to the start time of process `pid`; both stay
/// empty where there is no such process.
///
/// Linux: fields 5 and 22 of `/proc/PID/stat`, counted after the program's name, which may hold anything. Elsewhere
/// `ps`.
pub(super) fn identity(pid: &str) -> String {
    format!(
        "__pcb_g=; __pcb_t=; __pcb_s=; {{ IFS= read -r __pcb_s </proc/{pid}/stat; }} 2>/dev/null; \
         if [ \"$__pcb_s\" ]; then set -- ${{__pcb_s##*\") \"}}; __pcb_g=$3; __pcb_t=${{20}}; else \
         set -- $(LC_ALL=C ps -o pgid= -o lstart= -p {pid} 2>/dev/null); \
         __pcb_g=$1; __pcb_t=${{2:+$2.$3.$4.$5.$6}}; fi; set --; "
    )
}

/// A relative directory that `cd` cannot take for `-` (the previous directory).
fn plain_directory(cwd: &str) -> String {
    if cwd.starts_with('/') || cwd.starts_with('.') {
        cwd.to_owned()
    } else {
        format!("./{cwd}")
    }
}

/// The secrets as shell text behind the number of its lines.
fn secret_block(parts: &CommandParts<'_>) -> Zeroizing<Vec<u8>> {
    if parts.secret_env.is_empty() {
        return Zeroizing::default();
    }
    // Sized ahead: a growing vector would leave unwiped copies behind.
    let size = parts
        .secret_env
        .iter()
        .map(|(key, value)| key.len() + value.expose().len() * 5 + 16)
        .sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(size));
    for (key, value) in parts.secret_env {
        let quoted = Zeroizing::new(quote_sized(value.expose()));
        text.push_str("export ");
        text.push_str(key);
        text.push('=');
        text.push_str(&quoted);
        text.push('\n');
    }
    let lines = text.bytes().filter(|byte| *byte == b'\n').count();
    let count = format!("{lines}\n");
    let mut block = Zeroizing::new(Vec::with_capacity(count.len() + text.len()));
    block.extend_from_slice(count.as_bytes());
    block.extend_from_slice(text.as_bytes());
    block
}

/// [`quote`] that never reallocates, for secrets.
fn quote_sized(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() * 5 + 2);
    quoted.push('\'');
    for character in word.chars() {
        if character == '\'' {
            quoted.push_str("'\"'\"'")
        } else {
            quoted.push(character)
        }
    }
    quoted.push('\'');
    quoted
}

/// `script` as one line that a login shell of any family hands to `sh` unchanged.
///
/// Quoted as [`quote`] does where every shell reads that alike. fish reads `\` inside single quotes, csh `!` and line
/// ends, and either may stumble over bytes that are not ASCII: scripts with those travel as the format of a `printf`
/// with octal escapes, which is plain text to all of them.
pub(super) fn login_shell_line(script: &str) -> String {
    let plain = script
        .bytes()
        .all(|byte| (byte == b' ' || byte.is_ascii_graphic()) && byte != b'\\' && byte != b'!');
    if plain {
        return format!("exec sh -c {}", quote(script));
    }
    let mut encoded = String::with_capacity(script.len() * 2);
    for byte in script.bytes() {
        let as_is = (byte == b' ' || byte.is_ascii_graphic()) && !b"'\"\\!$`%".contains(&byte);
        if as_is {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "\\{byte:03o}");
        }
    }
    format!("exec sh -c 'eval \"$(printf \"{encoded}\")\"'")
}
