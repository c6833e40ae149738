//! What a target is like: its shell, tools, architecture, clock and folders.
//!
//! Here: two scripts of one line, and what is made of what they say. They leave nothing behind. Not here: tunnels and
//! callbacks (`calling.rs`).

use std::time::{Duration, SystemTime};

use runners::shell::quote;
use runners::{CommandManagedRuntimeRunner, Execution, ExecutionResult, RunnerError, Shell};
use tunnel::launch::PLATFORM;

use super::report::Found;
use crate::app::GatewayChoice;

/// What our lines begin with: a login shell may print others.
pub(super) const MARK: &str = "pcb-probe ";

/// What the scripts of the tunnels call, and cannot do without.
const NEEDED: [&str; 14] = [
    "sh", "mkdir", "cat", "mv", "rm", "chmod", "base64", "head", "wc", "sleep", "kill", "id", "uname", "find",
];
/// What makes something better, and what.
const USEFUL: [(&str, &str); 2] = [
    ("sha256sum", "a gateway's upload is checked"),
    ("setsid", "a command is ended with everything it started"),
];
/// What agents and single providers call.
const OTHER: [&str; 3] = ["stty", "curl", "node"];

/// Kept of a target's words.
const EXCERPT_CHARACTERS: usize = 300;

/// A short command of ours; the target ends it by itself when the time is up.
pub(super) fn script(shell: Shell, text: String, limit: Duration) -> Execution {
    let mut execution = Execution::new(shell.program(), shell.script_args(text));
    execution.timeout = Some(limit);
    execution.keep_output = 64 * 1024;
    execution
}

/// Our lines of an output, without their mark.
pub(super) fn marked(output: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(output)
        .lines()
        .filter_map(|line| line.strip_prefix(MARK))
        .map(excerpt)
        .collect()
}

/// The beginning of a target's text.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARACTERS).collect()
}

/// How a command ended that should have ended otherwise.
pub(super) fn ended(result: &ExecutionResult) -> String {
    let how = match (result.timed_out, result.exit_code, &result.signal) {
        (true, _, _) => "was ended because it took too long".to_owned(),
        (false, Some(code), _) => format!("ended with exit code {code}"),
        (false, None, Some(signal)) => format!("was ended by signal {signal}"),
        (false, None, None) => "ended, and the target did not say how".to_owned(),
    };
    let said = String::from_utf8_lossy(&result.stderr);
    match said.trim() {
        "" => how,
        said => format!("{how} and said: {}", excerpt(said)),
    }
}

/// Runs the shortest of commands.
pub(super) async fn command(
    runner: &dyn CommandManagedRuntimeRunner,
    shell: Shell,
    limit: Duration,
) -> Result<Found, RunnerError> {
    let text = format!("echo \"{MARK}$((6*7))\"");
    let result = runner.execute(script(shell, text, limit)).await?;
    if marked(&result.stdout) == ["42"] && result.success() {
        return Ok(Found::ok(format!("`{}` runs", shell.program())));
    }
    Ok(Found::fail(
        "no_shell",
        format!("a script of `{}` {}", shell.program(), ended(&result)),
        "let the account have a POSIX shell, and its start-up files neither fail nor replace it",
    ))
}

/// What the target said of itself.
#[derive(Debug, Default)]
pub(super) struct Facts {
    shell: String,
    system: String,
    has: Vec<String>,
    folders: Vec<Folder>,
}

#[derive(Debug)]
struct Folder {
    /// `cache`, `temporary` or `working`.
    role: String,
    state: String,
    path: String,
}

/// Asks for the facts.
///
/// - `directory`: where commands of sessions run, if not where the target puts them.
pub(super) async fn facts(
    runner: &dyn CommandManagedRuntimeRunner,
    shell: Shell,
    directory: Option<&str>,
    limit: Duration,
) -> Result<Result<Facts, Found>, RunnerError> {
    let nonce = uuid::Uuid::new_v4().simple();
    let text = facts_script(directory, &nonce.to_string());
    let result = runner.execute(script(shell, text, limit)).await?;
    let lines = marked(&result.stdout);
    if lines.last().map(String::as_str) != Some("end") {
        return Ok(Err(Found::fail(
            "script_failed",
            format!("the script that looks around {}", ended(&result)),
            "see what was found; the target's shell must be a POSIX shell",
        )));
    }
    Ok(Ok(Facts::read(&lines)))
}

/// One line without `!`, so that a login shell of any family hands it on as it stands.
///
/// A folder is tried by a folder of ours in it or in the nearest one above it, with a program inside; both are removed.
/// The gateway's candidates are those of its installation.
fn facts_script(directory: Option<&str>, nonce: &str) -> String {
    let tools: Vec<_> = NEEDED
        .iter()
        .chain(USEFUL.iter().map(|(tool, _)| tool))
        .chain(&OTHER)
        .copied()
        .collect();
    let working = directory.map_or_else(|| "\"$PWD\"".to_owned(), quote);
    format!(
        "unset CDPATH; umask 077; say() {{ printf \"%s\\n\" \"{MARK}$*\"; }}; \
         say shell \"${{BASH_VERSION:+bash }}${{BASH_VERSION:-POSIX}}\"; say system \"$(uname -sm 2>/dev/null)\"; \
         for t in {}; do if command -v $t >/dev/null 2>&1; then say has $t; fi; done; \
         try() {{ n=$2; until [ -e \"$n\" ]; do case $n in */*) n=${{n%/*}};; *) n=.;; esac; [ \"$n\" ] || n=/; done; \
         d=$n/.paperclip-bridge-probe-{nonce}; if [ -d \"$n\" ] && mkdir \"$d\" 2>/dev/null; then \
         x=noexec; if printf \"#\\041/bin/sh\\nexit 0\\n\" >\"$d/x\" && chmod 700 \"$d/x\" && \"$d/x\" </dev/null; \
         then x=good; fi 2>/dev/null; rm -rf \"$d\"; else x=closed; fi; say folder $1 $x \"$2\"; }}; \
         case \"${{XDG_CACHE_HOME:-}}\" in /*) try cache \"$XDG_CACHE_HOME/paperclip-bridge\";; \
         *) case \"${{HOME:-}}\" in /*) try cache \"$HOME/.cache/paperclip-bridge\";; esac;; esac; \
         d2=${{TMPDIR:-/tmp}}; case \"$d2\" in /*) ;; *) d2=/tmp;; esac; try temporary \"$d2/paperclip-bridge-$(id -u)\"; \
         w={working}; if [ -d \"$w\" ]; then try working \"$w\"; else say folder working absent \"$w\"; fi; say end",
        tools.join(" ")
    )
}

impl Facts {
    fn read(lines: &[String]) -> Self {
        let mut facts = Self::default();
        for line in lines {
            match line.split_once(' ') {
                Some(("shell", shell)) => shell.clone_into(&mut facts.shell),
                Some(("system", system)) => system.clone_into(&mut facts.system),
                Some(("has", tool)) => facts.has.push(tool.to_owned()),
                Some(("folder", rest)) => {
                    let mut words = rest.splitn(3, ' ').map(str::to_owned);
                    if let (Some(role), Some(state), Some(path)) = (words.next(), words.next(), words.next())
                    {
                        facts.folders.push(Folder { role, state, path });
                    }
                }
                Some(_) | None => {}
            }
        }
        facts
    }

    fn has(&self, tool: &str) -> bool {
        self.has.iter().any(|one| one == tool)
    }

    /// The shell of our scripts.
    pub(super) fn shell(&self) -> Found {
        Found::ok(format!("{} shell", self.shell))
    }

    /// Which of the tools are there.
    pub(super) fn tools(&self) -> Found {
        let lacks: Vec<_> = NEEDED.into_iter().filter(|tool| !self.has(tool)).collect();
        let others: Vec<_> = OTHER
            .into_iter()
            .map(|tool| format!("{} {tool}", if self.has(tool) { "has" } else { "no" }))
            .collect();
        if !lacks.is_empty() {
            return Found::warn(
                "tools_missing",
                format!("missing: {}; {}", lacks.join(", "), others.join(", ")),
                "install them there: http2_v1 and queue_v1 need them",
            );
        }
        let weaker: Vec<_> = USEFUL.into_iter().filter(|(tool, _)| !self.has(tool)).collect();
        if weaker.is_empty() {
            return Found::ok(format!("all that tunnels need; {}", others.join(", ")));
        }
        let names: Vec<_> = weaker.iter().map(|(tool, _)| *tool).collect();
        let uses: Vec<_> = weaker
            .iter()
            .map(|(tool, what)| format!("with {tool} {what}"))
            .collect();
        Found::warn(
            "tools_missing",
            format!("missing: {}; {}", names.join(", "), others.join(", ")),
            format!("install them if you can: {}", uses.join(", ")),
        )
    }

    /// Whether the gateway runs there.
    pub(super) fn architecture(&self, gateway: &GatewayChoice) -> Found {
        let system = &self.system;
        match gateway {
            GatewayChoice::Script(_) if self.has("node") => {
                Found::ok(format!("{system}, with node for the gateway"))
            }
            GatewayChoice::Script(_) => Found::warn(
                "no_node",
                format!("{system}, and the gateway is a script for node, which is not there"),
                "install Node there, or leave --gateway away",
            ),
            GatewayChoice::Builtin | GatewayChoice::Binary(_) if system == PLATFORM => {
                Found::ok(format!("{system}, as the gateway is built for"))
            }
            GatewayChoice::Builtin | GatewayChoice::Binary(_) => Found::warn(
                "no_gateway_for_platform",
                format!("{system}, and the gateway is for {PLATFORM}"),
                "http2_v1 and queue_v1 need --gateway node:PATH there, with Node installed",
            ),
        }
    }

    /// Where files can be put.
    pub(super) fn folders(&self) -> Found {
        let told: Vec<_> = self
            .folders
            .iter()
            .map(|folder| {
                let state = match folder.state.as_str() {
                    "good" => "writable",
                    "noexec" => "writable, but programs do not run there",
                    "absent" => "not there",
                    _ => "not writable",
                };
                format!("{} folder {} {state}", folder.role, folder.path)
            })
            .collect();
        let found = told.join("; ");
        let good = |role: &str| {
            self.folders
                .iter()
                .any(|folder| folder.role == role && folder.state == "good")
        };
        let working = self
            .folders
            .iter()
            .find(|folder| folder.role == "working")
            .map(|folder| folder.state.as_str());
        if !good("cache") && !good("temporary") {
            return Found::warn(
                "no_folder",
                found,
                "set XDG_CACHE_HOME or TMPDIR there to a folder whose programs may run: http2_v1 and queue_v1 need one",
            );
        }
        match working {
            Some("absent") => Found::warn(
                "no_working_folder",
                found,
                "make the working folder, or name another in the target",
            ),
            Some("closed") => Found::warn(
                "working_folder_closed",
                found,
                "let the account write to the working folder, or name another in the target",
            ),
            Some(_) | None => Found::ok(found),
        }
    }
}

/// Agents that check certificates or signatures bear no more.
const SKEW_LIMIT: Duration = Duration::from_secs(30);

/// How far the target's clock is from ours, half the round trip taken into account.
pub(super) async fn clock(
    runner: &dyn CommandManagedRuntimeRunner,
    shell: Shell,
    limit: Duration,
) -> Result<Found, RunnerError> {
    let text = format!("printf \"%s\\n\" \"{MARK}$(date +%s.%N)\"");
    let asked = SystemTime::now();
    let result = runner.execute(script(shell, text, limit)).await?;
    let answered = SystemTime::now();
    let lines = marked(&result.stdout);
    let Some((there, precision)) = lines.first().and_then(|line| seconds(line)) else {
        return Ok(Found::warn(
            "no_clock",
            format!("`date +%s` {}", ended(&result)),
            "install `date` there; nothing else is known of its clock",
        ));
    };
    let round_trip = answered.duration_since(asked).unwrap_or_default();
    let here = asked
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_add(round_trip / 2);
    // A clock that tells whole seconds is half a second behind on average.
    let there = there.saturating_add(precision / 2);
    let margin = (round_trip + precision) / 2;
    Ok(skew(here, there, margin))
}

fn skew(here: Duration, there: Duration, margin: Duration) -> Found {
    let apart = here.abs_diff(there);
    let direction = if there > here { "ahead" } else { "behind" };
    let found = format!(
        "{:.1} s {direction} of ours, give or take {:.1} s",
        apart.as_secs_f64(),
        margin.as_secs_f64()
    );
    if apart > SKEW_LIMIT.saturating_add(margin) {
        return Found::warn(
            "clock_skew",
            found,
            "set the clock there or here: certificates and signed requests fail",
        );
    }
    Found::ok(found)
}

/// Seconds since 1970 and how exact they are; some `date` know no fractions and print `%N` as it is.
fn seconds(text: &str) -> Option<(Duration, Duration)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = Duration::from_secs(whole.trim().parse().ok()?);
    let nanoseconds = Some(fraction)
        .filter(|fraction| fraction.len() == 9)
        .and_then(|fraction| fraction.parse::<u32>().ok());
    Some(match nanoseconds {
        Some(nanoseconds) => (
            whole + Duration::from_nanos(u64::from(nanoseconds)),
            Duration::ZERO,
        ),
        None => (whole, Duration::from_secs(1)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    #[test]
    fn a_clock_is_judged_beyond_what_the_round_trip_hides() {
        let at = Duration::from_secs;

        assert_eq!(skew(at(1000), at(1010), at(1)).outcome, Outcome::Ok);
        assert_eq!(skew(at(1000), at(1035), at(10)).outcome, Outcome::Ok);
        assert_eq!(skew(at(1000), at(1035), at(1)).reason, Some("clock_skew"));
        assert!(skew(at(1000), at(900), at(1)).found.contains("100.0 s behind"));
    }

    #[test]
    fn a_date_without_fractions_is_less_exact() {
        let second = Duration::from_secs(1);

        assert_eq!(
            seconds("12.500000000"),
            Some((Duration::from_millis(12_500), Duration::ZERO))
        );
        assert_eq!(seconds("12.%N"), Some((Duration::from_secs(12), second)));
        assert_eq!(seconds("12"), Some((Duration::from_secs(12), second)));
        assert_eq!(seconds("date: no"), None);
    }

    #[test]
    fn the_script_finds_what_is_there_and_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let text = facts_script(None, "nonce");
        assert!(!text.contains('!') && !text.contains('\n'), "{text}");

        let output = std::process::Command::new("sh")
            .args(["-c", &text])
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", home.path())
            .env("TMPDIR", home.path().join("not/yet"))
            .current_dir(home.path())
            .output()
            .unwrap();

        let lines = marked(&output.stdout);
        assert_eq!(
            lines.last().unwrap(),
            "end",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let facts = Facts::read(&lines);
        assert!(facts.has("sh") && facts.has("kill") && !facts.system.is_empty());
        assert_eq!(facts.folders.len(), 3, "{facts:?}");
        assert!(
            facts.folders.iter().all(|folder| folder.state == "good"),
            "{facts:?}"
        );
        assert_eq!(facts.folders().outcome, Outcome::Ok);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_missing_is_named_with_what_it_is_for() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let facts = Facts::read(&lines(
            "shell POSIX\nsystem Linux aarch64\nhas sh\nfolder cache closed /h/a b\nfolder temporary noexec /t\n\
             folder working absent /w",
        ));

        let tools = facts.tools();
        assert_eq!(tools.outcome, Outcome::Warn);
        assert!(
            tools.found.contains("base64") && tools.found.contains("no curl"),
            "{tools:?}"
        );
        assert_eq!(
            facts.architecture(&GatewayChoice::Builtin).reason,
            Some("no_gateway_for_platform")
        );
        let folders = facts.folders();
        assert_eq!(folders.reason, Some("no_folder"));
        assert!(folders.found.contains("/h/a b not writable"), "{folders:?}");
    }
}
