//! The table of attacks, through each tunnel.

use paperclip_bridge_tests::World;
use paperclip_bridge_tests::attack::table;
use paperclip_bridge_tests::world::CREDENTIAL;

use crate::ssh_can_run;

async fn every_attack_comes_out_as_the_table_says(world: World) {
    let agent = world.agent();
    let mut wrong = vec![];
    for attack in table() {
        if let Err(said) = attack.attempt(&agent, &world.upstream).await {
            wrong.push(format!("{}: {said}", attack.name));
        }
    }
    let after = agent.get("/api/agents/me").await;

    assert!(
        wrong.is_empty(),
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
async fn every_attack_comes_out_as_the_table_says_through_ssh_reverse() {
    if !ssh_can_run() {
        return;
    }
    every_attack_comes_out_as_the_table_says(World::ssh().open().await).await;
}
