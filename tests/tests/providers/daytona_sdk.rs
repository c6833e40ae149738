//! Daytona's own client judges the fake that our runner is tested against.
//!
//! Here: installing the pinned client, once for all test processes of a target folder, and running
//! `tests/sdk/daytona/judge.mjs` in it. Not here: our runner; see `daytona`.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fakes::daytona::{API_KEY, Daytona};
use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::waiting::program;
use tokio::process::Command;
use tokio::time::timeout;

/// How long npm may take.
const INSTALL: Duration = Duration::from_secs(180);
/// How long the judge may take.
const JUDGE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_official_client_passes_on_the_fake() {
    let installed = installed().await;
    if !can_run(installed.as_ref().map(drop).map_err(Clone::clone)) {
        return;
    }
    let folder = installed.expect("it can run");
    let fake = Daytona::start().await;

    let mut judge = Command::new(program("node").expect("node has installed the client"));
    judge
        .arg(folder.join("judge.mjs"))
        .env("DAYTONA_API_KEY", API_KEY)
        .env("DAYTONA_API_URL", fake.api_url())
        .env("DAYTONA_TARGET", "local")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(JUDGE, judge.output()).await;

    let output = output.expect("the judge ends in time").expect("node starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(
        said.lines().filter(|line| line.starts_with("ok ")).count(),
        9,
        "{said}"
    );
}

/// The folder of the client and the judge.
async fn installed() -> Result<PathBuf, String> {
    program("node")?;
    let npm = program("npm")?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/daytona");
    let files = ["package.json", "package-lock.json", "judge.mjs"];
    let read = |name: &str| fs::read(source.join(name)).map_err(|error| format!("{name}: {error}"));
    let contents: Vec<Vec<u8>> = files.iter().map(|name| read(name)).collect::<Result<_, _>>()?;
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    let peers = target_folder().join("peers-daytona");
    let folder = peers.join(format!("{:016x}", hasher.finish()));
    let told = |error: std::io::Error| format!("{}: {error}", peers.display());
    fs::create_dir_all(&peers).map_err(told)?;
    // Test processes run side by side: one installs, the others wait here for it.
    let guard = File::create(peers.join("lock")).map_err(told)?;
    guard.lock().map_err(told)?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = peers.join("partial");
    drop(fs::remove_dir_all(&partial));
    fs::create_dir_all(&partial).map_err(told)?;
    for (name, content) in files.iter().zip(contents) {
        fs::write(partial.join(name), content).map_err(told)?;
    }
    let mut install = Command::new(npm);
    install
        .args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ])
        .arg("--cache")
        .arg(peers.join("npm-cache"))
        .current_dir(&partial)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(INSTALL, install.output())
        .await
        .map_err(|_| format!("npm took longer than {INSTALL:?}"))?
        .map_err(|error| format!("npm does not start: {error}"))?;
    drop(fs::remove_dir_all(peers.join("npm-cache")));
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("npm could not install Daytona's client: {text}"));
    }
    fs::rename(&partial, &folder).map_err(told)?;
    Ok(folder)
}

/// The target folder that this very program was built into: the one that cargo has marked.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its own path");
    let marked = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    marked.expect("it is in a target folder").to_path_buf()
}
