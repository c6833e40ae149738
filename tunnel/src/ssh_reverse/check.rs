//! What is looked at on the target, once per connection, by one small script.
//!
//! Here: the script, reading its answer, and removing a stale socket file. All of it is optional: an account that may
//! run nothing still gets its tunnel, only unverified. Running something at all also makes sshd turn Nagle off for
//! the connection, which is worth 40 ms per request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use runners::RunnerError;
use runners::shell::{Scope, StartedProcess, quote};
use runners::ssh::{Connection, SshHost};

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

/// Who can reach a listener.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Exposure {
    /// It could not be read.
    #[default]
    Unknown,
    /// Only the target itself.
    Loopback,
    /// Other machines; the addresses it listens on.
    Beyond(Vec<String>),
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
    format!(
        "{parent}; if [ -r /proc/net/tcp ]; then echo pcb-listeners; \
         grep -h \":{port:04X} .* 0A \" /proc/net/tcp /proc/net/tcp6 2>/dev/null; fi"
    )
}

fn read(output: &[u8], port: u16) -> Finding {
    let text = String::from_utf8_lossy(output);
    let mut finding = Finding::default();
    let mut addresses = Vec::new();
    let mut is_readable = false;
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("pcb-sshd ") {
            finding.sshd = read_sshd(words);
        } else if line == "pcb-listeners" {
            is_readable = true;
        } else if is_readable && let Some(address) = read_listener(line, port) {
            addresses.push(address);
        }
    }
    finding.exposure = judge(&addresses);
    finding
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

/// One line of `/proc/net/tcp` or `tcp6`: number, local address, remote address, state (`0A` is listening).
fn read_listener(line: &str, port: u16) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    let (_, local, _, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (address, listed) = local.split_once(':')?;
    if state != "0A" || u16::from_str_radix(listed, 16).ok()? != port {
        return None;
    }
    // Each group of eight digits is a word in the target's own byte order; all that we ask is whether it is loopback
    // or the wildcard, and little-endian is what there is.
    match address.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(
            u32::from_str_radix(address, 16).ok()?.swap_bytes(),
        ))),
        32 => {
            let mut bytes = Vec::with_capacity(16);
            for at in [0, 8, 16, 24] {
                let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
        }
        _ => None,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => {
            address.is_loopback()
                || address
                    .to_ipv4_mapped()
                    .is_some_and(|address| address.is_loopback())
        }
    }
}

/// Our listener is one of those on the port: a wildcard is exposed whoever made it, since it takes what is meant for
/// ours; beside a loopback one, a single other address is somebody else's.
fn judge(addresses: &[IpAddr]) -> Exposure {
    let wildcard = addresses.iter().any(IpAddr::is_unspecified);
    let loopback = addresses.iter().any(|address| is_loopback(*address));
    match (wildcard, loopback) {
        _ if addresses.is_empty() => Exposure::Unknown,
        (false, true) => Exposure::Loopback,
        (true, _) | (false, false) => Exposure::Beyond(addresses.iter().map(ToString::to_string).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(lines: &str) -> Exposure {
        read(format!("pcb-listeners\n{lines}").as_bytes(), 0x1F90).exposure
    }

    #[test]
    fn a_listener_on_loopback_is_verified() {
        assert_eq!(
            listeners("   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0 0 1\n"),
            Exposure::Loopback
        );
        assert_eq!(
            listeners(
                "  1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0\n"
            ),
            Exposure::Loopback
        );
    }

    #[test]
    fn a_listener_on_every_address_is_exposed() {
        let both =
            "  0: 00000000:1F90 00000000:0000 0A 0\n  1: 00000000000000000000000000000000:1F90 0:0 0A 0\n";

        assert_eq!(
            listeners(both),
            Exposure::Beyond(vec!["0.0.0.0".to_owned(), "::".to_owned()])
        );
    }

    #[test]
    fn a_wildcard_beside_our_own_listener_is_exposed_too() {
        let both = "  0: 0100007F:1F90 00000000:0000 0A 0\n  1: 00000000:1F90 00000000:0000 0A 0\n";

        assert_eq!(
            listeners(both),
            Exposure::Beyond(vec!["127.0.0.1".to_owned(), "0.0.0.0".to_owned()])
        );
    }

    #[test]
    fn somebody_elses_listener_on_another_address_is_not_ours() {
        let both = "  0: 0100007F:1F90 00000000:0000 0A 0\n  1: 0500000A:1F90 00000000:0000 0A 0\n";

        assert_eq!(listeners(both), Exposure::Loopback);
        assert_eq!(
            listeners("  1: 7F00000A:1F90 00000000:0000 0A 0\n"),
            Exposure::Beyond(vec!["10.0.0.127".to_owned()])
        );
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_never_verified() {
        assert_eq!(listeners(""), Exposure::Unknown);
        assert_eq!(
            read(b"This account is not available.\n", 8080).exposure,
            Exposure::Unknown
        );
        // A forced command cannot pass its text for a listing without the mark.
        assert_eq!(
            read(b"0: 0100007F:1F90 0:0 0A\n", 0x1F90).exposure,
            Exposure::Unknown
        );
        // A connection, another port, half a line.
        assert_eq!(
            listeners("1: 0100007F:1F90 0100007F:9999 01 0\n2: 0100007F:1F91 0:0 0A\n3: 0100007F:1F90"),
            Exposure::Unknown
        );
    }

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
