//! The table of attacks, through each tunnel.

use paperclip_bridge_tests::World;
use paperclip_bridge_tests::attack::table;
use paperclip_bridge_tests::world::CREDENTIAL;

use crate::ssh_can_run;

/// What comes out otherwise where a gateway stands in between: it knows the token, and not which hosts are the session's.
const THROUGH_A_GATEWAY: [&str; 1] =
    ["a wrong Host is told before the token: answer 0 is 401 invalid_token, expected 421 host_mismatch"];

async fn every_attack_comes_out_as_the_table_says(world: World) {
    every_attack_comes_out_as_the_table_says_but_for(world, &[]).await;
}

async fn every_attack_comes_out_as_the_table_says_but_for(world: World, differing: &[&str]) {
    let agent = world.agent();
    let mut wrong = vec![];
    for attack in table() {
        if let Err(said) = attack.attempt(&agent, &world.upstream).await {
            wrong.push(format!("{}: {said}", attack.name));
        }
    }
    let after = agent.get("/api/agents/me").await;

    assert!(
        wrong == differing,
        "{} of {} attacks:\n{}",
        wrong.len(),
        table().len(),
        wrong.join("\n")
    );
    assert_eq!(
        after.map(|answer| answer.status),
        Ok(200),
        "the session does not survive the attacks"
    );
    let ended = world.bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let secrets = [CREDENTIAL, agent.token.as_str(), "secretive", "?q=", "/../x"];
    for secret in secrets {
        assert!(!ended.stderr.contains(secret), "{secret} is in the log");
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[tokio::test]
async fn every_attack_comes_out_as_the_table_says_through_the_local_tunnel() {
    every_attack_comes_out_as_the_table_says(World::local().open().await).await;
}

#[tokio::test]
async fn every_attack_comes_out_as_the_table_says_through_http2_v1() {
    let world = World::local().args(["--tunnel", "http2_v1"]).open().await;
    every_attack_comes_out_as_the_table_says_but_for(world, &THROUGH_A_GATEWAY).await;
}

#[tokio::test]
async fn every_attack_comes_out_as_the_table_says_through_ssh_reverse() {
    if !ssh_can_run() {
        return;
    }
    every_attack_comes_out_as_the_table_says(World::ssh().open().await).await;
}
