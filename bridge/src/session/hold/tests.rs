//! What may be sent while a hold is late, and while the store does not do what it is asked.

use std::task::Poll;

use futures_util::{FutureExt as _, poll};

use super::tenure::WAITING;
use super::*;
use crate::store::fake::{Does, Fake};

/// A moment long ago, so that the deadline of what was asked for then is over.
const LONG_AGO: BootTime = BootTime(0);

fn held(store: &Arc<Fake>, sent: BootTime) -> (Arc<Tenure>, Arc<Hold>) {
    let tenure = Tenure::new(Arc::clone(store) as _);
    let hold = tenure.hold(store.claim(), sent);
    (tenure, hold)
}

fn entry() -> NewEntry {
    NewEntry {
        request_id: Uuid::now_v7(),
        idempotency_key: None,
        method: "POST".to_owned(),
        route: "/api/x".to_owned(),
        path: "/api/x".to_owned(),
    }
}

fn answered() -> Outcome {
    Outcome::Answered { status: 201 }
}

/// Whether somebody was called to look after the holds.
fn is_rung(tenure: &Tenure) -> bool {
    tenure.look.notified().now_or_never().is_some()
}

#[tokio::test]
async fn nothing_is_entered_once_the_deadline_is_over() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, LONG_AGO);

    let entered = hold.enter(&entry()).await;

    assert_eq!(entered, Err(NotServed::NotOwner));
    assert!(store.asked("dispatch").is_empty() && is_rung(&tenure));
    assert!(!tenure.is_broken() && tenure.waiting() == 0);
}

#[tokio::test]
async fn nothing_is_entered_once_the_hold_is_lost() {
    let store = Fake::shared();
    let (_, hold) = held(&store, BootTime::now());

    assert!(hold.lose() && !hold.lose());

    assert_eq!(hold.enter(&entry()).await, Err(NotServed::NotOwner));
    assert!(store.asked("dispatch").is_empty());
}

#[tokio::test]
async fn alone_with_its_store_a_daemon_has_no_deadline() {
    let store = Fake::alone();
    let (_, hold) = held(&store, LONG_AGO);

    assert_eq!(hold.enter(&entry()).await, Ok(()));
}

#[tokio::test]
async fn what_the_store_does_not_enter_is_not_sent() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    store.does("dispatch", Does::No);

    let entered = hold.enter(&entry()).await;

    assert_eq!(entered, Err(NotServed::NotOwner));
    assert!(is_rung(&tenure), "somebody looks whether it is another daemon's");
    assert!(!tenure.is_broken(), "the store has answered");
    assert_eq!(tenure.waiting(), 0, "and there is no entry to settle");
}

#[tokio::test]
async fn after_a_failure_the_store_is_not_asked_until_it_is_seen_to_work() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    let (first, second, third) = (entry(), entry(), entry());
    store.does("dispatch", Does::Fails);

    assert_eq!(hold.enter(&first).await, Err(NotServed::Unwritten));
    assert!(tenure.is_broken() && is_rung(&tenure));
    assert!(tenure.fault().is_some());
    store.does("dispatch", Does::Yes);
    assert_eq!(hold.enter(&second).await, Err(NotServed::Unwritten));

    assert_eq!(store.asked("dispatch"), [first.request_id.to_string()]);
    tenure.works();
    assert_eq!(tenure.fault(), None);
    assert_eq!(hold.enter(&third).await, Ok(()));
    // The first may have been entered all the same, so it is said that it was not sent.
    tenure.settle_waiting().await;
    assert_eq!(store.asked("settle"), [format!("{} not_sent", first.request_id)]);
}

#[tokio::test]
async fn a_hold_that_became_late_while_the_store_was_asked_sends_nothing_and_says_so() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    let gate = store.waits("dispatch", true);
    let entry = entry();
    let mut entering = Box::pin(hold.enter(&entry));
    assert!(poll!(&mut entering).is_pending());

    hold.expire();
    gate.add_permits(1);

    assert_eq!(entering.await, Err(NotServed::NotOwner));
    tenure.settle_waiting().await;
    assert_eq!(store.asked("settle"), [format!("{} not_sent", entry.request_id)]);
}

#[tokio::test]
async fn an_outcome_waits_for_the_store_and_is_settled_once_when_it_works() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    let (failed, broken) = (Uuid::now_v7(), Uuid::now_v7());
    store.does("settle", Does::Fails);

    hold.settle(failed, answered()).await;
    hold.settle(broken, answered()).await;

    assert_eq!(
        store.asked("settle").len(),
        1,
        "a store that failed is not asked again"
    );
    assert_eq!(tenure.waiting(), 2);
    // It fails once more: what waits keeps its place.
    tenure.settle_waiting().await;
    assert_eq!(tenure.waiting(), 2);
    store.does("settle", Does::Yes);
    tenure.works();
    assert!(tenure.changed.notified().now_or_never().is_some());
    tenure.settle_waiting().await;
    tenure.settle_waiting().await;

    let said = |id: Uuid| format!("{id} answered");
    let settled = store.asked("settle").split_off(2);
    assert_eq!(settled, [said(failed), said(broken)]);
    assert_eq!(tenure.waiting(), 0);
}

#[tokio::test]
async fn no_more_outcomes_wait_than_there_is_room_for() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    tenure.fails(&StoreError::Closed);

    for _ in 0..WAITING + 3 {
        hold.settle(Uuid::now_v7(), answered()).await;
    }

    assert_eq!(tenure.waiting(), WAITING);
    assert!(store.asked("settle").is_empty());
}

#[tokio::test]
async fn a_renewal_never_shortens_what_was_held() {
    let store = Fake::shared();
    let now = BootTime::now();
    let (tenure, hold) = held(&store, now);
    let until = hold.until();

    hold.renewed(LONG_AGO);
    assert_eq!(hold.until(), until);
    // Answers may overtake each other: the one that was asked for later counts.
    let later = now.after(Duration::from_secs(1));
    hold.renewed(later);
    hold.renewed(now);

    assert_eq!(hold.until(), tenure.deadline(later));
    assert!(hold.until() > until);
}

#[tokio::test]
async fn whether_an_answer_arrived_is_not_written_to_a_store_that_failed() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());
    let id = Uuid::now_v7();
    tenure.fails(&StoreError::Closed);

    hold.delivered(id, true).await;
    tenure.works();
    hold.delivered(id, true).await;

    assert_eq!(store.asked("delivered"), [format!("{id} true")]);
}

#[tokio::test]
async fn a_change_is_taken_once_by_whoever_writes_it() {
    let store = Fake::shared();
    let (tenure, hold) = held(&store, BootTime::now());

    hold.changes();
    hold.changes();

    assert!(hold.take_change() && !hold.take_change());
    let mut rung = Box::pin(tenure.changed.notified());
    assert_eq!(poll!(&mut rung), Poll::Ready(()));
}
