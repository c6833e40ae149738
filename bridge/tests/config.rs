//! `config` as an operator meets it: what is printed where, and the exit code.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers as well"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const SECRET: &str = "pk_live_do_not_print_me";

#[test]
fn every_mistake_of_a_file_is_told_at_its_line_with_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(
        folder.path(),
        &format!("[telemetry]\nlevl = 'info'\n[upstreams.main]\nurl = 'ftp://h'\ncredential = '{SECRET}'\n"),
    );

    for command in ["check", "print"] {
        let output = config(
            &[command, "--config", text(&file)],
            &[("PCBRIDGE_STORE__ULR", "x")],
        );

        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(3), "{told}");
        for place in [
            "config.toml:2: ",
            "config.toml:4: ",
            "config.toml:5: ",
            "PCBRIDGE_STORE__ULR: ",
        ] {
            assert!(told.contains(place), "{place} is missing in\n{told}");
        }
        assert!(told.contains("did you mean `level`?"), "{told}");
        assert!(!told.contains(SECRET), "{told}");
    }
}

#[test]
fn a_file_is_checked_with_all_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(
        folder.path(),
        "[upstreams.main]\nurl = 'http://h'\ncredential = 'env:KEY'\nca = '/nonexistent/ca.pem'\n\
         [policy]\nfile = '/nonexistent/rules.toml'\n",
    );

    let output = config(&["check", "--json", "--config", text(&file)], &[("KEY", SECRET)]);

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == name).unwrap()["ok"].clone()
    };
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(found("configuration"), true);
    assert_eq!(found("upstreams.main.credential"), true);
    assert_eq!(found("upstreams.main.ca"), false);
    assert_eq!(found("policy"), false);
    assert!(!report.to_string().contains(SECRET));
}

#[test]
fn what_is_in_force_is_printed_with_where_it_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), "[sessions]\nttl = '2h'\nmisses = 4\n");

    let output = config(
        &["print", "--effective", "--origin", "--config", text(&file)],
        &[("PCBRIDGE_SESSIONS__MISSES", "5")],
    );

    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let at = |line: usize| format!("{}:{line}", file.display());
    for line in [
        format!("sessions.ttl = \"2h\"  # {}", at(2)),
        "sessions.misses = 5  # PCBRIDGE_SESSIONS__MISSES".to_owned(),
        "sessions.heartbeat = \"30s\"  # default".to_owned(),
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line} is missing in\n{printed}"
        );
    }
}

#[test]
fn the_schema_is_json_and_names_every_section() {
    let output = config(&["schema"], &[]);

    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for section in [
        "upstreams",
        "listeners",
        "targets",
        "providers",
        "policy",
        "limits",
        "audit",
        "store",
    ] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

#[test]
fn a_file_of_the_daemon_goes_with_no_option_of_a_session() {
    let output = config(&["check", "--config", "/x", "--upstream", "http://h"], &[]);

    assert_eq!(output.status.code(), Some(2));
}

fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paperclip-bridge"))
        .arg("config")
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn file(folder: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let file = folder.join("config.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
