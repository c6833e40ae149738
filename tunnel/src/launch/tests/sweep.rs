//! What an installation removes of those before it.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A process of the tests, ended with it.
struct Process(Child);

impl Process {
    fn start(program: &str, argument: &str) -> Self {
        Self(Command::new(program).arg(argument).spawn().unwrap())
    }

    /// What a record says of it.
    fn record(&self) -> String {
        let pid = self.0.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let start = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap();
        format!("{pid} {start}\n")
    }

    /// Waits until it has ended and nobody has asked for its end yet.
    fn is_zombie(&self) {
        let until = SystemTime::now() + Duration::from_secs(10);
        let stat = format!("/proc/{}/stat", self.0.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            assert!(SystemTime::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a file that nobody has touched for so long.
fn file(path: PathBuf, age: Duration) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = fs::File::create(&path).unwrap();
    made.set_modified(SystemTime::now() - age).unwrap();
    path
}

fn aged(folder: &Path, age: Duration) {
    let opened = fs::File::open(folder).unwrap();
    opened.set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn records_of_gateways_that_are_gone_are_removed_and_no_others() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    launcher.install().await.unwrap();
    let folder = machine.folder();
    let lives = Process::start("sleep", "60");
    let zombie = Process::start("true", "");
    let of_zombie = zombie.record();
    zombie.is_zombie();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("run-lives", &lives.record());
    write("run-zombie", &of_zombie);
    write("run-other-process", &format!("{} 1\n", lives.0.id()));
    write("run-being-written", "");
    for name in ["lives", "zombie", "other-process"] {
        write(&format!("token-{name}"), "x");
    }
    write("run-of-a-queue", &of_zombie);
    fs::create_dir_all(folder.join("q-of-a-queue/requests")).unwrap();

    launcher.install().await.unwrap();

    let left: Vec<String> = names(&folder)
        .into_iter()
        .filter(|name| !name.starts_with("gateway-"))
        .collect();
    assert_eq!(
        left,
        [
            "q-of-a-queue",
            "run-being-written",
            "run-lives",
            "run-of-a-queue",
            "token-lives"
        ]
    );
}

#[tokio::test]
async fn what_nobody_used_for_thirty_days_is_removed_while_no_gateway_runs() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let installed = launcher.install().await.unwrap();
    let folder = machine.folder();
    let own = fs::File::open(installed.path()).unwrap();
    own.set_modified(SystemTime::now() - 40 * DAY).unwrap();
    let recent = file(folder.join("gateway-recent"), 20 * DAY);
    let old = [
        file(folder.join("gateway-old"), 40 * DAY),
        file(folder.join("ab/paperclip-bridge-server.mjs"), 40 * DAY),
        file(folder.join(".upload-ab"), 40 * DAY),
        file(folder.join("token-old"), 40 * DAY),
        file(folder.join("q-old/ready.json"), 40 * DAY),
    ];
    aged(&folder.join("q-old"), 40 * DAY);
    let others = file(folder.join("notes"), 40 * DAY);
    let lives = Process::start("sleep", "60");
    fs::write(folder.join("run-lives"), lives.record()).unwrap();

    launcher.install().await.unwrap();

    let stays = |path: &PathBuf| path.exists();
    assert!(old.iter().take(4).all(stays), "{:?}", names(&folder));
    drop(lives);
    launcher.install().await.unwrap();
    assert!(!old.iter().any(stays), "{:?}", names(&folder));
    assert!(!folder.join("ab").exists());
    assert!([&recent, &others].into_iter().all(stays));
    let touched = own.metadata().unwrap().modified().unwrap();
    assert!(
        touched > SystemTime::now() - DAY,
        "the program in use counts as used"
    );
}

#[tokio::test]
async fn the_lock_of_an_upload_that_is_a_zombie_is_taken() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let zombie = Process::start("true", "");
    zombie.is_zombie();
    let lock = machine
        .folder()
        .join(format!(".lock-{}", launcher.program.sha256()));
    fs::create_dir_all(&lock).unwrap();
    fs::write(lock.join("pid"), format!("{}\n", zombie.0.id())).unwrap();

    let installed = tokio::time::timeout(Duration::from_secs(15), launcher.install()).await;

    assert!(installed.unwrap().is_ok());
}
