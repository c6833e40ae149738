//! The provider's own clients judge the fake: what they take for a sandbox, our runner may be tested with.
//!
//! They are installed into `target/peers-e2b`, pinned by the files of `tests/sdk/e2b`. `tests/soak/sdk-judges.sh` runs
//! them twenty times.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fakes::FakeE2b;
use fakes::e2b::API_KEY;
use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::waiting::program;
use tokio::process::Command;

/// How long a judge may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an installation may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);
/// What a judge looks at, in order.
const CHAPTERS: [&str; 11] = [
    "create",
    "run",
    "stdin",
    "time out",
    "kill a command",
    "files",
    "pty",
    "connect",
    "pause and resume",
    "list",
    "kill",
];

#[tokio::test]
async fn the_npm_client_takes_the_fake_for_the_provider() {
    let installed = installed("npm", &["package.json", "package-lock.json"], |folder| {
        let cache = format!("--cache={}", folder.join("cache").display());
        let install = [
            "install",
            "--no-save",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            &cache,
        ];
        vec![command("npm", &install.map(str::to_owned), folder)]
    });
    let folder = match installed.await {
        Ok(folder) => folder,
        Err(reason) => {
            can_run(Err(reason));
            return;
        }
    };
    // Modules are looked for beside the program that asks for them.
    fs::copy(sources().join("judge.mjs"), folder.join("judge.mjs")).expect("the judge is copied");

    judge("node", &folder.join("judge.mjs")).await;
}

#[tokio::test]
async fn the_pypi_client_takes_the_fake_for_the_provider() {
    let installed = installed("pypi", &["requirements.txt"], |folder| {
        let python = folder.join("venv/bin/python").display().to_string();
        let venv = ["-m", "venv", "venv"].map(str::to_owned);
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--requirement",
            "requirements.txt",
        ];
        vec![
            command("python3", &venv, folder),
            command(&python, &install.map(str::to_owned), folder),
        ]
    });
    let folder = match installed.await {
        Ok(folder) => folder,
        Err(reason) => {
            can_run(Err(reason));
            return;
        }
    };

    let python = folder.join("venv/bin/python").display().to_string();
    judge(&python, &sources().join("judge.py")).await;
}

/// Runs one judge on a fake of its own.
async fn judge(program: &str, script: &Path) {
    let fake = FakeE2b::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(program)
        .arg(script)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder.path())
        .env("E2B_API_KEY", API_KEY)
        .env("E2B_API_URL", fake.url())
        .env("E2B_SANDBOX_URL", fake.url())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();

    let output = tokio::time::timeout(LIMIT, output).await;

    let output = output.unwrap_or_else(|_| panic!("the judge took longer than {LIMIT:?}"));
    let output = output.expect("the judge starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let chapters: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "after {chapters:?}: {errors}");
    assert_eq!(chapters, CHAPTERS);
    assert_eq!(fake.sandboxes(), Vec::<String>::new());
}

/// Where the judges and their pins are.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/e2b")
}

fn command(program: &str, arguments: &[String], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The folder with what `pins` name, installed on first use. A failure is a sentence for [`can_run`].
async fn installed(
    kind: &str,
    pins: &[&str],
    install: impl FnOnce(&Path) -> Vec<Command>,
) -> Result<PathBuf, String> {
    program(if kind == "npm" { "npm" } else { "python3" })?;
    let mut hasher = DefaultHasher::new();
    for pin in pins {
        fs::read(sources().join(pin))
            .expect("the pins are there")
            .hash(&mut hasher);
    }
    let peers = target_folder().join("peers-e2b");
    fs::create_dir_all(&peers).map_err(|error| format!("{}: {error}", peers.display()))?;
    // Test processes run side by side: one installs, the others wait here for it.
    let guard = File::create(peers.join(format!("{kind}.lock"))).map_err(|error| error.to_string())?;
    guard.lock().map_err(|error| error.to_string())?;
    let folder = peers.join(format!("{kind}-{:016x}", hasher.finish()));
    // A virtual environment knows its own path, so that it cannot be moved when it is whole.
    if folder.join("whole").is_file() {
        return Ok(folder);
    }
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    for pin in pins {
        fs::copy(sources().join(pin), folder.join(pin)).map_err(|error| error.to_string())?;
    }
    for mut command in install(&folder) {
        let output = tokio::time::timeout(INSTALL_LIMIT, command.output());
        let output = output
            .await
            .map_err(|_| format!("{kind} took longer than {INSTALL_LIMIT:?}"))?;
        let output = output.map_err(|error| format!("{kind} does not start: {error}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!(
                "{kind} could not install the provider's client: {errors}"
            ));
        }
    }
    drop(fs::remove_dir_all(folder.join("cache")));
    File::create(folder.join("whole")).map_err(|error| error.to_string())?;
    Ok(folder)
}

/// The target folder that this very program was built into.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its own path");
    let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    program
        .ancestors()
        .find(marked)
        .expect("a target folder")
        .to_path_buf()
}
