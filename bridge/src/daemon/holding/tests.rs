//! Which entries are kept track of, and what ends with a hold.

use futures_util::poll;
use policy::TokenDigest;

use super::*;
use crate::daemon::state::Standing;
use crate::daemon::tests::kept;
use crate::store::Fence;
use crate::store::fake::{Does, Fake};

fn holding(store: &Arc<Fake>) -> Holding {
    let place = DaemonPlace {
        address: "tcp:bridge.example:4410".to_owned(),
        host: "bridge".to_owned(),
        version: "1".to_owned(),
        started_at: std::time::UNIX_EPOCH,
    };
    Holding::new(
        Arc::clone(store) as _,
        Duration::ZERO,
        Arc::default(),
        Some(place),
    )
}

/// A session that this daemon owns under this fence, as it is kept track of.
fn held(holding: &Holding, kept: Kept, fence: i64) -> Arc<Entry> {
    let claim = Claim {
        session: kept.session,
        daemon: holding.tenure.store.daemon(),
        fence: Fence(fence),
    };
    let hold = holding.tenure.hold(claim, BootTime::now());
    let entry = Entry::new(kept, Arc::default(), Some(hold), TokenDigest::of(b"token"), None);
    holding.holds(&entry);
    entry
}

fn is_held(holding: &Holding, entry: &Arc<Entry>) -> bool {
    let held = holding.held();
    held.get(&entry.id()).is_some_and(|now| Arc::ptr_eq(now, entry))
}

fn ending(entry: &Entry) -> Option<Ending> {
    entry.ending().borrow().clone()
}

#[tokio::test]
async fn a_session_that_was_taken_back_meanwhile_is_not_forgotten_with_its_lost_hold() {
    let store = Fake::shared();
    let holding = holding(&store);
    let (first, lost) = (held(&holding, kept(), 1), held(&holding, kept(), 1));
    lost.hold().unwrap().lose();
    let gate = store.waits("save", true);
    let mut writing = Box::pin(holding.write_once());
    assert!(poll!(&mut writing).is_pending());
    assert_eq!(store.asked("save"), [first.id().to_string()]);

    let again = held(&holding, lost.kept.clone(), 3);
    gate.add_permits(10);
    writing.await;

    assert!(is_held(&holding, &again), "nobody would renew it");
    assert_eq!(ending(&again), None);
}

#[tokio::test]
async fn a_session_whose_hold_is_lost_is_forgotten() {
    let store = Fake::shared();
    let holding = holding(&store);
    let lost = held(&holding, kept(), 1);
    lost.hold().unwrap().lose();

    holding.write_once().await;

    assert!(!is_held(&holding, &lost));
    assert!(store.asked("save").is_empty(), "its row is another daemon's");
}

#[tokio::test]
async fn a_renewal_for_an_old_hold_says_nothing_of_a_new_one() {
    let store = Fake::shared();
    let holding = holding(&store);
    let old = held(&holding, kept(), 1);
    let gate = store.waits("renew", false);
    let mut renewing = Box::pin(holding.renew_once());
    assert!(poll!(&mut renewing).is_pending());

    let new = held(&holding, old.kept.clone(), 2);
    gate.add_permits(1);
    renewing.await;

    assert!(is_held(&holding, &new));
    assert_eq!((ending(&new), new.hold().unwrap().is_lost()), (None, false));
}

#[tokio::test]
async fn a_claim_that_is_not_renewed_ends_its_session_here() {
    let store = Fake::shared();
    let holding = holding(&store);
    let entry = held(&holding, kept(), 1);
    store.does("renew", Does::No);

    holding.renew_once().await;

    assert_eq!(ending(&entry), Some(Ending::TakenOver));
    assert!(!is_held(&holding, &entry) && entry.hold().unwrap().is_lost());
    assert!(!holding.tenure.is_broken());
    let text = holding.metrics.text();
    assert!(text.contains("holds_lost_total{reason=\"taken\"} 1"), "{text}");
}

#[tokio::test]
async fn a_store_that_does_not_answer_ends_those_whose_time_is_over_and_no_others() {
    let store = Fake::shared();
    let holding = holding(&store);
    let (late, early) = (held(&holding, kept(), 1), held(&holding, kept(), 1));
    late.hold().unwrap().expire();
    store.does("renew", Does::Fails);

    holding.renew_once().await;

    assert_eq!(ending(&late), Some(Ending::TakenOver));
    assert_eq!(ending(&early), None);
    assert!(is_held(&holding, &early) && holding.tenure.is_broken());
    let text = holding.metrics.text();
    assert!(text.contains("holds_lost_total{reason=\"late\"} 1"), "{text}");
    let now = holding.now();
    assert_eq!((now.broken, now.sessions), (true, 1));
}

#[tokio::test]
async fn where_the_daemon_is_found_is_said_at_the_start_and_with_each_renewal() {
    let store = Fake::shared();
    let holding = holding(&store);
    let said = |count| vec!["tcp:bridge.example:4410".to_owned(); count];

    holding.resume().await.unwrap();
    assert_eq!(store.asked("announce"), said(1));
    holding.renew_once().await;
    assert_eq!(store.asked("announce"), said(2));

    // That it cannot be said takes no session from its owner.
    store.does("announce", Does::Fails);
    let entry = held(&holding, kept(), 1);
    holding.renew_once().await;
    assert!(is_held(&holding, &entry) && !holding.tenure.is_broken());
}

#[tokio::test]
async fn a_session_that_has_ended_is_no_loss() {
    let store = Fake::shared();
    let holding = holding(&store);
    let entry = held(&holding, kept(), 1);
    entry.stands(Standing::new(SessionState::Ended, Some("expired"), None));
    // Its row says so since the claims were put together.
    store.does("renew", Does::No);

    holding.renew_once().await;

    assert!(!holding.metrics.text().contains("holds_lost_total{"));
    assert_eq!(ending(&entry), None);
}
