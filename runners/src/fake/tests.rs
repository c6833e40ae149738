//! The fake does what its orders say, also for several processes: two providers on one cloud stand for those.

use serde_json::json;

use super::*;
use crate::http::HttpClient;
use crate::provider::{RequestSigner, SecretFault, SecretSource, UnsignedRequest};
use crate::{DuplexRequest, Execution, RunnerError, SecretText};

struct Nothing;

impl SecretSource for Nothing {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        std::future::ready(Err(SecretFault(reference.to_owned()))).boxed()
    }
}

impl RequestSigner for Nothing {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("nothing is signed here".to_owned())
    }
}

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn cloud(&self) -> Cloud {
        Cloud::at(self.folder.path().join("cloud"))
    }

    fn provider(&self, mut config: Value) -> Arc<dyn Provider> {
        config["cloud"] = json!(self.cloud().folder());
        build(settings(config)).unwrap()
    }

    /// Call, new state, and whether it failed, of every call so far.
    fn log(&self) -> Vec<(Call, Option<LeaseState>, Option<How>)> {
        let calls = self.cloud().calls().unwrap();
        calls
            .into_iter()
            .map(|entry| (entry.call, entry.became, entry.failed))
            .collect()
    }
}

fn settings(config: Value) -> ProviderSettings {
    ProviderSettings {
        config: config.as_object().unwrap().clone(),
        secrets: Arc::new(Nothing),
        signer: Arc::new(Nothing),
        http: HttpClient::new([]),
        environment: |_| None,
    }
}

fn scope() -> LeaseScope {
    LeaseScope {
        run_id: "run-1".into(),
        environment_id: Some("env-1".into()),
        ..LeaseScope::default()
    }
}

fn sh(script: &str) -> Execution {
    Execution::new("sh", ["-c", script])
}

#[test]
fn without_a_cloud_it_refuses_and_says_that_it_runs_here() {
    let error = build(settings(json!({}))).unwrap_err();

    assert_eq!(error.field, "cloud");
    assert!(
        error
            .problem
            .contains("for tests and runs every command on this machine"),
        "{error}"
    );
    assert_eq!(
        build(settings(json!({"cloud": "relative"}))).unwrap_err().field,
        "cloud"
    );
}

#[tokio::test]
async fn a_lease_has_a_folder_of_its_own_until_it_is_released() {
    let world = World::new();
    let provider = world.provider(json!({}));
    let lease = provider.acquire(&scope()).await.unwrap();
    let home = lease.remote_cwd.clone().unwrap();

    let said = provider
        .runner(&lease)
        .unwrap()
        .execute(sh("pwd; env"))
        .await
        .unwrap();
    let released = provider.release(&lease).await;
    let again = provider.release(&lease).await;

    let said = String::from_utf8(said.stdout).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.remove(0), home);
    lines.retain(|line| !line.starts_with("PWD=") && !line.starts_with("_=") && !line.starts_with("SHLVL="));
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            &format!("HOME={home}"),
            "LANG=C.UTF-8",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "USER=agent"
        ]
    );
    assert_eq!(
        (released, again),
        (Ok(Released::Destroyed), Ok(Released::Destroyed))
    );
    assert!(!std::path::Path::new(&home).exists());
    assert_eq!(
        world.log(),
        [
            (Call::Acquire, Some(LeaseState::Held), None),
            (Call::Execute, None, None),
            (Call::Release, Some(LeaseState::Gone), None),
            // The second one found nothing to release.
            (Call::Release, None, None),
        ]
    );
}

#[tokio::test]
async fn a_kept_sandbox_goes_to_the_same_environment_again_and_to_no_other() {
    let world = World::new();
    let provider = world.provider(json!({"reuseLease": true}));
    let first = provider.acquire(&scope()).await.unwrap();
    let runner = provider.runner(&first).unwrap();
    runner.execute(sh("echo kept >file")).await.unwrap();
    assert_eq!(provider.release(&first).await, Ok(Released::Stopped));
    let stopped = runner.execute(sh("true")).await;
    assert!(matches!(stopped, Err(RunnerError::Refused { .. })), "{stopped:?}");

    let other = LeaseScope {
        environment_id: Some("env-2".into()),
        ..scope()
    };
    let other = provider.acquire(&other).await.unwrap();
    let again = provider.acquire(&scope()).await.unwrap();

    assert!(!other.resumed && other.id != first.id);
    assert!(again.resumed && again.id == first.id);
    let kept = runner.execute(sh("cat file")).await.unwrap();
    assert_eq!(kept.stdout, b"kept\n");
    assert_eq!(provider.list().await.unwrap(), ["fake-1", "fake-2"]);
    assert_eq!(provider.destroy(&again).await, Ok(Released::Destroyed));
    let gone = provider.resume(&first.id, &first.metadata, &scope()).await;
    assert!(matches!(gone, Err(ProviderError::LeaseLost(_))), "{gone:?}");
}

#[tokio::test]
async fn an_ordered_failure_comes_as_often_as_ordered_in_all_processes_together() {
    let world = World::new();
    let config = json!({"fail": [{"call": "release", "times": 2, "how": "unreachable"}]});
    let one = world.provider(config.clone());
    let other = world.provider(config);
    let lease = one.acquire(&scope()).await.unwrap();

    let told = [
        one.release(&lease).await,
        other.release(&lease).await,
        one.release(&lease).await,
    ];

    assert!(matches!(told[0], Err(ProviderError::Unreachable(_))), "{told:?}");
    assert!(matches!(told[1], Err(ProviderError::Unreachable(_))), "{told:?}");
    assert_eq!(told[2], Ok(Released::Destroyed));
    let effects = world
        .log()
        .iter()
        .filter(|(_, became, _)| *became == Some(LeaseState::Gone))
        .count();
    assert_eq!(effects, 1);
}

#[tokio::test]
async fn a_failure_after_the_effect_leaves_the_effect() {
    let world = World::new();
    let order = json!({"fail": [{"call": "acquire", "times": 1, "how": "unknown", "afterEffect": true}]});
    let provider = world.provider(order);

    let told = provider.acquire(&scope()).await;

    assert!(matches!(told, Err(ProviderError::Unknown(_))), "{told:?}");
    assert_eq!(provider.list().await.unwrap(), ["fake-1"]);
}

#[tokio::test]
async fn every_way_to_fail_is_told_apart() {
    for (how, wanted) in [
        (
            "unreachable",
            ProviderError::Unreachable("as the test ordered".into()),
        ),
        ("refused", ProviderError::Refused("as the test ordered".into())),
        ("unknown", ProviderError::Unknown("as the test ordered".into())),
        ("lost", ProviderError::LeaseLost("as the test ordered".into())),
        (
            "busy",
            ProviderError::Busy {
                reason: "as the test ordered".into(),
                retry_after: Some(Duration::from_millis(10)),
            },
        ),
    ] {
        let world = World::new();
        let provider = world.provider(json!({"fail": [{"call": "keepAlive", "how": how}]}));
        let lease = provider.acquire(&scope()).await.unwrap();

        assert_eq!(provider.keep_alive(&lease).await.unwrap_err(), wanted);
    }
}

#[tokio::test]
async fn a_lost_lease_takes_its_processes_and_is_told_apart_from_a_failure() {
    let world = World::new();
    let provider = world.provider(json!({"loseAfterExecutions": 2}));
    let lease = provider.acquire(&scope()).await.unwrap();
    let runner = provider.runner(&lease).unwrap();
    let mut failed = sh("sleep 987 >/dev/null 2>&1 & echo $!; exit 7");
    failed.keep_output = 100;
    let first = runner.execute(failed).await.unwrap();
    let long = runner.execute(sh("touch up; exec sleep 987"));
    let up = std::path::PathBuf::from(lease.remote_cwd.clone().unwrap()).join("up");

    let (long, lost) = tokio::join!(long, async {
        while !up.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        runner.execute(sh("true")).await
    });

    assert_eq!(first.exit_code, Some(7));
    assert!(matches!(lost, Err(RunnerError::LeaseLost { .. })), "{lost:?}");
    assert!(matches!(long, Err(RunnerError::LeaseLost { .. })), "{long:?}");
    let background = format!("/proc/{}/environ", String::from_utf8_lossy(&first.stdout).trim());
    assert!(std::fs::read(background).unwrap_or_default().is_empty());
    assert_eq!(provider.release(&lease).await, Ok(Released::Destroyed));
}

#[tokio::test]
async fn an_expired_lease_is_lost_and_a_kept_alive_one_is_not() {
    let world = World::new();
    let long = world.provider(json!({"expiresAfterMs": 600_000}));
    let lease = long.acquire(&scope()).await.unwrap();
    assert!(lease.expires_at.is_some());
    assert_eq!(long.keep_alive(&lease).await, Ok(Some(Duration::from_secs(200))));

    let short = world.provider(json!({"expiresAfterMs": 1}));
    short.keep_alive(&lease).await.unwrap();
    let lost = loop {
        if let Err(error) = long.runner(&lease).unwrap().execute(sh("true")).await {
            break error;
        }
    };

    assert!(matches!(lost, RunnerError::LeaseLost { .. }), "{lost:?}");
    assert_eq!(long.list().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_duplex_breaks_after_its_bytes() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let world = World::new();
    let provider = world.provider(json!({"cutDuplexAfterBytes": 12}));
    let lease = provider.acquire(&scope()).await.unwrap();
    let request = DuplexRequest {
        command: "cat".into(),
        ..DuplexRequest::default()
    };
    let mut stream = provider
        .runner(&lease)
        .unwrap()
        .open_duplex(request)
        .await
        .unwrap()
        .stream;

    stream.write_all(b"123456").await.unwrap();
    let mut back = [0; 6];
    stream.read_exact(&mut back).await.unwrap();

    assert_eq!(
        stream.write_all(b"7").await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(stream.read_u8().await.is_err());
}

#[tokio::test]
async fn capabilities_can_be_taken_away() {
    let world = World::new();
    let config =
        json!({"duplex": false, "fileTransfer": false, "streamingOutput": false, "background": false});
    let provider = world.provider(config);
    let lease = provider.acquire(&scope()).await.unwrap();

    let runner = provider.runner(&lease).unwrap();

    let can = runner.capabilities();
    assert!(!can.duplex && !can.file_transfer && !can.streaming_output && !can.concurrent);
    let duplex = runner.open_duplex(DuplexRequest::default()).await;
    assert!(matches!(duplex, Err(RunnerError::Unsupported(_))), "{duplex:?}");
}

#[tokio::test]
async fn the_configured_time_out_is_that_of_the_process() {
    let world = World::new();
    let provider = world.provider(json!({"timeoutMs": 300}));
    let lease = provider.acquire(&scope()).await.unwrap();

    let result = provider
        .runner(&lease)
        .unwrap()
        .execute(sh("exec sleep 987"))
        .await
        .unwrap();

    assert!(result.timed_out);
    let calls = world.cloud().calls().unwrap();
    assert_eq!(calls.last().and_then(|entry| entry.timeout_ms), Some(300));
}

#[tokio::test]
async fn a_shell_that_nobody_knows_stays_in_the_metadata_for_the_caller_to_refuse() {
    let world = World::new();
    let shell = |name: Value| {
        let provider = world.provider(json!({ "shellCommand": name }));
        async move { provider.acquire(&scope()).await.unwrap().shell(&SPEC) }
    };

    assert_eq!(shell(json!("bash")).await, Ok(Shell::Bash));
    assert_eq!(shell(Value::Null).await, Ok(Shell::Sh));
    let fault = shell(json!("sh; rm -rf /")).await.unwrap_err();
    assert!(matches!(fault, ProviderError::Broken(_)), "{fault:?}");
}

#[tokio::test]
async fn many_at_once_get_leases_of_their_own() {
    let world = World::new();
    let providers: Vec<_> = (0..4).map(|_| world.provider(json!({}))).collect();
    let scope = scope();

    let all = providers
        .iter()
        .cycle()
        .take(20)
        .map(|provider| provider.acquire(&scope));
    let leases = futures_util::future::join_all(all).await;

    let mut ids: Vec<String> = leases.into_iter().map(|lease| lease.unwrap().id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20);
    let numbers: Vec<u64> = world
        .cloud()
        .calls()
        .unwrap()
        .iter()
        .map(|entry| entry.number)
        .collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<u64>>());
}

#[test]
fn a_line_cut_short_is_no_call_and_does_not_spoil_the_next() {
    let world = World::new();
    let cloud = world.cloud();
    cloud.call(Call::List, None, &[], |_, _| Ok(())).unwrap();
    let log = cloud.folder().join("calls.jsonl");
    let whole = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, format!("{whole}{}", &whole[..20])).unwrap();

    cloud.call(Call::Acquire, None, &[], |_, _| Ok(())).unwrap();

    let calls = cloud.calls().unwrap();
    let seen: Vec<(u64, Call)> = calls.iter().map(|entry| (entry.number, entry.call)).collect();
    assert_eq!(seen, [(1, Call::List), (2, Call::Acquire)]);
}
