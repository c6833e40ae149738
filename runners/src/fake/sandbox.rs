//! A lease's sandbox: a folder below the cloud, and the processes that have it as their home.

use std::io;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use super::cloud::Cloud;
use crate::provider::ProviderError;

/// How often a sandbox is looked through for processes: one that is being ended may start another.
const SWEEPS: usize = 5;

/// Where one lease's commands run.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    folder: PathBuf,
}

impl Sandbox {
    pub(super) fn of(cloud: &Cloud, lease: &str) -> Self {
        Self {
            folder: cloud.folder().join("sandboxes").join(lease),
        }
    }

    /// The home of its commands, where they start.
    pub(super) fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    pub(super) fn home_text(&self) -> String {
        self.home().display().to_string()
    }

    pub(super) fn make(&self) -> Result<(), ProviderError> {
        std::fs::create_dir_all(self.home()).map_err(|error| self.unusable(&error))
    }

    /// Ends everything that runs in it.
    pub(super) fn stop(&self) {
        let home = format!("HOME={}", self.home_text());
        for _ in 0..SWEEPS {
            let inside = processes_with(&home);
            if inside.is_empty() {
                return;
            }
            for pid in inside {
                // One that has just gone is what was wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Ends everything that runs in it, and removes its files.
    pub(super) fn remove(&self) -> Result<(), ProviderError> {
        self.stop();
        match std::fs::remove_dir_all(&self.folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.unusable(&error)),
        }
    }

    fn unusable(&self, error: &io::Error) -> ProviderError {
        ProviderError::Unreachable(format!("{}: {error}", self.folder.display()))
    }
}

/// The processes that were started with this variable.
fn processes_with(variable: &str) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // A process that is gone or somebody else's has none to read; a zombie has an empty one.
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        environment
            .split(|byte| *byte == 0)
            .any(|one| one == variable.as_bytes())
            .then_some(Pid::from_raw(pid)?)
    })
    .collect()
}
