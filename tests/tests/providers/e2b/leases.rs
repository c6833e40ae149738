//! Leases: made, found again, prolonged, paused, ended, lost.

use std::time::Duration;

use fakes::e2b::API_KEY;
use runners::provider::{ProviderError, Released};
use runners::{Execution, RunnerError};
use serde_json::{Map, Value, json};

use super::{World, scope};

#[tokio::test]
async fn a_lease_tells_what_its_peers_expect_and_no_secret() {
    let world = World::with(json!({"timeoutMs": 90_500, "template": "agents"})).await;

    let (lease, runner) = world.sandbox().await;

    let detail = world.fake.detail(&lease.id);
    let token = detail["envdAccessToken"].as_str().expect("a token");
    let cwd = lease.remote_cwd.clone().expect("a folder");
    assert!(cwd.ends_with("/paperclip-workspace"), "{cwd}");
    let wanted = json!({
        "provider": "e2b", "shellCommand": "bash", "template": "agents", "timeoutMs": 90_500,
        "reuseLease": false, "sandboxId": lease.id, "sandboxDomain": null, "remoteCwd": cwd, "resumedLease": false,
    });
    assert_eq!(Value::Object(lease.metadata.clone()), wanted);
    let shown = format!("{lease:?} {runner:?} {:?}", world.provider);
    assert!(!shown.contains(token) && !shown.contains(API_KEY), "{shown}");
    assert_eq!(detail["metadata"]["paperclipProvider"], "e2b");
    assert_eq!(detail["metadata"]["paperclipRunId"], "run-1");
    let made = world.fake.calls_to("/v2/sandboxes").remove(0).message();
    assert_eq!(made["timeout"], 91, "a part of a second is a second");
}

#[tokio::test]
async fn a_creation_that_was_not_answered_is_found_by_its_label() {
    let world = World::start().await;
    world.fake.switches().lose_answer("POST /v2/sandboxes");

    let (lease, _) = world.sandbox().await;

    assert_eq!(world.fake.sandboxes(), [lease.id]);
}

#[tokio::test]
async fn a_server_without_v2_is_found_out_once() {
    let world = World::start().await;
    world.fake.switches().old_server();

    let (lease, _) = world.sandbox().await;
    let again = world
        .provider
        .resume(&lease.id, &lease.metadata, &scope())
        .await
        .expect("resumed");

    assert!(again.resumed);
    assert_eq!(world.provider.list().await.expect("a list"), [lease.id]);
    let new = world
        .fake
        .calls()
        .iter()
        .filter(|call| call.path.starts_with("/v2/"))
        .count();
    assert_eq!(new, 1);
}

#[tokio::test]
async fn what_cannot_be_set_up_is_not_left_behind() {
    let world = World::with(json!({"requestedCwd": "/proc/no/such"})).await;

    let error = world.provider.acquire(&scope()).await.expect_err("no folder");

    assert!(matches!(error, ProviderError::Refused(_)), "{error}");
    assert_eq!(world.fake.sandboxes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_kept_lease_is_paused_with_its_processes_and_resumed() {
    let world = World::with(json!({"reuseLease": true})).await;
    let (lease, runner) = world.sandbox().await;
    let started = Execution::new("sh", ["-c", "setsid sleep 987 >/dev/null 2>&1 & echo $!"]);
    let pid = String::from_utf8(runner.execute(started).await.expect("a result").stdout).expect("text");

    assert_eq!(world.provider.release(&lease).await, Ok(Released::Stopped));
    assert_eq!(world.fake.detail(&lease.id)["state"], "paused");
    assert_eq!(
        world.provider.release(&lease).await,
        Ok(Released::Stopped),
        "again is no fault"
    );
    let resumed = world
        .provider
        .resume(&lease.id, &lease.metadata, &scope())
        .await
        .expect("resumed");

    assert_eq!((resumed.resumed, &resumed.remote_cwd), (true, &lease.remote_cwd));
    let runner = world.provider.runner(&resumed).expect("a runner");
    let alive = Execution::new("kill", ["-0", pid.trim()]);
    assert!(
        runner.execute(alive).await.expect("a result").success(),
        "its processes go on"
    );
    assert_eq!(world.provider.destroy(&resumed).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn a_runner_goes_on_where_its_sandbox_was_paused() {
    let world = World::with(json!({"onRelease": "pause"})).await;
    let (lease, runner) = world.sandbox().await;
    world.provider.release(&lease).await.expect("paused");

    let result = runner
        .execute(Execution::new("echo", ["back"]))
        .await
        .expect("a result");

    assert_eq!(result.stdout, b"back\n");
}

#[tokio::test]
async fn a_released_lease_is_gone_and_that_is_no_fault_twice() {
    let world = World::start().await;
    let (lease, _) = world.sandbox().await;

    for _ in 0..2 {
        assert_eq!(world.provider.release(&lease).await, Ok(Released::Destroyed));
        assert_eq!(world.provider.destroy(&lease).await, Ok(Released::Destroyed));
    }

    assert_eq!(world.fake.sandboxes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_lease_is_told_apart_from_a_failure() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    world.fake.switches().fail_next("/Start", 500);
    let failed = runner
        .execute(Execution::new("true", [""; 0]))
        .await
        .expect_err("a failure");
    assert!(!matches!(failed, RunnerError::LeaseLost { .. }), "{failed}");

    world.fake.kill_sandbox(&lease.id);

    let lost = runner
        .execute(Execution::new("true", [""; 0]))
        .await
        .expect_err("lost");
    assert!(matches!(lost, RunnerError::LeaseLost { .. }), "{lost}");
    let lost = world.provider.keep_alive(&lease).await.expect_err("lost");
    assert!(matches!(lost, ProviderError::LeaseLost(_)), "{lost}");
    let lost = world
        .provider
        .resume(&lease.id, &Map::new(), &scope())
        .await
        .expect_err("lost");
    assert!(matches!(lost, ProviderError::LeaseLost(_)), "{lost}");
}

#[tokio::test]
async fn a_lease_lost_under_a_running_command_is_told() {
    let world = World::start().await;
    let (lease, runner) = world.sandbox().await;
    let execution = Execution::new("sleep", ["987"]);

    let killed = async {
        let up = || world.fake.processes(&lease.id).first().map(drop);
        paperclip_bridge_tests::eventually(super::LIMIT, "it runs", up).await;
        world.fake.kill_sandbox(&lease.id);
    };
    let (result, ()) = tokio::join!(runner.execute(execution), killed);

    let error = result.expect_err("lost");
    assert!(matches!(error, RunnerError::LeaseLost { .. }), "{error}");
}

#[tokio::test]
async fn a_held_lease_outlives_its_first_lifetime() {
    let world = World::with(json!({"timeoutMs": 60_000})).await;
    let (lease, _) = world.sandbox().await;
    for _ in 0..4 {
        let next = world.provider.keep_alive(&lease).await.expect("alive");
        assert_eq!(next, Some(Duration::from_secs(20)));
        world.fake.clock().advance(Duration::from_secs(40));
    }
    assert_eq!(world.fake.sandboxes(), [lease.id.as_str()]);

    world.fake.clock().advance(Duration::from_secs(21));

    let lost = world
        .provider
        .keep_alive(&lease)
        .await
        .expect_err("its time is over");
    assert!(matches!(lost, ProviderError::LeaseLost(_)), "{lost}");
}

#[tokio::test]
async fn refusals_of_the_api_say_what_can_be_done() {
    let world = World::start().await;
    let (lease, _) = world.sandbox().await;
    let switches = world.fake.switches();
    let busy = |retry_after| move |error: &ProviderError| matches!(error, ProviderError::Busy { retry_after: told, .. } if *told == retry_after);
    let rows: [(u16, Option<u64>, Box<dyn Fn(&ProviderError) -> bool>); 6] = [
        (
            401,
            None,
            Box::new(|error| matches!(error, ProviderError::Refused(_))),
        ),
        (
            404,
            None,
            Box::new(|error| matches!(error, ProviderError::LeaseLost(_))),
        ),
        (429, Some(7), Box::new(busy(Some(Duration::from_secs(7))))),
        (503, None, Box::new(busy(None))),
        (
            500,
            None,
            Box::new(|error| matches!(error, ProviderError::Unknown(_))),
        ),
        (
            400,
            None,
            Box::new(|error| matches!(error, ProviderError::Refused(_))),
        ),
    ];
    for (status, retry_after, right) in rows {
        switches.fail_next_after("/timeout", status, retry_after);

        let error = world.provider.keep_alive(&lease).await.expect_err("refused");

        assert!(right(&error), "{status}: {error:?}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_not_repeated() {
    let world = World::with(json!({"apiKey": "file:/wrong"})).await;

    let error = world.provider.acquire(&scope()).await.expect_err("a wrong key");

    assert!(matches!(error, ProviderError::Refused(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("e2b_ffff"));
    let world = World::with(json!({"apiKey": "file:/none"})).await;
    let error = world.provider.acquire(&scope()).await.expect_err("no key");
    assert_eq!(error.to_string(), "file:/none is not set");
}

#[tokio::test]
async fn a_list_of_many_pages_is_whole() {
    let world = World::start().await;
    for _ in 0..103 {
        world
            .fake
            .add_sandbox(&json!({"metadata": {"paperclipProvider": "e2b", "paperclipBridge": "1"}}));
    }
    world
        .fake
        .add_sandbox(&json!({"metadata": {"paperclipProvider": "e2b"}}));

    let list = world.provider.list().await.expect("a list");

    assert_eq!(list.len(), 103, "and none that another host made");
}
