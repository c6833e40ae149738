//! A PostgreSQL cluster of the tests' own: made, started on a unix socket in a temp folder, ended by its process id.
//!
//! Here: [`Cluster`], and [`Cluster::shared`], one for all tests of a process that run at the same time. PostgreSQL
//! refuses to run as root, so there it runs as `nobody`. Not here: any SQL.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tempfile::TempDir;

use crate::processes;
use crate::sshd::temp_dir_for_all;
use crate::user::is_root;
use crate::waiting::{eventually_blocking, program};

const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(20);
/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65_534;

/// Whether a cluster can be run here.
///
/// # Errors
///
/// What is missing, as a sentence for [`crate::can_run`].
pub fn here() -> Result<(), String> {
    programs()?;
    if is_root() {
        program("setpriv")?;
    }
    Ok(())
}

/// The folder of PostgreSQL's own programs. Debian keeps them off the path; elsewhere they stand together on it.
fn programs() -> Result<PathBuf, String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let debians = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let on_path =
        program("initdb").and_then(|initdb| initdb.canonicalize().map_err(|error| error.to_string()));
    let on_path = on_path
        .ok()
        .and_then(|initdb| initdb.parent().map(Path::to_owned));
    let whole = |folder: &PathBuf| {
        ["initdb", "postgres", "pg_isready", "createdb"]
            .iter()
            .all(|name| folder.join(name).is_file())
    };
    debians
        .filter(whole)
        .max()
        .or_else(|| on_path.filter(whole))
        .ok_or_else(|| "PostgreSQL's server is not installed (postgresql-15)".to_owned())
}

/// A running cluster. Dropping it ends the server.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    server: Mutex<Option<Child>>,
    databases: AtomicUsize,
}

impl Cluster {
    /// Makes one and returns once it answers.
    ///
    /// # Panics
    ///
    /// With its own words where it does not start.
    pub fn start() -> Self {
        let directory = temp_dir_for_all();
        if is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("root can give a folder away");
        }
        let cluster = Self {
            directory,
            server: Mutex::new(None),
            databases: AtomicUsize::new(0),
        };
        let made = cluster
            .command("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "bridge",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(cluster.data())
            .output()
            .expect("initdb starts");
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        cluster.resume();
        cluster
    }

    /// The one that tests of this process use together; it ends with the last of them.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start());
        *shared = Arc::downgrade(&started);
        started
    }

    /// Makes an empty database; its URL.
    ///
    /// # Panics
    ///
    /// Where it cannot be made.
    pub fn database(&self) -> String {
        let name = format!("d{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = self
            .client("createdb")
            .arg(&name)
            .output()
            .expect("createdb starts");
        assert!(
            made.status.success(),
            "createdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let socket = self.directory.path().to_str().expect("temp paths are UTF-8");
        format!("postgres://bridge@localhost/{name}?host={socket}")
    }

    /// Starts the server again after [`Self::stop`].
    ///
    /// # Panics
    ///
    /// With its own words where it does not start.
    pub fn resume(&self) {
        let log = std::fs::File::create(self.log()).expect("a file can be made");
        let server = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.directory.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=100"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        eventually_blocking(START_LIMIT, "PostgreSQL answers", || {
            let asked = self.client("pg_isready").output().expect("pg_isready starts");
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(self.lives(), "PostgreSQL has ended: {}", log());
            asked.status.success().then_some(())
        });
    }

    /// Ends the server at once, as a crash would.
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut server) = server else { return };
        // QUIT: its processes end without tidying up. The postmaster's children go with it.
        processes::signal(server.id(), "QUIT");
        let ended = std::time::Instant::now() + END_LIMIT;
        while server.try_wait().is_ok_and(|status| status.is_none()) {
            if std::time::Instant::now() > ended {
                drop(server.kill());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn lives(&self) -> bool {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server
            .as_mut()
            .is_some_and(|server| server.try_wait().is_ok_and(|status| status.is_none()))
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// One of the server's own programs, as the user that the server has.
    fn command(&self, name: &str) -> Command {
        let path = programs().expect("PostgreSQL is installed").join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let nobody = NOBODY.to_string();
            command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
            command.arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(self.directory.path()).env_remove("PGDATA");
        command
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(programs().expect("PostgreSQL is installed").join(name));
        command
            .arg("-h")
            .arg(self.directory.path())
            .args(["-U", "bridge"]);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}
