//! A disk that takes nothing.

use std::fs::File;

use super::*;

/// Every write to it ends as on a full disk.
const FULL: &str = "/dev/full";

/// Puts another file in the segment's place, and gives that back.
fn put(audit: &Audit, file: Arc<File>) -> Arc<File> {
    std::mem::replace(&mut audit.inner().lock().file, file)
}

fn full() -> Arc<File> {
    Arc::new(File::options().append(true).open(FULL).unwrap())
}

#[test]
fn what_a_full_disk_does_not_take_is_an_error_and_leaves_no_gap() {
    let ground = Ground::new();
    let audit = ground.open();
    use_it(&audit, 1);
    let before = audit.counts();
    let segment = put(&audit, full());

    let refused = audit.append("event", |_| {});

    assert!(matches!(refused, Err(AuditError::Failed(_))), "{refused:?}");
    assert_eq!((audit.counts().seq, audit.counts().unwritten), (before.seq, 1));
    put(&audit, segment);
    assert_eq!(audit.append("event", |_| {}).unwrap(), before.seq + 1);
    drop(audit);
    assert!(ground.verify().is_clean(), "{:?}", ground.verify());
}

#[test]
fn without_an_audit_no_session_begins() {
    let ground = Ground::new();
    let audit = ground.open();
    put(&audit, full());

    let session = SessionAudit::begin(&audit, Uuid::now_v7(), &Identities::default(), "local");

    assert!(matches!(session, Err(AuditError::Failed(_))), "{session:?}");
}

#[test]
fn where_failures_are_let_through_they_are_counted() {
    let mut ground = Ground::new();
    ground.settings.on_failure = OnFailure::Allow;
    let audit = ground.open();
    put(&audit, full());

    use_it(&audit, 1);

    assert_eq!(audit.counts().unwritten, 4);
}

#[test]
fn a_head_that_cannot_be_written_stops_the_audit_until_it_can() {
    let ground = Ground::new();
    let audit = ground.open();
    let newest = audit.counts().seq;
    let wait = |condition: &dyn Fn() -> bool| {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !condition() {
            assert!(std::time::Instant::now() < limit, "it never came");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    wait(&|| audit.counts().sealed == newest);
    // A folder in the place of the file that is to become the head.
    let obstacle = ground.folder().join("head.new");
    std::fs::create_dir(&obstacle).unwrap();

    audit.append("event", |_| {}).unwrap();
    wait(&|| audit.health().is_err());
    assert!(audit.append("event", |_| {}).is_err());

    std::fs::remove_dir(&obstacle).unwrap();
    wait(&|| audit.health().is_ok());
    audit.append("event", |_| {}).unwrap();
    drop(audit);
    assert!(ground.verify().is_clean());
}
