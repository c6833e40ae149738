//! A user that a test makes for itself, with its own home, and removes again.
//!
//! Here: `useradd` and `userdel`, for root only. A login as root lacks what an ordinary one has (sshd's `signal`
//! request for one), and Dropbear reads nothing but the home's own `authorized_keys`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::processes;
use crate::waiting::eventually_blocking;

/// A user of the system for as long as this value lives.
#[derive(Debug)]
pub struct TestUser {
    name: String,
    uid: u32,
    home: PathBuf,
}

/// `useradd` takes a lock file and gives up at once when another holds it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether users can be made here.
///
/// # Errors
///
/// Why not, as a sentence for [`crate::can_run`].
pub fn can_be_made() -> Result<(), String> {
    crate::waiting::program("useradd")?;
    if is_root() {
        Ok(())
    } else {
        Err("only root can make a user for the test".to_owned())
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    output("id", &["-u"]) == "0"
}

/// The name of the user who runs the tests.
pub fn current() -> String {
    output("id", &["-un"])
}

impl TestUser {
    /// Makes a user with a home folder of its own and `/bin/sh`.
    ///
    /// # Panics
    ///
    /// Where [`can_be_made`] is an error or `useradd` fails.
    pub fn make() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pcbt{}n{number}", std::process::id());
        let home = PathBuf::from(format!("/home/{name}"));
        let _alone = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        remove_orphans();
        eventually_blocking(Duration::from_secs(20), "useradd makes a user", || {
            let made = Command::new("useradd")
                .args(["--create-home", "--home-dir"])
                .arg(&home)
                .args(["--shell", "/bin/sh", &name])
                .output()
                .expect("useradd starts");
            made.status.success().then_some(())
        });
        // Without PAM, sshd takes `!` for a locked account; `*` is one that merely has no password.
        let unlocked = Command::new("usermod")
            .args(["-p", "*", &name])
            .status()
            .expect("usermod starts");
        assert!(unlocked.success(), "usermod could not unlock {name}");
        let uid = output("id", &["-u", &name]).parse().expect("id prints a number");
        Self { name, uid, home }
    }

    /// Lets the holder of the private key log in, by `~/.ssh/authorized_keys`.
    pub fn authorize(&self, public_key: &Path) {
        let folder = self.home.join(".ssh");
        std::fs::create_dir_all(&folder).expect("the made user's home takes a folder");
        let keys = folder.join("authorized_keys");
        std::fs::copy(public_key, &keys).expect("the public key can be copied");
        let owner = format!("{}:", self.name);
        for (program, argument) in [("chown", owner.as_str()), ("chmod", "go=")] {
            let status = Command::new(program).args(["-R", argument]).arg(&folder).status();
            assert!(
                status.expect("coreutils start").success(),
                "{program} of the made user's .ssh failed"
            );
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its home folder.
    pub fn home(&self) -> &Path {
        &self.home
    }
}

impl Drop for TestUser {
    fn drop(&mut self) {
        for pid in processes::owned_by(self.uid) {
            processes::signal(pid, "KILL");
        }
        let _alone = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for _ in 0..200 {
            let gone = Command::new("userdel")
                .args(["--remove", "--force", &self.name])
                .output();
            // 6: there is no such user any more.
            if gone.is_ok_and(|output| matches!(output.status.code(), Some(0 | 6))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes users of test processes that were killed before they could do it.
fn remove_orphans() {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    for name in users.lines().filter_map(|line| line.split(':').next()) {
        let maker = name
            .strip_prefix("pcbt")
            .and_then(|rest| rest.split('n').next()?.parse().ok());
        if maker.is_some_and(|pid| processes::one(pid).is_none()) {
            // Another test process may do the same at this moment; either may win.
            drop(
                Command::new("userdel")
                    .args(["--remove", "--force", name])
                    .output(),
            );
        }
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
