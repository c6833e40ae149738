//! The runner over SSH, on a real OpenSSH server.

use std::sync::Arc;

use paperclip_bridge_tests::conformance::{Difference, Shared, Subject};
use paperclip_bridge_tests::sshd::{self, Sshd};
use paperclip_bridge_tests::{can_run, conformance};
use runners::ssh::known_hosts::KnownHosts;
use runners::ssh::{ConnectionLimits, ConnectionSettings, HostKeys, Identities, SshHost, SshRunner};

conformance!(ssh_runner, subject);

/// Making a user and a server costs more than most cases.
static SERVER: Shared<Sshd> = Shared::new();

async fn subject() -> Option<Subject> {
    if !can_run(sshd::here()) {
        return None;
    }
    let server = SERVER.get(Sshd::start);
    let runner = SshRunner::new(SshHost::new(settings(&server)));
    Some(
        Subject::new(Arc::new(runner))
            .differing(
                Difference::BackgroundHoldsResult,
                "the server keeps the channel open as long as anybody holds an output of the command",
            )
            .keeping(server),
    )
}

pub(super) fn settings(server: &Sshd) -> ConnectionSettings {
    let access = server.access();
    let known = std::fs::read(&access.known_hosts).expect("the harness wrote the host key");
    ConnectionSettings {
        target: access.target,
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        user: server.user(),
        host_keys: HostKeys::Known {
            hosts: Arc::new(KnownHosts::parse("known_hosts", &known)),
            alias: None,
        },
        identities: Identities {
            files: vec![access.identity],
            files_required: true,
            only: true,
            ..Identities::default()
        },
        via: None,
        limits: ConnectionLimits::default(),
    }
}
