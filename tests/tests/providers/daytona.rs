//! The runner of Daytona against the fake: the shared suite on both daemons, and what only this provider can do wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fakes::daytona::{API_KEY, Daemon, Daytona, Fault, Settings};
use futures_util::future::BoxFuture;
use paperclip_bridge_tests::conformance;
use paperclip_bridge_tests::conformance::{Difference, Recorder, Subject, sh};
use paperclip_bridge_tests::{eventually, within};
use runners::daytona::DAYTONA;
use runners::http::HttpClient;
use runners::provider::{
    Lease, LeaseScope, Provider, ProviderError, ProviderSettings, Released, RequestSigner, SecretFault,
    SecretSource, UnsignedRequest,
};
use runners::{DuplexRequest, Input, RunnerError, SecretText};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// No wait in here should need a tenth of it.
const LIMIT: Duration = Duration::from_secs(60);

conformance!(on_the_newer_daemon, newer);
conformance!(on_the_old_daemon, old);

async fn newer() -> Option<Subject> {
    subject(Settings::default()).await
}

async fn old() -> Option<Subject> {
    // Its images often have nothing but dash.
    let settings = Settings {
        daemon: Daemon::Old,
        shell: "/bin/sh".into(),
        ..Settings::default()
    };
    subject(settings).await
}

async fn subject(settings: Settings) -> Option<Subject> {
    let world = World::with(settings, &json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).expect("its own lease");
    let subject = Subject::new(runner)
        .differing(Difference::StdinCollected, "the toolbox's call knows no stdin")
        .differing(Difference::SignalAsExitCode, "the toolbox tells no signal");
    Some(subject.keeping(world))
}

/// A fake and a provider that is configured for it.
struct World {
    fake: Daytona,
    provider: Arc<dyn Provider>,
}

impl World {
    async fn new(config: &Value) -> Self {
        Self::with(Settings::default(), config).await
    }

    async fn with(settings: Settings, config: &Value) -> Self {
        let fake = Daytona::with(settings).await;
        let mut config = config.as_object().expect("an object").clone();
        config.insert("apiKey".to_owned(), "env:KEY".into());
        config.insert("apiUrl".to_owned(), fake.api_url().into());
        let provider = build(config);
        Self { fake, provider }
    }

    async fn acquire(&self) -> Lease {
        let acquired = within(LIMIT, "a lease", self.provider.acquire(&scope())).await;
        acquired.expect("the fake gives a sandbox")
    }

    fn calls(&self, what: &str) -> Vec<fakes::daytona::Call> {
        let calls = self.fake.calls().into_iter();
        calls.filter(|call| call.line.contains(what)).collect()
    }
}

fn build(config: Map<String, Value>) -> Arc<dyn Provider> {
    let settings = ProviderSettings {
        config,
        secrets: Arc::new(Keys),
        signer: Arc::new(Keys),
        http: HttpClient::new([]),
        environment: |_| None,
    };
    (DAYTONA.build)(settings).expect("the configuration is right")
}

struct Keys;

impl SecretSource for Keys {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<SecretText, SecretFault>> {
        assert_eq!(reference, "env:KEY");
        Box::pin(async { Ok(SecretText::new(API_KEY)) })
    }
}

impl RequestSigner for Keys {
    fn sign(
        &self,
        _: &str,
        _: &SecretText,
        _: &UnsignedRequest<'_>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err("Daytona signs nothing".to_owned())
    }
}

fn scope() -> LeaseScope {
    LeaseScope {
        run_id: "run-1".to_owned(),
        environment_id: Some("environment-1".to_owned()),
        issue_id: Some("issue-1".to_owned()),
        company_id: Some("company-1".to_owned()),
        requested_cwd: None,
        request_id: None,
    }
}

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

async fn duplex(world: &World, script: &str) -> runners::Duplex {
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    let request = DuplexRequest {
        command: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        cwd: None,
    };
    let opened = within(LIMIT, "a duplex", runner.open_duplex(request)).await;
    opened.expect("the fake has a terminal")
}

#[tokio::test]
async fn a_slow_reader_is_dropped_and_its_channel_ends_with_an_error() {
    let settings = Settings {
        outbound_messages: 16,
        ..Settings::default()
    };
    let world = World::with(settings, &json!({})).await;
    let duplex = duplex(&world, "head -c 20000000 /dev/zero; exec sleep 987").await;
    let mut stream = duplex.stream;
    let lease = world.fake.sandboxes()[0].0.clone();

    // Nothing is read until the daemon has let go: then `head` writes to nobody, and ends.
    let sleeps = || {
        let pids = world.fake.processes(&lease);
        let sleeping =
            |pid: &&u32| paperclip_bridge_tests::processes::command_line(**pid).starts_with(b"sleep\x00987");
        pids.iter().find(sleeping).map(drop)
    };
    eventually(LIMIT, "the daemon drops the reader", sleeps).await;
    let mut all = vec![];
    let read = within(LIMIT, "the end of the channel", stream.read_to_end(&mut all)).await;

    let error = read.expect_err("bytes are missing");
    assert!(error.to_string().contains("too slowly"), "{error}");
    assert!(all.len() < 20_000_000);
}

#[tokio::test]
async fn a_cut_channel_is_an_error_and_its_command_is_ended() {
    let world = World::new(&json!({})).await;
    let mut stream = duplex(&world, "echo ready; exec sleep 987").await.stream;
    let mut ready = [0; 6];
    stream.read_exact(&mut ready).await.unwrap();

    world.fake.drop_sockets();
    let read = within(LIMIT, "the end of the channel", stream.read_to_end(&mut vec![])).await;

    read.expect_err("a lost connection is no end");
    let lease = world.fake.sandboxes()[0].0.clone();
    let ended = || world.fake.processes(&lease).is_empty().then_some(());
    eventually(LIMIT, "the terminal is ended", ended).await;
}

#[tokio::test]
async fn a_command_that_fails_ends_its_channel_without_an_error() {
    for daemon in [Daemon::Newer, Daemon::Old] {
        let settings = Settings {
            daemon,
            ..Settings::default()
        };
        let world = World::with(settings, &json!({})).await;
        let mut stream = duplex(&world, "read line; echo \"$line\"; exit 7").await.stream;

        stream.write_all(b"last words\n").await.unwrap();
        let mut all = String::new();
        let read = within(LIMIT, "the end", stream.read_to_string(&mut all)).await;

        read.expect("an exit is an end");
        assert_eq!(all, "last words\n", "{daemon:?}");
    }
}

#[tokio::test]
async fn a_terminal_that_cannot_be_joined_is_not_left_behind() {
    let world = World::new(&json!({})).await;
    let lease = world.acquire().await;
    let runner = world.provider.runner(&lease).unwrap();
    world.fake.fail("/connect", Fault::Status(502), 1);

    let request = DuplexRequest {
        command: "cat".to_owned(),
        ..DuplexRequest::default()
    };
    runner.open_duplex(request).await.unwrap_err();

    assert_eq!(
        world.calls("DELETE /toolbox").len(),
        2,
        "the terminal and its files"
    );
    let ended = || world.fake.processes(&lease.id).is_empty().then_some(());
    eventually(LIMIT, "the terminal is ended", ended).await;
}
