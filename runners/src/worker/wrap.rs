//! The script around a command by which bytes survive a bridge that carries text.
//!
//! Here: [`Wrapped`], the script and what it reads ahead of the command's input. Not here: how its output is read again
//! (`output`), and the command's own wrapper (`shell::remote`), which this one runs.
//!
//! Each output is sent in lines `NONCE b BASE64` (or `NONCE h HEX` where there is no `base64`), one for each read, so
//! that they arrive while the command runs. When the command has ended, its exit code stands in its error output as
//! `pcb NONCE exit N`. Small scripts are an argument; larger ones are read from stdin, since an argument has a limit.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::shell::{CommandParts, RemoteCommand};
use crate::{RunnerError, SecretText};

/// The longest script that is passed as an argument.
const ARGUMENT_BYTES: usize = 16 * 1024;
/// Of one output, read at once.
const READ_BYTES: usize = 48 * 1024;

/// A command in the form in which the Worker runs it.
#[derive(Debug)]
pub(super) struct Wrapped {
    /// What `sh -c` is given.
    pub(super) script: String,
    /// Its standard input; `None` for none.
    pub(super) stdin: Option<SecretText>,
    /// Its standard input is base64, which the Worker decodes.
    pub(super) stdin_is_base64: bool,
    /// What marks its lines.
    pub(super) nonce: String,
}

impl Wrapped {
    /// Wraps one command.
    ///
    /// - `input`: all of the command's standard input.
    /// - `takes_base64`: the Worker decodes a standard input that is base64.
    pub(super) fn new(
        parts: &CommandParts<'_>,
        input: &[u8],
        takes_base64: bool,
    ) -> Result<Self, RunnerError> {
        let command = RemoteCommand::new(parts)?;
        let mut ahead = Zeroizing::new(command.stdin_prefix.to_vec());
        ahead.extend_from_slice(input);
        let text = std::str::from_utf8(&ahead)
            .ok()
            .filter(|text| !text.contains('\0'));
        let decoded_there = text.is_none() && !takes_base64;
        let script = wrapper(&command.line, &command.nonce, decoded_there);
        let long = script.len() > ARGUMENT_BYTES;
        let (script, program) = if long {
            (bootstrap(&script), Some(script))
        } else {
            (script, None)
        };
        let stdin_is_base64 = text.is_none() && takes_base64;
        let mut stdin =
            String::with_capacity(ahead.len() * 4 / 3 + program.as_ref().map_or(0, String::len) + 8);
        match (text, stdin_is_base64) {
            (Some(text), _) => {
                stdin.extend(program);
                stdin.push_str(text);
            }
            (None, true) => {
                let mut all = Zeroizing::new(program.unwrap_or_default().into_bytes());
                all.extend_from_slice(&ahead);
                STANDARD.encode_string(&all, &mut stdin);
            }
            (None, false) => {
                stdin.extend(program);
                STANDARD.encode_string(&ahead, &mut stdin);
                stdin.push('\n');
            }
        }
        Ok(Self {
            script,
            stdin: (!stdin.is_empty()).then(|| SecretText::new(stdin)),
            stdin_is_base64,
            nonce: command.nonce,
        })
    }
}

/// Runs `line` with both outputs encoded. Ends with a line end, since it may be read line by line.
fn wrapper(line: &str, nonce: &str, decode: bool) -> String {
    // `dd` returns what is there, where `base64` alone would wait for more.
    let mut script = format!(
        "if command -v base64 >/dev/null 2>&1; then __pcb_k=b; __pcb_enc() {{ base64 | tr -d '\\n'; }}; \
         else __pcb_k=h; __pcb_enc() {{ od -An -v -tx1 | tr -d ' \\n'; }}; fi\n\
         __pcb_out() {{ while __pcb_c=$(dd bs={READ_BYTES} count=1 2>/dev/null | __pcb_enc) && [ \"$__pcb_c\" ]; \
         do printf '%s\\n' \"{nonce} $__pcb_k $__pcb_c\"; done; }}\n"
    );
    // Descriptor 3 is the real stdout, 4 the real stderr, 5 and 6 the pipes of the command's own, which has none of
    // them. What the shell itself has to say of a command that a signal ended is nobody's output.
    let decoder = if decode { "base64 -d | " } else { "" };
    let _ = write!(
        script,
        "exec 3>&1 4>&2\n\
         {{ {{ {decoder}( exec 2>&6 3>&- 4>&- 5>&- 6>&-\n{line}\n); echo \"pcb {nonce} exit $?\" >&6; }} \
         6>&1 1>&5 2>/dev/null | __pcb_out >&4 5>&-; }} \
         5>&1 | __pcb_out >&3\n"
    );
    script
}

/// Reads a script from stdin, line by line, and becomes it; the rest of stdin stays.
fn bootstrap(script: &str) -> String {
    let lines = script.bytes().filter(|byte| *byte == b'\n').count();
    format!(
        "__pcb_s=; __pcb_n={lines}; while [ $__pcb_n -gt 0 ]; do IFS= read -r __pcb_l || exit 126; __pcb_s=\"$__pcb_s$__pcb_l\n\"; \
         __pcb_n=$((__pcb_n-1)); done; eval \"$__pcb_s\""
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::super::output::Decoder;
    use super::*;

    struct Ended {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        exit: Option<i32>,
        script: String,
    }

    /// Runs it as a Worker does whose sandbox is this machine.
    fn run(
        shell: &str,
        command: &[&str],
        secrets: &[(&str, &str)],
        input: &[u8],
        takes_base64: bool,
    ) -> Ended {
        let args: Vec<String> = command[1..].iter().map(|arg| (*arg).to_owned()).collect();
        let env = BTreeMap::new();
        let secret_env = secrets
            .iter()
            .map(|(key, value)| ((*key).to_owned(), SecretText::new(*value)))
            .collect();
        let parts = CommandParts {
            command: command[0],
            args: &args,
            cwd: Some("/"),
            env: &env,
            secret_env: &secret_env,
        };
        let wrapped = Wrapped::new(&parts, input, takes_base64).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let stdin = wrapped.stdin.as_ref().map(SecretText::expose).unwrap_or_default();
        if wrapped.stdin_is_base64 {
            file.write_all(&STANDARD.decode(stdin).unwrap()).unwrap();
        } else {
            file.write_all(stdin.as_bytes()).unwrap();
        }
        std::io::Seek::rewind(&mut file).unwrap();
        let output = Command::new(shell)
            .args(["-c", &wrapped.script])
            .stdin(Stdio::from(file))
            .output()
            .unwrap();
        let mut decoder = Decoder::new(&wrapped.nonce);
        let mut stdout = Vec::new();
        decoder.stdout(&output.stdout, &mut stdout).unwrap();
        let mut stderr = Vec::new();
        decoder.stderr(&output.stderr, &mut stderr).unwrap();
        decoder.finish(&mut stderr);
        Ended {
            stdout,
            stderr,
            exit: decoder.exit(),
            script: wrapped.script,
        }
    }

    fn shells() -> Vec<&'static str> {
        let there = |shell: &&&str| std::path::Path::new(shell).exists();
        ["/bin/dash", "/bin/bash", "/bin/sh"]
            .iter()
            .filter(there)
            .copied()
            .collect()
    }

    #[test]
    fn every_byte_comes_through_both_outputs_and_the_input() {
        let all: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        for shell in shells() {
            for takes_base64 in [true, false] {
                let ended = run(
                    shell,
                    &["sh", "-c", "tee /dev/stderr; exit 7"],
                    &[],
                    &all,
                    takes_base64,
                );

                assert!(ended.stdout == all, "{shell}");
                assert!(ended.stderr == all, "{shell}");
                assert_eq!(ended.exit, Some(7), "{shell}");
            }
        }
    }

    #[test]
    fn secrets_and_a_long_command_come_over_stdin_ahead_of_the_input() {
        let long = "x".repeat(ARGUMENT_BYTES);
        for shell in shells() {
            for input in [&b"text"[..], b"bin\0ary\xff"] {
                for takes_base64 in [true, false] {
                    let command = [
                        "sh",
                        "-c",
                        "printf %s \"$KEY\" >&2; cat; printf %s \"$1\" | wc -c",
                        "sh",
                        &long,
                    ];
                    let ended = run(shell, &command, &[("KEY", "hush\nhush")], input, takes_base64);

                    assert_eq!(ended.stderr, b"hush\nhush");
                    assert_eq!(ended.stdout, [input, b"16384\n"].concat());
                    assert!(ended.script.len() < 1000 && !ended.script.contains("hush"));
                }
            }
        }
    }

    #[test]
    fn a_command_that_reads_nothing_and_one_that_says_nothing_end_well() {
        for shell in shells() {
            let big = vec![0_u8; 1024 * 1024];
            let ended = run(shell, &["true"], &[], &big, false);

            assert_eq!(
                (ended.stdout.len(), ended.stderr.len(), ended.exit),
                (0, 0, Some(0)),
                "{shell}"
            );
            assert_eq!(
                run(shell, &["no-such-program-here"], &[], b"", true).exit,
                Some(127)
            );
            let killed = run(shell, &["sh", "-c", "kill -TERM $$"], &[], b"", true);
            assert_eq!((killed.exit, killed.stderr.len()), (Some(143), 0), "{shell}");
        }
    }
}
