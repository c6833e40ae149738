//! Leases over the life and death of daemons: one holder, released once, owed until confirmed.

use std::time::Duration;

use paperclip_bridge_tests::binary::{Bridge, Finished, LIMIT};
use paperclip_bridge_tests::leased::{Leased, kill};
use paperclip_bridge_tests::{Agent, eventually};
use runners::fake::{Call, LeaseState};

const ME: &str = "/api/agents/me";
const SOON: Duration = Duration::from_secs(30);
const NONE: Vec<(String, LeaseState)> = Vec::new();

async fn serves(bridge: &Bridge) {
    let agent = Agent {
        url: bridge.opened.url.clone(),
        token: bridge.opened.token.clone(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
}

async fn kill(bridge: Bridge) {
    bridge.running.signal("KILL");
    bridge.running.finish().await;
}

async fn run(world: &Leased, target: &str, options: &[&str], script: &str) -> Finished {
    world
        .command("run", target)
        .args(options.iter().copied())
        .command(["sh", "-c", script])
        .finish()
        .await
}

#[tokio::test]
async fn a_lease_that_is_named_is_resumed_and_kept_for_use_again() {
    let world = Leased::new().await;
    let keep = ["--provider", "reuseLease=true"];

    let first = run(&world, "fake:", &keep, "echo kept > file").await;
    let id = world.present()[0].0.clone();
    let second = run(&world, &format!("fake:{id}"), &keep, "cat file").await;
    let gone = run(&world, "fake:fake-77", &keep, "true").await;

    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert_eq!(
        (second.code, second.stdout.as_str()),
        (Some(0), "kept\n"),
        "{}",
        second.stderr
    );
    assert_eq!(world.present(), [(id, LeaseState::Stopped)]);
    assert_eq!(gone.code, Some(4), "{}", gone.stderr);
    assert!(gone.stderr.contains("lease_lost"), "{}", gone.stderr);
    assert_eq!(world.calls(Call::Destroy), []);
    assert_eq!(world.entries().len(), 0);
}

#[tokio::test]
async fn a_lease_that_an_operator_names_is_there_afterwards_however_the_session_ends() {
    let world = Leased::new().await;
    run(
        &world,
        "fake:",
        &["--provider", "reuseLease=true"],
        "echo kept > file",
    )
    .await;
    let id = world.present()[0].0.clone();
    let target = format!("fake:{id}");
    let still_there = |released: usize| {
        assert_eq!(world.present(), [(id.clone(), LeaseState::Held)]);
        assert_eq!(world.calls(Call::Release).len(), released);
        assert_eq!(world.calls(Call::Destroy), []);
    };

    let ran = run(&world, &target, &[], "cat file").await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "kept\n"),
        "{}",
        ran.stderr
    );
    still_there(1);
    let stopped = world.open(&target, &[]).await.unwrap();
    stopped.running.signal("TERM");
    stopped.running.finish().await;
    still_there(1);
    let killed = world.open(&target, &[]).await.unwrap();
    kill(killed).await;
    let (_, left) = world.leases(["ls"]).await;
    let (reaped, told) = world.leases(["reap"]).await;

    assert_eq!(left["leases"][0]["borrowed"], true, "{left}");
    assert_eq!(
        (reaped.code, &told["leases"][0]["outcome"]),
        (Some(0), &"left_alone".into()),
        "{told}"
    );
    still_there(1);
    assert_eq!(world.entries().len(), 0);
}

#[tokio::test]
async fn what_our_own_book_made_is_given_back_by_whoever_names_it_after_a_kill() {
    let world = Leased::new().await;
    let killed = world.open("fake:", &[]).await.unwrap();
    let id = world.present()[0].0.clone();
    kill(killed).await;

    let ran = run(&world, &format!("fake:{id}"), &[], "true").await;

    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(world.present(), NONE);
    assert_eq!(world.calls(Call::Release).len(), 1);
    assert_eq!(world.entries().len(), 0);
}

#[tokio::test]
async fn two_sessions_do_not_take_the_same_lease() {
    let world = Leased::new().await;
    let keep = ["--provider", "reuseLease=true"];
    let holder = world.open("fake:", &keep).await.unwrap();
    let id = world.present()[0].0.clone();

    let other = world.open(&format!("fake:{id}"), &keep).await.unwrap_err();

    assert_eq!(other.code, Some(4), "{}", other.stderr);
    for told in ["lease_taken", &id, "another session"] {
        assert!(other.stderr.contains(told), "{}", other.stderr);
    }
    serves(&holder).await;
    assert_eq!(holder.close().await.code, Some(0));
    assert_eq!(world.calls(Call::Release).len(), 1);
}

#[tokio::test]
async fn of_many_sessions_that_want_one_lease_at_once_exactly_one_has_it() {
    let world = Leased::new().await;
    let keep = ["--provider", "reuseLease=true"];
    run(&world, "fake:", &keep, "true").await;
    let target = format!("fake:{}", world.present()[0].0);

    let opened = futures_util::future::join_all((0..6).map(|_| world.open(&target, &keep))).await;

    let (held, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!((held.len(), refused.len()), (1, 5));
    for ended in refused.into_iter().filter_map(Result::err) {
        assert!(ended.stderr.contains("lease_taken"), "{}", ended.stderr);
    }
    for bridge in held.into_iter().flatten() {
        serves(&bridge).await;
        assert_eq!(bridge.close().await.code, Some(0));
    }
}

#[tokio::test]
async fn a_signal_at_any_time_leaves_no_lease() {
    let world = Leased::new().await;
    for latency in [
        r#"latencyMs={"acquire":400}"#,
        r#"latencyMs={"execute":400}"#,
        "duplex=true",
    ] {
        let running = world
            .command("run", "fake:")
            .args(["--provider", latency])
            .command(["sh", "-c", "echo started; sleep 1000"])
            .start();
        eventually(LIMIT, "it has begun", || {
            let begun = match latency {
                latency if latency.contains("acquire") => !world.entries().is_empty(),
                latency if latency.contains("execute") => !world.present().is_empty(),
                _ => running.stdout().contains("started"),
            };
            begun.then_some(())
        })
        .await;

        running.signal("TERM");
        let ended = running.finish().await;

        assert_ne!(ended.code, Some(0), "{latency}");
        assert_eq!(world.present(), NONE, "{latency}: {}", ended.stderr);
        assert_eq!(world.entries().len(), 0, "{latency}: {}", ended.stderr);
    }
    assert_eq!(world.calls(Call::Acquire).len(), world.calls(Call::Release).len());
}

#[tokio::test]
async fn a_lease_lost_under_a_command_ends_the_run_with_125_and_says_so() {
    let world = Leased::new().await;
    let running = world
        .command("run", "fake:")
        .args(["--provider", "expiresAfterMs=3000"])
        .command(["sh", "-c", "echo started; sleep 1000"])
        .start();
    eventually(LIMIT, "the command runs", || {
        running.stdout().contains("started").then_some(())
    })
    .await;
    let id = world.present()[0].0.clone();

    // As somebody at the provider's console would.
    world.end_at_the_provider(&id).await;
    let ended = running.finish().await;

    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    assert!(ended.stderr.contains("lease_lost"), "{}", ended.stderr);
    assert_eq!(world.entries().len(), 0, "{}", ended.stderr);
}

#[tokio::test]
async fn a_lease_lost_under_an_open_session_ends_it_and_says_so() {
    let world = Leased::new().await;
    let bridge = world
        .open("fake:", &["--provider", "expiresAfterMs=3000"])
        .await
        .unwrap();
    serves(&bridge).await;

    world.end_at_the_provider(&world.present()[0].0).await;
    let ended = bridge.running.finish().await;

    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("lease_lost"), "{}", ended.stderr);
    assert_eq!(world.entries().len(), 0, "{}", ended.stderr);
}

#[tokio::test]
async fn a_lease_is_kept_alive_for_longer_than_it_would_live() {
    let world = Leased::new().await;
    let bridge = world
        .open("fake:", &["--provider", "expiresAfterMs=6000"])
        .await
        .unwrap();

    // Every second: by the tenth, more than its life has passed.
    eventually(LIMIT, "ten heartbeats", || {
        (world.calls(Call::KeepAlive).len() >= 10).then_some(())
    })
    .await;

    serves(&bridge).await;
    let ended = bridge.close().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("lease_lost"), "{}", ended.stderr);
}

#[tokio::test]
async fn what_the_provider_does_not_confirm_is_owed_shown_and_reaped_after_a_restart() {
    let world = Leased::new().await;
    let refuses = [r#"fail=[{"call":"release","how":"refused","times":2}]"#];

    let ended = run(&world, "fake:", &["--provider", refuses[0]], "exit 7").await;
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    for told in ["owed", "leases reap", "fake-1"] {
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
    let (_, owed) = world.leases(["ls"]).await;
    assert_eq!(owed["leases"][0]["stage"], "owed", "{owed}");
    assert_eq!(owed["leases"][0]["id"], "fake-1", "{owed}");
    assert_eq!(owed["leases"][0]["attempts"], 1, "{owed}");

    let (still, told) = world.leases(["reap"]).await;
    assert_eq!(
        (still.code, &told["leases"][0]["outcome"]),
        (Some(1), &"owed".into()),
        "{told}"
    );
    let (done, told) = world.leases(["reap"]).await;
    assert_eq!(
        (done.code, &told["leases"][0]["outcome"]),
        (Some(0), &"released".into()),
        "{told}"
    );

    let (_, none) = world.leases(["ls"]).await;
    assert_eq!(none["leases"].as_array().map(Vec::len), Some(0));
    assert_eq!(world.present(), NONE);
}

#[tokio::test]
async fn a_killed_daemons_lease_is_given_back_by_any_later_session_with_the_folder() {
    let world = Leased::new().await;
    let killed = world.open("fake:", &[]).await.unwrap();
    let first = world.present();
    kill(killed).await;
    assert_eq!(world.present(), first);
    let (_, left) = world.leases(["ls"]).await;
    assert_eq!(left["leases"][0]["stage"], "left", "{left}");

    let next = world.open_run("another", "fake:", &[]).await.unwrap();
    eventually(SOON, "the first lease is released", || {
        (!world.present().contains(&first[0])).then_some(())
    })
    .await;
    serves(&next).await;
    assert_eq!(next.close().await.code, Some(0));

    assert_eq!(world.present(), NONE);
    assert_eq!(world.calls(Call::Release).len(), 2);
    assert_eq!(world.entries().len(), 0);
}

#[tokio::test]
async fn twenty_leases_of_killed_daemons_are_released_once_each_or_owed_and_none_is_lost() {
    let killed = kill::round(20, Duration::from_millis(450)).await;

    assert_eq!(killed.violations, Vec::<String>::new(), "{killed:?}");
}

#[tokio::test]
async fn the_same_run_goes_on_with_its_lease_and_its_session_after_a_kill() {
    let world = Leased::new().await;
    let killed = world.open("fake:", &["--tunnel", "queue_v1"]).await.unwrap();
    let first = killed.opened.clone();
    kill(killed).await;

    let second = world.open("fake:", &["--tunnel", "queue_v1"]).await.unwrap();

    assert_eq!(
        (&second.opened.session, &second.opened.url),
        (&first.session, &first.url)
    );
    let agent = Agent {
        url: first.url.clone(),
        token: first.token.clone(),
    };
    assert_eq!(agent.get(ME).await.unwrap().status, 200);
    assert_eq!(second.close().await.code, Some(0));
    assert_eq!(
        (world.calls(Call::Acquire).len(), world.calls(Call::Release).len()),
        (1, 1)
    );
    assert_eq!(world.present(), NONE);
}

#[tokio::test]
async fn an_acquire_whose_answer_was_lost_is_found_and_ended() {
    let world = Leased::new().await;
    let lost = r#"fail=[{"call":"acquire","how":"unknown","times":1,"afterEffect":true}]"#;

    let ended = run(&world, "fake:", &["--provider", lost], "true").await;
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let (reaped, _) = world.leases(["reap"]).await;

    assert_eq!(reaped.code, Some(0), "{}", reaped.stderr);
    assert_eq!(world.calls(Call::Acquire).len(), 1);
    assert_eq!(world.present(), NONE);
    assert_eq!(world.entries().len(), 0);
}

#[tokio::test]
async fn a_configuration_that_no_longer_works_can_be_replaced_when_reaping() {
    let world = Leased::new().await;
    let never = r#"fail=[{"call":"release","how":"refused"}]"#;
    run(&world, "fake:", &["--provider", never], "true").await;

    let (still, _) = world.leases(["reap"]).await;
    let (done, _) = world.leases(["reap", "fake", "--provider", "fail=[]"]).await;

    assert_eq!((still.code, done.code), (Some(1), Some(0)));
    assert_eq!(world.present(), NONE);
}

#[tokio::test]
async fn an_entry_that_nobody_can_settle_is_struck_off_by_the_operator_alone() {
    let world = Leased::new().await;
    let never = r#"fail=[{"call":"release","how":"refused"}]"#;
    run(&world, "fake:", &["--provider", never], "true").await;
    let (_, listed) = world.leases(["ls"]).await;
    let entry = listed["leases"][0]["entry"].as_str().unwrap().to_owned();

    let (forgotten, _) = world.leases(["forget", &entry]).await;

    assert_eq!(forgotten.code, Some(0), "{}", forgotten.stderr);
    assert_eq!(world.entries().len(), 0);
}
