//! Leases: made, kept, lost, given back.

use fakes::daytona::{Fault, Settings};
use paperclip_bridge_tests::conformance::sh;
use paperclip_bridge_tests::eventually;
use runners::RunnerError;
use runners::provider::{LeaseScope, ProviderError, Released};
use serde_json::json;
use std::time::Duration;

use super::{LIMIT, World, scope};

#[tokio::test]
async fn a_lease_is_labelled_and_says_where_and_by_which_shell_commands_run() {
    let world = World::new(&json!({"target": "eu", "autoStopInterval": 30})).await;

    let lease = world.acquire().await;

    let labels = world.fake.labels(&lease.id);
    for (label, value) in [
        ("paperclip-provider", "daytona"),
        ("paperclip-managed-by", "paperclip-bridge"),
        ("paperclip-run-id", "run-1"),
        ("paperclip-environment-id", "environment-1"),
        ("paperclip-issue-id", "issue-1"),
        ("paperclip-company-id", "company-1"),
        ("paperclip-reuse-lease", "false"),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    let home = world.fake.home(&lease.id).expect("it is there");
    let workspace = format!("{}/paperclip-workspace", home.display());
    assert_eq!(lease.remote_cwd.as_deref(), Some(workspace.as_str()));
    assert_eq!(lease.metadata["shellCommand"], "bash");
    assert_eq!(lease.metadata["target"], "eu");
    assert!(lease.expires_at.is_some() && !lease.resumed);
    let create = &world.calls("POST /api/sandbox")[0];
    assert_eq!(create.body["autoStopInterval"], 30);
    assert!(create.body.get("image").is_none() && create.body["target"] == "eu");
}

#[tokio::test]
async fn a_creation_of_unknown_outcome_leaves_nothing_behind() {
    let world = World::new(&json!({})).await;
    world.fake.fail("POST /api/sandbox", Fault::NoAnswer, 1);

    let error = world.provider.acquire(&scope()).await.unwrap_err();

    assert!(matches!(error, ProviderError::Unreachable(_)), "{error:?}");
    assert_eq!(world.fake.sandboxes(), []);
    assert_eq!(world.calls("POST /api/sandbox").len(), 1, "it is not tried again");
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_prepared_is_deleted() {
    let world = World::new(&json!({})).await;
    world.fake.fail("/work-dir", Fault::Status(500), 1);

    let error = world.provider.acquire(&scope()).await.unwrap_err();

    assert!(matches!(error, ProviderError::Unreachable(_)), "{error:?}");
    assert_eq!(world.fake.sandboxes(), []);
}

#[tokio::test]
async fn a_refused_creation_says_why() {
    let world = World::new(&json!({"snapshot": "no-such-snapshot"})).await;

    let error = world.provider.acquire(&scope()).await.unwrap_err();

    assert!(matches!(error, ProviderError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("no-such-snapshot"), "{error}");
}

#[tokio::test]
async fn a_kept_lease_is_stopped_and_resumed_with_its_files() {
    let world = World::new(&json!({"reuseLease": true})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    runner.execute(sh("echo kept >file")).await.unwrap();

    let released = world.provider.release(&lease).await.unwrap();
    let again = world.provider.release(&lease).await.unwrap();
    let resting = world.fake.sandboxes();
    let resumed = world
        .provider
        .resume(&lease.id, &lease.metadata, &scope())
        .await
        .unwrap();

    assert_eq!((released, again), (Released::Stopped, Released::Stopped));
    assert_eq!(resting, [(lease.id.clone(), "stopped".to_owned())]);
    assert!(resumed.resumed && resumed.metadata["resumedFromState"] == "stopped");
    assert_eq!(resumed.metadata["workspaceSentinel"], "matched");
    let runner = world.provider.runner(&resumed).unwrap();
    assert_eq!(runner.execute(sh("cat file")).await.unwrap().stdout, b"kept\n");
}

#[tokio::test]
async fn a_kept_lease_of_another_environment_or_without_its_sentinel_is_not_resumed() {
    let world = World::new(&json!({"reuseLease": true})).await;
    let lease = world.acquire().await;
    let other = LeaseScope {
        environment_id: Some("environment-2".to_owned()),
        ..scope()
    };

    let foreign = world.provider.resume(&lease.id, &lease.metadata, &other).await;
    let runner = world.provider.runner(&lease).unwrap();
    runner.execute(sh("rm -r .paperclip-runtime")).await.unwrap();
    let bare = world.provider.resume(&lease.id, &lease.metadata, &scope()).await;

    assert!(matches!(foreign, Err(ProviderError::LeaseLost(_))), "{foreign:?}");
    assert!(matches!(bare, Err(ProviderError::LeaseLost(_))), "{bare:?}");
    assert_eq!(
        world.fake.sandboxes().len(),
        1,
        "a failed resume destroys nothing"
    );
}

#[tokio::test]
async fn a_lease_that_is_not_kept_is_deleted_with_all_that_runs_in_it() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    runner
        .execute(sh("setsid sleep 987 >/dev/null 2>&1 &"))
        .await
        .unwrap();
    assert_eq!(world.provider.list().await.unwrap(), [lease.id.as_str()]);

    assert_eq!(world.provider.release(&lease).await.unwrap(), Released::Destroyed);

    assert_eq!(world.provider.list().await.unwrap(), [] as [String; 0]);
    assert_eq!(world.fake.processes(&lease.id), [] as [u32; 0]);
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_outlives_its_idle_time_and_another_does_not() {
    let world = World::new(&json!({"autoStopInterval": 15})).await;
    let lease = world.acquire().await;

    for _ in 0..4 {
        let next = world.provider.keep_alive(&lease).await.unwrap().unwrap();
        assert_eq!(next, Duration::from_secs(300));
        world.fake.advance(next);
    }
    assert_eq!(world.fake.sandboxes()[0].1, "started");
    world.fake.advance(Duration::from_secs(900));
    assert_eq!(world.fake.sandboxes()[0].1, "stopped");

    let runner = world.provider.runner(&lease).unwrap();
    let error = runner.execute(sh("true")).await.unwrap_err();
    assert!(matches!(error, RunnerError::LeaseLost { .. }), "{error:?}");
}

#[tokio::test]
async fn states_that_take_their_time_are_waited_for() {
    let settings = Settings {
        transition: Duration::from_secs(3600),
        ..Settings::default()
    };
    let world = World::with(settings, &json!({})).await;

    let (lease, ()) = tokio::join!(world.acquire(), async {
        let looked = || (world.calls("GET /api/sandbox/").len() >= 2).then_some(());
        eventually(LIMIT, "it asks again", looked).await;
        world.fake.advance(Duration::from_secs(3600));
    });

    assert_eq!(world.fake.sandboxes(), [(lease.id, "started".to_owned())]);
}
