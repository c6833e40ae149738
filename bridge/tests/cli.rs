//! The program as an operator meets it: exit codes, what is printed where, and what must never be printed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers as well"
)]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const CREDENTIAL: &str = "pk_live_do_not_print_me";

#[test]
fn help_names_every_command_and_every_exit_code() {
    let help = bridge(&["--help"]);

    assert_eq!(code(&help), 0);
    for word in [
        "demo",
        "run",
        "open",
        "policy",
        "store",
        "config",
        "version",
        "completions",
        "125",
        "denied by policy",
    ] {
        assert!(
            stdout(&help).contains(word),
            "{word} is missing in\n{}",
            stdout(&help)
        );
    }
}

#[test]
fn a_backup_of_a_folder_without_a_store_is_code_1_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (state, copy) = (folder.path().join("state"), folder.path().join("copy.db"));

    let backup = bridge(&[
        "store",
        "backup",
        copy.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ]);

    assert_eq!(code(&backup), 1);
    let told = String::from_utf8_lossy(&backup.stderr).into_owned();
    assert!(told.contains("there is no store"), "{told}");
    assert!(!copy.exists());
}

#[test]
fn a_command_line_that_is_not_understood_is_code_2() {
    for arguments in [
        [].as_slice(),
        &["frobnicate"],
        &["run", "local"],
        &["run", "local", "true"],
        &["open", "-oProxyCommand=x"],
        &["open", "nobody:sandbox-1"],
        &["open", "local", "--max-body", "10MB"],
        &["open", "local", "--rate", "20"],
        &["open", "local", "--run-id", "a b"],
        &["open", "local", "--pack", "paperclip-1999"],
        &["open", "local", "--tunnel", "carrier-pigeon"],
        &["open", "local", "--tunnel", "ssh-reverse"],
        &["open", "local", "--identity", "/x"],
        &["open", "ssh://h", "--tunnel", "local"],
        &["open", "local", "--log-level", "loud"],
    ] {
        let output = bridge(arguments);

        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?} says nothing");
    }
}

#[test]
fn what_is_no_id_no_time_or_no_address_is_code_2_and_says_what_to_give() {
    for (arguments, said) in [
        (["sessions", "show", "nonsense"].as_slice(), "`sessions ls`"),
        (&["sessions", "rotate", "../x"], "`sessions ls`"),
        (&["tail", "--session", "x"], "`sessions ls`"),
        (&["outcome", "key:k-1"], "--session ID"),
        (&["outcome", "nonsense"], "x-paperclip-bridge-request-id"),
        (&["audit", "query", "--session", "x"], "`sessions ls`"),
        (
            &["audit", "query", "--since", "yesterday"],
            "2026-01-31T12:00:00Z",
        ),
        (&["audit", "export", "xml"], "jsonl"),
        (&["top", "--control", "/run/x.sock"], "unix:PATH"),
        (&["dashboard", "--control", "tcp:host"], "tcp:HOST:PORT"),
        (&["sessions", "new", "local", "--ttl", "5"], "90s"),
        (&["store", "backup"], "<FILE>"),
    ] {
        let output = bridge(arguments);

        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(said),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_daemon_that_is_not_there_is_code_4_for_every_command_that_asks_one() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let id = "0198c0de-0000-7000-8000-000000000000";
    for arguments in [
        ["status"].as_slice(),
        &["top"],
        &["tail"],
        &["dashboard"],
        &["reload"],
        &["drain", "--wait"],
        &["outcome", id],
        &["sessions", "ls"],
        &["sessions", "show", id],
        &["sessions", "env", id],
        &["sessions", "revoke", id],
        &["sessions", "rotate", id],
        &["sessions", "reap"],
        &["sessions", "new", "local"],
    ] {
        let output = bridge(&[arguments, &["--control", &control]].concat());

        assert_eq!(code(&output), 4, "{arguments:?}: {}", stderr(&output));
        let told = stderr(&output);
        assert!(
            told.contains("no daemon answers") && told.contains("`paperclip-bridge serve`"),
            "{told}"
        );
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_kind_of_target_that_is_none_is_named_as_such() {
    assert!(stderr(&bridge(&["open", "nobody:x"])).contains("`nobody:` is not a kind of target"));
}

#[test]
fn providers_are_listed_with_their_schemas() {
    let all = bridge(&["providers", "--json"]);
    let one = bridge(&["providers", "fake", "--schema", "--json"]);

    let all: serde_json::Value = serde_json::from_str(&stdout(&all)).unwrap();
    assert!(
        all["providers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["key"] == "fake"),
        "{all}"
    );
    let one: serde_json::Value = serde_json::from_str(&stdout(&one)).unwrap();
    assert_eq!(one["schema"]["properties"]["cloud"]["maxLength"], 1024, "{one}");
    assert!(stdout(&bridge(&["providers"])).contains("fake"));
    assert!(stdout(&bridge(&["providers", "fake"])).contains("loseAfterExecutions"));
}

#[test]
fn a_name_that_is_no_provider_is_code_2_with_a_suggestion() {
    let output = bridge(&["providers", "fakee"]);

    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("did you mean fake?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_missing_credential_is_code_3_and_says_how_to_give_one() {
    let output = command(&["open", "local"])
        .env_remove("PAPERCLIP_API_KEY")
        .output()
        .unwrap();

    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("env:PAPERCLIP_API_KEY") && stderr(&output).contains("--credential"));
}

#[test]
fn what_is_wrong_with_the_configuration_is_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let rules = file(
        folder.path(),
        "rules.toml",
        "[[allow]]\nmethod = \"GET\"\npth = \"/api/x\"\n",
    );
    for arguments in [
        ["open", "local", "--upstream", "ftp://x"].as_slice(),
        &["open", "local", "--upstream", "http://user:pw@x"],
        &["open", "local", "--policy", "/nonexistent/rules.toml"],
        &["open", "local", "--policy", text(&rules)],
        &["open", "local", "--credential", "file:/nonexistent"],
        &["open", "ssh://h", "--identity", "/nonexistent"],
        &["open", "ssh://h", "--known-hosts", "/nonexistent"],
    ] {
        let output = bridge(arguments);

        assert_eq!(code(&output), 3, "{arguments:?}: {}", stderr(&output));
    }
    assert!(stderr(&bridge(&["open", "local", "--policy", text(&rules)])).contains("rules.toml:"));
}

#[test]
fn an_upstream_or_target_that_is_not_there_is_code_4() {
    let nobody = free_address();

    let upstream = bridge(&["open", "local", "--upstream", &format!("http://{nobody}")]);
    let target = bridge(&[
        "open",
        &format!("ssh://agent@{nobody}"),
        "--no-upstream-check",
        "--known-hosts",
        "/dev/null",
    ]);

    assert_eq!(code(&upstream), 4, "{}", stderr(&upstream));
    assert!(stderr(&upstream).contains("--no-upstream-check"));
    assert_eq!(code(&target), 4, "{}", stderr(&target));
}

#[test]
fn a_secret_in_the_wrong_place_is_refused_and_not_repeated() {
    for arguments in [
        ["open", "local", "--credential", CREDENTIAL].as_slice(),
        &["open", &format!("ssh://agent:{CREDENTIAL}@host")],
        &["run", &format!("ssh://agent:{CREDENTIAL}@host"), "--", "true"],
        &["config", "check", "--credential", CREDENTIAL],
        &[
            "open",
            "local",
            "--upstream",
            &format!("http://me:{CREDENTIAL}@host"),
        ],
    ] {
        let output = bridge(arguments);

        assert!([2, 3].contains(&code(&output)), "{}", stderr(&output));
        assert!(!stderr(&output).contains(CREDENTIAL), "{}", stderr(&output));
        assert!(!stdout(&output).contains(CREDENTIAL), "{}", stdout(&output));
    }
}

#[test]
fn policy_explain_says_yes_with_0_and_no_with_5() {
    let yes = bridge(&["policy", "explain", "GET", "/api/agents/me"]);
    let no = bridge(&["policy", "explain", "GET", "/agents/me", "--json"]);
    let walk = bridge(&["policy", "explain", "GET", "/api/agents/../x"]);

    assert_eq!(code(&yes), 0, "{}", stderr(&yes));
    assert_eq!(code(&no), 5, "{}", stderr(&no));
    let no = json(&no);
    assert_eq!(
        (&no["verdict"], &no["reason"], &no["nearest"]),
        (&"deny".into(), &"no_rule".into(), &"missing_prefix".into())
    );
    assert_eq!(code(&walk), 5);
    assert!(stdout(&walk).contains("not canonical"), "{}", stdout(&walk));
}

#[test]
fn policy_explain_cannot_drive_the_terminal() {
    let output = bridge(&["policy", "explain", "G\u{1b}[2JET", "/api/agents/me\u{1b}[2J"]);

    assert_eq!(code(&output), 5);
    assert!(!stdout(&output).contains('\u{1b}'));
}

#[test]
fn policy_check_reports_every_mistake_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(
        folder.path(),
        "good.toml",
        "[[deny]]\nmethod = \"*\"\npath = \"/api/agents/me\"\n",
    );
    let bad = file(
        folder.path(),
        "bad.toml",
        "surprise = 1\n\n[[allow]]\nmethod = \"get\"\npath = \"api\"\n",
    );

    let one = bridge(&["policy", "check", "--policy", text(&good), "--json"]);
    let both = bridge(&[
        "policy",
        "check",
        "--policy",
        text(&good),
        "--policy",
        text(&bad),
        "--json",
    ]);
    let words = bridge(&["policy", "check", "--policy", text(&bad)]);

    assert_eq!((code(&one), &json(&one)["ok"]), (0, &true.into()));
    assert_eq!(code(&both), 3);
    let report = json(&both);
    assert_eq!(
        (&report["ok"], &report["files"][0]["ok"]),
        (&false.into(), &true.into())
    );
    let lines: Vec<_> = report["files"][1]["mistakes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mistake| mistake["line"].as_u64().unwrap())
        .collect();
    assert!(
        lines.contains(&1) && lines.iter().any(|line| *line > 3),
        "{report}"
    );
    assert!(
        code(&words) == 3 && stdout(&words).contains("bad.toml:1:"),
        "{}",
        stdout(&words)
    );
    assert_eq!(code(&bridge(&["policy", "check"])), 0);
}

#[test]
fn policy_test_fails_with_1_when_a_case_comes_out_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let case = |verdict: &str| {
        format!("[[case]]\nmethod = \"GET\"\ntarget = \"/api/agents/me\"\nverdict = \"{verdict}\"\n")
    };
    let good = file(folder.path(), "good.toml", &case("allow"));
    let bad = file(
        folder.path(),
        "bad.toml",
        &format!("{}{}", case("allow"), case("deny")),
    );
    let broken = file(folder.path(), "broken.toml", &case("perhaps"));

    assert_eq!(code(&bridge(&["policy", "test", text(&good)])), 0);
    let failed = bridge(&["policy", "test", text(&bad), "--json"]);
    assert_eq!(code(&failed), 1);
    let report = json(&failed);
    assert_eq!(
        (&report["ok"], &report["passed"], &report["failed"]),
        (&false.into(), &1.into(), &1.into())
    );
    assert_eq!(code(&bridge(&["policy", "test", text(&broken)])), 3);
    let deny = file(
        folder.path(),
        "deny.toml",
        "[[deny]]\nmethod = \"GET\"\npath = \"/api/agents/me\"\n",
    );
    assert_eq!(
        code(&bridge(&["policy", "test", text(&good), "--policy", text(&deny)])),
        1
    );
}

#[test]
fn config_check_reports_all_that_is_wrong_at_once() {
    let good = bridge(&["config", "check", "--json"]);
    let bad = bridge(&[
        "config",
        "check",
        "--json",
        "--upstream",
        "ftp://x",
        "--credential",
        "env:NOBODY_SET_THIS",
    ]);

    assert_eq!(
        (code(&good), &json(&good)["ok"]),
        (0, &true.into()),
        "{}",
        stdout(&good)
    );
    assert!(!stdout(&good).contains(CREDENTIAL));
    assert_eq!(code(&bad), 3);
    let wrong = json(&bad)["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["ok"] == false)
        .count();
    assert_eq!(wrong, 2, "{}", stdout(&bad));
}

#[test]
fn the_version_is_a_line_or_an_object() {
    assert_eq!(
        stdout(&bridge(&["version"])),
        format!("paperclip-bridge {}\n", env!("CARGO_PKG_VERSION"))
    );
    let report = json(&bridge(&["version", "--json"]));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        report["packs"]
            .as_array()
            .unwrap()
            .contains(&"paperclip-2026.916".into())
    );
}

#[test]
fn completions_are_there_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = bridge(&["completions", shell]);

        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("paperclip-bridge"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");

    let output = bridge(&["man", pages.to_str().unwrap()]);

    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let help = stdout(&bridge(&["--help"]));
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("paperclip-bridge-{command}.1")));
        assert!(page.is_ok_and(|page| page.contains(".SH SYNOPSIS")), "{command}");
    }
    assert!(pages.join("paperclip-bridge-sessions-new.1").exists());
    assert!(!help.contains("manual pages"), "{help}");
    // A file stands where the folder should.
    let output = bridge(&["man", pages.join("paperclip-bridge.1").to_str().unwrap()]);
    assert_eq!(code(&output), 3);
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let mut child = command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());

    let output = child.wait_with_output().unwrap();

    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

#[test]
fn the_demo_comes_out_as_promised_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let play = |arguments: &[&str]| command(arguments).env("TMPDIR", folder.path()).output().unwrap();

    let report = play(&["demo", "--json"]);
    let table = play(&["demo"]);

    assert_eq!(code(&report), 0, "{}{}", stdout(&report), stderr(&report));
    let report = json(&report);
    assert_eq!(
        (&report["ok"], &report["tunnel"]),
        (&true.into(), &"ssh-reverse".into())
    );
    assert!(report["steps"].as_array().unwrap().len() >= 10);
    assert_eq!(code(&table), 0);
    assert!(
        stdout(&table).contains("as promised") && !stdout(&table).contains('✗'),
        "{}",
        stdout(&table)
    );
    assert_eq!(stderr(&table), "");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn run_ends_as_its_command_ended() {
    let api = Api::start();
    for (script, expected) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let output = api.run(&["--", "sh", "-c", script]);

        assert_eq!(code(&output), expected, "{script}: {}", stderr(&output));
    }
}

#[test]
fn run_passes_input_output_and_the_four_variables_on_and_nothing_else_of_ours() {
    let api = Api::start();
    let mut child = api
        .command(&[
            "run",
            "local",
            "--run-id",
            "run-7",
            "--",
            "sh",
            "-c",
            "cat; env; echo problem >&2",
        ])
        .env("SECRET_OF_THE_OPERATOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();

    let output = child.wait_with_output().unwrap();

    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let seen = stdout(&output);
    assert!(seen.starts_with("from stdin\n"), "{seen}");
    for line in [
        "PAPERCLIP_API_URL=http://127.0.0.1:",
        "PAPERCLIP_API_KEY=pcb_",
        "PAPERCLIP_RUN_ID=run-7",
        "PAPERCLIP_API_BRIDGE_MODE=local",
    ] {
        assert!(seen.contains(line), "{line} is missing in {seen}");
    }
    assert!(
        !seen.contains(CREDENTIAL) && !seen.contains("SECRET_OF_THE_OPERATOR"),
        "{seen}"
    );
    assert!(stderr(&output).contains("problem"));
    assert!(!stderr(&output).contains(CREDENTIAL));
}

#[test]
fn run_does_not_wait_for_a_stdin_that_nobody_closes() {
    let api = Api::start();
    let mut child = api
        .command(&["run", "local", "--", "true"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let held_open = child.stdin.take();

    let status = child.wait().unwrap();

    assert_eq!(status.code(), Some(0));
    drop(held_open);
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let output = Api::start().run(&["--", "/nonexistent/program"]);

    assert!(
        [1, 2, 125, 127].contains(&code(&output)),
        "{}: {}",
        code(&output),
        stderr(&output)
    );
    assert!(!stderr(&output).is_empty());
}

#[test]
fn open_prints_one_line_and_ends_when_stdin_closes() {
    let api = Api::start();
    let mut child = api
        .command(&["open", "local", "--json", "--until-stdin-closes"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    let session: Value = serde_json::from_str(&line).unwrap();

    assert_eq!(session["env"]["PAPERCLIP_API_URL"], session["url"]);
    assert_eq!(session["env"]["PAPERCLIP_API_KEY"], session["token"]);
    assert_eq!(
        (&session["tunnel"], session["session"].is_string()),
        (&"local".into(), true)
    );
    let place = session["url"]
        .as_str()
        .unwrap()
        .trim_start_matches("http://")
        .to_owned();
    assert!(std::net::TcpStream::connect(&place).is_ok());
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();

    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        std::net::TcpStream::connect(&place).is_err(),
        "something still listens at {place}"
    );
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader, &mut rest).unwrap();
    assert_eq!(rest, "");
    for event in stderr(&output).lines() {
        let event: Value = serde_json::from_str(event).unwrap_or_else(|_| panic!("not JSON: {event}"));
        assert!(event["timestamp"].is_string() && event["level"].is_string());
    }
    assert!(!stderr(&output).contains(CREDENTIAL));
    assert!(!stderr(&output).contains(session["token"].as_str().unwrap()));
}

#[test]
fn a_signal_ends_open_in_order_and_run_with_its_command() {
    let api = Api::start();
    let mut open = api
        .command(&["open", "local"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut exports = String::new();
    let mut reader = std::io::BufReader::new(open.stdout.take().unwrap());
    while exports.lines().count() < 4 {
        assert!(
            std::io::BufRead::read_line(&mut reader, &mut exports).unwrap() > 0,
            "{exports}"
        );
    }
    assert!(
        exports.lines().all(|line| line.starts_with("export PAPERCLIP_")),
        "{exports}"
    );
    signal(open.id(), "TERM");
    assert_eq!(open.wait().unwrap().code(), Some(0));

    let mut run = api
        .command(&["run", "local", "--", "sh", "-c", "echo started; exec sleep 60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut started = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(run.stdout.take().unwrap()),
        &mut started,
    )
    .unwrap();
    signal(run.id(), "INT");

    assert_eq!(run.wait().unwrap().code(), Some(143));
}

/// An upstream that takes connections, which is all that opening a session asks of it.
struct Api(TcpListener);

impl Api {
    fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env(
            "PAPERCLIP_API_URL",
            format!("http://{}", self.0.local_addr().unwrap()),
        );
        command
    }

    fn run(&self, rest: &[&str]) -> Output {
        self.command(&[&["run", "local"], rest].concat())
            .output()
            .unwrap()
    }
}

fn bridge(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paperclip-bridge"));
    command.args(arguments).stdin(Stdio::null());
    command
        .env("PAPERCLIP_API_KEY", CREDENTIAL)
        .env_remove("PAPERCLIP_API_URL");
    command
}

/// A loopback address that nobody listens at.
fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn signal(process: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, &process.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output))
        .unwrap_or_else(|_| panic!("not JSON: {}{}", stdout(output), stderr(output)))
}
