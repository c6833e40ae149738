//! Daemons, nonces, audit heads, leases, owed clean-ups.

use std::sync::Arc;

use bridge::store::{AuditHeadRow, CleanupRow, LeaseRow};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::ground::{GUARD, Ground, LONG, NONE, at, place};

pub(super) async fn a_daemon_is_known_by_what_it_said_last_until_it_is_long_gone(ground: Ground) {
    let known = async || {
        let daemons = ground.b.daemons().await.unwrap();
        daemons.into_iter().find(|daemon| daemon.id == ground.ours)
    };
    ground.a.ready().await.unwrap();
    assert_eq!(known().await.unwrap().place, None, "as one of an earlier version");

    ground.a.announce(&place("tcp:before.example:1")).await.unwrap();
    ground.a.announce(&place("tcp:now.example:2")).await.unwrap();
    ground.a.ready().await.unwrap();

    let now = known().await.unwrap();
    assert_eq!(now.place, Some(place("tcp:now.example:2")));
    assert_eq!(ground.b.sweep_daemons(LONG).await.unwrap(), 0);
    // The database's clock has gone on since it was seen.
    let mut claims = Vec::new();
    loop {
        let claim = ground.owned_for(NONE).await;
        let row = ground.a.session(claim.session).await.unwrap().unwrap();
        claims.push(claim);
        if row.hold.lease_until > Some(now.seen_at) {
            break;
        }
    }
    assert_eq!(
        ground.b.sweep_daemons(NONE).await.unwrap(),
        0,
        "it owns a session"
    );
    for claim in claims {
        assert!(ground.a.release(&claim).await.unwrap());
    }
    assert_eq!(ground.b.sweep_daemons(NONE).await.unwrap(), 1);
    assert_eq!(known().await, None);
}

pub(super) async fn a_nonce_is_spent_once_however_many_ask(ground: Ground) {
    let mut requests = JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(if number % 2 == 0 { &ground.a } else { &ground.b });
        requests.spawn(async move { store.spend_nonce("key", "nonce", LONG).await.unwrap() });
    }

    let first = requests
        .join_all()
        .await
        .into_iter()
        .filter(|first| *first)
        .count();

    assert_eq!(first, 1);
    assert!(
        ground.a.spend_nonce("other", "nonce", LONG).await.unwrap(),
        "another key's own"
    );
    assert!(ground.a.spend_nonce("key", "NONCE", LONG).await.unwrap());
}

pub(super) async fn a_nonce_goes_when_its_time_is_over(ground: Ground) {
    assert!(ground.a.spend_nonce("key", "kept", LONG).await.unwrap());
    assert!(ground.a.spend_nonce("key", "over", NONE).await.unwrap());
    assert!(
        !ground.a.spend_nonce("key", "over", NONE).await.unwrap(),
        "until it is swept"
    );

    let started = std::time::Instant::now();
    while ground.a.sweep_nonces().await.unwrap() == 0 {
        assert!(started.elapsed() < GUARD, "it was never swept");
    }

    assert!(!ground.a.spend_nonce("key", "kept", LONG).await.unwrap());
    assert!(ground.a.spend_nonce("key", "over", LONG).await.unwrap());
}

pub(super) async fn an_audit_head_never_goes_back(ground: Ground) {
    let head = |segment: &str, seq, byte| AuditHeadRow {
        daemon: ground.ours,
        segment: segment.to_owned(),
        seq,
        sha256: [byte; 32],
        hmac: [byte ^ 0xff; 32],
        at: at(1_700_000_000_000_000 + seq),
    };
    let newest = head("1.jsonl", 7, 7);

    assert!(ground.a.put_audit_head(&head("1.jsonl", 3, 3)).await.unwrap());
    assert!(ground.a.put_audit_head(&newest).await.unwrap());
    assert!(!ground.a.put_audit_head(&head("1.jsonl", 6, 6)).await.unwrap());
    assert!(!ground.a.put_audit_head(&head("1.jsonl", 7, 9)).await.unwrap());
    let next = head("2.jsonl", 9, 1);
    assert!(ground.a.put_audit_head(&next).await.unwrap());

    assert_eq!(
        ground.b.audit_heads(ground.ours, 10).await.unwrap(),
        [next.clone(), newest]
    );
    assert_eq!(ground.b.audit_heads(ground.ours, 1).await.unwrap(), [next]);
    assert_eq!(ground.b.audit_heads(ground.theirs, 10).await.unwrap(), []);
}

pub(super) async fn leases_and_cleanups_are_kept_until_they_are_removed(ground: Ground) {
    let lease = LeaseRow {
        name: "e2b-1".to_owned(),
        provider: "e2b".to_owned(),
        account: "a".to_owned(),
        stage: "held".to_owned(),
        session: Some(Uuid::now_v7()),
        record: json!({"version": 1}),
        since: at(5),
    };
    ground.a.put_lease(&lease).await.unwrap();
    let owed = LeaseRow {
        stage: "owed".to_owned(),
        session: None,
        ..lease
    };
    ground.a.put_lease(&owed).await.unwrap();
    let cleanup = CleanupRow {
        name: "queue-1".to_owned(),
        session: None,
        target: "ssh://me@host".to_owned(),
        record: json!({"folder": "/tmp/x"}),
        since: at(6),
        attempts: 2,
        next: Some(at(7)),
    };
    ground.a.put_cleanup(&cleanup).await.unwrap();

    assert_eq!(ground.b.leases().await.unwrap(), [owed]);
    assert_eq!(ground.b.cleanups().await.unwrap(), [cleanup]);

    assert!(ground.b.delete_lease("e2b-1").await.unwrap());
    assert!(!ground.b.delete_lease("e2b-1").await.unwrap());
    assert!(ground.b.delete_cleanup("queue-1").await.unwrap());
    assert!(!ground.b.delete_cleanup("queue-1").await.unwrap());
    assert_eq!(
        (
            ground.a.leases().await.unwrap().len(),
            ground.a.cleanups().await.unwrap().len()
        ),
        (0, 0)
    );
}

pub(super) async fn a_store_that_can_be_written_is_ready(ground: Ground) {
    ground.a.ready().await.unwrap();
    ground.b.ready().await.unwrap();
    assert!(["sqlite", "postgres"].contains(&ground.a.kind()));
}
