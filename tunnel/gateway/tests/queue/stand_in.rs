//! Under the name `node`: serving in place of the script, and becoming the real one.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Gateway, Request, TOKEN};

const PROGRAM: &str = env!("CARGO_BIN_EXE_paperclip-bridge-gateway");

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(node: &Path, path: &str) -> Output {
    Command::new(node)
        .args(["-e", "1 2", "x.mjs"])
        .env("PATH", path)
        .output()
        .unwrap()
}

#[test]
fn as_node_with_the_script_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("node");
    symlink(PROGRAM, &node).unwrap();
    let mut command = Command::new(&node);
    command.arg("/q/server/paperclip-bridge-server.mjs");
    let gateway = Gateway::start_as(command, &[("PAPERCLIP_BRIDGE_TOKEN", TOKEN)]);

    let call = gateway.call(Request::new("GET", "/x"));
    let envelope = gateway.host().see();
    gateway.host().answer(&envelope.id, 200, &[], b"ok");

    assert_eq!(call.join().unwrap().text(), "ok");
}

#[test]
fn as_node_with_anything_else_it_becomes_the_next_node() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, real] = ["ours", "real"].map(|name| folder.path().join(name).join("node"));
    script(&real, r#"printf '%s|' "$@"; exit 7"#);
    std::fs::create_dir(ours.parent().unwrap()).unwrap();
    symlink(PROGRAM, &ours).unwrap();
    let path = format!(
        "{}:{}",
        ours.parent().unwrap().display(),
        real.parent().unwrap().display()
    );

    let output = run(&ours, &path);

    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(7), &b"-e|1 2|x.mjs|"[..])
    );
}

#[test]
fn wrappers_that_lead_back_end_with_127() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, wrapper] = ["ours", "wrapper"].map(|name| folder.path().join(name).join("node"));
    std::fs::create_dir(ours.parent().unwrap()).unwrap();
    symlink(PROGRAM, &ours).unwrap();
    script(&wrapper, &format!("exec {} \"$@\"", ours.display()));
    let path = format!(
        "{}:{}",
        ours.parent().unwrap().display(),
        wrapper.parent().unwrap().display()
    );

    let output = run(&ours, &path);

    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(127) && text.contains("PATH holds no other node"),
        "{text}"
    );
}
