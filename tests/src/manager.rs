//! A service manager, as far as the daemon sees one: sockets that it opened, and the socket that it listens on.
//!
//! Here: [`Manager`], which hears what sd_notify(3) says, and [`launcher`], which hands descriptors over as
//! sd_listen_fds(3) describes it. Not here: systemd itself.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::waiting::{program, within};

/// Opens each socket that it is told of, puts them at 3 and on, and becomes the program behind `--`.
const LAUNCHER: &str = r#"
import fcntl, os, socket, sys
split = sys.argv.index("--")
names, held = [], []
for word in sys.argv[1:split]:
    name, _, what = word.partition("=")
    kind, _, place = what.partition(":")
    if kind == "file":
        number = os.open(place, os.O_RDWR | os.O_CREAT)
    else:
        family = socket.AF_INET if kind.startswith("tcp") else socket.AF_UNIX
        sort = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
        one = socket.socket(family, sort)
        one.bind(("127.0.0.1", 0) if family == socket.AF_INET else place)
        if kind in ("unix", "tcp"):
            one.listen()
        number = one.detach()
    names.append(name)
    held.append(fcntl.fcntl(number, fcntl.F_DUPFD, 100))
for index, number in enumerate(held):
    os.dup2(number, 3 + index)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(held)), LISTEN_FDNAMES=":".join(names))
program = sys.argv[split + 1:]
os.execv(program[0], program)
"#;

/// The words that start a daemon with these sockets; see `BridgeCommand::by`.
///
/// - `sockets`: `NAME=KIND:PLACE` each; the kind is `unix`, `tcp` (a free port; no place), `unix-silent` and `tcp-silent`
///   (which do not listen), `datagram` or `file`.
pub fn launcher(sockets: &[String]) -> Vec<String> {
    let mut words: Vec<_> = ["python3", "-c", LAUNCHER].map(str::to_owned).to_vec();
    words.extend_from_slice(sockets);
    words.push("--".to_owned());
    words
}

/// Whether [`launcher`] can be used.
///
/// # Errors
///
/// What is missing, as a sentence for `can_run`.
pub fn can_launch() -> Result<(), String> {
    program("python3").map(drop)
}

/// Hears what the daemon says of itself.
#[derive(Debug)]
pub struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    /// One that listens.
    ///
    /// # Panics
    ///
    /// Where there is no temporary folder.
    pub fn listen() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket can be bound");
        Self { folder, socket }
    }

    /// What `NOTIFY_SOCKET` says.
    pub fn address(&self) -> String {
        let path: PathBuf = self.folder.path().join("notify");
        path.display().to_string()
    }

    /// The next word that has this line. Others before it are passed over.
    ///
    /// # Panics
    ///
    /// Where it is not said within the limit.
    pub async fn hears(&self, line: &str, limit: Duration) -> Vec<String> {
        let heard = async {
            let mut said = vec![0; 4096];
            loop {
                let length = self.socket.recv(&mut said).await.expect("the socket can be read");
                let text = String::from_utf8_lossy(&said[..length]).into_owned();
                let lines: Vec<_> = text.lines().map(str::to_owned).collect();
                if lines.iter().any(|one| one == line) {
                    return lines;
                }
            }
        };
        within(limit, &format!("the daemon says {line}"), heard).await
    }
}
