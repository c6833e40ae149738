//! Installing what is written in Python, once for all test processes of a target folder.
//!
//! pip fetches what `tests/sdk/NAME/requirements.txt` names into `target/peers-NAME/HASH`, a virtual environment, where
//! HASH stands for that file; nothing is written outside the target folder.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::peer::install::target_folder;
use crate::waiting::program;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The folder of the server and its requirements.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/moto")
}

/// Whether moto can run here; installs it on first use.
///
/// # Errors
///
/// Why not, as a sentence for [`crate::can_run`].
pub fn here() -> Result<(), String> {
    python().map(drop)
}

/// The Python that has moto.
pub(super) fn python() -> Result<&'static Path, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| environment("moto"));
    python.as_deref().map_err(String::clone)
}

/// The Python of the virtual environment for `tests/sdk/NAME`; made where there is none.
///
/// # Errors
///
/// Why there is none, as a sentence for [`crate::can_run`].
pub fn environment(name: &str) -> Result<PathBuf, String> {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name);
    let requirements = sdk.join("requirements.txt");
    let text = fs::read(&requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let all = target_folder().join(format!("peers-{name}"));
    let environment = all.join(format!("{:016x}", hasher.finish()));
    let python = environment.join("bin/python");
    // Written last: an environment cannot be moved, so this tells a whole one from one that was broken off.
    let whole = environment.join("whole");
    fs::create_dir_all(&all).map_err(|error| format!("{}: {error}", all.display()))?;
    // Test processes run side by side: one installs, the others wait here for it.
    let guard = File::create(all.join("lock")).map_err(|error| format!("the lock file: {error}"))?;
    guard.lock().map_err(|error| format!("the lock file: {error}"))?;
    if whole.is_file() {
        return Ok(python);
    }
    drop(fs::remove_dir_all(&environment));
    let until = Instant::now() + LIMIT;
    let log = all.join("pip.log");
    let mut make = Command::new(program("python3")?);
    run(name, make.args(["-m", "venv"]).arg(&environment), &log, until)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args([
            "--no-cache-dir",
            "--no-deps",
            "--only-binary=:all:",
            "--requirement",
        ])
        .arg(&requirements);
    run(name, &mut pip, &log, until)?;
    File::create(&whole).map_err(|error| format!("{}: {error}", whole.display()))?;
    Ok(python)
}

fn run(what: &str, command: &mut Command, log: &Path, until: Instant) -> Result<(), String> {
    let output = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("{name} does not start: {error}"))?;
    loop {
        let ended = child.try_wait().map_err(|error| format!("{name}: {error}"))?;
        if let Some(status) = ended {
            let text = fs::read_to_string(log).unwrap_or_default();
            let reason = || format!("{what} could not be installed ({name}, {status}): {text}");
            return status.success().then_some(()).ok_or_else(reason);
        }
        if Instant::now() > until {
            drop(child.kill());
            drop(child.wait());
            return Err(format!("installing {what} took longer than {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
