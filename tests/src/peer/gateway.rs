//! Gateways to choose from: the peer's script, and our binary in its place.
//!
//! Here: where each of them is. Not here: starting one; a host does that.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::{Installed, Release, install};
use crate::binary::built;

/// The binary `paperclip-bridge-gateway`, built on first use. `PAPERCLIP_BRIDGE_GATEWAY_BIN` names a built one.
///
/// # Panics
///
/// Where it does not build.
pub fn our_gateway() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match std::env::var_os("PAPERCLIP_BRIDGE_GATEWAY_BIN") {
        Some(path) => PathBuf::from(path),
        None => built("paperclip-bridge-gateway"),
    })
}

/// A `PATH` whose `node` is our gateway, by a link made in `folder`; the real one comes behind it.
///
/// # Panics
///
/// Where the link cannot be made.
pub fn path_with_our_gateway(folder: &Path, installed: &Installed) -> String {
    let shim = folder.join("gateway-bin");
    fs::create_dir_all(&shim).expect("a folder can be made in a temporary folder");
    symlink(our_gateway(), shim.join("node")).expect("a link can be made in a temporary folder");
    format!("{}:{}", shim.display(), path_with_node(installed))
}

/// A `PATH` whose `node` is the installed one.
pub fn path_with_node(installed: &Installed) -> String {
    format!("{}:/usr/bin:/bin", installed.node_folder().display())
}

/// Writes the peer's gateway script into `folder` and names the file.
///
/// # Panics
///
/// Where the peer's package does not give it.
pub fn their_script(installed: &Installed, release: Release, folder: &Path) -> PathBuf {
    let output = Command::new(installed.node())
        .arg(install::drivers().join("script.mjs"))
        .arg(installed.package(release))
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the installed node starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "no gateway script: {errors}");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}
