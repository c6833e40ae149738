//! What a command finds in its environment: the same shaped set on every kind of target, and nothing of the daemon's.

use std::collections::{BTreeMap, BTreeSet};

use paperclip_bridge_tests::Upstream;
use paperclip_bridge_tests::binary::BridgeCommand;
use paperclip_bridge_tests::clouds::{Cloud, Clouded};
use paperclip_bridge_tests::leased::Leased;
use paperclip_bridge_tests::sshd::Sshd;
use paperclip_bridge_tests::world::{CREDENTIAL, Place, RUN_ID, daemon};

use crate::ssh_can_run;

/// What a target's own system may set.
const OF_THE_SYSTEM: [&str; 14] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "TERM", "TZ",
    "MAIL", "_",
];
/// What a kind of target sets, by the beginning of its name.
const OF_THE_TARGET: [&str; 3] = ["SSH_", "E2B_", "DAYTONA_"];
const MUST_NOT_TRAVEL: &str = "a-value-of-the-daemons-own";

async fn variables(command: BridgeCommand) -> BTreeMap<String, String> {
    let ended = command
        .env("DAEMONS_OWN", MUST_NOT_TRAVEL)
        .env("PAPERCLIP_OF_THE_DAEMON", MUST_NOT_TRAVEL)
        .command(["env", "-0"])
        .finish()
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let pairs = ended.stdout.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[tokio::test]
async fn the_environment_of_a_command_has_one_shape_on_every_target() {
    let upstream = Upstream::start().await;
    let mut all = vec![(
        "local",
        variables(daemon("run", &Place::Local, &upstream.url())).await,
    )];
    if ssh_can_run() {
        let server = Place::Ssh(Box::new(Sshd::start()));
        all.push(("ssh", variables(daemon("run", &server, &upstream.url())).await));
    }
    let leased = Leased::new().await;
    all.push(("fake", variables(leased.command("run", "fake:")).await));
    let mut keys = vec![];
    for cloud in [Cloud::e2b().await, Cloud::daytona().await] {
        keys.push(cloud.key());
        let world = Clouded::at(cloud).await;
        all.push((world.cloud.name(), variables(world.command("run", "")).await));
    }

    let ours = |found: &BTreeMap<String, String>| -> BTreeSet<String> {
        let names = found.keys();
        names
            .filter(|name| name.starts_with("PAPERCLIP_"))
            .cloned()
            .collect()
    };
    let shape = ours(&all[0].1);
    assert!(
        shape.contains("PAPERCLIP_API_KEY") && shape.contains("PAPERCLIP_API_URL"),
        "{shape:?}"
    );
    for (target, found) in &all {
        assert_eq!(ours(found), shape, "{target}");
        assert_eq!(found["PAPERCLIP_RUN_ID"], RUN_ID, "{target}");
        for (name, value) in found {
            let known = shape.contains(name)
                || OF_THE_SYSTEM.contains(&name.as_str())
                || OF_THE_TARGET.iter().any(|start| name.starts_with(start));
            assert!(known, "{target}: {name} is there");
            let secret = keys.iter().any(|key| value.contains(key)) || value.contains(CREDENTIAL);
            assert!(!secret && !value.contains(MUST_NOT_TRAVEL), "{target}: {name}");
        }
    }
}
