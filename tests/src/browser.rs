//! A headless Chromium that is driven through the dashboard, with what judges a page for those who cannot see it.
//!
//! Here: installing the pinned packages once for a target folder, and running `tests/dashboard/drive.mjs`. Not here: what
//! is looked at; that is in the script.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::peer::install::{install_from, target_folder};
use crate::waiting::{program, within};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The folder of the installed packages.
///
/// # Errors
///
/// Why a browser cannot be driven here, as a sentence for [`crate::can_run`].
pub fn installed() -> Result<&'static Path, String> {
    static INSTALLED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        program("node")?;
        program("chromium")?;
        install_from(&scripts(), "peers-dashboard")
    });
    folder.as_deref().map_err(Clone::clone)
}

/// The folder of the script and the lock file.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard")
}

/// Where pictures of each page are left to be looked at.
pub fn shots() -> PathBuf {
    target_folder().join("dashboard")
}

/// Runs the script in this world; what it printed.
///
/// # Panics
///
/// Where a step does not hold, with what was printed until then.
pub async fn drive(mut world: Value) -> String {
    let peers = installed().expect("the caller has asked whether it can run");
    std::fs::create_dir_all(shots()).expect("the target folder can be written");
    world["chromium"] = program("chromium")
        .expect("it was there before")
        .display()
        .to_string()
        .into();
    let ended = Command::new(program("node").expect("it was there before"))
        .arg(scripts().join("drive.mjs"))
        .env("PEERS", peers)
        .env("SHOTS", shots())
        .env("WORLD", world.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within(LIMIT, "the browser went through the dashboard", ended)
        .await
        .expect("node starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}
