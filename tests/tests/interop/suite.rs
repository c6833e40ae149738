//! The peer's published tests that start a gateway, run with theirs and with ours in its place.
//!
//! A program called `node` stands first on `PATH`: it starts our gateway where the peer's script is asked for, and
//! the real Node for all else. Every test that passes with their gateway must pass with ours.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use paperclip_bridge_tests::peer::{Installed, Release, gateway, install, installed, our_gateway};
use paperclip_bridge_tests::{can_run, within};
use tempfile::TempDir;
use tokio::process::Command;

/// How long both runs may take.
const LIMIT: Duration = Duration::from_secs(330);

/// How many tests start a gateway at least; fewer would mean that ours was passed over.
const STARTS: usize = 60;

/// Whether each test passed, by its name.
type Results = BTreeMap<String, bool>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_published_test_that_passes_with_their_gateway_passes_with_ours() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let installed = installed().expect("it was asked for before");
    let stand_in = StandIn::make(installed);

    let both = async { tokio::join!(run(installed, None), run(installed, Some(&stand_in))) };
    let (theirs, ours) = within(LIMIT, "the published tests end", both).await;

    let failed: Vec<&String> = theirs
        .iter()
        .filter(|(name, passed)| **passed && ours.get(*name) != Some(&true))
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "with our gateway these fail: {failed:#?}");
    let passed = theirs.values().filter(|passed| **passed).count();
    assert!(
        passed >= 180,
        "only {passed} of the published tests pass with their own gateway"
    );
    let starts = stand_in.starts();
    assert!(starts >= STARTS, "our gateway was started only {starts} times");
}

/// The program that stands for `node`, and its record.
#[derive(Debug)]
struct StandIn {
    folder: TempDir,
}

impl StandIn {
    fn make(installed: &Installed) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let stand_in = Self { folder };
        let script = format!(
            "#!/bin/sh\ncase \"${{1:-}}\" in\n*/paperclip-bridge-server.mjs)\n    echo \"$1\" >>'{}'\n    \
             exec '{}' \"$@\" ;;\nesac\nexec '{}' \"$@\"\n",
            stand_in.record().display(),
            our_gateway().display(),
            installed.node().display(),
        );
        fs::write(stand_in.program(), script).expect("a temporary folder takes files");
        fs::set_permissions(stand_in.program(), fs::Permissions::from_mode(0o755)).expect("modes can be set");
        stand_in
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("starts")
    }

    /// How often the gateway was asked for.
    fn starts(&self) -> usize {
        fs::read_to_string(self.record())
            .unwrap_or_default()
            .lines()
            .count()
    }
}

async fn run(installed: &Installed, stand_in: Option<&StandIn>) -> Results {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for file in ["suite.config.mjs", "suite.setup.mjs"] {
        fs::copy(install::drivers().join(file), folder.path().join(file)).expect("the drivers can be copied");
    }
    let report = folder.path().join("report.json");
    let mut path = gateway::path_with_node(installed);
    if let Some(stand_in) = stand_in {
        path = format!("{}:{path}", stand_in.folder.path().display());
    }
    let mut command = Command::new(installed.node());
    command
        .arg(installed.vitest())
        .args(["run", "--config"])
        .arg(folder.path().join("suite.config.mjs"))
        .current_dir(installed.folder())
        .env("PATH", path)
        .env("SUITE_ROOT", installed.package(Release::R916).join("dist"))
        .env("SUITE_REPORT", &report)
        .env_remove("PAPERCLIP_API_URL")
        .env_remove("PAPERCLIP_API_KEY")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(stand_in) = stand_in {
        command.env("SUITE_NODE", stand_in.program());
    }
    // Its status says that a test failed; which one is in the report.
    let output = command.output().await.expect("the installed node starts");
    results(&report).unwrap_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        panic!("the published tests gave no report: {errors}")
    })
}

fn results(report: &Path) -> Option<Results> {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).ok()?).ok()?;
    let files = report["testResults"].as_array()?;
    let tests = files
        .iter()
        .filter_map(|file| file["assertionResults"].as_array())
        .flatten();
    Some(
        tests
            .filter_map(|test| Some((test["fullName"].as_str()?.to_owned(), test["status"] == "passed")))
            .collect(),
    )
}
