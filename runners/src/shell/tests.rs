//! What real shells do with our text.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::SecretText;

/// Shells that may be a login's or the target's `sh`; those that are installed are tried.
fn login_shells() -> Vec<&'static str> {
    let all = ["sh", "bash", "dash", "zsh", "fish", "tcsh", "csh"];
    all.into_iter()
        .filter(|shell| {
            ["/bin", "/usr/bin"]
                .iter()
                .any(|directory| Path::new(directory).join(shell).exists())
        })
        .collect()
}

#[derive(Default)]
struct Case {
    command: String,
    args: Vec<String>,
    cwd: Option<String>,
    env: BTreeMap<String, String>,
    secret_env: BTreeMap<String, SecretText>,
}

impl Case {
    fn new(command: &str, args: &[&str]) -> Self {
        Self {
            command: command.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Self::default()
        }
    }

    fn parts(&self) -> CommandParts<'_> {
        CommandParts {
            command: &self.command,
            args: &self.args,
            cwd: self.cwd.as_deref(),
            env: &self.env,
            secret_env: &self.secret_env,
        }
    }

    fn built(&self) -> RemoteCommand {
        RemoteCommand::new(&self.parts()).expect("acceptable")
    }

    fn refused(&self) -> String {
        RemoteCommand::new(&self.parts())
            .expect_err("not acceptable")
            .to_string()
    }
}

struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    report: Option<Report>,
}

/// Runs a line as sshd does: the login shell with `-c`, its own process group, stdin from us.
fn run_in(shell: &str, remote: &RemoteCommand, stdin: &[u8]) -> Ended {
    let mut child = Command::new(shell)
        .args(["-c", &remote.line])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shell starts");
    let mut input = child.stdin.take().expect("stdin");
    let bytes = [&remote.stdin_prefix[..], stdin].concat();
    let writer = std::thread::spawn(move || {
        // A command that reads none of it is fine.
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("writer");
    let mut reader = ReportReader::new(&remote.nonce);
    let mut stderr = reader.feed(Bytes::from(output.stderr)).to_vec();
    stderr.extend_from_slice(&reader.finish());
    Ended {
        code: output.status.code(),
        stdout: output.stdout,
        stderr,
        report: reader.report().cloned(),
    }
}

fn started(ended: &Ended) -> &StartedProcess {
    match &ended.report {
        Some(Report::Started(process)) => process,
        other => panic!(
            "no start reported: {other:?}, stderr {}",
            String::from_utf8_lossy(&ended.stderr)
        ),
    }
}

#[test]
fn only_bash_and_sh_are_shells() {
    assert_eq!(Shell::parse(None).expect("default"), Shell::Sh);
    assert_eq!(Shell::parse(Some("sh")).expect("sh"), Shell::Sh);
    assert_eq!(Shell::parse(Some("bash")).expect("bash"), Shell::Bash);
    for bad in ["", "zsh", "Bash", "/bin/sh", "sh "] {
        let text = Shell::parse(Some(bad)).expect_err("refused").to_string();
        assert!(text.contains(&format!("{bad:?}")), "{text}");
    }
    assert_eq!((Shell::Bash.program(), Shell::Sh.program()), ("bash", "sh"));
}

#[test]
fn quoting_has_the_published_form() {
    assert_eq!(quote("it's"), "'it'\"'\"'s'");
    assert_eq!(join("a b", &["$x".to_owned(), String::new()]), "'a b' '$x' ''");
}

#[test]
fn names_that_are_no_variables_are_refused_by_name() {
    for good in ["A", "_", "a1_B"] {
        assert!(check_env_key(good).is_ok(), "{good}");
    }
    for bad in ["", "1A", "A-B", "A B", "A=B", "É", "A\n", "$(id)"] {
        let text = check_env_key(bad).expect_err("refused").to_string();
        assert!(text.contains(&format!("{bad:?}")), "{text}");
    }
}

#[test]
fn commands_that_no_shell_could_start_are_refused() {
    assert!(Case::new("", &[]).refused().contains("empty"));
    assert!(Case::new("-c", &[]).refused().contains("`./-c`"));
    assert!(Case::new("a", &["b\0"]).refused().contains("NUL"));
    let mut case = Case::new("a", &[]);
    case.cwd = Some("/x\0".to_owned());
    assert!(case.refused().contains("NUL"));
    let mut case = Case::new("a", &[]);
    case.secret_env.insert("S".to_owned(), SecretText::new("hush\0"));
    assert!(!case.refused().contains("hush"));
    let mut case = Case::new("a", &[]);
    case.secret_env.insert("S".to_owned(), SecretText::new("1"));
    case.env.insert("S".to_owned(), "2".to_owned());
    assert!(case.refused().contains("both"));
    let mut case = Case::new("a", &[]);
    case.env.insert("__pcb_t".to_owned(), "2".to_owned());
    assert!(case.refused().contains("__pcb_t"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_words_come_out_of_a_real_shell_as_they_went_in(words in proptest::collection::vec("(\\PC|[\n\t\r\x01'\"\\\\!$`%~#*])*", 1..12)) {
        let line = format!("printf '%s\\0' {}", words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "));

        let output = Command::new("sh").args(["-c", &line]).output().expect("sh runs");

        let wanted: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        prop_assert_eq!(output.stdout, wanted);
    }

    #[test]
    fn any_words_and_secrets_survive_the_whole_remote_line(
        words in proptest::collection::vec("(\\PC|[\n\t\r\x01'\"\\\\!$`%~#*])*", 0..6),
        secret in "(\\PC|[\n\t\r\x01'\"\\\\!$`%~#*]){0,40}",
        plain in "(\\PC|[\n\t\r'\"\\\\!$`%]){0,20}",
        rest in proptest::collection::vec(any::<u8>(), 0..200),
        shell in proptest::sample::select(login_shells()),
    ) {
        let script = r#"printf '%s\0' "$@" "$SECRET" "$PLAIN"; cat"#;
        let mut case = Case::new("sh", &["-c", script, "sh"]);
        case.args.extend(words.iter().cloned());
        case.secret_env.insert("SECRET".to_owned(), SecretText::new(&secret));
        case.env.insert("PLAIN".to_owned(), plain.clone());

        let ended = run_in(shell, &case.built(), &rest);

        let mut wanted: Vec<u8> =
            words.iter().chain([&secret, &plain]).flat_map(|word| word.bytes().chain([0])).collect();
        wanted.extend_from_slice(&rest);
        prop_assert_eq!(ended.stdout, wanted);
        prop_assert_eq!(ended.code, Some(0));
        prop_assert!(ended.stderr.is_empty());
    }

    #[test]
    fn posix_fish_and_csh_read_the_line_alike(word in "(\\PC|[\n\t\r\x01'\"\\\\!$`%]){0,30}") {
        let line = Case::new("echo", &[&word]).built().line;

        prop_assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
        prop_assert!(!line.contains('!'), "csh would look into its history");
        prop_assert_eq!(unquote(&line, true), unquote(&line, false));
    }

    #[test]
    fn a_report_is_found_in_any_chunks_and_everything_else_passes(
        before in proptest::collection::vec(any::<u8>(), 0..80),
        after in proptest::collection::vec(any::<u8>(), 0..80),
        cuts in proptest::collection::vec(1_usize..40, 0..40),
    ) {
        let bytes = [&before[..], b"pcb 00ff 4242 group 77\n", &after].concat();
        let (passed, report) = fed("00ff", &bytes, &cuts);

        let wanted = StartedProcess { pid: 4242, scope: Scope::Group, start: Some("77".to_owned()) };
        prop_assert_eq!(report, Some(Report::Started(wanted)));
        prop_assert_eq!(passed, [before, after].concat());
    }

    #[test]
    fn without_a_report_nothing_is_lost(
        pieces in proptest::collection::vec(proptest::sample::select(vec!["pcb ", "00ff ", "12 group 3", "\n", "x", "pcb 00ff "]), 0..60),
        cuts in proptest::collection::vec(1_usize..40, 0..40),
    ) {
        let bytes = pieces.concat().into_bytes();
        let (passed, report) = fed("00ff", &bytes, &cuts);

        if report.is_none() {
            prop_assert_eq!(passed, bytes);
        }
    }
}

/// Feeds `bytes` in chunks of these sizes, then the rest at once.
fn fed(nonce: &str, bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Report>) {
    let mut reader = ReportReader::new(nonce);
    let mut rest = bytes;
    let mut passed = Vec::new();
    for cut in cuts {
        let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
        passed.extend_from_slice(&reader.feed(Bytes::copy_from_slice(chunk)));
        rest = tail;
    }
    passed.extend_from_slice(&reader.feed(Bytes::copy_from_slice(rest)));
    passed.extend_from_slice(&reader.finish());
    (passed, reader.report().cloned())
}

/// The words of a line of single and double quotes; fish knows `\\` and `\'` inside single ones, the others do not.
fn unquote(line: &str, fish: bool) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let word = words.last_mut().expect("one word");
        match (character, quote) {
            ('\\', Some('\'')) if fish => {
                word.push(characters.next_if(|next| "\\'".contains(*next)).unwrap_or('\\'));
            }
            ('\'' | '"', None) => quote = Some(character),
            (character, Some(open)) if character == open => quote = None,
            (' ', None) => words.push(String::new()),
            (character, _) => word.push(character),
        }
    }
    assert_eq!(quote, None, "a quote stays open in {line}");
    words
}

#[test]
fn the_report_tells_the_commands_own_pid_and_group() {
    for shell in login_shells() {
        let script = "read -r s </proc/$$/stat; set -- ${s##*) }; echo $$ $3 ${20}";
        let ended = run_in(shell, &Case::new("sh", &["-c", script]).built(), b"");

        let process = started(&ended);
        assert_eq!(process.scope, Scope::Group);
        let start = process.start.as_deref().expect("a start time");
        let wanted = format!("{0} {0} {start}\n", process.pid);
        assert_eq!(String::from_utf8_lossy(&ended.stdout), wanted, "{shell}");
        assert!(ended.stderr.is_empty());
    }
}

#[test]
fn a_command_that_shares_its_group_gets_one_of_its_own_under_the_same_pid() {
    let remote = Case::new(
        "sh",
        &["-c", "read -r s </proc/$$/stat; set -- ${s##*) }; echo $$ $3"],
    )
    .built();

    // No process_group here: as Dropbear does it.
    let output = Command::new("sh")
        .args(["-c", &remote.line])
        .output()
        .expect("sh runs");

    let (_, report) = fed(&remote.nonce, &output.stderr, &[]);
    let Some(Report::Started(process)) = report else {
        panic!("{report:?}")
    };
    assert_eq!(process.scope, Scope::Group);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{0} {0}\n", process.pid)
    );
}

#[test]
fn without_setsid_the_report_says_leader() {
    let bin = tempfile::tempdir().expect("tempdir");
    for program in ["sh", "cat"] {
        let from = ["/bin", "/usr/bin"]
            .iter()
            .map(|place| Path::new(place).join(program))
            .find(|path| path.exists());
        std::os::unix::fs::symlink(from.expect("installed"), bin.path().join(program)).expect("symlink");
    }
    let remote = Case::new("cat", &[]).built();

    let output = Command::new("/bin/sh")
        .args(["-c", &remote.line])
        .env("PATH", bin.path())
        .stdin(Stdio::null())
        .output()
        .expect("sh runs");

    let (rest, report) = fed(&remote.nonce, &output.stderr, &[]);
    let Some(Report::Started(process)) = report else {
        panic!("{}", String::from_utf8_lossy(&rest))
    };
    assert_eq!(process.scope, Scope::LeaderOnly);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_directory_that_cannot_be_entered_starts_nothing() {
    let mut case = Case::new("echo", &["started"]);
    case.cwd = Some("/no/such place".to_owned());

    let ended = run_in("sh", &case.built(), b"");

    assert_eq!(ended.report, Some(Report::NoDirectory));
    assert_eq!(ended.code, Some(remote::WRAPPER_FAILED));
    assert!(ended.stdout.is_empty());
    assert!(String::from_utf8_lossy(&ended.stderr).contains("/no/such place"));
}

#[test]
fn directories_with_odd_names_are_entered() {
    let parent = tempfile::tempdir().expect("tempdir");
    for name in ["-", "-P", "a'b c", "$HOME", "é\n"] {
        let path = parent.path().join(name);
        std::fs::create_dir(&path).expect("mkdir");
        let mut case = Case::new("sh", &["-c", "pwd -P; printf x"]);
        case.cwd = Some(format!("{}/{name}", parent.path().display()));

        let ended = run_in("sh", &case.built(), b"");

        let wanted = format!("{}\nx", path.canonicalize().expect("path").display());
        assert_eq!(String::from_utf8_lossy(&ended.stdout), wanted);
    }
    // Relative ones too, where `-` alone would mean the previous directory.
    let mut case = Case::new("pwd", &["-P"]);
    case.cwd = Some("-".to_owned());
    let remote = case.built();
    let output = Command::new("sh")
        .args(["-c", &remote.line])
        .current_dir(parent.path())
        .output()
        .expect("sh runs");
    assert!(
        output.stdout.ends_with(b"/-\n"),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_program_that_does_not_exist_is_exit_127() {
    assert_eq!(
        run_in("sh", &Case::new("no-such-program-here", &[]).built(), b"").code,
        Some(127)
    );
}

#[test]
fn secrets_stand_in_no_argv_and_variables_of_the_caller_change_nothing_before_the_command() {
    let mut case = Case::new(
        "sh",
        &[
            "-c",
            "tr '\\0' ' ' </proc/$$/cmdline; echo; echo \"$TOKEN $PATH\"",
        ],
    );
    case.secret_env
        .insert("TOKEN".to_owned(), SecretText::new("pcb_hush"));
    case.secret_env
        .insert("PATH".to_owned(), SecretText::new("/usr/bin:/bin:/nowhere"));
    case.env.insert("IFS".to_owned(), "x0123456789".to_owned());
    case.env.insert("CDPATH".to_owned(), "/".to_owned());
    let remote = case.built();

    let ended = run_in("sh", &remote, b"");

    assert!(!remote.line.contains("hush"));
    assert!(!format!("{:?}", case.parts()).contains("hush"));
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let (argv, values) = text.split_once('\n').expect("two lines");
    assert!(!argv.contains("hush"), "{argv}");
    assert_eq!(values, "pcb_hush /usr/bin:/bin:/nowhere\n");
}

#[test]
fn a_command_whose_secrets_never_arrive_is_not_started() {
    let mut case = Case::new("echo", &["started"]);
    case.secret_env
        .insert("TOKEN".to_owned(), SecretText::new("one\ntwo"));
    let mut remote = case.built();
    let cut = remote.stdin_prefix.len() - 2;
    remote.stdin_prefix.truncate(cut);

    let ended = run_in("sh", &remote, b"");

    assert_eq!(
        (ended.code, ended.stdout.len()),
        (Some(remote::WRAPPER_FAILED), 0)
    );
}

#[test]
fn an_echo_of_the_script_is_not_its_report() {
    let remote = Case::new("true", &[]).built();

    let output = Command::new("sh")
        .args(["-xvc", &remote.line])
        .process_group(0)
        .output()
        .expect("sh runs");
    let (_, report) = fed(&remote.nonce, &output.stderr, &[]);
    assert!(matches!(report, Some(Report::Started(_))), "{report:?}");

    for bad in [
        "pcb 0 $$ group 1\n",
        "pcb 0 1 group 1\n",
        "pcb 0 -5 group 1\n",
        "pcb 0 5 group ;\n",
        "pcb 0 5 all 1\n",
    ] {
        assert_eq!(fed("0", bad.as_bytes(), &[]), (bad.as_bytes().to_vec(), None));
    }
}

#[test]
fn the_search_for_a_report_is_bounded() {
    let mut reader = ReportReader::new("00ff");
    let noise = vec![b'x'; report::SEARCH_LIMIT_BYTES];
    assert_eq!(reader.feed(Bytes::from(noise)).len(), report::SEARCH_LIMIT_BYTES);
    assert!(!reader.is_searching());

    let late = Bytes::from_static(b"pcb 00ff 4242 group 77\n");
    assert_eq!(reader.feed(late.clone()), late);
    assert_eq!(reader.report(), None);
}

/// Starts a command in its own group and reads its report and its first line of output.
fn start(script: &str) -> (Child, StartedProcess) {
    let remote = Case::new("sh", &["-c", script]).built();
    let mut child = Command::new("sh")
        .args(["-c", &remote.line])
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh starts");
    let mut reader = ReportReader::new(&remote.nonce);
    let mut byte = [0_u8; 1];
    while reader.report().is_none() {
        child
            .stderr
            .as_mut()
            .expect("stderr")
            .read_exact(&mut byte)
            .expect("a report");
        reader.feed(Bytes::copy_from_slice(&byte));
    }
    // The command's own empty line: it is past its set-up.
    child
        .stdout
        .as_mut()
        .expect("stdout")
        .read_exact(&mut byte)
        .expect("a line");
    match reader.report() {
        Some(Report::Started(process)) => (child, process.clone()),
        other => panic!("{other:?}"),
    }
}

/// Runs the kill beside a thread that reaps, as sshd does.
fn kill(child: Child, process: &StartedProcess, grace: Duration) -> (KillOutcome, std::process::ExitStatus) {
    let reaper = std::thread::spawn(move || {
        let mut child = child;
        child.wait().expect("waits")
    });
    let status = Command::new("sh")
        .args(["-c", &kill_line(process, grace)])
        .status()
        .expect("sh runs");
    (
        KillOutcome::from_exit_code(status.code(), process.scope),
        reaper.join().expect("reaper"),
    )
}

#[test]
fn a_group_is_ended_with_its_children() {
    use std::os::unix::process::ExitStatusExt as _;
    let (mut child, process) = start("sleep 1000 & echo; wait");
    let mut stdout = child.stdout.take().expect("stdout");

    let (outcome, status) = kill(child, &process, Duration::from_secs(5));

    assert_eq!(outcome, KillOutcome::Ended(crate::Killed::Group));
    assert_eq!(status.signal(), Some(15));
    // The end of the pipe proves that no child holds it any more.
    assert_eq!(stdout.read_to_end(&mut Vec::new()).expect("end"), 0);
}

#[test]
fn what_ignores_term_is_killed_after_the_grace() {
    use std::os::unix::process::ExitStatusExt as _;
    let (mut child, process) = start("trap '' TERM; sleep 1000 & echo; while :; do sleep 1000; done");
    let mut stdout = child.stdout.take().expect("stdout");

    let (outcome, status) = kill(child, &process, Duration::from_millis(300));

    assert_eq!(outcome, KillOutcome::Ended(crate::Killed::Group));
    assert_eq!(status.signal(), Some(9));
    assert_eq!(stdout.read_to_end(&mut Vec::new()).expect("end"), 0);
}

#[test]
fn a_process_that_only_has_the_same_pid_is_left_alone() {
    let (mut child, process) = start("echo; exec sleep 1000");
    for scope in [Scope::Group, Scope::LeaderOnly] {
        let other = StartedProcess {
            start: Some("1".to_owned()),
            scope,
            ..process.clone()
        };

        let status = Command::new("sh")
            .args(["-c", &kill_line(&other, Duration::ZERO)])
            .status()
            .expect("sh");

        assert_eq!(
            KillOutcome::from_exit_code(status.code(), scope),
            KillOutcome::AlreadyGone
        );
        assert_eq!(child.try_wait().expect("looked"), None);
    }
    let (outcome, _) = kill(child, &process, Duration::from_secs(5));
    assert_eq!(outcome, KillOutcome::Ended(crate::Killed::Group));
}

#[test]
fn the_rest_of_a_group_is_ended_although_its_leader_is_gone() {
    let (mut child, process) = start("sleep 1000 & echo");
    child.wait().expect("the leader ends");
    let mut stdout = child.stdout.take().expect("stdout");

    let status = Command::new("sh")
        .args(["-c", &kill_line(&process, Duration::from_secs(5))])
        .status()
        .expect("sh runs");

    assert_eq!(status.code(), Some(0));
    assert_eq!(stdout.read_to_end(&mut Vec::new()).expect("end"), 0);
    // And once more: nothing is there.
    let again = Command::new("sh")
        .args(["-c", &kill_line(&process, Duration::ZERO)])
        .status()
        .expect("sh runs");
    assert_eq!(
        KillOutcome::from_exit_code(again.code(), process.scope),
        KillOutcome::AlreadyGone
    );
}
