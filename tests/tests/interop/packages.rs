//! That the published packages are here, in the versions that were asked for.
//!
//! Run by itself it installs them, so that no other test waits for a download: `.ci/check.sh` does that first.

use std::fs;
use std::process::Command;

use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::peer::{Release, installed};

#[test]
fn the_published_packages_are_installed_as_pinned() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let installed = installed().expect("it was asked for before");

    for release in [Release::R707, Release::R916] {
        let manifest = fs::read(installed.package(release).join("package.json")).expect("it is installed");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("npm wrote JSON");
        assert_eq!(manifest["version"], release.version());
    }
    let node = Command::new(installed.node()).arg("--version").output();
    let version = String::from_utf8(node.expect("it starts here").stdout).expect("it says digits");
    assert!(
        version.starts_with("v24."),
        "the peer wants Node 24.11, here is {version}"
    );
}
