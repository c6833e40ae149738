//! Sessions as rows.

use std::time::SystemTime;

use bridge::store::{Fence, Heard, Hold, SessionFilter, SessionRow, StoreError};
use futures_util::StreamExt as _;
use paperclip_bridge_tests::within;
use serde_json::json;
use uuid::Uuid;

use crate::ground::{GUARD, Ground, LONG, NONE, at, session};

pub(super) async fn a_session_is_read_as_it_was_written(ground: Ground) {
    let written = session();

    let claim = ground.a.create(&written, ground.ours, LONG).await.unwrap();

    let read = ground.b.session(written.id).await.unwrap().unwrap();
    assert_eq!(
        (claim.session, claim.daemon, claim.fence),
        (written.id, ground.ours, Fence(1))
    );
    assert_eq!((read.hold.owner, read.hold.fence), (Some(ground.ours), Fence(1)));
    assert!(read.hold.lease_until.is_some());
    let hold = Hold::default();
    assert_eq!(SessionRow { hold, ..read }, written);
    assert_eq!(ground.b.session(Uuid::now_v7()).await.unwrap(), None);
    let again = ground.b.create(&written, ground.theirs, LONG).await;
    assert!(
        matches!(again, Err(StoreError::Exists(id)) if id == written.id),
        "{again:?}"
    );
}

pub(super) async fn what_changed_is_written_and_what_is_not_the_owners_stays(ground: Ground) {
    let first = session();
    let claim = ground.a.create(&first, ground.ours, LONG).await.unwrap();
    let before = ground.a.session(first.id).await.unwrap().unwrap();
    assert!(ground.b.revoke(first.id).await.unwrap());
    let changed = SessionRow {
        state: "degraded".to_owned(),
        reason: Some("port_taken".to_owned()),
        request: json!({"other": [1, 2]}),
        anywhere: false,
        port: None,
        unix_path: Some("/run/x.sock".to_owned()),
        token_sha256: [1; 32],
        heartbeat_at: Some(at(1_700_000_000_000_009)),
        ..first.clone()
    };

    assert!(ground.a.save(&claim, &changed).await.unwrap());

    let read = ground.a.session(first.id).await.unwrap().unwrap();
    let expected = SessionRow {
        revoked: true,
        hold: before.hold,
        ..changed
    };
    assert_eq!(read, expected);
}

pub(super) async fn sessions_are_listed_newest_first_and_by_owner(ground: Ground) {
    let mut ids = Vec::new();
    for (second, daemon) in [(3, ground.ours), (1, ground.theirs), (2, ground.ours)] {
        let created_at = at(second * 1_000_000);
        let session = SessionRow {
            created_at,
            ..session()
        };
        let claim = ground.a.create(&session, daemon, LONG).await.unwrap();
        ids.push(session.id);
        if second == 2 {
            let ended_at = Some(at(9_000_000));
            assert!(
                ground
                    .a
                    .save(&claim, &SessionRow { ended_at, ..session })
                    .await
                    .unwrap()
            );
        }
    }
    let listed = async |filter| {
        let rows = ground.b.sessions(filter).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };

    let filter = SessionFilter::default();
    assert_eq!(listed(filter).await, [ids[0], ids[1]]);
    assert_eq!(
        listed(SessionFilter {
            ended: true,
            ..filter
        })
        .await,
        [ids[0], ids[2], ids[1]]
    );
    assert_eq!(
        listed(SessionFilter {
            ended: true,
            most: 1,
            ..filter
        })
        .await,
        [ids[0]]
    );
    let owner = Some(ground.theirs);
    assert_eq!(listed(SessionFilter { owner, ..filter }).await, [ids[1]]);
}

pub(super) async fn a_revoked_session_is_known_to_its_owner_until_it_has_ended(ground: Ground) {
    let row = session();
    let claim = ground.a.create(&row, ground.ours, LONG).await.unwrap();

    assert!(ground.b.revoke(row.id).await.unwrap());
    assert_eq!(ground.a.revoked(ground.ours).await.unwrap(), [row.id]);
    assert!(ground.b.revoked(ground.theirs).await.unwrap().is_empty());

    let ended_at = Some(at(1));
    assert!(
        ground
            .a
            .save(
                &claim,
                &SessionRow {
                    ended_at,
                    ..row.clone()
                }
            )
            .await
            .unwrap()
    );
    assert!(ground.a.revoked(ground.ours).await.unwrap().is_empty());
    assert!(!ground.b.revoke(row.id).await.unwrap());
    assert!(!ground.b.revoke(Uuid::now_v7()).await.unwrap());
}

pub(super) async fn a_revoked_session_is_heard_of_at_once_where_there_is_something_to_listen_to(
    ground: Ground,
) {
    let Some(mut hearing) = ground.a.listen() else {
        assert!(
            !ground.a.is_shared(),
            "other daemons say something, and it is not heard"
        );
        return;
    };
    let mut hear = async || within(GUARD, "something is heard", hearing.next()).await.unwrap();
    assert_eq!(hear().await, Heard::Anew);
    let (first, second) = (ground.owned().await, ground.owned().await);

    assert!(!ground.b.revoke(Uuid::now_v7()).await.unwrap());
    assert!(ground.b.revoke(first.session).await.unwrap());
    assert!(ground.a.revoke(second.session).await.unwrap());

    assert_eq!(hear().await, Heard::Revoked(first.session));
    assert_eq!(hear().await, Heard::Revoked(second.session));
    let mut revoked = ground.a.revoked(ground.ours).await.unwrap();
    revoked.sort();
    assert_eq!(revoked, [first.session, second.session]);
}

pub(super) async fn an_ended_session_is_kept_for_its_time_and_goes_with_its_ledger(ground: Ground) {
    let open = ground.owned().await;
    let row = session();
    let claim = ground.a.create(&row, ground.ours, LONG).await.unwrap();
    let entry = ground.dispatched(&claim, None).await;
    let kept = ground.dispatched(&open, None).await;
    // Between the two ages of the sweeps, whatever a clock may differ.
    let ended_at = Some(SystemTime::now() - LONG);
    assert!(
        ground
            .a
            .save(
                &claim,
                &SessionRow {
                    ended_at,
                    ..row.clone()
                }
            )
            .await
            .unwrap()
    );

    assert_eq!(ground.a.sweep_sessions(2 * LONG).await.unwrap(), 0);
    assert_eq!(ground.a.sweep_sessions(NONE).await.unwrap(), 1);

    assert_eq!(ground.a.session(row.id).await.unwrap(), None);
    assert_eq!(ground.a.entry(entry).await.unwrap(), None);
    assert!(ground.a.session(open.session).await.unwrap().is_some());
    assert!(ground.a.entry(kept).await.unwrap().is_some());
}
