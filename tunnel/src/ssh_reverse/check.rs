//! What is looked at on the target, once per connection, by one small script.
//!
//! Here: the script, reading its answer, and removing a stale socket file. All of it is optional: an account that may
//! run nothing still gets its tunnel, only unverified. Running something at all also makes sshd turn Nagle off for
//! the connection, which is worth 40 ms per request.

use std::sync::Arc;
use std::time::Duration;

use runners::RunnerError;
use runners::shell::{Scope, StartedProcess, quote};
use runners::ssh::{Connection, SshHost};

use crate::listeners::{self, Exposure};

/// A forced command may run for ever; the tunnel does not wait for it.
const SCRIPT_LIMIT: Duration = Duration::from_secs(5);

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Finding {
    /// The server's process for this connection.
    pub(super) sshd: Option<StartedProcess>,
    /// Who can reach the listener.
    pub(super) exposure: Exposure,
}

/// Looks at the listener on `port` (0: none) and at the process that serves `connection`.
pub(super) async fn inspect(host: &Arc<SshHost>, connection: &Arc<Connection>, port: u16) -> Finding {
    match connection.run_script(&script(port), SCRIPT_LIMIT).await {
        Ok(output) => read(&output.stdout, port),
        // No room for a session on this connection (`MaxSessions`): the listener can be seen from another one, whose
        // own process says nothing about this.
        Err(RunnerError::Refused { .. }) if port != 0 && connection.sessions_in_use() > 0 => {
            let exposure = inspect_elsewhere(host, port).await;
            Finding { sshd: None, exposure }
        }
        Err(error) => {
            tracing::debug!(target_host = %host.target(), %error, "nothing can be run on the target; the listener stays unverified");
            Finding::default()
        }
    }
}

async fn inspect_elsewhere(host: &Arc<SshHost>, port: u16) -> Exposure {
    use runners::{CommandManagedRuntimeRunner as _, Execution};
    let mut execution = Execution::new("sh", ["-c".to_owned(), script(port)]);
    execution.timeout = Some(SCRIPT_LIMIT);
    match runners::ssh::SshRunner::new(Arc::clone(host))
        .execute(execution)
        .await
    {
        Ok(result) => read(&result.stdout, port).exposure,
        Err(_) => Exposure::Unknown,
    }
}

/// Removes a socket file that is left of our own listener.
pub(super) async fn remove_socket(connection: &Arc<Connection>, path: &str) {
    let path = quote(path);
    let script = format!("if [ -S {path} ]; then rm -f -- {path}; fi");
    if let Err(error) = connection.run_script(&script, SCRIPT_LIMIT).await {
        tracing::debug!(%error, "a socket file could not be removed");
    }
}

/// The shell's parent is the server's process for the connection. Its name is printed too: it must be an SSH server
/// before we ever end it.
fn script(port: u16) -> String {
    let parent = "__p=$PPID; __s=; { IFS= read -r __s </proc/$__p/stat; } 2>/dev/null; \
                  if [ \"$__s\" ]; then __n=${__s#*\"(\"}; __n=${__n%%\")\"*}; set -- ${__s##*\") \"}; \
                  echo \"pcb-sshd $__p ${20} $__n\"; fi";
    if port == 0 {
        return parent.to_owned();
    }
    format!("{parent}; {}", listeners::script(port))
}

fn read(output: &[u8], port: u16) -> Finding {
    let text = String::from_utf8_lossy(output);
    let sshd = text
        .lines()
        .filter_map(|line| line.strip_prefix("pcb-sshd "))
        .next_back()
        .and_then(read_sshd);
    Finding {
        sshd,
        exposure: listeners::read(&text, port),
    }
}

fn read_sshd(words: &str) -> Option<StartedProcess> {
    let mut words = words.splitn(3, ' ');
    let pid = words.next()?.parse().ok().filter(|pid| *pid > 1)?;
    let start = words
        .next()
        .filter(|start| !start.is_empty() && start.bytes().all(|byte| byte.is_ascii_digit()))?;
    let name = words.next()?;
    // `sshd`, `sshd-session` since OpenSSH 9.8, `dropbear`.
    if !name.starts_with("sshd") && !name.starts_with("dropbear") {
        return None;
    }
    Some(StartedProcess {
        pid,
        scope: Scope::LeaderOnly,
        start: Some(start.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ssh_server_is_remembered_as_the_one_to_end() {
        let found = |text: &str| read(text.as_bytes(), 0).sshd.map(|process| process.pid);

        assert_eq!(found("pcb-sshd 4242 991 sshd\n"), Some(4242));
        assert_eq!(found("pcb-sshd 4242 991 sshd-session\n"), Some(4242));
        assert_eq!(found("pcb-sshd 4242 991 dropbear\n"), Some(4242));
        assert_eq!(found("pcb-sshd 4242 991 bash\n"), None);
        assert_eq!(found("pcb-sshd 1 991 sshd\n"), None);
        assert_eq!(found("pcb-sshd 4242 - sshd\n"), None);
        assert_eq!(found("pcb-sshd 4242 991; sshd\n"), None);
    }
}
