//! Who owns a session.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bridge::store::{EntryOutcome, Fence, SessionRow};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::ground::{GUARD, Ground, LONG, NONE, at, entry, session};

pub(super) async fn of_many_claimants_at_once_one_has_the_session(ground: Ground) {
    let first = ground.owned().await;
    assert!(ground.a.release(&first).await.unwrap());
    let mut claimants = JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(if number % 2 == 0 { &ground.a } else { &ground.b });
        claimants.spawn(async move { store.claim(first.session, Uuid::now_v7(), LONG).await.unwrap() });
    }

    let claims: Vec<_> = claimants.join_all().await.into_iter().flatten().collect();

    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(claims[0].fence, Fence(2));
    let owner = ground.a.session(first.session).await.unwrap().unwrap().hold.owner;
    assert_eq!(owner, Some(claims[0].daemon));
}

pub(super) async fn many_daemons_that_take_over_at_once_never_take_the_same_session(ground: Ground) {
    for _ in 0..40 {
        ground.owned_for(NONE).await;
    }
    let mut daemons = JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(if number % 2 == 0 { &ground.a } else { &ground.b });
        daemons.spawn(async move { store.take_over(Uuid::now_v7(), LONG, 10).await.unwrap() });
    }

    let mut taken: Vec<_> = daemons.join_all().await.into_iter().flatten().collect();
    // What was locked by another at that moment was left to it; nothing is left for good.
    taken.extend(ground.a.take_over(Uuid::now_v7(), LONG, 100).await.unwrap());

    let ids: HashSet<_> = taken.iter().map(|(claim, _)| claim.session).collect();
    assert_eq!((taken.len(), ids.len()), (40, 40));
    assert!(taken.iter().all(|(claim, row)| claim.fence == Fence(2)
        && row.hold.owner == Some(claim.daemon)
        && row.id == claim.session));
}

pub(super) async fn a_session_whose_owner_lives_is_not_taken(ground: Ground) {
    let claim = ground.owned().await;

    assert_eq!(
        ground.b.claim(claim.session, ground.theirs, LONG).await.unwrap(),
        None
    );
    assert_eq!(ground.b.take_over(ground.theirs, LONG, 10).await.unwrap(), []);
    assert_eq!(ground.b.resume(ground.theirs, LONG).await.unwrap(), []);
    assert!(ground.a.dispatch(&claim, &entry(None)).await.unwrap());
}

/// Nobody tells the store the time: the lease runs by the database's own clock.
pub(super) async fn a_lease_that_ran_out_is_taken_and_adds_one_to_the_fence(ground: Ground) {
    let claim = ground.owned_for(Duration::from_millis(300)).await;
    let started = std::time::Instant::now();

    let (taken, row) = loop {
        let taken = ground.b.take_over(ground.theirs, LONG, 10).await.unwrap();
        if let Some(taken) = taken.into_iter().next() {
            break taken;
        }
        assert!(started.elapsed() < GUARD, "it was never taken");
        tokio::task::yield_now().await;
    };

    assert_eq!((taken.session, taken.fence), (claim.session, Fence(2)));
    assert_eq!((row.hold.owner, row.hold.fence), (Some(ground.theirs), Fence(2)));
}

pub(super) async fn a_writer_that_lost_its_session_is_refused(ground: Ground) {
    let row = session();
    let old = ground.a.create(&row, ground.ours, LONG).await.unwrap();
    let left = ground.dispatched(&old, None).await;
    let new = ground.taken_from(&old).await;

    let changed = SessionRow {
        state: "ended".to_owned(),
        ended_at: Some(at(1)),
        ..row
    };
    let answered = EntryOutcome::Answered { status: 201 };
    assert!(!ground.a.save(&old, &changed).await.unwrap());
    assert!(!ground.a.dispatch(&old, &entry(None)).await.unwrap());
    assert!(!ground.a.settle(&old, left, &answered).await.unwrap());
    assert!(!ground.a.delivered(&old, left, true).await.unwrap());
    assert_eq!(ground.a.mark_indeterminate(&old, "late").await.unwrap(), 0);
    assert!(ground.a.renew(&[old], LONG).await.unwrap().is_empty());
    assert!(!ground.a.release(&old).await.unwrap());

    let read = ground.b.session(old.session).await.unwrap().unwrap();
    assert_eq!(
        (read.state.as_str(), read.hold.owner),
        ("ready", Some(ground.theirs))
    );
    assert_eq!(ground.entry(left).await.outcome, EntryOutcome::InFlight);
    assert!(ground.b.dispatch(&new, &entry(None)).await.unwrap());
}

pub(super) async fn a_restarted_daemon_takes_back_its_own_at_once_under_a_higher_fence(ground: Ground) {
    let before = ground.owned().await;
    let local = SessionRow {
        anywhere: false,
        ..session()
    };
    let local = ground.a.create(&local, ground.ours, LONG).await.unwrap();
    let other = ground.a.create(&session(), ground.theirs, LONG).await.unwrap();

    let resumed = ground.a.resume(ground.ours, LONG).await.unwrap();

    let ids: HashSet<_> = resumed.iter().map(|(claim, _)| claim.session).collect();
    assert_eq!(ids, HashSet::from([before.session, local.session]));
    assert!(resumed.iter().all(|(claim, _)| claim.fence == Fence(2)));
    assert!(
        !ground.a.dispatch(&before, &entry(None)).await.unwrap(),
        "the predecessor writes no more"
    );
    assert!(ground.b.dispatch(&other, &entry(None)).await.unwrap());
}

pub(super) async fn what_only_one_daemon_can_serve_is_not_taken_by_another(ground: Ground) {
    let local = SessionRow {
        anywhere: false,
        ..session()
    };
    let claim = ground.a.create(&local, ground.ours, NONE).await.unwrap();

    assert_eq!(ground.b.take_over(ground.theirs, LONG, 10).await.unwrap(), []);

    let taken = ground.a.take_over(ground.ours, LONG, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].0.session, taken[0].0.fence), (claim.session, Fence(2)));
}

pub(super) async fn a_session_given_up_is_taken_at_once(ground: Ground) {
    let claim = ground.owned().await;

    assert!(ground.a.release(&claim).await.unwrap());

    assert!(!ground.a.dispatch(&claim, &entry(None)).await.unwrap());
    let taken = ground.b.take_over(ground.theirs, LONG, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].0.fence, Fence(2));
}

pub(super) async fn an_ended_session_is_nobodys(ground: Ground) {
    let row = session();
    let claim = ground.a.create(&row, ground.ours, NONE).await.unwrap();
    let ended_at = Some(at(1));
    assert!(
        ground
            .a
            .save(&claim, &SessionRow { ended_at, ..row })
            .await
            .unwrap()
    );

    assert_eq!(
        ground.a.claim(claim.session, ground.ours, LONG).await.unwrap(),
        None
    );
    assert_eq!(ground.b.take_over(ground.theirs, LONG, 10).await.unwrap(), []);
    assert_eq!(ground.a.resume(ground.ours, LONG).await.unwrap(), []);
    assert!(ground.a.renew(&[claim], LONG).await.unwrap().is_empty());
}

pub(super) async fn a_late_renewal_holds_unless_somebody_was_faster(ground: Ground) {
    let kept = ground.owned_for(NONE).await;
    assert_eq!(ground.a.renew(&[kept], LONG).await.unwrap(), [kept.session]);
    let lost = ground.owned_for(NONE).await;
    let _new = ground
        .b
        .claim(lost.session, ground.theirs, LONG)
        .await
        .unwrap()
        .unwrap();

    let renewed = ground.a.renew(&[kept, lost], LONG).await.unwrap();

    assert_eq!(renewed, [kept.session]);
    assert!(ground.a.dispatch(&kept, &entry(None)).await.unwrap());
    assert!(ground.a.renew(&[], LONG).await.unwrap().is_empty());
}
