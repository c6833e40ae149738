//! Commands: time-outs, lost calls, and what nobody sees of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fakes::daytona::{API_KEY, Fault};
use paperclip_bridge_tests::conformance::{Recorder, sh};
use runners::provider::{ProviderError, Released};
use runners::{Input, RunnerError, SecretText};
use serde_json::{Value, json};

use super::{World, scope};

#[tokio::test]
async fn a_time_out_travels_whole_from_the_configuration_to_the_call_and_the_process() {
    let world = World::new(&json!({"timeoutMs": 1000})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();

    let mut named = sh("true");
    named.timeout = Some(Duration::from_secs(77));
    runner.execute(named).await.unwrap();
    let result = runner.execute(sh("echo $$; exec sleep 987")).await.unwrap();

    let limits: Vec<Value> = world
        .calls("POST /toolbox/")
        .iter()
        .filter(|call| {
            call.body["command"]
                .as_str()
                .is_some_and(|text| text.contains("exec 'sh'"))
        })
        .map(|call| call.body["timeout"].clone())
        .collect();
    assert_eq!(limits, [json!(77), json!(1)]);
    assert!(result.timed_out && result.killed.is_some(), "{result:?}");
    let pid: u32 = String::from_utf8_lossy(&result.stdout).trim().parse().unwrap();
    assert!(!world.fake.processes(&lease.id).contains(&pid));
}

#[tokio::test]
async fn a_lost_lease_is_told_apart_from_a_failure() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    runner.execute(sh("true")).await.unwrap();

    world.fake.fail("/process/execute", Fault::Status(500), 1);
    let failed = runner.execute(sh("true")).await.unwrap_err();
    world.fake.fail("/process/execute", Fault::Status(404), 1);
    let missing = runner.execute(sh("true")).await.unwrap_err();
    world.fake.lose(&lease.id);
    let lost = runner.execute(sh("true")).await.unwrap_err();

    assert!(matches!(failed, RunnerError::Lost { .. }), "{failed:?}");
    assert!(matches!(missing, RunnerError::Refused { .. }), "{missing:?}");
    assert!(matches!(lost, RunnerError::LeaseLost { .. }), "{lost:?}");
    let resumed = world.provider.resume(&lease.id, &lease.metadata, &scope()).await;
    assert!(matches!(resumed, Err(ProviderError::LeaseLost(_))), "{resumed:?}");
    let kept = world.provider.keep_alive(&lease).await;
    assert!(matches!(kept, Err(ProviderError::LeaseLost(_))), "{kept:?}");
    let released = world.provider.release(&lease).await;
    assert_eq!(released.unwrap(), Released::Destroyed);
}

#[tokio::test]
async fn a_lease_lost_while_a_command_runs_is_told_as_one() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    let sink = Recorder::new();
    let mut execution = sh("echo ready; exec sleep 987");
    execution.output = Some(sink.clone());

    let (result, ()) = tokio::join!(runner.execute(execution), async {
        sink.says("ready").await;
        world.fake.lose(&lease.id);
    });

    assert!(matches!(result, Err(RunnerError::LeaseLost { .. })), "{result:?}");
}

#[tokio::test]
async fn a_command_whose_call_is_lost_is_followed_to_its_end() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    runner.execute(sh("true")).await.unwrap();

    world.fake.fail("/process/execute", Fault::NoAnswer, 1);
    let result = runner.execute(sh("echo said; exit 6")).await.unwrap();

    assert_eq!(
        (result.exit_code, result.stdout.as_slice()),
        (Some(6), &b"said\n"[..])
    );
}

#[tokio::test]
async fn the_key_and_secret_variables_stand_in_no_error_no_argv_and_no_call_but_where_they_belong() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    let mut execution = sh("cat /proc/[0-9]*/cmdline; printf '\\n%s' \"$TOKEN\"");
    let token = SecretText::new("a-secret-that-is-looked-for");
    execution.secret_env = BTreeMap::from([("TOKEN".to_owned(), token)]);
    execution.stdin = Input::Bytes(Bytes::from_static(b"input"));

    let result = runner.execute(execution).await.unwrap();

    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    let (argv, value) = text.rsplit_once('\n').unwrap();
    assert_eq!(value, "a-secret-that-is-looked-for");
    assert!(!argv.contains(value) && !argv.contains(API_KEY));
    for call in world.fake.calls() {
        let told = format!("{} {}", call.line, call.body);
        assert!(!told.contains(value) && !told.contains(API_KEY), "{told}");
    }
    world.fake.fail("GET /api/sandbox", Fault::Status(401), 1);
    let refused = world.provider.keep_alive(&lease).await.unwrap_err();
    let told = format!("{refused} {refused:?} {:?} {runner:?}", world.provider);
    assert!(told.contains("apiKey") && !told.contains(API_KEY), "{told}");
    // Nothing stays in the sandbox either.
    let left = runner
        .execute(sh("ls \"$HOME/.paperclip-bridge\""))
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&left.stdout).lines().count(),
        1,
        "{left:?}"
    );
}
