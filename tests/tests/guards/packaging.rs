//! Guards of the unit files: what systemd thinks of them, and what must be in them.

use std::process::{Command, Output};

use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::waiting::program;

use super::{read, root};

/// The most that `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "15";

const SERVICE: &str = "bridge/packaging/paperclip-bridge.service";
const SOCKET: &str = "bridge/packaging/paperclip-bridge.socket";

fn said(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr];
    both.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

fn settings(unit: &str) -> Vec<String> {
    read(unit)
        .lines()
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_service_is_hardened_as_far_as_it_can_be() {
    if !can_run(program("systemd-analyze").map(drop)) {
        return;
    }

    let judged = Command::new("systemd-analyze")
        .args([
            "security",
            "--no-pager",
            "--offline=true",
            "--threshold",
            EXPOSURE,
        ])
        .arg(root().join(SERVICE))
        .output()
        .unwrap();

    assert!(judged.status.success(), "{}", said(&judged));
    assert!(
        said(&judged).contains("Overall exposure level"),
        "{}",
        said(&judged)
    );
}

#[test]
fn systemd_has_nothing_against_the_units() {
    if !can_run(program("systemd-analyze").map(drop)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for unit in [SERVICE, SOCKET] {
        // The program need not be installed here.
        let text = read(unit).replace("=/usr/bin/paperclip-bridge", "=/bin/true");
        let name = unit.rsplit_once('/').unwrap().1;
        std::fs::write(folder.path().join(name), text).unwrap();
    }

    let judged = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(["paperclip-bridge.service", "paperclip-bridge.socket"].map(|name| folder.path().join(name)))
        .output()
        .unwrap();

    let ours: Vec<_> = said(&judged)
        .lines()
        .filter(|line| line.contains("paperclip"))
        .map(str::to_owned)
        .collect();
    assert_eq!(ours, Vec::<String>::new());
    assert!(judged.status.success(), "{}", said(&judged));
}

#[test]
fn the_service_is_what_the_daemon_and_its_operators_rely_on() {
    let service = settings(SERVICE);

    for setting in [
        "Type=notify",
        "LimitNOFILE=65536",
        "User=paperclip-bridge",
        "Group=paperclip-bridge",
        "StateDirectory=paperclip-bridge",
        "RuntimeDirectory=paperclip-bridge",
        "RuntimeDirectoryPreserve=yes",
    ] {
        assert!(service.iter().any(|line| line == setting), "{setting} is missing");
    }
    for begin in ["ExecReload=", "WatchdogSec="] {
        assert!(
            service.iter().any(|line| line.starts_with(begin)),
            "{begin} is missing"
        );
    }
    // It would hide who is at the other end of the control socket.
    assert!(!service.iter().any(|line| line.starts_with("PrivateUsers")));
    let socket = settings(SOCKET);
    assert!(socket.iter().any(|line| line == "SocketMode=0660"));
    assert!(socket.iter().any(|line| line == "FileDescriptorName=control"));
    let place = "/run/paperclip-bridge/control.sock";
    assert!(socket.contains(&format!("ListenStream={place}")));
    assert!(
        read("bridge/src/cli/control.rs").contains(place),
        "commands look elsewhere for the service"
    );
}
