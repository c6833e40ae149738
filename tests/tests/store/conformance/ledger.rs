//! The ledger.

use std::sync::Arc;
use std::time::Duration;

use bridge::store::{Claim, EntryOutcome, Fence, SessionRow, Store};
use uuid::Uuid;

use crate::ground::{GUARD, Ground, LONG, NONE, at, entry, session};

const ANSWERED: EntryOutcome = EntryOutcome::Answered { status: 201 };

fn indeterminate(reason: &str) -> EntryOutcome {
    EntryOutcome::Indeterminate {
        reason: reason.to_owned(),
    }
}

pub(super) async fn an_entry_is_committed_under_its_owner_fence_and_lease(ground: Ground) {
    let claim = ground.owned().await;
    let written = entry(Some("k1"));

    assert!(ground.a.dispatch(&claim, &written).await.unwrap());

    let read = ground.entry(written.request_id).await;
    assert_eq!((read.session, read.fence), (claim.session, Fence(1)));
    assert_eq!(read.idempotency_key, written.idempotency_key);
    assert_eq!(
        (read.method, read.route, read.path),
        (written.method, written.route, written.path)
    );
    assert_eq!(
        (read.outcome, read.delivered, read.settled_at),
        (EntryOutcome::InFlight, None, None)
    );
    assert!(
        read.dispatched_at > at(1_700_000_000_000_000),
        "the database's own time"
    );
}

async fn refused(ground: &Ground, claim: &Claim) {
    let entry = entry(None);

    assert!(!ground.a.dispatch(claim, &entry).await.unwrap());

    assert_eq!(ground.a.entry(entry.request_id).await.unwrap(), None);
    assert_eq!(ground.a.recent_entries(claim.session, 50).await.unwrap(), []);
}

pub(super) async fn no_entry_is_written_for_an_old_fence(ground: Ground) {
    let claim = ground.owned().await;
    let fence = Fence(claim.fence.0 - 1);
    refused(&ground, &Claim { fence, ..claim }).await;
    let fence = Fence(claim.fence.0 + 1);
    refused(&ground, &Claim { fence, ..claim }).await;
    let daemon = ground.theirs;
    refused(&ground, &Claim { daemon, ..claim }).await;
    let session = Uuid::now_v7();
    refused(&ground, &Claim { session, ..claim }).await;
}

pub(super) async fn no_entry_is_written_for_a_lease_that_ran_out(ground: Ground) {
    let claim = ground.owned_for(NONE).await;
    refused(&ground, &claim).await;
}

pub(super) async fn no_entry_is_written_for_a_revoked_or_an_ended_session(ground: Ground) {
    let revoked = ground.owned().await;
    assert!(ground.b.revoke(revoked.session).await.unwrap());
    refused(&ground, &revoked).await;

    let row = session();
    let ended = ground.a.create(&row, ground.ours, LONG).await.unwrap();
    let ended_at = Some(at(1));
    assert!(
        ground
            .a
            .save(&ended, &SessionRow { ended_at, ..row })
            .await
            .unwrap()
    );
    refused(&ground, &ended).await;
}

pub(super) async fn the_same_callback_is_never_entered_twice(ground: Ground) {
    let claim = ground.owned().await;
    let entry = entry(None);
    assert!(ground.a.dispatch(&claim, &entry).await.unwrap());
    assert!(
        ground
            .a
            .settle(&claim, entry.request_id, &ANSWERED)
            .await
            .unwrap()
    );

    let again = ground.a.dispatch(&claim, &entry).await;

    assert!(again.is_err(), "{again:?}");
    assert_eq!(ground.entry(entry.request_id).await.outcome, ANSWERED);
}

pub(super) async fn an_outcome_is_written_once(ground: Ground) {
    let claim = ground.owned().await;
    for outcome in [ANSWERED, EntryOutcome::NotSent, indeterminate("answer_lost")] {
        let id = ground.dispatched(&claim, None).await;

        assert!(ground.a.settle(&claim, id, &outcome).await.unwrap());
        assert!(ground.a.delivered(&claim, id, false).await.unwrap());
        assert!(
            !ground
                .a
                .settle(&claim, id, &EntryOutcome::Answered { status: 500 })
                .await
                .unwrap()
        );

        let read = ground.entry(id).await;
        assert_eq!((read.outcome, read.delivered), (outcome, Some(false)));
        assert!(
            read.settled_at >= Some(read.dispatched_at),
            "{:?}",
            read.settled_at
        );
    }
    assert!(!ground.a.settle(&claim, Uuid::now_v7(), &ANSWERED).await.unwrap());
}

pub(super) async fn what_an_earlier_owner_left_in_flight_is_indeterminate_and_stays_so(ground: Ground) {
    let old = ground.owned().await;
    let open = ground.dispatched(&old, Some("k1")).await;
    let settled = ground.dispatched(&old, None).await;
    assert!(ground.a.settle(&old, settled, &ANSWERED).await.unwrap());
    let other = ground.owned().await;
    let unconcerned = ground.dispatched(&other, None).await;
    let new = ground.taken_from(&old).await;
    let ours = entry(None);
    assert!(ground.b.dispatch(&new, &ours).await.unwrap());

    assert_eq!(ground.b.mark_indeterminate(&new, "owner_lost").await.unwrap(), 1);

    assert_eq!(ground.entry(open).await.outcome, indeterminate("owner_lost"));
    assert_eq!(ground.entry(settled).await.outcome, ANSWERED);
    assert_eq!(ground.entry(unconcerned).await.outcome, EntryOutcome::InFlight);
    assert_eq!(
        ground.entry(ours.request_id).await.outcome,
        EntryOutcome::InFlight
    );
    // Nor may the new owner write what belongs to the old fence.
    assert!(!ground.b.settle(&new, open, &ANSWERED).await.unwrap());
    assert!(!ground.a.settle(&old, open, &ANSWERED).await.unwrap());
    assert_eq!(ground.entry(open).await.outcome, indeterminate("owner_lost"));
}

/// Dispatches as fast as it can until it is refused.
async fn dispatch_until_refused(store: Arc<dyn Store>, claim: Claim) -> u32 {
    let mut committed = 0;
    while store.dispatch(&claim, &entry(None)).await.unwrap() {
        committed += 1;
    }
    committed
}

pub(super) async fn a_takeover_between_dispatches_leaves_nothing_in_flight(ground: Ground) {
    for _ in 0..5 {
        let old = ground.owned_for(Duration::from_millis(100)).await;
        let writers: Vec<_> = (0..4)
            .map(|_| tokio::spawn(dispatch_until_refused(Arc::clone(&ground.a), old)))
            .collect();
        let started = std::time::Instant::now();
        let new = loop {
            if let Some(new) = ground.b.claim(old.session, ground.theirs, LONG).await.unwrap() {
                break new;
            }
            assert!(started.elapsed() < GUARD, "it was never taken");
        };
        let marked = ground.b.mark_indeterminate(&new, "owner_lost").await.unwrap();

        let mut committed = 0;
        for writer in writers {
            committed += u64::from(writer.await.unwrap());
        }
        assert_eq!(
            marked, committed,
            "each entry was marked, and none came afterwards"
        );
        assert_eq!(ground.b.mark_indeterminate(&new, "owner_lost").await.unwrap(), 0);
    }
}

pub(super) async fn entries_are_found_by_key_and_newest_first(ground: Ground) {
    let claim = ground.owned().await;
    let other = ground.owned().await;
    let first = ground.dispatched(&claim, Some("k")).await;
    let second = ground.dispatched(&claim, None).await;
    let third = ground.dispatched(&claim, Some("k")).await;
    let _elsewhere = ground.dispatched(&other, Some("k")).await;

    let by_key = ground.b.entry_by_key(claim.session, "k").await.unwrap().unwrap();
    assert_eq!(by_key.request_id, third);
    assert_eq!(ground.b.entry_by_key(claim.session, "K").await.unwrap(), None);
    let recent = ground.b.recent_entries(claim.session, 50).await.unwrap();
    let recent: Vec<_> = recent.into_iter().map(|entry| entry.request_id).collect();
    assert_eq!(recent, [third, second, first]);
    let newest = ground.b.recent_entries(claim.session, 1).await.unwrap();
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].request_id, third);
}

pub(super) async fn old_entries_go_and_those_in_flight_stay(ground: Ground) {
    let claim = ground.owned().await;
    let open = ground.dispatched(&claim, None).await;
    let settled = ground.dispatched(&claim, Some("k")).await;
    assert!(
        ground
            .a
            .settle(&claim, settled, &EntryOutcome::NotSent)
            .await
            .unwrap()
    );

    assert_eq!(ground.a.sweep_entries(LONG).await.unwrap(), 0);
    // Until the clock has moved on, an entry is not older than nothing.
    let started = std::time::Instant::now();
    while ground.a.sweep_entries(NONE).await.unwrap() == 0 {
        assert!(started.elapsed() < GUARD, "it was never swept");
    }

    assert_eq!(ground.a.entry(settled).await.unwrap(), None);
    assert_eq!(ground.a.entry_by_key(claim.session, "k").await.unwrap(), None);
    assert!(ground.a.entry(open).await.unwrap().is_some());
}
