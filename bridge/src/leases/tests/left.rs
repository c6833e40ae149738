//! What a killed process leaves, and what those after it make of it.

use super::*;

/// A process that is killed while it holds a lease: its tasks and locks go with its runtime.
fn killed_while_holding(folder: &Path, cloud: &Cloud) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let process = Process::new(folder, cloud);
    let lease = runtime.block_on(process.acquire()).unwrap();
    // A runtime that is gone runs no task any more; what is dropped then asks in vain.
    drop(runtime);
    drop(lease);
    process.killed();
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

#[test]
fn a_lease_of_a_killed_process_is_given_back_by_the_next_one() {
    let (folder, cloud) = world();
    killed_while_holding(folder.path(), &cloud);
    assert_eq!(cloud.calls("release"), Vec::<String>::new());

    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        assert_eq!(next.stages().await, held("s1"));

        let reaped = next.reap().await;

        assert_eq!(
            reaped,
            [GaveBack::Confirmed(runners::provider::Released::Destroyed)]
        );
        assert_eq!(cloud.calls("release"), ["release s1"]);
        assert_eq!(next.stages().await, []);
    });
}

#[test]
fn a_process_killed_between_release_and_its_answer_does_not_have_it_released_twice() {
    let (folder, cloud) = world();
    killed_while_holding(folder.path(), &cloud);
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        // As the record stands and the cloud is when the kill comes after the effect.
        let name = next.book.lines().await.unwrap().remove(0).name;
        let mut entry = next.book.take(&name).await.unwrap().unwrap();
        entry.record.stage = Stage::Owed;
        entry.write().unwrap();
        drop(entry);
        cloud.remove("s1");

        next.reap().await;

        assert_eq!(cloud.calls("release"), Vec::<String>::new());
        assert_eq!(next.stages().await, []);
    });
}

#[test]
fn what_is_owed_is_tried_again_until_the_provider_confirms() {
    let (folder, cloud) = world();
    killed_while_holding(folder.path(), &cloud);
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        cloud.plan(
            "release",
            [
                unreachable(),
                Plan::Fail(ProviderError::Refused("key expired".into())),
            ],
        );

        next.reap().await;
        next.reap().await;
        let record = next.book.lines().await.unwrap().remove(0).record.unwrap();
        assert_eq!((record.stage, record.debt.attempts), (Stage::Owed, 2));
        assert!(record.debt.last_error.unwrap().contains("key expired"));
        assert!(record.debt.next.unwrap() > SystemTime::now());
        next.reap().await;

        assert_eq!(next.stages().await, []);
        assert_eq!(cloud.sandboxes(), Vec::<String>::new());
    });
}

#[test]
fn nobody_reaps_what_a_process_that_lives_holds() {
    let (folder, cloud) = world();
    on_a_runtime(async {
        let (one, other) = (
            Process::new(folder.path(), &cloud),
            Process::new(folder.path(), &cloud),
        );
        let lease = one.acquire().await.unwrap();

        assert_eq!(other.reap().await, []);
        assert!(
            !other
                .book
                .forget(&other.book.lines().await.unwrap().remove(0).name)
                .await
                .unwrap()
        );

        assert_eq!(cloud.calls("release"), Vec::<String>::new());
        lease.give_back().await.unwrap();
    });
}

#[test]
fn two_that_reap_at_once_give_a_lease_back_once() {
    let (folder, cloud) = world();
    for _ in 0..5 {
        killed_while_holding(folder.path(), &cloud);
    }
    on_a_runtime(async {
        let (one, other) = (
            Process::new(folder.path(), &cloud),
            Process::new(folder.path(), &cloud),
        );

        let (first, second) = tokio::join!(one.reap(), other.reap());

        assert_eq!(first.len() + second.len(), 5);
        let mut released = cloud.calls("release");
        released.sort();
        released.dedup();
        assert_eq!(released.len(), 5);
        assert_eq!(cloud.calls("release").len(), 5);
    });
}

#[test]
fn an_expired_lease_is_lost_and_not_retried_for_ever() {
    let (folder, cloud) = world();
    cloud.expires_after(Duration::ZERO);
    killed_while_holding(folder.path(), &cloud);
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        cloud.plan("release", [unreachable()]);

        let reaped = next.reap().await;

        assert!(
            matches!(reaped.as_slice(), [GaveBack::Nothing(why)] if why.contains("expired")),
            "{reaped:?}"
        );
        assert_eq!(next.stages().await, []);
    });
}

#[test]
fn a_lease_of_a_killed_process_can_be_resumed_and_is_then_not_reaped() {
    let (folder, cloud) = world();
    killed_while_holding(folder.path(), &cloud);
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);

        let lease = next.resume("s1").await.unwrap();
        assert_eq!(next.reap().await, []);
        lease.give_back().await.unwrap();

        assert_eq!(cloud.calls("release"), ["release s1"]);
        assert_eq!(next.stages().await, []);
    });
}

/// A process that is killed while it has somebody else's sandbox.
fn killed_while_borrowing(folder: &Path, cloud: &Cloud, id: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let process = Process::new(folder, cloud);
    let lease = runtime.block_on(process.resume(id)).unwrap();
    drop(runtime);
    drop(lease);
    process.killed();
}

#[test]
fn what_a_killed_process_had_borrowed_is_left_as_it_is() {
    let (folder, cloud) = world();
    cloud.add("s9", "run-0");
    killed_while_borrowing(folder.path(), &cloud, "s9");
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        assert_eq!(next.stages().await, held("s9"));

        let reaped = next.reap().await;

        assert_eq!(reaped, [GaveBack::Borrowed]);
        assert_never_ended(&cloud, "s9");
        assert_eq!(next.stages().await, []);
    });
}

#[test]
fn what_a_killed_process_had_borrowed_is_borrowed_again_by_its_name_and_by_its_run() {
    for by_run in [false, true] {
        let (folder, cloud) = world();
        cloud.add("s9", "run-0");
        killed_while_borrowing(folder.path(), &cloud, "s9");
        on_a_runtime(async {
            let next = Process::new(folder.path(), &cloud);
            let lease = if by_run {
                let name = next.book.lines().await.unwrap().remove(0).name;
                let session = folder.path().join("leases").join(name).join("session");
                std::fs::create_dir(&session).unwrap();
                std::fs::write(session.join("session.json"), "{}").unwrap();
                let config = ProviderConfig::default();
                let mut wish = next.wish(&config, None, "run-2");
                wish.go_on = true;
                next.leases.hold(&next.book, wish).await.unwrap()
            } else {
                next.resume("s9").await.unwrap()
            };
            assert_eq!(lease.lease.id, "s9");
            lease.give_back().await.unwrap();

            assert_never_ended(&cloud, "s9");
            assert_eq!(next.stages().await, []);
        });
    }
}

#[test]
fn a_probe_takes_nothing_out_of_the_book_and_ends_nothing() {
    for made in [true, false] {
        let (folder, cloud) = world();
        if made {
            killed_while_holding(folder.path(), &cloud);
        } else {
            cloud.add("s1", "run-0");
        }
        on_a_runtime(async {
            let next = Process::new(folder.path(), &cloud);
            let before = next.stages().await;

            let config = ProviderConfig::default();
            let mut wish = next.wish(&config, Some("s1"), "run-2");
            wish.probed = true;
            let lease = next.leases.hold(&next.book, wish).await.unwrap();
            lease.give_back().await.unwrap();

            assert_never_ended(&cloud, "s1");
            assert_eq!(cloud.calls("let_go"), Vec::<String>::new());
            assert_eq!(next.stages().await, before);
        });
    }
}

#[test]
fn a_killed_runs_lease_is_gone_on_with_where_its_session_was_written_down() {
    for written in [true, false] {
        let (folder, cloud) = world();
        killed_while_holding(folder.path(), &cloud);
        on_a_runtime(async {
            let next = Process::new(folder.path(), &cloud);
            if written {
                let name = next.book.lines().await.unwrap().remove(0).name;
                let session = folder.path().join("leases").join(name).join("session");
                std::fs::create_dir(&session).unwrap();
                std::fs::write(session.join("session.json"), "{}").unwrap();
            }

            let config = ProviderConfig::default();
            let mut wish = next.wish(&config, None, "run-1");
            wish.go_on = true;
            let lease = next.leases.hold(&next.book, wish).await.unwrap();

            assert_eq!(lease.lease.id, if written { "s1" } else { "s2" });
            drop(lease);
        });
    }
}

#[test]
fn an_acquire_whose_answer_was_lost_is_looked_for_and_ended() {
    let (folder, cloud) = world();
    cloud.finds_runs();
    cloud.plan("acquire", [Plan::LoseAnswer]);
    cloud.add("elsewhere", "run-7");
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        let failed = process.acquire().await.unwrap_err();
        assert!(failed.to_string().contains("the outcome is unknown"), "{failed}");
        assert_eq!(process.stages().await, [(Stage::Acquiring, None)]);

        process.reap().await;

        assert_eq!(cloud.calls("destroy"), ["destroy s1"]);
        assert_eq!(cloud.sandboxes(), ["elsewhere"]);
        assert_eq!(process.stages().await, []);
    });
}

#[test]
fn an_acquire_whose_answer_was_lost_is_asked_again_under_its_name_and_ended() {
    let (folder, cloud) = world();
    cloud.repeats_acquire();
    cloud.add("elsewhere", "run-1");
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        cloud.plan("acquire", [Plan::LoseAnswer]);
        process.acquire().await.unwrap_err();
        // Also where the answer to the end is lost: what was given back is not made again.
        cloud.plan("destroy", [Plan::LoseAnswer]);

        let first = process.reap().await;
        let second = process.reap().await;

        assert!(matches!(first.as_slice(), [GaveBack::Owed { .. }]), "{first:?}");
        assert!(matches!(second.as_slice(), [GaveBack::Nothing(_)]), "{second:?}");
        assert_eq!(cloud.sandboxes(), ["elsewhere"]);
        assert_eq!(process.stages().await, []);
    });
}

#[test]
fn an_acquire_that_never_arrived_leaves_nothing_when_it_is_asked_again() {
    let (folder, cloud) = world();
    cloud.repeats_acquire();
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        cloud.plan("acquire", [Plan::Fail(ProviderError::Unknown("cut".into()))]);
        process.acquire().await.unwrap_err();

        let reaped = process.reap().await;

        assert!(
            matches!(reaped.as_slice(), [GaveBack::Confirmed(_)]),
            "{reaped:?}"
        );
        assert_eq!((cloud.sandboxes(), process.stages().await), (vec![], vec![]));
    });
}

#[test]
fn a_sandbox_that_another_entry_speaks_of_is_not_the_one_that_is_looked_for() {
    let (folder, cloud) = world();
    cloud.finds_runs();
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        let lease = process.acquire().await.unwrap();
        cloud.plan("acquire", [Plan::Fail(ProviderError::Unknown("cut".into()))]);
        process.acquire().await.unwrap_err();

        let reaped = process.reap().await;

        assert!(
            matches!(reaped.as_slice(), [GaveBack::Owed { why, .. }] if why.contains("looked for again")),
            "{reaped:?}"
        );
        assert_eq!(cloud.sandboxes(), ["s1"]);
        lease.give_back().await.unwrap();
    });
}

#[test]
fn what_cannot_be_looked_for_stays_in_the_book_until_the_operator_strikes_it_off() {
    let (folder, cloud) = world();
    cloud.plan("acquire", [Plan::LoseAnswer]);
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        process.acquire().await.unwrap_err();

        let reaped = process.reap().await;
        assert!(
            matches!(reaped.as_slice(), [GaveBack::Owed { why, .. }] if why.contains("leases forget")),
            "{reaped:?}"
        );
        let name = process.book.lines().await.unwrap().remove(0).name;
        assert!(!process.book.forget("../leases").await.unwrap());
        assert!(process.book.forget(&name).await.unwrap());

        assert_eq!(process.stages().await, []);
    });
}

#[test]
fn what_a_kill_left_half_written_is_nothing_and_what_is_not_understood_is_told() {
    let (folder, cloud) = world();
    on_a_runtime(async {
        let process = Process::new(folder.path(), &cloud);
        let leases = folder.path().join("leases");
        std::fs::create_dir(leases.join("cloud-new-1")).unwrap();
        std::fs::create_dir(leases.join("cloud-broken")).unwrap();
        std::fs::write(leases.join("cloud-broken/lease.json"), "{ broken").unwrap();

        let lines = process.book.lines().await.unwrap();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].record.is_err() && !leases.join("cloud-new-1").exists());
        let reaped = process.reap().await;

        assert!(
            matches!(reaped.as_slice(), [GaveBack::Owed { why, .. }] if why.contains("lease.json is no record")),
            "{reaped:?}"
        );
        assert!(leases.join("cloud-broken").exists());
    });
}

#[test]
fn a_task_looks_through_the_book_while_a_session_lasts() {
    let (folder, cloud) = world();
    killed_while_holding(folder.path(), &cloud);
    on_a_runtime(async {
        let next = Process::new(folder.path(), &cloud);
        cloud.plan("release", [unreachable()]);
        let provider = cloud.provider();

        next.leases.reap(Reaper::new(
            next.book.clone(),
            Box::new(move |_| Ok(Arc::clone(&provider))),
        ));

        eventually("the lease is released at the second attempt", async || {
            cloud.calls("release").len() == 1
        })
        .await;
        // The waits are by the clock of the system, which does not stand still here: put it back.
        let name = next.book.lines().await.unwrap().remove(0).name;
        eventually("the first pass is over", async || {
            let Ok(Some(mut entry)) = next.book.take(&name).await else {
                return false;
            };
            entry.record.debt.next = None;
            entry.write().unwrap();
            true
        })
        .await;
        eventually("the next pass gives it back", async || {
            next.stages().await.is_empty()
        })
        .await;
        next.leases.settle().await;
    });
}
