//! From what went wrong on the way to a target to what it is called and what to do.
//!
//! Here: one stable reason for each. Not here: the errors, whose texts name the place and the numbers (`runners`,
//! `leases/`).

use runners::RunnerError;

use super::report::{CONFIGURATION, Found};
use crate::app::OpenError;

/// What a target's runner met.
pub(super) fn of_runner(error: &RunnerError) -> Found {
    let text = crate::placing::with_causes(error);
    match error {
        RunnerError::Unreachable { reason, .. } => unreachable(reason, text),
        RunnerError::LeaseLost { .. } => lease_lost(text),
        RunnerError::Refused { .. } => Found::fail(
            "refused",
            text,
            "let this account run commands there, or name another",
        ),
        RunnerError::Lost { .. } => Found::fail(
            "connection_lost",
            text,
            "look at the network in between and at the target's own log, then probe again",
        ),
        RunnerError::Invalid(_) | RunnerError::Unsupported(_) | RunnerError::Io { .. } | _ => {
            Found::fail("not_run", text, "see what was found, then probe again")
        }
    }
}

/// What stood in the way of a session.
pub(super) fn of_open(error: &OpenError) -> Found {
    match error {
        OpenError::Configuration(text) => {
            Found::fail(CONFIGURATION, text, "put that right on this machine first")
        }
        OpenError::Unreachable(text) => unreachable(text, text.clone()),
        OpenError::Refused { reason, detail } => Found::fail(reason, detail, what_refused(reason)),
        OpenError::LeaseLost(why) => lease_lost(why.clone()),
    }
}

/// The lease is gone, and everything in it.
pub(super) fn lease_lost(text: String) -> Found {
    Found::fail(
        "lease_lost",
        text,
        "the sandbox is gone; leave the id away for a new one, or name one that the provider still lists",
    )
}

fn what_refused(reason: &str) -> &'static str {
    match reason {
        "forwarding_refused" => "allow remote forwarding in the target's sshd_config, or go on without it",
        "forward_not_loopback" => "set `GatewayPorts no` in the target's sshd_config",
        "no_duplex" => "nothing: queue_v1 serves where a target has no byte stream",
        "no_gateway_for_platform" => "name a gateway with --gateway PATH, or --gateway node:PATH",
        "provider_refused" => "look at the provider's key, quota and settings",
        "lease_taken" => "end the session that has it, or leave the id away for a new one",
        "not_ready_in_time" => "probe again; where it stays so, look at the target's load and log",
        _ => "see what was found",
    }
}

/// Runners tell in words what they met; the words are ours, and tests hold both together.
fn unreachable(words: &str, text: String) -> Found {
    let says = |needle: &str| words.contains(needle);
    // First: what a provider met on its way has the words of any connection, and is nothing of SSH.
    let (reason, to_do) = if says("the provider is busy") {
        (
            "provider_busy",
            "try again later, or end leases that are not needed",
        )
    } else if says("the outcome is unknown") {
        (
            "provider_unknown",
            "what it made is looked for and given back; see `paperclip-bridge leases ls`",
        )
    } else if says("the provider cannot be reached") {
        (
            "provider_unreachable",
            "check the provider's address in its configuration, and the network",
        )
    } else if says("lookup address") || says("name resolution") || says("Name or service") {
        (
            "name_not_found",
            "check the host's name, the search domains of this machine, or the HostName of ssh_config",
        )
    } else if says("Connection refused") {
        (
            "connection_refused",
            "start the SSH server there, or give its port: ssh://user@host:port",
        )
    } else if says("No route to host") || says("Network is unreachable") {
        (
            "no_route",
            "check the address, the VPN and the firewalls in between",
        )
    } else if says("no TCP connection to") {
        (
            "timed_out",
            "check that the host is up and that no firewall in between drops the packets",
        )
    } else if says("host key") || says("host certificate") || says("is known by") {
        (
            "host_key",
            "compare the fingerprint on the host itself before anything is added to known_hosts",
        )
    } else if says("accepts none of the keys") {
        (
            "key_rejected",
            "add the public key to authorized_keys there, or name another key with --identity",
        )
    } else if says("no key to log in with")
        || says("the key ")
        || says("during login")
        || says("second factor")
    {
        (
            "no_login",
            "name a key with --identity, or start an ssh-agent that holds one",
        )
    } else if says("SSH server")
        || says("no login within")
        || says("handshake")
        || says("algorithm in common")
    {
        (
            "no_ssh",
            "check the port: what answers there speaks no SSH that is safe",
        )
    } else {
        ("unreachable", "see what was found")
    };
    Found::fail(reason, text, to_do)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_not_to_reach_a_host_has_its_own_name() {
        for (words, reason) in [
            (
                "no TCP connection to h:22: failed to lookup address information: x",
                "name_not_found",
            ),
            (
                "no TCP connection to h:22: Connection refused (os error 111)",
                "connection_refused",
            ),
            (
                "no TCP connection to h:22: No route to host (os error 113)",
                "no_route",
            ),
            ("no TCP connection to h:22 within 10s", "timed_out"),
            (
                "no host key is known for h: it offers ssh-ed25519 SHA256:x",
                "host_key",
            ),
            ("the host key of h is not the one listed at f:1", "host_key"),
            (
                "the server accepts none of the keys for user me: k",
                "key_rejected",
            ),
            (
                "there is no key to log in with; name one with --identity",
                "no_login",
            ),
            ("what answers there is not an SSH server", "no_ssh"),
            (
                "fake cannot acquire a lease: the provider is busy: x",
                "provider_busy",
            ),
            (
                "e2b cannot acquire a lease: the provider cannot be reached: Connection refused (os error 111)",
                "provider_unreachable",
            ),
            ("something else", "unreachable"),
        ] {
            let error = RunnerError::Unreachable {
                target: "ssh://me@h:22".into(),
                reason: words.into(),
            };

            let found = of_runner(&error);

            assert_eq!(found.reason, Some(reason), "{words}");
            assert!(found.found.contains(words) && found.to_do.is_some());
        }
    }

    #[test]
    fn a_lost_lease_is_told_apart_from_a_failure() {
        assert_eq!(
            of_open(&OpenError::LeaseLost("gone".into())).reason,
            Some("lease_lost")
        );
        assert_eq!(
            of_open(&OpenError::Unreachable("gone".into())).reason,
            Some("unreachable")
        );
    }
}
