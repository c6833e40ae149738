//! Whether others can log in where a session listens on a port.
//!
//! Here: [`Neighbours`], which asks an SSH host once, says so in the log and lets its sessions show it. A port on loopback is open to every user of
//! the host: while a session's connection is lost, another user could listen there and be sent the agent's token by its
//! next call. A unix socket is not (`docs/operations.md`). Not here: what is refused of strangers (`callback/`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use runners::{CommandManagedRuntimeRunner, Execution, Shell};
use tokio::task::JoinSet;

use super::OpenSession;
use crate::placing::Reach;

/// A host that does not answer by then is not asked again.
const PATIENCE: Duration = Duration::from_secs(20);
/// What our line begins with: a login shell may print others.
const MARK: &str = "pcb-logins ";
/// Hosts that are remembered; beyond it none is asked.
const MOST_HOSTS: usize = 1024;

/// Accounts with a shell, without root, who can do anything anyway, and without our own. One line without `!`, so that
/// a login shell of any family hands it on as it stands.
const COUNT: &str = "me=$(id -u); n=0; { getent passwd 2>/dev/null || cat /etc/passwd; } | \
    { while IFS=: read -r a p u g c h s; do case $s in */nologin|*/false|*/sync|*/shutdown|*/halt) ;; \
    *) case $u in \"\"|0|\"$me\") ;; *) n=$((n+1));; esac;; esac; done; echo \"pcb-logins $n\"; }";

/// How many others can log in to one host; empty until it has said so.
pub(crate) type Logins = Arc<OnceLock<u64>>;

/// The hosts that were asked.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    asked: Mutex<BTreeMap<String, Logins>>,
    /// Ended with us.
    asking: Mutex<JoinSet<()>>,
}

impl Neighbours {
    /// Asks the host of a session that listens on a port of it, unless it was asked before. Returns at once, with what
    /// will hold the answer; `None` where nobody asks.
    pub(crate) fn look(&self, session: &OpenSession) -> Option<Logins> {
        if !matches!(session.reach, Reach::Ssh(_)) || !session.url.starts_with("http://") {
            return None;
        }
        let target = session.runner.target().to_owned();
        let found = Logins::default();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = asked.get(&target) {
                return Some(Arc::clone(known));
            }
            if asked.len() >= MOST_HOSTS {
                return None;
            }
            asked.insert(target.clone(), Arc::clone(&found));
        }
        let runner = Arc::clone(&session.runner);
        let shell = session.reach.shell();
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        while asking.try_join_next().is_some() {}
        let answer = Arc::clone(&found);
        asking.spawn(async move {
            let logins = logins(runner.as_ref(), shell).await;
            if let Some(logins) = logins {
                // It is asked once.
                let _first = answer.set(logins);
            }
            match logins {
                Some(0) => {}
                Some(logins) => tracing::warn!(
                    target_host = target,
                    logins,
                    "the target has other logins: whoever uses one could take a session's port while its connection is \
                     lost; use --unix-socket there"
                ),
                None => tracing::debug!(target_host = target, "the target does not say who can log in there"),
            }
        });
        Some(found)
    }
}

/// Accounts that others can log in to; `None` where the target does not say.
pub(crate) async fn logins(runner: &dyn CommandManagedRuntimeRunner, shell: Shell) -> Option<u64> {
    let mut execution = Execution::new(shell.program(), shell.script_args(COUNT.to_owned()));
    execution.timeout = Some(PATIENCE);
    execution.keep_output = 64 * 1024;
    let result = runner.execute(execution).await.ok()?;
    let said = String::from_utf8_lossy(&result.stdout).into_owned();
    said.lines()
        .find_map(|line| line.strip_prefix(MARK))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    /// What the script says where `getent` prints this.
    fn counted(accounts: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let getent = folder.path().join("getent");
        std::fs::write(folder.path().join("accounts"), accounts).unwrap();
        std::fs::write(
            &getent,
            format!("#!/bin/sh\nexec cat {}/accounts\n", folder.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&getent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("/bin/sh")
            .args(["-c", COUNT])
            .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn accounts_that_others_can_log_in_to_are_counted() {
        let own = Command::new("id").arg("-u").output().unwrap();
        let own = String::from_utf8(own.stdout).unwrap();
        let own = own.trim();
        let nobody = format!(
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nsync:x:4:65534::/bin:/bin/sync\n\
             me:x:{own}:1::/home/me:/bin/sh\n+::::::\n\n"
        );

        assert_eq!(counted(&nobody), "pcb-logins 0\n");
        // No shell at all means /bin/sh.
        let others = format!("{nobody}a:x:70001:1::/home/a:/bin/sh\nb:x:70002:1::/home/b:\n");
        assert_eq!(counted(&others), "pcb-logins 2\n");
    }
}
