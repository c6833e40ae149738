//! The shell texts that run in a sandbox: one around a command, one that reads its outputs, one for a duplex.
//!
//! Here: their making and the lines that they print for us. Not here: who sends them ([`super::runner`],
//! [`super::duplex`]).
//!
//! The daemon feeds them to whatever shell it found (zsh, bash, sh), so they are plain POSIX, in braces, so that they
//! are read whole before anything runs, and nothing in them may read the shell's own stdin.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use crate::shell::kill::KILL_GRACE;
use crate::shell::{CommandParts, Scope, StartedProcess, join, kill_line, quote};

/// What [`probe`] prints ahead of the shell's name.
pub(super) const PROBED: &str = "pcb shell ";
/// Bytes of one output that one call brings.
pub(super) const PAGE_BYTES: u64 = 1024 * 1024;
/// Exit code of the wrapper where the working directory cannot be entered.
const NO_DIRECTORY: &str = "no-directory";

/// Makes the folders of a lease and says which shell there is.
pub(super) fn probe(workspace: &str, runtime: &str) -> String {
    let (workspace, runtime) = (quote(workspace), quote(runtime));
    format!(
        "{{ mkdir -p -- {workspace} && mkdir -p -- {runtime} && chmod 700 {runtime} && \
         if command -v bash >/dev/null 2>&1; then echo '{PROBED}bash'; else echo '{PROBED}sh'; fi; exit 0; }}\n"
    )
}

/// One command's place in the sandbox and the mark of its lines.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Its own folder.
    pub(super) folder: String,
    /// Random, so that no output of a command can pass for ours.
    nonce: String,
    /// Its stdin is the file `in`, not nothing.
    pub(super) has_stdin: bool,
}

/// What the wrapper said at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Exited(i32),
    NoDirectory,
}

impl Job {
    pub(super) fn new(runtime: &str, nonce: String) -> Self {
        Self {
            folder: format!("{runtime}/x-{nonce}"),
            nonce,
            has_stdin: false,
        }
    }

    pub(super) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// What our lines start with.
    pub(super) fn mark(&self) -> String {
        format!("pcb {} ", self.nonce)
    }

    /// The wrapper: files for both outputs, the pid for whoever has to end it, and the exit code, printed and kept.
    ///
    /// - `default_cwd`: where relative directories start.
    pub(super) fn run(&self, parts: &CommandParts<'_>, default_cwd: &str) -> String {
        let (folder, mark) = (quote(&self.folder), self.mark());
        let mut script = format!(
            "{{ __pcb_u=$(umask); umask 077; __pcb_d={folder}; unset CDPATH; \
             mkdir -p -- \"$__pcb_d\" && chmod 700 \"$__pcb_d\" || exit 125; \
             : >\"$__pcb_d/out\"; : >\"$__pcb_d/err\"; {{ echo $$; cat /proc/$$/stat; }} >\"$__pcb_d/pid\" 2>/dev/null; "
        );
        if self.has_stdin {
            script.push_str("chmod 600 \"$__pcb_d/in\"; ");
        }
        script.push_str("( umask $__pcb_u; ");
        for cwd in [Some(default_cwd), parts.cwd].into_iter().flatten() {
            let cwd = quote(&plain_directory(cwd));
            let _ = write!(
                script,
                "cd -- {cwd} || {{ : >\"$__pcb_d/{NO_DIRECTORY}\"; exit 126; }}; "
            );
        }
        if !parts.secret_env.is_empty() {
            script.push_str(
                "chmod 600 \"$__pcb_d/env\" && . \"$__pcb_d/env\" && rm -f \"$__pcb_d/env\" || exit 126; ",
            );
        }
        // Last: a PATH of the caller's must not change how the lines above work.
        for (key, value) in parts.env {
            let _ = write!(script, "export {key}={}; ", quote(value));
        }
        let input = if self.has_stdin {
            "\"$__pcb_d/in\""
        } else {
            "/dev/null"
        };
        let _ = write!(
            script,
            "exec {} ) <{input} >\"$__pcb_d/out\" 2>\"$__pcb_d/err\"; __pcb_x=$?; umask 077; \
             if [ -f \"$__pcb_d/{NO_DIRECTORY}\" ]; then __pcb_x={NO_DIRECTORY}; fi; \
             echo $__pcb_x >\"$__pcb_d/exit.new\" && mv -f \"$__pcb_d/exit.new\" \"$__pcb_d/exit\"; \
             echo '{mark}'\"$__pcb_x\"; exit 0; }}",
            join(parts.command, parts.args)
        );
        script.push('\n');
        script
    }

    /// Reads on in both outputs, waiting up to about a second for something to read.
    ///
    /// - `from`: how much of each was read before.
    /// - `want`: no more of each is wanted than this.
    /// - `last`: the command has ended, whatever the files say.
    ///
    /// Once the command has ended and all that is wanted is in the answer, the folder is removed.
    pub(super) fn page(&self, from: [u64; 2], want: [u64; 2], last: bool) -> String {
        let (folder, mark) = (quote(&self.folder), self.mark());
        let [out, err] = from;
        let reach = |from: u64, want: u64| {
            let end = from.saturating_add(PAGE_BYTES);
            if end >= want { i64::MAX.unsigned_abs() } else { end }
        };
        let [want_out, want_err] = want;
        let (reach_out, reach_err) = (reach(out, want_out), reach(err, want_err));
        let (page_out, page_err) = (
            PAGE_BYTES.min(want_out.saturating_sub(out)),
            PAGE_BYTES.min(want_err.saturating_sub(err)),
        );
        let (next_out, next_err) = (out + 1, err + 1);
        let tries = if last { 0 } else { 10 };
        // A command with input has its folder before it has begun: without its pid it is not there yet, and not dead.
        let begun = if last { "" } else { " && [ -s pid ]" };
        let ended = if last { "true" } else { "[ \"$__pcb_x\" != - ]" };
        format!(
            "{{ cd -- {folder} 2>/dev/null{begun} || {{ echo '{mark}gone 0 0 0'; exit 0; }}; __pcb_n=0; \
             __pcb_s() {{ __pcb_o=$(wc -c <out) && __pcb_e=$(wc -c <err); }} 2>/dev/null; __pcb_o=0; __pcb_e=0; \
             while [ $__pcb_n -lt {tries} ] && [ ! -f exit ] && __pcb_s && [ $__pcb_o -le {out} ] && [ $__pcb_e -le {err} ]; \
             do sleep 0.1 || sleep 1; __pcb_n=$((__pcb_n+1)); done 2>/dev/null; \
             __pcb_x=dead; IFS= read -r __pcb_p <pid && kill -s 0 -- \"-$__pcb_p\" && __pcb_x=-; \
             if [ -f exit ]; then __pcb_x=$(cat exit); fi; __pcb_s; __pcb_t=0; \
             if {ended} && [ $__pcb_o -le {reach_out} ] && [ $__pcb_e -le {reach_err} ]; then __pcb_t=1; fi; \
             echo '{mark}'\"$__pcb_x\" $__pcb_o $__pcb_e $__pcb_t; \
             tail -c +{next_out} out | head -c {page_out} | base64 | tr -d '\\n'; echo; \
             tail -c +{next_err} err | head -c {page_err} | base64 | tr -d '\\n'; echo; \
             if [ $__pcb_t = 1 ]; then cd / && rm -rf -- {folder}; fi; exit 0; }} 2>/dev/null </dev/null\n"
        )
    }

    /// Prints what the wrapper wrote of its process.
    pub(super) fn pid(&self) -> String {
        format!(
            "{{ echo '{}'; cat {} 2>/dev/null; exit 0; }}\n",
            self.mark(),
            quote(&self.file("pid"))
        )
    }

    /// Reads the last line of a wrapper.
    pub(super) fn ended(word: &str) -> Option<Ended> {
        match word.trim() {
            NO_DIRECTORY => Some(Ended::NoDirectory),
            code => code.parse().ok().map(Ended::Exited),
        }
    }
}

/// The script that ends a command's group, by what [`Job::pid`] printed.
pub(super) fn kill(mut lines: std::str::Lines<'_>) -> Option<String> {
    let pid: u32 = lines.next()?.trim().parse().ok()?;
    // Field 22 of stat, counted behind the program's name, which may hold anything.
    let start = lines
        .next()
        .and_then(|stat| {
            stat.rsplit_once(')')?
                .1
                .split_ascii_whitespace()
                .nth(19)
                .map(str::to_owned)
        })
        .filter(|start| start.bytes().all(|byte| byte.is_ascii_digit()));
    let process = StartedProcess {
        pid,
        scope: Scope::Group,
        start,
    };
    Some(format!("{} </dev/null\n", kill_line(&process, KILL_GRACE)))
}

/// The secrets as shell text for the file `env`.
pub(super) fn secrets(parts: &CommandParts<'_>) -> Zeroizing<String> {
    // Sized ahead: a growing text would leave unwiped copies behind.
    let size = parts
        .secret_env
        .iter()
        .map(|(key, value)| key.len() + value.expose().len() * 5 + 16)
        .sum();
    let mut text = Zeroizing::new(String::with_capacity(size));
    for (key, value) in parts.secret_env {
        let quoted = Zeroizing::new(quote(value.expose()));
        for part in ["export ", key.as_str(), "=", quoted.as_str(), "\n"] {
            text.push_str(part);
        }
    }
    text
}

/// What a duplex's launcher prints behind its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Launched {
    /// From here on the bytes are the command's.
    Ready,
    NoDirectory,
    NoRawMode,
}

impl Launched {
    pub(super) const fn read(byte: u8) -> Option<Self> {
        match byte {
            b'+' => Some(Self::Ready),
            b'd' => Some(Self::NoDirectory),
            b't' => Some(Self::NoRawMode),
            _ => None,
        }
    }
}

/// The file that a terminal's shell becomes: raw mode, the mark, then the command with its stderr in a file that grows
/// to 64 KiB at most.
///
/// It is a file, so that the shell's echo of the typed line cannot hold the mark, nor be too long for a terminal.
pub(super) fn launcher(parts: &CommandParts<'_>, default_cwd: &str, folder: &str, mark: &str) -> String {
    let mut script = format!("unset CDPATH; __pcb_d={}; ", quote(folder));
    for cwd in [Some(default_cwd), parts.cwd].into_iter().flatten() {
        let cwd = quote(&plain_directory(cwd));
        let _ = write!(
            script,
            "cd -- {cwd} 2>/dev/null || {{ printf '%s' {mark}d; exit 126; }}; "
        );
    }
    let _ = write!(
        script,
        "stty raw -echo 2>/dev/null || {{ printf '%s' {mark}t; exit 126; }}; \
         {{ tty; echo $$; }} >\"$__pcb_d/tty\" 2>/dev/null; __pcb_e=/dev/null; \
         if mkfifo -m 600 \"$__pcb_d/pipe\" 2>/dev/null; then __pcb_e=$__pcb_d/pipe; \
         ( trap '' HUP; head -c 65536 >\"$__pcb_d/stderr\"; exec cat >/dev/null ) <\"$__pcb_d/pipe\" >/dev/null 2>&1 & fi; \
         printf '%s' {mark}+; exec {} 2>\"$__pcb_e\"",
        join(parts.command, parts.args)
    );
    script.push('\n');
    script
}

/// Makes a raw terminal take one control character, the end of input, and nothing else.
///
/// A terminal knows no half-close. Bytes that lie unread in it are handed over as they are by the change of mode. A
/// read that waits already keeps to the old mode, in which no character is an end: stopping and continuing the group
/// makes the kernel begin it anew.
pub(super) fn end_of_input(folder: &str) -> String {
    let signs = [
        "intr", "quit", "erase", "kill", "eol", "eol2", "susp", "start", "stop", "werase", "lnext", "rprnt",
    ];
    let undefined: String = signs.iter().map(|sign| format!(" {sign} undef")).collect();
    format!(
        "{{ {{ IFS= read -r __pcb_t && IFS= read -r __pcb_p; }} <{} && \
         stty -F \"$__pcb_t\"{undefined} eof '^D' icanon -echo && kill -s STOP -- \"-$__pcb_p\"; \
         {{ sleep 0.05 || sleep 1; }} 2>/dev/null; kill -s CONT -- \"-$__pcb_p\" && echo '{PROBED}end'; exit 0; }} </dev/null\n",
        quote(&format!("{folder}/tty"))
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
