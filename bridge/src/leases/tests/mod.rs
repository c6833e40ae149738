//! The life of leases against a provider that fails on command; the book of each test is a real folder.

mod cloud;
mod left;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use cloud::{Cloud, Plan, SPEC};

const LIMIT: Duration = Duration::from_secs(30);

/// One process's view of a state folder and a cloud.
struct Process {
    leases: Leases,
    book: LeaseBook,
    cloud: Cloud,
}

impl Process {
    fn new(folder: &Path, cloud: &Cloud) -> Self {
        Self {
            leases: Leases::default(),
            book: LeaseBook::open(folder).unwrap(),
            cloud: cloud.clone(),
        }
    }

    fn wish<'a>(&self, config: &'a ProviderConfig, id: Option<&'a str>, run: &str) -> Wish<'a> {
        Wish {
            spec: &SPEC,
            provider: self.cloud.provider(),
            config,
            scope: LeaseScope {
                run_id: run.to_owned(),
                ..LeaseScope::default()
            },
            id,
            probed: false,
            returns: false,
            go_on: false,
        }
    }

    async fn acquire(&self) -> Result<HeldLease, LeaseError> {
        self.leases
            .hold(&self.book, self.wish(&ProviderConfig::default(), None, "run-1"))
            .await
    }

    async fn resume(&self, id: &str) -> Result<HeldLease, LeaseError> {
        self.leases
            .hold(
                &self.book,
                self.wish(&ProviderConfig::default(), Some(id), "run-2"),
            )
            .await
    }

    /// Ends as a killed process does, without a chance to do anything.
    fn killed(self) {
        drop(self);
    }

    async fn stages(&self) -> Vec<(Stage, Option<String>)> {
        let lines = self.book.lines().await.unwrap();
        lines
            .into_iter()
            .map(|line| line.record.unwrap())
            .map(|record| (record.stage, record.id().map(str::to_owned)))
            .collect()
    }

    async fn reap(&self) -> Vec<GaveBack> {
        let provider = self.cloud.provider();
        let reaper = Reaper::new(self.book.clone(), Box::new(move |_| Ok(Arc::clone(&provider))));
        let all = Which::All { provider: None };
        let reaped = reaper.pass(all, &CancellationToken::new()).await.unwrap();
        reaped.into_iter().map(|one| one.outcome).collect()
    }
}

fn world() -> (TempDir, Cloud) {
    (tempfile::tempdir().unwrap(), Cloud::default())
}

fn unreachable() -> Plan {
    Plan::Fail(ProviderError::Unreachable("no route".into()))
}

fn held(stage: &str) -> Vec<(Stage, Option<String>)> {
    vec![(Stage::Held, Some(stage.to_owned()))]
}

/// Waits for what another task does.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_lease_is_written_down_while_it_is_held_and_given_back_once() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);

    let lease = process.acquire().await.unwrap();
    assert_eq!(process.stages().await, held("s1"));
    lease.give_back().await.unwrap();

    assert_eq!(process.stages().await, []);
    assert_eq!(cloud.calls("release"), ["release s1"]);
    assert_eq!(cloud.sandboxes(), Vec::<String>::new());
}

#[tokio::test]
async fn it_is_written_down_before_the_provider_is_asked() {
    let (folder, cloud) = world();
    cloud.plan("acquire", [Plan::Hang]);
    let process = Process::new(folder.path(), &cloud);

    let waiting = tokio::time::timeout(Duration::from_millis(50), process.acquire()).await;

    assert!(waiting.is_err());
    assert_eq!(process.stages().await, [(Stage::Acquiring, None)]);
}

#[tokio::test]
async fn what_is_dropped_is_given_back() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);

    drop(process.acquire().await.unwrap());
    process.leases.settle().await;

    assert_eq!(cloud.calls("release"), ["release s1"]);
    assert_eq!(process.stages().await, []);
}

#[tokio::test]
async fn a_task_that_panics_gives_its_lease_back() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);
    let lease = process.acquire().await.unwrap();

    let task = tokio::spawn(async move {
        let _lease = lease;
        panic!("on purpose");
    });
    assert!(task.await.is_err());
    process.leases.settle().await;

    assert_eq!(cloud.calls("release"), ["release s1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_waits_for_any_more_is_given_back_when_it_comes() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);

    {
        let acquiring = process.acquire();
        tokio::pin!(acquiring);
        // Begun and dropped before the keeper's task has run.
        assert!(futures_util::poll!(&mut acquiring).is_pending());
        assert_eq!(cloud.calls("acquire"), Vec::<String>::new());
    }
    process.leases.settle().await;

    assert_eq!(cloud.calls("release").len(), cloud.calls("acquire").len());
    assert_eq!(cloud.sandboxes(), Vec::<String>::new());
    assert_eq!(process.stages().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_tried_again_and_the_lease_released_once() {
    let (folder, cloud) = world();
    cloud.plan("release", [unreachable(), unreachable()]);
    let process = Process::new(folder.path(), &cloud);

    process.acquire().await.unwrap().give_back().await.unwrap();

    assert_eq!(cloud.calls("release").len(), 3);
    assert_eq!(process.stages().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_answer_is_lost_is_not_repeated_where_the_lease_is_gone() {
    let (folder, cloud) = world();
    cloud.plan("release", [Plan::LoseAnswer]);
    let process = Process::new(folder.path(), &cloud);

    process.acquire().await.unwrap().give_back().await.unwrap();

    assert_eq!(cloud.calls("release"), ["release s1"]);
    assert_eq!(process.stages().await, []);
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_does_not_confirm_is_owed_and_said_to_be() {
    let (folder, cloud) = world();
    cloud.plan("release", vec![unreachable(); 1000]);
    let process = Process::new(folder.path(), &cloud);

    let owed = process.acquire().await.unwrap().give_back().await.unwrap_err();

    assert!(
        owed.contains("s1") && owed.contains("no route") && owed.contains("leases reap"),
        "{owed}"
    );
    assert_eq!(process.stages().await, [(Stage::Owed, Some("s1".into()))]);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_never_answers_does_not_hold_a_session_up_for_ever() {
    let (folder, cloud) = world();
    cloud.plan("release", [Plan::Hang]);
    let process = Process::new(folder.path(), &cloud);

    let owed = process.acquire().await.unwrap().give_back().await.unwrap_err();

    assert!(owed.contains("owed"), "{owed}");
    assert_eq!(process.stages().await, [(Stage::Owed, Some("s1".into()))]);
}

#[tokio::test]
async fn an_acquire_that_failed_leaves_nothing_in_the_book() {
    for error in [
        ProviderError::Unreachable("no route".into()),
        ProviderError::Refused("quota".into()),
        ProviderError::Busy {
            reason: "later".into(),
            retry_after: None,
        },
        ProviderError::Secret(runners::provider::SecretFault("env:KEY is not set".into())),
    ] {
        let (folder, cloud) = world();
        cloud.plan("acquire", [Plan::Fail(error.clone())]);
        let process = Process::new(folder.path(), &cloud);

        let failed = process.acquire().await.unwrap_err();

        assert!(failed.to_string().contains(&error.to_string()), "{failed}");
        assert_eq!(process.stages().await, [], "{failed}");
        assert_eq!(cloud.calls("release"), Vec::<String>::new());
    }
}

#[tokio::test]
async fn no_two_sessions_take_the_same_lease() {
    let (folder, cloud) = world();
    cloud.add("s9", "run-0");
    // Two processes differ in nothing but their locks, which two books have as well.
    let (one, other) = (
        Process::new(folder.path(), &cloud),
        Process::new(folder.path(), &cloud),
    );

    let held = one.resume("s9").await.unwrap();
    let refused = other.resume("s9").await.unwrap_err();

    assert!(
        matches!(refused, LeaseError::Book(BookError::Taken { .. })),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(
        text.contains("s9 of cloud is taken") && text.contains("run-2"),
        "{text}"
    );
    held.give_back().await.unwrap();
    other.resume("s9").await.unwrap().give_back().await.unwrap();
    assert_eq!(cloud.calls("resume"), ["resume s9", "resume s9"]);
}

#[tokio::test]
async fn a_provider_that_hands_a_lease_out_twice_is_found_out_and_the_first_keeps_it() {
    let (folder, cloud) = world();
    cloud.hands_out("same");
    let process = Process::new(folder.path(), &cloud);

    let first = process.acquire().await.unwrap();
    let second = process.acquire().await.unwrap_err();

    assert!(
        matches!(second, LeaseError::Book(BookError::Taken { .. })),
        "{second}"
    );
    assert_eq!(cloud.calls("release"), Vec::<String>::new());
    assert_eq!(process.stages().await, held("same"));
    first.give_back().await.unwrap();
}

#[tokio::test]
async fn the_same_id_elsewhere_is_another_lease() {
    let (folder, cloud) = world();
    let elsewhere = Cloud::default();
    elsewhere.account("elsewhere");
    let (one, other) = (
        Process::new(folder.path(), &cloud),
        Process::new(folder.path(), &elsewhere),
    );

    let (first, second) = (one.acquire().await.unwrap(), other.acquire().await.unwrap());

    assert_eq!((first.lease.id.as_str(), second.lease.id.as_str()), ("s1", "s1"));
    assert_eq!(one.stages().await.len(), 2);
    first.give_back().await.unwrap();
    assert_eq!(elsewhere.sandboxes(), ["s1"]);
    second.give_back().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_an_operator_names_is_let_go_of_and_nothing_ends_it() {
    let (folder, cloud) = world();
    cloud.add("s9", "run-0");
    let process = Process::new(folder.path(), &cloud);

    let held = process.resume("s9").await.unwrap();
    assert!(held.lease.resumed);
    held.give_back().await.unwrap();
    drop(process.resume("s9").await.unwrap());
    process.leases.settle().await;

    assert_eq!(cloud.calls("let_go"), ["let_go s9", "let_go s9"]);
    assert_never_ended(&cloud, "s9");
    assert_eq!(process.stages().await, []);
}

#[tokio::test]
async fn a_borrowed_lease_that_cannot_be_put_to_rest_is_left_as_it_is_and_not_owed() {
    let (folder, cloud) = world();
    cloud.add("s9", "run-0");
    cloud.plan("let_go", [unreachable()]);
    let process = Process::new(folder.path(), &cloud);

    let told = process.resume("s9").await.unwrap().give_back().await;

    assert_eq!(told, Ok(()));
    assert_never_ended(&cloud, "s9");
    assert_eq!(process.stages().await, []);
}

#[tokio::test]
async fn a_borrowed_lease_that_cannot_be_written_down_or_used_is_not_ended() {
    for in_the_way in [true, false] {
        let (folder, cloud) = world();
        cloud.add("s9", "run-0");
        let process = Process::new(folder.path(), &cloud);
        if in_the_way {
            cloud.plan("resume", [Plan::Hang]);
            let waiting = tokio::time::timeout(Duration::from_millis(50), process.resume("s9")).await;
            assert!(waiting.is_err());
            let name = process.book.lines().await.unwrap().remove(0).name;
            let other = Process::new(&folder.path().join("other"), &cloud);
            std::fs::write(folder.path().join("other/leases").join(&name), "in the way").unwrap();
            other.resume("s9").await.unwrap_err();
        } else {
            cloud.plan("resume", [Plan::LoseAnswer]);
            process.resume("s9").await.unwrap_err();
            assert_eq!(process.stages().await, []);
        }

        assert_never_ended(&cloud, "s9");
    }
}

/// Nobody asked for the end of this sandbox, which is there.
fn assert_never_ended(cloud: &Cloud, id: &str) {
    assert_eq!(cloud.sandboxes(), [id]);
    for call in ["release", "destroy"] {
        assert_eq!(cloud.calls(call), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_named_lease_that_is_gone_is_lost() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);

    let gone = process.resume("s9").await.unwrap_err();

    assert!(
        matches!(
            &gone,
            LeaseError::Provider {
                error: ProviderError::LeaseLost(_),
                ..
            }
        ),
        "{gone}"
    );
    assert_eq!(process.stages().await, []);
}

#[tokio::test]
async fn a_lease_that_cannot_be_written_down_is_ended_at_once() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);
    cloud.hands_out("s1");
    let book = folder.path().join("leases");
    cloud.plan("acquire", []);
    // A file where the lease's own folder belongs.
    let taken = process.acquire().await.unwrap();
    let place = std::fs::read_dir(&book)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    taken.give_back().await.unwrap();
    std::fs::write(&place, "in the way").unwrap();

    let failed = process.acquire().await.unwrap_err();

    assert!(
        matches!(failed, LeaseError::Book(BookError::State(_))),
        "{failed}"
    );
    assert_eq!(cloud.calls("destroy"), ["destroy s1"]);
    assert_eq!(cloud.sandboxes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_shell_that_is_none_is_refused_before_anything_runs_and_the_lease_given_back() {
    let (folder, cloud) = world();
    cloud.shell("fish; rm -rf /");
    let process = Process::new(folder.path(), &cloud);

    let refused = process.acquire().await.unwrap_err();
    process.leases.settle().await;

    assert!(
        refused.to_string().contains("only \"bash\" and \"sh\" are known"),
        "{refused}"
    );
    assert_eq!(cloud.sandboxes(), Vec::<String>::new());
    assert_eq!(process.stages().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_goes_out_at_twice_the_providers_pace() {
    let (folder, cloud) = world();
    cloud.wants_to_hear_every(Duration::from_secs(60));
    let process = Process::new(folder.path(), &cloud);

    let lease = process.acquire().await.unwrap();
    tokio::time::sleep(Duration::from_secs(299)).await;

    assert_eq!(cloud.calls("keep_alive").len(), 10);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_fails_is_tried_again_and_is_no_loss() {
    let (folder, cloud) = world();
    cloud.wants_to_hear_every(Duration::from_secs(60));
    cloud.plan("keep_alive", [unreachable(), unreachable(), unreachable()]);
    let process = Process::new(folder.path(), &cloud);

    let lease = process.acquire().await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;

    assert!(!lease.is_lost());
    assert_eq!(cloud.calls("keep_alive").len(), 4);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_told_apart_by_heartbeat_and_by_command() {
    for by_command in [false, true] {
        let (folder, cloud) = world();
        cloud.wants_to_hear_every(Duration::from_secs(2));
        let process = Process::new(folder.path(), &cloud);
        let lease = process.acquire().await.unwrap();
        let loss = lease.loss();

        if by_command {
            cloud.commands_lose_the_lease();
            let failed = lease
                .runner
                .execute(runners::Execution::new("true", [""; 0]))
                .await;
            assert!(matches!(failed, Err(runners::RunnerError::LeaseLost { .. })));
            assert!(lease.is_lost());
        } else {
            cloud.remove("s1");
        }
        let why = tokio::time::timeout(LIMIT, loss.wait()).await.unwrap();

        let expected = if by_command {
            "the sandbox is gone"
        } else {
            "there is no s1"
        };
        assert_eq!(why, expected);
        lease.give_back().await.unwrap();
        assert_eq!(process.stages().await, []);
    }
}

#[tokio::test]
async fn the_book_says_nothing_of_secrets_but_their_references() {
    let (folder, cloud) = world();
    let process = Process::new(folder.path(), &cloud);
    let mut config = ProviderConfig::default();
    config.0.insert("apiKey".into(), "env:CLOUD_KEY".into());

    let wish = process.wish(&config, None, "run-1");
    let lease = process.leases.hold(&process.book, wish).await.unwrap();

    let line = process.book.lines().await.unwrap().remove(0);
    assert!(line.in_use);
    let record = line.record.unwrap();
    assert_eq!(record.config, config);
    assert!(!format!("{record:?}").contains("CLOUD_KEY"), "{record:?}");
    drop(lease);
}
