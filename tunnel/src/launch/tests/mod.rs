//! The launch on this machine, with scripts in the place of programs.

mod install;
mod start;
mod sweep;
mod token;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use runners::local::{BaseEnvironment, LocalRunner};
use runners::{Capabilities, Duplex, DuplexRequest, Execution, ExecutionResult, RunnerError};

use super::*;

/// A gateway of the tests: a script with the two things that the launch asks of a binary.
const GATEWAY: &str = "#!/bin/sh\n[ \"$1\" = --version ] && { echo 1; exit 0; }\n\
                       echo \"port $PAPERCLIP_BRIDGE_PORT\"; env | sort; echo end; exec cat\n";

/// Runs everything on this machine, below a home of its own, and keeps what it was asked.
#[derive(Debug)]
struct Machine {
    home: tempfile::TempDir,
    local: LocalRunner,
    /// Put in front of `PATH`: programs that stand in for the machine's own.
    bin: PathBuf,
    scripts: Mutex<Vec<String>>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let home = tempfile::tempdir().unwrap();
        let base = BaseEnvironment {
            home: home.path().join("home").to_str().unwrap().to_owned(),
            ..BaseEnvironment::default()
        };
        let bin = home.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(home.path().join("home")).unwrap();
        std::fs::create_dir_all(home.path().join("tmp")).unwrap();
        Arc::new(Self {
            local: LocalRunner::new(base, None),
            bin,
            home,
            scripts: Mutex::default(),
        })
    }

    fn stand_in(&self, name: &str, text: &str) {
        let path = self.bin.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("home/.cache/paperclip-bridge")
    }

    fn executions(&self) -> usize {
        self.scripts.lock().unwrap().len()
    }

    fn prefixed(&self, args: &mut [String]) {
        let script = args.last_mut().unwrap();
        self.scripts.lock().unwrap().push(script.clone());
        *script = format!(
            "PATH={}:$PATH; export TMPDIR={}; {script}",
            self.bin.display(),
            self.home.path().join("tmp").display()
        );
    }
}

impl CommandManagedRuntimeRunner for Machine {
    fn execute(&self, mut execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        self.prefixed(&mut execution.args);
        self.local.execute(execution)
    }

    fn open_duplex(&self, mut request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.prefixed(&mut request.args);
        self.local.open_duplex(request)
    }

    fn capabilities(&self) -> Capabilities {
        self.local.capabilities()
    }

    fn target(&self) -> &str {
        "machine"
    }
}

fn launcher(machine: &Arc<Machine>, shell: Shell) -> Launcher {
    Launcher::new(machine.clone(), shell, GatewayProgram::binary(GATEWAY.as_bytes()))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The same machine with an upload of its own, which may spoil what it is given, or refuse it.
#[derive(Debug)]
struct Uploading {
    machine: Arc<Machine>,
    upload: Upload,
    uploads: Mutex<Vec<String>>,
    /// Bytes that went over stdin.
    stdin_bytes: Mutex<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upload {
    Whole,
    Cut,
    Spoilt,
    Refused,
}

impl Uploading {
    fn on(machine: &Arc<Machine>, upload: Upload) -> Arc<Self> {
        Arc::new(Self {
            machine: Arc::clone(machine),
            upload,
            uploads: Mutex::default(),
            stdin_bytes: Mutex::default(),
        })
    }
}

impl CommandManagedRuntimeRunner for Uploading {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        if let runners::Input::Bytes(bytes) = &execution.stdin {
            *self.stdin_bytes.lock().unwrap() += bytes.len();
        }
        self.machine.execute(execution)
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.machine.open_duplex(request)
    }

    fn upload<'a>(
        &'a self,
        path: &'a str,
        bytes: Bytes,
        mode: u32,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        self.uploads.lock().unwrap().push(path.to_owned());
        let written = match self.upload {
            Upload::Whole => bytes.to_vec(),
            Upload::Cut => bytes[1..].to_vec(),
            Upload::Spoilt => vec![b'x'; bytes.len()],
            Upload::Refused => return Box::pin(async { Err(RunnerError::Invalid("no".to_owned())) }),
        };
        std::fs::write(path, written).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        Box::pin(async { Ok(()) })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            file_transfer: true,
            ..self.machine.capabilities()
        }
    }

    fn target(&self) -> &str {
        "uploading"
    }
}

/// The same machine with a `PATH` that holds next to nothing.
#[derive(Debug)]
struct Bare(Arc<Machine>);

impl CommandManagedRuntimeRunner for Bare {
    fn execute(&self, mut execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        for name in ["id", "mkdir", "chmod"] {
            self.0.stand_in(
                name,
                &format!("#!/bin/sh\nPATH=/usr/bin:/bin exec {name} \"$@\"\n"),
            );
        }
        let script = execution.args.last_mut().unwrap();
        *script = format!("PATH={}; {script}", self.0.bin.display());
        self.0.local.execute(execution)
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.0.local.open_duplex(request)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            duplex: false,
            ..self.0.local.capabilities()
        }
    }

    fn target(&self) -> &str {
        "bare"
    }
}
